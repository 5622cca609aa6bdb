"""The proof: ld.so's search is simulated over the image with the plan laid over it. Pure."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.decide import cpu as processor
from oci_hpc_hooks.decide.choice import Choice, No
from oci_hpc_hooks.decide.layers import HOST as _HOST
from oci_hpc_hooks.decide.layers import host_file
from oci_hpc_hooks.decide.runtime import must_be_openable, must_not_be_coupled, some
from oci_hpc_hooks.elf import hwcaps, loader, mpi
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import NOTE, WARNING, Cpu, ElfFacts, Finding, HostLibrary, ImageFacts, LdCache, ResolvedProfile

PMIX_TOO_OLD = "pmix-too-old"
TRIES_LIMIT = 4 * loader.MAX_TRIES  # for one proof; those of real images make some 10,000


class View:
    """The image as its loader will see it: with the tree (by path in the container), and with host files over the image's copies."""

    def __init__(self, facts: ImageFacts, tree_root: str, tree: Mapping[str, HostLibrary], in_place: Mapping[str, HostLibrary]) -> None:
        self._facts = facts
        self._tree_root = tree_root
        self._tree = tree
        self._in_place = in_place
        self._host = {_HOST + library.real: library.elf for library in (*tree.values(), *in_place.values())}
        self._names = {directory.path: frozenset(directory.names) for directory in facts.directories}
        self._there = {directory.path for directory in facts.directories if directory.inode}
        self._tries = 0
        self.unknown: Set[str] = set()

    def simulate(self, path: str, search: loader.Search, opened: Sequence[str] = ()) -> loader.LinkMap:
        """Raises ImageError, also where all together would cost too much: a hostile image has many programs, and many homes of copies."""
        if self._tries > TRIES_LIMIT:
            raise ImageError(f"the image's loader would try more than {TRIES_LIMIT} paths")
        link_map = loader.simulate(path, self, search, opened)
        self._tries += link_map.tries
        return link_map

    def resolve(self, path: str) -> str:
        if self._tree and path.startswith(self._tree_root + "/"):
            path = posixpath.normpath(path)
            library = self._tree.get(path)
            brought = self._facts.resolved.get(path, "")  # by a decision before this one
            return _HOST + library.real if library else brought if host_file(brought) else ""
        real = self._facts.resolved.get(path)
        if real is None:
            folder, name = posixpath.split(path)
            if folder not in self._names or name in self._names[folder]:
                self.unknown.add(path)
            return ""
        if real in self._in_place:
            return _HOST + self._in_place[real].real
        return real

    def is_directory(self, path: str) -> bool:
        if self._tree and path.startswith(self._tree_root + "/"):
            return any(library.startswith(path + "/") for library in self._tree) or path in self._there
        folder, name = posixpath.split(path)
        if path not in self._names and name in self._names.get(folder, (name,)):
            self.unknown.add(path)
        return path in self._there

    def facts(self, identity: str) -> Optional[ElfFacts]:
        if identity in self._host:
            return self._host[identity]
        file = self._facts.files.get(identity)
        return file.elf if file else None


def searches(facts: ImageFacts, cache: Optional[LdCache], copies: Iterable[str] = (), release: str = "") -> List[loader.Search]:
    """How the image's loader searches with this cache: in the environment of the start, then with each directory that holds a copy in
    front of LD_LIBRARY_PATH, where a script may put it (conda activate, setvars). ``release`` is that of the loader's glibc, where it is
    not that of the facts."""
    plain = loader.Search(library_path=facts.library_path, cache=cache, default_dirs=facts.default_dirs, preload=facts.preload,
                          hwcaps=hwcaps.of_glibc(facts.hwcaps, release or abi.libc_version(facts)), interp=facts.loader)
    homes = sorted({posixpath.dirname(path) for path in copies})
    return [plain, *(replace(plain, library_path=(home, *facts.library_path)) for home in homes)]


def release_of(runtime: Iterable[ElfFacts]) -> str:
    """The glibc release of a C runtime, "" where it has no libc."""
    libc = next((elf for elf in runtime if elf.soname == "libc.so.6"), None)
    return abi.newest(libc.verdef, "GLIBC_")[6:] if libc else ""


