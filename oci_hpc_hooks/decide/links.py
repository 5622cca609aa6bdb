"""Who provides each library of a program, with a plan carried out or refused: the simulated link map, for people and pictures. Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Dict, FrozenSet, Iterable, Iterator, List, Mapping, Sequence, Tuple

from oci_hpc_hooks.decide import abi, layers, loader_cache, proof
from oci_hpc_hooks.decide.plan import TREE_IN_DEV, TREE_IN_ROOTFS
from oci_hpc_hooks.elf import glibc, loader
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import NOTHING, REFUSED, Bind, ElfFacts, HostLibrary, ImageFacts, Inventory, Plan

#: Who provides an object.
IMAGE = "image"
HOST = "host"
RUNTIME = "host C runtime"

#: Programs whose link maps are told; an unproved image may have hundreds that use MPI.
PROGRAMS_LIMIT = 16


@dataclass(frozen=True)
class Link:
    """One object of a link map."""

    name: str  # as it was asked for first
    path: str  # in the container: directory searched + name
    provider: str  # IMAGE, HOST or RUNTIME
    file: str  # real path of the regular file: in the image, or on the host
    rule: str  # how ld.so came to it (loader.Loaded.how)
    needed_by: str  # path of the object that asked for it first, "" for the program
    why: str  # why it is this one, "" where the image's own search says it all


@dataclass(frozen=True)
class Edge:
    """One dependency: DT_NEEDED, or a version or function that is missing.

    ``fault`` says what is wrong, "" where nothing is. ``ours`` is False for a fault that the image has without any injection.
    """

    needed_by: str  # path
    name: str  # what is asked for
    path: str  # path of the object that answers, "" if none does
    fault: str = ""
    ours: bool = True


@dataclass(frozen=True)
class LinkMap:
    """One program with all that ld.so would load for it. ``trouble`` says why that cannot be told, "" where it can."""

    program: str
    objects: Tuple[Link, ...] = ()
    edges: Tuple[Edge, ...] = ()
    trouble: str = ""

    @property
    def faults(self) -> Tuple[Edge, ...]:
        """The edges that fail because of what would be injected."""
        return tuple(edge for edge in self.edges if edge.fault and edge.ours)


def link_maps(facts: ImageFacts, plan: Plan, inventory: Inventory) -> Tuple[LinkMap, ...]:
    """The link maps of the programs of the command line, then of what was looked at in their place, as they would be in the container.

    For a refused plan: as they would have been, so that the failing edges show; where the decision did not come that far, the image's own.
    """
    facts = loader_cache.without_ours(facts, (TREE_IN_DEV, TREE_IN_ROOTFS))
    shown = plan.tried if plan.verdict in (REFUSED, NOTHING) and plan.tried is not None else plan
    laid = _Laid(facts, shown, inventory)
    programs = (*facts.programs, *facts.consumers)[:PROGRAMS_LIMIT]
    plain, *others = proof.searches(facts, shown.cache or facts.cache, (bind.target for bind in shown.in_place), laid.release)
    maps = tuple(laid.link_map(program, plain) for program in programs)
    if shown is plan or any(one.faults for one in maps):
        return maps
    # What was refused fails in another environment, or in a library that no program of the command line loads.
    paths = (*(one.program for one in maps if not one.trouble), *laid.injected)
    for search in (plain, *others):
        failing = (laid.link_map(path, search) for path in paths)
        found = next((one for one in failing if one.faults), None)
        if found is not None:
            return (found, *(one for one in maps if one.program != found.program))
    return maps


def order(link_map: LinkMap) -> List[Link]:
    """The objects of a link map, what matters first: failing ones, the program, what the host provides, MPI's kin, the C runtime last."""
    failing = {path for edge in link_map.faults for path in (edge.needed_by, edge.path)}

    def rank(link: Link) -> int:
        if link.path in failing:
            return 0
        if link.rule == "program":
            return 1
        if link.provider != IMAGE:
            return 2 if link.provider == HOST else 4
        return 5 if glibc.is_c_runtime(link.name) else 3

    return sorted(link_map.objects, key=rank)


