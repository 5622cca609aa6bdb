# ruff: noqa: F811 (fixtures are imported)
"""CVE-2025-23266 ("NVIDIAScape"): the image's or the user's environment, or files in its working directory, make root's hook load code.

The image sets every variable by which a loader, a C library, Python or a shell loads something, to files of its own, and has files named
like the modules that we import in its root. At each stage of our descriptors, and whatever stands in podman's environment. Nothing of
it may run with the hook's rights: the files would leave a mark on the host.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks import hostile
from tests.attacks.hostile import Layer, told
from tests.attacks.weaken import wrapped
from tests.bed import bed
from tests.bed.bed import RUNTIMES, USERS, Engine
from tests.bed.site import Site
from tests.engine.site import ReadySite, ready, site  # noqa: F401

#: A library that marks the folder which lies beside it in whoever loads it, and says which program that was.
SOURCE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void run(void) {
    char exe[4096] = "";
    readlink("/proc/self/exe", exe, sizeof exe - 1);
    int fd = open(MARK, O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (fd >= 0) dprintf(fd, "%s\n", exe);
}
unsigned la_version(unsigned version) { return version; }
"""
MODULES = ("json", "posix", "_json", "_stat", "binascii", "os", "re", "sitecustomize", "usercustomize", "oci_hpc_hooks", "encodings",
           "dataclasses", "typing", "marshal", "time", "gc", "_ctypes")


def variables(top: str) -> list[str]:
    """Of the image, or of podman."""
    return [f"LD_PRELOAD={top}/poc.so", f"LD_AUDIT={top}/poc.so", f"LD_LIBRARY_PATH={top}", f"PYTHONPATH={top}", f"PYTHONHOME={top}",
            f"PYTHONSTARTUP={top}/json.py", "PYTHONINSPECT=1", f"PYTHONUSERBASE={top}", "PYTHONWARNINGS=error::poc.X",
            "PYTHONBREAKPOINT=poc.run", f"PYTHONPYCACHEPREFIX={top}", f"PYTHONEXECUTABLE={top}/python3", f"PYTHONPLATLIBDIR={top}",
            f"GCONV_PATH={top}", f"LOCPATH={top}", "LC_ALL=poc.UTF-8", "LANG=poc", "GLIBC_TUNABLES=glibc.malloc.check=3:glibc.rtld.nns=0",
            f"PATH={top}:/usr/local/bin:/usr/bin:/bin", f"BASH_ENV={top}/poc.sh", f"ENV={top}/poc.sh", f"NLSPATH={top}/%N",
            f"LD_ORIGIN_PATH={top}", f"HOME={top}", f"XDG_CONFIG_HOME={top}"]


@pytest.fixture
def poison(open_folder: Path) -> Iterator[Path]:
    """A folder of these files, which is on the host as well; ``mark`` in it is what they leave."""
    source = open_folder / "poc.c"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", f'-DMARK="{open_folder}/mark"', "-o", open_folder / "poc.so", source],
                   check=True, timeout=60)
    for name in MODULES:
        # Only what is built in: the interpreter has nothing else yet when it loads encodings.
        opened = f"posix.open({str(open_folder / 'mark')!r}, {os.O_WRONLY | os.O_CREAT | os.O_APPEND})"
        (open_folder / f"{name}.py").write_text(f"import posix\nposix.write({opened}, b'{name}\\n')\n")
    (open_folder / "poc.sh").write_text(f"echo shell >>{open_folder}/mark\n")
    for name in ("python3", "env", "sh", "ldconfig", "podman-poc"):
        (open_folder / name).write_text(f"#!/bin/sh\necho {name} >>{open_folder}/mark\n")
        (open_folder / name).chmod(0o755)
    for path in open_folder.iterdir():
        path.chmod(0o755)
    open_folder.chmod(0o777)
    yield open_folder


def poisoned(folder: Path) -> hostile.Edit:
    """The same files at the top of the container's tree, which is what a working directory would be."""

    def edit(layer: Layer) -> None:
        for path in folder.iterdir():
            if path.suffix in (".py", ".so", ".sh"):
                layer.write(f"/{path.name}", path.read_bytes(), mode=0o755)

    return edit


def marks(folder: Path) -> list[str]:
    """What has run of it outside of containers. podman may be given any environment by its user, and marks too: only hooks count."""
    mark = folder / "mark"
    found = mark.read_text().splitlines() if mark.exists() else []
    mark.unlink(missing_ok=True)
    return [line for line in found if not line.endswith(("/podman", "/conmon", "/crun", "/runc"))]


