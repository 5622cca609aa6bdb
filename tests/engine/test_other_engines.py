"""Engines that read no folder of hooks: Docker and containerd by the runtime that ``register --wrap`` writes, Charliecloud by the arguments
that ``plan`` prints."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import BUILD, Engine, Result, reference
from tests.bed.site import Site
from tests.engine.inside import OWN_VERSION, SITE_VERSION, TREE
from tests.engine.site import ReadySite, ready  # noqa: F401
from tests.engine.test_check import valid
from tests.pages import blocks

_DOCKER, _, CDI, DOCKERS_CONFIGURATION, CTR_RUN, CHARLIECLOUD = (block.text for block in blocks("docs/engines.md"))
REGISTER, ADD_RUNTIME, DOCKER_RUN = _DOCKER.splitlines()
HOOKS = "/usr/local/share/oci-hpc-hooks/hooks.d"

#: Without what a daemon wants of a machine's network and limits.
DOCKERD = ("--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2", "--default-ulimit=nofile=1024:4096")
LABEL = ("--label", "org.supercontainers.mpi=mpich")
WISH = ("--annotation", "org.supercontainers.mpi=mpich")
IMAGE = "bookworm-mpich"
PROGRAM = "mpihello"


class Daemon:
    """An engine's daemon in a folder of the test, and its client."""

    def __init__(self, site: Site, runtime: Path, client: tuple[str, ...], *command: str) -> None:
        self.site = site
        self.runtime = runtime
        self.client = client
        self.log = runtime.with_name("daemon.log")
        bed.enter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait(self) -> None:
        deadline = time.monotonic() + 30
        while self("version").returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def __call__(self, *arguments: str) -> Result:
        return bed.root_account().execute(*self.client, *arguments, timeout=120)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def root_site(ready: ReadySite) -> Site:  # noqa: F811
    return ready(Engine("crun", "root"))


def words(line: str, folder: Path) -> list[str]:
    """What follows the program in a line of docs/engines.md, with the folder of hooks that the test has."""
    assert line.count(HOOKS) == 1
    return shlex.split(line.replace(HOOKS, f"{folder}/hooks"))[1:]


def wrap(site: Site, folder: Path, runtime: str = "runc") -> Path:
    """The runtime that gives the hook."""
    done = site.command(*words(REGISTER.replace("runc", runtime), folder))
    assert done.returncode == 0, done.stderr
    return folder / f"hooks/bin/oci-hpc-hooks-{runtime}"


@pytest.fixture(scope="module")
def docker(root_site: Site) -> Iterator[Daemon]:
    folder = bed.scratch("docker")
    runtimes = [wrap(root_site, folder, name) for name in ("runc", "crun")]
    socket = f"unix://{folder}/sock"
    daemon = Daemon(root_site, runtimes[0], ("docker", "--host", socket), "dockerd", *DOCKERD, f"--host={socket}",
                    f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid",
                    *words(ADD_RUNTIME, folder), f"--add-runtime=hpc-crun={runtimes[1]}")
    try:
        daemon.wait()
        for name, change in (("asks", "LABEL org.supercontainers.mpi=mpich"), ("silent", "ENV A=B")):
            changes = ("--change", change, "--change", "ENV PATH=/usr/local/bin:/usr/bin")
            done = daemon("import", *changes, f"{BUILD}/images/bookworm.tar", name)
            assert done.returncode == 0, done.stderr
        yield daemon
    finally:
        daemon.stop()
        subprocess.run(["rm", "-rf", folder], check=True)


def versions(result: Result) -> str:
    assert result.returncode == 0, result.stderr
    return SITE_VERSION if SITE_VERSION in result.stdout else OWN_VERSION if OWN_VERSION in result.stdout else result.stdout


@pytest.mark.parametrize(("image", "options", "version"), [
    ("asks", (), SITE_VERSION),
    ("asks", ("--label", "org.supercontainers.mpi=none"), OWN_VERSION),
    ("asks", ("--read-only",), SITE_VERSION),
    ("silent", (), OWN_VERSION),
    ("silent", LABEL, SITE_VERSION),
])
@pytest.mark.parametrize("runtime", ["hpc", "hpc-crun"])
def test_docker(docker: Daemon, runtime: str, image: str, options: tuple[str, ...], version: str) -> None:
    """By the labels of the image, and those that the caller gives to the container, which say otherwise."""
    run, given = DOCKER_RUN.replace("hpc", runtime).split()[1:-1], ("--rm", "--network=none", *options)
    assert versions(docker(*run, *given, image, PROGRAM)) == version


