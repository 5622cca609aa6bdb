"""The test bed's harness: real containers with every engine, on whatever machine this is.

Some machines need work-arounds before podman starts anything: no CAP_SYS_RESOURCE, a hybrid cgroup hierarchy, no session
of systemd, a closed /dev/net/tun. Each is probed for here and applied only where it is needed, and none touches /etc:
what podman has to know goes into a containers.conf and a storage.conf of the bed's own, named by environment variables, so that
plain ``podman`` works for whoever has that environment (``make shell``).

A hybrid cgroup hierarchy, which crun refuses, is hidden in one mount namespace that every process of the bed enters
(`enter`). Containers of either runtime and any user then live in it, and a mount that a hook leaks is found there. With it goes
a /dev/shm and a /run/user/UID of this checkout's own.

Run as a program::

    bed.py exec [--user root|hpcuser] COMMAND...   run it with the bed's environment
    bed.py shell                                   an interactive shell with it
    bed.py load IMAGE...                           bring images into root's and the user's store
    bed.py machine                                 what was probed, as JSON
    bed.py clean                                   remove the bed's containers, stores and mounts
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import grp
import hashlib
import json
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, Optional

ROOT = Path(__file__).resolve().parents[2]
BUILD = (ROOT / "build").resolve()
BED = BUILD / "bed"
RUN = Path(f"/run/oci-hpc-hooks-bed-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}")  # one per checkout
USER = "hpcuser"
RUNTIMES = ("crun", "runc")
USERS = ("root", "rootless", "keep-id")

Result = subprocess.CompletedProcess[str]

#: The newest commands of `Account.execute`: what tests/conftest.py shows of a test that failed.
last_commands: collections.deque[Result] = collections.deque(maxlen=4)


# ------------------------------------------------------------------------------------------------ images


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an image comes into a store: a root file system of images.sh, imported, or another image with labels on top."""

    tar: Optional[str] = None  # below build/images, imported as it is: no labels
    base: Optional[str] = None  # or: FROM this image
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: Sequence[str] = ()
    add: str = dataclasses.field(default="", repr=False)  # a folder below build/images, copied over `base`


def _labelled(base: str, glibc: Optional[str], *command: str, mpi: str = "mpich") -> Recipe:
    labels = {"org.supercontainers.mpi": mpi}
    if glibc:
        labels["org.supercontainers.glibc"] = glibc
    return Recipe(base=base, labels=labels, command=command)


IMAGES: Mapping[str, Recipe] = {
    "bookworm-mpich-nolabel": Recipe(tar="bookworm.tar"),
    "bookworm-mpich": _labelled("bookworm-mpich-nolabel", "2.36", "mpihello"),
    "bookworm-openmpi-nolabel": Recipe(tar="bookworm-openmpi.tar"),
    "bookworm-openmpi": _labelled("bookworm-openmpi-nolabel", "2.36", "ompihello", mpi="openmpi"),
    "bookworm-both-nolabel": Recipe(tar="bookworm-both.tar"),
    "bookworm-both": _labelled("bookworm-both-nolabel", "2.36", "ompihello", mpi="openmpi"),
    "bookworm-abi-nolabel": Recipe(tar="bookworm-abi.tar"),
    "bookworm-abi": _labelled("bookworm-abi-nolabel", "2.36", "abihello", mpi="mpi-abi"),
    "bullseye-mpich-nolabel": Recipe(tar="bullseye.tar"),
    "bullseye-mpich": _labelled("bullseye-mpich-nolabel", "2.31", "mpihello"),
    "nocache-nolabel": Recipe(tar="nocache.tar"),
    "nocache": _labelled("nocache-nolabel", "2.36", "mpihello"),
    "musl-nolabel": Recipe(tar="musl.tar"),
    "musl": _labelled("musl-nolabel", None, "muslhello"),
    "static-nolabel": Recipe(tar="static.tar"),
    "static": _labelled("static-nolabel", None, "statichello"),
    **{name: Recipe(tar=f"{name}.tar") for name in ("fabrics", "fabrics-old")},
    **{f"opencl-{suite}": Recipe(tar=f"opencl-{suite}.tar") for suite in ("bullseye", "bookworm", "trixie")},
    # For benchmarks/application.py.
    "apps-openmpi-nolabel": Recipe(tar="apps-openmpi.tar"),
    "apps-openmpi": _labelled("apps-openmpi-nolabel", "2.36", "mpibench", mpi="openmpi"),
    "apps-mpich-nolabel": Recipe(tar="apps-mpich.tar"),
    "apps-mpich": _labelled("apps-mpich-nolabel", "2.36", "mpibench"),
    # For the matrix, which asks by annotation: no labels.
    "bullseye-openmpi": Recipe(tar="bullseye-openmpi.tar"),
    "debian13-mpich": Recipe(tar="debian13.tar"),
    "debian13-openmpi": Recipe(tar="debian13-openmpi.tar"),
    "spack": Recipe(tar="spack.tar"),
    "conda": Recipe(tar="conda.tar"),
    "conda-openmpi": Recipe(tar="conda-openmpi.tar"),
    "mpi4py": Recipe(tar="mpi4py.tar"),
    "mpi4py-wheel": Recipe(base="mpi4py", add="mpi4py-wheel"),
    "fortran": Recipe(base="bookworm-mpich-nolabel", add="fortran"),
    "fortran-openmpi": Recipe(base="bookworm-openmpi-nolabel", add="fortran-openmpi"),
    "distroless": Recipe(tar="distroless.tar"),
}


