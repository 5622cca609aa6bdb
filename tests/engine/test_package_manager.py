"""Packages installed inside a container that was served: what works with the loader's cache as a file, what breaks with a mount."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import Engine, Result
from tests.bed.site import Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, LIBRARY_DIR, SITE_VERSION, assert_own, assert_runs, assert_site, log_of, ranks, start
from tests.engine.site import ReadySite, ready, three_engines  # noqa: F401

IMAGES = ("bookworm-mpich", "bullseye-mpich")
DROP_IN = "/etc/ld.so.conf.d/zz-oci-hpc-hooks.conf"

#: After which the program runs once more. The package's own, demo, ends with 3 when both its libraries are found.
INSTALL = """
dpkg --install /data/demo.deb; echo dpkg: $?
dpkg --audit | grep -c libc-bin
ldconfig; echo ldconfig: $?
demo; echo demo: $?
ls -a /etc
"""


@pytest.fixture(scope="module")
def package() -> Iterator[str]:
    """The option that gives a container a package with two libraries, one of them in a directory of its own, as many vendors' have."""
    folder = bed.scratch("package")
    tree = folder / "tree"
    near, far = tree / LIBRARY_DIR[1:] / "libnear.so.1", tree / "opt/demo/lib/libfar.so.1"
    files = {
        "DEBIAN/control": "Package: demo\nVersion: 1\nArchitecture: amd64\nMaintainer: N. N. <nn@example.org>\nDescription: libraries\n",
        "DEBIAN/triggers": "activate-noawait ldconfig\n",
        "etc/ld.so.conf.d/demo.conf": "/opt/demo/lib\n",
    }
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    for path, source in ((near, "int near(void) { return 1; }"), (far, "int far(void) { return 2; }")):
        path.parent.mkdir(parents=True)
        compile_(path, source, "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{path.name}")
    program = tree / "usr/bin/demo"
    program.parent.mkdir()
    # Without the start files, which want a glibc as new as this machine's.
    main = "int near(void), far(void); void exit(int); void _start(void) { exit(near() + far()); }"
    compile_(program, main, "-nostartfiles", str(near), str(far))
    (folder / "data").mkdir()
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, folder / "data/demo.deb"], check=True, capture_output=True)
    yield f"--volume={folder}/data:/data:ro"
    shutil.rmtree(folder)


def compile_(path: Path, source: str, *options: str) -> None:
    subprocess.run(["gcc", "-w", "-xc", "-", "-xnone", "-o", path, *options], input=source.encode(), check=True, timeout=60)


def install(engine: Engine, site: Site, image: str, options: Sequence[str], stage: str = "createRuntime") -> tuple[Result, str]:
    """A container that installs the package and then runs two ranks; what the log says of its cache."""
    script = f"{INSTALL}\nexec {' '.join(HELLO)}"
    hooks_dir = site.hooks_dir / "podman" if stage == "precreate" else site.hooks_dir
    result, (entry,) = start(engine, site, "sh", "-c", script, options=options, image=image, hooks_dir=hooks_dir)
    assert entry["stage"] == stage
    return result, entry["loader_cache"]


# ---------------------------------------------------------------------------------------------------------------- as a file

@three_engines
@pytest.mark.parametrize(("image", "stage"), [*((image, "createRuntime") for image in IMAGES), (IMAGES[0], "precreate")])
def test_as_a_file_all_works(engine: Engine, ready: ReadySite, package: str, image: str, stage: str) -> None:
    user = ["--user=0"] if engine.user == "keep-id" else []
    result, way = install(engine, ready(engine), image, [package, *user], stage)
    if (stage, engine.user) == ("precreate", "keep-id"):
        assert way == "bind"  # at that stage no process is in the container's user namespace yet, to whose root the files must belong
        return
    assert way == "file"
    said = result.stdout.splitlines()
    assert "dpkg: 0" in said and "ldconfig: 0" in said and "demo: 3" in said, result.stdout + result.stderr
    assert said[said.index("dpkg: 0") + 1] == "0"  # packages that are not whole
    assert "ld.so.cache~" not in said
    assert "Device or resource busy" not in result.stderr
    # ldconfig has made the cache anew: the copy that was bound over is found first, and what it needs in the tree.
    assert_runs(result, SITE_VERSION, f"{LIBRARY_DIR}/libmpich.so.12")


@three_engines
def test_an_entrypoint_that_runs_ldconfig(engine: Engine, ready: ReadySite) -> None:
    """As those of many images do, and stop where it fails."""
    options = ["--user=0"] if engine.user == "keep-id" else []
    command = ("sh", "-ec", "ldconfig; ldconfig -p | grep libfabric; exec mpiexec -n 2 mpihello")
    result, (entry,) = start(engine, ready(engine), *command, options=options)
    assert_runs(result, SITE_VERSION, f"{LIBRARY_DIR}/libmpich.so.12")
    assert "libfabric.so.1 (libc6,x86-64) => /dev/.oci-hpc/" in result.stdout
    assert entry["loader_cache"] == "file"


@three_engines
def test_owner_and_mode(engine: Engine, ready: ReadySite) -> None:
    look = f"stat -c '%u %g %a %F %h' /etc/ld.so.cache {DROP_IN}; grep -c ' /etc/ld.so.cache ' /proc/self/mountinfo; mpiexec -n 2 mpihello"
    result, (entry,) = start(engine, ready(engine), "sh", "-c", look)
    assert_site(result)
    assert result.stdout.splitlines()[:3] == ["0 0 644 regular file 1"] * 2 + ["0"]
    assert entry["loader_cache"] == "file"


