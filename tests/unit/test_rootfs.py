"""A plan carried out in a real tree of mounts: all of it, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.mountbed import unshared

#: A host with a library and a folder of modules, a container's tree with its own copies, and a plan that joins the two.
WORLD = """
from oci_hpc_hooks import record
from oci_hpc_hooks.model import PROVED, Bind, CacheEntry, Cover, FileId, LdCache, Plan

def identity(path):
    status = os.stat(path)
    return FileId(status.st_ino, status.st_size, status.st_mtime_ns)

host, image = top / "host", top / "image"
for folder in (host / "lib/mods", image / "usr/lib/mods", image / "etc", image / "dev", image / "mnt"):
    folder.mkdir(parents=True)
mount("--bind", image, image)
mount("-t", "tmpfs", "tmpfs", image / "dev")
(host / "lib/libmpi.so.12").write_text("the site's")
(host / "lib/libdep.so.1").write_text("the site's dependency")
(host / "lib/mods/one.so").write_text("a module")
(image / "usr/lib/libmpi.so.12").write_text("the image's")
(image / "usr/lib/mods/old.so").write_text("an old module")
(image / "etc/ld.so.cache").write_text("the image's cache")

def build(**changes):
    lib, dep, module = host / "lib/libmpi.so.12", host / "lib/libdep.so.1", host / "lib/mods/one.so"
    copy, folder, cache = image / "usr/lib/libmpi.so.12", os.stat(image / "usr/lib/mods"), image / "etc/ld.so.cache"
    plan = dict(
        verdict=PROVED, findings=(), profile="site", tree_root="/dev/.oci-hpc", tree_make="dev",
        tree=(Bind(str(lib), identity(lib), "opt/lib/libmpi.so.12", ""), Bind(str(dep), identity(dep), "opt/lib/libdep.so.1", ""),
              Bind(str(module), identity(module), "opt/lib/mods/one.so", "")),
        in_place=(Bind(str(lib), identity(lib), "/usr/lib/libmpi.so.12", "", identity(copy)),),
        modules=(Cover("opt/lib/mods", "/usr/lib/mods", folder.st_ino, folder.st_mtime_ns),),
        cache=LdCache((CacheEntry("libmpi.so.12", "/dev/.oci-hpc/opt/lib/libmpi.so.12", 0x303),)), cache_target="/etc/ld.so.cache",
        cache_over=identity(cache) if cache.exists() else None)
    plan.update(changes)
    return record.build(Plan(**plan), None, (), "key")

def inject(made=None, label="", join=lambda devices: None, last=None):
    data, cache = made or build()
    with Root(os.open(image, os.O_PATH | os.O_DIRECTORY)) as root:
        rootfs.inject(data, cache, root, table(), label, join, last=last)
    return cache

def trace():
    "Everything that an injection could leave behind."
    names = sorted((str(path), path.lstat().st_mode) for path in top.rglob("*"))
    return [(entry.mountpoint, entry.source) for entry in table().values()], names, sorted(os.listdir("/proc/self/fd"))

def refused(kind, *arguments, **named):
    before = trace()
    error = raises(kind, inject, *arguments, **named)
    assert trace() == before, (before, trace())
    return error
