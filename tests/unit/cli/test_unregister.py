"""unregister takes away what register has written, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oci_hpc_hooks import cli
from oci_hpc_hooks.cli import unregister
from tests.unit.cli.test_cli import valid


def test_everything_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hooks"
    assert cli.run(["register", str(folder), "--json"]) == 0
    written = valid(capsys.readouterr().out, "register-output")["written"]
    assert cli.run(["unregister", str(folder), "--json"]) == 0
    said = valid(capsys.readouterr().out, "unregister-output")
    assert sorted(said["removed"]) == sorted(written)
    assert said["left"] == []
    assert [path.endswith(".json") for path in said["removed"]] == sorted((path.endswith(".json") for path in written), reverse=True)
    assert os.listdir(tmp_path) == []


def test_what_is_not_ours_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hooks"
    assert cli.run(["register", str(folder)]) == 0
    others = {folder / "other.json": "{}", folder / "bin/oci-hpc-hooks-mine": "#!/bin/sh\n", folder / "cri/oci-hpc-hooks.json": "{}"}
    for text in ("[]", '{"hook": []}', '{"hook": {"path": 1}}', "[" * 4000):
        (folder / "prestart/oci-hpc-hooks.json").write_text(text)
        assert not unregister._is_ours(str(folder / "prestart/oci-hpc-hooks.json"))
    (folder / "prestart/oci-hpc-hooks.json").unlink()
    for path, text in others.items():
        path.write_text(text)
    assert cli.run(["unregister", str(folder)]) == 0
    assert {path: path.read_text() for path in folder.rglob("*") if path.is_file()} == others
    assert f"left {folder}/cri/oci-hpc-hooks.json, which register has not written like this" in capsys.readouterr().out


def test_the_podman_in_front_of_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/podman").write_text("#!/bin/sh\n")
    (tmp_path / "real/podman").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "real"))
    assert cli.run(["register", "--podman", str(tmp_path / "bin")]) == 0
    assert cli.run(["unregister", "--podman", str(tmp_path / "real")]) == 0
    assert cli.run(["unregister", "--podman", str(tmp_path / "bin")]) == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("podman")) == ["real/podman"]


@pytest.mark.parametrize("arguments", [(), ("/no/such/folder",)])
def test_nothing_to_take_away(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["unregister", *arguments]) == 2
    assert "oci-hpc-hooks: " in capsys.readouterr().err
