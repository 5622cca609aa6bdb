"""What stands in front of podman in PATH, under its name, and hands a rank the open socket that its launcher gave it.

``srun --mpi=pmi2`` and Hydra's ``mpiexec`` start each rank with an open socket whose number is in PMI_FD. podman passes descriptors on
to a container only from 3 upwards without a gap (``--preserve-fds=N``), and closes all others. So for ``podman run`` and ``podman exec``
the socket is moved to 3, or behind the descriptors that the user passes on, and podman is told so. Everything else is podman's: it is
started with the arguments, environment and descriptors that came.

``oci-hpc-hooks register --podman DIR`` writes this file's text to ``DIR/podman``, with a last line that names podman. It imports nothing
of the package, so that podman works whatever becomes of that, and only what is built into the interpreter, so that it adds the 10 ms
of a bare start.
"""

from __future__ import annotations

import posix
import sys
from _signal import SIG_DFL, SIGINT, SIGPIPE, SIGXFSZ, default_int_handler, getsignal, signal  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Mapping, NoReturn, Optional, Sequence

#: Options that take no value (podman 4.3 to 5.6): after any other comes its value, with "=" or as a word of its own.
GLOBAL = {"help", "noout", "remote", "r", "syslog", "trace", "transient-store", "version", "v"}
RUN = {"detach", "d", "disable-content-trust", "env-host", "help", "http-proxy", "init", "interactive", "i", "no-healthcheck",
       "no-hostname", "no-hosts", "oom-kill-disable", "passwd", "privileged", "publish-all", "P", "quiet", "q", "read-only",
       "read-only-tmpfs", "replace", "rm", "rmi", "rootfs", "sig-proxy", "tls-verify", "tty", "t", "unsetenv-all"}
EXEC = {"detach", "d", "help", "interactive", "i", "latest", "l", "no-session", "privileged", "tty", "t"}
COMMANDS = {"run": RUN, "exec": EXEC}

#: A container behind a service is no child of this process: nothing can be handed to it.
REMOTE_OPTIONS = {"remote", "r", "url", "connection", "c"}
REMOTE_VARIABLES = (b"CONTAINER_HOST", b"CONTAINER_CONNECTION")

TRUE = {"1", "t", "T", "true", "TRUE", "True"}
FIRST = 3  # descriptor


# ---------------------------------------------------------------------------------------------------------------- the command line

def rewritten(words: Sequence[str], descriptor: int) -> Optional[tuple[list[str], int]]:
    """podman's arguments that hand on this descriptor, and the number that it must have then; None where nothing is to be changed:
    no rank is started, or the user's own options cover the descriptor already."""
    before, at = options(words, 0, GLOBAL)
    if at < len(words) and words[at] == "container":
        more, at = options(words, at + 1, GLOBAL)
        before += more
    if at >= len(words) or words[at] not in COMMANDS or any(name in REMOTE_OPTIONS for name, _, _ in before):
        return None
    given, _ = options(words, at + 1, COMMANDS[words[at]])
    values = {name: (value, behind) for name, value, behind in given}
    # What goes on without the launcher is no rank; and it would keep the socket open when the rank has long ended.
    detached = [value in TRUE for name, value, _ in given if name in ("detach", "d")]
    if (detached and detached[-1]) or "preserve-fd" in values:  # which names descriptors one by one: let the user name them all
        return None
    count, place = values.get("preserve-fds", ("0", at + 1))
    if not number(count) or FIRST <= descriptor < FIRST + int(count):
        return None
    ours = ["--env=PMI_*"] if words[at] == "exec" else []  # before the user's own; at "run" the hooks know
    option = f"--preserve-fds={int(count) + 1}"
    if "preserve-fds" not in values:
        return [*words[:at + 1], *ours, option, *words[at + 1:]], FIRST
    last = place - 1 if words[place - 1].startswith("--") else place - 2  # of several podman takes the last
    return [*words[:at + 1], *ours, *words[at + 1:last], option, *words[place:]], FIRST + int(count)


