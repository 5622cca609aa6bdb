"""The errors a person reads (light module: the warm path of a hook imports it, so it imports nothing).

Every failure that leaves this project is a :class:`HookError`: one sentence about what was wanted and what was found, then where
the wish came from, what to do and who can do it. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations


class HookError(Exception):
    """A failure explained to a person.

    ``what`` is one sentence without a final full stop. ``origin`` says where the wish or the bad value came from (file and JSON path,
    label, annotation), ``remedy`` what to do, ``who`` can do it ("user", "image author", "site admin").
    """

    #: What the process exits with when nothing else is decided by the caller.
    exit_code = 1

    def __init__(self, what: str, *, origin: str = "", remedy: str = "", who: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.origin = origin
        self.remedy = remedy
        self.who = who

    def __str__(self) -> str:
        return sentence(self.what, self.origin, self.remedy, self.who)


class InputError(HookError):
    """The container's state, config.json or the image store cannot be read as what it should be."""


class ConfigError(HookError):
    """Something the site admin wrote (site.json, a profile) or our own inventory is wrong, missing or not to be trusted."""

    exit_code = 2


class UsageError(HookError):
    """The command line is off."""

    exit_code = 2


class Refusal(HookError):
    """The decision is no: what was asked for cannot work in this container, or would not be safe."""


class Precondition(Refusal):
    """Ranks could not work in this container as it is started; ``findings`` are documents of all that is lacking."""

    def __init__(self, what: str, *, origin: str, remedy: str, who: str, findings: list[dict[str, str]]) -> None:
        super().__init__(what, origin=origin, remedy=remedy, who=who)
        self.findings = findings


class ImageError(HookError):
    """A file of the image cannot be read as what it claims to be (bounded, hostile input)."""


class KernelError(HookError):
    """The kernel refused a call that the plan rests on; ``errno`` is kept for callers that know what to do about it."""

    def __init__(self, what: str, errno: int, *, origin: str = "", remedy: str = "", who: str = "") -> None:
        super().__init__(what, origin=origin, remedy=remedy, who=who)
        self.errno = errno


def of_system(error: OSError) -> HookError:
    """A system call that failed where no caller knows better: a full disk, no memory, a file server that has lost a file."""
    name = error.filename
    where = f" ({name if isinstance(name, str) else ascii(name)})" if name else ""
    return HookError(f"a system call of the hook failed: {error.strerror or error}{where}",
                     remedy="look whether this node has disk space, memory and descriptors left and its file servers answer, "
                     "and start the container again", who="site admin")


def sentence(what: str, origin: str = "", remedy: str = "", who: str = "") -> str:
    """One message on one line: what, (asked for by origin), what to do (who)."""
    text = what.rstrip(".") + (f" (from {origin})" if origin else "")
    if remedy:
        stop = "" if text.endswith("?") else "."
        text += f"{stop} {who.capitalize() + ': ' + remedy if who else remedy[:1].upper() + remedy[1:]}".rstrip(".")
    return text if text.endswith("?") else text + "."
