"""The RPM: built, installed into the folder of a node's image, and containers started with nothing of this project but its files.

What is typed is that of docs/admin.md. What lies in the RPM is laid over this machine's /usr, /etc and /var, so that every path is the one
of a node.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import ROOT, Engine, Result
from tests.bed.site import MPICH5
from tests.engine.inside import HELLO, assert_own, assert_site
from tests.engine.node import Node
from tests.pages import blocks

pytestmark = [pytest.mark.long, pytest.mark.skipif(not shutil.which("rpmbuild"), reason="there is no rpmbuild here")]

#: Descriptors for podman's stage precreate, and podman's own folder, which needs no option of root.
PRECREATE = "/usr/share/oci-hpc-hooks/hooks.d/podman"
DEFAULT = ""

#: Of docs/admin.md, typed in this order.
INSTALL, CONFIGURE, PRECREATE_FOR_ALL, FIRST, REFUSAL = (block.text for block in blocks("docs/admin.md")[:5])
SHOWN = [block.text for block in blocks("docs/admin.md")[5:] if block.kind != "json"]
CONF = "/etc/containers/containers.conf.d/hooks.conf"
UNITS = ("oci-hpc-hooks-scan.service", "oci-hpc-hooks-scan.path")


def sh(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    """As the page has it, from this checkout: rpmlint has nothing to say that is not meant so."""
    folder = bed.scratch("rpmbuild")
    make, rebuild, _ = INSTALL.splitlines()
    environment = {**os.environ, "HOME": str(folder), "MAKEFLAGS": ""}
    for line in (make, rebuild.replace("rpmbuild", "rpmbuild --nodeps")):  # what is installed here is known to dpkg, not to rpm
        done = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    (made,) = folder.glob("rpmbuild/RPMS/*/oci-hpc-hooks-*.rpm")
    yield made
    shutil.rmtree(folder)


class RpmNode(Node):
    """A node with the RPM's files, configured and scanned as the page says."""

    def __init__(self, folder: Path, package: Path) -> None:
        for name in ("image", "upper", "work"):
            (folder / name).mkdir(mode=0o755)
        mounted = folder / "image"
        # As who makes the image of a diskless node: another system's folder, in which the scriptlets run. That one has no Python.
        layers = f"lowerdir={bed.BUILD}/images/bookworm,upperdir={folder}/upper,workdir={folder}/work"
        sh("mount", "-t", "overlay", "-o", layers, "overlay", mounted)
        _, self.validate, enable = CONFIGURE.splitlines()
        try:
            self.installed = sh("rpm", "--root", mounted, "--nodeps", "--ignorearch", "-i", package)
            self.changed = sh("rpm", "--root", mounted, "-V", "--nodeps", "oci-hpc-hooks")
            sh(*enable.replace("enable --now", f"--root={mounted} enable").split())
        finally:
            sh("umount", mounted)
        sh("cp", "-dR", "--preserve=mode,ownership,timestamps", folder / "upper", folder / "node")
        self.left = self._taken_off(mounted, layers)
        super().__init__(folder / "node", {})
        site = {"version": 1, "profiles": [{"name": "mpich", "search": [str(MPICH5)]}]}
        (self.files / "etc/oci-hpc-hooks/site.json").write_text(json.dumps(site))

    def _taken_off(self, mounted: Path, layers: str) -> set[str]:
        """What of a folder that it was installed into, and used, is there after its removal."""
        sh("mount", "-t", "overlay", "-o", layers, "overlay", mounted)
        try:
            for made in ("etc/oci-hpc-hooks/site.json", "etc/oci-hpc-hooks/profiles.d/mine.json", "var/cache/oci-hpc-hooks/plans/one",
                         "var/lib/oci-hpc-hooks/inventory.json", "var/log/oci-hpc-hooks.log"):
                (mounted / made).parent.mkdir(exist_ok=True)
                (mounted / made).write_text("{}")
            sh("rpm", "--root", mounted, "--nodeps", "-e", "oci-hpc-hooks")
            files = {str(path.relative_to(mounted)) for top in ("etc", "usr", "var") for path in (mounted / top).rglob("*oci-hpc-hooks*")}
            return {file for file in files if not file.startswith("etc/systemd/system/")}  # the units' links are systemctl's
        finally:
            sh("umount", mounted)

    def hello(self, engine: Engine, hooks_dir: str, *options: str, image: str = "bookworm-mpich",
              command: Sequence[str] = HELLO) -> Result:
        name = engine.new_name()
        where = ["--hooks-dir", hooks_dir] if hooks_dir else []
        return self.run("podman", "--runtime", engine.runtime, *where, "run", "--rm", "--name", name, "--net=none", *options,
                        engine.load(image), *command, account=engine.account)


