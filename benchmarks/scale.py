"""What 10,000 nodes ask of shared file systems: ``make bench-scale``, or ``bed.py exec python benchmarks/scale.py --help``.

Counted, not timed: by strace, the calls that name a path, of a real hook, warm and cold, at both stages, and of the dynamic loader that
then starts an MPI program, in that container and, for comparison, where the same libraries come by LD_LIBRARY_PATH. The counts go
into a small model of a job's start. ``--write`` puts all of it into docs/performance.md, between two marks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from benchmarks.hook_start import BENCH, HOOK_ENVIRONMENT, Bench, Container, Failed, compile_programs  # noqa: E402
from tests.bed import bed, trace  # noqa: E402
from tests.bed.site import MPICH5  # noqa: E402
from tests.bed.trace import Call  # noqa: E402

NODES = 10_000
RANKS = (1, 16, 128)
#: Folders in LD_LIBRARY_PATH: the MPI's alone; with those of seven other modules in front of it.
FOLDERS = (1, 8)
PROGRAM = "/usr/local/bin/mpihello"


@dataclass(frozen=True)
class Count:
    """Calls of one kind: files and folders opened, places looked at (stat, O_PATH, open_tree, readlink), names that were not there."""

    opened: int
    looked: int
    missing: int
    paths: int  # different ones of the last two

    @property
    def all(self) -> int:
        return self.opened + self.looked + self.missing

    def __str__(self) -> str:
        return f"{self.opened} + {self.looked + self.missing}" if self.all else ""


def count(calls: Iterable[Call]) -> Count:
    listed = list(calls)
    opened, missing = sum(call.opens for call in listed), sum(not call.there for call in listed)
    return Count(opened, len(listed) - opened - missing, missing, len({call.path for call in listed if not call.opens}))


NONE = Count(0, 0, 0, 0)


def added(counts: Iterable[Count]) -> Count:
    rows = [(each.opened, each.looked, each.missing, each.paths) for each in counts]
    return Count(*map(sum, zip(*rows))) if rows else NONE


# ------------------------------------------------------------------------------------------------ hooks


def hook_calls(bench: Bench, path: str, stage: str) -> list[Call]:
    """Of one start; `path`: "warm" or "cold"."""
    if path == "cold":
        for plan in bench.plans():
            plan.unlink()
    early = stage == "precreate"
    hook = bench.precreate_hook if early else bench.hook
    output = BENCH / "trace"
    container = bench.container
    with contextlib.nullcontext() if early else container.waiting():
        given = container.config_file if early else container.state_file
        with open(given, "rb") as stdin:
            subprocess.run([*trace.command(output), hook], stdin=stdin, env=HOOK_ENVIRONMENT, capture_output=True, check=True, timeout=120)
    entry = bench.last()
    if entry.get("path") != path:
        raise Failed(f"not a {path} start: {entry}")
    return trace.read(output)


# ------------------------------------------------------------------------------------------------ the dynamic loader


def program_calls(bench: Bench, folders: int) -> list[Call]:
    """Of mpihello alone, one rank, in the container's root: with so many folders in LD_LIBRARY_PATH, or, if none, after the hook.
    Only those that go to the site's files."""
    container, output = bench.container, BENCH / "trace"
    with container.waiting() as pid:
        inside = ["nsenter", f"--target={pid}", "--mount", "--"]
        enter = [*inside, "chroot", container.rootfs]
        for folder in ("/proc", "/sys"):  # those of a waiting container are dummies
            subprocess.run([*inside, "mount", "--rbind", folder, container.rootfs + folder], check=True, timeout=60)
        if folders:
            enter += ["env", f"LD_LIBRARY_PATH={modules(inside, container.rootfs, folders)}"]
        else:
            with open(container.state_file, "rb") as stdin:
                subprocess.run([bench.hook], stdin=stdin, env=HOOK_ENVIRONMENT, check=True, timeout=60)
            entry = bench.last()
            if entry.get("path") != "warm":
                raise Failed(f"not injected: {entry}")
        done = subprocess.run([*trace.command(output), *enter, PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode or "5.0.2" not in done.stdout:
        raise Failed(f"{PROGRAM}: {done.stdout}{done.stderr}")
    calls = trace.read(output)
    if folders:
        return [call for call in calls if call.path.startswith(f"{MODULES}/")]
    targets = injected(bench)
    return [call for call in calls if (call.opened or call.path).partition(container.rootfs)[2] in targets or call.path in targets]


MODULES = "/opt/modules"


def modules(inside: Sequence[str], rootfs: str, folders: int) -> str:
    """Makes so many folders in the container's root, in memory, the last with the site's MPI; returns a path of them all."""
    at = f"{rootfs}{MODULES}"
    empty = [str(number) for number in range(1, folders)]
    # Debian's program asks for the library by this name.
    alias = "ln -s libmpi.so.12 mpi/libmpich.so.12"
    script = f"mkdir -p {at} && mount -t tmpfs tmpfs {at} && cd {at} && mkdir mpi {' '.join(empty)} && cp -a {MPICH5}/. mpi && {alias}"
    subprocess.run([*inside, "sh", "-euc", script], check=True, timeout=60)
    return ":".join(f"{MODULES}/{name}" for name in [*empty, "mpi"])


def injected(bench: Bench) -> set[str]:
    """The paths in the container at which files of the site's lie. The folders around them are in memory."""
    (plan,) = bench.plans()
    record = json.loads(plan.read_bytes().split(b"\n", 2)[1])
    tree = [row[4] for row in record["tree"]]
    found = {f"{record['tree_at']}/{target}" for target in tree} | {row[4] for row in record["in_place"]}
    for folder, target, *_ in record["modules"]:
        found |= {target + name[len(folder) :] for name in tree if name.startswith(f"{folder}/")}
    return {f"/{path.lstrip('/')}" for path in found}


# ------------------------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class Start:
    """What one rank's start asks of a shared file system."""

    name: str
    asked: Count

    def requests(self, ranks: int, remembers: bool) -> int:
        """Of all nodes, with so many ranks each. A client that remembers asks once for each path that it only looks at; an open is a
        request each time."""
        if remembers:
            return NODES * (self.asked.paths + ranks * self.asked.opened)
        return NODES * ranks * self.asked.all


#: Kinds that are on a shared file system where only the MPI is, and where everything is that can be.
SHARED_MPI = (trace.MPI,)
SHARED_ALL = (trace.MPI, trace.HOOK, trace.PROFILES, trace.PACKAGE, trace.CONFIGURATION, trace.INVENTORY, trace.ROOTFS, trace.STORE,
              trace.INTERPRETER, trace.OTHER)  # fmt: skip
STARTS = [(stage, path) for path in ("warm", "cold") for stage in ("createRuntime", "precreate")]
ORDER = (trace.MPI, trace.PLANS, trace.LOG, trace.CONFIGURATION, trace.INVENTORY, trace.PROFILES, trace.OTHER, trace.PACKAGE, trace.HOOK,
         trace.INTERPRETER, trace.STATE, trace.STORE, trace.ROOTFS, trace.TREE, trace.KERNEL)  # fmt: skip


def measured(bench: Bench) -> tuple[dict[tuple[str, str], dict[str, Count]], dict[int, Count]]:
    """By stage and path the counts of each kind; those of the loader by the number of folders, 0 for the injected container."""
    places = trace.places(bench.site, bench.container.engine.account, [MPICH5])
    hooks = {}
    for stage, path in STARTS:
        if path == "warm":
            hook_calls(bench, "cold", stage)  # leaves the plan, whatever was done before
        found = trace.kinds(hook_calls(bench, path, stage), places)
        hooks[stage, path] = {kind: count(calls) for kind, calls in found.items()}
    return hooks, {folders: count(program_calls(bench, folders)) for folders in (0, *FOLDERS)}


def section(hooks: dict[tuple[str, str], dict[str, Count]], loader: dict[int, Count], files: int) -> list[str]:
    """Lines of Markdown."""
    lines = [f"Calls of one hook that name a path, opened + looked at; {files} files injected, the loader's cache mounted:", ""]
    lines += ["| | " + " | ".join(f"{path}, {stage}" for stage, path in STARTS) + " |", "| --- " * (len(STARTS) + 1) + "|"]
    for kind in ORDER:
        cells = [str(hooks[start].get(kind, NONE)) for start in STARTS]
        if any(cells):
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    totals = [str(added(hooks[start].values())) for start in STARTS]
    lines += ["| all | " + " | ".join(totals) + " |", ""]
    lines += ["The dynamic loader and the MPI, one rank of `mpihello`, on the site's files:", "",
              "| | opened | looked at | not there |", "| --- " * 4 + "|"]  # fmt: skip
    names = {0: "in the container, injected", 1: "LD_LIBRARY_PATH with the MPI's folder alone"}
    for folders, found in loader.items():
        name = names.get(folders, f"LD_LIBRARY_PATH with {folders - 1} other folders before it")
        lines.append(f"| {name} | {found.opened} | {found.looked} | {found.missing} |")
    warm = hooks["createRuntime", "warm"]  # at precreate the runtime looks for the files that it mounts, which is not counted here
    starts = [Start(f"LD_LIBRARY_PATH, {folders} folder{'s' * (folders > 1)}", loader[folders]) for folders in FOLDERS]
    for name, kinds in (("MPI shared", SHARED_MPI), ("all shared", SHARED_ALL)):
        starts.append(Start(f"warm hook, {name}", added([loader[0], *(warm.get(kind, NONE) for kind in kinds)])))
    cold = {name: added(hooks["createRuntime", "cold"].get(kind, NONE) for kind in kinds)
            for name, kinds in (("MPI", SHARED_MPI), ("all", SHARED_ALL))}  # fmt: skip
    for remembers, title in ((False, "no client remembers anything"), (True, "clients remember names, and ask at each open")):
        lines += ["", f"Millions of requests when a job starts on {NODES:,} nodes, {title}:", ""]
        lines += ["| ranks on a node | " + " | ".join(start.name for start in starts) + " |", "| --- " * (len(starts) + 1) + "|"]
        for ranks in RANKS:
            cells = [f"{start.requests(ranks, remembers) / 1e6:.2f}" for start in starts]
            lines.append(f"| {ranks} | " + " | ".join(cells) + " |")
    more = {name: NODES * found.all / 1e6 for name, found in cold.items()}
    lines += ["", "The first container of an image on each node is a cold one. Requests of that hook, once: "
              f"{more['MPI']:.2f} million where the MPI is shared, {more['all']:.2f} million where all is."]  # fmt: skip
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="What 10,000 nodes ask of shared file systems.")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    parser.add_argument("--calls", action="store_true", help="print every call of a warm start at precreate too")
    options = parser.parse_args()
    bed.enter()
    compile_programs()
    folder = BENCH / "sites" / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        engine = bed.Engine("crun", "root")
        bench = Bench("scale", Container(engine, "bookworm-mpich"))
        bench.prepare()
        hooks, loader = measured(bench)
        lines = section(hooks, loader, bench.files)
        if options.calls:
            places = trace.places(bench.site, engine.account, [MPICH5])
            for kind, calls in trace.kinds(hook_calls(bench, "warm", "precreate"), places).items():
                print(f"{kind}:", *(f"  {call.name} {call.path}{'' if call.there else ' (not there)'}" for call in calls), sep="\n")
    finally:
        bed.Engine.remove_named()
        for file in BENCH.glob("*.state"):
            file.unlink()
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(lines))
    if options.write:
        results.write(Path(__file__).name, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
