"""The warm path: when a plan is found again, when it is not trusted, and when it no longer holds."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from oci_hpc_hooks import record, replay, report
from oci_hpc_hooks.apply.rootfs import Stale
from oci_hpc_hooks.inputs import container
from oci_hpc_hooks.inputs.storage import ImageRecord
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import PROVED, Plan
from oci_hpc_hooks.report import Places
from oci_hpc_hooks.start import Start, site_defaults

ID = "1" * 64
CONFIG: Dict[str, Any] = {
    "root": {"path": "/store/merged"},
    "process": {"args": ["app", "-n", "2"], "env": ["PATH=/bin", "HOME=/root", "LD_LIBRARY_PATH=/opt/lib"], "cwd": "/"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/etc/hosts", "type": "bind", "source": f"/run/containers/{ID}/userdata/hosts", "options": ["bind"]},
        {"destination": "/data", "type": "bind", "source": "/scratch/data", "options": ["rbind", "ro"]},
    ],
    "linux": {"namespaces": [{"type": "mount"}]},
}


def key(config: Dict[str, Any] = CONFIG, *, identity: str = ID, image: str = "a" * 64, labels: Tuple[Tuple[str, str, str], ...] = (),
        defaults: Tuple[Tuple[str, str], ...] = (), site: str = "/etc/oci-hpc-hooks") -> str:
    start = Start.__new__(Start)  # its constructor reads a runtime's state from stdin
    start.places = (site, "/var/lib/oci-hpc-hooks", "/var/cache/oci-hpc-hooks", "/var/log/oci-hpc-hooks.log")
    start.config = json.loads(json.dumps(config).replace(ID, identity))
    start.state = container.State(identity, 4242, "/bundle", "creating", {})
    start.rootfs = "/store/merged"
    start.image = ImageRecord(image, "name")
    start.words = [("annotation", "org.supercontainers.mpi", "mpich"), *labels]
    start.defaults = list(defaults)
    return replay.key_of(start)


# ----------------------------------------------------------------------------------------------------------------------- key

def test_a_second_container_of_the_same_kind_has_the_same_key() -> None:
    config = copy.deepcopy(CONFIG)
    random.Random(3).shuffle(config["mounts"])
    assert key(config, identity="2" * 64) == key()


@pytest.mark.parametrize("change", [
    lambda c: c["process"]["env"].__setitem__(1, "HOME=/home/user"),
    lambda c: c["process"]["env"].append("SLURM_JOB_ID=17"),
    lambda c: c.__setitem__("hostname", "other"),
    lambda c: c["mounts"].append({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}),
    lambda c: c["linux"].__setitem__("cgroupsPath", "/x"),
    lambda c: c["process"]["env"].reverse(),  # podman's order is random
])
def test_what_no_plan_depends_on(change: Callable[[Dict[str, Any]], None]) -> None:
    config = copy.deepcopy(CONFIG)
    change(config)
    assert config != CONFIG
    assert key(config) == key()


@pytest.mark.parametrize("change", [
    lambda c: c["process"]["args"].__setitem__(0, "other"),
    lambda c: c["process"]["args"].insert(0, "mpiexec"),
    lambda c: c["process"].__setitem__("cwd", "/work"),
    lambda c: c["process"]["env"].__setitem__(0, "PATH=/usr/bin"),
    lambda c: c["process"]["env"].__setitem__(2, "LD_LIBRARY_PATH=/opt/other"),
    lambda c: c["process"]["env"].append("LD_PRELOAD=/x.so"),
    lambda c: c["process"]["env"].append("GLIBC_TUNABLES=glibc.cpu.hwcaps=x"),
    lambda c: c["mounts"].pop(1),
    lambda c: c["mounts"][3].__setitem__("source", "/scratch/other"),
    lambda c: c["mounts"][3].__setitem__("destination", "/usr/lib"),
    lambda c: c["mounts"][3].__setitem__("options", ["rbind"]),
    lambda c: c["mounts"].append({"destination": "/opt", "type": "bind", "source": "/opt"}),
    lambda c: c["root"].__setitem__("readonly", True),
    lambda c: c["linux"]["namespaces"].append({"type": "user"}),
    lambda c: c["linux"].__setitem__("mountLabel", "system_u:object_r:container_file_t:s0"),
])
def test_what_a_plan_depends_on(change: Callable[[Dict[str, Any]], None]) -> None:
    config = copy.deepcopy(CONFIG)
    change(config)
    assert key(config) != key()


def test_image_words_and_defaults_are_in_the_key() -> None:
    keys = {key(), key(image="b" * 64), key(image=""), key(labels=(("label", "org.supercontainers.mpi", "openmpi"),)),
            key(labels=(("manifest", "org.supercontainers.mpi", "openmpi"),)), key(defaults=(("org.supercontainers.mpi", "auto"),)),
            key(site="/opt/site/etc")}
    assert len(keys) == 7


def test_a_container_with_a_short_name() -> None:
    """A bare container may be called "a": a volume whose path has an "a" in it is a volume all the same."""
    other = copy.deepcopy(CONFIG)
    other["mounts"][3]["source"] = "/scratch/data2"
    assert key(other, identity="a") != key(identity="a")


def test_the_name_of_the_file_is_harmless() -> None:
    for text in ("", "x", key(), "\udcff", "ü" * 10_000):
        name = replay.plan_file(text)
        assert len(name) == len("00000000.plan")
        assert name.endswith(".plan")


# --------------------------------------------------------------------------------------------------------------- remembered

@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(str(tmp_path / "etc"), str(tmp_path / "state"), str(tmp_path / "cache"), str(tmp_path / "log" / "hooks.log"))


def keep(places: Places, name: str = "key", cache: bytes = b"cache\n\0bytes") -> Path:
    made, _ = record.build(Plan(PROVED, (), profile="site"), None, (), name)
    made["cache_length"] = len(cache)
    record.remember(places, made, cache)
    return Path(places.cache, "plans", replay.plan_file(name))


def test_remember_and_find_again(places: Places) -> None:
    file = keep(places)
    found = replay.remembered(places, "key")
    assert found is not None
    assert (found[0]["key"], found[0]["profile"], found[1]) == ("key", "site", b"cache\n\0bytes")
    assert file.stat().st_mode & 0o077 == 0
    assert replay.remembered(places, "another key") is None


def test_nothing_is_remembered_yet(places: Places) -> None:
    assert replay.remembered(places, "key") is None


def test_two_keys_of_one_name(places: Places) -> None:
    keep(places, "key").rename(Path(places.cache, "plans", replay.plan_file("other")))
    assert replay.remembered(places, "other") is None


@pytest.mark.parametrize("content", [
    b"", b"\n", b"{", b"null\n", b"[]\n", b"{}\n", b'{"key":"key"}\n', b'{"key":"key","cache_length":3}\nab',
    b'{"key":"key","cache_length":1}\nab', b"\xff\xfe\n", b"[" * 100_000, b'{"key":"key","cache_length":"2"}\nab',
    b'{"key":1,"cache_length":0}\n'])
def test_garbage_is_not_found(places: Places, content: bytes) -> None:
    keep(places).write_bytes(content)
    assert replay.remembered(places, "key") is None


@pytest.mark.parametrize("size", [-1, -5, 10])
def test_a_torn_file_is_not_found(places: Places, size: int) -> None:
    file = keep(places)
    file.write_bytes(file.read_bytes()[:size])
    assert replay.remembered(places, "key") is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_could_have_written_is_not_believed(places: Places, mode: int) -> None:
    file = keep(places)
    file.chmod(mode)
    assert replay.remembered(places, "key") is None
    file.chmod(0o644)
    assert replay.remembered(places, "key") is not None
    file.parent.chmod(0o777)
    assert replay.remembered(places, "key") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_another_user_owns_is_not_believed(places: Places) -> None:
    file = keep(places)
    os.chown(file, 1, 1)
    assert replay.remembered(places, "key") is None
    os.chown(file, 0, 0)
    os.chown(file.parent, 1, 1)
    assert replay.remembered(places, "key") is None


def test_links_and_fifos_are_not_followed(places: Places, tmp_path: Path) -> None:
    file = keep(places)
    file.rename(tmp_path / "real")
    file.symlink_to(tmp_path / "real")
    assert replay.remembered(places, "key") is None
    file.unlink()
    os.mkfifo(file)
    assert replay.remembered(places, "key") is None
    file.unlink()
    file.mkdir()
    assert replay.remembered(places, "key") is None
    file.rmdir()
    file.parent.rename(tmp_path / "plans")
    file.parent.symlink_to(tmp_path / "plans")
    assert replay.remembered(places, "key") is None


def test_no_descriptor_is_left_open(places: Places) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = keep(places)
    for _ in range(3):
        replay.remembered(places, "key")
        replay.remembered(places, "none")
        file.write_bytes(b"{")
    assert len(os.listdir("/proc/self/fd")) == before


# -------------------------------------------------------------------------------------------------------------------- replay

class Service(replay.Service):
    """A start whose injection is only counted: replay()'s own work is what it checks before. Real ones are in tests/engine."""

    __slots__ = ("injected",)

    def __init__(self, root: Root) -> None:
        self.root = root
        self.injected: List[Dict[str, Any]] = []

    def inject(self, record: Dict[str, Any], cache: bytes, path: str) -> None:
        self.injected.append(record)

    def log(self, verdict: str, path: str, **more: Any) -> None:
        pass


