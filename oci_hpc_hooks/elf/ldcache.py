"""ld.so.cache: read, looked up as ld.so does, added to and written; no ldconfig is run.

Two layouts are read, as ld.so reads them: ``glibc-ld.so.cache1.1`` alone (ldconfig's default since glibc 2.32) and the same hidden
behind an old ``ld.so-1.7.0`` table (its default before). Only the first is written.

Sources: glibc sysdeps/generic/dl-cache.h and ldconfig.h, elf/dl-cache.c (the reader) and elf/cache.c (the writer).
"""

from __future__ import annotations

import os
import struct
import sys
from functools import cmp_to_key
from typing import Dict, Iterable, NoReturn, Optional, Sequence, Tuple

from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import CacheEntry, LdCache

#: Bytes. A machine with 5,000 libraries has half a megabyte.
MAX_SIZE = 64 << 20
#: Entries. Far beyond the largest machine's.
MAX_ENTRIES = 200_000
#: Bytes of a name or path in the cache: PATH_MAX.
MAX_STRING = 4096
#: Bytes of the generator's name.
MAX_GENERATOR = 4096

_OLD_MAGIC = b"ld.so-1.7.0"
_MAGIC = b"glibc-ld.so.cache1.1"
_OLD_HEADER_SIZE = 16  # 11 bytes of magic, padded, and the number of entries
_HEADER_SIZE = 48
_HEADER = "20sIIB3xI12x"  # magic, number of entries, bytes of strings, flags, offset of the extension directory
_ENTRY = "iIIIQ"  # flags, name, path, osversion, hwcap
_SECTION = "IIII"  # tag, flags, offset, bytes
_EXTENSION_MAGIC = 0xEAA42174
_TAG_GENERATOR, _TAG_HWCAPS = 0, 1
_ENDIAN_UNSET, _ENDIAN_INVALID, _ENDIAN_LITTLE, _ENDIAN_BIG = 0, 1, 2, 3

_FLAG_ELF = 1
_FLAG_LIBC6 = 3
_HWCAP_EXTENSION = 1 << 62
_HWCAP_ISA_LEVELS = 0x3FF

#: Per (e_machine, ELF class) the flags of a libc.so.6, the most usual first (sysdeps/**/dl-cache.h and readelflib.c).
_MACHINE_FLAGS: Dict[Tuple[int, int], Tuple[int, ...]] = {
    (3, 1): (0x0003,),  # i386
    (8, 1): (0x0003, 0x0603, 0x0C03, 0x0D03),  # MIPS o32, n32, their NaN2008 kinds
    (8, 2): (0x0703, 0x0E03),  # MIPS n64
    (20, 1): (0x0003,),  # PowerPC
    (21, 2): (0x0503,),  # PowerPC 64, either byte order
    (22, 1): (0x0003,),  # s390
    (22, 2): (0x0403,),  # s390x
    (40, 1): (0x0903, 0x0B03, 0x0003),  # ARM hard float, soft float, unmarked
    (43, 2): (0x0103,),  # SPARC 64
    (62, 1): (0x0803,),  # x32
    (62, 2): (0x0303,),  # x86_64
    (183, 2): (0x0A03,),  # AArch64
    (243, 2): (0x1003, 0x0F03),  # RISC-V double float, soft float
    (258, 2): (0x1203, 0x1103),  # LoongArch double float, soft float
}

# What C's char is here: it decides the order of names that are not ASCII, and a cache serves the machine that it was written on.
_CHAR_IS_SIGNED = os.uname().machine in ("x86_64", "i386", "i486", "i586", "i686", "mips", "mips64", "loongarch64", "sparc64")


def _bad(what: str) -> NoReturn:
    raise ImageError(f"ld.so.cache: {what}")


# ------------------------------------------------------------------------------------------------------------------- reading

def parse(data: bytes) -> LdCache:
    """The cache in ``data``, its entries in the file's order; raises :class:`ImageError` for anything that ld.so would misread.

    Entries of glibc-hwcaps keep their ``hwcap`` value; its lower 32 bits index ``hwcap_names``.
    """
    if len(data) > MAX_SIZE:
        _bad(f"{len(data)} bytes, more than {MAX_SIZE}")
    if data.startswith(_OLD_MAGIC):
        return _parse_old(data)
    if not data.startswith(_MAGIC):
        _bad("empty file" if not data else "neither of its two magic strings at the start")
    return _parse_new(data, 0)


