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
import functools
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

from benchmarks import images, results  # noqa: E402
from oci_hpc_hooks import pack  # noqa: E402
from tests.bed import bed  # noqa: E402
from tests.bed.site import MPICH5, Site  # noqa: E402

BENCH = bed.BUILD / "bench"
SPAWN = BENCH / "spawn"
BIND_TREE = BENCH / "bind_tree"
#: The bare interpreter is started as anybody would, a hook with what its descriptor gives it.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
HOOK_ENVIRONMENT = dict(item.split("=", 1) for item in json.loads((ROOT / "hooks.d/oci-hpc-hooks.json").read_text())["hook"]["env"])
#: Libraries that the large plan has beyond MPICH's own files: a fabric and a GPU stack are as many.
EXTRA = 30
IMAGE = "bookworm-mpich"
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
    counted: Optional[tuple[list[str], Optional[Bench], bool]] = None  # to count its system calls: command, where, at precreate
    mounts_nothing: bool = False
    runs: list[Run] = field(default_factory=list)


@dataclass
class Series:
    """Cases of different sizes. `sizes`: what grows, by its unit, one for each size, which has `kinds` cases one after the other."""

    title: str
    sizes: dict[str, list[float]]
    kinds: Sequence[str]
    cases: list[Case]

    def slopes(self, rows: dict[str, dict[str, float]]) -> Iterator[tuple[str, str, float]]:
        """(kind, unit, us of CPU time for one more), by the medians of each case."""
        for index, kind in enumerate(self.kinds):
            times = [rows[case.name]["cpu"] * 1000 for case in self.cases[index :: len(self.kinds)]]
            for unit, sizes in self.sizes.items():
                yield kind, unit, results.slope(list(zip(sizes, times)))


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


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)


