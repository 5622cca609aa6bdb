"""Where the files that come with the project lie: schemas, hook descriptors, and the profiles of the package.

Three kinds of place, the first that holds the file wins: beside the package (a checkout), below ``sys.prefix`` (a wheel's data files, a
virtual environment), and ``/usr`` (a distribution's package that runs under another prefix).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List

from oci_hpc_hooks.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent.parent
PROFILES = PACKAGE / "profiles.d"


def find(relative: str) -> Path:
    """The path of a file that comes with the project, such as ``schemas/site.schema.json``.

    Raises :class:`ConfigError` if the installation lacks it.
    """
    tried: List[Path] = []
    for root in (PACKAGE.parent, Path(sys.prefix, "share/oci-hpc-hooks"), Path("/usr/share/oci-hpc-hooks")):
        path = root / relative
        if path.is_file():
            return path
        tried.append(path)
    raise ConfigError(
        f"this installation lacks its own file {relative}; looked for {', '.join(map(str, tried))}",
        remedy="install oci-hpc-hooks again",
        who="site admin",
    )
