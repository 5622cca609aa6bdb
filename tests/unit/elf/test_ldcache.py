"""ld.so.cache against the real thing: ldconfig prints what we write, and the real ld.so finds what we add."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from dataclasses import replace
from functools import cmp_to_key
from pathlib import Path
from typing import Callable, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.elf.ldcache import compare, entry_flags, lookup, merge, parse, serialize
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import CacheEntry, LdCache
from tests.unit.elf.elf_bed import IMAGES, build, cache_of, can_bind_a_cache, entry, hwcaps_of_this_cpu, in_private_mounts, trace

REFERENCE = """
static int digit(char c) { return c >= '0' && c <= '9'; }
static int number(const char **s) { int v = 0; while (digit(**s)) { v = v * 10 + (**s - '0'); ++*s; } return v; }
int reference(const char *a, const char *b) {
    for (;;) {
        if (!*a) return *a - *b;
        if (digit(*a) != digit(*b)) return digit(*a) ? 1 : -1;
        if (digit(*a)) { int x = number(&a), y = number(&b); if (x != y) return x - y; }
        else if (*a != *b) return *a - *b;
        else { ++a; ++b; }
    }
}
"""


needs_mounts = pytest.mark.skipif(not can_bind_a_cache(), reason="this machine lets us make no private mount namespace")
needs_hwcaps = pytest.mark.skipif(not hwcaps_of_this_cpu(), reason="glibc-hwcaps came with glibc 2.33")


def printed(path: Path) -> List[str]:
    text = subprocess.run(["/sbin/ldconfig", "-p", "-C", str(path)], capture_output=True, text=True, check=True).stdout
    return text.splitlines()[1:]


def ordered(entries: tuple[CacheEntry, ...]) -> bool:
    return all(
        (compare(a.name, b.name), a.flags) > (0, b.flags) or compare(a.name, b.name) > 0
        for a, b in zip(entries, entries[1:])
        if (compare(a.name, b.name), a.flags) != (0, b.flags)
    )


# ------------------------------------------------------------------------------------------------------ against ldconfig

def test_this_machines_cache_survives_the_round_trip(tmp_path: Path) -> None:
    cache = cache_of()
    assert len(cache.entries) > 50
    data = serialize(cache)
    assert parse(data) == cache
    (tmp_path / "cache").write_bytes(data)
    assert printed(tmp_path / "cache") == printed(Path("/etc/ld.so.cache"))


@pytest.mark.parametrize("image", ["bookworm", "bullseye"])
def test_an_images_cache_survives_the_round_trip(tmp_path: Path, image: str) -> None:
    path = IMAGES / image / "etc/ld.so.cache"
    if not path.exists():
        pytest.skip(f"the test bed has not built {image}")
    cache = parse(path.read_bytes())
    assert entry_flags(cache, 62, 2) == 0x303
    (tmp_path / "cache").write_bytes(serialize(cache))
    assert printed(tmp_path / "cache") == printed(path)


@pytest.mark.parametrize("layout", ["new", "compat", "old"])
def test_every_layout_that_ldconfig_writes(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "cache"
    subprocess.run(["/sbin/ldconfig", "-X", "-c", layout, "-C", str(path)], check=True)
    cache = parse(path.read_bytes())
    (tmp_path / "again").write_bytes(serialize(cache))
    lines = printed(path)
    assert len(cache.entries) == len([line for line in lines if " => " in line])
    assert printed(tmp_path / "again") == lines


def hwcaps_directory(tmp_path: Path) -> Path:
    """A directory with libcap.so.1 three times, and an ldconfig file that names it."""
    directory = tmp_path / "libs"
    for part in (".", "glibc-hwcaps/x86-64-v2", "glibc-hwcaps/x86-64-v3"):
        build(directory / part / "libcap.so.1", soname="libcap.so.1")
    (tmp_path / "conf").write_text(f"{directory}\n")
    return directory


@needs_hwcaps
def test_glibc_hwcaps_survive_the_round_trip(tmp_path: Path) -> None:
    directory = hwcaps_directory(tmp_path)
    subprocess.run(["/sbin/ldconfig", "-X", "-f", str(tmp_path / "conf"), "-C", str(tmp_path / "cache")], check=True)
    cache = parse((tmp_path / "cache").read_bytes())
    assert cache.hwcap_names == ("x86-64-v2", "x86-64-v3")
    assert len([e for e in cache.entries if e.name == "libcap.so.1"]) == 3
    (tmp_path / "again").write_bytes(serialize(cache))
    assert printed(tmp_path / "again") == printed(tmp_path / "cache")

    def found(*hwcaps: str) -> str:
        best = lookup(cache, "libcap.so.1", 0x303, hwcaps)
        assert best is not None
        return best.path

    assert found() == f"{directory}/libcap.so.1"
    assert found("x86-64-v2") == f"{directory}/glibc-hwcaps/x86-64-v2/libcap.so.1"
    assert found("x86-64-v3", "x86-64-v2") == f"{directory}/glibc-hwcaps/x86-64-v3/libcap.so.1"
    assert found("x86-64-v4") == f"{directory}/libcap.so.1"


# ------------------------------------------------------------------------------------------------------ against ld.so


@needs_mounts
def test_the_real_loader_finds_what_was_added(tmp_path: Path) -> None:
    """The name asked for, the file's name and its soname are three different ones, which ldconfig would never enter."""
    other = build(tmp_path / "somewhere/other.so", soname="libquite-else.so.3", source="int answer(void) { return 42; }")
    source = "int answer(void); int main(void) { return answer(); }"
    program = build(tmp_path / "program", needed=["libzzz.so.1"], source=source, stub="int answer(void) { return 0; }")
    cache = tmp_path / "cache"
    cache.write_bytes(serialize(merge(cache_of(), [entry("libzzz.so.1", str(other))])))
    assert subprocess.run([program], capture_output=True).returncode == 127
    assert subprocess.run(in_private_mounts([str(program)], cache)).returncode == 42


