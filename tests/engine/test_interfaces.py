"""Network interfaces of a profile: a container with a network namespace of its own reaches another namespace over them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed.bed import Engine, Result
from tests.bed.site import Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import start

ASKED = "--annotation=org.supercontainers.network=test"
DEVICE = f"hpc{os.getpid() % 1000000}"
FAR, NEAR, NEW = "10.253.97.2", "10.253.97.1", "10.253.97.9"
#: Says "hello" to whoever connects.
SERVER = """
import socket
server = socket.create_server(("10.253.97.2", 7007))
print("ready", flush=True)
while True:
    server.accept()[0].sendall(b"hello")
"""
LOOK = f": mpihello; exec 3<>/dev/tcp/{FAR}/7007 && head -c 5 <&3; echo; ls /sys/class/net"


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def has_link(kind: str) -> bool:
    ip("link", "add", "hpcprobe0", "type", "veth", "peer", "name", "hpcprobe1")
    try:
        return subprocess.run(["ip", "link", "add", "hpcprobe2", "link", "hpcprobe0", "type", kind], capture_output=True).returncode == 0
    finally:
        ip("link", "del", "hpcprobe0")


@pytest.fixture
def far() -> Iterator[None]:
    """A namespace with a server, and a cable from it to an interface of the node's, which has an address."""
    ip("link", "add", DEVICE, "type", "veth", "peer", "name", f"{DEVICE}p")
    script = f"read go; ip addr add {FAR}/24 dev {DEVICE}p; ip link set {DEVICE}p up; exec python3 -c '{SERVER}'"
    server = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        while os.stat(f"/proc/{server.pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
            pass
        ip("link", "set", f"{DEVICE}p", "netns", str(server.pid))
        ip("addr", "add", f"{NEAR}/24", "dev", DEVICE)
        ip("link", "set", DEVICE, "up")
        assert server.stdin and server.stdout
        server.stdin.write("go\n")
        server.stdin.flush()
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.communicate()
        subprocess.run(["ip", "link", "del", DEVICE], capture_output=True)


Made = Callable[..., Site]


@pytest.fixture
def made(make_site: SiteMaker) -> Made:
    """``made(engine, interface)``: a site with a profile that brings it."""

    def make(engine: Engine, interface: dict[str, Any], **site_json: object) -> Site:
        site = make_site(engine, **site_json)
        (site.config_dir / "profiles.d").mkdir()
        profile = {"version": 1, "name": "test", "description": "A cable", "provides": {"network": "test"}, "interfaces": [interface]}
        (site.config_dir / "profiles.d/test.json").write_text(json.dumps(profile))
        site.scan()
        return site

    return make


def tried(engine: Engine, site: Site, *options: str, hooks_dir: Path | None = None) -> tuple[Result, dict[str, Any]]:
    result, log = start(engine, site, "bash", "-c", LOOK, options=options, hooks_dir=hooks_dir)
    assert len(log) == 1, (result.stderr, log)
    return result, log[0]


def interface(mode: str) -> dict[str, Any]:
    return {"device": DEVICE, "mode": mode, "name": "hsn0", **({"addresses": [f"{NEW}/24"]} if mode != "move" else {})}


@pytest.mark.parametrize("mode", ["move", "ipvlan", "macvlan"])
@pytest.mark.parametrize("runtime, stage", [("crun", ""), pytest.param("runc", "podman", marks=pytest.mark.long)])
def test_another_namespace_is_reached(made: Made, far: None, runtime: str, stage: str, mode: str) -> None:
    if mode != "move" and not has_link(mode):
        pytest.skip(f"this kernel makes no {mode} interfaces (CONFIG_{mode.upper()})")
    engine = Engine(runtime, "root")
    site = made(engine, interface(mode))
    result, entry = tried(engine, site, ASKED, hooks_dir=site.hooks_dir / stage)
    assert result.stdout.split() == ["hello", "hsn0", "lo"], result.stderr
    assert entry["interfaces"] == ["hsn0"] and entry["stage"] == "createRuntime"
    assert entry["profile"] == "mpich"  # beside the libraries
    left = json.loads(ip("-json", "addr", "show"))
    names = [link["ifname"] for link in left]
    # A veth is no physical interface: it ends with the namespace that it is in.
    assert (DEVICE in names) == (mode != "move") and "hsn0" not in names


def test_what_cannot_be_made_is_refused_and_leaves_nothing(made: Made, far: None) -> None:
    """An address that the kernel does not take: the interface has been moved by then."""
    engine = Engine("crun", "root")
    site = made(engine, {"device": DEVICE, "mode": "macvlan", "name": "lo"})
    result, entry = tried(engine, site, ASKED)
    assert result.returncode == 126 and entry["verdict"] == "refused"
    assert f"no macvlan on the interface {DEVICE} can be made in the container: File exists" in result.stderr.replace("\n", " ")
    assert "org.supercontainers.network=none" in result.stderr


def test_a_failure_afterwards_takes_everything_back(made: Made, far: None) -> None:
    engine = Engine("crun", "root")
    site = made(engine, {"device": DEVICE, "mode": "move", "name": "hsn0"})
    profile = json.loads((site.config_dir / "profiles.d/test.json").read_text())
    profile["interfaces"].append({"device": "none-such", "mode": "move"})
    (site.config_dir / "profiles.d/test.json").write_text(json.dumps(profile))
    site.scan()
    result, _ = tried(engine, site, ASKED)
    assert result.returncode == 126 and "no network interface none-such" in result.stderr.replace("\n", " ")
    (link,) = json.loads(ip("-json", "addr", "show", DEVICE))
    assert NEAR in [address["local"] for address in link["addr_info"]] and "UP" in link["flags"]


def test_a_default_of_the_site_that_cannot_be_met_is_a_warning(made: Made) -> None:
    engine = Engine("crun", "root")
    site = made(engine, {"device": "none-such", "mode": "move"}, defaults={"org.supercontainers.network": "test"})
    result, log = start(engine, site, "mpihello")
    assert result.returncode == 0, result.stderr
    assert [finding["severity"] for finding in log[0]["findings"] if finding["code"] == "network"] == ["warning"]


@pytest.mark.parametrize("user, option, expected", [
    ("root", "--net=host", "the container has no network namespace of its own"),
    ("rootless", "--net=none", "cannot be brought into a container of a user without privileges"),
])
def test_where_there_is_nothing_to_bring_them_into(made: Made, user: str, option: str, expected: str) -> None:
    engine = Engine("crun", user)
    site = made(engine, {"device": "lo", "mode": "macvlan"})
    result, log = start(engine, site, "mpihello", options=[ASKED, option])
    told = result.stderr.replace("\n", " ") + json.dumps(log[0]["findings"])
    assert expected in told
    assert (result.returncode == 0) == (user == "root")
