"""The first thing a hook does, at every start of a container: see whether there is anything to do.

A container that asks for nothing is left alone, and that is over in a few milliseconds. The style of this module and of all that it
imports ("light modules": start, replay, report, errors, apply/rootfs, linux/*, inputs/{container,storage,jsontext}) is odd for a reason.
Python's bare start is 10 ms, and json, re, typing, dataclasses, pathlib, subprocess, logging or argparse each cost as much again, os
1.3 ms. So only what is built in is used (``posix`` is what ``os`` is made of), and the rest of the house is imported where it is
needed. tests/unit/test_light.py lists what a hook imports; pack.py puts the light modules themselves into the executable.
"""

from __future__ import annotations

import posix
import time
from _signal import (  # type: ignore[import-not-found]  # built in; the signal module costs an enum
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGALRM,
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    SIGXCPU,
    alarm,
    pthread_sigmask,
    signal,
)

from oci_hpc_hooks.errors import HookError, of_system
from oci_hpc_hooks.inputs import container
from oci_hpc_hooks.start import Start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

    from oci_hpc_hooks.replay import Service

#: Seconds that a hook takes at most. Less than the "timeout" of its descriptor, at which the runtime kills it without a word.
TIME_LIMIT = 50


class Overdue(BaseException):
    """The time is over. ``frame`` is where it was spent. No Exception: whoever goes on after an error must not go on after this one."""

    def __init__(self, frame: FrameType | None, why: str) -> None:
        super().__init__(why)
        self.frame = frame
        self.why = why


def main(stage: str, *, config: str, state: str, cache: str, log: str) -> NoReturn:
    """A hook's whole life: reads the state (at precreate, the configuration) from stdin, and exits 0 (done, or nothing to do) or 1 (the
    container must not start)."""
    began = time.monotonic()
    status = 1
    try:
        settle()
        run(stage, (config, state, cache, log), began)
        status = 0
    except BaseException as error:
        complain(told(error), stage)
    posix._exit(status)  # nothing is left to tidy, and taking the interpreter down costs a millisecond


def told(error: BaseException) -> str:
    """Its sentence for a person. Never raises."""
    if isinstance(error, HookError):
        return str(error)
    if isinstance(error, Overdue):
        try:
            from oci_hpc_hooks import overdue

            return overdue.sentence(error.frame, error.why)
        except Exception:
            return f"the hook was not done within {error.why}."
    if isinstance(error, MemoryError):
        return ("the hook is out of memory; the container was not touched. Site admin: look whether this node, and whoever limits its "
                "container runtime, has more.")
    if isinstance(error, OSError):
        return str(of_system(error))
    if isinstance(error, ImportError):
        return f"a module cannot be loaded: {error}. Site admin: look whether all of oci-hpc-hooks and Python is there, and can be read."
    return f"{type(error).__name__}: {error}. This is a defect of oci-hpc-hooks: please report it."


def settle() -> None:
    """Whatever the runtime was started with: signals that end a process end this one, the time is bounded, new files are for all to read,
    and no relative path leads anywhere.

    crun starts hooks with every signal blocked; SIGPIPE and SIGXFSZ stay ignored, as Python has them, so that what cannot be written is
    an error and not the end.
    """
    posix.umask(0o022)
    posix.chdir("/")
    for number in (SIGHUP, SIGINT, SIGQUIT, SIGTERM):
        signal(number, SIG_DFL)
    for number in (SIGALRM, SIGXCPU):
        signal(number, end)
    pthread_sigmask(SIG_SETMASK, [])
    alarm(TIME_LIMIT)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of both signals: what is half done is taken back on the way out."""
    signal(number, SIG_IGN)
    raise Overdue(frame, f"{TIME_LIMIT} s" if number == SIGALRM else "its processor time")


def run(stage: str, places: tuple[str, str, str, str], began: float) -> None:
    """Serves one container. Raises HookError where it must not start."""
    start = Start(stage, places, began)
    if start.words or start.defaults or start.unlabelled:
        serve(start)
    if stage == container.PRECREATE:
        from oci_hpc_hooks.apply import config

        config.answer(start.stdin, start.config, start.leave, start.edited)


def serve(start: Start) -> None:
    """One container that asks for something: by the plan that is remembered for it, or by deciding. Raises HookError where it must not
    start."""
    from oci_hpc_hooks import replay
    from oci_hpc_hooks.apply.rootfs import Stale

    service = service_for(start)
    if not start.words and not start.defaults:
        service.log("nothing", "warm", message=f"the image's labels could not be read: {start.image.reason}")
        return
    trouble: HookError | OSError | None = None
    try:
        replay.confine()
        if not service.look() or service.is_served():
            return
    except (HookError, OSError) as error:
        trouble = error
    known = replay.remembered(service.places, service.key) if trouble is None else None
    if known is not None:
        try:
            replay.replay(service, *known)
            return
        except Stale:
            pass
        except (HookError, OSError) as error:
            trouble = error if service.touched else None  # half-way: too late to decide anew
    from oci_hpc_hooks import cold  # the whole rest of the house: only for a container not seen before, or in trouble

    cold.run(service, trouble)


def service_for(start: Start) -> Service:
    if start.stage == container.PRECREATE:
        from oci_hpc_hooks.precreate import Proposal

        return Proposal(start)
    from oci_hpc_hooks.replay import Service

    return Service(start)


def complain(text: str, stage: str) -> None:
    """Brings one sentence to whoever started the container. Never raises: where the package cannot be read any more, it goes to standard
    error alone, if somebody listens there (:func:`report.complain` says why not else)."""
    try:
        from oci_hpc_hooks import report

        report.complain(text, stage != container.PRECREATE)
    except Exception:
        try:
            if posix.fstat(2).st_mode & 0o170000 in (0o010000, 0o140000) or posix.isatty(2):  # S_IFIFO, S_IFSOCK (inode(7))
                line = "".join([char if char.isprintable() else "?" for char in text])
                posix.write(2, f"oci-hpc-hooks: {line}\n".encode("utf-8", "backslashreplace"))
        except OSError:
            pass
