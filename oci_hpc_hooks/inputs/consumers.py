"""What in an image uses MPI, where its command line does not tell: programs in PATH, libraries the loader knows, Python modules.

A container may be started as ``sleep infinity`` or by a script, and its MPI program later. Every file that needs a library which would be
replaced is found here, so that all of them can be checked instead of the one that nobody named.
"""

from __future__ import annotations

import os
import posixpath
import stat
from typing import TYPE_CHECKING, Dict, Iterable, Iterator, List, Sequence, Set, Tuple

from oci_hpc_hooks.elf.facts import read_facts
from oci_hpc_hooks.errors import ImageError, KernelError

if TYPE_CHECKING:
    from oci_hpc_hooks.linux.paths import Root

#: Files whose first pages are read, names that are looked at, directories of Python packages that are walked, consumers that are followed.
FILES_LIMIT = 20_000
NAMES_LIMIT = 200_000
PACKAGE_DIRECTORIES_LIMIT = 4_000
CONSUMERS_LIMIT = 64
_DEPTH = 3  # site-packages/mpi4py/MPI.….so is at 1, site-packages/petsc4py/lib/ARCH/PETSc.….so at 3


def find(root: Root, names: Set[str], path_dirs: Sequence[str], library_dirs: Iterable[str]) -> Tuple[str, ...]:
    """Real paths of the ELF files that need one of ``names``: at most CONSUMERS_LIMIT, those of PATH first."""
    found: List[str] = []
    seen: Set[Tuple[int, int]] = set()
    listing = _Listing(root)
    prefixes = dict.fromkeys(posixpath.dirname(folder.rstrip("/")) or "/" for folder in path_dirs)
    for folder in dict.fromkeys((*path_dirs, *library_dirs, *_package_dirs(listing, prefixes))):
        for name in listing.names(folder):
            if len(seen) >= FILES_LIMIT or len(found) >= CONSUMERS_LIMIT:
                return tuple(found)
            real = _if_needs(root, f"{folder}/{name}", names, seen)
            if real:
                found.append(real)
    return tuple(found)


class _Listing:
    """Directories of the image, each read once. A hostile image may have links to one large directory without end: when NAMES_LIMIT
    names have been read, every further directory counts as empty."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._left = NAMES_LIMIT
        self._known: Dict[str, Tuple[str, ...]] = {}

    def names(self, folder: str) -> Tuple[str, ...]:
        if folder not in self._known:
            self._known[folder] = tuple(sorted(self._read(folder)))
            self._left -= len(self._known[folder])
        return self._known[folder]

    def _read(self, folder: str) -> List[str]:
        if self._left <= 0:
            return []
        try:
            handle = self._root.find(folder)
            if handle < 0:
                return []
            try:
                with os.scandir(f"/proc/self/fd/{handle}") as entries:
                    return [entry.name for _, entry in zip(range(self._left), entries)]
            finally:
                os.close(handle)
        except (KernelError, OSError):
            return []


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


def _package_dirs(listing: _Listing, prefixes: Iterable[str]) -> Iterator[str]:
    """Directories of Python packages below the prefixes that PATH names, the packages' own directories included."""
    left = PACKAGE_DIRECTORIES_LIMIT
    for prefix in prefixes:
        for python in listing.names(f"{prefix.rstrip('/')}/lib"):
            if not python.startswith("python3"):
                continue
            level = [f"{prefix.rstrip('/')}/lib/{python}/{name}" for name in ("site-packages", "dist-packages")]
            for _ in range(_DEPTH + 1):
                below: List[str] = []
                for folder in level:
                    left -= 1
                    if left < 0:
                        return
                    names = listing.names(folder)
                    if any(".so" in name for name in names):
                        yield folder
                    below += [f"{folder}/{name}" for name in names if "." not in name and name != "__pycache__"]
                level = below
