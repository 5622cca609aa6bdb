"""A container's file tree as its loader sees it (hostile: each file, each directory and their number is bounded)."""

from __future__ import annotations

import os
import posixpath
import stat
from typing import Dict, Iterator, Optional, Set

from oci_hpc_hooks.elf import hwcaps
from oci_hpc_hooks.elf.facts import read_facts
from oci_hpc_hooks.elf.notes import read_note
from oci_hpc_hooks.errors import ImageError, KernelError
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import Directory, ElfFacts, FileId, ImageFile

NAMES_LIMIT = 200_000  # names in one directory
DIRECTORIES_LIMIT = 4096
# One budget for the whole image: names kept, files read, of those with all their symbols.
ALL_NAMES_LIMIT = 1_000_000
FILES_LIMIT = 20_000
SYMBOLS_LIMIT = 256


class Tree:
    """The image's tree as the loader sees it; remembers everything that was looked at."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.resolved: Dict[str, str] = {}
        self.files: Dict[str, ImageFile] = {}
        self.unreadable: Dict[str, str] = {}
        self.directories: Dict[str, Optional[Directory]] = {}
        self.names: Dict[str, frozenset[str]] = {}
        self.symbols: set[str] = set()  # real paths whose symbols were read
        self.unlisted: Set[str] = set()
        self.loaded: Set[str] = set()  # real paths of what the programs' loader loads
        self.spent: Dict[str, int] = {}

    def spend(self, what: str, amount: int, limit: int) -> None:
        """Counts against one of the limits for the whole image."""
        self.spent[what] = self.spent.get(what, 0) + amount
        if self.spent[what] > limit:
            raise ImageError(f"the image's loader would look at more than {limit} {what}")

    def directory(self, path: str) -> Optional[Directory]:
        """The directory at ``path`` with the names in it that look like shared objects; None where there is none."""
        if path in self.directories:
            return self.directories[path]
        if len(self.directories) >= DIRECTORIES_LIMIT:
            raise ImageError(f"the image's loader would search more than {DIRECTORIES_LIMIT} directories")
        found = None
        handle = self.root.find(path)
        if handle >= 0:
            try:
                status = os.fstat(handle)
                if stat.S_ISDIR(status.st_mode):
                    try:
                        names = tuple(_shared_objects(handle, path))
                    except PermissionError:
                        names = ()  # may be entered and not listed, as a volume of another user: each name is tried
                        self.unlisted.add(path)
                    self.spend("names", len(names), ALL_NAMES_LIMIT)
                    self.names[path] = frozenset(names)
                    found = Directory(path, status.st_mtime_ns, status.st_ino, names)
            finally:
                os.close(handle)
        self.directories[path] = found
        return found

    def resolve(self, path: str) -> str:
        """The real path of the regular file behind ``path``, "" where there is none."""
        known = self.resolved.get(path)
        if known is not None:
            return known
        # The spelling is kept: behind a symbolic link ".." is not what a lexical reading makes of it.
        folder, name = posixpath.split(path)
        real = self.real(path) if ".so" not in name or self._may_hold(folder, name) else ""
        self.resolved[path] = real
        if real:
            self.resolved[real] = real  # where it may be bound over, whatever name has led there
        return real

    def _may_hold(self, folder: str, name: str) -> bool:
        return self.directory(folder) is not None and (name in self.names[folder] or folder in self.unlisted)

    def is_directory(self, path: str) -> bool:
        """Of a subdirectory for some processors: what the directory above it says comes first, so that most are never looked for."""
        return self._may_hold(*posixpath.split(path)) and self.directory(path) is not None

    def real(self, path: str) -> str:
        handle = self.root.find(path)
        if handle < 0:
            return ""
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return ""
            return self.root.real(handle)
        finally:
            os.close(handle)

    def facts(self, real: str) -> Optional[ElfFacts]:
        """What the file at this real path says, None if it is no ELF file that could be loaded."""
        if real not in self.files and real not in self.unreadable:
            self._read(real, symbols=False)
        file = self.files.get(real)
        return file.elf if file else None

    def facts_with_symbols(self, real: str) -> Optional[ElfFacts]:
        if real not in self.symbols:
            self._read(real, symbols=True)
            self.symbols.add(real)
        file = self.files.get(real)
        return file.elf if file else None

    def _read(self, real: str, symbols: bool) -> None:
        self.spend("files", 1, FILES_LIMIT)
        if symbols:
            self.spend("libraries with all their symbols", 1, SYMBOLS_LIMIT)
        fd = -1
        try:
            fd = self.root.open_regular(real)
            if fd < 0:
                raise ImageError(f"{real} is gone")
            status = os.fstat(fd)
            self.files[real] = ImageFile(real, FileId(status.st_ino, status.st_size, status.st_mtime_ns), read_facts(fd, symbols=symbols))
        except (ImageError, KernelError, OSError) as error:
            self.root.miss(real, error)
            self.unreadable[real] = str(error) if isinstance(error, OSError) else error.what
        finally:
            if fd >= 0:
                os.close(fd)

    def note(self, real: str, section: str, owner: str) -> Optional[bytes]:
        """A note of an ELF file (:func:`notes.read_note`). Raises ImageError, OSError."""
        fd = self.root.open_regular(real)
        if fd < 0:
            return None
        try:
            return read_note(fd, section, owner)
        finally:
            os.close(fd)

    def head(self, real: str) -> bytes:
        """The first bytes of a file, none if it cannot be read: a program may be executable and no more."""
        try:
            fd = self.root.open_regular(real)
        except (ImageError, OSError) as error:
            self.root.miss(real, error)
            return b""
        if fd < 0:
            return b""
        try:
            return os.pread(fd, 256, 0)
        finally:
            os.close(fd)


def _shared_objects(handle: int, path: str) -> Iterator[str]:
    fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(fd) as entries:
            for count, entry in enumerate(entries):
                if count >= NAMES_LIMIT:
                    raise ImageError(f"{path} of the image has more than {NAMES_LIMIT} names")
                if ".so" in entry.name or entry.name in hwcaps.SUBDIRECTORIES:
                    yield entry.name
    finally:
        os.close(fd)
