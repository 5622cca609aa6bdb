"""``oci-hpc-hooks features``: what this node offers, in the words that images' labels use, so that a scheduler can match the two.

From the inventory, which is what ``scan`` has found; only the GPUs are counted now, as they are at each start, and not of another system.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Dict, Iterator, List, Mapping

from oci_hpc_hooks import cli
from oci_hpc_hooks.cli import show
from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.decide.request import CPU_KEYS
from oci_hpc_hooks.inputs import gpus, inventory
from oci_hpc_hooks.model import Inventory, ResolvedProfile

#: What an image's label asks for, by the key of a profile's ``provides``; a launcher is the job's, and no label asks for a network.
KEY = "org.supercontainers."
NOT_OF_NODES = ("launcher", "network")

SLURM, NFD = "slurm", "nfd"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=(SLURM, NFD), default="",
                        help="slurm: a line for slurm.conf; nfd: a file for node-feature-discovery's features.d; default: a table")
    parser.add_argument("--inventory", metavar="FILE", default="", help="of another system, from what its site has published")


def execute(args: argparse.Namespace) -> int:
    node = inventory.published(args.inventory) if args.inventory else inventory.load(args.state_dir)
    said = document(node, {} if args.inventory else {
        profile.name: len([part for gpu in gpus.of_profile(profile) for part in gpu.parts or (gpu,)]) for profile in node.profiles})
    if args.json:
        cli.print_json(said)
    elif args.format == SLURM:
        print(slurm(said, os.uname().nodename.partition(".")[0]))
    elif args.format == NFD:
        print("\n".join(nfd(said)))
    else:
        show.show(_lines(said))
    return 0


def document(node: Inventory, counted: Mapping[str, int] = {}) -> Dict[str, Any]:
    """What ``--json`` prints: schemas/features-output.schema.json. ``counted``: GPUs by the name of a profile, of one that is divided its
    instances."""
    offers: Dict[str, List[str]] = {}
    needs: Dict[str, str] = {}
    for profile in node.profiles:
        for kind, value in profile.provides.items():
            if kind in NOT_OF_NODES or _unavailable(profile):
                continue
            values = offers.setdefault(KEY + kind, [])
            if value in values:
                continue
            values.append(value)
            needs[value] = "" if node.c_runtime is not None and not node.c_runtime.problems else _glibc(profile)
    if node.cpu is not None:
        offers[CPU_KEYS[0]] = list(node.cpu.compatible)
    there = {profile.provides["gpu"]: counted[profile.name] for profile in node.profiles
             if "gpu" in profile.provides and counted.get(profile.name) and not _unavailable(profile)}
    return {"version": 1, "machine": node.machine, "libc_version": node.libc_version,
            "cpu": {"target": node.cpu.target, "level": node.cpu.level} if node.cpu else None,
            "labels": offers, "image_glibc": needs, "gpus": there}


def _unavailable(profile: ResolvedProfile) -> bool:
    return all(one.problems for one in (profile, *profile.variants))


def _glibc(profile: ResolvedProfile) -> str:
    """The oldest glibc that an image needs for the profile or one of its variants; "" = any."""
    offers = [one for one in (profile, *profile.variants) if not one.problems]
    return min((one.glibc for one in offers), key=abi.version_key)


def slurm(said: Mapping[str, Any], node: str) -> str:
    """A line for slurm.conf. ``srun --constraint='mpi-mpich&x86_64_v3' --gres=gpu:2`` then finds the node. The GPUs have no type: that is a
    word of the site's, or of AutoDetect in gres.conf, and slurmd drains a node where the two differ (gres.conf(5))."""
    words, gpus_ = ",".join(_words(said, "-")), sum(said["gpus"].values())
    return f"NodeName={node}" + (f" Features={words}" if words else "") + (f" Gres=gpu:{gpus_}" if gpus_ else "")


def nfd(said: Mapping[str, Any]) -> Iterator[str]:
    """Lines NAME=VALUE of a file in /etc/kubernetes/node-feature-discovery/features.d; the names are those of labels of the node."""
    return (f"org.supercontainers/{word}=true" for word in _words(said, "."))


def _words(said: Mapping[str, Any], between: str) -> List[str]:
    """One word for everything that an image can ask for: "mpi-mpich", "gpu-cuda", and of processors the levels as they are, with its own
    name."""
    words = [f"{key[len(KEY):]}{between}{value}" for key, values in said["labels"].items() if key != CPU_KEYS[0] for value in values]
    if said["cpu"]:
        levels = [target for target in said["labels"][CPU_KEYS[0]] if target.startswith(said["cpu"]["level"].partition("_v")[0])]
        words += dict.fromkeys((*sorted(levels), said["cpu"]["target"]))
    return words


def _lines(said: Mapping[str, Any]) -> Iterator[show.Block]:
    rows = []
    for key, values in said["labels"].items():
        for value in values if key != CPU_KEYS[0] else ():
            glibc = said["image_glibc"].get(value, "")
            rows.append((f"{key}={value}", f"glibc {glibc} or newer" if glibc else "any glibc"))
    if said["cpu"]:
        target, level = said["cpu"]["target"], said["cpu"]["level"]
        rows.append((f"{CPU_KEYS[0]}={target}", "programs for it or an older one" + (f", such as {level}" if level != target else "")))
    if rows:
        yield show.Table(("LABEL OF AN IMAGE", "NEEDS IN THE IMAGE"), tuple(rows))
        yield from (f"{show.count(number, 'GPU')} for {stack}" for stack, number in said["gpus"].items())
    else:
        yield "this node offers nothing that an image could ask for"
