"""Open MPI in real containers: an image of Debian 12's 4.1.4 on a site's 5.0 and on a site's 4.1, both of another build."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import Engine, Result
from tests.bed.site import OPENMPI4, OPENMPI5
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, LIBRARY_DIR, OWN_VERSION, SITE_VERSION, TREE, assert_runs, ranks, start
from tests.engine.site import three_engines

IMAGE = "bookworm-openmpi"
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2")
VERSIONS = {OPENMPI4: "4.1.8", OPENMPI5: "5.0.11"}
LIBMPI = f"{LIBRARY_DIR}/libmpi.so.40"


def assert_refused(result: Result, *words: str) -> None:
    assert result.returncode != 0
    for word in words:
        assert word in result.stderr, result.stderr


def test_image_alone_runs_its_own(crun: Engine) -> None:
    assert_runs(crun.run(IMAGE, *MPIRUN, "ompihello"), "4.1.4", LIBMPI)


@three_engines
def test_the_images_mpirun_starts_ranks_on_5(engine: Engine, make_site: SiteMaker) -> None:
    """orterun 4.1 keeps its own libraries; between it and the ranks is only PMIx's protocol."""
    site = make_site(engine, openmpi=[OPENMPI5])
    for way in ("cold", "warm"):
        result, log = start(engine, site, *MPIRUN, "ompihello", image=IMAGE)
        assert_runs(result, VERSIONS[OPENMPI5], f"{TREE}{OPENMPI5}/")
        assert [(entry["verdict"], entry["path"]) for entry in log] == [("proved", way)]


def test_one_rank_on_5(crun: Engine, make_site: SiteMaker) -> None:
    """Without launcher and without environment."""
    result, _ = start(crun, make_site(crun, openmpi=[OPENMPI5]), "ompihello", image=IMAGE)
    assert [(rank.of, rank.version) for rank in ranks(result)] == [(1, VERSIONS[OPENMPI5])]


def test_4(crun: Engine, make_site: SiteMaker) -> None:
    """The image's own mpirun would crash on another build's libopen-rte: refused. A program that nobody has launched ends with
    an error, unless it gets the environment that the log names."""
    site = make_site(crun, openmpi=[OPENMPI4])
    refused, _ = start(crun, site, *MPIRUN, "ompihello", image=IMAGE)
    assert_refused(refused, "orterun belongs to the image's own Open MPI", f"libopen-rte.so.40 (the site's {OPENMPI4}")
    alone, log = start(crun, site, "ompihello", image=IMAGE)
    assert alone.returncode != 0
    assert not alone.stdout.startswith("rank")
    (finding,) = [finding for finding in log[0]["findings"] if finding["code"] == "launcher-environment"]
    assert "OMPI_MCA_ess_singleton_isolated=1" in finding["what"]
    isolated, _ = start(crun, site, "ompihello", image=IMAGE, options=["--env=OMPI_MCA_ess_singleton_isolated=1"])
    assert [(rank.of, rank.version) for rank in ranks(isolated)] == [(1, VERSIONS[OPENMPI4])]


def test_the_images_mpirun_does_crash_on_another_build_of_4(crun: Engine) -> None:
    """What the refusal rests on."""
    options = [f"--volume={OPENMPI4.parent}:/site", "--env=LD_LIBRARY_PATH=/site/lib", "--env=OPAL_PREFIX=/site"]
    assert crun.run(IMAGE, *MPIRUN, "ompihello", options=options).returncode != 0


@pytest.mark.parametrize("prefix", [OPENMPI4, OPENMPI5], ids=VERSIONS.get)
def test_the_sites_mpirun_starts_containers(prefix: Path, make_site: SiteMaker) -> None:
    """One container for each rank, launched from outside."""
    engine = Engine("crun", "root")
    site = make_site(engine, openmpi=[prefix])
    podman = ["podman", "--runtime", engine.runtime, "--hooks-dir", str(site.hooks_dir), "run", "--rm"]
    podman += ["--net=host", "--ipc=host", "--pid=host", "--volume=/tmp:/tmp", "--env=OMPI_*", "--env=PMIX_*", "--env=OPAL_PREFIX"]
    # plm isolated: everything is on this node, which may have no ssh, and 4 ends without one otherwise.
    mpirun = [str(prefix.parent / "bin/mpirun"), *MPIRUN[1:], *(["--mca", "plm", "isolated"] if prefix == OPENMPI4 else [])]
    result = engine.account.execute(*mpirun, *podman, engine.load(IMAGE), "ompihello", timeout=120)
    assert_runs(result, VERSIONS[prefix], f"{TREE}{prefix}/")


