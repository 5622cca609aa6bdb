"""Several things asked for at once: stacks of GPUs beside an MPI, each decided by the same ladder, all of it one plan."""

from __future__ import annotations

import dataclasses
from typing import Mapping, Optional, Sequence, Tuple

import pytest

from oci_hpc_hooks.decide.plan import candidates, plan
from oci_hpc_hooks.decide.request import GPU, GPU_SWITCHES, MPI, OVERRIDE, OVERRIDES, override, request
from oci_hpc_hooks.model import (
    ERROR,
    NOTE,
    NOTHING,
    PROVED,
    REFUSED,
    UNPROVED,
    WARNING,
    Finding,
    HostFile,
    HostLibrary,
    ImageFacts,
    Inventory,
    Plan,
    ResolvedProfile,
    Site,
)
from tests.unit.decide.world import (
    APP,
    Image,
    codes,
    container,
    elf,
    file_id,
    glibc_versions,
    gpu,
    host,
    inventory,
    mpich_image,
    profile,
    program,
    site_fabric,
    site_mpi,
)

DRIVER = "/usr/lib64/libacme.so.1"
CXX = "/usr/lib64/libstdc++.so.6"
OLD, NEW = ("GLIBCXX_3.4", "GLIBCXX_3.4.28"), ("GLIBCXX_3.4", "GLIBCXX_3.4.28", "GLIBCXX_3.4.30")
LABEL = {GPU: "acme"}


def cxx(path: str = CXX, versions: Sequence[str] = NEW) -> HostLibrary:
    return host(path, elf("libstdc++.so.6", needed=("libc.so.6",), verdef=versions))


def driver(*, needed: Sequence[str] = ("libstdc++.so.6", "libc.so.6"), glibc: str = "GLIBC_2.17", path: str = DRIVER,
           role: str = "replace") -> HostLibrary:
    wants = {"libc.so.6": [glibc], "libstdc++.so.6": ["GLIBCXX_3.4.30"]} if "libstdc++.so.6" in needed else {"libc.so.6": [glibc]}
    return host(path, elf("libacme.so.1", needed=needed, verneed=wants), role)


ACME = gpu(driver(), cxx())
NODE = inventory(profile(site_mpi(), site_fabric()), ACME)


def image(glibc: int = 36, *, cxx: Sequence[str] = OLD, mpi: bool = True) -> Image:
    made = mpich_image(glibc) if mpi else Image(glibc)
    made.add(CXX, elf("libstdc++.so.6", needed=("libc.so.6",), verdef=cxx), cached=True)
    return made.add("/usr/bin/compute", program("libstdc++.so.6"))


def decide(facts: ImageFacts, node: Inventory = NODE, *, labels: Optional[Mapping[str, str]] = None,
           annotations: Optional[Mapping[str, str]] = None) -> Plan:
    where = container(labels=labels, annotations=annotations)
    return plan(where, request(where, node.site), node, facts)


def error(made: Plan) -> Finding:
    assert made.verdict == REFUSED
    assert (made.tree, made.in_place, made.cache) == ((), (), None)
    (found,) = [finding for finding in made.findings if finding.severity == ERROR]
    return found


# ----------------------------------------------------------------------------------------------------------- what is asked

@pytest.mark.parametrize(("text", "stacks"), [
    ("cuda", ("cuda",)), (" CUDA ", ("cuda",)), ("nvidia,OpenCL", ("cuda", "opencl")), ("rocm+level-zero", ("rocm", "levelzero")),
    ("hip amd", ("rocm",)), ("none", ("none",)), ("cuda,none", ("none",)), ("auto", ("auto",)), ("cuda,auto", ("auto",)),
    ("unknown", ("auto",)), ("acme", ("acme",)), ("", ()), ("+", ()),
])
def test_stacks(text: str, stacks: Tuple[str, ...]) -> None:
    found = request(container(labels={GPU: text}), Site()).stacks
    assert tuple(wish.value for wish in found) == stacks
    assert all(wish.explicit == (wish.value != "auto") and wish.by_image and wish.kind == "gpu" for wish in found)


@pytest.mark.parametrize(("text", "value"), [("yes", "auto"), ("TRUE", "auto"), ("no", "none"), ("false", "none"), ("0", "none")])
@pytest.mark.parametrize("key", GPU_SWITCHES)
def test_switches_of_another_vocabulary(key: str, text: str, value: str) -> None:
    (wish,) = request(container(labels={key: text}), Site()).stacks
    assert (wish.value, wish.explicit) == (value, value == "none")


