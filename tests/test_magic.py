"""`%%passes` reads C, C++ and IR, shows each function, and says in a line what is wrong."""

import os
import re
import subprocess
import sys

import pytest

from llmopt import magic
from llmopt.config import InputError

C = "int twice(int x)\n{\n    int y = x;\n    return x + y;\n}\n"
CPP = "namespace n {\nint twice(const int &x) { return x + x; }\n}\n"
IR = "define i32 @twice(i32 %x) {\nentry:\n  %y = add i32 %x, %x ; twice\n  ret i32 %y\n}\n"


def words(views) -> str:
    return re.sub(r"<style>.*?</style>|<[^>]+>", "", "".join(v.data for v in views), flags=re.S)


@pytest.mark.parametrize(
    ("code", "suffix"),
    [
        (C, ".c"),
        (CPP, ".cpp"),
        (IR, ".ll"),
        ("#include <vector>\nint f();", ".cpp"),
        ("#include <stdio.h>\nint f(int a, int b) { return (a & b) ? a&b : 0; }", ".c"),
        ("@g = global i32 0", ".ll"),
        ('target triple = "x86_64-linux-gnu"', ".ll"),
        ("int f(int target) {\n  target = target * 2;\n  return target;\n}", ".c"),
    ],
)
def test_the_language_is_guessed(code, suffix):
    assert magic.guess(code) == suffix


@pytest.mark.parametrize("code", [C, CPP, IR])
def test_counts_and_code_before_and_after(code):
    (view,) = magic.show("--protocol stripped sroa, instcombine", code)
    text = words([view])
    counts = re.search(
        r"(\d+) instructions before, (\d+) \((.*?)\) after "
        r"sroa&lt;modify-cfg&gt;,instcombine&lt;no-verify-fixpoint&gt;, (\d+) after -Oz \(stripped",
        text,
    )
    before, after, _, oz = counts.groups()
    assert int(before) >= int(after) == int(oz) > 1
    assert "shl" in text and "ret i32" in text


def test_a_function_after_the_other_and_a_list_of_nothing():
    views = magic.show("", C + "int other(void) { return 1; }")
    assert len(views) == 2
    assert "twice" in words(views[:1]) and "(no change)" in words(views[1:])


def test_a_failing_list_costs_its_function_only(monkeypatch):
    whole = magic.views.effect

    def effect(text, protocol, names, title):
        if title == "twice":
            raise InputError("gvn: crash: stack overflow")
        return whole(text, protocol, names, title)

    monkeypatch.setattr(magic.views, "effect", effect)
    views = magic.show("gvn", C + "int other(void) { return 1; }")
    assert words(views[:1]) == "twice: gvn: crash: stack overflow"
    assert "instructions before" in words(views[1:])


@pytest.mark.parametrize(
    ("line", "cell", "said"),
    [
        ("--protocol strippd gvn", C, "did you mean 'stripped'"),
        ("--protocol", C, "unknown protocol ''"),
        ("--protcol stripped gvn", C, "did you mean '--protocol'"),
        ("gvnn", C, "did you mean 'gvn'"),
        ("-Oz,-Os", C, "at most one"),
        ("gvn", " \n", "the cell is empty"),
        ("gvn", "int f(int x) { return }", r"cell\.c:1: expected expression \(read as C; else"),
        ("--c gvn", "int f(int x) {\nreturn }", r"cell\.c:2: expected expression$"),
        ("gvn", "int f(int x);", "defines no functions: write one"),
        ("--cpp gvn", "inline int f() { return 1; }", "no functions"),
        ("gvn", "define i32 @f() {\n  ret i64 0\n}", r"cell\.ll:2"),
    ],
)
def test_what_is_wrong_is_one_line(line, cell, said):
    with pytest.raises(InputError, match=said) as raised:
        magic.show(line, cell)
    assert "\n" not in str(raised.value) and "/tmp" not in str(raised.value)


def test_in_a_shell(tmp_path):
    """A process of its own: an IPython shell takes hold of the interpreter that it runs in."""
    code = (
        "%load_ext llmopt.magic\n"
        f"print(get_ipython().run_cell({'%%passes gvn' + chr(10) + C!r}).success)\n"
        f"print(get_ipython().run_cell({'%%passes gvnn' + chr(10) + C!r}).success)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--HistoryManager.enabled=False", "-c", code],
        env=os.environ | {"IPYTHONDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    shown = done.stdout + done.stderr
    assert "HTML object" in shown and "True" in shown and "False" in shown, shown
    assert re.search(r"^UsageError: unknown pass 'gvnn' \(did you mean 'gvn'\?\)", shown, re.M)
    assert "Traceback" not in shown
