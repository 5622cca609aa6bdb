"""Plans in the form that is applied and remembered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest

from oci_hpc_hooks import record, replay
from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.inputs import resources
from oci_hpc_hooks.model import Directory, FileId, Plan, Request, Watched, Wish
from oci_hpc_hooks.report import Places
from tests.unit.decide import world


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places("", "", str(tmp_path / "cache"), "")


def made() -> Plan:
    module = world.host("/opt/site/lib/mpich/libnet.so", world.elf("libnet.so"), "plugin")
    node = world.inventory(world.profile(world.site_mpi(), world.site_fabric(), plugins=[module]))
    image = world.mpich_image().add("/usr/lib64/mpich/libnet.so", world.elf("libnet.so"))
    return plan(world.container(), Request(mpi=Wish("mpich", "label", True)), node, image.facts(world.APP))


def test_a_record_has_all_of_the_plan() -> None:
    decision = made()
    watched = (Watched("/etc/site.json", FileId(1, 2, 3)), Watched("/etc/none", None))
    facts = world.mpich_image().facts(world.APP)
    found, cache = record.build(decision, facts, watched, "the key")
    assert (found["key"], found["verdict"], found["profile"], found["tree_at"], found["tree_make"]) == (
        "the key", "proved", "site-mpich", "/dev/.oci-hpc", "dev")
    assert [(row[0], row[4]) for row in found["tree"]] == [(bind.source, bind.target) for bind in decision.tree]
    assert found["dirs"] == ["opt", "opt/site", "opt/site/lib", "opt/site/lib/mpich"]
    assert [row[4] for row in found["in_place"]] == [bind.target for bind in decision.in_place]
    assert [row[:2] for row in found["modules"]] == [["opt/site/lib/mpich", "/usr/lib64/mpich"]]
    assert found["host_files"] == [["/etc/site.json", 1, 2, 3], ["/etc/none", 0, 0, 0]]
    assert found["cache_length"] == len(cache)
    assert ldcache.parse(cache) == decision.cache
    # Whatever the plan replaces is checked as it is replaced; the rest has a row of its own.
    assert decision.drop_in is not None and found["cache"]["drop_in"] == [decision.drop_in.path, decision.drop_in.text]
    assert [row for row in found["image_files"] if row[0] == "/etc/ld.so.conf"]  # by which ldconfig comes to the drop-in
    checked = {row[0] for row in found["image_files"]} | {row[4] for row in found["in_place"]} | {found["cache"]["target"]}
    assert set(facts.files) | {"/etc/ld.so.cache"} <= checked
    assert {row[0] for row in found["image_dirs"]} == {folder.path for folder in facts.directories}


def test_each_file_and_its_reason() -> None:
    decision = made()
    found = record.files(record.build(decision, None, (), "key")[0])
    named = {(file["target"], file["why"]) for file in found}
    assert {(f"/dev/.oci-hpc/{bind.target}", bind.why) for bind in decision.tree} <= named
    assert {(bind.target, bind.why) for bind in decision.in_place} <= named
    assert decision.drop_in is not None
    assert {("/usr/lib64/mpich", record.COVER), ("/etc/ld.so.cache", record.CACHE), (decision.drop_in.path, record.DROP_IN)} <= named
    assert len(found) == len(decision.tree) + len(decision.in_place) + 3
    assert [file["how"] for file in found[-2:]] == ["file", "file"]
    bound = record.files(record.build(replace(decision, drop_in=None), None, (), "key")[0])
    assert bound[-1] == {"source": "/dev/.oci-hpc/ld.so.cache", "target": "/etc/ld.so.cache", "how": "in place", "why": record.CACHE,
                         "id": ()}
    row = next(file for file in found if file["how"] == "tree")
    assert row["id"] == (decision.tree[0].source_file.inode, decision.tree[0].source_file.size, decision.tree[0].source_file.mtime_ns)


def test_how_a_key_begins(tmp_path: Path) -> None:
    """What check knows of a start is the beginning of what a hook makes of it."""
    config = {
        "root": {"path": "rootfs"},
        "process": {"args": ["app", "-n", "2"], "cwd": "/work", "env": ["PATH=/bin", "HOME=/", "LD_LIBRARY_PATH=/x"]},
        "mounts": [{"destination": "/data", "type": "bind", "source": "/data"}],
        "annotations": {"org.supercontainers.mpi": "mpich", "a": "b"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = json.dumps({"id": "c1", "pid": 4242, "bundle": str(tmp_path)})
    code = ("import sys; from oci_hpc_hooks.replay import key_of; from oci_hpc_hooks.start import Start\n"
            "sys.stdout.write(key_of(Start('s', ('e', 's', 'c', 'l'), 0.0)))")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    key = subprocess.run([sys.executable, "-c", code], input=state, capture_output=True, text=True, check=True, env=env).stdout
    looked_at = replace(world.container("app", "-n", "16", annotations={"org.supercontainers.mpi": "mpich"}), cwd="/work",
                        rootfs=f"{tmp_path}/rootfs", image_id="", env=("LD_LIBRARY_PATH=/x", "PATH=/bin"))
    assert key.startswith(record.key_begins(("e", "s", "c", "l"), looked_at, []))
    assert not key.startswith(record.key_begins(("e", "s", "c", "l"), replace(looked_at, cwd="/"), []))


def test_a_plan_of_another_version_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """During an update hooks of two versions have one cache."""
    ours = replay.head_of_key(("e", "s", "c", "l"), "image", [], [], ["app"], [], "/")
    monkeypatch.setattr(replay, "RECORD_VERSION", replay.RECORD_VERSION - 1)
    assert replay.head_of_key(("e", "s", "c", "l"), "image", [], [], ["app"], [], "/") != ours


def test_what_another_row_tells_of_has_none(tmp_path: Path) -> None:
    """What is missing in a directory that is looked at, and the package's own profiles."""
    there = FileId(1, 2, 3)
    (tmp_path / "link").symlink_to("nowhere")  # what makes it lead somewhere may not change the directory
    shipped = str(resources.PROFILES)
    kept = [Watched(str(tmp_path), there), Watched(f"{tmp_path}/file", there), Watched(f"{tmp_path}/link", None),
            Watched("/none/at/all", None), Watched(shipped, there)]
    implied = [Watched(f"{tmp_path}/none", None), Watched(f"{shipped}/mpich.json", there)]
    rows = record.build(made(), None, [*kept, *implied], "key")[0]["host_files"]
    assert [row[0] for row in rows] == [item.path for item in kept]
    alone = record.build(made(), None, implied, "key")[0]["host_files"]
    assert [row[0] for row in alone] == [item.path for item in implied]


