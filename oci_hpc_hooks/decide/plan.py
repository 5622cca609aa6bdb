"""The decision: what this container gets, and how each file arrives.

Pure: values in, a :class:`Plan` out. No file is opened and no privilege is needed, so that every decision can be made again anywhere
from the same facts: in a hook, by ``oci-hpc-hooks check``, and in a test.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from oci_hpc_hooks.decide import abi, loader_cache
from oci_hpc_hooks.decide import cpu as processor
from oci_hpc_hooks.decide.choice import (
    Choice,
    No,
    choose,
    has_copies,
    is_used,
    lost_functions,
    modules_alone,
    must_fit_launcher,
    needs_launcher,
    stack,
)
from oci_hpc_hooks.decide.launcher import with_job
from oci_hpc_hooks.decide.layers import laid_over
from oci_hpc_hooks.decide.network import with_network
from oci_hpc_hooks.decide.newer import prefer
from oci_hpc_hooks.decide.proof import PMIX_TOO_OLD, prove
from oci_hpc_hooks.decide.request import AUTO, OVERRIDES, STACK_NAMES, wishes
from oci_hpc_hooks.decide.runtime import Replaced, lay_over
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import (
    ERROR,
    INJECT,
    NOTE,
    NOTHING,
    PROVED,
    REFUSED,
    REPLACE,
    UNPROVED,
    WARNING,
    Bind,
    Container,
    Cover,
    Cpu,
    DropIn,
    Finding,
    ImageFacts,
    Inventory,
    LdCache,
    Plan,
    Request,
    ResolvedProfile,
    Wish,
)

#: Where the tree appears: in the container's own /dev tmpfs, which every runtime makes afresh and no image can prepare.
TREE_IN_DEV = "/dev/.oci-hpc"
TREE_IN_ROOTFS = "/.oci-hpc"


#: What is asked for, for people.
_KINDS = {"mpi": "MPI", "gpu": "stacks of GPUs", "fabric": "fabrics"}


@dataclass(frozen=True)
class _Served:
    """What has been decided so far, wish by wish: each is decided in the image as those before it have left it."""

    image: ImageFacts  # untouched
    facts: ImageFacts  # with all that is in ``plan``
    plan: Plan
    choices: Tuple[Tuple[ResolvedProfile, Choice], ...] = ()
    verdict: str = NOTHING  # of the last wish alone


def candidates(request: Request, inventory: Inventory) -> Tuple[ResolvedProfile, ...]:
    """The profiles that could answer the request, in the site's order of preference."""
    return tuple({profile.name: profile for wish in wishes(request) for profile in _offers(wish, inventory)}.values())


def _offers(wish: Wish, inventory: Inventory) -> Tuple[ResolvedProfile, ...]:
    return tuple(profile for profile in inventory.profiles if wish.kind in profile.provides
                 and wish.value in (AUTO, profile.provides[wish.kind]))


def plan(container: Container, request: Request, inventory: Inventory, facts: ImageFacts) -> Plan:
    """What is done for this container. ``facts`` were gathered for :func:`candidates` of the same request and inventory."""
    made = with_job(_plan_libraries(container, request, inventory, facts), request, inventory)
    return with_network(made, request, inventory)


def _plan_libraries(container: Container, request: Request, inventory: Inventory, facts: ImageFacts) -> Plan:
    facts = loader_cache.without_ours(facts, (TREE_IN_DEV, TREE_IN_ROOTFS))
    findings = [*request.findings, *_claims(request, facts)]
    served = _Served(facts, facts, Plan(NOTHING, ()))
    for wish in wishes(request):
        for one in _spelled_out(wish, inventory, facts):
            served = _serve(container, request, inventory, served, one)
            findings += [finding for finding in served.plan.findings if not served.choices[1:] or finding not in findings]
            if served.plan.verdict == REFUSED:
                return replace(served.plan, findings=tuple(findings))
    for no in _unread(facts):
        findings.append(Finding(WARNING, no.code, f"{no.what}; the plan may be another one when it can, and is not remembered",
                                remedy=no.remedy, who=no.who))
    return replace(served.plan, findings=tuple(findings))


