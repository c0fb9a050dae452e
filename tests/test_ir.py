import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import ir, llvm

MODULE = r"""; ModuleID = 'm.c'
source_filename = "m.c"
target datalayout = "e-m:e-i64:64"
target triple = "x86_64-unknown-linux-gnu"

%struct.node = type { i32, ptr, %struct.inner }
%struct.inner = type { i8 }
%struct.unused = type { i64 }

$shared = comdat any

@.str = private unnamed_addr constant [20 x i8] c"noundef ; %0 @g !x\0A\00", align 1
@counter = internal dso_local global i32 7, align 4
@table = dso_local local_unnamed_addr constant { [2 x i32], ptr } { [2 x i32] [i32 1, i32 2], ptr null }, section "s", align 16
@"odd name" = thread_local global i32 0
@other = alias i32 (i32, ptr), ptr @first

; Function Attrs: noinline nounwind
define dso_local noundef signext i32 @first(i32 noundef signext %0, ptr noundef nonnull align 8 dereferenceable(16) %1) #0 !dbg !5 {
  %3 = alloca i32, align 4 ; a comment
    #dbg_declare(ptr %3, !1, !DIExpression(), !2)
  store i32 %0, ptr %3, align 4, !tbaa !7
  switch i32 %0, label %7 [
    i32 1, label %4
    i32 2, label %7
  ], !prof !9

4:                                                ; preds = %2
  %5 = call noundef i32 (ptr, ...) @printf(ptr noundef @.str, i32 noundef 3) #4
  %6 = getelementptr inbounds nuw %struct.node, ptr %1, i32 0, i32 0
  br label %7

7:                                                ; preds = %4, %2, %2
  %8 = load i32, ptr @counter, align 4, !range !10
  %9 = load i32, ptr @table, align 16
  %10 = load i32, ptr @"odd name", align 4
  %11 = call range(i32 0, 9) i32 @second(i32 %8)
  ret i32 %11
}

define internal i32 @second(i32 %0) #1 comdat($shared) align 2 personality ptr @__gxx_personality_v0 {
  %2 = invoke i32 @first(i32 %0, ptr null)
          to label %3 unwind label %4

3:                                                ; preds = %1
  ret i32 %2

4:                                                ; preds = %1
  %5 = landingpad { ptr, i32 }
          cleanup
  resume { ptr, i32 } %5
}

define linkonce_odr i32 @from_header(i32 %0) #1 {
  ret i32 %0
}

declare i32 @printf(ptr noundef, ...) #2
declare i32 @__gxx_personality_v0(...)

attributes #0 = { noinline nounwind "frame-pointer"="all" }
!llvm.module.flags = !{!0}
!0 = !{i32 1, !"wchar_size", i32 4}
"""  # noqa: E501


@pytest.fixture(scope="module")
def parts():
    return ir.split(MODULE)


def test_split_gives_every_definition_of_the_file_and_none_of_the_headers(parts):
    assert list(parts) == ["first", "second"]
    assert list(ir.split(MODULE, skip_headers=False)) == ["first", "second", "from_header"]


def test_what_is_left_of_a_function(parts):
    assert parts["first"].splitlines() == [
        "%struct.node = type { i32, ptr, %struct.inner }",
        "%struct.inner = type { i8 }",
        "@.str = external constant [20 x i8], align 1",
        "@counter = external global i32, align 4",
        "@table = external constant { [2 x i32], ptr }, align 16",
        '@"odd name" = external thread_local global i32',
        "define i32 @first(i32 %0, ptr %1) {",
        "%3 = alloca i32, align 4",
        "store i32 %0, ptr %3, align 4",
        "switch i32 %0, label %7 [ i32 1, label %4 i32 2, label %7 ]",
        "4:",
        "%5 = call i32 (ptr, ...) @printf(ptr @.str, i32 3)",
        "%6 = getelementptr inbounds nuw %struct.node, ptr %1, i32 0, i32 0",
        "br label %7",
        "7:",
        "%8 = load i32, ptr @counter, align 4",
        "%9 = load i32, ptr @table, align 16",
        '%10 = load i32, ptr @"odd name", align 4',
        "%11 = call i32 @second(i32 %8)",
        "ret i32 %11",
        "}",
        "declare i32 @printf(ptr, ...)",
        "declare i32 @second(i32)",
    ]


