"""``oci-hpc-hooks explain CONTAINER``: what was done to one container, and why.

From three witnesses: the hooks' log (what was decided), the remembered plan (each file and its reason), and, while the container runs and
may be looked into, its own mount table (what is really there).
"""

from __future__ import annotations

import argparse
import calendar
import contextlib
import json
import os
import posixpath
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from oci_hpc_hooks import cli, record, replay
from oci_hpc_hooks.apply import rootfs
from oci_hpc_hooks.cli import last, show
from oci_hpc_hooks.decide.request import MPI, OVERRIDE
from oci_hpc_hooks.errors import HookError, UsageError
from oci_hpc_hooks.inputs.container import MARK
from oci_hpc_hooks.linux import mounts
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.report import Places, own_places

#: Seconds for podman, which waits for a container that is just being started.
PATIENCE = 30

#: How a file that the plan names is found in the running container.
THERE, GONE, OTHER, UNSEEN = "there", "not there", "another file", ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="its id, the beginning of it, or its name; running or not")
    parser.epilog = "Exit codes: 0 told, 1 nothing is known of it, 2 usage or configuration."


@dataclass(frozen=True)
class Subject:
    """A container as far as podman or its runtime knows it; the id alone where neither does any more."""

    id: str
    name: str = ""
    image: str = ""
    status: str = "gone"
    pid: int = 0
    command: Tuple[str, ...] = ()  # the podman command line that made it


def execute(args: argparse.Namespace) -> int:
    places = own_places(Places(args.config_dir, args.state_dir, args.cache_dir, args.log_file))
    log = last.log_of(args)
    entries = last.read(log, sys.maxsize)
    subject = _subject(args.container, [str(entry.get("id")) for entry in entries])
    entry = next((entry for entry in entries if entry.get("id") == subject.id), None)
    seen = _mounts_of(subject)
    if entry is None and not (seen and _marked(seen)):
        removed = "if it has been removed give its id, for its name went with it" if subject.status == "gone" else ""
        raise HookError(f"nothing is known of the container {args.container}: {log} has no entry of it, for it asked for nothing, "
                        "or was started without the hooks or by another user", remedy=removed, who="user")
    document = _document(subject, entry, places, seen)
    if args.json:
        cli.print_json(document)
    else:
        show.show(_lines(document))
    return 0


# ---------------------------------------------------------------------------------------------------------------- which container

def _subject(wanted: str, logged: Sequence[str]) -> Subject:
    """The container that podman, a runtime or the log knows by this name, id or beginning of an id. Raises UsageError if several."""
    known = _asked(["podman", "container", "inspect", "--", wanted])
    if known is not None:
        state = known.get("State") or {}
        command = (known.get("Config") or {}).get("CreateCommand") or ()
        return Subject(str(known["Id"]), str(known.get("Name", "")), str(known.get("ImageName", "")), str(state.get("Status", "")),
                       int(state.get("Pid") or 0), tuple(map(str, command)))
    ids = list(dict.fromkeys(found for found in logged if wanted and found.startswith(wanted)))
    if wanted in ids:
        ids = [wanted]
    if len(ids) > 1:
        raise UsageError(f"{wanted} is the beginning of {len(ids)} containers' ids, {ids[0]} and {ids[1]} among them",
                         remedy="give more of it", who="user")
    subject = Subject(ids[0] if ids else wanted)
    for runtime in ("crun", "runc"):
        state = _asked([runtime, "state", "--", subject.id]) if not subject.id.startswith("-") else None
        if state is not None:
            return replace(subject, status=str(state.get("status", "")), pid=int(state.get("pid") or 0))
    return subject


def _asked(command: Sequence[str]) -> Optional[Dict[str, Any]]:
    """The JSON object (or the first of a list) that a command prints, None where it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=PATIENCE)
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except (FileNotFoundError, ValueError, subprocess.TimeoutExpired):
        return None
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, dict) else None


# ---------------------------------------------------------------------------------------------------------------- what is there

def _mounts_of(subject: Subject) -> Optional[mounts.MountTable]:
    """The container's mount table, None where it does not run or cannot be looked into."""
    if subject.status != "running" or subject.pid <= 1:
        return None
    try:
        return mounts.mount_table(f"/proc/{subject.pid}/mountinfo")
    except OSError:
        return None


def _marked(seen: mounts.MountTable) -> List[mounts.MountEntry]:
    return seen.made_of("tmpfs", MARK)


