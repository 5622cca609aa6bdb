"""What the node offers, kept between the scan and the hooks: ``inventory.json`` in the state directory.

The hook loads it on its cold path, so loading needs neither jsonschema nor dataclasses-json: the file is root's and our own, its
version is checked and a value that does not fit ends in a sentence. Writing holds it against the schema.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Dict, List, Optional, Sequence

from oci_hpc_hooks.errors import ConfigError, InputError
from oci_hpc_hooks.inputs import jsontext, trust
from oci_hpc_hooks.linux import files
from oci_hpc_hooks.model import (
    Cpu,
    ElfFacts,
    FileId,
    GpuCapabilities,
    GpuParts,
    GpuRequirements,
    Gpus,
    HostFile,
    HostLibrary,
    Interface,
    Inventory,
    Job,
    Need,
    Newer,
    ResolvedProfile,
    ResolvedSet,
    Scheduler,
    Site,
    SiteProfile,
    Variant,
    Watched,
)

NAME = "inventory.json"
VERSION = 5
LIMIT = 32 << 20

_SCAN_AGAIN = "run oci-hpc-hooks scan"


class OtherVersion(ConfigError):
    """An inventory that an older or a newer release of this package has written."""


def path_in(state_dir: str) -> str:
    return os.path.join(state_dir, NAME)


def document(inventory: Inventory) -> Dict[str, Any]:
    """The inventory as the JSON object that its schema describes."""
    return dataclasses.asdict(inventory)


def write(inventory: Inventory, state_dir: str, fixed: Sequence[str] = ()) -> str:
    """Put the inventory in place at once or not at all; returns its path. The directory is made, with mode 0755, if it is missing.

    ``fixed`` as in :func:`trust.read_trusted`. Raises :class:`ConfigError` if the directory cannot be written or is not root's alone.
    """
    import json

    from oci_hpc_hooks.inputs import validate

    path = path_in(state_dir)
    raw = (json.dumps(document(inventory), indent=1) + "\n").encode()
    validate.check(raw, "inventory", path)
    try:
        os.makedirs(state_dir, mode=0o755, exist_ok=True)
        trust.trust_directory(state_dir, fixed, wanted_for=path)
        files.put(path, raw)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise ConfigError(what, remedy="run as root, or name another --state-dir", who="user") from None
    return path


def load(state_dir: str, fixed: Sequence[str] = ()) -> Inventory:
    """The inventory of this node; ``fixed`` as in :func:`trust.read_trusted`.

    Raises :class:`trust.Missing` if there was no scan, :class:`OtherVersion` for one of another release, :class:`ConfigError` if the file
    is not root's or not an inventory.
    """
    path = path_in(state_dir)
    try:
        raw = trust.read_trusted(path, LIMIT, fixed)
    except trust.Missing:
        raise trust.Missing(f"this node has no inventory {path}", remedy=_SCAN_AGAIN, who="site admin") from None
    try:
        found: Any = jsontext.loads(raw, path, LIMIT)
    except InputError as error:
        raise ConfigError(error.what, remedy=_SCAN_AGAIN, who="site admin") from None
    return _whole(found, path, _SCAN_AGAIN)


def published(path: str) -> Inventory:
    """The inventory of another system, from the file that its site has published: to decide by it, never to inject from it.

    So the file may be anybody's, and its paths are looked at by nobody. Raises :class:`ConfigError` if it is no inventory by its schema.
    """
    from oci_hpc_hooks.inputs import validate

    try:
        raw = jsontext.read_file(path, "the inventory", LIMIT)
    except InputError as error:
        raise ConfigError(error.what) from None
    return _whole(validate.check(raw, "inventory", path), path, "ask its site for the inventory.json that oci-hpc-hooks scan writes")


def _whole(found: Any, path: str, remedy: str) -> Inventory:
    try:
        if not isinstance(found, dict) or found.get("version") != VERSION:
            kind = OtherVersion if isinstance(found, dict) and isinstance(found.get("version"), int) else ConfigError
            raise kind(f"{path} is not an inventory of version {VERSION}", remedy=remedy, who="site admin")
        return _inventory(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not a whole inventory ({error})", remedy=remedy, who="site admin") from None


def is_stale(inventory: Inventory) -> List[str]:
    """Why the inventory no longer describes this node; empty if it still does.

    What this user may not look at proves nothing: it is passed over, and a library that is put to use is looked at again then.
    """
    reasons = []
    for watched in inventory.rests_on:
        now: Optional[FileId] = None
        try:
            status = os.stat(watched.path)
            now = FileId(status.st_ino, status.st_size, status.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            continue
        if now != watched.file:
            what = "is new" if watched.file is None else "is gone" if now is None else "has changed"
            reasons.append(f"{watched.path} {what} since the scan")
    return reasons


# ------------------------------------------------------------------------------------------------------------ out of JSON

def _inventory(found: Dict[str, Any]) -> Inventory:
    return Inventory(
        version=found["version"],
        created=found["created"],
        machine=found["machine"],
        libc_version=found["libc_version"],
        site=_site(found["site"]),
        profiles=tuple(map(_profile, found["profiles"])),
        rests_on=tuple(Watched(watched["path"], _optional_file(watched["file"]), tuple(watched.get("profiles", ())))
                       for watched in found["rests_on"]),
        c_runtime=_profile(found["c_runtime"]) if found["c_runtime"] is not None else None,
        cpu=_cpu(found["cpu"]) if found["cpu"] is not None else None,
        hwcaps=tuple(found.get("hwcaps", ())),
    )


def _cpu(found: Dict[str, Any]) -> Cpu:
    return Cpu(found["target"], found["vendor"], found["level"], found["isa"], tuple(found["compatible"]),
               found["levels"])


def _site(found: Dict[str, Any]) -> Site:
    profiles = tuple(
        SiteProfile(entry["name"], tuple(entry["search"]),
                    tuple(Variant(variant["name"], tuple(variant["search"])) for variant in entry["variants"]), entry["root"],
                    entry.get("cdi", ""))
        for entry in found["profiles"]
    )
    return Site(profiles, found["defaults"], found["on_refusal"], found["unproved"], found["c_runtime"], tuple(found["c_runtime_search"]),
                found["loader_cache"])


def _profile(found: Dict[str, Any]) -> ResolvedProfile:
    return ResolvedProfile(
        name=found["name"],
        provides=found["provides"],
        source=found["source"],
        libraries=tuple(map(_library, found["libraries"])),
        plugins=tuple(map(_library, found["plugins"])),
        problems=tuple(found["problems"]),
        variant=found["variant"],
        glibc=found["glibc"],
        variants=tuple(map(_profile, found["variants"])),
        sets=tuple(map(_set, found["sets"])),
        devices=tuple(found["devices"]),
        job=_job(found["job"]),
        files=tuple(map(_host_file, found["files"])),
        names=tuple(found["names"]),
        interfaces=tuple(Interface(row["device"], row["mode"], row["name"], tuple(row["addresses"]))
                         for row in found.get("interfaces", ())),
        gpus=_gpus(found["gpus"]),
        gpus_of=tuple(found["gpus_of"]),
        newer=Newer(**found["newer"]) if found["newer"] is not None else None,
    )


def _gpus(found: Optional[Dict[str, Any]]) -> Optional[Gpus]:
    if found is None:
        return None
    parts, capabilities, requirements = found["parts"], found["capabilities"], found["requirements"]
    values: Dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    values.update(
        parts=GpuParts(**parts) if parts is not None else None,
        capabilities=GpuCapabilities(**capabilities) if capabilities is not None else None,
        requirements=GpuRequirements(**requirements) if requirements is not None else None,
    )
    return Gpus(**values)


def _job(found: Dict[str, Any]) -> Job:
    scheduler = found["scheduler"]
    return Job(
        when=found["when"],
        protocol=found["protocol"],
        start=found["start"],
        environment=tuple(found["environment"]),
        except_for=tuple(found["except_for"]),
        variables=found["variables"],
        directories=tuple(found["directories"]),
        sockets=tuple(found["sockets"]),
        needs=tuple(Need(need["what"], need["severity"], need["otherwise"]) for need in found["needs"]),
        scheduler=Scheduler(tuple(scheduler["gpus"]), scheduler["cgroup"]) if scheduler is not None else None,
    )


def _set(found: Dict[str, Any]) -> ResolvedSet:
    return ResolvedSet(
        name=found["name"],
        private=found["private"],
        libraries=tuple(found["libraries"]),
        modules=tuple(map(_library, found["modules"])),
        files=tuple(map(_host_file, found["files"])),
        separable=found["separable"],
    )


def _host_file(found: Dict[str, Any]) -> HostFile:
    return HostFile(found["path"], found["real"], FileId(**found["file"]), found["required"], found["glibc"], found["library"])


def _library(found: Dict[str, Any]) -> HostLibrary:
    return HostLibrary(
        name=found["name"],
        path=found["path"],
        real=found["real"],
        role=found["role"],
        replaces=tuple(found["replaces"]),
        file=FileId(**found["file"]),
        elf=_elf(found["elf"]),
        optional=found["optional"],
    )


def _elf(found: Dict[str, Any]) -> ElfFacts:
    values: Dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    values["verneed"] = tuple((file, tuple(versions)) for file, versions in found["verneed"])
    return ElfFacts(**values)


def _optional_file(found: Optional[Dict[str, Any]]) -> Optional[FileId]:
    return FileId(**found) if found is not None else None
