"""A hook's executable with the light modules in it: whatever has become of them, the container starts."""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import List, Set, Tuple

import pytest

from oci_hpc_hooks import pack
from tests.unit.test_light import ALLOWED, ALLOWED_IN_REPLAY, DEVICES, GPUS, HEAVY, LIGHT, REPLAY, WIRE_UP, bare  # noqa: F401

PRECREATE = {"oci_hpc_hooks.precreate", "oci_hpc_hooks.apply.config"}
MODULES = LIGHT | REPLAY | PRECREATE | WIRE_UP | GPUS

MAKE = """
import sys
sys.path.insert(0, {0!r})
from oci_hpc_hooks import pack
sys.stdout.buffer.write(pack.executable({1!r}, [{0!r}], *{2!r}))
"""
#: Instead of the hook's work: every module that a hook may need, and which of them were read from the package.
PROBE = """
import oci_hpc_hooks.replay, oci_hpc_hooks.precreate, oci_hpc_hooks.wireup, oci_hpc_hooks.linux.bpf, oci_hpc_hooks.linux.cgroups
import oci_hpc_hooks.decide.job, oci_hpc_hooks.inputs.launcher
import oci_hpc_hooks.decide.gpus, oci_hpc_hooks.inputs.gpus
own = {name: module for name, module in sys.modules.items() if name.startswith("oci_hpc_hooks")}
others = [name for name in sys.modules if name not in own]
read = [name for name, module in own.items() if hasattr(module, "__cached__")]
import json
print(json.dumps([sorted(own), sorted(read), others]))
"""


def test_the_places_that_it_goes_by() -> None:
    places = ("/etc/a 'b'", "/var/s, state=", "/c", "/l")
    assert pack.places(pack.executable(sys.executable, ["/x"], "precreate", *places)) == places
    for text in ("#!/bin/sh\n", "main('x', config=f(), state=1, cache=2, log=3)\n", "main('x', config=(, state=, cache=, log=)\n"):
        assert pack.places(text.encode()) == ()


