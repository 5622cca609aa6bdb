"""The decision: what this container gets, how each file arrives, and the proof that its loader will take it.

Pure: values in, a :class:`Plan` out. No file is opened and no privilege is needed, so that every decision can be made again anywhere
from the same facts: in a hook, by ``oci-hpc-hooks check``, and in a test.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.decide.request import AUTO, NOBODY, OVERRIDE
from oci_hpc_hooks.elf import glibc, ldcache, loader, mpi
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import (
    ERROR,
    NOTE,
    NOTHING,
    PROVED,
    REFUSED,
    UNPROVED,
    WARNING,
    Bind,
    CacheEntry,
    Container,
    Directory,
    ElfFacts,
    FileId,
    Finding,
    HostLibrary,
    ImageFacts,
    ImageFile,
    Inventory,
    LdCache,
    Plan,
    Request,
    ResolvedProfile,
    Wish,
)

#: Where the tree appears: in the container's own /dev tmpfs, which every runtime makes afresh and no image can prepare.
TREE_IN_DEV = "/dev/.oci-hpc"
TREE_IN_ROOTFS = "/.oci-hpc"

_HOST = "host:"  # marks the identity of a host file in the simulated tree; image paths start with "/"


class _No(Exception):
    """This profile cannot serve this container."""

    def __init__(self, code: str, what: str, remedy: str, who: str) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.remedy = remedy
        self.who = who


def candidates(request: Request, inventory: Inventory) -> Tuple[ResolvedProfile, ...]:
    """The profiles that could answer the request, in the site's order of preference."""
    if request.mpi is None or request.mpi.value == NOBODY:
        return ()
    family = request.mpi.value
    offers = [profile for profile in inventory.profiles if profile.provides.get("mpi")]
    return tuple(profile for profile in offers if family in (AUTO, profile.provides["mpi"]))


def plan(container: Container, request: Request, inventory: Inventory, facts: ImageFacts) -> Plan:
    """What is done for this container. ``facts`` were gathered for :func:`candidates` of the same request and inventory."""
    wish = request.mpi
    findings = [*request.findings, *_claims(request, facts)]
    if wish is None or wish.value == NOBODY:
        return Plan(NOTHING, tuple(findings))
    possible = candidates(request, inventory)
    if wish.value == AUTO:
        possible = tuple(profile for profile in possible if _has_copies(profile, facts))
        if not possible:
            note = Finding(NOTE, "nothing-to-replace", "the image has no MPI that this site could replace", wish.origin)
            return Plan(NOTHING, (*findings, note))
    refusals: List[_No] = []
    for profile in possible:
        try:
            made = _plan_profile(container, inventory, facts, profile)
        except _No as no:
            refusals.append(no)
            continue
        findings += [replace(finding, origin=finding.origin or wish.origin) for finding in made.findings]
        if made.verdict == UNPROVED and inventory.site.unproved == "refuse":
            return _refuse(wish, inventory, findings, _No(
                "unproved", "it cannot be proved before the start that the program would load the site's MPI, and this site refuses such",
                "start the MPI program itself, not through a script", "user"))
        return replace(made, findings=tuple(findings))
    if not refusals:
        offered = ", ".join(sorted({profile.provides["mpi"] for profile in inventory.profiles if "mpi" in profile.provides}))
        refusals = [_No("no-profile", f"{wish.value} is wanted; this site offers {offered or 'no MPI'}",
                        f"use an image built for {offered}" if offered else "add a profile and run oci-hpc-hooks scan",
                        "user" if offered else "site admin")]
    return _refuse(wish, inventory, findings, *refusals)


def _refuse(wish: Wish, inventory: Inventory, findings: Sequence[Finding], *refusals: _No) -> Plan:
    """Only an explicit wish is ever refused; a default or auto that does not fit is skipped with a note."""
    run_without = not wish.explicit or inventory.site.on_refusal == "run-without"
    found = [
        Finding(NOTE if run_without else ERROR, no.code, no.what, wish.origin,
                no.remedy + f"; to start without injection give {OVERRIDE}", no.who)
        for no in refusals
    ]
    return Plan(NOTHING if run_without else REFUSED, (*findings, *found))


