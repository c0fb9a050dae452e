"""Run a notebook again when the code, the scale or the data behind it changes.

jupyter-cache finds an executed notebook by a hash of its code cells and its kernelspec, so a page
would stay as it was after an edit in `llmopt/`. This extension puts one more key into the
kernelspec when Sphinx reads the notebook, which makes it part of that hash, and tells Sphinx which
pages have a new key. The old outputs stay: going back to an earlier state or scale runs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path

from llmopt import config

# Files that any page may read. A change in one of them runs every page again.
SHARED = ("requirements.lock", "configs", "data", "results", "models")


def modules(notebook: dict) -> set[str]:
    """The llmopt modules that a notebook imports. `!llmopt ...` counts as importing `cli`,
    `%load_ext llmopt.magic` as importing that; a cell that opens with `%%` is no Python."""
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    code = "\n".join(cell for cell in cells if not cell.startswith("%%"))
    found = set(re.findall(r"^%load_ext llmopt\.(\w+)", code, re.M))
    if re.search(r"^\s*[!%](?!load_ext).*\bllmopt\b", code, re.M):
        found.add("cli")
    plain = re.sub(r"^(\s*)[!%].*$", r"\1pass", code, flags=re.M)
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.ImportFrom) and node.module == "llmopt":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmopt."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("llmopt.")}
    return {name for name in found if (config.ROOT / "llmopt" / f"{name}.py").exists()}


def shared_digest(root: Path) -> str:
    """Sha256 over names and bytes of the `SHARED` files below `root`."""
    digest = hashlib.sha256()
    for name in SHARED:
        top = root / name
        for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def page_key(app, docname: str) -> str | None:
    """What a page depends on besides its own cells; None for a page without code."""
    path = Path(app.env.doc2path(docname))
    if path.suffix != ".ipynb":
        return None
    if not hasattr(app, "llmopt_shared"):
        app.llmopt_shared = config.scale().name + shared_digest(config.ROOT)
    try:
        used = config.fingerprint(*modules(json.loads(path.read_text())))
    except SyntaxError:  # running the cell tells the author more than we can
        used = "unreadable"
    return hashlib.sha256((app.llmopt_shared + used).encode()).hexdigest()


def outdated(app, env, added, changed, removed) -> list[str]:
    keys = getattr(env, "llmopt_keys", {})
    return [doc for doc in env.found_docs if page_key(app, doc) != keys.get(doc)]


def add_key(app, docname: str, source: list[str]) -> None:
    key = page_key(app, docname)
    if key is None:
        return
    notebook = json.loads(source[0])
    kernel = {"name": "python3", "display_name": "Python 3"}
    kernel |= notebook["metadata"].get("kernelspec", {})
    notebook["metadata"]["kernelspec"] = kernel | {"llmopt_key": key}
    source[0] = json.dumps(notebook)
    if not hasattr(app.env, "llmopt_keys"):
        app.env.llmopt_keys = {}
    app.env.llmopt_keys[docname] = key


def setup(app) -> dict:
    app.connect("env-get-outdated", outdated)
    app.connect("source-read", add_key)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
