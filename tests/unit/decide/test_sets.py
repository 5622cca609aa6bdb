"""Step 6 of the ladder: a library, its modules and its configuration come from one side."""

from __future__ import annotations

import dataclasses
from typing import Any, List, Optional, Sequence

import pytest

from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.model import (
    NOTE,
    PROVED,
    REFUSED,
    WARNING,
    Cover,
    Finding,
    HostFile,
    HostLibrary,
    ImageFacts,
    Plan,
    Request,
    ResolvedProfile,
    ResolvedSet,
    Wish,
)
from tests.unit.decide import world
from tests.unit.decide.world import APP, Image, codes, container, elf, file_id, host, mpich_image, profile, program, site_mpi

WANTED = Request(mpi=Wish("mpich", "label org.supercontainers.mpi=mpich", True))
VERBS = "/usr/lib64/libibverbs.so.1"
RDMACM = "/usr/lib64/librdmacm.so.1"
MLX5 = "/usr/lib64/libmlx5.so.1"
PROVIDERS = "/usr/lib64/libibverbs"
CONFIG = "/etc/libibverbs.d"


def versions(newest: int, private: int) -> List[str]:
    return [*(f"IBVERBS_1.{minor}" for minor in range(newest + 1)), f"IBVERBS_PRIVATE_{private}"]


def own(newest: int) -> List[str]:
    return [f"OWN_1.{minor}" for minor in range(newest + 1)]


def member(path: str, *, newest: int = 10, private: int = 34, glibc: str = "GLIBC_2.17", role: str = "dependency") -> HostLibrary:
    """One of the site's: libibverbs itself, or what needs internals of it."""
    if path == VERBS:
        facts = elf("libibverbs.so.1", needed=["libc.so.6"], verdef=versions(newest, private), verneed={"libc.so.6": [glibc]})
    else:
        facts = elf(path.rpartition("/")[2], needed=["libibverbs.so.1", "libc.so.6"], verdef=own(newest),
                    verneed={"libibverbs.so.1": ["IBVERBS_1.1", f"IBVERBS_PRIVATE_{private}"], "libc.so.6": [glibc]})
    return host(path, facts, role)


def provider(name: str = "mlx5", **more: Any) -> HostLibrary:
    return member(f"{PROVIDERS}/lib{name}-rdmav{more.get('private', 34)}.so", role="plugin", **more)


def site(*, newest: int = 10, private: int = 34, glibc: str = "GLIBC_2.17", modules: Optional[Sequence[HostLibrary]] = None,
         in_closure: bool = False, wanted: Sequence[str] = ("libibverbs.so.1",)) -> ResolvedProfile:
    """MPICH whose UCX module, or it itself, needs libibverbs."""
    libraries = [member(path, newest=newest, private=private, glibc=glibc) for path in (VERBS, RDMACM, MLX5)]
    mpi = site_mpi(needed=["libibverbs.so.1", "libc.so.6"] if in_closure else ["libc.so.6"])
    plugin = host("/opt/site/lib/ucx/libuct_ib.so.0", elf("libuct_ib.so.0", needed=[*wanted, "libc.so.6"],
                                                          verneed={"libibverbs.so.1": ["IBVERBS_1.1"]}), "plugin")
    one = ResolvedSet(
        "verbs", "IBVERBS_PRIVATE_", ("libibverbs.so.1", "librdmacm.so.1", "libmlx5.so.1", "libmlx4.so.1"),
        tuple([provider(private=private, glibc=glibc)] if modules is None else modules),
        (HostFile(f"{CONFIG}/mlx5.driver", f"{CONFIG}/mlx5.driver", file_id("mlx5.driver")),))
    return dataclasses.replace(profile(mpi, *libraries, plugins=[plugin]), sets=(one,))


def with_verbs(image: Image, *, newest: int = 10, private: int = 34, providers: bool = True, folder: str = "/usr/lib64",
               members: Sequence[str] = ("librdmacm.so.1", "libmlx5.so.1")) -> Image:
    """An image with an rdma-core of its own."""
    image.add(f"{folder}/libibverbs.so.1", elf("libibverbs.so.1", needed=["libc.so.6"], verdef=versions(newest, private)), cached=True)
    for name in members:
        needs = {"libibverbs.so.1": ["IBVERBS_1.0", f"IBVERBS_PRIVATE_{private}"]}
        image.add(f"{folder}/{name}", elf(name, needed=["libibverbs.so.1"], verdef=own(newest), verneed=needs), cached=True)
    if providers:
        image.add(f"{folder}/libibverbs/libmlx5-rdmav{private}.so", elf(""))
    return image


def decide(facts: ImageFacts, node: ResolvedProfile, *, makeable: Sequence[str] = (CONFIG,), **more: Any) -> Plan:
    facts = dataclasses.replace(facts, makeable=tuple(makeable))
    return plan(container(), WANTED, world.inventory(node, **more), facts)