def test_an_instruction_over_several_lines_becomes_one(parts):
    assert "%2 = invoke i32 @first(i32 %0, ptr null) to label %3 unwind label %4" in parts["second"]
    assert "%5 = landingpad { ptr, i32 } cleanup" in parts["second"]


def test_declarations_lose_names_and_keep_types():
    text = (
        "%T = type { i32 }\n"
        "define void @f(i32 %0, %T %1) {\ncall void @g(i32 %0, %T %1)\n"
        "call void @h(ptr null, i8 1)\nret void\n}\n"
        "declare void @g(i32, %T)\n"
        "define void @h(ptr byval(%T) %0, ...) {\nret void\n}\n"
    )
    lines = ir.split(text)["f"].splitlines()
    assert lines[-2:] == ["declare void @g(i32, %T)", "declare void @h(ptr byval(%T), ...)"]
    named = "define void @f() {\ncall void @g(i32 1)\nret void\n}\ndeclare void @g(i32 %x)\n"
    assert ir.split(named)["f"].endswith("declare void @g(i32)\n")


def test_space_inside_strings_is_not_ours():
    line = '@s = constant [6 x i8] c"( ,  )"'
    assert ir.normalise(line) == line + "\n"


def test_strings_keep_what_looks_like_attributes_and_comments():
    line = '@s = constant [9 x i8] c"noundef ;"'
    assert ir.normalise(line) == line + "\n"


def test_attributes_that_change_meaning_stay():
    line = "declare void @f(ptr noundef byval(%struct.a) align 8, ptr inalloca(i32), i32 inreg)"
    kept = "declare void @f(ptr byval(%struct.a), ptr inalloca(i32), i32 inreg)"
    assert ir.normalise(line) == kept + "\n"


def test_normalising_twice_changes_nothing(sample, parts):
    for text in (*sample.values(), *parts.values()):
        assert ir.normalise(text) == text


@given(st.text(max_size=300))
def test_normalise_and_count_take_any_text(text):
    once = ir.normalise(text)
    assert ir.count(once) >= 0


def test_llvm_reads_what_split_wrote_and_prints_the_same(sample, parts):
    for text in (*sample.values(), *parts.values()):
        assert llvm.canonical(text) == text


def test_count_agrees_with_llvm(sample):
    for text in sample.values():
        with llvm.Module(text) as module:
            assert ir.count(text) == module.count() > 0


@pytest.mark.parametrize("protocol", ["stripped", "minsize"])
def test_llvm_takes_the_module_text_of_both_protocols(parts, protocol):
    for text in parts.values():
        with llvm.Module(text, protocol) as module:
            marked = "minsize optsize" in module.text()
            assert marked == (protocol == "minsize")


def test_rename_is_short_and_exactly_reversible(sample, parts):
    for text in (*sample.values(), *parts.values()):
        renamed, names = ir.rename(text)
        assert ir.restore(renamed, names) == text
        assert len(renamed) <= len(text) + 20
        assert "@f0(" in renamed
    renamed, names = ir.rename(parts["first"])
    assert "@printf" in renamed and "%T0 = type { i32, ptr, %T1 }" in renamed
    assert names["@f0"] == "@first" and names["%T1"] == "%struct.inner"


def test_symbols_that_llvm_derives_from_a_name_follow_it(parts):
    _, names = ir.rename(parts["first"])
    forward = {own: short for short, own in names.items()}
    line = "@switch.table.first = private constant [2 x i32] zeroinitializer"
    short = ir.substitute(line, forward)
    assert short.startswith("@switch.table.f0 =")
    assert ir.restore(short, names) == line


def test_structural_hash_forgets_names_only(parts):
    one = parts["first"]
    other = one.replace("@first", "@renamed").replace("%struct.node", "%struct.x")
    other = other.replace("@counter", "@c2")
    assert ir.structural_hash(one) == ir.structural_hash(other)
    assert ir.function_id(one) != ir.function_id(other)
    wider = one.replace("{ i8 }", "{ i64 }")  # another layout is another function
    assert ir.structural_hash(one) != ir.structural_hash(wider)
    changed = one.replace("i32 3)", "i32 4)")
    assert ir.structural_hash(one) != ir.structural_hash(changed)
    assert ir.structural_hash(one) != ir.structural_hash(one.replace("@printf", "@puts"))
