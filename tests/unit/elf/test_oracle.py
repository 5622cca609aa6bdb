"""pyelftools is the oracle: it reads section headers, our own reader reads what the loader reads, and they agree."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest

from oci_hpc_hooks.elf.scan import read_with_pyelftools
from oci_hpc_hooks.errors import ConfigError
from tests.fuzz.files import library
from tests.unit.elf.elf_bed import elf_files, facts_of

#: Above this many symbols pyelftools takes seconds.
MANY = 5000


def check(paths: List[str], many: int) -> None:
    compared = 0
    for path in paths:
        ours = facts_of(path, symbols=True)
        if len(ours.exports) + len(ours.imports) <= many:
            assert read_with_pyelftools(path, symbols=lambda name: True) == ours, path
            compared += 1
    assert compared > len(paths) / 2


def test_both_readers_agree_on_a_sample() -> None:
    paths = elf_files("/usr/lib", "/usr/bin")
    check(paths[:: max(1, len(paths) // 60)], MANY)


@pytest.mark.long
def test_both_readers_agree_on_every_file() -> None:
    check(elf_files("/usr/lib", "/usr/bin"), 1 << 30)


def test_the_filter_chooses_symbols() -> None:
    facts = read_with_pyelftools("/lib/x86_64-linux-gnu/libc.so.6", symbols=lambda name: name.startswith("mem"))
    assert "memcpy" in facts.exports
    assert all(name.startswith("mem") for name in facts.exports + facts.imports)
    assert "GLIBC_2.2.5" in facts.verdef


def test_what_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no ELF file")
    for path in (tmp_path / "text", tmp_path / "gone", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read as an ELF file"):
            read_with_pyelftools(str(path), symbols=lambda name: True)


@pytest.mark.parametrize(("size", "says"), [(1 << 62, "MemoryError"), (23, "multiple of 24 bytes")])
def test_a_section_of_an_odd_size_is_one_clear_error(tmp_path: Path, size: int, says: str) -> None:
    made, _ = library(b"\0\0\x1af")  # with an import, which a relocation names
    place = int.from_bytes(made[40:48], "little") + 4 * 64 + 32  # e_shoff, and sh_size of the fourth section
    (tmp_path / "lib.so").write_bytes(made[:place] + size.to_bytes(8, "little") + made[place + 8:])
    with pytest.raises(ConfigError, match=f"cannot be read as an ELF file: .*{says}"):
        read_with_pyelftools(str(tmp_path / "lib.so"), symbols=lambda name: True)


@pytest.mark.parametrize("what", ["segments", "sections"])
@pytest.mark.parametrize("wide", [True, False])
def test_tables_that_are_not_where_the_file_is(tmp_path: Path, what: str, wide: bool) -> None:
    made = bytearray(library(b"\0\0\x1af" if wide else b"\x01\0\x1af")[0])
    place = {"segments": (54, 42), "sections": (58, 46)}[what][not wide]  # e_phentsize or e_shentsize, and the number of them
    made[place:place + 4] = b"\0\0\xfe\xff"
    (tmp_path / "lib.so").write_bytes(made)
    with pytest.raises(ConfigError, match=f"its 65534 headers of {what} do not fit into the file"):
        read_with_pyelftools(str(tmp_path / "lib.so"), symbols=lambda name: True)


def test_versions_that_lead_back_to_themselves(tmp_path: Path) -> None:
    made = bytearray(library(b"\0\0\x14libc.so.6\0\x15A\0\x14libm.so.6\0\x15B")[0])
    table = int.from_bytes(made[40:48], "little") + 4 * 64  # the header of the fourth section, .gnu.version_r
    offset = int.from_bytes(made[table + 24:table + 32], "little")
    made[table + 44:table + 48] = b"\xff" * 4  # sh_info: how many
    made[offset + 12:offset + 16] = bytes(4)  # vn_next
    (tmp_path / "lib.so").write_bytes(made)
    with pytest.raises(ConfigError, match="more than 4096 versions"):
        read_with_pyelftools(str(tmp_path / "lib.so"), symbols=lambda name: True)
