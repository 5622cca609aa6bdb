# ruff: noqa: F811 (fixtures are imported)
"""What is no ordinary file where the hook reads or mounts: FIFOs, devices, sockets, directories, ten gigabytes of nothing, links in
circles and into /proc, files that include themselves (CVE-2025-23267; denial of service).

Each decision is taken in a process of little memory and time, and ends in a verdict or a sentence. Nothing of it is opened that is not a
regular file: a FIFO would block, a device could act.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.model import LdCache
from tests.attacks import hostile
from tests.attacks.hostile import Layer, told
from tests.attacks.weaken import Edit, edited, weakened
from tests.bed.bed import RUNTIMES, USERS, Engine
from tests.bed.site import Site
from tests.engine.inside import HELLO, LIBRARY_DIR, assert_site
from tests.engine.site import ReadySite, ready, site  # noqa: F401
from tests.unit.test_hostile_images import MEMORY, Judge, fails_without, tree  # noqa: F401
from tests.unit.test_image import LOADER, Tree

GIANT = 10 << 30  # bytes
PLACES = ("/usr/lib/libmpi.so.12", "/opt/lib/libmpi.so.12", "/usr/lib/libfabric.so.1", "/usr/lib/libother.so", "/etc/ld.so.cache",
          "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/bin/app", LOADER, "/etc", "/opt/lib", "/usr/lib/mods")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, GIANT)


def listening(path: Path) -> None:
    """A socket; its address must be short."""
    folder = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "zero": lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5)),
    "tty": lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(5, 0)),
    "no driver": lambda path: os.mknod(path, 0o666 | stat.S_IFBLK, os.makedev(259, 99999)),
    "socket": listening,
    "directory": os.mkdir,
    "sparse": sparse,
    "loop": lambda path: path.symlink_to(path.name),
    "mem": lambda path: path.symlink_to("/proc/self/mem"),
    "kmsg": lambda path: path.symlink_to("/proc/kmsg"),
    "root": lambda path: path.symlink_to("/proc/self/root"),
    "descriptor": lambda path: path.symlink_to("/proc/self/fd/0"),
    "up": lambda path: path.symlink_to("../../../../../../../etc/passwd"),
    "nowhere": lambda path: path.symlink_to("/" + "x/" * 2000),
}


@pytest.mark.parametrize("kind", KINDS)
def test_in_place_of_a_file(tree: Tree, kind: str) -> None:
    tree.mpi("/usr/lib")
    tree.mpi("/opt/lib")
    tree.program("/bin/app", "libmpi.so.12", "libother.so")
    tree.at("/usr/lib/mods").mkdir()
    tree.at("/etc/ld.so.cache").write_bytes(ldcache.serialize(LdCache(())))
    tree.at("/etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
    judge = Judge(tree, env=["LD_LIBRARY_PATH=/opt/lib"], times=len(PLACES) + 1)
    at, aside = None, tree.top / "aside"
    for place in (None, *PLACES):
        if place:
            at = tree.at(place)
            if at.exists():
                at.rename(aside)
            KINDS[kind](at)
            judge.go_on()
        found = judge.next()
        assert found.bytes < MEMORY // 2
        if at is not None:
            os.rmdir(at) if at.is_dir() and not at.is_symlink() else at.unlink()
            if aside.exists():
                aside.rename(at)
    judge.go_on()
    judge.end()


def test_files_that_include_themselves(tree: Tree) -> None:
    tree.mpi("/usr/lib")
    tree.program("/bin/app", "libmpi.so.12")
    tree.at("/etc/ld.so.conf.d/a.conf").write_text("include /etc/ld.so.conf\ninclude /etc/ld.so.conf.d/*.conf\n/usr/lib\n")
    tree.at("/etc/ld.so.cache").write_bytes(ldcache.serialize(LdCache(())))
    judge = Judge(tree, times=5)
    for text in ("include ld.so.conf\n" * 3000, "include /etc/ld.so.conf.d/*.conf\n" * 1500, "include ../../../../etc/../*/*/*/*/*.conf\n",
                 "include /proc/self/root/etc/*.conf\n", "include " + "/etc" * 900 + "/*.conf\n"):
        tree.at("/etc/ld.so.conf").write_text(text)
        if not text.startswith("include ld.so.conf\n"):
            judge.go_on()
        assert judge.next().bytes < MEMORY // 2
    judge.go_on()
    judge.end()


#: A naive reader that follows what is included.
FOLLOWS = ("inputs/ldso.py", "                if name in", """\
                lines += (root.read(f"{folder}/{name}", CONF_LIMIT) or b"").splitlines()
                if name in""")


@pytest.mark.parametrize(("test", "arguments", "edit"), [
    pytest.param(test_in_place_of_a_file, ("fifo",), ("linux/paths.py", "if not S_ISREG(posix.fstat(handle).st_mode):", "if False:"),
                 id="fifo"),
    pytest.param(test_in_place_of_a_file, ("sparse",), ("inputs/ldso.py", "CACHE_LIMIT = 64 << 20", "CACHE_LIMIT = 1 << 40"), id="sparse"),
    pytest.param(test_files_that_include_themselves, (), FOLLOWS, id="include"),
])
def test_without_the_defence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tree: Tree, test: Callable[..., None],
                             arguments: tuple[object, ...], edit: Edit) -> None:
    fails_without(monkeypatch, edited(tmp_path / "package", edit), 3, test, tree, *arguments)


# ------------------------------------------------------------------------------------------------ in real containers

def odd(kind: str) -> hostile.Edit:
    def edit(layer: Layer) -> None:
        for path in ("/etc/ld.so.cache", "/etc/ld.so.conf", f"{LIBRARY_DIR}/libmpich.so.12.2.2", f"{LIBRARY_DIR}/libfabric.so.1"):
            if kind == "fifo":
                layer.fifo(path)
            elif kind == "device":
                layer.device(path, (1, 5))
            else:
                layer.write(path, b"\x7fELF\x02\x01\x01" if "lib" in Path(path).name else b"glibc-ld.so.cache1.1", size=GIANT)

    return edit


CASES = [pytest.param((runtime, user), stage, kind, id=f"{runtime}-{user}-{stage or 'createRuntime'}-{kind}",
                      marks=() if (runtime, user, stage, kind) == ("crun", "root", "", "fifo")
                      else pytest.mark.long)
         for runtime in RUNTIMES for user in USERS for stage in ("", "podman") for kind in ("fifo", "device", "sparse")
         if (user == "root" or kind != "device")]


@pytest.mark.parametrize(("engine", "stage", "kind"), CASES, indirect=["engine"])
def test_in_a_container(engine: Engine, site: Site, stage: str, kind: str) -> None:
    """The hook is done before its time is over, and says what is wrong; or the site's files cover what is odd (at precreate a runtime
    mounts over a FIFO too)."""
    result = hostile.start(engine, site.hooks_dir / stage, odd(kind), *HELLO, timeout=30)
    if stage and kind != "sparse":
        assert_site(result)
    else:
        assert told(result) and "was not done within" not in result.stderr, result.stderr


@pytest.mark.long
def test_in_a_container_without_the_defences(ready: ReadySite, scratch: Path) -> None:
    """Opened like any file, a FIFO keeps the hook until its time is over."""
    engine = Engine("crun", "root")
    hooks = weakened(ready(engine), scratch, ("linux/paths.py", "if not S_ISREG(posix.fstat(handle).st_mode):", "if False:"),
                     ("warm.py", "TIME_LIMIT = 50", "TIME_LIMIT = 2"))
    result = hostile.start(engine, hooks, odd("fifo"), *HELLO)
    assert "was not done within 2 s: it was reading files of the image" in told(result), result.stderr
