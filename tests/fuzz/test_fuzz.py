"""The corpus and a bounded number of damaged copies of it, the same ones each time; ``make fuzz`` goes on from there."""

from __future__ import annotations

import random
import time

import pytest

from tests.fuzz import seeds, targets

#: Damaged copies of the seeds of each target, and the seconds that one input may take on a busy machine.
COPIES = 600
SLOW = 5.0


@pytest.mark.parametrize("name", targets.TARGETS)
def test_only_errors_of_ours(name: str) -> None:
    chance = random.Random(name)
    known = seeds.of(name)
    assert known, f"tests/fuzz/corpus/{name} has no seeds"
    end = time.monotonic() + 0.5  # after that the seeds alone
    for number in range(len(known) + COPIES):
        data = known[number % len(known)]
        if number >= len(known):
            if time.monotonic() > end:
                break
            odd = name in targets.OF_JSON and chance.randrange(2)
            data = seeds.changed_json(data, chance) if odd else seeds.damaged(data[:seeds.LONGEST], chance)
        began = time.process_time()
        try:
            targets.check(name, data)
        except BaseException as error:
            raise AssertionError(f"{name} with {data[:2000]!r}") from error
        assert time.process_time() - began < SLOW, (name, data[:2000])
