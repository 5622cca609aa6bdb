"""Fixtures for ranks that a launcher starts, each in a container of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import MPICH5, OPENMPI4, Site
from tests.bed.slurm import Slurm
from tests.engine.conftest import engine, scratch, tidy  # noqa: F401
from tests.pages import blocks

HooksOf = Callable[[Engine, Path], Path]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """Two nodes, n1 and n2, for all tests of the run."""
    with Slurm(bed.scratch("slurm") / "cluster") as slurm:
        yield slurm
        folder = slurm.folder.parent
    shutil.rmtree(folder)


@pytest.fixture
def slurm(cluster: Slurm) -> Iterator[Slurm]:
    """The cluster, idle and without containers after the test as before."""
    yield cluster
    cluster.tidy()


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder with pingpong of each family, linked to the images' own MPI: mpich, openmpi."""
    folder = bed.scratch("programs")
    libraries = "usr/lib/x86_64-linux-gnu"
    for family, site, image, library in (("mpich", MPICH5, "bookworm", "libmpich.so.12"),
                                         ("openmpi", OPENMPI4, "bookworm-openmpi", "libmpi.so.40")):  # fmt: skip
        source = [f"-I{site.parent / 'include'}", str(bed.ROOT / "tests/bed/src/pingpong.c")]
        link = ["-Wl,--allow-shlib-undefined", str(bed.BUILD / "images" / image / libraries / library)]
        subprocess.run(["gcc", "-Wall", "-O1", "-o", str(folder / family), *source, *link], check=True, timeout=60)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shim() -> Iterator[Path]:
    """A folder with a podman that hands the launcher's socket on, as ``register --podman`` writes it."""
    folder = bed.scratch("shim")
    (page,) = (block.text for block in blocks("docs/slurm.md") if "--podman" in block.text)
    assert "/usr/local/bin" in page
    bed.root_account().execute(*page.replace("/usr/local/bin", f"{folder}/bin").split(), check=True)
    yield folder / "bin"
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def hooks_of() -> Iterator[HooksOf]:
    """``hooks_of(engine, library_folder)``: the folder for ``--hooks-dir`` of a site whose MPI, of either family, lies there."""
    folder = bed.scratch("sites")
    made: dict[tuple[str, Path], Site] = {}

    def get(engine: Engine, search: Path) -> Path:  # noqa: F811
        key = engine.account.name, search
        if key not in made:
            made[key] = Site(folder / f"{engine.account.name}-{search.parent.name}", engine.account)
            made[key].configure(**({"openmpi": [search]} if "openmpi" in str(search) else {"search": [search]}))
            made[key].scan()
            made[key].register()
        return made[key].hooks_dir

    yield get
    shutil.rmtree(folder)
