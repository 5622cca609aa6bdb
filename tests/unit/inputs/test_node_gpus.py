"""The GPUs of a node, read by the shipped profiles' rules from trees of /proc and /sys."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import List, Tuple

import pytest

from oci_hpc_hooks.inputs import gpus
from tests.unit import gpu_bed
from tests.unit.gpu_bed import Bed, nvidia_bus, nvidia_uuid, shown


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def test_every_fixture_says_by_what_it_was_made() -> None:
    assert {entry["by"] for entry in gpu_bed.VERIFIED.values()} == {"paper"} and all(entry["source"] for entry in gpu_bed.VERIFIED.values())


@pytest.mark.parametrize("count", [0, 1, 4, 8, 16])
def test_nvidia(bed: Bed, count: int) -> None:
    node = bed.nvidia(count).node("cuda")
    assert shown(node, "cuda") == [
        (n, nvidia_uuid(n), (f"/dev/nvidia{n}", f"/dev/dri/card{n}", f"/dev/dri/renderD{128 + n}")) for n in range(count)]
    assert [gpu.bus for gpu in node.gpus["cuda"]] == [nvidia_bus(n) for n in range(count)]
    assert [gpu.hidden for gpu in node.gpus["cuda"]] == [(f"/proc/driver/nvidia/gpus/{nvidia_bus(n)}",) for n in range(count)]
    assert node.drivers == {"cuda": "550.54.14\n"}


def test_numbers_go_by_the_bus_and_not_by_the_device_file(bed: Bed) -> None:
    """As on some boards: the first on the bus is not the first that the driver found."""
    node = bed.nvidia(4, minors=(2, 3, 0, 1)).node("cuda")
    assert [(gpu.number, gpu.nodes[0]) for gpu in node.gpus["cuda"]] == [
        (0, "/dev/nvidia2"), (1, "/dev/nvidia3"), (2, "/dev/nvidia0"), (3, "/dev/nvidia1")]


def test_instances_of_nvidia(bed: Bed) -> None:
    node = bed.nvidia(2, mig={1: [(13, 0), (9, 0), (10, 0), (10, 1)]}).node("cuda")
    whole, divided = node.gpus["cuda"]
    assert whole.parts == ()
    caps: List[Tuple[str, ...]] = [part.nodes for part in divided.parts]
    assert caps == [tuple(f"/dev/nvidia-caps/nvidia-cap{138 + 9 * gi + add}" for add in (0, 1 + ci))
                    for gi, ci in ((9, 0), (10, 0), (10, 1), (13, 0))]
    assert [part.uuid for part in divided.parts] == [f"MIG-{nvidia_uuid(1)}/{gi}/{ci}" for gi, ci in ((9, 0), (10, 0), (10, 1), (13, 0))]


def test_imex_channels(bed: Bed) -> None:
    node = bed.nvidia(1).imex(0, 2047).node("cuda")
    assert node.numbered == {"NVIDIA_IMEX_CHANNELS": [f"/dev/nvidia-caps-imex-channels/channel{n}" for n in (0, 2047)]}


@pytest.mark.parametrize(("count", "partitions"), [(1, 1), (8, 1), (2, 8)])
def test_amd(bed: Bed, count: int, partitions: int) -> None:
    """Each partition is a GPU to programs; those of one GPU have its identifier."""
    node = bed.amd(count, partitions).node("rocm")
    assert shown(node, "rocm") == [
        (n, str(gpu_bed.amd_id(n // partitions)), (f"/dev/dri/card{n}", f"/dev/dri/renderD{128 + n}")) for n in range(count * partitions)]


def test_intel_among_others(bed: Bed) -> None:
    node = bed.intel(2, others=1).node("levelzero")
    assert shown(node, "levelzero") == [(n, "", (f"/dev/dri/card{n + 1}", f"/dev/dri/renderD{129 + n}")) for n in range(2)]


def test_a_gpu_without_a_node_is_none(bed: Bed) -> None:
    bed.nvidia(2).nodes -= {"/dev/nvidia0", "/dev/dri/card0", "/dev/dri/renderD128"}
    assert [gpu.nodes[0] for gpu in bed.node("cuda").gpus["cuda"]] == ["/dev/nvidia1"]


def test_what_the_device_cgroup_closes(bed: Bed) -> None:
    bed.nvidia(3, mig={2: [(1, 0), (2, 0)]}).closed |= {"/dev/nvidia1", f"/dev/nvidia-caps/nvidia-cap{gpu_bed.cap(2, 1)}"}
    found = bed.node("cuda").gpus["cuda"]
    assert [gpu.closed for gpu in found] == [False, True, False]
    assert [part.closed for part in found[2].parts] == [True, False]


@pytest.mark.parametrize("text", ["", "GPU UUID", ":::\n\n", "\0\xff" * 100, "Device Minor: ../0\nBus Location: ..", "Device Minor: 0"])
def test_what_is_no_information(bed: Bed, text: str) -> None:
    bed.write("/proc/driver/nvidia/gpus/x/information", text)
    bed.nodes.add("/dev/nvidia0")
    found = bed.node("cuda").gpus["cuda"]
    assert [gpu.nodes for gpu in found] == ([("/dev/nvidia0",)] if text == "Device Minor: 0" else [])


def test_more_than_there_can_be(bed: Bed) -> None:
    for number in range(gpus.MOST + 5):
        bed.write(f"/proc/driver/nvidia/gpus/{number}/information", f"Device Minor: {number}\n")
        bed.nodes.add(f"/dev/nvidia{number}")
    assert len(bed.node("cuda").gpus["cuda"]) == gpus.MOST


def test_no_node_has_any_of_it(tmp_path: Path) -> None:
    node = gpus.node(gpu_bed.plan("cuda", "rocm", "levelzero"), str(tmp_path))
    assert node.gpus == {"cuda": [], "rocm": [], "levelzero": []} and node.cgroups == ()


def test_this_process_has_cgroups() -> None:
    assert isinstance(gpus.node(gpu_bed.plan("cuda")).cgroups, tuple)


def test_a_look_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")
    assert {name: gpus.look(str(tmp_path / name)) for name in ("file", "fifo", "link", "none")} == dict.fromkeys(
        ("file", "fifo", "link", "none"), gpus.ABSENT)
    assert gpus.look("/dev/null") == gpus.OPEN


DEVICES = Path("/sys/fs/cgroup/devices")


@pytest.mark.skipif(not os.access(DEVICES / "cgroup.procs", os.W_OK), reason="no writable device cgroup of version 1")
def test_a_look_asks_the_device_cgroup(tmp_path: Path) -> None:
    """Although its list shows nothing but "all devices"."""
    group = DEVICES / f"hpc-hooks-test-{os.getpid()}"
    path = tmp_path / "node"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    path.chmod(0o666)
    group.mkdir()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        said = [gpus.look(str(path))]
        (group / "devices.deny").write_text("c 1:7 rwm")
        said += [gpus.look(str(path)), (group / "devices.list").read_text().strip()]
        os.write(writing, "\n".join(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        told = answer.read().splitlines()
    os.waitpid(child, 0)
    group.rmdir()
    assert told == [gpus.OPEN, gpus.CLOSED, "a *:* rwm"]
