"""A Slurm cluster of its own on this machine: munged, slurmctld, and a slurmd for each of several nodes that look like nodes.

A node has its own mount, UTS, IPC and PID namespaces, and with them what two real nodes do not share: a host name, /dev/shm, /tmp,
slurmd's spool folder, podman's run folder and container store (the images are those of the bed, an additional image store). All
that a node holds ends with its first process, which ends with the process that started the cluster, however that ends. The
network is this machine's, on its loopback device.

    with Slurm(folder) as slurm:
        slurm.srun("--mpi=pmix", "-n", "2", "podman", "run", ...)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Optional

from tests.bed import bed
from tests.bed.bed import Account, Result

CONFIGURATION = """\
ClusterName=bed
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=1
UnkillableStepTimeout=10
SlurmdParameters=config_overrides
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/%n
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}
TmpFS=/tmp
PartitionName=all Nodes=ALL Default=YES MaxTime=10 State=UP OverSubscribe=FORCE:8
"""

#: What Slurm takes for a node's GPUs: device files that every machine has, and that nobody opens.
GPUS = "/dev/tty"

# What makes a namespace a node; then slurmd, whose parent collects the processes that it does not know.
NODE = """\
set -eu
node=$1 spool=$2 disk=$3 hosts=$4; shift 4
mount --make-rshared /
hostname "$node"
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs "$spool"
mount --bind "$hosts" /etc/hosts
mount -t mqueue mqueue /dev/mqueue
mkdir /dev/shm/devices                   # open to everybody, as udev's rules have them
for device in fuse:229 net/tun:200; do
    [ -e "/dev/${device%:*}" ] || continue
    mknod -m 666 /dev/shm/devices/new c 10 "${device#*:}"
    mount --bind /dev/shm/devices/new "/dev/${device%:*}"
    rm /dev/shm/devices/new
done
rmdir /dev/shm/devices
for place in "$@"; do                    # run folder, store, owner
    IFS=: read -r run store uid gid <<<"$place"
    mount -t tmpfs -o "mode=755,uid=$uid,gid=$gid" tmpfs "$run"
    install -d -m 700 -o "$uid" -g "$gid" "$run/xdg" "$disk/$uid"
    if [ -d "/run/user/$uid" ]; then mount -t tmpfs -o "mode=700,uid=$uid,gid=$gid" tmpfs "/run/user/$uid"; fi
    mount --bind "$disk/$uid" "$store"
