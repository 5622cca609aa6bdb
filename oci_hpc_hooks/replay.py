"""The warm path: a container whose plan is known gets it replayed, after everything that the plan rests on was checked by fstat(2).

Light module: see :mod:`oci_hpc_hooks.warm`.
"""

from __future__ import annotations

import posix
import time
from binascii import crc32

from oci_hpc_hooks import report
from oci_hpc_hooks.apply import rootfs
from oci_hpc_hooks.errors import HookError, InputError, KernelError, Precondition
from oci_hpc_hooks.inputs import container, jsontext
from oci_hpc_hooks.linux import mounts, namespaces, syscalls
from oci_hpc_hooks.report import Places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence

    from oci_hpc_hooks.linux.paths import Root
    from oci_hpc_hooks.start import Start
    from oci_hpc_hooks.wireup import WireUp

#: Goes into every key: a plan remembered by another version of the record is not found.
RECORD_VERSION = 5

#: What a program could be given by its environment that changes what its loader does.
LOADER_VARIABLES = ("PATH=", "LD_", "GLIBC_TUNABLES=")

PLAN_LIMIT = 64 << 20

#: What a hook may take of its node, far beyond what any start needs: bytes of address space, seconds of processor time, bytes of a file.
LIMITS = ((syscalls.RLIMIT_AS, 4 << 30), (syscalls.RLIMIT_CPU, 40), (syscalls.RLIMIT_FSIZE, 256 << 20))


