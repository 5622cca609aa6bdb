"""Every parser of bytes that are not ours, as a function of some bytes.

A target may raise nothing: of what a parser raises it takes only the errors that people read. Where somebody else reads the same format
(the json module, pyelftools, the kernel's own escapes turned round), both must say the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from binascii import b2a_base64, crc32
from typing import Any, Callable, Dict, Iterator, List, Tuple
from unittest import mock

from oci_hpc_hooks.decide.request import request
from oci_hpc_hooks.elf import facts, hwcaps, ldcache
from oci_hpc_hooks.elf import scan as pyelftools
from oci_hpc_hooks.errors import ConfigError, HookError, ImageError, InputError, Refusal
from oci_hpc_hooks.inputs import container, describe, inventory, jsontext, launcher, ldso, profiles, site, storage, validate
from oci_hpc_hooks.inputs.storage import ImageRecord
from oci_hpc_hooks.linux import cgroups, mounts, namespaces, syscalls
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import CacheEntry, Container, Site
from oci_hpc_hooks.replay import read_plan
from oci_hpc_hooks.report import Places
from oci_hpc_hooks.situation import whole_number

LIMIT = 1 << 20
ID = "0123456789abcdef" * 4
TARGETS: Dict[str, Callable[[bytes], None]] = {}


def target(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    TARGETS[function.__name__] = function
    return function


_FOLDER = ""


def folder() -> str:
    """A directory of this process's own."""
    global _FOLDER
    if not _FOLDER:
        _FOLDER = tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm")
    return _FOLDER


def put(path: str, data: bytes) -> str:
    whole = os.path.join(folder(), path)
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    with open(whole, "wb") as file:
        file.write(data)
    return whole


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[None]:
    """Every file of /proc and /sys that is read holds these bytes."""
    with mock.patch.object(jsontext, "read_file", lambda *_: data), mock.patch.object(syscalls, "read_proc", lambda _: data):
        yield


# ------------------------------------------------------------------------------------------------------------ JSON

@target
def json_text(data: bytes) -> None:
    try:
        value = jsontext.loads(data, "it", LIMIT)
    except InputError:
        return
    assert repr(json.loads(data)) == repr(value)
    assert repr(jsontext.loads(jsontext.dumps(value).encode(), "it", 8 * LIMIT)) == repr(value)
    with contextlib.suppress(InputError):
        jsontext.loads(data, "it", LIMIT, unique=True)
    with contextlib.suppress(InputError):
        jsontext.find(data, b'{"id":', "it")


@target
def state(data: bytes) -> None:
    with contextlib.suppress(InputError):
        found = container.read_state(data)
        assert found.pid > 1 and found.bundle.startswith("/") and "/" not in found.id


@target
def config(data: bytes) -> None:
    """config.json, each part by itself: an error in one hides none in another."""
    try:
        found: Dict[str, Any] = jsontext.as_mapping(jsontext.loads(data, "config.json", LIMIT), "config.json")
    except InputError:
        return
    now = container.State(ID, 2, "/bundle", "creating", {})
    parts: List[Callable[[], object]] = [
        lambda: container.proposed(found), lambda: container.command_words(container.arguments(found)),
        lambda: launcher.variables(container.environment(found)), lambda: container.working_directory(found),
        lambda: container.user(found), lambda: container.rlimit(found, "RLIMIT_MEMLOCK", lambda: 0),
        lambda: container.rootfs(found, "/bundle"), lambda: container.mounts(found), lambda: container.user_namespace(found),
        lambda: container.uid_mappings(found), lambda: container.mount_label(found), lambda: container.rootfs_propagation(found),
        lambda: container.hooks(found, "createRuntime"), lambda: container.annotations_of(found),
        lambda: launcher.private_namespaces(found), lambda: launcher.has_the_nodes_shm(found), lambda: launcher.shm_size(found),
        lambda: describe.to_container(now, found, ImageRecord()),
    ]
    for part in parts:
        with contextlib.suppress(InputError):
            part()


