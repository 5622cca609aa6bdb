"""A plan's actions as edits of the configuration that the runtime is about to get (podman's precreate stage; light module).

The runtime then makes the mounts that :mod:`oci_hpc_hooks.apply.rootfs` would make in a container that is being created. No policy
lives here.
"""

from __future__ import annotations

import posix

from oci_hpc_hooks.inputs import container, jsontext
from oci_hpc_hooks.inputs.container import DEVICE, DIRECTORY, MARK, SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Of every file: nobody in the container can write through it, and nothing mounted on it leaves the container.
FILE_OPTIONS = ["bind", "ro", "nosuid", "nodev", "rprivate"]


#: What :data:`rootfs._ATTRIBUTES` are in the runtime's words.
EXTRA_OPTIONS = {
    DIRECTORY: ["bind", "rw", "nosuid", "nodev", "rprivate"],
    SOCKET: ["bind", "ro", "nosuid", "nodev", "rprivate"],
    DEVICE: ["bind", "ro", "nosuid", "noexec", "rprivate"],
}


def is_injected(config: dict[str, Any]) -> bool:
    """Whether one of our hooks has edited this configuration."""
    return any(source == MARK for _, _, source, _ in container.mounts(config))


def inject(config: dict[str, Any], record: dict[str, Any], cache_file: str, size: int) -> None:
    """Adds the mounts of a record to the configuration, after all that are there.

    ``cache_file`` holds the record's loader cache, "" if that is in place; ``size`` is what a tree takes (bytes). A module directory is a
    tree of its own: the runtime can mount what is on the host, and not a folder of another mount of its own.
    """
    mounts: list[dict[str, Any]] = []
    tree = [(row[0], row[4]) for row in record["tree"]]
    if record["tree_at"]:
        mounts += _tree(record["tree_at"], tree, size)
    mounts += [file_mount(row[0], row[4]) for row in (*record["in_place"], *record["files"])]
    for folder, target, *_ in record["modules"]:
        mounts += _tree(target, [(source, name[len(folder) + 1:]) for source, name in tree if name.startswith(folder + "/")], size)
    if cache_file:
        mounts.append(file_mount(cache_file, record["cache"]["target"]))
    config["mounts"] = [*(config.get("mounts") or ()), *mounts]


def _tree(where: str, files: list[tuple[str, str]], size: int) -> list[dict[str, Any]]:
    options = ["nosuid", "nodev", "ro", "mode=755", f"size={size}"]
    top = {"destination": where, "type": "tmpfs", "source": MARK, "options": options}
    return [top, *[file_mount(source, f"{where}/{name}") for source, name in files]]


def file_mount(source: str, destination: str) -> dict[str, Any]:
    """A file of the host, read-only, as config.json has it."""
    return {"destination": destination, "type": "bind", "source": source, "options": FILE_OPTIONS}


def wire_up(config: dict[str, Any], extras: list[tuple[str, str]], variables: dict[str, str], rules: list[dict[str, Any]]) -> None:
    """Adds what is particular to a start: (kind, path) of what of the host appears at its own path, variables, and the ``rules`` by which
    the container's cgroup lets it use the devices among them."""
    config["mounts"] = [*(config.get("mounts") or ()), *[
        {"destination": path, "type": "bind", "source": path, "options": EXTRA_OPTIONS[kind]} for kind, path in extras]]
    if rules:
        resources = _part(_part(config, "linux"), "resources")
        resources["devices"] = [*_list(resources, "devices"), *rules]
    if variables:
        kept = [item for item in container.environment(config) if item.partition("=")[0] not in variables]
        _part(config, "process")["env"] = [*kept, *[f"{name}={value}" for name, value in variables.items()]]


def join(config: dict[str, Any], groups: list[int]) -> None:
    """Makes the container's program a member of more groups."""
    user = _part(_part(config, "process"), "user")
    user["additionalGids"] = [*_list(user, "additionalGids"), *groups]


def hide(config: dict[str, Any], paths: list[str]) -> None:
    """Lets the runtime cover directories of the node with empty ones (config-linux.md, maskedPaths: those that are not there are passed
    over). A mount of our own there runc would refuse, inside of /proc."""
    linux = _part(config, "linux")
    linux["maskedPaths"] = [*_list(linux, "maskedPaths"), *paths]


def _part(of: dict[str, Any], key: str) -> dict[str, Any]:
    """The object at this key, there from now on. Raises InputError."""
    made = of[key] = jsontext.mapping(of, key, "config.json:")
    return made


def _list(of: dict[str, Any], key: str) -> list[Any]:
    return jsontext.array(of, key, "config.json:")


def device_rules(extras: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What lets a container use the devices among (kind, path). Raises OSError."""
    rules = []
    for path in [path for kind, path in extras if kind == DEVICE]:
        kind, major, minor = container.device_numbers(posix.stat(path))
        rules.append({"allow": True, "type": kind, "major": major, "minor": minor, "access": "rw"})
    return rules


def has_own_hook(config: dict[str, Any]) -> bool:
    """Whether our createRuntime hook will be started for this container too."""
    return any(container.own_hook(entry) for entry in container.hooks(config, "createRuntime"))


def answer(stdin: bytes, config: dict[str, Any], leave: bool, edited: bool) -> None:
    """Writes what podman is to go on with, to stdout: the configuration, edited or not, without our createRuntime hook unless the rest
    of the work is left to it. Where there is nothing to change, it is byte for byte what podman gave."""
    data = stdin
    ours = has_own_hook(config)
    if ours and not leave:
        hooks = config["hooks"]
        hooks["createRuntime"] = [entry for entry in hooks["createRuntime"] if not container.own_hook(entry)]
    if edited or (ours and not leave):
        data = jsontext.dumps(config).encode()
    jsontext.write_fd(1, data)
