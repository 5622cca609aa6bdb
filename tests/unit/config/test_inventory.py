"""The inventory on disk: whole or not there, believed only if root wrote it, and known to be out of date when it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable

import pytest

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import inventory, trust
from oci_hpc_hooks.inputs.scan import scan
from oci_hpc_hooks.inputs.site import Configuration
from oci_hpc_hooks.model import FileId, Inventory, Site, SiteProfile, Watched


@pytest.fixture
def state(tmp_path: Path) -> Path:
    if tmp_path.stat().st_uid != 0:
        pytest.skip("an inventory counts only if root owns it")
    return tmp_path / "state"


def an_inventory(*rests_on: Watched) -> Inventory:
    return Inventory(
        version=inventory.VERSION,
        created="2026-01-31T12:00:00Z",
        machine="x86_64",
        libc_version="2.36",
        site=Site(profiles=(SiteProfile("mpich", ("/opt/mpich/lib",)),), defaults={"org.supercontainers.mpi": "auto"}),
        profiles=(),
        rests_on=rests_on,
    )


def test_written_and_read_again(state: Path) -> None:
    kept = an_inventory(Watched("/etc/x", None), Watched("/etc/y", FileId(1, 2, 3)))
    path = Path(inventory.write(kept, str(state)))
    assert path == state / "inventory.json"
    assert inventory.load(str(state)) == kept
    assert path.stat().st_mode & 0o7777 == 0o644
    assert os.listdir(state) == ["inventory.json"]


def test_same_inventory_same_bytes(state: Path) -> None:
    path = Path(inventory.write(an_inventory(), str(state)))
    first = path.read_bytes()
    inventory.write(an_inventory(), str(state))
    assert path.read_bytes() == first


def test_what_is_not_valid_is_not_written(state: Path) -> None:
    inventory.write(an_inventory(), str(state))
    with pytest.raises(ConfigError, match=r"\$\.rests_on\[0\]\.path"):
        inventory.write(an_inventory(Watched("relative", None)), str(state))
    assert inventory.load(str(state)) == an_inventory()


def test_failed_write_leaves_the_old_one_and_nothing_else(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory.write(an_inventory(), str(state))

    def full(fd: int) -> None:  # a full disk, which a test cannot have without mounting one
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        inventory.write(an_inventory(Watched("/x", None)), str(state))
    assert os.listdir(state) == ["inventory.json"]
    assert inventory.load(str(state)) == an_inventory()


def test_directory_that_others_can_write(state: Path) -> None:
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(ConfigError, match=f"chmod go-w {state}"):
        inventory.write(an_inventory(), str(state))
    assert os.listdir(state) == []


def test_directory_that_is_a_file(state: Path) -> None:
    state.touch()
    with pytest.raises(ConfigError, match="cannot be written: "):
        inventory.write(an_inventory(), str(state))


def test_no_scan_yet(state: Path) -> None:
    with pytest.raises(trust.Missing, match=rf"this node has no inventory {state}/inventory.json\. Site admin: run oci-hpc-hooks scan\."):
        inventory.load(str(state))


def test_inventory_of_another_user(state: Path) -> None:
    path = inventory.write(an_inventory(), str(state))
    os.chown(path, 1000, 1000)
    with pytest.raises(ConfigError, match=f"chown root {path}"):
        inventory.load(str(state))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"[]",
        lambda raw: b"null",
        lambda raw: b'{"version": 1}',
        lambda raw: b'{"version": 2}',
        lambda raw: b"\xff" + raw,
        lambda raw: b"[" * 100_000,
        lambda raw: raw.replace(b'"rests_on": [', b'"rests_on": [1, '),
        lambda raw: raw.replace(b'"site": {', b'"site": [], "x": {'),
        lambda raw: raw.replace(b'"profiles": []', b'"profiles": [{"name": 1}]'),
    ],
)
def test_broken_inventory_is_a_sentence(state: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = Path(inventory.write(an_inventory(), str(state)))
    spoilt = spoil(path.read_bytes())
    path.write_bytes(spoilt)
    with pytest.raises(ConfigError, match=r"inventory\.json .* run oci-hpc-hooks scan"):
        inventory.load(str(state))


def test_cut_at_each_byte(state: Path) -> None:
    """The node went down while a copy of it was written: only the line end that nobody needs may be missing."""
    path = Path(inventory.write(an_inventory(Watched("/etc/y", FileId(1, 2, 3))), str(state)))
    whole = path.read_bytes()
    believed = []
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            inventory.load(str(state))
            believed.append(length)
        except ConfigError as error:
            assert "run oci-hpc-hooks scan" in str(error)
    assert believed == [len(whole) - 1]


def test_stale(tmp_path: Path) -> None:
    def found() -> Inventory:
        return scan(Configuration(Site(), (), (str(tmp_path / "site.json"), str(tmp_path / "gone"), str(tmp_path / "no/such/x")))).inventory

    (tmp_path / "site.json").write_text("{}")
    (tmp_path / "gone").touch()
    kept = found()
    assert inventory.is_stale(kept) == []
    (tmp_path / "site.json").write_text("{ }")
    (tmp_path / "gone").unlink()
    (tmp_path / "no").mkdir()
    assert sorted(inventory.is_stale(kept)) == [
        f"{tmp_path}/gone is gone since the scan",
        f"{tmp_path}/no is new since the scan",
        f"{tmp_path}/site.json has changed since the scan",
    ]
    assert inventory.is_stale(found()) == []


def test_link_that_leads_elsewhere_is_stale(tmp_path: Path) -> None:
    for name in ("8.1", "8.2"):
        (tmp_path / name).touch()
    (tmp_path / "default").symlink_to("8.1")
    kept = scan(Configuration(Site(), (), (str(tmp_path / "default"),))).inventory
    (tmp_path / "default").unlink()
    (tmp_path / "default").symlink_to("8.2")
    assert inventory.is_stale(kept) == [f"{tmp_path}/default has changed since the scan"]


def test_loading_needs_no_heavy_library(state: Path) -> None:
    import subprocess
    import sys

    inventory.write(an_inventory(), str(state))
    code = "import sys; from oci_hpc_hooks.inputs import inventory; inventory.load(sys.argv[1]); print(*sys.modules)"
    root = str(Path(inventory.__file__).parents[2])
    result = subprocess.run([sys.executable, "-c", code, str(state)], capture_output=True, text=True, env={"PYTHONPATH": root}, check=True)
    heavy: Any = {"jsonschema", "dataclasses_json", "elftools", "argparse"}
    assert not heavy & set(result.stdout.split())
    assert json.loads((state / "inventory.json").read_text())["version"] == inventory.VERSION
