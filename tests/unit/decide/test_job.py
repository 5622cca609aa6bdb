"""What a start gets of its job, and what ranks need: each rule alone, with the shipped profiles' own data."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.decide import job
from oci_hpc_hooks.decide.launcher import with_job
from oci_hpc_hooks.decide.request import GPU, LAUNCHER, LAUNCHER_SCOPE, MPI, request
from oci_hpc_hooks.errors import Refusal
from oci_hpc_hooks.inputs import resources, validate
from oci_hpc_hooks.model import NOTHING, PROVED, REFUSED, UNPROVED, Job, Plan, Profile, ResolvedProfile, Site
from oci_hpc_hooks.situation import Situation
from tests.unit.decide import world
from tests.unit.decide.world import container, elf, host


def shipped(name: str) -> Profile:
    path = resources.PROFILES / f"{name}.json"
    return validate.to_dataclass(Profile, validate.check(path.read_bytes(), "profile", str(path)))


LAUNCHERS = {name: shipped(name).job for name in ("slurm", "pmix", "pmi2", "hydra", "pals", "munge")}

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_UID": "1000", "SLURM_JOB_GID": "1000", "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
PMIX = {**STEP, "PMIX_RANK": "3", "PMIX_SECURITY_MODE": "munge,native", "PMIX_GDS_MODULE": "ds21,hash", "PMIX_VERSION": "4.2.2",
        "PMIX_SERVER_TMPDIR": "/var/spool/slurmd/pmix.7.0/", "PMIX_SYSTEM_TMPDIR": "/tmp", "PMIX_PREFIX": "/opt/pmix"}
PMI2 = {**STEP, "PMI_FD": "3", "PMI_RANK": "3", "PMI_SIZE": "4"}


def asked(family: str = "", protocols: Sequence[str] = (), *, wanted: Sequence[str] = (), explicit: bool = True, scope: str = "rank",
          copies_memory: bool = True) -> Dict[str, Any]:
    """The job part of a record."""
    return {"launchers": {name: dataclasses.asdict(one) for name, one in LAUNCHERS.items()}, "wanted": list(wanted),
            "family": dataclasses.asdict(shipped(family).job if family else Job()), "scope": scope, "origin": "annotation x",
            "explicit": explicit, "protocols": list(protocols), "copies_memory": copies_memory, "locking": [],
            "services": {}}


def start(launcher: Mapping[str, str], given: Optional[Mapping[str, str]] = None, image: Optional[Mapping[str, str]] = None,
          **more: Any) -> Situation:
    """A start that lacks nothing, but for what is given."""
    now = Situation()
    now.launcher = dict(launcher)
    now.given = dict(given or {})
    now.inside = {**(image or {}), **now.given}
    now.user = now.caller = (1000, 1000)
    now.preserved = 1
    for name, value in more.items():
        setattr(now, name, value)
    return now


def codes(outcome: job.Outcome, severity: str = "") -> List[str]:
    return [finding["code"] for finding in outcome.findings if severity in ("", finding["severity"])]


OPENMPI = ("openmpi", ("pmix",))
MPICH = ("mpich", ("pmi",))


# ------------------------------------------------------------------------------------------------------------------- who

def test_no_launcher_no_job() -> None:
    outcome = job.decide(asked(*OPENMPI), start({"HOME": "/root"}))
    assert (outcome.launchers, outcome.variables, outcome.directories, outcome.findings) == ([], {}, [], [])


@pytest.mark.parametrize(("launcher", "names"), [
    (PMIX, ["slurm", "pmix"]), (PMI2, ["slurm", "pmi2"]), ({"PMI_PORT": "n1:4711"}, ["hydra"]), ({"PALS_APID": "x"}, ["pals"])])
def test_the_variable_tells_who_has_started_it(launcher: Mapping[str, str], names: Sequence[str]) -> None:
    assert sorted(job.decide(asked(), start(launcher)).launchers) == sorted(names)


def test_who_is_asked_for_by_name_and_is_not_there() -> None:
    outcome = job.decide(asked(wanted=["pmix"]), start(STEP))
    what, remedy = outcome.refusal
    assert "PMIX_RANK is not there" in what and "srun --mpi=pmix" in remedy


def test_at_createruntime_the_user_has_to_pass_variables_on() -> None:
    outcome = job.decide(asked(wanted=["pmix"]), start({}, can_set=False, unseen="it is not seen here"))
    assert "it is not seen here" in outcome.refusal[0] and "--env 'PMIX_*'" in outcome.refusal[1]
    outcome = job.decide(asked(), start({}, can_set=False, unseen="it is not seen here"))
    assert codes(outcome, "note") == ["launcher-unseen"] and not outcome.refusal[0]


# ------------------------------------------------------------------------------------------------------------- variables

def test_families_of_variables_and_nothing_else() -> None:
    others = {"HOME": "/home/u", "AWS_SECRET_ACCESS_KEY": "x", "LD_PRELOAD": "/x.so", "SLURMX": "1", "MPICH_X": "no MPICH here"}
    outcome = job.decide(asked(*OPENMPI), start({**PMIX, **others, "UCX_TLS": "tcp"}))
    assert set(outcome.variables) == ({*PMIX, "UCX_TLS", "PMIX_MCA_psec"} - {"PMIX_PREFIX"})


def test_what_the_user_has_set_stays_and_what_the_image_has_set_does_not() -> None:
    outcome = job.decide(asked(), start(PMIX, given={"PMIX_RANK": "9"}, image={"PMIX_NAMESPACE": "x", "SLURM_JOB_ID": "1"}))
    assert "PMIX_RANK" not in outcome.variables
    assert outcome.variables["SLURM_JOB_ID"] == "7"


def test_munge_is_no_way_for_who_has_no_munge() -> None:
    assert job.decide(asked(), start(PMIX)).variables["PMIX_MCA_psec"] == "native"
    both = asked(wanted=["pmix", "munge"])
    assert job.decide(both, start(PMIX)).variables["PMIX_MCA_psec"] == "munge,native"


def test_no_directory_no_shared_memory_of_the_server() -> None:
    without = {name: value for name, value in PMIX.items() if not name.endswith("TMPDIR")}
    assert job.decide(asked(), start(without)).variables["PMIX_MCA_gds"] == "hash"
    assert "PMIX_MCA_gds" not in job.decide(asked(), start(PMIX)).variables


def test_a_container_for_all_ranks_of_a_node_gets_no_ranks_variables() -> None:
    outcome = job.decide(asked(*MPICH, scope="node"), start(PMI2, private=("ipc", "pid", "user"), shm=1 << 30, preserved=0))
    assert (outcome.variables, outcome.refusal, outcome.findings) == ({}, ("", ""), [])
    assert job.decide(asked(scope="node"), start(PMIX)).directories


def test_where_variables_cannot_be_set_it_is_said_which_are_lacking() -> None:
    outcome = job.decide(asked(), start({**PMIX}, given={"PMIX_RANK": "3"}, can_set=False))
    (told,) = [finding for finding in outcome.findings if finding["code"] == "variables"]
    assert not outcome.variables and "PMIX_GDS_MODULE" in told["what"] and "--env 'SLURM_*'" in told["remedy"]
    passed = dict(PMIX, PMIX_MCA_psec="native")
    assert codes(job.decide(asked(), start(passed, given=passed, can_set=False))) == []


# ----------------------------------------------------------------------------------------------------- directories, sockets

def test_the_jobs_directories() -> None:
    assert job.decide(asked(), start(PMIX)).directories == ["/var/spool/slurmd/pmix.7.0", "/tmp/spmix_appdir_1000_7.0"]


@pytest.mark.parametrize("path", ["", "/", "/etc", "//etc/", "relative/x", "/a/../etc", "/tmp/.."])
def test_what_can_be_no_jobs_directory(path: str) -> None:
    assert job.decide(asked(), start({"PMIX_RANK": "0", "PMIX_SERVER_TMPDIR": path})).directories == []


def test_munges_socket_goes_to_no_root_of_the_node() -> None:
    wish = asked(wanted=["munge"])
    assert job.decide(wish, start({})).sockets == ["/run/munge/munge.socket.2"]
    outcome = job.decide(wish, start({}, root=True))
    assert outcome.sockets == [] and "root of the node" in outcome.refusal[0]
    assert job.decide(asked(), start(PMIX)).sockets == []  # not unless somebody asks for it by name


# ----------------------------------------------------------------------------------------------------------------- needs

NEEDS: List[Tuple[str, Tuple[str, Sequence[str]], Mapping[str, str], Mapping[str, Any], str]] = [
    # code, MPI, launcher, what is different, what the remedy says
    ("network", OPENMPI, PMIX, {"private": ("network",)}, "--network=host"),
    ("network", MPICH, {"PMI_PORT": "n1:4711", "PMI_SIZE": "2"}, {"private": ("network",)}, "--network=host"),
    ("uid", OPENMPI, PMIX, {"user": (0, 0)}, "--userns=keep-id"),
    ("uid", OPENMPI, PMIX, {"user": (1000, 0)}, "--userns=keep-id"),
    ("uid", OPENMPI, PMIX, {"user": (0, 0), "caller": (0, 0)}, "--user=1000:1000"),
    ("version", OPENMPI, {**PMIX, "PMIX_VERSION": "1.2.5"}, {}, "pmi2"),
    ("descriptor", MPICH, {**PMI2, "PMI_FD": "11"}, {}, "--preserve-fds=1"),
    ("descriptor", MPICH, PMI2, {"preserved": 0}, "--preserve-fds=1"),
    ("ipc", MPICH, PMI2, {"private": ("ipc",)}, "--ipc=host"),
    ("pid", OPENMPI, PMIX, {"private": ("pid",)}, "--pid=host"),
    ("memory", MPICH, PMI2, {"private": ("pid",), "can_set": False}, "--pid=host, or --env MPIR_CVAR_CH4_CMA_ENABLE=0"),
    ("memory", MPICH, PMI2, {"private": ("user",), "can_set": False}, "--env UCX_POSIX_USE_PROC_LINK=n"),
    ("protocol", MPICH, PMIX, {}, "srun --mpi=pmi2"),
    ("protocol", OPENMPI, PMI2, {}, "srun --mpi=pmix"),
    ("protocol", OPENMPI, STEP, {}, "srun --mpi=pmix"),
]


@pytest.mark.parametrize(("code", "mpi", "launcher", "other", "remedy"), NEEDS)
def test_what_is_lacking_is_refused_if_somebody_asked(
    code: str, mpi: Tuple[str, Sequence[str]], launcher: Mapping[str, str], other: Mapping[str, Any], remedy: str
) -> None:
    outcome = job.decide(asked(*mpi), start(launcher, **other))
    assert code in codes(outcome, "error") and remedy in outcome.refusal[1], outcome.findings
    outcome = job.decide(asked(*mpi, explicit=False), start(launcher, **other))
    assert code in codes(outcome, "warning") and outcome.refusal == ("", "")


@pytest.mark.parametrize(("mpi", "launcher"), [(OPENMPI, PMIX), (MPICH, PMI2)])
def test_where_nothing_is_lacking_nothing_is_said(mpi: Tuple[str, Sequence[str]], launcher: Mapping[str, str]) -> None:
    assert job.decide(asked(*mpi), start(launcher, shm=1 << 30)).findings == []


@pytest.mark.parametrize(("mpi", "other", "code"), [
    (OPENMPI, {"private": ("ipc",)}, "ipc"),
    (MPICH, {"fabric": True, "memlock": 64 << 10}, "memlock"),
    (MPICH, {"shm": 1 << 20}, "shm"),
])
def test_what_makes_it_worse_is_a_warning(mpi: Tuple[str, Sequence[str]], other: Mapping[str, Any], code: str) -> None:
    outcome = job.decide(asked(*mpi), start(PMIX if mpi == OPENMPI else PMI2, **other))
    assert codes(outcome, "warning") == [code] and outcome.refusal == ("", "")


def test_variables_with_which_it_runs_without_are_set() -> None:
    outcome = job.decide(asked(*MPICH), start(PMI2, private=("pid",)))
    assert outcome.refusal == ("", "") and codes(outcome) == ["memory"]
    assert outcome.variables["MPIR_CVAR_CH4_CMA_ENABLE"] == "0"
    mine = {"MPIR_CVAR_CH4_CMA_ENABLE": "0", "UCX_POSIX_USE_PROC_LINK": "n"}
    assert codes(job.decide(asked(*MPICH), start(PMI2, given=mine, private=("pid",)))) == []
    assert codes(job.decide(asked(*MPICH), start(PMI2, given=mine, private=("pid",), can_set=False))) == ["variables"]


@pytest.mark.parametrize("alone", [{"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_rank_that_is_alone_on_its_node_needs_no_neighbours(alone: Mapping[str, str]) -> None:
    assert job.decide(asked(*MPICH), start({**PMI2, **alone}, private=("ipc", "pid", "user"))).findings == []


def test_an_mpi_that_reads_no_memory_of_others() -> None:
    assert job.decide(asked(*MPICH, copies_memory=False), start(PMI2, private=("pid", "user"))).findings == []


def test_one_rank_is_no_singleton_by_mistake() -> None:
    assert job.decide(asked(*MPICH), start({**PMIX, "SLURM_STEP_NUM_TASKS": "1"})).refusal == ("", "")
    assert job.decide(asked(*MPICH), start({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"})).refusal == ("", "")  # a batch script


TEXTS = st.sampled_from(["", "0", "1", "3", "-1", "²", "9" * 40, "2(x2),1", "(", ",", "x", "/a/b", "${X}", "1.2", "native"])
NAMES = st.sampled_from(sorted({*PMIX, *PMI2, "PMI_PORT", "PALS_APID", "PALS_SPOOL_DIR", "MPI_LOCALNRANKS", "HOME", "FI_PROVIDER"}))
VARIABLES = st.dictionaries(NAMES, TEXTS)


@settings(deadline=None)
@given(launcher=VARIABLES, given_=VARIABLES, image=VARIABLES, mpi=st.sampled_from([OPENMPI, MPICH, ("", ())]),
       private=st.sets(st.sampled_from(["network", "ipc", "pid", "user"])).map(tuple), explicit=st.booleans(), can_set=st.booleans(),
       scope=st.sampled_from(["rank", "node"]), shm=st.integers(-1, 1 << 40))
def test_whatever_the_launcher_says(launcher: Dict[str, str], given_: Dict[str, str], image: Dict[str, str],
                                    mpi: Tuple[str, Sequence[str]], private: Tuple[str, ...], explicit: bool, can_set: bool, scope: str,
                                    shm: int) -> None:
    outcome = job.decide(asked(*mpi, explicit=explicit, scope=scope), start(launcher, given_, image, private=private, can_set=can_set,
                                                                           shm=shm))
    assert not set(outcome.variables) & set(given_)
    assert "HOME" not in outcome.variables
    assert can_set or not outcome.variables
    assert scope == "rank" or not set(outcome.variables) & set(launcher)
    assert all(path.startswith("/") and ".." not in path.split("/") for path in outcome.directories)
    assert bool(outcome.refusal[0]) == bool(codes(outcome, "error"))
    assert explicit or not outcome.refusal[0]
    json.dumps(outcome.findings)


# ----------------------------------------------------------------------------------------------------------- before a start

def resolved(name: str, *libraries: Any) -> ResolvedProfile:
    found = shipped(name)
    return ResolvedProfile(name, found.provides, found.source, tuple(libraries), devices=found.devices, job=found.job)


NODE = world.inventory(
    resolved("mpich", host("/opt/lib/libmpi.so.12", elf("libmpi.so.12", imports=("process_vm_readv",)), "replace")),
    resolved("openmpi", host("/opt/lib/libmpi.so.40", elf("libmpi.so.40"), "replace"),
             host("/opt/lib/libopen-pal.so.40", elf("libopen-pal.so.40", imports=("process_vm_readv",)), "dependency")),
    *(resolved(name) for name in LAUNCHERS))


def planned(made: Plan, site: Optional[Site] = None, **sources: Any) -> Plan:
    node = NODE if site is None else dataclasses.replace(NODE, site=site)
    return with_job(made, request(container(**sources), node.site), node)


@pytest.mark.parametrize(("profile", "protocols"), [("mpich", ("pmi",)), ("openmpi", ("pmix",))])
def test_what_the_injected_mpi_speaks(profile: str, protocols: Tuple[str, ...]) -> None:
    made = planned(Plan(PROVED, (), profile), annotations={LAUNCHER: "auto"}, labels={MPI: profile})
    assert made.job is not None
    assert (made.job.protocols, made.job.copies_memory, made.job.explicit, made.job.scope) == (protocols, True, True, "rank")
    assert made.open_devices == shipped(profile).devices and not made.devices


def test_who_may_ask() -> None:
    """A label gets neither directories nor variables, and of devices only what anybody may open."""
    wish = {LAUNCHER: "auto", LAUNCHER_SCOPE: "node"}
    made = planned(Plan(PROVED, (), "mpich"), labels={**wish, MPI: "mpich"}, manifest=wish)
    assert made.job is None and {finding.code for finding in request(container(labels=wish), Site()).findings} == {"not-for-images"}
    assert planned(Plan(PROVED, (), "mpich"), annotations={MPI: "mpich"}).devices == shipped("mpich").devices
    assert planned(Plan(NOTHING, ()), site=Site(defaults={LAUNCHER: "auto"})).job is not None
    assert planned(Plan(NOTHING, ()), site=Site(defaults={LAUNCHER: "auto"}), annotations={LAUNCHER: "none"}).job is None


STACK = dataclasses.asdict(Job(environment=("MPS_*",), except_for=("MPS_LOG",), directories=("${MPS_PIPE}", "/tmp/mps"),
                               sockets=("/run/gpu",)))


def test_what_a_stack_of_gpus_has_of_the_node() -> None:
    """With a launcher or without one, and apart from what the launcher's sockets mean for PMIx."""
    mps = {"MPS_PIPE": "/tmp/mine/", "MPS_LOG": "/var/log/mps"}
    for launcher, wanted in ((mps, {"MPS_PIPE": "/tmp/mine/"}), ({}, {})):
        alone = {**asked(), "launchers": {}, "services": {"acme": STACK}}
        outcome = job.decide(alone, start(launcher, can_set=True, unseen="x"))
        places = [(False, "/tmp/mine")] if launcher else []
        assert outcome.services == [*places, (False, "/tmp/mps"), (True, "/run/gpu")]
        assert (outcome.variables, outcome.findings, outcome.sockets, outcome.launchers) == (wanted, [], [], [])
    outcome = job.decide({**asked(), "services": {"acme": STACK}}, start({**PMIX, **mps}, can_set=True))
    assert outcome.variables["MPS_PIPE"] and outcome.variables["PMIX_MCA_psec"] == "native"


