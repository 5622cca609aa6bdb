"""Paths inside a container's tree, only as file descriptors (light module: the warm path of a hook imports it).

A tree may be hostile and change while it is looked at. So nothing here returns a path that is used again: a path goes in, a
descriptor comes out, resolved by the kernel with RESOLVE_IN_ROOT, and every later step works on that descriptor.
"""

from __future__ import annotations

import posix
from _stat import S_ISREG

from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS

#: Errors that mean "there is no such file" to whoever asks; a loop and a directory that may not be entered too, for ld.so passes over them.
ABSENT = (syscalls.ENOENT, syscalls.ENOTDIR, syscalls.ELOOP, syscalls.ENAMETOOLONG, syscalls.EACCES)


#: Errors that say nothing of a file, but of a disk, a file server, memory or limits as they are just now: EIO, ENOMEM, ENFILE, EMFILE,
#: ENOSPC, EROFS, ETIMEDOUT, ESTALE, EREMOTEIO.
PASSING = (5, 12, 23, 24, 28, 30, 110, 116, 121)


class Root:
    """A directory that stands for "/": the container's root filesystem, held by a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.missed = ""  # what could not be looked at for a passing reason, and the reason
        self.prefix = posix.readlink(f"/proc/self/fd/{fd}")

    def __enter__(self) -> Root:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        posix.close(self.fd)

    def miss(self, path: str, error: Exception) -> None:
        """Keeps in mind that ``path`` could not be looked at, if that may be otherwise next time. Of an ImageError its cause tells."""
        if not self.missed and getattr(error.__cause__ or error, "errno", 0) in PASSING:
            self.missed = f"{path}: {error}"

    def open(self, path: str, flags: int = syscalls.O_PATH) -> int:
        """A descriptor for ``path`` as seen from this root. KernelError if the kernel says no, with its errno."""
        return syscalls.openat2(self.fd, path.lstrip("/") or ".", flags, RESOLVE)

    def find(self, path: str) -> int:
        """Like :meth:`open`, O_PATH; -1 where nothing is there."""
        return syscalls.openat2(self.fd, path.lstrip("/") or ".", syscalls.O_PATH, RESOLVE, ABSENT)

    def real(self, fd: int) -> str:
        """The path of an open file, from this root. For looking up and for messages: never opened again without :meth:`open`."""
        path = posix.readlink(f"/proc/self/fd/{fd}")
        if self.prefix == "/":
            return path
        if path == self.prefix:
            return "/"
        if not path.startswith(self.prefix + "/"):
            raise ImageError(f"{path} lies outside the container's tree {self.prefix}")
        return path[len(self.prefix):]

    def open_regular(self, path: str) -> int:
        """A readable descriptor for the regular file at ``path``; -1 where nothing is there.

        Opened as O_PATH first: a FIFO would block, a device could act, when opened for reading.
        """
        handle = self.find(path)
        if handle < 0:
            return -1
        try:
            return reopen_regular(handle, path)
        finally:
            posix.close(handle)

    def read(self, path: str, limit: int) -> bytes | None:
        """The content of a regular file, None where there is none; ImageError if it is larger than ``limit`` bytes."""
        fd = self.open_regular(path)
        if fd < 0:
            return None
        try:
            return read_bounded(fd, path, limit)
        finally:
            posix.close(fd)


def reopen_regular(handle: int, path: str) -> int:
    """A readable descriptor for what the O_PATH ``handle`` holds; ImageError unless it is a regular file."""
    if not S_ISREG(posix.fstat(handle).st_mode):
        raise ImageError(f"{path} of the image is not a regular file")
    return posix.open(f"/proc/self/fd/{handle}", posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOCTTY)


def read_bounded(fd: int, path: str, limit: int) -> bytes:
    """Everything in an open regular file, at most ``limit`` bytes (a sparse giant must not fill the memory)."""
    size = posix.fstat(fd).st_size
    if size > limit:
        raise ImageError(f"{path} has {size} bytes, more than the {limit} that are read")
    data = b""
    while len(data) <= limit:
        chunk = posix.read(fd, limit + 1 - len(data))
        if not chunk:
            return data
        data += chunk
    raise ImageError(f"{path} grew beyond {limit} bytes while it was read")
