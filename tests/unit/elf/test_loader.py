"""The simulated loader against the real one: each case is built, traced by ld.so and simulated, and the two must agree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

import pytest

from oci_hpc_hooks.elf import loader
from oci_hpc_hooks.elf.ldcache import merge, parse, serialize
from oci_hpc_hooks.elf.loader import LinkMap, Search, VersionGap, simulate, unsatisfied
from oci_hpc_hooks.elf.scan import read_with_pyelftools
from oci_hpc_hooks.errors import ImageError
from oci_hpc_hooks.model import ElfFacts, LdCache
from tests.unit.elf.elf_bed import (
    DEBIAN_DIRS,
    IMAGES,
    TreeView,
    build,
    cache_of,
    can_bind_a_cache,
    default_dirs_of_this_machine,
    entry,
    facts_of,
    hwcaps_of,
    hwcaps_of_this_cpu,
    in_private_mounts,
    pairs,
    search_of_this_machine,
    trace,
)

needs_mounts = pytest.mark.skipif(not can_bind_a_cache(), reason="this machine lets us make no private mount namespace")
needs_hwcaps = pytest.mark.skipif(not hwcaps_of_this_cpu(), reason="glibc-hwcaps came with glibc 2.33")


def agree(
    program: Path,
    library_path: str = "",
    *,
    preload: Sequence[str] = (),
    cache: Optional[LdCache] = None,
    cache_file: Optional[Path] = None,
) -> LinkMap:
    """Simulates, and asserts that the real loader says the same."""
    env: Dict[str, str] = {}
    if library_path:
        env["LD_LIBRARY_PATH"] = library_path
    if preload:
        env["LD_PRELOAD"] = " ".join(preload)
    elements = [element for part in library_path.split(":") for element in part.split(";")] if library_path else []
    link_map = simulate(str(program), TreeView(), search_of_this_machine(elements, cache, preload))
    loaded, missing = trace(str(program), env, cache=cache_file)
    assert pairs(link_map) == loaded
    assert [name for name, _ in link_map.missing] == missing
    return link_map


def how(link_map: LinkMap) -> Dict[str, str]:
    return {item.name: item.how for item in link_map.objects}


def where(link_map: LinkMap, name: str) -> str:
    return next(item.path for item in link_map.objects if item.name == name)


# --------------------------------------------------------------------------------------------------- search order

def test_rpath_beats_library_path(tmp_path: Path) -> None:
    for directory in ("a", "b"):
        build(tmp_path / directory / "libx.so.1")
    program = build(tmp_path / "program", needed=["libx.so.1"], rpath=f"{tmp_path}/a")
    assert how(agree(program, f"{tmp_path}/b"))["libx.so.1"] == "rpath"


def test_library_path_beats_runpath(tmp_path: Path) -> None:
    for directory in ("a", "b"):
        build(tmp_path / directory / "libx.so.1")
    program = build(tmp_path / "program", needed=["libx.so.1"], runpath=f"{tmp_path}/a")
    assert how(agree(program, f"{tmp_path}/b"))["libx.so.1"] == "LD_LIBRARY_PATH"
    assert how(agree(program))["libx.so.1"] == "runpath"


def test_rpath_is_inherited_and_runpath_is_not(tmp_path: Path) -> None:
    build(tmp_path / "a/liba.so.1", needed=["libb.so.1"])
    build(tmp_path / "a/libb.so.1")
    program = build(tmp_path / "with-rpath", needed=["liba.so.1"], rpath=f"{tmp_path}/a")
    assert agree(program).missing == ()
    program = build(tmp_path / "with-runpath", needed=["liba.so.1"], runpath=f"{tmp_path}/a")
    assert agree(program).missing == (("libb.so.1", f"{tmp_path}/a/liba.so.1"),)


def test_an_objects_runpath_hides_every_rpath(tmp_path: Path) -> None:
    build(tmp_path / "a/liba.so.1", needed=["libb.so.1"], runpath="/nowhere")
    build(tmp_path / "a/libb.so.1")
    program = build(tmp_path / "program", needed=["liba.so.1"], rpath=f"{tmp_path}/a")
    assert agree(program).missing == (("libb.so.1", f"{tmp_path}/a/liba.so.1"),)


def test_the_rpath_of_a_loader_in_between_counts(tmp_path: Path) -> None:
    build(tmp_path / "a/liba.so.1", needed=["libb.so.1"], rpath=f"{tmp_path}/b")
    build(tmp_path / "b/libb.so.1", needed=["libc1.so.1"])
    build(tmp_path / "b/libc1.so.1")
    program = build(tmp_path / "program", needed=["liba.so.1"], runpath=f"{tmp_path}/a")
    assert agree(program).missing == ()


def test_breadth_first_the_first_copy_stays(tmp_path: Path) -> None:
    """libd is asked for first by the program, found in its directory, and the one beside liba is never looked at."""
    build(tmp_path / "a/liba.so.1", needed=["libd.so.1"], rpath=f"{tmp_path}/a")
    build(tmp_path / "a/libd.so.1")
    build(tmp_path / "p/libd.so.1")
    program = build(tmp_path / "program", needed=["liba.so.1", "libd.so.1"], rpath=f"{tmp_path}/p:{tmp_path}/a")
    assert where(agree(program), "libd.so.1") == f"{tmp_path}/p/libd.so.1"


def test_library_path_separators_and_elements_that_never_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "b/libx.so.1")
    program = build(tmp_path / "program", needed=["libx.so.1"])
    monkeypatch.chdir("/")
    agree(program, f":relative;/nowhere;{tmp_path}/b///;{tmp_path}/b")


@needs_hwcaps
def test_hwcaps_subdirectories_come_first_in_each_directory(tmp_path: Path) -> None:
    best = hwcaps_of_this_cpu()[0]
    build(tmp_path / "a/libx.so.1")
    build(tmp_path / "b/glibc-hwcaps" / best / "libx.so.1")
    build(tmp_path / "b/libx.so.1")
    program = build(tmp_path / "program", needed=["libx.so.1"])
    assert where(agree(program, f"{tmp_path}/b:{tmp_path}/a"), "libx.so.1") == f"{tmp_path}/b/glibc-hwcaps/{best}/libx.so.1"
    agree(program, f"{tmp_path}/a:{tmp_path}/b")


def test_nodeflib_leaves_the_default_directories_out(tmp_path: Path) -> None:
    program = build(tmp_path / "program", options=["-Wl,-z,nodefaultlib"])
    assert agree(program).missing == (("libc.so.6", str(program)),)


# ------------------------------------------------------------------------------------------------ names and identities

def test_origin_is_the_real_directory_of_a_program_but_not_of_a_library(tmp_path: Path) -> None:
    real = build(tmp_path / "real/liba.so.1.2", soname="liba.so.1", needed=["libb.so.1"], runpath="$ORIGIN")
    build(tmp_path / "real/libb.so.1")
    build(tmp_path / "bin/lib/libb.so.1")
    (tmp_path / "bin/lib/liba.so.1").symlink_to(real)
    build(tmp_path / "bin/program", needed=["liba.so.1"], runpath="${ORIGIN}/lib")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/program").symlink_to(tmp_path / "bin/program")
    link_map = agree(tmp_path / "elsewhere/program")
    assert where(link_map, "libb.so.1") == f"{tmp_path}/bin/lib/libb.so.1"


def test_tokens_are_replaced_only_where_they_are_whole_names(tmp_path: Path) -> None:
    lib = default_dirs_of_this_machine()[0].strip("/")
    build(tmp_path / lib / "libx.so.1")
    build(tmp_path / "$ORIGINAL/liby.so.1")
    path = f"$ORIGIN/${{LIB}}:{tmp_path}/$ORIGINAL:{tmp_path}/$PLATFORM/${{ORIGIN"
    program = build(tmp_path / "program", needed=["libx.so.1", "liby.so.1"], runpath=path)
    assert agree(program).missing == ()


def test_absolute_names_and_origin_in_needed(tmp_path: Path) -> None:
    absolute = build(tmp_path / "libabs.so")
    build(tmp_path / "sub/liborigin.so")
    program = build(tmp_path / "program", needed=[str(absolute), "$ORIGIN/sub/liborigin.so", "/nowhere/libgone.so"])
    link_map = agree(program)
    assert link_map.missing == (("/nowhere/libgone.so", str(program)),)
    assert how(link_map)[f"{tmp_path}/sub/liborigin.so"] == "absolute"


def test_one_file_under_two_names_is_one_object(tmp_path: Path) -> None:
    build(tmp_path / "a/libreal.so.1", soname="libsoname.so.1")
    (tmp_path / "a/liblink.so.1").symlink_to("libreal.so.1")
    program = build(tmp_path / "program", needed=["libreal.so.1", "liblink.so.1"], rpath=f"{tmp_path}/a")
    link_map = agree(program)
    (item,) = [item for item in link_map.objects if item.name == "libreal.so.1"]
    assert item.aliases == ("liblink.so.1",)


def test_a_loaded_soname_answers_for_another_file(tmp_path: Path) -> None:
    """As a host's libmpi.so.12 bound over an image's libmpich.so.12 does."""
    build(tmp_path / "a/libmpich.so.12", soname="libmpi.so.12")
    build(tmp_path / "a/libmpi.so.12", soname="libmpi.so.12")
    program = build(tmp_path / "program", needed=["libmpich.so.12", "libmpi.so.12"], rpath=f"{tmp_path}/a")
    link_map = agree(program)
    assert [item.name for item in link_map.objects if "mpi" in item.name] == ["libmpich.so.12"]


def test_preloaded_objects_come_first_and_a_missing_one_is_ignored(tmp_path: Path) -> None:
    pre = build(tmp_path / "libpre.so", needed=["libdl.so.2"])
    program = build(tmp_path / "program", needed=["libm.so.6"])
    link_map = agree(program, preload=[str(pre), "libgone.so"])
    assert how(link_map)[str(pre)] == "preload"


def test_the_interpreter_is_listed_where_it_is_needed(tmp_path: Path) -> None:
    program = build(tmp_path / "program", needed=["ld-linux-x86-64.so.2", "libm.so.6"])
    assert agree(program).objects[1].how == "interp"


# ------------------------------------------------------------------------------------------------------------- filters

@pytest.mark.parametrize("kind", ["filter", "auxiliary"])
@pytest.mark.parametrize("needed", [[], ["libimpl.so.1", "libz1.so.1"], ["libz1.so.1", "libimpl.so.1"]], ids=["alone", "first", "last"])
@pytest.mark.parametrize("before", [True, False])
def test_what_a_filter_stands_for_comes_before_it(tmp_path: Path, kind: str, needed: List[str], before: bool) -> None:
    """Wherever else it is needed. What it needs in turn is looked for at once."""
    build(tmp_path / "a/libimpl.so.1", needed=["libinner.so.1"])
    build(tmp_path / "a/libsecond.so.1")
    for name in ("libinner.so.1", "libz1.so.1"):
        build(tmp_path / f"a/{name}", needed=["libm.so.6"])
    # Of several --filter the last counts.
    filtees = ["libimpl.so.1", "libsecond.so.1", "libimpl.so.1"] if kind == "auxiliary" else ["libimpl.so.1"]
    library = build(tmp_path / "a/libfilter.so.1", needed=["libz1.so.1"], options=[f"-Wl,--{kind}={name}" for name in filtees])
    assert [*facts_of(library).filters, *facts_of(library).auxiliaries] == filtees
    assert read_with_pyelftools(str(library), symbols=bool) == facts_of(library, symbols=True)
    names = ["libfilter.so.1", *needed] if before else [*needed, "libfilter.so.1"]
    program = build(tmp_path / "program", needed=names, rpath=f"{tmp_path}/a")
    order = [item.name for item in agree(program).objects]
    assert all(order.index(name) < order.index("libfilter.so.1") for name in filtees)


def test_an_auxiliary_may_be_missing_and_a_filter_s_may_not(tmp_path: Path) -> None:
    for kind in ("auxiliary", "filter"):
        library = build(tmp_path / kind / "libx.so.1", options=[f"-Wl,--{kind}=libgone.so.1"])
        program = build(tmp_path / kind / "program", needed=["libx.so.1"], rpath="$ORIGIN")
        link_map = simulate(str(program), TreeView(), search_of_this_machine())
        assert link_map.missing == ((("libgone.so.1", str(library)),) if kind == "filter" else ())
        done = subprocess.run([program], capture_output=True, text=True)
        assert ("libgone.so.1: cannot open shared object file" in done.stderr) == bool(link_map.missing)
        assert bool(done.returncode) == bool(link_map.missing)


def test_an_auxiliary_that_is_broken_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "libbad.so.1").write_text("no library, and long enough to be read as an ELF header of sixty-four bytes ....\n")
    build(tmp_path / "libx.so.1", options=["-Wl,--auxiliary=libbad.so.1"])
    link_map = agree(build(tmp_path / "program", needed=["libx.so.1"], rpath="$ORIGIN"))
    assert not link_map.broken


def test_filters_of_each_other_end(tmp_path: Path) -> None:
    build(tmp_path / "liba.so.1", options=["-Wl,--auxiliary=libb.so.1"])
    build(tmp_path / "libb.so.1", options=["-Wl,--auxiliary=liba.so.1"])
    program = build(tmp_path / "program", needed=["liba.so.1"], rpath="$ORIGIN")
    names = [item.name for item in simulate(str(program), TreeView(), search_of_this_machine()).objects]  # ld.so itself dies of such
    assert sorted(names) == sorted({*names}) and {"liba.so.1", "libb.so.1"} <= {*names}


# ---------------------------------------------------------------------------------------------------- files in the way

def test_another_class_or_machine_is_passed_over(tmp_path: Path) -> None:
    build(tmp_path / "a/libx.so.1", options=["-m32"])
    arm = bytearray(build(tmp_path / "b/libx.so.1").read_bytes())
    arm[18:20] = b"\xb7\0"  # EM_AARCH64
    (tmp_path / "b/libx.so.1").write_bytes(arm)
    build(tmp_path / "c/libx.so.1")
    program = build(tmp_path / "program", needed=["libx.so.1"])
    assert where(agree(program, f"{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"), "libx.so.1") == f"{tmp_path}/c/libx.so.1"
    assert agree(program, f"{tmp_path}/a").missing == (("libx.so.1", str(program)),)


def test_a_file_that_is_no_elf_file_ends_the_real_loader(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/libx.so.1").write_text("# not a library, and long enough to be read as a header of sixty-four bytes\n")
    build(tmp_path / "b/libx.so.1")
    program = build(tmp_path / "program", needed=["libx.so.1"])
    link_map = simulate(str(program), TreeView(), search_of_this_machine([f"{tmp_path}/a", f"{tmp_path}/b"]))
    assert link_map.broken == ((f"{tmp_path}/a/libx.so.1", str(program)),)
    env = {"LD_LIBRARY_PATH": f"{tmp_path}/a:{tmp_path}/b"}
    result = subprocess.run([program], env=env, capture_output=True, text=True)
    assert result.returncode == 127
    assert f"{tmp_path}/a/libx.so.1: invalid ELF header" in result.stderr


def test_a_dangling_link_and_a_directory_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/libx.so.1").symlink_to("gone")
    build(tmp_path / "c/libx.so.1")
    program = build(tmp_path / "program", needed=["libx.so.1"])
    agree(program, f"{tmp_path}/a:{tmp_path}/c")


def test_what_is_no_dynamic_program_is_refused(tmp_path: Path) -> None:
    static = build(tmp_path / "static", options=["-static"])
    (tmp_path / "script").write_text("#!/bin/sh\n")
    for path, what in ((static, "not dynamically linked"), (tmp_path / "script", "not an ELF"), (tmp_path / "gone", "not an ELF")):
        with pytest.raises(ImageError, match=what):
            simulate(str(path), TreeView(), Search())


# ---------------------------------------------------------------------------------------------------------------- cache

@needs_mounts
def test_cache_after_runpath_and_before_the_default_directories(tmp_path: Path) -> None:
    build(tmp_path / "cached/libz.so.1")
    build(tmp_path / "run/libz.so.1")
    cache = merge(cache_of(), [entry("libz.so.1", f"{tmp_path}/cached/libz.so.1"), entry("libm.so.6", "/gone/libm.so.6")])
    (tmp_path / "cache").write_bytes(serialize(cache))
    program = build(tmp_path / "program", needed=["libz.so.1", "libm.so.6"])
    link_map = agree(program, cache=cache, cache_file=tmp_path / "cache")
    assert how(link_map)["libz.so.1"] == "cache"
    assert how(link_map)["libm.so.6"] == "default"  # its cache entry leads nowhere
    program = build(tmp_path / "other", needed=["libz.so.1"], runpath=f"{tmp_path}/run")
    assert how(agree(program, cache=cache, cache_file=tmp_path / "cache"))["libz.so.1"] == "runpath"


@needs_mounts
@needs_hwcaps
def test_a_cache_with_hwcaps(tmp_path: Path) -> None:
    for part in (".", "glibc-hwcaps/x86-64-v2", "glibc-hwcaps/x86-64-v3"):
        build(tmp_path / "libs" / part / "libcap.so.1", soname="libcap.so.1")
    (tmp_path / "conf").write_text(f"{tmp_path}/libs\ninclude /etc/ld.so.conf\n")
    cache = tmp_path / "cache"
    subprocess.run(["/sbin/ldconfig", "-X", "-f", str(tmp_path / "conf"), "-C", str(cache)], check=True)
    program = build(tmp_path / "program", needed=["libcap.so.1"])
    link_map = agree(program, cache=parse(cache.read_bytes()), cache_file=cache)
    assert "glibc-hwcaps" in where(link_map, "libcap.so.1")


@needs_mounts
def test_nodeflib_also_drops_cache_entries_in_default_directories(tmp_path: Path) -> None:
    build(tmp_path / "cached/libnodef.so.1")
    cache = merge(cache_of(), [entry("libnodef.so.1", f"{tmp_path}/cached/libnodef.so.1")])
    (tmp_path / "cache").write_bytes(serialize(cache))
    program = build(tmp_path / "program", needed=["libnodef.so.1", "libm.so.6"], options=["-Wl,-z,nodefaultlib"])
    link_map = agree(program, cache=cache, cache_file=tmp_path / "cache")
    assert how(link_map)["libnodef.so.1"] == "cache"
    assert [name for name, _ in link_map.missing] == ["libm.so.6", "libc.so.6"]


# ------------------------------------------------------------------------------------------------------------- versions

def _versioned(path: Path, versions: Sequence[str], *, libc: bool = False) -> Path:
    """A library with the functions va_1 and va_2, of these versions; with ``libc`` it needs a version of libc's itself."""
    script = path.parent / f"{path.name}.map"
    path.parent.mkdir(parents=True, exist_ok=True)
    source = "".join(f"int {name}(void) {{ return 0; }}\n" for name in ("va_1", "va_2"))
    script.write_text("".join(f"{version} {{ global: {version.lower()}; }};\n" for version in versions))
    options = [f"-Wl,--version-script={script}"] if versions else []
    if libc:
        source += 'int puts(const char *); int use(void) { return puts(""); }'
        options.append("-lc")
    return build(path, soname="libver.so.1", source=source, options=options)


