"""What a start is made of: who asks for what, in which container (light module: see :mod:`oci_hpc_hooks.warm`)."""

from __future__ import annotations

from oci_hpc_hooks.errors import HookError
from oci_hpc_hooks.inputs import container, jsontext, storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Mapping

#: Annotations and labels that are read; everything else is none of our business.
PREFIXES = ("org.supercontainers.", "com.hooks.mpi.")

SITE_LIMIT = 1 << 20


class Start:
    """One container that is being created: what the runtime, the bundle and the image store say about it, and what is asked for.

    ``words`` are (source, key, value) of every annotation and label of ours; ``defaults`` what the site gives to every container.
    ``places`` are the directories that were fixed when the hook was registered: config, state, cache, log.
    """

    __slots__ = ("began", "config", "defaults", "edited", "image", "leave", "places", "rootfs", "stage", "state", "stdin", "words")

    def __init__(self, stage: str, places: tuple[str, str, str, str], began: float) -> None:
        self.stage = stage
        self.places = places
        self.began = began
        self.stdin = container.read_stdin(container.CONFIG_LIMIT if stage == container.PRECREATE else container.STATE_LIMIT)
        if stage == container.PRECREATE:
            self.config = jsontext.as_mapping(jsontext.loads(self.stdin, "config.json", container.CONFIG_LIMIT), "config.json")
            self.state = container.proposed(self.config)
        else:
            self.state = container.read_state(self.stdin)
            self.config = container.read_config(self.state)
            if not self.state.annotations:
                self.state.annotations = container.annotations_of(self.config)
        self.rootfs = container.rootfs(self.config, self.state.bundle)
        self.image = storage.image_of(self.state.bundle, self.state.id, self.rootfs)
        if self.image.said:
            self.state.annotations = {**self.image.said, **self.state.annotations}
        if self.image.doubtful:
            # An engine may have taken annotations from its manifest (podman before 4.5.1): whose word they are cannot be told.
            self.image.manifest_annotations = self.state.annotations
        # At precreate: what remains is done at createRuntime, where more may be known of the image.
        self.leave = bool(self.image.reason)
        self.edited = False
        self.words = words_of(self.state.annotations, self.image.labels, self.image.manifest_annotations)
        self.defaults = site_defaults(places[0])

    @property
    def unlabelled(self) -> bool:
        """Whether the image may have labels that could not be read."""
        return bool(self.image.reason and (self.image.image_id or self.image.doubtful))


def words_of(annotations: Mapping[str, str], labels: Mapping[str, str], manifest: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(source, key, value) of every annotation of the caller, label and annotation of the image's manifest that is ours."""
    sources = (("annotation", annotations), ("label", labels), ("manifest", manifest))
    return [(source, key, value) for source, values in sources for key, value in sorted(values.items()) if key.startswith(PREFIXES)]


def site_defaults(folder: str) -> list[tuple[str, str]]:
    """What this site gives to every container: reason enough to look closer, which is done with the trusted configuration only.

    Nothing if site.json cannot be read: who asks for nothing must start as ever.
    """
    try:
        site = jsontext.loads(jsontext.read_file(folder + "/site.json", "site.json", SITE_LIMIT), "site.json", SITE_LIMIT)
    except HookError:
        return []
    defaults = site.get("defaults") if isinstance(site, dict) else None
    if not isinstance(defaults, dict):
        return []
    return sorted((str(key), str(value)) for key, value in defaults.items() if value != "none")
