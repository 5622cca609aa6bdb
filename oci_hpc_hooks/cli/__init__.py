"""The command line ``oci-hpc-hooks``: one file per verb, imported only when it is asked for.

Each verb's module has ``configure(parser)`` and ``execute(args) -> int``; the first line of its docstring is its help. Exit codes:
0 done or compatible, 1 refused, 2 usage or configuration, 3 unproved; each verb's help says which of them it has.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from typing import Container, Dict, NoReturn, Optional, Sequence

from oci_hpc_hooks.errors import ConfigError, HookError

#: As setup.cfg has it: a package of a distribution has no metadata that tells.
VERSION = "0.1.0"

#: The verbs, in the order of their help, with one line each.
VERBS: Dict[str, str] = {
    "scan": "find out what this node offers to containers and write it to the inventory",
    "check": "decide for an image or a root filesystem what a hook would do, without starting a container",
    "label": "propose the labels that an image should have, by what is in it",
    "validate": "hold configuration files against their schemas",
    "profiles": "draft a profile from a library of this node, list those that there are, or show one",
    "register": "write the hook executables and descriptors of this installation",
    "unregister": "take away what register has written",
    "bundle": "give the hook to a plain OCI bundle, for runtimes without an engine and Slurm's --container",
    "plan": "print the plan of an image: as a document, or as arguments of Charliecloud, Apptainer or enroot",
    "cdi": "write what containers get as a specification of the Container Device Interface, for starts without a hook",
    "features": "tell a scheduler what this node offers, in the words of images' labels",
    "doctor": "look for what is wrong with this node or this installation, and say how to mend it",
    "last": "show what the hooks did last",
    "explain": "tell of one container what was done to it, and why",
}

#: Those that take a container's command after "--".
COMMAND = ("check", "label", "plan", "cdi")

#: Options whose value may be the empty word. Of all other arguments that is a shell's variable which is not set.
MAY_BE_EMPTY = ("--run-options",)

#: Exit codes of a verb that has none of its own in its epilog.
CODES = "Exit codes: 0 done, 2 usage or configuration."

LOG = "/var/log/oci-hpc-hooks.log"

#: The global options: each place, its default, and what lies there.
PLACES = (
    ("--config-dir", "/etc/oci-hpc-hooks", "site.json and profiles.d"),
    ("--state-dir", "/var/lib/oci-hpc-hooks", "the inventory"),
    ("--cache-dir", "/var/cache/oci-hpc-hooks", "known plans"),
    ("--log-file", LOG, "what the hooks did"),
)


OF_USERS = "Hooks of a user (rootless podman) have known plans and log in /run/user/UID/oci-hpc-hooks, whatever is said here."


def main(argv: Optional[Sequence[str]] = None) -> NoReturn:
    """The console script. Never returns, never shows a traceback for what a person can mend."""
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, stream) is None:  # closed by the caller: nothing else that is opened may get its number
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            setattr(sys, stream, open(number, "r" if stream == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """One command line; returns the exit code."""
    try:
        code = _obey(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter's own flush at exit must not complain about it.
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        return fail(ConfigError(f"standard output: {error.strerror}"), as_json=False)


def _obey(argv: Sequence[str]) -> int:
    """Raises OSError where the output cannot be written."""
    as_json = "--json" in argv
    try:
        args = parse(argv)
        code: int = importlib.import_module(f"oci_hpc_hooks.cli.{args.verb}").execute(args)
        return code
    except HookError as error:
        return fail(error, as_json=as_json)
    except KeyboardInterrupt:
        print("oci-hpc-hooks: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout.flush()  # if it was this that failed, it fails again
        return fail(ConfigError(f"{error.filename or 'standard output, or a file'}: {error.strerror}"), as_json=as_json)


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: HookError, *, as_json: bool) -> int:
    """Tell a person, or a program, what went wrong; returns the exit code."""
    if as_json:
        print_json({"version": 1, "error": str(error), "origin": error.origin, "remedy": error.remedy, "who": error.who})
    else:
        from oci_hpc_hooks.cli import show

        print("\n".join(map(show.clean, f"oci-hpc-hooks: {error}".split("\n"))), file=sys.stderr)
    return error.exit_code


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; only the module of the verb that is asked for is imported."""
    whole = parser(set(argv))
    # What follows "--" is a command line of its own (check); argparse would look for our options in it.
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    for before, word in zip(["", *words], words[:end]):
        option, equals, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if not value and (equals or word == "") and option not in MAY_BE_EMPTY:
            whole.error(f"{option if option.startswith('-') else 'an argument'} is empty: give it a value, or leave it out")
    args, unknown = whole.parse_known_args(words[:end])
    args.command = words[end + 1:]
    if unknown:
        extra = " ".join(unknown)
        hint = f"; a command goes after --: -- {extra}" if args.verb in COMMAND and not extra.startswith("-") else ""
        verbs_of(whole)[args.verb].error(f"unrecognized arguments: {extra}{hint}")
    if args.command and args.verb not in COMMAND:
        whole.error(f"{args.verb} takes no command after --")
    return args


def parser(asked: Container[str] = VERBS) -> argparse.ArgumentParser:
    """The command line's grammar; a verb that is not asked for has its help and no options."""
    made = argparse.ArgumentParser(
        prog="oci-hpc-hooks",
        description="Give containers the host's MPI, proved compatible before anything starts.",
        epilog="exit codes: 0 done or compatible, 1 refused, 2 usage or configuration, 3 unproved, 4 another digest (check)",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {VERSION}", help="print the version and exit")
    for option, default, holds in PLACES:
        made.add_argument(option, type=os.path.abspath, default=default, metavar=_metavar(option), help=f"{holds} (default: %(default)s)")
    verbs = made.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        verb.add_argument("--json", action="store_true", help="print JSON as described in schemas/")
        if name in asked:
            add_places(verb)
            importlib.import_module(f"oci_hpc_hooks.cli.{name}").configure(verb)
            if "xit codes" not in (verb.epilog or ""):
                verb.epilog = " ".join([verb.epilog or "", CODES]).strip()
    return made


def add_places(verb: argparse.ArgumentParser) -> None:
    """The global options, which may stand after the verb as well."""
    group = verb.add_argument_group("places, before the verb or after it", OF_USERS)
    for option, default, holds in PLACES:
        group.add_argument(option, type=os.path.abspath, default=argparse.SUPPRESS, metavar=_metavar(option),
                           help=f"{holds} (default: {default})")


def verbs_of(whole: argparse.ArgumentParser) -> Dict[str, argparse.ArgumentParser]:
    """The parsers of the verbs, by name."""
    (actions,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    return dict(actions.choices)


def _metavar(option: str) -> str:
    return option.rpartition("-")[2].upper()


def print_json(document: object) -> None:
    """One document on standard output, for programs and for people."""
    print(json.dumps(document, indent=1))
