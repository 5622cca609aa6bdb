"""Which of the site's libraries go in, and over which copies of the image. Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.elf import glibc, mpi
from oci_hpc_hooks.model import NOTE, WARNING, Finding, HostLibrary, ImageFacts, ImageFile, Plan, ResolvedProfile


class No(Exception):
    """This profile cannot serve this container: the parts of the finding that says so."""

    def __init__(self, code: str, what: str, remedy: str, who: str, tried: Optional[Plan] = None) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.remedy = remedy
        self.who = who
        self.tried = tried  # what would have been done, where it came that far


@dataclass(frozen=True)
class Choice:
    """What is injected of a profile: libraries for the tree, and the copies of the image that they are bound over.

    ``others`` are copies under the same names that belong to another MPI family and stay. ``runtime`` is the site's C runtime over the
    image's, where it comes too.
    """

    libraries: Tuple[HostLibrary, ...]
    in_place: Tuple[Tuple[HostLibrary, ImageFile], ...]
    others: Tuple[ImageFile, ...]
    findings: Tuple[Finding, ...]
    runtime: Tuple[Tuple[HostLibrary, ImageFile], ...] = ()

    @property
    def names(self) -> Dict[str, HostLibrary]:
        """Every name under which a program may ask for what is injected."""
        return {name: library for library in self.libraries for name in (library.name, *library.replaces)}


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
    ours = mpi.family(library.elf.exports)
    return not ours or mpi.family(copy.elf.exports) == ours


def has_copies(profile: ResolvedProfile, facts: ImageFacts) -> bool:
    """Whether the image has an MPI that this profile could replace."""
    found = copies(profile, facts)
    return any(
        same_family(library, copy)
        for library in profile.libraries if library.role == "replace" for copy in found.get(library.path, ())
    )


def choose(facts: ImageFacts, profile: ResolvedProfile) -> Choice:
    """MPI itself, then the dependencies that the image does not serve better. Raises No."""
    found = copies(profile, facts)
    findings: List[Finding] = []
    in_place: List[Tuple[HostLibrary, ImageFile]] = []
    others: List[ImageFile] = []
    chosen: Dict[str, HostLibrary] = {}
    for index, library in enumerate(profile.libraries):
        theirs = found.get(library.path, [])
        if library.role == "add" and not theirs:
            chosen[library.name] = library
        if library.role != "replace":
            continue
        mine = [copy for copy in theirs if same_family(library, copy)]
        for copy in theirs:
            if copy not in mine:
                others.append(copy)
                findings.append(Finding(NOTE, "other-family", f"{copy.path} of the image is of another MPI family and is left alone"))
        if index == 0 and not mine:
            _refuse_other_family(profile, theirs)
            findings.append(Finding(NOTE, "no-copy", f"the image has no copy of {library.name}: it is added to the loader's cache"))
        if index == 0 or mine:
            chosen[library.name] = library
            in_place += [(library, copy) for copy in mine]
    _add_dependencies(facts, profile, found, chosen, in_place, findings)
    return Choice(tuple(chosen.values()), tuple(in_place), tuple(others), tuple(findings))


def _refuse_other_family(profile: ResolvedProfile, theirs: Sequence[ImageFile]) -> None:
    for copy in theirs:
        raise No("family", f"the image's {copy.path} is {mpi.family(copy.elf.exports) or 'no MPI'} by the symbols that it exports, not "
                 f"{profile.provides['mpi']}", "correct the label, or use an image built for the MPI that the label names", "image author")


def _add_dependencies(facts: ImageFacts, profile: ResolvedProfile, found: Mapping[str, List[ImageFile]],
                      chosen: Dict[str, HostLibrary], in_place: List[Tuple[HostLibrary, ImageFile]], findings: List[Finding]) -> None:
    by_name = {library.name: library for library in profile.libraries}
    queue = [name for library in chosen.values() for name in library.elf.needed]
    kept: Set[str] = set()
    while queue:
        name = queue.pop(0)
        if name in chosen or name in kept or name not in by_name or glibc.is_c_runtime(name):
            continue
        library = by_name[name]
        mine = found.get(library.path, [])
        if any(_whose(library, copy, facts, profile, found) == abi.IMAGE for copy in mine):
            kept.add(name)
            findings.append(Finding(NOTE, "image-kept", f"the image's own {name} serves both sides and is kept"))
            continue
        chosen[name] = library
        in_place += [(library, copy) for copy in mine]
        queue += library.elf.needed


def _whose(library: HostLibrary, copy: ImageFile, facts: ImageFacts, profile: ResolvedProfile,
           found: Mapping[str, List[ImageFile]]) -> str:
    """Whose copy of a dependency that both sides bring is used. Raises No if neither serves both."""
    replaced = {file.path for files in found.values() for file in files}
    users = [file.elf for path, file in facts.files.items() if path not in replaced and library.name in file.elf.needed]
    whose, why = abi.provider(library.elf, copy.elf, users)
    if whose == abi.HOST and not _fits_libc(library, facts) and _serves_site(copy, library.name, profile):
        return abi.IMAGE  # the site's is newer than the image's C library allows, and nothing of the site needs that
    if whose is None:
        raise No("shared-dependency", f"both sides bring {library.name} and neither copy serves both: {why} "
                 f"(site: {library.path}, image: {copy.path})",
                 f"build the site's MPI with a private {library.name}, or take it out of the image", "site admin")
    return whose


def _fits_libc(library: HostLibrary, facts: ImageFacts) -> bool:
    defined = {*facts.libc.elf.verdef} if facts.libc is not None else set()
    return all({*versions} <= defined for file, versions in library.elf.verneed if file == "libc.so.6")


def _serves_site(copy: ImageFile, name: str, profile: ResolvedProfile) -> bool:
    wanted = {version for library in profile.libraries for file, versions in library.elf.verneed if file == name for version in versions}
    return bool(copy.elf.verdef) and wanted <= {*copy.elf.verdef}


def lost_functions(choice: Choice) -> Iterator[Finding]:
    """What only the image's own library has is no reason to refuse: a program that is not on the command line may still want it."""
    for library, copy in choice.in_place:
        # MPIX_ functions are extensions that no ABI promises.
        lost = sorted({name for name in copy.elf.exports if name.startswith(("MPI_", "PMPI_"))} - {*library.elf.exports})
        if lost and library.role == "replace":
            yield Finding(WARNING, "mpi-functions", f"the site's {library.name} lacks {len(lost)} MPI functions that {copy.path} of the "
                          f"image has, {lost[0]} among them; the programs of the command line do not use them",
                          remedy="let the site offer a newer MPI if other programs of the image need them", who="site admin")


def needs_launcher(choice: Choice) -> Iterator[Finding]:
    """Open MPI up to 4 looks for its launcher by the prefix that it was built for or by environment, which no hook can set."""
    if any(library.name.startswith("libopen-rte.so.") for library in choice.libraries):
        yield Finding(NOTE, "launcher-environment", "the site's Open MPI is of a release before 5: its ranks need OPAL_PREFIX, OMPI_* and "
                      "PMIX_* of the mpirun that starts the containers, and a program that nobody has launched needs "
                      "OMPI_MCA_ess_singleton_isolated=1", remedy="give podman run --env for them", who="user")
