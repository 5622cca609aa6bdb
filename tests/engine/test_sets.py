"""A stand-in for libibverbs, which opens providers by path and by name as its configuration says: site and image never mix."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.bed.bed import Engine
from tests.bed.site import MPICH5, Site
from tests.engine.inside import SITE_VERSION, TREE, start
from tests.engine.test_volumes import content

VERBS = """
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
const char *verbs_public(void) { return WHO; }
const char *verbs_private(void) { return WHO; }
void verbs_list(void) {
    DIR *folder = opendir(CONFIG);
    if (!folder) { puts("no configuration"); return; }
    for (struct dirent *entry; (entry = readdir(folder)); ) {
        char *end = strstr(entry->d_name, ".driver"), path[4096];
        if (!end) continue;
        *end = 0;
        snprintf(path, sizeof path, "%s/lib%s-rdmav%d.so", PROVIDERS, entry->d_name, PRIVATE);
        const char *how = "by path";
        void *module = dlopen(path, RTLD_NOW);
        if (!module) { how = "by name"; module = dlopen(strrchr(path, '/') + 1, RTLD_NOW); }
        if (!module) { printf("%s: %s\\n", entry->d_name, dlerror()); continue; }
        printf("%s %s: ", entry->d_name, how);
        ((void (*)(void)) dlsym(module, "provider"))();
    }
}
"""
PROVIDER = """
#include <stdio.h>
extern const char *verbs_private(void);
void provider(void) { printf("provider of the %s on verbs of the %s\\n", WHO, verbs_private()); }
"""
PROBE = """
#include <dlfcn.h>
#include <stdio.h>
int main(void) {
    void *verbs = dlopen("libtestverbs.so.1", RTLD_NOW);
    if (!verbs) { puts(dlerror()); return 1; }
    ((void (*)(void)) dlsym(verbs, "verbs_list"))();
    void *driver = dlopen("libtestdrv.so.1", RTLD_NOW);
    if (!driver) { puts("no driver"); return 0; }
    ((void (*)(void)) dlsym(driver, "provider"))();
    return 0;
}
"""


def gcc(source: str, target: Path, *options: object) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-Wall", "-xc", "-", "-xnone", "-o", str(target), *map(str, options)]
    subprocess.run(command, input=source, text=True, check=True)
    target.chmod(0o755)
    return target


class Verbs:
    """A build of the stand-in: ``lib``, ``providers`` and its configuration, whose paths are compiled in."""

    def __init__(self, folder: Path, who: str, private: int, newest: int, config: Path, providers: Path) -> None:
        self.lib = folder / "lib"
        self.providers = folder / "providers"
        script = folder / "verbs.map"
        folder.mkdir(parents=True)
        public = "".join(f"TESTVERBS_1.{minor} {{ global: {'verbs_public; verbs_list' if not minor else f'none{minor}'}; }};\n"
                         for minor in range(newest + 1))
        script.write_text(f"{public}TESTVERBS_PRIVATE_{private} {{ global: verbs_private; local: *; }};\n")
        paths = [f'-DCONFIG="{config}"', f'-DPROVIDERS="{providers}"', f"-DPRIVATE={private}", f'-DWHO="{who}"']
        verbs = gcc(VERBS, self.lib / "libtestverbs.so.1", "-shared", "-fPIC", *paths, "-Wl,-soname,libtestverbs.so.1",
                    f"-Wl,--version-script={script}")
        driver = gcc(PROVIDER, self.lib / "libtestdrv.so.1", "-shared", "-fPIC", paths[-1], "-Wl,-soname,libtestdrv.so.1", verbs)
        self.providers.mkdir()
        shutil.copy(driver, self.providers / f"libdrv-rdmav{private}.so")


class World:
    """A site whose MPI has a module that needs the stand-in, and an image's older build of it, in volumes."""

    def __init__(self, scratch: Path, config: Path, engine: Engine) -> None:
        providers = scratch / "site/providers"
        self.site_verbs = Verbs(scratch / "site", "site", 34, 2, config, providers)
        self.image_verbs = Verbs(scratch / "image", "image", 22, 1, config, providers)
        (config / "drv.driver").touch()
        gcc("", scratch / "site/plugins/libuct_verbs.so", "-shared", "-fPIC", "-Wl,--no-as-needed",
            self.site_verbs.lib / "libtestverbs.so.1")
        self.probe = gcc(PROBE, scratch / "probe/probe").parent
        self.site = Site(scratch / "etc", engine.account)
        self.site.configure()
        (self.site.config_dir / "profiles.d").mkdir()
        (self.site.config_dir / "profiles.d/mpich.json").write_text(json.dumps({
            "version": 1, "name": "mpich", "description": "MPICH and a set", "provides": {"mpi": "mpich"},
            "libraries": [{"soname": "libmpi.so.12", "role": "replace", "replaces": ["libmpich.so.12"]}],
            "search": [str(MPICH5), str(self.site_verbs.lib)],
            "plugins": [str(scratch / "site/plugins")],
            "sets": [{"name": "verbs", "when": "libtestverbs.so.1", "libraries": ["libtestdrv.so.1"],
                      "directories": ["$ORIGIN/../providers", str(config)], "private": "TESTVERBS_PRIVATE_"}],
        }))
        self.site.scan()
        self.site.register()

    def run(self, engine: Engine, *options: str, hooks: str = "") -> tuple[list[str], list[str]]:
        """What the probe says, and the warnings about sets."""
        result, log = start(engine, self.site, "sh", "-c", "mpihello && exec /probe/probe",
                            options=[f"--volume={self.probe}:/probe", *options], hooks_dir=self.site.hooks_dir / hooks)
        assert result.returncode == 0 and SITE_VERSION in result.stdout, result.stdout + result.stderr
        (entry,) = log
        warnings = [finding["what"] for finding in entry["findings"]
                    if finding["code"] == "fabric-set" and finding["severity"] == "warning"]
        said: Sequence[str] = result.stdout.splitlines()
        return [line for line in said if line.startswith(("drv", "provider", "no ", "lib"))], warnings


