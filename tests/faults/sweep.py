"""One system call of a hook fails, or all of its name from one on, or the hook is killed at it: strace's injection, on a container of
podman's that waits to be started.

The container's first process has its mounts and waits, as at createRuntime (benchmarks/hook_start.py); at podman's own stage there is
none yet, and the hook answers with an edited configuration. After each fault either all of the injection is there and the hook has said
0, or nothing of it is there, the hook has said something else, and one sentence tells why.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from benchmarks import hook_start
from oci_hpc_hooks.record import WHOLE
from tests.bed import bed
from tests.bed.site import Site

#: Calls that touch files, mounts, namespaces or rights; what allocates memory and waits is the interpreter's.
CALLS = ("openat,openat2,newfstatat,fstat,statx,statfs,fstatfs,readlink,read,pread64,write,getdents64,lseek,mkdir,mkdirat,link,linkat,"
         "rename,renameat,renameat2,unlink,unlinkat,fchmod,fsync,chdir,open_tree,move_mount,mount_setattr,fsopen,fsconfig,fsmount,setns,unshare,"
         "umount2,setresuid,setresgid,setgroups,prctl,capget,capset,prlimit64,close_range,close,dup,fcntl,faccessat2,faccessat,access")
KILLED = "KILL"
#: One call fails, or that and all later ones of its name: a disk that stays full, a file server that stays away.
ONCE, FROM_THEN_ON = "", "+"
#: Without which nothing can be said: to write, and to know what standard error is.
SPEAKING = ("write", "newfstatat", "fstat")
CLONE_NEWUSER = 0x10000000
PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)
IMAGE = "bookworm-mpich"


@dataclass(frozen=True)
class Scenario:
    """How a hook is started. ``silent``: as crun does it, with standard error to nowhere, so that the sentence goes to the parent's."""

    name: str
    user: str = "root"
    precreate: bool = False
    loader_cache: str = "bind"
    silent: bool = False
    options: Sequence[str] = ()


SCENARIOS = (
    Scenario("createRuntime"),
    Scenario("crun", silent=True),
    Scenario("precreate", precreate=True),
    Scenario("layer", loader_cache="file"),
    Scenario("uidmap", options=("--uidmap=0:100000:65536",), silent=True),
    Scenario("rootless", user="rootless"),
    Scenario("rootless-precreate", user="rootless", precreate=True),
)


@dataclass(frozen=True)
class Point:
    """The ``number``-th call of this name."""

    call: str
    number: int


@dataclass(frozen=True)
class Outcome:
    status: int
    said: str
    told: Dict[str, Any]  # the last line of the log
    made: Tuple[Any, ...]  # the container's mounts and the files of its layer; at precreate, the answer
    halves: List[str]  # half written files in the folder of plans


class Waiting(hook_start.Container):
    """A container whose first process waits in the namespaces that its scenario gives it."""

    def __init__(self, scenario: Scenario, layer: Path) -> None:
        self.layer = layer if scenario.loader_cache == "file" else None
        self.rootless = scenario.user != "root"
        super().__init__(bed.Engine("crun", scenario.user), IMAGE, options=scenario.options)
        driver = json.loads(self.engine.podman("inspect", self.name, check=True).stdout)[0]["GraphDriver"]["Data"]
        self.layers = f"{driver['UpperDir']}:{driver['LowerDir']}"
        linux = self.config["linux"]
        self.maps = [linux.get(key, []) if scenario.options else [] for key in ("uidMappings", "gidMappings")]

    def mounted(self) -> str:
        if not self.rootless:
            return super().mounted()
        return self.engine.account.execute("podman", "unshare", "podman", "mount", self.name, check=True).stdout.strip()

    def make_mounts(self) -> None:
        if self.maps[0]:
            self._own_user_namespace()
        elif self.rootless:
            join_rootless()
        super().make_mounts()

    def make_root(self) -> None:
        super().make_root()
        if self.layer is None:
            return
        for name in ("upper", "work"):
            shutil.rmtree(self.layer / name, ignore_errors=True)
            (self.layer / name).mkdir()
        hook_start.mount("overlay", self.rootfs, "overlay", 0,
                         f"lowerdir={self.layers},upperdir={self.layer}/upper,workdir={self.layer}/work")

    def _own_user_namespace(self) -> None:
        """As a runtime with root's rights makes it: another process writes its maps (user_namespaces(7))."""
        pid = os.getpid()
        ready, told = os.pipe()
        helper = os.fork()
        if helper == 0:
            os.read(ready, 1)
            for name, rows in zip(("uid_map", "gid_map"), self.maps):
                Path(f"/proc/{pid}/{name}").write_text("".join(f"{row['containerID']} {row['hostID']} {row['size']}\n" for row in rows))
            os._exit(0)
        _called("unshare", CLONE_NEWUSER)
        os.write(told, b"+")
        os.waitpid(helper, 0)
        become_root()

    def layer_of(self, pid: int) -> List[str]:
        """Every name of what was written into the layer, with the size of files. A directory of the image's is there as soon as something
        was written in it, and stays."""
        if self.layer is None:
            return []
        top = Path(f"/proc/{pid}/root{self.layer}/upper")
        found = {path.relative_to(top): path for path in top.rglob("*")}
        images = [Path(layer) for layer in self.layers.split(":")]
        return sorted(f"{name} {path.lstat().st_size if path.is_file() else ''}" for name, path in found.items()
                      if not path.is_dir() or not any((image / name).is_dir() for image in images))