def reference(image: str) -> str:
    """The full reference of one of `IMAGES`; any other name is taken as it is."""
    return f"localhost/bed/{image}:latest" if image in IMAGES else image


# ------------------------------------------------------------------------------------------------ the machine


@dataclasses.dataclass(frozen=True)
class Machine:
    """What probing found. Each field that is not falsy is one work-around in force."""

    lower_ulimits: bool  # no CAP_SYS_RESOURCE: podman's default RLIMIT_NOFILE and RLIMIT_NPROC cannot be set
    hybrid: str  # the cgroup v2 mount point beside v1 controllers ("" if there is none): crun refuses it
    no_tun: bool  # the user cannot open /dev/net/tun: rootless containers take --net=none or --net=host


CAP_SYS_RESOURCE = 24
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000


def _capable(capability: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def _hybrid_mount() -> str:
    kinds: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        if fields[4].startswith("/sys/fs/cgroup/"):
            kinds[kind] = fields[4]
    return kinds.get("cgroup2", "") if "cgroup" in kinds else ""


@functools.cache
def machine() -> Machine:
    """Probe this machine, before `enter` changes what there is to see."""
    tun = subprocess.run(["test", "-w", "/dev/net/tun"], user=USER, group=USER, extra_groups=[], check=False)
    return Machine(
        lower_ulimits=not _capable(CAP_SYS_RESOURCE),
        hybrid=_hybrid_mount(),
        no_tun=tun.returncode != 0,
    )


@functools.cache
def enter() -> None:
    """Probe, write the bed's configuration and, where the hierarchy is hybrid, move this process into the bed's mount
    namespace, which has no cgroup v2 mount. Child processes inherit it. Does nothing a second time.

    Raises OSError if the kernel refuses the namespace.
    """
    found = machine()
    if found.hybrid:
        _join_namespace(found.hybrid)
    for account in (root_account(), user_account()):
        account.write_configuration(found)


def _join_namespace(hybrid: str) -> None:
    """Enter the bed's mount namespace. It is one for all, since rootless podman keeps a process whose namespaces its later
    calls join: with one each, they would join another's mounts. A sleeping process holds it (to pin it by a bind mount of
    /proc/PID/ns/mnt fails now and then with EINVAL on Linux 6.18, which takes it for a loop)."""
    RUN.mkdir(mode=0o755, exist_ok=True)
    with open(RUN / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        holder = _holder() or _start_holder(hybrid)
        libc = ctypes.CDLL(None, use_errno=True)
        cwd = os.getcwd()
        with open(f"/proc/{holder}/ns/mnt") as namespace:
            if libc.unshare(CLONE_FS) or libc.setns(namespace.fileno(), CLONE_NEWNS):
                error = ctypes.get_errno()
                raise OSError(error, f"entering the bed's mount namespace: {os.strerror(error)}")
        os.chdir(cwd)


def _holder() -> int:
    """The process that holds the namespace; 0 if there is none. Its id alone could be another's by now."""
    try:
        pid, inode = map(int, (RUN / "holder").read_text().split())
        return pid if os.stat(f"/proc/{pid}/ns/mnt").st_ino == inode else 0
    except (OSError, ValueError):
        return 0


def _start_holder(hybrid: str) -> int:
    _kill(_pause_pids())  # it holds mounts of a namespace that is gone
    user = user_account()
    script = " && ".join([
        f"umount {hybrid}",
        # Where podman's locks and a user's remembered plans lie: other checkouts on this machine have theirs there too.
        "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
        f"mount -t tmpfs -o mode=700,uid={user.uid},gid={user.gid} tmpfs {user.runtime_dir}",
        # Shared, so that mounts reach the namespaces of rootless podman as on a host with systemd.
        "mount --make-rshared /",
        "{ (exec -a oci-hpc-hooks-bed sleep infinity) >/dev/null 2>&1 & echo $!; }",
    ])
    command = ["unshare", "--mount", "--propagation", "slave", "bash", "-c", script]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, start_new_session=True, check=True, timeout=30).stdout)
    _write(RUN / "holder", f"{pid} {os.stat(f'/proc/{pid}/ns/mnt').st_ino}\n")
    return pid


