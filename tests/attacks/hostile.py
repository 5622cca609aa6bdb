"""A host that notices each touch, and containers whose root file system was changed by hand before they start.

An image's author can put any tree into an image. The tests put it into the layer of a container that was created and not yet started,
which a hook cannot tell from an image's, and which takes no build: each user's store keeps that layer as a plain folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bed import bed
from tests.bed.bed import Engine, Result
from tests.engine.inside import LIBRARY_DIR

#: inotify(7): IN_ACCESS, MODIFY, ATTRIB, OPEN, MOVED_FROM, MOVED_TO, CREATE, DELETE; not asked of who lists a directory.
_EVENTS = {0x1: "read", 0x2: "written", 0x4: "attributes", 0x20: "opened", 0x40: "moved", 0x80: "moved", 0x100: "made", 0x200: "removed"}
_IS_DIRECTORY = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class Canary:
    """A folder of the host with whatever a careless program would look for or overwrite, watched by the kernel: `touched` is what has
    happened to its files, by anybody in any mount namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ld.so.conf.d", "x86_64-linux-gnu", "lib", "bin", "dev", "self", "net", "lib/x86_64-linux-gnu", "etc", "usr/lib"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("ld.so.cache", "ld.so.conf", "ld.so.conf.d/a.conf", "ld.so.preload", "passwd", "shadow", "null", "random", "full",
                     "bin/mpihello", "ld-linux-x86-64.so.2", "environ", "status"):
            (folder / name).write_text(f"of the host: {name}\n")
        library = bed.BUILD / f"images/bookworm{LIBRARY_DIR}/libmpich.so.12.2.2"
        for place in ("", "x86_64-linux-gnu", "lib", "lib/x86_64-linux-gnu"):
            for name in ("libmpich.so.12", "libmpich.so.12.2.2", "libmpi.so.12", "libfabric.so.1", "libc.so.6"):
                (folder / place / name).write_bytes(library.read_bytes())
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self._before = self._state()
        self._watch = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders = {}
        for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            number = _LIBC.inotify_add_watch(self._watch, os.fsencode(path), sum(_EVENTS))
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._folders[number] = path

    def touched(self) -> list[str]:
        """What has been done to files here since the last time, each once; opening a directory is none of it."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                data += os.read(self._watch, 1 << 16)
        found = set()
        while data:
            number, mask, length = (int.from_bytes(data[at:at + 4], "little") for at in (0, 4, 12))
            name = os.fsdecode(data[16:16 + length].rstrip(b"\0"))
            kinds = [word for bit, word in _EVENTS.items() if mask & bit and not (mask & _IS_DIRECTORY and bit in (0x1, 0x20))]
            found |= {f"{kind}: {(self._folders[number] / name).relative_to(self.folder)}" for kind in kinds}
            data = data[16 + length:]
        return sorted(found)

    def is_whole(self) -> bool:
        """Whether every name, kind, mode, owner and content is what it was (which touches them)."""
        whole = self._state() == self._before
        self.touched()
        return whole

    def close(self) -> None:
        os.close(self._watch)

    def _state(self) -> dict[str, object]:
        return {str(path): (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns, status.st_ino,
                            hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else "")
                for path in (self.folder, *self.folder.rglob("*")) for status in [path.lstat()]}


class Layer:
    """The writable layer of a container, for whom its files belong to its root."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.folder = folder
        self._owner = (engine.account.uid, engine.account.gid)

    def place(self, path: str) -> Path:
        """A path in it, whose directories exist (as the image has them: with its content below) and where nothing of this layer is."""
        where = self.folder
        for part in Path(path.lstrip("/")).parts[:-1]:
            where = where / part
            if not where.is_dir() or where.is_symlink():
                where.mkdir()
                where.chmod(0o755)
                os.chown(where, *self._owner)
        where = where / Path(path).name
        if where.is_dir() and not where.is_symlink():
            where.rmdir()
        else:
            where.unlink(missing_ok=True)
        return where

    def _own(self, where: Path) -> Path:
        os.chown(where, *self._owner, follow_symlinks=False)
        return where

    def link(self, path: str, to: str) -> None:
        place = self.place(path)
        place.symlink_to(to)
        self._own(place)

    def write(self, path: str, content: bytes, size: int = 0, mode: int = 0o644) -> None:
        """A file, sparse up to `size`."""
        place = self.place(path)
        place.write_bytes(content)
        if size:
            os.truncate(place, size)
        place.chmod(mode)
        self._own(place)

    def fifo(self, path: str) -> None:
        place = self.place(path)
        os.mkfifo(place, 0o666)
        self._own(place)

    def directory(self, path: str) -> None:
        place = self.place(path)
        place.mkdir()
        place.chmod(0o755)
        self._own(place)

    def device(self, path: str, number: tuple[int, int]) -> None:
        """A character device: an image of root's can hold one."""
        place = self.place(path)
        os.mknod(place, 0o666 | stat.S_IFCHR, os.makedev(*number))


Edit = Callable[[Layer], None]


def start(engine: Engine, hooks: Path, edit: Edit, *command: str, options: Sequence[str] = (), image: str = "bookworm-mpich",
          timeout: float = 60) -> Result:
    """The result of a container that was created, changed by `edit`, and started."""
    name = engine.new_name()
    userns = ["--userns=keep-id"] if engine.user == "keep-id" else []
    # Hooks are chosen at create, and started at start.
    engine.podman("--hooks-dir", str(hooks), "create", "--name", name, "--net=none", *userns, *options, engine.load(image), *command,
                  check=True)
    try:
        inspected = json.loads(engine.podman("inspect", name, check=True).stdout)[0]
        edit(Layer(engine, Path(inspected["GraphDriver"]["Data"]["UpperDir"])))
        return engine.podman("--hooks-dir", str(hooks), "start", "--attach", name, timeout=timeout)
    finally:
        engine.remove(name)


def told(result: Result) -> str:
    """The hook's sentence, "" where it said nothing; a traceback or a defect fails the test."""
    assert "Traceback" not in result.stderr and "defect" not in result.stderr, result.stderr
    return next((line[line.index("oci-hpc-hooks: "):] for line in result.stderr.splitlines() if "oci-hpc-hooks: " in line), "")


def by_the_runtime(result: Result) -> bool:
    """Whether a start failed by no hook: a runtime's own complaint, of mounts that a hook has added too, may name files of ours."""
    return "hook" not in result.stderr.replace(bed.RUN.name, "").replace("/oci-hpc-hooks/plans/", "/")


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Canary]:
    """A canary whose files nobody has touched, or the test fails."""
    canary = Canary(folder)
    try:
        yield canary
        assert canary.touched() == []
        assert canary.is_whole()
    finally:
        canary.close()
