"""OpenCL for real: PoCL on the host, images whose only GPU library is a vendor-neutral loader, of three generations of glibc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import Site
from tests.engine.inside import SITE_VERSION, TREE, assert_site, start
from tests.engine.site import Sites, three_engines

SUITES = {"bullseye": "2.31", "bookworm": "2.36", "trixie": "2.41"}
STAGES = ("", "podman")
KEY = "org.supercontainers.gpu"
ASKED = f"--annotation={KEY}=opencl"

#: A driver that its vendor ships in a prefix of its own: what it takes to say so.
POCL: dict[str, Any] = {
    "version": 1,
    "name": "pocl",
    "description": "PoCL in a prefix of its own",
    "provides": {"gpu": "opencl"},
    "libraries": [{"soname": "libOpenCL.so.1", "role": "add", "required": False}],
    "search": ["/opt/pocl/pyopencl/.libs"],
    "icds": ["/etc/OpenCL/vendors/*.icd"],
    "sets": [{
        "name": "pocl", "when": "libpocl-21062cec.so",
        "directories": [f"$ORIGIN/../../pocl_binary_distribution/.libs/share/pocl{folder}" for folder in ("", "/include")],
    }],
    "verified": {"by": "hardware", "source": "this test"},
}


class OpenCL(Sites):
    """One for each driver and account."""

    def get(self, engine: Engine, driver: str, **more: Any) -> Site:
        mpi = {"name": "mpich", "search": [str(bed.BUILD / "site/mpich5/lib")]}
        gpu = {"name": "pocl" if driver == "pocl" else "opencl", "root": str(bed.BUILD / "site" / driver)}
        return self.made(engine.account, [mpi, gpu], [POCL], **more)


@pytest.fixture(scope="module")
def sites() -> Iterator[OpenCL]:
    made = OpenCL("opencl")
    yield made
    made.remove()


def compute(engine: Engine, site: Site, suite: str, *words: str, stage: str = "",
            options: tuple[str, ...] = (ASKED,)) -> tuple[bed.Result, list[dict[str, Any]]]:
    return start(engine, site, "/usr/local/bin/clhello", *words, image=f"opencl-{suite}", hooks_dir=site.hooks_dir / stage,
                 options=(*options, "--env=HOME=/tmp"))


def told(result: bed.Result) -> str:
    """The hook's own sentence."""
    assert result.returncode != 0, result.stdout
    return next(line for line in result.stderr.splitlines() if "oci-hpc-hooks: " in line)


def assert_computes(result: bed.Result, driver: str) -> None:
    assert result.returncode == 0, result.stdout + result.stderr
    assert "platforms: 1 (error 0)" in result.stdout and "platform: Portable Computing Language; OpenCL" in result.stdout
    assert "; sum: 6048" in result.stdout
    assert f"loaded: {driver}" in result.stdout, result.stdout
    assert "loaded: /usr/lib/x86_64-linux-gnu/libOpenCL.so.1" in result.stdout, "the neutral loader stays the image's"


DRIVER = f"{TREE}/opt/pocl/pyopencl/.libs/libpocl-21062cec.so"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("suite", SUITES)
def test_kernels_run_on_the_sites_driver(sites: OpenCL, suite: str, stage: str) -> None:
    engine = Engine("crun", "root")
    site = sites.get(engine, "pocl")
    for way in ("cold", "warm"):
        result, log = compute(engine, site, suite, stage=stage)
        assert_computes(result, DRIVER)
        assert [(entry["verdict"], entry["path"], entry["profile"]) for entry in log] == [("proved", way, "pocl")]


@three_engines
@pytest.mark.parametrize("stage", STAGES)
def test_every_user_computes(sites: OpenCL, engine: Engine, stage: str) -> None:
    result, log = compute(engine, sites.get(engine, "pocl"), "bookworm", stage=stage)
    assert_computes(result, DRIVER)
    assert [entry["verdict"] for entry in log] == ["proved"]


@pytest.mark.parametrize("stage", STAGES)
def test_without_the_hook_there_is_nothing(sites: OpenCL, stage: str) -> None:
    engine = Engine("crun", "root")
    site = sites.get(engine, "pocl")
    for options in ((), (ASKED, f"--annotation={KEY}=none")):
        result, log = compute(engine, site, "bookworm", stage=stage, options=options)
        assert ("platforms: 0" in result.stdout and log == []) or log[-1]["verdict"] == "nothing"


# ------------------------------------------------------------------------------------------------------- what the ladder says

