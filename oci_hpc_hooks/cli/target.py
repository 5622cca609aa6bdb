"""What ``check`` looks at: an image in podman's store, the directory of a root filesystem, or a bundle.

An image is looked at through podman: its labels and command from ``podman image inspect``, its tree from ``podman image mount``. What a
``podman run`` would add by its options (volumes, --env) is not known here; annotations and the command can be given. A bundle, which is a
directory with a config.json, says all of that itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any, Dict, Iterator, NoReturn, Sequence, Tuple

from oci_hpc_hooks.errors import InputError, Refusal, UsageError
from oci_hpc_hooks.inputs import container, describe, jsontext, storage
from oci_hpc_hooks.inputs.image import DEFAULT_PATH
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import WARNING, Container, Finding, ImageFacts, Mount, Plan

#: How podman says that it has no image of a name: 5 and 4, and older ones.
UNKNOWN = ("image not known", "no such image", "no such object")

IMAGE, ROOTFS, BUNDLE = "image", "root filesystem", "bundle"


def kind_of(target: str) -> str:
    """Which of the three a target is, by what lies there. Raises UsageError for a path where nothing does."""
    if os.path.isdir(target):
        return BUNDLE if os.path.lexists(os.path.join(target, "config.json")) else ROOTFS
    if target.startswith(("/", "./", "../")):
        try:
            os.stat(target)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"there is no directory {target}") from None
        except OSError as error:
            raise UsageError(f"{target} cannot be looked at: {error.strerror}") from None
        raise UsageError(f"{target} is a file, no directory", remedy="unpack an archive into a directory, or give it to podman load and "
                         "name the image", who="user")
    return IMAGE


@contextlib.contextmanager
def look(target: str, command: Sequence[str], annotations: Sequence[str] = (), labels: Sequence[str] = (),
         ) -> Iterator[Tuple[Container, Root]]:
    """The container that would be made of a target, with what --annotation and --label say, and its tree, as long as the context lasts.
    Raises UsageError."""
    asked, said = pairs(annotations, "--annotation"), pairs(labels, "--label")
    kind = kind_of(target)
    with _image(target) if kind == IMAGE else contextlib.nullcontext(os.path.realpath(target)) as found:
        made = found if isinstance(found, Container) else _bundle(found) if kind == BUNDLE else _of_tree(found, target)
        if not os.access(made.rootfs, os.X_OK):
            raise UsageError(f"{made.rootfs} cannot be looked into: this user may not enter it", who="user",
                             remedy="ask its owner for the right to, or name a directory that is yours")
        with Root(os.open(made.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
            yield replace(made, args=tuple(command) or made.args, annotations={**made.annotations, **asked},
                          labels={**made.labels, **said}), root


def pairs(items: Sequence[str], option: str) -> Dict[str, str]:
    """KEY=VALUE items as a dict. Raises UsageError."""
    for item in items:
        if "=" not in item:
            raise UsageError(f"{option} {item}: KEY=VALUE was expected")
    return dict(item.split("=", 1) for item in items)


def program_missing(container: Container, facts: ImageFacts) -> Tuple[Finding, ...]:
    """Of a command whose program is not in the image, which is more often a slip than something that a volume brings."""
    if facts.entrypoint != "missing" or not container.args:
        return ()
    return (Finding(WARNING, "program-missing", f"the image has no program {container.args[0]}", who="user",
                    remedy="name one that is there after --; what a volume brings is not seen here"),)


def nothing(plan: Plan, target: str) -> Refusal:
    """Of a verb that writes down what a container gets: this one gets nothing."""
    why = next((finding.what for finding in plan.findings), "nothing asks for anything")
    return Refusal(f"there is nothing to write for {target}: {why}", who="user",
                   remedy="say what it is to get, such as --annotation org.supercontainers.mpi=auto")


def _of_tree(tree: str, name: str) -> Container:
    """A container with nothing but a root filesystem."""
    return Container(
        id="", bundle="", rootfs=tree, args=(), env=("PATH=" + DEFAULT_PATH,), cwd="/",
        mounts=(Mount("/dev", "tmpfs", "tmpfs"),),  # as every engine sets it up
        annotations={}, labels={}, manifest_annotations={}, image_name=name)


def _bundle(folder: str) -> Container:
    """The container that config.json describes; for a bundle in podman's store with the labels of its image."""
    identity = os.path.basename(os.path.dirname(folder)) if os.path.basename(folder) == "userdata" else ""
    try:
        data = jsontext.read_file(f"{folder}/config.json", "the bundle's configuration", container.CONFIG_LIMIT)
        config = jsontext.as_mapping(jsontext.loads(data, "config.json", container.CONFIG_LIMIT), "config.json")
        rootfs = container.rootfs(config, folder)
        state = container.State(identity, 0, folder, "", container.annotations_of(config))
        made = describe.to_container(state, config, storage.image_of(folder, identity, rootfs))
    except InputError as error:
        raise UsageError(f"{folder} is no bundle: {error.what}", remedy="name a directory with a config.json as a runtime takes it, or the "
                         "directory of a root filesystem", who="user") from None
    if not os.path.isdir(rootfs):
        raise UsageError(f"{folder}/config.json: the root filesystem {rootfs} is no directory", remedy="mount it, or correct root.path",
                         who="user")
    return replace(made, rootfs=os.path.realpath(rootfs), image_name=made.image_name or folder)


