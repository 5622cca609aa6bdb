# ruff: noqa: F811 (fixtures are imported)
"""``crun run`` and ``runc run`` of a bundle, without podman: the request stands in the annotations, and there is no image."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.bed.bed import Engine, leaks
from tests.bed.site import Site
from tests.engine.inside import HELLO, LIBRARY_DIR, assert_own, assert_site
from tests.engine.site import ReadySite, ready  # noqa: F401

Config = dict[str, Any]
Edit = Callable[[Config], None]


@contextlib.contextmanager
def bundle(engine: Engine, site: Site, folder: Path, edit: Edit = lambda config: None, asks: bool = True, readonly: bool = False,
           stages: tuple[str, ...] = ("createRuntime",)) -> Iterator[Path]:
    """A bundle of Debian 12 with the site's hooks, which asks for MPICH by an annotation; `edit` changes its config.json."""
    hooks = {}
    for stage in stages:
        executable = str(site.hooks_dir / f"bin/oci-hpc-hooks-{stage.lower()}")
        hooks[stage] = [{"path": executable, "args": [executable], "env": ["PATH=/usr/bin:/bin"], "timeout": 60}]
    annotations = {"org.supercontainers.mpi": "mpich"} if asks else {}
    with engine.bundle(folder / "bundle", "bookworm", HELLO, annotations=annotations, hooks=hooks, readonly=readonly) as made:
        config = json.loads((made / "config.json").read_text())
        edit(config)
        (made / "config.json").write_text(json.dumps(config))
        yield made


def last(site: Site) -> tuple[str, str]:
    """Verdict and path of the newest entry of the log."""
    entry = json.loads(site.last("--json").stdout)["entries"][0]
    return entry["verdict"], entry["path"]


def test_a_bundle_that_oci_hpc_hooks_bundle_has_edited(rootful: Engine, ready: ReadySite, scratch: Path) -> None:
    """And taken the hook out of again."""
    site = ready(rootful)
    options = ("--hooks-dir", str(site.hooks_dir), "--annotation", "org.supercontainers.mpi=mpich")
    with bundle(rootful, site, scratch, asks=False, stages=()) as made:
        assert_own(rootful.runtime_run(made))
        assert site.command("bundle", *options, str(made)).stdout == f"{made}/config.json: changed\n"
        assert_site(rootful.runtime_run(made))
        assert site.command("bundle", *options, "--remove", str(made)).returncode == 0
        assert_own(rootful.runtime_run(made))


def made_in(folder: Path) -> dict[str, int]:
    """What a container left in its root file system's upper layer: path and size."""
    upper = folder / "upper"
    # /dev, /proc and so on are mount points and devices that the runtime makes.
    return {str(path.relative_to(upper)): path.lstat().st_size if path.is_file() else 0
            for path in upper.rglob("*") if path.relative_to(upper).parts[0] not in ("dev", "proc", "sys")}


@pytest.mark.parametrize("readonly", [False, True])
def test_bundle(rootful: Engine, ready: ReadySite, scratch: Path, readonly: bool) -> None:
    site = ready(rootful)
    with bundle(rootful, site, scratch, readonly=readonly) as made:
        for way in ("cold", "warm"):
            assert_site(rootful.runtime_run(made))
            assert last(site) == ("proved", way)
        assert made_in(made) == {}


def test_bundle_that_asks_for_nothing(rootful: Engine, ready: ReadySite, scratch: Path) -> None:
    with bundle(rootful, ready(rootful), scratch, asks=False) as made:
        assert_own(rootful.runtime_run(made))


def test_all_stages(rootful: Engine, ready: ReadySite, scratch: Path) -> None:
    """prestart and createRuntime: the second one finds the work done."""
    site = ready(rootful)
    before = len(json.loads(site.last("--json", "-n", "64").stdout)["entries"])
    with bundle(rootful, site, scratch, stages=("prestart", "createRuntime")) as made:
        assert_site(rootful.runtime_run(made))
    assert len(json.loads(site.last("--json", "-n", "64").stdout)["entries"]) == before + 1


def without_dev(config: Config) -> None:
    config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/dev"]


@pytest.mark.parametrize("readonly, tree", [(False, "/.oci-hpc"), (True, "/mnt")])
def test_without_dev_of_its_own(rootful: Engine, ready: ReadySite, scratch: Path, readonly: bool, tree: str) -> None:
    """The tree goes into the root file system: over an empty directory made there, or on a read-only one over one that exists."""
    site = ready(rootful)
    with bundle(rootful, site, scratch, without_dev, readonly=readonly) as made:
        for _ in ("cold", "warm"):
            assert_site(rootful.runtime_run(made), tree + "/")
            assert made_in(made) == ({} if readonly else {".oci-hpc": 0})


