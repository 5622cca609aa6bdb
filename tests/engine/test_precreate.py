"""podman's precreate stage in real containers: the same files by edits of the configuration, one process of ours for each container."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import MPICH5, OPENMPI4, OPENMPI5, TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, LIBRARY_DIR, TREE, assert_own, assert_site, start
from tests.engine.site import ReadySite, ready, site, three_engines  # noqa: F401

LOOK = ("cat /proc/self/mountinfo; echo ---; find /dev/.oci-hpc ! -name ld.so.cache -printf '%M %p\\n'; "
        "find /dev/.oci-hpc /etc/ld.so.cache -type f ! -path /dev/.oci-hpc/ld.so.cache -exec md5sum '{}' +; ldd /usr/local/bin/{}")


def seen(engine: Engine, hooks_dir: Path, options: Sequence[str], image: str = "bookworm-mpich", program: str = "mpihello",
         prefix: str = "/site/mpich5/") -> tuple[list[tuple[str, ...]], list[str]]:
    """What a container has of the site's: (mount point, its options, type, file that is mounted), and files with their content."""
    script = f"{LOOK.replace('bin/{}', 'bin/' + program)}; # {program}"
    result = engine.run(image, "sh", "-c", script, options=options, hooks_dir=hooks_dir)
    assert result.returncode == 0, result.stderr
    table, _, files = result.stdout.partition("---\n")
    mounts: list[tuple[str, ...]] = []
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        _, _, _, source, point, flags, *_ = left.split(" ")
        kind, origin, *_ = right.split(" ")
        if point == "/etc/ld.so.cache":
            mounts.append((point, flags))  # the file lies in the tree, or in the cache of plans
        elif TREE in point or prefix in source or origin == "oci-hpc-hooks" or point.startswith(f"{LIBRARY_DIR}/ucx"):
            mounts.append((point, flags, kind))
    return sorted(mounts), sorted(line.split(" (0x")[0] for line in files.splitlines())


@pytest.mark.parametrize("options", [
    (), ("--read-only",), ("--init",), ("--privileged",), ("--volume=/usr/share:/work/data:ro",), ("--tmpfs=/scratch",),
    ("--mount=type=tmpfs,destination=/opt",), ("--user=1234:1234",)], ids=" ".join)
@three_engines
def test_the_same_as_createruntime(engine: Engine, site: Site, options: Sequence[str]) -> None:
    mounts, files = seen(engine, site.hooks_dir, options)
    others, same_files = seen(engine, site.hooks_dir / "podman", options)
    if engine.user == "keep-id":  # the same bytes, mounted: nobody is in that user namespace yet to whom a file could belong
        others = [mount for mount in others if mount[0] != "/etc/ld.so.cache" or mount in mounts]
    assert (others, same_files) == (mounts, files)
    assert len(mounts) > 10 and len(files) > 20


@pytest.mark.parametrize(("image", "program", "site_json"), [
    ("bookworm-openmpi", "ompihello", {"openmpi": [OPENMPI4]}), ("bookworm-openmpi", "ompihello", {"openmpi": [OPENMPI5]}),
    ("bookworm-abi", "abihello", {"abi": [MPICH5]}),
], ids=["openmpi4", "openmpi5", "mpi-abi"])
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_same_of_every_profile(make_site: SiteMaker, runtime: str, image: str, program: str, site_json: dict[str, Any]) -> None:
    """Of mpich above; devices, directories and sockets in test_devices.py and test_job.py."""
    engine = Engine(runtime, "rootless")
    site = make_site(engine, **site_json)
    first, second = (seen(engine, site.hooks_dir / folder, (), image, program, "/build/site/") for folder in ("", "podman"))
    assert first == second and len(first[0]) > 3 and len(first[1]) > 10


def precreated(engine: Engine, site: Site, *command: str, options: Sequence[str] = (), stage: str = "precreate",
               ways: Sequence[str] = ("cold", "warm")) -> None:
    for way in ways:
        result, log = start(engine, site, *(command or HELLO), options=options, hooks_dir=site.hooks_dir / "podman")
        assert_site(result)
        assert [(entry["verdict"], entry["stage"], entry["path"]) for entry in log] == [("proved", stage, way)]


@three_engines
def test_two_ranks(engine: Engine, site: Site) -> None:
    """And our createRuntime hook, whose descriptor lies in the same folder, is not started: the log has one entry."""
    precreated(engine, site)


@pytest.mark.parametrize("option", ["--uidmap=0:100000:65536", "--userns=auto"])
def test_user_namespace_of_root(rootful: Engine, ready: ReadySite, option: str) -> None:
    """podman 5 mounts the root filesystem of such a container later, with its ids: that is left to createRuntime."""
    stage = "precreate" if bed.version("podman") < (5, 0) else "createRuntime"
    precreated(rootful, ready(rootful), options=[option, "--read-only"], ways=["cold"], stage=stage)
    assert list(Path("/var/tmp").glob("intermediate-mountpoint-*/*")) == []  # where podman 5 mounts it


