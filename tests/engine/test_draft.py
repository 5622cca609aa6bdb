"""A profile drafted as docs/profiles.md says injects as the shipped one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bed.bed import Engine
from tests.bed.site import MPICH5, OPENMPI5, Site
from tests.engine.inside import HELLO, TREE, assert_runs, start
from tests.pages import blocks

NAME = "vendor-mpi"
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", "ompihello")


@pytest.mark.parametrize(("library", "image", "command", "version"), [
    (MPICH5 / "libmpi.so.12", "bookworm-mpich", HELLO, "5.0.2"),
    (OPENMPI5 / "libmpi.so.40", "bookworm-openmpi", MPIRUN, "5.0.11"),
], ids=("mpich", "openmpi"))
def test_a_drafted_profile(crun: Engine, scratch: Path, library: Path, image: str, command: tuple[str, ...], version: str) -> None:
    """It alone is on, and nothing else says where the library is."""
    site = Site(scratch / "site", crun.account)
    (site.config_dir / "profiles.d").mkdir()
    (page,) = (block.text for block in blocks("docs/profiles.md") if "profiles draft" in block.text)
    drafted, tried = (line.split()[1:] for line in page.splitlines())
    assert drafted[2:] == ["/opt/vendor/mpi/lib/libmpi.so.12", "--output", f"/etc/oci-hpc-hooks/profiles.d/{NAME}.json"]
    done = site.command(*drafted[:2], str(library), "--output", f"{site.config_dir}/profiles.d/{NAME}.json")
    assert done.returncode == 0, done.stderr
    site.configure(profiles=[NAME])
    assert f"{NAME}: available" in site.command(*tried).stdout
    site.scan()
    site.register()
    result, log = start(crun, site, *command, image=image)
    assert_runs(result, version, f"{TREE}{library.parent}/")
    assert [(entry["verdict"], entry["profile"]) for entry in log] == [("proved", NAME)]
