"""Bytes of machine code: measured by LLVM, survived where LLVM aborts, and summed up right."""

import numpy as np
import pandas as pd
import pytest

from llmopt import evaluate, metrics, objects, passes, records
from llmopt.config import PROTOCOLS, InputError

RET = "define void @f() {\nret void\n}\n"
TENTH = "define i32 @f(i32 %0) {\n%2 = sdiv i32 %0, 10\nret i32 %2\n}\n"
# No assembler takes this, and the code generator ends the process with an error.
ABORTS = 'define void @f() {\ncall void asm "no such thing", ""()\nret void\n}\n'


@pytest.fixture(scope="module")
def generator():
    with objects.Generator() as made:
        yield made


def test_bytes_are_the_processor_s(generator):
    assert generator.sizes([RET], "stripped") == [objects.Size(1, 0)]  # c3
    plain, small = (generator.sizes([TENTH], protocol)[0].code for protocol in PROTOCOLS)
    assert small < plain  # a multiplication and shifts, or one slow division


def test_constants_beside_the_code_are_bytes_too(generator, sample):
    oz, fast = objects.measure(
        sample["population_count"], "stripped", [passes.OZ, ("-O2",)], generator
    )
    assert fast["count"] < oz["count"] and fast["code"] > 5 * oz["code"]
    assert oz["constants"] == 0 < fast["constants"]
    assert (oz["passes"], fast["passes"]) == ("-Oz", "-O2")


def test_what_has_no_object_is_none_and_the_next_has_one(generator):
    one = objects.Size(1, 0)
    texts = ["no IR at all", RET, ABORTS, RET]
    assert generator.sizes(texts, "minsize") == [None, one, None, one]
    assert objects.measure(ABORTS, "stripped", [()], generator) == []


ROWS = pd.DataFrame(
    [
        (key, protocol, method, oz, count, listed, "ok")
        for protocol in PROTOCOLS
        for key, oz, counts in (("a", 10, (8, 9)), ("b", 20, (15, 20)), ("c", 30, (20, 33)))
        for method, count, listed in zip(
            ("autotuner", "model"), counts, ("gvn", "sroa"), strict=True
        )
    ],
    columns=["id", "protocol", "method", "oz", "count", "passes", "status"],
)
BYTES = {"a": {"-Oz": 50, "gvn": 40, "sroa": 45}, "b": {"-Oz": 90, "gvn": 80, "sroa": 90},
         "c": {"-Oz": 100, "gvn": 70, "sroa": 120}}  # fmt: skip
MEASURED = pd.DataFrame(
    [
        (key, protocol, listed, 0, size - 2, 2)
        for protocol in PROTOCOLS
        for key, own in BYTES.items()
        for listed, size in own.items()
    ],
    columns=[*objects.KEY, "count", "code", "constants"],
)


def test_bytes_stand_beside_those_of_oz():
    found = objects.beside_oz(ROWS, MEASURED)
    assert len(found) == len(ROWS)
    for row in found.itertuples():
        assert (row.oz_bytes, row.bytes) == (BYTES[row.id]["-Oz"], BYTES[row.id][row.passes])


def test_a_list_that_failed_is_shipped_as_oz():
    failed = (ROWS.id == "b") & (ROWS.method == "model")
    found = objects.beside_oz(ROWS.assign(status=ROWS.status.mask(failed, "crash")), MEASURED)
    own = found[(found.id == "b") & (found.method == "model")]
    assert (own.bytes == own.oz_bytes).all() and len(own) == 2


def test_all_methods_are_about_the_same_functions():
    missing = (MEASURED.id == "c") & (MEASURED.passes == "sroa") & (MEASURED.protocol == "minsize")
    found = objects.beside_oz(ROWS, MEASURED[~missing])
    sets = found.groupby(["protocol", "method"]).id.agg(set)
    assert all(sets["minsize"].map(lambda own: own == {"a", "b"}))
    assert all(sets["stripped"].map(lambda own: own == {"a", "b", "c"}))
    with pytest.raises(InputError, match="no function has all"):
        objects.beside_oz(ROWS, MEASURED[MEASURED.passes == "-Oz"])


def test_summary_is_what_metrics_says():
    table = objects.summary(objects.beside_oz(ROWS, MEASURED)).set_index(
        ["protocol", "method", "measure"]
    )
    assert table.percent["stripped", "autotuner", "bytes"] == pytest.approx(100 * 50 / 240)
    expected = metrics.improvement([10, 20, 30], [9, 20, 33])
    assert table.percent["minsize", "model", "instructions"] == pytest.approx(expected)
    assert (table.low <= table.percent).all() and (table.percent <= table.high).all()


def pairs(saved, bytes_saved):
    oz = np.full(len(saved), 100)
    return pd.DataFrame(
        {"id": range(len(saved)), "protocol": "stripped", "oz": oz + np.arange(len(saved)),
         "count": oz + np.arange(len(saved)) - saved, "oz_bytes": 300 + np.arange(len(saved)),
         "bytes": 300 + np.arange(len(saved)) - np.asarray(bytes_saved)}
    )  # fmt: skip


def test_agreement_is_perfect_where_bytes_follow_instructions_and_reversed_where_they_flee():
    saved = np.array([5, 4, 3, 2, 1, 0, -1])
    same = objects.agreement(pairs(saved, 3 * saved))
    assert (same.within, same.across) == pytest.approx((1, 1))
    assert (same.fewer, same.smaller, same.larger) == (5, 5, 0)
    other = objects.agreement(pairs(saved, -3 * saved))
    assert other.within == pytest.approx(-1) and (other.smaller, other.larger) == (0, 5)
    low, high = objects.agreement(pairs(saved, [3, 9, -2, 5, 0, 9, 1])).interval
    assert low < high
    with pytest.raises(InputError, match="pass more"):
        objects.agreement(pairs([1, 2, 0], [1, 2, 0]))


def test_the_record_counts_as_the_evaluation_does():
    sizes, rows = records.read("objects"), records.read("evaluation")
    assert not sizes.duplicated(objects.KEY).any() and (sizes.code > 0).all()
    both = rows[rows.status == "ok"].merge(sizes, on=objects.KEY, suffixes=("", "_sized"))
    differ = both[both["count"] != both.count_sized]
    assert not differ.passes.map(records.steady).any() and len(differ) < 0.001 * len(both)
    measured = objects.beside_oz(rows[rows.id.isin(sizes.id)], sizes)
    assert set(measured.method) == set(rows.method) > {evaluate.MODEL}
    assert measured.id.nunique() > 0.95 * sizes.id.nunique()
