"""The decision: what this container gets, and how each file arrives.

Pure: values in, a :class:`Plan` out. No file is opened and no privilege is needed, so that every decision can be made again anywhere
from the same facts: in a hook, by ``oci-hpc-hooks check``, and in a test.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import replace
from functools import partial
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from oci_hpc_hooks.decide import abi, loader_cache
from oci_hpc_hooks.decide import cpu as processor
from oci_hpc_hooks.decide.choice import Choice, No, choose, has_copies, lost_functions, must_fit_launcher, needs_launcher
from oci_hpc_hooks.decide.launcher import with_job
from oci_hpc_hooks.decide.proof import PMIX_TOO_OLD, prove
from oci_hpc_hooks.decide.request import AUTO, NOBODY, OVERRIDE
from oci_hpc_hooks.decide.runtime import Replaced, lay_over
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import (
    ERROR,
    NOTE,
    NOTHING,
    PROVED,
    REFUSED,
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


def candidates(request: Request, inventory: Inventory) -> Tuple[ResolvedProfile, ...]:
    """The profiles that could answer the request, in the site's order of preference."""
    if request.mpi is None or request.mpi.value == NOBODY:
        return ()
    family = request.mpi.value
    offers = [profile for profile in inventory.profiles if profile.provides.get("mpi")]
    return tuple(profile for profile in offers if family in (AUTO, profile.provides["mpi"]))


def plan(container: Container, request: Request, inventory: Inventory, facts: ImageFacts) -> Plan:
    """What is done for this container. ``facts`` were gathered for :func:`candidates` of the same request and inventory."""
    return with_job(_plan_libraries(container, request, inventory, facts), request, inventory)


def _plan_libraries(container: Container, request: Request, inventory: Inventory, facts: ImageFacts) -> Plan:
    facts = loader_cache.without_ours(facts, (TREE_IN_DEV, TREE_IN_ROOTFS))
    wish = request.mpi
    findings = [*request.findings, *_claims(request, facts)]
    if wish is None or wish.value == NOBODY:
        return Plan(NOTHING, tuple(findings))
    possible = candidates(request, inventory)
    if wish.value == AUTO:
        possible = tuple(profile for profile in possible if has_copies(profile, facts))
        if not possible:
            note = Finding(NOTE, "nothing-to-replace", "the image has no MPI that this site could replace", wish.origin)
            return Plan(NOTHING, (*findings, note))
    try:
        findings += processor.gate(request, facts, inventory.cpu)
    except No as no:
        return _refuse(replace(wish, origin=request.cpu.origin if request.cpu else wish.origin), inventory, findings, no)
    refusals: List[No] = []
    for profile in possible:
        try:
            made = _plan_with_fitting_libc(container, facts, profile, inventory)
        except No as no:
            refusals.append(no)
            continue
        except ImageError as error:
            refusals.append(No("image-unreadable", f"the loader cannot be followed in this image: {error.what}",
                               "rebuild the image", "image author"))
            continue
        findings += [replace(finding, origin=finding.origin or wish.origin) for finding in made.findings]
        if made.verdict == UNPROVED and inventory.site.unproved == "refuse":
            return _refuse(wish, inventory, findings, No(
                "unproved", "it cannot be proved before the start that the program would load the site's MPI, and this site refuses such",
                "start the MPI program itself, not through a script", "user", tried=made))
        return replace(made, findings=tuple(findings))
    if not refusals:
        offered = ", ".join(sorted({profile.provides["mpi"] for profile in inventory.profiles if "mpi" in profile.provides}))
        refusals = [No("no-profile", f"{wish.value} is wanted; this site offers {offered or 'no MPI'}",
                        f"use an image built for {offered}" if offered else "add a profile and run oci-hpc-hooks scan",
                        "user" if offered else "site admin")]
    return _refuse(wish, inventory, findings, *refusals)


def _refuse(wish: Wish, inventory: Inventory, findings: Sequence[Finding], *refusals: No) -> Plan:
    """Only an explicit wish is ever refused; a default or auto that does not fit is skipped with a note."""
    run_without = not wish.explicit or inventory.site.on_refusal == "run-without"
    severity = ERROR if not run_without else WARNING if wish.explicit else NOTE
    found = [
        Finding(severity, no.code, no.what, wish.origin,
                no.remedy if run_without else no.remedy + f"; to start without injection give {OVERRIDE}", no.who)
        for no in refusals
    ]
    return Plan(NOTHING if run_without else REFUSED, (*findings, *found), tried=refusals[0].tried)


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


