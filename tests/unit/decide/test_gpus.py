"""Which GPUs a start gets: who tells what the job was given, who chooses below it, and what programs then go by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.decide import gpus
from oci_hpc_hooks.situation import Gpu, Node, Situation
from tests.unit.gpu_bed import Bed, amd_id, cap, nvidia_bus, nvidia_uuid, plan

JOB = {"SLURM_JOB_ID": "7"}
IN_JOB = ("slurm", "uid_1000", "job_7", "step_0")
WISH = "org.supercontainers.gpu.devices"


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def start(launcher: Mapping[str, str] = {}, given: Mapping[str, str] = {}, image: Mapping[str, str] = {},
          can_set: bool = True) -> Situation:
    now = Situation()
    now.launcher, now.given, now.inside, now.can_set = dict(launcher), dict(given), {**image, **given}, can_set
    return now


def decided(bed: Bed, now: Situation, *profiles: str, wish: Optional[str] = None, inside: bool = False, **more: Any) -> gpus.Outcome:
    names = profiles or ("cuda",)
    if wish is not None:
        more.update(wish=wish, wish_origin=f"annotation {WISH}={wish}")
    node = bed.node(*names)
    node.cgroups = IN_JOB if inside else ("user.slice",)
    return gpus.decide(plan(*names, **more), node, now)


def numbers(outcome: gpus.Outcome, stack: str = "cuda") -> List[int]:
    """Which of the GPUs of a node whose device files count as the bus does."""
    return [int(path[11:]) for path in outcome.nodes.get(stack, ()) if path.startswith("/dev/nvidia") and path[11:].isdigit()]


def codes(outcome: gpus.Outcome) -> Dict[str, str]:
    return {finding["code"]: finding["severity"] for finding in outcome.findings}


# ---------------------------------------------------------------------------------------------------------------- the ceiling

@pytest.mark.parametrize("job", range(4))
def test_four_jobs_that_all_say_zero(bed: Bed, job: int) -> None:
    """A scheduler that constrains devices counts each job's own from 0: what the device cgroup lets be opened decides."""
    bed.nvidia(4).closed = {f"/dev/nvidia{n}" for n in range(4) if n != job}
    variables = {**JOB, "CUDA_VISIBLE_DEVICES": "0", "SLURM_STEP_GPUS": "0"}  # the latter a lie, and weaker than the cgroup
    outcome = decided(bed, start(variables), inside=True)
    assert numbers(outcome) == [job] and outcome.told["gpus_by"] == "the device cgroup"
    assert outcome.hidden == [f"/proc/driver/nvidia/gpus/{nvidia_bus(n)}" for n in range(4) if n != job]
    assert outcome.variables == {"CUDA_VISIBLE_DEVICES": "0"}  # the job's own 0, as it is inside


@pytest.mark.parametrize(("variables", "inside", "given"), [
    ({"SLURM_STEP_GPUS": "1,2", "SLURM_JOB_GPUS": "0,1,2,3", "CUDA_VISIBLE_DEVICES": "1,2"}, True, [1, 2]),
    ({"SLURM_JOB_GPUS": "2-3"}, False, [2, 3]),
    ({"SLURM_STEP_GPUS": "10,9"}, False, [9, 10]),
    ({"SLURM_STEP_GPUS": "3", "CUDA_VISIBLE_DEVICES": "0"}, False, [3]),  # constrained, and we are elsewhere
    ({"CUDA_VISIBLE_DEVICES": nvidia_uuid(2)}, False, [2]),
    ({"CUDA_VISIBLE_DEVICES": f"{nvidia_uuid(2)},{nvidia_uuid(0)}"}, True, [0, 2]),
    ({"CUDA_VISIBLE_DEVICES": "3"}, True, [3]),  # in the job's cgroup, which closes nothing: the node's numbers
])
def test_a_scheduler_that_does_not_constrain(bed: Bed, variables: Mapping[str, str], inside: bool, given: List[int]) -> None:
    bed.nvidia(16)
    assert numbers(decided(bed, start({**JOB, **variables}), inside=inside)) == given


@pytest.mark.parametrize(("variables", "inside"), [
    ({}, False), ({}, True), ({"CUDA_VISIBLE_DEVICES": "0"}, False), ({"CUDA_VISIBLE_DEVICES": ""}, True),
    ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, True), ({"SLURM_STEP_GPUS": "99"}, True), ({"SLURM_STEP_GPUS": "gpu"}, True)])