@target
def store(data: bytes) -> None:
    """Two files of an engine's store, divided by a NUL: containers.json and the image's configuration, or its manifest."""
    records, _, blob = data.partition(b"\0")
    top = folder() + "/store"
    put("store/overlay-containers/containers.json", records)
    config_name = "=" + b2a_base64(f"sha256:{ID}".encode(), newline=False).decode()
    for name in ("manifest", config_name):
        other = config_name if name == "manifest" else "manifest"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{top}/overlay-images/{ID}/{other}")
        put(f"store/overlay-images/{ID}/{name}", blob)
        image = storage.image_of(f"{top}/overlay-containers/{ID}/userdata", ID, "/nowhere")
        assert all(isinstance(text, str) for text in (*image.labels.values(), *image.manifest_annotations.values(), *(image.env or ())))


@target
def storage_conf(data: bytes) -> None:
    assert all(isinstance(path, str) for path in storage._stores_of_configuration(data.decode("utf-8", "replace")))


@target
def profile(data: bytes) -> None:
    with contextlib.suppress(validate.Invalid):
        document = validate.check(data, "profile", "/x/profiles.d/x.json")
        profiles.semantic_problems(document, "/x/profiles.d/x.json")
        if not document.get("masked"):
            profiles.profile(document, "x")


@target
def site_json(data: bytes) -> None:
    with contextlib.suppress(validate.Invalid):
        decided = site.site(validate.check(data, "site", "site.json"))
        site.semantic_problems(decided, {}, "site.json")


@target
def inventory_json(data: bytes) -> None:
    """What is kept in the state directory, and what another site has published. What the schema admits can be loaded."""
    path = put("inventory.json", data)
    with contextlib.suppress(ConfigError):
        inventory.load(folder(), (folder(),))
    with contextlib.suppress(ConfigError):
        found = inventory.published(path)
        inventory.document(found)


@target
def plan(data: bytes) -> None:
    """A remembered plan as it is, and the same bytes under a checksum that is right."""
    places = Places("/c", "/s", folder(), "/l")
    os.makedirs(folder() + "/plans", mode=0o755, exist_ok=True)
    put("plans/raw.plan", data)
    put("plans/sum.plan", b"%08x\n" % crc32(data) + data)
    for name in ("raw.plan", "sum.plan"):
        found = read_plan(places, name)
        assert found is None or (isinstance(found[0]["key"], str) and found[0]["cache_length"] == len(found[1]))


@target
def wishes(data: bytes) -> None:
    """Labels and annotations: values divided by NUL, in turn for each key that is known, as the caller's and as the image's."""
    keys = ("org.supercontainers.mpi", "com.hooks.mpi.enabled", "com.hooks.mpi.type", "org.supercontainers.mpi.portability.mode",
            "org.supercontainers.gpu", "org.supercontainers.hardware.gpu.available", "org.supercontainers.launcher",
            "org.supercontainers.launcher.scope", "org.supercontainers.glibc", "io.archspec.cpu.target",
            "org.supercontainers.hardware.cpu.optimized.version", "org.supercontainers.hardware.cpu.optimized.mode")
    given = dict(zip(keys, data.decode("utf-8", "replace").split("\0")))
    pairs: List[Tuple[Dict[str, str], Dict[str, str]]] = [(given, {}), ({}, given), (given, given)]
    for caller, image in pairs:
        made = Container(id=ID, bundle="/b", rootfs="/r", args=(), env=(), cwd="/", mounts=(), annotations=caller, labels=image,
                         manifest_annotations={}, image_id="", image_name="", pid=2, read_only=False, user_namespace=False, mount_label="")
        try:
            request(made, Site())
        except Refusal as refusal:
            assert str(refusal)
            assert caller, "a label alone is never refused by what it says"


# ------------------------------------------------------------------------------------------------------------ binary files

@target
def loader_cache(data: bytes) -> None:
    try:
        cache = ldcache.parse(data)
    except ImageError:
        return
    again = ldcache.serialize(cache)
    assert ldcache.parse(again) == cache
    new = CacheEntry("libmpi.so.12", "/x/libmpi.so.12", 0x303)
    merged = ldcache.merge(cache, [new])
    assert new in merged.entries
    ldcache.lookup(merged, "libmpi.so.12", 0x303, ("x86-64-v2",))
    for entry in cache.entries[:8]:
        ldcache.lookup(cache, entry.name, entry.flags, ())


@target
def elf(data: bytes) -> None:
    with open(put("elf.so", data), "rb") as file:
        for symbols in (False, True):
            with contextlib.suppress(ImageError):
                found = facts.read_facts(file.fileno(), symbols=symbols)
                assert all("\0" not in name for name in (*found.needed, *found.exports, *found.imports, found.soname, found.interp))


