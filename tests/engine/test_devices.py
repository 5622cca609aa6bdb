"""Devices of a profile: there at both stages, open to the program where the caller may open them, and no others."""


from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oci_hpc_hooks.inputs import resources
from tests.bed.bed import Engine
from tests.bed.site import Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import start
from tests.engine.site import three_engines
from tests.engine.unified import UnifiedEngine

#: /dev/kmsg's numbers: no engine lets containers open it, and opening it for writing asks for nothing more.
KMSG = os.makedev(1, 11)
LOOP_CONTROL = os.makedev(10, 237)
ASKED = "--annotation=org.supercontainers.mpi=mpich"
STAGES = ("", "podman")

Nodes = tuple[Path, Path]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Two device nodes: one that anybody may open, one that only root may."""
    names = [Path(f"/dev/hpc-hooks-test-{os.getpid()}-{kind}") for kind in ("open", "closed")]
    for path, mode in zip(names, (0o666, 0o600)):
        os.mknod(path, stat.S_IFCHR | mode, KMSG)
        path.chmod(mode)
    yield names[0], names[1]
    for path in names:
        path.unlink()


@pytest.fixture
def made(make_site: SiteMaker, nodes: Nodes) -> Callable[[Engine], Site]:
    """``made(engine)``: a site whose mpich profile brings the nodes."""

    def make(engine: Engine) -> Site:
        if str(engine) not in sites:
            site = sites[str(engine)] = make_site(engine)
            profile = json.loads((resources.PROFILES / "mpich.json").read_text())
            profile["devices"] = [f"/dev/hpc-hooks-test-{os.getpid()}-*"]
            (site.config_dir / "profiles.d").mkdir()
            (site.config_dir / "profiles.d/mpich.json").write_text(json.dumps(profile))
            site.scan()
        return sites[str(engine)]

    sites: dict[str, Site] = {}
    return make


def tried(engine: Engine, site: Site, stage: str, *paths: Path, options: tuple[str, ...] = (), script: str = "") -> dict[str, str]:
    """What a shell says of opening each path for writing: "" for success, by the path's last word."""
    test = "; ".join(f'echo "{path.name.rpartition("-")[2]} $( ( exec 3>{path} ) 2>&1 | sed s/.*:.//)"' for path in paths)
    result, log = start(engine, site, "sh", "-c", f"{script}: mpihello; {test}", options=options, hooks_dir=site.hooks_dir / stage)
    assert result.returncode == 0, result.stderr
    (entry,) = log
    assert entry["stage"] == ("precreate" if stage else "createRuntime")
    return {name: said for name, _, said in (line.partition(" ") for line in result.stdout.splitlines())}


@pytest.mark.parametrize("hierarchy, stage", [
    *(("machine", stage) for stage in STAGES), ("unified", ""), pytest.param("unified", "podman", marks=pytest.mark.long)])
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_root_opens_what_the_profile_brings(made: Callable[[Engine], Site], nodes: Nodes, runtime: str, stage: str, hierarchy: str,
                                            tmp_path: Path) -> None:
    engine = UnifiedEngine(runtime, tmp_path) if hierarchy == "unified" else Engine(runtime, "root")
    other = Path("/tmp/node-other")
    numbers = f"c {os.major(LOOP_CONTROL)} {os.minor(LOOP_CONTROL)}"
    said = tried(engine, made(engine), stage, *nodes, other, options=(ASKED, "--cap-add=MKNOD"),
                 script=f"mknod {other} {numbers} 2>/tmp/why || cat /tmp/why >&2; ")
    assert said["open"] == said["closed"] == ""
    assert "not permitted" in said["other"], said


@pytest.mark.parametrize("stage", STAGES)
def test_a_label_alone_gets_root_no_more_than_anybody_may_open(made: Callable[[Engine], Site], nodes: Nodes, stage: str) -> None:
    engine = Engine("crun", "root")
    said = tried(engine, made(engine), stage, nodes[0], options=())
    assert said == {"open": ""}
    result, _ = start(engine, made(engine), "sh", "-c", ": mpihello; ls /dev", hooks_dir=made(engine).hooks_dir / stage)
    assert nodes[0].name in result.stdout and nodes[1].name not in result.stdout


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("user", ["rootless", "keep-id"])
def test_a_user_opens_what_the_user_may_open(made: Callable[[Engine], Site], nodes: Nodes, user: str, stage: str) -> None:
    engine = Engine("crun", user)
    said = tried(engine, made(engine), stage, *nodes, options=(ASKED,))
    assert said["open"] == "" and "denied" in said["closed"].lower(), said


@three_engines
def test_both_stages_show_the_same(made: Callable[[Engine], Site], engine: Engine, nodes: Nodes) -> None:
    site = made(engine)
    look = (f": mpihello; for d in {nodes[0].parent}/hpc-hooks-test-*; do stat -c '%n %F %t %T %a' $d; "
            "grep \" $d \" /proc/self/mountinfo | cut -d' ' -f5,6; done")
    said = [start(engine, site, "sh", "-c", look, options=[ASKED], hooks_dir=site.hooks_dir / stage)[0].stdout for stage in STAGES]
    assert said[0] == said[1]
    assert said[0].count("character special file 1 b") == 2 and said[0].count("ro,nosuid,noexec") == 2


def test_privileged_containers_have_them_already(made: Callable[[Engine], Site], nodes: Nodes) -> None:
    engine = Engine("crun", "root")
    for stage in STAGES:
        assert tried(engine, made(engine), stage, *nodes, options=(ASKED, "--privileged")) == {"open": "", "closed": ""}
