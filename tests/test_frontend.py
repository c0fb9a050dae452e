"""The clang front end: what is in the module, what is not, and what an error says."""

import os
import re
import sys
import time

import pytest

from llmopt import frontend, ir, llvm
from llmopt.config import InputError

C_SOURCE = """
#include "helper.h"
#include <assert.h>
#include <stdio.h>
static int scale(int x) { return square(x) * 3; }
int report(int n) {
    int total = 0;
    for (int i = 0; i < n; i++) total += scale(i);
    assert(total >= 0);
    printf("%s %s %s %d\\n", __FILE__, __DATE__, __TIME__, total);
    return total;
}
"""
HEADER = "static inline int square(int x) { return x * x; }\n"
CPP_SOURCE = """
#include <algorithm>
#include <vector>
struct Shape {
    int sides;
    explicit Shape(int n);
    virtual ~Shape();
    virtual int area(int) const;
    int inline_in_class() const { return sides; }
};
Shape::Shape(int n) : sides(n) {}
Shape::~Shape() {}
int Shape::area(int x) const { return x + inline_in_class(); }
template <class T> T largest(T a, T b) { return a < b ? b : a; }
static std::vector<int> global_state = {3, 1, 2};
int second(std::vector<int>& v) {
    std::sort(v.begin(), v.end());
    return largest(v.at(1), global_state[0]);
}
"""


@pytest.fixture(autouse=True)
def _home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.delenv("LLMOPT_CLANG", raising=False)


def project(folder, name="report.c", text=C_SOURCE):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "helper.h").write_text(HEADER)
    (folder / name).write_text(text)
    return folder / name


def defined(module):
    return set(re.findall(r"^define .*?@([\w.$]+)\(", module, re.M))


def test_a_c_file_gives_its_own_functions_in_valid_unoptimised_ir(tmp_path):
    done = frontend.compile(project(tmp_path))
    assert done.ok and done.error is None
    assert defined(done.ir) == {"scale", "report"} and done.headers == 1
    llvm.canonical(done.ir, None)  # the whole module parses and verifies
    functions = ir.split(done.ir)
    assert "alloca i32" in functions["report"]  # not optimised
    assert "optnone" not in done.ir and "ubsan" not in done.ir and "stack_chk" not in done.ir


def test_bytes_depend_neither_on_the_folder_nor_on_the_working_directory_nor_on_the_day(
    tmp_path, monkeypatch
):
    one = frontend.compile(project(tmp_path / "here"))
    monkeypatch.chdir(project(tmp_path / "a much longer name" / "elsewhere").parent)
    two = frontend.compile("report.c")
    three = frontend.compile("elsewhere/report.c", cwd=tmp_path / "a much longer name")
    assert one.ir == two.ir
    assert str(tmp_path) not in one.ir + three.ir and "1970" in one.ir
    assert "report.c" in one.ir  # __FILE__ is the name relative to the folder


def test_the_ir_is_the_same_as_without_debug_information(tmp_path, monkeypatch):
    for path in (project(tmp_path), project(tmp_path, "shape.cpp", CPP_SOURCE)):
        with_lines = ir.split(frontend.compile(path).ir)
        with monkeypatch.context() as patch:
            flags = ["-g0" if f == "-gline-tables-only" else f for f in frontend.FLAGS]
            patch.setattr(frontend, "FLAGS", flags)
            without = ir.split(frontend.compile(path).ir)
        assert with_lines and all(without[name] == text for name, text in with_lines.items())


def test_cpp_inline_template_and_compiler_made_functions_are_left_out(tmp_path):
    done = frontend.compile(project(tmp_path, "shape.cpp", CPP_SOURCE))
    assert done.ok
    own = {"_ZN5ShapeC2Ei", "_ZN5ShapeD2Ev", "_ZN5ShapeD0Ev", "_ZNK5Shape4areaEi"}
    assert defined(done.ir) == own | {"_Z6secondRNSt3__16vectorIiNS_9allocatorIiEEEE"}
    assert done.headers > 20
    assert not re.search(r"^define .*linkonce", done.ir, re.M)
    llvm.canonical(done.ir, None)