@needs_mounts
@needs_hwcaps
def test_the_real_loader_takes_the_addition_instead_of_hwcaps_entries(tmp_path: Path) -> None:
    hwcaps_directory(tmp_path)
    added = build(tmp_path / "added/libcap.so.1", soname="libcap.so.1")
    program = build(tmp_path / "program", needed=["libcap.so.1"])
    cache = tmp_path / "cache"
    (tmp_path / "conf").open("a").write("include /etc/ld.so.conf\n")
    subprocess.run(["/sbin/ldconfig", "-X", "-f", str(tmp_path / "conf"), "-C", str(cache)], check=True)
    before, _ = trace(str(program), cache=cache)
    best = next((cap for cap in hwcaps_of_this_cpu() if cap in ("x86-64-v2", "x86-64-v3")), None)
    assert best is not None
    assert ("libcap.so.1", f"{tmp_path}/libs/glibc-hwcaps/{best}/libcap.so.1") in before
    cache.write_bytes(serialize(merge(parse(cache.read_bytes()), [entry("libcap.so.1", str(added))])))
    after, _ = trace(str(program), cache=cache)
    assert ("libcap.so.1", str(added)) in after


@needs_mounts
def test_the_real_loader_finds_every_entry_of_a_merged_cache(tmp_path: Path) -> None:
    """Forty additions all over the order, each asked for by one program, and the cache's own libraries still found."""
    names = [f"lib{stem}{number}.so.{number}" for stem in ("a", "c", "m-", "zz") for number in (1, 2, 9, 10, 11, 100, 7, 8, 0, 33)]
    build(tmp_path / "one.so")
    (tmp_path / "many").mkdir()
    for name in names:
        (tmp_path / "many" / name).write_bytes((tmp_path / "one.so").read_bytes())
    program = build(tmp_path / "program", needed=[*names, "libz.so.1"])
    cache = tmp_path / "cache"
    merged = merge(cache_of(), [entry(name, f"{tmp_path}/many/{name}") for name in names])
    assert ordered(merged.entries)
    cache.write_bytes(serialize(merged))
    loaded, missing = trace(str(program), cache=cache)
    assert missing == []
    assert {name: path for name, path in loaded if name in names} == {name: f"{tmp_path}/many/{name}" for name in names}


# --------------------------------------------------------------------------------------------------------------- compare

@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, bytes], int]:
    path = build(tmp_path_factory.mktemp("c") / "reference.so", source=REFERENCE, options=["-fwrapv", "-O1"])
    function = ctypes.CDLL(str(path)).reference
    function.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    return lambda a, b: int(function(a, b))


