"""Which image a container was made from, and what the image says about itself (light module).

Light: the warm path of a hook imports it, so it imports only what costs nothing.

Image labels are in no file that a runtime hands to a hook; podman, buildah and CRI-O keep them in their store (containers-storage), and
this module reads them there. Not through the engine, which holds the container's lock and would wait for itself; and without the store's
locks: each file of it is replaced as a whole by rename(2), and a container's record is written before the runtime starts and stays until
the container is removed, so every snapshot of the file has it. Layout (containers/storage: store.go, containers.go)::

    GRAPHROOT/DRIVER-containers/containers.json            records: id, image, metadata
    GRAPHROOT/DRIVER-containers/volatile-containers.json   those of --rm, since podman 4.4; below RUNROOT in a transient store
    GRAPHROOT/DRIVER-images/IMAGE/manifest                 OCI or Docker schema 2 manifest
    GRAPHROOT/DRIVER-images/IMAGE/=BASE64                  a blob under an encoded name; the image's configuration is "sha256:DIGEST"

Docker keeps its own (moby: daemon/container_unix.go, image/fs.go), with the overlay2 driver and images of its own store::

    ROOT/overlay2/LAYER/merged                             the root filesystem
    ROOT/containers/ID/config.v2.json                      the container: its image, and labels, the caller's among those of the image
    ROOT/image/overlay2/imagedb/content/sha256/IMAGE       the image's configuration

An image that cannot be found or read is not an error here: the container may come from another engine, or ask for nothing. The record
then has a ``reason``. What is used is checked: only strings count, and only ids and digests of 64 hexadecimal digits become part of a path.
By what is read here a hook tells the image's word from the caller's, so it must be what the engine has read: Go's decoder takes keys in
any case and puts equal ones together, so such documents count as not readable.
"""

from __future__ import annotations

import posix
from binascii import b2a_base64

from oci_hpc_hooks.errors import InputError
from oci_hpc_hooks.inputs import container, jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

#: Bytes. A busy node's containers.json has 5 MB; containers/image accepts manifests and configs of 4 MiB.
_RECORDS_LIMIT = 32 << 20
_BLOB_LIMIT = 4 << 20
_MOUNTINFO_LIMIT = 16 << 20
_STORAGE_CONF_LIMIT = 64 << 10

_PROC = "/proc"

#: The first that exists counts (containers-storage.conf(5)). A user's own file and CONTAINERS_STORAGE_CONF are not read: a hook with an
#: environment of its own knows neither HOME nor that variable, and what podman made of both stands in its monitor's command line.
_STORAGE_CONF = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")


class ImageRecord:
    """What the store says about a container's image.

    ``reason`` says why something is not known ("" if everything is): then ``labels`` and ``manifest_annotations`` are empty, and
    ``image_id`` too if not even the container's record was found. ``store`` is the directory of the store that holds the image, ``env``
    the variables that the image sets (NAME=value), None where they are not known. ``doubtful``: there is an image, and it may say what an
    engine has understood and this function has not. ``said``: labels that the caller has given to the container, which has no annotations
    (Docker).
    """

    __slots__ = ("doubtful", "env", "image_id", "image_name", "labels", "manifest_annotations", "reason", "said", "store")

    def __init__(self, image_id: str = "", image_name: str = "", store: str = "", reason: str = "") -> None:
        self.image_id = image_id
        self.image_name = image_name
        self.store = store
        self.reason = reason
        self.doubtful = False
        self.env: list[str] | None = None
        self.labels: dict[str, str] = {}
        self.manifest_annotations: dict[str, str] = {}
        self.said: dict[str, str] = {}


