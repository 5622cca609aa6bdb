"""What this project makes of a real GPU's driver, kept as a fixture: for a machine with a GPU, on which nothing is installed.

    python -m tests.bed.hardware pack                      here: what the package needs, pure Python, into build/hardware
    PYTHONPATH=build/hardware python3 -m tests.bed.hardware FIXTURE.json      there, in a copy of this checkout

The second one scans the node with the shipped profiles, decides for an image that has no more than this machine's C library, and writes
both down with what the kernel, the loader and the vendor's own programs say of the GPUs. It changes nothing outside a temporary folder
and needs neither network nor podman. It runs the vendor's programs, which a hook never does, only to have their word beside ours. With
``--root DIR`` the driver is taken from a folder instead, to try it without a GPU: such a fixture says "files".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional

ROOT = Path(__file__).resolve().parents[2]
PACKED = ROOT / "build/hardware"
#: Text of the kernel's that tells which GPUs there are; below /, with shell patterns.
KERNEL = ["proc/driver/nvidia/version", "proc/driver/nvidia/params", "proc/driver/nvidia/gpus/*/information", "proc/devices",
          "proc/driver/nvidia-caps/*", "sys/class/kfd/kfd/topology/nodes/*/properties", "sys/module/amdgpu/version",
          "sys/module/nvidia/version"]
NODES = ["dev/nvidia*", "dev/nvidia-caps/*", "dev/nvidia-caps-imex-channels/*", "dev/dri/*", "dev/kfd"]
SERVICES = ["run/nvidia-persistenced/socket", "run/nvidia-fabricmanager/socket", "tmp/nvidia-mps"]
#: Programs whose word is kept where the machine has them.
VENDORS = {
    "nvidia-smi": ["nvidia-smi", "-L"],
    "nvidia-ctk": ["nvidia-ctk", "cdi", "generate", "--format=json"],
    "nvidia-container-cli": ["nvidia-container-cli", "list"],
    "amd-ctk": ["amd-ctk", "cdi", "generate", "--output=/dev/stdout"],
    "rocminfo": ["rocminfo"],
    "ldconfig": ["ldconfig", "-p"],
}
#: An image with this machine's C library and nothing else.
IMAGE = ["ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"]
LIMIT = 1 << 18  # characters of one text


def main() -> int:
    parser = argparse.ArgumentParser(description="Keep as a fixture what scan and check make of this machine's GPU driver.")
    parser.add_argument("output", metavar="FIXTURE.json|pack")
    parser.add_argument("--root", default="", help="a folder that holds the driver, in place of /")
    arguments = parser.parse_args()
    if arguments.output == "pack":
        return pack()
    with tempfile.TemporaryDirectory() as folder:
        made = fixture(Path(folder), arguments.root)
    Path(arguments.output).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{arguments.output}: verified by {made['verified']['by']}, {made['verified']['source']}")
    for stack, check in made["checks"].items():
        print(f"  {stack}: {check.get('verdict', 'not decided')}, {len(check.get('files', ()))} files")
    return 0 if made["checks"] else 1


def pack() -> int:
    """What the package needs, for any Python from 3.9 on: wheels without compiled parts."""
    shutil.rmtree(PACKED, ignore_errors=True)
    # jsonschema of before its parts in Rust
    return subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(PACKED),
                           "--python-version", "3.9", "--implementation", "py", "--abi", "none", "--platform", "any", "--only-binary=:all:",
                           "pyelftools", "jsonschema<4.18", "pyrsistent", "dataclasses-json"], check=False).returncode


def fixture(folder: Path, root: str) -> Dict[str, Any]:
    site: Dict[str, Any] = {"version": 1, "profiles": [{"name": name, **({"root": root} if root else {})}
                                                      for name in ("cuda", "rocm", "levelzero", "opencl")]}
    etc = folder / "etc"
    etc.mkdir()
    (etc / "site.json").write_text(json.dumps(site))
    scanned = ours(folder, "scan")
    available = [line.partition(":")[0] for line in scanned.splitlines() if ": available (profile" in line]
    image = folder / "image"
    bare_image(image)
    checks = {}
    for stack in available:
        answer = ours(folder, "check", "--json", "--annotation", f"org.supercontainers.gpu={stack}", str(image), "--", "/bin/true")
        checks[stack] = summary(answer)
    kernel = {str(path): text for path, text in texts(KERNEL).items()}
    return {
        "version": 1,
        "verified": {"by": "files" if root else "hardware", "source": source(kernel, root)},
        "machine": {"architecture": platform.machine(), "kernel": platform.release(), "glibc": platform.libc_ver()[1]},
        "scan": scanned.replace(str(folder), "").replace(f"{ROOT}/", "").splitlines(),
        "checks": json.loads(json.dumps(checks).replace(str(folder), "")),
        "kernel": kernel,
        "devices": devices(),
        "services": [f"/{path}" for path in SERVICES if os.path.lexists(f"/{path}")],
        "vendor": {name: said for name, words in VENDORS.items() if (said := word(words)) is not None},
    }


def ours(folder: Path, *words: str) -> str:
    """What ``oci-hpc-hooks`` prints, with folders of its own."""
    options = [f"--{name}={folder / place}" for name, place in (("config-dir", "etc"), ("state-dir", "state"), ("cache-dir", "cache"),
                                                               ("log-file", "log"))]
    code = "import sys; from oci_hpc_hooks import cli; sys.exit(cli.main())"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code, *options, *words], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": path}, timeout=300)
    if not done.stdout:
        raise SystemExit(f"oci-hpc-hooks {' '.join(words)}: {done.stderr}")
    return done.stdout


def summary(said: str) -> Dict[str, Any]:
    """The verdict, the findings, and what goes where."""
    found = json.loads(said)
    return {
        "verdict": found.get("verdict", ""),
        "findings": [[one["severity"], one["code"], one["what"]] for one in found.get("findings", ())],
        "files": sorted([one["source"], one["target"]] for one in found.get("files", ())),
    }


def bare_image(image: Path) -> None:
    """A root filesystem of this machine's C library and /bin/true, in the places where that has them."""
    for directory in ("bin", "etc", "tmp"):
        (image / directory).mkdir(parents=True)
    shutil.copy("/bin/true", image / "bin/true")
    for folder in ("/lib64", "/usr/lib64", f"/lib/{platform.machine()}-linux-gnu", f"/usr/lib/{platform.machine()}-linux-gnu", "/lib"):
        for name in IMAGE:
            path = Path(folder) / name
            if path.is_file() and not (image / folder[1:] / name).exists():
                (image / folder[1:]).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, image / folder[1:] / name)


