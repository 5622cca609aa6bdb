"""What holds of every plan, whatever the image and the node. Random ones are drawn, with all that makes decisions hard: several copies
in several homes, RPATH and RUNPATH, caches with entries of another class, versions that one side has and the other has not, programs of
several families, several profiles, a C runtime.

``OCI_HPC_HOOKS_EXAMPLES=20000`` looks at so many of each, at random, where otherwise a few that are always the same are looked at.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import random
from collections import Counter
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.decide import plan as decide_plan
from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.model import (
    NOTHING,
    PROVED,
    REFUSED,
    CacheEntry,
    Container,
    Directory,
    ElfFacts,
    FileId,
    HostLibrary,
    ImageFacts,
    ImageFile,
    Inventory,
    LdCache,
    Plan,
    Request,
    ResolvedProfile,
    Site,
    Wish,
)
from tests.unit.decide import world
from tests.unit.decide.world import DEFAULT_DIRS, DEV, LIBC, LOADER, MPICH, OPENMPI, Image, elf, glibc_versions, host, profile

EXAMPLES = int(os.environ.get("OCI_HPC_HOOKS_EXAMPLES", "0"))
many = settings(max_examples=EXAMPLES or 50, derandomize=not EXAMPLES, database=None, deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=tuple(Phase) if EXAMPLES else (Phase.explicit, Phase.generate))  # making an example smaller takes minutes

FAMILIES: Mapping[str, Tuple[str, Tuple[str, ...], Tuple[str, ...]]] = {  # soname, exports, other sonames that it stands in for
    "mpich": ("libmpi.so.12", (*MPICH, "MPI_Win_create_c"), ("libmpich.so.12",)),
    "openmpi": ("libmpi.so.40", (*OPENMPI, "MPI_Win_create_c"), ()),
}
#: Shared dependencies: the versions that they define, oldest first; none: libraries without versions.
DEPENDENCIES: Mapping[str, Tuple[str, ...]] = {
    "libfabric.so.1": ("FABRIC_1.0", "FABRIC_1.1", "FABRIC_1.2"),
    "libstdc++.so.6": ("GLIBCXX_3.4", "GLIBCXX_3.4.9", "GLIBCXX_3.4.30"),
    "libz.so.1": ("ZLIB_1.2.0",),
    "libhwloc.so.15": (),
    "libucp.so.0": (),
}
FOLDERS = ("/usr/lib64", "/usr/lib", "/opt/a/lib", "/opt/b/lib", "/opt/conda/lib", "/opt/b/lib/glibc-hwcaps/x86-64-v3", "/usr/lib64/tls")
HOMES = ("/opt/site/lib", "/opt/vendor/lib64")
PATHS = ("", "", "$ORIGIN", "$ORIGIN/../lib", "/opt/a/lib", "/opt/b/lib:/opt/conda/lib", "/usr/lib64", "/nowhere")
APP = "/usr/bin/app"
World = Tuple[Container, Request, Inventory, ImageFacts]


# ---------------------------------------------------------------------------------------------------------------- worlds

def mostly(draw: st.DrawFn) -> bool:
    return draw(st.sampled_from([True] * 7 + [False]))


@st.composite
def dependencies(draw: st.DrawFn, name: str, newest_libc: int, levels: Mapping[str, int]) -> ElfFacts:
    """One build of a library that may be on both sides. ``levels``: how many versions those define that it was built with."""
    needs = {"libc.so.6": [f"GLIBC_2.{draw(st.integers(17, newest_libc))}"]}
    needed = draw(st.lists(st.sampled_from(sorted(levels)), max_size=2, unique=True)) if levels else []
    return elf(name, needed=[*(other for other in needed if other != name), "libc.so.6"],
               verneed={**needs, **_versions(draw, needed, levels)},
               verdef=DEPENDENCIES[name][:levels.get(name, 1)], exports=draw(st.sampled_from([("f",), ("f", "g"), ("f", "g"), ("g", "h")])),
               runpath=draw(st.sampled_from(PATHS)))


def _versions(draw: st.DrawFn, needed: Sequence[str], levels: Mapping[str, int]) -> Dict[str, List[str]]:
    """Now and then one that is newer than what is there."""
    found: Dict[str, List[str]] = {}
    for name in needed:
        if draw(st.booleans()) and DEPENDENCIES[name]:
            found[name] = [draw(st.sampled_from(DEPENDENCIES[name][:levels[name]] if mostly(draw) else DEPENDENCIES[name]))]
    return found


@st.composite
def mpis(draw: st.DrawFn, family: str, newest_libc: int, levels: Mapping[str, int]) -> ElfFacts:
    soname, exports, _ = FAMILIES[family]
    needed = draw(st.lists(st.sampled_from(sorted(levels)), max_size=3, unique=True)) if levels else []
    needs = {"libc.so.6": [f"GLIBC_2.{draw(st.integers(17, newest_libc))}"], **_versions(draw, needed, levels)}
    rpath, runpath = draw(st.permutations(("", draw(st.sampled_from(PATHS)))))
    return elf(soname, needed=[*needed, "libc.so.6"], verneed=needs, exports=exports if mostly(draw) else exports[:-1], rpath=rpath,
               runpath=runpath)


_LEVEL = {name: st.integers(1, max(1, len(versions))) for name, versions in DEPENDENCIES.items()}
_OFTEN = ("libfabric.so.1", "libstdc++.so.6")
LEVELS = st.fixed_dictionaries({name: _LEVEL[name] for name in _OFTEN},
                               optional={name: level for name, level in _LEVEL.items() if name not in _OFTEN})


@st.composite
def profiles(draw: st.DrawFn, number: int, family: str) -> ResolvedProfile:
    home = HOMES[number % 2]
    soname, _, replaces = FAMILIES[family]
    levels = draw(LEVELS)
    newest = draw(st.sampled_from([17, 28, 28, 40]))
    libraries = [host(f"{home}/{soname}", draw(mpis(family, newest, levels)), "replace", replaces=replaces)]
    if draw(st.booleans()):
        bindings = elf("libmpifort.so.12", needed=[soname, "libc.so.6"], runpath="$ORIGIN")
        libraries.append(host(f"{home}/libmpifort.so.12", bindings, draw(st.sampled_from(["replace", "add"]))))
    for name in levels:
        if mostly(draw):
            folder = draw(st.sampled_from(["", "", "inner/"]))
            libraries.append(host(f"{home}/{folder}{name}", draw(dependencies(name, newest, levels))))
    plugins = [host(f"{home}/modules/{name}", elf(name, needed=[soname]), "plugin") for name in ("mod_a.so", "mod_b.so")]
    return profile(*libraries, mpi=family, plugins=plugins if draw(st.booleans()) else (), name=f"{family}-{number}",
                   problems=() if mostly(draw) else ("it is broken",))


@st.composite
def nodes(draw: st.DrawFn, family: str) -> Inventory:
    families = [family if mostly(draw) else draw(st.sampled_from(sorted(FAMILIES))) for _ in range(draw(st.integers(1, 2)))]
    offered = [draw(profiles(number, one)) for number, one in enumerate(families)]
    site = Site(on_refusal=draw(st.sampled_from(["refuse", "run-without"])), unproved=draw(st.sampled_from(["run", "run", "refuse"])))
    made = world.inventory(*offered, site=site)
    newest = draw(st.sampled_from([0, 31, 41]))
    if newest:
        loader, libc = "/opt/glibc/ld-linux-x86-64.so.2", "/opt/glibc/libc.so.6"
        runtime = ResolvedProfile("c-runtime", {}, "/opt/glibc", (
            host(loader, elf("ld-linux-x86-64.so.2"), "runtime"),
            host(libc, elf("libc.so.6", verdef=glibc_versions(newest), exports=("puts",)), "runtime")))
        made = dataclasses.replace(made, c_runtime=runtime)
    return dataclasses.replace(made, hwcaps=draw(st.sampled_from([(), ("x86-64-v3", "x86-64-v2", "x86_64", "haswell")])))


@st.composite
def images(draw: st.DrawFn, node: Inventory, family: str) -> ImageFacts:
    newest = draw(st.sampled_from([17, 27, 31, 36, 36, 41]))
    image = Image(newest)
    image.has_cache = mostly(draw)
    levels = draw(LEVELS)
    for one in (family, *(draw(st.sampled_from([(), (), tuple(sorted(FAMILIES))])))):
        soname, _, others = FAMILIES[one]
        for folder in draw(st.lists(st.sampled_from(FOLDERS), min_size=1, max_size=3, unique=True)):
            # Some distributions call their MPICH by another soname.
            name = draw(st.sampled_from([soname, soname, *others]))
            image.add(f"{folder}/{name}", dataclasses.replace(draw(mpis(one, newest, levels)), soname=name), cached=draw(st.booleans()))
            if draw(st.booleans()):
                image.add(f"{folder}/modules/mod_a.so", elf("mod_a.so"))
    for name in levels:
        for folder in draw(st.lists(st.sampled_from(FOLDERS), max_size=2, unique=True)):
            image.add(f"{folder}/{name}", draw(dependencies(name, newest, levels)), cached=draw(st.booleans()))
        if mostly(draw):
            image.add(f"/usr/lib64/{name}", draw(dependencies(name, newest, levels)), cached=draw(st.booleans()))
    if not mostly(draw):
        image.link("/opt/conda/lib/libmpi.so.12", draw(st.sampled_from(sorted(image.files))))
    programs = []
    sonames = sorted({posixpath.basename(path) for path, facts in image.files.items() if "MPI_Init" in facts.exports})
    for number in range(2 - draw(st.sampled_from([0, 1, 1, 1, 2]))):
        needed = draw(st.lists(st.sampled_from([*sonames, "libapp.so.1", *sorted(levels)]), max_size=3, unique=True))
        needed += [draw(st.sampled_from(sonames))] if mostly(draw) and not {*needed} & {*sonames} else []
        rpath, runpath = draw(st.permutations(("", draw(st.sampled_from(PATHS)))))
        calls: Tuple[str, ...] = ("MPI_Init",) if mostly(draw) else ("MPI_Win_create_c", "puts")
        image.add(f"{APP}{number}", world.program(*needed, imports=calls, rpath=rpath, runpath=runpath))
        programs.append(f"{APP}{number}")
    image.add("/usr/lib64/libapp.so.1", elf("libapp.so.1", needed=sonames[:1], imports=("MPI_Send",)), cached=draw(st.booleans()))
    library_path = draw(st.lists(st.sampled_from(FOLDERS[:5]), max_size=2, unique=True))
    looked_at = [*FOLDERS, "/opt/site/lib", "/nowhere", "/opt/lib", "/opt/vendor/lib", "/usr/bin"]
    facts = image.facts(*programs, library_path=library_path, looked_at=looked_at[:-1] if not mostly(draw) else looked_at)
    names = {folder.path: {*folder.names} for folder in facts.directories}
    for folder in [*names]:  # each level of a subdirectory for some processors is known to the one above
        above, name = posixpath.split(folder)
        while name in ("glibc-hwcaps", "x86-64-v3", "tls"):
            names.setdefault(above, set()).add(name)
            above, name = posixpath.split(above)
    directories = tuple(Directory(path, 7, 11 if held else 0, tuple(sorted(held))) for path, held in names.items())
    cache = facts.cache
    if cache is not None:  # a second class: its entries are not ours to touch
        alien = [CacheEntry(name, f"/usr/lib32/{name}", 0x3) for name in draw(st.lists(st.sampled_from(["libz.so.1", "libmpi.so.12"])))]
        cache = LdCache(tuple(sorted((*cache.entries, *dict.fromkeys(alien)), key=lambda entry: (_descending(entry.name), -entry.flags))))
    consumers = tuple(path for path in facts.files if path == "/usr/lib64/libapp.so.1") if draw(st.booleans()) else ()
    return dataclasses.replace(facts, directories=directories, cache=cache, consumers=consumers, hwcaps=node.hwcaps,
                               preload=() if mostly(draw) else ("libz.so.1",),
                               entrypoint="elf" if programs else draw(st.sampled_from(["script", "missing"])))


class _descending:
    def __init__(self, name: str) -> None:
        self.name = name

    def __lt__(self, other: _descending) -> bool:
        return ldcache.compare(self.name, other.name) > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _descending) and ldcache.compare(self.name, other.name) == 0


@st.composite
def worlds(draw: st.DrawFn) -> World:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    node = draw(nodes(family))
    wish = Wish(draw(st.sampled_from([family, family, "auto"])), "label", draw(st.booleans()))
    where = world.container(mounts=(DEV,) if mostly(draw) else ())
    return where, Request(mpi=wish), node, draw(images(node, family))


# -------------------------------------------------------------------------------------------------- an independent reading

class Reading:
    """An image with a plan laid over it, or as it is, and a loader reduced to its rules: no code of the product's is used."""

    def __init__(self, node: Inventory, facts: ImageFacts, plan: Optional[Plan], library_path: Sequence[str]) -> None:
        self.facts = facts
        self.library_path = [*library_path, *facts.library_path]
        everything = [*node.profiles, *([node.c_runtime] if node.c_runtime else [])]
        by_source = {library.real: library.elf for one in everything for library in (*one.libraries, *one.plugins)}
        self.files: Dict[str, ElfFacts] = {}  # by the path as it is found
        self.ours: Set[str] = set()
        over = {bind.target: by_source[bind.source] for bind in plan.in_place} if plan else {}
        for path, real in facts.resolved.items():
            if real in facts.files:
                self.files[path] = over.get(real, facts.files[real].elf)
                self.ours |= {path} if real in over else set()
        for bind in plan.tree if plan else ():
            self.files[f"{plan.tree_root if plan else ''}/{bind.target}"] = by_source[bind.source]
        self.ours |= {path for path in self.files if plan and path.startswith(plan.tree_root + "/")}
        cache = plan.cache if plan else facts.cache
        self.cache = {entry.name: entry.path for entry in reversed(cache.entries) if entry.flags == 0x303} if cache else {}
        libc = self.files.get(LIBC)
        release = max((int(name[8:]) for name in libc.verdef if name[8:].isdigit()), default=0) if libc else 0
        self.subdirectories = []
        if facts.hwcaps:
            self.subdirectories += ["glibc-hwcaps/x86-64-v3"] * (release >= 33)
        self.subdirectories += ["tls"] * (release < 37)

    def paths(self, name: str, chain: Sequence[Tuple[str, ElfFacts]]) -> Iterator[str]:
        """Where a name is looked for by the first of a chain, each asked for by the next."""
        def within(folder: str) -> Iterator[str]:
            return (posixpath.join(folder, sub, name) for sub in (*self.subdirectories, ""))

        def listed(entries: Sequence[str], path: str) -> Iterator[str]:
            for entry in entries:
                yield from within(entry.replace("$ORIGIN", posixpath.dirname(path)))

        path, elf_ = chain[0]
        if not elf_.runpath:
            for one, its in chain:
                yield from listed(its.rpath if not its.runpath else (), one)
        for folder in self.library_path:
            yield from within(folder)
        yield from listed(elf_.runpath, path)
        if name in self.cache:
            yield self.cache[name]
        for folder in DEFAULT_DIRS:
            yield from within(folder)

    def loaded(self, start: str) -> Tuple[List[Tuple[str, ElfFacts]], Set[Tuple[str, str]]]:
        """What is loaded for a file, breadth first, and what is lacking: (file, name or version)."""
        queue: List[Tuple[Tuple[str, ElfFacts], ...]] = [((start, self.files[start]),)]
        known: Dict[str, Tuple[str, ElfFacts]] = {}
        if self.files[start].soname:
            known[self.files[start].soname] = queue[0][0]
        elif self.files[start].interp:
            known["ld-linux-x86-64.so.2"] = (LOADER, self.files[LOADER])
        lacking: Set[Tuple[str, str]] = set()
        by_real: Dict[str, Tuple[str, ElfFacts]] = {}
        preload = list(self.facts.preload)
        for chain in queue:  # grows
            names = preload + list(chain[0][1].needed) if chain is queue[0] else list(chain[0][1].needed)
            for name in names:
                if name in known:
                    continue
                path = next((posixpath.normpath(path) for path in self.paths(name, chain) if self._there(path)), "")
                if not path:
                    if name not in preload:
                        lacking.add((chain[0][0], name))
                    continue
                real = self.facts.resolved.get(path, path)
                item = by_real.setdefault(real, (path, self.files[path]))
                if item[0] == path and item not in [one[0] for one in queue]:
                    queue.append((item, *chain))
                known[name] = item
                known.setdefault(item[1].soname, item)
        for (path, elf_), *_ in queue:
            for file, versions in elf_.verneed:
                provider = known.get(file)
                if provider and (provider[1].verdef or not provider[1].verneed):
                    lacking |= {(path, version) for version in versions if version not in provider[1].verdef}
        return [chain[0] for chain in queue], lacking

    def _there(self, path: str) -> bool:
        return posixpath.normpath(path) in self.files


