"""Which labels an image should have, by what its own files say. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Mapping, Sequence, Tuple

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.decide.links import LinkMap
from oci_hpc_hooks.decide.request import CPU_KEYS, FABRIC, GLIBC_KEYS, GPU, MPI
from oci_hpc_hooks.elf import mpi
from oci_hpc_hooks.model import NOTE, WARNING, ElfFacts, FileId, Finding, HostLibrary, ImageFacts, Profile, ResolvedProfile


@dataclass(frozen=True)
class Proposal:
    """One label. ``has`` is what the image says now, "" for nothing."""

    key: str
    value: str
    why: str
    has: str = ""

    @property
    def is_new(self) -> bool:
        return self.has.strip().lower() != self.value


def sought(profiles: Sequence[Profile]) -> Tuple[ResolvedProfile, ...]:
    """What to look for in an image, whatever this node has: the names that profiles know, without any file behind them."""
    nothing = ElfFacts(elf_class=0, little_endian=True, machine=0, elf_type=3, dynamic=True)
    return tuple(ResolvedProfile(profile.name, profile.provides, profile.source, tuple(
        HostLibrary(library.soname, library.soname, library.soname, library.role, library.replaces, FileId(0, 0, 0), nothing)
        for library in profile.libraries)) for profile in profiles if profile.libraries)


def propose(facts: ImageFacts, maps: Sequence[LinkMap], profiles: Sequence[ResolvedProfile], labels: Mapping[str, str],
            ) -> Tuple[Tuple[Proposal, ...], Tuple[Finding, ...]]:
    """The labels of an image whose facts were gathered for ``profiles``, and what keeps others from being proposed.

    ``maps`` are the link maps of its programs as it is; ``labels`` those that it has.
    """
    findings: List[Finding] = []
    found = [*_mpi(facts, maps, findings), *_gpu(facts, maps, profiles, findings), *_fabric(facts, maps, profiles), *_glibc(facts),
             *_cpu(facts, maps)]
    return tuple(Proposal(key, value, why, labels.get(key, "")) for key, value, why in found), tuple(findings)


_Found = Iterator[Tuple[str, str, str]]


def _mpi(facts: ImageFacts, maps: Sequence[LinkMap], findings: List[Finding]) -> _Found:
    """The family that its programs load: those of the command line, else all that use an MPI; where none does, the one that it has."""
    for wanted in (facts.programs, facts.consumers):
        loaded = [(one.program, link.file) for one in maps if one.program in wanted for link in one.objects]
        if any(_family(facts, file) for _, file in loaded):
            yield from _one_family(facts, {file: f"{program} loads {file}" for program, file in reversed(loaded)}, findings)
            return
    if any(_family(facts, path) for path in facts.files):
        yield from _one_family(facts, {path: f"it has {path}" for path in sorted(facts.files)}, findings)
    else:
        findings.append(Finding(NOTE, "no-mpi", "no program and no library of an MPI was found"))


def _one_family(facts: ImageFacts, reasons: Mapping[str, str], findings: List[Finding]) -> _Found:
    families: Dict[str, str] = {}
    for path, why in reasons.items():
        families.setdefault(_family(facts, path), why)
    families.pop("", None)
    if len(families) == 1:
        yield (MPI, *next(iter(families.items())))
        return
    both = " and ".join(sorted(families))
    findings.append(Finding(WARNING, "several-mpis", f"the image uses MPIs of the families {both}, and a label names one",
                            remedy="name the program that is to run after --, or set the label by hand", who="image author"))


def _family(facts: ImageFacts, path: str) -> str:
    return mpi.family(facts.files[path].elf) if path in facts.files else ""


def _gpu(facts: ImageFacts, maps: Sequence[LinkMap], profiles: Sequence[ResolvedProfile], findings: List[Finding]) -> _Found:
    """The stacks whose libraries a program of the command line is linked to. What else has or needs one (hwloc asks every stack for its
    devices) may do without."""
    asked = {edge.name: f"{edge.needed_by} needs {edge.name}" for one in maps if one.program in facts.programs for edge in one.edges}
    there = {name for file in facts.files.values() for name in file.elf.needed}
    there |= {name for folder in facts.directories for name in folder.names}
    stacks = _marks(profiles, "gpu")
    used = {stack: asked[name] for name, stack in stacks.items() if name in asked}
    if used:
        yield GPU, ",".join(sorted(used)), "; ".join(used[stack] for stack in sorted(used))
    maybe = {stack: name for name, stack in sorted(stacks.items()) if name in there and stack not in used}
    for stack, name in sorted(maybe.items()):
        findings.append(Finding(NOTE, "gpu-maybe", f"the image has or needs {name}, and no program of the command line is linked to it",
                                remedy=f"if its programs use it, set LABEL {GPU}={','.join(sorted({*used, stack}))}", who="image author"))


def _fabric(facts: ImageFacts, maps: Sequence[LinkMap], profiles: Sequence[ResolvedProfile]) -> _Found:
    """The fabrics that a program of the command line uses by itself. What its MPI uses comes with the site's, and what a fabric's library
    uses in turn with that fabric."""
    fabrics = _marks(profiles, "fabric")
    used: Dict[str, str] = {}
    for one in maps:
        ahead = [one.program] if one.program in facts.programs else []
        seen = set(ahead)
        files = {link.path: link.file for link in one.objects}
        while ahead:
            path = ahead.pop(0)
            for edge in one.edges:
                if edge.needed_by != path:
                    continue
                if edge.name in fabrics:
                    used.setdefault(fabrics[edge.name], f"{path} needs {edge.name}")
                elif edge.path not in seen and not _family(facts, files.get(edge.path, "")):
                    seen.add(edge.path)
                    ahead.append(edge.path)
    if used:
        yield FABRIC, ",".join(sorted(used)), "; ".join(used[fabric] for fabric in sorted(used))


def _marks(profiles: Sequence[ResolvedProfile], kind: str) -> Dict[str, str]:
    """By which library a stack is told: those that it brings, and of neutral loaders, which several bring, the one that it is about. Of
    several stacks that bring one, it is the one that is called like it."""
    marks: Dict[str, str] = {}
    for profile in profiles:
        stack = profile.provides.get(kind, "")
        for number, library in enumerate(profile.libraries if stack else ()):
            for name in (library.name, *library.replaces) if library.role == "replace" or not number else ():
                before = marks.get(name, "")
                if not before or not name.startswith((f"{before}.", f"lib{before}.")):
                    marks[name] = stack
    return marks


def _glibc(facts: ImageFacts) -> _Found:
    version = abi.libc_version(facts)
    if facts.libc is not None and version:
        yield GLIBC_KEYS[0], version, f"{facts.libc.path} is of this release"


def _cpu(facts: ImageFacts, maps: Sequence[LinkMap]) -> _Found:
    """The level of x86-64 that its programs are marked for. What glibc-hwcaps offers beside the generic file asks for nothing."""
    marked: Dict[int, str] = {}
    for one in maps:
        for link in one.objects:
            file = facts.files.get(link.file)
            if file is not None and "/glibc-hwcaps/" not in link.path:
                marked.setdefault(file.elf.isa_needed.bit_length(), link.file)
    level = max(marked, default=0)
    if level > 1:
        yield CPU_KEYS[0], f"x86_64_v{level}", f"{marked[level]} is marked for it"
