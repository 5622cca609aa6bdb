"""What belongs to glibc itself: one set with its loader, of which no part can be taken from elsewhere."""

from __future__ import annotations

import re
from typing import Iterable, Sequence, Tuple

#: glibc's own sonames (its shlib-versions file), the loaders of all its architectures, and its NSS modules.
_C_RUNTIME = re.compile(
    r"(ld-linux|ld64|ld)([-.].*)?\.so\.\d+"
    r"|lib(c|m|mvec|pthread|dl|rt|resolv|util|anl|BrokenLocale|thread_db|c_malloc_debug|nss_.*)\.so\.\d.*"
    r"|libnsl\.so\.1"
)

_NSS_OF_OTHERS = re.compile(r"libnss_(?!(compat|db|dns|files|hesiod|nis|nisplus)\.so)")


def is_c_runtime(name: str) -> bool:
    """Whether a soname, or a path that ends in one, is of the family of libc and loader."""
    return _C_RUNTIME.fullmatch(name.rpartition("/")[2]) is not None


def is_part_of_glibc(name: str) -> bool:
    """The same without the NSS modules of others (libnss_systemd, libnss_sss), which are found beside glibc's."""
    return is_c_runtime(name) and _NSS_OF_OTHERS.match(name.rpartition("/")[2]) is None


#: The symbol version of what glibc's own files share with each other; any release may change what it stands for.
PRIVATE = "GLIBC_PRIVATE"


def uses_internals(verneed: Sequence[Tuple[str, Tuple[str, ...]]]) -> bool:
    """Whether a file with these needs works for sure only with the glibc that it was built with."""
    return any(PRIVATE in versions and is_c_runtime(file) for file, versions in verneed)


_RELEASE = re.compile(r"GLIBC_(\d{1,4}(\.\d{1,4})+)")
#: A version that is not named after the release that has it first.
_RELR = ("GLIBC_ABI_DT_RELR", "2.36")


def release_needed(needs: Iterable[Sequence[Tuple[str, Tuple[str, ...]]]]) -> str:
    """The first release, such as "2.34", that has every version that files with these needs take from glibc; "" if none is needed."""
    versions = {version for verneed in needs for file, versions in verneed if is_c_runtime(file) for version in versions}
    releases = [match.group(1) for match in map(_RELEASE.fullmatch, versions) if match]
    if _RELR[0] in versions:
        releases.append(_RELR[1])
    return max(releases, key=lambda release: [int(part) for part in release.split(".")], default="")
