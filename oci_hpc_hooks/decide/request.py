"""What is asked for, and by whom: annotations, labels and site defaults become one Request.

Precedence, highest first: an annotation of the caller, a label of the image, an annotation of the image's manifest, a default of the
site. Keys are compared as they are, values trimmed and lower-cased; unknown keys are ignored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

from oci_hpc_hooks.errors import Refusal
from oci_hpc_hooks.model import INJECT, NODE, NOTE, RANK, REPLACE, STACKS, WARNING, Container, Finding, Request, Site, Wish

MPI = "org.supercontainers.mpi"

#: Keys that name the MPI family, in order of preference inside one source (SC19 vocabulary, compspec, HPC3, Sarus).
MPI_KEYS = (MPI, "org.supercontainers.mpi.implementation", "org.supercontainers.mpi.provider", "com.hooks.mpi.type")
MPI_SWITCH = "com.hooks.mpi.enabled"
MPI_MODE = "org.supercontainers.mpi.portability.mode"
#: Those that keep the image's MPI, and how the site's libfabric then comes to it, "" for not at all.
MODES = {"mpi_system": "", "libfabric_replace": REPLACE, "libfabric_inject": INJECT}
LIBFABRIC = "libfabric"

#: Which stacks of GPUs, and the keys that only say whether the image needs a GPU.
GPU = "org.supercontainers.gpu"
FABRIC = "org.supercontainers.fabric"
GPU_SWITCHES = ("org.supercontainers.hardware.gpu.available", "org.supercontainers.hardware.gpu.enabled")

#: What of the job a container gets, and whom it serves. Of the caller and the site alone: an image gets no directory or variable by asking.
LAUNCHER = "org.supercontainers.launcher"
LAUNCHER_SCOPE = "org.supercontainers.launcher.scope"

#: Interfaces for a network namespace of the container's own. Of the caller and the site alone, too: some leave the node.
NETWORK = "org.supercontainers.network"

#: Which of the granted GPUs: of the caller and the site alone, for an image cannot know them.
GPU_DEVICES = "org.supercontainers.gpu.devices"

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

#: The same for stacks. Any other word is the name that a profile gives to what it provides.
STACK_NAMES = {
    "gpu": {
        "cuda": "cuda", "nvidia": "cuda",
        "rocm": "rocm", "hip": "rocm", "amd": "rocm",
        "opencl": "opencl", "ocl": "opencl",
        "levelzero": "levelzero", "level-zero": "levelzero", "level_zero": "levelzero", "ze": "levelzero",
    },
    "fabric": {
        "verbs": "verbs", "ib": "verbs", "infiniband": "verbs", "roce": "verbs", "rdma": "verbs",
        LIBFABRIC: LIBFABRIC, "ofi": LIBFABRIC,
        "cxi": "cxi", "slingshot": "cxi",
        "psm2": "psm2", "opx": "opx", "omnipath": "opx",
        **{name: name for name in ("ucx", "efa", "xpmem", "knem", "gdrcopy")},
    },
}
#: Those that stand alone.
_ALONE = {AUTO: AUTO, "unknown": AUTO, NOBODY: NOBODY}
#: Where a kind is asked for, in order of preference inside one source; a switch says yes or no.
STACK_KEYS = {"gpu": (GPU, *GPU_SWITCHES), "fabric": (FABRIC,)}

OVERRIDE = f"--annotation {MPI}=none"
OVERRIDES = {"mpi": OVERRIDE, **{kind: f"--annotation {keys[0]}=none" for kind, keys in STACK_KEYS.items()}}


def wishes(asked: Request) -> Tuple[Wish, ...]:
    """What is asked for of the site's libraries, in the order in which it is served."""
    found = (*(() if asked.mpi is None else (asked.mpi,)), *asked.stacks)
    return tuple(wish for wish in found if wish.value != NOBODY)


