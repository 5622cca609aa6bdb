"""Files as people leave them: every kind of broken JSON is a sentence, and no file's errors hide another's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from oci_hpc_hooks.inputs import validate
from oci_hpc_hooks.inputs.validate import Invalid, Problem


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON: expecting value at line 1 column 1, found the end of the file"),
        (b"{\n  'a': 1}", "at line 2 column 3, found \"'a': 1}\""),
        (b'{"a": 1', "not JSON: expecting ',' delimiter at line 1 column 8, found the end of the file"),
        (b'{"a": 1} x', "not JSON: extra data at line 1 column 10, found 'x'"),
        (b'{"a": "\xff"}', "not UTF-8 (byte 7: 0xff); save the file as UTF-8"),
        (json.dumps({"a": 1}).encode("utf-16"), "not UTF-8"),
        (b'{"a": NaN}', "not JSON: NaN is not a number in JSON"),
        (b'{"a": -Infinity}', "not JSON: -Infinity is not a number in JSON"),
        (b"9" * 1_000_000, "not JSON: a number of 1000000 digits"),
        (b"[" * 500_000, "nested too deeply for a file of ours"),
        (b'{"a":' * 200_000, "nested too deeply for a file of ours"),
        (b'{"x": {"a": 1, "b": 2, "a": 3}}', 'the key "a" occurs twice in one object; keep one'),
    ],
)
def test_what_is_no_json_of_ours(raw: bytes, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        validate.parse(raw, "site.json")
    (problem,) = caught.value.problems
    assert problem.file == "site.json"
    assert message in problem.message
    assert caught.value.exit_code == 2


def test_each_repeated_key_is_told() -> None:
    with pytest.raises(Invalid) as caught:
        validate.parse(b'{"a": 1, "a": 2, "b": {"c": 1, "c": 1, "c": 1}}', "f")
    assert {problem.message.split('"')[1] for problem in caught.value.problems} == {"a", "c"}


def test_all_errors_at_once_in_the_order_of_the_paths() -> None:
    document = {"version": 2, "on_refusal": "no", "profiles": ["Mpich", {"search": ["x", "/y"]}], "x": 1}
    with pytest.raises(Invalid) as caught:
        validate.check(json.dumps(document).encode(), "site", "site.json")
    assert [problem.path for problem in caught.value.problems] == [
        "$", "$.on_refusal", "$.profiles[0]", "$.profiles[1]", "$.profiles[1].search[0]", "$.version",
    ]  # fmt: skip
    text = str(caught.value)
    assert text.startswith("6 errors in the configuration:\n  site.json: the key ")
    assert len(text.splitlines()) == 7


def test_one_error_is_one_line() -> None:
    assert str(Invalid([Problem("site.json", "$.version", "2 is not 1")])) == "site.json: $.version: 2 is not 1"


def test_errors_are_bounded() -> None:
    document = {"version": 1, "profiles": [1] * 5000}
    assert len(validate.schema_problems(document, "site", "f")) == 100


def test_long_values_are_cut() -> None:
    (problem,) = validate.schema_problems({"version": "x" * 100_000}, "site", "f")
    assert len(problem.message) < 200


@pytest.mark.parametrize(
    ("document", "file", "kind"),
    [
        ({"$schema": "https://example.org/x/profile.schema.json"}, "a.json", "profile"),
        ({"$schema": "site.schema.json"}, "profiles.d/a.json", "site"),
        ({"version": 1}, "/etc/oci-hpc-hooks/site.json", "site"),
        ({"version": 1}, "state/inventory.json", "inventory"),
        ({"version": 1}, "profiles.d/mpich.json", "profile"),
        ({"libraries": []}, "a.json", "profile"),
        ({"masked": True}, "a.json", "profile"),
        ({"rests_on": []}, "a.json", "inventory"),
        ({"verdict": "proved"}, "a.json", "plan"),
        ({"defaults": {}}, "a.json", "site"),
        ([], "site.json", "site"),
    ],
)
def test_kind_of_file(document: Any, file: str, kind: str) -> None:
    assert validate.kind_of(document, file) == kind


@pytest.mark.parametrize("document", [{}, [], None, {"$schema": "other.json"}, {"$schema": 1}])
def test_kind_that_nothing_tells(document: Any) -> None:
    with pytest.raises(Invalid, match=r'call it site\.json, or give it a "\$schema" of "profile\.schema\.json"'):
        validate.kind_of(document, "a.json")


def test_shipped_profiles_are_valid() -> None:
    from oci_hpc_hooks.inputs import profiles, resources

    files = sorted(resources.PROFILES.glob("*.json"))
    assert [file.stem for file in files] == ["cuda", "cxi", "efa", "gdrcopy", "hydra", "knem", "levelzero", "libfabric", "mpi-abi", "mpich",
                                              "munge", "opencl", "openmpi", "opx",
                                              "pals", "pmi2", "pmix", "psm2", "rocm", "slurm", "ucx", "verbs", "xpmem"]
    for file in files:
        document = validate.check(file.read_bytes(), "profile", str(file))
        assert profiles.semantic_problems(document, str(file)) == []


def test_missing_part_of_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oci_hpc_hooks.errors import ConfigError
    from oci_hpc_hooks.inputs import resources

    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "lib/python3.11/site-packages/oci_hpc_hooks")
    beside = tmp_path / "lib/python3.11/site-packages/schemas/nothing.json"
    with pytest.raises(ConfigError, match=f"lacks its own file schemas/nothing.json; looked for {beside}, "):
        resources.find("schemas/nothing.json")
    installed = tmp_path / "share/oci-hpc-hooks/schemas/nothing.json"
    os.makedirs(installed.parent)
    installed.touch()
    assert resources.find("schemas/nothing.json") == installed
