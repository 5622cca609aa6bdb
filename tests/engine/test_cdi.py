"""Containers that get the site's files by a CDI specification and no hook: they see what the hook would have given them."""

# ruff: noqa: F811 (fixtures are imported)
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import bed
from tests.bed.bed import Engine
from tests.bed.site import OPENMPI5, TRIXIE, Site
from tests.engine.conftest import SiteMaker
from tests.engine.inside import HELLO, assert_own, assert_site, start
from tests.engine.site import ReadySite, site, three_engines  # noqa: F401
from tests.engine.site import ready_to_bind as ready  # noqa: F401
from tests.engine.test_precreate import seen
from tests.unit.cdi.driver import specification

KIND = "oci-hpc-hooks.org/image"
IMAGE = "bookworm-mpich"


@pytest.fixture(params=["crun", pytest.param("runc", marks=pytest.mark.long)])
def rootful(request: pytest.FixtureRequest) -> Engine:
    """The first test below has shown that the runtimes make the same of it."""
    return Engine(request.param, "root")


@pytest.fixture
def folder() -> Iterator[Path]:
    with bed.cdi_folder() as made:
        yield made


def write(site: Site, folder: Path, engine: Engine, *arguments: str, image: str = IMAGE, code: int = 0) -> tuple[str, dict[str, Any]]:
    """``--device`` for the whole plan of an image, and what the command says."""
    Engine("crun", "root").load(image)
    done = site.command("cdi", "--json", "--output", str(folder), *arguments, "--image", bed.reference(image))
    assert done.returncode == code, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    (one,) = said["specifications"]
    return f"--device={KIND}={one['devices'][0]}", said


@three_engines
def test_the_same_as_the_hook(engine: Engine, site: Site, folder: Path) -> None:
    """Mounts with their options, files with their content, what the loader makes of them, and two ranks."""
    device, _ = write(site, folder, engine)
    by_hook, by_device = seen(engine, site.hooks_dir, ()), seen(engine, folder / "no-hooks", [device])
    assert by_device == by_hook
    assert len(by_hook[0]) > 10 and len(by_hook[1]) > 20
    assert_site(engine.run(IMAGE, *HELLO, options=[device]))


def test_options_of_a_start(rootful: Engine, ready: ReadySite, folder: Path) -> None:
    device, _ = write(ready(rootful), folder, rootful)
    for options in (["--read-only"], ["--init"], ["--privileged"], ["--userns=auto"], ["--volume=/usr/share:/work/data:ro"]):
        assert_site(rootful.run(IMAGE, *HELLO, options=[device, *options]))


def test_a_directory_over_modules(rootful: Engine, make_site: SiteMaker, folder: Path) -> None:
    """Open MPI's modules: a tree of their own over the image's, below which a library bound in place must not come up again."""
    site = make_site(rootful, openmpi=[OPENMPI5], search=[])
    device, _ = write(site, folder, rootful, image="bookworm-openmpi")
    how = ((), "bookworm-openmpi", "ompihello", "/build/site/")
    by_hook = seen(rootful, site.hooks_dir / "podman", *how)
    by_device = seen(rootful, folder / "no-hooks", [device], *how[1:])
    assert by_device == by_hook and len(by_hook[0]) > 3


def test_nothing_of_ours_runs_and_a_hook_sees_that_it_is_done(rootful: Engine, ready: ReadySite, folder: Path) -> None:
    site = ready(rootful)
    device, _ = write(site, folder, rootful)
    for stage in ("", "podman"):
        result, log = start(rootful, site, *HELLO, options=[device], hooks_dir=site.hooks_dir / stage)
        assert_site(result)
        assert log == []


def test_the_containers_root_cannot_write_them(rootful: Engine, ready: ReadySite, folder: Path) -> None:
    device, _ = write(ready(rootful), folder, rootful)
    script = ("find /dev/.oci-hpc -type f -o -path /etc/ld.so.cache | while read -r f; do (: >> $f) 2>/dev/null && echo $f; done; "
              "(: >> /etc/ld.so.cache) 2>/dev/null && echo cache; true")
    result = rootful.run(IMAGE, "sh", "-c", script, options=[device, "--privileged"])
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_another_image_has_another_device(rootful: Engine, ready: ReadySite, folder: Path) -> None:
    """So that the name of an image that was built anew is not found."""
    device, _ = write(ready(rootful), folder, rootful)
    identity = rootful.podman("image", "inspect", "--format={{.Id}}", bed.reference(IMAGE), check=True).stdout.strip()
    assert device == f"--device={KIND}=bookworm-mpich-{identity[:12]}"
    other = rootful.run(IMAGE, *HELLO, options=[f"--device={KIND}=bookworm-mpich-000000000000"])
    assert other.returncode != 0 and "unresolvable CDI devices" in other.stderr
    assert_own(rootful.run(IMAGE, *HELLO))


