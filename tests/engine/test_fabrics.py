"""Fabrics for real: a ping-pong between two containers whose own libfabric or UCX lacks the provider, over the site's."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.bed.bed import Engine, Result
from tests.bed.site import MPICH5, Site
from tests.engine.inside import LIBRARY_DIR, TREE, start
from tests.engine.site import forget

ROOT = str(bed.BUILD / "site/fabrics")
FABRIC = "--annotation=org.supercontainers.fabric="
MODE = "--annotation=org.supercontainers.mpi.portability.mode="
STAGES = ("", "podman")
SITES: dict[str, dict[str, dict[str, Any]]] = {
    "modules": {"libfabric": {"root": ROOT}, "ucx": {"root": ROOT}},
    "newer": {"libfabric": {"search": [str(MPICH5 / "mpich")]}},  # PyPI's 2.5.1, with all inside that this node loads
}

#: A fabric that is a device, one that every bed has.
DEVICE = {"version": 1, "name": "fuse", "description": "test", "provides": {"fabric": "fuse"}, "devices": ["/dev/fuse"]}

#: Runs a program until its server is there, and tells what it has had of these libraries in its memory: path and inode.
WATCH = """
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    "$@" & pid=$!
    while kill -0 $pid 2>/dev/null; do
        cat /proc/$pid/maps >/tmp/now 2>/dev/null && [ -s /tmp/now ] && mv /tmp/now /tmp/maps
        sleep 0.05
    done
    wait $pid; status=$?
    [ $status = 0 ] && break
    sleep 0.5
done
sed -n 's,^[^ ]* [^ ]* [^ ]* [^ ]* \\([0-9]*\\) *\\(/.*[.]so.*\\),loaded: \\2 \\1,p' /tmp/maps | sort -u | grep -e libfabric -e -fi -e libuc
exit $status
"""


@pytest.fixture(scope="module")
def sites() -> Iterator[dict[str, Site]]:
    folder = bed.scratch("fabrics")
    made: dict[str, Site] = {}
    for name, profiles in SITES.items():
        site = made[name] = Site(folder / name)
        entries = [{"name": profile, **where} for profile, where in profiles.items()]
        (site.config_dir / "site.json").write_text(json.dumps({"version": 1, "profiles": entries}))
        site.scan()
        site.register()
    site = made["device"] = Site(folder / "device")
    (site.config_dir / "profiles.d").mkdir()
    (site.config_dir / "profiles.d/fuse.json").write_text(json.dumps(DEVICE))
    site.scan()
    site.register()
    yield made
    shutil.rmtree(folder)


def pair(site: Site, image: str, command: Sequence[str], *options: str, stage: str = "") -> tuple[dict[str, int], list[dict[str, Any]]]:
    """A server and its client in two containers, as a launcher would start two ranks: what the client had in its memory (path, inode),
    and the log's entry of it. Fails the test unless both end well."""
    engine = Engine("crun", "root")
    forget(site)
    shared = ["--net=host", "--ipc=host", "--pid=host", *options]
    hooks = site.hooks_dir / stage
    served: list[Result] = []

    def serve() -> None:
        served.append(engine.run(image, *command, options=shared, hooks_dir=hooks, timeout=90))

    server = threading.Thread(target=serve)
    server.start()
    try:
        result, log = start(engine, site, "sh", "-c", WATCH, "sh", *command, "127.0.0.1", image=image, options=shared, hooks_dir=hooks)
    finally:
        if server.is_alive():
            server.join(5)
            engine.remove_named()
        server.join()
    for done in (result, *served):
        assert done.returncode == 0, f"{done.args}\n{done.stdout}{done.stderr}"
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("loaded: ")]
    return {path: int(inode) for _, path, inode in lines}, log


def inode(path: str) -> int:
    return (Path(ROOT) / path.lstrip("/")).stat().st_ino


def notes(log: list[dict[str, Any]], code: str) -> list[str]:
    return [finding["what"] for finding in log[-1]["findings"] if finding["code"] == code]


OWN = f"{LIBRARY_DIR}/libfabric.so.1.27.0"
TCP = ("fi_pingpong", "-p", "tcp", "-e", "rdm", "-S", "1024", "-I", "5000")
CMA = ("ucx_perftest", "-p", "13473", "-d", "memory", "-x", "cma", "-t", "put_bw", "-D", "zcopy", "-s", "4096", "-n", "20000")
LIBFABRIC = f"{LIBRARY_DIR}/libfabric.so.1"
LIBTCP = f"{LIBRARY_DIR}/libfabric/libtcp-fi.so"


@pytest.mark.parametrize(("command", "says"), [(TCP, "No data available"), (CMA, "cma")], ids=["libfabric", "ucx"])
def test_without_the_site_there_is_no_provider(sites: dict[str, Site], command: Sequence[str], says: str) -> None:
    both = f"{' '.join(command)} & sleep 1; {' '.join(command)} 127.0.0.1"
    for options in ([], [FABRIC + "none"]):
        result, _ = start(Engine("crun", "root"), sites["modules"], "sh", "-c", both, image="fabrics", options=["--net=host", *options])
        assert result.returncode != 0 and says in result.stderr + result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_the_sites_libfabric_takes_the_place_of_the_images(sites: dict[str, Site], stage: str) -> None:
    found, log = pair(sites["modules"], "fabrics", TCP, FABRIC + "libfabric", stage=stage)
    assert {path: found[path] for path in found if "libshm" not in path} == {TREE + path: inode(path) for path in (LIBFABRIC, LIBTCP)}
    assert {(entry["verdict"], entry["profile"]) for entry in log} == {("proved", "libfabric")}


