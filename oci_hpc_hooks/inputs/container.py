"""What the runtime says about the container: the state on stdin and the bundle's config.json (light module).

Light: the warm path of a hook imports it, so it imports only what costs nothing. Sources: OCI runtime specification 1.2, runtime.md
("State"), config.md and config-linux.md; what crun 1.8 to 1.29 and runc 1.1 to 1.4 really write. Keys that are not named here are ignored.
Everything that is wrong raises :class:`~oci_hpc_hooks.errors.InputError` with the JSON path of the value.
"""

from __future__ import annotations

import posix
from _stat import S_ISBLK

from oci_hpc_hooks.errors import InputError
from oci_hpc_hooks.inputs import jsontext
from oci_hpc_hooks.inputs.jsontext import at, wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Sequence

#: Bytes. Kubernetes allows 256 KiB of annotations, an image manifest 4 MiB.
STATE_LIMIT = 8 << 20
CONFIG_LIMIT = 16 << 20
_COMMAND_LINE_LIMIT = 4 << 20

_PROC = "/proc"

#: The source of the tree of host files that our hooks mount, as config.json and mountinfo show it: the mark by which a second hook sees
#: that the work is done. An image cannot forge it.
MARK = "oci-hpc-hooks"
#: Kinds of what of the host appears in a container at its own path, beside the plan's files.
DIRECTORY, SOCKET, DEVICE = "directory", "socket", "device"
#: podman's own stage: config.json on stdin, what the runtime is to get on stdout.
PRECREATE = "precreate"
#: The file name of our executable for createRuntime, wherever it is installed.
OWN_HOOK = "oci-hpc-hooks-createruntime"


# ------------------------------------------------------------------------------------------------------------ state

class State:
    """The container's state (runtime.md, "State"). ``root`` is crun's addition, absolute here, "" if there is none."""

    __slots__ = ("annotations", "bundle", "id", "pid", "root", "status")

    def __init__(self, id: str, pid: int, bundle: str, status: str, annotations: dict[str, str], root: str = "") -> None:
        self.id = id
        self.pid = pid
        self.bundle = bundle
        self.status = status
        self.annotations = annotations
        self.root = root


def read_stdin(limit: int = STATE_LIMIT) -> bytes:
    """Everything on stdin, read to its end even beyond *limit*: crun fails a container whose hook leaves the pipe early.

    Raises InputError when there is more than *limit*, or when a person's terminal is there instead of a runtime.
    """
    if posix.isatty(0):
        raise InputError(
            "the container's state was expected on standard input, which is a terminal",
            remedy="this program is a hook, started by a container runtime; see oci-hpc-hooks --help for what people run",
        )
    return jsontext.read_fd(0, "the container's state on standard input", limit)


def read_state(data: bytes) -> State:
    """The state in the JSON text *data*.

    Refused: a state without the host pid of the container's init process. crun gives 0 and runc gives 1 to the stages that run inside
    the container's namespaces, and there ``/proc/1`` may still be the host's own init. Raises InputError.
    """
    where = "the container's state:"
    source = jsontext.as_mapping(jsontext.loads(data, "the container's state", STATE_LIMIT), "the container's state")
    identity = jsontext.string(source, "id", where)
    if identity in ("", ".", "..") or "/" in identity or len(identity) > 1024:
        raise wrong(identity, at(where, "id"), "a container id")
    bundle = jsontext.string(source, "bundle", where)
    if not bundle.startswith("/"):
        raise wrong(bundle, at(where, "bundle"), "an absolute path")
    pid = jsontext.integer(source, "pid", where, 0)
    if pid <= 1:
        raise InputError(
            f"the container's state gives pid {pid}, not the host pid of the container's first process: this hook works at createRuntime "
            "(or prestart)",
            remedy="remove the other stages from the hook's descriptor",
            who="site admin",
        )
    root = jsontext.string(source, "root", where, "")
    return State(
        identity,
        pid,
        bundle,
        jsontext.string(source, "status", where, ""),
        jsontext.string_map(source, "annotations", where),
        absolute(bundle, root) if root else "",
    )