def _claims(request: Request, facts: ImageFacts) -> Iterator[Finding]:
    """Labels are claims; what the ELF files say counts, and a contradiction is told."""
    if request.glibc is not None and facts.libc is not None:
        actual = abi.libc_version(facts.libc.elf)
        if actual and request.glibc.value.split(".")[:2] != actual.split(".")[:2]:
            yield Finding(WARNING, "label-contradicted", f"the image says that its glibc is {request.glibc.value}, and its "
                          f"{facts.libc.path} is {actual}", request.glibc.origin, f"set the label to {actual}", "image author")


# ---------------------------------------------------------------------------------------------------------------- copies

def _wanted(profile: ResolvedProfile) -> Dict[str, HostLibrary]:
    """Every name under which an image may hold what the profile brings."""
    names: Dict[str, HostLibrary] = {}
    for library in profile.libraries:
        for name in (library.name, *library.replaces):
            names.setdefault(name, library)
    return names


def _copies(profile: ResolvedProfile, facts: ImageFacts) -> Dict[str, List[ImageFile]]:
    """The image's own copies by the host library (its path) that would take their place."""
    wanted = _wanted(profile)
    names: Dict[str, Set[str]] = {}
    for path, real in facts.resolved.items():
        if real:
            names.setdefault(real, set()).add(posixpath.basename(path))
    found: Dict[str, List[ImageFile]] = {}
    for real, file in sorted(facts.files.items()):
        known_as = (file.elf.soname, *sorted(names.get(real, ())))
        library = next((wanted[name] for name in known_as if name in wanted), None)
        if library is not None and file.elf.elf_type == 3 and abi.kind(file.elf) == abi.kind(library.elf):
            found.setdefault(library.path, []).append(file)
    return found


def _same_family(library: HostLibrary, copy: ImageFile) -> bool:
    ours = mpi.family(library.elf.exports)
    return not ours or mpi.family(copy.elf.exports) == ours


def _has_copies(profile: ResolvedProfile, facts: ImageFacts) -> bool:
    copies = _copies(profile, facts)
    return any(
        _same_family(library, copy)
        for library in profile.libraries if library.role == "replace" for copy in copies.get(library.path, ())
    )


# ---------------------------------------------------------------------------------------------------------------- one profile

@dataclass(frozen=True)
class _Choice:
    """What is injected of a profile: libraries for the tree, and which copies of the image they are bound over."""

    libraries: Tuple[HostLibrary, ...]
    in_place: Tuple[Tuple[HostLibrary, ImageFile], ...]
    findings: Tuple[Finding, ...]


def _plan_profile(container: Container, inventory: Inventory, facts: ImageFacts, profile: ResolvedProfile) -> Plan:
    """The plan for one profile. Raises _No."""
    if profile.problems:
        raise _No("profile-unavailable", f"profile {profile.name} is not available on this node: {profile.problems[0]}",
                  f"mend what {profile.source or profile.name} names and run oci-hpc-hooks scan", "site admin")
    _gates(facts, profile)
    choice = _choose(facts, profile)
    tree_root, tree_make = _tree_place(container, facts)
    tree = {_in_tree(tree_root, library.path): library for library in choice.libraries}
    cache = _merged_cache(facts, choice, tree_root)
    view = _View(facts, tree_root, tree, {copy.path: library for library, copy in choice.in_place})
    findings = [*choice.findings]
    proved = _prove(facts, profile, choice, view, cache, tree_root, findings)
    findings += _lost_functions(choice)
    binds, over_directories = _plugins(inventory, profile, choice, facts, findings)
    if facts.cache is None and facts.cache_file is not None:
        findings.append(Finding(NOTE, "cache-unreadable", f"{facts.cache_path} of the image is no loader cache and is replaced: "
                                f"{facts.unreadable.get(facts.cache_real, 'it cannot be read')}"))
    return Plan(
        verdict=PROVED if proved else UNPROVED,
        findings=tuple(findings),
        profile=profile.name,
        tree=(*(Bind(library.real, library.file, library.path.lstrip("/"), _why(library, profile)) for library in choice.libraries),
              *binds),
        in_place=(*(Bind(library.real, library.file, copy.path, f"stands in for the image's {copy.elf.soname or copy.path}", copy.file)
                    for library, copy in choice.in_place), *over_directories),
        cache_target=facts.cache_path,
        cache_over=facts.cache_file,
        cache=cache,
        tree_root=tree_root,
        tree_make=tree_make,
    )


