"""The ladder's single steps."""

from __future__ import annotations

import dataclasses
from typing import Optional, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.model import ImageFacts
from tests.unit.decide.world import Image, elf, glibc_versions


def test_versions_are_ordered_by_number() -> None:
    written = ["GLIBC_2.2.5", "GLIBC_2.9", "GLIBC_2.10", "GLIBC_2.17", "GLIBC_2.36", "GLIBC_2.38", "GLIBC_3.0"]
    assert sorted(written, key=abi.version_key) == written


def test_newest_passes_over_names_without_a_number() -> None:
    assert abi.newest(["GLIBC_2.4", "GLIBC_PRIVATE", "GLIBC_2.36", "GLIBC_ABI_DT_RELR", "GCC_3.0"], "GLIBC_") == "GLIBC_2.36"
    assert abi.newest(["GLIBC_PRIVATE"], "GLIBC_") == ""


def with_libc(verdef: Sequence[str]) -> ImageFacts:
    """An image whose libc.so.6 defines these versions and does not say which release it is."""
    facts = Image().facts()
    assert facts.libc is not None
    return dataclasses.replace(facts, libc=dataclasses.replace(facts.libc, elf=elf("libc.so.6", verdef=verdef)), libc_version="")


@pytest.mark.parametrize("minor", [17, 28, 31, 36, 41])
def test_the_version_of_a_libc(minor: int) -> None:
    assert abi.libc_version(with_libc(glibc_versions(minor))) == f"2.{minor}"


def test_what_a_libc_says_itself_counts_more() -> None:
    assert abi.libc_version(dataclasses.replace(with_libc(glibc_versions(30)), libc_version="2.31")) == "2.31"


def test_a_libc_that_defines_nothing_has_no_version() -> None:
    assert abi.libc_version(with_libc([])) == ""


@given(st.lists(st.text(max_size=12)))
@example(["2.²"])  # a digit, and yet no number to int()
def test_versions_come_from_a_hostile_image(names: Sequence[str]) -> None:
    abi.libc_version(with_libc([f"GLIBC_{name}" for name in names]))
    sorted(names, key=abi.version_key)


def test_kinds_are_told_apart() -> None:
    assert abi.kind(elf()) == abi.kind(elf("x"))
    assert len({abi.kind(elf()), abi.kind(elf(machine=183)), abi.kind(elf(elf_class=1))}) == 3
    assert abi.describe_kind(elf()) == "64-bit x86-64"
    assert abi.describe_kind(elf(elf_class=1, machine=3)) == "32-bit i386"
    assert abi.describe_kind(elf(machine=4711)) == "64-bit machine 4711"


@pytest.mark.parametrize(("host", "image", "whose"), [
    (["V_1", "V_2"], ["V_1", "V_2"], abi.HOST),
    (["V_1", "V_2"], ["V_1"], abi.HOST),
    (["V_1"], ["V_1", "V_2"], abi.IMAGE),
    (["V_1", "V_HOST"], ["V_1", "V_IMAGE"], None),
])
def test_a_shared_dependency_with_versions(host: Sequence[str], image: Sequence[str], whose: Optional[str]) -> None:
    assert abi.provider(elf("libx.so.1", verdef=host), elf("libx.so.1", verdef=image), ())[0] == whose


@pytest.mark.parametrize(("host", "image", "used", "whose"), [
    (["a", "b"], ["a", "b"], ["a", "b"], abi.HOST),
    (["a"], ["a", "b"], ["a"], abi.HOST),  # nobody uses what the host's copy lacks
    (["a"], ["a", "b"], ["b"], None),
    (["a"], ["a", "b"], ["c"], abi.HOST),  # c comes from elsewhere
])
def test_a_shared_dependency_without_versions(host: Sequence[str], image: Sequence[str], used: Sequence[str], whose: Optional[str]) -> None:
    found, why = abi.provider(elf(exports=host), elf(exports=image), [elf("libuser.so.1", imports=used)])
    assert found == whose
    assert ("libuser.so.1 uses b" in why) == (whose is None)