def _unread(facts: ImageFacts) -> Tuple[No, ...]:
    """What comes before all that is wrong with an image: maybe nothing is."""
    if not facts.missed:
        return ()
    return (No("image-unread", f"a file of the image could not be looked at: {facts.missed.rstrip('.')}",
               "look whether this node has memory and descriptors left and its disks and file servers answer, and start the container "
               "again", "site admin"),)


def _spelled_out(wish: Wish, inventory: Inventory, facts: ImageFacts) -> Tuple[Wish, ...]:
    """A wish for whatever the image uses of the site's stacks, as one for each; of MPIs an image has one."""
    if wish.kind == "mpi" or wish.value != AUTO:
        return (wish,)
    found = dict.fromkeys(profile.provides[wish.kind] for profile in _offers(wish, inventory)
                          if not profile.problems and is_used(profile, facts))
    return tuple(replace(wish, value=value) for value in found) or (wish,)


def _serve(container: Container, request: Request, inventory: Inventory, served: _Served, wish: Wish) -> _Served:
    """One wish more. The plan has the findings of this one alone."""
    possible = _offers(wish, inventory)
    findings: List[Finding] = []
    if wish.value == AUTO:
        possible = tuple(profile for profile in possible if wish.kind == "mpi" and has_copies(profile, served.facts))
        if not possible:
            what = "MPI that this site could replace" if wish.kind == "mpi" else (
                f"library by which one of this site's {_KINDS[wish.kind]} is used")
            return _left(served, Finding(NOTE, "nothing-to-replace", f"the image has no {what}", wish.origin))
    try:
        findings += processor.gate(request, served.image, inventory.cpu)
    except No as no:
        origin = request.cpu.origin if request.cpu else wish.origin
        return _refuse(served, replace(wish, origin=origin), inventory, findings, no)
    refusals: List[No] = []
    for profile, way in [(offer, way) for offer in possible for way in _ways(offer, wish)]:
        try:
            if way == INJECT:
                alone, left_out = modules_alone(profile, served.facts)
                made = _told(_plan_with_fitting_libc(container, served, alone, inventory), *left_out)
            else:
                made = _plan_with_fitting_libc(container, served, profile, inventory)
            if wish.mode or way == INJECT:
                made = _told(made, _mode(profile, way, wish, refusals))
        except No as no:
            refusals.append(no)
            continue
        except ImageError as error:
            refusals.append(No("image-unreadable", f"the loader cannot be followed in this image: {error.what}",
                               "rebuild the image", "image author"))
            continue
        findings += [replace(finding, origin=finding.origin or wish.origin) for finding in made.plan.findings]
        if made.verdict == UNPROVED and inventory.site.unproved == "refuse":
            return _refuse(served, wish, inventory, findings, No(
                "unproved", f"it cannot be proved before the start that the program would load the site's {stack(profile)}, and this site "
                "refuses such", "start the MPI program itself, not through a script" if wish.kind == "mpi" else
                "start the program itself, not through a script", "user", tried=made.plan))
        return replace(made, plan=replace(made.plan, findings=tuple(findings)))
    if not refusals:
        refusals = [_not_offered(wish, inventory)]
        if wish.by_image and wish.kind != "mpi" and wish.value not in STACK_NAMES[wish.kind].values():
            return _left(served, Finding(WARNING, "unknown-value", refusals[0].what, wish.origin, refusals[0].remedy, "image author"))
    return _refuse(served, wish, inventory, findings, *refusals)


def _ways(profile: ResolvedProfile, wish: Wish) -> Tuple[str, ...]:
    """How what a profile offers may come to an image, the best way first: modules alone where they serve others' libraries."""
    if wish.mode:
        return (wish.mode,)
    return (REPLACE, INJECT) if any(one.separable and one.modules for one in profile.sets) else (REPLACE,)


def _mode(profile: ResolvedProfile, way: str, wish: Wish, refusals: Sequence[No]) -> Finding:
    what = {REPLACE: f"the site's libraries of {profile.title} take the place of the image's",
            INJECT: f"the modules of {profile.title} join the image's own libraries"}[way]
    why = "as is asked for" if wish.mode else f"since the site's libraries cannot take their place: {refusals[-1].what}"
    return Finding(NOTE, "mode", f"{what}, {why}")


def _left(served: _Served, *findings: Finding) -> _Served:
    return replace(served, plan=replace(served.plan, findings=findings), verdict=NOTHING)


