"""What containers are to get, as a specification of the Container Device Interface: for starts without a hook of ours.

An engine that knows CDI makes the edits of a device that is asked for (``--device KIND=NAME``) by itself. Documents are made by pure
functions of plain values; :func:`write` is the one effect. By SPEC.md of CDI 1.1.0, and what its Go library does with it
(pkg/cdi/container-edits.go): mounts are sorted by the number of parts of their paths, a missing source fails the start, and a document
with a field that its ``cdiVersion`` did not have yet is not read at all.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import Any, Dict, List, Mapping, Sequence

from oci_hpc_hooks.apply import config, rootfs
from oci_hpc_hooks.errors import UsageError
from oci_hpc_hooks.linux import files

VENDOR = "oci-hpc-hooks.org"
#: The class of devices that are the plan of one image; all others are called after their profile.
IMAGE = "image"

#: A device's name: what the strictest release (0.3) takes, but for the digit in front.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
#: A class has had dots since 0.6 only.
CLASS = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

Edits = Dict[str, List[Any]]


def document(kind: str, devices: Mapping[str, Edits], annotations: Mapping[str, str]) -> Dict[str, Any]:
    """A specification with the lowest ``cdiVersion`` that has all of its fields; ``devices`` are edits by name."""
    made: Dict[str, Any] = {"cdiVersion": "", "kind": kind}
    if annotations:
        made["annotations"] = dict(annotations)
    made["devices"] = [{"name": name, "containerEdits": edits} for name, edits in devices.items()]
    made["cdiVersion"] = _lowest_version(made)
    return made


def _lowest_version(made: Mapping[str, Any]) -> str:
    """specs-go/version.go, for the fields that are used here."""
    mounts = [mount for device in made["devices"] for mount in device["containerEdits"].get("mounts", ())]
    if "annotations" in made or "." in made["kind"].partition("/")[2]:
        return "0.6.0"
    if any(device["name"][0].isdigit() for device in made["devices"]):
        return "0.5.0"
    return "0.4.0" if any("type" in mount for mount in mounts) else "0.3.0"


def edits(mounts: Sequence[Mapping[str, Any]], devices: Sequence[str]) -> Edits:
    """The edits that bring mounts, as config.json has them, and device nodes at their own path. Numbers and modes of devices are left out:
    an engine takes them from the node at each start."""
    made: Edits = {}
    if devices:
        made["deviceNodes"] = [{"path": path, "permissions": "rw"} for path in devices]
    if mounts:
        made["mounts"] = [_mount(mount) for mount in mounts]
    return made


def _mount(mount: Mapping[str, Any]) -> Dict[str, Any]:
    made = {"hostPath": mount["source"], "containerPath": mount["destination"], "options": list(mount["options"])}
    if mount["type"] != "bind":
        made["type"] = mount["type"]
    return made


def of_files(files: Sequence[tuple[str, str]], devices: Sequence[str]) -> Edits:
    """The edits that bring files of the host, (source, destination), read-only, and devices."""
    return edits([config.file_mount(source, destination) for source, destination in files], devices)


def of_plan(record: Dict[str, Any], cache_file: str, devices: Sequence[str]) -> Edits:
    """The edits that bring what a record brings: the mounts that precreate would add. ``cache_file`` holds the record's loader cache."""
    proposed: Dict[str, Any] = {}
    config.inject(proposed, record, cache_file, rootfs.tree_size(record))
    mounts: List[Dict[str, Any]] = proposed["mounts"]
    # A runtime mounts in the order that it is given, and what comes later hides what lies below. After sorting it would not.
    seen = [mount for number, mount in enumerate(mounts)
            if not any(_hides(later["destination"], mount["destination"]) for later in mounts[number + 1:])]
    return edits(seen, devices)


def _hides(where: str, path: str) -> bool:
    return (path + "/").startswith(where + "/")


def is_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None


def name_of(image: str, identity: str) -> str:
    """A name for the device of an image: its own, and the beginning of its id, so that an image that was built anew has another."""
    last = posixpath.basename(image.rstrip("/")).partition("@")[0].partition(":")[0]
    return "-".join(filter(None, (re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-").lower(), identity[:12])))


def stem(kind: str, name: str = "") -> str:
    """What the file of a specification is called, without its ending."""
    return "-".join(filter(None, (kind.replace("/", "-"), name)))


def write(folder: str, name: str, data: bytes) -> str:
    """Puts a file in place at once or not at all, readable by all, and returns its path: engines look at the folder at any time. Its
    ending comes last, so that none takes a half-written one for a specification. Raises UsageError."""
    path = os.path.join(folder, name)
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        files.put(path, data)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise UsageError(what, remedy="run as root, or name another --output", who="user") from None
    return path
