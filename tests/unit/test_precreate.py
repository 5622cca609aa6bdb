"""The edits of a configuration at podman's precreate stage, and what a hook answers there."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci_hpc_hooks import precreate
from oci_hpc_hooks.apply import config
from oci_hpc_hooks.errors import InputError
from oci_hpc_hooks.inputs import container, jsontext
from oci_hpc_hooks.linux.paths import Root
from tests.unit.inputs.conftest import DATA, PODMAN_CASES
from tests.unit.test_light import ALLOWED, LIGHT, ROOT, check, modules

ID = "85f9a79d6151e17f286b30055f4a090bc1d86f0150fca995fa7c17d6fcd0aa73"
OWN = {"path": f"/opt/site/hooks.d/bin/{container.OWN_HOOK}", "args": ["x"], "env": ["PATH=/bin"], "timeout": 60}
OTHER = {"path": "/usr/libexec/oci/hooks.d/other", "args": ["x"]}


def proposal(**more: Any) -> Dict[str, Any]:
    """What podman 4.3 gives, shortened."""
    userdata = f"/var/lib/containers/storage/overlay-containers/{ID}/userdata"
    return {
        "ociVersion": "1.0.2-dev",
        "process": {"user": {"uid": 0, "gid": 0, "umask": 18}, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/"},
        "root": {"path": "/var/lib/containers/storage/overlay/abc/merged"},
        "mounts": [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
                   {"destination": "/etc/hosts", "type": "bind", "source": f"{userdata}/hosts", "options": ["bind"]}],
        "annotations": {"io.container.manager": "libpod"},
        "linux": {"cgroupsPath": f"/libpod_parent/libpod-{ID}", "resources": {"pids": {"limit": 2048}, "memory": {"limit": 2**63 - 1}}},
        **more,
    }


def record(**more: Any) -> Dict[str, Any]:
    return {"tree_at": "", "dirs": [], "tree": [], "in_place": [], "files": [], "modules": [], "cache": None, **more}


@pytest.mark.parametrize("path", [f"/libpod_parent/libpod-{ID}", f"machine.slice:libpod:{ID}", "", "/elsewhere"])
def test_which_container_it_is(path: str) -> None:
    given = proposal()
    given["linux"]["cgroupsPath"] = path
    state = container.proposed(given)
    assert (state.id, state.pid, state.bundle) == (ID, 0, f"/var/lib/containers/storage/overlay-containers/{ID}/userdata")


def test_a_container_that_nothing_names() -> None:
    state = container.proposed({"root": {"path": "/x"}, "mounts": [{"destination": "/a", "source": "/b-containers/me/userdata/c"}]})
    assert (state.id, state.bundle) == ("", "")


def test_a_source_that_names_another_container() -> None:
    """A volume may lie anywhere, in another container's folder too."""
    given = proposal()
    given["mounts"].insert(0, {"destination": "/x", "source": f"/evil/overlay-containers/{'0' * 64}/userdata/x"})
    assert container.proposed(given).bundle.startswith("/var/lib/")


def test_the_store_has_its_record_where_dev_shm_lies() -> None:
    """podman shuffles mounts; of those that it makes itself some lie below its runroot."""
    given = proposal()
    run = [{"destination": f"/etc/{name}", "source": f"/run/overlay-containers/{ID}/userdata/{name}"} for name in ("hosts", "hostname")]
    shm = {"destination": "/dev/shm", "source": f"/var/lib/containers/storage/overlay-containers/{ID}/userdata/shm"}
    for order in ([*run, shm], [shm, *run], [run[0], shm, run[1]]):
        given["mounts"] = order
        assert container.proposed(given).bundle == f"/var/lib/containers/storage/overlay-containers/{ID}/userdata"


