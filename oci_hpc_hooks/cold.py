"""The cold path: read everything, decide, remember the decision, and have it applied by the same code that replays it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Dict, NoReturn, Sequence, Tuple, Union

from oci_hpc_hooks import record
from oci_hpc_hooks.apply.rootfs import Stale
from oci_hpc_hooks.decide import plan as decide_plan
from oci_hpc_hooks.decide.request import OVERRIDE, override, request, wishes
from oci_hpc_hooks.errors import ConfigError, HookError, Precondition, Refusal, of_system
from oci_hpc_hooks.inputs import describe, image, inventory, jsontext, trust
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import ERROR, NOTHING, REFUSED, WARNING, Container, FileId, Finding, ImageFacts, Inventory, Plan, Site, Watched
from oci_hpc_hooks.replay import Service
from oci_hpc_hooks.report import Places
from oci_hpc_hooks.start import SITE_LIMIT

#: A file may change between the look and the mount; a tree that changes all the time is refused.
TRIES = 3


class Told(Refusal):
    """A refusal that is in the log already."""


def run(service: Service, trouble: Union[HookError, OSError, None] = None) -> None:
    """Decides for one container and applies the decision. Raises Refusal where it must not start.

    ``trouble`` is what stopped a replay half-way: then nothing is left to decide but whether the container may start without. Only an
    explicit wish is ever refused, and not where the site would have it run without: what cannot be had is left out, with a note in the
    log.
    """
    container = describe.to_container(service.start.state, service.start.config, service.start.image)
    try:
        asked = request(container, Site())
    except Refusal as refusal:
        refuse(service, refusal)
    try:
        if trouble is not None:
            raise trouble
        serve(service, container)
    except Told:
        raise
    except Precondition as lacking:
        refuse(service, lacking, lacking.findings)
    except (HookError, OSError) as error:
        told = error if isinstance(error, HookError) else of_system(error)
        wish = next((wish for wish in wishes(asked) if wish.explicit), None)
        if wish is not None and (service.touched or not runs_without(service.places)):
            refuse(service, HookError(told.what, origin=told.origin or wish.origin, remedy=told.remedy, who=told.who),
                   instead=override(asked))
        skipped = Finding(WARNING, "skipped", told.what, told.origin, told.remedy, told.who)
        service.log(NOTHING, "cold", findings=[record.finding_document(skipped)])


def runs_without(places: Places) -> bool:
    """Whether site.json says that nobody is refused: read for itself, since it counts where the rest of the configuration is wrong."""
    path = os.path.join(places.config, "site.json")
    try:
        found = jsontext.loads(trust.read_trusted(path, SITE_LIMIT, places.fixed), path, SITE_LIMIT)
    except HookError:
        return False
    return isinstance(found, dict) and found.get("on_refusal") == "run-without"


def serve(service: Service, container: Container) -> None:
    """Decides, remembers, applies. Raises HookError or OSError."""
    for left in reversed(range(TRIES)):
        offers = node(service.places)
        decision, facts = decide(container, service.root, offers)
        if decision.verdict == REFUSED:
            refuse_by(service, decision)
        rests_on = (watch(inventory.path_in(service.places.state)), *rests_on_of(container, offers))
        made, cache = record.build(decision, facts, rests_on, service.key)
        if not facts.missed:
            record.remember(service.places, made, cache)
        if decision.verdict == NOTHING and decision.job is None and decision.network is None:
            service.log(NOTHING, "cold", findings=made["findings"])
            return
        try:
            service.inject(made, cache, "cold")
            return
        except Stale as stale:
            if not left:
                raise Refusal(f"{stale} changes while it is looked at", remedy="start the container again", who="user") from None


def decide(container: Container, root: Root, offers: Inventory) -> Tuple[Plan, ImageFacts]:
    """The plan for a container with this tree, and the facts that it rests on. Raises HookError."""
    wanted = request(container, offers.site)
    profiles = decide_plan.candidates(wanted, offers)
    if profiles and offers.c_runtime is not None:
        profiles = (*profiles, offers.c_runtime)
    facts = image.gather(root, container, profiles, offers.hwcaps)
    return decide_plan.plan(container, wanted, offers, facts), facts


def rests_on_of(container: Container, offers: Inventory) -> Sequence[Watched]:
    """What of the inventory a decision for this container rests on: other profiles' libraries and directories make no difference to it,
    whatever has become of them. A profile that becomes one for it does so in its own file or in site.json, on which all rest."""
    names = {profile.name for profile in decide_plan.candidates(request(container, offers.site), offers)}
    names |= {profile.name for profile in offers.profiles if "launcher" in profile.provides}
    return [watched for watched in offers.rests_on if not watched.profiles or names.intersection(watched.profiles)]


def node(places: Places) -> Inventory:
    """What this node offers: the inventory of the last scan, or a new one where that is out of date, or of another release.

    One of another release stays: in the middle of an update both start containers, and each would undo what the other has written.
    Raises ConfigError: no inventory, a configuration that is wrong, or files of either that are not to be trusted.
    """
    ours = True
    try:
        kept = inventory.load(places.state, places.fixed)
        if not inventory.is_stale(kept):
            return kept
    except inventory.OtherVersion:
        ours = False
    instead_of = watch(inventory.path_in(places.state))  # a user's cache is one for all sites of the node
    try:
        private = inventory.load(places.cache, (places.cache,))
        if instead_of in private.rests_on and not inventory.is_stale(private):
            return private
    except ConfigError:
        pass
    from oci_hpc_hooks.inputs import scan, site  # jsonschema, dataclasses-json and pyelftools: 0.25 s that only a stale inventory costs

    fresh = scan.scan(site.configuration(places.config, fixed=places.fixed)).inventory
    if not ours or not _kept(fresh, places.state):
        fresh = replace(fresh, rests_on=(*fresh.rests_on, instead_of))
        _kept(fresh, places.cache)  # else it is made anew for the next container
    return fresh


def _kept(fresh: Inventory, folder: str) -> bool:
    """Whether this process may write an inventory there, which it then has done."""
    try:
        inventory.write(fresh, folder, (folder,))
        return True
    except ConfigError:
        return False


def watch(path: str) -> Watched:
    """A file as it is now."""
    try:
        status = os.stat(path)
    except OSError:
        return Watched(path, None)
    return Watched(path, FileId(status.st_ino, status.st_size, status.st_mtime_ns))


def refuse(service: Service, error: HookError, findings: Sequence[Dict[str, str]] = (), instead: str = OVERRIDE) -> NoReturn:
    """Ends the start: the sentence goes to the log, and by way of the exception to the person."""
    remedy = error.remedy
    if "--annotation org.supercontainers." not in remedy:
        remedy += ("; " if remedy else "") + f"to start without injection give {instead}"
    told = Told(error.what, origin=error.origin, remedy=remedy, who=error.who)
    service.log(REFUSED, "cold", message=str(told), findings=list(findings))
    raise told from None


def refusal_of(decision: Plan) -> Refusal:
    """What a plan that refuses tells a person: its first error."""
    worst = next(finding for finding in decision.findings if finding.severity == ERROR)
    return Refusal(worst.what, origin=worst.origin, remedy=worst.remedy, who=worst.who)


def refuse_by(service: Service, decision: Plan) -> NoReturn:
    """Refuses as the plan says."""
    refuse(service, refusal_of(decision), [record.finding_document(finding) for finding in decision.findings])
