"""What belongs to glibc itself: one set with its loader, of which no part can be taken from elsewhere."""

from __future__ import annotations

import re

#: glibc's own sonames (its shlib-versions file), the loaders of all its architectures, and its NSS modules.
_C_RUNTIME = re.compile(
    r"(ld-linux|ld64|ld)([-.].*)?\.so\.\d+"
    r"|lib(c|m|mvec|pthread|dl|rt|resolv|util|anl|BrokenLocale|thread_db|c_malloc_debug|nss_.*)\.so\.\d.*"
    r"|libnsl\.so\.1"
)


def is_c_runtime(name: str) -> bool:
    """Whether a soname, or a path that ends in one, is of the family of libc and loader."""
    return _C_RUNTIME.fullmatch(name.rpartition("/")[2]) is not None
