"""The committed result as a picture: docs/performance.svg. ``python benchmarks/plot.py`` after ``make bench SAVE=--save``.

Written by hand, for a bar needs no library: SVG 1.1 as any browser shows it.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import results

PICTURE = Path(__file__).resolve().parents[1] / "docs/performance.svg"

#: (row of the result, how it is called here, its budget, 0 for none)
ROWS = (
    ("nothing to do", "nothing to do", 1.2),
    ("nothing to do, precreate", "nothing to do, precreate", 1.2),
    ("warm, 12 files", "warm, 12 files", 0.0),
    ("warm, 12 files, precreate", "warm, 12 files, precreate", 0.0),
    ("warm, 42 files", "warm, 42 files", 1.5),
    ("warm, 42 files, precreate", "warm, 42 files, precreate", 1.5),
    ("C, 12 files", "C, the mounts of 12 files", 0.0),
    ("C, 42 files", "C, the mounts of 42 files", 0.0),
)
LEFT, WIDTH, HEIGHT, BAR = 220, 460, 26, 16
HOOK, TWIN, BUDGET, TEXT = "#4477aa", "#bbbbbb", "#cc3311", "#222222"


def picture(found: dict[str, Any]) -> str:
    """Bars of CPU time in units of the bare interpreter, with a mark where the budget is."""
    rows = [(label, found["rows"][name]["x_cpu"], budget) for name, label, budget in ROWS if name in found["rows"]]
    most = max([2.0, *(value for _, value, _ in rows)])
    scale = WIDTH / most
    height = HEIGHT * len(rows) + 94
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 70}" height="{height}" font-family="sans-serif" font-size="13">',
        '<title>CPU time of a hook, in units of the bare interpreter</title>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" fill="{TEXT}" font-weight="bold">CPU time of a hook; 1 = the bare interpreter</text>',
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
    PICTURE.write_text(picture(results.last()))
    sys.stdout.write(f"{PICTURE}\n")
