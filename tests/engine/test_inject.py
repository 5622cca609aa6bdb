"""The main job in real containers: two ranks of an unchanged image run on the site's MPI, whoever starts it and however."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import MPICH5, TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, LIBRARY_DIR, assert_own, assert_site, injected, log_of, start
from tests.engine.site import ReadySite, ready, site, three_engines  # noqa: F401

SCRIPT = "#!/bin/sh\n# as setvars and conda activate do\nexport LD_LIBRARY_PATH={path}\nexec mpiexec -n 2 mpihello\n"


def test_image_alone_runs_its_own(engine: Engine) -> None:
    assert_own(engine.run("bookworm-mpich", *HELLO))


@pytest.mark.parametrize("option", ["", "--read-only", "--init", "--privileged"])
def test_injected(engine: Engine, site: Site, option: str) -> None:
    injected(engine, site, options=[option] if option else [])


@pytest.mark.parametrize("option", ["--uidmap=0:100000:65536", "--userns=auto"])
def test_user_namespace_of_root(rootful: Engine, ready: ReadySite, option: str) -> None:
    injected(rootful, ready(rootful), options=[option, "--read-only"])


def test_user_of_the_container(crun: Engine, ready: ReadySite) -> None:
    """A USER who is nobody inside reads and maps the files too."""
    injected(crun, ready(crun), options=["--user=1234:1234"])


# ------------------------------------------------------------------------------------------------ entrypoint scripts


def test_shell_command(crun: Engine, ready: ReadySite) -> None:
    """The words of ``sh -c`` are followed."""
    injected(crun, ready(crun), "sh", "-c", "echo hello && mpiexec -n 2 mpihello")


def script(folder: Path, path: str) -> str:
    """An entrypoint script in a folder for a volume; the option that gives the volume."""
    folder.mkdir()
    (folder / "run.sh").write_text(SCRIPT.format(path=path))
    (folder / "run.sh").chmod(0o755)
    return f"--volume={folder}:/scripts:ro"


def test_script(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    """A script cannot be followed, so there is no proof; it gets the site's MPI all the same."""
    injected(crun, ready(crun), "/scripts/run.sh", options=[script(scratch / "scripts", "")], verdict="unproved")


def test_script_that_names_the_images_copy(engine: Engine, site: Site, scratch: Path) -> None:
    """LD_LIBRARY_PATH wins against the loader's cache, so the copy itself must be the site's."""
    volume = script(scratch / "scripts", LIBRARY_DIR)
    assert_own(engine.run("bookworm-mpich", "/scripts/run.sh", options=[volume]))
    injected(engine, site, "/scripts/run.sh", options=[volume], verdict="unproved", path=f"{LIBRARY_DIR}/libmpich.so.12")


def test_library_path_of_environment(crun: Engine, ready: ReadySite) -> None:
    options = [f"--env=LD_LIBRARY_PATH={LIBRARY_DIR}"]
    assert_own(crun.run("bookworm-mpich", *HELLO, options=options))
    result, log = start(crun, ready(crun), *HELLO, options=options)
    assert_site(result, f"{LIBRARY_DIR}/libmpich.so.12")
    assert [entry["verdict"] for entry in log] == ["proved"]


@pytest.fixture(scope="module")
def private() -> Iterator[Path]:
    """A user's own build: programs with DT_RPATH and DT_RUNPATH, and a copy of Debian's libmpich where these lead."""
    folder = bed.scratch("private")
    (folder / "lib").mkdir()
    library = bed.BUILD / "images/bookworm" / LIBRARY_DIR[1:] / "libmpich.so.12"
    (folder / "lib/libmpich.so.12").write_bytes(library.read_bytes())
    for kind, tags in (("rpath", "--disable-new-dtags"), ("runpath", "--enable-new-dtags")):
        sources = [f"-I{MPICH5.parent / 'include'}", f"{bed.ROOT}/tests/bed/src/mpihello.c", str(library)]
        link = f"-Wl,{tags},-rpath,/data/lib,--allow-shlib-undefined"
        subprocess.run(["gcc", "-O1", "-o", folder / f"hello-{kind}", *sources, link], check=True, timeout=60)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["rpath", "runpath"])
def test_private_copy(crun: Engine, ready: ReadySite, private: Path, kind: str) -> None:
    """Neither an entry in the loader's cache nor LD_LIBRARY_PATH wins against DT_RPATH: the private copy is replaced in place."""
    command = ("mpiexec", "-n", "2", f"/data/hello-{kind}")
    volume = f"--volume={private}:/data"
    before = (private / "lib/libmpich.so.12").stat()
    assert_own(crun.run("bookworm-mpich", *command, options=[volume]), "/data/lib/libmpich.so.12")
    injected(crun, ready(crun), *command, options=[volume], path="/data/lib/libmpich.so.12")
    after = (private / "lib/libmpich.so.12").stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)


# ------------------------------------------------------------------------------------------------ many at once, and again


