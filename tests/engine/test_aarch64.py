"""Another machine: Debian 12 for arm64, whose programs run under qemu-user.

The scan runs there, in that system's own Python; the decision is made there and here, and its result is put into a copy of the root
filesystem for that system's own ld.so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from oci_hpc_hooks import cold, pack
from oci_hpc_hooks.cli import check
from oci_hpc_hooks.elf import ldcache, loader
from oci_hpc_hooks.inputs import inventory, resources, validate
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import PROVED, Container, Inventory, LdCache, Mount, Plan
from tests.bed import bed
from tests.bed.bed import Engine
from tests.engine.conftest import SiteMaker
from tests.engine.inside import OWN_VERSION, SITE_VERSION, TREE, ranks
from tests.unit.elf.elf_bed import TreeView, pairs, traced

ROOTFS = bed.BUILD / "images/arm64"
MPICH5 = bed.BUILD / "site/mpich5-arm64"
PREFIX = "/opt/site/mpich"  # where the node has it
QEMU = bed.BUILD / "qemu-aarch64"
LD_SO = "/lib/ld-linux-aarch64.so.1"
LIBRARY_DIR = "/usr/lib/aarch64-linux-gnu"
DEFAULT_DIRS = ("/lib/aarch64-linux-gnu", LIBRARY_DIR, "/lib", "/usr/lib")
AARCH64_LIB64 = 0x0A03  # FLAG_AARCH64_LIB64 | FLAG_ELF_LIBC6
HELLO = "/usr/local/bin/mpihello"

WISH = {"org.supercontainers.mpi": "mpich"}
PYTHON = ("/usr/bin/python3", "-c", "import sys; sys.path.insert(0, '/opt/ours'); from oci_hpc_hooks.cli import main; main()")
#: ENTER ROOT QEMU WORDS..., in a mount namespace of its own; the mounts are read from standard input.
ENTER = """
set -e
mount --bind /proc "$1/proc"
mount --bind /sys "$1/sys"
while read -r from to; do mkdir -p "$1$to"; mount --bind "$from" "$1$to"; done
touch "$1/qemu"
mount --bind "$2" "$1/qemu"
root=$1
shift 2
exec chroot "$root" /qemu "$@" </dev/null
"""


def run(root: Path, *command: str, mounts: Mapping[Path, str] | None = None, **env: str) -> str:
    """What a program of that root filesystem says, both streams together; `mounts` are folders by what they are mounted on."""
    lines = "".join(f"{source} {target}\n" for source, target in (mounts or {}).items())
    variables = [word for name, value in env.items() for word in ("-E", f"{name}={value}")]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "bash", "-c", ENTER, "enter", str(root), str(QEMU), *variables, *command],
        input=lines, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={"PATH": os.environ["PATH"]}, timeout=300)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = bed.scratch("arm64")
    yield made
    shutil.rmtree(made)


def copied(folder: Path, name: str, *without: str) -> Path:
    shutil.copytree(ROOTFS, folder / name, symlinks=True, ignore=shutil.ignore_patterns("dev", *without))
    (folder / name / "dev/shm").mkdir(parents=True)
    return folder / name


@pytest.fixture(scope="module")
def images(folder: Path) -> dict[str, Path]:
    """The image as it was unpacked, without a loader cache, and with the one that its own ldconfig writes."""
    made = {name: copied(folder, name, "python3*", "gconv") for name in ("bare", "cached")}
    assert not (made["bare"] / "etc/ld.so.cache").exists()
    run(made["cached"], "/usr/sbin/ldconfig")
    return made


@pytest.fixture(scope="module")
def node(folder: Path, images: dict[str, Path]) -> Path:
    """A node of that machine with MPICH 5 in a prefix of the site's, scanned by this project in its own Python; its hooks registered."""
    root = copied(folder, "node")
    shutil.copy(images["cached"] / "etc/ld.so.cache", root / "etc/ld.so.cache")
    shutil.copytree(resources.PACKAGE, root / "opt/ours/oci_hpc_hooks")
    for data in "schemas", "hooks.d":
        shutil.copytree(resources.PACKAGE.parent / data, root / "opt/ours" / data)
    (root / "etc/oci-hpc-hooks").mkdir()
    site = {"version": 1, "profiles": [{"name": "mpich", "search": [f"{PREFIX}/lib"]}]}
    (root / "etc/oci-hpc-hooks/site.json").write_text(json.dumps(site))
    run(root, *PYTHON, "register", "/opt/hooks")
    said = run(root, *PYTHON, "scan", mounts={MPICH5: PREFIX})
    assert said.startswith("mpich: available") and f"libmpi.so.12, also as libmpich.so.12: {PREFIX}/lib/libmpi.so.12" in said
    return root


