"""Every parser of bytes that are not ours, as a function of some bytes.

A target may raise nothing: of what a parser raises it takes only the errors that people read. Where somebody else reads the same format
(the json module, Go's decoder as far as it differs, pyelftools, ldconfig, CDI's schema, the kernel's own escapes turned round), both must
say the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import tempfile
from binascii import b2a_base64, crc32
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple
from unittest import mock

import jsonschema

from oci_hpc_hooks import cold, record, shim, wrapper
from oci_hpc_hooks.apply import config as edits
from oci_hpc_hooks.cli import bundle, digest, doctor, last, unregister
from oci_hpc_hooks.decide import gpus as decide_gpus
from oci_hpc_hooks.decide import job as decide_job
from oci_hpc_hooks.decide.request import request
from oci_hpc_hooks.elf import facts, hwcaps, ldcache, notes
from oci_hpc_hooks.elf import scan as pyelftools
from oci_hpc_hooks.errors import ConfigError, HookError, ImageError, InputError, Refusal, UsageError
from oci_hpc_hooks.inputs import (
    cdi,
    container,
    describe,
    draft,
    gpus,
    inventory,
    jsontext,
    launcher,
    ldso,
    profiles,
    scan,
    site,
    storage,
    validate,
)
from oci_hpc_hooks.inputs.storage import ImageRecord
from oci_hpc_hooks.linux import bpf, cgroups, mounts, namespaces, syscalls
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import REFUSED, CacheEntry, Container, LdCache, Mount, Site
from oci_hpc_hooks.replay import read_plan
from oci_hpc_hooks.report import Places
from oci_hpc_hooks.situation import Situation, whole_number
from tests.fuzz import files
from tests.unit.decide import test_job, world
from tests.unit.gpu_bed import plan as gpu_plan

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


def as_go_reads(data: bytes) -> Tuple[Dict[str, str], List[str]]:
    """Labels and variables of an image's configuration as Go's decoder fills them into a structure: names in any case, of equal ones the
    last, maps of equal ones put together, null as if it were not there. ValueError where it takes none."""
    whole = json.loads(data.decode("utf-8", "replace"), object_pairs_hook=Pairs)
    inner = Pairs([pair for value in fields(whole, "config") for pair in expected(value, Pairs)])
    labels = Pairs([pair for value in fields(inner, "Labels") for pair in expected(value, Pairs)])
    env = [expected(value, list) for value in fields(inner, "Env")][-1:]
    return {name: expected(text, str) for name, text in labels}, [expected(item, str) for item in (env[0] if env else [])]


class Pairs(List[Any]):
    """The members of an object."""


def expected(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError
    return value


def fields(of: Any, name: str) -> List[Any]:
    folded = [(key.lower().replace("\u017f", "s").replace("\u212a", "k"), value) for key, value in expected(of, Pairs)]
    return [value for key, value in folded if key == name.lower() and value is not None]


def same_as_go(image: ImageRecord, config: bytes) -> None:
    """What counts as the image's word is what an engine has read of its configuration, or nothing is known of it."""
    if image.reason or not image.store:
        return
    try:
        labels, env = as_go_reads(config)
    except ValueError:  # no engine takes such an image
        return
    assert labels == image.labels
    assert [item.lstrip() for item in env] == [item.lstrip() for item in image.env or []]


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
        if name == config_name:
            same_as_go(image, blob)


@target
def docker(data: bytes) -> None:
    """Docker's record of a container and the image's configuration, divided by a NUL."""
    made, _, blob = data.partition(b"\0")
    put(f"docker/containers/{ID}/config.v2.json", made)
    put(f"docker/image/overlay2/imagedb/content/sha256/{ID}", blob)
    image = storage.image_of("/run/bundle", ID, f"{folder()}/docker/overlay2/{ID}/merged")
    same_as_go(image, blob)
    for key, text in image.said.items():
        assert json.loads(made)["Config"]["Labels"][key] == text != image.labels.get(key)


