"""What a node offers, in the words of labels: from its inventory alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from oci_hpc_hooks import cli
from oci_hpc_hooks.cli import features
from oci_hpc_hooks.inputs import gpus
from oci_hpc_hooks.inputs import inventory as inventories
from oci_hpc_hooks.model import Cpu
from tests.unit.cli.test_cli import valid
from tests.unit.decide.world import elf, host, inventory, profile
from tests.unit.gpu_bed import Bed, shipped

CPU = Cpu("zen3", "AuthenticAMD", "x86_64_v3", 7, ("x86_64", "x86_64_v2", "x86_64_v3", "zen2", "zen3"), {})
MPICH = replace(profile(host("/opt/lib/libmpi.so.12", elf("libmpi.so.12"), "replace"), name="mpich"), glibc="2.34")
OLD = replace(MPICH, variant="el7", glibc="2.17")
ACME = replace(MPICH, name="acme", provides={"gpu": "acme"}, glibc="")
SLURM = replace(MPICH, name="slurm", provides={"launcher": "slurm"})
BROKEN = replace(MPICH, name="openmpi", provides={"mpi": "openmpi"}, problems=("there is no libmpi.so.40",))
NODE = replace(inventory(MPICH, BROKEN, ACME, SLURM), cpu=CPU)


def test_what_is_offered_and_what_an_image_needs_for_it() -> None:
    said = features.document(NODE)
    assert said["labels"] == {"org.supercontainers.mpi": ["mpich"], "org.supercontainers.gpu": ["acme"],
                              "org.supercontainers.hardware.cpu.optimized.version": list(CPU.compatible)}
    assert said["image_glibc"] == {"mpich": "2.34", "acme": ""}
    assert valid(json.dumps(said), "features-output")


def test_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row says what the image must be, the processor's too."""
    for cpu, needs in ((CPU, "programs for it or an older one, such as x86_64_v3"),
                       (replace(CPU, target="x86_64_v3"), "programs for it or an older one")):
        monkeypatch.setattr(inventories, "load", lambda _, cpu=cpu: replace(NODE, cpu=cpu))
        assert cli.run(["features"]) == 0
        rows = [re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
        assert rows[:2] == [["LABEL OF AN IMAGE", "NEEDS IN THE IMAGE"], ["org.supercontainers.mpi=mpich", "glibc 2.34 or newer"]]
        assert rows[-1] == [f"org.supercontainers.hardware.cpu.optimized.version={cpu.target}", needs]


def test_variants_and_a_c_runtime_serve_older_images() -> None:
    assert features.document(inventory(replace(MPICH, variants=(OLD,))))["image_glibc"]["mpich"] == "2.17"
    assert features.document(inventory(replace(MPICH, problems=("gone",), variants=(OLD,))))["image_glibc"]["mpich"] == "2.17"
    assert features.document(replace(inventory(MPICH), c_runtime=MPICH))["image_glibc"]["mpich"] == ""


def test_for_slurm() -> None:
    line = features.slurm(features.document(NODE), "n1")
    assert line == "NodeName=n1 Features=mpi-mpich,gpu-acme,x86_64,x86_64_v2,x86_64_v3,zen3"


def test_gpus_are_counted_for_slurm() -> None:
    """Those of stacks that can be had."""
    said = features.document(NODE, {"acme": 4, "openmpi": 0, "mpich": 0})
    assert said["gpus"] == {"acme": 4} and valid(json.dumps(said), "features-output")
    assert features.slurm(said, "n1").endswith(",zen3 Gres=gpu:4")
    assert features.document(replace(NODE, profiles=(replace(ACME, problems=("gone",)),)), {"acme": 4})["gpus"] == {}


def test_gpus_of_this_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One of three is divided into two instances."""
    made = Bed(tmp_path).nvidia(3, mig={1: [(1, 0), (2, 0)]})
    monkeypatch.setattr(gpus, "node", lambda plan, node=gpus.node: node(plan, str(tmp_path), made.look))
    file = tmp_path / "inventory.json"
    cuda = replace(ACME, name="cuda", provides={"gpu": "cuda"}, gpus=shipped("cuda").gpus)
    monkeypatch.setattr(inventories, "load", lambda _: inventory(cuda))
    assert cli.run(["features", "--format", "slurm"]) == 0
    assert capsys.readouterr().out.endswith(" Features=gpu-cuda Gres=gpu:4\n")
    assert cli.run(["features"]) == 0
    assert "4 GPUs for cuda" in capsys.readouterr().out
    monkeypatch.setattr(inventories, "published", lambda _: inventory(cuda))
    assert cli.run(["features", "--format", "slurm", "--inventory", str(file)]) == 0
    assert "Gres" not in capsys.readouterr().out


def test_for_node_feature_discovery() -> None:
    """Label names of Kubernetes: up to 63 letters, digits, "-", "_" and "."."""
    lines = list(features.nfd(features.document(NODE)))
    assert lines[:2] == ["org.supercontainers/mpi.mpich=true", "org.supercontainers/gpu.acme=true"]
    assert all(len(line.partition("=")[0].partition("/")[2]) <= 63 for line in lines)


def test_without_a_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--state-dir", str(tmp_path), "features"]) == 2
    assert "run oci-hpc-hooks scan" in capsys.readouterr().err


def test_a_node_that_offers_nothing() -> None:
    said = features.document(inventory(BROKEN))
    assert said["labels"] == {}
    assert features.slurm(said, "n1") == "NodeName=n1"