def told(made: Plan, severity: str) -> List[Finding]:
    return [finding for finding in made.findings if finding.code == "fabric-set" and finding.severity == severity]


def from_site(made: Plan) -> None:
    """All of the set is there, and the providers have a name in the cache."""
    assert made.verdict == PROVED, made.findings
    assert {VERBS, f"{PROVIDERS}/libmlx5-rdmav34.so", f"{CONFIG}/mlx5.driver"} <= {"/" + bind.target for bind in made.tree}
    assert made.cache is not None
    names = {entry.name: entry.path for entry in made.cache.entries}
    assert names["libibverbs.so.1"] == "/dev/.oci-hpc" + VERBS
    assert names["libmlx5-rdmav34.so"] == f"/dev/.oci-hpc{PROVIDERS}/libmlx5-rdmav34.so"
    (note,) = told(made, NOTE)
    assert note.what == "the verbs set comes from the site: its libraries, modules (1) and files of configuration (1)"


# ------------------------------------------------------------------------------------------------------------------ which side

@pytest.mark.parametrize("in_closure", [True, False])
def test_an_image_without_it(in_closure: bool) -> None:
    made = decide(mpich_image().facts(APP), site(in_closure=in_closure))
    from_site(made)
    assert not told(made, WARNING)
    assert Cover("etc/libibverbs.d", CONFIG, 0, 0) in made.modules
    assert {bind.target for bind in made.in_place} == {world.IMAGE_MPI}


@pytest.mark.parametrize("in_closure", [True, False])
@pytest.mark.parametrize("private", [34, 22])
def test_an_older_one_of_the_image_is_replaced_whole(in_closure: bool, private: int) -> None:
    """Also where the internals have changed: the members that need them are replaced with it, whether the site's MPI needs them or not."""
    made = decide(with_verbs(mpich_image(), newest=8, private=private).facts(APP), site(in_closure=in_closure))
    from_site(made)
    assert {bind.target for bind in made.in_place} == {world.IMAGE_MPI, VERBS, RDMACM, MLX5}
    assert Cover(PROVIDERS[1:], PROVIDERS, 11, 7) in made.modules


@pytest.mark.parametrize("in_closure", [True, False])
@pytest.mark.parametrize("private", [34, 59])
def test_a_newer_one_of_the_image_stays_whole(in_closure: bool, private: int) -> None:
    made = decide(with_verbs(mpich_image(), newest=14, private=private).facts(APP), site(in_closure=in_closure))
    assert made.verdict == PROVED
    assert {bind.target for bind in made.in_place} == {world.IMAGE_MPI}
    assert not [bind for bind in made.tree if "ibverbs" in bind.target] and not made.modules
    (note,) = told(made, NOTE)
    assert note.what == "the image's own libibverbs.so.1 serves both sides: the verbs set stays the image's"
    assert not told(made, WARNING)


def test_a_newer_one_of_the_image_without_providers() -> None:
    made = decide(with_verbs(mpich_image(), newest=14, providers=False).facts(APP), site())
    (warning,) = told(made, WARNING)
    assert f"no modules for it in {PROVIDERS}" in warning.what


def test_a_newer_one_of_the_image_without_a_member() -> None:
    made = decide(with_verbs(mpich_image(), newest=14, members=["libmlx5.so.1"]).facts(APP),
                  site(wanted=["libibverbs.so.1", "librdmacm.so.1"]))
    assert made.verdict == PROVED and not [bind for bind in made.tree if "rdmacm" in bind.target]
    (warning,) = told(made, WARNING)
    assert "no librdmacm.so.1, which modules of the site need" in warning.what


def test_two_copies_of_which_neither_side_serves_all() -> None:
    """One of the image's is newer than the site's, one of its members older."""
    image = with_verbs(mpich_image(), newest=14)
    image.add(RDMACM, elf("librdmacm.so.1", needed=["libibverbs.so.1"], verdef=own(8)))
    node = site()
    ours = dataclasses.replace(node.libraries[2], elf=dataclasses.replace(node.libraries[2].elf, verdef=tuple(own(10))))
    node = dataclasses.replace(node, libraries=(*node.libraries[:2], ours, *node.libraries[3:]))
    made = decide(image.facts(APP), node)
    assert made.verdict == PROVED
    (warning,) = told(made, WARNING)
    assert "libuct_ib.so.0 cannot have the verbs set" in warning.what and "must come from one side" in warning.what
    assert not [bind for bind in made.tree if "ibverbs" in bind.target]
    closure = dataclasses.replace(node, libraries=(site_mpi(needed=["libibverbs.so.1", "libc.so.6"]), *node.libraries[1:]))
    made = decide(image.facts(APP), closure)
    assert made.verdict == REFUSED and codes(made) == ["shared-dependency"]


