"""``oci-hpc-hooks explain``: what was done to a real container, and whether that is still so."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bed.bed import Engine, reference
from tests.bed.site import MPICH5, TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, LIBRARY_DIR, TREE, start
from tests.engine.site import ReadySite, forget, ready, three_engines  # noqa: F401
from tests.engine.test_bare_runtimes import bundle
from tests.engine.test_check import valid

#: Joins the mount namespace of a process, takes one mount away, makes another and removes a file (the image has no mount(8)).
MOUNTS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.setns(os.open(f"/proc/{sys.argv[1]}/ns/mnt", os.O_RDONLY), 0x20000) == 0
assert libc.umount2(sys.argv[2].encode(), 2) == 0
assert libc.mount(b"/bin/true", sys.argv[3].encode(), None, 4096, None) == 0
os.unlink("/etc/ld.so.cache")
"""

OWN = f"{LIBRARY_DIR}/libmpich.so.12.2.2"
UCP = f"{LIBRARY_DIR}/libucp.so.0.0.0"


def explain(site: Site, container: str, code: int = 0) -> dict[str, Any]:
    done = site.command("explain", "--json", container, account=site.account)
    assert done.returncode == code, done.stdout + done.stderr
    return valid(done.stdout, "explain-output")


def run(engine: Engine, site: Site, *options: str, image: str = "bookworm-mpich") -> str:
    """Starts a container that waits, through the site's hooks; its id. The `tidy` fixture removes it."""
    if engine.user == "keep-id":
        options = ("--userns=keep-id", *options)
    done = engine.podman("--hooks-dir", str(site.hooks_dir), "run", "--detach", "--net=none", "--name", engine.new_name(), *options,
                         engine.load(image), "sleep", "1000")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@three_engines
def test_running_and_then_not(engine: Engine, ready: ReadySite) -> None:  # noqa: F811
    """For every engine and user: the plan, and the very files in the container."""
    site = ready(engine)
    container = run(engine, site)
    name = explain(site, container)["name"]
    said = explain(site, name)
    assert (said["container"], said["status"], said["tree"]) == (container, "running", TREE)
    assert (said["entry"]["verdict"], said["entry"]["path"]) == ("unproved", "cold")
    assert said["looked"] and not said["differences"]
    assert {file["now"] for file in said["files"]} == {"there"}
    why = {(file["source"], file["target"]): file["why"] for file in said["files"]}
    assert why[f"{MPICH5}/libmpi.so.12", OWN] == "stands in for the image's libmpich.so.12"
    assert why[f"{MPICH5}/libmpi.so.12", f"{TREE}{MPICH5}/libmpi.so.12"] == "replace of profile mpich"
    assert "--annotation org.supercontainers.mpi=none" in said["without"] and said["without"].endswith("sleep 1000")
    text = site.command("explain", container[:10], account=site.account).stdout
    assert text.splitlines()[0] == f"container {container[:12]} ({name}) of {reference('bookworm-mpich')}: running"
    assert "what is mounted in it is what the plan says" in text
    engine.podman("stop", "--time=0", container)
    said = explain(site, container)
    assert said["status"] == "exited" and not said["looked"]
    assert {file["now"] for file in said["files"]} == {""} and len(said["files"]) == len(why)
    forget(site)
    said = explain(site, container)
    assert said["entry"]["verdict"] == "unproved" and not said["plan"] and not said["files"]
    assert "the plan is not remembered any more" in site.command("explain", container, account=site.account).stdout


def test_what_root_in_the_container_has_changed(rootful: Engine, ready: ReadySite) -> None:  # noqa: F811
    site = ready(rootful)
    container = run(rootful, site)
    pid = rootful.podman("inspect", "--format", "{{.State.Pid}}", container).stdout.strip()
    assert rootful.account.execute(sys.executable, "-c", MOUNTS, pid, UCP, OWN, check=True).stdout == ""
    said = explain(site, container)
    now = {file["target"]: file["now"] for file in said["files"] if file["now"] != "there"}
    assert now == {"/etc/ld.so.cache": "not there", UCP: "not there", OWN: "another file"}
    assert len(said["differences"]) == 3
    forget(site)
    left = explain(site, container)
    assert not left["plan"] and f"{MPICH5}/libmpi.so.12" in {file["source"] for file in left["files"]}


