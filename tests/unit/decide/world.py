"""A small language for images and nodes that exist only as facts, so that a decision can be tested without a file."""

from __future__ import annotations

import posixpath
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from oci_hpc_hooks.elf import ldcache
from oci_hpc_hooks.model import (
    CacheEntry,
    Container,
    Directory,
    ElfFacts,
    FileId,
    HostLibrary,
    ImageFacts,
    ImageFile,
    Inventory,
    LdCache,
    Mount,
    Plan,
    ResolvedProfile,
    Site,
    Watched,
)

LOADER = "/lib64/ld-linux-x86-64.so.2"
LIBC = "/lib64/libc.so.6"
DEFAULT_DIRS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
DEV = Mount("/dev", "tmpfs", "tmpfs", ("nosuid",))

MPICH = ("MPI_Init", "MPI_Send", "PMPI_Init", "MPIR_Err_return")
OPENMPI = ("MPI_Init", "MPI_Send", "ompi_mpi_comm_world")


def elf(soname: str = "", *, needed: Sequence[str] = (), verneed: Optional[Mapping[str, Sequence[str]]] = None, verdef: Sequence[str] = (),
        exports: Sequence[str] = (), imports: Sequence[str] = (), rpath: str = "", runpath: str = "", interp: str = "", machine: int = 62,
        elf_class: int = 2, dynamic: bool = True) -> ElfFacts:
    """ELF facts of an x86-64 shared object, or with ``interp`` of a program."""
    return ElfFacts(
        elf_class, True, machine, 3, dynamic, interp=interp, soname=soname, needed=tuple(needed),
        rpath=tuple(filter(None, rpath.split(":"))), runpath=tuple(filter(None, runpath.split(":"))),
        verneed=tuple((file, tuple(versions)) for file, versions in (verneed or {}).items()),
        verdef=tuple(verdef), exports=tuple(exports), imports=tuple(imports))


def program(*needed: str, imports: Sequence[str] = (), verneed: Optional[Mapping[str, Sequence[str]]] = None, rpath: str = "",
            runpath: str = "") -> ElfFacts:
    return elf(needed=(*needed, "libc.so.6"), imports=imports, verneed=verneed, rpath=rpath, runpath=runpath, interp=LOADER)


def glibc_versions(newest: int) -> Tuple[str, ...]:
    """What an x86-64 libc.so.6 of glibc 2.``newest`` defines."""
    return ("GLIBC_2.2.5", *(f"GLIBC_2.{minor}" for minor in range(3, newest + 1)), "GLIBC_PRIVATE")


def file_id(path: str) -> FileId:
    return FileId(inode=len(path) * 1000 + sum(path.encode()), size=4096, mtime_ns=1)


def gpu(*libraries: HostLibrary, name: str = "acme", problems: Sequence[str] = (), devices: Sequence[str] = ()) -> ResolvedProfile:
    return ResolvedProfile(f"site-{name}", {"gpu": name}, f"/etc/oci-hpc-hooks/profiles.d/site-{name}.json", libraries,
                           problems=tuple(problems), devices=tuple(devices),
                           names=tuple(library.name for library in libraries if library.role != "dependency"))


class Image:
    """An image of glibc 2.``glibc`` with an ordinary loader cache; files and links are added one by one."""

    def __init__(self, glibc: int = 36, *, machine: int = 62) -> None:
        self.files: Dict[str, ElfFacts] = {}
        self.links: Dict[str, str] = {}
        self.unreadable: Dict[str, str] = {}
        self.cached: List[str] = []  # paths that ldconfig has found
        self.default_dirs = DEFAULT_DIRS
        self.machine = machine
        self.loader = LOADER
        self.musl = ""
        self.has_cache = True
        self.cache_real = "/etc/ld.so.cache"
        self.drop_ins = "/etc/ld.so.conf.d"
        self.add(LOADER, elf("ld-linux-x86-64.so.2", machine=machine))
        self.add(LIBC, elf("libc.so.6", verdef=glibc_versions(glibc), machine=machine))

    def add(self, path: str, facts: ElfFacts, *, cached: bool = False) -> Image:
        self.files[path] = facts
        if cached:
            self.cached.append(path)
        return self

    def link(self, path: str, target: str) -> Image:
        self.links[path] = target
        return self

    def remove(self, path: str) -> Image:
        del self.files[path]
        return self

    def facts(self, *programs: str, library_path: Sequence[str] = (), looked_at: Iterable[str] = (), blind: Iterable[str] = (),
              entrypoint: str = "elf", empty_directories: Sequence[str] = ()) -> ImageFacts:
        """What gather() would find. ``looked_at``: directories searched beyond those that hold files; ``blind``: not looked at."""
        folders: Dict[str, List[str]] = {folder: [] for folder in (*self.default_dirs, *library_path, *looked_at)}
        for path in (*self.files, *self.links):
            folder, name = posixpath.split(path)
            folders.setdefault(folder, []).append(name)
        for folder in blind:
            del folders[folder]
        libc = self.files.get(LIBC)
        flags = ldcache.entry_flags(None, 62, 2)
        entries = [CacheEntry(posixpath.basename(path), path, flags) for path in self.cached]
        cache = ldcache.merge(LdCache((), generator="ldconfig"), entries)
        resolved = {path: path for path in self.files}
        resolved.update(self.links)
        return ImageFacts(
            libc=ImageFile(LIBC, file_id(LIBC), libc) if libc else None,
            loader=self.loader,
            musl=self.musl,
            default_dirs=self.default_dirs,
            library_path=tuple(library_path),
            cache=cache if self.has_cache else None,
            cache_path="/etc/ld.so.cache",
            cache_real=self.cache_real,
            cache_file=file_id("/etc/ld.so.cache") if self.cache_real else None,
            programs=programs,
            entrypoint=entrypoint,
            empty_directories=tuple(empty_directories),
            resolved=resolved,
            files={path: ImageFile(path, file_id(path), facts) for path, facts in self.files.items()},
            directories=tuple(Directory(folder, 7, 11 if names else 0, tuple(names)) for folder, names in folders.items()),
            unreadable=self.unreadable,
            drop_ins=self.drop_ins,
            conf=Watched("/etc/ld.so.conf", file_id("/etc/ld.so.conf")) if self.drop_ins else None,
        )


