"""glibc's search for shared objects, simulated. Pure: a :class:`View` answers for the files, nothing is opened here.

What is followed: elf/dl-load.c, elf/dl-deps.c and elf/dl-version.c of glibc 2.28 to 2.41. What is left out: auditing, programs run with
raised privileges (AT_SECURE), and tunables that take processor features away. An empty or relative element of a search path means the
directory in which the program is started; that is not known here, and it never matches.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field, replace
from typing import Dict, Iterator, List, Optional, Protocol, Sequence, Tuple

from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.elf.hwcaps import NONE, Hwcaps
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import ElfFacts, LdCache

#: Objects in one link map. The largest real programs have a few hundred; a hostile image may have no end of them.
MAX_OBJECTS = 4096
#: Names asked for and paths tried. 300 objects with an RPATH of 100 directories each make some 100,000.
MAX_TRIES = 500_000


class View(Protocol):
    """How the simulation sees a tree: an image as it is, or with what is to be injected laid over it."""

    def resolve(self, path: str) -> str:
        """What identifies the regular file behind an absolute path (its real path), "" if there is none."""

    def facts(self, identity: str) -> Optional[ElfFacts]:
        """The facts of that file; None if it is no ELF file that could be loaded."""

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory at an absolute path; asked only of subdirectories for some processors."""


@dataclass(frozen=True)
class Search:
    """What the loader is set to, apart from what the files say. Directories are absolute paths without a slash at the end."""

    library_path: Tuple[str, ...] = ()  # LD_LIBRARY_PATH, split at ":" and ";"
    cache: Optional[LdCache] = None
    default_dirs: Tuple[str, ...] = ()  # built into the loader, in its order; the first also tells what $LIB stands for
    hwcaps: Hwcaps = NONE  # where its $PLATFORM is "", path elements that hold it are left out
    preload: Tuple[str, ...] = ()  # LD_PRELOAD, split, then /etc/ld.so.preload
    interp: str = ""  # the loader itself: in every process, so a shared object that stands for a program need not find it


@dataclass(frozen=True)
class Loaded:
    """One object of the link map."""

    name: str  # as it was asked for first
    path: str  # as it was found: directory searched + name
    identity: str
    needed_by: str  # path of the object that asked for it, "" for the program
    how: str  # "program", "interp", "preload", "absolute", "rpath", "LD_LIBRARY_PATH", "runpath", "cache" or "default"
    facts: ElfFacts
    aliases: Tuple[str, ...] = ()  # other names under which it was asked for


@dataclass(frozen=True)
class LinkMap:
    """What is loaded, in ld.so's order, and what stands in the way. The interpreter comes where it is first needed, else last.

    ``missing`` pairs each name that was not found with the path of the object that wanted it. ``broken`` does so for paths that were
    found in its place but hold no ELF file that the loader takes: ld.so ends there instead of looking on. Any of the two is
    fatal. A preloaded object that is missing is in neither: ld.so warns and goes on.
    """

    objects: Tuple[Loaded, ...]
    missing: Tuple[Tuple[str, str], ...] = ()
    broken: Tuple[Tuple[str, str], ...] = ()
    tries: int = 0  # names asked for and paths tried: what it has cost


@dataclass(frozen=True)
class VersionGap:
    """A symbol version that one loaded object needs and the object loaded for it does not define.

    Not fatal is a provider that defines no versions but needs some itself: ld.so warns ("no version information available") and
    binds. One that knows no versions at all makes it abort ("Inconsistency detected by ld.so: dl-lookup.c: check_match").
    """

    needed_by: str  # path
    provider: str  # path
    version: str
    fatal: bool


def simulate(program: str, view: View, search: Search, opened: Sequence[str] = ()) -> LinkMap:
    """The link map that ld.so builds for ``program`` (an absolute path) before anything of it runs.

    A shared object without PT_INTERP may stand for the program: what comes out is what it loads when a program that has neither
    DT_RPATH nor loaded anything of it before calls dlopen on this path. ``opened`` are names that the program itself opens then, with
    dlopen, one after the other.

    Raises :class:`ImageError` if the program is no dynamically linked ELF file, or needs more than ``MAX_OBJECTS`` objects.
    """
    return _Simulation(program, view, search).run(opened)


