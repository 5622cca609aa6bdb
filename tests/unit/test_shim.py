"""podman for ranks: which arguments it gives to podman, and that it changes nothing else.

The podman behind it is a copy of cat, echo or bash here, which show what a process got; tests/ranks has the real one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci_hpc_hooks import cli, shim

FD = 11

REWRITTEN = {
    "run x prog": ("run --preserve-fds=1 x prog", 3),
    "--runtime crun --log-level=debug run --rm x": ("--runtime crun --log-level=debug run --preserve-fds=1 --rm x", 3),
    "--syslog run x": ("--syslog run --preserve-fds=1 x", 3),
    "container run x": ("container run --preserve-fds=1 x", 3),
    "--root /r container run -it x": ("--root /r container run --preserve-fds=1 -it x", 3),
    "--hooks-dir run run x": ("--hooks-dir run run --preserve-fds=1 x", 3),
    "exec c prog": ("exec --env=PMI_* --preserve-fds=1 c prog", 3),
    "container exec -e PMI_RANK=1 c": ("container exec --env=PMI_* --preserve-fds=1 -e PMI_RANK=1 c", 3),
    "exec -l prog": ("exec --env=PMI_* --preserve-fds=1 -l prog", 3),
    # the user's own descriptors
    "run --preserve-fds=2 x": ("run --preserve-fds=3 x", 5),
    "run --preserve-fds 2 --rm x": ("run --preserve-fds=3 --rm x", 5),
    "run --preserve-fds=7 -e A --preserve-fds=1 x": ("run --preserve-fds=7 -e A --preserve-fds=2 x", 4),
    "run --preserve-fds=0 x": ("run --preserve-fds=1 x", 3),
    "exec --preserve-fds=1 c prog": ("exec --env=PMI_* --preserve-fds=2 c prog", 4),
    # what only looks like them
    "run x prog --preserve-fds=2": ("run --preserve-fds=1 x prog --preserve-fds=2", 3),
    "run -v --preserve-fds=2 x": ("run --preserve-fds=1 -v --preserve-fds=2 x", 3),
    "run -itv --preserve-fds=2 x": ("run --preserve-fds=1 -itv --preserve-fds=2 x", 3),
    "run -ve --preserve-fds=2 x": ("run -ve --preserve-fds=3 x", 5),
    "run --rm --preserve-fds=2 x": ("run --rm --preserve-fds=3 x", 5),
    "run --rm -- --preserve-fds=2": ("run --preserve-fds=1 --rm -- --preserve-fds=2", 3),
    "run -h d x -d": ("run --preserve-fds=1 -h d x -d", 3),
    "run -ed x": ("run --preserve-fds=1 -ed x", 3),
    "run -d=false x": ("run --preserve-fds=1 -d=false x", 3),
    "run -d --detach=false x": ("run --preserve-fds=1 -d --detach=false x", 3),
    "run": ("run --preserve-fds=1", 3),
}
UNCHANGED = [
    "", "--version", "ps", "build run", "start -a c", "pull run", "container ls run", "container", "create x", "pod run x",
    "--root run", "--log-level run ps", "-- ps run", "--help",
    "run -d x", "run --detach x", "run -it --detach=true x", "run -itd x", "run -dit x", "exec -d c prog", "run --detach=false -d x",
    "--remote run x", "-r run x", "-c there run x", "--url ssh://there run x", "--connection=there run x", "-rc there run x",
    "run --preserve-fds=some x", "run --preserve-fds= x", "run --preserve-fds=-1 x", "run --preserve-fds=9999999999 x",
    "run --preserve-fds=9 x", "exec --preserve-fds=20 c", "run --preserve-fd=11 x",
]


@pytest.mark.parametrize("line", REWRITTEN)
def test_rewritten(line: str) -> None:
    words, place = REWRITTEN[line]
    assert shim.rewritten(line.split(), FD) == (words.split(), place)


@pytest.mark.parametrize("line", UNCHANGED)
def test_unchanged(line: str) -> None:
    assert shim.rewritten(line.split(), FD) is None


def option(flags: Sequence[str], valued: Sequence[str]) -> st.SearchStrategy[List[str]]:
    """One option as podman takes it: alone, with its value behind "=" or in the next word, letters in one word."""
    value = st.sampled_from(["x", "run", "exec", "-d", "--preserve-fds=5", "--", "a=b"])
    flag = st.sampled_from([name for name in flags if name not in ("d", "detach")])
    names = st.sampled_from(valued)
    dashed = {name: f"-{name}" if len(name) == 1 else f"--{name}" for name in (*flags, *valued)}
    letters = st.lists(st.sampled_from([name for name in flags if len(name) == 1 and name != "d"] or ["-"]), min_size=1, max_size=3)
    return st.one_of(
        flag.map(lambda name: [dashed[name]]),
        flag.map(lambda name: [f"{dashed[name]}=true"]),
        st.tuples(names, value).map(lambda pair: [dashed[pair[0]], pair[1]]),
        st.tuples(names, value).map(lambda pair: [f"{dashed[pair[0]]}={pair[1]}"]),
        letters.map(lambda some: ["-" + "".join(some)] if "-" not in some else []),
    )


def flat(several: List[List[str]]) -> List[str]:
    return [word for words in several for word in words]


GLOBALS = option(sorted(shim.GLOBAL - {"remote", "r"}), ["root", "runtime", "log-level", "hooks-dir", "an-option-of-tomorrow"])
OWN = {"run": option(sorted(shim.RUN), ["env", "e", "v", "volume", "h", "annotation", "tomorrow"]),
       "exec": option(sorted(shim.EXEC), ["env", "e", "u", "workdir", "detach-keys"])}
ANY = st.lists(st.sampled_from(["prog", "run", "-d", "--preserve-fds=4", "--", "-", ""]), max_size=4)


@given(before=st.lists(GLOBALS, max_size=3), container=st.booleans(), command=st.sampled_from(["run", "exec"]), data=st.data(),
       count=st.none() | st.integers(0, 6), two_words=st.booleans(), rest=ANY)
def test_whatever_stands_around_it(before: List[List[str]], container: bool, command: str, data: st.DataObject, count: Optional[int],
                                   two_words: bool, rest: List[str]) -> None:
    """The new words are the old ones with ours put in or in place of the user's; and the number is the one behind the user's own."""
    head = [*flat(before), *(["container"] if container else []), command]
    first, second = (flat(data.draw(st.lists(OWN[command], max_size=3))) for _ in range(2))
    own = [] if count is None else ["--preserve-fds", str(count)] if two_words else [f"--preserve-fds={count}"]
    variables = ["--env=PMI_*"] if command == "exec" else []
    found = shim.rewritten([*head, *first, *own, *second, "image", *rest], FD)
    ours = [f"--preserve-fds={(count or 0) + 1}"]
    if count is None:
        assert found == ([*head, *variables, *ours, *first, *second, "image", *rest], 3)
    else:
        assert found == ([*head, *variables, *first, *ours, *second, "image", *rest], 3 + count)


@given(st.lists(st.text(max_size=8), max_size=6), st.integers(0, 300))
def test_any_words(words: List[str], descriptor: int) -> None:
    shim.rewritten(words, descriptor)


# ---------------------------------------------------------------------------------------------------------------- as a process

def registered(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What register writes in front of a podman that is a copy of this program."""
    (folder / "real").mkdir(mode=0o755)
    shutil.copy(f"/bin/{program}", folder / "real/podman")
    with monkeypatch.context() as there:
        there.setenv("PATH", f"{folder}/real:/usr/bin")
        assert cli.run(["register", "--podman", str(folder / "bin")]) == 0
    return str(folder / "bin/podman")


