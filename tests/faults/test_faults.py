# ruff: noqa: F811 (fixtures are imported)
"""A system call of a hook fails, or the hook is killed at it: the container starts right or not at all, and a sentence says why."""

from __future__ import annotations

import datetime
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import hook_start
from tests.attacks import hostile
from tests.attacks.weaken import wrapped
from tests.bed import bed
from tests.bed.bed import Engine
from tests.engine.inside import HELLO, assert_site
from tests.engine.site import ReadySite, ready  # noqa: F401
from tests.faults import sweep
from tests.faults.sweep import FROM_THEN_ON, KILLED, ONCE, Bench, Point, Scenario

ERRORS = ("EIO", "ENOSPC", "EROFS", "EMFILE", "ENOMEM", "ESTALE")
FAULTS = [*((error, how) for error in ERRORS for how in (ONCE, FROM_THEN_ON)), (KILLED, ONCE)]

# ------------------------------------------------------------------------------------------------ the hook alone


@pytest.fixture(scope="module")
def bench_of() -> Iterator[Callable[[Scenario], Bench]]:
    """The one bench of a scenario; before the next one's is made, it goes."""
    bed.enter()
    hook_start.BENCH.mkdir(parents=True, exist_ok=True)
    folder = bed.scratch("faults")
    made: list[Bench] = []

    def of(scenario: Scenario) -> Bench:
        if not made or made[0].scenario is not scenario:
            if made:
                made.pop().close()
            place = Path(tempfile.mkdtemp(dir=folder))
            place.chmod(0o755)
            made.append(Bench(place, scenario))
        return made[0]

    try:
        yield of
    finally:
        if made:
            made[0].close()
        shutil.rmtree(folder)


def some_points(bench: Bench, cold: bool, seconds: float, seed: int) -> None:
    """As many points as that time is enough for, ten at least; after each tenth fault, and each that a decision went through, an ordinary
    start has to be right."""
    before = bed.host_state()
    if cold:
        bench.forget()
    else:
        bench.start()
    points = [(point, *fault) for point in bench.points() for fault in FAULTS]
    random.Random(seed).shuffle(points)
    end = time.monotonic() + seconds
    wrong = []
    reached = 0
    for point, error, how in points:
        if time.monotonic() > end and reached > 9:
            break
        if cold:
            bench.forget()
        found = bench.fail(point, error, how)
        if found is None:
            continue
        reached += 1
        name = f"{point.call} {point.number}{how} {error}"
        wrong += [f"{name}: {what}" for what in sweep.faults(found, bench, point, error, how)]
        if reached % 10 == 0 or (cold and found.status == 0):  # what has been remembered now is as good as ever
            after = bench.start()
            if after.status or after.made != bench.right:
                wrong.append(f"the start after {name}: {after.said}")
    print(f"{bench.scenario.name}, {'cold' if cold else 'warm'}: {reached} of {len(points)} faults reached, order {seed}")
    assert reached > 9
    assert not wrong, "\n".join(wrong)
    assert not bed.leaks(before)


EACH = pytest.mark.parametrize("scenario", sweep.SCENARIOS, ids=lambda scenario: scenario.name)  # outermost: one bench for both
BOTH = pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])


@BOTH
@EACH
def test_a_sample(bench_of: Callable[[Scenario], Bench], scenario: Scenario, cold: bool) -> None:
    """Always the same faults."""
    some_points(bench_of(scenario), cold, 3, 7)


@pytest.mark.long
@BOTH
@EACH
def test_for_long(bench_of: Callable[[Scenario], Bench], scenario: Scenario, cold: bool) -> None:
    """Others every day."""
    some_points(bench_of(scenario), cold, 90, datetime.date.today().toordinal())


def test_a_file_of_the_image_that_cannot_be_read(bench_of: Callable[[Scenario], Bench]) -> None:
    """What is decided without it serves this container and is not remembered; where it is missed, the sentence tells of the disk."""
    bench = bench_of(sweep.SCENARIOS[0])
    bench.forget()
    unread = 0
    for point in [point for point in bench.points() if point.call == "pread64"][-8:]:
        bench.forget()
        found = bench.fail(point, "EIO")
        if found is not None and "image-unread" in str(found.told.get("findings")):
            unread += 1
            refused = f"oci-hpc-hooks: a file of the image could not be looked at: {found.told['findings'][0]['what'].partition(': ')[2]}"
            assert found.status == 0 or found.said.startswith(refused), found
            assert "Input/output error" in str(found.told["findings"]) and not [*bench.plans.glob("*.plan")], found
            assert bench.start().made == bench.right and [*bench.plans.glob("*.plan")]
    assert unread > 1


@pytest.mark.parametrize(("call", "number", "sentence"), [
    ("capset", 2, "the hook cannot give up its privileges: capset() = EPERM"),
    ("capset", 1, "capset() = EPERM (Operation not permitted)"),
    ("prctl", 2, "prctl(PR_SET_NO_NEW_PRIVS, 1) = EPERM"),
])
@pytest.mark.parametrize("scenario", [scenario for scenario in sweep.SCENARIOS if scenario.name in ("createRuntime", "precreate")],
                         ids=lambda scenario: scenario.name)
