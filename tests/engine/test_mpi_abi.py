"""The MPI standard's own ABI in real containers: an image with nothing but a library to link against, on a site's MPICH 5."""

from __future__ import annotations

from pathlib import Path

from tests.bed.bed import Engine
from tests.bed.site import MPICH5
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, OWN_VERSION, SITE_VERSION, TREE, assert_own, assert_site, ranks, start
from tests.engine.site import three_engines

IMAGE = "bookworm-abi"
ABIHELLO = (*HELLO[:-1], "abihello")
STUB = "/usr/local/lib/libmpi_abi.so.1"


def test_image_alone_does_not_run(crun: Engine) -> None:
    """What the injection has to bring: each function of the image's own library aborts."""
    assert crun.run(IMAGE, *ABIHELLO).returncode != 0


@three_engines
def test_two_ranks(engine: Engine, make_site: SiteMaker) -> None:
    """Started by the mpiexec of the image's MPICH 4.0, which speaks PMI to whoever makes the library."""
    site = make_site(engine, abi=[MPICH5])
    for way in ("cold", "warm"):
        result, log = start(engine, site, *ABIHELLO, image=IMAGE)
        assert_site(result, STUB)  # only the cache leads to it, and a cache that stays in the layer keeps leading there
        assert [(entry["verdict"], entry["path"]) for entry in log] == [("proved", way)]
    (note,) = [finding for finding in log[0]["findings"] if finding["code"] == "launcher-implementation"]
    assert "MPICH" in note["what"]


def test_the_other_mpi_of_the_image_is_left_alone(crun: Engine, make_site: SiteMaker, scratch: Path) -> None:
    """mpihello is linked to MPICH's own ABI; a label that means the standard's does not touch it."""
    script = scratch / "run.sh"
    script.write_text(f"{' '.join(ABIHELLO)}\n{' '.join(HELLO)}\n")
    site = make_site(crun, abi=[MPICH5])
    result, _ = start(crun, site, "sh", "/scripts/run.sh", image=IMAGE, options=[f"--volume={scratch}:/scripts:ro"])
    assert sorted((rank.of, rank.version) for rank in ranks(result)) == [(2, OWN_VERSION)] * 2 + [(2, SITE_VERSION)] * 2


def test_what_the_label_does_not_mean_is_refused(crun: Engine, make_site: SiteMaker) -> None:
    site = make_site(crun, abi=[MPICH5])
    refused, _ = start(crun, site, *HELLO, image=IMAGE)
    assert refused.returncode != 0
    assert "mpi-abi is wanted" in refused.stderr and "which is mpich by its symbols" in refused.stderr
    refused, _ = start(crun, site, *ABIHELLO, image=IMAGE, options=["--annotation=org.supercontainers.mpi=mpich"])
    assert refused.returncode != 0
    assert "mpich is wanted" in refused.stderr and f"{STUB}, which is mpi-abi" in refused.stderr


def test_auto(crun: Engine, make_site: SiteMaker) -> None:
    """The program decides which of the two it is, whatever the site prefers."""
    site = make_site(crun, abi=[MPICH5])
    auto = ["--annotation=org.supercontainers.mpi=auto"]
    for program, library in ((ABIHELLO, STUB), (HELLO, f"{TREE}{MPICH5}/libmpi.so.12")):
        assert_site(start(crun, site, *program, image=IMAGE, options=auto)[0], library)


def test_none(crun: Engine, make_site: SiteMaker) -> None:
    site = make_site(crun, abi=[MPICH5])
    assert_own(start(crun, site, *HELLO, image=IMAGE, options=["--annotation=org.supercontainers.mpi=none"])[0])
