"""Each rule of the ladder alone, on files that gcc has made: a small image, a small site, the whole way from the files to the verdict.

What facts alone can show is in tests/unit/decide; here it is shown that the facts which a rule rests on are read from real files.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

import pytest

from oci_hpc_hooks import cold
from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import (
    NOTHING,
    PROVED,
    REFUSED,
    UNPROVED,
    CacheEntry,
    Container,
    FileId,
    HostLibrary,
    LdCache,
    Mount,
    Plan,
    ResolvedProfile,
)
from tests.unit.decide import world
from tests.unit.elf.elf_bed import build, facts_of, made_up
from tests.unit.test_image import LOADER, Tree

MPICH = "int MPI_Init(void){return 0;} int MPI_Send(void){return 0;} int MPIR_Mark(void){return 0;}"
OPENMPI = "int MPI_Init(void){return 0;} int MPI_Send(void){return 0;} int ompi_mpi_mark;"
CALLS = "int MPI_Init(void); int main(void) { return MPI_Init(); }"
APP = "/bin/app"


class Bench:
    """An image below ``image``, a site's files below ``site``; both with real files only."""

    def __init__(self, top: Path) -> None:
        (top / "image").mkdir(parents=True)
        self.tree = Tree(top / "image")
        self.tree.copy(LOADER, "/usr/lib/ld-linux-x86-64.so.2")  # which libc needs by this name
        self.site = top / "site"
        self.libraries: List[HostLibrary] = []
        self.plugins: List[HostLibrary] = []
        self.entries: List[CacheEntry] = []
        self.runtime: Optional[ResolvedProfile] = None

    def offer(self, name: str, *, role: str = "dependency", source: str = "", needed: Sequence[str] = (), versions: Sequence[str] = (),
              wants: Optional[Dict[str, Sequence[str]]] = None, replaces: Sequence[str] = (), options: Sequence[str] = ()) -> HostLibrary:
        path = self.library(self.site / "lib" / name, source=source, needed=needed, versions=versions, wants=wants, options=options)
        status = path.stat()
        made = HostLibrary(name, str(path), str(path), role, tuple(replaces), FileId(status.st_ino, status.st_size, status.st_mtime_ns),
                           facts_of(path, symbols=True))
        self.libraries.append(made)
        return made

    def mpi(self, *, source: str = MPICH, needed: Sequence[str] = (), wants: Optional[Dict[str, Sequence[str]]] = None) -> HostLibrary:
        """The site's MPI, as the first that is offered."""
        return self.offer("libmpi.so.12", role="replace", source=source, needed=["ld-linux-x86-64.so.2", *needed], wants=wants,
                          replaces=["libmpich.so.12"])

    def put(self, path: str, *, source: str = "", needed: Sequence[str] = (), versions: Sequence[str] = (), soname: str = "",
            wants: Optional[Dict[str, Sequence[str]]] = None, cached: bool = False, rpath: str = "", runpath: str = "",
            options: Sequence[str] = ()) -> str:
        """A library of the image."""
        self.library(self.tree.at(path), source=source, needed=needed, versions=versions, soname=soname, wants=wants, rpath=rpath,
                     runpath=runpath, options=options)
        if cached:
            self.entries.append(CacheEntry(os.path.basename(path), path, 0x303))
        return path

    def library(self, path: Path, *, source: str = "", needed: Sequence[str] = (), versions: Sequence[str] = (), soname: str = "",
                wants: Optional[Dict[str, Sequence[str]]] = None, rpath: str = "", runpath: str = "", options: Sequence[str] = ()) -> Path:
        """``versions``: what it defines, a function for each; ``wants``: versions of other libraries, by whose functions it needs them."""
        extra = [*options]
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(len(versions)):
            source += f"int v_{number}(void) {{ return 0; }}\n"
        if versions:
            script = path.parent / f".{path.name}.map"
            script.write_text("".join(f"{version} {{ global: v_{number}; }};\n" for number, version in enumerate(versions)))
            extra.append(f"-Wl,--version-script={script}")
        for name, asked in (wants or {}).items():
            stub = self.library(path.parent / f".needs-{path.name}/{name}", versions=asked)
            for number in range(len(asked)):
                source += f"int v_{number}(void); int (*use_{len(extra)}_{number})(void) = v_{number};\n"
            extra.append(str(stub))
        return build(path, soname=soname or path.name, source=source, needed=needed, rpath=rpath, runpath=runpath, options=extra)

    def app(self, *needed: str, source: str = CALLS, rpath: str = "", runpath: str = "", options: Sequence[str] = ()) -> None:
        build(self.tree.at(APP), source=source, needed=needed or ["libmpi.so.12"], stub=MPICH, rpath=rpath, runpath=runpath,
              options=options)

    def decide(self, *args: str, env: Sequence[str] = (), family: str = "mpich") -> Plan:
        if self.entries:
            cache = ldcache.merge(LdCache(()), self.entries)
            self.tree.at("/etc/ld.so.cache").write_bytes(ldcache.serialize(cache))
        node = replace(world.inventory(world.profile(*self.libraries, mpi=family, plugins=self.plugins)), c_runtime=self.runtime)
        where = Container("c", "/b", str(self.tree.top), args or (APP,), tuple(env), "/", (Mount("/dev", "tmpfs", "tmpfs"),),
                          {"org.supercontainers.mpi": family}, {}, {})
        with Root(os.open(self.tree.top, os.O_PATH | os.O_DIRECTORY)) as root:
            return cold.decide(where, root, node)[0]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def placed(made: Plan) -> List[str]:
    return sorted(bind.target for bind in made.in_place)


