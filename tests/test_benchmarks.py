"""The benchmarks measure what they say, and a false label does not pass."""

import json

import pytest
from test_cli import lines, llmopt

from llmopt import bench, labels


@pytest.fixture(scope="module")
def corpus():
    done = llmopt("corpus", "build")
    if done.returncode:
        pytest.skip(f"needs the package index once: {lines(done)[-1]}")


def test_released_labels_hold_under_opt(corpus):
    done = llmopt("bench", "labels", "--functions", "12", "--json")
    value = json.loads(done.stdout)
    assert done.returncode == 0 and value["differences"] == []
    assert value["functions"] == 12 and value["labels"] == 24


def test_a_corpus_from_nothing_finds_its_labels(corpus):
    done = llmopt("bench", "corpus", "--json")
    value = json.loads(done.stdout)
    assert done.returncode == 0 and value["unlabelled"] < 5 and value["missing"] == []
    assert value["functions"] > 30 and value["compiled"] == value["files"] == 10
    assert value["lost"] > 0  # those of the other scales


def test_a_false_label_is_found(corpus, tmp_path, monkeypatch):
    released = labels.read(labels.RELEASED)
    released["best"] -= (released.passes == "-Oz").astype(int)
    labels.write(released, tmp_path / "labels.parquet")
    monkeypatch.setattr(labels, "RELEASED", tmp_path / "labels.parquet")
    value = bench.benchmark("labels")(4)
    assert value["differences"]
    for row in value["differences"]:
        assert row["passes"] == "-Oz" and row["opt_best"] == row["best"] + 1


def test_bench_search_compares_curves_and_speeds(corpus):
    done = llmopt("bench", "search", "--functions", "4", "--compilations", "60", "--json")
    value = json.loads(done.stdout)
    assert value["functions"] == 4
    for row in value["protocols"].values():
        for name in ("random", "ours"):
            assert len(row[name]) == len(value["compilations"])
            assert row[name] == sorted(row[name]) and row[name][0] >= 0
    speed = value["throughput"]
    assert speed["walks_with_table_share"] == pytest.approx(
        speed["per_second"]["walks_with_table"] / speed["per_second"]["bare_loop"]
    )
    assert min(speed["per_second"].values()) > 0


def test_bench_generate_compares_speeds_and_answers(corpus):
    done = llmopt("bench", "generate", "--functions", "3", "--tokens", "60", "--json")
    value = json.loads(done.stdout)
    for row in (value["lists"], value["answers"]):
        assert row["ratio"] == pytest.approx(row["seconds_transformers"] / row["seconds"])
        assert row["tokens"] > 0
    # A model of a few steps knows the form of a list; what it writes after that, without a grammar,
    # is anything. That trained answers are the same is what the record shows.
    assert value["lists"]["same"] > 0.8
    assert 0 <= value["answers"]["same"] <= 1


@pytest.mark.parametrize(
    ("name", "many"),
    [("objects", "--functions"), ("window", "--searched"), ("constants", "--functions")],
)
def test_benches_of_the_limits_measure_what_they_are_asked_for(corpus, name, many):
    done = llmopt("bench", name, many, "2", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    if name == "window":
        assert value["searched"] == min(2, value["beyond_the_corpus"]) and value["missing"] == []
        assert value["functions"] > value["beyond_the_corpus"]
    else:
        assert value["functions"] <= 2 and value["command"].startswith(f"llmopt bench {name}")
        assert value["lists" if name == "objects" else "constants"] >= value["functions"]
