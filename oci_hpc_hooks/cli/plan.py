"""``oci-hpc-hooks plan IMAGE``: the plan of one image, as a document or as the arguments of an engine that starts no hooks.

Charliecloud, Apptainer and enroot bind files of the host where their command line says so, over what is in the image. The plan for them is
decided as for a root filesystem that nobody can write: what is added comes into one directory, bound over an empty one of the image.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import tempfile
from dataclasses import replace
from typing import Any, Dict, Iterator, List, Tuple

from oci_hpc_hooks import cli, cold, record
from oci_hpc_hooks.cli import check, target
from oci_hpc_hooks.errors import UsageError
from oci_hpc_hooks.model import NOTHING, REFUSED, Plan
from oci_hpc_hooks.report import Places, own_places

JSON = "json"
#: How each engine is told of one file: ch-run(1), apptainer-run(1), enroot's doc/cmd/start.md (an entry of fstab with colons).
FORMATS = {"charliecloud": "--bind={source}:{target}", "apptainer": "--bind={source}:{target}:ro",
           "enroot": "--mount={source}:{target}:none:bind,ro,nosuid,nodev"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="IMAGE|ROOTFS", help="an image that podman has, or the directory of a root filesystem")
    parser.usage = "%(prog)s [options] IMAGE|ROOTFS [-- COMMAND ...]"
    parser.epilog = ("COMMAND is what would run in it. The arguments are for containers of this image on this node, as it is now. Exit "
                     "codes: 0 proved; 1 refused, or nothing to do, which is 0 of check; 2 usage or configuration; 3 unproved.")
    parser.add_argument("--annotation", metavar="KEY=VALUE", action="append", default=[], help="as for podman run; may be repeated")
    parser.add_argument("--label", metavar="KEY=VALUE", action="append", default=[], help="as if the image had this label")
    parser.add_argument("--format", choices=(JSON, *FORMATS), default=JSON,
                        help="json: as it is remembered (schemas/plan.schema.json); else arguments of that engine, and --output too")
    parser.add_argument("--output", metavar="DIR", type=os.path.abspath,
                        help="a new directory for what is bound and is no file of the host: the tree, and the loader's cache; it must stay "
                             "as long as containers run")


def execute(args: argparse.Namespace) -> int:
    for_engine = args.format != JSON
    if for_engine and not args.output:
        raise UsageError(f"--format {args.format} needs a directory of its own", remedy="give --output DIR", who="user")
    plan, made, cache = _decide(args, for_engine)
    if not for_engine:
        cli.print_json(made)
        return check.EXIT[plan.verdict]
    binds = _written(args.output, made, cache)
    words = [_word(FORMATS[args.format], *bind) for bind in binds]
    if args.json:
        cli.print_json({"version": 1, "verdict": plan.verdict, "format": args.format, "arguments": words})
    else:
        print(" ".join(map(shlex.quote, words)))
    return check.EXIT[plan.verdict]


def _decide(args: argparse.Namespace, for_engine: bool) -> Tuple[Plan, Dict[str, Any], bytes]:
    """Raises Refusal where nothing is to be done, for it is a mistake to ask then."""
    offers = cold.node(own_places(Places(args.config_dir, args.state_dir, args.cache_dir, args.log_file)))
    with target.look(args.target, args.command, args.annotation, args.label) as (container, root):
        if for_engine:
            container = replace(container, mounts=(), read_only=True)
        plan, _ = cold.decide(container, root, offers)
    if plan.verdict == REFUSED:
        raise cold.refusal_of(plan)
    if plan.verdict == NOTHING:
        raise target.nothing(plan, args.target)
    made, cache = record.build(plan, None, (), "")
    return plan, made, cache


def _written(folder: str, made: Dict[str, Any], cache: bytes) -> List[Tuple[str, str]]:
    """Writes the tree and the loader's cache, whole or not at all; returns (source, target) of all that is bound. Raises UsageError."""
    temporary = ""
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".oci-hpc-hooks.", dir=os.path.dirname(folder))
        os.chmod(temporary, 0o755)
        for source, *_, name in made["tree"]:
            path = os.path.join(temporary, "tree", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copy2(source, path)
        if cache:
            with open(os.path.join(temporary, "ld.so.cache"), "wb") as file:
                file.write(cache)
        os.rename(temporary, folder)  # onto an empty directory too
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UsageError(f"{folder} cannot be written: {error.strerror}", remedy="give --output a directory that is new or empty",
                         who="user") from None
    return list(_binds(folder, made, bool(cache)))


def _binds(folder: str, made: Dict[str, Any], cache: bool) -> Iterator[Tuple[str, str]]:
    if made["tree"]:
        yield f"{folder}/tree", made["tree_at"]
    for source, *_, place in made["files"]:
        yield source, place
    for row in made["in_place"]:
        yield row[0], row[4]
    for below, place, *_ in made["modules"]:
        yield f"{folder}/tree/{below}", place
    if cache:
        yield f"{folder}/ld.so.cache", made["cache"]["target"]


def _word(form: str, source: str, place: str) -> str:
    """Raises UsageError for a path that the engine would read as several."""
    for path in (source, place):
        if _splits(path):
            raise UsageError(f"{path} has a colon, comma or blank, which these engines take for the end of a path")
    return form.format(source=source, target=place)


def _splits(path: str) -> bool:
    return any(character in path for character in ":, \t\n")
