"""Containers of a real Slurm's jobs get the GPUs that Slurm has given them, and no others: ttys play the GPUs, which nobody opens.

Slurm does not constrain devices here (no task/cgroup): tests/engine/test_gpus.py has what a device cgroup says.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci_hpc_hooks.inputs import resources
from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import Site
from tests.bed.slurm import GPUS, Slurm

IMAGE = "bookworm-mpich-nolabel"
SHOW = f'echo "task $SLURM_PROCID: $(ls -d {GPUS}[0-9]* | tr "\\n" " ")cuda $CUDA_VISIBLE_DEVICES"'


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One that takes four ttys for its GPUs."""
    folder = bed.scratch("gpus-of-jobs")
    for number in range(4):
        (folder / f"proc/{number}").mkdir(parents=True)
        text = f"GPU UUID: GPU-{number}\nBus Location: 0000:0{number}:00.0\nDevice Minor: {number}\n"
        (folder / f"proc/{number}/information").write_text(text)
    site = Site(folder / "site", bed.root_account())
    profile = json.loads((resources.PROFILES / "cuda.json").read_text())
    profile["gpus"].update(each=f"{folder}/proc/*/information", devices=[GPUS + "${Device Minor}"], hidden=[])
    (site.config_dir / "profiles.d").mkdir()
    (site.config_dir / "profiles.d/cuda.json").write_text(json.dumps(profile))
    (site.config_dir / "site.json").write_text(
        json.dumps({"version": 1, "profiles": [{"name": "cuda", "root": str(bed.BUILD / "site/nvidia-550")}]}))
    site.scan()
    site.register()
    yield site
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def hooks(site: Site) -> Path:
    """For ``--hooks-dir``."""
    return site.hooks_dir / "podman"


def container(hooks: Path, *options: str) -> list[str]:
    engine = Engine("crun", "root")
    return ["podman", "--runtime", engine.runtime, "--hooks-dir", str(hooks), "run", "--rm", "--net=none",
            "--annotation=org.supercontainers.gpu=cuda", "--annotation=org.supercontainers.launcher=slurm", *options, engine.load(IMAGE),
            "sh", "-c", SHOW]


def test_each_task_has_its_own(slurm: Slurm, hooks: Path) -> None:
    result = slurm.srun("-w", "n1", "-n2", "--gpus-per-task=1", *container(hooks))
    # The first one's number is the same inside, the second one's is not.
    assert sorted(result.stdout.splitlines()) == [f"task 0: {GPUS}0 cuda 0", f"task 1: {GPUS}1 cuda GPU-1"], result.stderr


def test_a_job_of_three(slurm: Slurm, hooks: Path) -> None:
    result = slurm.srun("-w", "n1", "-n1", "--gres=gpu:3", *container(hooks, "--annotation=org.supercontainers.gpu.devices=1+2"))
    assert result.stdout.strip() == f"task 0: {GPUS}1 {GPUS}2 cuda GPU-1,GPU-2", result.stderr
    result = slurm.srun("-w", "n1", "-n1", "--gres=gpu:3", *container(hooks, "--annotation=org.supercontainers.gpu.devices=3"))
    assert result.returncode != 0 and "the GPU 3 is asked for, and SLURM_STEP_GPUS=0,1,2 gives" in result.stderr


def test_a_job_without_any(slurm: Slurm, hooks: Path) -> None:
    result = slurm.srun("-w", "n1", "-n1", *container(hooks))
    assert result.returncode != 0 and "this is a job of slurm, and nothing tells which GPUs it was given" in result.stderr


def test_what_the_node_offers_in_slurms_words(slurm: Slurm, site: Site) -> None:
    """The line for slurm.conf is one that Slurm reads, and jobs find the node by it."""
    line = site.command("features", "--format", "slurm").stdout
    words = dict(word.split("=") for word in line.split())
    assert words["Gres"] == "gpu:4" and "gpu-cuda" in words["Features"].split(",")

    conf = slurm.folder / "of-features.conf"
    text = re.sub(r"^NodeName=.*\n", "", (slurm.folder / "slurm.conf").read_text(), flags=re.MULTILINE)
    conf.write_text(text + line)
    read = slurm.execute("slurmd", "-f", str(conf), "-N", words["NodeName"], "-G")
    assert "Gres Name=gpu Type=(null) Count=4" in read.stdout + read.stderr and "unrecognized" not in read.stderr, read.stderr

    there = words["Features"]
    slurm.execute("scontrol", "update", "NodeName=n1", f"AvailableFeatures={there}", f"ActiveFeatures={there}")
    found = slurm.srun("--constraint=gpu-cuda&x86_64_v2", "--gres=gpu:4", "hostname")
    assert found.stdout == "n1\n", found.stderr
    assert "Invalid feature specification" in slurm.srun("--constraint=gpu-rocm", "hostname").stderr
