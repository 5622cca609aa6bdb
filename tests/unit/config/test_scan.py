"""Profiles resolved against real libraries, in folders of the test: what is found, what comes along, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, List, Sequence

import pytest

from oci_hpc_hooks.elf.scan import read_with_pyelftools
from oci_hpc_hooks.inputs import inventory, validate
from oci_hpc_hooks.inputs.scan import Scan, scan
from oci_hpc_hooks.inputs.site import Configuration
from oci_hpc_hooks.model import HostLibrary, Profile, ProfileLibrary, ResolvedProfile, Site, SiteProfile
from tests.unit.config.node_bed import MPICH, OPENMPI, build


def profile(search: Sequence[object], **more: Any) -> Profile:
    values = {
        "name": "mpich",
        "description": "test",
        "provides": {"mpi": "mpich"},
        # Not MPICH's real sonames: a library of the machine that runs the tests must not be found.
        "libraries": (
            ProfileLibrary("libtestmpi.so.12", "replace", ("libtestmpich.so.12",)),
            ProfileLibrary("libtestmpifort.so.12", "replace", required=False),
        ),
        "search": tuple(map(str, search)),
        "plugins": ("$ORIGIN/plugins",),
        "source": "test",
    }
    return Profile(**{**values, **more})


def run(wanted: Profile, site_search: Sequence[object] = ()) -> Scan:
    site = Site(profiles=(SiteProfile("mpich", tuple(map(str, site_search))),))
    return scan(Configuration(site, (wanted,), ()))


def resolved(wanted: Profile, site_search: Sequence[object] = ()) -> ResolvedProfile:
    (found,) = run(wanted, site_search).inventory.profiles
    return found


def by_role(found: ResolvedProfile, role: str) -> List[HostLibrary]:
    return [library for library in found.libraries if library.role == role]


def paths(libraries: Sequence[HostLibrary]) -> List[str]:
    return [library.path for library in libraries]


def watched(found: Scan, path: object) -> bool:
    return str(path) in {watch.path for watch in found.inventory.rests_on}


# ------------------------------------------------------------------------------------------------------ the library itself

def test_library_is_found_and_described(tmp_path: Path) -> None:
    real = build(tmp_path / "lib/libtestmpi.so.12.1", soname="libtestmpi.so.12", exports=MPICH)
    (tmp_path / "lib/libtestmpi.so.12").symlink_to(real.name)
    found = resolved(profile([tmp_path / "lib"]))
    assert found.problems == ()
    (library,) = found.libraries
    assert (library.name, library.path, library.real) == ("libtestmpi.so.12", str(tmp_path / "lib/libtestmpi.so.12"), str(real))
    assert (library.role, library.replaces) == ("replace", ("libtestmpich.so.12",))
    assert library.file.inode == real.stat().st_ino
    assert set(library.elf.exports) == set(MPICH)
    assert library.elf.soname == "libtestmpi.so.12"


def test_file_of_another_name_of_the_family(tmp_path: Path) -> None:
    build(tmp_path / "libtestmpich.so.12", exports=MPICH)
    (library,) = resolved(profile([tmp_path])).libraries
    assert (library.name, library.path) == ("libtestmpi.so.12", str(tmp_path / "libtestmpich.so.12"))


def test_site_s_directories_come_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        build(tmp_path / name / "libtestmpi.so.12", exports=MPICH)
    (library,) = resolved(profile([tmp_path / "a"]), [tmp_path / "b"]).libraries
    assert library.path == str(tmp_path / "b/libtestmpi.so.12")


def test_newest_version_of_a_pattern(tmp_path: Path) -> None:
    for version in ("8.1.9", "8.1.28", "8.1.10", ".9"):
        build(tmp_path / version / "lib/libtestmpi.so.12", exports=MPICH)
    (tmp_path / "9/other").mkdir(parents=True)
    found = run(profile([tmp_path / "*/lib"]))
    assert paths(found.inventory.profiles[0].libraries) == [str(tmp_path / "8.1.28/lib/libtestmpi.so.12")]
    assert watched(found, tmp_path)
    assert watched(found, tmp_path / "9/lib")


def test_missing_library(tmp_path: Path) -> None:
    found = run(profile([tmp_path, tmp_path / "not/there"]))
    (result,) = found.inventory.profiles
    assert result.libraries == ()
    (problem,) = result.problems
    where = f"{tmp_path}, nor where the node's own loader looks"
    assert problem == f"there is no libtestmpi.so.12 or libtestmpich.so.12 in {where}"
    assert watched(found, tmp_path / "not") and not watched(found, tmp_path / "not/there")


def test_no_directory_of_the_profile_exists(tmp_path: Path) -> None:
    (problem,) = resolved(profile([tmp_path / "x"])).problems
    assert "the profile's directories (none of them exists on this node)" in problem


def test_open_mpi_under_mpich_s_name_is_passed_over(tmp_path: Path) -> None:
    build(tmp_path / "a/libtestmpi.so.12", exports=OPENMPI)
    (problem,) = resolved(profile([tmp_path / "a"])).problems
    assert problem == (
        f"libtestmpi.so.12: {tmp_path}/a/libtestmpi.so.12 is openmpi by the symbols it exports, not mpich"
    )
    build(tmp_path / "b/libtestmpi.so.12", exports=MPICH)
    assert paths(resolved(profile([tmp_path / "a", tmp_path / "b"])).libraries) == [str(tmp_path / "b/libtestmpi.so.12")]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: build(path, exports=("Other",)), "is no MPI library by the symbols it exports, not mpich"),
        (lambda path: build(path, soname="libother.so.1", exports=MPICH), "calls itself libother.so.1"),
        (lambda path: path.write_text("GROUP ( libmpi.a )"), "is of no use"),
        (lambda path: path.write_bytes(b"\x7fELF" + b"\xff" * 99), "is of no use"),
        (lambda path: path.touch(), "is of no use"),
    ],
)
def test_file_that_is_not_what_its_name_says(tmp_path: Path, make: Any, says: str) -> None:
    make(tmp_path / "libtestmpi.so.12")
    (problem,) = resolved(profile([tmp_path])).problems
    assert says in problem


def test_another_architecture(tmp_path: Path) -> None:
    path = build(tmp_path / "libtestmpi.so.12", exports=MPICH)
    raw = bytearray(path.read_bytes())
    raw[18:20] = (243).to_bytes(2, "little")  # EM_RISCV
    path.write_bytes(raw)
    (problem,) = resolved(profile([tmp_path])).problems
    assert "is for another architecture (e_machine 243, ELF class 2)" in problem


def test_second_library_comes_from_the_same_directory(tmp_path: Path) -> None:
    build(tmp_path / "a/libtestmpi.so.12", exports=MPICH)
    build(tmp_path / "b/libtestmpifort.so.12", exports=("mpi_init_",))
    found = run(profile([tmp_path / "a", tmp_path / "b"]))
    assert len(found.inventory.profiles[0].libraries) == 1
    assert found.notes["profile mpich"] == ("there is no libtestmpifort.so.12 in the directory of libtestmpi.so.12",)
    build(tmp_path / "a/libtestmpifort.so.12", exports=("mpi_init_",))
    libraries = resolved(profile([tmp_path / "a", tmp_path / "b"])).libraries
    assert [library.name for library in libraries] == ["libtestmpi.so.12", "libtestmpifort.so.12"]
    assert libraries[1].elf.exports == ("mpi_init_",)


def test_required_second_library(tmp_path: Path) -> None:
    build(tmp_path / "libtestmpi.so.12", exports=MPICH)
    both = (ProfileLibrary("libtestmpi.so.12", "replace"), ProfileLibrary("libtestextra.so.1", "add"))
    (problem,) = resolved(profile([tmp_path], libraries=both)).problems
    assert problem == "there is no libtestextra.so.1 in the directory of libtestmpi.so.12"


# ---------------------------------------------------------------------------------------------------------- its closure

def test_closure_by_runpath_and_by_the_profile_s_directories(tmp_path: Path) -> None:
    deep = build(tmp_path / "other/libtestdeep.so.1", exports=("deep",))
    private = build(tmp_path / "lib/private/libtestprivate.so.1", exports=("a", "b"), needed=[deep])
    build(tmp_path / "lib/libtestmpi.so.12", exports=MPICH, needed=[private], runpath="$ORIGIN/private")
    found = resolved(profile([tmp_path / "lib", tmp_path / "other"]))
    assert found.problems == ()
    assert paths(by_role(found, "dependency")) == [str(private), str(deep)]
    assert [library.name for library in found.libraries] == ["libtestmpi.so.12", "libtestprivate.so.1", "libtestdeep.so.1"]
    assert by_role(found, "dependency")[0].elf.exports == ("a", "b")


def test_runpath_wins_over_the_profile_s_directories(tmp_path: Path) -> None:
    private = build(tmp_path / "lib/private/libtestprivate.so.1", exports=("a",))
    build(tmp_path / "lib/libtestprivate.so.1", exports=("b",))
    build(tmp_path / "lib/libtestmpi.so.12", exports=MPICH, needed=[private], runpath="$ORIGIN/private")
    assert paths(by_role(resolved(profile([tmp_path / "lib"])), "dependency")) == [str(private)]


def test_symbols_of_a_library_with_versions_are_left_out(tmp_path: Path) -> None:
    versioned = build(tmp_path / "libtestversioned.so.1", exports=("a",), version="TEST_1.0")
    build(tmp_path / "libtestmpi.so.12", exports=(*MPICH, "internal"), needed=[versioned], version="TEST_2.0")
    library, dependency = resolved(profile([tmp_path])).libraries
    assert dependency.elf.verdef == ("TEST_1.0",)
    assert dependency.elf.exports == ()
    assert set(library.elf.exports) == set(MPICH)


def test_gap_in_the_closure(tmp_path: Path) -> None:
    gone = build(tmp_path / "gone/libtestgone.so.1")
    library = build(tmp_path / "lib/libtestmpi.so.12", exports=MPICH, needed=[gone])
    (problem,) = resolved(profile([tmp_path / "lib"])).problems
    assert problem == f"there is no libtestgone.so.1 on this node, which {library} needs"


def test_version_that_the_node_lacks(tmp_path: Path) -> None:
    old = build(tmp_path / "lib/libtestdep.so.1", exports=("f",), version="TEST_1.0")
    new = build(tmp_path / "new/libtestdep.so.1", exports=("f",), version="TEST_2.0")
    source = "extern int f(void); int MPI_Init(void) { return f(); } int MPIR_Dup_fn(void) { return 0; }"
    library = tmp_path / "lib/libtestmpi.so.12"
    command = ["gcc", "-w", "-xc", "-", "-xnone", "-shared", "-fPIC", "-nostdlib", "-o", str(library), str(new)]
    subprocess.run([*command, "-Wl,-soname,libtestmpi.so.12"], input=source.encode(), check=True)
    (problem,) = resolved(profile([tmp_path / "lib"])).problems
    assert problem == f"{old} lacks TEST_2.0, which {library} needs"


def test_c_runtime_stays_with_the_container(tmp_path: Path) -> None:
    library = tmp_path / "libtestmpi.so.12"
    source = "#include <math.h>\n#include <stdlib.h>\nint MPIR_Dup_fn(void) { return rand(); } double MPI_Init(double x) { return cos(x); }"
    command = ["gcc", "-w", "-xc", "-", "-shared", "-fPIC", "-o", str(library), "-lm", "-Wl,-soname,libtestmpi.so.12"]
    subprocess.run(command, input=source.encode(), check=True)
    (found,) = resolved(profile([tmp_path])).libraries
    assert {"libm.so.6", "libc.so.6"} <= set(found.elf.needed)
    assert dict(found.elf.verneed)["libc.so.6"]


def test_what_only_lies_beside_it_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be thousands: an MPI in /usr/lib64."""
    dependency = build(tmp_path / "libtestdep.so.1")
    beside = build(tmp_path / "libbeside.so.1")
    library = build(tmp_path / "libtestmpi.so.12", exports=MPICH, needed=[dependency])
    read: List[str] = []

    def reading(path: str, **more: Any) -> Any:
        read.append(path)
        return read_with_pyelftools(path, **more)

    monkeypatch.setattr("oci_hpc_hooks.inputs.scan.read_with_pyelftools", reading)
    assert paths(resolved(profile([tmp_path])).libraries) == [str(library), str(dependency)]
    assert {str(library), str(dependency)} <= {*read} and str(beside) not in read


