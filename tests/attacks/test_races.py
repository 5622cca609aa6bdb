"""The tree changes while it is worked on: CVE-2021-30465, CVE-2024-0132, CVE-2025-23359, CVE-2024-45310, CVE-2026-24260.

A second process, which is whoever shares a volume with the container, exchanges a directory and a link that leads to the host, again and
again and atomically (renameat2(2), RENAME_EXCHANGE), while the plan is applied to the real tree of mounts. Every round ends with the
plan applied inside, or with nothing done; and some end so and some otherwise, or there was no race.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.attacks.weaken import Edit, edited
from tests.unit.mountbed import ROOT, unshared
from tests.unit.test_rootfs import WORLD

RACE = """
import ctypes, hashlib, json, signal, time

canary = top / "canary"
(canary / "mods").mkdir(parents=True)
for name in ("libmpi.so.12", "ld.so.cache", "mods/old.so"):
    (canary / name).write_text("of the host: " + name)

def hashes():
    return sorted((str(path), path.lstat().st_mode, path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest())
                  for path in canary.rglob("*"))

def exchange(one, other):
    "A process that does it until it is killed."
    pid = os.fork()
    if pid:
        return pid
    one, other = os.fsencode(one), os.fsencode(other)
    call = ctypes.CDLL(None).syscall
    number = 316 if os.uname().machine == "x86_64" else 276
    while True:
        call(number, -100, one, -100, other, 2)

def ours():
    "Mounts of the tree and of the canary: what else there is comes and goes with containers of others."
    return [entry.mountpoint for entry in table().values() if entry.mountpoint.startswith(str(top))]

def undo():
    for entry in reversed(list(table().values())):
        if entry.mountpoint.startswith((str(image / "opt"), str(image / "etc"), f"{image}/dev/", str(canary))):
            syscalls.umount2(entry.mountpoint, syscalls.MNT_DETACH)
    real = image / ("opt/evil" if (image / "opt/lib").is_symlink() else "opt/lib")
    for left in (real / ".oci-hpc", image / "dev/.oci-hpc", canary / ".oci-hpc"):
        if left.exists():
            left.rmdir()

def rounds(count, made, *names):
    before, ends, clean, outside = hashes(), {}, ours(), 0
    attacker = exchange(*names)
    try:
        for _ in range(count):
            try:
                inject(made)
                end = "applied"
            except (rootfs.Stale, HookError, OSError) as error:
                end = type(error).__name__
            os.kill(attacker, signal.SIGSTOP)  # while it is looked at what has come of it
            os.waitpid(attacker, os.WUNTRACED)
            ends[end] = ends.get(end, 0) + 1
            now = ours()
            harm = any(point.startswith(str(canary)) for point in now) or hashes() != before
            outside += harm
            assert harm or end == "applied" or now == clean, now
            undo()
            os.kill(attacker, signal.SIGCONT)
    finally:
        os.kill(attacker, signal.SIGKILL)
        os.waitpid(attacker, 0)
    print(json.dumps([ends, outside]))
"""
#: What is exchanged, and what the plan does there. The image's own copy and the host's look the same: only the place tells them apart.
TARGETS = {
    "in place": """
lib = image / "opt/lib"
lib.mkdir(parents=True)
(lib / "libmpi.so.12").write_text("the image's")
(image / "opt/evil").symlink_to(canary)
copy, source = lib / "libmpi.so.12", host / "lib/libmpi.so.12"
made = build(in_place=(Bind(str(source), identity(source), "/opt/lib/libmpi.so.12", "", identity(copy)),), modules=(), cache=None)
""",
    "modules": """
lib = image / "opt/lib"
(lib / "mods").mkdir(parents=True)
(image / "opt/evil").symlink_to(canary)
folder = os.stat(lib / "mods")
made = build(in_place=(), modules=(Cover("opt/lib/mods", "/opt/lib/mods", folder.st_ino, folder.st_mtime_ns),), cache=None)
""",
    "a directory that is made": """
(image / "opt/lib").mkdir(parents=True)
(image / "opt/evil").symlink_to(canary)
made = build(in_place=(), modules=(), cache=None, tree_root="/opt/lib/.oci-hpc", tree_make="create")
""",
    "two steps": """
lib = image / "opt/lib"
(lib / "mods").mkdir(parents=True)
(lib / "libmpi.so.12").write_text("the image's")
(image / "opt/evil").symlink_to(canary)
copy, source, folder = lib / "libmpi.so.12", host / "lib/libmpi.so.12", os.stat(lib / "mods")
made = build(in_place=(Bind(str(source), identity(source), "/opt/lib/libmpi.so.12", "", identity(copy)),),
             modules=(Cover("opt/lib/mods", "/opt/lib/mods", folder.st_ino, folder.st_mtime_ns),), cache=None)
""",
}
#: A path that was looked at inside the tree is opened as a string afterwards, as others have it; and any file will do.
STRINGS: tuple[Edit, ...] = (
    ("linux/paths.py", '''        """Like :meth:`open`, O_PATH; -1 where nothing is there."""
''', '''        checked = syscalls.openat2(self.fd, path.lstrip("/") or ".", syscalls.O_PATH, RESOLVE, ABSENT)
        if checked < 0:
            return checked
        inside = posix.readlink(f"/proc/self/fd/{checked}").startswith(self.prefix)
        posix.close(checked)
        if not inside:
            return -1
        import time
        time.sleep(0.0005)  # as long as others take between the two
        try:
            return posix.open(self.prefix + path, syscalls.O_PATH | posix.O_CLOEXEC)
        except OSError:
            return -1
'''),
    ("linux/paths.py", '''        """A descriptor for ``path`` as seen from this root. KernelError if the kernel says no, with its errno."""
''', '''        found = self.find(path)
        if found >= 0:
            return found
'''),
    ("apply/rootfs.py", "return now.st_ino == inode and now.st_size == size and now.st_mtime_ns == mtime_ns and S_ISREG(now.st_mode)",
     "return True"),
    ("apply/rootfs.py", "if now.st_ino == inode and now.st_mtime_ns == mtime_ns and S_ISDIR(now.st_mode):", "if S_ISDIR(now.st_mode):"),
    ("apply/rootfs.py", "    def refuse_volume(self, fd: int, target: str) -> None:\n",
     "    def refuse_volume(self, fd: int, target: str) -> None:\n        return\n"),
)


def race(target: str, rounds: int, where: Path, package: Path = ROOT) -> tuple[dict[str, int], int]:
    """How often each end came, and how often something outside was mounted on or changed."""
    code = f'{TARGETS[target]}\nrounds({rounds}, made, image / "opt/lib", image / "opt/evil")'
    ends, outside = json.loads(unshared(code, where, before=WORLD + RACE, package=package, timeout=600))
    return ends, outside


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rounds", [100, pytest.param(3000, marks=pytest.mark.long)])
def test_exchanged_while_it_is_mounted_on(target: str, rounds: int, tmp_path: Path) -> None:
    ends, outside = race(target, rounds, tmp_path)
    assert outside == 0
    assert ends.get("applied", 0) > 0 and len(ends) > 1, ends


@pytest.mark.parametrize("target", TARGETS)
def test_exchanged_without_the_defence(target: str, tmp_path: Path) -> None:
    """Of 300 rounds some forty end outside; where the first of two steps must succeed too, seven."""
    package = edited(tmp_path / "package", *STRINGS)
    ends: dict[str, int] = {}
    for attempt in range(10):
        world = tmp_path / str(attempt)
        world.mkdir()
        ends, outside = race(target, 150, world, package)
        if outside:
            return
    pytest.fail(f"nothing outside was reached, last {ends}")
