"""What a hook says, where it says it, and that what it says can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci_hpc_hooks import report
from oci_hpc_hooks.inputs import jsontext
from oci_hpc_hooks.report import Places

ROOT = Path(__file__).resolve().parents[2]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES)
def test_json_is_json(value: Any) -> None:
    assert json.loads(jsontext.dumps(value)) == value


@given(st.binary(max_size=20))
def test_names_of_files_are_text_in_json(name: bytes) -> None:
    text = os.fsdecode(name)
    found = json.loads(jsontext.dumps([text, {text: text}]))
    assert found[0] == text.encode("utf-8", "backslashreplace").decode()


def test_a_tuple_is_a_list() -> None:
    assert json.loads(jsontext.dumps({"rows": ((1, "a"), [2, None])})) == {"rows": [[1, "a"], [2, None]]}


# ----------------------------------------------------------------------------------------------------------------------- log

@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places("", "", "", str(tmp_path / "log" / "hooks.log"))


def write(places: Places, **entry: Any) -> None:
    fd = report.open_log(places)
    report.log(fd, entry)
    if fd >= 0:
        os.close(fd)


def lines(path: str) -> List[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_lines(places: Places) -> None:
    write(places, verdict="proved", id="a\nb")
    write(places, verdict="nothing")
    found = lines(places.log)
    assert [entry["verdict"] for entry in found] == ["proved", "nothing"]
    assert found[0]["time"].endswith("Z")
    assert Path(places.log).stat().st_mode & 0o777 == 0o600


def test_a_line_that_is_too_long_loses_its_findings(places: Places) -> None:
    write(places, verdict="refused", findings=["x" * report.LINE_LIMIT])
    assert lines(places.log)[0]["findings"] == []


def test_whatever_is_logged_is_one_line_of_bounded_length(places: Places) -> None:
    write(places, verdict="refused", message="\n" * report.LINE_LIMIT)
    write(places, verdict="proved")
    raw = Path(places.log).read_bytes().splitlines()
    assert len(raw) == 2
    assert len(raw[0]) <= report.LINE_LIMIT
    assert json.loads(raw[1])["verdict"] == "proved"


def test_the_log_begins_anew_when_it_is_large(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LOG_LIMIT", 1000)
    for number in range(100):
        write(places, number=number)
        assert Path(places.log + ".1").exists() or number < 50
    numbers = [entry["number"] for path in (places.log + ".1", places.log) if Path(path).exists() for entry in lines(path)]
    assert numbers == list(range(numbers[0], 100))  # none is lost in between
    assert Path(places.log + ".1").stat().st_size < 1200


@pytest.mark.parametrize("what", ["link", "fifo", "directory", "no folder", "a file as folder"])
def test_where_no_log_can_be_there_is_none(places: Places, tmp_path: Path, what: str) -> None:
    log = Path(places.log)
    if what == "no folder":
        places.log = str(tmp_path / "a/b/c/hooks.log")
    elif what == "a file as folder":
        log.parent.write_text("x")
    else:
        log.parent.mkdir()
        if what == "link":
            (tmp_path / "victim").write_text("untouched")
            log.symlink_to(tmp_path / "victim")
        elif what == "fifo":
            os.mkfifo(log)
        else:
            log.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    assert report.open_log(places) == -1
    report.log(-1, {"verdict": "proved"})
    assert len(os.listdir("/proc/self/fd")) == before
    if what == "link":
        assert (tmp_path / "victim").read_text() == "untouched"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_elses_log_is_not_written(places: Places) -> None:
    write(places, verdict="proved")
    os.chown(places.log, 1, 1)
    assert report.open_log(places) == -1


def test_many_at_once_do_not_tear_lines(places: Places) -> None:
    code = (f"from oci_hpc_hooks import report; fd = report.open_log(report.Places('', '', '', {places.log!r}))\n"
            "for n in range(200): report.log(fd, {'verdict': 'x' * 3000, 'n': n})")
    Path(places.log).parent.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for process in [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(4)]:
        assert process.wait() == 0
    assert len(lines(places.log)) == 800


# ------------------------------------------------------------------------------------------------------------------ complain

def said(text: str, **how: Any) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from oci_hpc_hooks import report; report.complain({text!r})"
    return subprocess.run([sys.executable, "-IS", "-c", code], text=True, check=True, **how)


def test_a_sentence_on_stderr() -> None:
    assert said("what was wanted.", capture_output=True).stderr == "oci-hpc-hooks: what was wanted.\n"


@pytest.mark.parametrize("text", ["a\nb\tc", "\x1b]0;title\x07", "\x9b31m red", "\udcff", "‮evil", "x" * 100_000, "\u2028"])
def test_nothing_that_moves_a_terminal(text: str) -> None:
    found = said(text, capture_output=True).stderr
    assert found.count("\n") == 1
    assert found[:-1].isprintable()
    assert len(found) < 20_000


def test_without_a_stderr() -> None:
    code = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from oci_hpc_hooks import report; os.close(2); report.complain('x')"
    subprocess.run([sys.executable, "-IS", "-c", code], check=True)


#: Stands in for crun, which a test has not got as its parent: its arguments name a log, and hooks get /dev/null as stderr.
CRUN = """
import subprocess, sys
code = sys.argv[1]
sys.exit(subprocess.run([sys.executable, "-IS", "-c", code], stderr=subprocess.DEVNULL).returncode)
"""


@pytest.mark.parametrize("written", ["--log {0}", "--log={0}", "--log-format json --log {0}"])
def test_below_crun_the_sentence_goes_to_its_stderr_and_its_log(written: str, tmp_path: Path) -> None:
    log, stderr = tmp_path / "crun.log", tmp_path / "stderr"
    log.write_text('{"msg":"before"}\n')
    stderr.write_text("before\n")
    code = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(ROOT)!r})
        from oci_hpc_hooks import report
        report.complain('no "mpich"')
    """)
    with open(stderr, "a") as file:
        subprocess.run([sys.executable, "-c", CRUN, code, *written.format(log).split()], stderr=file, check=True)
    assert stderr.read_text() == 'before\noci-hpc-hooks: no "mpich"\n'
    assert [json.loads(line)["msg"] for line in log.read_text().splitlines()] == ["before", 'oci-hpc-hooks: no "mpich"']


@pytest.mark.parametrize("log", ["relative.log", "journald:x", "/nowhere/crun.log", "/dev"])
def test_below_a_crun_without_a_log_file(log: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from oci_hpc_hooks import report; report.complain('x')"
    done = subprocess.run([sys.executable, "-c", CRUN, code, "--log", log], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stderr == "oci-hpc-hooks: x\n"
    assert os.listdir(tmp_path) == []
