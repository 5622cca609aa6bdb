"""Step 5: the site's C runtime in place of an image's that is too old. Pure.

Loader and libraries take the place of every copy in the image, all or none of them: neither the tree nor the loader's cache may lead to
them, because with LD_LIBRARY_PATH naming a system directory a new loader would meet the old libc there, and every process would die.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Iterable, Iterator, List, Sequence, Set, Tuple

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.decide.choice import No, copies
from oci_hpc_hooks.decide.layers import host_file
from oci_hpc_hooks.decide.request import OVERRIDE
from oci_hpc_hooks.elf import glibc
from oci_hpc_hooks.model import NOTE, WARNING, Bystanders, ElfFacts, Finding, HostLibrary, ImageFacts, ImageFile, ResolvedProfile

Replaced = Tuple[Tuple[HostLibrary, ImageFile], ...]


def lay_over(facts: ImageFacts, runtime: ResolvedProfile) -> Tuple[ImageFacts, Replaced, List[Finding]]:
    """The image as it is with the site's C runtime in place, which files take the place of which, and what to know. Raises No."""
    if runtime.problems:
        raise _no(runtime, runtime.problems[0])
    by_path = {library.path: library for library in runtime.libraries}
    replaced = tuple((by_path[path], copy) for path, found in copies(runtime, facts).items() for copy in found)
    _must_be_newer(facts, runtime, replaced)
    files = {**facts.files, **{copy.path: replace(copy, elf=library.elf) for library, copy in replaced}}
    assert facts.libc is not None  # _must_be_newer
    over = replace(facts, files=files, libc=files[facts.libc.path], libc_version="")
    note = Finding(NOTE, "c-runtime", f"the image's glibc {abi.libc_version(facts)} is replaced by the site's {abi.libc_version(over)} of "
                   f"{runtime.source}: loader and libraries as one set, {len(replaced)} files")
    told = _notice(facts.bystanders, abi.libc_version(facts), abi.libc_version(over))
    return over, replaced, [note, *_left_behind(facts, {copy.path for _, copy in replaced}), *told]


def _no(runtime: ResolvedProfile, why: str) -> No:
    return No("c-runtime", f"the site's C runtime ({runtime.source}) cannot take its place: {why}",
              "bring the C library of a newer distribution (c_runtime in site.json)", "site admin", why)


def _must_be_newer(facts: ImageFacts, runtime: ResolvedProfile, replaced: Replaced) -> None:
    places = {copy.path for _, copy in replaced}
    loader = facts.resolved.get(facts.loader, "")
    if facts.libc is None or facts.libc.path not in places or loader not in places:
        raise _no(runtime, f"it has no counterpart of the image's {facts.loader if loader not in places else 'libc.so.6'}")
    for library, copy in replaced:
        lost = sorted({*copy.elf.verdef} - {*library.elf.verdef, glibc.PRIVATE}, key=abi.version_key)
        if lost:
            raise _no(runtime, f"its {library.name} lacks {lost[-1]}, which {copy.path} of the image has")


def _left_behind(facts: ImageFacts, places: Set[str]) -> Iterator[Finding]:
    """What shares internals with the image's own C runtime and stays, as getent and iconv do: mostly it works."""
    coupled = [path for path, file in sorted(facts.files.items())
               if path not in places and glibc.uses_internals(file.elf.verneed) and not host_file(path)]
    # Not always beside libc: before the /usr merge that was in /lib, and they in /usr/lib.
    coupled += [folder.path for folder in facts.directories if folder.names and posixpath.basename(folder.path) == "gconv"]
    if coupled:
        yield Finding(NOTE, "c-runtime-coupled", f"{some(coupled)} of the image were built with the C library that is replaced, share "
                      "internals with it, and may not work")


_ALLOW = ("give podman run --env GLIBC_TUNABLES=glibc.rtld.execstack=2, or clear the mark of the library where it comes from "
          "(patchelf --clear-execstack)")
#: glibc releases since which dlopen refuses a library that wants an executable stack, and ld.so without arguments ends with 1, not 127.
_NO_EXECSTACK, _OTHER_STATUS = "2.41", "2.33"


def _notice(around: Bystanders, old: str, new: str) -> Iterator[Finding]:
    """What of the image works otherwise, or not at all, with the new C library; each has been tried (tests/engine/test_c_runtime.py)."""
    if around.execstack and not _older(new, _NO_EXECSTACK):
        yield Finding(WARNING, "c-runtime-execstack", f"{some(around.execstack)} of the image: wants an executable stack; glibc {new} "
                      "loads such a library when a program starts, and refuses to open it later (dlopen, Python modules)",
                      remedy=_ALLOW, who="user")
    if around.static_nss:
        yield Finding(WARNING, "c-runtime-static", f"{some(around.static_nss)}: linked statically to a glibc before 2.34, and looks up "
                      f"users or hosts; for that it opens NSS modules, which now are those of glibc {new}, and crashes",
                      remedy="link it dynamically, or with glibc 2.34 or newer", who="image author")
    tools = []
    if around.linker:
        tools.append(f"{around.linker} links against the new C library, for which it must be of binutils 2.38 or newer, and what it makes "
                     "may need that library wherever it runs")
    if around.ldd and old and _older(old, _OTHER_STATUS) and not _older(new, _OTHER_STATUS):
        tools.append(f"{around.ldd} calls every program not dynamic (LD_TRACE_LOADED_OBJECTS=1 PROGRAM tells what it would)")
    if tools:
        remedy = f"build programs in a container with {OVERRIDE}" if around.linker else ""
        yield Finding(NOTE, "c-runtime-tools", "; ".join(tools), remedy=remedy, who="user" if remedy else "")


def must_be_openable(loaded: Iterable[Tuple[str, ElfFacts]], libc: str) -> None:
    """Raises No if dlopen of glibc ``libc`` would refuse what a module loads: it, or a library that it needs, wants an executable stack."""
    for path, elf in loaded:
        if elf.execstack and libc and not _older(libc, _NO_EXECSTACK):
            raise No("execstack", f"{path} wants an executable stack, and glibc {libc} opens no such library once a program runs", _ALLOW,
                     "user")


def _older(release: str, than: str) -> bool:
    return abi.version_key(release) < abi.version_key(than)


def some(paths: Sequence[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def must_not_be_coupled(loaded: Iterable[Tuple[str, ElfFacts]], replaced: Replaced) -> None:
    """Raises No if a program loads a file of the image (real path) that uses what the image's C library had and the site's has not."""
    places = {copy.path for _, copy in replaced}
    lost = {name for _, copy in replaced for name in copy.elf.exports} - {name for library, _ in replaced for name in library.elf.exports}
    for path, elf in loaded:
        used = sorted(lost.intersection(elf.imports))
        if used and path not in places:
            raise No("c-runtime-coupled", f"{path} of the image uses {used[0]} of the C library that the site's would replace, which that "
                     "does not have", f"take {path} out of the image, or rebuild the image on a newer distribution", "image author")
