"""Device nodes of the node, for real."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from oci_hpc_hooks.inputs.devices import devices
from oci_hpc_hooks.linux import namespaces


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make device nodes")
    for name, mode in (("a0", 0o666), ("a1", 0o600), ("a10", 0o606), ("b", 0o666)):
        try:
            os.mknod(tmp_path / name, stat.S_IFCHR | mode, os.makedev(1, 3))
        except PermissionError as error:
            pytest.skip(f"device nodes cannot be made here: {error}")
        (tmp_path / name).chmod(mode)
    (tmp_path / "a2").write_text("no device")
    (tmp_path / "a3").symlink_to("a0")
    patterns = [f"{tmp_path}/a*", f"{tmp_path}/b", f"{tmp_path}/a0", f"{tmp_path}/none", "/no/such/*"]
    found = {every: [path.rpartition("/")[2] for path in devices(patterns, every)] for every in (True, False)}
    assert found[True] == ["a0", "a1", "a10", "b"]
    assert found[False] == ["a0", "a10", "b"]
    monkeypatch.setattr(namespaces, "caller_uid", lambda: 1000)
    assert devices(patterns, False) == devices(patterns, True)
