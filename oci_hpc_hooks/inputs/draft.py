"""A profile drafted from an MPI library of this node, for an admin to edit.

It is the shipped profile of the library's family, narrowed to the directory of this one: what it calls itself, its bindings that lie
beside it, the directories of modules that are there. Whether it serves is what a scan says of it, and the scan is asked.
"""

from __future__ import annotations

import fnmatch
import json
import mmap
import os
import re
import stat
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from oci_hpc_hooks.elf import glibc, mpi
from oci_hpc_hooks.elf.scan import read_with_pyelftools
from oci_hpc_hooks.errors import ConfigError, UsageError
from oci_hpc_hooks.inputs import profiles, resources, scan, validate
from oci_hpc_hooks.inputs.site import Configuration
from oci_hpc_hooks.model import ElfFacts, Profile, ResolvedProfile, Site

#: What this is called in messages before it has a file.
DRAFT = "the draft"

#: Directories of modules beside the library that opens them.
MODULES = {"libuct.so.": "ucx", "libfabric.so.": "libfabric", "libibverbs.so.": "libibverbs"}

#: What a library or module of this name works with, besides the network: for the description only, no profile brings devices.
DEVICES = {
    "libcxi.": "/dev/cxi*",
    "libibverbs.": "/dev/infiniband",
    "libuct_ib": "/dev/infiniband",
    "libpsm2.": "/dev/hfi1_*",
    "libugni.": "/dev/kgni0",
    "libuct_ugni": "/dev/kgni0",
    "libxpmem.": "/dev/xpmem",
    "libuct_xpmem": "/dev/xpmem",
    "libuct_knem": "/dev/knem",
    "libcuda.": "/dev/nvidia*",
    "libcudart.": "/dev/nvidia*",
    "libuct_cuda": "/dev/nvidia*",
    "libuct_gdr_copy": "/dev/gdrdrv",
    "libhsa-runtime64.": "/dev/kfd and /dev/dri",
    "libamdhip64.": "/dev/kfd and /dev/dri",
    "libuct_rocm": "/dev/kfd and /dev/dri",
    "libze_loader.": "/dev/dri",
}

# Bounds. The largest MPI library in the field has some 100 MB and holds some 10,000 strings that start with a slash.
_MOST_BYTES = 512 << 20
_MOST_STRINGS = 100_000
_MOST_SIBLINGS = 256
_MOST_NAMES = 10_000
_MOST_PLUGINS = 32
_DESCRIPTION = 1000  # characters, by the schema

#: An absolute path without a colon that is a whole string of C.
_PATH = re.compile(rb"\0(/[\x21-\x39\x3b-\x7e]{2,1024})(?=\0)")


@dataclass(frozen=True)
class Draft:
    """A document that profile.schema.json admits, and what a scan of this node says of it."""

    document: Dict[str, Any]
    remarks: Tuple[str, ...]


@dataclass(frozen=True)
class _Library:
    path: str  # as the admin named it, absolute; its symbolic links are kept, for a path may stand for "the default version"
    elf: ElfFacts

    @property
    def name(self) -> str:
        return self.elf.soname or os.path.basename(self.path)


def draft(files: Sequence[str], name: str = "", library_path: Sequence[str] = ()) -> Draft:
    """A profile for the MPI library ``files[0]`` and further ones beside it, called ``name`` (default: ``site-`` and the family).

    ``library_path`` is the LD_LIBRARY_PATH of the environment that the library was made for: those of its directories that hold
    something it needs are searched too. Raises :class:`UsageError` for files that no profile can be drafted from, :class:`Invalid` if a
    path or the name is one that no profile may have.
    """
    first, *others = map(_read, files)
    home = os.path.dirname(first.path)
    for other in others:
        if os.path.dirname(other.path) != home:
            raise UsageError(f"{other.path} lies in another directory than {first.path}, and the libraries of one profile lie in one",
                             remedy="draft a profile of its own for it", who="user")
    family = mpi.family(first.elf)
    if not family:
        raise UsageError(f"{first.path} ({first.name}) is no MPI by the symbols that it exports, and a profile provides an MPI",
                         remedy="name the MPI library first; what it needs comes along by itself", who="user")
    model = _shipped(family)
    named = {library.name: library for library in (first, *others)}
    beside = {library.name: library for library in _bindings(first) if library.name not in named}
    libraries = [_entry(library, model, required=library.name in named) for library in {first.name: first, **named, **beside}.values()]
    document: Dict[str, Any] = {
        "$schema": "profile.schema.json",
        "version": 1,
        "name": name or f"site-{family}",
        "description": DRAFT,
        "provides": {"mpi": family},
        "libraries": libraries,
        "search": list(dict.fromkeys([home, *filter(os.path.isabs, map(os.path.normpath, filter(None, library_path)))])),
        "plugins": [],
        "immovable": list(model.immovable),
    }
    found, _ = _resolve(document)
    holding = [os.path.dirname(library.path) for library in found.libraries]
    document["search"] = [folder for folder in document["search"] if folder == home or folder in holding]
    document["plugins"], remarks = _plugins(home, model, found)
    found, said = _resolve(document)
    document["description"] = _description(first, family, found)
    validate.check(json.dumps(document).encode(), "profile", DRAFT)
    problems = profiles.semantic_problems(document, f"{document['name']}.json")
    if problems:
        raise validate.Invalid(problems)
    return Draft({key: value for key, value in document.items() if value != []}, (*remarks, *said))


