"""Where the files that come with the project lie: schemas, hook descriptors, and the profiles of the package.

Beside the package (a checkout), or in ``share`` beside the ``lib`` that holds it: ``PREFIX/lib/python3.11/site-packages`` of a virtual
environment, ``/usr/lib/oci-hpc-hooks`` of a distribution. ``sys.prefix`` does not tell: a hook's interpreter runs with ``-S``, and so
does not learn that it stands in a virtual environment (PEP 405).
"""

from __future__ import annotations

from pathlib import Path

from oci_hpc_hooks.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent.parent
PROFILES = PACKAGE / "profiles.d"


def find(relative: str) -> Path:
    """The path of a file that comes with the project, such as ``schemas/site.schema.json``.

    Raises :class:`ConfigError` if the installation lacks it.
    """
    roots = [PACKAGE.parent, PACKAGE.parent / "share/oci-hpc-hooks"]  # the latter of pip install --target
    roots += [above.parent / "share/oci-hpc-hooks" for above in PACKAGE.parents if above.name in ("lib", "lib64")][:1]
    paths = [root / relative for root in roots]
    for path in paths:
        if path.is_file():
            return path
    raise ConfigError(
        f"this installation lacks its own file {relative}; looked for {', '.join(map(str, paths))}",
        remedy="install oci-hpc-hooks again",
        who="site admin",
    )
