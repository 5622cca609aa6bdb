"""``oci-hpc-hooks label`` proposes what the hooks then go by, and writes it when told to."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.bed.bed import Engine
from tests.engine.inside import HELLO, assert_site, start
from tests.engine.site import ReadySite, ready  # noqa: F401
from tests.engine.test_check import valid

NAME = "localhost/bed/labelled:latest"


@pytest.fixture
def labelled(crun: Engine) -> Iterator[str]:
    yield NAME
    crun.podman("image", "rm", "--force", NAME)


def test_from_no_label_to_the_sites_mpi(crun: Engine, ready: ReadySite, labelled: str) -> None:  # noqa: F811
    site = ready(crun)
    image = crun.load("bookworm-mpich-nolabel")
    done = site.command("label", image, "--", "mpihello", account=site.account)
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if not line.startswith("# ")] == [
        "LABEL org.supercontainers.mpi=mpich", "LABEL org.supercontainers.glibc=2.36"]
    done = site.command("label", "--json", "--apply", labelled, image, "--", "mpihello", account=site.account)
    assert valid(done.stdout, "label-output")["applied"] == labelled, done.stderr
    (made,) = json.loads(crun.podman("image", "inspect", labelled, check=True).stdout)
    assert made["Labels"].items() >= {("org.supercontainers.mpi", "mpich"), ("org.supercontainers.glibc", "2.36")}
    result, _ = start(crun, site, *HELLO, image=labelled)
    assert_site(result)
    again = site.command("label", labelled, "--", "mpihello", account=site.account).stdout
    assert again == f"# {labelled} has the labels that it should have\n"
    (kept,) = json.loads(crun.podman("image", "inspect", image, check=True).stdout)
    assert not kept["Labels"]


def test_a_directory_has_no_labels(ready: ReadySite) -> None:  # noqa: F811
    done = ready(Engine("crun", "root")).command("label", "--apply", "x", "/")
    assert done.returncode == 2
    assert "/ is a directory, which has no labels" in done.stderr
