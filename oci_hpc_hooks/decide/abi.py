"""The ABI ladder's single steps: pure functions over ELF facts (DESIGN: decide from ELF, not from file names)."""

from __future__ import annotations

from typing import Iterable, Optional, Tuple

from oci_hpc_hooks.model import ElfFacts, ImageFacts

MACHINES = {3: "i386", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86-64", 183: "aarch64", 243: "riscv64", 258: "loongarch64"}

def kind(elf: ElfFacts) -> Tuple[int, bool, int]:
    """What must be equal for two files to meet in one process: class, byte order, machine."""
    return elf.elf_class, elf.little_endian, elf.machine


def describe_kind(elf: ElfFacts) -> str:
    """ "64-bit x86-64", for people."""
    return f"{32 * elf.elf_class}-bit {MACHINES.get(elf.machine, f'machine {elf.machine}')}"


def version_key(version: str) -> Tuple[Tuple[int, str], ...]:
    """Orders versions such as GLIBC_2.9 and GLIBC_2.38 by their numbers."""
    return tuple((int(part), "") if _number(part) else (-1, part) for part in version.replace("_", ".").split("."))


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def newest(versions: Iterable[str], prefix: str) -> str:
    """The highest version that starts with ``prefix`` and goes on with a number; "" if there is none."""
    numbered = [version for version in versions if version.startswith(prefix) and _number(version[len(prefix):len(prefix) + 1])]
    return max(numbered, key=version_key, default="")


def libc_version(facts: ImageFacts) -> str:
    """The image's glibc version ("2.36"), as its libc.so.6 says or by the newest version that defines; "" if it is no glibc."""
    if facts.libc is None:
        return ""
    return facts.libc_version or newest(facts.libc.elf.verdef, "GLIBC_").partition("_")[2]


#: The glibc release since which dlopen refuses a library that wants an executable stack.
NO_EXECSTACK = "2.41"


def refuses_execstack(facts: ImageFacts) -> bool:
    """Whether the image's glibc opens no library that wants an executable stack once a program runs."""
    return bool(libc_version(facts)) and version_key(libc_version(facts)) >= version_key(NO_EXECSTACK)


HOST = "host"
IMAGE = "image"


def provider(host: ElfFacts, image: ElfFacts, users: Iterable[ElfFacts]) -> Tuple[Optional[str], str]:
    """Whose copy of a shared dependency both sides are to use, decided by versions and symbols; (None, why) if neither serves.

    With symbol versions the larger set wins. Without, the host's closure was built against the host's copy, so that one wins if it
    has every symbol that ``users``, the files of the image that stay, take from the image's copy.
    """
    if host.verdef and image.verdef:
        missing = sorted({*image.verdef} - {*host.verdef}, key=version_key)
        if not missing:
            return HOST, ""
        if {*host.verdef} <= {*image.verdef}:
            return IMAGE, ""
        return None, f"the site's copy lacks {missing[-1]} that the image's has, and the image's lacks versions that the site's has"
    offered = {*image.exports}
    for user in users:
        lost = sorted((offered & {*user.imports}) - {*host.exports})
        if lost:
            return None, f"{user.soname or 'a program of the image'} uses {lost[0]}, which the site's copy does not have"
    return HOST, ""
