"""Strict JSON from bytes, bounded files, and errors that name the place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.errors import InputError
from oci_hpc_hooks.inputs import jsontext

REPOSITORY = Path(__file__).resolve().parents[3]
LIMIT = 1 << 20

LIGHT = {"__future__", "_stat", "posix", "_json", "binascii"}
OURS = {"oci_hpc_hooks", "oci_hpc_hooks.errors", "oci_hpc_hooks.inputs"}


@pytest.mark.parametrize("module, needs", [("jsontext", set()), ("container", {"jsontext"}), ("storage", {"jsontext", "container"})])
def test_light_modules_import_next_to_nothing(module: str, needs: set[str]) -> None:
    program = (
        f"import sys; before = set(sys.modules); sys.path.insert(0, {str(REPOSITORY)!r})\n"
        f"import oci_hpc_hooks.inputs.{module}\n"
        "print('\\n'.join(set(sys.modules) - before))"
    )
    output = subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, capture_output=True, text=True).stdout
    allowed = LIGHT | OURS | {f"oci_hpc_hooks.inputs.{name}" for name in needs | {module}}
    assert set(output.split()) <= allowed


characters = st.text(st.characters(blacklist_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**60), 10**60) | st.floats(allow_nan=False, allow_infinity=False)
    | characters,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(characters, children, max_size=4),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # another job may hold the machine
@given(json_values, st.booleans(), st.sampled_from([None, 2]))
def test_reads_what_json_writes(value: object, escaped: bool, indent: Any) -> None:
    text = json.dumps(value, ensure_ascii=escaped, indent=indent)
    assert jsontext.loads(f" \n{text}\t\r\n".encode(), "it", LIMIT) == value


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20))
def test_what_is_written_is_read_again(value: object) -> None:
    assert json.loads(jsontext.dumps(value)) == value


def test_names_that_are_no_text_are_written_as_what_every_reader_takes() -> None:
    text = jsontext.dumps({"image": "a\udcff", "sum": [1, ("\ud83d\ude00", None)]})
    assert jsontext.loads(text.encode(), "it", 1 << 10)["image"] == "a\\udcff"  # type: ignore[index]


@given(st.binary() | st.text().map(lambda text: json.dumps(text)[:-1].encode("utf-8", "surrogatepass")))
def test_nothing_but_input_error_escapes_and_json_agrees(data: bytes) -> None:
    try:
        value = jsontext.loads(data, "it", LIMIT)
    except InputError as error:
        assert str(error).startswith("it ")
    else:
        assert value == json.loads(data.decode())


REFUSED = {
    b"": "it is empty: JSON was expected",
    b" \n\t ": "it is empty: JSON was expected",
    b'{"a":': "it is not usable JSON: line 1 column 6: a value was expected, found the end",
    b'{"a": 1,\n "b": tru}': "it is not usable JSON: line 2 column 7: a value was expected, found 'tru}'",
    b'{"a":1}\n x': "it is not usable JSON: line 2 column 2: the end was expected, found 'x'",
    b'{"a":1}{"a":2}': "it is not usable JSON: line 1 column 8: the end was expected, found '{\"a\":2}'",
    b'["a': "it is not usable JSON: line 1 column 2: unterminated string starting at, found '\"a'",
    b'["\x01"]': "it is not usable JSON: line 1 column 3: invalid control character at, found '\\x01\"]'",
    b'{"a" 1}': "it is not usable JSON: line 1 column 6: expecting ':' delimiter, found '1}'",
    b"\xef\xbb\xbf{}": "it begins with a byte order mark: plain UTF-8 was expected",
    '{"a": 1}'.encode("utf-16"): "it begins with a byte order mark: plain UTF-8 was expected",
    b'{"a": "\xff"}': "it is not UTF-8: byte 7 is 0xff",
    b'{"a": NaN}': "it is not usable JSON: NaN is no JSON number",
    b"[-Infinity]": "it is not usable JSON: -Infinity is no JSON number",
    b"[1e999]": "it is not usable JSON: the number 1e999… is too large",
    b"9" * 5000: "it is not usable JSON: a number of 5000 digits",
    b"[" * 100_000: "it is not usable JSON: it is nested too deeply",
    b'{"a":' * 100_000: "it is not usable JSON: it is nested too deeply",
    b'["\\ud800"]': "it is not usable JSON: it holds half of a surrogate pair (\\ud800 to \\udfff)",
    b'{"\\uDC00": 1}': "it is not usable JSON: it holds half of a surrogate pair (\\ud800 to \\udfff)",
    b" " * (LIMIT + 1): "it has 1048577 bytes, and at most 1 MiB are read of it",
}


@pytest.mark.parametrize("data", REFUSED, ids=[repr(data[:16]) for data in REFUSED])
def test_refuses_with_the_place(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        jsontext.loads(data, "it", LIMIT)
    assert caught.value.what == REFUSED[data]


def test_surrogate_pairs_are_characters() -> None:
    assert jsontext.loads(b'["\\ud83d\\ude00", {"\\uD83D\\uDE00": 1}]', "it", LIMIT) == ["\U0001f600", {"\U0001f600": 1}]


def test_find_builds_one_record_only() -> None:
    data = b'[{"id":"a","x":1},{"id":"b","x":{"y":[2]}},{"id":"c","x":NaN'
    assert jsontext.find(data, b'{"id":"b"', "it") == {"id": "b", "x": {"y": [2]}}
    assert jsontext.find(data, b'{"id":"d"', "it") is None
    with pytest.raises(InputError, match="NaN is no JSON number"):
        jsontext.find(data, b'{"id":"c"', "it")


# ------------------------------------------------------------------------------------------------------------ files

def test_reads_a_file_of_at_most_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 200_000)
    assert jsontext.read_file(str(path), "the file", 200_000) == b"x" * 200_000
    with pytest.raises(InputError, match=r"^the file /.*/file has 200000 bytes, and at most 199999 bytes are read of it"):
        jsontext.read_file(str(path), "the file", 199_999)


def test_a_proc_file_says_that_it_has_no_size() -> None:
    assert os.stat("/proc/self/mountinfo").st_size == 0
    assert b" / " in jsontext.read_file("/proc/self/mountinfo", "the mount table", 1 << 24)
    with pytest.raises(InputError, match="is larger than the 10 bytes that are read of it"):
        jsontext.read_file("/proc/self/mountinfo", "the mount table", 10)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make, sentence", [
    (lambda path: None, "the file {} does not exist"),
    (Path.mkdir, "the file {} is a directory"),
    (_fifo, "the file {} is no regular file"),
    (_loop, "the file {} cannot be opened: Too many levels of symbolic links"),
    (lambda path: path.symlink_to("/dev/zero"), "the file {} is no regular file"),
    (lambda path: path.symlink_to("/proc/self/mem"), "the file {} cannot be read: Input/output error"),
])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, make: Callable[[Path], object], sentence: str) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(InputError) as caught:
        jsontext.read_file(str(path), "the file", LIMIT)
    assert caught.value.what == sentence.format(path)


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="is not a path"):
        jsontext.read_file(path, "the file", LIMIT)


def test_permission_denied_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("{}")
    path.chmod(0)
    tmp_path.chmod(0o755)
    program = (
        f"import os, sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from oci_hpc_hooks.inputs import jsontext\n"
        "os.chdir(sys.argv[1])\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: jsontext.read_file('file', 'the file', 10)\n"
        "except jsontext.InputError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True).stdout
    assert output == "the file file cannot be opened: Permission denied.\n"


# ------------------------------------------------------------------------------------------------------------ values

SOURCE: Dict[str, object] = {
    "n": 3, "s": "text", "nul": "a\0", "t": True, "f": 1.5, "l": ["a", 3], "m": {"a": "b", "c": None}, "null": None,
}


@pytest.mark.parametrize("call, sentence", [
    (lambda: jsontext.string(SOURCE, "n", "config.json: process"), "config.json: process.n: a string was expected, found 3"),
    (lambda: jsontext.string(SOURCE, "nul", "config.json:"), "config.json: nul: a string without NUL was expected, found 'a\\x00'"),
    (lambda: jsontext.string(SOURCE, "absent", "config.json:"), "config.json: absent: a string was expected, found nothing"),
    (lambda: jsontext.string(SOURCE, "l", "config.json:", ""), "config.json: l: a string was expected, found an array"),
    (lambda: jsontext.integer(SOURCE, "t", "config.json:"), "config.json: t: an integer was expected, found true"),
    (lambda: jsontext.integer(SOURCE, "f", "config.json:", 0), "config.json: f: an integer was expected, found 1.5"),
    (lambda: jsontext.boolean(SOURCE, "s", "config.json:"), "config.json: s: true or false was expected, found 'text'"),
    (lambda: jsontext.mapping(SOURCE, "l", "config.json:"), "config.json: l: an object was expected, found an array"),
    (lambda: jsontext.array(SOURCE, "m", "config.json:"), "config.json: m: an array was expected, found an object"),
    (lambda: jsontext.strings(SOURCE, "l", "config.json: process"), "config.json: process.l[1]: a string was expected, found 3"),
    (lambda: jsontext.string_map(SOURCE, "m", "config.json:"), "config.json: m.c: a string was expected, found nothing"),
])
def test_a_wrong_value_is_named_by_its_path(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.what == sentence


def test_absent_and_null_are_the_same() -> None:
    for key in ("absent", "null"):
        assert jsontext.string(SOURCE, key, "it:", "default") == "default"
        assert jsontext.integer(SOURCE, key, "it:", 7) == 7
        assert jsontext.boolean(SOURCE, key, "it:") is False
        assert jsontext.mapping(SOURCE, key, "it:") == {}
        assert jsontext.array(SOURCE, key, "it:") == []
        assert jsontext.strings(SOURCE, key, "it:") == []
        assert jsontext.string_map(SOURCE, key, "it:") == {}


def test_a_long_wrong_value_is_shortened() -> None:
    with pytest.raises(InputError) as caught:
        jsontext.integer({"a": "x" * 1_000_000}, "a", "it:")
    assert len(str(caught.value)) < 200
