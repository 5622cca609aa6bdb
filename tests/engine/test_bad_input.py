"""What a runtime could hand to the hook, and worse: each ends at once with one sentence, and nothing has been touched.

The executable is the registered one, run by itself. A pid of a mutated document may be one that lives; so the hook runs in a pid and
mount namespace of its own, in which it is alone.
"""

from __future__ import annotations

import copy
import json
import os
import pty
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import Site

RECORDED = Path(__file__).parents[1] / "unit/inputs/data/podman"  # what podman's runtimes were really given
KINDS = ("root-crun", "root-runc", "user-runc-keep-id", "bare-runc")
DEAD = 1 << 22  # one more than the largest pid (PID_MAX_LIMIT)

SECONDS = 10

#: 512 MB of address space: a state of 8 MB that is nothing but empty objects becomes 200 MB of Python's.
ALONE = ("prlimit", f"--as={512 << 20}", "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


class Hook:
    """The createRuntime executable of a site, and a bundle to point it to."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.executable = site.hooks_dir / "bin/oci-hpc-hooks-createruntime"
        self.bundle = folder / "bundle"

    def documents(self, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A recorded state that asks for an MPI, led to this bundle and to no process; and its configuration."""
        state = json.loads((RECORDED / kind / "state.json").read_text())
        config = json.loads((RECORDED / kind / "config.json").read_text())
        state.update(bundle=str(self.bundle), pid=DEAD)
        state.setdefault("annotations", {})["org.supercontainers.mpi"] = "mpich"
        return state, config

    def put(self, config: Union[bytes, dict[str, Any]]) -> None:
        """Make the bundle anew, with this config.json."""
        shutil.rmtree(self.bundle, ignore_errors=True)
        self.bundle.mkdir()
        (self.bundle / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())

    def run(self, stdin: bytes, times: int = 1) -> tuple[int, str]:
        """Hand it `stdin` this many times over; exit status and stderr. Fails if it takes long, needs memory or leaves the pipe early."""
        began = time.monotonic()
        with subprocess.Popen([*ALONE, self.executable], stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as hook:
            assert hook.stdin and hook.stderr and hook.stdout
            for _ in range(times):
                hook.stdin.write(stdin)  # BrokenPipeError here: crun would have failed the container
            hook.stdin.close()
            stdout, stderr = hook.stdout.read().decode(), hook.stderr.read().decode()
        assert time.monotonic() - began < SECONDS
        assert not stdout and "out of memory" not in stderr
        return hook.returncode, stderr

    def complains(self, stdin: bytes, times: int = 1) -> str:
        """The same; fails unless the hook ended with 1 and one sentence, which is returned."""
        status, stderr = self.run(stdin, times)
        assert_sentence(status, stderr)
        return stderr


def assert_sentence(status: int, stderr: str) -> None:
    assert status == 1, stderr
    assert stderr.startswith("oci-hpc-hooks: ") and stderr.endswith("\n") and stderr.count("\n") == 1, stderr
    assert stderr.endswith(".\n") or len(stderr) > 2000, stderr  # a novel is cut
    assert "Traceback" not in stderr and "a defect of" not in stderr, stderr


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    bed.enter()
    folder = bed.scratch("hook")
    site = Site(folder / "site", Engine("crun", "root").account)
    site.configure()
    site.scan()
    site.register()
    made = Hook(site, folder)
    made.put(made.documents("root-crun")[1])
    yield made
    shutil.rmtree(folder)


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in folder.rglob("*"))


# ------------------------------------------------------------------------------------------------ standard input


def state_of(hook: Hook) -> bytes:
    return json.dumps(hook.documents("root-crun")[0]).encode()


@pytest.mark.parametrize("stdin", [
    b"", b" \n", b"{", b"[]", b"7", b"null", b"{}", b'{"id": "x"}', b"\x7fELF", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b'{"id": "\xff"}',
    b'{"id": NaN}', b'{"pid": 1e999}', b'{"pid": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 100_000, b"\0" * 4096, b'"\\ud800"',
    b'{"id": "' + bytes(range(1, 32)) + b'"}',
], ids=lambda stdin: repr(stdin[:12]) + (f" and {len(stdin)} bytes" if len(stdin) > 12 else ""))
def test_no_state(hook: Hook, stdin: bytes) -> None:
    before = snapshot(hook.bundle)
    assert "state" in hook.complains(stdin)
    assert snapshot(hook.bundle) == before


def test_truncated_state(hook: Hook) -> None:
    whole = state_of(hook)
    for length in range(0, len(whole), len(whole) // 16):
        assert "the container's state" in hook.complains(whole[:length])


@pytest.mark.parametrize(("chunk", "times", "head"), [
    (bytes(1 << 20), 200, b""),  # 200 MB of zeros
    (b'"%s",' % (b"x" * ((1 << 20) - 3)), 64, b"["),  # 64 MB of JSON
    (b"0," * (1 << 19), 64, b"["),  # and as many small values as that can hold
])
def test_huge_state(hook: Hook, chunk: bytes, times: int, head: bytes) -> None:
    """All of it is read, for whoever writes must not meet a closed pipe; little of it is kept."""
    told = hook.complains(head + chunk, times)
    assert "larger than" in told


def test_state_just_below_the_limit(hook: Hook) -> None:
    """Eight megabytes are read, whatever is in them."""
    for filler in (b"[" * 2 + b"0," * 4_000_000 + b"0]]", b'{"a":"' + b"x" * 8_000_000 + b'"}', b"[" + b"{}," * 2_600_000 + b"{}]"):
        hook.complains(filler)


def test_terminal(hook: Hook) -> None:
    """A person who starts it by hand learns what it is."""
    master, slave = pty.openpty()
    try:
        done = subprocess.run([*ALONE, hook.executable], stdin=slave, capture_output=True, text=True, timeout=SECONDS, check=False)
    finally:
        os.close(master)
        os.close(slave)
    assert_sentence(done.returncode, done.stderr)
    assert "terminal" in done.stderr and "oci-hpc-hooks --help" in done.stderr


def test_no_standard_input(hook: Hook) -> None:
    command = f"exec {' '.join(ALONE)} {hook.executable} <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert_sentence(done.returncode, done.stderr)


def test_no_such_process(hook: Hook) -> None:
    hook.put(hook.documents("root-crun")[1])
    told = hook.complains(state_of(hook))
    assert str(DEAD) in told


# ------------------------------------------------------------------------------------------------ the bundle


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked_to(target: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return link


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(8 << 30)


@pytest.mark.parametrize("damage", [
    Path.unlink, fifo, directory, linked_to("/dev/zero"), linked_to("/dev/tty"), linked_to("config.json"), linked_to("/nowhere"), sparse,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"\0" * 4096),
    lambda path: path.write_bytes(path.read_bytes()[:1000]),
    lambda path: path.write_bytes(path.read_bytes().replace(b"mpihello", b"\xff", 1).replace(b'"', b"\xff", 1)),
    lambda path: path.write_bytes(b'{"process":' * 200_000),
    lambda path: path.write_bytes(b"[]"),
    lambda path: path.write_bytes(b"x" * (17 << 20)),
], ids=["missing", "fifo", "directory", "zero", "tty", "loop", "dangling", "sparse", "empty", "zeros", "truncated", "bytes", "deep",
        "array", "large"])  # fmt: skip
def test_bad_config(hook: Hook, damage: Callable[[Path], Any]) -> None:
    hook.put(hook.documents("root-crun")[1])
    damage(hook.bundle / "config.json")
    before = snapshot(hook.bundle)
    assert "config.json" in hook.complains(state_of(hook))
    assert snapshot(hook.bundle) == before


@pytest.mark.parametrize("bundle", ["/nowhere", "/dev/null", "relative", "", "/" + "x" * 300, "/" + "x/" * 3000, "/\0", "/proc/self/fd/0"])
def test_bad_bundle(hook: Hook, bundle: str) -> None:
    state = {**hook.documents("root-crun")[0], "bundle": bundle}
    hook.complains(json.dumps(state).encode())


# ------------------------------------------------------------------------------------------------ wrong types everywhere

Spot = tuple[Union[str, int], ...]

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 70000), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=40),
    st.sampled_from(["/", "..", "/proc/self/root", "/dev", "a\0b", "\ud7ff", "x" * 5000, "org.supercontainers.mpi"]),
    st.lists(st.none() | st.integers() | st.text(max_size=8), max_size=4),
    st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=8) | st.just({}), max_size=4),
)  # fmt: skip


