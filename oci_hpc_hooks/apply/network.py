"""Network interfaces of the node, brought into a container's own network namespace.

Only a start whose plan asks for some imports this, for pyroute2 takes longer to import than all else that a hook does. The work is done
from the node's namespaces, before the hook joins any of the container's: creating and moving interfaces needs CAP_NET_ADMIN in both.

A moved interface is back on the node when the container's network namespace ends (network_namespaces(7)): a physical one; a virtual one,
such as a veth, ends with it. The kernel takes addresses and routes away on each way; addresses are given again on the way in, and when an
injection is taken back.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from oci_hpc_hooks.errors import HookError, KernelError
from oci_hpc_hooks.linux import syscalls

CLONE_NEWNET = 0x40000000  # linux/sched.h

#: RT_SCOPE_UNIVERSE, RT_SCOPE_SITE: addresses that are worth to be carried; the kernel makes those of a link itself.
_LASTING_SCOPES = (0, 200)
#: Modes of new interfaces by which containers of one node reach one another too (linux/if_link.h).
_KINDS: Dict[str, Dict[str, Any]] = {"macvlan": {"macvlan_mode": "bridge"}, "ipvlan": {"ipvlan_mode": 0}}  # IPVLAN_MODE_L2

_INFINIBAND = "/sys/class/net/{}/device/infiniband"
_SHARED = "/sys/module/ib_core/parameters/netns_mode"


class Network:
    """The network namespace of one container, by its first process, and what has been brought into it."""

    def __init__(self, pid: int) -> None:
        self.theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.ours = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.told: List[str] = []  # names inside
        self.notes: List[str] = []
        self._moved: List[Tuple[str, str, List[Tuple[str, int]]]] = []  # name on the node, name inside, addresses
        self._new: List[str] = []

    @property
    def is_the_nodes(self) -> bool:
        """Whether the container has no network namespace of its own."""
        return os.fstat(self.theirs).st_ino == os.fstat(self.ours).st_ino

    def bring(self, rows: Sequence[Dict[str, Any]]) -> None:
        """Brings in the interfaces of a record, all or none. Raises HookError."""
        try:
            with _link() as node:
                names = {link.get_attr("IFLA_IFNAME"): link["index"] for link in node.get_links()}
                for row in rows:
                    found = [name for name in sorted(names) if _fits(name, row["device"])]
                    if not found:
                        raise HookError(f"this node has no network interface {row['device']}, or another container has it",
                                        remedy="wait for that container to end, or start without", who="user")
                    for name in found:
                        if row["mode"] == "move":
                            self._move(node, names[name], name, row["name"] or name)
                        else:
                            self._make(node, names[name], name, row)
        except BaseException:
            self.take_back()
            raise

    def _move(self, node: Any, index: int, name: str, inside: str) -> None:
        addresses = [(address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS"), address["prefixlen"])
                     for address in node.get_addr(index=index) if address["scope"] in _LASTING_SCOPES]
        self.notes += left_behind(name)
        with _kernel(f"the interface {name} cannot be moved into the container"):
            node.link("set", index=index, net_ns_fd=self.theirs, ifname=inside)
        self._moved.append((name, inside, addresses))
        self._configure(inside, addresses)

    def _make(self, node: Any, index: int, name: str, row: Dict[str, Any]) -> None:
        inside = row["name"] or name
        with _kernel(f"no {row['mode']} on the interface {name} can be made in the container"):
            node.link("add", ifname=inside, kind=row["mode"], link=index, net_ns_fd=self.theirs, **_KINDS[row["mode"]])
        self._new.append(inside)
        addresses = [(address, int(length)) for address, _, length in (whole.partition("/") for whole in row["addresses"])]
        self._configure(inside, addresses)

    def _configure(self, name: str, addresses: Sequence[Tuple[str, int]]) -> None:
        with self._inside() as there, _kernel(f"the interface {name} cannot be set up in the container"):
            _set_up(there, name, addresses)
        self.told.append(name)

    def take_back(self) -> None:
        """As it was before; what the kernel refuses to take back ends with the namespace."""
        for inside in self._new:
            try:
                with self._inside() as there, _kernel(""):
                    there.link("del", index=there.link_lookup(ifname=inside)[0])
            except (HookError, OSError, IndexError):
                pass
        for name, inside, addresses in self._moved:
            try:
                with self._inside() as there, _kernel(""):
                    there.link("set", index=there.link_lookup(ifname=inside)[0], net_ns_fd=self.ours, ifname=name)
                with _link() as node, _kernel(""):
                    _set_up(node, name, addresses)
            except (HookError, OSError, IndexError):
                pass
        self._new.clear()
        self._moved.clear()

    def close(self) -> None:
        os.close(self.theirs)
        os.close(self.ours)

    @contextmanager
    def _inside(self) -> Iterator[Any]:
        """A netlink socket of the container's network namespace, which this process is in meanwhile."""
        syscalls.setns(self.theirs, CLONE_NEWNET)
        try:
            with _link() as there:
                yield there
        finally:
            syscalls.setns(self.ours, CLONE_NEWNET)


def left_behind(name: str, infiniband: str = _INFINIBAND, shared: str = _SHARED) -> List[str]:
    """What an interface that is moved leaves on the node: its RDMA devices, where these are not shared by all network namespaces (Linux
    5.2, ``rdma system show``)."""
    try:
        devices = sorted(os.listdir(infiniband.format(name)))
        with open(shared, encoding="ascii") as file:
            exclusive = file.read().strip() in ("N", "0")
    except OSError:
        return []
    if not devices or not exclusive:
        return []
    return [f"{', '.join(devices)} of {name} cannot be used in the container: RDMA devices belong to one network namespace each here, the "
            "node's (`rdma system set netns shared` lets all use them)"]


def _fits(name: str, pattern: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return name == pattern
    return name.startswith(before) and name.endswith(after) and len(name) >= len(before) + len(after)


def _set_up(link: Any, name: str, addresses: Sequence[Tuple[str, int]]) -> None:
    index = link.link_lookup(ifname=name)[0]
    for address, length in addresses:
        link.addr("add", index=index, address=address, prefixlen=length)
    link.link("set", index=index, state="up")


@contextmanager
def _link() -> Iterator[Any]:
    try:
        from pyroute2 import IPRoute
    except ImportError:
        raise HookError("network interfaces cannot be brought into containers: Python's pyroute2 is not installed",
                        remedy="install pyroute2 for the interpreter of the hooks", who="site admin") from None
    with IPRoute() as made:
        yield made


@contextmanager
def _kernel(what: str) -> Iterator[None]:
    """What the kernel answers, as one sentence."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise KernelError(f"{what}: {os.strerror(error.code)}", error.code) from None
