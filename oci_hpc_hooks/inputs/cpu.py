"""The node's microarchitecture, by archspec: for the scan alone, since archspec reads a large table and never belongs on a hook's way."""

from __future__ import annotations

from typing import Optional, Tuple

from oci_hpc_hooks.model import Cpu

#: The generic targets of x86-64 in the order of their bits in GNU_PROPERTY_X86_ISA_1_NEEDED (x86-64 psABI, "Micro-Architecture Levels").
X86_LEVELS = ("x86_64", "x86_64_v2", "x86_64_v3", "x86_64_v4")


def node_cpu() -> Tuple[Optional[Cpu], str]:
    """This node's processor, and what is to be said about it: (None, why) where archspec is missing or of no help."""
    try:
        import archspec.cpu

        host = archspec.cpu.host()
        family = [target for target in archspec.cpu.TARGETS.values() if target.family == host.family]
    except ImportError:
        return None, "archspec is not installed: whether an image was built for another processor is not checked"
    except Exception as error:  # it asks the processor and parses /proc/cpuinfo, of which there are many kinds
        return None, f"archspec does not know this processor ({error}): whether an image was built for another one is not checked"
    # A target of another vendor runs too where the host has all its features: sandybridge on zen3.
    compatible = sorted({host.name, *(target.name for target in family if target in host.ancestors or target.features <= host.features)})
    levels = {target.name: target.generic.name for target in family}
    cpu = Cpu(
        target=host.name,
        vendor=host.vendor,
        level=host.generic.name,
        isa=sum(1 << bit for bit, level in enumerate(X86_LEVELS) if level in compatible),
        compatible=tuple(compatible),
        levels=dict(sorted(levels.items())),
    )
    return cpu, "" if host.name != host.generic.name else f"archspec knows this processor only as {host.name}"
