# ruff: noqa: F811 (fixtures are imported)
"""User's volumes over what the hook replaces: their copies are replaced too, nothing is written into them, and nothing gets
through a shared one to the host."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import Engine, leaks
from tests.bed.site import Site
from tests.engine.inside import HELLO, LIBRARY_DIR, OWN_VERSION, SITE_VERSION, assert_own, assert_site, injected, start
from tests.engine.site import ReadySite, ready, site, three_engines  # noqa: F401

IMAGE = bed.BUILD / "images/bookworm"


@pytest.fixture(scope="module")
def copies() -> Iterator[Path]:
    """Copies of the image's ``etc`` and ``lib`` (its multiarch directory), for volumes."""
    folder = bed.scratch("copies")
    for source, name in ((IMAGE / "etc", "etc"), (IMAGE / LIBRARY_DIR[1:], "lib")):
        subprocess.run(["cp", "-a", source, folder / name], check=True, timeout=60)
    subprocess.run(["cp", "-a", folder / "etc", folder / "etc-without-cache"], check=True, timeout=60)
    (folder / "etc-without-cache/ld.so.cache").unlink()
    for etc in (folder / "etc", folder / "etc-without-cache"):
        for name in ("hosts", "hostname", "resolv.conf"):  # mount points of podman's, which it would make
            (etc / name).touch()
    yield folder
    shutil.rmtree(folder)


def content(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything in a volume: names, owners, times and bytes."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, digest)
    return found


@three_engines
@pytest.mark.parametrize("where, name", [("/etc", "etc"), (LIBRARY_DIR, "lib")])
def test_volume_over_what_is_replaced(engine: Engine, site: Site, copies: Path, where: str, name: str) -> None:
    before = content(copies / name)
    volume = f"--volume={copies / name}:{where}"
    injected(engine, site, options=[volume])
    result, _ = start(engine, site, *HELLO, options=[volume, f"--env=LD_LIBRARY_PATH={LIBRARY_DIR}"])
    assert_site(result, f"{LIBRARY_DIR}/libmpich.so.12")  # the volume's own copy
    assert content(copies / name) == before


def test_volume_with_another_copy(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    """A copy that no loader cache knows, in a directory that a script may name later."""
    (scratch / "lib").mkdir()
    shutil.copy(IMAGE / LIBRARY_DIR[1:] / "libmpich.so.12", scratch / "lib/libmpich.so.12")
    before = content(scratch / "lib")
    volume = f"--volume={scratch / 'lib'}:/usr/local/lib"
    command = ("sh", "-c", "LD_LIBRARY_PATH=/usr/local/lib mpiexec -n 2 mpihello")
    assert_own(crun.run("bookworm-mpich", *command, options=[volume]), "/usr/local/lib/libmpich.so.12")
    injected(crun, ready(crun), *command, options=[volume], path="/usr/local/lib/libmpich.so.12")
    assert content(scratch / "lib") == before


def test_volume_that_is_the_library(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    """One file, bound over the image's library by the user: that is a copy like any other."""
    shutil.copy(IMAGE / LIBRARY_DIR[1:] / "libmpich.so.12", scratch / "libmpich.so.12")
    volume = f"--volume={scratch / 'libmpich.so.12'}:{LIBRARY_DIR}/libmpich.so.12.2.2"
    injected(crun, ready(crun), options=[volume])


@three_engines
def test_volume_without_loader_cache(engine: Engine, site: Site, copies: Path) -> None:
    """The cache would have to be created in the user's volume."""
    before = content(copies / "etc-without-cache")
    result, log = start(engine, site, *HELLO, options=[f"--volume={copies / 'etc-without-cache'}:/etc"])
    assert result.returncode != 0 and "rank" not in result.stdout
    assert "/etc/ld.so.cache would have to be created inside the volume /etc" in result.stderr
    assert "--annotation org.supercontainers.mpi=none" in result.stderr
    assert [entry["verdict"] for entry in log] == ["refused"]
    assert content(copies / "etc-without-cache") == before


@three_engines
@pytest.mark.parametrize("propagation", ["rshared", "shared"])
def test_shared_volume_is_refused(engine: Engine, site: Site, copies: Path, propagation: str) -> None:
    """What is mounted in a shared volume appears on the host. (Over /etc podman's own hosts file fails already.)"""
    with bed.shared_mount(copies / "lib") as volume:
        options = [f"--volume={volume}:{LIBRARY_DIR}:{propagation}"]
        tags = engine.run("bookworm-mpich", "grep", f" {LIBRARY_DIR} ", "/proc/self/mountinfo", options=options).stdout
        assert " shared:" in tags, tags  # or else this test tests nothing
        before = bed.host_state()
        result, log = start(engine, site, *HELLO, options=options)
        assert leaks(before) == []
        assert result.returncode != 0 and "rank" not in result.stdout
        assert f"lies on a mount with shared propagation ({LIBRARY_DIR})" in result.stderr
        assert [entry["verdict"] for entry in log] == ["refused"]


@pytest.mark.parametrize("propagation", ["rslave", "slave", "rprivate"])
def test_volume_that_only_receives(rootful: Engine, ready: ReadySite, copies: Path, propagation: str) -> None:
    """What is mounted in it stays in the container, though the source is shared."""
    with bed.shared_mount(copies / "lib") as volume:
        before = bed.host_state()
        injected(rootful, ready(rootful), options=[f"--volume={volume}:{LIBRARY_DIR}:{propagation}"])
        assert leaks(before) == []


def test_shared_volume_elsewhere(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    with bed.shared_mount(scratch / "data") as volume:
        before = bed.host_state()
        injected(crun, ready(crun), options=[f"--volume={volume}:/data:rshared"])
        assert leaks(before) == []
        assert list(volume.iterdir()) == []


def test_volume_added_later(crun: Engine, ready: ReadySite, copies: Path) -> None:
    """A plan that was remembered without a volume is not applied to a container with it, and the other way."""
    site = ready(crun)
    volume = f"--volume={copies / 'etc-without-cache'}:/etc"
    for options, version in (([], SITE_VERSION), ([volume], ""), ([], SITE_VERSION), ([volume], "")):
        result, _ = start(crun, site, *HELLO, options=options)
        assert version in result.stdout and OWN_VERSION not in result.stdout
        assert (result.returncode == 0) == bool(version)
