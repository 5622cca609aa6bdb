"""What arrives of a driver, beside what the vendor's own generator and two lists of others would bring: each difference has its reason.

The lists are written down here as rules (names and patterns, no text of theirs); ``SOURCES`` says where each is from. ``DIFFERENCES`` is
held against what is found both ways: a difference that is not in it fails, and so does a row in it that is none.
"""

from __future__ import annotations

import fnmatch
import json
import platform
import posixpath
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from oci_hpc_hooks.elf import ldcache
from tests.bed import bed
from tests.bed.bed import Engine
from tests.engine.inside import TREE, start
from tests.engine.site import Sites
from tests.engine.test_drivers import FOLDERS, KEY, LIB, RELEASES, root_of

SOURCES = {
    "cdi": "nvidia-container-toolkit 1.18 to 1.20: pkg/nvcdi/driver-nvml.go, internal/discover/{graphics,symlinks}.go",
    "libnvidia-container": "libnvidia-container 1.18: src/nvc_info.c (with GLVND), src/nvc_mount.c",
    "apptainer --nv": "apptainer 1.4: etc/nvliblist.conf",
    "apptainer --rocm": "apptainer 1.4: etc/rocmliblist.conf",
}


class Rules(NamedTuple):
    """``libraries``: patterns of file names in the loader's directories, $V the release. ``files``: patterns of paths below /, of programs,
    configuration and firmware. ``links``: names that lead to a library, where that is there; ``paths``: the same of paths' ends."""

    libraries: Sequence[str]
    files: Sequence[str]
    links: Mapping[str, str] = {}
    paths: Mapping[str, str] = {}


def so(text: str, ending: str = ".so.$V") -> list[str]:
    return [f"lib{name}{ending}" for name in text.split()]


PROGRAMS = ["/usr/bin/nvidia-smi", "/usr/bin/nvidia-debugdump", "/usr/bin/nvidia-persistenced", "/usr/bin/nvidia-cuda-mps-control",
            "/usr/bin/nvidia-cuda-mps-server"]
LINKS = {"libcuda.so": "libcuda.so.$V", "libGLX_indirect.so.0": "libGLX_nvidia.so.$V",
         "libnvidia-opticalflow.so": "libnvidia-opticalflow.so.$V"}
