"""A CDI specification of an NVIDIA driver that is unpacked in a folder, as its generator writes one.

By the sources of nvidia-container-toolkit 1.17 (pkg/nvcdi: driver-nvml.go, common-nvml.go, full-gpu-nvml.go, internal/edits): every library
of the driver's release by its real name, files and programs at their own path, links and the loader's cache by hooks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

LIB = "/usr/lib/x86_64-linux-gnu"
HOOK = "/usr/bin/nvidia-cdi-hook"
FILES = (
    "/usr/bin/nvidia-smi", "/usr/bin/nvidia-debugdump", "/usr/bin/nvidia-persistenced", "/usr/bin/nvidia-cuda-mps-control",
    "/usr/bin/nvidia-cuda-mps-server", "/usr/share/glvnd/egl_vendor.d/10_nvidia.json", "/usr/share/vulkan/icd.d/nvidia_icd.json",
    "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json", "/etc/OpenCL/vendors/nvidia.icd", "/usr/share/nvidia/nvoptix.bin",
    "/run/nvidia-persistenced/socket")


def specification(root: Path, release: str) -> Dict[str, Any]:
    libraries = sorted(path for path in (root / LIB[1:]).rglob(f"lib*.so.{release}") if not path.is_symlink())
    files = [root / name[1:] for name in FILES if (root / name[1:]).exists()]
    folders = sorted({inside(root, path.parent) for path in libraries})
    links = [f"libcuda.so.1::{inside(root, path.parent)}/libcuda.so" for path in libraries if path.name.startswith("libcuda.so")]
    links += [f"..{inside(root, path.parent)[len(LIB):]}/libnvidia-allocator.so.1::{LIB}/gbm/nvidia-drm_gbm.so"
              for path in libraries if path.name.startswith("libnvidia-allocator")]
    mounts = [{"hostPath": str(path), "containerPath": inside(root, path), "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}
              for path in (*libraries, *files)]
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [{"name": name, "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}} for name in ("0", "all")],
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [{"path": f"/dev/{name}"} for name in ("nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools", "nvidiactl")],
            "hooks": [
                hook("create-symlinks", *(word for link in links for word in ("--link", link))),
                hook("enable-cuda-compat", f"--host-driver-version={release}"),
                hook("update-ldcache", *(word for folder in folders for word in ("--folder", folder))),
                hook("disable-device-node-modification"),
            ],
            "mounts": mounts,
        },
    }


def hook(*words: str) -> Dict[str, Any]:
    return {"hookName": "createContainer", "path": HOOK, "args": ["nvidia-cdi-hook", *words], "env": ["NVIDIA_CTK_DEBUG=false"]}


def inside(root: Path, path: Path) -> str:
    return "/" + str(path.relative_to(root))

