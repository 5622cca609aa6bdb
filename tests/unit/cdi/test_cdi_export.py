"""Specifications of the Container Device Interface: what the command writes, held against CDI's own schema."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List

import pytest
from jsonschema import Draft7Validator

from oci_hpc_hooks.apply import cdi
from oci_hpc_hooks.cli import cdi as command
from oci_hpc_hooks.inputs import gpus
from oci_hpc_hooks.model import PROVED, Plan
from oci_hpc_hooks.situation import Gpu
from oci_hpc_hooks.situation import Node as NodeOfGpus
from tests.unit.cli.test_check import APP, WISH, node, rootfs  # noqa: F401
from tests.unit.cli.test_cli import Node, mask_shipped, valid

DATA = Path(__file__).parent / "data"
COMMAND = (*WISH, "--", APP)

#: What release of CDI has brought which key, and what else it lets in (specs-go/version.go).
FILE = {"source": "/a", "destination": "/b", "type": "bind", "options": ["bind", "ro"]}
TMPFS = {"source": "oci-hpc-hooks", "destination": "/t", "type": "tmpfs", "options": []}


def by_schema(document: Any) -> List[str]:
    """What CDI's own schema has against a document. That one leaves unknown keys alone, which its library does not: every key must be
    described too."""
    defs = json.loads((DATA / "defs.json").read_text())
    schema = {**json.loads((DATA / "schema.json").read_text().replace("defs.json#", "#")), **defs}
    wrong = [error.message for error in Draft7Validator(schema).iter_errors(document)]
    kinds = {"deviceNodes": "DeviceNode", "mounts": "Mount", "hooks": "Hook"}
    for device in document.get("devices", ()):
        edits = device["containerEdits"]
        wrong += set(edits) - set(defs["definitions"]["containerEdits"]["properties"])
        wrong += [f"{kind}: {key}" for kind, name in kinds.items() for row in edits.get(kind, ()) for key in row
                  if key not in defs["definitions"][name]["properties"]]
    return wrong + list(set(document) - set(schema["properties"]))


@pytest.mark.parametrize(("name", "mounts", "annotations", "version"), [
    ("all", [FILE], {}, "0.3.0"), ("all", [FILE, TMPFS], {}, "0.4.0"), ("0", [FILE, TMPFS], {}, "0.5.0"),
    ("0", [FILE], {"a.org/b": "c"}, "0.6.0")])
def test_the_lowest_version_that_has_it(name: str, mounts: List[Dict[str, Any]], annotations: Dict[str, str], version: str) -> None:
    document = cdi.document("vendor.org/x", {name: cdi.edits(mounts, ["/dev/null"])}, annotations)
    assert document["cdiVersion"] == version
    assert by_schema(document) == []


def test_a_class_with_a_dot() -> None:
    assert cdi.document("vendor.org/el.7", {"all": cdi.edits([FILE], ())}, {})["cdiVersion"] == "0.6.0"


def test_what_a_later_mount_hides_is_left_out() -> None:
    """An engine sorts by depth: a file bound over the image's in a directory that is covered after it would come up again."""
    def row(target: str, *over: int) -> List[Any]:
        return ["/host/" + target, 1, 2, 3, target, *over]

    record: Dict[str, Any] = {
        "tree_at": "/dev/.oci-hpc", "dirs": ["lib", "lib/ucx"], "tree": [row("lib/ucx/a.so")], "files": [], "cache": None,
        "in_place": [row("/usr/lib/ucx/a.so", 1, 2, 3), row("/usr/lib/ucxx.so", 1, 2, 3)],
        "modules": [["lib/ucx", "/usr/lib/ucx", 4, 5]],
    }
    made = [(mount["containerPath"], mount.get("type")) for mount in cdi.of_plan(record, "", ())["mounts"]]
    assert made == [("/dev/.oci-hpc", "tmpfs"), ("/dev/.oci-hpc/lib/ucx/a.so", None), ("/usr/lib/ucxx.so", None), ("/usr/lib/ucx", "tmpfs"),
                    ("/usr/lib/ucx/a.so", None)]


@pytest.mark.parametrize(("text", "identity", "name"), [
    ("registry:5000/a/Solver:1.2", "0123456789abcdef", "solver-0123456789ab"), ("solver@sha256:00", "f" * 64, "solver-ffffffffffff"),
    ("/srv/root fs/", "", "root-fs"), ("...", "a" * 64, "aaaaaaaaaaaa")])
