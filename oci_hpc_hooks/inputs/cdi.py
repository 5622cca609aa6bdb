"""Specifications of the Container Device Interface that are installed on this node, and what one of their devices would bring.

Read at the scan only. By SPEC.md of CDI 1.1.0 and its Go library (pkg/cdi/cache.go, specs-go/version.go): later folders go before earlier
ones, a device that one folder has twice is nobody's, and a file that is wrong counts for nothing. A file counts here only if root alone
can have written it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import trust

#: Where engines look; those that are made at each boot go before those of the site.
FOLDERS = ("/etc/cdi", "/var/run/cdi")

_LIMIT = 4 << 20
_MOST_FILES = 256

_VERSIONS = ((0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (1, 0), (1, 1))
_VENDOR_OR_CLASS = r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?"

_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
#: The keys of each object, and the release that has brought each (specs-go/config.go).
_OLD = (0, 3)
_KEYS: Mapping[str, Mapping[str, Tuple[int, int]]] = {
    "specification": {"cdiVersion": _OLD, "kind": _OLD, "annotations": (0, 6), "devices": _OLD, "containerEdits": _OLD},
    "device": {"name": _OLD, "annotations": (0, 6), "containerEdits": _OLD},
    "containerEdits": {"env": _OLD, "deviceNodes": _OLD, "mounts": _OLD, "hooks": _OLD, "additionalGids": (0, 7), "intelRdt": (0, 7),
                       "netDevices": (1, 1)},
    "deviceNodes": {"path": _OLD, "hostPath": (0, 5), "type": _OLD, "major": _OLD, "minor": _OLD, "fileMode": _OLD, "permissions": _OLD,
                    "uid": _OLD, "gid": _OLD},
    "mounts": {"hostPath": _OLD, "containerPath": _OLD, "options": _OLD, "type": (0, 4)},
    "hooks": {"hookName": _OLD, "path": _OLD, "args": _OLD, "env": _OLD, "timeout": _OLD},
    "netDevices": {"hostInterfaceName": (1, 1), "name": (1, 1)},
    "intelRdt": {"closID": (0, 7), "l3CacheSchema": (0, 7), "memBwSchema": (0, 7), "enableCMT": (0, 7), "enableMBM": (0, 7),
                 "schemata": (1, 1), "enableMonitoring": (1, 1)},
}
_NEEDED = {"specification": ("cdiVersion", "kind", "devices"), "device": ("name", "containerEdits"), "deviceNodes": ("path",),
           "mounts": ("hostPath", "containerPath"), "hooks": ("hookName", "path"), "netDevices": ("hostInterfaceName", "name")}
_INT64, _UINT32 = range(-(1 << 63), 1 << 63), range(1 << 32)
_NUMBERS = {"major": _INT64, "minor": _INT64, "fileMode": _UINT32, "uid": _UINT32, "gid": _UINT32, "timeout": _UINT32}

#: What a hook of a specification is told to do, as the vendors' generators write it, and what becomes of it here.
CREATE_SYMLINKS = "create-symlinks"
_DONE_ANYWAY = ("update-ldcache", "enable-cuda-compat")  # the loader's cache is generated; what may be newer, a profile says ("newer")
_LEFT_OUT = {
    "disable-device-node-modification": "programs of the driver may try to make device nodes",
    "chmod": "modes of directories of device nodes stay as they are",
}


@dataclass(frozen=True)
class Device:
    """What a device and its specification bring together.

    ``mounts`` are (path on the host, path in containers); ``links`` (path in containers, what it leads to there). ``problems``: what it
    cannot be offered without; ``notes``: what is left out.
    """

    name: str
    file: str
    mounts: Tuple[Tuple[str, str], ...] = ()
    devices: Tuple[str, ...] = ()
    links: Tuple[Tuple[str, str], ...] = ()
    problems: Tuple[str, ...] = ()
    notes: Tuple[str, ...] = ()


class _Wrong(Exception):
    """A specification that no engine would load."""


def consulted(folders: Sequence[str] = FOLDERS) -> List[str]:
    """The paths that an answer of :func:`find` rests on."""
    return [*folders, *_files(folders)]


def _files(folders: Sequence[str]) -> Iterator[str]:
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        yield from [os.path.join(folder, name) for name in names if name.endswith((".json", ".yaml"))][:_MOST_FILES]


def find(name: str, folders: Sequence[str] = FOLDERS) -> Device:
    """The device of this qualified name. Raises ConfigError: none of the files that count has it, or one folder has it twice."""
    kind, _, wanted = name.partition("=")
    found: Dict[str, List[Tuple[str, Dict[str, Any], Dict[str, Any]]]] = {}
    wrong: List[str] = []
    for path in _files(folders):
        try:
            document = _read(path)
        except ConfigError as error:
            wrong.append(f"{error.what} ({error.remedy})")
            continue
        except _Wrong as error:
            wrong.append(f"{path} does not count: {error}")
            continue
        for device in document["devices"]:
            if document["kind"] == kind and device["name"] == wanted:
                found.setdefault(os.path.dirname(path), []).append((path, document, device))
    here = next((found[folder] for folder in reversed(folders) if folder in found), [])
    if len(here) > 1:
        files = " and ".join(path for path, _, _ in here)
        raise ConfigError(f"the CDI device {name} is in {files}, which makes it nobody's: remove one of the two")
    if not here:
        why = "; ".join(wrong) or "write it with the vendor's generator, such as nvidia-ctk cdi generate"
        raise ConfigError(f"there is no CDI device {name} in {' or '.join(folders)}: {why}")
    ((path, document, device),) = here
    return _gather(Device(name, path), document.get("containerEdits") or {}, device["containerEdits"])


# ---------------------------------------------------------------------------------------------------------------- one file

def _read(path: str) -> Dict[str, Any]:
    raw = trust.read_trusted(path, _LIMIT, (os.path.realpath(os.path.dirname(path)),))
    try:
        document = _yaml(raw) if path.endswith(".yaml") else json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"it is no {'YAML' if path.endswith('.yaml') else 'JSON'} ({' '.join(str(error).split())})") from None
    check(document)
    found: Dict[str, Any] = document
    return found


def _yaml(raw: bytes) -> Any:
    try:
        import yaml
    except ImportError:
        raise _Wrong("it is YAML, and PyYAML is not installed: install it (python3-pyyaml), or write the file as JSON") from None
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except (LookupError, AttributeError) as error:  # what its constructors make of a tag before something else ("!!int ''")
        raise ValueError(f"a value is none of its tag ({error!r})") from None


def check(document: Any) -> None:
    """Raises _Wrong unless CDI's own library would load this document."""
    version = _object(document, "specification", "the file", (9, 9))["cdiVersion"]
    numbers = re.fullmatch(r"v?([0-9]{1,3})\.([0-9]{1,3})\.[0-9]+", version) if isinstance(version, str) else None
    release = (int(numbers[1]), int(numbers[2])) if numbers else None
    if release not in _VERSIONS:
        raise _Wrong(f"cdiVersion {version!r} is not known here")
    _object(document, "specification", "the file", release)
    _texts(document.get("annotations"), "the file: annotations")
    kind = document["kind"]
    if not isinstance(kind, str) or re.fullmatch(f"{_VENDOR_OR_CLASS}/{_VENDOR_OR_CLASS}", kind) is None:
        raise _Wrong(f"{kind!r} is no kind, which is VENDOR/CLASS")
    if "." in kind.partition("/")[2]:
        _old_enough((0, 6), release, "a class with a dot")
    names = set()
    for number, device in enumerate(_list(document["devices"], "devices")):
        at = f"devices[{number}]"
        name = _object(device, "device", at, release)["name"]
        _texts(device.get("annotations"), f"{at}.annotations")
        if not isinstance(name, str) or re.fullmatch(_NAME, name) is None or name in names:
            raise _Wrong(f"{at}: {name!r} is no name of a device, or is there twice")
        if name[0].isdigit():
            _old_enough((0, 5), release, "a device whose name begins with a digit")
        names.add(name)
        _edits(device["containerEdits"], at, release)
        if not any(device["containerEdits"].values()):
            raise _Wrong(f"{at} edits nothing")
    if not names:
        raise _Wrong("it has no devices")
    if "containerEdits" in document:
        _edits(document["containerEdits"], "", release)


