"""What in an image uses MPI, where its command line does not tell: programs in PATH, libraries the loader knows, Python modules.

A container may be started as ``sleep infinity`` or by a script, and its MPI program later. Every file that needs a library which would be
replaced is found here, so that all of them can be checked instead of the one that nobody named.
"""

from __future__ import annotations

import os
import posixpath
import stat
from typing import TYPE_CHECKING, Iterable, Iterator, List, Sequence, Set, Tuple

from oci_hpc_hooks.elf.facts import read_facts
from oci_hpc_hooks.errors import ImageError, KernelError

if TYPE_CHECKING:
    from oci_hpc_hooks.linux.paths import Root

#: Files whose first pages are read, directories of Python packages that are walked, consumers that are followed.
FILES_LIMIT = 20_000
PACKAGE_DIRECTORIES_LIMIT = 4_000
CONSUMERS_LIMIT = 64
_NAMES_LIMIT = 100_000
_DEPTH = 3  # site-packages/mpi4py/MPI.….so is at 1, site-packages/petsc4py/lib/ARCH/PETSc.….so at 3


def find(root: Root, names: Set[str], path_dirs: Sequence[str], library_dirs: Iterable[str]) -> Tuple[str, ...]:
    """Real paths of the ELF files that need one of ``names``: at most CONSUMERS_LIMIT, those of PATH first."""
    found: List[str] = []
    seen: Set[Tuple[int, int]] = set()
    prefixes = dict.fromkeys(posixpath.dirname(folder.rstrip("/")) or "/" for folder in path_dirs)
    folders = [*path_dirs, *library_dirs, *_package_dirs(root, prefixes)]
    for folder in dict.fromkeys(folders):
        for name in _names(root, folder):
            if len(seen) >= FILES_LIMIT or len(found) >= CONSUMERS_LIMIT:
                return tuple(found)
            real = _if_needs(root, f"{folder}/{name}", names, seen)
            if real:
                found.append(real)
    return tuple(found)


def _if_needs(root: Root, path: str, names: Set[str], seen: Set[Tuple[int, int]]) -> str:
    """The real path of an ELF file that needs one of the names, "" for any other and for one seen before."""
    try:
        handle = root.find(path)
        if handle < 0:
            return ""
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) in seen:
                return ""
            seen.add((status.st_dev, status.st_ino))
            fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
            try:
                return root.real(handle) if names.intersection(read_facts(fd).needed) else ""
            finally:
                os.close(fd)
        finally:
            os.close(handle)
    except (ImageError, KernelError, OSError):
        return ""  # no ELF file, or none that could be started


def _names(root: Root, folder: str) -> Iterator[str]:
    try:
        handle = root.find(folder)
        if handle < 0:
            return
        try:
            with os.scandir(f"/proc/self/fd/{handle}") as entries:
                names = [entry.name for _, entry in zip(range(_NAMES_LIMIT), entries)]
        finally:
            os.close(handle)
    except (KernelError, OSError):
        return
    yield from sorted(names)


def _package_dirs(root: Root, prefixes: Iterable[str]) -> Iterator[str]:
    """Directories of Python packages below the prefixes that PATH names, the packages' own directories included."""
    left = PACKAGE_DIRECTORIES_LIMIT
    for prefix in prefixes:
        for python in _names(root, f"{prefix.rstrip('/')}/lib"):
            if not python.startswith("python3"):
                continue
            level = [f"{prefix.rstrip('/')}/lib/{python}/{name}" for name in ("site-packages", "dist-packages")]
            for _ in range(_DEPTH + 1):
                below: List[str] = []
                for folder in level:
                    left -= 1
                    if left < 0:
                        return
                    names = list(_names(root, folder))
                    if any(".so" in name for name in names):
                        yield folder
                    below += [f"{folder}/{name}" for name in names if "." not in name and name != "__pycache__"]
                level = below
