"""Fabrics beside or instead of an MPI: what is asked for, how the site's comes (in place of the image's, or modules alone), and why not."""

from __future__ import annotations

import dataclasses
from typing import Mapping, Optional, Sequence, Tuple

import pytest

from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.decide.request import FABRIC, MPI, MPI_MODE, OVERRIDES, override, request
from oci_hpc_hooks.model import (
    ERROR,
    INJECT,
    NOTHING,
    PROVED,
    REFUSED,
    REPLACE,
    Finding,
    HostLibrary,
    ImageFacts,
    Inventory,
    Job,
    Need,
    Plan,
    ResolvedProfile,
    ResolvedSet,
    Site,
)
from tests.unit.decide.world import APP, SITE_FABRIC, Image, codes, container, elf, host, inventory, program

OWN = "/usr/lib64/libfabric.so.1"
TCP = "/opt/site/lib/libfabric/libtcp-fi.so"
PING = "/usr/bin/fi_pingpong"


def versions(newest: int) -> Tuple[str, ...]:
    return tuple(f"FABRIC_1.{minor}" for minor in range(newest + 1))


def ofi(newest: int = 8, *, needs: str = "FABRIC_1.6", glibc: str = "GLIBC_2.17", modules: bool = True,
        separable: bool = True) -> ResolvedProfile:
    """A site's libfabric with one provider as a module."""
    center = host(SITE_FABRIC, elf("libfabric.so.1", needed=("libc.so.6",), verdef=versions(newest), verneed={"libc.so.6": [glibc]}),
                  "replace")
    tcp = host(TCP, elf("libtcp-fi.so", needed=("libfabric.so.1", "libc.so.6"), verneed={"libfabric.so.1": [needs], "libc.so.6": [glibc]}),
               "plugin")
    group = ResolvedSet("libfabric", "", ("libfabric.so.1",), (tcp,) if modules else (), (), separable)
    return ResolvedProfile("libfabric", {"fabric": "libfabric"}, "libfabric.json", (center,), sets=(group,), devices=("/dev/cxi*",),
                           names=("libfabric.so.1",), job=Job(needs=(Need("memlock", "warning"),)))


def image(newest: int = 6, glibc: int = 36, *, uses: str = "FABRIC_1.0") -> Image:
    made = Image(glibc).add(OWN, elf("libfabric.so.1", needed=("libc.so.6",), verdef=versions(newest)), cached=True)
    return made.add(PING, program("libfabric.so.1", verneed={"libfabric.so.1": [uses]}))


def decide(facts: ImageFacts, *profiles: ResolvedProfile, labels: Optional[Mapping[str, str]] = None,
           annotations: Optional[Mapping[str, str]] = None) -> Plan:
    node: Inventory = inventory(*profiles)
    where = container(labels=labels, annotations=annotations or ({} if labels else {FABRIC: "libfabric"}))
    return plan(where, request(where, node.site), node, facts)


def mode(made: Plan) -> str:
    return next((finding.what for finding in made.findings if finding.code == "mode"), "")


def errors(made: Plan) -> Sequence[Finding]:
    assert made.verdict == REFUSED
    return [finding for finding in made.findings if finding.severity == ERROR]


# ----------------------------------------------------------------------------------------------------------- what is asked

@pytest.mark.parametrize(("text", "names"), [
    ("verbs", ("verbs",)), (" InfiniBand+UCX ", ("verbs", "ucx")), ("slingshot,xpmem", ("cxi", "xpmem")), ("ofi", ("libfabric",)),
    ("none", ("none",)), ("cxi+none", ("none",)), ("auto", ("auto",)), ("acme-net", ("acme-net",)),
])
def test_fabrics(text: str, names: Tuple[str, ...]) -> None:
    found = request(container(labels={FABRIC: text}), Site()).stacks
    assert tuple(wish.value for wish in found) == names
    assert all((wish.kind, wish.mode, wish.explicit) == ("fabric", "", wish.value != "auto") for wish in found)


