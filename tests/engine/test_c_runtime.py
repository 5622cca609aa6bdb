"""A site whose MPI needs a newer glibc than the image has brings its own: real programs run on Debian 13's loader and libc."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import LIBRARY_DIR, assert_runs, start
from tests.engine.site import three_engines

TRIXIE_LIBC = bed.BUILD / "site/trixie-libc" / LIBRARY_DIR[1:]

VERSION = "4.2.1"  # Debian 13's MPICH
OWN_GLIBC = {"bookworm-mpich": "2.36", "bullseye-mpich": "2.31"}
SYSTEM = f"LD_LIBRARY_PATH=/lib/x86_64-linux-gnu:{LIBRARY_DIR}"


@pytest.fixture
def site(engine: Engine, make_site: SiteMaker) -> Site:
    return make_site(engine, search=[TRIXIE], c_runtime={"search": [str(TRIXIE_LIBC)]})


@three_engines
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


@three_engines
@pytest.mark.parametrize("environment", ["A=b", SYSTEM])
@pytest.mark.parametrize("image", OWN_GLIBC)
def test_other_programs(engine: Engine, site: Site, image: str, environment: str) -> None:
    """Whatever else is started finds loader and libc of one release, wherever it looks for them."""
    result, _ = start(engine, site, "env", environment, "sh", "-c", CHILDREN, image=image)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert "2.41" in lines[0] and lines[1].startswith("root:") and lines[-4:] == ["42", "/", "x", "done"]
    assert not result.stderr, result.stderr


LOCALES = """
set -e
test "$(LC_ALL=C.UTF-8 locale charmap)" = UTF-8
mkdir /tmp/compiled
cp -r /usr/lib/locale/C.* /tmp/compiled/xx_XX.utf8
export LOCPATH=/tmp/compiled LC_ALL=xx_XX.UTF-8
test "$(locale charmap)" = UTF-8
perl -we 'use POSIX; setlocale(LC_ALL, "") eq "xx_XX.UTF-8" or die'
printf '\\303\\251' | grep -qx .
unset LOCPATH LC_ALL
echo x | iconv -f latin1 -t UTF-16 | od -An -c | tr -d ' '
for c in $(iconv -l | tr -d /,); do echo "x é" | iconv -f $c -t UTF-8 2>/dev/null | cksum; done | cksum
"""


@pytest.mark.parametrize("image", OWN_GLIBC)
def test_locales_and_character_sets(rootful: Engine, make_site: SiteMaker, image: str) -> None:
    """Locales that the image's older localedef has compiled, and every gconv module of the image, give what they gave before."""
    site = ours(rootful, make_site)
    after, log = start(rootful, site, "sh", "-c", LOCALES, image=image)
    assert (after.returncode, after.stderr) == (0, "")
    assert "c-runtime" in codes(log)
    assert after.stdout.startswith("377376x\\0\\n\\0\n")
    before = rootful.run(image, "sh", "-c", LOCALES)
    assert before.stdout == after.stdout


# ------------------------------------------------------------------------------------------------------------------- limits

def ours(engine: Engine, make_site: SiteMaker) -> Site:
    return make_site(engine, search=[TRIXIE], c_runtime={"search": [str(TRIXIE_LIBC)]})


def codes(log: Sequence[Mapping[str, Any]]) -> set[str]:
    (entry,) = log
    return {finding["code"] for finding in entry["findings"]}


def compile_(path: Path, source: str, *options: str) -> None:
    subprocess.run(["gcc", "-w", "-xc", "-", "-xnone", "-o", str(path), *options], input=source.encode(), check=True)


OPENS = """
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    void *library = dlopen("libwants.so", RTLD_NOW);
    puts(library ? "opened" : dlerror());
    return !library;
}
"""


@pytest.mark.parametrize("image", OWN_GLIBC)
def test_executable_stacks(rootful: Engine, make_site: SiteMaker, scratch: Path, image: str) -> None:
    """Loaded with the program: as ever. Opened later: refused, and said; unless the program itself or a tunable allows it."""
    folder = scratch / "x"
    folder.mkdir()
    compile_(folder / "libwants.so", "int wanted(void) { return 42; }", "-shared", "-fPIC", "-Wl,-z,execstack,-soname,libwants.so")
    compile_(folder / "needs", "int wanted(void); int main(void) { return wanted() != 42; }", f"-L{folder}", "-lwants")
    compile_(folder / "opens", OPENS, "-ldl")
    compile_(folder / "wants", OPENS, "-ldl", "-Wl,-z,execstack")
    site = ours(rootful, make_site)
    options = [f"--volume={folder}:/x", "--env=LD_LIBRARY_PATH=/x"]
    for program, more, status, told in (
        ("needs", [], 0, False), ("opens", [], 1, True), ("wants", [], 0, False),
        ("opens", ["--env=GLIBC_TUNABLES=glibc.rtld.execstack=2"], 0, False),
    ):
        result, log = start(rootful, site, f"/x/{program}", image=image, options=[*options, *more])
        assert result.returncode == status, (program, result.stdout, result.stderr)
        assert ("cannot enable executable stack" in result.stdout) == bool(status)
        assert "c-runtime" in codes(log) and ("c-runtime-execstack" in codes(log)) == told, program


