"""The package as pip installs it into a virtual environment, and a hook of it that has to scan the node anew."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from oci_hpc_hooks import pack
from tests.bed.bed import ROOT

PROBE = b"""
from oci_hpc_hooks import cold
from oci_hpc_hooks.report import Places
print(len(cold.node(Places(*%r)).profiles))
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """README's installation; what the package needs is that of this interpreter."""
    pytest.importorskip("ensurepip", reason="this Python makes no virtual environments: python3-venv is not installed")
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns("build", "tests", "benchmarks", ".*", "*.egg-info", "__pycache__"))
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    (packages,) = (tmp_path / "venv/lib").glob("python3*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    run(tmp_path / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", checkout,
        cwd=tmp_path)
    return tmp_path / "venv/bin/oci-hpc-hooks"


def test_a_hook_of_it_scans_anew(program: Path, tmp_path: Path) -> None:
    """With -S, which a hook is started with, the interpreter does not know that it stands in a virtual environment."""
    places = [str(tmp_path / name) for name in ("etc", "state", "cache", "log")]
    options = [f"--config-dir={places[0]}", f"--state-dir={places[1]}"]
    run(program, *options, "scan", cwd=tmp_path)
    run(program, *options, "register", tmp_path / "hooks", cwd=tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/site.json").write_text(json.dumps({"version": 1}))
    hook = tmp_path / "hooks/bin/oci-hpc-hooks-createruntime"
    text, code = pack.taken_apart(hook.read_bytes())
    python = hook.read_bytes()[2:].split(b" ", 1)[0].decode()
    assert Path(python).parent == program.parent
    hook.write_bytes(pack.joined(python, text[:text.index(b"\nmain(") + 1] + PROBE % (places,), code))
    assert int(run(hook, cwd=Path("/"))) > 20