def _not_offered(wish: Wish, inventory: Inventory) -> No:
    offered = ", ".join(sorted({profile.provides[wish.kind] for profile in inventory.profiles if wish.kind in profile.provides}))
    nothing = f"no {_KINDS[wish.kind]}"
    return No("no-profile", f"{wish.value} is wanted; this site offers {offered or nothing}",
              "add a profile and run oci-hpc-hooks scan" if not offered else f"use an image built for {offered}" if wish.by_image else
              f"ask for {offered} if the image is built for that, or else use an image that is",
              "user" if offered else "site admin")


def _refuse(served: _Served, wish: Wish, inventory: Inventory, findings: Sequence[Finding], *refusals: No) -> _Served:
    """Only an explicit wish is ever refused; a default or auto that does not fit is skipped with a note, and the others stay served."""
    run_without = not wish.explicit or inventory.site.on_refusal == "run-without"
    severity = ERROR if not run_without else WARNING if wish.explicit else NOTE
    found = [
        Finding(severity, no.code, no.what, wish.origin,
                no.remedy if run_without else no.remedy + f"; to start without injection give {OVERRIDES[wish.kind]}", no.who)
        for no in (refusals if run_without else (*_unread(served.image), *refusals))
    ]
    if not run_without:
        return replace(served, plan=Plan(REFUSED, (*findings, *found), tried=refusals[0].tried))
    return _left(served, *findings, *found) if served.plan.verdict != NOTHING else replace(
        served, plan=Plan(NOTHING, (*findings, *found), tried=refusals[0].tried))


def _claims(request: Request, facts: ImageFacts) -> Iterator[Finding]:
    """Labels are claims; what the ELF files say counts, and a contradiction is told."""
    if request.glibc is not None and facts.libc is not None:
        actual = abi.libc_version(facts)
        claimed = re.search(r"\d+\.\d+", request.glibc.value)  # also of "glibc-2.36" and "2.36-9+deb12u4"
        if actual and (claimed is None or claimed.group() != actual):
            yield Finding(WARNING, "label-contradicted", f"the image says that its glibc is {request.glibc.value}, and its "
                          f"{facts.libc.path} is {actual}", request.glibc.origin, f"set the label to {actual}", "image author")


# ---------------------------------------------------------------------------------------------------------------- one profile

#: What keeps a profile from serving an image that is too old for it, where the same built against older libraries may fit.
TOO_OLD = ("glibc-too-old", "version-missing", "shared-dependency")


def _plan_with_fitting_libc(container: Container, served: _Served, profile: ResolvedProfile, inventory: Inventory) -> _Served:
    """The plan for one profile. Only where the image is too old for it: by the first of its variants that fits, the one that needs
    the oldest glibc in front, or with the site's C runtime, where that is allowed. Raises No, ImageError."""
    try:
        return _plan_profile(container, served, profile, inventory)
    except No as no:
        if no.code not in TOO_OLD:
            raise
        too_old = no
    steps = [(variant.title, partial(_plan_variant, container, served, variant, inventory, too_old))
             for variant in sorted(profile.variants, key=lambda variant: abi.version_key(variant.glibc))]
    runtime = inventory.c_runtime
    already = any(choice.runtime for _, choice in served.choices)
    if runtime is not None and too_old.code in ("glibc-too-old", "shared-dependency") and not already:
        with_runtime = partial(_plan_with_runtime, container, served, profile, inventory, runtime)
        steps.append((f"the site's C runtime ({runtime.source})", with_runtime))
    failed: List[Finding] = []
    remedies = [too_old.remedy]
    for title, step in steps:
        try:
            made = step()
        except No as no:
            failed.append(Finding(NOTE, "variant-unfit", f"{title} does not help: {no.brief}"))
            if no.code != too_old.code:
                remedies.append(no.remedy)
            continue
        return _told(made, *failed)
    raise No(too_old.code, "; ".join([too_old.what, *(finding.what for finding in failed)]), "; or ".join(dict.fromkeys(remedies)),
             too_old.who, tried=too_old.tried)


def _told(made: _Served, *first: Finding) -> _Served:
    return replace(made, plan=replace(made.plan, findings=(*first, *made.plan.findings)))


