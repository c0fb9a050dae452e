"""The command line as a user meets it: a process, its exit, its lines, its JSON."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from llmopt import journal, llvm
from llmopt.config import ROOT

SAMPLE = ROOT / "data" / "sample" / "algorithms.c"


def llmopt(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "llmopt.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"LLMOPT_SCALE": "smoke"} | environment,
        cwd=ROOT,
    )


def lines(done):
    """Standard error without progress bars."""
    text = done.stderr.replace("\r", "\n")
    return [line for line in text.splitlines() if line.startswith("llmopt: ")]


def refused(done, *words):
    """Exit 2 and one line that holds all the words; never a traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = lines(done)[-1]
    for word in words:
        assert word in last, last
    return last


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder as `llmopt train` leaves it, of random weights: its answers are lists, too."""
    from llmopt import baselines, model, tokenizer
    from llmopt.prompt import Example

    folder = tmp_path_factory.mktemp("model")
    tok = tokenizer.train([SAMPLE.read_text()], 512)
    tok.save(folder)
    model.build("smoke", len(tok), seed=0).save_pretrained(folder)
    lists = dict.fromkeys(("stripped", "minsize"), ("sroa<modify-cfg>",))
    text = "define void @f() {\nret void\n}\n"
    known = [Example("1", p, text, ("-Oz",), 1, 1, text, 1, ((("-Oz",), 0),)) for p in lists]
    features = baselines.Features(dict.fromkeys(lists, ())).fit(known, known)
    baselines.save(folder, lists, features)
    return folder


def test_help_names_every_command():
    done = llmopt("--help")
    assert done.returncode == 0
    for name in ("doctor", "optimize", "corpus", "autotune", "tokenizer", "train", "evaluate"):
        assert name in done.stdout
        page = llmopt(name, "--help")
        assert page.returncode == 0
        assert "Example:" in page.stdout or name == "corpus"


def test_doctor_finds_everything_and_says_how_to_mend():
    done = llmopt("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert all(found[name]["ok"] for name in ("libLLVM", "clang", "graphviz", "opt"))
    broken = llmopt("doctor", LLMOPT_LIBLLVM="/nowhere/libLLVM.so")
    assert broken.returncode == 1
    assert "missing libLLVM" in broken.stdout and "unset it or correct it" in broken.stdout


def test_optimize_rows_and_files(model, tmp_path):
    out = tmp_path / "out"
    done = llmopt(
        "optimize", SAMPLE, "--model", model, "--protocol", "stripped", "--json", "-o", out
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["protocol"] == "stripped" and len(value["functions"]) == 27
    for row in value["functions"]:
        assert row["chosen"] <= row["oz"] and isinstance(row["passes"], list)
        assert row["extra_compilations"] == int(row["asked"] != ["-Oz"])
        with open(row["output"]) as file, llvm.Module(file.read(), protocol=None) as module:
            assert module.count() == row["chosen"]
    assert len(list(out.glob("*.ll"))) == 27


def test_samples_trade_compilations_for_size(model):
    ask = ["optimize", SAMPLE, "--model", model, "--protocol", "stripped", "--json"]
    said = [llmopt(*ask, *more) for more in ([], ["--samples", "1"], ["--samples", "6"])]
    one, same, six = (json.loads(done.stdout)["functions"] for done in said)
    assert one == same
    for few, many in zip(one, six, strict=True):
        assert many["chosen"] <= few["chosen"] <= few["oz"]
        assert many["asked"] == few["asked"]
        assert few["extra_compilations"] <= 1
    spent = [row["extra_compilations"] for row in six]
    assert max(spent) <= 6 and sum(one > 1 for one in spent) > len(spent) / 2  # the others: no room


def test_optimize_reads_ir_and_bitcode_and_cpp(model, tmp_path, sample):
    (tmp_path / "a.ll").write_text(sample["gcd"])
    text = sample["clamp"].encode()
    bitcode = subprocess.run([llvm.find_opt(), "-o", "-"], input=text, capture_output=True).stdout
    (tmp_path / "b.bc").write_bytes(bitcode)
    (tmp_path / "c.cpp").write_text("namespace n { int twice(int x) { return x + x; } }\n")
    done = llmopt("optimize", tmp_path, "--model", model, "--json")
    names = [row["name"] for row in json.loads(done.stdout)["functions"]]
    assert names == ["gcd", "clamp", "_ZN1n5twiceEi"]


def test_evaluate_writes_the_documented_json(model, tmp_path):
    path = tmp_path / "result.json"
    done = llmopt("evaluate", SAMPLE.parent, "--model", model, "--limit", "6", "--json", path)
    assert done.returncode == 0, done.stderr
    value = json.loads(path.read_text())
    assert set(value["protocols"]) == {"stripped", "minsize"}
    for found in value["protocols"].values():
        assert found["functions"] == 6 and found["oz"] > 0
        assert set(found["methods"]) == {"autotuner", "features", "model", "single-list"}
        for row in found["methods"].values():
            low, high = row["ci95"]
            assert low <= row["improvement"] <= high
            assert {"improved", "regressed", "extra_compilations", "with_oz_backup"} <= set(row)
        assert found["methods"]["autotuner"]["improvement"] >= 0
        keys = {"functions", "compiles", "exact_match", "bleu", "mape_before", "mape_after"}
        assert keys <= set(found["codegen"])
    assert "stripped: 6 functions" in done.stdout


def test_evaluate_compares_methods_that_try_several_lists(model, network_corpus, tmp_path):
    path = tmp_path / "result.json"
    ask = ["evaluate", SAMPLE, "--model", model, "--limit", "2", "--json", path]
    done = llmopt(*ask, "--methods", "coreset,priority")
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["trials"]
    assert {row["method"] for row in rows} == {"coreset", "priority"}
    assert {row["functions"] for row in rows} == {2}
    for row in rows:
        low, high = row["with_oz_backup_interval"]
        assert 0 <= low <= row["with_oz_backup"] <= high and row["compilations"] <= row["tried"]
    assert "the best of several lists" in done.stdout
    refused(llmopt("evaluate", "--methods", "random", "--release"), "with --methods all or none")
    refused(llmopt(*ask, "--methods", "corset"), "unknown method 'corset' (did you mean 'coreset'")


def test_bad_c_gives_the_compilers_first_error_and_the_rest_goes_on(model, tmp_path):
    shutil.copy(SAMPLE, tmp_path / "good.c")
    (tmp_path / "bad.c").write_text("int f(void)\n{\n    return undeclared;\n}\n")
    (tmp_path / "empty.c").write_text("")
    (tmp_path / "only.c").write_text("int declared(int);\n")
    (tmp_path / "junk.c").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "junk.bc").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "bad.ll").write_text("define i32 @f() {\n  ret i64 0\n}\n")
    done = llmopt("optimize", tmp_path, "--model", model, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["functions"]) == 27
    said = "\n".join(lines(done))
    assert "bad.c:3:" in said and "undeclared" in said
    assert "empty.c: empty file" in said
    assert "only.c: defines no functions, only declarations" in said
    assert "junk.c: binary data" in said and "junk.bc: not LLVM bitcode" in said
    assert "bad.ll:2:" in said and "doesn't match function result type" in said


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("bad.c", "int f(void) { return x; }", ["bad.c:1:", "undeclared identifier 'x'"]),
        ("bad.ll", "define i32 @f( {", ["bad.ll:1:", "expected type"]),
        ("empty.c", "", ["empty.c", "empty file"]),
        ("only.c", "int f(int);", ["only.c", "only declarations"]),
        ("junk.c", "\0\1\2", ["junk.c", "binary"]),
        ("junk.bc", "BC no bitcode", ["junk.bc", "not LLVM bitcode"]),
        ("notes.txt", "hello", ["notes.txt", "unknown kind of file"]),
    ],
)
def test_one_file_that_gives_nothing_is_refused(model, tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    for command in ("optimize", "evaluate"):
        refused(llmopt(command, tmp_path / name, "--model", model), *words)


def test_a_file_of_50_mb_is_refused(model, tmp_path):
    path = tmp_path / "large.c"
    with path.open("w") as file:
        file.write("int x;\n")
        file.truncate(51 << 20)
    refused(llmopt("optimize", path, "--model", model), "large.c", "51 MiB", "the limit is 50 MiB")


def test_missing_paths_are_refused(model, tmp_path):
    refused(llmopt("optimize", tmp_path / "no.c", "--model", model), "no.c: no such file")
    refused(llmopt("evaluate", tmp_path / "no", "--model", model), "no such file or folder")
    refused(llmopt("evaluate", tmp_path, "--model", model), "no source files below it")
    refused(llmopt("optimize", SAMPLE, "--model", tmp_path / "no"), "no such folder")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["optimize", SAMPLE, "--protocol", "minsized"], ["unknown protocol", "'minsize'"]),
        (["train", "--scale", "huge"], ["unknown scale 'huge'", "classroom"]),
        (["evaluate", "--protocol", "strip"], ["unknown protocol", "'stripped'"]),
        (["autotune", "--compilations", "none"], ["--compilations", "integer"]),
        (["autotune", "--compilations", "0"], ["--compilations"]),
        (["optimise"], ["optimise", "optimize"]),
        (["optimize"], ["Missing argument"]),
        (["optimize", SAMPLE, "--fast"], ["--fast"]),
    ],
)
def test_bad_usage_is_one_line(arguments, words):
    refused(llmopt(*arguments), *words)


def test_an_unknown_scale_in_the_environment_is_refused():
    refused(llmopt("train", LLMOPT_SCALE="clasroom"), "did you mean 'classroom'")


def test_foreign_and_damaged_checkpoints_are_refused(model, tmp_path):
    ask = lambda folder: llmopt("optimize", SAMPLE, "--model", folder)  # noqa: E731
    (tmp_path / "foreign").mkdir()
    refused(ask(tmp_path / "foreign"), "tokenizer.json", "no such file")
    done = llmopt("evaluate", SAMPLE, "--model", tmp_path / "foreign")
    refused(done, "baselines.json", "llmopt train")
    for name, word in [("model.safetensors", "weights"), ("tokenizer.json", "tokenizer"),
                       ("config.json", "configuration")]:  # fmt: skip
        damaged = tmp_path / name.replace(".", "-")
        shutil.copytree(model, damaged)
        (damaged / name).write_bytes((damaged / name).read_bytes()[:500])
        refused(ask(damaged), name, word)


def test_without_network_the_missing_sources_are_named(tmp_path):
    done = llmopt(
        "corpus",
        "build",
        LLMOPT_HOME=str(tmp_path / "home"),
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_EXTRA_INDEX_URL="",
    )
    refused(done, "no source to build the corpus from", "cannot fetch", "newtulipy")


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, sample):
    """A limit on file size is the nearest to a full disk that needs no rights."""
    for name, text in sample.items():
        (tmp_path / f"{name}.ll").write_text(text)
    limited = (
        "import resource, signal, sys; from llmopt import cli;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "sys.argv = ['llmopt', *sys.argv[1:]]; cli.main()"
    )
    command = ["autotune", tmp_path, "--compilations", "3", "-o", tmp_path / "labels"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"LLMOPT_SCALE": "smoke"},
        cwd=ROOT,
    )
    refused(done, "cannot record results", "what was recorded is kept")
    with journal.Journal(next((tmp_path / "labels").glob("search-*.sqlite"))) as kept:
        before = len(kept.keys())
    assert 0 < before < 54
    assert llmopt(*command).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [["evaluate", SAMPLE.parent], ["optimize", SAMPLE]])
def test_an_interrupt_ends_cleanly(model, command, tmp_path):
    """Whenever it comes once work has begun: one line, no traceback, and the next run ends well."""
    environment = os.environ | {"LLMOPT_SCALE": "smoke", "LLMOPT_HOME": str(tmp_path)}
    arguments = [sys.executable, "-m", "llmopt.cli", *map(str, command), "--model", str(model)]
    for wait in (0.0, 2.0):
        process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.time() + 60
        while not any(tmp_path.iterdir()) and time.time() < deadline:  # the work has begun
            time.sleep(0.05)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (0, 130), said
        assert "Traceback" not in said
        if process.returncode:
            assert "what was done is kept" in said
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_git_repository_becomes_a_suite_to_search(tmp_path):
    upstream, out = tmp_path / "upstream", tmp_path / "suite"
    upstream.mkdir()
    shutil.copy(SAMPLE, upstream)
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", upstream, *identity, *arguments], check=True)
    head = ["git", "-C", upstream, "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    home = {"LLMOPT_HOME": str(tmp_path / "home")}
    url = f"file://{upstream}"
    read = llmopt("corpus", "read", url, "--commit", commit, "-o", out, "--json", **home)
    assert read.returncode == 0, read.stderr
    assert len(json.loads(read.stdout)["functions"]) >= 10
    tuned = llmopt(
        "autotune", out, "--compilations", "6", "-o", tmp_path / "labels", "--json", **home
    )
    assert tuned.returncode == 0, tuned.stderr
    assert json.loads(tuned.stdout)["protocols"]["minsize"]["functions"] >= 10
    refused(llmopt("corpus", "read", url, "--commit", "main"), "--commit main", "full hash")


def test_bench_compile_json_has_the_documented_keys(network_corpus):
    done = llmopt("bench", "compile", "--functions", "8", "--json")
    value = json.loads(done.stdout)
    assert {"functions", "ms_in_process", "ms_opt", "ratio"} <= set(value)
    assert value["functions"] == 8
    assert value["ratio"] == pytest.approx(value["ms_opt"] / value["ms_in_process"])
    assert value["ratio"] > 2 and value["three_passes"]["ratio"] > value["ratio"]


@pytest.fixture(scope="module")
def network_corpus():
    """The smoke corpus, or a skip where its archives are neither here nor to be had."""
    done = llmopt("corpus", "build")
    if done.returncode:
        pytest.skip(f"needs the package index once: {lines(done)[-1]}")


@pytest.mark.slow
def test_train_needs_nothing_but_prepared_tokens(tmp_path):
    from test_train import EXAMPLES, VALID

    from llmopt import dataset, tokenizer

    tok = tokenizer.train([e.ir for e in EXAMPLES], 500)
    tok.save(tmp_path / "tokens")
    for split, some in (("train", EXAMPLES), ("valid", VALID)):
        dataset.prepare(some, tok, 2048, tmp_path / "tokens" / split)
    command = ["train", "--scale", "smoke", "--tokens", tmp_path / "tokens", "-o", tmp_path / "run"]
    done = llmopt(*command, LLMOPT_LIBLLVM="/nowhere/libLLVM.so", LLMOPT_HOME=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert not (tmp_path / "home").exists()  # no corpus was made
    refused(llmopt(*command[:-2]), "-o DIR")
    path = tmp_path / "tokens" / "valid.bin"
    path.write_bytes(path.read_bytes()[:-40])
    refused(llmopt(*command), "valid.npz: no usable tokens", "prepare them again")
