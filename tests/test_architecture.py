"""The package is a ladder: imports point strictly down, and the top of it loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
import time

import pytest

from llmopt.config import ROOT

RANKS = (
    {"config", "console", "passes", "ir", "metrics", "journal", "worker"},
    {"llvm", "frontend", "sources", "tables", "tokenizer", "checkpoints", "scaling", "graph"}
    | {"arithmetic"},
    {"sandbox", "naming", "model"},
    {"prompt", "grammar"},
    {"extract", "autotune", "dataset", "generate", "judge", "plan"},
    {"corpus", "train", "choose", "baselines", "autophase", "labels", "sampling", "semantics"}
    | {"objects", "window"},
    {"validation", "nvp", "propose"},
    {"rivals"},
    {"pipeline", "evaluate", "plots", "display", "headroom", "inventory"},
    {"plots_results", "plots_limits", "records", "trials", "claims"},
    {"release", "bench", "magic", "playground", "opening"},
    {"cli"},
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# Within their rank these serve all others; they import nothing of it themselves.
BASE = {"config", "journal"}
MODULES = sorted(path.stem for path in (ROOT / "llmopt").glob("*.py") if path.stem != "__init__")
HEAVY = ("torch", "llvmlite", "transformers", "pandas", "numpy", "matplotlib")


def imports(module: str) -> set[str]:
    """The llmopt modules that `module` imports anywhere, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "llmopt" / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import, write `from llmopt import ...`"
            if node.module == "llmopt":
                found |= {alias.name for alias in node.names}
            elif (node.module or "").startswith("llmopt."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("llmopt.")}
    return found & set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    assert module in RANK, f"llmopt/{module}.py has no rank yet: add it to RANKS"
    for other in imports(module) & set(RANK):
        down = RANK[other] < RANK[module]
        base = RANK[other] == RANK[module] == 0 and other in BASE and module not in BASE
        base = base or (module, other) == ("journal", "config")
        # The top rank below the command line: pages may build on the pipeline, not the reverse.
        served = other == "pipeline" and RANK[module] == RANK["pipeline"]
        assert down or base or served, f"llmopt/{module}.py must not import {other}"


def loaded(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter holds after `code`."""
    probe = f"{code}\nimport sys; print('LOADED', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("LOADED")[-1].split())


def test_import_is_light():
    assert loaded("import llmopt") == set()


def test_help_is_light():
    code = (
        "import sys; sys.argv = ['llmopt', '--help']\n"
        "from llmopt.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
    )
    assert loaded(code) == set()


def seconds(*arguments: str) -> float:
    """The best of five runs of a fresh interpreter: the least that other work adds to."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best


def test_import_and_help_cost_under_a_fifth_of_a_second():
    bare = seconds("-c", "pass")
    assert seconds("-c", "import llmopt") - bare < 0.2
    assert seconds("-m", "llmopt.cli", "--help") - bare < 0.2


@pytest.mark.parametrize("module", sorted(RANKS[0]))
def test_the_bottom_rank_needs_neither_llvm_nor_torch(module):
    assert not loaded(f"import llmopt.{module}") & {"torch", "llvmlite", "transformers"}
