"""The files of real drivers without a device: what arrives, beside what the vendor's own tools would bring, and how far a program gets."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import Site
from tests.engine.inside import TREE, start
from tests.engine.site import Sites

KEY = "org.supercontainers.gpu"
STAGES = ("", "podman")
LIB = "usr/lib/x86_64-linux-gnu"
RELEASES = {"470": "470.256.02", "525": "525.147.05", "535": "535.261.03", "550": "550.163.01"}
FOLDERS = {"470": "tesla-470", "525": "tesla", "535": "current", "550": "current"}  # that Debian has for each
PROFILES = {"rocm": "rocm", "intel": "levelzero"}  # of the site's folders that hold no NVIDIA driver

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
NO_MODULE = (9, 999)  # NVML_ERROR_DRIVER_NOT_LOADED; NVML_ERROR_UNKNOWN where it could not even ask for it
INVALID_DEVICE = 101  # hipErrorInvalidDevice
NO_DRIVER = 0x78000001  # ZE_RESULT_ERROR_UNINITIALIZED: there is no device for one
NO_RESOURCES = 4104  # HSA_STATUS_ERROR_OUT_OF_RESOURCES: no /dev/kfd


class Drivers(Sites):
    """One for each driver; root's."""

    def get(self, *names: str) -> Site:
        return self.made(bed.root_account(), [{"name": PROFILES.get(name, "cuda"), "root": str(root_of(name))} for name in names])


def root_of(name: str) -> Path:
    return bed.BUILD / "site" / (name if name in PROFILES else f"nvidia-{name}")


@pytest.fixture(scope="module")
def drivers() -> Iterator[Drivers]:
    made = Drivers("drivers")
    yield made
    made.remove()


def call(site: Site, suite: str, stack: str, *pairs: str, stage: str = "",
         options: tuple[str, ...] = ()) -> tuple[bed.Result, list[dict[str, Any]]]:
    return start(Engine("crun", "root"), site, "/usr/local/bin/dlcall", *pairs, image=f"opencl-{suite}",
                 options=[f"--annotation={KEY}={stack}", *options], hooks_dir=site.hooks_dir / stage)


#: The two newest at both stages in every image; the others once.
CELLS = [(release, suite, stage) for release in ("535", "550") for suite in ("bullseye", "bookworm", "trixie") for stage in STAGES]


@pytest.mark.parametrize(("release", "suite", "stage"), [*CELLS, ("470", "bullseye", ""), ("525", "bookworm", "podman")])
def test_a_program_opens_libcuda(drivers: Drivers, release: str, suite: str, stage: str) -> None:
    """By either name, and finds that there is no GPU."""
    pairs = ("libcuda.so.1", "cuInit", "libcuda.so", "cuInit", "libnvidia-ml.so.1", "nvmlInit_v2")
    result, log = call(drivers.get(release), suite, "cuda", *pairs, stage=stage)
    folder = f"{TREE}/{LIB}/nvidia/{FOLDERS[release]}"
    *cuda, nvml = result.stdout.splitlines()
    assert cuda == [f"{name}: cuInit = {NO_DEVICE} ({folder}/libcuda.so.1)" for name in ("libcuda.so.1", "libcuda.so")], result.stderr
    assert nvml in [f"libnvidia-ml.so.1: nvmlInit_v2 = {code} ({folder}/libnvidia-ml.so.1)" for code in NO_MODULE]
    assert [(entry["verdict"], entry["profile"]) for entry in log] == [("unproved", "cuda")]


def test_a_program_opens_rocm(drivers: Drivers) -> None:
    result, _ = call(drivers.get("rocm"), "bookworm", "rocm", "libhsa-runtime64.so.1", "hsa_init", "libamdhip64.so.5", "hipInit")
    assert result.stdout.splitlines() == [
        f"libhsa-runtime64.so.1: hsa_init = {NO_RESOURCES} ({TREE}/{LIB}/libhsa-runtime64.so.1)",
        f"libamdhip64.so.5: hipInit = {INVALID_DEVICE} ({TREE}/{LIB}/libamdhip64.so.5)",
    ], result.stderr


def test_rocm_in_an_image_that_is_too_old(drivers: Drivers) -> None:
    result, _ = call(drivers.get("rocm"), "bullseye", "rocm", "libhsa-runtime64.so.1", "hsa_init")
    assert "of libc.so.6, and the image's glibc is 2.31" in result.stderr and f"--annotation {KEY}=none" in result.stderr


