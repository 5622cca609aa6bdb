"""What cannot work is refused before the first instruction, in one sentence; and only what was asked for is refused."""
# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bed.bed import Engine, Result
from tests.bed.site import MPICH5, TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import OWN_VERSION, SITE_VERSION, ranks, start
from tests.engine.site import ReadySite, ready  # noqa: F401

MPI = "org.supercontainers.mpi"
OVERRIDE = f"--annotation {MPI}=none"
NONE = f"--annotation={MPI}=none"
LABEL = f"label {MPI}=mpich"

#: Images whose glibc is older than the 2.38 that Debian 13's libmpich needs, with their own glibc and MPICH.
OLD = {"bookworm-mpich": ("2.36", "4.0.2"), "bullseye-mpich": ("2.31", "3.4.1")}


def sentence(result: Result) -> str:
    """What the hook said at the terminal. Fails the test unless it said it once and the start failed for it."""
    assert result.returncode != 0, result.stdout
    assert result.stderr.count("oci-hpc-hooks: ") == 1, result.stderr
    told = result.stderr.partition("oci-hpc-hooks: ")[2].splitlines()[0]
    assert told.endswith("."), told
    return told


def refused(engine: Engine, site: Site, image: str, *command: str, options: Sequence[str] = ()) -> str:
    """Start a container that must be refused, and return the sentence; the log has it too, and nothing of the container ran."""
    result, log = start(engine, site, *command, options=options, image=image)
    told = sentence(result)
    assert not result.stdout, result.stdout
    assert [(entry["verdict"], entry["message"]) for entry in log] == [("refused", told)], log
    assert OVERRIDE in told
    return told


def codes(log: Sequence[dict[str, Any]]) -> list[str]:
    """The codes of the findings of a start's only log entry."""
    assert len(log) == 1, log
    return [finding["code"] for finding in log[0]["findings"]]


def versions(result: Result) -> list[str]:
    return [rank.version for rank in ranks(result)]


@pytest.fixture
def volume(scratch: Path) -> Path:
    """A folder that every container may write to."""
    folder = scratch / "volume"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def prefix(scratch: Path) -> Path:
    """A site's MPI that a test may break: links to the real files, in folders of its own."""
    folder = scratch / "prefix"
    shutil.copytree(MPICH5, folder, symlinks=True, copy_function=os.link)
    return folder


# ------------------------------------------------------------------------------------------------ a libc that is too old


def test_old_glibc_is_refused(engine: Engine, make_site: SiteMaker, volume: Path) -> None:
    site = make_site(engine, search=[TRIXIE])
    mount = f"--volume={volume}:/out"
    witness = ("sh", "-c", "touch /out/ran; mpihello")
    for image, (glibc, mpich) in OLD.items():
        told = refused(engine, site, image, *witness, options=[mount])
        assert "libmpich.so.12" in told and f"{TRIXIE}/libmpich.so.12." in told  # soname and file
        assert "GLIBC_2.38" in told and f"the image's glibc is {glibc}" in told
        assert f"(from {LABEL})" in told
        assert "Image author: rebuild" in told and "glibc 2.38 or newer" in told
        assert not any(volume.iterdir()), "the container's command ran"
        # The override of the message does what it says, and who asks for nothing gets it without.
        assert versions(engine.run(image, *witness, options=[mount, NONE], hooks_dir=site.hooks_dir)) == [mpich]
        (volume / "ran").unlink()
        assert versions(engine.run(f"{image}-nolabel", "mpihello", hooks_dir=site.hooks_dir)) == [mpich]


def test_site_may_run_without(crun: Engine, make_site: SiteMaker) -> None:
    site = make_site(crun, search=[TRIXIE], on_refusal="run-without")
    result, log = start(crun, site, "mpihello")
    assert versions(result) == [OWN_VERSION] and not result.stderr
    assert log[0]["verdict"] == "nothing" and "glibc-too-old" in codes(log)
    assert "GLIBC_2.38" in log[0]["findings"][-1]["what"]


def test_site_default_is_not_refused(crun: Engine, make_site: SiteMaker) -> None:
    """What nobody asked for is skipped with a note."""
    site = make_site(crun, search=[TRIXIE], defaults={MPI: "mpich"})
    result, log = start(crun, site, "mpihello", image="bookworm-mpich-nolabel")
    assert versions(result) == [OWN_VERSION] and not result.stderr
    assert log[0]["verdict"] == "nothing" and "glibc-too-old" in codes(log)


# ------------------------------------------------------------------------------------------------ images of other kinds


def test_musl(crun: Engine, ready: ReadySite) -> None:
    site = ready(crun)
    told = refused(crun, site, "musl", "muslhello")
    assert "/lib/ld-musl-x86_64.so.1" in told and "needs glibc" in told and LABEL in told
    for options, image in (([NONE], "musl"), ([], "musl-nolabel")):
        assert "hello" in crun.run(image, "muslhello", options=options, hooks_dir=site.hooks_dir).stdout