@three_engines
def test_two_live_containers_of_one_image(engine: Engine, site: Site) -> None:
    """They differ in the device number of their root file systems; the plan of one serves the other."""
    names = [engine.new_name() for _ in range(2)]
    userns = ["--userns=keep-id"] if engine.user == "keep-id" else []
    ids = []
    for name in names:
        command = ["run", "--detach", "--net=none", "--name", name, *userns, engine.load("bookworm-mpich"), "sleep", "60"]
        ids.append(engine.podman("--hooks-dir", str(site.hooks_dir), *command, check=True).stdout.strip())
    devices = {engine.podman("exec", name, "stat", "-c", "%d", "/usr/bin/true", check=True).stdout for name in names}
    assert len(devices) == 2
    for name in names:
        assert_site(engine.podman("exec", name, *HELLO))
    assert [log_of(site, container)[0]["path"] for container in ids] == ["cold", "warm"]


def _together(engine: Engine, site: Site, number: int) -> None:
    with ThreadPoolExecutor(number) as pool:
        started = [pool.submit(engine.run, "bookworm-mpich", *HELLO, hooks_dir=site.hooks_dir, timeout=120) for _ in range(number)]
    for future in started:
        assert_site(future.result())


def test_six_starts_at_once(crun: Engine, ready: ReadySite) -> None:
    """Nothing is remembered yet: six hooks decide and write the same plan at once."""
    crun.load("bookworm-mpich")
    _together(crun, ready(crun), 6)


@pytest.mark.long
def test_many_starts_at_once(engine: Engine, site: Site) -> None:
    engine.load("bookworm-mpich")
    for _ in range(3):
        _together(engine, site, 16)


@three_engines
def test_stop_and_start(engine: Engine, site: Site) -> None:
    """podman calls the hooks at every start of a container; what the one before left is no hindrance."""
    name = engine.new_name()
    userns = ["--userns=keep-id"] if engine.user == "keep-id" else []
    command = ["create", "--net=none", "--name", name, *userns, engine.load("bookworm-mpich"), "sh", "-c", "mpiexec -n 2 mpihello"]
    engine.podman("--hooks-dir", str(site.hooks_dir), *command, check=True)
    for _ in range(2):
        assert_site(engine.podman("--hooks-dir", str(site.hooks_dir), "start", "--attach", name))


# ------------------------------------------------------------------------------------------------ hooks beside each other


@pytest.mark.parametrize("user", ["root", "rootless"])
def test_two_sites(user: str, ready: ReadySite, make_site: SiteMaker) -> None:
    """What was decided with the configuration of one --hooks-dir is not applied with that of another."""
    engine = Engine("crun", user)
    assert_site(start(engine, ready(engine), *HELLO)[0])
    other = make_site(engine, search=[TRIXIE])  # which does not fit this image
    result, log = start(engine, other, *HELLO)
    assert result.returncode != 0 and "GLIBC_2.38" in result.stderr
    assert [entry["verdict"] for entry in log] == ["refused"]


@three_engines
def test_both_stages_at_once(engine: Engine, site: Site, scratch: Path) -> None:
    """createRuntime and prestart in one container: the second sees the first one's mark and is silent."""
    hooks = scratch / "hooks.d"  # podman merges folders by file name
    hooks.mkdir()
    for stage, folder in (("createRuntime", site.hooks_dir), ("prestart", site.hooks_dir / "prestart")):
        shutil.copy(folder / "oci-hpc-hooks.json", hooks / f"{stage}.json")
    look = "mpiexec -n 2 mpihello; grep -c ' /dev/.oci-hpc ' /proc/self/mountinfo"
    result, log = start(engine, site, "sh", "-c", look, hooks_dir=hooks)
    assert_site(result)
    assert result.stdout.splitlines()[-1] == "1"  # and not once more on top
    assert [entry["verdict"] for entry in log] == ["proved"]


def test_prestart_alone(crun: Engine, ready: ReadySite) -> None:
    site = ready(crun)
    injected(crun, site, hooks_dir=site.hooks_dir / "prestart")


def test_image_builds_are_left_alone(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    """A RUN step of an image's author sees the image as it is, with podman build and with buildah."""
    site = ready(crun)
    (scratch / "context").mkdir()
    look = "grep -q oci-hpc-hooks /proc/self/mountinfo && echo injected || echo untouched"
    text = f"FROM {crun.load('bookworm-mpich')}\nRUN {look}\nRUN mpiexec -n 2 mpihello\n"
    (scratch / "context/Containerfile").write_text(text)
    hooks = ["--hooks-dir", str(site.hooks_dir)]
    build = ["build", "--no-cache", "--network=none", "--isolation=oci", "--pull=never"]
    for command in (["podman", *hooks, *build], ["buildah", *build[:1], *hooks, *build[1:]]):
        result = crun.account.execute(*command, str(scratch / "context"), timeout=120)
        try:
            assert_own(result)
            assert "untouched" in result.stdout
        finally:
            image = result.stdout.split()[-1] if result.returncode == 0 else ""
            if image:
                crun.podman("rmi", "--force", image)
