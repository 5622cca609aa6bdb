"""Which MPI family a library belongs to, by what it exports.

Sonames do not tell: Open MPI 1.10 was a ``libmpi.so.12`` as MPICH is, Debian calls MPICH ``libmpich.so.12``, MVAPICH-Plus 4 is
``libmpi.so.0``. The exception is the standard's own ABI (MPI 5.0, chapter 20), whose library has its name from the standard, and the
internals of whoever made it.
"""

from __future__ import annotations

from oci_hpc_hooks.model import ElfFacts

#: The family of every library of the standard ABI, whoever made it.
ABI = "mpi-abi"
ABI_SONAME = "libmpi_abi.so."

#: Open MPI's predefined handles are data symbols of this prefix, in every release since 1.0.
OPENMPI_MARK = "ompi_"
#: MPICH and its descendants (Intel MPI, Cray MPICH, MVAPICH2) export their internals, or since 4.0 at least the QMPI interface.
MPICH_MARKS = ("MPIR_", "MPIDI_", "QMPI_", "MPID_")
#: Libraries below Open MPI's libmpi, without any promise between two builds: its launcher of releases up to 4 crashes on another's.
OPENMPI_INNER = ("libopen-pal.so.", "libopen-rte.so.")
#: PMIx, through which ranks of Open MPI meet their launcher. Releases agree in their protocol, and the launcher uses internals of its own.
PMIX_SONAME = "libpmix.so."
PMIX = ("PMIx_", "pmix_")
#: Open MPI's launcher, under the names that it is started by. That of 5 is a small program which starts another: its libraries do not tell.
LAUNCHERS = ("mpirun", "mpiexec", "prterun", "oshrun")
#: That of 4, behind the same names.
ORTERUN = ("orterun",)
#: How a library reads the memory of another rank (process_vm_readv(2)).
COPIES_MEMORY = "process_vm_readv"
#: Libraries through which ranks of MPICH's family meet their launcher; without one it is built in.
PMI_SONAMES = ("libpmi.so.", "libpmi2.so.")
STANDARD = ("MPI_", "PMPI_", "MPIX_", "PMPIX_")


def family(elf: ElfFacts) -> str:
    """ "mpich", "openmpi" or "mpi-abi"; "" for a library that is no implementation of MPI's C interface."""
    found = ""
    initialises = False
    for name in elf.exports:
        if name.startswith(OPENMPI_MARK):
            found = "openmpi"
        elif not found and name.startswith(MPICH_MARKS):
            found = "mpich"
        elif name == "MPI_Init":
            initialises = True
    if not initialises:
        return ""
    return ABI if elf.soname.startswith(ABI_SONAME) else found


def implementation(elf: ElfFacts) -> str:
    """Whose library of the standard ABI this is, for people: "MPICH", "Open MPI", or "" for a stub and for what is not known."""
    if any(name.startswith(MPICH_MARKS) for name in elf.exports):
        return "MPICH"
    inner = any(name.startswith(("libopen-pal.so.", "libopen_mpi.so.")) for name in elf.needed)
    return "Open MPI" if inner or any(name.startswith(OPENMPI_MARK) for name in elf.exports) else ""


def matters(name: str) -> bool:
    """Whether an exported symbol belongs to MPI: its interface in C, C++ and Fortran, or the internals that an implementation's own
    bindings take from it. Worth keeping of a library whose other symbols have versions."""
    return "mpi" in name.lower()
