"""Letting a container's cgroup use devices (light module: the warm path of a hook imports it where there are such).

cgroup v1 has a list that is added to (Documentation/admin-guide/cgroup-v1/devices.rst), in v2 a program of the kernel's decides
(:mod:`oci_hpc_hooks.linux.bpf`). Only cgroups that were made for the container are changed: what a scheduler forbids to the whole job stays
forbidden.
"""

from __future__ import annotations

import posix

from oci_hpc_hooks.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence

    from oci_hpc_hooks.linux.bpf import Numbers

V2 = "/sys/fs/cgroup"
V1 = V2 + "/devices"


def allow_devices(pid: int, container: str, devices: Sequence[Numbers]) -> str:
    """Lets the cgroups of a container, by its id and its first process, read and write devices; returns why it cannot, "" if it can."""
    try:
        version, path = devices_cgroup(pid)
        ours = devices_cgroup(posix.getpid())[1]
        if not path:
            return "the container has no cgroup that rules devices"
        if "/../" in path + "/":
            return "the container's cgroup lies outside of what this hook sees"
        if (ours + "/").startswith(path.rstrip("/") + "/"):
            return ""  # it has none of its own: what the job may, it may
        if version == 1:
            _allow_v1(V1 + path, devices)
            return ""
        for folder in own_cgroups(path, container):
            why = _allow_v2(V2 + folder, devices)
            if why:
                return f"the container's device cgroup cannot be changed: {why}"
        return ""
    except KernelError as error:
        return f"the container's device cgroup cannot be changed: {error.what}"
    except OSError as error:
        return f"the container's device cgroup cannot be changed: {error.strerror}"


def _allow_v1(folder: str, devices: Sequence[Numbers]) -> None:
    fd = posix.open(folder + "/devices.allow", posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        for kind, major, minor in devices:
            posix.write(fd, f"{kind} {major}:{minor} rw".encode())
    finally:
        posix.close(fd)


def _allow_v2(folder: str, devices: Sequence[Numbers]) -> str:
    from oci_hpc_hooks.linux import bpf

    fd = posix.open(folder, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        return bpf.allow(fd, devices)
    finally:
        posix.close(fd)


def own_cgroups(path: str, container: str) -> list[str]:
    """Those on the way to a cgroup that were made for the container: the one that carries its id and what is below (crun makes one more in
    a scope of systemd's, and both have a program); else only the last."""
    names = path.split("/")
    first = next((index for index, name in enumerate(names) if container in name), len(names) - 1)
    return ["/".join(names[:index + 1]) for index in range(first, len(names))]


def devices_cgroup(pid: int) -> tuple[int, str]:
    """The version of the hierarchy that rules devices, and the path of a process in it (cgroups(7)). As for the runtimes, it is the second
    where /sys/fs/cgroup itself is of that kind, whatever else the kernel has."""
    version = 2 if is_file(V2 + "/cgroup.controllers") else 1
    with open(f"/proc/{pid}/cgroup", "rb") as file:
        # Not splitlines(): who names a cgroup may use what it takes for the end of a line, and the kernel forbids newline alone.
        for line in file.read().decode("utf-8", "surrogateescape").split("\n")[:-1]:
            _, controllers, path = line.split(":", 2)
            if (not controllers) if version == 2 else "devices" in controllers.split(","):
                return version, path
    return version, ""


def is_file(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