def test_without_podman(rootful: Engine, ready: ReadySite, scratch: Path) -> None:  # noqa: F811
    """The runtime is asked, and the log by the beginning of the id."""
    site = ready(rootful)
    name = f"{rootful.new_name()}-bare"
    account = rootful.account
    with bundle(rootful, site, scratch, lambda config: config["process"].update(args=["sleep", "1000"])) as made, subprocess.Popen(
            [rootful.runtime, "run", "--bundle", str(made), name], stdout=subprocess.DEVNULL, env=account.environment()) as running:
        try:
            deadline = time.monotonic() + 20
            while '"running"' not in account.execute(rootful.runtime, "state", name).stdout and time.monotonic() < deadline:
                time.sleep(0.1)
            said = explain(site, name[:-1])
            assert (said["container"], said["status"], said["looked"], said["differences"]) == (name, "running", True, [])
            assert said["without"] == '"annotations": {"org.supercontainers.mpi": "none"} in the bundle\'s config.json'
        finally:
            account.execute(rootful.runtime, "delete", "--force", name)
            running.wait(30)


def test_several_of_that_beginning(crun: Engine, ready: ReadySite) -> None:  # noqa: F811
    site = ready(crun)
    log = Path(json.loads(site.last("--json").stdout)["log"])
    with open(log, "a") as file:
        for number in range(2):
            file.write(json.dumps({"verdict": "proved", "id": f"bed-twin-{number}"}) + "\n")
    done = site.command("explain", "bed-twin", account=site.account)
    assert done.returncode == 2
    assert "is the beginning of 2 containers' ids, bed-twin-1 and bed-twin-0 among them" in done.stderr
    assert site.command("explain", "bed-twin-1", account=site.account).returncode == 0


def test_gone(crun: Engine, ready: ReadySite) -> None:  # noqa: F811
    site = ready(crun)
    for _ in range(2):
        result, log = start(crun, site, *HELLO)
        assert result.returncode == 0
    container = log[0]["id"]
    said = explain(site, container[:12])
    assert (said["container"], said["status"], said["entry"]["path"], said["looked"]) == (container, "gone", "warm", False)
    assert said["files"] and said["without"] == f"podman run --annotation org.supercontainers.mpi=none {reference('bookworm-mpich')} …"
    assert site.command("explain", "", account=site.account).returncode == 2, "an empty argument is a variable that is not set"


def test_a_refusal(crun: Engine, make_site: SiteMaker) -> None:
    site = make_site(crun, search=[TRIXIE])
    result, log = start(crun, site, *HELLO)
    assert result.returncode != 0
    said = explain(site, log[0]["id"])
    assert said["entry"]["verdict"] == "refused" and not said["files"]
    assert "GLIBC_2.38" in said["entry"]["message"]
    assert "glibc-too-old" in [finding["code"] for finding in said["entry"]["findings"]]


def test_of_whom_nothing_is_known(crun: Engine, ready: ReadySite) -> None:  # noqa: F811
    site = ready(crun)
    container = run(crun, site, image="bookworm-mpich-nolabel")
    for name in (container, container[:8], "nobody", "a b", "\x1b[31m"):
        done = site.command("explain", name, account=site.account)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("oci-hpc-hooks: nothing is known of the container ") and len(done.stderr.splitlines()) == 1
        assert "\x1b" not in done.stderr
    as_json = site.command("explain", "--json", container, account=site.account)
    assert as_json.returncode == 1
    assert "nothing is known" in valid(as_json.stdout, "error-output")["error"]
