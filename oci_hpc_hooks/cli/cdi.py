"""``oci-hpc-hooks cdi``: what containers get, for engines that start them without a hook of ours.

Of a profile only what is the same for every image: devices, and files that no program's loader has a say in. Of one image (``--image``)
the whole plan, decided once: then its containers start with no process of ours at all, on every node that has the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

from oci_hpc_hooks import cli, cold, record
from oci_hpc_hooks.apply import cdi, rootfs
from oci_hpc_hooks.cli import check, digest, show, target
from oci_hpc_hooks.errors import Refusal, UsageError
from oci_hpc_hooks.inputs import gpus, inventory
from oci_hpc_hooks.inputs.devices import devices as devices_of
from oci_hpc_hooks.linux import mounts
from oci_hpc_hooks.model import NOTE, NOTHING, REFUSED, WARNING, Finding, Inventory, Plan, ResolvedProfile
from oci_hpc_hooks.report import Places, own_places

#: The name of the device that has all of a profile.
ALL = "all"
STDOUT = "-"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profiles", metavar="PROFILE", nargs="*", help="profiles of this node; default: all that have something for CDI")
    parser.add_argument("--image", metavar="IMAGE|ROOTFS|BUNDLE", default="",
                        help="write the whole plan of this image as one device, libraries and loader cache included")
    parser.add_argument("--annotation", metavar="KEY=VALUE", action="append", default=[],
                        help="of --image, as for podman run; may be repeated")
    parser.add_argument("--label", metavar="KEY=VALUE", action="append", default=[], help="as if the image had this label")
    parser.add_argument("--name", metavar="NAME", default="", help="of --image: what the device is called (default: by the image)")
    parser.add_argument("--output", metavar="DIR", default=STDOUT,
                        help="write there, such as to /etc/cdi or /var/run/cdi, where engines look (default: standard output)")
    parser.add_argument("--annotate", action="store_true",
                        help="say in the specification what it comes from; podman 4.3 does not read one that does")
    parser.add_argument("--yaml", action="store_true", help="write YAML instead of JSON; needs PyYAML")
    parser.add_argument("--charliecloud", action="store_true", help="print what ch-run takes instead: -b SOURCE:TARGET for each file")
    parser.usage = "%(prog)s [options] [PROFILE ...]\n       %(prog)s [options] --image IMAGE [-- COMMAND ...]"
    parser.epilog = ("COMMAND is what will run in containers of the image; default: its own. Exit codes of --image are those of check: 1 "
                     "refused, or nothing to write; 3 written, and unproved.")


@dataclass
class Written:
    """One specification on its way: ``files`` are those beside it, by name."""

    kind: str
    name: str
    document: Dict[str, Any]
    files: Dict[str, bytes] = field(default_factory=dict)
    path: str = ""


def execute(args: argparse.Namespace) -> int:
    if args.image and (args.profiles or args.charliecloud):
        raise UsageError("--image is for one image's whole plan, which goes with no profile's name and is nothing that ch-run -b can say",
                         remedy="give one or the other", who="user")
    if not args.image and (args.annotation or args.label or args.name or args.command):
        raise UsageError("--annotation, --label, --name and a command belong to --image")
    places = own_places(Places(args.config_dir, args.state_dir, args.cache_dir, args.log_file))
    code, found, told = _of_image(args, places) if args.image else _of_profiles(args, cold.node(places))
    if args.charliecloud:
        print(" ".join(_bind_arguments(found)))
    elif args.output != STDOUT:
        folder = os.path.realpath(args.output)
        for one in found:
            for name, data in one.files.items():
                cdi.write(folder, name, data)
            one.path = cdi.write(folder, cdi.stem(one.kind, one.name) + (".yaml" if args.yaml else ".json"), _text(one.document, args.yaml))
    if args.json:
        cli.print_json({"version": 1, "specifications": [
            {"kind": one.kind, "devices": [device["name"] for device in one.document["devices"]], "file": one.path,
             "document": one.document} for one in found], "findings": [record.finding_document(finding) for finding in told]})
        return code
    if args.output != STDOUT:
        show.show(_lines(args, found))
    elif not args.charliecloud:
        if len(found) > 1:
            raise UsageError(f"{len(found)} specifications are too many for standard output: {', '.join(one.kind for one in found)}",
                             remedy="name one of the profiles, or give --output DIR", who="user")
        sys.stdout.write(_text(found[0].document, args.yaml).decode())
    notes = show.findings([record.finding_document(finding) for finding in told])
    show.show([replace(line, text=line.text.strip()) for line in notes], to=sys.stderr)
    return code


def _text(document: Dict[str, Any], as_yaml: bool) -> bytes:
    if not as_yaml:
        return (json.dumps(document, indent=1) + "\n").encode()
    try:
        import yaml
    except ImportError:
        raise UsageError("YAML cannot be written without PyYAML, which is not installed", remedy="install it, or leave --yaml out: engines "
                         "read JSON as well", who="user") from None
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text.encode()


def _lines(args: argparse.Namespace, found: Sequence[Written]) -> List[show.Block]:
    lines: List[show.Block] = []
    for one in found:
        for device in one.document["devices"]:
            edits = device["containerEdits"]
            what = f"{len(edits.get('mounts', ()))} mounts, {len(edits.get('deviceNodes', ()))} device nodes"
            lines.append(f"{one.kind}={device['name']}: {what}, in {one.path}")
            if args.image and target.kind_of(args.image) == target.IMAGE:
                lines.append(show.Line(f"  podman run --device {one.kind}={device['name']} {args.image}", whole=True))
    return lines


# ---------------------------------------------------------------------------------------------------------------- one image

def _of_image(args: argparse.Namespace, places: Places) -> Tuple[int, List[Written], List[Finding]]:
    """The plan of one image. Raises Refusal where there is none."""
    offers = cold.node(places)
    with target.look(args.image, args.command, args.annotation, args.label) as (container, root):
        plan, facts = cold.decide(container, root, offers)
        if plan.verdict == REFUSED:
            raise cold.refusal_of(plan)
        made, cache = record.build(plan, None, (), "")
        try:
            rootfs.Injection(made, cache, root, mounts.mount_table()).look_at_sources()
        except rootfs.Stale as stale:
            raise Refusal(f"{stale} changes while it is looked at", remedy="try again", who="user") from None
        parts = digest.parts_of(plan, facts, container, root)
    name = args.name or cdi.name_of(args.image, container.image_id)
    if not cdi.is_name(name):
        raise UsageError(f"--name {name!r}: a device's name has letters, digits, dots, dashes and underscores, and begins and ends with a "
                         "letter or digit", who="user")
    devices = _devices(plan, made["gpus"])
    if plan.verdict == NOTHING and not devices:
        raise target.nothing(plan, args.image)
    kind = f"{cdi.VENDOR}/{cdi.IMAGE}"
    beside = cdi.stem(kind, name) + ".ldcache"
    if cache and args.output == STDOUT and not args.json:
        raise UsageError("with this image comes a loader cache, which is a file beside the specification", who="user",
                         remedy="give --output DIR")
    edits = cdi.of_plan(made, os.path.join(os.path.realpath(args.output), beside) if cache else "", devices)
    says = {
        f"{cdi.VENDOR}/image": container.image_id or args.image,
        f"{cdi.VENDOR}/inventory": _fingerprint(offers),
        f"{cdi.VENDOR}/digest": digest.word(parts),
    }
    document = cdi.document(kind, {name: edits}, says if args.annotate else {})
    found = Written(kind, name, document, {beside: cache} if cache else {})
    return check.EXIT[plan.verdict], [found], [*plan.findings, *_unsaid_of_plan(plan, devices)]


def _devices(plan: Plan, stacks: Optional[Dict[str, Any]]) -> List[str]:
    """As at a start of root's: on the word of the image alone, what anybody may open."""
    found = [*devices_of(plan.devices, True), *devices_of(plan.open_devices, False)]
    for name, units in gpus.node(stacks).gpus.items() if stacks else ():
        nodes = [path for unit in units for one in (unit, *unit.parts) for path in one.nodes]
        found += devices_of(nodes, stacks is not None and name not in stacks["closed"])
    return list(dict.fromkeys(found))