# ---------------------------------------------------------------------------------------------------------- its modules

def test_modules_and_what_they_need(tmp_path: Path) -> None:
    helper = build(tmp_path / "libtesthelper.so.1")
    gone = build(tmp_path / "gone/libtestgone.so.1")
    library = build(tmp_path / "libtestmpi.so.12", exports=MPICH)
    good = build(tmp_path / "plugins/libgood.so.0", needed=[helper, library], exports=("entry",))
    bad = build(tmp_path / "plugins/libbad.so.0", needed=[gone])
    (tmp_path / "plugins/libtext.so").write_text("no ELF file")
    (tmp_path / "plugins/README").touch()
    shutil.rmtree(tmp_path / "gone")
    found = run(profile([tmp_path]))
    (result,) = found.inventory.profiles
    assert result.problems == ()
    assert [(plugin.name, plugin.path, plugin.role) for plugin in result.plugins] == [("libgood.so.0", str(good), "plugin")]
    assert result.plugins[0].elf.exports == ()
    assert paths(by_role(result, "dependency")) == [str(helper)]
    assert f"the module {bad} is left out, this node does not load it either: it lacks libtestgone.so.1" in found.notes["profile mpich"]
    assert watched(found, tmp_path / "plugins")


def test_modules_that_are_opened_by_their_path(tmp_path: Path) -> None:
    """An Open MPI with its modules in files of their own: in a container they would lie elsewhere than where it looks."""
    build(tmp_path / "libtestmpi.so.12", exports=MPICH)
    wanted = profile([tmp_path], immovable=("$ORIGIN/openmpi/mca_*.so",))
    (tmp_path / "openmpi").mkdir()
    (tmp_path / "openmpi/libfabric.so.1").touch()
    found = run(wanted)
    assert found.inventory.profiles[0].problems == ()
    assert watched(found, tmp_path / "openmpi")
    (tmp_path / "openmpi/mca_btl_sm.so").touch()
    (problem,) = resolved(wanted).problems
    assert problem.startswith(f"libtestmpi.so.12 opens {tmp_path}/openmpi/mca_btl_sm.so by this path")


