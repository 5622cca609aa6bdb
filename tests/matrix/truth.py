"""What really happens: two ranks in real containers, with the hooks, and by mounts made by hand.

Nothing here knows how the hooks decide. The oracle is what a person would try: the site's MPI mounted at its own path, found by
LD_LIBRARY_PATH or laid over the image's files, and its C runtime laid over the image's where the site allows that.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import Site
from tests.matrix.cells import INSIDE, OUTSIDE, Host, Row

LIMIT = 30  # seconds for a container
_RANK = re.compile(r"^rank (\d+) of (\d+): (?:MPICH Version: +|Open MPI v)([\d.]+)[^;\n]*; loaded (.*)$", re.MULTILINE)

#: One library, known by different names to different builds: the site's file of one name serves all of its line.
_NAMES = (
    ("libmpi.so.12", "libmpich.so.12"),
    ("libmpifort.so.12", "libmpichfort.so.12"),
    ("libmpicxx.so.12", "libmpichcxx.so.12"),
    ("libmpi_abi.so.1",),
    ("libmpi.so.40",),
    ("libmpi_mpifh.so.40",),
    ("libmpi_usempi_ignore_tkr.so.40",),
    ("libmpi_usempif08.so.40",),
    ("libmpi_cxx.so.40",),
)
_GLIBC = re.compile(r"(ld-linux-x86-64|lib(c|m|mvec|pthread|dl|rt|util|resolv|anl|nsl|BrokenLocale|nss_\w+|thread_db))\.so\.\d+$")


@dataclass(frozen=True)
class Outcome:
    """What a start came to: the program's exit status, and if two ranks knew each other and added up right, which MPI they ran on."""

    status: int
    version: str  # "" if no two ranks summed right
    loaded: str  # the MPI library's path as the ranks see it
    said: str  # the last that was said on stderr


@dataclass(frozen=True)
class Verdict:
    """What the hooks decided: one of proved, unproved, refused, nothing, with the finding that tells most."""

    verdict: str
    code: str
    message: str


def alone(engine: Engine, row: Row, host: Host) -> Outcome:
    """The image by itself."""
    return _start(engine, row, host, [])


def with_hooks(engine: Engine, row: Row, host: Host, site: Site) -> tuple[Outcome, Verdict]:
    """The image with the site's hooks."""
    for cache in (site.cache_dir, engine.account.runtime_dir / "oci-hpc-hooks"):  # root's, a user's: what is remembered leaves no entry
        shutil.rmtree(cache / "plans", ignore_errors=True)
    before = {entry["id"] for entry in site.log()}
    outcome = _start(engine, row, host, [f"--annotation=org.supercontainers.mpi={row.asks}"], site)
    mine = [entry for entry in reversed(site.log()) if entry["id"] not in before]
    site.log_file.unlink(missing_ok=True)
    if not mine:
        return outcome, Verdict("none", "", f"the hook has left no entry: {outcome.said}")
    return outcome, _verdict(mine[0])


def _verdict(entry: dict[str, Any]) -> Verdict:
    rank = {"error": 0, "warning": 1, "note": 2}
    findings = sorted(entry.get("findings") or (), key=lambda finding: rank.get(finding["severity"], 3))
    first = findings[0] if findings else {}
    return Verdict(entry["verdict"], first.get("code", ""), entry.get("message") or first.get("what", ""))


def is_the_sites(engine: Engine, row: Row, host: Host, site: Site, outcome: Outcome) -> bool:
    """Whether the ranks ran on the site's library. The version tells it unless image and site have the same; then the file does, which
    another container of the same plan shows (these images have a shell's tools)."""
    if outcome.version != host.version:
        return False
    if str(host.lib) in outcome.loaded or alone(engine, row, host).version != host.version:
        return True
    options = [f"--annotation=org.supercontainers.mpi={row.asks}"]
    seen = engine.run(row.image, "stat", "--dereference", "--format=%i", outcome.loaded, options=options, hooks_dir=site.hooks_dir)
    inodes = {file.stat().st_ino for name in _NAMES for file in map(host.lib.joinpath, name) if file.exists()}
    return seen.returncode == 0 and int(seen.stdout) in inodes


def by_hand(engine: Engine, row: Row, host: Host, folder: Path) -> tuple[str, list[str]]:
    """The first way of mounting by hand that runs two ranks on the site's MPI ("" if none does), and what each other ended with."""
    ended: list[str] = []
    for way, options in _ways(row, host, folder):
        outcome = _start(engine, row, host, options)
        if outcome.version == host.version:
            return way, ended
        ended.append(f"{way}: {outcome.said or outcome.version or f'exit status {outcome.status}'}")
    return "", ended


# ---------------------------------------------------------------------------------------------------------------- starting

