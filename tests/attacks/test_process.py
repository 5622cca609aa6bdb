# ruff: noqa: F811 (fixtures are imported)
"""The hook's own process: what it was started with, what it can do, how long it lives. CVE-2024-21626 (leaked descriptors), CVE-2019-5736
(its executable in the container's reach), and all that would turn a defect of ours into more than a defect.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oci_hpc_hooks import overdue, warm
from tests.attacks import hostile
from tests.attacks.weaken import Edit, weakened, wrapped
from tests.bed import bed
from tests.bed.bed import Engine, Result
from tests.bed.site import Site
from tests.engine.inside import HELLO, assert_site
from tests.engine.site import ReadySite, ready, site, three_engines  # noqa: F401

# ------------------------------------------------------------------------------------------------ what it is

#: Python in the hook, that writes down what the kernel says of it; for a place where nothing else is done any more.
LOOK = """
        import json, os, resource, signal
        found = {{"status": open("/proc/self/status").read(), "cwd": os.getcwd(), "fds": os.listdir("/proc/self/fd"),
                  "owner": os.stat("/proc/self/environ").st_uid, "alarm": signal.alarm(0), "environment": dict(os.environ),
                  "ignored": [n for n in (1, 2, 3, 14, 15, 24) if signal.getsignal(n) == signal.SIG_IGN],
                  "limits": [resource.getrlimit(n)[0] for n in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)]}}
        os.write(self.journal, (json.dumps({{"probe": found}}) + chr(10)).encode())
"""
#: Once nothing is left to mount.
LAST = "        self.log(record[\"verdict\"], path, profile=record[\"profile\"],\n"


#: By a runtime that ignores what should end a process, and leaves a descriptor of the host's root directory open (CVE-2024-21626).
ODD = """#!/bin/bash
trap '' HUP INT QUIT TERM ALRM
umask 0
cd /usr
exec 7</ 8</ 9</
exec env -u PWD -u OLDPWD -u SHLVL -u _ {hook} "$@"
"""


def probed(engine: Engine, site: Site, scratch: Path, place: str, *edits: Edit, stage: str = "", name: str = "weak") -> dict[str, Any]:
    """What the hook finds of itself at this place, however odd it was started."""
    hooks = weakened(site, scratch, ("replay.py", place, LOOK.format() + place), *edits, name=name) / stage
    log = Path(site.log_file if engine.user == "root" else f"/run/user/{engine.account.uid}/oci-hpc-hooks/hooks.log")
    done = engine.run("bookworm-mpich", "true", hooks_dir=wrapped(hooks, scratch / "odd", ODD))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines() if '"probe"' in line]
    found: dict[str, Any] = lines[-1]["probe"]
    found["status"] = dict(line.split(":\t", 1) for line in found["status"].splitlines() if ":\t" in line)
    return found


@three_engines
def test_what_is_left_to_the_hook(engine: Engine, site: Site, scratch: Path) -> None:
    """After its last mount it has no capability and no way to one; nobody can look into it, and nothing that it inherited is in force."""
    found = probed(engine, site, scratch, LAST)
    status = found["status"]
    assert {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == dict.fromkeys(
        ("CapEff", "CapPrm", "CapInh", "CapAmb"), 0)
    assert status["NoNewPrivs"] == "1" and int(status["SigBlk"], 16) == 0 and status["Umask"] == "0022"
    assert found["ignored"] == [] and 0 < found["alarm"] <= warm.TIME_LIMIT
    assert found["cwd"] == "/"
    assert all(0 < value < 1 << 40 for value in found["limits"]), found["limits"]
    assert set(found["environment"]) <= {"PATH", "LC_ALL", "LC_CTYPE"}
    # The three, its journal, the container's root, and the one that looks; before a user namespace is joined, what it speaks to.
    assert len(found["fds"]) <= (8 if engine.user == "keep-id" else 6), found["fds"]


WITHOUT = {
    "capabilities": [("replay.py", "        syscalls.give_up_privileges()\n", "        pass\n")],
    "privileges to come": [("replay.py", "    syscalls.keep_privileges()\n", "")],
    "signals": [("warm.py", "    for number in (SIGHUP, SIGINT, SIGQUIT, SIGTERM):\n        signal(number, SIG_DFL)\n", "")],
    "umask": [("warm.py", "    posix.umask(0o022)\n", "")],
    "limits": [("replay.py", "        syscalls.limit(resource, most)", "        pass")],
    "time": [("warm.py", "    alarm(TIME_LIMIT)\n", "")],
    "descriptors": [("replay.py", "syscalls.close_range(3)", "pass")],
}


def test_what_would_be_left_without_the_defences(ready: ReadySite, scratch: Path) -> None:
    engine = Engine("runc", "root")
    found = probed(engine, ready(engine), scratch, LAST, *(edit for edits in WITHOUT.values() for edit in edits))
    status = found["status"]
    assert int(status["CapEff"], 16) and status["NoNewPrivs"] == "0"
    assert {1, 2, 3, 15} <= set(found["ignored"]) and found["alarm"] == 0
    assert status["Umask"] == "0000" and {"7", "8", "9"} <= set(found["fds"])
    assert not all(0 < value < 1 << 40 for value in found["limits"])


#: What python-prctl, which has asked the kernel in its own way since 2010, says of a process before and after.
OTHER_EYE = """
import sys; sys.path.append({root!r})
import prctl, json, resource
from oci_hpc_hooks.linux import syscalls
def state():
    sets = prctl.cap_effective, prctl.cap_permitted, prctl.cap_inheritable
    return [prctl.get_dumpable(), prctl.get_no_new_privs(), [name for name in prctl.ALL_CAP_NAMES for of in sets if getattr(of, name)],
            resource.getrlimit(resource.RLIMIT_AS)[0]]
