"""What a container's tree brings: libc, loader cache, programs, and every copy of the libraries that may be injected.

Everything is read through descriptors resolved inside the tree, with a bound on each file, each directory and their number: the tree
is hostile. Nothing is decided here; plan() simulates the image's loader over these facts without touching a file.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
import stat
from dataclasses import dataclass, replace
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

from oci_hpc_hooks.elf import glibc, hwcaps, loader, mpi
from oci_hpc_hooks.errors import HookError, ImageError
from oci_hpc_hooks.inputs import bystanders, jsontext, ldso
from oci_hpc_hooks.inputs.consumers import find as find_consumers
from oci_hpc_hooks.inputs.container import command_words
from oci_hpc_hooks.inputs.tree import Tree
from oci_hpc_hooks.linux.mounts import mount_id
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import (
    Bystanders,
    Container,
    Directory,
    ElfFacts,
    FileId,
    ImageFacts,
    ImageFile,
    LdCache,
    Newer,
    NewerLibrary,
    ResolvedProfile,
)

# For the whole image, beside those of its tree: directories that hold a copy, paths tried.
HOMES_LIMIT = 256
PATHS_LIMIT = 4 * loader.MAX_TRIES  # some seconds; an image with 60 consumers of MPI and a few copies needs 100,000

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # podman's, where the image sets none

#: PT_INTERP of the glibc ABIs (glibc's shlib-versions), looked for where no program of the arguments names one.
LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib64/ld64.so.2", "/lib/ld64.so.1",
           "/lib/ld-linux-riscv64-lp64d.so.1")
#: Existing directories that a tree may be mounted over when the root filesystem is read-only: by the FHS they are empty.
SPARE_DIRECTORIES = ("/mnt", "/media", "/srv", "/opt")


def gather(root: Root, container: Container, profiles: Sequence[ResolvedProfile], node_hwcaps: Sequence[str] = ()) -> ImageFacts:
    """The facts of one container's tree, as far as the given profiles could matter to it on a node of these capabilities
    (:mod:`oci_hpc_hooks.elf.hwcaps`).

    Raises ImageError only for a tree that no loader could make sense of either (a directory without end); a broken file is a fact.
    """
    tree = Tree(root)
    env = dict(item.partition("=")[::2] for item in container.env)
    path_dirs = tuple(posixpath.join("/", container.cwd, folder) for folder in env.get("PATH", DEFAULT_PATH).split(":") if folder)
    entrypoint, programs, static = _programs(tree, container, path_dirs)
    library_path = tuple(folder.rstrip("/") or "/" for folder in re.split("[:;]", env.get("LD_LIBRARY_PATH", "")) if folder)
    preload = (*env.get("LD_PRELOAD", "").replace(":", " ").split(), *ldso.preload_file(root))
    copies = _Copies(profiles)
    own, others, musl = _loaders(tree, programs, copies, library_path, preload, node_hwcaps)
    search, libc = own.search, own.libc
    foreign = {program for other in others for program in other.programs}
    # A launcher with a loader of its own that loads nothing of what may be replaced is of no concern.
    programs = tuple(program for program in programs if program not in foreign or any(program in other.using for other in others))
    loaded = own.loaded
    if copies.runtime:  # another glibc may take the place of this one, and look elsewhere
        _follow(tree, own.programs, replace(search, hwcaps=hwcaps.of_glibc(node_hwcaps, "")), copies)
    started = tuple(tree.loaded)
    library_dirs = [*search.default_dirs, *library_path, *_cache_dirs(search.cache)]
    consumers: Tuple[str, ...] = ()
    if copies.replaced and not _uses(loaded, copies):
        consumers = find_consumers(root, copies.replaced, path_dirs, library_dirs)
        _follow(tree, consumers, search, copies)
        interps = {path: tree.files[path].elf.interp for path in consumers if path in tree.files}
        foreign |= {path for path, interp in interps.items() if interp and tree.resolve(interp) != tree.resolve(own.interp)}
    folders = [*sorted(_homes(loaded)), *library_dirs, *_rpaths(tree, programs)]
    folders += [f"{posixpath.dirname(folder)}/{lib}" for folder in path_dirs for lib in ("lib", "lib64")]
    homes = _look_for_copies(tree, dict.fromkeys(folders), copies)
    homes |= _look_for_copies(tree, sorted(homes.difference(folders)), copies)  # where links lead to
    _follow(tree, sorted(copies.met), search, copies)  # what they need in turn, though no program of the image may load them now
    for home in sorted(homes):
        tree.spend("directories with copies of the MPI", 1, HOMES_LIMIT)
        if copies.runtime:
            tree.directory(f"{home}/gconv")  # modules of glibc
        # A script may put this directory into LD_LIBRARY_PATH.
        _follow(tree, (*programs, *consumers, *sorted(copies.met)), replace(search, library_path=(home, *library_path)), copies)
    if any(posixpath.basename(program).startswith(mpi.ORTERUN) for program in programs):
        _look_for_components(tree, homes)
    if copies.runtime:
        loaders = map(tree.resolve, LOADERS)  # those of programs that are not on the command line; the others have been looked at
        for real in filter(None, loaders):
            tree.facts(real)
    missing = [folder for folder in sorted(copies.set_folders) if tree.directory(folder) is None]
    drop_ins, conf = ldso.drop_ins(root)
    around = Bystanders()
    if libc is not None and copies.runtime_versions - {*libc.elf.verdef}:
        asked = [tree.files[program].elf.execstack for program in programs if program in tree.files]
        allowed = "glibc.rtld.execstack=2" in env.get("GLIBC_TUNABLES", "") or (bool(asked) and all(asked))
        around = bystanders.find(root, path_dirs, library_dirs, started, static, allowed)
    newer = {profile.newer.file: _newer(tree, profile.newer) for profile in profiles if profile.newer is not None}
    for place in sorted(copies.own_paths):
        tree.resolve(place)  # on a read-only root filesystem, only what is there can be covered
    return ImageFacts(
        makeable=() if container.read_only else _makeable(root, missing, copies.made_folders),
        libc=tree.files[libc.path] if libc else None,  # maybe with its symbols by now
        libc_version=own.libc_version,
        loader=own.interp,
        musl=musl,
        default_dirs=search.default_dirs,
        library_path=library_path,
        cache=search.cache,
        cache_path=own.cache_path,
        cache_real=own.cache_real,
        cache_file=own.cache_file,
        programs=programs,
        consumers=consumers,
        entrypoint=entrypoint,
        empty_directories=_empty_directories(root) if container.read_only else (),
        resolved=tree.resolved,
        files=tree.files,
        directories=tuple(folder if folder else Directory(path, 0, 0, ()) for path, folder in tree.directories.items()),
        unreadable=tree.unreadable,
        preload=preload,
        hwcaps=tuple(node_hwcaps),
        foreign=tuple(sorted(foreign.intersection((*programs, *consumers)))),
        drop_ins=drop_ins,
        conf=conf,
        static_programs=static,
        bystanders=around,
        newer=newer,
        missed=root.missed,
    )


class _Copies:
    """The names under which an image may hold what the profiles bring."""

    def __init__(self, profiles: Sequence[ResolvedProfile]) -> None:
        profiles = [offer for profile in profiles for offer in (profile, *profile.variants)]
        self.libraries = [library for profile in profiles for library in profile.libraries]
        self.names: Set[str] = set()
        # What programs are linked to, so that those that use it can be told. A driver is opened by its name.
        self.replaced = {name for profile in profiles if not profile.is_stack for library in profile.libraries
                         if library.role == "replace" for name in (library.name, *library.replaces)}
        self.compared: Set[str] = set()  # symbol by symbol: MPI itself, and what has no versions that could be compared
        for library in self.libraries:
            self.names |= {library.name, *library.replaces}
            if library.role in ("replace", "add") or (library.role == "dependency" and not library.elf.verdef):
                self.compared |= {library.name, *library.replaces}
        self.runtime = any(library.role == "runtime" for library in self.libraries)
        self.runtime_versions = {version for library in self.libraries if library.role == "runtime" and library.name == "libc.so.6"
                                 for version in library.elf.verdef}
        self.stems = {_stem(name) for name in self.names}
        self.asked = self.names | {name for library in self.libraries for name in library.elf.needed}
        self.asked |= {posixpath.basename(path) for path in LOADERS}  # which libc needs
        self.met: Set[str] = set()  # where the image has what the site's libraries need
        folders = {(posixpath.dirname(module.path), posixpath.dirname(library.path))
                   for profile in profiles for module in profile.plugins for library in profile.libraries}
        self.module_folders = {posixpath.relpath(*pair) for pair in folders}
        sets = [group for profile in profiles for group in profile.sets]
        self.asked |= {name for group in sets for module in group.modules for name in module.elf.needed}
        self.asked |= {name for group in sets for name in group.libraries}
        paths = [module.path for group in sets for module in group.modules] + [file.path for group in sets for file in group.files]
        self.own_paths = {file.path for profile in profiles for file in profile.files}
        self.set_folders = {posixpath.dirname(path) for path in (*paths, *self.own_paths)}
        of_stacks = [group for profile in profiles if profile.is_stack for group in profile.sets]
        self.made_folders = {posixpath.dirname(path) for path in self.own_paths}  # with all directories above them
        self.made_folders |= {posixpath.dirname(file.path) for group in of_stacks for file in group.files}
        self.made_folders |= {posixpath.dirname(module.path) for group in of_stacks for module in group.modules}
        # Beside a copy in the image, where that one has its own.
        self.module_folders |= {posixpath.basename(posixpath.dirname(module.path)) for group in sets for module in group.modules}

    def look_at(self, tree: Tree, real: str, name: str) -> Optional[ElfFacts]:
        """The facts of a file found under a name, with its symbols where those are compared; None if it is no copy."""
        elf = tree.facts(real)
        if elf is None or not (name in self.names or elf.soname in self.names):
            return None
        return tree.facts_with_symbols(real) if name in self.compared or elf.soname in self.compared else elf


def _homes(loaded: Iterable[loader.Loaded]) -> Set[str]:
    """The directories of files, as they were found and as they are."""
    return {posixpath.dirname(path) for item in loaded for path in (item.path, item.identity)}


def _follow(tree: Tree, programs: Sequence[str], search: loader.Search, copies: _Copies) -> List[loader.Loaded]:
    """Looks at everything that the loader would for these programs; returns what it loads of what may be replaced."""
    found: List[loader.Loaded] = []
    for program in programs:
        if program in tree.unreadable:  # it would cost as much again
            continue
        try:
            link_map = loader.simulate(program, tree, search)
        except ImageError as error:
            tree.unreadable[program] = error.what
            tree.spend("paths", loader.MAX_TRIES, PATHS_LIMIT)
            continue
        tree.spend("paths", link_map.tries, PATHS_LIMIT)
        tree.loaded.update(loaded.identity for loaded in link_map.objects)
        for loaded in link_map.objects:
            if copies.look_at(tree, loaded.identity, loaded.name) is not None:
                found.append(loaded)
            # What it takes from a library that may be replaced; and whether it is an MPI, of whatever family.
            if copies.compared.intersection(loaded.facts.needed) or loaded.name.startswith("libmpi"):
                tree.facts_with_symbols(loaded.identity)
        if copies.runtime:
            _look_for_coupling(tree, link_map)
    return found


def _look_for_coupling(tree: Tree, link_map: loader.LinkMap) -> None:
    """Reads the symbols of what uses internals of glibc without belonging to it, and those that glibc has for it."""
    glibcs = [item for item in link_map.objects if glibc.is_c_runtime(item.facts.soname)]
    coupled = [item for item in link_map.objects if item not in glibcs and glibc.uses_internals(item.facts.verneed)]
    for item in (*coupled, *glibcs) if coupled else ():
        tree.facts_with_symbols(item.identity)


# ------------------------------------------------------------------------------------------------------------ programs

def _programs(tree: Tree, container: Container, path_dirs: Sequence[str]) -> Tuple[str, Tuple[str, ...], Tuple[str, ...]]:
    """How far the first program could be followed, the ELF programs that the words of the command line lead to, and the static ones."""
    kind = "missing"
    programs: List[str] = []
    static: List[str] = []
    for index, word in enumerate(command_words(container.args)):
        real = _which(tree, word, container.cwd, path_dirs)
        if not real:
            continue
        first = kind == "missing" and (index == 0 or not programs)
        head = tree.head(real)
        if head.startswith(b"#!"):
            if first:
                kind, first = "script", False  # whatever its interpreter is
            interpreter = head[2:].split(b"\n")[0].split()
            real = _which(tree, os.fsdecode(interpreter[0]), "/", ()) if interpreter else ""
        elf = tree.facts(real) if real else None
        if elf is None:
            continue
        if not elf.dynamic or not elf.interp:
            if not (elf.needed or elf.soname):  # no shared object
                static.append(real)
            if first and index == 0 and len(container.args) > 1:
                continue  # catatonit, tini: a static init that starts the rest of the words
            if first:
                kind = "static"
            continue
        if first:
            kind = "elf"
        if real not in programs:
            programs.append(real)
    if kind == "missing" and container.args and _which(tree, container.args[0], container.cwd, path_dirs):
        kind = "static"
    return kind, tuple(programs), tuple(dict.fromkeys(static))


def _which(tree: Tree, word: str, cwd: str, path_dirs: Sequence[str]) -> str:
    if not word or "\0" in word:
        return ""
    if "/" in word:
        return tree.resolve(posixpath.join("/", cwd, word))
    for folder in path_dirs:
        tree.directory(folder)  # remembered: a file that appears there later may shadow the one found now
        real = tree.resolve(f"{folder}/{word}")
        if real:
            return real
    return ""


# ------------------------------------------------------------------------------------------------------------ loader

@dataclass(frozen=True)
class _Loader:
    """A loader of glibc, what is compiled into it, and what that leads to."""

    interp: str  # its path as a program names it, "" if the image has none
    cache_path: str
    cache_real: str
    cache_file: Optional[FileId]
    libc: Optional[ImageFile]
    libc_version: str
    search: loader.Search
    programs: Tuple[str, ...]  # those of the command line that it starts
    using: Tuple[str, ...]  # those of them that load what may be replaced
    loaded: Tuple[loader.Loaded, ...]  # what they load of what the profiles bring


def _loaders(tree: Tree, programs: Sequence[str], copies: _Copies, library_path: Tuple[str, ...], preload: Tuple[str, ...],
             node_hwcaps: Sequence[str]) -> Tuple[_Loader, List[_Loader], str]:
    """The glibc loader that counts, other ones that start programs of the command line, and the path of a musl loader or "".

    A compatibility layer or a store (EESSI, Nix) has a loader of its own beside the distribution's. The one that counts is that of the
    first program which loads what may be replaced: not a launcher's.
    """
    started: Dict[str, List[str]] = {}  # by real path of the loader
    paths: Dict[str, str] = {}
    musl = ""
    named = [(tree.files[program].elf.interp, program) for program in programs if program in tree.files]
    for interp, program in (*named, *((path, "") for path in LOADERS)):
        real = tree.resolve(interp)
        if real and "/ld-musl" in interp:
            musl = musl or interp
        elif real and (program or not started):
            paths.setdefault(real, interp)
            started.setdefault(real, []).extend(filter(None, (program,)))
    lib = tree.directory("/lib")
    for name in lib.names if lib else ():
        if name.startswith("ld-musl-"):
            musl = musl or f"/lib/{name}"
    found = [_loader(tree, paths[real], mine, copies, library_path, preload, node_hwcaps) for real, mine in started.items()]
    found = found or [_loader(tree, "", (), copies, library_path, preload, node_hwcaps)]
    first = next((one for one in found if one.using), found[0])
    return first, [one for one in found if one is not first], musl


def _loader(tree: Tree, interp: str, programs: Sequence[str], copies: _Copies, library_path: Tuple[str, ...], preload: Tuple[str, ...],
            node_hwcaps: Sequence[str]) -> _Loader:
    cache_path, default_dirs = ldso.constants(tree, interp)
    cache_real = tree.real(cache_path)  # not by way of its directory: engines write into /etc at every start
    cache, cache_file = ldso.read_cache(tree, cache_real)
    libc = ldso.libc(tree, cache, default_dirs)
    version = ldso.libc_version(tree, libc)
    search = loader.Search(library_path, cache, default_dirs, hwcaps.of_glibc(node_hwcaps, version), preload)
    loaded = {program: _follow(tree, (program,), search, copies) for program in programs}
    using = tuple(program for program, items in loaded.items() if _uses(items, copies))
    return _Loader(interp, cache_path, cache_real, cache_file, libc, version, search, tuple(programs), using,
                   tuple(item for items in loaded.values() for item in items))


def _uses(loaded: Iterable[loader.Loaded], copies: _Copies) -> bool:
    return any(copies.replaced.intersection((item.name, item.facts.soname)) for item in loaded)


def _cache_dirs(cache: Optional[LdCache]) -> Iterable[str]:
    return dict.fromkeys(posixpath.dirname(entry.path) for entry in cache.entries if entry.path.startswith("/")) if cache else ()


def _rpaths(tree: Tree, programs: Sequence[str]) -> Iterator[str]:
    for program in programs:
        elf = tree.facts(program)
        if elf is not None:
            yield from _from_origin((*elf.rpath, *elf.runpath), posixpath.dirname(program))


def _from_origin(entries: Iterable[str], origin: str) -> Iterator[str]:
    """The directories that search path entries stand for in a file that lies in ``origin``; those with other tokens are left out."""
    for entry in entries:
        folder = entry.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", origin)
        if folder.startswith("/") and "$" not in folder:
            yield folder.rstrip("/") or "/"


# ------------------------------------------------------------------------------------------------------------ copies

def _look_for_copies(tree: Tree, folders: Iterable[str], copies: _Copies) -> Set[str]:
    """Resolves in every directory whatever could be asked for once the libraries are in place, and reads the copies themselves.

    Returns the directories that hold a copy.
    """
    homes: Set[str] = set()
    for folder in folders:
        for place in (folder, *_hwcaps(tree, folder)):
            homes |= _copies_in(tree, place, copies)
    # A file that is bound over the image's copy has that copy's directory as its $ORIGIN.
    paths = {path for library in copies.libraries for path in (*library.elf.rpath, *library.elf.runpath)}
    for home in sorted(homes):
        for folder in _from_origin(sorted(paths), home):
            for place in (folder, *_hwcaps(tree, folder)):
                _copies_in(tree, place, copies)
        for relative in sorted(copies.module_folders):
            if not relative.startswith("."):
                tree.directory(posixpath.join(home, relative))
    return homes


def _hwcaps(tree: Tree, folder: str) -> Iterator[str]:
    """The subdirectories for some processors: which of them ld.so prefers depends on the node and on its release, so all are looked at."""
    queue = [(folder, 0)]
    while queue:
        above, depth = queue.pop()
        for name in sorted(hwcaps.SUBDIRECTORIES) if depth < hwcaps.DEPTH else ():
            if tree.is_directory(f"{above}/{name}"):
                queue.append((f"{above}/{name}", depth + 1))
                yield f"{above}/{name}"


def _copies_in(tree: Tree, folder: str, copies: _Copies) -> Set[str]:
    listing = tree.directory(folder)
    homes: Set[str] = set()
    for name in () if listing is None else sorted(copies.asked) if folder in tree.unlisted else sorted(listing.names):
        if name in copies.asked or _stem(name) in copies.stems or (copies.runtime and glibc.is_c_runtime(name)):
            real = tree.resolve(f"{folder}/{name}")
            if real and name in copies.asked:
                copies.met.add(f"{folder}/{name}")
            if real and copies.look_at(tree, real, name) is not None:
                homes |= {folder, posixpath.dirname(real)}
    return homes


def _look_for_components(tree: Tree, homes: Iterable[str]) -> None:
    """Reads what Open MPI's launcher of 4 opens to reach PMIx: no DT_NEEDED names it, and it uses internals of the image's PMIx."""
    for folder in (f"{home}/{below}" for home in sorted(homes) for below in ("openmpi", "openmpi/lib/openmpi3", "openmpi3")):
        listing = tree.directory(folder)
        for name in sorted(listing.names) if listing is not None else ():
            real = tree.resolve(f"{folder}/{name}") if name.startswith("mca_pmix_") else ""
            if real:
                tree.facts_with_symbols(real)


def _newer(tree: Tree, wanted: Newer) -> Tuple[NewerLibrary, ...]:
    """The libraries of the image that the pattern stands for, one for each file; all else in their directory is looked at too."""
    folder, pattern = posixpath.split(wanted.file)
    listing = tree.directory(folder)
    found: Dict[str, NewerLibrary] = {}
    for name in sorted(listing.names) if listing is not None else ():
        path = f"{folder}/{name}"
        real = tree.resolve(path)
        if real and tree.facts(real) is not None and fnmatch.fnmatchcase(name, pattern):
            found.setdefault(real, NewerLibrary(path, _supported(tree, real, wanted)))
    return tuple(found.values())


def _supported(tree: Tree, real: str, wanted: Newer) -> Optional[Tuple[int, ...]]:
    """What its note says; a note that is none says nothing."""
    try:
        note = tree.note(real, wanted.section, wanted.owner)
        said = jsontext.loads(note, real, len(note)) if note is not None else None
    except (HookError, OSError) as error:
        tree.root.miss(real, error)
        return None
    listed = said.get(wanted.key) if isinstance(said, dict) else None
    whole = isinstance(listed, list) and all(type(one) is int for one in listed)
    return tuple(listed) if isinstance(listed, list) and whole else None


def _stem(soname: str) -> str:
    return soname.partition(".so")[0] + ".so"


def _makeable(root: Root, missing: Iterable[str], deep: Set[str]) -> Tuple[str, ...]:
    """Of paths that are no directories, those where one could be made: nothing is there, and the parent is on the root filesystem. Of those
    in ``deep`` parents may be missing too.

    The parent is not watched: engines write into /etc at every start.
    """
    found = []
    for path in missing:
        parent, there = root.find(posixpath.dirname(path)), root.find(path)
        above = posixpath.dirname(path)
        while parent < 0 and path in deep and above != "/":
            above = posixpath.dirname(above)
            parent = root.find(above)
        try:
            if there < 0 <= parent and stat.S_ISDIR(os.fstat(parent).st_mode) and mount_id(parent) == mount_id(root.fd):
                found.append(path)
        finally:
            for handle in (parent, there):
                if handle >= 0:
                    os.close(handle)
    return tuple(found)


def _empty_directories(root: Root) -> Tuple[str, ...]:
    found = []
    for path in SPARE_DIRECTORIES:
        handle = root.find(path)
        if handle < 0:
            continue
        try:
            if stat.S_ISDIR(os.fstat(handle).st_mode) and mount_id(handle) == mount_id(root.fd):  # a user's volume is not ours to cover
                with os.scandir(f"/proc/self/fd/{handle}") as entries:
                    if next(entries, None) is None:
                        found.append(path)
        finally:
            os.close(handle)
    return tuple(found)
