"""What register writes: the shipped descriptors with absolute paths, and executables that find the package without site-packages."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
from jsonschema import Draft7Validator

from oci_hpc_hooks import cli, pack
from oci_hpc_hooks.cli import register
from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import resources

DESCRIPTORS = {
    "oci-hpc-hooks.json": "createRuntime", "cri/oci-hpc-hooks.json": "createRuntime", "prestart/oci-hpc-hooks.json": "prestart",
    "podman/oci-hpc-hooks.json": "createRuntime", "podman/oci-hpc-hooks-precreate.json": "precreate",
}
OPTIONS = ["--config-dir", "/a/etc", "--state-dir", "/a/state", "--cache-dir", "/a/cache", "--log-file", "/a/log"]


def template(name: str) -> Dict[str, Any]:
    document: Dict[str, Any] = json.loads(resources.find(f"hooks.d/{name}").read_text())
    return document


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert cli.run([*OPTIONS, "register", str(tmp_path / "hooks")]) == 0
    return tmp_path / "hooks"


@pytest.mark.parametrize(("where", "stage"), DESCRIPTORS.items())
def test_shipped_descriptor(where: str, stage: str) -> None:
    shipped = template(where)
    path = f"/usr/libexec/oci/hooks.d/oci-hpc-hooks-{stage.lower()}"
    guard = {"always": True} if where.startswith("cri/") else {"annotations": {r"^io\.container\.manager$": "^libpod$"}}
    assert shipped == {
        "version": "1.0.0",
        "hook": {"path": path, "args": [path], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"], "timeout": 60},
        "when": guard,
        "stages": [stage],
    }


@pytest.mark.parametrize("where", DESCRIPTORS)
def test_written_descriptor_is_the_shipped_one_with_its_own_path(folder: Path, where: str) -> None:
    written = json.loads((folder / where).read_text())
    executable = Path(written["hook"]["path"])
    assert executable.parent == folder / "bin"
    assert os.access(executable, os.X_OK)
    shipped = template(where)
    assert executable.name == os.path.basename(shipped["hook"]["path"])
    shipped["hook"].update(path=str(executable), args=[str(executable)])
    assert written == shipped


def test_podman_sees_one_descriptor(folder: Path) -> None:
    """Other engines refuse a folder with a stage that they do not know: precreate lies in one that only podman is given."""
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.json")} == {*DESCRIPTORS} == {*register.DESCRIPTORS}
    assert [name for name, stage in DESCRIPTORS.items() if stage == "precreate"] == ["podman/oci-hpc-hooks-precreate.json"]


def test_executable(folder: Path) -> None:
    """What a person sees who looks into it: a few lines of text, and what it was registered with."""
    text, _ = pack.taken_apart((folder / "bin/oci-hpc-hooks-prestart").read_bytes())
    lines = text.decode().splitlines()
    assert len(lines) < 25
    assert lines[-1] == "main('prestart', config='/a/etc', state='/a/state', cache='/a/cache', log='/a/log')"


def test_executable_finds_the_package_and_its_libraries(folder: Path) -> None:
    """Its own first lines, then an import of everything that a hook may need on its cold path."""
    text, code = pack.taken_apart((folder / "bin/oci-hpc-hooks-createruntime").read_bytes())
    head = text[: text.index(b"main(")].decode()
    probe = folder / "probe"
    modules = "oci_hpc_hooks.cold, oci_hpc_hooks.inputs.scan, oci_hpc_hooks.inputs.site, jsonschema, dataclasses_json, elftools"
    head += f"import {modules}\nprint('site' in sys.modules, oci_hpc_hooks.__file__)\n"
    probe.write_bytes(pack.joined(sys.executable, head.encode(), code))
    probe.chmod(0o755)
    result = subprocess.run([str(probe)], capture_output=True, text=True, env={}, cwd="/")
    assert result.stdout == f"False {resources.PACKAGE}/__init__.py\n", result.stderr


def test_executable_runs(folder: Path) -> None:
    """A state that is no JSON: the hook itself answers, in one sentence."""
    hook = folder / "bin/oci-hpc-hooks-createruntime"
    result = subprocess.run([str(hook)], input="no state", capture_output=True, text=True, env={}, cwd="/")
    assert result.returncode == 1
    assert re.fullmatch(r"oci-hpc-hooks: .*JSON.*\n", result.stderr), result.stderr


def test_again_gives_the_same_and_leaves_nothing(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert cli.run([*OPTIONS, "register", str(folder)]) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert len(before) == len(DESCRIPTORS) + 3


def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["register", "--json", str(tmp_path / "hooks")]) == 0
    document = json.loads(capsys.readouterr().out)
    Draft7Validator(json.loads(resources.find("schemas/register-output.schema.json").read_text())).validate(document)
    assert all(Path(path).is_file() for path in document["written"])
    assert len(document["written"]) == len(DESCRIPTORS) + 3


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_folder_that_others_can_write(tmp_path: Path, mode: int, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("a user's own hooks are that user's affair; root's are everyone's")
    tmp_path.chmod(mode)
    assert cli.run(["register", str(tmp_path)]) == 2
    assert f"chmod go-w {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("python", ["/opt/with blank/bin/python3", "/opt/" + "x" * 250 + "/python3"])
def test_python_that_no_first_line_can_name(monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    monkeypatch.setattr(sys, "executable", python)
    args = argparse.Namespace(config_dir="/c", state_dir="/s", cache_dir="/k", log_file="/l")
    with pytest.raises(ConfigError, match="make the virtual environment at another place"):
        register.executable("createRuntime", args)


def test_longest_first_line_that_the_kernel_takes(tmp_path: Path) -> None:
    """The limit is the kernel's: one byte more and it looks for an interpreter whose name is cut."""
    room = pack.FIRST_LINE - len("#! -IS\n") - len(f"{tmp_path}//x")
    python = tmp_path / ("d" * room) / "x"
    python.parent.mkdir()
    python.symlink_to("/bin/echo")
    script = tmp_path / "script"
    for name, runs in ((python, True), (python.with_name("xx"), False)):
        if not name.exists():
            name.symlink_to("/bin/echo")
        script.write_text(f"#!{name} -IS\n")
        script.chmod(0o755)
        try:
            output = subprocess.run([str(script)], capture_output=True, text=True).stdout
        except OSError:
            output = ""
        assert (output == f"-IS {script}\n") is runs, name
