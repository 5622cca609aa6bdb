"""The picture of a link map: parsed as XML, and nothing overlaps."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from typing import Any, Dict, List, Sequence, Tuple

import pytest

from oci_hpc_hooks.cli import graph

SVG = "{http://www.w3.org/2000/svg}"
APP = "/usr/bin/app"


def library(name: str, provider: str = "image", rule: str = "cache") -> Dict[str, str]:
    path = name if name.startswith("/") else f"/usr/lib/{name}"
    return {"name": name, "path": path, "file": path, "provider": provider, "rule": rule, "why": "", "needed_by": ""}


def program(libraries: Sequence[Dict[str, str]], *edges: Tuple[str, str, str]) -> Dict[str, Any]:
    """``edges``: who needs it, what is needed, what is wrong. A name that no library has is provided by nobody."""
    paths = {item["name"]: item["path"] for item in libraries}
    return {
        "path": APP, "trouble": "",
        "libraries": [library(APP, rule="program"), *libraries],
        "dependencies": [
            {"needed_by": paths.get(source, source), "name": target, "path": paths.get(target, ""), "fault": fault, "injection": True}
            for source, target, fault in edges],
    }


SMALL = program(
    [library("libmpi.so.12", "host"), library("libc.so.6", "host C runtime"), library("libz.so.1")],
    (APP, "libmpi.so.12", ""), (APP, "libz.so.1", ""), (APP, "libc.so.6", ""), ("libmpi.so.12", "libc.so.6", ""),
    ("libz.so.1", "libc.so.6", ""))


def draw(what: Dict[str, Any], title: str = "image: proved", reasons: Sequence[str] = ()) -> ET.Element:
    return ET.fromstring(graph.draw(what, title, reasons))


def boxes(picture: ET.Element) -> Dict[str, List[str]]:
    """The classes of each node by its name; those of the legend have none."""
    found = {}
    for group in picture.iter(f"{SVG}g"):
        name = group.find(f"{SVG}text[@class='name']")
        if name is not None:
            found[str(name.text)] = group.get("class", "").split()
    return found


def lines(picture: ET.Element) -> Dict[str, bool]:
    """``A needs B`` with what is wrong, and whether it is drawn as failing."""
    return {str(title.text): path.get("class") == "failing" for path in picture.iter(f"{SVG}path") for title in path}


def rectangles(picture: ET.Element) -> List[Tuple[float, float, float, float]]:
    found = []
    for group in picture.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        if group.find(f"{SVG}text") is not None and rect is not None:
            x, y, width, height = (float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    return found


def test_each_provider_has_its_colour() -> None:
    picture = draw(SMALL)
    assert boxes(picture) == {
        "app": ["node", "image", "program"], "libmpi.so.12": ["node", "host"], "libc.so.6": ["node", "runtime"],
        "libz.so.1": ["node", "image"]}
    style = str(picture.find(f"{SVG}style").text)  # type: ignore[union-attr]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for kind in ("image", "host", "runtime", "nobody"):
        assert f".{kind} rect {{" in light and f".{kind} rect {{" in dark
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert texts[0] == "image: proved"
    assert {"from the image", "from the host", "the host's C runtime"} <= set(texts) and "fails" not in texts


def test_what_follows_from_other_lines_is_left_out() -> None:
    assert lines(draw(SMALL)) == {
        "app needs libmpi.so.12": False, "app needs libz.so.1": False, "libmpi.so.12 needs libc.so.6": False,
        "libz.so.1 needs libc.so.6": False}


def test_a_failing_edge_is_red_and_says_why() -> None:
    failing = program([library("libmpi.so.12", "host"), library("libc.so.6")], (APP, "libmpi.so.12", ""), (APP, "libc.so.6", ""),
                      ("libmpi.so.12", "libc.so.6", "lacks GLIBC_2.38"), ("libmpi.so.12", "libgone.so.1", "nobody has it"))
    picture = draw(failing, "image: refused", ["libmpi.so.12 needs GLIBC_2.38 of libc.so.6"])
    assert lines(picture) == {
        "app needs libmpi.so.12": False, "libmpi.so.12 needs libc.so.6: lacks GLIBC_2.38": True,
        "libmpi.so.12 needs libgone.so.1: nobody has it": True}
    assert boxes(picture)["libgone.so.1"] == ["node", "nobody", "failing"]
    assert boxes(picture)["libc.so.6"] == ["node", "image", "failing"]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert "lacks GLIBC_2.38" in texts and "libmpi.so.12 needs GLIBC_2.38 of libc.so.6" in texts
    assert {"provided by nobody", "fails"} <= set(texts)


def test_an_edge_that_fails_is_drawn_although_another_way_leads_there() -> None:
    what = program([library("liba.so"), library("libb.so")], (APP, "liba.so", ""), ("liba.so", "libb.so", ""),
                   (APP, "libb.so", "lacks B_1"))
    assert lines(draw(what))["app needs libb.so: lacks B_1"]


def test_text_of_the_image_is_text() -> None:
    evil = "lib</text><script>alert(1)</script>\x1b[31m\x00\ud800&.so"
    what = program([library(evil)], (APP, evil, ""))
    text = graph.draw(what, f"{evil}: refused", [evil * 5])
    picture = ET.fromstring(text)
    assert not list(picture.iter(f"{SVG}script")) and "\x1b" not in text and "\x00" not in text
    assert picture.findtext(f"{SVG}title") == "lib</text><script>alert(1)</script>?[31m??&.so: refused"
    assert not re.search(r'(href|src|on\w+)=|url\(|@import|<!', text)


def test_libraries_that_need_each_other() -> None:
    what = program([library("liba.so"), library("libb.so")], (APP, "liba.so", ""), ("liba.so", "libb.so", ""), ("libb.so", "liba.so", ""),
                   ("libb.so", "libb.so", ""))
    assert set(boxes(draw(what))) == {"app", "liba.so", "libb.so"}


@pytest.mark.parametrize(("number", "fan"), [(0, 1), (4, 1), (12, 12), (80, 2), (80, 9), (80, 80), (300, 3)])
def test_nothing_overlaps(number: int, fan: int) -> None:
    libraries = [library(f"lib{index}.so", "host" if index % 3 else "image") for index in range(number)]
    names = [APP, *(item["name"] for item in libraries)]
    edges = [(names[index // fan], names[index + 1], "") for index in range(number)]
    edges += [(names[index // (fan + 3)], names[index + 1], "lacks X_1" if index % 20 == 7 else "") for index in range(number)]
    picture = draw(program(libraries, *edges))
    found = rectangles(picture)
    assert len(found) == min(number + 1, graph.NODES_LIMIT)
    width, height = float(picture.get("width", "")), float(picture.get("height", ""))
    for one, other in itertools.combinations(found, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert all(rect[0] >= 0 and rect[1] >= 0 and rect[2] <= width and rect[3] <= height for rect in found)
    footer = [text.text for text in picture.iter(f"{SVG}text") if "not drawn" in str(text.text)]
    assert footer == ([f"{number + 1 - graph.NODES_LIMIT} objects of the image not drawn"] if number >= graph.NODES_LIMIT else [])


def test_only_so_many_that_nobody_provides() -> None:
    picture = draw(program([], *((APP, f"lib{index}.so.1", "nobody has it") for index in range(graph.NODES_LIMIT + 7))))
    assert len(rectangles(picture)) == 1 + graph.NODES_LIMIT
    assert "7 objects that nobody provides not drawn" in [text.text for text in picture.iter(f"{SVG}text")]


def test_nothing_to_draw() -> None:
    picture = draw({"libraries": [], "dependencies": []}, "static: refused", ["its program is static"])
    assert boxes(picture) == {}
    assert "its program is static" in [text.text for text in picture.iter(f"{SVG}text")]
