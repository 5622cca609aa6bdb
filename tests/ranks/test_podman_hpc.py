"""The real podman-hpc with the modules of packaging/: the site's MPI in squashed images, ranks in containers of their own or in one."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import RUNTIMES
from tests.bed.site import MPICH5, OPENMPI5, Site
from tests.bed.slurm import Slurm
from tests.ranks.launch import assert_wired
from tests.ranks.podman_hpc import MODULES, PodmanHpc, blocks, line

IMAGE = {"mpich": "bookworm-mpich", "openmpi": "bookworm-openmpi"}
MPI = {"mpich": "pmi2", "openmpi": "pmix"}
VERSION = {"mpich": "5.0.2", "openmpi": "5.0.11"}
RECIPES = blocks("sh")
#: A variable of the user's, which comes along: Open MPI 5 does not take this device by itself, and these nodes have no other in common.
LO = "OMPI_MCA_btl_tcp_if_include=lo"


@pytest.fixture(scope="session")
def installed(cluster: Slurm) -> Iterator[PodmanHpc]:
    """podman-hpc on the nodes, and in its squashed images one of each family."""
    if not Path("/dev/fuse").exists():
        pytest.skip("podman-hpc mounts with fuse, and this machine has no /dev/fuse: `modprobe fuse`")
    folder = bed.scratch("podman-hpc")
    site = Site(folder / "site", bed.user_account())
    site.configure(search=[MPICH5], openmpi=[OPENMPI5])
    site.scan()
    made = PodmanHpc(cluster, site, folder)
    for image in IMAGE.values():
        made.migrate(image)
    yield made
    shutil.rmtree(folder)


@pytest.fixture
def hpc(installed: PodmanHpc, slurm: Slurm) -> Iterator[PodmanHpc]:
    """The same, without containers after the test as before."""
    yield installed
    installed.tidy()


def test_labels_of_squashed_images(hpc: PodmanHpc) -> None:
    """From an additional store that only podman's command line names, under fuse-overlayfs: at precreate, and the second time by what is
    remembered of the first."""
    recipe = RECIPES[0].replace("IMAGE PROGRAM", f"{bed.reference(IMAGE['mpich'])} mpihello").rstrip()
    for _ in range(2):
        result = hpc.run(recipe, "n2")
        assert (result.returncode, "MPICH Version:      5.0.2" in result.stdout) == (0, True), f"{result.stdout}{result.stderr}"
    log = [(entry["stage"], entry["verdict"], entry["path"]) for entry in hpc.last("n2", 2)]
    assert log == [("precreate", "proved", "cold"), ("precreate", "proved", "warm")]
    mounted = hpc.run(line(["--rm", "--hpc"], IMAGE["mpich"], ["cat", "/proc/self/mountinfo"]), "n2").stdout
    assert " / / " in mounted and "fuse.fuse-overlayfs" in mounted.splitlines()[0], mounted


@pytest.mark.long
def test_labels_where_the_hook_is_at_create_runtime_only(hpc: PodmanHpc) -> None:
    hooks = f"--hooks-dir={hpc.site.hooks_dir}"
    result = hpc.run(line(["--rm", hooks, "--net=host"], IMAGE["openmpi"], ["ompihello"]), "n1")
    assert (result.returncode, "Open MPI v5.0.11" in result.stdout) == (0, True), f"{result.stdout}{result.stderr}"
    assert [(entry["stage"], entry["verdict"]) for entry in hpc.last("n1", 1)] == [("createRuntime", "proved")]


@pytest.mark.parametrize(("recipe", "runtime"), [
    pytest.param(recipe, runtime, id=f"{number}-{runtime}", marks=() if runtime == RUNTIMES[number % 2] else pytest.mark.long)
    for number, recipe in enumerate(RECIPES[1:], 1) for runtime in RUNTIMES
])
def test_recipe(hpc: PodmanHpc, programs: Path, recipe: str, runtime: str) -> None:
    """As the page has it, but for the names of image and program and the volume with the latter."""
    family = "openmpi" if "pmix" in recipe else "mpich"
    assert recipe.count("IMAGE PROGRAM") == 1
    text = recipe.replace("IMAGE PROGRAM", f"--volume {programs}:/ranks:ro {bed.reference(IMAGE[family])} /ranks/{family}")
    result = hpc.run(text.replace("--ntasks", "--nodes=1 --ntasks"), runtime=runtime)
    assert_wired(result, VERSION[family], [4])
    assert hpc.containers() == []


def test_all_recipes_are_found() -> None:
    assert len(RECIPES) == 5


@pytest.mark.parametrize(("family", "flag"), [
    pytest.param("mpich", "hpc", marks=pytest.mark.long), pytest.param("mpich", "hpc-mpich", marks=pytest.mark.long),
    pytest.param("mpich", "hpc-shared"), pytest.param("mpich", "hpc-mpich-shared", marks=pytest.mark.long),
    pytest.param("openmpi", "hpc-openmpi", marks=pytest.mark.long), pytest.param("openmpi", "hpc-shared", marks=pytest.mark.long),
    pytest.param("openmpi", "hpc-openmpi-shared", marks=pytest.mark.long),
])
def test_two_nodes(hpc: PodmanHpc, programs: Path, family: str, flag: str) -> None:
    options = [f"--{flag}", f"--volume={programs}:/ranks:ro"]
    launcher = f"{LO} srun --mpi={MPI[family]} --nodes=2 --ntasks-per-node=2"
    result = hpc.run(line(options, IMAGE[family], [f"/ranks/{family}"], launcher))
    assert_wired(result, VERSION[family], [2, 2])


ENVIRONMENTS = r"""
for process in /proc/[0-9]*; do
    [ "$(readlink $process/ns/mnt)" = "$(readlink /proc/self/ns/mnt)" ] && [ "$(cat $process/comm)" = sleep ] &&
        echo container $(tr "\0" "\n" <$process/environ)
