"""CDI specifications that a node has: which count, what a device means, and a driver that is resolved by one."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import cdi, inventory
from oci_hpc_hooks.inputs.scan import scan
from oci_hpc_hooks.inputs.site import Configuration
from oci_hpc_hooks.model import Profile, ProfileLibrary, ResolvedProfile, Site, SiteProfile
from tests.unit.cdi.driver import HOOK, LIB, hook, specification
from tests.unit.config.node_bed import build

DATA = Path(__file__).parent / "data"
GOOD: Dict[str, Any] = {
    "cdiVersion": "0.6.0", "kind": "vendor.com/device", "annotations": {"a": "b"},
    "devices": [{"name": "0", "containerEdits": {
        "env": ["A=b"], "deviceNodes": [{"path": "/dev/null", "hostPath": "/dev/null", "permissions": "rw"}],
        "mounts": [{"hostPath": "/etc/passwd", "containerPath": "/a", "options": ["ro"], "type": "none"}],
        "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["x", "update-ldcache"], "timeout": 1}]}}],
    "containerEdits": {"env": []},
}
EDITS = ("devices", 0, "containerEdits")
REMOVE = object()


def changed(value: object, *path: Any) -> Any:
    document = copy.deepcopy(GOOD)
    at: Any = document
    for step in path[:-1]:
        at = at[step]
    if value is REMOVE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return document


def later(value: object, key: str) -> Any:
    return {**changed(value, *EDITS, key), "cdiVersion": "1.1.0"}


@pytest.mark.parametrize("name", ["spec-example.json", "minimal.json"])
def test_those_that_cdi_calls_good(name: str) -> None:
    cdi.check(json.loads((DATA / name).read_text()))
    cdi.check(GOOD)
    cdi.check(later({"closID": "x", "schemata": ["L3:0=f"], "enableMonitoring": True}, "intelRdt"))
    cdi.check(later([{"hostInterfaceName": "eth0", "name": "net1"}], "netDevices"))
    cdi.check(changed(None, *EDITS, "deviceNodes", 0, "major"))


@pytest.mark.parametrize(("document", "says"), [
    # schema/testdata/bad of CDI
    (None, "is no object"), ({}, "has no cdiVersion"),
    ([], "is no object"), (changed(REMOVE, "kind"), "has no kind"), (changed(REMOVE, "devices"), "has no devices"),
    (changed("1.2.0", "cdiVersion"), "'1.2.0' is not known"), (changed(0.6, "cdiVersion"), "is not known"),
    (changed("0.6", "cdiVersion"), "is not known"), (changed("vendor.com", "kind"), "is no kind"), (changed("-/a", "kind"), "is no kind"),
    (changed("a/b/c", "kind"), "is no kind"), (changed(1, "kind"), "is no kind"), (changed([], "devices"), "it has no devices"),
    (changed({}, "devices"), "is no list"), (changed({"name": "x"}, "devices", 0), "devices[0] has no containerEdits"),
    (changed("a b", "devices", 0, "name"), "is no name"), (changed(1, "devices", 0, "name"), "is no name"),
    (changed([GOOD["devices"][0]] * 2, "devices"), "is there twice"), (changed({}, *EDITS), "devices[0] edits nothing"),
    (changed({"env": []}, *EDITS), "edits nothing"), (changed([], *EDITS), "is no object"),
    (changed(1, "colour"), "does not know: 'colour'"), (changed(1, *EDITS, "mount"), "does not know: 'mount'"),
    (changed("x", *EDITS, "mounts", 0, "source"), "does not know: 'source'"), (changed(["A"], *EDITS, "env"), "'A' is no NAME=value"),
    (changed(["=A"], *EDITS, "env"), "is no NAME=value"), (changed("A=b", *EDITS, "env"), "is no list"),
    (changed("", *EDITS, "mounts", 0, "hostPath"), "is no path"), (changed(1, *EDITS, "mounts", 0, "containerPath"), "is no path"),
    (changed(REMOVE, *EDITS, "mounts", 0, "containerPath"), "has no containerPath"),
    (changed("ro", *EDITS, "mounts", 0, "options"), "options is no list"), (changed([1], *EDITS, "mounts", 0, "options"), "strings"),
    (changed(REMOVE, *EDITS, "deviceNodes", 0, "path"), "has no path"),
    (changed("x", *EDITS, "deviceNodes", 0, "type"), "no type of a device"),
    (changed("create", *EDITS, "hooks", 0, "hookName"), "is no hook"), (changed("true", *EDITS, "hooks", 0, "path"), "is no hook"),
    (changed([1], *EDITS, "hooks", 0, "args"), "no list of strings"), (changed({"x": 1}, "containerEdits"), "does not know: 'x'"),
    (changed("9" * 5000 + ".6.0", "cdiVersion"), "is not known"), (changed("0.6.0\n", "cdiVersion"), "is not known"),
    # values that Go's decoder does not put into its types
    (changed({"a": 1}, "annotations"), "annotations.a is no string"), (changed("x", "annotations"), "annotations is no object"),
    (changed([1], "devices", 0, "annotations"), "annotations is no object"),
    (changed("1", *EDITS, "deviceNodes", 0, "major"), "major is no whole number"),
    (changed(True, *EDITS, "deviceNodes", 0, "minor"), "minor is no whole number"),
    (changed(-1, *EDITS, "deviceNodes", 0, "uid"), "uid is no whole number from 0 to 4294967295"),
    (changed(1, *EDITS, "deviceNodes", 0, "permissions"), "permissions is no string"),
    (changed(1.5, *EDITS, "hooks", 0, "timeout"), "timeout is no whole number"),
    (changed(7, *EDITS, "mounts", 0, "type"), "type is no string"),
    (changed([1], *EDITS, "hooks", 0, "env"), "env is no list of strings"),
    (later([None, "x"], "additionalGids"), "additionalGids.1 is no whole number"), (later({"x": 1}, "intelRdt"), "does not know: 'x'"),
    (later({"closID": 1}, "intelRdt"), "closID is no string"), (later({"schemata": [1]}, "intelRdt"), "schemata is no list of strings"),
    (later({"enableCMT": 1}, "intelRdt"), "enableCMT is neither true nor false"),
    (later([{"name": "a"}], "netDevices"), "netDevices[0] has no hostInterfaceName"),
    (later([{"name": "a", "hostInterfaceName": 1}], "netDevices"), "hostInterfaceName is no string"),
    # what came later than the version says
    (changed("0.5.0", "cdiVersion"), "annotations came with cdiVersion 0.6.0, and it says 0.5.0"),
    (changed([5], *EDITS, "additionalGids"), "additionalGids came with cdiVersion 0.7.0"),
    (changed({"closID": "x"}, *EDITS, "intelRdt"), "intelRdt came with cdiVersion 0.7.0"),
    (changed([{"hostInterfaceName": "a", "name": "b"}], *EDITS, "netDevices"), "netDevices came with cdiVersion 1.1.0"),
    ({**changed(REMOVE, "annotations"), "cdiVersion": "0.4.0"}, "begins with a digit came with cdiVersion 0.5.0"),
    ({**changed(REMOVE, "annotations"), "cdiVersion": "0.5.0", "kind": "a/b.c"}, "a class with a dot came with cdiVersion 0.6.0"),
])
def test_those_that_no_engine_loads(document: Any, says: str) -> None:
    with pytest.raises(cdi._Wrong) as error:
        cdi.check(document)
    assert says in str(error.value)


# ------------------------------------------------------------------------------------------------------------ which counts

@pytest.fixture
def folders(tmp_path: Path) -> Tuple[Path, Path]:
    if tmp_path.stat().st_uid != 0:
        pytest.skip("a specification counts only if root owns it")
    for name in ("static", "dynamic"):
        (tmp_path / name).mkdir()
    return tmp_path / "static", tmp_path / "dynamic"


def simple(path: str, **more: Any) -> str:
    return json.dumps({"cdiVersion": "0.5.0", "kind": "vendor.com/device", "devices": [
        {"name": "0", "containerEdits": {"mounts": [{"hostPath": path, "containerPath": path}]}}], **more})


def find(folders: Tuple[Path, Path], name: str = "vendor.com/device=0") -> cdi.Device:
    return cdi.find(name, tuple(map(str, folders)))


def test_the_later_folder_goes_first(folders: Tuple[Path, Path]) -> None:
    (folders[0] / "a.json").write_text(simple("/etc/passwd"))
    (folders[1] / "b.json").write_text(simple("/etc/group"))
    assert find(folders).mounts == (("/etc/group", "/etc/group"),)
    (folders[1] / "b.json").write_text("{")  # disables itself alone
    assert find(folders).mounts == (("/etc/passwd", "/etc/passwd"),)
    assert cdi.consulted(tuple(map(str, folders))) == [*map(str, folders), str(folders[0] / "a.json"), str(folders[1] / "b.json")]


def test_twice_in_a_folder_is_nobodys(folders: Tuple[Path, Path]) -> None:
    for name in ("a.json", "b.json"):
        (folders[1] / name).write_text(simple("/etc/passwd"))
    with pytest.raises(ConfigError, match=f"{folders[1]}/a.json and {folders[1]}/b.json, which makes it nobody's"):
        find(folders)


def test_files_that_others_can_write_do_not_count(folders: Tuple[Path, Path]) -> None:
    (folders[0] / "a.json").write_text(simple("/etc/passwd"))
    (folders[0] / "a.json").chmod(0o666)
    with pytest.raises(ConfigError, match=f"there is no CDI device .*{folders[0]}/a.json is owned by uid 0 with mode 0666"):
        find(folders)


@pytest.mark.parametrize("name", ["c.txt", ".json.swp", "sub/a.json"])
def test_other_files_are_not_looked_at(folders: Tuple[Path, Path], name: str) -> None:
    (folders[0] / name).parent.mkdir(exist_ok=True)
    (folders[0] / name).write_text(simple("/etc/passwd"))
    with pytest.raises(ConfigError, match="write it with the vendor's generator"):
        find(folders)


def test_yaml(folders: Tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is optional")
    (folders[0] / "a.yaml").write_text("---\n" + yaml.safe_dump(json.loads(simple("/etc/passwd"))))
    assert find(folders).file == str(folders[0] / "a.yaml")
    for text in ("a: [", "a: !!python/object/apply:os.system [true]", "a: !!int ''", "a: !!bool x", "a: !!timestamp x"):
        (folders[0] / "a.yaml").write_text(text)
        with pytest.raises(ConfigError, match="it is no YAML"):
            find(folders)


def test_yaml_without_a_library(folders: Tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    (folders[0] / "a.yaml").write_text("a: b")
    with pytest.raises(ConfigError, match="PyYAML is not installed"):
        find(folders)


# ------------------------------------------------------------------------------------------------------------ what it means

def meaning(**edits: Any) -> cdi.Device:
    return cdi._gather(cdi.Device("a/b=c", "/etc/cdi/x.json"), edits)


def test_what_is_not_there_any_more() -> None:
    found = meaning(mounts=[{"hostPath": "/no/such", "containerPath": "/a"}])
    assert found.mounts == () and "/etc/cdi/x.json is out of date: /no/such is not there; write it again" in found.problems[0]


def test_hooks() -> None:
    found = meaning(hooks=[hook("create-symlinks", "--link", "a.so.1::/usr/lib/a.so", "--link=../b::/x/c/d"), hook("update-ldcache"),
                           hook("chmod"), {"hookName": "prestart", "path": "/opt/vendor/run", "args": ["run", "--now"]}])
    assert found.links == (("/usr/lib/a.so", "a.so.1"), ("/x/c/d", "../b"))
    assert [problem for problem in found.problems if "wants the hook /opt/vendor/run --now" in problem] == list(found.problems) != []
    assert [note for note in found.notes if "nvidia-cdi-hook chmod" in note] == list(found.notes) != []


def test_devices_and_the_rest() -> None:
    nodes = [{"path": "/dev/a"}, {"path": "/dev/b", "hostPath": "/dev/b"}, {"path": "/dev/c", "hostPath": "/dev/d"}, {"path": "/etc/x"},
             {"path": "/dev/../etc/y"}, {"path": "/dev/e*"}]
    found = meaning(deviceNodes=nodes, env=["A=b"], additionalGids=[44], mounts=[{"hostPath": "t", "containerPath": "/t", "type": "tmpfs"}])
    assert found.devices == ("/dev/a", "/dev/b") and found.problems == ()
    assert [note.split(" is ")[0] for note in found.notes] == [
        "the mount /t", "the device /dev/c", "the device /etc/x", "the device /etc/y", "the device /dev/e*", "the variable A=b",
        "additionalGids"]


# ------------------------------------------------------------------------------------------------------------ a driver

RELEASE = "1.2.3"
DRIVER = Profile("acme", "test", {"gpu": "acme"}, (ProfileLibrary("libcuda.so.1", "replace", ("libcuda.so",)),), source="test",
                 companions=(f"{LIB}/current/lib*.so.$VERSION",), files=("/usr/bin/nvidia-smi", f"{LIB}/gbm/nvidia-drm_gbm.so"),
                 search=(f"{LIB}/current",), devices=("/dev/nvidia*",))


@pytest.fixture
def root(folders: Tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver below a root of its own, and where specifications are looked for."""
    made = tmp_path / "driver"
    here = made / LIB[1:] / "current"
    cuda = build(here / f"libcuda.so.{RELEASE}", soname="libcuda.so.1", exports=("cuInit",))
    build(here / f"libnvidia-allocator.so.{RELEASE}", soname="libnvidia-allocator.so.1", exports=("alloc",), needed=[cuda])
    for name in ("libcuda.so.1", "libnvidia-allocator.so.1"):
        (here / name).symlink_to(name[:-1] + RELEASE)
    (here / "libcuda.so").symlink_to("libcuda.so.1")
    (made / LIB[1:] / "gbm").mkdir()
    (made / LIB[1:] / "gbm/nvidia-drm_gbm.so").symlink_to("../current/libnvidia-allocator.so.1")
    (made / "usr/bin").mkdir()
    (made / "usr/bin/nvidia-smi").write_text("#!/bin/sh\n")
    for function in (cdi.find, cdi.consulted):
        monkeypatch.setattr(function, "__defaults__", (tuple(map(str, folders)),))
    return made