# ------------------------------------------------------------------------------------------------ accounts and their stores


@dataclasses.dataclass(frozen=True)
class Account:
    """Who starts containers, and where this one's images, containers and configuration lie."""

    name: str
    uid: int
    gid: int
    home: str
    image_stores: Sequence[Path] = ()  # further stores whose images this account may use, read-only

    @property
    def folder(self) -> Path:
        """Images, containers and configuration; on disk."""
        return BED / self.name

    @property
    def storage_conf(self) -> Path:
        return self.folder / "config/containers/storage.conf"

    @property
    def run_folder(self) -> Path:
        """podman's state of this boot; short, because sockets lie in it (108 characters)."""
        return RUN / self.name

    @property
    def runtime_dir(self) -> Path:
        """The folder of a user's session, made by setup.sh: where the hooks keep a user's plans."""
        return Path(f"/run/user/{self.uid}")

    @property
    def podman_dir(self) -> Path:
        """What podman gets as the user's XDG_RUNTIME_DIR: one for each checkout, since rootless podman keeps there the id of the
        process whose namespaces later calls join."""
        return self.run_folder / "xdg"

    @property
    def tmp_dir(self) -> Path:
        """podman's tmp_dir: where it would be without configuration, or podman looks for that process in two places."""
        return self.podman_dir / "libpod/tmp"

    def environment(self) -> dict[str, str]:
        """The environment that makes plain ``podman`` and ``buildah`` use the bed's stores."""
        keep = {key: os.environ[key] for key in ("TERM", "LANG", "COLORTERM", "PYTHONPATH") if key in os.environ}
        # Rootless podman takes graphroot and driver only from its user's own storage.conf.
        if self.uid:
            storage = {"XDG_CONFIG_HOME": str(self.folder / "config"), "XDG_RUNTIME_DIR": str(self.podman_dir)}
        else:
            storage = {"CONTAINERS_STORAGE_CONF": str(self.storage_conf)}
        return {
            **keep,
            **storage,
            "PATH": f"{BED}/bin:{BUILD}/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": self.home,
            "USER": self.name,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",  # podman 5 would say so at each start
        }

    def write_configuration(self, found: Machine) -> None:
        """containers.conf and storage.conf of this account, and the folders they name. For root to call."""
        ulimits = ""
        if found.lower_ulimits:
            files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)
            ulimits = f'default_ulimits = ["nofile=1024:{files}", "nproc=4096:4096"]\n'
        os.makedirs(BED, mode=0o755, exist_ok=True)
        self.storage_conf.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        for folder, mode in ((self.folder, 0o755), (self.run_folder, 0o755), (self.podman_dir, 0o700)):
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            os.chown(folder, self.uid, self.gid)
        _write(
            self.folder / "containers.conf",
            f"# Written by {Path(__file__).name}\n[containers]\n{ulimits}\n"
            '[network]\nnetwork_backend = "netavark"\n\n'
            '[engine]\nruntime = "crun"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'tmp_dir = "{self.tmp_dir}"\n',
        )
        _write(
            self.storage_conf,
            f"# Written by {Path(__file__).name}\n[storage]\n"
            f'driver = "overlay"\ngraphroot = "{self.folder}/storage"\nrunroot = "{self.run_folder}/run"\n'
            f"[storage.options]\nadditionalimagestores = {json.dumps([str(store) for store in self.image_stores])}\n",
        )

    def execute(
        self,
        *command: str,
        env: Optional[Mapping[str, str]] = None,
        timeout: float = 60,
        stdin: str = "",
        cwd: str = "/",
        check: bool = False,
    ) -> Result:
        """Run a command as this account with the bed's environment plus `env`; stdout and stderr come back as text.

        Raises subprocess.TimeoutExpired after `timeout` seconds, and RuntimeError with all the output if `check` is set and
        the command fails.
        """
        enter()
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=timeout,
            cwd=cwd,
            env={**self.environment(), **(env or {})},
            user=self.uid,
            group=self.gid,
            extra_groups=[] if self.uid else None,
            umask=0o022,
            check=False,
        )
        last_commands.append(done)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        scratch.write_text(text)
        scratch.chmod(0o644)
        scratch.rename(path)


