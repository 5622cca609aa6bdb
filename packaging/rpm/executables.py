"""Writes the hooks' executables of the package into the folder that it is made in; their places on a node are fixed.

    executables.py PYTHON BUILDROOT HOME BIN

Each has byte-code of the interpreter that runs this, which is therefore to be the one of the node.
"""

from __future__ import annotations

import sys
from pathlib import Path

#: By the last part of the file's name, as the descriptors in hooks.d have it.
STAGES = {"createruntime": "createRuntime", "prestart": "prestart", "precreate": "precreate"}


def main(python: str, buildroot: str, home: str, folder: str) -> None:
    root = str(Path(buildroot).resolve())
    sys.path.append(root + home)
    from oci_hpc_hooks import pack

    for name, stage in STAGES.items():
        path = Path(f"{root}{folder}/oci-hpc-hooks-{name}")
        path.write_bytes(pack.executable(
            python, [home], stage, root=root, config="/etc/oci-hpc-hooks", state="/var/lib/oci-hpc-hooks",
            cache="/var/cache/oci-hpc-hooks", log="/var/log/oci-hpc-hooks.log"))
        path.chmod(0o755)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main(*sys.argv[1:])
