"""``oci-hpc-hooks unregister [DIR] [--podman BIN]``: take away what register has written there, and nothing else.

A file goes only if it is known as ours by its content. Descriptors go first: podman passes over an executable without one, and a
descriptor without its executable would leave containers without what they ask for, silently.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any, List

from oci_hpc_hooks import cli, pack
from oci_hpc_hooks.cli import register
from oci_hpc_hooks.errors import UsageError

#: How the second line of everything that register writes and that is started begins.
WRITTEN = b"\n# Written by oci-hpc-hooks register"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", type=os.path.abspath, nargs="?", help="the folder that was given to register")
    parser.add_argument("--podman", metavar="BIN", type=os.path.abspath, help="take BIN/podman away, which register --podman has written")


def execute(args: argparse.Namespace) -> int:
    if not args.dir and not args.podman:
        raise UsageError("unregister what? Neither a folder of hooks nor --podman is given")
    removed: List[str] = []
    left: List[str] = []
    for path in _written(args):
        if not os.path.lexists(path):
            continue
        if _is_ours(path):
            os.unlink(path)
            removed.append(path)
        else:
            left.append(path)
    if not removed and not left:
        raise UsageError(f"there is nothing of register's in {args.dir or args.podman}", remedy="name the folder that was given to it",
                         who="user")
    for folder in ("bin", "cri", "prestart", "podman", ""):
        if args.dir:
            with contextlib.suppress(OSError):  # not empty: something else is there
                os.rmdir(os.path.join(args.dir, folder))
    if args.json:
        cli.print_json({"version": 1, "removed": removed, "left": left})
        return 0
    for path in removed:
        print(f"removed {path}")
    for path in left:
        print(f"left {path}, which register has not written like this")
    return 0


def _written(args: argparse.Namespace) -> List[str]:
    """Every path that register writes to, descriptors first."""
    paths = [os.path.join(args.dir, name) for name in register.DESCRIPTORS] if args.dir else []
    paths += sorted(map(str, Path(args.dir, "bin").glob("oci-hpc-hooks-*"))) if args.dir else []
    return paths + ([os.path.join(args.podman, "podman")] if args.podman else [])


def _is_ours(path: str) -> bool:
    try:
        if path.endswith(".json"):
            with open(path, encoding="utf-8") as file:
                descriptor: Any = json.load(file)
            return bool(os.path.basename(descriptor["hook"]["path"]).startswith("oci-hpc-hooks-"))
        with open(path, "rb") as file:
            return WRITTEN in file.read(pack.FIRST_LINE + len(WRITTEN))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
