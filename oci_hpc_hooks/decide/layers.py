"""The image as a decision has left it: what the next one goes by. Pure.

Each thing that is asked for (an MPI, a stack of GPUs) is decided by itself, by the same ladder, in the image as the earlier ones will
have left it: their files are there, at the places where the loader will find them.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Dict, Mapping

from oci_hpc_hooks.model import Directory, HostLibrary, ImageFacts, ImageFile, LdCache

#: Marks the identity of a host file in a simulated tree; image paths start with "/".
HOST = "host:"


def host_file(identity: str) -> str:
    """The path on the host of what a decision has put there, "" for a file of the image."""
    return identity[len(HOST):] if identity.startswith(HOST) else ""


def laid_over(facts: ImageFacts, tree: Mapping[str, HostLibrary], in_place: Mapping[str, HostLibrary], cache: LdCache) -> ImageFacts:
    """The image with libraries in the tree (by path in the container) and over its own files (by real path), and with this cache."""
    files = {path: file for path, file in facts.files.items() if path not in in_place}
    for library in (*tree.values(), *in_place.values()):
        files[HOST + library.real] = ImageFile(HOST + library.real, library.file, library.elf)
    resolved = {path: HOST + in_place[real].real if real in in_place else real for path, real in facts.resolved.items()}
    resolved.update({path: HOST + library.real for path, library in tree.items()})
    folders: Dict[str, list[str]] = {}
    for path in tree:
        folder, name = posixpath.split(path)
        folders.setdefault(folder, []).append(name)
    known = {directory.path: directory for directory in facts.directories}
    for folder, names in folders.items():
        there = known.get(folder)
        known[folder] = Directory(folder, 1, 1, tuple(dict.fromkeys((*(there.names if there else ()), *names))))
    return replace(facts, files=files, resolved=resolved, directories=tuple(known.values()), cache=cache)
