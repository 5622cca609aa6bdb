"""Files that targets work on: a shared library of which every fact is known, and those of a small image."""

from __future__ import annotations

import os
import struct
from typing import Dict, List, Tuple

from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.model import CacheEntry, ElfFacts, LdCache
from tests.unit.elf.elf_bed import GNU_HASH, HASH, NEEDED, RUNPATH, SONAME, STRSZ, STRTAB, SYMTAB, VERDEF, VERNEED, made_up

RPATH, AUXILIARY, FILTER, FLAGS_1, VERDEFNUM, VERNEEDNUM = 15, 0x7FFFFFFD, 0x7FFFFFFF, 0x6FFFFFFB, 0x6FFFFFFD, 0x6FFFFFFF
RELA, RELASZ, RELAENT, REL, RELSZ, RELENT = 7, 8, 9, 17, 18, 19
X86_64, I386, MIPS, S390, AARCH64 = 62, 3, 8, 22, 183
MACHINES = (X86_64, X86_64, I386, AARCH64, S390, MIPS)
LOADER = b"/lib64/ld-linux-x86-64.so.2"
LONGEST_NAME = 255

#: What a name is, by its first byte.
ROLES = ("needed", "soname", "rpath", "runpath", "file", "version", "weak version", "defined", "export", "weak export", "import", "mention",
         "hidden", "unique", "filter", "auxiliary")
_BASE = 0x10000


def library(data: bytes) -> Tuple[bytes, ElfFacts]:
    """A shared library, or a program, as bytes choose it, and its facts. Two bytes choose its kind; then come names, divided by NUL, each
    behind a byte that says what it is. It has sections as well as segments, so that readers of either can read it."""
    kind = int.from_bytes(data[:2].ljust(2, b"\0"), "little")
    wide, little, stack = kind & 1 == 0, kind & 2 == 0, (None, 6, 7, 6)[kind >> 2 & 3]
    machine, nodeflib, interp = MACHINES[(kind >> 4 & 15) % len(MACHINES)], bool(kind & 256), LOADER if kind & 512 else b""
    by_hash = not kind & 1024 or machine == MIPS  # whose table of the new kind is another
    names = [(ROLES[item[0] % len(ROLES)], item[1:1 + LONGEST_NAME]) for item in data[2:].split(b"\0") if item][:200]
    return _Writer(wide, little, machine).write(names, stack, nodeflib, interp, by_hash)


