"""The decision, on images and nodes made of facts alone."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Callable, List, Optional, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.decide.plan import TREE_IN_DEV, TREE_IN_ROOTFS, candidates, plan
from oci_hpc_hooks.decide.request import OVERRIDE
from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.model import (
    ERROR,
    NOTE,
    NOTHING,
    PROVED,
    REFUSED,
    UNPROVED,
    WARNING,
    Bind,
    CacheEntry,
    Container,
    Cover,
    ElfFacts,
    Finding,
    HostFile,
    ImageFacts,
    Inventory,
    LdCache,
    Mount,
    Plan,
    Request,
    ResolvedSet,
    Site,
    Wish,
)
from tests.unit.decide import world
from tests.unit.decide.world import (
    APP,
    DEV,
    IMAGE_MPI,
    LIBC,
    MPICH,
    OPENMPI,
    SITE_FABRIC,
    SITE_MPI,
    Image,
    codes,
    container,
    elf,
    file_id,
    glibc_versions,
    host,
    inventory,
    mpich_image,
    profile,
    program,
    site_fabric,
    site_mpi,
)

WANTED = Request(mpi=Wish("mpich", "label org.supercontainers.mpi=mpich", True))
AUTO = Request(mpi=Wish("auto", "site default org.supercontainers.mpi=auto", False))
NODE = inventory(profile(site_mpi(), site_fabric()))


def decide(facts: ImageFacts, *, node: Inventory = NODE, request: Request = WANTED, where: Optional[Container] = None) -> Plan:
    return plan(where or container(), request, node, facts)


def only_error(made: Plan) -> Finding:
    assert made.verdict == REFUSED
    assert (made.tree, made.in_place, made.cache, made.cache_target) == ((), (), None, "")
    (error,) = [finding for finding in made.findings if finding.severity == ERROR]
    assert error.origin == "label org.supercontainers.mpi=mpich"
    assert OVERRIDE in error.remedy
    assert error.who in ("user", "image author", "site admin")
    return error


# ------------------------------------------------------------------------------------------------------------- what is asked

@pytest.mark.parametrize("request_", [Request(), Request(mpi=Wish("none", "annotation", True))])
def test_nothing_asked_nothing_done(request_: Request) -> None:
    assert decide(mpich_image().facts(APP), request=request_) == Plan(NOTHING, ())


def test_findings_of_the_request_are_kept() -> None:
    note = Finding(NOTE, "mpi-kept", "x")
    assert decide(mpich_image().facts(), request=Request(mpi=Wish("none", "", True), findings=(note,))).findings == (note,)


def test_candidates_are_in_the_sites_order() -> None:
    one, two, other = profile(name="one"), profile(name="two"), profile(name="other", mpi="openmpi")
    node = inventory(two, other, one)
    assert candidates(WANTED, node) == (two, one)
    assert candidates(AUTO, node) == (two, other, one)
    assert candidates(Request(), node) == ()


# -------------------------------------------------------------------------------------------------------------------- proved

def test_proved() -> None:
    made = decide(mpich_image().facts(APP))
    assert (made.verdict, made.profile, made.tree_root, made.tree_make) == (PROVED, "site-mpich", TREE_IN_DEV, "dev")
    assert [(bind.source, bind.target, bind.over) for bind in made.tree] == [
        (SITE_MPI, SITE_MPI[1:], None), (SITE_FABRIC, SITE_FABRIC[1:], None)]
    assert [(bind.source, bind.target, bind.over) for bind in made.in_place] == [(SITE_MPI, IMAGE_MPI, file_id(IMAGE_MPI))]
    assert (made.cache_target, made.cache_over) == ("/etc/ld.so.cache", file_id("/etc/ld.so.cache"))
    assert {finding.severity for finding in made.findings} <= {NOTE}


def test_the_cache_leads_into_the_tree_under_every_name() -> None:
    image = mpich_image().add("/usr/lib64/libz.so.1", elf("libz.so.1"), cached=True)
    cache = decide(image.facts(APP)).cache
    assert cache is not None
    flags = ldcache.entry_flags(cache, 62, 2)
    paths = {name: getattr(ldcache.lookup(cache, name, flags, ()), "path", "") for name in (
        "libmpi.so.12", "libmpich.so.12", "libfabric.so.1", "libz.so.1")}
    assert paths == {
        "libmpi.so.12": TREE_IN_DEV + SITE_MPI, "libmpich.so.12": TREE_IN_DEV + SITE_MPI, "libfabric.so.1": TREE_IN_DEV + SITE_FABRIC,
        "libz.so.1": "/usr/lib64/libz.so.1"}
    assert cache.generator == "ldconfig"


def test_an_alias_is_replaced_too() -> None:
    debian = Image().add("/usr/lib64/libmpich.so.12", elf("libmpich.so.12", exports=MPICH), cached=True)
    debian.add(APP, program("libmpich.so.12"))
    made = decide(debian.facts(APP))
    assert made.verdict == PROVED
    assert [bind.target for bind in made.in_place] == ["/usr/lib64/libmpich.so.12"]


def test_a_copy_known_only_by_a_link_of_the_right_name() -> None:
    image = Image().add("/opt/mpi/lib/libmpi-4.2.so", elf("", exports=MPICH))
    image.link("/opt/mpi/lib/libmpi.so.12", "/opt/mpi/lib/libmpi-4.2.so")
    image.add(APP, program("libmpi.so.12", rpath="/opt/mpi/lib"))
    made = decide(image.facts(APP))
    assert made.verdict == PROVED
    assert [bind.target for bind in made.in_place] == ["/opt/mpi/lib/libmpi-4.2.so"]


@pytest.mark.parametrize("arrival", ["rpath", "runpath", "library_path", "default", "cache"])
def test_proved_however_the_copy_is_found(arrival: str) -> None:
    home = "/usr/lib64" if arrival == "default" else "/opt/mpi/lib"
    rpath, runpath = (home if arrival == wanted else "" for wanted in ("rpath", "runpath"))
    image = Image().add(f"{home}/libmpi.so.12", elf("libmpi.so.12", exports=MPICH), cached=arrival == "cache")
    image.add(APP, program("libmpi.so.12", rpath=rpath, runpath=runpath))
    made = decide(image.facts(APP, library_path=(home,) if arrival == "library_path" else ()))
    assert made.verdict == PROVED
    assert [bind.target for bind in made.in_place] == [f"{home}/libmpi.so.12"]


def test_every_copy_is_replaced() -> None:
    image = mpich_image()
    for home in ("/opt/conda/lib", "/opt/spack/mpich/lib"):
        image.add(f"{home}/libmpi.so.12", elf("libmpi.so.12", exports=MPICH))
    made = decide(image.facts(APP))
    assert made.verdict == PROVED
    assert sorted(bind.target for bind in made.in_place) == [
        "/opt/conda/lib/libmpi.so.12", "/opt/spack/mpich/lib/libmpi.so.12", IMAGE_MPI]


def test_an_image_without_any_mpi_gets_one_by_the_cache() -> None:
    made = decide(Image().add(APP, program("libmpi.so.12")).facts(APP))
    assert made.verdict == PROVED
    assert made.in_place == ()
    assert "no-copy" in codes(made)


def test_two_programs() -> None:
    image = mpich_image().add("/usr/bin/mpiexec", program())
    assert decide(image.facts("/usr/bin/mpiexec", APP)).verdict == PROVED


def test_no_cache_in_the_image_and_one_is_made() -> None:
    image = mpich_image()
    image.has_cache, image.cache_real = False, ""
    made = decide(image.facts(APP))
    assert made.verdict == PROVED
    assert (made.cache_target, made.cache_over) == ("/etc/ld.so.cache", None)
    assert made.cache is not None
    assert {entry.name for entry in made.cache.entries} == {"libmpi.so.12", "libmpich.so.12", "libfabric.so.1"}


def test_a_broken_cache_is_replaced() -> None:
    made = decide(broken_cache())
    assert made.verdict == PROVED
    assert (made.cache_target, made.cache_over) == ("/etc/ld.so.cache", file_id("/etc/ld.so.cache"))


def test_what_the_untouched_image_lacks_already_is_not_ours() -> None:
    image = mpich_image().add(APP, program("libmpi.so.12", "libgone.so.3"))
    assert decide(image.facts(APP)).verdict == PROVED


# ------------------------------------------------------------------------------------------------------------------ unproved

def test_a_program_that_loads_no_mpi() -> None:
    image = mpich_image().add("/bin/sleep", program())
    made = decide(image.facts("/bin/sleep"))
    assert made.verdict == UNPROVED
    assert [bind.target for bind in made.in_place] == [IMAGE_MPI]
    assert "unproved" in codes(made)


def test_what_uses_mpi_is_checked_in_place_of_an_unknown_program() -> None:
    image = mpich_image().add("/bin/sleep", program())
    image.add("/usr/bin/good", program("libmpi.so.12", imports=["MPI_Init"]))
    image.add("/usr/bin/new", program("libmpi.so.12", imports=["MPI_Session_init"]))
    image.add("/usr/lib64/libalso.so.1", elf("libalso.so.1", needed=["libmpi.so.12"]))
    facts = dataclasses.replace(image.facts("/bin/sleep"), consumers=("/usr/bin/good", "/usr/bin/new", "/usr/lib64/libalso.so.1"))
    made = decide(facts)
    assert made.verdict == UNPROVED
    (warning,) = [finding for finding in made.findings if finding.severity == WARNING]
    assert (warning.code, warning.who) == ("consumer-mpi-symbols", "image author")
    assert "/usr/bin/new uses MPI_Session_init" in warning.what
    (note,) = [finding for finding in made.findings if finding.code == "consumers"]
    assert "/usr/bin/good and 1 more" in note.what


def test_nothing_uses_mpi() -> None:
    made = decide(mpich_image().add("/bin/sleep", program()).facts("/bin/sleep"))
    (note,) = [finding for finding in made.findings if finding.code == "consumers"]
    assert note.what.startswith("nothing in PATH")


def test_a_static_program_is_warned_about() -> None:
    made = decide(mpich_image().facts(entrypoint="static"))
    assert made.verdict == UNPROVED
    assert [finding.severity for finding in made.findings if finding.code == "static-program"] == [WARNING]


@pytest.mark.parametrize("entrypoint", ["script", "missing"])
def test_no_program_at_all(entrypoint: str) -> None:
    made = decide(mpich_image().facts(entrypoint=entrypoint))
    assert made.verdict == UNPROVED
    assert any(f"entrypoint: {entrypoint}" in finding.what for finding in made.findings)


def test_what_was_not_looked_at_is_not_proved() -> None:
    image = mpich_image().add(APP, program("libmpi.so.12", rpath="/opt/dark"))
    made = decide(image.facts(APP))
    assert made.verdict == UNPROVED
    assert "not-followed" in codes(made)
    assert decide(image.facts(APP, looked_at=["/opt/dark"])).verdict == PROVED


def test_a_site_may_refuse_what_is_not_proved() -> None:
    node = inventory(profile(site_mpi(), site_fabric()), site=Site(unproved="refuse"))
    assert only_error(decide(mpich_image().facts(), node=node)).code == "unproved"
    assert decide(mpich_image().facts(APP), node=node).verdict == PROVED


# ------------------------------------------------------------------------------------------------------------------- refused

def musl() -> ImageFacts:
    image = Image().remove(LIBC).remove(world.LOADER)
    image.loader, image.musl = "", "/lib/ld-musl-x86_64.so.1"
    return image.facts()


def static() -> ImageFacts:
    image = Image().remove(LIBC).remove(world.LOADER)
    image.loader = ""
    return image.facts(entrypoint="static")


def broken_cache() -> ImageFacts:
    image = mpich_image()
    image.has_cache = False
    image.unreadable["/etc/ld.so.cache"] = "ld.so.cache: empty file"
    return image.facts(APP)


def with_fabric(*versions: str) -> ImageFacts:
    return mpich_image().add("/usr/lib64/libfabric.so.1", elf("libfabric.so.1", verdef=versions), cached=True).facts(APP)


REFUSALS: List[Any] = [
    pytest.param(musl, NODE, "musl", "/lib/ld-musl-x86_64.so.1", "image author", id="musl"),
    pytest.param(static, NODE, "no-glibc", "static", "image author", id="no-glibc"),
    pytest.param(lambda: Image(machine=183).facts(), NODE, "machine", "64-bit aarch64", "user", id="machine"),
    pytest.param(lambda: mpich_image(31).facts(APP), inventory(profile(site_mpi(glibc="GLIBC_2.38"), site_fabric())), "glibc-too-old",
                 "needs GLIBC_2.38 of libc.so.6, and the image's glibc is 2.31 (/lib64/libc.so.6)", "image author", id="glibc-too-old"),
    pytest.param(lambda: mpich_image(31).facts(APP), inventory(profile(site_mpi(), site_fabric(glibc="GLIBC_2.34"))), "glibc-too-old",
                 "libfabric.so.1", "image author", id="glibc-too-old for a dependency"),
    pytest.param(
        lambda: mpich_image().add("/lib64/libz.so.1", elf("libz.so.1", verdef=["Z_1"]), cached=True).facts(APP),
        inventory(profile(host(SITE_MPI, elf("libmpi.so.12", needed=["libz.so.1"], verneed={"libz.so.1": ["Z_2"]}, exports=MPICH),
                               "replace"))),
        "version-missing", "needs Z_2 of libz.so.1, which /lib64/libz.so.1 does not define", "image author", id="version-missing"),
    pytest.param(lambda: mpich_image().facts(APP), inventory(profile(site_mpi())), "dependency-missing", "libfabric.so.1", "site admin",
                 id="dependency-missing"),
    pytest.param(lambda: with_fabric("FABRIC_1.0", "FABRIC_9"), NODE, "shared-dependency", "FABRIC_9", "site admin",
                 id="shared-dependency"),
    pytest.param(lambda: mpich_image().facts(APP), inventory(profile(site_mpi(), problems=["no libmpi.so.12"])), "profile-unavailable",
                 "no libmpi.so.12", "site admin", id="profile-unavailable"),
    pytest.param(lambda: mpich_image().facts(APP), inventory(profile(mpi="openmpi")), "no-profile", "this site offers openmpi", "user",
                 id="no-profile"),
    pytest.param(lambda: mpich_image().facts(APP), inventory(), "no-profile", "no MPI", "site admin", id="no profile at all"),
]


@pytest.mark.parametrize(("facts", "node", "code", "says", "who"), REFUSALS)
def test_refused(facts: Callable[[], ImageFacts], node: Inventory, code: str, says: str, who: str) -> None:
    error = only_error(decide(facts(), node=node))
    assert (error.code, error.who) == (code, who)
    assert says in error.what


def endless() -> ImageFacts:
    image = Image().add(APP, program("libmpi.so.12"))
    image.add("/lib64/libz.so.1", elf("libz.so.1", needed=[f"lib{number}.so" for number in range(5000)]), cached=True)
    for number in range(5000):
        image.add(f"/lib64/lib{number}.so", elf(f"lib{number}.so"))
    return image.facts(APP)


def test_an_image_whose_libraries_have_no_end() -> None:
    node = inventory(profile(host(SITE_MPI, elf("libmpi.so.12", needed=["libz.so.1"], exports=MPICH), "replace")))
    assert "4096" in only_error(decide(endless(), node=node)).what


@pytest.mark.parametrize(("facts", "node", "code", "says", "who"), REFUSALS)
def test_only_an_explicit_wish_is_refused(facts: Callable[[], ImageFacts], node: Inventory, code: str, says: str, who: str) -> None:
    wish = Request(mpi=Wish("mpich", "site default org.supercontainers.mpi=mpich", False))
    made = decide(facts(), node=node, request=wish)
    assert made.verdict == NOTHING
    assert code in codes(made)
    assert not [finding for finding in made.findings if finding.severity == ERROR]


def test_who_can_mend_what_is_asked_for_in_vain() -> None:
    """The caller's word may be the wrong one; of a label's, it is the image."""
    offers = inventory(profile(mpi="openmpi"))
    for by_image, says in (False, "ask for openmpi if the image is built for that"), (True, "use an image built for openmpi;"):
        wish = Request(mpi=Wish("mpich", "label org.supercontainers.mpi=mpich", True, by_image))
        assert only_error(decide(mpich_image().facts(APP), node=offers, request=wish)).remedy.startswith(says)


def test_a_profile_of_the_package_is_not_what_to_mend() -> None:
    found = dataclasses.replace(profile(), problems=("there is no libmpi.so.12 in /nosuch",), source="/usr/lib/oci_hpc_hooks/a.json")
    told = only_error(decide(mpich_image().facts(APP), node=inventory(found)))
    assert told.code == "profile-unavailable" and "site.json" in told.remedy and "/usr/lib" not in told.remedy


@pytest.mark.parametrize(("facts", "node", "code", "says", "who"), REFUSALS)
def test_a_site_may_run_without(facts: Callable[[], ImageFacts], node: Inventory, code: str, says: str, who: str) -> None:
    made = decide(facts(), node=dataclasses.replace(node, site=Site(on_refusal="run-without")))
    assert made.verdict == NOTHING
    assert code in codes(made)
    assert (made.tree, made.in_place) == ((), ())


def test_no_place_for_the_tree() -> None:
    facts = mpich_image().facts(APP)
    assert only_error(decide(facts, where=container(mounts=[], read_only=True))).code == "no-place"


def test_programs_of_two_loaders() -> None:
    facts = dataclasses.replace(mpich_image().facts(APP), foreign=(APP,))
    made = decide(facts)
    assert (made.verdict, codes(made)) == (REFUSED, ["other-loader"])
    assert APP in made.findings[0].what and world.LOADER in made.findings[0].what
    facts = mpich_image().add("/usr/bin/sh", world.program()).facts("/usr/bin/sh")
    made = decide(dataclasses.replace(facts, consumers=(APP,), foreign=(APP,)))
    assert made.verdict == UNPROVED and "consumer-other-loader" in codes(made)


def test_a_program_that_would_still_load_the_images_copy() -> None:
    """A program that names its MPI by a path which gather() did not look at is refused, not called proved."""
    other = "/opt/dark/libmpi.so.12"
    image = mpich_image().add(other, elf("libmpi.so.12", exports=OPENMPI)).add(APP, program(other))
    made = decide(image.facts(APP))
    assert made.verdict == REFUSED
    assert only_error(made).code == "family"


def test_the_second_profile_serves_where_the_first_cannot() -> None:
    new = profile(site_mpi(glibc="GLIBC_2.41"), site_fabric(), name="new")
    old = profile(site_mpi(), site_fabric(), name="old")
    made = decide(mpich_image().facts(APP), node=inventory(new, old))
    assert (made.verdict, made.profile) == (PROVED, "old")


def test_all_refusals_are_told() -> None:
    new = profile(site_mpi(glibc="GLIBC_2.41"), site_fabric(), name="new")
    gone = profile(site_mpi(), problems=["gone"], name="gone")
    made = decide(mpich_image().facts(APP), node=inventory(new, gone))
    assert made.verdict == REFUSED
    assert codes(made) == ["glibc-too-old", "profile-unavailable"]


# ---------------------------------------------------------------------------------------------------------------------- auto

def test_auto_without_mpi_in_the_image() -> None:
    made = decide(Image().add(APP, program()).facts(APP), request=AUTO)
    assert (made.verdict, codes(made)) == (NOTHING, ["nothing-to-replace"])


def test_auto_with_mpi_in_the_image() -> None:
    made = decide(mpich_image().facts(APP), request=AUTO)
    assert (made.verdict, made.profile) == (PROVED, "site-mpich")


def test_auto_takes_the_family_that_the_image_has() -> None:
    openmpi = profile(host("/opt/ompi/lib/libmpi.so.40", elf("libmpi.so.40", exports=OPENMPI), "replace"), mpi="openmpi")
    image = Image().add("/usr/lib64/libmpi.so.40", elf("libmpi.so.40", exports=OPENMPI), cached=True).add(APP, program("libmpi.so.40"))
    made = decide(image.facts(APP), node=inventory(profile(site_mpi(), site_fabric()), openmpi), request=AUTO)
    assert (made.verdict, made.profile) == (PROVED, "site-openmpi")


# -------------------------------------------------------------------------------------------------------------- other family

def test_auto_leaves_another_family_of_the_same_soname_alone() -> None:
    """Open MPI 1.10 was a libmpi.so.12 too."""
    image = Image().add(IMAGE_MPI, elf("libmpi.so.12", exports=OPENMPI), cached=True).add(APP, program("libmpi.so.12"))
    made = decide(image.facts(APP), request=AUTO)
    assert (made.verdict, codes(made)) == (NOTHING, ["nothing-to-replace"])


def test_a_wish_for_one_family_is_never_proved_for_a_program_of_another() -> None:
    image = Image().add(IMAGE_MPI, elf("libmpi.so.12", exports=OPENMPI), cached=True)
    image.add(APP, program("libmpi.so.12", imports=OPENMPI))
    assert decide(image.facts(APP)).verdict == REFUSED


def test_a_wish_for_mpich_in_an_image_of_openmpi() -> None:
    image = Image().add("/usr/lib64/libmpi.so.40", elf("libmpi.so.40", exports=OPENMPI), cached=True)
    image.add(APP, program("libmpi.so.40", imports=OPENMPI))
    error = only_error(decide(image.facts(APP)))
    assert "openmpi" in error.what
    assert "/usr/lib64/libmpi.so.40" in error.what


def test_the_copy_of_another_family_is_not_bound_over() -> None:
    image = mpich_image().add("/opt/ompi/libmpi.so.12", elf("libmpi.so.12", exports=OPENMPI))
    made = decide(image.facts(APP))
    assert [bind.target for bind in made.in_place] == [IMAGE_MPI]
    assert "other-family" in codes(made)


def test_symbols_that_the_sites_mpi_does_not_export() -> None:
    image = mpich_image().add(APP, program("libmpi.so.12", imports=["MPI_Init", "MPI_Session_init"]))
    image.add(IMAGE_MPI, elf("libmpi.so.12", exports=(*MPICH, "MPI_Session_init")), cached=True)
    error = only_error(decide(image.facts(APP)))
    assert error.code == "mpi-symbols"
    assert f"{APP} uses MPI_Session_init" in error.what


@pytest.mark.parametrize("brings_its_own", [False, True])
def test_bindings_of_the_image_that_use_its_librarys_inside(brings_its_own: bool) -> None:
    """C++ and Fortran bindings are of one build with the library below them; with the site's own ones there is no question."""
    inside = "MPII_Op_set_cxx"
    bindings = "/usr/lib64/libmpicxx.so.12"
    image = mpich_image().add(IMAGE_MPI, elf("libmpi.so.12", exports=(*MPICH, inside, "no_part_of_it")), cached=True)
    facts = elf("libmpicxx.so.12", needed=("libmpi.so.12",), exports=("_ZN3MPI4Op",), imports=(inside, "no_part_of_it"))
    image.add(bindings, facts, cached=True)
    image.add(APP, program("libmpicxx.so.12", "libmpi.so.12", imports=MPICH))
    own = host("/opt/site/lib/libmpicxx.so.12", elf("libmpicxx.so.12", needed=("libmpi.so.12",), exports=("_ZN3MPI4Op",)), "replace")
    site = profile(site_mpi(), *[own] * brings_its_own, site_fabric())
    made = decide(image.facts(APP), node=inventory(site))
    if brings_its_own:
        assert made.verdict == PROVED
    else:
        assert (made.findings[-1].code, made.verdict) == ("mpi-symbols", REFUSED)
        assert f"{bindings} uses {inside}, which" in made.findings[-1].what