# -------------------------------------------------------------------------------------------------------- the inventory

def test_inventory_rests_on_what_was_read(tmp_path: Path) -> None:
    private = build(tmp_path / "private/libtestprivate.so.1")
    build(tmp_path / "lib/libtestmpi.so.12", exports=MPICH, needed=[private], runpath="$ORIGIN/nowhere:$ORIGIN/../private")
    found = run(profile([tmp_path / "lib"]))
    for name in ("lib", "lib/libtestmpi.so.12", "lib/nowhere", "lib/plugins", "private/libtestprivate.so.1"):
        assert watched(found, tmp_path / name) or watched(found, tmp_path / f"lib/../{name}"), name
    assert watched(found, "/etc/ld.so.cache")
    assert inventory.is_stale(found.inventory) == []


def test_for_whose_sake_a_path_was_looked_at(tmp_path: Path) -> None:
    build(tmp_path / "lib/libtestmpi.so.12", exports=MPICH)
    wanted = profile([tmp_path / "lib", tmp_path / "own/*"])
    other = replace(wanted, name="other", search=(str(tmp_path / "lib"), str(tmp_path / "others")))
    (tmp_path / "own").mkdir()
    consulted = tmp_path / "site.json"
    found = scan(Configuration(Site(), (wanted, other), (str(consulted),))).inventory
    whose = {item.path: item.profiles for item in found.rests_on}
    assert whose[str(tmp_path / "own")] == (wanted.name,)
    assert whose[str(tmp_path / "lib/libtestmpi.so.12")] == (wanted.name, "other")
    assert whose[str(consulted)] == whose["/etc/ld.so.cache"] == ()


