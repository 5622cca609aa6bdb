"""What the tests of this room share: real ELF files built with gcc, made-up ones, and the real ld.so to compare with."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from oci_hpc_hooks.elf import hwcaps, ldcache
from oci_hpc_hooks.elf.facts import read_facts
from oci_hpc_hooks.elf.loader import LinkMap, Search
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import CacheEntry, ElfFacts, LdCache

ROOT = Path(__file__).resolve().parents[3]
IMAGES = ROOT / "build" / "images"
DEBIAN_DIRS = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib")


def facts_of(path: str | Path, *, symbols: bool = False) -> ElfFacts:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return read_facts(fd, symbols=symbols)
    finally:
        os.close(fd)


def elf_files(*tops: str) -> List[str]:
    """Every program and shared object below ``tops``."""
    found = []
    for top in tops:
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if os.path.islink(path) or not os.path.isfile(path):
                    continue
                with open(path, "rb") as file:
                    head = file.read(18)
                if head[:4] == b"\x7fELF" and head[16:18] in (b"\2\0", b"\3\0") and "/debug/" not in path:
                    found.append(path)
    return sorted(found)


# ---------------------------------------------------------------------------------------------------------------- gcc

def build(
    path: Path,
    *,
    soname: str = "",
    needed: Sequence[str] = (),
    rpath: str = "",
    runpath: str = "",
    source: str = "",
    stub: str = "",
    options: Sequence[str] = (),
) -> Path:
    """A shared object, or a program if its name holds no ".so". It needs ``needed`` by exactly these names; it is linked against
    libraries of that name made from ``stub``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = ".so" in path.name
    stubs = path.parent / f".stubs-{path.name}"
    command = ["gcc", "-w", "-xc", "-", "-xnone", "-o", str(path), "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined"]
    if shared:
        command += ["-shared", "-fPIC", "-nostdlib"]
    if soname:
        command.append(f"-Wl,-soname,{soname}")
    for number, name in enumerate(needed):
        stubs.mkdir(exist_ok=True)
        link = ["gcc", "-w", "-xc", "-", "-shared", "-nostdlib", "-o", f"{stubs}/{number}.so", f"-Wl,-soname,{name}"]
        subprocess.run(link, input=stub.encode(), check=True)
        command.append(f"{stubs}/{number}.so")
    if rpath:
        command += ["-Wl,--disable-new-dtags", f"-Wl,-rpath,{rpath}"]
    if runpath:
        command += ["-Wl,--enable-new-dtags", f"-Wl,-rpath,{runpath}"]
    text = source or ("" if shared else "int main(void) { return 0; }")
    subprocess.run([*command, *options], input=text.encode(), check=True)
    return path


# ------------------------------------------------------------------------------------------------------- real ld.so

def _help_of_the_loader() -> str:
    return subprocess.run(["/lib64/ld-linux-x86-64.so.2", "--help"], capture_output=True, text=True).stdout


def hwcaps_of_this_cpu() -> Tuple[str, ...]:
    """The glibc-hwcaps subdirectories that this machine's loader searches, by its own word; before glibc 2.33 there are none."""
    return tuple(re.findall(r"^  (\S+) \(supported, searched\)", _help_of_the_loader(), re.MULTILINE))


def hwcaps_of(release: str = "") -> hwcaps.Hwcaps:
    """What ld.so of a glibc release, by default this machine's, uses on this machine."""
    release = release or (os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2]
    return hwcaps.of_glibc(hwcaps.of_cpuinfo(Path("/proc/cpuinfo").read_text(), os.uname().machine), release)


def default_dirs_of_this_machine() -> Tuple[str, ...]:
    """By the loader's own word; before glibc 2.33 it gives none, and then Debian's are taken."""
    found = re.findall(r"^  (\S+) \(system search path\)", _help_of_the_loader(), re.MULTILINE)
    return tuple(path.rstrip("/") or "/" for path in found) or DEBIAN_DIRS


def trace(
    program: str, env: Optional[Mapping[str, str]] = None, *, root: str = "", cache: Optional[Path] = None
) -> Tuple[List[Tuple[str, str]], List[str]]:
    """What the real ld.so loads: (name, path) pairs in its order, and the names that it does not find."""
    env = {**(env or {}), "LD_TRACE_LOADED_OBJECTS": "1"}
    command = ["/usr/bin/env", *[f"{key}={value}" for key, value in env.items()], program]
    if root:
        command = ["/usr/sbin/chroot", root, *command]
    result = subprocess.run(in_private_mounts(command, cache) if cache else command, capture_output=True, text=True, env={})
    return traced(result.stdout)


def traced(output: str) -> Tuple[List[Tuple[str, str]], List[str]]:
    """What ld.so printed for LD_TRACE_LOADED_OBJECTS, or with --list, as `trace` gives it."""
    loaded: List[Tuple[str, str]] = []
    missing: List[str] = []
    for line in output.splitlines():
        arrow = re.fullmatch(r"\t(.+?) => (.+?)(?: \(0x[0-9a-f]+\))?", line)
        alone = re.fullmatch(r"\t(/.+) \(0x[0-9a-f]+\)", line)
        if arrow and arrow[2] == "not found":
            missing.append(arrow[1])
        elif arrow:
            loaded.append((arrow[1], arrow[2]))
        elif alone:
            loaded.append((alone[1], alone[1]))
    return loaded, missing


