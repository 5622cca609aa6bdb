"""Groups of device nodes that a container's program needs."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest

from oci_hpc_hooks import wireup
from oci_hpc_hooks.inputs import container
from oci_hpc_hooks.linux import namespaces, syscalls


@pytest.fixture
def nodes(tmp_path: Path) -> List[str]:
    """One that anybody may open, two of group 4242, one of which its members may only read."""
    found = []
    for name, mode in (("all", 0o666), ("group", 0o660), ("reading", 0o640)):
        path = tmp_path / name
        os.mknod(path, stat.S_IFCHR | mode, os.makedev(1, 3))
        path.chmod(mode)
        os.chown(path, 0, 4242)
        found.append(str(path))
    return found


def needed(nodes: List[str], user: Dict[str, Any], stage: str = container.PRECREATE, **linux: Any) -> wireup.WireUp:
    made = wireup.WireUp()
    annotations = linux.pop("annotations", {})
    state = SimpleNamespace(annotations=annotations)
    start = SimpleNamespace(config={"process": {"user": user}, "linux": linux}, stage=stage, state=state)
    wireup.groups(made, start, nodes)  # type: ignore[arg-type]
    return made


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes device nodes")
@pytest.mark.parametrize(("user", "groups"), [
    ({"uid": 1000, "gid": 1000}, [4242]), ({"uid": 0}, []), ({"uid": 1000, "gid": 4242}, []),
    ({"uid": 1000, "additionalGids": [4242]}, [])])
def test_root_gives_them(nodes: List[str], user: Dict[str, Any], groups: List[int]) -> None:
    made = needed(nodes, user)
    assert (made.groups, made.findings) == (groups, [])
    later = needed(nodes, user, "createRuntime")
    assert later.groups == [] and [finding["code"] for finding in later.findings] == ["device-group"] * len(groups)
    assert all("--group-add 4242" in finding["remedy"] for finding in later.findings)


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes device nodes")
def test_a_user_can_only_keep_them(nodes: List[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "in_own_user_namespace", lambda: True)
    monkeypatch.setattr("posix.geteuid", lambda: 1000)
    made = needed(nodes, {"uid": 0})
    assert made.groups == [] and ["keep-groups" in finding["remedy"] for finding in made.findings] == [True]
    assert needed(nodes, {"uid": 0}, annotations={wireup.KEEP_GROUPS: "1"}).findings == []
    monkeypatch.setattr(syscalls, "may_access", lambda path, mode: syscalls.EACCES)  # nor may the user
    assert needed(nodes, {"uid": 0}).findings == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes device nodes")
def test_a_user_namespace_has_no_such_group(nodes: List[str]) -> None:
    made = needed(nodes, {"uid": 1000}, namespaces=[{"type": "user"}])
    assert made.groups == [] and [finding["code"] for finding in made.findings] == ["device-group"]
