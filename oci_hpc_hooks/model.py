"""The values that flow through the house, from the container's state to the plan.

Frozen dataclasses and nothing else: this module imports nothing of ours, reads nothing and decides nothing. Paths are strings as
the kernel returns them (``os.fsdecode``); a path "in the image" starts at the image's own root.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple

# ---------------------------------------------------------------------------------------------------------------- findings

ERROR = "error"
WARNING = "warning"
NOTE = "note"

PROVED = "proved"
UNPROVED = "unproved"
REFUSED = "refused"
NOTHING = "nothing"


@dataclass(frozen=True)
class Finding:
    """One thing a person should know about a decision."""

    severity: str  # ERROR, WARNING or NOTE
    code: str  # stable and greppable, such as "glibc-too-old"
    what: str  # what was wanted and what was found, one sentence without a full stop
    origin: str = ""  # where the wish came from: label, annotation, file and JSON path
    remedy: str = ""  # what to do
    who: str = ""  # who can do it: "user", "image author" or "site admin"


# ---------------------------------------------------------------------------------------------------------------- ELF

@dataclass(frozen=True)
class ElfFacts:
    """What one ELF file says about itself (elf(5), gabi chapters 4 and 5, LSB symbol versioning).

    ``rpath`` and ``runpath`` are split at ":" with ``$ORIGIN`` left as written. ``verneed`` lists per needed file the versions it must
    define, weak ones left out. ``exports`` and ``imports`` are dynamic symbol names without versions; they are empty unless the
    reader was asked for symbols.
    """

    elf_class: int  # ELFCLASS32 = 1, ELFCLASS64 = 2
    little_endian: bool
    machine: int  # EM_X86_64 = 62, EM_AARCH64 = 183
    elf_type: int  # ET_EXEC = 2, ET_DYN = 3
    dynamic: bool  # has a PT_DYNAMIC segment
    interp: str = ""  # PT_INTERP
    soname: str = ""
    needed: Tuple[str, ...] = ()
    rpath: Tuple[str, ...] = ()
    runpath: Tuple[str, ...] = ()
    nodeflib: bool = False  # DF_1_NODEFLIB: the default directories and the cache's entries for them are not searched
    verneed: Tuple[Tuple[str, Tuple[str, ...]], ...] = ()
    verdef: Tuple[str, ...] = ()
    exports: Tuple[str, ...] = ()
    imports: Tuple[str, ...] = ()
    isa_needed: int = 0  # GNU_PROPERTY_X86_ISA_1_NEEDED: bit n = x86-64-v(n + 1); 0 = not marked
    execstack: bool = False  # wants an executable stack: PT_GNU_STACK with PF_X, or none where that is the default
    filters: Tuple[str, ...] = ()  # DT_FILTER: what it stands for, loaded before it
    auxiliaries: Tuple[str, ...] = ()  # DT_AUXILIARY: the same, if it is there


@dataclass(frozen=True)
class FileId:
    """What tells that a file is still the file that was read. Never the device: two live containers of one image differ in it."""

    inode: int
    size: int  # bytes
    mtime_ns: int


# ---------------------------------------------------------------------------------------------------------------- container

@dataclass(frozen=True)
class Mount:
    """One mount of config.json that crosses the container's tree."""

    destination: str
    type: str
    source: str
    options: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Container:
    """What the runtime, the bundle and the image store say about one container."""

    id: str
    bundle: str
    rootfs: str  # absolute path in the runtime's mount namespace
    args: Tuple[str, ...]
    env: Tuple[str, ...]  # NAME=value
    cwd: str
    mounts: Tuple[Mount, ...]
    annotations: Mapping[str, str]  # what the caller said
    labels: Mapping[str, str]  # image Config.Labels
    manifest_annotations: Mapping[str, str]  # of the stored image manifest: the image's word, never the caller's
    image_id: str = ""
    image_name: str = ""
    pid: int = 0  # host pid of the container's init process; 0 when there is none (check)
    read_only: bool = False
    user_namespace: bool = False  # the container has a user namespace of its own
    mount_label: str = ""  # linux.mountLabel (SELinux)


# ---------------------------------------------------------------------------------------------------------------- request