NAMES = st.one_of(
    st.text(alphabet="lib.so-019", max_size=12),
    st.from_regex(r"\Alib[a-c]{1,2}\.so(\.[0-9]{1,12}){0,3}\Z"),
    st.binary(max_size=10).filter(lambda raw: 0 not in raw).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)


@settings(max_examples=1500)
@given(a=NAMES, b=NAMES)
def test_compare_is_glibcs(reference: Callable[[bytes, bytes], int], a: str, b: str) -> None:
    expected = reference(a.encode("utf-8", "surrogateescape"), b.encode("utf-8", "surrogateescape"))
    assert compare(a, b) == expected


@pytest.mark.parametrize(
    "a, b, sign",
    [
        ("libx.so.9", "libx.so.10", -1),
        ("libx.so.1", "libx.so.01", 0),
        ("libx.so.4294967297", "libx.so.1", 0),
        ("libx.so.2147483648", "libx.so.1", 1),  # wraps to the most negative int, and the difference wraps back
        ("libx.so.2147483650", "libx.so.5", 1),
        ("libx1", "libx-", 1),
        ("libx", "libx.so", -1),
        ("", "", 0),
    ],
)
def test_compare_by_example(reference: Callable[[bytes, bytes], int], a: str, b: str, sign: int) -> None:
    assert (compare(a, b) > 0) - (compare(a, b) < 0) == sign
    assert compare(a, b) == reference(a.encode(), b.encode())


# ---------------------------------------------------------------------------------------------- merge, lookup, flags

ENTRIES = st.builds(
    CacheEntry,
    name=st.from_regex(r"\Alib[a-d]\.so\.[0-9]{1,2}\Z"),
    path=st.sampled_from(["/a", "/b", "/c/é"]),
    flags=st.sampled_from([0x303, 3, 0x803]),
    osversion=st.just(0),
    hwcap=st.just(0),
)


def in_order(entries: List[CacheEntry]) -> LdCache:
    def order(a: CacheEntry, b: CacheEntry) -> int:
        return compare(b.name, a.name) or b.flags - a.flags

    return LdCache(entries=tuple(sorted(entries, key=cmp_to_key(order))))


@settings(max_examples=300)
@given(own=st.lists(ENTRIES, max_size=40), new=st.lists(ENTRIES, max_size=10))
def test_merge_keeps_the_order_and_makes_additions_win(own: List[CacheEntry], new: List[CacheEntry]) -> None:
    cache = in_order(own)
    added = [replace(e, path="/new") for e in new]
    merged = merge(cache, added)
    assert ordered(merged.entries)
    kept = [e for e in cache.entries if not any(compare(e.name, a.name) == 0 and e.flags == a.flags for a in added)]
    assert [e for e in merged.entries if e.path != "/new"] == kept
    for addition in added:
        found = lookup(merged, addition.name, addition.flags, ())
        assert found is not None
        assert found.path == "/new"
    for e in kept:
        assert lookup(merged, e.name, e.flags, ()) is not None
    assert parse(serialize(merged)) == merged


def test_merge_into_nothing_sorts() -> None:
    merged = merge(LdCache(()), [entry("liba.so.2"), entry("liba.so.10"), entry("libb.so")])
    assert [e.name for e in merged.entries] == ["libb.so", "liba.so.10", "liba.so.2"]


def test_merge_leaves_other_abis_alone_and_the_first_of_two_wins() -> None:
    cache = LdCache((entry("liba.so.1", "/64"), entry("liba.so.1", "/32", flags=3)), ("x86-64-v3",), "by hand")
    merged = merge(cache, [entry("liba.so.1", "/new"), entry("liba.so.1", "/newer")])
    assert [(e.path, e.flags) for e in merged.entries] == [("/new", 0x303), ("/32", 3)]
    assert (merged.hwcap_names, merged.generator) == (("x86-64-v3",), "by hand")


def test_lookup_skips_legacy_hwcaps_and_other_flags() -> None:
    cache = LdCache((entry("liba.so.1", "/legacy", hwcap=1 << 63), entry("liba.so.1", "/plain"), entry("liba.so.1", "/32", flags=3)))
    found = lookup(cache, "liba.so.1", 0x303, ("x86-64-v3",))
    assert found is not None and found.path == "/plain"
    assert lookup(cache, "liba.so.1", 0xA03, ()) is None
    assert lookup(cache, "libq.so.1", 0x303, ()) is None
    assert lookup(LdCache(()), "liba.so.1", 0x303, ()) is None