def environment(output: bytes) -> Dict[bytes, bytes]:
    entries = [entry.partition(b"=") for entry in output.split(b"\0") if entry]
    return {name: value for name, _, value in entries}


@pytest.mark.parametrize("given", [{}, {"LC_ALL": "C"}, {"LC_CTYPE": "C", "PYTHONPATH": "/x", "PATH": "/nowhere"},
                                   {"PMI_FD": "none"}, {"LANG": "en_US.ISO-8859-1", "A": "\udcff=\udcfe"}])
def test_environment_and_arguments_as_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Mapping[str, str]) -> None:
    program = registered(tmp_path, "cat", monkeypatch)
    seen = subprocess.run([program, "/proc/self/environ"], env=given, stdout=subprocess.PIPE, check=True).stdout
    assert environment(seen) == {os.fsencode(key): os.fsencode(value) for key, value in given.items()}
    words = ["/proc/self/cmdline", "--", "", "a b", "\udcff\udcc3", "é"]
    seen = subprocess.run([program, *words], env=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    assert seen == b"".join(os.fsencode(word) + b"\0" for word in ("podman", *words))


@pytest.mark.parametrize("blocked", [set(), {signal.SIGTERM}])
def test_signals_as_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: Set[signal.Signals]) -> None:
    program = registered(tmp_path, "cat", monkeypatch)

    def before() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup

    def signals(command: str) -> Tuple[int, int]:
        """Ignored and blocked ones."""
        seen = subprocess.run([command, "/proc/self/status"], stdout=subprocess.PIPE, text=True, check=True, preexec_fn=before).stdout
        status = dict(line.split(":\t", 1) for line in seen.splitlines())
        return int(status["SigIgn"], 16), int(status["SigBlk"], 16)

    ignored, masked = signals(str(program))
    assert (ignored, masked) == signals("cat")  # whatever this process has inherited itself
    assert ignored & 1 << signal.SIGHUP - 1
    assert masked == sum(1 << number - 1 for number in blocked)


