"""Which of the node's network interfaces come into a container. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import List

from oci_hpc_hooks.decide.request import AUTO, NETWORK, NOBODY
from oci_hpc_hooks.model import ERROR, NOTE, REFUSED, Finding, Interface, Inventory, NetworkPlan, Plan, Request

OVERRIDE = f"--annotation {NETWORK}=none"


def with_network(made: Plan, request: Request, inventory: Inventory) -> Plan:
    """The plan with the interfaces that are asked for beside what it has."""
    wish = request.network
    if made.verdict == REFUSED or wish is None or wish.value == NOBODY:
        return made
    offers = {profile.provides["network"]: profile for profile in inventory.profiles if "network" in profile.provides}
    wanted = tuple(offers) if wish.value == AUTO else tuple(wish.value.split(","))
    unknown = [name for name in wanted if name not in offers]
    explicit = wish.explicit and inventory.site.on_refusal == "refuse"
    if unknown:
        known = ", ".join((AUTO, NOBODY, *sorted(offers)))
        what = f"{NETWORK} names {unknown[0]!r}, which no profile of this site provides; known are {known}"
        remedy = f"give one of {known}" + (f"; to start without give {OVERRIDE}" if explicit else "")
        finding = Finding(ERROR if explicit else NOTE, "network-unknown", what, wish.origin, remedy, "user")
        return Plan(REFUSED, (*made.findings, finding)) if explicit else replace(made, findings=(*made.findings, finding))
    interfaces: List[Interface] = [interface for name in wanted for interface in offers[name].interfaces]
    return replace(made, network=NetworkPlan(tuple(interfaces), wish.origin, explicit)) if interfaces else made