def test_program_in_a_volume(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    """The volume is not mounted yet when the hook runs, and its mount point is missing in the image."""
    (scratch / "hello").write_bytes((Path(__file__).parents[2] / "build/images/bookworm/usr/local/bin/mpihello").read_bytes())
    (scratch / "hello").chmod(0o755)
    precreated(crun, ready(crun), *HELLO[:-1], "/work/data/hello", options=[f"--volume={scratch}:/work/data:ro"])


def test_what_cannot_be_looked_at_yet_is_left_to_createruntime(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    """A mount point inside another volume is for the runtime to make."""
    (scratch / "outer").mkdir()
    options = [f"--volume={scratch}/outer:/outer", "--volume=/usr/share:/outer/inner:ro"]
    if crun.user != "root":
        (scratch / "outer").chmod(0o777)
    precreated(crun, ready(crun), options=options, stage="createRuntime", ways=["cold"])


def test_refusal(engine: Engine, make_site: SiteMaker) -> None:
    """The sentence reaches the terminal, and nothing is left."""
    site = make_site(engine, search=[TRIXIE])
    result, log = start(engine, site, *HELLO, hooks_dir=site.hooks_dir / "podman")
    assert result.returncode not in (0, 127)
    assert "GLIBC_2.38" in result.stderr and "--annotation org.supercontainers.mpi=none" in result.stderr
    assert [(entry["verdict"], entry["stage"]) for entry in log] == [("refused", "precreate")]
    assert engine.podman("ps", "--all", "--quiet", "--filter", f"name={result.args[result.args.index('--name') + 1]}").stdout == ""


def test_who_asks_for_nothing(engine: Engine, ready: ReadySite) -> None:
    site = ready(engine)
    result, log = start(engine, site, *HELLO, options=["--annotation=org.supercontainers.mpi=none"], hooks_dir=site.hooks_dir / "podman")
    assert_own(result)
    assert [entry["verdict"] for entry in log if entry["verdict"] != "nothing"] == []


# ------------------------------------------------------------------------------------------------ podman's other commands


def inspect(engine: Engine, name: str) -> Any:
    return json.loads(engine.podman("inspect", name, check=True).stdout)[0]


@three_engines
def test_exec_stop_and_start(engine: Engine, site: Site) -> None:
    """podman makes the configuration anew at each start, and the hook edits it anew."""
    name = engine.new_name()
    hooks = ["--hooks-dir", str(site.hooks_dir / "podman")]
    userns = ["--userns=keep-id"] if engine.user == "keep-id" else []
    command = ["run", "--detach", "--net=none", "--name", name, *userns, engine.load("bookworm-mpich"), "sleep", "60"]
    engine.podman(*hooks, *command, check=True)
    for again in (False, True):
        if again:
            engine.podman("stop", "--time=0", name, check=True)
            engine.podman(*hooks, "start", name, check=True)
        assert_site(engine.podman("exec", name, *HELLO))
    engine.podman("rm", "--force", "--time=0", name, check=True)


def test_restart_policy(crun: Engine, ready: ReadySite) -> None:
    name = crun.new_name()
    site = ready(crun)
    crun.podman("--hooks-dir", str(site.hooks_dir / "podman"), "run", "--net=none", "--name", name, "--restart=on-failure:2",
                crun.load("bookworm-mpich"), "sh", "-c", "mpihello; exit 1")
    deadline = time.monotonic() + 20  # podman 5 restarts it when podman run has ended
    while inspect(crun, name)["RestartCount"] < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert inspect(crun, name)["RestartCount"] == 2
    crun.podman("rm", "--force", "--time=0", name, check=True)


def test_build(crun: Engine, ready: ReadySite, scratch: Path) -> None:
    """Building images is left alone: buildah refuses a folder with a stage that it does not know, so precreate has one of its own."""
    (scratch / "Containerfile").write_text(f"FROM {crun.load('bookworm-mpich')}\nRUN mpihello\n")
    for folder in (ready(crun).hooks_dir, ready(crun).hooks_dir / "podman"):
        built = crun.podman("--hooks-dir", str(folder), "build", "--quiet", "--pull=never", "--no-cache", "--network=none", str(scratch))
        assert built.returncode == 0, built.stderr
        crun.podman("rmi", "--force", built.stdout.strip())


def test_pod(ready: ReadySite) -> None:
    engine = Engine("crun", "root")
    site = ready(engine)
    pod = engine.new_name()
    engine.podman("pod", "create", "--infra=false", "--name", pod, check=True)
    result = engine.run("bookworm-mpich", *HELLO, options=[f"--pod={pod}"], hooks_dir=site.hooks_dir / "podman")
    engine.podman("pod", "rm", "--force", pod, check=True)
    assert_site(result)
