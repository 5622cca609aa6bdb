"""Images with few and with very many libraries, for the question whether a start's cost grows with them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.bed import bed

ROOTFS = bed.BUILD / "images/bookworm"
PROGRAM = "/usr/local/bin/mpihello"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LABEL = "org.supercontainers.mpi=mpich"


def library(folder: Path, names: list[str]) -> None:
    """Small shared objects with these sonames, all of one length: compiled once, and renamed in the bytes of each copy."""
    if not names:
        return
    source, first = folder / ".empty.c", folder / names[0]
    source.write_text("int oci_hpc_hooks_bench;\n")
    subprocess.run(["gcc", "-shared", "-nostdlib", "-s", f"-Wl,-soname,{names[0]}", "-o", first, source], check=True, timeout=60)
    source.unlink()
    data = first.read_bytes()
    assert data.count(names[0].encode()) == 1
    for name in names[1:]:
        assert len(name) == len(names[0])
        (folder / name).write_bytes(data.replace(names[0].encode(), name.encode()))


def stub(original: Path, target: Path, needs: list[str]) -> None:
    """A library with the names of the original and nothing else, that needs the libraries of these names beside it."""
    done = subprocess.run(["nm", "-D", "--defined-only", original], capture_output=True, text=True, check=True, timeout=60)
    names = sorted({line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()})
    source = target.with_suffix(".c")
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names if name.isidentifier()))
    command = ["gcc", "-shared", "-nostdlib", "-w", "-fno-builtin", f"-Wl,-soname,{target.name}", "-Wl,-rpath,$ORIGIN", "-o", str(target)]
    others = [str(target.with_name(name)) for name in needs]
    subprocess.run([*command, str(source), "-Wl,--no-as-needed", *others], check=True, timeout=120)
    source.unlink()


def count(rootfs: Path) -> int:
    """Entries of its loader's cache."""
    done = subprocess.run(["ldconfig", "-r", rootfs, "-p"], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout.split(maxsplit=1)[0])


def small(engine: bed.Engine, scratch: Path) -> tuple[str, int]:
    """An image with one MPI program and nothing but what that loads. Returns its reference and its number of libraries."""
    folder = scratch / "small"
    done = subprocess.run(["chroot", ROOTFS, "ldd", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    # A site's libraries were linked with all of these.
    glibc = [f"/{LIBRARIES}/{name}" for name in ("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1")]
    wanted = [PROGRAM, "/bin/true", *glibc, *(word for word in done.stdout.split() if word.startswith("/"))]
    done = subprocess.run(["chroot", ROOTFS, "realpath", *wanted], capture_output=True, text=True, check=True, timeout=60)
    for path in done.stdout.split():
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOTFS / path.lstrip("/"), target)
        target.chmod(0o755)
    for link, aim in (("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin")):
        (folder / link).symlink_to(aim)
    (folder / "usr/lib64").mkdir(exist_ok=True)
    loader = "ld-linux-x86-64.so.2"
    if not (folder / "usr/lib64" / loader).exists():
        (folder / "usr/lib64" / loader).symlink_to(f"../lib/x86_64-linux-gnu/{loader}")
    (folder / "etc").mkdir()
    (folder / "etc/ld.so.conf").write_text(f"/{LIBRARIES}\n")
    subprocess.run(["ldconfig", "-r", folder], check=True, timeout=60)
    name = "localhost/bench/small:latest"
    archive = scratch / "small.tar"
    subprocess.run(["tar", "-C", folder, "-cf", archive, "."], check=True, timeout=60)
    changes = [f"--change=LABEL {LABEL}", "--change=ENV PATH=/usr/local/bin:/usr/bin:/bin"]
    engine.podman("import", "--quiet", *changes, str(archive), name, check=True, timeout=120)
    return name, count(folder)


def large(engine: bed.Engine, scratch: Path, libraries: int) -> tuple[str, int]:
    """The bed's MPICH image with as many more libraries in its loader's cache as it takes to have this many. Returns the same."""
    base = engine.load("bookworm-mpich")
    name = f"localhost/bench/large-{libraries}:latest"
    top, work, merged = (scratch / f"{libraries}-{part}" for part in ("upper", "work", "merged"))
    for folder in (top, work, merged):
        folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "overlay", "-o", f"lowerdir={ROOTFS},upperdir={top},workdir={work}", "overlay", merged], check=True)
    try:
        more = max(libraries - count(merged), 1)
        library(merged / LIBRARIES, [f"libbulk{number:05d}.so.1" for number in range(more)])
        subprocess.run(["ldconfig", "-r", merged], check=True, timeout=120)
        found = count(merged)
    finally:
        subprocess.run(["umount", merged], check=True)
    shutil.rmtree(top / "var", ignore_errors=True)  # ldconfig's own notes
    (scratch / "Containerfile").write_text(f"FROM {base}\nCOPY . /\n")
    build = ["build", "--quiet", "--pull=never", "--file", str(scratch / "Containerfile"), "--tag", name, str(top)]
    engine.podman(*build, check=True, timeout=300)
    return name, found
