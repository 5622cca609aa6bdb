"""The reader of hostile ELF files: what it reads from real and made-up ones, and that a malformed one is one clear error."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from typing import Any, Dict, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.elf import facts as facts_module
from oci_hpc_hooks.elf.facts import read_facts
from oci_hpc_hooks.elf.scan import read_with_pyelftools
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import ElfFacts
from tests.unit.elf.elf_bed import (
    GNU_HASH,
    HASH,
    NEEDED,
    RUNPATH,
    SONAME,
    SYMENT,
    SYMTAB,
    VERDEF,
    VERNEED,
    build,
    elf_files,
    facts_of,
    made_up,
)

SOURCE = """
int exported(void) { return 1; }
__attribute__((weak)) int weak_one(void) { return 2; }
__attribute__((visibility("hidden"))) int hidden_one(void) { return 3; }
__attribute__((visibility("protected"))) int protected_one(void) { return 4; }
extern int imported(void);
extern int imported_weakly(void) __attribute__((weak));
int use(void) { return imported() + (imported_weakly ? imported_weakly() : 0); }
__asm__(".symver old_one,named@V1"); int old_one(void) { return 5; }
__asm__(".symver new_one,named@@V2"); int new_one(void) { return 6; }
"""


def of_bytes(data: bytes, *, symbols: bool = True, max_size: Optional[int] = None) -> ElfFacts:
    fd = os.memfd_create("elf")
    try:
        os.write(fd, data)
        return read_facts(fd, symbols=symbols, **({} if max_size is None else {"max_size": max_size}))
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("facts")
    script = directory / "versions"
    script.write_text("V1 { global: *; }; V2 { } V1;")
    return build(
        directory / "libfull.so",
        soname="libfull.so.7",
        needed=["liba.so.1", "/abs/libb.so"],
        runpath="$ORIGIN/x:/y",
        source=SOURCE,
        options=[f"-Wl,--version-script={script}", "-Wl,-z,nodefaultlib", "-Wl,-z,noseparate-code"],
    )


def test_every_fact_of_a_library(library: Path) -> None:
    facts = facts_of(library, symbols=True)
    assert (facts.elf_class, facts.little_endian, facts.machine, facts.elf_type, facts.dynamic) == (2, True, 62, 3, True)
    assert facts.soname == "libfull.so.7"
    assert facts.needed == ("liba.so.1", "/abs/libb.so")
    assert facts.runpath == ("$ORIGIN/x", "/y")
    assert facts.rpath == ()
    assert facts.nodeflib
    assert facts.interp == ""
    assert facts.verdef == ("V1", "V2")
    assert {"exported", "weak_one", "protected_one", "named", "use"} <= set(facts.exports)
    assert "hidden_one" not in facts.exports
    assert facts.exports.count("named") == 1
    assert set(facts.imports) == {"imported"}
    assert facts_of(library).exports == ()


def test_an_undefined_symbol_that_nothing_refers_to(tmp_path: Path) -> None:
    """As Debian's libmpichfort has MPI_F08_STATUS_IGNORE: ld.so never looks for it."""
    stray = '__asm__(".pushsection .stray,\\"\\",@progbits; .quad ghost; .popsection");'
    source = f"extern int real; int *use(void) {{ return &real; }} {stray}"
    library = build(tmp_path / "libstray.so", source=source, options=["-Wl,--unresolved-symbols=ignore-all"])
    symbols = subprocess.run(["nm", "-D", str(library)], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "U ghost" in symbols
    facts = facts_of(library, symbols=True)
    assert facts.imports == ("real",)
    assert read_with_pyelftools(str(library), symbols=lambda name: True) == facts


def test_a_program_with_rpath_and_versions(tmp_path: Path) -> None:
    program = build(tmp_path / "program", rpath="/one::/two", source="int puts(const char *); int main(void) { return puts(\"\"); }")
    facts = facts_of(program, symbols=True)
    assert facts.interp == "/lib64/ld-linux-x86-64.so.2"
    assert facts.rpath == ("/one", "", "/two")
    assert not facts.nodeflib
    ((file, versions),) = facts.verneed
    assert file == "libc.so.6"
    assert "GLIBC_2.2.5" in versions
    assert "puts" in facts.imports


def test_an_import_is_found_when_the_gnu_hash_table_is_empty(tmp_path: Path) -> None:
    source = "int puts(const char *); int main(void) { return puts(\"\"); }"
    program = build(tmp_path / "program", source=source, options=["-Wl,--hash-style=gnu"])
    assert "puts" in facts_of(program, symbols=True).imports


# ------------------------------------------------------------------------------------------------ processor and stack

@pytest.mark.parametrize(("level", "bit"), [("v2", 2), ("v3", 4), ("v4", 8)])
@pytest.mark.parametrize("name", ["app", "liba.so"])
def test_the_level_that_a_file_is_marked_for(tmp_path: Path, level: str, bit: int, name: str) -> None:
    """As gcc and ld mark it, and as pyelftools reads it."""
    path = build(tmp_path / name, options=[f"-Wl,-z,x86-64-{level}"])
    needed = facts_of(path).isa_needed
    if not needed:
        pytest.skip("binutils marks the needed level since 2.36")
    assert needed & ~1 == bit
    assert facts_of(path, symbols=True) == read_with_pyelftools(str(path), symbols=bool)


def test_not_marked(library: Path) -> None:
    assert facts_of(library).isa_needed == 0


def noted(notes: bytes, *, kind: int = 4, alignment: int = 8, machine: int = 62, wide: bool = True) -> bytes:
    """A made-up file whose third program header leads to ``notes``."""
    data = bytearray(made_up(machine=machine, wide=wide))
    header, entry = (64, 56) if wide else (52, 32)
    table = len(data)
    data += data[header : header + 2 * entry]
    at = table + 3 * entry
    data += struct.pack("<IIQQQQQQ", kind, 4, at, at, at, len(notes), len(notes), alignment) if wide else \
        struct.pack("<8I", kind, at, at, at, len(notes), len(notes), 4, alignment)
    struct.pack_into("<Q" if wide else "<I", data, 32 if wide else 28, table)
    struct.pack_into("<H", data, 56 if wide else 44, 3)
    return bytes(data) + notes


def property_note(*properties: tuple[int, bytes], name: bytes = b"GNU\0", word: int = 8, kind: int = 5) -> bytes:
    body = b"".join(struct.pack("<II", number, len(value)) + value + bytes(-len(value) % word) for number, value in properties)
    return struct.pack("<III", len(name), len(body), kind) + name + body


NEEDS_V3 = (0xC0008002, struct.pack("<I", 5))
OTHER_NOTE = struct.pack("<III", 4, 6, 3) + b"GNU\0" + b"abcdef" + bytes(2)


@pytest.mark.parametrize(("notes", "more", "found"), [
    (property_note(NEEDS_V3), {}, 5),
    (property_note(NEEDS_V3), {"kind": 0x6474E553}, 5),
    (property_note(NEEDS_V3, word=4), {"machine": 3, "wide": False, "alignment": 4}, 5),
    (property_note((0xC0000002, struct.pack("<I", 3)), NEEDS_V3, (0xC0010002, bytes(4))), {}, 5),
    (OTHER_NOTE + property_note(NEEDS_V3), {}, 5),
    (property_note((0xC0008002, bytes(8))), {}, 0),  # of a wrong size
    (property_note((0xC0000002, struct.pack("<I", 3))), {}, 0),
    (property_note(NEEDS_V3, name=b"XYZ\0"), {}, 0),
    (property_note(NEEDS_V3, kind=3), {}, 0),
    (property_note(NEEDS_V3), {"alignment": 4}, 0),  # ld.so passes it over
    (property_note(NEEDS_V3), {"machine": 183}, 0),
    (property_note(NEEDS_V3)[:-6], {}, 0),
    (struct.pack("<III", 4, 0xFFFFFFF0, 5) + b"GNU\0", {}, 0),
    (struct.pack("<III", 0xFFFFFFFF, 4, 5) + bytes(40), {}, 0),
    (bytes(64), {}, 0),
    (b"", {}, 0),
    (bytes(70000) + property_note(NEEDS_V3), {}, 0),  # more notes than any file has
], ids=range(17))
def test_notes_as_the_loader_reads_them(notes: bytes, more: Dict[str, Any], found: int) -> None:
    """A malformed note says nothing."""
    assert of_bytes(noted(notes, **more)).isa_needed == found


def test_a_segment_of_notes_outside_the_file() -> None:
    assert of_bytes(noted(property_note(NEEDS_V3))[:-20]).isa_needed == 0


@pytest.mark.parametrize(("option", "wanted"), [("execstack", True), ("noexecstack", False)])
@pytest.mark.parametrize("name", ["app", "liba.so"])
def test_an_executable_stack(tmp_path: Path, option: str, wanted: bool, name: str) -> None:
    path = build(tmp_path / name, options=[f"-Wl,-z,{option}"])
    assert facts_of(path).execstack == wanted
    assert facts_of(path, symbols=True) == read_with_pyelftools(str(path), symbols=bool)


@pytest.mark.parametrize(("machine", "wanted"), [(62, True), (3, True), (183, False), (243, False)])
def test_without_a_word_about_the_stack(machine: int, wanted: bool) -> None:
    assert of_bytes(made_up(machine=machine)).execstack == wanted


@pytest.mark.parametrize("style", ["gnu", "sysv", "both"])
def test_hash_styles_give_the_same_symbols(tmp_path: Path, style: str) -> None:
    library = build(tmp_path / "libs.so", source="int a, b; int c(void) { return a; }", options=[f"-Wl,--hash-style={style}"])
    assert set(facts_of(library, symbols=True).exports) == {"a", "b", "c"}


def test_section_headers_are_not_needed(library: Path) -> None:
    data = bytearray(library.read_bytes())
    struct.pack_into("<Q", data, 40, 0xFFFFFFFFFFFF)  # e_shoff
    struct.pack_into("<HHH", data, 58, 0xFFFF, 0xFFFF, 0xFFFF)  # e_shentsize, e_shnum, e_shstrndx
    assert of_bytes(bytes(data)) == facts_of(library, symbols=True)


def test_weak_versions_are_left_out(tmp_path: Path) -> None:
    strings = b"\0libv.so\0STRONG\0WEAK\0"
    aux = struct.pack("<IHHII", 0, 0, 2, 9, 16) + struct.pack("<IHHII", 0, 2, 3, 16, 0)
    data = made_up(strings=strings, tables={VERNEED: struct.pack("<HHIII", 1, 2, 1, 16, 0) + aux})
    assert of_bytes(data).verneed == (("libv.so", ("STRONG",)),)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("little", [True, False])
def test_both_classes_and_byte_orders(wide: bool, little: bool) -> None:
    order = "<" if little else ">"
    strings = b"\0libone.so.1\0libself.so.2\0/run\0VER_1\0base\0export\0import\0local\0"

    def at(text: bytes) -> int:
        return strings.index(b"\0" + text + b"\0") + 1

    def symbol(name: int, info: int, other: int, section: int) -> bytes:
        if wide:
            return struct.pack(order + "IBBHQQ", name, info, other, section, 1, 1)
        return struct.pack(order + "IIIBBH", name, 1, 1, info, other, section)

    symbols = bytes(24 if wide else 16) + symbol(at(b"import"), 0x12, 0, 0) + symbol(at(b"local"), 0x02, 0, 5)
    symbols += symbol(at(b"export"), 0xA1, 0, 5)
    definitions = struct.pack(order + "HHHHIII", 1, 1, 1, 1, 0, 20, 28) + struct.pack(order + "II", at(b"base"), 0)
    definitions += struct.pack(order + "HHHHIII", 1, 0, 2, 1, 0, 20, 0) + struct.pack(order + "II", at(b"VER_1"), 0)
    needs = struct.pack(order + "HHIII", 1, 1, at(b"libone.so.1"), 16, 0)
    needs += struct.pack(order + "IHHII", 0, 0, 2, at(b"VER_1"), 0)
    data = made_up(
        wide=wide,
        little=little,
        machine=8,
        strings=strings,
        tags=[(NEEDED, at(b"libone.so.1")), (SONAME, at(b"libself.so.2")), (RUNPATH, at(b"/run"))],
        tables={SYMTAB: symbols, HASH: struct.pack(order + "III", 1, 4, 0), VERNEED: needs, VERDEF: definitions},
    )
    assert of_bytes(data) == ElfFacts(
        elf_class=1 + wide,
        little_endian=little,
        machine=8,
        elf_type=3,
        dynamic=True,
        soname="libself.so.2",
        needed=("libone.so.1",),
        runpath=("/run",),
        verneed=(("libone.so.1", ("VER_1",)),),
        verdef=("VER_1",),
        exports=("export",),
        imports=("import",),
    )


def test_s390x_has_hash_words_of_eight_bytes() -> None:
    symbols = bytes(24) + struct.pack(">IBBHQQ", 1, 0x12, 0, 5, 1, 1)
    tables = {SYMTAB: symbols, HASH: struct.pack(">QQQ", 1, 2, 0)}
    assert of_bytes(made_up(little=False, machine=22, strings=b"\0it\0", tables=tables)).exports == ("it",)


# ------------------------------------------------------------------------------------------------------------ malformed

def test_what_is_no_elf_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("#!/bin/sh\n" * 10)
    (tmp_path / "magic").write_bytes(b"\x7fELF")
    os.mkfifo(tmp_path / "fifo")
    expected = {
        "empty": "empty file",
        "text": "not an ELF file",
        "magic": "truncated inside the ELF header",
        "fifo": "not a regular file",
        ".": "not a regular file",
    }
    for name, what in expected.items():
        with pytest.raises(ImageError, match=what):
            facts_of(tmp_path / name)


def test_an_object_file_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "it.o", source="int it;", options=["-c"])
    with pytest.raises(ImageError, match="neither a program nor a shared object"):
        facts_of(tmp_path / "it.o")