# ------------------------------------------------------------------------------------------------ programs that need more of 4


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """ompihello linked to one more library of Debian's Open MPI: hello-cxx, hello-mpifh, hello-pal."""
    folder = bed.scratch("openmpi")
    libraries = bed.BUILD / f"images/{IMAGE}" / LIBRARY_DIR[1:]
    for name, library in (("cxx", "libmpi_cxx"), ("mpifh", "libmpi_mpifh"), ("pal", "libopen-pal")):
        sources = [f"-I{OPENMPI4.parent / 'include'}", f"{bed.ROOT}/tests/bed/src/mpihello.c"]
        link = ["-Wl,--no-as-needed,--allow-shlib-undefined", f"{libraries}/libmpi.so.40", f"{libraries}/{library}.so.40"]
        subprocess.run(["gcc", "-O1", "-o", folder / f"hello-{name}", *sources, *link], check=True, timeout=60)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("program", "words"), [
    ("hello-cxx", ("libmpi_cxx.so.40 uses ompi_mpi_errors_throw_exceptions",)),
    ("hello-mpifh", ("libmpi_mpifh.so.40 uses PMPIX_",)),
    ("hello-pal", ("libopen-pal.so.40 of the image and libopen-pal.so.80", "two Open MPIs in one process")),
])
def test_what_5_has_dropped(make_site: SiteMaker, programs: Path, program: str, words: tuple[str, ...]) -> None:
    """Refused by name with 5, where it would not load or crash; runs on 4."""
    engine, volume = Engine("crun", "root"), f"--volume={programs}:/data:ro"
    by_hand = [volume, f"--volume={OPENMPI5.parent}:/site", "--env=LD_LIBRARY_PATH=/site/lib", "--env=LD_BIND_NOW=1"]
    assert engine.run(IMAGE, f"/data/{program}", options=by_hand).returncode != 0
    refused, _ = start(engine, make_site(engine, openmpi=[OPENMPI5]), f"/data/{program}", image=IMAGE, options=[volume])
    assert_refused(refused, *words)


@pytest.mark.parametrize("program", ["hello-cxx", "hello-mpifh", "hello-pal"])
def test_what_4_still_has(make_site: SiteMaker, programs: Path, program: str) -> None:
    engine = Engine("crun", "root")
    options = [f"--volume={programs}:/data:ro", "--env=OMPI_MCA_ess_singleton_isolated=1", "--env=LD_BIND_NOW=1"]
    result, _ = start(engine, make_site(engine, openmpi=[OPENMPI4]), f"/data/{program}", image=IMAGE, options=options)
    assert [(rank.of, rank.version) for rank in ranks(result)] == [(1, VERSIONS[OPENMPI4])]


# ------------------------------------------------------------------------------------------------ both families in one image


@pytest.mark.parametrize(("wanted", "versions"), [
    ("openmpi", {OWN_VERSION, VERSIONS[OPENMPI5]}), ("mpich", {SITE_VERSION, "4.1.4"})])
def test_both(crun: Engine, make_site: SiteMaker, scratch: Path, wanted: str, versions: set[str]) -> None:
    """What is wanted decides which MPI is the site's; the other runs as it is, in the same container."""
    script = scratch / "run.sh"
    script.write_text(f"mpiexec.mpich {' '.join(HELLO[1:])}\n{' '.join(MPIRUN)} ompihello\n")
    options = [f"--volume={scratch}:/scripts:ro", f"--annotation=org.supercontainers.mpi={wanted}"]
    result, log = start(crun, make_site(crun, openmpi=[OPENMPI5]), "sh", "/scripts/run.sh", image="bookworm-both", options=options)
    assert [entry["verdict"] for entry in log] == ["unproved"]
    assert sorted((rank.of, rank.version) for rank in ranks(result)) == sorted((2, version) for version in versions for _ in range(2))


def test_a_program_of_the_other_family(make_site: SiteMaker) -> None:
    engine = Engine("crun", "root")
    refused, _ = start(engine, make_site(engine, openmpi=[OPENMPI5]), "mpiexec.mpich", *HELLO[1:], image="bookworm-both")
    assert_refused(refused, "openmpi is wanted", "libmpich.so.12, which is mpich by its symbols")
