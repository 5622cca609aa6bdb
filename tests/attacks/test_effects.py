# ruff: noqa: F811 (fixtures are imported)
"""What the hook does to anything but the container, by strace of the real executables.

It executes nothing, not even a ldconfig, of the image or of the host (CVE-2024-0135, CVE-2024-0136, CVE-2024-0137); it writes nothing below
/proc and /sys (CVE-2025-52881, CVE-2019-19921), and nothing outside of its own directories and the container's layer.
"""

from __future__ import annotations

import compileall
import json
import re
from pathlib import Path

import pytest

from tests.attacks import hostile
from tests.attacks.hostile import Layer
from tests.attacks.weaken import weakened, wrapped
from tests.bed import bed
from tests.bed.bed import RUNTIMES, USERS, Engine
from tests.bed.site import Site
from tests.engine.inside import HELLO
from tests.engine.site import ReadySite, ready, site  # noqa: F401

TRACED = "#!/bin/sh\nexec strace -f -y -s 400 -o {output}.$$ -e trace=%file,%process {hook} \"$@\"\n"
#: Calls that change what a path leads to; of an open, only one for writing.
CHANGES = re.compile(r"^\d+ +(?:(?:mkdir|unlink|rename|link|symlink|mknod|rmdir|chmod|fchmodat|chown|fchownat|truncate|utimensat|setxattr|"
                     r"mount)\w*|open(?:at2?)?\((?=.*O_(?:WRONLY|RDWR|CREAT|TRUNC)))")


def image_with_programs(mark: Path) -> hostile.Edit:
    def edit(layer: Layer) -> None:
        for name in ("/sbin/ldconfig", "/usr/sbin/ldconfig", "/usr/bin/ldd", "/usr/bin/env", "/usr/bin/python3", "/usr/bin/nvidia-smi",
                     "/usr/local/sbin/ldconfig", "/sbin/ldconfig.real"):
            if not name.startswith("/sbin"):  # which is a link to /usr/sbin
                layer.write(name, f"#!/bin/sh\necho {name} >>{mark}\n".encode(), mode=0o755)

    return edit


def trace(engine: Engine, hooks: Path, scratch: Path, mark: Path) -> list[str]:
    """The lines of a cold and a warm start."""
    for way in ("cold", "warm"):
        output = scratch / way / "trace"
        output.parent.mkdir()
        output.parent.chmod(0o777)
        traced = wrapped(hooks, scratch / way / "hooks", TRACED.replace("{output}", str(output)))
        result = hostile.start(engine, traced, image_with_programs(mark), *HELLO)
        assert result.returncode == 0 and "5.0.2" in result.stdout, result.stdout + result.stderr
    lines = [line for path in sorted(scratch.glob("*/trace.*")) for line in path.read_text(errors="replace").splitlines()]
    assert len(lines) > 200
    return [line for line in lines if re.search(r" = \d", line)]  # what the kernel has done


def executed(lines: list[str]) -> list[str]:
    return [line for line in lines if re.match(r"^\d+ +(?:<[.]{3} )?(?:execve|fork|vfork|clone)", line)]


def changed(lines: list[str], *own: str) -> list[str]:
    """Changes elsewhere. A path below the container's root shows as that of its storage, its own tmpfs as /."""
    return [line for line in lines if CHANGES.match(line) and not any(place in line for place in own)]


CASES = [pytest.param((runtime, user), stage, id=f"{runtime}-{user}-{stage or 'createRuntime'}",
                      marks=() if (runtime, user, stage) == ("crun", "rootless", "") else pytest.mark.long)
         for runtime in RUNTIMES for user in USERS for stage in ("", "podman")]


@pytest.mark.parametrize(("engine", "stage"), CASES, indirect=["engine"])
def test_what_it_executes_and_writes(engine: Engine, site: Site, scratch: Path, open_folder: Path, stage: str) -> None:
    mark = open_folder / "mark"
    open_folder.chmod(0o777)
    compileall.compile_dir(bed.ROOT / "oci_hpc_hooks", quiet=1)  # as whatever installs a package does
    lines = trace(engine, site.hooks_dir / stage, scratch, mark)
    assert not mark.exists()
    begun = executed(lines)
    # The kernel starts the interpreter for the hook's first line: one execve for each start.
    assert len(begun) == 2 and all(str(site.hooks_dir) in line for line in begun), begun
    private = str(site.cache_dir.parent) if engine.user == "root" else f"/run/user/{engine.account.uid}/oci-hpc-hooks"
    layers = str(engine.account.folder / "storage/overlay")
    own = (private, layers, "<(unmounted)", "</dev/.oci-hpc", f"<{site.log_file}", "</>", '/fd/2", O_WRONLY|O_NOCTTY|O_APPEND')
    assert changed(lines, *own) == []
    # Only the runtime's own standard error, to speak to it in case.
    assert not [line for line in changed(lines) if re.search(r'"/(?:proc|sys)/(?!\d+/fd/2")', line)]


