# ruff: noqa: F811 (fixtures are imported)
"""A root filesystem that no engine has made (``podman run --rootfs``, a bundle of somebody's) below a folder that somebody else can
change, who exchanges what leads to it for a link to a folder of the host between the runtime's look and the hook's.

The runtime has mounted the right one by then. A hook that follows the path once more works on the host's folder: it makes directories
there, and what it was to inject is missing in the container, which starts. (Before the runtime's look it is the runtime's to decide.)
"""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.hostile import told
from tests.attacks.weaken import Edit, weakened, wrapped
from tests.bed.bed import Engine, Result
from tests.engine.inside import HELLO, assert_site
from tests.engine.site import ReadySite, ready  # noqa: F401

#: The hook, while the two names are exchanged (renameat2(2)).
MEANWHILE = f"""#!/usr/bin/python3 -IS
import ctypes, os, subprocess, sys
def exchange():
    assert ctypes.CDLL(None).syscall({316 if platform.machine() == "x86_64" else 276}, -100, b"@FOLDER@", -100, b"@LINK@", 2) == 0
exchange()
try:
    status = subprocess.run(["{{hook}}"]).returncode
finally:
    exchange()
sys.exit(status)
"""


@contextlib.contextmanager
def two_roots(engine: Engine, scratch: Path) -> Iterator[tuple[Path, Path]]:
    """Debian 12 at FOLDER/root, and another such tree of the host in a folder that a link beside FOLDER leads to."""
    with engine.bundle(scratch / "mine", "bookworm", HELLO) as mine, engine.bundle(scratch / "theirs", "bookworm", HELLO) as theirs:
        folder, other = scratch / "folder", scratch / "other"
        for at, tree in ((folder, mine), (other, theirs)):
            (at / "root").mkdir(parents=True)
            subprocess.run(["mount", "--bind", tree / "rootfs", at / "root"], check=True)
        (scratch / "link").symlink_to(other)
        try:
            yield folder / "root", theirs / "upper"
        finally:
            for at in (folder, other):
                subprocess.run(["umount", "--recursive", at / "root"], check=True)


def started(engine: Engine, hooks: Path, scratch: Path, attack: bool, *options: str) -> tuple[Result, list[str]]:
    """The result of a container of podman's, and what was made in the host's tree."""
    if attack:
        script = MEANWHILE.replace("@FOLDER@", str(scratch / "folder")).replace("@LINK@", str(scratch / "link"))
        hooks = wrapped(hooks, scratch / "wrapped", script)
    with two_roots(engine, scratch) as (root, theirs):
        name = engine.new_name()
        result = engine.podman("--hooks-dir", str(hooks), "run", "--rm", "--name", name, "--net=none", *options,
                               "--annotation=org.supercontainers.mpi=mpich", "--rootfs", str(root), *HELLO)
        return result, sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*"))


OPTIONS = ("--volume=/usr/share/doc:/new/place",)


@pytest.mark.parametrize("stage", ["", "podman"])
@pytest.mark.parametrize("runtime", ["crun", pytest.param("runc", marks=pytest.mark.long)])
def test_a_root_that_is_exchanged(ready: ReadySite, scratch: Path, runtime: str, stage: str) -> None:
    engine = Engine(runtime, "root")
    result, made = started(engine, ready(engine).hooks_dir / stage, scratch, True, *OPTIONS)
    assert result.returncode != 0 and "rank" not in result.stdout
    assert made == []
    if runtime == "runc":  # crun's own stderr is out of reach of a hook that another program has started
        assert "is not what the runtime has mounted as the container's root filesystem" in told(result), result.stderr


@pytest.mark.parametrize("stage", ["", "podman"])
def test_a_root_that_is_not(ready: ReadySite, scratch: Path, stage: str) -> None:
    engine = Engine("runc", "root")
    result, made = started(engine, ready(engine).hooks_dir / stage, scratch, False, *OPTIONS)
    assert_site(result)
    assert made == []


MOUNTED: Edit = ("replay.py", "if around is not None and ", "if False and around is not None and ")
PLAIN: Edit = ("precreate.py", "resolve = 0 if self.start.image.image_id else syscalls.RESOLVE_NO_SYMLINKS", "resolve = 0")
#: So that a tree is made in the root filesystem.
ANYWHERE: Edit = ("apply/rootfs.py", "            if record[\"tree_make\"] == \"dev\":\n", "            if False:\n")


@pytest.mark.parametrize(("stage", "edits", "wanted"), [
    ("", (MOUNTED, ANYWHERE), "dev/.oci-hpc"), ("podman", (PLAIN, MOUNTED, ANYWHERE), "new/place")])
def test_without_the_defences(ready: ReadySite, scratch: Path, stage: str, edits: tuple[Edit, ...], wanted: str) -> None:
    engine = Engine("runc", "root")
    result, made = started(engine, weakened(ready(engine), scratch, *edits) / stage, scratch, True, *OPTIONS)
    assert wanted in made, result.stderr
