"""The loader's cache as a file of the container's own: when, with which entries, and what ldconfig would make of it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional

import pytest

from oci_hpc_hooks.decide import loader_cache
from oci_hpc_hooks.decide.choice import Choice, choose
from oci_hpc_hooks.decide.plan import TREE_IN_DEV, TREE_IN_ROOTFS, plan
from oci_hpc_hooks.decide.request import request
from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.model import PROVED, CacheEntry, Container, ImageFacts, Inventory, LdCache, Plan, Site
from tests.unit.decide import world
from tests.unit.decide.world import APP, IMAGE_MPI, MPICH, OPENMPI, SITE_FABRIC, SITE_MPI, Image, codes, elf, program
from tests.unit.elf.elf_bed import build, cache_of, facts_of
from tests.unit.test_image import STUB, Tree

NODE = world.inventory(world.profile(world.site_mpi(), world.site_fabric()))
LABELS = {"org.supercontainers.mpi": "mpich"}
FLAGS = 0x303


def decide(facts: ImageFacts, *, node: Inventory = NODE, where: Optional[Container] = None) -> Plan:
    container = replace(where or world.container(), labels=LABELS)
    return plan(container, request(container, node.site), node, facts)


def paths(made: Plan, name: str) -> list[str]:
    assert made.cache is not None
    return [entry.path for entry in made.cache.entries if entry.name == name]


def found(made: Plan, name: str) -> str:
    assert made.cache is not None
    entry = ldcache.lookup(made.cache, name, FLAGS, ())
    return entry.path if entry else ""


# ------------------------------------------------------------------------------------------------------------------- which way

def test_a_file_with_a_line_for_ldconfig() -> None:
    made = decide(world.mpich_image().facts(APP))
    assert made.verdict == PROVED
    assert made.drop_in is not None and made.drop_in.path == "/etc/ld.so.conf.d/zz-oci-hpc-hooks.conf"
    assert made.drop_in.rests_on.path == "/etc/ld.so.conf"
    head, *lines = made.drop_in.text.splitlines()
    assert head.startswith("# ") and lines == [f"{TREE_IN_DEV}/opt/site/lib"]
    assert "loader-cache" not in codes(made)


def test_a_site_may_want_it_bound() -> None:
    made = decide(world.mpich_image().facts(APP), node=replace(NODE, site=Site(loader_cache="bind")))
    assert made.verdict == PROVED and made.drop_in is None and made.cache is not None
    assert "loader-cache" not in codes(made)  # as it was wanted


def nix(image: Image) -> ImageFacts:
    return replace(image.facts(APP), cache_path="/nix/etc/ld.so.cache", cache_real="/nix/etc/ld.so.cache")


def linked(image: Image) -> ImageFacts:
    return replace(image.facts(APP), cache_real="/var/cache/ld.so.cache")


def without_include(image: Image) -> ImageFacts:
    image.drop_ins = ""
    return image.facts(APP)


def with_openmpi(image: Image) -> ImageFacts:
    image.add("/opt/ompi/libmpi.so.12", elf("libmpi.so.12", exports=OPENMPI))
    return image.facts(APP, looked_at=("/opt/ompi",))


def by_alias_alone(image: Image) -> ImageFacts:
    """The program asks for libmpich.so.12, which only the cache leads to, and ldconfig would enter it by the soname of the site's file."""
    image.add("/opt/old/libmpich.so.12", elf("libmpich.so.12", exports=MPICH), cached=True)
    image.add(APP, program("libmpich.so.12", imports=("MPI_Init",)))
    return image.facts(APP, looked_at=("/opt/old",))


BOUND = [
    (nix, "its loader reads /nix/etc/ld.so.cache"),
    (linked, "/etc/ld.so.cache is /var/cache/ld.so.cache"),
    (without_include, "/etc/ld.so.conf includes no directory"),
    (with_openmpi, "/opt/ompi/libmpi.so.12 of another MPI"),
    (by_alias_alone, "libmpich.so.12"),
]


@pytest.mark.parametrize("facts, says", BOUND)
def test_bound_all_the_same(facts: Callable[[Image], ImageFacts], says: str) -> None:
    made = decide(facts(world.mpich_image()))
    assert made.verdict == PROVED and made.drop_in is None and made.cache is not None
    (note,) = [finding for finding in made.findings if finding.code == "loader-cache"]
    assert note.severity == "note" and says in note.what and "ldconfig inside fails" in note.what