class Service:
    """A start that asks for something, on its way to what it gets."""

    __slots__ = ("entered", "journal", "key", "places", "root", "start", "table", "touched")

    def __init__(self, start: Start) -> None:
        self.start = start
        self.places = report.own_places(Places(*start.places))
        self.key = key_of(start)
        self.entered = False  # this process is in the container's namespaces
        self.touched = False  # something may have been mounted, and taken back: too late to decide anew
        self.journal = -1
        self.root: Root
        self.table: mounts.MountTable

    def look(self) -> bool:
        """Opens the container's tree and reads its mount table; False if another stage has to serve it. Raises InputError, OSError."""
        pid = self.start.state.pid
        try:
            # A root filesystem that no engine has made may lie where others can exchange what leads to it.
            around = None if self.start.image.image_id else mounts.mount_table()
            if posix.geteuid() != 0:
                # A runtime without privileges of its own made the container's user namespace: only inside it are we somebody.
                report.keep_voices()
                namespaces.enter(pid)
                self.entered = True
                pid = posix.getpid()
            self.root = namespaces.open_root(pid, self.start.rootfs)
            self.table = mounts.mount_table(f"/proc/{pid}/mountinfo")
        except (FileNotFoundError, ProcessLookupError):
            raise InputError(f"process {pid}, the container's first, is gone: the runtime has given up on it") from None
        if around is not None and self.table.count(self.root.prefix) <= around.count(self.root.prefix):
            raise InputError(f"{self.start.rootfs} leads to {self.root.prefix}, which is not what the runtime has mounted as the "
                             "container's root filesystem in a mount namespace of its own", who="user",
                             remedy="let nobody else change the directories that lead to the root filesystem")
        return True

    def is_served(self) -> bool:
        return rootfs.already_injected(self.table, self.root.prefix)

    def inject(self, record: dict[str, Any], cache: bytes, path: str) -> None:
        """Applies a plan that was found on this path, and says so in the log. Raises as :func:`rootfs.inject`, and Precondition."""
        self.journal = report.open_log(self.places)
        more: WireUp | None = None
        if record["job"] is not None or record["devices"] or record["open_devices"] or record["gpus"]:
            from oci_hpc_hooks import wireup

            more = wireup.wire_up(self.start, record)
        if record["network"] is not None:
            from oci_hpc_hooks import network

            with network.brought(self.start.state.pid, self.entered, record["network"]) as told:
                way, because = self.apply(record, cache, more, told.bring)
            findings, names = told.findings, {"interfaces": told.names}
        else:
            way, because = self.apply(record, cache, more)
            findings, names = [], {}
        findings = [*record["findings"], *(more.findings if more else ()), *findings]
        if because:
            what = f"the loader's cache is mounted, not a file of the container's own, and ldconfig inside fails: {because}"
            note = {"severity": "note", "code": "loader-cache", "what": what, "origin": "", "remedy": "", "who": ""}
            findings = [*findings, note]
        self.log(record["verdict"], path, profile=record["profile"],
                 files=len(record["tree"]) + len(record["in_place"]) + len(record["files"]),
                 loader_cache=way, findings=findings, **(more.told if more else {}), **names)

    def apply(self, record: dict[str, Any], cache: bytes, more: WireUp | None,
              before: Callable[[], None] | None = None) -> tuple[str, str]:
        """Does all of it, and gives up this process's privileges: what is left is to say so. ``before`` is the last that is done in the
        node's own namespaces."""
        extras, owners = (more.mounts, more.owners) if more else ([], ())
        found: list[dict[str, str]] = more.findings if more else []

        def join(devices: list[tuple[str, int, int]]) -> None:
            self.allow(devices, found)
            if before is not None:
                before()
            self.join()

        return rootfs.inject(record, cache, self.root, self.table, container.mount_label(self.start.config), join, extras, owners,
                             give_up_privileges)

    def allow(self, devices: list[tuple[str, int, int]], findings: list[dict[str, str]]) -> None:
        """Lets the container's cgroup use devices. A runtime without privileges of its own has made no rules."""
        if not devices or self.entered or namespaces.in_own_user_namespace():
            return
        from oci_hpc_hooks.linux import cgroups

        why = cgroups.allow_devices(self.start.state.pid, self.start.state.id, devices)
        if why:
            findings.append({"severity": "warning", "code": "device-cgroup", "what": f"{why}: devices are there and cannot be opened",
                             "origin": "", "remedy": "give podman the hooks for its precreate stage (the folder podman below --hooks-dir)",
                             "who": "site admin"})

    def join(self) -> None:
        if not self.entered:
            if container.user_namespace(self.start.config) is not None:
                report.keep_voices()
            namespaces.enter(self.start.state.pid)
        self.entered = self.touched = True

    def log(self, verdict: str, path: str, **more: Any) -> None:
        entry = {
            "verdict": verdict,
            "id": self.start.state.id,
            "image": self.start.image.image_name or self.start.image.image_id,
            "stage": self.start.stage,
            "plan": plan_file(self.key),
            "path": path,
            "ms": round((time.monotonic() - self.start.began) * 1000, 2),
            "cpu_ms": round(time.thread_time() * 1000, 2),  # under RLIMIT_CPU a process's clock goes by ticks
        }
        entry.update(more)
        report.log(self.journal if self.journal >= 0 else report.open_log(self.places), entry)


def confine() -> None:
    """Nobody can look into this process, what it has inherited is closed, and it takes no more than a hook may. Raises KernelError."""
    syscalls.close_range(3)
    syscalls.set_not_dumpable()
    syscalls.keep_privileges()
    for resource, most in LIMITS:
        syscalls.limit(resource, most)


def give_up_privileges() -> None:
    """Raises Precondition: whoever has asked, no container starts beside a hook that keeps them."""
    try:
        syscalls.give_up_privileges()
    except KernelError as error:
        raise Precondition(f"the hook cannot give up its privileges: {error.what}", origin="", who="site admin", findings=[],
                           remedy="look which seccomp filter or security module stands around container runtimes") from None


def key_of(start: Start) -> str:
    """Everything that a plan depends on, apart from the files that are checked one by one."""
    config = start.config
    volumes = sorted([(where, kind, source, "ro" in options) for where, kind, source, options in volumes_of(start)])
    return repr((
        *head_of_key(start.places, start.image.image_id or start.rootfs, start.words, start.defaults, container.arguments(config),
                     container.environment(config), container.working_directory(config)),
        volumes,
        container.read_only(config),
        container.user_namespace(config) is not None,
        container.mount_label(config) != "",
    ))


