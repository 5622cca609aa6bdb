"""Code of a test in a mount namespace of its own: what it mounts is gone with its process, whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import oci_hpc_hooks

ROOT = Path(__file__).resolve().parents[2]
#: The checkout's, or a copy that a test of tests/attacks runs this one with.
PACKAGE = Path(oci_hpc_hooks.__file__).resolve().parents[1]

_HEAD = """
import errno, os, stat, sys
from pathlib import Path
from oci_hpc_hooks.errors import HookError, ImageError, KernelError, Refusal
from oci_hpc_hooks.linux import mounts, namespaces, syscalls
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.apply import rootfs
import subprocess

top = Path(sys.argv[1])

def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)

def table():
    return mounts.mount_table()

def flags(path):
    return os.statvfs(path).f_flag

def raises(kind, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"{kind} was not raised")
"""


_UNSHARE = ("unshare", "--mount", "--propagation", "private")


def unshared(code: str, where: Path, *, before: str = "", package: Path = PACKAGE, timeout: float = 60) -> str:
    """Runs the code, and ``before`` it, with ``where`` as ``top`` and the package of that checkout; returns what it prints. Skips where
    nobody may mount."""
    if os.geteuid() != 0:
        pytest.skip("mounting in a namespace of one's own needs root")
    if subprocess.run([*_UNSHARE, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let root unshare its mounts")
    text = _HEAD + textwrap.dedent(before) + textwrap.dedent(code)
    done = subprocess.run([*_UNSHARE, sys.executable, "-c", text, str(where)], capture_output=True, text=True, cwd=package,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT), *sys.path])}, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
