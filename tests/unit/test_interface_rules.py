"""What an interface leaves on the node, and profiles that no schema can judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest

from oci_hpc_hooks.apply.network import left_behind
from oci_hpc_hooks.inputs import profiles


@pytest.mark.parametrize("devices, mode, told", [
    (["mlx5_0"], "Y", False), (["mlx5_0"], "N", True), (["mlx5_0"], "0", True), ([], "N", False), (None, "N", False),
    (["mlx5_0"], None, False),
])
def test_rdma_devices_stay_where_they_are_not_shared(tmp_path: Path, devices: List[str], mode: str, told: bool) -> None:
    """Files by the kernel's source: the test bed's has no RDMA. ib_core has ``netns_mode``, Y for shared (Linux 5.2)."""
    for device in devices or ():
        (tmp_path / "hsn0/device/infiniband" / device).mkdir(parents=True)
    if devices == []:
        (tmp_path / "hsn0/device/infiniband").mkdir(parents=True)
    if mode is not None:
        (tmp_path / "netns_mode").write_text(mode + "\n")
    found = left_behind("hsn0", f"{tmp_path}/{{}}/device/infiniband", f"{tmp_path}/netns_mode")
    assert bool(found) == told
    assert not found or ("mlx5_0 of hsn0" in found[0] and "rdma system set netns shared" in found[0])


@pytest.mark.parametrize("change, expected", [
    ({}, []),
    ({"interfaces": [{"device": "ib0", "mode": "move", "addresses": ["10.0.0.1/8"]}]}, ["$.interfaces[0].addresses"]),
    ({"interfaces": [{"device": "ib*", "mode": "ipvlan", "name": "a", "addresses": ["10.0.0.1/8"]}]},
     ["$.interfaces[0].name", "$.interfaces[0].addresses"]),
    ({"interfaces": [{"device": "ib0", "mode": "ipvlan", "addresses": ["10.0.0.1/8", "10.0.0.300/8", "10.0.0.1/33"]}]},
     ["$.interfaces[0].addresses[1]", "$.interfaces[0].addresses[2]"]),
    ({"provides": {"launcher": "x"}}, ["$"]),
    ({"interfaces": None}, ["$"]),
])
def test_what_no_schema_can_say(change: Dict[str, Any], expected: List[str]) -> None:
    document = {"name": "net", "provides": {"network": "net"}, "interfaces": [{"device": "ib0", "mode": "move"}], **change}
    document = {key: value for key, value in document.items() if value is not None}
    assert [problem.path for problem in profiles.semantic_problems(document, "/etc/net.json")] == expected
