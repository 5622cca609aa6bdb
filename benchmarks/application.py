"""What all this is for: programs that nobody here wrote, beside themselves: ``make bench-application``.

LAMMPS, HPCC and NetPIPE from Debian's packages and mpibench of ours, as two ranks under a real Slurm on this machine, four times in each
round, in shuffled order:

    native     in a plain chroot of the image's own files, with the site's MPI by LD_LIBRARY_PATH: no container
    again      the same once more. How far it is from the first is what this machine calls equal
    own        in a container, with the image's own MPI, and hooks that find nothing to do
    injected   in a container, with the site's MPI that the hooks bring at precreate

A figure is the median over the rounds, and a ratio the median of the ratios within a round. Then the same for starting: from srun to the
moment when the last rank has left MPI_Init, with one way more:

    by hand    in a container, with the site's MPI by a volume and LD_LIBRARY_PATH: what the injected one does, without the hooks' work

No figure is asserted. What is: the version of the MPI that each way has, and that native and injected compute the same, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from benchmarks.hook_start import machine  # noqa: E402
from tests.bed import bed  # noqa: E402
from tests.bed.site import MPICH5, OPENMPI5, Site  # noqa: E402
from tests.bed.slurm import Slurm  # noqa: E402
from tests.ranks.launch import NAMESPACES, PMI, PMI_FD_TO_3, pmix, with_kcmp  # noqa: E402

INPUTS = Path(__file__).with_name("inputs")
KIND = "application-"  # of files in benchmarks/results
NATIVE, AGAIN, OWN, INJECTED, BY_HAND = "native", "again", "own", "injected", "by hand"
WAYS = (NATIVE, AGAIN, OWN, INJECTED)
START_WAYS = (NATIVE, OWN, BY_HAND, INJECTED)
RANKS = (2, 4, 8, 16)
PATIENCE = 180
#: Of messages. NetPIPE goes on from the first to the last in steps of its own.
SIZES = (8, 1024, 16384, 262144, 2097152)
NETPIPE_SIZES = (64, 8192, 262144)
LIBRARY = {"openmpi": OPENMPI5, "mpich": MPICH5}

# What native ranks run in: a file system in memory, with the image's folders in it as they are, and the node's. /etc alone is a copy,
# since the node's hosts belong into it.
CHROOT = """\
set -eu
root=$1 image=$2; shift 2
mkdir -p "$root"
mount -t tmpfs -o mode=755 tmpfs "$root"
for entry in "$image"/*; do
    name=${entry##*/}
    if [ -L "$entry" ] || [ "$name" = etc ]; then cp -a "$entry" "$root/"; continue; fi
    mkdir "$root/$name"
    case $name in
        proc|sys|dev|tmp) mount --rbind "/$name" "$root/$name" ;;
        run) ;;
        *) mount --bind "$entry" "$root/$name" ;;
    esac
done
cp /etc/hosts "$root/etc/hosts"
for place in "$@"; do
    mkdir -p "$root$place"
    mount --rbind "$place" "$root$place"