@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("suite", ["bullseye", "bookworm"])
def test_a_driver_that_is_too_new_is_refused(sites: OpenCL, suite: str, stage: str) -> None:
    engine = Engine("crun", "root")
    result, log = compute(engine, sites.get(engine, "pocl-trixie"), suite, "info", stage=stage)
    said = told(result)
    assert "needs GLIBC_2." in said and f"and the image's glibc is {SUITES[suite]} (/" in said, said
    assert f"(from annotation {KEY}=opencl)" in said
    assert said.rstrip().endswith(f"to start without injection give --annotation {KEY}=none.")
    assert "platforms" not in result.stdout and [entry["verdict"] for entry in log] == ["refused"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_driver_that_fits_by_the_distributions_own_paths(sites: OpenCL, stage: str) -> None:
    """Its modules and kernels are opened by absolute paths."""
    engine = Engine("crun", "root")
    result, log = compute(engine, sites.get(engine, "pocl-trixie"), "trixie", "info", stage=stage)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "platforms: 1" in result.stdout and "device: cpu" in result.stdout
    assert f"loaded: {TREE}/usr/lib/x86_64-linux-gnu/libpocl.so.2" in result.stdout
    assert [entry["verdict"] for entry in log] == ["proved"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_c_runtime_makes_it_fit(sites: OpenCL, stage: str) -> None:
    engine = Engine("crun", "root")
    libc = {"search": [str(bed.BUILD / "site/trixie-libc/usr/lib/x86_64-linux-gnu")]}
    result, log = compute(engine, sites.get(engine, "pocl-trixie", c_runtime=libc), "bookworm", "info", stage=stage)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "device: cpu" in result.stdout
    assert "c-runtime" in [finding["code"] for finding in log[-1]["findings"]]


def test_opencl_of_intel_finds_no_gpu(sites: OpenCL) -> None:
    """The loader is the image's, the driver the node's, with a compiler of its own. It is opened, offers no device and is closed again; the
    libstdc++ that only it has needed stays."""
    engine = Engine("crun", "root")
    result, log = compute(engine, sites.get(engine, "intel"), "bookworm", "info")
    assert "platforms: 0 (error -1001)" in result.stdout, result.stdout + result.stderr  # CL_PLATFORM_NOT_FOUND_KHR
    assert f"loaded: {TREE}/usr/lib/x86_64-linux-gnu/libstdc++.so.6" in result.stdout
    assert "loaded: /usr/lib/x86_64-linux-gnu/libOpenCL.so.1" in result.stdout
    assert [entry["verdict"] for entry in log] == ["proved"]


def test_auto_brings_it_where_the_image_has_a_loader_for_it(sites: OpenCL) -> None:
    engine = Engine("crun", "root")
    site = sites.get(engine, "pocl", defaults={KEY: "auto"})
    result, _ = compute(engine, site, "bookworm", options=())
    assert_computes(result, DRIVER)
    result, log = start(engine, site, "mpihello", options=["--annotation=org.supercontainers.mpi=none"])
    assert result.returncode == 0 and log[-1]["verdict"] == "nothing"


@pytest.mark.parametrize(("value", "what"), [
    ("cuda", "profile cuda is not available on this node: there is no libcuda.so.1"),
    ("acme", "acme is wanted; this site offers cuda, levelzero, opencl, rocm"),
])
def test_a_stack_that_this_node_lacks(sites: OpenCL, value: str, what: str) -> None:
    engine = Engine("crun", "root")
    result, _ = compute(engine, sites.get(engine, "pocl"), "bookworm", options=(f"--annotation={KEY}={value}",))
    assert what in told(result)


# ------------------------------------------------------------------------------------------------------------- beside an MPI

LOOK = "mpiexec -n 2 mpihello; cat /etc/OpenCL/vendors/pocl.icd; ls -l /etc/OpenCL/vendors; grep OpenCL /proc/self/mountinfo"


@three_engines
@pytest.mark.parametrize("stage", STAGES)
def test_an_mpi_and_opencl_in_one_container(sites: OpenCL, engine: Engine, stage: str) -> None:
    site = sites.get(engine, "pocl")
    for way in ("cold", "warm"):
        result, log = start(engine, site, "sh", "-c", LOOK, options=[ASKED], hooks_dir=site.hooks_dir / stage)
        assert SITE_VERSION in result.stdout
        assert_site(result)
        assert "libpocl-21062cec.so" in result.stdout
        assert [(entry["path"], entry["profile"]) for entry in log] == [(way, "mpich, pocl")]
        mounts = [line.split() for line in result.stdout.splitlines() if " /etc/OpenCL" in line]
        assert mounts and all(fields[5].startswith("ro,") for fields in mounts)


@pytest.mark.parametrize("stage", STAGES)
def test_what_the_image_has_there_stays(sites: OpenCL, scratch: Path, stage: str) -> None:
    """An image with a file of its own among those of the vendors: the site's joins it."""
    engine = Engine("crun", "root")
    site = sites.get(engine, "pocl")
    script = "cat /etc/OpenCL/vendors/*.icd; : mpihello"
    (scratch / "vendors").mkdir()
    (scratch / "vendors/own.icd").write_text("libown.so\n")
    (scratch / "vendors/pocl.icd").write_text("libpocl-of-the-image.so\n")
    volume = f"--volume={scratch}/vendors:/etc/OpenCL/vendors"
    result, log = start(engine, site, "sh", "-c", script, options=[ASKED, volume], hooks_dir=site.hooks_dir / stage)
    assert result.stdout.split() == ["libown.so", "libpocl-21062cec.so"], (result.stderr, log)
    (scratch / "vendors/pocl.icd").unlink()
    result, log = start(engine, site, "sh", "-c", script, options=[ASKED, volume], hooks_dir=site.hooks_dir / stage)
    assert result.returncode != 0 and "vendors" in result.stderr, "nothing is created in a user's volume"
    assert [path.name for path in (scratch / "vendors").iterdir()] == ["own.icd"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_read_only_root_has_no_place_for_the_file(sites: OpenCL, stage: str) -> None:
    engine = Engine("crun", "root")
    result, _ = compute(engine, sites.get(engine, "pocl"), "bookworm", stage=stage, options=(ASKED, "--read-only"))
    assert "is wanted as /etc/OpenCL/vendors/pocl.icd, and no such file can be made in this container" in told(result)