#: A script that copies of bash find under the name of podman's command: what they were given.
SHOW = 'printf "%s\\n" "$@" "PMI_FD=${PMI_FD-}"; ls -l /proc/$$/fd; exit 7\n'


def show(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: Optional[str], keep: Sequence[int],
         **more: str) -> Tuple[List[str], Dict[str, str]]:
    """Arguments and variable, and the open descriptors, of the podman that this line starts with PMI_FD as `said`."""
    program = registered(folder, "bash", monkeypatch)
    for name in ("run", "exec", "ps"):
        (folder / name).write_text(SHOW)
    variables = {"PATH": "/usr/bin:/bin", **({} if said is None else {"PMI_FD": said}), **more}
    done = subprocess.run([program, *line.split()], env=variables, cwd=folder, pass_fds=keep, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True)
    assert done.returncode == 7
    lines = done.stdout.splitlines()
    end = lines.index(next(text for text in lines if text.startswith("PMI_FD=")))
    return lines[:end + 1], descriptors(lines[end + 1:])


def descriptors(listing: Sequence[str]) -> Dict[str, str]:
    """What is open above standard error, but for bash's own 255, its script."""
    opened = [line.rpartition(" -> ") for line in listing if " -> " in line]
    return {link.split()[-1]: target for link, _, target in opened if 2 < int(link.split()[-1]) < 255}


def inode(file: socket.socket) -> str:
    return f"socket:[{os.fstat(file.fileno()).st_ino}]"


@pytest.fixture
def ours() -> Iterator[socket.socket]:
    one, other = socket.socketpair()
    with one, other:
        yield one
        os.closerange(60, 70)


def at(file: socket.socket, number: int) -> int:
    """The socket under this number, which was free."""
    assert not os.path.exists(f"/proc/self/fd/{number}")
    return os.dup2(file.fileno(), number)


def test_the_socket_is_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: socket.socket) -> None:
    said, opened = show(tmp_path, monkeypatch, "run x", "61", [at(ours, 61)])
    assert said == ["--preserve-fds=1", "x", "PMI_FD=3"]
    assert opened == {"3": inode(ours)}


def test_exec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: socket.socket) -> None:
    said, opened = show(tmp_path, monkeypatch, "exec x", "61", [at(ours, 61)])
    assert said == ["--env=PMI_*", "--preserve-fds=1", "x", "PMI_FD=3"]
    assert opened == {"3": inode(ours)}


