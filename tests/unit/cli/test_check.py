"""``check`` as a person or a script meets it: real files, a site of the test, no container."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from oci_hpc_hooks.cli import check, show
from oci_hpc_hooks.inputs import resources
from tests.unit.cli.test_cli import Node, mask_shipped, valid
from tests.unit.config.node_bed import MPICH, build
from tests.unit.test_image import LOADER, Tree

WISH = ("--annotation", "org.supercontainers.mpi=mpich")
APP = "/usr/bin/app"
COPY = "/usr/lib/libmpi.so.12"


def site(node: Node, version: str = "", name: str = "mpi") -> Path:
    """A site with an MPI, scanned; ``version`` is a glibc release that it needs. Its inventory."""
    mask_shipped(node)
    node.profile("ours", "libmpi.so.12")
    for old in node.lib.glob("*"):
        old.unlink()
    libc = build(node.lib.parent / "libc/libc.so.6", exports=["malloc"], version=version or "GLIBC_2.2.5")
    source = "extern int malloc(void); int uses(void) { return malloc(); }" + "".join(f"int {word}(void) {{ return 0; }}" for word in MPICH)
    node.lib.mkdir(exist_ok=True)
    command = ["gcc", "-w", "-fno-builtin", "-xc", "-", "-xnone", "-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libmpi.so.12"]
    subprocess.run([*command, "-o", str(node.lib / "libmpi.so.12"), str(libc)], input=source.encode(), check=True)
    assert node.run("scan").stderr == ""
    kept = node.state.parent / f"{name}.json"
    kept.write_bytes((node.state / "inventory.json").read_bytes())
    return kept


def image(folder: Path, program: str = APP, *needed: str) -> Path:
    """An image of one MPI program, with the C library of this machine."""
    tree = Tree(folder)
    for real in tree.top.glob("lib*/**/libc.so.6"):
        tree.copy(LOADER, "/" + str(real.with_name(LOADER.rpartition("/")[2]).relative_to(tree.top)))
    tree.program(program, "libmpi.so.12", *needed)
    tree.mpi("/usr/lib")
    tree.at("/etc/ld.so.conf").touch()
    subprocess.run(["/sbin/ldconfig", "-r", str(tree.top)], check=True, capture_output=True)
    return tree.top


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A site whose MPI fits."""
    folder = tmp_path_factory.mktemp("site")
    if folder.stat().st_uid != 0:
        pytest.skip("configuration counts only if root owns it")
    made = Node(folder)
    site(made)
    for name in ("slurm", "pmi2"):
        (made.etc / f"profiles.d/{name}.json").write_bytes((resources.PROFILES / f"{name}.json").read_bytes())
    assert made.run("scan").stderr == ""
    return made


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image(tmp_path_factory.mktemp("image") / "root")


def document(node: Node, *arguments: object, code: int = 0) -> Dict[str, Any]:
    done = node.run("check", "--json", *arguments)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout
    found: Dict[str, Any] = valid(done.stdout, "check-output")
    return found


def providers(said: Dict[str, Any]) -> Dict[str, str]:
    return {library["name"]: library["provider"] for library in said["programs"][0]["libraries"]}


