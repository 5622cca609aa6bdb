"""Ranks under real launchers with one annotation: what they need of the job comes by the hooks, or one sentence says what is lacking.

The same lines as in test_wire_up.py without their ``--env`` and ``--volume``. Namespaces are podman's to make, so their options stay (a
site gives them in containers.conf).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import pytest

from tests.bed.bed import BUILD, Engine, Result
from tests.bed.site import MPICH5, OPENMPI4, OPENMPI5
from tests.bed.slurm import Slurm
from tests.ranks.conftest import HooksOf
from tests.ranks.launch import NAMESPACES, PMI_FD_TO_3, assert_wired, pmix, podman, ranks
from tests.ranks.test_wire_up import IMAGE, VERSIONS, engines, sites

AUTO = "--annotation=org.supercontainers.launcher=auto"
OWN = "--annotation=org.supercontainers.mpi=none"
SOMEBODYS = {"mpich": MPICH5, "openmpi": OPENMPI5}  # for starts whose MPI stays the image's: a site has one all the same


class Start:
    """``podman run`` of pingpong with the hooks at precreate, or at another stage's folder, for a launcher to put in front of."""

    def __init__(self, programs: Path, hooks_of: HooksOf) -> None:
        self._programs = programs
        self._hooks_of = hooks_of

    def __call__(self, engine: Engine, family: str, site: Optional[Path], *options: str, folder: str = "podman") -> list[str]:
        hooks = self._hooks_of(engine, site or SOMEBODYS[family]) / folder
        return podman(engine, IMAGE[family], self._programs / family, [*([] if site else [OWN]), *options], hooks)


@pytest.fixture
def start(programs: Path, hooks_of: HooksOf) -> Start:
    return Start(programs, hooks_of)


# ------------------------------------------------------------------------------------------------ they find each other


@engines("keep-id", ("crun", "root"), ("runc", "keep-id"))
@sites(None, OPENMPI4, OPENMPI5, quick=(None, OPENMPI4, OPENMPI5))
def test_pmix(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path]) -> None:
    command = start(engine, "openmpi", site, *NAMESPACES, AUTO)
    result = slurm.srun("--mpi=pmix", "--nodes=1", "--ntasks=4", *command, account=engine.account)
    assert_wired(result, VERSIONS["openmpi", site], [4])
    assert slurm.containers() == []


@pytest.mark.parametrize("engine", [
    pytest.param(pair, id="-".join(pair), marks=() if pair in (("crun", "root"), ("runc", "rootless"), ("crun", "keep-id"))
                 else pytest.mark.long)
    for pair in ((runtime, user) for user in ("root", "rootless", "keep-id") for runtime in ("crun", "runc"))
], indirect=True)
def test_pmi2(slurm: Slurm, engine: Engine, start: Start) -> None:
    """Also with a user namespace for each container, where the kernel lets no rank read another's memory: the hook says so to MPICH."""
    command = start(engine, "mpich", MPICH5, *NAMESPACES, AUTO, "--preserve-fds=1")
    result = slurm.srun("--mpi=pmi2", "--nodes=1", "--ntasks=2", *PMI_FD_TO_3, *command, account=engine.account)
    assert_wired(result, VERSIONS["mpich", MPICH5], [2])
    assert slurm.containers() == []


@engines("rootless", ("runc", "root"))
@sites(None, MPICH5, quick=(None, MPICH5))
def test_hydra(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path]) -> None:
    mpiexec = [str(BUILD / "site/mpich5/bin/mpiexec.hydra"), "-n", "2", "-pmi-port"]
    result = slurm.inside("n1", *mpiexec, *start(engine, "mpich", site, *NAMESPACES, AUTO), account=engine.account)
    assert_wired(result, VERSIONS["mpich", site], [2])


@engines("keep-id", ("crun", "root"), ("crun", "keep-id"))
@sites(OPENMPI4, OPENMPI5, quick=(OPENMPI4, OPENMPI5))
def test_mpirun(slurm: Slurm, engine: Engine, start: Start, site: Path) -> None:
    """Open MPI's own launchers (ORTE, PRRTE) and their session directories."""
    mpirun = [str(site.parent / "bin/mpirun"), *(["--allow-run-as-root"] if engine.user == "root" else []), "-n", "2"]
    result = slurm.inside("n1", *mpirun, *start(engine, "openmpi", site, *NAMESPACES, AUTO), account=engine.account)
    assert_wired(result, VERSIONS["openmpi", site], [2])


@engines("keep-id", ("crun", "root"))
@sites(None, OPENMPI5, quick=(OPENMPI5,))
def test_pmix_on_two_nodes(slurm: Slurm, engine: Engine, start: Start, site: Optional[Path]) -> None:
    # 5 does not take the loopback device by itself, and these nodes have no other in common: a variable of the user's comes along.
    command = ["env", "OMPI_MCA_btl_tcp_if_include=lo", *start(engine, "openmpi", site, *NAMESPACES, AUTO)]
    result = slurm.srun("--mpi=pmix", "--nodes=2", "--ntasks-per-node=2", *command, account=engine.account)
    assert_wired(result, VERSIONS["openmpi", site], [2, 2])