@pytest.mark.parametrize(
    "versions, libc, code, message",
    [
        (["VA_1", "VA_2"], False, 0, ""),
        (["VA_1"], False, 1, "{provider}: version `VA_2' not found (required by {program})"),
        ([], True, 0, "{provider}: no version information available (required by {program})"),
        ([], False, 127, "Inconsistency detected by ld.so: dl-lookup.c"),
    ],
)
def test_version_gaps(tmp_path: Path, versions: List[str], libc: bool, code: int, message: str) -> None:
    full = _versioned(tmp_path / "full/libver.so.1", ["VA_1", "VA_2"])
    provider = _versioned(tmp_path / "used/libver.so.1", versions, libc=libc)
    source = "int va_1(void), va_2(void); int main(void) { return va_1() + va_2(); }"
    program = build(tmp_path / "program", source=source, options=[str(full)])
    link_map = simulate(str(program), TreeView(), search_of_this_machine([str(provider.parent)]))
    lacking = [version for version in ("VA_1", "VA_2") if version not in versions]
    assert set(unsatisfied(link_map)) == {VersionGap(str(program), str(provider), v, fatal=code != 0) for v in lacking}
    result = subprocess.run([program], env={"LD_LIBRARY_PATH": str(provider.parent)}, capture_output=True, text=True)
    assert result.returncode == code
    assert message.format(provider=provider, program=program) in result.stderr
    assert bool(result.stderr) == bool(lacking)


