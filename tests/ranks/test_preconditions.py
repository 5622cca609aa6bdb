"""What breaks, and how, if one thing is left out of the lines of test_wire_up.py: this is what users see today.

Each case is one run of two ranks, on one node but for one case, whose only difference to a good one is named. The outcomes are the
launchers' and MPIs' own: an error that names something else, ranks that each think they are alone and end well, a start that never ends.
"""

from __future__ import annotations

import dataclasses
import subprocess
import time
from pathlib import Path
from typing import Optional

import pytest

from tests.bed.bed import BUILD, Engine
from tests.bed.site import MPICH5, OPENMPI4, OPENMPI5
from tests.bed.slurm import Slurm
from tests.ranks.conftest import HooksOf
from tests.ranks.launch import NAMESPACES, PMI, PMI_FD_TO_3, pmix, podman, ranks

SPOOL = "the server's folder"  # stands for the option that shows the container slurmd's spool folder
HYDRA = str(BUILD / "site/mpich5/bin/mpiexec.hydra")


@dataclasses.dataclass(frozen=True)
class Fails:
    """With an exit status, and these words among what is said; or it never ends, if that happens too."""

    words: str = ""
    or_never_ends: bool = False


@dataclasses.dataclass(frozen=True)
class NeverEnds:
    """After all the work is done, until somebody ends it."""


@dataclasses.dataclass(frozen=True)
class Alone:
    """Every rank is rank 0 of 1 and ends well: two programs do the same work, and nothing says so."""


@dataclasses.dataclass(frozen=True)
class Runs:
    """Two ranks, but `sharing` only so many others' memory, and perhaps with a warning."""

    sharing: int
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """One run. `without`: options, by how they begin, that are left out; `extra`: options more."""

    outcome: object
    without: str = ""
    extra: tuple[str, ...] = ()
    family: str = "openmpi"
    site: Optional[Path] = None
    user: str = "root"
    launcher: str = ""  # pmix for openmpi, pmi2 for mpich
    nodes: int = 1
    program: tuple[str, ...] = ()  # arguments of pingpong
    quick: bool = False


UNREACHABLE = Fails("OPAL ERROR: Unreachable in file")

OPENMPI = {
    # Open MPI 4.1 as Debian 12 builds it, under Slurm's PMIx 4
    "network": Case(UNREACHABLE, without="--net", quick=True),
    "ipc": Case(Runs(0, "A system call failed during shared memory initialization"), without="--ipc", quick=True),
    "little-shm": Case(Runs(0, "not enough space for /dev/shm"), without="--ipc", extra=("--shm-size=1m",)),
    "pid": Case(Fails("Signal: Segmentation fault"), without="--pid", quick=True),
    "pmix-variables": Case(UNREACHABLE, without="--env=PMIX_"),
    "slurm-variables": Case(Alone(), without="--env=SLURM_", quick=True),
    "server-folder": Case(Runs(1, "PMIX ERROR: ERROR in file"), without=SPOOL),
    "server-folder-keep-id": Case(Runs(1, "PMIX ERROR: ERROR in file"), without=SPOOL, user="keep-id"),
    "keep-id": Case(UNREACHABLE, user="rootless", quick=True),
    "mpi-none": Case(UNREACHABLE, launcher="none"),
    "mpi-pmi2": Case(UNREACHABLE, launcher="pmi2"),
    # The site's 4.1: PMIx 3 inside of it
    "4-network": Case(UNREACHABLE, without="--net", site=OPENMPI4),
    "4-ipc": Case(Runs(0), without="--ipc", site=OPENMPI4),
    "4-pid": Case(Fails("Segmentation fault"), without="--pid", site=OPENMPI4),
    "4-pmix-variables": Case(UNREACHABLE, without="--env=PMIX_", site=OPENMPI4),
    "4-slurm-variables": Case(Fails("A system-required executable either could not be found"), without="--env=SLURM_", site=OPENMPI4),
    "4-keep-id": Case(UNREACHABLE, user="rootless", site=OPENMPI4),
    # The site's 5.0: PMIx 5
    "5-network": Case(Fails("PMIx_Finalize"), without="--net", site=OPENMPI5),
    "5-ipc": Case(Runs(0), without="--ipc", site=OPENMPI5),
    "5-pid": Case(Fails("Segmentation fault"), without="--pid", site=OPENMPI5),
    "5-pmix-variables": Case(Alone(), without="--env=PMIX_", site=OPENMPI5),
    "5-slurm-variables": Case(Runs(1), without="--env=SLURM_", site=OPENMPI5),
    "5-server-folder": Case(Runs(1), without=SPOOL, site=OPENMPI5),
    "5-keep-id": Case(Fails(or_never_ends=True), user="rootless", site=OPENMPI5),
    "5-mpi-none": Case(Alone(), launcher="none", site=OPENMPI5),
    "5-mpi-pmi2": Case(Alone(), launcher="pmi2", site=OPENMPI5),
}
MPICH = {
    # MPICH 4.0 as Debian 12 builds it: PMI-1, UCX
    "network": Case(Runs(1), without="--net"),
    "ipc": Case(Fails(), without="--ipc"),
    "pid": Case(Runs(1), without="--pid"),
    "pmi-variables": Case(Alone(), without="--env=PMI_"),
    "descriptor": Case(Fails("Bad file descriptor"), without="--preserve-fds", quick=True),
    "descriptor-not-3": Case(Fails("file descriptor 3 is not available"), launcher="pmi2 as it is", quick=True),
    "keep-id": Case(Fails("open(file_name=/proc/"), user="keep-id", quick=True),
    "keep-id-pid": Case(Runs(1), without="--pid", user="keep-id"),
    "mpi-pmix": Case(Alone(), launcher="pmix", quick=True),
    "hydra-network": Case(Fails("Unable to connect to n1"), without="--net", launcher="hydra", quick=True),
    "hydra-variables": Case(Alone(), without="--env=PMI_", launcher="hydra"),
    # Over UCX's TCP: rank 0 asks for a last answer, gets it and waits in the launcher's barrier; then rank 1 asks, and nobody answers.
    "two-nodes": Case(NeverEnds(), nodes=2, program=("late",)),
    # The site's 5.0, which copies from the memory of the other process
    "5-ipc": Case(Fails(or_never_ends=True), without="--ipc", site=MPICH5),
    "5-pid": Case(Fails("process_vm_readv failed"), without="--pid", site=MPICH5, quick=True),
    "5-pid-no-cma": Case(Runs(1), without="--pid", extra=("--env=MPIR_CVAR_CH4_CMA_ENABLE=0",), site=MPICH5),
    "5-keep-id": Case(Fails("process_vm_readv failed"), site=MPICH5, user="keep-id"),
    "5-keep-id-no-cma": Case(
        Runs(1), extra=("--env=MPIR_CVAR_CH4_CMA_ENABLE=0", "--env=UCX_POSIX_USE_PROC_LINK=n"), site=MPICH5, user="keep-id"),
    "5-descriptor": Case(Fails("Bad file descriptor"), without="--preserve-fds", site=MPICH5),
    "5-mpi-pmix": Case(Fails("unsupported PMI version PMIx"), launcher="pmix", site=MPICH5),
}  # fmt: skip
CASES = {
    **{f"openmpi-{name}": case for name, case in OPENMPI.items()},
    **{f"mpich-{name}": dataclasses.replace(case, family="mpich") for name, case in MPICH.items()},
}


