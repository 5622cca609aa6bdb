"""Ranks in containers under real launchers, with every flag by hand: they find each other, on the image's MPI and on the site's."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

from tests.bed.bed import BUILD, RUNTIMES, Engine
from tests.bed.site import MPICH5, OPENMPI4, OPENMPI5
from tests.bed.slurm import Slurm
from tests.ranks.conftest import HooksOf
from tests.ranks.launch import NAMESPACES, PMI, PMI_FD_TO_3, assert_wired, pmix, podman

IMAGE = {"mpich": "bookworm-mpich", "openmpi": "bookworm-openmpi"}
VERSIONS = {("mpich", None): "4.0.2", ("mpich", MPICH5): "5.0.2",
            ("openmpi", None): "4.1.4", ("openmpi", OPENMPI4): "4.1.8", ("openmpi", OPENMPI5): "5.0.11"}  # fmt: skip


def engines(user: str, *quick: tuple[str, str]) -> pytest.MarkDecorator:
    """Both runtimes as root and as `user`, all but `quick` in the long run."""
    pairs = [(runtime, name) for name in ("root", user) for runtime in RUNTIMES]
    return pytest.mark.parametrize("engine", [
        pytest.param(pair, id="-".join(pair), marks=() if pair in quick else pytest.mark.long) for pair in pairs
    ], indirect=True)


def sites(*folders: Optional[Path], quick: tuple[Optional[Path], ...]) -> pytest.MarkDecorator:
    """The image's own MPI (None) and those of the site in these folders, all but `quick` in the long run."""
    return pytest.mark.parametrize("site", [
        pytest.param(folder, id=folder.parent.name if folder else "own", marks=() if folder in quick else pytest.mark.long)
        for folder in folders
    ])


# A PMIx server serves only who has the user's id inside of the container too. MPICH, and UCX under it, read each other's memory, which
# they may between containers of one user namespace: with keep-id each has its own.
openmpis = sites(None, OPENMPI4, OPENMPI5, quick=(None, OPENMPI5))
mpichs = sites(None, MPICH5, quick=(None, MPICH5))


class Start:
    """``podman run`` of pingpong, for a launcher to put in front of."""

    def __init__(self, programs: Path, hooks_of: HooksOf) -> None:
        self._programs = programs
        self._hooks_of = hooks_of

    def __call__(self, engine: Engine, family: str, site: Optional[Path], *options: str, image: str = "") -> list[str]:
        hooks = self._hooks_of(engine, site) if site else None
        return podman(engine, image or IMAGE[family], self._programs / family, options, hooks)


@pytest.fixture
def start(programs: Path, hooks_of: HooksOf) -> Start:
    return Start(programs, hooks_of)


@engines("keep-id", ("crun", "root"), ("runc", "keep-id"))
@openmpis
def test_pmix(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path]) -> None:
    command = start(engine, "openmpi", site, *pmix(slurm, engine))
    result = slurm.srun("--mpi=pmix", "--nodes=1", "--ntasks=4", *command, account=engine.account)
    assert_wired(result, VERSIONS["openmpi", site], [4])
    assert slurm.containers() == []


@engines("rootless", ("crun", "root"), ("runc", "rootless"))
@mpichs
def test_pmi2(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path]) -> None:
    command = start(engine, "mpich", site, *PMI)
    result = slurm.srun("--mpi=pmi2", "--nodes=1", "--ntasks=2", *PMI_FD_TO_3, *command, account=engine.account)
    assert_wired(result, VERSIONS["mpich", site], [2])
    assert slurm.containers() == []


@engines("rootless", ("runc", "root"), ("crun", "rootless"))
@mpichs
@pytest.mark.parametrize("way", ["port", pytest.param("fd", marks=pytest.mark.long)])
def test_hydra(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path], way: str) -> None:
    """The site's mpiexec on a node without Slurm."""
    mpiexec = [str(BUILD / "site/mpich5/bin/mpiexec.hydra"), "-n", "2"]
    if way == "port":
        command = [*mpiexec, "-pmi-port", *start(engine, "mpich", site, *NAMESPACES, "--env=PMI_*")]
    else:
        command = [*mpiexec, *PMI_FD_TO_3, *start(engine, "mpich", site, *PMI)]
    assert_wired(slurm.inside("n1", *command, account=engine.account), VERSIONS["mpich", site], [2])
    assert slurm.containers() == []


@engines("keep-id", ("crun", "root"))
@sites(None, OPENMPI4, OPENMPI5, quick=(None,))
def test_pmix_on_two_nodes(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path]) -> None:
    # 5 does not take the loopback device by itself, and these nodes have no other in common.
    command = start(engine, "openmpi", site, *pmix(slurm, engine), "--env=OMPI_MCA_btl_tcp_if_include=lo")
    result = slurm.srun("--mpi=pmix", "--nodes=2", "--ntasks-per-node=2", *command, account=engine.account)
    assert_wired(result, VERSIONS["openmpi", site], [2, 2])


@engines("rootless", ("runc", "rootless"))
@sites(None, MPICH5, quick=(MPICH5,))
def test_pmi2_on_two_nodes(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path]) -> None:
    # Debian 12's own may never end on several nodes (test_preconditions.py), and never does where ranks are late. It is Debian 13's here,
    # which only the matrix builds.
    image, version = (IMAGE["mpich"], VERSIONS["mpich", site]) if site else ("debian13-mpich", "4.2.1")
    try:
        command = start(engine, "mpich", site, *PMI, image=image)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    result = slurm.srun("--mpi=pmi2", "--nodes=2", "--ntasks-per-node=2", *PMI_FD_TO_3, *command, "late", account=engine.account)
    assert_wired(result, version, [2, 2])
