"""The decision: what this container gets, and how each file arrives.

Pure: values in, a :class:`Plan` out. No file is opened and no privilege is needed, so that every decision can be made again anywhere
from the same facts: in a hook, by ``oci-hpc-hooks check``, and in a test.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import replace
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.decide.choice import Choice, No, choose, has_copies, lost_functions, needs_launcher
from oci_hpc_hooks.decide.proof import prove
from oci_hpc_hooks.decide.request import AUTO, NOBODY, OVERRIDE
from oci_hpc_hooks.decide.runtime import Replaced, lay_over
from oci_hpc_hooks.elf import ldcache
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
    CacheEntry,
    Container,
    Cover,
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
    refusals: List[No] = []
    for profile in possible:
        try:
            made = _plan_with_fitting_libc(container, facts, profile, inventory.c_runtime)
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
                "start the MPI program itself, not through a script", "user", made))
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

def _plan_with_fitting_libc(container: Container, facts: ImageFacts, profile: ResolvedProfile,
                            runtime: Optional[ResolvedProfile]) -> Plan:
    """The plan for one profile; with the site's C runtime only where it is allowed and nothing less will do. Raises No, ImageError."""
    try:
        return _plan_profile(container, facts, profile)
    except No as no:
        if runtime is None or no.code != "glibc-too-old":
            raise
        too_old = no
    try:
        over, replaced, findings = lay_over(facts, runtime)
        made = _plan_profile(container, over, profile, replaced)
    except No as no:
        why = f"the site's C runtime ({runtime.source}) is too old as well" if no.code == too_old.code else no.what
        raise No(too_old.code, f"{too_old.what}; {why}", f"{too_old.remedy}; or {no.remedy}", too_old.who, too_old.tried) from None
    in_place = [Bind(library.real, library.file, copy.path, "the site's C runtime, over the image's", copy.file)
                for library, copy in replaced]
    return replace(made, findings=(*findings, *made.findings), in_place=(*made.in_place, *in_place))


def _plan_profile(container: Container, facts: ImageFacts, profile: ResolvedProfile, replaced: Replaced = ()) -> Plan:
    """The plan for one profile, in an image whose C runtime is ``replaced`` or its own. Raises No, ImageError."""
    if profile.problems:
        raise No("profile-unavailable", f"profile {profile.name} is not available on this node: {profile.problems[0]}",
                 f"mend what {profile.source or profile.name} names and run oci-hpc-hooks scan", "site admin")
    _gates(facts, profile)
    choice = replace(choose(facts, profile), runtime=replaced)
    if not choice.libraries:
        all_there = Finding(NOTE, "all-there", f"the image has everything that profile {profile.name} would add")
        return Plan(NOTHING, (*choice.findings, all_there))
    tree_root, tree_make = _tree_place(container, facts)
    cache = _merged_cache(facts, choice, tree_root)
    modules = _modules(profile, choice, facts)
    made = _actions(profile, facts, choice, modules, cache, tree_root, tree_make)
    try:
        proved, findings = prove(facts, profile, choice, cache, tree_root)
    except No as no:
        no.tried = made
        raise
    findings = [*choice.findings, *findings, *lost_functions(choice), *needs_launcher(choice)]
    findings += [Finding(NOTE, "modules", f"{cover.target} of the image is covered by the site's /{cover.folder}: modules and libraries "
                         "come as one set") for cover in modules]
    if facts.cache is None and facts.cache_file is not None:
        findings.append(Finding(NOTE, "cache-unreadable", f"{facts.cache_path} of the image is no loader cache and is replaced: "
                                f"{facts.unreadable.get(facts.cache_real, 'it cannot be read')}"))
    return replace(made, verdict=PROVED if proved else UNPROVED, findings=tuple(findings))


def _actions(profile: ResolvedProfile, facts: ImageFacts, choice: Choice, modules: Tuple[Cover, ...], cache: LdCache, tree_root: str,
             tree_make: str) -> Plan:
    """What would be done, before it is known whether it may be."""
    files = {library.path: library for library in (*choice.libraries, *profile.plugins)}
    return Plan(
        verdict=REFUSED,
        findings=(),
        profile=profile.name,
        tree=tuple(Bind(library.real, library.file, path.lstrip("/"), f"{library.role} of profile {profile.name}")
                   for path, library in files.items()),
        in_place=tuple(Bind(library.real, library.file, copy.path, f"stands in for the image's {copy.elf.soname or copy.path}", copy.file)
                       for library, copy in choice.in_place),
        modules=modules,
        cache_target=facts.cache_path,
        cache_over=facts.cache_file,
        cache=cache,
        tree_root=tree_root,
        tree_make=tree_make,
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


def _merged_cache(facts: ImageFacts, choice: Choice, tree_root: str) -> LdCache:
    """The image's cache with an entry for every name of what is injected; they lead into the tree, where ``$ORIGIN`` is right.

    A name that leads to a copy of another MPI family keeps leading there: whoever asks for it means that one.
    """
    cache = facts.cache or LdCache(())
    others = {copy.path for copy in choice.others}
    theirs = {entry.name for entry in cache.entries if facts.resolved.get(entry.path) in others}
    return ldcache.merge(cache, [
        CacheEntry(name, tree_root + library.path, ldcache.entry_flags(cache, library.elf.machine, library.elf.elf_class))
        for name, library in choice.names.items() if name not in theirs
    ])


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