def test_symbols_that_only_the_images_own_library_has() -> None:
    image = mpich_image().add(IMAGE_MPI, elf("libmpi.so.12", exports=(*MPICH, "MPI_Session_init", "MPIX_Query")), cached=True)
    made = decide(image.facts(APP))
    assert made.verdict == PROVED
    (finding,) = [finding for finding in made.findings if finding.code == "mpi-functions"]
    assert finding.severity == WARNING
    assert "lacks 1 MPI functions" in finding.what


# ------------------------------------------------------------------------------------------------------------------- preload

def test_a_preloaded_copy_is_replaced() -> None:
    copy = "/opt/preload/libmpi.so.12"
    image = Image().add(copy, elf("libmpi.so.12", exports=MPICH)).add(APP, program("libmpi.so.12"))
    made = decide(dataclasses.replace(image.facts(APP), preload=(copy,)))
    assert made.verdict == PROVED
    assert [bind.target for bind in made.in_place] == [copy]


def test_a_preloaded_library_of_another_family() -> None:
    image = mpich_image().add("/opt/preload/libmpi.so.40", elf("libmpi.so.40", exports=OPENMPI))
    facts = dataclasses.replace(image.facts(APP), preload=("/opt/preload/libmpi.so.40",))
    assert only_error(decide(facts)).code == "family"