def image_of(bundle: str, container_id: str, rootfs: str) -> ImageRecord:
    """The image of a container that podman, buildah, CRI-O or Docker made. Raises nothing.

    *bundle* and *rootfs* are absolute paths, and their form tells the store: ``GRAPHROOT/overlay-containers/ID/userdata`` (below RUNROOT
    with CRI-O), ``GRAPHROOT/overlay/LAYER/merged``, ``GRAPHROOT/vfs/dir/LAYER``, ``GRAPHROOT/btrfs/subvolumes/LAYER``, and of Docker
    ``ROOT/overlay2/LAYER/merged``.
    """
    if not _plain(container_id):
        return ImageRecord(reason="the container's id is none that podman or CRI-O gives")
    roots = _roots(bundle, container_id, rootfs)
    if not roots:
        parts = rootfs.rsplit("/", 3)
        if len(parts) == 4 and parts[1] == "overlay2" and parts[3] == "merged":
            return _of_docker(parts[0], container_id)
        return ImageRecord(reason="the bundle is not in a store of podman, CRI-O or Docker, so image labels are unknown")
    try:
        driver, record = _container_record(roots, container_id)
    except InputError as error:
        unknown = ImageRecord(reason=error.what)
        unknown.doubtful = True
        return unknown
    if record is None:
        return ImageRecord(reason=f"the store {roots[0][0]} has no record of the container (made with --rootfs?)")
    image_id = record.get("image")
    if not isinstance(image_id, str) or not _is_digest(image_id):
        none = ImageRecord(reason="the container was made from no image")
        none.env = []
        return none
    name = _image_name(record)
    tried = []
    for store in _stores([root for root, _ in roots], rootfs):
        if store not in tried:
            tried.append(store)
            found = image_in(store, driver, image_id, name)
            if found:
                return found
    return ImageRecord(image_id, name, reason=f"image {image_id} is in none of the stores {', '.join(tried)}")


def image_in(store: str, driver: str, image_id: str, name: str = "") -> ImageRecord | None:
    """What *store* says about the image, None if it does not hold it. *driver* is "overlay", "vfs" … Raises nothing."""
    folder = f"{store}/{driver}-images/{image_id}"
    image = ImageRecord(image_id, name, store)
    try:
        manifest = _object(f"{folder}/manifest", "the image's manifest")
        digest = image_id
        if manifest is not None:
            # A layer-wise pulled image has an id that is not its config's digest.
            config = _field(manifest, "config", "the image's manifest")
            named = _field(config, "digest", "the image's manifest") if isinstance(config, dict) else None
            if isinstance(named, str) and named.startswith("sha256:") and _is_digest(named[7:]):
                digest = named[7:]
        blob = _object(f"{folder}/{_blob_name('sha256:' + digest)}", "the image's configuration")
        if blob is None and manifest is None:
            return None
        if blob is None:
            image.reason = f"{folder} lacks the image's configuration"
            return image
        config = _field(blob, "config", "the image's configuration")
        labels: object = None
        env: object = None
        if isinstance(config, dict):
            labels = _field(config, "Labels", "the image's configuration")
            env = _field(config, "Env", "the image's configuration")
        annotations = _field(manifest, "annotations", "the image's manifest") if manifest is not None else None
        image.labels = _texts(labels)
        # podman cuts blanks off in front of a name (pkg/env).
        image.env = [item.lstrip() for item in env if isinstance(item, str)] if isinstance(env, list) else []
        image.manifest_annotations = _texts(annotations)
    except InputError as error:
        image.reason = error.what
        image.doubtful = True
    return image


def _of_docker(root: str, container_id: str) -> ImageRecord:
    image = ImageRecord(store=root)
    try:
        made = _object(f"{root}/containers/{container_id}/config.v2.json", "Docker's record of the container") or {}
        config = made.get("Config")
        digest = made.get("Image")
        if not isinstance(config, dict) or not isinstance(digest, str) or not _is_digest(digest[7:]):
            image.reason = f"{root} has no record of the container, or it was made from no image"
            return image
        image.image_id = digest[7:]
        image.image_name = config["Image"] if isinstance(config.get("Image"), str) else ""
        what = "the image's configuration"
        blob = _object(f"{root}/image/overlay2/imagedb/content/sha256/{image.image_id}", what)
        if blob is None:
            image.reason = f"{root} lacks the image's configuration"
            return image
        of_image = _field(blob, "config", what)
        image.env = []
        if isinstance(of_image, dict):
            image.labels = _texts(_field(of_image, "Labels", what))
            env = _field(of_image, "Env", what)
            image.env = [item for item in env if isinstance(item, str)] if isinstance(env, list) else []
        image.said = {key: text for key, text in _texts(config.get("Labels")).items() if image.labels.get(key) != text}
    except InputError as error:
        image.reason = error.what
        image.doubtful = True
    return image


# ------------------------------------------------------------------------------------------------------------ records