def bundle(folder: Path, rootfs: Path, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": os.path.relpath(rootfs, folder)},
        "process": {"args": ["app"], "cwd": "/", "env": ["PATH=/usr/bin"]},
        "mounts": [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
        "annotations": {"org.supercontainers.mpi": "mpich"},
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---------------------------------------------------------------------------------------------------------------- one answer

def test_with_what_and_what_it_costs(node: Node, rootfs: Path) -> None:
    said = document(node, rootfs, *WISH, "--", APP)
    assert (said["verdict"], said["profile"], said["command"]) == ("proved", "ours", [APP])
    assert providers(said)["libmpi.so.12"] == "host"
    assert providers(said)["libc.so.6"] == "image"
    mpi = next(library for library in said["programs"][0]["libraries"] if library["name"] == "libmpi.so.12")
    assert (mpi["file"], mpi["rule"], mpi["needed_by"]) == (str(node.lib / "libmpi.so.12"), "cache", APP)
    cost = said["cost"]
    assert (cost["tree_files"], cost["in_place"], cost["mounts"], cost["start"]) == (1, 1, 4, "cold")
    assert cost["cache_entries"] >= 1 and cost["cache_bytes"] > 48


def test_a_launcher_is_there_or_not_as_podman_would_find_it(node: Node, rootfs: Path) -> None:
    named = ("--annotation", "org.supercontainers.launcher=slurm")
    for wish in ((), WISH):
        done = node.run("check", "--json", rootfs, *wish, *named, "--", APP)
        said = valid(done.stdout, "check-output")
        (error,) = (finding for finding in said["findings"] if finding["severity"] == "error")
        assert (done.returncode, said["verdict"], error["code"]) == (1, "refused", "launcher-missing")
        assert error["what"] == "the launcher slurm is asked for, and its variable SLURM_JOB_ID is not there"
        assert error["remedy"].endswith("give --annotation org.supercontainers.launcher=none")
        assert said["programs"] or not wish
        done = node.run("check", "--json", rootfs, *wish, *named, "--", APP, SLURM_JOB_ID="7")
        assert (done.returncode, valid(done.stdout, "check-output")["verdict"]) == (0, "proved" if wish else "nothing")
    # A step without the MPI's protocol is seen too; which options podman will be given is not, and nothing is said of them.
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_UID": "1000"}
    done = node.run("check", "--json", rootfs, *WISH, *named, "--", APP, **step)
    assert [finding["code"] for finding in json.loads(done.stdout)["findings"] if finding["severity"] == "error"] == ["protocol"]
    both = ("--annotation", "org.supercontainers.launcher=pmi2+slurm")
    done = node.run("check", "--json", rootfs, *WISH, *both, "--", APP, **step, PMI_FD="3")
    assert (done.returncode, [finding for finding in json.loads(done.stdout)["findings"] if finding["severity"] != "note"]) == (0, [])


def test_a_program_that_is_not_there(node: Node, rootfs: Path) -> None:
    for verb, code in (("check", 3), ("label", 0)):
        done = node.run(verb, rootfs, *(WISH if verb == "check" else ()), "--", "ap")
        assert done.returncode == code
        (line,) = (line for line in done.stdout.splitlines() if "warning: " in line)
        assert "warning: the image has no program ap. User: name one that is there after --" in line and line.endswith(" [program-missing]")
        assert "warning: " not in node.run(verb, rootfs, "--", APP).stdout


def test_for_people_without_a_terminal(node: Node, rootfs: Path) -> None:
    done = node.run("check", rootfs, *WISH, "--", APP)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{rootfs}: proved: the program will load the site's libraries"
    start = lines.index(next(line for line in lines if line.startswith(f"{APP} would load ")))
    assert lines[start + 1].split() == ["LIBRARY", "PROVIDER", "FILE", "FOUND", "BY", "WHY"]
    assert lines[start + 2].split()[:3] == ["libmpi.so.12", "host", str(node.lib / "libmpi.so.12")]
    assert lines[-1].startswith("cost: 4 mounts (1 file in the tree, 1 over the image's, a loader cache of ")
    assert lines[-1].endswith("; a cold start, the next ones are warm")
    assert "\033" not in done.stdout
    everything = node.run("check", "--all", rootfs, *WISH, "--", APP).stdout
    assert f"  {node.lib}/libmpi.so.12 -> {COPY} (stands in for the image's libmpi.so.12)" in everything


def test_a_refusal_shows_what_failed(rootfs: Path, tmp_path: Path) -> None:
    node = Node(tmp_path)
    site(node, "GLIBC_2.99")
    said = document(node, rootfs, *WISH, "--", APP, code=1)
    assert said["verdict"] == "refused" and not said["files"] and not said["cost"]["mounts"]
    (fault,) = [needs for needs in said["programs"][0]["dependencies"] if needs["fault"]]
    assert fault["name"] == "libc.so.6" and fault["fault"] == "lacks GLIBC_2.99" and fault["injection"]
    text = node.run("check", rootfs, *WISH, "--", APP).stdout
    (row,) = [line for line in text.splitlines() if line.lstrip().startswith("libc.so.6 ")]
    assert row.endswith("lacks GLIBC_2.99, which libmpi.so.12 needs")


def test_what_a_site_leaves_out_is_told_as_such(rootfs: Path, tmp_path: Path) -> None:
    """The programs are shown with what was tried, and nobody may take that for what the container gets."""
    too_new = Node(tmp_path)
    site(too_new, version="GLIBC_2.99")
    too_new.site(on_refusal="run-without")
    too_new.run("scan")
    lines = too_new.run("check", rootfs, *WISH, "--", APP).stdout.splitlines()
    assert lines[0] == f"{rootfs}: {check.LEFT_OUT}" and "GLIBC_2.99" in lines[1]
    assert lines.index("with what is left out:") < next(number for number, line in enumerate(lines) if "of the host" in line)
    assert not any("nothing to do" in line for line in lines)
    assert "left out" not in too_new.run("check", rootfs).stdout


def test_what_nobody_has_is_a_row(node: Node, tmp_path: Path) -> None:
    text = node.run("check", image(tmp_path / "lacking", APP, "libgone.so.1"), *WISH, "--", APP).stdout
    (row,) = [line.split() for line in text.splitlines() if "libgone.so.1" in line]
    assert row == ["libgone.so.1", "nobody", "-", "-", "app", "needs", "it;", "nobody", "has", "it"]


# ---------------------------------------------------------------------------------------------------------------- a bundle

def test_a_bundle_says_it_all(node: Node, rootfs: Path, tmp_path: Path) -> None:
    said = document(node, bundle(tmp_path / "bundle", rootfs))
    assert (said["verdict"], said["command"], said["tree"]) == ("proved", ["app"], "/dev/.oci-hpc")
    elsewhere = bundle(tmp_path / "bundle", rootfs, mounts=[])
    assert document(node, elsewhere)["tree"] == "/.oci-hpc"
    assert document(node, elsewhere, "--annotation", "org.supercontainers.mpi=none")["verdict"] == "nothing"
    assert document(node, elsewhere, "--", "/bin/nothing", code=3)["verdict"] == "unproved"


@pytest.mark.parametrize(("config", "says"), [
    ("{", "config.json"),
    ("[]", "config.json"),
    ('{"root": {"path": 3}}', "root.path"),
    ('{"root": {"path": "nowhere"}}', "is no directory"),
    ('{"root": {"path": "."}, "process": {"args": "app"}}', "process.args"),
    (None, "cannot be opened"),
])
def test_a_broken_bundle_is_one_sentence(node: Node, tmp_path: Path, config: str, says: str) -> None:
    if config is None:
        (tmp_path / "config.json").symlink_to("config.json")
    else:
        (tmp_path / "config.json").write_text(config)
    done = node.run("check", tmp_path)
    assert done.returncode == 2
    assert says in done.stderr and len(done.stderr.splitlines()) == 1
    assert "not found" not in done.stderr and "no such file" not in done.stderr.lower()


# ---------------------------------------------------------------------------------------------------------------- other systems

def test_other_systems_by_their_inventories_alone(rootfs: Path, tmp_path: Path) -> None:
    """They are a user's files, and nothing that they name exists here."""
    node = Node(tmp_path)
    new = site(node, "GLIBC_2.99", "new")
    old = site(node, "", "old")
    for file in node.lib.glob("*"):
        file.unlink()
    (node.state / "inventory.json").unlink()
    for path in (new, old):
        os.chown(path, 1000, 1000)
        path.chmod(0o666)
    said = document(node, "--inventory", new, "--inventory", f"older={old}", rootfs, *WISH, "--", APP)
    assert [(system["system"], system["verdict"]) for system in said["systems"]] == [("new", "refused"), ("older", "proved")]
    assert [system["mpi"] for system in said["systems"]] == [str(node.lib / "libmpi.so.12")] * 2
    assert {system["cost"]["start"] for system in said["systems"]} == {""}
    done = node.run("check", "--inventory", new, "--inventory", f"older={old}", rootfs, *WISH, "--", APP)
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()[1:4]]
    assert rows[0] == ["SYSTEM", "VERDICT", "PROFILE", "MPI", "GLIBC", "MACHINE", "REASON"]
    assert (rows[1][0], rows[1][1], rows[1][-1]) == ("new", "refused", "glibc-too-old")
    assert (rows[2][0], rows[2][1], rows[2][-1]) == ("older", "proved", "-")
    assert "new: refused: the container would not start" in done.stdout
    assert document(node, "--inventory", new, rootfs, *WISH, "--", APP, code=1)["systems"][0]["verdict"] == "refused"
    best: List[object] = ["--inventory", new, "--inventory", f"older={old}", rootfs, *WISH]
    assert document(node, *best, "--", "/bin/nothing", code=3)["systems"][0]["verdict"] == "refused"


@pytest.mark.parametrize(("arguments", "says"), [
    (["/nowhere/a.json"], "/nowhere/a.json does not exist"),
    (["x={tmp}/bad.json"], "$.version: 77 is not "),
    (["{tmp}/text.json"], "not JSON"),
    (["={tmp}/good.json"], "no name"),
    (["x={tmp}/good.json", "x={tmp}/good.json"], "two systems of the name 'x'"),
    (["{tmp}"], "is a directory"),
    (["{tmp}/fifo"], "is no regular file"),
    (["{tmp}/huge.json"], "at most 32 MiB"),
])
def test_a_broken_inventory_is_one_answer(node: Node, rootfs: Path, tmp_path: Path, arguments: List[str], says: str) -> None:
    good = json.loads((node.state / "inventory.json").read_text())
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "bad.json").write_text(json.dumps({**good, "version": 77}))
    (tmp_path / "text.json").write_text("\x1b[31m")
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(4 << 30)
    options = [word for argument in arguments for word in ("--inventory", argument.format(tmp=tmp_path))]
    done = node.run("check", *options, rootfs, *WISH, "--", APP)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr and "Traceback" not in done.stderr and "\x1b" not in done.stderr
    as_json = node.run("check", "--json", *options, rootfs, *WISH, "--", APP)
    assert as_json.returncode == 2
    assert valid(as_json.stdout, "error-output")["error"]