def resolve(tmp: Path, profile: Profile, root: str = "", device: str = "") -> Tuple[ResolvedProfile, Tuple[str, ...]]:
    found = scan(Configuration(Site(profiles=(SiteProfile("acme", root=root, cdi=device),)), (profile,), ()))
    inventory.write(found.inventory, str(tmp / "state"), (str(tmp / "state"),))
    assert inventory.load(str(tmp / "state"), (str(tmp / "state"),)) == found.inventory
    return found.inventory.profiles[0], found.notes["profile acme"]


def write(folder: Path, document: Dict[str, Any]) -> None:
    (folder / "nvidia.json").write_text(json.dumps(document))


def files(found: ResolvedProfile) -> List[Tuple[str, str]]:
    return sorted([*((file.path, file.real) for file in found.files), *((library.path, library.real) for library in found.libraries)])


@pytest.mark.parametrize("place", ["site", "profile"])
def test_the_same_as_by_the_profiles_own_lists(folders: Tuple[Path, Path], root: Path, tmp_path: Path, place: str) -> None:
    write(folders[1], specification(root, RELEASE))
    by_profile = replace(DRIVER, cdi="nvidia.com/gpu=all")
    found, notes = resolve(tmp_path, by_profile) if place == "profile" else resolve(tmp_path, DRIVER, device=by_profile.cdi)
    listed, _ = resolve(tmp_path, DRIVER, root=str(root))
    assert found.problems == listed.problems == ()
    assert replace(found, devices=listed.devices) == listed and len(files(found)) == 4
    assert found.devices == ("/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl", "/dev/nvidia0")
    assert len(notes) == 2 and all("nvidia.com/gpu=all" in note for note in notes)