def test_dockers_own_runtime_is_as_ever(docker: Daemon) -> None:
    assert versions(docker("run", "--rm", "--network=none", "asks", PROGRAM)) == OWN_VERSION


def test_docker_tells_why(docker: Daemon) -> None:
    done = docker("run", "--rm", "--runtime=hpc", "--network=none", "--label", "org.supercontainers.mpi=openmpi", "silent", PROGRAM)
    assert done.returncode != 0
    assert "openmpi is wanted; this site offers mpich (from annotation org.supercontainers.mpi=openmpi)" in done.stderr
    assert docker.site.log()[-1]["verdict"] == "refused"


@pytest.mark.long
def test_docker_by_cdi(root_site: Site) -> None:
    """As the page has it, with a Docker that knows CDI: no process of ours at the start."""
    folder = bed.scratch("docker26")
    folder.chmod(0o755)
    (folder / "daemon.json").write_text(DOCKERS_CONFIGURATION)
    socket = f"unix://{folder}/sock"
    client = ("env", f"PATH={BUILD}/docker26:/usr/sbin:/usr/bin:/sbin:/bin")
    with bed.cdi_folder():
        write, run = (shlex.split(line.replace("IMAGE", reference(Engine("crun", "root").load(IMAGE)))) for line in CDI.splitlines())
        assert root_site.command(*write[1:]).returncode == 0
        daemon = Daemon(root_site, folder / "none", (*client, "docker", "--host", socket), *client, "dockerd", *DOCKERD,
                        f"--host={socket}", f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid",
                        f"--config-file={folder}/daemon.json")
        try:
            daemon.wait()
            change = ("--change", "ENV PATH=/usr/local/bin:/usr/bin")
            assert daemon("import", *change, f"{BUILD}/images/bookworm.tar", reference(IMAGE)).returncode == 0
            without = run[1:2] + run[4:]
            for words, version in ((run[1:], SITE_VERSION), (without, OWN_VERSION)):
                assert versions(daemon(words[0], "--rm", "--network=none", *words[1:], PROGRAM)) == version
        finally:
            daemon.stop()
            subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture(scope="module")
def containerd(root_site: Site) -> Iterator[Daemon]:
    folder = bed.scratch("containerd")
    config = folder / "config.toml"
    config.write_text(f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                      f'[grpc]\naddress = "{folder}/sock"\n')
    client = ("ctr", "--address", f"{folder}/sock")
    daemon = Daemon(root_site, wrap(root_site, folder), client, "containerd", "--config", str(config))
    try:
        daemon.wait()
        Engine("crun", "root").podman("save", "--format=oci-archive", "--output", str(folder / "image.tar"),
                                      Engine("crun", "root").load(IMAGE), check=True)
        done = daemon("image", "import", str(folder / "image.tar"))
        assert done.returncode == 0, done.stderr
        yield daemon
    finally:
        daemon.stop()
        subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.parametrize("asked", [True, False])
def test_containerd(containerd: Daemon, asked: bool) -> None:
    """By annotations: where containerd keeps labels nobody else can read them."""
    annotation = " ".join(WISH)
    assert annotation in CTR_RUN
    run = words(CTR_RUN if asked else CTR_RUN.replace(annotation, ""), containerd.runtime.parents[2])
    run[-2:] = [reference(IMAGE), f"test-{asked}", PROGRAM]
    assert versions(containerd("run", "--rm", *run[1:])) == (SITE_VERSION if asked else OWN_VERSION)


