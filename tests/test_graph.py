"""Blocks and edges as they are in the code; a drawing that any page can hold."""

import sys
from xml.etree import ElementTree

import pytest

from llmopt import graph
from llmopt.config import InputError

WAYS = """define i32 @ways(i32 %0, ptr byval(%9) %1) personality ptr @p {
%3 = icmp sgt i32 %0, 0
br i1 %3, label %4, label %"an odd <name>"
4:
switch i32 %0, label %6 [ i32 1, label %5 i32 -2, label %5 i32 3, label %6 ]
"an odd <name>":
br label %4
5:
invoke void @g() to label %6 unwind label %7
6:
ret i32 %0
7:
%8 = landingpad { ptr, i32 } cleanup
unreachable
}
"""


def test_blocks_and_edges():
    found = graph.blocks(WAYS)
    assert {block.name: block.edges for block in found} == {
        "%2": (("%4", "T"), ('%"an odd <name>"', "F")),
        "%4": (("%6", "default, 3"), ("%5", "1, -2")),
        '%"an odd <name>"': (("%4", ""),),
        "%5": (("%6", ""), ("%7", "unwind")),
        "%6": (),
        "%7": (),
    }
    assert sum(len(block.lines) for block in found) == 8


def test_a_labelled_first_block_keeps_its_name_and_loops_are_edges():
    text = "define void @f() {\nentry:\nbr label %entry\n}\n"
    (block,) = graph.blocks(text)
    assert (block.name, block.edges) == ("%entry", (("%entry", ""),))
    assert graph.words(text) == (
        "Control-flow graph of f, 1 block. %entry (1 instruction) goes to %entry."
    )


@pytest.mark.parametrize("code", [True, False])
def test_the_drawing_says_all_in_words_and_takes_the_page_s_colours(code):
    svg = graph.svg(WAYS, code)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and root.get("aria-label") == graph.words(WAYS)
    assert '%2 (2 instructions) goes to %4 if true, %"an odd <name>" if false.' in root.get(
        "aria-label"
    )
    assert len(root.findall("rect")) == 6 and len(root.findall("path")) == 7
    assert {each.get("stroke") for each in root.iter() if each.get("stroke")} == {"currentColor"}
    assert {each.get("fill") for each in root.iter() if each.get("fill")} == {
        "currentColor",
        "none",
    }
    assert " id=" not in svg and "://" not in svg, "two drawings on a page do not meet"
    labels = [each.text for each in root.findall("text")]
    assert {"T", "F", "unwind", "default, 3"} <= set(labels)
    assert ("ret i32 %0" in labels) == code
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.findall("rect"):
        assert 0 <= float(box.get("x")) + float(box.get("width")) <= width
        assert 0 <= float(box.get("y")) + float(box.get("height")) <= height


def test_every_function_of_the_sample_is_drawn_the_same_each_time(sample):
    for text in sample.values():
        assert graph.svg(text) == graph.svg(text)


def test_bad_input_is_said():
    with pytest.raises(InputError, match="no function to draw"):
        graph.svg("declare void @f()\n")
    with pytest.raises(InputError, match="goes to %7, which is not there"):
        graph.blocks("define void @f() {\nbr label %7\n}\n")
    many = "\n".join(f"b{i}:\nret void" for i in range(graph.MOST + 1))
    with pytest.raises(InputError, match="401 blocks"):
        graph.svg(f"define void @f() {{\n{many}\n}}\n")


def test_without_graphviz_the_blocks_are_there_and_a_drawing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    assert len(graph.blocks(WAYS)) == 6
    with pytest.raises(InputError, match="Graphviz cannot be used .*apt-get install libglib2.0-0"):
        graph.svg(WAYS)