def _why(library: HostLibrary, profile: ResolvedProfile) -> str:
    return f"{library.role} of profile {profile.name}"


def _gates(facts: ImageFacts, profile: ResolvedProfile) -> None:
    """Step 1 of the ladder: can the image run glibc libraries of this machine at all?"""
    if facts.libc is None or not facts.loader:
        if facts.musl:
            raise _No("musl", f"the image is built on musl ({facts.musl}), and the site's MPI needs glibc",
                      "use an image built on glibc (Debian, Ubuntu, Rocky, SUSE …)", "image author")
        what = "the image has no glibc (no dynamic loader and libc.so.6)"
        if facts.entrypoint == "static":
            what += ": its program is static, and no library can be given to it"
        raise _No("no-glibc", what, "link the program dynamically, in an image with glibc", "image author")
    for library in profile.libraries[:1]:
        if abi.kind(library.elf) != abi.kind(facts.libc.elf):
            raise _No("machine", f"the image is {abi.describe_kind(facts.libc.elf)}, the site's {library.name} "
                      f"{abi.describe_kind(library.elf)}", "pull the image for this machine's architecture", "user")


def _choose(facts: ImageFacts, profile: ResolvedProfile) -> _Choice:
    """Which libraries go in, and over which copies: MPI itself, then the dependencies that the image does not serve better."""
    copies = _copies(profile, facts)
    by_name = {library.name: library for library in profile.libraries}
    findings: List[Finding] = []
    in_place: List[Tuple[HostLibrary, ImageFile]] = []
    chosen: Dict[str, HostLibrary] = {}
    first = True
    for library in profile.libraries:
        if library.role == "dependency":
            continue
        mine = []
        for copy in copies.get(library.path, ()):
            if _same_family(library, copy):
                mine.append(copy)
            else:
                findings.append(Finding(NOTE, "other-family", f"{copy.path} of the image is of another MPI family and is left alone"))
        if mine or first or (library.role == "add" and library.path not in copies):
            chosen[library.name] = library
            in_place += [(library, copy) for copy in mine]
        if first and not mine:
            findings.append(Finding(NOTE, "no-copy", f"the image has no copy of {library.name}: it is added to the loader's cache"))
        first = False
    queue = [name for library in chosen.values() for name in library.elf.needed]
    kept: Set[str] = set()
    while queue:
        name = queue.pop(0)
        library_or_none = by_name.get(name)
        if name in chosen or name in kept or library_or_none is None or glibc.is_c_runtime(name):
            continue
        library = library_or_none
        mine = copies.get(library.path, [])
        if any(_decide_dependency(library, copy, facts, copies) == abi.IMAGE for copy in mine):
            kept.add(name)
            findings.append(Finding(NOTE, "image-newer", f"the image's own {name} serves both sides and is kept"))
            continue
        chosen[name] = library
        in_place += [(library, copy) for copy in mine]
        queue += library.elf.needed
    return _Choice(tuple(chosen.values()), tuple(in_place), tuple(findings))


