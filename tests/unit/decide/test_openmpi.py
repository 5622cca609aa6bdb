"""Open MPI 4 and 5 share libmpi.so.40, and little below it: which pairs serve each other is decided by symbols and inner libraries."""

from __future__ import annotations

from typing import Sequence

import pytest

from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.model import NOTE, PROVED, REFUSED, HostLibrary, Inventory, Plan, Request, ResolvedProfile, Wish
from tests.unit.decide.world import (
    APP,
    IMAGE_MPI,
    OPENMPI,
    SITE_MPI,
    Image,
    codes,
    container,
    elf,
    host,
    inventory,
    mpich_image,
    profile,
    program,
    site_fabric,
    site_mpi,
)

IMAGE_OPENMPI = "/usr/lib64/libmpi.so.40"
SITE_OPENMPI = "/opt/ompi/lib/libmpi.so.40"
MPIRUN = "/usr/bin/orterun"
ERRORS = "ompi_mpi_errors_throw_exceptions"  # what the C++ bindings take from libmpi, gone with 5


def site(*inner: str, exports: Sequence[str] = ()) -> ResolvedProfile:
    """A site's Open MPI on these inner libraries."""

    def library(name: str) -> HostLibrary:
        return host(f"/opt/ompi/lib/{name}", elf(name, needed=("libc.so.6",), exports=("orte_init", "opal_init")))

    libmpi = host(SITE_OPENMPI, elf("libmpi.so.40", needed=inner, exports=(*OPENMPI, *exports)), "replace")
    return profile(libmpi, *map(library, inner), mpi="openmpi")


SITE4 = site("libopen-rte.so.40", "libopen-pal.so.40", exports=(ERRORS,))
SITE5 = site("libopen-pal.so.80")


def image4() -> Image:
    """Open MPI 4 with its launcher."""
    image = Image()
    for name in ("libopen-rte.so.40", "libopen-pal.so.40"):
        image.add(f"/usr/lib64/{name}", elf(name, needed=("libc.so.6",), exports=("orte_init", "opal_init")), cached=True)
    image.add(IMAGE_OPENMPI, elf("libmpi.so.40", needed=("libopen-rte.so.40", "libopen-pal.so.40"), exports=(*OPENMPI, ERRORS)),
              cached=True)
    image.add(MPIRUN, program("libopen-rte.so.40", "libopen-pal.so.40", imports=("orte_init",)))
    return image.add(APP, program("libmpi.so.40", imports=OPENMPI))


def decide(image: Image, node: Inventory, *programs: str, mpi: str = "openmpi") -> Plan:
    wish = Wish(mpi, f"label org.supercontainers.mpi={mpi}", True)
    return plan(container(), Request(mpi=wish), node, image.facts(*programs))


def refusal(made: Plan) -> str:
    assert made.verdict == REFUSED
    return " ".join([made.findings[-1].code, made.findings[-1].what])


def test_an_image_of_4_on_a_site_of_5_with_its_own_launcher() -> None:
    """Launcher and ranks speak PMIx: the launcher keeps its own inner libraries."""
    made = decide(image4(), inventory(SITE5), MPIRUN, APP)
    assert made.verdict == PROVED
    assert [(bind.source, bind.target) for bind in made.in_place] == [(SITE_OPENMPI, IMAGE_OPENMPI)]
    assert "launcher-environment" not in codes(made)


def test_an_image_of_4_on_a_site_of_4() -> None:
    made = decide(image4(), inventory(SITE4), APP)
    assert made.verdict == PROVED
    assert {bind.target for bind in made.in_place} == {IMAGE_OPENMPI, "/usr/lib64/libopen-rte.so.40", "/usr/lib64/libopen-pal.so.40"}
    (note,) = [finding for finding in made.findings if finding.code == "launcher-environment"]
    assert note.severity == NOTE
    assert "OPAL_PREFIX" in note.what