# -------------------------------------------------------------------------------------------------------- shared dependencies

def test_the_sites_newer_dependency_replaces_the_images() -> None:
    made = decide(with_fabric("FABRIC_1.0"))
    assert made.verdict == PROVED
    assert {bind.target for bind in made.in_place} == {IMAGE_MPI, "/usr/lib64/libfabric.so.1"}


def test_the_images_newer_dependency_is_kept() -> None:
    made = decide(with_fabric("FABRIC_1.0", "FABRIC_1.1", "FABRIC_1.7"))
    assert made.verdict == PROVED
    assert [bind.target for bind in made.in_place] == [IMAGE_MPI]
    assert [bind.target for bind in made.tree] == [SITE_MPI[1:]]
    assert made.cache is not None
    assert {entry.path for entry in made.cache.entries if entry.name == "libfabric.so.1"} == {"/usr/lib64/libfabric.so.1"}
    assert "image-kept" in codes(made)


def test_the_images_newer_dependency_in_a_private_folder() -> None:
    """It is kept for who finds it there; the site's MPI would not, and gets its own."""
    image = Image().add("/opt/conda/lib/libmpi.so.12", elf("libmpi.so.12", needed=("libfabric.so.1",), exports=MPICH,
                                                           runpath="$ORIGIN/private"))
    image.add("/opt/conda/lib/private/libfabric.so.1", elf("libfabric.so.1", verdef=("FABRIC_1.0", "FABRIC_1.1", "FABRIC_1.7")))
    image.add(APP, program("libmpi.so.12", imports=("MPI_Init",), runpath="/opt/conda/lib"))
    made = decide(image.facts(APP))
    assert made.verdict == PROVED
    assert [bind.target for bind in made.in_place] == ["/opt/conda/lib/libmpi.so.12"]
    assert [bind.target for bind in made.tree] == [SITE_MPI[1:], SITE_FABRIC[1:]]


