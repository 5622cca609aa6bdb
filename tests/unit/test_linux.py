"""Syscalls, paths and mounts, for real: each test that mounts does so in a mount namespace of its own."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Iterator

import pytest

from oci_hpc_hooks.errors import ImageError, KernelError
from oci_hpc_hooks.linux import mounts, namespaces, syscalls
from oci_hpc_hooks.linux.paths import Root, read_bounded
from tests.unit.mountbed import unshared

# ---------------------------------------------------------------------------------------------------------------- paths

@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    (tmp_path / "secret").write_text("secret")
    top = tmp_path / "root"
    (top / "etc").mkdir(parents=True)
    (top / "etc/passwd").write_text("root of the image")
    with Root(os.open(top, os.O_PATH | os.O_DIRECTORY)) as found:
        yield found


def path_of(root: Root, name: str) -> Path:
    return Path(root.prefix) / name


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", "etc/../../etc/passwd", "/../etc/passwd"])
def test_links_stay_inside(root: Root, target: str) -> None:
    path_of(root, "link").symlink_to(target)
    assert root.read("/link", 100) == b"root of the image"
    fd = root.find("/link")
    assert root.real(fd) == "/etc/passwd"
    os.close(fd)


@pytest.mark.parametrize("target", ["../secret", "/proc/self/root/etc/passwd", "/proc/self/cwd", "/proc/1/root/etc/hostname", "/dev/null"])
def test_nothing_outside_is_found(root: Root, target: str) -> None:
    path_of(root, "link").symlink_to(target)
    assert root.find("/link") == -1
    assert root.read("/link", 100) is None
    assert root.find("/" + target) == -1


def test_magic_links_are_not_followed() -> None:
    """A root that has a /proc of its own, as a container's has."""
    with Root(os.open("/", os.O_PATH | os.O_DIRECTORY)) as root:
        for path in ("/proc/self/root/etc", "/proc/self/cwd", "/proc/self/fd/0", "/proc/self/exe"):
            assert root.find(path) == -1, path
        fd = root.find("/usr")
        assert root.real(fd) == "/usr"
        os.close(fd)


@pytest.mark.parametrize("path", ["", "/", ".", "..", "/..", "//"])
def test_the_root_itself(root: Root, path: str) -> None:
    fd = root.open(path)
    assert os.fstat(fd).st_ino == os.fstat(root.fd).st_ino
    assert root.real(fd) == "/"
    os.close(fd)


@pytest.mark.parametrize("path", ["/none", "/etc/passwd/x", "/" + "a" * 300, "/a" * 3000, "/a\0b"])
def test_what_cannot_exist_is_absent(root: Root, path: str) -> None:
    assert root.find(path) == -1


def test_loops_are_absent(root: Root) -> None:
    path_of(root, "one").symlink_to("two")
    path_of(root, "two").symlink_to("one")
    assert root.find("/one/x") == -1


def test_only_regular_files_are_opened(root: Root) -> None:
    os.mkfifo(path_of(root, "fifo"))
    for path in ("/fifo", "/etc", "/"):
        with pytest.raises(ImageError, match="is not a regular file"):
            root.open_regular(path)
    assert root.open_regular("/none") == -1