class Hook:
    """An executable of a copy of the package, made as register makes it."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.package = folder / "lib/oci_hpc_hooks"
        shutil.copytree(pack.PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self.file = folder / "hook"
        self.python = python
        self.bundle = folder / "bundle"
        self.bundle.mkdir()
        (self.bundle / "config.json").write_text('{"root": {"path": "rootfs"}, "process": {"args": ["true"], "cwd": "/"}}')
        self.make()

    def make(self) -> None:
        rest = ["createRuntime", *(str(self.package.parent / name) for name in ("etc", "state", "cache", "log"))]
        command = [sys.executable, "-c", MAKE.format(str(self.package.parent), self.python, rest)]
        self.write(subprocess.run(command, capture_output=True, check=True).stdout)

    def write(self, data: bytes) -> None:
        self.file.write_bytes(data)
        self.file.chmod(0o755)

    def starts(self) -> bool:
        """Whether a container that asks for nothing is left alone, without a word."""
        state = json.dumps({"ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 4242, "bundle": str(self.bundle)})
        done = subprocess.run([str(self.file)], input=state, capture_output=True, text=True, env={}, cwd="/")
        assert (done.stdout, done.stderr) == ("", "")
        return done.returncode == 0

    def modules(self, before: str = "") -> Tuple[List[str], List[str], List[str]]:
        """Our modules, those of them that were read from the package, and all others."""
        data = self.file.read_bytes()
        text, code = pack.taken_apart(data)
        probe = self.file.with_name("probe")
        probe.write_bytes(pack.joined(self.python, text[:text.index(b"\nmain(") + 1] + (before + PROBE).encode(), code))
        probe.chmod(0o755)
        done = subprocess.run([str(probe)], capture_output=True, text=True, env={}, cwd="/")
        assert done.returncode == 0, done.stderr
        own, read, others = json.loads(done.stdout)
        return own, read, others


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


def test_the_light_modules_are_found_by_what_they_say() -> None:
    assert set(pack.light_modules()) == MODULES


def test_nothing_is_read_from_the_package(hook: Hook, bare: Set[str]) -> None:  # noqa: F811
    assert hook.starts()
    own, read, others = hook.modules()
    assert (set(own), read) == (MODULES, [])
    assert set(others) & HEAVY == set()
    # "from __future__ import" is left out of what is packed; the others are the executable's own.
    assert set(others) - set(bare) <= (ALLOWED | ALLOWED_IN_REPLAY | {"gc", "marshal"}) - {"__future__"}


@pytest.mark.parametrize("name", ["errors.py", "warm.py", "replay.py", "inputs/__init__.py", "linux/syscalls.py", "precreate.py"])
def test_a_changed_module_is_read_and_no_other(hook: Hook, name: str) -> None:
    with (hook.package / name).open("a") as file:
        file.write("assert __doc__ is None or True\n")
    assert hook.starts()
    own, read, _ = hook.modules()
    module = "oci_hpc_hooks." + name[:-3].replace("/", ".")
    assert (set(own), read) == (MODULES, [module.replace(".__init__", "")])


def test_a_package_of_another_time(hook: Hook) -> None:
    """As an upgrade leaves it, with the executables not registered again."""
    for path in hook.package.rglob("*.py"):
        os.utime(path, (1, 1))
    assert hook.starts()
    own, read, _ = hook.modules()
    assert (set(own), set(read)) == (MODULES, MODULES)
    hook.make()
    assert hook.modules()[1] == []


def test_a_module_that_is_gone_is_missed_as_ever(hook: Hook) -> None:
    """What is packed does not outlive the package: half of it would be of another release."""
    (hook.package / "errors.py").unlink()
    done = subprocess.run([str(hook.file)], input="", capture_output=True, text=True, env={}, cwd="/")
    assert done.returncode == 1
    assert done.stderr.startswith("oci-hpc-hooks: its package cannot be loaded: No module named 'oci_hpc_hooks.errors'. Site admin: look")
    assert done.stderr.count("\n") == 1


def test_another_interpreter(hook: Hook) -> None:
    """The name in the first line leads to another release of Python than at the time of register."""
    data = hook.file.read_bytes()
    magic = repr(importlib.util.MAGIC_NUMBER).encode()
    assert data.count(b"== " + magic) == 1
    hook.write(data.replace(b"== " + magic, b"== " + magic.replace(b"\\r\\n", b"\\n\\r")))
    assert hook.starts()
    own, read, _ = hook.modules()
    assert (set(own), set(read)) == (MODULES, MODULES)


def sizes(hook: Hook) -> Tuple[int, int, int, int]:
    """Where an executable's text ends, the code of every start, that of a replay, and the rest."""
    data = hook.file.read_bytes()
    text, code = pack.taken_apart(data)
    begin = len(data) - len(code)
    always = int(text.partition(b"code = f.read(")[2].partition(b")")[0])
    parts = marshal.loads(code[:always])[4]
    assert len(data) == begin + always + sum(length for length, _ in parts)
    return begin, begin + always, begin + always + parts[0][0], len(data)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damage_to_what_every_start_needs(hook: Hook, share: float, how: str) -> None:
    begin, end, _, _ = sizes(hook)
    damage(hook, begin + int((end - begin) * share), how)
    assert hook.starts()
    own, read, _ = hook.modules()
    assert (set(own), set(read)) == (MODULES, MODULES)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damage_to_what_a_replay_needs(hook: Hook, share: float, how: str) -> None:
    _, begin, end, _ = sizes(hook)
    damage(hook, begin + int((end - begin) * share), how)
    assert hook.starts()
    own, read, _ = hook.modules()
    assert (set(own), set(read)) == (MODULES, REPLAY | DEVICES if how == "flipped" else MODULES - LIGHT)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damage_to_the_rest(hook: Hook, share: float, how: str) -> None:
    _, _, begin, end = sizes(hook)
    damage(hook, begin + int((end - begin) * share), how)
    assert hook.starts()
    own, read, _ = hook.modules()
    assert (set(own), set(read)) == (MODULES, MODULES - LIGHT - REPLAY - DEVICES)


