"""``check --graph FILE``: the dependency graph of one program as a picture (SVG 1.1), coloured by who provides each library.

Drawn from what ``--json`` prints of the program. The layout is the usual one of layered graphs (Sugiyama, Tagawa, Toda 1981): a layer
is how far an object is from the program on the longest way, the order inside a layer comes from its neighbours. Layers are rows, or
columns where that fits a screen better. A line is left out where another way leads to the same object: that everything needs libc says
nothing. Colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Set, Tuple
from xml.sax.saxutils import escape

from oci_hpc_hooks.cli.show import clean, count

#: More objects than this make no picture, and as many that nobody provides; the ones that matter least are left out, and their number
#: is told.
NODES_LIMIT = 120

LETTER = 7.3  # px, the width of one letter of the monospaced 12 px font
NAME_LETTERS = 34
HEIGHT = 38  # px of a node
FAULT = 15  # px of one line below a node
FAULTS_SHOWN = 2
BETWEEN = 18  # px between nodes of a layer
PASSING = 20  # px that a passing line takes there
GAP = 56  # px between layers
MARGIN = 24
SWEEPS = 12
SCREEN = (1600, 1000)  # px, the shape that is aimed at

KINDS = {"image": "image", "host": "host", "host C runtime": "runtime", "nobody": "nobody"}

STYLE = """
text { font-family: system-ui, "DejaVu Sans", sans-serif; fill: #1c1c22 }
.name { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace }
.from { font-size: 10px; fill: #4d4d57 }
.fault { font-size: 11px; font-weight: bold; fill: #b3001b; stroke: #ffffff; stroke-width: 4px; paint-order: stroke }
.title { font-size: 18px; font-weight: bold }
.paper { fill: #ffffff }
.node rect { stroke-width: 1.4 }
.image rect { fill: #eeeef1; stroke: #8a8a94 }
.host rect { fill: #d6ecff; stroke: #1769aa }
.runtime rect { fill: #f0dcfa; stroke: #7b2d9b }
.nobody rect { fill: #ffffff; stroke: #b3001b; stroke-dasharray: 5 3 }
.program rect { stroke-width: 2.6 }
.failing rect { stroke: #b3001b; stroke-width: 2.6 }
path { fill: none; stroke: #9a9aa4; stroke-width: 1.2 }
path.failing { stroke: #d0021b; stroke-width: 3 }
@media (prefers-color-scheme: dark) {
text { fill: #ececf1 }
.from { fill: #b5b5c0 }
.fault { fill: #ff8a94; stroke: #17171c }
.paper { fill: #17171c }
.image rect { fill: #2c2c33; stroke: #85858f }
.host rect { fill: #0f3a5c; stroke: #5db2f5 }
.runtime rect { fill: #43204f; stroke: #cf8aec }
.nobody rect { fill: #17171c; stroke: #ff5c6c }
.failing rect { stroke: #ff5c6c }
path { stroke: #6d6d78 }
path.failing { stroke: #ff5c6c }
}
"""


@dataclass
class Node:
    """One object of the link map, or the place where a line passes a column."""

    key: str
    name: str = ""  # "": a line passes
    kind: str = ""
    source: str = ""
    why: str = ""
    faults: List[str] = field(default_factory=list)
    program: bool = False
    layer: int = 0
    along: float = 0.0  # px, the place of its middle in its layer
    far: float = 0.0  # px, where its layer begins
    thick: float = 0.0  # px, how thick that is

    @property
    def width(self) -> float:
        return 28 + LETTER * max(len(_short(self.name)), min(len(self.source) * 0.8, 22)) if self.name else 0.0

    @property
    def height(self) -> float:
        return HEIGHT + FAULT * len(self.faults) if self.name else 0.0

    def room(self, down: bool) -> float:
        """What it takes of its layer."""
        return (self.width if down else self.height) + BETWEEN if self.name else PASSING


def draw(program: Mapping[str, Any], title: str, reasons: Sequence[str]) -> str:
    """The picture of one program (schemas/check-output.schema.json, an item of ``programs``) with a title and why it is so."""
    nodes, edges, footer = _graph(program)
    edges = _acyclic(list(nodes), edges)
    _place_in_layers(nodes, edges)
    edges = _reduced(list(nodes), edges)
    ways = _with_passing_lines(nodes, edges)
    layers = _layers(nodes)
    down = min((True, False), key=lambda down: _misfit(*_placed(layers, ways, down)))
    size = _placed(layers, ways, down)
    return _svg(_Picture(nodes, edges, ways, down, size), title, reasons, footer)


# ---------------------------------------------------------------------------------------------------------------- the graph

Edge = Tuple[str, str]
Edges = Dict[Edge, str]  # what is wrong with it, "" where nothing is


def _graph(program: Mapping[str, Any]) -> Tuple[Dict[str, Node], Edges, str]:
    """Nodes, edges, and in words what is left out."""
    nodes: Dict[str, Node] = {}
    libraries = sorted(program["libraries"], key=lambda library: library["rule"] != "program")
    for library in libraries[:NODES_LIMIT]:
        is_program = library["rule"] == "program"
        name = library["name"].rpartition("/")[2]
        nodes[library["path"]] = Node(library["path"], name, library["provider"], library["file"], library["why"], program=is_program)
    edges: Edges = {}
    most = len(nodes) + NODES_LIMIT
    nobody: Set[str] = set()  # left out
    for needs in program["dependencies"]:
        target = needs["path"] or f"nobody:{needs['name']}"
        fault = needs["fault"] if needs["injection"] or not needs["path"] else ""
        if needs["needed_by"] not in nodes or (needs["path"] and target not in nodes):
            continue
        if target not in nodes and len(nodes) >= most:
            nobody.add(target)
            continue
        node = nodes.setdefault(target, Node(target, needs["name"].rpartition("/")[2], "nobody"))
        if needs["needed_by"] != target:
            edges[needs["needed_by"], target] = fault
        if fault and fault not in node.faults[:FAULTS_SHOWN]:
            node.faults = [*node.faults, fault][:FAULTS_SHOWN]
    left_out = [(len(libraries[NODES_LIMIT:]), "of the image"), (len(nobody), "that nobody provides")]
    return nodes, edges, ", ".join(f"{count(number, 'object')} {whose} not drawn" for number, whose in left_out if number)


def _successors(edges: Iterable[Edge]) -> Dict[str, List[str]]:
    found: Dict[str, List[str]] = {}
    for source, target in edges:
        found.setdefault(source, []).append(target)
    return found


def _acyclic(keys: Sequence[str], edges: Edges) -> Edges:
    """Without the edges that lead back (libraries may need each other)."""
    after = _successors(edges)
    back: Set[Edge] = set()
    open_: Set[str] = set()
    done: Set[str] = set()
    for root in keys:
        stack = [(root, iter(after.get(root, ())))] if root not in done else []
        open_.update(key for key, _ in stack)
        while stack:
            key, rest = stack[-1]
            target = next(rest, None)
            if target is None:
                stack.pop()
                open_.discard(key)
                done.add(key)
            elif target in open_:
                back.add((key, target))
            elif target not in done:
                open_.add(target)
                stack.append((target, iter(after.get(target, ()))))
    return {edge: fault for edge, fault in edges.items() if edge not in back}


def _in_order(keys: Sequence[str], edges: Iterable[Edge]) -> List[str]:
    """A topological order (Kahn)."""
    after = _successors(edges)
    waiting = dict.fromkeys(keys, 0)
    for targets in after.values():
        for target in targets:
            waiting[target] += 1
    ready = [key for key in keys if not waiting[key]]
    for key in ready:  # grows on the way
        for target in after.get(key, ()):
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    return ready


def _place_in_layers(nodes: Dict[str, Node], edges: Edges) -> None:
    after = _successors(edges)
    for key in _in_order(list(nodes), edges):
        for target in after.get(key, ()):
            nodes[target].layer = max(nodes[target].layer, nodes[key].layer + 1)


def _reduced(keys: Sequence[str], edges: Edges) -> Edges:
    """The transitive reduction, but with every edge that fails."""
    after = _successors(edges)
    number = {key: 1 << index for index, key in enumerate(keys)}
    reach: Dict[str, int] = {}  # bit sets of what can be reached
    for key in reversed(_in_order(keys, edges)):
        reach[key] = number[key]
        for target in after.get(key, ()):
            reach[key] |= reach[target]
    return {
        (source, target): fault for (source, target), fault in edges.items()
        if fault or not any(reach[other] & number[target] for other in after[source] if other != target)
    }


# ---------------------------------------------------------------------------------------------------------------- the layout

def _with_passing_lines(nodes: Dict[str, Node], edges: Edges) -> Dict[Edge, List[str]]:
    """The nodes that the line of each edge goes through: a line that passes columns has a place in each of them."""
    ways: Dict[Edge, List[str]] = {}
    for source, target in edges:
        way = [source]
        for layer in range(nodes[source].layer + 1, nodes[target].layer):
            key = f"{source}\0{target}\0{layer}"
            nodes[key] = Node(key, layer=layer)
            way.append(key)
        ways[source, target] = [*way, target]
    return ways


Ways = Mapping[Edge, Sequence[str]]
Layers = Sequence[List[Node]]


def _layers(nodes: Dict[str, Node]) -> Layers:
    layers: Layers = [[] for _ in range(1 + max((node.layer for node in nodes.values()), default=-1))]
    for node in nodes.values():
        layers[node.layer].append(node)
    return layers


def _placed(layers: Layers, ways: Ways, down: bool) -> Tuple[float, float]:
    """Every node gets its place, the layers being rows or columns; returns the size of the whole (px)."""
    nodes = {node.key: node for layer in layers for node in layer}
    beside: Dict[str, List[Node]] = {key: [] for key in nodes}
    for way in ways.values():
        for one, other in zip(way, way[1:]):
            beside[one].append(nodes[other])
            beside[other].append(nodes[one])
    for layer in layers:
        _stack(layer, down)
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wished = {node.key: _mean(node, beside) for node in layer}
            layer.sort(key=lambda node: wished[node.key])
            _stack(layer, down)
    for _ in range(SWEEPS):
        for layer in (*layers, *reversed(layers)):
            _settle(layer, beside, down)
    first = min((node.along - node.room(down) / 2 for node in nodes.values()), default=0.0)
    far = 0.0
    for layer in layers:
        thick = max(node.height if down else node.width for node in layer)
        for node in layer:
            node.along -= first
            node.far, node.thick = far, thick
        far += GAP + thick
    last = max((node.along + node.room(down) / 2 for node in nodes.values()), default=0.0)
    return (last, far - GAP) if down else (far - GAP, last)


def _misfit(width: float, height: float) -> float:
    """How much it would have to shrink to fit a screen."""
    return max(width / SCREEN[0], height / SCREEN[1])


def _stack(layer: Sequence[Node], down: bool) -> None:
    place = -sum(node.room(down) for node in layer) / 2
    for node in layer:
        node.along = place + node.room(down) / 2
        place += node.room(down)


def _mean(node: Node, beside: Mapping[str, Sequence[Node]]) -> float:
    others = beside[node.key]
    return sum(other.along for other in others) / len(others) if others else node.along


def _settle(layer: Sequence[Node], beside: Mapping[str, Sequence[Node]], down: bool) -> None:
    """Each node as near to its neighbours as the ones before it in the layer let it."""
    wished = [_mean(node, beside) for node in layer]
    least = float("-inf")
    for node, wish in zip(layer, wished):
        node.along = max(wish, least + node.room(down) / 2)
        least = node.along + node.room(down) / 2
    shift = sum(wish - node.along for node, wish in zip(layer, wished)) / len(layer)
    for node in layer:
        node.along += shift


# ---------------------------------------------------------------------------------------------------------------- the picture

@dataclass(frozen=True)
class _Picture:
    nodes: Mapping[str, Node]
    edges: Edges
    ways: Ways
    down: bool
    size: Tuple[float, float]

    def corner(self, node: Node) -> Tuple[float, float]:
        """The upper left one of the node's box."""
        return (node.along - node.width / 2, node.far) if self.down else (node.far, node.along - node.height / 2)


def _svg(picture: _Picture, title: str, reasons: Sequence[str], footer: str) -> str:
    heads = [line for reason in reasons for line in textwrap.wrap(clean(reason), 120)]
    top = 84 + 17 * len(heads)
    width = max(picture.size[0] + 2 * MARGIN, 860.0, 2 * MARGIN + 10.5 * len(title))
    height = top + picture.size[1] + MARGIN + (18 if footer else 0)
    nobody = any(node.kind == "nobody" for node in picture.nodes.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">',
        f"<title>{_text(title)}</title>",
        f"<style>{STYLE}</style>",
        '<rect class="paper" width="100%" height="100%"/>',
        f'<text class="title" x="{MARGIN}" y="32">{_text(title)}</text>',
        *(f'<text class="from" style="font-size: 12px" x="{MARGIN}" y="{54 + 17 * row}">{_text(line)}</text>'
          for row, line in enumerate(heads)),
        *_legend(top - 28, nobody, any(picture.edges.values())),
        f'<g transform="translate({(width - picture.size[0]) / 2:.1f} {top})">',
        *(_line(picture, edge, fault) for edge, fault in sorted(picture.edges.items(), key=lambda item: item[1] != "")),  # failing on top
        *(part for node in picture.nodes.values() if node.name for part in _box(node, *picture.corner(node))),
        "</g>",
    ]
    if footer:
        parts.append(f'<text class="from" x="{MARGIN}" y="{height - 12:.0f}">{_text(footer)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _legend(y: float, nobody: bool, failing: bool) -> Iterator[str]:
    x = float(MARGIN)
    entries = [("image", "from the image"), ("host", "from the host"), ("runtime", "the host's C runtime")]
    for kind, text in [*entries, *([("nobody", "provided by nobody")] if nobody else [])]:
        yield f'<g class="node {kind}"><rect x="{x:.0f}" y="{y - 11:.0f}" width="22" height="14" rx="3"/></g>'
        yield f'<text class="from" style="font-size: 12px" x="{x + 29:.0f}" y="{y:.0f}">{text}</text>'
        x += 54 + 6.6 * len(text)
    if failing:
        yield f'<path class="failing" d="M{x:.0f},{y - 4:.0f}h28"/>'
        yield f'<text class="from" style="font-size: 12px" x="{x + 36:.0f}" y="{y:.0f}">fails</text>'


def _line(picture: _Picture, edge: Edge, fault: str) -> str:
    way = [picture.nodes[key] for key in picture.ways[edge]]
    down = picture.down
    along, far = way[0].along, way[0].far + (HEIGHT if down else way[0].width)
    d = "M" + _point(along, far, down)
    for node in way[1:]:
        bend = (node.far - far) / 2
        d += f"C{_point(along, far + bend, down)} {_point(node.along, node.far - bend, down)} {_point(node.along, node.far, down)}"
        along, far = node.along, node.far + (node.thick if node is not way[-1] else 0)
        d += f"L{_point(along, far, down)}"  # straight past the nodes of that layer
    names = f"{way[0].name} needs {way[-1].name}" + (f": {fault}" if fault else "")
    kind = ' class="failing"' if fault else ""
    return f'<path{kind} d="{d}"><title>{_text(names)}</title></path>'


def _point(along: float, far: float, down: bool) -> str:
    return f"{along:.1f},{far:.1f}" if down else f"{far:.1f},{along:.1f}"


def _box(node: Node, x: float, y: float) -> Iterator[str]:
    kinds = ["node", KINDS[node.kind], *(["program"] if node.program else []), *(["failing"] if node.faults else [])]
    lines = [node.name, f"{node.kind}: {node.source}" if node.source else node.kind, node.why, *node.faults]
    yield f'<g class="{" ".join(kinds)}">'
    yield f"<title>{_text(chr(10).join(filter(None, lines)))}</title>"
    yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{node.width:.1f}" height="{HEIGHT}" rx="6"/>'
    yield f'<text class="name" x="{x + 14:.1f}" y="{y + 16:.1f}">{_text(_short(node.name))}</text>'
    room = int((node.width - 24) / 5.6)
    yield f'<text class="from" x="{x + 14:.1f}" y="{y + 30:.1f}">{_text(_tail(node.source or "nobody has it", room))}</text>'
    for row, fault in enumerate(node.faults):
        yield f'<text class="fault" x="{x + 4:.1f}" y="{y + HEIGHT + 13 + FAULT * row:.1f}">{_text(_short(fault, 60))}</text>'
    yield "</g>"


def _short(text: str, letters: int = NAME_LETTERS) -> str:
    return text if len(text) <= letters else text[:letters - 1] + "…"


def _tail(path: str, letters: int) -> str:
    """The end of a path says most."""
    return path if len(path) <= letters else "…" + path[1 - letters:]


def _text(text: str) -> str:
    """Text of the image for XML: no markup, and no character that XML does not know."""
    return escape("\n".join(map(clean, text.split("\n"))))