def test_searched_directories_have_one_row_and_none_below_what_is_missing() -> None:
    facts = world.mpich_image().facts(world.APP)
    names: Tuple[str, ...] = ()
    folders = (Directory("/a", 5, 7, names), Directory("/a/", 5, 7, names), Directory("/b", 0, 0, names), Directory("/b/c", 0, 0, names),
               Directory("/b/c/d", 0, 0, names), Directory("/a/none", 0, 0, names))
    found = record.build(made(), replace(facts, directories=folders), (), "key")[0]["image_dirs"]
    assert found == [["/a", 7, 5], ["/b", 0, 0], ["/a/none", 0, 0]]


def test_a_record_survives_the_file(places: Places) -> None:
    found, cache = record.build(made(), world.mpich_image().facts(world.APP), (Watched("/x", None),), "the key")
    record.remember(places, found, cache)
    again = replay.remembered(places, "the key")
    assert again is not None
    assert again == (json.loads(json.dumps(found)), cache)


def test_names_that_are_no_text(places: Places) -> None:
    """File names are bytes: one that is no UTF-8 may make a plan that is never found again, but not a wrong one."""
    found, cache = record.build(made(), None, (Watched("/lib/\udcff.so", FileId(1, 2, 3)),), "key \udcff")
    record.remember(places, found, cache)
    again = replay.remembered(places, "key \udcff")
    assert again is None or again[0]["host_files"][0][0] != "/lib/.so"


