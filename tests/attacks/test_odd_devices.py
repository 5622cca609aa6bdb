"""Device nodes that are something else: CVE-2025-31133 (the image's /dev/null is a link, and what it leads to is mounted writable) and
CVE-2025-52565 (the same of /dev/pts and /dev/console).

A node always comes from the host, is looked at through the very descriptor that is mounted, and goes where its name leads inside the
container's tree.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.weaken import edited
from tests.unit.mountbed import unshared
from tests.unit.test_rootfs import EXTRAS, WORLD

NODES = """
subprocess.run(["umount", image / "dev"], check=True)
(host / "dev").mkdir()
card, canary = host / "dev/card0", top / "canary"
canary.mkdir()
(canary / "secret").write_text("of the host")
os.mknod(card, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
inside(card).parent.mkdir(parents=True)

def outcome():
    "Where a device, and where anything of the canary or over it, is mounted."
    try:
        wire(("device", card))
        end = "wired"
    except HookError as error:
        end = type(error).__name__
    assert (canary / "secret").read_text() == "of the host" and os.listdir(canary) == ["secret"]
    mounted = [entry for entry in table().values() if "/canary" in entry.root or entry.mountpoint.startswith((str(canary), str(host)))]
    print(end, len(mounted), [str(Path(e.mountpoint).relative_to(image)) for e in table().values() if e.root.endswith("/card0")])
"""
WORLD_OF_NODES = WORLD + EXTRAS + NODES
#: CVE-2026-47766, CVE-2026-41579.
DEV_IS_A_LINK = "rmdir()\ninside(card).parent.symlink_to(canary)"


@pytest.mark.parametrize(("there", "end"), [
    ("symlink_to(canary / 'secret')", "wired 0"),  # a file of that name within the tree, or none
    ("symlink_to('../' * 30 + str(canary)[1:])", "wired 0"),
    ("symlink_to('/proc/self/root' + str(canary) + '/secret')", "wired 0"),
    ("symlink_to('/proc/1/fd/0')", "wired 0"),
    ("mkdir()", "Refusal 0"),
    ("symlink_to(inside(card))", "0"),
    (f"parent.{DEV_IS_A_LINK}", "0"),
])
def test_in_the_image(there: str, end: str, tmp_path: Path) -> None:
    found = unshared(f"inside(card).{there}\noutcome()", tmp_path, before=WORLD_OF_NODES)
    assert end in found or found.startswith(("Refusal 0", "KernelError 0")), found
    assert "canary" not in found.partition("[")[0]


SOURCES = ["card.symlink_to(canary / 'secret')", "card.symlink_to(canary)", "card.write_text('plain')", "os.mkfifo(card)", "card.mkdir()"]


@pytest.mark.parametrize("source", SOURCES)
def test_on_the_host(source: str, tmp_path: Path) -> None:
    """What was a device when it was looked at, and is none when it is mounted."""
    assert unshared(f"card.unlink()\n{source}\noutcome()", tmp_path, before=WORLD_OF_NODES) == "wired 0 []\n"


def test_on_the_host_without_the_defence(tmp_path: Path) -> None:
    package = edited(tmp_path / "package", ("apply/rootfs.py", "if not S_ISCHR(status.st_mode) and not S_ISBLK(status.st_mode):",
                                            "if False:"))
    (tmp_path / "world").mkdir()
    found = unshared(f"card.unlink()\n{SOURCES[0]}\noutcome()", tmp_path / "world", before=WORLD_OF_NODES, package=package)
    assert found.startswith("wired 1"), found


@pytest.mark.parametrize("there", ["symlink_to(canary / 'secret')", f"parent.{DEV_IS_A_LINK}"], ids=["device", "dev"])
def test_in_the_image_without_the_defence(there: str, tmp_path: Path) -> None:
    package = edited(tmp_path / "package", ("linux/paths.py", "RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS",
                                            "RESOLVE = 0"),
                     ("apply/rootfs.py", "    def refuse_volume(self, fd: int, target: str) -> None:\n",
                      "    def refuse_volume(self, fd: int, target: str) -> None:\n        return\n"))
    (tmp_path / "world").mkdir()
    code = f"inside(card).{there}\ntry:\n    outcome()\nexcept AssertionError:\n    print('outside', os.listdir(canary))"
    found = unshared(code, tmp_path / "world", before=WORLD_OF_NODES, package=package)
    assert found.startswith(("wired 1", "outside")), found