def test_a_dependency_without_versions_that_others_use() -> None:
    node = inventory(profile(site_mpi(), site_fabric(verdef=(), exports=("fi_getinfo",))))
    image = mpich_image().add("/usr/lib64/libfabric.so.1", elf("libfabric.so.1", exports=("fi_getinfo", "fi_old")), cached=True)
    image.add("/usr/lib64/libuser.so.1", elf("libuser.so.1", needed=["libfabric.so.1"], imports=["fi_old"]), cached=True)
    error = only_error(decide(image.facts(APP), node=node))
    assert error.code == "shared-dependency"
    assert "libuser.so.1 uses fi_old" in error.what


def test_the_images_dependency_serves_where_the_sites_copy_needs_a_newer_glibc() -> None:
    node = inventory(profile(
        host(SITE_MPI, elf("libmpi.so.12", needed=["libfabric.so.1"], exports=MPICH, verneed={"libfabric.so.1": ["FABRIC_1.0"]}),
             "replace"),
        site_fabric(glibc="GLIBC_2.38")))
    image = mpich_image(36).add("/usr/lib64/libfabric.so.1", elf("libfabric.so.1", verdef=["FABRIC_1.0"]), cached=True)
    assert decide(image.facts(APP), node=node).verdict == PROVED


def test_the_c_runtime_is_never_taken_from_the_node() -> None:
    node = inventory(profile(
        host(SITE_MPI, elf("libmpi.so.12", needed=["libm.so.6"], exports=MPICH), "replace"),
        host("/lib64/libm.so.6", elf("libm.so.6", verdef=["GLIBC_2.38"]))))
    made = decide(mpich_image().add("/lib64/libm.so.6", elf("libm.so.6", verdef=["GLIBC_2.29"])).facts(APP), node=node)
    assert made.verdict == PROVED
    assert {bind.source for bind in (*made.tree, *made.in_place)} == {SITE_MPI}