def _roots(bundle: str, container_id: str, rootfs: str) -> list[tuple[str, str]]:
    """(directory, driver) of the stores that the two paths lie in, the bundle's first."""
    found = []
    parts = bundle.rsplit("/", 3)
    if len(parts) == 4 and parts[1].endswith("-containers") and parts[2:] == [container_id, "userdata"]:
        found.append((parts[0], parts[1][:-len("-containers")]))
    parts = rootfs.rsplit("/", 3)
    if len(parts) == 4 and (
        (parts[1] == "overlay" and parts[3] == "merged") or parts[1:3] in (["vfs", "dir"], ["btrfs", "subvolumes"])
    ):
        found.append((parts[0], parts[1]))
    return [root for index, root in enumerate(found) if root not in found[:index]]


def _container_record(roots: list[tuple[str, str]], container_id: str) -> tuple[str, dict[str, object] | None]:
    """(driver, the container's record or None). Raises InputError."""
    for root, driver in roots:
        for name in ("containers.json", "volatile-containers.json"):
            record = _record_in(f"{root}/{driver}-containers/{name}", container_id)
            if record is not None:
                return driver, record
    driver = roots[0][1]
    for root in _engine_options("--runroot"):
        record = _record_in(f"{root}/{driver}-containers/volatile-containers.json", container_id)
        if record is not None:
            return driver, record
    return driver, None


def _record_in(path: str, container_id: str) -> dict[str, object] | None:
    what = f"the store's file {path}"
    try:
        data = jsontext.read_file(path, "the store's file", _RECORDS_LIMIT)
    except jsontext.MissingFile:
        return None
    mark = f'"{container_id}"'.encode("ascii")
    if mark not in data:
        return None
    # Go writes records without spaces and their id first; one record out of five megabytes is enough.
    record = jsontext.find(data, b'{"id":' + mark, what)
    if record is not None:
        return record
    records = jsontext.loads(data, what, _RECORDS_LIMIT)
    for item in records if isinstance(records, list) else []:
        if isinstance(item, dict) and item.get("id") == container_id:
            return item
    return None


def _image_name(record: dict[str, object]) -> str:
    metadata = record.get("metadata")
    if not isinstance(metadata, str):
        return ""
    try:
        values = jsontext.loads(metadata.encode(), "the container's metadata", _BLOB_LIMIT)
    except InputError:
        return ""
    name = values.get("image-name") if isinstance(values, dict) else None
    return name if isinstance(name, str) else ""


# ------------------------------------------------------------------------------------------------------------ stores

def _stores(roots: list[str], rootfs: str) -> Iterator[str]:
    """Directories that may hold the image, what is cheap to find out first. An id is a digest, so their order decides nothing."""
    yield from roots
    for option in _engine_options("--imagestore", "--storage-opt"):
        # --imagestore A, --storage-opt additionalimagestore=A,B, --storage-opt overlay.imagestore=A
        key, _, paths = ("imagestore", "", option) if option.startswith("/") else option.partition("=")
        if key.endswith("imagestore"):
            yield from filter(_is_absolute, paths.split(","))
    yield from _stores_of_mount(rootfs)
    for path in _STORAGE_CONF:
        try:
            text = jsontext.read_file(path, "the store's configuration", _STORAGE_CONF_LIMIT).decode("utf-8", "replace")
        except jsontext.MissingFile:
            continue
        except InputError:
            break
        yield from filter(_is_absolute, _stores_of_configuration(text))
        break


def _engine_options(*names: str) -> list[str]:
    """The values that podman was given for these options, or has found in any storage.conf.

    conmon, which starts the runtime, which starts us, is told how to call podman when the container has ended, with every storage option
    that podman itself works with: ``--exit-command-arg --storage-opt --exit-command-arg NAME=VALUE``. At precreate there is no conmon
    yet: podman itself has started us, and only its own command line tells (podman-hpc names its stores there). What follows the image in
    it are words of the caller's too, so they need not be told apart.
    """
    words = container.command_line(posix.getppid())
    if not words or words[0].rpartition("/")[2] != "podman":
        arguments = container.command_line(container.parent(posix.getppid()))
        words = [value for mark, value in zip(arguments, arguments[1:]) if mark == "--exit-command-arg"]
    found = []
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        if name in names:
            found.append(value if equals else following)
    return found


