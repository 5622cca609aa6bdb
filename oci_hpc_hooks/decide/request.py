"""What is asked for, and by whom: annotations, labels and site defaults become one Request.

Precedence, highest first: an annotation of the caller, a label of the image, an annotation of the image's manifest, a default of the
site. Keys are compared as they are, values trimmed and lower-cased; unknown keys are ignored.
"""

from __future__ import annotations

from typing import Iterator, List, Mapping, Optional, Tuple

from oci_hpc_hooks.errors import Refusal
from oci_hpc_hooks.model import NOTE, WARNING, Container, Finding, Request, Site, Wish

MPI = "org.supercontainers.mpi"

#: Keys that name the MPI family, in order of preference inside one source (SC19 vocabulary, compspec, HPC3, Sarus).
MPI_KEYS = (MPI, "org.supercontainers.mpi.implementation", "org.supercontainers.mpi.provider", "com.hooks.mpi.type")
MPI_SWITCH = "com.hooks.mpi.enabled"
MPI_MODE = "org.supercontainers.mpi.portability.mode"

GLIBC_KEYS = ("org.supercontainers.glibc", "org.supercontainers.glibc.version")

#: The microarchitecture that the image was built for, in archspec's names; mode ``generic``: it runs anywhere.
CPU_KEYS = ("org.supercontainers.hardware.cpu.optimized.version", "io.archspec.cpu.target")
CPU_MODE = "org.supercontainers.hardware.cpu.optimized.mode"
GENERIC = "generic"

AUTO = "auto"
NOBODY = "none"

#: What people write, to the ABI family it means.
FAMILIES = {
    "mpich": "mpich", "intel-mpi": "mpich", "intelmpi": "mpich", "impi": "mpich", "mvapich": "mpich", "mvapich2": "mpich",
    "cray-mpich": "mpich", "craympich": "mpich",
    "openmpi": "openmpi", "open-mpi": "openmpi", "ompi": "openmpi",
    "mpi-abi": "mpi-abi", "mpi_abi": "mpi-abi",
    AUTO: AUTO, "unknown": AUTO, NOBODY: NOBODY,
}

OVERRIDE = f"--annotation {MPI}=none"


class _Source:
    """One place that wishes come from."""

    def __init__(self, kind: str, values: Mapping[str, str], who: str) -> None:
        self.kind = kind
        self.values = values
        self.who = who


def request(container: Container, site: Site) -> Request:
    """The Request of a container. Refusal if an annotation of the caller has a value that means nothing."""
    findings: List[Finding] = []
    mpi: Optional[Wish] = None
    glibc: Optional[Wish] = None
    cpu: Optional[Wish] = None
    for source in _sources(container, site):
        if mpi is None:
            mpi, found = _mpi(source)
            findings.extend(found)
        if glibc is None:
            for key in GLIBC_KEYS:
                if source.values.get(key, "").strip():
                    glibc = Wish(source.values[key].strip(), f"{source.kind} {key}={source.values[key]}", False)
                    break
        cpu = cpu or _cpu(source)
    return Request(mpi=mpi, glibc=glibc, findings=tuple(findings), cpu=cpu)


def _sources(container: Container, site: Site) -> Iterator[_Source]:
    # Before podman 4.5.1 the annotations of an image's manifest arrive as if the caller had set them: what the stored manifest
    # also says is the image's word.
    manifest = container.manifest_annotations
    caller = {key: value for key, value in container.annotations.items() if manifest.get(key) != value}
    yield _Source("annotation", caller, "user")
    yield _Source("label", container.labels, "image author")
    yield _Source("annotation of the image's manifest", manifest, "image author")
    yield _Source("site default", site.defaults, "site admin")


def _cpu(source: _Source) -> Optional[Wish]:
    """The claim of one source; None if it makes none."""
    for key in CPU_KEYS[:1] if source.kind == "annotation" else CPU_KEYS:  # warm.PREFIXES: of the caller only our own keys are read
        name = source.values.get(key, "").strip().lower().replace("-", "_")
        if name:
            generic = source.values.get(CPU_MODE, "").strip().lower() == GENERIC
            return Wish(GENERIC if generic else name, f"{source.kind} {key}={source.values[key]}", False)
    return None


def _mpi(source: _Source) -> Tuple[Optional[Wish], Tuple[Finding, ...]]:
    """The MPI wish of one source, None if it has none."""
    values = source.values
    explicit = source.kind != "site default"
    if values.get(MPI_SWITCH, "").strip().lower() in ("false", "0", "no"):
        return Wish(NOBODY, f"{source.kind} {MPI_SWITCH}={values[MPI_SWITCH]}", explicit), ()
    for key in MPI_KEYS:
        if key not in values:
            continue
        origin = f"{source.kind} {key}={values[key]}"
        word = "-".join(values[key].strip().lower().split())
        family = FAMILIES.get(word)
        if family is None:
            known = ", ".join(sorted({*FAMILIES.values()}))
            what = f"{key} has the unknown value {values[key]!r}; known are {known}"
            if source.kind == "annotation":
                raise Refusal(what, origin=origin, remedy=f"give one of {known}", who="user")
            return Wish(AUTO, origin, False), (
                Finding(WARNING, "unknown-value", what + "; the image itself is looked at instead", origin,
                        f"give one of {known}", source.who),)
        if family != NOBODY and values.get(MPI_MODE, "").strip().lower() in ("mpi_system", "libfabric_inject"):
            return Wish(NOBODY, f"{source.kind} {MPI_MODE}={values[MPI_MODE]}", explicit), (
                Finding(NOTE, "mpi-kept", "the image asks that its own MPI be kept", f"{source.kind} {MPI_MODE}={values[MPI_MODE]}"),)
        return Wish(family, origin, explicit and family != AUTO), ()
    if values.get(MPI_SWITCH, "").strip().lower() in ("true", "1", "yes"):
        return Wish(AUTO, f"{source.kind} {MPI_SWITCH}={values[MPI_SWITCH]}", False), ()
    return None, ()
