"""What the warm path imports: each module of the standard library that is missing here costs a hook milliseconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Set

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Our own, of every start of a container.
LIGHT = {
    "oci_hpc_hooks", "oci_hpc_hooks.warm", "oci_hpc_hooks.start", "oci_hpc_hooks.errors", "oci_hpc_hooks.inputs",
    "oci_hpc_hooks.inputs.container", "oci_hpc_hooks.inputs.jsontext", "oci_hpc_hooks.inputs.storage",
}
#: And what is added when a plan is replayed.
REPLAY = {
    "oci_hpc_hooks.replay", "oci_hpc_hooks.report", "oci_hpc_hooks.apply", "oci_hpc_hooks.apply.rootfs", "oci_hpc_hooks.linux",
    "oci_hpc_hooks.linux.mounts", "oci_hpc_hooks.linux.namespaces", "oci_hpc_hooks.linux.paths", "oci_hpc_hooks.linux.syscalls",
}
#: And where it asks for devices.
DEVICES = {"oci_hpc_hooks.wireup", "oci_hpc_hooks.inputs.devices"}
#: And where it asks for something of the job.
WIRE_UP = DEVICES | {"oci_hpc_hooks.decide", "oci_hpc_hooks.decide.job", "oci_hpc_hooks.inputs.launcher", "oci_hpc_hooks.linux.cgroups",
                     "oci_hpc_hooks.linux.bpf", "oci_hpc_hooks.situation"}
#: And where it may get a GPU.
GPUS = {"oci_hpc_hooks.decide.gpus", "oci_hpc_hooks.inputs.gpus"}
#: Of the standard library beyond the bare interpreter: all but the first built in or small and written in C.
ALLOWED = {"__future__", "_json", "_stat", "binascii"}
ALLOWED_IN_REPLAY = {"_ctypes"}
HEAVY = {"json", "re", "typing", "dataclasses", "enum", "ctypes", "pathlib", "logging", "subprocess", "argparse", "collections",
         "functools",
         "tempfile", "signal", "contextlib", "shutil", "threading", "inspect", "importlib.util", "warnings", "socket", "traceback", "os"}


def modules(statements: str) -> Set[str]:
    """What is in sys.modules of an isolated interpreter after these statements."""
    code = f"import sys; sys.path.append({str(ROOT)!r}); {statements}; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def bare() -> Set[str]:
    return modules("pass")


def check(found: Set[str], bare: Set[str], ours: Set[str], others: Set[str]) -> None:
    assert found & HEAVY == set()
    new = found - bare
    assert {name for name in new if name.startswith("oci_hpc_hooks")} == ours
    assert {name for name in new if not name.startswith("oci_hpc_hooks")} <= others


def test_what_every_hook_imports(bare: Set[str]) -> None:
    check(modules("import oci_hpc_hooks.warm"), bare, LIGHT, ALLOWED)


def test_what_a_replay_imports(bare: Set[str]) -> None:
    found = modules("import oci_hpc_hooks.warm, oci_hpc_hooks.replay")
    check(found, bare, LIGHT | REPLAY, ALLOWED | ALLOWED_IN_REPLAY)


def test_what_podman_of_a_rank_imports(bare: Set[str]) -> None:
    """Its text stands alone: the package may be gone."""
    check(modules("import oci_hpc_hooks.shim"), bare, {"oci_hpc_hooks", "oci_hpc_hooks.shim"}, {"__future__"})


def test_what_a_plan_with_devices_imports(bare: Set[str]) -> None:
    found = modules("import oci_hpc_hooks.warm, oci_hpc_hooks.replay, oci_hpc_hooks.wireup")
    check(found, bare, LIGHT | REPLAY | DEVICES, ALLOWED | ALLOWED_IN_REPLAY)


def test_what_a_rank_imports(bare: Set[str]) -> None:
    found = modules("import oci_hpc_hooks.warm, oci_hpc_hooks.replay, oci_hpc_hooks.wireup, oci_hpc_hooks.decide.job, "
                    "oci_hpc_hooks.inputs.launcher, oci_hpc_hooks.linux.bpf, oci_hpc_hooks.linux.cgroups")
    check(found, bare, LIGHT | REPLAY | WIRE_UP, ALLOWED | ALLOWED_IN_REPLAY)


def test_what_a_start_with_gpus_imports(bare: Set[str]) -> None:
    found = modules("import oci_hpc_hooks.warm, oci_hpc_hooks.replay, oci_hpc_hooks.wireup, oci_hpc_hooks.linux.cgroups, "
                    "oci_hpc_hooks.linux.bpf, oci_hpc_hooks.decide.job, "
                    "oci_hpc_hooks.inputs.launcher, oci_hpc_hooks.decide.gpus, oci_hpc_hooks.inputs.gpus")
    check(found, bare, LIGHT | REPLAY | WIRE_UP | GPUS, ALLOWED | ALLOWED_IN_REPLAY)


def test_nothing_heavy_is_in_a_bare_interpreter(bare: Set[str]) -> None:
    assert bare & HEAVY == set()


def test_a_hook_with_nothing_to_do_imports_no_more(bare: Set[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"args": ["true"], "cwd": "/"}}')
    state = json.dumps({"ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 4242, "bundle": str(tmp_path)})
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); from oci_hpc_hooks import warm\n"
        f"warm.run('createRuntime', ('{tmp_path}/etc', '{tmp_path}/state', '{tmp_path}/cache', '{tmp_path}/log'), 0.0)\n"
        "sys.stdout.write(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code], input=state, capture_output=True, text=True, check=True)
    check(set(done.stdout.split()), bare, LIGHT, ALLOWED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_the_whole_hook_says_nothing_where_there_is_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}}')
    state = json.dumps({"id": "c1", "pid": 4242, "bundle": str(tmp_path)})
    code = (f"import sys; sys.path.append({str(ROOT)!r}); from oci_hpc_hooks.warm import main\n"
            f"main('createRuntime', config='{tmp_path}/etc', state='{tmp_path}/state', cache='{tmp_path}/cache', log='{tmp_path}/log')")
    done = subprocess.run([sys.executable, "-IS", "-c", code], input=state, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("state", [
    "", "{", "[]", '{"id":"x"}', '{"id":"c1","pid":0,"bundle":"/nowhere"}', '{"id":"c1","pid":99,"bundle":"/nowhere"}',
    '{"id":"\\u001b[31m","pid":-1,"bundle":"/"}'])
def test_what_is_wrong_with_the_state_is_one_sentence(state: str, tmp_path: Path) -> None:
    code = (f"import sys; sys.path.append({str(ROOT)!r}); from oci_hpc_hooks.warm import main\n"
            f"main('createRuntime', config='{tmp_path}', state='{tmp_path}', cache='{tmp_path}', log='{tmp_path}/log')")
    done = subprocess.run([sys.executable, "-IS", "-c", code], input=state, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("oci-hpc-hooks: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
