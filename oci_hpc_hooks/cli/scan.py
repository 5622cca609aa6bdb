"""``oci-hpc-hooks scan``: resolve the site's profiles on this node and write the inventory."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Iterator, Mapping, Sequence

from oci_hpc_hooks import cli
from oci_hpc_hooks.cli import show
from oci_hpc_hooks.inputs import inventory, scan, site
from oci_hpc_hooks.model import ResolvedProfile


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show what would be found, write nothing")


def execute(args: argparse.Namespace) -> int:
    found = scan.scan(site.configuration(args.config_dir), partial(show.progress, "scanning"))
    path = "" if args.dry_run else inventory.write(found.inventory, args.state_dir)
    if args.json:
        cli.print_json(inventory.document(found.inventory))
        return 0
    show.show(map(_styled, _told(found, path)))
    return 0


def _told(found: scan.Scan, path: str) -> Iterator[str]:
    launchers = [profile.name for profile in found.inventory.profiles if "launcher" in profile.provides]
    networks = [profile.name for profile in found.inventory.profiles if "network" in profile.provides]
    others = [profile for profile in found.inventory.profiles if profile.name not in (*launchers, *networks)]
    for profile in others:
        yield from _lines(profile, found.notes)
    if not others:
        yield "no profile is on: a container that asks for an MPI gets none"
    if launchers:
        yield f"launchers that are known: {', '.join(launchers)}"
    if networks:
        yield f"networks whose interfaces containers may get: {', '.join(networks)}"
    runtime = found.inventory.c_runtime
    if runtime is not None:
        told = runtime.problems[0] if runtime.problems else f"{len(runtime.libraries)} files of {runtime.source}"
        yield f"C runtime for containers whose glibc is too old: {told}"
    cpu = found.inventory.cpu
    if cpu is not None:
        level = f", which amounts to {cpu.level}" if cpu.level != cpu.target else ""
        yield f"processor: {cpu.target} ({cpu.vendor}){level}"
    if found.cpu_note:
        yield f"  note: {found.cpu_note}"
    if path:
        yield f"written to {path}"


def _styled(line: str) -> show.Line:
    words = {": available": "available", ": not available": "not available", "  note: ": "note", "  problem: ": "error"}
    return show.Line(line, next((style for word, style in words.items() if word in line), ""))


def _lines(profile: ResolvedProfile, notes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A profile and, indented below it, its variants."""
    if profile.problems and profile.is_stack:  # most nodes have few of them
        yield f"{profile.name}: not available: {profile.problems[0]}"
        return
    told = "not available" if profile.problems else "available"
    yield f"variant {profile.variant}: {told}" if profile.variant else f"{profile.name}: {told} (profile {profile.source})"
    for problem in profile.problems:
        yield f"  problem: {problem}"
    for library in profile.libraries:
        if library.role in ("replace", "add"):
            also = f", also as {', '.join(library.replaces)}" if library.replaces else ""
            yield f"  {library.role} {library.name}{also}: {library.path}"
    if not profile.problems:
        dependencies = sum(library.role == "dependency" for library in profile.libraries)
        yield (f"  with them {'comes' if dependencies == 1 else 'come'} {show.count(dependencies, 'library', 'libraries')} that they need "
               f"and {show.count(len(profile.plugins), 'module')}")
        yield f"  its libraries load with glibc {profile.glibc or '2'} or newer" + (", modules may need more" if profile.plugins else "")
        if profile.sets:
            yield f"  as one set each: {', '.join(one.name for one in profile.sets)}"
    for note in notes[profile.title]:
        yield f"  note: {note}"
    for variant in profile.variants:
        yield from (f"  {line}" for line in _lines(variant, notes))
