"""podman's precreate stage: the plan becomes edits of what the runtime gets (light module: see :mod:`oci_hpc_hooks.warm`).

Nothing of the container is running yet. Its root filesystem is mounted, its volumes are not; so that the loader is followed through
the same tree that the program will see, the volumes are mounted in a mount namespace that ends with this process.
"""

from __future__ import annotations

import posix
from _stat import S_ISDIR, S_ISREG
from binascii import crc32

from oci_hpc_hooks.apply import config, rootfs
from oci_hpc_hooks.errors import HookError, InputError, KernelError
from oci_hpc_hooks.inputs import container, jsontext
from oci_hpc_hooks.linux import mounts, namespaces, syscalls
from oci_hpc_hooks.linux.paths import ABSENT, Root
from oci_hpc_hooks.replay import Service, give_up_privileges, owned, volumes_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from oci_hpc_hooks.wireup import WireUp


#: What asks for interfaces (decide/request.py, which is not light).
NETWORK = "org.supercontainers.network"


class Proposal(Service):
    """A start that asks for something, before the runtime knows of it."""

    __slots__ = ()

    def look(self) -> bool:
        if self.wants_interfaces():
            # Its network namespace is not there yet. The runtime could move interfaces (linux.netDevices, runtime-spec 1.3), but nothing
            # tells this hook which runtime it will be, and one that does not know the key passes it over without a word.
            return self.leave(InputError("network interfaces are brought in at createRuntime, and no hook of ours is registered for that",
                                         remedy="give podman both hooks of the folder podman", who="site admin"))
        try:
            volumes = volumes_of(self.start)
            own = [mount for mount in volumes if mount[0] not in ("/proc", "/sys", "/dev")]
            if own:
                own_mount_namespace()
            # Others may exchange what leads to a root filesystem that no engine has made, and nothing tells yet what the runtime will find.
            resolve = 0 if self.start.image.image_id else syscalls.RESOLVE_NO_SYMLINKS
            self.root = Root(syscalls.openat2(syscalls.AT_FDCWD, self.start.rootfs, syscalls.O_PATH | posix.O_DIRECTORY, resolve))
            if self.comes_later():
                return self.leave(InputError("podman mounts the root filesystem later, and no hook of ours is registered for then",
                                             remedy="give podman both hooks of the folder podman", who="site admin"))
            for where, kind, source, options in own:
                self.lay(where, kind, source, options)
        except (HookError, OSError) as trouble:
            return self.leave(trouble)
        self.table = mounts.mount_table()
        return True

    def wants_interfaces(self) -> bool:
        """Whether the caller or the site asks for some, and the container gets a network of its own."""
        if not any(kind == "network" for kind, _ in container.namespaces(self.start.config)):
            return False
        words = [(key, value) for source, key, value in self.start.words if source == "annotation"]
        return any(key == NETWORK and value.strip().lower() != "none" for key, value in (*words, *self.start.defaults))

    def comes_later(self) -> bool:
        """podman 5 names a place in /var/tmp, the same for all containers, and mounts the root filesystem of a container with a user
        namespace there afterwards: what it holds now is not the container's, and nothing may be made in it."""
        if not self.start.image.image_id or "/overlay-containers/" not in self.start.state.bundle:
            return False
        above = posix.open("..", syscalls.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=self.root.fd)
        same = mounts.mount_id(above) == mounts.mount_id(self.root.fd)
        posix.close(above)
        return same

    def leave(self, trouble: HookError | OSError) -> bool:
        """Leaves the container to our createRuntime hook. Raises the trouble where there is none."""
        if not config.has_own_hook(self.start.config):
            raise trouble
        self.start.leave = True
        return False

    def is_served(self) -> bool:
        return config.is_injected(self.start.config)

    def apply(self, record: dict[str, Any], cache: bytes, more: WireUp | None,
              before: Callable[[], None] | None = None) -> tuple[str, str]:
        if before is not None:
            before()
        own = container.user_namespace(self.start.config) is not None
        foreign = "it would belong to nobody in the container's user namespace" if own else ""
        extras, owners = (more.mounts, more.owners) if more else ([], ())
        way, because, wanted = rootfs.prepare(record, cache, self.root, self.table, foreign, extras, owners)
        try:
            file = cache_file(self.places.cache + "/plans", cache) if way == "bind" else ""
        except OSError as error:
            raise InputError(f"the loader's cache cannot be kept in {self.places.cache}: {error.strerror}",
                             remedy="make it a directory that this user can write", who="site admin") from None
        extras = [extra for extra in extras if extra[1] in wanted]
        # A runtime without privileges of its own cannot keep devices closed.
        rules = [] if namespaces.in_own_user_namespace() else config.device_rules(extras)
        give_up_privileges()
        self.start.edited = True  # and from here on nothing fails: half an edit would go on to podman
        config.inject(self.start.config, record, file, rootfs.tree_size(record))
        if more is not None:
            config.wire_up(self.start.config, extras, more.variables, rules)
            if more.groups:
                config.join(self.start.config, more.groups)
            if more.hidden:
                config.hide(self.start.config, more.hidden)
        return way, because

    def lay(self, where: str, kind: str, source: str, options: list[str]) -> None:
        """Mounts one volume as the runtime will."""
        if kind == "tmpfs":
            mount = mounts.new_tmpfs("tmpfs", rootfs.TREE_PAGE)
        elif kind == "bind" or "bind" in options or "rbind" in options:
            below = syscalls.AT_RECURSIVE if "rbind" in options else 0
            mount = syscalls.open_tree(syscalls.AT_FDCWD, source, syscalls.OPEN_TREE_CLONE | below)
        else:
            raise InputError(f"the volume {where} is of the type {kind}, which cannot be looked into before the container is created")
        syscalls.move_mount(mount, self.place(where, S_ISDIR(posix.fstat(mount).st_mode)))
        if "shared" in options or "rshared" in options:
            syscalls.mount_setattr(mount, 0, 0, syscalls.MS_SHARED)

    def place(self, where: str, directory: bool) -> int:
        """The mount point of a volume; one that is missing is made in the container's own layer, as the runtime would."""
        root_mount = mounts.mount_id(self.root.fd)
        parent = self.root.open("/")
        names = where.strip("/").split("/")
        for index, name in enumerate(names):
            path = "/".join(names[:index + 1])
            try:
                parent = self.root.open(path)
                continue
            except KernelError as error:
                if error.errno not in ABSENT:
                    raise
            if mounts.mount_id(parent) != root_mount:
                raise InputError(f"the mount point {where} is missing in another volume")
            if directory or index + 1 < len(names):
                posix.mkdir(name, 0o755, dir_fd=parent)
            else:
                posix.close(posix.open(name, rootfs.NEW_FILE, 0o644, dir_fd=parent))
            parent = self.root.open(path)
        return parent


