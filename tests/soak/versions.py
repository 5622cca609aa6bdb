"""Two versions of the hooks on one node, as in the middle of a package's update: an older one, and this checkout.

The older one is a commit of this repository, by default the last whose inventories and remembered plans both have other formats than
today's. A clone without history has none: then it is a copy of this package in which the two versions are lowered.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

from oci_hpc_hooks.inputs import inventory
from oci_hpc_hooks.replay import RECORD_VERSION
from tests.bed import bed
from tests.bed.site import Site

INVENTORY = "oci_hpc_hooks/inputs/inventory.py"
RECORD = "oci_hpc_hooks/replay.py"
PARTS = ("oci_hpc_hooks", "schemas", "hooks.d")


@dataclasses.dataclass(frozen=True)
class Version:
    """A version's package below `folder`, and the formats that it reads and writes."""

    name: str
    folder: Path
    inventory: int
    record: int

    def command(self, site: Site, *arguments: str) -> None:
        """This version's ``oci-hpc-hooks`` with the site's folders. Raises RuntimeError with its output if it fails."""
        done = site.command(*arguments, env={"PYTHONPATH": str(self.folder)})
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: oci-hpc-hooks {' '.join(arguments)}: {done.stdout}{done.stderr}")

    def register(self, site: Site) -> Path:
        """Its hooks for this site, in a folder of their own: the folder for ``--hooks-dir``."""
        folder = site.hooks_dir.with_name(f"hooks.d-{self.name}")
        self.command(site, "register", str(folder))
        return folder

    def scan(self, site: Site) -> None:
        self.command(site, "scan")


def current() -> Version:
    return Version("newer", bed.ROOT, inventory.VERSION, RECORD_VERSION)


def older(folder: Path, revision: str = "") -> Version:
    """The older one, its files put into `folder`. Raises RuntimeError where a revision is named that this clone does not have."""
    found = revision or last_of_other_formats()
    if not found:
        return lowered(folder)
    archive = _git("archive", "--format=tar", found, *PARTS)
    if archive is None:
        raise RuntimeError(f"{bed.ROOT}: no revision {found} to archive")
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True, timeout=60)
    formats = formats_of(found)
    assert formats is not None
    return Version("older", folder, *formats)


def lowered(folder: Path) -> Version:
    """A copy of this package, put into `folder`, in which both versions are one less."""
    for part in PARTS:
        shutil.copytree(bed.ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    now = current()
    for name, old, new in (
        (INVENTORY, f"\nVERSION = {now.inventory}\n", f"\nVERSION = {now.inventory - 1}\n"),
        (RECORD, f"\nRECORD_VERSION = {now.record}\n", f"\nRECORD_VERSION = {now.record - 1}\n"),
        ("schemas/inventory.schema.json", f'"const": {now.inventory}, ', f'"const": {now.inventory - 1}, '),
    ):
        text = (folder / name).read_text()
        assert text.count(old) == 1, f"{name}: {old!r} is not there once"
        (folder / name).write_text(text.replace(old, new))
    return Version("older", folder, now.inventory - 1, now.record - 1)


def last_of_other_formats() -> str:
    """The newest commit of another inventory and another record than today's, "" if this clone has none."""
    now = current()
    for commit in (_git("log", "--format=%H", "--", INVENTORY, RECORD) or b"").decode().split():
        formats = formats_of(commit)
        if formats is not None and formats[0] != now.inventory and formats[1] != now.record:
            return commit
    return ""


def formats_of(commit: str) -> tuple[int, int] | None:
    """The versions of inventory and record at a commit, None where it does not have both."""
    found = []
    for name, word in ((INVENTORY, "VERSION"), (RECORD, "RECORD_VERSION")):
        match = re.search(rf"^{word} = (\d+)$", (_git("show", f"{commit}:{name}") or b"").decode(), re.MULTILINE)
        if match is None:
            return None
        found.append(int(match[1]))
    return found[0], found[1]


def _git(*arguments: str) -> bytes | None:
    """What git prints, None if it fails or is not there."""
    try:
        command = ["git", "-c", f"safe.directory={bed.ROOT}", "-C", str(bed.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
