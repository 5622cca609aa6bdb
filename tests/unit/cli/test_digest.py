"""``check --digest``: equal for nodes that give the same, and telling for those that do not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Callable, Dict, Tuple

import pytest

from oci_hpc_hooks.cli import digest
from oci_hpc_hooks.errors import UsageError
from tests.unit.cli.test_check import APP, WISH, bundle, document, image, site
from tests.unit.cli.test_cli import Node

COMMAND = (*WISH, "--", APP)
Change = Callable[[Node, Path], object]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    if tmp_path.stat().st_uid != 0:
        pytest.skip("configuration counts only if root owns it")
    made = Node(tmp_path / "node")
    site(made)
    return made


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return image(tmp_path / "image/root")


def word(node: Node, *arguments: object, code: int = 0) -> str:
    done = node.run("check", "--digest", *arguments)
    assert done.returncode == code, done.stderr
    (line,) = done.stdout.splitlines()
    return line


def parts(line: str) -> Dict[str, str]:
    return digest.parse(line)


def again(node: Node, rootfs: Path) -> None:
    assert node.run("scan").returncode == 0


def touched(node: Node, rootfs: Path) -> None:
    """Other inodes and times, the same contents, on the node and in the image."""
    for path in [*node.lib.iterdir(), rootfs / APP[1:], rootfs / "etc/ld.so.cache"]:
        new = path.with_name("new")
        shutil.copyfile(path, new)
        new.chmod(path.stat().st_mode)
        os.utime(new, (1, 1))
        new.rename(path)
    again(node, rootfs)


def longer(node: Node, rootfs: Path) -> None:
    with open(node.lib / "libmpi.so.12", "ab") as file:
        file.write(b"\0")
    again(node, rootfs)


def moved(node: Node, rootfs: Path) -> None:
    node.lib.joinpath("libmpi.so.12").rename(node.lib / "libmpi.so.12.0.1")
    node.lib.joinpath("libmpi.so.12").symlink_to("libmpi.so.12.0.1")
    again(node, rootfs)


def too_new(node: Node, rootfs: Path) -> None:
    site(node, "GLIBC_9.99")


def another_program(node: Node, rootfs: Path) -> None:
    with open(rootfs / APP[1:], "ab") as file:
        file.write(b"\0")


def another_name(node: Node, rootfs: Path) -> None:
    (node.etc / "profiles.d/ours.json").unlink()
    node.profile("theirs", "libmpi.so.12")
    again(node, rootfs)


@pytest.mark.parametrize(("change", "differ"), [
    (again, set()), (touched, set()), (moved, set()), (longer, {"contents"}), (another_program, {"image"}), (another_name, {"profile"}),
    (too_new, {"verdict", "profile", "files", "contents", "cache"}),
])
def test_what_makes_a_difference(node: Node, rootfs: Path, change: Change, differ: set[str]) -> None:
    before = word(node, rootfs, *COMMAND)
    assert before == word(node, rootfs, *COMMAND)
    change(node, rootfs)
    after = word(node, rootfs, *COMMAND, code=1 if "verdict" in differ else 0)
    assert {name for name in digest.PARTS if parts(before)[name] != parts(after)[name]} == differ
    assert " " not in before and before.startswith("1,image=")
    done = node.run("check", "--expect", before, rootfs, *COMMAND)
    assert done.returncode == (4 if differ else 0)
    assert done.stdout == after + "\n"
    if differ:
        said = done.stderr.splitlines()[-1]
        assert f"{os.uname().nodename}: a container of {rootfs} would not get here" in said
        assert ("it is refused here and proved there" in said) is ("verdict" in differ)
        assert ("the contents of files differ" in said) is ("contents" in differ)
    else:
        assert done.stderr == ""


def test_requests_and_commands(node: Node, rootfs: Path) -> None:
    """What is asked for decides; a command that nobody can follow is no failure."""
    asked, none = word(node, rootfs, *COMMAND), word(node, rootfs, "--", APP)
    assert (parts(none)["verdict"], parts(none)["files"], parts(none)["profile"]) == ("nothing", "0", "none")
    assert int(parts(asked)["files"].partition(".")[0]) > 1
    assert parts(word(node, rootfs, *WISH, "--", "/bin/sleep"))["verdict"] in ("unproved", "proved")


def test_one_of_several_is_enough(node: Node, rootfs: Path) -> None:
    own, none = word(node, rootfs, *COMMAND), word(node, rootfs, "--", APP)
    other = own.replace("contents=", "contents=7.")
    assert node.run("check", "--expect", none, "--expect", own, rootfs, *COMMAND).returncode == 0
    done = node.run("check", "--expect", none, "--expect", other, rootfs, *COMMAND)
    assert done.returncode == 4
    assert "where the digest comes from: the contents of files differ. Site admin:" in done.stderr  # the nearest


def test_as_json(node: Node, rootfs: Path) -> None:
    said = document(node, "--digest", rootfs, *COMMAND)
    assert (said["digest"], said["differs"]) == (word(node, rootfs, *COMMAND), [])
    done = node.run("check", "--json", "--expect", word(node, rootfs, "--", APP), rootfs, *COMMAND)
    assert done.returncode == 4
    assert '"differs": [\n  "verdict"' in done.stdout


def test_a_bundle(node: Node, rootfs: Path, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle", rootfs, annotations={"org.supercontainers.mpi": "mpich"})
    assert parts(word(node, made, "--", APP)) == parts(word(node, rootfs, *COMMAND))


@pytest.mark.parametrize("text", ["", "x", "0,image=1", "1", "1,verdict=proved"])
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(UsageError, match="this is no digest"):
        digest.parse(text)


@pytest.mark.parametrize(("options", "says"), [
    (("--digest", "--inventory", "alpha.json"), "leave --inventory out"), (("--expect", "x"), "this is no digest"),
])
def test_usage(tmp_path: Path, options: Tuple[str, ...], says: str) -> None:
    done = Node(tmp_path).run("check", *options, "/", *COMMAND)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_a_refusal_says_why(node: Node, rootfs: Path) -> None:
    too_new(node, rootfs)
    done = node.run("check", "--digest", rootfs, *COMMAND)
    assert done.returncode == 1
    assert ",verdict=refused," in done.stdout
    assert done.stderr.startswith(f"{os.uname().nodename}: error: ") and "GLIBC_9.99" in done.stderr
    assert done.stderr.count("\n") == 1