def _plan_variant(container: Container, served: _Served, variant: ResolvedProfile, inventory: Inventory, too_old: No) -> _Served:
    made = _plan_profile(container, served, variant, inventory)
    made = replace(made, plan=replace(made.plan, variant=", ".join(filter(None, (served.plan.variant, variant.variant)))))
    return _told(made, Finding(NOTE, "variant", f"{variant.title} is taken, which needs glibc {variant.glibc or 'of any release'}: of the "
                               f"profile itself, {too_old.brief}"))


def _plan_with_runtime(container: Container, served: _Served, profile: ResolvedProfile, inventory: Inventory,
                       runtime: ResolvedProfile) -> _Served:
    over, replaced, findings = lay_over(served.facts, runtime)
    try:
        made = _plan_profile(container, replace(served, facts=over), profile, inventory, replaced)
    except No as no:
        raise No(no.code, no.what, no.remedy, no.who, "it is too old as well" if no.code == "glibc-too-old" else "") from None
    in_place = [Bind(library.real, library.file, copy.path, "the site's C runtime, over the image's", copy.file)
                for library, copy in replaced]
    return _told(replace(made, plan=replace(made.plan, in_place=(*made.plan.in_place, *in_place))), *findings)


def _plan_profile(container: Container, served: _Served, profile: ResolvedProfile, inventory: Inventory,
                  replaced: Replaced = ()) -> _Served:
    """The plan for one profile, in an image whose C runtime is ``replaced`` or its own. Raises No, ImageError."""
    try:
        return _plan_choice(container, served, profile, inventory, replaced, keep_pmix=True)
    except No as no:
        if no.code != PMIX_TOO_OLD:
            raise
        return _plan_choice(container, served, profile, inventory, replaced, keep_pmix=False)


def _plan_choice(container: Container, served: _Served, profile: ResolvedProfile, inventory: Inventory, replaced: Replaced,
                 keep_pmix: bool) -> _Served:
    if profile.problems:
        raise No("profile-unavailable", f"{profile.title} is not available on this node: {profile.problems[0]}",
                 f"mend what site.json or profiles.d names for it (oci-hpc-hooks profiles show {profile.name}) and run oci-hpc-hooks scan",
                 "site admin",
                 f"the scan says: {profile.problems[0]}")
    facts = served.facts
    if not profile.libraries and not profile.files:
        return _devices_alone(served, profile)
    _gates(facts, profile)
    profile, own, told = prefer(profile, facts)
    choice = choose(facts, profile, keep_pmix)
    drivers = {library.name for library in profile.libraries if library.role == "replace"}
    if drivers and drivers.isdisjoint(library.name for library in choice.libraries):
        # None of them fits: let the ladder say why, or find a way.
        insisted = [replace(library, optional=library.optional and library.name not in drivers) for library in profile.libraries]
        profile = replace(profile, libraries=tuple(insisted))
        choice = choose(facts, profile, keep_pmix)
    choice = replace(choice, runtime=replaced, own=own, findings=(*([told] if told else ()), *choice.findings))
    if not choice.libraries and not profile.files:
        all_there = Finding(NOTE, "all-there", f"the image has everything that profile {profile.name} would add")
        return _devices_alone(served, profile, *choice.findings, all_there)
    tree_root, tree_make = _tree_place(container, facts)
    choices = _with_runtime((*served.choices, (profile, choice)))
    whole = _whole(choices)
    cache = loader_cache.merged(served.image, whole, tree_root)
    modules = _modules(profile, choice, facts)
    directories, missing = _set_directories(choice, facts)
    made = replace(_actions(profile, choice, served.image), modules=(*modules, *directories), cache=cache, tree_root=tree_root,
                   tree_make=tree_make)
    made = _together(served.plan, made)
    after = _after(facts, choice, cache, tree_root)
    try:
        proved, findings = prove(facts, profile, choice, cache, tree_root, inventory.cpu)
        for earlier in choices[:-1]:
            prove(after, *earlier, cache, tree_root, inventory.cpu)
        must_fit_launcher(choice, facts.programs, keep_pmix)
        made, left = _with_files(made, container, profile, choice, facts)
        missing += left
    except No as no:
        no.tried = made
        raise
    drop_in = None
    if inventory.site.loader_cache == "file":
        try:
            cache, drop_in = _cache_as_file(container, served, choices, after, cache, tree_root, proved, inventory.cpu)
        except (No, ImageError) as no:
            findings.append(Finding(NOTE, "loader-cache", "the loader's cache is mounted, not a file of the container's own, and ldconfig "
                                                          f"inside fails: {no.what}"))
    findings = [*choice.findings, *findings, *lost_functions(choice), *needs_launcher(choice)]
    findings += [Finding(NOTE, "modules", f"{cover.target} of the image is covered by the site's /{cover.folder}: modules and libraries "
                         "come as one set") for cover in modules]
    findings += missing
    if facts.cache is None and facts.cache_file is not None:
        findings.append(Finding(NOTE, "cache-unreadable", f"{facts.cache_path} of the image is no loader cache and is replaced: "
                                f"{facts.unreadable.get(facts.cache_real, 'it cannot be read')}"))
    verdict = PROVED if proved and served.plan.verdict != UNPROVED else UNPROVED
    made = replace(made, verdict=verdict, findings=tuple(findings), cache=cache, drop_in=drop_in)
    return _Served(served.image, replace(after, cache=cache), made, choices, PROVED if proved else UNPROVED)


