"""The warm path: what every start of a container goes through, in a few milliseconds.

A container that asks for nothing is left alone. One whose plan is known gets it replayed, after everything the plan rests on has been
checked by fstat(2). Anything else is for :mod:`oci_hpc_hooks.cold`, which is imported only then.

The style is odd for a reason. Python's bare start is 10 ms, and json, re, typing, dataclasses, pathlib, subprocess, logging or
argparse each cost as much again; so this module and all that it imports ("light modules") use only what the interpreter has
loaded already or what is built in. tests/unit/test_light.py lists what a warm hook imports.
"""

from __future__ import annotations

import os
import time
from _signal import SIG_SETMASK, pthread_sigmask  # type: ignore[import-not-found]  # built in; the signal module costs an enum
from binascii import crc32

from oci_hpc_hooks import report
from oci_hpc_hooks.apply import rootfs
from oci_hpc_hooks.errors import HookError
from oci_hpc_hooks.inputs import container, jsontext, storage
from oci_hpc_hooks.inputs.trust import read_trusted
from oci_hpc_hooks.linux import mounts, namespaces, syscalls
from oci_hpc_hooks.report import Places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from oci_hpc_hooks.linux.paths import Root

#: Goes into every key: a plan remembered by another version of the record is not found.
RECORD_VERSION = 1

#: Annotations and labels that are read; everything else is none of our business.
PREFIXES = ("org.supercontainers.", "com.hooks.mpi.")

#: What a program could be given by its environment that changes what its loader does.
LOADER_VARIABLES = ("PATH=", "LD_", "GLIBC_TUNABLES=")

SITE_LIMIT = 1 << 20
PLAN_LIMIT = 64 << 20


class Start:
    """One container that is being created: what the runtime, the bundle and the image store say about it."""

    __slots__ = (
        "began", "config", "entered", "image", "journal", "key", "places", "root", "rootfs", "stage", "state", "table", "touched", "words")

    def __init__(self, stage: str, places: Places, began: float) -> None:
        self.stage = stage
        self.places = places
        self.began = began
        self.state = container.read_state(container.read_stdin())
        self.config = container.read_config(self.state)
        if not self.state.annotations:
            self.state.annotations = container.annotations_of(self.config)
        self.rootfs = container.rootfs(self.config, self.state.bundle)
        self.image = storage.image_of(self.state.bundle, self.state.id, self.rootfs)
        self.words = [
            (source, key, value)
            for source, values in (
                ("annotation", self.state.annotations), ("label", self.image.labels), ("manifest", self.image.manifest_annotations))
            for key, value in sorted(values.items()) if key.startswith(PREFIXES)
        ]
        self.key = ""
        self.entered = False  # this process is in the container's namespaces
        self.touched = False  # something may have been mounted, and taken back: too late to decide anew
        self.journal = -1
        self.root: Root
        self.table: dict[int, mounts.MountEntry]

    def look(self) -> None:
        """Opens the container's tree and reads its mount table."""
        pid = self.state.pid
        try:
            self.root = namespaces.open_root(pid, self.rootfs)
            self.table = mounts.mount_table(f"/proc/{pid}/mountinfo")
        except PermissionError:
            # A runtime without privileges of its own made the container's user namespace: only inside it are we somebody.
            namespaces.enter(pid)
            self.entered = True
            self.root = namespaces.open_root(os.getpid(), self.rootfs)
            self.table = mounts.mount_table()

    def inject(self, record: dict[str, Any], cache: bytes) -> None:
        self.journal = report.open_log(self.places)
        rootfs.inject(record, cache, self.root, self.table, container.mount_label(self.config), self.join)

    def join(self) -> None:
        if not self.entered:
            namespaces.enter(self.state.pid)
        self.entered = self.touched = True

    def log(self, verdict: str, path: str, **more: Any) -> None:
        entry = {
            "verdict": verdict,
            "id": self.state.id,
            "image": self.image.image_name or self.image.image_id,
            "stage": self.stage,
            "path": path,
            "ms": round((time.monotonic() - self.began) * 1000, 2),
            "cpu_ms": round(time.process_time() * 1000, 2),
        }
        entry.update(more)
        report.log(self.journal if self.journal >= 0 else report.open_log(self.places), entry)