def test_the_caller_goes_before_the_image_and_the_image_before_the_site() -> None:
    site = Site(defaults={GPU: "opencl"})
    assert [wish.value for wish in request(container(), site).stacks] == ["opencl"]
    (wish,) = request(container(labels=LABEL, annotations={GPU: "none"}), site).stacks
    assert (wish.value, wish.by_image) == ("none", False)
    assert not request(container(), site).stacks[0].explicit


def test_how_to_start_without() -> None:
    both = request(container(labels={MPI: "mpich", GPU: "acme+cuda"}), Site())
    assert override(both) == f"{OVERRIDE} {OVERRIDES['gpu']}"
    assert override(request(container(labels=LABEL), Site())) == "--annotation org.supercontainers.gpu=none"
    assert override(request(container(labels={MPI: "auto"}), Site())) == OVERRIDE


def test_candidates_are_those_of_every_wish() -> None:
    where = container(labels={MPI: "mpich", GPU: "acme,none-such"})
    assert [one.name for one in candidates(request(where, Site()), NODE)] == ["site-mpich", "site-acme"]


# ----------------------------------------------------------------------------------------------------------------- one wish

def test_a_driver_alone() -> None:
    made = decide(image().facts("/usr/bin/compute"), labels=LABEL)
    assert (made.verdict, made.profile) == (UNPROVED, "site-acme")
    assert [bind.target for bind in made.tree] == [DRIVER[1:], CXX[1:]]
    assert [(bind.source, bind.target) for bind in made.in_place] == [(CXX, CXX)]
    assert made.cache is not None and {"libacme.so.1", "libstdc++.so.6"} <= {entry.name for entry in made.cache.entries}


def test_a_program_that_is_linked_to_it_proves_it() -> None:
    made = decide(image().add("/usr/bin/linked", program("libacme.so.1")).facts("/usr/bin/linked"), labels=LABEL)
    assert made.verdict == PROVED


def test_a_neutral_loader_stays_the_images() -> None:
    node = inventory(gpu(host("/usr/lib64/libOpenCL.so.1", elf("libOpenCL.so.1", needed=("libc.so.6",)), "add"), driver(), cxx()))
    own = image().add("/usr/lib64/libOpenCL.so.1", elf("libOpenCL.so.1", needed=("libc.so.6",)), cached=True)
    made = decide(own.add("/usr/bin/cl", program("libOpenCL.so.1")).facts("/usr/bin/cl"), node, labels=LABEL)
    assert made.verdict == PROVED
    assert "libOpenCL.so.1" not in "".join(bind.target for bind in (*made.tree, *made.in_place))
    without = decide(image().add("/usr/bin/cl", program("libOpenCL.so.1")).facts("/usr/bin/cl"), node, labels=LABEL)
    assert without.verdict == PROVED and "usr/lib64/libOpenCL.so.1" in [bind.target for bind in without.tree]


def test_too_old_an_image() -> None:
    node = inventory(gpu(driver(glibc="GLIBC_2.34", needed=("libc.so.6",))))
    found = error(decide(image(31).facts("/usr/bin/compute"), node, labels=LABEL))
    assert found.code == "glibc-too-old"
    assert found.what == (f"libacme.so.1 (the site's {DRIVER}) needs GLIBC_2.34 of libc.so.6, and the image's glibc is 2.31 "
                          "(/lib64/libc.so.6)")
    assert "let the site offer acme libraries built against glibc 2.31 or older" in found.remedy
    assert "MPI" not in found.remedy and found.remedy.endswith("--annotation org.supercontainers.gpu=none")
    assert found.origin == f"label {GPU}=acme"


def test_a_program_that_has_loaded_what_the_driver_cannot_use() -> None:
    """conda's own libstdc++ by DT_RPATH, in a directory that nobody has looked into but for this program: the driver would meet it."""
    held = elf("libstdc++.so.6", needed=("libc.so.6",), verdef=("GLIBCXX_3.4", "CONDA_1"))
    conda = image().add("/opt/conda/lib/libstdc++.so.6", held)
    conda.add("/opt/conda/bin/python", program("libstdc++.so.6", rpath="/opt/conda/lib"))
    found = error(decide(conda.facts("/opt/conda/bin/python"), labels=LABEL))
    assert found.code == "shared-dependency" and "CONDA_1" in found.what


