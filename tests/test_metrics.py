"""Scores: formulas against hand calculation, edge cases, and real LLVM messages."""

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import metrics
from llmopt.config import InputError


def test_improvement_is_over_the_sum_not_the_mean():
    assert metrics.improvement([100, 10], [90, 10]) == pytest.approx(100 * 10 / 110)
    assert metrics.improvement([10], [12]) == pytest.approx(-20)


@pytest.mark.parametrize("oz, method", [([], []), ([1], [1, 2]), ([0], [0]), ([1.0], [np.nan])])
def test_bad_counts_are_refused(oz, method):
    for score in (metrics.improvement, metrics.interval, metrics.with_backup, metrics.outcome):
        with pytest.raises(InputError):
            score(oz, method)


def test_interval_holds_the_value_and_follows_the_seed():
    rng = np.random.default_rng(1)
    oz = rng.integers(5, 100, 300)
    method = oz - (rng.random(300) < 0.1) * rng.integers(1, 5, 300)
    low, high = metrics.interval(oz, method, seed=3, n=500)
    assert low < metrics.improvement(oz, method) < high
    assert (low, high) == metrics.interval(oz, method, seed=3, n=500)
    assert (low, high) != metrics.interval(oz, method, seed=4, n=500)


@pytest.mark.parametrize("oz, method", [([7], [6]), ([5, 5], [5, 5]), ([10, 20, 30], [9, 18, 27])])
def test_interval_of_equal_gains_is_a_point(oz, method):
    value = metrics.improvement(oz, method)
    assert metrics.interval(oz, method) == pytest.approx((value, value))


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(0, 99)), min_size=1, max_size=20))
def test_backup_is_never_worse_and_the_outcome_adds_up(pairs):
    oz, method = map(list, zip(*pairs, strict=True))
    row = metrics.outcome(oz, method, n=20)
    assert row.saved - row.lost == sum(oz) - sum(method)
    assert row.improved + row.regressed <= row.functions == len(oz)
    assert row.interval[0] <= row.interval[1]
    assert metrics.outcome(oz, metrics.with_backup(oz, method), n=20).lost == 0


def test_bleu_ignores_spacing_and_orders_texts():
    code = "define i32 @f(i32 %0) {\n%2 = add nsw i32 %0, 1\nret i32 %2\n}"
    assert metrics.bleu([code], [code]) == pytest.approx(1)
    assert metrics.bleu([code.replace(", ", " ,")], [code]) == pytest.approx(1)
    near = metrics.bleu([code.replace("add", "sub")], [code])
    assert 0 == metrics.bleu(["ret void"], [code]) == metrics.bleu([None], [code]) < near < 1
    assert metrics.lex('@a = constant [3 x i8] c"a b"') == '@a = constant [ 3 x i8 ] c "a b"'


def test_exact_match_and_mape():
    assert metrics.exact_match(["a", None, "b\n"], ["a", "b", "b"]) == pytest.approx(2 / 3)
    assert metrics.mape([9, 22], [10, 20]) == pytest.approx(10)
    for score in (metrics.bleu, metrics.exact_match, metrics.mape):
        with pytest.raises(InputError):
            score([], [])
    with pytest.raises(InputError):
        metrics.bleu(["a"], [])
    with pytest.raises(InputError):
        metrics.mape([1], [0])


