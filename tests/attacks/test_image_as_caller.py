# ruff: noqa: F811 (fixtures are imported)
"""Confused deputy: an image that passes its own word off as that of whoever starts it.

Variables that an image sets must lead to no directory of the host, and annotations of its manifest must get nothing that is the caller's to
ask for. The hook tells whose word it is by reading the same files as the engine; so each way in which the two readings differ is an attack.
Go's decoder takes keys in any case and merges equal ones; podman cuts blanks off in front of a variable's name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.attacks.images import Forge, config
from tests.attacks.weaken import Edit, weakened
from tests.bed.bed import Engine
from tests.engine.site import ReadySite, ready  # noqa: F401

AUTO = "--annotation=org.supercontainers.launcher=auto"
STAGES = ("", "podman")


def disguised(variables: list[str]) -> dict[str, str]:
    """Configurations with variables that podman finds and that a plain reader of JSON would not, by what is odd in them."""
    plain = json.dumps(config(Env=variables))
    return {
        "plain": plain,
        "blanks": json.dumps(config(Env=[f" \t{item}" for item in variables])),
        "case": plain.replace('"Env"', '"eNV"'),
        "two cases": plain.replace('"Env"', '"Env": ["A=1"], "env"'),
        "outer case": plain.replace('"config"', '"CONFIG"'),
        "twice": plain.replace('"rootfs"', '"config": {}, "rootfs"'),
        "deep": plain[:-1] + ', "x": ' + "[" * 3000 + "]" * 3000 + "}",
        "no text": plain[:-1] + ', "x": "\\ud800"}',
    }


def reads_the_host(engine: Engine, hooks: Path, image: str, made: Path, *options: str) -> bool:
    """Whether the container gets at the directory. podman has given it the image's variables in every case."""
    script = f"echo rank $PMIX_RANK; cat {made}/secret; echo x >{made}/new"
    result = engine.run(image, "sh", "-c", script, options=options, hooks_dir=hooks)
    assert "rank 0" in result.stdout, result.stderr
    reads = "of the host" in result.stdout
    assert [path.name for path in made.iterdir() if path.name != "secret"] == (["new"] if reads else [])
    return reads


@pytest.fixture
def made(open_folder: Path) -> Path:
    folder = open_folder / "pmix.0.0"
    folder.mkdir(mode=0o700)
    (folder / "secret").write_text("of the host\n")
    return folder


def variables(made: Path) -> list[str]:
    return ["PATH=/bin", "PMIX_RANK=0", f"PMIX_SERVER_TMPDIR={made}"]


@pytest.mark.parametrize("way", disguised([]))
def test_a_directory_that_the_image_names(ready: ReadySite, forge: Forge, made: Path, way: str) -> None:
    engine = Engine("crun", "root")
    image = forge.make(engine, disguised(variables(made))[way])
    for stage in STAGES:
        assert not reads_the_host(engine, ready(engine).hooks_dir / stage, image, made, AUTO)


#: What cannot be read leaves two things unknown: whose variables these are, and whose annotations.
UNREAD = (("inputs/launcher.py", "if image_env is not None:", "image_env = image_env or ()\n    if True:"),
          ("start.py", "if self.image.doubtful:", "if False:"))


@pytest.mark.parametrize(("way", "edits"), [
    ("blanks", [("inputs/storage.py", "item.lstrip()", "item")]),
    ("two cases", [("inputs/storage.py", "if key != name and", "if False and")]),
    ("twice", UNREAD), ("deep", UNREAD),
], ids=lambda value: value if isinstance(value, str) else "")
def test_without_the_defence(ready: ReadySite, forge: Forge, scratch: Path, made: Path, way: str, edits: Sequence[Edit]) -> None:
    engine = Engine("crun", "root")
    if way == "deep" and reads_deep():
        pytest.skip("this Python's json reads 3,000 lists in each other, and nothing is unread")
    hooks = weakened(ready(engine), scratch, *edits)
    assert reads_the_host(engine, hooks, forge.make(engine, disguised(variables(made))[way]), made, AUTO)


def reads_deep() -> bool:
    try:
        return bool(json.loads(disguised([])["deep"]))
    except RecursionError:
        return False


WORDS = '{"org.supercontainers.launcher": "auto"}'
ASKING = {
    "plain": f'"annotations": {WORDS}',
    "case": f'"Annotations": {WORDS}',
    "twice": f'"annotations": {WORDS}, "annotations": {{}}',
    "no text": f'"annotations": {WORDS}, "x": "\\ud800"',
}


@pytest.mark.parametrize("way", ASKING)
def test_what_the_manifest_asks_for(ready: ReadySite, forge: Forge, way: str) -> None:
    """Before 4.5.1 podman hands its annotations on as if the caller had given them."""
    engine = Engine("crun", "root")
    image = forge.make(engine, config(Env=["PATH=/bin"]), ASKING[way])
    for stage in STAGES:
        result = engine.run(image, "sh", "-c", "echo rank $PMIX_RANK.", env={"PMIX_RANK": "3"}, hooks_dir=ready(engine).hooks_dir / stage)
        assert result.stdout == "rank .\n", result.stderr


def test_what_the_manifest_asks_for_without_the_defence(ready: ReadySite, forge: Forge, scratch: Path, made: Path) -> None:
    """Both at once: the manifest asks for the job's directory, and the image says which one that is."""
    engine = Engine("crun", "root")
    if not hands_on_annotations(engine, forge):
        pytest.skip("this podman does not hand them on")
    image = forge.make(engine, config(Env=variables(made)), ASKING["case"])
    assert not reads_the_host(engine, ready(engine).hooks_dir, image, made)
    assert reads_the_host(engine, weakened(ready(engine), scratch, *UNREAD), image, made)


def hands_on_annotations(engine: Engine, forge: Forge) -> bool:
    name = engine.new_name()
    engine.podman("create", "--name", name, forge.make(engine, config(Env=["PATH=/bin"]), ASKING["plain"]), "true", check=True)
    return "org.supercontainers.launcher" in engine.podman("inspect", name, check=True).stdout.split('"Annotations"')[1].split("}")[0]
