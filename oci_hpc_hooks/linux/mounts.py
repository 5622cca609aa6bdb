"""Detached mounts, made ready before anybody can see them (light module: the warm path of a hook imports it).

Flags on the first MS_BIND of mount(2) are ignored by the kernel; a detached tree is made private and read-only by
mount_setattr(2) before it is attached, so there is no moment at which the container's root could write through it.
"""

from __future__ import annotations

import posix

from oci_hpc_hooks.linux import syscalls
from oci_hpc_hooks.linux.syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_STRING,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    OPEN_TREE_CLONE,
)

HARMLESS = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV


def copy(path: str) -> int:
    """A detached copy of the mount at ``path`` and of all mounts below it; of a symbolic link, the link. To be made harmless by
    :func:`make_read_only` once it has been looked at."""
    return syscalls.open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | AT_RECURSIVE | AT_SYMLINK_NOFOLLOW)


def clone(fd: int, path: str = "") -> int:
    """A detached, private, read-only, nosuid, nodev copy of the mount at ``fd``/``path`` and of all mounts below it."""
    tree = syscalls.open_tree(fd, path, OPEN_TREE_CLONE | AT_RECURSIVE | (0 if path else AT_EMPTY_PATH))
    try:
        syscalls.mount_setattr(tree, AT_RECURSIVE, HARMLESS, MS_PRIVATE)
    except BaseException:
        posix.close(tree)
        raise
    return tree


def shared_file(path: str, attributes: int) -> int:
    """A detached, private copy of what ``path`` leads to, without any mounts below it, with MOUNT_ATTR_* ``attributes``."""
    tree = syscalls.open_tree(AT_FDCWD, path, OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(tree, 0, attributes, MS_PRIVATE)
    except BaseException:
        posix.close(tree)
        raise
    return tree


def new_tmpfs(source: str, size: int, label: str = "") -> int:
    """A detached, empty, still writable tmpfs of ``size`` bytes; ``source`` is what mountinfo shows. ``label``: SELinux context."""
    context = syscalls.fsopen("tmpfs")
    try:
        syscalls.fsconfig(context, FSCONFIG_SET_STRING, "source", source)
        syscalls.fsconfig(context, FSCONFIG_SET_STRING, "size", str(size))
        syscalls.fsconfig(context, FSCONFIG_SET_STRING, "mode", "0755")
        if label:
            syscalls.fsconfig(context, FSCONFIG_SET_STRING, "context", label)
        syscalls.fsconfig(context, FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    finally:
        posix.close(context)


def make_read_only(fd: int) -> None:
    """Makes the mount ``fd`` private and read-only, with everything below it."""
    syscalls.mount_setattr(fd, AT_RECURSIVE, HARMLESS, MS_PRIVATE)


def detach(fd: int) -> None:
    """Takes the attached mount that ``fd`` is the root of away again, with everything below it."""
    syscalls.umount2(f"/proc/self/fd/{fd}", MNT_DETACH)


class MountEntry:
    """One line of /proc/PID/mountinfo (proc_pid_mountinfo(5))."""

    __slots__ = ("fstype", "mountpoint", "root", "shared", "source")

    def __init__(self, mountpoint: str, shared: bool, fstype: str, source: str, root: str = "/") -> None:
        self.root = root  # what of the filesystem is mounted
        self.mountpoint = mountpoint
        self.shared = shared
        self.fstype = fstype
        self.source = source


class MountTable:
    """The mounts of a mount namespace by their mount ID, in the kernel's order. A node has hundreds, and few are asked for: a line is taken
    apart when it is."""

    def __init__(self, data: bytes) -> None:
        self.lines = data.split(b"\n")[:-1]  # the kernel escapes newlines, and nothing else that splitlines() would take

    def get(self, number: int) -> MountEntry | None:
        head = b"%d " % number
        for line in self.lines:
            if line.startswith(head):
                return entry(line)
        return None

    def values(self) -> list[MountEntry]:
        return [entry(line) for line in self.lines]

    def count(self, mountpoint: str) -> int:
        """How many mounts lie on one another there."""
        return len([one for one in self.values() if one.mountpoint == mountpoint])

    def made_of(self, fstype: str, source: str) -> list[MountEntry]:
        """Those of this type that give this source (a word that needs no escape)."""
        mark = f" - {fstype} {source} ".encode()
        return [entry(line) for line in self.lines if mark in line]


def mount_table(path: str = "/proc/self/mountinfo") -> MountTable:
    """The mounts of a process's mount namespace. Raises OSError."""
    return MountTable(syscalls.read_proc(path))


def entry(line: bytes) -> MountEntry:
    """``shared``: what is mounted below propagates to other namespaces."""
    left, _, right = line.decode("utf-8", "surrogateescape").partition(" - ")
    fields = left.split(" ")
    fstype, source, *_ = right.split(" ")
    shared = any(tag.startswith("shared:") for tag in fields[6:])
    return MountEntry(unescape(fields[4]), shared, fstype, unescape(source), unescape(fields[3]))


def unescape(text: str) -> str:
    """Undoes the octal escapes that the kernel writes for blank, tab, newline, "#" and backslash."""
    if "\\" not in text:
        return text
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def mount_id(fd: int) -> int:
    """The ID of the mount that an open file lies on (the key of :func:`mount_table`)."""
    return syscalls.statx_mount_id(fd)
