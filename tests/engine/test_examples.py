"""What docs/check.md shows is what the commands say, but for the folder that the example's site has its MPI in, times and ids."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import MPICH5, TRIXIE
from tests.engine.conftest import SiteMaker
from tests.engine.site import ReadySite, ready  # noqa: F401

PAGE = bed.ROOT / "docs/check.md"
EXAMPLES = re.findall(r"```console\n\$ oci-hpc-hooks (.*)\n((?:.*\n)*?)```", PAGE.read_text())
GLIBC = platform.libc_ver()[1]  # the node's; the page's is that of Debian 12
SYSTEMS = {"alpha": (MPICH5, "/opt/mpich-5.0/lib"), "beta": (TRIXIE, "/opt/mpich-4.3/lib")}


def same(text: str) -> list[str]:
    """The lines without what differs from run to run: widths of columns, ids, times, numbers of modules and cache entries."""
    text = text.replace(":latest", "")
    text = re.sub(r" {2,}", "  ", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z|\d+\.\d+ ms", "TIME", text)
    text = re.sub(r"\d+ (mounts|files|over|entries)", r"N \1", text)
    return text.splitlines()


def parts(text: str) -> list[int]:
    """Of each line of costs, what there is mounted besides what it counts in brackets: the tree itself, and the loader's cache where that
    is no file of the container's own layer."""
    costs = re.findall(r"^cost: (\d+) mounts \((\d+) files in the tree, (\d+) over", text, re.MULTILINE)
    return [int(mounts) - int(tree) - int(over) for mounts, tree, over in costs]


def command(example: str) -> tuple[str, list[str]]:
    verb, *arguments = shlex.split(example)
    return verb, arguments


@pytest.fixture
def inventories(make_site: SiteMaker, scratch: Path) -> Iterator[Path]:
    for number, (name, (search, shown)) in enumerate(SYSTEMS.items()):
        site = make_site(Engine(("crun", "runc")[number], "root"), search=[search])
        (scratch / f"{name}.json").write_text((site.state_dir / "inventory.json").read_text().replace(str(search), shown))
    yield scratch


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example[0].startswith("check --inventory")], ids=["one", "two"])
def test_check(inventories: Path, example: tuple[str, str]) -> None:
    engine = Engine("crun", "root")
    verb, arguments = command(example[0])
    engine.load("bookworm-mpich")
    program = str(bed.BUILD / "venv/bin/oci-hpc-hooks")
    done = engine.account.execute(program, verb, *arguments, cwd=str(inventories), timeout=120)
    assert same(done.stdout.replace(f" {GLIBC} ", " 2.36 ")) == same(example[1])
    assert parts(example[1]) == parts(done.stdout)


def test_digest(ready: ReadySite) -> None:  # noqa: F811
    engine = Engine("crun", "root")
    engine.load("bookworm-mpich")
    (example,) = [example for example in EXAMPLES if example[0].startswith("check --digest")]
    done = ready(engine).command(*shlex.split(example[0]))

    def shape(word: str) -> str:
        return re.sub(r"=\d+(\.|(?=,))", "=N", re.sub(r"\b[0-9a-f]{16}\b", "HASH", word))

    assert shape(done.stdout.strip()) == shape(example[1].splitlines()[0]), done.stderr


def test_explain(ready: ReadySite) -> None:  # noqa: F811
    engine = Engine("crun", "root")
    site = ready(engine)
    (example,) = [example for example in EXAMPLES if example[0].startswith("explain")]
    engine.remove("solver")
    done = engine.podman("--hooks-dir", str(site.hooks_dir), "run", "-d", "--net=none", "--name", "solver", engine.load("bookworm-mpich"),
                         "sleep", "1000")
    try:
        assert done.returncode == 0, done.stderr
        said = same(site.command(*shlex.split(example[0])).stdout.replace(str(MPICH5), SYSTEMS["alpha"][1]))
    finally:
        engine.remove("solver")
    shown = [line for line in same(example[1]) if line.strip() != "…"]
    options = f" --runtime crun --hooks-dir {site.hooks_dir}"  # of the bed, between podman and run
    assert set(shown) <= {line.replace(options, "") for line in said}


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4
