"""A newer release of a driver's libraries in the image, which works on the kernel modules of an older one. Pure.

NVIDIA calls it CUDA forward compatibility: images carry a libcuda of their CUDA release in a directory that no loader looks into. Where
it is newer than the node's and meant for it, the names lead there instead of to the site's. Nothing of the image is mounted: the loader's
cache leads to it where it lies.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Dict, Optional, Tuple

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.model import NOTE, WARNING, Finding, ImageFacts, NewerLibrary, ResolvedProfile


def prefer(profile: ResolvedProfile, facts: ImageFacts) -> Tuple[ResolvedProfile, Dict[str, str], Optional[Finding]]:
    """The profile without what the image has newer, and by name where in the image that lies; with a finding where the image has any."""
    found = facts.newer.get(profile.newer.file, ()) if profile.newer is not None else ()
    ours = next((library for library in profile.libraries if library.role == "replace"), None)
    if not found or ours is None:
        return profile, {}, None
    paths = " and ".join(library.path for library in found)
    host = posixpath.basename(ours.real).partition(".so.")[2]
    why = f"{len(found)} libraries fit, and one is expected" if len(found) > 1 else _why_not(found[0], host, facts)
    if why:
        what = f"the site's {ours.name} ({host or ours.real}) is used and not {paths} of the image: {why}"
        if len(found) > 1 or _major(_release(found[0])) <= _major(host):
            return profile, {}, Finding(NOTE, "newer-in-image", what)
        remedy = "use a node with a newer driver, or an image with an older toolkit"
        return profile, {}, Finding(WARNING, "newer-in-image", what, remedy=remedy, who="user")
    folder = posixpath.dirname(found[0].path)
    names = next((directory.names for directory in facts.directories if directory.path == folder), ())
    own = {name: f"{folder}/{name}" for name in names if facts.resolved.get(f"{folder}/{name}") in facts.files
           and not name.endswith(f".so.{_release(found[0])}")}
    kept = tuple(library for library in profile.libraries if own.keys().isdisjoint((library.name, *library.replaces)))
    supports = found[0].supports
    meant = f"meant for {', '.join(map(str, supports))}" if supports else "without a note for which drivers it is meant"
    return replace(profile, libraries=kept), own, Finding(
        NOTE, "newer-in-image", f"{paths} of the image is used and not the site's {ours.name} ({host}): it is newer, and {meant}")


def _why_not(library: NewerLibrary, host: str, facts: ImageFacts) -> str:
    elf = facts.files[facts.resolved[library.path]].elf
    if facts.libc is not None and abi.kind(elf) != abi.kind(facts.libc.elf):
        return "it is for another machine"
    if not _major(host):
        return "the release of the site's is not to be seen in its name"
    if _major(_release(library)) <= _major(host):
        return "it is no newer"
    if library.supports is not None and _major(host) not in library.supports:
        return f"by its note it is meant for drivers {', '.join(map(str, library.supports)) or 'of no release'}"
    return ""


def _release(library: NewerLibrary) -> str:
    return posixpath.basename(library.path).partition(".so.")[2]


def _major(release: str) -> int:
    """0 where there is none."""
    digits = release.partition(".")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 10 else 0