"""


def run(code: str, where: Path) -> str:
    return unshared(code, where, before=WORLD)


def test_all_of_a_plan(tmp_path: Path) -> None:
    run("""
        before = trace()
        cache = inject()
        tree = image / "dev/.oci-hpc"
        assert (tree / "opt/lib/libmpi.so.12").read_text() == "the site's"
        assert (tree / "opt/lib/libdep.so.1").read_text() == "the site's dependency"
        assert (tree / "opt/lib/mods/one.so").read_text() == "a module"
        assert (image / "usr/lib/libmpi.so.12").read_text() == "the site's"
        assert os.listdir(image / "usr/lib/mods") == ["one.so"]
        assert (image / "etc/ld.so.cache").read_bytes() == cache
        assert trace()[2] == before[2], "descriptors are left open"
        wanted = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
        places = [entry for entry in table().values()
                  if entry.mountpoint.startswith(str(image) + "/") and entry.mountpoint != str(image / "dev")]
        assert len(places) == 8  # the tree and its three files, two in place, one of them with a file below, the cache
        for entry in places:
            assert flags(entry.mountpoint) & wanted == wanted, entry.mountpoint
            assert not entry.shared
        # The container's root cannot write the host's files, by no way.
        for path in (tree / "opt/lib/libmpi.so.12", tree / "opt/lib/mods/one.so", image / "usr/lib/libmpi.so.12", tree / "new",
                     image / "usr/lib/mods/new"):
            assert raises(OSError, path.write_text, "mine").errno == errno.EROFS, path
        # Without what was mounted, the image is as it was.
        for place in ("usr/lib/libmpi.so.12", "usr/lib/mods", "etc/ld.so.cache", "dev/.oci-hpc"):
            subprocess.run(["umount", "-R", image / place], check=True)
        (image / "dev/.oci-hpc").rmdir()
        assert trace() == before
        assert (image / "usr/lib/libmpi.so.12").read_text() == "the image's"
    """, tmp_path)


def test_a_directory_that_is_made(tmp_path: Path) -> None:
    run("""
        made = build(modules=(Cover("opt/lib/mods", "/etc/mods.d", 0, 0),))
        before = trace()
        inject(made)
        assert os.listdir(image / "etc/mods.d") == ["one.so"]
        assert raises(OSError, (image / "etc/mods.d/new").write_text, "mine").errno == errno.EROFS
        for place in ("etc/mods.d", "usr/lib/libmpi.so.12", "etc/ld.so.cache", "dev/.oci-hpc"):
            subprocess.run(["umount", "-R", image / place], check=True)
        (image / "dev/.oci-hpc").rmdir()
        inject(made)  # a second start of the same container
        assert os.listdir(image / "etc/mods.d") == ["one.so"]
        for place in ("etc/mods.d", "usr/lib/libmpi.so.12", "etc/ld.so.cache", "dev/.oci-hpc"):
            subprocess.run(["umount", "-R", image / place], check=True)
        (image / "dev/.oci-hpc").rmdir()
        (image / "etc/mods.d").rmdir()
        assert trace() == before
    """, tmp_path)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """In a user's volume, where something else has its name, and where an effect after it fails: nothing is left."""
    run("""
        made = build(modules=(Cover("opt/lib/mods", "/etc/mods.d", 0, 0),))
        (image / "etc/mods.d").symlink_to("/mnt")
        assert "not an empty mount point" in str(refused(Refusal, made))
        (image / "etc/mods.d").unlink()
        (image / "etc/mods.d").touch()
        assert "not an empty mount point" in str(refused(Refusal, made))
        (image / "etc/mods.d").unlink()
        refused(OSError, build(modules=(Cover("opt/lib/mods", "/etc/mods.d", 0, 0), Cover("opt/lib/mods", "/etc/" + "x" * 300, 0, 0))))
        mount("--bind", image / "etc", image / "etc")
        mount("--make-private", image / "etc")
        assert "inside the volume /etc" in str(refused(Refusal, made))
    """, tmp_path)


def test_the_mark(tmp_path: Path) -> None:
    run("""
        assert not rootfs.already_injected(table(), str(image))
        mount("-t", "tmpfs", "tmpfs", image / "mnt")
        (image / "mnt/.oci-hpc").mkdir()
        (image / "mnt/oci-hpc-hooks").mkdir()
        assert not rootfs.already_injected(table(), str(image))
        mount("--bind", image / "mnt/oci-hpc-hooks", image / "mnt/.oci-hpc")
        assert not rootfs.already_injected(table(), str(image))
        inject()
        assert rootfs.already_injected(table(), str(image))
    """, tmp_path)


def test_a_tree_that_is_made_in_the_rootfs_and_an_existing_empty_one(tmp_path: Path) -> None:
    run("""
        inject(build(tree_root="/.oci-hpc", tree_make="create", in_place=(), modules=()))
        assert (image / ".oci-hpc/opt/lib/libmpi.so.12").read_text() == "the site's"
        subprocess.run(["umount", "-R", image / ".oci-hpc", image / "etc/ld.so.cache"], check=True)
        inject(build(tree_root="/.oci-hpc", tree_make="create", in_place=(), modules=()))  # a second start of the same container
        inject(build(tree_root="/mnt", tree_make="", in_place=(), modules=()))
        assert (image / "mnt/opt/lib/libmpi.so.12").read_text() == "the site's"
    """, tmp_path)


def test_a_cache_where_the_image_has_none(tmp_path: Path) -> None:
    run("""
        (image / "etc/ld.so.cache").unlink()
        cache = inject()
        assert (image / "etc/ld.so.cache").read_bytes() == cache
    """, tmp_path)


# ---------------------------------------------------------------------------------------------------------- all or nothing

