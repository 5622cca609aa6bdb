"""Output on a terminal: nothing is lost and no word is cut, whatever its width."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from oci_hpc_hooks.cli import show
from oci_hpc_hooks.inputs import resources

PATHS = ("/usr/lib/x86_64-linux-gnu/libmpich.so.12", "/opt/site/mpich/lib/libmpi.so.12.4.1")
TABLE = show.Table(("LIBRARY", "PROVIDER", "FILE", "WHY"), (
    ("libmpich.so.12", "host", PATHS[1], "replace of profile mpich"), ("libc.so.6", "image", PATHS[0], "needed by hello")))
LINE = show.Line("  error: " + "many words about what is wrong " * 8 + PATHS[0], "error")


def on_terminal(width: int, code: str = "show.show([TABLE, LINE])") -> str:
    """What a terminal of this width gets, without its colours."""
    code = "from tests.unit.cli.test_show import *; " + code
    ours, theirs = pty.openpty()
    path = ":".join([str(resources.PACKAGE.parent), *sys.path])
    env = {"PYTHONPATH": path, "COLUMNS": str(width), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    found = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # EIO: the other side is closed
            break
        found += piece
    os.close(ours)
    assert process.wait() == 0
    assert b"\x1b[" in found
    return re.sub(r"\x1b\[[0-9;]*m", "", found.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_word_is_cut(width: int) -> None:
    lines = on_terminal(width).splitlines()
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for row in TABLE.rows:
        for cell in row:
            assert cell in text
    assert " ".join(LINE.text.split()) in " ".join(text.split())


def test_a_wide_terminal_has_one_line_for_a_row() -> None:
    lines = on_terminal(140).splitlines()
    assert re.split(" {2,}", lines[1].strip()) == list(TABLE.rows[0])


def test_a_narrow_one_has_long_cells_below() -> None:
    lines = on_terminal(60).splitlines()
    assert [line.strip() for line in lines[:2]] == ["LIBRARY         PROVIDER  WHY", "FILE"]
    assert [line.strip() for line in lines[2:4]] == ["libmpich.so.12  host      replace of profile mpich", PATHS[1]]


def test_a_table_of_nothing_but_long_cells() -> None:
    """Such as explain's files: each row begins with its first cell, however long that is."""
    rows = ((*PATHS, "there"), (PATHS[0] * 3, PATHS[1], "gone"))
    lines = on_terminal(60, f"show.show([show.Table(('FILE', 'APPEARS AS', 'NOW'), {rows!r})])").splitlines()
    assert [line.strip() for line in lines] == ["FILE", "APPEARS AS", "NOW", PATHS[0], PATHS[1], "there", PATHS[0] * 3, PATHS[1], "gone"]
    lines = on_terminal(80, f"show.show([show.Table(('FILE', 'APPEARS AS', 'NOW'), {rows[:1]!r})])").splitlines()
    assert [line.split() for line in lines] == [["FILE", "NOW"], ["APPEARS", "AS"], [PATHS[0], "there"], [PATHS[1]]]


def test_between_them_only_the_last_column_is_below() -> None:
    lines = on_terminal(85).splitlines()
    assert lines[0].split() == ["LIBRARY", "PROVIDER", "FILE"] and lines[1].strip() == "WHY"
    assert lines[2].split() == list(TABLE.rows[0][:3]) and lines[3].strip() == TABLE.rows[0][3]


def test_a_command_to_be_copied_is_one_line() -> None:
    command = "  podman run --device oci-hpc-hooks.org/image=solver " + PATHS[0]
    for to in ("sys.stdout", "sys.stderr"):
        written = on_terminal(60, f"show.show([show.Line({command!r}, whole=True), show.Line('x', 'error')], to={to})")
        assert command in written.splitlines()


def test_a_finding_ends_with_its_code() -> None:
    (line,) = show.findings([{"severity": "error", "code": "pid", "what": "ids of its own", "origin": "label x", "remedy": "", "who": ""}])
    assert line.text == "  error: ids of its own (from label x). [pid]"


def test_progress_is_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing of it stays: the last that is written erases the line (ECMA-48, EL)."""
    code = "import time; print(sum(time.sleep(0.2) or item for item in show.progress('scanning', [1, 2, 3])))"
    written = on_terminal(80, code)
    assert "scanning" in written and "100%" in written and written.rpartition("\x1b[2K")[2].strip() == "6"
    assert list(show.progress("scanning", [1, 2, 3])) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_plain_output_is_one_line_for_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: the same whatever COLUMNS says."""
    show.show([TABLE, LINE])
    assert len(capsys.readouterr().out.splitlines()) == len(TABLE.rows) + 2
