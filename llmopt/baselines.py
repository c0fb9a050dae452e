"""What a model has to beat: the single best pass list other than -Oz, tried on everything.

One fixed list costs no search and no model; with -Oz kept wherever it is better, it is the cheapest
alternative there is (DESIGN 4). Larger coresets and learned choosers come later.
"""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor

import pandas as pd

from llmopt import passes, sandbox
from llmopt.config import InputError


def single_list(
    functions: pd.DataFrame,
    labels: pd.DataFrame,
    protocol: str,
    executor: Executor | None = None,
    candidates: int = 24,
    sample: int = 400,
) -> tuple[str, ...]:
    """The list that saves most instructions over `functions` (columns `id`, `ir`), each kept only
    where it beats -Oz. Chosen among the lists that save most as labels of these functions.

    At most `sample` functions are tried, those with the smallest ids: ids are hashes.
    """
    labels = labels[(labels.protocol == protocol) & labels.id.isin(functions.id)]
    if labels.empty:
        raise InputError(f"no labels under {protocol} for these functions: run `llmopt autotune`")
    gains = (labels.oz - labels.best).groupby(labels.passes).sum()
    ranked = sorted(gains.index, key=lambda text: (-gains[text], text))
    lists = [passes.parse(text) for text in ranked if passes.parse(text) != passes.OZ][:candidates]
    if not lists:  # no search found anything: the nearest pipeline is as good a guess as any
        return ("-Os",)
    chosen = functions.sort_values("id").head(sample)
    oz = dict(zip(labels.id, labels.oz, strict=True))

    def gain(row: tuple[str, str]) -> list[int]:
        key, text = row
        runs = sandbox.shared().run(text, protocol, lists)
        return [max(0, int(oz[key]) - run.count) if run.ok else 0 for run in runs]

    rows = [(r.id, r.ir) for r in chosen.itertuples() if r.id in oz]
    with ThreadPoolExecutor(1) as alone:
        table = list((executor or alone).map(gain, rows))
    totals = [sum(column) for column in zip(*table, strict=True)]
    return min(zip(totals, lists, strict=True), key=lambda pair: (-pair[0], len(pair[1])))[1]