def test_a_library_to_replace_that_the_image_does_not_have_is_left_out() -> None:
    cxx = host("/opt/site/lib/libmpicxx.so.12", elf("libmpicxx.so.12", needed=["libmpi.so.12"]), "replace")
    node = inventory(profile(site_mpi(), cxx, site_fabric()))
    assert "libmpicxx" not in str(decide(mpich_image().facts(APP), node=node).tree)
    image = mpich_image().add("/usr/lib64/libmpicxx.so.12", elf("libmpicxx.so.12"), cached=True)
    assert "/usr/lib64/libmpicxx.so.12" in [bind.target for bind in decide(image.facts(APP), node=node).in_place]


def test_a_library_to_add_is_added_only_if_the_image_has_none() -> None:
    pmi = host("/opt/site/lib/libpmi2.so.0", elf("libpmi2.so.0"), "add")
    node = inventory(profile(site_mpi(), pmi, site_fabric()))
    assert "opt/site/lib/libpmi2.so.0" in [bind.target for bind in decide(mpich_image().facts(APP), node=node).tree]
    image = mpich_image().add("/usr/lib64/libpmi2.so.0", elf("libpmi2.so.0"), cached=True)
    assert "libpmi2" not in str(decide(image.facts(APP), node=node).tree)


# -------------------------------------------------------------------------------------------------------------------- modules