def _account(name: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)


@functools.cache
def root_account() -> Account:
    return _account("root")


@functools.cache
def user_account() -> Account:
    """The unprivileged account that setup.sh made. Raises KeyError if it has not run."""
    return _account(USER)


# ------------------------------------------------------------------------------------------------ engines


@functools.cache
def version(program: str) -> tuple[int, int]:
    """Major and minor version of podman, crun or runc as it is installed here: tests differ by it where the engines do."""
    said = subprocess.run([program, "--version"], stdout=subprocess.PIPE, encoding="utf-8", check=True, timeout=30).stdout
    major, minor = said.splitlines()[0].split("version ")[1].split(".")[:2]
    return int(major), int(minor)


class Engine:
    """podman with one runtime and one kind of user; starts real containers.

    `runtime`: "crun" or "runc". `user`: "root"; "rootless" (hpcuser, who is root inside); "keep-id" (hpcuser, who is
    hpcuser inside).
    """

    _serial = 0  # containers that this process has named
    _named: dict[str, Engine] = {}  # those that a caller looks after itself

    def __init__(self, runtime: str = "crun", user: str = "root") -> None:
        if runtime not in RUNTIMES or user not in USERS:
            raise ValueError(f"no such engine: {runtime}, {user}")
        self.runtime = runtime
        self.user = user
        self.account = root_account() if user == "root" else user_account()
        enter()

    def __repr__(self) -> str:
        return f"{self.runtime}-{self.user}"

    def podman(
        self,
        *arguments: str,
        env: Optional[Mapping[str, str]] = None,
        timeout: float = 60,
        stdin: str = "",
        cwd: str = "/",
        check: bool = False,
    ) -> Result:
        """``podman --runtime R ARGUMENTS`` as this engine's user; see `Account.execute`."""
        return self.account.execute(
            "podman", "--runtime", self.runtime, *arguments, env=env, timeout=timeout, stdin=stdin, cwd=cwd, check=check
        )

    def run(
        self,
        image: str,
        *command: str,
        options: Sequence[str] = (),
        hooks_dir: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
        timeout: float = 60,
        cwd: str = "/",
    ) -> Result:
        """``podman run --rm`` of one of `IMAGES` (loaded if need be) or of any reference, without a network unless `options`
        name one. `env` is podman's own environment, not the container's.

        A container that outlives `timeout` seconds, or its podman, is removed before subprocess.TimeoutExpired is raised.
        """
        name = self._next_name()
        arguments = ["--hooks-dir", str(hooks_dir)] if hooks_dir else []
        arguments += ["run", "--rm", "--name", name]
        if self.user == "keep-id" and not any(option.startswith(("--userns", "--uidmap")) for option in options):
            arguments.append("--userns=keep-id")
        if not any(option.startswith("--net") for option in options):
            arguments.append("--net=none")
        arguments += [*options, self.load(image), *command]
        try:
            return self.podman(*arguments, env=env, timeout=timeout, cwd=cwd)
        except BaseException:
            self.remove(name)
            raise

    def new_name(self) -> str:
        """A container name that no other process of the bed uses; `remove_named` knows it."""
        name = self._next_name()
        Engine._named[name] = self
        return name

    @staticmethod
    def _next_name() -> str:
        Engine._serial += 1
        return f"bed-{os.getpid()}-{Engine._serial}"

    @staticmethod
    def remove_named() -> None:
        """Remove every container that was started under a name of `new_name` and is still there."""
        while Engine._named:
            name, engine = Engine._named.popitem()
            engine.remove(name)

    def remove(self, *names: str) -> None:
        """Kill and remove containers; those that are gone already are no error."""
        if names:
            self.podman("rm", "--force", "--ignore", "--time", "0", *names, timeout=120)

    def load(self, image: str) -> str:
        """Bring one of `IMAGES` into this user's store, if it is not there as built now; returns its full reference."""
        if image in IMAGES:
            _load(self.account, image)
        return reference(image)

    # -- bare runtimes

    def runtime_run(
        self,
        bundle: Path,
        *,
        options: Sequence[str] = (),
        env: Optional[Mapping[str, str]] = None,
        timeout: float = 60,
    ) -> Result:
        """``crun run`` or ``runc run`` of an OCI bundle, without podman; rootful only. See `bundle`."""
        if self.user != "root":
            raise ValueError("bare runtimes run bundles as root only")
        name = self._next_name()
        try:
            return self.account.execute(self.runtime, *options, "run", "--bundle", str(bundle), name, env=env, timeout=timeout)
        finally:
            self.account.execute(self.runtime, "delete", "--force", name, timeout=60)

    @contextlib.contextmanager
    def bundle(
        self,
        folder: Path,
        rootfs: str,
        command: Sequence[str],
        *,
        annotations: Optional[Mapping[str, str]] = None,
        hooks: Optional[Mapping[str, object]] = None,
        env: Sequence[str] = (),
        readonly: bool = False,
    ) -> Iterator[Path]:
        """An OCI bundle made in `folder`: this runtime's own default specification with the command, annotations, environment
        and hooks put in, over a root file system of images.sh. What the container writes lands in ``folder/upper``.
        """
        enter()
        for name in ("upper", "work", "rootfs"):
            (folder / name).mkdir(parents=True)
        subprocess.run([self.runtime, "spec"], cwd=folder, check=True, timeout=30)
        config = json.loads((folder / "config.json").read_text())
        config["root"] = {"path": "rootfs", "readonly": readonly}
        config["process"].update(terminal=False, args=list(command))
        config["process"]["env"] = ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", *env]
        config["annotations"] = dict(annotations or {})
        if hooks:
            config["hooks"] = hooks
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        layers = f"lowerdir={BUILD}/images/{rootfs},upperdir={folder}/upper,workdir={folder}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", folder / "rootfs"], check=True, timeout=30)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--recursive", folder / "rootfs"], check=True, timeout=30)


