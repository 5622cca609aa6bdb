"""What a hook says: to the person at the terminal, and to the log that ``oci-hpc-hooks last`` reads (light module).

runc prints what a failed hook wrote to stderr. crun connects hooks to /dev/null (or to a file that an annotation names), and podman then
shows only crun's own words; so under crun the sentence goes to crun's stderr (at podman's own stage precreate, to podman's), and a line
is added to crun's log file, which podman cannot parse then and therefore shows that stderr instead.

Who starts containers as root by way of sudo chooses podman's stderr and its arguments, and has words in the sentence: so it goes only to
a stderr that is open for writing there already, and only a runtime's log is believed to be one.
"""

from __future__ import annotations

import posix
import time
from _json import encode_basestring_ascii
from _stat import S_ISFIFO, S_ISREG, S_ISSOCK

from oci_hpc_hooks.errors import HookError
from oci_hpc_hooks.inputs import container, jsontext
from oci_hpc_hooks.linux import namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PREFIX = "oci-hpc-hooks: "

#: Characters of a message. conmon takes 8 KiB of what a runtime says; by then crun and podman may have made four of each quote.
SENTENCE_LIMIT = 2000

#: A log line that does not fit is cut: one write(2) with O_APPEND is not torn apart by another process's.
LINE_LIMIT = 32 << 10
#: When the log is larger, it is renamed to ….1 and a new one begun.
LOG_LIMIT = 4 << 20


#: Whatever lies at the path, opening it neither waits nor takes over a terminal.
APPEND = posix.O_WRONLY | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY


class Places:
    """The directories and files that were fixed when the hook was registered."""

    __slots__ = ("cache", "config", "log", "state")

    def __init__(self, config: str, state: str, cache: str, log: str) -> None:
        self.config = config
        self.state = state
        self.cache = cache
        self.log = log

    @property
    def fixed(self) -> tuple[str, str]:
        """Where root of the host is believed although a user namespace hides that it is root."""
        return self.config, self.state


def own_places(places: Places) -> Places:
    """The same, with cache and log where this process may write: a user's hooks have theirs in the user's runtime directory."""
    if posix.geteuid() == 0 and not namespaces.in_own_user_namespace():
        return places
    private = f"/run/user/{namespaces.caller_uid()}/oci-hpc-hooks"
    return Places(places.config, places.state, private, private + "/hooks.log")


def complain(text: str, by_runtime: bool = True) -> None:
    """Brings one sentence to whoever started the container; ``by_runtime``: not podman itself has started this hook. Never raises."""
    # Names of the image stand in it: no control characters for the terminal, no novel.
    clean = "".join([char if char.isprintable() else "?" for char in " ".join(text.split())])
    if len(clean) > SENTENCE_LIMIT:  # its beginning says what is wrong, its end what to do
        clean = clean[:SENTENCE_LIMIT // 2] + " … " + clean[-SENTENCE_LIMIT // 2:]
    line = (PREFIX + clean + "\n").encode("utf-8", "backslashreplace")
    try:
        syscalls.limit(syscalls.RLIMIT_FSIZE, syscalls.RLIM_INFINITY)  # a job's output may be longer than any file of ours
    except HookError:
        pass
    try:
        if _is_heard(2):
            posix.write(2, line)
        else:
            for fd, as_json in _voices or open_voices(by_runtime):
                _speak(fd, as_json, line)
    except (OSError, HookError):
        pass


#: What was opened by :func:`keep_voices`: descriptors, and whether lines of JSON are wanted.
_voices: list[tuple[int, bool]] = []


def keep_voices() -> None:
    """For a hook that is about to join a container's user namespace: from inside it the runtime's descriptors cannot be opened any more."""
    if not _is_heard(2):
        _voices.extend(open_voices(True))


def open_voices(by_runtime: bool) -> list[tuple[int, bool]]:
    """Where the sentence goes when nobody hears our own stderr, as :data:`_voices` has it. Never raises."""
    found = []
    parent = posix.getppid()
    try:
        if _is_written(parent, 2):
            try:
                # O_APPEND and never O_TRUNC: the runtime's stderr may be a file.
                found.append((posix.open(f"/proc/{parent}/fd/2", APPEND), False))
            except OSError:  # a pipe that another user made, as under sudo -u
                found.append((syscalls.descriptor_of(parent, 2), False))
        path = _log_of_runtime(container.command_line(parent)) if by_runtime else ""
        if path:
            found.append((posix.open(path, APPEND), True))
    except (OSError, HookError):
        pass
    return found


def _log_of_runtime(arguments: list[str]) -> str:
    """The absolute path that its command line names as its log, "" if there is none."""
    for index, argument in enumerate(arguments):
        path = ""
        if argument == "--log" and index + 1 < len(arguments):
            path = arguments[index + 1]
        elif argument.startswith("--log="):
            path = argument[len("--log="):]
        if path.startswith("/"):
            return path
    return ""


def _speak(fd: int, as_json: bool, line: bytes) -> None:
    if as_json:
        line = ('{"level":"error","msg":' + encode_basestring_ascii(line.decode("utf-8").strip()) + "}\n").encode()
    try:
        posix.write(fd, line)
    except OSError:
        pass
    posix.close(fd)


def _is_heard(fd: int) -> bool:
    """Whether a runtime, or a person, reads what is written there. crun connects hooks to /dev/null, or to a file that an annotation names
    (run.oci.hooks.stderr): which is whatever an image wants where podman hands on the annotations of its manifest."""
    mode = posix.fstat(fd).st_mode
    return S_ISFIFO(mode) or S_ISSOCK(mode) or posix.isatty(fd)


def _is_written(pid: int, descriptor: int) -> bool:
    """Whether a process has this descriptor open for writing: opened anew, a file that it may only read would be written with our rights
    (proc(5), fdinfo)."""
    for line in syscalls.read_proc(f"/proc/{pid}/fdinfo/{descriptor}").splitlines():
        if line.startswith(b"flags:"):
            return int(line[6:], 8) & posix.O_ACCMODE in (posix.O_WRONLY, posix.O_RDWR)
    return False


def open_log(places: Places) -> int:
    """A descriptor to append to the log with, -1 where there is none to have. Opened before a namespace is joined: behind that,
    this process is somebody else. Never raises: a container does not fail because a log cannot be written."""
    try:
        folder = places.log.rpartition("/")[0]
        try:
            posix.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        fd = posix.open(places.log, APPEND | posix.O_CREAT | posix.O_NOFOLLOW, 0o600)
        status = posix.fstat(fd)
        if not S_ISREG(status.st_mode) or status.st_uid != posix.geteuid():
            posix.close(fd)
            return -1
        if status.st_size > LOG_LIMIT and posix.stat(places.log).st_ino == status.st_ino:  # unless another hook has done it just now
            posix.rename(places.log, places.log + ".1")
        return fd
    except OSError:
        return -1


def log(fd: int, entry: dict[str, Any]) -> None:
    """Writes one line to an open log. Never raises."""
    entry["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = jsontext.dumps(entry).encode()
    for key in ("findings", "message", "image"):
        if len(line) > LINE_LIMIT and key in entry:
            entry[key] = [] if key == "findings" else entry[key][:SENTENCE_LIMIT]
            line = jsontext.dumps(entry).encode()
    try:
        posix.write(fd, line + b"\n")
    except OSError:
        pass