done
"""


class Failed(Exception):
    """A run that did not do what it is there to be timed for."""


@dataclass(frozen=True)
class Outcome:
    """Of one run: its figures, and what it computed."""

    figures: Mapping[str, float]
    computed: str


@dataclass(frozen=True)
class Program:
    """One line of ranks, and how its figures (``WHAT | UNIT``) are read from what it left in its folder and said."""

    name: str
    family: str
    command: Sequence[str]
    read: Callable[[Path, str], Outcome]
    inputs: Sequence[str] = ()


# ------------------------------------------------------------------------------------------------ what programs say


def lammps(folder: Path, _: str) -> Outcome:
    """The thermodynamic output and all positions and velocities at the end, with 17 digits each."""
    log = (folder / "log").read_text()
    loop = re.search(r"^Loop time of (\S+) on 2 procs for", log, re.MULTILINE)
    thermo = re.search(r"^ *Step .*?(?=^Loop time)", log, re.MULTILINE | re.DOTALL)
    if not loop or not thermo:
        raise Failed(f"LAMMPS: {log[-2000:]}")
    digest = hashlib.sha256(thermo[0].encode() + (folder / "final.dump").read_bytes()).hexdigest()
    return Outcome({"LAMMPS, loop time | s": float(loop[1])}, digest)


HPCC = {
    "HPL_Tflops": ("HPCC, HPL | GFLOP/s", 1000), "MPIFFT_Gflops": ("HPCC, MPIFFT | GFLOP/s", 1),
    "MPIRandomAccess_GUPs": ("HPCC, MPIRandomAccess | GUP/s", 1), "StarSTREAM_Triad": ("HPCC, StarSTREAM triad | GB/s", 1),
    "RandomlyOrderedRingLatency_usec": ("HPCC, ring of 8 bytes | us", 1),
    "RandomlyOrderedRingBandwidth_GBytes": ("HPCC, ring of 2 MB | GB/s", 1),
    "AvgPingPongLatency_usec": ("HPCC, ping-pong of 8 bytes | us", 1),
    "AvgPingPongBandwidth_GBytes": ("HPCC, ping-pong of 2 MB | GB/s", 1),
}  # fmt: skip


def hpcc(folder: Path, _: str) -> Outcome:
    """Its own checks must have passed (it leaves out some for which it had no time); of what it computed it tells the residual of HPL, the
    norm of its solution, and the error of the FFT."""
    said = (folder / "hpccoutf.txt").read_text()
    found = dict(re.findall(r"^(\w+)=(\S+)$", said, re.MULTILINE))
    passed = re.findall(r"PASSED|\(passed\)", said)
    bad = re.findall(r".*(?:FAILED|\(failed\)|Failed to allocate).*|.*_Errors=[1-9].*", said)
    if found.get("Success") != "1" or bad or not passed:
        raise Failed(f"HPCC: {bad or said[-2000:]}")
    figures = {name: float(found[key]) * factor for key, (name, factor) in HPCC.items()}
    kept = [found[key] for key in ("HPL_RnormI", "HPL_XnormI", "MPIFFT_maxErr")]
    return Outcome(figures, " ".join(kept))


def netpipe(family: str) -> Callable[[Path, str], Outcome]:
    def read(folder: Path, _: str) -> Outcome:
        rows = [line.split() for line in (folder / "np.out").read_text().splitlines()]
        rates = {int(size): float(rate) for size, rate, _ in rows}
        # It prints microseconds with two digits, and megabits with more.
        return Outcome({f"NetPIPE, {family}, {size} bytes | us": size * 8 / rates[size] for size in NETPIPE_SIZES}, "")

    return read


def mpibench(family: str) -> Callable[[Path, str], Outcome]:
    def read(_: Path, said: str) -> Outcome:
        found = re.findall(r"^(pingpong|allreduce) (\d+) (\S+)$", said, re.MULTILINE)
        checked = re.search(r"^checked (\w+)$", said, re.MULTILINE)
        if len(found) != 2 * len(SIZES) or not checked:
            raise Failed(f"mpibench: {said}")
        ordered = sorted(found, key=lambda row: row[0], reverse=True)
        return Outcome({f"{what}, {family}, {size} bytes | us": float(value) for what, size, value in ordered}, checked[1])

    return read


def programs(steps: int, messages: int) -> list[Program]:
    """`steps`: of LAMMPS; `messages`: of each size, of NetPIPE."""
    lmp = ["lmp", "-in", "in.melt", "-var", "steps", str(steps), "-log", "log", "-screen", "none"]
    pipe = ["-l", "8", "-u", str(NETPIPE_SIZES[-1]), "-p", "0", "-n", str(messages), "-o", "np.out"]
    sizes = [str(size) for size in SIZES]
    return [
        Program("LAMMPS", "openmpi", lmp, lammps, ["in.melt"]),
        Program("HPCC", "openmpi", ["hpcc"], hpcc, ["hpccinf.txt"]),
        Program("NetPIPE, Open MPI", "openmpi", ["NPopenmpi", *pipe], netpipe("Open MPI")),
        Program("NetPIPE, MPICH", "mpich", ["NPmpich2", *pipe], netpipe("MPICH")),
        Program("mpibench, Open MPI", "openmpi", ["mpibench", *sizes], mpibench("Open MPI")),
        Program("mpibench, MPICH", "mpich", ["mpibench", *sizes], mpibench("MPICH")),
    ]


# ------------------------------------------------------------------------------------------------ where they run


class Ground:
    """A cluster of one node, and for each family an image, a chroot of the same files, and a site whose MPI is the hooks' to bring."""

    def __init__(self, slurm: Slurm, folder: Path, runtime: str) -> None:
        self.slurm = slurm
        self.engine = bed.Engine(runtime, "root")
        self.work = folder / "work"
        self.work.mkdir()
        self.nowhere = folder / "no-hooks.d"
        self.nowhere.mkdir()
        self.seccomp = with_kcmp(folder / "seccomp.json")
        # Debian's programs ask for libmpich.so.12, and the site's MPICH is called otherwise: what its administrator would do.
        alias = folder / "lib"
        alias.mkdir()
        (alias / "libmpich.so.12").symlink_to(MPICH5 / "libmpi.so.12")
        (alias / "mpich").symlink_to(MPICH5 / "mpich")
        self.path = {"openmpi": f"{OPENMPI5}", "mpich": f"{alias}:{MPICH5}"}
        self.places = [str(place) for place in (self.work, alias, OPENMPI5.parent, MPICH5.parent, slurm.spool)]
        self.root = {}
        for family in LIBRARY:
            self.root[family] = str(folder / "native" / family)
            image = str(bed.BUILD / f"images/apps-{family}")
            done = slurm.inside("n1", "bash", "-c", CHROOT, "chroot", self.root[family], image, *self.places)
            if done.returncode:
                raise Failed(f"no chroot: {done.stderr}")
            self.engine.load(f"apps-{family}")
        self.site = Site(folder / "site")
        self.site.configure([MPICH5], openmpi=[OPENMPI5])
        self.site.scan()
        self.hooks_dir = self.site.register() / "podman"

    def line(self, way: str, family: str, command: Sequence[str]) -> list[str]:
        """What srun starts as one rank."""
        if way in (NATIVE, AGAIN):
            library = f"LD_LIBRARY_PATH={self.path[family]}"
            return ["chroot", self.root[family], "env", f"--chdir={self.work}", library, *command]
        hooks = self.hooks_dir if way == INJECTED else self.nowhere
        words = ["podman", "--runtime", self.engine.runtime, "--hooks-dir", str(hooks), "run", "--rm"]
        words.append(f"--security-opt=seccomp={self.seccomp}")
        if way == INJECTED:
            words += [*NAMESPACES, "--annotation=org.supercontainers.launcher=auto", *(["--preserve-fds=1"] if family == "mpich" else [])]
        else:
            words += [*(PMI if family == "mpich" else pmix(self.slurm, self.engine)), "--env=OMPI_MCA_*"]
        if way == BY_HAND:
            words += [f"--volume={place}:{place}:ro" for place in self.places[1:4]] + [f"--env=LD_LIBRARY_PATH={self.path[family]}"]
        words += [f"--volume={self.work}:{self.work}", f"--workdir={self.work}", self.engine.load(f"apps-{family}"), *command]
        return [*(PMI_FD_TO_3 if family == "mpich" else ()), *words]

    def run(self, way: str, family: str, command: Sequence[str], ranks: int) -> tuple[str, float, int]:
        """Returns what they said, how long the whole took in seconds, and when it began on the clock that mpibench uses."""
        launcher = ["srun", f"--mpi={'pmi2' if family == 'mpich' else 'pmix'}", "--nodes=1", f"--ntasks={ranks}", "--overcommit",
                    "--kill-on-bad-exit=1"]  # fmt: skip
        # More ranks than cores: who waits should let others run, or the figure is that of the scheduler.
        env = {"OMPI_MCA_mpi_yield_when_idle": "1"} if ranks > 2 else {}
        began = time.monotonic_ns()
        done = self.slurm.execute(*launcher, *self.line(way, family, command), env=env, timeout=PATIENCE)
        seconds = (time.monotonic_ns() - began) / 1e9
        if done.returncode:
            raise Failed(f"{way}, {' '.join(command)}: exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout, seconds, began

    def hooks_said(self) -> list[dict[str, Any]]:
        """The hooks' log since the last call."""
        lines = self.site.log_file.read_text().splitlines() if self.site.log_file.exists() else []
        self.site.log_file.write_text("")
        return [json.loads(line) for line in lines]

    def once(self, way: str, program: Program) -> Outcome:
        for left in self.work.iterdir():
            left.unlink()
        for name in program.inputs:
            shutil.copyfile(INPUTS / name, self.work / name)
        self.hooks_said()
        said, seconds, _ = self.run(way, program.family, program.command, 2)
        entries = self.hooks_said()
        expected = ["proved"] * 2 if way == INJECTED else []
        if [entry["verdict"] for entry in entries] != expected:
            raise Failed(f"{way}, {program.name}: the hooks said {entries}")
        outcome = program.read(self.work, said)
        return Outcome({**outcome.figures, f"{program.name}, from srun to the end | s": seconds}, outcome.computed)

    def started(self, way: str, family: str, ranks: int) -> float:
        """Seconds from srun to the moment when the last rank had left MPI_Init."""
        said, _, began = self.run(way, family, ["mpibench"], ranks)
        found = re.search(rf"^started {ranks} (\d+)$", said, re.MULTILINE)
        if not found:
            raise Failed(f"{way}, {ranks} ranks: {said}")
        return (int(found[1]) - began) / 1e9

    def versions(self, family: str) -> dict[str, str]:
        """The MPI that each way has. Raises Failed if native and injected differ, or if nothing is injected at all."""
        found = {}
        for way in (NATIVE, OWN, BY_HAND, INJECTED):
            said, _, _ = self.run(way, family, ["mpibench"], 2)
            match = re.search(r"^version (?:MPICH Version:\s*|Open MPI v)(\S+)", said, re.MULTILINE)
            found[way] = match[1] if match else said
        if not found[NATIVE] == found[BY_HAND] == found[INJECTED] != found[OWN]:
            raise Failed(f"{family}: {found}")
        return found


# ------------------------------------------------------------------------------------------------ rounds


def in_rounds(rounds: int, deadline: float, one: Callable[[], None], what: str) -> int:
    """As many rounds as seem to end before `deadline`, at most `rounds` and at least one. Returns how many there were."""
    longest, done = 0.0, 0
    while done < rounds and (not done or time.monotonic() + longest < deadline):
        began = time.monotonic()
        one()
        longest = max(longest, time.monotonic() - began)
        done += 1
        print(f"{what}: round {done} of at most {rounds}, {longest:.0f} s each", file=sys.stderr, flush=True)
    return done


Measured = dict[str, dict[str, list[float]]]  # figure, way, rounds


def measure_programs(ground: Ground, wanted: Sequence[Program], rounds: int, deadline: float) -> tuple[Measured, dict[str, Any], int]:
    figures: Measured = {}
    computed: dict[str, dict[str, set[str]]] = {program.name: {way: set() for way in WAYS} for program in wanted}
    for program in wanted:  # files into memory, plans made: not counted
        for way in (NATIVE, INJECTED):
            for name in ground.once(way, program).figures:
                figures.setdefault(name, {way: [] for way in WAYS})

    def one() -> None:
        for program, way in shuffled((program, way) for program in wanted for way in WAYS):
            outcome = ground.once(way, program)
            computed[program.name][way].add(outcome.computed)
            for name, value in outcome.figures.items():
                figures[name][way].append(value)

    done = in_rounds(rounds, deadline, one, "programs")
    return figures, {name: {way: sorted(found) for way, found in ways.items()} for name, ways in computed.items()}, done


def measure_starts(ground: Ground, sizes: Sequence[int], rounds: int, deadline: float) -> tuple[Measured, int]:
    figures: Measured = {f"{ranks} ranks | s": {way: [] for way in START_WAYS} for ranks in sizes}

    def one() -> None:
        for ranks, way in shuffled((ranks, way) for ranks in sizes for way in START_WAYS):
            figures[f"{ranks} ranks | s"][way].append(ground.started(way, "openmpi", ranks))

    done = in_rounds(rounds, deadline, one, "starts")
    return figures, done


def shuffled(pairs: Iterable[tuple[Any, str]]) -> list[tuple[Any, str]]:
    listed = list(pairs)
    return random.sample(listed, len(listed))


# ------------------------------------------------------------------------------------------------ tables


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(over, under)]