def codes(made: Plan) -> List[str]:
    return [finding.code for finding in made.findings]


def refused(made: Plan, code: str, *says: str) -> None:
    assert made.verdict == REFUSED, made.findings
    worst = made.findings[-1]
    assert worst.code == code and all(word in worst.what for word in says), made.findings


# ------------------------------------------------------------------------------------------------- 1: what can run at all

def test_class(bench: Bench) -> None:
    bench.mpi()
    for path in bench.tree.top.rglob("libc.so.6"):
        build(path, soname="libc.so.6", options=["-m32"])
    refused(bench.decide(), "machine", "32-bit i386")


@pytest.mark.parametrize(("machine", "little", "says"), [(183, True, "64-bit aarch64"), (62, False, "64-bit x86-64")])
def test_machine_and_byte_order(bench: Bench, machine: int, little: bool, says: str) -> None:
    bench.mpi()
    for path in bench.tree.top.rglob("libc.so.6"):
        path.write_bytes(made_up(machine=machine, little=little, strings=b"\0libc.so.6\0", tags=[(14, 1)]))
    refused(bench.decide(), "machine", says)


def test_musl(bench: Bench) -> None:
    bench.mpi()
    for path in (*bench.tree.top.rglob("libc.so.6"), *bench.tree.top.rglob("ld-linux*")):
        path.unlink()
    build(bench.tree.at("/lib/ld-musl-x86_64.so.1"))
    build(bench.tree.at(APP), options=["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"])
    refused(bench.decide(), "musl", "/lib/ld-musl-x86_64.so.1")


def test_nothing_but_a_static_program(bench: Bench) -> None:
    bench.mpi()
    for path in (*bench.tree.top.rglob("libc.so.6"), *bench.tree.top.rglob("ld-linux*")):
        path.unlink()
    build(bench.tree.at(APP), options=["-static"])
    refused(bench.decide(), "no-glibc", "its program is static")


def test_a_static_program_beside_glibc(bench: Bench) -> None:
    bench.mpi()
    bench.put("/usr/lib/libmpi.so.12", source=MPICH)
    build(bench.tree.at(APP), options=["-static"])
    made = bench.decide()
    assert made.verdict == UNPROVED and "static-program" in codes(made)


# ------------------------------------------------------------------------------------------------- 2: the family

def test_family_of_the_copy(bench: Bench) -> None:
    """Open MPI 1.10 was a libmpi.so.12, too."""
    bench.mpi()
    bench.put("/usr/lib/libmpi.so.12", source=OPENMPI)
    bench.app()
    refused(bench.decide(), "family", "/usr/lib/libmpi.so.12", "openmpi")


def test_family_of_what_the_program_loads_beside_it(bench: Bench) -> None:
    bench.mpi()
    bench.put("/usr/lib/libmpi.so.12", source=MPICH)
    bench.put("/usr/lib/libmpi.so.40", source=OPENMPI)
    bench.app("libmpi.so.12", "libmpi.so.40")
    refused(bench.decide(), "family", "libmpi.so.40")


@pytest.mark.parametrize("name", ["libmpich.so.12", "libmpi.so.12"])
def test_another_soname_of_the_same_family(bench: Bench, name: str) -> None:
    bench.mpi()
    copy = bench.put(f"/usr/lib/{name}", source=MPICH)
    bench.app(name)
    made = bench.decide()
    assert (made.verdict, placed(made)) == (PROVED, [copy])