def _parse_old(data: bytes) -> LdCache:
    """The old table; the new one, if it is there, is aligned behind it."""
    if len(data) < _OLD_HEADER_SIZE:
        _bad("truncated inside the header")
    for order in "<>":
        (count,) = struct.unpack_from(order + "I", data, 12)
        end = _OLD_HEADER_SIZE + count * 12
        if end <= len(data):
            break
    else:
        _bad(f"{count} entries do not fit into the file")
    start = (end + 7) // 8 * 8
    if data.startswith(_MAGIC, start):
        return _parse_new(data, start)
    # On machines where a 64-bit number is aligned to 4 bytes (i386).
    start = (end + 3) // 4 * 4
    if data.startswith(_MAGIC, start):
        return _parse_new(data, start)
    if count > MAX_ENTRIES:
        _bad(f"{count} entries, more than {MAX_ENTRIES}")
    string = _Strings(data, end)
    rows = struct.iter_unpack(order + "iII", data[_OLD_HEADER_SIZE:end])
    return LdCache(entries=tuple([CacheEntry(string.at(name), string.at(path), flags) for flags, name, path in rows]))


def _parse_new(data: bytes, start: int) -> LdCache:
    if len(data) < start + _HEADER_SIZE:
        _bad("truncated inside the header")
    order = _byte_order(data, start)
    _, count, _, _, extension = struct.unpack_from(order + _HEADER, data, start)
    end = start + _HEADER_SIZE + count * 24
    if end > len(data):
        _bad(f"{count} entries do not fit into the file")
    if count > MAX_ENTRIES:
        _bad(f"{count} entries, more than {MAX_ENTRIES}")
    string = _Strings(data, start)
    entries = tuple(
        [
            CacheEntry(string.at(name), string.at(path), flags, osversion, hwcap)
            for flags, name, path, osversion, hwcap in struct.iter_unpack(order + _ENTRY, data[start + _HEADER_SIZE : end])
        ]
    )
    generator, names = _extensions(data, order, extension) if extension else ("", ())
    return LdCache(entries=entries, hwcap_names=names, generator=generator)


def _byte_order(data: bytes, start: int) -> str:
    """The flag byte says; before glibc 2.33 it was 0, and then the order that gives a possible number of entries is taken."""
    endian = data[start + 28] & 3
    if endian == _ENDIAN_INVALID:
        _bad("marked as invalid")
    if endian != _ENDIAN_UNSET:
        return "<" if endian == _ENDIAN_LITTLE else ">"
    (count,) = struct.unpack_from("<I", data, start + 20)
    return "<" if start + _HEADER_SIZE + count * 24 <= len(data) else ">"


