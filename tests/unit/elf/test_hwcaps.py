"""Subdirectories and cache entries for some processors: what is said of this machine's is held against the real ld.so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Tuple

import pytest

from oci_hpc_hooks.elf import hwcaps
from oci_hpc_hooks.elf.ldcache import lookup, merge, parse, serialize
from oci_hpc_hooks.elf.loader import Search, simulate
from oci_hpc_hooks.model import CacheEntry, LdCache
from tests.unit.elf.elf_bed import (
    DEBIAN_DIRS,
    IMAGES,
    TreeView,
    build,
    cache_of,
    can_bind_a_cache,
    entry,
    hwcaps_of,
    hwcaps_of_this_cpu,
    pairs,
    search_of_this_machine,
    trace,
)

OWN = (os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2]
V2 = "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2"
V3 = f"{V2} avx avx2 f16c fma abm movbe bmi1 bmi2"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2")


def put(library: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(library, path)


@pytest.mark.parametrize(("vendor", "flags", "expected"), [
    ("AuthenticAMD", "sse2", ("x86_64", "x86_64")),
    ("AuthenticAMD", V3, (*LEVELS[1:], "x86_64", "x86_64")),
    ("AuthenticAMD", V4, (*LEVELS, "x86_64", "x86_64")),  # only Intel's have other platforms
    ("GenuineIntel", V2, (LEVELS[2], "x86_64", "x86_64")),
    ("GenuineIntel", V3, (*LEVELS[1:], "x86_64", "haswell")),
    ("GenuineIntel", V4, (*LEVELS, "x86_64", "avx512_1", "haswell")),
    ("GenuineIntel", f"{V3} avx512f avx512cd avx512er avx512pf", (*LEVELS[1:], "x86_64", "xeon_phi")),
    ("GenuineIntel", V4.replace("popcnt", ""), ("x86_64", "avx512_1", "x86_64")),  # a level needs all of those below
    ("", "", ("x86_64", "x86_64")),
])
def test_processors(vendor: str, flags: str, expected: Tuple[str, ...]) -> None:
    text = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nvendor_id\t: other\nflags\t\t: \n"
    assert hwcaps.of_cpuinfo(text, "x86_64") == expected


def test_other_processors() -> None:
    assert hwcaps.of_cpuinfo("Features\t: fp asimd atomics\n", "aarch64") == ("atomics", "aarch64")
    assert hwcaps.of_cpuinfo("Features\t: fp asimd\n", "aarch64") == ("aarch64",)
    assert hwcaps.of_cpuinfo("whatever", "riscv64") == ()


def test_releases() -> None:
    node = ("x86-64-v2", "x86_64", "haswell")
    old = ("tls/haswell/x86_64", "tls/haswell", "tls/x86_64", "tls", "haswell/x86_64", "haswell", "x86_64")
    named = ("glibc-hwcaps/x86-64-v2",)
    bits = 1 << 63 | 1 << 50 | 1 << 1
    assert hwcaps.of_glibc(node, "2.31") == hwcaps.Hwcaps((), old, bits, "haswell")
    assert hwcaps.of_glibc(node, "2.33") == hwcaps.of_glibc(node, "2.36") == hwcaps.Hwcaps(node[:1], named + old, bits, "haswell")
    assert hwcaps.of_glibc(node, "2.37") == hwcaps.of_glibc(node, "2.39") == hwcaps.Hwcaps(node[:1], named, bits, "haswell")
    for release in ("2.40", "2.41", "", "2.x", "2.²", "9" * 999):
        assert hwcaps.of_glibc(node, release) == hwcaps.Hwcaps(node[:1], named, 0, "haswell"), release
    assert hwcaps.of_glibc((), "2.31") == hwcaps.Hwcaps((), ("tls",), 1 << 63, "")
    assert max(path.count("/") for path in hwcaps.of_glibc(hwcaps.of_cpuinfo(
        f"vendor_id: GenuineIntel\nflags: {V4}", "x86_64"), "2.36").subdirectories) < hwcaps.DEPTH


@pytest.mark.parametrize(("root", "release"), [("", OWN), ("bookworm", "2.36"), ("bullseye", "2.31")])
def test_order_is_the_real_one(root: str, release: str) -> None:
    """By the word of this machine's loader, and of those of other releases."""
    command = ["/usr/bin/env", "LD_DEBUG=libs", "LD_LIBRARY_PATH=/tmp", "/bin/true"]
    if root:
        if os.geteuid() or not (IMAGES / root).is_dir():
            pytest.skip(f"needs root, and build/images/{root}")
        command = ["/usr/sbin/chroot", str(IMAGES / root), *command]
    said = subprocess.run(command, env={}, capture_output=True, text=True, check=True).stderr
    (path, *_) = re.findall(r"search path=(\S+)\s+\(LD_LIBRARY_PATH\)", said)
    assert path.split(":") == [*(f"/tmp/{subdir}" for subdir in hwcaps_of(release).subdirectories), "/tmp"]


