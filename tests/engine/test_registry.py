"""Labels travel for real: pushed to a registry by one user, pulled from it by another, they drive the hook.

The registry is a container of its own, brought up by pytest-docker with a compose client that speaks to podman's Docker-compatible
socket. Nothing leaves the loopback address.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.bed.bed import BUILD, Engine
from tests.bed.site import TRIXIE
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, OWN_VERSION, SITE_VERSION, ranks, start
from tests.engine.test_refusals import sentence

DATA = Path(__file__).parent / "data/registry"
UNPACKED = BUILD / "images/registry"  # Debian's package docker-registry, unpacked: installed, it would start a service
SOCKET = bed.root_account().run_folder / "podman.sock"
INSECURE = "--tls-verify=false"


def free_port() -> int:
    """A port of the loopback address that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ------------------------------------------------------------------------------------------------ what pytest-docker asks for


@pytest.fixture(scope="session")
def registry_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def docker_compose_command(registry_port: int) -> str:
    # Debian's docker-compose is written in Python and needs no docker.
    return f"env DOCKER_HOST=unix://{SOCKET} REGISTRY_PORT={registry_port} /usr/bin/docker-compose"


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(DATA / "compose.yml")


@pytest.fixture(scope="session")
def docker_setup(podman_socket: Path) -> list[str]:
    Engine("crun", "root").load("bookworm-mpich-nolabel")
    build = ("podman", "build", "--quiet", "--pull=never", "--tag", "localhost/bed/registry:latest", "--file", str(DATA / "Containerfile"))
    bed.root_account().execute(*build, str(UNPACKED), timeout=120, check=True)
    return ["up --detach"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["down --volumes --timeout 1"]


@pytest.fixture(scope="session")
def podman_socket() -> Iterator[Path]:
    """podman's Docker-compatible API, served on a socket for as long as the tests run."""
    bed.enter()
    SOCKET.unlink(missing_ok=True)
    command = ["podman", "system", "service", "--time=0", f"unix://{SOCKET}"]
    with subprocess.Popen(command, env=bed.root_account().environment(), stderr=subprocess.DEVNULL) as service:
        try:
            deadline = time.monotonic() + 20
            while not SOCKET.is_socket():
                assert service.poll() is None and time.monotonic() < deadline, "podman serves no socket"
                time.sleep(0.05)
            yield SOCKET
        finally:
            service.terminate()
            service.wait(20)
            SOCKET.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def registry(docker_ip: str, docker_services: Any, registry_port: int) -> str:
    """host:port of a registry that answers."""
    where = f"{docker_ip}:{registry_port}"

    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{where}/v2/", timeout=2) as reply:
            return bool(reply.status == 200)
        return False

    docker_services.wait_until_responsive(answers, timeout=30, pause=0.1)
    return where


# ------------------------------------------------------------------------------------------------ tests


@contextlib.contextmanager
def published(registry: str, image: str, manifest: str) -> Iterator[str]:
    """`image` pushed by root under a new name with a manifest of this format, then pulled by the other user: its full name."""
    name = f"{registry}/site/{image}-{manifest}:1.0"
    author, user = Engine("crun", "root"), Engine("crun", "rootless")
    pushed = author.podman("push", "--quiet", INSECURE, "--format", manifest, author.load(image), name, timeout=120)
    assert pushed.returncode == 0, pushed.stderr
    assert user.podman("image", "exists", name).returncode == 1
    pulled = user.podman("pull", "--quiet", INSECURE, name, timeout=120)
    assert pulled.returncode == 0, pulled.stderr
    try:
        yield name
    finally:
        user.podman("image", "rm", "--force", name)


@pytest.mark.parametrize("manifest", ["oci", "v2s2"])
def test_pulled_labels_drive_the_hook(registry: str, make_site: SiteMaker, manifest: str) -> None:
    user = Engine("runc" if manifest == "oci" else "crun", "rootless")
    site = make_site(user)
    with published(registry, "bookworm-mpich", manifest) as name:
        done, log = start(user, site, *HELLO, image=name)
        assert [(rank.of, rank.version) for rank in ranks(done)] == [(2, SITE_VERSION), (2, SITE_VERSION)]
        assert [(entry["image"], entry["verdict"]) for entry in log] == [(name, "proved")]


def test_a_pulled_image_without_labels_is_left_alone(registry: str, make_site: SiteMaker) -> None:
    """The other half of the proof: it is the label that travels, not anything else of the image."""
    user = Engine("crun", "rootless")
    site = make_site(user)
    with published(registry, "bookworm-mpich-nolabel", "oci") as name:
        done, log = start(user, site, "mpihello", image=name)
        assert [rank.version for rank in ranks(done)] == [OWN_VERSION]
        assert not log


def test_a_pulled_label_is_named_in_a_refusal(registry: str, make_site: SiteMaker) -> None:
    user = Engine("crun", "rootless")
    site = make_site(user, search=[TRIXIE])
    with published(registry, "bookworm-mpich", "oci") as name:
        done = user.run(name, "mpihello", hooks_dir=site.hooks_dir)
        told = sentence(done)
        assert not done.stdout
        for words in ("GLIBC_2.38", "2.36", "label org.supercontainers.mpi=mpich", "--annotation org.supercontainers.mpi=none"):
            assert words in told
