"""``make matrix``: every image with every MPI of a site, for real, beside what the hooks decide about it.

Each cell is started with the hooks. What they accept must run two ranks on the site's MPI with every symbol bound at the start; what
they refuse must not run by any mounts made by hand under the same site policy (truth.py). The exit status is 1 if one cell is a false
accept or a false refusal.

Results are kept in build/matrix until the code, the image, the site's MPI or the cell changes: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import Site
from tests.matrix.cells import HOSTS, INSIDE, PLAIN, ROWS, Host, Row
from tests.matrix.truth import by_hand, is_the_sites, with_hooks

FOLDER = bed.BUILD / "matrix"
PAGE = bed.ROOT / "docs/compatibility.md"
BEGIN, END = "<!-- made by make matrix: begin -->", "<!-- made by make matrix: end -->"

RIGHT, FALSE_ACCEPT, FALSE_REFUSAL = "right", "FALSE ACCEPT", "FALSE REFUSAL"


@dataclasses.dataclass(frozen=True)
class Cell:
    row: Row
    host: Host
    engine: str = "crun-root"

    def __str__(self) -> str:
        return f"{self.row.name} | {self.host.name} | {self.engine}"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One cell: what the hooks decided, what is true, and how that was found."""

    verdict: str
    code: str
    message: str
    judged: str
    evidence: str
    seconds: float


def cells() -> Iterator[Cell]:
    """Every image with every site as root with crun, and a sample with runc and rootless."""
    for row in ROWS:
        for host in HOSTS:
            yield Cell(row, host)
    for row in ROWS:
        for host in HOSTS:
            if row.ranks == INSIDE and host.version in ("5.0.2", "5.0.11", "4.2.1") and row.asks in (host.family, "auto"):
                yield Cell(row, host, "runc-root")
                yield Cell(row, host, "crun-rootless")


# ---------------------------------------------------------------------------------------------------------------- one cell

class Sites:
    """A site for each host and account, made when it is first needed."""

    def __init__(self) -> None:
        self.folder = bed.scratch("matrix")
        self._made: dict[tuple[str, str], Site] = {}

    def of(self, host: Host, engine: Engine) -> Site:
        key = (host.name, engine.account.name)
        if key not in self._made:
            site = Site(self.folder / f"site{len(self._made)}", engine.account)
            policy: dict[str, Any] = {"c_runtime": {"search": [str(host.c_runtime)]}} if host.c_runtime else {}
            site.configure(search=[host.lib] if host.family == "mpich" else [], openmpi=[host.lib] if host.family == "openmpi" else [],
                           abi=[host.lib] if (host.lib / "libmpi_abi.so.1").exists() else [], **policy)
            site.scan()
            site.register()
            self._made[key] = site
        return self._made[key]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def judge(cell: Cell, sites: Sites) -> Judgement:
    """Start the cell and see."""
    started = time.monotonic()
    row, host = cell.row, cell.host
    engine = Engine(*cell.engine.split("-", 1))
    site = sites.of(host, engine)
    outcome, verdict = with_hooks(engine, row, host, site)
    if verdict.verdict in ("proved", "unproved"):
        good = (row.ranks == PLAIN and outcome.status == 0) or is_the_sites(engine, row, host, site, outcome)
        judged = RIGHT if good else FALSE_ACCEPT
        evidence = f"two ranks on {outcome.version}, {outcome.loaded}" if good else outcome.said or f"ran on {outcome.version or 'nothing'}"
    elif verdict.verdict == "nothing" and (row.asks == "auto" or row.ranks == PLAIN):
        good = outcome.status == 0
        judged, evidence = RIGHT if good else FALSE_ACCEPT, f"runs as it is; {outcome.said}" if good else outcome.said
    else:
        folder = sites.folder / f"by-hand-{host.family}-{HOSTS.index(host)}"
        folder.mkdir(exist_ok=True)
        way, ended = by_hand(engine, row, host, folder)
        # mpi4py of PyPI takes whatever MPI there is: what runs is then not what was asked for.
        other = {row.asks, host.family} == {"mpich", "openmpi"}
        judged = FALSE_REFUSAL if (way and not other) or verdict.verdict != "refused" else RIGHT
        evidence = f"by hand it runs{' on the other family' * other}: {way}" if way else "; ".join(ended)
    return Judgement(verdict.verdict, verdict.code, verdict.message, judged, evidence, round(time.monotonic() - started, 1))


def _interest(cell: Cell) -> tuple[bool, bool]:
    """Orders the telling cells first."""
    return cell.engine != "crun-root", cell.row.asks not in (cell.host.family, "auto")


# ---------------------------------------------------------------------------------------------------------------- remembered

