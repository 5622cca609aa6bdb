"""Who starts a container, and from where: podman's own environment, and what of the node the container shares (light module).

At precreate podman itself is this process's parent, and podman was started by the rank's launcher: its environment (proc(5)) holds
what the launcher told the rank. At createRuntime podman may be gone, and what the user passed on into the container is all there is.
Never an image's own variables: they could lead to any directory.
"""

from __future__ import annotations

import posix
from _stat import S_ISDIR, S_ISSOCK, S_ISVTX

from oci_hpc_hooks.errors import InputError
from oci_hpc_hooks.inputs import container, jsontext
from oci_hpc_hooks.linux import namespaces
from oci_hpc_hooks.situation import Situation, whole_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Sequence

#: Bytes; the kernel lets a program have 6 MiB of arguments and environment.
ENVIRONMENT_LIMIT = 8 << 20

_KINDS = ("network", "ipc", "pid", "user")


def situation(config: dict[str, Any], image_env: Sequence[str] | None, stage: str) -> Situation:
    """What :mod:`oci_hpc_hooks.decide.job` goes by. ``image_env``: NAME=value of the image, None if it is not known; then none of the
    container's variables counts as the caller's. Raises InputError for a config.json that is not what the specification says."""
    now = Situation()
    now.inside = variables(container.environment(config))
    if image_env is not None:
        image = set(image_env)
        now.given = variables([item for item in container.environment(config) if item not in image])
    now.can_set = stage == container.PRECREATE
    parent = posix.getppid()
    words = container.command_line(parent)
    if now.can_set:
        now.launcher, now.unseen = of_podman(parent, words)
    else:
        # podman 4.8 and later hands its environment on to the runtime, which is this process's parent.
        now.launcher = {**process_environment(parent), **now.given}
        now.unseen = "podman's own environment is seen at precreate only"
    now.preserved = preserved_descriptors(words)
    now.private = private_namespaces(config)
    now.user = container.user(config)
    now.caller = namespaces.caller_uid(), namespaces.caller_gid()
    outside = [(first, count) for _, first, count in container.uid_mappings(config)]
    now.root = now.caller[0] == 0 and ("user" not in now.private or any(first <= 0 < first + count for first, count in outside))
    now.memlock = container.rlimit(config, "RLIMIT_MEMLOCK", lambda: memlock_of(parent))
    now.shm = shm_size(config)
    return now


def of_podman(pid: int, words: Sequence[str]) -> tuple[dict[str, str], str]:
    """The environment of podman, and "" or why it tells nothing."""
    if "system" in words and "service" in words[words.index("system"):]:
        return {}, "podman runs as a service, whose environment is not the caller's"
    if not words:
        return {}, "the process that started this hook cannot be looked at"
    return process_environment(pid), ""


def process_environment(pid: int) -> dict[str, str]:
    """The variables that process *pid* was started with, {} if they cannot be read; those that are no UTF-8 are left out, since
    JSON cannot hold them."""
    try:
        data = jsontext.read_file(f"/proc/{pid}/environ", "podman's environment", ENVIRONMENT_LIMIT)
    except InputError:
        return {}
    items = []
    for item in data.split(b"\0"):
        try:
            items.append(item.decode("utf-8"))
        except UnicodeDecodeError:
            pass
    return variables(items)


def variables(items: Sequence[str]) -> dict[str, str]:
    """NAME=value as a dict; of one name the last counts."""
    pairs = [item.partition("=") for item in items]
    return {name: value for name, equals, value in pairs if name and equals}


def preserved_descriptors(words: Sequence[str]) -> int:
    """How many descriptors from 3 up podman or its runtime hands on: ``--preserve-fds N``."""
    for word, value in zip(words, [*words[1:], ""]):
        if word.startswith("--preserve-fds="):
            value = word[len("--preserve-fds="):]
        elif word != "--preserve-fds":
            continue
        return whole_number(value, 0)
    return 0


def private_namespaces(config: dict[str, Any]) -> tuple[str, ...]:
    """Which of the namespaces that ranks care for the container has for itself. An ipc or pid namespace with a path is another container's,
    which it was asked to share; podman makes a network namespace beforehand and gives its path too. Of the ipc namespace only /dev/shm
    counts, which may be the node's all the same (``--volume /dev/shm:/dev/shm``)."""
    found = []
    for kind, path in container.namespaces(config):
        if kind not in _KINDS:
            continue
        if kind == "network" and path:
            try:
                if posix.stat(path).st_ino == posix.stat("/proc/self/ns/net").st_ino:
                    continue
            except OSError:
                pass
        elif path or (kind == "ipc" and has_the_nodes_shm(config)):
            continue
        found.append(kind)
    return tuple(found)


