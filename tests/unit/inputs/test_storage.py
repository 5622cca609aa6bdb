"""Image labels out of real stores, and out of broken and hostile ones."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci_hpc_hooks.inputs import storage
from oci_hpc_hooks.inputs.storage import ImageRecord, image_of
from tests.unit.mountbed import unshared

if TYPE_CHECKING:
    from tests.unit.inputs.conftest import Captured

LABELS = {"io.buildah.version": "1.28.2", "note": "ünïcode", "org.supercontainers.glibc": "2.36", "org.supercontainers.mpi": "mpich"}

ODD_NAMES = ("plain", "a,b", "a b", "a#b", "a:b", "a\\b", "a\tb", "a\nb", "a=b", "a\\054b", "a\rb", "é")


def image(real: Captured) -> ImageRecord:
    return image_of(str(real.bundle), real.id, real.rootfs)


def driver(real: Captured) -> str:
    return "overlay" if (real.graphroot / "overlay-containers").exists() else "vfs"


def image_folder(real: Captured) -> Path:
    [folder] = (real.graphroot / f"{driver(real)}-images").iterdir()
    return folder


def records(real: Captured) -> Path:
    return real.graphroot / f"{driver(real)}-containers" / "containers.json"


def change_record(real: Captured, **changes: object) -> None:
    document = json.loads(records(real).read_text())
    for record in document:
        if record["id"] == real.id:
            record.update(changes)
    records(real).write_text(json.dumps(document, separators=(",", ":")))


def no_way_to_other_stores(real: Captured) -> None:
    (real.monitor / "cmdline").write_bytes(b"")
    (real.proc / "self" / "mountinfo").write_bytes(b"")


# ------------------------------------------------------------------------------------------------------------ found

def test_finds_the_labels_in_real_stores(captured: Callable[[str], Captured], podman_case: str) -> None:
    real = captured(podman_case)
    found = image(real)
    assert found.reason == ""
    assert found.labels == LABELS
    assert found.image_name == "localhost/labelled:1"
    assert found.store == str(real.lender if podman_case == "root-crun-additional-store" else real.graphroot)
    expected = None if podman_case == "root-crun-vfs" else "openmpi"
    assert found.manifest_annotations.get("org.supercontainers.mpi") == expected


def test_the_captured_image_is_the_one_of_its_id(captured: Callable[[str], Captured], podman_case: str) -> None:
    real = captured(podman_case)
    [blob] = [path for root in (real.graphroot, real.lender) for path in root.glob("*-images/*/=*")]
    folder = blob.parent
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == folder.name


def test_without_an_engine_the_image_is_unknown(captured: Callable[[str], Captured], bare_case: str) -> None:
    found = image(captured(bare_case))
    assert found.reason == "the bundle is not in a store of podman, CRI-O or Docker, so image labels are unknown"
    assert (found.image_id, found.labels, found.manifest_annotations) == ("", {}, {})


def test_containers_of_rm_since_podman_4_4(captured: Callable[[str], Captured]) -> None:
    # podman 4.3.1 keeps all in containers.json; later the same record is in another file (containers/storage 1.45, containers.go).
    real = captured("root-crun")
    records(real).rename(records(real).with_name("volatile-containers.json"))
    assert image(real).labels == LABELS
    records(real).write_text("[]")
    assert image(real).labels == LABELS


def test_transient_store(captured: Callable[[str], Captured]) -> None:
    # The same in podman's transient mode: the file lies below the runroot, which conmon's command line names.
    real = captured("root-crun")
    folder = real.runroot / "overlay-containers"
    folder.mkdir(parents=True)
    records(real).rename(folder / "volatile-containers.json")
    assert image(real).labels == LABELS


def test_cri_o_keeps_bundles_below_the_runroot(captured: Callable[[str], Captured]) -> None:
    real = captured("root-crun")
    bundle = f"{real.runroot}/overlay-containers/{real.id}/userdata"
    assert image_of(bundle, real.id, real.rootfs).labels == LABELS


def test_btrfs(captured: Callable[[str], Captured]) -> None:
    # No btrfs to capture from: only the two folder names differ (containers/storage, drivers/btrfs).
    real = captured("root-crun-vfs")
    for name in ("containers", "images"):
        (real.graphroot / f"vfs-{name}").rename(real.graphroot / f"btrfs-{name}")
    bundle = f"{real.runroot}/btrfs-containers/{real.id}/userdata"
    assert image_of(bundle, real.id, f"{real.graphroot}/btrfs/subvolumes/{'0' * 64}").labels == LABELS


def test_a_record_written_in_another_style_is_found(captured: Callable[[str], Captured]) -> None:
    real = captured("root-crun")
    document = [dict(sorted(record.items(), reverse=True)) for record in json.loads(records(real).read_text())]
    records(real).write_text(json.dumps(document, indent=2))
    assert image(real).labels == LABELS


# ------------------------------------------------------------------------------------------------------------ other stores

@pytest.mark.parametrize("way", ["monitor", "mount", "configuration"])
def test_each_way_to_an_additional_store(captured: Callable[[str], Captured], way: str, tmp_path: Path) -> None:
    real = captured("root-crun-additional-store")
    if way != "monitor":
        (real.monitor / "cmdline").write_bytes(b"")
    if way != "mount":
        (real.proc / "self" / "mountinfo").write_bytes(b"")
    if way == "configuration":
        (tmp_path / "etc-storage.conf").write_text(f'[storage.options]\nadditionalimagestores = ["/nowhere", "{real.lender}"]\n')
    assert image(real).labels == LABELS


def test_no_way_to_the_image_names_the_stores(captured: Callable[[str], Captured]) -> None:
    real = captured("root-crun-additional-store")
    no_way_to_other_stores(real)
    found = image(real)
    assert found.image_id and found.image_name == "localhost/labelled:1"
    assert found.reason == f"image {found.image_id} is in none of the stores {real.graphroot}"


@pytest.mark.parametrize("options", [
    ["--imagestore", "{0}"], ["--storage-opt", "overlay.imagestore={0}"], ["--storage-opt", "additionalimagestore=/nowhere,{0}"],
])
def test_stores_that_podman_names_to_its_monitor(captured: Callable[[str], Captured], options: List[str]) -> None:
    real = captured("root-crun")
    other = real.graphroot.parent / "images=here"
    other.mkdir()
    (real.graphroot / "overlay-images").rename(other / "overlay-images")
    arguments = ["/usr/bin/conmon", "-b", "x", "--exit-command", "/usr/bin/podman"]
    for option in options:
        arguments += ["--exit-command-arg", option.format(other)]
    (real.monitor / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in arguments))
    assert image(real).store == str(other)


@pytest.mark.parametrize("option", ["--storage-opt additionalimagestore=/nowhere,{0}", "--imagestore={0}", "--imagestore {0}"])
def test_stores_of_the_podman_that_starts_a_precreate_hook(captured: Callable[[str], Captured], option: str) -> None:
    real = captured("root-crun")
    other = real.graphroot.parent / "squashed"
    other.mkdir()
    (real.graphroot / "overlay-images").rename(other / "overlay-images")
    arguments = ["/usr/bin/podman", "run", "--rm", *option.format(other).split(" "), "IMAGE", "sh", "--imagestore"]
    (real.runtime / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in arguments))
    assert image(real).store == str(other)


def test_mountinfo_with_blanks_and_the_newer_mount_call(captured: Callable[[str], Captured]) -> None:
    real = captured("root-crun-additional-store")
    no_way_to_other_stores(real)
    lender = real.graphroot.parent / "a store"
    real.lender.rename(lender)
    options = f"rw,lowerdir+=/x/y,lowerdir+={lender}/overlay/l/ABC,upperdir=/u".replace(" ", "\\040")
    (real.proc / "self" / "mountinfo").write_text(
        f"1 1 0:1 / {real.rootfs} rw - overlay overlay rw,lowerdir=/hidden/overlay/l/ABC\n"
        f"2 1 0:2 / {real.rootfs} rw shared:1 - overlay overlay {options}\ngarbage\n"
    )
    assert storage._stores_of_mount(real.rootfs) == [str(lender)]  # of the upper mount
    assert image(real).store == str(lender)


@pytest.mark.parametrize("option", [  # what Linux 6.18 shows of a layer of "/a,b:c\\d e", by mount(2) and by fsconfig(2)
    r"lowerdir=/x/overlay/l/A:/a\134\054b\134:c\134\134d\040e/overlay/l/B:/y/overlay/l/C",
    r"lowerdir+=/x/overlay/l/A,lowerdir+=/a\054b:c\134d\040e/overlay/l/B,lowerdir+=/y/overlay/l/C"])
def test_names_in_the_options_of_an_overlay(captured: Callable[[str], Captured], option: str) -> None:
    real = captured("root-crun")
    (real.proc / "self" / "mountinfo").write_text(
        f"9 1 0:9 / /a\rb rw - tmpfs tmpfs rw\n1 1 0:1 / {real.rootfs} rw - overlay overlay rw,{option},upperdir=/u\n")
    assert storage._stores_of_mount(real.rootfs) == ["/x", r"/a,b:c\d e", "/y"]


def test_names_that_this_kernel_has_in_the_options_of_an_overlay(tmp_path: Path) -> None:
    unshared(r"""
        from oci_hpc_hooks.inputs import storage
        from tests.unit.inputs.test_storage import ODD_NAMES
        mount("-t", "tmpfs", "tmpfs", top)
        stores = [top / name for name in ODD_NAMES]
        layers = [store / "overlay/l/A" for store in stores]
        for folder in (*layers, top / "merged"):
            folder.mkdir(parents=True)
        written = [str(layer).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for layer in layers]
        mount("-t", "overlay", "-o", "lowerdir=" + ":".join(written), "overlay", top / "merged")
        assert storage._stores_of_mount(str(top / "merged")) == list(map(str, stores))
    """, tmp_path)


@pytest.mark.parametrize("text, stores", [
    ("", []),
    ('[storage]\ndriver = "overlay"\ngraphroot = "/g"\n', []),
    ('[storage]\nimagestore = "/i" # there\n[storage.options]\nadditionalimagestores = [ "/a", \'/b\' ]', ["/i", "/a", "/b"]),
    ('additionalimagestores = [\n # "/no",\n "/a",\n  "/b", # "/no"\n]\nother = ["/no"]', ["/a", "/b"]),
    ('# additionalimagestores = [ "/no" ]\nadditionalimagestores = []\nx = "/no"', []),
    ('additionalimagestores=["/a#b","/c]d"]', ["/a#b", "/c]d"]),
    ('additionalimagestores = [ "/unfinished', []),
    ('imagestore = ""', [""]),
])
def test_storage_conf(text: str, stores: List[str]) -> None:
    assert storage._stores_of_configuration(text) == stores


@settings(deadline=None)
@given(st.text(alphabet="ai=[]\"'\\#\n /") | st.text())
def test_any_storage_conf_ends(text: str) -> None:
    assert isinstance(storage._stores_of_configuration("additionalimagestores = [" + text), list)


def test_the_administrators_storage_conf_hides_the_distributions(captured: Callable[[str], Captured], tmp_path: Path) -> None:
    real = captured("root-crun-additional-store")
    no_way_to_other_stores(real)
    (tmp_path / "usr-storage.conf").write_text(f'additionalimagestores = ["{real.lender}"]')
    assert image(real).labels == LABELS
    (tmp_path / "etc-storage.conf").write_text("[storage]\n")
    assert image(real).labels == {}


# ------------------------------------------------------------------------------------------------------------ broken and hostile

def test_a_container_without_an_image(captured: Callable[[str], Captured]) -> None:
    real = captured("root-crun")
    change_record(real, image="")
    assert image(real).reason == "the container was made from no image"
    records(real).write_text("[]")
    assert "has no record of the container" in image(real).reason
    records(real).unlink()
    assert "has no record of the container" in image(real).reason


@pytest.mark.parametrize("image_id", ["../" * 8 + "etc", "A" * 64, "0" * 63, "0" * 65, 7, None, "é" * 64])
def test_an_image_id_never_leads_anywhere_else(captured: Callable[[str], Captured], image_id: object) -> None:
    real = captured("root-crun")
    change_record(real, image=image_id)
    assert image(real).reason == "the container was made from no image"


@pytest.mark.parametrize("identity", ["", ".", "..", "a/b", "a\nb", 'a"b', "é", "x" * 256])
def test_a_container_id_never_leads_anywhere_else(identity: str) -> None:
    bundle = f"/var/lib/containers/storage/overlay-containers/{identity}/userdata"
    assert image_of(bundle, identity, "/").reason == "the container's id is none that podman or CRI-O gives"


def write_manifest(real: Captured, **changes: object) -> None:
    path = image_folder(real) / "manifest"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_config(real: Captured, document: object) -> None:
    [blob] = image_folder(real).glob("=*")
    blob.write_text(json.dumps(document))


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha512:" + "0" * 128, "sha256:" + "G" * 64, 3, None])
def test_a_manifests_digest_never_leads_anywhere_else(captured: Callable[[str], Captured], digest: object) -> None:
    real = captured("root-crun")
    write_manifest(real, config={"digest": digest})
    assert image(real).labels == LABELS  # the image's id names the blob


def test_a_digest_under_another_spelling_is_nobodys_word(captured: Callable[[str], Captured]) -> None:
    real = captured("root-crun")
    write_manifest(real, config={"digest": "sha256:" + "5" * 64, "Digest": "sha256:" + "6" * 64})
    found = image(real)
    assert found.doubtful and found.labels == {} and "'Digest' where 'digest' is meant" in found.reason


def test_an_image_whose_id_is_not_its_configs_digest(captured: Callable[[str], Captured]) -> None:
    real = captured("root-crun")
    [blob] = image_folder(real).glob("=*")
    digest = "sha256:" + "5" * 64
    blob.rename(blob.with_name("=" + base64.b64encode(digest.encode()).decode()))
    write_manifest(real, config={"digest": digest})
    assert image(real).labels == LABELS


@pytest.mark.parametrize("config, labels", [
    ({"config": {"Labels": {"a": "b", "n": 1, "l": ["x"], "z": None}}}, {"a": "b"}),
    ({"config": {"Labels": None}}, {}), ({"config": {"Labels": []}}, {}), ({"config": {}}, {}), ({"config": None}, {}), ({}, {}),
])
def test_labels_of_any_shape(captured: Callable[[str], Captured], config: object, labels: Dict[str, str]) -> None:
    real = captured("root-crun")
    write_config(real, config)
    found = image(real)
    assert (found.labels, found.reason) == (labels, "")


@pytest.mark.parametrize("annotations", [None, [], 3, {"a": 1}])
def test_manifest_annotations_of_any_shape(captured: Callable[[str], Captured], annotations: object) -> None:
    real = captured("root-crun")
    write_manifest(real, annotations=annotations)
    found = image(real)
    assert (found.labels, found.manifest_annotations, found.reason) == (LABELS, {}, "")


def test_an_image_without_a_manifest(captured: Callable[[str], Captured]) -> None:
    real = captured("root-crun")
    (image_folder(real) / "manifest").unlink()
    assert image(real).labels == LABELS


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _huge(path: Path) -> None:
    os.truncate(path, 1 << 40)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil, why", [
    (Path.unlink, "lacks the image's configuration"),
    (_truncate, "is not usable JSON"),
    (_huge, "at most 4 MiB are read of it"),
    (_fifo, "is no regular file"),
    (_folder, "is a directory"),
    (lambda path: path.write_bytes(b'{"config":' * 100_000), "nested too deeply"),
    (lambda path: path.write_bytes(b'"\xff"'), "is not UTF-8"),
    (lambda path: path.write_bytes(b"[]"), "an object was expected, found an array"),
])
@pytest.mark.parametrize("which", ["manifest", "=*"])
def test_a_spoiled_image_is_a_reason_not_an_error(
    captured: Callable[[str], Captured], which: str, spoil: Callable[[Path], object], why: str
) -> None:
    real = captured("root-crun")
    [path] = image_folder(real).glob(which)
    spoil(path)
    found = image(real)
    if which == "manifest" and spoil is Path.unlink:
        assert found.reason == ""
    else:
        assert why in found.reason
        assert (found.labels, found.manifest_annotations) == ({}, {})


def _rubbish(path: Path) -> None:
    path.write_bytes(b"\xff")


@pytest.mark.parametrize("spoil", [_truncate, _huge, _fifo, _folder, _rubbish])
def test_a_spoiled_list_of_containers_is_a_reason(captured: Callable[[str], Captured], spoil: Callable[[Path], object]) -> None:
    real = captured("root-runc")
    spoil(records(real))
    found = image(real)
    # A list that is cut off behind the container's record still serves.
    assert (found.reason and not found.image_id) or (spoil is _truncate and found.labels == LABELS)
    assert found.doubtful or spoil in (_truncate, _rubbish)  # who is not in it may be in none


def test_nothing_escapes_a_changed_store(captured: Callable[[str], Captured]) -> None:
    real = captured("root-crun")
    originals = {path: path.read_bytes() for path in (records(real), *image_folder(real).iterdir())}

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # another job may hold the machine
    @given(st.data())
    def check(data: Any) -> None:
        for path, original in originals.items():
            changed = bytearray(original)
            for _ in range(data.draw(st.integers(0, 3))):
                changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
            path.write_bytes(changed[:data.draw(st.sampled_from([len(changed), len(changed) // 2]))])
        found = image(real)
        assert found.reason or all(isinstance(text, str) for pair in found.labels.items() for text in pair)

    check()


def test_a_record_is_found_among_many(captured: Callable[[str], Captured]) -> None:
    real = captured("root-runc")
    own = json.loads(records(real).read_text())
    others = [{**own[0], "id": f"{number:064x}", "names": [f"name_{number}"], "image": "0" * 64} for number in range(200)]
    records(real).write_text(json.dumps(others + own, separators=(",", ":")))
    assert image(real).labels == LABELS


# ------------------------------------------------------------------------------------------------------------ Docker

DOCKER_ID = "c" * 64
DOCKER_IMAGE = "d" * 64


def docker(folder: Path, *, labels: object = None, of_image: object = None, image: str = "sha256:" + DOCKER_IMAGE) -> ImageRecord:
    """What is read of a container in a store of Docker, laid out as dockerd 20.10 does."""
    made = folder / f"containers/{DOCKER_ID}/config.v2.json"
    blob = folder / f"image/overlay2/imagedb/content/sha256/{DOCKER_IMAGE}"
    for path, document in ((made, {"ID": DOCKER_ID, "Image": image, "Config": {"Image": "name:1", "Labels": labels}}),
                           (blob, {"config": {"Env": ["A=b"], "Labels": {"k": "image", "l": "both"}} if of_image is None else of_image})):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    return storage.image_of(f"/run/containerd/io.containerd.runtime.v2.task/moby/{DOCKER_ID}", DOCKER_ID, f"{folder}/overlay2/layer/merged")


def test_docker_mixes_labels_and_they_are_told_apart(tmp_path: Path) -> None:
    found = docker(tmp_path, labels={"k": "caller", "l": "both", "m": "caller"})
    assert (found.reason, found.image_id, found.image_name, found.store) == ("", DOCKER_IMAGE, "name:1", str(tmp_path))
    assert found.labels == {"k": "image", "l": "both"}
    assert found.said == {"k": "caller", "m": "caller"}
    assert found.env == ["A=b"]


@pytest.mark.parametrize("of_image", [{"labels": {"m": "x"}}, {"Labels": {}, "LABELS": {"m": "x"}}])
def test_what_docker_may_have_understood_otherwise_is_nobodys_word(tmp_path: Path, of_image: object) -> None:
    found = docker(tmp_path, labels={"m": "x"}, of_image=of_image)
    assert found.doubtful and not found.said and not found.labels


@pytest.mark.parametrize("image", ["", "sha256:x", "sha256:../../x", "d" * 64])
def test_docker_without_an_image(tmp_path: Path, image: str) -> None:
    found = docker(tmp_path, image=image)
    assert (found.image_id, found.said) == ("", {}) and "no record" in found.reason


def test_docker_without_the_images_configuration(tmp_path: Path) -> None:
    docker(tmp_path)
    (tmp_path / f"image/overlay2/imagedb/content/sha256/{DOCKER_IMAGE}").unlink()
    bundle = f"/run/moby/{DOCKER_ID}"
    found = storage.image_of(bundle, DOCKER_ID, f"{tmp_path}/overlay2/layer/merged")
    assert found.reason == f"{tmp_path} lacks the image's configuration" and found.image_id == DOCKER_IMAGE