@pytest.mark.parametrize("programs", [(MPIRUN, APP), (MPIRUN,), (APP, MPIRUN)])
def test_the_launcher_of_4_on_a_site_of_4(programs: Sequence[str]) -> None:
    """Its libopen-rte is replaced for the ranks' sake, and it crashes on another build's."""
    assert refusal(decide(image4(), inventory(SITE4), *programs)).startswith(f"launcher {MPIRUN} belongs to the image's own Open MPI")


def test_a_site_of_5_serves_where_one_of_4_cannot() -> None:
    assert decide(image4(), inventory(SITE4, SITE5), MPIRUN, APP).verdict == PROVED


def test_two_inner_libraries_in_one_process() -> None:
    """A program linked to libopen-pal itself, as old mpicc did: with 5 it would have both and crash."""
    image = image4().add(APP, program("libmpi.so.40", "libopen-pal.so.40", imports=OPENMPI))
    assert refusal(decide(image, inventory(SITE5), APP)).startswith(f"mixed-build {APP} would load both")
    assert decide(image, inventory(SITE4), APP).verdict == PROVED


def test_cxx_bindings() -> None:
    cxx = "/usr/lib64/libmpi_cxx.so.40"
    image = image4().add(cxx, elf("libmpi_cxx.so.40", needed=("libmpi.so.40",), imports=(ERRORS,)), cached=True)
    image.add(APP, program("libmpi_cxx.so.40", "libmpi.so.40", imports=OPENMPI))
    assert refusal(decide(image, inventory(SITE5), APP)).startswith(f"mpi-symbols {cxx} uses {ERRORS}")
    assert decide(image, inventory(SITE4), APP).verdict == PROVED


def test_a_program_of_5_on_a_site_of_4() -> None:
    image = Image().add("/usr/lib64/libopen-pal.so.80", elf("libopen-pal.so.80"), cached=True)
    image.add(IMAGE_OPENMPI, elf("libmpi.so.40", needed=("libopen-pal.so.80",), exports=(*OPENMPI, "MPI_Session_init")), cached=True)
    image.add(APP, program("libmpi.so.40", imports=("MPI_Session_init",)))
    assert refusal(decide(image, inventory(SITE4), APP)).startswith(f"mpi-symbols {APP} uses MPI_Session_init")


@pytest.mark.parametrize(("mpi", "app", "source", "target"), [
    ("openmpi", "/usr/bin/ompi", SITE_OPENMPI, IMAGE_OPENMPI), ("mpich", APP, SITE_MPI, IMAGE_MPI)])
def test_an_image_with_both(mpi: str, app: str, source: str, target: str) -> None:
    """The label decides; the other MPI stays as it is."""
    image = mpich_image().add(IMAGE_OPENMPI, elf("libmpi.so.40", exports=OPENMPI), cached=True)
    image.add("/usr/bin/ompi", program("libmpi.so.40", imports=OPENMPI))
    node = inventory(profile(site_mpi(), site_fabric()), SITE5)
    made = decide(image, node, app, mpi=mpi)
    assert made.verdict == PROVED
    assert [(bind.source, bind.target) for bind in made.in_place] == [(source, target)]
    other = "mpich" if mpi == "openmpi" else "openmpi"
    assert refusal(decide(image, node, app, mpi=other)).startswith("family ")


# -------------------------------------------------------------------------------------------------------------- PMIx

USED = ("PMIx_Init", "PMIx_Info_create", "pmix_framework_names")
INTERNALS = ("pmix_class_init_epoch",)
IMAGE_PMIX = "/usr/lib64/libpmix.so.2"
MPIRUN5 = "/usr/bin/mpirun.openmpi"
SITE_PMIX = "/opt/ompi/lib/libpmix.so.2"


