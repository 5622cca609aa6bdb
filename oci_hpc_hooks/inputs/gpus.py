"""The GPUs of this node, read from /proc and /sys by the rules of profiles (light module: each start that may get a GPU imports it).

No device is opened: the first process to open a GPU may wait seconds for it, and a vendor's library would have to run in the hook. What
the caller's device cgroup lets be opened tells access(2): it asks the device cgroup like open(2) does, in cgroup v1 and in v2, and answers
EPERM where file modes would give EACCES (Linux include/linux/device_cgroup.h, devcgroup_inode_permission; fs/open.c, do_faccessat). The
list in ``devices.list`` of v1 does not tell: it shows no exceptions from "all devices".
"""

from __future__ import annotations

import posix
from _stat import S_ISBLK, S_ISCHR, S_ISDIR

from oci_hpc_hooks.errors import InputError
from oci_hpc_hooks.inputs import jsontext
from oci_hpc_hooks.linux import syscalls
from oci_hpc_hooks.situation import Gpu, Node, whole_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from oci_hpc_hooks.model import ResolvedProfile

#: GPUs of a stack, instances of a GPU, entries of a directory, bytes of a file: what is beyond is no such thing.
MOST = 256
_MOST_NAMES = 4096
_FILE_LIMIT = 1 << 16

#: How a device node is there.
ABSENT, OPEN, CLOSED = "", "open", "closed"


def look(path: str) -> str:
    """Whether a path is a device node, and whether the caller's device cgroup lets it be opened."""
    try:
        mode = posix.stat(path, follow_symlinks=False).st_mode
    except OSError:
        return ABSENT
    if not (S_ISCHR(mode) or S_ISBLK(mode)):
        return ABSENT
    return CLOSED if syscalls.may_access(path, posix.R_OK | posix.W_OK) == syscalls.EPERM else OPEN


def node(plan: dict[str, Any], root: str = "", look: Callable[[str], str] = look) -> Node:
    """What the rules of a plan's record (``gpus``) find on this node, below ``root``. Never raises for what it cannot read: a GPU that
    cannot be told is none."""
    found = Node()
    for name, rule in plan["stacks"].items():
        found.gpus[name] = _gpus(rule, root, look)
        if rule["requirements"]:
            found.drivers[name] = _content(root + rule["requirements"]["driver"])
        for variable, pattern in rule["numbered"].items():
            found.numbered[variable] = [path for path, _ in _matching(pattern, root) if look(path) != ABSENT]
    lines = _content(root + "/proc/self/cgroup").splitlines()
    found.cgroups = tuple(dict.fromkeys([part for line in lines for part in line.split(":", 2)[-1].split("/") if part]))
    return found


def of_profile(profile: ResolvedProfile) -> list[Gpu]:
    """The GPUs of one stack; for the command line."""
    import dataclasses  # no start with a hook comes here

    return node({"stacks": {profile.name: dataclasses.asdict(profile.gpus)}}).gpus[profile.name] if profile.gpus is not None else []


def all_nodes(plan: dict[str, Any]) -> list[str]:
    """The device nodes of every GPU of these stacks, whoever may get it."""
    found = node(plan)
    return [path for gpus in found.gpus.values() for gpu in gpus for one in (gpu, *gpu.parts) for path in one.nodes]


def _gpus(rule: dict[str, Any], root: str, look: Callable[[str], str]) -> list[Gpu]:
    found = []
    for path, stars in _matching(rule["each"], root)[:MOST]:
        facts = _Facts(root + path, stars)
        if any(facts.get(name) != value for name, value in rule["only"].items()):
            continue
        nodes = [node for node in [facts.fill(text) for text in rule["devices"]] if node]
        nodes += _drm(facts.fill(rule["drm"]), root)
        seen = {node: look(node) for node in nodes}
        nodes = [node for node in nodes if seen[node] != ABSENT]
        if not nodes:
            continue
        bus = facts.fill(rule["bus"]).lower()
        hidden = tuple([path for path in [facts.fill(text) for text in rule["hidden"]] if path])
        gpu = Gpu(0, facts.fill(rule["uuid"]), bus, tuple(nodes), CLOSED in seen.values(), hidden)
        if rule["parts"]:
            gpu.parts = _parts(rule["parts"], facts, root, look)
        found.append((_bus_order(bus), [_natural(star) for star in stars], gpu))
    found.sort(key=lambda entry: entry[:2])
    gpus = [gpu for _, _, gpu in found]
    for number, gpu in enumerate(gpus):
        gpu.number = number
    return gpus


