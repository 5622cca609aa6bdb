"""What is seen from inside containers, and what the log says of a start: shared by the engine tests."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from tests.bed.bed import Engine, Result
from tests.bed.site import Site

#: Two ranks that tell which MPI they run on.
HELLO = ("mpiexec", "-n", "2", "mpihello")

OWN_VERSION = "4.0.2"  # Debian 12's MPICH, in the image
SITE_VERSION = "5.0.2"  # PyPI's, the site's
LIBRARY_DIR = "/usr/lib/x86_64-linux-gnu"
TREE = "/dev/.oci-hpc"

_RANK = re.compile(r"^rank (\d+) of (\d+): (?:MPICH Version: +|Open MPI v)([\d.]+)[^;]*; loaded (.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Rank:
    """One line of mpihello."""

    number: int
    of: int
    version: str
    loaded: tuple[str, ...]  # files named libmpi… in /proc/self/maps


def ranks(result: Result) -> list[Rank]:
    """What the ranks of a container said, in their order. Fails the test unless the container ended well."""
    assert result.returncode == 0, f"{result.args}\n{result.stdout}{result.stderr}"
    found = [Rank(int(number), int(of), version, tuple(loaded.split())) for number, of, version, loaded in _RANK.findall(result.stdout)]
    return sorted(found, key=lambda rank: rank.number)


def assert_runs(result: Result, version: str, path: str) -> None:
    """Two ranks that know each other, both on the MPI of this version, and nothing but `path` (a prefix) loaded as MPI."""
    found = ranks(result)
    assert [(rank.number, rank.of, rank.version) for rank in found] == [(0, 2, version), (1, 2, version)], result.stdout
    for rank in found:
        assert len(rank.loaded) == 1 and rank.loaded[0].startswith(path), result.stdout
    assert "sum of ranks + 1: 3" in result.stdout


def assert_site(result: Result, path: str = TREE + "/") -> None:
    """The site's MPI runs: by way of the tree, or of `path`, a copy of the image's that it was bound over."""
    assert_runs(result, SITE_VERSION, path)


def assert_own(result: Result, path: str = LIBRARY_DIR) -> None:
    """The image's own MPI runs."""
    assert_runs(result, OWN_VERSION, path)


def log_of(site: Site, container: str) -> list[dict[str, Any]]:
    """The log's entries of the container with this id, the oldest first. A user's log is one for all sites."""
    told = site.last("--json", "-n", "64")
    assert told.returncode == 0, told.stderr
    return [entry for entry in reversed(json.loads(told.stdout)["entries"]) if entry["id"] == container]


def start(engine: Engine, site: Site, *command: str, options: Sequence[str] = (), image: str = "bookworm-mpich",
          hooks_dir: Optional[Path] = None) -> tuple[Result, list[dict[str, Any]]]:
    """``podman run --rm`` with the site's hooks: its result, and what the log says of it."""
    before = {entry["id"] for entry in site.log()}
    result = engine.run(image, *command, options=options, hooks_dir=hooks_dir or site.hooks_dir)
    return result, [entry for entry in site.log() if entry["id"] not in before]


def injected(engine: Engine, site: Site, *command: str, options: Sequence[str] = (), hooks_dir: Optional[Path] = None,
             verdict: str = "proved", path: str = TREE + "/") -> None:
    """Start the same container twice and check each: the site's MPI in two ranks, loaded from `path`, and one injection, which is
    decided the first time and remembered the second."""
    for way in ("cold", "warm"):
        result, log = start(engine, site, *(command or HELLO), options=options, hooks_dir=hooks_dir)
        assert_site(result, path)
        assert [(entry["verdict"], entry["path"]) for entry in log] == [(verdict, way)], (options, log)
