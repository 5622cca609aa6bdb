"""Where nothing can be written, containers start as ever: plans and the log are a convenience."""
# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.bed.bed import Engine
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, TREE, assert_own, assert_site
from tests.engine.site import ReadySite, ready  # noqa: F401
from tests.engine.test_refusals import sentence

STAGES = pytest.mark.parametrize("stage", ["", "podman"], ids=["createruntime", "precreate"])


@STAGES
def test_full_disk_of_cache_and_log(make_site: SiteMaker, stage: str) -> None:
    engine = Engine("crun", "root")
    site = make_site(engine)
    folder = site.log_file.parent
    site.cache_dir.rmdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", folder], check=True, timeout=30)
    try:
        site.log_file.touch()
        subprocess.run(["dd", "if=/dev/zero", f"of={folder}/full", "bs=4k"], stderr=subprocess.DEVNULL, check=False, timeout=30)
        assert_own(engine.run("bookworm-mpich-nolabel", *HELLO, hooks_dir=site.hooks_dir / stage))
        result = engine.run("bookworm-mpich", *HELLO, hooks_dir=site.hooks_dir / stage)
        assert_site(result, TREE + "/")
        assert site.log_file.stat().st_size == 0
        assert [str(path) for path in folder.rglob("*") if path.stat().st_size and path.is_file()] == [f"{folder}/full"]
    finally:
        subprocess.run(["umount", folder], check=True, timeout=30)


@STAGES
def test_runtime_directory_of_a_user_that_is_read_only(ready: ReadySite, stage: str) -> None:
    engine = Engine("crun", "rootless")
    site = ready(engine)
    folder = Path(f"/run/user/{engine.account.uid}")
    engine.load("bookworm-mpich")
    before = site.log()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True, timeout=30)
    try:
        assert_own(engine.run("bookworm-mpich-nolabel", *HELLO, hooks_dir=site.hooks_dir / stage))
        assert_site(engine.run("bookworm-mpich", *HELLO, hooks_dir=site.hooks_dir / stage))
        assert "openmpi" in sentence(engine.run("bookworm-mpich", *HELLO, hooks_dir=site.hooks_dir / stage,
                                                options=["--annotation=org.supercontainers.mpi=openmpi"]))
        assert site.log() == before
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True, timeout=30)
