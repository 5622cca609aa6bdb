"""Profiles resolved on this node: which files they mean here, and everything those need.

The answer is what ld.so would find for a program that is linked to the profile's libraries, with the profile's directories in front of
the node's ld.so.conf. The C runtime is never part of it: in a container that is the image's, or comes as a set of its own.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from oci_hpc_hooks.elf import glibc, hwcaps, ldcache, loader, mpi
from oci_hpc_hooks.elf.facts import read_facts
from oci_hpc_hooks.elf.scan import read_with_pyelftools
from oci_hpc_hooks.errors import ConfigError, HookError
from oci_hpc_hooks.inputs import cdi
from oci_hpc_hooks.inputs.cpu import node_cpu
from oci_hpc_hooks.inputs.inventory import VERSION
from oci_hpc_hooks.inputs.site import Configuration
from oci_hpc_hooks.model import (
    CacheEntry,
    ElfFacts,
    FileId,
    HostFile,
    HostLibrary,
    Inventory,
    LdCache,
    LibrarySet,
    Profile,
    ProfileLibrary,
    ResolvedProfile,
    ResolvedSet,
    Site,
    Variant,
    Watched,
)

CACHE = "/etc/ld.so.cache"
CPUINFO = "/proc/cpuinfo"

_MOST_NAMES = 100_000  # in one directory
_ICD_LIMIT = 1 << 16


@dataclass(frozen=True)
class Scan:
    """The inventory, and by ``title`` of each profile and variant what is worth knowing but does not keep it from being offered."""

    inventory: Inventory
    notes: Mapping[str, Tuple[str, ...]]
    cpu_note: str = ""


def scan(configuration: Configuration, each: Callable[[Sequence[Profile]], Iterable[Profile]] = iter) -> Scan:
    """Resolve every profile that is on. One that cannot be offered stays in the inventory, with its problems. ``each`` goes through them,
    and may tell of it.

    Raises :class:`ConfigError` if the node's own loader cache cannot be read.
    """
    node = _Node()
    for path in configuration.consulted:
        node.watch(path)
    resolved = []
    notes: Dict[str, Tuple[str, ...]] = {}
    for profile in each(configuration.profiles):
        node.asking = profile.name
        offers = []
        root = configuration.root(profile.name)
        root = os.path.realpath(root) if root else ""
        own = (*configuration.search(profile.name), *(root + directory for directory in profile.search))
        for variant in (Variant("", own), *configuration.variants(profile)):
            resolution = _Resolution(node, profile, variant, root, "" if variant.name else configuration.cdi(profile))
            offers.append(resolution.run())
            notes[offers[-1].title] = tuple(resolution.notes)
        resolved.append(replace(offers[0], variants=tuple(offers[1:])))
    node.asking = ""
    runtime = _c_runtime(node, configuration.site) if configuration.site.c_runtime == "host" else None
    cpu, cpu_note = node_cpu()
    inventory = Inventory(
        version=VERSION,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine=os.uname().machine,
        libc_version=(os.confstr("CS_GNU_LIBC_VERSION") or "").replace("glibc ", ""),
        site=configuration.site,
        profiles=tuple(resolved),
        rests_on=tuple(Watched(path, file, node.for_whom(path)) for path, file in sorted(node.watched.items())),
        c_runtime=runtime,
        cpu=cpu,
        hwcaps=hwcaps.of_cpuinfo(_cpuinfo(), os.uname().machine),
    )
    return Scan(inventory, notes, cpu_note)


def _cpuinfo() -> str:
    try:
        with open(CPUINFO, encoding="ascii", errors="replace") as file:
            return file.read(1 << 20)  # one processor's part has 2 KB
    except OSError:
        return ""


def file_id(status: os.stat_result) -> FileId:
    return FileId(status.st_ino, status.st_size, status.st_mtime_ns)


class _Node:
    """The node's files, each read once; remembers everything that an answer rests on. A :class:`loader.View`."""

    def __init__(self) -> None:
        self.watched: Dict[str, Optional[FileId]] = {}
        self.asking = ""  # the profile that is being resolved, "" for what all rest on
        self._askers: Dict[str, Dict[str, None]] = {}
        self.unreadable: Dict[str, str] = {}
        self._facts: Dict[str, Optional[ElfFacts]] = {}
        self._loadable: Dict[str, bool] = {"": False}
        # The interpreter that runs this tells what a program of this node is.
        own = read_with_pyelftools(os.path.realpath("/proc/self/exe"), symbols=lambda name: False)
        self.abi = (own.elf_class, own.little_endian, own.machine)
        self.default_dirs = _default_dirs()
        self.cache = self._read_cache()
        try:
            self.flags = ldcache.entry_flags(self.cache, own.machine, own.elf_class)
        except HookError as error:
            raise ConfigError(f"this node's architecture is not known: {error.what}") from None

    def _read_cache(self) -> LdCache:
        self.watch(CACHE)
        try:
            with open(CACHE, "rb") as file:
                return ldcache.parse(file.read(ldcache.MAX_SIZE + 1))
        except FileNotFoundError:
            return LdCache(entries=())
        except (HookError, OSError) as error:
            raise ConfigError(f"{CACHE} of this node cannot be read: {error}", remedy="run ldconfig", who="site admin") from None

    def watch(self, path: str) -> None:
        """Note that an answer rests on what ``path`` is now; of what does not exist, the topmost part that is missing."""
        if path not in self.watched:
            try:
                self.watched[path] = file_id(os.stat(path))
            except OSError:
                parent = os.path.dirname(path)
                while not os.path.exists(parent):
                    path, parent = parent, os.path.dirname(parent)
                self.watched[path] = None
        self._askers.setdefault(path, {})[self.asking] = None

    def for_whom(self, path: str) -> Tuple[str, ...]:
        """The profiles that alone rest on a path that is watched, none if all do."""
        askers = self._askers[path]
        return () if "" in askers else tuple(askers)

    def resolve(self, path: str) -> str:
        """The regular file behind a path, ""; if there is none, a file that appears there later makes the inventory stale."""
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                return os.path.realpath(path)
        except (OSError, ValueError):
            pass
        self.watch(os.path.dirname(path))
        return ""

    def facts(self, identity: str) -> Optional[ElfFacts]:
        """With all symbols; None for what is no ELF file, and ``unreadable`` then says why."""
        if identity not in self._facts:
            try:
                self._facts[identity] = read_with_pyelftools(identity, symbols=bool)
            except HookError as error:
                self._facts[identity] = None
                self.unreadable[identity] = error.what
        return self._facts[identity]

    def is_loadable(self, identity: str) -> bool:
        """Whether programs of this node could load a file, "" being none. Asked of every library in /usr/lib64: without its symbols."""
        if identity not in self._loadable:
            try:
                with open(identity, "rb") as file:
                    elf = read_facts(file.fileno())
                self._loadable[identity] = elf.dynamic and (elf.elf_class, elf.little_endian, elf.machine) == self.abi
            except (HookError, OSError):
                self._loadable[identity] = False
        return self._loadable[identity]

    def listdir(self, directory: str) -> List[str]:
        """The names in a directory, none if there is no such directory."""
        self.watch(directory)
        try:
            with os.scandir(directory) as entries:
                names = [entry.name for _, entry in zip(range(_MOST_NAMES), entries)]
        except OSError:
            return []
        return sorted(name for name in names if name.isprintable())

    def expand(self, pattern: str) -> List[str]:
        """The directories that a path with shell patterns stands for, the last version of each part first (glob(7))."""
        found = ["/"]
        for part in pattern.strip("/").split("/"):
            if re.search(r"[*?\[]", part):
                # As in a shell, a pattern does not stand for hidden names.
                found = [
                    os.path.join(directory, name)
                    for directory in found
                    for name in sorted(fnmatch.filter(self.listdir(directory), part), key=_version_order, reverse=True)
                    if not name.startswith(".") or part.startswith(".")
                ]
            else:
                found = [os.path.join(directory, part) for directory in found]
            for directory in found:
                if not os.path.isdir(directory):
                    self.watch(directory)
            found = list(filter(os.path.isdir, found))
        return found

    def library(self, name: str, path: str, real: str, role: str, replaces: Tuple[str, ...] = ()) -> HostLibrary:
        """A file whose facts have been read; the inventory rests on it."""
        elf = self.facts(real)
        assert elf is not None
        self.watch(path)
        return HostLibrary(name, path, real, role, replaces, file_id(os.stat(real)), _without_surplus(elf, role))

    def matching(self, pattern: str) -> List[str]:
        """The files that a path with shell patterns stands for, in the order of their names."""
        folder, name = os.path.split(pattern)
        found = [os.path.join(directory, one) for directory in self.expand(folder) for one in fnmatch.filter(self.listdir(directory), name)]
        return [path for path in found if self.resolve(path)]

    def plain_file(self, path: str) -> HostFile:
        self.watch(path)
        real = self.resolve(path)
        return HostFile(path, real, file_id(os.stat(real)))