@engines("keep-id", ("crun", "root"), ("runc", "keep-id"))
def test_createruntime_brings_the_directories(slurm: Slurm, engine: Engine, start: Start) -> None:
    """Without precreate the user passes variables on, and sees the server's directories all the same."""
    options = [option for option in pmix(slurm, engine) if not option.startswith("--volume")]
    command = start(engine, "openmpi", OPENMPI4, *options, AUTO, folder="")
    result = slurm.srun("--mpi=pmix", "--nodes=1", "--ntasks=2", *command, account=engine.account)
    assert_wired(result, VERSIONS["openmpi", OPENMPI4], [2])
    assert "PMIX ERROR" not in result.stderr


# ------------------------------------------------------------------------------------------------ or are told what is lacking


@dataclasses.dataclass(frozen=True)
class Case:
    """One line that lacks something. `words`: what the sentence says; `options`: in place of the good ones."""

    words: Sequence[str]
    options: Sequence[str]
    family: str = "openmpi"
    mpi: str = ""  # of srun; "" = the family's; "hydra"
    user: str = "root"
    folder: str = "podman"
    prefix: Sequence[str] = ()


def without(option: str, *more: str) -> list[str]:
    return [*(each for each in NAMESPACES if each != option), AUTO, *more]


FD = "--preserve-fds=1"
CASES = {
    "pmix-network": Case(("one of its own", "--network=host"), without("--net=host")),
    "pmix-pid": Case(("process id", "--pid=host"), without("--pid=host")),
    "pmix-uid": Case(("uid", "--userns=keep-id"), without(""), user="rootless"),
    "pmix-server": Case(("PMIx is 1.2.5",), without(""), prefix=("env", "PMIX_VERSION=1.2.5")),
    "pmix-of-mpich": Case(("speaks pmi", "offers pmix", "every rank would be alone", "srun --mpi=pmi2"), without(""), family="mpich",
                          mpi="pmix"),
    "none": Case(("every rank would be alone", "srun --mpi=pmix"), without(""), mpi="none"),
    "pmi2-of-openmpi": Case(("offers pmi", "srun --mpi=pmix"), without("", FD), mpi="pmi2"),
    "pmi2-ipc": Case(("/dev/shm", "--ipc=host"), without("--ipc=host", FD), family="mpich"),
    "pmi2-descriptor": Case(("the descriptor", "passes on none", "--preserve-fds=1"), without(""), family="mpich"),
    "pmi2-descriptor-not-3": Case(("the descriptor", "passes on none"), without(""), family="mpich", mpi="pmi2 as it is"),
    "hydra-network": Case(("one of its own", "--network=host"), without("--net=host"), family="mpich", mpi="hydra"),
    "createruntime": Case(("PMIX_RANK is not there", "--env 'PMIX_*'"),
                          [*NAMESPACES, "--annotation=org.supercontainers.launcher=pmix"], folder=""),
    "munge": Case(("root of the node", "--userns=auto"), [*NAMESPACES, "--annotation=org.supercontainers.launcher=pmix+munge"]),
    "unknown": Case(("names 'prrte'", "known are auto, none, hydra"), [*NAMESPACES, "--annotation=org.supercontainers.launcher=prrte"]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_lacking(slurm: Slurm, start: Start, name: str) -> None:
    """Every rank is refused with the sentence before its program starts, and the step ends by itself."""
    case = CASES[name]
    engine = Engine("crun", case.user)
    command = [*case.prefix, *start(engine, case.family, SOMEBODYS[case.family], *case.options, folder=case.folder)]
    result = launched(slurm, engine, case, command)
    assert result.returncode not in (0, 127), result.stdout
    sentences = re.findall(r"oci-hpc-hooks: .*", result.stderr)
    assert sentences and all(word in sentences[0] for word in case.words), result.stderr
    assert "--annotation org.supercontainers.launcher=none" in sentences[0]
    assert ranks(result) == [] and slurm.containers() == []


def launched(slurm: Slurm, engine: Engine, case: Case, command: Sequence[str]) -> Result:
    mpi = case.mpi or {"openmpi": "pmix", "mpich": "pmi2"}[case.family]
    if mpi == "hydra":
        hydra = str(BUILD / "site/mpich5/bin/mpiexec.hydra")
        return slurm.inside("n1", hydra, "-n", "2", "-pmi-port", *command, account=engine.account, timeout=30)
    shim = PMI_FD_TO_3 if mpi == "pmi2" else ()
    return slurm.srun(f"--mpi={mpi.split()[0]}", "--nodes=1", "--ntasks=2", *shim, *command, account=engine.account, timeout=30)


def test_the_printed_override_starts_it_as_it_is(slurm: Slurm, start: Start) -> None:
    """Two programs that each think they are alone, as without the hooks: somebody wanted that."""
    engine = Engine("crun", "root")
    command = start(engine, "openmpi", OPENMPI5, *NAMESPACES, "--annotation=org.supercontainers.launcher=none")
    result = slurm.srun("--mpi=none", "--nodes=1", "--ntasks=2", *command, account=engine.account)
    assert [(rank.number, rank.of) for rank in ranks(result)] == [(0, 1), (0, 1)], result.stderr


def test_who_asks_for_no_mpi_is_not_refused(slurm: Slurm, start: Start) -> None:
    """A step's other containers start whatever they lack for ranks."""
    engine = Engine("crun", "root")
    command = start(engine, "openmpi", None, "--net=none", AUTO)[:-1]
    result = slurm.srun("--mpi=pmix", "--nodes=1", "--ntasks=2", *command, "sh", "-c", 'echo "rank $PMIX_RANK"', account=engine.account)
    assert sorted(result.stdout.split("\n")) == ["", "rank 0", "rank 1"], result.stderr