@pytest.mark.parametrize(("labels", "annotations", "verdict", "code", "severity"), [
    (LABEL, None, REFUSED, "profile-unavailable", ERROR),
    (None, LABEL, REFUSED, "profile-unavailable", ERROR),
    ({GPU: "cuda"}, None, REFUSED, "no-profile", ERROR),
    (None, {GPU: "amce"}, REFUSED, "no-profile", ERROR),
    ({GPU: "amce"}, None, NOTHING, "unknown-value", WARNING),
    ({GPU: "auto"}, None, NOTHING, "nothing-to-replace", NOTE),
])
def test_what_the_node_does_not_have(labels: Optional[Mapping[str, str]], annotations: Optional[Mapping[str, str]], verdict: str,
                                     code: str, severity: str) -> None:
    node = inventory(gpu(problems=("there is no libacme.so.1",)))
    made = decide(image().facts("/usr/bin/compute"), node, labels=labels, annotations=annotations)
    assert (made.verdict, codes(made)) == (verdict, [code])
    assert made.findings[0].severity == severity


def test_a_default_that_does_not_fit_is_a_note() -> None:
    node = inventory(gpu(problems=("there is no libacme.so.1",)), site=Site(defaults={GPU: "acme"}))
    made = decide(image().facts("/usr/bin/compute"), node)
    assert (made.verdict, [finding.severity for finding in made.findings]) == (NOTHING, [NOTE])


def test_auto_brings_what_the_image_uses() -> None:
    node = inventory(ACME, gpu(host("/usr/lib64/libother.so.1", elf("libother.so.1", needed=("libc.so.6",)), "replace"), name="other"))
    own = image().add("/usr/bin/linked", program("libacme.so.1"))
    made = decide(own.facts("/usr/bin/linked"), node, labels={GPU: "auto"})
    assert (made.verdict, made.profile) == (PROVED, "site-acme")


# -------------------------------------------------------------------------------------------------------------- two wishes

BOTH = {MPI: "mpich", GPU: "acme"}


def alone(facts: ImageFacts, wished: str, node: Inventory = NODE) -> Plan:
    return decide(facts, node, labels={wished: BOTH[wished]})


def test_one_plan_for_two() -> None:
    facts = image().facts(APP)
    mpi, acme, both = alone(facts, MPI), alone(facts, GPU), decide(facts, labels=BOTH)
    assert (both.verdict, both.profile) == (UNPROVED, "site-mpich, site-acme")
    assert both.tree == (*mpi.tree, *acme.tree)
    assert both.in_place == (*mpi.in_place, *acme.in_place)
    assert both.cache is not None and mpi.cache is not None and acme.cache is not None
    assert {*both.cache.entries} == {*mpi.cache.entries, *acme.cache.entries} - {
        entry for entry in (*mpi.cache.entries, *acme.cache.entries) if entry not in both.cache.entries}
    names = {entry.name: entry.path for entry in both.cache.entries}
    assert names["libmpi.so.12"].startswith("/dev/.oci-hpc/opt/site") and names["libacme.so.1"] == f"/dev/.oci-hpc{DRIVER}"
    assert both.drop_in is not None and both.drop_in.text.count("/dev/.oci-hpc/") == 2
    assert [finding for finding in both.findings if finding in mpi.findings] == [*mpi.findings]


def test_both_proved() -> None:
    own = image().add(APP, program("libmpi.so.12", "libacme.so.1", imports=("MPI_Init",)))
    assert decide(own.facts(APP), labels=BOTH).verdict == PROVED


def test_what_both_need_comes_once() -> None:
    mpi = profile(site_mpi(needed=("libfabric.so.1", "libstdc++.so.6", "libc.so.6")), site_fabric(), cxx())
    made = decide(image().facts(APP), inventory(mpi, ACME), labels=BOTH)
    assert made.verdict == UNPROVED
    assert [bind.target for bind in made.tree].count(CXX[1:]) == 1
    assert [bind.target for bind in made.in_place].count(CXX) == 1


@pytest.mark.parametrize(("mine", "verdict"), [(NEW, UNPROVED), (OLD, REFUSED)])
def test_one_library_of_two_places(mine: Sequence[str], verdict: str) -> None:
    """An MPI that brings its own libstdc++: it serves the driver as well, or nothing is done at all."""
    mpi = profile(site_mpi(needed=("libfabric.so.1", "libstdc++.so.6", "libc.so.6")), site_fabric(),
                  cxx("/opt/site/lib/libstdc++.so.6", mine))
    made = decide(image(cxx=OLD[:1]).facts(APP), inventory(mpi, ACME), labels=BOTH)
    assert made.verdict == verdict
    if verdict == REFUSED:
        found = error(made)
        assert found.code == "two-profiles" and "/opt/site/lib/libstdc++.so.6" in found.what
    else:
        assert [bind.source for bind in made.in_place if bind.target == CXX] == ["/opt/site/lib/libstdc++.so.6"]