def host(path: str, facts: ElfFacts, role: str = "dependency", *, replaces: Sequence[str] = (), name: str = "") -> HostLibrary:
    return HostLibrary(name or posixpath.basename(path), path, path, role, tuple(replaces), file_id(path), facts)


def profile(*libraries: HostLibrary, mpi: str = "mpich", plugins: Sequence[HostLibrary] = (), problems: Sequence[str] = (),
            name: str = "") -> ResolvedProfile:
    return ResolvedProfile(name or f"site-{mpi}", {"mpi": mpi}, f"/etc/oci-hpc-hooks/profiles.d/site-{mpi}.json", libraries, tuple(plugins),
                           tuple(problems))


def inventory(*profiles: ResolvedProfile, site: Optional[Site] = None) -> Inventory:
    watched = {posixpath.dirname(plugin.path) for one in profiles for plugin in one.plugins}
    return Inventory(2, "2026-01-01T00:00:00Z", "x86_64", "2.36", site or Site(), profiles,
                     tuple(Watched(path, FileId(5, 4096, 9)) for path in sorted(watched)))


def container(*args: str, annotations: Optional[Mapping[str, str]] = None, labels: Optional[Mapping[str, str]] = None,
              manifest: Optional[Mapping[str, str]] = None, mounts: Sequence[Mount] = (DEV,), read_only: bool = False) -> Container:
    return Container(
        id="c1", bundle="/bundle", rootfs="/rootfs", args=args or ("/usr/bin/app",), env=(), cwd="/", mounts=tuple(mounts),
        annotations=dict(annotations or {}), labels=dict(labels or {}), manifest_annotations=dict(manifest or {}), read_only=read_only,
        image_id="1234")


# A site's MPICH with one dependency, and an image of an MPICH program.

SITE_MPI = "/opt/site/lib/libmpi.so.12"
SITE_FABRIC = "/opt/site/lib/libfabric.so.1"
IMAGE_MPI = "/usr/lib64/libmpi.so.12"
APP = "/usr/bin/app"


def site_mpi(*, needed: Sequence[str] = ("libfabric.so.1", "libc.so.6"), glibc: str = "GLIBC_2.17", exports: Sequence[str] = MPICH,
             rpath: str = "", runpath: str = "") -> HostLibrary:
    return host(SITE_MPI, elf("libmpi.so.12", needed=needed, exports=exports, verneed={"libc.so.6": [glibc]}, rpath=rpath, runpath=runpath),
                "replace", replaces=("libmpich.so.12",))


def site_fabric(*, verdef: Sequence[str] = ("FABRIC_1.0", "FABRIC_1.1"), glibc: str = "GLIBC_2.17",
                exports: Sequence[str] = ()) -> HostLibrary:
    return host(SITE_FABRIC, elf("libfabric.so.1", needed=("libc.so.6",), verdef=verdef, exports=exports, verneed={"libc.so.6": [glibc]}))


def mpich_image(glibc: int = 36) -> Image:
    image = Image(glibc)
    image.add(IMAGE_MPI, elf("libmpi.so.12", needed=("libc.so.6",), exports=MPICH), cached=True)
    return image.add(APP, program("libmpi.so.12", imports=("MPI_Init", "MPI_Send")))


def codes(plan: Plan) -> List[str]:
    return [finding.code for finding in plan.findings]
