"""Output for people: lines and tables, plain and the same everywhere for a program that reads them, coloured on a terminal.

What is shown comes from images in part: control characters never reach the terminal, and nothing in it is read as markup.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, Mapping, Tuple, Union

from oci_hpc_hooks.errors import sentence

#: What stands out on a terminal: words that begin a line or fill a cell.
STYLES: Mapping[str, str] = {
    "proved": "green", "nothing": "green", "unproved": "yellow", "refused": "bold red",
    "error": "bold red", "warning": "yellow", "note": "dim",
    "host": "cyan", "host C runtime": "magenta", "image": "dim", "nobody": "bold red",
}


#: Letters; a column that has no longer cell is not broken where the terminal is narrow. The last one, of words, is.
WHOLE = 28


@dataclass(frozen=True)
class Line:
    """One line; ``style`` is a key of STYLES, or nothing."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells below headings, all of them one line each in plain output."""

    headings: Tuple[str, ...]
    rows: Tuple[Tuple[str, ...], ...]


Block = Union[str, Line, Table]


def clean(text: str) -> str:
    """The text on one line, without anything that a terminal would act on (C0 and C1 controls, bidirectional overrides)."""
    return "".join(char if char.isprintable() else "?" for char in text)


def show(blocks: Iterable[Block]) -> None:
    """Prints for people."""
    if sys.stdout.isatty():
        _rich(blocks)
        return
    for block in blocks:
        for line in _plain(block):
            print(line)


def findings(found: Iterable[Mapping[str, Any]]) -> Iterator[Line]:
    """One line for each finding of a ``--json`` document or of the log."""
    for finding in found:
        severity = str(finding.get("severity"))
        words = {key: str(finding.get(key) or "") for key in ("what", "origin", "remedy", "who")}
        yield Line(f"  {severity}: {sentence(**words)}", severity)


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


def _rich(blocks: Iterable[Block]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False, emoji=False)  # itself respects NO_COLOR and TERM=dumb
    for block in blocks:
        if isinstance(block, Table):
            table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for heading, *cells in zip(block.headings, *block.rows):
                whole = heading != block.headings[-1] and max(map(len, cells), default=0) <= WHOLE
                table.add_column(heading, overflow="fold", no_wrap=whole)
            for row in block.rows:
                table.add_row(*(Text(clean(cell), STYLES.get(cell, "")) for cell in row))
            console.print(Padding(table, (0, 0, 0, 2)))
        else:
            line = block if isinstance(block, Line) else Line(block)
            console.print(Text(clean(line.text), STYLES.get(line.style, "")), soft_wrap=True)


def count(number: int, one: str, many: str = "") -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {one if number == 1 else many or one + 's'}"