def rows_of(figures: Measured) -> dict[str, dict[str, Any]]:
    """Of each figure and way the median and the range; of each way the median of its ratios to native within a round."""
    rows: dict[str, dict[str, Any]] = {}
    for name, ways in figures.items():
        row: dict[str, Any] = {}
        for way, values in ways.items():
            row[way] = {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": values}
            if way != NATIVE:
                found = ratios(values, ways[NATIVE])
                row[f"{way} / {NATIVE}"] = {"median": statistics.median(found), "least": min(found), "most": max(found)}
        if BY_HAND in ways:
            found = ratios(ways[INJECTED], ways[BY_HAND])
            row[f"{INJECTED} / {BY_HAND}"] = {"median": statistics.median(found), "least": min(found), "most": max(found)}
        rows[name] = row
    return rows


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def spread(figure: Mapping[str, float], show: Callable[[float], str]) -> str:
    return f"{show(figure['median'])} ({show(figure['least'])}–{show(figure['most'])})"


def ratio(figure: Mapping[str, float]) -> str:
    return spread(figure, lambda value: f"{value:.2f}")


def within(row: Mapping[str, Any]) -> str:
    """Whether the injected run is as near to a native one as native ones are to each other; "" if too few were made to tell."""
    if len(row[NATIVE]["rounds"]) < 3:
        return ""
    noise, ours = row[f"{AGAIN} / {NATIVE}"], row[f"{INJECTED} / {NATIVE}"]["median"]
    return "yes" if noise["least"] <= ours <= noise["most"] else "no"


def program_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| | unit | native | own MPI | injected | injected / native | native again / native | within it |", "| --- " * 8 + "|"]
    for name, row in rows.items():
        what, unit = name.split(" | ")
        values = [spread(row[way], number) for way in (NATIVE, OWN, INJECTED)]
        compared = [ratio(row[f"{way} / {NATIVE}"]) for way in (INJECTED, AGAIN)]
        last = "" if "from srun" in what else within(row)  # that one is meant to differ: it starts containers
        lines.append("| " + " | ".join([what, unit, *values, *compared, last]) + " |")
    return lines


def start_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| | native | container, own MPI | container, by hand | container, injected | injected / by hand | injected / native |",
             "| --- " * 7 + "|"]  # fmt: skip
    for name, row in rows.items():
        values = [spread(row[way], lambda value: f"{value:.2f}") for way in START_WAYS]
        lines.append("| " + " | ".join([name.split(" | ")[0], *values, ratio(row[f"{INJECTED} / {BY_HAND}"]),
                                        ratio(row[f"{INJECTED} / {NATIVE}"])]) + " |")
    return lines