def test_inventory_is_valid_and_survives_the_disk(tmp_path: Path) -> None:
    if tmp_path.stat().st_uid != 0:
        pytest.skip("an inventory counts only if root owns it")
    versioned = build(tmp_path / "lib/libtestversioned.so.1", exports=("a",), version="TEST_1.0")
    build(tmp_path / "lib/libtestmpi.so.12", exports=MPICH, needed=[versioned])
    build(tmp_path / "lib/plugins/libplugin.so")
    found = run(profile([tmp_path / "lib", tmp_path / "no"])).inventory
    path = Path(inventory.write(found, str(tmp_path / "state")))
    validate.check(path.read_bytes(), "inventory", str(path))
    assert inventory.load(str(tmp_path / "state")) == found


def test_node_s_own_programs_tell_its_machine() -> None:
    found = scan(Configuration(Site(), (), ())).inventory
    assert found.machine == os.uname().machine
    assert found.profiles == ()
    assert found.libc_version.startswith("2.")


# -------------------------------------------------------------------------------------------------------- the C runtime

def runtime_of(*search: object) -> Scan:
    return scan(Configuration(Site(c_runtime="host", c_runtime_search=tuple(map(str, search))), (), ()))


def test_no_c_runtime_unless_the_site_says_so() -> None:
    assert scan(Configuration(Site(), (), ())).inventory.c_runtime is None


