"""The context window: lengths as the model meets them, and shares that add up."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llmopt import ir, passes, pipeline, prompt, sandbox, sources, tokenizer, window
from llmopt.config import PROTOCOLS, InputError
from llmopt.prompt import Example

LISTS = {protocol: [("sroa<modify-cfg>", "newgvn"), ("-O3",)] for protocol in PROTOCOLS}


@pytest.fixture(scope="module")
def tok(sample):
    return tokenizer.train([prompt.shorten(text)[0] for text in sample.values()], 512)


def test_a_function_without_label_is_measured_like_one_with(tok, sample):
    text = sample["crc32"]
    rows = window.of_long(text, ir.count(text), tok, LISTS)
    assert [row["protocol"] for row in rows] == list(PROTOCOLS)
    for row in rows:
        oz, *others = sandbox.shared().run(
            text, row["protocol"], [passes.OZ, *LISTS[row["protocol"]]], text=True
        )
        assert row["oz"] == oz.count
        assert row["coreset"] == min([oz.count, *(run.count for run in others if run.ok)])
        gains = tuple(
            (names, oz.count - run.count)
            for names, run in zip(LISTS[row["protocol"]], others, strict=True)
        )
        example = Example(
            ir.function_id(text), row["protocol"], text, passes.OZ, ir.count(text), oz.count,
            oz.text, oz.count, ((passes.OZ, 0), *gains),
        )  # fmt: skip
        assert window.of_example(example, tok) | {"best": None} == row
        assert row["prompt"] + row["answer"] == prompt.length(example, tok)
        assert row["prompt"] == len(prompt.encode_prompt(text, row["protocol"], tok)[0])


def test_without_lists_the_gain_is_unknown(tok, sample):
    rows = window.of_long(sample["gcd"], 20, tok, None)
    assert [row["coreset"] for row in rows] == [None, None] and rows[0]["oz"] > 0


def test_a_function_that_llvm_cannot_take_has_no_row(tok, sample):
    assert window.of_long(sample["gcd"].replace("ret i32", "ret i99"), 20, tok, None) == []


def test_functions_beyond_a_limit_are_read_from_the_sources(tmp_path):
    source = sources.Source(
        name="sample", licence="", about="", suite="s", split="test", files=("*.c",), scales=(),
        path="data/sample",
    )  # fmt: skip
    every, missing = window.beyond([source], 0, tmp_path / "all")
    long, _ = window.beyond([source], 1500, tmp_path / "long")
    assert missing == [] and 0 < len(long) < len(every)
    assert set(long.id) == set(every.id[every.ir.str.len() > 1500])
    assert list(long.id) == sorted(long.id) and set(long.project) == {"sample"}
    twice, _ = window.beyond([source, replace(source, name="copy")], 1500, tmp_path / "twice")
    assert list(twice.id) == list(long.id)  # near-duplicates are left out


ROWS = pd.DataFrame(
    {
        "id": list("abcd"),
        "unoptimised": [10, 20, 30, 40],
        "oz": [5, 10, 20, 30],
        "coreset": [5, 9, 18, 23],
    }
)
TOKENS = pd.Series([100, 200, 300, 400])


def values(table, measure):
    return list(table[table.measure == measure].percent)


def test_shares_are_of_all_functions_instructions_and_gain():
    table = window.shares(ROWS, TOKENS, [50, 200, 399, 400])
    assert values(table, "functions") == [100, 50, 25, 0]
    assert values(table, "instructions") == [100, 70, 40, 0]
    assert values(table, "gain") == [100, 90, 70, 0]
    assert (table.low <= table.percent).all() and (table.percent <= table.high + 1e-9).all()
    assert (table[table.window == 200].high > table[table.window == 200].low).all()
    with pytest.raises(InputError, match="no functions"):
        window.shares(ROWS[:0], TOKENS[:0])


def test_the_interval_is_over_functions_and_not_over_their_rows():
    many = pd.concat([ROWS.assign(id=[f"{i}{name}" for name in ROWS.id]) for i in range(20)])
    twice = pd.concat([many, many])
    one = window.shares(many, pd.concat([TOKENS] * 20), [200])
    both = window.shares(twice, pd.concat([TOKENS] * 40), [200])
    pd.testing.assert_frame_equal(one, both)


def test_a_sample_stands_for_its_stratum():
    known = ROWS.assign(coreset=[5, 9, 18, np.nan])
    strata = pd.Series(["short", "short", "long", "long"])
    weights = window.weigh(known, strata)
    assert list(weights) == [1, 1, 2, 0]
    assert values(window.shares(known, TOKENS, [250], weights), "gain") == [100 * 4 / 5]
    everything = window.weigh(ROWS, strata)
    assert list(everything) == [1, 1, 1, 1]
    plain, weighed = (window.shares(ROWS, TOKENS, [250], w) for w in (None, everything))
    pd.testing.assert_frame_equal(plain, weighed)


def test_the_record_is_whole():
    rows = pd.read_parquet(pipeline.RESULTS / "window.parquet")
    released = pipeline.released()
    known = rows.merge(released, on=["id", "protocol"], suffixes=("", "_released"))
    test = released[released.split == "test"]
    assert len(known) == len(test) and (known.oz == known.oz_released).all()
    assert (known.best == known.best_released).all()
    assert (known.characters == known.characters_released).all()
    # A list with gvn-sink may have been luckier here than when the label was made.
    assert (known.coreset >= known.best).mean() > 0.999 and (known.coreset <= known.oz).all()
    long = rows[rows.best.isna()]
    about = pipeline.record("limits")["window"]
    assert long.id.nunique() == about["beyond_the_corpus"]
    assert long[long.coreset.notna()].id.nunique() == about["searched"]
    assert long.characters.min() > rows[rows.best.notna()].characters.max()