MODULE = host("/opt/site/lib/mpich/libnet.so", elf("libnet.so"), "plugin")


def test_modules_come_with_their_library() -> None:
    node = inventory(profile(site_mpi(), site_fabric(), plugins=[MODULE]))
    image = mpich_image().add("/usr/lib64/mpich/libnet.so", elf("libnet.so"))
    made = decide(image.facts(APP), node=node)
    (there,) = [folder for folder in image.facts().directories if folder.path == "/usr/lib64/mpich"]
    assert made.modules == (Cover("opt/site/lib/mpich", "/usr/lib64/mpich", there.inode, there.mtime_ns),)
    assert [bind.target for bind in made.tree if bind.source == MODULE.real] == ["opt/site/lib/mpich/libnet.so"]
    assert "modules" in codes(made)


def test_modules_go_over_nothing_where_the_image_has_none() -> None:
    node = inventory(profile(site_mpi(), site_fabric(), plugins=[MODULE]))
    made = decide(mpich_image().facts(APP, looked_at=["/usr/lib64/mpich"]), node=node)
    assert made.modules == ()
    assert "opt/site/lib/mpich/libnet.so" in [bind.target for bind in made.tree]


def test_modules_beside_the_library_cover_nothing() -> None:
    beside = host("/opt/site/lib/mca_net.so", elf("mca_net.so"), "plugin")
    assert decide(mpich_image().facts(APP), node=inventory(profile(site_mpi(), site_fabric(), plugins=[beside]))).modules == ()


def test_a_directory_in_the_tree_is_never_inside_another_bind() -> None:
    inner = host("/opt/site/lib/mpich/more/libmore.so", elf("libmore.so"), "plugin")
    made = decide(mpich_image().facts(APP), node=inventory(profile(site_mpi(), site_fabric(), plugins=[MODULE, inner])))
    assert_tree_is_makeable(made)


def test_a_dependency_that_lies_among_the_modules() -> None:
    inside = host("/opt/site/lib/mpich/libdep.so.1", elf("libdep.so.1"))
    node = inventory(profile(site_mpi(needed=("libfabric.so.1", "libdep.so.1")), site_fabric(), inside, plugins=[MODULE]))
    assert_tree_is_makeable(decide(mpich_image().facts(APP), node=node))


def test_a_profile_that_only_adds() -> None:
    node = inventory(profile(host(SITE_MPI, elf("libmpi.so.12", exports=MPICH), "add")))
    assert decide(mpich_image().facts(APP), node=node).verdict in (NOTHING, REFUSED, UNPROVED)


def assert_tree_is_makeable(made: Plan) -> None:
    """No bind's target is a parent of another's: the one could be neither file nor directory, or would hide the other."""
    assert made.verdict in (PROVED, UNPROVED)
    targets = [bind.target for bind in made.tree]
    assert len(set(targets)) == len(targets)
    assert not [(one, two) for one, two in itertools.permutations(targets, 2) if two.startswith(one + "/")]


