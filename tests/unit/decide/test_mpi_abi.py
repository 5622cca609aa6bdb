"""The MPI standard's own ABI (MPI 5.0, chapter 20): one library name, whoever implements it, beside an implementation's own ABI."""

from __future__ import annotations

from typing import Sequence

import pytest

from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.elf import mpi
from oci_hpc_hooks.model import PROVED, REFUSED, ElfFacts, Plan, Request, ResolvedProfile, Wish
from tests.unit.decide.world import (
    APP,
    MPICH,
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
    site_mpi,
)

STANDARD = ("MPI_Init", "MPI_Send", "PMPI_Init", "MPI_Abi_get_version")
SITE_ABI = "/opt/site/lib/libmpi_abi.so.1"
IMAGE_ABI = "/usr/local/lib/libmpi_abi.so.1"
ABI_APP = "/usr/bin/abi-app"


def site_abi(*, exports: Sequence[str] = (*STANDARD, "MPIR_Err_return"), needed: Sequence[str] = ("libc.so.6",)) -> ResolvedProfile:
    library = host(SITE_ABI, elf("libmpi_abi.so.1", needed=needed, exports=exports), "replace", replaces=("libmpi_abi.so.0",))
    return profile(library, mpi="mpi-abi")


def image(soname: str = "libmpi_abi.so.1") -> Image:
    """An image with MPICH, and beside it a stub of the standard's library and a program that was linked to it."""
    made = mpich_image().add(f"/usr/local/lib/{soname}", elf(soname, exports=STANDARD), cached=True)
    return made.add(ABI_APP, program(soname, imports=("MPI_Init", "MPI_Send")))


def decide(made: Image, *profiles: ResolvedProfile, app: str = ABI_APP, wish: str = "mpi-abi", explicit: bool = True) -> Plan:
    request = Request(mpi=Wish(wish, f"label org.supercontainers.mpi={wish}", explicit))
    return plan(container(), request, inventory(*profiles), made.facts(app))


@pytest.mark.parametrize(("facts", "family", "implementation"), [
    (elf("libmpi_abi.so.1", exports=STANDARD), "mpi-abi", ""),
    (elf("libmpi_abi.so.1", exports=(*STANDARD, "MPIR_Err_return")), "mpi-abi", "MPICH"),
    (elf("libmpi_abi.so.1", exports=STANDARD, needed=("libopen_mpi.so.0",)), "mpi-abi", "Open MPI"),
    (elf("libmpi_abi.so.1", exports=("MPI_Send",)), "", ""),
    # Since MPICH 5 its own library has the standard's new functions too.
    (elf("libmpi.so.12", exports=(*STANDARD, "MPIR_Err_return")), "mpich", "MPICH"),
])
def test_family(facts: ElfFacts, family: str, implementation: str) -> None:
    assert (mpi.family(facts), mpi.implementation(facts)) == (family, implementation)


@pytest.mark.parametrize("soname", ["libmpi_abi.so.1", "libmpi_abi.so.0"])  # MPICH 5.0.0 and 5.0.1 called theirs .so.0
def test_the_standard_library_is_replaced_and_the_other_mpi_left_alone(soname: str) -> None:
    made = decide(image(soname), site_abi())
    assert made.verdict == PROVED
    assert [(bind.source, bind.target) for bind in made.in_place] == [(SITE_ABI, f"/usr/local/lib/{soname}")]
    assert "launcher-implementation" in codes(made)


def test_an_image_without_any_copy() -> None:
    made = decide(image().remove(IMAGE_ABI), site_abi())
    assert made.verdict == PROVED
    assert made.cache is not None and "libmpi_abi.so.1" in {entry.name for entry in made.cache.entries}


def test_a_function_that_the_site_lacks() -> None:
    made = image().add(ABI_APP, program("libmpi_abi.so.1", imports=("MPI_Init", "MPI_Comm_toint")))
    refused = decide(made, site_abi())
    assert refused.verdict == REFUSED
    assert "MPI_Comm_toint" in refused.findings[-1].what


@pytest.mark.parametrize(("app", "wish", "found"), [(ABI_APP, "mpich", "mpi-abi"), (APP, "mpi-abi", "mpich")])
def test_a_label_that_means_the_other(app: str, wish: str, found: str) -> None:
    refused = decide(image(), profile(site_mpi(needed=("libc.so.6",))), site_abi(), app=app, wish=wish)
    assert refused.verdict == REFUSED
    assert f"{wish} is wanted" in refused.findings[-1].what and f"which is {found} by its symbols" in refused.findings[-1].what


@pytest.mark.parametrize(("app", "source"), [(ABI_APP, SITE_ABI), (APP, SITE_MPI)])
@pytest.mark.parametrize("swapped", [False, True])
def test_auto_follows_the_program(app: str, source: str, swapped: bool) -> None:
    offers = [profile(site_mpi(needed=("libc.so.6",), exports=(*MPICH, "PMPI_Init"))), site_abi()]
    made = decide(image(), *(reversed(offers) if swapped else offers), app=app, wish="auto", explicit=False)
    assert made.verdict == PROVED
    assert [bind.source for bind in made.in_place] == [source]
