"""The processor's gate: ELF marks decide, a label is the only word where there is no mark."""

from __future__ import annotations

from dataclasses import replace
from typing import Mapping, Optional, Sequence

import pytest

from oci_hpc_hooks.decide.plan import plan
from oci_hpc_hooks.decide.request import CPU_KEYS, CPU_MODE, MPI, request
from oci_hpc_hooks.model import NOTE, PROVED, REFUSED, UNPROVED, WARNING, Cpu, Finding, Plan, Site
from tests.unit.decide import world
from tests.unit.decide.world import APP, IMAGE_MPI, Image, elf, mpich_image, profile

LEVELS = {"x86_64": "x86_64", "x86_64_v2": "x86_64_v2", "x86_64_v3": "x86_64_v3", "x86_64_v4": "x86_64_v4", "nehalem": "x86_64_v2",
          "zen3": "x86_64_v3", "skylake": "x86_64_v3", "zen4": "x86_64_v4"}
V2 = Cpu("nehalem", "GenuineIntel", "x86_64_v2", 3, ("nehalem", "x86_64", "x86_64_v2"), LEVELS)
V3 = Cpu("zen3", "AuthenticAMD", "x86_64_v3", 7,
         ("nehalem", "x86_64", "x86_64_v2", "x86_64_v3", "zen3"), LEVELS)
V4 = Cpu("zen4", "AuthenticAMD", "x86_64_v4", 15, tuple(sorted({*LEVELS} - {"skylake"})), LEVELS)
ARM = Cpu("neoverse_v1", "ARM", "armv8.4a", 0, ("aarch64", "armv8.4a", "neoverse_v1"),
          {"aarch64": "aarch64", "armv8.4a": "armv8.4a", "neoverse_v1": "armv8.4a"})
CPU_KEY = CPU_KEYS[0]


def decide(cpu: Optional[Cpu], image: Optional[Image] = None, *, labels: Optional[Mapping[str, str]] = None,
           annotations: Optional[Mapping[str, str]] = None, mpi: str = "mpich", programs: Sequence[str] = (APP,),
           static: Sequence[str] = (), site: Optional[Site] = None) -> Plan:
    asked = world.container(labels={MPI: mpi, **(labels or {})}, annotations=annotations)
    node = replace(world.inventory(profile(world.site_mpi(), world.site_fabric()), site=site), cpu=cpu)
    facts = replace((image or mpich_image()).facts(*programs), static_programs=tuple(static))
    return plan(asked, request(asked, node.site), node, facts)


def marked(bits: int) -> Image:
    image = mpich_image()
    return image.add(APP, replace(image.files[APP], isa_needed=bits))


def the(made: Plan, code: str) -> Finding:
    (found,) = [finding for finding in made.findings if finding.code == code]
    return found


# -------------------------------------------------------------------------------------------------------------------- marks

@pytest.mark.parametrize(("bits", "cpu", "verdict"), [
    (0, V2, PROVED), (1, V2, PROVED), (3, V2, PROVED), (5, V2, REFUSED), (9, V2, REFUSED), (9, V3, REFUSED), (5, V3, PROVED),
    (9, V4, PROVED), (1 << 31, V4, REFUSED), (9, None, PROVED), (9, ARM, PROVED),
])
def test_the_mark_of_a_program(bits: int, cpu: Optional[Cpu], verdict: str) -> None:
    assert decide(cpu, marked(bits)).verdict == verdict


def test_what_is_said() -> None:
    told = the(decide(V3, marked(9)), "cpu")
    assert told.what == (f"{APP} is marked as built for x86-64-v4 (GNU_PROPERTY_X86_ISA_1_NEEDED), and this node's processor is a zen3, "
                         "which amounts to x86_64_v3")
    assert "a node that has x86-64-v4" in told.remedy and f"{MPI}=none" in told.remedy


def test_a_library_that_the_program_loads() -> None:
    image = mpich_image().add("/usr/lib64/libfast.so.1", elf("libfast.so.1"), cached=True)
    image.add(APP, world.program("libmpi.so.12", "libfast.so.1"))
    assert decide(V3, image).verdict == PROVED
    image.add("/usr/lib64/libfast.so.1", replace(elf("libfast.so.1"), isa_needed=8), cached=True)
    made = decide(V3, image)
    assert made.verdict == REFUSED and "/usr/lib64/libfast.so.1 is marked" in the(made, "cpu").what


