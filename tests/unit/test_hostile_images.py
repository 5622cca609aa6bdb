"""Images made to exhaust whoever looks at them: the whole decision, in a process of little memory and processor time that the kernel
ends beyond its limits, comes to a verdict or to one sentence.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import pytest

from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.model import NOTHING, PROVED, REFUSED, UNPROVED, CacheEntry, LdCache
from tests.attacks.weaken import Edit, edited
from tests.unit.elf.elf_bed import NEEDED, SONAME, build, made_up
from tests.unit.test_image import LOADER, STUB, Tree

#: Bytes of address space and seconds of processor time. An ordinary image needs 60 MB and less than a second.
MEMORY = 512 << 20
SECONDS = 60
GIANT = 4 << 30  # bytes, of nothing

DECIDE = """
    import json, os, sys
    from oci_hpc_hooks import cold
    from oci_hpc_hooks.errors import HookError
    from oci_hpc_hooks.linux.paths import Root
    from oci_hpc_hooks.model import Container, Mount
    from tests.unit.decide import world

    top, command, env, times = json.loads(sys.argv[1])
    needed = ("libfabric.so.1", "libc.so.6", "ld-linux-x86-64.so.2")
    site = world.profile(world.site_mpi(glibc="GLIBC_2.2.5", needed=needed), world.site_fabric(glibc="GLIBC_2.2.5"))
    where = Container("c", "/b", top, tuple(command), tuple(env), "/", (Mount("/dev", "tmpfs", "tmpfs"),),
                      {"org.supercontainers.mpi": "mpich"}, {}, {})
    for _ in range(times):
        with Root(os.open(top, os.O_PATH | os.O_DIRECTORY)) as root:
            try:
                plan, _ = cold.decide(where, root, world.inventory(site))
                told = {"verdict": plan.verdict, "codes": [one.code for one in plan.findings], "whats": [one.what for one in plan.findings]}
            except HookError as error:
                told = {"verdict": "error", "codes": [], "whats": [str(error)]}
        # Not ru_maxrss, which still knows what the process that started this one had.
        told["bytes"] = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) * 1024
        print(json.dumps(told), flush=True)
        sys.stdin.readline()
"""
ROOT = Path(__file__).parents[2]
#: Whose package decides.
PACKAGE = ROOT


@dataclass
class Told:
    verdict: str
    codes: List[str]
    whats: List[str]
    bytes: int  # of memory, at most


class Judge:
    """Decides for one tree, again and again: what is asked is whether each comes to an end in peace."""

    def __init__(self, tree: Tree, *command: str, env: Sequence[str] = (), times: int = 1) -> None:
        words = ["prlimit", f"--as={MEMORY}", f"--cpu={SECONDS}", "timeout", str(2 * SECONDS), sys.executable, "-c",
                 textwrap.dedent(DECIDE), json.dumps([str(tree.top), command or ["/bin/app"], env, times])]
        self._child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                       cwd=PACKAGE,
                                       env={**os.environ, "PYTHONPATH": str(ROOT)})

    def next(self) -> Told:
        assert self._child.stdout and self._child.stderr
        line = self._child.stdout.readline()
        assert line, f"status {self._child.wait()}: {self._child.stderr.read()}"
        found: Dict[str, Any] = json.loads(line)
        assert not any("Traceback" in what or "\n" in what for what in found["whats"])
        return Told(**found)

    def go_on(self) -> None:
        assert self._child.stdin
        self._child.stdin.write("\n")
        self._child.stdin.flush()

    def end(self) -> None:
        stdout, stderr = self._child.communicate(timeout=2 * SECONDS)
        assert (self._child.returncode, stdout, stderr) == (0, "", "")


def judged(tree: Tree, *command: str, env: Sequence[str] = ()) -> Told:
    judge = Judge(tree, *command, env=env)
    told = judge.next()
    judge.end()
    assert told.bytes < MEMORY // 2
    return told


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "root").mkdir()
    made = Tree(tmp_path / "root")
    made.copy(LOADER, "/usr/lib/ld-linux-x86-64.so.2")  # which libc needs by this name
    return made


def libraries(names: Sequence[str], *, soname: str = "") -> bytes:
    """A shared object that needs all of these."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in (*names, soname))
    offsets: List[int] = []
    at = 1
    for name in (*names, soname):
        offsets.append(at)
        at += len(name.encode()) + 1
    return made_up(strings=strings, tags=[*((NEEDED, offset) for offset in offsets[:-1]), (SONAME, offsets[-1])])


def sparse(path: Path, head: bytes = b"") -> None:
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(GIANT)


def test_an_ordinary_one(tree: Tree) -> None:
    tree.mpi("/usr/lib")
    tree.program("/bin/app", "libmpi.so.12")
    told = judged(tree)
    assert told.verdict == PROVED, told


# ---------------------------------------------------------------------------------------------------------------- many

MANY = 10_000


