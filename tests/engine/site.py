"""A site that many tests share: making one takes a second, and there are many tests.

Fixtures to import: ``from tests.engine.site import ready, site  # noqa: F401``; a module's own ``site`` then shadows that of conftest.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.bed.bed import RUNTIMES, USERS, Engine
from tests.bed.site import Site

ReadySite = Callable[[Engine], Site]

_QUICK = (("crun", "root"), ("runc", "rootless"), ("crun", "keep-id"))

#: Each runtime and each user once, and the other combinations in the long run: for what hardly depends on them.
three_engines = pytest.mark.parametrize("engine", [
    pytest.param(pair, id="-".join(pair), marks=() if pair in _QUICK else pytest.mark.long)
    for pair in ((runtime, user) for user in USERS for runtime in RUNTIMES)
], indirect=True)


def _sites(**configuration: object) -> Iterator[ReadySite]:
    folder = bed.scratch("site")
    made: dict[str, Site] = {}

    def get(engine: Engine) -> Site:
        account = engine.account
        if account.name not in made:
            site = made[account.name] = Site(folder / account.name, account)
            site.configure(**configuration)  # type: ignore[arg-type]
            site.scan()
            site.register()
        forget(made[account.name])
        return made[account.name]

    yield get
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ready() -> Iterator[ReadySite]:
    """``ready(engine)``: the module's site for the account of `engine`, with nothing remembered of tests before."""
    yield from _sites()


@pytest.fixture(scope="module")
def ready_to_bind() -> Iterator[ReadySite]:
    """The same of a site that mounts the loader's cache, and so writes nothing into a container's layer: import it as ``ready``."""
    yield from _sites(loader_cache="bind")


@pytest.fixture
def site(engine: Engine, ready: ReadySite) -> Site:
    """The module's site for the `engine` of this test."""
    return ready(engine)


class Sites:
    """Sites of one module's tests, each made when it is first asked for."""

    def __init__(self, name: str) -> None:
        self._folder = bed.scratch(name)
        self._made: dict[str, Site] = {}

    def made(self, account: bed.Account, profiles: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]] = (), **more: Any) -> Site:
        """One for this account with these entries of site.json (`more` are further keys of it) and profiles of its `own`; nothing is
        remembered of tests before."""
        key = json.dumps([account.name, profiles, own, more])
        if key not in self._made:
            site = self._made[key] = Site(self._folder / str(len(self._made)), account)
            (site.config_dir / "profiles.d").mkdir()
            for profile in own:
                (site.config_dir / f"profiles.d/{profile['name']}.json").write_text(json.dumps(profile))
            (site.config_dir / "site.json").write_text(json.dumps({"version": 1, "profiles": profiles, **more}))
            site.scan()
            site.register()
        forget(self._made[key])
        return self._made[key]

    def remove(self) -> None:
        shutil.rmtree(self._folder)


def forget(site: Site) -> None:
    """Removes every remembered plan, so that the next start is a cold one."""
    for cache in (site.cache_dir, Path(f"/run/user/{site.account.uid}/oci-hpc-hooks")):  # root's, a user's
        shutil.rmtree(cache / "plans", ignore_errors=True)