@pytest.fixture(scope="module")
def offers(node: Path) -> Inventory:
    state = node / "var/lib/oci-hpc-hooks"
    validate.check((state / "inventory.json").read_bytes(), "inventory", "inventory.json")
    return inventory.load(str(state))


def container(image: Path) -> Container:
    """As ``check IMAGE -- mpihello`` has it."""
    return Container(id="", bundle="", rootfs=str(image), args=(HELLO,), env=(), cwd="/", mounts=(Mount("/dev", "tmpfs", "tmpfs"),),
                     annotations=WISH, labels={}, manifest_annotations={})


def decided(image: Path, offers: Inventory) -> Plan:
    with Root(os.open(image, os.O_PATH | os.O_DIRECTORY)) as root:
        return cold.decide(container(image), root, offers)[0]


def test_scan(offers: Inventory) -> None:
    assert (offers.machine, offers.libc_version) == ("aarch64", "2.36")
    mpich, *others = offers.profiles
    assert not mpich.problems and all("mpi" not in profile.provides for profile in others)
    assert {library.elf.machine for library in (*mpich.libraries, *mpich.plugins)} == {183}
    assert {"libmpi.so.12", "libfabric.so.1", "libucp.so.0"} <= {library.name for library in mpich.libraries}
    assert {Path(library.path).parent.name for library in mpich.plugins} == {"ucx", "libfabric"}


def test_the_cache_of_its_ldconfig(images: dict[str, Path]) -> None:
    cache = ldcache.parse((images["cached"] / "etc/ld.so.cache").read_bytes())
    assert ldcache.parse(ldcache.serialize(cache)) == cache
    assert len(cache.entries) > 50
    assert entries(cache) == listed(images["cached"])
    assert {entry.flags for entry in cache.entries} == {ldcache.entry_flags(cache, 183, 2)} == {AARCH64_LIB64}


@pytest.mark.parametrize("name", ["bare", "cached"])
def test_its_loader_takes_what_was_planned(folder: Path, node: Path, images: dict[str, Path], offers: Inventory, name: str) -> None:
    image = images[name]
    assert OWN_VERSION in run(image, HELLO)
    plan = decided(image, offers)
    assert (plan.verdict, plan.tree_root, plan.cache_target) == (PROVED, TREE, "/etc/ld.so.cache")
    assert plan.cache is not None
    root = put_in(plan, node, image, folder / f"{name}-injected")

    # As it is started, and as a script may start it: then the file in place is taken, and only the cache leads to what it needs.
    for library_path, mpi in ("", f"{TREE}{PREFIX}/lib/libmpi.so.12"), (LIBRARY_DIR, f"{LIBRARY_DIR}/libmpich.so.12"):
        search = loader.Search(library_path=tuple(filter(None, [library_path])), cache=plan.cache, default_dirs=DEFAULT_DIRS)
        simulated = pairs(loader.simulate(HELLO, TreeView(str(root)), search))
        assert traced(run(root, LD_SO, "--list", HELLO, LD_LIBRARY_PATH=library_path)) == (simulated, [])
        assert {("libmpich.so.12", mpi), ("libfabric.so.1", f"{TREE}{PREFIX}/lib/mpich/libfabric.so.1")} <= {*simulated}
        said = run(root, HELLO, LD_LIBRARY_PATH=library_path, LD_BIND_NOW="1")
        assert SITE_VERSION in said and OWN_VERSION not in said and "sum of ranks + 1: 1" in said
    debug = run(root, LD_SO, "--list", HELLO, LD_DEBUG="libs")
    assert re.search(rf"find library=libmpich\.so\.12 .*\n.* search cache=/etc/ld\.so\.cache\n.* trying file={TREE}{PREFIX}", debug)
    assert entries(plan.cache) == listed(root)


def entries(cache: LdCache) -> list[tuple[str, str]]:
    return [(entry.name, entry.path) for entry in cache.entries]


def listed(root: Path) -> list[tuple[str, str]]:
    """The cache as its ldconfig reads it."""
    found: list[tuple[str, str]] = re.findall(r"^\t(\S+) \(libc6,AArch64\) => (\S+)$", run(root, "/usr/sbin/ldconfig", "-p"), re.MULTILINE)
    return found


def put_in(plan: Plan, node: Path, image: Path, root: Path) -> Path:
    """A copy of the image with files where the plan has mounts."""
    shutil.copytree(image, root, symlinks=True)
    tree = root / plan.tree_root.lstrip("/")
    files = [(bind.source, tree / bind.target) for bind in plan.tree]
    files += [(bind.source, root / bind.target.lstrip("/")) for bind in plan.in_place]
    for source, target in files:
        target.parent.mkdir(parents=True, exist_ok=True)
        of_site = source.startswith(PREFIX)
        shutil.copy(MPICH5 / os.path.relpath(source, PREFIX) if of_site else node / source.lstrip("/"), target)
    for cover in plan.modules:
        shutil.rmtree(root / cover.target.lstrip("/"))
        shutil.copytree(tree / cover.folder, root / cover.target.lstrip("/"))
    assert plan.cache is not None
    (root / plan.cache_target.lstrip("/")).write_bytes(ldcache.serialize(plan.cache))
    return root


