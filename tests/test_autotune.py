import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from llmopt import autotune, baselines, ir, journal, llvm, passes, sandbox
from llmopt.config import InputError

BUDGET = 25


@pytest.fixture(scope="module")
def functions(sample):
    rows = [{"id": ir.function_id(text), "name": n, "ir": text} for n, text in sample.items()]
    return pd.DataFrame(rows[:10])


@pytest.fixture(scope="module")
def labels(functions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    with journal.workers(2) as pool:
        return autotune.label(functions, folder, BUDGET, 5, pool)


def test_random_lists_are_valid_and_of_all_lengths():
    rng = random.Random(0)
    lists = [autotune.random_list(rng) for _ in range(500)]
    assert {len(names) for names in lists} == set(range(1, autotune.MAX_LENGTH + 1))
    assert all(passes.check(names) for names in lists)
    assert 0.3 < sum(any(n in passes.META for n in names) for names in lists) / 500 < 0.7


def test_mutations_are_valid_neighbours():
    rng = random.Random(0)
    for _ in range(500):
        names = autotune.random_list(rng)
        changed = autotune.mutate(rng, names)
        passes.check(changed)
        assert changed and abs(len(changed) - len(names)) <= 3


def test_search_beats_oz_where_a_loop_is_unrolled(sample):
    found = autotune.search(sample["crc32"], "stripped", 60)
    assert found.best < found.oz and found.passes != passes.OZ
    assert found.compilations >= 60
    with llvm.Module(sample["crc32"]) as module:
        assert llvm.apply(module, found.passes).count == found.best
        assert llvm.apply(module, passes.OZ).count == found.oz
        assert module.count() == found.unoptimised


def test_search_is_deterministic(sample):
    one, other = (autotune.search(sample["sieve"], "minsize", 40, seed="s") for _ in range(2))
    assert one == other


def test_minimised_lists_need_each_of_their_passes(sample):
    found = autotune.search(sample["knapsack"], "stripped", 60)
    assert found.passes != passes.OZ
    box = sandbox.shared()
    for at in range(len(found.passes)):
        shorter = found.passes[:at] + found.passes[at + 1 :]
        assert box.run(sample["knapsack"], "stripped", [shorter])[0].count > found.best


def test_a_list_that_does_nothing_is_minimised_to_oz(sample):
    box = sandbox.shared()
    padded = ("lcssa", "-Oz", "lower-expect")
    oz, run = box.run(sample["gcd"], "stripped", [passes.OZ, padded])
    assert run.count == oz.count
    best, spent = autotune.minimise(sample["gcd"], "stripped", run, oz)
    assert best.passes == passes.OZ and spent == 1


def test_search_on_invalid_ir_says_so():
    with pytest.raises(InputError, match="-Oz fails on the function: parse"):
        autotune.search("define i32 @f( {", "stripped", 10)


def test_labels_hold_what_llvm_gives(functions, labels):
    assert list(labels.columns) == list(autotune.LABEL_COLUMNS)
    assert len(labels) == 2 * len(functions)
    text = dict(zip(functions.id, functions.ir, strict=True))
    for row in labels.itertuples():
        with llvm.Module(text[row.id], row.protocol) as module:
            assert llvm.apply(module, passes.OZ).count == row.oz
            assert llvm.apply(module, passes.parse(row.passes)).count == row.best <= row.oz
            assert module.count() == row.unoptimised
        assert (row.passes == "-Oz") == (row.best == row.oz)
    assert (labels.best < labels.oz).any()


def test_labels_are_the_same_bytes_for_any_number_of_workers(functions, labels, tmp_path):
    for count in (1, 4):
        with journal.workers(count) as pool:
            autotune.label(functions, tmp_path / str(count), BUDGET, 5, pool)
    files = [(tmp_path / str(count) / "labels.parquet").read_bytes() for count in (1, 4)]
    autotune.write_labels(labels, tmp_path / "two.parquet")
    assert files[0] == files[1] == (tmp_path / "two.parquet").read_bytes()


def test_canonical_prefers_oz_then_the_popular_then_the_short():
    oz = {"a": 5, "b": 9, "c": 9, "d": 9, "e": 9}
    choices = {
        "a": {"-Oz": 5, "licm": 5},
        "b": {"gvn": 7, "dce": 7},
        "c": {"gvn": 7},
        "d": {"dce": 6, "gvn": 6, "licm,dce": 6},
        "e": {"licm,dce": 8, "sink": 8},
    }
    assert autotune.canonical(choices, oz) == {
        "a": "-Oz",
        "b": "gvn",
        "c": "gvn",
        "d": "gvn",
        "e": "sink",
    }


def test_a_broken_function_is_left_out_and_named(functions, tmp_path):
    broken = pd.DataFrame([{"id": "0" * 64, "ir": "define i32 @f( {"}])
    rows = pd.concat([functions.head(2), broken], ignore_index=True)
    labels = autotune.label(rows, tmp_path, 5, 2)
    assert set(labels.id) == set(functions.id.head(2))
    assert "stripped:" + "0" * 64 in (tmp_path / "failures.json").read_text()


def test_no_functions_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no functions to label"):
        autotune.label(pd.DataFrame({"id": [], "ir": []}), tmp_path, 5, 2)


def test_damaged_labels_are_refused_by_name(labels, tmp_path):
    path = tmp_path / "labels.parquet"
    with pytest.raises(InputError, match="no such file; make labels with"):
        autotune.read_labels(path)
    autotune.write_labels(labels, path)
    pd.testing.assert_frame_equal(autotune.read_labels(path), labels)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"labels.parquet: damaged labels file \(.+\); delete it"):
        autotune.read_labels(path)
    pd.DataFrame({"x": [1]}).to_parquet(path)
    with pytest.raises(InputError, match="not a labels file: no column best"):
        autotune.read_labels(path)


