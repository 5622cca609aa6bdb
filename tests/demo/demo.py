"""One unchanged image, two MPIs: the same ``podman run`` without and with the hooks.

Everything it makes is in build/demo, to be looked at afterwards: etc/site.json, state (the inventory of this node), hooks.d. Exit
status 0 only if both ranks of the second run found the site's MPI and both of the first the image's own.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Optional

from tests.bed import bed
from tests.bed.site import MPICH5, Site

IMAGE = "bookworm-mpich"
COMMAND = ("mpiexec", "-n", "2", "mpihello")
IMAGE_VERSION = "4.0.2"  # Debian 12's
SITE_VERSION = "5.0.2"  # see images.sh
RANK = re.compile(r"^rank \d of 2: MPICH Version: +(\S+); loaded (.*)$", re.MULTILINE)


def say(text: str) -> None:
    print(text, flush=True)


def fail(text: str) -> int:
    print(f"demo: {text}", file=sys.stderr)
    return 1


def start(engine: bed.Engine, hooks_dir: Optional[Path]) -> Optional[list[str]]:
    """Run the image and show what it prints; the version that each of its two ranks found, or None if it failed."""
    option = f"--hooks-dir {shlex.quote(str(hooks_dir))} " if hooks_dir else ""
    say(f"\n$ podman {option}run --rm --net=none {bed.reference(IMAGE)} {shlex.join(COMMAND)}")
    done = engine.run(IMAGE, *COMMAND, hooks_dir=hooks_dir)
    say(done.stdout.rstrip())
    if done.stderr:
        print(done.stderr.rstrip(), file=sys.stderr, flush=True)
    if done.returncode != 0:
        return None
    return [match[1] for match in RANK.finditer(done.stdout)]


def what_the_hook_did(site: Site) -> str:
    """One line from `oci-hpc-hooks last`. Raises LookupError if the hook left no entry."""
    done = site.last("--json")
    entries = json.loads(done.stdout)["entries"] if done.returncode == 0 else []
    if not entries:
        raise LookupError(f"oci-hpc-hooks last knows of no hook: {(done.stderr or done.stdout).strip()}")
    entry = entries[-1]
    return (
        f"{entry['verdict']} the {entry['profile']} of this node compatible with the image and brought {entry['files']} files and "
        f"directories into the container, in {entry['ms']:.0f} ms ({entry['path']} path)"
    )


def main() -> int:
    engine = bed.Engine("crun", "root")
    folder = bed.BUILD / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    site = Site(folder, engine.account)
    site.configure([MPICH5])
    say(f"The image {bed.reference(IMAGE)}: Debian 12 with its own MPICH, labelled org.supercontainers.mpi=mpich.")
    engine.load(IMAGE)
    say(f"The site's MPI: MPICH {SITE_VERSION} in {MPICH5.parent}.")
    try:
        site.scan()
        hooks_dir = site.register()
    except RuntimeError as error:
        return fail(str(error))
    say(f"This node is scanned, and the hooks are registered in {hooks_dir}.")

    without = start(engine, None)
    swapped = start(engine, hooks_dir)
    if without != [IMAGE_VERSION] * 2:
        return fail(f"without hooks, two ranks with MPICH {IMAGE_VERSION} were expected, found: {without or 'none'}")
    if swapped != [SITE_VERSION] * 2:
        return fail(f"with hooks, two ranks with MPICH {SITE_VERSION} were expected, found: {swapped or 'none'}")
    try:
        say(f"\nThe hook {what_the_hook_did(site)}.")
    except LookupError as error:
        return fail(str(error))
    say(f"The same image ran with MPICH {IMAGE_VERSION}, then with the site's {SITE_VERSION}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
