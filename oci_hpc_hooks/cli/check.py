"""``oci-hpc-hooks check IMAGE|ROOTFS|BUNDLE``: the decision that a hook would make, without starting a container.

Will it run here, with what, and what will it cost; and with ``--inventory`` the same for other systems, from what their sites publish.
With ``--digest`` whether two nodes give the same; with ``--remember`` so that the first start here is a warm one.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from oci_hpc_hooks import cli, cold, record
from oci_hpc_hooks.cli import digest, show, target
from oci_hpc_hooks.cli.remember import remember
from oci_hpc_hooks.decide import job, links
from oci_hpc_hooks.errors import Refusal, UsageError
from oci_hpc_hooks.inputs import inventory
from oci_hpc_hooks.linux.paths import Root
from oci_hpc_hooks.model import ERROR, NOTHING, PROVED, REFUSED, UNPROVED, Container, Finding, ImageFacts, Inventory, Plan
from oci_hpc_hooks.report import Places, own_places
from oci_hpc_hooks.situation import Situation
from oci_hpc_hooks.start import site_defaults

#: Of --digest with --expect: it would get something else.
DIFFERS = 4

EXIT = {PROVED: 0, NOTHING: 0, REFUSED: 1, UNPROVED: 3}
SAYS = {
    PROVED: "proved: the program will load the site's libraries",
    UNPROVED: "unproved: the site's libraries would be in place, but what the program loads cannot be told beforehand",
    NOTHING: "nothing to do: the container would be left as it is",
    REFUSED: "refused: the container would not start",
}
LEFT_OUT = "nothing is injected: what is asked for does not fit, and the container would be left as it is"

#: What a start finds in the launcher's variables alone, which podman would have of this process; the rest goes by podman's options.
BY_VARIABLES = ("launcher-missing", "protocol")

#: Rows of a table of libraries, unless --all is given.
ROWS = 12


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="IMAGE|ROOTFS|BUNDLE",
                        help="an image that podman has, the directory of a root filesystem, or a directory with a config.json")
    parser.usage = "%(prog)s [options] IMAGE|ROOTFS|BUNDLE [-- COMMAND ...]"
    parser.epilog = (
        "COMMAND is what would run in it; default: the image's entrypoint and command, or the bundle's process. Exit codes: 0 it will run "
        "with the site's libraries, or is left as it is; 1 refused; 2 usage or configuration; 3 unproved. With several --inventory: the "
        "exit code of the best system, 0 before 3 before 1. With --digest: 0 whether proved or not, 1 refused, 4 none of those expected.")
    parser.add_argument("--annotation", metavar="KEY=VALUE", action="append", default=[], help="as for podman run; may be repeated")
    parser.add_argument("--label", metavar="KEY=VALUE", action="append", default=[], help="as if the image had this label")
    parser.add_argument("--all", action="store_true", help="show every library and every file, not only those that matter first")
    parser.add_argument("--inventory", metavar="[NAME=]FILE", action="append", default=[],
                        help="decide for the system whose site has published this inventory.json; may be repeated")
    parser.add_argument("--graph", metavar="FILE.svg", help="draw what the program would load, coloured by who provides it")
    parser.add_argument("--digest", action="store_true",
                        help="print one word, equal on two nodes exactly if a container gets the same from both")
    parser.add_argument("--expect", metavar="DIGEST", action="append", default=[],
                        help="say what differs from this digest, of another node; may be repeated: one of them is enough")
    parser.add_argument("--remember", action="store_true",
                        help="have podman start a container of the image up to its program and remove it, so that the plan is remembered "
                             "and the first podman run is a warm start")
    parser.add_argument("--run-options", metavar="OPTIONS", type=_words, default=[],
                        help="of --remember: the options that podman run will have, as one word: '--net=host --volume /data:/data'")
    parser.add_argument("--hooks-dir", metavar="DIR", type=os.path.abspath,
                        help="of --remember: the folder that podman run will be given as --hooks-dir")


def _words(text: str) -> List[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {str(error).lower()}") from None


class Answer(NamedTuple):
    """The decision for one system."""

    plan: Plan
    maps: Tuple[links.LinkMap, ...]
    start: str  # "warm", "cold", or "" where no hook would have anything to do, or where it cannot be told
    facts: Optional[ImageFacts] = None


def execute(args: argparse.Namespace) -> int:
    if args.graph and len(args.inventory) > 1:
        raise UsageError("--graph draws the answer for one system", remedy="give one --inventory, or none", who="user")
    if args.graph and not args.graph.endswith(".svg"):
        raise UsageError(f"--graph {args.graph}: the picture is SVG", remedy="give it a name that ends in .svg", who="user")
    expected = [digest.parse(text) for text in args.expect]
    args.digest = args.digest or bool(expected)
    if args.digest and args.inventory:
        raise UsageError("--digest tells what files of this node hold; of another system's there is only the inventory",
                         remedy="leave --inventory out", who="user")
    _settle_remember(args)
    systems = {name: inventory.published(file) for name, file in _named(args.inventory)}
    registered = (args.config_dir, args.state_dir, args.cache_dir, args.log_file)
    with target.look(args.target, args.command, args.annotation, args.label) as (container, root):
        if systems:
            answers = {name: decide(container, root, offers) for name, offers in systems.items()}
        else:
            answers = {"": _decide_here(container, root, registered)}
            if args.remember and answers[""].plan.verdict != REFUSED:
                answers[""] = _remember(args, answers[""], own_places(Places(*registered)).log)
            parts = digest.parts_of(answers[""].plan, answers[""].facts, container, root) if args.digest else {}
    if systems:
        said: Dict[str, Any] = {"version": 1, "target": args.target, "command": list(container.args), "systems": [
            {"system": name, **_offer(systems[name], answer.plan), **_answer(answer)} for name, answer in answers.items()]}
    else:
        said = document(args.target, container, answers[""])
    if args.graph:
        _draw(args.graph, " on ".join([args.target, *systems]), said["systems"][0] if systems else said)
    if args.digest:
        return _digest(args, said, parts, expected)
    if args.json:
        cli.print_json(said)
    else:
        show.show(_systems(said, args.all) if systems else _lines(said, args.all))
    codes = {EXIT[answer.plan.verdict] for answer in answers.values()}
    return next(code for code in (0, 3, 1) if code in codes)


def _settle_remember(args: argparse.Namespace) -> None:
    """Raises UsageError for options that go with no start of podman's."""
    if not args.remember:
        if args.run_options or args.hooks_dir:
            raise UsageError("--run-options and --hooks-dir belong to --remember")
        return
    if args.inventory or args.label:
        raise UsageError("--remember starts a container on this node with the labels that its image has", who="user",
                         remedy="leave --inventory and --label out; what is asked for besides is an --annotation")
    if target.kind_of(args.target) != target.IMAGE:
        raise UsageError(f"--remember is for images that podman has, and {args.target} is a directory", who="user",
                         remedy="of a bundle, crun create and crun delete do the same")


