"""What a hook costs, side by side in one run: ``make bench``, or ``bed.py exec python benchmarks/hook_start.py --help``.

Every round runs every case once, in shuffled order, so that a slow moment of the machine meets all of them; each figure is a median
over the rounds, and each ratio the median of the ratios within a round. Nothing is asserted: the budgets are shown beside what was found.

Alone, a hook is started as a runtime starts it (its state on a pipe, an environment of one variable), for a real podman
container: configuration, store and rootfs are podman's own. The container's first process is one of ours that has made the
container's mounts in a mount namespace of its own and waits, a new one for every start, as it is before pivot_root(2).
In podman, the whole of ``podman run --rm --net=none`` is timed, with and without hooks.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from oci_hpc_hooks import pack  # noqa: E402
from tests.bed import bed  # noqa: E402
from tests.bed.site import MPICH5, Site  # noqa: E402

BENCH = bed.BUILD / "bench"
SPAWN = BENCH / "spawn"
BIND_TREE = BENCH / "bind_tree"
ENVIRONMENT = {"PATH": "/usr/bin"}
#: Libraries that the large plan has beyond MPICH's own files: a fabric and a GPU stack are as many.
EXTRA = 30
COLD = "500 ms for 1,000 libraries"

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18


# ------------------------------------------------------------------------------------------------ what is compared


@dataclass
class Run:
    """One start: wall and CPU time in ms, peak resident set in MiB, and the ms of CPU time that the process itself reports."""

    wall: float
    cpu: float
    rss: float
    inside: Optional[float] = None


@dataclass
class Case:
    """One row of the table. `base` names the case that its ratio is taken to."""

    name: str
    start: Callable[[], Run]
    base: str = ""
    budget: str = ""
    limit: float = 0  # what `budget` says: a ratio to `base`, or ms of wall time
    in_ms: bool = False
    runs: list[Run] = field(default_factory=list)


class Failed(Exception):
    """A case did not do what it is there to be timed for."""


def spawn(command: Sequence[str], state: Path = Path("/dev/null"), env: Optional[dict[str, str]] = None) -> Run:
    """Start one program and wait for it. Raises Failed with its stderr if it fails."""
    errors = BENCH / "stderr"
    done = subprocess.run(
        [SPAWN, state, errors, *command], capture_output=True, text=True, check=True, timeout=120, env=env or ENVIRONMENT, cwd="/"
    )
    wall, cpu, rss, status = map(int, done.stdout.split())
    said = errors.read_text()
    if status:
        raise Failed(f"{' '.join(command)}: exit status {status}\n{said}")
    return Run(wall / 1e6, cpu / 1e3, rss / 1024, int(said) / 1e6 if said.strip().isdigit() else None)


# ------------------------------------------------------------------------------------------------ containers


_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)


class Container:
    """A container of podman's, made and never started: its rootfs is mounted, its bundle is complete."""

    def __init__(self, engine: bed.Engine, image: str) -> None:
        self.engine = engine
        self.name = engine.new_name()
        create = ["create", "--net=none", "--name", self.name, engine.load(image), "mpihello"]
        self.id = engine.podman(*create, check=True).stdout.strip()
        engine.podman("init", self.name, check=True)
        self.rootfs = engine.podman("mount", self.name, check=True).stdout.strip()
        config = engine.podman("inspect", "--format", "{{.OCIConfigPath}}", self.name, check=True).stdout.strip()
        self.bundle = os.path.dirname(config)
        self.config = json.loads(Path(config).read_text())
        self.state_file = BENCH / f"{self.name}.state"

    @contextlib.contextmanager
    def waiting(self) -> Iterator[int]:
        """A first process for it, as a runtime has one when createRuntime hooks run; the state is in `state_file` then. Yields its pid."""
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._make_mounts()
                os.write(told, b"+")
                signal.pause()
            except BaseException as error:
                os.write(told, str(error).encode())
            finally:
                os._exit(1)
        try:
            os.close(told)
            said = os.read(ready, 4096)
            os.close(ready)
            if said != b"+":
                raise Failed(f"no mounts for {self.name}: {said.decode()}")
            state = {
                "ociVersion": "1.0.2", "id": self.id, "pid": pid, "root": self.rootfs, "bundle": self.bundle, "status": "creating",
                "annotations": self.config["annotations"],
            }  # fmt: skip
            self.state_file.write_text(json.dumps(state, separators=(",", ":")))
            yield pid
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _make_mounts(self) -> None:
        if _libc.unshare(CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mount(self.rootfs, self.rootfs, "", MS_BIND | MS_REC)
        for wanted in self.config["mounts"]:
            target = self.rootfs + wanted["destination"]
            bind = wanted["type"] == "bind"
            if bind and not os.path.isdir(wanted["source"]):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "a"):
                    pass
            else:
                os.makedirs(target, exist_ok=True)
            if bind:
                mount(wanted["source"], target, "", MS_BIND | MS_REC)
            else:
                # A runtime takes the container's other namespaces for most of these; to a hook they are mounts like any other.
                mount(wanted["type"], target, "sysfs" if wanted["type"] == "sysfs" else "tmpfs", 0)


