"""Containers on a pure cgroup v2 hierarchy, whatever this machine has: podman in a mount namespace where nothing else is mounted.

Controllers that the machine has under v1 are missing there, hence ``--pids-limit=0``; devices are no controller of v2 but a BPF program.
crun before 1.9 wants to lock as much memory as it likes before it loads that program, and ends where it may not (no CAP_SYS_RESOURCE),
although Linux has not counted programs against that limit since 5.11: there a library in front of it says yes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.bed import bed
from tests.bed.bed import Engine, Result

_ENTER = "umount --recursive /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\""

_LIMITS = """
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) {
    return resource == RLIMIT_MEMLOCK ? 0 : syscall(SYS_prlimit64, 0, resource, limit, 0);
}
int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *limit) { return setrlimit(resource, (const struct rlimit *)limit); }
"""


class UnifiedEngine(Engine):
    """`Engine` of root, there."""

    def __init__(self, runtime: str, folder: Path) -> None:
        super().__init__(runtime, "root")
        if runtime == "crun" and bed.machine().lower_ulimits:
            (folder / "limits.c").write_text(_LIMITS)
            subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "limits.so", folder / "limits.c"], check=True, timeout=60)
            wrapper = folder / "crun"
            wrapper.write_text(f'#!/bin/sh\nLD_PRELOAD={folder}/limits.so exec /usr/bin/crun "$@"\n')
            wrapper.chmod(0o755)
            self.runtime = str(wrapper)

    def podman(self, *arguments: str, **more: Any) -> Result:
        words = list(arguments)
        if "run" in words:
            words.insert(words.index("run") + 1, "--pids-limit=0")
        return self.account.execute("unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh",
                                    "podman", "--runtime", self.runtime, *words, **more)

    def __repr__(self) -> str:
        return f"{Path(self.runtime).name}-unified"