@dataclass(frozen=True)
class Wish:
    """One thing asked for, and by whom."""

    value: str  # normalised: "mpich", "openmpi", "mpi-abi", "auto", "none" …
    origin: str  # "annotation org.supercontainers.mpi=mpich", "label …", "site default …"
    explicit: bool  # an annotation or label: may be refused; defaults and auto are skipped with a note instead
    by_image: bool = False  # the word of the image's author: a label, or an annotation of the manifest
    kind: str = "mpi"  # of what: the key of a profile's ``provides``
    mode: str = ""  # of a fabric: REPLACE or INJECT, "" = whichever serves


#: Kinds of what may be asked for beside an MPI, several of each. A stack comes as a whole; its libraries are opened by name as well.
STACKS = ("gpu", "fabric")

#: How a site's fabric comes to an image that has the same library: in its place, or by modules that the image's own opens.
REPLACE = "replace"
INJECT = "inject"

#: A container serves one rank, or all of a node, which come into it by ``podman exec``: then no rank's variables are its own.
RANK = "rank"
NODE = "node"


@dataclass(frozen=True)
class Request:
    """What the image and the user ask for, after precedence and aliases. ``None`` = nobody asked."""

    mpi: Optional[Wish] = None
    glibc: Optional[Wish] = None  # the image's claim about its own glibc, checked against ELF
    findings: Tuple[Finding, ...] = ()
    cpu: Optional[Wish] = None  # the claim for which microarchitecture the image was built, as archspec would call it
    stacks: Tuple[Wish, ...] = ()  # one for each stack of GPUs and of fabrics, in the order of STACKS
    launcher: Optional[Wish] = None  # "auto", "none", or names of launchers with commas between: the caller or the site says so
    scope: str = RANK  # whom the container serves
    network: Optional[Wish] = None  # "none", "auto", or names of profiles with commas between: of the caller and the site alone
    gpu_devices: Optional[Wish] = None  # which of the granted GPUs, as the caller or the site writes them


# ---------------------------------------------------------------------------------------------------------------- site

@dataclass(frozen=True)
class Variant:
    """The same libraries built another way, against an older C library: for images that are too old for the profile's own."""

    name: str
    search: Tuple[str, ...]  # directories with shell patterns; the libraries themselves are taken from nowhere else


@dataclass(frozen=True)
class SiteProfile:
    """One entry of site.json ``profiles``: which profile is on, and where this site keeps its files."""

    name: str
    search: Tuple[str, ...] = ()  # directories looked in before those of the profile
    variants: Tuple[Variant, ...] = ()
    root: str = ""  # the directory that stands for "/" in the profile's paths: of a driver that is installed in a folder of its own
    cdi: str = ""  # as in the profile


@dataclass(frozen=True)
class Site:
    """/etc/oci-hpc-hooks/site.json. The defaults are those of a site that has none."""

    profiles: Tuple[SiteProfile, ...] = ()  # in order of preference; empty = every profile that is installed
    defaults: Mapping[str, str] = field(default_factory=dict)  # requests that every container gets: {"org.supercontainers.mpi": "auto"}
    on_refusal: str = "refuse"  # or "run-without"
    unproved: str = "run"  # or "refuse"
    c_runtime: str = "none"  # or "host": where a container's glibc is too old, the site's takes its place
    c_runtime_search: Tuple[str, ...] = ()  # directories that it may be taken from; empty = the node's own
    loader_cache: str = "file"  # in the container's own layer, where that can be; or "bind": always mounted over the image's


@dataclass(frozen=True)
class ProfileLibrary:
    """One library that a profile brings."""

    soname: str
    role: str  # "replace": over the image's copies; "add": if the image has none
    replaces: Tuple[str, ...] = ()  # other sonames in images that this one stands in for
    required: bool = True


@dataclass(frozen=True)
class LibrarySet:
    """Libraries, their modules and their configuration that must come from one build, the site's or the image's."""

    name: str
    when: str  # soname of the library that the set is about: with it the set comes
    libraries: Tuple[str, ...] = ()  # sonames that go with it
    directories: Tuple[str, ...] = ()  # what it opens by path, modules and configuration; "$ORIGIN" = real directory of ``when``
    private: str = ""  # how symbol versions begin that only files of one build share
    separable: bool = False  # its modules serve any build of ``when`` that has the symbol versions which they need


