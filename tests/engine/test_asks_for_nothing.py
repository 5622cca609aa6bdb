"""A container that asks for nothing starts as ever, whatever is broken on our side; one that asks is never served from broken things."""
# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from oci_hpc_hooks.inputs.inventory import VERSION
from tests.bed import bed
from tests.bed.bed import BUILD, Engine
from tests.bed.site import Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import LIBRARY_DIR, OWN_VERSION, SITE_VERSION, TREE, log_of, ranks, start
from tests.engine.site import ReadySite, forget, ready  # noqa: F401
from tests.engine.test_refusals import NONE, OVERRIDE, prefix, sentence, versions  # noqa: F401

ANNOTATION = "--annotation=org.supercontainers.mpi=mpich"
NOLABEL = "bookworm-mpich-nolabel"
OTHER_VERSION = "5.0.9"  # see other_build

Breakage = Callable[[Site], object]


def assert_untouched(engine: Engine, site: Site, options: Sequence[str] = ()) -> None:
    """A container that asks for nothing runs its own MPI, and nobody says a word."""
    result, log = start(engine, site, "mpihello", options=options, image=NOLABEL)
    assert versions(result) == [OWN_VERSION]
    assert not result.stderr and not log


def assert_served(engine: Engine, site: Site, way: str, version: str = SITE_VERSION, options: Sequence[str] = ()) -> None:
    """A container that asks gets the site's MPI, decided by the cold or the warm path."""
    result, log = start(engine, site, "mpihello", options=options)
    assert versions(result) == [version]
    assert [(entry["verdict"], entry["path"]) for entry in log] == [("proved", way)]


# ------------------------------------------------------------------------------------------------ configuration and inventory


@contextlib.contextmanager
def copied(*folders: Path) -> Iterator[None]:
    """Let a test break copies of `folders`; the originals come back with all that an inventory knows of them."""
    for folder in folders:
        folder.rename(folder.with_suffix(".kept"))
        shutil.copytree(folder.with_suffix(".kept"), folder)
    try:
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".kept").rename(folder)


def site_json(text: str) -> Breakage:
    return lambda site: (site.config_dir / "site.json").write_text(text)


def instead_of_site_json(make: Callable[[Path], object]) -> Breakage:
    def replace(site: Site) -> None:
        (site.config_dir / "site.json").unlink()
        make(site.config_dir / "site.json")

    return replace


def inventory(edit: Callable[[bytes], bytes]) -> Breakage:
    def damage(site: Site) -> None:
        file = site.state_dir / "inventory.json"
        file.write_bytes(edit(file.read_bytes()))

    return damage


NOISE = random.Random(1).randbytes(4096)

