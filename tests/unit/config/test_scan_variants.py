"""Variants of a profile resolved on this node: each from its own directories, with the glibc that it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, List, Optional

import pytest

from oci_hpc_hooks.cli.scan import _lines
from oci_hpc_hooks.inputs import inventory, validate
from oci_hpc_hooks.inputs.scan import Scan, scan
from oci_hpc_hooks.inputs.site import Configuration
from oci_hpc_hooks.model import Site, SiteProfile, Variant
from tests.unit.config.node_bed import MPICH, build
from tests.unit.config.test_scan import paths, profile, watched

LIBRARY = "libtestmpi.so.12"


def libc(folder: Path, release: str) -> Path:
    """A libc.so.6 whose symbols are of one release, to be linked to and not to be found by the scan."""
    return build(folder / f"stub-{release}" / "libc.so.6", exports=("newest",), version=f"GLIBC_{release}")


def mpi(folder: Path, release: str, **more: Any) -> Path:
    """An MPI library in ``folder`` that needs a symbol of this release of glibc."""
    return build(folder / LIBRARY, exports=MPICH, needed=[libc(folder, release), *more.pop("needed", ())], uses=["newest"], **more)


def run(wanted: List[Path], *variants: Variant, site: Optional[Site] = None) -> Scan:
    return scan(Configuration(site or Site(), (replace(profile(wanted), variants=variants),), ()))


def test_each_from_its_own_directories(tmp_path: Path) -> None:
    new = mpi(tmp_path / "new", "2.33")
    old = mpi(tmp_path / "el7", "2.9")
    middle = mpi(tmp_path / "el8", "2.28")
    found = run([tmp_path / "new"], Variant("el8", (str(tmp_path / "el8"),)), Variant("el7", (str(tmp_path / "el7*"),)))
    (result,) = found.inventory.profiles
    assert (result.variant, result.glibc, paths(result.libraries)) == ("", "2.33", [str(new)])
    assert [(one.name, one.variant, one.glibc, paths(one.libraries), one.problems) for one in result.variants] == [
        ("mpich", "el8", "2.28", [str(middle)], ()), ("mpich", "el7", "2.9", [str(old)], ())]
    assert all(watched(found, path) for path in (new, old, middle, tmp_path))


def test_closure_and_modules_of_a_variant(tmp_path: Path) -> None:
    inner = build(tmp_path / "el7/libtestinner.so.1", needed=[libc(tmp_path / "b", "2.14")], uses=["newest"])
    mpi(tmp_path / "el7", "2.9", needed=[inner])
    module = build(tmp_path / "el7/plugins/libmodule.so")
    mpi(tmp_path / "new", "2.33")
    (variant,) = run([tmp_path / "new"], Variant("el7", (str(tmp_path / "el7"),))).inventory.profiles[0].variants
    assert paths(variant.libraries) == [str(tmp_path / "el7" / LIBRARY), str(inner)]
    assert paths(variant.plugins) == [str(module)]
    assert variant.glibc == "2.14"


def test_not_from_the_profile_s_directories(tmp_path: Path) -> None:
    mpi(tmp_path / "new", "2.33")
    (tmp_path / "empty").mkdir()
    found = run([tmp_path / "new"], Variant("empty", (str(tmp_path / "empty"),)), Variant("none", (str(tmp_path / "none"),)))
    assert not found.inventory.profiles[0].problems
    assert [variant.problems for variant in found.inventory.profiles[0].variants] == [
        (f"there is no {LIBRARY} or libtestmpich.so.12 in {tmp_path}/empty",),
        (f"there is no {LIBRARY} or libtestmpich.so.12 in the variant's directories (none of them exists on this node)",),
    ]
    assert watched(found, tmp_path / "none")


def test_not_from_the_node_s_own_loader(tmp_path: Path) -> None:
    """libc.so.6 stands for a library that the loader's cache has: the profile as such finds it there."""
    wanted = profile([tmp_path], libraries=(replace(profile([]).libraries[0], soname="libc.so.6", replaces=()),))
    wanted = replace(wanted, variants=(Variant("el7", (str(tmp_path),)),))
    (found,) = scan(Configuration(Site(), (wanted,), ())).inventory.profiles
    assert "is no MPI library" in found.problems[0]
    assert found.variants[0].problems == (f"there is no libc.so.6 in {tmp_path}",)


def test_the_site_s_variants(tmp_path: Path) -> None:
    mpi(tmp_path / "new", "2.33")
    old = mpi(tmp_path / "el7", "2.9")
    site = Site(profiles=(SiteProfile("mpich", (), (Variant("el7", (str(tmp_path / "el7"),)),)),))
    (result,) = run([tmp_path / "new"], site=site).inventory.profiles
    assert [(variant.variant, paths(variant.libraries)) for variant in result.variants] == [("el7", [str(old)])]


def test_on_the_disk(tmp_path: Path) -> None:
    if tmp_path.stat().st_uid != 0:
        pytest.skip("an inventory counts only if root owns it")
    mpi(tmp_path / "new", "2.33")
    mpi(tmp_path / "el7", "2.9")
    variant = Variant("el7", (str(tmp_path / "el7"),))
    found = run([tmp_path / "new"], variant, Variant("el6", ("/no/el6",)), site=Site((SiteProfile("mpich", (), (variant,)),))).inventory
    path = Path(inventory.write(found, str(tmp_path / "state")))
    validate.check(path.read_bytes(), "inventory", str(path))
    assert inventory.load(str(tmp_path / "state")) == found


def test_what_a_person_is_told(tmp_path: Path) -> None:
    mpi(tmp_path / "new", "2.33")
    mpi(tmp_path / "el7", "2.9")
    found = run([tmp_path / "new"], Variant("el7", (str(tmp_path / "el7"),)), Variant("el6", (str(tmp_path / "el6"),)))
    lines = list(_lines(found.inventory.profiles[0], found.notes))
    assert lines[0] == "mpich: available (profile test)"
    assert "  its libraries load with glibc 2.33 or newer" in lines
    el7 = lines.index("  variant el7: available")
    assert lines[el7 + 1] == f"    replace {LIBRARY}, also as libtestmpich.so.12: {tmp_path}/el7/{LIBRARY}"
    assert "    its libraries load with glibc 2.9 or newer" in lines[el7:]
    assert "    note: there is no libtestmpifort.so.12 in the directory of libtestmpi.so.12" in lines[el7:]
    assert lines[lines.index("  variant el6: not available") + 1].startswith("    problem: there is no libtestmpi.so.12")
