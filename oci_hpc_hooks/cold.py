"""The cold path: read everything, decide, remember the decision, and have it applied by the same code that replays it."""

from __future__ import annotations

import os
from typing import NoReturn, Optional, Tuple

from oci_hpc_hooks import record
from oci_hpc_hooks.apply.rootfs import Stale
from oci_hpc_hooks.decide import plan as decide_plan
from oci_hpc_hooks.decide.request import NOBODY, OVERRIDE, request
from oci_hpc_hooks.errors import ConfigError, HookError, Refusal
from oci_hpc_hooks.inputs import describe, image, inventory
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import ERROR, NOTHING, REFUSED, Container, FileId, ImageFacts, Inventory, Plan, Site, Watched
from oci_hpc_hooks.report import Places
from oci_hpc_hooks.warm import Start

#: A file may change between the look and the mount; a tree that changes all the time is refused.
TRIES = 3


def run(start: Start) -> None:
    """Decides for one container and applies the decision. Raises HookError where it must not start."""
    container = describe.to_container(start.state, start.config, start.image)
    try:
        wish = request(container, Site()).mpi
        asked = wish is not None and wish.value != NOBODY and wish.explicit
    except Refusal as refusal:
        refuse(start, refusal)
    try:
        offers = node(start.places)
    except HookError as error:
        if asked:
            refuse(start, error)
        start.log("nothing", "cold", findings=[{"severity": "warning", "code": "no-inventory", "what": error.what}])
        return
    for left in reversed(range(TRIES)):
        decision, facts = decide(container, start.root, offers)
        if decision.verdict == REFUSED:
            worst = next(finding for finding in decision.findings if finding.severity == ERROR)
            refuse(start, Refusal(worst.what, origin=worst.origin, remedy=worst.remedy, who=worst.who), decision)
        rests_on = (watch(inventory.path_in(start.places.state)), *offers.rests_on)
        made, cache = record.build(decision, facts, rests_on, start.key)
        record.remember(start.places, made, cache)
        if decision.verdict == NOTHING:
            start.log(NOTHING, "cold", findings=made["findings"])
            return
        try:
            start.inject(made, cache)
        except Stale as stale:
            if left:
                offers = node(start.places)
                continue
            refuse(start, Refusal(f"{stale} changes while it is looked at", remedy="start the container again", who="user"))
        except HookError as error:
            refuse(start, error)
        start.log(decision.verdict, "cold", profile=decision.profile, files=len(made["tree"]) + len(made["in_place"]),
                  findings=made["findings"])
        return


def decide(container: Container, root: Root, offers: Inventory) -> Tuple[Plan, ImageFacts]:
    """The plan for a container with this tree, and the facts that it rests on. Raises HookError."""
    wanted = request(container, offers.site)
    facts = image.gather(root, container, decide_plan.candidates(wanted, offers))
    return decide_plan.plan(container, wanted, offers, facts), facts


def node(places: Places) -> Inventory:
    """What this node offers: the inventory of the last scan, or a new one where that is out of date.

    Raises ConfigError: no inventory, a configuration that is wrong, or files of either that are not to be trusted.
    """
    kept = inventory.load(places.state, places.fixed)
    if not inventory.is_stale(kept):
        return kept
    try:
        private = inventory.load(places.cache)
        if not inventory.is_stale(private):
            return private
    except ConfigError:
        pass
    from oci_hpc_hooks.inputs import scan, site  # jsonschema, dataclasses-json and pyelftools: 0.25 s that only a stale inventory costs

    fresh = scan.scan(site.configuration(places.config)).inventory
    for folder in (places.state, places.cache):
        try:
            inventory.write(fresh, folder)
            break
        except ConfigError:
            continue
    return fresh


def watch(path: str) -> Watched:
    """A file as it is now."""
    try:
        status = os.stat(path)
    except OSError:
        return Watched(path, None)
    return Watched(path, FileId(status.st_ino, status.st_size, status.st_mtime_ns))


def refuse(start: Start, error: HookError, decision: Optional[Plan] = None) -> NoReturn:
    """Ends the start: the sentence goes to the log, and by way of the exception to the person."""
    remedy = error.remedy
    if OVERRIDE not in remedy:
        remedy += ("; " if remedy else "") + f"to start without injection give {OVERRIDE}"
    findings = [record.finding_document(finding) for finding in decision.findings] if decision else []
    told = Refusal(error.what, origin=error.origin, remedy=remedy, who=error.who)
    start.log(REFUSED, "cold", message=str(told), findings=findings)
    raise told from None