@pytest.fixture(scope="module")
def node(package: Path) -> Iterator[RpmNode]:
    """After what systemd does when the service is enabled."""
    folder = bed.scratch("rpm")
    made = RpmNode(folder, package)
    assert not (made.files / "var/lib/oci-hpc-hooks/inventory.json").exists(), "what one node offers has no place in an image for all"
    assert "site.json: ok" in made.typed(made.validate).stdout
    (starts,) = re.findall("^ExecStart=(.*)$", (made.files / "usr/lib/systemd/system" / UNITS[0]).read_text(), re.MULTILINE)
    done = made.typed(f"OPTIONS=; . /etc/sysconfig/oci-hpc-hooks; {starts}")
    assert done.returncode == 0 and "mpich: available" in done.stdout, done.stdout + done.stderr
    yield made
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


#: By distribution: what its macros say of it, its Python, and the scriptlets that it gets.
DISTRIBUTIONS = {
    "EL 9": ("rhel 9", "python3", ("post", "preun", "postun")), "EL 10": ("rhel 10", "python3", ("post", "preun", "postun")),
    "Fedora": ("fedora 43", "python3", ("post", "preun", "postun")),
    "SLES 15 SP6": ("suse_version 1500", "python3.11", ("post", "preun", "postun", "pre")),
}
#: Stand-ins for those of systemd (src/rpm/macros.systemd.in) and of openSUSE's systemd-rpm-macros, which take the units as arguments.
MACROS = {name: f"%{name}() told %{{*}}" for name in (
    "systemd_post", "systemd_preun", "systemd_postun", "service_add_post", "service_del_preun", "service_del_postun_without_restart",
    "service_add_pre")}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_spec_file_by_the_macros_of(tmp_path: Path, distribution: str) -> None:
    """Parsed, not built: none of them is here."""
    says, python, scriptlets = DISTRIBUTIONS[distribution]
    suse = says.startswith("suse")
    (tmp_path / "macros").write_text("\n".join(text for name, text in MACROS.items() if name.startswith("service") == suse) + "\n")
    spec = ROOT / "packaging/rpm/oci-hpc-hooks.spec"
    done = subprocess.run(["rpmspec", f"--load={tmp_path}/macros", "--define", says, "--parse", spec], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\nRequires:       /usr/bin/{python}\n" in done.stdout and "\nBuildRequires:  systemd-rpm-macros\n" in done.stdout
    assert set(re.findall(r"^%(\w+)\ntold oci-hpc-hooks-scan.service oci-hpc-hooks-scan.path$", done.stdout, re.MULTILINE)) == {*scriptlets}
    assert not re.search(r"^ *%(?:\{|service|systemd)", done.stdout, re.MULTILINE), "a macro that nobody has"


def test_no_scriptlet_does_anything_in_an_image(node: RpmNode) -> None:
    assert node.installed == ""
    assert [line for line in node.changed.splitlines() if "missing" in line and " g " not in line] == []


def test_the_units(node: RpmNode) -> None:
    """systemd reads them without a word, and knows when to start them."""
    done = node.run("systemd-analyze", "verify", "--man=no", *(f"/usr/lib/systemd/system/{unit}" for unit in UNITS))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for unit in UNITS:
        assert (node.files / "etc/systemd/system/multi-user.target.wants" / unit).is_symlink()


def test_what_its_removal_leaves(node: RpmNode) -> None:
    page = (ROOT / "docs/admin.md").read_text()
    assert node.left == {"etc/oci-hpc-hooks", "var/cache/oci-hpc-hooks"}
    assert "may be removed then: " + " and ".join(f"`/{path}`" for path in sorted(node.left)) in page
    for verb in ("-i", "-e oci-hpc-hooks"):
        assert f"`rpm --root FOLDER --nodeps {verb}`" in page


def test_the_first_container_and_the_first_refusal(node: RpmNode) -> None:
    """As docs/admin.md has them; the image is without labels, and gets what is proposed for it."""
    engine = Engine("crun", "root")
    base, image, name = engine.load("bookworm-mpich-nolabel"), "localhost/bed/first", engine.new_name()

    def types(line: str, image: str = image) -> Result:
        line = line.replace("IMAGE", image).replace("PROGRAM", " ".join(HELLO))
        return node.typed(line.replace("podman run", f"podman run --rm --net=none --name={name}"))

    doctor, label, check, run, last = FIRST.splitlines()
    assert "all well" in types(doctor).stdout
    proposed = types(label.replace("PROGRAM", "mpihello"), base).stdout
    assert "LABEL org.supercontainers.mpi=mpich" in proposed
    (node.files / "Containerfile").write_text(f"FROM {base}\n{proposed}")
    engine.podman("build", "--quiet", "--tag", image, "--file", str(node.files / "Containerfile"), str(node.files / "etc"), check=True)
    try:
        assert types(check).stdout.startswith(f"{image}: proved")
        assert_site(types(run))
        assert ": proved, " in types(last).stdout.splitlines()[0] and "profile mpich" in types(last).stdout
        command, shown = REFUSAL.splitlines()
        refused = types(command.lstrip("$ "))
        assert refused.returncode == 126 and shown in refused.stderr, refused.stderr
        assert shown.partition("oci-hpc-hooks: ")[2] in types(last).stdout
        types(f"mkdir -p /etc/containers/containers.conf.d; cat >{CONF} <<'END'\n{PRECREATE_FOR_ALL}END\n")
        doctor = "env --unset=CONTAINERS_CONF " + doctor  # where this machine's needs are
        assert f"{PRECREATE}  {CONF}" in re.sub(" {2,}", "  ", types(doctor).stdout)
    finally:
        node.run("rm", "-f", CONF)
        engine.podman("rmi", "--force", image)


def test_what_the_page_shows(node: RpmNode, rootful: Engine) -> None:
    """Of a scheduler's words, of a fault, and of what a site publishes."""
    features, fault, _, publish, _ = SHOWN
    command, shown = features.splitlines()
    for host, line in (("n1", shown), (os.uname().nodename, node.typed(command.lstrip("$ ")).stdout.rstrip("\n"))):
        assert re.fullmatch(rf"NodeName={host} Features=mpi-mpich,x86_64(,\w+)*", line)

    executable = "/usr/libexec/oci/hooks.d/oci-hpc-hooks-createruntime"
    done = node.typed(f"mv {executable} /var/gone; {fault.splitlines()[0].lstrip('$ ')} || code=$?; mv /var/gone {executable}; exit $code")
    lines = [" ".join(line.split()) for line in fault.splitlines()]
    said = " ".join(done.stdout.split())
    assert done.returncode == 1 and " ".join(lines[-4:]) in said, done.stdout
    for line in (*lines[5:8], "mpich available", "slurm available needs nothing of the node"):
        assert line in said, done.stdout

    published = publish.replace("/srv/", "/var/")
    check = f"oci-hpc-hooks check --inventory {published.split()[-1]} {rootful.load('bookworm-mpich')}"
    done = node.typed(f"mkdir -p /var/www/systems\n{published}{check}")
    assert done.returncode == 0 and "on alpha-gpu: proved" in done.stdout, done.stdout + done.stderr


def test_switched_off(node: RpmNode, rootful: Engine) -> None:
    """Both ways of docs/admin.md, and the way back."""
    one, all_of_node = SHOWN[-1].splitlines()
    descriptor = all_of_node.partition("mv ")[2].partition("{")[0]

    def types(line: str) -> Result:
        line = line.replace("IMAGE PROGRAM", f"{rootful.load('bookworm-mpich')} {' '.join(HELLO)}")
        return node.typed(line.replace("podman run", f"podman --runtime={rootful.runtime} run --rm --net=none --name={rootful.new_name()}"))

    assert_own(types(one))
    run = one.replace("--annotation org.supercontainers.mpi=none ", "")
    assert_site(types(run))
    assert types(all_of_node).returncode == 0
    try:
        assert_own(types(run))
    finally:
        node.run("mv", f"{descriptor}.off", descriptor)
    assert_site(types(run))


def test_an_update_that_refuses_everything(node: RpmNode, rootful: Engine) -> None:
    """``"on_refusal": "run-without"`` counts from the next start on, without a scan."""
    asked = ("--annotation=org.supercontainers.mpi=openmpi",)
    path = "/etc/oci-hpc-hooks/site.json"
    assert node.hello(rootful, DEFAULT, *asked).returncode == 126
    site = node.run("cat", path).stdout
    try:
        node.typed(f"cat >{path} <<'END'\n{json.dumps({**json.loads(site), 'on_refusal': 'run-without'})}\nEND\n")
        assert_own(node.hello(rootful, DEFAULT, *asked))
    finally:
        node.typed(f"cat >{path} <<'END'\n{site}\nEND\n")
    assert node.hello(rootful, DEFAULT, *asked).returncode == 126


@pytest.mark.parametrize("hooks_dir", [DEFAULT, PRECREATE], ids=["default", "precreate"])
def test_containers_get_the_sites_mpi(node: RpmNode, rootful: Engine, hooks_dir: str) -> None:
    for way in ("cold", "warm"):
        assert_site(node.hello(rootful, hooks_dir))
        (entry,) = json.loads(node.run("oci-hpc-hooks", "last", "--json", "-n", "1").stdout)["entries"]
        assert (entry["verdict"], entry["path"]) == ("proved", way)
    assert_own(node.hello(rootful, hooks_dir, "--annotation=org.supercontainers.mpi=none"))
    node.run("sh", "-c", "rm -rf /var/cache/oci-hpc-hooks/plans")


def test_users_get_it_too(node: RpmNode) -> None:
    """Rootless podman reads the package's folder by itself."""
    rootless = Engine("crun", "rootless")
    assert_site(node.hello(rootless, ""))
    assert_own(node.hello(rootless, "", "--annotation=org.supercontainers.mpi=none"))


def test_an_image_build_is_left_alone(node: RpmNode, rootful: Engine) -> None:
    steps = f"FROM {rootful.load('bookworm-mpich')}\nRUN mpiexec -n 2 mpihello && test ! -e /dev/.oci-hpc\n"
    (node.files / "Containerfile").write_text(steps)
    done = node.run("podman", "--runtime", rootful.runtime, "build", "--network=none", "--no-cache", "--tag", "localhost/bed/rpm",
                    "--file", str(node.files / "Containerfile"), str(node.files / "etc"))
    assert done.returncode == 0 and "4.0.2" in done.stdout + done.stderr, done.stdout + done.stderr
    node.run("podman", "image", "rm", "localhost/bed/rpm")


def test_hooks_run_what_is_packed_in_them(node: RpmNode) -> None:
    """The times of the installed modules are those of the packed ones: nothing of ours is read from the disk."""
    script = "cd /var && echo '{}' | strace -f -e trace=openat /usr/libexec/oci/hooks.d/oci-hpc-hooks-createruntime"
    done = node.run("sh", "-c", script)
    assert "oci-hpc-hooks-createruntime" in done.stderr, done.stderr
    read = [line for line in done.stderr.splitlines() if "/usr/lib/oci-hpc-hooks/" in line and "ENOENT" not in line]
    assert read == []


def test_the_command(node: RpmNode, rootful: Engine) -> None:
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