@pytest.mark.parametrize("where, says", [
    (world.container(read_only=True), "its root filesystem is read-only"),
    (replace(world.container(), image_id=""), "no engine has made it a layer"),  # somebody's folder: podman run --rootfs, a bundle
])
def test_a_root_that_is_never_written(where: Container, says: str) -> None:
    made = decide(world.mpich_image().facts(APP), where=where)
    assert made.verdict == PROVED and made.drop_in is None
    assert says in next(finding.what for finding in made.findings if finding.code == "loader-cache")


@pytest.mark.parametrize("folder", ["/opt/my lib", "/opt/a#b", "/opt/a=b", "/opt/a,b", "/opt/é", "/opt/a\nb"])
def test_a_path_that_ldconfig_would_misread(folder: str) -> None:
    mpi = replace(world.site_mpi(needed=("libc.so.6",)), path=f"{folder}/libmpi.so.12", real=f"{folder}/libmpi.so.12")
    made = decide(world.mpich_image().facts(APP), node=world.inventory(world.profile(mpi)))
    assert made.verdict == PROVED and made.drop_in is None
    assert "cannot be written into ld.so.conf" in next(finding.what for finding in made.findings if finding.code == "loader-cache")


# --------------------------------------------------------------------------------------------------------------- what stays in it

def test_names_that_the_default_directories_serve_lead_into_the_tree() -> None:
    made = decide(world.mpich_image().facts(APP))
    assert paths(made, "libmpi.so.12") == [TREE_IN_DEV + SITE_MPI]


def elsewhere() -> Image:
    image = Image()
    image.add("/opt/mpi/libmpi.so.12", elf("libmpi.so.12", needed=("libc.so.6",), exports=MPICH), cached=True)
    return image.add(APP, program("libmpi.so.12", imports=("MPI_Init",)))


def test_an_entry_without_which_the_image_would_not_work_any_more_stays() -> None:
    """An image made of the container's layer and started without hooks finds its own library by it; with them, the site's lies there."""
    facts = elsewhere().facts(APP, looked_at=("/opt/mpi",))
    made = decide(facts)
    assert made.verdict == PROVED and made.drop_in is not None
    assert paths(made, "libmpi.so.12") == ["/opt/mpi/libmpi.so.12"] and [bind.target for bind in made.in_place] == ["/opt/mpi/libmpi.so.12"]
    assert paths(made, "libfabric.so.1") == [TREE_IN_DEV + SITE_FABRIC]
    bound = decide(facts, node=replace(NODE, site=Site(loader_cache="bind")))
    assert paths(bound, "libmpi.so.12") == [TREE_IN_DEV + SITE_MPI]


# --------------------------------------------------------------------------------------------------------------- a second start

@pytest.mark.parametrize("image", [world.mpich_image, elsewhere])
def test_the_cache_of_a_start_before_is_not_the_images(image: Callable[[], Image]) -> None:
    facts = image().facts(APP, looked_at=("/opt/mpi",))
    first = decide(facts)
    again = decide(replace(facts, cache=first.cache))
    assert (again.cache, again.in_place, again.verdict) == (first.cache, first.in_place, PROVED)


@pytest.mark.parametrize("tree", [TREE_IN_DEV, TREE_IN_ROOTFS])
def test_what_is_left_of_another_sites_libraries_is_dropped(tree: str) -> None:
    facts = world.mpich_image().facts(APP)
    assert facts.cache is not None
    left = CacheEntry("libgone.so.1", f"{tree}/opt/other/libgone.so.1", FLAGS)
    made = decide(replace(facts, cache=ldcache.merge(facts.cache, [left])))
    assert paths(made, "libgone.so.1") == [] and made.cache == decide(facts).cache


def test_other_entries_are_left_as_they_are() -> None:
    facts = world.mpich_image().facts(APP)
    assert loader_cache.without_ours(facts, (TREE_IN_DEV,)) is facts
    assert facts.cache is not None
    beside = CacheEntry("liba.so.1", f"{TREE_IN_DEV}-not/liba.so.1", FLAGS)
    facts = replace(facts, cache=ldcache.merge(facts.cache, [beside]))
    assert loader_cache.without_ours(facts, (TREE_IN_DEV,)) is facts


# --------------------------------------------------------------------------------------------------------- what ldconfig makes

def test_ldconfig_enters_sonames_and_the_images_directories_first() -> None:
    image = Image()
    image.add("/usr/lib64/libmpich.so.12", elf("libmpich.so.12", exports=MPICH), cached=True)
    image.add("/opt/x/libz.so.1", elf("libz.so.1"), cached=True)
    facts = image.facts(looked_at=("/opt/x",))
    mpi, fabric = world.site_mpi(), world.site_fabric()
    choice = Choice((mpi, fabric), ((mpi, facts.files["/usr/lib64/libmpich.so.12"]),), (), ())
    made = loader_cache.rebuilt(facts, choice, TREE_IN_DEV)
    assert [(entry.name, entry.path) for entry in made.entries] == [
        ("libz.so.1", "/opt/x/libz.so.1"),
        ("libmpi.so.12", TREE_IN_DEV + SITE_MPI),  # of ld.so.conf, so before the default directories
        ("libmpi.so.12", "/usr/lib64/libmpich.so.12"),
        ("libfabric.so.1", TREE_IN_DEV + SITE_FABRIC),
    ]
    assert ldcache.lookup(made, "libmpich.so.12", FLAGS, ()) is None


