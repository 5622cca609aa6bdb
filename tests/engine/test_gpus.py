"""Which GPUs a container gets, with device nodes made for the test: in jobs of a scheduler that closes devices, of one that does not, and
without any. The rules are those of the shipped profile of CUDA; only the places that they read are the test's own."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

import pytest

from oci_hpc_hooks.inputs import resources
from tests.bed import bed
from tests.bed.bed import Engine, Result
from tests.bed.site import Site
from tests.engine.site import forget

IMAGE = "bookworm-mpich-nolabel"
ASKED = "--annotation=org.supercontainers.gpu=cuda"
WHICH = "--annotation=org.supercontainers.gpu.devices="
NAME = f"hpc-hooks-gpu-{os.getpid()}-"
MAJOR = 195  # NVIDIA's; no driver here has it, and what may be opened fails with ENXIO
LOOK = (f"for d in /dev/{NAME}*; do echo \"$d $( (exec 3<>$d) 2>&1 | sed 's/.*: //')\"; done; "
        "echo cuda $CUDA_VISIBLE_DEVICES; echo ids $(id -G); "
        "for n in 0 1; do echo shown $n $(ls /sys/devices/system/cpu/cpu$n | wc -l); done")
DEVICES = Path("/sys/fs/cgroup/devices")


def uuid(number: int) -> str:
    return f"GPU-{number}a1b2c3d-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def node() -> Iterator[Path]:
    """Four GPUs, which only members of group 4242 may open."""
    folder = bed.scratch("gpus")
    for number in range(4):
        (folder / f"proc/{number}").mkdir(parents=True)
        (folder / f"proc/{number}/information").write_text(
            f"GPU UUID: \t {uuid(number)}\nBus Location: \t 0000:0{number}:00.0\nDevice Minor: \t {number}\n")
        path = Path(f"/dev/{NAME}{number}")
        os.mknod(path, stat.S_IFCHR | 0o660, os.makedev(MAJOR, number))
        path.chmod(0o660)
        os.chown(path, 0, 4242)
    yield folder
    for number in range(4):
        Path(f"/dev/{NAME}{number}").unlink()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def node_site(node: Path) -> Site:
    site = Site(node / "site", bed.root_account())
    profile = json.loads((resources.PROFILES / "cuda.json").read_text())
    profile["gpus"].update(each=f"{node}/proc/*/information", devices=["/dev/" + NAME + "${Device Minor}"],
                           hidden=["/sys/devices/system/cpu/cpu${Device Minor}"])
    (site.config_dir / "profiles.d").mkdir()
    (site.config_dir / "profiles.d/cuda.json").write_text(json.dumps(profile))
    (site.config_dir / "site.json").write_text(
        json.dumps({"version": 1, "profiles": [{"name": "cuda", "root": str(bed.BUILD / "site/nvidia-550")}]}))
    site.scan()
    site.register()
    return site


@pytest.fixture
def gpus(node_site: Site) -> Site:
    forget(node_site)
    return node_site


class Seen:
    """What a container sees of the GPUs, and what the log says of its start."""

    def __init__(self, result: Result, site: Site) -> None:
        self.result = result
        lines = [line.partition(" ")[::2] for line in result.stdout.splitlines()]
        self.opened = {int(key[len(f"/dev/{NAME}"):]): value for key, value in lines if key.startswith(f"/dev/{NAME}") and key[-1] != "*"}
        said = {key: value for key, value in lines if key in ("cuda", "ids")}
        self.cuda, self.ids = said.get("cuda", ""), said.get("ids", "").split()
        self.hidden = [int(value.split()[0]) for key, value in lines if key == "shown" and value.split()[1] == "0"]
        entries = [json.loads(line) for line in site.log_file.read_text().splitlines()]
        self.entry = entries[-1] if entries else {}
        self.codes = {finding["code"] for finding in self.entry.get("findings", ())}


def run(site: Site, *options: str, env: Optional[Mapping[str, str]] = None, stage: str = "podman", runtime: str = "crun",
        cgroup: str = "") -> Seen:
    engine = Engine(runtime, "root")
    if cgroup:
        engine.load(IMAGE)
        words = ["podman", "--runtime", runtime, "--hooks-dir", str(site.hooks_dir / stage), "run", "--rm", "--net=none", *options, ASKED,
                 bed.reference(IMAGE), "sh", "-c", LOOK]
        result = engine.account.execute("sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "sh", *words, env=env)
    else:
        result = engine.run(IMAGE, "sh", "-c", LOOK, env=env, options=[ASKED, *options], hooks_dir=site.hooks_dir / stage)
    return Seen(result, site)


@pytest.mark.parametrize("stage", ["podman", ""])
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_without_a_scheduler_all(gpus: Site, runtime: str, stage: str) -> None:
    seen = run(gpus, stage=stage, runtime=runtime)
    assert set(seen.opened) == {0, 1, 2, 3}, seen.result.stderr
    assert seen.hidden == [] and [which.split()[1] for which in seen.entry["gpus"]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_what_a_scheduler_gives(gpus: Site, runtime: str) -> None:
    """Slurm's variables where it does not constrain devices; the second start is a warm one, of another job."""
    for step, seen_as in (("1,2", {1, 2}), ("3", {3})):
        env = {"SLURM_JOB_ID": "7", "SLURM_STEP_GPUS": step, "SLURM_JOB_GPUS": "0,1,2,3"}
        seen = run(gpus, f"--env=CUDA_VISIBLE_DEVICES={step}", env=env, runtime=runtime)
        assert set(seen.opened) == seen_as, seen.result.stderr
        assert all("No such device" in said for said in seen.opened.values()), seen.opened  # the container's cgroup lets them be opened
        assert seen.cuda == ",".join(uuid(number) for number in sorted(seen_as))
        assert seen.hidden == [number for number in range(2) if number not in seen_as]
        assert seen.entry["gpus_by"] == f"SLURM_STEP_GPUS={step}"
    assert seen.entry["path"] == "warm"
    told = gpus.last()
    assert f"GPUs: cuda 3 ({uuid(3)}) (by SLURM_STEP_GPUS=3)" in told.stdout