#: What is broken, and what the sentence must then speak of.
BROKEN: dict[str, tuple[Breakage, str]] = {
    "site.json is no JSON": (site_json("{"), "site.json"),
    "site.json is not UTF-8": (lambda site: (site.config_dir / "site.json").write_bytes(NOISE), "site.json"),
    "site.json says nonsense": (site_json('{"version": 1, "profiles": 5, "defaults": []}'), "$.profiles"),
    "site.json is a directory": (instead_of_site_json(Path.mkdir), "site.json"),
    "site.json is a FIFO": (instead_of_site_json(os.mkfifo), "site.json"),
    "site.json is world-writable": (lambda site: (site.config_dir / "site.json").chmod(0o666), "mode 0666"),
    "no configuration": (lambda site: shutil.rmtree(site.config_dir), "libmpi.so.12"),
    "no inventory": (lambda site: (site.state_dir / "inventory.json").unlink(), "run oci-hpc-hooks scan"),
    "no state directory": (lambda site: shutil.rmtree(site.state_dir), "run oci-hpc-hooks scan"),
    "inventory is garbage": (inventory(lambda _: NOISE), "inventory.json"),
    "inventory is empty": (inventory(lambda _: b""), "inventory.json"),
    "inventory is truncated": (inventory(lambda data: data[: len(data) // 2]), "inventory.json"),
    "inventory of other types": (inventory(lambda data: data.replace(b'"libraries": [', b'"libraries": 7, "x": [', 1)), "whole inventory"),
    "inventory is world-writable": (lambda site: (site.state_dir / "inventory.json").chmod(0o666), "mode 0666"),
}


#: What a user namespace could change: who owns a file, and what may be written.
FOR_USERS_TOO = ("site.json is no JSON", "site.json is world-writable", "no inventory", "inventory is garbage")


@pytest.mark.parametrize(("user", "what"), [
    pytest.param(user, what, marks=[pytest.mark.long] if user == "rootless" and what not in FOR_USERS_TOO else [])
    for user in ("root", "rootless") for what in BROKEN
])
def test_broken(ready: ReadySite, user: str, what: str) -> None:
    crun = Engine("crun", user)
    site = ready(crun)
    damage, words = BROKEN[what]
    with copied(site.config_dir, site.state_dir):
        damage(site)
        assert_untouched(crun, site)
        result, log = start(crun, site, "mpihello")
        told = sentence(result)
        assert not result.stdout and words in told and OVERRIDE in told
        assert [(entry["verdict"], " ".join(entry["message"].split())) for entry in log] == [("refused", told)]
        # The override works without any of what is broken.
        assert versions(crun.run("bookworm-mpich", "mpihello", options=[NONE], hooks_dir=site.hooks_dir)) == [OWN_VERSION]


def test_inventory_of_another_version(crun: Engine, ready: ReadySite) -> None:
    """In the middle of an update: who asks for something waits for a scan, whose inventory goes into the cache."""
    site = ready(crun)
    with copied(site.config_dir, site.state_dir):
        inventory(lambda data: data.replace(b'"version": %d' % VERSION, b'"version": 99', 1))(site)
        assert_untouched(crun, site)
        assert_served(crun, site, "cold")
        assert '"version": 99' in (site.state_dir / "inventory.json").read_text()


@pytest.mark.parametrize("name", ["site.json", "inventory.json"])
def test_not_owned_by_root(rootful: Engine, ready: ReadySite, name: str) -> None:
    """Only as root: in a user's namespace everybody else's files look alike."""
    site = ready(rootful)
    with copied(site.config_dir, site.state_dir):
        os.chown((site.config_dir if name == "site.json" else site.state_dir) / name, 12345, 12345)
        assert_untouched(rootful, site)
        told = sentence(start(rootful, site, "mpihello")[0])
        assert name in told and "12345" in told and "chown root" in told and OVERRIDE in told


def test_executable_is_gone(crun: Engine, make_site: SiteMaker) -> None:
    """podman passes over a hook that is not there."""
    site = make_site(crun)
    shutil.rmtree(site.hooks_dir / "bin")
    assert_untouched(crun, site)


# ------------------------------------------------------------------------------------------------ places that cannot be written


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    bed.enter()
    subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=True, timeout=30)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True, timeout=30)


def cache_of(site: Site) -> Path:
    """Where the hooks of the site's account keep what they know: a user's beside the log, one for all sites."""
    return Path(json.loads(site.last("--json").stdout)["log"]).parent if site.account.uid else site.cache_dir


@contextlib.contextmanager
def a_file(folder: Path) -> Iterator[None]:
    """A file where a folder should be."""
    kept = folder.with_suffix(".kept")
    folder.rename(kept)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        kept.rename(folder)


@contextlib.contextmanager
def of_somebody_else(folder: Path) -> Iterator[None]:
    status = folder.stat()
    os.chown(folder, 12345, 12345)
    folder.chmod(0o700)
    try:
        yield
    finally:
        os.chown(folder, status.st_uid, status.st_gid)
        folder.chmod(status.st_mode & 0o777)


@contextlib.contextmanager
def closed(folder: Path) -> Iterator[None]:
    mode = folder.stat().st_mode & 0o777
    folder.chmod(0)
    try:
        yield
    finally:
        folder.chmod(mode)


@pytest.mark.parametrize("trouble", [read_only, a_file, of_somebody_else, closed])
def test_cache_that_cannot_be_used(crun: Engine, ready: ReadySite, trouble: Callable[..., contextlib.AbstractContextManager[None]]) -> None:
    """A plan cannot be kept, so it is made each time; nobody notices."""
    site = ready(crun)
    start(crun, site, "mpihello")  # makes what is missing
    with trouble(cache_of(site) / "plans"):
        assert_untouched(crun, site)
        for _ in range(2):
            result, _log = start(crun, site, "mpihello", "ignored")
            assert versions(result) == [SITE_VERSION] and not result.stderr


def test_state_that_cannot_be_written(crun: Engine, make_site: SiteMaker, prefix: Path) -> None:
    """An inventory that is out of date and cannot be replaced is made anew for each who asks."""
    site = make_site(crun, search=[prefix])
    with read_only(site.state_dir):
        assert_untouched(crun, site)
        assert_served(crun, site, "cold")
        other_build(prefix / "libmpi.so.12")
        assert_untouched(crun, site)
        for _ in range(2):
            assert versions(start(crun, site, "mpihello")[0]) == [OTHER_VERSION]


# ------------------------------------------------------------------------------------------------ no image


def test_no_image_record(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    """``podman run --rootfs``: there are no labels, an annotation counts."""
    site = ready(crun)
    rootfs = scratch / "rootfs"
    rootfs.mkdir()
    os.chown(rootfs, crun.account.uid, crun.account.gid)
    crun.account.execute("tar", "-C", str(rootfs), "-xf", f"{BUILD}/images/bookworm.tar", check=True)
    for options, version in (([], OWN_VERSION), ([ANNOTATION], SITE_VERSION), ([ANNOTATION], SITE_VERSION)):
        result = crun.podman("--hooks-dir", str(site.hooks_dir), "run", "--rm", "--net=none", "--name", crun.new_name(), *options,
                             "--rootfs", str(rootfs), "mpihello")
        assert versions(result) == [version]


# ------------------------------------------------------------------------------------------------ another build on the site


def other_build(library: Path, how: str = "renamed over") -> None:
    """Put another build of MPICH 5 in the place of `library`, one that differs in nothing but what it says its version is."""
    data = library.read_bytes()
    changed = data.replace(SITE_VERSION.encode(), OTHER_VERSION.encode())
    assert changed != data
    status = library.stat()
    new = library.with_suffix(".new")
    new.write_bytes(changed)
    if how == "with the old time":
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(library)


@pytest.mark.parametrize("how", [pytest.param("renamed over", marks=pytest.mark.long), "with the old time"])
def test_site_library_is_replaced(crun: Engine, make_site: SiteMaker, prefix: Path, how: str) -> None:
    """An update of the site's MPI needs no scan by hand, and no container gets the old one's plan."""
    site = make_site(crun, search=[prefix])
    assert_served(crun, site, "cold")
    assert_served(crun, site, "warm")
    other_build(prefix / "libmpi.so.12", how)
    assert_served(crun, site, "cold", OTHER_VERSION)
    assert_served(crun, site, "warm", OTHER_VERSION)


def test_site_library_is_written_over(crun: Engine, make_site: SiteMaker, prefix: Path) -> None:
    """The same file, the same size: only its time tells."""
    library = prefix / "libmpi.so.12"
    data = library.read_bytes()
    library.unlink()  # a link to the bed's own file so far
    library.write_bytes(data)
    site = make_site(crun, search=[prefix])
    assert_served(crun, site, "cold")
    library.write_bytes(data.replace(SITE_VERSION.encode(), OTHER_VERSION.encode()))
    assert_served(crun, site, "cold", OTHER_VERSION)


def test_two_sites_of_one_user(make_site: SiteMaker, ready: ReadySite, prefix: Path) -> None:
    """What is kept for a user lies in one place; nothing is taken for another site's, neither plans nor a fresh inventory."""
    crun = Engine("crun", "rootless")
    one, two = ready(crun), make_site(crun, search=[prefix])
    other_build(prefix / "libmpi.so.12")  # the second site's inventory is out of date
    with copied(one.config_dir):  # and so is the first one's
        for site, version in ((two, OTHER_VERSION), (one, SITE_VERSION), (two, OTHER_VERSION)):
            assert versions(start(crun, site, "mpihello")[0]) == [version]


# ------------------------------------------------------------------------------------------------ remembered plans


def link_to_a_copy(plan: Path) -> None:
    plan.rename(plan.with_suffix(".copy"))
    plan.symlink_to(plan.with_suffix(".copy"))


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(plan: Path) -> None:
        plan.unlink()
        make(plan)

    return replace


def edited(edit: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda plan: plan.write_bytes(edit(plan.read_bytes()))


def head(data: bytes) -> int:
    """Where a plan's record ends; the loader cache follows."""
    return data.index(b"}\n") + 1


DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty": edited(lambda data: b""),
    "one byte": edited(lambda data: data[:1]),
    "half of the record": edited(lambda data: data[: head(data) // 2]),
    "without the cache": edited(lambda data: data[: head(data) + 1]),
    "half of the cache": edited(lambda data: data[: (head(data) + len(data)) // 2]),
    "all but one byte": edited(lambda data: data[:-1]),
    "one byte more": edited(lambda data: data + b"x"),
    "noise": edited(lambda data: random.Random(2).randbytes(len(data))),
    "zeros": edited(lambda data: bytes(len(data))),
    "not UTF-8": edited(lambda data: b"\xff" + data[1:]),
    "no object": edited(lambda data: b"[1, 2]\n"),
    "of somebody else": lambda plan: os.chown(plan, 12345, 12345),
    "writable by all": lambda plan: plan.chmod(0o666),
    "a link": link_to_a_copy,
    "a FIFO": replaced_by(os.mkfifo),
    "a directory": replaced_by(Path.mkdir),
}

#: Damage inside that leaves the form as it is: what a failing disk does.
BITTEN: dict[str, Callable[[Path], object]] = {
    "another name in the record": edited(lambda data: data.replace(b'"host_files"', b'"host_filez"', 1)),
    "another type in the record": edited(lambda data: data.replace(b'"tree":[[', b'"tree":[7,[', 1)),
    "zeros in the cache": edited(lambda data: data[: head(data) + 1] + bytes(len(data) - head(data) - 1)),
}


def assert_decided_anew(engine: Engine, site: Site, damage: dict[str, Callable[[Path], object]]) -> None:
    plans = cache_of(site) / "plans"
    for what, do in damage.items():
        assert_served(engine, site, "cold")
        plan = next(plan for plan in plans.iterdir() if str(site.state_dir).encode() in plan.read_bytes())
        do(plan)
        result, log = start(engine, site, "mpihello")
        assert result.returncode == 0, (what, result.stderr)
        assert versions(result) == [SITE_VERSION] and not result.stderr, what
        assert [(entry["verdict"], entry["path"]) for entry in log] == [("proved", "cold")], what
        forget(site)


@pytest.mark.parametrize("user", ["root", pytest.param("rootless", marks=pytest.mark.long)])
def test_damaged_plan(ready: ReadySite, user: str) -> None:
    engine = Engine("crun", user)
    assert_decided_anew(engine, ready(engine), DAMAGED)


def test_bitten_plan(crun: Engine, ready: ReadySite) -> None:
    assert_decided_anew(crun, ready(crun), BITTEN)


def test_plans_folder_is_a_link(crun: Engine, ready: ReadySite) -> None:
    site = ready(crun)
    plans = cache_of(site) / "plans"
    assert_served(crun, site, "cold")
    elsewhere = plans.with_name("elsewhere")
    plans.rename(elsewhere)
    plans.symlink_to(elsewhere)
    try:
        assert_served(crun, site, "cold")
    finally:
        plans.unlink()
        shutil.rmtree(elsewhere)


# ------------------------------------------------------------------------------------------------ a tree that has changed


@pytest.fixture
def second_copy(scratch: Path) -> Path:
    """The image's own libmpich, in a folder as a user would have installed it."""
    folder = scratch / "lib"
    folder.mkdir()
    folder.chmod(0o755)
    shutil.copyfile(f"{BUILD}/images/bookworm{LIBRARY_DIR}/libmpich.so.12", folder / "libmpich.so.12")
    return folder / "libmpich.so.12"


def test_volume_whose_content_changes(crun: Engine, ready: ReadySite, scratch: Path, second_copy: Path) -> None:
    """The same command line meets another tree: the copy in the volume is what the loader finds first now."""
    site = ready(crun)
    volume = scratch / "volume"
    volume.mkdir()
    volume.chmod(0o755)
    options = [f"--volume={volume}:/own", "--env=LD_LIBRARY_PATH=/own"]
    assert_served(crun, site, "cold", options=options)
    assert_served(crun, site, "warm", options=options)
    shutil.copyfile(second_copy, volume / "libmpich.so.12")
    assert versions(crun.run("bookworm-mpich", "mpihello", options=options)) == [OWN_VERSION]
    result, log = start(crun, site, "mpihello", options=options)
    assert [(rank.version, rank.loaded) for rank in ranks(result)] == [(SITE_VERSION, ("/own/libmpich.so.12",))]
    assert [entry["path"] for entry in log] == ["cold"]


def test_volume_over_the_image(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    """A volume over the folder of the image's libraries is another tree, with the same image."""
    site = ready(crun)
    assert_served(crun, site, "cold")
    libraries = scratch / "libraries"
    shutil.copytree(f"{BUILD}/images/bookworm{LIBRARY_DIR}", libraries, symlinks=True)
    options = [f"--volume={libraries}:{LIBRARY_DIR}"]
    assert_served(crun, site, "cold", options=options)
    assert_served(crun, site, "warm", options=options)


def test_stopped_container_with_another_copy(crun: Engine, ready: ReadySite, second_copy: Path) -> None:
    """The user of a stopped container has installed an MPI in it; when it is started again, that copy is looked at too."""
    site = ready(crun)
    name = crun.new_name()
    crun.podman("--hooks-dir", str(site.hooks_dir), "create", "--name", name, "--net=none", "--env=LD_LIBRARY_PATH=/usr/local/lib",
                crun.load("bookworm-mpich"), "mpihello", check=True)

    def again() -> tuple[str, tuple[str, ...]]:
        (rank,) = ranks(crun.podman("--hooks-dir", str(site.hooks_dir), "start", "--attach", name))
        return rank.version, rank.loaded

    for _ in range(2):
        version, loaded = again()
        assert version == SITE_VERSION and loaded[0].startswith(TREE)
    crun.podman("cp", str(second_copy), f"{name}:/usr/local/lib/libmpich.so.12", check=True)
    for _ in range(2):
        assert again() == (SITE_VERSION, ("/usr/local/lib/libmpich.so.12",))


def test_stopped_container_with_another_program(crun: Engine, ready: ReadySite) -> None:
    """What was proved of one program is not believed of another of that name."""
    site = ready(crun)
    name = crun.new_name()
    record = site.cache_dir / f"{name}.cid"
    crun.podman("--hooks-dir", str(site.hooks_dir), "create", "--name", name, "--net=none", "--cidfile", str(record),
                crun.load("bookworm-mpich"), "mpihello", check=True)
    started = ("--hooks-dir", str(site.hooks_dir), "start", "--attach", name)
    assert versions(crun.podman(*started)) == [SITE_VERSION]
    crun.podman("cp", f"{BUILD}/images/bookworm/usr/local/bin/statichello", f"{name}:/usr/local/bin/mpihello", check=True)
    assert "hello" in crun.podman(*started).stdout
    assert [entry["verdict"] for entry in log_of(site, record.read_text())] == ["proved", "unproved"]
