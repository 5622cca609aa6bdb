"""Programs that are marked for another processor than this node's, in real containers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, assert_own, assert_site, start
from tests.engine.site import ReadySite, ready  # noqa: F401
from tests.engine.test_c_runtime import TRIXIE_LIBC

CPU = "--annotation=org.supercontainers.hardware.cpu.optimized.version="
LESSER = {"target": "zen3", "level": "x86_64_v3", "isa": 7}


@pytest.fixture
def lesser(crun: Engine, ready: ReadySite) -> Site:  # noqa: F811
    """A site on a node without x86-64-v4: where this machine has it, the inventory is written as on another."""
    return lesser_node(ready(crun))


def lesser_node(found: Site) -> Site:
    path = found.state_dir / "inventory.json"
    inventory: dict[str, Any] = json.loads(path.read_text())
    if inventory["cpu"]["isa"] & 8:
        inventory["cpu"].update(LESSER)
        inventory["hwcaps"] = [name for name in inventory["hwcaps"] if name not in ("x86-64-v4", "avx512_1")]
        levels = inventory["cpu"]["levels"]
        inventory["cpu"]["compatible"] = [name for name in inventory["cpu"]["compatible"] if levels[name] != "x86_64_v4"]
        path.write_text(json.dumps(inventory))
    return found


def marked(folder: Path, level: str) -> str:
    """The option that gives a container /usr/local/bin/marked, a program that its linker marked for a level of x86-64."""
    path = folder / level
    source = b'#include <stdio.h>\nint main(void) { puts("it runs"); return 0; }\n'
    subprocess.run(["gcc", "-xc", "-", "-o", str(path), f"-Wl,-z,{level}"], input=source, check=True)
    return f"--volume={path}:/usr/local/bin/marked"


def test_a_program_for_another_processor(crun: Engine, lesser: Site, scratch: Path) -> None:
    volume = marked(scratch, "x86-64-v4")
    result, log = start(crun, lesser, "marked", options=[volume])
    assert result.returncode not in (0, 127) and "it runs" not in result.stdout
    assert "/usr/local/bin/marked is marked as built for x86-64-v4" in result.stderr
    assert [(entry["verdict"], entry["findings"][-1]["code"]) for entry in log] == [("refused", "cpu")]
    result, log = start(crun, lesser, "marked", options=[volume, "--annotation=org.supercontainers.mpi=none"])
    assert [entry["verdict"] for entry in log] == ["nothing"]
    if "avx512vl" not in Path("/proc/cpuinfo").read_text():  # then the loader's own word is the same
        assert result.returncode != 0 and "CPU ISA level is lower than required" in result.stderr


def test_a_program_for_this_one(crun: Engine, lesser: Site, scratch: Path) -> None:
    result, log = start(crun, lesser, "marked", options=[marked(scratch, "x86-64-v2")])
    assert (result.returncode, result.stdout) == (0, "it runs\n"), result.stderr
    assert [entry["verdict"] for entry in log] == ["unproved"]


def test_the_image_s_claim(crun: Engine, lesser: Site) -> None:
    result, log = start(crun, lesser, *HELLO, options=[CPU + "zen4"])
    assert result.returncode != 0 and "built for zen4, which is x86_64_v4" in result.stderr
    assert f"{CPU[2:].replace('annotation=', 'annotation ')}generic" in result.stderr and [entry["verdict"] for entry in log] == ["refused"]
    for claim, codes in (("generic", []), ("x86_64", ["cpu-unused"])):
        result, log = start(crun, lesser, *HELLO, options=[CPU + claim])
        assert_site(result)
        assert [finding["code"] for finding in log[0]["findings"] if finding["code"].startswith("cpu")] == codes
    assert_own(start(crun, lesser, *HELLO, options=[CPU + "zen4", "--annotation=org.supercontainers.mpi=none"])[0])


@pytest.mark.parametrize("image", ["bookworm-mpich", "bullseye-mpich"])  # the second by the loader of the site's C runtime
def test_libraries_that_the_loader_chooses_by_the_processor(crun: Engine, make_site: SiteMaker, scratch: Path, image: str) -> None:
    """As the loader does: what it takes here counts, what it passes over does not."""
    site = lesser_node(make_site(crun, search=[TRIXIE], c_runtime={"search": [str(TRIXIE_LIBC)]}))
    folder = scratch / "x"
    build(folder / "libfast.so", 1, "-shared", "-fPIC", "-Wl,-soname,libfast.so")
    build(folder / "asks", None, f"-L{folder}", "-lfast")
    for level, mark, status in (("x86-64-v2", [], 2), ("x86-64-v4", ["-Wl,-z,x86-64-v4"], 2), ("x86-64-v2", ["-Wl,-z,x86-64-v4"], None)):
        build(folder / f"glibc-hwcaps/{level}/libfast.so", int(level[-1]), "-shared", "-fPIC", "-Wl,-soname,libfast.so", *mark)
        if level == "x86-64-v4" and "avx512vl" in Path("/proc/cpuinfo").read_text():
            continue  # this machine's loader takes it
        result, log = start(crun, site, "/x/asks", image=image, options=[f"--volume={folder}:/x", "--env=LD_LIBRARY_PATH=/x"])
        codes = {finding["code"] for finding in log[0]["findings"]}
        if status is None:
            assert log[0]["verdict"] == "refused" and "/x/glibc-hwcaps/x86-64-v2/libfast.so is marked" in result.stderr
        else:
            assert (result.returncode, "not-followed" in codes) == (status, False), result.stderr
            assert ("c-runtime" in codes) and log[0]["verdict"] == "unproved"


def build(path: Path, value: Optional[int], *options: str) -> None:
    """A library whose function returns a value, or a program that ends with what the library says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = "int fast(void); int main(void) { return fast(); }" if value is None else f"int fast(void) {{ return {value}; }}"
    subprocess.run(["gcc", "-xc", "-", "-xnone", "-o", str(path), *options], input=source.encode(), check=True)


def test_scan_and_check_tell(ready: ReadySite) -> None:  # noqa: F811
    found = ready(Engine("crun", "root"))
    assert "\nprocessor: " in found.command("scan", "--dry-run").stdout
    done = found.command("check", str(bed.BUILD / "images/bookworm"), "--label", "org.supercontainers.mpi=mpich", "--label",
                         "io.archspec.cpu.target=x86_64", "--", "mpihello")
    assert done.returncode == 0 and "note: the image is said to be built for x86_64; this node's processor is a" in done.stdout
    assert "(from label io.archspec.cpu.target=x86_64)" in done.stdout
