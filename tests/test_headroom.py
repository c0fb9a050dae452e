"""Headroom tables add up, and labels counted through `opt` are found right or wrong."""

import pandas as pd
import pytest

from llmopt import autotune, headroom, llvm, metrics, passes, sandbox
from llmopt.config import PROTOCOLS, InputError
from llmopt.labels import Known

ROWS = [  # id protocol unoptimised oz best passes
    ("a", "stripped", 49, 50, 20, "sroa<modify-cfg>,gvn"),
    ("a", "minsize", 49, 27, 25, "gvn"),
    ("b", "stripped", 12, 10, 10, "-Oz"),
    ("b", "minsize", 12, 10, 10, "-Oz"),
    ("c", "stripped", 30, 20, 18, "gvn,-Oz"),
    ("c", "minsize", 30, 21, 14, "gvn"),
    ("d", "stripped", 400, 40, 38, "gvn,-Oz"),
    ("d", "minsize", 400, 30, 30, "-Oz"),
]
TABLE = pd.DataFrame(ROWS, columns=["id", "protocol", "unoptimised", "oz", "best", "passes"])


@pytest.fixture(scope="module")
def labelled(sample):
    """Three functions of the sample with labels that LLVM in process gives."""
    rows, box = [], sandbox.shared()
    for name in ("crc32", "gcd", "trace4"):
        for protocol in PROTOCOLS:
            listed = ("sroa<modify-cfg>", "simplifycfg")
            runs = box.run(sample[name], protocol, [(), passes.OZ, listed])
            row = dict(zip(("unoptimised", "oz", "best"), (r.count for r in runs), strict=True))
            text = passes.format(listed)
            rows.append({"ir": sample[name], "protocol": protocol, "passes": text} | row)
    return pd.DataFrame(rows)


def test_groups_are_what_metrics_says_of_their_functions():
    table = headroom.by(TABLE, headroom.sizes(TABLE.unoptimised))
    assert list(table.group.unique()) == ["11–20", "21–40", "41–80", "over 320"]
    row = table[(table.group == "41–80") & (table.protocol == "stripped")].iloc[0]
    assert (row.functions, row.improved) == (1, 1)
    assert row.percent == row.low == row.high == pytest.approx(60)
    whole = headroom.by(TABLE, ["all"] * len(TABLE)).set_index("protocol")
    stripped = TABLE[TABLE.protocol == "stripped"]
    expected = metrics.outcome(stripped.oz, stripped.best, n=500)
    assert whole.percent["stripped"] == expected.percent == pytest.approx(100 * 34 / 120)
    assert (whole.low["stripped"], whole.high["stripped"]) == expected.interval


def test_nothing_to_improve_on_is_left_out_and_no_labels_are_bad_input():
    empty = TABLE.assign(oz=0, best=0)
    assert headroom.by(pd.concat([TABLE, empty]), ["x"] * 8 + ["y"] * 8).group.unique() == ["x"]
    with pytest.raises(InputError, match="no labels"):
        headroom.by(TABLE[:0], [])


def test_ranking_goes_by_one_protocol_and_keeps_groups_together():
    table = headroom.ranked(headroom.by(TABLE, TABLE.id))
    assert list(table.group) == ["a", "a", "c", "c", "d", "d", "b", "b"]
    table = headroom.ranked(headroom.by(TABLE, TABLE.id), "minsize")
    assert list(table.group[:2]) == ["c", "c"] and list(table.protocol[:2]) == list(PROTOCOLS)


@pytest.mark.parametrize(
    "gains, share, expected",
    [([9, 0, 1, 1], 0.5, 1), ([1, 1, 1, 1], 0.5, 2), ([1, 1, 1], 1, 3), ([0, 0], 0.5, 0)],
)
def test_holders(gains, share, expected):
    assert headroom.holders(gains, share) == expected


def test_sizes_cover_every_count():
    assert headroom.sizes(pd.Series([1, 10, 11, 320, 321, 10**6])).notna().all()


def test_lists_are_summed_up():
    table = headroom.made_of(TABLE).set_index("protocol")
    assert table.oz_share["stripped"] == 0.25 and table.oz_share["minsize"] == 0.5
    assert (table.others["stripped"], table.distinct["stripped"]) == (3, 2)
    assert (table.mean_length["stripped"], table.longest["stripped"]) == (2, 2)
    frequency = headroom.pass_frequency(TABLE)
    assert frequency.index[0] == "gvn"
    assert frequency.stripped["-Oz"] == pytest.approx(2 / 3) and frequency.minsize["-Oz"] == 0


def test_lists_that_serve_the_gain():
    served = headroom.serving(TABLE)
    stripped = served[served.protocol == "stripped"]
    assert list(stripped.list) == ["sroa<modify-cfg>,gvn", "gvn,-Oz"]
    assert list(stripped.share) == pytest.approx([30 / 34, 1])
    assert headroom.lists_for(served, 0.8) == {"stripped": 1, "minsize": 1}
    assert headroom.lists_for(served, 1) == {"stripped": 2, "minsize": 1}