def _fingerprint(offers: Inventory) -> str:
    """Equal for two inventories with the same content."""
    said = inventory.document(offers)
    said.pop("created")
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _unsaid_of_plan(plan: Plan, devices: Sequence[str]) -> List[Finding]:
    """What a hook would do at each start and a specification cannot say."""
    found = []
    if plan.job is not None and plan.job.launchers:
        found.append(Finding(WARNING, "cdi", "what a launcher gives its ranks (variables, directories, sockets) is not in a specification, "
                             "and whether they can reach it is not looked at", plan.job.origin,
                             "pass it on by podman's options (docs/slurm.md), or start with the hook", "user"))
    if plan.job is not None and plan.job.services:
        services = [path for job in plan.job.services.values() for path in (*job.sockets, *job.directories)]
        found.append(Finding(NOTE, "cdi", f"what the node has of {', '.join(services)} is not in the specification", plan.job.origin,
                             "give it as a volume, or start with the hook", "user"))
    if plan.gpus is not None:
        found.append(Finding(WARNING, "cdi", "all GPUs of this node are in the specification, whichever a job was given", plan.gpus.origin,
                             "start with the hook where jobs share nodes", "user"))
    if plan.drop_in is not None:
        found.append(Finding(NOTE, "cdi", "the loader's cache is mounted, not a file of the container's own, and ldconfig inside fails"))
    if (plan.devices or plan.open_devices) and not devices:
        found.append(Finding(NOTE, "cdi", f"no device is there for {', '.join((*plan.devices, *plan.open_devices))}"))
    found.append(Finding(NOTE, "cdi", "files of the host are taken as they are at each start, and the image is not compared", "",
                         "write it again after an update of either; oci-hpc-hooks check --digest tells whether two nodes give the same",
                         "user"))
    return found