def test_mounts_are_added_last_and_nobody_can_write_through_them() -> None:
    before = proposal()
    after = copy.deepcopy(before)
    made = record(
        tree_at="/dev/.oci-hpc", dirs=["opt", "opt/mods"],
        tree=[["/opt/libmpi.so.12", 1, 2, 3, "opt/libmpi.so.12"], ["/opt/mods/one.so", 1, 2, 3, "opt/mods/one.so"]],
        in_place=[["/opt/libmpi.so.12", 1, 2, 3, "/usr/lib/libmpi.so.12", 4, 5, 6]],
        modules=[["opt/mods", "/usr/lib/mods", 7, 8]], cache={"target": "/etc/ld.so.cache", "over": None})
    config.inject(after, made, "/var/cache/x.ldcache", 8192)
    added = after["mounts"][len(before["mounts"]):]
    assert after["mounts"][:len(before["mounts"])] == before["mounts"]
    assert {key: after[key] for key in after if key != "mounts"} == {key: before[key] for key in before if key != "mounts"}
    assert [(mount["destination"], mount["source"]) for mount in added] == [
        ("/dev/.oci-hpc", "oci-hpc-hooks"), ("/dev/.oci-hpc/opt/libmpi.so.12", "/opt/libmpi.so.12"),
        ("/dev/.oci-hpc/opt/mods/one.so", "/opt/mods/one.so"), ("/usr/lib/libmpi.so.12", "/opt/libmpi.so.12"),
        ("/usr/lib/mods", "oci-hpc-hooks"), ("/usr/lib/mods/one.so", "/opt/mods/one.so"), ("/etc/ld.so.cache", "/var/cache/x.ldcache")]
    assert all({"ro", "nosuid", "nodev"} <= {*mount["options"]} for mount in added)
    assert config.is_injected(after) and not config.is_injected(before)


EXTRAS = [("directory", "/run/job"), ("socket", "/run/munge/munge.socket.2"), ("device", "/dev/null")]


def test_what_is_particular_to_a_start() -> None:
    before = proposal()
    after = copy.deepcopy(before)
    config.wire_up(after, EXTRAS, {"PMIX_RANK": "3", "PATH": "/opt/bin"}, config.device_rules(EXTRAS))
    added = after["mounts"][len(before["mounts"]):]
    assert [(mount["destination"], mount["source"], mount["type"]) for mount in added] == [(path, path, "bind") for _, path in EXTRAS]
    assert [{"nosuid", "rprivate"} <= {*mount["options"]} for mount in added] == [True] * 3
    assert ["rw" in mount["options"] for mount in added] == [True, False, False]
    assert ["nodev" in mount["options"] for mount in added] == [True, True, False]
    assert after["process"]["env"] == ["PMIX_RANK=3", "PATH=/opt/bin"]
    assert after["linux"]["resources"].pop("devices") == [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}]
    after["mounts"], after["process"]["env"] = before["mounts"], before["process"]["env"]
    assert after == before


def test_no_rules_for_devices_where_the_runtime_may_set_none() -> None:
    given = proposal()
    config.wire_up(given, EXTRAS, {}, [])
    assert given["linux"] == proposal()["linux"] and given["process"] == proposal()["process"]


@pytest.mark.parametrize("given", [
    {}, {"process": None, "linux": None}, {"process": {"user": None, "env": None}, "linux": {"resources": None}}])
def test_parts_that_a_configuration_lacks(given: Dict[str, Any]) -> None:
    config.wire_up(given, EXTRAS, {"PMIX_RANK": "3"}, config.device_rules(EXTRAS))
    config.join(given, [44])
    config.hide(given, ["/proc/x"])
    assert given["process"] == {"env": ["PMIX_RANK=3"], "user": {"additionalGids": [44]}}
    assert given["linux"]["maskedPaths"] == ["/proc/x"] and len(given["linux"]["resources"]["devices"]) == 1


@pytest.mark.parametrize("given", [
    {"process": {"env": "x"}}, {"process": []}, {"process": {"user": {"additionalGids": "1"}}}, {"linux": {"maskedPaths": {"a": "b"}}},
    {"linux": {"resources": {"devices": "x"}}}, {"linux": {"resources": 1}}])