class _Strings:
    """The string table. Strings may share their ends, so each is read once and all together are bounded."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._start = start
        self._known: Dict[int, str] = {}
        self._budget = 4 * len(data)

    def at(self, index: int) -> str:
        known = self._known.get(index)
        if known is not None:
            return known
        begin = self._start + index
        end = self._data.find(b"\0", begin, begin + MAX_STRING)
        if end < 0:
            _bad(f"the string at {index} lies outside the file or does not end")
        self._budget -= end - begin
        if self._budget < 0:
            _bad("its strings overlap without end")
        text = self._known[index] = os.fsdecode(self._data[begin:end])
        return text


def _extensions(data: bytes, order: str, offset: int) -> Tuple[str, Tuple[str, ...]]:
    """Generator and glibc-hwcaps names. Offsets count from the start of the file, also in the compatible layout."""
    if offset % 4 or offset + 8 > len(data):
        _bad(f"the extension directory at {offset} lies outside the file")
    magic, count = struct.unpack_from(order + "II", data, offset)
    if magic != _EXTENSION_MAGIC:
        _bad("the extension directory has not its magic number")
    end = offset + 8 + 16 * count
    if end > len(data):
        _bad(f"{count} extension sections do not fit into the file")
    sections: Dict[int, bytes] = {}
    for tag, _, begin, size in struct.iter_unpack(order + _SECTION, data[offset + 8 : end]):
        if begin + size > len(data):
            _bad("an extension section lies outside the file")
        if tag in (_TAG_GENERATOR, _TAG_HWCAPS):
            sections[tag] = data[begin : begin + size]
    generator = sections.get(_TAG_GENERATOR, b"")
    if len(generator) > MAX_GENERATOR:
        _bad(f"its generator's name has {len(generator)} bytes")
    hwcaps = sections.get(_TAG_HWCAPS, b"")
    if len(hwcaps) % 4 or len(hwcaps) > 4 * MAX_ENTRIES:
        _bad(f"a glibc-hwcaps section of {len(hwcaps)} bytes")
    string = _Strings(data, 0)
    return os.fsdecode(generator), tuple([string.at(index) for (index,) in struct.iter_unpack(order + "I", hwcaps)])


# ------------------------------------------------------------------------------------------------------------------- writing

def serialize(cache: LdCache, *, little_endian: bool = sys.byteorder == "little") -> bytes:
    """``cache`` as a file in the new layout, entries in the order they have.

    Raises ValueError if a name or path holds a NUL or an entry's number does not fit: such a cache was not made by :func:`parse`.
    """
    order = "<" if little_endian else ">"
    start = _HEADER_SIZE + 24 * len(cache.entries)
    strings = bytearray()
    known: Dict[str, int] = {}

    def place(text: str) -> int:
        offset = known.get(text)
        if offset is None:
            raw = os.fsencode(text)
            if 0 in raw:
                raise ValueError(f"a NUL in {text!r}")
            offset = known[text] = start + len(strings)
            strings.extend(raw + b"\0")
        return offset

    pack = struct.Struct(order + _ENTRY).pack
    try:
        table = b"".join([pack(e.flags, place(e.name), place(e.path), e.osversion, e.hwcap) for e in cache.entries])
        names = b"".join([struct.pack(order + "I", place(name)) for name in cache.hwcap_names])
        generator = os.fsencode(cache.generator)
        sections = [(_TAG_GENERATOR, generator)] if generator else []
        if names:
            sections.insert(0, (_TAG_HWCAPS, names))  # it wants to be aligned, so it comes first
        padding = -(start + len(strings)) % 4
        extension = start + len(strings) + padding if sections else 0
        endian = _ENDIAN_LITTLE if little_endian else _ENDIAN_BIG
        parts = [struct.pack(order + _HEADER, _MAGIC, len(cache.entries), len(strings), endian, extension), table, bytes(strings)]
        if sections:
            parts += [bytes(padding), struct.pack(order + "II", _EXTENSION_MAGIC, len(sections))]
            offset = extension + 8 + 16 * len(sections)
            for tag, content in sections:
                parts.append(struct.pack(order + _SECTION, tag, 0, offset, len(content)))
                offset += len(content)
            parts += [content for _, content in sections]
    except struct.error as error:
        raise ValueError(f"a number does not fit into ld.so.cache: {error}") from error
    return b"".join(parts)


# ------------------------------------------------------------------------------------------------------------ order and lookup

def _wrap(value: int) -> int:
    """C's 32-bit int."""
    return (value + 0x80000000 & 0xFFFFFFFF) - 0x80000000


def compare(a: str, b: str) -> int:
    """glibc's ``_dl_cache_libcmp``: negative, zero or positive as ``a`` is below, equal to or above ``b``.

    Runs of digits count as numbers, in an int that wraps at 32 bits; so different names may be equal (``libx.so.1``, ``libx.so.01``).
    """
    if a == b:
        return 0
    p = os.fsencode(a) + b"\0"
    q = os.fsencode(b) + b"\0"
    i = j = 0
    while True:
        x = p[i]
        y = q[j]
        if 48 <= x <= 57 and 48 <= y <= 57:
            m = n = 0
            while 48 <= p[i] <= 57:
                m = m * 10 + p[i] - 48 & 0xFFFFFFFF
                i += 1
            while 48 <= q[j] <= 57:
                n = n * 10 + q[j] - 48 & 0xFFFFFFFF
                j += 1
            if m != n:
                return _wrap(m - n)
        elif x == 0:
            return -_char(y)
        elif 48 <= x <= 57:
            return 1
        elif 48 <= y <= 57:
            return -1
        elif x != y:
            return _char(x) - _char(y)
        else:
            i += 1
            j += 1


def _char(value: int) -> int:
    return value - 256 if _CHAR_IS_SIGNED and value > 127 else value


