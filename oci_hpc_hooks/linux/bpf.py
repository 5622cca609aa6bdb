"""The BPF program that decides which devices a cgroup of version 2 may use (light module: the warm path of a hook imports it where a
container of such a cgroup gets devices).

The kernel runs it at each open(2) and mknod(2) of a device node; it answers 1 for yes and 0 for no (BPF_PROG_TYPE_CGROUP_DEVICE, Linux
4.15; Documentation/admin-guide/cgroup-v2.rst). Runtimes and systemd attach one to the container's cgroup. A second one beside it could
only forbid more, so it is replaced, in one step (BPF_F_REPLACE, Linux 5.6), by a program that begins with rules of ours and goes on with
the old one's instructions.

These come back from the kernel after its verifier has been over them (BPF_OBJ_GET_INFO_BY_FD). Of this kind of program that is harmless:
its context has the same layout inside the kernel (``cg_dev_verifier_ops`` has no ``convert_ctx_access``); a 16-bit load has become a
32-bit one and an "and". What would not mean the same when loaded again (calls, 64-bit constants that were maps, constants that a hardened
JIT has blinded) is told by :func:`carried`, and then nothing is changed.
"""

from __future__ import annotations

import posix
from sys import byteorder

from oci_hpc_hooks.errors import KernelError
from oci_hpc_hooks.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence

    #: "c" or "b", major and minor number of a device.
    Numbers = tuple[str, int, int]

# linux/bpf.h
PROG_LOAD, PROG_ATTACH, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY = 5, 8, 13, 15, 16
PROG_TYPE_CGROUP_DEVICE = 15
CGROUP_DEVICE = 6
F_ALLOW_OVERRIDE, F_ALLOW_MULTI, F_REPLACE = 1, 2, 4
DEVCG_BLOCK, DEVCG_CHAR = 1, 2
DEVCG_MKNOD, DEVCG_READ, DEVCG_WRITE = 1, 2, 4

# One byte of an instruction (Documentation/bpf/standardization/instruction-set.rst): load 32 bits, 32-bit "and" and "shift right" by a
# constant, move a constant, jump if not equal, jump if a bit is set, call, exit, load a 64-bit constant, move a 32-bit register.
LOAD, AND, SHIFT, MOVE, UNLESS, IF_BITS, CALL, EXIT, WIDE, MOVE_REGISTER = 0x61, 0x54, 0x74, 0xB4, 0x55, 0x45, 0x85, 0x95, 0x18, 0xBC

#: Bytes of one instruction.
SIZE = 8
#: BPF_MAXINSNS of a program that is loaded without CAP_BPF; nobody's list of devices comes near.
MOST = 4096
LICENSE = b"Apache-2.0\0"

#: Bytes of union bpf_attr that are given, and of struct bpf_prog_info: up to the last field that is used.
_ATTRIBUTES = 72
_INFO = 64


def instruction(operation: int, target: int = 0, source: int = 0, offset: int = 0, constant: int = 0) -> bytes:
    """struct bpf_insn."""
    registers = target | source << 4 if byteorder == "little" else target << 4 | source
    return bytes((operation, registers)) + offset.to_bytes(2, byteorder, signed=True) + constant.to_bytes(4, byteorder, signed=True)


def rules(devices: Sequence[Numbers]) -> bytes:
    """Instructions that say yes to reading and writing each of the devices, and otherwise go on behind their end, with register 1 as it
    was: the address of struct bpf_cgroup_dev_ctx (kind and access in one word, major, minor)."""
    made = instruction(LOAD, 2, 1, 0) + instruction(AND, 2, constant=0xFFFF)
    made += instruction(LOAD, 3, 1, 0) + instruction(SHIFT, 3, constant=16)
    made += instruction(LOAD, 4, 1, 4) + instruction(LOAD, 5, 1, 8)
    for kind, major, minor in devices:
        made += instruction(UNLESS, 2, offset=5, constant=DEVCG_BLOCK if kind == "b" else DEVCG_CHAR)
        made += instruction(UNLESS, 4, offset=4, constant=major) + instruction(UNLESS, 5, offset=3, constant=minor)
        made += instruction(IF_BITS, 3, offset=2, constant=~(DEVCG_READ | DEVCG_WRITE))
        made += instruction(MOVE, 0, constant=1) + instruction(EXIT)
    return made


