"""The podman that hands the launcher's socket on, with the real podman behind it: no line of shell, no ``--preserve-fds``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

import pytest

from oci_hpc_hooks import shim as shim_module
from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import MPICH5
from tests.bed.slurm import Slurm
from tests.ranks.launch import NAMESPACES, PMI_FD_TO_3, assert_wired, in_front, ranks
from tests.ranks.test_wire_up import VERSIONS, Start, engines, mpichs, sites, start  # noqa: F401

HYDRA = str(bed.BUILD / "site/mpich5/bin/mpiexec.hydra")
OPTIONS = (*NAMESPACES, "--env=PMI_*")


@engines("rootless", ("crun", "root"), ("runc", "rootless"))
@mpichs
def test_pmi2(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path], shim: Path) -> None:  # noqa: F811
    command = [*in_front(shim, engine.account), *start(engine, "mpich", site, *OPTIONS)]
    result = slurm.srun("--mpi=pmi2", "--nodes=1", "--ntasks=2", *command, account=engine.account)
    assert_wired(result, VERSIONS["mpich", site], [2])
    assert slurm.containers() == []


@engines("rootless", ("runc", "root"), ("crun", "rootless"))
@sites(None, MPICH5, quick=(MPICH5,))
def test_hydra(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path], shim: Path) -> None:  # noqa: F811
    command = [*in_front(shim, engine.account), *start(engine, "mpich", site, *OPTIONS)]
    assert_wired(slurm.inside("n1", HYDRA, "-n", "2", *command, account=engine.account), VERSIONS["mpich", site], [2])
    assert slurm.containers() == []


def test_who_does_it_by_hand_may(slurm: Slurm, start: Start, shim: Path) -> None:  # noqa: F811
    """The line of shell that moves the descriptor and says so, with this podman behind it."""
    engine = Engine("crun", "rootless")
    command = [*in_front(shim, engine.account), *start(engine, "mpich", None, *OPTIONS, "--preserve-fds=1")]
    result = slurm.srun("--mpi=pmi2", "--nodes=1", "--ntasks=2", *PMI_FD_TO_3, *command, account=engine.account)
    assert_wired(result, VERSIONS["mpich", None], [2])


@pytest.mark.parametrize("user", ["root", "rootless"])
def test_exec(slurm: Slurm, programs: Path, shim: Path, user: str) -> None:
    """Ranks that come into one container of the node; and one that is killed is seen at once by the launcher."""
    engine = Engine("crun", user)
    name = engine.new_name()
    run = ["podman", "run", "--detach", "--name", name, *NAMESPACES, f"--volume={programs}:/ranks:ro", engine.load("bookworm-mpich")]
    begun = slurm.inside("n1", *run, "sleep", "1000", account=engine.account)
    assert begun.returncode == 0, begun.stderr
    step = ["--mpi=pmi2", "--nodelist=n1", "--ntasks=2", "--kill-on-bad-exit=1", *in_front(shim, engine.account), "podman", "exec", name]
    assert_wired(slurm.srun(*step, "/ranks/mpich", account=engine.account), VERSIONS["mpich", None], [2])
    dies = '[ "$PMI_RANK" = 1 ] || exec sleep 1000; kill -KILL $$'
    result = slurm.srun(*step, "sh", "-c", dies, account=engine.account, timeout=30)
    assert (result.returncode, "task 1: Exited with exit code 137" in result.stderr) == (137, True), result.stderr


def test_the_users_own_descriptors(slurm: Slurm, programs: Path, shim: Path) -> None:
    """A file that the user passes on is 3 as ever, and the rank has its launcher too."""
    engine = Engine("crun", "root")
    image = engine.load("bookworm-mpich")
    options = " ".join([*OPTIONS, "--preserve-fds=1", f"--volume={programs}:/ranks:ro"])
    line = f'podman run --rm {options} {image} sh -c "cat <&3; exec /ranks/mpich" 3<<<"input of $PMI_RANK"'
    result = slurm.srun("--mpi=pmi2", "--nodes=1", "--ntasks=2", *in_front(shim, engine.account), "bash", "-c", line)
    assert [rank.of for rank in ranks(result)] == [2, 2], result.stdout + result.stderr
    assert {"input of 0", "input of 1"} < set(result.stdout.splitlines())


@pytest.mark.parametrize(("command", "table"), [((), shim_module.GLOBAL), (("run",), shim_module.RUN), (("exec",), shim_module.EXEC)],
                         ids=["podman", "run", "exec"])
def test_options_are_podmans(command: tuple[str, ...], table: set[str]) -> None:
    """Which options take a value, as the podman of this machine says it."""
    text = Engine("crun", "root").podman(*command, "--help", check=True).stdout
    found = re.findall(r"^ {2,6}(?:-(\w), )?--([\w-]+)( \S+)? {2,}\S", text.partition("\nOptions:")[2], re.MULTILINE)
    assert len(found) > 9
    without = {name for letter, long, value in found if not value for name in (letter, long) if name}
    assert without and without <= table
    assert table.isdisjoint(name for letter, long, value in found if value for name in (letter, long))
