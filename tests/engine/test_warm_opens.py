"""What a warm start opens, by strace of the real executables: what 10,000 nodes ask of file servers at each start must not grow unseen.

A new file here is a question of every container of a job, on every node. docs/performance.md, "At scale", counts on this list.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import oci_hpc_hooks
from tests.bed import trace
from tests.bed.bed import Engine
from tests.bed.site import MPICH5, Site
from tests.bed.trace import Call
from tests.engine.conftest import SiteMaker

DESCRIPTORS = {"createRuntime": "oci-hpc-hooks.json", "precreate": "podman/oci-hpc-hooks-precreate.json"}
STORE_FILES = ("manifest", "=")  # of an image: its manifest, and its configuration under a name in base64


def traced(site: Site, stage: str, scratch: Path) -> tuple[Path, Path]:
    """A hooks directory whose only hook is that of `stage` under strace, and where its output goes."""
    descriptor = json.loads((site.hooks_dir / DESCRIPTORS[stage]).read_text())
    output, folder = scratch / "trace", scratch / "hooks.d"
    folder.mkdir()
    wrapper = scratch / "hook"
    wrapper.write_text(f'#!/bin/sh\nexec {" ".join(trace.command(output))} {descriptor["hook"]["path"]} "$@"\n')
    wrapper.chmod(0o755)
    descriptor["hook"].update(path=str(wrapper), args=[str(wrapper)])
    (folder / "hook.json").write_text(json.dumps(descriptor))
    return folder, output


def opened(calls: Sequence[Call]) -> list[str]:
    return sorted({call.path for call in calls if call.opens})


@pytest.mark.parametrize("stage", DESCRIPTORS)
def test_what_a_warm_start_opens(make_site: SiteMaker, scratch: Path, stage: str) -> None:
    engine = Engine("crun", "root")
    site = make_site(engine, loader_cache="bind")
    hooks_dir, output = traced(site, stage, scratch)
    places = trace.places(site, engine.account, [MPICH5])
    found = []
    for path in ("cold", "warm"):
        done = engine.run("bookworm-mpich", "mpihello", hooks_dir=hooks_dir)
        assert done.returncode == 0 and "5.0.2" in done.stdout, done.stdout + done.stderr
        assert json.loads(site.log_file.read_text().splitlines()[-1])["path"] == path
        found.append(trace.kinds(trace.read(output), places))
    cold, warm = found

    # That this test sees what it looks for.
    package = Path(oci_hpc_hooks.__file__).parent
    assert str(site.state_dir / "inventory.json") in opened(cold[trace.INVENTORY])
    assert any("/cold.cpython-" in path for path in opened(cold[trace.PACKAGE]))

    # Ours: none of the profiles, no inventory, no module, no library. They are looked at from outside (stat), and bound.
    for kind in (trace.PROFILES, trace.INVENTORY, trace.PACKAGE, trace.MPI, trace.OTHER):
        assert opened(warm.get(kind, [])) == [], kind
    assert not [call for calls in warm.values() for call in calls if "/schemas" in call.path]
    looked_at = {Path(call.path).relative_to(package).as_posix() for call in warm[trace.PACKAGE]}
    assert "warm.py" in looked_at and "replay.py" in looked_at  # whether the byte-code in the executable is still theirs
    assert not [path for path in looked_at if path == "cold.py" or path.startswith("elf/")]
    assert len(opened(warm[trace.HOOK])) == 1
    assert opened(warm[trace.CONFIGURATION]) == [str(site.config_dir / "site.json")]
    # At precreate the file of the loader's cache too: it is known by its content, for a checksum can be forged.
    assert sorted(Path(path).suffix for path in opened(warm[trace.PLANS])) == [*([".ldcache"] if "precreate" in stage else []), ".plan"]
    assert opened(warm[trace.LOG]) == [str(site.log_file)]

    # The container's: which image it is of, its configuration; nothing of what the image holds.
    store = opened(warm[trace.STORE])
    assert store and len(store) <= 2 and all(Path(path).name.startswith(STORE_FILES) for path in store)
    # podman 5 keeps a list of its own of containers that --rm removes.
    assert {Path(path).name for path in opened(warm[trace.STATE])} <= {"containers.json", "volatile-containers.json", "config.json"}
    assert [path for path in opened(warm[trace.ROOTFS]) if "/dev/.oci-hpc" not in path] == []

    # The interpreter's: what `python3 -IS` opens, the two modules in C that we use, and what those are linked with.
    libraries = [Path(path).name for path in opened(warm[trace.INTERPRETER]) if "/lib-dynload/" in path]
    assert {name.partition(".")[0] for name in libraries} <= {"_json", "_ctypes"}
    assert not any(path.endswith(".py") for path in opened(warm[trace.INTERPRETER]))
