"""Letting a container's cgroup use devices (light module: the warm path of a hook imports it where there are such).

cgroup v1 has a list that is added to (Documentation/admin-guide/cgroup-v1/devices.rst). In v2 a BPF program decides, which is made when the
runtime makes the cgroup: there the rules have to be in config.json (precreate).
"""

from __future__ import annotations

import posix
from _stat import S_ISBLK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence

V1 = "/sys/fs/cgroup/devices"


def allow_devices(pid: int, paths: Sequence[str]) -> str:
    """Lets the cgroup of process *pid* read and write the device nodes; returns why it cannot, "" if it can."""
    folder = devices_cgroup(pid)
    if not folder:
        return "the container's cgroup is of version 2, which takes no rules any more at this stage"
    try:
        fd = posix.open(folder + "/devices.allow", posix.O_WRONLY | posix.O_CLOEXEC)
    except OSError as error:
        return f"the container's device cgroup cannot be changed: {error.strerror}"
    try:
        for path in paths:
            status = posix.stat(path)
            kind = "b" if S_ISBLK(status.st_mode) else "c"
            posix.write(fd, f"{kind} {posix.major(status.st_rdev)}:{posix.minor(status.st_rdev)} rw".encode())
    except OSError as error:
        return f"the container's device cgroup cannot be changed: {error.strerror}"
    finally:
        posix.close(fd)
    return ""


def devices_cgroup(pid: int) -> str:
    """The directory of a process in the hierarchy of the v1 devices controller, "" where there is none (cgroups(7))."""
    with open(f"/proc/{pid}/cgroup", "rb") as file:
        for line in file.read().decode("utf-8", "surrogateescape").splitlines():
            _, controllers, path = line.split(":", 2)
            if "devices" in controllers.split(",") and "/../" not in path + "/":
                return V1 + path
    return ""