@pytest.mark.parametrize("needs", [0, 3000, MANY])
def test_ten_thousand_libraries(tree: Tree, needs: int) -> None:
    """In a directory and in the cache; a program needs none, many or all of them."""
    tree.mpi("/usr/lib")
    names = [f"lib{number}.so.1" for number in range(MANY)]
    first = tree.at("/opt/many/lib0.so.1")
    first.write_bytes(made_up(strings=b"\0", tags=[]))
    for name in names[1:]:
        os.link(first, first.with_name(name))
    entries = [CacheEntry(name, f"/opt/many/{name}", 0x303) for name in (*names, *(f"x{name}" for name in names))]
    tree.at("/etc/ld.so.cache").write_bytes(ldcache.serialize(ldcache.merge(LdCache(()), entries)))
    tree.at("/usr/lib/liball.so").write_bytes(libraries([*names[:needs], "libmpi.so.12"], soname="liball.so"))
    tree.program("/bin/app", "liball.so")
    told = judged(tree, env=["LD_LIBRARY_PATH=/opt/many"])
    if needs < 4096:
        assert told.verdict == PROVED, told
    else:  # more than any program has ever had
        assert told.verdict == UNPROVED and "program-unreadable" in told.codes, told


def test_libraries_in_ten_thousand_directories(tree: Tree) -> None:
    path = ":".join(f"/opt/{number}" for number in range(MANY))
    for number in range(0, MANY, 100):
        tree.at(f"/opt/{number}/libmpi.so.12").write_bytes(libraries(["libc.so.6"], soname="libmpi.so.12"))
    tree.program("/bin/app", "libmpi.so.12")
    told = judged(tree, env=[f"LD_LIBRARY_PATH={path}"])
    assert told.verdict == "error" and "more than 4096 directories" in told.whats[0], told


def test_every_library_looks_everywhere(tree: Tree) -> None:
    """A thousand libraries, each with a hundred directories of its own to look for a hundred names."""
    folders = ":".join(f"/opt/{number}" for number in range(100))
    wanted = [f"libmissing{number}.so" for number in range(100)]
    for number in range(100):
        tree.at(f"/opt/{number}").mkdir()
    tree.mpi("/usr/lib")
    for number in range(1000):
        data = libraries([*wanted, f"libnext{number + 1}.so", "libmpi.so.12"], soname=f"libnext{number}.so")
        tree.at(f"/usr/lib/libnext{number}.so").write_bytes(data)
    tree.program("/bin/app", "libnext0.so")
    told = judged(tree, env=[f"LD_LIBRARY_PATH={folders}"])
    assert told.verdict == "error" and "more than 2000000 paths" in told.whats[0], told


# -------------------------------------------------------------------------------------------------------------- cycles

def test_libraries_that_need_each_other(tree: Tree) -> None:
    for name, needed in (("libmpi.so.12", ["liba.so"]), ("liba.so", ["libb.so"]), ("libb.so", ["liba.so", "libmpi.so.12", "libb.so"])):
        source = STUB if name == "libmpi.so.12" else ""
        build(tree.at(f"/usr/lib/{name}"), soname=name, needed=needed, runpath="$ORIGIN/../lib/../lib", source=source)
    tree.program("/bin/app", "libmpi.so.12", "libb.so")
    assert judged(tree).verdict == PROVED


def test_filters_and_links_in_circles(tree: Tree) -> None:
    tree.mpi("/usr/lib")
    for name, other in (("liba.so", "libb.so"), ("libb.so", "liba.so")):
        build(tree.at(f"/usr/lib/{name}"), soname=name, options=[f"-Wl,--auxiliary={other}", f"-Wl,--filter={other}"])
    tree.at("/opt/loop/again").symlink_to("/opt/loop")
    tree.at("/opt/loop/libx.so").symlink_to("libx.so")
    for name in ("tls", "x86_64", "haswell", "glibc-hwcaps"):
        tree.at(f"/opt/loop/{name}").symlink_to("/opt/loop")
    tree.program("/bin/app", "libmpi.so.12", "liba.so", "libx.so")
    told = judged(tree, env=["LD_LIBRARY_PATH=/opt/loop:/opt/loop/again/again"])
    assert told.verdict in (PROVED, UNPROVED, REFUSED, NOTHING), told


# -------------------------------------------------------------------------------------------------------------- giants

@pytest.mark.parametrize("path", [
    "/usr/lib/libmpi.so.12", "/usr/lib/libfabric.so.1", "/usr/lib/libother.so", "/opt/lib/libmpi.so.12", "/etc/ld.so.cache",
    "/etc/ld.so.preload", "/bin/app", LOADER, "libc.so.6"])
@pytest.mark.parametrize("head", [b"", "elf"])
def test_sparse_files_of_four_gigabytes(tree: Tree, path: str, head: object) -> None:
    tree.mpi("/usr/lib")
    tree.program("/bin/app", "libmpi.so.12", "libother.so")
    begin = libraries(["libmpi.so.12"]) if head == "elf" else head
    assert isinstance(begin, bytes)
    targets = [path] if "/" in path else [f"/{found.relative_to(tree.top)}" for found in tree.top.rglob(path)]
    for target in targets:
        sparse(tree.at(target), begin)
    told = judged(tree, env=["LD_LIBRARY_PATH=/opt/lib"])
    # What the untouched image's program could not load either is not ours to refuse.
    assert told.whats or (told.verdict == PROVED and path not in ("/usr/lib/libmpi.so.12", "/bin/app", LOADER, "libc.so.6")), told