def test_paths_of_containers_are_those_of_the_specification(folders: Tuple[Path, Path], root: Path, tmp_path: Path) -> None:
    document = specification(root, RELEASE)
    mounts = document["containerEdits"]["mounts"]
    for mount in mounts:
        mount["containerPath"] = mount["containerPath"].replace(f"{LIB}/current", "/usr/lib64")
    document["containerEdits"]["hooks"] = [hook("create-symlinks", "--link", "libcuda.so.1::/usr/lib64/libcuda.so.0")]
    write(folders[0], document)
    found, _ = resolve(tmp_path, DRIVER, device="nvidia.com/gpu=0")
    assert [(library.path, library.replaces) for library in found.libraries] == [
        ("/usr/lib64/libcuda.so.1", ("libcuda.so", "libcuda.so.0")), (f"/usr/lib64/libnvidia-allocator.so.{RELEASE}", ())]
    assert [file.path for file in found.files] == ["/usr/bin/nvidia-smi"]


def stale(document: Dict[str, Any], root: Path) -> None:
    (root / LIB[1:] / f"current/libcuda.so.{RELEASE}").unlink()


def foreign_hook(document: Dict[str, Any], root: Path) -> None:
    document["containerEdits"]["hooks"].append({"hookName": "createRuntime", "path": HOOK, "args": ["x", "conquer"]})