def test_a_copy_that_only_a_link_names(bench: Bench) -> None:
    bench.mpi()
    copy = bench.put("/opt/x/libanything.so", source=MPICH, soname="libanything.so")
    bench.tree.at("/usr/lib/libmpi.so.12").symlink_to(copy)
    bench.app()
    assert placed(bench.decide()) == [copy]


# ------------------------------------------------------------------------------------------------- 3: the functions

def test_a_function_that_the_program_calls(bench: Bench) -> None:
    bench.mpi()
    newer = MPICH + " int MPI_Send_c(void){return 0;}"
    bench.put("/usr/lib/libmpi.so.12", source=newer)
    build(bench.tree.at(APP), source="int MPI_Send_c(void); int main(void) { return MPI_Send_c(); }",
          options=[str(bench.tree.at("/usr/lib/libmpi.so.12"))])
    refused(bench.decide(), "mpi-symbols", "MPI_Send_c", APP)


def test_a_function_that_only_the_images_library_has(bench: Bench) -> None:
    bench.mpi()
    bench.put("/usr/lib/libmpi.so.12", source=MPICH + " int MPI_Send_c(void){return 0;}")
    bench.app()
    made = bench.decide()
    assert made.verdict == PROVED and "mpi-functions" in codes(made)


# ------------------------------------------------------------------------------------------------- 4: the closure

def test_a_dependency_that_nobody_has(bench: Bench) -> None:
    bench.mpi(needed=["libgone.so.1"])
    bench.app()
    refused(bench.decide(), "dependency-missing", "libgone.so.1")


def test_a_dependency_of_the_image(bench: Bench) -> None:
    bench.mpi(needed=["libonly.so.1"])
    bench.put("/usr/lib/libonly.so.1")
    bench.app()
    assert bench.decide().verdict == PROVED


def test_a_dependency_that_is_no_library(bench: Bench) -> None:
    bench.mpi(needed=["libonly.so.1"])
    bench.tree.at("/usr/lib/libonly.so.1").write_text("INPUT(libonly.so.1.2)  # for a linker, and long enough to be read as a header\n")
    bench.app()
    refused(bench.decide(), "dependency-broken", "/usr/lib/libonly.so.1")


def test_a_version_that_the_images_library_lacks(bench: Bench) -> None:
    bench.mpi(wants={"libonly.so.1": ["V_1", "V_2"]})
    bench.put("/usr/lib/libonly.so.1", versions=["V_1"])
    bench.app()
    refused(bench.decide(), "version-missing", "V_2", "/usr/lib/libonly.so.1")


@pytest.mark.parametrize(("site", "image", "whose"), [(2, 1, "site"), (1, 2, "image"), (2, 2, "site")])
def test_of_a_shared_dependency_the_larger_set_of_versions_wins(bench: Bench, site: int, image: int, whose: str) -> None:
    bench.mpi(wants={"libdep.so.1": ["V_1"]})
    bench.offer("libdep.so.1", versions=["V_1", "V_2"][:site])
    copy = bench.put("/usr/lib/libdep.so.1", versions=["V_1", "V_2"][:image])
    bench.put("/usr/lib/libmpi.so.12", source=MPICH)
    bench.app()
    made = bench.decide()
    assert made.verdict == PROVED
    assert (copy in placed(made)) == (whose == "site") and ("image-kept" in codes(made)) == (whose == "image")


def test_a_shared_dependency_that_serves_neither(bench: Bench) -> None:
    bench.mpi(wants={"libdep.so.1": ["V_1"]})
    bench.offer("libdep.so.1", versions=["V_1", "V_2"])
    bench.put("/usr/lib/libdep.so.1", versions=["V_1", "V_3"])
    bench.app()
    refused(bench.decide(), "shared-dependency", "V_3")


@pytest.mark.parametrize("serves", [True, False])
def test_a_shared_dependency_without_versions(bench: Bench, serves: bool) -> None:
    """By the symbols that files of the image take from it."""
    bench.mpi(needed=["libdep.so.1"])
    bench.offer("libdep.so.1", source="int one(void){return 1;}" + ("int two(void){return 2;}" if serves else ""))
    copy = bench.put("/usr/lib/libdep.so.1", source="int one(void){return 1;} int two(void){return 2;}")
    bench.put("/usr/lib/libuser.so.1", source="int two(void); int use(void){return two();}", options=[str(bench.tree.at(copy))])
    bench.app("libmpi.so.12", "libuser.so.1")
    made = bench.decide()
    if serves:
        assert made.verdict == PROVED and copy in placed(made)
    else:
        refused(made, "shared-dependency", "libuser.so.1 uses two")


# ------------------------------------------------------------------------------------------------- 5: the C library

