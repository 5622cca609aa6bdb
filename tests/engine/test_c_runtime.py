"""A site whose MPI needs a newer glibc than the image has brings its own: real programs run on Debian 13's loader and libc."""

from __future__ import annotations

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import LIBRARY_DIR, assert_runs, start

TRIXIE_LIBC = bed.BUILD / "site/trixie-libc" / LIBRARY_DIR[1:]

VERSION = "4.2.1"  # Debian 13's MPICH
OWN_GLIBC = {"bookworm-mpich": "2.36", "bullseye-mpich": "2.31"}
SYSTEM = f"LD_LIBRARY_PATH=/lib/x86_64-linux-gnu:{LIBRARY_DIR}"


@pytest.fixture
def site(engine: Engine, make_site: SiteMaker) -> Site:
    return make_site(engine, search=[TRIXIE], c_runtime={"search": [str(TRIXIE_LIBC)]})


@pytest.mark.parametrize("image", OWN_GLIBC)
def test_two_ranks(engine: Engine, site: Site, image: str) -> None:
    for options, way in (([], "cold"), ([], "warm"), (["--read-only"], "cold"), ([f"--env={SYSTEM}"], "cold")):
        result, log = start(engine, site, "mpiexec", "-n", "2", "mpihello", options=options, image=image)
        assert_runs(result, VERSION, "/")
        assert [(entry["verdict"], entry["path"]) for entry in log] == [("proved", way)], log
        (told,) = [finding["what"] for finding in log[0]["findings"] if finding["code"] == "c-runtime"]
        assert f"glibc {OWN_GLIBC[image]} is replaced by the site's 2.41" in told and str(TRIXIE_LIBC) in told


CHILDREN = """
set -e
/lib64/ld-linux-x86-64.so.2 --version | head -n 1
getent passwd root
getent hosts localhost
perl -e 'use POSIX; print POSIX::floor(42.5), "\\n"'
ls -d /
echo x | iconv -f EUC-JP -t UTF-8
mpihello >/dev/null
echo done
"""


@pytest.mark.parametrize("environment", ["A=b", SYSTEM])
@pytest.mark.parametrize("image", OWN_GLIBC)
def test_other_programs(engine: Engine, site: Site, image: str, environment: str) -> None:
    """Whatever else is started finds loader and libc of one release, wherever it looks for them."""
    result, _ = start(engine, site, "env", environment, "sh", "-c", CHILDREN, image=image)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert "2.41" in lines[0] and lines[1].startswith("root:") and lines[-4:] == ["42", "/", "x", "done"]
    assert not result.stderr, result.stderr


def test_cannot_be_written(engine: Engine, site: Site) -> None:
    """Root of the container cannot change the host's loader and libc."""
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_mode) for path in TRIXIE_LIBC.iterdir()}
    attempt = "for f in /lib64/ld-linux-x86-64.so.2 /lib/x86_64-linux-gnu/libc.so.6; do echo x >> $f; chmod 777 $f; done; echo tried"
    result, _ = start(engine, site, "sh", "-c", f"{attempt}; mpihello", image="bookworm-mpich", options=["--user=0"])
    assert "tried" in result.stdout and VERSION in result.stdout
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_mode) for path in TRIXIE_LIBC.iterdir()} == before
    assert result.stderr.count("Read-only file system") + result.stderr.count("Permission denied") >= 2


def test_without_permission_it_is_refused(crun: Engine, make_site: SiteMaker) -> None:
    result, log = start(crun, make_site(crun, search=[TRIXIE]), "mpihello", image="bullseye-mpich")
    assert result.returncode != 0 and "GLIBC_2.38" in result.stderr and "c_runtime in site.json" in result.stderr
    assert [entry["verdict"] for entry in log] == ["refused"]


def test_node_s_own(crun: Engine, make_site: SiteMaker) -> None:
    """``host`` is the node's glibc; that of the test bed is no newer than what Debian 13's MPICH needs."""
    result, _ = start(crun, make_site(crun, search=[TRIXIE], c_runtime="host"), "mpihello", image="bullseye-mpich")
    assert result.returncode != 0 and "GLIBC_2.38" in result.stderr and "is too old as well" in result.stderr
