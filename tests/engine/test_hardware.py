"""Fixtures of real GPUs, and the script that makes them: tried on the files of a driver, held to the same rules."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.engine.test_drivers import RELEASES, root_of

#: Kept from machines that had one; docs/contributing.md says how.
FIXTURES = {path.stem: json.loads(path.read_text()) for path in sorted((bed.ROOT / "tests/hardware").glob("*.json"))}


@pytest.fixture(scope="module")
def made() -> Any:
    """What the script makes of a driver without a GPU."""
    folder = bed.scratch("hardware")
    done = subprocess.run([sys.executable, "-m", "tests.bed.hardware", str(folder / "fixture.json"), "--root", str(root_of("550"))],
                          cwd=bed.ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "fixture.json").read_text())
    (folder / "fixture.json").unlink()
    folder.rmdir()
    return found


def missing(fixture: dict[str, Any]) -> set[str]:
    """Libraries of the running NVIDIA driver's release that the machine's own loader knows and a container would not get."""
    versions = re.findall(r"Kernel Module +(?:for \S+ +)?([\d.]+)", fixture["kernel"].get("/proc/driver/nvidia/version", ""))
    here = {Path(path).resolve().name for path in re.findall(r"=> (\S+)", fixture["vendor"].get("ldconfig", ""))}
    comes = {Path(source).name for source, _ in fixture["checks"].get("cuda", {"files": ()})["files"]}
    return {name for name in here if versions and name.endswith(f".so.{versions[0]}")} - comes


def sound(fixture: dict[str, Any]) -> None:
    assert fixture["version"] == 1 and fixture["verified"]["source"]
    assert fixture["checks"], "no stack of GPUs was found"
    for stack, check in fixture["checks"].items():
        assert check["verdict"] in ("unproved", "nothing"), (stack, check)
        assert len(check["files"]) > 3
    assert not missing(fixture)


@pytest.mark.parametrize("name", [*FIXTURES, "the files of a driver"])
def test_a_fixture_is_sound(made: dict[str, Any], name: str) -> None:
    fixture = FIXTURES.get(name, made)
    assert fixture["verified"]["by"] == ("hardware" if name in FIXTURES else "files")
    sound(fixture)
    for stack in fixture["checks"]:
        assert any(line.startswith(f"{stack}: available") for line in fixture["scan"])


def test_what_is_missing_would_be_seen(made: dict[str, Any]) -> None:
    """The same with the kernel's and the loader's word as a machine with a GPU has it."""
    library = f"/usr/lib/x86_64-linux-gnu/libcuda.so.{RELEASES['550']}"
    other = f"/usr/lib/x86_64-linux-gnu/libnvidia-new.so.{RELEASES['550']}"
    version = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {RELEASES['550']}  Tue Apr  8 12:34:56 UTC 2025\n"
    cache = "1 libs\n\tlibx.so (libc6,x86-64) => {}\n"
    kernel = {"/proc/driver/nvidia/version": version}
    assert not missing({**made, "kernel": kernel, "vendor": {"ldconfig": cache.format(library)}})
    assert missing({**made, "kernel": kernel, "vendor": {"ldconfig": cache.format(other)}}) == {Path(other).name}
    assert str(bed.ROOT) not in json.dumps([made["scan"], made["machine"]]).replace(str(root_of("550")), "")