def same(computed: Mapping[str, Mapping[str, Sequence[str]]]) -> tuple[list[str], list[str]]:
    """Of each program that says what it has computed: a sentence, and those for which the same MPI has not given the same bits."""
    lines, different = [], []
    for name, ways in computed.items():
        equal = set(ways[NATIVE]) | set(ways[AGAIN]) | set(ways[INJECTED])
        if equal == {""}:
            continue
        if len(equal) != 1:
            different.append(name)
        own = "the same" if set(ways[OWN]) == equal else "something else"
        told = next(iter(equal)) if len(equal) == 1 else f"{sorted(equal)}"
        lines.append(f"- {name}: native and injected {'the same in every round' if len(equal) == 1 else 'DIFFER'} ({told}); "
                     f"the image's own MPI {own}")  # fmt: skip
    return lines, different


def beside(rows: Mapping[str, Mapping[str, Any]], before: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, row in rows.items():
        old = before.get("rows", {}).get(name)
        for which in (f"{INJECTED} / {NATIVE}", f"{INJECTED} / {BY_HAND}"):
            if old and which in old and which in row:
                lines.append(f"{name:52} {which:19} {old[which]['median']:.2f} -> {row[which]['median']:.2f}")
    return lines


# ------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="Applications: native, in a container, and in a container with the site's MPI.")
    parser.add_argument("--rounds", type=int, default=7, help="of each program and way, at most (default: %(default)s)")
    parser.add_argument("--start-rounds", type=int, default=5, help="of each start, at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=440, help="fewer rounds if they would take longer than that in all, "
                        "but one of each (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="of LAMMPS (default: %(default)s)")
    parser.add_argument("--messages", type=int, default=400, help="of each size, of NetPIPE (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="two small rounds of everything, starts of 2 and 4 ranks")
    parser.add_argument("--runtime", choices=bed.RUNTIMES, default="crun")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results, to be committed")
    options = parser.parse_args()
    if options.short:
        options.rounds = options.start_rounds = 2
        options.steps, options.messages = 50, 100
    began = time.monotonic()
    folder = bed.scratch("application")
    try:
        with Slurm(folder / "cluster", nodes=("n1",)) as slurm:
            ground = Ground(slurm, folder, options.runtime)
            document, report, different = measure(ground, options, began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(report))
    before = results.last(KIND)
    if before:
        print(f"\nBeside {before['time']} ({before['machine']}): ratios then and now\n")
        print("\n".join(beside(document["rows"], before)))
    if options.write:
        results.write(Path(__file__).name, report)
    if options.save:
        print(f"\nwritten: {results.save(document, KIND)}")
    print(f"\n{time.monotonic() - began:.0f} s")
    return 1 if different else 0


def measure(ground: Ground, options: argparse.Namespace, began: float) -> tuple[dict[str, Any], list[str], list[str]]:
    told = machine()
    versions = {family: ground.versions(family) for family in LIBRARY}
    end = began + options.seconds
    for_starts = 0.25 * options.seconds
    wanted = programs(options.steps, options.messages)
    figures, computed, rounds = measure_programs(ground, wanted, options.rounds, end - for_starts)
    starts, start_rounds = measure_starts(ground, RANKS[:2] if options.short else RANKS, options.start_rounds, end)
    rows, start_rows = rows_of(figures), rows_of(starts)
    words, different = same(computed)
    names = {"openmpi": "Open MPI", "mpich": "MPICH"}
    report = [told, ""]
    report += [f"- {names[family]}: {found[OWN]} in the image, {found[INJECTED]} the site's" for family, found in versions.items()]
    report += ["", f"### Two ranks, {rounds} rounds: median (least–most); of s and us less is better, of the others more", ""]
    report += program_table(rows)
    report += ["", "What was computed:", "", *words]
    report += ["", f"### From srun --mpi=pmix to the last rank's return from MPI_Init, seconds, {start_rounds} rounds", ""]
    report += start_table(start_rows)
    document = {"machine": told, "time": time.strftime("%FT%TZ", time.gmtime()), "rounds": rounds, "start_rounds": start_rounds,
                "versions": versions, "computed": computed, "rows": {**rows, **start_rows}, "runtime": ground.engine.runtime,
                "steps": options.steps}  # fmt: skip
    return document, report, different


if __name__ == "__main__":
    sys.exit(main())