def test_a_container_of_root_gets_no_socket_of_the_gpus() -> None:
    outcome = job.decide({**asked(), "launchers": {}, "services": {"acme": STACK}}, start({}, root=True, can_set=True))
    assert outcome.services == [(False, "/tmp/mps")] and outcome.refusal == ("", "")


def test_services_at_a_stage_that_sets_no_variables() -> None:
    outcome = job.decide({**asked(), "launchers": {}, "services": {"acme": STACK}}, start({"MPS_PIPE": "/tmp/mine"}, can_set=False))
    (told,) = outcome.findings
    assert told["code"] == "variables" and "lacks MPS_PIPE" in told["what"] and "--env MPS_PIPE" in told["remedy"]


def test_who_may_ask_for_services() -> None:
    """The caller and the site, never an image: a label beside an annotation is enough to say no."""
    gpu = dataclasses.replace(resolved("opencl"), job=Job(sockets=("/run/gpu",)))
    node = dataclasses.replace(NODE, profiles=(*NODE.profiles, gpu))

    def services(defaults: Mapping[str, str] = {}, **sources: Any) -> Tuple[str, ...]:
        here = dataclasses.replace(node, site=Site(defaults=defaults))
        found = with_job(Plan(UNPROVED, (), "opencl"), request(container(**sources), here.site), here).job
        return tuple(found.services) if found is not None else ()

    assert services(annotations={GPU: "opencl"}) == services(defaults={GPU: "opencl"}) == services(annotations={GPU: "auto"}) == ("opencl",)
    assert services(labels={GPU: "opencl"}) == services(labels={GPU: "auto"}) == services(manifest={GPU: "opencl"}) == ()
    assert services(annotations={GPU: "opencl", LAUNCHER: "auto"}) == services(annotations={GPU: "opencl", LAUNCHER: "none"}) == ("opencl",)


