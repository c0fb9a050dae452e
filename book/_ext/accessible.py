"""Mend what the theme and extensions leave for readers with a keyboard or a screen reader.

What cannot be mended here is in `_static/llmopt.css` (contrast) and `_static/llmopt.js` (boxes that
scroll). `tests/test_book.py` asks axe-core about every page.
"""

from __future__ import annotations

from pathlib import Path

# A list holds list items, says ARIA; and an id stands once on a page.
MENDED = {
    'role="doc-biblioentry"': 'role="listitem"',
    ' id="exercise-content"': "",
    ' id="solution-content"': "",
}
FIELD = 'id="search-input"'


def mend(app, pagename, templatename, context, doctree) -> None:
    for found, better in MENDED.items():
        context["body"] = context.get("body", "").replace(found, better)


def mend_search(app, exception) -> None:
    """The page for searching has two fields, its own and that of the dialog, with one id."""
    page = Path(app.outdir) / "search.html"
    if not exception and page.exists():
        page.write_text(page.read_text().replace(FIELD, 'id="search-dialog-input"', 1))


def setup(app) -> dict:
    app.connect("html-page-context", mend)
    app.connect("build-finished", mend_search)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
