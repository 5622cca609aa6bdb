"""``oci-hpc-hooks profiles draft LIB…`` writes a profile to start from; ``profiles list`` tells which there are and what they mean here;
``profiles show NAME`` where each value of one comes from.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path, PurePath
from typing import Any, Dict, Iterator, List, Sequence

from oci_hpc_hooks import cli
from oci_hpc_hooks.cli import show
from oci_hpc_hooks.errors import ConfigError, UsageError
from oci_hpc_hooks.inputs import inventory, profiles, site, trust, validate


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    draft = actions.add_parser("draft", help="print a profile made from an MPI library of this node, to be edited", allow_abbrev=False)
    draft.add_argument("libraries", nargs="+", metavar="LIB", help="the MPI library, and further ones beside it")
    draft.add_argument("--name", default="", help="the profile's name (default: that of FILE, or site- and the MPI family)")
    draft.add_argument("--output", type=os.path.abspath, metavar="FILE", help="a new file NAME.json instead of standard output")
    listing = actions.add_parser("list", help="which profiles there are, and what the last scan found of them", allow_abbrev=False)
    showing = actions.add_parser("show", help="one profile: each value, and the file that it comes from", allow_abbrev=False)
    showing.add_argument("name", metavar="NAME", help="the profile's name")
    for action in (draft, listing, showing):
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON as described in schemas/")
        cli.add_places(action)


def execute(args: argparse.Namespace) -> int:
    return {"draft": _draft, "list": _list, "show": _show}[args.action](args)


# ------------------------------------------------------------------------------------------------------------------- draft

def _draft(args: argparse.Namespace) -> int:
    from oci_hpc_hooks.inputs.draft import draft  # pyelftools, which `list` does without

    name = args.name
    if args.output:
        stem = PurePath(args.output).stem
        if not args.output.endswith(".json") or name not in ("", stem):
            raise UsageError(f"--output {args.output}: a profile's file is its name and .json", who="user",
                             remedy=f"call it {name}.json" if name else "give it a name that ends so")
        name = stem
    library_path = os.environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
    made = draft(args.libraries, name, library_path)
    text = json.dumps(made.document, indent=2, ensure_ascii=False) + "\n"
    if args.output:
        _write(args.output, text)
    else:
        print(text, end="")
    for remark in (*made.remarks, *_off_by_site(args.config_dir, made.document["name"])):
        print(f"oci-hpc-hooks: {made.document['name']}: {remark}", file=sys.stderr)
    return 0


def _off_by_site(config_dir: str, name: str) -> Iterator[str]:
    """Why a profile of an MPI with this name would be off, if it would be."""
    try:
        decided = site.configuration(config_dir)
    except ConfigError:
        return  # validate and scan tell of it
    named = [entry.name for entry in decided.site.profiles]
    mpis = [profile.name for profile in decided.profiles if profile.name in named and "mpi" in profile.provides]
    if mpis and name not in mpis:
        yield (f"it is off as long as {os.path.join(config_dir, 'site.json')} names only {', '.join(mpis)}: add {json.dumps(name)} to its "
               "profiles, before or after them as it is to be preferred")


def _write(path: str, text: str) -> None:
    folder = os.path.dirname(path)
    try:
        if not os.path.lexists(folder):
            os.mkdir(folder)
            os.chmod(folder, 0o755)  # as the file
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise UsageError(f"{path} is there already and is not overwritten", remedy="name another file, or remove it", who="user") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", remedy=f"make {folder} writable, or name another file",
                         who="user") from None
    with open(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o644)  # whatever the umask: the hooks of all users read it
        file.write(text)


# -------------------------------------------------------------------------------------------------------------------- list

def _list(args: argparse.Namespace) -> int:
    said = document(args.config_dir, args.state_dir)
    if args.json:
        cli.print_json(said)
    else:
        show.show(_styled(line) for entry in said["profiles"] for line in _lines(entry))
        if said["inventory"] != "current":
            print(f"the inventory of this node is {said['inventory']}: run oci-hpc-hooks scan")
    return 0


def document(config_dir: str, state_dir: str) -> Dict[str, Any]:
    """What ``--json`` prints: schemas/profiles-output.schema.json. Raises :class:`ConfigError`."""
    enabled = [profile.name for profile in site.configuration(config_dir).profiles]
    known = profiles.read_profiles(config_dir, [], [])
    try:
        offers = inventory.load(state_dir)
        resolved = {profile.name: profile for profile in offers.profiles}
        state = "out of date" if inventory.is_stale(offers) else "current"
    except trust.Missing:
        resolved, state = {}, "missing"
    entries: List[Dict[str, Any]] = []
    for name in (*enabled, *sorted({*known} - {*enabled})):
        profile, found = known[name], resolved.get(name)
        entries.append({
            "name": name,
            "state": "on" if name in enabled else "masked" if profile is None else "off",
            "provides": dict(profile.provides) if profile else {},
            "source": profile.source if profile else "",
            "verified": dict(profile.verified) if profile else {},
            "available": None if found is None else not found.problems,
            "libraries": [library.path for library in found.libraries if library.role != "dependency"] if found else [],
            "problems": list(found.problems) if found else [],
        })
    return {"version": 1, "inventory": state, "profiles": entries}


def _styled(line: str) -> show.Line:
    words = {": on, available": "available", ": on, not available": "not available", "  problem: ": "error"}
    return show.Line(line, next((style for word, style in words.items() if word in line), ""))


def _lines(entry: Dict[str, Any]) -> List[str]:
    found = {None: "not scanned", True: "available", False: "not available"}[entry["available"]]
    told = f"{entry['state']}, {found}" if entry["state"] == "on" else entry["state"]
    lines = [f"{entry['name']}: {told}" + (f" ({entry['source']})" if entry["source"] else "")]
    if entry["state"] == "on" and entry["verified"]:
        lines.append(f"  verified by {entry['verified']['by']}: {entry['verified']['source']}")
    return lines + [f"  {library}" for library in entry["libraries"]] + [f"  problem: {problem}" for problem in entry["problems"]]


# -------------------------------------------------------------------------------------------------------------------- show

def _show(args: argparse.Namespace) -> int:
    said = values(args.config_dir, args.state_dir, args.name)
    if args.json:
        cli.print_json(said)
    else:
        (entry,) = [entry for entry in document(args.config_dir, args.state_dir)["profiles"] if entry["name"] == args.name]
        rows = tuple((value["key"], value["value"], value["from"]) for value in said["values"])
        show.show([_lines(entry)[0], *([show.Table(("KEY", "VALUE", "FROM"), rows)] if rows else ()),
                   *(f"  problem: {problem}" for problem in entry["problems"])])
    return 0


def values(config_dir: str, state_dir: str, name: str) -> Dict[str, Any]:
    """What ``--json`` prints: schemas/profile-values-output.schema.json. Of a list that the site extends, the site's entries go first,
    as they count. Raises :class:`ConfigError`, UsageError."""
    configuration = site.configuration(config_dir)
    known = profiles.read_profiles(config_dir, [], [])
    if name not in known:
        hint = validate.did_you_mean(name, known) or f"; there are {', '.join(sorted(known))}"
        raise UsageError(f"there is no profile {name!r}{hint}", remedy="oci-hpc-hooks profiles list names them", who="user")
    profile = known[name]
    found: List[Dict[str, str]] = []
    if profile is not None:
        entry = next((number for number, entry in enumerate(configuration.site.profiles) if entry.name == name), None)
        if entry is not None:
            path = os.path.join(config_dir, "site.json")
            said = json.loads(Path(path).read_bytes())["profiles"][entry]
            found += _flat(said if isinstance(said, dict) else {}, f"{path} $.profiles[{entry}]", ("name",))
        found += _flat(json.loads(Path(profile.source).read_bytes()), f"{profile.source} $", ("$schema", "version", "name"))
    try:
        offers = inventory.load(state_dir)
    except trust.Missing:
        resolved = None
    else:
        resolved = next((one for one in offers.profiles if one.name == name), None)
    for library in resolved.libraries if resolved else ():
        found.append({"key": library.name, "value": library.real, "from": f"the last scan: {library.role}"})
    return {"version": 1, "name": name, "masked": profile is None, "values": found}


def _flat(value: Any, origin: str, without: Sequence[str] = (), key: str = "") -> Iterator[Dict[str, str]]:
    """Every value that is no object or list, with its key, and where it stands: file and JSON path."""
    if isinstance(value, dict):
        for name, below in value.items():
            if name not in without:
                yield from _flat(below, f"{origin}.{name}", (), f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _flat(below, f"{origin}[{number}]", (), key)
    else:
        yield {"key": key, "value": value if isinstance(value, str) else json.dumps(value), "from": origin}
