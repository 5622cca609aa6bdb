"""Whether ranks in containers share memory: by the ipc namespace, or by the node's /dev/shm in it."""

from __future__ import annotations

from typing import Any

import pytest

from oci_hpc_hooks.inputs import launcher

BIND = {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind"]}
OWN = {"destination": "/dev/shm", "type": "bind", "source": "/tmp", "options": ["bind"]}
TMPFS = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=64000k"]}


@pytest.mark.parametrize(("mounts", "private"), [
    ([], True), ([TMPFS], True), ([OWN], True), ([BIND], False), ([TMPFS, BIND], False), ([BIND, OWN], True),
    ([{**BIND, "source": "/dev/../dev/shm", "destination": "/dev/./shm"}], False),
    ([{**BIND, "source": "/no/such"}], True), ([{**BIND, "destination": "/shm"}], True),
])
def test_the_nodes_dev_shm(mounts: list[dict[str, Any]], private: bool) -> None:
    config = {"mounts": mounts, "linux": {"namespaces": [{"type": "ipc"}, {"type": "mount"}]}}
    assert ("ipc" in launcher.private_namespaces(config)) is private
