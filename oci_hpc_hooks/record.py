"""A plan in the plain form that is applied and remembered.

A line with a checksum, one JSON object on one line, then the bytes of the loader cache: a single file, written whole or not at all, that
the warm path reads with one call. Rows are lists to keep it short: ``[source, inode, size, mtime_ns, target, …]``.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import tempfile
import time
from binascii import crc32
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from oci_hpc_hooks import replay, report
from oci_hpc_hooks.apply import rootfs
from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.errors import HookError
from oci_hpc_hooks.inputs import jsontext, resources
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import Bind, Container, Directory, FileId, Finding, ImageFacts, Plan, Watched
from oci_hpc_hooks.start import words_of

#: Why what is made by ourselves is there.
COVER = "modules go with their libraries"
CACHE = "the image's loader cache with the site's libraries"
DROP_IN = "with it, what ldconfig makes in the container leads to the site's libraries too"

#: Remembered plans per node or user. An anonymous volume makes every start a new case, so the oldest must go some time.
PLANS_LIMIT = 1024
#: How the names of whole files there end, and seconds after which nobody is writing at any other.
WHOLE = (".plan", ".ldcache")
HALF_WRITTEN = 60


def build(plan: Plan, facts: Optional[ImageFacts], watched: Sequence[Watched], key: str) -> Tuple[Dict[str, Any], bytes]:
    """The record of a plan that may be applied (any verdict but "refused"), and the loader cache that goes with it."""
    cache = ldcache.serialize(plan.cache) if plan.cache is not None and plan.cache_target else b""
    covered = {bind.target for bind in plan.in_place}  # checked when they are opened to be mounted over
    files = [file for file in facts.files.values() if file.path not in covered] if facts else []
    sources = {bind.source for bind in (*plan.tree, *plan.in_place, *plan.files)}  # checked when they are opened to be mounted
    record: Dict[str, Any] = {
        "version": replay.RECORD_VERSION,
        "key": key,
        "verdict": plan.verdict,
        "profile": plan.profile,
        "tree_at": plan.tree_root if plan.tree else "",
        "tree_make": plan.tree_make,
        "dirs": _directories(plan.tree),
        "tree": [[bind.source, *_row(bind.source_file), bind.target] for bind in plan.tree],
        "in_place": [[bind.source, *_row(bind.source_file), bind.target, *_row(bind.over)] for bind in plan.in_place],
        "files": [[bind.source, *_row(bind.source_file), bind.target] for bind in plan.files],
        "modules": [[cover.folder, cover.target, cover.inode, cover.mtime_ns] for cover in plan.modules],
        "cache": {"target": plan.cache_target, "over": _row(plan.cache_over) if plan.cache_over else None,
                  "drop_in": [plan.drop_in.path, plan.drop_in.text] if plan.drop_in else None} if cache else None,
        "cache_length": len(cache),
        "host_files": [[item.path, *_row(item.file)] for item in _not_implied(watched) if item.path not in sources],
        "image_files": [[file.path, *_row(file.file)] for file in files],
        "image_dirs": _image_dirs(facts.directories) if facts else [],
        "findings": [finding_document(finding) for finding in plan.findings],
        "why": _why((*plan.tree, *plan.in_place, *plan.files)),
        "devices": list(plan.devices),
        "open_devices": list(plan.open_devices),
        "job": dataclasses.asdict(plan.job) if plan.job is not None else None,
        "network": dataclasses.asdict(plan.network) if plan.network is not None else None,
        "gpus": dataclasses.asdict(plan.gpus) if plan.gpus is not None else None,
    }
    if facts is not None and facts.cache_file is not None and not cache:
        record["image_files"].append([facts.cache_real, *_row(facts.cache_file)])
    if plan.drop_in is not None:
        record["image_files"].append([plan.drop_in.rests_on.path, *_row(plan.drop_in.rests_on.file)])
    return record, cache


def _not_implied(watched: Sequence[Watched]) -> List[Watched]:
    """Without those of which another row tells: to make what is missing in a directory changes that directory. And the package's own
    profiles, which are replaced as a whole, by rename, as any package's files are: their directory tells, and who edits one in place
    scans, or waits for the next cold start, which looks at each."""
    there = {item.path for item in watched if item.file is not None}
    shipped = str(resources.PROFILES)
    found = []
    for item in watched:
        folder = posixpath.dirname(item.path)
        implied = folder == shipped if item.file is not None else not os.path.lexists(item.path)  # a link that leads nowhere is there
        if folder not in there or not implied:
            found.append(item)
    return found


def _image_dirs(directories: Sequence[Directory]) -> List[List[Any]]:
    """Each once, and nothing below what is missing."""
    found: Dict[str, List[Any]] = {}
    missing = set()
    for folder in directories:
        path = posixpath.normpath(folder.path) if ".." not in folder.path else folder.path
        if posixpath.dirname(path) not in missing:
            found[path] = [path, folder.inode, folder.mtime_ns]
        if not folder.inode:
            missing.add(path)
    return list(found.values())


def _why(binds: Sequence[Bind]) -> Dict[str, List[int]]:
    """Each reason with the numbers of the rows that are there for it: few reasons, many rows."""
    found: Dict[str, List[int]] = {}
    for number, bind in enumerate(binds):
        found.setdefault(bind.why, []).append(number)
    return found


def files(record: Mapping[str, Any], cache_as: str = "") -> List[Dict[str, Any]]:
    """What a record puts into the container, for people: source, target, how ("tree", "in place", or "file" in its own layer), why, and
    ``id``, which is inode, size and mtime of the source (of a directory that covers modules and of the loader cache, which are of our own
    making: nothing). ``cache_as`` is how the cache arrived ("file" or "bind"), if that is known to be otherwise than planned."""
    reasons = {number: why for why, numbers in record.get("why", {}).items() for number in numbers}
    at = record["tree_at"]
    rows = [(row[0], f"{at}/{row[4]}", "tree", row[1:4]) for row in record["tree"]]
    rows += [(row[0], row[4], "in place", row[1:4]) for row in (*record["in_place"], *record["files"])]
    found = [{"source": source, "target": target, "how": how, "why": reasons.get(number, ""), "id": tuple(identity)}
             for number, (source, target, how, identity) in enumerate(rows)]
    found += [{"source": f"{at}/{row[0]}", "target": row[1], "how": "in place", "why": COVER, "id": ()} for row in record["modules"]]
    cache = record["cache"]
    if cache and (cache_as or ("file" if cache["drop_in"] else "bind")) == "file":
        found += [{"source": "", "target": target, "how": "file", "why": why, "id": ()}
                  for target, why in ((cache["target"], CACHE), (cache["drop_in"][0] if cache["drop_in"] else "", DROP_IN)) if target]
    elif cache:
        found.append({"source": f"{at}/ld.so.cache", "target": cache["target"], "how": "in place", "why": CACHE, "id": ()})
    return found


def _row(file: Optional[FileId]) -> List[int]:
    return [file.inode, file.size, file.mtime_ns] if file else [0, 0, 0]


def _directories(binds: Sequence[Bind]) -> List[str]:
    """The directories that the tree needs, parents first."""
    found: Dict[str, None] = {}
    for bind in binds:
        parts = posixpath.dirname(bind.target).split("/")
        for length in range(1, len(parts) + 1):
            found["/".join(parts[:length])] = None
    found.pop("", None)
    return list(found)


def finding_document(finding: Finding) -> Dict[str, str]:
    """A finding as it stands in logs and in ``--json`` output."""
    return {"severity": finding.severity, "code": finding.code, "what": finding.what, "origin": finding.origin,
            "remedy": finding.remedy, "who": finding.who}


def remember(places: report.Places, record: Dict[str, Any], cache: bytes) -> None:
    """Keeps a record for the warm path. Best effort: a node whose disk is full or read-only decides anew each time."""
    folder = places.cache + "/plans"
    try:
        for path in (places.cache, folder):
            try:
                os.mkdir(path, 0o700 if places.cache.startswith("/run/user/") else 0o755)
            except FileExistsError:
                pass
        status = os.stat(folder, follow_symlinks=False)
        if not replay.owned(status):
            return
        fd, temporary = tempfile.mkstemp(dir=folder)
        try:
            with open(fd, "wb") as file:
                data = jsontext.dumps(record).encode() + b"\n" + cache
                file.write(b"%08x\n" % crc32(data) + data)
            os.rename(temporary, f"{folder}/{replay.plan_file(record['key'])}")
        except BaseException:
            os.unlink(temporary)
            raise
        _tidy(folder)
    except OSError:
        pass


def key_begins(places: Tuple[str, str, str, str], container: Container, defaults: Sequence[Tuple[str, str]]) -> str:
    """How :func:`replay.key_of` begins for a start of this container, whatever volumes and options it gets."""
    words = words_of(container.annotations, container.labels, container.manifest_annotations)
    head = replay.head_of_key(places, container.image_id or container.rootfs, words, list(defaults), container.args, container.env,
                              container.cwd)
    return repr(head)[:-1]



def knows(places: report.Places, begins: str, root: Root) -> bool:
    """Whether a plan is remembered for starts whose key begins so, and nothing that it rests on has changed: such a start is a warm one."""
    try:
        names = [name for name in os.listdir(places.cache + "/plans") if name.endswith(".plan")]
    except OSError:
        return False
    for name in names:
        found = replay.read_plan(places, name)
        if found is not None and found[0]["key"].startswith(begins) and _still_holds(found[0], root):
            return True
    return False


def _still_holds(record: Dict[str, Any], root: Root) -> bool:
    try:
        replay.check_host(record)
        for path, *row in (row[:4] for row in (*record["tree"], *record["in_place"], *record["files"])):
            if not rootfs.same_file(os.stat(path), *row):
                return False
        rootfs.check_image(record, root)
        return True
    except (rootfs.Stale, HookError, OSError):
        return False


def _tidy(folder: str) -> None:
    """Takes away what a killed process left half written, and a quarter of the plans when there are too many, the oldest first. What is of
    the future is older than all else: the clock has been set back."""
    now = time.time()

    def age(entry: os.DirEntry[str]) -> float:
        written = entry.stat(follow_symlinks=False).st_mtime
        return now - written if written <= now + HALF_WRITTEN else now

    with os.scandir(folder) as entries:
        files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    going = [entry for entry in files if not entry.name.endswith(WHOLE) and age(entry) > HALF_WRITTEN]
    if len(files) > PLANS_LIMIT:
        going += sorted(files, key=age, reverse=True)[: PLANS_LIMIT // 4]
    for entry in going:
        try:
            os.unlink(entry.path)
        except FileNotFoundError:
            pass  # another start did it