def test_without_a_set_the_internals_are_compared() -> None:
    """That is what the set is for."""
    image = with_verbs(mpich_image(), newest=8, private=22).facts(APP)
    made = decide(image, dataclasses.replace(site(in_closure=True), sets=()))
    assert made.verdict == REFUSED and codes(made) == ["shared-dependency"]


def test_nothing_of_it_where_nothing_needs_it() -> None:
    node = dataclasses.replace(site(), plugins=())
    made = decide(with_verbs(mpich_image()).facts(APP), node)
    assert made.verdict == PROVED and not [bind for bind in made.tree if "ibverbs" in bind.target]
    assert "fabric-set" not in codes(made) and not made.modules


# ------------------------------------------------------------------------------------------------------------- what does not fit

def test_too_new_for_the_images_glibc_is_told() -> None:
    """Modules are not worth a refusal: without them MPI still runs, on slower ways."""
    made = decide(mpich_image(31).facts(APP), site(glibc="GLIBC_2.33"))
    assert made.verdict == PROVED
    assert {bind.source for bind in made.in_place} == {world.SITE_MPI}
    assert not [bind for bind in made.tree if bind.source.startswith(("/usr", "/etc"))] and not made.modules
    (warning,) = told(made, WARNING)
    assert f"libibverbs.so.1 (the site's {VERBS}) needs a newer glibc than the image's" in warning.what


def test_too_new_for_the_images_glibc_refuses_where_mpi_needs_it() -> None:
    made = decide(mpich_image(31).facts(APP), site(glibc="GLIBC_2.33", in_closure=True))
    assert made.verdict == REFUSED and codes(made) == ["glibc-too-old"]


def test_too_new_for_the_images_glibc_where_the_images_serves() -> None:
    made = decide(with_verbs(mpich_image(31), newest=8).facts(APP), site(glibc="GLIBC_2.33", in_closure=True))
    assert made.verdict == PROVED and {bind.target for bind in made.in_place} == {world.IMAGE_MPI}
    assert "the verbs set stays the image's" in told(made, NOTE)[0].what


def test_a_provider_that_does_not_load_is_told() -> None:
    bad = provider("new", glibc="GLIBC_2.99")
    made = decide(mpich_image().facts(APP), site(modules=[provider(), bad]))
    assert made.verdict == PROVED
    (note,) = [finding for finding in made.findings if finding.code == "module-unfit"]
    assert f"the site's {PROVIDERS}/libnew-rdmav34.so does not load in this image: libnew-rdmav34.so" in note.what
    assert "GLIBC_2.99" in note.what


def test_no_provider_loads() -> None:
    bad = [provider("new", glibc="GLIBC_2.99")]
    made = decide(mpich_image().facts(APP), site(modules=bad, in_closure=True))
    assert made.verdict == REFUSED and codes(made) == ["glibc-too-old"]
    assert "no module of the site's verbs set loads in this image" in made.findings[0].what
    made = decide(mpich_image().facts(APP), site(modules=bad))
    assert made.verdict == PROVED and "needs a newer glibc" in told(made, WARNING)[0].what


def test_a_member_that_only_the_image_has() -> None:
    image = with_verbs(mpich_image(), newest=8, private=22, members=["libmlx4.so.1"])
    made = decide(image.facts(APP), site())
    assert made.verdict == PROVED
    (warning,) = told(made, WARNING)
    assert "/usr/lib64/libmlx4.so.1 of the image needs IBVERBS_PRIVATE_22 of libibverbs.so.1, which the site's lacks" in warning.what
    made = decide(image.add(APP, program("libmpi.so.12", "libmlx4.so.1")).facts(APP), site())
    assert made.verdict == REFUSED and "version-missing" in codes(made)


# ------------------------------------------------------------------------------------------------------------------ directories

def test_directories_of_the_image_are_covered() -> None:
    image = with_verbs(mpich_image(), newest=8).add(f"{CONFIG}/x.so", elf(""))
    made = decide(image.facts(APP), site(), makeable=())
    assert {(cover.folder, cover.target) for cover in made.modules} == {(PROVIDERS[1:], PROVIDERS), (CONFIG[1:], CONFIG)}
    assert all(cover.inode for cover in made.modules) and not told(made, WARNING)


def test_a_directory_that_cannot_be_made() -> None:
    made = decide(mpich_image().facts(APP), site(), makeable=())
    assert made.verdict == PROVED and not made.modules
    (warning,) = told(made, WARNING)
    assert "needs /etc/libibverbs.d, which the image lacks and which cannot be made" in warning.what
    assert "add an empty directory /etc/libibverbs.d to the image" in warning.remedy


def test_directories_of_modules_alone_are_not_made() -> None:
    node = site()
    node = dataclasses.replace(node, sets=(dataclasses.replace(node.sets[0], files=()),))
    made = decide(mpich_image().facts(APP), node, makeable=(PROVIDERS, CONFIG))
    assert made.verdict == PROVED and not made.modules and not told(made, WARNING)