# ---------------------------------------------------------------------------------------------------------------- podman

@contextlib.contextmanager
def _image(name: str) -> Iterator[Container]:
    # First of all: where podman itself is broken it says so here, and of its namespace only the exit code would come back.
    image = _first(podman("image", "inspect", "--", name, unknown="pull or build the image first"))
    if os.geteuid() != 0:
        in_podmans_namespace()
    identity = str(image["Id"])
    with _mounted(identity) as tree:
        config = image.get("Config") or {}
        made = _of_tree(tree, name)
        yield replace(
            made,
            args=(*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())),
            env=tuple(config.get("Env") or made.env or ()),
            cwd=config.get("WorkingDir") or "/",
            labels=config.get("Labels") or {},
            manifest_annotations=image.get("Annotations") or {},
            image_id=identity,
        )


@contextlib.contextmanager
def _mounted(identity: str) -> Iterator[str]:
    """The image's tree. An image in an additional image store (storage.conf) podman mounts for a container only: "layer not known"; so
    there one is made, which is never started."""
    with contextlib.ExitStack() as undo:
        try:
            tree = podman("image", "mount", identity)
            undo.callback(podman, "image", "unmount", identity)
        except UsageError as error:
            try:
                made = podman("create", "--net=none", "--entrypoint=/", identity).strip()
            except UsageError:
                raise error from None
            undo.callback(podman, "rm", "--force", made)
            tree = podman("mount", made)
        yield tree.strip()


def _first(text: str) -> Dict[str, Any]:
    try:
        found: Dict[str, Any] = json.loads(text)[0]
        return found
    except (ValueError, LookupError, TypeError):
        raise UsageError("podman said something that is no JSON list of objects") from None


def in_podmans_namespace() -> NoReturn:
    """Starts this command again in podman's user namespace: only there can an unprivileged user mount an image."""
    with _needs_podman():
        os.execvp("podman", ["podman", "unshare", sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]])


def podman(*arguments: str, unknown: str = "") -> str:
    """What a podman command says. Raises UsageError with podman's own words if it fails. ``unknown``: the remedy where it knows no such
    image, and is not broken itself."""
    with _needs_podman():
        done = subprocess.run(["podman", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        remedy = unknown if any(words in done.stderr for words in UNKNOWN) else ""
        raise UsageError(f"podman {' '.join(arguments)}: {done.stderr.strip() or 'failed'}", remedy=remedy, who="user" if remedy else "")
    return done.stdout


@contextlib.contextmanager
def _needs_podman() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UsageError("podman, which is needed to look into an image, is not installed", remedy="install it, or name the "
                         "directory of a root filesystem", who="user") from None