def with_user_namespace(config: Config) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    for kind in ("uidMappings", "gidMappings"):
        config["linux"][kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]


@pytest.mark.parametrize("readonly", [False, True])
def test_user_namespace(rootful: Engine, ready: ReadySite, scratch: Path, readonly: bool) -> None:
    site = ready(rootful)
    with bundle(rootful, site, scratch, with_user_namespace, readonly=readonly) as made:
        for way in ("cold", "warm"):
            assert_site(rootful.runtime_run(made))
            assert last(site) == ("proved", way)
        assert made_in(made) == {}


def test_order_of_the_environment(rootful: Engine, ready: ReadySite, scratch: Path) -> None:
    """podman writes a container's environment in random order: that makes no new case of it."""
    site = ready(rootful)
    words = ["PATH=/usr/local/bin:/usr/bin:/bin", f"LD_LIBRARY_PATH={LIBRARY_DIR}"]

    def ordered(config: Config) -> None:
        config["process"]["env"] = words

    with bundle(rootful, site, scratch, ordered) as made:
        assert_site(rootful.runtime_run(made), f"{LIBRARY_DIR}/libmpich.so.12")
        config = json.loads((made / "config.json").read_text())
        config["process"]["env"] = words[::-1]
        (made / "config.json").write_text(json.dumps(config))
        assert_site(rootful.runtime_run(made), f"{LIBRARY_DIR}/libmpich.so.12")
        assert last(site) == ("proved", "warm")


def test_changed_library(rootful: Engine, ready: ReadySite, scratch: Path) -> None:
    """A plan rests on the image's files: the same root file system with another file in it is decided anew."""
    site = ready(rootful)
    with bundle(rootful, site, scratch) as made:
        assert_site(rootful.runtime_run(made))
        (made / "rootfs" / LIBRARY_DIR[1:] / "libmpich.so.12.2.2").touch()
        assert_site(rootful.runtime_run(made))
        assert last(site) == ("proved", "cold")


def test_shared_root(rootful: Engine, ready: ReadySite, scratch: Path) -> None:
    """rootfsPropagation "shared": whatever is mounted, or refused, nothing gets to the host."""
    site = ready(rootful)

    def shared(config: Config) -> None:
        config["linux"]["rootfsPropagation"] = "shared"

    with bundle(rootful, site, scratch, shared) as made:
        before = bed.host_state()
        result = rootful.runtime_run(made)
        assert leaks(before) == []
        if result.returncode == 0:
            assert_site(result)
        else:
            assert "shared propagation" in result.stderr and "rank" not in result.stdout


def rootless(config: Config) -> None:
    """What ``runc spec --rootless`` does, for the bed's user."""
    user = bed.user_account()
    linux = config["linux"]
    linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")]
    linux["uidMappings"] = [{"containerID": 0, "hostID": user.uid, "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": user.gid, "size": 1}]
    linux.pop("resources", None)
    mounts = [mount for mount in config["mounts"] if mount["type"] not in ("cgroup", "sysfs")]
    for mount in mounts:
        mount["options"] = [option for option in mount.get("options", []) if not option.startswith(("gid=", "uid="))]
    sys = {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}
    config["mounts"] = [*mounts, sys]


def run_rootless(runtime: str, made: Path, folder: Path) -> bed.Result:
    user = bed.user_account()
    folder.mkdir()
    os.chown(folder, user.uid, user.gid)
    options = ["--root", str(folder), *(["--cgroup-manager=disabled"] if runtime == "crun" else [])]
    return user.execute(runtime, *options, "run", "--bundle", str(made), "bare", timeout=60)


def test_rootless_runc(ready: ReadySite, scratch: Path) -> None:
    """The runtime makes the user namespace, and the hook has no privilege outside of it."""
    site = ready(Engine("runc", "rootless"))
    with bundle(Engine("runc", "root"), site, scratch, rootless) as made:
        for way in ("cold", "warm"):
            assert_site(run_rootless("runc", made, scratch / way))
            assert last(site) == ("proved", way)


def test_rootless_crun(ready: ReadySite, scratch: Path) -> None:
    """crun's init is not dumpable, and its memory belongs to the initial user namespace: no unprivileged process can join it (ptrace(2),
    setns(2)). So what asks is not started; what does not ask is."""
    site = ready(Engine("crun", "rootless"))
    with bundle(Engine("crun", "root"), site, scratch / "asks", rootless) as made:
        result = run_rootless("crun", made, scratch / "one")
        assert result.returncode != 0 and "rank" not in result.stdout
    with bundle(Engine("crun", "root"), site, scratch / "silent", rootless, asks=False) as made:
        assert_own(run_rootless("crun", made, scratch / "two"))