def carried(program: bytes) -> bytes:
    """The instructions of a program as the kernel tells them, as they can be loaded again. Raises ValueError, saying why they cannot."""
    if not program or len(program) % SIZE or len(program) > MOST * SIZE:
        raise ValueError("the kernel does not tell its instructions")
    made = []
    for at in range(0, len(program), SIZE):
        one = program[at:at + SIZE]
        operation = one[0]
        high, low = one[1] >> 4, one[1] & 15
        if operation == 0:
            raise ValueError("the kernel does not tell its instructions (net.core.bpf_jit_harden)")
        if operation in (CALL, WIDE):
            raise ValueError("it uses maps or functions of the kernel")
        if high > 10 or low > 10:
            raise ValueError("its constants are blinded (net.core.bpf_jit_harden)")
        if operation == MOVE_REGISTER and one[4:] == (1).to_bytes(4, byteorder):
            # A JIT that does not clear upper halves by itself had the verifier add this; it will again.
            one = one[:4] + bytes(4)
        made.append(one)
    return b"".join(made)


def allow(cgroup: int, devices: Sequence[Numbers]) -> str:
    """Lets the cgroup behind this descriptor read and write the devices; returns why it cannot, "" if it can. A cgroup without a program of
    its own allows everything. Raises KernelError."""
    attached, flags = query(cgroup)
    if not attached:
        return ""
    if len(attached) > 1:
        return f"{len(attached)} BPF programs decide about its devices, and which of them forbids what cannot be told"
    old = syscalls.bpf(PROG_GET_FD_BY_ID, _attributes((attached[0], 4)))
    try:
        try:
            program = rules(devices) + carried(instructions(old))
        except ValueError as reason:
            return f"the BPF program that decides about its devices cannot be taken over: {reason}"
        try:
            new = load(program)
        except KernelError as error:
            return f"the kernel does not take the BPF program that decides about its devices with new rules before it: {error.what}"
        try:
            replace(cgroup, old, new, flags)
        finally:
            posix.close(new)
    finally:
        posix.close(old)
    return ""


def query(cgroup: int) -> tuple[list[int], int]:
    """The ids of the programs that are attached to this very cgroup, and how they were (BPF_F_*). Raises KernelError."""
    most = 64  # of the kernel: BPF_CGROUP_MAX_PROGS
    ids = syscalls.Buffer(bytes(4 * most))
    asked = _attributes((cgroup, 4), (CGROUP_DEVICE, 4), (0, 4), (0, 4), (ids.address, 8), (most, 4))
    syscalls.bpf(PROG_QUERY, asked)
    count = _number(asked.content, 24)
    return [_number(ids.content, 4 * index) for index in range(count)], _number(asked.content, 12)


def instructions(program: int) -> bytes:
    """The instructions of a program, by its descriptor. ValueError if the kernel keeps them to itself, or it has maps."""
    info = _info(program, 0, 0)
    length = _number(info, 20)
    if _number(info, 52):
        raise ValueError("it uses maps or functions of the kernel")
    if length > MOST * SIZE:
        raise ValueError(f"it has more than {MOST} instructions")
    found = syscalls.Buffer(bytes(length))
    info = _info(program, found.address, length)
    if not int.from_bytes(info[32:40], byteorder) or _number(info, 20) != length:
        raise ValueError("the kernel does not tell its instructions (net.core.bpf_jit_harden)")
    return found.content


def load(program: bytes) -> int:
    """A descriptor for a new program of this kind. Raises KernelError if the kernel's verifier does not take it."""
    code, license = syscalls.Buffer(program), syscalls.Buffer(LICENSE)
    given = ((PROG_TYPE_CGROUP_DEVICE, 4), (len(program) // SIZE, 4), (code.address, 8), (license.address, 8))
    return syscalls.bpf(PROG_LOAD, _attributes(*given))


def replace(cgroup: int, old: int, new: int, flags: int) -> None:
    """Attaches ``new`` where ``old`` is, in one step. Raises KernelError."""
    given = [(cgroup, 4), (new, 4), (CGROUP_DEVICE, 4)]
    if flags & F_ALLOW_MULTI:
        given += [(F_ALLOW_MULTI | F_REPLACE, 4), (old, 4)]
    else:  # there is only one at a time: the new one takes its place
        given.append((flags & F_ALLOW_OVERRIDE, 4))
    syscalls.bpf(PROG_ATTACH, _attributes(*given))


def _info(program: int, address: int, length: int) -> bytes:
    """struct bpf_prog_info of a program, whose instructions go to ``address``."""
    info = syscalls.Buffer(bytes(20) + length.to_bytes(4, byteorder) + bytes(8) + address.to_bytes(8, byteorder) + bytes(_INFO - 40))
    syscalls.bpf(OBJ_GET_INFO_BY_FD, _attributes((program, 4), (_INFO, 4), (info.address, 8)))
    return info.content


def _attributes(*fields: tuple[int, int]) -> syscalls.Buffer:
    """union bpf_attr that begins with these (value, bytes)."""
    packed = b"".join([value.to_bytes(size, byteorder) for value, size in fields])
    return syscalls.Buffer(packed + bytes(_ATTRIBUTES - len(packed)))


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at:at + 4], byteorder)
