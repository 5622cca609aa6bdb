"""Step 5 of the ladder: where an image is too old for a profile, its variants come before the site's C runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, List, Optional, Sequence

import pytest

from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.model import ERROR, NOTE, PROVED, REFUSED, Finding, HostLibrary, ImageFacts, Plan, Request, ResolvedProfile, Site, Wish
from tests.unit.decide import world
from tests.unit.decide.test_runtime import runtime
from tests.unit.decide.world import APP, IMAGE_MPI, MPICH, codes, container, elf, host, mpich_image, profile

WANTED = Request(mpi=Wish("mpich", "label org.supercontainers.mpi=mpich", True))


def build(name: str, release: str, *more: HostLibrary, problems: Sequence[str] = (), **mpi: Any) -> ResolvedProfile:
    """A build of the site's MPI that needs this release of glibc, in a directory of its own."""
    facts = elf("libmpi.so.12", needed=mpi.pop("needed", ["libc.so.6"]), exports=mpi.pop("exports", MPICH),
                verneed={"libc.so.6": [f"GLIBC_{release}"], **mpi})
    library = host(f"/opt/{name or 'new'}/libmpi.so.12", facts, "replace", replaces=("libmpich.so.12",))
    libraries = () if problems else (library, *more)
    return replace(profile(*libraries, problems=problems), variant=name, glibc=release)


def decide(facts: ImageFacts, offer: ResolvedProfile, *variants: ResolvedProfile, set_: Optional[ResolvedProfile] = None,
           site: Optional[Site] = None) -> Plan:
    node = world.inventory(replace(offer, variants=variants), site=site)
    return plan(container(), WANTED, replace(node, c_runtime=set_), facts)


def source(made: Plan) -> List[str]:
    return [bind.source for bind in made.in_place if bind.target == IMAGE_MPI]


def told(made: Plan, code: str) -> List[Finding]:
    return [finding for finding in made.findings if finding.code == code]


def test_the_profile_itself_where_it_fits() -> None:
    made = decide(mpich_image(38).facts(APP), build("", "2.38"), build("el7", "2.17"))
    assert made.verdict == PROVED and source(made) == ["/opt/new/libmpi.so.12"]
    assert not {"variant", "variant-unfit"} & {*codes(made)}


def test_a_variant_where_the_image_is_too_old() -> None:
    made = decide(mpich_image(31).facts(APP), build("", "2.38"), build("el7", "2.17"))
    assert made.verdict == PROVED and source(made) == ["/opt/el7/libmpi.so.12"]
    assert made.profile == "site-mpich"
    assert {bind.source for bind in made.tree} == {"/opt/el7/libmpi.so.12"}
    assert {bind.why for bind in made.tree} == {"replace of variant el7 of profile site-mpich"}
    (taken,) = told(made, "variant")
    assert (taken.severity, taken.origin) == (NOTE, WANTED.mpi.origin if WANTED.mpi else "")
    assert taken.what == ("variant el7 of profile site-mpich is taken, which needs glibc 2.17: of the profile itself, libmpi.so.12 "
                          "(the site's /opt/new/libmpi.so.12) needs GLIBC_2.38 of libc.so.6")


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c")])
def test_the_oldest_need_first(order: Sequence[str]) -> None:
    """By number, and whatever the names and their order."""
    builds = {"a": build("a", "2.17"), "b": build("b", "2.9"), "c": build("c", "2.28")}
    made = decide(mpich_image(31).facts(APP), build("", "2.38"), *(builds[name] for name in order))
    assert source(made) == ["/opt/b/libmpi.so.12"]


def test_of_equal_needs_the_first_that_is_named() -> None:
    made = decide(mpich_image(31).facts(APP), build("", "2.38"), build("z", "2.17"), build("a", "2.17"))
    assert source(made) == ["/opt/z/libmpi.so.12"]


def test_a_variant_that_does_not_fit_is_passed_over() -> None:
    gone = build("gone", "", problems=["there is no libmpi.so.12 in /opt/gone"])
    lacks = build("lacks", "2.9", exports=("MPI_Init", "MPIR_Err_return"))
    made = decide(mpich_image(31).facts(APP), build("", "2.38"), build("fits", "2.17"), lacks, gone)
    assert source(made) == ["/opt/fits/libmpi.so.12"]
    first, second = told(made, "variant-unfit")
    assert first.what == "variant gone of profile site-mpich does not help: the scan says: there is no libmpi.so.12 in /opt/gone"
    assert second.what.startswith("variant lacks of profile site-mpich does not help: /usr/bin/app uses MPI_Send, which libmpi.so.12")
    assert codes(made).index("variant-unfit") < codes(made).index("variant")