def test_a_job_of_which_nothing_is_known(gpus: Site) -> None:
    seen = run(gpus, env={"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0"})
    assert seen.result.returncode != 0 and "this is a job of slurm, and nothing tells which GPUs it was given" in seen.result.stderr
    assert "org.supercontainers.gpu=none" in seen.result.stderr
    assert not seen.opened


def test_choices_below_what_was_given(gpus: Site) -> None:
    env = {"SLURM_JOB_ID": "7", "SLURM_STEP_GPUS": "1,2"}
    assert set(run(gpus, WHICH + "2", env=env).opened) == {2}
    assert set(run(gpus, f"--env=NVIDIA_VISIBLE_DEVICES={uuid(1)}", env=env).opened) == {1}
    assert set(run(gpus, "--env=NVIDIA_VISIBLE_DEVICES=void", env=env).opened) == set()
    seen = run(gpus, WHICH + "0+2", env=env)
    assert f"the GPU 0 is asked for, and SLURM_STEP_GPUS=1,2 gives 1 ({uuid(1)}), 2 ({uuid(2)})" in seen.result.stderr
    assert seen.result.returncode != 0 and not seen.opened


def test_groups_of_the_nodes(gpus: Site) -> None:
    """A user's program in root's container can open what only members of a group may: at precreate."""
    seen = run(gpus, "--user=1000:1000", WHICH + "0")
    assert "4242" in seen.ids and "No such device" in seen.opened[0], seen.opened
    seen = run(gpus, "--user=1000:1000", WHICH + "0", stage="")
    assert "denied" in seen.opened[0].lower() and "device-group" in seen.codes
    seen = run(gpus, "--user=1000:1000", "--group-add=4242", WHICH + "0", stage="")
    assert "device-group" not in seen.codes
    assert "4242" not in run(gpus, WHICH + "0").ids  # root needs none


@pytest.mark.skipif(not os.access(DEVICES / "cgroup.procs", os.W_OK), reason="no writable device cgroup of version 1")
def test_four_jobs_that_all_say_zero(gpus: Site) -> None:
    """The scheduler constrains devices: each job's own is its 0, and its cgroup tells which that is."""
    for job in range(4):
        group = DEVICES / f"hpc-hooks-test-{os.getpid()}/job_{job}"
        group.mkdir(parents=True)
        try:
            for number in range(4):
                if number != job:
                    (group / "devices.deny").write_text(f"c {MAJOR}:{number} rwm")
            seen = run(gpus, "--env=CUDA_VISIBLE_DEVICES=0", env={"SLURM_JOB_ID": str(job)}, cgroup=str(group))
            assert set(seen.opened) == {job}, seen.result.stderr
            assert seen.cuda == "0" and seen.entry["gpus_by"] == "the device cgroup"
        finally:
            _remove(group)


def _remove(group: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():  # conmon, for as long as it takes to end
        (DEVICES / "cgroup.procs").write_text(pid)
    group.rmdir()
    if not [path for path in group.parent.iterdir() if path.is_dir()]:
        group.parent.rmdir()