def proposed(config: dict[str, object]) -> State:
    """The state of a container that podman is about to make, from the config.json that its precreate hooks get on stdin.

    No process is there yet, so pid is 0. The id stands in no field of its own: podman puts it into the path of the cgroup
    (``/libpod_parent/libpod-ID``, ``machine.slice:libpod:ID``) and into the sources of its own mounts
    (``…-containers/ID/userdata/…``), which tell the bundle too: that of /dev/shm lies where the store has its record, others where podman
    keeps what a reboot forgets. "" where neither tells.
    """
    group = jsontext.string(_linux(config), "cgroupsPath", at(_CONFIG, "linux"), "").replace(":", "-")
    _, mark, identity = group.rpartition("libpod-")
    identity = identity if mark else ""
    bundle = ""
    for where, _, source, _ in mounts(config):
        above, mark, _ = source.partition("/userdata/")
        store, _, name = above.rpartition("/")
        if mark and _is_id(name) and store.endswith("-containers") and identity in (name, "") and (not bundle or where == "/dev/shm"):
            identity, bundle = name, above + "/userdata"
    return State(identity if _is_id(identity) else "", 0, bundle, "creating", annotations_of(config))


def device_numbers(status: posix.stat_result) -> tuple[str, int, int]:
    """"c" or "b", major and minor number of a device node: what a cgroup's rules go by."""
    return "b" if S_ISBLK(status.st_mode) else "c", posix.major(status.st_rdev), posix.minor(status.st_rdev)


def _is_id(text: str) -> bool:
    return len(text) == 64 and all(char in "0123456789abcdef" for char in text)


def absolute(base: str, path: str) -> str:
    """*path* taken from the directory *base*, without empty and "." components; ".." is left for the kernel."""
    whole = path if path.startswith("/") else f"{base}/{path}"
    return "/" + "/".join([name for name in whole.split("/") if name not in ("", ".")])


# ------------------------------------------------------------------------------------------------------------ config.json

_CONFIG = "config.json:"


def read_config(state: State) -> dict[str, object]:
    """The bundle's config.json.

    Some crun releases (1.26 and later) give a wrong bundle; if it has no config.json, the bundle that the runtime was started with is
    read from its command line, or is its working directory, and *state* is corrected. Raises InputError.
    """
    try:
        data = _config_file(state.bundle)
    except jsontext.MissingFile as missing:
        bundle = _bundle_of_runtime(posix.getppid())
        if not bundle:
            raise
        try:
            data = _config_file(bundle)
        except InputError:
            raise missing from None
        state.bundle = bundle
    return jsontext.as_mapping(jsontext.loads(data, "config.json", CONFIG_LIMIT), "config.json")


def _config_file(bundle: str) -> bytes:
    return jsontext.read_file(f"{bundle.rstrip('/')}/config.json", "the container's configuration", CONFIG_LIMIT)


def _bundle_of_runtime(pid: int) -> str:
    try:
        cwd = posix.readlink(f"{_PROC}/{pid}/cwd")
    except OSError:
        return ""
    arguments = command_line(pid)
    for index, argument in enumerate(arguments[1:], 1):
        if argument in ("-b", "--bundle", "-bundle") and index + 1 < len(arguments):
            return absolute(cwd, arguments[index + 1])
        if argument.startswith("--bundle="):
            return absolute(cwd, argument[len("--bundle="):])
    return cwd


def arguments(config: dict[str, object]) -> list[str]:
    """process.args, [] if there is no process."""
    return jsontext.strings(jsontext.mapping(config, "process", _CONFIG), "args", at(_CONFIG, "process"))


#: Words of a command line that are looked at.
WORDS_LIMIT = 128
_BETWEEN_WORDS = {ord(char): " " for char in ";&|()'\"\0"}


