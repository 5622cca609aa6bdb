"""Hooks of an older and of this version side by side, as during an update: each with the other's inventory and remembered plans starts
containers right or, an older release, refuses with a sentence; and what asks for nothing starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed.bed import Engine, Result
from tests.bed.site import Site
from tests.engine.inside import HELLO, assert_own, assert_site
from tests.soak import versions
from tests.soak.versions import Version

REFUSED = re.compile(r"oci-hpc-hooks: \S+/inventory.json is not an inventory of version (\d+) \(from label .*run oci-hpc-hooks scan; .*\.$",
                     re.MULTILINE)


@pytest.mark.parametrize("make", [versions.older, pytest.param(versions.lowered, marks=pytest.mark.long)])
def test_each_with_what_the_other_wrote(scratch: Path, make: Callable[[Path], Version]) -> None:
    engine = Engine("crun", "root")
    site = Site(scratch / "site")
    site.configure()
    old, new = make(scratch / "older"), versions.current()
    hooks = {version: version.register(site) for version in (old, new)}

    def start(version: Version, image: str = "bookworm-mpich") -> Result:
        return engine.run(image, *HELLO, hooks_dir=hooks[version])

    for scanned, other in ((old, new), (new, old), (old, new)):
        scanned.scan(site)
        assert_own(start(other, "bookworm-mpich-nolabel"))
        written = (site.state_dir / "inventory.json").read_bytes()
        result = start(other)
        if result.returncode == 0:
            assert_site(result)
        else:
            assert other is old and REFUSED.search(result.stderr)[1] == str(old.inventory), result.stderr  # type: ignore[index]
        assert (site.state_dir / "inventory.json").read_bytes() == written
        if other is new:
            assert_site(start(other))
            assert site.log()[-1]["path"] == "warm"
        assert_site(start(scanned))
        assert (site.log()[-1]["verdict"], site.log()[-1]["path"]) == ("proved", "cold")