def test_check_says_there_what_it_says_here(node: Path, images: dict[str, Path], offers: Inventory) -> None:
    """The image's files are the same for both: the whole answer is."""
    words = ("check", "--json", "/image", "--annotation", "org.supercontainers.mpi=mpich", "--", HELLO)
    there: dict[str, Any] = json.loads(run(node, *PYTHON, *words, mounts={MPICH5: PREFIX, images["cached"]: "/image"}))
    with Root(os.open(images["cached"], os.O_PATH | os.O_DIRECTORY)) as root:
        answer = check.decide(container(images["cached"]), root, offers)
    here = check.document("/image", container(images["cached"]), answer._replace(start="cold"))
    assert there == here
    assert there["verdict"] == PROVED and there["loader_cache"] == "/etc/ld.so.cache"


def test_an_image_of_another_machine_is_refused(make_site: SiteMaker) -> None:
    """Here, where the site is x86-64."""
    site = make_site(Engine("crun", "root"))
    done = site.command("check", str(ROOTFS), "--annotation", "org.supercontainers.mpi=mpich", "--", HELLO)
    assert done.returncode == 1
    assert "the image is 64-bit aarch64, the site's libmpi.so.12 64-bit x86-64" in done.stdout
    assert "pull the image for this machine's architecture" in done.stdout


# ---------------------------------------------------------------------------------------------------------------- the hook

#: qemu's statx(2) leaves stx_mnt_id out, and its second thread shares root and working directory, which keeps setns(2) from the mounts.
QEMU_LACKS = """
import ctypes
from oci_hpc_hooks.linux import syscalls
syscalls.statx_mount_id = lambda fd: int(open(f"/proc/self/fdinfo/{fd}").read().partition("mnt_id:")[2].split()[0])
ctypes.CDLL(None).unshare(0x200)  # CLONE_FS
"""


@pytest.fixture
def mounted(node: Path, scratch: Path) -> Iterator[Path]:
    """The node with its mounts where the runtime's hooks see them, and the folder of the bundle at its own path."""
    (node / "qemu").touch()
    places = {Path("/proc"): "/proc", MPICH5: PREFIX, QEMU: "/qemu", scratch: str(scratch)}
    try:
        for source, target in places.items():
            if source.is_dir():
                (node / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--rbind", source, node / target.lstrip("/")], check=True)
            subprocess.run(["mount", "--make-rprivate", node / target.lstrip("/")], check=True)
        yield node
    finally:
        for target in places.values():
            subprocess.run(["umount", "--recursive", "--lazy", node / target.lstrip("/")], check=False)


def test_the_hook(rootful: Engine, mounted: Path, scratch: Path) -> None:
    """Started by a runtime of this machine, in a container whose programs are of that one."""
    text, code = pack.taken_apart((mounted / "opt/hooks/bin/oci-hpc-hooks-createruntime").read_bytes())
    changed = pack.joined("/usr/bin/python3", text.replace(b"\ntry:", QEMU_LACKS.encode() + b"\ntry:"), code)
    (mounted / "opt/hooks/hook").write_bytes(changed)
    command = changed.partition(b"\n")[0].decode().partition(" ")[2]  # one argument, as the kernel would have it
    hook = ["chroot", str(mounted), "/qemu", "/usr/bin/python3", command, "/opt/hooks/hook"]
    hooks = {"createRuntime": [{"path": "/usr/sbin/chroot", "args": hook, "env": ["PATH=/usr/bin:/bin"], "timeout": 120}]}
    with rootful.bundle(scratch / "bundle", "arm64", ["/qemu", HELLO], annotations=WISH, hooks=hooks) as made:
        config = json.loads((made / "config.json").read_text())
        config["mounts"].append({"destination": "/qemu", "source": str(QEMU), "type": "bind", "options": ["rbind", "ro"]})
        (made / "config.json").write_text(json.dumps(config))
        for way in ("cold", "warm"):
            result = rootful.runtime_run(made, timeout=180)
            assert [(rank.of, rank.version, rank.loaded) for rank in ranks(result)] == [
                (1, SITE_VERSION, (f"{TREE}{PREFIX}/lib/libmpi.so.12",))]
            entry = json.loads((mounted / "var/log/oci-hpc-hooks.log").read_text().splitlines()[-1])
            assert (entry["verdict"], entry["path"]) == (PROVED, way)