def unsatisfied(link_map: LinkMap) -> Tuple[VersionGap, ...]:
    """Which needed versions the loaded providers lack. A provider that is missing altogether is no gap: ``missing`` has it."""
    by_name: Dict[str, Loaded] = {}
    for loaded in link_map.objects:
        for name in (loaded.name, *loaded.aliases, loaded.path, loaded.facts.soname):
            by_name.setdefault(name, loaded)
    gaps: List[VersionGap] = []
    for loaded in link_map.objects:
        for file, versions in loaded.facts.verneed:
            provider = by_name.get(file)
            if provider is None:
                continue
            defined = provider.facts.verdef
            # A file has a table of symbol versions (DT_VERSYM) if it defines or needs any.
            fatal = bool(defined) or not provider.facts.verneed
            gaps += [VersionGap(loaded.path, provider.path, v, fatal) for v in versions if v not in defined]
    return tuple(gaps)


@dataclass(eq=False)
class _Object:
    """A :class:`Loaded` in the making."""

    loaded: Loaded
    origin: str  # what $ORIGIN stands for
    loader: Optional[_Object]
    names: Dict[str, None] = field(default_factory=dict)
    listed: bool = False  # has its place in the link map
    done: bool = False  # what it needs has been looked for
    rpath: Tuple[str, ...] = ()  # directories; DT_RPATH counts only in an object without DT_RUNPATH
    runpath: Tuple[str, ...] = ()


class _BrokenError(Exception):
    """A file was found that ends ld.so."""


