"""Views hold what they are to show, escaped, in colours that are read on light and dark pages."""

import re

import pandas as pd
import pytest
from pygments.token import Token

from llmopt import display, ir
from llmopt.config import InputError

BEFORE = """%pair = type { i32, i32 }
@"a<b" = external global i32
define i32 @f(i32 %0) {
%2 = alloca i32, align 4
store i32 %0, ptr %2, align 4
%3 = load i32, ptr %2, align 4
%4 = mul i32 %3, %3
ret i32 %4
}
"""
AFTER = "define i32 @f(i32 %0) {\n%2 = mul nsw i32 %0, %0\nret i32 %2\n}\n"


def luminance(colour: str) -> float:
    parts = [int(colour.lstrip("#")[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def shown(view) -> str:
    """The text that a reader sees."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", "", view.data, flags=re.S)
    return text.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">")


@pytest.mark.parametrize("style", [display.LIGHT, display.DARK])
def test_every_colour_can_be_read(style):
    formatter = display._formatter(style)
    kinds = [
        *(Token.Comment, Token.Keyword, Token.Keyword.Type, Token.Literal.Number, Token.Operator),
        *(Token.Literal.String, Token.Name.Function, Token.Name.Label, Token.Punctuation),
        *(Token.Name.Variable, Token.Name.Variable.Global, Token.Comment.Multiline),
    ]
    for kind in kinds:
        colour = formatter.style.style_for_token(kind)["color"]
        if colour:
            assert contrast(colour, display.background(style)) >= 4.5, kind
            for mark in display.MARKS[style].values():
                assert contrast(colour, mark) >= 4.5, (kind, mark)


def test_ir_is_shown_whole_escaped_and_for_both_themes():
    view = display.show_ir(BEFORE, "a < b")
    assert "".join(shown(view).split()) == "".join(("a < b" + BEFORE).split())
    assert '"a<b"' not in view.data and "a &lt; b" in view.data
    assert "<script" not in view.data
    assert 'html[data-theme="dark"]' in view.data and "data-jp-theme-light" in view.data


def test_code_of_a_file_and_comments_over_lines(tmp_path):
    path = tmp_path / "x.c"
    path.write_text("/* one\n   two */\nint x = 1 < 2;\n")
    view = display.show_code(path)
    assert "x.c" in shown(view) and "1 < 2" in shown(view)
    lines = re.findall(r'<span class="line">(.*?) </span>(?=<span class="line">|</pre>)', view.data)
    assert len(lines) == 3
    assert all(line.count("<span") == line.count("</span>") for line in lines)
    with pytest.raises(InputError, match="no-such"):
        display.show_code(tmp_path / "no-such.c")
    with pytest.raises(InputError, match="did you mean 'llvm'"):
        display.show_code("x", "llwm")


@pytest.mark.parametrize(
    ("language", "text"),
    [("yaml", "size: 4 # four\nname: x"), ("c", "int x = 1;\n"), ("text", "a\nb")],
)
def test_only_the_lines_of_a_file_are_rows(language, text):
    """Pygments has classes of one letter: a row's own must not be one of them."""
    view = display.show_code(text, language)
    row = re.search(r"span\.(\w+)\{display:block", view.data)[1]
    kinds = [names.split() for names in re.findall(r'<span class="([^"]*)"', view.data)]
    assert sum(row in names for names in kinds) == len(text.splitlines())


def test_diff_has_both_sides_their_counts_and_marks():
    view = display.diff(BEFORE, AFTER, ("front end", "<sroa>"))
    text = shown(view)
    assert f"front end: {ir.count(BEFORE)} instructions" in text
    assert f"<sroa>: {ir.count(AFTER)} instructions" in text
    assert "<sroa>" not in view.data
    left, right = re.findall(r"<pre.*?</pre>", view.data)
    assert left.count('<span class="line') == right.count('<span class="line')  # rows stay level
    assert left.count('class="line del"') == 6 and right.count('class="line add"') == 1


def test_renumbered_lines_are_no_difference():
    moved = BEFORE.replace("%4", "%9")
    body = display.diff(BEFORE, moved).data.partition("</style>")[2]
    assert "line del" not in body and "line add" not in body


def test_timeline_counts_after_each_pass():
    steps = display.timeline(AFTER, "stripped", ("reg2mem", "mem2reg"))
    assert list(steps["pass"]) == ["(none)", "reg2mem", "mem2reg"]
    assert steps.instructions.iloc[0] == 2 and steps.instructions.iloc[-1] <= 3
    assert steps.change.sum() == steps.instructions.iloc[-1] - steps.instructions.iloc[0]
    assert len(display.timeline(AFTER, "minsize", ())) == 1
    with pytest.raises(InputError, match="unknown pass"):
        display.timeline(AFTER, "stripped", ("no-such-pass",))
    with pytest.raises(InputError, match="parse"):
        display.timeline("define nonsense", "stripped", ("sroa<modify-cfg>",))


def test_tables_are_escaped_and_formatted():
    frame = pd.DataFrame({"pass": ["gvn<no-pre>"], "n": [12345], "share": [0.5]})
    text = display.table(frame, {"share": "{:.1%}"}, "Gain").to_html()
    assert "gvn&lt;no-pre&gt;" in text and "12,345" in text and "50.0%" in text
    assert "<caption>Gain</caption>" in text and "dataframe" in text
    assert text == display.table(frame, {"share": "{:.1%}"}, "Gain").to_html()
    other = display.table(frame.assign(n=1), index=True).to_html()
    ids = {re.search(r'<table id="(\w+)"', each)[1] for each in (text, other)}
    assert len(ids) == 2
    assert re.search(r"td\.col1 *{\s*text-align: *right", text)


def test_graphs_stand_side_by_side_with_their_words():
    view = display.cfgs({"a < b": BEFORE, "after": AFTER})
    assert view.data.count('role="img"') == 2 and "a &lt; b" in view.data
    assert 'aria-label="Control-flow graph of f, 1 block. %1 (5 instructions)' in view.data
    assert "mul i32 %3, %3" in shown(view)
    assert "mul i32 %3, %3" not in shown(display.cfg(BEFORE, code=False))
    with pytest.raises(InputError, match="no function to draw"):
        display.cfgs({})
    with pytest.raises(InputError, match="no function to draw"):
        display.cfg("declare void @f()")


def test_lists_as_people_type_them():
    assert display.pass_list(" sroa, gvn,-Oz") == ("sroa<modify-cfg>", "gvn", "-Oz")
    assert display.pass_list("sroa<preserve-cfg>,gvn<no-pre>") == (
        "sroa<preserve-cfg>",
        "gvn<no-pre>",
    )
    assert display.pass_list(" ") == ()
    with pytest.raises(InputError, match="cannot read it at character"):
        display.pass_list("gvn,,gvn")


def test_the_effect_of_a_list_has_counts_code_and_graphs():
    names = ("sroa<modify-cfg>",)
    view = display.effect(BEFORE, "minsize", names, "<f>", graphs=True)
    text = shown(view)
    assert "<f>: 5 instructions before, 2 (-3) after sroa<modify-cfg>" in text
    assert "2 after -Oz (minsize)" in text and view.data.count('role="img"') == 2
    assert "<details>" in display.effect(BEFORE, "minsize", names, fold=True).data
    with pytest.raises(InputError, match="^parse: "):
        display.effect("define nonsense", "stripped", ())
    with pytest.raises(InputError, match="unknown protocol"):
        display.effect(BEFORE, "oz", ())
    assert "&lt;b&gt;" in display.problem(InputError("<b>")).data
