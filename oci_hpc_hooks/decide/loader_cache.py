"""The generated ld.so.cache: what is in it, and whether it can be a file of the container's own. Pure.

While anything is mounted over /etc/ld.so.cache, ldconfig inside the container fails, and with it the installation of any package that has
a library. A file in the container's own writable layer is replaced by ldconfig like any other. So what ldconfig would write has to
serve as well: it is foretold here (glibc elf/ldconfig.c, elf/cache.c), and proved like the cache that is generated.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import replace
from typing import List, Sequence, Tuple

from oci_hpc_hooks.decide.choice import Choice
from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.model import CacheEntry, Container, DropIn, ImageFacts, LdCache

#: ldconfig's own, compiled into it as the cache's path is into the loader.
CACHE_PATH = "/etc/ld.so.cache"

#: ldconfig reads the files of a directory in their order, and where two directories have a name the first counts: the image's own
#: copies are the site's by being bound over, so they may come first, and what belongs to another MPI does.
DROP_IN = "zz-oci-hpc-hooks.conf"

_HEAD = "# Where ldconfig finds the libraries that oci-hpc-hooks brings; without them, of no effect.\n"

#: Paths that ld.so.conf can name: it knows no quotes, takes "#" for a comment and gives "=" and commas a meaning of their own.
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")


def without_ours(facts: ImageFacts, trees: Sequence[str]) -> ImageFacts:
    """The facts without what a start before this one left in the cache: it may be the same container's, or of an image made of one."""
    prefixes = tuple(f"{tree}/" for tree in trees)
    if facts.cache is None or not any(entry.path.startswith(prefixes) for entry in facts.cache.entries):
        return facts
    theirs = tuple(entry for entry in facts.cache.entries if not entry.path.startswith(prefixes))
    return replace(facts, cache=replace(facts.cache, entries=theirs))


def merged(facts: ImageFacts, choice: Choice, tree_root: str, *, stays: bool = False) -> LdCache:
    """The image's cache with an entry for every name of what is injected; they lead into the tree, where ``$ORIGIN`` is right.

    A name that leads to a copy of another MPI family keeps leading there: whoever asks for it means that one. Of a cache that ``stays``
    in the container's layer, so does a name of a copy that is bound over and lies where the loader looks by the cache alone: in an
    image made of that layer and started without hooks, it leads to the image's own again.
    """
    cache = facts.cache or LdCache(())
    others = {copy.path for copy in choice.others}
    own = {copy.path for _, copy in choice.in_place} if stays else set()
    theirs = {entry.name for entry in cache.entries
              if facts.resolved.get(entry.path) in others
              or (facts.resolved.get(entry.path) in own and posixpath.dirname(entry.path) not in facts.default_dirs)}
    return ldcache.merge(cache, [
        CacheEntry(name, tree_root + library.path, ldcache.entry_flags(cache, library.elf.machine, library.elf.elf_class))
        for name, library in choice.names.items() if name not in theirs
    ] + [CacheEntry(name, path, _flags(facts, cache, path)) for name, path in choice.own.items()])


def _flags(facts: ImageFacts, cache: LdCache, path: str) -> int:
    elf = facts.files[facts.resolved[path]].elf
    return ldcache.entry_flags(cache, elf.machine, elf.elf_class)


def obstacle(container: Container, facts: ImageFacts, choice: Choice, tree_root: str) -> str:
    """Why the cache cannot be a file of the container's own, "" if nothing that is known here speaks against it."""
    if container.read_only:
        return "its root filesystem is read-only"
    if not container.image_id:
        return "no engine has made it a layer of its own over an image"
    if facts.cache_path != CACHE_PATH:
        return f"its loader reads {facts.cache_path}, which no ldconfig writes"
    if facts.cache_real not in ("", facts.cache_path):
        return f"{facts.cache_path} is {facts.cache_real} there"
    if facts.conf is None:
        return "its /etc/ld.so.conf includes no directory that a line for the site's libraries could be added to"
    if choice.others:
        return f"to ldconfig, {choice.others[0].path} of another MPI would be the same library as the site's"
    strange = next((folder for folder in _folders(choice, tree_root) if not _PLAIN.fullmatch(folder)), "")
    return f"{strange} cannot be written into ld.so.conf" if strange else ""


def drop_in(facts: ImageFacts, choice: Choice, tree_root: str) -> DropIn:
    """The file by which ldconfig in the container comes to the tree."""
    assert facts.conf is not None  # else there was an obstacle
    lines = "".join(f"{folder}\n" for folder in _folders(choice, tree_root))
    return DropIn(f"{facts.drop_ins}/{DROP_IN}", _HEAD + lines, facts.conf)


def _folders(choice: Choice, tree_root: str) -> Tuple[str, ...]:
    own = map(posixpath.dirname, choice.own.values())
    return tuple(dict.fromkeys((*own, *(tree_root + posixpath.dirname(library.path) for library in choice.libraries))))


def rebuilt(facts: ImageFacts, choice: Choice, tree_root: str) -> LdCache:
    """The cache that ldconfig in the container would make, from the image's own and the libraries of the tree.

    Its names are sonames, whatever the files are called: of an image's ``libmpich.so.12`` that is the site's ``libmpi.so.12`` now, only
    the latter is left, and who asks for the former must find it without the cache. Which comes first, the tree or a copy that is bound
    over, in a directory that is a default one and stands in ld.so.conf too, is no matter: both are the site's file, and proved.
    """
    cache = facts.cache or LdCache(())
    bound = {copy.path: library for library, copy in choice.in_place}
    first: List[CacheEntry] = []
    last: List[CacheEntry] = []  # the default directories come after those of ld.so.conf
    for entry in cache.entries:
        library = bound.get(facts.resolved.get(entry.path, ""))
        if library is not None:
            entry = replace(entry, name=library.elf.soname or posixpath.basename(entry.path))
        (last if posixpath.dirname(entry.path) in facts.default_dirs else first).append(entry)
    for path in choice.own.values():
        soname = facts.files[facts.resolved[path]].elf.soname or posixpath.basename(path)
        first.append(CacheEntry(soname, f"{posixpath.dirname(path)}/{soname}", _flags(facts, cache, path)))
    for library in choice.libraries:
        name = library.elf.soname or posixpath.basename(library.path)
        flags = ldcache.entry_flags(cache, library.elf.machine, library.elf.elf_class)
        first.append(CacheEntry(name, f"{tree_root}{posixpath.dirname(library.path)}/{name}", flags))
    return replace(cache, entries=ldcache.arrange([*first, *last]))
