"""Drivers of GPUs resolved against real libraries: by release, by what names them, below a root of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Tuple

import pytest

from oci_hpc_hooks.inputs import inventory, resources
from oci_hpc_hooks.inputs.profiles import read_profiles
from oci_hpc_hooks.inputs.scan import scan
from oci_hpc_hooks.inputs.site import Configuration
from oci_hpc_hooks.inputs.validate import Problem
from oci_hpc_hooks.model import Profile, ProfileLibrary, ResolvedProfile, Site, SiteProfile
from tests.unit.config.node_bed import build

LIB = "usr/lib/acme"


def driver(**more: Any) -> Profile:
    values: dict[str, Any] = {
        "name": "acme", "description": "test", "provides": {"gpu": "acme"},
        "libraries": (ProfileLibrary("libtestacme.so.1", "replace", ("libtestacme.so",)),), "search": (f"/{LIB}",), "source": "test",
    }
    return Profile(**{**values, **more})


def resolved(root: Path, wanted: Profile) -> Tuple[ResolvedProfile, Tuple[str, ...]]:
    found = scan(Configuration(Site(profiles=(SiteProfile("acme", root=str(root)),)), (wanted,), ()))
    (only,) = found.inventory.profiles
    inventory.write(found.inventory, str(root / "state"), (str(root / "state"),))
    assert inventory.load(str(root / "state"), (str(root / "state"),)) == found.inventory
    return only, found.notes[only.title]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for release in ("1.2.3", "1.9"):
        build(tmp_path / LIB / f"libtestacme.so.{release}", soname="libtestacme.so.1", exports=("acme",))
    (tmp_path / LIB / "libtestacme.so.1").symlink_to("libtestacme.so.1.2.3")
    (tmp_path / LIB / "libtestacme.so").symlink_to("libtestacme.so.1")
    return tmp_path


def test_paths_in_a_container_are_those_below_the_root(root: Path) -> None:
    found, _ = resolved(root, driver())
    (library,) = found.libraries
    assert (library.path, library.real) == (f"/{LIB}/libtestacme.so.1", str(root / LIB / "libtestacme.so.1.2.3"))
    assert found.names == ("libtestacme.so.1", "libtestacme.so") and library.replaces == ("libtestacme.so",)


def test_what_has_the_release_of_the_driver_comes_too(root: Path) -> None:
    build(root / LIB / "libtestjit.so.1.2.3", soname="libtestjit.so.4", exports=("jit",))
    build(root / LIB / "libtestjit.so.1.9", soname="libtestjit.so.4", exports=("jit",))
    build(root / LIB / "sub/libtestvdpau.so.1.2.3", exports=("vdpau",))
    lost = build(root / "gone/libtestlost.so.1", exports=("lost",))
    build(root / LIB / "libtestlonely.so.1.2.3", exports=("x",), needed=[lost])
    lost.unlink()
    found, notes = resolved(root, driver(companions=("$ORIGIN/lib*.so.$VERSION", f"/{LIB}/sub/lib*.so.$VERSION", "$ORIGIN/lib*.so.1")))
    named = [library for library in found.libraries if library.role == "replace"]
    assert [(library.name, library.path, library.optional) for library in named] == [
        ("libtestacme.so.1", f"/{LIB}/libtestacme.so.1", False),
        ("libtestjit.so.4", f"/{LIB}/libtestjit.so.1.2.3", True),
        ("libtestvdpau.so.1.2.3", f"/{LIB}/sub/libtestvdpau.so.1.2.3", True),
    ]
    assert found.problems == ()
    assert [note for note in notes if "libtestlonely" in note and "libtestlost.so.1" in note]


def test_the_name_without_a_release_leads_there_too(root: Path) -> None:
    """Where the driver has it, and for the same file."""
    build(root / LIB / "libtestjit.so.1.2.3", soname="libtestjit.so.4", exports=("jit",))
    build(root / LIB / "libtestother.so.1.2.3", soname="libtestother.so.1", exports=("x",))
    (root / LIB / "libtestjit.so").symlink_to("libtestjit.so.1.2.3")
    build(root / LIB / "libtestother.so", exports=("x",))
    found, _ = resolved(root, driver(companions=("$ORIGIN/lib*.so.$VERSION",)))
    assert {library.name: library.replaces for library in found.libraries if library.optional} == {
        "libtestjit.so.4": ("libtestjit.so",), "libtestother.so.1": ()}


def test_a_driver_without_a_release_in_its_name(tmp_path: Path) -> None:
    build(tmp_path / LIB / "libtestacme.so.1", exports=("acme",))
    found, notes = resolved(tmp_path, driver(companions=("$ORIGIN/lib*.so.$VERSION",)))
    assert len(found.libraries) == 1 and "the release of the driver is not to be seen" in notes[0]


@pytest.mark.parametrize("text", ["libtesticd.so.1\n", f"/{LIB}/libtesticd.so.1", json.dumps({"ICD": {"library_path": "libtesticd.so.1"}})])
def test_a_file_that_names_a_driver(root: Path, text: str) -> None:
    build(root / LIB / "libtesticd.so.1", exports=("icd",))
    vendors = root / "etc/vendors"
    vendors.mkdir(parents=True)
    (vendors / "acme.icd").write_text(text)
    for name, broken in (("none", "libtestnone.so"), ("json", "{"), ("list", '{"ICD": []}'), ("path", "../libtesticd.so.1"), ("empty", ""),
                         ("deep", '{"ICD":' * 4000)):
        (vendors / f"{name}.icd").write_text(broken)
    found, notes = resolved(root, driver(icds=("/etc/vendors/*.icd",)))
    (library,) = [library for library in found.libraries if library.optional]
    assert library.name == "libtesticd.so.1"
    files = {file.path: file.library for file in found.files}
    assert files["/etc/vendors/acme.icd"] == "libtesticd.so.1" and all(file.required for file in found.files)
    assert (f"/{LIB}/libtesticd.so.1" in files) == text.startswith("/")
    assert len([note for note in notes if ".icd is left out" in note]) == 6


def test_no_file_names_a_driver(root: Path) -> None:
    found, _ = resolved(root, driver(icds=("/etc/vendors/*.icd",)))
    assert found.problems == ("there is no driver: no file that names one in /etc/vendors/*.icd",)


def test_files_at_their_own_path(root: Path) -> None:
    for path in ("usr/bin/acme-smi", "lib/firmware/1.2.3/one.bin", "lib/firmware/1.9/old.bin"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x")
    wanted = ("/usr/bin/acme-smi", "/usr/bin/none", "/lib/firmware/$VERSION/*.bin", "$ORIGIN/libtestacme.so")
    found, _ = resolved(root, driver(files=wanted))
    assert [file.path for file in found.files] == ["/usr/bin/acme-smi", "/lib/firmware/1.2.3/one.bin", f"/{LIB}/libtestacme.so"]
    assert not any(file.required or file.library for file in found.files)


def test_shipped_profiles_say_by_what_they_were_tried() -> None:
    problems: list[Problem] = []
    for found in read_profiles("/no/such", problems, [], shipped=resources.PROFILES).values():
        assert found is not None and not problems
        assert found.verified["by"] in ("hardware", "files", "paper")
