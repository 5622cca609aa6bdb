"""What ld.so makes of the processor: subdirectories searched before each directory, and cache entries for some processors only. Pure.

A node's capabilities are names: those of ``glibc-hwcaps`` subdirectories, the preferred first, then the legacy ones in the order of their
bits, AT_PLATFORM last ("x86-64-v3", "x86-64-v2", "x86_64", "haswell"). What of them counts depends on the release of the image's glibc.

Sources: glibc elf/dl-hwcaps.c, elf/dl-cache.c, sysdeps/x86/cpu-features.c, get-isa-level.h, dl-hwcap.h and dl-procinfo.c,
sysdeps/unix/sysv/linux/aarch64/dl-procinfo.h, of 2.28 to 2.41.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple

PREFIX = "glibc-hwcaps"
#: Names of glibc-hwcaps subdirectories on all architectures (glibc's dl-hwcaps-subdirs.c).
NAMED = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "power10", "power9", "z17", "z16", "z15", "z14", "z13")
_TLS = "tls"  # for whatever processor
#: Bits of the legacy names in the hwcap field of a cache entry.
_BITS: Mapping[str, int] = {"x86_64": 1 << 1, "avx512_1": 1 << 2, "haswell": 1 << 50, "xeon_phi": 1 << 51, "atomics": 1 << 8, _TLS: 1 << 63}
#: Every name that a subdirectory for some processors may have, at any level.
SUBDIRECTORIES = frozenset((PREFIX, *NAMED, *_BITS, "aarch64"))
DEPTH = 4  # tls/haswell/avx512_1/x86_64

_LEVELS = (
    ("x86-64-v2", "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2"),
    ("x86-64-v3", "avx avx2 f16c fma abm movbe"),
    ("x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)


@dataclass(frozen=True)
class Hwcaps:
    """What one loader uses on one node."""

    named: Tuple[str, ...] = ()  # names of glibc-hwcaps subdirectories, the preferred first
    subdirectories: Tuple[str, ...] = ()  # relative paths of all that are searched, in order, before the directory itself
    bits: int = 0  # of legacy cache entries that are taken
    platform: str = ""  # what $PLATFORM stands for


#: Of a loader that looks at no processor.
NONE = Hwcaps()


def of_cpuinfo(text: str, machine: str) -> Tuple[str, ...]:
    """The capabilities of the processor that /proc/cpuinfo describes, for ``uname -m``; none for an architecture that is not known here."""
    fields: Dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if machine == "aarch64":
        return (*(["atomics"] if "atomics" in fields.get("Features", "").split() else []), "aarch64")
    if machine != "x86_64":
        return ()
    flags = set(fields.get("flags", "").split())
    levels: List[str] = []
    for name, wanted in _LEVELS:
        if not flags.issuperset(wanted.split()):
            break
        levels.insert(0, name)
    return (*levels, "x86_64", *_of_intel(flags, fields.get("vendor_id", "")))


def _of_intel(flags: set[str], vendor: str) -> Sequence[str]:
    """avx512_1, if it is there, and the platform."""
    if vendor != "GenuineIntel":
        return ("x86_64",)
    if flags.issuperset(("avx512f", "avx512cd", "avx512er", "avx512pf")):
        return ("xeon_phi",)
    platform = "haswell" if flags.issuperset(("avx2", "fma", "bmi1", "bmi2", "abm", "movbe", "popcnt")) else "x86_64"
    wide = flags.issuperset(("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")) and "avx512er" not in flags
    return ("avx512_1", platform) if wide else (platform,)


def of_glibc(node: Sequence[str], version: str) -> Hwcaps:
    """What the ld.so of a glibc release ("2.36") uses on a node; a release that is not known counts as a new one.

    glibc-hwcaps came with 2.33. The legacy subdirectories went with 2.37, and legacy cache entries with 2.40.
    """
    release = _release(version)
    named = tuple(name for name in node if name in NAMED) if release >= (2, 33) else ()
    legacy = tuple(name for name in node if name not in NAMED)
    subdirectories = [f"{PREFIX}/{name}" for name in named]
    if release < (2, 37):
        subdirectories += _power_set((*legacy, _TLS))
    bits = 0
    for name in (*legacy, _TLS) if release < (2, 40) else ():
        bits |= _BITS.get(name, 0)
    return Hwcaps(named, tuple(subdirectories), bits, legacy[-1] if legacy else "")


def _power_set(names: Sequence[str]) -> Sequence[str]:
    """All combinations as ld.so orders them: those with the last name first, and the last name in front of each."""
    bits = [*enumerate(names)][::-1]
    return ["/".join(name for bit, name in bits if number >> bit & 1) for number in range((1 << len(names)) - 1, 0, -1)]


def _release(version: str) -> Tuple[int, ...]:
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() for part in parts) and len(version) < 16 else (99,)