class Container:
    """A container of podman's, made and never started: its rootfs is mounted, its bundle is complete."""

    def __init__(self, engine: bed.Engine, image: str, command: Sequence[str] = ("mpihello",), options: Sequence[str] = ()) -> None:
        self.engine = engine
        self.name = engine.new_name()
        create = ["create", "--net=none", "--name", self.name, *options, engine.load(image), *command]
        self.id = engine.podman(*create, check=True).stdout.strip()
        engine.podman("init", self.name, check=True)
        self.rootfs = self.mounted()
        config = engine.podman("inspect", "--format", "{{.OCIConfigPath}}", self.name, check=True).stdout.strip()
        self.bundle = os.path.dirname(config)
        self.config = json.loads(Path(config).read_text())
        self.config_file = Path(config)
        self.state_file = BENCH / f"{self.name}.state"

    def mounted(self) -> str:
        """Mounts the root file system, and says where."""
        return self.engine.podman("mount", self.name, check=True).stdout.strip()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[int]:
        """A first process for it, as a runtime has one when createRuntime hooks run; the state is in `state_file` then. Yields its pid."""
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self.make_mounts()
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

    def make_root(self) -> None:
        """A mount namespace of its own, with the root file system in its place."""
        if _libc.unshare(CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mount(self.rootfs, self.rootfs, "", MS_BIND | MS_REC)

    def make_mounts(self) -> None:
        self.make_root()
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
                # A runtime takes the container's other namespaces for these; to a hook they are mounts like any other.
                mount(wanted["type"], target, "tmpfs", 0)


def mounts_of(pid: int) -> list[tuple[str, ...]]:
    """The mounts of a process's namespace without their numbers: root, mount point, options, propagation, type, source …"""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        found.append(tuple(line.split()[3:]))
    return sorted(found)


# ------------------------------------------------------------------------------------------------ sites


class Bench:
    """One registered installation and one container, with everything that is timed on them."""

    def __init__(self, name: str, container: Container, extra: int = 0, *, stub: bool = False, profiles: int = 0) -> None:
        """``extra`` libraries more than the MPI has; ``stub``: one that is a single file and does nothing; ``profiles`` more than those
        that are shipped, each of which finds the same libraries."""
        self.name = name
        self.container = container
        folder = BENCH / "sites" / name
        self.site = Site(folder)
        libraries = folder / "lib" if extra or stub or profiles else MPICH5
        if libraries != MPICH5:
            self._profile(libraries, extra, stub, profiles)
        # Mounts alone, as the C program makes them: a cache that is a file in the layer would also make each next start a cold one.
        self.site.configure([libraries], loader_cache="bind")
        if profiles:
            site = json.loads((self.site.config_dir / "site.json").read_text())
            site["profiles"] += [{"name": f"bench{number:03d}", "search": [str(libraries)]} for number in range(profiles)]
            (self.site.config_dir / "site.json").write_text(json.dumps(site))
        self.site.scan()
        self.hooks_dir = self.site.register()
        descriptor = json.loads((self.hooks_dir / "oci-hpc-hooks.json").read_text())
        self.hook: str = descriptor["hook"]["path"]
        self.precreate_hook = self.hook.replace("createruntime", "precreate")
        self.record = folder / "record"
        self.timed = folder / "timed"
        self.files = 0

    def _profile(self, libraries: Path, extra: int, stub: bool, profiles: int) -> None:
        """The shipped profile with `extra` small libraries more, each a real shared object, beside a copy of the MPI or a stub of it."""
        names = [f"libbench{number:02d}.so.1" for number in range(extra)]
        if stub:
            libraries.mkdir(parents=True)
            images.library(libraries, names)
            images.stub(MPICH5 / "libmpi.so.12", libraries / "libmpi.so.12", names)
            names = []  # they come because it needs them
        else:
            shutil.copytree(MPICH5, libraries, symlinks=True)
            images.library(libraries, names)
        profile = json.loads((ROOT / "oci_hpc_hooks/profiles.d/mpich.json").read_text())
        profile.pop("$schema", None)
        profile["libraries"] += [{"soname": name, "role": "add"} for name in names]
        folder = self.site.config_dir / "profiles.d"
        folder.mkdir(mode=0o755)
        (folder / "mpich.json").write_text(json.dumps(profile))
        for number in range(profiles):
            (folder / f"bench{number:03d}.json").write_text(json.dumps({**profile, "name": f"bench{number:03d}"}))

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
            run = spawn([self.hook], self.container.state_file, HOOK_ENVIRONMENT)
        return self._left_alone(run)

    def nothing_precreate(self) -> Run:
        return self._left_alone(spawn([self.precreate_hook], self.container.config_file, HOOK_ENVIRONMENT))

    def _left_alone(self, run: Run) -> Run:
        if self.last():
            raise Failed("the hook with nothing to do did something")
        return run

    def precreate(self) -> Run:
        """podman's stage: the configuration on stdin; nothing is mounted by us."""
        return self._checked("warm", spawn([self.precreate_hook], self.container.config_file, HOOK_ENVIRONMENT))

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
            run = spawn(command, self.container.state_file, HOOK_ENVIRONMENT)
        return self._checked(path, run)

    def _checked(self, path: str, run: Run) -> Run:
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
        lines = [  # a hook limits its processor time, and then the kernel brings a process's clock forward at ticks only
            "from posix import write",
            "from time import thread_time_ns",
            "from oci_hpc_hooks import replay",
            "replayed, logged = replay.replay, replay.Service.log",
            "def timed(*arguments):",
            "    global began",
            "    began = thread_time_ns()",
            "    replayed(*arguments)",
            "def log(*arguments, **more):",
            "    write(2, b'%d' % (thread_time_ns() - began))",
            "    logged(*arguments, **more)",
            "replay.replay, replay.Service.log = timed, log",
        ]
        changed = head + "\n" + "\n".join(lines) + call + tail
        self.timed.write_bytes(pack.joined(sys.executable, changed.encode(), code))
        self.timed.chmod(0o755)

    # -- counts

    def modules(self) -> int:
        """How many modules a start imports that the bare interpreter does not."""
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

def counts(case: Case) -> dict[str, float]:
    """System calls of a case, and instructions in user mode where the machine counts them."""
    if case.counted is None:
        return {}
    command, bench, early = case.counted
    found = {}
    programs = {"calls": ["strace", "-f", "-c", "-U", "calls", "-o"], "instructions": ["perf", "stat", "-x,", "-e", "instructions:u", "-o"]}
    for name, program in programs.items():
        if not shutil.which(program[0]):
            continue
        out = BENCH / program[0]
        if "cold" in case.name and bench:
            for plan in bench.plans():
                plan.unlink()
        with bench.container.waiting() if bench and not early else contextlib.nullcontext():
            given = Path("/dev/null") if bench is None else bench.container.config_file if early else bench.container.state_file
            with open(given, "rb") as stdin:
                env = ENVIRONMENT if bench is None else HOOK_ENVIRONMENT
                subprocess.run([*program, str(out), *command], stdin=stdin, check=True, timeout=60, env=env, capture_output=True)
        if bench:
            bench.last()
        text = out.read_text()
        if name == "calls":
            found[name] = float(text.split()[-2])  # the last row: NUMBER total
        else:
            value = next((line.split(",")[0] for line in text.splitlines() if "instructions" in line), "")
            if value.isdigit():
                found[name] = float(value)
    if "instructions" not in found and case.mounts_nothing and shutil.which("valgrind"):
        found["instructions"] = emulated(command, bench, early)
    return found


def emulated(command: Sequence[str], bench: Optional[Bench], early: bool) -> float:
    """Instructions in user mode as valgrind counts them, which knows none of the system calls that mount: of what mounts nothing."""
    out = BENCH / "callgrind"
    options = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
    if bench:  # a script's interpreter is what runs
        with open(command[0], "rb") as file:
            command = [*file.readline().decode()[2:-1].split(" ", 1), *command]
    with bench.container.waiting() if bench and not early else contextlib.nullcontext():
        given = Path("/dev/null") if bench is None else bench.container.config_file if early else bench.container.state_file
        with open(given, "rb") as stdin:
            env = ENVIRONMENT if bench is None else HOOK_ENVIRONMENT
            subprocess.run([*options, *command], stdin=stdin, check=True, timeout=120, env=env, capture_output=True)
    line = next(line for line in out.read_text(errors="replace").splitlines() if line.startswith(("summary:", "totals:")))
    return float(line.split()[1])


# ------------------------------------------------------------------------------------------------ podman


def podman(engine: bed.Engine, hooks_dir: Path, options: Sequence[str] = ()) -> Run:
    """A whole start of the image, whose program is true."""
    reference = engine.load(IMAGE)
    command = ["/usr/bin/env", "podman", "--runtime", engine.runtime, "--hooks-dir", str(hooks_dir)]
    return spawn([*command, "run", "--rm", "--net=none", *options, reference, "true"], env=engine.account.environment())


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


def rows_of(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """The figures of each case. x: the ratio to its base, the median of the ratios within a round."""
    by_name = {case.name: case for case in cases}
    found = {}
    for case in cases:
        walls = sorted(run.wall for run in case.runs)
        base = by_name[case.base].runs if case.base else case.runs
        found[case.name] = {
            "wall": statistics.median(walls), "p10": walls[len(walls) // 10], "p95": walls[min(len(walls) * 95 // 100, len(walls) - 1)],
            "cpu": statistics.median(run.cpu for run in case.runs), "rss": max(run.rss for run in case.runs),
            "x": median_ratio(case.runs, base, lambda run: run.wall), "x_cpu": median_ratio(case.runs, base, lambda run: run.cpu),
            **counts(case),
        }  # fmt: skip
    return found


def table(cases: Sequence[Case], rows: dict[str, dict[str, float]]) -> list[str]:
    """Lines for people, as Markdown."""
    lines = ["| | wall ms | p10 | p95 | cpu ms | peak MiB | x | x cpu | system calls | budget |", "| --- " * 10 + "|"]
    for case in cases:
        row = rows[case.name]
        calls = f"{row['calls']:.0f}" if "calls" in row else ""
        if "instructions" in row:
            calls += f", {row['instructions'] / 1e6:.1f} M instructions"
        budget = f"{case.budget}: {met(row['wall'] if case.in_ms else row['x'], case.limit)}" if case.budget else ""
        lines.append(f"| {case.name} | {row['wall']:.2f} | {row['p10']:.2f} | {row['p95']:.2f} | {row['cpu']:.2f} | {row['rss']:.1f} "
                     f"| {row['x']:.2f} | {row['x_cpu']:.2f} | {calls} | {budget} |")
    return lines


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    version = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=True, timeout=30).stdout.split()[-1]
    return (
        f"{model}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; Linux {platform.release().partition('-')[0]}; "
        f"Python {platform.python_version()}; podman {version}"
    )


def compile_programs() -> None:
    BENCH.mkdir(parents=True, exist_ok=True)
    for program in (SPAWN, BIND_TREE):
        source = Path(__file__).with_name(program.name + ".c")
        subprocess.run(["gcc", "-O2", "-Wall", "-static", "-o", program, source], check=True, timeout=120)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a hook costs, side by side in one run.")
    parser.add_argument("--rounds", type=int, default=40, help="starts of each case (default: %(default)s)")
    parser.add_argument("--podman-rounds", type=int, default=30, help="whole podman runs of each case, 0 for none (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="without the series over files, images and profiles")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results and docs/performance.md, to be committed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every single measurement there")
    options = parser.parse_args()

    bed.enter()
    compile_programs()
    shutil.rmtree(BENCH / "sites", ignore_errors=True)
    print(machine(), flush=True)
    try:
        report, rows, raw = run_all(options.rounds, options.podman_rounds, options.short)
    finally:
        bed.Engine.remove_named()
        for file in BENCH.glob("*.state"):
            file.unlink()
    print("\n".join(report))
    before = results.last()
    if before:
        print(f"\nBeside {before['time']} ({before['machine']}): then and now, x cpu (podman: x; slopes: us)\n")
        print("\n".join(results.beside(rows, before)))
    document = {"machine": machine(), "time": time.strftime("%FT%TZ", time.gmtime()), "rounds": options.rounds}
    if options.save:
        results.write("hook_start.py", [document["machine"] + ".", *report])
        print(f"\nwritten: {results.save({**document, 'rows': rows})}, {results.DOCUMENT}")
    if options.json:
        options.json.write_text(json.dumps({**document, "cases": raw}, indent=1))
    return 0


def run_all(rounds: int, podman_rounds: int, short: bool) -> tuple[list[str], dict[str, dict[str, float]], dict[str, Any]]:
    engine = bed.Engine("crun", "root")
    asking, silent = Container(engine, IMAGE), Container(engine, f"{IMAGE}-nolabel")
    none, few, many = Bench("none", silent), Bench("small", asking), Bench("large", asking, EXTRA)
    for bench in (few, many):
        bench.prepare()
    bare = [sys.executable, "-IS", "-c", "pass"]
    base = "bare interpreter"
    alone = [
        Case(base, lambda: spawn(bare), counted=(bare, None, False), mounts_nothing=True),
        Case("nothing to do", none.nothing, base, "1.2 x", 1.2, counted=([none.hook], none, False), mounts_nothing=True),
        Case("nothing to do, precreate", none.nothing_precreate, base, "1.2 x", 1.2, counted=([none.precreate_hook], none, True),
             mounts_nothing=True),
    ]
    for bench in (few, many):
        hook, early = ([bench.hook], bench, False), ([bench.precreate_hook], bench, True)
        budget = "1.5 x" if bench is many else ""  # it is for forty files and more
        alone += [
            Case(f"warm, {bench.files} files", bench.warm, base, budget, 1.5, counted=hook),
            Case(f"warm, {bench.files} files, precreate", bench.precreate, base, budget, 1.5, counted=early),
            Case(f"cold, {bench.files} files", bench.cold, base, COLD, 500, True, counted=hook),
            Case(f"C, {bench.files} files", bench.limit, base, counted=([str(BIND_TREE), str(bench.record)], bench, False)),
        ]
    inside = {bench.files: Case(f"warm, {bench.files} files, timed inside", bench.replay, base) for bench in (few, many)}
    series = [] if short else make_series(engine, asking, base)
    measure([*alone, *inside.values(), *(case for each in series for case in each.cases)], rounds, "hooks alone")

    rows = rows_of([*alone, *inside.values()])
    report = ["", f"## Hooks alone, {rounds} rounds", "", *table(alone, rows)]
    report += ["", "Mounts, cache and checks alone, CPU time inside the process:", ""]
    named = {case.name: case for case in alone}
    for files, case in inside.items():
        ours = [run.inside or 0 for run in case.runs]
        theirs = [run.inside or 0 for run in named[f"C, {files} files"].runs]
        ratio = statistics.median(one / other for one, other in zip(ours, theirs))
        rows[f"inside, {files} files"] = {"cpu": statistics.median(ours), "x_cpu": ratio}
        told = f" (budget 1.5 x: {met(ratio, 1.5)})" if files == many.files else ""
        report.append(f"- {files} files: Python {statistics.median(ours):.2f} ms, C {statistics.median(theirs):.2f} ms, "
                      f"{ratio:.2f} x{told}")
    memory = rows[f"warm, {many.files} files"]["rss"]
    report += ["", f"Peak memory, warm: {memory:.1f} MiB (budget 20 MiB: {met(memory, 20)}). "
               f"Modules imported beyond the bare interpreter's: nothing to do {none.modules()}, warm {many.modules()}."]

    for each in series:
        found = rows_of([named[base], *each.cases])
        rows.update(found)
        report += ["", f"## {each.title}", "", *table(each.cases, found), ""]
        for kind, unit, rise in each.slopes(found):
            rows[f"slope, {kind}, {unit}"] = {"us": rise}
            report.append(f"- slope, {kind}: {rise:.3f} us of CPU time for each {unit}")

    raw = {case.name: [vars(run) for run in case.runs] for case in alone}
    if podman_rounds:
        with bed.cdi_folder() as folder:
            whole = podman_cases(few, many, folder)
            measure(whole, podman_rounds, "podman")
        found = rows_of(whole)
        rows.update(found)
        report += ["", f"## podman run --rm --net=none IMAGE true, {podman_rounds} rounds (cpu and peak: podman's own process)", ""]
        report += table(whole, found)
        raw.update({case.name: [vars(run) for run in case.runs] for case in whole})
    return report, rows, raw


def make_series(engine: bed.Engine, asking: Container, base: str) -> list[Series]:
    """What the cost could grow with."""
    files = Series("Files that are injected", {"injected file": []}, ("warm", "C"), [])
    for wanted in (1, 10, 40, 100):
        bench = Bench(f"files-{wanted}", asking, wanted - 1, stub=True)
        bench.prepare()
        counted = ([bench.hook], bench, False)
        files.sizes["injected file"].append(bench.files)
        files.cases += [Case(f"warm, a library that needs {wanted - 1} others", bench.warm, base, counted=counted),
                        Case(f"C, a library that needs {wanted - 1} others", bench.limit, base)]
    scratch = BENCH / "images"
    shutil.rmtree(scratch, ignore_errors=True)
    libraries = Series("Libraries of the image", {"library of the image": []}, ("warm", "cold"), [])
    made = [images.small(engine, scratch), *(images.large(engine, scratch, wanted) for wanted in (600, 1000, 5000))]
    for reference, count in made:
        bench = Bench(f"image-{count}", Container(engine, reference, [images.PROGRAM]))
        bench.prepare()
        counted = ([bench.hook], bench, False)
        libraries.sizes["library of the image"].append(count)
        libraries.cases += [Case(f"warm, an image of {count} libraries", bench.warm, base, counted=counted),
                            Case(f"cold, an image of {count} libraries", bench.cold, base, COLD, 500, True, counted=counted)]
    shutil.rmtree(scratch)
    profiles = Series("Profiles, and the size of the inventory", {"profile": [], "MiB of the inventory": []}, ("warm",), [])
    for more in (0, 10, 50):
        bench = Bench(f"profiles-{more}", asking, 1, profiles=more)
        bench.prepare()
        counted = ([bench.hook], bench, False)
        size = (bench.site.state_dir / "inventory.json").stat().st_size / (1 << 20)
        profiles.sizes["profile"].append(more)
        profiles.sizes["MiB of the inventory"].append(size)
        profiles.cases.append(Case(f"warm, {more} profiles more, an inventory of {size:.1f} MiB", bench.warm, base, counted=counted))
    return [files, libraries, profiles]


def podman_cases(few: Bench, many: Bench, cdi_folder: Path) -> list[Case]:
    """Whole starts: no hooks, hooks at both stages, and the same files by a device of CDI, which podman reads itself."""
    nowhere = BENCH / "sites/no-hooks.d"
    nowhere.mkdir()
    for bench in (few, many):
        injected(bench, bed.Engine("crun", "root"), "createRuntime", anew=True)  # the others are warm from then on
    cases = []
    for runtime in bed.RUNTIMES:
        engine = bed.Engine(runtime, "root")
        first = f"podman, {runtime}, no hooks"

        def start(options: Sequence[str] = (), engine: bed.Engine = engine) -> Callable[[], Run]:
            return lambda: podman(engine, nowhere, options)

        cases.append(Case(first, start()))
        for bench in (few, many):
            for stage in ("createRuntime", "precreate"):
                name = f"podman, {runtime}, {bench.files} files, {stage}"
                cases.append(Case(name, functools.partial(injected, bench, engine, stage), first, "1.10 x", 1.1))
                if runtime == "crun" and bench is few:
                    cases.append(Case(f"{name}, the first", functools.partial(injected, bench, engine, stage, True), first))
                    planned = functools.partial(injected, bench, engine, stage, True, True)
                    cases.append(Case(f"{name}, the first, planned ahead", planned, first, "1.10 x", 1.1))
            device = cdi_device(bench, engine, cdi_folder)
            cases.append(Case(f"podman, {runtime}, {bench.files} files, CDI", start([device]), first, "1.10 x", 1.1))
    return cases


def injected(bench: Bench, engine: bed.Engine, stage: str, anew: bool = False, planned: bool = False) -> Run:
    """A whole start with the hook at this stage; ``anew``: the first of the image, which ``planned`` was remembered beforehand (check
    --remember, not timed). Raises Failed where it was not cold or warm as that says."""
    folder = bench.hooks_dir if stage == "createRuntime" else bench.hooks_dir / "podman"
    if anew:
        for plan in bench.plans():
            plan.unlink()
    if planned:
        options = f"--run-options=--net=none --runtime={engine.runtime}"
        done = bench.site.command("check", "--remember", options, f"--hooks-dir={folder}", engine.load(IMAGE), "--", "true")
        if done.returncode != 3:  # unproved: true loads no MPI
            raise Failed(f"not remembered: {done.stdout}{done.stderr}")
    run = podman(engine, folder)
    entry = bench.last()
    if anew and not planned and entry.get("path") == "cold":
        return run
    if entry.get("path") != "warm" or entry.get("files") != bench.files:
        raise Failed(f"podman's container got something else: {entry}")
    return run


def cdi_device(bench: Bench, engine: bed.Engine, folder: Path) -> str:
    """The option that brings the whole plan of the image without a hook. Raises Failed if it does not bring the MPI."""
    done = bench.site.command("cdi", "--output", str(folder), "--name", bench.name, "--image", engine.load(IMAGE))
    option = f"--device=oci-hpc-hooks.org/image={bench.name}"
    said = engine.run(IMAGE, "mpihello", options=[option])
    if "5.0.2" not in said.stdout:
        raise Failed(f"no MPI by CDI: {done.stdout}{done.stderr}{said.stdout}{said.stderr}")
    return option


if __name__ == "__main__":
    sys.exit(main())
