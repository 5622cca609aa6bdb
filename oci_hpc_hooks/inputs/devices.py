"""Which device nodes this node has (light module: a start whose plan asks for devices imports it)."""

from __future__ import annotations

import posix
from _stat import S_ISBLK, S_ISCHR

from oci_hpc_hooks.linux import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence

#: Entries of /dev that are looked at.
_MOST_NAMES = 100_000


def devices(patterns: Sequence[str], every: bool) -> list[str]:
    """The device nodes that patterns stand for; those that not everybody may read and write only with ``every``, or where this process is
    no root of the node: then the kernel looks at the caller's rights when they are opened."""
    found: dict[str, None] = {}
    listed: dict[str, list[str]] = {}
    for pattern in patterns:
        folder, _, name = pattern.rpartition("/")
        before, star, after = name.partition("*")
        names = [name]
        if star:
            if folder not in listed:
                listed[folder] = names_in(folder)
            fixed = len(before) + len(after)
            names = [one for one in listed[folder] if one.startswith(before) and one.endswith(after) and len(one) >= fixed]
        for one in names:
            try:
                mode = posix.stat(f"{folder}/{one}", follow_symlinks=False).st_mode
            except OSError:
                continue
            if (S_ISCHR(mode) or S_ISBLK(mode)) and (every or mode & 0o006 == 0o006 or namespaces.caller_uid() != 0):
                found[f"{folder}/{one}"] = None
    return list(found)


def names_in(folder: str) -> list[str]:
    try:
        return sorted(posix.listdir(folder)[:_MOST_NAMES])
    except OSError:
        return []