class _Program:
    """A program linked to the given files, seen as one more file of the node: what ld.so loads for it is the closure."""

    PATH = "/a program linked to the profile"

    def __init__(self, node: _Node, paths: Sequence[str]) -> None:
        self._node = node
        elf_class, little_endian, machine = node.abi
        self._elf = ElfFacts(elf_class, little_endian, machine, elf_type=3, dynamic=True, needed=tuple(paths))

    def resolve(self, path: str) -> str:
        return path if path == self.PATH else self._node.resolve(path)

    def facts(self, identity: str) -> Optional[ElfFacts]:
        return self._elf if identity == self.PATH else self._node.facts(identity)

    def is_directory(self, path: str) -> bool:
        return False  # what is offered serves every processor


class _Resolution:
    """One profile on this node, as such (a variant without a name) or as one of its variants."""

    def __init__(self, node: _Node, profile: Profile, variant: Variant, root: str, device: str = "") -> None:
        self._node = node
        self._profile = profile
        self._variant = variant.name
        self._root = root
        self._directories = list(dict.fromkeys(directory for pattern in variant.search for directory in node.expand(pattern)))
        if root:
            self._directories += [root + directory for directory in node.default_dirs if os.path.isdir(root + directory)]
        self.problems: List[str] = []
        self.notes: List[str] = []
        self._device: Optional[cdi.Device] = None
        self._places_inside: Dict[str, str] = {}  # of files and directories, where a CDI device has them in containers
        if device:
            self._look_at_device(device)

    def _look_at_device(self, name: str) -> None:
        """A CDI device takes the place of the profile's own directories."""
        for path in cdi.consulted():
            self._node.watch(path)
        try:
            self._device = cdi.find(name)
        except ConfigError as error:
            self.problems.append(error.what)
            return
        self.problems += self._device.problems
        self.notes += [f"of {name}: {note}" for note in self._device.notes]
        self._root = cdi.root(self._device)
        self._places_inside = {os.path.dirname(host): os.path.dirname(inside) for host, inside in self._device.mounts}
        self._places_inside.update(self._device.mounts)
        # Whose GPUs are found by rules, of that a start gets what its job was given, whatever a specification lists.
        devices = self._device.devices if self._profile.gpus is None else self._profile.devices
        self._profile = replace(self._profile, devices=devices, icds=(), companions=(), files=())
        folders = [os.path.dirname(host) for host, _ in self._device.mounts if ".so" in os.path.basename(host)]
        folders += [self._root + directory for directory in self._node.default_dirs if self._root]
        self._directories = [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]

    def run(self) -> ResolvedProfile:
        plugins: List[HostLibrary] = []
        sets: List[ResolvedSet] = []
        files: List[HostFile] = []
        needed = ""
        libraries: List[HostLibrary] = []
        if self.problems:
            pass
        elif self._profile.is_stack:
            libraries, files = self._driver()
        else:
            libraries = self._named_libraries() if self._profile.libraries else []
        if libraries and not self.problems:
            self._refuse_immovable(os.path.dirname(libraries[0].path))
        if libraries and not self.problems:
            search = self._search(os.path.dirname(libraries[0].path))
            dependencies = self._closure(libraries, search)
            must = [library for library in libraries if not library.optional] or libraries
            own = dependencies if must == libraries else self._dependencies(self._simulate([one.path for one in must], search), ())
            needed = glibc.release_needed(library.elf.verneed for library in (*must, *own.values()))
            plugins = self._plugins(libraries, dependencies, search)
            sets = self._sets(libraries, dependencies, search)
            libraries += dependencies.values()
        return ResolvedProfile(
            name=self._profile.name,
            provides=self._profile.provides,
            source=self._profile.source,
            libraries=tuple(map(self._placed, libraries)),
            plugins=tuple(map(self._placed, plugins)),
            problems=tuple(self.problems),
            variant=self._variant,
            glibc=needed,
            sets=tuple(replace(one, modules=tuple(map(self._placed, one.modules)), files=tuple(map(self._placed_file, one.files)))
                       for one in sets),
            devices=self._profile.devices,
            job=self._profile.job,
            interfaces=self._profile.interfaces,
            files=tuple(map(self._placed_file, files)),
            names=tuple(name for library in self._profile.libraries for name in (library.soname, *library.replaces))
            if self._profile.is_stack else (),
            gpus=self._profile.gpus,
            gpus_of=self._profile.gpus_of,
            newer=self._profile.newer,
        )

    def _placed(self, library: HostLibrary) -> HostLibrary:
        """Where a container has it: a root of the driver's own is "/" there."""
        return replace(library, path=self._inside(library.path))

    def _placed_file(self, file: HostFile) -> HostFile:
        return replace(file, path=self._inside(file.path))

    def _inside(self, path: str) -> str:
        path = os.path.normpath(path)  # DT_RPATH may lead up and down again
        if path in self._places_inside:
            return self._places_inside[path]
        folder, name = os.path.split(path)
        if folder in self._places_inside:
            return os.path.join(self._places_inside[folder], name)
        return path[len(self._root):] if self._root and path.startswith(self._root + "/") else path

    # ---------------------------------------------------------------------------------------------- the profile's own

    def _named_libraries(self) -> List[HostLibrary]:
        """The libraries that the profile names. All lie in the first one's directory: parts of two installations do not fit."""
        first, *rest = self._profile.libraries
        found = self._find(first, self._candidates(first))
        if found is None:
            return []
        libraries = [found]
        home = os.path.dirname(found.path)
        for library in rest:
            sibling = self._find(library, [os.path.join(home, name) for name in (library.soname, *library.replaces)])
            if sibling is not None:
                libraries.append(sibling)
        return libraries

    # -------------------------------------------------------------------------------------------------- a driver's own

    def _driver(self) -> Tuple[List[HostLibrary], List[HostFile]]:
        """The libraries that the profile, files for neutral loaders, and the driver's release name; and files at their own path."""
        libraries: List[HostLibrary] = []
        home = version = ""
        for wanted in self._profile.libraries:
            # What is beside the first belongs to it; a library that it cannot do without may belong to another package.
            together = home and wanted.role == "replace" and self._device is None
            beside = [os.path.join(home, name) for name in (wanted.soname, *wanted.replaces)] if together else []
            notes = len(self.notes)
            found = self._find(wanted, beside if beside and not wanted.required else (*beside, *self._candidates(wanted)))
            if found is None:
                self.notes[notes:] = [note for note in self.notes[notes:] if not note.startswith("there is no ")]  # of some release only
                continue
            libraries.append(replace(found, optional=not wanted.required))
            if wanted.role == "replace" and not home:
                home = os.path.dirname(found.path)
                version = os.path.basename(found.real).partition(".so.")[2]
        files = list(self._icds(libraries))
        if not any(library.required for library in self._profile.libraries) and not self._profile.icds:
            self._need_device()
        if self._profile.icds and not files:
            self.problems.append(f"there is no driver: no file that names one in {', '.join(self._profile.icds)}")
        if self.problems:
            return libraries, files
        if self._device is not None:
            files += self._of_device(self._device, libraries)
        for path in self._written(self._profile.companions, home, version):
            self._add(libraries, path)
        files += [self._own_file(path) for path in self._written(self._profile.files, home, version)]
        return libraries, list({file.path: file for file in files}.values())

    def _of_device(self, device: cdi.Device, libraries: List[HostLibrary]) -> Iterable[HostFile]:
        """What a CDI device brings beside the libraries that the profile names: all its other libraries, and files at their own path."""
        for host, _ in device.mounts:
            if self._node.resolve(host):
                if not (".so" in os.path.basename(host) and self._is_loadable(host)):
                    yield self._own_file(host)
                else:
                    self._add(libraries, host)
            elif host not in self._profile.job.sockets:
                self.notes.append(f"{host} is left out: only regular files come")
        sonames = {os.path.join(os.path.dirname(self._inside(library.real)), library.name): library.real for library in libraries}
        for link, _ in device.links:
            host = cdi.host_path(device, link, sonames) or ""
            real = self._node.resolve(host) if host else ""
            number = next((number for number, library in enumerate(libraries) if library.real == real), -1)
            if not real:
                self.notes.append(f"the link {link} is left out: it leads to nothing that {device.name} brings")
            elif number < 0 or os.path.dirname(link) != os.path.dirname(self._inside(host)):
                yield replace(self._own_file(host), path=link)
            elif os.path.basename(link) not in (libraries[number].name, *libraries[number].replaces):
                names = (*libraries[number].replaces, os.path.basename(link))
                libraries[number] = replace(libraries[number], replaces=names)

    def _need_device(self) -> None:
        """A profile that is about a device alone is of no use without."""
        there = [path for pattern in self._profile.devices for path in Path("/").glob(pattern.lstrip("/"))]
        if not there:
            self.problems.append(f"there is no {' or '.join(self._profile.devices)}: its driver is not loaded")
            for pattern in self._profile.devices:
                self._node.watch(pattern)

    def _written(self, patterns: Sequence[str], home: str, version: str) -> Iterable[str]:
        """The files that patterns of the profile stand for."""
        for pattern in patterns:
            if ("$VERSION" in pattern and "." not in version) or ("$ORIGIN" in pattern and not home):
                self.notes.append(f"nothing of {pattern}: the release of the driver is not to be seen in the name of its first library")
                continue
            path = pattern.replace("$VERSION", version).replace("$ORIGIN", home)
            yield from self._node.matching(os.path.normpath(path if "$ORIGIN" in pattern else self._root + path))

    def _icds(self, libraries: List[HostLibrary]) -> Iterable[HostFile]:
        """Files that name a driver for a neutral loader; that driver joins the libraries."""
        for pattern in self._profile.icds:
            for path in self._node.matching(self._root + pattern):
                name = _named_in(path)
                if name.startswith("/"):
                    places = [self._root + os.path.normpath(name)]
                else:
                    places = list(self._candidates(ProfileLibrary(name, "replace"))) if name and "/" not in name else []
                place = next(filter(self._node.resolve, places), "")
                if place and self._add(libraries, place, "" if name.startswith("/") else name):
                    known = next(library.name for library in libraries if library.real == self._node.resolve(place))
                    yield replace(self._node.plain_file(path), required=True, library=known)
                    if name.startswith("/"):  # it is opened by this path
                        yield replace(self._node.plain_file(place), required=True, library=known)
                else:
                    self.notes.append(f"{path} is left out: it names {name or 'no library'}, which this node does not load")

    def _add(self, libraries: List[HostLibrary], path: str, asked: str = "") -> bool:
        """Adds a library unless it is there already; False where this node would not load it. ``asked`` is one more name of it."""
        real = self._node.resolve(path)
        if any(library.real == real for library in libraries):
            return True
        if not self._is_loadable(path):
            return False
        gaps = _gaps(self._simulate([path], self._search(os.path.dirname(path))))
        if gaps:
            self.notes.append(f"{path} is left out, this node does not load it either: {gaps[0]}")
            return False
        elf = self._node.facts(real)
        name = elf.soname if elf is not None and elf.soname else os.path.basename(path)
        also = dict.fromkeys(filter(None, (asked, self._plain_name(path, real))))
        also.pop(name, None)
        libraries.append(replace(self._node.library(name, path, real, "replace", tuple(also)), optional=True))
        return True

    def _plain_name(self, path: str, real: str) -> str:
        """The name without a release, where the driver has it for this file: programs open libraries by it too."""
        plain = path.partition(".so")[0] + ".so"
        return os.path.basename(plain) if self._node.resolve(plain) == real else ""

    def _own_file(self, path: str) -> HostFile:
        """A file at its own path; a program tells which glibc it needs."""
        with open(self._node.resolve(path), "rb") as file:
            elf = self._node.facts(self._node.resolve(path)) if file.read(4) == b"\x7fELF" else None
        release = glibc.release_needed([elf.verneed]) if elf is not None else ""
        return replace(self._node.plain_file(path), glibc=release)

    def _refuse_immovable(self, home: str) -> None:
        for written in self._profile.immovable:
            directory, pattern = os.path.split(os.path.normpath(written.replace("$ORIGIN", home)))
            for name in fnmatch.filter(self._node.listdir(directory), pattern)[:1]:
                self.problems.append(f"{self._profile.libraries[0].soname} opens {directory}/{name} by this path, which leads nowhere in a "
                                     "container: a build with its modules inside the library is needed")

    def _candidates(self, library: ProfileLibrary) -> Iterable[str]:
        """Where the library may be, the best place first."""
        names = (library.soname, *library.replaces)
        if self._device is not None:
            for host, _ in self._device.mounts:
                real = self._node.resolve(host) if ".so" in os.path.basename(host) else ""
                elf = self._node.facts(real) if real else None
                if elf is not None and elf.soname in names:
                    usual = os.path.join(os.path.dirname(host), elf.soname)
                    yield usual if self._node.resolve(usual) == real else host
            return
        for directory in self._directories:
            for name in names:
                yield os.path.join(directory, name)
        if self._variant or self._root:
            return  # what the node's own loader has belongs to the profile as such
        for name in names:
            entry = ldcache.lookup(self._node.cache, name, self._node.flags, ())
            if entry is not None:
                yield entry.path
        for directory in self._node.default_dirs:
            for name in names:
                yield os.path.join(directory, name)

    def _find(self, library: ProfileLibrary, candidates: Iterable[str]) -> Optional[HostLibrary]:
        unfit: Dict[str, str] = {}
        for path in candidates:
            real = self._node.resolve(path)
            if not real or real in unfit:
                continue
            why = self._why_unfit(library, real)
            if not why:
                return self._node.library(library.soname, path, real, library.role, library.replaces)
            unfit[real] = f"{path} {why}"
            self._node.watch(path)
        says = self.problems if library.required else self.notes
        if unfit:
            says += [f"{library.soname}: {why}" for why in unfit.values()]
        else:
            # Not "not found": podman takes that for a missing command and exits 127.
            says.append(f"there is no {' or '.join((library.soname, *library.replaces))} in {self._places(library)}")
        return None

    def _places(self, library: ProfileLibrary) -> str:
        if self._device is not None:
            return f"the CDI device {self._device.name} of {self._device.file}"
        if library is not self._profile.libraries[0] and (library.role == "replace" or not self._profile.is_stack):
            return f"the directory of {self._profile.libraries[0].soname}"
        whose = "variant" if self._variant else "profile"
        directories = ", ".join(self._directories) or f"the {whose}'s directories (none of them exists on this node)"
        return directories if self._variant else f"{directories}, nor where the node's own loader looks"

    def _why_unfit(self, library: ProfileLibrary, real: str) -> str:
        elf = self._node.facts(real)
        if elf is None:
            return f"is of no use: {self._node.unreadable[real]}"
        if (elf.elf_class, elf.little_endian, elf.machine) != self._node.abi:
            return f"is for another architecture (e_machine {elf.machine}, ELF class {elf.elf_class})"
        if elf.soname and elf.soname not in (library.soname, *library.replaces):
            return f"calls itself {elf.soname}"
        family = self._profile.provides.get("mpi")
        if family and library is self._profile.libraries[0]:
            found = mpi.family(elf)
            if found != family:
                return f"is {found or 'no MPI library'} by the symbols it exports, not {family}"
        return ""

    # ------------------------------------------------------------------------------------------------ what they need

    def _search(self, home: str) -> loader.Search:
        """As if the profile's directories, that of its first library in front, headed the node's ld.so.conf."""
        additions: Dict[str, CacheEntry] = {}
        for directory in dict.fromkeys((home, *self._directories)):
            for name in self._node.listdir(directory):
                if ".so" in name:
                    additions.setdefault(name, CacheEntry(name, os.path.join(directory, name), self._node.flags))
        fitting = [entry for entry in additions.values() if self._is_loadable(entry.path)]
        return loader.Search(cache=ldcache.merge(self._node.cache, fitting), default_dirs=self._node.default_dirs)

    def _is_loadable(self, path: str) -> bool:
        return self._node.is_loadable(self._node.resolve(path))

    def _closure(self, libraries: Sequence[HostLibrary], search: loader.Search) -> Dict[str, HostLibrary]:
        """By real path, what the libraries need in turn; a gap makes the profile a problem."""
        loaded = self._simulate([library.path for library in libraries], search)
        self.problems += _gaps(loaded)
        return self._dependencies(loaded, {library.real for library in libraries})

    def _plugins(
        self, libraries: Sequence[HostLibrary], dependencies: Dict[str, HostLibrary], search: loader.Search
    ) -> List[HostLibrary]:
        """The modules that can be loaded on this node; what only they need joins the dependencies. The rest is noted."""
        plugins: List[HostLibrary] = []
        for written in self._profile.plugins:
            directory = os.path.normpath(written.replace("$ORIGIN", os.path.dirname(libraries[0].path)))
            plugins += self._modules(directory, libraries, dependencies, search)
        return plugins

    def _modules(
        self, directory: str, libraries: Sequence[HostLibrary], dependencies: Dict[str, HostLibrary], search: loader.Search
    ) -> List[HostLibrary]:
        """The modules of one directory that load when ``libraries`` have been loaded, and as they are found those beside them: UCX's
        for one kind of device need the one of their common parts, which is there before them."""
        paths = [f"{directory}/{name}" for name in self._node.listdir(directory) if ".so" in name]
        waiting = list(filter(self._is_loadable, paths))
        found: List[HostLibrary] = []
        lacking: Dict[str, str] = {}
        more = True
        while more:
            more = False
            for path in list(waiting):
                loaded = self._simulate([*(library.path for library in (*libraries, *found)), path], search)
                if _gaps(loaded):
                    lacking[path] = ", ".join(sorted({missing for missing, _ in loaded.missing})) or "; ".join(_gaps(loaded))
                    continue
                more = True
                waiting.remove(path)
                found.append(self._node.library(os.path.basename(path), path, self._node.resolve(path), "plugin"))
                known = {library.real for library in (*libraries, *found)}
                for real, library in self._dependencies(loaded, known).items():
                    dependencies.setdefault(real, library)
        self.notes += [f"the module {path} is left out, this node does not load it either: it lacks {lacking[path]}" for path in waiting]
        return sorted(found, key=lambda library: library.path)

    # --------------------------------------------------------------------------------------------------- what goes with it

    def _sets(
        self, libraries: Sequence[HostLibrary], dependencies: Dict[str, HostLibrary], search: loader.Search
    ) -> List[ResolvedSet]:
        """The sets that the libraries or modules need; what belongs to them joins the dependencies."""
        found = []
        for wanted in self._profile.sets:
            center = next((library for library in (*dependencies.values(), *libraries) if library.name == wanted.when), None)
            if center is not None:
                found.append(self._set(wanted, center, libraries, dependencies, search))
        return found

    def _set(
        self, wanted: LibrarySet, center: HostLibrary, libraries: Sequence[HostLibrary], dependencies: Dict[str, HostLibrary],
        search: loader.Search,
    ) -> ResolvedSet:
        for name in wanted.libraries:
            path = os.path.join(os.path.dirname(center.path), name)
            if self._is_loadable(path) and name not in {library.name for library in dependencies.values()}:
                loaded = self._simulate([center.path, path], search)
                if not _gaps(loaded):
                    member = self._node.library(name, path, self._node.resolve(path), "dependency")
                    dependencies.setdefault(member.real, member)
                    for real, library in self._dependencies(loaded, {library.real for library in libraries}).items():
                        dependencies.setdefault(real, library)
        modules: List[HostLibrary] = []
        files: List[HostFile] = []
        for written in wanted.directories:
            # As the library was built to spell it: on merged systems the loader's cache says /lib where that says /usr/lib.
            absolute = self._root if written.startswith("/") else ""
            directory = os.path.normpath(absolute + written.replace("$ORIGIN", os.path.realpath(os.path.dirname(center.path))))
            found = self._modules(directory, [center], dependencies, search)
            modules += found
            others = [f"{directory}/{name}" for name in self._node.listdir(directory)]
            others = [path for path in others if ".so" not in os.path.basename(path) and self._node.resolve(path)]
            files += map(self._node.plain_file, others)
            if not found and not others:
                self.notes.append(f"the set {wanted.name} has nothing in {directory}: what {wanted.when} opens there will be missing")
        return ResolvedSet(wanted.name, wanted.private, (wanted.when, *wanted.libraries), tuple(modules), tuple(files), wanted.separable)

    def _simulate(self, paths: Sequence[str], search: loader.Search) -> loader.LinkMap:
        return loader.simulate(_Program.PATH, _Program(self._node, paths), search)

    def _dependencies(self, loaded: loader.LinkMap, known: Iterable[str]) -> Dict[str, HostLibrary]:
        return {
            item.identity: self._node.library(item.name, item.path, item.identity, "dependency")
            for item in loaded.objects
            if item.how != "program" and item.identity not in known and not glibc.is_c_runtime(item.name)
        }


