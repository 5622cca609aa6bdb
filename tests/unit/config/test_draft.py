"""Profiles drafted from real libraries in folders of the test: what is in them, and what no draft is made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List

import pytest

from oci_hpc_hooks.errors import HookError, UsageError
from oci_hpc_hooks.inputs import validate
from oci_hpc_hooks.inputs.draft import Draft, _shortened, draft
from tests.unit.config.node_bed import MPICH, OPENMPI, build
from tests.unit.elf import elf_bed

CODE = "".join(f"int {name}(void) {{ return 0; }}" for name in MPICH)


def mpich(home: Path, **more: Any) -> Path:
    return build(home / "libmpi.so.12", exports=MPICH, **more)


def document(*files: object, name: str = "") -> Dict[str, Any]:
    return draft([str(file) for file in files], name).document


def libraries(*files: object) -> List[Dict[str, Any]]:
    found: List[Dict[str, Any]] = document(*files)["libraries"]
    return found


# ------------------------------------------------------------------------------------------------------------- what is in it

def test_an_mpi_alone(tmp_path: Path) -> None:
    library = mpich(tmp_path)
    assert draft([str(library)]) == Draft({
        "$schema": "profile.schema.json",
        "version": 1,
        "name": "site-mpich",
        "description": f"Drafted from {library}, an MPI of the family mpich",
        "provides": {"mpi": "mpich"},
        "libraries": [{"soname": "libmpi.so.12", "role": "replace", "replaces": ["libmpich.so.12"]}],
        "search": [str(tmp_path)],
    }, ())


def test_debians_names_stand_for_the_usual_ones(tmp_path: Path) -> None:
    (found,) = libraries(build(tmp_path / "libmpich.so.12", exports=MPICH))
    assert (found["soname"], found["replaces"]) == ("libmpich.so.12", ["libmpi.so.12"])


def test_a_library_of_another_name_under_the_one_that_programs_ask_for(tmp_path: Path) -> None:
    library = build(tmp_path / "libmpi.so.12", soname="libmpi_vendor.so.12", exports=MPICH)
    (found,) = libraries(library)
    assert (found["soname"], found["replaces"]) == ("libmpi_vendor.so.12", ["libmpi.so.12", "libmpich.so.12"])


def test_bindings_beside_it(tmp_path: Path) -> None:
    """Those that are linked to it, and need not be there on every node; what is named by the admin must be."""
    library = mpich(tmp_path)
    fortran = build(tmp_path / "libmpifort.so.12", exports=["mpi_init_"], needed=[library])
    build(tmp_path / "libmpi_other.so.1", exports=MPICH)
    (tmp_path / "libmpi.so").symlink_to("libmpi.so.12")
    bindings = {"soname": "libmpifort.so.12", "role": "replace", "replaces": ["libmpichfort.so.12"]}
    assert libraries(library)[1:] == [{**bindings, "required": False}]
    assert libraries(library, fortran)[1:] == [bindings]


def test_a_further_library_that_is_no_mpi(tmp_path: Path) -> None:
    tools = build(tmp_path / "libtools.so.1", exports=["work"])
    assert libraries(mpich(tmp_path), tools)[1:] == [{"soname": "libtools.so.1", "role": "add"}]


def test_the_path_is_kept_as_it_is_given(tmp_path: Path) -> None:
    """It may stand for the version that is the default at the time."""
    mpich(tmp_path / "8.1.28")
    (tmp_path / "default").symlink_to("8.1.28")
    assert document(tmp_path / "default/libmpi.so.12")["search"] == [str(tmp_path / "default")]
    (tmp_path / "8.1.28/libmpi.so.12").rename(tmp_path / "8.1.28/libmpi.so.12.1.8")
    (tmp_path / "8.1.28/libmpi.so.12").symlink_to("libmpi.so.12.1.8")
    assert libraries(tmp_path / "8.1.28/libmpi.so.12.1.8")[0]["soname"] == "libmpi.so.12"


def test_closure_and_devices_are_in_the_description(tmp_path: Path) -> None:
    network = build(tmp_path / "libcxi.so.1")
    fabric = build(tmp_path / "libtestfabric.so.1", needed=[network])
    said = document(mpich(tmp_path, needed=[fabric]))["description"]
    assert said.endswith("with it come libtestfabric.so.1, libcxi.so.1. Devices that these may want, and no profile brings: /dev/cxi*")


def test_a_long_description_is_shortened() -> None:
    names = [f"lib{number:0100}.so" for number in range(20)]
    said = _shortened("head: ", names, ". tail")
    assert said.startswith("head: lib0") and said.endswith("and 11 more. tail") and len(said) <= 1000
    assert _shortened("head: ", ["x" * 2000], ". tail") == "head: 1 more libraries. tail"


def test_modules_beside_what_opens_them(tmp_path: Path) -> None:
    inner = tmp_path / "lib/private"
    transport = build(inner / "libuct.so.0")
    build(inner / "ucx/libuct_test.so.0")
    build(inner / "libfabric/readme.so").write_text("no module")
    library = mpich(tmp_path / "lib", needed=[transport], runpath="$ORIGIN/private")
    assert document(library)["plugins"] == ["$ORIGIN/private/ucx"]


def test_modules_whose_directory_is_written_in_a_library(tmp_path: Path) -> None:
    """Only of its own installation, and only where there are modules."""
    for folder in ("here/lib/providers", "here/share/providers", "elsewhere/providers"):
        build(tmp_path / folder / "libprovider.so")
    (tmp_path / "here/lib/empty").mkdir()
    named = [f"{tmp_path}/{folder}" for folder in ("here/lib/providers", "here/share/providers/", "elsewhere/providers", "here/lib/empty")]
    source = CODE + "".join(f'const char *p{number} = "{path}";' for number, path in enumerate(named))
    library = elf_bed.build(tmp_path / "here/lib/libmpi.so.12", soname="libmpi.so.12", source=source)
    made = draft([str(library)])
    assert made.document["plugins"] == ["$ORIGIN/providers", f"{tmp_path}/here/share/providers"]
    assert [remark.partition(";")[0] for remark in made.remarks] == [
        f"libmpi.so.12 names the directory of modules {tmp_path}/here/{folder}" for folder in ("lib/providers", "share/providers")]


def test_open_mpi_with_modules_as_files(tmp_path: Path) -> None:
    library = build(tmp_path / "libmpi.so.40", exports=OPENMPI)
    assert not draft([str(library)]).remarks
    build(tmp_path / "openmpi/mca_btl_tcp.so")
    made = draft([str(library)])
    assert made.document["libraries"] == [{"soname": "libmpi.so.40", "role": "replace"}]
    assert "$ORIGIN/openmpi/mca_*.so" in made.document["immovable"]
    assert made.remarks[0].startswith(f"not available on this node: libmpi.so.40 opens {tmp_path}/openmpi/mca_btl_tcp.so by this path")


def test_the_standards_abi(tmp_path: Path) -> None:
    assert document(build(tmp_path / "libmpi_abi.so.1", exports=MPICH))["provides"] == {"mpi": "mpi-abi"}


def test_directories_of_library_path_that_hold_what_it_needs(tmp_path: Path) -> None:
    """As a module of the site sets it."""
    lib, dep, other = (tmp_path / name for name in ("lib", "dep", "other"))
    library = mpich(lib, needed=[build(dep / "libtestdep.so.1")])
    build(other / "libtestother.so.1")
    made = draft([str(library)])
    assert made.remarks == (f"not available on this node: there is no libtestdep.so.1 on this node, which {library} needs",)
    path = ["", "relative", str(other), str(dep), str(tmp_path / "gone")]
    assert draft([str(library)], library_path=path) == Draft({**made.document, "search": [str(lib), str(dep)], "description":
                                                              made.document["description"] + "; with it come libtestdep.so.1"}, ())


def test_what_is_drafted_is_valid(tmp_path: Path) -> None:
    made = document(mpich(tmp_path), name="vendor-mpi")
    assert made["name"] == "vendor-mpi"
    assert not validate.schema_problems(made, "profile", "vendor-mpi.json")


# ------------------------------------------------------------------------------------------------- what no draft is made from

def refused(*files: object, name: str = "") -> str:
    with pytest.raises(HookError) as caught:
        draft([str(file) for file in files], name)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_no_library(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = tmp_path / "libtext.so"
    text.write_text("MPI_Init")
    script = tmp_path / "libscript.so"
    script.write_text("/* GNU ld script */\nOUTPUT_FORMAT(elf64-x86-64)\nGROUP ( /lib/libc.so.6 /usr/lib/libc_nonshared.a )\n")
    assert "is a directory, not a shared library" in refused(tmp_path)
    assert "is no regular file" in refused(fifo)
    assert "is no ELF file" in refused(text)
    assert refused(script) == (f"{script} is a script for the linker, not a shared library. User: name the file that it leads to, "
                               "/lib/libc.so.6.")
    assert "cannot be read: No such file or directory" in refused(tmp_path / "gone")
    assert "is a program, not a shared library" in refused("/bin/ls")
    assert "is no path that a profile can hold" in refused(tmp_path / "a\nb")


def test_another_machine(tmp_path: Path) -> None:
    for more, says in ({"wide": False, "machine": 3}, "32-bit file for e_machine 3,"), ({"machine": 999}, "64-bit file for e_machine 999,"):
        path = tmp_path / "libmpi.so.12"
        path.write_bytes(elf_bed.made_up(**more))  # type: ignore[arg-type]
        assert says in refused(path)


def test_no_mpi(tmp_path: Path) -> None:
    assert "(libwork.so.1) is no MPI by the symbols that it exports" in refused(build(tmp_path / "libwork.so.1", exports=["work"]))
    assert "belongs to the C runtime" in refused(build(tmp_path / "libm.so.6", exports=MPICH))


def test_two_files_for_one_name(tmp_path: Path) -> None:
    ours = build(tmp_path / "libmpi.so.12", soname="libmpi_vendor.so.12", exports=MPICH)
    other = build(tmp_path / "libmpich.so.12", exports=MPICH)
    assert "'libmpi.so.12' is named by $.libraries[0].replaces[0] already" in refused(ours, other)


def test_two_directories(tmp_path: Path) -> None:
    assert "lies in another directory than" in refused(mpich(tmp_path / "a"), build(tmp_path / "b/libx.so.1"))


def test_a_name_that_leads_elsewhere(tmp_path: Path) -> None:
    """The scan, as any program, would take another file than the one that was named."""
    library = mpich(tmp_path)
    moved = library.rename(tmp_path / "libmpi.so.12.1.8")
    assert f"calls itself libmpi.so.12, and {tmp_path} has no file of that name. Site admin: make {library} a link" in refused(moved)
    mpich(tmp_path)
    assert f"calls itself libmpi.so.12, and {library} is another file" in refused(moved)


@pytest.mark.parametrize(("folder", "name", "says"), [
    ("lib", "Vendor MPI", '$.name: "Vendor MPI" is not a name of lower-case letters'),
    ("a:b", "", "$.search[0]"),
])
def test_what_the_schema_does_not_admit(tmp_path: Path, folder: str, name: str, says: str) -> None:
    assert says in refused(mpich(tmp_path / folder), name=name)


def test_damaged_libraries(tmp_path: Path) -> None:
    """Whatever a file holds, there is a draft or a sentence."""
    good = mpich(tmp_path).read_bytes()
    path = tmp_path / "libmpi.so.12"
    said = 0
    for at in range(0, len(good), len(good) // 16):
        for bad in good[:at], good[:at] + bytes(8) + good[at + 8:], good[:at] + b"\xff" * 4 + good[at + 4:]:
            path.write_bytes(bad)
            try:
                draft([str(path)])
            except UsageError:
                said += 1
    assert said > 15