def homes(plan: Plan) -> List[Tuple[str, ...]]:
    """As started, and with each directory that holds a copy in front of LD_LIBRARY_PATH."""
    return [(), *sorted({(posixpath.dirname(bind.target),) for bind in plan.in_place})]


def decide(it: World) -> Plan:
    where, request, node, facts = it
    return decide_plan.plan(where, request, node, facts)


# ---------------------------------------------------------------------------------------------------------------- properties

@many
@given(worlds())
def test_nothing_is_injected_that_is_not_proved(it: World) -> None:
    """Whatever of ours is in the tree or in place finds all that it needs, in the versions that it needs."""
    _, _, node, facts = it
    made = decide(it)
    assume(made.tree)
    modules = {library.real for one in node.profiles for library in one.plugins}
    for home in homes(made):
        reading = Reading(node, facts, made, home)
        starts = [f"{made.tree_root}/{bind.target}" for bind in made.tree if bind.source not in modules]
        starts += [bind.target for bind in made.in_place if bind.target not in (LIBC, LOADER)]
        for start in starts:
            lacking = reading.loaded(start)[1]
            assert not {(path, what) for path, what in lacking if path in reading.ours}, (start, lacking)


@many
@given(worlds())
def test_what_is_called_proved_loads_the_sites_mpi_and_all_it_needs(it: World) -> None:
    _, _, node, facts = it
    made = decide(it)
    assume(made.verdict == PROVED)
    family = next(one.provides["mpi"] for one in node.profiles if one.name == made.profile)
    users = 0
    for home in homes(made):
        reading, before = Reading(node, facts, made, home), Reading(node, facts, None, ())
        for program in facts.programs:
            loaded, lacking = reading.loaded(program)
            excused = {what for _, what in before.loaded(program)[1]}
            assert {what for _, what in lacking} <= excused, (program, lacking)
            mpi = [(path, elf_) for path, elf_ in loaded if "MPI_Init" in elf_.exports]
            assert {path for path, _ in mpi} <= reading.ours, (program, mpi)
            assert all(("MPIR_Err_return" in elf_.exports) == (family == "mpich") for _, elf_ in mpi)
            calls = {name for path, elf_ in loaded if path not in reading.ours for name in elf_.imports if name.startswith("MPI_")}
            assert not mpi or calls <= {name for _, elf_ in loaded for name in elf_.exports}
            users += bool(mpi)
    assert users


