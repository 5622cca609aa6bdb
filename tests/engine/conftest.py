"""Fixtures for tests in real containers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import RUNTIMES, USERS, Engine
from tests.bed.site import Site

SiteMaker = Callable[..., Site]


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """After each test: containers that it left are removed, and a mount, file or device left on the host fails it."""
    before = bed.host_state()
    yield
    Engine.remove_named()
    leaked = bed.leaks(before)
    assert not leaked, "left on the host: " + ", ".join(leaked)


@pytest.fixture(params=[(runtime, user) for user in USERS for runtime in RUNTIMES], ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each of the six combinations of runtime and user."""
    return Engine(*request.param)


@pytest.fixture(params=RUNTIMES)
def rootful(request: pytest.FixtureRequest) -> Engine:
    """Both runtimes as root: for bundles, ``--userns=auto``, ``--uidmap``."""
    return Engine(request.param, "root")


@pytest.fixture(params=("root", "rootless"))
def crun(request: pytest.FixtureRequest) -> Engine:
    """crun, rootful and rootless: where the runtime makes no difference."""
    return Engine("crun", request.param)


@pytest.fixture
def scratch(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty folder that every user can read and that counts as trusted: pytest's own tmp_path is neither."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:60]
    folder = bed.scratch(name)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_site(scratch: Path) -> SiteMaker:
    """``make_site(engine, search=[folder], **site_json)``: a site whose hooks are ready for `engine`."""

    def make(engine: Engine, **configuration: object) -> Site:
        site = Site(scratch / f"site-{engine}", engine.account)
        site.configure(**configuration)  # type: ignore[arg-type]
        site.scan()
        site.register()
        return site

    return make


@pytest.fixture
def site(engine: Engine, make_site: SiteMaker) -> Site:
    """A site with MPICH 5 in a prefix of its own, scanned, its hooks registered, for the `engine` of this test."""
    return make_site(engine)
