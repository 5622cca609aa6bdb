"""What is particular to one start, beside the remembered plan: the job's directories and variables, devices (light module).

Looked at and decided each time, for the next start is another rank's. A start whose plan asks for none of this does not import it, and
one that asks for devices alone imports nothing about jobs.
"""

from __future__ import annotations

import posix

from oci_hpc_hooks.errors import Precondition
from oci_hpc_hooks.inputs import container
from oci_hpc_hooks.inputs.container import DEVICE, DIRECTORY, SOCKET
from oci_hpc_hooks.inputs.devices import devices as devices_of
from oci_hpc_hooks.linux import namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Sequence

    from oci_hpc_hooks.decide.gpus import Outcome
    from oci_hpc_hooks.situation import Situation
    from oci_hpc_hooks.start import Start


class WireUp:
    """``mounts``: (kind, path) of what of the host appears at its own path; ``owners``: whose directories may. ``variables`` to set,
    ``hidden``: directories that are to be empty.
    ``groups``: host gids that its program is to be in. ``findings`` to tell, ``told``: what the log says of it."""

    __slots__ = ("findings", "groups", "hidden", "mounts", "owners", "told", "variables")

    def __init__(self) -> None:
        self.mounts: list[tuple[str, str]] = []
        self.owners: tuple[int, ...] = ()
        self.hidden: list[str] = []
        self.groups: list[int] = []
        self.variables: dict[str, str] = {}
        self.findings: list[dict[str, str]] = []
        self.told: dict[str, Any] = {}


def wire_up(start: Start, record: dict[str, Any]) -> WireUp:
    """What this start gets. Raises Precondition where ranks could not work in it and somebody has asked for them, InputError for a
    config.json that is not what the specification says."""
    made = WireUp()
    closed, opened = list(record["devices"]), list(record["open_devices"])
    now: Situation | None = None
    if record["job"] is not None or record["gpus"] is not None:
        from oci_hpc_hooks.inputs import launcher

        now = launcher.situation(start.config, start.image.env, start.stage)
    chosen = gpus(made, record["gpus"], now) if record["gpus"] is not None and now is not None else None
    if chosen is not None:
        for name, nodes in chosen.nodes.items():
            (opened if name in record["gpus"]["closed"] else closed).extend(nodes)
    devices = list(dict.fromkeys([*devices_of(closed, True), *devices_of(opened, False)]))
    if chosen is not None and chosen.without:
        devices = [path for path in devices if not any(_matches(path, pattern) for pattern in chosen.without)]
    made.mounts += [(DEVICE, path) for path in devices]
    if devices:
        made.told["devices"] = devices
        groups(made, start, devices)
    if record["job"] is not None and now is not None:
        add_job(made, record, now, devices)
    return made


def add_job(made: WireUp, record: dict[str, Any], now: Situation, devices: Sequence[str]) -> None:
    """Adds what the job gives. Raises Precondition as :func:`wire_up`."""
    from oci_hpc_hooks.decide import job
    from oci_hpc_hooks.inputs import launcher

    locking = tuple([pattern.partition("*")[0] for pattern in record["job"]["locking"]])
    now.fabric = any(path.startswith(locking) for path in devices)
    outcome = job.decide(record["job"], now)
    what, remedy = outcome.refusal
    if what:
        remedy += f"; to start without this check give {job.OVERRIDE}"
        raise Precondition(what, origin=record["job"]["origin"], remedy=remedy, who="user", findings=outcome.findings)
    made.variables = {**outcome.variables, **made.variables}
    made.findings += outcome.findings
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


def gpus(made: WireUp, plan: dict[str, Any], now: Situation) -> Outcome:
    """Which GPUs this start gets, with what else it needs for them in ``made``. Raises Precondition as :func:`wire_up`."""
    from oci_hpc_hooks.decide import gpus as decide_gpus
    from oci_hpc_hooks.inputs import gpus as read_gpus

    outcome = decide_gpus.decide(plan, read_gpus.node(plan), now)
    what, origin, remedy = outcome.refusal
    if what:
        remedy += f"; to start without GPUs give {decide_gpus.OVERRIDE}"
        raise Precondition(what, origin=origin, remedy=remedy, who="user", findings=outcome.findings)
    made.findings += outcome.findings
    made.variables.update(outcome.variables)
    made.hidden = outcome.hidden
    made.told.update(outcome.told)
    return outcome


#: How crun is told to leave a container's program the groups of who starts it; ``podman run --group-add keep-groups`` sets it.
KEEP_GROUPS = "run.oci.keep_original_groups"


def groups(made: WireUp, start: Start, devices: list[str]) -> None:
    """The groups without which the container's program could not open these nodes: nodes of GPUs are often those of "render" and "video".

    A user without privileges cannot give groups to a container, which only keeps or loses those of the user."""
    mapped = container.user_namespace(start.config) is not None
    rootless = namespaces.in_own_user_namespace()
    if start.state.annotations.get(KEEP_GROUPS) or (container.user(start.config)[0] == 0 and not rootless and not mapped):
        return
    have = container.groups(start.config)
    lacking: dict[int, list[str]] = {}
    for path in devices:
        status = posix.stat(path, follow_symlinks=False)
        by_group = status.st_mode & 0o060 == 0o060 and status.st_mode & 0o006 != 0o006
        if by_group and status.st_gid not in have and (not rootless or _only_by_group(path, status)):
            lacking.setdefault(status.st_gid, []).append(path)
    if not lacking:
        return
    if not rootless and not mapped and start.stage == container.PRECREATE:
        made.groups = list(lacking)
        return
    paths = [path for some in lacking.values() for path in some]
    which = ", ".join(paths[:4]) + (" …" if len(paths) > 4 else "")
    remedy = "give --group-add keep-groups (crun only)"
    if not rootless and not mapped:
        remedy = "give " + " ".join([f"--group-add {gid}" for gid in lacking]) + ", or register the hook at precreate"
    made.findings.append({
        "severity": "warning", "code": "device-group", "origin": "", "remedy": remedy, "who": "user",
        "what": f"{which} may be opened by members of a group that the container's program is "
                "not in"})


def _only_by_group(path: str, status: posix.stat_result) -> bool:
    """Whether the user who starts the container may open a node, and not as its owner."""
    return status.st_uid != posix.geteuid() and syscalls.may_access(path, posix.R_OK | posix.W_OK) == 0


def _matches(path: str, pattern: str) -> bool:
    return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern


def _missing(code: str, path: str, why: str, record: dict[str, Any]) -> dict[str, str]:
    return {"severity": "warning", "code": code, "what": f"{path} does not come into the container: {why}",
            "origin": record["job"]["origin"], "who": "user",
            "remedy": "see that it is there, and the job's own; another can be given by --volume"}
