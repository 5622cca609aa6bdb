"""A plan's actions, carried out in a container that is being created (light module: the warm path imports it).

No policy lives here. Everything is checked first, host files and targets, by descriptors that stay open; then all is attached; and on
failure what was attached or created is taken away again. The plan comes as the plain record that :mod:`oci_hpc_hooks.record`
describes, so that a remembered plan and a new one take the same way.
"""

from __future__ import annotations

import posix
from _stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISLNK, S_ISREG, S_ISSOCK
from binascii import hexlify

from oci_hpc_hooks.errors import KernelError, Refusal
from oci_hpc_hooks.inputs import container, jsontext
from oci_hpc_hooks.inputs.container import DEVICE, DIRECTORY, MARK, SOCKET
from oci_hpc_hooks.linux import mounts
from oci_hpc_hooks.linux.paths import ABSENT
from oci_hpc_hooks.linux.syscalls import (
    EACCES,
    EPERM,
    EROFS,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    O_PATH,
    move_mount,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence

    from oci_hpc_hooks.linux.paths import Root

#: Bytes kept for the tree beyond the generated cache: empty files and directories cost one page each.
TREE_PAGE = 4096

#: Filesystems of which a mount is a container's own: what is written there goes into its layer, not into an image or a user's folder.
LAYERS = ("overlay", "fuse.fuse-overlayfs", "fuse-overlayfs")

NEW_FILE = posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_WRONLY | posix.O_CLOEXEC

#: Files in a tree beyond which the usual soft limit of 1024 descriptors could be met: each takes two.
PLENTY = 400


#: Of what appears at its own path.
_ATTRIBUTES = {
    DIRECTORY: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
    SOCKET: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY,
    DEVICE: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY,  # a device in a read-only mount can be written all the same
}


class Stale(Exception):
    """A file that the plan rests on is not the one that was looked at: decide anew."""


def already_injected(table: mounts.MountTable, prefix: str) -> bool:
    """Whether one of our hooks has been at work in the tree at ``prefix``. The table has the host's mounts too, and "host" may be a
    container that was served itself."""
    below = prefix.rstrip("/") + "/"
    return any(entry.mountpoint.startswith(below) for entry in table.made_of("tmpfs", MARK))


def check_image(record: dict[str, Any], root: Root) -> None:
    """Raises Stale unless every file and searched directory of the image that the plan rests on is unchanged."""
    for path, inode, size, mtime_ns in record["image_files"]:
        posix.close(open_unchanged(root, path, inode, size, mtime_ns))
    for path, inode, mtime_ns in record["image_dirs"]:
        if inode:
            posix.close(open_directory(root, path, inode, mtime_ns))
            continue
        fd = root.find(path)
        if fd >= 0:
            posix.close(fd)
            raise Stale(path)


def open_unchanged(root: Root, path: str, inode: int, size: int, mtime_ns: int) -> int:
    """An O_PATH descriptor for a file of the image that is still the one described; Stale otherwise."""
    fd = root.find(path)
    if fd >= 0:
        if same_file(posix.fstat(fd), inode, size, mtime_ns):
            return fd
        posix.close(fd)
    raise Stale(path)


def open_directory(root: Root, path: str, inode: int, mtime_ns: int) -> int:
    """The same for a directory; its size says nothing."""
    fd = root.find(path)
    if fd >= 0:
        now = posix.fstat(fd)
        if now.st_ino == inode and now.st_mtime_ns == mtime_ns and S_ISDIR(now.st_mode):
            return fd
        posix.close(fd)
    raise Stale(path)


def same_file(now: posix.stat_result, inode: int, size: int, mtime_ns: int) -> bool:
    """Whether this is the regular file that the plan saw."""
    return now.st_ino == inode and now.st_size == size and now.st_mtime_ns == mtime_ns and S_ISREG(now.st_mode)


class Injection:
    """One plan on its way into one container. Every descriptor is closed and, on failure, every trace removed by :meth:`close`."""

    def __init__(self, record: dict[str, Any], cache: bytes, root: Root, table: mounts.MountTable) -> None:
        self.record = record
        self.cache = cache
        self.root = root
        self.table = table
        self.root_mount = mounts.mount_id(root.fd)
        self.fds: list[int] = []
        self.folders: list[str] = []  # directories of the host that are known not to be noexec
        self.attached: list[int] = []  # mount descriptors, in order
        self.created: list[tuple[int, str, bool]] = []  # (descriptor of the parent, name, is a directory)
        self.files: list[tuple[int, str, bytes, bool]] = []  # for the container's own layer: parent, name, content, takes a file's place
        self.written: list[tuple[int, str, str]] = []  # parent, name to come, name so far
        self.extras: list[tuple[str, int, int, list[str]]] = []  # path, what is mounted, on what, or below what under which new names
        self.devices: list[tuple[str, int, int]] = []  # "c" or "b", major and minor number of those among them, by their own descriptors
        self.bound_because = ""  # why a cache that was to be a file is bound
        self.done = False

    def keep(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    # -- everything that can be checked before anything is done

    def open_targets(self) -> None:
        """Opens what will be mounted over, checks that it is what the plan saw and that a mount there stays inside."""
        record = self.record
        self.in_place = []
        for source, *_, target, inode, size, mtime_ns in record["in_place"]:
            fd = self.keep(open_unchanged(self.root, target, inode, size, mtime_ns))
            self.refuse_shared(fd, target)
            self.in_place.append((source, fd))
        self.covers: list[tuple[str, int, list[str]]] = []
        for folder, target, inode, mtime_ns in record["modules"]:
            names: list[str] = []
            if inode:
                fd = self.keep(open_directory(self.root, target, inode, mtime_ns))
            else:
                fd, names = self.open_parent(target)
                self.refuse_volume(fd, target)
            self.refuse_shared(fd, target)
            self.covers.append((folder, fd, names))
        self.open_files()
        self.open_cache_target()

    def open_files(self) -> None:
        """What appears at its own path: over the file that is there, else beside what is there."""
        self.own: list[tuple[str, int, list[str]]] = []
        for source, *_, path in self.record["files"]:
            names: list[str] = []
            target = self.root.find(path)
            if target < 0:
                target, names = self.open_parent(path)
                self.refuse_volume(target, path)
            elif not S_ISREG(posix.fstat(self.keep(target)).st_mode):
                raise Refusal(f"{path} is wanted as a file and is something else in the container", who="image author",
                              remedy=f"remove {path} from the image")
            self.refuse_shared(target, path)
            self.own.append((source, target, names))

    def open_tree_place(self) -> None:
        """The same for the directory that the tree is mounted on, or made in."""
        record = self.record
        self.tree_parent = -1
        at = record["tree_at"]
        if at:
            path, name = at.rsplit("/", 1) if record["tree_make"] else (at, "")
            self.tree_name: str = name
            self.tree_parent = self.keep(self.root.open(path or "/"))
            self.refuse_shared(self.tree_parent, at)
            if record["tree_make"] == "dev":
                self.require_own_tmpfs(self.tree_parent, path)
            if record["tree_make"] == "create":
                self.refuse_volume(self.tree_parent, at)

    def open_cache_target(self) -> None:
        self.cache_target = -1
        row = self.record["cache"]
        if row is not None and row["over"] is not None:
            self.cache_target = self.keep(open_unchanged(self.root, row["target"], *row["over"]))
            self.refuse_shared(self.cache_target, row["target"])
        elif row is not None:
            path, self.cache_name = row["target"].rsplit("/", 1)
            self.cache_parent = self.keep(self.root.open(path or "/"))
            self.refuse_shared(self.cache_parent, row["target"])
            self.refuse_volume(self.cache_parent, row["target"])
            self.refuse_link(self.cache_parent, self.cache_name, row["target"])
        if row is not None and row["drop_in"] is not None:
            path, text = row["drop_in"]
            for file, content in ((path, text.encode("utf-8", "surrogateescape")), (row["target"], self.cache)):
                self.bound_because = self.bound_because or self.open_layer(file, content)

    def open_layer(self, path: str, content: bytes) -> str:
        """Opens the directory of a file that will be made in the container's own layer, or says why it cannot be made there."""
        entry = self.table.get(self.root_mount)
        if entry is None or entry.fstype not in LAYERS:
            return "the root filesystem is no layer of the container's own"
        folder, name = path.rsplit("/", 1)
        parent = self.root.find(folder)
        if parent < 0:
            return f"{folder} is missing"
        self.keep(parent)
        if self.root.real(parent) != folder or not S_ISDIR(posix.fstat(parent).st_mode) or mounts.mount_id(parent) != self.root_mount:
            return f"{folder} is a link or a volume"
        try:
            there = self.keep(posix.open(name, O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=parent))
        except FileNotFoundError:
            self.files.append((parent, name, content, False))
            return ""
        if not S_ISREG(posix.fstat(there).st_mode) or mounts.mount_id(there) != self.root_mount:
            return f"{path} is no file of the container's own layer"
        self.files.append((parent, name, content, True))
        return ""

    def refuse_shared(self, fd: int, target: str) -> None:
        entry = self.table.get(mounts.mount_id(fd))
        if entry is not None and entry.shared:
            raise Refusal(
                f"{target} lies on a mount with shared propagation ({self.inside(entry.mountpoint)}): "
                "what is mounted there would also appear on the host",
                remedy="give that volume without :shared/:rshared, or start without injection",
                who="user",
            )

    def refuse_volume(self, fd: int, target: str) -> None:
        number = mounts.mount_id(fd)
        if number != self.root_mount:
            entry = self.table.get(number)
            where = self.inside(entry.mountpoint) if entry else "a volume"
            raise Refusal(
                f"{target} would have to be created inside the volume {where}, and nothing is created in a user's volume",
                remedy=f"let the volume contain {target} (an empty one is enough), or mount it elsewhere",
                who="user",
            )

    def refuse_link(self, parent: int, name: str, target: str) -> None:
        """Where nothing was found: a link into what is not mounted yet at precreate leads elsewhere once the runtime makes mounts."""
        try:
            status = posix.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if S_ISLNK(status.st_mode):  # a file may be there since this container's last start
            raise Refusal(f"{target} of the image is a link that leads to nothing, and nothing can be mounted there",
                          remedy="make it a file, or remove it", who="image author")

    def require_own_tmpfs(self, fd: int, path: str) -> None:
        entry = self.table.get(mounts.mount_id(fd))
        if entry is None or (entry.fstype, entry.root, self.inside(entry.mountpoint)) != ("tmpfs", "/", path):
            raise Refusal(f"{path} of the container is not the tmpfs that its configuration says", who="user",
                          remedy=f"do not mount anything over {path}")

    def inside(self, mountpoint: str) -> str:
        prefix = self.root.prefix
        return mountpoint[len(prefix):] or "/" if mountpoint.startswith(prefix + "/") or mountpoint == prefix else mountpoint

    def open_sources(self, label: str) -> None:
        """Detaches a private, read-only copy of every host file, and a tmpfs that holds a place for each of the tree."""
        record = self.record
        if len(record["tree"]) > PLENTY:
            raise_descriptor_limit()
        self.sources = [self.open_source(*row[:4]) for row in (*record["in_place"], *record["files"])]
        if not record["tree_at"]:
            return
        self.tree = self.keep(mounts.new_tmpfs(MARK, len(self.cache) + tree_size(record), label))
        for path in record["dirs"]:
            posix.mkdir(path, 0o755, dir_fd=self.tree)
        self.tree_sources = []
        for *row, target in record["tree"]:
            # Not for writing: the mount could not be made read-only.
            place = self.keep(posix.open(target, NEW_FILE & ~posix.O_ACCMODE, 0o444, dir_fd=self.tree))
            self.tree_sources.append((self.open_source(*row), place))
        if record["cache"] is not None:
            write_new(self.tree, "ld.so.cache", self.cache, 0o444)

    def open_source(self, path: str, inode: int, size: int, mtime_ns: int) -> int:
        """A detached, read-only mount of the file, which is looked at through the very descriptor that will be attached."""
        try:
            fd = self.keep(mounts.copy(path))
        except KernelError as error:
            if error.errno not in ABSENT:
                raise
            raise Stale(path) from None
        self.look_at_source(fd, path, inode, size, mtime_ns)
        mounts.make_read_only(fd)
        return fd

    def look_at_source(self, fd: int, path: str, inode: int, size: int, mtime_ns: int) -> None:
        """Raises Stale or Refusal unless an open host file is the one that the plan saw, on a mount that lets programs load it."""
        if not same_file(posix.fstat(fd), inode, size, mtime_ns):
            raise Stale(path)
        folder = path.rpartition("/")[0]
        if folder not in self.folders:
            if posix.fstatvfs(fd).f_flag & posix.ST_NOEXEC:
                raise Refusal(f"{path} lies on a noexec mount of the host: no program could load it",
                              remedy="move the library to a filesystem that is mounted without noexec", who="site admin")
            self.folders.append(folder)

    def look_at_sources(self) -> None:
        """Raises as :meth:`look_at_source` for every host file, without keeping it open: there may be more of them than descriptors."""
        for path, *row in [row[:4] for row in (*self.record["tree"], *self.record["in_place"], *self.record["files"])]:
            try:
                fd = posix.open(path, O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC)
            except OSError:
                raise Stale(path) from None
            try:
                self.look_at_source(fd, path, *row)
            finally:
                posix.close(fd)

    def open_extras(self, extras: Sequence[tuple[str, str]], owners: Sequence[int]) -> None:
        """The same for what is mounted at its own path: (kind, path). What the container has there already stays as it is."""
        for kind, path in extras:
            source = self.open_extra(kind, path, owners)
            if source < 0:
                continue
            target = self.root.find(path)
            names: list[str] = []
            if target >= 0:
                self.keep(target)
                theirs, ours = posix.fstat(target), posix.fstat(source)
                if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
                    continue
                if S_ISDIR(theirs.st_mode) != S_ISDIR(ours.st_mode):
                    raise Refusal(f"{path} is wanted as a {kind} and is something else in the container", who="user",
                                  remedy="mount nothing there, or start without injection")
            else:
                target, names = self.open_parent(path)
                if kind != DEVICE or not self.is_own_dev(target):
                    self.refuse_volume(target, path)
            self.refuse_shared(target, path)
            self.extras.append((path, source, target, names))

    def open_extra(self, kind: str, path: str, owners: Sequence[int]) -> int:
        """A detached mount of it, made harmless; -1 if it is gone, or not what it was."""
        try:
            source = self.keep(mounts.shared_file(path, _ATTRIBUTES[kind]))
        except KernelError as error:
            if error.errno in ABSENT:
                return -1
            raise
        status = posix.fstat(source)
        if kind == DIRECTORY:
            return source if S_ISDIR(status.st_mode) and status.st_uid in owners else -1
        if kind == SOCKET:
            return source if S_ISSOCK(status.st_mode) else -1
        if not S_ISCHR(status.st_mode) and not S_ISBLK(status.st_mode):
            return -1
        self.devices.append(container.device_numbers(status))
        return source

    def open_parent(self, path: str) -> tuple[int, list[str]]:
        """The deepest directory on the way to ``path`` that is there, and the names below it that are not."""
        names = path.strip("/").split("/")
        for count in range(len(names) - 1, -1, -1):
            fd = self.root.find("/" + "/".join(names[:count]))
            if fd >= 0:
                return self.keep(fd), names[count:]
        raise AssertionError("the root is there")

    def is_own_dev(self, fd: int) -> bool:
        """Whether an open directory lies on a tmpfs that is the container's own /dev."""
        entry = self.table.get(mounts.mount_id(fd))
        return entry is not None and (entry.fstype, entry.root, self.inside(entry.mountpoint)) == ("tmpfs", "/", "/dev")

    # -- effects

    def attach(self) -> None:
        """Attaches everything. This process is in the container's namespaces by now."""
        record = self.record
        self.write_files()
        if record["tree_at"]:
            place = self.tree_parent
            if self.tree_name:
                place = self.create(self.tree_parent, self.tree_name, directory=True)
            self.mount(self.tree, place)
            for source, target in self.tree_sources:
                self.mount(source, target)
            mounts.make_read_only(self.tree)
        for source, (_, target) in zip(self.sources, self.in_place):
            self.mount(source, target)
        for folder, target, names in self.covers:
            for name in names:
                target = self.create(target, name, directory=True)
            self.mount(self.keep(mounts.clone(self.tree, folder)), target)
        for source, (_, target, names) in zip(self.sources[len(self.in_place):], self.own):
            for name in names:
                target = self.create(target, name, directory=name is not names[-1])
            self.mount(source, target)
        for _, source, target, names in self.extras:
            directory = S_ISDIR(posix.fstat(source).st_mode)
            for name in names:
                target = self.create(target, name, directory=directory or name is not names[-1])
            self.mount(source, target)
        if self.written:
            self.place_files()
        elif record["cache"] is not None:
            target = self.cache_target
            if target < 0:
                target = self.create(self.cache_parent, self.cache_name, directory=False)
            self.mount(self.keep(mounts.clone(self.tree, "ld.so.cache")), target)

    def write_files(self) -> None:
        """Writes both files, under other names where there are such already; with no room for them, the cache is bound."""
        if self.bound_because:
            return
        try:
            for parent, name, content, replaces in self.files:
                new = f".{name}.{hexlify(posix.urandom(8)).decode()}" if replaces else name
                write_new(parent, new, content, 0o644)
                self.created.append((parent, new, False))
                self.written.append((parent, name, new))
        except OSError as error:
            self.bound_because = f"it cannot be written: {error.strerror}"
            self.written.clear()
            self.take_back()

    def place_files(self) -> None:
        """Gives both files their names: the cache as the last effect of all, so that no other has to be taken back for it."""
        (parent, name, new), cache = self.written
        old = f"{new}~"
        if new != name:
            posix.link(name, old, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
            rename(parent, new, name)
        try:
            rename(*cache[::2], cache[1])
        except OSError:
            if new != name:
                rename(parent, old, name)
            raise
        if new != name:
            posix.unlink(old, dir_fd=parent)

    def mount(self, source: int, target: int) -> None:
        move_mount(source, target)
        self.attached.append(source)

    def create(self, parent: int, name: str, *, directory: bool) -> int:
        """Makes an empty mount point below the directory ``parent`` and returns a descriptor for it."""
        try:
            if directory:
                posix.mkdir(name, 0o755, dir_fd=parent)
            else:
                posix.close(posix.open(name, NEW_FILE, 0o444, dir_fd=parent))
            self.created.append((parent, name, directory))
            new = True
        except FileExistsError:
            new = False  # a start before this one of the same container made it; it is checked below and only mounted over
        except OSError as error:
            if error.errno in (EROFS, EACCES, EPERM):
                raise Refusal(f"the mount point {name} cannot be made in the container: {error.strerror}",
                              remedy="make the root filesystem writable, or add an empty file or directory of that name to the image",
                              who="image author") from None
            raise
        fd = self.keep(posix.open(name, O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=parent))
        mode = posix.fstat(fd).st_mode
        if directory != S_ISDIR(mode) or not (directory or S_ISREG(mode)):
            raise Refusal(f"{name} exists in the container and is not an empty mount point", who="image author",
                          remedy=f"remove {name} from the image")
        if not new:
            self.refuse_shared(fd, name)
        return fd

    def close(self) -> None:
        """Closes all descriptors; unless everything was attached, takes back what was."""
        if not self.done:
            for fd in reversed(self.attached):
                try:
                    mounts.detach(fd)
                except KernelError:
                    pass  # it goes with the namespace: the runtime ends a container whose hook failed
            self.take_back()
        if self.fds and max(self.fds) - min(self.fds) + 1 == len(self.fds):  # nobody else's is among them: one call
            posix.closerange(min(self.fds), max(self.fds) + 1)
        else:
            for fd in self.fds:
                try:
                    posix.close(fd)
                except OSError:  # close(2): the descriptor is gone all the same, and all that was to be done with it is done
                    pass
        self.fds.clear()

    def take_back(self) -> None:
        """Removes what was created."""
        for parent, name, directory in reversed(self.created):
            try:
                if directory:
                    posix.rmdir(name, dir_fd=parent)
                else:
                    posix.unlink(name, dir_fd=parent)
            except OSError:
                pass
        self.created.clear()


def write_new(parent: int, name: str, content: bytes, mode: int) -> None:
    """A new file in the directory ``parent``, or none. It is not synced: a container does not outlive its node."""
    fd = posix.open(name, NEW_FILE, mode, dir_fd=parent)
    try:
        try:
            jsontext.write_fd(fd, content)
        finally:
            posix.close(fd)  # where a file server tells that it had no room
    except OSError:
        posix.unlink(name, dir_fd=parent)
        raise


def rename(parent: int, name: str, to: str) -> None:
    posix.rename(name, to, src_dir_fd=parent, dst_dir_fd=parent)


def tree_size(record: dict[str, Any]) -> int:
    """Bytes that the tmpfs of a tree needs for its directories and mount points."""
    return TREE_PAGE * (len(record["dirs"]) + len(record["tree"]) + 3)


def prepare(record: dict[str, Any], cache: bytes, root: Root, table: mounts.MountTable, foreign: str,
            extras: Sequence[tuple[str, str]] = (), owners: Sequence[int] = ()) -> tuple[str, str, list[str]]:
    """For whom the runtime makes the mounts: raises Stale or Refusal as :func:`inject` would, and does of its work what is no mount: the
    loader's cache as a file. Returns the same, and the paths of those ``extras`` that are to be mounted. ``foreign`` says why nothing may
    be written, "" if it may.

    ``root`` has the container's volumes on it, but not yet what the runtime itself puts into /dev.
    """
    injection = Injection(record, cache, root, table)
    try:
        injection.open_targets()
        if record["tree_make"] != "dev":
            injection.open_tree_place()
        injection.look_at_sources()
        injection.open_extras([extra for extra in extras if extra[0] != DEVICE], owners)
        wanted = [path for path, *_ in injection.extras] + [path for kind, path in extras if kind == DEVICE]
        if record["cache"] is None:
            return "", "", wanted
        if record["cache"]["drop_in"] is not None:
            injection.bound_because = injection.bound_because or foreign
        injection.write_files()
        if injection.written:
            injection.place_files()
        injection.done = True
        return "file" if injection.written else "bind", injection.bound_because, wanted
    finally:
        injection.close()


def raise_descriptor_limit() -> None:
    """As many descriptors as this process may have at all (setrlimit(2))."""
    import resource  # not built in everywhere, and hardly ever needed

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def inject(record: dict[str, Any], cache: bytes, root: Root, table: mounts.MountTable, label: str,
           join: Callable[[list[tuple[str, int, int]]], None], extras: Sequence[tuple[str, str]] = (),
           owners: Sequence[int] = (), last: Callable[[], None] | None = None) -> tuple[str, str]:
    """Applies ``record`` to a container that is being created. Returns how the loader's cache arrived, "file", "bind" or "" for none, and
    why it is bound where it was to be a file.

    ``root`` is its root filesystem in its own mount namespace, ``table`` that namespace's mounts, ``label`` its SELinux mount label;
    ``join`` brings this process into the container's namespaces, after it has let its cgroup use the devices it is told, which are those
    that will be there, by the descriptors that will be mounted. ``extras`` are (kind, path) of what of the host appears at its own path
    beside the record's files; a directory must belong to one of ``owners``. ``last`` is done when all is attached, and if it fails all is
    taken back. Raises Stale or Refusal before ``join``, and KernelError, OSError or Refusal after it; in every case nothing is left behind.
    """
    injection = Injection(record, cache, root, table)
    try:
        injection.open_targets()
        injection.open_tree_place()
        injection.open_sources(label)
        injection.open_extras(extras, owners)
        join(injection.devices)
        injection.attach()
        if last is not None:
            last()
        injection.done = True
        way = "" if record["cache"] is None else "file" if injection.written else "bind"
        return way, injection.bound_because
    finally:
        injection.close()
