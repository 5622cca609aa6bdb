"""What one ELF file says about itself, read from a hostile file through an open descriptor.

Only what ld.so and the kernel look at is read: the file header, the program headers, and what the dynamic section leads to. Section
headers are never consulted; they may be stripped, and they may lie. Addresses are translated through PT_LOAD as the loader maps them.
Every record is fetched by ``pread`` through small windows, so a library of a gigabyte costs a few kilobytes, and a file that shrinks
while it is read is a short read, not SIGBUS.

Sources: elf(5), gabi chapters 4 and 5, LSB core 10.7 (symbol versioning), glibc elf/dl-version.c and elf/dl-lookup.c.
"""

from __future__ import annotations

import os
import stat
import struct
from functools import cached_property
from struct import Struct
from typing import Callable, Dict, Iterator, List, NoReturn, Optional, Set, Tuple

from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import ElfFacts

#: Bytes. Beyond any real library (the largest CUDA ones are a few GiB); sizes above are made up.
MAX_SIZE = 16 << 30
#: Bytes read in all without the symbols. A real library needs 10 to 100 KiB.
MAX_READ = 16 << 20
#: Bytes of program headers: the kernel's own limit (fs/binfmt_elf.c, load_elf_phdrs).
MAX_PROGRAM_HEADERS = 65536
#: Entries of the dynamic section. Real ones have 20 to 60, a program linked to everything a few hundred.
MAX_DYNAMIC = 16384
#: DT_FILTER and DT_AUXILIARY entries. Real libraries have one or two.
MAX_FILTERS = 256
#: Version records needed or defined. libc, the richest, defines about 45; a program needs a few hundred at most.
MAX_VERSIONS = 16384
#: Bytes of a file or version name, and of PT_INTERP: PATH_MAX. A window always holds one whole.
MAX_NAME = 4096
#: Dynamic symbols. libLLVM has about 50,000, the largest machine learning libraries some 200,000.
MAX_SYMBOLS = 1 << 19
#: Bytes of one symbol's name: C++ mangling makes some of several KiB.
MAX_SYMBOL_NAME = 65536
#: Bytes of the notes of all segments. Those of a real library have some hundred.
MAX_NOTES = 65536
#: Bytes of .dynstr, of all symbol names together (they may overlap), and of a relocation table. libLLVM's .dynstr has 4 MiB.
MAX_TABLE = 64 << 20

_STRIDE = 4096
_WINDOW = 2 * _STRIDE  # whatever starts in the first half and is at most a stride long lies in the window whole

_ET_EXEC, _ET_DYN = 2, 3
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_PT_GNU_STACK, _PT_GNU_PROPERTY = 0x6474E551, 0x6474E553
_PF_X = 1
_NT_GNU_PROPERTY_TYPE_0, _GNU_PROPERTY_X86_ISA_1_NEEDED = 5, 0xC0008002
_DT_NULL, _DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ = 0, 1, 4, 5, 6, 7, 8
_DT_STRSZ, _DT_SYMENT, _DT_SONAME, _DT_RPATH, _DT_REL, _DT_RELSZ = 10, 11, 14, 15, 17, 18
_DT_PLTRELSZ, _DT_PLTREL, _DT_JMPREL, _DT_RUNPATH = 2, 20, 23, 29
_DT_GNU_HASH, _DT_FLAGS_1, _DT_VERDEF, _DT_VERNEED = 0x6FFFFEF5, 0x6FFFFFFB, 0x6FFFFFFC, 0x6FFFFFFE
_DT_AUXILIARY, _DT_FILTER = 0x7FFFFFFD, 0x7FFFFFFF
_DF_1_NODEFLIB = 0x800
_VER_FLG_BASE, _VER_FLG_WEAK = 1, 2
_EM_386, _EM_MIPS, _EM_S390, _EM_X86_64, _EM_ALPHA = 3, 8, 22, 62, 0x9026