def _decide_dependency(library: HostLibrary, copy: ImageFile, facts: ImageFacts, copies: Mapping[str, List[ImageFile]]) -> str:
    replaced = {file.path for files in copies.values() for file in files}
    users = [file.elf for path, file in facts.files.items() if path not in replaced and library.name in file.elf.needed]
    whose, why = abi.provider(library.elf, copy.elf, users)
    if whose is None:
        raise _No("shared-dependency", f"both sides bring {library.name} and neither copy serves both: {why} "
                  f"(site: {library.path}, image: {copy.path})",
                  f"build the site's MPI with a private {library.name}, or take it out of the image", "site admin")
    return whose


# ---------------------------------------------------------------------------------------------------------------- arrival

def _tree_place(container: Container, facts: ImageFacts) -> Tuple[str, str]:
    for mount in container.mounts:
        if posixpath.normpath(mount.destination) == "/dev" and mount.type == "tmpfs":
            return TREE_IN_DEV, "dev"
    if not container.read_only:
        return TREE_IN_ROOTFS, "create"
    if facts.empty_directories:
        return facts.empty_directories[0], ""
    raise _No("no-place", "the root filesystem is read-only, the container has no /dev of its own, and the image has no empty "
              "directory that the site's files could be mounted over", "add an empty directory /mnt to the image", "image author")


def _in_tree(tree_root: str, path: str) -> str:
    return tree_root + path


def _merged_cache(facts: ImageFacts, choice: _Choice, tree_root: str) -> LdCache:
    """The image's cache with an entry for every name of what is injected; they lead into the tree, where ``$ORIGIN`` is right."""
    cache = facts.cache or LdCache(())
    additions = []
    for library in choice.libraries:
        flags = ldcache.entry_flags(cache, library.elf.machine, library.elf.elf_class)
        additions += [CacheEntry(name, _in_tree(tree_root, library.path), flags) for name in (library.name, *library.replaces)]
    return ldcache.merge(cache, additions)


def _plugins(inventory: Inventory, profile: ResolvedProfile, choice: _Choice, facts: ImageFacts,
             findings: List[Finding]) -> Tuple[List[Bind], List[Bind]]:
    """Directories of modules: in the tree at their own place, and over the image's where a library that looks there is bound in place.

    Host UCX that loads the image's UCX modules crashes; so the two travel together.
    """
    watched = {item.path: item.file for item in inventory.rests_on}
    directories = {directory.path: directory for directory in facts.directories}
    in_tree: List[Bind] = []
    in_place: Dict[str, Bind] = {}
    for folder in sorted({posixpath.dirname(plugin.path) for plugin in profile.plugins}):
        known = watched.get(folder)
        if known is None:
            continue
        file = replace(known, size=-1)
        in_tree.append(Bind(folder, file, folder.lstrip("/"), f"modules of profile {profile.name}"))
        for library, copy in choice.in_place:
            relative = posixpath.relpath(folder, posixpath.dirname(library.path))
            if relative.startswith(".."):
                continue
            target = posixpath.join(posixpath.dirname(copy.path), relative)
            theirs = directories.get(target)
            if theirs is None or not theirs.inode:
                continue
            if target not in in_place:
                findings.append(Finding(NOTE, "modules", f"{target} of the image is covered by the site's {folder}: "
                                                         "modules and libraries come as one set"))
            in_place[target] = Bind(folder, file, target, "modules go with their libraries", _directory_id(theirs))
    return in_tree, list(in_place.values())


def _directory_id(directory: Directory) -> FileId:
    return FileId(directory.inode, -1, directory.mtime_ns)  # the size of a directory says nothing; -1 tells that it is one


# ---------------------------------------------------------------------------------------------------------------- proof

