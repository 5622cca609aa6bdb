"""A drafted profile injects as the shipped one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bed.bed import Engine
from tests.bed.site import MPICH5, OPENMPI5, Site
from tests.engine.inside import HELLO, TREE, assert_runs, start

MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", "ompihello")


@pytest.mark.parametrize(("library", "image", "command", "version"), [
    (MPICH5 / "libmpi.so.12", "bookworm-mpich", HELLO, "5.0.2"),
    (OPENMPI5 / "libmpi.so.40", "bookworm-openmpi", MPIRUN, "5.0.11"),
], ids=("mpich", "openmpi"))
def test_a_drafted_profile(crun: Engine, scratch: Path, library: Path, image: str, command: tuple[str, ...], version: str) -> None:
    """It alone is on, and nothing else says where the library is."""
    site = Site(scratch / "site", crun.account)
    (site.config_dir / "profiles.d").mkdir()
    drafted = site.command("profiles", "draft", str(library), "--output", str(site.config_dir / "profiles.d/vendor.json"))
    assert drafted.returncode == 0, drafted.stderr
    site.configure(profiles=["vendor"])
    site.scan()
    site.register()
    result, log = start(crun, site, *command, image=image)
    assert_runs(result, version, f"{TREE}{library.parent}/")
    assert [(entry["verdict"], entry["profile"]) for entry in log] == [("proved", "vendor")]
