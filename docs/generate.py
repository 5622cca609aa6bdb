"""Man pages and shell completions from the command line's own grammar, the reference of configuration files from their schemas, the page of
messages from the tests that bring them:
``python docs/generate.py [--check]``.

What it writes is kept in the repository, so that a package is made without these libraries; ``make lint`` holds it against the code.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Tuple

import shtab
from argparse_manpage.manpage import Manpage

from oci_hpc_hooks import cli

ROOT = Path(__file__).resolve().parents[1]
MAN = "docs/man"
COMPLETIONS = {"bash": "packaging/completions/oci-hpc-hooks", "zsh": "packaging/completions/_oci-hpc-hooks"}

#: What a shell completes, by the name that the help gives to an argument.
PATHS = {"DIR": shtab.DIRECTORY, "BIN": shtab.DIRECTORY, "HOOKS": shtab.DIRECTORY, "FILE": shtab.FILE, "FILE.svg": shtab.FILE,
         "[NAME=]FILE": shtab.FILE, "IMAGE|ROOTFS|BUNDLE": shtab.DIRECTORY, "IMAGE|ROOTFS": shtab.DIRECTORY}

#: Sections of the main page that no grammar has.
MORE = """\
.SH EXIT CODES
0 done, or compatible; 1 refused; 2 usage or configuration; 3 unproved; 4 another digest (check). Each verb's page says which it has.
.SH FILES
.TP
/etc/oci-hpc-hooks/site.json, /etc/oci-hpc-hooks/profiles.d
what the site says
.TP
/var/lib/oci-hpc-hooks/inventory.json
what scan has found on this node
.TP
/var/cache/oci-hpc-hooks, /run/user/UID/oci-hpc-hooks
plans that are remembered, root's and a user's
.TP
/var/log/oci-hpc-hooks.log
one line of JSON for each container that asked for something
"""


def main() -> int:
    """Writes what is not as it should be; with ``--check`` names it instead."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    made = dict(generated())
    there = [*(ROOT / MAN).glob("*.1"), *(ROOT / "docs/reference").glob("*.md")]
    old = [path for path in there if str(path.relative_to(ROOT)) not in made]
    for name, text in made.items():
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for path in old:
        stale.append(str(path.relative_to(ROOT)))
        if not check:
            path.unlink()
    for name in stale:
        print(f"{name}: {'not what make generated would write' if check else 'written'}")
    return 1 if check and stale else 0


def generated() -> Iterator[Tuple[str, str]]:
    """Every file, by its path in the repository."""
    whole = cli.parser()
    pages = cli.verbs_of(whole)
    for parser in (whole, *pages.values()):
        for action in parser._actions:
            if action.metavar in PATHS:
                action.complete = PATHS[str(action.metavar)]  # type: ignore[attr-defined]
    for shell, path in COMPLETIONS.items():
        yield path, shtab.complete(whole, shell).rstrip() + "\n"
    for kind in ("site", "profile"):
        yield f"docs/reference/{kind}.md", reference(json.loads((ROOT / f"schemas/{kind}.schema.json").read_text(encoding="utf-8")), kind)
    yield "docs/messages.md", messages()
    yield "docs/reference/verified.md", verified()
    yield f"{MAN}/{whole.prog}.1", page(cli.parser(()), whole.prog, MORE + _see_also(pages))
    for name, verb in pages.items():
        title = f"{whole.prog}-{name}"
        yield f"{MAN}/{title}.1", page(verb, title, f".SH SEE ALSO\n{_reference(whole.prog)}\n")


# ---------------------------------------------------------------------------------------------------------------- messages

MESSAGES = """\
# Messages

What `check`, the log of the hooks (`last`, `explain`) and `doctor` tell, by the code that stands in brackets at the end of each finding,
and that `--json` gives it. Codes are stable; sentences name what was found. Each example is what a test of this project has brought forth.

An **error** refuses the container (of `doctor`: containers fail, or do not get what they ask for); the same code is a **note** or a
**warning** where only a default of the site, or `auto`, asked. Below the example stands who can do what; where nothing does, it tells
what was decided, and nothing is to be done.
"""


def messages() -> str:
    """The page of all messages, each with the sentence that a test has brought forth just now."""
    rows: Dict[str, Dict[str, str]] = json.loads((ROOT / "docs/messages.json").read_text(encoding="utf-8"))
    with tempfile.NamedTemporaryFile() as file:
        tests = sorted({row["test"] for row in rows.values()})
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.messages", "--messages", file.name, *tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"docs/messages.md: a test of docs/messages.json fails\n{done.stdout}{done.stderr}")
        brought = json.loads(Path(file.name).read_text(encoding="utf-8"))
    lines = [MESSAGES]
    for code, row in rows.items():
        message = brought[code][row["test"]]
        lines += [f"## {code}", "", row["cause"], "", f"> {message['severity']}: {_text(message['what'])}", ""]
        if message.get("remedy"):
            who = message.get("who") or "you"
            lines += [f"**{who[:1].upper() + who[1:]}**: {_text(message['remedy'])}", ""]
    return "\n".join(lines)


def _text(text: str) -> str:
    """Without the folder of the test, and without what Markdown would act on."""
    text = re.sub(r"/tmp/pytest-of-[^/ ]+/pytest-\d+/[^/ ]+", "", text)
    return re.sub(r"([*_<>|])", r"\\\1", text)


# ---------------------------------------------------------------------------------------------------------------- schemas