def test_static_image(crun: Engine, ready: ReadySite) -> None:
    site = ready(crun)
    told = refused(crun, site, "static", "statichello")
    assert "no glibc" in told and "static" in told and "link the program dynamically" in told
    for options, image in (([NONE], "static"), ([], "static-nolabel")):
        assert "hello" in crun.run(image, "statichello", options=options, hooks_dir=site.hooks_dir).stdout


def test_static_program_in_an_image_with_glibc(crun: Engine, ready: ReadySite) -> None:
    """It cannot be served, but something that it starts may be."""
    result, log = start(crun, ready(crun), "statichello")
    assert result.returncode == 0 and "hello" in result.stdout and not result.stderr
    assert log[0]["verdict"] == "unproved" and "static-program" in codes(log)


@pytest.mark.parametrize("option", ["--read-only=false", "--read-only"])
def test_image_without_a_loader_cache(crun: Engine, ready: ReadySite, option: str) -> None:
    result, log = start(crun, ready(crun), "mpihello", options=[option], image="nocache")
    assert versions(result) == [SITE_VERSION]
    assert log[0]["verdict"] == "proved"


# ------------------------------------------------------------------------------------------------ wishes that mean nothing


@pytest.fixture
def labelled(crun: Engine) -> Iterator[str]:
    """An image whose author wrote a label that nobody knows."""
    name = "localhost/bed/unknown-label:latest"
    crun.podman("build", "--quiet", "--pull=never", "--label", f"{MPI}=mvapix", "--tag", name, "-",
                stdin=f"FROM {crun.load('bookworm-mpich')}\n", timeout=120, check=True)
    yield name
    crun.podman("image", "rm", "--force", name)


def test_label_with_an_unknown_value(crun: Engine, ready: ReadySite, labelled: str) -> None:
    """The image is looked at instead: a typing error of its author stops nobody."""
    result, log = start(crun, ready(crun), "mpihello", image=labelled)
    assert versions(result) == [SITE_VERSION] and not result.stderr
    finding = next(finding for finding in log[0]["findings"] if finding["code"] == "unknown-value")
    assert "mvapix" in finding["what"] and "mpich" in finding["what"] and finding["origin"] == f"label {MPI}=mvapix"


@pytest.mark.parametrize(("value", "words"), [
    ("mvapix", ("unknown value 'mvapix'", "auto, mpi-abi, mpich, none, openmpi")),
    ("openmpi", ("openmpi is wanted", "this site offers mpich")),
])
def test_annotation_that_cannot_be_served(crun: Engine, ready: ReadySite, value: str, words: Sequence[str]) -> None:
    site = ready(crun)
    for image in ("bookworm-mpich", "bookworm-mpich-nolabel"):
        told = refused(crun, site, image, "mpihello", options=[f"--annotation={MPI}={value}"])
        for word in (*words, f"(from annotation {MPI}={value})", "User: "):
            assert word in told


# ------------------------------------------------------------------------------------------------ a site that is broken


@pytest.mark.parametrize(("lost", "words"), [
    ("libmpi.so.12", ("libmpi.so.12 or libmpich.so.12", "{prefix}")),
    ("mpich/libucp.so.0", ("libucp.so.0", "{prefix}/libmpi.so.12 needs")),
])
def test_host_library_that_is_gone_since_the_scan(
    crun: Engine, make_site: SiteMaker, prefix: Path, lost: str, words: Sequence[str]
) -> None:
    site = make_site(crun, search=[prefix])
    assert versions(start(crun, site, "mpihello")[0]) == [SITE_VERSION]  # and the plan is known now
    (prefix / lost).unlink()
    told = refused(crun, site, "bookworm-mpich", "mpihello")
    for word in (*words, "mpich is not available on this node", LABEL, "Site admin: ", "oci-hpc-hooks scan"):
        assert word.format(prefix=prefix) in told
    assert versions(crun.run("bookworm-mpich-nolabel", "mpihello", hooks_dir=site.hooks_dir)) == [OWN_VERSION]


def test_host_library_that_was_never_there(crun: Engine, make_site: SiteMaker, scratch: Path) -> None:
    (scratch / "empty").mkdir()
    told = refused(crun, make_site(crun, search=[scratch / "empty"]), "bookworm-mpich", "mpihello")
    assert f"{scratch}/empty" in told and "libmpi.so.12 or libmpich.so.12" in told


def test_host_library_of_another_architecture(crun: Engine, make_site: SiteMaker, prefix: Path) -> None:
    library = prefix / "libmpi.so.12"
    foreign = bytearray(library.read_bytes())
    foreign[18:20] = (183).to_bytes(2, "little")  # e_machine: EM_AARCH64
    library.unlink()
    library.write_bytes(foreign)
    told = refused(crun, make_site(crun, search=[prefix]), "bookworm-mpich", "mpihello")
    assert f"{library} is for another architecture" in told and "183" in told


def test_host_file_that_is_no_library(crun: Engine, make_site: SiteMaker, prefix: Path) -> None:
    library = prefix / "libmpi.so.12"
    library.unlink()
    library.write_text("GROUP ( libmpi_abi.so.1 )\n")
    told = refused(crun, make_site(crun, search=[prefix]), "bookworm-mpich", "mpihello")
    assert f"{library} is of no use" in told


