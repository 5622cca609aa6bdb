"""One note of an ELF file by the name of its section (elf(5), "Notes (Nhdr)"): what a vendor has written into a library for such as us.

The linker's tables of sections are no part of what is loaded, and most files have none worth reading; so this is asked for by name. The
file is hostile: every table is bounded, and what is malformed says nothing.
"""

from __future__ import annotations

import os
import struct
from typing import Optional

_SHT_NOTE = 7
#: By ELF class: where e_shoff stands, its form, where e_shentsize stands, and the form of a section header.
_LAYOUTS = {1: (32, "I", 46, "10I"), 2: (40, "Q", 58, "IIQQQQIIQQ")}
_MOST_SECTIONS = 4096
_MOST_BYTES = 1 << 16  # of the names of sections, and of one note


def read_note(fd: int, section: str, owner: str) -> Optional[bytes]:
    """The description of the first note in the section of this name, where its owner is this one, else None. Raises OSError."""
    head = os.pread(fd, 64, 0)
    layout = _LAYOUTS.get(head[4]) if len(head) == 64 and head[:4] == b"\x7fELF" else None
    if layout is None or head[5] not in (1, 2):
        return None
    order = "<" if head[5] == 1 else ">"
    at, form, counts, entry = layout
    header = struct.Struct(order + entry)
    (table,) = struct.unpack_from(order + form, head, at)
    size, count, names_at = struct.unpack_from(order + "HHH", head, counts)
    if size != header.size or not count <= _MOST_SECTIONS or names_at >= count or table >= 1 << 62:
        return None
    data = os.pread(fd, size * count, table)
    if len(data) < size * count:
        return None
    sections = list(header.iter_unpack(data))
    names = _bytes_of(fd, sections[names_at])
    for one in sections:
        if one[1] == _SHT_NOTE and names[one[0]:].partition(b"\0")[0] == section.encode():
            return _description(_bytes_of(fd, one), order, one[8], owner.encode())
    return None


def _bytes_of(fd: int, section: tuple[int, ...]) -> bytes:
    _, _, _, _, offset, size, *_ = section
    return os.pread(fd, size, offset) if size <= _MOST_BYTES and offset < 1 << 62 else b""


def _description(note: bytes, order: str, alignment: int, owner: bytes) -> Optional[bytes]:
    if len(note) < 12:
        return None
    name_size, size, _ = struct.unpack_from(order + "3I", note)
    align = 8 if alignment == 8 else 4
    begin = 12 + (name_size + align - 1) // align * align
    found = note[12 : 12 + name_size].rstrip(b"\0")
    return note[begin : begin + size] if found == owner and begin + size <= len(note) else None