def _devices_alone(served: _Served, profile: ResolvedProfile, *findings: Finding) -> _Served:
    """A profile of which an image needs no file, or that has none."""
    if not profile.devices:
        return _left(served, *findings)
    names = ", ".join(filter(None, (served.plan.profile, profile.name)))
    verdict = PROVED if served.plan.verdict == NOTHING else served.plan.verdict
    told = Finding(NOTE, "devices", f"of profile {profile.name} only device nodes come: {', '.join(profile.devices)}")
    return replace(served, plan=replace(served.plan, verdict=verdict, profile=names, findings=(*findings, told)), verdict=PROVED)


def _with_runtime(choices: Tuple[Tuple[ResolvedProfile, Choice], ...]) -> Tuple[Tuple[ResolvedProfile, Choice], ...]:
    """A C runtime that one of them brings is there for all."""
    runtime = next((choice.runtime for _, choice in choices if choice.runtime), ())
    return tuple((profile, replace(choice, runtime=runtime)) for profile, choice in choices)


def _whole(choices: Sequence[Tuple[ResolvedProfile, Choice]]) -> Choice:
    """All that is chosen, as one."""
    parts = [choice for _, choice in choices]
    return Choice(
        libraries=tuple({library.path: library for part in parts for library in part.libraries}.values()),
        in_place=tuple(pair for part in parts for pair in part.in_place),
        others=tuple(dict.fromkeys(copy for part in parts for copy in part.others)),
        findings=(),
        runtime=parts[-1].runtime,
        sets=tuple({one.name: one for part in parts for one in part.sets}.values()),
        own={name: path for part in parts for name, path in part.own.items()},
    )


def _after(facts: ImageFacts, choice: Choice, cache: LdCache, tree_root: str) -> ImageFacts:
    tree = {tree_root + library.path: library for library in (*choice.libraries, *choice.modules)}
    return laid_over(facts, tree, {copy.path: library for library, copy in choice.in_place}, cache)


def _together(before: Plan, more: Plan) -> Plan:
    """Two plans as one: nothing is done to one target twice. Raises No where the two would put different things there."""
    if before.verdict == NOTHING:
        return more
    for old, new in ((before.tree, more.tree), (before.in_place, more.in_place)):
        sources = {bind.target: bind.source for bind in old}
        for bind in new:
            if sources.get(bind.target, bind.source) != bind.source:
                raise No("two-profiles", f"profile {before.profile} and profile {more.profile} would both put a file at {bind.target}: "
                         f"{sources[bind.target]} and {bind.source}", "switch one of them off (profiles in site.json)", "site admin")
    folders = {cover.target: cover.folder for cover in before.modules}
    for cover in more.modules:
        if folders.get(cover.target, cover.folder) != cover.folder:
            raise No("two-profiles", f"profile {before.profile} and profile {more.profile} would both cover {cover.target}",
                     "switch one of them off (profiles in site.json)", "site admin")
    return replace(
        more,
        profile=f"{before.profile}, {more.profile}",
        variant=before.variant,
        tree=_once(before.tree, more.tree),
        in_place=_once(before.in_place, more.in_place),
        files=before.files,
        modules=(*before.modules, *(cover for cover in more.modules if cover.target not in folders)),
    )