# ---------------------------------------------------------------------------------------------------------------- hostile text

def test_nothing_of_the_image_reaches_the_terminal(node: Node, tmp_path: Path) -> None:
    hostile = image(tmp_path / "root", "/usr/bin/\x1b[31m[red]app", "lib\x1b]0;x\x07\u202e.so.1")
    done = node.run("check", hostile, *WISH, "--label", "x=\x1b[2J", "--", "/usr/bin/\x1b[31m[red]app")
    assert done.returncode == 0, done.stderr
    assert not set("\x1b\x07\u202e") & set(done.stdout)
    assert "/usr/bin/?[31m[red]app would load" in done.stdout


def test_clean_keeps_text() -> None:
    assert show.clean("GLIBC_2.38 … übung") == "GLIBC_2.38 … übung"
    assert show.clean("a\nb\tc\x9bd\udc80") == "a?b?c?d?"


def terminal(node: Node, *arguments: object, **env: str) -> str:
    """What a person sees on a terminal."""
    pytest.importorskip("rich")
    import pty

    main, end = pty.openpty()
    pid = os.fork()
    if not pid:
        os.close(main)
        for fd in (0, 1, 2):
            os.dup2(end, fd)
        import sys

        from tests.unit.cli.test_cli import MAIN
        os.execve(sys.executable, [sys.executable, "-c", MAIN, *node.options, *map(str, arguments)],
                  {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "300", **env})
    os.close(end)
    said = b""
    try:
        while True:
            chunk = os.read(main, 65536)
            if not chunk:
                break
            said += chunk
    except OSError:
        pass  # the other side is closed
    os.close(main)
    os.waitpid(pid, 0)
    return said.decode()


