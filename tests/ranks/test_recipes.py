"""The launch lines of docs/slurm.md, run as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.bed.bed import BUILD, ROOT, Engine, reference
from tests.bed.slurm import Slurm
from tests.ranks.launch import assert_wired, ranks

PAGE = (ROOT / "docs/slurm.md").read_text()
RECIPES = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def users(recipe: str) -> list[str]:
    """Who can type it: keep-id is for users, PMIx without it is for root, the others are for both."""
    if "--userns=keep-id" in recipe:
        return ["rootless"]
    return ["root"] if "--mpi=pmix" in recipe else ["root", "rootless"]


@pytest.mark.parametrize(("recipe", "user"), [
    pytest.param(recipe, user, id=f"{number}-{user}") for number, recipe in enumerate(RECIPES) for user in users(recipe)
])
def test_recipe(slurm: Slurm, programs: Path, recipe: str, user: str) -> None:
    engine = Engine("crun", user)
    family = "openmpi" if "pmix" in recipe else "mpich"
    image = f"bookworm-{family}"
    engine.load(image)
    assert recipe.count("IMAGE PROGRAM") == 1
    line = recipe.replace("IMAGE PROGRAM", f"--volume {programs}:/ranks:ro {reference(image)} /ranks/{family}")
    line = line.replace("/var/spool/slurmd", str(slurm.spool)).replace("mpiexec.hydra", str(BUILD / "site/mpich5/bin/mpiexec.hydra"))
    if "srun" in line:
        result = slurm.execute("bash", "-c", line.replace("--ntasks", "--nodes=1 --ntasks"), account=engine.account)
    else:
        result = slurm.inside("n1", "bash", "-c", line, account=engine.account)
    size = int(re.findall(r"(?:--ntasks=|-n )(\d+)", recipe)[0])
    assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
    said = [(rank.number, rank.of, rank.sharing) for rank in ranks(result)]
    assert said == [(number, size, size - 1) for number in range(size)], result.stdout


def test_all_recipes_are_found() -> None:
    assert len(RECIPES) == 4


def test_containers_conf(slurm: Slurm, programs: Path) -> None:
    """A user's drop-in file with the defaults that the page shows, and a line without flags."""
    engine = Engine("crun", "rootless")
    account = slurm.account(engine.account)
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    user = account.folder / "config/containers"
    drop_in = user / "containers.conf.d/hpc.conf"
    drop_in.parent.mkdir()
    try:
        shutil.copy(account.folder / "containers.conf", user)  # what this machine needs; CONTAINERS_CONF would hide the drop-in
        drop_in.write_text(text.replace("/var/spool/slurmd", str(slurm.spool)))
        podman = ["podman", "run", "--rm", "--volume", f"{programs}:/ranks:ro", engine.load("bookworm-openmpi"), "/ranks/openmpi"]
        srun = ["env", "--unset=CONTAINERS_CONF", "srun", "--mpi=pmix", "--nodes=1", "--ntasks=2"]
        result = slurm.execute(*srun, *podman, account=engine.account)
    finally:
        shutil.rmtree(drop_in.parent)
        (user / "containers.conf").unlink(missing_ok=True)
    assert_wired(result, "4.1.4", [2])
