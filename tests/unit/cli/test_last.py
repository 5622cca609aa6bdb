"""``last``: what a log has that no hook has written, or not to its end, is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oci_hpc_hooks.cli import last

ENTRY = {"time": "2026-11-26T00:00:00Z", "id": "1", "image": "x", "verdict": "proved", "path": "warm", "ms": 1.5, "findings": []}


@pytest.mark.parametrize("line", ["", "{", "[]", "[" * 4000, "{}", "\xff", json.dumps({**ENTRY, "verdict": None}),
                                  json.dumps({**ENTRY, "findings": 1}), json.dumps({**ENTRY, "devices": "x"})])
def test_lines_that_are_no_entry(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text(f"{json.dumps(ENTRY)}\n{line}\n", encoding="latin-1")
    assert last.read(str(tmp_path / "log"), 2) == [ENTRY]
    assert all(last.lines(ENTRY))


def test_a_message_is_one_line() -> None:
    """It has words of the image, and none of them may look like a line of ours."""
    said = [str(getattr(line, "text", line)) for line in last.lines({**ENTRY, "message": "2 errors:\n  a: b\n  c: d."})]
    assert said[1:] == ["  2 errors: a: b c: d."]


def test_a_refusal_has_its_code() -> None:
    """Behind the hook's own sentence, which has none."""
    found = {"severity": "error", "code": "pid", "what": "ids of its own", "origin": "", "remedy": "", "who": ""}
    note = {**found, "severity": "note", "code": "mode", "what": "as is asked for"}
    message = "ids of its own. User: give --pid=host."
    lines = list(last.lines({**ENTRY, "verdict": "refused", "message": message, "findings": [note, found]}))
    assert lines[1] == f"  {message} [pid]"
    assert [getattr(line, "text", "") for line in lines[2:]] == ["  note: as is asked for. [mode]"]
