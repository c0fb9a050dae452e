"""Views of code and tables for notebooks: static HTML, no JavaScript, for light and dark pages.

`show_ir` and `show_code` colour a listing, `diff` puts two versions of a function side by side,
`cfg` and `cfgs` draw control-flow graphs, `effect` shows all that a pass list does to a function,
`timeline` lists what each of its passes did, `table` dresses a data frame. Colours come from two
of Pygments' styles; the page's own theme (Jupyter Book's or JupyterLab's) picks between them.
Figures are not here (`plots`).
"""

from __future__ import annotations

import difflib
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from IPython.display import HTML
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from llmopt import graph, ir, passes, sandbox
from llmopt.config import InputError, check_protocol, nearest

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

# Every colour of both styles has a contrast of at least 4.5 to its background (a test).
LIGHT, DARK = "xcode", "github-dark"
# Marks of changed lines: an orange and a blue that keep that contrast, told apart by sign as well.
MARKS = {LIGHT: {"del": "#fff0dd", "add": "#e8f3ff"}, DARK: {"del": "#33250e", "add": "#0f2b4d"}}
_DARK_PAGES = ('html[data-theme="dark"]', 'body[data-jp-theme-light="false"]')
_LAYOUT = """
.llmopt-view{display:flex;flex-wrap:wrap;gap:.6rem;margin:.3rem 0}
.llmopt-view figure{flex:1 1 17rem;min-width:0;margin:0}
.llmopt-view figcaption{color:inherit;font-size:.9em;font-weight:400;margin:0 0 .2rem;
text-align:left}
.llmopt-view pre{font-size:.78em;line-height:1.45;margin:0;padding:.6em 0;max-height:32rem;
overflow:auto;border:1px solid #8884;border-radius:.25rem}
.llmopt-view p,.llmopt-view details,.llmopt-view .llmopt-view{flex:1 1 100%;min-width:0;margin:0}
.llmopt-view summary{cursor:pointer;padding:.2rem 0}
.llmopt-view .problem{border-left:.25rem solid;padding-left:.6rem;overflow-wrap:anywhere}
.llmopt-view .list{font-family:monospace;overflow-wrap:anywhere}
.llmopt-view .graph{overflow:auto;max-height:36rem;padding:.4em 0}
.llmopt-view .graph svg{display:block;max-width:100%;height:auto}
.llmopt-view pre span.line{display:block;min-width:max-content;padding:0 .8em}
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(div.llmopt-view)
{background:none;color:inherit;padding:0}
"""


@lru_cache
def _formatter(style: str) -> HtmlFormatter:
    return HtmlFormatter(nowrap=True, style=style)


def background(style: str) -> str:
    """The background colour that a style's colours are made for."""
    return _formatter(style).style.background_color


def _style(body: str) -> str:
    """The rules that `body` needs: its classes only, for light pages and for dark ones."""
    used = set(" ".join(re.findall(r'class="([\w -]+)"', body)).split())
    rules = [_LAYOUT]
    for style, pages in ((LIGHT, ("",)), (DARK, _DARK_PAGES)):
        text = "#1f2328" if style == LIGHT else "#e6edf3"
        each = {"": f"color:{text};background:{background(style)}"}
        each |= {f" .{kind}": f"background:{c}" for kind, c in MARKS[style].items()}
        for name, (rule, _, _) in _formatter(style).class2style.items():
            if name in used:
                each[f" .{name}"] = rule or f"color:{text}"
        for page in pages:
            rules += [f"{page} .llmopt-view pre{end}{{{rule}}}" for end, rule in each.items()]
    return "<style>" + "\n".join(rules) + "</style>"


def _lines(code: str, language: str) -> list[str]:
    """Coloured HTML, a string a line; no element reaches over a line's end."""
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        known = ("llvm", "c", "c++", "python", "text")
        raise InputError(f"unknown language {language!r}{nearest(language, known)}") from None
    lines = highlight(code.rstrip("\n"), lexer, _formatter(LIGHT)).rstrip("\n").split("\n")
    out, open_tag = [], ""
    for line in lines:  # a comment over several lines is one element: close and reopen it
        line = open_tag + line
        tags = re.findall(r"<(/?)span[^>]*>", line)
        unclosed = tags.count("") > tags.count("/")
        open_tag = re.findall(r"<span[^>]*>", line)[-1] if unclosed else ""
        out.append(line + ("</span>" if unclosed else ""))
    return out


def _listing(lines: Sequence[str], caption: str, marks: Sequence[str] | None = None) -> str:
    marks = marks or [""] * len(lines)
    rows = "".join(
        f'<span class="line {mark}">{line or " "}</span>'
        if mark
        else f'<span class="line">{line} </span>'
        for line, mark in zip(lines, marks, strict=True)
    )
    title = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure>{title}<pre tabindex="0">{rows}</pre></figure>'