@pytest.mark.parametrize("version", ["GLIBC_2.99", "GLIBC_ABI_DT_RELR_2"])
def test_a_libc_that_is_too_old(bench: Bench, version: str) -> None:
    bench.mpi(wants={"libc.so.6": [version]})
    bench.app()
    refused(bench.decide(), "glibc-too-old", version)


def test_the_sites_c_runtime_in_its_place(bench: Bench) -> None:
    """As one set, over every copy; a set that is too old as well is not taken."""
    mpi = bench.mpi(wants={"libc.so.6": ["GLIBC_2.99"]})
    bench.put("/usr/lib/libmpi.so.12", source=MPICH)
    libc = bench.tree.at("/lib/x86_64-linux-gnu/libc.so.6")
    own = facts_of(libc, symbols=True)
    loader = facts_of(bench.tree.at(LOADER), symbols=True)
    bench.app()
    for extra in ("GLIBC_2.98", "GLIBC_2.99"):
        files = {"libc.so.6": replace(own, verdef=(*own.verdef, extra)), "ld-linux-x86-64.so.2": loader}
        bench.runtime = ResolvedProfile("c-runtime", {}, "/opt/glibc", tuple(
            HostLibrary(name, f"/opt/glibc/{name}", f"/opt/glibc/{name}", "runtime", (), FileId(1, 2, 3), facts)
            for name, facts in files.items()))
        made = bench.decide()
        if extra == "GLIBC_2.98":
            refused(made, "glibc-too-old", "is too old as well")
            continue
        assert made.verdict == PROVED and "c-runtime" in codes(made), made.findings
        found = (path for name in files for path in bench.tree.top.rglob(name))
        copies = {f"/{path.relative_to(bench.tree.top)}" for path in found}
        assert {bind.target for bind in made.in_place if bind.source != mpi.real} == copies


# ------------------------------------------------------------------------------------------------- 6: modules

def test_modules_come_with_their_library(bench: Bench) -> None:
    mpi = bench.mpi()
    module = bench.offer("mods/mod.so", role="plugin", needed=["libmpi.so.12"])
    bench.libraries.remove(module)
    bench.plugins.append(HostLibrary("mod.so", module.path, module.real, "plugin", (), module.file, module.elf))
    bench.put("/usr/lib/libmpi.so.12", source=MPICH)
    bench.put("/usr/lib/mods/mod.so")
    bench.app()
    made = bench.decide()
    assert made.verdict == PROVED
    assert [(f"/{cover.folder}", cover.target) for cover in made.modules] == [(os.path.dirname(mpi.path) + "/mods", "/usr/lib/mods")]


# ------------------------------------------------------------------------------------------------- 7: what is loaded

def by_rpath(bench: Bench) -> List[str]:
    bench.app(rpath="/opt/x")
    return []


def by_runpath(bench: Bench) -> List[str]:
    bench.app(runpath="/opt/x")
    return []


def by_origin(bench: Bench) -> List[str]:
    bench.app(runpath="$ORIGIN/../opt/x")
    return []


def by_library_path(bench: Bench) -> List[str]:
    bench.app()
    return ["LD_LIBRARY_PATH=/opt/x"]


def by_preload(bench: Bench) -> List[str]:
    bench.app()
    return ["LD_PRELOAD=/opt/x/libmpi.so.12"]


def by_preload_file(bench: Bench) -> List[str]:
    bench.tree.at("/etc/ld.so.preload").write_text("/opt/x/libmpi.so.12\n")
    bench.app()
    return []


def by_the_cache(bench: Bench) -> List[str]:
    bench.entries.append(CacheEntry("libmpi.so.12", "/opt/x/libmpi.so.12", 0x303))
    bench.app()
    return []


def by_its_path(bench: Bench) -> List[str]:
    bench.app("/opt/x/libmpi.so.12")
    return []


def by_a_library(bench: Bench) -> List[str]:
    bench.put("/usr/lib/libuser.so", needed=["libmpi.so.12"], runpath="/opt/x")
    bench.app("libuser.so")
    return []


def by_inherited_rpath(bench: Bench) -> List[str]:
    bench.put("/opt/y/libuser.so", needed=["libmpi.so.12"])
    bench.app("libuser.so", rpath="/opt/y:/opt/x")
    return []


def by_a_filter(bench: Bench) -> List[str]:
    bench.put("/usr/lib/libfilter.so", options=["-Wl,--filter=libmpi.so.12"], runpath="/opt/x")
    bench.app("libfilter.so")
    return []


