"""One system call of a hook fails, or the hook is killed at it: strace's injection, on a container of podman's that waits to be started.

The container's first process has its mounts and waits, as at createRuntime (benchmarks/hook_start.py). After each fault either all of
the injection is there and the hook has said 0, or nothing of it is there, the hook has said something else, and one sentence tells why.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from benchmarks import hook_start
from tests.bed.site import Site

#: Calls that touch files, mounts or namespaces; what allocates memory and waits is the interpreter's.
CALLS = ("openat,openat2,newfstatat,fstat,statx,statfs,fstatfs,readlink,read,pread64,write,getdents64,lseek,mkdir,mkdirat,rename,renameat,"
         "renameat2,unlink,unlinkat,fchmod,fsync,chdir,open_tree,move_mount,mount_setattr,fsopen,fsconfig,fsmount,setns,umount2,"
         "setresuid,setresgid,setgroups,close_range,close,dup,fcntl,faccessat2,faccessat,access")
KILLED = "KILL"


@dataclass(frozen=True)
class Point:
    """The ``number``-th call of this name."""

    call: str
    number: int


@dataclass(frozen=True)
class Outcome:
    status: int
    said: str
    mounts: List[tuple[str, ...]]
    told: Dict[str, Any]  # the last line of the log


class Bench:
    """A site with one container, in which a hook is started again and again."""

    def __init__(self, folder: Path, container: hook_start.Container) -> None:
        self.container = container
        self.site = Site(folder)
        self.site.configure(loader_cache="bind")  # mounts alone: they are gone with the process that waits
        self.site.scan()
        self.hook: str = json.loads((self.site.register() / "oci-hpc-hooks.json").read_text())["hook"]["path"]
        self.trace = folder / "trace"
        with self.container.waiting() as pid:
            self.before = hook_start.mounts_of(pid)
        self.right = self.start().mounts
        assert self.right != self.before

    def forget(self) -> None:
        """The next start is a cold one."""
        shutil.rmtree(self.site.cache_dir / "plans", ignore_errors=True)

    def start(self, *options: str) -> Outcome:
        """Starts the hook, under strace where there are options for it."""
        command = ["strace", "-f", "-o", str(self.trace), "-e", f"trace={CALLS}", *options, self.hook] if options else [self.hook]
        with self.container.waiting() as pid:
            with self.container.state_file.open("rb") as state:
                done = subprocess.run(command, stdin=state, capture_output=True, text=True, env=hook_start.HOOK_ENVIRONMENT, cwd="/",
                                      timeout=60)
            return Outcome(done.returncode, done.stderr, hook_start.mounts_of(pid), (self.site.log() or [{}])[-1])

    def points(self) -> List[Point]:
        """Every call of a start from the first that is ours: the state is read from standard input."""
        self.start("-q")
        found: List[Point] = []
        counts: dict[str, int] = {}
        ours = False
        for line in self.trace.read_text(errors="replace").splitlines():
            match = re.match(r"\d+\s+(\w+)\((\d*)", line)
            if match:
                name = match[1]
                counts[name] = counts.get(name, 0) + 1
                ours = ours or (name == "read" and match[2] == "0")
                if ours:
                    found.append(Point(name, counts[name]))
        return found

    def fail(self, point: Point, error: str) -> Optional[Outcome]:
        """The start in which this call fails, or the process is killed there; None if no such call was made."""
        what = "signal=KILL" if error == KILLED else f"error={error}"
        found = self.start("-e", f"inject={point.call}:{what}:when={point.number}")
        reached = "(INJECTED)" in self.trace.read_text(errors="replace") or (error == KILLED and found.status != 0)
        return found if reached else None


def faults(found: Outcome, bench: Bench, error: str) -> Iterator[str]:
    """What is wrong with an outcome, in words."""
    if found.status == 0:
        # An image whose labels cannot be read starts as it is, and the log says so: most images ask for nothing.
        left_alone = found.mounts == bench.before and found.told.get("verdict") == "nothing" and "could not be read" in str(found.told)
        if found.mounts != bench.right and not left_alone:
            yield "the hook says that all is well, and the container has not what it should have"
        return
    if error == KILLED:
        return  # the runtime sees it and ends the container; what was mounted goes with its namespace
    if found.mounts != bench.before:
        yield f"refused, and {len(set(found.mounts) ^ set(bench.before))} mounts are left"
    if "oci-hpc-hooks: " not in found.said:
        yield f"refused without a word: {found.said!r}"
    if "defect of oci-hpc-hooks" in found.said or "Traceback" in found.said:
        yield f"no sentence for a person: {found.said!r}"
