"""The BPF program that decides about devices in cgroup v2: put together, and run by a small interpreter over every kind of question.

The programs of crun and runc are those that the kernel told of a ``podman run`` with their defaults (Debian 12); systemd's is written down
after ``bpf-devices.c`` of systemd 252 (a list of two entries).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest

from oci_hpc_hooks.linux import bpf, cgroups

DATA = Path(__file__).parent / "data/device-filters"

#: block 1, character 2; mknod 1, read 2, write 4 (linux/bpf.h).
Question = Tuple[int, int, int, int]
LOAD, AND, SHIFT, MOVE, UNLESS, BITS, EXIT = bpf.LOAD, bpf.AND, bpf.SHIFT, bpf.MOVE, bpf.UNLESS, bpf.IF_BITS, bpf.EXIT
MOVE_REGISTER, MOVE64, UNLESS_REGISTER, JUMP = 0xBC, 0xB7, 0x5D, 0x05
MASK = (1 << 64) - 1


def answer(program: bytes, question: Question) -> int:
    """What a program answers; fails the test for whatever the kernel's verifier would not take."""
    kind, access, major, minor = question
    context = {0: kind | access << 16, 4: major, 8: minor}
    registers: Dict[int, int] = {1: -1}
    at = 0
    for _ in range(len(program)):
        operation, numbers = program[at * 8], program[at * 8 + 1]
        target, source = numbers & 15, numbers >> 4
        offset = int.from_bytes(program[at * 8 + 2:at * 8 + 4], "little", signed=True)
        constant = int.from_bytes(program[at * 8 + 4:at * 8 + 8], "little", signed=True)
        at += 1
        if operation == LOAD:
            assert registers[source] == -1, "not the context"
            registers[target] = context[offset]
        elif operation == AND:
            registers[target] = registers[target] & constant & 0xFFFFFFFF
        elif operation == SHIFT:
            registers[target] = (registers[target] & 0xFFFFFFFF) >> constant
        elif operation in (MOVE, MOVE64):
            registers[target] = constant & (0xFFFFFFFF if operation == MOVE else MASK)
        elif operation == MOVE_REGISTER:
            assert constant == 0, "a reserved field"
            registers[target] = registers[source] & 0xFFFFFFFF
        elif operation == UNLESS:
            at += offset if registers[target] != constant & MASK else 0
        elif operation == UNLESS_REGISTER:
            at += offset if registers[target] != registers[source] else 0
        elif operation == BITS:
            at += offset if registers[target] & constant & MASK else 0
        elif operation == JUMP:
            at += offset
        elif operation == EXIT:
            return registers[0]
        else:
            pytest.fail(f"the interpreter does not know {operation:#x}")
    pytest.fail("it does not end")


def captured(name: str) -> bytes:
    return bytes.fromhex((DATA / f"{name}.hex").read_text())


def systemd() -> bytes:
    """DevicePolicy=strict, DeviceAllow=/dev/null rwm, DeviceAllow=block-* r."""
    make = bpf.instruction
    made = make(LOAD, 2, 1, 0) + make(AND, 2, constant=0xFFFF) + make(LOAD, 3, 1, 0) + make(SHIFT, 3, constant=16)
    made += make(LOAD, 4, 1, 4) + make(LOAD, 5, 1, 8)
    made += make(MOVE_REGISTER, 1, 3) + make(AND, 1, constant=7) + make(UNLESS_REGISTER, 1, 3, offset=4)
    made += make(UNLESS, 2, offset=3, constant=2) + make(UNLESS, 4, offset=2, constant=1) + make(UNLESS, 5, offset=1, constant=3)
    made += make(JUMP, offset=7)
    made += make(MOVE_REGISTER, 1, 3) + make(AND, 1, constant=2) + make(UNLESS_REGISTER, 1, 3, offset=1 + 1)
    made += make(UNLESS, 2, offset=1, constant=1)
    made += make(JUMP, offset=2)
    return made + make(MOVE64, 0, constant=0) + make(JUMP, offset=1) + make(MOVE64, 0, constant=1) + make(EXIT)


PROGRAMS = {"crun": captured("crun-1.8.1"), "runc": captured("runc-1.1.5"), "systemd": systemd(),
            "everything": bpf.instruction(MOVE64, 0, constant=1) + bpf.instruction(EXIT),
            "nothing": bpf.instruction(MOVE64, 0, constant=0) + bpf.instruction(EXIT)}
NUMBERS = [("c", 1, 11), ("c", 10, 229), ("b", 7, 0), ("c", 4095, 1048575)]