def test_explicit_is_who_names_a_launcher_or_an_mpi() -> None:
    def explicit(made: Plan, **sources: Any) -> bool:
        found = planned(made, **sources).job
        assert found is not None
        return found.explicit

    assert not explicit(Plan(NOTHING, ()), annotations={LAUNCHER: "auto"})
    assert explicit(Plan(NOTHING, ()), annotations={LAUNCHER: "pmix + slurm"})
    assert explicit(Plan(PROVED, (), "mpich"), annotations={LAUNCHER: "auto"}, labels={MPI: "mpich"})
    assert not explicit(Plan(PROVED, (), "mpich"), annotations={LAUNCHER: "auto", MPI: "auto"})
    assert not explicit(Plan(PROVED, (), "mpich"), site=Site(on_refusal="run-without"), annotations={LAUNCHER: "pmix"})


def test_a_launcher_that_no_profile_has() -> None:
    made = planned(Plan(NOTHING, ()), annotations={LAUNCHER: "pmix+prrte"})
    assert made.verdict == REFUSED and "prrte" in made.findings[-1].what and job.OVERRIDE in made.findings[-1].remedy
    made = planned(Plan(NOTHING, ()), site=Site(defaults={LAUNCHER: "prrte"}))
    assert (made.verdict, made.findings[-1].severity) == (NOTHING, "note")


def test_a_scope_that_means_nothing() -> None:
    with pytest.raises(Refusal, match="known are rank and node"):
        request(container(annotations={LAUNCHER_SCOPE: "core"}), Site())


def test_each_need_of_the_schema_is_known() -> None:
    schema = json.loads(resources.find("schemas/profile.schema.json").read_text())
    needs = schema["properties"]["job"]["properties"]["needs"]["items"]["properties"]["what"]["enum"]
    assert {name[len("need_"):] for name in dir(job._Decision) if name.startswith("need_")} == {*needs}