def head_of_key(places: tuple[str, str, str, str], image: str, words: list[tuple[str, str, str]], defaults: list[tuple[str, str]],
                args: Sequence[str], env: Sequence[str], cwd: str) -> tuple[object, ...]:
    """The part of a key that does not depend on how a container is started: on its volumes and its user namespace."""
    return (
        RECORD_VERSION,
        places,  # a user has one cache for all sites of the node
        image,
        words,
        defaults,
        container.command_words(args),
        # podman writes the environment in random order too; of one name the last counts, so equal names keep theirs.
        sorted([item for item in env if item.startswith(LOADER_VARIABLES)], key=variable),
        cwd,
    )


def volumes_of(start: Start) -> list[tuple[str, str, str, list[str]]]:
    """The mounts that somebody asked for, as :func:`container.mounts` gives them; podman writes them in random order. Those whose source
    carries the container's id are its own small files."""
    return [
        mount for mount in container.mounts(start.config)
        if f"/{start.state.id}/" not in mount[2] and not mount[0].startswith(("/proc/", "/sys/", "/dev/"))
    ]


def variable(item: str) -> str:
    return item.partition("=")[0]


def plan_file(key: str) -> str:
    """The name of the file that remembers the plan for a key; the file holds the key itself, so a clash is only a miss."""
    return f"{crc32(key.encode('utf-8', 'surrogateescape')):08x}.plan"


def remembered(places: Places, key: str) -> tuple[dict[str, Any], bytes] | None:
    """The record and the loader cache that :func:`oci_hpc_hooks.record.remember` wrote for this key, None if there is none to trust."""
    found = read_plan(places, plan_file(key))
    return found if found is not None and found[0]["key"] == key else None


def read_plan(places: Places, name: str) -> tuple[dict[str, Any], bytes] | None:
    """The same for a file of remembered plans, whatever its key is."""
    try:
        folder = posix.open(places.cache + "/plans", posix.O_PATH | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except OSError:
        return None
    try:
        fd = posix.open(name, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    finally:
        ours = owned(posix.fstat(folder))
        posix.close(folder)
    try:
        status = posix.fstat(fd)
        if not ours or not owned(status):
            return None
        data = jsontext.read_fd(fd, "a remembered plan", PLAN_LIMIT, status.st_size)
        begin = data.find(b"\n") + 1
        if data[:begin] != b"%08x\n" % crc32(memoryview(data)[begin:]):  # the cache of an image of 5,000 libraries has half a megabyte
            return None  # the disk was full, or the node went down before the file was on it
        end = data.find(b"\n", begin)
        head, cache = data[begin:end], data[end + 1:]
        record = jsontext.loads(head, "a remembered plan", PLAN_LIMIT)
        if isinstance(record, dict) and isinstance(record["key"], str) and record["cache_length"] == len(cache):
            return record, cache
        return None
    except (HookError, OSError, KeyError):
        return None
    finally:
        posix.close(fd)


def owned(status: posix.stat_result) -> bool:
    return status.st_uid == posix.geteuid() and not status.st_mode & 0o022


def replay(service: Service, record: dict[str, Any], cache: bytes) -> None:
    """Applies a known plan. Raises Stale if anything that it rests on has changed."""
    check_host(record)
    rootfs.check_image(record, service.root)
    if record["verdict"] == "nothing" and record["job"] is None and record["network"] is None:
        if any(finding["severity"] != "note" for finding in record["findings"]):  # told at each start
            service.log("nothing", "warm", findings=record["findings"])
        return
    service.inject(record, cache, "warm")


def check_host(record: dict[str, Any]) -> None:
    """Raises Stale unless every file of the host that the plan rests on, and that will not be opened anyway, is unchanged."""
    for path, inode, size, mtime_ns in record["host_files"]:
        try:
            now = posix.stat(path)
        except OSError:
            if inode:
                raise rootfs.Stale(path) from None
            continue
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (inode, size, mtime_ns):
            raise rootfs.Stale(path)
