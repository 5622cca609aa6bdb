"""What stands in front of crun or runc for engines that read no folder of hooks (Docker, containerd): a runtime that gives each container
the hook and is otherwise the runtime behind it.

``oci-hpc-hooks register DIR --wrap RUNTIME`` writes this file's text to ``DIR/bin/oci-hpc-hooks-RUNTIME``, with a last line that names
both. Before ``create`` and ``run`` it adds the hook to the bundle's config.json, where an engine has left the file to the runtime; then it
becomes the runtime, with the arguments, environment and descriptors that came. What the container asks for is the hook's business. It
imports nothing of the package, so that containers start whatever becomes of that.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, Sequence

#: Subcommands that read config.json, and how their bundle is named (runc(8), crun(1)); without it, the working directory is the bundle.
CREATING = ("create", "run")
BUNDLE = ("--bundle", "-bundle", "-b")
STAGE = "createRuntime"


def bundle_of(words: Sequence[str]) -> str | None:
    """The bundle of the container that is to be created, None if none is."""
    at = next((index for index, word in enumerate(words) if word in CREATING), None)
    if at is None:
        return None
    for word, following in zip(words[at:], [*words[at + 1:], ""]):
        name, equals, value = word.partition("=")
        if name in BUNDLE:
            return value if equals else following
    return "."


def edited(config: Any, hook: dict[str, Any]) -> Any:
    """The configuration with the hook, once; as it is where it is none that a runtime would take."""
    hooks = config.get("hooks") if isinstance(config, dict) else ()
    entries = hooks.get(STAGE) if isinstance(hooks, dict) else None
    if not isinstance(hooks, (dict, type(None))) or not isinstance(entries, (list, type(None))):
        return config
    others = [entry for entry in entries or () if not isinstance(entry, dict) or entry.get("path") != hook["path"]]
    return {**config, "hooks": {**(hooks or {}), STAGE: [*others, hook]}}


def give_hook(bundle: str, hook: dict[str, Any]) -> None:
    """Writes the bundle's config.json with the hook: whole or not at all. Raises OSError where that cannot be; leaves a file alone that
    is no JSON, of which the runtime will say more."""
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            config = json.load(file)
    except (FileNotFoundError, ValueError, RecursionError):
        return
    temporary = f"{path}.oci-hpc-hooks.{os.getpid()}"
    with open(temporary, "x", encoding="ascii") as file:
        try:
            os.fchmod(file.fileno(), os.stat(path).st_mode & 0o7777)
            json.dump(edited(config, hook), file)
            file.flush()
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def main(runtime: str, hook: dict[str, Any]) -> NoReturn:
    """Becomes the runtime, which is at this path. Exits with status 1 where the hook cannot be given: without it a container would not get
    what it asks for, silently."""
    words = sys.argv[1:]
    try:
        bundle = bundle_of(words)
        if bundle is not None:
            give_hook(bundle, hook)
        os.execv(runtime, [runtime, *words])
    except OSError as error:
        sys.stderr.write(f"oci-hpc-hooks: {error.filename or runtime}: {error.strerror}. Site admin: mend that, or write {sys.argv[0]} "
                         "again with oci-hpc-hooks register --wrap.\n")
        sys.exit(1)