def test_variants_before_the_c_runtime() -> None:
    made = decide(mpich_image(31).facts(APP), build("", "2.38"), build("el7", "2.17"), set_=runtime())
    assert source(made) == ["/opt/el7/libmpi.so.12"]
    assert "variant" in codes(made) and "c-runtime" not in codes(made)


def test_the_c_runtime_where_no_variant_fits() -> None:
    made = decide(mpich_image(31).facts(APP), build("", "2.38"), build("el9", "2.34"), set_=runtime())
    assert made.verdict == PROVED and source(made) == ["/opt/new/libmpi.so.12"]
    assert {"variant-unfit", "c-runtime"} <= {*codes(made)} and "variant" not in codes(made)


def test_a_refusal_names_what_was_tried() -> None:
    gone = build("gone", "", problems=["there is no libmpi.so.12 in /opt/gone"])
    made = decide(mpich_image(31).facts(APP), build("", "2.38"), build("el9", "2.34"), gone, set_=runtime(37))
    assert made.verdict == REFUSED and not made.tree and not made.in_place
    (error,) = [finding for finding in made.findings if finding.severity == ERROR]
    assert error.code == "glibc-too-old"
    assert error.what.split("; ") == [
        "libmpi.so.12 (the site's /opt/new/libmpi.so.12) needs GLIBC_2.38 of libc.so.6, and the image's glibc is 2.31 (/lib64/libc.so.6)",
        "variant gone of profile site-mpich does not help: the scan says: there is no libmpi.so.12 in /opt/gone",
        "variant el9 of profile site-mpich does not help: libmpi.so.12 (the site's /opt/el9/libmpi.so.12) needs GLIBC_2.34 of libc.so.6",
        "the site's C runtime (/opt/glibc/lib) does not help: it is too old as well",
    ]
    assert "variants in site.json" in error.remedy and error.remedy.count("rebuild the image") == 1


def test_not_for_what_a_variant_cannot_mend() -> None:
    """The wrong family is wrong in every build of it."""
    image = world.Image(36).add(IMAGE_MPI, elf("libmpi.so.12", needed=["libc.so.6"], exports=world.OPENMPI), cached=True)
    image.add(APP, world.program("libmpi.so.12"))
    made = decide(image.facts(APP), build("", "2.17"), build("el7", "2.9"))
    (error,) = [finding for finding in made.findings if finding.severity == ERROR]
    assert error.code == "family" and "variant" not in error.what


def test_a_profile_that_is_not_available_is_mended_not_replaced() -> None:
    made = decide(mpich_image(38).facts(APP), build("", "", problems=["it is gone"]), build("el7", "2.17"))
    assert made.verdict == REFUSED and told(made, "profile-unavailable")


def test_another_library_that_is_too_old() -> None:
    """Versions of other libraries than glibc's, and a dependency that both sides bring."""
    image = mpich_image(38).add("/usr/lib64/libz.so.1", elf("libz.so.1", verdef=["ZLIB_1"]), cached=True)
    new = build("", "2.38", needed=["libz.so.1", "libc.so.6"], **{"libz.so.1": ["ZLIB_9"]})
    made = decide(image.facts(APP), new, build("el7", "2.17", needed=["libz.so.1", "libc.so.6"], **{"libz.so.1": ["ZLIB_1"]}))
    assert made.verdict == PROVED and source(made) == ["/opt/el7/libmpi.so.12"]
    (taken,) = told(made, "variant")
    assert "needs ZLIB_9 of libz.so.1" in taken.what
    other = host("/opt/new/libz.so.1", elf("libz.so.1", verdef=["ZLIB_9"]))
    made = decide(image.facts(APP), replace(new, libraries=(*new.libraries, other)), build("el7", "2.17"))
    assert source(made) == ["/opt/el7/libmpi.so.12"]
    made = decide(image.facts(APP), new, set_=runtime())
    assert made.verdict == REFUSED and told(made, "version-missing") and "C runtime" not in made.findings[0].what


def test_a_default_is_skipped_with_the_same_words() -> None:
    node = world.inventory(replace(build("", "2.38"), variants=(build("el9", "2.34"),)))
    made = plan(container(), Request(mpi=Wish("mpich", "site default", False)), node, mpich_image(31).facts(APP))
    (note,) = told(made, "glibc-too-old")
    assert note.severity == NOTE and "variant el9 of profile site-mpich does not help" in note.what