def _code() -> str:
    files = [*sorted((bed.ROOT / "oci_hpc_hooks").rglob("*.py")), *sorted((bed.ROOT / "oci_hpc_hooks").rglob("*.json")),
             Path(__file__).with_name("truth.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _stamp(cell: Cell, code: str) -> str:
    host = bed.BUILD / "stamps" / cell.host.lib.parent.name
    made_of = f"{code}{cell}{cell.row}{cell.host}{bed.stamp(cell.row.image)}{host.read_text()}"
    return hashlib.sha256(made_of.encode()).hexdigest()


class Memory:
    """Results of earlier runs, by cell; each with the stamp of what it was made of."""

    def __init__(self) -> None:
        FOLDER.mkdir(mode=0o755, exist_ok=True)
        self._file = FOLDER / "results.json"
        self._known: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def get(self, cell: Cell, stamp: str) -> Judgement | None:
        known = self._known.get(str(cell))
        return Judgement(**known["result"]) if known and known["stamp"] == stamp else None

    def put(self, cell: Cell, stamp: str, result: Judgement) -> None:
        self._known[str(cell)] = {"stamp": stamp, "result": dataclasses.asdict(result)}
        scratch = self._file.with_suffix(".new")
        scratch.write_text(json.dumps(self._known, indent=1) + "\n")
        scratch.rename(self._file)


# ---------------------------------------------------------------------------------------------------------------- the table

#: What the codes of findings mean, for the page.
REASONS = {
    "no-profile": "the image wants the other MPI family, which this site does not offer",
    "glibc-too-old": "the site's MPI needs a newer glibc than the image has, and the site does not let its own take the place",
    "launcher": "the image's own mpirun does not serve ranks of the site's build; let the site's mpirun start the containers",
    "mixed-build": "the program would load parts of two Open MPI installations",
    "mpi-symbols": "the program calls MPI functions that the site's MPI does not have",
    "musl": "the image is built on musl, and no glibc library loads there",
    "no-glibc": "the image has no dynamic loader: its programs are static",
    "family": "the program that is started belongs to the other MPI family",
    "version-missing": "a library of the image lacks versions of symbols that the site's MPI needs",
    "shared-dependency": "both sides bring a library, and neither copy serves both",
    "c-runtime": "the site's glibc cannot take the place of the image's",
    "dependency-missing": "a library that is needed is on neither side",
    "nothing-to-replace": "the image has no MPI of a family that the site offers",
}


def shown(result: Judgement) -> str:
    words = {"nothing": "left alone"}.get(result.verdict, result.verdict)
    if result.verdict in ("refused", "nothing"):
        words += f": {result.code}"
    return words if result.judged == RIGHT else f"**{result.judged}** ({words})"


def table(results: dict[Cell, Judgement]) -> str:
    """The generated part of the page."""
    lines = ["| image | " + " | ".join(host.name for host in HOSTS) + " |", "| --- |" + " --- |" * len(HOSTS)]
    for row in ROWS:
        lines.append(f"| {row.name} | " + " | ".join(shown(results[Cell(row, host)]) for host in HOSTS) + " |")
    wrong = [result for result in results.values() if result.judged != RIGHT]
    accepted = sum(result.verdict in ("proved", "unproved") for result in results.values())
    refused = sum(result.verdict == "refused" for result in results.values())
    others = [cell for cell in results if cell.engine != "crun-root"]
    lines += ["", f"{len(results) - len(others)} cells as root with crun, and {len(others)} of them again with runc and rootless: "
              f"{accepted} accepted, {refused} refused, {len(results) - accepted - refused} left alone; false accepts and refusals: "
              f"{len(wrong)}.", "", "| code | means |", "| --- | --- |"]
    codes = sorted({result.code for result in results.values() if result.verdict in ("refused", "nothing")})
    for code in codes:
        lines.append(f"| `{code}` | {REASONS.get(code) or next(result.message for result in results.values() if result.code == code)} |")
    return "\n".join(lines)


def write_page(text: str) -> None:
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


# ---------------------------------------------------------------------------------------------------------------- the command

def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="matrix", description="Every image with every MPI of a site, for real.")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cells with this in their name")
    parser.add_argument("--again", action="store_true", help="do not take over earlier results")
    args = parser.parse_args(arguments)
    chosen = sorted((cell for cell in cells() if args.only in str(cell)), key=_interest)
    memory, code, sites = Memory(), _code(), Sites()
    results: dict[Cell, Judgement] = {}
    try:
        for cell in chosen:
            stamp = _stamp(cell, code)
            result = None if args.again else memory.get(cell, stamp)
            if result is None:
                result = judge(cell, sites)
                memory.put(cell, stamp, result)
            results[cell] = result
            print(f"{cell}: {shown(result)} [{result.seconds} s]" + (f"\n    {result.message}\n    {result.evidence}"
                  if result.judged != RIGHT else ""), flush=True)
    finally:
        sites.remove()
    wrong = [cell for cell, result in results.items() if result.judged != RIGHT]
    if not args.only:
        text = table(results)
        print(text)
        write_page(text)
    print(f"{len(results)} cells, {len(wrong)} wrong" + "".join(f"\n  {cell}: {results[cell].judged}" for cell in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