@pytest.mark.skipif(not hwcaps_of_this_cpu(), reason="the loader tells since glibc 2.33")
def test_level_is_the_real_one() -> None:
    assert hwcaps_of("2.41").named == tuple(name for name in hwcaps_of_this_cpu() if name in hwcaps.NAMED)


def test_every_subdirectory_is_searched_in_its_turn(tmp_path: Path) -> None:
    """The one found is taken away, and the next is found: so all the way down to the directory itself."""
    program = build(tmp_path / "program", needed=["libx.so.1"])
    library = build(tmp_path / "libx.so.1")
    places = [*dict.fromkeys(hwcaps_of(OWN).subdirectories), "."]
    for place in places:
        put(library, tmp_path / "a" / place / "libx.so.1")
    for place in places:
        search = search_of_this_machine([f"{tmp_path}/a"])
        link_map = simulate(str(program), TreeView(), search)
        assert (pairs(link_map), []) == trace(str(program), {"LD_LIBRARY_PATH": f"{tmp_path}/a"})
        assert os.path.normpath(link_map.objects[1].path) == os.path.normpath(f"{tmp_path}/a/{place}/libx.so.1")
        (tmp_path / "a" / place / "libx.so.1").unlink()


@pytest.mark.parametrize("name", ["bookworm", "bullseye"])
def test_other_releases_search_theirs(tmp_path: Path, name: str) -> None:
    """The same in a root file system of that release, in a directory of its ld.so.conf and in a default one; with and without a cache."""
    root = tmp_path / "root"
    if os.geteuid() or not (IMAGES / name).is_dir():
        pytest.skip(f"needs root, and build/images/{name}")
    for folder in ("lib64", "lib/x86_64-linux-gnu", "etc"):
        (root / folder).mkdir(parents=True)
    for path in ("lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6", "sbin/ldconfig", "usr/bin/env"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{IMAGES / name}{TreeView(str(IMAGES / name)).resolve(f'/{path}')}", root / path)
    (root / "etc/ld.so.conf").write_text("/opt/lib\n")
    caps = hwcaps_of("2.31" if name == "bullseye" else "2.36")
    build(root / "program", needed=["libx.so.1", "liby.so.1"])
    libx, liby = (build(tmp_path / soname, soname=soname) for soname in ("libx.so.1", "liby.so.1"))
    places = [*dict.fromkeys(caps.subdirectories), "."]
    for place in places:
        put(libx, root / "opt/lib" / place / "libx.so.1")
        put(liby, root / "usr/lib" / place / "liby.so.1")
    for place in places:
        for cached in (False, True):
            if cached:
                subprocess.run(["/usr/sbin/chroot", str(root), "/sbin/ldconfig"], check=True, capture_output=True)
            search = Search(() if cached else ("/opt/lib",), cache_of(str(root)) if cached else None, DEBIAN_DIRS, caps)
            link_map = simulate("/program", TreeView(str(root)), search)
            env = {} if cached else {"LD_LIBRARY_PATH": "/opt/lib"}
            assert (pairs(link_map), [name for name, _ in link_map.missing]) == trace("/program", env, root=str(root)), (place, cached)
            assert {item.name for item in link_map.objects} >= {"libx.so.1", "liby.so.1"}
        (root / "etc/ld.so.cache").unlink()
        (root / "opt/lib" / place / "libx.so.1").unlink()
        (root / "usr/lib" / place / "liby.so.1").unlink()


@pytest.mark.skipif(not can_bind_a_cache(), reason="this machine lets us make no private mount namespace")
def test_a_cache_with_legacy_entries(tmp_path: Path) -> None:
    """ldconfig before 2.37 made such for what lies in tls, haswell, x86_64; ld.so takes those whose bits the processor has."""
    program = build(tmp_path / "program", needed=["libx.so.1"])
    library = build(tmp_path / "libx.so.1", soname="libx.so.1")
    rows = []
    for number, hwcap in enumerate([1 << 63 | 1 << 51, 1 << 63 | 1 << 1, 1 << 63, 1 << 2, 1 << 1, 0]):
        put(library, tmp_path / str(number) / "libx.so.1")
        rows.append(entry("libx.so.1", f"{tmp_path}/{number}/libx.so.1", hwcap=hwcap))
    base = merge(cache_of(), rows[:1])
    at = base.entries.index(rows[0])
    for first in range(len(rows)):
        cache = LdCache((*base.entries[:at], *rows[first:], *base.entries[at + 1:]), base.hwcap_names, base.generator)
        (tmp_path / "cache").write_bytes(serialize(cache))
        link_map = simulate(str(program), TreeView(), search_of_this_machine((), parse((tmp_path / "cache").read_bytes())))
        assert pairs(link_map) == trace(str(program), cache=tmp_path / "cache")[0], first


def test_lookup_of_legacy_entries() -> None:
    haswell, plain = CacheEntry("a", "/h/a", 0x303, 0, 1 << 50), CacheEntry("a", "/a", 0x303)
    cache = LdCache((haswell, plain))
    assert lookup(cache, "a", 0x303, (), 1 << 50 | 1 << 63) == haswell
    assert lookup(cache, "a", 0x303, (), 1 << 51) == lookup(cache, "a", 0x303, ()) == plain