def _remember(args: argparse.Namespace, answer: Answer, log: str) -> Answer:
    options = [*args.run_options, *(f"--annotation={pair}" for pair in args.annotation)]
    remember(args.target, args.command, options, args.hooks_dir, log, answer.plan.verdict)
    return answer if answer.plan.verdict == NOTHING else answer._replace(start="warm")


def _digest(args: argparse.Namespace, said: Dict[str, Any], parts: Dict[str, str], expected: Sequence[Dict[str, str]]) -> int:
    """Prints the digest; and as errors what stands in the way of a start, and what differs from those expected."""
    differ, other = digest.differing(parts, expected) if expected else ([], {})
    if args.json:
        cli.print_json({**said, "digest": digest.word(parts), "differs": differ})
    else:
        print(digest.word(parts))
    errors = [finding for finding in said["findings"] if finding["severity"] == ERROR]
    if said["verdict"] == REFUSED and not args.json:
        print("\n".join(f"{os.uname().nodename}: {show.clean(line.text.strip())}" for line in show.findings(errors[:1])), file=sys.stderr)
    if differ:
        print(show.clean(f"oci-hpc-hooks: {digest.told(args.target, parts, differ, other)}"), file=sys.stderr)
        return DIFFERS
    return 1 if said["verdict"] == REFUSED else 0


def _named(items: Sequence[str]) -> List[Tuple[str, str]]:
    """Systems and their inventories; a file without a name of its own is called as it is without its ending."""
    found: List[Tuple[str, str]] = []
    for item in items:
        name, equals, file = item.partition("=")
        if not equals or os.path.exists(item):
            name, file = PurePath(item).stem, item
        if not name or name in dict(found):
            raise UsageError(f"--inventory {item}: there are two systems of the name {name!r}" if name else f"--inventory {item}: no name",
                             remedy="name each as --inventory NAME=FILE", who="user")
        found.append((name, file))
    return found


# ---------------------------------------------------------------------------------------------------------------- the decision

def _decide_here(container: Container, root: Root, registered: Tuple[str, str, str, str]) -> Answer:
    places = own_places(Places(*registered))
    answer = _started_from(decide(container, root, cold.node(places)), os.environ)
    if answer.plan.verdict in (NOTHING, REFUSED):
        return answer
    begins = record.key_begins(registered, container, site_defaults(places.config))
    return answer._replace(start="warm" if record.knows(places, begins, root) else "cold")