before = state()
syscalls.set_not_dumpable()
syscalls.limit(syscalls.RLIMIT_AS, 1 << 32)
syscalls.keep_privileges()
between = state()
syscalls.give_up_privileges()
print(json.dumps([before, between, state()]))
"""


def test_by_another_eye() -> None:
    pytest.importorskip("prctl", reason="python-prctl is not installed: `make setup` does it, and not in Debian 13's folder")
    code = OTHER_EYE.format(root=str(bed.ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    before, between, after = json.loads(done.stdout)
    assert before[:2] == [1, 0] and "sys_admin" in before[2]
    assert between == [0, 1, before[2], 1 << 32]
    assert after == [0, 1, [], 1 << 32]


# ------------------------------------------------------------------------------------------------ how long it lives

def hook(stdin: int, *, limit: int = 1, before: str = "") -> subprocess.Popen[str]:
    """The hook's main, with this standard input, signals blocked and ignored, and a second to live."""
    code = (f"import sys, time; sys.path.append({str(bed.ROOT)!r})\nfrom oci_hpc_hooks import warm\nwarm.TIME_LIMIT = {limit}\n{before}\n"
            "warm.main('createRuntime', config='/nowhere', state='/nowhere', cache='/nowhere', log='/nowhere/log')")
    blocked = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
    return subprocess.Popen([sys.executable, "-IS", "-c", code], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, blocked) and None)


def test_a_runtime_that_never_ends_its_state() -> None:
    read, write = os.pipe()
    child = hook(read)
    _, stderr = child.communicate(timeout=20)
    os.close(write)
    os.close(read)
    assert child.returncode == 1
    assert stderr.startswith("oci-hpc-hooks: the hook was not done within 1 s: it was waiting for the end of what the runtime writes to "
                             "its standard input. Site admin: find out") and stderr.count("\n") == 1


def test_processor_time() -> None:
    """A hook that turns in circles says so."""
    read, write = os.pipe()
    child = hook(read, limit=60, before="import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 30))\n"
                 "def busy(*_):\n    while True: pass\nwarm.container.read_stdin = busy")
    _, stderr = child.communicate(timeout=30)
    os.close(write)
    os.close(read)
    assert child.returncode == 1 and "its processor time" in stderr, stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it(number: int) -> None:
    read, write = os.pipe()
    child = hook(read, limit=30)
    while "SigBlk:\t0000000000000000" not in Path(f"/proc/{child.pid}/status").read_text():
        pass
    assert os.readlink(f"/proc/{child.pid}/cwd") == "/"
    child.send_signal(number)
    _, stderr = child.communicate(timeout=20)
    os.close(write)
    os.close(read)
    assert (child.returncode, stderr) == (-number, "")


