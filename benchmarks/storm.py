"""Many containers at the same moment, with hooks and without: ``make storm``, or ``bed.py exec python benchmarks/storm.py --help``.

A job starts as many containers on a node as it has ranks there. Each round starts that many ``podman run --rm`` at once and waits for
all; counted are those that fail, what the log says of each, and what is left on the host: mounts, files, containers, half written plans,
locks. "warm": the plan is known; "cold": nobody has seen the image, and all decide at the same time. podman serializes much of its
own work, so the ratio of the times says what a hook adds there, not what it costs alone (hook_start.py does).
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from benchmarks.hook_start import BENCH, machine  # noqa: E402
from tests.bed import bed  # noqa: E402
from tests.bed.site import MPICH5, Site  # noqa: E402

IMAGE = "bookworm-mpich"
KIND = "storm-"  # of files in benchmarks/results
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
PATIENCE = 600


@dataclass
class Storm:
    """What has become of so many starts."""

    seconds: float
    failed: list[str] = field(default_factory=list)
    said: collections.Counter[str] = field(default_factory=collections.Counter)
    left: list[str] = field(default_factory=list)

    def trouble(self) -> str:
        parts = [f"{len(self.failed)} failed: {self.failed[0]}"] if self.failed else []
        return "; ".join([*parts, *self.left]) or "none"


class Ground:
    """A site, and the engine that starts containers on it."""

    def __init__(self, runtime: str, loader_cache: str) -> None:
        self.engine = bed.Engine(runtime, "root")
        self.reference = self.engine.load(IMAGE)
        folder = BENCH / "storm"
        shutil.rmtree(folder, ignore_errors=True)
        self.site = Site(folder)
        self.site.configure([MPICH5], loader_cache=loader_cache)
        self.site.scan()
        self.hooks_dir = self.site.register()
        self.nowhere = folder / "no-hooks.d"
        self.nowhere.mkdir()

    def start(self, number: int, way: str) -> Storm:
        """`way`: "no hooks", "warm", "cold", or one of the last two at podman's own stage ("warm, precreate")."""
        stage = self.hooks_dir / "podman" if "precreate" in way else self.hooks_dir
        hooks_dir = self.nowhere if way == "no hooks" else stage
        if way.startswith("cold"):
            shutil.rmtree(self.site.cache_dir / "plans", ignore_errors=True)
        elif way.startswith("warm"):
            self.engine.run(IMAGE, "true", hooks_dir=hooks_dir)
        self.site.log_file.write_text("")
        before, containers = bed.host_state(), self.containers()
        command = ["podman", "--runtime", self.engine.runtime, "--hooks-dir", str(hooks_dir)]
        command += ["run", "--rm", "--net=none", self.reference, "true"]
        began = time.monotonic()
        running = [
            subprocess.Popen(command, env=self.engine.account.environment(), cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
            for _ in range(number)
        ]  # fmt: skip
        storm = Storm(0)
        for process in running:
            try:
                said, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
                said = f"not ready after {PATIENCE} s: {said}"
            if process.returncode != 0:
                storm.failed.append(" ".join(said.split())[:300] or f"exit status {process.returncode}")
        storm.seconds = time.monotonic() - began
        for line in self.site.log_file.read_text().splitlines():
            entry = json.loads(line)
            storm.said[f"{entry['verdict']} {entry['path']}"] += 1
        storm.left = self.left(before, containers)
        if way != "no hooks" and sum(storm.said.values()) != number:
            storm.left.append(f"{sum(storm.said.values())} lines in the log")
        return storm

    def containers(self) -> set[str]:
        return set(self.engine.podman("ps", "--all", "--quiet", "--no-trunc", check=True).stdout.split())

    def left(self, before: bed.HostState, containers: set[str]) -> list[str]:
        """What is there now and was not, or should never be, in words."""
        found = bed.leaks(before)
        found += [f"container {name[:12]}" for name in sorted(self.containers() - containers)]
        for path in (*self.site.cache_dir.rglob("*"), *self.site.log_file.parent.glob("*")):
            whole = path.suffix in (".plan", ".ldcache") or path.is_dir() or path == self.site.log_file
            if not whole:
                found.append(f"file {path.name}")
        own = str(self.site.cache_dir)
        for line in Path("/proc/locks").read_text().splitlines():
            device_and_inode = line.split()[5].split(":")
            if any(str(path.stat().st_ino) == device_and_inode[2] for path in (self.site.log_file, *self.site.cache_dir.rglob("*"))):
                found.append(f"a lock below {own}")
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Many containers at the same moment, with hooks and without.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="how many at once (default: 1, 2, 4 … 128)")
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: %(default)s)")
    parser.add_argument("--runtime", choices=bed.RUNTIMES, default="crun")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results, to be committed")
    parser.add_argument("--loader-cache", choices=("bind", "file"), default="file", help="how the loader's cache arrives")
    options = parser.parse_args()

    ground = Ground(options.runtime, options.loader_cache)
    head = f"{machine()}. {options.runtime}, rounds: {options.rounds}; seconds until the last container has ended, medians:"
    print(f"{head}\n", flush=True)
    ways = ("no hooks", "warm", "cold", "warm, precreate", "cold, precreate")
    columns = ["at once", *ways, "warm / no hooks (budget 1.2)", "failed, left behind"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    print("\n".join(lines), flush=True)
    bad = 0
    figures: dict[str, dict[str, float]] = {}
    for number in options.sizes:
        storms = rounds(ground, number, ways, options.rounds)
        times = {way: statistics.median(storm.seconds for storm in found) for way, found in storms.items()}
        bare = [storm.seconds for storm in storms["no hooks"]]
        ratios = {way: statistics.median(ours.seconds / other for ours, other in zip(storms[way], bare)) for way in ways}
        figures.update({f"{number} at once, {way}": {"seconds": times[way], "x": ratios[way]} for way in ways})
        trouble = {f"{way}: {storm.trouble()}" for way, found in storms.items() for storm in found if storm.failed or storm.left}
        bad += len(trouble)
        cells = [str(number), *(f"{times[way]:.2f}" for way in ways), f"{ratios['warm']:.2f}", "; ".join(sorted(trouble)) or "none"]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    before = results.last(KIND)
    if before:
        print(f"\nBeside {before['time']} ({before['machine']}): multiples of no hooks, then and now\n")
        print("\n".join(results.beside(figures, before)))
    if options.write:
        results.write("storm.py", [head, "", *lines])
    if options.save:
        document = {"machine": machine(), "time": time.strftime("%FT%TZ", time.gmtime()), "rounds": options.rounds, "rows": figures}
        print(f"\nwritten: {results.save(document, KIND)}")
    return 1 if bad else 0


def rounds(ground: Ground, number: int, ways: Sequence[str], count: int) -> dict[str, list[Storm]]:
    storms: dict[str, list[Storm]] = {way: [] for way in ways}
    for _ in range(count):
        for way in ways:
            storms[way].append(ground.start(number, way))
    return storms


if __name__ == "__main__":
    sys.exit(main())
