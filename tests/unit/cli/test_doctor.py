"""``doctor``: each fault, seeded on its own, is found, and its remedy named."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional

import pytest

from oci_hpc_hooks import cli
from oci_hpc_hooks.cli import doctor
from oci_hpc_hooks.cli.doctor import Descriptor, Executable, Fault, Folder, Program, Rootless
from oci_hpc_hooks.inputs import resources
from oci_hpc_hooks.report import Places
from tests.unit.cli.test_cli import MAIN, Node, mask_shipped, node, valid  # noqa: F401
from tests.unit.config.node_bed import MPICH, build


def codes(faults: Iterable[Fault]) -> List[str]:
    return [fault.code for fault in faults]


# ------------------------------------------------------------------------------------------------------- from facts alone

WELL = [Program("podman", "/usr/bin/podman", "4.9.4-rhel"), Program("crun", "/usr/bin/crun", "1.14")]


@pytest.mark.parametrize(("release", "expected"), [
    ("5.14.0-427.el9.x86_64", []), ("6.1.0-18-amd64", []), ("5.3.18-150300.59-default", ["kernel-old"]), ("4.18.0-553.el8", ["kernel-old"]),
])
def test_kernel(release: str, expected: List[str]) -> None:
    assert codes(doctor.node_faults(release, "absent", "absent")) == expected


def test_security_modules_are_told_and_are_no_fault() -> None:
    found = list(doctor.node_faults("6.1", "enforcing", "enabled"))
    assert codes(found) == ["selinux", "apparmor"] and {fault.severity for fault in found} == {"note"}


@pytest.mark.parametrize(("engines", "expected"), [
    (WELL, []),
    ([], ["engine-missing"]),
    (WELL[:1], ["runtime-missing"]),
    (WELL[1:], []),
    ([Program("podman", "/usr/bin/podman", "3.4.4"), WELL[1]], ["podman-old"]),
    ([Program("podman", "/usr/bin/podman", ""), WELL[1]], ["engine-broken"]),
])
def test_engines(engines: List[Program], expected: List[str]) -> None:
    assert codes(doctor.engine_faults(engines)) == expected


def descriptor(path: str = "/h/oci-hpc-hooks.json", stage: str = "createRuntime", state: str = "ok", **keys: Any) -> Descriptor:
    document: Dict[str, Any] = {"version": "1.0.0", "stages": [stage], "when": {"always": True}, **keys}
    return Descriptor(path, document, executable=Executable("/x/oci-hpc-hooks-createruntime", state, "DETAIL", "REMEDY"))


def folder(*descriptors: Descriptor, path: str = "/h", **keys: Any) -> Folder:
    return Folder(path, **{"origin": "/etc/containers/containers.conf", "exists": True, "descriptors": descriptors, **keys})


@pytest.mark.parametrize(("folders", "expected"), [
    ([folder(descriptor())], []),
    ([], ["hooks-none"]),
    ([folder(Descriptor("/h/other.json", {}, executable=Executable("/bin/other", "ok")))], ["hooks-none"]),
    ([folder(descriptor()), folder(path="/gone", exists=False)], ["folder-missing"]),
    ([folder(descriptor()), folder(path="/gone", exists=False, origin="default")], []),
    ([folder(descriptor(), untrusted=("/h is open", "chmod go-w /h"))], ["folder-untrusted"]),
    # createRuntime and precreate go together; a file of the same name in a later folder takes the first one's place.
    ([folder(descriptor(), descriptor("/h/oci-hpc-hooks-precreate.json", "precreate"))], []),
    ([folder(descriptor()), folder(descriptor("/i/oci-hpc-hooks.json", "prestart"), path="/i")], []),
    ([folder(descriptor()), folder(descriptor("/i/mine.json", "prestart"), path="/i")], ["hooks-twice"]),
])
def test_folders(folders: List[Folder], expected: List[str]) -> None:
    assert codes(doctor.folder_faults(folders)) == expected


@pytest.mark.parametrize(("seeded", "expected"), [
    (descriptor(), []),
    (Descriptor("/h/x.json", problem="is no JSON (…)"), ["descriptor-broken"]),
    (descriptor(version="2.0.0"), ["descriptor-version"]),
    (descriptor(stage="createruntime"), ["descriptor-stage"]),
    (descriptor(stages=[]), ["descriptor-stage"]),
    (descriptor(when={"annotations": {"(": "x"}}), ["descriptor-regex"]),
    (descriptor(when={"annotations": {"x": "(?=y)"}}), ["descriptor-regex"]),
    (descriptor(when={"commands": ["a++"]}), ["descriptor-regex"]),
    (descriptor(state="relative"), ["executable-relative"]),
    (descriptor(state="missing"), ["executable-missing"]),
    (descriptor(state="not a file"), ["executable-not-a-file"]),
    (descriptor(state="not executable"), ["executable-not-executable"]),
    (descriptor(state="noexec"), ["executable-noexec"]),
    (descriptor(state="interpreter"), ["executable-interpreter"]),
    (descriptor(state="untrusted"), ["executable-untrusted"]),
    (descriptor(state="outdated"), ["executable-outdated"]),
])
def test_descriptors(seeded: Descriptor, expected: List[str]) -> None:
    found = list(doctor.descriptor_faults("/h", seeded))
    assert codes(found) == expected
    assert all(fault.remedy and fault.who for fault in found)


@pytest.mark.parametrize("text", ["{", "[" * 4000, "[]", '{"hook": {}}', '{"hook": {"path": 1}}', "\xff"])
def test_what_is_no_descriptor(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    assert codes(doctor.descriptor_faults("/h", doctor.descriptor_at(str(tmp_path / "x.json")))) == ["descriptor-broken"]


@pytest.mark.parametrize("path", ["/\0", "/\ud800"])
def test_an_executable_of_no_path(tmp_path: Path, path: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"version": "1.0.0", "hook": {"path": path}, "when": {}, "stages": ["poststop"]}))
    assert "executable-missing" in codes(doctor.descriptor_faults("/h", doctor.descriptor_at(str(tmp_path / "x.json"))))


def test_precreate_in_a_folder_that_others_read() -> None:
    seeded = descriptor("/h/oci-hpc-hooks-precreate.json", "precreate")
    assert codes(doctor.descriptor_faults("/usr/share/oci-hpc-hooks/hooks.d/podman", seeded)) == []
    for shared in doctor.SHARED:
        assert codes(doctor.descriptor_faults(shared, seeded)) == ["precreate-shared"]


@pytest.mark.parametrize("pattern", ["^libpod$", r"^io\.container\.manager$", r"a+?b*", r"\p{Greek}", "[[:alpha:]]+", r"\\1", "(?i)x",
                                     "(?P<n>x)", r"x\+\+", ""])
def test_expressions_that_podman_takes(pattern: str) -> None:
    assert doctor.regex_problem(pattern) == ""


@pytest.mark.parametrize("pattern", ["(", "[", "*a", r"(a)\1", "(?<=a)b", "(?!a)", "a*+", "a{2}+"])
def test_expressions_that_it_does_not(pattern: str) -> None:
    assert doctor.regex_problem(pattern)


def test_shipped_descriptors_have_no_fault() -> None:
    for name in ("oci-hpc-hooks.json", "cri/oci-hpc-hooks.json", "prestart/oci-hpc-hooks.json", "podman/oci-hpc-hooks.json",
                 "podman/oci-hpc-hooks-precreate.json"):
        document = json.loads(resources.find(f"hooks.d/{name}").read_text())
        assert codes(doctor.descriptor_faults("/h", Descriptor(name, document))) == []


@pytest.mark.parametrize(("facts", "expected"), [
    (("", [], []), []),
    (("this node has no inventory /x", [], []), ["inventory"]),
    (("", ["/opt/mpi has changed since the scan"], []), ["inventory-stale"]),
    (("", [], ["/nfs/libmpi.so"]), ["library-noexec"]),
])
def test_inventory(facts: Any, expected: List[str]) -> None:
    assert codes(doctor.inventory_faults(*facts)) == expected


def profile(name: str, available: Optional[bool], **provides: str) -> Dict[str, Any]:
    return {"name": name, "state": "on", "available": available, "problems": [] if available else ["there is no lib"],
            "provides": provides, "libraries": []}


@pytest.mark.parametrize(("listed", "named", "expected"), [
    ([profile("mpich", True, mpi="mpich"), profile("openmpi", False, mpi="openmpi")], [], []),
    ([profile("mpich", True, mpi="mpich"), profile("openmpi", False, mpi="openmpi")], ["openmpi"], ["profile-unavailable"]),
    ([profile("mpich", False, mpi="mpich"), profile("slurm", True, launcher="slurm")], [], ["mpi-none"]),
    ([profile("mpich", None, mpi="mpich")], ["mpich"], []),  # never scanned: that is said once
])
def test_profiles(listed: List[Dict[str, Any]], named: List[str], expected: List[str]) -> None:
    assert codes(doctor.profile_faults(listed, named)) == expected


READY: Dict[str, Any] = {"user": "u", "subuid": True, "subgid": True, "helpers": (), "namespaces": 1000, "runtime_dir": ""}


@pytest.mark.parametrize(("changed", "expected", "says"), [
    ({}, [], ""),
    ({"subuid": False}, ["subordinate-ids"], "/etc/subuid has no range for u"),
    ({"subgid": False}, ["subordinate-ids"], "usermod --add-subgids"),
    ({"helpers": ("there is no newuidmap",)}, ["id-helper"], "newuidmap"),
    ({"namespaces": 0}, ["user-namespaces"], "sysctl"),
    ({"runtime_dir": "there is no /run/user/7"}, ["runtime-dir"], "/run/user/7"),
])
def test_rootless(changed: Dict[str, Any], expected: List[str], says: str) -> None:
    found = list(doctor.rootless_faults(Rootless(**{**READY, **changed})))
    assert codes(found) == expected
    assert says in "".join(fault.what + fault.remedy for fault in found)


@pytest.mark.parametrize(("texts", "expected"), [
    ([], [doctor.DEFAULT_FOLDER]),
    (['[engine]\nhooks_dir = ["/a", \'/b\'] # "/c"\n'], ["/a", "/b"]),
    (['[engine]\n# hooks_dir = ["/a"]\n'], [doctor.DEFAULT_FOLDER]),
    (['[containers]\nhooks_dir = ["/a"]\n[engine]\nruntime = "crun"\n'], [doctor.DEFAULT_FOLDER]),
    (['[engine]\nhooks_dir = [\n  "/a",  # one\n  "/b#",\n]\n[network]\n'], ["/a", "/b#"]),
    (['[engine]\nhooks_dir = ["/a"]\n', '[engine]\nhooks_dir = ["/b"]\n'], ["/b"]),
    (['[engine]\nhooks_dir = ["/a"]\n', '[engine]\nhooks_dir = ["/b", {append=true}]\n'], ["/a", "/b"]),
    (['[engine]\n[engine.runtimes]\nx = ["/bin/x"]\n'], [doctor.DEFAULT_FOLDER]),
])
def test_hook_folders_of_containers_conf(texts: List[str], expected: List[str]) -> None:
    assert [path for path, _ in doctor.hook_folders([("file", text) for text in texts])] == expected


# ------------------------------------------------------------------------------------------------------- as a person meets it

class Installation:
    """A node whose podman reads the folder that register has written, with an MPI, scanned: nothing is wrong with it."""

    def __init__(self, node: Node, folder: Path) -> None:  # noqa: F811
        self.node = node
        self.hooks = folder / "hooks.d"
        self.shared = folder / "shared"
        self.conf = folder / "containers.conf"
        self.conf.write_text(f'[engine]\nhooks_dir = ["{self.hooks}"]\n')
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, says in ("podman", "podman version 4.9.4"), ("crun", "crun version 1.14"):
            self.program(name, f"echo {says}")
        self.environment = {"PATH": str(self.bin), "CONTAINERS_CONF": str(self.conf)}
        mask_shipped(node)
        node.profile("ours", "libtestmpi.so.12")
        self.library = build(node.lib / "libtestmpi.so.12", exports=MPICH)
        for verb in ["scan"], ["register", str(self.hooks)]:
            assert cli.run([*node.options, *verb]) == 0
        self.descriptor = self.hooks / "oci-hpc-hooks.json"
        self.executable = self.hooks / "bin/oci-hpc-hooks-createruntime"

    def program(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def doctor(self, *words: object) -> subprocess.CompletedProcess[str]:
        env = {"PYTHONPATH": str(resources.PACKAGE.parent), **self.environment}
        command = [sys.executable, "-c", MAIN, *self.node.options, "doctor", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=env)

    def faults(self) -> List[Dict[str, str]]:
        """Those of the installation. What this machine lacks for rootless containers is its own affair."""
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):  # in this process: a quarter of the time
            patch.setattr(doctor, "SHARED", (str(self.shared),))
            for name, value in self.environment.items():
                patch.setenv(name, value)
            status = cli.run([*self.node.options, "doctor", "--json"])
        said = valid(out.getvalue(), "doctor-output")
        assert status == any(fault["severity"] != "note" for fault in said["faults"])
        of_the_machine = {"subordinate-ids", "id-helper", "user-namespaces", "runtime-dir", "kernel-old"}
        return [fault for fault in said["faults"] if fault["severity"] != "note" and fault["code"] not in of_the_machine]


@pytest.fixture
def well(node: Node, tmp_path: Path) -> Installation:  # noqa: F811
    return Installation(node, tmp_path)


def test_all_is_well(well: Installation) -> None:
    assert well.faults() == []
    lines = well.doctor().stdout.splitlines()
    assert lines[0].startswith("Linux ")
    assert any(re.fullmatch(rf"  podman +4\.9\.4 +{well.bin}/podman", line) for line in lines)
    assert any(line.split() == [str(well.hooks), str(well.conf), "oci-hpc-hooks.json"] for line in lines)
    assert any(line.split() == ["ours", "available", str(well.library)] for line in lines)


def test_the_folders_are_those_that_the_hooks_go_by(well: Installation) -> None:
    """Unless the command line names others."""
    own, well.node.options = well.node.options, []
    assert well.faults() == []
    (well.node.state / "inventory.json").unlink()
    (fault,) = well.faults()
    assert fault["code"] == "inventory" and str(well.node.state) in fault["what"]
    well.node.options = [*own[:2], "--state-dir", "/nowhere"]
    (fault,) = well.faults()
    assert fault["code"] == "inventory" and "/nowhere" in fault["what"]


def edit(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def remove_an_interpreter(well: Installation) -> None:
    well.executable.write_bytes(b"#!/nowhere/python3 -IS\n" + well.executable.read_bytes().partition(b"\n")[2])


def pack_another_release(well: Installation) -> None:
    data = well.executable.read_bytes()
    magic = re.search(rb"MAGIC_NUMBER == (b'[^']*'|b\"[^\"]*\")", data)
    assert magic
    well.executable.write_bytes(data.replace(magic[1], magic[1].replace(magic[1][2:3], b"!"), 1))


def damage(well: Installation) -> None:
    data = bytearray(well.executable.read_bytes())
    data[data.index(b"main(") + 2000] ^= 1
    well.executable.write_bytes(data)


def replace_the_library(well: Installation) -> None:
    well.library.unlink()
    build(well.library, exports=(*MPICH, "more"))


SEEDED: Dict[str, Any] = {
    "no hook": (lambda well: [path.unlink() for path in well.hooks.glob("*.json")], "hooks-none", "oci-hpc-hooks register"),
    "no folder": (lambda well: well.hooks.rename(well.hooks.with_name("moved")), "folder-missing", "without a word"),
    "folder of everybody": (lambda well: well.hooks.chmod(0o777), "folder-untrusted", "chmod go-w"),
    "no JSON": (lambda well: well.descriptor.write_text("{"), "descriptor-broken", "mend or remove"),
    "no hook.path": (lambda well: edit(well.descriptor, hook={}), "descriptor-broken", "mend or remove"),
    "version": (lambda well: edit(well.descriptor, version="9"), "descriptor-version", "1.0.0"),
    "stage": (lambda well: edit(well.descriptor, stages=["later"]), "descriptor-stage", "createRuntime"),
    "expression": (lambda well: edit(well.descriptor, when={"annotations": {"a": "(?!b)"}}), "descriptor-regex", "(?!b)"),
    "precreate for all": (lambda well: shutil.copytree(well.hooks / "podman", well.shared), "precreate-shared", "a folder of its own"),
    "no executable": (lambda well: well.executable.unlink(), "executable-missing", "oci-hpc-hooks register"),
    "mode": (lambda well: well.executable.chmod(0o644), "executable-not-executable", "chmod 755"),
    "of everybody": (lambda well: well.executable.chmod(0o777), "executable-untrusted", "chmod go-w"),
    "no interpreter": (remove_an_interpreter, "executable-interpreter", "/nowhere/python3"),
    "other Python": (pack_another_release, "executable-outdated", "another release of Python"),
    "damaged": (damage, "executable-outdated", "damaged"),
    "never scanned": (lambda well: (well.node.state / "inventory.json").unlink(), "inventory", "oci-hpc-hooks scan"),
    "no inventory": (lambda well: (well.node.state / "inventory.json").write_text('{"version": 1}'), "inventory", "oci-hpc-hooks scan"),
    "inventory of everybody": (lambda well: (well.node.state / "inventory.json").chmod(0o666), "inventory", "others than root"),
    "other library": (replace_the_library, "inventory-stale", "has changed since the scan"),
    "site.json": (lambda well: well.node.site(on_refusal="never"), "configuration", "$.on_refusal"),
    "site.json of everybody": (lambda well: well.node.site().chmod(0o666), "configuration-untrusted", "others than root can write it"),
    "configuration of everybody": (lambda well: well.node.etc.chmod(0o777), "configuration-untrusted", "chmod go-w"),
    "no engine": (lambda well: [path.unlink() for path in well.bin.iterdir()], "engine-missing", "install podman"),
    "no runtime": (lambda well: (well.bin / "crun").unlink(), "runtime-missing", "install crun"),
    "old podman": (lambda well: well.program("podman", "echo podman version 3.0.1"), "podman-old", "update podman"),
    "broken podman": (lambda well: well.program("podman", "exit 1"), "engine-broken", "install podman again"),
    "podman with a broken containers.conf": (lambda well: well.program("podman", "echo 'toml: line 2' >&2; exit 1"), "engine-broken",
                                             "toml: line 2"),
}


@pytest.mark.parametrize("seeded", SEEDED)
def test_each_fault_is_found(well: Installation, seeded: str) -> None:
    if os.geteuid():
        pytest.skip("modes mean nothing to somebody who owns the files")
    seed, code, says = SEEDED[seeded]
    change: Callable[[Installation], object] = seed
    change(well)
    found = {fault["code"]: fault for fault in well.faults()}
    assert code in found, found
    assert says in found[code]["what"] + found[code]["remedy"] and found[code]["who"]
    assert "Site admin:" not in found[code]["what"], "one remedy"
    follows = {"hooks-none", "inventory-stale", "configuration", "executable-untrusted"}
    assert found.keys() - {code} <= follows, "one fault, and what follows from it"


def test_a_profile_that_site_json_names(well: Installation) -> None:
    well.node.profile("other", "libnowhere.so.1")
    well.node.site(profiles=["ours", "other"])
    well.node.run("scan")
    (fault,) = well.faults()
    assert fault["code"] == "profile-unavailable" and "libnowhere.so.1" in fault["what"]


def test_before_a_scan_nothing_is_known_of_profiles(well: Installation) -> None:
    (well.node.state / "inventory.json").unlink()
    said = well.doctor().stdout
    assert "not scanned" in said and "needs nothing of the node" not in said


def test_faults_for_people(well: Installation) -> None:
    well.executable.unlink()
    done = well.doctor()
    assert done.returncode == 1 and done.stdout.splitlines()[-1].endswith(" found")
    assert (f"  error: there is no {well.executable}, which {well.descriptor} names: podman passes that hook over without a word. "
            "Site admin: run oci-hpc-hooks register again, or install the package again. [executable-missing]") in done.stdout.splitlines()


def test_another_folder(well: Installation, tmp_path: Path) -> None:
    well.conf.write_text("")
    assert [fault["code"] for fault in well.faults()] == ["hooks-none"]
    said = json.loads(well.doctor("--json", "--hooks-dir", well.hooks / "podman").stdout)
    assert [folder["hooks"] for folder in said["folders"]] == [["oci-hpc-hooks-precreate.json", "oci-hpc-hooks.json"]]
    assert "hooks-none" not in [fault["code"] for fault in said["faults"]]


def test_a_cache_that_everybody_can_write(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("a user's cache lies in the user's own folder")
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    found = {fault.code: fault for fault in doctor.place_faults(Places("", "", str(cache), str(tmp_path / "log")))}
    assert found.keys() == {"cache-untrusted"} and "each start is a cold one" in found["cache-untrusted"].what


def test_a_log_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere but on a read-only filesystem
    (fault,) = doctor.place_faults(Places("", "", str(tmp_path / "none"), str(tmp_path / "log")))
    assert fault.code == "log" and f"{tmp_path}/log can not be written" in fault.what