def merge(cache: LdCache, additions: Iterable[CacheEntry]) -> LdCache:
    """``cache`` with ``additions`` in it, such that ld.so finds them.

    The cache's own entries keep their order. Those that ld.so could take instead of an addition (equal name and flags, whatever their
    hwcap) are dropped; of two equal additions the first wins. An addition goes where ldconfig would sort it: names descending, then
    flags descending. ld.so searches by halving, so in a cache that is itself out of order an addition may stay unfound:
    :func:`lookup` tells.
    """
    entries = list(cache.entries)
    for new in reversed(list(additions)):
        at = low = _lower_bound(entries, new)
        while at < len(entries) and _order(entries[at], new) == 0:
            at += 1
        entries[low:at] = [new]
    return LdCache(entries=tuple(entries), hwcap_names=cache.hwcap_names, generator=cache.generator)


def arrange(entries: Iterable[CacheEntry]) -> Tuple[CacheEntry, ...]:
    """Entries in the order in which ldconfig writes them: of one name and flags those of glibc-hwcaps come first, otherwise as given,
    which for ldconfig is the order of its directories."""
    return tuple(sorted(sorted(entries, key=lambda entry: entry.hwcap == 0), key=cmp_to_key(_order)))


def _order(a: CacheEntry, b: CacheEntry) -> int:
    """ldconfig's order of entries, without what it does among entries of one name and flags."""
    return compare(b.name, a.name) or b.flags - a.flags


def _lower_bound(entries: Sequence[CacheEntry], new: CacheEntry) -> int:
    low, high = 0, len(entries)
    while low < high:
        middle = (low + high) // 2
        if _order(entries[middle], new) < 0:
            low = middle + 1
        else:
            high = middle
    return low


def lookup(cache: LdCache, name: str, flags_wanted: int, hwcaps: Sequence[str], legacy: int = 0) -> Optional[CacheEntry]:
    """The entry that ld.so takes for ``name``, or None.

    ``flags_wanted`` is :func:`entry_flags` of the program; ``hwcaps`` are the usable glibc-hwcaps names, the preferred first (empty
    for glibc before 2.33). Of the older hwcap mechanism, gone since 2.40, entries are taken that have no bits but those of ``legacy``. An
    entry's ISA level is taken to be met wherever its hwcap name is usable. ld.so tries this one entry: if its path leads nowhere it looks
    for no other here.
    """
    entries = cache.entries
    left, right = 0, len(entries) - 1
    while left <= right:
        middle = (left + right) // 2
        order = compare(name, entries[middle].name)
        if order == 0:
            first = middle
            while first > 0 and compare(name, entries[first - 1].name) == 0:
                first -= 1
            return _best(cache, name, first, middle, right, flags_wanted, hwcaps, legacy)
        if order < 0:
            left = middle + 1
        else:
            right = middle - 1
    return None


def _best(
    cache: LdCache, name: str, first: int, known: int, last: int, flags_wanted: int, hwcaps: Sequence[str], legacy: int
) -> Optional[CacheEntry]:
    """The choice among the entries from ``first`` on that bear the name; up to ``known`` they do."""
    best: Optional[CacheEntry] = None
    best_priority = len(hwcaps)
    for index in range(first, last + 1):
        entry = cache.entries[index]
        if index > known and compare(name, entry.name) != 0:
            break
        if entry.flags != flags_wanted and not (flags_wanted == _FLAG_LIBC6 and entry.flags == _FLAG_ELF):
            continue
        if entry.hwcap >> 32 & ~_HWCAP_ISA_LEVELS == _HWCAP_EXTENSION >> 32:
            number = entry.hwcap & 0xFFFFFFFF
            named = cache.hwcap_names[number] if number < len(cache.hwcap_names) else ""
            priority = hwcaps.index(named) if named in hwcaps else len(hwcaps)
            if priority < best_priority:
                best, best_priority = entry, priority
            continue
        if best is not None:
            break
        if entry.hwcap & ~legacy:
            continue
        best = entry
        if entry.flags == flags_wanted:
            break
    return best


def entry_flags(cache: Optional[LdCache], machine: int, elf_class: int) -> int:
    """The flags that ld.so of ``machine`` (e_machine) and ``elf_class`` wants: those of the cache's own libc.so.6 where the
    architecture has several ABIs, else the usual ones. Raises :class:`ImageError` for an architecture whose flags are not known."""
    possible = _MACHINE_FLAGS.get((machine, elf_class))
    if possible is None:
        raise ImageError(f"ld.so.cache: the flags of machine {machine}, ELF class {elf_class}, are not known")
    if cache is not None and len(possible) > 1:
        for entry in cache.entries:
            if entry.name == "libc.so.6" and entry.flags in possible:
                return entry.flags
    return possible[0]
