"""Hooks without one of their defences, to show that a test of it can fail: a copy of the package, edited and registered."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.bed import bed
from tests.bed.site import Site

Edit = tuple[str, str, str]  # file of the package, what stands there once, what instead


def weakened(site: Site, folder: Path, *edits: Edit) -> Path:
    """The folder for ``--hooks-dir`` of hooks that are the site's in all else. Fails where an edit does not fit any more."""
    copy = folder / "weak/package"
    shutil.copytree(bed.ROOT / "oci_hpc_hooks", copy / "oci_hpc_hooks", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("hooks.d", "schemas"):
        (copy / name).symlink_to(bed.ROOT / name)
    for name, old, new in edits:
        path = copy / "oci_hpc_hooks" / name
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is not once in {name}"
        path.write_text(text.replace(old, new))
    done = site.command("register", str(folder / "weak/hooks.d"), env={"PYTHONPATH": str(copy)})
    assert done.returncode == 0, done.stderr
    assert str(copy).encode() in (folder / "weak/hooks.d/bin/oci-hpc-hooks-createruntime").read_bytes()
    return folder / "weak/hooks.d"