def override(asked: Request) -> str:
    """The options with which a container starts without any of what it asks for explicitly."""
    kinds = dict.fromkeys(wish.kind for wish in wishes(asked) if wish.explicit)
    return " ".join(OVERRIDES[kind] for kind in kinds) or OVERRIDE


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
    stacks: Dict[str, Tuple[Wish, ...]] = dict.fromkeys(STACKS, ())
    launcher: Optional[Wish] = None
    network: Optional[Wish] = None
    gpu_devices: Optional[Wish] = None
    scope = ""
    mode: Tuple[Wish, ...] = ()
    for source in _sources(container, site):
        if source.who == "image author":
            findings += _not_for_images(source)
        else:
            launcher = launcher or _named(source, LAUNCHER)
            network = network or _named(source, NETWORK)
            scope = scope or _scope(source)
            gpu_devices = gpu_devices or _gpu_devices(source)
        if mpi is None:
            mpi, found = _mpi(source)
            findings.extend(found)
            mode = _libfabric(source) if mpi is not None else ()
        if glibc is None:
            for key in GLIBC_KEYS:
                if source.values.get(key, "").strip():
                    glibc = Wish(source.values[key].strip(), f"{source.kind} {key}={source.values[key]}", False)
                    break
        cpu = cpu or _cpu(source)
        stacks = {kind: wished or _stacks(source, kind) for kind, wished in stacks.items()}
    if mode:
        stacks["fabric"] = tuple(replace(wish, mode=mode[0].mode) for wish in stacks["fabric"] or mode)
    asked = tuple(wish for wished in stacks.values() for wish in wished)
    return Request(mpi=mpi, glibc=glibc, findings=tuple(findings), cpu=cpu, stacks=asked, launcher=launcher, scope=scope or RANK,
                   gpu_devices=gpu_devices, network=network)


def _sources(container: Container, site: Site) -> Iterator[_Source]:
    # Before podman 4.5.1 the annotations of an image's manifest arrive as if the caller had set them: what the stored manifest
    # also says is the image's word.
    manifest = container.manifest_annotations
    caller = {key: value for key, value in container.annotations.items() if manifest.get(key) != value}
    yield _Source("annotation", caller, "user")
    yield _Source("label", container.labels, "image author")
    yield _Source("annotation of the image's manifest", manifest, "image author")
    yield _Source("site default", site.defaults, "site admin")


def _not_for_images(source: _Source) -> Iterator[Finding]:
    for key in (LAUNCHER, LAUNCHER_SCOPE, NETWORK):
        if key in source.values:
            what = "interfaces a container gets" if key == NETWORK else "a container gets of a job"
            yield Finding(WARNING, "not-for-images",
                          f"{key} of an image is passed over: what {what} is for whoever starts it to say",
                          f"{source.kind} {key}={source.values[key]}", f"give --annotation {key}=…", "user")
    if GPU_DEVICES in source.values:
        yield Finding(WARNING, "not-for-images", f"{GPU_DEVICES} of an image is passed over: which GPUs there are, only the node knows",
                      f"{source.kind} {GPU_DEVICES}={source.values[GPU_DEVICES]}", f"give --annotation {GPU_DEVICES}=…", "user")


def _named(source: _Source, key: str) -> Optional[Wish]:
    """The launchers or networks that one source names. In --annotation podman takes a comma for a new one: hence "+"."""
    names = _words(source.values.get(key, ""))
    if not names:
        return None
    value = NOBODY if NOBODY in names else AUTO if AUTO in names else ",".join(dict.fromkeys(names))
    explicit = source.kind == "annotation" and value != AUTO
    return Wish(value, f"{source.kind} {key}={source.values[key]}", explicit)


def _gpu_devices(source: _Source) -> Optional[Wish]:
    """Which GPUs, as they are written: :mod:`oci_hpc_hooks.decide.gpus` reads them at each start."""
    text = source.values.get(GPU_DEVICES, "").strip()
    explicit = source.kind == "annotation"
    return Wish(text, f"{source.kind} {GPU_DEVICES}={text}", explicit, False, "gpu") if text else None