def stamp(image: str) -> str:
    """Changes with whatever the image is made of."""
    recipe = IMAGES[image]
    if recipe.tar:
        source = BUILD / "images" / recipe.tar
        if not source.exists():
            raise FileNotFoundError(f"{source}: not built yet; run `make images`")
        made_of = f"{source.stat().st_mtime_ns} {source.stat().st_size}"
    else:
        made_of = stamp(str(recipe.base))
        if recipe.add:
            made_of += (BUILD / "stamps" / recipe.add).read_text()
    return hashlib.sha256(f"{recipe}{made_of}".encode()).hexdigest()


@functools.cache
def _load(account: Account, image: str) -> None:
    recipe, name = IMAGES[image], reference(image)
    record = account.folder / "loaded" / image
    if recipe.base:
        _load(account, recipe.base)
    made_of = stamp(image)
    if record.exists() and record.read_text() == made_of and account.execute("podman", "image", "exists", name).returncode == 0:
        return
    if recipe.tar:
        account.execute("podman", "import", "--quiet", str(BUILD / "images" / recipe.tar), name, timeout=300, check=True)
    else:
        # As an image's author would do it: a Containerfile with labels.
        lines = [f"FROM {reference(str(recipe.base))}"]
        lines += [f'LABEL {key}="{value}"' for key, value in recipe.labels.items()]
        lines += ["COPY . /"] if recipe.add else []
        lines += ["ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", f"CMD {json.dumps(list(recipe.command))}"]
        context = account.run_folder / "context"
        context.mkdir(mode=0o755, exist_ok=True)
        _write(context / "Containerfile", "\n".join(lines) + "\n")
        files = str(BUILD / "images" / recipe.add if recipe.add else context)
        account.execute("podman", "build", "--quiet", "--pull=never", "--file", str(context / "Containerfile"), "--tag", name, files,
                        timeout=300, check=True)
    record.parent.mkdir(mode=0o755, exist_ok=True)
    record.write_text(made_of)


