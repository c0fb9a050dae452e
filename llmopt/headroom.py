"""Headroom: what a good pass list gains over -Oz, where, and what it took to find out.

Tables over labels (`labels.COLUMNS`, with what `pipeline.released` knows of each function) and over
the recorded runs in `results/`: improvement by group and by size, how few functions and how few
lists hold the gain, what `minsize` alone removes of it (paper, Sections II-B and IV). `race` and
`recount` are the two that run LLVM: the paper's search against ours, and labels through `opt`.

All improvements are (sum of -Oz counts - sum of the labels') / sum of -Oz counts, in percent, with
`metrics`' 95% interval over functions.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmopt import autotune, labels, llvm, metrics, passes, sandbox
from llmopt.config import PROTOCOLS, InputError

# The paper's side of the comparison (Sections II-B and III, Table III, Figure 3).
PAPER = {
    "train functions": 1_000_000,
    "train percent": 5.8,
    "test functions": 100_000,
    "test instructions": 1_716_000,  # unoptimised
    "test improved": 6_764,
    "test percent": 5.03,
    "compilations": 37_424,  # a function
    "cpu_days": 9_016,  # for the training set
    "mean length": 3.1,
    "longest": 9,
}
EDGES = (0, 10, 20, 40, 80, 160, 320, np.inf)  # of the bins of `sizes`, in instructions
MARKS = (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 3000)  # compilations at which a race is read
_ROUND = 100  # walks a request to the sandbox
_DRAWS = 500  # of a bootstrap over up to a hundred thousand functions


# --- how much, and where -----------------------------------------------------------------------


def by(table: pd.DataFrame, groups: Sequence | pd.Series) -> pd.DataFrame:
    """Improvement of labels over -Oz by group, a row a group and protocol.

    `groups` gives each row of `table` its group; a categorical's order is kept. Columns
    `group protocol functions improved percent low high`; percentages. A group without an
    instruction left after -Oz has nothing to improve and is left out.
    """
    if not len(table):
        raise InputError("no labels to sum up: pass at least one")
    rows = []
    keys = pd.Series(groups, index=table.index)
    for group, members in table.groupby(keys, observed=True):
        for protocol, part in _by_protocol(members):
            if part.oz.sum() > 0:
                it = metrics.outcome(part.oz, part.best, n=_DRAWS)
                rows.append((group, protocol, it.functions, it.improved, it.percent, *it.interval))
    columns = ["group", "protocol", "functions", "improved", "percent", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _by_protocol(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The parts of a table by protocol, in the book's order, empty ones left out."""
    parts = [(protocol, table[table.protocol == protocol]) for protocol in PROTOCOLS]
    return [(protocol, part) for protocol, part in parts if len(part)]


def ranked(table: pd.DataFrame, protocol: str = PROTOCOLS[0]) -> pd.DataFrame:
    """A table of `by` with the groups that improve most under `protocol` first."""
    percent = table[table.protocol == protocol].set_index("group").percent
    order = table.group.map(percent).fillna(-np.inf)
    ordered = table.assign(order=-order).sort_values(["order", "group"], kind="stable")
    return ordered.drop(columns="order").reset_index(drop=True)


def sizes(unoptimised: pd.Series) -> pd.Series:
    """The bin of each function's unoptimised instruction count, ordered (paper, Figure 5)."""
    starts = [edge + 1 for edge in EDGES[:-1]]
    names = [f"{low}–{high}" for low, high in zip(starts, EDGES[1:-1], strict=False)]
    return pd.cut(unoptimised, EDGES, labels=[*names, f"over {EDGES[-2]}"])


def holders(gains: Iterable[int], share: float = 0.5) -> int:
    """The fewest functions that together hold `share` of all instructions gained; 0 of nothing."""
    saved = np.sort(np.maximum(np.fromiter(gains, dtype=float), 0))[::-1]
    if not saved.sum():
        return 0
    return int(np.searchsorted(np.cumsum(saved), share * saved.sum() - 1e-9)) + 1


# --- what the lists look like ------------------------------------------------------------------


def made_of(table: pd.DataFrame) -> pd.DataFrame:
    """Labels as lists, a row a protocol: the share that is -Oz, and of the others how many, how
    many distinct, and their mean and greatest length in passes (paper, Figure 3).

    Columns `protocol labels oz_share others distinct mean_length longest`.
    """
    rows = []
    for protocol, part in _by_protocol(table):
        others = part.passes[part.passes != "-Oz"]
        length = others.map(_length)
        summary = (len(others), others.nunique(), length.mean(), length.max())
        rows.append((protocol, len(part), 1 - len(others) / len(part), *summary))
    columns = ["protocol", "labels", "oz_share", "others", "distinct", "mean_length", "longest"]
    return pd.DataFrame(rows, columns=columns)