@needs_mounts
def test_version_gaps_are_found_through_another_name_than_the_soname(tmp_path: Path) -> None:
    """The image's libmpich.so.12 is the host's file of another soname: verneed still speaks of the name asked for."""
    full = _versioned(tmp_path / "full/libver.so.1", ["VA_1", "VA_2"])
    older = _versioned(tmp_path / "other/libelse.so.9", ["VA_1"])
    source = "int va_1(void), va_2(void); int main(void) { return va_1() + va_2(); }"
    program = build(tmp_path / "program", source=source, options=[str(full)])
    cache = merge(cache_of(), [entry("libver.so.1", str(older))])
    (tmp_path / "cache").write_bytes(serialize(cache))
    link_map = agree(program, cache=cache, cache_file=tmp_path / "cache")
    assert unsatisfied(link_map) == (VersionGap(str(program), str(older), "VA_2", fatal=True),)
    result = subprocess.run(in_private_mounts([str(program)], tmp_path / "cache"), capture_output=True, text=True)
    assert "version `VA_2' not found" in result.stderr


# ------------------------------------------------------------------------------------------------------ real programs

def programs(root: str, step: int) -> List[str]:
    """Programs below ``root``/usr/bin that run without raised privileges (those the loader does not trace)."""
    found = []
    view = TreeView(root)
    for name in sorted(os.listdir(f"{root}/usr/bin")):
        identity = view.resolve(f"/usr/bin/{name}")
        facts = view.facts(identity) if identity else None
        if facts is not None and facts.interp and not os.stat(root + identity).st_mode & 0o6000:
            found.append(f"/usr/bin/{name}")
    return found[::step]