def test_reading_is_bounded(root: Root) -> None:
    with pytest.raises(ImageError, match="has 17 bytes, more than the 16 that are read"):
        root.read("/etc/passwd", 16)
    with open(path_of(root, "giant"), "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="1099511627776 bytes"):
        root.read("/giant", 1 << 20)


def test_a_file_that_grows_is_bounded_too() -> None:
    # /proc files have size 0 and content: to a reader they look like a file that grew behind its back.
    fd = os.open("/proc/self/maps", os.O_RDONLY)
    with pytest.raises(ImageError, match="grew beyond 10 bytes"):
        read_bounded(fd, "maps", 10)
    os.close(fd)


def test_a_descriptor_outside_is_told(root: Root) -> None:
    fd = os.open("/", os.O_PATH)
    with pytest.raises(ImageError, match="outside"):
        root.real(fd)
    os.close(fd)


# ---------------------------------------------------------------------------------------------------------------- syscalls

def test_errors_read_like_strace(root: Root) -> None:
    with pytest.raises(KernelError) as caught:
        root.open("/none")
    assert caught.value.errno == errno.ENOENT
    assert str(caught.value) == f"openat2({root.fd}, 'none', flags=0o10000000, resolve=0x12) = ENOENT (No such file or directory)."


def test_descriptors_are_closed_on_exec(root: Root) -> None:
    fd = root.open("/etc")
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_a_bad_descriptor() -> None:
    for call in (lambda: syscalls.open_tree(-1, "x", 0), lambda: syscalls.move_mount(-1, -1),
                 lambda: syscalls.mount_setattr(-1, 0, 1, 0), lambda: syscalls.fsconfig(-1, 1, "a", "b"), lambda: syscalls.fsmount(-1, 0),
                 lambda: syscalls.setns(-1, 0)):
        with pytest.raises(KernelError, match="= E"):
            call()


def test_close_range() -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            fd = os.open("/", os.O_PATH)
            syscalls.close_range(3)
            try:
                os.fstat(fd)
            except OSError:
                os.fstat(2)
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


#: A seccomp filter (seccomp(2), classic BPF) by which the kernel does not know one system call.
_FILTER = """
import ctypes, struct
def forget(number, answer=38):  # 38 = ENOSYS
    def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
    program = op(0x20, 0, 0, 0) + op(0x15, 0, 1, number) + op(0x06, 0, 0, 0x00050000 | answer) + op(0x06, 0, 0, 0x7fff0000)
    buffer = ctypes.create_string_buffer(program)
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, head, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
"""


@pytest.mark.parametrize("name", ["openat2", "open_tree", "move_mount", "mount_setattr", "fsopen", "fsconfig", "fsmount", "close_range"])
def test_an_old_kernel_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    said = unshared(f"""
        forget(syscalls.NR_{name})
        def use():
            fd = os.open(top, os.O_PATH)
            Root(syscalls.openat2(fd, ".", os.O_PATH, 0)).find("/")
            clone = mounts.clone(fd)
            mounts.new_tmpfs("x", 4096)
            (top / "at").mkdir()
            syscalls.move_mount(clone, os.open(top / "at", os.O_PATH))
            syscalls.close_range(1000)
        error = raises(KernelError, use)
        assert error.errno == errno.ENOSYS
        print(error)
    """, tmp_path, before=_FILTER)
    assert said == (f"the kernel does not have {name}(2). Site admin: run on Linux 5.14 or newer, and let no seccomp filter take its mount "
                    "calls away.\n")


def test_a_rename_that_races_is_tried_again_and_then_told(tmp_path: Path) -> None:
    said = unshared("""
        forget(syscalls.NR_openat2, errno.EAGAIN)
        print(raises(KernelError, syscalls.openat2, 0, "x", 0, 0))
    """, tmp_path, before=_FILTER)
    assert "EAGAIN" in said


# ---------------------------------------------------------------------------------------------------------------- mounts

def test_a_clone_is_harmless(tmp_path: Path) -> None:
    unshared("""
        (top / "source/below").mkdir(parents=True)
        mount("-t", "tmpfs", "tmpfs", top / "source/below")
        (top / "source/below/file").touch()
        mount("--make-rshared", "--rbind", top / "source", top / "source")
        (top / "target").mkdir()
        fd = mounts.clone(os.open(top / "source", os.O_PATH))
        syscalls.move_mount(fd, os.open(top / "target", os.O_PATH))
        for path in ("target", "target/below"):
            wanted = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
            assert flags(top / path) & wanted == wanted, path
            assert raises(OSError, (top / path / "new").touch).errno == errno.EROFS
        assert (top / "target/below/file").exists()
        entries = [entry for entry in table().values() if entry.mountpoint.startswith(str(top / "target"))]
        assert len(entries) == 2 and not any(entry.shared for entry in entries)
        # What happens on the source afterwards stays there.
        (top / "source/later").mkdir()
        mount("-t", "tmpfs", "tmpfs", top / "source/later")
        assert len([entry for entry in table().values() if entry.mountpoint.startswith(str(top / "target"))]) == 2
        mounts.detach(fd)
        assert not [entry for entry in table().values() if entry.mountpoint.startswith(str(top / "target"))]
        (top / "source/below/more").touch()
    """, tmp_path)


def test_a_file_can_be_cloned_and_a_name_below(tmp_path: Path) -> None:
    unshared("""
        (top / "one").write_text("one")
        (top / "two").write_text("two")
        syscalls.move_mount(mounts.clone(os.open(top / "one", os.O_PATH)), os.open(top / "two", os.O_PATH))
        assert (top / "two").read_text() == "one"
        syscalls.move_mount(mounts.clone(os.open(top, os.O_PATH), "one"), os.open(top / "two", os.O_PATH))
        assert (top / "two").read_text() == "one"
        assert raises(KernelError, mounts.clone, os.open(top, os.O_PATH), "three").errno == errno.ENOENT
    """, tmp_path)


def test_a_tmpfs(tmp_path: Path) -> None:
    unshared("""
        fd = mounts.new_tmpfs("some mark", 1 << 16)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        syscalls.move_mount(fd, os.open(top, os.O_PATH))
        (entry,) = [entry for entry in table().values() if entry.mountpoint == str(top)]
        assert (entry.fstype, entry.source, entry.shared) == ("tmpfs", "some mark", False)
        assert stat.S_IMODE(os.stat(top).st_mode) == 0o755
        assert raises(OSError, (top / "large").write_bytes, bytes(1 << 17)).errno == errno.ENOSPC
        mounts.make_read_only(fd)
        assert raises(OSError, (top / "new").touch).errno == errno.EROFS
    """, tmp_path)


def test_the_mount_table(tmp_path: Path) -> None:
    unshared(r"""
        at = top / "a b\tc\nd\\040e - f"
        at.mkdir()
        mount("-t", "tmpfs", "x y", at)
        mount("--make-shared", at)
        fd = os.open(at, os.O_PATH)
        entry = table().get(mounts.mount_id(fd))
        assert (entry.mountpoint, entry.shared, entry.fstype, entry.source) == (str(at), True, "tmpfs", "x y")
        mount("--make-slave", at)
        assert not table().get(mounts.mount_id(fd)).shared
    """, tmp_path)


@pytest.mark.parametrize("name", ["\x0b", "\x1c", "\u0085", "\u2028"])
def test_the_mount_table_with_odd_names(name: str, tmp_path: Path) -> None:
    """Any user can make such a mount with FUSE, and the host's mounts are in the table of every container that is being created."""
    unshared(f"""
        at = top / {name!r}
        at.mkdir()
        mount("-t", "tmpfs", "tmpfs", at)
        assert str(at) in [entry.mountpoint for entry in table().values()]
    """, tmp_path)


def test_a_mount_id_is_in_the_table() -> None:
    fd = os.open("/", os.O_PATH)
    found = mounts.mount_table().get(mounts.mount_id(fd))
    assert found is not None and found.mountpoint == "/"
    os.close(fd)


# ------------------------------------------------------------------------------------------------------------ namespaces

def test_who_calls() -> None:
    assert namespaces.caller_uid() == os.geteuid() or namespaces.in_own_user_namespace()


def test_joining_a_container(tmp_path: Path) -> None:
    unshared("""
        def container(*arguments):
            process = subprocess.Popen(["unshare", *arguments, "sh", "-c", "mount -t tmpfs inside " + str(top) + "; touch " + str(top)
                                        + "/inside; echo; exec sleep 30"], stdout=subprocess.PIPE)
            process.stdout.readline()
            return process
        for arguments in (["--mount"], ["--mount", "--user", "--map-root-user"]):
            process = container(*arguments)
            try:
                with namespaces.open_root(process.pid, str(top)) as root:
                    fd = root.find("/inside")
                    assert fd >= 0
                    assert root.find("/../etc") == -1
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        namespaces.enter(process.pid)
                        assert (top / "inside").exists()
                        assert (os.geteuid(), os.getegid()) == (0, 0)
                        assert namespaces.in_own_user_namespace() == ("--user" in arguments)
                        assert namespaces.caller_uid() == 0
                        code = 0
                    finally:
                        os._exit(code)
                assert os.waitpid(child, 0)[1] == 0, arguments
                assert not (top / "inside").exists()
            finally:
                process.kill()
                process.wait()
    """, tmp_path)
