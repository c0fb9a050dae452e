"""The control-flow graph of a function: its basic blocks from normalised IR, and a drawing.

Graphviz (through pygraphviz) finds the places; the SVG is written here, so that it can go inside a
page: colours are the page's own (`currentColor`), there are no ids, no fonts and no scripts in it,
and its words for those who cannot see it name every block and edge.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from dataclasses import dataclass
from types import ModuleType

from llmopt import ir
from llmopt.config import InputError

_NAME = r'(?:"[^"]*"|[-\w$.]+)'
_LABEL = re.compile(rf"({_NAME}):$")
_TARGET = re.compile(rf"(?:\w+ (?P<case>-?\w+), |(?P<unwind>unwind ))?label (?P<name>%{_NAME})")
_UNNAMED = re.compile(r" %(\d+)(?=[,)])")

SMALL = 30  # instructions: up to here a drawing shows the code of the blocks
MOST = 400  # blocks: beyond, Graphviz takes minutes and nobody sees anything
FONT, LINE, MARGIN = 11, 15, 6  # a letter's size, a line's height, a box's margin, in pixels
LETTER = 0.62 * FONT  # the widest of the usual monospaced fonts
LONGEST = 36  # characters of a line of code
SMALLEST = 0.8  # of its size: narrower places scroll, lest the letters get too small


@dataclass(frozen=True)
class Block:
    """A basic block: `name` (`%7`), its `lines` of code, and where it may go: `edges` of (name of a
    block, label). The label is `T` or `F` after a condition, the values of a `switch`'s case,
    `default` or `unwind`, and empty where there is no choice."""

    name: str
    lines: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]


def blocks(text: str) -> list[Block]:
    """The basic blocks of the first function that the normalised IR `text` defines, in its order.

    `InputError` where it defines none, or where a jump leads to a block that is not there.
    """
    header, body = next(ir.bodies(text), (None, []))
    if header is None:
        raise InputError("no function to draw: pass the normalised IR of one that is defined")
    # LLVM numbers a first block without a label after the function's unnamed parameters.
    first = 1 + max((int(number) for number in _UNNAMED.findall(header)), default=-1)
    parts: list[tuple[str, list[str]]] = [(f"%{first}", [])]
    for line in body:
        if label := _LABEL.match(line):
            parts.append((f"%{label[1]}", []))
        else:
            parts[-1][1].append(line)
    if len(parts) > 1 and not parts[0][1]:
        del parts[0]  # the first block has a label of its own
    found = [Block(name, tuple(lines), _edges(lines[-1:])) for name, lines in parts]
    names = {block.name for block in found}
    for block in found:
        for target, _ in block.edges:
            if target not in names:
                raise InputError(
                    f"{ir.symbol(header)}: block {block.name} goes to {target}, which is not "
                    "there; pass the IR of a whole function"
                )
    return found


def _edges(last: list[str]) -> tuple[tuple[str, str], ...]:
    """Where the last line of a block may go, an edge a target and kind of way."""
    line = last[0] if last else ""
    found = list(_TARGET.finditer(line))
    if line.startswith("br i1 "):
        return tuple(zip((match["name"] for match in found), "TF", strict=False))
    cases: dict[str, list[str]] = defaultdict(list)
    for match in found:
        label = match["case"] or ("unwind" if match["unwind"] else "")
        cases[match["name"]].append(label)
    if line.startswith("switch ") and found:
        # The default comes first, behind the value: `switch i32 %0, label %8 [...]`.
        default = cases[found[0]["name"]]
        default[0] = "default"
    return tuple((name, _short(", ".join(labels), 20)) for name, labels in cases.items())


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def words(text: str) -> str:
    """The graph in words, every block with its number of instructions and every edge."""
    found = blocks(text)
    header = next(ir.bodies(text))[0]
    said = {"T": " if true", "F": " if false", "default": " otherwise", "": ""}
    out = [f"Control-flow graph of {ir.symbol(header)}, {_plural(len(found), 'block')}."]
    for block in found:
        ways = ", ".join(target + said.get(label, f" for {label}") for target, label in block.edges)
        way = f"goes to {ways}" if ways else f"ends in {(block.lines or ('nothing',))[-1]}"
        out.append(f"{block.name} ({_plural(len(block.lines), 'instruction')}) {way}.")
    return " ".join(out)


def graphviz() -> ModuleType:
    """pygraphviz. `InputError` where a library of the system that it counts on is missing."""
    try:
        import pygraphviz
    except ImportError as error:
        raise InputError(
            f"Graphviz cannot be used ({error}); install what it needs (Debian and Ubuntu: "
            "apt-get install libglib2.0-0 libxext6 libxrender1)"
        ) from None
    return pygraphviz


def svg(text: str, code: bool | None = None) -> str:
    """The graph of the normalised IR `text` as an SVG element for a page of HTML.

    A box a block, with its name and number of instructions and, with `code`, its lines (default:
    for functions of up to `SMALL` instructions). An edge that is taken when a condition is false is
    dashed. `InputError` on what is no function (`blocks`) and on more than `MOST` blocks.
    """
    found = blocks(text)
    if len(found) > MOST:
        raise InputError(f"{len(found)} blocks, {MOST} can be drawn: pass a smaller function")
    code = ir.count(text) <= SMALL if code is None else code
    places = graphviz().AGraph(directed=True, strict=False, ranksep="0.35", nodesep="0.3")
    places.node_attr.update(shape="box", fixedsize="true", label="")
    number = {block.name: str(i) for i, block in enumerate(found)}  # to Graphviz, %3 has no name
    boxes = {}
    for block in found:
        title = f"{block.name}: {_plural(len(block.lines), 'instruction')}"
        lines = [title, *(_short(line, LONGEST) for line in block.lines * code)]
        width = max(map(len, lines)) * LETTER + 2 * MARGIN
        height = len(lines) * LINE + 2 * MARGIN
        places.add_node(number[block.name], width=width / 72, height=height / 72)
        boxes[block.name] = (lines, width, height)
    edges = [(block.name, *edge) for block in found for edge in block.edges]
    for key, (start, end, label) in enumerate(edges):
        places.add_edge(number[start], number[end], key=str(key), label=_room(label))
    places.layout(prog="dot")
    # Graphviz counts from the lower left corner, in points of 1/72 inch: here a pixel each.
    _, _, full, top = map(float, places.graph_attr["bb"].split(","))
    parts = []
    for name, (lines, width, height) in boxes.items():
        x, y = _point(places.get_node(number[name]).attr["pos"], top)
        parts.append(_box(lines, x - width / 2, y - height / 2, width, height))
    for key, (start, end, label) in enumerate(edges):
        edge = places.get_edge(number[start], number[end], key=str(key))
        parts.append(_arrow(edge.attr["pos"], top, dashed=label == "F"))
        if label:
            x, y = _point(edge.attr["lp"], top)
            parts.append(
                f'<text x="{x:.1f}" y="{y + FONT / 3:.1f}" text-anchor="middle">'
                f"{html.escape(label)}</text>"
            )
    full, top = full + 2, top + 2  # the width of the outer lines
    return (
        f'<svg role="img" aria-label="{html.escape(words(text))}" width="{full:.0f}" '
        f'height="{top:.0f}" viewBox="-1 -1 {full:.1f} {top:.1f}" '
        f'style="min-width:{SMALLEST * full:.0f}px" font-family="monospace" font-size="{FONT}" '
        f'fill="currentColor">{"".join(parts)}</svg>'
    )


def _room(label: str) -> str:
    """A label's room as an empty table of its size: with a text, Graphviz would look for fonts, and
    the drawing would depend on those of the machine."""
    if not label:
        return ""
    width = len(label) * LETTER + MARGIN
    size = f'FIXEDSIZE="TRUE" WIDTH="{width:.0f}" HEIGHT="{LINE}"'
    return f'<<TABLE BORDER="0" CELLBORDER="0" {size}><TR><TD></TD></TR></TABLE>>'


def _point(text: str, top: float) -> tuple[float, float]:
    x, y = text.split(",")[-2:]
    return float(x), top - float(y)


def _box(lines: list[str], x: float, y: float, width: float, height: float) -> str:
    out = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" '
        'fill="none" stroke="currentColor"/>'
    ]
    for number, line in enumerate(lines):
        weight = ' font-weight="bold"' * (number == 0)
        baseline = y + MARGIN + number * LINE + FONT
        out.append(
            f'<text x="{x + MARGIN:.1f}" y="{baseline:.1f}"{weight}>{html.escape(line)}</text>'
        )
    return "".join(out)


def _arrow(spline: str, top: float, dashed: bool) -> str:
    """Graphviz's `e,x,y x,y x,y …`: the arrow's tip, then the points of Bézier curves."""
    tip, *points = (_point(point, top) for point in spline.split())
    first, *rest = (f"{x:.1f},{y:.1f}" for x, y in points)
    (x, y), (base_x, base_y) = tip, points[-1]
    # The base of the head, a third of its length to either side.
    side_x, side_y = (base_y - y) * 0.35, (x - base_x) * 0.35
    head = (tip, (base_x + side_x, base_y + side_y), (base_x - side_x, base_y - side_y))
    dashes = ' stroke-dasharray="4 3"' * dashed
    return (
        f'<path d="M{first} C{" ".join(rest)}" fill="none" stroke="currentColor"{dashes}/>'
        f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in head)}"/>'
    )
