import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite.binding as other_llvm
import pytest

from llmopt import autotune, ir, llvm, passes
from llmopt.config import InputError


def variants(sample, how_many):
    """Many different functions: the sample's, and what a few passes make of them."""
    rng = random.Random(0)
    found = dict.fromkeys(sample.values())
    sources = list(found)
    while len(found) < how_many:
        with llvm.Module(rng.choice(sources)) as module:
            names = tuple(rng.choice(EARLY) for _ in range(rng.randint(1, 4)))
            found[llvm.apply(module, names, text=True).text] = None
    return list(found)


EARLY = [
    "sroa<modify-cfg>", "reg2mem", "loop-rotate", "loop-unroll-full", "scalarizer", "lower-switch",
    "simplifycfg", "loop-extract", "lcssa", "break-crit-edges", "mergereturn", "tailcallelim",
    "loop-unroll", "gvn", "early-cse", "loop-reduce", "indvars", "reassociate", "licm", "lnicm",
]  # fmt: skip


@pytest.mark.slow
def test_the_two_back_ends_agree_on_counts_and_text(sample):
    rng = random.Random(1)
    work = []
    for number, text in enumerate(variants(sample, 200)):
        protocol = ("stripped", "minsize")[number % 2]
        lists = [("-Oz",), *(autotune.random_list(rng) for _ in range(9))]
        work += [(text, protocol, names) for names in lists]
    assert len({text for text, _, _ in work}) >= 200 and len(work) >= 2000

    def both(item):
        text, protocol, names = item
        with llvm.Module(text, protocol) as module:
            ours = llvm.apply(module, names, text=True)
        theirs = llvm.opt(text, protocol, names)
        assert ours.ok and theirs.ok, (names, ours.message, theirs.message)
        return ours.count == theirs.count and ours.text == theirs.text, item

    with ThreadPoolExecutor(2) as pool:
        differing = [item for same, item in pool.map(both, work) if not same]
    assert differing == []


def test_counts_agree_with_another_llvm_binding(sample):
    for text in sample.values():
        with llvm.Module(text) as module:
            run = llvm.apply(module, ("-Oz",), text=True)
        parsed = other_llvm.parse_assembly(ir.module_text(run.text, "stripped"))
        instructions = [i for f in parsed.functions for b in f.blocks for i in b.instructions]
        assert len(instructions) == run.count == ir.count(run.text)


def test_the_whole_list_does_what_its_passes_do_one_by_one(sample):
    names = ("sroa<modify-cfg>", "simplifycfg", "licm", "-Oz")
    with llvm.Module(sample["knapsack"]) as module, module.copy() as step:
        for name in names:
            step.run(passes.pipeline([name]))
        assert step.count() == llvm.apply(module, names).count


def test_a_copy_leaves_the_original_alone(sample):
    with llvm.Module(sample["gcd"]) as module:
        before = module.text()
        assert llvm.apply(module, ("-Oz",)).count < module.count()
        assert module.text() == before


def test_protocols_differ_where_a_loop_is_unrolled(sample):
    text = sample["crc32"]
    counts = {}
    for protocol in ("stripped", "minsize"):
        with llvm.Module(text, protocol) as module:
            counts[protocol] = llvm.apply(module, ("-Oz",)).count
    assert counts["minsize"] < counts["stripped"]


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ("define i32 @f( {", 1, "expected type"),
        ("define i32 @f() {\nret i64 0\n}", 2, "doesn't match function result type"),
        ("define i32 @f() {\n%1 = add i32 1, 2\n%2 = add i32 %9, 1\nret i32 %2\n}", 3, "undefined"),
        ("garbage", 1, "expected top-level entity"),
        ("define void @f() {\n%2 = add i32 1, 1\n%2 = add i32 1, 1\nret void\n}", 3, "or greater"),
        ("define i32 @f(i1 %0) {\nbr i1 %0, label %2, label %4\n2:\n%3 = add i32 1, 1\n"
         "br label %4\n4:\nret i32 %3\n}", None, "dominate"),
    ],
)  # fmt: skip
def test_invalid_ir_gives_line_and_reason(text, line, reason):
    with pytest.raises(llvm.IRError, match=reason) as caught:
        llvm.canonical(text)
    assert caught.value.line == line


def test_an_unknown_pipeline_is_refused_with_what_llvm_says(sample):
    with llvm.Module(sample["gcd"]) as module:
        with pytest.raises(InputError, match="unknown pass name 'no-such-pass'"):
            module.run("no-such-pass")


def test_bitcode_is_read(sample, tmp_path):
    done = subprocess.run(
        [llvm.find_opt(), "-o", "-"],
        input=ir.module_text(sample["gcd"], "stripped").encode(),
        capture_output=True,
    )
    assert llvm.canonical(done.stdout, None) == sample["gcd"]


def test_opt_times_out_and_reports_what_it_refuses(sample):
    assert llvm.opt(sample["gcd"], "stripped", ("-Oz",), seconds=0.001).status == "timeout"
    run = llvm.opt("define i32 @f( {", "stripped", ("-Oz",))
    assert run.status == "parse" and "expected type" in run.message


@pytest.mark.parametrize(
    "variable, function", [("LLMOPT_LIBLLVM", "find_library"), ("LLMOPT_OPT", "find_opt")]
)
def test_overrides_are_used_and_checked(variable, function, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=f"{variable}=.*nowhere"):
        getattr(llvm, function)()
    monkeypatch.setenv(variable, sys.executable)
    assert str(getattr(llvm, function)()) == sys.executable


def loading(library: Path) -> str:
    """What loading it as libLLVM says, in a process of its own."""
    code = (
        "from llmopt import llvm\ntry:\n    llvm.load()\nexcept llvm.InputError as e:\n    print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"LLMOPT_LIBLLVM": str(library), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_library_that_is_not_llvm_is_refused_by_name(tmp_path):
    wrong = tmp_path / "libLLVM.so"
    wrong.write_bytes(b"no library")
    assert f"{wrong}: cannot be used as libLLVM 22" in loading(wrong)


@pytest.mark.skipif(sys.platform != "linux", reason="the Linux wheel's own C++ runtime")
def test_a_missing_libatomic_is_named_with_the_command_that_mends_it(tmp_path, monkeypatch):
    pytest.importorskip("ziglang")
    monkeypatch.setenv("ZIG_LOCAL_CACHE_DIR", str(tmp_path / "zig"))
    atomic, runtime = tmp_path / "libatomic.so", tmp_path / "libc++.so.1.0"
    (tmp_path / "empty.c").write_text("int empty;\n")
    (tmp_path / "libLLVM.so").touch()
    made = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-shared",
        "-nostdlib",
        tmp_path / "empty.c",
        "-o",
    ]
    subprocess.run([*made, atomic, "-Wl,-soname,libatomic.so.0"], check=True)
    subprocess.run([*made, runtime, "-Wl,--no-as-needed", atomic], check=True)
    said = loading(tmp_path / "libLLVM.so")
    assert "libatomic.so.0: cannot open shared object file" in said
    assert "apt-get install libatomic1" in said and said.count("\n") == 1
