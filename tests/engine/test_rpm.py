"""The RPM: built, installed into the folder of a node's image, and containers started with nothing of this project but its files.

What lies in it is laid over this machine's /usr, /etc and /var in a mount namespace of the test, so that every path is the one of a node.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import ROOT, Engine, Result
from tests.bed.site import MPICH5
from tests.engine.inside import HELLO, assert_own, assert_site

pytestmark = pytest.mark.long

#: Descriptors for podman's stage precreate, and podman's own folder, which needs no option of root.
PRECREATE = "/usr/share/oci-hpc-hooks/hooks.d/podman"
DEFAULT = ""

LAY_OVER = """\
mount -t overlay -o "lowerdir=$NODE/usr:/usr" overlay /usr || exit
for folder in etc var; do
    mount -t overlay -o "lowerdir=$NODE/$folder:/$folder,upperdir=$NODE.$folder,workdir=$NODE.$folder.work" overlay /$folder || exit
done
cd / && exec "$@"
"""


def sh(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def package() -> Path:
    """Built from this checkout; rpmlint has nothing to say that is not meant so."""
    sh("packaging/rpm/build.sh")
    (made,) = (bed.BUILD / "rpm/RPMS").glob("*/*.rpm")
    return made


class Node:
    """A folder with the RPM's files, and commands with them in their places."""

    def __init__(self, folder: Path, package: Path) -> None:
        self.folder = folder / "node"
        self.mounted = folder / "image"
        for name in ("node.etc", "node.etc.work", "node.var", "node.var.work", "image", "upper", "work"):
            (folder / name).mkdir(mode=0o755)
        # As who makes the image of a diskless node: another system's folder, in which the scriptlets run. That one has no Python.
        layers = f"lowerdir={bed.BUILD}/images/bookworm,upperdir={folder}/upper,workdir={folder}/work"
        sh("mount", "-t", "overlay", "-o", layers, "overlay", self.mounted)
        try:
            self.installed = sh("rpm", "--root", self.mounted, "--nodeps", "--ignorearch", "-i", package)
            self.files = sh("rpm", "--root", self.mounted, "-V", "--nodeps", "oci-hpc-hooks")
        finally:
            sh("umount", self.mounted)
        sh("cp", "-dR", "--preserve=mode,ownership,timestamps", folder / "upper", self.folder)
        site = {"version": 1, "profiles": [{"name": "mpich", "search": [str(MPICH5)]}]}
        (self.folder / "etc/oci-hpc-hooks/site.json").write_text(json.dumps(site))

    def run(self, *command: str, timeout: float = 120) -> Result:
        bed.enter()
        # The virtual environment of the bed is not in PATH: what runs is in the RPM.
        account = bed.root_account()
        env = {**account.environment(), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NODE": str(self.folder)}
        env.pop("PYTHONPATH", None)
        line = ["unshare", "--mount", "--propagation", "private", "sh", "-c", LAY_OVER, "sh", *command]
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout, env=env, check=False)

    def hello(self, engine: Engine, hooks_dir: str, *options: str, image: str = "bookworm-mpich",
              command: Sequence[str] = HELLO) -> Result:
        name = engine.new_name()
        where = ["--hooks-dir", hooks_dir] if hooks_dir else []
        return self.run("podman", "--runtime", engine.runtime, *where, "run", "--rm", "--name", name, "--net=none", *options,
                        engine.load(image), *command)


@pytest.fixture(scope="module")
def node(package: Path) -> Iterator[Node]:
    folder = bed.scratch("rpm")
    made = Node(folder, package)
    done = made.run("oci-hpc-hooks", "scan")
    assert done.returncode == 0 and "mpich: available" in done.stdout, done.stdout + done.stderr
    yield made
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def test_no_scriptlet_does_anything_in_an_image(node: Node) -> None:
    assert node.installed == ""
    assert [line for line in node.files.splitlines() if "missing" in line and " g " not in line] == []
    assert not (node.folder / "var/lib/oci-hpc-hooks/inventory.json").exists(), "what one node offers has no place in an image for all"


@pytest.mark.parametrize("hooks_dir", [DEFAULT, PRECREATE], ids=["default", "precreate"])
def test_containers_get_the_sites_mpi(node: Node, rootful: Engine, hooks_dir: str) -> None:
    for way in ("cold", "warm"):
        assert_site(node.hello(rootful, hooks_dir))
        (entry,) = json.loads(node.run("oci-hpc-hooks", "last", "--json", "-n", "1").stdout)["entries"]
        assert (entry["verdict"], entry["path"]) == ("proved", way)
    assert_own(node.hello(rootful, hooks_dir, "--annotation=org.supercontainers.mpi=none"))
    node.run("sh", "-c", "rm -rf /var/cache/oci-hpc-hooks/plans")


def test_an_image_build_is_left_alone(node: Node, rootful: Engine) -> None:
    steps = f"FROM {rootful.load('bookworm-mpich')}\nRUN mpiexec -n 2 mpihello && test ! -e /dev/.oci-hpc\n"
    (node.folder / "Containerfile").write_text(steps)
    done = node.run("podman", "--runtime", rootful.runtime, "build", "--network=none", "--no-cache", "--tag", "localhost/bed/rpm",
                    "--file", str(node.folder / "Containerfile"), str(node.folder / "etc"))
    assert done.returncode == 0 and "4.0.2" in done.stdout + done.stderr, done.stdout + done.stderr
    node.run("podman", "image", "rm", "localhost/bed/rpm")


def test_hooks_run_what_is_packed_in_them(node: Node) -> None:
    """The times of the installed modules are those of the packed ones: nothing of ours is read from the disk."""
    script = "cd /var && echo '{}' | strace -f -e trace=openat /usr/libexec/oci/hooks.d/oci-hpc-hooks-createruntime"
    done = node.run("sh", "-c", script)
    assert "oci-hpc-hooks-createruntime" in done.stderr, done.stderr
    read = [line for line in done.stderr.splitlines() if "/usr/lib/oci-hpc-hooks/" in line and "ENOENT" not in line]
    assert read == []


def test_the_command(node: Node, rootful: Engine) -> None:
    image = rootful.load("bookworm-mpich")
    for words, says in [
        (["validate", "/etc/oci-hpc-hooks/site.json"], "ok"),
        (["profiles", "list"], "mpich: on, available"),
        (["doctor"], "all well"),
        (["check", image], "proved"),
        (["profiles", "draft", str(MPICH5 / "libmpi.so.12")], '"provides"'),
        (["register", "/var/hooks"], "/var/hooks/podman/oci-hpc-hooks-precreate.json"),
    ]:
        done = node.run("oci-hpc-hooks", *words)
        assert done.returncode == 0 and says in done.stdout, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr


def test_one_version_everywhere() -> None:
    spec = (ROOT / "packaging/rpm/oci-hpc-hooks.spec").read_text()
    version = next(line.split("=")[1].strip() for line in (ROOT / "setup.cfg").read_text().splitlines() if line.startswith("version"))
    assert f"\nVersion:        {version}\n" in spec
    pins = [line.strip().split("==") for line in (ROOT / "packaging/rpm/bundle.txt").read_text().splitlines() if "==" in line]
    assert [f"Provides:       bundled(python3dist({name})) = {release}" for name, release in pins] == [
        line for line in spec.splitlines() if line.startswith("Provides:")]