@dataclass(frozen=True)
class Newer:
    """Where images carry a newer release of a driver's libraries that works on the kernel modules of older ones."""

    file: str  # pattern of the library whose release, behind ".so." in its name, is held against that of the profile's first one
    section: str = ""  # of the ELF note in it that says for which releases it is meant: a JSON object
    owner: str = ""  # of that note
    key: str = ""  # of that object: a list of major releases of the node's driver


@dataclass(frozen=True)
class Need:
    """What ranks need of the container that they run in; ``what`` is one of those in :mod:`oci_hpc_hooks.decide.job`."""

    what: str
    severity: str = ERROR  # or WARNING: it runs without, but worse
    otherwise: Mapping[str, str] = field(default_factory=dict)  # variables with which it runs without


@dataclass(frozen=True)
class Scheduler:
    """How a scheduler says which GPUs of the node a job was given, beside what its device cgroup lets it open."""

    gpus: Tuple[str, ...] = ()  # variables with numbers that count all GPUs of the node in PCI order, the narrowest first
    cgroup: str = ""  # a directory in the path of every cgroup of the job, ``${NAME}`` as in a :class:`Job`


@dataclass(frozen=True)
class Job:
    """What a container gets of the job that it is started in. Text in ``variables`` and ``directories`` may name variables of the
    launcher's as ``${NAME}``; with one that is not set, the whole entry does not apply."""

    when: str = ""  # the variable of the launcher's that tells that it is this one; "" = it is not looked for
    protocol: str = ""  # how ranks talk to it: "pmix", "pmi" or "" for not at all
    start: str = ""  # for people: how a step with this protocol is started
    environment: Tuple[str, ...] = ()  # names of variables that are copied from the launcher's, "*" at the end for all that begin so
    except_for: Tuple[str, ...] = ()  # but not these
    variables: Mapping[str, str] = field(default_factory=dict)  # what is set beside them
    directories: Tuple[str, ...] = ()  # of the job, at their own path and writable
    sockets: Tuple[str, ...] = ()  # of the node's services, by name of the profile only
    needs: Tuple[Need, ...] = ()
    scheduler: Optional[Scheduler] = None  # it gives jobs devices


@dataclass(frozen=True)
class GpuParts:
    """How the instances are found that a GPU is divided into. In ``each`` and ``devices`` ``${NAME}`` is a fact of the GPU; in ``devices``
    and ``uuid`` ``${1}`` is what the first ``*`` of ``each`` stands for."""

    each: str
    devices: Mapping[str, str] = field(default_factory=dict)  # file with facts, to the device node that they tell
    uuid: str = ""


@dataclass(frozen=True)
class GpuCapabilities:
    """Which devices a container gets by a variable that lists what its programs do with GPUs."""

    variable: str
    devices: Mapping[str, str] = field(default_factory=dict)  # pattern, to the words any of which brings what matches


@dataclass(frozen=True)
class GpuRequirements:
    """Variables with conditions on the driver: of alternatives with blanks between, one must hold in all its parts, with commas between."""

    variables: str  # a variable's name, or its beginning and "*"
    driver: str  # the file of the node that has the driver's version, the condition "driver"
    unless: str = ""  # the variable that switches them off
    interface: str = ""  # the name of a condition on the programming interface: "cuda"
    versions: Mapping[str, str] = field(default_factory=dict)  # major version of the driver, to that of the interface


