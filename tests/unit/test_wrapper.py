"""The runtime in front of the runtime: what it adds to config.json, and that everything else is as it came."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Optional

import pytest

from oci_hpc_hooks import cli, wrapper

HOOK = {"path": "/h", "args": ["/h"], "env": ["A=b"], "timeout": 60}
OTHER = {"path": "/other"}


@pytest.mark.parametrize(("line", "bundle"), [
    ("--root /r --log /l --log-format json create --bundle /b --pid-file /p id", "/b"),
    ("--systemd-cgroup run -b /b id", "/b"),
    ("create --bundle=/b id", "/b"),
    ("--debug run id", "."),
    ("--root /r state id", None),
    ("start id", None),
    ("", None),
    ("features", None),
])
def test_which_bundle(line: str, bundle: Optional[str]) -> None:
    """Lines of containerd-shim, dockerd and people."""
    assert wrapper.bundle_of(line.split()) == bundle


@pytest.mark.parametrize("before", [
    {}, {"hooks": {}}, {"hooks": None}, {"hooks": {"poststop": [OTHER]}}, {"hooks": {"createRuntime": None}},
    {"hooks": {"createRuntime": [OTHER]}}, {"hooks": {"createRuntime": [HOOK, OTHER]}}])
def test_the_hook_is_there_once_and_last(before: dict[str, Any]) -> None:
    made = wrapper.edited({"root": 1, **before}, HOOK)
    assert made["hooks"]["createRuntime"][-1] == HOOK
    assert made["hooks"]["createRuntime"].count(HOOK) == 1
    stages = before.get("hooks") or {}
    assert [entry for entry in stages.get("createRuntime") or () if entry != HOOK] == made["hooks"]["createRuntime"][:-1]
    assert {**made, "hooks": {**made["hooks"], "createRuntime": 0}} == {"root": 1, "hooks": {**stages, "createRuntime": 0}}


@pytest.mark.parametrize("config", [[], 1, {"hooks": []}, {"hooks": {"createRuntime": {}}}])
def test_what_no_runtime_would_take_is_left_to_it(config: object) -> None:
    assert wrapper.edited(config, HOOK) == config


class Wrapped:
    """A runtime that says how it was called, behind the file that register writes."""

    def __init__(self, folder: Path) -> None:
        self.bundle = folder / "bundle"
        self.bundle.mkdir()
        self.config = self.bundle / "config.json"
        runtime = folder / "myrunc"
        runtime.write_text('#!/bin/sh\necho "$A|$*"\nread line <&5 && echo "$line"\nexit 7\n')
        runtime.chmod(0o755)
        assert cli.run(["register", str(folder / "hooks"), "--wrap", str(runtime)]) == 0
        self.path = folder / "hooks/bin/oci-hpc-hooks-myrunc"
        self.runtime = runtime

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", '"$@" 5<<END\nfifth\nEND', "sh", str(self.path), *words]
        return subprocess.run(command, capture_output=True, text=True, env={"A": "b", "PATH": os.environ["PATH"]}, cwd=self.bundle)


@pytest.fixture
def wrapped(tmp_path: Path) -> Wrapped:
    return Wrapped(tmp_path)


def test_arguments_environment_and_descriptors_are_handed_on(wrapped: Wrapped) -> None:
    wrapped.config.write_text("{}")
    done = wrapped.run("--log", "x", "create", "--bundle", str(wrapped.bundle), "id with blank")
    assert (done.returncode, done.stdout) == (7, f"b|--log x create --bundle {wrapped.bundle} id with blank\nfifth\n"), done.stderr
    hook = json.loads((wrapped.path.parents[1] / "oci-hpc-hooks.json").read_text())["hook"]
    assert json.loads(wrapped.config.read_text()) == {"hooks": {"createRuntime": [hook]}}
    assert os.listdir(wrapped.bundle) == ["config.json"]


def test_the_configuration_is_the_same_beside_the_hook(wrapped: Wrapped) -> None:
    config = {"process": {"args": ["täglich", "\udcff"], "rlimits": [{"hard": 2**64 - 1}]}, "z": 1.5, "a": None}
    wrapped.config.write_text(json.dumps(config))
    wrapped.config.chmod(0o640)
    wrapped.run("run", "x")
    made = json.loads(wrapped.config.read_text())
    del made["hooks"]
    assert made == config
    assert wrapped.config.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_a_bundle_that_is_none_is_the_runtimes_to_refuse(wrapped: Wrapped, text: str) -> None:
    wrapped.config.write_text(text)
    assert wrapped.run("create", "-b", str(wrapped.bundle), "x").returncode == 7
    assert wrapped.config.read_text() == text
    wrapped.config.unlink()
    assert wrapped.run("create", "x").returncode == 7


def test_other_commands_look_at_no_bundle(wrapped: Wrapped) -> None:
    wrapped.config.write_text("{}")
    wrapped.run("delete", "--force", "x")
    assert wrapped.config.read_text() == "{}"


def test_a_runtime_that_is_gone(wrapped: Wrapped) -> None:
    wrapped.runtime.unlink()
    done = wrapped.run("state", "x")
    assert done.returncode == 1
    assert done.stderr.startswith(f"oci-hpc-hooks: {wrapped.runtime}: No such file or directory. Site admin: ")


def test_registering(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["register", str(tmp_path), "--wrap", "no-such-runtime"]) == 2
    assert "there is no runtime no-such-runtime in PATH" in capsys.readouterr().err
    assert cli.run(["register", "--wrap", "runc", "--podman", str(tmp_path)]) == 2
    assert "--wrap needs the folder" in capsys.readouterr().err


def test_unregister_knows_it(wrapped: Wrapped) -> None:
    assert cli.run(["unregister", str(wrapped.path.parents[1])]) == 0
    assert not wrapped.path.parents[1].exists()