def no_library(document: Dict[str, Any], root: Path) -> None:
    document["containerEdits"]["mounts"] = document["containerEdits"]["mounts"][-1:]


def gap(document: Dict[str, Any], root: Path) -> None:
    lost = build(root / "libtestlost.so.1", exports=("lost",))
    build(root / LIB[1:] / f"current/libcuda.so.{RELEASE}", soname="libcuda.so.1", needed=[lost])
    lost.unlink()


@pytest.mark.parametrize(("change", "says"), [
    (stale, "is out of date: "), (foreign_hook, f"wants the hook {HOOK} conquer"),
    (no_library, "there is no libcuda.so.1 or libcuda.so in the CDI device nvidia.com/gpu=all of "),
    (gap, "there is no libtestlost.so.1 on this node"),
])
def test_what_is_not_offered(folders: Tuple[Path, Path], root: Path, tmp_path: Path, change: Callable[[Dict[str, Any], Path], None],
                             says: str) -> None:
    document = specification(root, RELEASE)
    change(document, root)
    write(folders[0], document)
    found, _ = resolve(tmp_path, DRIVER, device="nvidia.com/gpu=all")
    assert len(found.problems) == 1 and says in found.problems[0]


def test_a_new_specification_makes_the_inventory_stale(folders: Tuple[Path, Path], root: Path, tmp_path: Path) -> None:
    found, _ = resolve(tmp_path, DRIVER, device="nvidia.com/gpu=all")
    assert "there is no CDI device nvidia.com/gpu=all" in found.problems[0] and found.libraries == ()
    state = str(tmp_path / "state")
    assert not inventory.is_stale(inventory.load(state, (state,)))
    write(folders[1], specification(root, RELEASE))
    assert inventory.is_stale(inventory.load(state, (state,)))
    found, _ = resolve(tmp_path, DRIVER, device="nvidia.com/gpu=all")
    assert found.problems == () and not inventory.is_stale(inventory.load(state, (state,)))
    os.utime(folders[1] / "nvidia.json", (1, 1))
    assert inventory.is_stale(inventory.load(state, (state,)))
