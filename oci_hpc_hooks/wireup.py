"""What is particular to one start, beside the remembered plan: the job's directories and variables, devices (light module).

Looked at and decided each time, for the next start is another rank's. A start whose plan asks for none of this does not import it.
"""

from __future__ import annotations

from oci_hpc_hooks.decide import job
from oci_hpc_hooks.errors import Precondition
from oci_hpc_hooks.inputs import launcher
from oci_hpc_hooks.inputs.container import DEVICE, DIRECTORY, SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from oci_hpc_hooks.warm import Start


class WireUp:
    """``mounts``: (kind, path) of what of the host appears at its own path; ``owners``: whose directories may. ``variables`` to set,
    ``findings`` to tell, ``told``: what the log says of it."""

    __slots__ = ("findings", "mounts", "owners", "told", "variables")

    def __init__(self) -> None:
        self.mounts: list[tuple[str, str]] = []
        self.owners: tuple[int, ...] = ()
        self.variables: dict[str, str] = {}
        self.findings: list[dict[str, str]] = []
        self.told: dict[str, Any] = {}


def wire_up(start: Start, record: dict[str, Any]) -> WireUp:
    """What this start gets. Raises Precondition where ranks could not work in it and somebody has asked for them, InputError for a
    config.json that is not what the specification says."""
    made = WireUp()
    devices = list(dict.fromkeys([*launcher.devices(record["devices"], True), *launcher.devices(record["open_devices"], False)]))
    made.mounts += [(DEVICE, path) for path in devices]
    if devices:
        made.told["devices"] = devices
    if record["job"] is None:
        return made
    now = launcher.situation(start.config, start.image.env, start.stage)
    locking = tuple([pattern.partition("*")[0] for pattern in record["job"]["locking"]])
    now.fabric = any(path.startswith(locking) for path in devices)
    outcome = job.decide(record["job"], now)
    what, remedy = outcome.refusal
    if what:
        remedy += f"; to start without this check give {job.OVERRIDE}"
        raise Precondition(what, origin=record["job"]["origin"], remedy=remedy, who="user", findings=outcome.findings)
    made.variables = outcome.variables
    made.findings = outcome.findings
    made.owners = launcher.owners(now)
    as_root = now.caller[0] == 0
    for path in outcome.directories:
        # At precreate the runtime opens the path again later: as root only where nobody else could put another thing there.
        why = launcher.why_no_directory(path, made.owners) or (launcher.why_movable(path) if as_root and now.can_set else "")
        if why:
            made.findings.append(_missing("job-directory", path, why, record))
        else:
            made.mounts.append((DIRECTORY, path))
    for path in outcome.sockets:
        why = launcher.why_no_socket(path)
        if why:
            made.findings.append(_missing("socket", path, why, record))
        else:
            made.mounts.append((SOCKET, path))
    for is_socket, path in outcome.services:
        why = launcher.why_no_socket(path) if is_socket else launcher.why_no_directory(path, made.owners)
        if not why and not is_socket and as_root and now.can_set:
            why = launcher.why_movable(path)
        if not why:
            made.mounts.append((SOCKET if is_socket else DIRECTORY, path))
            made.told.setdefault("services", []).append(path)
        elif launcher.is_there(path):  # most nodes have few of them
            made.findings.append(_missing("socket" if is_socket else "job-directory", path, why, record))
    if outcome.launchers:
        made.told["launchers"] = outcome.launchers
        made.told["variables"] = len(outcome.variables)
        made.told["directories"] = [path for kind, path in made.mounts if kind != DEVICE]
    return made


def _missing(code: str, path: str, why: str, record: dict[str, Any]) -> dict[str, str]:
    return {"severity": "warning", "code": code, "what": f"{path} does not come into the container: {why}",
            "origin": record["job"]["origin"], "remedy": "", "who": ""}