FILES = {"site": "/etc/oci-hpc-hooks/site.json", "profile": "profiles.d/NAME.json"}


def reference(schema: Mapping[str, Any], kind: str) -> str:
    """A page with one row for each key, by its JSON path."""
    origin = (f"Made from `schemas/{kind}.schema.json`; `oci-hpc-hooks validate FILE` holds a file against it and names each error with "
              "its JSON path.")
    head = ["| key | what it is | meaning |", "| --- | --- | --- |"]
    lines = [f"# {FILES[kind]}", "", schema["description"], "", origin, "", *head, *_rows(schema, schema, ""), ""]
    return "\n".join(lines)


def _rows(schema: Mapping[str, Any], whole: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, part in schema.get("properties", {}).items():
        yield from _row(_followed(part, whole), whole, f"{path}.{key}" if path else key, key in schema.get("required", ()))


def _row(part: Mapping[str, Any], whole: Mapping[str, Any], path: str, required: bool) -> Iterator[str]:
    items = _followed(part.get("items", {}), whole)
    values = [json.dumps(value) for value in ([part["const"]] if "const" in part else part.get("enum", items.get("enum", [])))]
    shape = ", ".join(f"`{value}`" for value in values) or part.get("title") or items.get("title") or str(items.get("type") or part["type"])
    if part.get("type") == "array":
        shape = "a list of objects" if shape == "object" else f"a list: {shape}"
    need = " (required)" if required else ""
    text = " ".join(str(part.get("description", "")).split())
    yield f"| `{path}`{need} | {_cell(shape)} | {_cell(text)} |"
    below = part if "properties" in part else items
    yield from _rows(below, whole, f"{path}[]" if part.get("type") == "array" else path)


def _followed(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a schema, or what it refers to with what it says itself."""
    if "$ref" not in part:
        return part
    found: Any = whole
    for step in part["$ref"].lstrip("#/").split("/"):
        found = found[step]
    return {**found, **{key: value for key, value in part.items() if key != "$ref"}}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def verified() -> str:
    """A page with one row for each shipped profile: by what it has been tried."""
    schema = json.loads((ROOT / "schemas/profile.schema.json").read_text(encoding="utf-8"))
    what = schema["properties"]["verified"]["properties"]["by"]["description"]
    rows = []
    for path in sorted((ROOT / "oci_hpc_hooks/profiles.d").glob("*.json")):
        profile = json.loads(path.read_text(encoding="utf-8"))
        ((kind, value),) = profile["provides"].items()
        rows.append(f"| `{profile['name']}` | {kind} `{value}` | {profile['verified']['by']} | {_cell(profile['verified']['source'])} |")
    nodes = {path.stem: json.loads(path.read_text(encoding="utf-8"))["verified"] for path in (ROOT / "tests/hardware").glob("*.json")}
    made: Mapping[str, Mapping[str, str]] = runpy.run_path(str(ROOT / "tests/unit/gpu_bed.py"))["VERIFIED"]
    trees = {f"/proc and /sys: {name}": said for name, said in made.items()}
    fixtures = [f"| {name} | {said['by']} | {_cell(said['source'])} |" for name, said in {**nodes, **trees}.items()]
    head = ["| profile | answers | tried by | source |", "| --- | --- | --- | --- |"]
    stand_in = "How GPUs are told from one another is tested on trees of files like those of a node's kernel, for 1, 4, 8 and 16 GPUs."
    second = ["", "## Nodes that tests stand in for", "", stand_in, "", "| node | made from | source |", "| --- | --- | --- |", *fixtures]
    origin = "Made from the profiles themselves; on a node `oci-hpc-hooks profiles list` tells the same of its own."
    return "\n".join(["# By what each profile has been tried", "", what, "", origin, "", *head, *rows, *second, ""])


# ---------------------------------------------------------------------------------------------------------------- man pages

def page(parser: argparse.ArgumentParser, title: str, more: str) -> str:
    """One man page (man(7))."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    parser._manpage = []  # type: ignore[attr-defined]
    text = re.sub(r"\n\.SH COMMAND .*?(?=\n\.SH COMMENTS)", "", str(Manpage(parser)).rstrip(), flags=re.DOTALL)  # a page for each verb
    body = text.partition("\n")[2].replace(".SH COMMENTS", ".SH NOTES").replace("\n.SH\nPOSITIONAL ARGUMENTS\n", "\n.SH VERBS\n")
    name = title.replace("-", "\\-")
    first = f'.TH {name.upper()} 1 "" "oci\\-hpc\\-hooks {setup["metadata"]["version"]}" "User Commands"'
    body = body.replace(f"\n{parser.prog}".replace("-", "\\-") + "\n", f"\n{name} \\- {_summary(parser)}\n", 1)
    return "\n".join([first, body, more.rstrip(), ""])


def _summary(parser: argparse.ArgumentParser) -> str:
    text = (parser.description or "").rstrip(".")
    return (text[:1].lower() + text[1:]).replace("-", "\\-")


def _see_also(names: Dict[str, argparse.ArgumentParser]) -> str:
    return ".SH SEE ALSO\n" + ",\n".join(_reference(f"oci-hpc-hooks-{name}") for name in names) + "\n"


def _reference(title: str) -> str:
    escaped = title.replace("-", "\\-")
    return f"\\fB{escaped}\\fR(1)"


if __name__ == "__main__":
    sys.exit(main())