def scratch(name: str) -> Path:
    """A new empty folder, root's, readable by everyone, on a path that only root can write."""
    folder = BED / "tmp" / f"{name}-{os.getpid()}-{time.monotonic_ns()}"
    enter()
    folder.mkdir(mode=0o755, parents=True)
    return folder


# ------------------------------------------------------------------------------------------------ leaks


@dataclasses.dataclass(frozen=True)
class HostState:
    """What a container, or a hook, must leave as it was: mounts of every namespace concerned, and files of shared places."""

    mounts: frozenset[str]
    files: frozenset[str]


def host_state() -> HostState:
    """Take stock: mounts of this process's namespace, of process 1's, and of the namespace that rootless podman keeps; files
    directly in /dev/shm, /run, /tmp and /var/tmp."""
    enter()
    mounts: set[str] = set()
    own = os.readlink("/proc/self/ns/mnt")
    for pid in ["self", "1", *_pause_pids()]:
        try:
            private = pid == "self" or os.readlink(f"/proc/{pid}/ns/mnt") != own
            lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if private else []
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            where, kind, source = fields[4], *fields[fields.index("-") + 1 :][:2]
            if where.startswith(f"{BED}/") and "/storage/overlay" in where:
                continue  # podman's own: the store and the root file systems of containers on their way out
            # Process 1 sees what others mount meanwhile: only what may be ours counts.
            if pid != "1" or str(BUILD) in line or "hpc" in line:
                mounts.add(f"{'host' if pid == '1' else 'bed'}: {where} ({kind} {source})")
    files = {
        f"{folder}/{name}"
        for folder in ("/dev/shm", "/run", "/tmp", "/var/tmp", "/dev")
        for name in os.listdir(folder)
        if folder not in ("/tmp", "/var/tmp") or "hpc" in name or "oci" in name
    }
    return HostState(mounts=frozenset(mounts), files=frozenset(files))


# What the engines themselves make once and keep.
_KEPT = ("/dev/shm/libpod", "/run/crun", "/run/runc", "/run/user", "/run/netns", "/run/lock", "/run/containers", "/run/libpod",
         "/run/oci-hpc-hooks-bed-", "/run/netavark", "/run/cdi")  # fmt: skip


def leaks(before: HostState, patience: float = 3) -> list[str]:
    """What has come since `before` and stays for `patience` seconds (podman tidies up in the background)."""
    deadline = time.monotonic() + patience
    while True:
        now = host_state()
        left = sorted(now.mounts - before.mounts) + sorted(f for f in now.files - before.files if not f.startswith(_KEPT))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _pause_pids() -> list[str]:
    """The process, if there is one, that keeps the user's rootless namespaces."""
    try:
        pid = (user_account().tmp_dir / "pause.pid").read_text().strip()
        return [pid] if Path(f"/proc/{pid}/comm").read_text().strip() in ("catatonit", "podman pause") else []
    except (OSError, KeyError):
        return []


@contextlib.contextmanager
def shared_mount(folder: Path) -> Iterator[Path]:
    """Make `folder` a mount point of its own whose mount is shared, as `--volume …:rshared` asks; undone at the end with all
    that was mounted in it."""
    enter()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", folder, folder], check=True, timeout=30)
    subprocess.run(["mount", "--make-shared", folder], check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--recursive", folder], check=True, timeout=30)


# ------------------------------------------------------------------------------------------------ tidying up


def clean() -> None:
    """Remove every container, image, store, mount and folder of the bed; the rest of build/ is the Makefile's."""
    if BED.exists():
        enter()
        for account in (root_account(), user_account()):
            account.execute("podman", "rm", "--all", "--force", "--time", "0", timeout=300)
            account.execute("podman", "volume", "prune", "--force", timeout=60)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        where = line.split()[4]
        if where.startswith(f"{BUILD}/"):
            subprocess.run(["umount", "--lazy", where], check=False, timeout=30)
    _kill([*_pause_pids(), str(_holder())])
    shutil.rmtree(BED, ignore_errors=True)
    shutil.rmtree(RUN, ignore_errors=True)


@contextlib.contextmanager
def cdi_folder() -> Iterator[Path]:
    """An empty /var/run/cdi, where engines look for specifications of the Container Device Interface, that only the bed sees."""
    enter()
    folder = Path("/var/run/cdi")
    folder.mkdir(mode=0o755, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "oci-hpc-hooks-bed", folder], check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, timeout=30)