def _view(*listings: str) -> HTML:
    body = f'<div class="llmopt-view">{"".join(listings)}</div>'
    return HTML(_style(body) + body)


def show_code(source: str | Path, language: str = "c", title: str | None = None) -> HTML:
    """A listing with syntax colours: of a text, or of the file that a `Path` names."""
    if isinstance(source, Path):
        try:
            title, source = title or source.name, source.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source}: cannot be shown ({error}); name a text file") from None
    return _view(_listing(_lines(source, language), html.escape(title or "")))


def show_ir(text: str, title: str | None = None) -> HTML:
    """LLVM-IR with syntax colours."""
    return show_code(text, "llvm", title)


def _key(line: str) -> str:
    return re.sub(r"(?<=%)\d+|^\d+(?=:$)", "", line)


def diff(before: str, after: str, titles: tuple[str, str] = ("before", "after")) -> HTML:
    """Two versions of a function's normalised IR side by side, instruction counts on top.

    Lines that only one side has are marked, `-` on the left and `+` on the right. LLVM numbers
    values anew after each pass, so lines that differ in such numbers only count as the same.
    """
    return _view(*_sides(before, after, titles))


def _sides(before: str, after: str, titles: tuple[str, str]) -> list[str]:
    closing = "\n}\n"  # a text that a model did not finish has instructions, too
    plain = before.splitlines(), after.splitlines()
    coloured = _lines(before, "llvm"), _lines(after, "llvm")
    match = difflib.SequenceMatcher(None, *([_key(x) for x in side] for side in plain), False)
    sides: tuple[list, list] = [], []
    for kind, *ends in match.get_opcodes():
        spans = ends[:2], ends[2:]
        height = max(end - start for start, end in spans)
        for side, sign, mark in ((0, "-", "del"), (1, "+", "add")):
            start, end = spans[side]
            changed = kind != "equal"
            rows = [
                ((sign if changed else " ") + " " + line, mark if changed else "")
                for line in coloured[side][start:end]
            ]
            sides[side].extend(rows + [("", "")] * (height - len(rows)))
    captions = [
        f"{html.escape(title)}: <strong>{ir.count(text + closing)} instructions</strong>"
        for title, text in zip(titles, (before, after), strict=True)
    ]
    return [
        _listing([line for line, _ in side], caption, [mark for _, mark in side])
        for side, caption in zip(sides, captions, strict=True)
    ]


def _graph(text: str, title: str, code: bool | None = None) -> str:
    caption = f"<figcaption>{html.escape(title)}</figcaption>" if title else ""
    drawing = graph.svg(text, code)
    return f'<figure>{caption}<div class="graph" tabindex="0">{drawing}</div></figure>'


def cfg(text: str, title: str | None = None, code: bool | None = None) -> HTML:
    """The control-flow graph of a function's normalised IR, drawn: a box a basic block.

    With `code` the boxes hold the instructions (default: in functions of up to `graph.SMALL`).
    Raises `InputError` where `text` defines no function, or one that is too large to draw.
    """
    return cfgs({title or "": text}, code)


def cfgs(versions: Mapping[str, str], code: bool | None = None) -> HTML:
    """Control-flow graphs side by side, of normalised IR by title; as `cfg`."""
    if not versions:
        raise InputError("no function to draw: pass the normalised IR of at least one")
    return _view(*(_graph(text, title, code) for title, text in versions.items()))


def problem(message: object) -> HTML:
    """One line that says what is wrong, as a view."""
    return _view(f'<p class="problem" role="alert">{html.escape(str(message))}</p>')


def pass_list(text: str) -> tuple[str, ...]:
    """A pass list as people type it: `sroa` stands for the first entry of the search space that
    is `sroa` with parameters. Raises `InputError` on an unknown pass, as `passes.parse`."""
    known = {name.partition("<")[0]: name for name in reversed(passes.SPACE)} | {
        name: name for name in passes.SPACE
    }
    words = (word.strip() for word in text.strip().split(","))
    return passes.parse(",".join(known.get(word, word) for word in words))


