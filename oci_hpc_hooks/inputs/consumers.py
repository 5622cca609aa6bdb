"""What in an image uses MPI, where its command line does not tell: programs in PATH, libraries the loader knows, Python modules.

A container may be started as ``sleep infinity`` or by a script, and its MPI program later. Every file that needs a library which would be
replaced is found here, so that all of them can be checked instead of the one that nobody named.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import stat
from typing import TYPE_CHECKING, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

from oci_hpc_hooks.elf.facts import read_facts
from oci_hpc_hooks.errors import ImageError, KernelError
from oci_hpc_hooks.model import ElfFacts

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
    needing = (real for real, elf in elf_files(root, (*path_dirs, *library_dirs), path_dirs) if names.intersection(elf.needed))
    return tuple(itertools.islice(needing, CONSUMERS_LIMIT))


def elf_files(root: Root, folders: Iterable[str], path_dirs: Sequence[str]) -> Iterator[Tuple[str, ElfFacts]]:
    """Real paths and facts, without symbols, of at most FILES_LIMIT files in some directories, then in the Python packages of the prefixes
    that PATH names; each file once."""
    listing = _Listing(root)
    seen: Set[Tuple[int, int]] = set()
    for folder in itertools.chain(dict.fromkeys(folders), _package_dirs(listing, path_dirs)):
        for name in listing.names(folder):
            if len(seen) >= FILES_LIMIT:
                return
            found = _facts(root, f"{folder}/{name}", seen)
            if found is not None:
                yield found


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
        except (KernelError, OSError) as error:
            self._root.miss(folder, error)
            return []


def _facts(root: Root, path: str, seen: Set[Tuple[int, int]]) -> Optional[Tuple[str, ElfFacts]]:
    """The real path of an ELF file and what it says, None for any other and for one seen before."""
    try:
        handle = root.find(path)
        if handle < 0:
            return None
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) in seen:
                return None
            seen.add((status.st_dev, status.st_ino))
            fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
            try:
                return root.real(handle), read_facts(fd)
            finally:
                os.close(fd)
        finally:
            os.close(handle)
    except (ImageError, KernelError, OSError) as error:
        root.miss(path, error)
        return None  # no ELF file, or none that could be started


def _package_dirs(listing: _Listing, path_dirs: Sequence[str]) -> Iterator[str]:
    """Directories of Python packages below the prefixes that PATH names, the packages' own directories included."""
    left = PACKAGE_DIRECTORIES_LIMIT
    for prefix in dict.fromkeys(posixpath.dirname(folder.rstrip("/")) or "/" for folder in path_dirs):
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
