"""Each notebook is a page that teaches: form, exercises, figures, and nothing that hides work."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from llmopt.config import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
LONGEST_HELPER = 12  # lines; anything longer belongs in the package


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> dict:
    content = json.loads(request.param.read_text())
    for cell in content["cells"]:
        cell["text"] = "".join(cell["source"])
    return content | {"path": request.param}


def code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def prose(notebook: dict) -> str:
    return "\n\n".join(c["text"] for c in notebook["cells"] if c["cell_type"] == "markdown")


def tree(notebook: dict) -> ast.Module:
    # A cell that opens with %% is another language's (%%passes: C).
    text = "\n".join(c["text"] for c in code(notebook) if not c["text"].startswith("%%"))
    return ast.parse(re.sub(r"^(\s*)[!%].*$", r"\1pass", text, flags=re.M))


def public_names() -> set[str]:
    """Every function and class that some llmopt module has at its top."""
    names = set()
    for path in (ROOT / "llmopt").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                names.add(node.name)
    return names


def test_every_notebook_is_a_page():
    chapters = [c["file"] for part in TOC["parts"] for c in part["chapters"]]
    listed = [name for name in chapters if name.startswith("notebooks/")]
    assert listed == [f"notebooks/{path.stem}" for path in NOTEBOOKS]
    assert NOTEBOOKS


def test_outputs_are_stripped(notebook):
    for cell in code(notebook):
        assert not cell["outputs"] and cell["execution_count"] is None, cell["text"][:80]
    assert "widgets" not in notebook["metadata"]


def test_cells_have_steady_ids(notebook):
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_opens_with_title_aims_and_time(notebook):
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \S", first["text"]), "the first cell starts with the page's title"
    assert len(re.findall(r"^# ", prose(notebook), re.M)) == 1, "one title a page"
    assert "```{admonition} What you will learn" in first["text"]
    assert re.search(r"^\*\*Time:\*\* \S", first["text"], re.M)


def test_installs_nothing_and_finds_the_package_by_itself(notebook):
    for cell in code(notebook):
        assert not re.search(r"\b(pip3?|conda|uv|apt(-get)?)\s+install\b", cell["text"])
        assert not re.search(r"sys\.path|PYTHONPATH|importlib\.reload|%run\b", cell["text"])


def test_uses_the_package(notebook):
    used = set()
    for node in ast.walk(tree(notebook)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and "*" not in {a.name for a in node.names}
            used.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            used |= {alias.name.split(".")[0] for alias in node.names}
    assert "llmopt" in used or any("!llmopt" in cell["text"] for cell in code(notebook))


def test_defines_nothing_that_the_package_has(notebook):
    for node in ast.walk(tree(notebook)):
        assert not isinstance(node, ast.ClassDef), f"class {node.name} belongs in llmopt"
        if isinstance(node, ast.FunctionDef):
            assert node.name not in public_names(), f"{node.name} exists in llmopt: import it"
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_HELPER, f"{node.name} ({length} lines) belongs in llmopt"


def test_has_a_figure_and_says_in_words_what_it_shows(notebook):
    alts = []
    for cell in code(notebook):
        shown = cell["metadata"].get("mystnb", {})
        if "figure" in shown or "image" in shown:
            alts.append(shown.get("image", {}).get("alt", ""))
        draws = re.search(r"\bplt\.show\(|\bplots\.\w+\(", cell["text"])
        assert "image" in shown or not draws, f"no alt text: {cell['text'][:80]}"
    assert alts, "no cell has mystnb.image.alt in its metadata"
    assert all(len(alt) >= 20 for alt in alts), "alt text says what the figure shows"


def test_has_exercises_with_folded_solutions(notebook):
    text = prose(notebook)
    label = r"\s[^\n]*\n:label: (ex-[\w-]+)"
    exercises = re.findall(r"\{exercise(?:-start)?\}" + label, text)
    folded = r"\s+(ex-[\w-]+)\n(?:(?!```).*\n)*?:class: dropdown"
    solutions = re.findall(r"\{solution(?:-start)?\}" + folded, text)
    assert len(exercises) >= 2
    assert sorted(exercises) == sorted(solutions)
    number = Path(notebook["path"]).stem[:2]
    assert all(name.startswith(f"ex-{number}-") for name in exercises)


MARK = re.compile(r":label: (ex-[\w-]+)\n\n\*(Easy|Medium|Hard) · (open, )?(code|in words)\*\n\n")


def solutions(notebook: dict) -> dict[str, list[str]]:
    """The code cells of each gated solution, by the exercise's label."""
    found, label = {}, ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            found.setdefault(label, []).append(cell["text"])
        else:  # a cell of text may close one solution and open another
            for kind, name in re.findall(
                r"\{solution-(start|end)\}(?:\s+(ex-[\w-]+))?", cell["text"]
            ):
                label = name if kind == "start" else ""
    found.pop("", None)
    return found


def test_exercises_say_how_hard_and_of_what_kind_they_are(notebook):
    """A solution of code runs with its page, and `test_book.py` sees to it; others hold none."""
    text = prose(notebook)
    marked = {label: way for label, _, _, way in MARK.findall(text)}
    assert sorted(marked) == sorted(re.findall(r":label: (ex-[\w-]+)", text))
    assert {label for label, way in marked.items() if way == "code"} == set(solutions(notebook))
    for plain in re.findall(r"```\{solution\}.*?\n```\n?", text, re.S):
        assert "python" not in plain, "code in a solution stands in a cell, where it runs"


def test_some_exercises_go_beyond_the_paper():
    assert sum(path.read_text().count(" · open, ") for path in NOTEBOOKS) >= 3


def test_its_page_runs_again_when_the_package_changes(notebook, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    import keyed_cache

    used = keyed_cache.modules(notebook)
    assert used, "no module of llmopt is seen in its code"
    assert ("magic" in used) == any("%load_ext llmopt.magic" in c["text"] for c in code(notebook))