@pytest.mark.parametrize("fails", range(1, 8))
def test_nothing_is_left_whichever_mount_fails(fails: int, tmp_path: Path) -> None:
    # The kernel does not fail on demand: the one call is replaced, everything around it is real.
    run(f"""
        real, calls = rootfs.move_mount, []
        def move_mount(source, target):
            calls.append(target)
            if len(calls) == {fails}:
                raise KernelError("move_mount = ENOMEM", errno.ENOMEM)
            real(source, target)
        rootfs.move_mount = move_mount
        (image / "etc/ld.so.cache").unlink()
        made = build(tree_root="/.oci-hpc", tree_make="create")
        refused(KernelError, made)
        assert len(calls) == {fails}
        rootfs.move_mount = real
        inject(made)
    """, tmp_path)


def test_nothing_is_left_when_joining_fails(tmp_path: Path) -> None:
    run("""
        def join(devices):
            raise KernelError("cannot join", errno.EPERM)
        refused(KernelError, join=join)
    """, tmp_path)


def test_nothing_is_left_when_the_last_step_fails(tmp_path: Path) -> None:
    """After all mounts: the hook's privileges cannot be given up."""
    run("""
        seen = []
        def last():
            seen.append((image / "usr/lib/libmpi.so.12").read_text())
            raise KernelError("capset() = EPERM", errno.EPERM)
        (image / "etc/ld.so.cache").unlink()
        refused(KernelError, build(tree_root="/.oci-hpc", tree_make="create"), last=last)
        assert seen == ["the site's"]
    """, tmp_path)


def test_a_host_without_memory(tmp_path: Path) -> None:
    run("""
        real = mounts.new_tmpfs
        mounts.new_tmpfs = lambda source, size, label: real(source, 4096, label)  # as if the estimate were wrong
        error = refused((KernelError, OSError), build(cache=LdCache(tuple(CacheEntry(f"lib{n}.so", "/x", 0x303) for n in range(2000)))))
        assert error.errno == errno.ENOSPC
    """, tmp_path)


def test_the_tmpfs_is_large_enough_for_large_plans(tmp_path: Path) -> None:
    run("""
        lib = host / "lib/libmpi.so.12"
        many = tuple(Bind(str(lib), identity(lib), f"a{n}/b/c{n}.so", "") for n in range(300))
        cache = LdCache(tuple(CacheEntry(f"lib{n}.so", f"/x/{n}", 0x303) for n in range(20000)))
        inject(build(tree=many, in_place=(), modules=(), cache=cache))
        assert (image / "dev/.oci-hpc/a299/b/c299.so").read_text() == "the site's"
    """, tmp_path)


# ------------------------------------------------------------------------------------------------------------------- stale

@pytest.mark.parametrize("change", [
    '(host / "lib/libmpi.so.12").write_text("another one, longer")',
    '(host / "lib/libmpi.so.12").unlink()',
    'os.utime(host / "lib/libdep.so.1", ns=(1, 1))',
    '(host / "lib/mods/one.so").write_text("another one")',
    '(host / "lib/libmpi.so.12").rename(host / "x"); (host / "lib/libmpi.so.12").symlink_to(host / "x")',
    '(host / "lib/libdep.so.1").unlink(); os.mkfifo(host / "lib/libdep.so.1")',
    '(image / "usr/lib/libmpi.so.12").write_text("another one, longer")',
    '(image / "usr/lib/libmpi.so.12").unlink()',
    '(image / "usr/lib/libmpi.so.12").unlink(); (image / "usr/lib/libmpi.so.12").mkdir()',
    '(image / "usr/lib/libmpi.so.12").unlink(); (image / "usr/lib/libmpi.so.12").symlink_to(host / "lib/libmpi.so.12")',
    '(image / "usr/lib/mods/new.so").touch()',
    '(image / "etc/ld.so.cache").write_text("x")',
])
def test_what_has_changed_since_the_look(change: str, tmp_path: Path) -> None:
    run(f"""
        made = build()
        {change}
        refused(rootfs.Stale, made)
    """, tmp_path)