@pytest.mark.parametrize("stage", STAGES)
def test_its_modules_join_the_images(sites: dict[str, Site], stage: str) -> None:
    """The image keeps its MPI and its libfabric, and gets the provider that it lacks."""
    found, log = pair(sites["modules"], "fabrics", TCP, MODE + "libfabric_inject", stage=stage)
    assert found[TREE + LIBTCP] == inode(LIBTCP)
    assert OWN in found and TREE + LIBFABRIC not in found
    assert notes(log, "mode") == ["the modules of profile libfabric join the image's own libraries, as is asked for"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_sites_ucx_takes_the_place_of_the_images(sites: dict[str, Site], stage: str) -> None:
    found, log = pair(sites["modules"], "fabrics", CMA, FABRIC + "ucx", stage=stage)
    module = f"{LIBRARY_DIR}/ucx/libuct_cma.so.0"
    assert found[f"{TREE}{module}"] == inode(module), found
    assert all(path.startswith(TREE) for path in found), found
    assert {(entry["verdict"], entry["profile"]) for entry in log} == {("proved", "ucx")}


def test_a_newer_libfabric_over_an_old_one(sites: dict[str, Site]) -> None:
    found, _ = pair(sites["newer"], "fabrics-old", TCP, MODE + "libfabric_replace")
    (path,) = found
    assert path.startswith(TREE) and found[path] == (MPICH5 / "mpich/libfabric.so.1").stat().st_ino


@pytest.mark.parametrize(("site", "image", "program", "option", "says"), [
    ("modules", "fabrics-old", "fi_pingpong", MODE + "libfabric_inject", "FABRIC_1.8 of libfabric.so.1, which"),
    ("newer", "fabrics-old", "fi_pingpong", MODE + "libfabric_inject", "no modules of its own that could be added"),
    ("newer", "fabrics", "fi_pingpong", FABRIC + "knem", "there is no /dev/knem: its driver is not loaded"),
])
def test_what_does_not_fit_is_refused(sites: dict[str, Site], site: str, image: str, program: str, option: str, says: str) -> None:
    result, log = start(Engine("crun", "root"), sites[site], program, "--help", image=image, options=[option])
    assert result.returncode != 0 and says in result.stderr, result.stderr
    assert "to start without injection give --annotation org.supercontainers.fabric=none" in result.stderr
    assert [entry["verdict"] for entry in log] == ["refused"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_device_and_nothing_else(sites: dict[str, Site], stage: str) -> None:
    """No file comes, so there is no tree and no loader cache."""
    forget(sites["device"])
    for way in ("cold", "warm"):
        result, log = start(Engine("crun", "root"), sites["device"], "sh", "-c", "ls /dev", image="fabrics", options=[FABRIC + "fuse"],
                            hooks_dir=sites["device"].hooks_dir / stage)
        assert result.returncode == 0, result.stderr
        assert "fuse" in result.stdout.split() and ".oci-hpc" not in result.stdout
        (entry,) = log
        assert (entry["verdict"], entry["path"], entry["profile"], entry["devices"]) == ("proved", way, "fuse", ["/dev/fuse"])


@pytest.mark.parametrize(("program", "fabric"), [("fi_pingpong", "libfabric"), ("ucx_perftest", "ucx")])
def test_what_label_proposes(sites: dict[str, Site], program: str, fabric: str) -> None:
    said = sites["modules"].command("label", Engine("crun", "root").load("fabrics"), "--", program)
    assert f"LABEL org.supercontainers.fabric={fabric}\n" in said.stdout, said.stderr
    assert said.stdout.count("LABEL ") == 2  # and glibc


EXAMPLES = re.findall(r"```console\n\$ oci-hpc-hooks (.*)\n((?:.*\n)*?)```", (bed.ROOT / "docs/fabrics.md").read_text())


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=["replace", "inject"])
def test_what_the_page_shows(sites: dict[str, Site], command: str, shown: str) -> None:
    """The first lines of what check says, in the order of the page."""
    Engine("crun", "root").load("fabrics")
    said = sites["modules"].command(*shlex.split(command)).stdout
    assert said.startswith(shown) and len(shown.splitlines()) > 1


def test_devices_of_rdma_in_software() -> None:
    """Where the kernel has them, verbs can be tried for real; this one says what it lacks."""
    made = bed.root_account().execute("rdma", "link", "add", "rxe-test", "type", "rxe", "netdev", "lo")
    if made.returncode != 0:
        pytest.skip(f"this kernel has no RDMA in software (CONFIG_RDMA_RXE): {made.stderr.strip()}")
    bed.root_account().execute("rdma", "link", "delete", "rxe-test")
    pytest.fail("this kernel has RDMA in software: a ping-pong over it is to be written")
