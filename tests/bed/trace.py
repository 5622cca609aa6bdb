"""Which paths a process and its children ask the kernel for, by strace: for a test of what a warm start may touch, and for counts.

Counted are calls that name a path, and those that list a folder: what may become a question to a file server. What is asked of a
descriptor that is open already (fstat, read, mmap) is answered from what came with it.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import oci_hpc_hooks
from tests.bed import bed
from tests.bed.site import Site

_TRACED = "%file,open_tree,fsmount,move_mount,getdents64"
_DIRECTORY = r"(?P<fd>AT_FDCWD|\d+)<(?P<at>(?:[^>\\]|\\.)*)>"
_WITH_DIRECTORY = re.compile(rf'(?P<name>\w+)\({_DIRECTORY}, "(?P<path>(?:[^"\\]|\\.)*)"')
_PLAIN = re.compile(r'(?P<name>\w+)\("(?P<path>(?:[^"\\]|\\.)*)"')
_LIST = re.compile(rf"(?P<name>getdents64)\({_DIRECTORY}, .* = (?P<bytes>\d+)$")
_RESULT = re.compile(r" = (?P<fd>\d+)<(?P<path>(?:[^>\\]|\\.)*)>$")
#: What a call in a tree that is mounted nowhere yet has before its path.
UNMOUNTED = "(unmounted)"


@dataclass(frozen=True)
class Call:
    """One call. `path` is absolute; `there`: it was found; `opened`: the path of the descriptor that came of it, where one did, with
    symbolic links resolved."""

    name: str
    path: str
    there: bool
    opened: str = ""

    @property
    def opens(self) -> bool:
        """Whether a file server is asked to open something: not of a descriptor that is only a place (O_PATH, open_tree)."""
        return self.name in ("open", "openat", "openat2", "execve") and self.there


def command(output: Path) -> list[str]:
    """Words before a command, which is then traced, with its children, into files whose names begin with `output`."""
    return ["strace", "-ff", "-y", "-s", "4096", "-e", f"trace={_TRACED}", "-o", str(output)]


def read(output: Path) -> list[Call]:
    """All calls of the processes that were traced into `output`, those of each process in their order; the files are removed."""
    found = []
    for file in sorted(output.parent.glob(f"{output.name}.*")):
        found += parse(file.read_text(errors="replace").splitlines())
        file.unlink()
    return found


def parse(lines: Iterable[str]) -> list[Call]:
    """The calls in these lines of one process."""
    found = []
    unmounted: set[str] = set()  # descriptors that lie in such a tree
    for line in lines:
        match = _LIST.match(line) or _WITH_DIRECTORY.match(line) or _PLAIN.match(line)
        parts = match.groupdict() if match else {}
        result = _RESULT.search(line)
        in_tree = parts.get("fd") in unmounted
        if result:
            new_tree = line.startswith("fsmount(") or "OPEN_TREE_CLONE" in line
            (unmounted.add if new_tree or in_tree else unmounted.discard)(result["fd"])
        if parts.get("bytes") == "0" or not match:  # nothing more in that folder
            continue
        path = parts.get("path", "")
        if not path and "bytes" not in parts:  # the descriptor itself is meant
            continue
        absolute = os.path.normpath(os.path.join(parts.get("at") or "/", path))
        name = "O_PATH" if "O_PATH" in line else parts["name"]
        there = not line.endswith(("ENOENT (No such file or directory)", "ENOTDIR (Not a directory)"))
        found.append(Call(name, UNMOUNTED + absolute if in_tree else absolute, there, result["path"] if result else ""))
    return found


def kinds(calls: Iterable[Call], places: Mapping[str, str]) -> dict[str, list[Call]]:
    """The calls by the first of `places`, regular expressions, that their path begins with."""
    found: dict[str, list[Call]] = {}
    for call in calls:
        kind = next(kind for kind, pattern in places.items() if re.match(pattern, call.path))
        found.setdefault(kind, []).append(call)
    return found


# What a hook's calls are for, as `places` names it.
TREE, KERNEL, HOOK, PROFILES, PACKAGE, CONFIGURATION, INVENTORY, PLANS, LOG, MPI, ROOTFS, STORE, STATE, INTERPRETER, OTHER = (
    "the tree in memory", "the kernel's own file systems", "the hook's executable", "profiles", "the package's modules", "configuration",
    "inventory", "remembered plans", "log", "what is injected", "the container's root", "the image store", "the container's state",
    "interpreter and C library", "where profiles look for libraries",
)  # fmt: skip


def places(site: Site, account: bed.Account, libraries: Sequence[Path]) -> dict[str, str]:
    """Where a hook of this site finds what, for `kinds`; `libraries`: the folders of what it injects."""
    package = Path(oci_hpc_hooks.__file__).parent
    storage = account.folder / "storage"
    folders: dict[str, Sequence[Union[str, Path]]] = {
        KERNEL: ["/proc", "/sys", "/dev"],
        HOOK: [site.hooks_dir],
        PROFILES: [package / "profiles.d", site.config_dir / "profiles.d"],
        PACKAGE: [package],
        CONFIGURATION: [site.config_dir],
        INVENTORY: [site.state_dir],
        PLANS: [site.cache_dir],
        LOG: [site.log_file.parent],
        MPI: libraries,
        ROOTFS: [storage / "overlay"],
        STORE: [storage / "overlay-images"],
        STATE: [storage / "overlay-containers", account.run_folder],
    }
    # Single files: the folders they lie in are also where profiles look for libraries.
    objects = r"/(usr/)?lib(64)?/(x86_64-linux-gnu/)?[^/]+\.so[^/]*$"
    interpreter = rf"{bed.BUILD}/venv|/usr/bin/|/usr/lib/python|/etc/ld\.so\.|/etc/localtime$|{objects}"
    return {
        TREE: re.escape(UNMOUNTED),
        **{kind: "|".join(rf"{re.escape(str(path))}(/|$)" for path in paths) for kind, paths in folders.items()},
        INTERPRETER: interpreter,
        OTHER: "/",
    }
