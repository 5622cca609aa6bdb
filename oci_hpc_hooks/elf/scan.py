"""The same facts through pyelftools: for the scan of the node's own, trusted files, and as the oracle of our own reader.

Slow (some 10 ms a library, and more for a large symbol table) and not bounded: never for a file of an image.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerNeedSection
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection
from elftools.elf.segments import InterpSegment, NoteSegment

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.model import ElfFacts

#: Of one library, or that one file needs; glibc's has some 50.
_MOST_VERSIONS = 4096
_VER_FLG_BASE, _VER_FLG_WEAK = 1, 2
_DF_1_NODEFLIB = 0x800
_PF_X = 1
_X86 = ("EM_386", "EM_X86_64")
_ISA_NEEDED = (0xC0008002, "GNU_PROPERTY_X86_ISA_1_NEEDED")  # some releases of pyelftools have no name for it
_TYPES = {"ET_EXEC": 2, "ET_DYN": 3}


def read_with_pyelftools(path: str, *, symbols: Callable[[str], bool]) -> ElfFacts:
    """The facts of the program or shared object at ``path``, which must be a trusted file with its section headers.

    ``symbols`` chooses the names that ``exports`` and ``imports`` keep. Raises :class:`ConfigError` if the file cannot be read or is
    no program or shared object.
    """
    try:
        with open(path, "rb") as stream:
            elf = ELFFile(stream)
            _check_tables(elf, os.fstat(stream.fileno()).st_size)
            return _facts(elf, symbols)
    except Exception as error:  # in a damaged file pyelftools comes across errors of every kind
        raise ConfigError(f"{path} cannot be read as an ELF file: {str(error) or type(error).__name__}", who="site admin") from error


def _check_tables(elf: Any, size: int) -> None:
    """Raises ELFError where headers of segments or sections are not where the file is: pyelftools would read one 65,535 times."""
    for what, offset, count, length, right in (
        ("segments", elf.header.e_phoff, elf.num_segments(), elf.header.e_phentsize, elf.structs.Elf_Phdr.sizeof()),
        ("sections", elf.header.e_shoff, elf.num_sections(), elf.header.e_shentsize, elf.structs.Elf_Shdr.sizeof()),
    ):
        if count and (length != right or offset + count * length > size):
            raise ELFError(f"its {count} headers of {what} do not fit into the file")


def _facts(elf: Any, symbols: Callable[[str], bool]) -> ElfFacts:
    elf_type = _TYPES.get(elf.header.e_type)
    if elf_type is None:
        raise ELFError(f"{elf.header.e_type} is neither a program nor a shared object")
    interp = ""
    dynamic = False
    tags: Dict[str, List[Any]] = {}
    stack: Optional[int] = None
    isa = 0
    filtees: Dict[str, Tuple[str, ...]] = {}
    for segment in elf.iter_segments():
        if isinstance(segment, DynamicSegment):
            dynamic = True
            for tag in segment.iter_tags():
                tags.setdefault(str(tag.entry.d_tag), []).append(tag)
            # pyelftools gives no names for these two.
            filtees = {name: tuple([_text(segment._get_stringtable().get_string(tag.entry.d_val)) for tag in tags.get(name, [])])
                       for name in ("DT_FILTER", "DT_AUXILIARY")}
        elif isinstance(segment, InterpSegment):
            interp = _text(segment.get_interp_name())
        elif segment.header.p_type == "PT_GNU_STACK":
            stack = segment.header.p_flags
        elif isinstance(segment, NoteSegment) and elf.header.e_machine in _X86 and segment.header.p_align == elf.elfclass // 8:
            isa = isa or _isa_needed(segment)
    sonames = tags.get("DT_SONAME", [])
    exports, imports = _symbols(elf, symbols)
    return ElfFacts(
        elf_class=elf.elfclass // 32,
        little_endian=elf.little_endian,
        machine=_raw_machine(elf),
        elf_type=elf_type,
        dynamic=dynamic,
        interp=interp,
        soname=_text(sonames[-1].soname) if sonames else "",
        needed=tuple([_text(tag.needed) for tag in tags.get("DT_NEEDED", [])]),
        rpath=tuple([part for tag in tags.get("DT_RPATH", []) for part in _text(tag.rpath).split(":")]),
        runpath=tuple([part for tag in tags.get("DT_RUNPATH", []) for part in _text(tag.runpath).split(":")]),
        nodeflib=any(tag.entry.d_val & _DF_1_NODEFLIB for tag in tags.get("DT_FLAGS_1", [])),
        verneed=_verneed(elf),
        verdef=_verdef(elf),
        exports=exports,
        imports=imports,
        isa_needed=isa,
        execstack=elf.header.e_machine in _X86 if stack is None else bool(stack & _PF_X),
        filters=filtees.get("DT_FILTER", ()),
        auxiliaries=filtees.get("DT_AUXILIARY", ()),
    )


def _isa_needed(segment: Any) -> int:
    for note in segment.iter_notes():
        if note["n_type"] == "NT_GNU_PROPERTY_TYPE_0" and note["n_name"] == "GNU":
            for found in note["n_desc"]:
                if found.pr_type in _ISA_NEEDED and found.pr_datasz == 4:
                    data = found.pr_data
                    return data if isinstance(data, int) else int.from_bytes(bytes(data), "little")
    return 0


def _raw_machine(elf: Any) -> int:
    elf.stream.seek(18)
    return int.from_bytes(elf.stream.read(2), "little" if elf.little_endian else "big")


def _text(name: Any) -> str:
    """pyelftools gives names as latin-1 or UTF-8 text, by version and place; ours are file names."""
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)


def _bounded(versions: Iterable[Any]) -> Iterator[Any]:
    """Raises ELFError where records lead back to themselves."""
    for number, version in enumerate(versions):
        if number >= _MOST_VERSIONS:
            raise ELFError(f"more than {_MOST_VERSIONS} versions")
        yield version


def _verneed(elf: Any) -> Tuple[Tuple[str, Tuple[str, ...]], ...]:
    found: List[Tuple[str, Tuple[str, ...]]] = []
    for section in elf.iter_sections():
        if isinstance(section, GNUVerNeedSection):
            for need, auxiliaries in _bounded(section.iter_versions()):
                versions = tuple([_text(aux.name) for aux in _bounded(auxiliaries) if not aux.entry.vna_flags & _VER_FLG_WEAK])
                if versions:
                    found.append((_text(need.name), versions))
    return tuple(found)


def _verdef(elf: Any) -> Tuple[str, ...]:
    found: List[str] = []
    for section in elf.iter_sections():
        if isinstance(section, GNUVerDefSection):
            for definition, auxiliaries in _bounded(section.iter_versions()):
                names = [_text(aux.name) for aux in _bounded(auxiliaries)]
                if not definition.entry.vd_flags & _VER_FLG_BASE:
                    found.append(names[0])
    return tuple(found)


def _relocated(elf: Any) -> Set[int]:
    """The symbols that relocations name; an undefined one among the others is never looked up."""
    word, shift = ("QQ", 32) if elf.elfclass == 64 else ("II", 8)
    found: Set[int] = set()
    for section in elf.iter_sections():
        if isinstance(section, RelocationSection) and elf.get_section(section.header.sh_link).header.sh_type == "SHT_DYNSYM":
            addend = word[0].lower() if section.is_RELA() else ""
            entry = struct.Struct(("<" if elf.little_endian else ">") + word + addend)
            found |= {relocation[1] >> shift for relocation in entry.iter_unpack(section.data())}
    return found


def _symbols(elf: Any, wanted: Callable[[str], bool]) -> Tuple[Tuple[str, ...], Tuple[str, ...]]:
    exports: Dict[str, None] = {}
    imports: Dict[str, None] = {}
    relocated = _relocated(elf)
    for section in elf.iter_sections():
        if not isinstance(section, SymbolTableSection) or section.header.sh_type != "SHT_DYNSYM":
            continue
        for index, symbol in enumerate(section.iter_symbols()):
            name = _text(symbol.name)
            bind = symbol.entry.st_info.bind
            # With an OS ABI other than GNU's, pyelftools calls the unique binding LOOS.
            if not name or bind not in ("STB_GLOBAL", "STB_WEAK", "STB_LOOS", "STB_GNU_UNIQUE") or not wanted(name):
                continue
            if symbol.entry.st_shndx == "SHN_UNDEF":
                if bind != "STB_WEAK" and (index in relocated or elf.header.e_machine == "EM_MIPS"):
                    imports[name] = None
            elif symbol.entry.st_other.visibility in ("STV_DEFAULT", "STV_PROTECTED"):
                exports[name] = None
    return tuple(exports), tuple(imports)
