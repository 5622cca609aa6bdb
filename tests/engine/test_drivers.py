"""The files of real drivers without a device: what arrives, beside what the vendor's own tools would bring, and how far a program gets."""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import Site
from tests.engine.inside import TREE, start
from tests.engine.site import forget

KEY = "org.supercontainers.gpu"
STAGES = ("", "podman")
LIB = "usr/lib/x86_64-linux-gnu"
RELEASES = {"535": "535.261.03", "550": "550.163.01"}

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
NO_MODULE = (9, 999)  # NVML_ERROR_DRIVER_NOT_LOADED; NVML_ERROR_UNKNOWN where it could not even ask for it
INVALID_DEVICE = 101  # hipErrorInvalidDevice
NO_RESOURCES = 4104  # HSA_STATUS_ERROR_OUT_OF_RESOURCES: no /dev/kfd


class Drivers:
    """One site for each driver; root's."""

    def __init__(self) -> None:
        self._folder = bed.scratch("drivers")
        self._made: dict[str, Site] = {}

    def get(self, *names: str) -> Site:
        key = "+".join(names)
        if key not in self._made:
            site = self._made[key] = Site(self._folder / key, bed.root_account())
            profiles = [{"name": "rocm" if name == "rocm" else "cuda", "root": str(root_of(name))} for name in names]
            (site.config_dir / "site.json").write_text(json.dumps({"version": 1, "profiles": profiles}))
            site.scan()
            site.register()
        forget(self._made[key])
        return self._made[key]

    def remove(self) -> None:
        shutil.rmtree(self._folder)


def root_of(name: str) -> Path:
    return bed.BUILD / "site" / (name if name == "rocm" else f"nvidia-{name}")


@pytest.fixture(scope="module")
def drivers() -> Iterator[Drivers]:
    made = Drivers()
    yield made
    made.remove()


