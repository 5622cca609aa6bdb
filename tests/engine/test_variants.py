"""A site with two builds of its MPI: an image that is too old for Debian 13's gets the one with the older needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bed.bed import Engine
from tests.bed.site import MPICH5, TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, SITE_VERSION, TREE, assert_runs, start
from tests.engine.site import three_engines
from tests.engine.test_c_runtime import TRIXIE_LIBC
from tests.engine.test_c_runtime import VERSION as TRIXIE_VERSION

WHEEL = {"name": "wheel", "search": [str(MPICH5)]}  # needs glibc 2.27


@pytest.fixture
def site(engine: Engine, make_site: SiteMaker) -> Site:
    return make_site(engine, profiles=[{"name": "mpich", "search": [str(TRIXIE)], "variants": [WHEEL]}], c_runtime="host")


@three_engines
@pytest.mark.parametrize("image", ["bookworm-mpich", "bullseye-mpich"])
def test_two_ranks(engine: Engine, site: Site, image: str) -> None:
    for way in ("cold", "warm"):
        result, log = start(engine, site, *HELLO, image=image)
        assert_runs(result, SITE_VERSION, f"{TREE}{MPICH5}/")
        (entry,) = log
        assert (entry["verdict"], entry["path"], entry["profile"]) == ("proved", way, "mpich")
        codes = {finding["code"]: finding["what"] for finding in entry["findings"]}
        assert "variant wheel of profile mpich" in codes["variant"] and "GLIBC_2.38" in codes["variant"]
        assert "c-runtime" not in codes


@pytest.mark.parametrize(("profile", "more", "version", "codes"), [
    ({"search": [str(MPICH5)], "variants": [{"name": "trixie", "search": [str(TRIXIE)]}]}, {}, SITE_VERSION, set()),
    ({"search": [str(TRIXIE)], "variants": [{"name": "same", "search": [str(TRIXIE)]}]}, {"c_runtime": {"search": [str(TRIXIE_LIBC)]}},
     TRIXIE_VERSION, {"variant-unfit", "c-runtime"}),
], ids=["the profile fits", "no variant fits"])
def test_other_steps(crun: Engine, make_site: SiteMaker, profile: dict[str, Any], more: dict[str, Any], version: str,
                     codes: set[str]) -> None:
    site = make_site(crun, profiles=[{"name": "mpich", **profile}], **more)
    result, log = start(crun, site, *HELLO, image="bullseye-mpich")
    assert_runs(result, version, "/")
    assert {finding["code"] for finding in log[0]["findings"]} & {"variant", "variant-unfit", "c-runtime"} == codes


def test_no_variant_fits(crun: Engine, make_site: SiteMaker) -> None:
    """The refusal names every step; nothing of it makes podman end with the exit code of a missing command."""
    variants = [{"name": "gone", "search": ["/opt/no/such/mpich"]}, {"name": "same", "search": [str(TRIXIE)]}]
    site = make_site(crun, profiles=[{"name": "mpich", "search": [str(TRIXIE)], "variants": variants}])
    result, log = start(crun, site, "mpihello", image="bullseye-mpich")
    assert result.returncode == 126, result.stderr
    for words in ("GLIBC_2.38", "glibc is 2.31", "variant gone of profile mpich does not help: the scan says: there is no libmpi.so.12",
                  "variant same of profile mpich does not help: libmpich.so.12", "variants in site.json"):
        assert words in result.stderr, result.stderr
    assert [entry["verdict"] for entry in log] == ["refused"]


def test_a_variant_that_comes_later_is_seen(crun: Engine, make_site: SiteMaker, scratch: Path) -> None:
    later = scratch / "el7/lib"
    site = make_site(crun, profiles=[{"name": "mpich", "search": [str(TRIXIE)], "variants": [{"name": "el7", "search": [str(later)]}]}])
    result, _ = start(crun, site, "mpihello", image="bookworm-mpich")
    assert result.returncode == 126 and "none of them exists" in result.stderr
    later.parent.mkdir()
    later.symlink_to(MPICH5)
    result, _ = start(crun, site, *HELLO)
    assert_runs(result, SITE_VERSION, TREE)
