"""The wheel and the sdist: installed by pip and by pipx into places of their own, and used from there without the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bed.bed import ROOT
from tests.unit.cli.test_cli import valid

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("git"), reason="there is no git here, which knows what is in the repository"),
]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, built from a copy of what is in the repository: setuptools leaves its notes beside what it builds."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "checkout").mkdir()
    names = run("git", "ls-files", cwd=ROOT)
    subprocess.run(["tar", "-C", ROOT, "-cf", folder / "checkout.tar", "-T", "-"], input=names, text=True, check=True)
    run("tar", "-xf", folder / "checkout.tar", cwd=folder / "checkout")
    run(sys.executable, "-m", "pip", "wheel", "--use-pep517", "--quiet", "--no-deps", "--wheel-dir", folder, ".", cwd=folder / "checkout")
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder, cwd=folder / "checkout")
    return folder


@pytest.mark.parametrize(("way", "pattern"), [("pip", "*.whl"), ("pip", "*.tar.gz"), ("pipx", "*.whl")])
def test_installed(packages: Path, tmp_path: Path, way: str, pattern: str) -> None:
    (package,) = packages.glob(f"oci[-_]hpc[-_]hooks-{pattern}")
    if way == "pip":
        run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
        run(tmp_path / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", package, cwd=tmp_path)
        program = tmp_path / "venv/bin/oci-hpc-hooks"
    else:
        run(sys.executable, "-m", "venv", tmp_path / "pipx", cwd=tmp_path)
        run(tmp_path / "pipx/bin/pip", "install", "--quiet", "--disable-pip-version-check", "pipx", cwd=tmp_path)
        places = ("env", f"PIPX_HOME={tmp_path}/home", f"PIPX_BIN_DIR={tmp_path}/bin")
        run(*places, tmp_path / "pipx/bin/pipx", "install", package, cwd=tmp_path)
        program = tmp_path / "bin/oci-hpc-hooks"
    options = ["--config-dir", tmp_path / "etc", "--state-dir", tmp_path / "state"]
    assert "exit codes" in run(program, "--help", cwd=tmp_path)
    assert valid(run(program, *options, "scan", "--json", cwd=tmp_path), "inventory")["profiles"]
    written = valid(run(program, *options, "register", "--json", tmp_path / "hooks", cwd=tmp_path), "register-output")["written"]
    hook = next(path for path in written if path.endswith("createruntime"))
    done = subprocess.run([hook], input="{}", capture_output=True, text=True)
    assert done.returncode == 1 and "oci-hpc-hooks: " in done.stderr and "Traceback" not in done.stderr
    assert any((tmp_path / "venv" if way == "pip" else tmp_path / "home").rglob("man1/oci-hpc-hooks-check.1"))
