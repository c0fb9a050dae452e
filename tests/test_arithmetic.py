"""Numbers that a model writes: which are compared with which, and how often they are right."""

import pandas as pd
import pytest
from scipy.stats import binomtest

from llmopt import arithmetic
from llmopt.config import InputError

CODE = pd.DataFrame(
    [("a", "stripped", 9, 9, 5, 5), ("b", "stripped", 123, 124, 45, 40),
     ("c", "minsize", 57, 571, 10, 9)],
    columns=["id", "protocol", "unoptimised", "predicted_before", "count", "predicted_after"],
)  # fmt: skip
TEXT = """\
%T0 = type { i32, [7 x i8] }
define i32 @f3(i32 %0, ptr %1) {
%3 = mul i32 %0, 6
%4 = mul i32 %3, 7
%5 = add i32 %4, -15
store i32 %5, ptr %1, align 4
ret i32 %5
}
"""
REFERENCE = """\
define i32 @f3(i32 %0, ptr %1) {
%3 = mul i32 %0, 42
%4 = add i32 %3, -15
store i32 %4, ptr %1, align 4
%5 = load [16 x i8], ptr %1, align 1
ret i32 %4
}
"""


def test_counts_become_a_row_a_number():
    table = arithmetic.counts(CODE)
    assert len(table) == 6
    before = table[table.what == "before"]
    assert list(before.true) == [9, 123, 57] and list(before.said) == [9, 124, 571]
    assert list(before.bin.astype(str)) == ["1–9", "80–159", "40–79"]
    unsaid = CODE.assign(predicted_after=[None, 40, None], predicted_before=None)
    assert list(arithmetic.counts(unsaid).true) == [45]
    with pytest.raises(InputError, match="no answer gives a count"):
        arithmetic.counts(unsaid.assign(predicted_after=None))


def test_rates_hold_their_share_and_narrow_with_more_cases():
    right = pd.Series([True] * 30 + [False] * 10 + [True] * 3 + [False])
    groups, functions = pd.Series(["many"] * 40 + ["few"] * 4), pd.Series(range(44))
    table = arithmetic.rates(right, groups, functions)
    assert list(table.percent) == [75, 75] and list(table.number) == [4, 40]
    assert (table.low < 75).all() and (table.high > 75).all()
    width = table.high - table.low
    assert width["few"] > 2 * width["many"]
    for name, hits, of in (("many", 30, 40), ("few", 3, 4)):
        ends = binomtest(hits, of).proportion_ci(method="wilson")
        assert list(table.loc[name, ["low", "high"]] / 100) == pytest.approx(list(ends), abs=1e-4)
    alike = arithmetic.rates(right, groups, functions // 4)
    assert list(alike.percent) == [75, 75] and list(alike.number) == [4, 40]
    assert (alike.high - alike.low)["many"] > 1.5 * width["many"]  # 10 functions, not 40


def test_digits_are_right_from_the_left():
    table = arithmetic.digits(arithmetic.counts(CODE))
    found = table.set_index(["what", "length", "digit"]).percent
    assert [found["before", 3, at] for at in (1, 2, 3)] == [100, 100, 0]  # 124 for 123
    assert [found["before", 2, at] for at in (1, 2)] == [0, 0]  # 571 for 57: another length
    assert [found["after", 2, at] for at in (1, 2)] == [50, 0]  # 40 for 45, 9 for 10
    assert found["before", 1, 1] == 100


def test_constants_are_those_of_instructions():
    found = arithmetic.constants(TEXT, REFERENCE, REFERENCE)
    assert [one.true for one in found] == [42, -15]  # none of names, types, alignments, arrays
    assert all(one.right for one in found)
    assert [one.in_prompt for one in found] == [False, True]


def test_a_wrong_constant_is_found_and_a_wrong_line_is_not_judged():
    wrong = REFERENCE.replace("42", "13").replace("%4 = add i32 %3", "%4 = sub i32 %3")
    (only,) = arithmetic.constants(TEXT, REFERENCE, wrong)
    assert (only.true, only.said, only.right) == (42, 13, False)
    renumbered = REFERENCE.replace("%4", "%9")
    assert len(arithmetic.constants(TEXT, REFERENCE, renumbered)) == 2
    assert arithmetic.constants(TEXT, REFERENCE, "%%% nothing of the kind") == []


def test_kinds_go_by_size_and_by_what_can_be_copied():
    wrong = arithmetic.constants(TEXT, REFERENCE, REFERENCE.replace("42", "13"))
    table = arithmetic.kinds(arithmetic.table(wrong).assign(id="a")).set_index("kind")
    assert table["size"].astype(str).to_dict() == dict.fromkeys(
        [arithmetic.COPIED, arithmetic.COMPUTED], "10–99"
    )
    assert table.percent.to_dict() == {arithmetic.COPIED: 100, arithmetic.COMPUTED: 0}
    with pytest.raises(InputError, match="no constants"):
        arithmetic.kinds(arithmetic.table([]))


def test_constants_of_more_than_64_bits_are_numbers_too():
    large = REFERENCE.replace("42", str(2**100))
    table = arithmetic.table(arithmetic.constants(TEXT, large, large))
    assert table.true.max() == 2.0**100 and table.right.all()


def test_the_exponent_of_a_float_is_no_constant():
    text = "define double @f1(double %0) {\n%2 = fadd double %0, {}\nret double %2\n}\n"
    ours, theirs = text.replace("{}", "2.000000e+02"), text.replace("{}", "2.000000e+03")
    assert arithmetic.constants(ours, ours, theirs) == []
