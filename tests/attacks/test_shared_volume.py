# ruff: noqa: F811 (fixtures are imported)
"""A volume that two containers share: CVE-2021-30465, CVE-2024-0132, CVE-2025-23359, CVE-2024-45310, CVE-2026-24260.

`tests/attacks/test_races.py` asks the kernel thousands of times with a tree made by hand; here all is real. One container's program
exchanges a directory, or a file, of a volume of podman's with a link that leads to the host, again and again (renameat2(2),
RENAME_EXCHANGE), while another container, which has a copy of a library or its loader's cache in that volume, is started: by podman, and
by the hook alone beside a container of podman's that waits for it, which is many times as fast. Each start ends with the site's files
inside, or with a sentence and no container; and nothing outside of it is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import hook_start
from tests.attacks.hostile import Canary, by_the_runtime, told, watched
from tests.attacks.weaken import weakened
from tests.bed import bed
from tests.bed.bed import RUNTIMES, USERS, Engine
from tests.engine.inside import LIBRARY_DIR
from tests.engine.site import ReadySite, ready, ready_to_bind  # noqa: F401

IMAGE = bed.BUILD / "images/bookworm"

#: Exchanges what two names lead to, some thousand times a second, until it is killed.
EXCHANGE = r"""
my $number = `uname -m` =~ /x86_64/ ? 316 : 276;
$| = 1;
for my $round (0 .. 1) { syscall($number, -100, $ARGV[0], -100, $ARGV[1], 2) and die "renameat2: $!" }
print "ready\n";
while (1) { syscall($number, -100, $ARGV[0], -100, $ARGV[1], 2); select(undef, undef, undef, 0.0002) }
"""


@dataclass(frozen=True)
class Target:
    """What in a volume is exchanged for a link, and what of the canary that leads to."""

    where: str  # of the volume in the container that is attacked
    name: str
    canary: str


TARGETS = {
    "directory": Target("/opt/v", "lib", "lib"),
    "library": Target("/opt/v", "lib/libmpich.so.12", "lib/libmpich.so.12"),
    "cache": Target("/etc", "ld.so.cache", "ld.so.cache"),
}
WAYS = {"absolute": "{canary}", "upwards": "../../../../../../../../../../../../../../..{canary}"}


class Volume:
    """One of podman's with a target in it, and the program of a container that attacks it, which rests at first."""

    def __init__(self, engine: Engine, target: Target, canary: Path, way: str) -> None:
        self.name = engine.podman("volume", "create", check=True).stdout.strip()
        folder = Path(engine.podman("volume", "inspect", "--format", "{{.Mountpoint}}", self.name, check=True).stdout.strip())
        if target.where == "/etc":
            subprocess.run(["cp", "-a", f"{IMAGE}/etc/.", folder], check=True, timeout=60)
            for name in ("hosts", "hostname", "resolv.conf"):  # mount points of podman's, which it would make
                (folder / name).touch()
        else:
            (folder / "lib").mkdir()
            shutil.copy(IMAGE / LIBRARY_DIR[1:] / "libmpich.so.12", folder / "lib")
        aside = f"{target.name}.link"
        (folder / aside).symlink_to(WAYS[way].format(canary=canary / target.canary))
        for path in (folder, *folder.rglob("*")):
            os.chown(path, engine.account.uid, engine.account.gid, follow_symlinks=False)
        attacker = engine.new_name()
        engine.podman("run", "--detach", "--name", attacker, "--net=none", f"--volume={self.name}:/v",
                      engine.load("bookworm-mpich-nolabel"), "perl", "-e", EXCHANGE, f"/v/{target.name}", f"/v/{aside}", check=True)
        while "ready" not in engine.podman("logs", attacker, check=True).stdout:
            time.sleep(0.1)
        self._pid = int(engine.podman("inspect", "--format", "{{.State.Pid}}", attacker, check=True).stdout)
        self.options = [f"--volume={self.name}:{target.where}", "--env=LD_LIBRARY_PATH=/opt/v/lib"]
        os.kill(self._pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def attack(self) -> Iterator[None]:
        os.kill(self._pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(self._pid, signal.SIGSTOP)


@contextlib.contextmanager
def shared(engine: Engine, target: str, canary: Path, way: str) -> Iterator[Volume]:
    volume = Volume(engine, TARGETS[target], canary, way)
    try:
        yield volume
    finally:
        Engine.remove_named()
        engine.podman("volume", "rm", "--force", volume.name, check=True)


# ------------------------------------------------------------------------------------------------ by podman

def started(engine: Engine, hooks: Path, volume: Volume, canary: Canary, seconds: float) -> dict[str, int]:
    """How often a container came up with the site's files or was refused with a sentence, in so many seconds."""
    ends = {"started": 0, "refused": 0}
    end = time.monotonic() + seconds
    with volume.attack():
        while time.monotonic() < end:
            result = engine.run("bookworm-mpich", "cat", "/proc/self/mountinfo", hooks_dir=hooks, options=volume.options)
            said = told(result)
            # A runtime's own complaint about its own mounts is none of ours.
            assert result.returncode == 0 or said or by_the_runtime(result), result.stderr
            # What is mounted, not where: a runtime that makes the mounts (precreate) may be led elsewhere within the container's own tree.
            assert not [line for line in result.stdout.splitlines() if str(canary.folder) in line.split()[3]], result.stdout
            ends["started" if result.returncode == 0 else "refused"] += 1
    return ends


CASES = [pytest.param((runtime, user), stage, target, way, id=f"{runtime}-{user}-{stage or 'createRuntime'}-{target}-{way}",
                      marks=() if (runtime, user, target, way) == ("crun", "root", "directory", "absolute") else pytest.mark.long)
         for runtime in RUNTIMES for user in USERS for stage in ("", "podman")
         for target, way in zip(TARGETS, ("absolute", "upwards", "absolute"))]


@pytest.mark.parametrize(("engine", "stage", "target", "way"), CASES, indirect=["engine"])
def test_starts_of_podman(engine: Engine, ready: ReadySite, open_folder: Path, stage: str, target: str, way: str) -> None:
    with watched(open_folder / "canary") as canary, shared(engine, target, canary.folder, way) as volume:
        ends = started(engine, ready(engine).hooks_dir / stage, volume, canary, 3)
    assert sum(ends.values()) > 1, ends


# ------------------------------------------------------------------------------------------------ by the hook alone

#: Rounds after which it is believed that one of the two ends does not come.
PATIENCE = 300


def rounds(hooks: Path, container: hook_start.Container, volume: Volume, canary: Path, count: int) -> tuple[dict[str, int], list[str]]:
    """How each of so many starts of the hook ended (more, until some have ended either way), and the first that mounted on the canary."""
    hook = json.loads((hooks / "oci-hpc-hooks.json").read_text())["hook"]["path"]
    ends = {"injected": 0, "refused": 0}
    while sum(ends.values()) < (count if all(ends.values()) else max(count, PATIENCE)):
        with container.waiting() as pid, container.state_file.open("rb") as state:
            before = hook_start.mounts_of(pid)
            with volume.attack():
                done = subprocess.run([hook], stdin=state, capture_output=True, text=True, env=hook_start.HOOK_ENVIRONMENT, cwd="/",
                                      timeout=60)
            after = hook_start.mounts_of(pid)
        outside = [" ".join(mount) for mount in after if mount not in before and str(canary) in " ".join(mount)]
        if outside:
            return ends, outside
        assert (after != before) == (done.returncode == 0), done.stderr
        if done.returncode:
            assert done.stderr.startswith("oci-hpc-hooks: ") and done.stderr.count("\n") == 1 and "defect" not in done.stderr, done.stderr
        ends["refused" if done.returncode else "injected"] += 1
    return ends, []


@contextlib.contextmanager
def waiting(volume: Volume) -> Iterator[hook_start.Container]:
    hook_start.BENCH.mkdir(parents=True, exist_ok=True)
    container = hook_start.Container(Engine("crun", "root"), "bookworm-mpich", options=volume.options)
    try:
        yield container
    finally:
        container.state_file.unlink(missing_ok=True)


@pytest.mark.parametrize("count", [20, pytest.param(600, marks=pytest.mark.long)])
@pytest.mark.parametrize("target", TARGETS)
def test_starts_of_the_hook(ready_to_bind: ReadySite, open_folder: Path, target: str, count: int) -> None:
    engine = Engine("crun", "root")
    hooks = ready_to_bind(engine).hooks_dir
    with watched(open_folder / "canary") as canary, shared(engine, target, canary.folder, "absolute") as volume, waiting(volume) as one:
        ends, outside = rounds(hooks, one, volume, canary.folder, count)
    assert outside == []
    assert ends["injected"] and ends["refused"], ends


#: What was looked at inside the tree is opened by its path when it is mounted on.
BY_PATH = ("apply/rootfs.py", """    fd = root.find(path)
    if fd >= 0:
        if same_file(posix.fstat(fd), inode, size, mtime_ns):
            return fd
        posix.close(fd)
""", """    try:
        return posix.open(f"/proc/self/fd/{root.fd}{path}", O_PATH | posix.O_CLOEXEC)
    except OSError:
        pass
""")


@pytest.mark.parametrize("target", ["directory", pytest.param("cache", marks=pytest.mark.long)])
def test_without_the_defence(ready_to_bind: ReadySite, scratch: Path, open_folder: Path, target: str) -> None:
    engine = Engine("crun", "root")
    canary = Canary(open_folder / "canary")
    with shared(engine, target, canary.folder, "upwards") as volume, waiting(volume) as container:
        ends, outside = rounds(weakened(ready_to_bind(engine), scratch, BY_PATH), container, volume, canary.folder, PATIENCE)
    assert outside, ends
    canary.close()