@many
@given(worlds(), st.randoms(use_true_random=False))
def test_order_does_not_matter(it: World, chance: random.Random) -> None:
    """Of mappings, of directories and what they hold, of the dependencies in a profile."""
    where, request, node, facts = it

    def shuffled(values: Sequence[object]) -> list[object]:
        return chance.sample(values, len(values))

    def of_profile(one: ResolvedProfile) -> ResolvedProfile:
        rest = chance.sample([library for library in one.libraries if library.role == "dependency"],
                             sum(library.role == "dependency" for library in one.libraries))
        first = [library for library in one.libraries if library.role != "dependency"]
        return dataclasses.replace(one, libraries=(*first, *rest), plugins=tuple(chance.sample(one.plugins, len(one.plugins))))

    other_facts = dataclasses.replace(
        facts, resolved=dict(chance.sample([*facts.resolved.items()], len(facts.resolved))),
        files=dict(chance.sample([*facts.files.items()], len(facts.files))),
        directories=tuple(dataclasses.replace(folder, names=tuple(chance.sample(folder.names, len(folder.names))))
                          for folder in chance.sample(facts.directories, len(facts.directories))))
    other_node = dataclasses.replace(node, profiles=tuple(map(of_profile, node.profiles)))
    one, other = decide(it), decide((where, request, other_node, other_facts))
    assert sorted_plan(one) == sorted_plan(other)