BROKEN = [
    ("type error", "define i32 @f(i64 %a) {\n%b = add i32 %a, 1\nret i32 %b\n}"),
    ("type error", "define i32 @f() {\nret i64 1\n}"),
    ("type error", "define i32 @f(i32 %a) {\n%b = load i32, i32 %a\nret i32 %b\n}"),
    ("type error", "define void @f(i32 %a) {\n%b = zext i32 %a to i8\nret void\n}"),
    ("type error", "define void @f() {\nx:\nstore float 1.0, i32 0\nret void\n}"),
    (
        "instruction forward referenced",
        "define i32 @f() {\n%1 = add i32 %2, 1\n%2 = add i64 1, 1\nret i32 %1\n}",
    ),
    (
        "instruction forward referenced",
        "define i32 @f(i32 %a) {\n%x = add i32 %y, 1\n%y = add i32 %a, 1\nret i32 %x\n}",
    ),
    ("undefined value", "define i32 @f() {\nret i32 %b\n}"),
    ("undefined value", "define i32 @f() {\nret i32 %7\n}"),
    ("undefined value", "define i32 @f() {\n%a = load i32, ptr @g\nret i32 %a\n}"),
    ("undefined function", "define void @f() {\ncall void @g()\nret void\n}"),
    ("invalid redefinition", "define void @f() {\n%b = add i8 1, 1\n%b = add i8 1, 1\nret void\n}"),
    ("invalid redefinition", "define void @f() {\nret void\n}\ndefine void @f() {\nret void\n}"),
    ("syntax error", "define i32 @f(i32 %a) {\n%b = ad i32 %a, 1\nret i32 %b\n}"),
    ("syntax error", "define i32 @f(i32 %a) {\n%b = add i32 %a 1\nret i32 %b\n}"),
    ("syntax error", "define i32 @f(i32 %a) {\nret i32 %a\n"),
    ("syntax error", "hello"),
    ("invalid value for constant", "define float @f() {\nret float 1\n}"),
    ("invalid value for constant", "define i32 @f() {\nret i32 1.0\n}"),
    ("invalid value for constant", '@a = global [3 x i8] c"abcd"'),
    ("index error", "define void @f({i32} %a) {\n%b = extractvalue {i32} %a, 3\nret void\n}"),
    (
        "index error",
        "define void @f(ptr %a) {\n%b = getelementptr {i8, i8}, ptr %a, i32 0, i32 5\nret void\n}",
    ),
    ("type error", "define ptr @f(ptr %a) {\n%b = getelementptr %T, ptr %a, i32 1\nret ptr %b\n}"),
    ("type error", "%T = type { %T }\n@a = external global %T"),
    (
        "wrong phi",
        "define i8 @f() {\nbr label %1\n1:\n%2 = phi i8 [ 0, %0 ], [ 1, %3 ]\nret i8 %2\n3:\n"
        "ret i8 0\n}",
    ),
    ("other", "define void @f() {\nx:\nbr label %x\n}"),
]


@pytest.mark.parametrize("name, text", BROKEN)
def test_error_classes_of_real_messages(name, text):
    with pytest.raises(RuntimeError) as error:
        llvm.parse_assembly(text).verify()
    assert metrics.classify_error(str(error.value)) == name
    assert name in metrics.ERRORS


def test_messages_without_the_quoted_line_are_classified_too():
    bare = "not valid LLVM-IR: line 2: use of undefined value "
    assert metrics.classify_error(bare + "'@g'") == "undefined function"
    assert metrics.classify_error(bare + "'%3'") == "undefined value"
    assert metrics.classify_error("a message never seen") == "other"


def test_a_difference_is_paired():
    rng = np.random.default_rng(2)
    oz = rng.integers(50, 100, 200)
    noise = rng.integers(-20, 20, 200)
    one, other = oz - noise - 1, oz - noise  # the same up to one instruction each
    value, low, high = metrics.difference(oz, one, other, n=500)
    assert value == pytest.approx(metrics.improvement(oz, one) - metrics.improvement(oz, other))
    assert low <= value <= high and high - low < 0.2  # though each alone varies by much more
    alone = metrics.interval(oz, one, n=500)
    assert alone[1] - alone[0] > 2


def test_groups_are_drawn_whole():
    oz, method = [10] * 40, [9] * 20 + [11] * 20
    groups = ["a"] * 20 + ["b"] * 20
    before, after = metrics.by_group(oz, method, groups)
    assert before.tolist() == [200, 200] and after.tolist() == [180, 220]
    low, high = metrics.interval(before, after, n=500)
    assert (low, high) == (-10, 10) and metrics.interval(oz, method, n=500)[1] < 5
    with pytest.raises(InputError, match="one each"):
        metrics.by_group(oz, method, groups[1:])
