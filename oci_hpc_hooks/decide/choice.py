"""Which of the site's libraries go in, and over which copies of the image. Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field, replace
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.decide.layers import host_file
from oci_hpc_hooks.elf import glibc, mpi
from oci_hpc_hooks.model import NOTE, WARNING, ElfFacts, Finding, HostLibrary, ImageFacts, ImageFile, Plan, ResolvedProfile, ResolvedSet


class No(Exception):
    """This profile cannot serve this container: the parts of the finding that says so. ``brief`` is ``what`` among other reasons."""

    def __init__(self, code: str, what: str, remedy: str, who: str, brief: str = "", tried: Optional[Plan] = None) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.remedy = remedy
        self.who = who
        self.brief = brief or what
        self.tried = tried  # what would have been done, where it came that far


@dataclass(frozen=True)
class Choice:
    """What is injected of a profile: libraries for the tree, and the copies of the image that they are bound over.

    ``others`` are copies under the same names that stay: of another MPI family, or a PMIx that the image's launcher needs. ``runtime`` is
    the site's C runtime over the image's, where it comes too.
    """

    libraries: Tuple[HostLibrary, ...]
    in_place: Tuple[Tuple[HostLibrary, ImageFile], ...]
    others: Tuple[ImageFile, ...]
    findings: Tuple[Finding, ...]
    runtime: Tuple[Tuple[HostLibrary, ImageFile], ...] = ()
    sets: Tuple[ResolvedSet, ...] = ()  # those that come from the site
    own: Mapping[str, str] = field(default_factory=dict)  # names that lead to a path of the image, where it has newer libraries for them

    @property
    def names(self) -> Dict[str, HostLibrary]:
        """Every name under which a program may ask for what is injected."""
        libraries = (*self.libraries, *self.modules)
        return {name: library for library in libraries for name in (library.name, *library.replaces)}

    @property
    def modules(self) -> Tuple[HostLibrary, ...]:
        """Modules of the sets: opened by a path where their library looks for them, else by name."""
        return tuple(module for one in self.sets for module in one.modules)


def stack(profile: ResolvedProfile) -> str:
    """What a profile brings, for people: "MPI", "opencl stack"."""
    return "MPI" if "mpi" in profile.provides else f"{next(iter(profile.provides.values()), '')} stack"


def copies(profile: ResolvedProfile, facts: ImageFacts) -> Dict[str, List[ImageFile]]:
    """The image's own copies by the host library (its path) that would take their place."""
    wanted: Dict[str, HostLibrary] = {}
    for library in profile.libraries:
        for name in (library.name, *library.replaces):
            wanted.setdefault(name, library)
    names: Dict[str, Set[str]] = {}
    for path, real in facts.resolved.items():
        if real:
            names.setdefault(real, set()).add(posixpath.basename(path))
    found: Dict[str, List[ImageFile]] = {}
    for real, file in sorted(facts.files.items()):
        known_as = (file.elf.soname, *sorted(names.get(real, ())))
        copied = next((wanted[name] for name in known_as if name in wanted), None)
        if copied is not None and file.elf.elf_type == 3 and abi.kind(file.elf) == abi.kind(copied.elf):
            found.setdefault(copied.path, []).append(file)
    return found


def same_family(library: HostLibrary, copy: ImageFile) -> bool:
    """Whether a copy is of the MPI family of the library; what implements no MPI itself (Fortran bindings) fits by its name."""
    ours = mpi.family(library.elf)
    return not ours or mpi.family(copy.elf) == ours


def modules_alone(profile: ResolvedProfile, facts: ImageFacts) -> Tuple[ResolvedProfile, List[Finding]]:
    """The profile without the libraries of its separable sets: their modules join the image's own, as far as that one defines the
    versions which they need. Each comes or stays by itself. Raises No."""
    if profile.problems:
        return profile, []
    libraries: List[HostLibrary] = []
    findings: List[Finding] = []
    apart = [one for one in profile.sets if one.separable]
    centers = {name for one in apart for name in one.libraries}
    found = copies(profile, facts)
    homes = {library.name: found.get(library.path, []) for library in profile.libraries}
    lacks = ""
    for one in apart:
        theirs = homes.get(one.libraries[0], [])
        if not theirs:
            raise No("no-library", f"the image has no {one.libraries[0]} that modules of the site could be added to",
                     "let the site's take its place", "user")
        for module in one.modules:
            lacking = [(max(missing, key=abi.version_key), copy.path) for file, versions in module.elf.verneed if file == one.libraries[0]
                       for copy in theirs for missing in [{*versions} - {*copy.elf.verdef}] if missing]
            if lacking:
                lacks = (f"{module.name} (the site's {module.path}) needs {lacking[0][0]} of {one.libraries[0]}, which {lacking[0][1]} of "
                         "the image does not define")
                findings.append(Finding(NOTE, "left-out", lacks))
            else:
                libraries.append(replace(module, role="replace", optional=True))
    if not libraries:
        what = lacks or (f"the site's {' and '.join(sorted(centers)) or profile.name} has no modules of its own that could be added to "
                         "another: what it can do is inside of the library")
        raise No("version-missing" if lacks else "no-modules", what, "let the site's take the place of the image's, or keep the image's",
                 "user")
    rest = tuple(library for library in profile.libraries if library.name not in centers)
    sets = tuple(one for one in profile.sets if not one.separable)
    return replace(profile, libraries=(*libraries, *rest), sets=sets, plugins=()), findings