def test_gpus_and_fabrics_are_asked_for_one_by_one() -> None:
    asked = request(container(labels={FABRIC: "cxi", "org.supercontainers.gpu": "rocm"}, annotations={FABRIC: "ucx"}), Site())
    assert [(wish.kind, wish.value, wish.by_image) for wish in asked.stacks] == [("gpu", "rocm", True), ("fabric", "ucx", False)]
    assert override(asked) == f"{OVERRIDES['gpu']} {OVERRIDES['fabric']}"


@pytest.mark.parametrize(("labels", "annotations", "mpi", "fabrics"), [
    ({MPI: "mpich", MPI_MODE: "libfabric_replace"}, {}, "none", [("libfabric", REPLACE)]),
    ({MPI: "mpich", MPI_MODE: "libfabric_inject"}, {}, "none", [("libfabric", INJECT)]),
    ({MPI: "mpich", MPI_MODE: "mpi_system"}, {}, "none", []),
    ({MPI: "mpich", MPI_MODE: "mpi_replace"}, {}, "mpich", []),
    ({MPI: "mpich"}, {MPI_MODE: "libfabric_inject"}, "none", [("libfabric", INJECT)]),
    ({MPI: "mpich", MPI_MODE: "libfabric_inject"}, {MPI: "mpich"}, "mpich", []),
    ({MPI: "mpich", FABRIC: "cxi"}, {MPI_MODE: "libfabric_replace"}, "none", [("cxi", REPLACE)]),
    ({MPI_MODE: "libfabric_inject"}, {FABRIC: "none"}, "none", [("none", INJECT)]),
])
def test_modes(labels: Mapping[str, str], annotations: Mapping[str, str], mpi: str, fabrics: Sequence[Tuple[str, str]]) -> None:
    asked = request(container(labels=labels, annotations=annotations), Site())
    assert asked.mpi is not None and asked.mpi.value == mpi
    assert [(wish.value, wish.mode) for wish in asked.stacks] == fabrics


# ------------------------------------------------------------------------------------------------------------ how it comes

def test_in_place_of_the_images() -> None:
    made = decide(image().facts(PING), ofi())
    assert (made.verdict, made.profile, made.devices, mode(made)) == (PROVED, "libfabric", ("/dev/cxi*",), "")
    assert [(bind.source, bind.target) for bind in made.in_place] == [(SITE_FABRIC, OWN)]
    assert TCP[1:] in [bind.target for bind in made.tree]


def test_modules_join_the_images_own_where_that_is_newer() -> None:
    made = decide(image(9, uses="FABRIC_1.9").facts(PING), ofi(8))
    assert made.verdict == PROVED and made.in_place == ()
    assert [bind.target for bind in made.tree] == [TCP[1:]]
    assert made.cache is not None and "libtcp-fi.so" in {entry.name for entry in made.cache.entries}
    assert mode(made).startswith("the modules of profile libfabric join the image's own libraries, since the site's libraries cannot take "
                                 f"their place: {PING} needs FABRIC_1.9 of libfabric.so.1")


@pytest.mark.parametrize(("way", "in_place"), [("libfabric_replace", [SITE_FABRIC]), ("libfabric_inject", [])])
def test_as_is_asked_for(way: str, in_place: Sequence[str]) -> None:
    made = decide(image().facts(PING), ofi(), labels={MPI: "mpich", MPI_MODE: way})
    assert made.verdict == PROVED and [bind.source for bind in made.in_place] == in_place
    assert mode(made).endswith(", as is asked for") and "mpi-kept" in codes(made)


def test_what_the_images_libfabric_lacks_keeps_modules_out() -> None:
    (found,) = errors(decide(image(6).facts(PING), ofi(needs="FABRIC_1.8"), annotations={MPI_MODE: "libfabric_inject"}))
    assert found.code == "version-missing"
    assert found.what == (f"libtcp-fi.so (the site's {TCP}) needs FABRIC_1.8 of libfabric.so.1, which {OWN} of the image does not define")
    assert found.remedy.endswith(OVERRIDES["fabric"])