def _parts(rule: dict[str, Any], of: _Facts, root: str, look: Callable[[str], str]) -> tuple[Gpu, ...]:
    found = []
    each = of.fill(rule["each"])
    for path, stars in _matching(each, root)[:MOST] if each else ():
        nodes = []
        for file, device in rule["devices"].items():
            # ${1} of these texts is of the instance, all other facts are of the GPU or of that file.
            own = _Facts(root + path, stars, of)
            place = own.fill(file)
            node = _Facts(root + place, stars, of).fill(device) if place else ""
            if node:
                nodes.append(node)
        seen = {node: look(node) for node in nodes}
        nodes = [node for node in dict.fromkeys(nodes) if seen[node] != ABSENT]
        if nodes:
            uuid = _Facts(root + path, stars, of).fill(rule["uuid"])
            found.append(([_natural(star) for star in stars], Gpu(0, uuid, "", tuple(nodes), CLOSED in seen.values())))
    found.sort(key=lambda entry: entry[0])
    parts = [part for _, part in found]
    for number, part in enumerate(parts):
        part.number = number
    return tuple(parts)


def _drm(folder: str, root: str) -> list[str]:
    """The nodes of one GPU: names such as card0 and renderD128 in a directory of sysfs."""
    names = _names(root + folder) if folder else []
    return [f"/dev/dri/{name}" for name in names if name.removeprefix("card").removeprefix("renderD").isdigit()]


class _Facts:
    """Of a file what its lines say, ``NAME: VALUE`` or ``NAME VALUE``; of a directory the content of its files."""

    def __init__(self, path: str, stars: tuple[str, ...], above: _Facts | None = None) -> None:
        self.path = path
        self.known = {str(number): star for number, star in enumerate(stars, 1)}
        self.above = above
        try:
            self.folder = S_ISDIR(posix.stat(path).st_mode)
        except OSError:
            self.folder = False
        for line in () if self.folder else _content(path).splitlines():
            name, colon, value = line.partition(":")
            if not colon or not value[:1].isspace():
                name, _, value = line.strip().partition(" ")
            self.known.setdefault(name.strip(), value.strip())

    def get(self, name: str) -> str:
        if name not in self.known and self.folder:
            self.known[name] = _content(f"{self.path}/{name}").strip()
        value = self.known.get(name, "")
        return value or (self.above.get(name) if self.above is not None else "")

    def fill(self, text: str) -> str:
        """``text`` with facts in it, "" if one is lacking, or would lead somewhere else."""
        head, *rest = text.split("${")
        for part in rest:
            name, _, after = part.partition("}")
            value = self.get(name)
            if not value or "/" in value or value == "..":
                return ""
            head += value + after
        return head


def _matching(pattern: str, root: str) -> list[tuple[str, tuple[str, ...]]]:
    """The paths that a pattern stands for, and for each what its stars stand for, one star to a part."""
    found: list[tuple[str, tuple[str, ...]]] = [("", ())]
    for part in pattern.strip("/").split("/"):
        before, star, after = part.partition("*")
        if not star:
            found = [(f"{path}/{part}", stars) for path, stars in found]
            continue
        longer = []
        for path, stars in found:
            for name in _names(root + path):
                if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
                    longer.append((f"{path}/{name}", (*stars, name[len(before):len(name) - len(after)])))
        found = longer[:_MOST_NAMES]
    return [(path, stars) for path, stars in found if _is_there(root + path)]


def _is_there(path: str) -> bool:
    try:
        posix.stat(path)
        return True
    except OSError:
        return False


def _names(folder: str) -> list[str]:
    try:
        return sorted(posix.listdir(folder)[:_MOST_NAMES])
    except OSError:
        return []


def _content(path: str) -> str:
    try:
        return jsontext.read_file(path, "a fact of a GPU", _FILE_LIMIT).decode("utf-8", "replace")
    except InputError:
        return ""


def _bus_order(address: str) -> list[int]:
    """A PCI address, ``DOMAIN:BUS:DEVICE.FUNCTION`` in hexadecimal digits, as numbers; [] if it is none."""
    try:
        return [int(part, 16) for part in address.replace(".", ":").split(":")]
    except ValueError:
        return []


def _natural(text: str) -> tuple[int, str]:
    """10 after 9."""
    return whole_number(text, -1), text
