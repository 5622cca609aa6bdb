"""Who asks for what: precedence, spellings, and what a value that means nothing leads to."""

from __future__ import annotations

import pytest

from oci_hpc_hooks.decide.request import FAMILIES, MPI, OVERRIDE, request
from oci_hpc_hooks.errors import Refusal
from oci_hpc_hooks.model import NOTE, WARNING, Site, Wish
from tests.unit.decide.world import container


def wish(**sources: dict[str, str]) -> Wish:
    found = request(container(**{key: value for key, value in sources.items() if key != "defaults"}),  # type: ignore[arg-type]
                    Site(defaults=sources.get("defaults", {}))).mpi
    assert found is not None
    return found


def test_nothing_asked_is_nothing() -> None:
    found = request(container(), Site())
    assert (found.mpi, found.glibc, found.findings) == (None, None, ())


def test_keys_of_others_are_ignored() -> None:
    others = {"org.supercontainers.gpu": "cuda", "org.opencontainers.image.title": "mpich", MPI.upper(): "mpich", MPI + ".version": "4.2"}
    assert request(container(annotations=others, labels=others), Site()).mpi is None


# ------------------------------------------------------------------------------------------------------------- precedence

SOURCES = ["annotations", "labels", "manifest", "defaults"]


@pytest.mark.parametrize("highest", range(4))
def test_the_highest_source_that_says_something_wins(highest: int) -> None:
    given = {source: {MPI: "mpich" if place == highest else "openmpi"} for place, source in enumerate(SOURCES) if place >= highest}
    found = wish(**given)
    assert found.value == "mpich"
    assert f"{MPI}=mpich" in found.origin


@pytest.mark.parametrize(("source", "said", "explicit"), [
    ("annotations", "annotation ", True), ("labels", "label ", True), ("manifest", "annotation of the image's manifest ", True),
    ("defaults", "site default ", False),
])
def test_origin_and_whether_the_wish_may_be_refused(source: str, said: str, explicit: bool) -> None:
    assert wish(**{source: {MPI: "mpich"}}) == Wish("mpich", f"{said}{MPI}=mpich", explicit, source in ("labels", "manifest"))


def test_auto_is_never_explicit() -> None:
    assert wish(annotations={MPI: "auto"}) == Wish("auto", f"annotation {MPI}=auto", False)


def test_none_of_the_caller_beats_label_and_default() -> None:
    assert wish(annotations={MPI: "none"}, labels={MPI: "mpich"}, defaults={MPI: "auto"}).value == "none"


def test_none_of_the_image_beats_the_default() -> None:
    assert wish(labels={MPI: "none"}, defaults={MPI: "mpich"}).value == "none"


def test_the_printed_override_is_understood() -> None:
    key, _, value = OVERRIDE.partition(" ")[2].partition("=")
    assert wish(annotations={key: value}, labels={MPI: "mpich"}).value == "none"


# ------------------------------------------------------------------------- annotations that podman took from the manifest

def test_an_annotation_that_the_manifest_also_has_is_the_images_word() -> None:
    found = wish(annotations={MPI: "mpich"}, manifest={MPI: "mpich"})
    assert found.origin.startswith("annotation of the image's manifest ")


def test_so_a_label_beats_it() -> None:
    assert wish(annotations={MPI: "mpich"}, manifest={MPI: "mpich"}, labels={MPI: "openmpi"}).value == "openmpi"


def test_another_value_is_the_callers() -> None:
    assert wish(annotations={MPI: "none"}, manifest={MPI: "mpich"}).origin == f"annotation {MPI}=none"


def test_a_manifest_that_means_nothing_is_no_refusal() -> None:
    found = request(container(annotations={MPI: "pvm"}, manifest={MPI: "pvm"}), Site())
    assert found.mpi == Wish("auto", f"annotation of the image's manifest {MPI}=pvm", False, True)


# -------------------------------------------------------------------------------------------------------------- spellings

@pytest.mark.parametrize(("written", "family"), [
    *FAMILIES.items(), ("OpenMPI", "openmpi"), ("Open MPI", "openmpi"), ("  MPICH ", "mpich"), ("Intel  MPI", "mpich"),
    ("Cray-MPICH", "mpich"), ("MVAPICH2", "mpich"), ("unknown", "auto"), ("NONE", "none"),
])
def test_spellings(written: str, family: str) -> None:
    assert wish(annotations={MPI: written}).value == family


@pytest.mark.parametrize("key", [
    "org.supercontainers.mpi.implementation", "org.supercontainers.mpi.provider", "com.hooks.mpi.type"])
