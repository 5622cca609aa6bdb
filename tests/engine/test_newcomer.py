"""README.md by somebody who has nothing else: "Use it on a node", block by block as it stands there, on a node with its literal paths.

Not the page's are ``--net=none`` (the bed's machines have no network for containers) and the words in capitals.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from tests.bed import bed
from tests.bed.bed import ROOT, Account, Engine, Result
from tests.bed.site import MPICH5
from tests.engine.inside import HELLO, OWN_VERSION, SITE_VERSION, assert_own, assert_site
from tests.engine.node import Node
from tests.pages import blocks

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("git"), reason="there is no git here, which knows what is in the repository"),
]

(_, DEMO, INSTALL, SITE, LOOK, HOOKS, EVERY_PODMAN, ASK, LABEL) = (block.text for block in blocks("README.md"))
IMAGE = "localhost/bed/newcomer"
CONTAINER = "bed-newcomer"
WORDS = {"IMAGE": IMAGE, "CONTAINER": CONTAINER, "FILE": "/var/lib/oci-hpc-hooks/inventory.json", "PROGRAM": " ".join(HELLO),
         "podman run": "podman run --net=none"}


class Newcomer:
    """Types in one shell: what a block sets, later ones have."""

    def __init__(self, folder: Path) -> None:
        self.node = Node(folder / "node", {"/opt/site/mpich": MPICH5.parent})
        self.checkout = folder / "checkout"
        self._set = ""

    def types(self, text: str, well: bool = True, timeout: float = 120, account: Optional[Account] = None) -> Result:
        for word, meant in WORDS.items():
            text = re.sub(rf"\b{word}\b", meant, text)
        done = self.node.typed(self._set + text, where=str(self.checkout), timeout=timeout, env={"CONTAINERS_CONF": None},
                               account=account)
        assert not well or done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        self._set += "".join(line + "\n" for line in text.splitlines() if line.startswith("PATH="))
        return done


def line_of(block: str, start: str) -> str:
    """The one line of a block that begins so."""
    (found,) = [line for line in block.splitlines() if line.startswith(start)]
    return found


@pytest.fixture(autouse=True)
def image() -> Iterator[str]:
    """An image of somebody's own, which asks for nothing yet."""
    engine = Engine("crun", "root")
    engine.podman("tag", engine.load("bookworm-mpich-nolabel"), IMAGE, check=True)
    yield IMAGE
    engine.podman("rm", "--force", CONTAINER)
    engine.podman("rmi", "--force", IMAGE)


