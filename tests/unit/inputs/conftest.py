"""Real bundles and stores, laid out as the hook that captured them saw them (data/podman/README.md)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Callable, List

import pytest

from oci_hpc_hooks.inputs import container, storage

DATA = Path(__file__).parent / "data" / "podman"

PODMAN_CASES = sorted(case.name for case in DATA.iterdir() if case.is_dir() and not case.name.startswith("bare-"))
BARE_CASES = ["bare-crun", "bare-runc"]


class Captured:
    """One captured start of a container, below a temporary directory."""

    def __init__(self, case: str, where: Path) -> None:
        self.graphroot, self.runroot, self.lender, self.bare = (where / name for name in ("graphroot", "runroot", "lender", "bare"))
        self.proc = where / "proc"
        self.source = DATA / case
        self.state = self.text("state.json").encode()
        state = json.loads(self.state)
        self.id: str = state["id"]
        self.bundle = Path(state["bundle"])
        self.bundle.mkdir(parents=True)
        (self.bundle / "config.json").write_text(self.text("config.json"))
        self.config = json.loads(self.text("config.json"))
        self.rootfs: str = container.absolute(state["bundle"], self.config["root"]["path"])
        for path in self.source.rglob("*"):
            relative = path.relative_to(self.source)
            if path.is_file() and len(relative.parts) > 1:
                target = self.lender / relative.relative_to("lender") if relative.parts[0] == "lender" else self.graphroot / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        self._make_proc()

    def text(self, name: str) -> str:
        """A captured text with this machine's paths in it."""
        text = (self.source / name).read_text()
        for mark, path in (("GRAPHROOT", self.graphroot), ("RUNROOT", self.runroot), ("LENDER", self.lender), ("BUNDLE", self.bare)):
            text = text.replace(f"@{mark}@", str(path))
        return text

    def lines(self, name: str) -> List[str]:
        return self.text(name).split("\n")[:-1] if (self.source / name).exists() else []

    def _make_proc(self) -> None:
        # A process tree made of files: the runtime that was our parent is gone, and a test cannot have it as its parent again.
        runtime, monitor = os.getppid(), 4194305
        self.runtime, self.monitor = self.proc / str(runtime), self.proc / str(monitor)
        for path, arguments in ((self.runtime, self.lines("runtime.cmdline")), (self.monitor, self.lines("monitor.cmdline"))):
            path.mkdir(parents=True)
            (path / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in arguments))
        (self.runtime / "stat").write_text(f"{runtime} (a) b) c) S {monitor} 1 1 0")
        (self.runtime / "cwd").symlink_to(self.bundle.parent)
        (self.proc / "self").mkdir()
        (self.proc / "self" / "mountinfo").write_text(self.text("mountinfo"))


@pytest.fixture(params=PODMAN_CASES)
def podman_case(request: pytest.FixtureRequest) -> str:
    """Every container that podman started."""
    return str(request.param)


@pytest.fixture(params=BARE_CASES)
def bare_case(request: pytest.FixtureRequest) -> str:
    """Every container that was started without an engine."""
    return str(request.param)


@pytest.fixture(params=PODMAN_CASES + BARE_CASES)
def any_case(request: pytest.FixtureRequest) -> str:
    """Every container."""
    return str(request.param)


@pytest.fixture
def captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Captured]:
    """A function that lays out a case of data/podman and makes the readers look there for /proc and storage.conf."""

    def lay_out(case: str) -> Captured:
        found = Captured(case, tmp_path)
        monkeypatch.setattr(container, "_PROC", str(found.proc))
        monkeypatch.setattr(storage, "_PROC", str(found.proc))
        monkeypatch.setattr(storage, "_STORAGE_CONF", (str(tmp_path / "etc-storage.conf"), str(tmp_path / "usr-storage.conf")))
        return found

    return lay_out
