"""What gather() finds in real trees with real ELF files, and what hostile trees can and cannot do to it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, Mapping, Sequence

import pytest

from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.elf import glibc
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.inputs import consumers, image, ldso
from oci_hpc_hooks.inputs import tree as reader
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import (
    PROVED,
    REFUSED,
    Container,
    Cpu,
    FileId,
    HostFile,
    ImageFacts,
    Mount,
    Newer,
    NewerLibrary,
    Request,
    ResolvedProfile,
    ResolvedSet,
    Watched,
    Wish,
)
from tests.unit.decide import world
from tests.unit.elf.elf_bed import IMAGES, build, cache_of, hwcaps_of_this_cpu, made_up
from tests.unit.elf.test_notes import OWNER, SECTION, with_note

LOADER = "/lib64/ld-linux-x86-64.so.2"
CATATONIT = Path("/usr/bin/catatonit")
STUB = "void MPI_Init(void) {} void MPIR_x(void) {}"
SITE = world.profile(
    world.site_mpi(), world.site_fabric(), plugins=[world.host("/opt/site/lib/mpich/libnet.so", world.elf("libnet.so"), "plugin")])


class Tree:
    """A root filesystem made of real files; the loader and the libc are the real ones of this machine."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for real in (LOADER, "/lib64/libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib64/libc.so.6"):
            if os.path.exists(real):
                self.copy(real, real)

    def at(self, path: str) -> Path:
        found = self.top / path.lstrip("/")
        found.parent.mkdir(parents=True, exist_ok=True)
        return found

    def copy(self, source: str, target: str) -> None:
        self.at(target).write_bytes(Path(source).read_bytes())
        self.at(target).chmod(0o755)

    def mpi(self, folder: str) -> str:
        build(self.at(f"{folder}/libmpi.so.12"), soname="libmpi.so.12", source=STUB)
        return f"{folder}/libmpi.so.12"

    def program(self, path: str, *needed: str, rpath: str = "", runpath: str = "") -> str:
        build(self.at(path), needed=needed, rpath=rpath, runpath=runpath, stub=STUB,
              source="extern void MPI_Init(void); int main(void) { MPI_Init(); return 0; }" if needed else "")
        return path

    def script(self, path: str, text: bytes) -> str:
        self.at(path).write_bytes(text)
        self.at(path).chmod(0o755)
        return path

    def gather(self, *args: str, env: Sequence[str] = (), cwd: str = "/", read_only: bool = False,
               profiles: Sequence[ResolvedProfile] = (SITE,), hwcaps: Sequence[str] = ()) -> ImageFacts:
        where = Container(
            id="c", bundle="/b", rootfs=str(self.top), args=args, env=tuple(env), cwd=cwd, mounts=(Mount("/dev", "tmpfs", "tmpfs"),),
            annotations={}, labels={}, manifest_annotations={}, read_only=read_only)
        with Root(os.open(self.top, os.O_PATH | os.O_DIRECTORY)) as root:
            return image.gather(root, where, profiles, hwcaps)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "root").mkdir()
    return Tree(tmp_path / "root")


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


def copies(facts: ImageFacts) -> List[str]:
    """The copies of MPI whose symbols were read: without these no family can be told."""
    return sorted(path for path, file in facts.files.items() if file.elf.soname == "libmpi.so.12" and "MPI_Init" in file.elf.exports)


# -------------------------------------------------------------------------------------------------------------------- copies

def test_of_what_a_variant_brings(tree: Tree) -> None:
    """Its closure may have libraries that the profile itself has not."""
    profile = world.profile(world.site_mpi())
    variant = dataclasses.replace(world.profile(world.site_mpi(), world.site_fabric(verdef=())), variant="el7")
    build(tree.at("/usr/lib/libfabric.so.1"), soname="libfabric.so.1", source="void fi_getinfo(void) {}")
    app = tree.program("/bin/app", "libmpi.so.12")
    assert not tree.gather(app, tree.mpi("/usr/lib"), profiles=[profile]).files["/usr/lib/libfabric.so.1"].elf.exports
    facts = tree.gather(app, profiles=[dataclasses.replace(profile, variants=(variant,))])
    assert "fi_getinfo" in facts.files["/usr/lib/libfabric.so.1"].elf.exports


def test_in_a_default_directory(tree: Tree) -> None:
    facts = tree.gather(tree.program("/bin/app", "libmpi.so.12"), tree.mpi("/usr/lib"))
    assert copies(facts) == ["/usr/lib/libmpi.so.12"]
    assert facts.resolved["/usr/lib/libmpi.so.12"] == "/usr/lib/libmpi.so.12"


def test_directories_of_a_set(tree: Tree) -> None:
    """What the image has of them, and where one could be made; ``/etc`` itself, which engines change at every start, is not watched."""
    module = world.host("/usr/lib/sets/modules/libx.so", world.elf("", needed=["libhelper.so.1"]), "plugin")
    files = [HostFile(path, path, world.file_id(path)) for path in ("/etc/set.d/x", "/no/such/set.d/x", "/etc/set.file/x")]
    one = ResolvedSet("set", "", ("libset.so.1",), (module,), tuple(files))
    profiles = [dataclasses.replace(world.profile(world.site_mpi()), sets=(one,))]
    app = tree.program("/bin/app", "libmpi.so.12")
    tree.mpi("/usr/lib")
    for path in ("/etc/set.file", "/usr/lib/sets/modules/libold.so", "/usr/lib/libhelper.so.1"):
        tree.at(path).touch()
    facts = tree.gather(app, profiles=profiles)
    assert facts.makeable == ("/etc/set.d",)
    found = {folder.path: folder for folder in facts.directories}
    assert found["/usr/lib/sets/modules"].names == ("libold.so",) and found["/etc/set.d"].inode == 0
    assert "/etc" not in found
    assert "/usr/lib/libhelper.so.1" in facts.resolved
    assert tree.gather(app, profiles=profiles, read_only=True).makeable == ()
    tree.at("/etc/set.d/old").touch()
    facts = tree.gather(app, profiles=profiles)
    assert facts.makeable == ()
    assert {folder.path: folder for folder in facts.directories}["/etc/set.d"].inode == os.stat(tree.at("/etc/set.d")).st_ino