def spots(document: Any, here: Spot = ()) -> Iterator[Spot]:
    """Every place of a document."""
    yield here
    for key, value in document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ():
        yield from spots(value, (*here, key))


def changed(document: Any, spot: Spot, value: Any, remove: bool) -> Any:
    """A copy with another value at that place, or none."""
    if not spot:
        return value
    document = copy.deepcopy(document)
    inner = document
    for key in spot[:-1]:
        inner = inner[key]
    if remove:
        del inner[spot[-1]]
    else:
        inner[spot[-1]] = value
    return document


def mutations(number: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        given_data = given(data=st.data(), kind=st.sampled_from(KINDS))(test)
        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        return settings(max_examples=number, deadline=None, database=None, suppress_health_check=checks)(given_data)

    return decorate


def mutated(hook: Hook, data: st.DataObject, kind: str) -> list[Any]:
    """State and configuration with one to three places changed."""
    documents: list[Any] = list(hook.documents(kind))
    for _ in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.integers(0, 1))
        spot = data.draw(st.sampled_from(list(spots(documents[which]))))
        documents[which] = changed(documents[which], spot, data.draw(JUNK), data.draw(st.booleans()))
    return documents


def assert_harmless(status: int, stderr: str) -> None:
    if status == 0:
        assert not stderr  # served, or what was changed took the wish away
    else:
        assert_sentence(status, stderr)