def _started_from(answer: Answer, environment: Mapping[str, str]) -> Answer:
    """The answer with what a start of a podman with these variables finds of its launcher, which may be a refusal."""
    applied, _ = record.build(answer.plan, None, (), "")
    if applied["job"] is None:
        return answer
    now = Situation()
    now.launcher = dict(environment)
    outcome = job.decide(applied["job"], now)
    found = tuple(Finding(**finding) for finding in outcome.findings if finding["code"] in BY_VARIABLES)
    if not outcome.refusal[0] or not found:
        return answer._replace(plan=replace(answer.plan, findings=(*answer.plan.findings, *found)))
    instead = f"; to start without this check give {job.OVERRIDE}"
    found = tuple(replace(finding, remedy=finding.remedy + instead) for finding in found)
    return answer._replace(plan=Plan(REFUSED, (*answer.plan.findings, *found)))


def decide(container: Container, root: Root, offers: Inventory) -> Answer:
    """The decision by one inventory. Raises HookError."""
    try:
        plan, facts = cold.decide(container, root, offers)
    except Refusal as refusal:
        finding = Finding(ERROR, "request", refusal.what, refusal.origin, refusal.remedy, refusal.who)
        return Answer(Plan(REFUSED, (finding,)), (), "")
    plan = replace(plan, findings=(*plan.findings, *target.program_missing(container, facts)))
    return Answer(plan, links.link_maps(facts, plan, offers), "", facts)


# ---------------------------------------------------------------------------------------------------------------- the answer

def _offer(offers: Inventory, plan: Plan) -> Dict[str, str]:
    """What another system would give, in short."""
    name = plan.profile or (plan.tried.profile if plan.tried else "")
    mpi = next((profile.libraries[0].real for profile in offers.profiles
                if profile.name in name.split(", ") and "mpi" in profile.provides and profile.libraries), "")
    return {"machine": offers.machine, "libc_version": offers.libc_version, "mpi": mpi}


def document(target: str, container: Container, answer: Answer) -> Dict[str, Any]:
    """What ``--json`` prints of one decision: schemas/check-output.schema.json."""
    return {"version": 1, "target": target, "command": list(container.args), **_answer(answer)}


def _answer(answer: Answer) -> Dict[str, Any]:
    plan = answer.plan
    applied, cache = record.build(plan, None, (), "")
    files = record.files(applied)
    return {
        "verdict": plan.verdict,
        "profile": plan.profile,
        "findings": [record.finding_document(finding) for finding in plan.findings],
        "programs": [_program(one) for one in answer.maps],
        "tree": applied["tree_at"],
        "files": [{key: file[key] for key in ("source", "target", "how", "why")} for file in files],
        "loader_cache": plan.cache_target,
        "loader_cache_as": "" if not plan.cache_target else "file" if plan.drop_in else "bind",
        "cost": {
            "tree_files": len(plan.tree),
            "in_place": len(plan.in_place) + len(plan.modules),
            "mounts": sum(file["how"] != "file" for file in files) + bool(plan.tree),
            "cache_entries": len(plan.cache.entries) if plan.cache is not None and cache else 0,
            "cache_bytes": len(cache),
            "start": answer.start,
        },
    }


def _program(link_map: links.LinkMap) -> Dict[str, Any]:
    return {
        "path": link_map.program,
        "trouble": link_map.trouble,
        "libraries": [
            {"name": link.name, "provider": link.provider, "file": link.file, "path": link.path, "rule": link.rule, "why": link.why,
             "needed_by": link.needed_by}
            for link in links.order(link_map)
        ],
        "dependencies": [{"needed_by": edge.needed_by, "name": edge.name, "path": edge.path, "fault": edge.fault, "injection": edge.ours}
                         for edge in link_map.edges],
    }


# ---------------------------------------------------------------------------------------------------------------- for people

RULES = {
    "interp": "the program's loader", "preload": "LD_PRELOAD", "absolute": "its path", "rpath": "DT_RPATH", "runpath": "DT_RUNPATH",
    "cache": "loader cache", "default": "default path",
}


def _lines(said: Mapping[str, Any], everything: bool) -> Iterator[show.Block]:
    yield show.Line(f"{said['target']}: {_says(said)}", said["verdict"])
    yield from show.findings(said["findings"])
    programs = said["programs"]
    if _is_left_out(said):
        yield "with what is left out:"
    telling = _telling(programs)
    for program in programs:
        yield from _libraries(program, everything or program is telling, everything)
    if everything:
        yield from (f"  {file['source'] or 'a new file'} -> {file['target']} ({file['why']})" for file in said["files"])
    cost = said["cost"]
    if cost["mounts"]:
        cache = f", a loader cache of {cost['cache_entries']} entries" if cost["cache_entries"] else ""
        files = show.count(cost["tree_files"], "file")
        start = {"warm": "; a warm start, its plan is remembered", "cold": "; a cold start, the next ones are warm", "": ""}[cost["start"]]
        yield (f"cost: {show.count(cost['mounts'], 'mount')} ({files} in the tree, {cost['in_place']} over "
               f"the image's{cache}){start}")


