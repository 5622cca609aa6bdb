"""``profiles`` with its three actions as a person meets them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.cli.test_cli import Node, mask_shipped, node, valid  # noqa: F401
from tests.unit.config.node_bed import MPICH, build


@pytest.fixture
def library(node: Node) -> Path:  # noqa: F811
    return build(node.lib / "libmpi.so.12", exports=MPICH)


def test_a_draft_is_valid_and_scan_uses_it(node: Node, library: Path) -> None:  # noqa: F811
    mask_shipped(node)
    file = node.etc / "profiles.d/vendor.json"
    drafted = node.run("profiles", "draft", library, "--output", file)
    assert (drafted.returncode, drafted.stdout, drafted.stderr) == (0, "", "")
    assert node.run("validate", file).stdout == f"{file}: ok\n"
    assert f"vendor: available (profile {file})\n  replace libmpi.so.12, also as libmpich.so.12: {library}\n" in node.run("scan").stdout


def test_a_folder_that_is_not_there_is_made_for_it(node: Node, library: Path, tmp_path: Path) -> None:  # noqa: F811
    file = node.etc / "profiles.d/vendor.json"
    file.parent.rmdir()
    umask = os.umask(0o077)
    try:
        assert node.run("profiles", "draft", library, "--output", file).stderr == ""
    finally:
        os.umask(umask)
    assert file.is_file() and file.parent.stat().st_mode & 0o777 == 0o755
    result = node.run("profiles", "draft", library, "--output", tmp_path / "no/such/vendor.json")
    assert result.stderr == (f"oci-hpc-hooks: {tmp_path}/no/such/vendor.json cannot be written: No such file or directory. User: make "
                             f"{tmp_path}/no/such writable, or name another file.\n")


def test_a_site_that_names_its_mpis_keeps_it_off(node: Node, library: Path) -> None:  # noqa: F811
    node.site(profiles=["mpich", "slurm"])
    draft = ("profiles", "draft", library, "--output")
    (said,) = node.run(*draft, node.etc / "profiles.d/vendor.json").stderr.splitlines()
    assert f'vendor: it is off as long as {node.etc}/site.json names only mpich: add "vendor" to its profiles' in said
    node.site(profiles=["slurm"])
    assert node.run(*draft, node.etc / "profiles.d/other.json").stderr == ""


def test_on_standard_output(node: Node, library: Path) -> None:  # noqa: F811
    for words in ("draft", library), ("draft", library, "--json"), ("--json", "draft", library):
        document = valid(node.run("profiles", *words).stdout, "profile")
        assert (document["name"], document["search"]) == ("site-mpich", [str(node.lib)])
    assert json.loads(node.run("profiles", "draft", "--name", "vendor", library).stdout)["name"] == "vendor"


def test_what_stands_in_its_way_is_told_beside_it(node: Node, library: Path) -> None:  # noqa: F811
    dependency = build(node.lib / "libtestdep.so.1")
    build(library, exports=MPICH, needed=[dependency])
    dependency.unlink()
    result = node.run("profiles", "draft", library)
    assert result.returncode == 0
    valid(result.stdout, "profile")
    assert result.stderr == ("oci-hpc-hooks: site-mpich: not available on this node: there is no libtestdep.so.1 on this node, which "
                             f"{library} needs\n")


def test_no_file_is_overwritten(node: Node, library: Path, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "vendor.json"
    file.write_text("mine")
    link = tmp_path / "link.json"
    link.symlink_to("nowhere")
    for path in file, link:
        result = node.run("profiles", "draft", library, "--output", path)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == (f"oci-hpc-hooks: {path} is there already and is not overwritten. User: name another file, or remove "
                                 "it.\n")
    assert file.read_text() == "mine" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("words", "says"), [
    (["--output", "vendor"], "a profile's file is its name and .json. User: give it a name that ends so"),
    (["--output", "vendor.json", "--name", "other"], "a profile's file is its name and .json. User: call it other.json"),
    (["--output", "/proc/none/vendor.json"], "cannot be written: No such file or directory"),
    (["--name", "-x-"], 'expected one argument'),
    (["--name", "X"], '$.name: "X" is not a name of lower-case letters'),
])
def test_names(node: Node, library: Path, words: list[str], says: str) -> None:  # noqa: F811
    result = node.run("profiles", "draft", library, *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert says in result.stderr
    assert not Path("vendor.json").exists()


def test_no_library(node: Node, tmp_path: Path) -> None:  # noqa: F811
    result = node.run("profiles", "draft", tmp_path)
    assert (result.returncode, result.stderr) == (2, f"oci-hpc-hooks: {tmp_path} is a directory, not a shared library.\n")
    error = valid(node.run("profiles", "draft", "--json", tmp_path).stdout, "error-output")
    assert error["error"] == f"{tmp_path} is a directory, not a shared library."


def test_list(node: Node, library: Path) -> None:  # noqa: F811
    ours = node.profile("ours", "libmpi.so.12")
    broken = node.profile("broken", "libnowhere.so.1")
    (node.etc / "profiles.d/openmpi.json").write_text(json.dumps({"version": 1, "name": "openmpi", "masked": True}))
    node.site(profiles=["ours", "broken"])
    before = node.run("profiles", "list").stdout
    assert f"ours: on, not scanned ({ours})\n" in before and "inventory of this node is missing" in before
    node.run("scan")
    lines = node.run("profiles", "list").stdout.splitlines()
    assert lines[:3] == [f"ours: on, available ({ours})", f"  {library}", f"broken: on, not available ({broken})"]
    assert lines[3].startswith("  problem: there is no libnowhere.so.1 in")
    assert lines[-1] == "openmpi: masked"
    assert any(line.startswith("mpich: off (") for line in lines)
    document = valid(node.run("profiles", "list", "--json").stdout, "profiles-output")
    assert [(entry["name"], entry["state"], entry["available"]) for entry in document["profiles"]][:2] == [
        ("ours", "on", True), ("broken", "on", False)]
    assert document["inventory"] == "current"
    said = {entry["name"]: entry["verified"] for entry in document["profiles"]}
    assert said["ours"] == {} and said["mpich"]["by"] == "hardware" and said["openmpi"] == {}
    node.site(profiles=["mpich"])
    shown = node.run("profiles", "list").stdout
    assert f"  verified by hardware: {said['mpich']['source']}\n" in shown
    node.site(profiles=["ours", "broken"])
    node.run("scan")
    library.unlink()
    assert "the inventory of this node is out of date: run oci-hpc-hooks scan" in node.run("profiles", "list").stdout


def test_where_each_value_comes_from(node: Node, library: Path) -> None:  # noqa: F811
    """The site's words first, then those of the profile's file, then what the scan has found."""
    mask_shipped(node)
    source = node.profile("ours", "libmpi.so.12")
    site = node.site(profiles=[{"name": "ours", "search": ["/opt/first"]}])
    assert node.run("scan").returncode == 0
    said = valid(node.run("profiles", "show", "--json", "ours").stdout, "profile-values-output")
    values = [(value["key"], value["value"], value["from"]) for value in said["values"]]
    search = [value for value in values if value[0] == "search"]
    assert search == [("search", "/opt/first", f"{site} $.profiles[0].search[0]"), ("search", str(node.lib), f"{source} $.search[0]")]
    assert ("libraries.role", "replace", f"{source} $.libraries[0].role") in values
    assert values[-1] == ("libmpi.so.12", str(library), "the last scan: replace")
    plain = node.run("profiles", "show", "ours").stdout
    assert plain.startswith(f"ours: on, available ({source})\n") and f"{site} $.profiles[0].search[0]" in plain


def test_of_a_profile_that_is_masked_there_is_nothing(node: Node) -> None:  # noqa: F811
    mask_shipped(node)
    assert valid(node.run("profiles", "show", "--json", "mpich").stdout, "profile-values-output") == {
        "version": 1, "name": "mpich", "masked": True, "values": []}
    done = node.run("profiles", "show", "mpihc")
    assert done.returncode == 2 and 'did you mean "mpich"' in done.stderr