def test_tables_of_a_sparse_file(tree: Tree) -> None:
    """Every table that a header leads to is as long as the file lets it be."""
    whole = bytearray(libraries(["libc.so.6"], soname="libmpi.so.12"))
    whole[64 + 32:64 + 40] = GIANT.to_bytes(8, "little")  # p_filesz of the only PT_LOAD, in which they lie
    for at in range(64, len(whole) - 8, 8):
        data = bytearray(whole)
        data[at:at + 8] = (GIANT - 4096).to_bytes(8, "little")
        sparse(tree.at(f"/opt/{at}/libmpi.so.12"), bytes(data))
    tree.program("/bin/app", "libmpi.so.12")
    places = ":".join(f"/opt/{at}" for at in range(64, len(whole) - 8, 8))
    assert judged(tree, env=[f"LD_LIBRARY_PATH={places}"]).whats


# ------------------------------------------------------------------------------------------------------------- garbage

def test_damaged_files(tree: Tree) -> None:
    """A real program, a real library, a cache, each with some bytes changed: two hundred times."""
    chance = random.Random(4711)
    tree.mpi("/usr/lib")
    tree.program("/bin/app", "libmpi.so.12", runpath="/usr/lib")
    tree.at("/etc/ld.so.cache").write_bytes(ldcache.serialize(LdCache((CacheEntry("libmpi.so.12", "/usr/lib/libmpi.so.12", 0x303),))))
    files = {path: tree.at(path).read_bytes() for path in ("/bin/app", "/usr/lib/libmpi.so.12", "/etc/ld.so.cache")}
    times = 200
    judge = Judge(tree, times=times)
    verdicts = set()
    for _ in range(times):
        verdicts.add(judge.next().verdict)
        for path, whole in files.items():
            data = bytearray(whole)
            for _ in range(chance.choice([0, 1, 4, 64])):
                at = chance.choice([chance.randrange(min(1024, len(data))), chance.randrange(len(data))])
                data[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
            tree.at(path).write_bytes(data[:chance.randrange(len(data))] if chance.random() < 0.1 else data)
        judge.go_on()
    judge.end()
    assert len(verdicts) > 1


# ------------------------------------------------------------------------------------------------- without the defences

def fails_without(monkeypatch: pytest.MonkeyPatch, package: Path, seconds: int, test: Callable[..., None], *arguments: object) -> None:
    """Calls a test with this package, which lacks a defence: by another verdict, or because the kernel ends the process, it fails."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", package)
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", seconds)
    with pytest.raises(AssertionError):
        test(*arguments)


#: A test from above, what it is called with, and the defence that is taken out.
DEFENCES: List[Tuple[Callable[..., None], Tuple[object, ...], Edit]] = [
    (test_ten_thousand_libraries, (MANY,), ("elf/loader.py", "MAX_OBJECTS = 4096", "MAX_OBJECTS = 1 << 40")),
    (test_libraries_in_ten_thousand_directories, (), ("inputs/tree.py", "DIRECTORIES_LIMIT = 4096", "DIRECTORIES_LIMIT = 1 << 40")),
    (test_every_library_looks_everywhere, (), ("elf/loader.py", "MAX_TRIES = 500_000", "MAX_TRIES = 1 << 40")),
    (test_libraries_that_need_each_other, (), (
        "elf/loader.py", "        loaded = item.loaded\n        for name in", "        return item\n        for name in")),
    (test_filters_and_links_in_circles, (), ("linux/paths.py", "syscalls.ENOTDIR, syscalls.ELOOP,", "syscalls.ENOTDIR,")),
    (test_sparse_files_of_four_gigabytes, ("/etc/ld.so.cache", b""), (
        "linux/paths.py", "    if size > limit:\n", "    limit = 1 << 40\n    if size > limit:\n")),
    (test_sparse_files_of_four_gigabytes, (LOADER, b""), (
        "inputs/ldso.py", "LOADER_LIMIT = 8 << 20", "LOADER_LIMIT = 1 << 40")),
    (test_tables_of_a_sparse_file, (), ("elf/facts.py", "MAX_DYNAMIC = 16384", "MAX_DYNAMIC = 1 << 50")),
    (test_damaged_files, (), (
        "elf/ldcache.py", "    if end > len(data):\n        _bad(f\"{count} entries do not fit into the file\")\n    if", "    if")),
]


@pytest.mark.parametrize(("test", "arguments", "edit"), [
    pytest.param(*row, id=f"{row[0].__name__[5:]}-{row[2][0]}") for row in DEFENCES])
def test_without_the_defence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tree: Tree, test: Callable[..., None],
                             arguments: Tuple[object, ...], edit: Edit) -> None:
    fails_without(monkeypatch, edited(tmp_path / "package", edit), 5, test, tree, *arguments)