@pytest.mark.long
def test_without_the_defences(ready: ReadySite, scratch: Path, open_folder: Path) -> None:
    """A hook that runs a program, and writes below /proc: both are seen."""
    engine = Engine("crun", "root")
    hooks = weakened(ready(engine), scratch, ("replay.py", "        syscalls.give_up_privileges()", "        import os\n"
                                              "        os.system('/sbin/ldconfig -p >/dev/null')\n"
                                              "        open('/proc/self/oom_score_adj', 'w').write('0')\n"
                                              "        syscalls.give_up_privileges()"))
    lines = trace(engine, hooks, scratch, open_folder / "mark")
    assert len(executed(lines)) > 2, "\n".join(lines[-60:])
    assert [line for line in changed(lines) if "/proc/self/oom_score_adj" in line]


# ------------------------------------------------------------------------------------------------ what others can do to it

#: In a container with the host's processes: all that process 0 of another program would give away.
LOOK = r"""
$| = 1;
my $end = time + 45;
print "ready\n";
while (time < $end) {
    for my $line (</proc/[0-9]*/cmdline>) {
        my ($at) = $line =~ m{(.*)/};
        open(my $file, "<", $line) or next;
        my $text = <$file> // "";
        next unless index($text, "$ARGV[0]/bin/") >= 0;
        print "seen\n";
        for my $name ("exe", "mem", "environ", "root/etc/passwd", map { "fd/$_" } 0 .. 9) {  # fd: CVE-2024-21626
            print "GOT $name\n" if sysopen(my $got, "$at/$name", 0);
        }
    }
    last if -e "/tmp/enough";
    select(undef, undef, undef, 0.01);
}
"""
PAUSE = ("replay.py", "        findings = [*record[", "        import time; time.sleep(1)\n        findings = [*record[")


def got(engine: Engine, hooks: Path) -> set[str]:
    """What container root of another container sees of a hook at work."""
    name = engine.new_name()
    engine.podman("run", "--detach", "--name", name, "--pid=host", "--net=none", engine.load("bookworm-mpich-nolabel"), "perl", "-e", LOOK,
                  str(hooks), check=True)
    while "ready" not in engine.podman("logs", name).stdout:
        pass
    assert engine.run("bookworm-mpich", "true", hooks_dir=hooks).returncode == 0
    engine.podman("exec", name, "touch", "/tmp/enough", check=True)
    engine.podman("wait", name, check=True)
    seen = set(engine.podman("logs", name, check=True).stdout.split("\n"))
    assert "seen" in seen
    return {line for line in seen if line.startswith("GOT")}


def test_nobody_looks_into_the_hook(ready: ReadySite, scratch: Path) -> None:
    """CVE-2019-5736: the interpreter of the host by way of /proc/PID/exe. The hook joins no container's process namespace, so only a
    container with the host's can name it; once it has no capabilities, the kernel lets root of any container in unless it is told."""
    engine = Engine("crun", "root")
    assert got(engine, weakened(ready(engine), scratch, PAUSE)) == set()


@pytest.mark.long
def test_somebody_looks_into_the_hook_without_the_defence(ready: ReadySite, scratch: Path) -> None:
    engine = Engine("crun", "root")
    hooks = weakened(ready(engine), scratch, PAUSE, ("replay.py", "    syscalls.set_not_dumpable()\n", ""))
    found = got(engine, hooks)
    assert {"GOT exe", "GOT mem", "GOT environ"} <= found and any(int(line[7:]) > 2 for line in found if line.startswith("GOT fd/")), found


def test_what_nothing_of_this_looks_at() -> None:
    """The patterns above match what they should."""
    assert CHANGES.match('12 openat(AT_FDCWD</>, "/etc/x", O_WRONLY|O_CREAT, 0666) = 3</etc/x>')
    assert CHANGES.match('12 mkdirat(5</x>, "y", 0755) = 0') and CHANGES.match('12 renameat2(5</x>, "y", 6</z>, "w", 0) = 0')
    assert not CHANGES.match('12 openat(AT_FDCWD</>, "/etc/x", O_RDONLY|O_CLOEXEC) = 3</etc/x>')
    assert json.dumps(executed(['1 execve("/bin/x", [], []) = 0', '1 stat("/x", {}) = 0'])).count("execve") == 1
