"""The loader's simulation held against the real ld.so of every image, in real containers: each program of PATH, before an injection and
after one. What is compared is the order of the link map, the file chosen for each name, and every path tried on the way.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import pytest

from oci_hpc_hooks import cold
from oci_hpc_hooks.decide import abi
from oci_hpc_hooks.elf import hwcaps, loader
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.inputs import image
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import PROVED, UNPROVED, Container, ElfFacts, ImageFacts, Inventory, Mount, Plan
from oci_hpc_hooks.report import Places
from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import MPICH5, OPENMPI5, TRIXIE, Site
from tests.engine.test_c_runtime import TRIXIE_LIBC
from tests.unit.elf.elf_bed import facts_of, pairs, traced

#: Every image of the bed that has a glibc and a shell; those that another test's images are made from say nothing more.
WITHOUT = ("musl", "static", "distroless")
IMAGES = tuple(name for name in bed.IMAGES if not name.endswith("-nolabel") and name not in WITHOUT)
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
SYSTEM = "/nowhere:/usr/lib/x86_64-linux-gnu;/lib"
ASKS = "org.supercontainers.mpi"
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

@dataclass
class Laid:
    """The image as it is seen with a plan laid over it, from the facts alone; notes what is looked at."""

    facts_: ImageFacts
    plan: Optional[Plan] = None
    host: dict[str, ElfFacts] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tree = {f"{self.plan.tree_root}/{bind.target}": bind.source for bind in self.plan.tree} if self.plan else {}
        self.in_place = {bind.target: bind.source for bind in self.plan.in_place} if self.plan else {}
        self.folders = {str(parent) for path in self.tree for parent in Path(path).parents}
        self.folders |= {folder.path for folder in self.facts_.directories if folder.inode}

    def resolve(self, path: str) -> str:
        self.tried.append(path)
        if self.plan and path.startswith(self.plan.tree_root + "/"):
            source = self.tree.get(os.path.normpath(path))
            return f"host:{source}" if source else ""
        real = self.facts_.resolved.get(path, "")
        return f"host:{self.in_place[real]}" if real in self.in_place else real

    def facts(self, identity: str) -> Optional[ElfFacts]:
        if identity.startswith("host:"):
            return self.host[identity[5:]]
        return self.facts_.files[identity].elf if identity in self.facts_.files else None

    def is_directory(self, path: str) -> bool:
        return path in self.folders

    def search(self) -> loader.Search:
        facts = self.facts_
        release = facts.libc_version
        if facts.libc and facts.libc.path in self.in_place:
            release = abi.newest(self.host[self.in_place[facts.libc.path]].verdef, "GLIBC_")[6:]
        return loader.Search(facts.library_path, self.plan.cache if self.plan else facts.cache, facts.default_dirs,
                             hwcaps.of_glibc(facts.hwcaps, release), facts.preload)


def simulated(view: Laid, program: str) -> Said:
    view.tried.clear()
    link_map = loader.simulate(program, view, view.search())
    assert not link_map.broken
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
    differ = []
    for program in programs:
        ours = simulated(view, program)
        told = real[program]
        assert told.loaded, program
        if (ours.loaded, ours.missing) != (told.loaded, told.missing):
            differ.append((program, ours.loaded, told.loaded, ours.missing, told.missing))
        elif [*filter(there, ours.tried)] != [*filter(there, told.tried)]:
            differ.append((program, [*filter(there, ours.tried)], [*filter(there, told.tried)], [], []))
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


def views(root: Root, programs: Sequence[str], node: Inventory, env: Sequence[str], plan: Optional[Plan]) -> Iterator[tuple[Laid, list[str]]]:
    """As many programs at a time as one command line may name."""
    everything = [*node.profiles, *([node.c_runtime] if node.c_runtime else [])]
    host = {library.real: library.elf for profile in everything for library in (*profile.libraries, *profile.plugins)}
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
@pytest.mark.parametrize(("kind", "name"), [*(("plain", name) for name in IMAGES), ("runtime", "bullseye-mpich"), ("runtime", "bookworm-mpich")])
def test_every_program(sites: dict[str, Site], kind: str, name: str, library_path: str) -> None:
    engine = Engine("crun", "root")
    site = sites[kind]
    env = [f"LD_LIBRARY_PATH={library_path}"] if library_path else []
    with tree_of(engine, name) as root:
        programs = programs_in(root)
        node = node_of(site)
        plan = decided(root, ["sh", "-c", SCRIPT], env, node)
        variables = [f"PATH={PATH}", f"PROGRAMS={' '.join(programs)}", *env]
        options = [*(f"--env={item}" for item in variables), f"--annotation={ASKS}={plan.profile}"]
        for hooks_dir, laid in ((None, None), (site.hooks_dir, plan)):
            done = engine.run(name, "sh", "-c", SCRIPT, options=options, hooks_dir=hooks_dir)
            said = spoken(done.stdout)
            # With the system's directories in front it is the copies in place that are found, not those in the tree.
            used = any(path.startswith(plan.tree_root) for told in said.values() for _, path in told.loaded)
            assert used or not laid or library_path, (done.stderr, site.last().stdout)
            for view, some in views(root, programs, node, env, laid):
                assert_same(root, view, {program: said[program] for program in some if program in said}, some, 1)
        assert len(programs) > 100