def test_entry_flags() -> None:
    assert entry_flags(None, 62, 2) == 0x0303
    assert entry_flags(None, 62, 1) == 0x0803
    assert entry_flags(None, 183, 2) == 0x0A03
    assert entry_flags(None, 21, 2) == 0x0503
    assert entry_flags(None, 22, 2) == 0x0403
    assert entry_flags(None, 243, 2) == 0x1003
    assert entry_flags(None, 3, 1) == 0x0003
    soft = LdCache((entry("libc.so.6", flags=0x303), entry("libc.so.6", flags=0x0F03)))
    assert entry_flags(soft, 243, 2) == 0x0F03
    assert entry_flags(soft, 62, 2) == 0x0303
    with pytest.raises(ImageError, match="machine 9999"):
        entry_flags(None, 9999, 2)


# ------------------------------------------------------------------------------------------------------------- malformed

def test_other_byte_orders() -> None:
    cache = LdCache((entry("libb.so.1"), entry("liba.so.1", hwcap=1 << 62)), ("z14",), "made up")
    for little in (True, False):
        data = bytearray(serialize(cache, little_endian=little))
        assert parse(bytes(data)) == cache
        data[28] = 0  # before glibc 2.33 nothing says the byte order
        assert parse(bytes(data)) == cache


def _changed(offset: int, value: int) -> bytes:
    data = bytearray(serialize(LdCache((entry("liba.so.1"),), ("x",), "g"), little_endian=True))
    struct.pack_into("<I", data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    "data, what",
    [
        (b"", "empty"),
        (b"#!/bin/sh", "magic"),
        (b"glibc-ld.so.cache1.1", "truncated"),
        (b"ld.so-1.7.0\0", "truncated"),
        (b"ld.so-1.7.0\0" + b"\xff" * 8, "do not fit"),
        (_changed(20, 1 << 30), "do not fit"),
        (_changed(52, 1 << 30), "lies outside"),
        (_changed(28, 1), "invalid"),
        (_changed(32, 1 << 30), "extension directory"),
        (_changed(32, 48), "magic number"),
        (_changed(32, 3), "extension directory"),
    ],
)
def test_each_defect_is_named(data: bytes, what: str) -> None:
    with pytest.raises(ImageError, match=what):
        parse(data)


def test_overlapping_strings_are_bounded() -> None:
    count = 4000
    head = struct.pack("<20sIIB3xI12x", b"glibc-ld.so.cache1.1", count, 4000, 2, 0)
    entries = b"".join([struct.pack("<iIIIQ", 3, 48 + 24 * count + n, 48 + 24 * count + n, 0, 0) for n in range(count)])
    with pytest.raises(ImageError, match="overlap"):
        parse(head + entries + b"a" * 4000 + b"\0")


def test_a_cache_that_parse_never_gives_is_a_programming_error() -> None:
    with pytest.raises(ValueError):
        serialize(LdCache((entry("lib\0x"),)))
    with pytest.raises(ValueError):
        serialize(LdCache((entry("libx", flags=1 << 40),)))


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([b"", b"glibc-ld.so.cache1.1", b"ld.so-1.7.0\0"]))
def test_random_bytes_never_raise_anything_else(tail: bytes, head: bytes) -> None:
    try:
        parse(head + tail)
    except ImageError as error:
        assert error.what


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=5))
def test_changed_bytes_never_raise_anything_else(flips: list[tuple[int, int]]) -> None:
    data = bytearray(serialize(LdCache(tuple(entry(f"lib{n}.so") for n in range(9, 0, -1)), ("x86-64-v2", "x86-64-v3"), "g")))
    for at, value in flips:
        data[at % len(data)] = value
    try:
        serialize(parse(bytes(data)))
    except ImageError as error:
        assert error.what


def test_the_size_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ldcache, "MAX_SIZE", 100)  # instead of 64 MiB of data
    with pytest.raises(ImageError, match="more than 100"):
        parse(serialize(cache_of()))