def _plan_with_fitting_libc(container: Container, facts: ImageFacts, profile: ResolvedProfile, inventory: Inventory) -> Plan:
    """The plan for one profile. Only where the image is too old for it: by the first of its variants that fits, the one that needs
    the oldest glibc in front, or with the site's C runtime, where that is allowed. Raises No, ImageError."""
    try:
        return _plan_profile(container, facts, profile, inventory)
    except No as no:
        if no.code not in TOO_OLD:
            raise
        too_old = no
    steps = [(variant.title, partial(_plan_variant, container, facts, variant, inventory, too_old))
             for variant in sorted(profile.variants, key=lambda variant: abi.version_key(variant.glibc))]
    runtime = inventory.c_runtime
    if runtime is not None and too_old.code in ("glibc-too-old", "shared-dependency"):
        with_runtime = partial(_plan_with_runtime, container, facts, profile, inventory, runtime)
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
        return replace(made, findings=(*failed, *made.findings))
    raise No(too_old.code, "; ".join([too_old.what, *(finding.what for finding in failed)]), "; or ".join(dict.fromkeys(remedies)),
             too_old.who, tried=too_old.tried)


def _plan_variant(container: Container, facts: ImageFacts, variant: ResolvedProfile, inventory: Inventory, too_old: No) -> Plan:
    made = _plan_profile(container, facts, variant, inventory)
    taken = Finding(NOTE, "variant", f"{variant.title} is taken, which needs glibc {variant.glibc or 'of any release'}: of the profile "
                    f"itself, {too_old.brief}")
    return replace(made, findings=(taken, *made.findings), variant=variant.variant)


def _plan_with_runtime(container: Container, facts: ImageFacts, profile: ResolvedProfile, inventory: Inventory,
                       runtime: ResolvedProfile) -> Plan:
    over, replaced, findings = lay_over(facts, runtime)
    try:
        made = _plan_profile(container, over, profile, inventory, replaced)
    except No as no:
        raise No(no.code, no.what, no.remedy, no.who, "it is too old as well" if no.code == "glibc-too-old" else "") from None
    in_place = [Bind(library.real, library.file, copy.path, "the site's C runtime, over the image's", copy.file)
                for library, copy in replaced]
    return replace(made, findings=(*findings, *made.findings), in_place=(*made.in_place, *in_place))


def _plan_profile(container: Container, facts: ImageFacts, profile: ResolvedProfile, inventory: Inventory,
                  replaced: Replaced = ()) -> Plan:
    """The plan for one profile, in an image whose C runtime is ``replaced`` or its own. Raises No, ImageError."""
    try:
        return _plan_choice(container, facts, profile, inventory, replaced, keep_pmix=True)
    except No as no:
        if no.code != PMIX_TOO_OLD:
            raise
        return _plan_choice(container, facts, profile, inventory, replaced, keep_pmix=False)


def _plan_choice(container: Container, facts: ImageFacts, profile: ResolvedProfile, inventory: Inventory, replaced: Replaced,
                 keep_pmix: bool) -> Plan:
    if profile.problems:
        raise No("profile-unavailable", f"{profile.title} is not available on this node: {profile.problems[0]}",
                 f"mend what {profile.source or profile.name} names and run oci-hpc-hooks scan", "site admin",
                 f"the scan says: {profile.problems[0]}")
    _gates(facts, profile)
    choice = replace(choose(facts, profile, keep_pmix), runtime=replaced)
    if not choice.libraries:
        all_there = Finding(NOTE, "all-there", f"the image has everything that profile {profile.name} would add")
        return Plan(NOTHING, (*choice.findings, all_there))
    tree_root, tree_make = _tree_place(container, facts)
    cache = loader_cache.merged(facts, choice, tree_root)
    modules = _modules(profile, choice, facts)
    directories, missing = _set_directories(choice, facts)
    made = replace(_actions(profile, choice, facts), modules=(*modules, *directories), cache=cache, tree_root=tree_root,
                   tree_make=tree_make)
    try:
        proved, findings = prove(facts, profile, choice, cache, tree_root, inventory.cpu)
        must_fit_launcher(choice, facts.programs, keep_pmix)
    except No as no:
        no.tried = made
        raise
    drop_in = None
    if inventory.site.loader_cache == "file":
        try:
            cache, drop_in = _cache_as_file(container, facts, profile, choice, cache, tree_root, proved, inventory.cpu)
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
    return replace(made, verdict=PROVED if proved else UNPROVED, findings=tuple(findings), cache=cache, drop_in=drop_in)


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


def _gates(facts: ImageFacts, profile: ResolvedProfile) -> None:
    """Step 1 of the ladder: can the image run glibc libraries of this machine at all?"""
    if facts.libc is None or not facts.loader:
        if facts.musl:
            raise No("musl", f"the image is built on musl ({facts.musl}), and the site's MPI needs glibc",
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


def _cache_as_file(container: Container, facts: ImageFacts, profile: ResolvedProfile, choice: Choice, bound: LdCache, tree_root: str,
                   proved: bool, cpu: Optional[Cpu]) -> Tuple[LdCache, DropIn]:
    """The cache as a file of the container's own, if with it, and with what ldconfig would make of it, all is as with one that is
    ``bound``: ``proved`` or not. Raises No, ImageError."""
    why = loader_cache.obstacle(container, facts, choice, tree_root)
    if not why:
        cache = loader_cache.merged(facts, choice, tree_root, stays=True)
        others = (cache, loader_cache.rebuilt(facts, choice, tree_root))
        if all(prove(facts, profile, choice, other, tree_root, cpu)[0] == proved for other in others if other != bound):
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