def _once(old: Tuple[Bind, ...], new: Tuple[Bind, ...]) -> Tuple[Bind, ...]:
    there = {bind.target for bind in old}
    return (*old, *(bind for bind in new if bind.target not in there))


def _actions(profile: ResolvedProfile, choice: Choice, facts: ImageFacts) -> Plan:
    """What would be done, before it is known whether it may be."""
    files = {library.path: library for library in (*choice.libraries, *profile.plugins, *choice.modules)}
    plain = {file.path: Bind(file.real, file.file, file.path.lstrip("/"), f"configuration of the {one.name} set")
             for one in choice.sets for file in one.files}
    return Plan(
        verdict=REFUSED,
        findings=(),
        profile=profile.name,
        tree=(*(Bind(library.real, library.file, path.lstrip("/"), f"{library.role} of {profile.title}")
                for path, library in files.items()), *plain.values()),
        in_place=tuple(Bind(library.real, library.file, copy.path, f"stands in for the image's {copy.elf.soname or copy.path}", copy.file)
                       for library, copy in choice.in_place),
        cache_target=facts.cache_path,
        cache_over=facts.cache_file,
    )


def _with_files(made: Plan, container: Container, profile: ResolvedProfile, choice: Choice,
                facts: ImageFacts) -> Tuple[Plan, List[Finding]]:
    """Files that appear at their own path: one by one in a directory that the image has, else as a directory of the tree. Raises No."""
    there = {directory.path for directory in facts.directories if directory.inode}
    findings: List[Finding] = []
    covers = {cover.target: cover for cover in made.modules}
    tree: List[Bind] = []
    single: List[Bind] = []
    names = {library.name for library in choice.libraries}
    taken = {bind.target.lstrip("/"): bind.source for bind in (*made.tree, *made.files)}
    for file in profile.files:
        if file.library and file.library not in names:
            continue  # its driver does not come, and why is told
        if taken.get(file.path.lstrip("/"), file.real) != file.real:
            raise No("two-profiles", f"{profile.title} has its {file.real} for {file.path}, where another puts "
                     f"{taken[file.path.lstrip('/')]}", "switch one of them off (profiles in site.json)", "site admin")
        folder = posixpath.dirname(file.path)
        why = f"{posixpath.basename(file.path)} of {profile.title}, at its own path"
        lacking = ""
        if file.glibc and abi.version_key(file.glibc) > abi.version_key(abi.libc_version(facts)):
            lacking = f"it needs glibc {file.glibc}, and the image's is {abi.libc_version(facts)}"
        elif folder in there and (facts.resolved.get(file.path) or not container.read_only):
            single.append(Bind(file.real, file.file, file.path, why))
        elif folder not in there and folder in facts.makeable:
            tree.append(Bind(file.real, file.file, file.path.lstrip("/"), why))
            covers.setdefault(folder, Cover(folder.lstrip("/"), folder, 0, 0))
        else:
            lacking = "no such file can be made in this container"
        if lacking and file.required:
            raise No("no-place", f"the site's {file.real} is wanted as {file.path}, and {lacking}",
                     f"add an empty file {file.path} to the image, or make its root filesystem writable", "image author")
        if lacking:
            findings.append(Finding(NOTE, "left-out", f"{file.path} of the site does not come: {lacking}"))
    made = replace(made, tree=_once(made.tree, tuple(tree)), files=_once(made.files, tuple(single)), modules=tuple(covers.values()))
    return made, findings


def _gates(facts: ImageFacts, profile: ResolvedProfile) -> None:
    """Step 1 of the ladder: can the image run glibc libraries of this machine at all?"""
    if facts.libc is None or not facts.loader:
        if facts.musl:
            raise No("musl", f"the image is built on musl ({facts.musl}), and the site's {stack(profile)} needs glibc",
                     "use an image built on glibc (Debian, Ubuntu, Rocky, SUSE …)", "image author")
        what = "the image has no glibc (no dynamic loader and libc.so.6)"
        if facts.entrypoint == "static":
            what += ": its program is static, and no library can be given to it"
        raise No("no-glibc", what, "link the program dynamically, in an image with glibc", "image author")
    for library in profile.libraries[:1]:
        if abi.kind(library.elf) != abi.kind(facts.libc.elf):
            raise No("machine", f"the image is {abi.describe_kind(facts.libc.elf)}, the site's {library.name} "
                     f"{abi.describe_kind(library.elf)}", "pull the image for this machine's architecture", "user")