def options_of(case: Case, slurm: Slurm, engine: Engine) -> list[str]:
    """Those of a good run of this family, but for what the case leaves out or adds."""
    server = f"--volume={slurm.spool}:"
    good = pmix(slurm, engine) if case.family == "openmpi" else [*PMI]
    if case.launcher == "hydra":
        good = [*NAMESPACES, "--env=PMI_*"]
    elif case.launcher.startswith("pmi2") and case.family == "openmpi":
        good += ["--preserve-fds=1", "--env=PMI_*"]
    elif case.launcher == "pmix" and case.family == "mpich":
        good = pmix(slurm, engine)
    without = server if case.without == SPOOL else case.without
    left = [option for option in good if not (without and option.startswith(without))]
    assert not without or len(left) == len(good) - 1, f"{without}: not one of {good}"
    return [*left, *case.extra]


def written(log: Path, words: str, patience: float = 10) -> str:
    """What conmon has written of the containers, with these words if they come. Where an MPI aborts, Slurm kills podman at once, now and
    then before it has passed on the reason; conmon is not below Slurm."""
    deadline = time.monotonic() + patience
    text = ""
    while words not in text and time.monotonic() < deadline:
        time.sleep(0.1)
        text = log.read_text(errors="replace") if log.exists() else ""
    return text


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if case.quick else pytest.mark.long) for name, case in CASES.items()])
def test_precondition(slurm: Slurm, programs: Path, hooks_of: HooksOf, name: str) -> None:
    case = CASES[name]
    engine = Engine("crun", case.user)
    hooks = hooks_of(engine, case.site) if case.site else None
    log = slurm.account(engine.account).folder / "words"
    log.unlink(missing_ok=True)
    options = [*options_of(case, slurm, engine), "--log-driver=k8s-file", f"--log-opt=path={log}"]
    command = podman(engine, f"bookworm-{case.family}", programs / case.family, options, hooks)
    launcher = case.launcher or {"openmpi": "pmix", "mpich": "pmi2"}[case.family]
    try:
        if launcher == "hydra":
            result = slurm.inside("n1", HYDRA, "-n", "2", "-pmi-port", *command, account=engine.account, timeout=30)
        else:
            shim = PMI_FD_TO_3 if launcher == "pmi2" else ()
            result = slurm.srun(f"--mpi={launcher.split()[0]}", f"--nodes={case.nodes}", "--ntasks=2", "--kill-on-bad-exit=1", *shim,
                                *command, *case.program, account=engine.account, timeout=15)  # fmt: skip
    except subprocess.TimeoutExpired as stopped:
        if isinstance(case.outcome, NeverEnds):
            assert (stopped.stdout or b"").count(b" 3 messages right;") == 2, stopped.stdout
        else:
            assert isinstance(case.outcome, Fails) and case.outcome.or_never_ends
        return
    said = f"{result.stdout}{result.stderr}"
    places = [(rank.number, rank.of) for rank in ranks(result)]
    if isinstance(case.outcome, Fails):
        assert result.returncode != 0 and (case.outcome.words in said or case.outcome.words in written(log, case.outcome.words)), said
    elif isinstance(case.outcome, Alone):
        assert (result.returncode, places) == (0, [(0, 1), (0, 1)]), said
    else:
        assert isinstance(case.outcome, Runs)
        assert (result.returncode, places) == (0, [(0, 2), (1, 2)]) and case.outcome.words in said, said
        assert {(rank.right, rank.sharing) for rank in ranks(result)} == {(3, case.outcome.sharing)}, said
