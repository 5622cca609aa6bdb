"""A note by the name of its section, in real files and in damaged ones."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.elf.notes import read_note

SECTION, OWNER = ".note.acme", "Acme Corporation"
TEXT = b'{"driver": [1, 2]}'


def with_note(target: Path, *, owner: str = OWNER, section: str = SECTION, text: bytes = TEXT, flags: str = "a") -> Path:
    """A shared library with one note, made by the assembler; `flags` "" for one that is not loaded."""
    escaped = text.decode().replace('"', '\\"')
    (target.parent / "note.s").write_text(f'''
        .section {section}, "{flags}", @note
        .balign 4
        .long 2f - 1f, 4f - 3f, 1
1:      .asciz "{owner}"
2:      .balign 4
3:      .ascii "{escaped}"
4:      .balign 4
        .section .note.GNU-stack, "", @progbits
    ''')
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", target, target.parent / "note.s"], check=True)
    return target


def note_of(path: Path, section: str = SECTION, owner: str = OWNER) -> Optional[bytes]:
    with open(path, "rb") as file:
        return read_note(file.fileno(), section, owner)


@pytest.mark.parametrize("flags", ["a", ""])
def test_what_it_says(tmp_path: Path, flags: str) -> None:
    made = with_note(tmp_path / "lib.so", flags=flags)
    assert note_of(made) == TEXT
    assert note_of(made, section=".note.other") is None
    assert note_of(made, owner="Acme") is None
    subprocess.run(["strip", made], check=True)
    assert note_of(made) == TEXT


def test_files_without_one(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no ELF file, and longer than any header of one would be: " * 4)
    (tmp_path / "empty").touch()
    for name in ("text", "empty"):
        assert note_of(tmp_path / name) is None
    assert note_of(Path("/bin/true")) is None
    (tmp_path / "note").mkdir()
    assert note_of(with_note(tmp_path / "note/lib.so", section=".other")) is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 63), value=st.binary(min_size=1, max_size=8), length=st.integers(0, 16_000))
def test_damaged_files_say_nothing_or_what_they_say(tmp_path: Path, at: int, value: bytes, length: int) -> None:
    made = tmp_path / "lib.so"
    if not made.exists():
        with_note(made)
    data = bytearray(made.read_bytes())
    data[at : at + len(value)] = value
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data[:length])
    assert note_of(damaged) in (None, TEXT)


def test_sizes_that_are_made_up(tmp_path: Path) -> None:
    made = with_note(tmp_path / "lib.so")
    whole = bytearray(made.read_bytes())
    table = struct.unpack_from("<Q", whole, 40)[0]
    for size in (1 << 17, 1 << 63, (1 << 64) - 1):
        data = bytearray(whole)
        for section in range(struct.unpack_from("<H", data, 60)[0]):
            struct.pack_into("<Q", data, table + 64 * section + 32, size)
        made.write_bytes(data)
        assert note_of(made) is None
    data = bytearray(whole)
    at = data.index(TEXT) - 12 - len(OWNER) - 4
    struct.pack_into("<I", data, data.index(OWNER.encode()) - 8, os.SEEK_END + (1 << 31))
    made.write_bytes(data)
    assert at > 0 and note_of(made) is None
