"""docs/profiles.md, followed: the profile of an imaginary vendor is read out of it, such a driver is made, and containers get it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import Site
from tests.engine.inside import TREE, start
from tests.engine.site import Sites

PAGE = (bed.ROOT / "docs/profiles.md").read_text()
TUTORIAL = PAGE[PAGE.index("## Tutorial"):PAGE.index("## Drivers of GPUs")]
(PROFILE,) = re.findall(r"```json\n(.*?)```", TUTORIAL, re.DOTALL)
CONSOLE = re.findall(r"```console\n(.*?)```", TUTORIAL, re.DOTALL)
ASKED = "--annotation=org.supercontainers.gpu=acme"
STAGES = ("", "podman")

#: What acme_devices finds of its driver, as bits.
PLUGIN, ICD, JIT, CONF, DEVICE, SOCKET, VARIABLE, SPOOL = (1 << bit for bit in range(8))
LIBRARIES = PLUGIN | ICD | JIT | CONF

#: The library looks for each part as drivers do.
LIBACME = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static int called(const char *name, const char *function) {
    void *library = dlopen(name, RTLD_NOW);
    int (*call)(void) = library ? (int (*)(void))dlsym(library, function) : NULL;
    return call && call() == 7;
}

int acme_devices(unsigned flags) {
    char path[4096], name[256] = "";
    Dl_info self;
    int found = 0;
    dladdr((void *)acme_devices, &self);
    snprintf(path, sizeof path, "%.*s/plugins/fast.so", (int)(strrchr(self.dli_fname, '/') - self.dli_fname), self.dli_fname);
    found |= called(path, "acme_fast") ? 1 : 0;
    FILE *icd = fopen("/etc/acme/vendors/acme.icd", "r");
    if (icd && fgets(name, sizeof name, icd)) found |= called(strtok(name, "\n"), "acme_icd") ? 2 : 0;
    found |= called("libacme-jit.so.7", "acme_jit") ? 4 : 0;
    found |= fopen("/etc/acme/acme.conf", "r") ? 8 : 0;
    found |= open("/dev/acme0", O_RDWR) >= 0 ? 16 : 0;
    struct sockaddr_un at = {AF_UNIX, "/run/acme/socket"};
    found |= connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&at, sizeof at) == 0 ? 32 : 0;
    if (getenv("ACME_SPOOL")) {
        snprintf(path, sizeof path, "%s/job", getenv("ACME_SPOOL"));
        found |= fopen(path, "w") ? 128 : 0;
    }
    return found | (getenv("ACME_QUEUE") ? 64 : 0);
}
"""