def sorted_plan(made: Plan) -> Plan:
    return dataclasses.replace(
        made, findings=tuple(sorted(made.findings, key=repr)), tree=tuple(sorted(made.tree, key=repr)),
        in_place=tuple(sorted(made.in_place, key=repr)), modules=tuple(sorted(made.modules, key=repr)),
        tried=sorted_plan(made.tried) if made.tried else None)


@many
@given(worlds())
def test_planning_again_over_what_was_done_gives_nothing_new(it: World) -> None:
    where, request, node, facts = it
    made = decide(it)
    assume(made.tree)
    everything = [*node.profiles, *([node.c_runtime] if node.c_runtime else [])]
    by_source: Dict[str, HostLibrary] = {library.real: library for one in everything for library in (*one.libraries, *one.plugins)}
    files = {**facts.files, **{bind.target: ImageFile(bind.target, bind.source_file, by_source[bind.source].elf) for bind in made.in_place}}
    after = dataclasses.replace(facts, files=files, libc=files[LIBC], libc_version="", cache=made.cache, cache_file=FileId(1, 2, 3),
                                cache_real=made.cache_target)
    again = decide((where, request, node, after))
    assert (again.verdict, again.profile, again.tree_root) == (made.verdict, made.profile, made.tree_root)
    assert Counter(again.tree) == Counter(made.tree)
    assert {(bind.source, bind.target) for bind in again.in_place} <= {(bind.source, bind.target) for bind in made.in_place}
    assert again.cache == made.cache