@pytest.fixture(scope="module")
def newcomer() -> Iterator[Newcomer]:
    """Who has come to the end of step 2, with a copy of what is in the repository as checkout: setuptools leaves its notes there."""
    folder = bed.scratch("newcomer")
    made = Newcomer(folder)
    made.checkout.mkdir()
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True).stdout
    packed = subprocess.run(["tar", "-c", "-T", "-"], cwd=ROOT, input=names, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=made.checkout, input=packed, check=True)
    own = (bed.root_account().folder / "containers.conf").read_text()  # what this machine needs
    own = re.sub(r"^tmp_dir.*\n", "", own, flags=re.MULTILINE)  # root's
    (made.node.files / "etc/containers").mkdir()
    (made.node.files / "etc/containers/containers.conf").write_text(own)
    made.types(INSTALL, timeout=300)
    (made.node.files / "etc/oci-hpc-hooks").mkdir()
    (made.node.files / "etc/oci-hpc-hooks/site.json").write_text(SITE)
    said = made.types(LOOK).stdout
    assert "/etc/oci-hpc-hooks/site.json: ok" in said and "mpich: available" in said
    yield made
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def test_from_nothing_to_the_sites_mpi(newcomer: Newcomer) -> None:
    """Steps 3 and 4 with an own image: labelled as proposed, checked, started, told of."""
    register, doctor, run = HOOKS.splitlines()
    assert "/usr/local/share/oci-hpc-hooks/hooks.d" in newcomer.types(register).stdout
    assert "all well" in newcomer.types(doctor).stdout
    assert_own(newcomer.types(run.replace("podman run", "podman run --rm")))  # no label yet
    assert newcomer.types(line_of(ASK, "oci-hpc-hooks check IMAGE -- PROGRAM")).stdout.startswith(f"{IMAGE}: nothing")

    (proposal,) = set(re.findall("`(oci-hpc-hooks label .*?)`", (ROOT / "README.md").read_text()))
    proposed = newcomer.types(proposal.replace("PROGRAM", "mpihello")).stdout
    assert LABEL in proposed
    assert blocks("docs/labels.md")[0].text == LABEL
    (newcomer.checkout / "Containerfile").write_text(f"FROM {IMAGE}\n{LABEL}")
    newcomer.types("podman build --quiet --tag IMAGE --file Containerfile .")

    assert newcomer.types(line_of(ASK, "oci-hpc-hooks check IMAGE -- PROGRAM")).stdout.startswith(f"{IMAGE}: proved")
    assert_site(newcomer.types(run.replace("podman run", f"podman run --name {CONTAINER}")))
    assert ": proved, " in newcomer.types(line_of(ASK, "oci-hpc-hooks last")).stdout.splitlines()[0]
    told = newcomer.types(line_of(ASK, "oci-hpc-hooks explain")).stdout
    assert f"({CONTAINER}) of {IMAGE}:latest: " in told.splitlines()[0] and "/dev/.oci-hpc/opt/site/mpich/lib/libmpi.so.12" in told
    assert_own(newcomer.types(run.replace("podman run", "podman run --rm --annotation org.supercontainers.mpi=none")))
    refused = newcomer.types(run.replace("podman run", "podman run --rm --annotation org.supercontainers.mpi=openmpi"), well=False)
    assert refused.returncode == 126 and "openmpi is wanted; this site offers mpich" in refused.stderr
    assert ": refused" in newcomer.types(line_of(ASK, "oci-hpc-hooks last")).stdout.splitlines()[0]


def test_a_stale_inventory_is_noticed_at_the_next_start(newcomer: Newcomer) -> None:
    """As step 2 says: the hook scans by itself. And where site.json is wrong, what it says of refusals counts."""
    register, _, run = HOOKS.splitlines()
    newcomer.types(register)
    run = run.replace("podman run", f"podman run --rm --annotation {LABEL.split()[1]}")
    path = "/etc/oci-hpc-hooks/site.json"
    assert_site(newcomer.types(f"echo >>{path}; {run}"))
    wrong = '{"version": 1, "profiles": ["nosuch"]}'
    try:
        refused = newcomer.types(f"echo '{wrong}' >{path}; {run}", well=False)
        assert refused.returncode == 126 and f"{path}: $.profiles[0]: there is no profile 'nosuch'" in refused.stderr
        assert "Site admin: correct it; oci-hpc-hooks validate FILE looks again; to start without injection give" in refused.stderr
        without = wrong.replace("]}", '], "on_refusal": "run-without"}')
        assert_own(newcomer.types(f"echo '{without}' >{path}; {run}"))
        assert "there is no profile 'nosuch'" in newcomer.types(line_of(ASK, "oci-hpc-hooks last")).stdout
    finally:
        newcomer.types(f"cat >{path} <<'END'\n{SITE}END\n")
    assert_site(newcomer.types(run))


def test_other_ways_to_ask(newcomer: Newcomer) -> None:
    """They go by the image's own command, which is a shell: no program is named, so nothing is proved (exit code 3)."""
    asked = [line.replace("check", f"check --annotation {LABEL.split()[1]}") for line in ASK.splitlines() if " check " in line][1:]
    graph, elsewhere, digest = (newcomer.types(line, well=False) for line in asked)
    assert (graph.returncode, elsewhere.returncode, digest.returncode) == (3, 3, 0)
    assert (newcomer.checkout / "why.svg").read_text().startswith("<")
    assert elsewhere.stdout.startswith(f"{IMAGE} on ") and ": unproved: " in elsewhere.stdout
    assert re.fullmatch(r"1,image=[0-9a-f]{16},verdict=unproved,profile=mpich,\S+\n", digest.stdout)