def command_words(args: Sequence[str]) -> list[str]:
    """The words of process.args that could be programs, those inside an argument like ``sh -c "…"`` too; the first is args[0].

    No shell's reading: quotes and variables are beyond it, and a word too many does no harm. Options, NAME=value and numbers are left out:
    so a run with another --seed is the same run.
    """
    words: list[str] = []
    for argument in args:
        inner = argument.translate(_BETWEEN_WORDS).split() if words else [argument]
        words += [word for word in inner if not word.startswith("-") and "=" not in word and not word.isdigit()]
        if len(words) >= WORDS_LIMIT:
            break
    return words[:WORDS_LIMIT]


def environment(config: dict[str, object]) -> list[str]:
    """process.env: NAME=value, in the order of the file; image-controlled."""
    return jsontext.strings(jsontext.mapping(config, "process", _CONFIG), "env", at(_CONFIG, "process"))


def working_directory(config: dict[str, object]) -> str:
    """process.cwd, a path in the container."""
    return jsontext.string(jsontext.mapping(config, "process", _CONFIG), "cwd", at(_CONFIG, "process"), "/")


def user(config: dict[str, object]) -> tuple[int, int]:
    """process.user: uid and gid in the container."""
    where = at(_CONFIG, "process")
    found = jsontext.mapping(jsontext.mapping(config, "process", _CONFIG), "user", where)
    return jsontext.integer(found, "uid", at(where, "user"), 0), jsontext.integer(found, "gid", at(where, "user"), 0)


def groups(config: dict[str, object]) -> list[int]:
    """process.user: gid and additionalGids, in the container."""
    where = at(at(_CONFIG, "process"), "user")
    found = jsontext.mapping(jsontext.mapping(config, "process", _CONFIG), "user", at(_CONFIG, "process"))
    more = jsontext.array(found, "additionalGids", where)
    return [jsontext.integer(found, "gid", where, 0), *[gid for gid in more if isinstance(gid, int)]]


#: RLIM_INFINITY as Go's encoder writes it.
_UNLIMITED = (1 << 64) - 1


def rlimit(config: dict[str, object], name: str, otherwise: Callable[[], int]) -> int:
    """The soft limit of process.rlimits, -1 for none; where the runtime is told nothing, what ``otherwise`` gives."""
    where = at(at(_CONFIG, "process"), "rlimits")
    for index, item in enumerate(jsontext.array(jsontext.mapping(config, "process", _CONFIG), "rlimits", at(_CONFIG, "process"))):
        limit = jsontext.as_mapping(item, at(where, index))
        if jsontext.string(limit, "type", at(where, index)) == name:
            soft = jsontext.integer(limit, "soft", at(where, index))
            return -1 if soft == _UNLIMITED else soft
    return otherwise()


def rootfs(config: dict[str, object], bundle: str) -> str:
    """root.path, absolute: a relative one starts at *bundle*."""
    where = at(_CONFIG, "root")
    path = jsontext.string(jsontext.mapping(config, "root", _CONFIG), "path", where)
    if not path:
        raise wrong(path, at(where, "path"), "a path")
    return absolute(bundle, path)


def read_only(config: dict[str, object]) -> bool:
    """root.readonly: whether the runtime will remount the rootfs read-only (``podman run --read-only``)."""
    return jsontext.boolean(jsontext.mapping(config, "root", _CONFIG), "readonly", at(_CONFIG, "root"))


def mounts(config: dict[str, object]) -> list[tuple[str, str, str, list[str]]]:
    """mounts: (destination, type, source, options), in the order in which they are made. A relative destination starts at "/"."""
    found = []
    for index, item in enumerate(jsontext.array(config, "mounts", _CONFIG)):
        where = at(at(_CONFIG, "mounts"), index)
        mount = jsontext.as_mapping(item, where)
        destination = absolute("/", jsontext.string(mount, "destination", where))
        found.append((
            destination,
            jsontext.string(mount, "type", where, ""),
            jsontext.string(mount, "source", where, ""),
            jsontext.strings(mount, "options", where),
        ))
    return found


