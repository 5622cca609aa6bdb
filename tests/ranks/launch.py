"""What users type today to start ranks in containers, and what the ranks say."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tests.bed.bed import Account, Engine, Result
from tests.bed.slurm import Slurm

#: The namespaces that ranks share with their launcher and with each other.
NAMESPACES = ("--net=host", "--ipc=host", "--pid=host")

#: Options for ranks that inherit a socket of their launcher's, after `PMI_FD_TO_3`.
PMI = (*NAMESPACES, "--preserve-fds=1", "--env=PMI_*")

#: Moves the launcher's socket to where --preserve-fds=1 takes it from. dash knows no descriptor above 9, bash does.
PMI_FD_TO_3 = ("bash", "-c", '[ "$PMI_FD" = 3 ] || eval "exec 3<&$PMI_FD $PMI_FD<&-"; PMI_FD=3 exec "$@"', "bash")


def in_front(folder: Path, account: Account) -> tuple[str, str]:
    """Words before a command, with which it finds the programs of this folder first."""
    return "env", f"PATH={folder}:{account.environment()['PATH']}"


#: podman's own profile of system calls.
SECCOMP = Path("/usr/share/containers/seccomp.json")


def with_kcmp(path: Path) -> Path:
    """Write podman's seccomp profile with kcmp(2) for all, as docs/slurm.md has it for Open MPI 5."""
    profile = json.loads(SECCOMP.read_text())
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name != "kcmp"]
    profile["syscalls"].append({"names": ["kcmp"], "action": "SCMP_ACT_ALLOW"})
    path.write_text(json.dumps(profile))
    return path


@dataclasses.dataclass(frozen=True)
class Rank:
    """One line of pingpong."""

    number: int
    of: int
    host: str
    version: str
    total: int  # the sum of all ranks' numbers + 1
    right: int  # messages, of 3 with each peer
    sharing: int  # other ranks that have mapped the same files of /dev/shm


_RANK = re.compile(r"^rank (\d+) of (\d+) on (\S+): (?:MPICH Version: +|Open MPI v)([\d.]+); sum of ranks \+ 1: (\d+); "
                   r"(\d+) messages right; memory shared with (\d+) ranks$", re.MULTILINE)  # fmt: skip


def ranks(result: Result) -> list[Rank]:
    """What the ranks said, in their order, however they ended."""
    lines = _RANK.findall(result.stdout)
    found = [Rank(int(number), int(of), host, version, *map(int, rest)) for number, of, host, version, *rest in lines]
    return sorted(found, key=lambda rank: rank.number)


def podman(engine: Engine, image: str, program: Path, options: Sequence[str] = (), hooks: Optional[Path] = None) -> list[str]:
    """``podman run --rm`` of a program of the `programs` fixture in an image of the bed."""
    words = ["podman", "--runtime", engine.runtime, *(["--hooks-dir", str(hooks)] if hooks else []), "run", "--rm"]
    words += ["--userns=keep-id"] if engine.user == "keep-id" else []
    return [*words, f"--volume={program.parent}:/ranks:ro", *options, engine.load(image), f"/ranks/{program.name}"]


def pmix(slurm: Slurm, engine: Engine) -> list[str]:
    """Options for ranks of ``srun --mpi=pmix``: namespaces, variables, the job's folders of the PMIx server."""
    folders = [slurm.spool] if engine.user == "root" else [slurm.spool, Path("/tmp")]
    return [*NAMESPACES, "--env=PMIX_*", "--env=SLURM_*", *(f"--volume={folder}:{folder}" for folder in folders)]


def assert_wired(result: Result, version: str, nodes: Sequence[int]) -> None:
    """As many ranks as the sum of `nodes`, of which each counts the ranks on one node, in order: all know each other, reach each
    other, and share memory on their node."""
    assert result.returncode == 0, f"{result.args}\n{result.stdout}{result.stderr}"
    size = sum(nodes)
    wanted = [(f"n{node}", count) for node, count in enumerate(nodes, 1) for _ in range(count)]
    assert ranks(result) == [
        Rank(number, size, host, version, total=size * (size + 1) // 2, right=3, sharing=count - 1)
        for number, (host, count) in enumerate(wanted)
    ], f"{result.stdout}{result.stderr}"