def by_an_auxiliary(bench: Bench) -> List[str]:
    bench.put("/usr/lib/libfilter.so", options=["-Wl,--auxiliary=libmpi.so.12"], runpath="/opt/x")
    bench.app("libfilter.so")
    return []


def without_default_directories(bench: Bench) -> List[str]:
    bench.app(runpath="/opt/x:/lib/x86_64-linux-gnu:/usr/lib", options=["-Wl,-z,nodefaultlib"])
    return []


WAYS = [by_rpath, by_runpath, by_origin, by_library_path, by_preload, by_preload_file, by_the_cache, by_its_path, by_a_library,
        by_inherited_rpath, by_a_filter, by_an_auxiliary, without_default_directories]


@pytest.mark.parametrize("way", WAYS)
def test_however_the_copy_is_found(bench: Bench, way: Callable[[Bench], List[str]]) -> None:
    """And another that is not found by this program is replaced as well."""
    bench.mpi()
    bench.put("/opt/x/libmpi.so.12", source=MPICH)
    bench.put("/usr/lib/libmpi.so.12", source=MPICH)
    made = bench.decide(env=way(bench))
    assert (made.verdict, placed(made)) == (PROVED, ["/opt/x/libmpi.so.12", "/usr/lib/libmpi.so.12"]), made.findings


@pytest.mark.parametrize("place", ["tls", "glibc-hwcaps/x86-64-v2", "glibc-hwcaps/x86-64-v4", "haswell/avx512_1"])
def test_copies_for_some_processors(bench: Bench, place: str) -> None:
    bench.mpi()
    copies = [bench.put(f"/opt/x/{where}libmpi.so.12", source=MPICH) for where in ("", place + "/")]
    bench.app(runpath="/opt/x")
    made = bench.decide()
    assert (made.verdict, placed(made)) == (PROVED, sorted(copies))


def test_an_image_without_any_copy(bench: Bench) -> None:
    bench.mpi()
    bench.app()
    made = bench.decide()
    assert (made.verdict, placed(made)) == (PROVED, []) and "no-copy" in codes(made)


def test_what_the_cache_calls_by_another_path_than_the_file_has(bench: Bench) -> None:
    bench.mpi()
    bench.put("/opt/real/libmpi.so.12", source=MPICH)
    bench.tree.at("/opt/x").symlink_to("real")
    bench.entries.append(CacheEntry("libmpi.so.12", "/opt/x/libmpi.so.12", 0x303))
    bench.app()
    assert placed(bench.decide()) == ["/opt/real/libmpi.so.12"]


def test_a_script_and_a_program_without_mpi(bench: Bench) -> None:
    bench.mpi()
    bench.put("/usr/lib/libmpi.so.12", source=MPICH)
    build(bench.tree.at("/bin/sh"))
    bench.tree.script("/bin/run", b"#!/bin/sh\nexec app\n")
    bench.app()
    for word in ("/bin/run", "/bin/sh"):
        made = bench.decide(word, env=["PATH=/bin"])
        assert made.verdict == UNPROVED and "consumers" in codes(made), made.findings


def test_two_loaders(bench: Bench) -> None:
    bench.mpi()
    bench.put("/usr/lib/libmpi.so.12", source=MPICH)
    bench.app()
    bench.tree.copy(LOADER, "/opt/compat/ld.so")
    build(bench.tree.at("/bin/two"), source=CALLS, needed=["libmpi.so.12"], stub=MPICH, options=["-Wl,--dynamic-linker=/opt/compat/ld.so"])
    refused(bench.decide(APP, "/bin/two"), "other-loader", "/opt/compat/ld.so")
    assert bench.decide("/bin/two").verdict == PROVED


def test_a_program_that_the_image_itself_cannot_start(bench: Bench) -> None:
    """What is lacking already is nothing that an injection could be refused for."""
    bench.mpi()
    bench.put("/usr/lib/libmpi.so.12", source=MPICH)
    bench.app("libmpi.so.12", "libgone.so.1")
    assert bench.decide().verdict == PROVED


def test_nobody_asks(bench: Bench) -> None:
    bench.mpi()
    bench.app()
    assert bench.decide(family="none").verdict == NOTHING


def test_these_programs_are_real(bench: Bench) -> None:
    """What is built here is no caricature: in a root of its own the program runs on the real loader, and ends as it should."""
    if os.geteuid():
        pytest.skip("chroot needs root")
    bench.put("/opt/x/libmpi.so.12", source=MPICH)
    bench.app(runpath="/opt/x")  # without /proc there is no $ORIGIN
    assert subprocess.run(["/usr/sbin/chroot", str(bench.tree.top), APP]).returncode == 0
