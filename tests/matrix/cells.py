"""What the matrix crosses: images, each with a way to start it, and the MPIs that a site may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from tests.bed import bed

INSIDE = "inside"  # the image's own mpiexec starts both ranks in one container
OUTSIDE = "outside"  # an mpiexec of the site starts one container for each rank
PLAIN = "plain"  # the program is no MPI program and is started as it is


@dataclass(frozen=True)
class Row:
    """An image of `bed.IMAGES`, what is asked for by annotation, and the program of one rank."""

    name: str
    image: str
    tree: str  # its root file system below build/images: where the oracle looks for the image's copies
    asks: str
    program: Sequence[str]
    ranks: str = INSIDE
    launcher: Sequence[str] = ("mpiexec",)


@dataclass(frozen=True)
class Host:
    """An MPI of the site in ``lib``, the C runtime that the site allows, and what starts containers from outside."""

    name: str
    family: str
    version: str
    lib: Path
    launcher: Path
    c_runtime: Optional[Path] = None


OMPI = ("mpirun", "--allow-run-as-root", "--oversubscribe")
SPACK = "/opt/spack/linux-debian12-x86_64/gcc-12.2.0"
SPACK_MPIEXEC = (f"{SPACK}/mpich-4.0.3-b2xq/bin/mpiexec",)
CONDA_OMPI = ("/opt/conda/bin/mpirun", *OMPI[1:])
PYTHON = ("python3", "/usr/local/bin/mpihello.py")

ROWS = (
    Row("Debian 11, MPICH 3.4", "bullseye-mpich-nolabel", "bullseye", "mpich", ("mpihello",)),
    Row("Debian 12, MPICH 4.0", "bookworm-mpich-nolabel", "bookworm", "mpich", ("mpihello",)),
    Row("Debian 13, MPICH 4.2", "debian13-mpich", "debian13", "mpich", ("mpihello",)),
    Row("Debian 11, Open MPI 4.1, its own mpirun", "bullseye-openmpi", "bullseye-openmpi", "openmpi", ("ompihello",), INSIDE, OMPI),
    Row("Debian 11, Open MPI 4.1, the site's mpirun", "bullseye-openmpi", "bullseye-openmpi", "openmpi", ("ompihello",), OUTSIDE),
    Row("Debian 12, Open MPI 4.1, its own mpirun", "bookworm-openmpi-nolabel", "bookworm-openmpi", "openmpi", ("ompihello",), INSIDE, OMPI),
    Row("Debian 12, Open MPI 4.1, the site's mpirun", "bookworm-openmpi-nolabel", "bookworm-openmpi", "openmpi", ("ompihello",), OUTSIDE),
    Row("Debian 13, Open MPI 5.0, its own mpirun", "debian13-openmpi", "debian13-openmpi", "openmpi", ("ompihello",), INSIDE, OMPI),
    Row("Debian 13, Open MPI 5.0, the site's mpirun", "debian13-openmpi", "debian13-openmpi", "openmpi", ("ompihello",), OUTSIDE),
    Row("both MPIs, asks for mpich", "bookworm-both-nolabel", "bookworm-both", "mpich", ("mpihello",), INSIDE, ("mpiexec.mpich",)),
    Row("both MPIs, asks for openmpi", "bookworm-both-nolabel", "bookworm-both", "openmpi", ("ompihello",), INSIDE,
        ("mpirun.openmpi", *OMPI[1:])),
    Row("both MPIs, auto, the MPICH program", "bookworm-both-nolabel", "bookworm-both", "auto", ("mpihello",), INSIDE, ("mpiexec.mpich",)),
    Row("Spack, DT_RPATH", "spack", "spack", "mpich", (f"{SPACK}/mpihello-1.0-k7wd/bin/mpihello",), INSIDE, SPACK_MPIEXEC),
    Row("Spack, DT_RUNPATH", "spack", "spack", "mpich", (f"{SPACK}/mpihello-1.0-k7wd/bin/mpihello-runpath",), OUTSIDE),
    Row("conda, MPICH 4.3", "conda", "conda", "mpich", ("/opt/conda/bin/mpihello",), INSIDE, ("/opt/conda/bin/mpiexec",)),
    Row("conda, Open MPI 5.0, its own mpirun", "conda-openmpi", "conda-openmpi", "openmpi", ("/opt/conda/bin/ompihello",), INSIDE,
        CONDA_OMPI),
    Row("conda, Open MPI 5.0, the site's mpirun", "conda-openmpi", "conda-openmpi", "openmpi", ("/opt/conda/bin/ompihello",), OUTSIDE),
    Row("Debian's mpi4py (Open MPI 4.1)", "mpi4py", "mpi4py", "openmpi", PYTHON, INSIDE, OMPI),
    Row("PyPI's mpi4py, asks for openmpi", "mpi4py-wheel", "mpi4py", "openmpi", PYTHON, INSIDE, OMPI),
    Row("PyPI's mpi4py, asks for mpich", "mpi4py-wheel", "mpi4py", "mpich", PYTHON, OUTSIDE),
    Row("Fortran, MPICH 4.0", "fortran", "bookworm", "mpich", ("mpihello-fortran",)),
    Row("Fortran, Open MPI 4.1", "fortran-openmpi", "bookworm-openmpi", "openmpi", ("ompihello-fortran",), OUTSIDE),
    Row("the MPI standard's ABI", "bookworm-abi-nolabel", "bookworm-abi", "mpi-abi", ("abihello",)),
    Row("no /etc/ld.so.cache", "nocache-nolabel", "bookworm", "mpich", ("mpihello",)),
    Row("distroless", "distroless", "distroless", "mpich", ("mpihello",), OUTSIDE),
    Row("musl", "musl-nolabel", "musl", "mpich", ("muslhello",), PLAIN),
    Row("musl, auto", "musl-nolabel", "musl", "auto", ("muslhello",), PLAIN),
    Row("static", "static-nolabel", "static", "mpich", ("statichello",), PLAIN),
    Row("static, auto", "static-nolabel", "static", "auto", ("statichello",), PLAIN),
)


def _site(name: str) -> Path:
    return bed.BUILD / "site" / name


_HYDRA = _site("mpich5") / "bin/mpiexec"
_PRTE = _site("openmpi5") / "bin/mpirun"
_GLIBC = _site("trixie-libc") / "usr/lib/x86_64-linux-gnu"

HOSTS = (
    Host("MPICH 3.4", "mpich", "3.4.3", _site("mpich3") / "lib", _site("mpich3") / "bin/mpiexec"),
    Host("MPICH 4.1", "mpich", "4.1.3", _site("mpich4") / "lib", _site("mpich4") / "bin/mpiexec"),
    Host("MPICH 5.0", "mpich", "5.0.2", _site("mpich5") / "lib", _HYDRA),
    Host("Debian 13's MPICH 4.2", "mpich", "4.2.1", _site("trixie") / "lib", _HYDRA),
    Host("the same with its glibc", "mpich", "4.2.1", _site("trixie") / "lib", _HYDRA, _GLIBC),
    Host("Open MPI 4.1", "openmpi", "4.1.8", _site("openmpi4") / "lib", _site("openmpi4") / "bin/mpirun"),
    Host("Open MPI 5.0", "openmpi", "5.0.11", _site("openmpi5") / "lib", _PRTE),
    Host("Debian 13's Open MPI 5.0", "openmpi", "5.0.7", _site("trixie-openmpi") / "lib", _PRTE),
    Host("that with its glibc", "openmpi", "5.0.7", _site("trixie-openmpi") / "lib", _PRTE, _GLIBC),
)
