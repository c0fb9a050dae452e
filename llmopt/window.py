"""The context window: which functions do not fit, and what a longer one would buy (paper, limits).

A window of so many tokens has to hold the prompt and whatever is to be written. What a longer one
buys is measured by what lies beyond the shorter: functions, their instructions, and what a fixed
set of lists saves on them, best list a function. The set, a coreset, is the same for long functions
and short ones; a search would find more on both. Functions that are too long even for the corpus
are read from the sources again (`beyond`), so that what does not fit is not left out of the count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from llmopt import extract, ir, journal, passes, prompt, sandbox, sources
from llmopt.config import PROTOCOLS, InputError
from llmopt.prompt import Example
from llmopt.tokenizer import Tokenizer

WINDOWS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # tokens
MEASURES = ("functions", "instructions", "gain")
List = tuple[str, ...]


# --- measuring ---------------------------------------------------------------------------------


def beyond(
    chosen: Sequence[sources.Source],
    limit: int,
    directory: Path,
    executor: Executor | None = None,
    on_done: Callable[[str, dict], None] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Functions of the sources whose normalised IR has more than `limit` characters, without
    near-duplicates (columns `id project suite ir unoptimised`, ordered by id), and the names of
    sources that cannot be had now. Journalled in `directory`."""
    tasks, owner, missing = {}, {}, []
    for source in chosen:
        try:
            root = sources.obtain(source)
        except sources.MissingSourceError:
            missing.append(source.name)
            continue
        for file in source.list_files(root):
            options = (source.includes, source.defines, source.flags)
            key = f"{source.name}-{source.version}/{file}:{limit}"
            tasks[key], owner[key] = extract.Task(str(root), file, *options), source
    with journal.Journal(directory / "beyond.sqlite") as done:
        journal.run(done, partial(_long, limit=limit), tasks, executor, on_done)
        found = [
            (owner[key], text, count) for key in tasks for text, count in done.get(key)["long"]
        ]
    rows = [
        (ir.function_id(text), source.name, source.suite, text, count, ir.structural_hash(text))
        for source, text, count in found
    ]
    columns = ["id", "project", "suite", "ir", "unoptimised", "structure"]
    table = pd.DataFrame(rows, columns=columns).drop_duplicates("structure")
    return table.drop(columns="structure").sort_values("id", ignore_index=True), missing


def _long(task: extract.Task, limit: int) -> dict:
    made = extract.read_file(task)["functions"]
    return {"long": [(text, count) for _, text, count in made if len(text) > limit]}


def lengths(example: Example, tok: Tokenizer) -> tuple[int, int]:
    """Tokens of the prompt, and of the whole answer that is to be learned."""
    ids, of_prompt = prompt.encode(example, tok)
    return of_prompt, len(ids) - of_prompt


def of_example(example: Example, tok: Tokenizer) -> dict:
    """The row of a labelled function: `id protocol characters unoptimised prompt answer oz coreset
    best`. `coreset` are the instructions that the best list of the coreset leaves, or -Oz; `best`
    what the label's list leaves."""
    of_prompt, of_answer = lengths(example, tok)
    saved = max((gain for _, gain in example.gains), default=0)
    return {
        "id": example.id,
        "protocol": example.protocol,
        "characters": len(example.ir),
        "unoptimised": example.before,
        "prompt": of_prompt,
        "answer": of_answer,
        "oz": example.oz,
        "coreset": example.oz - max(saved, 0),
        "best": example.after,
    }


def of_long(
    text: str, before: int, tok: Tokenizer, lists: Mapping[str, Sequence[List]] | None
) -> list[dict]:
    """The rows of a function without label, a row a protocol, as `of_example` but for `best`. Its
    answer is -Oz's, in LLVM's numbers instead of the prompt's, which are about as many tokens.
    Without `lists`, `coreset` is missing. A protocol under which -Oz fails has no row."""
    rows = []
    for protocol in PROTOCOLS:
        box = sandbox.shared()
        oz = box.run(text, protocol, [passes.OZ], text=True)[0]
        if not oz.ok:
            continue
        key = ir.function_id(text)
        example = Example(key, protocol, text, passes.OZ, before, oz.count, oz.text, oz.count)
        least = None
        if lists:
            others = box.run(text, protocol, lists[protocol])
            least = min([oz.count, *(run.count for run in others if run.ok)])
        rows.append(of_example(example, tok) | {"coreset": least, "best": None})
    return rows


# --- what the measurements say -----------------------------------------------------------------


def shares(
    rows: pd.DataFrame,
    tokens: pd.Series,
    windows: Sequence[int] = WINDOWS,
    weights: pd.Series | None = None,
    seed: int = 0,
    draws: int = 300,
) -> pd.DataFrame:
    """What lies in functions of more than so many `tokens`, in percent of all functions, of all
    unoptimised instructions, and of all that the coreset saves over -Oz (`MEASURES`): a row a
    window and measure, `window measure percent low high`, the last a 95% interval over functions.

    Functions whose gain is not known count in the first two; `weights` are the functions that each
    of the others stands for (`weigh`). Raises `InputError` on no functions.
    """
    if rows.empty:
        raise InputError("no functions to measure the window on: pass at least one")
    gain = (rows.oz - rows.coreset).astype(float)
    gain = (gain * (1.0 if weights is None else weights)).fillna(0.0)
    parts = np.column_stack([np.ones(len(rows)), rows.unoptimised.astype(float), gain])
    outside = tokens.to_numpy()[:, None] > np.asarray(windows)
    # How often each function is drawn, with its rows of both protocols; the first time, once each.
    function, ids = pd.factorize(rows.id)
    drawn = np.random.default_rng(seed).poisson(1.0, (draws, len(ids)))[:, function]
    drawn = np.vstack([np.ones(len(rows)), drawn])
    found = []
    for name, part in zip(MEASURES, parts.T, strict=True):
        whole = np.maximum(drawn @ part, 1e-9)
        share = 100 * (drawn @ (part[:, None] * outside)) / whole[:, None]
        low, high = np.percentile(share[1:], [2.5, 97.5], axis=0)
        found += zip(windows, [name] * len(windows), share[0], low, high, strict=True)
    return pd.DataFrame(found, columns=["window", "measure", "percent", "low", "high"])


def weigh(rows: pd.DataFrame, strata: pd.Series) -> pd.Series:
    """How many functions each row whose gain is known stands for, where gains were measured on a
    uniform sample of each of the `strata`; 0 for the others."""
    known = rows.coreset.notna()
    size = strata.groupby(strata).transform("size")
    return (size / known.groupby(strata).transform("sum")).where(known, 0.0)
