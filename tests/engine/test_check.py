"""``oci-hpc-hooks check`` makes the hook's decision without a container, and ``last`` tells it afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from oci_hpc_hooks.inputs import resources
from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import MPICH5, TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, TREE, assert_site, start
from tests.engine.site import ReadySite, ready  # noqa: F401

WISH = ("--annotation", "org.supercontainers.mpi=mpich")
ROOTFS = str(bed.BUILD / "images/bookworm")


def valid(output: str, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(output)
    Draft7Validator(json.loads(resources.find(f"schemas/{name}.schema.json").read_text())).validate(document)
    return document


def check(site: Site, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of ``check --json``, which holds what its schema promises."""
    done = site.command("check", "--json", *arguments, account=site.account)
    return done.returncode, valid(done.stdout, "check-output")


def test_the_hook_does_what_check_said(crun: Engine, ready: ReadySite) -> None:  # noqa: F811
    """From the image's own labels, and for the rootless user through podman's user namespace."""
    site = ready(crun)
    code, said = check(site, crun.load("bookworm-mpich"), "--", *HELLO)
    assert (code, said["verdict"], said["profile"], said["tree"]) == (0, "proved", "mpich", TREE)
    assert said["cost"]["start"] == "cold"
    result, log = start(crun, site, *HELLO)
    assert_site(result)
    (entry,) = log
    assert (entry["verdict"], entry["profile"]) == (said["verdict"], said["profile"])
    # Whether the container's layer takes the loader's cache as a file is seen only there.
    assert [finding for finding in entry["findings"] if finding["code"] != "loader-cache"] == said["findings"]
    made = [file for file in said["files"] if file["how"] == "file" or file["source"].startswith(TREE)]
    assert entry["files"] == len(said["files"]) - len(made)
    sources = {file["source"] for file in said["files"] if file["how"] == "tree"}
    assert sources >= {f"{MPICH5}/libmpi.so.12", f"{MPICH5}/mpich/libfabric.so.1"}
    assert check(site, crun.load("bookworm-mpich"), "--", *HELLO)[1]["cost"]["start"] == "warm"
    assert check(site, crun.load("bookworm-mpich"), "--", "mpihello")[1]["cost"]["start"] == "cold"


def test_the_digest_of_an_image(crun: Engine, ready: ReadySite, scratch: Path) -> None:  # noqa: F811
    """The same at each time, and for the rootless user through podman's user namespace."""
    site = ready(crun)
    image = crun.load("bookworm-mpich")
    done = site.command("check", "--digest", image, "--", *HELLO, account=site.account)
    assert (done.returncode, done.stderr) == (0, "")
    identity = crun.podman("image", "inspect", "--format={{.Id}}", image, check=True).stdout.strip()
    assert done.stdout.startswith(f"1,image={identity[:16]},verdict=proved,profile=mpich,files=")
    assert check(site, "--expect", done.stdout, image, "--", *HELLO)[1]["differs"] == []
    assert check(site, "--expect", done.stdout, crun.load("bookworm-openmpi"), "--", *HELLO)[0] == 4


def test_a_bundle(rootful: Engine, ready: ReadySite, scratch: Path) -> None:  # noqa: F811
    """What check says of a bundle is what the runtime's container then loads."""
    site = ready(rootful)
    hook = json.loads((site.hooks_dir / "oci-hpc-hooks.json").read_text())["hook"]
    with rootful.bundle(scratch / "bundle", "bookworm", ["mpihello"], annotations={"org.supercontainers.mpi": "mpich"},
                        hooks={"createRuntime": [hook]}) as made:
        code, said = check(site, str(made))
        assert (code, said["verdict"], said["command"]) == (0, "proved", ["mpihello"])
        result = rootful.runtime_run(made)
    loaded = next(library for library in said["programs"][0]["libraries"] if library["name"] == "libmpich.so.12")
    assert f"loaded {loaded['path']}" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(("rootfs", "arguments", "code", "verdict", "finding"), [
    ("bookworm", (*WISH, "--", "mpihello"), 0, "proved", "modules"),
    ("bookworm", ("--label", "org.supercontainers.mpi=mpich", "--", "mpihello"), 0, "proved", "modules"),
    ("bookworm", (*WISH, "--", "sleep", "100"), 3, "unproved", "consumers"),
    ("bookworm", (*WISH, "--", "statichello"), 3, "unproved", "static-program"),
    ("bookworm", ("--", "mpihello"), 0, "nothing", None),
    ("bookworm", ("--annotation", "org.supercontainers.mpi=none", "--label", "org.supercontainers.mpi=mpich"), 0, "nothing", None),
    ("bookworm", ("--annotation", "org.supercontainers.mpi=openmpi", "--", "mpihello"), 1, "refused", "no-profile"),
    ("bookworm", ("--annotation", "org.supercontainers.mpi=mpihc", "--", "mpihello"), 1, "refused", "request"),
    ("musl", WISH, 1, "refused", "musl"),
    ("static", WISH, 1, "refused", "no-glibc"),
])
def test_verdicts_and_exit_codes(ready: ReadySite, rootfs: str, arguments: tuple[str, ...], code: int, verdict: str,  # noqa: F811
                                 finding: str | None) -> None:
    found, said = check(ready(Engine("crun", "root")), str(bed.BUILD / "images" / rootfs), *arguments)
    assert (found, said["verdict"]) == (code, verdict)
    codes = [item["code"] for item in said["findings"]]
    assert finding in codes if finding else not codes
    assert bool(said["files"]) == (verdict in ("proved", "unproved"))


