"""The loader's simulation held against the real ld.so of every image, in real containers: each program of PATH, before an injection and
after one. What is compared is the order of the link map, the file chosen for each name, and every path tried on the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import pytest

from oci_hpc_hooks import cold
from oci_hpc_hooks.decide import abi, proof
from oci_hpc_hooks.elf import loader
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.inputs import image
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import PROVED, REFUSED, UNPROVED, Container, HostLibrary, ImageFacts, Inventory, Mount, Plan
from oci_hpc_hooks.report import Places
from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import MPICH5, OPENMPI5, TRIXIE, Site
from tests.engine.inside import assert_site
from tests.engine.test_c_runtime import TRIXIE_LIBC
from tests.unit.elf.elf_bed import facts_of, pairs, traced

#: Every image of the bed that has a glibc and an MPI; those that another test's images are made from say nothing more.
WITHOUT = ("musl", "static", "fabrics", "opencl-")
IMAGES = tuple(name for name in bed.IMAGES if not name.endswith("-nolabel") and not name.startswith(WITHOUT))
#: The others are for the long run; those of the matrix are built only for it.
QUICK = ("bookworm-mpich", "bullseye-mpich", "bookworm-openmpi")
#: Those without a shell get a static one.
SHELLLESS = ("distroless", "spack", "conda", "conda-openmpi")
SHELL = "/busybox"
#: With the places of programs whose libraries only search paths of their own lead to.
SPACK = "/opt/spack/linux-debian12-x86_64/gcc-12.2.0"
PATH = f"/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/opt/conda/bin:{SPACK}/mpihello-1.0-k7wd/bin:{SPACK}/mpich-4.0.3-b2xq/bin"
SYSTEM = "/nowhere:/usr/lib/x86_64-linux-gnu;/lib"
ASKS = "org.supercontainers.mpi"
#: What is mounted, by words that the shell itself knows.
MOUNTS = 'while read -r line; do echo "$line"; done </proc/self/mountinfo; '
SCRIPT = ': mpihello; for p in $PROGRAMS; do echo "=== $p"; LD_DEBUG=libs LD_TRACE_LOADED_OBJECTS=1 "$p" 2>&1 </dev/null; done'


# ------------------------------------------------------------------------------------------------ what the real one does

@dataclass(frozen=True)
class Said:
    """What ld.so says of one program."""

    loaded: list[tuple[str, str]]  # name asked for, path
    missing: list[str]
    tried: list[str]


def spoken(output: str) -> dict[str, Said]:
    found = {}
    output = re.sub("//+", "/", output)
    for part in output.split("=== ")[1:]:
        program, _, rest = part.partition("\n")
        loaded, missing = traced(rest)
        # Only this process's own words: a program that cannot be traced would run and start others.
        found[program] = Said(loaded, missing, re.findall(r"^ *\d+:\t  trying file=(.*)$", rest, re.MULTILINE))
    return found


def programs_in(root: Root) -> list[str]:
    """Real paths of the dynamic programs of PATH, without those that change user or group: with these ld.so hears nobody."""
    found = []
    for folder in PATH.split(":"):
        top = f"{root.prefix}{folder}"
        for name in sorted(os.listdir(top)) if os.path.isdir(top) else ():
            with contextlib.suppress(ImageError):
                fd = root.open_regular(f"{folder}/{name}")
                if fd < 0:
                    continue
                try:
                    if not os.fstat(fd).st_mode & (stat.S_ISUID | stat.S_ISGID) and facts_of(f"/proc/self/fd/{fd}").interp:
                        found.append(root.real(fd))
                finally:
                    os.close(fd)
    return [*dict.fromkeys(found)]


# ------------------------------------------------------------------------------------------------ what is simulated

class Laid(proof.View):
    """The image as plan() sees it, with a plan laid over it or as it is; notes what is looked at."""

    def __init__(self, facts: ImageFacts, plan: Optional[Plan], host: Mapping[str, HostLibrary]) -> None:
        tree = {f"{plan.tree_root}/{bind.target}": host[bind.source] for bind in plan.tree if bind.source in host} if plan else {}
        in_place = {bind.target: host[bind.source] for bind in plan.in_place} if plan else {}
        super().__init__(facts, plan.tree_root if plan else "", tree, in_place)
        libc = in_place.get(facts.libc.path) if facts.libc else None
        over = facts if libc is None else replace(facts, libc_version=abi.newest(libc.elf.verdef, "GLIBC_")[6:])
        self.search = proof.searches(over, plan.cache if plan else facts.cache)[0]
        self.tried: list[str] = []
        self.folders = {str(parent) for path in tree for parent in Path(path).parents}
        self.folders |= {folder.path for folder in facts.directories if folder.inode}

    def resolve(self, path: str) -> str:
        self.tried.append(path)
        return super().resolve(path)


def simulated(view: Laid, program: str) -> Said:
    view.tried.clear()
    link_map = loader.simulate(program, view, view.search)
    assert not link_map.broken and not view.unknown, view.unknown
    whole = {item.name for item in link_map.objects if item.name.startswith("/")}
    return Said(pairs(link_map), [name for name, _ in link_map.missing],
                [path for path in view.tried if path not in whole and path not in (program, link_map.objects[0].facts.interp)])


def assert_same(root: Root, view: Laid, real: dict[str, Said], programs: Sequence[str], least: int) -> None:
    """The simulation of each program is what its loader said."""
    def there(path: str) -> bool:
        """ld.so asks once in a directory that is not there, and then no more."""
        folder = os.path.dirname(path)
        if folder in view.folders:
            return True
        handle = root.find(folder)
        if handle >= 0:
            os.close(handle)
        return handle >= 0

    assert {*real} == {*programs} and len(programs) >= least, (len(real), len(programs))
    differ: list[tuple[object, ...]] = []
    for program in programs:
        ours = simulated(view, program)
        told = real[program]
        assert told.loaded, program
        if (ours.loaded, ours.missing) != (told.loaded, told.missing):
            differ.append((program, ours.loaded, told.loaded, ours.missing, told.missing))
        elif [*filter(there, ours.tried)] != [*filter(there, told.tried)]:
            differ.append((program, *([path for path in tried if there(path)] for tried in (ours.tried, told.tried))))
    assert not differ, f"{len(differ)} of {len(programs)} differ, such as {differ[0]}"


def container(root: Root, args: Sequence[str], env: Sequence[str], wish: str = "auto") -> Container:
    return Container(
        "c", "/b", root.prefix, tuple(args), (f"PATH={PATH}", *env), "/", (Mount("/dev", "tmpfs", "tmpfs"),), {ASKS: wish}, {}, {})


def decided(root: Root, args: Sequence[str], env: Sequence[str], node: Inventory) -> Plan:
    """The plan for whatever MPI the image has, asked for by its name: what is asked for explicitly is done or refused, never skipped."""
    plan, _ = cold.decide(container(root, args, env), root, node)
    if plan.profile:
        plan, _ = cold.decide(container(root, args, env, plan.profile), root, node)
    assert plan.verdict in (PROVED, UNPROVED) and plan.tree, plan.findings
    return plan


def views(root: Root, programs: Sequence[str], node: Inventory, env: Sequence[str],
          plan: Optional[Plan]) -> Iterator[tuple[Laid, list[str]]]:
    """As many programs at a time as one command line may name."""
    everything = [*node.profiles, *([node.c_runtime] if node.c_runtime else [])]
    host = {library.real: library for profile in everything for library in (*profile.libraries, *profile.plugins)}
    for start in range(0, len(programs), 100):
        some = [*programs[start:start + 100]]
        facts = image.gather(root, container(root, ["true", *some], env), everything, node.hwcaps)
        assert {*facts.programs} >= {*some}
        yield Laid(facts, plan, host), some


def node_of(site: Site) -> Inventory:
    return cold.node(Places(str(site.config_dir), str(site.state_dir), str(site.cache_dir), str(site.log_file)))


@contextlib.contextmanager
def tree_of(engine: Engine, name: str) -> Iterator[Root]:
    try:
        reference = engine.load(name)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    top = engine.podman("image", "mount", reference, check=True).stdout.strip()
    try:
        with Root(os.open(top, os.O_PATH | os.O_DIRECTORY)) as root:
            yield root
    finally:
        engine.podman("image", "unmount", reference, check=True)


# ------------------------------------------------------------------------------------------------ images of the bed

@pytest.fixture(scope="module")
def sites() -> Iterator[dict[str, Site]]:
    """Two sites: one whose MPIs run nearly everywhere, and one whose MPI needs its own C runtime."""
    folder = bed.scratch("loader-proof")
    made = {"plain": Site(folder / "plain"), "runtime": Site(folder / "runtime")}
    made["plain"].configure(search=[MPICH5], openmpi=[OPENMPI5])
    made["runtime"].configure(search=[TRIXIE], c_runtime={"search": [str(TRIXIE_LIBC)]})
    for site in made.values():
        site.scan()
        site.register()
    yield made
    shutil.rmtree(folder)


@pytest.mark.parametrize("library_path", ["", SYSTEM], ids=["plain", "library-path"])
@pytest.mark.parametrize(("kind", "name"), [
    *(pytest.param("plain", name, marks=() if name in QUICK else pytest.mark.long) for name in IMAGES),
    ("runtime", "bullseye-mpich"), pytest.param("runtime", "bookworm-mpich", marks=pytest.mark.long)])
def test_every_program(sites: dict[str, Site], kind: str, name: str, library_path: str) -> None:
    engine = Engine("crun", "root")
    site = sites[kind]
    env = [f"LD_LIBRARY_PATH={library_path}"] if library_path else []
    bare = name in SHELLLESS
    command = [*([SHELL] if bare else []), "sh", "-c", MOUNTS + SCRIPT]
    with tree_of(engine, name) as root:
        programs = programs_in(root)
        node = node_of(site)
        plan = decided(root, command, env, node)
        variables = [f"PATH={PATH}", f"PROGRAMS={' '.join(programs)}", *env]
        options = [*(f"--env={item}" for item in variables), f"--annotation={ASKS}={plan.profile}"]
        options += [f"--volume=/bin/busybox:{SHELL}:ro"] if bare else []
        ours = {plan.tree_root, *(bind.target for bind in plan.in_place)}
        for hooks_dir, laid in ((None, None), (site.hooks_dir, plan)):
            done = engine.run(name, *command, options=options, hooks_dir=hooks_dir)
            said = spoken(done.stdout)
            # That the host's files are there: in place they have the names of the image's, so what ld.so says does not tell.
            mounted = {line.split()[4] for line in done.stdout.partition("=== ")[0].splitlines()}
            assert ours & mounted == (ours if laid else set()), (done.stderr, site.last().stdout)
            for view, some in views(root, programs, node, env, laid):
                assert_same(root, view, {program: said[program] for program in some if program in said}, some, 1)
        assert len(programs) > (0 if bare else 100)


# ------------------------------------------------------------------------------------------------ other trees

def copy_to(path: Path, source: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)
    path.chmod(0o755)


def chrooted(top: Path, *command: str) -> None:
    subprocess.run(["/usr/sbin/chroot", str(top), *command], check=True, capture_output=True, timeout=60)


def real(top: Path, *paths: str) -> Path:
    """The file at the first of these paths below a root file system that is there; links may be absolute."""
    with Root(os.open(top, os.O_PATH | os.O_DIRECTORY)) as root:
        handle = next(handle for handle in map(root.find, paths) if handle >= 0)
        try:
            return Path(f"{top}{root.real(handle)}")
        finally:
            os.close(handle)


def library(top: Path, name: str) -> Path:
    return real(top, *(f"{folder.decode()}{name}" for folder in DEBIAN_DIRS))


LIBRARY_DIR = "usr/lib/x86_64-linux-gnu"
LOADER = "lib64/ld-linux-x86-64.so.2"
DEBIAN_DIRS = (b"/lib/x86_64-linux-gnu/", b"/usr/lib/x86_64-linux-gnu/", b"/lib/", b"/usr/lib/")
EVERYWHERE = ("glibc-hwcaps/x86-64-v4", "glibc-hwcaps/x86-64-v3", "glibc-hwcaps/x86-64-v2", "tls/x86_64", "tls", "haswell/x86_64", "x86_64",
              "xeon_phi", "avx512_1", ".")


def with_subdirectories(top: Path) -> list[str]:
    """A copy of the MPI, and of a library that it needs, in every subdirectory for some processors that any release ever had: in a
    directory of LD_LIBRARY_PATH, a default one, and one that only the cache knows."""
    for place in EVERYWHERE:
        for folder in ("opt/caps", "opt/cached", LIBRARY_DIR):
            for name in ("libmpich.so.12", "libz.so.1"):
                if folder != LIBRARY_DIR or place != ".":
                    copy_to(top / folder / place / name, library(top, name))
    (top / "etc/ld.so.conf.d/0-cached.conf").write_text("/opt/cached\n")
    chrooted(top, "ldconfig")
    return ["LD_LIBRARY_PATH=/opt/caps"]


def with_subdirectories_in_the_cache(top: Path) -> list[str]:
    with_subdirectories(top)
    return []


def with_a_preload_file(top: Path) -> list[str]:
    copy_to(top / "opt/pre/libz.so.1", library(top, "libz.so.1"))
    (top / "etc/ld.so.preload").write_text("/opt/pre/libz.so.1 # for /opt/none.so\n#\n\n\tlibm.so.6:/nowhere/x.so libnothing.so\n")
    return ["LD_PRELOAD=libz.so.1"]


def like_fedora(top: Path) -> list[str]:
    """Default directories /lib64 and /usr/lib64 as compiled into its loader, everything there, and no cache."""
    loader_ = real(top, f"/{LOADER}")
    (top / "usr/lib64").mkdir(exist_ok=True)
    for folder in ("lib/x86_64-linux-gnu", LIBRARY_DIR):
        for path in (top / folder).iterdir():
            if ".so" in path.name and not os.path.lexists(top / "usr/lib64" / path.name):
                (top / "usr/lib64" / path.name).symlink_to(f"/{folder}/{path.name}")
    # Of the same length, for that is compiled in as well.
    theirs = [name.ljust(len(old), b"/") for name, old in zip((b"/lib64", b"/usr/lib64", b"/lib", b"/usr/lib"), DEBIAN_DIRS)]
    data = loader_.read_bytes()
    assert b"\0".join(DEBIAN_DIRS) in data
    data = data.replace(b"\0".join(DEBIAN_DIRS), b"\0".join(theirs))
    (top / LOADER).unlink()
    (top / LOADER).write_bytes(data)
    (top / LOADER).chmod(0o755)
    (top / "etc/ld.so.cache").unlink()
    return []


COMPAT = "cpt64/ld-linux-x86-64.so.2"  # as long as the usual one


def like_eessi(top: Path) -> list[str]:
    """Programs whose loader is another, with another cache and other default directories, as in a compatibility layer or a store."""
    data = real(top, f"/{LOADER}").read_bytes()
    for old, new in ((b"/etc/ld.so.cache\0", b"/cpt/ld.so.cache\0"),
                     (b"\0".join(DEBIAN_DIRS), b"/cpt/compat-layer/lib/\0/cpt/compat-layer/usr/lib/\0/cpt/\0/cpt/lib/")):
        assert old in data and len(old) == len(new)
        data = data.replace(old, new)
    (top / COMPAT).parent.mkdir()
    (top / COMPAT).write_bytes(data)
    (top / COMPAT).chmod(0o755)
    for name in ("usr/local/bin/mpihello", "bin/gzip", "bin/sed"):
        program = (top / name).read_bytes()
        assert program.count(f"/{LOADER}\0".encode()) == 1
        copy_to(top / "cpt/bin" / Path(name).name, top / name)
        (top / "cpt/bin" / Path(name).name).write_bytes(program.replace(f"/{LOADER}\0".encode(), f"/{COMPAT}\0".encode()))
    for name in ("libc.so.6", "libselinux.so.1", "libpcre2-8.so.0"):
        copy_to(top / "cpt/compat-layer/lib" / name, library(top, name))
    copy_to(top / "cpt/mpi/libmpich.so.12", library(top, "libmpich.so.12"))
    (top / "cpt/ld.so.conf").write_text(f"/cpt/mpi\n/{LIBRARY_DIR}\n/lib/x86_64-linux-gnu\n")
    chrooted(top, "ldconfig", "-f", "/cpt/ld.so.conf", "-C", "/cpt/ld.so.cache")
    return []


@pytest.mark.parametrize("base", ["bookworm", "bullseye"])
@pytest.mark.parametrize("prepare", [with_subdirectories, with_subdirectories_in_the_cache, with_a_preload_file, like_fedora, like_eessi])
def test_other_trees(sites: dict[str, Site], scratch: Path, base: str, prepare: Callable[[Path], list[str]]) -> None:
    engine, site = Engine("crun", "root"), sites["plain"]
    executable = str(site.hooks_dir / "bin/oci-hpc-hooks-createruntime")
    hooks = {"createRuntime": [{"path": executable, "args": [executable], "env": ["PATH=/usr/bin:/bin"], "timeout": 60}]}
    compat = prepare is like_eessi
    with engine.bundle(scratch / "bundle", base, ["true"]) as made:
        top = made / "rootfs"
        env = prepare(top)
        with Root(os.open(top, os.O_PATH | os.O_DIRECTORY)) as root:
            node = node_of(site)
            programs = [f"/cpt/bin/{name}" for name in ("gzip", "mpihello", "sed")] if compat else programs_in(root)[::5]
            programs += [] if compat or "/usr/local/bin/mpihello" in programs else ["/usr/local/bin/mpihello"]
            command = ["/bin/sh", "-c", SCRIPT.replace("mpihello", "/cpt/bin/mpihello" if compat else "mpihello")]
            plan = decided(root, command, env, node)
            # Where programs of two loaders use MPI, one cache cannot serve both.
            refused, _ = cold.decide(container(root, ["mpihello", "/cpt/bin/mpihello"], env, plan.profile), root, node)
            assert (refused.verdict == REFUSED) == compat, refused.findings
            assert plan.cache_target == ("/cpt/ld.so.cache" if compat else "/etc/ld.so.cache")

            def run(*words: str, inject: bool) -> bed.Result:
                config = json.loads((made / "config.json").read_text())
                config["process"].update(args=[*words], env=[f"PATH={PATH}", *env, f"PROGRAMS={' '.join(programs)}"])
                config["annotations"] = {ASKS: plan.profile} if inject else {}
                config["hooks"] = hooks if inject else {}
                (made / "config.json").write_text(json.dumps(config))
                return engine.runtime_run(made)

            for laid in (None, plan):
                done = run(*command, inject=laid is not None)
                said = spoken(done.stdout)
                assert {*said} == {*programs}, done.stderr
                for view, some in views(root, programs, node, env, laid):
                    assert_same(root, view, {program: said[program] for program in some}, some, 1)
            assert_site(run("mpiexec", "-n", "2", "/cpt/bin/mpihello" if compat else "mpihello", inject=True), "/")
