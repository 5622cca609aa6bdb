"""Which labels an image should have, by its files."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Mapping, Optional, Tuple

import pytest

from oci_hpc_hooks.decide import label, links
from oci_hpc_hooks.decide.request import CPU_KEYS, FABRIC, GLIBC_KEYS, GPU, MPI
from oci_hpc_hooks.model import NOTHING, ImageFacts, Inventory, Plan, Profile, ProfileLibrary, Site
from tests.unit.decide.world import APP, MPICH, OPENMPI, Image, elf, mpich_image, program

NOBODY = Inventory(0, "", "", "", Site(), (), ())
PROFILES = label.sought([
    Profile("mpich", "", {"mpi": "mpich"}, (ProfileLibrary("libmpi.so.12", "replace", ("libmpich.so.12",)),)),
    Profile("cuda", "", {"gpu": "cuda"}, (ProfileLibrary("libcuda.so.1", "replace"), ProfileLibrary("libOpenCL.so.1", "add"))),
    Profile("opencl", "", {"gpu": "opencl"}, (ProfileLibrary("libOpenCL.so.1", "add"),)),
    Profile("slurm", "", {"launcher": "slurm"}),
])


def proposed(facts: ImageFacts, labels: Mapping[str, str] = {}) -> Tuple[Dict[str, str], Tuple[str, ...]]:
    maps = links.link_maps(facts, Plan(NOTHING, ()), NOBODY)
    proposals, findings = label.propose(facts, maps, PROFILES, labels)
    return {one.key: one.value for one in proposals if one.is_new}, tuple(finding.code for finding in findings)


def test_what_the_program_loads() -> None:
    assert proposed(mpich_image().facts(APP)) == ({MPI: "mpich", GLIBC_KEYS[0]: "2.36"}, ())


def test_labels_that_are_right_are_not_proposed_again() -> None:
    assert proposed(mpich_image().facts(APP), {MPI: " MPICH", GLIBC_KEYS[0]: "2.31"}) == ({GLIBC_KEYS[0]: "2.36"}, ())


def both() -> Image:
    return (mpich_image().add("/usr/lib64/libmpi.so.40", elf("libmpi.so.40", exports=OPENMPI, needed=("libc.so.6",)), cached=True)
            .add("/usr/bin/other", program("libmpi.so.40")))


def test_two_mpis_and_no_program_that_tells() -> None:
    """What uses them is looked at where the command line tells nothing, and disagrees."""
    facts = both().facts("/usr/bin/sh")
    assert proposed(replace(facts, consumers=(APP, "/usr/bin/other"))) == ({GLIBC_KEYS[0]: "2.36"}, ("several-mpis",))
    assert proposed(replace(facts, consumers=(APP,)))[0][MPI] == "mpich"
    assert proposed(both().facts("/usr/bin/other"))[0][MPI] == "openmpi"


def test_a_library_without_a_program() -> None:
    image = Image().add("/usr/lib64/libmpi.so.12", elf("libmpi.so.12", exports=MPICH, needed=("libc.so.6",)), cached=True)
    assert proposed(image.facts())[0][MPI] == "mpich"


def test_no_mpi() -> None:
    assert proposed(Image().add(APP, program()).facts(APP)) == ({GLIBC_KEYS[0]: "2.36"}, ("no-mpi",))


@pytest.mark.parametrize(("needed", "stack"), [("libcuda.so.1", "cuda"), ("libOpenCL.so.1", "opencl")])
def test_a_stack_that_the_program_is_linked_to(needed: str, stack: str) -> None:
    """Also where the image has no such library, which is how CUDA programs come."""
    found, _ = proposed(Image().add(APP, program(needed)).facts(APP))
    assert found[GPU] == stack


def test_a_stack_that_may_not_be_used_is_only_mentioned() -> None:
    """hwloc's module for OpenCL is in every image with Open MPI: an explicit wish would refuse it on nodes without a GPU."""
    image = mpich_image().add("/usr/lib64/libOpenCL.so.1", elf("libOpenCL.so.1", needed=("libc.so.6",)), cached=True)
    found, codes = proposed(image.facts(APP))
    assert GPU not in found
    assert codes == ("gpu-maybe",)


FABRICS = label.sought([
    Profile(name, "", {"fabric": name}, tuple(ProfileLibrary(one, "replace") for one in sonames)) for name, *sonames in (
        ("cxi", "libfabric.so.1", "libcxi.so.1"), ("libfabric", "libfabric.so.1"), ("opx", "libfabric.so.1"),
        ("verbs", "libibverbs.so.1"))])


def fabric_image(*needed: str) -> Image:
    """An MPI that uses libfabric, which uses verbs; and a program that needs these."""
    image = mpich_image().add(APP, program(*needed))
    for name, of in (("libfabric.so.1", "libibverbs.so.1"), ("libibverbs.so.1", "libc.so.6"), ("libown.so", "libfabric.so.1"),
                     ("libmpi.so.12", "libfabric.so.1")):
        exports = MPICH if "mpi" in name else ()
        image.add(f"/usr/lib64/{name}", elf(name, exports=exports, needed=(of, "libc.so.6")), cached=True)
    return image


@pytest.mark.parametrize(("needed", "fabric"), [
    (("libmpi.so.12",), None),  # which comes with the site's MPI
    (("libfabric.so.1",), "libfabric"),  # and verbs with that; nor is it any of the profiles that bring a libfabric too
    (("libmpi.so.12", "libfabric.so.1"), "libfabric"),
    (("libown.so",), "libfabric"),
    (("libibverbs.so.1", "libfabric.so.1"), "libfabric,verbs"),
])
def test_a_fabric_that_the_program_uses_itself(needed: Tuple[str, ...], fabric: Optional[str]) -> None:
    facts = fabric_image(*needed).facts(APP)
    maps = links.link_maps(facts, Plan(NOTHING, ()), NOBODY)
    for profiles in ((*PROFILES, *FABRICS), (*PROFILES, *reversed(FABRICS))):
        found = {one.key: one.value for one in label.propose(facts, maps, profiles, {})[0]}
        assert found.get(FABRIC) == fabric


def test_the_processor_that_a_program_is_marked_for() -> None:
    image = mpich_image()
    image.files[APP] = replace(image.files[APP], isa_needed=0b110)
    assert proposed(image.facts(APP))[0][CPU_KEYS[0]] == "x86_64_v3"
    image.files[APP] = replace(image.files[APP], isa_needed=0b1)
    assert CPU_KEYS[0] not in proposed(image.facts(APP))[0]
