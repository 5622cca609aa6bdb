"""A plain bundle's config.json gets the hook, keeps everything else, and loses it again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict

import pytest

from oci_hpc_hooks import cli
from tests.unit.cli.test_cli import valid

WISH = ("--annotation", "org.supercontainers.mpi=mpich")
OTHER = {"path": "/bin/other", "args": ["other"]}
CONFIG: Dict[str, Any] = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "hooks": {"createRuntime": [OTHER], "poststop": [OTHER]},
                          "annotations": {"a": "b"}, "process": {"args": ["täglich"]}}


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hooks")
    assert cli.run(["register", str(folder)]) == 0
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "config.json").chmod(0o600)
    return tmp_path


def config(bundle: Path) -> Any:
    return json.loads((bundle / "config.json").read_text())


def test_there_and_back(bundle: Path, hooks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bundle", str(bundle), "--hooks-dir", str(hooks), "--json", *WISH]) == 0
    said = valid(capsys.readouterr().out, "bundle-output")
    ours = str(hooks / "bin/oci-hpc-hooks-createruntime")
    assert said["hooks"] == ["/bin/other", ours]
    made = config(bundle)
    assert [hook["path"] for hook in made["hooks"]["createRuntime"]] == ["/bin/other", ours]
    assert made["hooks"]["createRuntime"][1] == json.loads((hooks / "oci-hpc-hooks.json").read_text())["hook"]
    assert made["annotations"] == {"a": "b", "org.supercontainers.mpi": "mpich"}
    assert (bundle / "config.json").stat().st_mode & 0o777 == 0o600
    assert cli.run(["bundle", str(bundle), "--remove", *WISH]) == 0
    assert config(bundle) == CONFIG
    assert os.listdir(bundle) == ["config.json"]


def test_twice_is_once(bundle: Path, hooks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("changed", "nothing to change"):
        assert cli.run(["bundle", str(bundle), "--hooks-dir", str(hooks), *WISH]) == 0
        assert capsys.readouterr().out == f"{bundle}/config.json: {word}\n"


@pytest.mark.parametrize(("text", "says"), [
    ("{", "is no bundle"), ("[]", "is no bundle"), ('{"hooks": 1}', "hooks"), ('{"hooks": {"createRuntime": [1]}}', "createRuntime[0]"),
    ('{"annotations": {"a": 1}}', "annotations"),
])
def test_what_is_no_bundle_stays_as_it_is(bundle: Path, hooks: Path, capsys: pytest.CaptureFixture[str], text: str, says: str) -> None:
    (bundle / "config.json").write_text(text)
    assert cli.run(["bundle", str(bundle), "--hooks-dir", str(hooks), *WISH]) == 2
    assert says in capsys.readouterr().err
    assert (bundle / "config.json").read_text() == text


def test_a_hook_that_could_not_be_started(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hooks"
    assert cli.run(["bundle", str(bundle), "--hooks-dir", str(folder)]) == 2
    assert "is no descriptor of ours: No such file" in capsys.readouterr().err
    folder.mkdir()
    for text in ("[" * 4000, r'{"hook": {"path": "/\u0000"}}', r'{"hook": {"path": "/\ud800"}}'):
        (folder / "oci-hpc-hooks.json").write_text(text)
        assert cli.run(["bundle", str(bundle), "--hooks-dir", str(folder)]) == 2
        assert "is no descriptor of ours: " in capsys.readouterr().err
    assert cli.run(["register", str(folder)]) == 0
    (folder / "bin/oci-hpc-hooks-createruntime").unlink()
    assert cli.run(["bundle", str(bundle), "--hooks-dir", str(folder)]) == 2
    assert "which cannot be started" in capsys.readouterr().err
    assert config(bundle) == CONFIG