@dataclass(frozen=True)
class Gpus:
    """How the GPUs of one stack are found on a node without opening them, and how people name some of them.

    There is one for each file or directory that ``each`` matches. ``${NAME}`` in the other texts is a fact: of a file the value in the
    line that begins with NAME, of a directory the content of its file NAME; ``${1}`` is what the first ``*`` of ``each`` stands for.
    """

    each: str
    only: Mapping[str, str] = field(default_factory=dict)  # facts that it must have
    bus: str = ""  # PCI address; by it GPUs are numbered, else by what ``*`` stands for
    uuid: str = ""
    devices: Tuple[str, ...] = ()  # device nodes of this GPU alone
    drm: str = ""  # a directory of sysfs with the names of its nodes in /dev/dri
    hidden: Tuple[str, ...] = ()  # directories that would show a GPU to a container that does not get it
    parts: Optional[GpuParts] = None
    chosen_by: Tuple[str, ...] = ()  # variables with which people choose, as in images and engines of that vendor
    selected_by: Mapping[str, str] = field(default_factory=dict)  # variables that programs go by, to how GPUs are named: "uuid" or "index"
    capabilities: Optional[GpuCapabilities] = None
    numbered: Mapping[str, str] = field(default_factory=dict)  # variables with numbers, to the device that each, in place of "*", asks for
    requirements: Optional[GpuRequirements] = None


@dataclass(frozen=True)
class Interface:
    """A network interface of the node that comes into a container's own network namespace."""

    device: str  # its name on the node; one * stands for any characters
    mode: str  # "move": itself, with its addresses; "ipvlan" or "macvlan": a new one on top of it
    name: str = ""  # in the container; "" = as on the node
    addresses: Tuple[str, ...] = ()  # of a new one, with the length of the prefix


@dataclass(frozen=True)
class Profile:
    """profiles.d/NAME.json: data, not code. What to inject when a request matches."""

    name: str
    description: str
    provides: Mapping[str, str]  # {"mpi": "mpich"}, {"gpu": "opencl"}, {"fabric": "ucx"} or {"launcher": "pmix"}
    libraries: Tuple[ProfileLibrary, ...] = ()
    search: Tuple[str, ...] = ()  # directories that may hold the libraries, and their dependencies, before the node's own ld.so.cache
    plugins: Tuple[str, ...] = ()  # directories of modules that are dlopened, "$ORIGIN" = directory of the first library
    immovable: Tuple[str, ...] = ()  # patterns of files that the libraries open by their absolute path: with these it cannot be offered
    source: str = ""  # the file it was read from
    variants: Tuple[Variant, ...] = ()
    sets: Tuple[LibrarySet, ...] = ()
    devices: Tuple[str, ...] = ()  # device nodes, shell patterns in the last part
    job: Job = Job()
    companions: Tuple[str, ...] = ()  # patterns of more libraries, "$VERSION" = what stands behind ".so." in the first one's real name
    icds: Tuple[str, ...] = ()  # patterns of files that name a library each, which comes too; as "files" they are at their own path
    files: Tuple[str, ...] = ()  # patterns of files that appear at their own path
    verified: Mapping[str, str] = field(default_factory=dict)  # by what it has been tried, for people
    interfaces: Tuple[Interface, ...] = ()
    cdi: str = ""  # the device of an installed CDI specification that says which files and devices there are
    gpus: Optional[Gpus] = None
    gpus_of: Tuple[str, ...] = ()  # profiles whose GPUs and devices this one's libraries open too
    newer: Optional[Newer] = None  # an image's own may be preferred

    @property
    def is_stack(self) -> bool:
        """Whether what it brings comes as a whole (:data:`STACKS`)."""
        return any(kind in self.provides for kind in STACKS)


# ---------------------------------------------------------------------------------------------------------------- inventory

@dataclass(frozen=True)
class HostLibrary:
    """One library of the node, resolved. It is found as ``path`` and read from ``real``."""

    name: str  # what a program asks for: the soname, or a plugin's file name
    path: str  # directory it was found in + name: its layout to the others is kept in the container
    real: str  # the regular file behind it
    role: str  # "replace", "add", "dependency", "plugin" or "runtime"
    replaces: Tuple[str, ...]
    file: FileId
    elf: ElfFacts
    optional: bool = False  # left out of a container where it does not fit


@dataclass(frozen=True)
class HostFile:
    """A file of the node that no loader reads, resolved."""

    path: str
    real: str
    file: FileId
    required: bool = False  # the profile is of no use without it
    glibc: str = ""  # of a program: the glibc release that it needs, "" = any
    library: str = ""  # the name of the library that it names, without which it is of no use