def row(path: Path) -> List[Any]:
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]


@pytest.fixture
def world(tmp_path: Path) -> Tuple[Path, Path, Dict[str, Any], Service]:
    host, image = tmp_path / "host", tmp_path / "image"
    for folder in (host, image / "lib"):
        folder.mkdir(parents=True)
    (host / "inventory.json").write_text("{}")
    (image / "lib/libc.so.6").write_text("libc")
    made, _ = record.build(Plan(PROVED, (), profile="site"), None, (), "key")
    made["host_files"] = [[str(host / "inventory.json"), *row(host / "inventory.json")], [str(host / "site.json"), 0, 0, 0]]
    made["image_files"] = [["/lib/libc.so.6", *row(image / "lib/libc.so.6")]]
    made["image_dirs"] = [["/lib", image.joinpath("lib").stat().st_ino, image.joinpath("lib").stat().st_mtime_ns], ["/usr/lib", 0, 0]]
    return host, image, made, Service(Root(os.open(image, os.O_PATH | os.O_DIRECTORY)))


def test_a_plan_that_holds_is_applied(world: Tuple[Path, Path, Dict[str, Any], Service]) -> None:
    _, _, made, start = world
    replay.replay(start, made, b"")
    assert start.injected == [made]


def test_nothing_to_do_is_remembered_too(world: Tuple[Path, Path, Dict[str, Any], Service]) -> None:
    host, _, made, start = world
    made["verdict"] = "nothing"
    replay.replay(start, made, b"")
    assert start.injected == []
    (host / "site.json").touch()
    with pytest.raises(Stale):
        replay.replay(start, made, b"")