def call(site: Site, suite: str, stack: str, *pairs: str, stage: str = "") -> tuple[bed.Result, list[dict[str, Any]]]:
    return start(Engine("crun", "root"), site, "/usr/local/bin/dlcall", *pairs, image=f"opencl-{suite}",
                 options=[f"--annotation={KEY}={stack}"], hooks_dir=site.hooks_dir / stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("suite", ["bullseye", "bookworm", "trixie"])
@pytest.mark.parametrize("release", RELEASES)
def test_a_program_opens_libcuda(drivers: Drivers, release: str, suite: str, stage: str) -> None:
    """By either name, and finds that there is no GPU."""
    pairs = ("libcuda.so.1", "cuInit", "libcuda.so", "cuInit", "libnvidia-ml.so.1", "nvmlInit_v2")
    result, log = call(drivers.get(release), suite, "cuda", *pairs, stage=stage)
    folder = f"{TREE}/{LIB}/nvidia/current"
    *cuda, nvml = result.stdout.splitlines()
    assert cuda == [f"{name}: cuInit = {NO_DEVICE} ({folder}/libcuda.so.1)" for name in ("libcuda.so.1", "libcuda.so")], result.stderr
    assert nvml in [f"libnvidia-ml.so.1: nvmlInit_v2 = {code} ({folder}/libnvidia-ml.so.1)" for code in NO_MODULE]
    assert [(entry["verdict"], entry["profile"]) for entry in log] == [("unproved", "cuda")]


def test_a_program_opens_rocm(drivers: Drivers) -> None:
    result, _ = call(drivers.get("rocm"), "bookworm", "rocm", "libhsa-runtime64.so.1", "hsa_init", "libamdhip64.so.5", "hipInit")
    assert result.stdout.splitlines() == [
        f"libhsa-runtime64.so.1: hsa_init = {NO_RESOURCES} ({TREE}/{LIB}/libhsa-runtime64.so.1)",
        f"libamdhip64.so.5: hipInit = {INVALID_DEVICE} ({TREE}/{LIB}/libamdhip64.so.5)",
    ], result.stderr


def test_rocm_in_an_image_that_is_too_old(drivers: Drivers) -> None:
    result, _ = call(drivers.get("rocm"), "bullseye", "rocm", "libhsa-runtime64.so.1", "hsa_init")
    assert "of libc.so.6, and the image's glibc is 2.31" in result.stderr and f"--annotation {KEY}=none" in result.stderr


def test_what_the_newest_glibc_refuses_to_open_stays_away(drivers: Drivers) -> None:
    """Debian 12's libamdhip64 wants an executable stack; glibc 2.41 opens no such library, and a copy in the tree would only look well."""
    result, log = call(drivers.get("rocm"), "trixie", "rocm", "libhsa-runtime64.so.1", "hsa_init")
    assert f"hsa_init = {NO_RESOURCES}" in result.stdout, result.stderr
    (left,) = [finding["what"] for finding in log[-1]["findings"] if finding["code"] == "left-out" and "libamdhip64" in finding["what"]]
    assert "wants an executable stack, and glibc 2.41 opens no such library" in left


@pytest.mark.parametrize("stage", STAGES)
def test_two_stacks_at_once(drivers: Drivers, stage: str) -> None:
    result, log = call(drivers.get("535", "rocm"), "bookworm", "cuda+rocm", "libcuda.so.1", "cuInit", "libhsa-runtime64.so.1", "hsa_init",
                       stage=stage)
    assert f"cuInit = {NO_DEVICE}" in result.stdout and f"hsa_init = {NO_RESOURCES}" in result.stdout, result.stderr
    assert [entry["profile"] for entry in log] == ["cuda, rocm"]


# --------------------------------------------------------------------------------------------------- beside the vendor's list

#: The rule of the vendor's own generator of CDI specifications: all libraries of the driver's release, and the files that it names. What we
#: do otherwise, each with its reason:
DIFFERENCES = {
    "libnvidia-pkcs11-openssl3": "stays away where the node's libcrypto, which it needs, wants a newer glibc than the image's",
}


def brought(site: Site, image: str) -> list[dict[str, Any]]:
    told = site.command("check", "--json", "--annotation", f"{KEY}=cuda", bed.reference(image), account=site.account,
                        env={key: value for key, value in site.account.environment().items() if key != "PATH"})
    assert told.returncode in (0, 3), told.stdout + told.stderr
    return list(json.loads(told.stdout)["files"])


@pytest.mark.parametrize("release", RELEASES)
def test_all_of_the_release_arrives(drivers: Drivers, release: str) -> None:
    site, root, version = drivers.get(release), root_of(release), RELEASES[release]
    Engine("crun", "root").load("opencl-bookworm")
    files = brought(site, "opencl-bookworm")
    arrived = {file["source"] for file in files}
    of_release = {str(path) for path in root.rglob(f"*.so.{version}") if path.is_file() and not path.is_symlink()}
    missing = {posixpath.basename(path).partition(".so")[0] for path in of_release - arrived}
    assert missing <= {*DIFFERENCES}, missing
    places = {file["target"]: file["source"] for file in files}
    for own in ("/usr/bin/nvidia-smi", "/etc/OpenCL/vendors/nvidia.icd", "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
                "/usr/share/vulkan/icd.d/nvidia_icd.json", "/usr/share/nvidia/nvoptix.bin", f"/{LIB}/gbm/nvidia-drm_gbm.so"):
        assert own in places or f"{TREE}{own}" in places, own
    others = {posixpath.basename(source) for source in arrived if source.startswith(str(root)) and source not in of_release}
    assert others <= {"nvidia-smi", "nvidia.icd", "10_nvidia.json", "nvidia_icd.json", "nvoptix.bin", "nvidia_layers.json"}, others
    # Vendor-neutral loaders come from the node where the image has none, as it has no libGL.
    assert not [target for target in places if "libOpenCL" in target]


def test_devices_of_the_node_come_by_the_callers_word(drivers: Drivers) -> None:
    """A node that has one of the names: at each start it is looked for anew."""
    site = drivers.get("535")
    node = Path("/dev/nvidia-modeset")
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    node.chmod(0o666)
    try:
        _, log = call(site, "bookworm", "cuda", "libcuda.so.1", "cuInit")
        assert str(node) in log[-1]["devices"]
    finally:
        node.unlink()
    _, log = call(site, "bookworm", "cuda", "libcuda.so.1", "cuInit")
    assert "devices" not in log[-1]