done
exec catatonit -- /usr/sbin/slurmd -D -f "$SLURM_CONF" -N "$node"
"""


class Slurm:
    """A cluster below `folder`, which is made; started on entry, gone on exit with everything that still ran on it.

    Raises RuntimeError with the daemons' logs if the nodes are not idle after `patience` seconds.
    """

    def __init__(self, folder: Path, nodes: Sequence[str] = ("n1", "n2"), patience: float = 30) -> None:
        bed.enter()
        self.folder = folder
        self.nodes = tuple(nodes)
        self.spool = folder / "spool"  # SlurmdSpoolDir: the same path on every node, with its own files
        self._run = bed.RUN / f"slurm-{os.getpid()}"
        self._patience = patience
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._jobs = 0
        self._accounts = {account.name: self._on_nodes(account) for account in (bed.root_account(), bed.user_account())}

    def _on_nodes(self, account: Account) -> Account:
        return NodeAccount(**{**vars(account), "image_stores": (account.folder / "storage",)}, cluster=self.folder)

    # -- start and stop

    def __enter__(self) -> Slurm:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        for made in (self.folder, self.folder / "log", self.folder / "state", self.spool, self._run):
            made.mkdir(mode=0o755, parents=True)
        os.makedirs("/dev/mqueue", exist_ok=True)  # of systemd's, on other machines; --ipc=host of a user wants it
        key = self.folder / "munge.key"
        key.touch(mode=0o400)
        key.write_bytes(os.urandom(1024))
        ports = _free_ports(1 + len(self.nodes))
        text = CONFIGURATION.format(port=ports[0], run=self._run, folder=self.folder, spool=self.spool)
        for node, port in zip(self.nodes, ports[1:]):
            text += f"NodeName={node} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=1000 Gres=gpu:4 State=UNKNOWN\n"
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(f"Name=gpu File={GPUS}[0-3]\n")
        hosts = self.folder / "hosts"  # Open MPI and MPICH look up the names of nodes, their own too
        hosts.write_text(f"127.0.0.1 localhost {' '.join(self.nodes)}\n")
        for account in self._accounts.values():
            account.write_configuration(bed.machine())
            (account.folder / "storage").mkdir()
        self._daemon(
            "/usr/sbin/munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self._run}/munge.socket",
            f"--pid-file={self._run}/munged.pid", f"--log-file={self.folder}/log/munged", f"--seed-file={self.folder}/seed",
        )  # fmt: skip
        self._wait("munged", (self._run / "munge.socket").is_socket)
        self._daemon("/usr/sbin/slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        places = [f"{account.run_folder}:{account.folder}/storage:{account.uid}:{account.gid}" for account in self._accounts.values()]
        for node in self.nodes:
            (self.folder / "disk" / node).mkdir(parents=True)
            self._daemon(
                "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc",
                "bash", "-c", NODE, "node", node, str(self.spool), str(self.folder / "disk" / node), str(hosts), *places,
            )  # fmt: skip
        self._wait("the nodes", lambda: self._states() == {"idle"})

    def _daemon(self, *command: str) -> None:
        """Start a process that is killed when this one ends."""
        log = self.folder / "log" / "output"
        with open(log, "ab") as output:
            self._daemons.append(subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**bed.root_account().environment(), "SLURM_CONF": str(self.folder / "slurm.conf")},
            ))  # fmt: skip

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._patience
        while not ready():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
                raise RuntimeError(f"Slurm: {what} did not get ready\n{self.logs()}")
            time.sleep(0.1)

    def _states(self) -> set[str]:
        told = self._control("sinfo", "--noheader", "--Node", "--format=%T")
        return set(told.stdout.split())

    def _control(self, *command: str) -> Result:
        return bed.root_account().execute(*command, env={"SLURM_CONF": str(self.folder / "slurm.conf")}, timeout=30)

    def logs(self) -> str:
        """What the daemons have said."""
        return "".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in sorted((self.folder / "log").glob("*")))

    def stop(self) -> None:
        """End everything: jobs, containers, daemons, and the folders."""
        if len(self._daemons) == 2 + len(self.nodes):
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                self.tidy()
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait(30)
        self._daemons.clear()
        for folder in (self.folder, self._run):
            shutil.rmtree(folder, ignore_errors=True)

    # -- use

    def account(self, account: Account) -> Account:
        """The same account as it is on the nodes: with a store of theirs."""
        return self._accounts[account.name]

    def execute(
        self,
        *command: str,
        account: Optional[Account] = None,
        env: Optional[Mapping[str, str]] = None,
        timeout: float = 60,
    ) -> Result:
        """Run a command of Slurm's, or one that calls such, as `account` (root) in the environment that it has on the nodes plus `env`.

        After `timeout` seconds jobs are cancelled, containers are removed, and subprocess.TimeoutExpired is raised.
        """
        there = self.account(account or bed.root_account())
        conf = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        try:
            return there.execute(*command, env={**conf, **(env or {})}, timeout=timeout)
        except subprocess.TimeoutExpired:
            self.tidy()
            raise

    def srun(self, *arguments: str, account: Optional[Account] = None, timeout: float = 60) -> Result:
        """``srun ARGUMENTS``; see `execute`."""
        return self.execute("srun", *arguments, account=account, timeout=timeout)

    def inside(self, node: str, *command: str, account: Optional[Account] = None, timeout: float = 60) -> Result:
        """Run a command on a node without Slurm, as the administrator would over ssh."""
        there = self.account(account or bed.root_account())
        leader = self._leader(node)
        switch = ["setpriv", f"--reuid={there.uid}", f"--regid={there.gid}", "--init-groups"] if there.uid else []
        enter = ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--pid", "--"]
        return subprocess.run([*enter, *switch, *command], capture_output=True, encoding="utf-8", errors="backslashreplace",
                              timeout=timeout, cwd="/", env=there.environment(), stdin=subprocess.DEVNULL, check=False)  # fmt: skip

    def _leader(self, node: str) -> int:
        """The first process of the node's PID namespace: the only child of unshare."""
        daemon = self._daemons[2 + self.nodes.index(node)]
        return int(Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()[0])

    def containers(self) -> list[str]:
        """Containers that there are on the nodes, running or not, as ``NODE ACCOUNT NAME``; read from the stores, which is quick."""
        return [
            f"{node} {account.name} {container['names'][0]}"
            for node in self.nodes
            for account in self._accounts.values()
            for container in _listed(self.folder / "disk" / node / str(account.uid) / "overlay-containers/containers.json")
        ]

    def tidy(self) -> None:
        """Cancel every job and remove every container, then wait until the nodes are idle."""
        if self._control("squeue", "--noheader").stdout.strip():
            for account in self._accounts:
                self._control("scancel", f"--user={account}")
        for node, name in {(left.split()[0], left.split()[1]) for left in self.containers()}:
            self.inside(node, "podman", "rm", "--all", "--force", "--time", "0", account=self._accounts[name])
        self._wait("the nodes", lambda: self._states() == {"idle"})


def _listed(store: Path) -> list[dict[str, list[str]]]:
    try:
        return list(json.loads(store.read_text()))
    except (FileNotFoundError, ValueError):  # not made yet; being written
        return []


@dataclasses.dataclass(frozen=True)
class NodeAccount(Account):
    """An account on the nodes of a cluster: one configuration; store and run folder are each node's own at the same path."""

    cluster: Path = Path()

    @property
    def folder(self) -> Path:
        return self.cluster / self.name


def _free_ports(count: int) -> list[int]:
    """Ports that are free now on every address, and not of those that the kernel gives to whoever connects to something: such a one may be
    somebody's again before the daemon that it is meant for has started."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [*range(20000, first), *range(last + 1, 65536)] or [*range(20000, 65536)]
    found: set[int] = set()
    while len(found) < count:
        port = random.choice(ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found.add(port)
    return [*found]
