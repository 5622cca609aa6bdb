"""Who provides what, with a plan laid over an image: on images and nodes made of facts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Optional, Tuple

from hypothesis import HealthCheck, given, settings

from oci_hpc_hooks.decide import links
from oci_hpc_hooks.decide.links import HOST, IMAGE, RUNTIME, Edge, LinkMap
from oci_hpc_hooks.decide.plan import TREE_IN_DEV, plan
from oci_hpc_hooks.model import ERROR, NOTHING, PROVED, REFUSED, UNPROVED, ImageFacts, Inventory, Plan, Request, Site, Wish
from tests.unit.decide import test_plan, test_runtime, world
from tests.unit.decide.world import (
    APP,
    IMAGE_MPI,
    LIBC,
    LOADER,
    SITE_FABRIC,
    SITE_MPI,
    Image,
    container,
    elf,
    inventory,
    mpich_image,
    profile,
)

WANTED = Request(mpi=Wish("mpich", "label org.supercontainers.mpi=mpich", True))
NODE = inventory(profile(world.site_mpi(), world.site_fabric()))


def look(facts: ImageFacts, node: Inventory = NODE, request: Request = WANTED) -> Tuple[Plan, Tuple[LinkMap, ...]]:
    made = plan(container(), request, node, facts)
    return made, links.link_maps(facts, made, node)


def providers(link_map: LinkMap) -> Dict[str, Tuple[str, str]]:
    return {link.name: (link.provider, link.file) for link in link_map.objects}


def only(facts: ImageFacts, node: Inventory = NODE, request: Request = WANTED) -> LinkMap:
    (found,) = look(facts, node, request)[1]
    return found


def fault(found: LinkMap) -> Edge:
    (edge,) = found.faults
    return edge


def test_a_proved_plan() -> None:
    found = only(mpich_image().facts(APP))
    assert providers(found) == {
        APP: (IMAGE, APP),
        "libmpi.so.12": (HOST, SITE_MPI),
        "libfabric.so.1": (HOST, SITE_FABRIC),
        "libc.so.6": (IMAGE, LIBC),
        LOADER: (IMAGE, LOADER),
    }
    assert not found.faults
    mpi = next(link for link in found.objects if link.name == "libmpi.so.12")
    assert (mpi.path, mpi.rule, mpi.needed_by) == (TREE_IN_DEV + SITE_MPI, "cache", APP)
    assert mpi.why == "replace of profile site-mpich"
    pairs = {(edge.needed_by, edge.name) for edge in found.edges}
    assert {(APP, "libmpi.so.12"), (APP, LOADER), (mpi.path, "libfabric.so.1"), (mpi.path, "libc.so.6")} <= pairs


def test_the_image_alone_where_nobody_asked() -> None:
    found = only(mpich_image().facts(APP), request=Request())
    assert providers(found)["libmpi.so.12"] == (IMAGE, IMAGE_MPI)
    assert {link.provider for link in found.objects} == {IMAGE}


def test_what_the_image_keeps_says_why() -> None:
    image = mpich_image().add("/usr/lib64/libfabric.so.1", elf("libfabric.so.1", verdef=["FABRIC_1.0", "FABRIC_1.1", "FABRIC_1.2"]),
                              cached=True)
    fabric = next(link for link in only(image.facts(APP)).objects if link.name == "libfabric.so.1")
    assert (fabric.provider, fabric.file) == (IMAGE, "/usr/lib64/libfabric.so.1")
    assert "serves both sides" in fabric.why


def test_a_version_that_is_missing() -> None:
    node = inventory(profile(world.site_mpi(glibc="GLIBC_2.38"), world.site_fabric()))
    facts = mpich_image(31).facts(APP)
    made, (found,) = look(facts, node)
    assert made.verdict == REFUSED and not made.tree
    assert providers(found)["libmpi.so.12"] == (HOST, SITE_MPI)
    assert fault(found) == Edge(TREE_IN_DEV + SITE_MPI, "libc.so.6", "/lib64/libc.so.6", "lacks GLIBC_2.38")
    assert {link.name for link in links.order(found)[:2]} == {"libmpi.so.12", "libc.so.6"}


def test_a_dependency_that_nobody_has() -> None:
    node = inventory(profile(world.site_mpi(needed=["libcxi.so.1", "libc.so.6"])))
    found = only(mpich_image().facts(APP), node)
    assert fault(found) == Edge(TREE_IN_DEV + SITE_MPI, "libcxi.so.1", "", "nobody has it")


def test_a_function_that_is_missing() -> None:
    image = mpich_image().add(APP, world.program("libmpi.so.12", imports=["MPI_Init", "MPI_Send_c"]))
    assert fault(only(image.facts(APP))) == Edge(APP, "libmpi.so.12", TREE_IN_DEV + SITE_MPI, "lacks MPI_Send_c")


def test_what_the_image_lacks_itself_is_not_ours() -> None:
    image = mpich_image().add(APP, world.program("libmpi.so.12", "libgone.so.1"))
    made, (found,) = look(image.facts(APP))
    assert made.verdict == PROVED
    assert not found.faults
    assert [(edge.name, edge.ours) for edge in found.edges if edge.fault] == [("libgone.so.1", False)]


def test_what_fails_without_any_program_that_loads_it() -> None:
    """The injected libraries must load whoever asks for them."""
    node = inventory(profile(world.site_mpi(glibc="GLIBC_2.38"), world.site_fabric()))
    image = mpich_image().add("/bin/sleep", world.program())
    made, maps = look(image.facts("/bin/sleep"), node)
    assert made.verdict == REFUSED
    assert [one.program for one in maps] == [TREE_IN_DEV + SITE_MPI, "/bin/sleep"]
    assert fault(maps[0]).fault == "lacks GLIBC_2.38"


def test_what_fails_only_with_a_search_path() -> None:
    """A script may put the folder of a second copy into LD_LIBRARY_PATH, and then an older library there is found first."""
    image = mpich_image().add("/usr/lib64/libcxi.so.1", elf("libcxi.so.1", verdef=["CXI_1", "CXI_2"]), cached=True)
    image.add("/opt/conda/lib/libmpi.so.12", elf("libmpi.so.12", needed=["libc.so.6"], exports=world.MPICH))
    image.add("/opt/conda/lib/libcxi.so.1", elf("libcxi.so.1", verdef=["CXI_1"]))
    mpi = world.site_mpi(needed=["libcxi.so.1", "libc.so.6"])
    node = inventory(profile(replace(mpi, elf=replace(mpi.elf, verneed=(("libcxi.so.1", ("CXI_2",)),)))))
    made, (found,) = look(image.facts(APP), node)
    assert made.verdict == REFUSED
    assert fault(found) == Edge("/opt/conda/lib/libmpi.so.12", "libcxi.so.1", "/opt/conda/lib/libcxi.so.1", "lacks CXI_2")


def test_the_c_runtime_is_told_apart() -> None:
    facts = test_runtime.old_image().facts(APP)
    node = replace(inventory(test_runtime.SITE, site=Site(c_runtime="host")), c_runtime=test_runtime.runtime())
    made, (found,) = look(facts, node)
    assert made.verdict == PROVED
    said = providers(found)
    assert said["libc.so.6"] == (RUNTIME, f"{test_runtime.GLIBC}/libc.so.6")
    assert said[LOADER] == (RUNTIME, f"{test_runtime.GLIBC}/ld-linux-x86-64.so.2")
    assert said["libmpi.so.12"] == (HOST, SITE_MPI)
    assert not found.faults


def test_the_c_runtime_searches_by_its_own_release() -> None:
    """Legacy subdirectories, which glibc 2.31 prefers, went with 2.37."""
    lib, haswell = "/usr/lib64/libz.so.1", "/usr/lib64/haswell/libz.so.1"
    image = test_runtime.old_image().add(lib, elf("libz.so.1")).add(haswell, elf("libz.so.1"))
    image.add(APP, world.program("libmpi.so.12", "libz.so.1"))
    facts = replace(image.facts(APP), hwcaps=("x86_64", "haswell"))
    node = replace(inventory(test_runtime.SITE, site=Site(c_runtime="host")), c_runtime=test_runtime.runtime())
    made, (found,) = look(facts, node)
    assert made.verdict == PROVED and not found.faults
    assert providers(found)["libz.so.1"] == (IMAGE, lib)
    assert providers(only(facts, request=Request()))["libz.so.1"] == (IMAGE, haswell)


def test_programs_that_were_looked_at_instead() -> None:
    image = mpich_image().add("/bin/sh", world.program())
    facts = replace(image.facts("/bin/sh", entrypoint="script"), consumers=(APP,))
    made, maps = look(facts)
    assert made.verdict == UNPROVED
    assert [(one.program, HOST in {link.provider for link in one.objects}) for one in maps] == [("/bin/sh", False), (APP, True)]


def test_a_plan_that_came_nowhere() -> None:
    made, (found,) = look(mpich_image().facts(APP), inventory(profile(world.site_mpi(), mpi="openmpi")))
    assert made.verdict == REFUSED and made.tried is None
    assert {link.provider for link in found.objects} == {IMAGE} and not found.faults


def test_a_default_that_does_not_fit_shows_what_was_tried() -> None:
    node = inventory(profile(world.site_mpi(glibc="GLIBC_2.38"), world.site_fabric()))
    made, (found,) = look(mpich_image(31).facts(APP), node, Request(mpi=Wish("auto", "site default", False)))
    assert made.verdict == NOTHING
    assert fault(found).fault == "lacks GLIBC_2.38"


def test_musl_is_not_simulated() -> None:
    image = Image()
    image.add(APP, elf(needed=["libc.musl-x86_64.so.1"], interp="/lib/ld-musl-x86_64.so.1"))
    found: Optional[LinkMap] = only(image.facts(APP), request=Request())
    assert found is not None and "musl" in found.trouble and [link.path for link in found.objects] == [APP]


def test_a_program_that_is_no_elf_file() -> None:
    found = only(mpich_image().facts("/bin/none"), request=Request())
    assert found.trouble == "/bin/none is not an ELF program"


#: Refusals that are a dependency which fails.
OF_AN_EDGE = {"glibc-too-old", "version-missing", "dependency-missing", "dependency-broken", "mpi-symbols"}


@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
@given(test_plan.images(), test_plan.nodes())
def test_it_says_what_the_proof_said(facts: ImageFacts, node: Inventory) -> None:
    """Where the plan is proved nothing fails; where a dependency was the reason to refuse, one that fails is shown."""
    made, maps = look(facts, node)
    if made.verdict == PROVED:
        assert not any(one.faults for one in maps)
        assert any(link.provider == HOST for one in maps for link in one.objects)
    first = next((finding.code for finding in made.findings if finding.severity == ERROR), "")
    if made.verdict == REFUSED and first in OF_AN_EDGE:
        assert any(one.faults for one in maps)
    for one in maps:
        paths = {link.path for link in one.objects}
        assert all(edge.needed_by in paths and edge.path in {*paths, ""} for edge in one.edges)
        assert len(links.order(one)) == len(one.objects)