def _stores_of_mount(rootfs: str) -> list[str]:
    """The stores that lend layers to the overlay mounted on *rootfs*: ``lowerdir=STORE/overlay/l/NAME:…`` (proc(5), mountinfo)."""
    try:
        data = jsontext.read_file(f"{_PROC}/self/mountinfo", "the mount table", _MOUNTINFO_LIMIT)
    except InputError:
        return []
    found: list[str] = []
    wanted = rootfs.encode("utf-8", "surrogateescape")
    for line in data.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) < 10 or fields[-3] != b"overlay" or _unescape(fields[4]) != wanted:
            continue
        found = []  # of mounts on top of each other the last one counts
        for option in fields[-1].split(b","):
            name, _, value = _unescape(option).decode("utf-8", "surrogateescape").partition("=")
            for layer in _divided(value) if name == "lowerdir" else [value] if name == "lowerdir+" else ():
                parts = layer.rsplit("/", 3)
                if len(parts) == 4 and parts[1:3] == ["overlay", "l"] and _is_absolute(parts[0]):
                    found.append(parts[0])
    return found


def _unescape(field: bytes) -> bytes:
    """Space, tab, newline, backslash, and a comma in an option's value are written as octal numbers (proc(5); seq_show_option())."""
    for code, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\054", b","), (b"\\134", b"\\")):
        field = field.replace(code, byte)
    return field


def _divided(lowerdir: str) -> list[str]:
    """The directories of ``lowerdir=``, with colons between; whoever mounts puts a backslash before what belongs to a name: a colon, a
    comma, a backslash (Documentation/filesystems/overlayfs.rst). ``lowerdir+=`` has one directory as it is."""
    found = [""]
    escaped = False
    for char in lowerdir:
        if escaped or char not in ":\\":
            found[-1] += char
            escaped = False
        elif char == ":":
            found.append("")
        else:
            escaped = True
    return found


def _stores_of_configuration(text: str) -> list[str]:
    """``imagestore`` and ``additionalimagestores`` of a storage.conf, of whatever table.

    Reads as much of TOML as those need: a key, "=", and a string or an array of strings on one or many lines, with comments.
    """
    found: list[str] = []
    inside = False
    for line in text.splitlines():
        rest = line.strip()
        if not inside:
            key, equals, rest = rest.partition("=")
            if not equals or key.strip() not in ("imagestore", "additionalimagestores"):
                continue
            rest = rest.strip()
            inside = rest.startswith("[")
            rest = rest[1:] if inside else rest
        while rest and not rest.startswith("#"):
            if rest[0] in "\"'":
                value, quote, rest = rest[1:].partition(rest[0])
                if quote and "\\" not in value:  # a path with an escape is not worth a parser
                    found.append(value)
            else:
                inside = inside and rest[0] != "]"
                rest = rest[1:]
    return found


# ------------------------------------------------------------------------------------------------------------ small things

def _object(path: str, what: str) -> dict[str, object] | None:
    """The JSON object in *path*, None if the file does not exist. Raises InputError."""
    try:
        data = jsontext.read_file(path, what, _BLOB_LIMIT)
    except jsontext.MissingFile:
        return None
    return jsontext.as_mapping(jsontext.loads(data, f"{what} {path}", _BLOB_LIMIT, unique=True), what)


def _field(source: dict[str, object], name: str, what: str) -> object:
    """What an object has under this name. InputError where it has it under another spelling, which Go's decoder takes too."""
    for key in source:
        if key != name and key.casefold() == name.casefold():
            raise InputError(f"{what} has {key!r} where {name!r} is meant, which engines understand differently")
    return source.get(name)


def _texts(value: object) -> dict[str, str]:
    """The strings of a map of strings. No engine accepts an image with others."""
    if not isinstance(value, dict):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)}


def _blob_name(key: str) -> str:
    return "=" + b2a_base64(key.encode("ascii"), newline=False).decode("ascii")


_HEXADECIMAL = frozenset("0123456789abcdef")
_ID = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.-")


def _is_digest(text: str) -> bool:
    return len(text) == 64 and _HEXADECIMAL.issuperset(text)


def _plain(identity: str) -> bool:
    return 0 < len(identity) <= 255 and _ID.issuperset(identity) and identity not in (".", "..")


def _is_absolute(path: str) -> bool:
    return path.startswith("/") and "/../" not in path + "/"