def options(words: Sequence[str], at: int, without_value: set[str]) -> tuple[list[tuple[str, str, int]], int]:
    """The options from this word on, as podman reads them: name, value ("true" if it takes none), number of the word behind; and
    the number of the first word that is none."""
    found: list[tuple[str, str, int]] = []
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
        word = words[at]
        at += 1
        if word.startswith("--"):
            name, joined, value = word[2:].partition("=")
        else:  # letters in one word: the first one that takes a value has the rest as it
            letters = word[1:]
            while len(letters) > 1 and letters[0] in without_value and letters[1] != "=":
                found.append((letters[0], "true", at))
                letters = letters[1:]
            name, joined = letters[0], letters[1:]
            value = joined[1:] if joined.startswith("=") else joined
        if not joined and name in without_value:
            value = "true"
        elif not joined and at < len(words):
            value = words[at]
            at += 1
        found.append((name, value, at))
    return found, at


def number(text: str) -> bool:
    """Whether this is a small number in plain decimal digits."""
    return text.isascii() and text.isdigit() and len(text) < 7


# ---------------------------------------------------------------------------------------------------------------- the process

def environment_as_it_came() -> dict[bytes, bytes]:
    """The environment without what the interpreter adds for itself (LC_CTYPE, where the locale is "C": PEP 538)."""
    found: dict[bytes, bytes] = {}
    try:
        descriptor = posix.open("/proc/self/environ", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return dict(posix.environ)
    block = b""
    while True:
        piece = posix.read(descriptor, 1 << 20)
        if not piece:
            break
        block += piece
    posix.close(descriptor)
    for entry in block.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals:
            found.setdefault(name, value)  # the first, as getenv and podman take it
    return found


def socket_of(environment: Mapping[bytes, bytes]) -> int:
    """The launcher's socket; -1 if there is none, or what PMI_FD names is none."""
    said = environment.get(b"PMI_FD", b"").decode("ascii", "replace")
    if not number(said) or int(said) < FIRST or any(environment.get(name) for name in REMOTE_VARIABLES):
        return -1
    try:
        mode = posix.fstat(int(said)).st_mode
    except OSError:
        return -1
    return int(said) if mode & 0o170000 == 0o140000 else -1  # S_IFMT, S_IFSOCK


def hand_on(words: list[str], environment: dict[bytes, bytes]) -> list[str]:
    """Moves the socket, if there is one and a rank is started, to where podman takes it from, and says so in the environment; returns
    podman's arguments."""
    socket = socket_of(environment)
    instead = rewritten(words, socket) if socket >= 0 else None
    if instead is None:
        return words
    if instead[1] != socket:
        try:
            # What has that number now is no loss: podman hands on nothing that is not named, and what the user names is lower.
            posix.dup2(socket, instead[1], True)
        except OSError:  # beyond RLIMIT_NOFILE: podman will say so of the user's own number
            return words
        posix.close(socket)  # one is enough: the launcher waits until nobody has it open
    environment[b"PMI_FD"] = b"%d" % instead[1]
    return instead[0]


def main(podman: str) -> NoReturn:
    """Becomes podman, which is at this path. Exits with status 127 or 126, as shells do, where it is not there or cannot be started."""
    if getsignal(SIGINT) is default_int_handler:
        signal(SIGINT, SIG_DFL)  # a traceback is no answer to Ctrl-C
    for ignored in (SIGPIPE, SIGXFSZ):
        signal(ignored, SIG_DFL)  # the interpreter ignores them, and podman would inherit that
    environment = environment_as_it_came()
    words = hand_on(sys.argv[1:], environment)
    if same(podman, sys.argv[0]):
        fail(126, f"{podman}, which it is to start, is this file itself")
    try:
        posix.execve(podman, ["podman", *words], environment)
    except FileNotFoundError:
        fail(127, f"{podman} is not there any more")
    except OSError as error:
        fail(126, f"{podman} cannot be started: {error.strerror}")


def same(one: str, other: str) -> bool:
    """Whether two paths lead to one file."""
    try:
        first, second = posix.stat(one), posix.stat(other)
    except OSError:
        return False
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def fail(status: int, text: str) -> NoReturn:
    """Tells what is wrong and who can mend it, and ends."""
    message = f"{sys.argv[0]}: {text}. Site admin: write this file again with oci-hpc-hooks register --podman.\n"
    try:
        posix.write(2, message.encode(errors="backslashreplace"))
    except OSError:
        pass
    posix._exit(status)