def _resolve(document: Dict[str, Any]) -> Tuple[ResolvedProfile, List[str]]:
    """What a scan with this profile alone finds, and what it says that the admin has to know."""
    valid = validate.check(json.dumps(document).encode(), "profile", DRAFT)
    done = scan.scan(Configuration(Site(), (profiles.profile(valid, DRAFT),), ()))
    (found,) = done.inventory.profiles
    notes = sum(map(len, done.notes.values()))
    said = [f"not available on this node: {problem}" for problem in found.problems]
    if notes:
        said.append(f"the scan has {notes} notes on it, which oci-hpc-hooks scan --dry-run shows once it is on")
    return found, said


# ---------------------------------------------------------------------------------------------------------- the libraries

def _read(path: str) -> _Library:
    """A shared library of this node's own kind. Raises :class:`UsageError`."""
    path = os.path.abspath(path)
    if not path.isprintable():
        raise UsageError(f"{path!r} is no path that a profile can hold")
    try:
        status = os.stat(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", remedy="name a shared library of this node", who="user") from None
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is {'a directory' if stat.S_ISDIR(status.st_mode) else 'no regular file'}, not a shared library")
    with open(path, "rb") as file:
        head = file.read(4096)
    if not head.startswith(b"\x7fELF"):
        leads = re.search(rb"^\s*(?:GROUP|INPUT)\s*\(\s*(/[^\s)]+)", head, re.MULTILINE)
        if leads:
            raise UsageError(f"{path} is a script for the linker, not a shared library",
                             remedy=f"name the file that it leads to, {os.fsdecode(leads.group(1))}", who="user")
        raise UsageError(f"{path} is no ELF file, and a profile consists of shared libraries")
    try:
        elf = read_with_pyelftools(path, symbols=bool)
    except ConfigError as error:
        raise UsageError(error.what) from None
    own_class, own_machine = _machine("/proc/self/exe") or (0, 0)  # as the scan has it
    if (elf.elf_class, elf.machine) != (own_class, own_machine):
        raise UsageError(f"{path} is a {32 * elf.elf_class}-bit file for e_machine {elf.machine}, and this node's programs are "
                         f"{32 * own_class}-bit for e_machine {own_machine}", remedy="draft it on a node of its own kind", who="user")
    library = _Library(path, elf)
    if not elf.dynamic or elf.elf_type != 3 or (elf.interp and not elf.soname):
        raise UsageError(f"{path} is a program, not a shared library")
    if glibc.is_c_runtime(library.name):
        raise UsageError(f"{path} ({library.name}) belongs to the C runtime, which is never part of a profile",
                         remedy="c_runtime in site.json lets containers have the node's", who="site admin")
    return library


def _shipped(family: str) -> Profile:
    """The profile of the package for an MPI family."""
    for path in sorted(resources.PROFILES.glob("*.json")):
        document = validate.check(path.read_bytes(), "profile", str(path))
        if document.get("provides") == {"mpi": family}:
            return profiles.profile(document, str(path))
    raise ConfigError(f"this installation has no profile for the MPI family {family}", remedy="install it again", who="site admin")


def _bindings(first: _Library) -> Iterator[_Library]:
    """What lies beside an MPI and is linked to it under its name: the bindings for Fortran and C++."""
    home = os.path.dirname(first.path)
    for name in fnmatch.filter(_names(home), "libmpi*.so.*")[:_MOST_SIBLINGS]:
        try:
            library = _read(os.path.join(home, name))
        except UsageError:
            continue
        if library.elf.soname == name and first.name in library.elf.needed:
            yield library


def _entry(library: _Library, model: Profile, *, required: bool) -> Dict[str, Any]:
    """A library as a profile has it; under which other names images carry it, the shipped profile knows."""
    entry: Dict[str, Any] = {"soname": library.name, "role": "replace" if any(map(mpi.matters, library.elf.exports)) else "add"}
    names = [library.name]
    file = os.path.basename(library.path)
    if not file.startswith(library.name) and not library.name.startswith(file):
        names.append(file)  # a library of another soname under the name that programs ask for
    for known in model.libraries:
        if {known.soname, *known.replaces}.intersection(names):
            names += [known.soname, *known.replaces]
    aliases = list(dict.fromkeys(name for name in names if name != library.name))
    if aliases:
        entry["replaces"] = aliases
    if not required:
        entry["required"] = False
    home = os.path.dirname(library.path)
    found = next((path for name in (library.name, *aliases) if os.path.exists(path := f"{home}/{name}")), "")
    if os.path.realpath(found) != os.path.realpath(library.path):
        why = f"{found} is another file" if found else f"{home} has no file of that name"
        raise UsageError(f"{library.path} calls itself {library.name}, and {why}", who="site admin",
                         remedy=f"make {home}/{library.name} a link to it, as ldconfig -n {home} does")
    return entry


# ------------------------------------------------------------------------------------------------------------ the modules

def _plugins(home: str, model: Profile, found: ResolvedProfile) -> Tuple[List[str], List[str]]:
    """Directories of modules as a profile has them, and what is to be said of those whose path is written in a library."""
    folders = [written.replace("$ORIGIN", home) for written in model.plugins]
    for library in found.libraries:
        folders += [f"{os.path.dirname(library.path)}/{folder}" for soname, folder in MODULES.items() if library.name.startswith(soname)]
    remarks = []
    libraries = {os.path.dirname(path) for library in found.libraries for path in (library.path, library.real)}
    for library in found.libraries:
        prefix = os.path.dirname(os.path.dirname(library.real))
        for folder in _folders_named_in(library.real):
            # Of its own installation: what a copied library names may belong to another release.
            if folder.startswith(f"{prefix}/") and os.path.realpath(folder) not in libraries and _modules_in(folder, library.elf):
                folders.append(folder)
                remarks.append(f"{library.name} names the directory of modules {folder}; if it opens them by this path, it meets the "
                               "image's own there")
    there: Dict[str, str] = {}
    for folder in folders:
        if _modules_in(folder, found.libraries[0].elf):
            there.setdefault(os.path.realpath(folder), folder)
    kept = list(there.values())[:_MOST_PLUGINS]
    return [f"$ORIGIN{folder[len(home):]}" if folder.startswith(f"{home}/") else folder for folder in kept], remarks


def _folders_named_in(path: str) -> List[str]:
    """The existing directories among the strings of a file."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= _MOST_BYTES:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            texts = {match.group(1) for _, match in zip(range(_MOST_STRINGS), _PATH.finditer(data))}
    folders = sorted({os.path.normpath(os.fsdecode(text)) for text in texts})
    return [folder for folder in folders if not folder.startswith(("/proc/", "/sys/", "/dev/")) and os.path.isdir(folder)]


def _modules_in(folder: str, kind: ElfFacts) -> bool:
    """Whether a directory holds shared objects of this machine."""
    wanted = (kind.elf_class, kind.machine)
    return any(".so" in name and _machine(os.path.join(folder, name)) == wanted for name in _names(folder))


def _machine(path: str) -> Optional[Tuple[int, int]]:
    """ELF class and e_machine of a regular file, by its first bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        head = os.pread(fd, 20, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        return None
    return head[4], int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")


def _names(folder: str) -> List[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for _, entry in zip(range(_MOST_NAMES), entries))
    except OSError:
        return []


# -------------------------------------------------------------------------------------------------------- the description

def _description(first: _Library, family: str, found: ResolvedProfile) -> str:
    """One line for the admin: where it comes from, what comes along, and what devices that may want."""
    text = f"Drafted from {first.path}, an MPI of the family {family}"
    names = [library.name for library in (*found.libraries, *found.plugins)]
    devices = dict.fromkeys(device for name in names for prefix, device in DEVICES.items() if name.startswith(prefix))
    tail = f". Devices that these may want, and no profile brings: {', '.join(devices)}" if devices else ""
    closure = [library.name for library in found.libraries if library.role == "dependency"]
    return _shortened(text + ("; with it come " if closure else ""), closure, tail)


def _shortened(head: str, names: Sequence[str], tail: str) -> str:
    """Head, as many of the names as there is room for, tail."""
    for count in range(len(names), -1, -1):
        left = len(names) - count
        more = ([f"{left} more libraries"] if count == 0 else [f"and {left} more"]) if left else []
        text = head + ", ".join([*names[:count], *more]) + tail
        if len(text) <= _DESCRIPTION:
            return text
    return head[:_DESCRIPTION]