def test_the_size_bound(library: Path) -> None:
    with pytest.raises(ImageError, match="more than 100"):
        of_bytes(library.read_bytes(), max_size=100)


def _chain(size: int, links: int) -> bytes:
    return struct.pack("<HHIII", 1, 0, 1, 0, 16) * links + bytes(size)


DEFECTS: Dict[str, bytes] = {
    "DT_NEEDED lies outside": made_up(tags=[(NEEDED, 99)]),
    "DT_NEEDED does not end": made_up(strings=b"\0abc", tags=[(NEEDED, 1)]),
    "DT_NEEDED does not": made_up(strings=b"\0" + b"a" * 5000 + b"\0", tags=[(NEEDED, 1)]),
    "lies in no PT_LOAD": made_up(tags=[(VERNEED, 0x5)]),
    "more than .* versions in verneed": made_up(strings=b"\0f\0", tables={VERNEED: _chain(64, facts_module.MAX_VERSIONS + 9)}),
    "more than .* versions in verdef": made_up(
        strings=b"\0f\0", tables={VERDEF: struct.pack("<HHHHIII", 1, 1, 0, 0, 0, 0, 20) * (facts_module.MAX_VERSIONS + 9)}
    ),
    "record of verneed lies outside": made_up(tables={VERNEED: struct.pack("<HHIII", 1, 1, 0, 0, 0x7FFFFFFF)}),
    "dynamic symbols do not fit": made_up(tables={SYMTAB: bytes(48), HASH: struct.pack("<II", 1, 40000)}),
    "500000000 dynamic symbols": made_up(tables={SYMTAB: bytes(48), HASH: struct.pack("<II", 1, 500_000_000)}),
    "of 25 bytes each": made_up(tags=[(SYMENT, 25)], tables={SYMTAB: bytes(48), HASH: struct.pack("<II", 1, 2)}),
    "buckets lies outside": made_up(tables={SYMTAB: bytes(48), GNU_HASH: struct.pack("<IIII", 0xFFFFFFFF, 1, 1, 0)}),
    "77000000 dynamic symbols": made_up(tables={SYMTAB: bytes(48), GNU_HASH: struct.pack("<IIIIQI", 1, 1, 1, 0, 0, 77_000_000)}),
    "record of DT_GNU_HASH": made_up(tables={SYMTAB: bytes(48), GNU_HASH: struct.pack("<IIIIQI", 1, 1, 1, 0, 0, 77_000)}),
    "lies outside the string table": made_up(
        tables={SYMTAB: bytes(24) + struct.pack("<IBBHQQ", 500, 0x12, 0, 5, 1, 1), HASH: struct.pack("<II", 1, 2)}
    ),
}


