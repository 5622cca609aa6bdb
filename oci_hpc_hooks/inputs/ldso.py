"""What the loader of a container's tree goes by: what is compiled into it, its cache, its configuration, the C library beside it."""

from __future__ import annotations

import os
import posixpath
import re
from typing import List, Optional, Sequence, Tuple

from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.errors import ImageError, KernelError
from oci_hpc_hooks.inputs.tree import Tree
from oci_hpc_hooks.linux.paths import Root, read_bounded
from oci_hpc_hooks.model import FileId, ImageFile, LdCache, Watched

PRELOAD_LIMIT = 64 << 10  # /etc/ld.so.preload has a line
CACHE_LIMIT = 64 << 20  # a node with 10,000 libraries has a cache of 1 MB
CONF_LIMIT = 64 << 10  # ld.so.conf is a line or a few
LOADER_LIMIT = 8 << 20  # ld.so is 0.2 to 0.3 MB
LIBC_LIMIT = 32 << 20  # libc.so.6 has 2 MB

CACHE_PATH = "/etc/ld.so.cache"
PRELOAD_PATH = "/etc/ld.so.preload"
CONF_PATH = "/etc/ld.so.conf"

#: Where ld.so looks last if it does not say so itself.
DEFAULT_DIRS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")

_BANNER = re.compile(rb"GNU C Library [\x20-\x7e]{0,100}release version (\d{1,3}\.\d{1,3})")
_SYSTEM_DIR = re.compile(rb"/[\x21-\x7e]{1,200}/")
_CACHE_NAME = b"ld.so.cache"


def constants(tree: Tree, interp: str) -> Tuple[str, Tuple[str, ...]]:
    """The cache's path and the default directories, as compiled into the loader: distributions, Nix, Guix and EESSI differ."""
    real = tree.resolve(interp) if interp else ""
    data = b""
    if real:
        try:
            data = tree.root.read(real, LOADER_LIMIT) or b""
        except (ImageError, OSError) as error:
            tree.root.miss(real, error)
            data = b""
    return _compiled_cache_path(data) or CACHE_PATH, _compiled_dirs(data) or DEFAULT_DIRS


def _compiled_cache_path(data: bytes) -> str:
    """The absolute path ending in ld.so.cache among the strings of a loader, "" if there is none."""
    end = data.find(_CACHE_NAME + b"\0")
    if end < 0:
        return ""
    name = data[data.rfind(b"\0", 0, end) + 1:end + len(_CACHE_NAME)]
    return os.fsdecode(name) if name.startswith(b"/") and len(name) < 256 else ""


def _compiled_dirs(data: bytes) -> Tuple[str, ...]:
    """The system directories in a loader: the first run of at least two strings of the form /…/ (glibc's system_dirs)."""
    run: List[str] = []
    at = data.find(b"/\0/")
    if at < 0:
        return ()
    start = data.rfind(b"\0", 0, at) + 1
    for name in data[start:start + 4096].split(b"\0"):
        if not _SYSTEM_DIR.fullmatch(name):
            break
        run.append(os.fsdecode(name).rstrip("/"))
    return tuple(run) if len(run) > 1 else ()


def preload_file(root: Root) -> Tuple[str, ...]:
    """What /etc/ld.so.preload names; ld.so goes on without one that it cannot read (elf/rtld.c)."""
    try:
        text = os.fsdecode(root.read(PRELOAD_PATH, PRELOAD_LIMIT) or b"")
    except (ImageError, KernelError, OSError) as error:
        root.miss(PRELOAD_PATH, error)
        return ()
    lines = [line.partition("#")[0] for line in text.split("\n")]
    return tuple(name for name in re.split("[: \t\n]", " ".join(lines)) if name and "\0" not in name)


def read_cache(tree: Tree, real: str) -> Tuple[Optional[LdCache], Optional[FileId]]:
    """The loader cache at a real path, and which file that is; (None, file) where ld.so could make nothing of it."""
    fd = tree.root.open_regular(real) if real else -1
    if fd < 0:
        return None, None
    status = os.fstat(fd)
    file = FileId(status.st_ino, status.st_size, status.st_mtime_ns)
    try:
        return ldcache.parse(read_bounded(fd, real, CACHE_LIMIT)), file
    except ImageError as error:
        tree.unreadable[real] = error.what  # ld.so goes on without a cache then, and so do we
        return None, file
    finally:
        os.close(fd)


def drop_ins(root: Root) -> Tuple[str, Optional[Watched]]:
    """The directory that the image's ld.so.conf includes *.conf files of, as glibc's ldconfig reads it, and that file."""
    try:
        fd = root.open_regular(CONF_PATH)
        if fd < 0:
            return "", None
        try:
            status = os.fstat(fd)
            lines = read_bounded(fd, CONF_PATH, CONF_LIMIT).splitlines()
        finally:
            os.close(fd)
    except (ImageError, OSError) as error:
        root.miss(CONF_PATH, error)
        return "", None
    for line in lines:
        words = os.fsdecode(line.partition(b"#")[0]).split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                folder, name = posixpath.split(posixpath.join(posixpath.dirname(CONF_PATH), pattern))
                if name in ("*.conf", "*") and "*" not in folder:
                    return folder, Watched(CONF_PATH, FileId(status.st_ino, status.st_size, status.st_mtime_ns))
    return "", None


def libc(tree: Tree, cache: Optional[LdCache], default_dirs: Sequence[str]) -> Optional[ImageFile]:
    """The libc.so.6 that the loader would take for a program without paths of its own."""
    if cache is not None:
        for entry in cache.entries:
            if entry.name == "libc.so.6":
                real = tree.resolve(entry.path)
                if real and tree.facts(real) is not None:
                    return tree.files[real]
    for folder in default_dirs:
        real = tree.resolve(f"{folder}/libc.so.6")
        if real and tree.facts(real) is not None:
            return tree.files[real]
    return None


def libc_version(tree: Tree, libc: Optional[ImageFile]) -> str:
    """The version that a libc.so.6 prints when it is run; not every release has a symbol version of its own (2.31 has none)."""
    try:
        data = tree.root.read(libc.path, LIBC_LIMIT) if libc is not None else None
    except (ImageError, OSError) as error:
        tree.root.miss("libc.so.6", error)
        return ""
    found = _BANNER.search(data or b"")
    return found.group(1).decode() if found else ""