CONFIGURATION = [
    f"{folder}/{name}" for folder in ("/etc", "/usr/share") for name in (
        "glvnd/egl_vendor.d/10_nvidia.json", "egl/egl_external_platform.d/15_nvidia_gbm.json",
        "egl/egl_external_platform.d/10_nvidia_wayland.json", "egl/egl_external_platform.d/20_nvidia_xcb.json", "nvidia/nvoptix.bin",
        "X11/xorg.conf.d/10-nvidia.conf", "X11/xorg.conf.d/nvidia-drm-outputclass.conf", "vulkan/icd.d/nvidia_icd.json",
        "vulkan/icd.d/nvidia_icd.x86_64.json", "vulkan/implicit_layer.d/nvidia_layers.json", "OpenCL/vendors/nvidia.icd")
]
VENDORS: dict[str, Rules] = {
    "cdi": Rules(
        ["*.so.$V", "libnvidia-nvvm70.so.*", "libnvidia-egl-gbm.so.*.*", "libnvidia-egl-wayland.so.*.*"],
        [*PROGRAMS, "/usr/bin/nvidia-imex", "/usr/bin/nvidia-imex-ctl", *CONFIGURATION, "/usr/lib/firmware/nvidia/$V/gsp*.bin"],
        {**LINKS, "libnvidia-vulkan-producer.so": "libnvidia-vulkan-producer.so.$V"},
        {"/gbm/nvidia-drm_gbm.so": "libnvidia-allocator.so.$V"},
    ),
    "libnvidia-container": Rules(
        [*so("nvidia-ml nvidia-cfg nvidia-nscq cuda cudadebugger nvidia-opencl nvidia-gpucomp nvidia-ptxjitcompiler"),
         *so("nvidia-fatbinaryloader nvidia-allocator nvidia-compiler nvidia-pkcs11 nvidia-pkcs11-openssl3 nvidia-nvvm nvidia-tileiras"),
         *so("vdpau_nvidia nvidia-encode nvidia-opticalflow nvcuvid nvidia-eglcore nvidia-glcore nvidia-tls nvidia-glsi nvidia-fbc"),
         *so("nvidia-ifr nvidia-rtcore nvoptix GLX_nvidia EGL_nvidia GLESv2_nvidia GLESv1_CM_nvidia nvidia-glvkspirv nvidia-cbl"),
         "libnvidia-ngx.so.$V"],
        [*PROGRAMS, "/usr/bin/nv-fabricmanager", "/usr/lib/firmware/nvidia/$V/gsp*.bin"],
        LINKS,
    ),
    "apptainer --nv": Rules(
        [*so("cuda EGL_installertest EGL_nvidia EGL GLdispatch GLESv1_CM_nvidia GLESv1_CM GLESv2_nvidia GLESv2 GL", ".so*"),
         "libGLX_installertest.so*",
         *so("GLX_nvidia glx GLX nvcuvid nvidia-cbl nvidia-cfg nvidia-compiler nvidia-eglcore nvidia-egl-wayland nvidia-encode", ".so*"),
         *so("nvidia-fatbinaryloader nvidia-fbc nvidia-glcore nvidia-glsi nvidia-glvkspirv nvidia-gpucomp nvidia-gtk2 nvidia-gtk3", ".so*"),
         *so("nvidia-ifr nvidia-ml nvidia-opencl nvidia-opticalflow nvidia-ptxjitcompiler nvidia-rtcore nvidia-tls nvidia-wfb", ".so*"),
         "libnvoptix.so.1*", "libnvoptix.so.$V", *so("OpenCL OpenGL vdpau_nvidia", ".so*"), "nvidia_drv.so", "tls_test_.so"],
        PROGRAMS,
    ),
    "apptainer --rocm": Rules(
        [*so("amd_comgr comgr CXLActivityLogger elf hc_am hipblas hip_hcc hiprand hsakmt hsa-runtime64 mcwamp mcwamp_cpu", ".so*"),
         "libmcwamp_hsa.so*",
         *so("miopengemm MIOpen drm drm_amdgpu numa pci rccl rocblas rocfft-device rocfft rocrand rocr_debug_agent64 amdcomgr64", ".so*"),
         *so("amdocl64 cltrace OpenCL", ".so*")],
        ["/usr/bin/rocm-smi", "/usr/bin/rocminfo"],
    ),
}

#: (whose list, what: "-" it would bring and we do not, "+" we bring and it does not, with shell patterns; why).
DIFFERENCES = [
    ("cdi", "-libnvidia-vulkan-producer", "needs libnvidia-egl-wayland, of another package of Debian's: it would not load here either"),
    ("cdi", "-link libnvidia-vulkan-producer.so", "Debian has no such link; where the node has it, that name leads to the library too"),
    ("cdi", "-path /gbm/nvidia-drm_gbm.so", "Debian's packages for older GPUs have no such link; where the node has it, it comes"),
    ("cdi", "-/usr/share/X11/xorg.conf.d/*", "configuration of an X server"),
    ("cdi", "-/usr/share/OpenCL/vendors/nvidia.icd", "loaders of OpenCL look in /etc/OpenCL/vendors, where the vendor's packages have it"),
    *((whose, "+lib[GEO]*", "vendor-neutral loaders come where the image has none") for whose in ("cdi", "libnvidia-container")),
    ("apptainer --nv", "-libOpenCL", "the image has one, and it stays"),
    ("libnvidia-container", "-/usr/bin/nv-fabricmanager", "the service itself, which runs on the node; its socket comes"),
    ("libnvidia-container", "+/usr/bin/nvidia-imex*", "of the later generator only"),
    ("libnvidia-container", "+/etc/OpenCL/vendors/nvidia.icd", "it leaves that file to the image"),
    ("libnvidia-container", "+/usr/share/*", "it leaves the files of EGL and Vulkan to the image, or to a hook beside it"),
    ("libnvidia-container", "+*/nvoptix.bin", "of the later generator only"),
    ("libnvidia-container", "+libnvidia-egl-*", "of the later generator only: EGL's platforms"),
    ("libnvidia-container", "+libnvidia-nvvm70", "of the later generator only"),
    ("libnvidia-container", "+libnvidia-vulkan-producer", "of the later generator only, by the release in its name"),
    ("apptainer --nv", "+/usr/bin/nvidia-imex*", "its list is older"),
    ("apptainer --nv", "+/etc/OpenCL/vendors/nvidia.icd", "it leaves that file to the image: programs find no platform without"),
    ("apptainer --nv", "+/usr/share/*", "it leaves the files of EGL and Vulkan to the image"),
    ("apptainer --nv", "+*/nvoptix.bin", "its list has libraries and programs only"),
    ("apptainer --nv", "+/usr/lib/firmware/*", "its list has libraries and programs only"),
    ("apptainer --nv", "+libnvidia-*", "its list names libraries one by one, and lacks those of later releases"),
    ("apptainer --rocm", "+libamdhip64", "its list is older than HIP's present name"),
    ("apptainer --rocm", "+/usr/share/libdrm/amdgpu.ids", "libdrm_amdgpu opens it for the names of GPUs"),
    *(("apptainer --rocm", f"+{name}", "what its libraries need in turn, which it leaves to chance") for name in (
        "libLLVM-15", "libbsd", "libedit", "libffi", "libgcc_s", "libicudata", "libicuuc", "liblzma", "libmd", "libstdc++", "libtinfo",
        "libxml2", "libz", "libz3")),
]