class _View:
    """The image as its loader will see it: with the tree, and with host files over the image's copies."""

    def __init__(self, facts: ImageFacts, tree_root: str, tree: Mapping[str, HostLibrary], in_place: Mapping[str, HostLibrary]) -> None:
        self._facts = facts
        self._tree_root = tree_root
        self._tree = tree
        self._in_place = in_place
        self._host = {_HOST + library.real: library.elf for library in (*tree.values(), *in_place.values())}
        self._names = {directory.path: frozenset(directory.names) for directory in facts.directories}
        self.unknown: Set[str] = set()

    def resolve(self, path: str) -> str:
        if path.startswith(self._tree_root + "/"):
            library = self._tree.get(posixpath.normpath(path))
            return _HOST + library.real if library else ""
        real = self._facts.resolved.get(path)
        if real is None:
            folder, name = posixpath.split(path)
            if folder not in self._names or name in self._names[folder]:
                self.unknown.add(path)
            return ""
        if real in self._in_place:
            return _HOST + self._in_place[real].real
        return real

    def facts(self, identity: str) -> Optional[ElfFacts]:
        if identity.startswith(_HOST):
            return self._host.get(identity)
        file = self._facts.files.get(identity)
        return file.elf if file else None


def _prove(facts: ImageFacts, profile: ResolvedProfile, choice: _Choice, view: _View, cache: LdCache, tree_root: str,
           findings: List[Finding]) -> bool:
    """Step 7: simulates the loader for what is injected and for the programs. Raises _No where something would not load.

    True if at least one program of the command line loads MPI, and every one that does loads the site's, also when a script later
    puts a directory with the image's own copy into LD_LIBRARY_PATH.
    """
    plain = loader.Search(library_path=facts.library_path, cache=cache, default_dirs=facts.default_dirs)
    homes = sorted({posixpath.dirname(copy.path) for _, copy in choice.in_place})
    searches = [plain, *(replace(plain, library_path=(home, *facts.library_path)) for home in homes)]
    names = {name: library for library in choice.libraries for name in (library.name, *library.replaces)}
    roots = [_in_tree(tree_root, library.path) for library in choice.libraries if library.role != "dependency"]
    for search in searches:
        for path in (*roots, *(copy.path for library, copy in choice.in_place if library.role != "dependency")):
            _must_load(loader.simulate(path, view, search), facts, profile, frozenset())
    before = _Before(facts)
    loading = 0
    for program in facts.programs:
        lacked = before.lacks(program, plain)
        uses = False
        for search in searches:
            try:
                link_map = loader.simulate(program, view, search)
            except ImageError as error:
                findings.append(Finding(NOTE, "program-unreadable", f"{program}: {error.what}"))
                break
            _must_load(link_map, facts, profile, lacked)
            _must_have_functions(link_map)
            for loaded in link_map.objects:
                library = names.get(loaded.name) or names.get(loaded.facts.soname)
                if library is None or library.role == "dependency":
                    continue
                uses = True
                if loaded.identity != _HOST + library.real:
                    raise _No("not-taken", f"{program} would load {loaded.path} of the image instead of the site's {library.name}",
                              "report this to the project with the image's name: the file should have been replaced", "site admin")
        loading += uses
    for path in sorted(view.unknown):
        findings.append(Finding(NOTE, "not-followed", f"the loader may look at {path}, which was not looked at"))
    if loading:
        return not view.unknown
    if facts.entrypoint == "static" and not facts.programs:
        findings.append(Finding(WARNING, "static-program", "the program is linked statically: no library of the site can reach it",
                                remedy="link it dynamically with MPI", who="image author"))
        return False
    findings.append(Finding(
        NOTE, "unproved", f"no program of the command line loads {choice.libraries[0].name} itself (entrypoint: {facts.entrypoint}); "
        "every copy in the image and the loader's cache lead to the site's"))
    return False


class _Before:
    """What the untouched image lacks already: not ours to refuse."""

    def __init__(self, facts: ImageFacts) -> None:
        self._facts = facts
        self._view = _View(facts, TREE_IN_DEV, {}, {})

    def lacks(self, program: str, search: loader.Search) -> frozenset[str]:
        try:
            link_map = loader.simulate(program, self._view, replace(search, cache=self._facts.cache))
        except ImageError:
            return frozenset()
        return frozenset({name for name, _ in link_map.missing} | {gap.version for gap in loader.unsatisfied(link_map) if gap.fatal})


