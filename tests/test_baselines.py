"""The single best list: the one that saves most when it is kept only where it beats -Oz."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from llmopt import baselines, ir, passes, sandbox
from llmopt.config import InputError

LISTS = ("mem2reg,simplifycfg", "-O1", "dce", "newgvn,mem2reg,instcombine<no-verify-fixpoint>")


@pytest.fixture(scope="module")
def functions(sample) -> pd.DataFrame:
    rows = [{"id": ir.function_id(text), "ir": text} for text in sample.values()]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def labels(functions) -> pd.DataFrame:
    """Labels as a search would leave them: lists in turn, each said to save one instruction."""
    box = sandbox.shared()
    oz = [box.run(text, "stripped", [passes.OZ])[0].count for text in functions.ir]
    listed = [LISTS[i % len(LISTS)] for i in range(len(functions))]
    return pd.DataFrame(
        {"id": functions.id, "protocol": "stripped", "oz": oz, "best": [n - 1 for n in oz],
         "passes": listed}
    )  # fmt: skip


def gain(functions: pd.DataFrame, names: tuple[str, ...]) -> int:
    saved = 0
    for text in functions.ir:
        oz, run = sandbox.shared().run(text, "stripped", [passes.OZ, names])
        saved += max(0, oz.count - run.count) if run.ok else 0
    return saved


def test_it_is_the_best_of_the_labels_by_trial(functions, labels):
    best = baselines.single_list(functions, labels, "stripped")
    gains = {passes.parse(text): gain(functions, passes.parse(text)) for text in LISTS}
    assert gains[best] == max(gains.values()) > 0


def test_many_workers_choose_as_one_does(functions, labels):
    with ThreadPoolExecutor(2) as pool:
        assert baselines.single_list(functions, labels, "stripped", pool) == baselines.single_list(
            functions, labels, "stripped"
        )


def test_oz_itself_is_no_candidate(functions, labels):
    only = labels.assign(passes="-Oz")
    assert baselines.single_list(functions, only, "stripped") == ("-Os",)


def test_without_labels_it_says_what_to_do(functions, labels):
    with pytest.raises(InputError, match="llmopt autotune"):
        baselines.single_list(functions, labels, "minsize")
    with pytest.raises(InputError, match="no labels"):
        baselines.single_list(functions.head(0), labels, "stripped")
