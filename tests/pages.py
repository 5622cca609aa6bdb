"""The blocks of README.md and docs/*.md: what a reader would type, or is shown. As a reader sees them, fenced with ``` or indented by four
or more; not a parser of Markdown."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import List, Tuple

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Block:
    page: str  # below ROOT
    kind: str  # what stands behind ```; empty if there is nothing, or the block is indented
    text: str  # without indentation, with a newline at its end


def pages() -> Tuple[Path, ...]:
    return (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def blocks(page: str) -> List[Block]:
    """All of a page, in their order."""
    found: List[Block] = []
    fence = ""
    lines: List[str] = []
    for line in [*(ROOT / page).read_text(encoding="utf-8").splitlines(), ""]:
        mark = re.match(r"\s*```(.*)", line)
        if mark:
            if fence:
                found.append(Block(page, fence[3:], textwrap.dedent("\n".join(lines)) + "\n"))
            fence, lines = "" if fence else f"```{mark[1]}", []
        elif fence or line.startswith("    "):
            lines.append(line)
        elif lines:
            found.append(Block(page, "", textwrap.dedent("\n".join(lines)) + "\n"))
            lines = []
    return found
