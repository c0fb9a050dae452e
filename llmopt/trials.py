"""Methods that try several lists a function, and what each further compilation brings.

`evaluate` asks for one list and takes it. Here a method names lists in an order, all are compiled,
and the best so far is kept: instructions saved against compilations spent. The cheap ways come
first: lists at random, and a *coreset*, a few lists that together serve most functions. Then those
who choose by looking at the code: by learned values (`nvp`), by reinforcement learning
(`autophase`), and the language model (`propose`), by weighing lists that it knows and by sampling.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from llmopt import (
    autophase,
    autotune,
    config,
    evaluate,
    journal,
    metrics,
    passes,
    pipeline,
    propose,
    rivals,
    sandbox,
)
from llmopt.config import PROTOCOLS, InputError, nearest

List = tuple[str, ...]
# How many lists each method tries. Random lists and the coreset are as many as are worth a curve;
# 45 is what the paper allows its rivals (Table III).
MOST = {
    "random": 100,
    "coreset": rivals.CORESET,
    "coreset-nvp": 45,
    "autophase": autophase.Settings.length,
    "model": 32,
    "priority": 32,
    "nucleus": 32,
}
RIVALS = config.ROOT / "models" / "rivals"  # what comes with the repository


@dataclass(frozen=True)
class Trials:
    """`steps`: a row whenever a method finds something better (`id protocol method tried count`,
    the instructions left by the best of the first `tried` lists). `spent`: a row a function,
    protocol and method (`oz`, `tried` in all, `choosing` and `compiling` in seconds)."""

    steps: pd.DataFrame
    spent: pd.DataFrame


def check(methods: str) -> tuple[str, ...]:
    """The methods that a comma-separated text names ("all" for all), in the order of `MOST`.

    Raises `InputError` on an unknown one."""
    named = [name.strip() for name in methods.split(",")] if methods != "all" else list(MOST)
    for name in named:
        if name not in MOST:
            known = ", ".join(MOST)
            raise InputError(f"unknown method {name!r}{nearest(name, MOST)}: use some of {known}")
    return tuple(name for name in MOST if name in named)


def compare(
    functions: pd.DataFrame,
    methods: Sequence[str],
    known: rivals.Rivals,
    folder: Path | None,
    directory: Path,
    protocols: Sequence[str] = PROTOCOLS,
    executor: Executor | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Trials:
    """Run methods on functions (columns `id`, `ir`), each with as many lists as `MOST` says.

    `folder` is the model's. Journalled in `directory`. A list on which LLVM fails costs a
    compilation and finds nothing. Functions that LLVM does not take, or on which -Oz fails, are
    left out. `on_done` is told of questions, a function under a protocol, as they are done with.
    """
    functions = functions.drop_duplicates("id")
    if functions.empty or not methods:
        raise InputError("nothing to compare: give functions and at least one method")
    said = {
        method: propose.proposals(folder, method, functions, protocols, directory, MOST[method])
        for method in methods
        if method in propose.METHODS
    }
    items = {}
    for row in functions.itertuples():
        for protocol in protocols:
            asked = {method: own[row.id, protocol] for method, own in said.items()}
            items[f"{protocol}:{row.id}"] = (row.id, row.ir, protocol, asked)
    own = tuple(method for method in methods if method not in propose.METHODS)
    with journal.Journal(directory / f"trials-{'-'.join([*protocols, *methods])}.sqlite") as done:
        tell = (lambda key, row: on_done(1)) if on_done else None
        journal.run(done, partial(_try, methods=own, known=known), items, executor, tell)
        found = {key: done.get(key) for key in items}
    steps, spent = [], []
    for key, row in found.items():
        protocol, function = key.split(":")
        for method, one in row.get("methods", {}).items():
            at = {"id": function, "protocol": protocol, "method": method}
            steps += [at | {"tried": k, "count": count} for k, count in one["steps"]]
            spent.append(at | {"oz": row["oz"]} | {n: one[n] for n in _SPENT})
    if not spent:
        raise InputError("no function that LLVM can optimise: nothing to compare on")
    columns = ["id", "protocol", "method", "tried", "count"]
    return Trials(pd.DataFrame(steps, columns=columns), pd.DataFrame(spent))


_SPENT = ("tried", "choosing", "compiling")


def _try(item: tuple[str, str, str, dict], methods: Sequence[str], known: rivals.Rivals) -> dict:
    """All methods on one function: `{"oz": ..., "methods": {method: steps and costs}}`."""
    key, text, protocol, asked = item
    box = sandbox.shared()
    oz, untouched = box.run(text, protocol, [passes.OZ, ()])  # AutoPhase begins with nothing done
    for run in (oz, untouched):
        if not run.ok:
            return {"error": f"{run.status}: {run.message}"}
    lists = {method: ([passes.parse(one) for one in own], s) for method, (own, s) in asked.items()}
    for method in methods:
        if method != "autophase":
            started = time.perf_counter()
            chosen = _choose(method, key, text, protocol, known)
            lists[method] = chosen, time.perf_counter() - started
    # Each list once, whoever names it.
    unique = list(dict.fromkeys(names for own, _ in lists.values() for names in own))
    started = time.perf_counter()
    runs = dict(zip(unique, box.run(text, protocol, unique), strict=True))
    each = (time.perf_counter() - started) / max(1, len(unique))
    out = {}
    for method, (own, seconds) in lists.items():
        counts = [runs[names].count if runs[names].ok else None for names in own]
        out[method] = _row(counts, seconds, each * len(own))
    if "autophase" in methods:
        started = time.perf_counter()
        walk = known.policies[protocol].walk(text, protocol)
        between = time.perf_counter()
        steps = box.walk(text, protocol, [walk])[0]  # every prefix is a list that it tried
        counts = [run.count if run.ok else None for run in steps]
        out["autophase"] = _row(counts, between - started, time.perf_counter() - between)
    return {"oz": oz.count, "methods": out}


def _choose(method: str, key: str, text: str, protocol: str, known: rivals.Rivals) -> list[List]:
    if method == "random":
        rng = random.Random(f"{key}:{protocol}:trials")
        return [autotune.random_list(rng) for _ in range(MOST[method])]
    if method == "coreset":
        return list(known.coreset[protocol])
    return known.values[protocol].rank(text)[: MOST[method]]


def _row(counts: Sequence[int | None], choosing: float, compiling: float) -> dict:
    steps: list[list[int]] = []
    for tried, count in enumerate(counts, start=1):
        if count is not None and (not steps or count < steps[-1][1]):
            steps.append([tried, count])
    times = {"choosing": round(choosing, 6), "compiling": round(compiling, 6)}
    return {"steps": steps, "tried": len(counts)} | times


# --- the current scale's own ---------------------------------------------------------------------


def known() -> rivals.Rivals:
    """What the rivals know: as released, else learned from the current scale's train split."""
    return rivals.load(rivals_folder())


