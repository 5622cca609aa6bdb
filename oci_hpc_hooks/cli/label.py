"""``oci-hpc-hooks label IMAGE``: propose the labels that an image should have, by what its own files say.

The proposal does not depend on this node: an image has the same labels wherever it is going to run.
"""

from __future__ import annotations

import argparse
import subprocess
from typing import Any, Dict, Iterator, List

from oci_hpc_hooks import cli
from oci_hpc_hooks.cli import show, target
from oci_hpc_hooks.decide import label, links
from oci_hpc_hooks.errors import UsageError
from oci_hpc_hooks.inputs import image, profiles, validate
from oci_hpc_hooks.model import NOTHING, Inventory, Plan, Site
from oci_hpc_hooks.record import finding_document


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="IMAGE|ROOTFS", help="an image that podman has, or the directory of a root filesystem")
    parser.usage = "%(prog)s [options] IMAGE|ROOTFS [-- COMMAND ...]"
    parser.epilog = ("COMMAND is the program whose MPI counts; default: the image's entrypoint and command. Without --apply nothing is "
                     "changed: the lines go into a Containerfile.")
    parser.add_argument("--apply", metavar="NAME", default="",
                        help="have podman build the image with these labels, and call it NAME (which may be the image's own)")


def execute(args: argparse.Namespace) -> int:
    if args.apply and target.kind_of(args.target) != target.IMAGE:
        raise UsageError(f"{args.target} is a directory, which has no labels", remedy="name an image, or leave --apply out", who="user")
    said = propose(args)
    if args.apply and _new(said):
        _build(args.target, args.apply, {one["key"]: one["value"] for one in _new(said)})
        said["applied"] = args.apply
    if args.json:
        cli.print_json(said)
    else:
        show.show(_lines(said))
    return 0


def propose(args: argparse.Namespace) -> Dict[str, Any]:
    """What ``--json`` prints: schemas/label-output.schema.json."""
    problems: List[validate.Problem] = []
    known = profiles.read_profiles(args.config_dir, problems, [])
    if problems:
        raise validate.Invalid(problems)
    look_for = label.sought([profile for profile in known.values() if profile is not None])
    with target.look(args.target, args.command) as (container, root):
        facts = image.gather(root, container, look_for)
    nobody = Inventory(0, "", "", "", Site(), (), ())
    maps = links.link_maps(facts, Plan(NOTHING, ()), nobody)
    proposals, findings = label.propose(facts, maps, look_for, container.labels)
    findings = (*target.program_missing(container, facts), *findings)
    return {"version": 1, "target": args.target, "command": list(container.args), "applied": "",
            "labels": [{"key": one.key, "value": one.value, "why": one.why, "has": one.has} for one in proposals],
            "findings": [finding_document(finding) for finding in findings]}


def _new(said: Dict[str, Any]) -> List[Dict[str, str]]:
    """The labels that the image lacks, or has with another value."""
    return [one for one in said["labels"] if label.Proposal(**one).is_new]


def _lines(said: Dict[str, Any]) -> Iterator[show.Block]:
    new = _new(said)
    for one in new:
        before = f"; the image says {one['has']}" if one["has"] else ""
        yield show.Line(f"# {one['why']}{before}", "note")
        yield f"LABEL {one['key']}={one['value']}"
    if said["labels"] and not new:
        yield show.Line(f"# {said['target']} has the labels that it should have", "note")
    for finding in show.findings(said["findings"]):
        yield show.Line(f"# {finding.text.strip()}", finding.style)
    if said["applied"]:
        yield show.Line(f"# {said['applied']} has them now", "note")


def _build(name: str, new_name: str, labels: Dict[str, str]) -> None:
    """A new image of the same layers. Raises UsageError with podman's own words."""
    identity = target.podman("image", "inspect", "--format", "{{.Id}}", "--", name).strip()
    options = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    command = ["podman", "build", "--quiet", *options, "--tag", new_name, "-"]
    done = subprocess.run(command, input=f"FROM {identity}\n", capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        raise UsageError(f"podman build: {done.stderr.strip() or 'failed'}", remedy="give --apply a name that podman takes", who="user")
