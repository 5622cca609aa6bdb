"""Thousands of starts and stops with hooks of two versions side by side, and what they leave behind: ``make soak``.

An update replaces a package while containers start. So the hooks of an older version (see versions.py) and of this one work on the same
site, inventory and caches, and now and then one of them scans. Each start is of one kind (asks for nothing, is served, is refused, is
stopped while it runs), one runtime and user, one stage and one version, all in random order, several at once. What asks for nothing
always starts; the others get what they should, but that the older version may want an inventory of its own, in one sentence.

Counted before and after: mounts, files, processes, descriptors, cgroups, remembered plans, memory.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import os
import platform
import random
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

from benchmarks import results
from benchmarks.hook_start import machine
from oci_hpc_hooks.record import PLANS_LIMIT, WHOLE
from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import Site
from tests.engine.inside import OWN_VERSION, SITE_VERSION
from tests.soak import versions
from tests.soak.versions import Version

PAGE = bed.ROOT / "docs/security.md"
#: Starts between two scans.
SWITCH = 25
#: Seconds in which engines tidy up behind themselves.
PATIENCE = 30
#: MiB by which a figure of memory may grow: other work of the node is in those of /proc/meminfo.
MEMORY = {"SUnreclaim": 64, "Percpu": 32, "KernelStack": 8, "RssAnon": 32}


# ------------------------------------------------------------------------------------------------ what is started


@dataclasses.dataclass(frozen=True)
class Kind:
    """A container, and what it says where it is served as it should be."""

    name: str
    image: str
    command: Sequence[str]
    says: str
    options: Sequence[str] = ()
    asks: bool = True

    @property
    def refused(self) -> bool:
        return self.name.startswith("refused")


MPI = "org.supercontainers.mpi"
STOPPED = "stopped while it runs"
KINDS = (
    Kind("asks for nothing", "bookworm-mpich-nolabel", ("mpihello",), OWN_VERSION, asks=False),
    Kind("asks to be left alone", "bookworm-mpich", ("mpihello",), OWN_VERSION, (f"--annotation={MPI}=none",), asks=False),
    Kind("served", "bookworm-mpich", ("mpihello",), SITE_VERSION),
    Kind("served, an older image", "bullseye-mpich", ("mpihello",), SITE_VERSION),
    Kind("served, no loader cache", "nocache", ("mpihello",), SITE_VERSION),
    Kind("served, never seen before", "bookworm-mpich", ("mpihello",), SITE_VERSION, ("--env=LD_LIBRARY_PATH=/nowhere/{number}",)),
    Kind(STOPPED, "bookworm-mpich", ("sleep", "300"), "", ("--detach",)),
    Kind("refused, musl", "musl", ("muslhello",), "needs glibc"),
    Kind("refused, another MPI", "bookworm-mpich", ("mpihello",), "openmpi", (f"--annotation={MPI}=openmpi",)),
)


@dataclasses.dataclass(frozen=True)
class Start:
    number: int
    kind: Kind
    engine: Engine
    stage: str  # a folder below --hooks-dir
    version: Version


def starts(count: int, engines: Sequence[Engine], both: Sequence[Version]) -> list[Start]:
    """So many, always the same: all combinations in random order, again and again."""
    draw = random.Random(7)
    found: list[Start] = []
    combinations = [(kind, engine, stage, version) for kind in KINDS for engine in engines for stage in ("", "podman") for version in both]
    while len(found) < count:
        draw.shuffle(combinations)
        found += [Start(len(found) + index, *combination) for index, combination in enumerate(combinations)]
    return found[:count]


def warm_up(engines: Sequence[Engine], both: Sequence[Version]) -> list[Start]:
    """One start of each kind by each engine, for what engines make once and keep: podman's copy of an image's topmost layer for each user
    namespace that uses it (containers-storage, "mapped top layers"), locks, folders of states."""
    both_stages = itertools.cycle((stage, version) for stage in ("", "podman") for version in both)
    return [Start(number, kind, engine, *next(both_stages))
            for number, (kind, engine) in enumerate(itertools.product(KINDS, engines))]


def outcome(start: Start, result: bed.Result) -> str:
    """What has become of a start: "right", "other inventory" (the sentence that the inventory is not of this version), or what it said."""
    said = result.stderr
    if result.returncode == 0:
        return "right" if not start.kind.refused and start.kind.says in result.stdout else f"started: {result.stdout}{said}"
    told = said.partition("oci-hpc-hooks: ")[2].splitlines()[:1]
    if said.count("oci-hpc-hooks: ") == 1 and told[0].endswith(".") and "Traceback" not in said:
        if f"is not an inventory of version {start.version.inventory} " in told[0]:
            return "other inventory"
        if start.kind.refused and start.kind.says in told[0]:
            return "right"
    return f"exit status {result.returncode}: {said}"


class Soak:
    """The site, its two versions, and who scanned last."""

    def __init__(self, folder: Path, revision: str) -> None:
        self.folder = folder
        self.site = Site(folder / "site")
        self.site.configure()
        self.both = (versions.older(folder / "older", revision), versions.current())
        self.hooks = {version: version.register(self.site) for version in self.both}
        self.engines = [Engine(runtime, user) for runtime in bed.RUNTIMES for user in bed.USERS]
        self.ids = folder / "ids"
        self.ids.mkdir()
        self.ids.chmod(0o1777)
        self.scans = 0  # odd: one is going on
        self.lock = threading.Lock()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        for engine in self.engines:
            for kind in KINDS:
                engine.load(kind.image)

    @property
    def caches(self) -> list[Path]:
        return [self.site.cache_dir, Path(f"/run/user/{bed.user_account().uid}/oci-hpc-hooks")]

    def scanned_by(self, scans: int) -> Optional[Version]:
        """Whose inventory is in place after so many beginnings and ends of scans; None while it changes."""
        return self.both[scans // 2 % 2] if scans % 2 == 0 else None

    def scan(self) -> None:
        with self.lock:
            self.scans += 1
            self.both[(self.scans + 1) // 2 % 2].scan(self.site)
            self.scans += 1

    def run(self, start: Start) -> None:
        """One start, judged."""
        if start.number % SWITCH == SWITCH - 1:
            self.scan()
        before = self.scans
        result = self.podman(start, f"soak-{os.getpid()}-{start.number}")
        scanned = self.scanned_by(before) if before == self.scans else None
        found = outcome(start, result)
        if not start.kind.asks or scanned is start.version or start.version is self.both[1]:
            allowed = ["right"]
        else:
            allowed = ["other inventory"] if scanned else ["right", "other inventory"]
        with self.lock:
            self.outcomes[f"{start.kind.name}: {found}"] += 1
            if found not in allowed:
                self.wrong.append(f"WRONG: {start}: not {allowed[0]}: {found}")

    def podman(self, start: Start, name: str) -> bed.Result:
        kind, engine = start.kind, start.engine
        arguments = ["--hooks-dir", str(self.hooks[start.version] / start.stage), "run", "--rm", "--net=none", "--name", name]
        arguments += ["--cidfile", str(self.ids / name), *(["--userns=keep-id"] if engine.user == "keep-id" else [])]
        arguments += [option.format(number=start.number) for option in kind.options]
        try:
            return engine.podman(*arguments, bed.reference(kind.image), *kind.command, timeout=120)
        finally:
            if kind.name == STOPPED:
                engine.remove(name)

    def fill_caches(self) -> None:
        """Nearly as many plans as there may be, old ones of nobody: the starts have to make room."""
        for cache, account in zip(self.caches, (bed.root_account(), bed.user_account())):
            plans = cache / "plans"
            with contextlib.suppress(FileNotFoundError):
                for number in range(PLANS_LIMIT - len(list(plans.iterdir()))):
                    file = plans / f"old{number:05}.plan"
                    file.touch()
                    os.chown(file, account.uid, account.gid)
                    os.utime(file, (1e9, 1e9))


# ------------------------------------------------------------------------------------------------ what there is


@dataclasses.dataclass(frozen=True)
class Stock:
    """What there is on the node that a start could have left: by name, where it has one; MiB of memory."""

    things: dict[str, collections.Counter[str]]
    plans: list[int]
    memory: dict[str, float]

    def changed_since(self, before: Stock) -> list[str]:
        """What was not there and what is not there any more: a count that is equal by chance is none."""
        found = [f"left behind: {what}: {name}" for what, names in self.things.items() for name in (names - before.things[what])]
        found += [f"gone: {what}: {name}" for what, names in before.things.items() for name in (names - self.things[what])]
        found += [f"{number} remembered plans, which is more than {PLANS_LIMIT}" for number in self.plans if number > PLANS_LIMIT]
        return found

    def grown_since(self, before: Stock) -> list[str]:
        return [f"{what} has grown by {value - before.memory[what]:.0f} MiB" for what, value in self.memory.items()
                if value - before.memory[what] > MEMORY[what]]


def take_stock(soak: Soak) -> Stock:
    state = bed.host_state()
    containers = {path.read_text() for path in soak.ids.iterdir()}
    own = Path("/proc/self/mountinfo").read_text().splitlines()
    theirs = [line for pid in bed._pause_pids() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    store = [line.split()[4] for line in (*own, *theirs) if f"{bed.BED}/" in line and "/storage/overlay/" in line]
    processes = dict(processes_of_the_bed())
    plans = [[file.name for file in cache.glob("plans/*")] for cache in soak.caches]
    halves = [name for names in plans for name in names if not name.endswith(WHOLE)]
    return Stock(
        {
            "mounts, of process 1 and of the bed": collections.Counter([*state.mounts, *store]),
            "files in /run, /tmp, /var/tmp, /dev, /dev/shm": collections.Counter(state.files),
            "files of stores, of engines and of the site": collections.Counter(files(soak)),
            "states of containers in /run/crun, /run/runc": collections.Counter(
                f"{folder}/{name}" for folder in ("/run/crun", "/run/runc") if os.path.isdir(folder)
                for name in os.listdir(folder) if name in containers),
            "half written files in caches": collections.Counter(halves),
            "processes of the bed": collections.Counter(f"{pid} {command}" for pid, command in processes.items()),
            "descriptors of those": collections.Counter(descriptors(processes)),
            # Where the bed has taken a hierarchy away, runc makes folders on the empty mount point: no cgroups.
            "cgroups of containers": collections.Counter(
                f"{folder}/{name}" for line in own if " - cgroup" in line for folder, names, _ in os.walk(line.split()[4])
                for name in names if name[-64:] in containers),
        },
        [len(names) for names in plans],
        memory(processes),
    )


def files(soak: Soak) -> Iterator[str]:
    """Everything in the stores but what is in images, in folders of engines, in the site's and in that of the user's hooks; plans and logs
    come and go."""
    accounts = (bed.root_account(), bed.user_account())
    stores = [account.folder / "storage" for account in accounts]
    for folder in (*stores, *(account.run_folder for account in accounts), soak.site.config_dir.parent, soak.caches[1]):
        for top, names, others in os.walk(folder):
            yield from (f"{top}/{name}" for name in (*names, *others) if not name.endswith((*WHOLE, ".log", ".log.1")))
            if top == f"{folder}/overlay":
                names[:] = ["l"] if "l" in names else []


def processes_of_the_bed() -> Iterator[tuple[int, str]]:
    """Conmon, podman, hooks, what keeps namespaces, and everything whose mounts are of the bed's stores."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            root = Path(f"/proc/{pid}/mountinfo").read_text().partition("\n")[0]
        except OSError:
            continue
        if any(str(folder) in command or str(folder) in root for folder in (bed.BED, bed.RUN)) or pid in bed._pause_pids():
            yield int(pid), command[:200]


