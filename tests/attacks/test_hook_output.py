# ruff: noqa: F811 (fixtures are imported)
"""User-controlled ``run.oci.hooks.*``: crun connects a hook's stderr and stdout to the file that an annotation names, as root.

podman before 4.5.1 hands on the annotations of an image's manifest. So an image could have our sentence, with words of its own in it,
appended to any file of the host, or to a disk.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.hostile import told
from tests.attacks.images import Forge, config
from tests.attacks.weaken import weakened
from tests.bed.bed import Engine
from tests.engine.site import ReadySite, ready  # noqa: F401

#: Refused, since the image has no glibc.
LABELS = {"org.supercontainers.mpi": "mpich"}


def victim(folder: Path) -> Path:
    made = folder / "profile"
    made.write_text("of root\n")
    return made


@pytest.mark.parametrize("stage", ["", pytest.param("podman", marks=pytest.mark.long)])
def test_where_an_annotation_sends_the_hooks_words(ready: ReadySite, forge: Forge, open_folder: Path, stage: str) -> None:
    engine = Engine("crun", "root")
    profile = victim(open_folder)
    image = forge.make(engine, config(Env=["PATH=/bin"], Labels=LABELS),
                       f'"annotations": {{"run.oci.hooks.stderr": "{profile}", "run.oci.hooks.stdout": "{profile}"}}')
    for options in ([], [f"--annotation=run.oci.hooks.{name}={profile}" for name in ("stderr", "stdout")]):
        result = engine.run(image, "true", options=options, hooks_dir=ready(engine).hooks_dir / stage)
        assert result.returncode != 0
        assert "musl" in told(result), result.stderr  # it is heard all the same
        assert profile.read_text() == "of root\n"


def test_without_the_defence(ready: ReadySite, forge: Forge, scratch: Path, open_folder: Path) -> None:
    engine = Engine("crun", "root")
    profile = victim(open_folder)
    image = forge.make(engine, config(Env=["PATH=/bin"], Labels=LABELS))
    hooks = weakened(ready(engine), scratch, ("report.py", "return S_ISFIFO(mode) or S_ISSOCK(mode) or posix.isatty(fd)", "return True"))
    engine.run(image, "true", options=[f"--annotation=run.oci.hooks.stderr={profile}"], hooks_dir=hooks)
    assert "musl" in profile.read_text()