@pytest.mark.parametrize("kind", ["rpath", "runpath"])
@pytest.mark.parametrize("written", ["/opt/mpi/lib", "$ORIGIN/../mpi/lib", "/opt/mpi/lib/"])
def test_in_a_path_of_the_program(tree: Tree, kind: str, written: str) -> None:
    copy = tree.mpi("/opt/mpi/lib")
    tree.program("/opt/bin/app", "libmpi.so.12", **{kind: written})
    assert copies(tree.gather("/opt/bin/app")) == [copy]


def test_what_the_image_has_for_the_sites_libraries_is_followed(tree: Tree) -> None:
    """No program of the image loads its libz, but the site's MPI will, and what that needs in turn must have been looked at."""
    build(tree.at("/usr/lib/libz.so.1"), soname="libz.so.1", needed=["libdeep.so.1"])
    build(tree.at("/usr/lib/libdeep.so.1"), soname="libdeep.so.1")
    tree.at("/etc/ld.so.conf").touch()
    subprocess.run(["/sbin/ldconfig", "-r", str(tree.top)], check=True, capture_output=True)
    mpi = world.site_mpi(needed=("libz.so.1", "libc.so.6"))
    facts = tree.gather(tree.program("/bin/app", "libmpi.so.12"), tree.mpi("/usr/lib"), profiles=[world.profile(mpi)])
    assert facts.resolved["/usr/lib/libdeep.so.1"] == "/usr/lib/libdeep.so.1"
    assert "/usr/lib/libdeep.so.1" in facts.files


def test_in_library_path(tree: Tree) -> None:
    copy = tree.mpi("/opt/x/lib")
    facts = tree.gather(tree.program("/bin/app", "libmpi.so.12"), env=["LD_LIBRARY_PATH=/nowhere:/opt/x/lib:"])
    assert copies(facts) == [copy]
    assert facts.library_path == ("/nowhere", "/opt/x/lib")


def test_beside_a_folder_of_path(tree: Tree) -> None:
    copy = tree.mpi("/opt/conda/lib")
    tree.at("/opt/conda/bin/x").touch()
    assert copies(tree.gather("/bin/none", env=["PATH=/opt/conda/bin:/bin"])) == [copy]


def test_in_the_cache(tree: Tree) -> None:
    copy = tree.mpi("/opt/cached")
    tree.at("/etc/ld.so.conf").write_text("/opt/cached\n")
    subprocess.run(["/sbin/ldconfig", "-r", str(tree.top)], check=True, capture_output=True)
    facts = tree.gather(tree.program("/bin/app", "libmpi.so.12"))
    assert copies(facts) == [copy]
    assert facts.cache is not None
    assert facts.cache == cache_of(str(tree.top))
    assert facts.cache_file is not None
    assert facts.cache_file.inode == tree.at("/etc/ld.so.cache").stat().st_ino


@pytest.mark.parametrize("text, folder", [
    ("include /etc/ld.so.conf.d/*.conf", "/etc/ld.so.conf.d"),
    ("include ld.so.conf.d/*.conf", "/etc/ld.so.conf.d"),  # from its own folder
    ("# a comment\n/opt/lib\n  include /etc/a.conf /etc/b/*  # both", "/etc/b"),
    ("# include /etc/ld.so.conf.d/*.conf", ""),
    ("include /etc/*/x.conf", ""),
    ("includes /etc/ld.so.conf.d/*.conf", ""),
    ("/opt/lib\n", ""),
    ("", ""),
])
def test_where_ldconfig_reads_more_directories(tree: Tree, text: str, folder: str) -> None:
    tree.at("/etc/ld.so.conf").write_text(text)
    facts = tree.gather("/bin/none")
    assert facts.drop_ins == folder
    status = tree.at("/etc/ld.so.conf").stat()
    assert facts.conf == (Watched("/etc/ld.so.conf", FileId(status.st_ino, status.st_size, status.st_mtime_ns)) if folder else None)


@pytest.mark.parametrize("hostile", ["fifo", "folder", "link", "loop", "giant", "bytes"])
def test_an_ld_so_conf_that_is_none(tree: Tree, hostile: str) -> None:
    path = tree.at("/etc/ld.so.conf")
    if hostile == "fifo":
        os.mkfifo(path)
    elif hostile == "folder":
        path.mkdir()
    elif hostile == "giant":
        path.write_text("include /etc/ld.so.conf.d/*.conf\n")
        os.truncate(path, 1 << 40)
    elif hostile == "bytes":
        path.write_bytes(b"include\n\xff\0 include\0")
    else:
        (tree.top.parent / "outside").write_text("include /etc/ld.so.conf.d/*.conf\n")
        path.symlink_to(tree.top.parent / "outside" if hostile == "link" else path)
    facts = tree.gather("/bin/none")
    assert (facts.drop_ins, facts.conf) == ("", None)


def test_in_a_path_of_a_library(tree: Tree) -> None:
    """As Spack installs: the program needs libhdf5, and that one needs libmpi from a third prefix."""
    copy = tree.mpi("/spack/mpich/lib")
    build(tree.at("/spack/hdf5/lib/libhdf5.so.1"), soname="libhdf5.so.1", needed=["libmpi.so.12"], runpath="/spack/mpich/lib", stub=STUB)
    facts = tree.gather(tree.program("/spack/app/bin/app", "libhdf5.so.1", runpath="/spack/hdf5/lib"))
    assert copies(facts) == [copy]