def effect(
    text: str,
    protocol: str,
    names: Sequence[str],
    title: str = "",
    graphs: bool = False,
    fold: bool = False,
) -> HTML:
    """What a pass list does to the function `text`: the instruction counts before it, after it and
    after -Oz, the code before and after side by side and, with `graphs`, both graphs.

    With `fold` the line of counts is all that is seen until the reader opens it. Raises
    `InputError` on an unknown pass or protocol, and where LLVM fails on the function.
    """
    names = passes.check(names)
    lists = [(), names, passes.OZ]
    before, after, oz = sandbox.shared().run(text, check_protocol(protocol), lists, text=True)
    for run in (before, oz, after):  # what is wrong with the function itself comes first
        if not run.ok:
            raise InputError(
                f"{passes.format(run.passes)}: {run.status}: {run.message}".lstrip(": ")
            )
    shown = html.escape(passes.format(names)) or "(no passes)"
    counts = (
        f"{f'<strong>{html.escape(title)}</strong>: ' if title else ''}"
        f"<strong>{before.count}</strong> instructions before, <strong>{after.count}</strong> "
        f'({after.count - before.count:+d}) after <span class="list">{shown}</span>, '
        f"<strong>{oz.count}</strong> after -Oz ({protocol})"
    ).replace("(+0)", "(no change)")
    rows = [_sides(before.text, after.text, ("before", "after"))]
    if graphs:
        try:
            rows.append(
                [
                    _graph(run.text, when)
                    for when, run in (("graph before", before), ("graph after", after))
                ]
            )
        except InputError as error:
            rows.append([f"<p>No graph: {html.escape(str(error))}</p>"])
    inner = "".join(f'<div class="llmopt-view">{"".join(row)}</div>' for row in rows)
    if fold:
        return _view(f"<details><summary>{counts}</summary>{inner}</details>")
    return _view(f'<p aria-live="polite">{counts}</p>', inner)


def timeline(text: str, protocol: str, names: Sequence[str]) -> pd.DataFrame:
    """The instruction count after each pass of a list, run over the function `text`.

    Columns `step pass instructions change`; step 0 is the function as it is. Raises `InputError`
    where LLVM fails on the way, with the pass that it failed on.
    """
    import pandas as pd

    names = passes.check(names)
    box = sandbox.shared()
    start = box.run(text, check_protocol(protocol), [()])[0]
    steps = [start, *(box.walk(text, protocol, [names])[0] if names else ())]
    for run in steps:
        if not run.ok:
            raise InputError(f"{passes.format(run.passes)}: {run.status}: {run.message}")
    counts = [run.count for run in steps]
    return pd.DataFrame(
        {
            "step": range(len(counts)),
            "pass": ["(none)", *names],
            "instructions": counts,
            "change": [0] + [b - a for a, b in zip(counts, counts[1:], strict=False)],
        }
    )


def table(
    frame: pd.DataFrame,
    formats: Mapping[str, str] | None = None,
    caption: str | None = None,
    index: bool = False,
) -> Styler:
    """A data frame for reading: numbers to the right with thousands marked, text escaped.

    `formats` maps columns to format strings (`"{:.1f}%"`). With `index` the index becomes the first
    columns. The page's theme sets the colours.
    """
    frame = frame.reset_index(drop=not index)
    styles = {}
    for name in frame.columns:
        side = "right" if frame[name].dtype.kind in "iufb" else "left"
        wrap = ";white-space:nowrap" if len(str(name)) <= 12 else ""
        styles[name] = [
            {"selector": "td", "props": f"text-align:{side};padding:.2em .5em"},
            {"selector": "th", "props": f"text-align:{side};padding:.2em .5em{wrap}"},
        ]
    styler = frame.style.format(formats, na_rep="–", thousands=",", precision=2, escape="html")
    styler = styler.format_index(escape="html", axis=1).hide(axis="index")
    if caption:
        styler = styler.set_caption(caption)
    # An id of its own on a page, the same one in every build.
    key = hashlib.sha256(frame.to_csv().encode()).hexdigest()[:8]
    return styler.set_uuid(key).set_table_attributes('class="dataframe"').set_table_styles(styles)


# Neighbouring tokens differ in shade; letters keep a contrast of 4.5 and more on each.
SHADES = {LIGHT: ("#dcebff", "#ffe8c7", "#dcf3e0"), DARK: ("#1c3a5e", "#4d3611", "#1d4329")}


def show_tokens(pieces: Sequence[str], title: str | None = None) -> HTML:
    """A text cut into tokens, one shade next to another; `↵` is a line end inside a token."""
    if not pieces:
        raise InputError("no tokens to show: pass the pieces of a text")
    spans = "".join(
        f'<span class="tok{i % 3}">{html.escape(piece).replace(chr(10), "↵" + chr(10))}</span>'
        for i, piece in enumerate(pieces)
    )
    rules = [".llmopt-view pre.tokens{white-space:pre-wrap;overflow-wrap:anywhere;padding:.6em}"]
    rules += [".llmopt-view pre.tokens span{border-radius:.2em;padding:.05em 0}"]
    for style, pages in ((LIGHT, ("",)), (DARK, _DARK_PAGES)):
        for page in pages:
            rules += [
                f"{page} .llmopt-view .tok{i}{{background:{shade}}}"
                for i, shade in enumerate(SHADES[style])
            ]
    caption = f"<figcaption>{html.escape(title)}</figcaption>" if title else ""
    body = f'<div class="llmopt-view"><figure>{caption}<pre class="tokens" tabindex="0">{spans}'
    body += "</pre></figure></div>"
    return HTML(f"{_style(body)}<style>{' '.join(rules)}</style>{body}")