def _is_left_out(said: Mapping[str, Any]) -> bool:
    """Whether something was tried for a container that is left as it is: its programs are shown as they would be with it."""
    return said["verdict"] == NOTHING and any(map(_of_host, said["programs"]))


def _says(said: Mapping[str, Any]) -> str:
    return LEFT_OUT if _is_left_out(said) else SAYS[said["verdict"]]


def _telling(programs: Sequence[Mapping[str, Any]]) -> Optional[Mapping[str, Any]]:
    """The program that shows what the injection does: one that fails, or loads something of the host."""
    told = (program for program in programs if _of_host(program) or any(fault["injection"] for fault in _faults(program)))
    return next(told, programs[0] if programs else None)


def _faults(program: Mapping[str, Any]) -> List[Mapping[str, Any]]:
    return [needs for needs in program["dependencies"] if needs["fault"]]


def _of_host(program: Mapping[str, Any]) -> int:
    return sum(library["provider"] != links.IMAGE for library in program["libraries"] if library["rule"] != "program")


def _libraries(program: Mapping[str, Any], table: bool, everything: bool) -> Iterator[show.Block]:
    """Who provides each library of one program, what matters first; or how many of them the host provides."""
    if program["trouble"]:
        yield f"{program['path']}: {program['trouble']}"
        return
    libraries = [library for library in program["libraries"] if library["rule"] != "program"]
    yield f"{program['path']} would load {show.count(len(libraries), 'library', 'libraries')}, {_of_host(program)} of the host"
    if not table:
        return
    nobody = [fault for fault in _faults(program) if not fault["path"]]
    shown = libraries if everything else libraries[:ROWS]
    rows = [(fault["name"], "nobody", "-", "-", f"{_name(fault['needed_by'])} needs it; {fault['fault']}") for fault in nobody]
    for library in shown:
        rule = RULES.get(library["rule"], library["rule"])
        rows.append((library["name"], library["provider"], library["file"], rule, _why(library, _faults(program))))
    if rows:
        yield show.Table(("LIBRARY", "PROVIDER", "FILE", "FOUND BY", "WHY"), tuple(rows))
    if len(libraries) > len(shown):
        yield f"  and {len(libraries) - len(shown)} more (--all)"


def _why(library: Mapping[str, Any], faults: Sequence[Mapping[str, Any]]) -> str:
    for fault in faults:
        if fault["path"] == library["path"]:
            return f"{fault['fault']}, which {_name(fault['needed_by'])} needs"
    return str(library["why"]) or f"needed by {_name(library['needed_by'])}"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _draw(path: str, name: str, said: Mapping[str, Any]) -> None:
    """Writes the picture of the program that tells most. Raises UsageError where it cannot be written."""
    from oci_hpc_hooks.cli import graph

    program = _telling(said["programs"]) or {"libraries": [], "dependencies": []}
    errors = [finding for finding in said["findings"] if finding["severity"] == ERROR]
    reasons = [f"{finding['what']} ({finding['origin']})" if finding["origin"] else finding["what"] for finding in errors]
    reasons += [program["trouble"] for program in said["programs"] if program["trouble"]]
    picture = graph.draw(program, f"{name}: {_says(said)}", reasons)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(picture)
    except OSError as error:
        raise UsageError(f"the picture {path} cannot be written: {error.strerror}", remedy="name another file", who="user") from None


def _systems(said: Mapping[str, Any], everything: bool) -> Iterator[show.Block]:
    """A table of systems, and below it what stands in the way on each; of a single system all that is told of this node."""
    if len(said["systems"]) == 1:
        (system,) = said["systems"]
        yield from _lines({**system, "target": f"{said['target']} on {system['system']}"}, everything)
        return
    rows = []
    for system in said["systems"]:
        worst = next((finding for word in ("error", "warning") for finding in system["findings"] if finding["severity"] == word), None)
        rows.append((system["system"], system["verdict"], system["profile"] or "-", system["mpi"] or "-", system["libc_version"],
                     system["machine"], worst["code"] if worst else "-"))
    yield show.Line(f"{said['target']} on {show.count(len(rows), 'system')}:")
    yield show.Table(("SYSTEM", "VERDICT", "PROFILE", "MPI", "GLIBC", "MACHINE", "REASON"), tuple(rows))
    for system in said["systems"]:
        if everything or system["verdict"] == REFUSED or any(finding["severity"] != "note" for finding in system["findings"]):
            yield from _lines({**system, "target": system["system"]}, True) if everything else [
                show.Line(f"{system['system']}: {_says(system)}", system["verdict"]), *show.findings(system["findings"])]