def test_c_runtime_is_one_directory_s(tmp_path: Path) -> None:
    for name in ("ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6", "libnss_files.so.2", "libnss_systemd.so.2", "libz.so.1"):
        build(tmp_path / "new" / name)
    (tmp_path / "new/libc-2.99.so").symlink_to("libc.so.6")
    build(tmp_path / "other/libresolv.so.2")
    found = runtime_of(tmp_path / "other", tmp_path / "n*")
    assert found.inventory.c_runtime is not None and not found.inventory.c_runtime.problems
    assert found.inventory.c_runtime.source == str(tmp_path / "new")
    assert sorted(library.name for library in found.inventory.c_runtime.libraries) == [
        "ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6", "libnss_files.so.2"]
    assert {library.role for library in found.inventory.c_runtime.libraries} == {"runtime"}
    for path in (tmp_path / "new", tmp_path / "new/libm.so.6", tmp_path / "other"):
        assert watched(found, path)


def test_c_runtime_that_is_not_whole(tmp_path: Path) -> None:
    build(tmp_path / "lib/libc.so.6")
    found = runtime_of(tmp_path / "lib").inventory.c_runtime
    assert found is not None
    assert found.problems == tuple(f"{tmp_path}/lib has no {name} that fits this node's programs" for name in ("libm.so.6", "loader"))
    nowhere = runtime_of(tmp_path / "no").inventory.c_runtime
    assert nowhere is not None and "there is no libc.so.6 in" in nowhere.problems[0]


def test_c_runtime_of_the_node(tmp_path: Path) -> None:
    found = runtime_of().inventory
    assert found.c_runtime is not None and not found.c_runtime.problems
    if tmp_path.stat().st_uid == 0:
        inventory.write(found, str(tmp_path / "state"))
        assert inventory.load(str(tmp_path / "state")) == found