def check_programs(paths: Sequence[str], search: Search, root: str = "") -> None:
    view = TreeView(root)
    for path in paths:
        link_map = simulate(path, view, search)
        assert (pairs(link_map), [name for name, _ in link_map.missing]) == trace(path, root=root), path
        assert [gap for gap in unsatisfied(link_map) if gap.fatal] == [], path


def test_programs_of_this_machine() -> None:
    paths = programs("", 1)
    check_programs(paths[:: max(1, len(paths) // 40)], search_of_this_machine())


@pytest.mark.long
def test_every_program_of_this_machine() -> None:
    check_programs(programs("", 1), search_of_this_machine())


@pytest.mark.parametrize("image", ["bookworm", "bullseye"])
@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_programs_of_an_image(image: str) -> None:
    root = IMAGES / image
    if not (root / "usr/bin").is_dir():
        pytest.skip(f"the test bed has not built {image}")
    paths = programs(str(root), 1)
    search = Search(cache=cache_of(str(root)), default_dirs=DEBIAN_DIRS, hwcaps=hwcaps_of("2.31" if image == "bullseye" else "2.36"))
    check_programs(paths[:: max(1, len(paths) // 40)], search, str(root))


# -------------------------------------------------------------------------------------------------------------- hostile

class MadeUp:
    """A view of files that are facts only."""

    def __init__(self, files: Mapping[str, ElfFacts]) -> None:
        self.files = files

    def resolve(self, path: str) -> str:
        return path if path in self.files else ""

    def facts(self, identity: str) -> Optional[ElfFacts]:
        return self.files[identity]

    def is_directory(self, path: str) -> bool:
        return False


def made_up(**rest: object) -> ElfFacts:
    return ElfFacts(elf_class=2, little_endian=True, machine=62, elf_type=3, dynamic=True, **rest)  # type: ignore[arg-type]


def test_libraries_that_need_each_other_end() -> None:
    files = {"/p": made_up(needed=("a",)), "/l/a": made_up(needed=("b",)), "/l/b": made_up(needed=("a", "b"))}
    link_map = simulate("/p", MadeUp(files), Search(default_dirs=("/l",)))
    assert [item.path for item in link_map.objects] == ["/p", "/l/a", "/l/b"]


def test_an_endless_row_of_libraries_is_refused() -> None:
    files = {f"/l/{n}": made_up(needed=(f"{n + 1}",)) for n in range(loader.MAX_OBJECTS + 5)}
    with pytest.raises(ImageError, match="more than"):
        simulate("/l/0", MadeUp(files), Search(default_dirs=("/l",)))


def test_an_endless_search_is_refused() -> None:
    """Names without end times directories without end."""
    facts = made_up(needed=tuple(str(n) for n in range(16000)), runpath=tuple(f"/d{n}" for n in range(1000)))
    with pytest.raises(ImageError, match="does not end"):
        simulate("/p", MadeUp({"/p": facts}), Search())


def test_a_missing_interpreter_is_missing() -> None:
    link_map = simulate("/p", MadeUp({"/p": made_up(interp="/lib/ld-musl-x86_64.so.1")}), Search())
    assert link_map.missing == (("/lib/ld-musl-x86_64.so.1", "/p"),)


def test_weak_facts_of_a_real_library_are_used(tmp_path: Path) -> None:
    """An empty DT_RUNPATH (patchelf leaves such) still puts DT_RPATH out of force."""
    build(tmp_path / "a/libx.so.1")
    program = build(tmp_path / "program", needed=["libx.so.1"], runpath=f"{tmp_path}/a")
    data = bytearray(program.read_bytes())
    at = data.index(f"{tmp_path}/a\0".encode())
    data[at] = 0
    program.write_bytes(data)
    assert facts_of(program).runpath == ("",)
    assert agree(program).missing == (("libx.so.1", str(program)),)