def _edits(found: Any, at: str, release: Tuple[int, int]) -> None:
    edits = _object(found, "containerEdits", f"{at}.containerEdits", release)
    for item in _list(edits.get("env"), f"{at}.env"):
        if not isinstance(item, str) or item.find("=") < 1:
            raise _Wrong(f"{at}: {item!r} is no NAME=value")
    _numbers(dict(enumerate(_list(edits.get("additionalGids"), f"{at}.additionalGids"))), f"{at}.additionalGids")
    _rdt(edits.get("intelRdt"), f"{at}.intelRdt", release)
    for kind in ("deviceNodes", "mounts", "hooks", "netDevices"):
        for number, row in enumerate(_list(edits.get(kind), f"{at}.{kind}")):
            where = f"{at}.{kind}[{number}]"
            row = _object(row, kind, where, release)
            for key in ("path", "hostPath", "containerPath"):
                if key in row and not (isinstance(row[key], str) and row[key] and "\0" not in row[key]):
                    raise _Wrong(f"{where}.{key} is no path")
            for key in ("options", "args", "env"):
                _words(row.get(key), f"{where}.{key}")
            _texts({key: row.get(key) for key in ("type", "permissions", "hostInterfaceName", "name")}, where)
            _numbers({key: row.get(key) for key in _NUMBERS}, where)
            if kind == "hooks" and (row["hookName"] not in _HOOKS or not row["path"].startswith("/")):
                raise _Wrong(f"{where} is no hook at one of {', '.join(_HOOKS)}, with an absolute path")
            if kind == "deviceNodes" and row.get("type", "") not in ("", "b", "c", "u", "p"):
                raise _Wrong(f"{where}.type {row['type']!r} is no type of a device node")


