"""What would notice another C library, found in real trees: libraries, static programs, tools."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from oci_hpc_hooks.inputs import bystanders
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import Bystanders
from tests.unit.elf.elf_bed import build

OLD_NSS = b"..libnss_\0/etc/nsswitch.conf\0.."
NEW_NSS = OLD_NSS + b"libnss_%s.so%s\0"


def find(top: Path, *, path: str = "/usr/bin", static: tuple[str, ...] = (), started: tuple[str, ...] = (),
         allowed: bool = False) -> Bystanders:
    with Root(os.open(top, os.O_PATH | os.O_DIRECTORY)) as root:
        return bystanders.find(root, [path], ["/usr/lib"], started, static, allowed)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    build(tmp_path / "usr/lib/libx.so.1", options=["-Wl,-z,execstack"])
    build(tmp_path / "usr/lib/libn.so.1")
    (tmp_path / "usr/lib/libx.so").symlink_to("libx.so.1")
    build(tmp_path / "usr/lib/python3.11/site-packages/mod/ext.so", options=["-Wl,-z,execstack"])
    (tmp_path / "usr/bin").mkdir()
    build(tmp_path / "usr/lib/tool", options=["-Wl,-z,execstack"])
    return tmp_path


def test_libraries_and_modules_that_want_an_executable_stack(top: Path) -> None:
    module = "/usr/lib/python3.11/site-packages/mod/ext.so"
    assert find(top).execstack == ("/usr/lib/libx.so.1", module)  # each once, and no program
    assert find(top, started=("/usr/lib/libx.so.1",)).execstack == (module,)
    assert find(top, allowed=True).execstack == ()


@pytest.mark.parametrize(("content", "told"), [
    (OLD_NSS, True), (NEW_NSS, False), (b"libnss_", False), (b"/etc/nsswitch.conf", False), (b"", False),
    (bytes((1 << 20) - 20) + OLD_NSS, True),
    (OLD_NSS + bytes(3 << 20) + b"libnss_%s.so%s\0", False),
], ids=["old", "new", "no NSS", "Go", "empty", "across two reads", "both, far apart"])
def test_static_programs(top: Path, content: bytes, told: bool) -> None:
    (top / "fixed").write_bytes(content)
    assert find(top, static=("/fixed",)).static_nss == (("/fixed",) if told else ())


def test_a_real_static_program(top: Path) -> None:
    """One of this machine's glibc, which is 2.34 or newer: its files and DNS are built in."""
    source = b"#include <pwd.h>\nint main(void) { return !getpwnam(\"root\"); }\n"
    done = subprocess.run(["gcc", "-w", "-static", "-xc", "-", "-o", str(top / "fixed")], input=source, capture_output=True)
    if done.returncode:
        pytest.skip("no static libc here")
    release = os.confstr("CS_GNU_LIBC_VERSION") or ""
    old = tuple(map(int, release.split()[1].split("."))) < (2, 33)
    assert find(top, static=("/fixed",)).static_nss == (("/fixed",) if old else ())
    subprocess.run(["strip", str(top / "fixed")], check=True)
    assert find(top, static=("/fixed",)).static_nss == (("/fixed",) if old else ())


def test_what_is_no_file_or_has_no_end(top: Path) -> None:
    with open(top / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with open(top / "late", "wb") as file:
        file.truncate(1 << 38)
        file.seek(1 << 38)
        file.write(OLD_NSS)
    os.mkfifo(top / "pipe")
    assert find(top, static=("/sparse", "/pipe", "/none", "/usr", "/late")).static_nss == ("/late",)


def test_no_more_is_read_than_the_bound(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bystanders, "PROGRAMS_LIMIT", 4 << 20)
    (top / "large").write_bytes(bytes(5 << 20) + OLD_NSS)
    assert find(top, static=("/large",)).static_nss == ()


def test_tools(top: Path) -> None:
    assert (find(top).linker, find(top).ldd) == ("", "")
    (top / "usr/bin/x86_64-linux-gnu-ld.bfd").touch()
    (top / "usr/bin/ld").symlink_to("x86_64-linux-gnu-ld.bfd")
    (top / "usr/bin/ldd").mkdir()
    assert (find(top).linker, find(top).ldd) == ("/usr/bin/ld", "")
    os.rmdir(top / "usr/bin/ldd")
    (top / "usr/bin/ldd").touch()
    assert find(top, path="/usr/bin/").ldd == "/usr/bin/ldd"
