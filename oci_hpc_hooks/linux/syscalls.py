"""Every system call that Python does not offer, one short wrapper each.

Light module: the warm path of a hook imports it, so it uses ``_ctypes`` (free) instead of ``ctypes`` (3 ms), ``posix`` and ``_stat``,
which are built in, instead of ``os`` (1.3 ms), and neither ``_struct`` nor ``errno`` (0.05 ms each). Calls from number 424 up have one
number on every architecture; older ones go through libc, and bpf(2), which libc does not have, by a table. Wrappers add ``O_CLOEXEC``,
retry what the kernel asks to retry, and raise :class:`KernelError` that reads like a line of strace; they hold no policy.
"""

from __future__ import annotations

import posix
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, Array, CFuncPtr, _SimpleCData, addressof, dlopen, dlsym, get_errno, set_errno
from sys import byteorder

from oci_hpc_hooks.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: errno(3), the same on every architecture that this project runs on (asm-generic/errno-base.h, errno.h).
EPERM, ENOENT, EINTR, EAGAIN, EACCES, ENOTDIR, EROFS, ENAMETOOLONG, ENOSYS, ELOOP = 1, 2, 4, 11, 13, 20, 30, 36, 38, 40

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

NR_open_tree = 428
NR_move_mount = 429
NR_fsopen = 430
NR_fsconfig = 431
NR_fsmount = 432
NR_pidfd_open = 434
NR_close_range = 436
NR_openat2 = 437
NR_pidfd_getfd = 438
NR_mount_setattr = 442
#: bpf(2) has another number on each (arch/*/entry/syscalls/syscall.tbl, asm-generic/unistd.h).
NR_bpf = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361, "s390x": 351}

O_PATH = 0o10000000  # the same on every architecture this project runs on; posix.O_PATH exists too, but only where libc names it

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = posix.O_CLOEXEC

MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08

MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MNT_DETACH = 2

FSOPEN_CLOEXEC = 1
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

#: capset(2): 64 capabilities, in two structs (linux/capability.h).
CAPABILITY_HEADER = (0x20080522).to_bytes(4, byteorder) + bytes(4)  # _LINUX_CAPABILITY_VERSION_3, this process

#: setrlimit(2): the same numbers on every architecture that this project runs on (asm-generic/resource.h).
RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_AS = 0, 1, 9
RLIM_INFINITY = (1 << 64) - 1

STATX_MNT_ID = 0x1000

#: openat2(2) answers EAGAIN when a rename elsewhere raced with ".."; under a constant attack 128 tries fail about once in a thousand.
OPENAT2_TRIES = 128

#: BPF_PROG_LOAD answers EAGAIN when a signal comes while it verifies; libbpf tries five times.
BPF_TRIES = 5