@pytest.mark.skipif(not hwcaps_of_this_cpu(), reason="glibc-hwcaps came with glibc 2.33")
@pytest.mark.parametrize(("level", "taken"), [
    ("x86-64-v3", "/opt/lib/glibc-hwcaps/x86-64-v3/libfast.so.1"), ("x86-64-v2", "/opt/lib/libfast.so.1"), ("", "/opt/lib/libfast.so.1"),
])
def test_what_the_loader_takes_by_the_processor(tree: Tree, level: str, taken: str) -> None:
    """And the proof finds that all its steps were looked at, also where a directory has no glibc-hwcaps."""
    tree.mpi("/usr/lib")
    tree.copy(LOADER, "/lib/ld-linux-x86-64.so.2")  # as a name of libc's DT_NEEDED
    for folder in ("", "/glibc-hwcaps/x86-64-v3"):
        build(tree.at(f"/opt/lib{folder}/libfast.so.1"), soname="libfast.so.1", options=["-Wl,-z,x86-64-v4"] if folder else [])
    facts = tree.gather(tree.program("/bin/app", "libmpi.so.12", "libfast.so.1", rpath="/opt/lib"), hwcaps=(level,) if level else ())
    assert facts.hwcaps == ((level,) if level else ())
    assert taken in facts.files and "/opt/lib/glibc-hwcaps" in {folder.path for folder in facts.directories}
    missing = [folder.path for folder in facts.directories if "/glibc-hwcaps/" in folder.path and not folder.inode]
    assert missing == []  # where a directory is known to have none, none is looked for
    node = replace(world.inventory(SITE), cpu=Cpu("zen3", "AuthenticAMD", "x86_64_v3", 7, (), {}))
    made = plan(world.container("/bin/app"), Request(mpi=Wish("mpich", "label", True)), node, facts)
    assert made.verdict == (REFUSED if "hwcaps" in taken else PROVED), made.findings
    if made.verdict == REFUSED:
        assert made.findings[-1].code == "cpu" and taken in made.findings[-1].what


@pytest.mark.parametrize(("versions", "looked"), [(["GLIBC_2.2.5", "GLIBC_2.99"], True), (["GLIBC_2.2.5"], False), ([], False)])
def test_bystanders_only_where_the_c_library_may_be_replaced(tree: Tree, versions: List[str], looked: bool) -> None:
    """And not what is loaded at the start, where an executable stack is still allowed."""
    tree.mpi("/usr/lib")
    for name in ("libstart.so.1", "liblater.so.1"):
        build(tree.at(f"/usr/lib/{name}"), options=["-Wl,-z,execstack"])
    libc = world.host("/opt/glibc/libc.so.6", world.elf("libc.so.6", verdef=versions), "runtime")
    runtime = ResolvedProfile("c-runtime", {}, "/opt/glibc", (libc,)) if versions else SITE
    program = tree.program("/bin/app", "libmpi.so.12", "libstart.so.1")
    facts = tree.gather(program, "/usr/lib/liblater.so.1", profiles=(SITE, runtime))
    assert facts.bystanders.execstack == (("/usr/lib/liblater.so.1",) if looked else ())


def test_static_programs_are_known(tree: Tree) -> None:
    """Not shared objects that are named as arguments."""
    build(tree.at("/bin/fixed"), options=["-static", "-nostdlib"], source="void _start(void) {}")
    facts = tree.gather("/bin/fixed", tree.mpi("/usr/lib"), tree.program("/bin/app", "libmpi.so.12"))
    assert facts.static_programs == ("/bin/fixed",)


@pytest.mark.parametrize("written", ["/opt/p/libmpi.so.12", "/none.so:/opt/p/libmpi.so.12", " /opt/p/libmpi.so.12 "])
def test_preloaded(tree: Tree, written: str) -> None:
    copy = tree.mpi("/opt/p")
    facts = tree.gather(tree.program("/bin/app"), env=[f"LD_PRELOAD={written}"])
    assert copies(facts) == [copy]
    assert copy in facts.preload


def test_a_second_name_and_another_version(tree: Tree) -> None:
    build(tree.at("/usr/lib/libmpi.so.12.1.8"), soname="libmpi.so.12", source=STUB)
    tree.at("/usr/lib/libmpi.so.12").symlink_to("libmpi.so.12.1.8")
    facts = tree.gather(tree.program("/bin/app", "libmpi.so.12"))
    assert copies(facts) == ["/usr/lib/libmpi.so.12.1.8"]
    assert facts.resolved["/usr/lib/libmpi.so.12"] == "/usr/lib/libmpi.so.12.1.8"


def test_what_the_image_has_for_the_sites_libraries(tree: Tree) -> None:
    """No program asks for it; the site's library does, and then its own needs are searched."""
    app = tree.program("/bin/app", "libmpi.so.12")
    tree.mpi("/usr/lib")
    build(tree.at("/usr/lib/libinner.so.1"), soname="libinner.so.1", needed=["libdeep.so.1"])
    build(tree.at("/usr/lib/libdeep.so.1"), soname="libdeep.so.1")
    facts = tree.gather(app, profiles=[world.profile(world.site_mpi(needed=("libinner.so.1",)))])
    assert facts.resolved["/usr/lib/libdeep.so.1"] == "/usr/lib/libdeep.so.1"
    assert facts.files["/usr/lib/libdeep.so.1"].elf.soname == "libdeep.so.1"


