"""Joining a container's namespaces (light module: the warm path of a hook imports it)."""

from __future__ import annotations

import posix

from oci_hpc_hooks.errors import KernelError
from oci_hpc_hooks.linux import syscalls
from oci_hpc_hooks.linux.paths import Root


def in_own_user_namespace() -> bool:
    """Whether this process lives in a user namespace other than the initial one (user_namespaces(7))."""
    return syscalls.read_proc("/proc/self/uid_map").split() != [b"0", b"0", b"4294967295"]


def caller_uid() -> int:
    """The host's uid of who runs this process: outside of a user namespace our own, inside it what uid 0 stands for."""
    return _outside("/proc/self/uid_map", posix.geteuid())


def caller_gid() -> int:
    """The same for the gid."""
    return _outside("/proc/self/gid_map", posix.getegid())


def _outside(path: str, identity: int) -> int:
    for line in syscalls.read_proc(path).splitlines():
        inside, outside, count = (int(number) for number in line.split())
        if inside <= identity < inside + count:
            return outside + identity - inside
    return identity


def open_root(pid: int, rootfs: str) -> Root:
    """The root filesystem of a container that is being created, in the container's own mount namespace.

    Before the runtime's pivot_root(2), "/" of that namespace is still the host's, and ``rootfs`` (from the trusted config.json) is
    a path in it, with the container's mounts on top.
    """
    base = posix.open(f"/proc/{pid}/root", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        return Root(syscalls.openat2(base, rootfs.lstrip("/") or ".", posix.O_PATH | posix.O_DIRECTORY, syscalls.RESOLVE_IN_ROOT))
    finally:
        posix.close(base)


def enter(pid: int) -> None:
    """Joins the mount namespace of ``pid``, and its user namespace where it has one of its own; then as uid and gid 0 of it.

    Files created in a filesystem of that user namespace need an owner who is mapped in it.
    """
    mnt = -1
    try:
        mnt = posix.open(f"/proc/{pid}/ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC)
        theirs = posix.stat(f"/proc/{pid}/ns/user")
        ours = posix.stat("/proc/self/ns/user")
        if theirs.st_ino != ours.st_ino:
            user = posix.open(f"/proc/{pid}/ns/user", posix.O_RDONLY | posix.O_CLOEXEC)
            try:
                syscalls.setns(user, syscalls.CLONE_NEWUSER)
            finally:
                posix.close(user)
            try:
                posix.setgroups([])
            except OSError as error:
                if error.errno != syscalls.EPERM:  # user_namespaces(7): setgroups is denied where an unprivileged user made the map
                    raise
            posix.setresgid(0, 0, 0)
            posix.setresuid(0, 0, 0)
        syscalls.setns(mnt, syscalls.CLONE_NEWNS)
    except OSError as error:
        raise KernelError(f"cannot join the namespaces of process {pid}: {error.strerror}", error.errno or 0) from error
    finally:
        if mnt >= 0:
            posix.close(mnt)