def in_private_mounts(command: Sequence[str], cache: Path) -> List[str]:
    """``command`` where ``cache`` lies over /etc/ld.so.cache, for it alone."""
    unshare = ["/usr/bin/unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    script = 'mount --bind "$0" /etc/ld.so.cache && exec "$@"'
    return [*unshare, "/bin/sh", "-c", script, str(cache), *command]


def can_bind_a_cache() -> bool:
    return subprocess.run(in_private_mounts(["/bin/true"], Path("/etc/ld.so.cache")), capture_output=True).returncode == 0


class TreeView:
    """A tree of real files as the simulation sees it; symbolic links stay below ``root``."""

    def __init__(self, root: str = "") -> None:
        self.root = root
        self.known: Dict[str, Optional[ElfFacts]] = {}

    def resolve(self, path: str) -> str:
        done = ""
        parts = path.split("/")
        links = 0
        while parts:
            part = parts.pop(0)
            if part == "..":
                done = done.rpartition("/")[0]
            elif part not in ("", "."):
                try:
                    target = os.readlink(f"{self.root}{done}/{part}")
                except OSError:
                    done += f"/{part}"
                    continue
                links += 1
                if links > 40:
                    return ""
                done = "" if target.startswith("/") else done
                parts = target.split("/") + parts
        return done if os.path.isfile(self.root + done) else ""

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(self.root + path)

    def facts(self, identity: str) -> Optional[ElfFacts]:
        if identity not in self.known:
            try:
                self.known[identity] = facts_of(self.root + identity)
            except ImageError:
                self.known[identity] = None
        return self.known[identity]


def cache_of(root: str = "") -> LdCache:
    return ldcache.parse(Path(f"{root}/etc/ld.so.cache").read_bytes())


def search_of_this_machine(
    library_path: Sequence[str] = (), cache: Optional[LdCache] = None, preload: Sequence[str] = ()
) -> Search:
    return Search(
        library_path=tuple(library_path),
        cache=cache if cache is not None else cache_of(),
        default_dirs=default_dirs_of_this_machine(),
        hwcaps=hwcaps_of(),
        preload=tuple(preload),
    )


def pairs(link_map: LinkMap) -> List[Tuple[str, str]]:
    """A link map as `trace` gives it: without the program, and without an interpreter that no object asked for."""
    return [(item.name, item.path) for item in link_map.objects[1:] if item.how != "interp" or item.aliases]


def entry(name: str, path: str = "", flags: int = 0x303, hwcap: int = 0) -> CacheEntry:
    return CacheEntry(name, path or f"/added/{name}", flags, 0, hwcap)


# ------------------------------------------------------------------------------------------------------ made-up ELF

NEEDED, HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME, RUNPATH = 1, 4, 5, 6, 10, 11, 14, 29
GNU_HASH, VERDEF, VERNEED = 0x6FFFFEF5, 0x6FFFFFFC, 0x6FFFFFFE


def made_up(
    *,
    wide: bool = True,
    little: bool = True,
    machine: int = 62,
    strings: bytes = b"\0",
    tags: Sequence[Tuple[int, int]] = (),
    tables: Optional[Mapping[int, bytes]] = None,
) -> bytes:
    """An ELF file of one PT_LOAD at address 0x10000 and a dynamic section with ``tags`` and the addresses of ``tables``."""
    order = "<" if little else ">"
    base = 0x10000
    word = "Q" if wide else "I"
    header, program = (64, 56) if wide else (52, 32)
    body = bytearray(header + 2 * program)
    everything: List[Tuple[int, int]] = list(tags)
    for tag, content in {STRTAB: strings, **(tables or {})}.items():
        body += bytes(-len(body) % 8)
        everything.append((tag, base + len(body)))
        body += content
    everything += [(STRSZ, len(strings)), (0, 0)]
    body += bytes(-len(body) % 8)
    dynamic = len(body)
    for tag, value in everything:
        body += struct.pack(f"{order}2{word}", tag, value)
    size = len(body) - dynamic
    ident = bytes([0x7F, 0x45, 0x4C, 0x46, 1 + wide, 1 if little else 2, 1]) + bytes(9)
    body[:header] = ident + struct.pack(f"{order}HHI3{word}I6H", 3, machine, 1, 0, header, 0, 0, header, program, 2, 0, 0, 0)

    def program_header(kind: int, offset: int, length: int) -> bytes:
        if wide:
            return struct.pack(order + "IIQQQQQQ", kind, 4, offset, base + offset, 0, length, length, 8)
        return struct.pack(order + "8I", kind, offset, base + offset, 0, length, length, 4, 8)

    body[header : header + 2 * program] = program_header(1, 0, len(body)) + program_header(2, dynamic, size)
    return bytes(body)