def _object(found: Any, kind: str, where: str, release: Tuple[int, int]) -> Dict[str, Any]:
    if not isinstance(found, dict):
        raise _Wrong(f"{where} is no object")
    for key in found:
        if key not in _KEYS[kind]:
            raise _Wrong(f"{where} has a key that CDI does not know: {key!r}")
        if found[key]:
            _old_enough(_KEYS[kind][key], release, f"{where}: {key}")
    for key in _NEEDED.get(kind, ()):
        if key not in found:
            raise _Wrong(f"{where} has no {key}")
    return found


def _words(found: Any, where: str) -> None:
    if not all(isinstance(word, str) for word in _list(found, where)):
        raise _Wrong(f"{where} is no list of strings")


def _texts(found: Any, where: str) -> None:
    if not isinstance(found, (dict, type(None))):
        raise _Wrong(f"{where} is no object")
    for key, text in (found or {}).items():
        if not isinstance(key, str) or not isinstance(text, (str, type(None))):
            raise _Wrong(f"{where}.{key} is no string")


def _numbers(found: Mapping[Any, Any], where: str) -> None:
    for key, number in found.items():
        allowed = _NUMBERS.get(key, _UINT32)
        if number is not None and (type(number) is not int or number not in allowed):
            raise _Wrong(f"{where}.{key} is no whole number from {allowed[0]} to {allowed[-1]}")


def _rdt(found: Any, where: str, release: Tuple[int, int]) -> None:
    if found is None:
        return
    parts = _object(found, "intelRdt", where, release)
    _words(parts.get("schemata"), f"{where}.schemata")
    _texts({key: parts.get(key) for key in ("closID", "l3CacheSchema", "memBwSchema")}, where)
    for key in ("enableCMT", "enableMBM", "enableMonitoring"):
        if not isinstance(parts.get(key), (bool, type(None))):
            raise _Wrong(f"{where}.{key} is neither true nor false")


