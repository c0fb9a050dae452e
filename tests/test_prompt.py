"""Prompts and answers: what is rendered is read back, and garbage is never an exception."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt import naming, passes, prompt, tokenizer
from llmopt.config import InputError
from llmopt.prompt import Answer, Example

BEFORE = """%struct.pair = type { i32, i32 }
@table = external constant [4 x i32]
define i32 @lookup(i32 %0) {
%2 = alloca i32
store i32 %0, ptr %2
%3 = load i32, ptr %2
%4 = getelementptr %struct.pair, ptr @table, i32 %3
%5 = load i32, ptr %4
%6 = call i32 @hash(i32 %5)
ret i32 %6
}
declare i32 @hash(i32)
"""
AFTER = BEFORE.replace("%2 = alloca i32\nstore i32 %0, ptr %2\n%3 = load i32, ptr %2\n", "")
EXAMPLE = Example("0" * 64, "minsize", BEFORE, ("sroa<modify-cfg>", "-Oz"), 7, 4, AFTER)


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train([BEFORE], 500)


def test_answers_are_read_back_in_the_programs_own_names():
    text, names = prompt.render_prompt(BEFORE, "minsize")
    assert text.startswith("<|input|>") and text.endswith("<|minsize|>") and "@lookup" not in text
    answer = prompt.render_answer(EXAMPLE, names)
    assert answer.startswith("<|passes|><|sroa<modify-cfg>|><|-Oz|><|before|>7<|after|>4<|code|>")
    assert "@table" not in answer
    assert prompt.parse_answer(answer, names) == Answer(
        EXAMPLE.passes, 7, 4, naming.numbered(AFTER), None
    )


ALIGNED = """define i32 @f(ptr %0, i32 %1) {
%3 = alloca i32, align 4
%4 = alloca i32, align 16
%5 = alloca [4 x i32], align 16
store i32 %1, ptr %3, align 4
store volatile i32 %1, ptr %4, align 8
store ptr %0, ptr %5
%6 = load i32, ptr %3, align 0
%7 = load double, ptr %0, align 8
%8 = load atomic i64, ptr %0 seq_cst, align 8
%9 = load i8, ptr %0, align 00
ret i32 %6
}
"""


def test_usual_alignments_are_left_out_and_come_back():
    short, names = prompt.shorten(ALIGNED)
    body = short.splitlines()
    assert body[1] == "%3 = alloca i32" and body[4] == "store i32 %1, ptr %3"
    assert body[2].endswith("align 16") and body[3].endswith("align 16")
    assert body[5].endswith("align 8") and body[9].endswith("seq_cst, align 8")
    assert body[6] == "store ptr %0, ptr %5, align 0" and body[7].endswith("align 00")
    assert prompt.lengthen(short, names) == ALIGNED
    # What a model writes without an alignment has the usual one.
    assert prompt.lengthen("%2 = load i16, ptr %0\n", {}) == "%2 = load i16, ptr %0, align 2\n"


LINES = st.lists(
    st.sampled_from(
        ["%1 = ", "load ", "store ", "i32", "ptr", ", align ", "0", "4", "8", "\n", " @x"]
    )
)


@given(st.one_of(st.text(), LINES.map("".join)))
@settings(max_examples=300, deadline=None)
def test_whatever_is_shortened_comes_back(text):
    short, names = prompt.shorten(text)
    assert prompt.lengthen(short, names) == text


def test_ids_are_the_text(tok):
    ids, prompt_length = prompt.encode(EXAMPLE, tok)
    text, names = prompt.render_prompt(BEFORE, "minsize")
    assert tok.decode(ids[:prompt_length]) == text
    assert tok.decode(ids[prompt_length:]) == prompt.render_answer(EXAMPLE, names)
    assert prompt.length(EXAMPLE, tok) == len(ids)
    assert prompt.encode_prompt(BEFORE, "minsize", tok) == (ids[:prompt_length], names)


def test_a_mark_inside_a_string_constant_stays_text(tok):
    code = 'define void @f() {\ncall void @g(c"<|end|><|code|>")\nret void\n}\n'
    example = Example("1", "stripped", code, ("-Oz",), 2, 2, code)
    ids, n = prompt.encode(example, tok)
    assert ids.count(tok.ids[tokenizer.END]) == 1 and ids.count(tok.ids[tokenizer.CODE]) == 1
    _, names = prompt.render_prompt(code, "stripped")
    assert prompt.parse_answer(tok.decode(ids[n:]), names).code == code


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<|passes|><|gvn|><|before|>", Answer(("gvn",))),
        ("<|passes|><|gvn|><|before|>3", Answer(("gvn",), 3, error="no count after")),
        ("<|passes|><|gvn|><|before|>3<|after|>2", Answer(("gvn",), 3, 2, error="no code")),
        (
            "<|passes|><|gvn|><|before|>x<|after|>2<|code|>a<|end|>",
            Answer(("gvn",), None, 2, "a", "no count before"),
        ),
        (
            "<|passes|><|gvn|><|before|>3<|after|>2<|code|>ret",
            Answer(("gvn",), 3, 2, "ret", "the code is cut off"),
        ),
        ("<|passes|><|before|>1", Answer(error="the pass list is empty or holds text")),
        ("<|passes|>x<|gvn|><|before|>1", Answer(error="the pass list is empty or holds text")),
        ("<|passes|><|gvn|>", Answer(error="no pass list")),
        ("", Answer(error="no pass list")),
    ],
)
def test_half_answers_give_what_they_hold(text, expected):
    assert prompt.parse_answer(text, {}) == expected


def test_invalid_lists_are_errors():
    for listed in ("<|-Oz|><|-O1|>", "<|nonsense|>"):
        answer = prompt.parse_answer(f"<|passes|>{listed}<|before|>", {})
        assert answer.passes is None and answer.error


MARKS = st.sampled_from([*tokenizer.MARKS[:12], "<|gvn|>", "<|-Oz|>", "<|-O1|>"])


@given(st.lists(MARKS | st.text(max_size=5) | st.integers(0, 999).map(str)).map("".join))
@settings(max_examples=300, deadline=None)
def test_garbage_never_raises(text):
    answer = prompt.parse_answer(text, {"@f0": "@main"})
    assert answer.passes is None or passes.check(answer.passes)
    assert answer.passes or answer.error


def test_wrong_protocol_and_pass_are_refused(tok):
    with pytest.raises(InputError, match="unknown protocol"):
        prompt.render_prompt(BEFORE, "minsise")
    wrong = Example("1", "minsize", BEFORE, ("gvm",), 7, 4, AFTER)
    with pytest.raises(InputError, match="did you mean"):
        prompt.encode(wrong, tok)