def rivals_folder(anew: bool = False) -> Path:
    """Where what the rivals know is: as released, unless `anew`; else learned from the current
    scale's train split, at first use."""
    if RIVALS.is_dir() and not anew:
        return RIVALS
    scale = config.scale()
    rows = pipeline.functions()
    rows = rows[rows.split == "train"].head(scale.rival_functions)  # ids are hashes: a sample
    folder = pipeline.stage("rivals", ("rivals",), (tuple(rows.id), scale.policy_steps))
    with pipeline.alone(folder):
        if not (folder / "made").exists():
            total = len(PROTOCOLS) * (len(rows) + scale.policy_steps)
            with journal.workers() as pool, tqdm(total=total, desc="rivals", unit="step") as bar:
                rivals.save(rivals.fit(rows, folder, scale.policy_steps, pool, bar.update), folder)
            (folder / "made").touch()
    return folder


def directory(folder: Path, functions: pd.DataFrame) -> Path:
    """Where trials of functions by the model in `folder` and by `known` are journalled."""
    digests = pipeline.model_digest(folder), pipeline.model_digest(rivals_folder())
    return pipeline.stage("trials", ("trials",), (*digests, tuple(functions.id)))


def test_split(folder: Path | None = None, methods: Sequence[str] = tuple(MOST)) -> Trials:
    """Methods on the first of the scale's test functions, under both protocols: made once, and
    shared by all that show it. `folder` is the model's, by default the current scale's."""
    scale, folder = config.scale(), folder or pipeline.model()
    rows, _ = evaluate.test_functions(folder)
    rows = rows[rows.id.isin(pipeline.labels().id)].head(scale.compare_functions)
    journalled = directory(folder, rows)
    made = journalled / "-".join(methods)
    with pipeline.alone(journalled):
        if not (made / "spent.parquet").exists():  # written last
            total = len(PROTOCOLS) * len(rows)
            with (
                journal.workers() as pool,
                tqdm(total=total, desc="compare", unit="question") as bar,
            ):
                tried = compare(
                    rows,
                    methods,
                    known(),
                    folder,
                    journalled,
                    PROTOCOLS,
                    pool,
                    bar.update,
                )
            write(tried, made)
    return read(made)


def write(trials: Trials, folder: Path) -> None:
    """`steps.parquet` and `spent.parquet`, the latter last."""
    for name in ("steps", "spent"):
        config.write_parquet(folder / f"{name}.parquet", getattr(trials, name))


def read(folder: Path) -> Trials:
    return Trials(*(pd.read_parquet(folder / f"{name}.parquet") for name in ("steps", "spent")))


