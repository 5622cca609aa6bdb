# ruff: noqa: F811 (fixtures are imported)
"""Confused deputy: a hook of root's that writes its complaint where the caller wants it.

Who may start containers as root by sudo, and nothing else, chooses podman's standard error and its arguments. The complaint has the
caller's words in it; appended to /etc/profile or /etc/ld.so.preload they would be commands of root's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.attacks.weaken import weakened
from tests.bed.bed import Engine
from tests.engine.site import ReadySite, ready  # noqa: F401

ASKS = "--annotation=org.supercontainers.mpi=$(id)"  # which no site knows: refused, with these words


def refused(engine: Engine, hooks: Path, errors: Path, *words: str, mode: str = "rb") -> None:
    command = ["podman", "--runtime", engine.runtime, "--hooks-dir", str(hooks), "run", "--rm", "--net=none",
               "--name", engine.new_name(), ASKS, engine.load("bookworm-mpich"), "true", *words]
    with open(errors, mode) as stderr:
        done = subprocess.run(command, env=engine.account.environment(), stdout=subprocess.DEVNULL, stderr=stderr, timeout=60, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize("stage", ["", "podman"])
def test_a_file_that_the_caller_may_only_read(ready: ReadySite, open_folder: Path, stage: str) -> None:
    engine, victim = Engine("crun", "root"), open_folder / "profile"
    victim.write_text("of root\n")
    refused(engine, ready(engine).hooks_dir / stage, victim)
    assert victim.read_text() == "of root\n"


@pytest.mark.parametrize("words", [("--log", "{}"), ("--log={}",)])
@pytest.mark.parametrize("stage", ["", "podman"])
def test_a_file_that_the_caller_names_in_the_command_line(ready: ReadySite, open_folder: Path, stage: str, words: tuple[str, ...]) -> None:
    engine = Engine("crun", "root")
    victim, errors = open_folder / "profile", open_folder / "errors"
    victim.write_text("of root\n")
    refused(engine, ready(engine).hooks_dir / stage, errors, *(word.format(victim) for word in words), mode="ab")
    assert victim.read_text() == "of root\n"
    assert "unknown value '$(id)'" in errors.read_text()


def test_without_the_defences(ready: ReadySite, scratch: Path, open_folder: Path) -> None:
    engine = Engine("crun", "root")
    victim, errors, named = (open_folder / name for name in ("profile", "errors", "named"))
    for path in (victim, named):
        path.write_text("of root\n")
    hooks = weakened(ready(engine), scratch, ("report.py", "if _is_written(parent, 2):", "if True:"),
                     ("report.py", ' if by_runtime else ""', "")) / "podman"
    refused(engine, hooks, victim)
    refused(engine, hooks, errors, "--log", str(named), mode="ab")
    assert "$(id)" in victim.read_text() and "$(id)" in named.read_text()
