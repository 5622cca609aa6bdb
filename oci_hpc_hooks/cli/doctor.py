"""``oci-hpc-hooks doctor``: what is wrong with this node or this installation, and who can mend it.

Facts are gathered first, from the node as it is; what they mean is said by small functions that touch nothing. What podman and the hooks
say themselves when a container starts is not repeated here: it is about what they pass over in silence, or would say only then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from oci_hpc_hooks import cli, pack
from oci_hpc_hooks.cli import profiles as profiles_verb
from oci_hpc_hooks.cli import show
from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import inventory, site, trust
from oci_hpc_hooks.inputs.validate import Invalid
from oci_hpc_hooks.report import Places, own_places

#: What podman reads where no configuration names a folder; older releases, CRI-O and buildah read both by themselves.
DEFAULT_FOLDER = "/usr/share/containers/oci/hooks.d"
SHARED = (DEFAULT_FOLDER, "/etc/containers/oci/hooks.d")
#: Stages that podman knows: those of the OCI runtime specification, and its own.
STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop", "precreate")
PODMAN, KERNEL = (4, 3), (5, 14)
ENGINES = ("podman", "crun", "runc", "buildah", "crio")
LIMIT = 1 << 20
#: Characters of an engine's complaint.
COMPLAINT = 400
_TOO_LARGE = 4 << 20


@dataclass(frozen=True)
class Fault:
    """``error``: containers fail or do not get what they ask for. ``warning``: they do, and worse than they could. ``note``: as it
    should be, and good to know."""

    code: str
    severity: str
    what: str
    remedy: str = ""
    who: str = ""


@dataclass(frozen=True)
class Program:
    name: str
    path: str
    version: str  # empty: it did not tell
    trouble: str = ""  # in its own words


@dataclass(frozen=True)
class Executable:
    """What a descriptor names. ``state`` is one of missing, not a file, not executable, noexec, interpreter, untrusted, outdated, ok."""

    path: str
    state: str
    detail: str = ""
    remedy: str = ""  # of one that is untrusted
    places: Tuple[str, ...] = ()  # configuration, state, cache and log that a hook of ours goes by


@dataclass(frozen=True)
class Descriptor:
    """One ``*.json`` of a hook folder; ``problem`` is why it is none."""

    path: str
    document: Optional[Mapping[str, Any]] = None
    problem: str = ""
    executable: Optional[Executable] = None

    @property
    def ours(self) -> bool:
        return self.executable is not None and os.path.basename(self.executable.path).startswith("oci-hpc-hooks-")


@dataclass(frozen=True)
class Folder:
    """A folder of descriptors that is in force, and what named it."""

    path: str
    origin: str
    exists: bool
    untrusted: Tuple[str, str] = ("", "")  # what, remedy
    descriptors: Tuple[Descriptor, ...] = ()


@dataclass(frozen=True)
class Rootless:
    """What a user needs who starts containers. ``user`` is empty where root asks for the node as a whole."""

    user: str
    subuid: bool
    subgid: bool
    helpers: Tuple[str, ...]  # newuidmap and newgidmap that can not do their work
    namespaces: int  # user.max_user_namespaces
    runtime_dir: str  # what is wrong with /run/user/UID


# ------------------------------------------------------------------------------------------------------- what it means

def _error(code: str, what: str, remedy: str, who: str = "site admin") -> Fault:
    return Fault(code, "error", what, remedy, who)


def _warning(code: str, what: str, remedy: str, who: str = "site admin") -> Fault:
    return Fault(code, "warning", what, remedy, who)


def node_faults(release: str, selinux: str, apparmor: str) -> Iterator[Fault]:
    if _numbers(release) < KERNEL:
        yield _error("kernel-old", f"the kernel is {release}, and hooks need Linux {_dotted(KERNEL)}: they refuse on an older one",
                     f"boot Linux {_dotted(KERNEL)} or newer")
    if selinux == "enforcing":
        yield Fault("selinux", "note", "SELinux is enforcing: whether a container may read the node's files depends on their types too; "
                    "ausearch -m AVC names what was denied")
    if apparmor == "enabled":
        yield Fault("apparmor", "note", "AppArmor is enabled: a profile that confines podman or the runtime has to allow mounts")


def engine_faults(engines: Sequence[Program]) -> Iterator[Fault]:
    found = {engine.name: engine for engine in engines}
    if not found.keys() & {"podman", "crio", "crun", "runc"}:
        yield _error("engine-missing", "there is no podman, crun or runc in PATH", "install podman and crun, or extend PATH")
    elif not found.keys() & {"crun", "runc"}:
        yield _error("runtime-missing", "there is neither crun nor runc in PATH", "install crun")
    podman = found.get("podman")
    if podman and podman.version and _numbers(podman.version) < PODMAN:
        yield _error("podman-old", f"{podman.path} is podman {podman.version}, and this needs {_dotted(PODMAN)} or newer",
                     "update podman")
    for engine in engines:
        if not engine.version:
            what = f"{engine.path} --version does not tell a version"
            if engine.trouble:
                yield _warning("engine-broken", f"{what}: {engine.trouble}", "mend what it names")
            else:
                yield _warning("engine-broken", what, f"install {engine.name} again")


def folder_faults(folders: Sequence[Folder]) -> Iterator[Fault]:
    """Of the folders as such, and of how they go together."""
    for folder in folders:
        if not folder.exists and folder.origin != "default":
            yield _error("folder-missing", f"there is no folder {folder.path}, which {folder.origin} names: podman passes it over "
                         "without a word", "make it with oci-hpc-hooks register, or name the right one")
        if folder.untrusted[0]:
            yield _error("folder-untrusted", *folder.untrusted)
    ours = [(folder, descriptor) for folder in folders for descriptor in folder.descriptors if descriptor.ours]
    if not ours:
        places = ", ".join(folder.path for folder in folders) or "no folder"
        yield _error("hooks-none", f"no hook of this project is in force (podman reads {places}): containers get nothing",
                     "install the package, or run oci-hpc-hooks register DIR and name DIR as hooks_dir in containers.conf; for a podman "
                     "that is given --hooks-dir DIR: oci-hpc-hooks doctor --hooks-dir DIR")
    # A file of a later folder takes the place of one with the same name, so only other names make a second injection.
    names = {os.path.basename(descriptor.path): stages(descriptor) for _, descriptor in ours}
    at = [name for name, found in names.items() if {"createRuntime", "prestart"} & set(found)]
    if len(at) > 1:
        yield _warning("hooks-twice", f"{' and '.join(sorted(at))} are both in force: each start pays for two hooks",
                       "keep one of the alternatives in docs/admin.md")


def descriptor_faults(folder: str, descriptor: Descriptor) -> Iterator[Fault]:
    path, document = descriptor.path, descriptor.document
    if document is None:
        yield _error("descriptor-broken", f"{path} {descriptor.problem}: podman starts no container with it", f"mend or remove {path}")
        return
    if document.get("version") != "1.0.0":
        yield _error("descriptor-version", f"{path} is of version {document.get('version')!r}, and podman knows 1.0.0: it starts no "
                     "container with it", 'write "version": "1.0.0"')
    found = stages(descriptor)
    unknown = [name for name in found if name not in STAGES]
    known = f"stages are {', '.join(STAGES)}"
    if unknown:
        yield _error("descriptor-stage", f"{path} names {', '.join(map(repr, unknown))}, which is no stage: podman starts no container "
                     "with it", known)
    elif not found:
        yield _error("descriptor-stage", f"{path} names no stage: podman never runs it", known)
    if "precreate" in found and folder in SHARED:
        yield _error("precreate-shared", f"{path} is for precreate, a stage of podman's own, in a folder that buildah and CRI-O read: "
                     "image builds fail", "move it to a folder of its own, and name that as hooks_dir in containers.conf")
    for where, pattern in patterns(document):
        problem = regex_problem(pattern)
        if problem:
            yield _error("descriptor-regex", f"{path}: $.{where} has the regular expression {pattern!r}, {problem}: podman starts no "
                         "container with it", "correct it")
    if descriptor.executable is not None:
        yield from executable_faults(path, descriptor.executable)


def executable_faults(descriptor: str, executable: Executable) -> Iterator[Fault]:
    path, detail = executable.path, executable.detail
    register = "run oci-hpc-hooks register again, or install the package again"
    said: Mapping[str, Tuple[str, str, str]] = {
        "relative": ("error", f"{descriptor} names {path!r}: podman looks for that from where it is started", "write the whole path"),
        "missing": ("error", f"there is no {path}, which {descriptor} names: podman passes that hook over without a word", register),
        "not a file": ("error", f"{path}, which {descriptor} names, is no file: containers fail", register),
        "not executable": ("error", f"{path}, which {descriptor} names, is not executable: containers fail", f"chmod 755 {path}"),
        "noexec": ("error", f"{path} is on a filesystem mounted noexec: containers fail", "put it elsewhere, or mount that without noexec"),
        "interpreter": ("error", f"{path} starts with {detail}, which is not there: containers fail", register),
        "untrusted": ("error", detail, executable.remedy),
        "outdated": ("warning", f"{path} does not use the byte-code that it carries ({detail}): each start takes a tenth longer", register),
    }
    if executable.state in said:
        severity, what, remedy = said[executable.state]
        code = "executable-" + executable.state.replace(" ", "-")
        yield Fault(code, severity, what, remedy, "site admin" if remedy else "")


def inventory_faults(problem: str, stale: Sequence[str], noexec: Sequence[str]) -> Iterator[Fault]:
    """``problem``: why there is none; ``stale``: why it is out of date; ``noexec``: libraries in it that no program could map."""
    again = "run oci-hpc-hooks scan; systemctl enable --now oci-hpc-hooks-scan.service oci-hpc-hooks-scan.path does it from now on"
    if problem:
        yield _error("inventory", problem.rstrip("."), again)
    if stale:
        more = f", and {show.count(len(stale) - 1, 'more change')}" if len(stale) > 1 else ""
        yield _warning("inventory-stale", f"the inventory is out of date ({stale[0]}{more}): each start resolves the node anew", again)
    for path in noexec:
        yield _error("library-noexec", f"{path} is on a filesystem mounted noexec: no program can load it",
                     "mount that without noexec")


def profile_faults(listed: Sequence[Mapping[str, Any]], named: Iterable[str]) -> Iterator[Fault]:
    """Of the profiles that are on: those that site.json names are meant to be there, others are what the package happens to know."""
    on = [profile for profile in listed if profile["state"] == "on"]
    named = set(named)
    for profile in on:
        if profile["available"] is False and profile["name"] in named:
            yield _error("profile-unavailable", f"site.json has the profile {profile['name']}, and this node can not offer it: "
                         f"{profile['problems'][0]}", "correct its search directories, or take it out")
    families = [profile for profile in on if "mpi" in profile["provides"]]
    if any(profile["available"] is not None for profile in families) and not any(profile["available"] for profile in families):
        yield _error("mpi-none", "none of the profiles that are on has found an MPI on this node",
                     "name its directory in site.json: profiles[].search")


def rootless_faults(facts: Rootless) -> Iterator[Fault]:
    whom = facts.user or "any user"
    for there, name in (facts.subuid, "/etc/subuid"), (facts.subgid, "/etc/subgid"):
        if not there:
            yield _warning("subordinate-ids", f"{name} has no range for {whom}: images with files of several owners can not be "
                           "unpacked by rootless podman", f"usermod --add-sub{name[-3:]}s 100000-165535 {facts.user or 'USER'}")
    for helper in facts.helpers:
        yield _warning("id-helper", f"{helper}: rootless podman can not use subordinate ids", "install the package uidmap or "
                       "shadow-utils again")
    if facts.namespaces == 0:
        yield _warning("user-namespaces", "user.max_user_namespaces is 0: there is no rootless podman on this node",
                       "sysctl user.max_user_namespaces=15000")
    if facts.runtime_dir:
        yield _warning("runtime-dir", f"{facts.runtime_dir}: a user's hooks keep no plans, so that each start is a cold one",
                       "log in through PAM, or loginctl enable-linger", "user")


# ------------------------------------------------------------------------------------------------------- pure helpers

def stages(descriptor: Descriptor) -> List[str]:
    found = (descriptor.document or {}).get("stages")
    return [str(name) for name in found] if isinstance(found, list) else []


def patterns(document: Mapping[str, Any]) -> Iterator[Tuple[str, str]]:
    """Every regular expression of a descriptor, with its place (podman's oci-hooks(5))."""
    when = document.get("when")
    when = when if isinstance(when, dict) else {}
    annotations, commands = when.get("annotations"), when.get("commands")
    for key, value in annotations.items() if isinstance(annotations, dict) else ():
        yield "when.annotations", str(key)
        yield "when.annotations", str(value)
    for value in commands if isinstance(commands, list) else ():
        yield "when.commands", str(value)


def regex_problem(pattern: str) -> str:
    """Why podman, in whose language expressions are RE2's, does not take this one; empty if it seems to."""
    if re.search(r"\(\?(?:[=!>(]|<[=!]|P=)|(?<!\\)(?:\\\\)*\\[1-9]|[*+?}]\+", pattern):
        return "with a lookaround, a back-reference or a possessive repeat, which Go does not have"
    try:
        # What RE2 has and Python writes otherwise.
        re.compile(re.sub(r"\\[pP](?:\{\^?\w+\}|\w)|\[\[:\^?\w+:\]\]|\\[zQEC]", "x", pattern))
    except re.error as error:
        return f"which is none ({error})"
    return ""


def hook_folders(texts: Sequence[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """Folders with what names them, from the texts of containers.conf files in podman's order: the last one that has the key counts."""
    found: List[Tuple[str, str]] = [(DEFAULT_FOLDER, "default")]
    for origin, text in texts:
        bare = re.sub(r"^((?:[^\"'#\n]|\"[^\"\n]*\"|'[^'\n]*')*)#.*$", r"\1", text, flags=re.MULTILINE)
        section = re.search(r"^\s*\[engine\]\s*$(.*?)(?=^\s*\[\w|\Z)", bare, re.MULTILINE | re.DOTALL)
        key = section and re.search(r"^\s*hooks_dir\s*=\s*\[(.*?)\]", section[1], re.MULTILINE | re.DOTALL)
        if key:
            appended = found if re.search(r"append\s*=\s*true", key[1]) else []
            found = [*appended, *((one or other, origin) for one, other in re.findall(r"\"([^\"]*)\"|'([^']*)'", key[1]))]
    return found


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _dotted(version: Tuple[int, ...]) -> str:
    return ".".join(map(str, version))


# ------------------------------------------------------------------------------------------------------- what there is

def engines_in_path() -> List[Program]:
    found = [(name, shutil.which(name)) for name in ENGINES]
    return [Program(name, path, *version_of(path)) for name, path in found if path]


def version_of(program: str) -> Tuple[str, str]:
    """What it tells as its version, and otherwise what it complains of."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, encoding="utf-8", errors="replace", timeout=20, cwd="/",
                              stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        return "", error.strerror or "" if isinstance(error, OSError) else "it does not answer"
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout) if done.returncode == 0 else None
    return (found[0], "") if found else ("", " ".join(done.stderr.split())[:COMPLAINT])


def configuration_texts(env: Mapping[str, str], uid: int) -> List[Tuple[str, str]]:
    """The containers.conf files that podman of this user reads, in its order (containers.conf(5))."""
    home = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or "/", ".config")
    paths: List[str] = []
    if env.get("CONTAINERS_CONF"):
        paths.append(env["CONTAINERS_CONF"])
    else:
        paths.append("/usr/share/containers/containers.conf")
        for base in ("/etc/containers", *([os.path.join(home, "containers")] if uid else [])):
            paths.append(f"{base}/containers.conf")
            paths += sorted(map(str, Path(f"{base}/containers.conf.d").glob("*.conf")))
    if env.get("CONTAINERS_CONF_OVERRIDE"):
        paths.append(env["CONTAINERS_CONF_OVERRIDE"])
    found = []
    for path in paths:
        try:
            found.append((path, Path(path).read_text(encoding="utf-8", errors="replace")))
        except OSError:
            continue
    return found


def folder_at(path: str, origin: str) -> Folder:
    if not os.path.isdir(path):
        return Folder(path, origin, exists=False)
    untrusted = ("", "")
    try:
        trust.trust_directory(path)
    except ConfigError as error:
        untrusted = (error.what, error.remedy)
    names = sorted(name for name in os.listdir(path) if name.endswith(".json"))
    return Folder(path, origin, True, untrusted, tuple(descriptor_at(os.path.join(path, name)) for name in names))


def descriptor_at(path: str) -> Descriptor:
    try:
        document = json.loads(trust.read_any(path, LIMIT))
    except ConfigError as error:
        return Descriptor(path, problem=f"is no descriptor ({error.what})")
    except (ValueError, RecursionError) as error:
        return Descriptor(path, problem=f"is no JSON ({error})")
    hook = document.get("hook") if isinstance(document, dict) else None
    if not isinstance(hook, dict) or not isinstance(hook.get("path"), str):
        return Descriptor(path, problem="has no $.hook.path")
    return Descriptor(path, document, executable=executable_at(hook["path"]))


def executable_at(path: str) -> Executable:
    if not os.path.isabs(path):
        return Executable(path, "relative")
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # or a NUL, which no path has
        return Executable(path, "missing")
    if not stat.S_ISREG(status.st_mode):
        return Executable(path, "not a file")
    if status.st_mode & 0o111 != 0o111:
        return Executable(path, "not executable")
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        return Executable(path, "noexec")
    if not os.path.basename(path).startswith("oci-hpc-hooks-"):
        return Executable(path, "ok")
    try:
        data = trust.read_trusted(path, _TOO_LARGE)
    except ConfigError as error:
        return Executable(path, "untrusted", error.what, error.remedy)
    interpreter = data.partition(b"\n")[0][2:].split(b" ")[0].decode(errors="replace") if data.startswith(b"#!") else ""
    if interpreter and not os.access(interpreter, os.X_OK):
        return Executable(path, "interpreter", interpreter)
    if os.path.realpath(interpreter) == os.path.realpath(sys.executable):
        reason = pack.outdated(data)
        if reason:
            return Executable(path, "outdated", reason, places=pack.places(data))
    return Executable(path, "ok", places=pack.places(data))


def rootless_facts(uid: int) -> Rootless:
    import pwd

    try:
        user = pwd.getpwuid(uid).pw_name if uid else ""
    except KeyError:
        user = str(uid)
    helpers = []
    for name in ("newuidmap", "newgidmap"):
        path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
        if path is None:
            helpers.append(f"there is no {name}")
        elif not os.stat(path).st_mode & stat.S_ISUID and "security.capability" not in os.listxattr(path):
            helpers.append(f"{path} has neither its set-user-ID bit nor its file capability")
    runtime_dir = ""
    if uid:
        folder = f"/run/user/{uid}"
        if not os.path.isdir(folder):
            runtime_dir = f"there is no {folder}"
        elif os.stat(folder).st_uid != uid or not os.access(folder, os.W_OK):
            runtime_dir = f"{folder} is not yours"
    return Rootless(user, _has_range("/etc/subuid", user, uid), _has_range("/etc/subgid", user, uid), tuple(helpers),
                    int(_line("/proc/sys/user/max_user_namespaces") or -1), runtime_dir)


def _has_range(file: str, user: str, uid: int) -> bool:
    """Whether the file gives this user ids, or anybody if no user is meant."""
    try:
        entries = [line.split(":") for line in Path(file).read_text(errors="replace").splitlines() if line.count(":") == 2]
    except OSError:
        entries = []
    return any(not user or entry[0] in (user, str(uid)) for entry in entries)


def _line(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def selinux_state() -> str:
    return {"1": "enforcing", "0": "permissive"}.get(_line("/sys/fs/selinux/enforce"), "absent")


def apparmor_state() -> str:
    return "enabled" if _line("/sys/module/apparmor/parameters/enabled") == "Y" else "absent"


def configuration_facts(config_dir: str) -> Tuple[List[Fault], Tuple[str, ...]]:
    """What is wrong with site.json and the profiles; and which profiles site.json names."""
    try:
        if os.path.isdir(config_dir):  # before its files: each would tell the same of it
            trust.trust_directory(config_dir)
    except ConfigError as error:
        return [_error("configuration-untrusted", error.what, error.remedy, error.who)], ()
    try:
        found = site.configuration(config_dir)
    except Invalid as error:
        return [_error("configuration-untrusted", problem.message, problem.remedy, problem.who) if problem.remedy
                else _error("configuration", str(problem), site.CORRECT) for problem in error.problems], ()
    except ConfigError as error:
        return [_error("configuration", error.what, error.remedy, error.who)], ()
    return [], tuple(entry.name for entry in found.site.profiles)


def inventory_facts(state_dir: str) -> Tuple[str, List[str], List[str]]:
    """What :func:`inventory_faults` is asked about."""
    try:
        offers = inventory.load(state_dir)
    except ConfigError as error:
        return error.what, [], []
    noexec = []
    for library in (library for profile in offers.profiles if not profile.problems for library in profile.libraries):
        try:
            if os.statvfs(library.path).f_flag & os.ST_NOEXEC:
                noexec.append(library.path)
        except OSError:
            continue  # it is gone: the inventory is stale
    return "", inventory.is_stale(offers), noexec[:3]


def place_faults(places: Places) -> Iterator[Fault]:
    """Where hooks write: what they cannot use they do without, and say nothing."""
    if os.geteuid() == 0 and os.path.isdir(places.cache):
        try:
            trust.trust_directory(places.cache)
        except ConfigError as error:
            yield _warning("cache-untrusted", f"{error.what}: each start is a cold one", error.remedy, error.who)
    folder = os.path.dirname(places.log)
    if os.path.isdir(folder) and not os.access(places.log if os.path.exists(places.log) else folder, os.W_OK):
        yield _warning("log", f"{places.log} can not be written: oci-hpc-hooks last and explain have nothing to tell",
                       f"make {folder} writable for its owner", "site admin" if os.geteuid() == 0 else "user")


# ------------------------------------------------------------------------------------------------------- the verb

def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit codes: 0 all is well, 1 an error or a warning was found, 2 usage."
    parser.add_argument("--hooks-dir", metavar="DIR", type=os.path.abspath, action="append", default=[],
                        help="look at this folder, which podman is given on its command line, instead of those in containers.conf")


def execute(args: argparse.Namespace) -> int:
    said = document(args)
    if args.json:
        cli.print_json(said)
    else:
        show.show(blocks(said))
    return 1 if any(fault["severity"] != "note" for fault in said["faults"]) else 0


def document(args: argparse.Namespace) -> Dict[str, Any]:
    """What ``--json`` prints: schemas/doctor-output.schema.json."""
    uid = os.geteuid()
    release, selinux, apparmor = os.uname().release, selinux_state(), apparmor_state()
    engines = engines_in_path()
    named = [(path, "--hooks-dir") for path in args.hooks_dir] or hook_folders(configuration_texts(os.environ, uid))
    folders = [folder_at(path, origin) for path, origin in named]
    shared = [folder_at(path, "default") for path in SHARED if path not in {folder.path for folder in folders}]
    faults = [*node_faults(release, selinux, apparmor), *engine_faults(engines), *folder_faults(folders)]
    for folder in (*folders, *shared):
        for descriptor in folder.descriptors:
            found = descriptor_faults(folder.path, descriptor)
            # Of a folder that this podman does not read, only what breaks those that do.
            faults += found if folder in folders else [fault for fault in found if fault.code == "precreate-shared"]
    where = _places(args, folders)
    wrong, wanted = configuration_facts(where.config)
    faults += wrong
    listed: List[Dict[str, Any]] = []
    if not wrong:
        try:
            listed = profiles_verb.document(where.config, where.state)["profiles"]
        except ConfigError:
            pass  # an inventory that is none: said below
    faults += inventory_faults(*inventory_facts(where.state))
    faults += profile_faults(listed, wanted)
    faults += place_faults(own_places(where))
    faults += rootless_faults(rootless_facts(uid))
    order = {"error": 0, "warning": 1, "note": 2}
    return {
        "version": 1,
        "node": {"kernel": release, "machine": os.uname().machine, "selinux": selinux, "apparmor": apparmor},
        "engines": [asdict(engine) for engine in engines],
        "folders": [{"path": folder.path, "origin": folder.origin, "exists": folder.exists,
                     "hooks": [os.path.basename(descriptor.path) for descriptor in folder.descriptors]} for folder in folders],
        "profiles": [{key: profile[key] for key in ("name", "state", "available", "libraries", "problems")} for profile in listed],
        "faults": [asdict(fault) for fault in sorted(dict.fromkeys(faults), key=lambda fault: order[fault.severity])],
    }


def _places(args: argparse.Namespace, folders: Sequence[Folder]) -> Places:
    """Those of the command line; where it names none, those that the hooks in force go by, if they agree."""
    given: Tuple[str, ...] = (args.config_dir, args.state_dir, args.cache_dir, args.log_file)
    hooks = [descriptor.executable for folder in folders for descriptor in folder.descriptors if descriptor.executable is not None]
    carried = {hook.places for hook in hooks if hook.places}
    if given == tuple(default for _, default, _ in cli.PLACES) and len(carried) == 1:
        (given,) = carried
    return Places(*given)


def blocks(said: Mapping[str, Any]) -> Iterator[show.Block]:
    node = said["node"]
    yield f"Linux {node['kernel']} on {node['machine']}; SELinux {node['selinux']}, AppArmor {node['apparmor']}"
    if said["engines"]:
        yield show.Table(("engine", "version", "path"), tuple(
            (engine["name"], engine["version"] or "?", engine["path"]) for engine in said["engines"]))
    yield show.Table(("hook folder", "named by", "holds"), tuple(
        (folder["path"], folder["origin"], ", ".join(folder["hooks"]) or ("nothing" if folder["exists"] else "is not there"))
        for folder in said["folders"]))
    on = [profile for profile in said["profiles"] if profile["state"] == "on"]
    if on:
        yield show.Table(("profile", "on this node", "what the scan found"), tuple(
            (profile["name"], {True: "available", False: "not available", None: "not scanned"}[profile["available"]],
             ", ".join(profile["problems"] or profile["libraries"])
             or ("-" if profile["available"] is None else "needs nothing of the node")) for profile in on))
    yield from show.findings(said["faults"])
    bad = [fault for fault in said["faults"] if fault["severity"] != "note"]
    yield show.Line(f"{show.count(len(bad), 'fault')} found" if bad else "all well", "refused" if bad else "proved")
