"""Sets of libraries, modules and configuration on this node, and modules that need one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from oci_hpc_hooks.inputs import inventory, resources, validate
from oci_hpc_hooks.inputs.profiles import read_profiles
from oci_hpc_hooks.inputs.scan import Scan, scan
from oci_hpc_hooks.inputs.site import Configuration
from oci_hpc_hooks.inputs.validate import Problem
from oci_hpc_hooks.model import LibrarySet, Profile, Site
from tests.unit.config.node_bed import MPICH, build
from tests.unit.config.test_scan import paths, profile, watched

MPI = "libtestmpi.so.12"
VERBS = LibrarySet("verbs", "libtestverbs.so.1", ("libtestcm.so.1", "libtestdrv.so.1", "libtestgone.so.1"),
                   ("$ORIGIN/providers",), "TESTVERBS_PRIVATE_")


def run(wanted: Profile) -> Scan:
    return scan(Configuration(Site(), (wanted,), ()))


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """MPI with a module that needs a stand-in for libibverbs, which has a library beside it, providers and configuration."""
    lib = tmp_path / "lib"
    verbs = build(lib / "libtestverbs.so.1", exports=("verbs",), version="TESTVERBS_1.0")
    build(lib / "libtestcm.so.1", needed=[verbs], exports=("cm",))
    drv = build(lib / "libtestdrv.so.1.2", soname="libtestdrv.so.1", needed=[verbs])
    (lib / "libtestdrv.so.1").symlink_to(drv.name)
    (lib / "providers").mkdir()
    (lib / "providers/libdrv-rdmav34.so").symlink_to("../libtestdrv.so.1.2")
    build(lib / "providers/libother-rdmav34.so", needed=[verbs, build(lib / "libtesthelper.so.1")])
    build(lib / "providers/libbroken-rdmav34.so", needed=[build(tmp_path / "gone/libtestgone.so.2")])
    (tmp_path / "gone/libtestgone.so.2").unlink()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/drv.driver").write_text("driver drv\n")
    (tmp_path / "etc/other.driver").symlink_to("drv.driver")
    (tmp_path / "etc/folder").mkdir()
    build(lib / MPI, exports=MPICH)
    build(lib / "plugins/libuct_verbs.so", needed=[verbs])
    return tmp_path


def wanted(node: Path) -> Profile:
    return replace(profile([node / "lib"]), sets=(replace(VERBS, directories=("$ORIGIN/providers", str(node / "etc"))),))


def test_libraries_modules_and_configuration(node: Path) -> None:
    found = run(wanted(node))
    (result,) = found.inventory.profiles
    assert result.problems == ()
    assert sorted(library.name for library in result.libraries[1:]) == [
        "libtestcm.so.1", "libtestdrv.so.1", "libtesthelper.so.1", "libtestverbs.so.1"]
    assert {library.role for library in result.libraries[1:]} == {"dependency"}
    (one,) = result.sets
    assert (one.name, one.private, one.libraries) == ("verbs", "TESTVERBS_PRIVATE_", (
        "libtestverbs.so.1", "libtestcm.so.1", "libtestdrv.so.1", "libtestgone.so.1"))
    assert [(module.name, module.path, module.real, module.role) for module in one.modules] == [
        ("libdrv-rdmav34.so", f"{node}/lib/providers/libdrv-rdmav34.so", f"{node}/lib/libtestdrv.so.1.2", "plugin"),
        ("libother-rdmav34.so", f"{node}/lib/providers/libother-rdmav34.so", f"{node}/lib/providers/libother-rdmav34.so", "plugin")]
    assert [(file.path, file.real) for file in one.files] == [
        (f"{node}/etc/{name}.driver", f"{node}/etc/drv.driver") for name in ("drv", "other")]
    assert one.files[0].file.inode == (node / "etc/drv.driver").stat().st_ino
    broken = f"{node}/lib/providers/libbroken-rdmav34.so"
    assert f"the module {broken} is left out, this node does not load it either: it lacks libtestgone.so.2" in found.notes["profile mpich"]
    for path in ("etc", "etc/drv.driver", "lib/providers", "lib/providers/libdrv-rdmav34.so", "lib/libtestcm.so.1"):
        assert watched(found, node / path), path


def test_the_need_of_modules_is_not_that_of_the_libraries(node: Path) -> None:
    stub = build(node / "stub/libc.so.6", exports=("newest",), version="GLIBC_2.99")
    build(node / "lib/plugins/libnew.so", needed=[stub], uses=["newest"])
    (result,) = run(wanted(node)).inventory.profiles
    assert "libnew.so" in {plugin.name for plugin in result.plugins} and result.glibc == ""


def test_a_set_that_nothing_needs(node: Path) -> None:
    (node / "lib/plugins/libuct_verbs.so").unlink()
    (result,) = run(wanted(node)).inventory.profiles
    assert result.sets == () and paths(result.libraries) == [f"{node}/lib/{MPI}"]


def test_a_directory_that_is_empty_is_told(node: Path) -> None:
    found = run(replace(wanted(node), sets=(replace(VERBS, directories=("$ORIGIN/no", str(node / "etc"))),)))
    (one,) = found.inventory.profiles[0].sets
    assert one.modules == () and len(one.files) == 2
    assert f"the set verbs has nothing in {node}/lib/no: what libtestverbs.so.1 opens there will be missing" in found.notes["profile mpich"]
    assert watched(found, node / "lib/no")


def test_origin_is_the_real_directory(node: Path) -> None:
    """As on merged systems, where the loader's cache says /lib and the library was built with /usr/lib."""
    (node / "other").symlink_to("lib")
    (result,) = run(replace(wanted(node), search=(str(node / "other"),))).inventory.profiles
    assert result.libraries[0].path == f"{node}/other/{MPI}"
    assert paths(result.sets[0].modules)[0] == f"{node}/lib/providers/libdrv-rdmav34.so"


