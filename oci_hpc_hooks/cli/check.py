"""``oci-hpc-hooks check IMAGE|ROOTFS``: the decision that a hook would make, without starting a container.

An image is looked at through podman: its labels and command from ``podman image inspect``, its tree from ``podman image mount``. What a
``podman run`` would add by its options (volumes, --env) is not known here; annotations and the command can be given.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from oci_hpc_hooks import cli, cold, record
from oci_hpc_hooks.errors import HookError, Refusal, UsageError
from oci_hpc_hooks.inputs.image import DEFAULT_PATH
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import ERROR, NOTHING, PROVED, REFUSED, UNPROVED, Container, Finding, Mount, Plan
from oci_hpc_hooks.report import Places, own_places

EXIT = {PROVED: 0, NOTHING: 0, REFUSED: 1, UNPROVED: 3}
SAYS = {
    PROVED: "proved: the program will load the site's libraries",
    UNPROVED: "unproved: the site's libraries would be in place, but what the program loads cannot be told beforehand",
    NOTHING: "nothing to do: the container would be left as it is",
    REFUSED: "refused: the container would not start",
}
COVER = "modules go with their libraries"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="IMAGE|ROOTFS", help="an image that podman has, or the directory of a root filesystem")
    parser.usage = "%(prog)s [options] IMAGE|ROOTFS [-- COMMAND ...]"
    parser.epilog = "COMMAND is what would run in it; default: the image's entrypoint and command."
    parser.add_argument("--annotation", metavar="KEY=VALUE", action="append", default=[], help="as for podman run; may be repeated")
    parser.add_argument("--label", metavar="KEY=VALUE", action="append", default=[], help="as if the image had this label")


def execute(args: argparse.Namespace) -> int:
    annotations = _pairs(args.annotation, "--annotation")
    labels = _pairs(args.label, "--label")
    places = own_places(Places(args.config_dir, args.state_dir, args.cache_dir, args.log_file))
    with _look(args.target) as (tree, image):
        config = image.get("Config") or {}
        container = Container(
            id="", bundle="", rootfs=tree,
            args=tuple(args.command or [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]),
            env=tuple(config.get("Env") or ["PATH=" + DEFAULT_PATH]),
            cwd=config.get("WorkingDir") or "/",
            mounts=(Mount("/dev", "tmpfs", "tmpfs"),),  # as every engine sets it up
            annotations=annotations,
            labels={**(config.get("Labels") or {}), **labels},
            manifest_annotations=image.get("Annotations") or {},
            image_id=image.get("Id", ""),
            image_name=args.target,
        )
        plan = _decide(container, places)
    if args.json:
        cli.print_json(document(args.target, container, plan))
    else:
        print("\n".join(_lines(document(args.target, container, plan))))
    return EXIT[plan.verdict]


def _decide(container: Container, places: Places) -> Plan:
    with Root(os.open(container.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        try:
            return cold.decide(container, root, cold.node(places))[0]
        except Refusal as refusal:
            return Plan(REFUSED, (Finding(ERROR, "request", refusal.what, refusal.origin, refusal.remedy, refusal.who),))


def _pairs(items: Sequence[str], option: str) -> Dict[str, str]:
    for item in items:
        if "=" not in item:
            raise UsageError(f"{option} {item}: KEY=VALUE was expected")
    return dict(item.split("=", 1) for item in items)


# ---------------------------------------------------------------------------------------------------------------- the image

@contextlib.contextmanager
def _look(target: str) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """The directory with the tree, and what podman says of the image ({} for a plain directory)."""
    if os.path.isdir(target):
        yield os.path.realpath(target), {}
        return
    if target.startswith(("/", "./", "../")):
        raise UsageError(f"there is no directory {target}")
    if os.geteuid() != 0:
        # Only inside podman's user namespace can an unprivileged user mount an image; the rest of this command goes on there.
        with _needs_podman():
            os.execvp("podman", ["podman", "unshare", sys.executable, "-I", os.path.abspath(sys.argv[0]), *sys.argv[1:]])
    image = json.loads(_podman("image", "inspect", target))[0]
    tree = _podman("image", "mount", image["Id"]).strip()
    try:
        yield tree, image
    finally:
        _podman("image", "unmount", image["Id"])


@contextlib.contextmanager
def _needs_podman() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UsageError("podman, which is needed to look into an image, is not installed", remedy="install it, or name the "
                         "directory of a root filesystem", who="user") from None


def _podman(*arguments: str) -> str:
    with _needs_podman():
        done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"podman {' '.join(arguments)}: {done.stderr.strip() or 'failed'}", remedy="pull or build the image first",
                         who="user")
    return done.stdout


# ---------------------------------------------------------------------------------------------------------------- the answer

def document(target: str, container: Container, plan: Plan) -> Dict[str, Any]:
    """What ``--json`` prints: schemas/check-output.schema.json."""
    return {
        "version": 1,
        "target": target,
        "command": list(container.args),
        "verdict": plan.verdict,
        "profile": plan.profile,
        "findings": [record.finding_document(finding) for finding in plan.findings],
        "tree": plan.tree_root if plan.tree else "",
        "files": [
            *({"source": bind.source, "target": f"{plan.tree_root}/{bind.target}", "how": "tree", "why": bind.why} for bind in plan.tree),
            *({"source": bind.source, "target": bind.target, "how": "in place", "why": bind.why} for bind in plan.in_place),
            *({"source": f"{plan.tree_root}/{cover.folder}", "target": cover.target, "how": "in place", "why": COVER}
              for cover in plan.modules),
        ],
        "loader_cache": plan.cache_target,
        "loader_cache_as": "" if not plan.cache_target else "file" if plan.drop_in else "bind",
    }


def _lines(said: Mapping[str, Any]) -> List[str]:
    """The same for people."""
    lines = [f"{said['target']}: {SAYS[said['verdict']]}"]
    for finding in said["findings"]:
        told = HookError(finding["what"], origin=finding["origin"], remedy=finding["remedy"], who=finding["who"])
        lines.append(f"  {finding['severity']}: {told}")
    lines += [f"  {file['source']} -> {file['target']} ({file['why']})" for file in said["files"]]
    if said["loader_cache"]:
        how = "a new file in the container's own layer" if said["loader_cache_as"] == "file" else "mounted over it"
        lines.append(f"  a loader cache with the site's libraries -> {said['loader_cache']} ({how})")
    return lines
