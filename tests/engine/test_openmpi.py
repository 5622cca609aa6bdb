"""Open MPI in real containers: an image of Debian 12's Open MPI 4.1.4 on the site's 5.0 and on the site's 4.1."""

from __future__ import annotations

import pytest

from tests.bed.bed import Engine
from tests.bed.site import OPENMPI4, OPENMPI5
from tests.engine.conftest import SiteMaker
from tests.engine.inside import assert_runs, ranks, start

IMAGE = "bookworm-openmpi"
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", "ompihello")


def test_image_alone_runs_its_own(crun: Engine) -> None:
    assert_runs(crun.run(IMAGE, *MPIRUN), "4.1.4", "/usr/lib/x86_64-linux-gnu/")


def test_openmpi5(engine: Engine, make_site: SiteMaker) -> None:
    """The image's own mpirun of 4.1 starts ranks that run on 5.0: between the two is only PMIx's protocol."""
    site = make_site(engine, openmpi=[OPENMPI5])
    for way in ("cold", "warm"):
        result, log = start(engine, site, *MPIRUN, image=IMAGE)
        print(result.stdout, result.stderr)
        assert_runs(result, "5.0.11", f"/dev/.oci-hpc{OPENMPI5}/libmpi.so.40")
        assert [(entry["verdict"], entry["path"]) for entry in log] == [("proved", way)]


def test_openmpi4(crun: Engine, make_site: SiteMaker) -> None:
    site = make_site(crun, openmpi=[OPENMPI4])
    result, log = start(crun, site, *MPIRUN, image=IMAGE)
    print(result.stdout, result.stderr, result.returncode)
    result, log = start(crun, site, "ompihello", image=IMAGE)
    print(result.stdout, result.stderr, result.returncode)
    result, log = start(crun, site, "ompihello", image=IMAGE, options=["--env=OMPI_MCA_ess_singleton_isolated=1"])
    print(result.stdout, result.stderr, result.returncode)
    assert 0
