"""Serve MathJax from the book itself, so that equations work with no internet.

MathJax 3 comes from the Python package `django-static-mathjax`, of which only the plain files are
used; they are copied at build time and never committed.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path


def copy_mathjax(app, exception) -> None:
    target = Path(app.outdir) / "_static" / "mathjax"
    if exception or app.builder.format != "html" or target.exists():
        return
    package = Path(find_spec("mathjax").origin).parent / "static" / "mathjax"
    shutil.copytree(package / "es5", target)
    shutil.copy(package / "LICENSE", target)


def setup(app) -> dict:
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