def test_on_a_terminal_there_are_colours(node: Node, rootfs: Path) -> None:
    said = terminal(node, "check", rootfs, *WISH, "--", APP)
    assert "\x1b[36mhost" in said
    assert f"{node.lib}/libmpi.so.12" in said
    plain = terminal(node, "check", rootfs, *WISH, "--", APP, NO_COLOR="1")
    assert "\x1b[3" not in plain and "host" in plain


def test_markup_and_escapes_are_text_on_a_terminal(node: Node, tmp_path: Path) -> None:
    said = terminal(node, "check", image(tmp_path / "root", "/usr/bin/[bold]\x1b[5mapp"), *WISH, "--", "/usr/bin/[bold]\x1b[5mapp")
    assert "[bold]?[5mapp" in said and "\x1b[5m" not in said


# ---------------------------------------------------------------------------------------------------------------- the picture

def test_the_picture(node: Node, rootfs: Path, tmp_path: Path) -> None:
    done = node.run("check", "--graph", tmp_path / "a.svg", rootfs, *WISH, "--", APP)
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "a.svg").read_text()
    assert f"{rootfs}: proved" in ET.fromstring(text).findtext("{http://www.w3.org/2000/svg}title", "")
    assert '<g class="node host">' in text and 'class="failing"' not in text
    assert node.run("check", "--graph", tmp_path / "b.svg", rootfs, "--annotation", "org.supercontainers.mpi=openmpi").returncode == 1
    assert "openmpi is wanted" in (tmp_path / "b.svg").read_text()


