"""The loader's cache as a new file in a container's own layer: whole, or nothing; and never outside, whatever the image has in /etc."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.mountbed import unshared
from tests.unit.test_rootfs import WORLD

#: The world of the other tests, with the container's tree as an overlay over it, and a file of the host that nothing may touch.
LAYERED = WORLD + """
import shutil
from oci_hpc_hooks.model import DropIn, Watched

(image / "etc/ld.so.conf.d").mkdir()
(image / "etc/ld.so.conf.d/libc.conf").write_text("/usr/local/lib\\n")
(image / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\\n")
for name in ("lower", "layer", "outside"):
    (top / name).mkdir()
(top / "outside/canary").write_text("the host's")
subprocess.run(["umount", image / "dev"], check=True)
mount("--bind", image, top / "lower")
mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", top / "layer")
for name in ("upper", "work"):
    (top / "layer" / name).mkdir()
mount("-t", "overlay", "-o", f"lowerdir={top}/lower,upperdir={top}/layer/upper,workdir={top}/layer/work,redirect_dir=on", "overlay", image)
mount("-t", "tmpfs", "tmpfs", image / "dev")

DROP_IN, TEXT = "/etc/ld.so.conf.d/zz-oci-hpc-hooks.conf", "# ours\\n/dev/.oci-hpc/opt/lib\\n"
etc, conf, cache_file = image / "etc", image / "etc/ld.so.conf.d", image / "etc/ld.so.cache"

def as_file(**changes):
    return build(drop_in=DropIn(DROP_IN, TEXT, Watched("/etc/ld.so.conf", identity(image / "etc/ld.so.conf"))), **changes)

def start(made=None, join=lambda devices: None):
    global there
    there = table().lines
    data, content = made or as_file()
    with Root(os.open(image, os.O_PATH | os.O_DIRECTORY)) as root:
        way = rootfs.inject(data, content, root, table(), "", join)
    return content, way

def stop():
    "What is mounted in a container goes with it; its layer stays."
    for line in reversed(table().lines):
        if line not in there:
            subprocess.run(["umount", mounts.entry(line).mountpoint], check=True)
    (image / "dev/.oci-hpc").rmdir()

def seen():
    "Mounts, descriptors, and every name, mode and content of the container's tree and of what lies outside of it."
    def one(path):
        status = path.lstat()
        return str(path), status.st_mode, path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    files = sorted(one(path) for folder in (image, top / "lower", top / "outside", host) for path in folder.rglob("*"))
    return [(entry.mountpoint, entry.source) for entry in table().values()], sorted(os.listdir("/proc/self/fd")), files

def fails(kind, *arguments, **named):
    before = seen()
    error = raises(kind, start, *arguments, **named)
    assert seen() == before, [item for item in seen()[2] if item not in before[2]]
    return error
"""


def run(code: str, where: Path) -> str:
    return unshared(code, where, before=LAYERED)


def test_two_new_files_and_no_mount(tmp_path: Path) -> None:
    run("""
        content, way = start()
        assert way == ("file", "")
        for path, wanted in ((cache_file, content), (image / DROP_IN[1:], TEXT.encode())):
            assert path.read_bytes() == wanted
            status = path.lstat()
            assert stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o644
            assert (status.st_uid, status.st_gid, status.st_nlink) == (0, 0, 1)
        assert not [entry for entry in table().values() if entry.mountpoint == str(cache_file)]
        assert (top / "lower/etc/ld.so.cache").read_text() == "the image's cache"
        written = sorted(str(path.relative_to(top / "layer/upper")) for path in (top / "layer/upper").rglob("*") if path.is_file())
        assert written == ["etc/ld.so.cache", DROP_IN[1:]]
        assert (image / "dev/.oci-hpc/opt/lib/libmpi.so.12").read_text() == "the site's"
        # As ldconfig does.
        (etc / "ld.so.cache~").write_text("new")
        (etc / "ld.so.cache~").rename(cache_file)
        assert cache_file.read_text() == "new"
    """, tmp_path)


def test_a_second_start_replaces_both(tmp_path: Path) -> None:
    run("""
        start()
        stop()
        cache_file.write_text("of an ldconfig inside")
        (image / DROP_IN[1:]).write_text("of another site")
        content, way = start()
        assert way == ("file", "")
        assert cache_file.read_bytes() == content and (image / DROP_IN[1:]).read_text() == TEXT
        assert sorted(os.listdir(conf)) == ["libc.conf", "zz-oci-hpc-hooks.conf"]
        assert sorted(os.listdir(etc)) == ["ld.so.cache", "ld.so.conf", "ld.so.conf.d"]
    """, tmp_path)


def test_an_image_without_a_cache(tmp_path: Path) -> None:
    run("""
        cache_file.unlink()
        content, way = start()
        assert way == ("file", "") and cache_file.read_bytes() == content
        assert stat.S_IMODE(cache_file.stat().st_mode) == 0o644
    """, tmp_path)


def test_room_that_was_lacking_is_told_on_close(tmp_path: Path) -> None:
    """As NFS does. (The one call is replaced: no file system at hand does that.)"""
    run("""
        import posix, types
        def close(fd):
            name = os.readlink(f"/proc/self/fd/{fd}")
            posix.close(fd)
            if name.endswith("zz-oci-hpc-hooks.conf"):
                raise OSError(errno.ENOSPC, "No space left on device")
        rootfs.posix = types.SimpleNamespace(**{**vars(posix), "close": close})
        _, (way, why) = start()
        assert way == "bind" and "No space left" in why
        assert os.listdir(conf) == ["libc.conf"]
    """, tmp_path)


# ---------------------------------------------------------------------------------------------------------- all or nothing

@pytest.mark.parametrize("before", ["", "start(); stop()", "cache_file.unlink()"], ids=["first", "again", "no-cache"])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_nothing_is_left_whichever_mount_fails(before: str, at: int, tmp_path: Path) -> None:
    run(f"""
        {before}
        made = as_file()
        real, calls = rootfs.move_mount, []
        def move_mount(source, target):
            calls.append(target)
            if len(calls) == {at}:
                raise KernelError("move_mount = ENOMEM", errno.ENOMEM)
            real(source, target)
        rootfs.move_mount = move_mount
        fails(KernelError, made)
        assert len(calls) == {at}
        rootfs.move_mount = real
        assert start(made)[1] == ("file", "")
    """, tmp_path)


@pytest.mark.parametrize("before", ["", "start(); stop(); (image / DROP_IN[1:]).write_text('of another site')"], ids=["first", "again"])
def test_the_last_step_fails(before: str, tmp_path: Path) -> None:
    """The drop-in has its name by then: the one that was there comes back."""
    run(f"""
        {before}
        made = as_file()
        real = rootfs.rename
        def rename(parent, name, to):
            if to == "ld.so.cache":
                raise OSError(errno.EBUSY, "busy")
            real(parent, name, to)
        rootfs.rename = rename
        assert fails(OSError, made).errno == errno.EBUSY
        rootfs.rename = real
        assert start(made)[1] == ("file", "")
    """, tmp_path)


def test_a_plan_that_is_out_of_date_writes_nothing(tmp_path: Path) -> None:
    run("""
        made = as_file()
        cache_file.write_text("another one")
        fails(rootfs.Stale, made)
        made = as_file()
        (host / "lib/libdep.so.1").write_text("another one")
        fails(rootfs.Stale, made)
        made = as_file()
        def join(devices):
            raise KernelError("cannot join", errno.EPERM)
        fails(KernelError, made, join)
    """, tmp_path)


# ------------------------------------------------------------------------------------------------------- bound where it must be

BOUND = {
    "full": ('subprocess.run(["dd", "if=/dev/zero", f"of={etc}/big", "bs=4k"], stderr=subprocess.DEVNULL)', "No space left on device"),
    "no-layer": ('mount("--bind", top / "lower", image); mount("-t", "tmpfs", "tmpfs", image / "dev")', "no layer of the container's own"),
    "read-only": ('mount("-o", "remount,ro", image)', "Read-only file system"),
    "volume-on-etc": ('shutil.copytree(etc, top / "outside/etc"); mount("--bind", top / "outside/etc", etc)', "is a link or a volume"),
    "volume-on-the-folder": ('mount("--bind", top / "outside", conf)', "/etc/ld.so.conf.d is a link or a volume"),
    "file-bound-over-the-cache": ('(top / "outside/cache").write_text("x"); mount("--bind", top / "outside/cache", cache_file)',
                                  "/etc/ld.so.cache is no file of the container's own layer"),
    "no-folder": ("shutil.rmtree(conf)", "/etc/ld.so.conf.d is missing"),
    "folder-is-a-link": ('shutil.rmtree(conf); conf.symlink_to(top / "outside")', "/etc/ld.so.conf.d is missing"),
    "folder-is-a-link-inside": ('conf.rename(etc / "real"); conf.symlink_to("real")', "/etc/ld.so.conf.d is a link or a volume"),
    "folder-is-a-loop": ("shutil.rmtree(conf); conf.symlink_to(conf)", "/etc/ld.so.conf.d is missing"),
    "folder-is-a-fifo": ("shutil.rmtree(conf); os.mkfifo(conf)", "/etc/ld.so.conf.d is a link or a volume"),
    "etc-is-a-link-inside": ('etc.rename(image / "etc2"); etc.symlink_to("etc2")', "is a link or a volume"),
    "drop-in-is-a-link": ('(image / DROP_IN[1:]).symlink_to(top / "outside/canary")', "zz-oci-hpc-hooks.conf is no file"),
    "drop-in-is-a-loop": ("(image / DROP_IN[1:]).symlink_to(DROP_IN)", "zz-oci-hpc-hooks.conf is no file"),
    "drop-in-is-a-folder": ("(image / DROP_IN[1:]).mkdir()", "zz-oci-hpc-hooks.conf is no file"),
    "drop-in-is-a-fifo": ("os.mkfifo(image / DROP_IN[1:])", "zz-oci-hpc-hooks.conf is no file"),
}


@pytest.mark.parametrize("case", BOUND)
def test_bound_instead(case: str, tmp_path: Path) -> None:
    change, because = BOUND[case]
    run(f"""
{change}
before = seen()[2]
content, (way, because) = start()
assert way == "bind" and {because!r} in because, (way, because)
assert cache_file.read_bytes() == content
assert [entry for entry in table().values() if entry.mountpoint.endswith("/ld.so.cache")]
stop()
assert seen()[2] == before
""", tmp_path)


@pytest.mark.parametrize("change", [
    "cache_file.unlink(); cache_file.symlink_to(top / 'outside/canary')",
    "cache_file.unlink(); cache_file.symlink_to(cache_file)",
    "cache_file.unlink(); cache_file.mkdir()",
    "cache_file.unlink(); os.mkfifo(cache_file)",
    "etc.rename(image / 'old'); etc.symlink_to(top / 'outside')",
    "etc.rename(image / 'old'); etc.symlink_to(etc)",
    "etc.rename(image / 'old'); os.mkfifo(etc)",
])
def test_a_tree_that_was_changed_is_looked_at_anew(change: str, tmp_path: Path) -> None:
    run(f"""
        made = as_file()
        {change}
        fails(rootfs.Stale, made)
    """, tmp_path)


def test_folders_that_are_swapped_meanwhile(tmp_path: Path) -> None:
    """What was opened is what is written to, wherever its name leads by then."""
    run("""
        def join(devices):
            etc.rename(image / "old")
            etc.symlink_to(top / "outside")
        content, way = start(join=join)
        assert way == ("file", "")
        assert (image / "old/ld.so.cache").read_bytes() == content
        assert os.listdir(top / "outside") == ["canary"] and (top / "outside/canary").read_text() == "the host's"
    """, tmp_path)


def test_a_link_that_is_put_in_the_way_meanwhile(tmp_path: Path) -> None:
    """A name that has appeared since the look is not followed and not taken: the cache is bound."""
    run("""
        def join(devices):
            (image / DROP_IN[1:]).symlink_to(top / "outside/canary")
        content, (way, because) = start(join=join)
        assert way == "bind" and "File exists" in because
        assert cache_file.read_bytes() == content
        assert (image / DROP_IN[1:]).is_symlink() and (top / "outside/canary").read_text() == "the host's"
    """, tmp_path)
    run("""
        def join(devices):
            cache_file.unlink()
            cache_file.symlink_to(top / "outside/canary")
        content, way = start(join=join)
        assert way == ("file", "") and not cache_file.is_symlink() and cache_file.read_bytes() == content
        assert (top / "outside/canary").read_text() == "the host's"
    """, tmp_path / "again")