@pytest.mark.parametrize("explicit", [True, False])
def test_a_job_of_which_nothing_is_known(bed: Bed, variables: Mapping[str, str], inside: bool, explicit: bool) -> None:
    outcome = decided(bed.nvidia(4), start({**JOB, **variables}), inside=inside, explicit=explicit)
    assert bool(outcome.refusal[0]) is explicit and codes(outcome)["gpu-grant"] == ("error" if explicit else "warning")
    assert numbers(outcome) == []


def test_a_cgroup_that_lets_nothing_be_opened(bed: Bed) -> None:
    bed.nvidia(2).closed = {"/dev/nvidia0", "/dev/nvidia1"}
    assert "lets none of the node's GPUs be opened" in decided(bed, start(JOB), inside=True).refusal[0]


def test_without_a_scheduler_all_of_the_node(bed: Bed) -> None:
    assert numbers(decided(bed.nvidia(4), start({"CUDA_VISIBLE_DEVICES": "1"}))) == [0, 1, 2, 3]


def test_a_stage_that_does_not_see_the_scheduler(bed: Bed) -> None:
    now = start(can_set=False)
    now.unseen = "it is seen at precreate only"
    assert codes(decided(bed.nvidia(2), now)) == {"gpu-grant-unseen": "note"}


def test_numbers_are_places_on_the_bus(bed: Bed) -> None:
    """Where the device files count otherwise, that is said."""
    outcome = decided(bed.nvidia(4, minors=(2, 3, 0, 1)), start({**JOB, "SLURM_STEP_GPUS": "0"}))
    assert numbers(outcome) == [2] and codes(outcome)["gpu-order"] == "warning"


def test_a_node_without_gpus(bed: Bed) -> None:
    outcome = decided(bed, start(JOB))
    assert (outcome.nodes, outcome.findings, outcome.refusal) == ({}, [], ("", "", ""))


# ---------------------------------------------------------------------------------------------------------------- requests

@pytest.mark.parametrize(("wish", "chosen"), [
    ("all", [1, 2, 10, 9]), ("1", [1]), ("10+9", [9, 10]), ("1,2", [1, 2]), ("1-2", [1, 2]), (nvidia_uuid(9), [9]), ("gpu-9A1B", [9]),
    (nvidia_bus(2), [2]), (nvidia_bus(2).upper(), [2]), ("none", []), ("void", []), (" 1 + 2 ", [1, 2])])
def test_a_choice_below_the_ceiling(bed: Bed, wish: str, chosen: List[int]) -> None:
    now = start({**JOB, "SLURM_STEP_GPUS": "1,2,9,10"})
    assert numbers(decided(bed.nvidia(16), now, wish=wish)) == sorted(chosen)
    by_variable = start(now.launcher, given={"NVIDIA_VISIBLE_DEVICES": wish})
    assert numbers(decided(bed, by_variable)) == sorted(chosen)


@pytest.mark.parametrize(("wish", "named"), [
    ("0", "0"), ("1+3", "3"), ("GPU-", "GPU- (it begins the identifiers of several)"), ("GPU-ffff", "GPU-ffff"), ("99", "99"), ("x", "x"),
    ("MIG-1-2", "MIG-1-2 (an instance's identifier that only the driver can read: write it as GPU:INSTANCE, such as 0:1)"), ("1:0", "1:0"),
    ("9-3", "9-3"), ("0x12", "0x12"), ("0xg", "0xg")])
def test_more_than_was_given(bed: Bed, wish: str, named: str) -> None:
    now = start({**JOB, "SLURM_STEP_GPUS": "1,2"})
    what, origin, remedy = decided(bed.nvidia(4), now, wish=wish).refusal
    granted = f"1 ({nvidia_uuid(1)}), 2 ({nvidia_uuid(2)})"
    assert what == f"the GPU {named} is asked for, and SLURM_STEP_GPUS=1,2 gives {granted}"
    assert origin == f"annotation {WISH}={wish}" and remedy == f"ask for some of {granted}"
    softly = decided(bed, now, wish=wish, refuses=False)
    assert not softly.refusal[0] and codes(softly)["gpu-not-granted"] == "warning" and set(numbers(softly)) <= {1, 2}