@pytest.fixture
def everywhere(newcomer: Newcomer) -> Iterator[Newcomer]:
    """The two lines in containers.conf."""
    newcomer.types(HOOKS.splitlines()[0])
    without = newcomer.types("oci-hpc-hooks doctor", well=False)
    assert without.returncode == 1 and "no hook of this project is in force" in without.stdout
    (path,) = re.findall(r"Two lines in `(/etc/\S+)`", (ROOT / "README.md").read_text())
    newcomer.types(f"mkdir -p {Path(path).parent}; cat >{path} <<'END'\n{EVERY_PODMAN}END\n")
    yield newcomer
    newcomer.types(f"rm {path}")


@pytest.mark.parametrize("user", ["root", "rootless", "keep-id"])
def test_the_folder_of_every_podman(everywhere: Newcomer, user: str) -> None:
    """Root's and users': neither command needs the option."""
    _, doctor, run = HOOKS.splitlines()
    option = "--hooks-dir /usr/local/share/oci-hpc-hooks/hooks.d "
    engine = Engine("crun", user)
    engine.podman("tag", engine.load("bookworm-mpich-nolabel"), IMAGE, check=True)
    assert "all well" in everywhere.types(doctor.replace(option.rstrip(), ""), account=engine.account).stdout
    assert option in run
    more = "--userns=keep-id " if user == "keep-id" else ""
    assert_site(everywhere.types(run.replace(option, f"--rm {more}--annotation {LABEL.split()[1]} "), account=engine.account))
    engine.podman("rmi", IMAGE, check=True)


def test_a_scientist(everywhere: Newcomer, image: str) -> None:
    """docs/scientists.md, where the site has installed the hooks; the image has no label."""
    label, ask, check, told = (block.text for block in blocks("docs/scientists.md")[1:])
    assert LABEL in everywhere.types(label.replace("PROGRAM", "mpihello")).stdout
    assert_site(everywhere.types(ask.replace("podman run", f"podman run --name {CONTAINER}")))
    assert everywhere.types(check.replace("check", "check --annotation org.supercontainers.mpi=auto")).stdout.startswith(f"{image}: proved")
    said = everywhere.types(told).stdout
    assert ": proved, " in said.splitlines()[0] and f"({CONTAINER}) of {image}:latest: " in said


def test_the_demo() -> None:
    """In one command, from a checkout: the block that README.md and docs/index.md have."""
    (index,) = (block.text for block in blocks("docs/index.md"))
    (demo, *_) = DEMO.splitlines(keepends=True)
    assert demo == index
    own = {**os.environ, "MAKEFLAGS": ""}
    done = subprocess.run(["bash", "-euc", demo], cwd=ROOT, capture_output=True, text=True, timeout=600, env=own)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (re.findall(r"^rank \d of 2: MPICH Version: +([\d.]+)", part, re.MULTILINE) for part in done.stdout.split("\n$ ")[1:])
    assert (set(first), set(second)) == ({OWN_VERSION}, {SITE_VERSION})
    assert OWN_VERSION in demo and SITE_VERSION in demo
    # And in make shell, what the demo has left can be asked.
    tools = bed.scratch("tools")
    assert f"{bed.BUILD}/demo/hooks.d" in bed.demo_hooks(tools)
    for words, says in (["check", bed.reference("bookworm-mpich")], ": proved:"), (["last"], "of profile mpich"):
        asked = bed.root_account().execute(str(tools / "demo-hooks"), *words, timeout=60)
        assert asked.returncode == 0 and says in asked.stdout, asked.stdout + asked.stderr
    shutil.rmtree(tools)