def _c_runtime(node: _Node, site: Site) -> ResolvedProfile:
    """glibc as one set: what belongs to it in the first directory that has a libc.so.6."""
    own = ldcache.lookup(node.cache, "libc.so.6", node.flags, ())
    places = [directory for pattern in site.c_runtime_search for directory in node.expand(pattern)]
    if not site.c_runtime_search:
        places = [os.path.dirname(own.path)] if own is not None else list(node.default_dirs)
    for directory in places:
        if not node.resolve(f"{directory}/libc.so.6"):
            continue
        found: Dict[str, HostLibrary] = {}
        for name in node.listdir(directory):
            path = f"{directory}/{name}"
            real = node.resolve(path) if glibc.is_part_of_glibc(name) else ""
            elf = node.facts(real) if real else None
            # Files are also there under names with their release (libc-2.31.so).
            if elf is not None and elf.soname == name and (elf.elf_class, elf.little_endian, elf.machine) == node.abi:
                found[name] = node.library(name, path, real, "runtime")
        loaders = [name for name in found if name.startswith("ld")]
        missing = [name for name in ("libc.so.6", "libm.so.6") if name not in found] + ["loader"] * (not loaders)
        problems = [f"{directory} has no {name} that fits this node's programs" for name in missing]
        return ResolvedProfile("c-runtime", {}, directory, tuple(found.values()), problems=tuple(problems))
    where = ", ".join(places or site.c_runtime_search) or "the node's own directories"
    return ResolvedProfile("c-runtime", {}, where, (), problems=(f"there is no libc.so.6 in {where}",))


