"""The house stands: a room imports only from the rooms below it, and the pure ones touch nothing."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

from tests.unit.test_light import GPUS, LIGHT, REPLAY, WIRE_UP

ROOT = Path(__file__).resolve().parents[2] / "oci_hpc_hooks"
MODULES = sorted(ROOT.rglob("*.py"))

#: Floors from the ground up (docs/design.md). The longest prefix counts.
FLOORS: Dict[str, int] = {
    "oci_hpc_hooks": 0,
    "oci_hpc_hooks.model": 0,
    "oci_hpc_hooks.errors": 0,
    "oci_hpc_hooks.shim": 0,
    "oci_hpc_hooks.wrapper": 0,
    "oci_hpc_hooks.situation": 0,
    "oci_hpc_hooks.unpack": 0,
    "oci_hpc_hooks.elf": 1,
    "oci_hpc_hooks.linux": 1,
    "oci_hpc_hooks.inputs": 2,
    "oci_hpc_hooks.decide": 3,
    "oci_hpc_hooks.apply": 4,
    "oci_hpc_hooks.overdue": 5,
    "oci_hpc_hooks.report": 5,
    "oci_hpc_hooks.replay": 5,
    "oci_hpc_hooks.wireup": 5,
    "oci_hpc_hooks.network": 5,
    "oci_hpc_hooks.precreate": 5,
    "oci_hpc_hooks.start": 5,
    "oci_hpc_hooks.warm": 5,
    "oci_hpc_hooks.record": 5,
    "oci_hpc_hooks.cold": 5,
    "oci_hpc_hooks.pack": 5,
    "oci_hpc_hooks.cli": 6,
}

#: What opens files, asks the kernel, or makes a function's answer depend on anything but its arguments.
IMPURE = {"os", "posix", "io", "pathlib", "subprocess", "tempfile", "shutil", "socket", "time", "random", "fcntl", "glob", "platform",
          "sys"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> int:
    while module not in FLOORS:
        module = module.rpartition(".")[0]
        assert module, "a module that is on no floor: give it one here"
    return FLOORS[module]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[Tuple[str, int]]:
    """Every module that is imported anywhere in the file, inside functions too, with the line."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            for alias in node.names:
                below = ROOT.parent / module.replace(".", "/") / alias.name
                yield (f"{module}.{alias.name}" if below.is_dir() or below.with_suffix(".py").is_file() else module), node.lineno


def test_every_room_is_in_the_table() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages | {path.stem for path in ROOT.glob("*.py")} - {"__init__"} == {module.partition(".")[2] for module in FLOORS} - {""}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_from_below(path: Path) -> None:
    module = name_of(path)
    wrong: List[str] = []
    for imported, line in imports(path):
        if not imported.startswith("oci_hpc_hooks") or room(imported) == room(module):
            continue
        same = floor(imported) == floor(module) and floor(module) in (1, 2, 3, 4)
        if floor(imported) > floor(module) or same:
            wrong.append(f"{path.name}:{line} imports {imported}")
    assert not wrong


def test_no_modules_import_each_other() -> None:
    """Not by any detour, not inside functions either, and not for a type alone."""
    graph = {name_of(path): {imported for imported, _ in imports(path) if imported.startswith("oci_hpc_hooks.")} for path in MODULES}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", sorted((ROOT / "decide").glob("*.py")), ids=name_of)
def test_decisions_rest_on_the_model_and_on_elf_alone(path: Path) -> None:
    ours = {room(imported) for imported, _ in imports(path) if imported.startswith("oci_hpc_hooks")}
    assert ours <= {"model", "errors", "situation", "elf", "decide"}


@pytest.mark.parametrize("path", [ROOT / "model.py", ROOT / "errors.py", *sorted((ROOT / "decide").glob("*.py"))], ids=name_of)
def test_what_is_pure_imports_nothing_that_touches_the_world(path: Path) -> None:
    found: Set[str] = {imported.partition(".")[0] for imported, _ in imports(path)}
    assert found & IMPURE == set()
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    assert names & {"open", "print", "input", "exec", "eval", "__import__"} == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_light_module_says_so(path: Path) -> None:
    """test_light.py lists what a hook imports; each of these tells the reader why its style is odd."""
    if name_of(path) not in LIGHT | REPLAY | WIRE_UP | GPUS or path.name == "__init__.py":
        return
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").lower()
    assert "light module" in text
