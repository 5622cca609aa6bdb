"""Trees of /proc and /sys as nodes with GPUs have them, made from a few words. None of them was taken from a machine.

``VERIFIED`` says of each by what it is made, in the terms of a profile's ``verified``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Set, Tuple

from oci_hpc_hooks.inputs import gpus, resources, validate
from oci_hpc_hooks.model import Profile
from oci_hpc_hooks.situation import Node

VERIFIED: Dict[str, Dict[str, str]] = {
    "nvidia": {"by": "paper", "source": "the driver's README, chapter 'The /proc Interface'; nvidia-container-toolkit, internal/info/proc"},
    "mig": {"by": "paper", "source": "the MIG user guide, 'Device Nodes and Capabilities'; nvidia-container-toolkit, internal/nvcaps"},
    "imex": {"by": "paper", "source": "the IMEX guide, 'IMEX Channels'"},
    "amd": {"by": "paper", "source": "Linux, drivers/gpu/drm/amd/amdkfd/kfd_topology.c and amdgpu_xcp_drv.c; ROCm/container-toolkit"},
    "intel": {"by": "paper", "source": "Linux, drivers/gpu/drm/drm_sysfs.c; the PCI vendor number 0x8086"},
}


class Bed:
    """A node below ``root``: files as they are added, and ``nodes``: its device nodes; ``closed`` are those that the device cgroup of who
    starts the container does not let be opened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nodes: Set[str] = set()
        self.closed: Set[str] = set()

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def look(self, path: str) -> str:
        return gpus.ABSENT if path not in self.nodes else gpus.CLOSED if path in self.closed else gpus.OPEN

    def node(self, *profiles: str) -> Node:
        return gpus.node(plan(*profiles), str(self.root), self.look)

    # -- what a node has

    def nvidia(self, count: int = 1, minors: Sequence[int] = (), mig: Mapping[int, Sequence[Tuple[int, int]]] = {},
               driver: str = "550.54.14") -> Bed:
        """GPUs in PCI order, the one at place n with the minor ``minors[n]``; ``mig``: the GPU and compute instances by place."""
        self.write("/sys/module/nvidia/version", f"{driver}\n")
        self.nodes |= {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"}
        for place in range(count):
            minor = minors[place] if minors else place
            bus = nvidia_bus(place)
            self.write(f"/proc/driver/nvidia/gpus/{bus}/information", "".join(
                f"{name}: \t {value}\n" for name, value in (
                    ("Model", "NVIDIA H100 80GB HBM3"), ("IRQ", "123"), ("GPU UUID", nvidia_uuid(place)), ("Video BIOS", "96.00.61.00.01"),
                    ("Bus Type", "PCIe"), ("DMA Size", "52 bits"), ("DMA Mask", "0xfffffffffffff"), ("Bus Location", bus),
                    ("Device Minor", str(minor)), ("GPU Excluded", "No"))))
            self._drm(f"/sys/bus/pci/devices/{bus}/drm", place)
            self.nodes.add(f"/dev/nvidia{minor}")
            for instance, compute in mig.get(place, ()):
                folder = f"/proc/driver/nvidia/capabilities/gpu{minor}/mig/gi{instance}"
                for path, number in ((f"{folder}/access", cap(minor, instance)),
                                     (f"{folder}/ci{compute}/access", cap(minor, instance) + 1 + compute)):
                    self.write(path, f"DeviceFileMinor: {number}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
                    self.nodes.add(f"/dev/nvidia-caps/nvidia-cap{number}")
        return self

    def imex(self, *channels: int) -> Bed:
        for channel in channels:
            path = f"/dev/nvidia-caps-imex-channels/channel{channel}"
            self.write(path, "")
            self.nodes.add(path)
        return self

    def amd(self, count: int = 1, partitions: int = 1) -> Bed:
        """Two processors, and GPUs of so many partitions each."""
        self.nodes.add("/dev/kfd")
        for cpu in range(2):
            self._kfd(cpu, {"cpu_cores_count": 64, "simd_count": 0, "drm_render_minor": 0, "unique_id": 0})
        for place in range(count * partitions):
            render = 128 + place
            self._kfd(2 + place, {"cpu_cores_count": 0, "simd_count": 304, "vendor_id": 4098, "location_id": 256 * (place // partitions),
                                  "domain": 0, "drm_render_minor": render, "unique_id": amd_id(place // partitions)})
            self._drm(f"/sys/class/drm/renderD{render}/device/drm", place)
        return self

    def _kfd(self, number: int, properties: Mapping[str, int]) -> None:
        text = "".join(f"{name} {value}\n" for name, value in properties.items())
        self.write(f"/sys/class/kfd/kfd/topology/nodes/{number}/properties", text)

    def intel(self, count: int = 1, others: int = 0) -> Bed:
        """GPUs of Intel, behind so many DRM devices of somebody else."""
        for place in range(others + count):
            folder = f"/sys/class/drm/renderD{128 + place}"
            self.write(f"{folder}/device/vendor", "0x8086\n" if place >= others else "0x1a03\n")
            self._drm(f"{folder}/device/drm", place)
        return self

    def _drm(self, folder: str, place: int) -> None:
        for name in (f"card{place}", f"renderD{128 + place}", f"controlD{64 + place}"):
            (self.root / folder.lstrip("/") / name).mkdir(parents=True, exist_ok=True)
        self.nodes |= {f"/dev/dri/card{place}", f"/dev/dri/renderD{128 + place}"}


def nvidia_bus(place: int) -> str:
    """0x1b apart, so that their order is not that of their decimal-looking texts."""
    return f"0000:{0x09 + place * 0x0f:02x}:00.0"


def nvidia_uuid(place: int) -> str:
    return f"GPU-{place:x}a1b2c3d-0000-4000-8000-00000000000{place:x}"


def amd_id(place: int) -> int:
    return 0x1234567890ABCD00 + place


def cap(minor: int, instance: int) -> int:
    """As the driver counts: 3 + 135 for each GPU, 9 for each instance."""
    return 3 + minor * 135 + instance * 9


def shipped(name: str) -> Profile:
    path = resources.PROFILES / f"{name}.json"
    return validate.to_dataclass(Profile, validate.check(path.read_bytes(), "profile", str(path)))


def plan(*profiles: str, **more: Any) -> Dict[str, Any]:
    """The part ``gpus`` of a record, as if the caller had asked for these stacks under a site with the shipped schedulers."""
    rules = {name: dataclasses.asdict(rule) for name in profiles for rule in (shipped(name).gpus,) if rule is not None}
    schedulers = {"slurm": dataclasses.asdict(shipped("slurm").job)}
    made: Dict[str, Any] = {
        "stacks": rules, "closed": [], "schedulers": schedulers, "wish": "", "wish_origin": "",
        "origin": "annotation org.supercontainers.gpu=" + "+".join(profiles), "explicit": True, "refuses": True, "copies": True, **more,
    }
    return dict(json.loads(json.dumps(made)))


def shown(node: Node, stack: str) -> List[Tuple[int, str, Tuple[str, ...]]]:
    return [(gpu.number, gpu.uuid, gpu.nodes) for gpu in node.gpus[stack]]
