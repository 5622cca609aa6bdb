"""What a shell completes, with the file that packages install."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from oci_hpc_hooks.cli import VERBS

SCRIPT = Path(__file__).resolve().parents[3] / "packaging/completions/oci-hpc-hooks"
ASK = """\
source "$0"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_shtab_oci_hpc_hooks "$1" "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(*words: str) -> list[str]:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    done = subprocess.run([bash, "-c", ASK, str(SCRIPT), "oci-hpc-hooks", *words], capture_output=True, text=True, check=True)
    return [word.rstrip() for word in done.stdout.splitlines()]


def test_verbs() -> None:
    assert set(VERBS) <= set(complete(""))
    assert complete("chec") == ["check"]


def test_options_of_a_verb() -> None:
    assert {"--annotation", "--graph", "--json"} <= set(complete("check", "--"))
    assert "--graph" not in complete("scan", "--")


def test_values_of_an_option() -> None:
    assert complete("features", "--format", "") == ["slurm", "nfd"]