def test_an_included_c_file_and_a_generated_parser_count_as_own(tmp_path):
    (tmp_path / "part.c").write_text("int part(int x) { return x + 1; }\n")
    path = tmp_path / "all.c"
    path.write_text('#include "part.c"\n#line 7 "grammar.y"\nint rule(void) { return 7; }\n')
    assert defined(frontend.compile(path).ir) == {"part", "rule"}


def test_an_error_is_one_line_with_file_and_line(tmp_path):
    done = frontend.compile(project(tmp_path, "bad.c", "int f(void)\n{\n  return x;\n}\n"))
    assert not done.ok and done.ir is None
    assert done.error == "bad.c:3: use of undeclared identifier 'x'"
    done = frontend.compile(project(tmp_path, "lost.c", '#include "nowhere.h"\n'))
    assert done.error == "lost.c:1: 'nowhere.h' file not found"


def test_old_c_compiles(tmp_path):
    text = "f(a, b) char *b; { int *p = b; return undeclared(a, p); }\n"
    assert frontend.compile(project(tmp_path, "old.c", text)).ok


def test_includes_and_defines(tmp_path):
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "api.h").write_text("int api(int);\n")
    text = "#include <api.h>\nint api(int x) { return x + OFFSET; }\n"
    path = project(tmp_path, "api.c", text)
    assert not frontend.compile(path, includes=["include"]).ok
    assert frontend.compile(path, includes=["include"], defines=["OFFSET=4"]).ok


def test_a_file_whose_name_looks_like_a_flag(tmp_path):
    assert frontend.compile(project(tmp_path, "-O3.c")).ok


def test_ll_passes_through_unchanged(tmp_path):
    path = tmp_path / "f.ll"
    path.write_text("define i32 @f() {\n  ret i32 1\n}\n; the end\n")
    assert frontend.compile(path).ir == path.read_text()


def test_bad_paths_and_kinds_raise(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        frontend.compile(tmp_path / "none.c")
    (tmp_path / "f.rs").write_text("fn main() {}")
    with pytest.raises(InputError, match="not a C or C"):
        frontend.compile(tmp_path / "f.rs")


def test_a_compilation_over_its_limit_is_ended_and_says_so(tmp_path):
    path = project(tmp_path, "slow.cpp", CPP_SOURCE)
    done = frontend.compile(path, seconds=0.01)
    assert not done.ok and "took over 0.01 s" in done.error


def test_a_timeout_ends_the_children_too(tmp_path, monkeypatch):
    mark = tmp_path / "still alive"
    child = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    monkeypatch.setattr(frontend, "PATIENCE", 2)
    done = frontend.execute([sys.executable, "-c", code], seconds=0.5)
    assert done.timeout and done.signal == 9 and done.returncode is None
    time.sleep(2.2)
    assert not mark.exists()


def test_the_limit_is_of_the_processor_and_not_of_the_clock():
    waits = [sys.executable, "-c", "import time; time.sleep(1.5)"]
    done = frontend.execute(waits, seconds=0.5)
    assert done.returncode == 0 and not done.timeout and done.seconds > 1.5
    done = frontend.execute([sys.executable, "-c", "while True: pass"], seconds=0.5)
    assert done.timeout and done.signal == 9


def test_available_names_path_and_version():
    path, version = frontend.available()
    assert os.access(path, os.X_OK) and re.match(r"\d+\.\d+", version)


def test_a_named_clang_is_used_or_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_CLANG", str(tmp_path / "no-clang"))
    with pytest.raises(InputError, match="LLMOPT_CLANG"):
        frontend.available()
    wrapper = tmp_path / "clang"
    wrapper.write_text(f'#!/bin/sh\nexec "{frontend._zig()}" cc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("LLMOPT_CLANG", str(wrapper))
    done = frontend.compile(project(tmp_path))
    assert done.ok and done.command[0] == str(wrapper)