def without_a_process(hook: Hook, data: st.DataObject, kind: str) -> None:
    state, config = (json.dumps(document).encode() for document in mutated(hook, data, kind))
    hook.put(config)
    before = snapshot(hook.bundle)
    assert_harmless(*hook.run(state))
    assert snapshot(hook.bundle) == before


def with_a_tree(hook: Hook, data: st.DataObject, kind: str) -> None:
    """The same with a process that lives and a real tree, so that all of the hook is reached."""
    state, config = mutated(hook, data, kind)
    if isinstance(state, dict) and isinstance(config, dict):
        assert_harmless(*run_on_a_tree(hook, state, config, data.draw(st.booleans())))


def run_on_a_tree(hook: Hook, state: dict[str, Any], config: dict[str, Any], readonly: bool) -> tuple[int, str]:
    """Exit status and stderr. Process and tree are never mutated: a tree is something to write to, and this one goes with the namespace."""
    state.update(pid=2, bundle=str(hook.bundle))
    config["root"] = {"path": "rootfs", "readonly": readonly}
    hook.put(config)
    for name in ("rootfs", "layers"):
        (hook.bundle / name).mkdir()
    os.mkfifo(hook.bundle / "ready")
    container = (  # as a runtime does: what it mounts is in a mount namespace of its own
        'cd "$0"/layers && mount -t tmpfs none . && mkdir upper work && '
        f'mount -t overlay -o lowerdir={bed.BUILD}/images/bookworm,upperdir=upper,workdir=work none ../rootfs && '
        'mount -t tmpfs none ../rootfs/dev; echo >"$0"/ready; exec sleep 60'
    )
    script = f"unshare --mount sh -c '{container}' \"$0\" </dev/null >/dev/null 2>&1 & read line <\"$0\"/ready; exec \"$1\""
    command = [*ALONE, "sh", "-c", script, str(hook.bundle), str(hook.executable)]
    done = subprocess.run(command, input=json.dumps(state), capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_right_types(hook: Hook, kind: str, readonly: bool) -> None:
    """What the mutations start from is served."""
    status, stderr = run_on_a_tree(hook, *hook.documents(kind), readonly)
    assert (status, stderr) == (0, ""), stderr
    assert json.loads(hook.site.last("--json").stdout)["entries"][0]["verdict"] in ("proved", "unproved")


@mutations(60)
def test_wrong_types(hook: Hook, data: st.DataObject, kind: str) -> None:
    without_a_process(hook, data, kind)


@mutations(30)
def test_wrong_types_with_a_tree(hook: Hook, data: st.DataObject, kind: str) -> None:
    with_a_tree(hook, data, kind)


@pytest.mark.long
@mutations(1500)
def test_wrong_types_at_length(hook: Hook, data: st.DataObject, kind: str) -> None:
    without_a_process(hook, data, kind)


@pytest.mark.long
@mutations(500)
def test_wrong_types_with_a_tree_at_length(hook: Hook, data: st.DataObject, kind: str) -> None:
    with_a_tree(hook, data, kind)
