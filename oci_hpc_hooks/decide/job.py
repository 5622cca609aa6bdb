"""What a container gets of the job that it is started in, and whether ranks could work in it (light module: the warm path imports it).

Decided at each start, for a remembered plan cannot know the rank. Pure: what the plan says of the job (``job`` of its record, a
:class:`oci_hpc_hooks.model.JobPlan` in plain form) and the :class:`~oci_hpc_hooks.situation.Situation` go in, an :class:`Outcome` comes
out. What is needed and what happens without it was tried with real launchers: tests/ranks, docs/slurm.md.
"""

from __future__ import annotations

from oci_hpc_hooks.situation import whole_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping

    from oci_hpc_hooks.situation import Situation

OVERRIDE = "--annotation org.supercontainers.launcher=none"

#: Bytes of /dev/shm that a rank may take before MPI asks for more than its first segments.
SHM_OF_A_RANK = 16 << 20
#: Bytes of memory that a rank on a fabric with RDMA locks at least.
MEMLOCK_OF_A_RANK = 64 << 20

#: The server's list of how clients may prove who they are, and the client's.
SECURITY = "PMIX_SECURITY_MODE"
CLIENT_SECURITY = "PMIX_MCA_psec"
#: The same for where job data is kept. A client finds its own among the server's; told the whole list it complains of what it lacks.
STORE = "PMIX_GDS_MODULE"
CLIENT_STORE = "PMIX_MCA_gds"


class Outcome:
    """What this start gets: ``variables`` to set, ``directories`` and ``sockets`` of the host at their own path.

    ``services``: (is it a socket, path) of more of them, for stacks of GPUs, which a node may have or not. ``findings`` are documents as in
    a plan's record. ``launchers``: names of those that have started it. ``refusal``: what is needed and lacking, with its remedy, "" and ""
    if nothing is.
    """

    __slots__ = ("directories", "findings", "launchers", "refusal", "services", "sockets", "variables")

    def __init__(self) -> None:
        self.variables: dict[str, str] = {}
        self.directories: list[str] = []
        self.sockets: list[str] = []
        self.services: list[tuple[bool, str]] = []
        self.findings: list[dict[str, str]] = []
        self.launchers: list[str] = []
        self.refusal = ("", "")


def decide(job: dict[str, Any], now: Situation) -> Outcome:
    """See above."""
    made = _Decision(job, now)
    made.run()
    return made.outcome