def _start(engine: Engine, row: Row, host: Host, options: Sequence[str], site: Optional[Site] = None) -> Outcome:
    options = ["--env=LD_BIND_NOW=1", f"--timeout={LIMIT}", *options]
    hooks_dir = site.hooks_dir if site else None
    try:
        if row.ranks == OUTSIDE:
            result = _start_outside(engine, row, host, options, hooks_dir)
        else:
            command = [*row.launcher, "-n", "2", *row.program] if row.ranks == INSIDE else [*row.program]
            result = engine.run(row.image, *command, options=options, hooks_dir=hooks_dir, timeout=LIMIT + 30)
    except subprocess.TimeoutExpired:
        return Outcome(124, "", "", f"no end within {LIMIT} s")
    found = sorted(_RANK.findall(result.stdout))
    versions = {version for _, _, version, _ in found}
    right = [(rank, of) for rank, of, _, _ in found] == [("0", "2"), ("1", "2")] and len(versions) == 1
    right = right and result.returncode == 0 and "sum of ranks + 1: 3" in result.stdout
    said = [line.strip() for line in result.stderr.splitlines() if line.strip(" -=*|")]
    telling = [line for line in said if re.search(r"error|symbol|version|cannot|fail|abort|signal", line, re.IGNORECASE)]
    return Outcome(result.returncode, versions.pop() if right else "", found[0][3] if right else "", (telling or said or [""])[0][:300])


def _start_outside(engine: Engine, row: Row, host: Host, options: Sequence[str], hooks_dir: Optional[Path]) -> bed.Result:
    podman = ["podman", "--runtime", engine.runtime, *(["--hooks-dir", str(hooks_dir)] if hooks_dir else []), "run", "--rm"]
    podman += ["--net=host", "--ipc=host", "--pid=host", "--volume=/tmp:/tmp"]
    podman += [f"--env={name}" for name in ("PMI_*", "PMIX_*", "OMPI_*", "OPAL_PREFIX")]
    if host.family == "openmpi":
        # plm isolated: everything is on this node, which may have no ssh, and 4 ends without one otherwise.
        how = ["--allow-run-as-root", "--oversubscribe", *(["--mca", "plm", "isolated"] if host.version.startswith("4.") else [])]
    else:
        how = ["-pmi-port"]  # a descriptor would not reach the container
    command = [str(host.launcher), *how, "-n", "2", *podman, *options, engine.load(row.image), *row.program]
    return engine.account.execute(*command, timeout=LIMIT + 30)


# ---------------------------------------------------------------------------------------------------------------- by hand

def _ways(row: Row, host: Host, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Podman options, from the simplest."""
    names = folder / "names"
    _give_all_names(host, names)
    mounts = [f"--volume={host.lib.parent}:{host.lib.parent}:ro", f"--volume={names}:{names}:ro"]
    private = [str(names / name) for name in ("mpich", "openmpi") if (host.lib / name).is_dir()]
    paths = {"LD_LIBRARY_PATH": [str(names)], "LD_LIBRARY_PATH with private folders": [str(names), *private]}
    over = list(_over_copies(row, host))
    for glibc in ([], list(_over_glibc(row, host.c_runtime)) if host.c_runtime else []):
        for way, folders in paths.items():
            way += ", glibc over the image's" if glibc else ""
            options = [*mounts, f"--env=LD_LIBRARY_PATH={':'.join(folders)}", *glibc]
            if glibc or not host.c_runtime:
                yield way, options
                if over:
                    yield f"{way}, over the image's MPI", [*options, *over]
            if row.asks not in (host.family, "auto"):
                return


def _give_all_names(host: Host, names: Path) -> None:
    """The site's directory as links, and one more link for each name that a program may ask for."""
    if names.exists():
        return
    names.mkdir()
    for entry in host.lib.iterdir():
        (names / entry.name).symlink_to(entry)
    for line in _NAMES:
        files = [host.lib / name for name in line if (host.lib / name).exists()]
        for name in line if files else ():
            if not (names / name).is_symlink():
                (names / name).symlink_to(files[0])


def _over_copies(row: Row, host: Host) -> Iterator[str]:
    tree = bed.BUILD / "images" / row.tree
    for line in _NAMES:
        source = next((host.lib / name for name in line if (host.lib / name).exists()), None)
        for file in sorted({file.resolve() for name in line for file in tree.rglob(f"{name}*") if source and file.resolve().is_file()}):
            yield f"--volume={source.resolve() if source else ''}:/{file.relative_to(tree)}:ro"


def _over_glibc(row: Row, c_runtime: Path) -> Iterator[str]:
    tree = bed.BUILD / "images" / row.tree
    for file in sorted(c_runtime.iterdir()):
        if _GLIBC.match(file.name):
            for copy in sorted({copy.resolve() for copy in tree.rglob(file.name) if tree in copy.resolve().parents}):
                yield f"--volume={file.resolve()}:/{copy.relative_to(tree)}:ro"
