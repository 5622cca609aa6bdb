"""Who starts a container, and from where: read from processes and a configuration, whatever stands there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci_hpc_hooks.errors import InputError
from oci_hpc_hooks.inputs import launcher
from oci_hpc_hooks.situation import Situation
from tests.unit.inputs.conftest import DATA, PODMAN_CASES


def test_the_environment_of_a_process() -> None:
    odd = {b"PMIX_RANK": b"3", b"BAD": b"\xff", b"EMPTY": b"", b"A": b"b=c"}
    with subprocess.Popen(["sleep", "60"], env=odd) as process:
        try:
            found: Mapping[str, str] = {}
            while not found:  # the kernel shows none before the program is there
                found = launcher.process_environment(process.pid)
            assert found == {"PMIX_RANK": "3", "EMPTY": "", "A": "b=c"}
        finally:
            process.kill()


def test_a_process_that_is_not_there() -> None:
    assert launcher.process_environment(2**22 + 1) == {}
    assert launcher.of_podman(2**22 + 1, []) == ({}, "the process that started this hook cannot be looked at")


@pytest.mark.parametrize(("words", "seen"), [
    (["podman", "run", "x"], True), (["podman", "--log-level", "debug", "start", "system"], True),
    (["podman", "system", "service", "--time=0"], False), (["/usr/bin/podman", "--runtime", "crun", "system", "service"], False)])
def test_a_service_tells_nothing_of_the_caller(words: List[str], seen: bool) -> None:
    found, why = launcher.of_podman(os.getpid(), words)
    assert bool(found) is seen and bool(why) is not seen


@pytest.mark.parametrize(("words", "count"), [
    (["podman", "run", "--preserve-fds", "2", "x"], 2), (["podman", "run", "--preserve-fds=1", "x"], 1), (["podman", "run", "x"], 0),
    (["podman", "run", "--preserve-fds"], 0), (["podman", "run", "--preserve-fds=²"], 0), (["podman", "run", "--preserve-fds=-1"], 0)])
def test_descriptors_that_are_passed_on(words: List[str], count: int) -> None:
    assert launcher.preserved_descriptors(words) == count


@pytest.mark.parametrize(("namespaces", "private"), [
    ([], ()), ([{"type": "mount"}, {"type": "uts"}], ()),
    ([{"type": "network"}, {"type": "ipc"}, {"type": "pid"}, {"type": "user"}], ("network", "ipc", "pid", "user")),
    ([{"type": "network", "path": "/proc/self/ns/net"}], ()), ([{"type": "network", "path": "/no/such"}], ("network",)),
    ([{"type": "network", "path": "/proc/self/ns/mnt"}], ("network",)),
    ([{"type": "ipc", "path": "/proc/1/ns/ipc"}, {"type": "pid", "path": "/x"}], ()),
])
def test_namespaces_of_its_own(namespaces: List[Dict[str, str]], private: tuple[str, ...]) -> None:
    assert launcher.private_namespaces({"linux": {"namespaces": namespaces}}) == private


def shm(*options: str, kind: str = "tmpfs", source: str = "shm") -> Dict[str, Any]:
    return {"mounts": [{"destination": "/dev/shm", "type": kind, "source": source, "options": list(options)}]}


@pytest.mark.parametrize(("config", "size"), [
    (shm("size=65536k"), 64 << 20), (shm("size=64m"), 64 << 20), (shm("size=1G"), 1 << 30), (shm("size=4096"), 4096), (shm(), -1),
    (shm("size=x"), -1), (shm("size=²k"), -1), ({}, -1), (shm("rbind", kind="bind", source="/no/such"), -1)])
def test_room_in_dev_shm(config: Dict[str, Any], size: int) -> None:
    assert launcher.shm_size(config) == size


def test_room_in_the_nodes_dev_shm(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert launcher.shm_size(shm("bind", kind="bind", source=str(tmp_path))) == status.f_blocks * status.f_frsize


def test_locked_memory_of_a_process() -> None:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert launcher.memlock_of(os.getpid()) == (soft if soft != resource.RLIM_INFINITY else -1)
    assert launcher.memlock_of(2**22 + 1) == -1


def test_a_situation() -> None:
    config = {
        "process": {"user": {"uid": 5, "gid": 6}, "env": ["PATH=/bin", "PMIX_RANK=9", "A=1", "A=2"],
                    "rlimits": [{"type": "RLIMIT_MEMLOCK", "soft": 2**64 - 1, "hard": 2**64 - 1}]},
        "linux": {"namespaces": [{"type": "user"}]},
    }
    now = launcher.situation(config, ["PATH=/bin", "PMIX_RANK=9"], "createRuntime")
    assert (now.given, now.inside["PMIX_RANK"], now.can_set) == ({"A": "2"}, "9", False)
    assert now.launcher["A"] == "2" and now.launcher.get("PMIX_RANK") == os.environ.get("PMIX_RANK")
    assert (now.user, now.private, now.root, now.memlock) == ((5, 6), ("user",), False, -1)
    assert "precreate" in now.unseen
    assert launcher.situation(config, [], "precreate").can_set


def test_nothing_is_the_callers_where_the_images_variables_are_not_known() -> None:
    config = {"process": {"env": ["PMIX_RANK=9"]}}
    assert launcher.situation(config, None, "createRuntime").given == {}
    assert launcher.situation(config, [], "createRuntime").given == {"PMIX_RANK": "9"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's containers have root of the node in them")
@pytest.mark.parametrize(("mappings", "root"), [([(0, 100000, 65536)], False), ([(0, 0, 1000)], True), ([(0, 1, 9), (9, 0, 1)], True)])
def test_a_user_namespace_with_root_of_the_node_in_it(mappings: List[Tuple[int, int, int]], root: bool) -> None:
    """munge would vouch for it as for root (podman run --uidmap 0:0:1000)."""
    mapped = [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in mappings]
    config: Dict[str, Any] = {"linux": {"namespaces": [{"type": "user"}], "uidMappings": mapped}}
    assert launcher.situation(config, [], "precreate").root is root


@pytest.mark.parametrize("case", PODMAN_CASES)
def test_real_configurations(case: str) -> None:
    config = json.loads((DATA / case / "config.json").read_text())
    now = launcher.situation(config, [], "precreate")
    assert ("user" in now.private) == ("keep-id" in case or "uidmap" in case)
    assert {"ipc", "pid"} <= {*now.private} and now.inside["PATH"]


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@given(part=st.sampled_from([("process", "user"), ("process", "env"), ("process", "rlimits"), ("linux", "namespaces"), ("mounts",)]),
       value=VALUES)
def test_a_configuration_that_is_wrong_is_a_sentence(part: tuple[str, ...], value: Any) -> None:
    config: Dict[str, Any] = {}
    place = config
    for name in part[:-1]:
        place = place.setdefault(name, {})
    place[part[-1]] = value
    try:
        launcher.situation(config, [], "createRuntime")
    except InputError as error:
        assert "config.json" in str(error)


# ------------------------------------------------------------------------------------------------ what there is on the node


def test_directories_and_sockets(tmp_path: Path) -> None:
    import socket

    own = os.geteuid()
    (tmp_path / "file").touch()
    assert launcher.why_no_directory(str(tmp_path), [own]) == ""
    assert "belongs to uid" in launcher.why_no_directory(str(tmp_path), [own + 1])
    assert launcher.why_no_directory(str(tmp_path / "file"), [own]) == "it is no directory"
    assert "cannot be looked at" in launcher.why_no_directory(str(tmp_path / "none"), [own])
    assert "cannot be looked at" in launcher.why_no_directory("/a\0b", [own])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert launcher.why_no_socket(str(tmp_path / "s")) == ""
    assert launcher.why_no_socket(str(tmp_path / "file")) == "it is no socket"
    assert "cannot be looked at" in launcher.why_no_socket(str(tmp_path / "none"))


def test_whose_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Situation()
    now.launcher, now.caller = {"SLURM_JOB_UID": "1000"}, (0, 0)
    monkeypatch.setattr(launcher.posix, "geteuid", lambda: 0)  # type: ignore[attr-defined]
    assert launcher.owners(now) == (0,)
    now.can_set = False
    assert launcher.owners(now) == (0, 1000)
    now.launcher["SUDO_UID"] = "1001"
    assert launcher.owners(now) == (1001,)
    now.caller = (1000, 1000)
    assert launcher.owners(now) == (0,)


def test_a_path_that_others_could_change(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("these directories are to be root's")
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    assert launcher.why_movable("/tmp/x") == "" and launcher.why_movable(str(tmp_path / "a/b")) == ""
    assert "is a link" in launcher.why_movable(str(tmp_path / "link/b"))
    os.chown(tmp_path / "a", 1000, 0)
    assert "others than root" in launcher.why_movable(str(tmp_path / "a/b"))
    os.chown(tmp_path / "a", 0, 0)
    (tmp_path / "a").chmod(0o777)
    assert "others than root" in launcher.why_movable(str(tmp_path / "a/b"))
    assert "cannot be looked at" in launcher.why_movable(str(tmp_path / "none/b"))


def test_environment_larger_than_is_read() -> None:
    code = "import os, sys; os.execve(sys.executable, [sys.executable, '-c', 'input()'], {f'V{n}': 'x' * 100000 for n in range(12)})"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        try:
            found: Mapping[str, str] = {}
            for _ in range(200):
                found = launcher.process_environment(process.pid)
                if "V11" in found:
                    break
                subprocess.run(["sleep", "0.05"], check=True)
            assert sum(map(len, found.values())) == 1_200_000
        finally:
            process.kill()