def test_one_that_is_refused_takes_the_container() -> None:
    node = inventory(profile(site_mpi(), site_fabric()), gpu(problems=("there is no libacme.so.1",)))
    found = error(decide(image().facts(APP), node, labels=BOTH))
    assert found.origin == f"label {GPU}=acme" and found.remedy.endswith(OVERRIDES["gpu"])


def test_one_that_is_skipped_takes_nothing() -> None:
    facts = image().facts(APP)
    unavailable = gpu(problems=("there is no libacme.so.1",))
    node = inventory(profile(site_mpi(), site_fabric()), unavailable, site=Site(defaults={GPU: "acme"}))
    made = decide(facts, node, labels={MPI: "mpich"})
    mpi = alone(facts, MPI)
    assert made.findings[:-1] == mpi.findings and made.findings[-1].code == "profile-unavailable"
    assert dataclasses.replace(made, findings=()) == dataclasses.replace(mpi, findings=())
    node = inventory(profile(site_mpi(), site_fabric(), problems=["x"]), ACME, site=Site(defaults={MPI: "mpich"}))
    made = decide(facts, node, labels=LABEL)
    assert (made.profile, made.findings[0].severity) == ("site-acme", NOTE)


def test_a_second_that_would_take_the_first_down_is_not_served() -> None:
    """The driver's libfabric would be found by the MPI too, and lacks what that needs."""
    fabric = host("/usr/lib64/libfabric.so.1", elf("libfabric.so.1", needed=("libc.so.6",), verdef=("FABRIC_1.0",)))
    node = inventory(profile(site_mpi(), site_fabric(verdef=("FABRIC_1.0", "FABRIC_1.1"))),
                     gpu(driver(needed=("libfabric.so.1", "libc.so.6")), fabric))
    made = decide(image().facts(APP), node, labels=BOTH)
    assert made.verdict == UNPROVED  # the MPI's own has more, and serves both
    assert "usr/lib64/libfabric.so.1" not in [bind.target for bind in made.tree]


def test_devices_by_who_asked() -> None:
    mpi = dataclasses.replace(profile(site_mpi(), site_fabric()), devices=("/dev/cxi*", "/dev/both"))
    node = inventory(mpi, dataclasses.replace(ACME, devices=("/dev/acme*", "/dev/both")))
    facts = image().facts(APP)
    made = decide(facts, node, labels=LABEL, annotations={MPI: "mpich"})
    assert (made.devices, made.open_devices) == (("/dev/cxi*", "/dev/both"), ("/dev/acme*",))
    made = decide(facts, node, labels=BOTH)
    assert (made.devices, made.open_devices) == ((), ("/dev/cxi*", "/dev/both", "/dev/acme*"))


# --------------------------------------------------------------------------------------------------- with another C runtime

def runtime(newest: int) -> ResolvedProfile:
    libc = host("/opt/glibc/libc.so.6", elf("libc.so.6", verdef=glibc_versions(newest)), "runtime")
    loader = host("/opt/glibc/ld-linux-x86-64.so.2", elf("ld-linux-x86-64.so.2"), "runtime")
    return ResolvedProfile("c-runtime", {}, "/opt/glibc", (libc, loader))


@pytest.mark.parametrize(("mpi_needs", "driver_needs"), [("GLIBC_2.38", "GLIBC_2.17"), ("GLIBC_2.17", "GLIBC_2.38"),
                                                         ("GLIBC_2.38", "GLIBC_2.38")])
def test_a_c_runtime_that_either_needs_comes_once(mpi_needs: str, driver_needs: str) -> None:
    node = inventory(profile(site_mpi(glibc=mpi_needs), site_fabric()), gpu(driver(glibc=driver_needs), cxx()))
    node = dataclasses.replace(node, c_runtime=runtime(41))
    made = decide(image(36).facts(APP), node, labels=BOTH)
    assert made.verdict == UNPROVED, codes(made)
    assert [bind.target for bind in made.in_place].count("/lib64/libc.so.6") == 1
    assert codes(made).count("c-runtime") == 1


# --------------------------------------------------------------------------------------------- what need not come, and files

def optional(library: HostLibrary) -> HostLibrary:
    return dataclasses.replace(library, optional=True)


def icd(path: str = "/etc/vendors/acme.icd", *, library: str = "libacme.so.1") -> HostFile:
    return HostFile(path, f"/drivers{path}", file_id(path), required=True, library=library)