@many
@given(worlds())
def test_actions_do_not_meet(it: World) -> None:
    made = decide(it)
    if made.verdict in (NOTHING, REFUSED):
        assert not (made.tree or made.in_place or made.modules or made.cache_target or made.cache)
        return
    in_tree = [f"{made.tree_root}/{bind.target}" for bind in made.tree]
    files = [*in_tree, *(bind.target for bind in made.in_place), made.cache_target]
    targets = [*files, *(cover.target for cover in made.modules)]
    assert [target for target, times in Counter(map(posixpath.normpath, targets)).items() if times > 1] == []
    assert not [(one, other) for one in targets for other in files if other.startswith(one + "/")]
    assert not [target for target in targets if target not in in_tree and (target + "/").startswith(made.tree_root + "/")]
    assert all(posixpath.normpath(bind.target) == bind.target and not bind.target.startswith("/") for bind in made.tree)
    folders = {posixpath.dirname(bind.target) for bind in made.tree}
    assert {cover.folder for cover in made.modules} <= folders


@many
@given(worlds())
def test_sources_are_the_inventorys_and_targets_the_images(it: World) -> None:
    _, _, node, facts = it
    made = decide(it)
    one = next((one for one in node.profiles if one.name == made.profile), None)
    runtime = node.c_runtime.libraries if node.c_runtime else ()
    offered = {(library.real, library.file) for library in (*one.libraries, *one.plugins, *runtime)} if one else set()
    assert {(bind.source, bind.source_file) for bind in (*made.tree, *made.in_place)} <= offered
    assert all(facts.files[bind.target].file == bind.over for bind in made.in_place)
    if made.cache is not None:
        aliens = [entry for entry in (facts.cache or LdCache(())).entries if entry.flags != 0x303]
        assert [entry for entry in made.cache.entries if entry.flags != 0x303] == aliens
        assert ldcache.parse(ldcache.serialize(made.cache)).entries == made.cache.entries