def test_ldconfig_makes_what_was_foretold(tmp_path: Path) -> None:
    """In a tree of real files, with the site's copied to where they would be bound, the real ldconfig is run, with the drop-in."""
    if os.geteuid() != 0:
        pytest.skip("ldconfig -r needs root")
    tree = Tree(tmp_path)
    made = tmp_path.parent / f"{tmp_path.name}-host"
    made.mkdir()
    for folder, name in (("/opt/old", "libmpich.so.12.1"), ("/usr/lib", "libmpich.so.12.2")):  # by its soname, as Debian has it
        build(tree.at(f"{folder}/{name}"), soname="libmpich.so.12", source=STUB)
        tree.at(f"{folder}/libmpich.so.12").symlink_to(name)
    for folder in ("/opt/old", "/usr/lib", "/opt/z"):
        build(tree.at(f"{folder}/libown.so.1"), soname="libown.so.1", source="void own(void) {}")
    tree.at("/etc/ld.so.conf").write_text("include ld.so.conf.d/*.conf\n")
    tree.at("/etc/ld.so.conf.d/a.conf").write_text("/opt/z\n/opt/old\n")
    ldconfig = ["/sbin/ldconfig", "-r", str(tree.top)]
    subprocess.run(ldconfig, check=True, capture_output=True)
    libraries = []
    for name, needed, source in (("libmpi.so.12", ["libfabric.so.1"], STUB), ("libfabric.so.1", [], "void fi(void) {}")):
        path = made / name
        build(path, soname=name, needed=needed, source=source, stub="void fi(void) {}")
        role, replaces = ("replace", ("libmpich.so.12",)) if name == "libmpi.so.12" else ("dependency", ())
        library = world.host(str(path), facts_of(path, symbols=True), role, replaces=replaces)
        libraries.append(replace(library, path=f"/opt/site/lib/{name}"))
    profile = world.profile(*libraries)
    program = tree.program("/bin/app", "libmpich.so.12")
    facts = tree.gather(program, profiles=[profile])
    choice = choose(facts, profile)
    assert {copy.path for _, copy in choice.in_place} == {"/opt/old/libmpich.so.12.1", "/usr/lib/libmpich.so.12.2"}
    foretold = loader_cache.rebuilt(facts, choice, TREE_IN_DEV)

    for library, copy in choice.in_place:
        tree.copy(library.real, copy.path)
    for library in choice.libraries:
        tree.copy(library.real, TREE_IN_DEV + library.path)
    drop_in = loader_cache.drop_in(facts, choice, TREE_IN_DEV)
    tree.at(drop_in.path).write_text(drop_in.text)
    subprocess.run(ldconfig, check=True, capture_output=True)
    real = cache_of(str(tree.top))
    assert real is not None

    def served(cache: LdCache) -> dict[str, str]:
        """By name, the file that the first entry leads to; which of its links has the honour is no matter."""
        first: dict[str, str] = {}
        for entry in cache.entries:
            first.setdefault(entry.name, os.path.realpath(tree.at(entry.path)))
        return first

    assert served(foretold) == served(real)
    assert served(real)["libmpi.so.12"] == str(tree.at("/opt/old/libmpich.so.12.1")) and "libmpich.so.12" not in served(real)
    assert served(real)["libfabric.so.1"] == str(tree.at(f"{TREE_IN_DEV}/opt/site/lib/libfabric.so.1"))


def test_a_copy_that_ldconfig_would_put_before_the_sites_is_the_sites() -> None:
    made = decide(elsewhere().facts(APP, looked_at=("/opt/mpi",)))
    assert made.drop_in is not None and found(made, "libmpi.so.12") == "/opt/mpi/libmpi.so.12" == made.in_place[0].target


def test_an_image_without_a_cache_gets_a_file_too() -> None:
    image = world.mpich_image()
    image.has_cache, image.cache_real = False, ""
    made = decide(image.facts(APP))
    assert made.verdict == PROVED and made.drop_in is not None and made.cache_over is None
    assert found(made, "libfabric.so.1") == TREE_IN_DEV + SITE_FABRIC and IMAGE_MPI in [bind.target for bind in made.in_place]