def test_image_files_and_directories(tmp_path: Path) -> None:
    run("""
        copy, folder = os.stat(image / "usr/lib/libmpi.so.12"), os.stat(image / "usr/lib")
        files = [["/usr/lib/libmpi.so.12", copy.st_ino, copy.st_size, copy.st_mtime_ns]]
        dirs = [["/usr/lib", folder.st_ino, folder.st_mtime_ns], ["/nowhere", 0, 0]]
        with Root(os.open(image, os.O_PATH)) as root:
            check = lambda: rootfs.check_image({"image_files": files, "image_dirs": dirs, "in_place": [], "cache": None}, root)
            before = trace()[2]
            check()
            assert trace()[2] == before
            (image / "nowhere").mkdir()
            assert str(raises(rootfs.Stale, check)) == "/nowhere"
            (image / "nowhere").rmdir()
            check()
            (image / "usr/lib/shadow.so").touch()
            assert str(raises(rootfs.Stale, check)) == "/usr/lib"
            assert trace()[2] == before
    """, tmp_path)


# ----------------------------------------------------------------------------------------------------------------- refused

def test_a_noexec_source(tmp_path: Path) -> None:
    run("""
        mount("--bind", host, host)
        mount("-o", "remount,bind,noexec", host)
        error = refused(Refusal)
        assert "noexec" in error.what and str(host) in error.what and error.who == "site admin"
    """, tmp_path)


@pytest.mark.parametrize("place", ["usr/lib", "etc", "dev"])
def test_a_shared_target(place: str, tmp_path: Path) -> None:
    run(f"""
        mount("--bind", image / "{place}", image / "{place}")
        mount("--make-shared", image / "{place}")
        error = refused(Refusal)
        assert "shared propagation (/{place})" in error.what, error.what
        assert error.who == "user"
    """, tmp_path)


@pytest.mark.parametrize("what", ["the cache", "the tree"])
def test_nothing_is_created_in_a_volume(what: str, tmp_path: Path) -> None:
    run(f"""
        (image / "sub").mkdir()
        (top / "volume").mkdir()
        if {what!r} == "the cache":
            mount("--bind", top / "volume", image / "etc")
            made = build()
        else:
            mount("--bind", top / "volume", image / "sub")
            made = build(tree_root="/sub/.oci-hpc", tree_make="create")
        error = refused(Refusal, made)
        assert "inside the volume" in error.what
        assert not os.listdir(top / "volume")
    """, tmp_path)


@pytest.mark.parametrize("there", ["symlink_to(host)", "touch()", "symlink_to('/nowhere')"])
def test_a_name_that_the_image_has_taken(there: str, tmp_path: Path) -> None:
    run(f"""
        (image / ".oci-hpc").{there}
        error = refused(Refusal, build(tree_root="/.oci-hpc", tree_make="create"))
        assert ".oci-hpc exists" in error.what and error.who == "image author"
    """, tmp_path)


def test_a_read_only_root_without_a_place(tmp_path: Path) -> None:
    run("""
        mount("-o", "remount,bind,ro", image)
        error = refused(Refusal, build(tree_root="/.oci-hpc", tree_make="create"))
        assert "cannot be made in the container: Read-only file system" in error.what
        inject()
    """, tmp_path)


def test_a_folder_on_the_way_that_leads_out(tmp_path: Path) -> None:
    """The image's /dev is a link to the host's directory: it is the image's own of that name, or nothing."""
    run("""
        (top / "outside").mkdir()
        subprocess.run(["umount", image / "dev"], check=True)
        (image / "dev").rmdir()
        (image / "dev").symlink_to(top / "outside")
        refused(KernelError)
        assert not os.listdir(top / "outside")
    """, tmp_path)


def test_the_hosts_dev_is_never_written(tmp_path: Path) -> None:
    run("""
        (top / "hostdev").mkdir()
        mount("-t", "ramfs", "devtmpfs", top / "hostdev")
        mount("--bind", top / "hostdev", image / "dev")
        error = refused(Refusal)
        assert "/dev of the container is not the tmpfs" in error.what
    """, tmp_path)


def test_modules_of_several_folders(tmp_path: Path) -> None:
    run("""
        (host / "lib/mods/more").mkdir()
        (host / "lib/mods/more/two.so").touch()
        inject(build(tree=tuple(Bind(str(path), identity(path), "lib/" + path.name if path.parent.name == "mods" else "lib/more/two.so", "")
                                for path in (host / "lib/mods/one.so", host / "lib/mods/more/two.so")),
                     in_place=(), modules=(), cache=None, cache_target=""))
        assert sorted(os.listdir(image / "dev/.oci-hpc/lib")) == ["more", "one.so"]
    """, tmp_path)


