"""The autotuner: search for the pass list that leaves fewest instructions, and make labels of it.

As in the paper (Section II-B) in four steps: search each function by itself, minimise what was
found, broadcast the best lists to all functions, and settle on one canonical list a function.
Unlike the paper's uniform sampling, a search step is a *walk*: the count is taken after every pass,
so every prefix of a list is a sample; and once a list beats -Oz, half of the walks vary the best.

A compilation is one list run over one function, a walk included.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from llmopt import config, journal, llvm, passes, sandbox
from llmopt.config import PROTOCOLS, InputError, write_atomic

MAX_LENGTH = 9  # of a random list, as in the paper's best lists
_META_SHARE = 0.5  # of the random lists that hold one of the -O pipelines
_ROUND = 16  # walks a request to the sandbox
_SINGLE = tuple(name for name in passes.SPACE if name not in passes.META)

LABEL_COLUMNS = {
    "id": "string",
    "protocol": "string",
    "unoptimised": "int32",
    "oz": "int32",
    "best": "int32",
    "passes": "string",
    "compilations": "int32",
    "llvm": "string",
}


@dataclass(frozen=True)
class Found:
    """A search's result: counts in instructions, the best list and what it took to find it.

    `poison` are the lists on which LLVM crashed, hung or made invalid IR.
    """

    unoptimised: int
    oz: int
    best: int
    passes: tuple[str, ...]
    compilations: int
    poison: tuple[llvm.Run, ...] = ()


def random_list(rng: random.Random, longest: int = MAX_LENGTH) -> tuple[str, ...]:
    """A uniform list of 1 to `longest` passes, a meta flag at most once (paper, Section II-B)."""
    names = [rng.choice(_SINGLE) for _ in range(rng.randint(1, longest))]
    if rng.random() < _META_SHARE:
        names[rng.randrange(len(names))] = rng.choice(passes.META)
    return tuple(names)


def mutate(rng: random.Random, names: tuple[str, ...]) -> tuple[str, ...]:
    """A neighbour of a list: passes appended, inserted, replaced or moved to the end anew."""
    out = list(names)
    kind = rng.randrange(4)
    if kind == 0:
        out += [rng.choice(_SINGLE) for _ in range(rng.randint(1, 3))]
    elif kind == 1:
        out.insert(rng.randrange(len(out) + 1), rng.choice(_SINGLE))
    elif kind == 2 and out:
        out[rng.randrange(len(out))] = rng.choice(_SINGLE)
    elif len(out) > 1:
        del out[rng.randrange(len(out))]
        out.append(rng.choice(_SINGLE))
    return tuple(out)


def _better(run: llvm.Run, best: llvm.Run) -> bool:
    return run.ok and (run.count, len(run.passes)) < (best.count, len(best.passes))


def search(ir: str, protocol: str, compilations: int, seed: str | int = 0) -> Found:
    """Search for the list that leaves fewest instructions, with a budget of `compilations`;
    minimising the result takes a few more, which are counted.

    Deterministic in its arguments. The result was confirmed by running the minimised list as one
    pipeline. Raises `InputError` where even -Oz fails on the function.
    """
    box = sandbox.shared()
    rng = random.Random(f"{seed}:{protocol}")
    unoptimised, oz = box.run(ir, protocol, [(), passes.OZ])
    if not oz.ok:
        raise InputError(f"-Oz fails on the function: {oz.status}: {oz.message}")
    best, spent, poison = oz, 1, []
    while spent < compilations:
        found = best.passes != passes.OZ  # around -Oz itself there is little to find
        lists = [
            mutate(rng, best.passes) if found and rng.random() < 0.5 else random_list(rng)
            for _ in range(min(_ROUND, compilations - spent))
        ]
        spent += len(lists)
        for steps in box.walk(ir, protocol, lists):
            if not steps[-1].ok and steps[-1].status != "refused":
                poison.append(steps[-1])
            for step in steps:
                if _better(step, best):
                    best = step
    best, tried = minimise(ir, protocol, best, oz)
    return Found(unoptimised.count, oz.count, best.count, best.passes, spent + tried, tuple(poison))


def minimise(ir: str, protocol: str, best: llvm.Run, oz: llvm.Run) -> tuple[llvm.Run, int]:
    """Drop every pass that the list can do without (paper, Section II-B). Also confirms that the
    list does as one pipeline what it did as a walk; -Oz where it does not.

    Returns the run of the minimal list and the compilations spent.
    """
    if best.passes == oz.passes:
        return oz, 0
    box = sandbox.shared()
    whole = box.run(ir, protocol, [best.passes])[0]
    spent = 1
    if not _better(whole, oz) and whole.passes != oz.passes:
        return oz, spent
    best, at = whole, 0
    while at < len(best.passes) > 1:  # an answer has at least one pass
        shorter = best.passes[:at] + best.passes[at + 1 :]
        run = box.run(ir, protocol, [shorter])[0]
        spent += 1
        if _better(run, best):
            best = run
        else:
            at += 1
    return best, spent


# --- labels for a corpus -----------------------------------------------------------------------


def _search_task(item: tuple[str, str, str], compilations: int) -> dict:
    key, ir, protocol = item
    try:
        found = search(ir, protocol, compilations, seed=key)
    except InputError as error:
        return {"error": str(error)}
    return {
        "unoptimised": found.unoptimised,
        "oz": found.oz,
        "best": found.best,
        "passes": passes.format(found.passes),
        "compilations": found.compilations,
        "poison": [
            [passes.format(run.passes), run.status, run.signal, run.message] for run in found.poison
        ],
    }


def _broadcast_task(item: tuple[str, str, str], lists: Sequence[str]) -> dict:
    _, ir, protocol = item
    runs = sandbox.shared().run(ir, protocol, [passes.parse(text) for text in lists])
    return {"counts": [run.count if run.ok else None for run in runs]}


def popular(rows: dict[str, dict], protocol: str, most: int) -> list[str]:
    """The lists found by search, by the instructions that they saved where they were found."""
    gain: Counter[str] = Counter()
    for key, row in rows.items():
        if key.startswith(protocol) and row["best"] < row["oz"]:
            gain[row["passes"]] += row["oz"] - row["best"]
    return [text for text, _ in sorted(gain.items(), key=lambda item: (-item[1], item[0]))[:most]]


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
    compilations: int,
    broadcast_lists: int,
    executor: Executor | None = None,
    on_done: Callable[[str, dict], None] | None = None,
) -> pd.DataFrame:
    """Labels for functions (columns `id`, `ir`) under both protocols: a row a function and protocol
    with the columns of `LABEL_COLUMNS`, written to `directory/labels.parquet`.

    Journalled in `directory`: killed and called again, it goes on and ends in the same bytes.
    Functions on which -Oz itself fails are left out; `directory/failures.json` names them. Raises
    `InputError` where none is left.
    """
    items = {
        f"{protocol}:{row.id}": (row.id, row.ir, protocol)
        for protocol in PROTOCOLS
        for row in functions.itertuples()
    }
    if not items:
        raise InputError("no functions to label: build the corpus first")
    settings = _digest(compilations, config.fingerprint("autotune"), llvm.version())
    with journal.Journal(directory / f"search-{settings}.sqlite") as searched:
        task = partial(_search_task, compilations=compilations)
        journal.run(searched, task, items, executor, on_done)
        rows = {key: row for key, row in searched.items() if key in items}
    failures = {key: row["error"] for key, row in rows.items() if "error" in row}
    rows = {key: row for key, row in rows.items() if "error" not in row}
    reasons = json.dumps(failures, indent=1) + "\n"
    write_atomic(directory / "failures.json", reasons.encode())
    if not rows:
        raise InputError(f"no function can be labelled: {next(iter(failures.values()))}")
    table = []
    for protocol in PROTOCOLS:
        keys = [key for key in rows if key.startswith(protocol)]
        lists = popular(rows, protocol, broadcast_lists)
        name = f"broadcast-{protocol}-{_digest(settings, lists)}.sqlite"
        with journal.Journal(directory / name) as tried:
            task = partial(_broadcast_task, lists=lists)
            journal.run(tried, task, {key: items[key] for key in keys}, executor, on_done)
            counts = {key: row["counts"] for key, row in tried.items() if key in rows}
        table += _rows(protocol, {key: rows[key] for key in keys}, lists, counts)
    labels = pd.DataFrame(table).astype(LABEL_COLUMNS).sort_values(["id", "protocol"])
    labels = labels.reset_index(drop=True)
    write_labels(labels, directory / "labels.parquet")
    return labels


def _digest(*settings: object) -> str:
    """Part of a journal's name: what was recorded under other settings is not what is asked for."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def _rows(
    protocol: str, rows: dict[str, dict], lists: list[str], counts: dict[str, list[int | None]]
) -> list[dict]:
    choices, best = {}, {}
    for key, row in rows.items():
        reached = {row["passes"]: row["best"], "-Oz": row["oz"]}
        reached |= {t: c for t, c in zip(lists, counts[key], strict=True) if c is not None}
        best[key] = min(reached.values())
        choices[key] = {text: c for text, c in reached.items() if c == best[key]}
    chosen = canonical(choices, {key: row["oz"] for key, row in rows.items()})
    return [
        {
            "id": key.split(":", 1)[1],
            "protocol": protocol,
            "unoptimised": row["unoptimised"],
            "oz": row["oz"],
            "best": best[key],
            "passes": chosen[key],
            "compilations": row["compilations"] + len(lists),
            "llvm": llvm.version(),
        }
        for key, row in rows.items()
    ]


def write_labels(labels: pd.DataFrame, path: Path) -> None:
    """Write labels as parquet, the same bytes for the same rows."""
    buffer = io.BytesIO()
    labels.to_parquet(buffer, index=False, compression="zstd")
    write_atomic(path, buffer.getvalue())


def read_labels(path: Path) -> pd.DataFrame:
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
    missing = sorted(set(LABEL_COLUMNS) - set(labels.columns))
    if missing:
        raise InputError(f"{path}: not a labels file: no column {', '.join(missing)}")
    return labels.astype(LABEL_COLUMNS)
