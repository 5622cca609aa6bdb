"""The command line as a person meets it: in a process of its own, with folders of the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
from jsonschema import Draft7Validator

from oci_hpc_hooks import cli
from oci_hpc_hooks.inputs import resources
from oci_hpc_hooks.inputs.cpu import node_cpu
from tests.unit.config.node_bed import MPICH, build

MAIN = "from oci_hpc_hooks.cli import main; main()"
SHIPPED = resources.PROFILES / "mpich.json"


class Node:
    """Folders of one site, and the command with them."""

    def __init__(self, folder: Path) -> None:
        self.etc = folder / "etc"
        self.state = folder / "state"
        self.lib = folder / "lib"
        (self.etc / "profiles.d").mkdir(parents=True)
        self.options = ["--config-dir", str(self.etc), "--state-dir", str(self.state), "--log-file", str(folder / "log")]

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", MAIN, *self.options, *map(str, arguments)]
        env = {"PYTHONPATH": str(resources.PACKAGE.parent), "PATH": os.environ["PATH"], **environment}
        return subprocess.run(command, capture_output=True, text=True, env=env)

    def site(self, **keys: object) -> Path:
        path = self.etc / "site.json"
        path.write_text(json.dumps({"version": 1, **keys}))
        return path

    def profile(self, name: str, soname: str) -> Path:
        path = self.etc / f"profiles.d/{name}.json"
        document: Dict[str, Any] = {
            "version": 1,
            "name": name,
            "description": "test",
            "provides": {"mpi": "mpich"},
            "libraries": [{"soname": soname, "role": "replace"}],
            "search": [str(self.lib)],
        }
        path.write_text(json.dumps(document))
        return path


@pytest.fixture
def node(tmp_path: Path) -> Node:
    if tmp_path.stat().st_uid != 0:
        pytest.skip("configuration counts only if root owns it")
    return Node(tmp_path)


def valid(output: str, name: str) -> Any:
    """A JSON document of the form that its schema promises."""
    document = json.loads(output)
    schema = json.loads(resources.find(f"schemas/{name}.schema.json").read_text())
    Draft7Validator(schema).validate(document)
    return document


def mask_shipped(node: Node) -> None:
    for name in (path.stem for path in resources.PROFILES.glob("*.json")):
        (node.etc / f"profiles.d/{name}.json").write_text(json.dumps({"version": 1, "name": name, "masked": True}))


# -------------------------------------------------------------------------------------------------------------- scan

def test_scan(node: Node) -> None:
    mask_shipped(node)
    source = node.profile("ours", "libtestmpi.so.12")
    dependency = build(node.lib / "libtestdep.so.1")
    library = build(node.lib / "libtestmpi.so.12", exports=MPICH, needed=[dependency])
    result = node.run("scan")
    assert result.stderr == ""
    cpu, note = node_cpu()
    assert result.stdout.splitlines() == [
        f"ours: available (profile {source})",
        f"  replace libtestmpi.so.12: {library}",
        "  with them come 1 libraries that they need and 0 modules",
        "  its libraries load with glibc 2 or newer",
        *([f"processor: {cpu.target} ({cpu.vendor}), which amounts to {cpu.level}"] if cpu else []),
        *([f"  note: {note}"] if note else []),
        f"written to {node.state}/inventory.json",
    ]
    assert result.returncode == 0
    written = json.loads((node.state / "inventory.json").read_text())
    assert [profile["name"] for profile in written["profiles"]] == ["ours"]


def test_scan_of_a_profile_that_is_not_available(node: Node) -> None:
    mask_shipped(node)
    source = node.profile("ours", "libtestmpi.so.12")
    result = node.run("scan")
    assert result.returncode == 0
    assert result.stdout.startswith(f"ours: not available (profile {source})\n  problem: there is no libtestmpi.so.12 in the profile's")
    (profile,) = json.loads((node.state / "inventory.json").read_text())["profiles"]
    assert len(profile["problems"]) == 1


def test_scan_without_any_profile(node: Node) -> None:
    mask_shipped(node)
    assert "no profile is on" in node.run("scan").stdout


def test_scan_as_json(node: Node) -> None:
    mask_shipped(node)
    node.profile("ours", "libtestmpi.so.12")
    build(node.lib / "libtestmpi.so.12", exports=MPICH)
    result = node.run("scan", "--json")
    assert valid(result.stdout, "inventory") == json.loads((node.state / "inventory.json").read_text())


def test_dry_run_writes_nothing(node: Node) -> None:
    assert node.run("scan", "--dry-run").returncode == 0
    assert not node.state.exists()


def test_scan_with_errors_in_the_configuration(node: Node) -> None:
    site = node.site(on_refusal="never", profiles=["Mpich"])
    result = node.run("scan")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "oci-hpc-hooks: 2 errors in the configuration:",
        f'  {site}: $.on_refusal: "never" is none of: "refuse", "run-without"',
        f'  {site}: $.profiles[0]: "Mpich" is not the name of a profile, or an object with name and search',
    ]
    assert not node.state.exists()


def test_scan_with_configuration_that_others_can_write(node: Node) -> None:
    site = node.site()
    site.chmod(0o666)
    result = node.run("scan", "--json")
    assert result.returncode == 2
    assert result.stderr == ""
    assert f"chmod go-w {site}" in valid(result.stdout, "error-output")["error"]


# ---------------------------------------------------------------------------------------------------------- validate

def test_validate_good_files(node: Node) -> None:
    site = node.site(profiles=["mpich"])
    result = node.run("validate", site, SHIPPED)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{site}: ok\n{SHIPPED}: ok\n", "")


def test_validate_tells_every_error_of_every_file(node: Node, tmp_path: Path) -> None:
    site = node.site(profiles=["mpihc"])
    profile = node.profile("a", "libmpi")
    broken = tmp_path / "broken.json"
    broken.write_bytes(b"\xff")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    files = [str(path) for path in (site, profile, broken, fifo, tmp_path / "none")]
    result = node.run("validate", *files)
    assert result.returncode == 2
    assert result.stdout.splitlines() == [
        f"{site}: $.profiles[0]: there is no profile 'mpihc'; did you mean \"mpich\"?",
        f"{profile}: $.libraries[0].soname: \"libmpi\" is not a library's file name such as libmpi.so.12, without directory",
        f"{broken}: not UTF-8 (byte 0: 0xff); save the file as UTF-8",
        f"{fifo}: {fifo} is not a regular file",
        f"{tmp_path}/none: there is no file {tmp_path}/none",
    ]
    document = valid(node.run("validate", "--json", *files).stdout, "validate-output")
    assert [entry["file"] for entry in document["files"]] == files
    assert not any(entry["ok"] for entry in document["files"])
    assert document["files"][1]["errors"][0]["path"] == "$.libraries[0].soname"


def test_validate_does_not_ask_who_owns_a_draft(node: Node) -> None:
    site = node.site()
    os.chown(site, 1000, 1000)
    site.chmod(0o666)
    assert node.run("validate", site).returncode == 0


def test_validate_the_inventory_that_scan_wrote(node: Node) -> None:
    node.run("scan")
    assert node.run("validate", node.state / "inventory.json").returncode == 0


# ------------------------------------------------------------------------------------------------------- the command

@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "VERB"), (["scna"], "invalid choice: 'scna'"), (["scan", "--jsno"], "unrecognized arguments: --jsno"), (["validate"], "FILE")],
)
def test_usage(node: Node, arguments: List[str], says: str) -> None:
    result = node.run(*arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run([verb, "--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--json" in told and "xit codes" in told.rpartition("options:")[2]
    name = "inventory" if verb == "scan" else f"{verb}-output"
    assert resources.find(f"schemas/{name}.schema.json").is_file()


def test_exit_codes_are_in_the_help(node: Node) -> None:
    assert "2 usage or configuration" in node.run("--help").stdout


def test_only_the_verb_asked_for_is_imported(node: Node) -> None:
    code = f"import sys; from oci_hpc_hooks import cli; cli.run(['validate', {str(SHIPPED)!r}]); print(*sys.modules)"
    env = {"PYTHONPATH": str(resources.PACKAGE.parent)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    loaded = {name for name in result.stdout.split() if name.startswith(("oci_hpc_hooks.cli.", "elftools"))}
    assert loaded == {"oci_hpc_hooks.cli.validate"}


def test_reader_that_goes_away(node: Node) -> None:
    code = f"{sys.executable} -c '{MAIN}' {' '.join(node.options)} scan --dry-run --json | true; exit ${{PIPESTATUS[0]}}"
    env = {"PYTHONPATH": str(resources.PACKAGE.parent), "PATH": os.environ["PATH"]}
    result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=env)
    assert (result.returncode, result.stderr) == (141, "")


def test_file_error_is_a_sentence(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = node.run("register", tmp_path / "file/hooks")
    assert result.returncode == 2
    assert result.stderr == f"oci-hpc-hooks: {tmp_path}/file/hooks: Not a directory.\n"


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from oci_hpc_hooks.cli import validate

    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(validate, "execute", interrupted)
    assert cli.run(["validate", "x"]) == 130
    assert capsys.readouterr().err == "oci-hpc-hooks: interrupted\n"