def _tree_place(container: Container, facts: ImageFacts) -> Tuple[str, str]:
    """Where the tree appears, and what has to be made for it (:class:`Plan`). Of several mounts on /dev the last is what is there."""
    on_dev = [mount.type for mount in container.mounts if posixpath.normpath(mount.destination) == "/dev"]
    if on_dev[-1:] == ["tmpfs"]:
        return TREE_IN_DEV, "dev"
    if not container.read_only:
        return TREE_IN_ROOTFS, "create"
    if facts.empty_directories:
        return facts.empty_directories[0], ""
    raise No("no-place", "the root filesystem is read-only, the container has no /dev of its own, and the image has no empty "
             "directory that the site's files could be mounted over", "add an empty directory /mnt to the image", "image author")


def _cache_as_file(container: Container, served: _Served, choices: Sequence[Tuple[ResolvedProfile, Choice]], after: ImageFacts,
                   bound: LdCache, tree_root: str, proved: bool, cpu: Optional[Cpu]) -> Tuple[LdCache, DropIn]:
    """The cache as a file of the container's own, if with it, and with what ldconfig would make of it, all is as with one that is
    ``bound``: the last of ``choices`` ``proved`` or not, and the others as good as ``after`` it. Raises No, ImageError."""
    facts, choice = served.image, _whole(choices)
    why = loader_cache.obstacle(container, facts, choice, tree_root)
    if not why:
        cache = loader_cache.merged(facts, choice, tree_root, stays=True)
        others = [other for other in (cache, loader_cache.rebuilt(facts, choice, tree_root)) if other != bound]
        for other in others:
            for earlier in choices[:-1]:
                prove(after, *earlier, other, tree_root, cpu)
        if all(prove(served.facts, *choices[-1], other, tree_root, cpu)[0] == proved for other in others):
            return cache, loader_cache.drop_in(facts, choice, tree_root)
        why = "after an ldconfig there would be no proof any more"
    raise No("loader-cache", why, "", "")


def _modules(profile: ResolvedProfile, choice: Choice, facts: ImageFacts) -> Tuple[Cover, ...]:
    """Directories of modules in the image that the site's must cover: host UCX that loads the image's UCX modules crashes.

    A library that is bound in place looks for its modules beside that place.
    """
    there = {directory.path: directory for directory in facts.directories if directory.inode}
    covers: Dict[str, Cover] = {}
    for folder in sorted({posixpath.dirname(plugin.path) for plugin in profile.plugins}):
        for library, copy in choice.in_place:
            relative = posixpath.relpath(folder, posixpath.dirname(library.path))
            target = posixpath.join(posixpath.dirname(copy.path), relative)
            if not relative.startswith(".") and target in there:
                covers.setdefault(target, Cover(folder.lstrip("/"), target, there[target].inode, there[target].mtime_ns))
    return tuple(covers.values())


def _set_directories(choice: Choice, facts: ImageFacts) -> Tuple[Tuple[Cover, ...], List[Finding]]:
    """What the libraries of sets open by its path: directories that the image has are covered. Of those that it lacks, one of
    configuration is made; modules alone are found by name in the loader's cache."""
    there = {directory.path: directory for directory in facts.directories if directory.inode}
    covers: Dict[str, Cover] = {}
    findings: List[Finding] = []
    for one in choice.sets:
        plain = {posixpath.dirname(file.path) for file in one.files}
        for path in sorted(plain | {posixpath.dirname(module.path) for module in one.modules}):
            if path in there:
                covers[path] = Cover(path.lstrip("/"), path, there[path].inode, there[path].mtime_ns)
            elif path in plain and path in facts.makeable:
                covers[path] = Cover(path.lstrip("/"), path, 0, 0)
            elif path in plain:
                findings.append(Finding(
                    WARNING, "fabric-set", f"the {one.name} set needs {path}, which the image lacks and which cannot be made in this "
                    f"container: {one.libraries[0]} finds no devices without it", remedy=f"add an empty directory {path} to the image",
                    who="image author"))
    return tuple(covers.values()), findings