def _compare(files: List[Dict[str, Any]], subject: Subject, seen: mounts.MountTable, tree: str) -> List[str]:
    """Notes in each file how it is found in the container; returns the differences in words."""
    mounted = {entry.mountpoint for entry in seen.values()}
    differences = []
    with contextlib.ExitStack() as stack:
        root: Optional[Root] = None
        with contextlib.suppress(OSError):
            root = stack.enter_context(Root(os.open(f"/proc/{subject.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)))
        for file in files:
            if file["how"] != "file" and file["target"] not in mounted:
                file["now"] = GONE
            else:
                file["now"] = _look(root, file) if root is not None else UNSEEN
            if file["now"] == GONE and file["how"] == "file":
                differences.append(f"{file['target']} is not there any more: it has been removed in the container")
            elif file["now"] == GONE:
                differences.append(f"{file['target']} is not mounted any more: whoever was root in the container has taken it away")
            elif file["now"] == OTHER:
                differences.append(f"{file['target']} is another file than the plan's {file['source']}: something was mounted over it")
    planned = {file["target"] for file in files} | {tree}
    below = {place for place in mounted if tree and place.startswith(tree + "/")}
    for place in sorted((below | {entry.mountpoint for entry in _marked(seen)}) - planned):
        differences.append(f"{place} is mounted, and the plan does not have it")
    return differences


def _look(root: Root, file: Dict[str, Any]) -> str:
    try:
        fd = root.find(file["target"])
    except HookError:
        return UNSEEN
    if fd < 0:
        return GONE if file["how"] == "file" else UNSEEN
    try:
        return THERE if not file["id"] or rootfs.same_file(os.fstat(fd), *file["id"]) else OTHER
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------------------------------------- the answer

def _document(subject: Subject, entry: Optional[Dict[str, Any]], places: Places, seen: Optional[mounts.MountTable]) -> Dict[str, Any]:
    """What ``--json`` prints: schemas/explain-output.schema.json."""
    name = str((entry or {}).get("plan") or "")
    path = f"{places.cache}/plans/{name}"
    found = replay.read_plan(places, name) if name and posixpath.basename(name) == name else None
    if entry is not None and found is not None and _younger(path, str(entry.get("time"))):
        found = None  # decided anew, for a later start
    plan = found[0] if found is not None and entry is not None and entry["verdict"] in ("proved", "unproved") else None
    files = record.files(plan, str((entry or {}).get("loader_cache") or "")) if plan is not None else []
    tree = str(plan["tree_at"]) if plan is not None else ""
    for file in files:
        file["now"] = UNSEEN
    differences: List[str] = []
    if seen is not None and plan is not None:
        differences = _compare(files, subject, seen, tree)
    elif seen is not None:
        files = _only_seen(seen)
    return {
        "version": 1,
        "container": subject.id,
        "name": subject.name,
        "image": subject.image or str((entry or {}).get("image") or ""),
        "status": subject.status,
        "entry": entry,
        "plan": path if plan is not None else "",
        "looked": seen is not None,
        "tree": tree,
        "files": [{key: file[key] for key in ("source", "target", "how", "why", "now")} for file in files],
        "differences": differences,
        "without": _without(subject, entry),
    }


def _younger(path: str, logged: str) -> bool:
    """Whether a plan was written after the entry of a log that names it."""
    try:
        then = calendar.timegm(time.strptime(logged, "%Y-%m-%dT%H:%M:%SZ"))
        return os.stat(path).st_mtime > then + 2  # the log has whole seconds
    except (OSError, ValueError):
        return False


def _only_seen(seen: mounts.MountTable) -> List[Dict[str, Any]]:
    """Without a plan: what lies in the tree, which has the layout of the host, and what else carries our mark."""
    marked = _marked(seen)
    tree = next((entry.mountpoint for entry in marked if entry.root == "/"), "")
    places = sorted(entry.mountpoint for entry in seen.values() if tree and entry.mountpoint.startswith(tree + "/"))
    files = [{"source": place[len(tree):], "target": place, "how": "tree", "why": "", "now": THERE} for place in places]
    files += [{"source": tree + entry.root, "target": entry.mountpoint, "how": "in place", "why": "", "now": THERE}
              for entry in marked if entry.root != "/"]
    return files


def _without(subject: Subject, entry: Optional[Dict[str, Any]]) -> str:
    """The command that starts such a container without injection."""
    words = list(subject.command)
    for index, word in enumerate(words):
        if word in ("run", "create"):
            return shlex.join([*words[:index + 1], *OVERRIDE.split(), *_other_options(words[index + 1:], subject.name)])
    image = subject.image or str((entry or {}).get("image") or "")
    if image:
        return f"podman run {OVERRIDE} {shlex.quote(image)} …"
    return f'"annotations": {{"{MPI}": "none"}} in the bundle\'s config.json'


def _other_options(words: Sequence[str], name: str) -> Iterator[str]:
    """The words of a command line without what asks for an MPI, since the last annotation of a name counts, and without the container's
    name, which is taken as long as that is there."""
    named = "--replace" in words
    rest = iter(words)
    for word in rest:
        if word == "--annotation":
            value = next(rest, "")
            if not value.startswith(MPI + "="):
                yield from (word, value)
        elif not named and word == "--name":
            named = True  # what else has this word is the program's own
            next(rest, "")
        elif not named and word == f"--name={name}":
            named = True
        elif not word.startswith(f"--annotation={MPI}="):
            yield word


# ---------------------------------------------------------------------------------------------------------------- for people

def _lines(said: Dict[str, Any]) -> Iterator[show.Block]:
    name = f" ({said['name']})" if said["name"] else ""
    yield f"container {said['container'][:12]}{name} of {said['image'] or 'no image'}: {said['status']}"
    if said["entry"] is not None:
        yield from last.lines(said["entry"])
    else:
        yield "the log has no entry of it any more; this is what is mounted in it"
    if said["files"]:
        yield "from the plan:" if said["plan"] else "mounted:"
        headings = ("FILE", "APPEARS AS", "WHY", *(["NOW"] if said["looked"] else ()))
        yield show.Table(headings, tuple(
            (file["source"] or "a new file", file["target"], file["why"] or "-", *([file["now"] or "not seen"] if said["looked"] else ()))
            for file in said["files"]))
    elif said["entry"] is not None and said["entry"]["verdict"] in ("proved", "unproved"):
        yield "the plan is not remembered any more, so its files cannot be told"
    for difference in said["differences"]:
        yield show.Line(f"differs: {difference}", "warning")
    if said["plan"] and said["looked"] and not said["differences"]:
        yield "what is mounted in it is what the plan says"
    elif said["status"] == "running" and not said["looked"]:
        yield "what is really mounted in it cannot be seen by this user"
    yield show.Line(f"without injection: {said['without']}", whole=True)