def lacks(program: str, facts: ImageFacts, release: str = "") -> frozenset[str]:
    """What the untouched image, whose glibc is of this release, lacks already (names and versions) is not ours to refuse."""
    search = searches(facts, facts.cache, release=release)[0]
    try:
        link_map = loader.simulate(program, View(facts, "", {}, {}), search)
    except ImageError:
        return frozenset()
    lacked = {name for name, _ in (*link_map.missing, *link_map.broken)}
    return frozenset(lacked | {gap.version for gap in loader.unsatisfied(link_map) if gap.fatal})


def lost_calls(link_map: loader.LinkMap, copies: Iterable[ElfFacts]) -> Iterator[Tuple[loader.Loaded, loader.Loaded, str]]:
    """Each file of the image that takes from MPI what the site's lacks, that MPI, and the functions in words. ``copies`` are those of
    the image that the site's libraries take the place of: bindings that stay (C++, Fortran) may take something from inside of them."""
    offered = {name for loaded in link_map.objects for name in loaded.facts.exports}
    host = next((loaded for loaded in link_map.objects if host_file(loaded.identity) and "MPI_Init" in loaded.facts.exports), None)
    if host is None:
        return
    replaced = {name for copy in copies for name in copy.exports if mpi.matters(name)} - offered
    for loaded in link_map.objects:
        lost = sorted(name for name in loaded.facts.imports
                      if name in replaced or (name not in offered and name.startswith((*mpi.STANDARD, mpi.OPENMPI_MARK))))
        if lost and not host_file(loaded.identity):
            yield loaded, host, lost[0] + (f" and {len(lost) - 1} more functions" if len(lost) > 1 else "")