done
echo rank $(env)
"""


@pytest.mark.parametrize("family", [pytest.param("mpich", marks=pytest.mark.long), "openmpi"])
def test_no_rank_is_frozen_into_a_shared_container(hpc: PodmanHpc, family: str) -> None:
    launcher = f"srun --mpi={MPI[family]} --nodes=1 --ntasks=2"
    result = hpc.run(line(["--hpc-shared"], IMAGE[family], ["bash", "-c", f"'{ENVIRONMENTS}'"], launcher))
    names = re.compile(r"\b(?:PMI_RANK|PMIX_RANK)=(\d)")
    ranks, containers = ([text for text in result.stdout.splitlines() if text.startswith(f"{who} ")] for who in ("rank", "container"))
    assert sorted(names.findall(" ".join(ranks))) == ["0", "1"], f"{result.stdout}{result.stderr}"
    assert len(set(containers)) == 1
    assert not re.search(r"\b(PMI|PMIX|SLURM|OMPI)_", containers[0])


@pytest.mark.parametrize("flag", [pytest.param("hpc", marks=pytest.mark.long), "hpc-shared"])
def test_a_refused_start_ends_the_step(hpc: PodmanHpc, flag: str) -> None:
    options = [f"--{flag}", "--annotation=org.supercontainers.mpi=impossible"]
    launcher = "PODMANHPC_WAIT_TIMEOUT=1 srun --mpi=pmi2 --nodes=1 --ntasks=2 --kill-on-bad-exit=1"
    result = hpc.run(line(options, IMAGE["mpich"], ["mpihello"], launcher), timeout=30)
    assert result.returncode != 0
    assert "oci-hpc-hooks: org.supercontainers.mpi has the unknown value 'impossible'" in result.stderr


@pytest.mark.long
@pytest.mark.parametrize("flag", ["hpc-mpich", "hpc-shared"])
def test_with_the_podman_for_ranks(hpc: PodmanHpc, programs: Path, scratch: Path, flag: str) -> None:
    """Both move the launcher's socket: podman-hpc has done it when that podman looks."""
    bed.root_account().execute("oci-hpc-hooks", "register", "--podman", str(scratch), check=True)
    launcher = f"PATH={scratch}:$PATH srun --mpi=pmi2 --nodes=1 --ntasks=2"
    result = hpc.run(line([f"--{flag}", f"--volume={programs}:/ranks:ro"], IMAGE["mpich"], ["/ranks/mpich"], launcher))
    assert_wired(result, VERSION["mpich"], [2])


