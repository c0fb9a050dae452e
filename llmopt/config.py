"""Scales, paths and the one error type that users are meant to read.

One dial sets every size in the project: the *scale* (`LLMOPT_SCALE` or `--scale`). Its presets are
the TOML files of `configs/`. This module covers neither the pass space nor model shapes.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import io
import os
import threading
import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PROTOCOLS = ("stripped", "minsize")


class InputError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it."""


@dataclass(frozen=True)
class Scale:
    """Every size that differs between a test run and the paper (DESIGN 6). Units are in the names.

    Budgets are per function and protocol; `train_steps` counts optimizer steps.
    """

    name: str
    # corpus
    max_functions_per_project: int
    max_chars: int  # longer normalised functions are counted and left out before any search
    # autotuner
    released_labels: bool  # take what data/labels.parquet has, search only for the rest
    pilot_functions: int  # searched first; their best lists are where the other searches start
    search_compilations: int
    patience: int  # compilations without a gain after which a search ends
    broadcast_lists: int
    # tokenizer, prompt and model
    vocabulary: int
    max_tokens: int  # prompt plus answer
    code_tokens: int  # the same, for answers that are taught with their code
    code_repeats: int  # how often functions with such answers are shown, for one of the others
    preset: str
    # training
    train_steps: int
    restart: float  # share of the steps that are a second cycle of the learning rate
    tokens_per_batch: int
    learning_rate: float
    # evaluation
    valid_functions: int
    test_functions: int
    generate_functions: int  # functions whose code the model writes out in full
    max_new_tokens: int
    compare_functions: int  # test functions on which methods may try several lists
    rival_functions: int  # train functions that those without a language model learn from
    policy_steps: int  # of AutoPhase's policy, in passes run


def home() -> Path:
    """The ignored folder below which everything made at run time goes (`LLMOPT_HOME`)."""
    return Path(os.environ.get("LLMOPT_HOME") or ROOT / "build")


def nearest(word: str, known: object) -> str:
    """' (did you mean X?)' for an unknown word, or nothing."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" (did you mean {match[0]!r}?)" if match else ""


def check_protocol(protocol: str) -> str:
    if protocol not in PROTOCOLS:
        raise InputError(
            f"unknown protocol {protocol!r}{nearest(protocol, PROTOCOLS)}: "
            f"use one of {', '.join(PROTOCOLS)}"
        )
    return protocol


def scale(name: str | None = None) -> Scale:
    """The preset `name`, or that of `LLMOPT_SCALE`, or `classroom`.

    Raises `InputError` on an unknown name and on a preset file with missing or foreign keys.
    """
    name = name or os.environ.get("LLMOPT_SCALE") or "classroom"
    known = sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))
    if name not in known:
        raise InputError(
            f"unknown scale {name!r}{nearest(name, known)}: use one of {', '.join(known)}"
        )
    path = ROOT / "configs" / f"{name}.toml"
    values = tomllib.loads(path.read_text())
    expected = {field.name for field in fields(Scale)} - {"name"}
    if set(values) != expected:
        odd = ", ".join(sorted(expected.symmetric_difference(values)))
        raise InputError(f"{path}: missing or unknown keys: {odd}; compare with classroom.toml")
    return Scale(name=name, **values)


def write_atomic(path: Path, data: bytes) -> None:
    """Write all of `data` or nothing: readers and killed runs never see half a file. What is no
    regular file (a device, a pipe) is written to, not replaced."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table as parquet, all of it or nothing."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    write_atomic(path, buffer.getvalue())


def _code(module: str) -> ast.Module:
    tree = ast.parse((ROOT / "llmopt" / f"{module}.py").read_text())
    for node in ast.walk(tree):  # prose about the code does not change what the code makes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return tree


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "llmopt":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmopt."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("llmopt.")}
    return {name for name in names if (ROOT / "llmopt" / f"{name}.py").exists()}


@lru_cache
def _closure(modules: tuple[str, ...]) -> str:
    seen: dict[str, str] = {}
    queue = list(modules)
    while queue:
        module = queue.pop()
        if module not in seen:
            tree = _code(module)
            seen[module] = ast.dump(tree)
            queue += _imports(tree) - {"config"}  # sizes and paths: their values are in the keys
    return hashlib.sha256("".join(f"{m}\n{seen[m]}\n" for m in sorted(seen)).encode()).hexdigest()


def fingerprint(*modules: str) -> str:
    """Sha256 over the code of the named llmopt modules and of all they import, comments and
    docstrings aside: what a cached artefact or an executed page depends on."""
    return _closure(tuple(sorted(set(modules))))
