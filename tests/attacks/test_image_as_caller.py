# ruff: noqa: F811 (fixtures are imported)
"""Confused deputy: an image that passes its own word off as that of whoever starts it.

Variables that an image sets must lead to no directory of the host, and annotations of its manifest must get nothing that is the caller's to
ask for. The hook tells whose word it is by reading the same files as the engine; so each way in which the two readings differ is an attack.
Go's decoder takes keys in any case and merges equal ones; podman cuts blanks off in front of a variable's name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.attacks.images import Forge, config
from tests.bed.bed import Engine
from tests.engine.site import ReadySite, ready  # noqa: F401

AUTO = "--annotation=org.supercontainers.launcher=auto"
STAGES = ("", "podman")


def disguised(variables: list[str]) -> dict[str, str]:
    """Configurations with variables that podman finds and that a plain reader of JSON would not, by what is odd in them."""
    plain = json.dumps(config(Env=variables))
    wanted = json.dumps(variables)
    return {
        "plain": plain,
        "blanks": json.dumps(config(Env=[f" \t{item}" for item in variables])),
        "case": plain.replace('"Env"', '"eNV"'),
        "two cases": plain.replace('"Env"', '"Env": ["A=1"], "env"'),
        "outer case": plain.replace('"config"', '"CONFIG"'),
        "twice": plain.replace('"config"', f'"config": {{"Env": {wanted}}}, "config"').replace(f'{{"Env": {wanted}}}, "rootfs"', '{}, "rootfs"'),
        "large": plain[:-1] + ', "history": [' + ", ".join(['{"comment": "' + "x" * 1000 + '"}'] * 3900) + "]}",
        "deep": plain[:-1] + ', "x": ' + "[" * 3000 + "]" * 3000 + "}",
        "no text": plain[:-1] + ', "x": "\\ud800"}',
    }


@pytest.mark.parametrize("way", disguised([]))
def test_a_directory_that_the_image_names(ready: ReadySite, forge: Forge, open_folder: Path, way: str) -> None:
    engine = Engine("crun", "root")
    made = open_folder / "pmix.0.0"
    made.mkdir(mode=0o700)
    (made / "secret").write_text("of the host\n")
    image = forge.make(engine, disguised(["PATH=/bin", "PMIX_RANK=0", f"PMIX_SERVER_TMPDIR={made}"])[way])
    for stage in STAGES:
        result = engine.run(image, "sh", "-c", f"echo rank $PMIX_RANK; cat {made}/secret; echo x >{made}/new", options=[AUTO],
                            hooks_dir=ready(engine).hooks_dir / stage)
        assert "rank 0" in result.stdout, result.stderr  # podman has read it so
        assert "of the host" not in result.stdout and [path.name for path in made.iterdir()] == ["secret"]
    shutil.rmtree(made)