def _linux(config: dict[str, object]) -> dict[str, object]:
    return jsontext.mapping(config, "linux", _CONFIG)


def namespaces(config: dict[str, object]) -> list[tuple[str, str]]:
    """linux.namespaces: the types that the container does not have from the runtime, each with "" if the runtime makes it, else the path of
    the one it joins."""
    where = at(_CONFIG, "linux.namespaces")
    found = []
    for index, item in enumerate(jsontext.array(_linux(config), "namespaces", at(_CONFIG, "linux"))):
        namespace = jsontext.as_mapping(item, at(where, index))
        found.append((jsontext.string(namespace, "type", at(where, index)), jsontext.string(namespace, "path", at(where, index), "")))
    return found


def user_namespace(config: dict[str, object]) -> str | None:
    """The container's own user namespace: None if it has none, "" if the runtime makes it, else the path of the one it joins.

    In a rootless podman container without ``--userns`` this is None: podman itself is in the namespace already, and so is the hook.
    """
    return next((path for kind, path in namespaces(config) if kind == "user"), None)


def uid_mappings(config: dict[str, object]) -> list[tuple[int, int, int]]:
    """linux.uidMappings: (first id in the container, first id outside, how many)."""
    where = at(_CONFIG, "linux.uidMappings")
    found = []
    for index, item in enumerate(jsontext.array(_linux(config), "uidMappings", at(_CONFIG, "linux"))):
        entry = jsontext.as_mapping(item, at(where, index))
        inside, outside, size = (jsontext.integer(entry, key, at(where, index)) for key in ("containerID", "hostID", "size"))
        found.append((inside, outside, size))
    return found


def mount_label(config: dict[str, object]) -> str:
    """linux.mountLabel: the SELinux context of the container's mounts, "" without SELinux."""
    return jsontext.string(_linux(config), "mountLabel", at(_CONFIG, "linux"), "")


def rootfs_propagation(config: dict[str, object]) -> str:
    """linux.rootfsPropagation: "shared", "slave", "private", "unbindable", or "" for the runtime's default."""
    return jsontext.string(_linux(config), "rootfsPropagation", at(_CONFIG, "linux"), "")


def hooks(config: dict[str, object], stage: str) -> list[object]:
    """hooks.STAGE: what the engine lets the runtime start at that stage."""
    return jsontext.array(jsontext.mapping(config, "hooks", _CONFIG), stage, at(_CONFIG, "hooks"))


def own_hook(entry: object) -> bool:
    """Whether an entry of hooks.createRuntime is this project's: one container is served by one of its hooks."""
    path = entry.get("path") if isinstance(entry, dict) else None
    return isinstance(path, str) and path.rpartition("/")[2] == OWN_HOOK


def annotations_of(config: dict[str, object]) -> dict[str, str]:
    """annotations of config.json; the runtime repeats them in the state."""
    return jsontext.string_map(config, "annotations", _CONFIG)


# ------------------------------------------------------------------------------------------------------------ who started us

def command_line(pid: int) -> list[str]:
    """The arguments of process *pid*, [] if they cannot be read (proc(5))."""
    try:
        data = jsontext.read_file(f"{_PROC}/{pid}/cmdline", "the command line", _COMMAND_LINE_LIMIT)
    except InputError:
        return []
    return [argument.decode("utf-8", "surrogateescape") for argument in data.split(b"\0")[:-1]]


def parent(pid: int) -> int:
    """The parent of process *pid*, 0 if there is none or it cannot be seen (proc(5), the fourth field of stat)."""
    try:
        data = jsontext.read_file(f"{_PROC}/{pid}/stat", "the process status", 4096)
        return int(data[data.rindex(b")") + 1:].split()[1])
    except (InputError, ValueError, IndexError):
        return 0
