"""What in an image would notice that another C library has taken the place of its own.

Looked for only where a site may bring its own, which is newer than the image's. Everything is bounded as in the rest of the image.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Iterable, Sequence, Tuple

from oci_hpc_hooks.errors import ImageError, KernelError
from oci_hpc_hooks.inputs.consumers import elf_files
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import Bystanders

#: Bytes of static programs that are read, of each the same share. Real ones have a few MB.
PROGRAMS_LIMIT = 64 << 20
_CHUNK = 1 << 20
#: Libraries that are named at most.
LIBRARIES_LIMIT = 64

#: What a program has inside that is linked statically to glibc and looks up users, groups or hosts (glibc nss/); Go's have only the first.
_NSS, _NSS_MODULE = b"/etc/nsswitch.conf", b"libnss_"
#: The same of glibc 2.33 and newer: since 2.34 files and DNS are part of libc, and no module of another release is opened for them.
_NEWER_NSS_MODULE = b"libnss_%s.so%s"


def find(root: Root, path_dirs: Sequence[str], library_dirs: Iterable[str], started: Iterable[str], static: Sequence[str],
         executable_stacks: bool) -> Bystanders:
    """``started``: real paths of what is loaded when the programs start; ``static``: the static ones among them.
    ``executable_stacks``: the programs may open libraries that want one."""
    wanting = []
    if not executable_stacks:
        known = {*started}
        wanting = [real for real, elf in elf_files(root, library_dirs, path_dirs)
                   if elf.execstack and not elf.interp and real not in known]
    return Bystanders(
        execstack=tuple(wanting[:LIBRARIES_LIMIT]),
        static_nss=tuple([path for path in static if _uses_old_nss(root, path, PROGRAMS_LIMIT // len(static))]),
        linker=_first(root, path_dirs, "ld"),
        ldd=_first(root, path_dirs, "ldd"),
    )


def _first(root: Root, path_dirs: Sequence[str], name: str) -> str:
    """The path under which a command would be found, "" if there is none."""
    for folder in path_dirs:
        path = f"{folder.rstrip('/')}/{name}"
        try:
            handle = root.find(path)
        except KernelError as error:
            root.miss(path, error)
            continue
        if handle >= 0:
            regular = stat.S_ISREG(os.fstat(handle).st_mode)
            os.close(handle)
            if regular:
                return path
    return ""


def _uses_old_nss(root: Root, path: str, limit: int) -> bool:
    try:
        fd = root.open_regular(path)
        if fd < 0:
            return False
        try:
            return _holds(fd, (_NSS, _NSS_MODULE, _NEWER_NSS_MODULE), limit) == (True, True, False)
        finally:
            os.close(fd)
    except (ImageError, KernelError, OSError) as error:
        root.miss(path, error)
        return False


def _holds(fd: int, words: Sequence[bytes], left: int) -> Tuple[bool, ...]:
    """Which of the words occur in a file; holes of a sparse one are passed over."""
    found = [False] * len(words)
    offset, last = 0, b""
    longest = max(map(len, words))
    while left > 0:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            data = os.pread(fd, _CHUNK, start)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole is left
        if not data:
            break
        window = (last if start == offset else b"") + data
        found = [had or word in window for had, word in zip(found, words)]
        offset, last = start + len(data), window[-longest:]
        left -= len(data)
    return tuple(found)