def main(stage: str, *, config: str, state: str, cache: str, log: str) -> NoReturn:
    """A hook's whole life: reads the state from stdin, and exits 0 (done, or nothing to do) or 1 (the container must not start)."""
    began = time.monotonic()
    status = 1
    try:
        pthread_sigmask(SIG_SETMASK, [])  # crun starts hooks with every signal blocked, the ones that should end them too
        os.umask(0o022)
        syscalls.close_range(3)
        syscalls.set_not_dumpable()
        run(stage, report.own_places(Places(config, state, cache, log)), began)
        status = 0
    except HookError as error:
        report.complain(str(error))
    except MemoryError:
        report.complain("out of memory; the container was not touched.")
    except Exception as error:
        report.complain(f"{type(error).__name__}: {error}. This is a defect of oci-hpc-hooks: please report it.")
    os._exit(status)  # nothing is left to tidy, and taking the interpreter down costs a millisecond


def run(stage: str, places: Places, began: float) -> None:
    """Serves one container. Raises HookError where it must not start."""
    start = Start(stage, places, began)
    defaults = site_defaults(places)
    if not start.words and not defaults:
        if start.image.image_id and start.image.reason:
            start.log("nothing", "warm", message=f"the image's labels could not be read: {start.image.reason}")
        return
    start.key = key_of(start, defaults)
    start.look()
    if rootfs.already_injected(start.table, start.root.prefix):
        return
    known = remembered(places, start.key)
    trouble: HookError | None = None
    if known is not None:
        try:
            replay(start, *known)
            return
        except rootfs.Stale:
            pass
        except HookError as error:
            trouble = error
    from oci_hpc_hooks import cold  # the whole rest of the house: only for a container not seen before, or in trouble

    cold.run(start, trouble if start.touched else None)


def site_defaults(places: Places) -> list[tuple[str, str]]:
    """What this site gives to every container. Nothing if site.json cannot be read: who asks for nothing must start as ever."""
    try:
        data = read_trusted(places.config + "/site.json", SITE_LIMIT, places.fixed)
        site = jsontext.loads(data, "site.json", SITE_LIMIT)
    except HookError:
        return []
    defaults = site.get("defaults") if isinstance(site, dict) else None
    if not isinstance(defaults, dict):
        return []
    return sorted((str(key), str(value)) for key, value in defaults.items() if value != "none")


def key_of(start: Start, defaults: list[tuple[str, str]]) -> str:
    """Everything that a plan depends on, apart from the files that are checked one by one."""
    config = start.config
    # podman writes its mounts in random order; those whose source carries the container's id are its own small files.
    volumes = sorted([
        (where, kind, source, "ro" in options) for where, kind, source, options in container.mounts(config)
        if f"/{start.state.id}/" not in source and not where.startswith(("/proc/", "/sys/", "/dev/"))
    ])
    return repr((
        RECORD_VERSION,
        start.image.image_id or start.rootfs,
        start.words,
        defaults,
        container.command_words(container.arguments(config)),
        [item for item in container.environment(config) if item.startswith(LOADER_VARIABLES)],
        container.working_directory(config),
        volumes,
        container.read_only(config),
        container.user_namespace(config) is not None,
        container.mount_label(config) != "",
    ))


def plan_file(key: str) -> str:
    """The name of the file that remembers the plan for a key; the file holds the key itself, so a clash is only a miss."""
    return f"{crc32(key.encode('utf-8', 'surrogateescape')):08x}.plan"


def remembered(places: Places, key: str) -> tuple[dict[str, Any], bytes] | None:
    """The record and the loader cache that :func:`oci_hpc_hooks.record.remember` wrote for this key, None if there is none to trust."""
    try:
        folder = os.open(places.cache + "/plans", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fd = os.open(plan_file(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    finally:
        ours = owned(os.fstat(folder))
        os.close(folder)
    try:
        if not ours or not owned(os.fstat(fd)):
            return None
        data = jsontext.read_fd(fd, "a remembered plan", PLAN_LIMIT)
        head, _, cache = data.partition(b"\n")
        record = jsontext.loads(head, "a remembered plan", PLAN_LIMIT)
        if isinstance(record, dict) and record["key"] == key and record["cache_length"] == len(cache):
            return record, cache
        return None
    except (HookError, OSError, KeyError):
        return None
    finally:
        os.close(fd)


def owned(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def replay(start: Start, record: dict[str, Any], cache: bytes) -> None:
    """Applies a known plan. Raises Stale if anything that it rests on has changed."""
    for path, inode, size, mtime_ns in record["host_files"]:
        try:
            now = os.stat(path)
        except OSError:
            if inode:
                raise rootfs.Stale(path) from None
            continue
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (inode, size, mtime_ns):
            raise rootfs.Stale(path)
    rootfs.check_image(record, start.root)
    if record["verdict"] == "nothing":
        return
    start.inject(record, cache)
    start.log(record["verdict"], "warm", profile=record["profile"], files=len(record["tree"]) + len(record["in_place"]),
              findings=record["findings"])
