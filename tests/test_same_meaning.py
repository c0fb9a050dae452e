"""Two versions of a function on the same inputs: equal, different, or no way to tell, and why."""

import pytest

from llmopt import ir, sandbox, semantics


def verdicts(original, other, reference=None):
    normal = [ir.normalise(text) for text in (original, reference or original, other)]
    control, (verdict,) = semantics.against(normal[0], normal[1], [normal[2]])
    return control, verdict


@pytest.mark.parametrize("name", ["clamp", "crc32", "matrix_multiply", "edit_distance"])
def test_what_llvm_makes_of_a_function_means_the_same(sample, name):
    runs = sandbox.shared().run(sample[name], "stripped", [("-Oz",), ("mem2reg",)], text=True)
    control, (verdict,) = semantics.against(sample[name], runs[0].text, [runs[1].text])
    assert control.status == verdict.status == "equal"
    assert verdict.inputs >= semantics.LEAST


def test_a_wrong_comparison_is_found_and_its_example_is_small(sample):
    good = sample["clamp"]
    control, (verdict,) = semantics.against(good, good, [good.replace("icmp slt", "icmp sgt")])
    assert control.status == "equal" and verdict.status == "differs"
    example = verdict.example
    assert example["original"]["result"] != example["other"]["result"]
    assert len(example["arguments"]) == 3 and "0000000000000000" in example["arguments"]


CALLS = """@g = external global i32
define i32 @f(i32 %0, ptr %1) {
%3 = call i32 @a(i32 %0)
%4 = call i32 @b(ptr %1, i32 %3)
store i32 %4, ptr @g
%5 = add i32 %3, %4
ret i32 %5
}
declare i32 @a(i32)
declare i32 @b(ptr, i32)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@b(ptr %1", "@b(ptr null"),  # another argument
        ("@a(i32 %0)", "@a(i32 7)"),
        ("store i32 %4, ptr @g", "store i32 %3, ptr @g"),  # other memory, the same result
        ("%5 = add i32 %3, %4", "%5 = sub i32 %3, %4"),
    ],
)
def test_calls_globals_and_results_are_seen(old, new):
    assert verdicts(CALLS, CALLS)[1].status == "equal"
    assert old in CALLS
    assert verdicts(CALLS, CALLS.replace(old, new))[1].status == "differs"


def test_a_call_that_is_left_out_is_seen():
    text = "define void @f(i32 %0) {\ncall void @a(i32 %0)\nret void\n}\ndeclare void @a(i32)\n"
    without = "define void @f(i32 %0) {\nret void\n}\n"
    assert verdicts(text, text)[1].status == "equal"
    assert verdicts(text, without)[1].status == "differs"


def test_null_may_be_freed_or_not_and_nothing_else():
    text = """define void @f(ptr %0) {
%2 = load ptr, ptr %0
%3 = icmp eq ptr %2, null
br i1 %3, label %5, label %4
4:
call void @free(ptr %2)
br label %5
5:
ret void
}
declare void @free(ptr)
"""
    always = """define void @f(ptr %0) {
%2 = load ptr, ptr %0
call void @free(ptr %2)
ret void
}
declare void @free(ptr)
"""
    assert verdicts(text, always)[1].status == "equal"
    assert verdicts(text, always.replace("ptr %2)", "ptr %0)"))[1].status == "differs"
    other = text.replace("@free", "@drop"), always.replace("@free", "@drop")
    assert verdicts(*other)[1].status == "differs"


def test_what_a_callee_would_fill_in_is_zero():
    text = """%T = type { i32 }