def test_what_orterun_opens_to_reach_pmix(tree: Tree) -> None:
    """It uses the internals of one PMIx, and nothing names it."""
    tree.mpi("/usr/lib")
    component = tree.at("/usr/lib/openmpi/lib/openmpi3/mca_pmix_ext3x.so")
    build(component, needed=["libpmix.so.2"], stub="void pmix_value_load(void) {}",
          source="extern void pmix_value_load(void); void f(void) { pmix_value_load(); }")
    path = "/usr/lib/openmpi/lib/openmpi3/mca_pmix_ext3x.so"
    assert tree.gather(tree.program("/bin/orterun")).files[path].elf.imports == ("pmix_value_load",)
    assert path not in tree.gather(tree.program("/bin/app", "libmpi.so.12")).files


def test_folders_for_modules_and_what_a_program_imports(tree: Tree) -> None:
    tree.mpi("/usr/lib")
    build(tree.at("/usr/lib/mpich/libnet.so"))
    facts = tree.gather(tree.program("/bin/app", "libmpi.so.12"))
    (folder,) = [folder for folder in facts.directories if folder.path == "/usr/lib/mpich"]
    assert folder.names == ("libnet.so",)
    assert (folder.inode, folder.mtime_ns) == (lambda status: (status.st_ino, status.st_mtime_ns))(tree.at("/usr/lib/mpich").stat())
    assert "MPI_Init" in facts.files["/bin/app"].elf.imports


def test_an_image_with_many_libraries_of_cxx(tree: Tree) -> None:
    """They need a library that the site's closure has too; only where that one has no versions do their symbols matter."""
    one = build(tree.at("/usr/lib/one.so"), needed=["libfabric.so.1"])
    names = [f"l{number}.so" for number in range(300)]
    for name in names:
        tree.at(f"/usr/lib/{name}").write_bytes(one.read_bytes())
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    many = made_up(strings=strings, tags=[(1, strings.index(name.encode() + b"\0")) for name in names])
    tree.at("/usr/lib/libmany.so").write_bytes(many)
    facts = tree.gather(tree.program("/bin/app", "libmany.so"))
    assert {f"/usr/lib/{name}" for name in names} <= set(facts.files)


# -------------------------------------------------------------------------------------------------------- loader and libc

def test_the_loaders_own_word(tree: Tree) -> None:
    facts = tree.gather(tree.program("/bin/app"))
    assert (facts.loader, facts.musl, facts.cache_path, facts.cache_real) == (LOADER, "", "/etc/ld.so.cache", "")
    assert facts.libc is not None
    diagnostics = subprocess.run([LOADER, "--list-diagnostics"], capture_output=True, text=True)
    if diagnostics.returncode == 0:  # since glibc 2.33
        said = [line.partition("=")[2].strip('"').rstrip("/") for line in diagnostics.stdout.splitlines() if "path.system_dirs" in line]
        assert list(facts.default_dirs) == said


def test_another_loader_with_another_cache(tree: Tree) -> None:
    """As in EESSI or Guix: the program names its own loader, and that one has its own paths."""
    other = "/compat/lib64/ld-linux-x86-64.so.2"
    data = Path(LOADER).read_bytes().replace(b"/etc/ld.so.cache\0", b"/cpt/ld.so.cache\0")
    tree.at(other).write_bytes(data)
    build(tree.at("/bin/app"), options=[f"-Wl,--dynamic-linker={other}"])
    facts = tree.gather("/bin/app")
    assert (facts.loader, facts.cache_path) == (other, "/cpt/ld.so.cache")


def other_loader(tree: Tree) -> str:
    other = "/compat/lib64/ld-linux-x86-64.so.2"
    tree.at(other).write_bytes(Path(LOADER).read_bytes().replace(b"/etc/ld.so.cache\0", b"/cpt/ld.so.cache\0"))
    return other


def test_the_loader_of_the_program_that_uses_mpi_counts(tree: Tree) -> None:
    """A launcher of the distribution's starts a program of a compatibility layer's, or the other way round."""
    other = other_loader(tree)
    tree.mpi("/usr/lib")
    for app_s, launcher_s, cache in ((other, LOADER, "/cpt/ld.so.cache"), (LOADER, other, "/etc/ld.so.cache")):
        app = str(tree.program("/bin/app", "libmpi.so.12"))
        for path, interp in ((app, app_s), ("/bin/launcher", launcher_s)):
            needed = ["libmpi.so.12"] if path == app else []
            build(tree.at(path), needed=needed, stub=STUB, options=[f"-Wl,--dynamic-linker={interp}"])
        facts = tree.gather("/bin/launcher", app)
        assert (facts.loader, facts.cache_path, facts.programs, facts.foreign) == (app_s, cache, (app,), ())


def test_programs_of_two_loaders_that_use_mpi(tree: Tree) -> None:
    other = other_loader(tree)
    tree.mpi("/usr/lib")
    tree.program("/bin/one", "libmpi.so.12")
    build(tree.at("/bin/two"), needed=["libmpi.so.12"], stub=STUB, options=[f"-Wl,--dynamic-linker={other}"])
    facts = tree.gather("/bin/one", "/bin/two")
    assert (facts.loader, facts.programs, facts.foreign) == (LOADER, ("/bin/one", "/bin/two"), ("/bin/two",))
    facts = tree.gather("/bin/none", env=["PATH=/bin"])  # neither is named: they are consumers
    assert (facts.loader, facts.consumers, facts.foreign) == (LOADER, ("/bin/one", "/bin/two"), ("/bin/two",))


def test_the_preload_file(tree: Tree) -> None:
    tree.at("/etc/ld.so.preload").write_text("/a.so:b.so # /c.so\n#d.so\n\n\te.so f.so")
    assert tree.gather("/bin/none", env=["LD_PRELOAD=x.so"]).preload == ("x.so", "/a.so", "b.so", "e.so", "f.so")
    for hostile in (b"\0", b"#" * 70_000, b"\xff\0/x"):
        tree.at("/etc/ld.so.preload").write_bytes(hostile)
        assert tree.gather("/bin/none").preload == ()
    tree.at("/etc/ld.so.preload").unlink()
    os.mkfifo(tree.at("/etc/ld.so.preload"))
    assert tree.gather("/bin/none").preload == ()