def _kill(pids: Sequence[str]) -> None:
    for pid in pids:
        if pid.isdecimal() and int(pid) > 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


# ------------------------------------------------------------------------------------------------ as a program


def become(account: Account, *command: str) -> NoReturn:
    """Replace this process by a command of that account, with the bed's environment."""
    enter()
    if account.uid:
        os.setgroups([group.gr_gid for group in grp.getgrall() if account.name in group.gr_mem])
        os.setgid(account.gid)
        os.setuid(account.uid)
        if not os.access(os.getcwd(), os.X_OK):
            os.chdir("/")
    os.execvpe(command[0], command, account.environment())


WELCOME = """\
podman here uses the test bed's own stores, with the work-arounds that this machine needs; the virtual environment is on PATH.
  podman run --rm --net=none localhost/bed/bookworm-mpich mpiexec -n 2 mpihello     (as root, with crun; --runtime runc for the other)
  as-user podman run ...                                                            (rootless, as {user})
  oci-hpc-hooks --help                                                              (what this project is about)
{demo}Images: podman images. Leave with exit; `make clean` removes it all."""

DEMO = """\
What `make demo` has left, with its site's folders instead of the node's:
  podman --hooks-dir {hooks} run --rm --net=none localhost/bed/bookworm-mpich mpiexec -n 2 mpihello
  demo-hooks check localhost/bed/bookworm-mpich; demo-hooks last; demo-hooks doctor --hooks-dir {hooks}
"""


def demo_hooks(tools: Path) -> str:
    """Make `demo-hooks` in `tools`, the command line with the folders of the demo's site; what there is to say of it, "" without a demo."""
    demo = BUILD / "demo"
    if not (demo / "hooks.d").exists():
        return ""
    folders = f"--config-dir {demo}/etc --state-dir {demo}/state --cache-dir {demo}/var/cache --log-file {demo}/var/hook.log"
    _write(tools / "demo-hooks", f'#!/bin/sh\nexec {BUILD}/venv/bin/oci-hpc-hooks {folders} "$@"\n')
    (tools / "demo-hooks").chmod(0o755)
    return DEMO.format(hooks=demo / "hooks.d")


def shell() -> NoReturn:
    """An interactive shell with the bed's environment."""
    enter()
    for account in (root_account(), user_account()):
        _load(account, "bookworm-mpich")
    tools = BED / "bin"
    tools.mkdir(mode=0o755, exist_ok=True)
    _write(tools / "as-user", f'#!/bin/sh\nexec {BUILD}/venv/bin/python {Path(__file__).resolve()} exec --user {USER} "$@"\n')
    (tools / "as-user").chmod(0o755)
    print(WELCOME.format(user=USER, demo=demo_hooks(tools)))
    _write(BED / "bashrc", "PS1='(test bed) \\w\\$ '\n")
    os.chdir(ROOT)
    become(root_account(), "bash", "--rcfile", str(BED / "bashrc"), "-i")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bed.py", description="The test bed of real containers.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("exec", help="run a command with the bed's environment")
    run.add_argument("--user", choices=("root", USER), default="root")
    run.add_argument("command", nargs=argparse.REMAINDER)
    verbs.add_parser("shell", help="open a shell with the bed's environment")
    verbs.add_parser("load", help="bring images into both stores").add_argument("image", nargs="+", choices=sorted(IMAGES))
    verbs.add_parser("machine", help="say what was probed")
    verbs.add_parser("clean", help="remove containers, stores and mounts of the bed")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bed.py: needs root", file=sys.stderr)
        return 2
    if arguments.verb == "exec":
        become(root_account() if arguments.user == "root" else user_account(), *arguments.command)
    if arguments.verb == "shell":
        shell()
    if arguments.verb == "load":
        for image in arguments.image:
            for account in (root_account(), user_account()):
                enter()
                _load(account, image)
    elif arguments.verb == "machine":
        print(json.dumps(dataclasses.asdict(machine()), indent=1))
    elif arguments.verb == "clean":
        clean()
    return 0


if __name__ == "__main__":
    sys.exit(main())
