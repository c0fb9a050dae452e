"""Values keep their names through optimisation, and the numbers come back to the letter."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt import llvm, naming, passes, sandbox
from llmopt.config import PROTOCOLS, InputError

LISTS = ("-Oz", "sroa<modify-cfg>", "mem2reg,simplifycfg", "newgvn,instcombine<no-verify-fixpoint>")
LOOP = """define i32 @f(i32 %0, i32 %1) {
%3 = alloca i32, align 4
store i32 %0, ptr %3, align 4
br label %4
4:
%5 = load i32, ptr %3, align 4
%6 = add i32 %5, %1
store i32 %6, ptr %3, align 4
%7 = icmp slt i32 %6, 100
br i1 %7, label %4, label %8
8:
%9 = load i32, ptr %3, align 4
ret i32 %9
}
"""


@pytest.mark.parametrize("listed", LISTS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_come_back_as_llvm_gives_them(sample, listed, protocol):
    names = passes.parse(listed)
    for text in [*sample.values(), LOOP]:
        run = sandbox.shared().run(text, protocol, [names], text=True)[0]
        assert naming.numbered(naming.optimise(text, protocol, names)) == run.text


def test_what_is_left_of_a_value_has_its_name():
    text = naming.optimise(LOOP, "stripped", ("mem2reg",))
    lines = text.splitlines()
    assert "%6 = add i32 %3.0, %1" in lines and "ret i32 %6" in lines
    assert "%3.0 = phi i32 [ %0, %2 ], [ %6, %4 ]" in lines  # 2 is the entry block
    assert "4:" in lines and "8:" in lines and "2:" not in lines
    numbered = naming.numbered(text)
    assert (
        "%4 = phi i32 [ %0, %2 ], [ %5, %3 ]" in numbered and llvm.canonical(numbered) == numbered
    )


def test_numbering_is_nothing_new_for_llvm_s_own_text(sample):
    for text in sample.values():
        assert naming.numbered(text) == text


def test_what_is_not_defined_is_not_found_by_accident():
    broken = LOOP.replace("%5 = load i32, ptr %3, align 4\n", "")
    text = naming.numbered(broken)
    assert "add i32 %v5, %1" in text
    with pytest.raises(llvm.IRError, match="undefined value '%v5'"):
        llvm.canonical(text)


@given(st.text(alphabet='define @f(i32 %0123,)\n{}:=" type'))
@settings(max_examples=200, deadline=None)
def test_numbering_never_raises(text):
    naming.numbered(text)
    naming.numbered("define " + text + "\n}\n")


def test_types_with_numbers_are_refused():
    with pytest.raises(InputError, match="numbers"):
        naming.named("%0 = type { i32 }\n" + LOOP)


def test_many_at_once_and_a_worker_that_dies(sample, monkeypatch):
    items = [(text, "minsize", passes.OZ) for text in sample.values()]
    expected = [naming.optimise(*item) for item in items]
    assert list(naming.optimise_all(items, 2)) == expected
    monkeypatch.setattr(naming, "_CHUNK", 9)
    monkeypatch.setattr(naming, "_optimise_all", _dies_at_gcd)
    made = list(naming.optimise_all(items, 1))
    lost = [i for i, item in enumerate(items) if "@gcd(" in item[0]][0] // 9
    assert made == [None if i // 9 == lost else "made" for i in range(len(items))]


def _dies_at_gcd(items):
    if any("@gcd(" in text for text, *_ in items):
        os._exit(1)
    return ["made"] * len(items)