@pytest.mark.parametrize("place", [
    "tls", "tls/haswell/avx512_1/x86_64", "haswell", "xeon_phi", "glibc-hwcaps/x86-64-v4", "glibc-hwcaps/z13"])
def test_copies_for_some_processors(tree: Tree, place: str) -> None:
    """They are found whatever the node: what is found in place of another is a matter of processor and release."""
    copy = tree.mpi(f"/opt/lib/{place}")
    facts = tree.gather(tree.program("/bin/app"), env=["LD_LIBRARY_PATH=/opt/lib"])
    assert copies(facts) == [copy]


def test_no_glibc(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for path in tmp_path.rglob("lib*.so*"):
        path.unlink()
    tree.at(LOADER).unlink()
    facts = tree.gather("/bin/app")
    assert (facts.libc, facts.loader, facts.musl, facts.entrypoint) == (None, "", "", "missing")


@pytest.mark.parametrize(("name", "release"), [
    ("bookworm", "2.36"),
    ("bullseye", "2.31"),  # whose libc.so.6 defines no GLIBC_2.31
])
def test_real_images(name: str, release: str) -> None:
    top = IMAGES / name
    if not top.is_dir():
        pytest.skip(f"{top} is not built")
    tree = Tree.__new__(Tree)
    tree.top = top
    found = tree.gather("mpihello", env=["PATH=/usr/local/bin:/usr/bin:/bin"])
    assert found.libc is not None
    assert (abi.libc_version(found), found.entrypoint, found.loader) == (release, "elf", LOADER)
    assert found.default_dirs[0] == "/lib/x86_64-linux-gnu"
    assert [path for path, file in found.files.items() if file.elf.soname == "libmpich.so.12" and file.elf.exports]


RUNTIME = ResolvedProfile("c-runtime", {}, "/opt/glibc", tuple(
    world.host(f"/opt/glibc/{name}", world.elf(name, verdef=["GLIBC_2.99"]), "runtime")
    for name in ("ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6")))


@pytest.mark.parametrize("name", ["bookworm", "bullseye"])
def test_every_file_of_a_real_glibc(name: str) -> None:
    """Where the site may bring its own, what the image has of glibc is looked at, whatever of it the site has; and what leans on it."""
    if not (IMAGES / name).is_dir():
        pytest.skip(f"build/images/{name} is not built")
    tree = Tree.__new__(Tree)
    tree.top = IMAGES / name
    path = ["PATH=/usr/local/bin:/usr/bin:/bin"]
    facts = tree.gather("getent", "passwd", env=path, profiles=[SITE, RUNTIME])
    found = {facts.resolved[f"/{folder}/{file.name}"] for folder in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
             for file in (tree.top / folder).iterdir() if glibc.is_c_runtime(file.name)}
    assert len(found) > 10 and found <= {*facts.files}
    assert facts.resolved[LOADER] in found
    assert any(folder.path.endswith("/gconv") and len(folder.names) > 100 for folder in facts.directories)
    getent = facts.files["/usr/bin/getent"].elf
    assert facts.libc is not None and glibc.uses_internals(getent.verneed)
    assert "malloc" in facts.libc.elf.exports and getent.imports
    plain = tree.gather("getent", "passwd", env=path)
    assert not {*plain.files} >= found and plain.libc is not None and not plain.libc.elf.exports


def test_a_loader_that_no_program_of_the_command_line_names(tree: Tree) -> None:
    """Its copy must be the site's too, wherever the link leads."""
    tree.at("/opt/hidden/ld.so").write_bytes(tree.at(LOADER).read_bytes())
    tree.at(LOADER).unlink()
    tree.at(LOADER).symlink_to("/opt/hidden/ld.so")
    assert "/opt/hidden/ld.so" in tree.gather("/bin/none", profiles=[SITE, RUNTIME]).files


def test_a_real_musl_image() -> None:
    if not (IMAGES / "musl").is_dir():
        pytest.skip("build/images/musl is not built")
    tree = Tree.__new__(Tree)
    tree.top = IMAGES / "musl"
    facts = tree.gather("/bin/sh")
    assert (facts.loader, facts.libc) == ("", None)
    assert "/ld-musl-" in facts.musl


# ---------------------------------------------------------------------------------------------------------- the first program

def kind(facts: ImageFacts) -> tuple[str, tuple[str, ...]]:
    return facts.entrypoint, facts.programs


def static(tree: Tree, path: str) -> str:
    build(tree.at(path), options=["-static"])
    return path


def test_entrypoints(tree: Tree) -> None:
    tree.program("/usr/bin/app")
    tree.program("/bin/sh")
    static(tree, "/bin/still")
    tree.script("/bin/run", b"#!/bin/sh -e\nexec app\n")
    tree.script("/bin/lost", b"#!/bin/nothing\n")
    tree.script("/bin/env-run", b"#! /usr/bin/env python3\n")
    env = ["PATH=/usr/bin:/bin"]
    app, shell = "/usr/bin/app", "/bin/sh"
    for args, expected in [
        (["app"], ("elf", (app,))),
        (["/usr/bin/app", "-n", "3"], ("elf", (app,))),
        (["sh", "-c", "cd /tmp && exec app -v; app"], ("elf", (shell, app))),
        (["sh", "-c", "X=1 (app)"], ("elf", (shell, app))),
        (["lost"], ("script", ())),
        (["env-run"], ("script", ())),
        (["/bin/still"], ("static", ())),
        (["/bin/still", "-x"], ("static", ())),
        (["/bin/still", "--", "app"], ("elf", (app,))),
        (["nothing"], ("missing", ())),
        (["/usr"], ("missing", ())),
        ([], ("missing", ())),
        ([""], ("missing", ())),
    ]:
        assert kind(tree.gather(*args, env=env)) == expected, args


def test_a_script_is_a_script(tree: Tree) -> None:
    tree.program("/bin/sh")
    static(tree, "/bin/still")
    tree.script("/bin/run", b"#!/bin/sh -e\nexec app\n")
    assert kind(tree.gather("/bin/run")) == ("script", ("/bin/sh",))
    assert kind(tree.gather("/bin/still", "/bin/run")) == ("script", ("/bin/sh",))


def test_the_working_directory_and_links(tree: Tree) -> None:
    tree.program("/data/app")
    tree.at("/usr/bin/app").symlink_to("/data/app")
    tree.at("/usr/bin/up").symlink_to("../../../../../../data/app")
    for args, cwd in [(["./app"], "/data"), (["app"], "/"), (["up"], "/"), (["../data/app"], "/usr"), (["/usr/bin/app"], "/")]:
        assert kind(tree.gather(*args, env=["PATH=/usr/bin"], cwd=cwd)) == ("elf", ("/data/app",)), args


@pytest.mark.skipif(not CATATONIT.exists(), reason="catatonit is not installed")
def test_podmans_init_is_looked_through(tree: Tree) -> None:
    tree.copy(str(CATATONIT), "/dev/init")
    tree.program("/usr/bin/app")
    assert kind(tree.gather("/dev/init", "--", "app", env=["PATH=/usr/bin"])) == ("elf", ("/usr/bin/app",))


def test_a_command_line_without_end(tree: Tree) -> None:
    tree.program("/usr/bin/app")
    assert tree.gather("app", *["app app"] * 100_000).programs == ("/usr/bin/app",)


def test_a_command_line_of_several_lines(tree: Tree) -> None:
    tree.program("/usr/bin/app")
    tree.program("/bin/sh")
    assert kind(tree.gather("sh", "-c", "app\n")) == ("elf", ("/bin/sh", "/usr/bin/app"))


# ------------------------------------------------------------------------------------------------------------------- hostile

def test_scripts_that_name_nothing(tree: Tree) -> None:
    for text in (b"#!", b"#! ", b"#!\n", b"#!\0\0\0", b"#!/\n", b"#!" + b"a" * 5000, b"#!/bin/\xff\xfe\n"):
        assert kind(tree.gather(tree.script("/bin/run", text))) == ("script", ()), text


def test_a_script_with_an_empty_first_line(tree: Tree) -> None:
    assert kind(tree.gather(tree.script("/bin/run", b"#!\nfoo"))) == ("script", ())


@pytest.fixture
def canary(tree: Tree) -> Path:
    """A library outside of the root with the right name."""
    return build(tree.top.parent / "outside" / "libmpi.so.12", soname="libmpi.so.12", source=STUB)


@pytest.mark.parametrize("target", ["../../../../../../../../../{0}", "{0}", "/proc/self/cwd/{0}", "/proc/1/root/{0}"])
def test_nothing_outside_the_root_is_read(tree: Tree, canary: Path, target: str) -> None:
    os.utime(canary, ns=(1, 1))
    tree.at("/usr/lib/libmpi.so.12").symlink_to(target.format(canary))
    tree.at("/opt/lib").symlink_to(target.format(canary.parent))
    facts = tree.gather(tree.program("/bin/app", "libmpi.so.12", runpath="/opt/lib"), env=["LD_LIBRARY_PATH=/opt/lib:/proc/self/root"])
    assert copies(facts) == []
    assert str(canary) not in str(facts.files)
    assert os.stat(canary).st_atime_ns == 1


def test_a_root_that_holds_the_whole_path_again(tree: Tree, canary: Path) -> None:
    """An absolute link means the image's own file of that name."""
    inside = build(tree.at(str(canary)), soname="libmpi.so.12", source=STUB)
    tree.at("/usr/lib/libmpi.so.12").symlink_to(canary)
    assert copies(tree.gather("/bin/app")) == ["/" + str(inside.relative_to(tree.top))]


def test_names_that_are_no_files(tree: Tree) -> None:
    tree.at("/usr/lib/libmpi.so.12").mkdir()
    os.mkfifo(tree.at("/lib/libmpi.so.12"))
    tree.at("/a/libmpi.so.12").symlink_to("libmpi.so.12")
    tree.at("/b/libmpi.so.12").symlink_to("/c/libmpi.so.12")
    tree.at("/c/libmpi.so.12").symlink_to("/b/libmpi.so.12")
    tree.at("/d").symlink_to("/d")
    tree.at("/e/libmpi.so.12").write_bytes(os.urandom(5000))
    tree.at("/f/libmpi.so.12").write_bytes(b"\x7fELF" + os.urandom(5000))
    tree.at("/g/libmpi.so.12").write_bytes(b"")
    tree.at("/h").write_bytes(b"")
    os.mkfifo(tree.at("/bin/fifo"))
    began = time.process_time()
    facts = tree.gather("/bin/fifo", "/bin", env=["LD_LIBRARY_PATH=/a:/b:/c:/d:/e:/f:/g:/h"])
    assert copies(facts) == []
    assert facts.entrypoint == "missing"
    assert {"/e/libmpi.so.12", "/f/libmpi.so.12", "/g/libmpi.so.12"} <= set(facts.unreadable)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("content", ["sparse", "fifo", "directory", "garbage", "truncated"])
def test_caches_that_are_none(tree: Tree, content: str) -> None:
    cache = tree.at("/etc/ld.so.cache")
    if content == "sparse":
        with open(cache, "wb") as file:
            file.truncate(10 << 30)
    elif content == "fifo":
        os.mkfifo(cache)
    elif content == "directory":
        cache.mkdir()
    else:
        cache.write_bytes(os.urandom(10_000) if content == "garbage" else b"glibc-ld.so.cache1.1" + b"\xff" * 28)
    began = time.process_time()
    facts = tree.gather(tree.program("/bin/app"))
    assert facts.cache is None
    assert time.process_time() - began < 5


def test_giants_as_program_and_library(tree: Tree) -> None:
    for path in ("/bin/app", "/usr/lib/libmpi.so.12", LOADER):
        with open(tree.at(path), "wb") as file:
            file.write(b"\x7fELF\2\1\1" + bytes(9) + b"\3\0\x3e\0")
            file.truncate(10 << 30)
    began = time.process_time()
    facts = tree.gather("/bin/app")
    assert facts.default_dirs == ldso.DEFAULT_DIRS
    assert time.process_time() - began < 5


def test_a_directory_of_too_many_names(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "NAMES_LIMIT", 1000)  # making 200,000 files takes 10 s
    for number in range(1001):
        tree.at(f"/usr/lib/{number}").touch()
    with pytest.raises(ImageError, match="/usr/lib of the image has more than 1000 names"):
        tree.gather("/bin/app")


def test_a_loader_that_is_all_slashes(tree: Tree) -> None:
    tree.at(LOADER).write_bytes(b"/" * (1 << 20))
    began = time.process_time()
    tree.gather("/bin/app")
    assert time.process_time() - began < 1


def test_many_names_for_one_directory(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "ALL_NAMES_LIMIT", 10_000)  # a million names take seconds to make and to read
    folder = tree.at("/names/x").parent
    for number in range(300):
        (folder / f"{number}.so").touch()
    links = [f"/l/{number}" for number in range(40)]
    for link in links:
        tree.at(link).symlink_to("/names")
    tree.gather("/bin/app", env=["LD_LIBRARY_PATH=" + ":".join(links[:20])])
    with pytest.raises(ImageError, match="more than 10000 names"):
        tree.gather("/bin/app", env=["LD_LIBRARY_PATH=" + ":".join(links)])


def test_a_library_in_too_many_directories(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "HOMES_LIMIT", 64)  # the real one takes long
    homes = [f"/opt/{number}" for number in range(70)]
    first = tree.mpi(homes[0])
    for home in homes[1:]:
        os.link(tree.at(first), tree.at(f"{home}/libmpi.so.12"))
    with pytest.raises(ImageError, match="more than 64 directories with copies"):
        tree.gather("/bin/app", env=["LD_LIBRARY_PATH=" + ":".join(homes)])


def as_nobody(tree: Tree, args: Sequence[str], env: Mapping[str, str]) -> str:
    """gather() by a user who may not look everywhere, as a rootless hook in somebody else's volume."""
    code = """
        import os, sys
        from oci_hpc_hooks.inputs import image, scan
        from oci_hpc_hooks.linux.paths import Root
        from oci_hpc_hooks.model import Container
        os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        where = Container("c", "/b", sys.argv[1], tuple(sys.argv[3:]), (sys.argv[2],), "/", (), {}, {}, {})
        facts = image.gather(Root(os.open(sys.argv[1], os.O_PATH)), where, [])
        print(facts.entrypoint)
    """
    (variable,) = [f"{key}={value}" for key, value in env.items()]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tree.top), variable, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Tree]:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody who may not look")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Tree(Path(folder))