@dataclass(frozen=True)
class ResolvedSet:
    """A :class:`LibrarySet` on this node. Its libraries are among those of the profile."""

    name: str
    private: str
    libraries: Tuple[str, ...]  # sonames, that of the library it is about first; not every one need be on this node
    modules: Tuple[HostLibrary, ...]  # of its directories: what is loaded
    files: Tuple[HostFile, ...]  # and everything else
    separable: bool = False  # as in the profile


@dataclass(frozen=True)
class ResolvedProfile:
    """A profile, or one of its variants, resolved on this node. ``problems`` not empty: it cannot be offered, and why."""

    name: str
    provides: Mapping[str, str]
    source: str
    libraries: Tuple[HostLibrary, ...]  # what is replaced or added first, then the dependency closure
    plugins: Tuple[HostLibrary, ...] = ()
    problems: Tuple[str, ...] = ()
    variant: str = ""  # the variant's name, "" for the profile as such
    glibc: str = ""  # the glibc release, such as "2.34", that has what the libraries (without modules) need of it; "" = any
    variants: Tuple[ResolvedProfile, ...] = ()
    sets: Tuple[ResolvedSet, ...] = ()  # those that come with the libraries
    devices: Tuple[str, ...] = ()  # as in the profile: which of them there are is seen at each start
    job: Job = Job()
    files: Tuple[HostFile, ...] = ()  # ``path``: where they appear
    names: Tuple[str, ...] = ()  # of a stack: every library that the profile names, whether this node has it or not
    gpus: Optional[Gpus] = None  # as in the profile
    gpus_of: Tuple[str, ...] = ()
    interfaces: Tuple[Interface, ...] = ()  # as in the profile: which of them there are is seen at each start
    newer: Optional[Newer] = None

    @property
    def is_stack(self) -> bool:
        """As of :class:`Profile`."""
        return any(kind in self.provides for kind in STACKS)

    @property
    def title(self) -> str:
        """ "profile mpich", "variant el7 of profile mpich", for people."""
        return f"variant {self.variant} of profile {self.name}" if self.variant else f"profile {self.name}"


@dataclass(frozen=True)
class Watched:
    """A path whose change makes the inventory stale. ``file`` is None when it did not exist at the scan; ``profiles`` are those for whose
    sake alone it was looked at, none if all rest on it."""

    path: str
    file: Optional[FileId]
    profiles: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Cpu:
    """The node's processor, in archspec's names, with all that is needed to judge an image without archspec."""

    target: str  # "zen3"
    vendor: str  # "AuthenticAMD"
    level: str  # the generic target that it amounts to: "x86_64_v3", "armv8.2a"
    isa: int  # the x86-64 levels that run here, as bits of GNU_PROPERTY_X86_ISA_1_NEEDED; 0 on other machines
    compatible: Tuple[str, ...]  # the targets whose programs run here, its own among them
    levels: Mapping[str, str]  # every target of this machine's family, and the generic one that it amounts to


@dataclass(frozen=True)
class Inventory:
    """What this node offers, precomputed by ``oci-hpc-hooks scan``."""

    version: int
    created: str  # ISO 8601, UTC
    machine: str  # uname -m
    libc_version: str  # the node's own glibc, for people
    site: Site
    profiles: Tuple[ResolvedProfile, ...]  # in the site's order of preference
    rests_on: Tuple[Watched, ...]  # configuration, profiles and every host file and directory that was consulted
    c_runtime: Optional[ResolvedProfile] = None  # loader and libraries of glibc, one directory's (``source``); None = the site keeps it
    cpu: Optional[Cpu] = None  # None = it could not be told
    hwcaps: Tuple[str, ...] = ()  # capabilities of the node's processor by which ld.so chooses among libraries (elf/hwcaps.py)


# ---------------------------------------------------------------------------------------------------------------- image

@dataclass(frozen=True)
class ImageFile:
    """One ELF file of the image."""

    path: str  # real path in the image, symbolic links resolved
    file: FileId
    elf: ElfFacts


@dataclass(frozen=True)
class CacheEntry:
    """One entry of ld.so.cache (glibc sysdeps/generic/dl-cache.h, struct file_entry_new)."""

    name: str
    path: str
    flags: int
    osversion: int = 0
    hwcap: int = 0