def has_copies(profile: ResolvedProfile, facts: ImageFacts) -> bool:
    """Whether the image has an MPI that this profile could replace."""
    found = copies(profile, facts)
    return any(
        same_family(library, copy)
        for library in profile.libraries if library.role == "replace" for copy in found.get(library.path, ())
    )


def is_used(profile: ResolvedProfile, facts: ImageFacts) -> bool:
    """Whether something in the image needs a library of the profile, or the image has one of them: reason enough to bring the others."""
    names = {*profile.names}
    return (any(names.intersection(file.elf.needed) for file in facts.files.values())
            or any(names.intersection(folder.names) for folder in facts.directories))


def choose(facts: ImageFacts, profile: ResolvedProfile, keep_pmix: bool = True) -> Choice:
    """MPI itself, then the dependencies that the image does not serve better. Raises No.

    The image's PMIx stays for its launcher, which uses internals of it, while the site's MPI finds the site's in the tree; with
    ``keep_pmix`` off it is one more dependency.
    """
    found = copies(profile, facts)
    findings: List[Finding] = []
    in_place: List[Tuple[HostLibrary, ImageFile]] = []
    others: List[ImageFile] = []
    chosen: Dict[str, HostLibrary] = {}
    optional = [library for library in profile.libraries if library.optional]
    for index, library in enumerate(profile.libraries):
        if library.optional:
            continue
        theirs = found.get(library.path, [])
        brought = any(host_file(copy.path) for copy in theirs)
        if library.role == "replace":
            theirs = _without_brought(library, theirs)
        if library.role == "add" and not theirs:
            chosen[library.name] = library
        if library.role != "replace":
            continue
        mine = [copy for copy in theirs if same_family(library, copy)]
        for copy in theirs:
            if copy not in mine:
                others.append(copy)
                findings.append(Finding(NOTE, "other-family", f"{copy.path} of the image is of another MPI family and is left alone"))
        # Bindings for languages come where the image has its own; a driver comes as a whole.
        whole = profile.is_stack
        if index == 0 and not mine and not whole and not brought:
            _refuse_other_family(profile, theirs)
            findings.append(Finding(NOTE, "no-copy", f"the image has no copy of {library.name}: it is added to the loader's cache"))
        if index == 0 or mine or whole:
            chosen[library.name] = library
            in_place += [(library, copy) for copy in mine]
    rules = _Dependencies(facts, profile, found, keep_pmix)
    rules.add([name for library in chosen.values() for name in library.elf.needed], chosen, in_place)
    findings += _take_optional(optional, facts, rules, chosen, in_place)
    findings += [Finding(NOTE, "image-kept", f"the image's own {name} serves both sides and is kept") for name in rules.kept]
    findings += _take_sets(profile, facts, rules, chosen, in_place)
    sets = tuple(one for one in profile.sets if one.libraries[0] in chosen)
    return Choice(tuple(chosen.values()), tuple(in_place), (*others, *rules.staying_copies), tuple(findings), sets=sets)


def _take_optional(libraries: Sequence[HostLibrary], facts: ImageFacts, rules: _Dependencies, chosen: Dict[str, HostLibrary],
                   in_place: List[Tuple[HostLibrary, ImageFile]]) -> Iterator[Finding]:
    """Libraries of a driver that may stay away: each comes with all that it needs, or not at all."""
    for library in libraries:
        theirs = rules.found.get(library.path, [])
        if library.role == "add" and theirs:
            continue
        trial = {**chosen, library.name: library}
        try:
            mine = _without_brought(library, theirs)
            places = [*in_place, *((library, copy) for copy in mine)]
            rules.add(library.elf.needed, trial, places)
            unfit = next((one for name, one in trial.items() if name not in chosen and not _fits_libc(one, facts)), None)
            why = f"{unfit.name} (the site's {unfit.path}) needs a newer glibc than the image's" if unfit is not None else ""
            stacks = next((one for name, one in trial.items() if name not in chosen and one.elf.execstack), None)
            if stacks is not None and abi.refuses_execstack(facts) and not why:
                why = f"{stacks.name} wants an executable stack, and glibc {abi.libc_version(facts)} opens no such library"
        except No as no:
            why = no.what
        if why:
            yield Finding(NOTE, "left-out", f"{library.name} (the site's {library.path}) does not come: {why}")
            continue
        chosen.update(trial)
        in_place[:] = places