def test_names(text: str, identity: str, name: str) -> None:
    assert cdi.name_of(text, identity) == name and cdi.is_name(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a=b", "a/b", ".", "ä"])
def test_no_names(name: str) -> None:
    assert not cdi.is_name(name)


@pytest.mark.parametrize(("closed", "wanted"), [([], ["/dev/null", "/dev/kmsg"]), (["acme"], ["/dev/null"])])
def test_gpus_on_the_word_of_the_image(monkeypatch: pytest.MonkeyPatch, closed: List[str], wanted: List[str]) -> None:
    """Only those that anybody may open, as at a start of root's."""
    assert os.stat("/dev/kmsg").st_mode & 0o006 != 0o006
    found = NodeOfGpus()
    found.gpus = {"acme": [Gpu(0, nodes=("/dev/null",)), Gpu(1, nodes=("/dev/kmsg",))]}
    monkeypatch.setattr(gpus, "node", lambda stacks: found)
    assert command._devices(Plan(PROVED, ()), {"closed": closed}) == wanted


def test_arguments_for_charliecloud() -> None:
    """Each file once, whatever number of devices brings it."""
    edits = cdi.of_files([("/a b", "/c"), ("/d", "/e")], ["/dev/null"])
    made = command.Written("v/c", "", cdi.document("v/c", {"all": edits, "0": edits}, {}))
    assert command._bind_arguments([made]) == ["-b '/a b:/c'", "-b /d:/e"]


# ------------------------------------------------------------------------------------------------------------ the command

def test_an_image(node: Node, rootfs: Path, tmp_path: Path) -> None:
    out = tmp_path / "cdi"
    done = node.run("cdi", "--json", "--image", rootfs, "--output", out, *COMMAND)
    assert done.returncode == 0, done.stderr
    (one,) = valid(done.stdout, "cdi-output")["specifications"]
    assert (one["kind"], one["devices"]) == ("oci-hpc-hooks.org/image", ["root"])
    spec, cache = out / "oci-hpc-hooks.org-image-root.json", out / "oci-hpc-hooks.org-image-root.ldcache"
    assert sorted(out.iterdir()) == [spec, cache] and one["file"] == str(spec)
    assert {path.stat().st_mode & 0o777 for path in (spec, cache)} == {0o644}
    document = json.loads(spec.read_text())
    assert document == one["document"] and by_schema(document) == [] and document["cdiVersion"] == "0.4.0"
    mounts = {mount["containerPath"]: mount for mount in document["devices"][0]["containerEdits"]["mounts"]}
    assert mounts["/etc/ld.so.cache"]["hostPath"] == str(cache)
    assert all("ro" in mount["options"] and "nosuid" in mount["options"] and "nodev" in mount["options"] for mount in mounts.values())
    assert all(Path(mount["hostPath"]).is_file() for mount in mounts.values() if "type" not in mount)


def test_what_it_comes_from(node: Node, rootfs: Path, tmp_path: Path) -> None:
    done = node.run("cdi", "--annotate", "--name", "a.0", "--image", rootfs, "--output", tmp_path, *COMMAND)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "oci-hpc-hooks.org-image-a.0.json").read_text())
    assert by_schema(document) == [] and document["cdiVersion"] == "0.6.0"
    digest = node.run("check", "--digest", rootfs, *COMMAND).stdout.strip()
    says = {key.partition("/")[2]: value for key, value in document["annotations"].items()}
    assert says == {"image": str(rootfs), "digest": digest, "inventory": says["inventory"]}
    assert len(says["inventory"]) == 16


def test_yaml(node: Node, rootfs: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is optional")
    for option, ending in ((), ".json"), (("--yaml",), ".yaml"):
        assert node.run("cdi", *option, "--image", rootfs, "--output", tmp_path / "cdi", *COMMAND).returncode == 0
        text = (tmp_path / f"cdi/oci-hpc-hooks.org-image-root{ending}").read_text()
        made = yaml.safe_load(text) if option else json.loads(text)
        assert made["kind"] == "oci-hpc-hooks.org/image" and by_schema(made) == []


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (["--image", "ROOT", "--", APP], 1, "there is nothing to write"),
    (["--image", "ROOT", *COMMAND], 2, "give --output DIR"),
    (["--image", "ROOT", "--name", "a b", "--output", "OUT", *COMMAND], 2, "begins and ends with a letter or digit"),
    (["--image", "ROOT", "ours"], 2, "give one or the other"),
    (["--name", "x"], 2, "belong to --image"),
    (["nonsense"], 2, "this node has no profile 'nonsense'"),
    ([], 2, "there is nothing to write"),
    (["ours"], 2, "of ours none has devices or files that are the same for every image"),
    (["--image", "ROOT", "--output", "/proc/cdi", *COMMAND], 2, "/proc/cdi"),
])
def test_what_is_not_written(node: Node, rootfs: Path, tmp_path: Path, arguments: List[str], code: int, says: str) -> None:
    words = [str(rootfs) if word == "ROOT" else str(tmp_path / "cdi") if word == "OUT" else word for word in arguments]
    done = node.run("cdi", *words)
    assert done.returncode == code and says in done.stderr and done.stdout == "", done.stderr
    assert not (tmp_path / "cdi").exists()


@pytest.fixture
def plain(tmp_path: Path) -> Node:
    """A node without libraries."""
    if tmp_path.stat().st_uid != 0:
        pytest.skip("configuration counts only if root owns it")
    made = Node(tmp_path / "node")
    mask_shipped(made)
    return made


def profile(node: Node, name: str, **keys: object) -> None:
    document = {"version": 1, "name": name, "description": "test", "provides": {"launcher": name}, **keys}
    (node.etc / f"profiles.d/{name}.json").write_text(json.dumps(document))
    done = node.run("scan")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_profile(plain: Node) -> None:
    profile(plain, "imaginary", devices=["/dev/nul*", "/dev/no-such-device"])
    done = plain.run("cdi", "imaginary")
    document = json.loads(done.stdout)
    assert by_schema(document) == []
    assert document == {"cdiVersion": "0.3.0", "kind": "oci-hpc-hooks.org/imaginary", "devices": [
        {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/null", "permissions": "rw"}]}}]}
    assert done.stderr.startswith("note: not in oci-hpc-hooks.org/imaginary: what a launcher gives its ranks")


def test_several_profiles(plain: Node, tmp_path: Path) -> None:
    profile(plain, "one", devices=["/dev/null"])
    profile(plain, "two", devices=["/dev/zero"])
    assert "name one of the profiles" in plain.run("cdi").stderr
    assert plain.run("cdi", "--output", tmp_path / "cdi").returncode == 0
    assert sorted(path.name for path in (tmp_path / "cdi").iterdir()) == ["oci-hpc-hooks.org-one.json", "oci-hpc-hooks.org-two.json"]
    said = valid(plain.run("cdi", "--json").stdout, "cdi-output")
    assert [one["kind"] for one in said["specifications"]] == ["oci-hpc-hooks.org/one", "oci-hpc-hooks.org/two"]