class _Long(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Int(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Pointer(_SimpleCData):  # type: ignore[type-arg]
    """A machine word: takes an int, None or bytes."""

    _type_ = "P"


class _Char(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


class _Statx(Array):  # type: ignore[type-arg]
    """struct statx (linux/stat.h)."""

    _type_ = _Char
    _length_ = 256


class Buffer:
    """Memory that the kernel writes into: ``address`` of as many bytes as ``content``, which it starts with."""

    __slots__ = ("_array", "address")

    def __init__(self, content: bytes) -> None:
        kind: Any = type("_Bytes", (Array,), {"_type_": _Char, "_length_": len(content)})
        self._array = kind()
        self._array.raw = content
        self.address: int = addressof(self._array)

    @property
    def content(self) -> bytes:
        return bytes(self._array.raw)


class _Rlimit(Array):  # type: ignore[type-arg]
    """struct rlimit64: soft, hard."""

    _type_ = _Char
    _length_ = 16


class _Capabilities(Array):  # type: ignore[type-arg]
    """struct __user_cap_data_struct (linux/capability.h), twice: effective, permitted, inheritable."""

    _type_ = _Char
    _length_ = 24


class _Syscall(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Long
    _argtypes_ = (_Long, _Pointer, _Pointer, _Pointer, _Pointer, _Pointer)


class _LibcCall(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_LIBC = dlopen(None, 0)  # type: ignore[arg-type]  # None: the process itself, as dlopen(3) has it
_syscall = _Syscall(dlsym(_LIBC, "syscall"))
_calls: dict[str, _LibcCall] = {}


def _libc(name: str) -> _LibcCall:
    """A function of libc."""
    call = _calls.get(name)
    if call is None:
        call = _calls[name] = _LibcCall(dlsym(_LIBC, name))
    return call


def _fail(call: str) -> NoReturn:
    number = get_errno()
    import errno  # only for the names

    name = errno.errorcode.get(number, str(number))
    if number == ENOSYS:
        raise KernelError(
            f"the kernel does not have {call.split('(')[0]}(2)",
            number,
            remedy="run on Linux 5.14 or newer, and let no seccomp filter take its mount calls away",
            who="site admin",
        )
    raise KernelError(f"{call} = {name} ({posix.strerror(number)})", number)


def fsencode(path: str) -> bytes:
    """os.fsencode without the os module, which a light module does not import."""
    return path.encode("utf-8", "surrogateescape")


def words(*values: int) -> bytes:
    """A struct of 64-bit words; there are few different ones, and each is asked for again and again."""
    found = _words.get(values)
    if found is None:
        found = _words[values] = b"".join([value.to_bytes(8, byteorder) for value in values])
    return found


_words: dict[tuple[int, ...], bytes] = {}


def read_proc(path: str) -> bytes:
    """A file of the proc filesystem, whose size nobody knows beforehand. Raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        data = b""
        while True:
            part = posix.read(fd, 1 << 13)  # the kernel hands out a page or two at a time
            if not part:
                return data
            data += part
    finally:
        posix.close(fd)


def openat2(dirfd: int, path: str, flags: int, resolve: int, absent: tuple[int, ...] = ()) -> int:
    """openat2(2), Linux 5.6: opens ``path`` below ``dirfd`` under the given RESOLVE_* rules and returns the descriptor; -1 where the
    answer is one of the errors ``absent``."""
    how = words(flags | posix.O_CLOEXEC, 0, resolve)  # struct open_how (linux/openat2.h)
    name = fsencode(path)
    if b"\0" in name:
        if ENOENT in absent:
            return -1
        raise KernelError(f"openat2({dirfd}, {path!r}): no file name contains a NUL byte", ENOENT)
    for _ in range(OPENAT2_TRIES):
        fd: int = _syscall(NR_openat2, dirfd, name, how, 24, 0)
        if fd >= 0:
            return fd
        error = get_errno()
        if error in absent:
            return -1
        if error not in (EAGAIN, EINTR):
            break
    _fail(f"openat2({dirfd}, {path!r}, flags={flags:#o}, resolve={resolve:#x})")


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2), Linux 5.2: a descriptor for a mount, or with OPEN_TREE_CLONE for a detached copy of it."""
    fd: int = _syscall(NR_open_tree, dirfd, fsencode(path), flags | OPEN_TREE_CLOEXEC, 0, 0)
    if fd < 0:
        _fail(f"open_tree({dirfd}, {path!r}, {flags:#x})")
    return fd


def move_mount(from_fd: int, to_fd: int) -> None:
    """move_mount(2), Linux 5.2: attaches the mount ``from_fd`` on top of ``to_fd``; both are descriptors, so no path can be raced."""
    if _syscall(NR_move_mount, from_fd, b"", to_fd, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0:
        _fail(f"move_mount({from_fd}, {to_fd})")


def mount_setattr(fd: int, flags: int, attr_set: int, propagation: int) -> None:
    """mount_setattr(2), Linux 5.12, on the mount that ``fd`` is the root of; AT_RECURSIVE in ``flags`` includes mounts below."""
    attr = words(attr_set, 0, propagation, 0)  # struct mount_attr (linux/mount.h)
    if _syscall(NR_mount_setattr, fd, b"", flags | AT_EMPTY_PATH, attr, len(attr)) < 0:
        _fail(f"mount_setattr({fd}, {flags:#x}, set={attr_set:#x}, propagation={propagation:#x})")


def fsopen(fstype: str) -> int:
    """fsopen(2), Linux 5.2: a descriptor to configure a new filesystem of ``fstype`` with."""
    fd: int = _syscall(NR_fsopen, fsencode(fstype), FSOPEN_CLOEXEC, 0, 0, 0)
    if fd < 0:
        _fail(f"fsopen({fstype!r})")
    return fd


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """fsconfig(2), Linux 5.2."""
    raw_key = None if key is None else fsencode(key)
    raw_value = None if value is None else fsencode(value)
    if _syscall(NR_fsconfig, fd, command, raw_key, raw_value, 0) < 0:
        _fail(f"fsconfig({fd}, {command}, {key!r}, {value!r})")


def fsmount(fd: int, attr: int) -> int:
    """fsmount(2), Linux 5.2: a descriptor for a detached mount of the configured filesystem, with MOUNT_ATTR_* ``attr``."""
    mount: int = _syscall(NR_fsmount, fd, FSMOUNT_CLOEXEC, attr, 0, 0)
    if mount < 0:
        _fail(f"fsmount({fd}, {attr:#x})")
    return mount


def close_range(first: int) -> None:
    """close_range(2), Linux 5.9: closes every descriptor from ``first`` up."""
    if _syscall(NR_close_range, first, 0xFFFFFFFF, 0, 0, 0) < 0:
        _fail(f"close_range({first})")


def descriptor_of(pid: int, fd: int) -> int:
    """pidfd_open(2) and pidfd_getfd(2), Linux 5.6: a descriptor for what process ``pid`` has open as ``fd``. Unlike opening
    /proc/PID/fd/FD anew this asks for power over the process, not over the file."""
    process: int = _syscall(NR_pidfd_open, pid, 0, 0, 0, 0)
    if process < 0:
        _fail(f"pidfd_open({pid})")
    try:
        found: int = _syscall(NR_pidfd_getfd, process, fd, 0, 0, 0)
        if found < 0:
            _fail(f"pidfd_getfd({pid}, {fd})")
        return found
    finally:
        posix.close(process)


def setns(fd: int, nstype: int) -> None:
    """setns(2): moves this process into the namespace that ``fd`` names."""
    if _libc("setns")(fd, nstype) < 0:
        _fail(f"setns({fd}, {nstype:#x})")


def unshare(flags: int) -> None:
    """unshare(2): gives this process namespaces of its own."""
    if _libc("unshare")(flags) < 0:
        _fail(f"unshare({flags:#x})")


def statx_mount_id(fd: int) -> int:
    """stx_mnt_id of statx(2), Linux 5.8: the ID that /proc/PID/mountinfo gives the mount an open file lies on."""
    status = _Statx()
    if _libc("statx")(fd, b"", AT_EMPTY_PATH, STATX_MNT_ID, status) < 0:
        _fail(f"statx({fd})")
    found = bytes(status)
    if not int.from_bytes(found[:4], byteorder) & STATX_MNT_ID:  # libc answers by fstat(2) where the kernel says ENOSYS
        set_errno(ENOSYS)
        _fail(f"statx({fd})")
    return int.from_bytes(found[0x90:0x98], byteorder)


def umount2(path: str, flags: int) -> None:
    """umount2(2)."""
    if _libc("umount2")(fsencode(path), flags) < 0:
        _fail(f"umount2({path!r}, {flags:#x})")


def may_access(path: str, mode: int) -> int:
    """access(2) for this process: 0, or the error that opening the file would give. Nothing is opened. Unlike Python's it tells why not:
    a device cgroup answers EPERM, file modes EACCES."""
    return get_errno() if _libc("faccessat")(AT_FDCWD, fsencode(path), mode, 0) < 0 else 0


def set_not_dumpable() -> None:
    """prctl(2) PR_SET_DUMPABLE 0: nobody but the host's root may look into this process or open its executable through /proc."""
    if _libc("prctl")(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0:
        _fail("prctl(PR_SET_DUMPABLE, 0)")


def bpf(command: int, attributes: Buffer) -> int:
    """bpf(2), Linux 3.18; the kernel may answer in ``attributes`` (union bpf_attr, linux/bpf.h)."""
    number = NR_bpf.get(posix.uname().machine)
    if number is None:
        raise KernelError(f"the number of bpf(2) on {posix.uname().machine} is not known here", ENOSYS)
    size = len(attributes.content)
    for _ in range(BPF_TRIES):
        answer: int = _syscall(number, command, attributes.address, size, 0, 0)
        if answer >= 0:
            return answer
        if get_errno() not in (EAGAIN, EINTR):
            break
    _fail(f"bpf({command})")


def keep_privileges() -> None:
    """prctl(2) PR_SET_NO_NEW_PRIVS, and capget(2) and capset(2) with what there is: no program that this process might start has more, and
    it is known that :func:`give_up_privileges` can be done before anything rests on that."""
    if _libc("prctl")(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0:
        _fail("prctl(PR_SET_NO_NEW_PRIVS, 1)")
    now = _Capabilities()
    if _libc("capget")(CAPABILITY_HEADER, now) < 0:
        _fail("capget()")
    if _libc("capset")(CAPABILITY_HEADER, now) < 0:
        _fail("capset()")


def give_up_privileges() -> None:
    """capset(2) with nothing: whatever this process still does, it does as an ordinary user would."""
    if _libc("capset")(CAPABILITY_HEADER, bytes(24)) < 0:
        _fail("capset()")


def limit(resource: int, most: int) -> None:
    """prlimit(2): sets a soft limit of this process to ``most``, or to the hard limit if that is less."""
    now = _Rlimit()
    if _libc("prlimit")(0, resource, None, now) < 0:
        _fail(f"prlimit({resource})")
    hard = int.from_bytes(bytes(now)[8:], byteorder)
    if _libc("prlimit")(0, resource, words(min(most, hard), hard), None) < 0:
        _fail(f"prlimit({resource}, {most})")