@target
def edited_config(data: bytes) -> None:
    """config.json with what a hook, a wrapper, or ``bundle`` writes into it: what was in it stays, and what was added comes out again."""
    try:
        found: Dict[str, Any] = jsontext.as_mapping(jsontext.loads(data, "config.json", LIMIT), "config.json")
        now = container.State(ID, 2, "/bundle", "creating", {})
        describe.to_container(now, found, ImageRecord())
        container.groups(found)
        hooks: List[Any] = container.hooks(found, "createRuntime")
        container.annotations_of(found)
    except InputError:
        return
    hook = {"path": "/x/oci-hpc-hooks-createruntime"}
    if all(isinstance(entry, dict) for entry in hooks) and not any(map(container.own_hook, hooks)):
        asked = {"a.key.of.nobody": "1"}
        if not asked.items() & (found.get("annotations") or {}).items():
            with_hook = bundle._edited(found, [*hooks, hook], asked, False)
            assert edits.has_own_hook(with_hook)
            assert bundle._edited(with_hook, hooks, asked, True) == bundle._edited(found, hooks, {}, False)
    wrapped = wrapper.edited(found, hook)
    assert wrapper.edited(wrapped, hook) == wrapped and {**wrapped, "hooks": 0} == {**found, "hooks": 0}
    before = jsontext.loads(jsontext.dumps(found).encode(), "it", 8 * LIMIT)
    with contextlib.suppress(InputError):
        edits.wire_up(found, [("device", "/dev/null")], {"A": "b"}, edits.device_rules([(container.DEVICE, "/dev/null")]))
        edits.join(found, [4711])
        edits.hide(found, ["/proc/x"])
        edits.inject(found, {"tree_at": "", "tree": [], "in_place": [], "files": [], "modules": []}, "", 0)
        assert isinstance(before, dict)
        assert container.environment(found) == [item for item in container.environment(before) if item.partition("=")[0] != "A"] + ["A=b"]
        assert container.mounts(found)[:-1] == container.mounts(before) and container.groups(found)[-1] == 4711
        assert container.arguments(found) == container.arguments(before)


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


def schema_of_cdi() -> jsonschema.Draft7Validator:
    place = Path(__file__).parents[1] / "unit/cdi/data"
    whole = json.loads((place / "schema.json").read_text().replace("defs.json#", "#"))
    return jsonschema.Draft7Validator({**whole, **json.loads((place / "defs.json").read_text())})


SCHEMA_OF_CDI = schema_of_cdi()


def without_nulls(value: Any) -> Any:
    """Go's decoder takes null for a key that is not there, and in a list of numbers for 0."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [0 if item is None else without_nulls(item) for item in value] if isinstance(value, list) else value


@target
def cdi_specification(data: bytes) -> None:
    """A specification of CDI, as JSON and now and then as YAML, which takes much longer; what counts here, CDI's own schema takes too."""
    for kind in ("json", "yaml") if crc32(data) % 64 == 0 or not data.startswith((b"{", b"[")) else ("json",):
        path = put(f"cdi/x.{kind}", data)
        with mock.patch("oci_hpc_hooks.inputs.trust.read_trusted", lambda *_: data), contextlib.suppress(ConfigError, cdi._Wrong):
            found = cdi._read(path)
            wrong = next(SCHEMA_OF_CDI.iter_errors(without_nulls(found)), None)
            assert wrong is None, wrong
            for one in found["devices"]:
                with mock.patch.object(cdi, "_files", return_value=[path]):
                    device = cdi.find(f"{found['kind']}={one['name']}", (folder() + "/cdi",))
                assert all(place.startswith("/") for pair in device.mounts for place in pair)
                assert all(node.startswith("/dev/") and "/../" not in node for node in device.devices)
                for link, _ in device.links:
                    cdi.host_path(device, link, {})
                cdi.root(device)


@target
def small_documents(data: bytes) -> None:
    """What is read of JSON without a schema: descriptors of hooks, lines of the log, files that name a driver's library."""
    path = put("it.json", data)
    found = doctor.descriptor_at(path)
    assert bool(found.problem) != bool(found.document)
    unregister._is_ours(path)
    with contextlib.suppress(ConfigError):
        put("hooks/oci-hpc-hooks.json", data)
        assert isinstance(bundle._hook(folder() + "/hooks"), dict)
    for entry in last.read(path, 3):
        assert all(last.lines(entry))
    assert "\0" not in scan._named_in(path) or b"\0" in data or b"\\u0000" in data


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
    with contextlib.suppress(UsageError):
        parts = digest.parse(data.decode("utf-8", "replace"))
        assert digest.parse(digest.word(parts)) == parts and digest.differing(parts, [parts]) == ([], parts)


JOBS = (test_job.asked("openmpi", ("pmix",)), test_job.asked("mpich", ("pmi",)))


