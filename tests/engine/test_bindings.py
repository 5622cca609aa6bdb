"""C++ and Fortran bindings of the image's MPICH over a site's MPICH that does not bring its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import MPICH5, TRIXIE
from tests.engine.conftest import SiteMaker
from tests.engine.inside import LIBRARY_DIR, OWN_VERSION, ranks, start
from tests.engine.test_c_runtime import TRIXIE_LIBC, VERSION

IMAGE = "bookworm-mpich"
#: What MPICH 4.0's bindings take from inside of its libmpi, and MPICH 5's does not export.
LACKING = {"cxx": "MPII_Errhandler_set_cxx", "fort": "PMPIX_Delete_error_class"}


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """mpihello linked to one more library of Debian's MPICH: hello-cxx, hello-fort."""
    folder = bed.scratch("bindings")
    libraries = bed.BUILD / "images/bookworm" / LIBRARY_DIR[1:]
    for name in LACKING:
        sources = [f"-I{MPICH5.parent / 'include'}", f"{bed.ROOT}/tests/bed/src/mpihello.c"]
        link = ["-Wl,--no-as-needed,--allow-shlib-undefined", f"{libraries}/libmpich.so.12", f"{libraries}/libmpich{name}.so.12"]
        subprocess.run(["gcc", "-O1", "-o", folder / f"hello-{name}", *sources, *link], check=True, timeout=60)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", LACKING)
def test_bindings(make_site: SiteMaker, programs: Path, name: str) -> None:
    """Refused by name, for by hand it does not load; the image's own MPI runs it."""
    engine, volume = Engine("crun", "root"), f"--volume={programs}:/data:ro"
    program = f"/data/hello-{name}"
    assert [rank.version for rank in ranks(engine.run(IMAGE, program, options=[volume]))] == [OWN_VERSION]
    over = f"--volume={MPICH5}/libmpi.so.12:{LIBRARY_DIR}/libmpich.so.12.2.2:ro"
    by_hand = [volume, over, f"--volume={MPICH5}/mpich:{LIBRARY_DIR}/mpich:ro", "--env=LD_BIND_NOW=1"]
    failed = engine.run(IMAGE, program, options=by_hand)
    assert failed.returncode != 0 and "undefined symbol" in failed.stderr
    refused, _ = start(engine, make_site(engine), program, image=IMAGE, options=[volume])
    assert refused.returncode != 0
    assert f"libmpich{name}.so.12" in refused.stderr and LACKING[name] in refused.stderr


def test_a_site_with_what_they_need(make_site: SiteMaker, programs: Path) -> None:
    """Debian 13's MPICH still exports what the C++ bindings of Debian 12's use."""
    engine = Engine("crun", "root")
    site = make_site(engine, search=[TRIXIE], c_runtime={"search": [str(TRIXIE_LIBC)]})
    options = [f"--volume={programs}:/data:ro", "--env=LD_BIND_NOW=1"]
    result, log = start(engine, site, "/data/hello-cxx", image=IMAGE, options=options)
    assert [rank.version for rank in ranks(result)] == [VERSION]
    assert [entry["verdict"] for entry in log] == ["proved"]