#: What Debian's packages lack here, and a full installation of the vendor's has: empty stand-ins show that each would arrive.
STAND_INS = ["/usr/lib/firmware/nvidia/$V/gsp_ga10x.bin", "/usr/lib/firmware/nvidia/$V/gsp_tu10x.bin", "/usr/bin/nv-fabricmanager",
             *(path for path in VENDORS["cdi"].files if "*" not in path and path.startswith(("/usr/bin", "/usr/share")))]


#: Vendor-neutral loaders of the node: the image has the first of them.
NEUTRAL = ["libOpenCL.so.1", "libGL.so.1", "libEGL.so.1", "libGLX.so.0", "libOpenGL.so.0", "libGLESv1_CM.so.1", "libGLESv2.so.2",
           "libGLdispatch.so.0"]


#: What NVIDIA's libraries need of Debian 13's X11 and OpenSSL would not load with Debian 12's glibc; the ROCm runtime is Debian 12's.
IMAGES = {"cuda": "opencl-bookworm" if platform.libc_ver()[1] == "2.36" else "opencl-trixie", "rocm": "opencl-bookworm"}


class Arrived(NamedTuple):
    """What of a root arrives: real paths in it, and names of the loader's cache and paths with the base name of what they lead to."""

    real: frozenset[str]
    names: Mapping[str, str]
    paths: Mapping[str, str]


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    made = Sites("vendor-lists")
    yield made
    made.remove()


@pytest.fixture(scope="module")
def arrivals(sites: Sites) -> Iterator[Mapping[str, tuple[Path, str, Arrived]]]:
    """For each driver: its root, its release, what arrives of it in a container."""
    folder = bed.scratch("stand-ins")
    roots = {release: (root_of(release), version) for release, version in RELEASES.items()}
    roots["550 with stand-ins"] = (with_stand_ins(folder / "root", root_of("550"), RELEASES["550"]), RELEASES["550"])
    roots["rocm"] = (root_of("rocm"), "")
    yield {name: (root, version, arrived(sites, root, "cuda" if version else "rocm")) for name, (root, version) in roots.items()}
    shutil.rmtree(folder)


def with_stand_ins(made: Path, root: Path, version: str) -> Path:
    subprocess.run(["cp", "-al", root, made], check=True)
    for path in STAND_INS:
        at = made / path.replace("$V", version).lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        if not at.exists():
            at.write_text("x")
            at.chmod(0o755)
    for name in ("libnvidia-egl-gbm.so.1.1.1", "libnvidia-egl-wayland.so.1.1.13", "libnvidia-nvvm70.so.4", *NEUTRAL):
        soname = name.partition(".so")[0] + ".so.1" if "-egl-" in name else name
        subprocess.run(["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{soname}", "-o", made / LIB / "nvidia" / FOLDERS["550"] / name, "-xc",
                        "/dev/null"], check=True)
    return made


