"""A newer release in the image than the node's: whose is used, and what leads there."""

from __future__ import annotations

import dataclasses
from typing import Optional, Sequence, Tuple

import pytest

from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.decide.request import GPU, request
from oci_hpc_hooks.model import ERROR, NOTE, PROVED, REFUSED, UNPROVED, WARNING, Directory, ElfFacts, ImageFacts, Newer, NewerLibrary, Plan
from tests.unit.decide.world import Image, container, elf, host, inventory, program
from tests.unit.decide.world import gpu as stack

PATTERN = "/usr/local/acme/compat/libacme.so.*.*"
FOLDER = "/usr/local/acme/compat"
HOST = "/usr/lib64/libacme.so.1"


def driver(name: str, path: str = "") -> ElfFacts:
    return elf(name, needed=("libc.so.6",))


def node(release: str = "535.261.03") -> object:
    acme = dataclasses.replace(host(HOST, driver("libacme.so.1"), "replace"), real=f"/usr/lib64/libacme.so.{release}",
                               replaces=("libacme.so",))
    return inventory(dataclasses.replace(stack(acme, host("/usr/lib64/libjit.so.1", driver("libjit.so.1"), "replace"),
                                               host("/usr/lib64/libml.so.1", driver("libml.so.1"), "replace")), newer=Newer(PATTERN)))


def image(release: str = "550.54", supports: Optional[Tuple[int, ...]] = None, *, machine: int = 62,
          also: Sequence[str] = ()) -> ImageFacts:
    made = Image(36)
    found = []
    for one in (release, *also):
        made.add(f"{FOLDER}/libacme.so.{one}", elf("libacme.so.1", needed=("libc.so.6",), machine=machine))
        found.append(NewerLibrary(f"{FOLDER}/libacme.so.{one}", supports))
    made.link(f"{FOLDER}/libacme.so.1", f"{FOLDER}/libacme.so.{release}")
    made.add(f"{FOLDER}/libjit.so.1", driver("libjit.so.1"))
    facts = made.add("/usr/bin/compute", program("libacme.so.1")).facts("/usr/bin/compute")
    return dataclasses.replace(facts, newer={PATTERN: tuple(found)})


def decide(facts: ImageFacts, release: str = "535.261.03") -> Plan:
    where = container(annotations={GPU: "acme"})
    here = node(release)
    return plan(where, request(where, here.site), here, facts)  # type: ignore[attr-defined, arg-type]


def leads(made: Plan, name: str) -> str:
    assert made.cache is not None
    return next((entry.path for entry in made.cache.entries if entry.name == name), "")


@pytest.mark.parametrize(("release", "supports", "host_release", "images", "says"), [
    ("550.54", None, "535.261.03", True, "without a note"),
    ("550.54", (470, 535), "535.261.03", True, "meant for 470, 535"),
    ("550.54", (470, 525), "535.261.03", False, "by its note it is meant for drivers 470, 525"),
    ("550.54", (), "535.261.03", False, "of no release"),
    ("535.300", None, "535.261.03", False, "it is no newer"),
    ("535.300", (535,), "535.261.03", False, "it is no newer"),
    ("470.82", None, "535.261.03", False, "it is no newer"),
    ("1000.1", None, "999.1", True, "newer"),  # by number, not by text
    ("550.54", None, "535.1", False, "it is for another machine"),
])
def test_whose_is_used(release: str, supports: Optional[Tuple[int, ...]], host_release: str, images: bool, says: str) -> None:
    made = decide(image(release, supports, machine=183 if "machine" in says else 62), host_release)
    assert made.verdict in (PROVED, UNPROVED)
    (told,) = [finding for finding in made.findings if finding.code == "newer-in-image"]
    assert says in told.what and f"{FOLDER}/libacme.so.{release}" in told.what
    sources = {bind.source for bind in (*made.tree, *made.in_place)}
    assert not [bind for bind in made.in_place if bind.target.startswith(FOLDER)] or not images
    ours = [source for source in sources if "libacme" in source]
    if images:
        assert not ours and leads(made, "libacme.so.1") == f"{FOLDER}/libacme.so.1" and told.severity == NOTE
        assert leads(made, "libjit.so.1") == f"{FOLDER}/libjit.so.1"
    else:
        assert ours and leads(made, "libacme.so.1") == f"/dev/.oci-hpc{HOST}"
        assert (told.severity == WARNING) == ("meant for" in told.what or "of no" in told.what or "machine" in told.what)
    assert leads(made, "libml.so.1") == "/dev/.oci-hpc/usr/lib64/libml.so.1", "what the image has no newer one of is the site's"


def test_the_program_is_proved_to_load_it() -> None:
    made = decide(image())
    assert made.verdict == PROVED
    assert made.drop_in is not None and made.drop_in.text.splitlines()[1] == FOLDER, "an ldconfig inside leads there too"


def test_a_program_that_would_load_a_third_one_is_refused() -> None:
    """A copy by DT_RPATH is neither the site's nor the newer one."""
    facts = image()
    third = "/opt/app/lib/libacme.so.1"
    facts = dataclasses.replace(
        facts, files={**facts.files, third: dataclasses.replace(facts.files[f"{FOLDER}/libacme.so.550.54"], path=third),
                      "/usr/bin/compute": dataclasses.replace(facts.files["/usr/bin/compute"],
                                                              elf=program("libacme.so.1", rpath="/opt/app/lib"))},
        resolved={**facts.resolved, third: third}, directories=(*facts.directories, Directory("/opt/app/lib", 1, 1, ("libacme.so.1",))))
    made = decide(facts)
    assert made.verdict == REFUSED
    assert [finding.code for finding in made.findings if finding.severity == ERROR] == ["not-taken"] and third in made.findings[-1].what


def test_several() -> None:
    (told,) = [finding for finding in decide(image(also=["560.1"])).findings if finding.code == "newer-in-image"]
    assert "2 libraries fit" in told.what and told.severity == NOTE


def test_an_image_without_any() -> None:
    facts = dataclasses.replace(image(), newer={PATTERN: ()})
    assert not [finding for finding in decide(facts).findings if finding.code == "newer-in-image"]