def test_what_need_not_come_stays_away_where_it_does_not_fit() -> None:
    jit = elf("libjit.so.1", needed=("libc.so.6",), verneed={"libc.so.6": ["GLIBC_2.38"]})
    newer = optional(host("/usr/lib64/libjit.so.1", jit, "replace"))
    fits = optional(host("/usr/lib64/libml.so.1", elf("libml.so.1", needed=("libc.so.6",)), "replace"))
    made = decide(image().facts("/usr/bin/compute"), inventory(gpu(driver(), newer, fits, cxx())), labels=LABEL)
    targets = [bind.target for bind in made.tree]
    assert "usr/lib64/libml.so.1" in targets and "usr/lib64/libjit.so.1" not in targets
    assert [finding.what for finding in made.findings if finding.code == "left-out"] == [
        "libjit.so.1 (the site's /usr/lib64/libjit.so.1) does not come: libjit.so.1 (the site's /usr/lib64/libjit.so.1) needs a newer "
        "glibc than the image's"]


@pytest.mark.parametrize(("glibc", "comes"), [(36, True), (41, False)])
def test_a_library_that_no_newer_glibc_opens(glibc: int, comes: bool) -> None:
    stacky = dataclasses.replace(elf("libhip.so.5", needed=("libc.so.6",)), execstack=True)
    node = inventory(gpu(driver(), optional(host("/usr/lib64/libhip.so.5", stacky, "replace")), cxx()))
    made = decide(image(glibc).facts("/usr/bin/compute"), node, labels=LABEL)
    assert ("usr/lib64/libhip.so.5" in [bind.target for bind in made.tree]) == comes
    must = gpu(host("/usr/lib64/libhip.so.5", stacky, "replace"))
    made = decide(image(glibc).facts("/usr/bin/compute"), inventory(must), labels=LABEL)
    assert made.verdict == (UNPROVED if comes else REFUSED)


def with_icd(*libraries: HostLibrary, files: Sequence[HostFile] = (icd(),)) -> Inventory:
    return inventory(dataclasses.replace(gpu(*libraries), files=tuple(files)))


def test_if_no_driver_fits_the_ladder_says_why() -> None:
    node = with_icd(optional(driver(needed=("libc.so.6",), glibc="GLIBC_2.38")))
    found = error(decide(image(36).facts("/usr/bin/compute"), node, labels=LABEL))
    assert found.code == "glibc-too-old" and "needs GLIBC_2.38" in found.what
    facts = dataclasses.replace(image(36).facts("/usr/bin/compute"), makeable=("/etc/vendors",))
    made = decide(facts, dataclasses.replace(node, c_runtime=runtime(41)), labels=LABEL)
    assert made.verdict == UNPROVED and "c-runtime" in codes(made)


@pytest.mark.parametrize("there", [True, False])
def test_files_at_their_own_path(there: bool) -> None:
    facts = image().facts("/usr/bin/compute", looked_at=("/etc/vendors",) if there else ())
    if there:
        facts = dataclasses.replace(facts, directories=tuple(
            dataclasses.replace(folder, inode=7) if folder.path == "/etc/vendors" else folder for folder in facts.directories))
    else:
        facts = dataclasses.replace(facts, makeable=("/etc/vendors",))
    other = icd("/etc/vendors/other.icd", library="libother.so.1")
    made = decide(facts, with_icd(optional(driver()), cxx(), files=(icd(), other)), labels=LABEL)
    covered = [(cover.folder, cover.target, cover.inode) for cover in made.modules]
    if there:
        assert ([bind.target for bind in made.files], covered) == (["/etc/vendors/acme.icd"], [])
    else:
        assert (made.files, covered) == ((), [("etc/vendors", "/etc/vendors", 0)])
        assert "etc/vendors/acme.icd" in [bind.target for bind in made.tree]
    assert "other.icd" not in str(made.tree) + str(made.files), "the file of a driver that does not come"


def test_no_place_for_a_file() -> None:
    found = error(decide(image().facts("/usr/bin/compute"), with_icd(optional(driver()), cxx()), labels=LABEL))
    assert found.code == "no-place" and "/etc/vendors/acme.icd" in found.what
    tool = HostFile("/opt/acme/smi", "/opt/acme/smi", file_id("smi"))
    newer = dataclasses.replace(tool, glibc="2.38")
    made = decide(image(36).facts("/usr/bin/compute"), with_icd(driver(), cxx(), files=(tool, newer)), labels=LABEL)
    assert made.verdict == UNPROVED and codes(made).count("left-out") == 2 and made.files == ()