def damage(hook: Hook, place: int, how: str) -> None:
    data = bytearray(hook.file.read_bytes())
    if how == "cut":
        del data[place:]
    else:
        data[place] ^= 0x55
    hook.write(bytes(data))


def test_a_descriptor_that_was_closed_in_between(hook: Hook) -> None:
    """The hook closes all that it was given before it enters a namespace; what it has not read by then, it reads from the package."""
    own, read, _ = hook.modules("import posix; posix.closerange(3, 100); other = posix.open('/dev/zero', posix.O_RDONLY)")
    assert (set(own), set(read)) == (MODULES, MODULES - LIGHT)


def test_an_extension_that_has_moved(hook: Hook) -> None:
    """It is searched for, as ever."""
    data = hook.file.read_bytes()
    found = {path for source in pack.light_modules().values() for path in source.extensions.values()}
    if not found:
        pytest.skip("this interpreter has all of them built in")
    for path in found:
        data = data.replace(path.encode(), path.encode()[:-1] + b"?")
    text, code = pack.taken_apart(data)
    begin, end, _, _ = sizes(hook)
    old, new = (b"== %d:" % zlib.crc32(part[: end - begin]) for part in (pack.taken_apart(hook.file.read_bytes())[1], code))
    assert text.count(old) == 1
    hook.write(pack.joined(hook.python, text.replace(old, new), code))
    assert hook.starts()
    assert hook.modules()[1] == []


def test_a_long_name_of_the_interpreter(tmp_path: Path) -> None:
    """The kernel reads 255 bytes of the first line: where the command does not fit, it is a script that imports from the package."""
    for length, packed in ((pack.FIRST_LINE - 1 - len(pack._FIRST.format(python="", size=0)) + 1, True), (pack.FIRST_LINE - 8, False)):
        folder = tmp_path / str(packed)
        python = folder / ("d" * 100)
        python = python / ("e" * (length - len(str(python)) - len("//p"))) / "p"
        python.parent.mkdir(parents=True)
        python.symlink_to(os.path.realpath(sys.executable))
        assert len(str(python)) == length
        hook = Hook(folder, str(python))
        assert hook.file.read_bytes().startswith(b"#!%s -IS%s" % (str(python).encode(), b"cimport" if packed else b"\n"))
        assert hook.starts()


def test_what_is_outdated(hook: Hook) -> None:
    """As doctor asks: for as long as nothing is read from the package."""
    fresh = hook.file.read_bytes()
    assert pack.outdated(fresh) == "" and hook.modules()[1] == []
    module = hook.package / "record.py"  # not packed
    os.utime(module, (1, 1))
    assert pack.outdated(fresh) == ""
    module = hook.package / "warm.py"
    os.utime(module, (1, 1))
    assert pack.outdated(fresh) == f"{module} has changed since"
    module.unlink()
    assert pack.outdated(fresh) == f"{module}: No such file or directory"
    assert pack.outdated(b"#!/usr/bin/python3 -IS\nimport sys\n") == ""


def test_packed_in_a_folder_that_it_does_not_stay_in(tmp_path: Path) -> None:
    """As a distribution's package is made: the modules are looked for where they will be."""
    root = tmp_path / "root"
    shutil.copytree(pack.PACKAGE, root / "lib/oci_hpc_hooks", ignore=shutil.ignore_patterns("__pycache__"))
    make = MAKE.format(str(root / "lib"), sys.executable, []).replace("*[])", f"'createRuntime', 'e', 's', 'c', 'l', root={str(root)!r})")
    data = subprocess.run([sys.executable, "-c", make], capture_output=True, check=True).stdout
    assert str(root).encode() not in pack.taken_apart(data)[1]
    assert pack.outdated(data) == "/lib/oci_hpc_hooks/__init__.py: No such file or directory"