def test_a_user_can_look(public: Tree) -> None:
    assert as_nobody(public, [public.program("/bin/app")], {"PATH": "/bin"}) == "elf"


@pytest.mark.parametrize("mode", [0o711, 0o700])
def test_a_directory_that_may_not_be_listed(public: Tree, mode: int) -> None:
    public.at("/software/lib/x").parent.chmod(mode)
    public.program("/bin/app")
    assert as_nobody(public, ["/bin/app"], {"LD_LIBRARY_PATH": "/software/lib"}) == "elf"


def test_a_program_that_may_only_be_run(public: Tree) -> None:
    public.at(public.program("/bin/app")).chmod(0o711)
    assert as_nobody(public, ["/bin/app"], {"PATH": "/bin"}) in ("missing", "static")


# ------------------------------------------------------------------------------------------------------- read-only and empty

@pytest.mark.parametrize("read_only", [True, False])
def test_places_for_the_tree_on_a_read_only_root(tree: Tree, read_only: bool) -> None:
    tree.at("/mnt/file").touch()
    tree.at("/srv/x").parent.rmdir() if tree.at("/srv/x").parent.exists() else None
    tree.at("/srv").mkdir()
    tree.at("/opt").symlink_to("/srv")
    tree.at("/media").write_bytes(b"")
    assert tree.gather("/bin/app", read_only=read_only).empty_directories == (("/srv", "/opt") if read_only else ())