class _Proof:
    """One choice held against one image."""

    def __init__(self, facts: ImageFacts, profile: ResolvedProfile, choice: Choice, cache: LdCache, tree_root: str,
                 cpu: Optional[Cpu]) -> None:
        self.facts = facts
        self.cpu = cpu
        self.profile = profile
        self.choice = choice
        self.tree_root = tree_root
        tree = {tree_root + library.path: library for library in (*choice.libraries, *choice.modules)}
        self.view = View(facts, tree_root, tree, {copy.path: library for library, copy in choice.in_place})
        self.searches = searches(facts, cache, (copy.path for _, copy in (*choice.in_place, *choice.runtime)))
        self.notes: Dict[str, Finding] = {}

    def libraries_load(self) -> None:
        """Everything injected loads, wherever it is found. Raises No."""
        own = [library for library in self.choice.libraries if library.role != "dependency"]
        paths = [self.tree_root + library.path for library in own]
        paths += [copy.path for library, copy in self.choice.in_place if library.role != "dependency"]
        for search in self.searches:
            for path in paths:
                self._must_load(self.view.simulate(path, search), frozenset())

    def sets_load(self) -> Iterator[Finding]:
        """What of the modules of sets does not load: it is passed over by the library that opens it. Raises No if none of a set does."""
        for one in self.choice.sets:
            unfit = []
            for module in one.modules:
                try:
                    self._must_load(self.view.simulate(self.tree_root + module.path, self.searches[0]), frozenset())
                except No as no:
                    unfit.append(no)
                    yield Finding(NOTE, "module-unfit", f"the site's {module.path} does not load in this image: {no.brief}")
            if one.modules and len(unfit) == len(one.modules):
                raise No(unfit[0].code, f"no module of the site's {one.name} set loads in this image: {unfit[0].brief}", unfit[0].remedy,
                         unfit[0].who)

    def loads_ours(self, program: str) -> bool:
        """Whether a program loads MPI, or what else the profile is about, which then is the site's in every case. Raises No if it would be
        another, or would not load."""
        if program in self.facts.unreadable:
            raise ImageError(self.facts.unreadable[program])
        if program in self.facts.foreign:
            raise No("other-loader", f"{program} is started by {self.facts.files[program].elf.interp}, and other programs by "
                     f"{self.facts.loader}, which has another cache and other directories: the site's libraries can be led to from one",
                     "start the MPI program itself as the container's command", "user")
        lacked = lacks(program, self.facts, release_of(copy.elf for _, copy in self.choice.runtime))
        uses = False
        for search in self.searches:
            link_map = self.view.simulate(program, search)
            self._must_load(link_map, lacked)
            processor.must_run(((item.path, item.facts) for item in link_map.objects), self.cpu)
            if self.choice.runtime:
                must_not_be_coupled(((item.identity, item.facts) for item in link_map.objects), self.choice.runtime)
            if not link_map.objects[0].facts.interp:  # a module, which a program opens
                must_be_openable(((item.path, item.facts) for item in link_map.objects), abi.libc_version(self.facts))
            self._must_have_functions(link_map)
            self._must_have_symbols(link_map)
            _must_be_one_build(program, link_map)
            uses = self._takes_ours(program, link_map) or uses
            self._must_open(program, search, lacked, link_map)
            try:
                _must_have_pmix(link_map)
            except No as no:
                if search is self.searches[0]:
                    raise
                self.notes[no.code] = Finding(WARNING, no.code, f"where LD_LIBRARY_PATH names {search.library_path[0]}, {no.what}",
                                              remedy="leave that directory out of LD_LIBRARY_PATH", who="user")
        return uses

    def _must_open(self, program: str, search: loader.Search, lacked: frozenset[str], started: loader.LinkMap) -> None:
        """A driver's libraries are opened by their names, by programs that are not linked to them: that must lead to the site's too, beside
        all that the program has loaded already. Raises No."""
        if "mpi" in self.profile.provides:
            return
        opened = [library.name for library in self.choice.libraries if library.role in ("replace", "add")]
        opened += [name for name, path in self.choice.own.items() if self.facts.files[self.facts.resolved[path]].elf.soname == name]
        link_map = self.view.simulate(program, search, opened)
        self._must_load(link_map, lacked)
        self._takes_ours(program, link_map)
        there = {item.path for item in started.objects}
        must_be_openable(((item.path, item.facts) for item in link_map.objects if item.path not in there), abi.libc_version(self.facts))

    def _takes_ours(self, program: str, link_map: loader.LinkMap) -> bool:
        wanted = self.profile.provides.get("mpi", "")
        names = self.choice.names
        # Of a loader such as libOpenCL, which finds drivers, the image may keep its own.
        kept = {*self.profile.names}
        uses = False
        for loaded in link_map.objects:
            family = mpi.family(loaded.facts)
            if wanted and family not in ("", wanted):
                raise No("family", f"{wanted} is wanted, and {program} loads {loaded.path}, which is {family} by its symbols",
                         "correct the label, or start the program that it means", "image author")
            library = names.get(loaded.name) or names.get(loaded.facts.soname)
            uses = uses or loaded.name in kept
            own = self.choice.own.get(loaded.name, "")
            if own and loaded.identity != self.facts.resolved.get(own):
                raise No("not-taken", f"{program} would load {loaded.path} instead of {own} of the image, which is newer",
                         f"take {loaded.path} out of the image", "image author")
            if library is None or library.role == "dependency":
                continue
            uses = True
            if loaded.identity != _HOST + library.real:
                raise No("not-taken", f"{program} would load {loaded.path} of the image instead of the site's {library.name}",
                         "report this to the project with the image's name: the file should have been replaced", "site admin")
        return uses

    def _must_load(self, link_map: loader.LinkMap, lacked: frozenset[str]) -> None:
        """Step 4: every DT_NEEDED is there and every needed version is defined by whoever provides it. Raises No."""
        loaded = {item.path: item for item in link_map.objects}
        for name, needed_by in link_map.missing:
            if name not in lacked:
                soname = posixpath.basename(name)
                raise No("dependency-missing", f"{_describe(loaded, needed_by)} needs {soname}, which neither the site's profile "
                         f"{self.profile.name} nor the image has", f"add {soname} to the image, or to the profile's search path",
                         "site admin")
        for path, needed_by in link_map.broken:
            if path not in lacked:
                raise No("dependency-broken", f"{_describe(loaded, needed_by)} would find {path}, which cannot be loaded: "
                         f"{self.facts.unreadable.get(self.facts.resolved.get(path, ''), 'it is no shared library')}",
                         f"take {path} out of the image", "image author")
        gaps = [gap for gap in loader.unsatisfied(link_map) if gap.fatal and gap.version not in lacked]
        if gaps:
            self._refuse_version(loaded, gaps)

    def _must_have_functions(self, link_map: loader.LinkMap) -> None:
        """Step 3: what the image's files take from MPI is there: its functions, and what bindings that stay (C++, Fortran) take from
        inside of the image's own library. Raises No.

        With lazy binding a missing function would end the program only when it is called, maybe hours after the start.
        """
        for loaded, host, lost in lost_calls(link_map, (copy.elf for _, copy in self.choice.in_place)):
            raise No("mpi-symbols", f"{loaded.path} uses {lost}, which {host.facts.soname} (the site's {host_file(host.identity)}) does "
                     "not have", "build the program with an MPI that is no newer than the site's, or let the site offer a newer one, with "
                     "C++ and Fortran libraries of its own", "image author")

    def _must_have_symbols(self, link_map: loader.LinkMap) -> None:
        """The same for stacks whose libraries have no versions (UCX): what the image's files take from its own build. Raises No."""
        if not self.profile.is_stack:
            return
        offered = {name for loaded in link_map.objects for name in loaded.facts.exports}
        unversioned = [(library, copy.elf) for library, copy in self.choice.in_place if not copy.elf.verdef]
        for loaded in link_map.objects:
            for library, elf in unversioned if not host_file(loaded.identity) else ():
                lost = sorted({*loaded.facts.imports} & {*elf.exports} - offered) if elf.soname in loaded.facts.needed else []
                if lost:
                    few = lost[0] + (f" and {len(lost) - 1} more functions" if len(lost) > 1 else "")
                    raise No("symbols-missing", f"{loaded.path} uses {few} of {elf.soname}, which the site's {library.path} does not have",
                             f"use an image with the release of {elf.soname} that the site has, or let the site offer the image's",
                             "image author")

    @property
    def _offer(self) -> str:
        return "an MPI" if "mpi" in self.profile.provides else f"{next(iter(self.profile.provides.values()), '')} libraries"

    def _refuse_version(self, loaded: Mapping[str, loader.Loaded], gaps: Sequence[loader.VersionGap]) -> None:
        worst = max(gaps, key=lambda gap: (gap.version.startswith("GLIBC_"), abi.version_key(gap.version)))
        needing = _describe(loaded, worst.needed_by)
        provider = loaded[worst.provider]
        if worst.version.startswith("GLIBC_") and self.facts.libc is not None:
            release = abi.newest((worst.version,), "GLIBC_")[6:]  # GLIBC_ABI_DT_RELR has none
            wanted = f"glibc {release} or newer" if release else "a newer glibc"
            actual = abi.libc_version(self.facts)
            needs = f"{needing} needs {worst.version} of {provider.facts.soname}"
            raise No("glibc-too-old", f"{needs}, and the image's glibc is {actual} ({self.facts.libc.path})",
                     f"rebuild the image on a distribution with {wanted}, or let the site offer {self._offer} built "
                     f"against glibc {actual} or older (variants in site.json), or bring its own C runtime (c_runtime in site.json)",
                     "image author", needs)
        raise No("version-missing", f"{needing} needs {worst.version} of {provider.facts.soname}, which {provider.path} does not define",
                 f"update {provider.facts.soname} in the image", "image author")


