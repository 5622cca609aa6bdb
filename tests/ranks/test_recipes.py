"""The launch lines of docs/slurm.md, run as they stand there: when all is well, and when one rank is refused."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from tests.bed.bed import BUILD, ROOT, Engine, Result, reference
from tests.bed.site import MPICH5, OPENMPI5, Site
from tests.bed.slurm import Slurm
from tests.engine.conftest import SiteMaker, make_site  # noqa: F401
from tests.pages import blocks
from tests.ranks.conftest import HooksOf
from tests.ranks.launch import NAMESPACES, assert_wired, podman, ranks, with_kcmp

PAGE = (ROOT / "docs/slurm.md").read_text()
RECIPES = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
WITH_HOOKS = "--annotation org.supercontainers.launcher=auto"
KILL = "--kill-on-bad-exit=1 "
ABORT = """bash -c '"$@" || echo "cmd=abort exitcode=$?" >&$PMI_FD' bash"""


def users(recipe: str) -> list[str]:
    """Who can type it: keep-id is for users, PMIx without it is for root, the others are for both."""
    if "--userns=keep-id" in recipe:
        return ["rootless"]
    return ["root"] if "--mpi=pmix" in recipe else ["root", "rootless"]


def family_of(recipe: str) -> str:
    return "openmpi" if "pmix" in recipe else "mpich"


def run(slurm: Slurm, engine: Engine, recipe: str, programs: Path, path: Path, hooks: Optional[Path] = None, timeout: float = 60) -> Result:
    """The recipe with the bed's places in it and the programs of `path` first, and the site's hooks where there are `hooks`."""
    family = family_of(recipe)
    image = f"bookworm-{family}"
    engine.load(image)
    assert recipe.count("IMAGE PROGRAM") == 1
    line = recipe.replace("IMAGE PROGRAM", f"--volume {programs}:/ranks:ro {reference(image)} /ranks/{family}")
    line = line.replace("/var/spool/slurmd", str(slurm.spool)).replace("mpiexec.hydra", str(BUILD / "site/mpich5/bin/mpiexec.hydra"))
    if hooks:
        line = line.replace("podman run", f"podman --hooks-dir {hooks} run")
    line = f"PATH={path}:$PATH; " + line.replace("--ntasks", "--nodes=1 --ntasks")
    if "srun" in recipe:
        return slurm.execute("bash", "-c", line, account=engine.account, timeout=timeout)
    return slurm.inside("n1", "bash", "-c", line, account=engine.account, timeout=timeout)


@pytest.mark.parametrize(("recipe", "user"), [
    pytest.param(recipe, user, id=f"{number}-{user}") for number, recipe in enumerate(RECIPES) for user in users(recipe)
])
def test_recipe(slurm: Slurm, programs: Path, shim: Path, hooks_of: HooksOf, recipe: str, user: str) -> None:
    engine = Engine("crun", user)
    search = {"mpich": MPICH5, "openmpi": OPENMPI5}[family_of(recipe)]
    result = run(slurm, engine, recipe, programs, shim, hooks_of(engine, search) / "podman" if WITH_HOOKS in recipe else None)
    size = int(re.findall(r"(?:--ntasks=|-n )(\d+)", recipe)[0])
    assert result.returncode == 0, f"{recipe}\n{result.stdout}{result.stderr}"
    said = [(rank.number, rank.of, rank.sharing) for rank in ranks(result)]
    assert said == [(number, size, size - 1) for number in range(size)], result.stdout


def test_all_recipes_are_found() -> None:
    assert len(RECIPES) == 9
    assert sum(KILL in recipe for recipe in RECIPES) == 7
    assert sum(WITH_HOOKS in recipe for recipe in RECIPES) == 3
    assert sum(ABORT in recipe for recipe in RECIPES) == 1


# ------------------------------------------------------------------------------------------------ one rank is refused

REFUSES = """\
#!/bin/bash
rank=${SLURM_PROCID:-${PMI_RANK:-$PMIX_RANK}}
[ "$rank" = 1 ] && set -- --hooks-dir HOOKS "$1" --annotation org.supercontainers.mpi=no-such-mpi "${@:2}"
exec SHIM/podman "$@"
"""


@pytest.fixture
def refusing(scratch: Path, shim: Path, hooks_of: HooksOf) -> Path:
    """A folder with a podman whose containers are refused on rank 1."""
    program = scratch / "podman"
    program.write_text(REFUSES.replace("HOOKS", str(hooks_of(Engine("crun", "root"), MPICH5))).replace("SHIM", str(shim)))
    program.chmod(0o755)
    return scratch


def assert_refused(result: Result) -> None:
    assert result.returncode != 0
    assert "has the unknown value 'no-such-mpi'" in result.stderr, result.stdout + result.stderr


ENDS = [(recipe.replace("--ntasks=4", "--ntasks=2"), user) for recipe in RECIPES for user in users(recipe)
        if user == "root" and WITH_HOOKS not in recipe and (KILL in recipe or ABORT in recipe)]  # fmt: skip


@pytest.mark.parametrize("recipe", [
    pytest.param(recipe, marks=() if number in (0, 3) else pytest.mark.long) for number, (recipe, _) in enumerate(ENDS)])
def test_one_refusing_rank_ends_the_step(slurm: Slurm, programs: Path, refusing: Path, recipe: str) -> None:
    assert_refused(run(slurm, Engine("crun", "root"), recipe, programs, refusing, timeout=30))


@pytest.mark.long
@pytest.mark.parametrize("recipe", [recipe for recipe, _ in ENDS])
def test_what_that_is_for(slurm: Slurm, programs: Path, refusing: Path, recipe: str) -> None:
    """Without the option, and without the line, the others wait."""
    with pytest.raises(subprocess.TimeoutExpired) as never:
        run(slurm, Engine("crun", "root"), recipe.replace(KILL, "").replace(ABORT, ""), programs, refusing, timeout=12)
    assert b"has the unknown value 'no-such-mpi'" in (never.value.stderr or b"")


@pytest.mark.parametrize("release", ["openmpi5", pytest.param("openmpi4", marks=pytest.mark.long)])
def test_mpirun_ends_the_others_by_itself(slurm: Slurm, programs: Path, refusing: Path, release: str) -> None:
    engine = Engine("crun", "root")
    variables = " ".join(f"--env '{family}_*'" for family in ("PMIX", "OMPI", "PRTE"))
    line = (f"PATH={refusing}:$PATH; {BUILD}/site/{release}/bin/mpirun --allow-run-as-root -n 2 podman run --rm {' '.join(NAMESPACES)} "
            f"{variables} --volume /tmp:/tmp --volume {programs}:/ranks:ro {engine.load('bookworm-openmpi')} /ranks/openmpi")
    assert_refused(slurm.inside("n1", "bash", "-c", line, timeout=30))


def test_mpirun_by_hand(slurm: Slurm, programs: Path, hooks_of: HooksOf) -> None:
    """The line of docs/labels.md: the site's launcher, and in the image an older release of its family."""
    engine = Engine("crun", "root")
    (line,) = (block.text for block in blocks("docs/labels.md") if block.text.startswith("mpirun"))
    for words, meant in (("mpirun", f"{OPENMPI5.parent}/bin/mpirun --allow-run-as-root"),
                         ("podman run", f"podman --hooks-dir {hooks_of(engine, OPENMPI5)} run --rm"),
                         ("IMAGE PROGRAM", f"--volume {programs}:/ranks:ro {engine.load('bookworm-openmpi')} /ranks/openmpi")):
        assert line.count(words) == 1
        line = line.replace(words, meant)
    result = slurm.inside("n1", "bash", "-c", line, timeout=60)
    assert_wired(result, "5.0.11", [2])


