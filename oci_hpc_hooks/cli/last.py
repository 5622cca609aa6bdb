"""``oci-hpc-hooks last``: what the hooks did last, newest first: verdict, image, time, and the message of a refusal."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any, Dict, Iterator, List

from oci_hpc_hooks import cli
from oci_hpc_hooks.cli import show
from oci_hpc_hooks.errors import UsageError
from oci_hpc_hooks.report import LOG_LIMIT, Places, own_places


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--number", type=int, default=1, metavar="N", help="how many (default: %(default)s)")


def execute(args: argparse.Namespace) -> int:
    if args.number < 1:
        raise UsageError(f"-n {args.number}: a number of at least 1 was expected")
    path = log_of(args)
    entries = read(path, args.number)
    if args.json:
        cli.print_json({"version": 1, "log": path, "entries": entries})
    elif not entries:
        print(f"no hook has done anything that is in {path}")
    else:
        show.show(line for entry in entries for line in lines(entry))
    return 0


def log_of(args: argparse.Namespace) -> str:
    """The log to read: one that is named and that this user may read, and otherwise that of the user's hooks."""
    if args.log_file != cli.LOG and os.access(args.log_file, os.R_OK):
        return str(args.log_file)
    return own_places(Places(args.config_dir, args.state_dir, args.cache_dir, args.log_file)).log


def read(path: str, number: int) -> List[Dict[str, Any]]:
    """The last ``number`` entries of a log and of the one before it, the newest first. Lines that are no entry are passed over."""
    found: List[Dict[str, Any]] = []
    for file in (path, path + ".1"):
        for line in reversed(_tail(file)):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and _is_entry(entry):
                found.append(entry)
                if len(found) == number:
                    return found
    return found


def _is_entry(found: Dict[str, Any]) -> bool:
    """Whether a hook has written this: a disk that is full, or lost power, may have left pieces of lines."""
    lists = ("launchers", "directories", "gpus", "devices", "interfaces", "findings")
    return isinstance(found.get("verdict"), str) and all(isinstance(found.get(key) or [], list) for key in lists)


def _tail(path: str) -> List[bytes]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2 * LOG_LIMIT))
            return file.read(2 * LOG_LIMIT).splitlines()
    except FileNotFoundError:
        return []


def lines(entry: Dict[str, Any]) -> Iterator[show.Block]:
    """One entry of the log for people."""
    what = entry["verdict"]
    if entry.get("files"):
        what += f", {entry['files']} files of profile {entry.get('profile')}"
    name = entry.get("image") or "a container without an image"
    yield show.Line(f"{entry.get('time')} {name} ({str(entry.get('id'))[:12]}): {what}; {entry.get('path')} path, {entry.get('ms')} ms",
                    str(entry["verdict"]))
    if entry.get("launchers"):
        places = ", ".join(map(str, entry.get("directories") or ())) or "no directory"
        yield f"  of {' and '.join(map(str, entry['launchers']))}: {entry.get('variables')} variables, {places}"
    if entry.get("gpus_by"):
        which = ", ".join(map(str, entry.get("gpus") or ())) or "none"
        yield f"  GPUs: {which} (by {entry['gpus_by']})"
    if entry.get("devices"):
        yield f"  devices: {', '.join(map(str, entry['devices']))}"
    if entry.get("interfaces"):
        yield f"  network interfaces: {', '.join(map(str, entry['interfaces']))}"
    message = str(entry.get("message") or "")
    found = [finding for finding in entry.get("findings") or () if isinstance(finding, dict)]
    if message:
        code = next((show.code_of(finding) for finding in found if str(finding.get("what")) in message), "")
        yield f"  {' '.join(message.split())}{code}"  # on one line, as whoever started the container has seen it
    yield from show.findings(finding for finding in found if str(finding.get("what")) not in message)
