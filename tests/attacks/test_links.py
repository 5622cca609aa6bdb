# ruff: noqa: F811 (fixtures are imported)
"""Links of the image that lead out of it: CVE-2024-0132, CVE-2024-0133, CVE-2024-0134, CVE-2025-23359, CVE-2025-23267, CVE-2026-41579
(crun: CVE-2026-47766).

Each directory and file that a hook looks at, mounts on or writes beside is a link to a folder of the host, absolute and relative, to
itself, and by way of /proc. Nothing of that folder is opened, read, changed or seen inside; the container starts or is refused in a
sentence. Runtimes have had the same weakness: what one of them does without our hooks does not count.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import hostile
from tests.attacks.hostile import Canary, Layer, told, watched
from tests.attacks.weaken import weakened
from tests.bed.bed import RUNTIMES, USERS, Engine
from tests.bed.site import Site
from tests.engine.inside import LIBRARY_DIR
from tests.engine.site import ReadySite, ready, site  # noqa: F401

#: What of an image is made a link, in groups: a start for each group. Most programs do not run then; that is not ours to mend.
PLACES = {
    "etc": ["/etc"],
    "lib": ["/lib64", "/lib"],
    "libraries": [LIBRARY_DIR],
    "usr": ["/usr/lib"],
    "proc": ["/proc", "/sys"],
    "run": ["/run", "/tmp", "/opt", "/mnt"],
    "files": [f"{LIBRARY_DIR}/libmpich.so.12", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload",
              f"{LIBRARY_DIR}/libmpich.so.12.2.2", f"{LIBRARY_DIR}/libfabric.so.1", f"{LIBRARY_DIR}/ucx", "/etc/passwd",
              "/.oci-hpc"],
    "program": ["/usr/local/bin/mpihello", "/usr/bin/mpiexec"],
}
WAYS = {
    "absolute": "{canary}",
    "upwards": "../../../../../../../../../../../../../../..{canary}",
    "proc": "/proc/self/root{canary}",
    "cwd": "/proc/self/cwd{canary}",
    "descriptor": "/proc/self/fd/3",
    "loop": "{self}",
}


def links(places: list[str], way: str, canary: Path) -> hostile.Edit:
    def edit(layer: Layer) -> None:
        for place in places:
            name = Path(place).name
            below = canary / name if (canary / name).exists() else canary
            layer.link(place, WAYS[way].format(canary=below, self=place))

    return edit


def attacked(engine: Engine, hooks: Path, places: list[str], way: str, canary: Canary) -> list[str]:
    """What of the canary is touched beyond what the engine does by itself."""
    edit = links(places, way, canary.folder)
    searched = ["--env", f"LD_LIBRARY_PATH={LIBRARY_DIR}:/mnt:/opt"]
    result = hostile.start(engine, hooks, edit, "cat", "/proc/self/mountinfo", options=searched)
    assert not [line for line in result.stdout.splitlines() if str(canary.folder) in line.split()[3]]  # what is mounted, not where
    assert result.returncode == 0 or told(result) or hostile.by_the_runtime(result), result.stderr
    touched = canary.touched()
    if touched:
        hostile.start(engine, canary.folder / "dev", edit, "true")  # a folder without hooks
        touched = sorted(set(touched) - set(canary.touched()))
    return touched


#: One of each, and the rest in the long run.
QUICK = (("etc", "crun-root"), ("files", "runc-keep-id"))
CASES = [pytest.param((runtime, user), PLACES[places], way, id=f"{runtime}-{user}-{places}-{way}",
                      marks=() if way == "absolute" and (places, f"{runtime}-{user}") in QUICK else pytest.mark.long)
         for runtime in RUNTIMES for user in USERS for places in PLACES for way in WAYS]


@pytest.mark.parametrize(("engine", "places", "way"), CASES, indirect=["engine"])
def test_links_lead_nowhere(engine: Engine, site: Site, open_folder: Path, places: list[str], way: str) -> None:
    with watched(open_folder / "canary") as canary:
        for hooks in (site.hooks_dir, site.hooks_dir / "podman"):
            assert attacked(engine, hooks, places, way, canary) == []


@pytest.mark.parametrize(("engine", "way"), [
    pytest.param((runtime, user), way, id=f"{runtime}-{user}-{way}",
                 marks=() if (runtime, user, way) == ("crun", "root", "upwards") else pytest.mark.long)
    for runtime in RUNTIMES for user in USERS for way in WAYS], indirect=["engine"])
def test_dev_of_the_image(engine: Engine, site: Site, open_folder: Path, way: str) -> None:
    """A runtime that is old enough makes the container's devices where such a link leads, on the host: our hooks do nothing beyond that."""
    touched = {}
    for name, hooks in (("without", open_folder), ("createruntime", site.hooks_dir), ("precreate", site.hooks_dir / "podman")):
        canary = Canary(open_folder / name / "canary")
        hostile.start(engine, hooks, links(["/dev"], way, canary.folder), "true")
        touched[name] = set(canary.touched())
        canary.close()
    assert touched["createruntime"] | touched["precreate"] <= touched["without"]


@pytest.mark.parametrize("stage", ["", pytest.param("podman", marks=pytest.mark.long)])
def test_links_lead_out_without_the_defence(ready: ReadySite, scratch: Path, open_folder: Path, stage: str) -> None:
    engine = Engine("crun", "root")
    hooks = weakened(ready(engine), scratch, ("linux/paths.py", "RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS",
                                              "RESOLVE = 0"))
    canary = Canary(open_folder / "canary")
    touched = attacked(engine, hooks / stage, PLACES["files"], "absolute", canary)
    assert "opened: ld.so.preload" in touched, touched
    canary.close()
