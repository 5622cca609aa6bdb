"""Output for people: lines and tables, plain and the same everywhere for a program that reads them, coloured on a terminal.

What is shown comes from images in part: control characters never reach the terminal, and nothing in it is read as markup.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Sequence, TextIO, Tuple, TypeVar, Union

from oci_hpc_hooks.errors import sentence

#: What stands out on a terminal: words that begin a line or fill a cell.
STYLES: Mapping[str, str] = {
    "proved": "green", "nothing": "green", "available": "green", "not available": "dim", "unproved": "yellow", "refused": "bold red",
    "error": "bold red", "warning": "yellow", "note": "dim",
    "host": "cyan", "host C runtime": "magenta", "image": "dim", "nobody": "bold red",
}


#: Letters: a column that has no longer cell is never broken. Of the others the last may be, while it keeps this much room.
WHOLE = 28


@dataclass(frozen=True)
class Line:
    """One line; ``style`` is a key of STYLES, or nothing. One that is ``whole`` no terminal's width breaks: a command to be copied."""

    text: str
    style: str = ""
    whole: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells below headings, all of them one line each in plain output."""

    headings: Tuple[str, ...]
    rows: Tuple[Tuple[str, ...], ...]


Block = Union[str, Line, Table]
Item = TypeVar("Item")


def clean(text: str) -> str:
    """The text on one line, without anything that a terminal would act on (C0 and C1 controls, bidirectional overrides)."""
    return "".join(char if char.isprintable() else "?" for char in text)


def show(blocks: Iterable[Block], to: Optional[TextIO] = None) -> None:
    """Prints for people, on standard output unless it is to be elsewhere."""
    file = to or sys.stdout
    if file.isatty():
        _rich(blocks, file)
        return
    for block in blocks:
        for line in _plain(block):
            print(line, file=file)


def progress(what: str, items: Sequence[Item]) -> Iterable[Item]:
    """The items one by one; on a terminal with a bar below the output, which goes when they are through."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, what, console=Console(stderr=True), transient=True)


def findings(found: Iterable[Mapping[str, Any]]) -> Iterator[Line]:
    """One line for each finding of a ``--json`` document or of the log, with the code at its end by which docs/messages.md has it."""
    for finding in found:
        severity = str(finding.get("severity"))
        words = {key: str(finding.get(key) or "") for key in ("what", "origin", "remedy", "who")}
        yield Line(f"  {severity}: {sentence(**words)}{code_of(finding)}", severity)


def code_of(finding: Mapping[str, Any]) -> str:
    """What a sentence about a finding ends with."""
    return f" [{finding['code']}]" if finding.get("code") else ""


def _plain(block: Block) -> Iterator[str]:
    if isinstance(block, str):
        yield clean(block)
    elif isinstance(block, Line):
        yield clean(block.text)
    else:
        rows = [tuple(map(clean, row)) for row in (block.headings, *block.rows)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def _rich(blocks: Iterable[Block], file: TextIO) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=file, highlight=False, emoji=False)  # itself respects NO_COLOR and TERM=dumb

    def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for heading in headings:
            table.add_column(heading, overflow="fold", no_wrap=heading != headings[-1])
        for row in rows:
            table.add_row(*(Text(clean(cell), STYLES.get(cell, "")) for cell in row))
        return table

    for block in blocks:
        if isinstance(block, Table):
            below = _too_wide(block, console.width)
            if not below:
                console.print(Padding(table_of(block.headings, block.rows), (0, 0, 0, 2)))
                continue
            # A row's long cells stand below it, and their headings likewise.
            kept = [index for index in range(len(block.headings)) if index not in below]
            widths = [max(len(clean(row[index])) for row in (block.headings, *block.rows)) for index in kept]
            for row in (block.headings, *block.rows):
                first = row is block.headings
                line = Text("  ")
                for index, width in zip(kept, widths):
                    line.append(clean(row[index]).ljust(width), "bold" if first else STYLES.get(row[index], "")).append("  ")
                line.rstrip()
                console.print(line, soft_wrap=True)
                for index in below:
                    cell = Text(clean(row[index]), "bold" if first else "dim" if index == below[-1] else "", overflow="fold")
                    console.print(Padding(cell, (0, 0, 0, 6), expand=False))
        else:
            line_ = block if isinstance(block, Line) else Line(block)
            text = clean(line_.text)
            indent = len(text) - len(text.lstrip())
            wrapped = [text] if line_.whole else textwrap.wrap(
                text, max(console.width, 20), subsequent_indent=" " * (indent + 4), break_long_words=False, break_on_hyphens=False,
                drop_whitespace=True) or [""]
            for part in wrapped:
                console.print(Text(part, STYLES.get(line_.style, "")), soft_wrap=True)


def _too_wide(table: Table, width: int) -> List[int]:
    """The columns that stand below their row where the terminal is too narrow for them beside the others: none, the last one, or all that
    are long, but never the first. Of one that stays the words may be broken."""
    widths = [max(len(clean(cell)) for cell in column) + 2 for column in zip(table.headings, *table.rows)]
    last = len(widths) - 1
    if 2 + sum(widths[:-1]) + min(widths[last], WHOLE) <= width:
        return []
    if 2 + sum(widths[:-1]) <= width:
        return [last]
    below = [index for index, wide in enumerate(widths) if index and wide - 2 > WHOLE]
    room = width - 2 - sum(wide for index, wide in enumerate(widths) if index not in below)
    return below if room >= 0 or last in below else [*below, last]


def count(number: int, one: str, many: str = "") -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {one if number == 1 else many or one + 's'}"