def arrived(sites: Sites, root: Path, stack: str) -> Arrived:
    site = sites.made(bed.root_account(), [{"name": stack, "root": str(root)}])
    library = "libcuda.so.1" if stack == "cuda" else "libhsa-runtime64.so.1"
    result, log = start(Engine("crun", "root"), site, "/usr/local/bin/dlcall", library, "none", image=IMAGES[stack],
                        options=[f"--annotation={KEY}={stack}"])
    assert [entry["verdict"] for entry in log] == ["unproved"], result.stderr
    (plan,) = (site.cache_dir / "plans").glob("*.plan")
    _, line, cache = plan.read_bytes().split(b"\n", 2)
    record = json.loads(line)
    rows = [*record["tree"], *record["in_place"], *record["files"]]
    leads = {f"{TREE}/{row[4]}": row[0] for row in record["tree"]}
    names = {entry.name: posixpath.basename(leads[entry.path]) for entry in ldcache.parse(cache).entries if entry.path in leads}
    return Arrived(frozenset(row[0] for row in rows if row[0].startswith(f"{root}/")), names,
                   {row[4]: posixpath.basename(row[0]) for row in (*record["tree"], *record["files"])})


def expected(root: Path, version: str, rules: Rules) -> set[str]:
    """What a list would bring: real paths."""
    found: set[str] = set()
    libraries = [rule.replace("$V", version) for rule in rules.libraries]
    for path in (root / "usr/lib").rglob("*.so*"):
        if any(fnmatch.fnmatchcase(path.name, rule) for rule in libraries) and path.is_file() and "wine" not in path.parts:
            found.add(str(path.resolve()))
    for rule in rules.files:
        found |= {str(path.resolve()) for path in root.glob(rule.replace("$V", version).lstrip("/")) if path.is_file()}
    return found


def difference(whose: str, root: Path, version: str, what: Arrived) -> set[str]:
    rules = VENDORS[whose]
    theirs = expected(root, version, rules)
    found = {f"-{name(path, root, version)}" for path in theirs - what.real}
    found |= {f"+{name(path, root, version)}" for path in what.real - theirs}
    there = {posixpath.basename(path) for path in theirs}
    found |= {f"-path {end}" for end, to in rules.paths.items() if to.replace("$V", version) in there
              and not any(path.endswith(end) and real == to.replace("$V", version) for path, real in what.paths.items())}
    return found | {f"-link {link}" for link, to in rules.links.items()
                    if to.replace("$V", version) in there and what.names.get(link) != to.replace("$V", version)}


def name(path: str, root: Path, version: str) -> str:
    """A library by its name without release, anything else by its path."""
    base = posixpath.basename(path)
    return base.partition(".so")[0] if ".so" in base else path[len(str(root)):].replace(version or "\0", "$V")


def test_differences_have_their_reasons(arrivals: Mapping[str, tuple[Path, str, Arrived]]) -> None:
    found: dict[tuple[str, str], list[str]] = {}
    for driver, (root, version, what) in arrivals.items():
        for whose in VENDORS:
            if (whose == "apptainer --rocm") == (driver == "rocm"):
                for one in difference(whose, root, version, what):
                    found.setdefault((whose, one), []).append(driver)
    used = {(whose, pattern): [pair for pair in found if pair[0] == whose and fnmatch.fnmatchcase(pair[1], pattern)]
            for whose, pattern, _ in DIFFERENCES}
    unexplained = {pair: found[pair] for pair in {*found}.difference(*used.values())}
    assert not unexplained, "\n".join(f"{pair}: {drivers}" for pair, drivers in sorted(unexplained.items()))
    assert not [row for row, explains in used.items() if not explains], "a row of the table that is no difference"
    assert len(used) == len(DIFFERENCES) and all(why for _, _, why in DIFFERENCES)


def test_neutral_loaders_come_where_the_image_has_none(arrivals: Mapping[str, tuple[Path, str, Arrived]]) -> None:
    what = arrivals["550 with stand-ins"][2]
    assert [name for name in NEUTRAL if what.names.get(name) != name] == ["libOpenCL.so.1"]
    assert "libOpenCL.so.1" not in {posixpath.basename(path) for path in what.real}


def test_every_list_brings_something(arrivals: Mapping[str, tuple[Path, str, Arrived]]) -> None:
    """The rules are no empty ones: of each list at least the driver's first library is expected."""
    for driver, (root, version, what) in arrivals.items():
        for whose in ["apptainer --rocm"] if driver == "rocm" else [one for one in VENDORS if one != "apptainer --rocm"]:
            theirs = {posixpath.basename(path) for path in expected(root, version, VENDORS[whose])}
            assert any(one.startswith(("libcuda.so", "libhsa-runtime64.so")) for one in theirs) and len(theirs) > 3
        assert len(what.real) > 5