def _describe(loaded: Mapping[str, loader.Loaded], path: str) -> str:
    item = loaded.get(path)
    if item is None or not host_file(item.identity):
        return path
    return f"{item.facts.soname} (the site's {host_file(item.identity)})"


def _must_have_pmix(link_map: loader.LinkMap) -> None:
    """The PMIx that is loaded has what the site's MPI uses of it. Raises No."""
    pmix = next((loaded for loaded in link_map.objects if loaded.facts.soname.startswith(mpi.PMIX_SONAME)), None)
    if pmix is None:
        return
    for loaded in link_map.objects:
        lost = sorted({name for name in loaded.facts.imports if name.startswith(mpi.PMIX)} - {*pmix.facts.exports})
        if lost and host_file(loaded.identity):
            raise No(PMIX_TOO_OLD, f"{loaded.facts.soname} (the site's {host_file(loaded.identity)}) uses {lost[0]}, which {pmix.path} "
                     "of the image does not have", "rebuild the image with a newer PMIx", "image author")


def _must_be_one_build(program: str, link_map: loader.LinkMap) -> None:
    """Open MPI's inner libraries serve only what was built with them. Raises No."""
    inner = [loaded for loaded in link_map.objects if loaded.facts.soname.startswith(mpi.OPENMPI_INNER)]
    ours = next((loaded for loaded in inner if host_file(loaded.identity)), None)
    if ours is None:
        return
    for loaded in inner:
        if not host_file(loaded.identity):
            raise No("mixed-build", f"{program} would load both {loaded.path} of the image and {ours.facts.soname} (the site's "
                     f"{host_file(ours.identity)}): two Open MPIs in one process",
                     f"link the program without {loaded.facts.soname}: plain mpicc does not add it", "image author")
    if not any(mpi.family(loaded.facts) for loaded in link_map.objects):
        raise No("launcher", f"{program} belongs to the image's own Open MPI and would run on {ours.facts.soname} (the site's "
                 f"{host_file(ours.identity)}), which is another build", "start the MPI program itself as the container's command, "
                 "under the site's mpirun or srun outside; an Open MPI 5 of the site would serve this launcher too", "user")


