"""Fixtures for attacks: those of the engine tests, and images that are made by hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.images import Forge
from tests.bed import bed
from tests.engine.conftest import crun, engine, make_site, rootful, scratch, tidy  # noqa: F401


@pytest.fixture
def forge(scratch: Path) -> Iterator[Forge]:  # noqa: F811
    """Makes images, and takes them out of the store again."""
    made = Forge(scratch / "forge")
    yield made
    made.clean()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of root's that everybody may enter."""
    made = bed.scratch("attack")
    yield made
    shutil.rmtree(made)