def test_what_the_newest_glibc_refuses_to_open_stays_away(drivers: Drivers) -> None:
    """Debian 12's libamdhip64 wants an executable stack; glibc 2.41 opens no such library, and a copy in the tree would only look well."""
    result, log = call(drivers.get("rocm"), "trixie", "rocm", "libhsa-runtime64.so.1", "hsa_init")
    assert f"hsa_init = {NO_RESOURCES}" in result.stdout, result.stderr
    (left,) = [finding["what"] for finding in log[-1]["findings"] if finding["code"] == "left-out" and "libamdhip64" in finding["what"]]
    assert "wants an executable stack, and glibc 2.41 opens no such library" in left


@pytest.mark.parametrize("stage", STAGES)
def test_two_stacks_at_once(drivers: Drivers, stage: str) -> None:
    result, log = call(drivers.get("535", "rocm"), "bookworm", "cuda+rocm", "libcuda.so.1", "cuInit", "libhsa-runtime64.so.1", "hsa_init",
                       stage=stage)
    assert f"cuInit = {NO_DEVICE}" in result.stdout and f"hsa_init = {NO_RESOURCES}" in result.stdout, result.stderr
    assert [entry["profile"] for entry in log] == ["cuda, rocm"]


def test_a_program_opens_level_zero(drivers: Drivers) -> None:
    """Its loader and Intel's driver, both of the node; there is no GPU, so that no driver is left."""
    result, _ = call(drivers.get("intel"), "bookworm", "levelzero", "libze_loader.so.1", "zeInit", "libze_intel_gpu.so.1", "zeInit")
    assert result.stdout.splitlines() == [
        f"{name}: zeInit = {NO_DRIVER} ({TREE}/{LIB}/{name})" for name in ("libze_loader.so.1", "libze_intel_gpu.so.1")
    ], result.stderr


# ------------------------------------------------------------------------------------------------ a newer driver in the image

NOTE = {"format": 1, "CUDA version": "12.4", "device": [1, 2, 7]}


def compat(folder: Path, supports: Optional[list[int]]) -> Path:
    """The libraries of 550 as an image's /usr/local/cuda/compat, with a note for which drivers they are meant."""
    own = root_of("550") / LIB / "nvidia/current"
    for path in own.iterdir():
        if path.name.startswith(("libcuda.so", "libnvidia-ptxjitcompiler.so", "libnvidia-nvvm.so")):
            shutil.copy2(path, folder / path.name, follow_symlinks=False)
    if supports is not None:
        said = json.dumps({**NOTE, "driver": supports}).encode()
        owner = b"NVIDIA Corporation\0".ljust(20, b"\0")
        (folder / "note").write_bytes(struct.pack("<3I", 19, len(said), 1) + owner + said.ljust((len(said) + 3) // 4 * 4, b"\0"))
        library = folder / f"libcuda.so.{RELEASES['550']}"
        subprocess.run(["objcopy", "--add-section", f".note.cuda.fwd_compatibility={folder / 'note'}", library], check=True)
    return folder


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("supports", "images"), [(None, True), ([470, 535], True), ([470, 525], False)])
def test_a_newer_driver_in_the_image(drivers: Drivers, scratch: Path, supports: Optional[list[int]], images: bool, stage: str) -> None:
    site = drivers.get("535")
    volume = f"--volume={compat(scratch, supports)}:/usr/local/cuda/compat:ro"
    names = ("libcuda.so.1", "cuInit", "libcuda.so", "cuInit", "libnvidia-ml.so.1", "nvmlInit_v2")
    for way in ("cold", "warm"):
        result, log = call(site, "bookworm", "cuda", *names, stage=stage, options=(volume,))
        folder = "/usr/local/cuda/compat" if images else f"{TREE}/{LIB}/nvidia/current"
        *cuda, nvml = result.stdout.splitlines()
        assert [line.rpartition("/")[0] for line in cuda] == [f"{name}: cuInit = {NO_DEVICE} ({folder}" for name in names[:4:2]], result
        assert nvml.endswith(f"({TREE}/{LIB}/nvidia/current/libnvidia-ml.so.1)")
        (told,) = [finding for finding in log[-1]["findings"] if finding["code"] == "newer-in-image"]
        assert log[-1]["path"] == way and told["severity"] == ("note" if images else "warning")
        assert f"/usr/local/cuda/compat/libcuda.so.{RELEASES['550']}" in told["what"]


# ---------------------------------------------------------------------------------------------------------------- devices

def test_devices_of_the_node_come_by_the_callers_word(drivers: Drivers) -> None:
    """A node that has one of the names: at each start it is looked for anew."""
    site = drivers.get("535")
    node = Path("/dev/nvidia-modeset")
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    node.chmod(0o666)
    try:
        _, log = call(site, "bookworm", "cuda", "libcuda.so.1", "cuInit")
        assert str(node) in log[-1]["devices"]
    finally:
        node.unlink()
    _, log = call(site, "bookworm", "cuda", "libcuda.so.1", "cuInit")
    assert "devices" not in log[-1]
