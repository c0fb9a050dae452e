"""Keep the book whole without internet: MathJax is served locally, remote scripts are dropped.

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


def drop_thebe(app, pagename, templatename, context, doctree) -> None:
    """Jupyter Book always adds Thebe (kernels elsewhere, from a CDN); nothing here uses it."""
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in f"{s}{s.attributes}".lower()]


def setup(app) -> dict:
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
