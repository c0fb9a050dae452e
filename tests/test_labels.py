import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from llmopt import baselines, ir, journal, labels, llvm, passes, sandbox
from llmopt.config import InputError
from llmopt.labels import Budget

BUDGET = Budget(pilot=4, compilations=25, patience=15, lists=4)


@pytest.fixture(scope="module")
def functions(sample):
    rows = [{"id": ir.function_id(text), "name": n, "ir": text} for n, text in sample.items()]
    return pd.DataFrame(rows[:10])


@pytest.fixture(scope="module")
def labelled(functions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    with journal.workers(2) as pool:
        return labels.label(functions, folder, BUDGET, pool)


def test_labels_hold_what_llvm_gives(functions, labelled):
    assert list(labelled.columns) == list(labels.COLUMNS)
    assert len(labelled) == 2 * len(functions)
    text = dict(zip(functions.id, functions.ir, strict=True))
    for row in labelled.itertuples():
        with llvm.Module(text[row.id], row.protocol) as module:
            assert llvm.apply(module, passes.OZ).count == row.oz
            assert llvm.apply(module, passes.parse(row.passes)).count == row.best <= row.oz
            assert module.count() == row.unoptimised
        assert (row.passes == "-Oz") == (row.best == row.oz)
    assert (labelled.best < labelled.oz).any()


def test_labels_tell_what_each_list_of_the_coreset_does(functions, tmp_path):
    labels.label(functions, tmp_path, BUDGET)
    known = labels.known(tmp_path / "known.json")
    text = dict(zip(functions.id, functions.ir, strict=True))
    told = 0
    for row in labels.read(tmp_path / "labels.parquet").itertuples():
        assert len(row.coreset) == known[row.protocol].start
        with llvm.Module(text[row.id], row.protocol) as module:
            for names, beyond in zip(known[row.protocol].coreset, row.coreset, strict=True):
                if beyond == beyond and beyond is not None:
                    told += 1
                    assert llvm.apply(module, passes.parse(names)).count - row.oz == beyond
    assert told >= len(functions)


def test_labels_are_the_same_bytes_for_any_number_of_workers(functions, labelled, tmp_path):
    for count in (1, 4):
        with journal.workers(count) as pool:
            labels.label(functions, tmp_path / str(count), BUDGET, pool)
    files = [(tmp_path / str(count) / "labels.parquet").read_bytes() for count in (1, 4)]
    labels.write(labelled, tmp_path / "two.parquet")
    assert files[0] == files[1] == (tmp_path / "two.parquet").read_bytes()


@pytest.fixture
def environment():
    """Put back as it was: Dask's workers are started with OMP_NUM_THREADS=1, set here and left."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_labels_are_the_same_bytes_on_a_dask_cluster(functions, labelled, tmp_path, environment):
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        journal.workers(scheduler=cluster.scheduler_address) as pool,
    ):
        labels.label(functions, tmp_path / "dask", BUDGET, pool)
    labels.write(labelled, tmp_path / "threads.parquet")
    made = (tmp_path / "dask" / "labels.parquet").read_bytes()
    assert made == (tmp_path / "threads.parquet").read_bytes()


def test_workers_that_are_killed_take_nothing_with_them(functions, labelled, tmp_path, monkeypatch):
    start, calls, killed = sandbox.Sandbox._start, itertools.count(1), []

    def unlucky(self):
        worker = start(self)
        if next(calls) % 7 == 0:
            worker.kill()
            killed.append(worker.pid)
        return worker

    monkeypatch.setattr(sandbox.Sandbox, "_start", unlucky)
    with journal.workers(2) as pool:
        labels.label(functions, tmp_path / "killed", BUDGET, pool)
    labels.write(labelled, tmp_path / "whole.parquet")
    made = (tmp_path / "killed" / "labels.parquet").read_bytes()
    assert len(killed) > 10 and made == (tmp_path / "whole.parquet").read_bytes()


def test_a_run_says_what_it_cost_and_where_it_started(functions, tmp_path):
    found = labels.label(functions, tmp_path, BUDGET)
    cost = json.loads((tmp_path / "cost.json").read_text())
    for protocol, steps in cost.items():
        assert steps["pilot"]["tasks"] == BUDGET.pilot
        assert steps["pilot"]["tasks"] + steps["search"]["tasks"] == len(functions)
        rows = found[found.protocol == protocol]
        spent = sum(steps[name]["compilations"] for name in steps if name != "confirm")
        assert rows.compilations.sum() == spent
    known = labels.known(tmp_path / "known.json")
    assert 0 < known["stripped"].start <= BUDGET.lists
    again = labels.label(functions, tmp_path / "again", BUDGET, known=known)
    assert set(again.id) == set(found.id)
    assert "pilot" not in json.loads((tmp_path / "again" / "cost.json").read_text())["stripped"]


def test_lists_that_cannot_be_read_are_refused_by_name(tmp_path):
    path = tmp_path / "lists.json"
    with pytest.raises(InputError, match="lists.json: no usable lists"):
        labels.known(path)
    path.write_text('{"stripped": {"start": 1, "lists": ["no-such-pass"]}}')
    with pytest.raises(InputError, match="no-such-pass"):
        labels.known(path)


def test_a_coreset_is_greedy_by_what_each_list_adds():
    lists = ["a", "b", "c", "d"]
    counts = [[5, 6, None, 10], [10, 10, 7, 10], [9, 8, 10, 10]]
    assert labels.coreset(lists, counts, [10, 10, 10]) == ["b", "c", "a"]
    assert labels.coreset(["a"], [[12]], [10]) == []


def test_winners_are_ordered_by_functions_then_by_instructions():
    rows = {
        "1": {"oz": 10, "best": 9, "passes": "gvn"},
        "2": {"oz": 10, "best": 5, "passes": "dce"},
        "3": {"oz": 10, "best": 9, "passes": "gvn"},
        "4": {"oz": 10, "best": 8, "passes": "adce"},
        "5": {"oz": 10, "best": 10, "passes": "-Oz"},
    }
    assert labels.winners(rows, 10) == ["gvn", "dce", "adce"]
    assert labels.winners(rows, 1) == ["gvn"]


def test_poison_is_cut_down_to_what_llvm_fails_on(sample):
    row = {"id": "f", "protocol": "stripped", "status": "crash", "signal": 11, "message": ""}
    lists = ["dce,-Oz,unify-loop-exits,gvn", "-Oz,adce,unify-loop-exits"]
    poison = [row | {"passes": text} for text in lists]
    found = labels.minimise_poison(poison, {"f": sample["parse_integer"]})
    assert [(row["passes"], row["status"], row["times"]) for row in found] == [
        ("-Oz,unify-loop-exits", "crash", 2)
    ]
    assert found[0]["message"] and found[0]["id"] == "f"


def test_canonical_prefers_oz_then_the_popular_then_the_short():
    oz = {"a": 5, "b": 9, "c": 9, "d": 9, "e": 9}
    choices = {
        "a": {"-Oz": 5, "licm": 5},
        "b": {"gvn": 7, "dce": 7},
        "c": {"gvn": 7},
        "d": {"dce": 6, "gvn": 6, "licm,dce": 6},
        "e": {"licm,dce": 8, "sink": 8},
    }
    assert labels.canonical(choices, oz) == {
        "a": "-Oz",
        "b": "gvn",
        "c": "gvn",
        "d": "gvn",
        "e": "sink",
    }


def test_a_broken_function_is_left_out_and_named(functions, tmp_path):
    broken = pd.DataFrame([{"id": "0" * 64, "ir": "define i32 @f( {"}])
    rows = pd.concat([functions.head(2), broken], ignore_index=True)
    found = labels.label(rows, tmp_path, Budget(1, 5, 5, 2))
    assert set(found.id) == set(functions.id.head(2))
    assert "stripped:" + "0" * 64 in (tmp_path / "failures.json").read_text()


def test_no_functions_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no functions to label"):
        labels.label(pd.DataFrame({"id": [], "ir": []}), tmp_path, BUDGET)


def test_damaged_labels_are_refused_by_name(labelled, tmp_path):
    path = tmp_path / "labels.parquet"
    with pytest.raises(InputError, match="no such file; make labels with"):
        labels.read(path)
    labels.write(labelled, path)
    pd.testing.assert_frame_equal(labels.read(path), labelled)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"labels.parquet: damaged labels file \(.+\); delete it"):
        labels.read(path)
    pd.DataFrame({"x": [1]}).to_parquet(path)
    with pytest.raises(InputError, match="not a labels file: no column best"):
        labels.read(path)


def test_single_list_is_the_best_with_backup(functions, labelled):
    chosen = baselines.single_list(functions, labelled, "stripped")
    box = sandbox.shared()
    listed = labelled[labelled.protocol == "stripped"]
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