def test_refused(rootful: Engine, make_site: SiteMaker, folder: Path) -> None:
    site = make_site(rootful, search=[TRIXIE])
    rootful.load(IMAGE)
    done = site.command("cdi", "--image", bed.reference(IMAGE), "--output", str(folder))
    checked = site.command("check", bed.reference(IMAGE))
    assert done.returncode == checked.returncode == 1
    assert "GLIBC_2.38" in done.stderr and "--annotation org.supercontainers.mpi=none" in done.stderr
    assert list(folder.iterdir()) == []


@pytest.fixture
def device_node(folder: Path) -> Iterator[Path]:
    path = Path("/dev/hpc-cdi-0")
    bed.root_account().execute("mknod", "-m", "600", str(path), "c", "1", "5", check=True)
    yield path
    path.unlink()


def profile(site: Site, **keys: object) -> None:
    document = {"version": 1, "name": "imaginary", "description": "test", "provides": {"launcher": "imaginary"}, **keys}
    (site.config_dir / "profiles.d").mkdir(exist_ok=True)
    (site.config_dir / "profiles.d/imaginary.json").write_text(json.dumps(document))


def test_the_page_on_profiles(make_site: SiteMaker, folder: Path, device_node: Path) -> None:
    """The device's cgroup rule too: it can be read, by nobody without the device."""
    site = make_site(Engine("crun", "root"))
    profile(site, devices=["/dev/hpc-cdi-*"])
    site.scan()
    done = commands(site, "profile")
    assert done.returncode == 0, done.stderr
    where = f"{folder.resolve()}/oci-hpc-hooks.org-imaginary.json"
    assert f"oci-hpc-hooks.org/imaginary=all: 0 mounts, 1 device node, in {where}" in done.stdout.splitlines()
    read = ("head", "-c", "3", str(device_node))
    for engine in (Engine("crun", "root"), Engine("runc", "root")):
        result = engine.run(IMAGE, *read, options=["--device=oci-hpc-hooks.org/imaginary=all"])
        assert (result.returncode, result.stdout) == (0, "\0\0\0"), result.stderr
        assert engine.run(IMAGE, *read).returncode == 1


# -------------------------------------------------------------------------------------------- a specification of the node's

@pytest.mark.parametrize("form", ["json", pytest.param("yaml", marks=pytest.mark.long)])
def test_a_driver_by_its_specification(folder: Path, scratch: Path, form: str) -> None:
    """As the vendor's generator writes it: the same files come as by the profile's own lists, and a program opens the library."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is optional") if form == "yaml" else None
    root = bed.BUILD / "site/nvidia-535"
    document = specification(root, "535.261.03")
    (folder / f"nvidia.{form}").write_text(yaml.safe_dump(document) if yaml else json.dumps(document))
    found = {}
    for name, entry in {"listed": {"root": str(root)}, "by-cdi": {"cdi": "nvidia.com/gpu=all"}}.items():
        site = Site(scratch / name, bed.root_account())
        (site.config_dir / "site.json").write_text(json.dumps({"version": 1, "profiles": [{"name": "cuda", **entry}]}))
        site.scan()
        (found[name],) = [profile for profile in json.loads((site.state_dir / "inventory.json").read_text())["profiles"]
                          if profile["name"] == "cuda"]
    assert found["by-cdi"]["problems"] == [] and len(found["by-cdi"]["libraries"]) > 20
    for profile in found.values():
        for key in ("libraries", "files"):
            profile[key].sort(key=lambda row: row["path"])
    assert found["by-cdi"] == found["listed"]
    site.register()
    result, log = start(Engine("crun", "root"), site, "/usr/local/bin/dlcall", "libcuda.so.1", "cuInit", image="opencl-bookworm",
                        options=["--annotation=org.supercontainers.gpu=cuda"])
    assert re.fullmatch(r"libcuda.so.1: cuInit = 100 \(/dev/.oci-hpc/.*/libcuda.so.1\)\n", result.stdout), result.stderr
    assert [(entry["verdict"], entry["profile"]) for entry in log] == [("unproved", "cuda")]


PAGE = bed.ROOT / "docs/cdi.md"
BLOCKS = dict(re.findall(r"```sh (\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL))


def commands(site: Site, block: str) -> bed.Result:
    """A block of the page, as root types it."""
    options = f"--config-dir {site.config_dir} --state-dir {site.state_dir} --cache-dir {site.cache_dir} --log-file {site.log_file}"
    script = BLOCKS[block].replace("oci-hpc-hooks cdi", f"oci-hpc-hooks {options} cdi").replace("solver:1.2", bed.reference(IMAGE))
    return bed.root_account().execute("sh", "-euc", script.replace("podman run", "podman run --net=none"), timeout=120)


def test_the_page(ready: ReadySite, folder: Path) -> None:
    engine = Engine("crun", "root")
    site = ready(engine)
    engine.load(IMAGE)
    assert_site(commands(site, "image"))
    assert set(BLOCKS) == {"image", "profile"}