def test_a_mark_outside_of_the_container_is_none(tmp_path: Path) -> None:
    """Podman in a container that was injected itself: the outer tree is in the table of the inner container."""
    run("""
        mount("-t", "tmpfs", "oci-hpc-hooks", top / "host")
        (top / "image-of-another").mkdir()
        mount("-t", "tmpfs", "oci-hpc-hooks", top / "image-of-another")
        assert not rootfs.already_injected(table(), str(image))
    """, tmp_path)


def test_more_files_than_descriptors_at_first(tmp_path: Path) -> None:
    """Each file of the tree takes two descriptors, and the usual soft limit is 1024."""
    unshared(WORLD + """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
assert hard > 2000, hard
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
binds = []
for number in range(rootfs.PLENTY + 50):
    path = host / f"lib/lib{number}.so"
    path.write_text(str(number))
    binds.append(Bind(str(path), identity(path), f"opt/lib/lib{number}.so", ""))
inject(build(tree=tuple(binds), modules=()))
assert (image / f"dev/.oci-hpc/opt/lib/lib{number}.so").read_text() == str(number)
""", tmp_path)


# ------------------------------------------------------------------------------------------------ at its own path

EXTRAS = """
job, other = host / "spool/pmix.7.0", host / "other"
job.mkdir(parents=True)
other.mkdir()
(job / "dstore").write_text("of the server")

def wire(*extras, owners=(os.geteuid(),)):
    data, cache = record.build(Plan("nothing", ()), None, (), "key")
    with Root(os.open(image, os.O_PATH | os.O_DIRECTORY)) as root:
        rootfs.inject(data, cache, root, table(), "", lambda devices: None, [(kind, str(path)) for kind, path in extras], owners)

def inside(path):
    return image / str(path).lstrip("/")
"""


def wire(code: str, where: Path) -> str:
    return unshared(code, where, before=WORLD + EXTRAS)


def test_a_jobs_directory_at_its_own_path(tmp_path: Path) -> None:
    wire("""
        before = trace()
        wire(("directory", job))
        assert (inside(job) / "dstore").read_text() == "of the server"
        (inside(job) / "new").touch()
        assert (job / "new").exists()
        entry = [entry for entry in table().values() if entry.mountpoint == str(inside(job))]
        assert len(entry) == 1 and not entry[0].shared
        assert trace()[2] == before[2], "descriptors are left open"
    """, tmp_path)


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    wire("""
        inside(job).mkdir(parents=True)
        mount("--bind", job, inside(job))
        count = len(table().values())
        wire(("directory", job))
        assert len(table().values()) == count
    """, tmp_path)


def test_what_is_gone_or_somebody_elses_stays_outside(tmp_path: Path) -> None:
    wire("""
        before = trace()
        wire(("directory", host / "none"), ("directory", job / "dstore"), ("socket", job), ("device", job / "dstore"))
        wire(("directory", job), owners=(os.geteuid() + 1,))
        assert trace() == before
    """, tmp_path)


def test_nothing_is_made_in_a_volume(tmp_path: Path) -> None:
    wire("""
        volume = inside(host)
        volume.mkdir(parents=True)
        mount("-t", "tmpfs", "volume", volume)
        before = trace()
        error = raises(Refusal, wire, ("directory", job))
        assert "nothing is created in a user's volume" in str(error)
        assert trace() == before
        (volume / "spool/pmix.7.0").mkdir(parents=True)
        wire(("directory", job))
        assert (inside(job) / "dstore").exists()
    """, tmp_path)


def test_another_thing_in_its_place_is_refused(tmp_path: Path) -> None:
    wire("""
        inside(job.parent).mkdir(parents=True)
        inside(job).write_text("a file")
        before = trace()
        assert "something else in the container" in str(raises(Refusal, wire, ("directory", job)))
        assert trace() == before
    """, tmp_path)


def test_links_of_the_image_lead_nowhere_outside(tmp_path: Path) -> None:
    wire("""
        inside(job.parent.parent).mkdir(parents=True)
        inside(job.parent).symlink_to("/mnt")
        wire(("directory", job))
        assert (image / "mnt/pmix.7.0/dstore").read_text() == "of the server"
        assert not list(other.iterdir())
    """, tmp_path)


def test_what_was_made_is_taken_back(tmp_path: Path) -> None:
    wire("""
        inside(job.parent.parent).mkdir(parents=True)
        before = trace()
        (inside(other)).write_text("in the way")
        raises(Refusal, wire, ("directory", job), ("directory", other))
        inside(other).unlink()
        assert trace() == before
    """, tmp_path)
