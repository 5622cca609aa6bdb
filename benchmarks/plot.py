"""The committed result as pictures, docs/performance*.svg: ``python -m benchmarks.plot`` after ``make bench SAVE=--save``.

Written by hand, for a bar needs no library: SVG 1.1 as any browser shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import results

DOCS = Path(__file__).resolve().parents[1] / "docs"

#: Of a picture: (row of the result, how it is called there, its budget, 0 for none)
Rows = Sequence[tuple[str, str, float]]

ALONE: Rows = (
    ("nothing to do", "nothing to do", 1.2),
    ("nothing to do, precreate", "nothing to do, precreate", 1.2),
    ("warm, 12 files", "warm, 12 files", 0.0),
    ("warm, 12 files, precreate", "warm, 12 files, precreate", 0.0),
    ("warm, 42 files", "warm, 42 files", 1.5),
    ("warm, 42 files, precreate", "warm, 42 files, precreate", 1.5),
    ("C, 12 files", "C, the mounts of 12 files", 0.0),
    ("C, 42 files", "C, the mounts of 42 files", 0.0),
)
GROWTH: Rows = (
    *((f"{kind}, a library that needs {more} others", f"{kind}, {more + 1} libraries injected", 0.0)
      for kind in ("warm", "C") for more in (0, 9, 39, 99)),
    *((f"warm, an image of {count} libraries", f"warm, {count} in the image", 0.0) for count in (14, 600, 1000, 5000)),
    *((f"warm, {more} profiles more", f"warm, {more} profiles more", 0.0) for more in (0, 10, 50)),
)
PODMAN: Rows = tuple(
    (f"podman, {runtime}, {what}", f"{runtime}, {what}", 0.0 if what.endswith("the first") else 1.1)
    for runtime in ("crun", "runc")
    for what in (*(f"{files} files, {way}" for files in (12, 42) for way in ("createRuntime", "precreate", "CDI")),
                 *(f"12 files, {stage}, the first{ahead}" for stage in ("createRuntime", "precreate") for ahead in ("", ", planned ahead")))
)
#: Of each: the file's name, its rows, which figure, and what it is.
PICTURES: Sequence[tuple[str, Rows, str, str]] = (
    ("performance.svg", ALONE, "x_cpu", "CPU time of a hook; 1 = the bare interpreter"),
    ("performance-growth.svg", GROWTH, "x_cpu", "CPU time of a hook by what it could grow with; 1 = the bare interpreter"),
    ("performance-podman.svg", PODMAN, "x", "podman run, from beginning to end; 1 = without hooks"),
)
LEFT, WIDTH, HEIGHT, BAR = 350, 460, 26, 16
HOOK, TWIN, BUDGET, TEXT = "#4477aa", "#bbbbbb", "#cc3311", "#222222"


def picture(found: dict[str, Any], wanted: Rows, figure: str, title: str) -> str:
    """Bars of one figure of these rows, with a mark where the budget is; rows that the result lacks are left out."""
    named = {name.partition(", an inventory of ")[0]: row for name, row in found["rows"].items()}
    rows = [(label, named[name][figure], budget) for name, label, budget in wanted if name in named]
    most = max([2.0, *(value for _, value, _ in rows)])
    scale = WIDTH / most
    height = HEIGHT * len(rows) + 94
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 70}" height="{height}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" fill="{TEXT}" font-weight="bold">{escape(title)}</text>',
    ]
    bottom = 34 + HEIGHT * len(rows)
    for step in range(int(most * 2) + 1):
        x = LEFT + step / 2 * scale
        lines.append(f'<line x1="{x:.1f}" y1="30" x2="{x:.1f}" y2="{bottom}" stroke="#dddddd"/>'
                     f'<text x="{x:.1f}" y="{bottom + 16}" fill="{TEXT}" text-anchor="middle">{step / 2:g}</text>')
    for index, (label, value, budget) in enumerate(rows):
        y = 36 + HEIGHT * index
        color = TWIN if label.startswith("C,") else HOOK
        lines.append(f'<text x="{LEFT - 8}" y="{y + 13}" fill="{TEXT}" text-anchor="end">{escape(label)}</text>'
                     f'<rect x="{LEFT}" y="{y}" width="{value * scale:.1f}" height="{BAR}" fill="{color}"/>'
                     + _value(LEFT + value * scale, y + 13, value))
        if budget:
            x = LEFT + budget * scale
            lines.append(f'<line x1="{x:.1f}" y1="{y - 4}" x2="{x:.1f}" y2="{y + BAR + 4}" stroke="{BUDGET}" stroke-width="2"/>')
    lines.append(f'<text x="{LEFT}" y="{height - 28}" fill="{BUDGET}">| budget</text>'
                 f'<text x="10" y="{height - 8}" fill="{TEXT}" font-size="11">{escape(str(found["machine"]))}</text></svg>')
    return "\n".join(lines) + "\n"


def _value(end: float, y: int, value: float) -> str:
    """The number in its bar, or behind a short one: a budget's mark stands right of long ones."""
    inside = end > LEFT + 100
    place = f'x="{end - 6:.1f}" fill="white" text-anchor="end"' if inside else f'x="{end + 6:.1f}" fill="{TEXT}"'
    return f'<text {place} y="{y}">{value:.2f}</text>'


if __name__ == "__main__":
    for name, wanted, figure, title in PICTURES:
        (DOCS / name).write_text(picture(results.last(), wanted, figure, title))
        sys.stdout.write(f"{DOCS / name}\n")