def prove(facts: ImageFacts, profile: ResolvedProfile, choice: Choice, cache: LdCache, tree_root: str,
          cpu: Optional[Cpu] = None) -> Tuple[bool, List[Finding]]:
    """Step 7: whether at least one program of the command line loads MPI and each that does loads the site's. Raises No, ImageError.

    False is no refusal: everything injected loads, but what the command line leads to could not be followed.
    """
    proof = _Proof(facts, profile, choice, cache, tree_root, cpu)
    proof.libraries_load()
    findings: List[Finding] = list(proof.sets_load())
    loading = 0
    for program in facts.programs:
        try:
            loading += proof.loads_ours(program)
        except ImageError as error:
            findings.append(Finding(NOTE, "program-unreadable", f"{program}: {error.what}"))
    findings += proof.notes.values()
    unknown = sorted(proof.view.unknown)
    if unknown:
        findings.append(Finding(NOTE, "not-followed", f"the loader may look at {some(unknown)}, which was not looked at"))
    if loading:
        return not unknown, findings
    if facts.entrypoint == "static" and not facts.programs:
        findings.append(Finding(WARNING, "static-program", "the program is linked statically: no library of the site can reach it",
                                remedy="link it dynamically" + (" with MPI" if "mpi" in profile.provides else ""), who="image author"))
        return False, findings
    first = (*choice.libraries, *profile.libraries)[0].name
    findings.append(Finding(
        NOTE, "unproved", f"no program of the command line loads {first} itself (entrypoint: {facts.entrypoint}); "
        "every copy in the image and the loader's cache lead to the site's"))
    return False, [*findings, *(_consumers(proof, facts) if "mpi" in profile.provides else ())]


def _consumers(proof: _Proof, facts: ImageFacts) -> List[Finding]:
    """Whatever uses MPI is checked in place of the program that is not known. One that would fail is no reason to stop the others."""
    good = []
    findings = []
    for path in facts.consumers:
        try:
            if proof.loads_ours(path):
                good.append(path)
        except No as no:
            if no.code == PMIX_TOO_OLD:
                raise  # there is another way
            findings.append(Finding(WARNING, f"consumer-{no.code}", f"{path} would not work: {no.what}", remedy=no.remedy, who=no.who))
        except ImageError as error:
            findings.append(Finding(NOTE, "program-unreadable", f"{path}: {error.what}"))
    if good:
        findings.append(Finding(NOTE, "consumers", f"checked instead: {some(good)} in PATH, libraries and Python packages would load "
                                                   "the site's"))
    elif not findings:
        findings.append(Finding(NOTE, "consumers", "nothing in PATH, libraries and Python packages of the image uses it"))
    return findings