def mounts_of(pid: int) -> list[tuple[str, ...]]:
    """The mounts of a process's namespace without their numbers: root, mount point, options, propagation, type, source …"""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        found.append(tuple(line.split()[3:]))
    return sorted(found)


# ------------------------------------------------------------------------------------------------ sites


class Bench:
    """One registered installation and one container, with everything that is timed on them."""

    def __init__(self, name: str, container: Container, extra: int) -> None:
        self.name = name
        self.container = container
        folder = BENCH / "sites" / name
        self.site = Site(folder)
        if extra:
            self._large_profile(folder / "lib", extra)
        # Mounts alone, as the C program makes them: a cache that is a file in the layer would also make each next start a cold one.
        self.site.configure([folder / "lib" if extra else MPICH5], loader_cache="bind")
        self.site.scan()
        self.hooks_dir = self.site.register()
        descriptor = json.loads((self.hooks_dir / "oci-hpc-hooks.json").read_text())
        self.hook: str = descriptor["hook"]["path"]
        self.record = folder / "record"
        self.timed = folder / "timed"
        self.files = 0

    def _large_profile(self, libraries: Path, extra: int) -> None:
        """The shipped profile with `extra` small libraries more, each a real shared object, beside a copy of the MPI."""
        shutil.copytree(MPICH5, libraries, symlinks=True)
        names = [f"libbench{number:02d}.so.1" for number in range(extra)]
        source = BENCH / "empty.c"
        source.write_text("int oci_hpc_hooks_bench;\n")
        for name in names:
            subprocess.run(["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", libraries / name, source], check=True, timeout=60)
        profile = json.loads((ROOT / "oci_hpc_hooks/profiles.d/mpich.json").read_text())
        profile.pop("$schema", None)
        profile["libraries"] += [{"soname": name, "role": "add"} for name in names]
        folder = self.site.config_dir / "profiles.d"
        folder.mkdir(mode=0o755)
        (folder / "mpich.json").write_text(json.dumps(profile))

    # -- the ways to start it

    def plans(self) -> list[Path]:
        return list((self.site.cache_dir / "plans").glob("*.plan"))

    def last(self) -> dict[str, Any]:
        """The last line of the hook's log."""
        lines = self.site.log_file.read_text().splitlines() if self.site.log_file.exists() else []
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        self.site.log_file.write_text("")
        return found

    def nothing(self) -> Run:
        with self.container.waiting():
            run = spawn([self.hook], self.container.state_file)
        if self.last():
            raise Failed("the hook with nothing to do did something")
        return run

    def warm(self) -> Run:
        return self._injection("warm", [self.hook])

    def cold(self) -> Run:
        for plan in self.plans():
            plan.unlink()
        return self._injection("cold", [self.hook])

    def replay(self) -> Run:
        """The warm start by a copy of the hook that says how much CPU time its mounts and checks took."""
        return self._injection("warm", [str(self.timed)])

    def limit(self) -> Run:
        """The C program."""
        with self.container.waiting():
            return spawn([str(BIND_TREE), str(self.record)], self.container.state_file)

    def _injection(self, path: str, command: Sequence[str]) -> Run:
        with self.container.waiting():
            run = spawn(command, self.container.state_file)
        entry = self.last()
        if entry.get("path") != path or entry.get("files") != self.files:
            raise Failed(f"not a {path} start with {self.files} files: {entry}")
        return run

    # -- before the first round

    def prepare(self) -> None:
        """Have the plan made, hand it to the C program, and see that that one makes the same mounts as the hook."""
        with self.container.waiting():
            spawn([self.hook], self.container.state_file)
        entry = self.last()
        if entry.get("path") != "cold" or not entry.get("files"):
            raise Failed(f"no injection to time: {entry}")
        self.files = entry["files"]
        self._write_record()
        self._write_timed()
        made = []
        for command in ([self.hook], [str(BIND_TREE), str(self.record)]):
            with self.container.waiting() as pid:
                spawn(command, self.container.state_file)
                made.append(mounts_of(pid))
        self.site.log_file.write_text("")
        if made[0] != made[1]:
            differing = sorted(set(made[0]) ^ set(made[1]))
            raise Failed("the hook and bind_tree.c do not make the same mounts:\n" + "\n".join(" ".join(line) for line in differing))

    def _write_record(self) -> None:
        """The remembered plan as rows that C reads without a JSON parser."""
        (plan,) = self.plans()
        _, head, cache = plan.read_bytes().split(b"\n", 2)
        record = json.loads(head)
        kept = self.record.with_suffix(".cache")
        kept.write_bytes(cache)
        parent, name = record["tree_at"].rsplit("/", 1)
        # As in apply/rootfs.py, open_sources().
        size = len(cache) + 4096 * (len(record["dirs"]) + len(record["tree"]) + 3)
        rows: list[list[object]] = [
            ["rootfs", self.container.rootfs], ["log", self.record.with_suffix(".log")], ["cache_bytes", kept],
            ["tree_parent", parent or "/"], ["tree_name", name], ["tree_size", size],
        ]  # fmt: skip
        rows += [["host", *row] for row in record["host_files"]]
        rows += [["image", *row] for row in record["image_files"]]
        rows += [["directory", path, inode, -1, mtime_ns] for path, inode, mtime_ns in record["image_dirs"]]
        rows += [["mkdir", path] for path in record["dirs"]]
        rows += [["tree", *row] for row in record["tree"]]
        rows += [["in_place", *row] for row in record["in_place"]]
        rows += [["cover", folder, target, inode, -1, mtime_ns] for folder, target, inode, mtime_ns in record["modules"]]
        rows.append(["cache", record["cache"]["target"], *record["cache"]["over"]])
        self.record.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))

    def _write_timed(self) -> None:
        text, code = pack.taken_apart(Path(self.hook).read_bytes())
        head, call, tail = text.decode().partition("\nmain(")
        lines = [
            "from posix import write",
            "from time import process_time_ns",
            "from oci_hpc_hooks import replay",
            "replayed, logged = replay.replay, replay.Service.log",
            "def timed(*arguments):",
            "    global began",
            "    began = process_time_ns()",
            "    replayed(*arguments)",
            "def log(*arguments, **more):",
            "    write(2, b'%d' % (process_time_ns() - began))",
            "    logged(*arguments, **more)",
            "replay.replay, replay.Service.log = timed, log",
        ]
        changed = head + "\n" + "\n".join(lines) + call + tail
        self.timed.write_bytes(pack.joined(sys.executable, changed.encode(), code))
        self.timed.chmod(0o755)

    # -- counts

    def modules(self) -> int:
        """How many modules a warm start imports that the bare interpreter does not."""
        with self.container.waiting():
            state = self.container.state_file.read_bytes()
            counts = []
            with open(self.hook, "rb") as file:
                python, argument = file.readline().decode()[2:-1].split(" ", 1)
            for command in (["-ISc", "pass"], [argument, self.hook]):
                words = [python, "-X", "importtime", *command]
                done = subprocess.run(words, input=state, capture_output=True, check=True, timeout=60, env=ENVIRONMENT)
                counts.append(done.stderr.count(b"import time:"))
        self.last()
        return counts[1] - counts[0]

    def calls(self, command: Sequence[str]) -> int:
        with self.container.waiting():
            return system_calls(command, self.container.state_file)


