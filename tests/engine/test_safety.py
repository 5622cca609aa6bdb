# ruff: noqa: F811 (fixtures are imported)
"""What must never happen: a container writes what is the host's, an image changes, something is left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from oci_hpc_hooks import pack
from tests.bed import bed
from tests.bed.bed import Engine, leaks
from tests.bed.site import MPICH5, Site
from tests.engine.inside import HELLO, LIBRARY_DIR, TREE, assert_own, assert_site, start
from tests.engine.site import ReadySite, site, three_engines  # noqa: F401
from tests.engine.site import ready_to_bind as ready  # noqa: F401

# ------------------------------------------------------------------------------------------------ container root


@dataclasses.dataclass(frozen=True)
class Mount:
    point: str
    options: frozenset[str]  # of the mount, not of its file system
    tags: tuple[str, ...]  # shared:N, master:N …
    source: str


def mounts_of(mountinfo: str) -> dict[str, Mount]:
    """By mount point; proc_pid_mountinfo(5)."""
    found = {}
    for line in mountinfo.splitlines():
        left, right = line.split(" - ")
        fields = left.split()
        found[fields[4]] = Mount(fields[4], frozenset(fields[5].split(",")), tuple(fields[6:]), right.split()[1])
    return found


#: Everything by which uid 0 could change a file or directory, or put another in its place; perl, since it is in the image.
ATTACK = r"""
use Fcntl;
mkdir("/tmp/evil.d") && open(my $made, ">", "/tmp/evil") or die "no /tmp";
for my $at (@ARGV) {
    my %tries = (
        "open-write" => sub { sysopen(my $f, $at, O_WRONLY) },
        "open-append" => sub { sysopen(my $f, $at, O_RDWR | O_APPEND) },
        "truncate" => sub { truncate($at, 0) },
        "unlink" => sub { -d $at ? rmdir($at) : unlink($at) },
        "rename" => sub { rename($at, "$at.x") },
        "replace" => sub { -d $at ? rename("/tmp/evil.d", $at) : rename("/tmp/evil", $at) },
        "mkdir" => sub { mkdir(-d $at ? "$at/x" : "$at") },
        "create" => sub { sysopen(my $f, -d $at ? "$at/new" : $at, O_WRONLY | O_CREAT | O_TRUNC) },
        "touch" => sub { utime(0, 0, $at) },
        "chmod" => sub { chmod(0777, $at) },
        "chown" => sub { chown(1, 1, $at) },
        "link" => sub { link($at, "/tmp/link") },
    );
    for my $try (sort keys %tries) {
        $! = 0;
        print((&{$tries{$try}}() ? "DONE" : "refused"), " $try $at ($!)\n");
    }
}
"""


def attack(engine: Engine, site: Site, points: Sequence[str], options: Sequence[str]) -> None:
    result = engine.run("bookworm-mpich", "perl", "-e", ATTACK, *points, options=options, hooks_dir=site.hooks_dir)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 12 * len(points)
    assert not [line for line in lines if not line.startswith("refused") or "No such file" in line]


def nothing_can_be_written(engine: Engine, site: Site, *options: str) -> None:
    look = ("cat", "/proc/self/mountinfo")
    options = (*options, "--user=0:0")
    result, log = start(engine, site, *look, options=options)
    ours = mounts_of(result.stdout)
    for point in mounts_of(engine.run("bookworm-mpich", *look, options=options).stdout):
        ours.pop(point, None)
    assert len(ours) >= log[0]["files"] + 2  # the tree itself, the loader's cache
    assert {TREE, "/etc/ld.so.cache", f"{LIBRARY_DIR}/libmpich.so.12.2.2", f"{LIBRARY_DIR}/ucx"} <= set(ours)
    assert ours[TREE].source == "oci-hpc-hooks"
    for mount in ours.values():
        assert {"ro", "nosuid", "nodev"} <= mount.options and not mount.tags, mount
    attack(engine, site, sorted(ours), options)


def test_container_root_can_write_nothing(engine: Engine, site: Site) -> None:
    """Every mount of ours is read-only, nosuid, nodev and private, and each way to change it is tried."""
    nothing_can_be_written(engine, site)


@pytest.mark.parametrize("option", ["--cap-add=SYS_ADMIN", "--privileged", "--userns=auto"])
def test_root_with_more_capabilities_can_write_nothing(rootful: Engine, ready: ReadySite, option: str) -> None:
    """(With CAP_SYS_ADMIN and no user namespace container root is the host's root, and can remount: that is not tried.)"""
    nothing_can_be_written(rootful, ready(rootful), option)


#: mount(2) MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV: writable again. The image has no mount program.
REMOUNT = r"""
use Fcntl;
my $none = "none";
for my $at (@ARGV) {
    my $failed = syscall(`uname -m` =~ /x86_64/ ? 165 : 40, $none, $at, $none, 4096 | 32 | 2 | 4, 0);
    print($failed ? "read-only" : "remounted", " ", sysopen(my $f, $at, O_WRONLY) ? "DONE" : "refused", " $at ($!)\n");
}
"""


@three_engines
def test_root_of_a_user_namespace_cannot_write_the_hosts_files(engine: Engine, site: Site) -> None:
    """With CAP_SYS_ADMIN in a user namespace a container may remount what is mounted in it; the host's files are not its own all the
    same. (With CAP_SYS_ADMIN and no user namespace it is the host's root.)"""
    points = (f"{LIBRARY_DIR}/libmpich.so.12.2.2", f"{TREE}{MPICH5}/libmpi.so.12")
    options = ["--cap-add=SYS_ADMIN", "--user=0:0", *(["--userns=auto"] if engine.user == "root" else [])]
    result = engine.run("bookworm-mpich", "perl", "-e", REMOUNT, *points, options=options, hooks_dir=site.hooks_dir)
    assert result.stdout.splitlines() == [f"remounted refused {point} (Permission denied)" for point in points], result.stderr


# ------------------------------------------------------------------------------------------------ the image


def digests(engine: Engine) -> dict[str, str]:
    """The image's own libraries and loader caches, in the layers of this user's store."""
    layers = engine.account.folder / "storage/overlay"
    found = [*layers.glob(f"*/diff{LIBRARY_DIR}/lib[mu]*.so.*"), *layers.glob("*/diff/etc/ld.so.cache")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found if path.is_file() and not path.is_symlink()}


@three_engines
def test_image_and_layer_are_unchanged(engine: Engine, site: Site) -> None:
    """A container with the site's MPI leaves the same traces in its layer as one without, and none in the image."""
    reference = engine.load("bookworm-mpich")
    before = digests(engine)
    assert any("libmpich.so.12" in path for path in before) and any(path.endswith("ld.so.cache") for path in before)
    userns = ["--userns=keep-id"] if engine.user == "keep-id" else []
    seen = []
    for hooks in ([], ["--hooks-dir", str(site.hooks_dir)]):
        name = engine.new_name()
        result = engine.podman(*hooks, "run", "--name", name, "--net=none", *userns, reference, *HELLO)
        (assert_site if hooks else assert_own)(result)
        layer = json.loads(engine.podman("inspect", name, check=True).stdout)[0]["GraphDriver"]["Data"]["UpperDir"]
        files = {str(path.relative_to(layer)): path.stat().st_size for path in Path(layer).rglob("*") if path.is_file()}
        seen.append((sorted(engine.podman("diff", name, check=True).stdout.splitlines()), files))
    assert seen[0] == seen[1]
    assert digests(engine) == before


# ------------------------------------------------------------------------------------------------ a hook that ends too early


def broken(site: Site, folder: Path, number: int, end: str, timeout: int = 30) -> Path:
    """The site's hook with a fault in it: at its ``number``-th mount it does `end`. There is no other way to stop a process that works
    for 2 ms at a chosen place."""
    data = (site.hooks_dir / "bin/oci-hpc-hooks-createruntime").read_bytes()
    python, (text, code) = data[2:].split(b" ", 1)[0].decode(), pack.taken_apart(data)
    call = text.index(b"\nmain(")
    fault = f"""
from oci_hpc_hooks.apply import rootfs

count, move_mount = 0, rootfs.move_mount

def fault(source, target):
    global count
    count += 1
    if count == {number}:
        {end}
    move_mount(source, target)

rootfs.move_mount = fault
"""
    folder.mkdir()
    descriptor = json.loads((site.hooks_dir / "oci-hpc-hooks.json").read_text())
    descriptor["hook"].update(path=str(folder / "hook"), args=[str(folder / "hook")], timeout=timeout)
    (folder / "hook").write_bytes(pack.joined(python, text[:call] + fault.encode() + text[call:], code))
    (folder / "hook").chmod(0o755)
    (folder / "hook.json").write_text(json.dumps(descriptor))
    return folder


def processes(of: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(of).encode() in entry.read_bytes():
                found.append(str(entry))
        except OSError:
            pass  # it has ended
    return found


KILL = "import os; os.kill(os.getpid(), 9)"
FAIL = "from oci_hpc_hooks.errors import KernelError; raise KernelError('move_mount(7, 8) = ENOMEM', 12)"
HANG = "import time; time.sleep(60)"


@pytest.mark.parametrize("number", [1, 4, 9, 15])  # the tree; within it; in place; the loader's cache
@pytest.mark.parametrize("end", [KILL, FAIL], ids=["killed", "failed"])
def test_hook_that_ends_half_way(crun: Engine, ready: ReadySite, scratch: Path, end: str, number: int) -> None:
    half_way(crun, ready(crun), scratch, end, number)


@pytest.mark.long
@pytest.mark.parametrize("number", range(1, 16))
@pytest.mark.parametrize("end", [KILL, FAIL], ids=["killed", "failed"])
def test_hook_that_ends_anywhere(engine: Engine, site: Site, scratch: Path, end: str, number: int) -> None:
    half_way(engine, site, scratch, end, number)


def half_way(engine: Engine, site: Site, scratch: Path, end: str, number: int) -> None:
    before = bed.host_state()
    hooks = broken(site, scratch / "broken", number, end)
    result, log = start(engine, site, *HELLO, hooks_dir=hooks)
    assert result.returncode != 0 and "rank" not in result.stdout, result.stdout
    assert leaks(before) == [] and processes(hooks) == []
    if end == FAIL:
        assert "move_mount(7, 8) = ENOMEM" in result.stderr
        assert [entry["verdict"] for entry in log] == ["refused"]
    result, _ = start(engine, site, *HELLO)
    assert_site(result)


def test_hook_that_hangs(rootful: Engine, ready: ReadySite, scratch: Path) -> None:
    """The descriptor's timeout ends it, and the container does not start."""
    before = bed.host_state()
    hooks = broken(ready(rootful), scratch / "broken", 9, HANG, timeout=1)
    result, _ = start(rootful, ready(rootful), *HELLO, hooks_dir=hooks)
    assert result.returncode != 0 and "rank" not in result.stdout
    assert leaks(before) == [] and processes(hooks) == []
