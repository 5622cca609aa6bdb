"""What was measured, as a file that can be committed, and the next run beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
DOCUMENT = Path(__file__).resolve().parents[1] / "docs/performance.md"


def last(kind: str = "") -> dict[str, Any]:
    """The newest committed result of the benchmark whose files begin like this, {} if there is none."""
    files = sorted(RESULTS.glob(f"{kind}[0-9]*.json"))
    found: dict[str, Any] = json.loads(files[-1].read_text()) if files else {}
    return found


def save(document: dict[str, Any], kind: str = "") -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}{document['time'][:10]}.json"
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return path


def write(program: str, lines: Sequence[str], page: Path = DOCUMENT) -> None:
    """Put these lines into docs/performance.md, or into another page, in place of what the marks of this program enclose there."""
    begin, end = (f"<!-- benchmarks/{program}: {word} -->" for word in ("begin", "end"))
    head, found, rest = page.read_text().partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page}: no {begin} or no {end}")
    page.write_text("\n".join([head + begin, "", *lines, "", end + tail]))


def beside(rows: dict[str, dict[str, float]], before: dict[str, Any]) -> list[str]:
    """Of each row that both have: its figure then and now, and the ratio.

    The figure is the multiple of the row that it is compared with, by CPU time; by wall time where other processes do a part of the work
    (podman's starts, storms); of a slope microseconds.
    """
    lines = []
    for name, row in rows.items():
        old = before.get("rows", {}).get(name, {})
        which = "us" if "us" in row else "x" if name.startswith("podman") or "x_cpu" not in row else "x_cpu"
        if old.get(which) and row.get(which):
            change = row[which] / old[which]
            mark = "" if 0.93 <= change <= 1.07 else "  better" if change < 1 else "  WORSE"
            calls = f", {old['calls']:.0f} -> {row['calls']:.0f} calls" if old.get("calls") and row.get("calls") else ""
            lines.append(f"{name:62} {old[which]:6.2f} -> {row[which]:6.2f}   {change:5.2f} x{mark}{calls}")
    return lines


def slope(points: list[tuple[float, float]]) -> float:
    """Of the straight line through these points (least squares)."""
    x = sum(point[0] for point in points) / len(points)
    y = sum(point[1] for point in points) / len(points)
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