def test_every_step_has_its_function() -> None:
    import importlib

    for module, name in overdue.STEPS:
        there = importlib.import_module(f"oci_hpc_hooks.{module}")
        assert hasattr(there, name) or any(hasattr(value, name) for value in vars(there).values() if isinstance(value, type)), name


@pytest.mark.parametrize("path", [*(bed.ROOT / "hooks.d").rglob("*.json")], ids=lambda path: str(path.relative_to(bed.ROOT / "hooks.d")))
def test_it_speaks_before_the_runtime_kills_it(path: Path) -> None:
    assert json.loads(path.read_text())["hook"]["timeout"] >= warm.TIME_LIMIT + 5


SLOW = (("inputs/image.py", "    tree = Tree(", "    path = '/of/the/image'\n    import time; time.sleep(30)\n    tree = Tree("),
        ("warm.py", "TIME_LIMIT = 50", "TIME_LIMIT = 1"))


@pytest.mark.parametrize("stage", ["", pytest.param("podman", marks=pytest.mark.long)])
def test_what_took_too_long_is_told(ready: ReadySite, scratch: Path, stage: str) -> None:
    engine = Engine("crun", "rootless")
    site = ready(engine)
    result = engine.run("bookworm-mpich", "true", hooks_dir=weakened(site, scratch, *SLOW) / stage)
    assert result.returncode != 0
    assert "was not done within 1 s: it was reading files of the image, at /of/the/image" in hostile.told(result)
    assert_site(engine.run("bookworm-mpich", *HELLO, hooks_dir=site.hooks_dir / stage))


# ------------------------------------------------------------------------------------------------ what of it the container sees

LIST = "print join(qq(\\n), map { $_ . ' ' . readlink } sort </proc/1/fd/*>), qq(\\n)"


def leaked(engine: Engine, hooks: Path) -> list[str]:
    """Descriptors of the container's first process beyond the standard ones."""
    return beyond(engine.run("bookworm-mpich", "perl", "-e", LIST, hooks_dir=hooks))


def beyond(result: Result) -> list[str]:
    assert result.returncode == 0, result.stderr
    found = {name: to for name, _, to in (line.partition(" ") for line in result.stdout.splitlines()) if to}
    assert {"/proc/1/fd/0", "/proc/1/fd/1", "/proc/1/fd/2"} <= set(found), result.stdout
    return [f"{name} {to}" for name, to in found.items() if int(name.rpartition("/")[2]) > 2 and not to.endswith("/fd")]


@three_engines
@pytest.mark.parametrize("stage", ["", pytest.param("podman", marks=pytest.mark.long)])
def test_no_descriptor_is_left_in_the_container(engine: Engine, site: Site, stage: str) -> None:
    """CVE-2024-21626. Of our hooks' own, that they close what they inherit is tested above, and that nobody gets at theirs in
    `test_effects.py`."""
    assert leaked(engine, site.hooks_dir / stage) == leaked(engine, Path("/var/empty"))


def test_a_descriptor_that_is_left_is_seen(ready: ReadySite) -> None:
    """By an engine that hands on one of the host's root directory, with our hooks."""
    engine = Engine("crun", "root")
    command = ["podman", "--runtime", "crun", "--hooks-dir", str(ready(engine).hooks_dir), "run", "--rm", "--net=none",
               "--name", engine.new_name(), "--preserve-fds=1", engine.load("bookworm-mpich"), "perl", "-e", LIST]
    found = beyond(engine.account.execute("sh", "-c", 'exec 3</; exec "$@"', "sh", *command))
    assert any(line.startswith("/proc/1/fd/3 ") for line in found), found
