"""The state and config.json of real runtimes, and of hostile ones."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.errors import InputError
from oci_hpc_hooks.inputs import container, jsontext
from oci_hpc_hooks.inputs.describe import to_container
from oci_hpc_hooks.inputs.storage import ImageRecord
from oci_hpc_hooks.model import Container, Mount

if TYPE_CHECKING:
    from tests.unit.inputs.conftest import Captured

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = Path(__file__).parent / "data" / "podman"

STATE: Dict[str, Any] = json.loads((DATA / "root-crun" / "state.json").read_text().replace("@GRAPHROOT@", "/var/lib/containers/storage"))


def state_with(**changes: object) -> bytes:
    return json.dumps({**STATE, **changes}).encode()


# ------------------------------------------------------------------------------------------------------------ state

def test_reads_what_runtimes_write(captured: Callable[[str], Captured], any_case: str) -> None:
    real = captured(any_case)
    state = container.read_state(real.state)
    assert state.id == real.id
    assert state.bundle == str(real.bundle)
    assert state.pid > 1
    assert state.status == ("created" if "crun" in any_case else "creating")
    assert state.root == (real.rootfs if "crun" in any_case else "")
    assert state.annotations.get("io.container.manager") == (None if any_case.startswith("bare-") else "libpod")


@pytest.mark.parametrize("pid", [0, 1, -1])
def test_a_stage_inside_the_container_gives_no_host_pid(pid: int) -> None:
    with pytest.raises(InputError, match=rf"gives pid {pid}, not the host pid .* createRuntime"):
        container.read_state(state_with(pid=pid))


@pytest.mark.parametrize("changes, sentence", [
    ({"id": 3}, "the container's state: id: a string was expected, found 3"),
    ({"id": "../x"}, "the container's state: id: a container id was expected, found '../x'"),
    ({"id": ""}, "the container's state: id: a container id was expected, found ''"),
    ({"bundle": None}, "the container's state: bundle: a string was expected, found nothing"),
    ({"bundle": "here"}, "the container's state: bundle: an absolute path was expected, found 'here'"),
    ({"bundle": "/a\0b"}, "the container's state: bundle: a string without NUL was expected, found '/a\\x00b'"),
    ({"pid": "7"}, "the container's state: pid: an integer was expected, found '7'"),
    ({"pid": True}, "the container's state: pid: an integer was expected, found true"),
    ({"annotations": []}, "the container's state: annotations: an object was expected, found an array"),
    ({"annotations": {"a": 1}}, "the container's state: annotations.a: a string was expected, found 1"),
    ({"root": 1}, "the container's state: root: a string was expected, found 1"),
])
def test_a_wrong_state_is_named(changes: Dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        container.read_state(state_with(**changes))
    assert caught.value.what == sentence


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", state_with()[:-20], state_with() + b"}", b"[" * 100_000])
def test_no_state_at_all(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        container.read_state(data)
    assert caught.value.what.startswith("the container's state")


def test_unknown_keys_and_absent_annotations_are_fine() -> None:
    state = container.read_state(b'{"id":"a","pid":7,"bundle":"/b","new":{"x":[1]},"root":"./rootfs/"}')
    assert (state.annotations, state.root, state.status) == ({}, "/b/rootfs", "")


def _hook(data: bytes, limit: int) -> Tuple[str, bool]:
    """What read_stdin says, and whether the writer could write everything."""
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from oci_hpc_hooks.inputs import container\n"
        f"try: print(len(container.read_stdin({limit})))\n"
        "except container.InputError as error: print(error)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        try:
            process.stdin.write(data)
            process.stdin.close()
            whole = True
        except BrokenPipeError:
            whole = False
        return process.stdout.read().decode(), whole


def test_stdin_is_read_to_its_end_even_beyond_the_limit() -> None:
    assert _hook(b"x" * 1_000_000, 1 << 20) == ("1000000\n", True)
    text, whole = _hook(b"x" * 4_000_000, 1 << 20)
    assert whole
    assert text == "the container's state on standard input is larger than the 1 MiB that are read of it.\n"


def test_a_flood_on_stdin_is_not_kept() -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(["head", "-c", "100M", "/dev/zero"], stdout=writing):
        os.close(writing)
        tracemalloc.start()
        with pytest.raises(InputError, match="larger than the 1 MiB"):
            jsontext.read_fd(reading, "it", 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    os.close(reading)
    assert peak < 4 << 20


def test_a_person_at_a_terminal_is_told_what_this_is() -> None:
    ours, theirs = os.openpty()
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from oci_hpc_hooks.inputs import container\n"
        "try: container.read_stdin()\n"
        "except container.InputError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", program], stdin=theirs, capture_output=True, text=True, check=True, timeout=20).stdout
    os.close(ours)
    os.close(theirs)
    assert "which is a terminal" in output


def test_a_closed_stdin_is_a_sentence() -> None:
    program = (
        f"import os, sys; sys.path.insert(0, {str(REPOSITORY)!r}); os.close(0)\n"
        "from oci_hpc_hooks.inputs import container\n"
        "try: container.read_stdin()\n"
        "except container.InputError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "the container's state on standard input cannot be read: Bad file descriptor.\n"


# ------------------------------------------------------------------------------------------------------------ config.json

def test_describes_real_containers(captured: Callable[[str], Captured], any_case: str) -> None:
    real = captured(any_case)
    state = container.read_state(real.state)
    config = container.read_config(state)
    described = to_container(state, config, ImageRecord("0" * 64, "an/image:1"))
    assert described == Container(
        id=real.id,
        bundle=str(real.bundle),
        rootfs=real.rootfs,
        args=("/bin/true",),
        env=tuple(real.config["process"]["env"]),
        cwd="/",
        mounts=tuple(
            Mount(mount["destination"], mount["type"], mount["source"], tuple(mount.get("options", ()))) for mount in real.config["mounts"]
        ),
        annotations=json.loads(real.state)["annotations"],
        labels={},
        manifest_annotations={},
        image_id="0" * 64,
        image_name="an/image:1",
        pid=state.pid,
        read_only=any_case in ("root-runc-read-only", "bare-crun", "bare-runc"),  # runc spec writes "readonly": true
        user_namespace=any_case in ("root-crun-uidmap", "user-crun-keep-id", "user-runc-keep-id"),
    )
    assert len(described.mounts) > 5
    assert container.annotations_of(config) == described.annotations


def test_user_namespaces_and_mappings(captured: Callable[[str], Captured]) -> None:
    config = captured("root-crun-uidmap").config
    assert container.user_namespace(config) == ""
    assert container.uid_mappings(config) == [(0, 200000, 65536)]
    config = {"linux": {"namespaces": [{"type": "mount"}, {"type": "user", "path": "/proc/7/ns/user"}]}}
    assert container.user_namespace(config) == "/proc/7/ns/user"
    assert container.user_namespace({}) is None


def test_label_and_propagation() -> None:
    config: Dict[str, object] = {"linux": {"mountLabel": "system_u:object_r:container_file_t:s0:c1,c2", "rootfsPropagation": "rshared"}}
    assert container.mount_label(config) == "system_u:object_r:container_file_t:s0:c1,c2"
    assert container.rootfs_propagation(config) == "rshared"
    assert container.mount_label({}) == container.rootfs_propagation({}) == ""


@pytest.mark.parametrize("path, rootfs", [
    ("rootfs", "/b/rootfs"), ("./rootfs//x/", "/b/rootfs/x"), ("/abs/./x", "/abs/x"), ("../up", "/b/../up"), ("/", "/"),
])
def test_a_relative_rootfs_starts_at_the_bundle(path: str, rootfs: str) -> None:
    assert container.rootfs({"root": {"path": path}}, "/b") == rootfs


@pytest.mark.parametrize("path, value, sentence", [
    ("process", [], "config.json: process: an object was expected, found an array"),
    ("process.args", "true", "config.json: process.args: an array was expected, found 'true'"),
    ("process.args.0", 3, "config.json: process.args[0]: a string was expected, found 3"),
    ("process.env.1", None, "config.json: process.env[1]: a string was expected, found nothing"),
    ("process.cwd", {}, "config.json: process.cwd: a string was expected, found an object"),
    ("root", None, "config.json: root.path: a string was expected, found nothing"),
    ("root.path", "", "config.json: root.path: a path was expected, found ''"),
    ("root.path", "a\0b", "config.json: root.path: a string without NUL was expected, found 'a\\x00b'"),
    ("root.readonly", "no", "config.json: root.readonly: true or false was expected, found 'no'"),
    ("mounts.2", "/sys", "config.json: mounts[2]: an object was expected, found '/sys'"),
    ("mounts.1.destination", None, "config.json: mounts[1].destination: a string was expected, found nothing"),
    ("mounts.1.options.0", 1, "config.json: mounts[1].options[0]: a string was expected, found 1"),
    ("linux", True, "config.json: linux: an object was expected, found true"),
    ("linux.namespaces.0.type", 1, "config.json: linux.namespaces[0].type: a string was expected, found 1"),
    ("linux.mountLabel", 1, "config.json: linux.mountLabel: a string was expected, found 1"),
])
def test_a_wrong_config_is_named(captured: Callable[[str], Captured], path: str, value: object, sentence: str) -> None:
    real = captured("root-crun")
    state = container.read_state(real.state)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    node: Any = real.config
    for key in parents:
        node = node[key]
    node[last] = value
    (real.bundle / "config.json").write_text(json.dumps(real.config))
    with pytest.raises(InputError) as caught:
        to_container(state, container.read_config(state), ImageRecord())
    assert caught.value.what == sentence


@pytest.mark.parametrize("path, value, sentence", [
    ("uidMappings", [{"containerID": 0, "hostID": 1}], "config.json: linux.uidMappings[0].size: an integer was expected, found nothing"),
    ("uidMappings", {}, "config.json: linux.uidMappings: an array was expected, found an object"),
])
def test_wrong_mappings_are_named(path: str, value: object, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        container.uid_mappings({"linux": {path: value}})
    assert caught.value.what == sentence


@pytest.mark.parametrize("arguments", [
    ["crun", "create", "--bundle", "{bundle}", "x"],
    ["crun", "create", "--bundle={bundle}", "x"],
    ["crun", "run", "-b", "userdata", "x"],
    ["crun", "run", "x"],
])
def test_a_wrong_bundle_is_corrected_from_the_runtime(captured: Callable[[str], Captured], arguments: List[str]) -> None:
    real = captured("root-crun")
    state = container.read_state(real.state)
    state.bundle = "/"
    bundle = str(real.bundle)
    (real.runtime / "cmdline").write_bytes(b"".join(argument.format(bundle=bundle).encode() + b"\0" for argument in arguments))
    if arguments[-2:] == ["run", "x"]:
        (real.runtime / "cwd").unlink()
        (real.runtime / "cwd").symlink_to(bundle)
    assert container.read_config(state) == real.config
    assert state.bundle == bundle


def test_a_missing_config_names_the_bundle_of_the_state(captured: Callable[[str], Captured]) -> None:
    real = captured("bare-runc")
    state = container.read_state(real.state)
    (real.bundle / "config.json").unlink()
    with pytest.raises(InputError) as caught:
        container.read_config(state)
    assert caught.value.what == f"the container's configuration {real.bundle}/config.json does not exist"
    assert state.bundle == str(real.bundle)


def test_a_config_that_is_no_file_does_not_hang(captured: Callable[[str], Captured]) -> None:
    real = captured("bare-runc")
    (real.bundle / "config.json").unlink()
    os.mkfifo(real.bundle / "config.json")
    with pytest.raises(InputError, match="is no regular file"):
        container.read_config(container.read_state(real.state))


def test_a_huge_config_is_refused_before_it_is_read(captured: Callable[[str], Captured]) -> None:
    real = captured("bare-runc")
    with open(real.bundle / "config.json", "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="at most 16 MiB are read of it"):
        container.read_config(container.read_state(real.state))


# ------------------------------------------------------------------------------------------------------------ anything

CONFIG: Dict[str, Any] = json.loads((DATA / "user-crun-keep-id" / "config.json").read_text())

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


def places(value: object, path: Tuple[Any, ...] = ()) -> List[Tuple[Any, ...]]:
    found = [path] if path else []
    children: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


@st.composite
def changed(draw: Any, document: Dict[str, Any]) -> bytes:
    """*document* with up to three values replaced by anything, and perhaps some bytes too."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        *parents, last = draw(st.sampled_from(places(document)))
        node = document
        for key in parents:
            node = node[key]
        node[last] = draw(anything)
    data = bytearray(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if draw(st.booleans()):
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[:draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # another job may hold the machine
@given(changed(STATE))
def test_only_input_error_leaves_a_changed_state(data: bytes) -> None:
    try:
        state = container.read_state(data)
    except InputError as error:
        assert error.what.startswith("the container's state")
    else:
        assert state.pid > 1 and state.bundle.startswith("/") and "/" not in state.id
        assert all(isinstance(text, str) for pair in state.annotations.items() for text in pair)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # another job may hold the machine
@given(changed(CONFIG))
def test_only_input_error_leaves_a_changed_config(data: bytes) -> None:
    state = container.State("a", 7, "/b", "created", {})
    try:
        config = jsontext.as_mapping(jsontext.loads(data, "config.json", 1 << 20), "config.json:")
        described = to_container(state, config, ImageRecord())
        container.uid_mappings(config), container.rootfs_propagation(config), container.annotations_of(config)
    except InputError as error:
        assert error.what.startswith("config.json")
    else:
        assert described.rootfs.startswith("/")
        assert all(isinstance(text, str) and "\0" not in text for text in described.args + described.env)
        assert all(mount.destination.startswith("/") for mount in described.mounts)


# ------------------------------------------------------------------------------------------------------------ processes

def test_real_processes() -> None:
    arguments = ["sh", "-c", "echo ready; read line", "a b", "", "\udcff"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        assert container.parent(process.pid) == os.getpid()
        assert container.command_line(process.pid) == arguments
        process.kill()
    assert container.command_line(process.pid) == []
    assert container.parent(process.pid) == 0