class _Simulation:
    def __init__(self, program: str, view: View, search: Search) -> None:
        self._view = view
        self._search = search
        identity = view.resolve(program)
        facts = view.facts(identity) if identity else None
        if facts is None:
            raise ImageError(f"{program} is not an ELF program")
        if not facts.dynamic:
            raise ImageError(f"{program} is not dynamically linked")
        self._lib = search.default_dirs[0].strip("/") if search.default_dirs else ""
        if self._lib.startswith("usr/"):
            self._lib = self._lib[4:]
        try:
            self._flags = ldcache.entry_flags(search.cache, facts.machine, facts.elf_class)
        except ImageError:
            self._flags = -1  # no entry has these: the cache finds nothing
        self._directory: Dict[str, bool] = {}  # subdirectories for some processors
        self._in_directory: Dict[str, Tuple[str, ...]] = {}
        self._tries = 0
        self._by_name: Dict[str, _Object] = {}
        self._by_identity: Dict[str, _Object] = {}
        self._listed: List[_Object] = []
        self._missing: List[Tuple[str, str]] = []
        self._broken: List[Tuple[str, str]] = []
        # The kernel tells the loader the program's real path: its $ORIGIN is behind symbolic links, unlike a library's.
        main = Loaded(program, program, identity, "", "program", facts)
        self._main = self._object(main, posixpath.dirname(identity if facts.interp else program), None)
        if facts.soname:
            self._by_name[facts.soname] = self._main
        self._library_path = self._directories(search.library_path, self._main)

    def run(self, opened: Sequence[str]) -> LinkMap:
        self._list(self._main)
        interp = self._interp()
        for name in self._search.preload:
            self._preload(name)
        self._load(0)
        for name in opened:
            found = self._need(self._expand(name, self._main), self._main)
            if found is not None and not found.listed:
                self._list(found)
                self._load(len(self._listed) - 1)
        if interp is not None:
            self._list(interp)
        return LinkMap(tuple([self._final(item) for item in self._listed]), tuple(self._missing), tuple(self._broken),
                       self._tries)

    def _load(self, at: int) -> None:
        """What the objects from there on need."""
        while at < len(self._listed):  # grows on the way: breadth first
            wanting = self._listed[at]
            if wanting.done:
                at += 1
                continue
            wanting.done = True
            for needed in wanting.loaded.facts.needed:
                found = self._need(self._expand(needed, wanting), wanting)
                if found is not None:
                    self._list(found)
            self._filtees(wanting, at)

    def _list(self, item: _Object) -> None:
        if not item.listed:
            item.listed = True
            self._listed.append(item)
        if len(self._listed) > MAX_OBJECTS:
            raise ImageError(f"{self._main.loaded.path} needs more than {MAX_OBJECTS} shared objects")

    def _filtees(self, wanting: _Object, at: int) -> None:
        """What a filter (DT_FILTER, DT_AUXILIARY) stands for comes before it, also if it was to come after."""
        facts = wanting.loaded.facts
        for name, must in [*((name, True) for name in facts.filters), *((name, False) for name in facts.auxiliaries)]:
            expanded = self._expand(name, wanting)
            found = self._need(expanded, wanting) if must else self._try(expanded, wanting)
            if found is None:
                continue
            if found.listed:
                where = self._listed.index(found)
                if where <= at:
                    continue
                del self._listed[where]
            found.listed = False
            self._list(found)
            self._listed.insert(at, self._listed.pop())
            at += 1

    @staticmethod
    def _final(item: _Object) -> Loaded:
        loaded = item.loaded
        return replace(loaded, aliases=tuple(name for name in item.names if name not in (loaded.name, loaded.path)))

    def _object(self, loaded: Loaded, origin: str, loader: Optional[_Object]) -> _Object:
        item = _Object(loaded, origin or "/", loader)
        if loaded.facts.runpath:
            item.runpath = self._directories(loaded.facts.runpath, item)
        else:
            item.rpath = self._directories(loaded.facts.rpath, item)
        return item

    def _add(self, item: _Object) -> _Object:
        """Makes the object known by what it was asked for, its path, its soname and its identity."""
        loaded = item.loaded
        for name in (loaded.name, loaded.path, loaded.facts.soname):
            if name:
                self._by_name.setdefault(name, item)
        self._by_identity.setdefault(loaded.identity, item)
        return item

    def _interp(self) -> Optional[_Object]:
        """The kernel has mapped the interpreter before any search begins; it answers to its path and to its soname."""
        path = self._main.loaded.facts.interp or self._search.interp
        if not path:
            return None
        identity = self._view.resolve(path) if path.startswith("/") else ""
        facts = self._view.facts(identity) if identity else None
        if facts is None:
            self._missing.append((path, self._main.loaded.path))
            return None
        loaded = Loaded(path, path, identity, self._main.loaded.path, "interp", facts)
        return self._add(self._object(loaded, posixpath.dirname(path), self._main))

    def _preload(self, name: str) -> None:
        found = self._try(self._expand(name, self._main), self._main)
        if found is not None and not found.listed:
            found.loaded = replace(found.loaded, how="preload")
            self._list(found)

    def _try(self, name: str, wanting: _Object) -> Optional[_Object]:
        try:
            return self._find(name, wanting)
        except _BrokenError:
            return None

    def _need(self, name: str, wanting: _Object) -> Optional[_Object]:
        try:
            found = self._find(name, wanting)
        except _BrokenError as broken:
            self._broken.append((str(broken), wanting.loaded.path))
            return None
        if found is None:
            self._missing.append((name, wanting.loaded.path))
        return found

    # ------------------------------------------------------------------------------------------------------ one name

    def _find(self, name: str, wanting: _Object) -> Optional[_Object]:
        """The object that ``name`` means to ``wanting``: one that is there already, or a new one."""
        self._count()
        known = self._by_name.get(name)
        if known is not None:
            known.names[name] = None
            return known
        program = self._main.loaded.facts
        for path, how in self._candidates(name, wanting):
            self._count()
            identity = self._view.resolve(path)
            if not identity:
                continue
            facts = self._view.facts(identity)
            if facts is not None and (facts.elf_class, facts.machine) != (program.elf_class, program.machine):
                continue
            if facts is None or facts.little_endian != program.little_endian or not facts.dynamic:
                raise _BrokenError(path)
            known = self._by_identity.get(identity)
            if known is not None:
                known.names[name] = None
                self._by_name[name] = known
                return known
            loaded = Loaded(name, path, identity, wanting.loaded.path, how, facts)
            return self._add(self._object(loaded, posixpath.dirname(path), wanting))
        return None

    def _count(self) -> None:
        self._tries += 1
        if self._tries > MAX_TRIES:
            raise ImageError(f"the search for the shared objects of {self._main.loaded.path} does not end")

    def _candidates(self, name: str, wanting: _Object) -> Iterator[Tuple[str, str]]:
        """The paths that ld.so tries for ``name``, in its order."""
        if "/" in name:
            if name.startswith("/"):
                yield name, "absolute"
            return
        if not name:
            return
        facts = wanting.loaded.facts
        if not facts.runpath:
            item: Optional[_Object] = wanting
            while item is not None:
                yield from self._in(item.rpath, name, "rpath")
                item = item.loader
        yield from self._in(self._library_path, name, "LD_LIBRARY_PATH")
        yield from self._in(wanting.runpath, name, "runpath")
        if self._search.cache is not None:
            entry = ldcache.lookup(self._search.cache, name, self._flags, self._search.hwcaps.named, self._search.hwcaps.bits)
            if entry is not None and not (facts.nodeflib and self._in_default_dir(entry.path)):
                yield entry.path, "cache"
        if not facts.nodeflib:
            yield from self._in(self._search.default_dirs, name, "default")

    def _in(self, directories: Tuple[str, ...], name: str, how: str) -> Iterator[Tuple[str, str]]:
        for directory in directories:
            for folder in self._places(directory):
                yield f"{folder}/{name}", how

    def _places(self, directory: str) -> Tuple[str, ...]:
        """The directory's subdirectories for this processor, as far as there are any, then itself. ld.so looks for each once, too."""
        known = self._in_directory.get(directory)
        if known is None:
            plain = directory.rstrip("/")
            found = [f"{plain}/{subdir}" for subdir in self._search.hwcaps.subdirectories if self._holds(plain, subdir)]
            known = self._in_directory[directory] = (*found, plain)
        return known

    def _holds(self, directory: str, subdir: str) -> bool:
        for part in subdir.split("/"):
            directory += "/" + part
            if directory not in self._directory:
                self._directory[directory] = self._view.is_directory(directory)
            if not self._directory[directory]:
                return False
        return True

    def _in_default_dir(self, path: str) -> bool:
        return any(path.startswith(directory.rstrip("/") + "/") for directory in self._search.default_dirs)

    # ------------------------------------------------------------------------------------------- dynamic string tokens

    def _directories(self, elements: Tuple[str, ...], item: _Object) -> Tuple[str, ...]:
        """A search path as ld.so searches it: expanded, each directory once, relative ones left out."""
        expanded = [self._expand(element, item) for element in elements]
        return tuple(dict.fromkeys(path.rstrip("/") or "/" for path in expanded if path.startswith("/")))

    def _expand(self, text: str, item: _Object) -> str:
        """``text`` with $ORIGIN, $LIB and $PLATFORM replaced (gabi, "Substitution Sequences"); "" if one has no value here."""
        if "$" not in text:
            return text
        values = {"ORIGIN": item.origin, "LIB": self._lib, "PLATFORM": self._search.hwcaps.platform}
        head, *rest = text.split("$")
        result = [head]
        for part in rest:
            braced = part.startswith("{")
            body = part[1:] if braced else part
            length = 0
            while length < len(body) and body[length] in _IDENTIFIER:
                length += 1
            value = values.get(body[:length])
            if value is None or (braced and body[length : length + 1] != "}"):
                result.append("$" + part)
            elif not value:
                return ""
            else:
                result.append(value + body[length + braced :])
        return "".join(result)


_IDENTIFIER = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