def _without_surplus(elf: ElfFacts, role: str) -> ElfFacts:
    """Only those symbols that a decision compares: an MPI's interface, all of a library that has no versions to compare, what is used
    of PMIx, and whether other processes' memory is read."""
    if role == "plugin":
        exports: Tuple[str, ...] = ()
    elif elf.verdef and role != "runtime":
        exports = tuple(filter(mpi.matters, elf.exports)) if role in ("replace", "add") else ()
    else:
        exports = elf.exports
    imports = tuple(name for name in elf.imports if name.startswith(mpi.PMIX) or name == mpi.COPIES_MEMORY)
    return replace(elf, exports=exports, imports=imports)


def _named_in(path: str) -> str:
    """The library that a file for a vendor-neutral loader names: an OpenCL ICD by its first line, those of EGL and Vulkan in JSON."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_ICD_LIMIT).strip()
        if not text.startswith("{"):
            return text.partition("\n")[0].strip()
        found = json.loads(text)["ICD"]["library_path"]
        return found if isinstance(found, str) else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _gaps(loaded: loader.LinkMap) -> List[str]:
    """Why ld.so of this node would not load these files."""
    gaps = [f"there is no {name} on this node, which {wanting} needs" for name, wanting in loaded.missing]
    gaps += [f"{path}, which {wanting} leads to, cannot be loaded" for path, wanting in loaded.broken]
    gaps += [
        f"{gap.provider} lacks {gap.version}, which {gap.needed_by} needs"
        for gap in loader.unsatisfied(loaded) if gap.fatal and not glibc.is_c_runtime(gap.provider)  # in a container that is the image's
    ]
    return gaps


def _default_dirs() -> Tuple[str, ...]:
    """Where this node's loader looks when its cache has nothing (ld.so(8); Debian's are multiarch)."""
    multiarch = f"{os.uname().machine}-linux-gnu"
    if os.path.isdir(f"/usr/lib/{multiarch}"):
        return (f"/lib/{multiarch}", f"/usr/lib/{multiarch}", "/lib", "/usr/lib")
    return ("/lib64", "/usr/lib64", "/lib", "/usr/lib")


def _version_order(name: str) -> List[Tuple[int, str]]:
    """8.1.9 before 8.1.28."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d{0,18})(\D*)", name)]