@pytest.mark.parametrize("option", ["--uidmap=0:100000:65536", "--userns=auto"])
def test_owner_in_a_user_namespace_of_root(rootful: Engine, ready: ReadySite, option: str) -> None:
    """The files belong to the container's root, who can replace them."""
    look = f"stat -c '%u %g %a' /etc/ld.so.cache {DROP_IN}; ldconfig; echo ldconfig: $?; mpiexec -n 2 mpihello"
    result, (entry,) = start(rootful, ready(rootful), "sh", "-c", look, options=[option])
    assert_runs(result, SITE_VERSION, f"{LIBRARY_DIR}/libmpich.so.12")
    assert result.stdout.splitlines()[:3] == ["0 0 644"] * 2 + ["ldconfig: 0"]
    assert entry["loader_cache"] == "file"


# ---------------------------------------------------------------------------------------------------------------- as a mount

@pytest.mark.parametrize("image", IMAGES)
def test_as_a_mount_nothing_with_a_library_can_be_installed(crun: Engine, make_site: SiteMaker, package: str, image: str) -> None:
    """What a site takes upon itself with "loader_cache": "bind". The container's own MPI program runs on."""
    result, way = install(crun, make_site(crun, loader_cache="bind"), image, [package])
    assert way == "bind"
    said = result.stdout.splitlines()
    assert "dpkg: 1" in said and "ldconfig: 1" in said and "demo: 127" in said, result.stdout + result.stderr
    assert said[said.index("dpkg: 1") + 1] == "1"  # libc-bin is left half configured
    assert "ld.so.cache~" in said and "Device or resource busy" in result.stderr
    assert_site(result)


@three_engines
def test_a_read_only_root_is_bound(engine: Engine, ready: ReadySite) -> None:
    result, (entry,) = start(engine, ready(engine), "sh", "-c", f"test ! -e {DROP_IN} && mpiexec -n 2 mpihello", options=["--read-only"])
    assert_site(result)
    assert entry["loader_cache"] == "bind"
    (note,) = [finding for finding in entry["findings"] if finding["code"] == "loader-cache"]
    assert "its root filesystem is read-only" in note["what"]


@pytest.mark.parametrize("options, because", [
    (["--volume={scratch}/conf:/etc/ld.so.conf.d"], "/etc/ld.so.conf.d is a link or a volume"),
    (["--tmpfs=/etc/ld.so.conf.d"], "/etc/ld.so.conf.d is a link or a volume"),
])
def test_a_users_volume_is_not_written(crun: Engine, ready: ReadySite, scratch: Path, options: Sequence[str], because: str) -> None:
    (scratch / "conf").mkdir()
    (scratch / "conf").chmod(0o777)
    result, (entry,) = start(crun, ready(crun), *HELLO, options=[option.format(scratch=scratch) for option in options])
    assert_site(result)
    assert entry["loader_cache"] == "bind"
    assert because in next(finding["what"] for finding in entry["findings"] if finding["code"] == "loader-cache")
    assert list((scratch / "conf").iterdir()) == []


# -------------------------------------------------------------------------------------------- started again, and made an image of

def changed(engine: Engine, name: str) -> set[str]:
    lines = engine.podman("diff", name, check=True).stdout.splitlines()
    return {line for line in lines if line.split()[1] not in ("/data", "/etc")}  # podman's own mount points


@pytest.mark.parametrize("way, traces", [
    ("file", {"C /etc/ld.so.cache", "C /etc/ld.so.conf.d", f"A {DROP_IN}"}),
    ("bind", set()),
])
def test_started_again(crun: Engine, make_site: SiteMaker, way: str, traces: set[str]) -> None:
    """What the start before left in the layer is not taken for the image's own."""
    site = make_site(crun, loader_cache=way)
    name = crun.new_name()
    hooks = ["--hooks-dir", str(site.hooks_dir)]
    command = ["sh", "-c", "md5sum /etc/ld.so.cache; mpiexec -n 2 mpihello"]
    made = crun.podman(*hooks, "create", "--net=none", "--name", name, crun.load("bookworm-mpich"), *command, check=True).stdout.strip()
    sums = set()
    for _ in range(3):
        result = crun.podman(*hooks, "start", "--attach", name)
        assert_site(result)
        sums.add(result.stdout.split()[0])
        assert changed(crun, name) == traces
    assert len(sums) == 1
    assert [entry["loader_cache"] for entry in log_of(site, made)] == [way] * 3


@pytest.mark.parametrize("installs", [False, True], ids=["as-it-was", "with-a-package"])
def test_an_image_made_of_it(crun: Engine, make_site: SiteMaker, package: str, installs: bool) -> None:
    """``podman commit`` keeps two small files, which without hooks are of no effect; with hooks all is as in the first container."""
    site = make_site(crun)
    name, image = crun.new_name(), f"localhost/{crun.new_name()}"
    hooks = ["--hooks-dir", str(site.hooks_dir)]
    script = (INSTALL if installs else "") + "exec mpiexec -n 2 mpihello"
    run = ["run", "--net=none", package]
    first = crun.podman(*hooks, *run, "--name", name, crun.load("bookworm-mpich"), "sh", "-c", script)
    assert [rank.version for rank in ranks(first)] == [SITE_VERSION] * 2
    crun.podman("commit", "--quiet", name, image, check=True, timeout=120)
    try:
        plain = crun.podman(*run, "--rm", image, *HELLO)
        assert_own(plain)
        again = crun.podman(*run, "--rm", image, "sh", "-c", INSTALL + "exec mpiexec -n 2 mpihello")
        assert_own(again)
        assert {"dpkg: 0", "ldconfig: 0", "demo: 3"} <= set(again.stdout.splitlines()), again.stdout + again.stderr
        served = crun.podman(*hooks, *run, "--rm", image, *HELLO)
        assert_site(served)
    finally:
        crun.podman("rmi", "--force", image)