@dataclass(frozen=True)
class LdCache:
    """A parsed ld.so.cache. ``hwcap_names`` is the glibc-hwcaps extension: names that the entries' hwcap field indexes."""

    entries: Tuple[CacheEntry, ...]
    hwcap_names: Tuple[str, ...] = ()
    generator: str = ""


@dataclass(frozen=True)
class Directory:
    """One directory that the image's loader may search: the names in it, and the real file behind those that matter."""

    path: str  # as the loader would spell it
    mtime_ns: int
    inode: int
    names: Tuple[str, ...]  # every name that looks like a shared object, and of subdirectories for some processors (elf/hwcaps.py)


@dataclass(frozen=True)
class Bystanders:
    """What in an image would notice that another C library takes the place of its own. Paths, real ones except for the commands."""

    execstack: Tuple[str, ...] = ()  # libraries and modules that want an executable stack and are not loaded when the programs start
    static_nss: Tuple[str, ...] = ()  # static programs of the command line that open the NSS modules of the glibc they were linked with
    linker: str = ""  # ``ld`` in PATH
    ldd: str = ""  # ``ldd`` in PATH


@dataclass(frozen=True)
class NewerLibrary:
    """A library of the image that a profile's ``newer`` is about."""

    path: str  # as the pattern found it
    supports: Optional[Tuple[int, ...]]  # major releases of drivers, as its note says; None = it has no note that says so