def _without_brought(library: HostLibrary, theirs: Sequence[ImageFile]) -> List[ImageFile]:
    """The copies that are the image's. Raises No if an earlier decision has brought another library of that name."""
    for copy in theirs:
        if host_file(copy.path) not in ("", library.real):
            raise _two_of_one(library, copy)
    return [copy for copy in theirs if not host_file(copy.path)]


def _two_of_one(library: HostLibrary, copy: ImageFile) -> No:
    return No("two-profiles", f"{library.name} is wanted from {library.path}, and what this container also asks for brings another one, "
              f"{host_file(copy.path)}", "let one of the two profiles find it where the other does (search in site.json)", "site admin")


def _refuse_other_family(profile: ResolvedProfile, theirs: Sequence[ImageFile]) -> None:
    for copy in theirs:
        raise No("family", f"the image's {copy.path} is {mpi.family(copy.elf) or 'no MPI'} by the symbols that it exports, not "
                 f"{profile.provides['mpi']}", "correct the label, or use an image built for the MPI that the label names", "image author")


class _Dependencies:
    """Which side's copy of each dependency is used. Those of a set come from one side, all of them."""

    def __init__(self, facts: ImageFacts, profile: ResolvedProfile, found: Mapping[str, List[ImageFile]], keep_pmix: bool) -> None:
        self.facts = facts
        self.keep_pmix = keep_pmix
        self.profile = profile
        self.found = found
        self.by_name = {library.name: library for library in profile.libraries}
        self.sets = {name: one for one in profile.sets for name in one.libraries}
        replaced = {file.path for files in found.values() for file in files}
        self.staying = [file for path, file in facts.files.items() if path not in replaced]
        self.kept: List[str] = []  # names under which the image's own serves both sides
        self.staying_copies: List[ImageFile] = []  # those that stay while the site's libraries get theirs

    def add(self, names: Sequence[str], chosen: Dict[str, HostLibrary], in_place: List[Tuple[HostLibrary, ImageFile]]) -> None:
        """Adds what is needed under these names, and in turn, where the site's is used. Raises No."""
        queue = list(names)
        while queue:
            name = queue.pop(0)
            if name in chosen or name in self.kept or name not in self.by_name or glibc.is_c_runtime(name):
                continue
            if self.is_brought(name):
                continue
            if self.profile.is_stack and self.by_name[name].role == "add" and self.copies(name):
                continue  # a neutral loader that the image has
            stays = self.keep_pmix and name.startswith(mpi.PMIX_SONAME)
            if not stays and self.whose(name) == abi.IMAGE:
                self.kept.append(name)
                if name in self.sets or _is_for_all(name, self.facts):
                    continue
                stays = True  # in a folder of its own, where the site's libraries do not look
            library = self.by_name[name]
            chosen[name] = library
            if stays:
                self.staying_copies += self.copies(name)
            else:
                in_place += [(library, copy) for copy in self.copies(name)]
            queue += library.elf.needed
            if name in self.sets:
                queue += filter(self.copies, self.sets[name].libraries)

    def copies(self, name: str) -> List[ImageFile]:
        found = self.found.get(self.by_name[name].path, []) if name in self.by_name else []
        return [copy for copy in found if not host_file(copy.path)]

    def is_brought(self, name: str) -> bool:
        """Whether an earlier decision has brought it. Raises No if that one does not serve here."""
        library = self.by_name[name]
        for copy in self.found.get(library.path, ()):
            if not host_file(copy.path):
                continue
            lacks = {*library.elf.verdef} - {*copy.elf.verdef} or {*library.elf.exports} - {*copy.elf.exports}
            if host_file(copy.path) != library.real and lacks:
                raise _two_of_one(library, copy)
            return True
        return False

    def whose(self, name: str) -> str:
        """Raises No if neither side's copy serves both."""
        one = self.sets.get(name)
        if one is None:
            sides = {self._whose(self.by_name[name], copy, "", ()) for copy in self.copies(name)}
            return abi.IMAGE if abi.IMAGE in sides else abi.HOST
        members = [member for member in one.libraries if member in self.by_name]
        sides = {self._whose(self.by_name[member], copy, one.private, members) for member in members for copy in self.copies(member)}
        lacking = [member for member in members if not self.copies(member)]
        if abi.IMAGE not in sides:
            return abi.HOST
        if abi.HOST in sides or any(member in library.elf.needed for library in self.profile.libraries for member in lacking
                                    if library.name not in members):
            raise No("shared-dependency", f"the libraries {', '.join(members)} must come from one side, and neither the site's nor the "
                     "image's serve both", "update them in the image, or on this node", "image author")
        return abi.IMAGE

    def _whose(self, library: HostLibrary, copy: ImageFile, private: str, members: Sequence[str]) -> str:
        """Whose copy of a dependency that both sides bring is used. Raises No if neither serves both."""
        users = [file.elf for file in self.staying if library.name in file.elf.needed]
        ours, theirs = _public(library.elf, private), _public(copy.elf, private)
        whose, why = abi.provider(ours, theirs, users)
        if whose == abi.HOST and not _fits_libc(library, self.facts) and self._serves_site(theirs, library.name, members):
            return abi.IMAGE  # the site's is newer than the image's C library allows, and nothing of the site needs that
        if whose is None:
            raise No("shared-dependency", f"both sides bring {library.name} and neither copy serves both: {why} "
                     f"(site: {library.path}, image: {copy.path})",
                     f"build the site's {stack(self.profile)} with a private {library.name}, or take it out of the image", "site admin")
        return whose

    def _serves_site(self, theirs: ElfFacts, name: str, members: Sequence[str]) -> bool:
        wanted = {version for library in self.profile.libraries if library.name not in members
                  for file, versions in library.elf.verneed if file == name for version in versions}
        return bool(theirs.verdef) and wanted <= {*theirs.verdef}