@target
def ranks(data: bytes) -> None:
    """Variables of a launcher, divided by NUL, every third of them given to the container too."""
    words = data.decode("utf-8", "replace").split("\0")
    now = Situation()
    now.launcher, now.given = launcher.variables(words), launcher.variables(words[::3])
    now.inside, now.private, now.user, now.caller = now.given, ("network", "ipc", "user"), (1000, 1000), (1000, 1000)
    for now.can_set in (True, False):
        for job in JOBS:
            made = decide_job.decide(job, now)
            assert all(path.startswith("/") and ".." not in path.split("/") and path.count("/") > 1 for path in made.directories)
            assert not set(made.variables) & set(now.given) and (now.can_set or not made.variables)
            assert all(isinstance(text, str) for finding in made.findings for text in finding.values())


#: Where the files of a node lie that tell of its GPUs.
OF_GPUS = ("/proc/driver/nvidia/gpus/0000:09:00.0/information", "/proc/driver/nvidia/capabilities/gpu0/mig/gi1/access",
           "/proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci0/access", "/sys/module/nvidia/version",
           "/sys/class/kfd/kfd/topology/nodes/1/properties", "/sys/class/drm/renderD128/device/vendor", "/proc/self/cgroup")


GPUS = gpu_plan("cuda", "rocm", "levelzero")


@target
def accelerators(data: bytes) -> None:
    """Files of /proc and /sys that tell of GPUs, and variables by which a job is given some; divided by NUL."""
    parts = data.split(b"\0")
    for path, content in zip(OF_GPUS, [*parts, *[b""] * len(OF_GPUS)]):
        put("gpus" + path, content)
    words = b"\0".join(parts[len(OF_GPUS):]).decode("utf-8", "replace").split("\0")
    plan = {**GPUS, "wish": words[0]}
    node = gpus.node(plan, folder() + "/gpus", lambda path: gpus.CLOSED if path.endswith("1") else gpus.OPEN)
    here = {path for found in node.gpus.values() for gpu in found for one in (gpu, *gpu.parts) for path in one.nodes}
    closed = {path for found in node.gpus.values() for gpu in found for one in (gpu, *gpu.parts) if one.closed for path in one.nodes}
    assert all(path.startswith("/dev/") and ".." not in path.split("/") for path in here)
    now = Situation()
    now.launcher, now.given = launcher.variables(words[1:]), launcher.variables(words[1::2])
    now.inside = now.given
    for plan["wish_origin"] in ("annotation", ""):
        made = decide_gpus.decide(plan, node, now)
        given = {path for nodes in made.nodes.values() for path in nodes}
        channels = {path for paths in node.numbered.values() for path in paths}
        assert given <= (here | channels) - closed


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
    if crc32(again) % 64 == 0:  # a process each time
        same_as_ldconfig(cache, again)
    merged = ldcache.merge(cache, [new])
    assert new in merged.entries
    ldcache.lookup(merged, "libmpi.so.12", 0x303, ("x86-64-v2",))
    for entry in cache.entries[:8]:
        ldcache.lookup(cache, entry.name, entry.flags, ())


def same_as_ldconfig(cache: LdCache, data: bytes) -> None:
    """What glibc's ldconfig prints of a cache that we have written."""
    done = subprocess.run(["/sbin/ldconfig", "-p", "-C", put("ld.so.cache", data)], capture_output=True, check=True, env={"LC_ALL": "C"})
    body = done.stdout.partition(b"\n")[2]
    for entry in cache.entries:
        name, path = os.fsencode(entry.name), os.fsencode(entry.path)
        assert body.startswith(b"\t" + name + b" ("), (body[:200], name)
        _, _, body = body.partition(b") => " + path + b"\n")


@target
def elf_of_known_facts(data: bytes) -> None:
    """A library or program that the bytes describe: both readers find what was put in."""
    content, wanted = files.library(data)
    path = put("made.so", content)
    with open(path, "rb") as file:
        assert facts.read_facts(file.fileno(), symbols=True) == wanted
    if data[2:].isascii():  # releases of pyelftools differ in other names
        assert pyelftools.read_with_pyelftools(path, symbols=lambda name: True) == wanted


@target
def elf(data: bytes) -> None:
    with open(put("elf.so", data), "rb") as file:
        for symbols in (False, True):
            with contextlib.suppress(ImageError):
                found = facts.read_facts(file.fileno(), symbols=symbols)
                assert all("\0" not in name for name in (*found.needed, *found.exports, *found.imports, found.soname, found.interp))
        said = notes.read_note(file.fileno(), ".note.gnu.build-id", "GNU")
        assert said is None or said in data


