"""``explain`` for people, of containers that need not be there."""

from __future__ import annotations

import shlex
from typing import Any, Dict, List

import pytest

from oci_hpc_hooks.cli import explain, show
from oci_hpc_hooks.decide.request import OVERRIDE

FILE = {"source": "/opt/libmpi.so.12", "target": "/usr/lib/libmpi.so.12", "how": "in place", "why": "stands in", "now": ""}


@pytest.mark.parametrize(("options", "left"), [
    ("-d --name solver IMAGE app --name solver", "-d IMAGE app --name solver"),
    ("--name=solver --annotation org.supercontainers.mpi=mpich IMAGE", "IMAGE"),
    ("--annotation=org.supercontainers.mpi=auto --annotation a=b IMAGE app", "--annotation a=b IMAGE app"),
    # It takes the place of the one that is there.
    ("--replace --name solver IMAGE app", "--replace --name solver IMAGE app"),
])
def test_the_command_without_injection_can_be_given_at_once(options: str, left: str) -> None:
    subject = explain.Subject("1", "solver", "IMAGE", "exited", 0, tuple(shlex.split(f"podman run {options}")))
    assert explain._without(subject, None) == f"podman run {OVERRIDE} {left}"


def test_what_is_now_is_told_of_a_container_that_was_looked_into() -> None:
    said: Dict[str, Any] = {"container": "1", "name": "", "image": "IMAGE", "status": "exited", "entry": None, "plan": "/p", "tree": "",
                            "files": [FILE], "differences": [], "without": "podman run"}
    tables: List[show.Table] = []
    for looked in (False, True):
        tables += [block for block in explain._lines({**said, "looked": looked}) if isinstance(block, show.Table)]
    assert [table.headings[3:] for table in tables] == [(), ("NOW",)]
    assert [table.rows[0][3:] for table in tables] == [(), ("not seen",)]