def join_rootless() -> None:
    """The namespaces in which a user's podman and its runtime work."""
    pause = bed._pause_pids()[0]
    kinds = (("user", CLONE_NEWUSER), ("mnt", hook_start.CLONE_NEWNS))
    for fd, kind in [(os.open(f"/proc/{pause}/ns/{name}", os.O_RDONLY), kind) for name, kind in kinds]:
        _called("setns", fd, kind)
    become_root()


def become_root() -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _called("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # as a program is that was started there


def _called(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


class Bench:
    """A site with one container, in which a hook is started again and again."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.scenario = scenario
        account = bed.root_account() if scenario.user == "root" else bed.user_account()
        self.site = Site(folder / "site", account)
        self.site.configure(loader_cache=scenario.loader_cache)  # "bind": mounts alone, which are gone with the process that waits
        self.site.scan()
        hooks = self.site.register()
        descriptor = json.loads((hooks / "oci-hpc-hooks.json").read_text())
        self.hook: str = descriptor["hook"]["path"]
        (folder / "layer").mkdir()
        self.container = Waiting(scenario, folder / "layer")
        self.trace = self.site.cache_dir.parent / "trace"
        self.plans = (self.site.cache_dir if scenario.user == "root" else account.runtime_dir / "oci-hpc-hooks") / "plans"
        if scenario.precreate:
            self.hook = self.hook.replace("createruntime", "precreate")
            self.config = {**self.container.config, "hooks": {"createRuntime": [descriptor["hook"]]}}
            self.container.state_file.write_text(json.dumps(self.config))
            self.before: Tuple[Any, ...] = (self.config,)
        else:
            with self.container.waiting() as pid:
                self.before = self.made(pid)
        self.forget()
        self.right = self.start().made
        assert self.right != self.before, self.start()
        assert self.start().told.get("verdict") == "proved"

    def close(self) -> None:
        self.container.engine.remove(self.container.name)
        self.container.state_file.unlink(missing_ok=True)

    def forget(self) -> None:
        """The next start is a cold one."""
        shutil.rmtree(self.plans, ignore_errors=True)

    def made(self, pid: int) -> Tuple[Any, ...]:
        """What is mounted in the container, and whatever of ours is mounted elsewhere; other mounts of the node come and go. Whose a tmpfs
        is does not count: a hook that has failed at one way into a user namespace's mounts makes it from inside, as a user's hook does."""
        mounts = [(*mount[:-1], re.sub(r",uid=\d+,gid=\d+", "", mount[-1])) for mount in hook_start.mounts_of(pid)
                  if mount[1].startswith(self.container.rootfs) or "oci-hpc-hooks" in mount]
        return mounts, self.container.layer_of(pid)

    def start(self, *options: str, limit: str = "") -> Outcome:
        """Starts the hook, under strace where there are options for it, with a limit where there is one for prlimit(1)."""
        command = ["sh", "-c", 'exec "$0" 2>/dev/null', self.hook] if self.scenario.silent else [self.hook]
        if limit:
            command = ["prlimit", limit, "--", *command]
        if options:
            command = ["strace", "-f", "-qq", "-o", str(self.trace), "-e", f"trace={CALLS}", *options, *command]
        if self.scenario.precreate:
            done = self.run(command)
            try:
                made: Tuple[Any, ...] = (json.loads(done.stdout),)
            except ValueError:
                made = (done.stdout,)
        else:
            with self.container.waiting() as pid:
                done = self.run(command)
                made = self.made(pid)
        halves = [name for name in os.listdir(self.plans) if not name.endswith(WHOLE)] if self.plans.exists() else []
        return Outcome(done.returncode, done.stderr, (self.site.log() or [{}])[-1], made, halves)

    def run(self, command: List[str]) -> subprocess.CompletedProcess[str]:
        join = join_rootless if self.scenario.user != "root" else None
        with self.container.state_file.open("rb") as state:
            return subprocess.run(command, stdin=state, capture_output=True, text=True, env=hook_start.HOOK_ENVIRONMENT, cwd="/",
                                  timeout=60, check=False, preexec_fn=join)

    def points(self) -> List[Point]:
        self.start("-q")
        return points_of(self.trace.read_text(errors="replace"))

    def fail(self, point: Point, error: str, how: str = ONCE) -> Optional[Outcome]:
        """The start in which this call fails, or the process is killed there; None if no such call was made."""
        what = "signal=KILL" if error == KILLED else f"error={error}"
        found = self.start("-e", f"inject={point.call}:{what}:when={point.number}{how}")
        reached = "(INJECTED)" in self.trace.read_text(errors="replace") or (error == KILLED and found.status != 0)
        return found if reached else None


def points_of(trace: str) -> List[Point]:
    """Every call of a start from the first that is ours: what the runtime has to say is read from standard input."""
    found: List[Point] = []
    counts: Dict[str, int] = {}
    ours = False
    for line in trace.splitlines():
        match = re.match(r"\d+\s+(\w+)\((\d*)", line)
        if match:
            name = match[1]
            counts[name] = counts.get(name, 0) + 1
            ours = ours or (name == "read" and match[2] == "0")
            if ours:
                found.append(Point(name, counts[name]))
    return found


def faults(found: Outcome, bench: Bench, point: Point, error: str, how: str) -> Iterator[str]:
    """What is wrong with an outcome, in words."""
    if found.status == 0:
        # An image whose labels cannot be read starts as it is, and the log says so: most images ask for nothing. At precreate, the
        # configuration goes on as it came, with the createRuntime hook.
        left_alone = found.made == bench.before and (
            bench.scenario.precreate or (found.told.get("verdict") == "nothing" and "could not be read" in str(found.told)))
        if found.made != bench.right and not left_alone and not _bound_instead(found, bench, point, how):
            yield "the hook says that all is well, and the container has not what it should have"
    elif error != KILLED:  # the runtime sees that and ends the container; what was mounted goes with its namespace
        yield from _refusal(found, bench, point, how)
    if found.halves and error != KILLED and not point.call.startswith("unlink"):
        yield f"half a file is left in the cache: {found.halves}"


def _bound_instead(found: Outcome, bench: Bench, point: Point, how: str) -> bool:
    """Whether a loader's cache that could not be written into the layer is mounted, all else is right, and the layer as it was. (Where
    nothing more can be written, the log does not tell.)"""
    silenced = how == FROM_THEN_ON and point.call == "write"
    if bench.scenario.loader_cache != "file" or (found.told.get("loader_cache") != "bind" and not silenced):
        return False
    (mounts, layer), (right, _), (_, before) = found.made, bench.right, bench.before
    others = [mount for mount in mounts if mount[0] != "/ld.so.cache"]
    return others == right and len(mounts) == len(right) + 1 and layer == before


def _refusal(found: Outcome, bench: Bench, point: Point, how: str) -> Iterator[str]:
    # What docs/security.md says of a cache that got its name, which is the last effect but for this one.
    named = (bench.scenario.loader_cache == "file" and point.call == "capset" and found.made[0] == bench.before[0]
             and [name.partition(" ")[0] for name in found.made[1] if name not in bench.before[1]] == ["etc/ld.so.cache"])
    if found.made not in (bench.before, ("",)) and not named:
        yield f"refused, and something is left: {[name for now, was in zip(found.made, bench.before) for name in now if name not in was]}"
    sentences = [line for line in found.said.splitlines() if line.startswith("oci-hpc-hooks: ")]
    if "defect of oci-hpc-hooks" in found.said or "Traceback" in found.said or "Error:" in found.said:
        yield f"no sentence for a person: {found.said!r}"
    elif len(sentences) != 1 and not (how == FROM_THEN_ON and (bench.scenario.silent or point.call in SPEAKING)):
        yield f"refused without a word: {found.said!r}"
