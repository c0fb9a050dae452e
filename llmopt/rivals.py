"""What the methods without a language model know: a coreset, its lists' values, policies.

All of it is learned from functions of the train split by compiling them, and small enough to come
with the repository (`models/rivals`): two kinds of perceptrons, as safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from llmopt import autophase, journal, nvp, passes, sandbox
from llmopt import labels as labelling
from llmopt.config import PROTOCOLS, InputError

List = tuple[str, ...]
CORESET = 50  # lists, as many as Coreset-NVP has


@dataclass(frozen=True)
class Rivals:
    """By protocol: the coreset in its order, the values of its lists, and AutoPhase's policy."""

    coreset: Mapping[str, tuple[List, ...]]
    values: Mapping[str, nvp.Values]
    policies: Mapping[str, autophase.Policy]


def coreset(protocol: str) -> tuple[List, ...]:
    """The lists that the released labels' pilot ended in, in greedy order (`labels.coreset`): each
    saves most beyond those before it on the pilot's functions, all of the train split."""
    return labelling.known()[protocol].lists[:CORESET]


def fit(
    functions: pd.DataFrame,
    directory: Path,
    timesteps: int,
    executor: Executor | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Rivals:
    """Learn from functions (columns `id`, `ir`) of the train split; the policies for `timesteps`
    passes each.

    Journalled in `directory`: what each list of the coreset does to each function, and a policy
    that is learned. `on_done` is told of functions under a protocol, and of a policy's steps.
    """
    texts = list(functions.ir)
    lists = {protocol: coreset(protocol) for protocol in PROTOCOLS}
    values, policies = {}, {}
    for protocol in PROTOCOLS:
        items = {row.id: (row.ir, protocol) for row in functions.itertuples()}
        tell = (lambda key, row: on_done(1)) if on_done else None
        with journal.Journal(directory / f"outcomes-{protocol}.sqlite") as done:
            journal.run(done, partial(_run, lists=lists[protocol]), items, executor, tell)
            saved = [done.get(key)["saved"] for key in functions.id]
        table = np.array([[np.nan if s is None else s for s in row] for row in saved], dtype=float)
        values[protocol] = nvp.fit(texts, table, lists[protocol])
        path = directory / f"autophase-{protocol}.safetensors"
        if not path.exists():
            names = autophase.actions(labelling.known()[protocol].lists)
            settings = autophase.Settings(names, timesteps=timesteps)
            autophase.train(texts, protocol, settings, on_step=on_done).save(path)
        policies[protocol] = autophase.load(path)
    return Rivals(lists, values, policies)


def _run(item: tuple[str, str], lists: Sequence[List]) -> dict:
    text, protocol = item
    oz, *runs = sandbox.shared().run(text, protocol, [passes.OZ, *lists])
    return {"saved": [oz.count - run.count if oz.ok and run.ok else None for run in runs]}


def save(known: Rivals, folder: Path) -> None:
    """Two files a protocol; the coreset is the values' lists."""
    for protocol in PROTOCOLS:
        known.values[protocol].save(folder / f"nvp-{protocol}.safetensors")
        known.policies[protocol].save(folder / f"autophase-{protocol}.safetensors")


def load(folder: Path) -> Rivals:
    """Raises `InputError` that names the file if one is missing or damaged."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; `llmopt train --rivals` makes it")
    values = {p: nvp.load(folder / f"nvp-{p}.safetensors") for p in PROTOCOLS}
    policies = {p: autophase.load(folder / f"autophase-{p}.safetensors") for p in PROTOCOLS}
    return Rivals({p: own.lists for p, own in values.items()}, values, policies)