def questions() -> Iterator[Question]:
    majors = (0, 1, 5, 7, 10, 136, 195, 4095)
    minors = (0, 2, 3, 5, 8, 9, 11, 200, 229, 1048575)
    return itertools.product((1, 2), range(8), majors, minors)


@pytest.mark.parametrize("old", list(PROGRAMS))
@pytest.mark.parametrize("count", range(len(NUMBERS) + 1))
def test_yes_to_ours_and_as_before_to_all_else(old: str, count: int) -> None:
    program = PROGRAMS[old]
    whole = bpf.rules(NUMBERS[:count]) + bpf.carried(program)
    for kind, access, major, minor in questions():
        ours = ("b" if kind == 1 else "c", major, minor) in NUMBERS[:count] and not access & 1
        expected = 1 if ours else answer(program, (kind, access, major, minor))
        assert answer(whole, (kind, access, major, minor)) == expected, (kind, access, major, minor)


def test_what_the_programs_say_is_what_people_expect() -> None:
    """The oracle itself: /dev/null and making nodes are open in a container, /dev/kmsg is not; systemd's list is what it says."""
    for name in ("crun", "runc"):
        assert [answer(PROGRAMS[name], question) for question in ((2, 6, 1, 3), (2, 1, 1, 11), (2, 2, 1, 11), (1, 2, 7, 0))] == [1, 1, 0, 0]
    assert [answer(PROGRAMS["systemd"], q) for q in ((2, 6, 1, 3), (2, 2, 1, 5), (1, 2, 7, 0), (1, 6, 7, 0))] == [1, 0, 1, 0]


@pytest.mark.parametrize("program, why", [
    (b"", "does not tell"),
    (b"\x95" * 7, "does not tell"),
    (bytes(64), "bpf_jit_harden"),
    (bpf.instruction(0x85, constant=5) + bpf.instruction(EXIT), "functions"),
    (bpf.instruction(0x18, 1, 1) + bytes(8) + bpf.instruction(EXIT), "maps"),
    (bpf.instruction(MOVE64, 11, constant=77) + bpf.instruction(EXIT), "blinded"),
    (bpf.instruction(MOVE64, 0, 11) + bpf.instruction(EXIT), "blinded"),
    (bpf.instruction(EXIT) * (bpf.MOST + 1), "does not tell"),
])
def test_a_program_that_would_not_mean_the_same_is_left(program: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bpf.carried(program)


def test_what_the_verifier_has_added_is_taken_away() -> None:
    """On machines whose JIT does not clear upper halves: BPF_ZEXT_REG, a 32-bit move with 1 in a field that programs must leave 0."""
    marked = bpf.instruction(MOVE_REGISTER, 4, 4, constant=1)
    program = PROGRAMS["systemd"]
    again = bpf.carried(program[:48] + marked + program[48:])
    assert again == program[:48] + bpf.instruction(MOVE_REGISTER, 4, 4) + program[48:]


IDENTITY = "7f" * 32


@pytest.mark.parametrize("path, expected", [
    (f"/libpod_parent/libpod-{IDENTITY}", [f"/libpod_parent/libpod-{IDENTITY}"]),
    (f"/machine.slice/libpod-{IDENTITY}.scope/container",
     [f"/machine.slice/libpod-{IDENTITY}.scope", f"/machine.slice/libpod-{IDENTITY}.scope/container"]),
    ("/a/b", ["/a/b"]),
])
def test_only_what_was_made_for_the_container_is_changed(path: str, expected: List[str]) -> None:
    assert cgroups.own_cgroups(path, IDENTITY) == expected


@pytest.mark.parametrize("theirs, ours, changed", [
    ("/slurm/job_7", "/slurm/job_7", False), ("/slurm", "/slurm/job_7", False), ("/", "/", False), ("/slurm/job_7/c", "/slurm/job_7", True),
    ("/slurm/job_77", "/slurm/job_7", True),
])
def test_the_cgroup_that_we_are_in_ourselves_is_never_changed(monkeypatch: pytest.MonkeyPatch, theirs: str, ours: str,
                                                              changed: bool) -> None:
    """That of a job: what its scheduler forbids stays forbidden."""
    done: List[str] = []
    monkeypatch.setattr(cgroups, "devices_cgroup", lambda pid: (1, theirs if pid == 1 else ours))
    monkeypatch.setattr(cgroups, "_allow_v1", lambda folder, devices: done.append(folder))
    assert cgroups.allow_devices(1, IDENTITY, [("c", 1, 11)]) == ""
    assert done == ([f"/sys/fs/cgroup/devices{theirs}"] if changed else [])