class Node(NamedTuple):
    """A node with Acme's driver. Its places are not those of the page, which other tests may want at the same time."""

    folder: Path
    device: Path

    def here(self, text: str) -> str:
        """A text of the page with this node's places in it."""
        for place in ("/opt/acme", "/etc/acme", "/run/acme"):
            text = text.replace(place, f"{self.folder}{place}")
        return text.replace("/dev/acme0", str(self.device)).replace("/dev/acme*", f"{self.device}*")

    def there(self, text: str) -> str:
        return text.replace(str(self.folder), "").replace(str(self.device), "/dev/acme0")

    def library(self, name: str, text: str, soname: str = "") -> Path:
        made = self.folder / "opt/acme/lib" / name
        made.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{soname or name}", "-o", made, "-xc", "-"], input=self.here(text),
                       text=True, check=True)
        return made


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """What the table of the page lists."""
    folder = bed.scratch("acme")
    made = Node(folder, Path(f"/dev/acme-{os.getpid()}"))
    first = made.library("libacme.so.7.2.1", LIBACME, "libacme.so.1")
    for link in ("libacme.so.1", "libacme.so"):
        (first.parent / link).symlink_to(first.name)
    for name, function, soname in (("libacme-jit.so.7.2.1", "acme_jit", "libacme-jit.so.7"), ("libacme-icd.so", "acme_icd", ""),
                                   ("plugins/fast.so", "acme_fast", "")):
        made.library(name, f"int {function}(void) {{ return 7; }}", soname)
    for file, text in (("etc/acme/vendors/acme.icd", "libacme-icd.so\n"), ("etc/acme/acme.conf", "fast = yes\n")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    os.mknod(made.device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    made.device.chmod(0o666)
    (folder / "run/acme").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(folder / "run/acme/socket"))
        (folder / "run/acme/socket").chmod(0o666)
        service.listen(64)
        yield made
    made.device.unlink()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    made = Sites("tutorial")
    yield made
    made.remove()


def site_of(sites: Sites, node: Node, engine: Engine) -> Site:
    return sites.made(engine.account, ["acme"], [json.loads(node.here(PROFILE))])  # type: ignore[list-item]


def found(engine: Engine, site: Site, *options: str, stage: str = "podman", image: str = "opencl-bookworm") -> tuple[int, dict[str, Any]]:
    spool = bed.scratch("spool")
    shutil.chown(spool, engine.account.uid)
    result = engine.run(image, "/usr/local/bin/dlcall", "libacme.so.1", "acme_devices", options=options,
                        env={"ACME_QUEUE": "1", "ACME_SPOOL": str(spool)}, hooks_dir=site.hooks_dir / stage)
    written = (spool / "job").exists()
    shutil.rmtree(spool)
    said = re.fullmatch(r"libacme.so.1: acme_devices = (\d+) \((.*)\)\n", result.stdout)
    assert said, result.stdout + result.stderr
    assert said[2].startswith(TREE) and written == bool(int(said[1]) & SPOOL)
    return int(said[1]), site.log()[-1]


def test_the_commands_say_what_the_page_shows(sites: Sites, node: Node) -> None:
    site = site_of(sites, node, Engine("crun", "root"))
    lines = iter([*CONSOLE[0].splitlines(), "$"])
    command = next(lines)
    for line in lines:
        shown: list[str] = []
        while not line.startswith("$"):
            shown.append(line)
            line = next(lines)
        words = shlex.split(command)[2:]
        done = site.command(*(word.replace("/etc/oci-hpc-hooks", str(site.config_dir)) for word in words))
        said = node.there(done.stdout).replace(str(site.config_dir), "/etc/oci-hpc-hooks").splitlines()
        assert said[:len(shown)] == shown, done.stdout + done.stderr
        assert done.returncode == 0 and len(shown) in (1, 6)
        command = line


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("user", ["root", "rootless"])
def test_the_caller_gets_all_of_it(sites: Sites, node: Node, user: str, stage: str) -> None:
    engine = Engine("crun", user)
    site = site_of(sites, node, engine)
    wanted = LIBRARIES | DEVICE | (SOCKET if user == "rootless" else 0) | (VARIABLE | SPOOL if stage else 0)
    for way in ("cold", "warm"):
        got, log = found(engine, site, ASKED, stage=stage)
        assert (got, log["path"], log["profile"]) == (wanted, way, "acme")
    services = log.get("services", [])
    # podman 4.8 and later lets createRuntime see the caller's environment, which names the spool; setting it stays precreate's.
    spool = bool(stage) or bed.version("podman") >= (4, 8)
    assert (f"{node.folder}/run/acme/socket" in services) == (user == "rootless") and len(services) == (user == "rootless") + spool


@pytest.mark.parametrize("user", ["root", "rootless"])
def test_an_image_gets_what_anybody_may_have(sites: Sites, node: Node, scratch: Path, user: str) -> None:
    engine = Engine("crun", user)
    site = site_of(sites, node, engine)
    (scratch / "Containerfile").write_text(f"FROM {engine.load('opencl-bookworm')}\nLABEL org.supercontainers.gpu=acme\n")
    image = engine.podman("build", "--quiet", "--pull=never", str(scratch), check=True).stdout.strip()
    try:
        assert found(engine, site, image=image)[0] == LIBRARIES | DEVICE
        if user == "root":
            node.device.chmod(0o600)
            assert found(engine, site, image=image)[0] == LIBRARIES
            assert found(engine, site, ASKED, image=image)[0] == LIBRARIES | DEVICE | VARIABLE | SPOOL
    finally:
        node.device.chmod(0o666)
        engine.podman("rmi", "--force", image)


def test_a_site_asks_for_every_container(sites: Sites, node: Node) -> None:
    engine = Engine("crun", "rootless")
    defaults = {"org.supercontainers.gpu": "acme"}
    site = sites.made(engine.account, ["acme"], [json.loads(node.here(PROFILE))], defaults=defaults)  # type: ignore[list-item]
    assert found(engine, site)[0] == LIBRARIES | DEVICE | SOCKET | VARIABLE | SPOOL


@pytest.mark.parametrize("stage", STAGES)
def test_what_does_not_fit_is_refused(sites: Sites, node: Node, stage: str) -> None:
    engine = Engine("crun", "root")
    site = site_of(sites, node, engine)
    result, log = start(engine, site, "/usr/local/bin/dlcall", "libacme.so.1", "acme_devices", image="opencl-bullseye", options=[ASKED],
                        hooks_dir=site.hooks_dir / stage)
    shown = textwrap.dedent(CONSOLE[2]).splitlines()[1]
    assert result.returncode != 0 and shown in node.there(result.stderr), result.stderr
    assert [entry["verdict"] for entry in log] == ["refused"]
