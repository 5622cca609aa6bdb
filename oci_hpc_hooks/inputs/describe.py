"""From the light readers to the model: what is known about one container, for the cold path."""

from __future__ import annotations

from oci_hpc_hooks.inputs import container
from oci_hpc_hooks.inputs.storage import ImageRecord
from oci_hpc_hooks.model import Container, Mount


def to_container(state: container.State, config: dict[str, object], image: ImageRecord) -> Container:
    """The container that the runtime's *state*, the bundle's *config* and the store's *image* describe.

    Raises InputError with the JSON path of the first value of config.json that is not what the specification says.
    """
    return Container(
        id=state.id,
        bundle=state.bundle,
        rootfs=container.rootfs(config, state.bundle),
        args=tuple(container.arguments(config)),
        env=tuple(container.environment(config)),
        cwd=container.working_directory(config),
        mounts=tuple(Mount(where, kind, source, tuple(options)) for where, kind, source, options in container.mounts(config)),
        annotations=state.annotations,
        labels=image.labels,
        manifest_annotations=image.manifest_annotations,
        image_id=image.image_id,
        image_name=image.image_name,
        pid=state.pid,
        read_only=container.read_only(config),
        user_namespace=container.user_namespace(config) is not None,
        mount_label=container.mount_label(config),
    )