def _words(text: str) -> List[str]:
    return list(dict.fromkeys(text.lower().replace("+", " ").replace(",", " ").split()))


def _stacks(source: _Source, kind: str) -> Tuple[Wish, ...]:
    """The stacks of one kind that one source asks for, () if it says nothing of them; "none" and "auto" stand alone."""
    by_image = source.who == "image author"
    names = {**STACK_NAMES[kind], **_ALONE}
    for key in STACK_KEYS[kind]:
        text = source.values.get(key, "")
        words = _words(text)
        origin = f"{source.kind} {key}={text}"
        if key in GPU_SWITCHES:
            words = [NOBODY] if words[:1] in (["false"], ["no"], ["0"]) else [AUTO] if words else []
        stacks = list(dict.fromkeys(names.get(word, word) for word in words))
        stacks = next(([word] for word in (NOBODY, AUTO) if word in stacks), stacks)
        if stacks:
            explicit = source.kind != "site default"
            return tuple(Wish(stack, origin, explicit and stack != AUTO, by_image, kind) for stack in stacks)
    return ()


def _libfabric(source: _Source) -> Tuple[Wish, ...]:
    """The site's libfabric for the image's own MPI, where a source says how."""
    text = source.values.get(MPI_MODE, "")
    mode = MODES.get(text.strip().lower(), "")
    explicit = source.kind != "site default"
    wish = Wish(LIBFABRIC, f"{source.kind} {MPI_MODE}={text}", explicit, source.who == "image author", "fabric", mode)
    return (wish,) if mode else ()


def _scope(source: _Source) -> str:
    """Refusal for a value that means nothing."""
    value = source.values.get(LAUNCHER_SCOPE, "").strip().lower()
    if value and value not in (RANK, NODE):
        raise Refusal(f"{LAUNCHER_SCOPE} has the unknown value {value!r}; known are {RANK} and {NODE}",
                      origin=f"{source.kind} {LAUNCHER_SCOPE}={value}", remedy=f"give {RANK} or {NODE}", who=source.who)
    return value


def _cpu(source: _Source) -> Optional[Wish]:
    """The claim of one source; None if it makes none."""
    for key in CPU_KEYS[:1] if source.kind == "annotation" else CPU_KEYS:  # start.PREFIXES: of the caller only our own keys are read
        name = source.values.get(key, "").strip().lower().replace("-", "_")
        if name:
            generic = source.values.get(CPU_MODE, "").strip().lower() == GENERIC
            return Wish(GENERIC if generic else name, f"{source.kind} {key}={source.values[key]}", False)
    return None


def _mpi(source: _Source) -> Tuple[Optional[Wish], Tuple[Finding, ...]]:
    """The MPI wish of one source, None if it has none."""
    values = source.values
    explicit = source.kind != "site default"
    by_image = source.who == "image author"
    if values.get(MPI_MODE, "").strip().lower() in MODES:
        kept = f"{source.kind} {MPI_MODE}={values[MPI_MODE]}"
        return Wish(NOBODY, kept, explicit, by_image), (Finding(NOTE, "mpi-kept", "the image's own MPI is kept, as is asked for", kept),)
    if values.get(MPI_SWITCH, "").strip().lower() in ("false", "0", "no"):
        return Wish(NOBODY, f"{source.kind} {MPI_SWITCH}={values[MPI_SWITCH]}", explicit, by_image), ()
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
            return Wish(AUTO, origin, False, by_image), (
                Finding(WARNING, "unknown-value", what + "; the image itself is looked at instead", origin,
                        f"give one of {known}", source.who),)
        return Wish(family, origin, explicit and family != AUTO, by_image), ()
    if values.get(MPI_SWITCH, "").strip().lower() in ("true", "1", "yes"):
        return Wish(AUTO, f"{source.kind} {MPI_SWITCH}={values[MPI_SWITCH]}", False, by_image), ()
    return None, ()