CASES = [pytest.param((runtime, user), stage, id=f"{runtime}-{user}-{stage or 'createRuntime'}",
                      marks=() if (runtime, user, stage) in (("runc", "root", ""),) else pytest.mark.long)
         for runtime in RUNTIMES for user in USERS for stage in ("", "podman")]


@pytest.mark.parametrize(("engine", "stage"), CASES, indirect=["engine"])
def test_environment_of_the_image(engine: Engine, site: Site, poison: Path, stage: str) -> None:
    for top in ("/proc/self/cwd", str(poison)):
        options = [word for item in variables(top) for word in ("--env", item)]
        result = hostile.start(engine, site.hooks_dir / stage, poisoned(poison), "/bin/true", options=[*options, "--workdir=/"])
        assert "defect" not in result.stderr and not told(result), result.stderr
        assert marks(poison) == []


@pytest.mark.parametrize("stage", ["createruntime", "precreate"])
def test_environment_of_whoever_starts_it(ready: ReadySite, poison: Path, scratch: Path, stage: str) -> None:
    """podman's own, as its user sets it: root's hooks get none of it. The hook itself, started with all of it but what is the loader's,
    runs nothing either; the loader's variables are kept away by the descriptor alone."""
    site = ready(Engine("crun", "root"))
    hook = site.hooks_dir / f"bin/oci-hpc-hooks-{stage}"
    env = dict(item.split("=", 1) for item in variables(str(poison)) if not item.startswith(("LD_", "GCONV")))
    done = subprocess.run([hook], env=env, cwd=poison, input='{"id":"x"}', capture_output=True, text=True, timeout=60, check=False)
    assert marks(poison) == [], done.stderr


@pytest.mark.long
def test_whoever_starts_it_without_the_defence(ready: ReadySite, poison: Path) -> None:
    """The same executable by an interpreter that looks at its environment, at the site's modules and at its working directory."""
    hook = ready(Engine("crun", "root")).hooks_dir / "bin/oci-hpc-hooks-createruntime"
    python = hook.read_bytes()[2:].split()[0].decode()
    done = subprocess.run([python, hook], env={"PYTHONPATH": str(poison)}, cwd=poison, input='{"id":"x"}', capture_output=True, text=True,
                          timeout=60, check=False)
    assert marks(poison), done.stderr


def test_descriptors_name_an_environment(ready: ReadySite) -> None:
    """Explicit and not empty: with none a runtime hands on its own, and runc 1.1 the container's."""
    for folder in (bed.ROOT / "hooks.d", ready(Engine("crun", "root")).hooks_dir):
        found = list(folder.rglob("*.json"))
        assert len(found) == 5
        for path in found:
            hook = json.loads(path.read_text())["hook"]
            assert [item.partition("=")[0] for item in hook["env"]] == ["PATH", "LC_ALL"], path
            assert hook["path"].startswith("/") and hook["args"][0] == hook["path"]


def bare(hooks: Path, folder: Path, script: str, stage: str) -> Path:
    """The same without an environment in the descriptor, at another stage."""
    made = wrapped(hooks, folder, script)
    for descriptor in made.glob("*.json"):
        document = json.loads(descriptor.read_text())
        document["stages"] = [stage]
        del document["hook"]["env"]
        descriptor.write_text(json.dumps(document))
    return made


@pytest.mark.long
def test_without_the_defences(ready: ReadySite, scratch: Path, poison: Path) -> None:
    """A hook as others write it: started by ``env python3``, in the environment of whoever starts containers."""
    engine = Engine("crun", "root")
    hooks = bare(ready(engine).hooks_dir, scratch / "naive", "#!/usr/bin/env python3\nimport json\n", "createRuntime")
    engine.run("bookworm-mpich", "true", hooks_dir=hooks, env={"PATH": f"{poison}:/usr/bin:/bin:/usr/sbin:/sbin"})
    assert "python3" in marks(poison)


def test_without_the_defences_in_the_environment_of_the_image(ready: ReadySite, scratch: Path, poison: Path) -> None:
    """CVE-2025-23266 itself: our own hook at createContainer without an environment, where runc before 1.3 hands on the container's."""
    engine = Engine("runc", "root")
    version = engine.account.execute("runc", "--version", check=True).stdout.split()[2]
    if [int(part) for part in version.split("+")[0].split(".")[:2]] >= [1, 3]:
        pytest.skip(f"runc {version} gives the container's environment to no hook of createContainer")
    hooks = bare(ready(engine).hooks_dir, scratch / "bare", "#!/bin/sh\nexec {hook}\n", "createContainer")
    options = ["--env", "LD_PRELOAD=/proc/self/cwd/poc.so", "--workdir=/"]
    hostile.start(engine, hooks, poisoned(poison), "/bin/true", options=options)
    assert any("python" in line or line.endswith("/dash") for line in marks(poison))
