"""For every test: how its newest commands ended, if it fails; and what the tests in tests/attacks, tests/engine and tests/ranks need is
said once, in a sentence, where it is missing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.bed.bed import last_commands

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip engine tests where they cannot run. `make test` sets everything up and runs as root, so there none is skipped."""
    build = HERE.parent / "build"
    missing = ""
    if os.geteuid() != 0:
        missing = "engine tests start containers of root and of another user: run them as root"
    elif not (build / "images/bookworm.tar").exists() or not (build / "venv").exists():
        missing = "the test bed is not built: run `make setup images`"
    places = {HERE / "attacks", HERE / "engine", HERE / "faults", HERE / "ranks"}
    if not missing and not Path("/usr/sbin/slurmctld").exists():
        missing, places = "there is no Slurm: run `make setup`", {HERE / "ranks"}
    for item in items if missing else []:
        if places & set(item.path.parents):
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test that failed: how its newest commands ended, and all that they said."""
    report = yield
    if report.failed:
        for done in last_commands:
            report.sections.append((f"exit status {done.returncode}: {shlex.join(map(str, done.args))}", f"{done.stdout}{done.stderr}"))
    return report


def pytest_runtest_setup() -> None:
    last_commands.clear()
