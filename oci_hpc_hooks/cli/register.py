"""``oci-hpc-hooks register [DIR] [--wrap RUNTIME] [--podman BIN]``: descriptors and executables of this installation, with absolute paths.

A distribution's package needs none of this: its executables have fixed places, and the descriptors in ``hooks.d`` name them. What is
written here are the same descriptors for a virtual environment, a pip install or a checkout. podman reads only the ``*.json`` of the
folder it is given, so the other variants and the executables lie in folders below.

``--wrap RUNTIME`` adds a runtime for engines that read no folder of hooks (see ``wrapper.py``). ``--podman BIN`` writes ``BIN/podman``, for
a folder that comes before podman's own in PATH (see ``shim.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import sysconfig
from typing import Any, Dict, List

from oci_hpc_hooks import cli, pack
from oci_hpc_hooks.errors import UsageError
from oci_hpc_hooks.inputs import resources, trust
from oci_hpc_hooks.linux.files import put

#: Descriptors of ``hooks.d``: podman's own containers; every container (CRI-O); engines that know prestart only; podman with its own stage
#: precreate, which other engines refuse and which therefore has a folder of its own.
DESCRIPTORS = ("oci-hpc-hooks.json", "cri/oci-hpc-hooks.json", "prestart/oci-hpc-hooks.json", "podman/oci-hpc-hooks.json",
               "podman/oci-hpc-hooks-precreate.json")

#: The one whose hook a runtime of --wrap gives: every container, whoever's it is.
WRAPPED = DESCRIPTORS[0]

_WRAPPER = "# Written by oci-hpc-hooks register --wrap: the last line says which runtime it becomes."

#: Second line of what ``--podman`` writes: by it the file is known as ours, and may be written anew.
_SHIM = "# Written by oci-hpc-hooks register --podman: the last line says which podman it becomes."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", type=os.path.abspath, nargs="?",
                        help="folder for podman's --hooks-dir; made if it is missing")
    parser.add_argument("--wrap", metavar="RUNTIME", default="",
                        help="also write DIR/bin/oci-hpc-hooks-RUNTIME, which gives each container the hook and becomes RUNTIME "
                             "(crun, runc, or a path): for dockerd --add-runtime and containerd")
    parser.add_argument("--podman", metavar="BIN", type=os.path.abspath,
                        help="write BIN/podman, which hands the socket of srun --mpi=pmi2 and of Hydra on to ranks in containers, and is "
                             "otherwise the podman that this command finds in PATH; put BIN in front of PATH")


def execute(args: argparse.Namespace) -> int:
    if not args.dir and not args.podman:
        raise UsageError("register what? Neither a folder for hooks nor --podman is given")
    if args.wrap and not args.dir:
        raise UsageError("--wrap needs the folder whose hook the runtime is to give", remedy="name DIR too", who="user")
    files: Dict[str, bytes] = {}
    for folder, texts in ((args.dir, hooks), (args.podman, shim)):
        if folder:
            os.makedirs(folder, mode=0o755, exist_ok=True)
            if os.geteuid() == 0:
                trust.trust_directory(folder, fixed=(folder,))
            files.update(texts(args))
    # Executables first: a descriptor whose executable is missing is passed over by podman without a word.
    written = sorted(files, key=lambda path: (path.endswith(".json"), path))
    for path in written:
        _put(path, files[path])
    if args.json:
        cli.print_json({"version": 1, "written": written})
        return 0
    print("\n".join(written))
    if args.dir:
        print(f"use it with: podman run --hooks-dir {shlex.quote(args.dir)} …")
    if args.podman:
        print(f"use it with: PATH={shlex.quote(args.podman)}:$PATH")
    return 0


def hooks(args: argparse.Namespace) -> Dict[str, bytes]:
    """Descriptors and the executables that they name, by path."""
    files: Dict[str, bytes] = {}
    for name in DESCRIPTORS:
        descriptor = json.loads(resources.find(f"hooks.d/{name}").read_text(encoding="utf-8"))
        path = os.path.join(args.dir, "bin", os.path.basename(descriptor["hook"]["path"]))
        files[path] = executable(descriptor["stages"][0], args)
        descriptor["hook"].update(path=path, args=[path])
        files[os.path.join(args.dir, name)] = (json.dumps(descriptor, indent=2) + "\n").encode()
        if args.wrap and name == WRAPPED:
            files.update(wrapper(args, descriptor["hook"]))
    return files


def wrapper(args: argparse.Namespace, hook: Dict[str, Any]) -> Dict[str, bytes]:
    """The runtime that gives containers this hook, by path. Raises UsageError where there is none for it to become."""
    runtime = shutil.which(args.wrap)
    if runtime is None:
        where = "" if "/" in args.wrap else " in PATH"
        raise UsageError(f"there is no runtime {args.wrap}{where}", remedy="install it, or name its path", who="user")
    text = (resources.PACKAGE / "wrapper.py").read_text(encoding="utf-8")
    path = os.path.join(args.dir, "bin", f"oci-hpc-hooks-{os.path.basename(runtime)}")
    return {path: f"{pack.first_line(sys.executable)}{_WRAPPER}\n{text}\n\nmain({os.path.abspath(runtime)!r}, {hook!r})\n".encode()}


def shim(args: argparse.Namespace) -> Dict[str, bytes]:
    """The podman that hands on the launcher's socket, by path. Raises UsageError where another file has its place, or there is no podman
    for it to become."""
    path = os.path.join(args.podman, "podman")
    if os.path.lexists(path) and not _is_shim(path):
        raise UsageError(f"{path} is there and is not ours: it would be lost", remedy="name another folder, and put that in front of PATH",
                         who="user")
    places = [os.path.join(folder, "podman") for folder in os.get_exec_path() if os.path.isabs(folder)]
    podman = next((place for place in places if os.access(place, os.X_OK) and os.path.isfile(place) and not _is_shim(place)), "")
    if not podman:
        raise UsageError("there is no podman in PATH", remedy="install it, or put its folder into PATH", who="user")
    # The interpreter itself, no link of a virtual environment: users' podman must not end with that.
    text = (resources.PACKAGE / "shim.py").read_text(encoding="utf-8")
    first = pack.first_line(os.path.realpath(sys.executable))
    return {path: f"{first}{_SHIM}\n{text}\n\nmain({podman!r})\n".encode()}


def _is_shim(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(pack.FIRST_LINE + len(_SHIM)).split(b"\n")[1:2] == [_SHIM.encode()]
    except OSError:
        return False


def executable(stage: str, args: argparse.Namespace) -> bytes:
    """What the runtime starts for this stage. Raises ConfigError."""
    return pack.executable(sys.executable, module_path(), stage, config=args.config_dir, state=args.state_dir, cache=args.cache_dir,
                           log=args.log_file)


def module_path() -> List[str]:
    """Where this package and what it depends on lie, in this process's own order, without what the interpreter finds by itself."""
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    own |= {os.path.join(str(directory), "lib-dynload") for directory in own}
    # Python puts the directory of the script that it runs first; nothing of ours is there.
    own |= {os.path.dirname(os.path.abspath(sys.argv[0])), os.path.dirname(os.path.realpath(sys.argv[0]))}
    others = [entry for entry in map(os.path.normpath, sys.path) if os.path.isabs(entry) and os.path.isdir(entry) and entry not in own]
    # The package's own directory: an editable install is found through a hook in site-packages that -S does not run.
    return list(dict.fromkeys([str(resources.PACKAGE.parent), *others]))


def _put(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    put(path, data, 0o644 if path.endswith(".json") else 0o755)