def test_the_same_tree_gives_the_same_facts(tree: Tree) -> None:
    for folder in ("/usr/lib", "/opt/a", "/opt/b"):
        tree.mpi(folder)
    program = tree.program("/bin/app", "libmpi.so.12", runpath="/opt/a")

    assert tree.gather(program, env=["LD_LIBRARY_PATH=/opt/b"]) == tree.gather(program, env=["LD_LIBRARY_PATH=/opt/b"])


# -------------------------------------------------------------------------------------------------------------------- consumers

def test_what_uses_mpi_where_the_program_does_not(tree: Tree) -> None:
    tree.mpi("/usr/lib")
    shell = tree.program("/bin/shell")
    app = tree.program("/usr/local/bin/app", "libmpi.so.12")
    source = "extern void MPI_Init(void); void f(void) { MPI_Init(); }"
    build(tree.at("/usr/lib/libsolver.so.3"), needed=["libmpi.so.12"], stub=STUB, source=source)
    module = "/usr/local/lib/python3.11/site-packages/mpi4py/MPI.cpython-311-x86_64-linux-gnu.so"
    build(tree.at(module), needed=["libmpi.so.12"], stub=STUB, source=source)
    deep = "/usr/lib/python3/dist-packages/pkg/lib/arch/PETSc.cpython-311-x86_64-linux-gnu.so"
    build(tree.at(deep), needed=["libmpi.so.12"], stub=STUB, source=source)
    path = ["PATH=/usr/local/bin:/usr/bin:/bin"]
    facts = tree.gather(shell, "-c", "sleep 100", env=path)
    assert facts.consumers == (app, "/usr/lib/libsolver.so.3", module, deep)
    assert facts.files[module].elf.imports == ("MPI_Init",)
    assert tree.gather(app, env=path).consumers == ()


