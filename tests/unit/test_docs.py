"""What the documentation shows is right: its configuration files are valid, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from oci_hpc_hooks.cli import VERBS
from oci_hpc_hooks.decide.request import GLIBC_KEYS, MPI_KEYS, MPI_MODE, MPI_SWITCH, STACK_KEYS
from oci_hpc_hooks.inputs import validate
from tests.matrix.cells import HOSTS, ROWS
from tests.pages import ROOT, pages

PAGES = pages()
BLOCKS = [(page, text) for page in PAGES for text in re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL)]


@pytest.mark.parametrize(("page", "text"), BLOCKS, ids=[page.name for page, _ in BLOCKS])
def test_configuration_files_are_valid(page: Path, text: str) -> None:
    document = validate.parse(text.encode(), page.name)
    kind = validate.kind_of(document, page.name)
    assert kind in ("site", "profile")
    assert not validate.schema_problems(document, kind, page.name)


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    named = set(re.findall(r"`?oci-hpc-hooks ([a-z]+)\b", page.read_text()))
    assert named - {"reads", "is", "scan"} <= set(VERBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_have_heads(page: Path) -> None:
    """A row behind an empty line is none: it is shown as a line of text."""
    lines = ["", *page.read_text().splitlines(), ""]
    for before, line, after in zip(lines, lines[1:], lines[2:]):
        assert not line.startswith("|") or before.startswith("|") or after.startswith("| --"), line


def test_make_targets_exist() -> None:
    """Of README.md, docs/contributing.md and the others."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"`make ([a-z0-9-]+)`|^    make ([a-z0-9-]+)", text, re.MULTILINE))
    assert {"demo", "test", "unit", "rpm"} <= {name for pair in named for name in pair if name} <= targets


def test_the_matrix_is_shown_whole() -> None:
    """As its command has written it: every image with every MPI, and no verdict that was wrong."""
    page = (ROOT / "docs" / "compatibility.md").read_text()
    assert all(host.name in page for host in HOSTS)
    for row in ROWS:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {row.name} |")]
        assert line.count("|") == len(HOSTS) + 2
    assert "FALSE" not in page


def test_every_key_is_in_the_table() -> None:
    page = (ROOT / "docs" / "labels.md").read_text()
    for key in (*MPI_KEYS, *GLIBC_KEYS, MPI_MODE, MPI_SWITCH, *(key for keys in STACK_KEYS.values() for key in keys)):
        assert f"`{key}`" in page


def test_attacks_are_in_the_table() -> None:
    """Each test that the page names is there, and the page names each file of attacks."""
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "security.md").read_text()))
    for path, function in named:
        assert (ROOT / path).is_file(), path
        assert not function or re.search(rf"^def {function}\(", (ROOT / path).read_text(), re.MULTILINE), function
    assert {f"tests/attacks/{path.name}" for path in (ROOT / "tests/attacks").glob("test_*.py")} <= {path for path, _ in named}


@pytest.mark.parametrize("table", ["Who may ask for what", "Who may influence what", "Attacks and their tests"])
def test_each_row_names_what_proves_it(table: str) -> None:
    """(That those tests exist is asked above.)"""
    section = (ROOT / "docs" / "security.md").read_text().split(f"## {table}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 5
    for row in rows:
        assert "`tests/" in row.rstrip(" |").rpartition(" | ")[2], row