def test_other_keys_for_the_same(key: str) -> None:
    assert wish(labels={key: "OpenMPI"}) == Wish("openmpi", f"label {key}=OpenMPI", True, True)


def test_the_first_key_counts_within_one_source() -> None:
    assert wish(labels={"com.hooks.mpi.type": "openmpi", MPI: "mpich"}).value == "mpich"


def test_a_source_counts_before_a_key() -> None:
    assert wish(annotations={"com.hooks.mpi.type": "openmpi"}, labels={MPI: "mpich"}).value == "openmpi"


# ---------------------------------------------------------------------------------------------------------- unknown values

@pytest.mark.parametrize("value", ["pvm", "", " ", "mpich4", "mpich\n\x1b[31m", "м" * 100_000])
def test_an_unknown_value_of_the_caller_is_refused(value: str) -> None:
    with pytest.raises(Refusal) as caught:
        request(container(annotations={MPI: value}), Site())
    assert "auto, mpi-abi, mpich, none, openmpi" in caught.value.what
    assert caught.value.who == "user"
    assert caught.value.origin.startswith(f"annotation {MPI}=")


@pytest.mark.parametrize(("source", "who"), [("labels", "image author"), ("manifest", "image author"), ("defaults", "site admin")])
def test_an_unknown_value_of_anybody_else_is_told_and_the_image_looked_at(source: str, who: str) -> None:
    given = {source: {MPI: "pvm"}}
    found = request(container(**({} if source == "defaults" else given)),  # type: ignore[arg-type]
                    Site(defaults=given["defaults"] if source == "defaults" else {}))
    assert found.mpi is not None
    assert (found.mpi.value, found.mpi.explicit) == ("auto", False)
    (finding,) = found.findings
    assert (finding.severity, finding.code, finding.who) == (WARNING, "unknown-value", who)
    assert "'pvm'" in finding.what


def test_what_is_overruled_is_not_complained_about() -> None:
    assert request(container(annotations={MPI: "mpich"}, labels={MPI: "pvm"}), Site()).findings == ()


# ------------------------------------------------------------------------------------------------------ Sarus's vocabulary

@pytest.mark.parametrize("value", ["false", "False", "0", "no", " false "])
def test_switched_off(value: str) -> None:
    assert wish(annotations={"com.hooks.mpi.enabled": value, "com.hooks.mpi.type": "mpich"}).value == "none"


@pytest.mark.parametrize("value", ["true", "1", "YES"])
def test_switched_on_without_a_type(value: str) -> None:
    assert wish(annotations={"com.hooks.mpi.enabled": value}).value == "auto"


def test_switched_on_with_a_type() -> None:
    assert wish(annotations={"com.hooks.mpi.enabled": "true", "com.hooks.mpi.type": "mpich"}) == Wish(
        "mpich", "annotation com.hooks.mpi.type=mpich", True)


# ------------------------------------------------------------------------------------------------------- portability.mode

MODE = "org.supercontainers.mpi.portability.mode"


@pytest.mark.parametrize("mode", ["mpi_system", "libfabric_inject", "MPI_SYSTEM "])
def test_an_image_may_ask_that_its_mpi_be_kept(mode: str) -> None:
    found = request(container(labels={MPI: "mpich", MODE: mode}), Site())
    assert found.mpi is not None
    assert found.mpi.value == "none"
    assert [(finding.severity, finding.code) for finding in found.findings] == [(NOTE, "mpi-kept")]


def test_mpi_replace_is_what_happens_anyway() -> None:
    assert wish(labels={MPI: "mpich", MODE: "mpi_replace"}).value == "mpich"


def test_the_caller_overrules_the_images_mode() -> None:
    assert wish(annotations={MPI: "mpich"}, labels={MPI: "mpich", MODE: "mpi_system"}).value == "mpich"


# ------------------------------------------------------------------------------------------------------------------ glibc

@pytest.mark.parametrize("key", ["org.supercontainers.glibc", "org.supercontainers.glibc.version"])
def test_a_claim_about_glibc(key: str) -> None:
    assert request(container(labels={key: " 2.36 "}), Site()).glibc == Wish("2.36", f"label {key}= 2.36 ", False)


def test_an_empty_claim_is_none() -> None:
    key = "org.supercontainers.glibc"
    found = request(container(annotations={key: ""}, labels={key: "2.31"}), Site())
    assert found.glibc == Wish("2.31", f"label {key}=2.31", False)
