# ruff: noqa: F811 (fixtures are imported)
"""Root of the container against what was injected into it: nothing of it can be written, mounted over, remounted or taken away.

`tests/engine/test_safety.py` tries every way to change a file; here are the ways that need a mount, and what opening for writing would
give if the mounts were not read-only.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.weaken import weakened
from tests.bed.bed import Engine
from tests.engine.inside import LIBRARY_DIR, TREE
from tests.engine.site import ReadySite, ready, site, three_engines  # noqa: F401

POINTS = (TREE, f"{LIBRARY_DIR}/libmpich.so.12.2.2", f"{LIBRARY_DIR}/ucx")

#: mount(2) and umount2(2): bind something over it, make it writable, move it, make it shared, take it away; then open it for writing.
TRY = r"""
use Fcntl;
my ($mount, $umount) = `uname -m` =~ /x86_64/ ? (165, 166) : (40, 39);
my $none = "none";
mkdir("/tmp/d"); open(my $made, ">", "/tmp/f");
for my $at (@ARGV) {
    my $mine = -d $at ? "/tmp/d" : "/tmp/f";
    my %tries = (
        "1 open" => sub { sysopen(my $f, -d $at ? "$at/new" : $at, O_WRONLY | (-d $at ? O_CREAT : 0)) },
        "2 remount" => sub { !syscall($mount, $none, $at, $none, 4096 | 32 | 2 | 4, 0) && sysopen(my $f, $at, O_WRONLY) },
        "3 shared" => sub { !syscall($mount, $none, $at, $none, 1 << 20, 0) },
        "4 over" => sub { !syscall($mount, $mine, $at, $none, 4096, 0) },
        "5 move" => sub { !syscall($mount, $at, $mine, $none, 8192, 0) },
        "6 away" => sub { !syscall($umount, $at, 2) },
    );
    for my $try (sort keys %tries) {
        $! = 0;
        print((&{$tries{$try}}() ? "DONE" : "refused"), " $try $at ($!)\n");
    }
}
"""


def done(engine: Engine, hooks: Path, *options: str) -> list[str]:
    result = engine.run("bookworm-mpich", "perl", "-e", TRY, *POINTS, options=["--user=0:0", *options], hooks_dir=hooks)
    lines = result.stdout.splitlines()
    assert len(lines) == 6 * len(POINTS), result.stderr
    return [line for line in lines if line.startswith("DONE") or "No such file" in line]


@three_engines
@pytest.mark.parametrize("stage", ["", pytest.param("podman", marks=pytest.mark.long)])
def test_container_root_changes_no_mount(engine: Engine, ready: ReadySite, stage: str) -> None:
    assert done(engine, ready(engine).hooks_dir / stage) == []


@pytest.mark.long
def test_whoever_may_mount_in_the_container_can(ready: ReadySite) -> None:
    """The test can fail: CAP_SYS_ADMIN is a caller's to give, and makes container root the host's."""
    engine = Engine("crun", "root")
    found = done(engine, ready(engine).hooks_dir, "--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined")
    assert any("4 over" in line for line in found), found


def test_without_the_defence(ready: ReadySite, scratch: Path) -> None:
    engine = Engine("crun", "root")
    hooks = weakened(ready(engine), scratch, ("linux/mounts.py", "HARMLESS = MOUNT_ATTR_RDONLY | ", "HARMLESS = "))
    # Opened and nothing more: it is the site's own library.
    assert any(line.startswith(f"DONE 1 open {LIBRARY_DIR}/libmpich") for line in done(engine, hooks))
