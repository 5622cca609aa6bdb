"""``oci-hpc-hooks bundle DIR``: give the hook to a plain OCI bundle, for crun and runc without an engine and Slurm's --container.

The bundle's config.json names the hook at createRuntime then, and the caller's wishes as annotations; a bundle has no labels. Its root
filesystem and whatever else it says stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any, Dict, List

from oci_hpc_hooks import cli
from oci_hpc_hooks.cli.target import pairs
from oci_hpc_hooks.errors import ConfigError, InputError, UsageError
from oci_hpc_hooks.inputs import container, jsontext
from oci_hpc_hooks.linux.files import put

#: Where the package of a distribution has the descriptor (packaging/rpm), and what register calls it.
HOOKS_DIR = "/usr/share/containers/oci/hooks.d"
DESCRIPTOR = "oci-hpc-hooks.json"
STAGE = "createRuntime"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", type=os.path.abspath, help="the directory with config.json")
    parser.add_argument("--hooks-dir", metavar="HOOKS", type=os.path.abspath, default=HOOKS_DIR,
                        help="the folder that was given to register (default: %(default)s)")
    parser.add_argument("--annotation", metavar="KEY=VALUE", action="append", default=[],
                        help="what is asked for, such as org.supercontainers.mpi=mpich; may be repeated")
    parser.add_argument("--remove", action="store_true", help="take the hook out again, and the annotations that are given")


def execute(args: argparse.Namespace) -> int:
    path = os.path.join(args.dir, "config.json")
    annotations = pairs(args.annotation, "--annotation")
    try:
        data = jsontext.read_file(path, "the bundle's configuration", container.CONFIG_LIMIT)
        config = jsontext.as_mapping(jsontext.loads(data, path, container.CONFIG_LIMIT), path)
        entries = enumerate(container.hooks(config, STAGE))
        hooks = [jsontext.as_mapping(entry, f"{path}, hooks.{STAGE}[{number}]") for number, entry in entries]
        container.annotations_of(config)
    except InputError as error:
        raise UsageError(f"{args.dir} is no bundle: {error.what}", remedy="name a directory with a config.json as a runtime takes it",
                         who="user") from None
    others = [entry for entry in hooks if not container.own_hook(entry)]
    wanted = others if args.remove else [*others, _hook(args.hooks_dir)]
    edited = _edited(config, wanted, annotations, args.remove)
    if edited != config:
        _write(path, edited)
    if args.json:
        cli.print_json({"version": 1, "config": path, "changed": edited != config, "hooks": [str(entry.get("path")) for entry in wanted],
                        "annotations": edited.get("annotations") or {}})
    else:
        print(f"{path}: {'changed' if edited != config else 'nothing to change'}")
    return 0


def _hook(hooks_dir: str) -> Dict[str, Any]:
    """The hook of the descriptor there. Raises ConfigError where it could not be started: a runtime would only say so at the start."""
    path = os.path.join(hooks_dir, DESCRIPTOR)
    try:
        with open(path, encoding="utf-8") as file:
            hook: Dict[str, Any] = json.load(file)["hook"]
        executable = str(hook["path"])
        startable = os.access(executable, os.X_OK)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is no descriptor of ours: {getattr(error, 'strerror', None) or error}",
                          remedy="name the folder that was given to oci-hpc-hooks register as --hooks-dir", who="user") from None
    if not startable:
        raise ConfigError(f"{path} names {executable}, which cannot be started", remedy="run oci-hpc-hooks register again",
                          who="site admin")
    return hook


def _edited(config: Dict[str, Any], hooks: List[Dict[str, Any]], annotations: Dict[str, str], remove: bool) -> Dict[str, Any]:
    """The configuration with these hooks at our stage, and with or without the annotations; what is empty then is left out."""
    stages = {**(config.get("hooks") or {}), STAGE: hooks}
    said = dict(config.get("annotations") or {})
    if remove:
        said = {key: value for key, value in said.items() if annotations.get(key) != value}
    else:
        said.update(annotations)
    edited = {**config, "hooks": {stage: entries for stage, entries in stages.items() if entries}, "annotations": said}
    return {key: value for key, value in edited.items() if value or key not in ("hooks", "annotations")}


def _write(path: str, config: Dict[str, Any]) -> None:
    """The file keeps its mode and owner."""
    status = os.stat(path)
    data = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")
    put(path, data, status.st_mode & 0o7777, (status.st_uid, status.st_gid) if os.geteuid() == 0 else None)