define i32 @f(i32 %0) {
%2 = alloca i32, align 4
%3 = alloca [4 x i32], align 4
%4 = alloca %T
store i32 %0, ptr %2
call void @fill(ptr %3)
call void @fill(ptr %4)
%5 = load i32, ptr %3
%6 = load i32, ptr %4
%7 = load i32, ptr %2
%8 = add i32 %5, %6
%9 = add i32 %8, %7
ret i32 %9
}
declare void @fill(ptr)
"""
    normal = ir.normalise(text)
    for passes in (("mem2reg",), ("-Oz",)):
        [run] = sandbox.shared().run(normal, "stripped", [passes], text=True)
        assert verdicts(text, run.text)[1].status == "equal"


LOOP = "define i32 @f(i32 %0) {\nbr label %2\n2:\nbr label %2\n}\n"
PLAIN = "define i32 @f(i32 %0) {\nret i32 %0\n}\n"
FAULT = "define i32 @f(i32 %0) {\n%2 = load i32, ptr null\nret i32 %2\n}\n"
UNREACHABLE = "define i32 @f(i32 %0) {\nunreachable\n}\n"


@pytest.mark.parametrize("bad", [LOOP, FAULT, UNREACHABLE])
def test_what_faults_or_hangs_says_nothing_as_original_and_differs_as_answer(bad):
    control, verdict = verdicts(bad, PLAIN)
    assert control.status == "not testable" and verdict.status == "not testable"
    assert "faults or does not end" in control.why
    control, verdict = verdicts(PLAIN, bad)
    assert control.status == "equal" and verdict.status == "differs"
    assert verdict.example["other"] == "faults or does not end"


def test_inputs_on_which_llvm_differs_are_not_held_against_an_answer():
    original = (
        "define i1 @f(i32 %0) {\n%2 = add nsw i32 %0, 1\n%3 = icmp sgt i32 %2, %0\nret i1 %3\n}\n"
    )
    assumed = "define i1 @f(i32 %0) {\nret i1 true\n}\n"  # right unless the addition overflows
    assert verdicts(original, assumed, reference=assumed)[1].status == "equal"
    never = "define i1 @f(i32 %0) {\nret i1 false\n}\n"
    control, verdict = verdicts(original, assumed, reference=never)
    assert control.status == "differs" and verdict.status == "not testable"
    assert "LLVM's own" in verdict.why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('define void @f() {\ncall void asm "nop", ""()\nret void\n}\n', "inline assembly"),
        ("define i32 @f(i32 %0, ...) {\nret i32 %0\n}\n", "variable number"),
        ("%T = type { i32 }\ndefine void @f(ptr byval(%T) %0) {\nret void\n}\n", "as a copy"),
        (
            "define void @f(ptr %0) {\nstore ptr @a, ptr %0\ncall void @a()\nret void\n}\n"
            "declare void @a()\n",
            "address of a function",
        ),
    ],
)
def test_what_cannot_be_run_says_why(text, why):
    control, verdict = verdicts(text, text)
    assert control.status == verdict.status == "not testable" and why in verdict.why


def test_another_signature_is_not_comparable():
    wider = "define i32 @f(i64 %0) {\n%2 = trunc i64 %0 to i32\nret i32 %2\n}\n"
    assert verdicts(PLAIN, wider)[1].why == "another signature"


def test_arguments_and_results_of_all_types():
    text = (
        "define { i64, float } @f(i128 %0, <2 x i32> %1, double %2, i1 %3, { i32, ptr } %4) {\n"
        "%6 = trunc i128 %0 to i64\n%7 = fptrunc double %2 to float\n"
        "%8 = insertvalue { i64, float } poison, i64 %6, 0\n"
        "%9 = insertvalue { i64, float } %8, float %7, 1\nret { i64, float } %9\n}\n"
    )
    control, verdict = verdicts(text, text.replace("float %7, 1", "float 2.0, 1"))
    assert control.status == "equal" and control.inputs == len(semantics.INPUTS)
    assert verdict.status == "differs"


def test_a_function_that_takes_all_memory_costs_only_itself():
    greedy = (
        "define i32 @f(i32 %0) {\n%2 = alloca [1048576 x i8]\n%3 = call i32 @f(i32 %0)\n"
        "store i32 %3, ptr %2\nret i32 %3\n}\n"
    )
    assert verdicts(greedy, greedy)[1].status == "not testable"
    assert verdicts(PLAIN, PLAIN)[1].status == "equal"
