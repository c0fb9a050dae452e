"""The recorded evaluation of the released model (`results/`), for pages; and its spot check.

A record is only as good as the chance to catch it out: `spot_check` asks the model again about a
sample of the functions that are at hand, compiles what was recorded, and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from llmopt import evaluate, judge, labels, passes, pipeline, sandbox
from llmopt.config import InputError

# Its result hangs on where values lie in memory: of 22,694 recorded uses, 15 counted otherwise in a
# second run; not one of many did where addresses were held the same (`setarch -R`).
UNSTEADY = "gvn-sink"
MISSING = "{}: no record of the released model; `llmopt evaluate --release` makes it"


def read(name: str) -> pd.DataFrame:
    """The table `results/NAME.parquet` with each function's `project` and `suite`."""
    path = pipeline.RESULTS / f"{name}.parquet"
    if not path.exists():
        raise InputError(MISSING.format(path))
    about = pd.read_parquet(labels.RELEASED.with_name("functions.parquet"))
    columns = ["id", "project", "suite"]
    return pd.read_parquet(path).merge(about[columns], on="id", validate="many_to_one")


def steady(listed: str) -> bool:
    """Whether a recorded list counts the same whenever it is run: all but those with `UNSTEADY`."""
    return UNSTEADY not in passes.parse(listed)


def write_again(rows: pd.DataFrame, functions: pd.Series, folder: Path) -> pd.DataFrame:
    """`rows` of `code.parquet` with what the record leaves out, since it is made of third parties'
    code: the model's `text`, written once more, and LLVM's (`reference`), both normalised, and
    whether the text `compiles` and is `exact` as before. `functions` holds the IR by id."""
    most = pipeline.record("evaluation")["max_new_tokens"]
    ask = evaluate.asker(folder, most, passes_only=False)
    said = ask([(functions[row.id], row.protocol) for row in rows.itertuples()])
    again = []
    for row, answer in zip(rows.itertuples(), said, strict=True):
        text = functions[row.id]
        choice = judge.choice(text, row.protocol, answer.passes or passes.OZ)
        again.append(judge.written(text, row.protocol, choice, answer))
    made = pd.DataFrame(again, index=rows.index)
    return rows.drop(columns=["compiles", "exact"]).assign(
        text=made.code, reference=made.reference, compiles=made.compiles, exact=made.exact
    )


@dataclass(frozen=True)
class SpotCheck:
    """The model was `asked` again; `same` of the lists were named again. `recounted` rows
    were compiled again; `differ` are those that came out otherwise, but for `unsteady` ones."""

    asked: int
    same: int
    recounted: int
    differ: pd.DataFrame
    unsteady: int


def spot_check(
    rows: pd.DataFrame, functions: pd.DataFrame, folder: Path, size: int = 40, seed: int = 0
) -> SpotCheck:
    """Check recorded `rows` (columns as in `evaluate.Evaluation`) against a sample of `functions`
    (columns `id`, `ir`) that have some; `folder` is the model's.

    Raises `InputError` where none of the functions is in the record.
    """
    known = functions[functions.id.isin(rows.id)].drop_duplicates("id")
    if known.empty:
        raise InputError("none of these functions is in the record: nothing can be checked")
    rng = np.random.default_rng(seed)
    sample = known.iloc[np.sort(rng.permutation(len(known))[:size])]
    texts = dict(zip(sample.id, sample.ir, strict=True))
    own = rows[rows.id.isin(sample.id)]
    said = own[own.method == evaluate.MODEL]
    asked = [(texts[row.id], row.protocol) for row in said.itertuples()]
    again = [answer.passes or passes.OZ for answer in evaluate.asker(folder)(asked)]
    pairs = zip(again, said.passes, strict=True)
    same = sum(passes.format(names) == listed for names, listed in pairs)
    wrong = []
    for row in own[own.status == "ok"].itertuples():
        lists = [passes.OZ, passes.parse(row.passes)]
        oz, run = sandbox.shared().run(texts[row.id], row.protocol, lists)
        if (oz.count, run.count) != (row.oz, row.count):
            wrong.append(row.Index)
    wrong = own.loc[wrong]
    firm = wrong.passes.map(steady).astype(bool)
    recounted = int((own.status == "ok").sum())
    return SpotCheck(len(said), same, recounted, wrong[firm], int((~firm).sum()))
