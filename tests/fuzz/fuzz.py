"""Fuzzing guided by coverage, for as long as wanted: ``make fuzz SECONDS=3600``.

One target after the other, each in a process of its own, with what an earlier run has found in build/fuzz/TARGET. A finding is a file in
build/fuzz/findings: mend the parser, put the file into tests/fuzz/corpus/TARGET, where tests/fuzz/test_fuzz.py runs it for ever, and give
the target another turn (``--only TARGET``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, List, Sequence, Set, Tuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PACKAGE, CORPUS = str(ROOT / "oci_hpc_hooks"), ROOT / "tests/fuzz/corpus"
BUILD = ROOT / "build" / "fuzz"
FINDINGS = BUILD / "findings"
LAST = BUILD / "last"

#: Seconds and MiB beyond which one input is a finding.
TIMEOUT, MEMORY = 10, 1024
#: Bytes of an input that is kept in the repository, and how many of one target may be at a time.
KEPT_BYTES, KEPT = 2048, 12
#: After so many findings of one target the next one has its turn.
ENOUGH = 3


def one(name: str, seconds: int) -> None:
    """Fuzzes one target in this process, which libFuzzer ends. The seconds begin before the package is imported, which takes ten."""
    end = time.monotonic() + seconds
    import atheris

    with atheris.instrument_imports(include=["oci_hpc_hooks"]):
        from tests.fuzz import seeds, targets

    def changed(data: bytes, size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.randrange(3):
            return bytes(atheris.Mutate(data, size))
        head, nul, tail = data.partition(b"\0")
        if nul and chance.randrange(2):
            tail = seeds.changed_json(tail, chance)
        else:
            head = seeds.changed_json(head, chance)
        made = head + nul + tail
        return made[:size]

    corpus = BUILD / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds.of(name)):
        (corpus / f"seed-{number}").write_bytes(data)
    left = max(1, round(end - time.monotonic()))
    options = [f"-max_total_time={left}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", f"-max_len={seeds.LONGEST}",
               f"-artifact_prefix={FINDINGS}/{name}-", "-print_final_stats=1", "-verbosity=1", str(corpus)]
    if name in targets.OF_JSON:
        atheris.Setup([name, *options], lambda data: targets.check(name, data), custom_mutator=changed)
    else:
        atheris.Setup([name, *options], lambda data: targets.check(name, data))
    atheris.Fuzz()


@dataclass(frozen=True)
class Row:
    """One target's turn: ``seconds``, inputs tried, branches of the package's byte-code that were reached, inputs kept for what they reach,
    names of the findings."""

    target: str
    seconds: float
    runs: int
    branches: int
    kept: int
    findings: List[str]

    def __str__(self) -> str:
        found = " ".join(self.findings) or "-"
        return f"{self.target:<20} {self.seconds:>8.0f} {self.runs:>10} {self.branches:>9} {self.kept:>6}  {found}"


def turn(name: str, seconds: float) -> Row:
    """Fuzzes one target; after a finding again, until it has had its time or enough of them. Raises RuntimeError where it cannot run."""
    began, runs, branches = time.monotonic(), 0, 0
    end = began + seconds
    while time.monotonic() + 1 < end and len(found(name)) < ENOUGH:
        before = len(found(name))
        command = [sys.executable, __file__, "--one", name, "--seconds", str(round(end - time.monotonic()))]
        with open(BUILD / f"{name}.log", "w") as log:
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log)
        said = (BUILD / f"{name}.log").read_text(errors="replace")
        runs += max(map(int, re.findall(r"(?:^#|number_of_executed_units: )(\d+)", said, re.M)), default=0)
        branches = max(map(int, re.findall(r" cov: (\d+)", said)), default=branches)
        if len(found(name)) > before:
            continue
        if done.returncode:
            raise RuntimeError(f"{name}: exit status {done.returncode}, see build/fuzz/{name}.log")
        break
    return Row(name, time.monotonic() - began, runs, branches, len(list((BUILD / name).glob("*"))), found(name))


def keep(name: str) -> int:
    """Puts small inputs of earlier runs into the corpus of the repository that reach what its seeds do not; returns how many."""
    from tests.fuzz import seeds, targets

    def steps(data: bytes) -> Set[Tuple[str, int, int]]:
        """From which line of the package to which."""
        taken: Set[Tuple[str, int, int]] = set()

        def trace(frame: FrameType, event: str, value: Any) -> Any:
            before = 0

            def line(frame: FrameType, event: str, value: Any) -> Any:
                nonlocal before
                taken.add((frame.f_code.co_filename, before, frame.f_lineno))
                before = frame.f_lineno
                return line

            return line if PACKAGE in frame.f_code.co_filename else None

        sys.settrace(trace)
        try:
            targets.check(name, data)
        finally:
            sys.settrace(None)
        return taken

    (CORPUS / name).mkdir(exist_ok=True)
    reached = set().union(*map(steps, seeds.of(name)))
    new = 0
    for path in sorted((BUILD / name).glob("*"), key=lambda path: path.stat().st_size):
        data = path.read_bytes()
        if new < KEPT and len(data) <= KEPT_BYTES and not steps(data) <= reached:
            reached |= steps(data)
            new += 1
            shutil.copyfile(path, CORPUS / name / f"found-{path.name[:12]}")
    return new


def found(name: str) -> List[str]:
    """Names of files with inputs that a target did not bear."""
    return [path.name for path in sorted(FINDINGS.glob(name + "-*"))]


def document(rows: Sequence[Row]) -> List[str]:
    """The figures for docs/security.md."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    left = sum(len(row.findings) for row in rows)
    seconds, runs = sum(row.seconds for row in rows), sum(row.runs for row in rows)
    lines = [f"{time.strftime('%Y-%m-%d', time.gmtime())}, commit {commit}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; Python "
             f"{platform.python_version()}. {len(rows)} targets, {seconds:.0f} s, {runs:,} inputs; findings left: {left or 'none'}.",
             "", "| target | seconds | inputs tried | branches reached | inputs kept | findings |", "| --- " * 6 + "|"]
    for row in rows:
        lines.append(f"| {row.target} | {row.seconds:.0f} | {row.runs:,} | {row.branches:,} | {row.kept:,} | {len(row.findings)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz every parser of foreign bytes.")
    parser.add_argument("--seconds", type=int, default=3600, help="for all targets together")
    parser.add_argument("--only", metavar="TARGET", nargs="+", help="these targets, each in a process of its own")
    parser.add_argument("--one", metavar="TARGET", help="this target alone, in this process")
    parser.add_argument("--keep", action="store_true", help="only put what earlier runs have found to reach more into tests/fuzz/corpus")
    parser.add_argument("--write", action="store_true", help="put the figures of every target's last turn into docs/security.md")
    args = parser.parse_args()
    if args.one:
        one(args.one, args.seconds)
    from benchmarks import results
    from tests.fuzz.targets import TARGETS

    chosen = args.only or list(TARGETS)
    if args.keep:
        for name in chosen:
            print(f"{name:<20} {keep(name):>6}", flush=True)
        return 0
    FINDINGS.mkdir(parents=True, exist_ok=True)
    LAST.mkdir(exist_ok=True)
    print(f"{'target':<20} {'seconds':>8} {'runs':>10} {'branches':>9} {'kept':>6}  findings", flush=True)
    for name in chosen:
        for old in FINDINGS.glob(name + "-*"):
            old.unlink()
        row = turn(name, args.seconds / len(chosen))
        (LAST / f"{name}.json").write_text(json.dumps(asdict(row)))
        print(row, flush=True)
    rows = [Row(**json.loads((LAST / f"{name}.json").read_text())) for name in TARGETS if (LAST / f"{name}.json").exists()]
    if args.write:
        results.write("fuzz.py", document(rows), ROOT / "docs/security.md")
    return 1 if any(row.findings for row in rows if row.target in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