class _Writer:
    def __init__(self, wide: bool, little: bool, machine: int) -> None:
        self.wide, self.little, self.machine = wide, little, machine
        self.order, self.word = "<" if little else ">", "Q" if wide else "I"
        self.strings = bytearray(b"\0")
        self.known: Dict[bytes, int] = {b"": 0}
        self.body = bytearray(4096)  # for the header and the program headers
        self.sections: List[Tuple[bytes, int, int, int, int, int, int]] = []  # name, type, offset, size, link, info, size of an entry

    def string(self, text: bytes) -> int:
        if text not in self.known:
            self.known[text] = len(self.strings)
            self.strings += text + b"\0"
        return self.known[text]

    def section(self, name: bytes, kind: int, content: bytes, link: int = 0, info: int = 0, entry: int = 0) -> int:
        """Its address."""
        self.body += bytes(-len(self.body) % 8)
        offset = len(self.body)
        self.body += content
        self.sections.append((name, kind, offset, len(content), link, info, entry))
        return _BASE + offset

    def pack(self, form: str, *values: int) -> bytes:
        return struct.pack(self.order + form.replace("W", self.word), *values)

    def write(self, names: List[Tuple[str, bytes]], stack: object, nodeflib: bool, interp: bytes, by_hash: bool) -> Tuple[bytes, ElfFacts]:
        of: Dict[str, List[bytes]] = {role: [name for said, name in names if said == role] for role in ROLES}
        exports = [(name, said) for said, name in names if said in ("export", "weak export", "hidden", "unique") and name]
        needs = self.needs(names)
        tags = [(tag, self.string(name)) for role, tag in (("needed", NEEDED), ("filter", FILTER), ("auxiliary", AUXILIARY))
                for name in of[role]]
        tags += [(tag, self.string(of[role][-1])) for role, tag in (("soname", SONAME), ("rpath", RPATH), ("runpath", RUNPATH)) if of[role]]
        if nodeflib:
            tags.append((FLAGS_1, 0x800))
        # .dynstr is the first section and .dynsym the second, which the others name by these numbers.
        symbols, relocations, undefined = self.symbols(of, exports)
        verneed, verdef = self.verneed(needs), self.verdef(of["defined"])
        tags.append((STRTAB, self.section(b".dynstr", 3, bytes(self.strings))))
        tags.append((STRSZ, len(self.strings)))
        tags.append((SYMTAB, self.section(b".dynsym", 11, b"".join(symbols), 1, 1, len(symbols[0]))))
        if by_hash:
            tags.append((HASH, self.section(b".hash", 5, self.hash_table(len(symbols)), 2)))
        else:
            tags.append((GNU_HASH, self.section(b".gnu.hash", 0x6FFFFFF6, self.gnu_hash_table(len(symbols), undefined), 2)))
        if relocations:
            table = self.section(b".rel", 4 if self.wide else 9, b"".join(relocations), 2, 0, len(relocations[0]))
            size, entry = sum(map(len, relocations)), len(relocations[0])
            tags += [(RELA, table), (RELASZ, size), (RELAENT, entry)] if self.wide else [(REL, table), (RELSZ, size), (RELENT, entry)]
        if needs:
            tags += [(VERNEED, self.section(b".gnu.version_r", 0x6FFFFFFE, verneed, 1, len(needs))), (VERNEEDNUM, len(needs))]
        if of["defined"]:
            tags += [(VERDEF, self.section(b".gnu.version_d", 0x6FFFFFFD, verdef, 1, len(of["defined"]))), (VERDEFNUM, len(of["defined"]))]
        dynamic = b"".join([self.pack("WW", *pair) for pair in (*tags, (0, 0))])
        at = self.section(b".dynamic", 6, dynamic, 1, 0, len(dynamic) // (len(tags) + 1)) - _BASE
        where = len(self.body)
        self.body += interp + b"\0"
        segments = [(1, 0, 0), (2, at, len(dynamic))] + ([(3, where, len(interp) + 1)] if interp else [])
        self.finish(segments, stack)
        found = {role: tuple(map(os.fsdecode, items)) for role, items in of.items()}
        return bytes(self.body), ElfFacts(
            elf_class=1 + self.wide, little_endian=self.little, machine=self.machine, elf_type=3, dynamic=True, interp=os.fsdecode(interp),
            soname=found["soname"][-1] if found["soname"] else "", needed=found["needed"],
            rpath=tuple(found["rpath"][-1].split(":")) if found["rpath"] else (),
            runpath=tuple(found["runpath"][-1].split(":")) if found["runpath"] else (), nodeflib=nodeflib,
            verneed=tuple((os.fsdecode(file), kept) for file, versions in needs
                          for kept in [tuple(os.fsdecode(name) for name, weak in versions if not weak)] if kept),
            verdef=found["defined"],
            exports=tuple(dict.fromkeys(os.fsdecode(name) for name, said in exports if said != "hidden")),
            imports=tuple(dict.fromkeys(filter(None, found["import"] + (found["mention"] if self.machine == MIPS else ())))),
            execstack=self.machine in (X86_64, I386) if stack is None else stack == 7, filters=found["filter"],
            auxiliaries=found["auxiliary"])

    @staticmethod
    def needs(names: List[Tuple[str, bytes]]) -> List[Tuple[bytes, List[Tuple[bytes, bool]]]]:
        found: List[Tuple[bytes, List[Tuple[bytes, bool]]]] = []
        for said, name in names:
            if said == "file":
                found.append((name, []))
            elif said in ("version", "weak version") and found:
                found[-1][1].append((name, said == "weak version"))
        return [(file, versions) for file, versions in found if versions]  # ld.so takes what follows for a version, whatever vn_cnt says

    def symbols(self, of: Dict[str, List[bytes]], exports: List[Tuple[bytes, str]]) -> Tuple[List[bytes], List[bytes], int]:
        """The symbols, the relocations, and how many symbols come before the first that is defined."""
        rows = [self.symbol(0, 0, 0, 0)]
        relocations = []
        # In the order that the facts have them: where a symbol is undefined no hash table names it.
        for said in ("import", "mention"):
            for name in of[said]:
                if said == "import":
                    number = len(rows)
                    relocations.append(self.pack("WWW", 0, number << 32 | 1, 0) if self.wide else self.pack("WW", 0, number << 8 | 1))
                rows.append(self.symbol(self.string(name), 1, 0, 0))
        undefined = len(rows)
        binds = {"export": 1, "weak export": 2, "hidden": 1, "unique": 10}
        rows += [self.symbol(self.string(name), binds[said], 2 if said == "hidden" else 0, 1) for name, said in exports]
        return rows, relocations, undefined

    def symbol(self, name: int, bind: int, visibility: int, section: int) -> bytes:
        if self.wide:
            return self.pack("IBBHQQ", name, bind << 4 | 2, visibility, section, 0, 0)
        return self.pack("IIIBBH", name, 0, 0, bind << 4 | 2, visibility, section)

    def hash_table(self, count: int) -> bytes:
        return self.pack("QQ" if self.wide and self.machine == S390 else "II", 1, count) + bytes(8 * (count + 1))

    def gnu_hash_table(self, count: int, undefined: int) -> bytes:
        """One bucket for all: buckets, first symbol, words of the filter, shift; filter, bucket, chain, whose last word is odd."""
        chain = [0] * (count - undefined)
        if chain:
            chain[-1] = 1
        return self.pack(f"4IWI{len(chain)}I", 1, undefined, 1, 0, 0, undefined if chain else 0, *chain)

    def verneed(self, needs: List[Tuple[bytes, List[Tuple[bytes, bool]]]]) -> bytes:
        made = b""
        for number, (file, versions) in enumerate(needs):
            size = 16 + 16 * len(versions)
            made += self.pack("HHIII", 1, len(versions), self.string(file), 16, size if number + 1 < len(needs) else 0)
            for index, (name, weak) in enumerate(versions):
                made += self.pack("IHHII", 0, 2 if weak else 0, 2, self.string(name), 16 if index + 1 < len(versions) else 0)
        return made

    def verdef(self, names: List[bytes]) -> bytes:
        made = b""
        for number, name in enumerate(names):
            made += self.pack("HHHHIII", 1, 0, number + 2, 1, 0, 20, 28 if number + 1 < len(names) else 0)
            made += self.pack("II", self.string(name), 0)
        return made

    def finish(self, segments: List[Tuple[int, int, int]], stack: object) -> None:
        """Section headers at the end, program headers and the header at the beginning."""
        texts = b"\0.shstrtab\0" + b"".join([name + b"\0" for name, *_ in self.sections])
        self.section(b".shstrtab", 3, texts)
        self.body += bytes(-len(self.body) % 8)
        table = len(self.body)
        form = "IIWWWWIIWW"
        self.body += self.pack(form, *[0] * 10)
        for name, kind, offset, size, link, info, entry in self.sections:
            self.body += self.pack(form, texts.index(b"\0" + name + b"\0") + 1, kind, 2, _BASE + offset, offset, size, link, info, 8, entry)
        count = len(self.sections) + 1
        header, program, section = (64, 56, 64) if self.wide else (52, 32, 40)
        flags = [(0x6474E551, 0, 0, stack)] if isinstance(stack, int) else []
        rows = [(*one, 4) if one[0] != 1 else (1, 0, len(self.body), 4) for one in segments] + flags
        ident = b"\x7fELF" + bytes((1 + self.wide, 1 if self.little else 2, 1)) + bytes(9)
        head = ident + self.pack("HHIWWWI", 3, self.machine, 1, 0, header, table, 0)
        head += self.pack("6H", header, program, len(rows), section, count, count - 1)
        for kind, offset, size, allowed in rows:
            place = _BASE + offset
            head += (self.pack("IIQQQQQQ", kind, allowed, offset, place, 0, size, size, 8) if self.wide
                     else self.pack("8I", kind, offset, place, 0, size, size, allowed, 8))
        self.body[:len(head)] = head


# ------------------------------------------------------------------------------------------------------------ an image

def _made(*names: bytes, program: bool = False) -> bytes:
    return library((512 if program else 0).to_bytes(2, "little") + b"\0".join(names))[0]


def _of(role: str, name: bytes) -> bytes:
    return bytes([16 + ROLES.index(role)]) + name


def _image() -> Dict[str, bytes]:
    entries = [CacheEntry(path.rpartition("/")[2], path, 0x303) for path in ("/usr/lib64/libmpi.so.12", "/lib64/libc.so.6")]
    mpi = (_of("export", b"MPI_Init"), _of("export", b"MPI_Send"), _of("export", b"MPIR_Err_return"))
    return {
        "/bin/app": _made(_of("needed", b"libmpi.so.12"), _of("needed", b"libc.so.6"), _of("import", b"MPI_Init"),
                          _of("rpath", b"$ORIGIN/../lib"), program=True),
        "/bin/run": b"#!/bin/app -x\necho run\n",
        "/usr/lib64/libmpi.so.12": _made(_of("soname", b"libmpi.so.12"), _of("needed", b"libz.so.1"), _of("needed", b"libc.so.6"), *mpi),
        "/usr/lib64/libz.so.1": made_up(strings=b"\0libz.so.1\0", tags=[(SONAME, 1)]),
        "/lib64/libc.so.6": _made(_of("soname", b"libc.so.6"), *[_of("defined", b"GLIBC_2.%d" % minor) for minor in range(2, 37)])
        + b"GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\n\0",
        LOADER.decode(): _made(_of("soname", b"ld-linux-x86-64.so.2")) + b"\0/etc/ld.so.cache\0/lib64/\0/usr/lib64/\0",
        "/etc/ld.so.cache": ldcache.serialize(ldcache.merge(LdCache((), generator="ldconfig"), entries)),
        "/etc/ld.so.conf": b"include /etc/ld.so.conf.d/*.conf\n",
        "/etc/ld.so.preload": b"/usr/lib64/libz.so.1\n",
    }


#: The files of a small image by path: two programs, one of which is a script that starts the other. The first byte of an input chooses
#: one of them, in this order.
IMAGE = _image()