def test_single_list_is_the_best_with_backup(functions, labels):
    chosen = baselines.single_list(functions, labels, "stripped")
    box = sandbox.shared()
    listed = labels[labels.protocol == "stripped"]
    oz = dict(zip(listed.id, listed.oz, strict=True))

    def gain(names):
        runs = [box.run(row.ir, "stripped", [names])[0] for row in functions.itertuples()]
        return sum(max(0, oz[i] - r.count) for i, r in zip(functions.id, runs, strict=True))

    others = {passes.parse(text) for text in listed.passes} - {passes.OZ}
    assert chosen in others and gain(chosen) == max(map(gain, others)) > 0


def run_cli(folder, compilations=30):
    return subprocess.Popen(
        [sys.executable, "-m", "llmopt.cli", "autotune", "data/sample",
         "--compilations", str(compilations), "-o", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"LLMOPT_SCALE": "smoke"},
        cwd=os.path.dirname(os.path.dirname(__file__)),
        # Started in the background, this run itself may have SIGINT ignored, and pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_ends_in_the_same_bytes(tmp_path):
    started = time.time()
    whole = run_cli(tmp_path / "whole")
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    duration = time.time() - started
    rng = random.Random(7)
    for _ in range(5):
        process = run_cli(tmp_path / "killed")
        time.sleep(rng.uniform(0.3, 0.8) * duration)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    last = run_cli(tmp_path / "killed")
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said
    files = [(tmp_path / name / "labels.parquet").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_done(tmp_path):
    process = run_cli(tmp_path / "labels", compilations=2000)
    deadline, finished = time.time() + 60, 0
    while time.time() < deadline:
        for path in (tmp_path / "labels").glob("search-*.sqlite"):
            with journal.Journal(path) as done:
                finished = len(done.keys())
        if finished >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "what was done is kept" in said, said
    assert "Traceback" not in said
    with journal.Journal(path) as done:
        assert len(done.keys()) >= finished >= 3