def test_on_the_disk(node: Path) -> None:
    if node.stat().st_uid != 0:
        pytest.skip("an inventory counts only if root owns it")
    found = run(wanted(node)).inventory
    assert found.profiles[0].sets
    path = Path(inventory.write(found, str(node / "state")))
    validate.check(path.read_bytes(), "inventory", str(path))
    assert inventory.load(str(node / "state")) == found


def test_modules_that_need_one_another(tmp_path: Path) -> None:
    """As UCX's for one maker's devices need the one of all: it is loaded before them, wherever their paths lead. One that needs what
    cannot be loaded stays out with it."""
    plugins = tmp_path / "plugins"
    common = build(plugins / "libz_common.so.0", exports=("common",))
    build(plugins / "liba_special.so.0", needed=[common])
    bad = build(plugins / "libz_bad.so.0", needed=[build(tmp_path / "gone/libtestgone.so.2")])
    build(plugins / "liba_bad.so.0", needed=[bad])
    (tmp_path / "gone/libtestgone.so.2").unlink()
    build(tmp_path / MPI, exports=MPICH)
    found = run(profile([tmp_path]))
    assert [plugin.name for plugin in found.inventory.profiles[0].plugins] == ["liba_special.so.0", "libz_common.so.0"]
    left = [note for note in found.notes["profile mpich"] if "is left out" in note]
    assert len(left) == 2 and any("liba_bad.so.0" in note and "it lacks libz_bad.so.0" in note for note in left)


def test_shipped_profiles_have_the_set_of_libibverbs() -> None:
    problems: list[Problem] = []
    for found in read_profiles("/no/such", problems, [], shipped=resources.PROFILES).values():
        assert found is not None and not problems
        if "mpi" not in found.provides:
            continue
        (one,) = found.sets
        assert (one.when, one.private) == ("libibverbs.so.1", "IBVERBS_PRIVATE_")
        assert one.directories == ("$ORIGIN/libibverbs", "/etc/libibverbs.d")