def test_people_count_what_they_see(bed: Bed) -> None:
    """In a job whose cgroup closes GPUs the vendor's tools number those that are left."""
    bed.nvidia(4).closed = {"/dev/nvidia0", "/dev/nvidia1"}
    assert numbers(decided(bed, start(JOB), wish="0", inside=True)) == [2]
    assert "2 is asked for" in decided(bed, start(JOB), wish="2", inside=True).refusal[0]


@pytest.mark.parametrize(("value", "chosen", "said"), [
    ("all", [0, 1], False), ("none", [], False), ("void", [], False), ("", [], False), ("0", [0, 1], True), ("5,GPU-ff", [0, 1], True)])
def test_the_images_word_only_says_no(bed: Bed, value: str, chosen: List[int], said: bool) -> None:
    outcome = decided(bed.nvidia(2), start(image={"NVIDIA_VISIBLE_DEVICES": value}))
    assert numbers(outcome) == chosen and ("gpu-word-of-image" in codes(outcome)) is said and not outcome.refusal[0]


def test_who_says_it_first(bed: Bed) -> None:
    now = start(given={"NVIDIA_VISIBLE_DEVICES": "1"}, image={"NVIDIA_VISIBLE_DEVICES": "void"})
    assert numbers(decided(bed.nvidia(4), now)) == [1]
    assert numbers(decided(bed, now, wish="2")) == [2]


@pytest.mark.parametrize(("value", "chosen"), [
    ("all", list(range(16))), ("0", [0]), ("0-2,5", [0, 1, 2, 5]), ("10,9", [9, 10]), (hex(amd_id(1)), list(range(8, 16)))])
def test_amd(bed: Bed, value: str, chosen: List[int]) -> None:
    """Partitions count as GPUs; an identifier means all of a GPU's."""
    outcome = decided(bed.amd(2, partitions=8), start(given={"AMD_VISIBLE_DEVICES": value}), "rocm")
    assert outcome.nodes["rocm"] == [f"/dev/dri/{name}" for n in chosen for name in (f"card{n}", f"renderD{128 + n}")]


# ---------------------------------------------------------------------------------------------------------------- instances

MIG = {1: [(1, 0), (2, 0)]}


def caps(outcome: gpus.Outcome) -> List[int]:
    return sorted(int(path.rpartition("cap")[2]) for path in outcome.nodes["cuda"] if "/nvidia-caps/" in path)


ONE, TWO = [cap(1, 1), cap(1, 1) + 1], [cap(1, 2), cap(1, 2) + 1]


@pytest.mark.parametrize(("wish", "gpu", "wanted"), [
    ("all", [0, 1], ONE + TWO), ("0", [0], []), ("1", [1], ONE + TWO), ("1:0", [1], ONE), ("1:1", [1], TWO), ("1:0+1:1", [1], ONE + TWO),
    (f"MIG-{nvidia_uuid(1)}/2/0", [1], TWO)])
def test_an_instance_comes_with_its_gpu(bed: Bed, wish: str, gpu: List[int], wanted: List[int]) -> None:
    outcome = decided(bed.nvidia(2, mig=MIG), start(), wish=wish)
    assert (numbers(outcome), caps(outcome)) == (gpu, wanted)


def test_a_job_of_one_instance(bed: Bed) -> None:
    bed.nvidia(2, mig=MIG).closed = {"/dev/nvidia0", *(f"/dev/nvidia-caps/nvidia-cap{number}" for number in ONE)}
    outcome = decided(bed, start(JOB), inside=True)
    assert (numbers(outcome), caps(outcome)) == ([1], TWO)
    assert "0:0 is asked for" in decided(bed, start(JOB), wish="0:0", inside=True).refusal[0]


def test_a_scheduler_counts_instances_like_gpus(bed: Bed) -> None:
    outcome = decided(bed.nvidia(2, mig=MIG), start({**JOB, "SLURM_JOB_GPUS": "2"}))
    assert (numbers(outcome), caps(outcome)) == ([1], TWO)


@pytest.mark.parametrize(("value", "come", "refused"), [
    ("0", [0], ""), ("all", [0, 7], ""), ("", [], ""), ("0,7", [0, 7], ""), ("1", [], "channel1, which this node does not have")])