def _must_load(link_map: loader.LinkMap, facts: ImageFacts, profile: ResolvedProfile, lacked: frozenset[str]) -> None:
    """Step 4: every DT_NEEDED is there and every needed version is defined by whoever provides it. Raises _No."""
    wanting = {loaded.path: loaded for loaded in link_map.objects}
    for name, needed_by in (*link_map.missing, *link_map.broken):
        if name in lacked:
            continue
        raise _No("dependency-missing", f"{_name(wanting, needed_by)} needs {posixpath.basename(name)}, which neither the site's profile "
                  f"{profile.name} nor the image has", f"add {posixpath.basename(name)} to the image, or to the profile's search path",
                  "site admin")
    gaps = [gap for gap in loader.unsatisfied(link_map) if gap.fatal and gap.version not in lacked]
    if not gaps:
        return
    worst = max(gaps, key=lambda gap: (gap.version.startswith("GLIBC_"), abi.version_key(gap.version)))
    needing = wanting[worst.needed_by]
    provider = wanting[worst.provider]
    source = f" (the site's {needing.identity[len(_HOST):]})" if needing.identity.startswith(_HOST) else ""
    if abi.newest((worst.version,), "GLIBC_") and facts.libc is not None:
        actual = abi.libc_version(facts.libc.elf)
        wanted = worst.version.partition("_")[2]
        raise _No("glibc-too-old", f"{needing.facts.soname or needing.path}{source} needs {worst.version} of "
                  f"{provider.facts.soname}, and the image's glibc is {actual} ({facts.libc.path})",
                  f"rebuild the image on a distribution with glibc {wanted} or newer, or let the site offer an MPI built against glibc "
                  f"{actual} or older", "image author")
    raise _No("version-missing", f"{needing.facts.soname or needing.path}{source} needs {worst.version} of {provider.facts.soname}, "
              f"which {provider.path} does not define", f"update {provider.facts.soname} in the image", "image author")


def _must_have_functions(link_map: loader.LinkMap) -> None:
    """Step 3: what the image's files call of MPI is there. Raises _No.

    With lazy binding a missing function would end the program only when it is called, maybe hours after the start.
    """
    offered = {name for loaded in link_map.objects for name in loaded.facts.exports}
    host = next((loaded for loaded in link_map.objects if loaded.identity.startswith(_HOST) and "MPI_Init" in loaded.facts.exports), None)
    if host is None:
        return
    for loaded in link_map.objects:
        lost = sorted(name for name in loaded.facts.imports if name.startswith(mpi.STANDARD) and name not in offered)
        if lost and not loaded.identity.startswith(_HOST):
            more = f" and {len(lost) - 1} more functions" if len(lost) > 1 else ""
            raise _No("mpi-symbols", f"{loaded.path} uses {lost[0]}{more}, which {host.facts.soname} (the site's "
                      f"{host.identity[len(_HOST):]}) does not have",
                      "build the program with an MPI that is no newer than the site's, or let the site offer a newer one", "image author")


def _lost_functions(choice: _Choice) -> Iterator[Finding]:
    """What only the image's own library has is no reason to refuse: a program that is not on the command line may still want it."""
    for library, copy in choice.in_place:
        # MPIX_ functions are extensions that no ABI promises.
        lost = sorted({name for name in copy.elf.exports if name.startswith(("MPI_", "PMPI_"))} - {*library.elf.exports})
        if lost and library.role != "dependency":
            yield Finding(WARNING, "mpi-functions", f"the site's {library.name} lacks {len(lost)} MPI functions that {copy.path} of the "
                          f"image has, {lost[0]} among them; the programs of the command line do not use them",
                          remedy="let the site offer a newer MPI if other programs of the image need them", who="site admin")


def _name(wanting: Mapping[str, loader.Loaded], path: str) -> str:
    loaded = wanting.get(path)
    if loaded is None:
        return path
    if loaded.identity.startswith(_HOST):
        return f"{loaded.facts.soname} (the site's {loaded.identity[len(_HOST):]})"
    return path