@pytest.mark.parametrize("what", DEFECTS)
def test_each_defect_is_named(what: str) -> None:
    with pytest.raises(ImageError, match=what):
        of_bytes(DEFECTS[what])


def test_a_gnu_hash_chain_without_end_stops() -> None:
    words = facts_module.MAX_SYMBOLS + 16
    table = struct.pack("<IIIIQI", 1, 1, 1, 0, 0, 1) + bytes(4 * words)
    with pytest.raises(ImageError):
        of_bytes(made_up(tables={SYMTAB: bytes(48), GNU_HASH: table}))


def test_overlapping_symbol_names_are_bounded() -> None:
    strings = b"\0" + b"a" * 60000 + b"\0"
    symbols = bytes(24) + b"".join([struct.pack("<IBBHQQ", 1 + n, 0x12, 0, 5, 1, 1) for n in range(20000)])
    with pytest.raises(ImageError, match="overlap"):
        of_bytes(made_up(strings=strings, tables={SYMTAB: symbols, HASH: struct.pack("<II", 1, 20001)}))


def test_tables_scattered_over_a_huge_sparse_file_are_bounded(tmp_path: Path) -> None:
    """Every DT_NEEDED names a string of another page: the reader gives up instead of reading gigabytes."""
    data = bytearray(made_up(strings=b"\0", tags=[(NEEDED, 5000 * (n + 1)) for n in range(10000)]))
    size = 100 << 20
    struct.pack_into("<Q", data, 64 + 32, size)  # p_filesz of PT_LOAD
    at = data.index(struct.pack("<QQ", 10, 1))
    struct.pack_into("<Q", data, at + 8, size)  # DT_STRSZ
    path = tmp_path / "sparse"
    path.write_bytes(data)
    os.truncate(path, size)
    with pytest.raises(ImageError, match="scattered"):
        facts_of(path)