def test_channels_of_imex(bed: Bed, value: str, come: List[int], refused: str) -> None:
    bed.nvidia(1).imex(0, 7)
    outcome = decided(bed, start(given={"NVIDIA_IMEX_CHANNELS": value}))
    assert refused in outcome.refusal[0]
    assert [path for path in outcome.nodes["cuda"] if "imex" in path] == [f"/dev/nvidia-caps-imex-channels/channel{n}" for n in come]
    assert not [path for path in decided(bed, start(image={"NVIDIA_IMEX_CHANNELS": "all"})).nodes["cuda"] if "imex" in path]


# ---------------------------------------------------------------------------------------------------------------- what programs go by

@pytest.mark.parametrize(("launcher", "inside", "given", "wish", "becomes"), [
    # Not constrained: the node's numbers, which mean nothing inside.
    ({"SLURM_STEP_GPUS": "2,3"}, True, "2,3", None, f"{nvidia_uuid(2)},{nvidia_uuid(3)}"),
    ({"SLURM_STEP_GPUS": "2,3"}, True, "3", None, nvidia_uuid(3)),
    ({"SLURM_STEP_GPUS": "2,3"}, False, "3", None, nvidia_uuid(3)),
    # Constrained, but this process is not in the job's cgroup: 0 can only be the job's own.
    ({"SLURM_STEP_GPUS": "3"}, False, "0", None, None),
    ({"SLURM_STEP_GPUS": "2,3"}, False, "0,1", None, None),
    ({"SLURM_STEP_GPUS": "0,1"}, True, "0,1", None, None),
    # A choice below what the job has.
    ({}, False, "1", "1+2", nvidia_uuid(1)),
    ({}, False, nvidia_uuid(1), "1", None),
    ({}, False, "0", None, None),
])
def test_numbers_that_would_select_twice(bed: Bed, launcher: Mapping[str, str], inside: bool, given: str, wish: Optional[str],
                                         becomes: Optional[str]) -> None:
    bed.nvidia(4)
    variables = {**JOB, **launcher} if launcher else {}
    now = start(variables, given={"CUDA_VISIBLE_DEVICES": given})
    outcome = decided(bed, now, wish=wish, inside=inside)
    assert outcome.variables.get("CUDA_VISIBLE_DEVICES") == becomes
    later = start(variables, given={"CUDA_VISIBLE_DEVICES": given}, can_set=False)
    outcome = decided(bed, later, wish=wish, inside=inside)
    assert outcome.variables == {} and ("gpu-selection" in codes(outcome)) is (becomes is not None)


def test_a_selection_that_leads_out_of_the_container(bed: Bed) -> None:
    outcome = decided(bed.nvidia(4), start(given={"CUDA_VISIBLE_DEVICES": "0,2"}), wish="2")
    assert outcome.variables == {"CUDA_VISIBLE_DEVICES": nvidia_uuid(2)}
    assert [finding["severity"] for finding in outcome.findings if finding["code"] == "gpu-selection"] == ["warning", "note"]


