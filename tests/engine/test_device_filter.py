"""The kernel's side of a container's devices in cgroup v2: real programs, in a cgroup of the test's own, asked by a process in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci_hpc_hooks.linux import bpf, syscalls
from tests.unit.test_device_filter import PROGRAMS

KMSG, FULL = ("c", 1, 11), ("c", 1, 7)
HARDEN = Path("/proc/sys/net/core/bpf_jit_harden")
RESTRICT = Path("/proc/sys/kernel/kptr_restrict")


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a new cgroup of version 2."""
    tree = tmp_path / "cgroup"
    tree.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", tree], check=True)
    folder = tree / f"oci-hpc-hooks-{os.getpid()}"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    folder.rmdir()
    subprocess.run(["umount", tree], check=True)


def attach(cgroup: int, program: bytes, flags: int) -> None:
    fd = bpf.load(program)
    try:
        syscalls.bpf(bpf.PROG_ATTACH, bpf._attributes((cgroup, 4), (fd, 4), (bpf.CGROUP_DEVICE, 4), (flags, 4)))
    finally:
        os.close(fd)


def opened(cgroup: int, *nodes: str) -> list[str]:
    """What a process in the cgroup is told of opening each node for writing."""
    script = "echo $$ > cgroup.procs; " + "; ".join(f"( exec 3>/dev/{node} ) 2>&- && echo yes || echo no" for node in nodes)
    where = f"/proc/self/fd/{cgroup}"
    return subprocess.run(["sh", "-c", script], cwd=where, pass_fds=[cgroup], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("flags", [0, bpf.F_ALLOW_OVERRIDE, bpf.F_ALLOW_MULTI])
@pytest.mark.parametrize("name", ["crun", "runc", "systemd", "nothing"])
def test_a_device_more_and_the_rest_as_before(cgroup: int, name: str, flags: int) -> None:
    attach(cgroup, PROGRAMS[name], flags)
    before = opened(cgroup, "null", "full", "kmsg")
    assert before == (["no"] * 3 if name == "nothing" else ["yes", "no", "no"] if name == "systemd" else ["yes", "yes", "no"])
    assert bpf.allow(cgroup, [KMSG]) == ""
    assert opened(cgroup, "null", "full", "kmsg") == [*before[:2], "yes"]
    ids, now = bpf.query(cgroup)
    assert len(ids) == 1 and now == flags
    assert bpf.allow(cgroup, [FULL]) == ""  # once more: our own program is carried over like any other
    assert opened(cgroup, "full", "kmsg") == ["yes", "yes"]


def test_without_a_program_everything_is_allowed(cgroup: int) -> None:
    assert bpf.allow(cgroup, [KMSG]) == "" and bpf.query(cgroup)[0] == []
    assert opened(cgroup, "kmsg") == ["yes"]


def test_of_two_programs_none_is_touched(cgroup: int) -> None:
    attach(cgroup, PROGRAMS["runc"], bpf.F_ALLOW_MULTI)
    attach(cgroup, PROGRAMS["systemd"], bpf.F_ALLOW_MULTI)
    ids = bpf.query(cgroup)
    assert bpf.allow(cgroup, [KMSG]).startswith("2 BPF programs")
    assert bpf.query(cgroup) == ids and opened(cgroup, "kmsg") == ["no"]


@pytest.mark.parametrize("restrict", ["0", "2"])
def test_a_program_that_the_kernel_keeps_to_itself_is_left(cgroup: int, restrict: str) -> None:
    """Constants blinded: who may see the kernel's addresses gets them so, who may not gets nothing at all."""
    before = HARDEN.read_text(), RESTRICT.read_text()
    HARDEN.write_text("2")
    try:
        attach(cgroup, PROGRAMS["runc"], bpf.F_ALLOW_MULTI)
        RESTRICT.write_text(restrict)
        ids = bpf.query(cgroup)
        assert "bpf_jit_harden" in bpf.allow(cgroup, [KMSG])
    finally:
        HARDEN.write_text(before[0])
        RESTRICT.write_text(before[1])
    assert bpf.query(cgroup) == ids and opened(cgroup, "null", "kmsg") == ["yes", "no"]


def test_a_program_with_functions_of_the_kernel_is_left(cgroup: int) -> None:
    seed = bpf.instruction(bpf.CALL, constant=5)  # bpf_ktime_get_ns()
    attach(cgroup, seed + bpf.instruction(bpf.MOVE, 0, constant=1) + bpf.instruction(bpf.EXIT), bpf.F_ALLOW_MULTI)
    assert "functions of the kernel" in bpf.allow(cgroup, [KMSG])