def test_parts_that_are_something_else(given: Dict[str, Any]) -> None:
    with pytest.raises(InputError, match="was expected, found"):
        config.wire_up(given, EXTRAS, {"PMIX_RANK": "3"}, config.device_rules(EXTRAS))
        config.join(given, [44])
        config.hide(given, ["/proc/x"])


@pytest.mark.parametrize("case", PODMAN_CASES)
def test_real_configurations_come_out_with_our_edits_and_no_others(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = (DATA / case / "config.json").read_text()
    before = json.loads(text)
    given: Dict[str, Any] = jsontext.as_mapping(jsontext.loads(text.encode(), "config.json", 1 << 24), "config.json")
    config.inject(given, record(in_place=[["/opt/libmpi.so.12", 1, 2, 3, "/usr/lib/libmpi.so.12", 4, 5, 6]]), "", 0)
    config.wire_up(given, EXTRAS, {"PMIX_RANK": "3"}, config.device_rules(EXTRAS))
    config.answer(text.encode(), given, False, True)
    after = json.loads(capfd.readouterr().out)
    assert after["mounts"][:len(before["mounts"])] == before["mounts"] and len(after["mounts"]) == len(before["mounts"]) + 4
    assert after["process"]["env"] == [*before["process"]["env"], "PMIX_RANK=3"]
    devices = after["linux"]["resources"]["devices"]
    assert devices[:-1] == before["linux"].get("resources", {}).get("devices", []) and devices[-1]["minor"] == 3
    after["mounts"], after["process"]["env"], after["linux"] = before["mounts"], before["process"]["env"], before["linux"]
    assert after == before


@pytest.mark.parametrize(("path", "image", "bundle", "later"), [
    ("", "a" * 64, "/store/overlay-containers/1/userdata", True),  # podman 5's folder, before anything is mounted there
    ("/proc", "a" * 64, "/store/overlay-containers/1/userdata", False),
    ("", "a" * 64, "/store/vfs-containers/1/userdata", False),
    ("", "", "/store/overlay-containers/1/userdata", False),  # podman run --rootfs
])
def test_root_filesystem_that_comes_later(tmp_path: Path, path: str, image: str, bundle: str, later: bool) -> None:
    made = precreate.Proposal.__new__(precreate.Proposal)
    made.start = SimpleNamespace(image=SimpleNamespace(image_id=image), state=SimpleNamespace(bundle=bundle))  # type: ignore[assignment]
    made.root = Root(os.open(path or tmp_path, os.O_PATH | os.O_DIRECTORY))
    assert made.comes_later() == later


# ------------------------------------------------------------------------------------------------ the answer


def answer(capfd: pytest.CaptureFixture[str], stdin: bytes, leave: bool = False, edit: Any = None) -> str:
    given = jsontext.as_mapping(jsontext.loads(stdin, "config.json", 1 << 24), "config.json")
    if edit:
        edit(given)
    config.answer(stdin, given, leave, False)
    return capfd.readouterr().out


def test_nothing_to_change_is_byte_for_byte_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(proposal(hooks={"createRuntime": [OTHER]}), indent=3)
    assert answer(capfd, text.encode()) == text


@pytest.mark.parametrize(("leave", "left"), [(False, [OTHER]), (True, [OTHER, OWN])])
def test_our_other_hook_is_taken_out_unless_work_is_left_to_it(capfd: pytest.CaptureFixture[str], leave: bool, left: List[Any]) -> None:
    given = proposal(hooks={"prestart": [OTHER], "createRuntime": [OTHER, OWN]})
    after = json.loads(answer(capfd, json.dumps(given).encode(), leave))
    assert after == {**given, "hooks": {"prestart": [OTHER], "createRuntime": left}}


NUMBERS = st.integers(-(2**63), 2**64 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(st.none() | st.booleans() | NUMBERS | TEXTS,
                      lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(VALUES, st.dictionaries(TEXTS, TEXTS, max_size=4))
def test_everything_else_survives(value: Any, annotations: Dict[str, str]) -> None:
    """Whatever stands in the configuration comes out as it went in."""
    given = proposal(annotations=annotations, other=value)
    read = jsontext.loads(json.dumps(given).encode(), "config.json", 1 << 24)
    assert json.loads(jsontext.dumps(read)) == given


# ------------------------------------------------------------------------------------------------ the executable


def run(stdin: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = (f"import sys; sys.path.append({str(ROOT)!r}); from oci_hpc_hooks.warm import main\n"
            f"main('precreate', config='{folder}/etc', state='{folder}/state', cache='{folder}/cache', log='{folder}/log')")
    return subprocess.run([sys.executable, "-IS", "-c", code], input=stdin, capture_output=True, text=True)


def test_who_asks_for_nothing_gets_the_configuration_back(tmp_path: Path) -> None:
    text = json.dumps(proposal())
    done = run(text, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, text, "")
    assert [*tmp_path.iterdir()] == []


def test_an_image_that_cannot_be_read_yet_is_left_to_createruntime(tmp_path: Path) -> None:
    """What store it lies in may stand in the monitor's command line alone, and there is no monitor yet."""
    text = json.dumps(proposal(hooks={"createRuntime": [OTHER, OWN]}))
    done = run(text, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, text, "")


def test_a_file_of_the_loaders_cache(tmp_path: Path) -> None:
    """Written once; another's file under its name, or one cut short, is replaced."""
    path = Path(precreate.cache_file(str(tmp_path), b"cache"))
    assert path.read_bytes() == b"cache" and os.listdir(tmp_path) == [path.name]
    before = path.stat().st_ino
    assert Path(precreate.cache_file(str(tmp_path), b"cache")) == path and path.stat().st_ino == before
    path.write_bytes(b"")
    precreate.cache_file(str(tmp_path), b"cache")
    assert path.read_bytes() == b"cache"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    precreate.cache_file(str(tmp_path), b"cache")
    assert path.read_bytes() == b"cache" and os.listdir(tmp_path) == [path.name]


def test_a_file_of_the_loaders_cache_that_is_cut_short(tmp_path: Path) -> None:
    path = Path(precreate.cache_file(str(tmp_path), b"the loader's cache"))
    for length in range(len(b"the loader's cache")):
        path.write_bytes(b"the loader's cache"[:length])
        assert Path(precreate.cache_file(str(tmp_path), b"the loader's cache")).read_bytes() == b"the loader's cache"
    assert os.listdir(tmp_path) == [path.name]


def test_another_cache_with_the_same_checksum(tmp_path: Path) -> None:
    """The author of an image has a say in the bytes, and a checksum can be forged: another container's cache is not taken for this one's,
    nor replaced under a runtime that is about to mount it."""
    first = Path(precreate.cache_file(str(tmp_path), b"one's cache"))
    first.write_bytes(b"the other's")  # as long, and in the tests' eyes with the same sum
    second = Path(precreate.cache_file(str(tmp_path), b"one's cache"))
    assert (first.read_bytes(), second.read_bytes()) == (b"the other's", b"one's cache") and first != second
    assert precreate.cache_file(str(tmp_path), b"one's cache") == str(second)


def test_a_folder_that_others_can_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(OSError, match="others can write it"):
        precreate.cache_file(str(tmp_path), b"cache")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"root": 1}', '{"root": {"path": ""}}', '{"root": {"path": "/x"}, "mounts": {}}',
                                  '{"root": {"path": "/x"}, "hooks": {"createRuntime": 5}}', '{"root": {"path": "/x"}, "linux": []}'])
def test_what_is_wrong_is_one_sentence_and_no_answer(text: str, tmp_path: Path) -> None:
    done = run(text, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("oci-hpc-hooks: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and "defect" not in done.stderr


def test_what_it_imports(tmp_path: Path) -> None:
    check(modules("import oci_hpc_hooks.warm, oci_hpc_hooks.apply.config"), modules("pass"),
          LIGHT | {"oci_hpc_hooks.apply", "oci_hpc_hooks.apply.config"}, ALLOWED)