def test_consumers_in_a_hostile_image(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.mpi("/usr/lib")
    shell = tree.program("/bin/shell")
    app = tree.program("/usr/bin/app", "libmpi.so.12")
    folder = tree.at("/usr/bin/x").parent
    for number in range(50):
        os.link(tree.at(app), folder / f"link{number}")  # one file, whatever its names
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "out").symlink_to("/../../../../../../usr/bin/env")
    (folder / "garbage").write_bytes(b"\x7fELF" + bytes(100))
    tree.at("/usr/lib/python3.11/site-packages/x").parent.mkdir(parents=True, exist_ok=True)
    tree.at("/usr/lib/python3.11/site-packages/again").symlink_to(".")
    facts = tree.gather(shell, env=["PATH=/usr/bin:/bin"])
    assert facts.consumers == ("/usr/bin/app",)
    monkeypatch.setattr(consumers, "FILES_LIMIT", 0)
    assert tree.gather(shell, env=["PATH=/usr/bin:/bin"]).consumers == ()


def test_links_without_end_to_one_large_directory(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read twice, and yet each name would have to be looked up below each link."""
    monkeypatch.setattr(consumers, "NAMES_LIMIT", 500)
    tree.mpi("/usr/lib")
    shell = tree.program("/bin/shell")
    large = tree.at("/large/x").parent
    for number in range(200):
        (large / f"pkg{number}").symlink_to("/large")
    packages = tree.at("/usr/lib/python3.11/site-packages/x").parent
    for number in range(200):
        (packages / f"link{number}").symlink_to("/large")
    looked: List[str] = []
    find = Root.find

    def counted(self: Root, path: str) -> int:
        looked.append(path)
        return find(self, path)

    monkeypatch.setattr(Root, "find", counted)
    assert tree.gather(shell, env=["PATH=/usr/bin:/bin"]).consumers == ()
    assert len(looked) < 1500


# ------------------------------------------------------------------------------------------------- a newer driver in the image

NEWER = Newer("/usr/local/acme/compat/libacme.so.*.*", SECTION, OWNER, "driver")


def newer_of(tree: Tree) -> Sequence[NewerLibrary]:
    return tree.gather("/bin/app", profiles=[dataclasses.replace(world.gpu(), newer=NEWER)]).newer[NEWER.file]


def compat(tree: Tree) -> Path:
    tree.at("/usr/local/acme-12/compat").mkdir(parents=True)
    tree.at("/usr/local/acme").symlink_to("acme-12")
    return tree.at("/usr/local/acme-12/compat")


@pytest.mark.parametrize(("text", "supports"), [
    (b'{"format": 1, "driver": [535, 550]}', (535, 550)), (b'{"driver": []}', ()), (b'{"driver": ["535"]}', None), (b"[535]", None),
    (b'{"driver": 535}', None), (b'{"driver": [true]}', None), (b"{", None), (b"[" * 20_000, None), (b"", None),
])
def test_a_newer_library_and_its_note(tree: Tree, text: bytes, supports: object) -> None:
    folder = compat(tree)
    with_note(folder / "libacme.so.550.54", text=text)
    (folder / "libacme.so.1").symlink_to("libacme.so.550.54")
    (found,) = newer_of(tree)
    assert (found.path, found.supports) == ("/usr/local/acme/compat/libacme.so.550.54", supports)


def test_a_newer_library_without_a_note(tree: Tree) -> None:
    build(compat(tree) / "libacme.so.550.54", source="void acme(void) {}")
    assert [found.supports for found in newer_of(tree)] == [None]


def test_what_is_no_newer_library(tree: Tree) -> None:
    """Nothing outside of the image is looked at, and nothing that is no library counts."""
    assert list(newer_of(tree)) == []
    folder = compat(tree)
    build(folder / "libacme.so.1", source="void acme(void) {}")
    os.mkfifo(folder / "libacme.so.550.1")
    (folder / "libacme.so.550.2").mkdir()
    (folder / "libacme.so.550.3").write_text("no library")
    outside = with_note(tree.top.parent / "libacme.so.550.4")
    (folder / "libacme.so.550.4").symlink_to(outside)
    (folder / "libacme.so.550.5").symlink_to("../../../../../../../../../.." + str(outside))
    assert list(newer_of(tree)) == []


def test_what_cannot_be_read_this_time_is_kept_in_mind(tree: Tree) -> None:
    """The start of a process's memory is a regular file for stat(2), of which nothing is mapped: EIO. What is no ELF file stays so."""
    tree.at("/lib/none.so").write_bytes(b"text")
    for top, path, missed in ((f"/proc/{os.getpid()}", "/mem", "Input/output error"), (str(tree.top), "/lib/none.so", ""),
                              (str(tree.top), "/gone", "")):
        with Root(os.open(top, os.O_PATH | os.O_DIRECTORY)) as root:
            looked = reader.Tree(root)
            assert looked.facts(path) is None and path in looked.unreadable
            assert missed in root.missed and bool(root.missed) == bool(missed)
            assert ldso.drop_ins(root) == ("", None)
