"""Fuzzing guided by coverage, for as long as wanted: ``make fuzz SECONDS=3600``.

One target after the other, each in a process of its own, with what an earlier run has found in build/fuzz/TARGET. A finding is a file in
build/fuzz/findings: mend the parser, and put the file into tests/fuzz/corpus/TARGET, where tests/fuzz/test_fuzz.py runs it for ever.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
BUILD = ROOT / "build" / "fuzz"
FINDINGS = BUILD / "findings"

#: Seconds and MiB beyond which one input is a finding.
TIMEOUT, MEMORY = 10, 1024
#: After so many findings of one target the next one has its turn.
ENOUGH = 3


def one(name: str, seconds: int) -> None:
    """Fuzzes one target in this process, which libFuzzer ends."""
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
    options = [f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", f"-max_len={seeds.LONGEST}",
               f"-artifact_prefix={FINDINGS}/{name}-", "-print_final_stats=1", "-verbosity=1", str(corpus)]
    if name in targets.OF_JSON:
        atheris.Setup([name, *options], lambda data: targets.check(name, data), custom_mutator=changed)
    else:
        atheris.Setup([name, *options], lambda data: targets.check(name, data))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz every parser of foreign bytes.")
    parser.add_argument("--seconds", type=int, default=3600, help="for all targets together")
    parser.add_argument("--one", metavar="TARGET", help="this target alone, in this process")
    args = parser.parse_args()
    if args.one:
        one(args.one, args.seconds)
    from tests.fuzz.targets import TARGETS

    shutil.rmtree(FINDINGS, ignore_errors=True)
    FINDINGS.mkdir(parents=True)
    print(f"{'target':<18} {'seconds':>8} {'runs':>10} {'corpus':>7}  findings", flush=True)
    for name in TARGETS:
        began, runs = time.monotonic(), 0
        end = began + args.seconds / len(TARGETS)
        while time.monotonic() + 1 < end and len(list(FINDINGS.glob(name + "-*"))) < ENOUGH:
            command = [sys.executable, __file__, "--one", name, "--seconds", str(round(end - time.monotonic()))]
            with open(BUILD / f"{name}.log", "w") as log:
                done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log)
            said = (BUILD / f"{name}.log").read_text(errors="replace")
            runs += max(map(int, re.findall(r"(?:^#|number_of_executed_units: )(\d+)", said, re.M)), default=0)
            if done.returncode == 0 or not list(FINDINGS.glob(name + "-*")):
                if done.returncode:
                    print(f"{name}: exit status {done.returncode}, see build/fuzz/{name}.log", flush=True)
                    return 1
                break
        found = [path.name for path in sorted(FINDINGS.glob(name + "-*"))]
        size = len(list((BUILD / name).glob("*")))
        print(f"{name:<18} {time.monotonic() - began:>8.0f} {runs:>10} {size:>7}  {' '.join(found) or '-'}", flush=True)
    return 1 if any(FINDINGS.iterdir()) else 0


if __name__ == "__main__":
    sys.exit(main())