def test_minsize_removes_no_more_than_there_is():
    pairs = headroom.paired(TABLE).set_index("id")
    assert dict(pairs.removed) == {"a": 23, "b": 0, "c": 0, "d": 2}
    found = headroom.removed_by_minsize(TABLE)
    assert (found.functions, found.headroom, found.removed) == (4, 34, 25)
    assert found.percent == pytest.approx(100 * 25 / 34)
    assert found.interval[0] <= found.percent <= found.interval[1]
    with pytest.raises(InputError, match="no headroom"):
        headroom.removed_by_minsize(TABLE.assign(best=TABLE.oz))


def test_a_function_without_both_protocols_is_not_compared():
    assert "a" not in set(headroom.paired(TABLE[1:]).id)


def test_culprits_are_the_passes_that_most_lists_share():
    fields = ("passes", "status", "signal", "message", "times")
    poison = [
        dict(zip(fields, row, strict=True))
        for row in (
            ("-Oz,adce,unify-loop-exits", "crash", 11, "Segmentation fault", 2),
            ("-Oz,unify-loop-exits", "crash", 11, "Segmentation fault", 3),
            ("unify-loop-exits,gvn", "crash", 11, "Segmentation fault", 1),
            ("mem2reg,loop-extract", "timeout", 14, "no answer in 10 s", 9),
        )
    ]
    table = headroom.culprits(poison)
    assert list(table.suspect) == ["loop-extract", "unify-loop-exits"]
    assert list(table.lists) == [1, 3] and list(table.times) == [9, 6]
    assert table.example[1] == "-Oz,unify-loop-exits"
    assert headroom.culprits([]).empty


def test_races_are_steady_and_never_worse_than_oz(sample):
    known = Known((("sroa<modify-cfg>", "gvn"), ("mem2reg", "simplifycfg")), 2)
    marks = (2, 10, 30)
    runs = [headroom.race(sample["crc32"], "minsize", known, marks, "x") for _ in range(2)]
    assert runs[0] == runs[1]
    for name in ("random", "ours"):
        curve = runs[0][name]
        assert len(curve) == 3 and curve == sorted(curve, reverse=True)
        assert curve[0] <= runs[0]["oz"]
    found = autotune.search(sample["crc32"], "minsize", 30, "x", known.lists, known.start)
    assert runs[0]["ours"][-1] >= found.best  # minimising may find one better


def test_variants_differ_by_one_idea_each(sample):
    known = Known((("sroa<modify-cfg>", "gvn"), ("-Oz", "adce")), 2)
    table = headroom.variants(sample["crc32"], "stripped", known, 30, 5, "x").set_index("variant")
    blind = headroom.uniform_curve(sample["crc32"], "stripped", [30], "x")
    assert (table.oz["uniform lists"], table.best["uniform lists"]) == (blind[0], blind[1][0])
    assert (table.best <= table.oz).all()
    assert table.best["and their prefixes"] <= table.best["uniform lists"]
    assert table.spent["lists that won elsewhere"] == 3  # -Oz is the first
    assert table.spent["our search, with patience"] <= table.spent["our search"]


def test_bars_of_a_recorded_bench():
    curves = {"random": [1.0, 2.0, 3.0], "ours": [2.0, 3.95, 4.0]}
    flat = {"random": [0.0, 0.0, 0.0], "ours": [0.0, 0.0, 0.0]}
    bench = {
        "compilations": [100, 300, 3000],
        "protocols": {"stripped": curves, "minsize": flat},
    }
    table = headroom.bars(bench).set_index("protocol")
    assert (table.small["stripped"], table.large["stripped"]) == (300, 3000)
    assert table.share["stripped"] == pytest.approx(3.95 / 4) and table.share["minsize"] == 1
    assert table.beats_random.all() and table.levelled.all()
    curves["ours"] = [2.0, 2.9, 4.0]
    assert not headroom.bars(bench).set_index("protocol").loc["stripped", "levelled"]
    assert not headroom.bars(bench).set_index("protocol").loc["stripped", "beats_random"]
    rows = headroom.recorded_curves(bench)
    assert len(rows) == 12 and rows.percent.max() == 4


def test_opt_agrees_with_the_labels_and_finds_a_wrong_one(labelled):
    try:
        llvm.find_opt()
    except InputError as error:
        pytest.skip(str(error))
    assert headroom.recount(labelled).same.all()
    wrong = labelled.assign(best=labelled.best.where(labelled.index != 2, labelled.best - 1))
    assert list(headroom.recount(wrong).same) == [True, True, False, True, True, True]


def test_cost_is_the_product_of_its_factors():
    step = {"tasks": 10, "compilations": 1000, "core_seconds": 1.0}
    record = {"cost": {p: {"search": step} for p in PROTOCOLS}}
    assert headroom.spent(record).core_hours.sum() == pytest.approx(2 / 3600)
    table = headroom.against_paper(record, 10)
    assert list(table.ours[:3]) == pytest.approx([20, 100, 1])
    for side in ("paper", "ours", "factor"):
        unit = 1 if side == "factor" else 1 / (24 * 3600 * 1000)
        assert table[side][:3].prod() * unit == pytest.approx(table[side][3])