# ------------------------------------------------------------------------------------------------ one node is odd

DIGESTS, REMEMBER = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


@contextlib.contextmanager
def odd(slurm: Slurm, node: str, site: Site, folder: Path) -> Iterator[None]:
    """A node whose MPI is not that of the others, and whose inventory knows it."""
    shutil.copytree(MPICH5, folder, symlinks=True)
    with open((folder / "libmpi.so.12").resolve(), "ab") as library:
        library.write(b"\0")

    def there(*command: str) -> None:
        done = slurm.inside(node, *command)
        assert done.returncode == 0, done.stderr

    there("mount", "--bind", str(folder), str(MPICH5))
    there("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(site.state_dir))
    try:
        there(str(site.state_dir.parent / "bin/oci-hpc-hooks"), "scan")
        yield
    finally:
        there("umount", str(site.state_dir))
        there("umount", str(MPICH5))


def write_command(site: Site) -> None:
    """``oci-hpc-hooks`` with the places of this site."""
    command = site.state_dir.parent / "bin/oci-hpc-hooks"
    command.parent.mkdir()
    places = f"--config-dir {site.config_dir} --state-dir {site.state_dir} --cache-dir {site.cache_dir} --log-file {site.log_file}"
    command.write_text(f'#!/bin/sh\nexec {BUILD}/venv/bin/oci-hpc-hooks {places} "$@"\n')
    command.chmod(0o755)


def job(slurm: Slurm, site: Site, text: str) -> tuple[int, str]:
    """Exit status and output of a batch script on both nodes, in which ``oci-hpc-hooks`` is the command of this site."""
    folder = site.state_dir.parent
    script = f"#!/bin/bash\nexport PATH={folder}/bin:$PATH\n{text}\necho started\n"
    (folder / "job.sh").write_text(script)
    done = slurm.execute("sbatch", "--wait", "--nodes=2", f"--output={folder}/output", str(folder / "job.sh"))
    return done.returncode, (folder / "output").read_text()


def test_the_digests_of_two_nodes(slurm: Slurm, make_site: SiteMaker, scratch: Path) -> None:  # noqa: F811
    engine = Engine("crun", "root")
    site = make_site(engine)
    write_command(site)
    image = engine.load("bookworm-mpich")
    text = DIGESTS.replace("IMAGE", image).replace("PROGRAM", "mpihello")
    assert job(slurm, site, text)[1] == "started\n"
    with odd(slurm, "n2", site, scratch / "other"):
        status, output = job(slurm, site, text)
    assert status == 1
    (said,) = [line for line in output.splitlines() if "n2: " in line and "would not get here" in line]
    assert "where the digest comes from: the contents of files differ. Site admin: " in said
    assert "started" not in output and "n1: a container" not in output
    assert slurm.containers() == []
    assert job(slurm, site, text.replace(image, "localhost/bed/no-such-image"))[0] == 1


# ------------------------------------------------------------------------------------------------ what podman's seccomp profile lacks

@pytest.mark.long
def test_open_mpi_5_asks_kcmp(slurm: Slurm, programs: Path, hooks_of: HooksOf, scratch: Path) -> None:
    """It gives up reading other ranks' memory where kcmp(2) is filtered away, as podman's own profile does, and says so to nobody."""
    engine = Engine("crun", "root")
    options = [*NAMESPACES, "--annotation=org.supercontainers.launcher=auto", "--env=OMPI_MCA_smsc_base_verbose=100"]
    gives_up = {}
    for name, more in (("podman's", []), ("with kcmp", [f"--security-opt=seccomp={with_kcmp(scratch / 'seccomp.json')}"])):
        line = podman(engine, "bookworm-openmpi", programs / "openmpi", [*options, *more], hooks_of(engine, OPENMPI5) / "podman")
        done = slurm.execute("srun", "--mpi=pmix", "--nodes=1", "--ntasks=2", *line, timeout=60)
        assert_wired(done, "5.0.11", [2])
        assert "selected shared-memory single-copy component: cma" in done.stderr, done.stderr
        gives_up[name] = "do not have the necessary permissions" in done.stderr
    assert gives_up == {"podman's": True, "with kcmp": False}


# ------------------------------------------------------------------------------------------------ before the step

def test_remembered_before_the_step(slurm: Slurm, make_site: SiteMaker) -> None:  # noqa: F811
    """All ranks of the first recipe then start warm, where nobody has started a container of that image before."""
    engine = Engine("crun", "root")
    site = make_site(engine, openmpi=[OPENMPI5])
    write_command(site)
    image, hooks = engine.load("bookworm-openmpi"), site.hooks_dir / "podman"
    step = RECIPES[0].replace("podman run", f"podman --hooks-dir {hooks} run").replace("--ntasks=4", "--ntasks=2")
    text = REMEMBER.replace("--remember", f"--remember --hooks-dir={hooks}") + "echo the step:\n" + step
    status, output = job(slurm, site, text.replace("IMAGE", image).replace("PROGRAM", "ompihello"))
    assert status == 0, output
    before, after = output.split("the step:\n")
    assert before == "" and [f"rank {rank} of 2: Open MPI v5.0.11" in after for rank in range(2)] == [True, True], output
    entries = site.log()
    assert [entry["path"] for entry in entries[-2:]] == ["warm"] * 2
    assert {entry["path"] for entry in entries[:-2]} == {"cold", "warm"}  # of both nodes, which are one machine
