"""The launch lines of docs/slurm.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bed.bed import BUILD, ROOT, Engine, reference
from tests.bed.slurm import Slurm
from tests.ranks.launch import ranks

RECIPES = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/slurm.md").read_text(), re.DOTALL)


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
