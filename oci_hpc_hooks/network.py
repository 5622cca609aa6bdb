"""The network interfaces of one start: whether they can be brought in, and what is said where they cannot."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

from oci_hpc_hooks.apply.network import Network
from oci_hpc_hooks.decide.network import OVERRIDE
from oci_hpc_hooks.errors import HookError, Precondition
from oci_hpc_hooks.linux import namespaces


class Brought:
    """What this start gets: ``names`` of interfaces in the container; ``findings`` are documents."""

    def __init__(self, pid: int, unprivileged: bool, wanted: Dict[str, Any]) -> None:
        self.names: List[str] = []
        self.findings: List[Dict[str, str]] = []
        self.network: Network | None = None
        self._pid = pid
        self._unprivileged = unprivileged
        self._wanted = wanted

    def bring(self) -> None:
        """Raises Precondition where the caller has asked by name for what cannot be brought."""
        if not self._pid:  # precreate, and no network namespace to come
            self._say("note", _HOST)
            return
        try:
            self.network = Network(self._pid)
            if self.network.is_the_nodes:
                self._say("note", _HOST)
                return
            if self._unprivileged or namespaces.in_own_user_namespace():
                raise HookError("network interfaces of the node cannot be brought into a container of a user without privileges",
                                remedy="start the container with --network=host", who="user")
            self.network.bring(self._wanted["interfaces"])
        except (HookError, OSError) as error:
            what = error.what if isinstance(error, HookError) else f"the container's network cannot be reached: {error.strerror}"
            remedy, who = (error.remedy, error.who) if isinstance(error, HookError) else ("", "")
            if self._wanted["explicit"]:
                remedy = "; ".join(filter(None, (remedy, f"to start without interfaces give {OVERRIDE}")))
                raise Precondition(what, origin=self._wanted["origin"], remedy=remedy, who=who or "user", findings=[]) from None
            self._say("warning", what, remedy, who)
            return
        self.names = self.network.told
        for note in self.network.notes:
            self._say("warning", note, "", "site admin")

    def _say(self, severity: str, what: str, remedy: str = "", who: str = "") -> None:
        self.findings.append({"severity": severity, "code": "network", "what": what, "origin": self._wanted["origin"], "remedy": remedy,
                              "who": who})


_HOST = "the container has no network namespace of its own: it has the interfaces that the node has"


@contextmanager
def brought(pid: int, unprivileged: bool, wanted: Dict[str, Any]) -> Iterator[Brought]:
    """Interfaces for as long as all goes well: what has been brought is taken back if anything fails. ``pid``: the container's first
    process; ``unprivileged``: this one is in the container's user namespace."""
    made = Brought(pid, unprivileged, wanted)
    try:
        yield made
    except BaseException:
        if made.network is not None:
            made.network.take_back()
        raise
    finally:
        if made.network is not None:
            made.network.close()