def _is_for_all(name: str, facts: ImageFacts) -> bool:
    """Whether ld.so finds a library of the image for whoever asks, without paths of its own."""
    paths = [entry.path for entry in facts.cache.entries if entry.name == name] if facts.cache is not None else []
    paths += [f"{folder}/{name}" for folder in (*facts.library_path, *facts.default_dirs)]
    return any(map(facts.resolved.get, paths))


def _public(elf: ElfFacts, private: str) -> ElfFacts:
    """Without the versions that only files of one build share: these come together, or stay together."""
    return replace(elf, verdef=tuple(version for version in elf.verdef if not private or not version.startswith(private)))


def _take_sets(profile: ResolvedProfile, facts: ImageFacts, rules: _Dependencies, chosen: Dict[str, HostLibrary],
               in_place: List[Tuple[HostLibrary, ImageFile]]) -> Iterator[Finding]:
    """Sets that the site's modules need as well, and what is to be known of those that do not come."""
    for one in profile.sets:
        wanted = [name for plugin in profile.plugins for name in plugin.elf.needed if name in one.libraries]
        users = sorted({plugin.name for plugin in profile.plugins if {*plugin.elf.needed} & {*one.libraries}})
        trial, places = dict(chosen), list(in_place)
        why = ""
        try:
            rules.add(wanted, trial, places)
        except No as no:
            why = no.what
        unfit = [library for name, library in trial.items() if name not in chosen and not _fits_libc(library, facts)]
        if one.libraries[0] in trial and one.libraries[0] not in chosen and not any(_fits_libc(module, facts) for module in one.modules):
            unfit += one.modules
        if unfit and not why:
            why = f"{unfit[0].name} (the site's {unfit[0].path}) needs a newer glibc than the image's"
        if why:
            yield Finding(WARNING, "fabric-set", f"the site's {', '.join(users)} cannot have the {one.name} set, and what it drives is not "
                          f"used: {why}", remedy="use an image with a newer C library, or a newer set", who="image author")
            continue
        chosen.update(trial)
        in_place[:] = places
        if one.libraries[0] in chosen:
            yield Finding(NOTE, "fabric-set", f"the {one.name} set comes from the site: its libraries, modules ({len(one.modules)}) and "
                          f"files of configuration ({len(one.files)})")
            yield from _left_alone(one, rules, chosen)
        elif {*one.libraries} & {*rules.kept}:
            yield from _images_own(one, wanted, rules, facts)


