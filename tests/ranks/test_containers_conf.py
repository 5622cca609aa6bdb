"""What packaging/containers.conf.d holds: with it and the podman in front, ranks start without flags; and nothing else is disturbed."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from tests.bed.bed import ROOT, Account, Engine, Result
from tests.bed.site import MPICH5, OPENMPI5
from tests.bed.slurm import Slurm
from tests.pages import blocks
from tests.ranks.conftest import HooksOf
from tests.ranks.launch import assert_wired, in_front

FILES = ROOT / "packaging/containers.conf.d"
#: How a scientist starts ranks: of Open MPI, on several nodes.
LINE = blocks("docs/scientists.md")[0].text
OURS = "/usr/share/oci-hpc-hooks/hooks.d/podman"
POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: bed-pod}}
spec:
  hostNetwork: true
  containers:
  - {{name: sleeper, image: "{image}", command: [/usr/bin/sleep, "1000"]}}
"""


@contextlib.contextmanager
def installed(account: Account, name: str, hooks: Path) -> Iterator[dict[str, Optional[str]]]:
    """The file as a drop-in of the user's, or as part of root's containers.conf (the machine's /etc is left alone); the variable
    that has podman read it."""
    text = (FILES / name).read_text()
    assert OURS in text
    text = text.replace(OURS, str(hooks / "podman"))
    own = (account.folder / "containers.conf").read_text()  # what this machine needs
    if account.uid == 0:
        merged = account.folder / "with-drop-in.conf"
        for section, keys in re.findall(r"^\[(\w+)\]\n(.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE):
            own = own.replace(f"[{section}]\n", f"[{section}]\n{keys}")
        merged.write_text(own)
        yield {"CONTAINERS_CONF": str(merged)}
        merged.unlink()
        return
    folder = account.folder / "config/containers"
    (folder / "containers.conf.d").mkdir()
    try:
        (folder / "containers.conf").write_text(own)
        (folder / "containers.conf.d" / name).write_text(text)
        yield {"CONTAINERS_CONF": None}  # which would hide the drop-in
    finally:
        shutil.rmtree(folder / "containers.conf.d")
        (folder / "containers.conf").unlink()


def environment(variables: dict[str, Optional[str]]) -> list[str]:
    """Words in front of a command."""
    return ["env", *(f"--unset={name}" if value is None else f"{name}={value}" for name, value in variables.items())]




@pytest.mark.parametrize(("name", "user", "mpi"), [
    ("mpich.conf", "root", "pmi2"), ("mpich.conf", "rootless", "pmi2"), ("openmpi.conf", "rootless", "pmix"),
    pytest.param("openmpi.conf", "rootless", "pmi2", marks=pytest.mark.long),
    pytest.param("mpich.conf", "root", "pmix", marks=pytest.mark.long),
])
def test_no_flags(slurm: Slurm, programs: Path, hooks_of: HooksOf, shim: Path, name: str, user: str, mpi: str) -> None:
    """The site's MPI, the job's variables and directories, and the descriptor, by ``podman run IMAGE PROGRAM``."""
    engine = Engine("crun", user)
    family, site, version = ("mpich", MPICH5, "5.0.2") if mpi == "pmi2" else ("openmpi", OPENMPI5, "5.0.11")
    line = LINE.replace("-N 2 -n 8", "--nodes=1 --ntasks=2").replace("--mpi=pmix", f"--mpi={mpi}")
    line = line.replace("podman run IMAGE", f"podman run --rm --volume={programs}:/ranks:ro {engine.load(f'bookworm-{family}')}")
    srun, start = line.replace("PROGRAM", f"/ranks/{family}").split("podman ")
    with installed(slurm.account(engine.account), name, hooks_of(engine, site)) as variables:
        step = [*srun.split(), *in_front(shim, engine.account), "podman", *start.split()]
        result = slurm.execute(*environment(variables), *step, account=engine.account)
    assert_wired(result, version, [2])
    assert slurm.containers() == []


@pytest.mark.parametrize(("name", "user"), [("mpich.conf", "root"), ("mpich.conf", "rootless"),
                                            pytest.param("openmpi.conf", "rootless", marks=pytest.mark.long)])
def test_other_containers_start_as_ever(slurm: Slurm, hooks_of: HooksOf, scratch: Path, name: str, user: str) -> None:
    """Outside of a job: flags win over the file's keys, and what podman refuses with ``ipcns = "host"`` works."""
    engine = Engine("crun", user)
    image = engine.load("bookworm-mpich-nolabel")
    account = slurm.account(engine.account)
    (scratch / "Containerfile").write_text(f"FROM {image}\nRUN id -u\n")

    def podman(*arguments: str) -> Result:
        done = slurm.inside("n1", *environment(variables), "podman", *arguments, account=engine.account)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    with installed(account, name, hooks_of(engine, MPICH5)) as variables:
        flags = ["--net=none", "--pid=private", "--ipc=private", "--userns=host", "--annotation=org.supercontainers.launcher=none"]
        say = "readlink /proc/self/ns/net /proc/self/ns/pid; cat /proc/self/uid_map"
        shared = podman("run", "--rm", image, "sh", "-c", say).stdout.split("\n")
        own = podman("run", "--rm", *flags, image, "sh", "-c", say).stdout.split("\n")
        assert not {*shared[:2]} & {*own[:2]}
        assert (shared[2:] == own[2:]) is (name == "mpich.conf")
        podman("run", "--rm", "--shm-size=1m", image, "true")
        podman("create", "--name=made", image, "true")
        said = podman("inspect", "--format={{json .Config.Annotations}}", "made").stdout
        assert '"org.supercontainers.launcher":"auto"' in said
        podman("rm", "made")
        podman("build", "--quiet", "--pull=never", str(scratch))
        if (name, user) == ("mpich.conf", "rootless"):
            pod = scratch / "pod.yaml"
            pod.write_text(POD.format(image=image))
            podman("play", "kube", str(pod))
            podman("play", "kube", "--down", str(pod))
