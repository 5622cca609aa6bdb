# ruff: noqa: F811 (fixtures are imported)
"""A kernel, or a seccomp filter, without one of the calls that the hook's safety rests on: a refusal in a sentence, never a weaker way.

The filter is the kernel's own, put around the real hook by the program that starts it.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.attacks.hostile import told
from tests.attacks.weaken import weakened, wrapped
from tests.bed import bed
from tests.bed.bed import RUNTIMES, USERS, Engine
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, assert_own, assert_site
from tests.engine.site import ReadySite, ready  # noqa: F401

#: Numbers; below 424 each architecture has its own (asm/unistd.h).
NUMBERS = {"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "pidfd_open": 434, "close_range": 436,
           "openat2": 437, "pidfd_getfd": 438, "mount_setattr": 442,
           **({"capset": 126, "setns": 308, "prlimit": 302, "statx": 332, "unshare": 272} if platform.machine() == "x86_64" else
              {"capset": 91, "setns": 268, "prlimit": 261, "statx": 291, "unshare": 97})}

QUICK = ("openat2", "statx", "close_range", "capset", "move_mount")
NEEDED = ("openat2", "statx", "close_range", "prlimit", "capset", "open_tree", "mount_setattr", "move_mount", "fsopen", "fsconfig",
          "fsmount", "setns")
#: At precreate the runtime mounts, unless there are volumes to look through.
NEEDED_AT_PRECREATE = ("openat2", "statx", "close_range", "prlimit", "capset")
NEEDED_FOR_VOLUMES = ("unshare", "open_tree", "mount_setattr", "move_mount")
#: Only to bring the sentence to somebody who is not root.
SPARE = ("pidfd_open", "pidfd_getfd")

#: struct sock_filter (linux/filter.h): load the number, compare it with each, SECCOMP_RET_ERRNO | ENOSYS, SECCOMP_RET_ALLOW.
FILTER = """#!/usr/bin/python3 -IS
import ctypes, os, struct, sys
numbers = {numbers}
code = [(0x20, 0, 0, 0)]
for left, number in zip(range(len(numbers), 0, -1), numbers):
    code.append((0x15, left, 0, number))
code += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 38)]
rows = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in code))
program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(rows))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, 2, program, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER: not for whoever has no CAP_SYS_ADMIN in its namespace
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv("{hook}", ["{hook}"])
"""


def without(hooks: Path, folder: Path, *names: str) -> Path:
    """The same hooks on a kernel that does not have these calls."""
    return wrapped(hooks, folder, FILTER.replace("{numbers}", str([NUMBERS[name] for name in names])))


def cases(stage: str, names: Sequence[str], quick: str) -> list[object]:
    return [pytest.param((runtime, user), stage, name, id=f"{stage or 'createRuntime'}-{name}-{runtime}-{user}",
                         marks=() if f"{runtime}-{user}" == quick and name in QUICK else pytest.mark.long)
            for name in names for runtime in RUNTIMES for user in USERS]


@pytest.mark.parametrize(("engine", "stage", "name"), [*cases("", NEEDED, "crun-root"), *cases("podman", NEEDED_AT_PRECREATE, "")],
                         indirect=["engine"])
def test_without_a_call(engine: Engine, ready: ReadySite, scratch: Path, stage: str, name: str) -> None:
    refused(engine, without(ready(engine).hooks_dir / stage, scratch / "without", name), name)


@pytest.mark.parametrize(("engine", "stage", "name"), cases("podman", NEEDED_FOR_VOLUMES, ""), indirect=["engine"])
def test_without_a_call_for_volumes(engine: Engine, ready: ReadySite, scratch: Path, stage: str, name: str) -> None:
    """What cannot be looked into is left to createRuntime, which needs the calls but one."""
    hooks = without(ready(engine).hooks_dir / stage, scratch / "without", name)
    volume = f"--volume={scratch}:/mnt:ro"
    if name == "unshare":
        assert_site(engine.run("bookworm-mpich", *HELLO, hooks_dir=hooks, options=[volume]))
    else:
        refused(engine, hooks, name, volume)


def refused(engine: Engine, hooks: Path, name: str, *options: str) -> None:
    before = bed.host_state()
    result = engine.run("bookworm-mpich", *HELLO, hooks_dir=hooks, options=options)
    assert result.returncode != 0 and "rank" not in result.stdout, result.stdout
    assert f"oci-hpc-hooks: the kernel does not have {name}(2)" in told(result), result.stderr
    assert "Linux 5.14" in told(result) and "--annotation org.supercontainers.mpi=none" in told(result)
    assert bed.leaks(before) == []


def test_without_what_is_not_needed(ready: ReadySite, scratch: Path) -> None:
    engine = Engine("crun", "rootless")
    assert_site(engine.run("bookworm-mpich", *HELLO, hooks_dir=without(ready(engine).hooks_dir, scratch / "without", *SPARE)))


def test_a_default_is_left_out(make_site: SiteMaker, scratch: Path) -> None:
    """Who has asked for nothing starts as ever on such a kernel."""
    engine = Engine("crun", "root")
    site = make_site(engine, defaults={"org.supercontainers.mpi": "mpich"})
    for name in ("close_range", "openat2", "move_mount"):
        assert_own(engine.run("bookworm-mpich-nolabel", *HELLO, hooks_dir=without(site.hooks_dir, scratch / name, name)))


#: What a program does that takes ENOSYS lightly: it leaves out what only makes things safer. (For openat2 see `test_links.py`.)
CARELESS: dict[str, Sequence[str]] = {
    "close_range": ["if _syscall(NR_close_range, first, 0xFFFFFFFF, 0, 0, 0) < 0:"],
    "prlimit": ['if _libc("prlimit")(0, resource, None, now) < 0:',
                'if _libc("prlimit")(0, resource, words(min(most, hard), hard), None) < 0:'],
    "capset": ['if _libc("capset")(CAPABILITY_HEADER, now) < 0:', 'if _libc("capset")(CAPABILITY_HEADER, bytes(24)) < 0:'],
    "mount_setattr": ["if _syscall(NR_mount_setattr, fd, b\"\", flags | AT_EMPTY_PATH, attr, len(attr)) < 0:"],
    "move_mount": ["if _syscall(NR_move_mount, from_fd, b\"\", to_fd, b\"\", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0:"],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "mount_setattr" else pytest.mark.long) for name in CARELESS])
def test_a_weaker_way(ready: ReadySite, scratch: Path, name: str) -> None:
    """The container starts, with less than it should have. (Without the other calls nothing can be mounted at all.)"""
    engine = Engine("crun", "root")
    edits = [("linux/syscalls.py", test, "if False:") for test in CARELESS[name]]
    hooks = without(weakened(ready(engine), scratch, *edits), scratch / "without", name)
    assert engine.run("bookworm-mpich", *HELLO, hooks_dir=hooks).returncode == 0
    with pytest.raises(AssertionError):
        refused(engine, hooks, name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NEEDED if name not in CARELESS and name != "statx"])
def test_without_the_sentence(ready: ReadySite, scratch: Path, name: str) -> None:
    engine = Engine("crun", "root")
    hooks = weakened(ready(engine), scratch, ("linux/syscalls.py", "    if number == ENOSYS:", "    if False:"))
    with pytest.raises(AssertionError, match="does not have"):
        refused(engine, without(hooks, scratch / "without", name), name)


def test_without_the_defence(ready: ReadySite, scratch: Path) -> None:
    """libc answers for a kernel without statx(2), and leaves the mount ID out: every mount looks like no mount at all."""
    engine = Engine("crun", "root")
    hooks = weakened(ready(engine), scratch, ("linux/syscalls.py", "if not int.from_bytes(found[:4], byteorder) & STATX_MNT_ID:",
                                              "if False:"))
    result = engine.run("bookworm-mpich", *HELLO, hooks_dir=without(hooks, scratch / "without", "statx"))
    assert "statx" not in result.stderr and "/dev of the container is not the tmpfs that its configuration says" in told(result)