class _Decision:
    def __init__(self, job: dict[str, Any], now: Situation) -> None:
        self.job = job
        self.now = now
        self.outcome = Outcome()

    def run(self) -> None:
        launchers = self.job["launchers"]
        known = self.now.launcher
        names = self.outcome.launchers
        names += [name for name in self.job["wanted"] or launchers if not launchers[name]["when"] or launchers[name]["when"] in known]
        if not self.job["wanted"]:
            names[:] = [name for name in names if launchers[name]["when"]]
        for name in self.job["wanted"]:
            if name not in names:
                self.missing_launcher(name, launchers[name])
        if launchers and not names and self.now.unseen and not self.job["wanted"]:
            self.tell("note", "launcher-unseen", f"whether a launcher has started this container cannot be seen: {self.now.unseen}",
                      self.how_to_pass(launchers.values()))
        if names:
            self.ranks([launchers[name] for name in names])
        self.services(list(self.job["services"].values()))

    def ranks(self, jobs: list[dict[str, Any]]) -> None:
        """What the launchers that have started it have for it."""
        self.protocol(jobs)
        for one in jobs:
            self.outcome.directories += [path for path in map(self.filled, one["directories"]) if _is_path(path)]
            self.sockets(one)
        self.outcome.directories = list(dict.fromkeys([path.rstrip("/") for path in self.outcome.directories]))
        if self.job["scope"] == "rank":
            self.variables([*jobs, self.job["family"]])
        for one in jobs:
            self.needs(one)
        self.needs(self.job["family"])

    # -- who has started it

    def missing_launcher(self, name: str, launcher: dict[str, Any]) -> None:
        what = f"the launcher {name} is asked for, and its variable {launcher['when']} is not there"
        remedy = f"start with {launcher['start']}" if launcher["start"] else f"start it from a job of {name}"
        if not self.now.can_set:
            remedy += f", and give {self.how_to_pass([launcher])}"
        if self.now.unseen:
            what += f": {self.now.unseen}"
        self.lacking("launcher-missing", what, remedy)

    def how_to_pass(self, jobs: Any) -> str:
        patterns = dict.fromkeys([pattern for one in jobs if one["when"] for pattern in one["environment"]])
        return " ".join([f"--env '{pattern}'" for pattern in patterns])

    def protocol(self, jobs: list[dict[str, Any]]) -> None:
        """Ranks that cannot talk to their launcher each take themselves for the only one, and end well."""
        speaks = self.job["protocols"]
        offered = [one["protocol"] for one in jobs if one["protocol"]]
        if not speaks or self.size() == 1 or any(protocol in speaks for protocol in offered):
            return
        if not offered and not self.number("SLURM_STEP_NUM_TASKS"):
            return  # no step: a container that starts ranks itself
        ways = [one["start"] for one in self.job["launchers"].values() if one["protocol"] in speaks and one["start"].startswith("srun")]
        offers = f"what has started it offers {_and(offered)}" if offered else "the step was started without any (srun --mpi=none)"
        self.lacking("protocol", f"the MPI that this container gets speaks {_and(speaks)}, and {offers}: every rank would be alone",
                     "start with " + " or ".join(ways) if ways else "use a launcher of the MPI's own family")

    # -- what it gets

    def variables(self, jobs: list[dict[str, Any]]) -> None:
        """Those that the user has set stay; those that came from the image do not."""
        wanted: dict[str, str] = {}
        for one in jobs:
            wanted.update(self.variables_of(one))
        if CLIENT_SECURITY in wanted and not self.outcome.sockets:
            modes = [mode for mode in wanted[CLIENT_SECURITY].split(",") if mode != "munge"]
            wanted[CLIENT_SECURITY] = ",".join(modes) or "native"
        if STORE in wanted and not self.outcome.directories:
            wanted[CLIENT_STORE] = "hash"  # the server's shared memory lies in a directory that is not there
        self.set(wanted, self.how_to_pass(jobs))

    def variables_of(self, one: dict[str, Any]) -> dict[str, str]:
        found = {name: value for name, value in self.now.launcher.items()
                 if name not in one["except_for"] and any(_matches(name, pattern) for pattern in one["environment"])}
        found.update({name: self.filled(text) for name, text in one["variables"].items() if self.filled(text)})
        return found

    def set(self, wanted: dict[str, str], how: str) -> None:
        new = {name: value for name, value in wanted.items() if name not in self.now.given}
        if self.now.can_set:
            self.outcome.variables.update(new)
            return
        lacking = sorted([name for name in new if name not in self.now.inside])
        if lacking:
            few = ", ".join(lacking[:6]) + (f" and {len(lacking) - 6} more" if len(lacking) > 6 else "")
            self.tell("warning", "variables", f"variables cannot be set at this stage, and the container lacks {few}",
                      f"give {how}, or register the hook at precreate")

    def sockets(self, one: dict[str, Any]) -> None:
        if one["sockets"] and self.now.root:
            self.lacking("socket", f"{_and(one['sockets'])} does not go into a container whose root is root of the node: it would speak "
                         "for every user", "start the container as a user, or with a user namespace (--userns=auto)")
        else:
            self.outcome.sockets += one["sockets"]

    def services(self, stacks: list[dict[str, Any]]) -> None:
        """What stacks of GPUs have of the node, if it is there: no container needs it, and none is refused for lack of it."""
        for one in stacks:
            self.outcome.services += [(False, path.rstrip("/")) for path in map(self.filled, one["directories"]) if _is_path(path)]
            if self.now.root:
                continue  # as root of the node it would speak for every user
            self.outcome.services += [(True, path) for path in one["sockets"]]
        variables: dict[str, str] = {}
        for one in stacks:
            variables.update(self.variables_of(one))
        self.set(variables, " ".join([f"--env {name}" for name in sorted(variables)]))
        for one in stacks:
            self.needs(one)

    # -- what ranks need

    def needs(self, one: dict[str, Any]) -> None:
        for need in one["needs"]:
            what, remedy = getattr(self, "need_" + need["what"])()
            if not what:
                continue
            otherwise = need["otherwise"]
            if otherwise and all(self.now.inside.get(name) == value for name, value in otherwise.items()):
                continue
            if otherwise and self.now.can_set:
                self.outcome.variables.update({name: value for name, value in otherwise.items() if name not in self.now.given})
                self.tell("note", need["what"], f"{what}; {_and(_assigned(otherwise))} is set instead", remedy)
                continue
            if otherwise:
                remedy += ", or " + " ".join([f"--env {item}" for item in _assigned(otherwise)])
            if need["severity"] == "error":
                self.lacking(need["what"], what, f"give {remedy}")
            else:
                self.tell("warning", need["what"], what, f"give {remedy}")

    def need_network(self) -> tuple[str, str]:
        if "network" not in self.now.private:
            return "", ""
        return "ranks reach their launcher over the node's network, and this container has one of its own", "--network=host"

    def need_version(self) -> tuple[str, str]:
        version = self.now.launcher.get("PMIX_VERSION", "")
        if not version.startswith(("1.", "2.0")):
            return "", ""
        what = f"the launcher's PMIx is {version}, which serves no client of a later release"
        return what, "an image with the same PMIx, or srun --mpi=pmi2"

    def need_uid(self) -> tuple[str, str]:
        """PMIx's "native" security: the client tells its ids, and the server compares them with the job's."""
        if "native" not in self.now.launcher.get(SECURITY, "native"):
            return "", ""
        uid, gid = self.now.job_uid, self.number("SLURM_JOB_GID", self.now.caller[1])
        if (uid, gid) == self.now.user:
            return "", ""
        what = (f"the launcher serves processes of uid {uid} and gid {gid}, and the container's program would be {self.now.user[0]} and "
                f"{self.now.user[1]}")
        return what, "--userns=keep-id" if self.now.caller[0] else f"--user={uid}:{gid}"

    def need_descriptor(self) -> tuple[str, str]:
        number = self.number("PMI_FD", -1)
        if self.job["scope"] == "node":
            return "", ""  # each rank brings its own, by podman exec
        if number < 0 or 3 <= number < 3 + self.now.preserved:
            return "", ""
        passed = f"passes on {self.now.preserved} from 3 up" if self.now.preserved else "passes on none"
        remedy = "--preserve-fds=1, with the socket moved to 3 (the podman that oci-hpc-hooks register --podman makes does both)"
        return f"the launcher is reached by the descriptor {number}, and podman {passed}", remedy

    def need_ipc(self) -> tuple[str, str]:
        if self.alone_on_node() or "ipc" not in self.now.private:
            return "", ""
        return "ranks of one node share memory by /dev/shm, and this container has one of its own", "--ipc=host"

    def need_pid(self) -> tuple[str, str]:
        if self.alone_on_node() or "pid" not in self.now.private:
            return "", ""
        return "ranks of one node know each other by process id, and this container has ids of its own", "--pid=host"

    def need_memory(self) -> tuple[str, str]:
        """process_vm_readv(2) and /proc/PID/fd: the same process and the same user namespace (ptrace(2), access mode checking)."""
        if self.alone_on_node() or not self.job["copies_memory"]:
            return "", ""
        if "user" in self.now.private:
            what = "ranks of one node read each other's memory, which the kernel does not let them do between user namespaces"
            return what, "no --userns or --uidmap"
        if "pid" in self.now.private:
            return "ranks of one node read each other's memory by process id, and this container has ids of its own", "--pid=host"
        return "", ""

    def need_memlock(self) -> tuple[str, str]:
        if not self.now.fabric or self.now.memlock < 0 or self.now.memlock >= MEMLOCK_OF_A_RANK:
            return "", ""
        return f"the fabric locks memory, and this container may lock {self.now.memlock} bytes", "--ulimit memlock=-1:-1"

    def need_shm(self) -> tuple[str, str]:
        sharing = 1 if "ipc" in self.now.private and self.job["scope"] == "rank" else max(1, self.on_node())
        if self.now.shm < 0 or self.now.shm >= sharing * SHM_OF_A_RANK:
            return "", ""
        what = f"/dev/shm has {self.now.shm >> 20} MiB, and each of its ranks ({sharing}) takes up to {SHM_OF_A_RANK >> 20} MiB"
        return what, f"--ipc=host, or --shm-size={sharing * SHM_OF_A_RANK >> 20}m"

    # -- how many there are

    def size(self) -> int:
        """Ranks of the job, 0 if it is not known."""
        return self.number("SLURM_STEP_NUM_TASKS") or self.number("PMI_SIZE") or self.number("OMPI_COMM_WORLD_SIZE")

    def on_node(self) -> int:
        """Ranks on the node that has most of them, 0 if it is not known."""
        per_node = self.now.launcher.get("SLURM_STEP_TASKS_PER_NODE", "")  # 4(x2),3
        most = max([whole_number(part.partition("(")[0], 0) for part in per_node.split(",")])
        return most or self.number("MPI_LOCALNRANKS") or self.number("OMPI_COMM_WORLD_LOCAL_SIZE")

    def alone_on_node(self) -> bool:
        """Whether no other container on the node has a rank of the job."""
        return self.job["scope"] == "node" or self.on_node() == 1 or self.size() == 1

    def number(self, name: str, otherwise: int = 0) -> int:
        return self.now.number(name, otherwise)

    # -- words

    def filled(self, text: str) -> str:
        """``text`` with the launcher's variables in it, "" if it lacks one."""
        head, *parts = text.split("${")
        for part in parts:
            name, _, rest = part.partition("}")
            if not self.now.launcher.get(name):
                return ""
            head += self.now.launcher[name] + rest
        return head

    def lacking(self, code: str, what: str, remedy: str) -> None:
        """Refused where somebody has asked for it, else said."""
        self.tell("error" if self.job["explicit"] else "warning", code, what, remedy)
        if self.job["explicit"] and not self.outcome.refusal[0]:
            self.outcome.refusal = what, remedy

    def tell(self, severity: str, code: str, what: str, remedy: str) -> None:
        found = {"severity": severity, "code": code, "what": what, "origin": self.job["origin"], "remedy": remedy, "who": "user"}
        if found not in self.outcome.findings:  # an MPI and a fabric need the same
            self.outcome.findings.append(found)


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _is_path(path: str) -> bool:
    """Whether this can be a job's directory: absolute, without "..", and no directory of the root."""
    parts = [part for part in path.split("/") if part]
    return path.startswith("/") and ".." not in parts and len(parts) > 1


def _assigned(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def _and(words: list[str]) -> str:
    return " and ".join(words)
