"""A system call of a hook fails, or the hook is killed at it: the container starts right or not at all, and a sentence says why."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator

import pytest

from benchmarks import hook_start
from tests.bed import bed
from tests.faults import sweep

ERRORS = ("EIO", "ENOSPC", "EROFS", "EMFILE", "ENOMEM", "ESTALE", sweep.KILLED)


@pytest.fixture(scope="module")
def bench() -> Iterator[sweep.Bench]:
    bed.enter()
    hook_start.BENCH.mkdir(parents=True, exist_ok=True)
    folder = bed.scratch("faults")
    engine = bed.Engine("crun", "root")
    container = hook_start.Container(engine, "bookworm-mpich")
    try:
        yield sweep.Bench(folder, container)
    finally:
        engine.remove(container.name)
        container.state_file.unlink(missing_ok=True)
        shutil.rmtree(folder)


def some_points(bench: sweep.Bench, cold: bool, seconds: float) -> None:
    """As many points as that time is enough for, always in the same order; after each tenth fault an ordinary start has to be right."""
    before = bed.host_state()
    if cold:
        bench.forget()
    points = [(point, error) for point in bench.points() for error in ERRORS]
    random.Random(7).shuffle(points)
    end = time.monotonic() + seconds
    wrong = []
    reached = 0
    for number, (point, error) in enumerate(points):
        if time.monotonic() > end:
            break
        if cold:
            bench.forget()
        found = bench.fail(point, error)
        if found is None:
            continue
        reached += 1
        wrong += [f"{point.call} {point.number} {error}: {what}" for what in sweep.faults(found, bench, error)]
        if number % 10 == 0:
            after = bench.start()
            if after.status or after.mounts != bench.right:
                wrong.append(f"the start after {point.call} {point.number} {error}: {after.said}")
    print(f"{'cold' if cold else 'warm'}: {reached} of {len(points)} faults reached")
    assert reached > 10
    assert not wrong, "\n".join(wrong)
    assert not bed.leaks(before)


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_sample(bench: sweep.Bench, cold: bool) -> None:
    some_points(bench, cold, 12)


@pytest.mark.long
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_for_long(bench: sweep.Bench, cold: bool) -> None:
    some_points(bench, cold, 1200)