def test_the_oldest_go(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PLANS_LIMIT", 16)
    found: Dict[str, Any] = record.build(made(), None, (), "")[0]
    (Path(places.cache) / "plans").mkdir(parents=True)
    left = Path(places.cache) / "plans" / "tmpkilled"  # what a killed process did not finish
    left.touch()
    os.utime(left, (1, 1))
    for number in range(40):
        record.remember(places, {**found, "key": str(number), "cache_length": 0}, b"")
        file = Path(places.cache) / "plans" / replay.plan_file(str(number))
        os.utime(file, (1000 + number, 1000 + number))
        assert len(os.listdir(file.parent)) <= 17
    assert not left.exists()
    assert replay.remembered(places, "39") is not None
    assert replay.remembered(places, "0") is None


def test_what_a_killed_process_left_goes_with_the_next_plan(places: Places) -> None:
    found, cache = record.build(made(), None, (), "key")
    record.remember(places, found, cache)
    folder = Path(places.cache) / "plans"
    for name, age in (("tmpkilled", 61), ("tmpwriting", 1), ("0-1.ldcache", 999), ("0-1.ldcache.99", 999)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    record.remember(places, {**found, "key": "other"}, cache)
    assert sorted(os.listdir(folder)) == sorted([replay.plan_file("key"), replay.plan_file("other"), "0-1.ldcache", "tmpwriting"])


@pytest.mark.parametrize("days", [-300, 300])
def test_a_clock_that_jumps(places: Places, days: int) -> None:
    """A plan is what it is whatever its time, and what a killed process left goes although it seems to be of the future."""
    found, cache = record.build(made(), None, (), "key")
    record.remember(places, found, cache)
    folder = Path(places.cache) / "plans"
    (folder / "tmpkilled").touch()
    for file in folder.iterdir():
        os.utime(file, (time.time() + days * 86400,) * 2)
    assert replay.remembered(places, "key") is not None
    record.remember(places, {**found, "key": "other"}, cache)
    assert sorted(os.listdir(folder)) == sorted(replay.plan_file(key) for key in ("key", "other"))


def test_plans_of_the_future_go_first(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was set back: what is written now is not thrown away at once for being the oldest."""
    monkeypatch.setattr(record, "PLANS_LIMIT", 16)
    found = {**record.build(made(), None, (), "")[0], "cache_length": 0}
    for number in range(16):
        record.remember(places, {**found, "key": str(number)}, b"")
        file = Path(places.cache) / "plans" / replay.plan_file(str(number))
        os.utime(file, (time.time() + 86400 + number,) * 2)
    record.remember(places, {**found, "key": "now"}, b"")
    assert len(os.listdir(file.parent)) == 13
    assert replay.remembered(places, "now") is not None


def test_a_plan_cut_at_each_byte_is_none(places: Places) -> None:
    """The node went down before all of it was on the disk: record and loader cache are of one file with one checksum."""
    found, cache = record.build(made(), None, (), "key")
    record.remember(places, found, cache)
    file = Path(places.cache) / "plans" / replay.plan_file("key")
    whole = file.read_bytes()
    assert cache and whole.endswith(cache) and replay.remembered(places, "key") is not None
    for length in range(len(whole)):
        for lost in (whole[:length], whole[:length] + bytes(len(whole) - length)):  # a file may have its length and not its content
            if lost != whole:
                file.write_bytes(lost)
                assert replay.remembered(places, "key") is None, length


def test_a_place_that_cannot_be_written_is_no_error(places: Places) -> None:
    found, cache = record.build(made(), None, (), "key")
    Path(places.cache).write_text("in the way")
    record.remember(places, found, cache)
    assert Path(places.cache).read_text() == "in the way"


def test_a_folder_that_others_can_write_is_not_used(places: Places) -> None:
    folder = Path(places.cache) / "plans"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    record.remember(places, *record.build(made(), None, (), "key"))
    assert os.listdir(folder) == []


def test_a_killed_writer_leaves_no_half_plan(places: Places) -> None:
    code = f"""
import sys
from oci_hpc_hooks import record
from oci_hpc_hooks.model import Plan
from oci_hpc_hooks.report import Places
made, _ = record.build(Plan("proved", ()), None, (), "key")
while True:
    cache = bytes(1 << 20)
    made["cache_length"] = len(cache)
    record.remember(Places("", "", {places.cache!r}, ""), made, cache)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for delay in (0.3, 0.31, 0.33):
        writer = subprocess.Popen([sys.executable, "-c", code], env=env)
        file = Path(places.cache, "plans", replay.plan_file("key"))
        while not file.exists() and writer.poll() is None:
            time.sleep(0.01)
        time.sleep(delay - 0.3)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        found = replay.remembered(places, "key")
        assert found is not None
        assert len(found[1]) == 1 << 20
        file.unlink()