def descriptors(pids: Iterable[int]) -> Iterator[str]:
    for pid in (*pids, os.getpid()):
        with contextlib.suppress(OSError):
            yield from (f"{pid}/{name}" for name in os.listdir(f"/proc/{pid}/fd"))


def memory(processes: Iterable[int]) -> dict[str, float]:
    """Of the kernel, and that of the bed's processes and of this one that is no file's."""
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    found = {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines}
    found["RssAnon"] = 0
    for pid in (*processes, os.getpid()):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            found["RssAnon"] += sum(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon:"))
    return {what: found[what] for what in MEMORY}


def settled(soak: Soak, before: Optional[Stock] = None) -> Stock:
    """What there is as soon as it is what there was before (nothing changes any more), or engines have had their time to tidy up."""
    end = time.monotonic() + PATIENCE
    last = None
    while True:
        now = take_stock(soak)
        quiet = not now.changed_since(before) if before else last is not None and last.things == now.things
        if quiet or time.monotonic() > end:
            return now
        last = now
        time.sleep(1)


def drop_caches(keep: bool) -> None:
    """What the kernel only keeps because there is room."""
    os.sync()
    if not keep:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        time.sleep(2)


# ------------------------------------------------------------------------------------------------ what is said


def report(soak: Soak, options: argparse.Namespace, before: Stock, after: Stock, seconds: float) -> list[str]:
    old, new = soak.both
    system = platform.freedesktop_os_release()
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {system['ID'].capitalize()} {system.get('VERSION_ID', '')}, {machine()}.",
        f"{options.count} containers, {options.parallel} at once, {seconds:.0f} s, {soak.scans // 2} scans; hooks of inventory "
        f"{old.inventory} and plans {old.record} beside those of inventory {new.inventory} and plans {new.record}; "
        f"{'none went wrong' if not soak.wrong else f'{len(soak.wrong)} WENT WRONG'}.",
        "",
        "| containers | as they should | refused for the other version's inventory |", "| --- | --- | --- |",
    ]
    for kind in KINDS:
        right, other = (soak.outcomes[f"{kind.name}: {what}"] for what in ("right", "other inventory"))
        lines.append(f"| {kind.name} | {right} | {other} |")
    lines += ["", "| on the node | before | after |", "| --- | --- | --- |"]
    for what, names in before.things.items():
        lines.append(f"| {what} | {names.total()} | {after.things[what].total()} |")
    for whose, was, now in zip(("root", "a user"), before.plans, after.plans):
        lines.append(f"| remembered plans and loader caches of {whose} (at most {PLANS_LIMIT}) | {was} | {now} |")
    lines += [f"| {what}, MiB | {was:.1f} | {after.memory[what]:.1f} |" for what, was in before.memory.items()]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Starts and stops with hooks of two versions, and what they leave behind.")
    parser.add_argument("--count", type=int, default=2000, help="containers (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=4, help="how many at once (default: %(default)s)")
    parser.add_argument("--older", default="", metavar="REVISION", help="the older version (default: the last commit of other formats)")
    parser.add_argument("--keep-caches", action="store_true", help="leave the kernel's caches alone: this machine has other work, too")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/security.md")
    options = parser.parse_args()

    bed.enter()
    folder = bed.scratch("soak")
    soak = Soak(folder, options.older)
    try:
        soak.both[0].scan(soak.site)
        for start in warm_up(soak.engines, soak.both):
            soak.podman(start, f"soak-{os.getpid()}-first-{start.number}")
        soak.fill_caches()
        drop_caches(options.keep_caches)
        before, began = settled(soak), time.monotonic()
        with ThreadPoolExecutor(options.parallel) as pool:
            for number, _ in enumerate(pool.map(soak.run, starts(options.count, soak.engines, soak.both)), start=1):
                if number % 100 == 0:
                    print(f"{number} containers, {time.monotonic() - began:.0f} s, {len(soak.wrong)} went wrong", flush=True)
        seconds = time.monotonic() - began
        drop_caches(options.keep_caches)
        after = settled(soak, before)
        lines = report(soak, options, before, after, seconds)
        changed = [*after.changed_since(before), *after.grown_since(before)]
        print(*lines, "", f"{seconds:.1f} s", *soak.wrong, *(f"NOT AS BEFORE: {what}" for what in changed), sep="\n")
        if options.write:
            results.write("soak.py", lines, PAGE)
        return 1 if soak.wrong or changed else 0
    finally:
        for cache in soak.caches:
            shutil.rmtree(cache / "plans", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