def _left_alone(one: ResolvedSet, rules: _Dependencies, chosen: Mapping[str, HostLibrary]) -> Iterator[Finding]:
    """Files of the image that belong to its own build of a set, and have no counterpart in the site's."""
    for file in rules.staying:
        for name, versions in file.elf.verneed:
            lost = sorted({*versions} - {*chosen[name].elf.verdef}) if name in one.libraries and name in chosen else []
            if lost:
                yield Finding(WARNING, "fabric-set", f"{file.path} of the image needs {lost[-1]} of {name}, which the site's lacks: what "
                              "uses it would not start", remedy="install its counterpart on this node, and scan", who="site admin")


def _images_own(one: ResolvedSet, wanted: Sequence[str], rules: _Dependencies, facts: ImageFacts) -> Iterator[Finding]:
    center = one.libraries[0]
    yield Finding(NOTE, "fabric-set", f"the image's own {center} serves both sides: the {one.name} set stays the image's")
    lacking = [name for name in wanted if not rules.copies(name)]
    if lacking:
        yield Finding(WARNING, "fabric-set", f"the image has {center} and no {lacking[0]}, which modules of the site need: they are not "
                      "used", remedy=f"install {lacking[0]} too", who="image author")
    folders = {posixpath.join(posixpath.dirname(copy.path), posixpath.basename(posixpath.dirname(module.path)))
               for copy in rules.copies(center) for module in one.modules}
    if folders and not any(folder.names for folder in facts.directories if folder.path in folders):
        yield Finding(WARNING, "fabric-set", f"the image has {center} and no modules for it in {sorted(folders)[0]}: the site's devices "
                      "cannot be used through it", remedy="install the providers too (ibverbs-providers, rdma-core)", who="image author")


def _fits_libc(library: HostLibrary, facts: ImageFacts) -> bool:
    defined = {*facts.libc.elf.verdef} if facts.libc is not None else set()
    return all({*versions} <= defined for file, versions in library.elf.verneed if file == "libc.so.6")


def lost_functions(choice: Choice) -> Iterator[Finding]:
    """What only the image's own library has is no reason to refuse: a program that is not on the command line may still want it."""
    for library, copy in choice.in_place:
        # MPIX_ functions are extensions that no ABI promises.
        lost = sorted({name for name in copy.elf.exports if name.startswith(("MPI_", "PMPI_"))} - {*library.elf.exports})
        if lost and library.role == "replace":
            yield Finding(WARNING, "mpi-functions", f"the site's {library.name} lacks {len(lost)} MPI functions that {copy.path} of the "
                          f"image has, {lost[0]} among them; the programs of the command line do not use them",
                          remedy="let the site offer a newer MPI if other programs of the image need them", who="site admin")


def must_fit_launcher(choice: Choice, programs: Sequence[str], keeps_pmix: bool) -> None:
    """Open MPI's launcher of 5 does not serve ranks of 4, nor does any run on another's PMIx. Raises No."""
    program = next((path for path in programs if posixpath.basename(path).startswith(mpi.LAUNCHERS)), "")
    if not program:
        return
    ours = next((library for library in choice.libraries if library.name.startswith("libopen-rte.so.")), None)
    of_5 = any(name.startswith(mpi.OPENMPI_INNER) and not name.endswith(".so.40")
               for library, copy in choice.in_place if library.role == "replace" for name in copy.elf.needed)
    if ours is not None and of_5:
        why = f"which is of release 5, and the site's {ours.path} of one before, whose ranks it does not serve"
    elif not keeps_pmix and any(library.name.startswith(mpi.PMIX_SONAME) for library, _ in choice.in_place):
        why = "and would run on the site's PMIx, since the image's is too old for the site's MPI"
    else:
        return
    raise No("launcher", f"{program} belongs to the image's own Open MPI, {why}",
             "start the MPI program itself as the container's command, under the site's mpirun or srun outside", "user")


def needs_launcher(choice: Choice) -> Iterator[Finding]:
    """Open MPI up to 4 looks for its launcher by the prefix that it was built for or by environment, which no hook can set."""
    if any(library.name.startswith("libopen-rte.so.") for library in choice.libraries):
        yield Finding(NOTE, "launcher-environment", "the site's Open MPI is of a release before 5: its ranks need OPAL_PREFIX, OMPI_* and "
                      "PMIX_* of the mpirun that starts the containers, and a program that nobody has launched needs "
                      "OMPI_MCA_ess_singleton_isolated=1", remedy="give podman run --env for them", who="user")
    for library in choice.libraries:
        maker = mpi.implementation(library.elf)
        if mpi.family(library.elf) == mpi.ABI and maker:
            yield Finding(NOTE, "launcher-implementation", f"the site's {library.name} is {maker}'s: an mpiexec of another "
                          "implementation would start ranks that do not know of each other",
                          remedy=f"start the ranks by a launcher that {maker} understands", who="user")
