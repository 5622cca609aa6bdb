"""What the scan says of this node's processor, held against the kernel and the real loader."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import inventory
from oci_hpc_hooks.inputs.cpu import X86_LEVELS, node_cpu
from oci_hpc_hooks.model import Cpu
from tests.unit.config.test_inventory import an_inventory
from tests.unit.elf.elf_bed import hwcaps_of_this_cpu


@pytest.fixture
def cpu() -> Cpu:
    pytest.importorskip("archspec")
    found, _ = node_cpu()
    assert found is not None
    return found


def test_levels_are_those_of_the_real_loader(cpu: Cpu) -> None:
    told = tuple(name for name in hwcaps_of_this_cpu() if name.startswith("x86-64-"))  # after them come those of before glibc 2.33
    if not told:
        pytest.skip("the loader tells since glibc 2.33")
    assert tuple(level.replace("_", "-") for level in X86_LEVELS[:0:-1] if level in cpu.compatible) == told


def test_levels_are_bits(cpu: Cpu) -> None:
    names = [name for bit, name in enumerate(X86_LEVELS) if cpu.isa >> bit & 1]
    assert tuple(names) == X86_LEVELS[:len(names)] and names[-1:] == [cpu.level]
    flags = Path("/proc/cpuinfo").read_text().split()
    assert bool(cpu.isa & 4) == ("avx2" in flags and "fma" in flags and "movbe" in flags)
    assert bool(cpu.isa & 8) == ("avx512vl" in flags and "avx512bw" in flags)


def test_its_own_name_and_those_before_it(cpu: Cpu) -> None:
    assert {cpu.target, cpu.level, "x86_64"} <= {*cpu.compatible} <= {*cpu.levels}
    assert cpu.levels[cpu.target] == cpu.level and cpu.levels["zen4"] == "x86_64_v4"
    assert ("zen4" in cpu.compatible) <= ("x86_64_v4" in cpu.compatible)


def test_without_archspec(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("archspec", "archspec.cpu"):
        monkeypatch.setitem(sys.modules, name, None)
    found, note = node_cpu()
    assert found is None and "archspec is not installed" in note


def test_a_processor_that_archspec_cannot_make_out(cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def host() -> None:
        raise ValueError("no such family")

    monkeypatch.setattr("archspec.cpu.host", host)
    found, note = node_cpu()
    assert found is None and "no such family" in note


def test_a_generic_one_is_told(cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    import archspec.cpu

    monkeypatch.setattr("archspec.cpu.host", lambda: archspec.cpu.TARGETS["x86_64_v2"])
    found, note = node_cpu()
    assert found is not None and (found.target, found.isa) == ("x86_64_v2", 3)
    assert "only as x86_64_v2" in note


def test_another_architecture(cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    import archspec.cpu

    monkeypatch.setattr("archspec.cpu.host", lambda: archspec.cpu.TARGETS["neoverse_v1"])
    found, note = node_cpu()
    assert found is not None and (found.isa, note) == (0, "")
    assert "armv8.4a" in found.compatible and "x86_64" not in found.levels


def test_kept_in_the_inventory(tmp_path: Path, cpu: Cpu) -> None:
    if tmp_path.stat().st_uid != 0:
        pytest.skip("an inventory counts only if root owns it")
    for kept in (replace(an_inventory(), cpu=cpu), an_inventory()):
        path = Path(inventory.write(kept, str(tmp_path / "state")))
        assert inventory.load(str(tmp_path / "state")) == kept
    path.write_text(path.read_text().replace('"cpu"', '"of an older release"'))
    with pytest.raises(ConfigError, match="run oci-hpc-hooks scan"):
        inventory.load(str(tmp_path / "state"))
