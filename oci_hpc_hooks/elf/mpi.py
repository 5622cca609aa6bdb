"""Which MPI family a library belongs to, by what it exports.

Sonames do not tell: Open MPI 1.10 was a ``libmpi.so.12`` as MPICH is, Debian calls MPICH ``libmpich.so.12``, MVAPICH-Plus 4 is
``libmpi.so.0``.
"""

from __future__ import annotations

from typing import Iterable

#: Open MPI's predefined handles are data symbols of this prefix, in every release since 1.0.
OPENMPI_MARK = "ompi_"
#: MPICH and its descendants (Intel MPI, Cray MPICH, MVAPICH2) export their internals, or since 4.0 at least the QMPI interface.
MPICH_MARKS = ("MPIR_", "MPIDI_", "QMPI_", "MPID_")
#: Libraries below Open MPI's libmpi, without any promise between two builds: its launcher of releases up to 4 crashes on another's.
OPENMPI_INNER = ("libopen-pal.so.", "libopen-rte.so.")
STANDARD = ("MPI_", "PMPI_", "MPIX_", "PMPIX_")


def family(exports: Iterable[str]) -> str:
    """ "mpich" or "openmpi"; "" for a library that is no implementation of MPI's C interface."""
    found = ""
    initialises = False
    for name in exports:
        if name.startswith(OPENMPI_MARK):
            found = "openmpi"
        elif not found and name.startswith(MPICH_MARKS):
            found = "mpich"
        elif name == "MPI_Init":
            initialises = True
    return found if initialises else ""


def matters(name: str) -> bool:
    """Whether an exported symbol is worth keeping: MPI's own interface, and what tells the family."""
    return name.startswith((*STANDARD, OPENMPI_MARK, *MPICH_MARKS))