@target
def elf_of_the_node(data: bytes) -> None:
    """pyelftools, by which the scan reads: trusted files, and damaged ones end in a sentence all the same."""
    with contextlib.suppress(ConfigError):
        pyelftools.read_with_pyelftools(put("elf.so", data), symbols=lambda name: True)


# ------------------------------------------------------------------------------------------------------------ text files

@target
def tree_files(data: bytes) -> None:
    """What an image has in /etc for its loader, and a loader."""
    for name in ("etc/ld.so.conf", "etc/ld.so.preload"):
        put("tree/" + name, data)
    with Root(os.open(folder() + "/tree", os.O_PATH | os.O_DIRECTORY)) as root:
        where, _ = ldso.drop_ins(root)
        assert "*" not in where
        assert all(name and "\0" not in name for name in ldso.preload_file(root))
    ldso._compiled_cache_path(data)
    ldso._compiled_dirs(data)


@target
def mount_table(data: bytes) -> None:
    """A line as the kernel writes it (fs/proc_namespace.c, show_mountinfo) of any names gives these names back."""
    names = [name for name in data.split(b"\0") if name][:4]
    if len(names) == 4:
        point, top, source, kind = names
        table = mounts.MountTable(b"36 25 0:31 %s %s rw shared:1 - %s %s rw\n" % (
            escaped(b"/" + top), escaped(b"/" + point), escaped(kind, b"#"), escaped(source, b"#")))
        for found in (*table.values(), table.get(36)):
            assert found is not None and found.shared
            assert os.fsencode(found.mountpoint) == b"/" + point and os.fsencode(found.root) == b"/" + top
            assert os.fsencode(found.source) == source and table.get(3) is None
    with answering(data):
        storage._stores_of_mount("/merged")


def escaped(name: bytes, more: bytes = b"") -> bytes:
    return b"".join(b"\\%03o" % byte if bytes([byte]) in (b" ", b"\t", b"\n", b"\\", *([more] if more else [])) else bytes([byte])
                    for byte in name)


@target
def processes(data: bytes) -> None:
    """Command lines, environments and limits of processes that others have started."""
    with answering(data):
        words = container.command_line(1)
        launcher.of_podman(1, words)
        launcher.preserved_descriptors(words)
        launcher.memlock_of(1)
        assert container.parent(1) >= 0
        storage._engine_options("--imagestore", "--storage-opt")
    whole_number(data.decode("utf-8", "replace"), 0)
    hwcaps.of_cpuinfo(data.decode("utf-8", "replace"), "x86_64")
    hwcaps.of_glibc(("x86-64-v3", "x86_64", "haswell"), data.decode("utf-8", "replace"))


@target
def process_groups(data: bytes) -> None:
    """The cgroups of a process: a user names those below the user's own, with any byte but newline and slash."""
    name = data.replace(b"\n", b"")
    lines = b"5:devices:/user/%s\n4:cpu:/\n0::/user/%s\n" % (name, name)
    for version in (1, 2):
        with mock.patch("builtins.open", mock.mock_open(read_data=lines)), mock.patch.object(cgroups, "is_file", return_value=version == 2):
            assert cgroups.devices_cgroup(1) == (version, os.fsdecode(b"/user/" + name))


@target
def identities(data: bytes) -> None:
    """uid_map with numbers of any size."""
    numbers = [int.from_bytes(data[at:at + 4], "little") for at in range(0, min(len(data), 120), 4)]
    lines = b"".join(b"%10d %10d %10d\n" % tuple(numbers[at:at + 3]) for at in range(0, len(numbers) - 2, 3))
    with answering(lines):
        assert namespaces.caller_uid() >= 0 and namespaces.caller_gid() >= 0


#: Those whose input is JSON, for which whole values are exchanged.
OF_JSON = ("json_text", "state", "config", "store", "profile", "site_json", "inventory_json")


def check(name: str, data: bytes) -> None:
    """Runs a target; any error of ours that it lets through is a defect of the target or the parser, as is any other."""
    try:
        TARGETS[name](data)
    except HookError as error:
        raise AssertionError(f"{name}: an error of another kind than expected: {type(error).__name__}: {error}") from error