@pytest.fixture
def config() -> Iterator[Path]:
    """Configuration below a directory that every image has."""
    folder = Path(tempfile.mkdtemp(prefix="oci-hpc-hooks-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def world(scratch: Path, config: Path, crun: Engine) -> World:
    return World(scratch, config, crun)


OURS = "provider of the site on verbs of the site"


@pytest.mark.parametrize("hooks", ["", "podman"], ids=["createRuntime", "precreate"])
def test_an_image_without_it(world: World, crun: Engine, hooks: str) -> None:
    """Providers are found by name, their configuration in a directory that was made."""
    for _ in ("cold", "warm"):
        said, warnings = world.run(crun, hooks=hooks)
        assert said == [f"drv by name: {OURS}", OURS] and not warnings


def test_an_image_with_another_build(world: World, crun: Engine, config: Path, scratch: Path) -> None:
    """All of it is replaced: the library, what needs its internals, the providers and the configuration."""
    old = scratch / "old"
    old.mkdir()
    (old / "removed.driver").touch()
    volumes = {world.image_verbs.lib: "/opt/verbs", world.image_verbs.providers: str(world.site_verbs.providers), old: str(config)}
    before = [content(folder) for folder in volumes]
    options = [f"--volume={source}:{target}" for source, target in volumes.items()]
    for hooks in ("", "podman"):
        said, warnings = world.run(crun, *options, "--env=LD_LIBRARY_PATH=/opt/verbs", hooks=hooks)
        assert said == [f"drv by path: {OURS}", OURS] and not warnings
    assert [content(folder) for folder in volumes] == before
    (world.site.config_dir / "profiles.d/mpich.json").write_text(json.dumps({
        **json.loads((world.site.config_dir / "profiles.d/mpich.json").read_text()), "sets": []}))
    said, _ = world.run(crun, *options, "--env=LD_LIBRARY_PATH=/opt/verbs")
    assert OURS not in said  # without the set, the image's own is left alone, whatever the site's module does with it


def test_where_nothing_can_be_made(world: World, crun: Engine, config: Path, scratch: Path) -> None:
    volume = scratch / "volume"
    volume.mkdir(mode=0o777)
    for options in (["--read-only"], [f"--volume={volume}:/tmp"]):
        said, warnings = world.run(crun, *options)
        assert said == ["no configuration", "no driver"]
        assert len(warnings) == 1 and f"the verbs set needs {config}, which the image lacks" in warnings[0]
    assert not list(volume.iterdir())


def test_the_container_cannot_write_it(world: World, crun: Engine, config: Path) -> None:
    result, _ = start(crun, world.site, "sh", "-c", f"mpihello; echo x > {config}/drv.driver; rm {config}/drv.driver; ls {config}; "
                      f"ls {TREE}{config}", options=["--user=0"])
    assert result.stderr.count("Read-only file system") + result.stderr.count("Device or resource busy") == 2, result.stderr
    assert result.stdout.split()[-2:] == ["drv.driver"] * 2
    assert (config / "drv.driver").read_bytes() == b""