@target
def image(data: bytes) -> None:
    """One file of a small image, which the first byte chooses; the whole decision comes to a plan, or to a sentence."""
    which = data[0] % len(files.IMAGE) if data else 0
    for number, (path, content) in enumerate(files.IMAGE.items()):
        put("image" + path, data[1:] if number == which else content)
    needed = ("libfabric.so.1", "libc.so.6", "ld-linux-x86-64.so.2")
    offer = world.inventory(world.profile(world.site_mpi(glibc="GLIBC_2.2.5", needed=needed), world.site_fabric(glibc="GLIBC_2.2.5")))
    made = Container(id=ID, bundle="/b", rootfs="/r", args=("/bin/run", "app"), env=("LD_LIBRARY_PATH=/usr/lib64",), cwd="/",
                     mounts=(Mount("/dev", "tmpfs", "tmpfs"),), annotations={"org.supercontainers.mpi": "mpich"}, labels={},
                     manifest_annotations={})
    with Root(os.open(folder() + "/image", os.O_PATH | os.O_DIRECTORY)) as root, contextlib.suppress(HookError):
        decided, known = cold.decide(made, root, offer)
        if decided.verdict != REFUSED:
            kept, cache = record.build(decided, known, (), "key")
            assert jsontext.loads(jsontext.dumps(kept).encode(), "a record", 64 << 20) and kept["cache_length"] == len(cache)


@target
def device_program(data: bytes) -> None:
    """Instructions of a BPF program, as the kernel tells them; what is taken over is taken over unchanged the next time."""
    with contextlib.suppress(ValueError):
        once = bpf.carried(data)
        assert len(once) == len(data) and bpf.carried(once) == once


@target
def elf_of_the_node(data: bytes) -> None:
    """pyelftools, by which the scan and the draft of a profile read: trusted files, and damaged ones end in a sentence all the same."""
    path = put("elf.so", data)
    with contextlib.suppress(ConfigError):
        pyelftools.read_with_pyelftools(path, symbols=lambda name: True)
    with contextlib.suppress(UsageError):
        draft._read(path)
    assert all(folder.startswith("/") for folder in draft._folders_named_in(path))


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


def are_all_but_two(some: List[str], words: List[str]) -> bool:
    """Whether these are the words, or all of them but one or two neighbours."""
    less = len(words) - len(some)
    same = next((at for at, (one, word) in enumerate(zip(some, words)) if one != word), len(some))
    return 0 <= less <= 2 and some[same:] == words[same + less:]


@target
def command_line(data: bytes) -> None:
    """Words of a command line of podman's or a runtime's: nothing of them is lost where another option comes among them."""
    words = data.decode("utf-8", "surrogateescape").split("\0")
    for descriptor in (3, 7):
        instead = shim.rewritten(words, descriptor)
        if instead is not None:
            made, place = instead
            option = f"--preserve-fds={place - 2}"
            others = [made[:at] + made[at + 1:] for at, word in enumerate(made) if word == option]
            others += [one[:at] + one[at + 1:] for one in others for at, word in enumerate(one) if word == "--env=PMI_*"]
            assert place >= 3 and any(are_all_but_two(one, words) for one in others)
    named = wrapper.bundle_of(words)
    assert named is None or named == "." or any(word.endswith(named) for word in words) or named == ""
    doctor.hook_folders([("containers.conf", data.decode("utf-8", "replace"))])


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
        with mock.patch("builtins.open", lambda *_: io.BytesIO(lines)), mock.patch.object(cgroups, "is_file", return_value=version == 2):
            assert cgroups.devices_cgroup(1) == (version, os.fsdecode(b"/user/" + name))


@target
def identities(data: bytes) -> None:
    """uid_map with numbers of any size."""
    numbers = [int.from_bytes(data[at:at + 4], "little") for at in range(0, min(len(data), 120), 4)]
    lines = b"".join(b"%10d %10d %10d\n" % tuple(numbers[at:at + 3]) for at in range(0, len(numbers) - 2, 3))
    with answering(lines):
        assert namespaces.caller_uid() >= 0 and namespaces.caller_gid() >= 0


#: Those whose input is JSON, for which whole values are exchanged.
OF_JSON = ("json_text", "state", "config", "store", "docker", "edited_config", "profile", "site_json", "inventory_json",
           "cdi_specification", "small_documents")


def check(name: str, data: bytes) -> None:
    """Runs a target; any error of ours that it lets through is a defect of the target or the parser, as is any other."""
    try:
        TARGETS[name](data)
    except HookError as error:
        raise AssertionError(f"{name}: an error of another kind than expected: {type(error).__name__}: {error}") from error