class _Laid:
    """The image with a plan laid over it."""

    def __init__(self, facts: ImageFacts, plan: Plan, inventory: Inventory) -> None:
        self._facts = facts
        tree = {f"{plan.tree_root}/{bind.target}": bind for bind in plan.tree}
        in_place = {bind.target: bind for bind in plan.in_place}
        self._tree = tree
        self._in_place = {bind.source: bind for bind in plan.in_place}
        self._libraries, self._names = _offered(inventory, plan.profile)
        self._copies = [facts.files[bind.target].elf for bind in plan.in_place
                        if bind.source in self._libraries and self._libraries[bind.source].role != "runtime"]
        over = self._those(in_place)
        self.release = proof.release_of(library.elf for library in over.values() if library.role == "runtime")
        self._view = proof.View(facts, plan.tree_root, self._those(tree), over)
        self._lacked: Dict[str, FrozenSet[str]] = {}
        self.injected = (*tree, *in_place)

    def _those(self, binds: Mapping[str, Bind]) -> Dict[str, HostLibrary]:
        return {path: self._libraries[bind.source] for path, bind in binds.items() if bind.source in self._libraries}

    def link_map(self, program: str, search: loader.Search) -> LinkMap:
        file = self._facts.files.get(program)
        if file is not None and "/ld-musl" in file.elf.interp:
            alone = Link(program, program, IMAGE, program, "program", "", "")
            return LinkMap(program, (alone,), trouble=f"its loader is musl's ({file.elf.interp}), which searches in another way")
        try:
            found = self._view.simulate(program, search)
        except ImageError as error:
            return LinkMap(program, trouble=error.what)
        if program not in self._lacked:  # whatever the search
            self._lacked[program] = proof.lacks(program, self._facts)
        edges = _edges(found, _faults(found, self._lacked[program], self._copies))
        return LinkMap(program, tuple(map(self._link, found.objects)), tuple(edges))

    def _link(self, loaded: loader.Loaded) -> Link:
        source = layers.host_file(loaded.identity)
        if source:
            provider = RUNTIME if self._libraries[source].role == "runtime" else HOST
            bind = self._tree.get(posixpath.normpath(loaded.path)) or self._in_place[source]
            why = bind.why
        else:
            provider = IMAGE
            why = "the site has it too, and the image's serves both sides" if loaded.name in self._names else ""
        return Link(loaded.name, loaded.path, provider, source or loaded.identity, loaded.how, loaded.needed_by, why)


def _offered(inventory: Inventory, profile: str) -> Tuple[Dict[str, HostLibrary], FrozenSet[str]]:
    """What the inventory offers by its file on the host, that profile's own first; and the names that it has."""
    offers = [one for offer in inventory.profiles for one in (offer, *offer.variants)]
    offers += [inventory.c_runtime] if inventory.c_runtime is not None else []
    libraries: Dict[str, HostLibrary] = {}
    for offer in sorted(offers, key=lambda offer: offer.name not in profile.split(", ")):
        for library in (*offer.libraries, *offer.plugins, *(module for one in offer.sets for module in one.modules)):
            libraries.setdefault(library.real, library)
    return libraries, frozenset(library.name for offer in offers if offer.name in profile.split(", ") for library in offer.libraries)


def _edges(found: loader.LinkMap, failing: Iterable[Tuple[str, str, str, bool]]) -> Iterator[Edge]:
    by_name: Dict[str, loader.Loaded] = {}
    for loaded in found.objects:
        for name in (loaded.name, *loaded.aliases, loaded.path, loaded.facts.soname):
            by_name.setdefault(name, loaded)
    faults = {(needed_by, path): (what, ours) for needed_by, path, what, ours in failing}
    for loaded in found.objects:
        interp = [loaded.facts.interp] if loaded.facts.interp else []
        for name in dict.fromkeys([*loaded.facts.needed, *interp]):
            answer = by_name.get(name)
            if answer is not None:
                what, ours = faults.pop((loaded.path, answer.path), ("", True))
                yield Edge(loaded.path, name, answer.path, what, ours)
    there = {loaded.path for loaded in found.objects}
    for (needed_by, path), (what, ours) in faults.items():
        yield Edge(needed_by, path, path if path in there else "", what, ours)


def _faults(found: loader.LinkMap, lacked: FrozenSet[str], copies: Sequence[ElfFacts]) -> Iterator[Tuple[str, str, str, bool]]:
    """What keeps the program from starting or from working: who needs it, of whom, what is wrong, and whether injection is to blame."""
    for name, needed_by in found.missing:
        yield needed_by, name, "nobody has it", name not in lacked
    for path, needed_by in found.broken:
        yield needed_by, path, "it cannot be loaded", path not in lacked
    for loaded, host, lost in proof.lost_calls(found, copies):
        yield loaded.path, host.path, f"lacks {lost}", True
    gaps: Dict[Tuple[str, str], List[str]] = {}
    for gap in loader.unsatisfied(found):
        if gap.fatal:
            gaps.setdefault((gap.needed_by, gap.provider), []).append(gap.version)
    for (needed_by, provider), versions in gaps.items():
        newest = max(versions, key=abi.version_key)
        more = f" and {len(versions) - 1} more versions" if len(versions) > 1 else ""
        yield needed_by, provider, f"lacks {newest}{more}", not lacked.issuperset(versions)
