"""What is known of the job before a start: which launchers could be meant, and what the MPI that is injected needs of them. Pure.

The rest is decided at each start, by :mod:`oci_hpc_hooks.decide.job`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Mapping, Sequence, Tuple

from oci_hpc_hooks.decide.job import OVERRIDE
from oci_hpc_hooks.decide.request import AUTO, LAUNCHER, NOBODY, wishes
from oci_hpc_hooks.elf import mpi
from oci_hpc_hooks.model import (
    ERROR,
    NOTE,
    PROVED,
    RANK,
    REFUSED,
    UNPROVED,
    Finding,
    GpuPlan,
    Inventory,
    Job,
    JobPlan,
    Plan,
    Request,
    ResolvedProfile,
    Wish,
)

PMIX, PMI = "pmix", "pmi"


def with_job(made: Plan, request: Request, inventory: Inventory) -> Plan:
    """The plan for a container's libraries, with the devices that go with them and what it gets of a job."""
    if made.verdict == REFUSED:
        return made
    served = [profile for profile in inventory.profiles if profile.name in made.profile.split(", ")]
    made = _with_devices(made, request, inventory, served)
    made = _with_services(made, request, served)
    chosen = next((profile for profile in served if "mpi" in profile.provides), None)
    wish = request.launcher
    if wish is None or wish.value == NOBODY:
        return made
    offers = {profile.provides["launcher"]: profile.job for profile in inventory.profiles if "launcher" in profile.provides}
    wanted = () if wish.value == AUTO else tuple(wish.value.split(","))
    unknown = [name for name in wanted if name not in offers]
    if unknown:
        known = ", ".join((AUTO, NOBODY, *sorted(offers)))
        what = f"{LAUNCHER} names {unknown[0]!r}, which no profile of this site provides; known are {known}"
        remedy = f"give one of {known}" + (f"; to start without give {OVERRIDE}" if wish.explicit else "")
        finding = Finding(ERROR if wish.explicit else NOTE, "launcher-unknown", what, wish.origin, remedy, "user")
        return Plan(REFUSED, (*made.findings, finding)) if wish.explicit else replace(made, findings=(*made.findings, finding))
    # What a person would have to pass on by hand.
    made = replace(made, findings=tuple(finding for finding in made.findings if finding.code != "launcher-environment"))
    asked_for_mpi = made.verdict in (PROVED, UNPROVED) and request.mpi is not None and request.mpi.explicit
    return replace(made, job=JobPlan(
        launchers=offers,
        wanted=wanted,
        family=chosen.job if chosen is not None else Job(),
        scope=request.scope,
        origin=wish.origin,
        explicit=inventory.site.on_refusal == "refuse" and (wish.explicit or asked_for_mpi),
        protocols=_protocols(chosen) if chosen is not None else (),
        copies_memory=chosen is not None and any(
            mpi.COPIES_MEMORY in library.elf.imports for library in chosen.libraries
            if library.role == "replace" or library.name.startswith(mpi.OPENMPI_INNER)),
        locking=_locking(served),
        services=made.job.services if made.job is not None else {},
    ))


def _locking(served: Sequence[ResolvedProfile]) -> Tuple[str, ...]:
    return tuple(dict.fromkeys(pattern for profile in served if any(need.what == "memlock" for need in profile.job.needs)
                               for pattern in profile.devices))


def _with_devices(made: Plan, request: Request, inventory: Inventory, served: Sequence[ResolvedProfile]) -> Plan:
    """On the word of the image alone, of a profile's devices only those come that anybody may open."""
    devices: Dict[str, bool] = {}
    stacks: Dict[str, bool] = {}
    for profile in served:
        closed = _asking(profile, request).by_image
        for one in (profile, *(other for other in inventory.profiles if other.name in profile.gpus_of)):
            for pattern in one.devices:
                devices[pattern] = devices.get(pattern, True) and closed
            if one.gpus is not None:
                stacks[one.name] = stacks.get(one.name, True) and closed
    return replace(made, devices=tuple(pattern for pattern, closed in devices.items() if not closed),
                   open_devices=tuple(pattern for pattern, closed in devices.items() if closed),
                   gpus=_gpus(request, inventory, stacks) if stacks else None)


def _gpus(request: Request, inventory: Inventory, closed: Mapping[str, bool]) -> GpuPlan:
    """What is known beforehand of which GPUs a start gets. ``closed``: the stacks, and whether the image alone has asked for each."""
    rules = {profile.name: profile.gpus for profile in inventory.profiles if profile.gpus is not None}
    refuses = inventory.site.on_refusal == "refuse"
    wished = [wish for wish in request.stacks if wish.kind == "gpu"]
    devices, launcher = request.gpu_devices, request.launcher
    return GpuPlan(
        stacks={name: rules[name] for name in closed},
        closed=tuple(name for name, alone in closed.items() if alone),
        schedulers={profile.name: profile.job for profile in inventory.profiles if profile.job.scheduler is not None},
        wish=devices.value if devices is not None else "",
        wish_origin=devices.origin if devices is not None else "",
        origin=wished[0].origin,
        explicit=refuses and any(wish.explicit for wish in wished),
        refuses=refuses and (devices is None or devices.explicit),
        copies=request.scope == RANK and launcher is not None and launcher.value != NOBODY,
    )


def _with_services(made: Plan, request: Request, served: Sequence[ResolvedProfile]) -> Plan:
    """What stacks have of the node's services and need of the container: never on the word of the image."""
    asking = [(profile, _asking(profile, request)) for profile in served if "mpi" not in profile.provides and profile.job != Job()]
    services = {profile.name: profile.job for profile, wish in asking if not wish.by_image}
    origins = ", ".join(dict.fromkeys(wish.origin for _, wish in asking if not wish.by_image))
    if not services:
        return made
    return replace(made, job=JobPlan({}, (), Job(), request.scope, origins, False, locking=_locking(served), services=services))


def _asking(profile: ResolvedProfile, request: Request) -> Wish:
    """The wish that a profile serves; the image's where there is one."""
    ((kind, value),) = profile.provides.items()
    found = [wish for wish in wishes(request) if wish.kind == kind and wish.value in (value, AUTO)]
    return next((wish for wish in found if wish.by_image), found[0] if found else Wish(value, "", False, kind=kind))


def _protocols(profile: ResolvedProfile) -> Tuple[str, ...]:
    """How ranks of this MPI talk to a launcher, as its libraries tell; () if they do not."""
    names = [library.name for library in profile.libraries]
    family = profile.provides["mpi"]
    if family == mpi.ABI and profile.libraries:
        family = {"MPICH": "mpich", "Open MPI": "openmpi"}.get(mpi.implementation(profile.libraries[0].elf), "")
    found: List[str] = []
    if family == "openmpi" or any(name.startswith(mpi.PMIX_SONAME) for name in names):
        found.append(PMIX)
    if family == "mpich" or any(name.startswith(mpi.PMI_SONAMES) for name in names):
        found.append(PMI)
    return tuple(found)