def texts(patterns: List[str]) -> Dict[Path, str]:
    found = {}
    for pattern in patterns:
        for path in sorted(Path("/").glob(pattern)):
            try:
                found[path] = path.read_text(encoding="utf-8", errors="replace")[:LIMIT]
            except OSError:
                continue
    return found


def devices() -> List[List[Any]]:
    """Path, kind, major, minor and mode of each device node."""
    found = []
    for pattern in NODES:
        for path in sorted(Path("/").glob(pattern)):
            status = path.lstat()
            if stat.S_ISCHR(status.st_mode):
                found.append([str(path), "c", os.major(status.st_rdev), os.minor(status.st_rdev), oct(stat.S_IMODE(status.st_mode))])
    return found


def word(words: List[str]) -> Optional[str]:
    """What a program prints, None where the machine has none that does."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout[:LIMIT] if done.returncode == 0 else None


def source(kernel: Dict[str, str], root: str) -> str:
    """The GPUs and the driver, in a line."""
    if root:
        return f"the driver in {os.path.basename(root)}"
    models = sorted({line.partition(":")[2].strip() for path, text in kernel.items() if path.endswith("/information")
                     for line in text.splitlines() if line.startswith("Model:")})
    version = next((text.split("\n")[0] for path, text in kernel.items() if path == "/proc/driver/nvidia/version"), "")
    return ", ".join(filter(None, [*models, version])) or "no GPU that the kernel tells of"


if __name__ == "__main__":
    sys.exit(main())