def test_both_ways_are_told_where_neither_serves() -> None:
    found = errors(decide(image(9, uses="FABRIC_1.9").facts(PING), ofi(8, glibc="GLIBC_2.40")))
    assert [(one.code, one.what.split()[0]) for one in found] == [("glibc-too-old", "libfabric.so.1"), ("glibc-too-old", "libtcp-fi.so")]


@pytest.mark.parametrize(("site", "code"), [(ofi(modules=False), "no-modules"), (ofi(separable=False), "no-modules")])
def test_what_cannot_be_added(site: ResolvedProfile, code: str) -> None:
    (found,) = errors(decide(image().facts(PING), site, annotations={MPI_MODE: "libfabric_inject"}))
    assert found.code == code


def test_nothing_to_add_to() -> None:
    bare = Image(36).add(APP, program())
    (found,) = errors(decide(bare.facts(APP), ofi(), annotations={MPI_MODE: "libfabric_inject"}))
    assert found.code == "no-library"


# -------------------------------------------------------------------------------------- libraries without versions; devices

def ucx(exports: Sequence[str]) -> ResolvedProfile:
    library: HostLibrary = host("/opt/site/lib/libucs.so.0", elf("libucs.so.0", needed=("libc.so.6",), exports=exports), "replace")
    return ResolvedProfile("ucx", {"fabric": "ucx"}, "ucx.json", (library,), names=("libucs.so.0",))


@pytest.mark.parametrize(("offered", "code"), [(["ucs_init", "ucs_log"], ""), (["ucs_log"], "symbols-missing")])
def test_what_a_program_takes_must_be_there(offered: Sequence[str], code: str) -> None:
    own = Image(36).add("/usr/lib64/libucs.so.0", elf("libucs.so.0", needed=("libc.so.6",), exports=["ucs_init", "ucs_log"]), cached=True)
    own.add("/usr/bin/ucx_perftest", program("libucs.so.0", imports=["ucs_init", "ucs_log"]))
    made = decide(own.facts("/usr/bin/ucx_perftest"), ucx(offered), annotations={FABRIC: "ucx"})
    assert made.verdict == (REFUSED if code else PROVED)
    assert not code or [found.code for found in errors(made)] == [code]


KNEM = ResolvedProfile("knem", {"fabric": "knem"}, "knem.json", (), devices=("/dev/knem",))


def test_a_device_alone() -> None:
    made = decide(image().facts(PING), KNEM, annotations={FABRIC: "knem"})
    assert (made.verdict, made.profile, made.devices, made.tree, made.cache) == (PROVED, "knem", ("/dev/knem",), (), None)


@pytest.mark.parametrize("order", ["knem+libfabric", "libfabric+knem"])
def test_a_device_beside_libraries(order: str) -> None:
    made = decide(image().facts(PING), ofi(), KNEM, annotations={FABRIC: order})
    assert made.verdict == PROVED and made.profile == ", ".join(order.split("+"))
    assert {*made.devices} == {"/dev/knem", "/dev/cxi*"} and made.cache is not None


def test_a_device_that_the_node_lacks() -> None:
    lacking = dataclasses.replace(KNEM, problems=("there is no /dev/knem: its driver is not loaded",))
    (found,) = errors(decide(image().facts(PING), lacking, annotations={FABRIC: "knem"}))
    assert "there is no /dev/knem" in found.what
    assert decide(image().facts(PING), lacking, annotations={FABRIC: "auto"}).verdict == NOTHING


def test_only_users_of_some_devices_lock_memory() -> None:
    made = decide(image().facts(PING), ofi(), KNEM, annotations={FABRIC: "libfabric+knem"})
    assert made.job is not None and made.job.locking == ("/dev/cxi*",) and [*made.job.services] == ["libfabric"]
