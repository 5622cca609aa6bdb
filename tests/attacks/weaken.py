"""Hooks without one of their defences, to show that a test of it can fail: a copy of the package, edited and registered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.bed import bed
from tests.bed.site import Site

Edit = tuple[str, str, str]  # file of the package, what stands there once, what instead


def edited(copy: Path, *edits: Edit) -> Path:
    """A copy of the package in this new folder, edited. Fails where an edit does not fit any more."""
    shutil.copytree(bed.ROOT / "oci_hpc_hooks", copy / "oci_hpc_hooks", ignore=shutil.ignore_patterns("__pycache__"))
    for other in ("hooks.d", "schemas"):
        (copy / other).symlink_to(bed.ROOT / other)
    for file, old, new in edits:
        path = copy / "oci_hpc_hooks" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is not once in {file}"
        path.write_text(text.replace(old, new))
    return copy


def weakened(site: Site, folder: Path, *edits: Edit, name: str = "weak") -> Path:
    """The folder for ``--hooks-dir`` of hooks that are the site's in all else."""
    copy = edited(folder / name / "package", *edits)
    hooks = folder / name / "hooks.d"
    done = site.command("register", str(hooks), env={"PYTHONPATH": str(copy)})
    assert done.returncode == 0, done.stderr
    assert str(copy).encode() in (hooks / "bin/oci-hpc-hooks-createruntime").read_bytes()
    return hooks


def wrapped(hooks: Path, folder: Path, script: str) -> Path:
    """The same hooks, each started by a program of the given text, which ends in starting ``{hook}``."""
    (folder / "bin").mkdir(parents=True)
    for descriptor in hooks.glob("*.json"):
        document = json.loads(descriptor.read_text())
        original = Path(document["hook"]["path"])
        wrapper = folder / "bin" / original.name
        wrapper.write_text(script.replace("{hook}", str(original)))
        wrapper.chmod(0o755)
        document["hook"].update(path=str(wrapper), args=[str(wrapper)])
        (folder / descriptor.name).write_text(json.dumps(document))
    return folder