# ------------------------------------------------------------------------------------------------------------------- the place

@pytest.mark.parametrize(("mounts", "read_only", "empty", "root", "make"), [
    ([DEV], False, [], TREE_IN_DEV, "dev"),
    ([DEV], True, [], TREE_IN_DEV, "dev"),
    ([Mount("/dev/", "tmpfs", "tmpfs")], True, [], TREE_IN_DEV, "dev"),
    ([], False, [], TREE_IN_ROOTFS, "create"),
    ([Mount("/dev", "bind", "/dev")], False, [], TREE_IN_ROOTFS, "create"),
    ([], True, ["/mnt", "/srv"], "/mnt", ""),
])
def test_where_the_tree_appears(mounts: Sequence[Mount], read_only: bool, empty: Sequence[str], root: str, make: str) -> None:
    made = decide(mpich_image().facts(APP, empty_directories=empty), where=container(mounts=mounts, read_only=read_only))
    assert (made.verdict, made.tree_root, made.tree_make) == (PROVED, root, make)
    assert made.cache is not None
    assert {entry.path for entry in made.cache.entries if entry.name == "libmpi.so.12"} == {root + SITE_MPI}


def test_a_devs_tmpfs_under_the_hosts_dev() -> None:
    made = decide(mpich_image().facts(APP), where=container(mounts=[DEV, Mount("/dev", "bind", "/dev")]))
    assert made.tree_make != "dev"


# ----------------------------------------------------------------------------------------------------------------------- claims

def test_a_label_that_the_files_contradict() -> None:
    wish = dataclasses.replace(WANTED, glibc=Wish("2.31", "label org.supercontainers.glibc=2.31", False))
    made = decide(mpich_image(36).facts(APP), request=wish)
    (finding,) = [finding for finding in made.findings if finding.code == "label-contradicted"]
    assert (finding.severity, finding.who, finding.origin) == (WARNING, "image author", "label org.supercontainers.glibc=2.31")
    assert "2.31" in finding.what
    assert "2.36" in finding.what
    assert made.verdict == PROVED


@pytest.mark.parametrize("claim", ["2.36", "2.36.0", "2.36.9000"])
def test_a_label_that_is_true(claim: str) -> None:
    wish = dataclasses.replace(WANTED, glibc=Wish(claim, "label", False))
    assert "label-contradicted" not in codes(decide(mpich_image(36).facts(APP), request=wish))


# ------------------------------------------------------------------------------------------------------------- for all of them

def test_every_finding_says_where_the_wish_came_from() -> None:
    for facts in (mpich_image().facts(APP), mpich_image().facts(), Image().facts(), musl(), static(), broken_cache()):
        for finding in decide(facts).findings:
            assert finding.origin, finding


def test_the_same_facts_give_the_same_plan() -> None:
    assert decide(mpich_image().facts(APP)) == decide(mpich_image().facts(APP))


NAMES = ["libmpi.so.12", "libmpich.so.12", "libfabric.so.1", "libc.so.6", "libz.so.1", "libmpi.so.40", "", "a/b.so", "../x.so",
         "$ORIGIN/y.so", "/usr/lib64/libmpi.so.12"]
FOLDERS = ["/lib64", "/usr/lib64", "/opt/mpi/lib", "/opt/../opt", "/", "/usr/bin"]
VERSIONS = ["GLIBC_2.17", "GLIBC_2.99", "GLIBC_PRIVATE", "GLIBC_2.²", "FABRIC_1.0", "V", "", "GLIBC_ABI_DT_RELR"]
SYMBOLS = [*MPICH, *OPENMPI, "fi_getinfo", ""]


def some(values: Sequence[str]) -> st.SearchStrategy[Any]:
    return st.lists(st.sampled_from(values) | st.text(max_size=3), max_size=3).map(tuple)


ELVES: st.SearchStrategy[ElfFacts] = st.builds(
    ElfFacts, elf_class=st.sampled_from([2, 2, 2, 1]), little_endian=st.sampled_from([True, True, False]),
    machine=st.sampled_from([62, 62, 62, 183, 4711]), elf_type=st.sampled_from([3, 3, 2]), dynamic=st.sampled_from([True, True, False]),
    interp=st.sampled_from(["", world.LOADER]), soname=st.sampled_from(NAMES), needed=some(NAMES),
    rpath=some([*FOLDERS, "$ORIGIN", "$LIB"]), runpath=some([*FOLDERS, "${ORIGIN}/.."]), nodeflib=st.booleans(),
    verneed=st.lists(st.tuples(st.sampled_from(NAMES), some(VERSIONS)), max_size=2).map(tuple),
    verdef=some(VERSIONS), exports=some(SYMBOLS), imports=some(SYMBOLS))

PATHS = st.builds("{}/{}".format, st.sampled_from(FOLDERS), st.sampled_from(NAMES))


@st.composite
def images(draw: st.DrawFn) -> ImageFacts:
    image = Image(draw(st.sampled_from([17, 36, 41])))
    for path in draw(st.lists(PATHS, max_size=5)):
        image.add(path, draw(ELVES), cached=draw(st.booleans()))
    for path in draw(st.lists(PATHS, max_size=2)):
        image.link(path, draw(PATHS))
    facts = image.facts(*draw(st.lists(PATHS, max_size=2)), library_path=draw(some(FOLDERS)))
    entries = draw(st.lists(st.builds(CacheEntry, st.sampled_from(NAMES), PATHS, st.sampled_from([0x303, 3, -1])), max_size=3))
    return dataclasses.replace(
        facts,
        cache=draw(st.sampled_from([facts.cache, None, LdCache(tuple(entries))])),
        loader=draw(st.sampled_from([world.LOADER, ""])),
        libc=draw(st.sampled_from([facts.libc, None])),
        musl=draw(st.sampled_from(["", "/lib/ld-musl-x86_64.so.1"])),
        makeable=draw(some([f"{folder}/set" for folder in FOLDERS[:4]])))


