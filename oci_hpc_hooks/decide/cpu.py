"""Step 1 of the ladder, the processor: what the image's programs were built for, and what this node has. Pure.

ELF files are marked for an x86-64 level only where their linker was told so (``-z x86-64-v3``). A mark is certain: ld.so of glibc 2.33 and
newer refuses such a file ("CPU ISA level is lower than required"), and under an older one it ends at the first instruction that the
processor does not have. No mark says nothing, so that there the image's label is the only word.
"""

from __future__ import annotations

from typing import Iterable, List, Optional, Tuple

from oci_hpc_hooks.decide.choice import No
from oci_hpc_hooks.model import NOTE, WARNING, Cpu, ElfFacts, Finding, ImageFacts, Request

#: What a level of x86-64 has that the one before has not, as far as it matters to numerical programs.
_X86_GAINS = {"x86_64": "SSE2", "x86_64_v2": "SSE4.2", "x86_64_v3": "AVX2 and FMA", "x86_64_v4": "AVX-512"}
_X86_LEVELS = tuple(_X86_GAINS)
_FAR_LESS = 2  # targets below x86_64_v3 leave half of every vector unit unused


def must_run(loaded: Iterable[Tuple[str, ElfFacts]], cpu: Optional[Cpu]) -> None:
    """Raises No if a file (path, facts) is marked for more than the processor has."""
    if cpu is None or not cpu.isa:
        return
    for path, elf in loaded:
        lacking = elf.isa_needed & ~cpu.isa
        if lacking:
            level = f"x86-64-v{lacking.bit_length()}"
            raise No("cpu", f"{path} is marked as built for {level} (GNU_PROPERTY_X86_ISA_1_NEEDED), and this node's processor is a "
                     f"{cpu.target}, which amounts to {cpu.level}",
                     f"start it on a node that has {level}, or build the image for {cpu.level}", "image author")


def gate(request: Request, facts: ImageFacts, cpu: Optional[Cpu]) -> List[Finding]:
    """What to know before any library is looked at: the label's claim, and static programs. Raises No if the image cannot run here."""
    must_run([(path, facts.files[path].elf) for path in facts.static_programs if path in facts.files], cpu)
    claim = request.cpu
    if cpu is None or claim is None or claim.value not in cpu.levels:
        return []  # of an unknown name nothing follows
    level = cpu.levels[claim.value]
    node = f"this node's processor is a {cpu.target}, which amounts to {cpu.level}"
    if level not in cpu.compatible:
        raise No("cpu", f"the image is said to be built for {claim.value}, which is {level}, and {node}",
                 f"use an image built for {cpu.level} or less, or a node that has {level}; if the label is wrong, the caller's word goes "
                 "before it: --annotation org.supercontainers.hardware.cpu.optimized.version=generic", "image author")
    if claim.value not in cpu.compatible:
        return [Finding(WARNING, "cpu", f"the image is said to be built for {claim.value}; {node}, and lacks some of its instructions: a "
                        "program may end with SIGILL", claim.origin, f"use an image built for {cpu.level} or {cpu.target}", "image author")]
    if level in _X86_LEVELS[:_FAR_LESS] and cpu.level in _X86_LEVELS[_FAR_LESS:]:
        unused = [_X86_GAINS[name] for name in _X86_LEVELS[_FAR_LESS:_X86_LEVELS.index(cpu.level) + 1]]
        return [Finding(NOTE, "cpu-unused", f"the image is said to be built for {claim.value}; {node}: {', '.join(unused)} stay unused, "
                        "except by libraries that choose when they run", claim.origin, f"build the image for {cpu.level}", "image author")]
    return []
