"""Labels: what the autotuner found for each function of a corpus, made comparable and canonical.

A pilot sample is searched from nothing; the others start from a coreset of the pilot's best lists;
the lists that most searches ended in are broadcast to all functions (paper, Section II-B); and of
the equally good lists of a function the canonical one is kept (DESIGN 7). All of it is journalled.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
from pyarrow import parquet

from llmopt import autotune, config, journal, llvm, passes, sandbox
from llmopt.config import PROTOCOLS, InputError, write_atomic

RELEASED = config.ROOT / "data" / "labels.parquet"
KNOWN = config.ROOT / "data" / "lists.json"  # the coreset that the released labels started from
COLUMNS = {
    "id": "string",
    "protocol": "string",
    "unoptimised": "int32",
    "oz": "int32",
    "best": "int32",
    "passes": "string",
    "compilations": "int32",
    "coreset": "object",
    "llvm": "string",
}
_COUNTS = pyarrow.list_(pyarrow.int16())  # of `coreset`: by list, less those after -Oz, or null


@dataclass(frozen=True)
class Known:
    """Lists that won in a pilot: the first `start` are a coreset, to be tried first; all teach the
    search what follows what."""

    lists: tuple[tuple[str, ...], ...] = ()
    start: int = 0

    @property
    def coreset(self) -> list[str]:
        return [passes.format(names) for names in self.lists[: self.start]]


def known(path: Path = KNOWN) -> dict[str, Known]:
    """The lists beside labels (`known.json`), or those of the released labels, by protocol."""
    try:
        value = json.loads(path.read_text())
        return {
            protocol: Known(tuple(map(passes.parse, row["lists"])), int(row["start"]))
            for protocol, row in ((protocol, value[protocol]) for protocol in PROTOCOLS)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no usable lists ({error}); get the file again") from None


@dataclass(frozen=True)
class Budget:
    """What labels may cost: functions in the pilot, compilations a search, patience, and lists in
    the coreset (and a third as many in the broadcast)."""

    pilot: int
    compilations: int
    patience: int
    lists: int

    @classmethod
    def of(cls, scale: config.Scale) -> Budget:
        return cls(
            scale.pilot_functions,
            scale.search_compilations,
            scale.patience,
            scale.broadcast_lists,
        )


def _search_task(
    item: tuple[str, str, str],
    compilations: int,
    patience: int | None = None,
    known: Known = Known(),
) -> dict:
    key, ir, protocol = item
    started = time.perf_counter()
    try:
        found = autotune.search(ir, protocol, compilations, key, known.lists, known.start, patience)
    except InputError as error:
        return {"error": str(error)}
    row = {
        "unoptimised": found.unoptimised,
        "oz": found.oz,
        "best": found.best,
        "passes": passes.format(found.passes),
        "compilations": found.compilations,
        "first": found.first,
        "seconds": round(time.perf_counter() - started, 4),
    }
    if found.poison:
        row["poison"] = [
            [passes.format(run.passes), run.status, run.signal, run.message] for run in found.poison
        ]
    return row


def _broadcast_task(item: tuple[str, str, str], lists: Sequence[str]) -> dict:
    _, ir, protocol = item
    started = time.perf_counter()
    runs = sandbox.shared().run(ir, protocol, [passes.parse(text) for text in lists])
    return {
        "counts": [run.count if run.ok else None for run in runs],
        "seconds": round(time.perf_counter() - started, 4),
    }


def winners(rows: dict[str, dict], most: int) -> list[str]:
    """The lists found by search, by how many functions they were found for, then by the
    instructions they saved."""
    serves: Counter[str] = Counter()
    gain: Counter[str] = Counter()
    for row in rows.values():
        if row["best"] < row["oz"]:
            serves[row["passes"]] += 1
            gain[row["passes"]] += row["oz"] - row["best"]
    return sorted(serves, key=lambda text: (-serves[text], -gain[text], text))[:most]


def coreset(
    lists: Sequence[str], counts: Sequence[Sequence[int | None]], oz: Sequence[int]
) -> list[str]:
    """`lists` in greedy order: each next one saves most instructions beyond those before it.

    `counts[i][j]` is what list j leaves of function i, `oz[i]` what -Oz does; lists that save
    nothing more are left out. Functions weigh by the share of their instructions that is saved, so
    that a few huge functions do not choose for all.
    """
    left = np.array([[np.inf if c is None else c for c in row] for row in counts], dtype=float)
    best = np.array(oz, dtype=float)
    size = np.maximum(best, 1)
    order: list[str] = []
    while len(order) < len(lists):
        saved = (np.maximum(best[:, None] - left, 0) / size[:, None]).sum(axis=0)
        chosen = int(saved.argmax())
        if saved[chosen] <= 0:
            break
        order.append(lists[chosen])
        best = np.minimum(best, left[:, chosen])
    return order


def canonical(choices: dict[str, dict[str, int]], oz: dict[str, int]) -> dict[str, str]:
    """One list a function out of its equally good ones (DESIGN 7): -Oz, else the list that serves
    most functions (greedy set cover), else the shorter.

    `choices[key]` maps each list that reaches the function's best count to that count.
    """
    chosen = {key: "-Oz" for key, lists in choices.items() if min(lists.values()) >= oz[key]}
    left = {key: set(lists) for key, lists in choices.items() if key not in chosen}
    serves: dict[str, set[str]] = {}
    for key, lists in left.items():
        for text in lists:
            serves.setdefault(text, set()).add(key)
    while left:
        text = min(serves, key=lambda t: (-len(serves[t]), len(passes.parse(t)), t))
        for key in sorted(serves[text]):
            chosen[key] = text
            for other in left.pop(key):
                if other != text:
                    serves[other].discard(key)
        del serves[text]
    return chosen


def label(
    functions: pd.DataFrame,
    directory: Path,
    budget: Budget,
    executor: Executor | None = None,
    on_done: Callable[[str, dict], None] | None = None,
    known: dict[str, Known] | None = None,
) -> pd.DataFrame:
    """Labels for functions (columns `id`, `ir`; the pilot is of the split `train` where there is a
    column `split`) under both protocols: a row a function and protocol with the columns of
    `COLUMNS`, written to `directory/labels.parquet`. With `known`, there is no pilot. `coreset` are
    the instructions that each list of the coreset leaves, less those that -Oz leaves: below zero
    where the list is better, None where LLVM failed on it or it was not tried.

    Journalled in `directory`: killed and called again, it goes on and ends in the same bytes.
    Beside it lie `failures.json` (functions on which -Oz itself fails, left out), `known.json` (the
    lists that searches started from), `cost.json` and `poison.json` (lists on which LLVM crashed,
    hung or made invalid IR). Raises `InputError` where no function is left.
    """
    items = {
        f"{protocol}:{row.id}": (row.id, row.ir, protocol)
        for protocol in PROTOCOLS
        for row in functions.itertuples()
    }
    if not items:
        raise InputError("no functions to label: build the corpus first")
    table: list[dict] = []
    failures: dict[str, str] = {}
    started: dict[str, dict] = {}
    cost: dict[str, dict] = {}
    poison: list[dict] = []
    for protocol in PROTOCOLS:
        mine = {key: item for key, item in items.items() if item[2] == protocol}
        tuner = _Tuner(directory, protocol, budget, mine, executor, on_done)
        if known:
            tuner.known = known[protocol]
        else:
            failures |= tuner.pilot(_pilot(functions, protocol, budget.pilot))
        failures |= tuner.search()
        tuner.broadcast()
        started[protocol] = {
            "start": tuner.known.start,
            "lists": [passes.format(names) for names in tuner.known.lists],
        }
        cost[protocol] = tuner.steps
        poison += tuner.poison
        table += tuner.rows()
    beside = {"failures": failures, "known": started, "cost": cost, "poison": poison}
    for name, value in beside.items():
        write_atomic(directory / f"{name}.json", (json.dumps(value, indent=1) + "\n").encode())
    if not table:
        raise InputError(f"no function can be labelled: {next(iter(failures.values()))}")
    labels = pd.DataFrame(table).astype(COLUMNS)
    labels = labels.sort_values(["id", "protocol"]).reset_index(drop=True)
    write(labels, directory / "labels.parquet")
    return labels


def _pilot(functions: pd.DataFrame, protocol: str, most: int) -> list[str]:
    train = functions[functions.split == "train"] if "split" in functions else functions
    return [f"{protocol}:{key}" for key in sorted(train.id)[:most]]  # ids are hashes: a sample


def minimise_poison(
    poison: Sequence[dict], ir: Mapping[str, str], executor: Executor | None = None
) -> list[dict]:
    """Lists on which LLVM failed, as `label` recorded them, each cut down to what it fails on: one
    entry a minimal list, kind of failure and message, with how often it was met and one function
    that shows it. `ir` holds the functions by id."""

    def blame(row: dict) -> dict:
        run = llvm.Run(passes.parse(row["passes"]), row["status"])
        found = autotune.blame(ir[row["id"]], row["protocol"], run)
        return {
            "passes": passes.format(found.passes),
            "status": found.status,
            "signal": found.signal,
            "message": found.message,
        }

    mapper = executor.map if executor else map
    groups: dict[tuple, dict] = {}
    for row, found in zip(poison, mapper(blame, poison), strict=True):
        key = tuple(found.values())
        shown = {name: row[name] for name in ("id", "protocol")}
        groups.setdefault(key, found | {"times": 0} | shown)["times"] += 1
    return sorted(groups.values(), key=lambda row: (-row["times"], row["passes"]))


class _Tuner:
    """The labels of one protocol, step by step; each step has a journal of its own, named after
    all that its results depend on."""

    def __init__(self, directory, protocol, budget: Budget, items: dict, executor, on_done):
        self.directory, self.protocol, self.budget = directory, protocol, budget
        self.items, self.executor, self.on_done = items, executor, on_done
        self.known = Known()
        self.code = _digest(config.fingerprint("labels"), llvm.version())
        self.found: dict[str, dict] = {}  # key -> what the search of it gave
        self.tried: dict[str, dict[str, int]] = {}  # key -> list -> what it leaves
        self.spent: Counter[str] = Counter()  # compilations beyond the search
        self.steps: dict[str, dict] = {}  # what each step cost
        self.poison: list[dict] = []

    def _run(self, name: str, task: Callable, items: dict, *settings: object) -> dict[str, dict]:
        path = self.directory / f"{name}-{self.protocol}-{_digest(self.code, settings)}.sqlite"
        with journal.Journal(path) as done:
            if self.on_done:
                for key in sorted(done.keys() & items.keys()):
                    self.on_done(key, done.get(key))
            journal.run(done, task, items, self.executor, self.on_done)
            rows = {key: row for key, row in done.items() if key in items}
        self.steps[name] = {
            "tasks": len(rows),
            "compilations": sum(
                row.get("compilations", len(row.get("counts", "1"))) for row in rows.values()
            ),
            "core_seconds": round(sum(row.get("seconds", 0) for row in rows.values()), 1),
        }
        for key, row in rows.items():
            names = ("passes", "status", "signal", "message")
            for found in row.get("poison", ()):
                where = {"id": key.split(":", 1)[1], "protocol": self.protocol}
                self.poison.append(where | dict(zip(names, found, strict=True)))
        return rows

    def _try(self, name: str, keys: Iterable[str], lists: list[str]) -> None:
        """Run `lists` on the functions and note what they leave."""
        items = {key: self.items[key] for key in keys}
        found = self._run(name, partial(_broadcast_task, lists=lists), items, lists)
        for key, row in found.items():
            self._note(key, lists, row["counts"])
            self.spent[key] += len(lists)

    def _note(self, key: str, lists: Sequence[str], counts: Sequence[int | None]) -> None:
        known = {text: n for text, n in zip(lists, counts, strict=True) if n is not None}
        self.tried.setdefault(key, {}).update(known)

    def _keep(self, rows: dict[str, dict]) -> dict[str, str]:
        self.found |= {key: row for key, row in rows.items() if "error" not in row}
        return {key: row["error"] for key, row in rows.items() if "error" in row}

    def pilot(self, keys: list[str]) -> dict[str, str]:
        """Search some functions from nothing; a coreset of what wins there is where others start.

        Like `search`, returns the functions that cannot be searched, with the reason."""
        task = partial(_search_task, compilations=self.budget.compilations)
        items = {key: self.items[key] for key in keys}
        failures = self._keep(self._run("pilot", task, items, self.budget.compilations))
        won = winners(self.found, 8 * self.budget.lists)
        self._try("coreset", self.found, won)
        counts = [[self.tried[key].get(text) for text in won] for key in self.found]
        order = coreset(won, counts, [row["oz"] for row in self.found.values()])
        order += [text for text in won if text not in order]
        self.known = Known(tuple(map(passes.parse, order)), min(self.budget.lists, len(order)))
        return failures

    def search(self) -> dict[str, str]:
        """Search all functions that the pilot did not."""
        settings = {
            "compilations": self.budget.compilations,
            "patience": self.budget.patience,
            "known": self.known,
        }
        rest = {key: item for key, item in self.items.items() if key not in self.found}
        rows = self._run("search", partial(_search_task, **settings), rest, settings)
        failures = self._keep(rows)
        for key in rows.keys() & self.found.keys():
            first = rows[key]["first"]  # fewer where the budget ended before
            self._note(key, self.known.coreset[: len(first)], first)
        return failures

    def broadcast(self) -> None:
        """The lists that most searches ended in and that were not tried on all, on all."""
        new = [text for text in winners(self.found, 10**9) if text not in self.known.coreset]
        self._try("broadcast", self.found, new[: self.budget.lists // 3])

    def rows(self) -> list[dict]:
        """The labels: canonical lists, each confirmed as one pipeline where it is not the search's
        own (which was)."""
        asked: dict[str, tuple] = {}
        while True:
            chosen, best = self._choose()
            others = {
                f"{key}:{text}": key
                for key, text in chosen.items()
                if text not in ("-Oz", self.found[key]["passes"])
            }
            asked |= {name: (*self.items[key], chosen[key]) for name, key in others.items()}
            confirmed = self._run("confirm", _confirm_task, asked)
            wrong = [key for name, key in others.items() if confirmed[name]["count"] != best[key]]
            if not wrong:
                break
            for key in wrong:
                self.tried[key].pop(chosen[key])
        return [
            {
                "id": key.split(":", 1)[1],
                "protocol": self.protocol,
                "unoptimised": row["unoptimised"],
                "oz": row["oz"],
                "best": best[key],
                "passes": chosen[key],
                "compilations": row["compilations"] + self.spent[key],
                "coreset": self._beyond_oz(key),
                "llvm": llvm.version(),
            }
            for key, row in self.found.items()
        ]

    def _beyond_oz(self, key: str) -> list[int | None]:
        oz, tried = self.found[key]["oz"], self.tried.get(key, {})
        counts = [tried.get(text) for text in self.known.coreset]
        return [None if n is None else min(n - oz, 2**15 - 1) for n in counts]

    def _choose(self) -> tuple[dict[str, str], dict[str, int]]:
        choices, best = {}, {}
        for key, row in self.found.items():
            reached = self.tried.get(key, {}) | {row["passes"]: row["best"], "-Oz": row["oz"]}
            best[key] = min(reached.values())
            choices[key] = {text: count for text, count in reached.items() if count == best[key]}
        return canonical(choices, {key: row["oz"] for key, row in self.found.items()}), best


def _confirm_task(item: tuple[str, str, str, str]) -> dict:
    _, ir, protocol, text = item
    return {"count": sandbox.shared().run(ir, protocol, [passes.parse(text)])[0].count}


def _digest(*settings: object) -> str:
    """Part of a journal's name: what was recorded under other settings is not what is asked for."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def write(labels: pd.DataFrame, path: Path) -> None:
    """Write labels as parquet, the same bytes for the same rows."""
    buffer = io.BytesIO()
    schema = pyarrow.Schema.from_pandas(labels.drop(columns="coreset"), preserve_index=False)
    at = labels.columns.get_loc("coreset")
    schema = schema.insert(at, pyarrow.field("coreset", _COUNTS)).remove_metadata()
    table = pyarrow.Table.from_pandas(labels, schema, preserve_index=False)
    parquet.write_table(table, buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def read(path: Path) -> pd.DataFrame:
    """Labels as `label` made them. `InputError` on a file that is missing, truncated or foreign."""
    try:
        labels = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make labels with `llmopt autotune`") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: damaged labels file ({reason}); delete it and run `llmopt autotune` again"
        ) from None
    missing = sorted(set(COLUMNS) - set(labels.columns))
    if missing:
        raise InputError(f"{path}: not a labels file: no column {', '.join(missing)}")
    return labels.astype(COLUMNS)
