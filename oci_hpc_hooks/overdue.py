"""What a hook that has taken too long was at: which step, and which file. Imported only then."""

from __future__ import annotations

from types import FrameType
from typing import Dict, Optional, Tuple

from oci_hpc_hooks import errors

#: Steps of a start by the function that takes them (module below our package, name), as they stand in a sentence after "while it was".
STEPS: Dict[Tuple[str, str], str] = {
    ("inputs.container", "read_stdin"): "waiting for the end of what the runtime writes to its standard input",
    ("inputs.container", "read_config"): "reading the bundle's config.json",
    ("inputs.storage", "image_of"): "looking for the image's labels in the engine's storage",
    ("start", "site_defaults"): "reading the site's configuration",
    ("linux.namespaces", "open_root"): "opening the container's root file system",
    ("linux.namespaces", "enter"): "joining the container's namespaces",
    ("replay", "read_plan"): "reading a remembered plan",
    ("replay", "check_host"): "looking whether files of the host have changed",
    ("apply.rootfs", "check_image"): "looking whether files of the image have changed",
    ("report", "open_log"): "opening the log",
    ("cold", "node"): "reading what this node offers",
    ("inputs.image", "gather"): "reading files of the image",
    ("decide.plan", "plan"): "deciding",
    ("record", "remember"): "keeping the plan for the next start",
    ("precreate", "lay"): "mounting a volume",
    ("precreate", "cache_file"): "writing the loader's cache",
    ("wireup", "wire_up"): "looking at the job that the container belongs to",
    ("linux.cgroups", "allow_devices"): "allowing devices",
    ("apply.rootfs", "open_sources"): "opening the host's files",
    ("apply.rootfs", "attach"): "mounting",
    ("apply.rootfs", "prepare"): "looking at what will be mounted",
    ("apply.config", "answer"): "writing to podman",
}


def sentence(frame: Optional[FrameType], limit: str) -> str:
    """One sentence for whoever started the container."""
    step, path = where(frame)
    at = f", at {path}" if path else ""
    return errors.sentence(f"the hook was not done within {limit}: it was {step}{at}", remedy="find out what makes that slow "
                           "(a file system that does not answer, a node under load), or start the container again", who="site admin")


def where(frame: Optional[FrameType]) -> Tuple[str, str]:
    """The innermost step that this frame belongs to, and the innermost path that was in somebody's hands."""
    package = __name__.rpartition(".")[0] + "."
    path = ""
    while frame is not None:
        named = frame.f_locals.get("path")
        if not path and isinstance(named, str):
            path = named
        step = STEPS.get((frame.f_globals.get("__name__", "").replace(package, "", 1), frame.f_code.co_name))
        if step:
            return step, path
        frame = frame.f_back
    return "between two steps", path