@st.composite
def nodes(draw: st.DrawFn) -> Inventory:
    def library(role: str, name: str) -> Any:
        return host("/opt/site/lib/" + name, draw(ELVES), role, replaces=draw(some(NAMES)))

    def offer(mpi: str) -> Any:
        roles = ["replace", *draw(st.lists(st.sampled_from(["replace", "add", "dependency"]), max_size=2))]
        names = draw(st.permutations(NAMES[:6]))  # a directory has one file of a name
        return profile(*map(library, roles, names),
                       mpi=mpi, plugins=draw(st.sampled_from([[], [MODULE]])), problems=draw(st.sampled_from([[], ["broken"]])))

    def sets() -> Any:
        path = draw(st.sampled_from(FOLDERS[:4])) + "/set"
        return tuple(draw(st.lists(st.builds(
            ResolvedSet, name=st.just("set"), private=st.sampled_from(["", "V", "GLIBC"]), libraries=st.permutations(NAMES[:6]).map(tuple),
            modules=st.lists(st.builds(host, st.just(f"{path}/libmodule.so"), ELVES, st.just("plugin")), max_size=1).map(tuple),
            files=st.lists(st.builds(HostFile, st.just(f"{path}/x"), st.just(f"{path}/x"), st.just(file_id("x"))), max_size=1).map(tuple),
        ), max_size=1)))

    profiles = [
        dataclasses.replace(offer(mpi), sets=sets(), variants=tuple(
            dataclasses.replace(offer(mpi), sets=sets(), variant=name, glibc=glibc)
            for name, glibc in draw(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "2.9", "2.17"])), max_size=2))
        ))
        for mpi in draw(st.lists(st.sampled_from(["mpich", "openmpi"]), max_size=2))
    ]
    site = Site(on_refusal=draw(st.sampled_from(["refuse", "run-without"])), unproved=draw(st.sampled_from(["run", "refuse"])))
    return inventory(*profiles, site=site)


def parents(path: str) -> List[str]:
    return [path[:index] for index, char in enumerate(path) if char == "/"]


def check_anything(facts: ImageFacts, node: Inventory, value: str, explicit: bool, read_only: bool, with_dev: bool) -> None:
    wish = Request(mpi=Wish(value, "label", explicit), glibc=Wish("2", "label", False))
    made = decide(facts, node=node, request=wish, where=container(read_only=read_only, mounts=[DEV] if with_dev else []))
    actions: Sequence[Bind] = (*made.tree, *made.in_place)
    assert made.verdict in (PROVED, UNPROVED, REFUSED, NOTHING)
    if made.verdict in (REFUSED, NOTHING):
        assert (actions, made.cache, made.cache_target, made.tree_root) == ((), None, "", "")
    else:
        assert actions
        assert made.profile
        assert made.cache is not None
        ldcache.serialize(made.cache)
    if not explicit:
        assert made.verdict != REFUSED
    assert all(bind.over is not None and bind.target.startswith("/") for bind in made.in_place)
    assert all(bind.over is None and not bind.target.startswith("/") for bind in made.tree)
    assert len({bind.target for bind in made.in_place}) == len(made.in_place)
    assert len({cover.target for cover in made.modules}) == len(made.modules)
    assert {cover.folder for cover in made.modules} <= {folder for bind in made.tree for folder in parents(bind.target)}
    assert (made.verdict == REFUSED) == any(finding.severity == ERROR for finding in made.findings)


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(images(), nodes(), st.sampled_from(["mpich", "openmpi", "auto"]), st.booleans(), st.booleans(), st.booleans())
def test_whatever_the_facts_a_plan_comes_out(
    facts: ImageFacts, node: Inventory, value: str, explicit: bool, read_only: bool, with_dev: bool
) -> None:
    check_anything(facts, node, value, explicit, read_only, with_dev)


def test_the_loader_is_in_every_process() -> None:
    """The image's libc needs it, by a name that leads nowhere from the library directories; the kernel has mapped it all the same."""
    image = mpich_image()
    image.add(LIBC, elf("libc.so.6", needed=["ld-linux-x86-64.so.2"], verdef=glibc_versions(36)))
    image.default_dirs = ("/usr/lib64",) * 4
    image.add("/usr/lib64/libc.so.6", image.files[LIBC], cached=True)
    made = decide(image.facts(APP))
    assert made.verdict == PROVED, made.findings


def test_a_file_that_could_not_be_read_this_time() -> None:
    made = decide(dataclasses.replace(mpich_image().facts(APP), missed="/usr/lib/libother.so: [Errno 5] Input/output error"))
    (told,) = [finding for finding in made.findings if finding.code == "image-unread"]
    assert (made.verdict, told.severity, told.who) == (PROVED, WARNING, "site admin")
    assert "/usr/lib/libother.so: [Errno 5] Input/output error; " in told.what


def test_a_refusal_tells_of_that_first() -> None:
    made = decide(dataclasses.replace(mpich_image(glibc=4).facts(APP), missed="/etc/ld.so.conf: [Errno 116] Stale file handle"))
    assert made.verdict == REFUSED
    assert codes(made) == ["image-unread", "glibc-too-old"]
    assert "start the container again" in made.findings[0].remedy