def own_mount_namespace() -> None:
    """A mount namespace whose mounts nobody else sees."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    top = posix.open("/", syscalls.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    syscalls.mount_setattr(top, syscalls.AT_RECURSIVE, 0, syscalls.MS_PRIVATE)
    posix.close(top)


def cache_file(path: str, cache: bytes) -> str:
    """The path of a file with these bytes in a folder of our own, for the runtime to mount; it is written whole or not at all. Raises
    OSError."""
    folder = posix.open(path, syscalls.O_PATH | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    if not owned(posix.fstat(folder)):
        raise PermissionError(syscalls.EPERM, "it belongs to another user, or others can write it")
    number = 0
    while True:
        # A checksum can be forged by an image's author, and a container that is starting has another's file by its name: so a whole file is
        # never replaced, and another cache of the same sum gets another name.
        name = f"{crc32(cache):08x}-{len(cache)}-{number}.ldcache"
        known = whole_file(folder, name, len(cache))
        if known is None:
            temporary = f"{name}.{posix.getpid()}"
            rootfs.write_new(folder, temporary, cache, 0o644)
            rootfs.rename(folder, temporary, name)
        elif known != cache:
            number += 1
            continue
        posix.close(folder)
        return f"{path}/{name}"


def whole_file(folder: int, name: str, size: int) -> bytes | None:
    """The content of a file of our own, of this size; None if there is none. Raises OSError."""
    try:
        fd = posix.open(name, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in (syscalls.ENOENT, syscalls.ELOOP):
            return None
        raise
    try:
        status = posix.fstat(fd)
        whole = owned(status) and S_ISREG(status.st_mode) and status.st_size == size
        return jsontext.read_fd(fd, name, size, size) if whole else None
    finally:
        posix.close(fd)