def _old_enough(since: Tuple[int, int], release: Tuple[int, int], what: str) -> None:
    if since > release:
        raise _Wrong(f"{what} came with cdiVersion {since[0]}.{since[1]}.0, and it says {release[0]}.{release[1]}.0")


def _list(found: Any, where: str) -> List[Any]:
    if found is None:
        return []
    if not isinstance(found, list):
        raise _Wrong(f"{where} is no list")
    return found


# ---------------------------------------------------------------------------------------------------------------- what it means

def _gather(device: Device, *edits: Mapping[str, Any]) -> Device:
    mounts: List[Tuple[str, str]] = []
    devices: List[str] = []
    links: List[Tuple[str, str]] = []
    problems: List[str] = []
    notes: List[str] = []
    for part in edits:
        for mount in part.get("mounts") or ():
            host, path = (os.path.normpath(mount[key]) for key in ("hostPath", "containerPath"))
            if mount.get("type", "bind") not in ("", "bind", "none") or not host.startswith("/") or not path.startswith("/"):
                notes.append(f"the mount {path} is left out: it is no file of the host")
            elif not os.path.lexists(host):
                problems.append(f"the CDI specification {device.file} is out of date: {host} is not there; write it again with the "
                                "vendor's generator (such as nvidia-ctk cdi generate)")
            else:
                mounts.append((host, path))
        for node in part.get("deviceNodes") or ():
            path = os.path.normpath(node["path"])
            if not path.startswith("/dev/") or "*" in path or os.path.normpath(node.get("hostPath") or path) != path:
                notes.append(f"the device {path} is left out: only devices at their own path below /dev come")
            else:
                devices.append(path)
        for hook in part.get("hooks") or ():
            words = hook.get("args") or []
            if CREATE_SYMLINKS in words:
                links += _links(words)
                continue
            left = next((_LEFT_OUT[word] for word in words if word in _LEFT_OUT), "")
            if left:
                notes.append(f"its hook {' '.join(words)} is not started: {left}")
            elif not any(word in _DONE_ANYWAY for word in words):
                problems.append(f"the CDI specification {device.file} wants the hook {' '.join([hook['path'], *words[1:]])}, and what that "
                                "does is not known here")
        notes += [f"the variable {item} is not set" for item in part.get("env") or ()]
        notes += [f"{key} is left out" for key in ("additionalGids", "intelRdt", "netDevices") if part.get(key)]
    return replace(device, mounts=tuple(dict.fromkeys(mounts)), devices=tuple(dict.fromkeys(devices)), links=tuple(dict.fromkeys(links)),
                   problems=tuple(problems), notes=tuple(notes))


def _links(words: Sequence[str]) -> Iterator[Tuple[str, str]]:
    """``--link TARGET::LINK``, as often as there are links."""
    for word, value in zip(words, [*words[1:], ""]):
        pair = value if word == "--link" else word[len("--link="):] if word.startswith("--link=") else ""
        target, colons, link = pair.partition("::")
        if colons and target and link.startswith("/"):
            yield os.path.normpath(link), target


def host_path(device: Device, path: str, sonames: Mapping[str, str]) -> Optional[str]:
    """The file of the host behind a path in containers, by way of the device's links; None if it has none. ``sonames``: those of the links
    that ldconfig would make there, and the file of the host behind each."""
    files = {**sonames, **{inside: host for host, inside in device.mounts}}
    links = dict(device.links)
    for _ in range(8):
        if path in files:
            return files[path]
        if path not in links:
            return None
        path = os.path.normpath(os.path.join(os.path.dirname(path), links[path]))
    return None


def root(device: Device) -> str:
    """The directory that stands for "/" in the paths of all mounts, "" if it is "/" or there is no such directory."""
    roots = {host[:-len(inside)] if host.endswith(inside) else "" for host, inside in device.mounts}
    return roots.pop() if len(roots) == 1 else ""