def test_a_ranks_selection_comes_along(bed: Bed) -> None:
    """As Slurm's --gpu-bind makes it; a container that serves the whole node gets none."""
    variables = {**JOB, "SLURM_STEP_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "1"}
    assert decided(bed.nvidia(4), start(variables), inside=True).variables == {"CUDA_VISIBLE_DEVICES": "1"}
    variables["SLURM_STEP_GPUS"] = "1,2"
    assert decided(bed, start(variables), inside=True).variables == {"CUDA_VISIBLE_DEVICES": nvidia_uuid(1)}
    assert decided(bed, start(variables), inside=True, copies=False).variables == {}


def test_the_images_selection_stays(bed: Bed) -> None:
    assert decided(bed.nvidia(4), start(image={"CUDA_VISIBLE_DEVICES": "3"}), wish="1").variables == {}


def test_amd_counts_inside(bed: Bed) -> None:
    now = start({**JOB, "SLURM_STEP_GPUS": "2,3"}, given={"ROCR_VISIBLE_DEVICES": "3"})
    assert decided(bed.amd(4), now, "rocm", inside=True).variables == {"ROCR_VISIBLE_DEVICES": "1"}


@pytest.mark.parametrize(("value", "stays"), [
    (None, []), ("all", []), ("compute,utility", ["/dev/nvidia-modeset", "/dev/dri/*"]),
    ("display", ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]), ("graphics,compute", ["/dev/nvidia-modeset"]),
    ("utility", ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/dri/*"])])
def test_uses(bed: Bed, value: Optional[str], stays: Sequence[str]) -> None:
    image = {"NVIDIA_DRIVER_CAPABILITIES": value} if value is not None else {}
    assert decided(bed.nvidia(1), start(image=image)).without == stays


# ---------------------------------------------------------------------------------------------------------------- conditions

IMAGES = "cuda>=12.6 brand=tesla,driver>=470,driver<471 brand=unknown,driver>=535,driver<536"
FACTS = {"driver": "550.54.14", "cuda": "12.4"}


@pytest.mark.parametrize(("text", "holds"), [
    ("", True), ("cuda>=12.4", True), ("cuda>=12.5", False), ("cuda>=9", True), ("cuda=12.4", True), ("cuda=12.4.0", True),
    ("cuda!=12.4", False),
    ("cuda<12.10", True), ("cuda>12.3,driver>=550", True), ("cuda>=12.5,driver>=550", False), ("cuda>=13 driver>=550", True),
    ("driver>=550.54.14", True), ("driver>550.54.14", False), ("driver<=550", False), ("arch>=7.0", None), ("arch>=7.0,cuda>=13", False),
    ("arch>=7.0 cuda>=12", True), ("brand=tesla cuda>=13", None), ("nonsense", None), ("cuda>=x", None), (",", True), (IMAGES, False)])
def test_conditions(text: str, holds: Optional[bool]) -> None:
    assert gpus.satisfied(text, FACTS) is holds


@pytest.mark.parametrize(("image", "given", "driver", "code", "refused"), [
    ({"NVIDIA_REQUIRE_CUDA": "cuda>=12.6"}, {}, "550.54.14", "error", True),
    ({"NVIDIA_REQUIRE_CUDA": "cuda>=12.6"}, {"NVIDIA_DISABLE_REQUIRE": "1"}, "550.54.14", None, False),
    ({"NVIDIA_REQUIRE_CUDA": "cuda>=12.6"}, {"NVIDIA_REQUIRE_CUDA": ""}, "550.54.14", None, False),
    ({"NVIDIA_REQUIRE_CUDA": "cuda>=12.4", "NVIDIA_REQUIRE_X": "driver>=560"}, {}, "550.54.14", "error", True),
    ({"NVIDIA_REQUIRE_CUDA": "cuda>=12.4"}, {}, "550.54.14", None, False),
    ({"NVIDIA_REQUIRE_ARCH": "arch>=7"}, {}, "550.54.14", "note", False),
    ({"NVIDIA_REQUIRE_CUDA": "cuda>=12.4"}, {}, "600.1", "note", False)])
def test_an_image_that_wants_more(bed: Bed, image: Mapping[str, str], given: Mapping[str, str], driver: str, code: Optional[str],
                                  refused: bool) -> None:
    outcome = decided(bed.nvidia(1, driver=driver), start(image=image, given=given))
    assert codes(outcome).get("gpu-requirement") == code and bool(outcome.refusal[0]) is refused
    if refused:
        assert "this node has driver 550.54.14, cuda 12.4" in outcome.refusal[0] and "NVIDIA_DISABLE_REQUIRE=1" in outcome.refusal[2]


# ---------------------------------------------------------------------------------------------------------------- whatever comes

VALUES = st.text(alphabet="0123456789,-+:xgGPUall none.()", max_size=24)


@settings(deadline=None)
@given(VALUES, VALUES, VALUES, st.sets(st.integers(0, 3)), st.booleans(), st.booleans())
def test_never_more_than_the_cgroup_lets_be_opened(wish: str, cuda: str, step: str, closed: Set[int], inside: bool, job: bool) -> None:
    node = Node()
    node.gpus = {"cuda": [Gpu(n, nvidia_uuid(n), nvidia_bus(n), (f"/dev/nvidia{n}",), n in closed) for n in range(4)]}
    node.cgroups = IN_JOB if inside else ()
    now = start({**(JOB if job else {}), "SLURM_STEP_GPUS": step, "CUDA_VISIBLE_DEVICES": cuda}, given={"CUDA_VISIBLE_DEVICES": cuda})
    outcome = gpus.decide(plan("cuda", wish=wish, wish_origin="x" if wish else ""), node, now)
    got = numbers(outcome)
    assert got == sorted(set(got)) and not set(got) & closed
