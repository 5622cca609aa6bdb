"""Read configuration only if nobody but root can have written it.

Light module: the hook reads its inventory through it before anything else is known, so it imports what the interpreter has loaded
already. A file counts if it is a regular file of root, not writable by group or others, and so is every directory on its resolved
path. A sticky directory of root's (/tmp) may be on the way, for nobody else can replace root's entry in it; it may not hold the file
itself, for most of our files are optional, and a name that root has not made yet can be taken first.

In a user namespace that does not map the host's root (user_namespaces(7)), root's files show the overflow id, and so do files of every
other unmapped user. Such a file counts only below directories that were fixed when the hook was registered, and only if this process
can write neither it nor a directory above it.
"""

from __future__ import annotations

import errno
import os
import stat

from oci_hpc_hooks.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Sequence

#: uid_map of a process that is in no user namespace but the first one.
_IDENTITY = (0, 0, 4294967295)


class Missing(ConfigError):
    """The file is not there. For optional files the caller takes that as an answer."""


def read_trusted(path: str, limit: int, fixed: Sequence[str] = ()) -> bytes:
    """The content of a configuration file that only root can have written.

    ``limit`` is the most bytes it may have. Symbolic links are followed, the file they lead to is the one that must be trusted.
    ``fixed`` are the directories below which root of the host is believed although its files show the overflow id.

    Raises :class:`Missing` if there is no such file, :class:`ConfigError` if it cannot be trusted, is too large or cannot be read.
    """
    fd = _open(path)
    try:
        real = os.readlink(f"/proc/self/fd/{fd}")
        _trust(real, os.fstat(fd), path, fixed)
        trust_directory(os.path.dirname(real), fixed, wanted_for=path)
        return _read(fd, path, limit)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(fd)


def read_any(path: str, limit: int) -> bytes:
    """The same for a file that nobody is asked to believe yet: whoever owns it."""
    fd = _open(path)
    try:
        return _read(fd, path, limit)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(fd)


def trust_directory(path: str, fixed: Sequence[str] = (), *, wanted_for: str = "") -> None:
    """Raise :class:`ConfigError` unless only root can change this directory and every directory above it.

    ``wanted_for`` is the file that the message is about. Raises :class:`Missing` if there is no such directory.
    """
    directory = os.path.realpath(path)
    above = False
    while True:
        try:
            status = os.stat(directory)
        except OSError as error:
            raise _unreadable(directory, error) from None
        if not stat.S_ISDIR(status.st_mode):
            raise ConfigError(f"{directory} is not a directory", remedy="make it one", who="site admin")
        _trust(directory, status, wanted_for or path, fixed, shared=above and bool(status.st_mode & stat.S_ISVTX))
        if directory == "/":
            return
        directory = os.path.dirname(directory)
        above = True


def _trust(real: str, status: os.stat_result, path: str, fixed: Sequence[str], *, shared: bool = False) -> None:
    """``shared``: others may add to this directory, and the sticky bit keeps them from what is root's."""
    what = f"{real}{'' if real == path else f', which {path} rests on,'}"
    has = f"is owned by uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared:
        raise ConfigError(f"{what} {has}, so others than root can write it", remedy=f"chmod go-w {real}", who="site admin")
    if status.st_uid != 0 and not _is_root_outside(real, status, fixed, shared):
        raise ConfigError(f"{what} {has}, and only root's files are believed", remedy=f"chown root {real}", who="site admin")


def _is_root_outside(real: str, status: os.stat_result, fixed: Sequence[str], shared: bool) -> bool:
    """Whether an owner that is not 0 may stand for the host's root: see the module's docstring."""
    if not _in_user_namespace() or status.st_uid != _overflow_uid() or (os.access(real, os.W_OK) and not shared):
        return False
    places = [os.path.realpath(place) for place in fixed]
    # The directories above a fixed one are on the way to it.
    return any(_is_below(real, place) or (stat.S_ISDIR(status.st_mode) and _is_below(place, real)) for place in places)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _in_user_namespace() -> bool:
    return tuple(map(int, _proc("/proc/self/uid_map").split())) != _IDENTITY


def _overflow_uid() -> int:
    return int(_proc("/proc/sys/kernel/overflowuid"))


def _proc(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _open(path: str) -> int:
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to must not hang.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise ConfigError(f"{path} is not a regular file", remedy="put a file in its place", who="site admin")


def _read(fd: int, path: str, limit: int) -> bytes:
    parts: List[bytes] = []
    left = limit + 1
    while left > 0:
        part = os.read(fd, min(left, 1 << 20))
        if not part:
            return b"".join(parts)
        parts.append(part)
        left -= len(part)
    raise ConfigError(f"{path} is larger than {limit} bytes", remedy="check that it is the right file", who="site admin")


def _unreadable(path: str, error: OSError) -> ConfigError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return Missing(f"there is no file {path}", remedy=f"create {path}", who="site admin")
    return ConfigError(f"{path} cannot be read: {error.strerror}", remedy=f"make {path} readable", who="site admin")