@dataclass(frozen=True)
class ImageFacts:
    """What the image brings: enough for plan() to simulate its loader without touching a file.

    ``resolved`` maps each path the loader may try to the real path behind it ("" = does not exist); ``files`` holds the facts
    by real path. ``directories`` are all that are searched. ``unreadable`` maps a real path to why it could not be read as ELF.
    """

    libc: Optional[ImageFile]  # libc.so.6, if the image has glibc
    loader: str  # path of the entrypoint's or the image's glibc loader, "" if there is none
    musl: str  # path of a musl loader, "" if there is none
    default_dirs: Tuple[str, ...]
    library_path: Tuple[str, ...]
    cache: Optional[LdCache]
    cache_path: str  # where the loader looks for its cache: "/etc/ld.so.cache" unless the loader says otherwise
    cache_real: str  # the real path of that file, "" if it does not exist
    cache_file: Optional[FileId]
    programs: Tuple[str, ...]  # real paths of the ELF programs that the arguments lead to, the entrypoint first
    entrypoint: str  # "elf", "static", "script" or "missing": what the first program is that is not an init wrapper
    empty_directories: Tuple[str, ...]  # of a read-only root filesystem: places that the tree could be mounted over
    resolved: Mapping[str, str]
    files: Mapping[str, ImageFile]
    directories: Tuple[Directory, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    preload: Tuple[str, ...] = ()  # LD_PRELOAD, then /etc/ld.so.preload
    consumers: Tuple[str, ...] = ()  # real paths of what uses MPI in PATH, libraries and Python packages, where the programs do not
    libc_version: str = ""  # as libc.so.6 says it itself
    makeable: Tuple[str, ...] = ()  # directories of sets that the image lacks and that could be made in its own filesystem
    hwcaps: Tuple[str, ...] = ()  # the node's, for which this was gathered
    foreign: Tuple[str, ...] = ()  # programs and consumers that another loader starts, with a cache of its own
    drop_ins: str = ""  # the directory whose *.conf files ldconfig in the image reads, "" if it reads none
    conf: Optional[Watched] = None  # the ld.so.conf that says so
    static_programs: Tuple[str, ...] = ()  # real paths of static ELF programs that the arguments lead to
    bystanders: Bystanders = Bystanders()  # looked for only where the site may bring a newer C library
    newer: Mapping[str, Tuple[NewerLibrary, ...]] = field(default_factory=dict)  # by the pattern of ``Newer.file``
    missed: str = ""  # a file that could not be looked at for a reason that may pass (EIO), and the reason


# ---------------------------------------------------------------------------------------------------------------- plan

@dataclass(frozen=True)
class Bind:
    """A host file that appears in the container, read-only.

    In the tree, ``target`` is relative to the tree's root. In place, it is a real path in the image, and ``over`` is the file that
    must still be there.
    """

    source: str
    source_file: FileId
    target: str
    why: str
    over: Optional[FileId] = None


@dataclass(frozen=True)
class Cover:
    """A directory of the image that a directory of the tree is mounted over. ``inode`` 0: it is made first."""

    folder: str  # relative to the tree's root
    target: str  # path in the image
    inode: int  # of what must still be there, as is mtime_ns
    mtime_ns: int


@dataclass(frozen=True)
class DropIn:
    """A file for ldconfig: with it, a cache that ldconfig makes anew inside the container still leads to what was injected."""

    path: str  # in the image
    text: str
    rests_on: Watched  # the image's ld.so.conf, which includes it


@dataclass(frozen=True)
class JobPlan:
    """What is decided at each start from the launcher's variables, and what is known of it before."""

    launchers: Mapping[str, Job]  # those that could be meant, by name
    wanted: Tuple[str, ...]  # names; () = whichever has started the job
    family: Job  # what the MPI that is injected asks for itself
    scope: str
    origin: str
    explicit: bool  # what is needed and lacking is a refusal, not a warning
    protocols: Tuple[str, ...] = ()  # which the MPI that is injected speaks; () = no MPI is, and it is not known
    copies_memory: bool = False  # it reads other ranks' memory (process_vm_readv(2))
    locking: Tuple[str, ...] = ()  # patterns of device nodes whose users lock memory
    services: Mapping[str, Job] = field(default_factory=dict)  # of the stacks that come: what the node may have for them


@dataclass(frozen=True)
class GpuPlan:
    """What is decided at each start about GPUs, and what is known of it before."""

    stacks: Mapping[str, Gpus]  # by profile: those whose GPUs the container may get
    closed: Tuple[str, ...]  # of them those asked for by the image alone: of their devices what anybody may open
    schedulers: Mapping[str, Job]  # which could have started the job, by name
    wish: str  # which of the granted GPUs, "" = nobody has said
    wish_origin: str
    origin: str  # of the wish for the stack
    explicit: bool  # a GPU that cannot be had is a refusal, not a warning
    refuses: bool  # the same for one that somebody names
    copies: bool  # the container serves one rank, and gets its variables


@dataclass(frozen=True)
class NetworkPlan:
    """Interfaces for a container with a network namespace of its own; whether it has one is seen at its start."""

    interfaces: Tuple[Interface, ...]
    origin: str
    explicit: bool  # what cannot be brought is a refusal, not a warning


@dataclass(frozen=True)
class Plan:
    """Ordered actions and findings. Applying it needs no further decision."""

    verdict: str  # PROVED, UNPROVED, REFUSED or NOTHING
    findings: Tuple[Finding, ...]
    profile: str = ""  # with more than one: "mpich, opencl"
    tree: Tuple[Bind, ...] = ()
    in_place: Tuple[Bind, ...] = ()
    modules: Tuple[Cover, ...] = ()
    cache_target: str = ""  # path in the image that the generated cache is bound over, "" = no cache is needed
    cache_over: Optional[FileId] = None  # the image's own cache; None = the target is created
    cache: Optional[LdCache] = None
    tree_root: str = ""  # where the tree appears in the container
    tree_make: str = ""  # "dev": a directory in the runtime's own /dev tmpfs; "create": in the rootfs; "": over an existing empty one
    tried: Optional[Plan] = None  # of a refusal: what the first finding of it is about, where the decision came that far
    drop_in: Optional[DropIn] = None  # the cache is a file in the container's own layer, with this one; None = it is bound
    devices: Tuple[str, ...] = ()  # patterns of device nodes that the caller or the site has asked for
    files: Tuple[Bind, ...] = ()  # at their own path, over the image's or beside what is there
    open_devices: Tuple[str, ...] = ()  # those that only the image has asked for: of them what anybody may open
    job: Optional[JobPlan] = None
    gpus: Optional[GpuPlan] = None
    variant: str = ""  # of the profile, "" = its own libraries
    network: Optional[NetworkPlan] = None
