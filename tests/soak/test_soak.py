"""What a soak calls right, wrong and left behind; and a short one."""

from __future__ import annotations

import collections
import subprocess
import sys
from pathlib import Path

import pytest

from oci_hpc_hooks.record import PLANS_LIMIT
from tests.bed import bed
from tests.bed.bed import Engine
from tests.engine.inside import OWN_VERSION, SITE_VERSION
from tests.soak import soak, versions

OTHER = "crun: oci-hpc-hooks: /x/inventory.json is not an inventory of version {} (from label a=b). Site admin: run oci-hpc-hooks scan.\n"
NOW = versions.current().inventory
KINDS = {kind.name: kind for kind in soak.KINDS}


@pytest.mark.parametrize("kind, status, out, err, found", [
    ("served", 0, f"MPICH Version: {SITE_VERSION}", "", "right"),
    ("served", 0, f"MPICH Version: {OWN_VERSION}", "", "started: "),
    ("served", 126, "", OTHER.format(NOW), "other inventory"),
    ("served", 126, "", OTHER.format(NOW - 1), "exit status 126: "),
    ("served", 126, "", OTHER.format(NOW) * 2, "exit status 126: "),
    ("served", 126, "", "Traceback (most recent call last)\n" + OTHER.format(NOW), "exit status 126: "),
    ("served", 126, "", "crun: oci-hpc-hooks: this image needs glibc.\n", "exit status 126: "),
    ("served", 126, "", "", "exit status 126: "),
    ("refused, musl", 126, "", "crun: oci-hpc-hooks: this image needs glibc.\n", "right"),
    ("refused, musl", 0, "needs glibc", "", "started: "),
])
def test_outcome(kind: str, status: int, out: str, err: str, found: str) -> None:
    start = soak.Start(0, KINDS[kind], Engine("crun", "root"), "", versions.current())
    assert soak.outcome(start, subprocess.CompletedProcess((), status, out, err)).startswith(found)


def test_what_is_left_behind() -> None:
    def stock(*mounts: str, plans: int = 0, slab: float = 100) -> soak.Stock:
        return soak.Stock({"mounts": collections.Counter(mounts)}, [0, plans], {"SUnreclaim": slab})

    before = stock("/a", "/b")
    assert stock("/b", "/a", plans=PLANS_LIMIT, slab=164).changed_since(before) == []
    assert stock("/a", "/a", "/b").changed_since(before) == ["left behind: mounts: /a"]  # twice on one place
    assert stock("/a", "/c").changed_since(before) == ["left behind: mounts: /c", "gone: mounts: /b"]
    assert stock("/a", "/b", plans=PLANS_LIMIT + 1).changed_since(before) == ["1025 remembered plans, which is more than 1024"]
    assert stock(slab=164).grown_since(before) == []
    assert stock(slab=165).grown_since(before) == ["SUnreclaim has grown by 65 MiB"]


def test_every_combination_has_its_turn() -> None:
    engines = [Engine(runtime, user) for runtime in bed.RUNTIMES for user in bed.USERS]
    other = versions.Version("older", Path("/"), 1, 1)
    found = soak.starts(1000, engines, (other, versions.current()))
    assert [start.number for start in found] == list(range(1000))
    assert len({(start.kind.name, start.engine, start.stage, start.version) for start in found[:216]}) == 216


def test_each_image_has_been_started_in_each_user_namespace_before_anything_is_counted() -> None:
    engines = [Engine(runtime, user) for runtime in bed.RUNTIMES for user in bed.USERS]
    other = versions.Version("older", Path("/"), 1, 1)
    found = soak.warm_up(engines, (other, versions.current()))
    assert {(start.kind.image, start.engine) for start in found} == {(kind.image, engine) for kind in soak.KINDS for engine in engines}
    assert len({(start.stage, start.version) for start in found}) == 4


@pytest.mark.long
def test_a_short_one() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.soak.soak", "--count=216", "--keep-caches"], cwd=bed.ROOT, capture_output=True,
                          text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none went wrong" in done.stdout