@pytest.mark.long
def test_open_mpi_whose_ranks_are_root_inside(hpc: PodmanHpc, programs: Path) -> None:
    options = ["--rm", "--hpc", f"--volume={programs}:/ranks:ro"]
    launcher = "srun --mpi=pmix --nodelist=n1 --ntasks=2 --kill-on-bad-exit=1"
    result = hpc.run(line(options, IMAGE["openmpi"], ["/ranks/openmpi"], launcher))
    assert result.returncode != 0 and "give --userns=keep-id" in result.stderr
    keep_id = ["--userns=keep-id", "--storage-opt=overlay.mountopt=noacl"]
    assert_wired(hpc.run(line([*options, *keep_id], IMAGE["openmpi"], ["/ranks/openmpi"], launcher)), VERSION["openmpi"], [2])


@pytest.mark.long
@pytest.mark.parametrize(("flag", "version"), [("hpc-mpich", "4.0.2"), ("hpc-shared", "4.0.2"), ("hpc-mpich-shared", "5.0.2")])
def test_without_injection(hpc: PodmanHpc, flag: str, version: str) -> None:
    """podman-hpc puts a module's options before the user's, but in a shared run behind them: there the module's word is the last."""
    options = [f"--{flag}", "--annotation org.supercontainers.mpi=none"]
    result = hpc.run(line(options, IMAGE["mpich"], ["mpihello"], "srun --mpi=pmi2 --nodes=1 --ntasks=2"))
    assert re.findall(r"^rank . of (.): MPICH Version: +(\S+);", result.stdout, re.MULTILINE) == [("2", version)] * 2, result.stderr


@pytest.mark.long
def test_ranks_that_differ_in_number_never_end(hpc: PodmanHpc, programs: Path) -> None:
    """podman-hpc's own doing, which the page warns of: the second node has one rank, and its monitor waits for a second."""
    options = ["--hpc-shared", f"--volume={programs}:/ranks:ro"]
    with pytest.raises(subprocess.TimeoutExpired) as stopped:
        hpc.run(line(options, IMAGE["mpich"], ["/ranks/mpich"], "srun --mpi=pmi2 --nodes=2 --ntasks=3"), timeout=20)
    assert (stopped.value.stdout or b"").count(b" of 3 on ") == 3


@pytest.mark.long
def test_two_flags(hpc: PodmanHpc) -> None:
    result = hpc.run(line(["--rm", "--hpc-mpich", "--hpc-openmpi"], IMAGE["mpich"], ["true"]), "n1")
    assert result.returncode == 125 and "cannot set multiple networks" in result.stderr
    assert "WARNING: Module 'hpc-mpich' (--hpc-mpich) conflicts with 'hpc-openmpi'" in result.stderr


def test_modules_are_shown_on_the_page_and_by_help(hpc: PodmanHpc) -> None:
    flags = {f"--{module.stem}" for module in MODULES}
    assert set(re.findall(r"^ +(--hpc\S*)", hpc.run("podman-hpc run --help", "n1").stdout, re.MULTILINE)) == flags
    assert set(re.findall(r"^\| `(--hpc\S*)`", (bed.ROOT / "docs/podman-hpc.md").read_text(), re.MULTILINE)) == flags