@pytest.mark.parametrize("change", [
    lambda host, image: (host / "inventory.json").write_text("{ }"),
    lambda host, image: (host / "inventory.json").unlink(),
    lambda host, image: os.utime(host / "inventory.json", ns=(1, 1)),
    lambda host, image: (host / "site.json").write_text("{}"),
    lambda host, image: (image / "lib/libc.so.6").write_text("other"),
    lambda host, image: (image / "lib/libc.so.6").unlink(),
    lambda host, image: (image / "lib/libmpi.so.12").touch(),
    lambda host, image: (image / "usr/lib").mkdir(parents=True),
    lambda host, image: (image / "lib").rename(image / "other"),
])
def test_whatever_changes_makes_it_stale(world: Tuple[Path, Path, Dict[str, Any], Service], change: Callable[[Path, Path], None]) -> None:
    host, image, made, start = world
    change(host, image)
    with pytest.raises(Stale):
        replay.replay(start, made, b"")
    assert start.injected == []


# ------------------------------------------------------------------------------------------------------------- site defaults

@pytest.mark.parametrize(("text", "found"), [
    ('{"defaults": {"org.supercontainers.mpi": "auto"}}', [("org.supercontainers.mpi", "auto")]),
    ('{"defaults": {"org.supercontainers.mpi": "none"}}', []),
    ('{"defaults": {}}', []), ("{}", []), ("{", []), ("[]", []), ('{"defaults": 7}', []), ("", []), ("[" * 100_000, []),
])
def test_site_defaults(tmp_path: Path, text: str, found: List[Tuple[str, str]]) -> None:
    (tmp_path / "site.json").write_text(text)
    assert site_defaults(str(tmp_path)) == found


def test_without_a_site(tmp_path: Path) -> None:
    assert site_defaults(str(tmp_path)) == []
    os.mkfifo(tmp_path / "site.json")
    assert site_defaults(str(tmp_path)) == []


def test_places_of_root_are_as_registered(places: Places) -> None:
    if os.geteuid() == 0:
        assert report.own_places(places) is places
    else:
        assert report.own_places(places).cache == f"/run/user/{os.geteuid()}/oci-hpc-hooks"