def test_base_spec_of_containerd(containerd: Daemon, root_site: Site, tmp_path: Path) -> None:
    """The other way: a specification that has the hook already (base_runtime_spec, ctr run --config)."""
    made = json.loads(containerd("oci", "spec").stdout)
    made["process"]["args"] = [f"/usr/local/bin/{PROGRAM}"]
    made["process"]["terminal"] = False
    made["root"] = {"path": f"{BUILD}/images/bookworm", "readonly": True}
    (tmp_path / "config.json").write_text(json.dumps(made))
    wish = ("--annotation", "org.supercontainers.mpi=mpich")
    done = root_site.command("bundle", str(tmp_path), "--hooks-dir", str(root_site.hooks_dir), *wish)
    assert done.returncode == 0, done.stderr
    run = ("run", "--rm", "--config", str(tmp_path / "config.json"), "--runc-binary", "runc", "based")
    assert versions(containerd(*run)) == SITE_VERSION


# ---------------------------------------------------------------------------------------------------------------- Charliecloud

ROOTFS = str(BUILD / "images/bookworm")


def plan(site: Site, *arguments: str) -> Result:
    return site.command("plan", *arguments, "--", PROGRAM)


def ch_run(*arguments: str) -> Result:
    """As a user, who needs no privilege for it."""
    return bed.user_account().execute("ch-run", *arguments, ROOTFS, "--", PROGRAM)


def test_charliecloud(root_site: Site, scratch: Path) -> None:
    """The image is the directory as it is, which its user cannot write."""
    assert versions(ch_run()) == OWN_VERSION
    done = plan(root_site, "--format", "charliecloud", "--output", str(scratch / "plan"), *WISH, ROOTFS)
    assert done.returncode == 0, done.stderr
    result = ch_run(*shlex.split(done.stdout))
    assert versions(result) == SITE_VERSION
    assert "loaded /mnt/" in result.stdout


def test_charliecloud_as_the_page_has_it(ready: ReadySite, scratch: Path) -> None:  # noqa: F811
    """Both lines, typed by a user: an image of podman's that asks by annotation, or by its label."""
    engine = Engine("crun", "rootless")
    site = ready(engine)
    shutil.chown(scratch, engine.account.uid)
    options = f"--config-dir {site.config_dir} --state-dir {site.state_dir} --cache-dir {site.cache_dir} --log-file {site.log_file}"
    text = CHARLIECLOUD.replace("oci-hpc-hooks", f"oci-hpc-hooks {options}")
    for word, meant in (("IMAGE", engine.load(IMAGE)), ("PROGRAM", PROGRAM), ("DIRECTORY", ROOTFS)):
        text = text.replace(word, meant)
    done = engine.account.execute("bash", "-euc", text, env={"HOME": str(scratch)}, timeout=120)
    assert versions(done) == SITE_VERSION
    assert f"--bind={scratch}/plan/" in done.stdout and "loaded /mnt/" in done.stdout


@pytest.mark.parametrize("form", ["apptainer", "enroot", "charliecloud"])
def test_the_same_files_for_each_engine(root_site: Site, scratch: Path, form: str) -> None:
    """These engines are not here: their words are as their documents have them."""
    done = plan(root_site, "--json", "--format", form, "--output", str(scratch / "plan"), *WISH, ROOTFS)
    said = valid(done.stdout, "plan-output")
    assert (said["verdict"], said["format"]) == ("proved", form)
    pairs = [word.partition("=")[2].split(":")[:2] for word in said["arguments"]]
    assert {"/mnt", "/etc/ld.so.cache"} < {place for _, place in pairs}
    assert all(Path(source).exists() and (Path(ROOTFS) / place.lstrip("/")).exists() for source, place in pairs)


def test_the_plan_as_a_document(root_site: Site) -> None:
    done = plan(root_site, *WISH, ROOTFS)
    assert done.returncode == 0
    assert valid(done.stdout, "plan")["tree_at"] == TREE


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (("--format", "enroot", *WISH, ROOTFS), 2, "needs a directory of its own"),
    (("--format", "enroot", "--output", "/", *WISH, ROOTFS), 2, "/ cannot be written"),
    ((ROOTFS,), 1, "there is nothing to write for"),
    (("--annotation", "org.supercontainers.mpi=openmpi", ROOTFS), 1, "openmpi is wanted"),
])
def test_plans_that_are_none(root_site: Site, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = plan(root_site, *arguments)
    assert (done.returncode, done.stdout) == (code, "") and says in done.stderr