def system_calls(command: Sequence[str], state: Path = Path("/dev/null")) -> int:
    """How many system calls a command makes, by strace."""
    out = BENCH / "strace"
    with open(state, "rb") as stdin:
        words = ["strace", "-f", "-c", "-U", "calls", "-o", str(out), *command]
        subprocess.run(words, stdin=stdin, check=True, timeout=60, env=ENVIRONMENT, capture_output=True)
    return int(out.read_text().split()[-2])  # the last row: NUMBER total


# ------------------------------------------------------------------------------------------------ podman


def podman(engine: bed.Engine, image: str, hooks_dir: Path) -> Run:
    reference = engine.load(image)
    command = ["/usr/bin/env", "podman", "--runtime", engine.runtime, "--hooks-dir", str(hooks_dir)]
    return spawn([*command, "run", "--rm", "--net=none", reference, "true"], env=engine.account.environment())


# ------------------------------------------------------------------------------------------------ rounds and tables


def measure(cases: Sequence[Case], rounds: int, what: str) -> None:
    for number in range(rounds + 1):  # the first one warms the machine up and does not count
        if sys.stderr.isatty():
            print(f"\r{what}: round {number} of {rounds}", end="", file=sys.stderr, flush=True)
        for case in random.sample(cases, len(cases)):
            run = case.start()
            if number:
                case.runs.append(run)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def median_ratio(runs: Sequence[Run], base: Sequence[Run], figure: Callable[[Run], float]) -> float:
    return statistics.median(figure(run) / figure(other) for run, other in zip(runs, base))