def test_ldd(rootful: Engine, make_site: SiteMaker) -> None:
    site = ours(rootful, make_site)
    for image, works in (("bullseye-mpich", False), ("bookworm-mpich", True)):
        result, log = start(rootful, site, "ldd", "/bin/ls", image=image)
        assert (result.returncode == 0, "libc.so.6 =>" in result.stdout) == (works, works), result.stdout + result.stderr
        assert ("c-runtime-tools" in codes(log)) == (not works)


PYTHON = """
import ctypes, encodings.idna, locale, pwd, socket, subprocess, sys
assert ctypes.CDLL(None).gnu_get_libc_version and sys.getfilesystemencoding() == "utf-8"
locale.setlocale(locale.LC_ALL, "C.UTF-8")
assert "é".encode("euc_jp") and pwd.getpwnam("root").pw_dir == "/root" and socket.gethostbyname("localhost") == "127.0.0.1"
print(subprocess.check_output(["sh", "-c", "getent passwd root | cut -d: -f1; perl -e 'print 42'"], text=True))
"""
LOOKS_UP = '#include <pwd.h>\n#include <stdio.h>\nint main(void) { return puts(getpwnam("root")->pw_dir) < 0; }\n'
DEBIAN_11 = f"{bed.BUILD}/chroots/bullseye:O"  # with Python and gcc
WISH = ["--annotation=org.supercontainers.mpi=mpich", "--rootfs"]


@pytest.mark.parametrize("environment", ["A=b", SYSTEM])
def test_python(rootful: Engine, make_site: SiteMaker, environment: str) -> None:
    options = [f"--env={environment}", *WISH]
    result, log = start(rootful, ours(rootful, make_site), "python3", "-c", PYTHON, image=DEBIAN_11, options=options)
    assert (result.returncode, result.stdout.split()) == (0, ["root", "42"]), result.stderr
    assert "c-runtime" in codes(log)


def test_compiler_and_static_programs(rootful: Engine, make_site: SiteMaker, scratch: Path) -> None:
    """Debian 11's linker cannot read a library of Debian 13; a static program of Debian 11 cannot use its NSS modules."""
    site = ours(rootful, make_site)
    folder = scratch / "x"
    folder.mkdir()
    (folder / "looks_up.c").write_text(LOOKS_UP)
    options = [f"--volume={folder}:/x", "--workdir=/x", *WISH]
    result, log = start(rootful, site, "gcc", "looks_up.c", "-o", "dynamic", image=DEBIAN_11, options=options)
    assert result.returncode != 0 and "libc.so.6" in result.stderr and not (folder / "dynamic").exists()
    (told,) = [finding["what"] for finding in log[0]["findings"] if finding["code"] == "c-runtime-tools"]
    assert "/usr/bin/ld links" in told and "/usr/bin/ldd calls" in told
    result, log = start(rootful, site, "gcc", "-static", "looks_up.c", "-o", "fixed", image=DEBIAN_11, options=options)
    assert result.returncode == 0 and "c-runtime-static" not in codes(log)
    result, log = start(rootful, site, "/x/fixed", image=DEBIAN_11, options=options)
    assert result.returncode == 128 + 11 and "c-runtime-static" in codes(log)
    assert rootful.run(DEBIAN_11, "/x/fixed", options=options).stdout == "/root\n"


@three_engines
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
    """``host`` is the node's glibc: Debian 12's is older than what Debian 13's MPICH needs, Debian 13's own comes."""
    result, log = start(crun, make_site(crun, search=[TRIXIE], c_runtime="host"), "mpihello", image="bullseye-mpich")
    if tuple(map(int, platform.libc_ver()[1].split("."))) >= (2, 38):
        assert result.returncode == 0 and VERSION in result.stdout and "c-runtime" in codes(log), result.stderr
        return
    assert result.returncode != 0 and "GLIBC_2.38" in result.stderr and "is too old as well" in result.stderr
