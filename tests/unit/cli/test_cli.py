"""The command line as a person meets it: in a process of its own, with folders of the test."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List

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
    level = f", which amounts to {cpu.level}" if cpu and cpu.level != cpu.target else ""
    assert result.stdout.splitlines() == [
        f"ours: available (profile {source})",
        f"  replace libtestmpi.so.12: {library}",
        "  with them comes 1 library that they need and 0 modules",
        "  its libraries load with glibc 2 or newer",
        *([f"processor: {cpu.target} ({cpu.vendor}){level}"] if cpu else []),
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
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf{}")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    files = [str(path) for path in (site, profile, broken, marked, fifo, tmp_path / "none")]
    result = node.run("validate", *files)
    assert result.returncode == 2
    assert result.stdout.splitlines() == [
        f"{site}: $.profiles[0]: there is no profile 'mpihc'; did you mean \"mpich\"?",
        f"{profile}: $.libraries[0].soname: \"libmpi\" is not a library's file name such as libmpi.so.12, without directory",
        f"{broken}: not UTF-8 (byte 0: 0xff); save the file as UTF-8",
        f"{marked}: not JSON: it begins with a byte order mark; save the file as UTF-8 without one",
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
    [([], "VERB"), (["scna"], "invalid choice: 'scna'"), (["scan", "--jsno"], "unrecognized arguments: --jsno"), (["validate"], "FILE"),
     (["check", "image", "program"], "unrecognized arguments: program; a command goes after --: -- program"),
     (["register", ""], "an argument is empty"), (["explain", ""], "an argument is empty"), (["check", ""], "an argument is empty"),
     (["doctor", "--hooks-dir", ""], "--hooks-dir is empty"), (["check", "--graph=", "image"], "--graph is empty"),
     (["check", "--run-options", "-v 'x", "image"], "-v 'x: no closing quotation")],
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


def test_version(node: Node) -> None:
    setup = configparser.ConfigParser()
    setup.read(resources.PACKAGE.parent / "setup.cfg")
    assert node.run("--version").stdout == f"oci-hpc-hooks {setup['metadata']['version']}\n"


@pytest.mark.parametrize("words", [["last"], ["profiles", "list"]])
def test_places_before_the_verb_or_after_it(words: List[str]) -> None:
    before = ["--state-dir", "/before", "--config-dir", "/before"]
    args = cli.parse([*before, *words, "--config-dir", "/after"])
    assert (args.config_dir, args.state_dir, args.log_file) == ("/after", "/before", cli.LOG)


def test_empty_values_that_mean_something() -> None:
    args = cli.parse(["check", "--run-options", "", "--label", "key=", "image", "--", "sh", "-c", ""])
    assert (args.run_options, args.label, args.command) == ([], ["key="], ["sh", "-c", ""])


def in_bash(node: Node, words: str, then: str) -> subprocess.CompletedProcess[str]:
    code = f"{sys.executable} -c '{MAIN}' {' '.join(node.options)} {words} {then}"
    env = {"PYTHONPATH": str(resources.PACKAGE.parent), "PATH": os.environ["PATH"]}
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=env)


@pytest.mark.parametrize(("words", "code"), [("last", 0), ("profiles --json list", 0), ("check /nosuch", 2), ("check --json /nosuch", 2)])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(node: Node, words: str, code: int, closed: str) -> None:
    result = in_bash(node, words, closed)
    assert result.returncode == code
    assert "Traceback" not in result.stderr and "oci-hpc-hooks:" not in result.stdout


def test_reader_of_an_error_that_goes_away(node: Node) -> None:
    result = in_bash(node, "profiles --json show nosuch", "| true; exit ${PIPESTATUS[0]}")
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize("words", ["last", "last --json", "profiles list", "profiles list --json", "profiles show nosuch --json"])
def test_output_that_cannot_be_written(node: Node, words: str) -> None:
    result = in_bash(node, words, "> /dev/full")
    assert result.returncode == 2
    assert re.fullmatch("oci-hpc-hooks: standard output(, or a file)?: No space left on device.\n", result.stderr)


class Stranger:
    """Somebody who is not root, with a folder that anybody may enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        env = {"PYTHONPATH": str(resources.PACKAGE.parent), "PATH": f"{self.folder}:{os.environ['PATH']}"}
        return subprocess.run([sys.executable, "-c", MAIN, *map(str, words)], capture_output=True, text=True, env=env, user=65534, cwd="/")


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    if os.geteuid():
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Stranger(Path(folder))


@pytest.mark.parametrize("verb", ["check", "label"])
def test_a_directory_that_may_not_be_entered(stranger: Stranger, verb: str) -> None:
    (stranger.folder / "private/tree").mkdir(mode=0o755, parents=True)
    (stranger.folder / "private").chmod(0o700)
    for path, says in ("private", "this user may not enter it"), ("private/tree", "Permission denied"):
        result = stranger.run(verb, stranger.folder / path)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith(f"oci-hpc-hooks: {stranger.folder / path} cannot be looked") and says in result.stderr


def test_a_file_is_no_root_filesystem(node: Node) -> None:
    result = node.run("check", SHIPPED)
    assert result.returncode == 2 and result.stderr.startswith(f"oci-hpc-hooks: {SHIPPED} is a file, no directory. User: unpack")


@pytest.mark.parametrize(("says", "remedy"), [
    ("Error: inspecting object: image: image not known", ". User: pull or build the image first.\n"), ("toml: line 2", "toml: line 2.\n"),
])
def test_podman_that_fails_for_a_user(stranger: Stranger, says: str, remedy: str) -> None:
    (stranger.folder / "podman").write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    (stranger.folder / "podman").chmod(0o755)
    result = stranger.run("check", "image")
    assert result.returncode == 2
    assert result.stderr.startswith(f"oci-hpc-hooks: podman image inspect -- image: {says}") and result.stderr.endswith(remedy)


@pytest.mark.parametrize(("mode", "which"), [(0o644, "{}"), (0o600, "/run/user/65534/oci-hpc-hooks/hooks.log")])
def test_the_log_that_a_user_names(stranger: Stranger, mode: int, which: str) -> None:
    log = stranger.folder / "log"
    log.touch(mode)
    log.chmod(mode)
    assert json.loads(stranger.run("last", "--json", "--log-file", log).stdout)["log"] == which.format(log)
    assert f"{which.format(log)} has no entry of it" in stranger.run("explain", "--log-file", log, "nosuch").stderr


def test_a_question_has_no_full_stop(node: Node) -> None:
    assert 'did you mean "mpich"? User: ' in node.run("profiles", "show", "mpihc").stderr