# ---------------------------------------------------------------------------------------------------------------- profiles

def _of_profiles(args: argparse.Namespace, offers: Inventory) -> Tuple[int, List[Written], List[Finding]]:
    """What of each profile needs no decision."""
    known = {profile.name: profile for profile in offers.profiles}
    for name in args.profiles:
        if name not in known:
            raise UsageError(f"this node has no profile {name!r}; it has {', '.join(sorted(known)) or 'none'}")
        if known[name].problems:
            raise UsageError(f"the profile {name} is not available on this node: {known[name].problems[0]}", who="site admin")
        if cdi.CLASS.fullmatch(name) is None:
            raise UsageError(f"{name} cannot be part of a CDI kind, which begins with a letter")
    found: List[Written] = []
    told: List[Finding] = []
    for profile in (known[name] for name in args.profiles or known):
        kind = f"{cdi.VENDOR}/{profile.name}"
        files = [(file.real, file.path) for file in profile.files if not (file.glibc or file.library)]
        devices = devices_of(profile.devices, True)
        # Each with all its instances.
        own = [[path for one in (gpu, *gpu.parts) for path in one.nodes] for gpu in gpus.of_profile(profile)]
        edits = cdi.of_files(files, [*devices, *(path for nodes in own for path in nodes)])
        if profile.problems or cdi.CLASS.fullmatch(profile.name) is None or not edits:
            if args.profiles:
                told.append(Finding(NOTE, "cdi", f"profile {profile.name} has nothing for a specification: {_unsaid(profile)}"))
            continue
        says = {f"{cdi.VENDOR}/inventory": _fingerprint(offers), f"{cdi.VENDOR}/profile": profile.source}
        found.append(Written(kind, "", cdi.document(kind, {
            ALL: edits, **{str(number): cdi.of_files(files, [*devices, *nodes]) for number, nodes in enumerate(own)},
        }, says if args.annotate else {})))
        unsaid = _unsaid(profile)
        if unsaid:
            told.append(Finding(NOTE, "cdi", f"not in {kind}: {unsaid}", profile.source, "write them for an image: cdi --image", "user"))
    if not found:
        names = f"of {', '.join(args.profiles)} none" if args.profiles else "no profile of this node"
        raise UsageError(f"there is nothing to write: {names} has devices or files that are the same for every image",
                         remedy="write the plan of an image (--image)", who="user")
    return 0, found, told


def _unsaid(profile: ResolvedProfile) -> str:
    """What of a profile depends on the image."""
    decided = sum(1 for file in profile.files if file.glibc or file.library)
    libraries = len(profile.libraries) + len(profile.plugins)
    parts = [f"{libraries} libraries and modules, which must fit the image's C library"] * bool(libraries)
    parts += [f"{decided} programs and files that go with them"] * bool(decided)
    parts += ["what a launcher gives its ranks"] * ("launcher" in profile.provides)
    return "; ".join(parts)


def _bind_arguments(found: Sequence[Written]) -> List[str]:
    """For ch-run, which has all of the host's /dev already."""
    pairs = [f"{mount['hostPath']}:{mount['containerPath']}" for one in found for device in one.document["devices"]
             for mount in device["containerEdits"].get("mounts", ())]
    return [f"-b {shlex.quote(pair)}" for pair in dict.fromkeys(pairs)]