def test_privileges_that_cannot_be_given_up(bench_of: Callable[[Scenario], Bench], scenario: Scenario, call: str, number: int,
                                            sentence: str) -> None:
    """After the last mount, too: all is taken back."""
    bench = bench_of(scenario)
    bench.start()
    once = bench.fail(Point(call, number), "EPERM")
    assert once is not None and not [*sweep.faults(once, bench, Point(call, number), "EPERM", ONCE)]
    found = bench.fail(Point(call, number), "EPERM", FROM_THEN_ON)
    assert found is not None and found.status == 1 and sentence in found.said, found
    assert found.made in (bench.before, ("",))
    assert found.told["verdict"] == "refused"


@BOTH
@pytest.mark.parametrize("scenario", [sweep.SCENARIOS[0], pytest.param(sweep.SCENARIOS[2], marks=pytest.mark.long)],
                         ids=lambda scenario: scenario.name)
def test_limits_of_whoever_starts_the_runtime(bench_of: Callable[[Scenario], Bench], scenario: Scenario, cold: bool) -> None:
    """Few descriptors, little memory, no files."""
    bench = bench_of(scenario)
    wrong = []
    refused = 0
    for limit in (*(f"--nofile={number}" for number in (4, 5, 6, 7, 9, 12, 16, 20, 25, 30, 40)),
                  *(f"--as={number << 20}" for number in (17, 20, 25, 30, 40, 60, 80, 100, 150)), "--fsize=0", "--fsize=5000"):
        bench.forget()
        if not cold:
            bench.start()
        found = bench.start(limit=limit)
        refused += found.status != 0
        wrong += [f"{limit}: {what}" for what in sweep.faults(found, bench, Point("", 0), "", ONCE)]
    assert not wrong, "\n".join(wrong)
    assert refused > 5


# ------------------------------------------------------------------------------------------------ in podman run

#: strace between the runtime and the hook; what it injects stands in a file.
STRACED = f"""#!/bin/bash
exec strace -f -qq -o {{folder}}/trace -e trace={sweep.CALLS} $(cat {{folder}}/inject) {{hook}} "$@"
"""


def in_podman(engine: Engine, hooks: Path, folder: Path, count: int) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    hooks = wrapped(hooks, folder / "wrapped", STRACED.replace("{folder}", str(folder)))
    inject, trace = folder / "inject", folder / "trace"

    def start(options: str) -> bed.Result:
        inject.write_text(options)
        return engine.run("bookworm-mpich", *HELLO, hooks_dir=hooks)

    start("")
    assert_site(start(""))
    points = sweep.points_of(trace.read_text(errors="replace"))
    before = bed.host_state()
    containers = engine.podman("ps", "--all", "--quiet").stdout
    for point in random.Random(7).sample(points, count):
        result = start(f"-e inject={point.call}:signal=KILL:when={point.number}")
        if "+++ killed by SIGKILL" not in trace.read_text(errors="replace"):
            assert_site(result)  # a start of the same kind made fewer calls
            continue
        assert result.returncode != 0 and "rank" not in result.stdout, f"{point}: {result}"
        assert re.search(r"hook|exit (status|code)", result.stderr), f"{point}: {result.stderr!r}"
        assert engine.podman("ps", "--all", "--quiet").stdout == containers
    assert bed.leaks(before) == []
    assert_site(start(""))


@pytest.mark.parametrize(("engine", "stage"), [pytest.param(("crun", "root"), "", id="crun-root-createRuntime"),
                                               pytest.param(("runc", "rootless"), "podman", id="runc-rootless-precreate")],
                         indirect=["engine"])
def test_killed_while_podman_waits(engine: Engine, ready: ReadySite, scratch: Path, stage: str) -> None:
    in_podman(engine, ready(engine).hooks_dir / stage, scratch / "strace", 3)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["", "podman"], ids=["createRuntime", "precreate"])
def test_killed_anywhere_while_podman_waits(engine: Engine, ready: ReadySite, scratch: Path, stage: str) -> None:
    in_podman(engine, ready(engine).hooks_dir / stage, scratch / "strace", 20)


@pytest.mark.parametrize("error", ["EIO", pytest.param("ENOMEM", marks=pytest.mark.long)])
@pytest.mark.parametrize("call", ["move_mount", "setns", "capset"])
def test_podman_tells_why(ready: ReadySite, scratch: Path, call: str, error: str) -> None:
    """By runc, which prints what a hook has said."""
    engine = Engine("runc", "root")
    before = bed.host_state()
    folder = scratch / "strace"
    folder.mkdir()
    hooks = wrapped(ready(engine).hooks_dir, folder / "wrapped", STRACED.replace("{folder}", str(folder)))
    (folder / "inject").write_text(f"-e inject={call}:error={error}:when=1")
    result = engine.run("bookworm-mpich", *HELLO, hooks_dir=hooks)
    assert result.returncode != 0 and "rank" not in result.stdout
    assert {"EIO": "Input/output error", "ENOMEM": "Cannot allocate memory"}[error] in hostile.told(result)
    assert bed.leaks(before) == []