def differences(
    tried: Trials, functions: pd.DataFrame, known: rivals.Rivals, directory: Path
) -> pd.DataFrame:
    """Compare recorded trials with new ones of `functions` (columns `id`, `ir`) that are in them,
    by all methods that ask no model: the steps that only one of the two has."""
    methods = [name for name in dict.fromkeys(tried.spent.method) if name not in propose.METHODS]
    functions = functions[functions.id.isin(tried.spent.id)]
    made = compare(functions, methods, known, None, directory).steps
    old = tried.steps[tried.steps.id.isin(functions.id) & tried.steps.method.isin(methods)]
    return pd.concat([old, made]).drop_duplicates(keep=False)


# --- sums ----------------------------------------------------------------------------------------


def bests(trials: Trials, protocol: str, method: str, most: int | None = None) -> pd.DataFrame:
    """Instructions left by the best of the first k lists, a row a function (index `id`) and a
    column a k from 1 to `most`; -Oz's count where none of them worked."""
    spent = _own(trials.spent, protocol, method).set_index("id")
    if spent.empty:
        raise InputError(f"no trials of {method} under {protocol}: run `llmopt evaluate --methods`")
    steps = _own(trials.steps, protocol, method)
    table = steps.pivot(index="id", columns="tried", values="count")
    table = table.reindex(index=spent.index, columns=range(1, (most or MOST[method]) + 1))
    return table.ffill(axis=1).apply(lambda column: column.fillna(spent.oz)).astype(int)


def _own(rows: pd.DataFrame, protocol: str, method: str) -> pd.DataFrame:
    return rows[(rows.protocol == protocol) & (rows.method == method)]


def curves(trials: Trials, backup: bool) -> pd.DataFrame:
    """Columns `protocol method tried compilations percent`: improvement over -Oz (percent) after so
    many lists, and the mean number of compilations a function that they took, -Oz's included where
    it is kept as `backup`."""
    rows = []
    for protocol, method in _pairs(trials):
        spent = _own(trials.spent, protocol, method).set_index("id")
        table = bests(trials, protocol, method)
        for k in range(1, min(table.columns[-1], int(spent.tried.max())) + 1):
            left = np.minimum(table[k], spent.oz) if backup else table[k]
            rows.append(
                {
                    "protocol": protocol,
                    "method": method,
                    "tried": k,
                    "compilations": float(np.minimum(spent.tried, k).mean()) + backup,
                    "percent": 100 * float((spent.oz - left).sum() / spent.oz.sum()),
                }
            )
    return pd.DataFrame(rows)


def _pairs(trials: Trials) -> list[tuple[str, str]]:
    known = set(zip(trials.spent.protocol, trials.spent.method, strict=True))
    order = list(MOST)
    return sorted(known, key=lambda pair: (PROTOCOLS.index(pair[0]), order.index(pair[1])))


def table(trials: Trials, at: Sequence[int] = (1, 8, 100), draws: int = 1000) -> pd.DataFrame:
    """Improvement over -Oz (percent, bootstrap 95% intervals over functions) after the first lists
    of each method, as many as `at` says or as it has, with and without -Oz backup."""
    rows = []
    for protocol, method in _pairs(trials):
        spent = _own(trials.spent, protocol, method).set_index("id")
        left = bests(trials, protocol, method)
        most = int(spent.tried.max())
        seconds = (spent.choosing.mean(), spent.compiling.mean() / max(1.0, spent.tried.mean()))
        for k in sorted({min(k, most) for k in at}):
            plain = metrics.outcome(spent.oz, left[k], n=draws)
            backup = metrics.with_backup(spent.oz, left[k])
            rows.append(
                {
                    "protocol": protocol,
                    "method": method,
                    "tried": k,
                    "compilations": float(np.minimum(spent.tried, k).mean()),
                    "seconds_choosing": float(seconds[0]),
                    "seconds_compiling": float(seconds[1] * np.minimum(spent.tried, k).mean()),
                }
                | asdict(plain)
                | {
                    "with_oz_backup": metrics.improvement(spent.oz, backup),
                    "with_oz_backup_interval": metrics.interval(spent.oz, backup, n=draws),
                }
            )
    return pd.DataFrame(rows)


def versus(trials: Trials, protocol: str, one: tuple[str, int], other: tuple[str, int]) -> dict:
    """By how much method and lists `one` (`("priority", 8)`) are better than `other` on the same
    functions, with -Oz backup: percentage points, with their interval over functions."""
    tables = [
        np.minimum(bests(trials, protocol, m)[k], _oz(trials, protocol)) for m, k in (one, other)
    ]
    oz = _oz(trials, protocol)
    value, low, high = metrics.difference(oz, *(table.reindex(oz.index) for table in tables))
    return {"points": value, "ci95": [low, high]}


def _oz(trials: Trials, protocol: str) -> pd.Series:
    rows = trials.spent[trials.spent.protocol == protocol].drop_duplicates("id")
    return rows.set_index("id").oz