def has_the_nodes_shm(config: dict[str, Any]) -> bool:
    """Whether the container's /dev/shm is that of the node."""
    sources = [source for where, kind, source, options in container.mounts(config)
               if where == "/dev/shm" and (kind == "bind" or "bind" in options or "rbind" in options)]
    try:
        status = [posix.stat(path) for path in (*sources[-1:], "/dev/shm")]
    except OSError:
        return False
    return len(status) == 2 and status[0].st_dev == status[1].st_dev and status[0].st_ino == status[1].st_ino


def memlock_of(pid: int) -> int:
    """Bytes that process *pid* may lock, -1 for all (proc(5), limits)."""
    try:
        text = jsontext.read_file(f"/proc/{pid}/limits", "the limits of podman", 1 << 16).decode("ascii", "replace")
    except InputError:
        return -1
    for line in text.splitlines():
        if line.startswith("Max locked memory"):
            soft = line[len("Max locked memory"):].split()[:1]
            return whole_number("".join(soft), -1)
    return -1


def shm_size(config: dict[str, Any]) -> int:
    """Bytes of the container's /dev/shm, -1 where it has none that is known."""
    size = -1
    for where, kind, source, options in container.mounts(config):
        if where != "/dev/shm":
            continue
        size = -1
        if kind == "bind" or "bind" in options or "rbind" in options:
            try:
                status = posix.statvfs(source)
                size = status.f_blocks * status.f_frsize
            except OSError:
                pass
        for option in options:
            if option.startswith("size="):
                size = _bytes(option[5:])
    return size


def _bytes(text: str) -> int:
    unit = {"k": 10, "m": 20, "g": 30}.get(text[-1:].lower(), 0)
    number = whole_number(text[:-1] if unit else text, -1)
    return number << unit if number >= 0 else -1


# ------------------------------------------------------------------------------------------------ what there is on the node


def owners(now: Situation) -> tuple[int, ...]:
    """Whose directories a start may get: the caller's own. Root also starts containers in other users' jobs (at createRuntime, where a
    directory is mounted by the descriptor that was looked at); but whoever is root by sudo has perhaps chosen podman's environment, and
    not what it may reach, and gets none of root's."""
    own = posix.geteuid()
    if own != 0 or now.caller[0] != 0:
        return (own,)
    if "SUDO_UID" in now.launcher:
        return (now.number("SUDO_UID", -1),)
    return (own,) if now.can_set else (own, now.job_uid)


def why_movable(path: str) -> str:
    """Whether others than root could put another thing at this path, "" if they cannot."""
    while path:
        path = path.rpartition("/")[0]
        try:
            status = posix.stat(path or "/", follow_symlinks=False)
        except OSError as error:
            return f"{path} cannot be looked at: {error.strerror}"
        if not S_ISDIR(status.st_mode):
            return f"{path} on its way is a link"
        if status.st_uid != 0 or (status.st_mode & 0o022 and not status.st_mode & S_ISVTX):
            return f"others than root could put another one in its place (by way of {path or '/'})"
    return ""


def why_no_directory(path: str, owners: Sequence[int]) -> str:
    """Why a job's directory cannot be brought into the container, "" if it can."""
    try:
        status = posix.stat(path)
    except (OSError, ValueError) as error:
        return f"it cannot be looked at: {error.strerror if isinstance(error, OSError) else 'it is no path'}"
    if not S_ISDIR(status.st_mode):
        return "it is no directory"
    return "" if status.st_uid in owners else f"it belongs to uid {status.st_uid}, not to the user of the job"


def is_there(path: str) -> bool:
    """Whether anything is at this path, whatever it is."""
    try:
        posix.stat(path, follow_symlinks=False)
        return True
    except (OSError, ValueError):
        return False


def why_no_socket(path: str) -> str:
    """The same for a socket."""
    try:
        return "" if S_ISSOCK(posix.stat(path).st_mode) else "it is no socket"
    except OSError as error:
        return f"it cannot be looked at: {error.strerror}"
