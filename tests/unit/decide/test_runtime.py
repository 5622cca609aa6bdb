"""Step 5 of the ladder: the site's C runtime over an image's that is too old."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Optional, Sequence

import pytest

from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.elf import loader
from oci_hpc_hooks.model import (
    ERROR,
    NOTE,
    PROVED,
    REFUSED,
    WARNING,
    Bystanders,
    Finding,
    ImageFacts,
    Plan,
    Request,
    ResolvedProfile,
    Site,
    Wish,
)
from tests.unit.decide import world
from tests.unit.decide.world import APP, IMAGE_MPI, LIBC, LOADER, Image, codes, container, elf, glibc_versions, mpich_image, profile

WANTED = Request(mpi=Wish("mpich", "label org.supercontainers.mpi=mpich", True))
SITE = profile(world.site_mpi(glibc="GLIBC_2.38"), world.site_fabric())
GLIBC = "/opt/glibc/lib"
COPY = "/opt/old/libc.so.6"


def runtime(glibc: int = 41, *, problems: Sequence[str] = (), without: Sequence[str] = ()) -> ResolvedProfile:
    libraries = [
        world.host(f"{GLIBC}/ld-linux-x86-64.so.2", elf("ld-linux-x86-64.so.2", verdef=["GLIBC_2.3", "GLIBC_PRIVATE"]), "runtime"),
        world.host(f"{GLIBC}/libc.so.6", elf("libc.so.6", needed=["ld-linux-x86-64.so.2"], verdef=glibc_versions(glibc), exports=["malloc"],
                                             verneed={"ld-linux-x86-64.so.2": ["GLIBC_PRIVATE"]}), "runtime"),
        world.host(f"{GLIBC}/libm.so.6", elf("libm.so.6", verdef=["GLIBC_2.2.5", "GLIBC_2.29", "GLIBC_2.38"]), "runtime"),
    ]
    return ResolvedProfile("c-runtime", {}, GLIBC, tuple(item for item in libraries if item.name not in without), problems=tuple(problems))


def decide(facts: ImageFacts, set_: Optional[ResolvedProfile]) -> Plan:
    node = world.inventory(SITE, site=Site(c_runtime="host" if set_ else "none"))
    return plan(container(), WANTED, replace(node, c_runtime=set_), facts)


def old_image() -> Image:
    return mpich_image(31).add("/lib64/libm.so.6", elf("libm.so.6", verdef=["GLIBC_2.2.5", "GLIBC_2.29"]))


def error(made: Plan) -> str:
    assert made.verdict == REFUSED and not made.in_place
    (told,) = [finding for finding in made.findings if finding.severity == ERROR]
    assert told.code == "glibc-too-old"
    return f"{told.what}. {told.remedy}"


def test_not_without_permission() -> None:
    told = error(decide(old_image().facts(APP), None))
    assert "GLIBC_2.38" in told and "c_runtime in site.json" in told


def test_every_copy_as_one_set() -> None:
    image = old_image().add(COPY, elf("libc.so.6", verdef=glibc_versions(28)))
    made = decide(image.facts(APP, library_path=["/opt/old"]), runtime())
    assert made.verdict == PROVED
    placed = {bind.target: bind.source for bind in made.in_place}
    assert placed == {
        IMAGE_MPI: world.SITE_MPI,
        LOADER: f"{GLIBC}/ld-linux-x86-64.so.2",
        LIBC: f"{GLIBC}/libc.so.6",
        COPY: f"{GLIBC}/libc.so.6",
        "/lib64/libm.so.6": f"{GLIBC}/libm.so.6",
    }
    assert {bind.target: bind.over for bind in made.in_place} == {path: world.file_id(path) for path in placed}
    assert not [bind for bind in made.tree if bind.source.startswith(GLIBC)]
    assert made.cache is not None and not [entry for entry in made.cache.entries if entry.name.startswith(("libc.", "libm.", "ld-"))]
    (told,) = [finding for finding in made.findings if finding.code == "c-runtime"]
    assert told.severity == NOTE and "glibc 2.31 is replaced by the site's 2.41" in told.what and GLIBC in told.what


def test_what_only_the_old_loader_finds_is_lost() -> None:
    """glibc 2.37 and newer look into no tls directory: a program whose library lies there would not start any more."""
    image = old_image().add("/usr/lib64/tls/libold.so.1", elf("libold.so.1"))
    image.add(APP, world.program("libmpi.so.12", "libold.so.1"))
    facts = image.facts(APP, looked_at=["/usr/lib64/tls"])
    folders = tuple(replace(folder, names=(*folder.names, "tls")) if folder.path == "/usr/lib64" else folder
                    for folder in facts.directories)
    told = error(decide(replace(facts, directories=folders), runtime()))
    assert "libold.so.1" in told


def test_only_when_nothing_less_will_do() -> None:
    made = decide(mpich_image(38).facts(APP), runtime())
    assert made.verdict == PROVED and "c-runtime" not in codes(made)
    assert [bind.target for bind in made.in_place] == [IMAGE_MPI]


def test_links_lead_to_one_file() -> None:
    image = old_image().remove(LOADER).add("/lib64/ld-2.31.so", elf("ld-linux-x86-64.so.2")).link(LOADER, "/lib64/ld-2.31.so")
    made = decide(image.facts(APP), runtime())
    assert made.verdict == PROVED
    assert "/lib64/ld-2.31.so" in {bind.target for bind in made.in_place}


@pytest.mark.parametrize(("image", "set_", "says"), [
    (old_image(), runtime(problems=["/opt/glibc/lib has no loader"]), "/opt/glibc/lib has no loader"),
    (old_image(), runtime(without=["ld-linux-x86-64.so.2"]), f"no counterpart of the image's {LOADER}"),
    (old_image(), runtime(37), "is too old as well"),
    (old_image(), runtime(30), "its libc.so.6 lacks GLIBC_2.31"),
    (old_image().add("/lib64/libm.so.6", elf("libm.so.6", verdef=["GLIBC_2.99"])), runtime(), "its libm.so.6 lacks GLIBC_2.99"),
], ids=["incomplete", "no loader", "too old as well", "older than the image", "a member older than the image's"])
def test_a_set_that_does_not_fit(image: Image, set_: ResolvedProfile, says: str) -> None:
    told = error(decide(image.facts(APP), set_))
    assert says in told and "GLIBC_2.38" in told and "libmpi.so.12" in told


def test_what_has_no_number() -> None:
    """GLIBC_ABI_DT_RELR (glibc 2.36) is a version without one."""
    node = world.inventory(profile(world.site_mpi(glibc="GLIBC_ABI_DT_RELR"), world.site_fabric()))
    told = error(plan(container(), WANTED, node, old_image().facts(APP)))
    assert "needs GLIBC_ABI_DT_RELR of libc.so.6" in told and "a newer glibc" in told
    new = runtime()
    libraries = [replace(item, elf=replace(item.elf, verdef=(*item.elf.verdef, "GLIBC_ABI_DT_RELR"))) for item in new.libraries]
    node = replace(node, c_runtime=replace(new, libraries=tuple(libraries)))
    assert plan(container(), WANTED, node, old_image().facts(APP)).verdict == PROVED


def test_another_librarys_version_is_told_as_ever() -> None:
    mpi = world.host(world.SITE_MPI, elf("libmpi.so.12", needed=["libz.so.1", "libc.so.6"], exports=world.MPICH,
                                         verneed={"libz.so.1": ["ZLIB_9"]}), "replace")
    image = old_image().add("/usr/lib64/libz.so.1", elf("libz.so.1", verdef=["ZLIB_1"]), cached=True)
    node = replace(world.inventory(profile(mpi)), c_runtime=runtime())
    made = plan(container(), WANTED, node, image.facts(APP))
    assert made.verdict == REFUSED
    assert codes(made) == ["version-missing"] and "C runtime" not in made.findings[0].what


def with_nss(*imports: str) -> Image:
    """An image whose program loads a library that shares internals with its glibc."""
    image = old_image().add(LIBC, elf("libc.so.6", verdef=glibc_versions(31), exports=["malloc", "__libc_inner"]))
    image.add("/usr/lib64/libinner.so.1", elf("libinner.so.1", needed=["libc.so.6"], verneed={"libc.so.6": ["GLIBC_PRIVATE"]},
                                              imports=imports), cached=True)
    return image.add(APP, world.program("libmpi.so.12", "libinner.so.1"))


def test_what_the_new_libc_lacks_is_refused() -> None:
    told = error(decide(with_nss("malloc", "__libc_inner").facts(APP), runtime()))
    assert "/usr/lib64/libinner.so.1 of the image uses __libc_inner" in told


def test_what_shares_internals_is_told() -> None:
    made = decide(with_nss("malloc").facts(APP), runtime())
    assert made.verdict == PROVED
    (told,) = [finding for finding in made.findings if finding.code == "c-runtime-coupled"]
    assert "/usr/lib64/libinner.so.1" in told.what


@pytest.mark.parametrize("folder", ["/lib64", "/usr/lib64"])
def test_modules_of_the_images_glibc_are_told(folder: str) -> None:
    image = old_image().add(f"{folder}/gconv/EUC-JP.so", elf(""))
    (told,) = [finding for finding in decide(image.facts(APP), runtime()).findings if finding.code == "c-runtime-coupled"]
    assert f"{folder}/gconv" in told.what


def noticed(around: Bystanders, *, old: int = 31, new: int = 41) -> List[Finding]:
    facts = replace(mpich_image(old).add("/lib64/libm.so.6", elf("libm.so.6")).facts(APP), bystanders=around)
    node = world.inventory(profile(world.site_mpi(glibc=f"GLIBC_2.{new}"), world.site_fabric()), site=Site(c_runtime="host"))
    made = plan(container(), WANTED, replace(node, c_runtime=runtime(new)), facts)
    assert made.verdict == PROVED
    return [finding for finding in made.findings if finding.code.startswith("c-runtime-")]


def test_an_executable_stack_is_told_where_it_is_refused() -> None:
    around = Bystanders(execstack=("/lib64/libx.so", "/lib64/liby.so"))
    (told,) = noticed(around)
    assert (told.severity, told.code, told.who) == (WARNING, "c-runtime-execstack", "user")
    assert "/lib64/libx.so and 1 more" in told.what and "GLIBC_TUNABLES=glibc.rtld.execstack=2" in told.remedy
    assert not noticed(around, new=40)


def test_static_programs_with_old_nss_are_told() -> None:
    (told,) = noticed(Bystanders(static_nss=("/bin/fixed",)))
    assert (told.severity, told.code) == (WARNING, "c-runtime-static") and told.what.startswith("/bin/fixed: ")


@pytest.mark.parametrize(("linker", "ldd", "old", "says"), [
    ("/usr/bin/ld", "", 31, ["/usr/bin/ld links"]),
    ("/usr/bin/ld", "/usr/bin/ldd", 31, ["/usr/bin/ld links", "/usr/bin/ldd calls"]),
    ("", "/usr/bin/ldd", 31, ["/usr/bin/ldd calls"]),
    ("", "/usr/bin/ldd", 36, []), ("/usr/bin/ld", "/usr/bin/ldd", 36, ["/usr/bin/ld links"]),
])
def test_tools_are_told(linker: str, ldd: str, old: int, says: List[str]) -> None:
    told = [finding.what for finding in noticed(Bystanders(linker=linker, ldd=ldd), old=old)]
    assert len(told) == bool(says)
    assert all(words in told[0] for words in says) and (not told or told[0].count(";") == len(says) - 1)


@pytest.mark.parametrize(("minor", "told"), [(41, True), (40, False)])
def test_a_module_that_cannot_be_opened(minor: int, told: bool) -> None:
    """What the program of the command line loads when it starts is not concerned, whatever the image's glibc is."""
    image = mpich_image(minor).add("/usr/lib64/libold.so.1", replace(elf("libold.so.1"), execstack=True), cached=True)
    module = "/usr/lib64/python3/MPI.so"
    image.add(module, elf("MPI.so", needed=["libmpi.so.12", "libold.so.1"]))
    image.add(APP, world.program("libmpi.so.12", "libold.so.1"))
    asleep = image.add("/usr/bin/sleep", world.program()).facts("/usr/bin/sleep")
    asked = container("/usr/bin/sleep")
    node = world.inventory(profile(world.site_mpi(), world.site_fabric()))
    made = plan(asked, WANTED, node, replace(asleep, consumers=(APP, module)))
    assert ("consumer-execstack" in codes(made)) == told
    assert plan(container(), WANTED, node, image.facts(APP)).verdict == PROVED


def test_every_directory_with_a_copy_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = set()
    simulate = loader.simulate

    def watch(program: str, view: loader.View, search: loader.Search, opened: Sequence[str] = ()) -> loader.LinkMap:
        searched.add(search.library_path[:1])
        return simulate(program, view, search, opened)

    monkeypatch.setattr(loader, "simulate", watch)
    decide(old_image().add(COPY, elf("libc.so.6", verdef=glibc_versions(28))).facts(APP), runtime())
    assert {("/opt/old",), ("/lib64",), ("/usr/lib64",), ()} <= searched
