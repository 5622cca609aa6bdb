"""A decision as one word, equal on two nodes exactly if a container gets the same from both: ``check --digest``.

The word has a part for each thing that can differ, so that who has two of them can also say what does. What differs between nodes and
makes no difference to a container stays out: inodes, times, the findings' words.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

from oci_hpc_hooks import record
from oci_hpc_hooks.errors import UsageError, sentence
from oci_hpc_hooks.inputs import gpus
from oci_hpc_hooks.inputs.devices import devices as devices_of
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import Container, ImageFacts, Plan

#: How the word begins. Another number means that words cannot be compared.
VERSION = "1"

#: The parts, with what is said of one that differs ("{here}", "{there}": its value on this side and on the other).
PARTS: Dict[str, str] = {
    "image": "the image itself is another one",
    "verdict": "it is {here} here and {there} there",
    "profile": "it gets profile {here} here and {there} there",
    "files": "other files arrive, or at other places ({here} here, {there} there)",
    "contents": "the contents of files differ",
    "cache": "the loader's cache differs",
    "devices": "other devices are there ({here} here, {there} there)",
    "job": "another part of the job comes with it",
}
_NONE = "none"
_CHUNK = 1 << 20
#: Hexadecimal digits of each part.
_DIGITS = 16


def parts_of(plan: Plan, facts: Optional[ImageFacts], container: Container, root: Root) -> Dict[str, str]:
    """The parts of the decision. Raises OSError and HookError for files that cannot be read."""
    made, cache = record.build(plan, None, (), "")
    files = record.files(made)
    contents = {bind.source: _content(bind.source) for bind in (*plan.tree, *plan.in_place, *plan.files)}
    drop_in = plan.drop_in.text if plan.drop_in else ""
    devices = sorted({*devices_of(plan.devices, True), *devices_of(plan.open_devices, False),
                      *(gpus.all_nodes(made["gpus"]) if made["gpus"] else ())})
    job = dataclasses.asdict(plan.job) if plan.job else {}
    job.pop("origin", None)
    return {
        "image": container.image_id[:_DIGITS] or _tree(facts, root),
        "verdict": plan.verdict,
        "profile": (plan.profile or _NONE) + (f"/{plan.variant}" if plan.variant else ""),
        "files": _part([[file["target"], file["how"]] for file in files]),
        "contents": _part([[file["target"], contents[file["source"]]] for file in files if file["source"] in contents]),
        "cache": _hash(cache + drop_in.encode()) if cache else _NONE,
        "devices": _part(devices),
        "job": _part([job] if job else []),
    }


def word(parts: Dict[str, str]) -> str:
    """All of them, without a blank."""
    return ",".join([VERSION, *(f"{name}={parts[name]}" for name in PARTS)])


def parse(text: str) -> Dict[str, str]:
    """The parts of a word. Raises UsageError where it is none of this version."""
    version, *pairs = text.strip().split(",")
    parts = dict(pair.partition("=")[::2] for pair in pairs)
    if version != VERSION or list(parts) != list(PARTS):
        raise UsageError(f"--expect {text!r}: this is no digest as this release makes them", remedy="give what check --digest of the same "
                         "release prints", who="user")
    return parts


def differing(parts: Dict[str, str], expected: Sequence[Dict[str, str]]) -> Tuple[List[str], Dict[str, str]]:
    """Names of the parts in which this decision differs from the nearest of those expected, and that one."""
    others = [([name for name in PARTS if parts[name] != other[name]], other) for other in expected]
    return min(others, key=lambda pair: len(pair[0]))


def told(target: str, parts: Dict[str, str], names: Sequence[str], other: Dict[str, str]) -> str:
    """For people: what differs, as far as the two words tell it. Of another image all else may differ too, and is not told."""
    said = []
    for name in names[:1] if "image" in names else names:
        here, there = (_shown(side[name]) for side in (parts, other))
        said.append(PARTS[name].format(here=here, there=there))
    what = f"{os.uname().nodename}: a container of {target} would not get here what it gets where the digest comes from: {'; '.join(said)}"
    remedy = "compare what oci-hpc-hooks check --all says on both nodes, and mend the odd one (oci-hpc-hooks scan after that)"
    if "image" in names:
        remedy = "pull the same image on both nodes"
    return sentence(what, remedy=remedy, who="user" if "image" in names else "site admin")


def _shown(part: str) -> str:
    """What of a part means something to people: a count stands before its hash."""
    return part.partition(".")[0]


def _part(values: Sequence[Any]) -> str:
    rows = sorted(json.dumps(value, sort_keys=True) for value in values)
    return f"{len(rows)}.{_hash(json.dumps(rows).encode())}" if rows else "0"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return _sha256(file.fileno())


def _sha256(fd: int) -> str:
    found = hashlib.sha256()
    while True:
        data = os.read(fd, _CHUNK)
        if not data:
            return found.hexdigest()
        found.update(data)


def _tree(facts: Optional[ImageFacts], root: Root) -> str:
    """What stands for the identity of a tree that has none: its programs, its libc, and its loader's cache, which lists the others."""
    rows = []
    paths = [*facts.programs, facts.libc.path if facts.libc else "", facts.cache_real] if facts else []
    for path in filter(None, paths):
        fd = root.open_regular(path)
        if fd >= 0:
            try:
                rows.append([path, _sha256(fd)])
            finally:
                os.close(fd)
    return "tree" + _part(rows)
