"""Root of a container against the devices of the node: beside those that it was granted, none opens that would not open without our hooks.

Every character and block device of the node's /dev is tried, by a node of its numbers that container root makes (CAP_MKNOD), whatever the
node's own file modes are. access(2) asks the device cgroup as open(2) does, and starts no watchdog. `tests/attacks/test_injected.py` and
`tests/engine/test_safety.py` try every injected file and mount point.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci_hpc_hooks.inputs import resources
from tests.attacks.weaken import Edit, weakened
from tests.bed.bed import RUNTIMES, Engine
from tests.bed.site import Site
from tests.engine.conftest import SiteMaker

#: /dev/kmsg's numbers, which no engine lets containers open.
GRANTED = os.makedev(1, 11)

TRY = r"""
my $access = `uname -m` =~ /x86_64/ ? 21 : 0;
for my $device (@ARGV) {
    my ($kind, $major, $minor) = split(/:/, $device);
    my $path = "/tmp/$kind-$major-$minor";
    system("mknod", $path, $kind, $major, $minor) and die "no node";
    my $denied = $access ? syscall($access, $path, 6) : syscall(48, -100, $path, 6);
    print "$device\n" unless $denied;
}
"""


def node_devices() -> list[str]:
    """(kind, major and minor number) of all below /dev."""
    found = set()
    for folder, _, names in os.walk("/dev"):
        for name in names:
            status = os.lstat(Path(folder, name))
            kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
            if kind:
                found.add(f"{kind}:{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    return sorted(found)


def opened(engine: Engine, *hooks: Path) -> set[str]:
    """Those that container root may read and write."""
    options = ["--cap-add=MKNOD", "--user=0:0", "--annotation=org.supercontainers.mpi=mpich"]
    result = engine.run("bookworm-mpich-nolabel", "perl", "-e", TRY, *node_devices(), hooks_dir=hooks[0] if hooks else None,
                        options=options)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.fixture
def brings(make_site: SiteMaker) -> Iterator[Site]:
    """A site whose mpich profile brings one device."""
    path = Path(f"/dev/hpc-hooks-test-{os.getpid()}-granted")
    os.mknod(path, stat.S_IFCHR | 0o600, GRANTED)
    made = make_site(Engine("crun", "root"))
    profile = json.loads((resources.PROFILES / "mpich.json").read_text())
    profile["devices"] = [str(path)]
    (made.config_dir / "profiles.d").mkdir()
    (made.config_dir / "profiles.d/mpich.json").write_text(json.dumps(profile))
    made.scan()
    yield made
    path.unlink()


def more(engine: Engine, hooks: Path) -> set[str]:
    usual = opened(engine)
    assert "c:1:3" in usual and "c:1:11" not in usual  # null; or else this test tests nothing
    found = opened(engine, hooks)
    assert usual <= found
    return found - usual


@pytest.mark.parametrize("stage", ["", "podman"])
@pytest.mark.parametrize("runtime", [pytest.param(name, marks=pytest.mark.long if name == "runc" else ()) for name in RUNTIMES])
def test_no_device_beyond_those_of_the_profile(brings: Site, runtime: str, stage: str) -> None:
    assert more(Engine(runtime, "root"), brings.hooks_dir / stage) == {"c:1:11"}


WIDE: dict[str, Edit] = {
    "": ("linux/cgroups.py", 'f"{kind} {major}:{minor} rw"', 'f"{kind} *:* rw"'),
    "podman": ("apply/config.py", '"major": major, "minor": minor, "access": "rw"', '"access": "rw"'),
}


@pytest.mark.parametrize("stage", WIDE)
def test_without_the_defence(brings: Site, scratch: Path, stage: str) -> None:
    """A rule for all devices of that kind."""
    engine = Engine("crun", "root")
    if not stage and Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("devices are ruled by a BPF program here: tests/engine/test_device_filter.py")
    assert len(more(engine, weakened(brings, scratch, WIDE[stage]) / stage)) > 1