def met(found: float, limit: float) -> str:
    return "met" if found <= limit else "not met"


def table(cases: Sequence[Case]) -> list[str]:
    """Lines for people. "x": the ratio to the case's base, by wall time and by CPU time."""
    by_name = {case.name: case for case in cases}
    width = max(len(case.name) for case in cases)
    lines = [f"{'':{width}}  wall ms    p10    p90  cpu ms  RSS MiB      x  x cpu  budget"]
    for case in cases:
        walls = sorted(run.wall for run in case.runs)
        wall = statistics.median(walls)
        tenth = len(walls) // 10
        rss = max(run.rss for run in case.runs)
        line = f"{case.name:{width}}  {wall:7.2f} {walls[tenth]:6.2f} {walls[-1 - tenth]:6.2f}"
        line += f"  {statistics.median(run.cpu for run in case.runs):6.2f}  {rss:7.1f}"
        ratio = 1.0
        if case.base:
            base = by_name[case.base].runs
            ratio = median_ratio(case.runs, base, lambda run: run.wall)
            line += f"  {ratio:5.2f}  {median_ratio(case.runs, base, lambda run: run.cpu):5.2f}"
        else:
            line += "   1.00   1.00"
        if case.budget:
            line += f"  {case.budget}: {met(wall if case.in_ms else ratio, case.limit)}"
        lines.append(line)
    return lines


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    version = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=True, timeout=30).stdout.split()[-1]
    return (
        f"{model}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; Linux {platform.release()}; "
        f"Python {platform.python_version()} ({sys.executable}); podman {version}"
    )


def compile_programs() -> None:
    BENCH.mkdir(parents=True, exist_ok=True)
    for program in (SPAWN, BIND_TREE):
        source = Path(__file__).with_name(program.name + ".c")
        subprocess.run(["gcc", "-O2", "-Wall", "-static", "-o", program, source], check=True, timeout=120)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a hook costs, side by side in one run.")
    parser.add_argument("--rounds", type=int, default=40, help="starts of each case (default: %(default)s)")
    parser.add_argument("--podman-rounds", type=int, default=15, help="whole podman runs of each case, 0 for none (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every single measurement there")
    options = parser.parse_args()

    bed.enter()
    compile_programs()
    shutil.rmtree(BENCH / "sites", ignore_errors=True)
    print(machine())
    try:
        report, raw = run_all(options.rounds, options.podman_rounds)
    finally:
        bed.Engine.remove_named()
        for file in BENCH.glob("*.state"):
            file.unlink()
    print("\n".join(report))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "time": time.strftime("%FT%TZ", time.gmtime()), "cases": raw}, indent=1))
    return 0


