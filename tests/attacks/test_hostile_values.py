# ruff: noqa: F811 (fixtures are imported)
"""Hostile values of labels and annotations: paths, commands of a shell, formats, numbers and documents without end, sentences and lines of
the log that somebody else is to believe, sequences that move the cursor or turn the writing round.

A value names nothing of the host. Whatever it is, the container starts with nothing or is refused in one sentence of printable characters,
and the log gets one line of JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.attacks.hostile import told, watched
from tests.attacks.images import Forge, config
from tests.attacks.weaken import weakened
from tests.bed import bed
from tests.bed.bed import RUNTIMES, USERS, Engine, Result
from tests.bed.site import Site
from tests.engine.site import ReadySite, ready, site  # noqa: F401

KEYS = [f"org.supercontainers.{name}" for name in (
    "mpi", "mpi.implementation", "mpi.portability.mode", "gpu", "hardware.gpu.available", "gpu.devices", "fabric", "glibc", "glibc.version",
    "hardware.cpu.optimized.version", "hardware.cpu.optimized.mode", "launcher", "launcher.scope", "network")]
KEYS_OF_LABELS = [*KEYS, "com.hooks.mpi.type", "com.hooks.mpi.enabled", "io.archspec.cpu.target"]
VALUES = {
    "absolute": "{canary}/libmpi.so.12",
    "upwards": "../../../../../../../../../../..{canary}/libmpi.so.12",
    "list": "mpich+{canary}/libmpi.so.12+*+all",
    "shell": "$(touch {canary}/new)`touch {canary}/new`;touch {canary}/new|touch {canary}/new",
    "format": "%n%s%99999999d{{0.__class__}}$ORIGIN",
    "line": 'x\n{{"verdict": "proved"}}\noci-hpc-hooks: all is well\n',
    "terminal": "\x1b]0;owned\x07\x1b[2J\x1b[1A\r\x9b\x7f",
    "writing": "\u202ehcipm\u2066\u200b\ufeff",
    "number": "9" * 5000,
    "range": "0-" + "9" * 18,
    "long": "mpich+" * 10_000,
    "document": '[{{"a":' * 10_000,
    "empty": "",
}


def value(name: str, canary: Path) -> str:
    return VALUES[name].format(canary=canary)


def in_order(result: Result, site: Site, lines: int) -> None:
    """What is said and logged of a start; ``lines`` is how many the log had before."""
    if result.returncode:
        sentence = told(result)
        assert sentence and sentence.isprintable() and len(sentence) < 8192, result.stderr
        assert "no logs from conmon" not in result.stderr  # which then shows what it has of a log that was longer
    else:
        assert told(result) == ""
    assert not [line for line in result.stderr.splitlines() if line.startswith("oci-hpc-hooks: all is well")]
    *logged, last = content(site).split(b"\n")
    assert last == b""
    new = [json.loads(line) for line in logged[lines:]]
    assert len(new) <= 1 and not [line for line in logged if not line.decode().isprintable()]
    if new or result.returncode:
        assert new[0]["verdict"] == ("refused" if result.returncode else "nothing")


def content(site: Site) -> bytes:
    path = site.log_path()
    return path.read_bytes() if path.exists() else b""


def count(site: Site) -> int:
    return content(site).count(b"\n")


@pytest.mark.parametrize(("engine", "stage", "name"), [
    pytest.param((runtime, user), stage, name, id=f"{runtime}-{user}-{stage or 'createruntime'}-{name}",
                 marks=() if (runtime, user, stage) == ("crun", "root", "") or (runtime, user, stage, name) == (
                     "runc", "rootless", "podman", "terminal") else pytest.mark.long)
    for runtime in RUNTIMES for user in USERS for stage in ("", "podman") for name in VALUES], indirect=["engine"])
def test_of_an_image(engine: Engine, site: Site, forge: Forge, open_folder: Path, stage: str, name: str) -> None:
    """In every label at once. (Ids are lower case, as the paths of images have to be that are named after them.)"""
    with watched(open_folder / "canary") as canary:
        labels = dict.fromkeys(KEYS_OF_LABELS, value(name, canary.folder))
        image = forge.make(engine, config(Env=["PATH=/bin"], Labels=labels))
        lines = count(site)
        in_order(engine.run(image, "true", hooks_dir=site.hooks_dir / stage), site, lines)


def annotation(key: str, text: str) -> str:
    """podman 4 reads a line of CSV."""
    whole = f"{key}={text}"
    if bed.version("podman") < (5, 0):
        whole = '"' + whole.replace('"', '""') + '"'
    return f"--annotation={whole}"


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("line", "number") else pytest.mark.long) for name in VALUES])
@pytest.mark.parametrize("engine", [("crun", "root"), pytest.param(("runc", "rootless"), marks=pytest.mark.long)], indirect=True,
                         ids="-".join)
def test_of_a_caller(engine: Engine, site: Site, open_folder: Path, name: str) -> None:
    """One annotation after the other: the first that is wrong ends it."""
    with watched(open_folder / "canary") as canary:
        for number, key in enumerate(KEYS):
            lines = count(site)
            stage = ("", "podman")[number % 2]
            options = [annotation(key, value(name, canary.folder))]
            result = engine.run("bookworm-mpich", "true", options=options, hooks_dir=site.hooks_dir / stage)
            if result.returncode:
                in_order(result, site, lines)


def test_without_the_defence(ready: ReadySite, scratch: Path) -> None:
    engine = Engine("crun", "root")
    site = ready(engine)
    hooks = weakened(site, scratch, ("report.py", 'char if char.isprintable() else "?" for char in " ".join(text.split())', "text"))
    lines = count(site)
    result = engine.run("bookworm-mpich", "true", options=[annotation(KEYS[0], VALUES["terminal"])], hooks_dir=hooks)
    assert "\x1b[2J" in result.stderr or "\\u001b" in result.stderr
    with pytest.raises(AssertionError):
        in_order(result, site, lines)
