"""Images that no builder makes: an OCI layout written byte by byte, over a root filesystem with busybox."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Union

from tests.bed import bed
from tests.bed.bed import Engine

LAYER = bed.BUILD / "images/musl.tar"
#: What stands in raw JSON for the id of the only layer.
DIFF_ID = "@DIFF_ID@"

_KIND = "application/vnd.oci.image"


def config(**settings: Any) -> dict[str, Any]:
    """An image's configuration with these settings (``Env``, ``Labels``)."""
    return {"architecture": "amd64", "os": "linux", "config": settings, "rootfs": {"type": "layers", "diff_ids": [DIFF_ID]}}


class Forge:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[tuple[Engine, str]] = []

    def make(self, engine: Engine, configuration: Union[str, dict[str, Any]], annotations: str = "") -> str:
        """The id of a new image in this engine's store. Text is taken as it is; ``annotations`` is what the manifest has beyond the
        usual, as JSON members."""
        shutil.rmtree(self._folder, ignore_errors=True)
        blobs = self._folder / "blobs/sha256"
        blobs.mkdir(parents=True)

        def blob(data: bytes, kind: str) -> dict[str, Any]:
            digest = hashlib.sha256(data).hexdigest()
            (blobs / digest).write_bytes(data)
            return {"mediaType": f"{_KIND}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

        layer = blob(LAYER.read_bytes(), "layer.v1.tar")
        text = configuration if isinstance(configuration, str) else json.dumps(configuration)
        described = blob(text.replace(DIFF_ID, layer["digest"]).encode(), "config.v1+json")
        manifest = json.dumps({"schemaVersion": 2, "mediaType": f"{_KIND}.manifest.v1+json", "config": described, "layers": [layer]})
        listed = blob((manifest[:-1] + ("," if annotations else "") + annotations + "}").encode(), "manifest.v1+json")
        (self._folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
        (self._folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        identity = engine.podman("pull", "--quiet", f"oci:{self._folder}", check=True).stdout.split()[-1]
        self._made.append((engine, identity))
        return identity

    def clean(self) -> None:
        for engine, identity in self._made:
            engine.podman("rmi", "--force", "--ignore", identity)
