"""``check --remember``: the plan of a container before its first start, by a start that ends before the program does.

By what a plan is remembered depends on all that podman makes of its options, of the image and of containers.conf, and that only podman
knows. So podman itself makes the container and has the runtime create it (podman-init(1)): the hooks decide, remember and apply as at any
start, nothing of the image is executed, and the container is removed. A second one shows that what was remembered is found.
"""

from __future__ import annotations

import sys
from typing import Any, Dict, Optional, Sequence

from oci_hpc_hooks.cli import last, target
from oci_hpc_hooks.errors import ConfigError, Refusal, UsageError
from oci_hpc_hooks.model import NOTHING, REFUSED

#: A start that decides, and one that finds what was decided.
STARTS = 2


def remember(image: str, command: Sequence[str], options: Sequence[str], hooks_dir: Optional[str], log: str, verdict: str) -> None:
    """Has podman start a container of this image, as ``podman run OPTIONS IMAGE COMMAND`` would, until a start is a warm one.

    ``verdict`` is that of check: hooks say nothing of a container that is left as it is. Raises Refusal where a hook refuses, UsageError
    where podman does, ConfigError where no start is a warm one.
    """
    before: Sequence[str] = ("--hooks-dir", hooks_dir) if hooks_dir else ()
    said: Optional[Dict[str, Any]] = None
    for _ in range(STARTS):
        made = target.podman(*before, "create", "--pull=never", *options, image, *command).strip()
        try:
            target.podman(*before, "init", made)
        except UsageError:
            said = _logged(log, made)
            if said and said["verdict"] == REFUSED:
                raise Refusal(str(said.get("message"))) from None
            raise
        finally:
            target.podman("rm", "--force", "--time=0", "--volumes", made)
        said = _logged(log, made)
        if said.get("path") == "warm" if said else verdict == NOTHING:
            return
    if said is None:
        raise ConfigError(f"nothing is remembered: podman started no hook of this installation for a container of {image}",
                          remedy="register it (oci-hpc-hooks doctor tells which folders podman reads), or name the folder with --hooks-dir",
                          who="site admin")
    raise ConfigError(f"each start of {image} is a cold one: a second container did not find what the first had remembered",
                      remedy="look with oci-hpc-hooks doctor whether plans can be kept; with the storage driver vfs, or a volume that is "
                      "new for each container (VOLUME in the image), they cannot serve another one", who="site admin")


def _logged(log: str, container: str) -> Optional[Dict[str, Any]]:
    """What the hook has logged of this container last, if anything."""
    return next((entry for entry in last.read(log, sys.maxsize) if entry.get("id") == container), None)
