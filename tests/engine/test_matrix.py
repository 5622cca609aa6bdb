"""The matrix of images and site MPIs (tests/matrix): some of its cells here, all of them in the long run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.matrix.cells import HOSTS, ROWS
from tests.matrix.matrix import RIGHT, Cell, Sites, cells, judge

#: Rows and hosts that need no images but those of the other tests.
_QUICK = [
    ("Debian 12, MPICH 4.0", "MPICH 5.0"),
    ("Debian 11, MPICH 3.4", "Debian 13's MPICH 4.2"),
    ("Debian 12, Open MPI 4.1, the site's mpirun", "Open MPI 4.1"),
    ("Debian 12, Open MPI 4.1, its own mpirun", "MPICH 5.0"),
    ("no /etc/ld.so.cache", "the same with its glibc"),
    ("both MPIs, auto, the MPICH program", "Open MPI 5.0"),
    ("musl", "MPICH 5.0"),
    ("static, auto", "MPICH 5.0"),
]


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    made = Sites()
    yield made
    made.remove()


def _right(cell: Cell, sites: Sites) -> None:
    result = judge(cell, sites)
    assert result.judged == RIGHT, f"{result.message}\n{result.evidence}"


@pytest.mark.parametrize(("row", "host"), _QUICK)
def test_some(row: str, host: str, sites: Sites) -> None:
    (cell,) = [Cell(one, other) for one in ROWS if one.name == row for other in HOSTS if other.name == host]
    _right(cell, sites)


@pytest.mark.long
@pytest.mark.parametrize("cell", cells(), ids=str)
def test_all(cell: Cell, sites: Sites) -> None:
    _right(cell, sites)