@many
@given(worlds())
def test_findings_are_for_people(it: World) -> None:
    made = decide(it)
    for finding in made.findings:
        assert finding.code and finding.what and finding.severity in ("error", "warning", "note")
        assert finding.code == finding.code.lower() and " " not in finding.code
        text = f"{finding.what} {finding.remedy}".lower()
        assert "not found" not in text and "no such file" not in text and "\n" not in text  # podman would end with 127
        assert finding.severity != "error" or (finding.remedy and finding.who in ("user", "image author", "site admin"))
    assert (made.verdict == REFUSED) == any(finding.severity == "error" for finding in made.findings)


def test_these_worlds_are_of_every_kind() -> None:
    """The properties above would hold of plans that are always empty: enough of those that are drawn are not."""
    verdicts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()

    @settings(max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(worlds())
    def draw(it: World) -> None:
        made = decide(it)
        verdicts[made.verdict] += 1
        kinds.update(finding.code for finding in made.findings)
        kinds.update({"in place": bool(made.in_place), "several": len(made.in_place) > 2, "covers": bool(made.modules)})

    draw()
    assert min(verdicts[name] for name in (PROVED, "unproved", REFUSED, NOTHING)) >= 5, verdicts
    assert min(kinds[name] for name in ("in place", "several", "glibc-too-old", "c-runtime", "image-kept")) >= 2, kinds