def test_the_picture_of_another_system(node: Node, rootfs: Path, tmp_path: Path) -> None:
    inventory = node.state / "inventory.json"
    assert node.run("check", "--inventory", inventory, "--graph", tmp_path / "a.svg", rootfs, *WISH, "--", APP).returncode == 0
    assert '<g class="node host">' in (tmp_path / "a.svg").read_text()
    two = ("--inventory", f"a={inventory}", "--inventory", f"b={inventory}")
    done = node.run("check", *two, "--graph", tmp_path / "b.svg", rootfs, *WISH)
    assert done.returncode == 2 and "one system" in done.stderr


@pytest.mark.parametrize("path", ["nowhere/a.svg", ".svg"])
def test_a_picture_that_cannot_be_written(node: Node, rootfs: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / ".svg").mkdir()
    done = node.run("check", "--graph", tmp_path / path, rootfs, *WISH)
    assert done.returncode == 2
    assert done.stderr.startswith(f"oci-hpc-hooks: the picture {tmp_path / path} cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_picture_is_svg(node: Node, rootfs: Path, tmp_path: Path) -> None:
    done = node.run("check", "--graph", tmp_path / "why.dot", rootfs, *WISH)
    assert done.returncode == 2 and "ends in .svg" in done.stderr
    assert not (tmp_path / "why.dot").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    (("--remember", "."), "--remember is for images that podman has"),
    (("--remember", "--label", "a=b", "image"), "leave --inventory and --label out"),
    (("--remember", "--inventory", "a.json", "image"), "leave --inventory and --label out"),
    (("--run-options=--net=host", "image"), "belong to --remember"),
    (("--hooks-dir", "/hooks", "image"), "belong to --remember"),
])
def test_what_goes_with_remember(node: Node, arguments: Tuple[str, ...], words: str) -> None:
    done = node.run("check", *arguments)
    assert done.returncode == 2 and words in done.stderr