def site5_with_pmix(runpath: str = "", pmix: str = SITE_PMIX) -> Inventory:
    libmpi = host(SITE_OPENMPI, elf("libmpi.so.40", needed=("libpmix.so.2",), exports=OPENMPI, imports=USED, runpath=runpath), "replace")
    return inventory(profile(libmpi, host(pmix, elf("libpmix.so.2", exports=(*USED, *INTERNALS))), mpi="openmpi"))


def image5(pmix: Sequence[str]) -> Image:
    """Open MPI 5, its launcher on PRRTE, and a PMIx with these symbols."""
    image = Image().add(IMAGE_PMIX, elf("libpmix.so.2", exports=pmix), cached=True)
    image.add("/usr/lib64/libprrte.so.3", elf("libprrte.so.3", needed=("libpmix.so.2",), imports=INTERNALS), cached=True)
    image.add(IMAGE_OPENMPI, elf("libmpi.so.40", needed=("libpmix.so.2",), exports=OPENMPI), cached=True)
    image.add(MPIRUN5, program())  # starts prterun
    return image.add(APP, program("libmpi.so.40", imports=OPENMPI))


def test_the_pmix_of_the_image_stays_for_its_launcher() -> None:
    """libprrte crashes on the internals of another release."""
    made = decide(image5((*USED, *INTERNALS)), site5_with_pmix(), MPIRUN5, APP)
    assert made.verdict == PROVED
    assert [bind.target for bind in made.in_place] == [IMAGE_OPENMPI]
    assert [bind.source for bind in made.tree] == [SITE_OPENMPI, SITE_PMIX]  # for whoever loads from the tree
    assert made.cache is not None
    assert [entry.path for entry in made.cache.entries if entry.name == "libpmix.so.2"] == [IMAGE_PMIX]


OLD = ("PMIx_Init", *INTERNALS)


def test_a_pmix_of_the_image_that_is_too_old_stays_where_the_site_s_mpi_does_not_meet_it() -> None:
    """The site's libmpi finds its own by DT_RUNPATH; bound in place it would not, and that is told."""
    site = site5_with_pmix(runpath="$ORIGIN/private", pmix="/opt/ompi/lib/private/libpmix.so.2")
    wish = Request(mpi=Wish("openmpi", "label", True))
    made = plan(container(), wish, site, image5(OLD).facts(MPIRUN5, APP, looked_at=["/usr/lib64/private"]))
    assert made.verdict == PROVED
    assert [bind.target for bind in made.in_place] == [IMAGE_OPENMPI]
    (warning,) = [finding for finding in made.findings if finding.code == "pmix-too-old"]
    assert "/usr/lib64" in warning.what and "PMIx_Info_create" in warning.what


def test_a_pmix_of_the_image_that_is_too_old_is_replaced_otherwise() -> None:
    made = decide(image5(OLD), site5_with_pmix(), APP)
    assert made.verdict == PROVED
    assert (SITE_PMIX, IMAGE_PMIX) in [(bind.source, bind.target) for bind in made.in_place]
    assert refusal(decide(image5(OLD), site5_with_pmix(), MPIRUN5, APP)).startswith(f"launcher {MPIRUN5} belongs to the image's own")


def test_the_launcher_of_5_on_a_site_of_4() -> None:
    """Ranks of 4 do not find it."""
    image = Image().add("/usr/lib64/libopen-pal.so.80", elf("libopen-pal.so.80"), cached=True)
    image.add(IMAGE_OPENMPI, elf("libmpi.so.40", needed=("libopen-pal.so.80",), exports=OPENMPI), cached=True)
    image.add(MPIRUN5, program()).add(APP, program("libmpi.so.40", imports=OPENMPI))
    assert refusal(decide(image, inventory(SITE4), MPIRUN5, APP)).startswith(f"launcher {MPIRUN5} belongs to the image's own")
    assert decide(image, inventory(SITE4), APP).verdict == PROVED
    assert decide(image, inventory(SITE5), MPIRUN5, APP).verdict == PROVED