def run_all(rounds: int, podman_rounds: int) -> tuple[list[str], dict[str, Any]]:
    engine = bed.Engine("crun", "root")
    asking, silent = Container(engine, "bookworm-mpich"), Container(engine, "bookworm-mpich-nolabel")
    none, small, large = Bench("none", silent, 0), Bench("small", asking, 0), Bench("large", asking, EXTRA)
    for bench in (small, large):
        bench.prepare()
    bare = [sys.executable, "-IS", "-c", "pass"]
    base = "bare interpreter"

    def few(text: str, bench: Bench) -> str:
        return f"{text}, {bench.files} files"

    alone = [
        Case(base, lambda: spawn(bare)),
        Case("hook, nothing to do", none.nothing, base, "1.2 x", 1.2),
        Case(few("hook, warm", small), small.warm, base),
        Case(few("hook, warm", large), large.warm, base, "1.5 x", 1.5),
        Case(few("C", small), small.limit, base),
        Case(few("C", large), large.limit, base),
        Case(few("hook, cold", small), small.cold, base, COLD, 500, True),
        Case(few("hook, cold", large), large.cold, base, COLD, 500, True),
        Case(few("hook, warm, timed inside", small), small.replay, base),
        Case(few("hook, warm, timed inside", large), large.replay, base),
    ]
    measure(alone, rounds, "hooks alone")
    named = {case.name: case for case in alone}
    report = ["", f"Hooks alone, {rounds} rounds", *table(alone[:-2])]

    report += ["", "Mounts, cache and checks alone, CPU time inside the process"]
    for bench in (small, large):
        ours = [run.inside or 0 for run in named[few("hook, warm, timed inside", bench)].runs]
        theirs = [run.inside or 0 for run in named[few("C", bench)].runs]
        ratio = statistics.median(one / other for one, other in zip(ours, theirs))
        report.append(
            f"{bench.files} files: Python {statistics.median(ours):.2f} ms, C {statistics.median(theirs):.2f} ms, "
            f"{ratio:.2f} x  (budget 1.5 x: {met(ratio, 1.5)})"
        )
    memory = max(run.rss for run in named[few("hook, warm", large)].runs)
    report += ["", f"Peak memory, warm: {memory:.1f} MiB  (budget 20 MiB: {met(memory, 20)})"]

    if shutil.which("strace"):
        empty = system_calls(bare)
        counts = [f"bare interpreter {empty}", f"nothing to do {none.calls([none.hook])}"]
        for bench in (small, large):
            c = bench.calls([str(BIND_TREE), str(bench.record)])
            counts.append(f"{bench.files} files: warm {bench.calls([bench.hook])}, C {c}")
        report.append("System calls: " + "; ".join(counts))
    report.append(f"Modules imported: nothing to do {none.modules()}, warm {large.modules()} beyond the bare interpreter's")

    raw = {case.name: [vars(run) for run in case.runs] for case in alone}
    if podman_rounds:
        nowhere = BENCH / "sites/no-hooks.d"
        nowhere.mkdir()
        cases = []
        for runtime in bed.RUNTIMES:
            with_runtime = bed.Engine(runtime, "root")
            first = f"podman, {runtime}, no hooks"

            def start(hooks_dir: Path, engine: bed.Engine = with_runtime) -> Callable[[], Run]:
                return lambda: podman(engine, "bookworm-mpich", hooks_dir)

            cases.append(Case(first, start(nowhere)))
            cases += [
                Case(few(f"podman, {runtime}", bench), start(bench.hooks_dir), first, "1.10 x", 1.1) for bench in (small, large)
            ]
        measure(cases, podman_rounds, "podman")
        for bench in (small, large):
            entry = bench.last()
            if entry.get("path") != "warm" or entry.get("files") != bench.files:
                raise Failed(f"podman's containers got something else: {entry}")
        report += ["", f"podman run --rm --net=none IMAGE true, {podman_rounds} rounds (cpu and RSS: podman's own process)", *table(cases)]
        raw.update({case.name: [vars(run) for run in case.runs] for case in cases})
    return report, raw


if __name__ == "__main__":
    sys.exit(main())