def test_truncation_at_every_byte(library: Path) -> None:
    data = library.read_bytes()
    whole = of_bytes(data)
    fd = os.memfd_create("elf")
    os.write(fd, data)
    seen = set()
    for size in range(len(data) - 1, -1, -1):
        os.ftruncate(fd, size)
        try:
            assert read_facts(fd, symbols=True) == whole
            seen.add("whole")
        except ImageError as error:
            seen.add(error.what)
    os.close(fd)
    assert "whole" in seen
    assert len(seen) > 5


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_never_raise_anything_else(library: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(library.read_bytes())
    for at, value in flips:
        data[at % min(len(data), 4096)] = value
    try:
        of_bytes(bytes(data))
    except ImageError as error:
        assert error.what


@settings(max_examples=200, deadline=None)
@given(tail=st.binary(max_size=600), wide=st.booleans(), little=st.booleans())
def test_random_bytes_never_raise_anything_else(tail: bytes, wide: bool, little: bool) -> None:
    try:
        of_bytes(bytes([0x7F, 0x45, 0x4C, 0x46, 1 + wide, 1 if little else 2, 1]) + bytes(9) + b"\3\0" + tail)
    except ImageError as error:
        assert error.what


# ---------------------------------------------------------------------------------------------------------------- scale

def test_every_elf_file_of_this_machine_is_read() -> None:
    paths = elf_files("/usr/lib", "/usr/bin")
    assert len(paths) > 200
    assert all(facts_of(Path(path)).machine for path in paths[:800])


def test_a_library_with_fifty_thousand_symbols(tmp_path: Path) -> None:
    source = "".join([f"int symbol_with_a_usual_name_{n};\n" for n in range(50_000)])
    library = build(tmp_path / "libmany.so", source=source)
    assert len(facts_of(library, symbols=True).exports) == 50_000