def test_old_glibc_for_people(make_site: SiteMaker) -> None:
    site = make_site(Engine("crun", "root"), search=[TRIXIE])
    done = site.command("check", ROOTFS, *WISH, "--", "mpihello")
    assert done.returncode == 1
    assert done.stdout.startswith(f"{ROOTFS}: refused: the container would not start\n  error: libmpich.so.12 (the site's")
    for words in ("needs GLIBC_2.38", "the image's glibc is 2.36", "from annotation org.supercontainers.mpi=mpich", "mpi=none"):
        assert words in done.stdout


def test_files_for_people(ready: ReadySite) -> None:  # noqa: F811
    lines = ready(Engine("crun", "root")).command("check", "--all", ROOTFS, *WISH, "--", "mpihello").stdout.splitlines()
    assert lines[0] == f"{ROOTFS}: proved: the program will load the site's libraries"
    assert f"  {MPICH5}/libmpi.so.12 -> {TREE}{MPICH5}/libmpi.so.12 (replace of profile mpich)" in lines
    assert f"  {TREE}{MPICH5}/mpich/ucx -> /usr/lib/x86_64-linux-gnu/ucx (modules go with their libraries)" in lines
    assert lines[-2] == f"  {TREE}/ld.so.cache -> /etc/ld.so.cache (the image's loader cache with the site's libraries)"
    image = ready(Engine("crun", "root")).command("check", "--all", Engine("crun", "root").load("bookworm-mpich"))
    assert "  a new file -> /etc/ld.so.cache (" in image.stdout
    row = next(line.split() for line in lines if line.startswith("  libmpich.so.12 "))
    assert row[1:5] == ["host", f"{MPICH5}/libmpi.so.12", "loader", "cache"]


@pytest.mark.parametrize(("arguments", "says"), [
    (("/no/such/folder", *WISH), "there is no directory /no/such/folder"),
    (("localhost/bed/no-such-image", *WISH), "pull or build the image first"),
    ((ROOTFS, "--annotation", "mpich"), "KEY=VALUE was expected"),
])
def test_usage(ready: ReadySite, arguments: tuple[str, ...], says: str) -> None:  # noqa: F811
    site = ready(Engine("crun", "root"))
    done = site.command("check", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    as_json = site.command("check", "--json", *arguments)
    assert as_json.returncode == 2
    assert says in " ".join(map(str, valid(as_json.stdout, "error-output").values()))


def test_without_an_inventory(ready: ReadySite, scratch: Path) -> None:  # noqa: F811
    site = ready(Engine("crun", "root"))
    done = site.account.execute(str(bed.BUILD / "venv/bin/oci-hpc-hooks"), "--state-dir", str(scratch), "check", ROOTFS, *WISH)
    assert done.returncode == 2
    assert "run oci-hpc-hooks scan" in done.stderr


def test_last(crun: Engine, ready: ReadySite) -> None:  # noqa: F811
    site = ready(crun)
    for _ in range(2):
        assert_site(start(crun, site, *HELLO)[0])
    document = valid(site.last("--json", "-n", "2").stdout, "last-output")
    assert [(entry["verdict"], entry["path"]) for entry in document["entries"]] == [("proved", "warm"), ("proved", "cold")]
    lines = site.last().stdout.splitlines()
    assert "bookworm-mpich" in lines[0]
    assert f"({document['entries'][0]['id'][:12]}): proved, 12 files of profile mpich; warm path" in lines[0]
    assert site.last("-n", "0").returncode == 2


def test_last_where_nothing_has_happened(scratch: Path) -> None:
    done = bed.root_account().execute(str(bed.BUILD / "venv/bin/oci-hpc-hooks"), "--log-file", str(scratch / "log"), "last")
    assert done.returncode == 0
    assert done.stdout.startswith("no hook has done anything")
