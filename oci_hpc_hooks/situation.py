"""What is known of one start beyond the container itself: who starts it, and from where (light module: see :mod:`oci_hpc_hooks.warm`)."""

from __future__ import annotations


def whole_number(text: str, otherwise: int) -> int:
    """The number that ``text`` is in decimal digits, up to nineteen of them."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else otherwise


class Situation:
    """One start of a container, as a launcher's ranks would find it.

    ``launcher``: the launcher's variables, NAME to value; ``unseen``: why they are not known, "" if they are. ``given``: the container's
    variables that did not come from its image; ``inside``: all of them. ``can_set``: variables can still be added (precreate).
    ``private``: the kinds of namespaces ("network", "ipc", "pid", "user") that the container has for itself. ``user``: uid and gid of its
    program inside; ``caller``: the host's of who starts it. ``preserved``: inherited descriptors from 3 up. ``root``: somebody in
    the container is root of the node. ``memlock``: bytes that may be locked, -1 for all; ``shm``: bytes of /dev/shm, -1 where it is not
    known. ``fabric``: it gets devices whose users lock memory.
    """

    __slots__ = ("caller", "can_set", "fabric", "given", "inside", "launcher", "memlock", "preserved", "private", "root", "shm", "unseen",
                 "user")

    def __init__(self) -> None:
        self.launcher: dict[str, str] = {}
        self.unseen = ""
        self.given: dict[str, str] = {}
        self.inside: dict[str, str] = {}
        self.can_set = True
        self.private: tuple[str, ...] = ()
        self.user = (0, 0)
        self.caller = (0, 0)
        self.preserved = 0
        self.root = False
        self.memlock = -1
        self.shm = -1
        self.fabric = False

    def number(self, name: str, otherwise: int = 0) -> int:
        """A variable of the launcher's that is a number."""
        return whole_number(self.launcher.get(name, ""), otherwise)

    @property
    def job_uid(self) -> int:
        """Whose job it is: the host's uid."""
        return self.number("SLURM_JOB_UID", self.caller[0])


class Gpu:
    """One GPU of the node, or one instance of a GPU that is divided, as :mod:`oci_hpc_hooks.inputs.gpus` finds it.

    ``number``: its place among those of its stack (of an instance: among those of its GPU), by PCI address where that is known. ``bus``,
    ``uuid``: "" where they are not known. ``nodes``: device nodes of its own that are there. ``closed``: the cgroup of who starts the
    container does not let it be opened. ``hidden``: directories of the node that show it. ``parts``: its instances.
    """

    __slots__ = ("bus", "closed", "hidden", "nodes", "number", "parts", "uuid")

    def __init__(self, number: int = 0, uuid: str = "", bus: str = "", nodes: tuple[str, ...] = (), closed: bool = False,
                 hidden: tuple[str, ...] = (), parts: tuple[Gpu, ...] = ()) -> None:
        self.number = number
        self.uuid = uuid
        self.bus = bus
        self.nodes = nodes
        self.closed = closed
        self.hidden = hidden
        self.parts = parts


class Node:
    """What is known of a node's GPUs at one start: ``gpus`` by stack; ``drivers``: version by stack, "" where it is not known;
    ``cgroups``: the directories in the paths of this process's cgroups; ``numbered``: which devices there are for each variable."""

    __slots__ = ("cgroups", "drivers", "gpus", "numbered")

    def __init__(self) -> None:
        self.gpus: dict[str, list[Gpu]] = {}
        self.drivers: dict[str, str] = {}
        self.cgroups: tuple[str, ...] = ()
        self.numbered: dict[str, list[str]] = {}