@pytest.mark.parametrize("line", ["ps x", "run -d x", "run --preserve-fds=60 x"])
def test_another_command_keeps_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: socket.socket, line: str) -> None:
    said, opened = show(tmp_path, monkeypatch, line, "61", [at(ours, 61)])
    assert said == [*line.split()[1:], "PMI_FD=61"]
    assert opened == {"61": inode(ours)}


@pytest.mark.parametrize("said", [None, "", "x", "-1", "+61", " 61", "61 ", "0x3d", "٦١", "63", "62", "0", "1e1", "999999999999999999999"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: socket.socket, said: str) -> None:
    """61 is a socket, 62 is not, 63 is closed."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 62)
    os.close(null)
    words, opened = show(tmp_path, monkeypatch, "run x", said, [at(ours, 61), 62])
    assert words == ["x", f"PMI_FD={said or ''}"]
    assert opened == {"61": inode(ours), "62": "/dev/null"}


@pytest.mark.parametrize("name", ["CONTAINER_HOST", "CONTAINER_CONNECTION"])
def test_a_service_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: socket.socket, name: str) -> None:
    said, opened = show(tmp_path, monkeypatch, "run x", "61", [at(ours, 61)], **{name: "unix:///run/podman.sock"})
    assert (said, opened) == (["x", "PMI_FD=61"], {"61": inode(ours)})


def test_the_users_own_descriptors_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: socket.socket) -> None:
    """Through a shell, since pass_fds cannot say which number is 3."""
    program = registered(tmp_path, "bash", monkeypatch)
    (tmp_path / "run").write_text(SHOW)
    at(ours, 61)
    line = f"exec {program} run --preserve-fds=2 x 3</dev/zero 4</dev/null"
    done = subprocess.run(["bash", "-c", line], env={"PATH": "/usr/bin:/bin", "PMI_FD": "61"}, cwd=tmp_path, pass_fds=[61],
                          stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["--preserve-fds=3", "x", "PMI_FD=5"]
    assert descriptors(lines[3:]) == {"3": "/dev/zero", "4": "/dev/null", "5": inode(ours)}


# ---------------------------------------------------------------------------------------------------------------- registration

def test_podman_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = registered(tmp_path, "echo", monkeypatch)
    podman = tmp_path / "real/podman"
    (tmp_path / "closed").touch(0o600)
    for link, status, says in ((tmp_path / "gone", 127, "is not there any more"), (program, 126, "this file itself"),
                               (tmp_path / "closed", 126, "Permission denied")):
        podman.unlink()
        podman.symlink_to(link)
        done = subprocess.run([program, "run"], capture_output=True, text=True)
        assert done.returncode == status
        assert says in done.stderr and done.stderr.endswith("register --podman.\n") and done.stderr.count("\n") == 1


def test_no_podman_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    program = Path(registered(tmp_path, "echo", monkeypatch))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{tmp_path}/real")
    before = program.read_bytes()
    assert cli.run(["register", "--podman", str(tmp_path / "bin")]) == 0  # again, with itself in front
    assert program.read_bytes() == before
    assert before.endswith(f"main('{tmp_path}/real/podman')\n".encode())
    assert cli.run(["register", "--podman", str(tmp_path / "real")]) == 2
    assert "is not ours" in capsys.readouterr().err
    assert (tmp_path / "real/podman").read_bytes() == Path("/bin/echo").read_bytes()


@pytest.mark.parametrize(("arguments", "says"), [(["--podman", "new"], "there is no podman in PATH"), ([], "register what?")])
def test_nothing_to_register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: List[str],
                             says: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.run(["register", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_both_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    registered(tmp_path, "echo", monkeypatch)
    monkeypatch.setenv("PATH", f"{tmp_path}/real")
    capsys.readouterr()
    assert cli.run(["register", str(tmp_path / "its hooks"), "--podman", str(tmp_path / "its bin")]) == 0
    assert (tmp_path / "its hooks/oci-hpc-hooks.json").exists()
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"use it with: podman run --hooks-dir '{tmp_path}/its hooks' …", f"use it with: PATH='{tmp_path}/its bin':$PATH"]