def test_what_is_replaced_does_not_count() -> None:
    image = mpich_image()
    image.add(IMAGE_MPI, replace(image.files[IMAGE_MPI], isa_needed=8))
    assert decide(V3, image).verdict == PROVED


def test_a_static_program() -> None:
    image = mpich_image().add("/bin/fixed", replace(elf(dynamic=False), isa_needed=8))
    assert decide(V3, image, programs=(), static=["/bin/fixed"]).verdict == REFUSED
    assert decide(V4, image, programs=(), static=["/bin/fixed"]).verdict == UNPROVED


def test_a_program_that_is_not_on_the_command_line() -> None:
    """One that cannot run here is no reason to stop the others."""
    image = marked(8).add("/usr/bin/sleep", world.program())
    facts = replace(image.facts("/usr/bin/sleep"), consumers=(APP,))
    node = replace(world.inventory(profile(world.site_mpi(), world.site_fabric())), cpu=V3)
    asked = world.container("/usr/bin/sleep", labels={MPI: "mpich"})
    made = plan(asked, request(asked, node.site), node, facts)
    assert made.verdict == UNPROVED and the(made, "consumer-cpu").severity == WARNING


def test_what_is_not_wished_for_explicitly_is_not_refused() -> None:
    for made in (decide(V3, marked(8), mpi="auto"), decide(V3, labels={CPU_KEY: "zen4"}, mpi="auto")):
        assert made.verdict == "nothing" and the(made, "cpu").severity == NOTE


def test_who_asks_for_nothing_is_not_looked_at() -> None:
    made = decide(V3, marked(8), mpi="none", labels={CPU_KEY: "zen4"})
    assert (made.verdict, made.findings) == ("nothing", ())


# ------------------------------------------------------------------------------------------------------------------- labels

@pytest.mark.parametrize(("name", "cpu", "verdict", "code", "severity"), [
    ("zen4", V3, REFUSED, "cpu", "error"),
    ("x86-64-v4", V3, REFUSED, "cpu", "error"),
    (" Zen3 ", V3, PROVED, "", ""),
    ("zen3", V4, PROVED, "", ""),
    ("skylake", V3, PROVED, "cpu", WARNING),
    ("x86_64", V4, PROVED, "cpu-unused", NOTE),
    ("nehalem", V3, PROVED, "cpu-unused", NOTE),
    ("x86_64", V2, PROVED, "", ""),
    ("x86_64_v3", V4, PROVED, "", ""),
    ("zen9", V3, PROVED, "", ""),
    ("generic", V3, PROVED, "", ""),
    ("neoverse_v1", V3, PROVED, "", ""),
    ("zen4", None, PROVED, "", ""),
    ("aarch64", ARM, PROVED, "", ""),
])
@pytest.mark.parametrize("key", CPU_KEYS)
def test_the_claim(name: str, cpu: Optional[Cpu], verdict: str, code: str, severity: str, key: str) -> None:
    made = decide(cpu, labels={key: name})
    assert made.verdict == verdict
    found = [(finding.code, finding.severity) for finding in made.findings if finding.code.startswith("cpu")]
    assert found == ([(code, severity)] if code else [])
    if code:
        assert the(made, code).origin == f"label {key}={name}" and name.strip().lower().replace("-", "_") in the(made, code).what


def test_what_stays_unused_is_named() -> None:
    assert ": AVX2 and FMA, AVX-512 stay unused" in the(decide(V4, labels={CPU_KEY: "x86_64"}), "cpu-unused").what
    assert ": AVX2 and FMA stay unused" in the(decide(V3, labels={CPU_KEY: "x86_64"}), "cpu-unused").what


def test_the_printed_override_works() -> None:
    refused = the(decide(V3, labels={CPU_KEY: "zen4"}), "cpu")
    key, _, value = refused.remedy.partition("--annotation ")[2].split(";")[0].partition("=")
    assert decide(V3, labels={CPU_KEY: "zen4"}, annotations={key: value}).verdict == PROVED


def test_a_generic_mode_is_no_demand() -> None:
    assert decide(V3, labels={CPU_KEY: "zen4", CPU_MODE: "Generic"}).verdict == PROVED
    assert decide(V3, labels={CPU_KEY: "zen4", CPU_MODE: "optimized"}).verdict == REFUSED


def test_the_site_may_run_without() -> None:
    made = decide(V3, labels={CPU_KEY: "zen4"}, site=Site(on_refusal="run-without"))
    assert made.verdict == "nothing" and the(made, "cpu").severity == WARNING