class _Layout:
    """The structures of one ELF class and byte order."""

    def __init__(self, wide: bool, little: bool) -> None:
        order = "<" if little else ">"
        self.wide = wide
        self.order = order
        # Ehdr after e_ident: type machine version entry phoff shoff flags ehsize phentsize phnum
        self.header = Struct(order + ("HHIQQQIHHH" if wide else "HHIIIIIHHH"))
        # Phdr: type [flags] offset vaddr paddr filesz memsz [flags] align
        self.program = Struct(order + ("IIQQQQQQ" if wide else "IIIIIIII"))
        self.dynamic = Struct(order + ("QQ" if wide else "II"))
        # Sym: name info other shndx value size, or name value size info other shndx
        self.symbol = Struct(order + ("IBBHQQ" if wide else "IIIBBH"))
        self.rel = Struct(order + ("QQ" if wide else "II"))
        self.rela = Struct(order + ("QQq" if wide else "IIi"))
        self.verneed = Struct(order + "HHIII")  # version cnt file aux next
        self.vernaux = Struct(order + "IHHII")  # hash flags other name next
        self.verdef = Struct(order + "HHHHIII")  # version flags ndx cnt hash aux next
        self.word = Struct(order + "I")
        self.words3 = Struct(order + "III")
        self.words4 = Struct(order + "IIII")


_LAYOUTS: Dict[Tuple[int, int], _Layout] = {
    (elf_class, data): _Layout(elf_class == 2, data == 1) for elf_class in (1, 2) for data in (1, 2)
}


def read_facts(fd: int, *, symbols: bool = False, max_size: int = MAX_SIZE) -> ElfFacts:
    """Reads the ELF file open as ``fd`` (readable; its offset is neither used nor moved).

    ``exports`` and ``imports`` are filled only with ``symbols``: defined GLOBAL, WEAK and UNIQUE symbols of default or protected
    visibility, and undefined GLOBAL ones that a relocation names (the others are never looked up, and a program must do without a weak
    one), each name once, in the order of the table. Version chains are followed as ld.so follows them, by their links and not by the
    counts beside them. The base entry of verdef, which names the file, is left out.

    Raises :class:`ImageError` for what is no program or shared object, is larger than ``max_size`` bytes or is malformed; ``what``
    names the defect and the caller, who knows it, the path.
    """
    return _Reader(fd, max_size).facts(symbols)


def _bad(what: str) -> NoReturn:
    raise ImageError(what)