def _length(text: str) -> int:
    return len(passes.parse(text))


def pass_frequency(table: pd.DataFrame) -> pd.DataFrame:
    """Share of the labels other than -Oz that hold a pass: rows are passes, columns protocols,
    the most frequent first (paper, Figure 3)."""
    shares = {}
    for protocol in PROTOCOLS:
        others = table.passes[(table.protocol == protocol) & (table.passes != "-Oz")]
        held: Counter[str] = Counter()
        for text, times in others.value_counts().items():
            for name in set(passes.parse(text)):
                held[name] += times
        shares[protocol] = {name: times / len(others) for name, times in held.items()}
    found = pd.DataFrame(shares).fillna(0.0)
    return found.loc[found.sum(axis=1).sort_values(ascending=False, kind="stable").index]


def serving(table: pd.DataFrame) -> pd.DataFrame:
    """How much of the gain the first so many distinct lists serve, the one that saves most first.

    Columns `protocol lists share list`: share (0 to 1) of all saved instructions that the best
    `lists` lists hold, and the list that came last. A function counts for its own label alone.
    """
    parts = []
    for protocol, part in _by_protocol(table):
        saved = (part.oz - part.best).groupby(part.passes).sum()
        saved = saved[saved > 0].sort_values(ascending=False, kind="stable")
        share = saved.cumsum() / saved.sum()
        parts.append(
            pd.DataFrame(
                {
                    "protocol": protocol,
                    "lists": np.arange(1, len(saved) + 1),
                    "share": share.to_numpy(),
                    "list": saved.index.to_numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def lists_for(served: pd.DataFrame, share: float) -> dict[str, int]:
    """By protocol, how many lists of `serving` it takes for `share` of the gain."""
    return {
        protocol: int((part.share < share - 1e-9).sum()) + 1
        for protocol, part in _by_protocol(served)
    }


# --- what minsize alone removes ----------------------------------------------------------------


@dataclass(frozen=True)
class Removed:
    """What `minsize` removes of the `stripped` headroom: `functions` labelled under both protocols,
    instructions of `headroom` and of it `removed`, their ratio in percent and its 95% interval."""

    functions: int
    headroom: int
    removed: int
    percent: float
    interval: tuple[float, float]


def paired(table: pd.DataFrame) -> pd.DataFrame:
    """A row a function labelled under both protocols: `id oz_stripped best_stripped oz_minsize
    best_minsize`, `headroom` and what `minsize` alone `removed` of it, all in instructions.

    Removed is what -Oz leaves less with the attributes than without, but not more than the best
    list found for the function without them saves.
    """
    wide = table.pivot(index="id", columns="protocol", values=["oz", "best"]).dropna().astype(int)
    pairs = pd.DataFrame(
        {f"{kind}_{p}": wide[kind][p] for p in PROTOCOLS for kind in ("oz", "best")}
    )
    pairs["headroom"] = pairs.oz_stripped - pairs.best_stripped
    saved = (pairs.oz_stripped - pairs.oz_minsize).clip(lower=0)
    pairs["removed"] = np.minimum(saved, pairs.headroom)
    return pairs.reset_index()


def removed_by_minsize(table: pd.DataFrame) -> Removed:
    """The share of the `stripped` headroom that is gone once -Oz is told of `minsize`."""
    pairs = paired(table)
    if not pairs.headroom.sum():
        raise InputError("no headroom under `stripped`: there is nothing that minsize could remove")
    rest = pairs.headroom - pairs.removed
    return Removed(
        len(pairs),
        int(pairs.headroom.sum()),
        int(pairs.removed.sum()),
        metrics.improvement(pairs.headroom, rest),
        metrics.interval(pairs.headroom, rest, n=_DRAWS),
    )


# --- what LLVM fails on ------------------------------------------------------------------------


def culprits(poison: Sequence[Mapping]) -> pd.DataFrame:
    """Minimal poisonous lists (`results/poison.json`) by a suspect: the pass that most of the lists
    share, then the one that most of the others share, and so on (ties: more often at the end).

    Columns `suspect status message lists times example`: how many minimal lists, how often they
    were met in the search, and the shortest of them; most often met first. A rule of thumb: what
    a debugger would blame may be another pass of the list.
    """
    columns = ["suspect", "status", "message", "lists", "times", "example"]
    if not len(poison):
        return pd.DataFrame(columns=columns)
    table = pd.DataFrame(poison)
    names = {text: passes.parse(text) for text in table.passes}
    suspect: dict[str, str] = {}
    while len(suspect) < len(names):
        rest = [each for text, each in names.items() if text not in suspect]
        held = Counter(name for each in rest for name in set(each))
        ends = Counter(each[-1] for each in rest)
        worst = max(held, key=lambda name: (held[name], ends[name], name))
        suspect |= {t: worst for t, each in names.items() if worst in each and t not in suspect}
    table["suspect"] = table.passes.map(suspect)
    table = table.assign(length=table.passes.map(_length)).sort_values(["length", "passes"])
    found = table.groupby(["suspect", "status", "message"], sort=False, as_index=False).agg(
        lists=("passes", "nunique"), times=("times", "sum"), example=("passes", "first")
    )
    order = ["times", "lists", "suspect"]
    return found.sort_values(order, ascending=[False, False, True], ignore_index=True)[columns]


# --- the paper's search and ours ---------------------------------------------------------------


def uniform_curve(
    ir: str, protocol: str, marks: Sequence[int] = MARKS, seed: str | int = 0
) -> tuple[int, list[int]]:
    """The paper's search: what -Oz leaves, and the least that uniform random lists do after so many
    compilations (-Oz is the first). Only whole lists count, not their prefixes."""
    box, rng = sandbox.shared(), random.Random(f"{seed}:{protocol}")
    best = oz = _oz(ir, protocol)
    curve, spent = {}, 1
    while spent < marks[-1]:
        lists = [autotune.random_list(rng) for _ in range(min(_ROUND, marks[-1] - spent))]
        for walk in box.explore(ir, protocol, lists, fresh=spent == 1):
            spent += 1
            if not walk.failure:
                best = min(best, walk.counts[-1])
            curve[spent] = best
    return oz, [curve[mark] for mark in marks]


def our_curve(
    ir: str,
    protocol: str,
    known: labels.Known,
    marks: Sequence[int] = MARKS,
    seed: str | int = 0,
) -> tuple[int, list[int]]:
    """Our search without its patience: what -Oz leaves, and the least found after so many
    compilations; `known` are the lists that it starts from and learns from."""
    reached: dict[int, int] = {}
    found = autotune.search(
        ir, protocol, marks[-1], seed, known.lists, known.start, on_walk=reached.__setitem__
    )
    curve, best = [], found.oz
    for mark in marks:
        best = min([best, *(count for spent, count in reached.items() if spent <= mark)])
        curve.append(best)
    return found.oz, curve


def variants(
    ir: str,
    protocol: str,
    known: labels.Known,
    compilations: int,
    patience: int,
    seed: str | int = 0,
) -> pd.DataFrame:
    """One function searched in ways that differ by one idea of `autotune` each, a row a way:
    `variant oz best spent`, the last in compilations."""
    box, whole = sandbox.shared(), uniform_curve(ir, protocol, [compilations], seed)
    oz = whole[0]

    def least(lists: Sequence[tuple[str, ...]]) -> tuple[int, int]:
        walks = box.explore(ir, protocol, lists)
        return min([oz, *(count for walk in walks for count in walk.counts)]), 1 + len(lists)

    def drawn(pick: autotune.Pick) -> list[tuple[str, ...]]:
        rng = random.Random(f"{seed}:{protocol}")
        return [autotune.random_list(rng, pick=pick) for _ in range(compilations - 1)]

    def ours(patience: int | None) -> tuple[int, int]:
        given = (ir, protocol, compilations, seed, known.lists, known.start, patience)
        found = autotune.search(*given)
        return found.best, found.compilations

    found = {
        "uniform lists": (whole[1][0], compilations),
        "and their prefixes": least(drawn(autotune.uniform)),
        "lists of learned passes": least(drawn(autotune.learned(known.lists))),
        "lists that won elsewhere": least(known.lists[: known.start]),
        "our search": ours(None),
        "our search, with patience": ours(patience),
    }
    rows = [(name, oz, *values) for name, values in found.items()]
    return pd.DataFrame(rows, columns=["variant", "oz", "best", "spent"])


def race(
    ir: str, protocol: str, known: labels.Known, marks: Sequence[int], seed: str | int = 0
) -> dict[str, int | list[int]]:
    """One function in both searches at an equal budget: `oz`, `random` and `ours`, the last two
    being the least instructions found at each of `marks` compilations."""
    oz, blind = uniform_curve(ir, protocol, marks, seed)
    return {"oz": oz, "random": blind, "ours": our_curve(ir, protocol, known, marks, seed)[1]}


def _oz(ir: str, protocol: str) -> int:
    run = sandbox.shared().run(ir, protocol, [passes.OZ])[0]
    if not run.ok:
        raise InputError(f"-Oz fails on the function: {run.status}: {run.message}")
    return run.count


def recorded_curves(bench: Mapping) -> pd.DataFrame:
    """`results/search.json` as rows: `protocol method compilations percent`."""
    names = {"random": "uniform random lists", "ours": "our search"}
    return pd.DataFrame(
        [
            (protocol, title, mark, percent)
            for protocol in PROTOCOLS
            for name, title in names.items()
            for mark, percent in zip(
                bench["compilations"], bench["protocols"][protocol][name], strict=True
            )
        ],
        columns=["protocol", "method", "compilations", "percent"],
    )


def bars(bench: Mapping) -> pd.DataFrame:
    """Whether our search reaches its bars in `results/search.json`, a row a protocol: at a tenth of
    the largest budget it is at least as good as random lists at the whole of it
    (`beats_random`), and within 2% (relative) of itself there (`levelled`).

    Columns `protocol small large random_large ours_small ours_large share beats_random levelled`;
    budgets in compilations, improvements in percent, share (0 to 1) of ours at `large`.
    """
    marks, rows = list(bench["compilations"]), []
    large = marks[-1]
    small = max([mark for mark in marks if 10 * mark <= large], default=marks[0])
    for protocol in PROTOCOLS:
        found = bench["protocols"][protocol]
        blind, at_small, at_large = (
            found["random"][-1],
            found["ours"][marks.index(small)],
            found["ours"][-1],
        )
        share = at_small / at_large if at_large else 1.0
        values = (protocol, small, large, blind, at_small, at_large, share)
        rows.append((*values, at_small >= blind, share >= 0.98))
    columns = ["protocol", "small", "large", "random_large", "ours_small", "ours_large"]
    return pd.DataFrame(rows, columns=[*columns, "share", "beats_random", "levelled"])


# --- are the labels right, and what did they cost ----------------------------------------------


def recount(rows: pd.DataFrame) -> pd.DataFrame:
    """Labels counted anew on an independent way, the `opt` executable: `rows` (columns `ir protocol
    unoptimised oz best passes`) with `opt_unoptimised opt_oz opt_best`, and `same`, whether all
    three counts are the label's."""
    kinds = {"unoptimised": lambda text: (), "oz": lambda text: passes.OZ, "best": passes.parse}
    found = rows.copy()
    for kind, names in kinds.items():
        found[f"opt_{kind}"] = [
            llvm.opt(row.ir, row.protocol, names(row.passes)).count for row in rows.itertuples()
        ]
    found["same"] = np.all([found[f"opt_{kind}"] == found[kind] for kind in kinds], axis=0)
    return found


def spent(record: Mapping) -> pd.DataFrame:
    """What labels cost (`results/labels.json`), a row a protocol and step: `protocol step tasks
    compilations core_hours`."""
    return pd.DataFrame(
        [
            (protocol, step, it["tasks"], it["compilations"], it["core_seconds"] / 3600)
            for protocol, steps in record["cost"].items()
            for step, it in steps.items()
        ],
        columns=["protocol", "step", "tasks", "compilations", "core_hours"],
    )


def against_paper(record: Mapping, functions: int) -> pd.DataFrame:
    """Where the difference to the paper's cost comes from: it is the product of three factors.

    Rows are labelled functions (a function under two protocols is two), compilations for each,
    core milliseconds a compilation, and the product in core days; columns `what paper ours factor`.
    """
    steps = spent(record)
    compilations, hours = steps.compilations.sum(), steps.core_hours.sum()
    milliseconds = 24 * 3600 * 1000  # a day's
    made = PAPER["train functions"] * PAPER["compilations"]
    rows = [
        ("labelled functions", PAPER["train functions"], len(PROTOCOLS) * functions),
        (
            "compilations for each",
            PAPER["compilations"],
            compilations / (len(PROTOCOLS) * functions),
        ),
        (
            "core milliseconds for each of these",
            PAPER["cpu_days"] * milliseconds / made,
            hours / 24 * milliseconds / compilations,
        ),
        ("in all: core days", PAPER["cpu_days"], hours / 24),
    ]
    table = pd.DataFrame(rows, columns=["what", "paper", "ours"])
    return table.assign(factor=table.paper / table.ours)