class _Reader:
    """One file. ``offset`` is a position in the file, ``address`` a virtual one."""

    def __init__(self, fd: int, max_size: int) -> None:
        self._fd = fd
        self._windows: Dict[int, bytes] = {}
        self._budget = MAX_READ
        self._segments: List[Tuple[int, int, int]] = []  # address, end, offset - address
        self._tags: Dict[int, int] = {}
        self._strings = 0  # offset of the string table
        self._strings_end = 0
        self._notes: List[Tuple[int, int, int, int]] = []  # p_type, offset, bytes, alignment
        self._stack_flags: Optional[int] = None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            _bad("not a regular file")
        if status.st_size > max_size:
            _bad(f"the file has {status.st_size} bytes, more than {max_size}")

    # ------------------------------------------------------------------------------------------------------------ raw

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._fd, size, offset)
        except (OSError, OverflowError) as error:
            raise ImageError(f"cannot be read at offset {offset}: {error}") from error

    def _window(self, offset: int) -> bytes:
        """The window whose first half holds ``offset``; shorter, even empty, at the end of the file."""
        key = offset // _STRIDE
        window = self._windows.get(key)
        if window is None:
            self._budget -= _WINDOW
            if self._budget < 0:
                _bad("its tables are scattered over more of the file than a real library's")
            window = self._windows[key] = self._pread(key * _STRIDE, _WINDOW)
        return window

    def _table(self, offset: int, size: int, what: str) -> bytes:
        """Exactly ``size`` bytes, which the caller has bounded."""
        if size <= _STRIDE:
            start = offset % _STRIDE
            data = self._window(offset)[start : start + size]
        else:
            data = self._pread(offset, size)
        if len(data) != size:
            _bad(f"truncated inside {what}")
        return data

    def _offset(self, address: int, what: str) -> Tuple[int, int]:
        """File offset of a virtual address, and the offset at which its segment ends."""
        for start, end, shift in self._segments:
            if start <= address < end:
                return address + shift, end + shift
        _bad(f"{what} at address {address:#x} lies in no PT_LOAD segment")

    def _string(self, index: int, what: str) -> str:
        """The string at ``index`` of the dynamic string table."""
        offset = self._strings + index
        if offset >= self._strings_end:
            _bad(f"the name of {what} lies outside the string table")
        window = self._window(offset)
        start = offset % _STRIDE
        end = window.find(b"\0", start, start + min(MAX_NAME, self._strings_end - offset))
        if end < 0:
            _bad(f"the name of {what} does not end")
        return os.fsdecode(window[start:end])

    # --------------------------------------------------------------------------------------------------------- the file

    def facts(self, symbols: bool) -> ElfFacts:
        head = self._window(0)
        if head[:4] != b"\x7fELF":
            _bad("empty file" if not head else "not an ELF file")
        if len(head) < 16:
            _bad("truncated inside the ELF header")
        layout = _LAYOUTS.get((head[4], head[5]))
        if layout is None or head[6] != 1:
            _bad(f"unknown ELF class, byte order or version ({head[4]}, {head[5]}, {head[6]})")
        self._layout = layout
        try:
            elf_type, machine, version, _, table, _, _, _, size, count = layout.header.unpack_from(head, 16)
            if version != 1:
                _bad(f"unknown ELF version {version}")
            if elf_type not in (_ET_EXEC, _ET_DYN):
                _bad(f"ELF type {elf_type} is neither a program nor a shared object")
            dynamic, interp = self._program_headers(table, size, count)
            names, soname = self._dynamic(dynamic) if dynamic else ({}, "")
            exports, imports = self._symbols(machine) if symbols and dynamic else ((), ())
            return ElfFacts(
                elf_class=head[4],
                little_endian=head[5] == 1,
                machine=machine,
                elf_type=elf_type,
                dynamic=dynamic is not None,
                interp=interp,
                soname=soname,
                needed=names.get(_DT_NEEDED, ()),
                rpath=self._path_list(_DT_RPATH, "DT_RPATH"),
                runpath=self._path_list(_DT_RUNPATH, "DT_RUNPATH"),
                nodeflib=bool(self._tags.get(_DT_FLAGS_1, 0) & _DF_1_NODEFLIB),
                verneed=tuple(self._verneed()),
                verdef=tuple(self._verdef()),
                exports=exports,
                imports=imports,
                isa_needed=self._isa_needed() if machine in (_EM_386, _EM_X86_64) else 0,
                execstack=self._wants_executable_stack(machine),
                filters=names.get(_DT_FILTER, ()),
                auxiliaries=names.get(_DT_AUXILIARY, ()),
            )
        except struct.error:
            raise ImageError("truncated: a table reaches beyond the end of the file") from None

    def _program_headers(self, offset: int, size: int, count: int) -> Tuple[Optional[Tuple[int, int]], str]:
        """Fills in the segments; returns the dynamic section (address, bytes) and the interpreter."""
        entry = self._layout.program
        if not count:
            return None, ""
        if size != entry.size:
            _bad(f"program headers of {size} bytes each instead of {entry.size}")
        size *= count
        if size > MAX_PROGRAM_HEADERS:
            _bad(f"{count} program headers, more than the kernel takes")
        headers = self._table(offset, size, "the program headers")
        dynamic: Optional[Tuple[int, int]] = None
        interp = ""
        segments = self._segments
        for header in entry.iter_unpack(headers):
            kind = header[0]
            if kind in (_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE, _PT_GNU_STACK, _PT_GNU_PROPERTY):
                if self._layout.wide:
                    _, flags, position, address, _, length, _, alignment = header
                else:
                    _, position, address, _, length, _, flags, alignment = header
                if kind == _PT_LOAD:
                    segments.append((address, address + length, position - address))
                elif kind == _PT_DYNAMIC:
                    dynamic = address, length
                elif kind == _PT_GNU_STACK:
                    self._stack_flags = flags
                elif kind != _PT_INTERP:
                    self._notes.append((kind, position, length, alignment))
                else:
                    interp = self._interp(position, length)
        return dynamic, interp

    def _interp(self, offset: int, size: int) -> str:
        if not 2 <= size <= MAX_NAME:
            _bad(f"PT_INTERP of {size} bytes")
        name = self._table(offset, size, "PT_INTERP")
        if name[-1]:
            _bad("PT_INTERP does not end")
        return os.fsdecode(name[: name.index(0)])

    def _wants_executable_stack(self, machine: int) -> bool:
        """Without PT_GNU_STACK it is as ld.so assumes for this machine (glibc sysdeps/*/stackinfo.h)."""
        if self._stack_flags is None:
            return machine in (_EM_386, _EM_X86_64)
        return bool(self._stack_flags & _PF_X)

    def _isa_needed(self) -> int:
        """As ld.so reads it (glibc sysdeps/x86/dl-prop.h, since 2.33): a malformed note says nothing, and is no defect of the file."""
        word = 8 if self._layout.wide else 4
        left = MAX_NOTES
        # The linkers of today describe the note by a segment of its own; then the other notes are not looked at.
        for kind in (_PT_GNU_PROPERTY, _PT_NOTE):
            for found, offset, size, alignment in self._notes:
                if found == kind and alignment == word and size <= left:
                    left -= size
                    needed = self._isa_in(offset, size, word)
                    if needed is not None:
                        return needed
        return 0

    def _isa_in(self, offset: int, size: int, word: int) -> Optional[int]:
        """What the property note of one segment says; None if there is none among its notes."""
        try:
            notes = self._table(offset, size, "the notes")
        except ImageError:
            return None
        at = 0
        while at + 16 <= len(notes):
            name_size, length, kind = self._layout.words3.unpack_from(notes, at)
            start = at + 12 + (name_size + 3) // 4 * 4
            if kind == _NT_GNU_PROPERTY_TYPE_0 and notes[at + 12 : at + 16] == b"GNU\0" and name_size == 4:
                return self._isa_property(notes[start : start + length], word)
            at = (start + length + word - 1) // word * word
        return None

    def _isa_property(self, properties: bytes, word: int) -> int:
        at = 0
        while at + 12 <= len(properties):
            kind, size, value = self._layout.words3.unpack_from(properties, at)
            if kind == _GNU_PROPERTY_X86_ISA_1_NEEDED and size == 4:
                return int(value)
            at += 8 + (size + word - 1) // word * word
        return 0

    # ------------------------------------------------------------------------------------------------- the dynamic section

    def _dynamic(self, where: Tuple[int, int]) -> Tuple[Dict[int, Tuple[str, ...]], str]:
        """Fills in the tags and the string table; returns the names by tags that may come more than once, and DT_SONAME."""
        address, size = where
        entry = self._layout.dynamic
        offset, end = self._offset(address, "PT_DYNAMIC")
        size = min(size, end - offset) // entry.size * entry.size
        if size > MAX_DYNAMIC * entry.size:
            _bad(f"a dynamic section of {size} bytes")
        data = self._table(offset, size, "the dynamic section")
        tags = self._tags
        named: Dict[int, List[int]] = {}
        for tag, value in entry.iter_unpack(data):
            if tag in (_DT_NEEDED, _DT_FILTER, _DT_AUXILIARY):
                named.setdefault(tag, []).append(value)
            elif tag == _DT_NULL:
                break
            else:
                tags[tag] = value
        else:
            _bad("the dynamic section does not end with DT_NULL")
        if _DT_STRTAB in tags:
            self._strings, end = self._offset(tags[_DT_STRTAB], "DT_STRTAB")
            self._strings_end = min(self._strings + tags.get(_DT_STRSZ, 0), end)
        soname = self._string(tags[_DT_SONAME], "DT_SONAME") if _DT_SONAME in tags else ""
        if len(named.get(_DT_FILTER, ())) + len(named.get(_DT_AUXILIARY, ())) > MAX_FILTERS:
            _bad(f"more than {MAX_FILTERS} filters")
        return {tag: tuple([self._string(index, "DT_NEEDED") for index in indices]) for tag, indices in named.items()}, soname

    def _path_list(self, tag: int, what: str) -> Tuple[str, ...]:
        if tag not in self._tags:
            return ()
        # An empty path is one empty element: it is searched nowhere, but DT_RUNPATH still puts DT_RPATH out of force.
        return tuple(self._string(self._tags[tag], what).split(":"))

    def _verneed(self) -> Iterator[Tuple[str, Tuple[str, ...]]]:
        if _DT_VERNEED not in self._tags:
            return
        offset, end = self._offset(self._tags[_DT_VERNEED], "DT_VERNEED")
        layout = self._layout
        records = 0
        more = 1
        while more:
            _, _, file, link, more = self._record(layout.verneed, offset, end, "verneed")
            versions: List[str] = []
            at = offset
            while link:
                at += link
                _, flags, _, name, link = self._record(layout.vernaux, at, end, "verneed")
                if not flags & _VER_FLG_WEAK:
                    versions.append(self._string(name, "a version in verneed"))
                records += 1
                if records > MAX_VERSIONS:
                    _bad(f"more than {MAX_VERSIONS} versions in verneed")
            records += 1
            if records > MAX_VERSIONS:
                _bad(f"more than {MAX_VERSIONS} versions in verneed")
            if versions:
                yield self._string(file, "a file in verneed"), tuple(versions)
            offset += more

    def _verdef(self) -> Iterator[str]:
        if _DT_VERDEF not in self._tags:
            return
        offset, end = self._offset(self._tags[_DT_VERDEF], "DT_VERDEF")
        layout = self._layout
        records = 0
        more = 1
        while more:
            _, flags, _, _, _, link, more = self._record(layout.verdef, offset, end, "verdef")
            if not flags & _VER_FLG_BASE:
                (name,) = self._record(layout.word, offset + link, end, "verdef")
                yield self._string(name, "a version in verdef")
            records += 1
            if records > MAX_VERSIONS:
                _bad(f"more than {MAX_VERSIONS} versions in verdef")
            offset += more

    def _record(self, entry: Struct, offset: int, end: int, what: str) -> Tuple[int, ...]:
        if offset + entry.size > end:
            _bad(f"a record of {what} lies outside its segment")
        return entry.unpack_from(self._window(offset), offset % _STRIDE)

    # ------------------------------------------------------------------------------------------------------------ symbols

    def _symbols(self, machine: int) -> Tuple[Tuple[str, ...], Tuple[str, ...]]:
        tags = self._tags
        if _DT_SYMTAB not in tags:
            return (), ()
        entry = self._layout.symbol
        if tags.get(_DT_SYMENT, entry.size) != entry.size:
            _bad(f"dynamic symbols of {tags[_DT_SYMENT]} bytes each instead of {entry.size}")
        count = self._symbol_count(machine)
        if not count:
            return (), ()
        offset, end = self._offset(tags[_DT_SYMTAB], "DT_SYMTAB")
        if count * entry.size > end - offset:
            _bad(f"{count} dynamic symbols do not fit into their segment")
        table = self._table(offset, count * entry.size, "the symbol table")
        size = self._strings_end - self._strings
        if size > MAX_TABLE:
            _bad(f"a string table of {size} bytes")
        strings = self._table(self._strings, size, "the string table")
        exported: Dict[int, None] = {}  # indices into strings, in order, each once
        imported: Dict[int, None] = {}
        fields = entry.iter_unpack(table)
        rows = fields if self._layout.wide else ((n, i, o, s, v, z) for n, v, z, i, o, s in fields)
        # MIPS resolves what its global offset table holds; everywhere else a symbol that no relocation names is never looked up.
        used = self._relocated if machine != _EM_MIPS else range(count)
        for index, (name, info, other, section, _, _) in enumerate(rows):
            bind = info >> 4
            if bind == 1 or bind == 2:
                if not section:
                    if bind == 1 and index in used:
                        imported[name] = None
                elif other & 3 in (0, 3):
                    exported[name] = None
            elif bind == 10 and section and other & 3 in (0, 3):
                exported[name] = None
        names = _names_of(strings)
        return names(exported), names(imported)

    def _symbol_count(self, machine: int) -> int:
        """From DT_HASH, else DT_GNU_HASH. A GNU hash table without a symbol in it does not say how many undefined ones there are: then
        the relocations do, for an import that no relocation names is never looked up."""
        tags = self._tags
        if _DT_HASH in tags:
            offset, end = self._offset(tags[_DT_HASH], "DT_HASH")
            wide = self._layout.wide and machine in (_EM_S390, _EM_ALPHA)
            pair = Struct(self._layout.order + ("QQ" if wide else "II"))
            count = self._record(pair, offset, end, "DT_HASH")[1]
        elif _DT_GNU_HASH in tags:
            count = self._gnu_hash_count() or max(self._relocated, default=-1) + 1
        else:
            count = max(self._relocated, default=-1) + 1
        if count > MAX_SYMBOLS:
            _bad(f"{count} dynamic symbols")
        return count

    def _gnu_hash_count(self) -> int:
        offset, end = self._offset(self._tags[_DT_GNU_HASH], "DT_GNU_HASH")
        layout = self._layout
        buckets, first, mask_words, _ = self._record(layout.words4, offset, end, "DT_GNU_HASH")
        offset += 16 + mask_words * (8 if layout.wide else 4)
        if buckets > MAX_SYMBOLS or offset + 4 * buckets > end:
            _bad(f"DT_GNU_HASH with {buckets} buckets lies outside its segment")
        starts = self._table(offset, 4 * buckets, "DT_GNU_HASH")
        last = max((word for (word,) in layout.word.iter_unpack(starts)), default=0)
        if last < first or not last:
            return 0
        offset += 4 * buckets - 4 * first
        while last < MAX_SYMBOLS:
            (word,) = self._record(layout.word, offset + 4 * last, end, "DT_GNU_HASH")
            last += 1
            if word & 1:
                break
        return last

    @cached_property
    def _relocated(self) -> Set[int]:
        """The symbols that relocations name; one beyond all that a file may have stands for every such."""
        tags = self._tags
        layout = self._layout
        kind = layout.rela if tags.get(_DT_PLTREL, _DT_RELA) == _DT_RELA else layout.rel
        shift = 32 if layout.wide else 8
        named: Set[int] = set()
        for tag, size_tag, entry in (
            (_DT_RELA, _DT_RELASZ, layout.rela),
            (_DT_REL, _DT_RELSZ, layout.rel),
            (_DT_JMPREL, _DT_PLTRELSZ, kind),
        ):
            size = tags.get(size_tag, 0) // entry.size * entry.size
            if tag not in tags or not size:
                continue
            offset, end = self._offset(tags[tag], "a relocation table")
            if size > end - offset or size > MAX_TABLE:
                _bad(f"a relocation table of {size} bytes does not fit into its segment")
            table = self._table(offset, size, "a relocation table")
            named.update({min(relocation[1] >> shift, MAX_SYMBOLS) for relocation in entry.iter_unpack(table)})
        return named - {0}


def _names_of(strings: bytes) -> Callable[[Dict[int, None]], Tuple[str, ...]]:
    budget = MAX_TABLE

    def names(indices: Dict[int, None]) -> Tuple[str, ...]:
        nonlocal budget
        found: Dict[str, None] = {}
        find = strings.find
        for index in indices:
            end = find(b"\0", index, index + MAX_SYMBOL_NAME)
            if end < 0:
                _bad("the name of a dynamic symbol lies outside the string table or does not end")
            budget -= end - index
            if budget < 0:
                _bad("the dynamic symbols' names overlap without end")
            if end > index:
                found[os.fsdecode(strings[index:end])] = None
        return tuple(found)

    return names
