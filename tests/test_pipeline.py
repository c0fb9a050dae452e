import json
from dataclasses import replace

import pandas as pd
import pytest

from llmopt import config, corpus, ir, labels, llvm, pipeline
from llmopt.config import InputError


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A home of its own and, for a corpus, whatever rows a test puts there."""
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path))
    monkeypatch.setenv("LLMOPT_SCALE", "smoke")
    built = []

    def build(scale, folder, executor, progress, compiled):
        missing = [] if built else [{"project": "away", "reason": "no network"}]
        built.append(folder)
        rows = [
            {"id": f"{split}{i:03}", "split": split, "ir": ""}
            for split in ("train", "valid", "test")
            for i in range(50)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(folder / "functions.parquet")
        (folder / "report.json").write_text(json.dumps({"missing": missing}))

    monkeypatch.setattr(corpus, "build", build)
    return built


def test_a_stage_is_named_after_code_settings_and_scale(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path))
    monkeypatch.setenv("LLMOPT_SCALE", "smoke")
    one = pipeline.stage("x", ("ir",), (1, 2))
    assert one == pipeline.stage("x", ("ir",), (1, 2))
    assert one.parent == tmp_path / "smoke" and one.name.startswith("x-")
    assert one != pipeline.stage("x", ("ir",), (1, 3))
    assert one != pipeline.stage("x", ("metrics",), (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.llvm, "version", lambda: "21.1.0")
        assert one != pipeline.stage("x", ("ir",), (1, 2))
    monkeypatch.setattr(config, "fingerprint", lambda *modules: "edited")
    assert one != pipeline.stage("x", ("ir",), (1, 2))


def test_a_setting_renames_its_own_stage_and_those_after_it(small, monkeypatch):
    def names():
        folders = pipeline.corpus_folder, pipeline.labels_folder, pipeline.model_folder
        return [folder().name for folder in folders]

    before = names()
    scale = config.scale()
    monkeypatch.setattr(config, "scale", lambda: replace(scale, search_compilations=7))
    after = names()
    assert before[0] == after[0] and before[1] != after[1] and before[2] != after[2]


def test_a_corpus_that_lacked_a_source_is_tried_again_by_the_next_process(small, monkeypatch):
    pipeline.functions()
    pipeline.functions()
    assert len(small) == 1
    monkeypatch.setattr(pipeline, "_TRIED", set())  # another process
    pipeline.functions()
    assert len(small) == 2
    monkeypatch.setattr(pipeline, "_TRIED", set())
    pipeline.functions()
    assert len(small) == 2  # whole now


def test_labels_of_a_partial_corpus_are_not_taken_for_those_of_the_whole(small):
    before = pipeline.labels_folder()
    path = pipeline.corpus_folder() / "functions.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    assert pipeline.labels_folder() != before


def test_released_labels_are_taken_and_the_rest_is_searched(sample, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    texts = [sample[name] for name in ("crc32", "sieve", "gcd", "clamp")]
    rows = pd.DataFrame([{"id": ir.function_id(t), "ir": t, "project": "own"} for t in texts])
    rows = rows.assign(split="train")
    labels.label(rows.head(3), tmp_path, labels.Budget(2, 10, 10, 2))
    released = labels.read(tmp_path / "labels.parquet")
    released.loc[0, "llvm"] = "1.0"  # one of another LLVM, which does not count
    labels.write(released, tmp_path / "labels.parquet")
    monkeypatch.setattr(labels, "RELEASED", tmp_path / "labels.parquet")
    monkeypatch.setattr(labels, "KNOWN", tmp_path / "known.json")
    monkeypatch.setattr(pipeline, "functions", lambda: rows)
    scale = replace(config.scale("smoke"), released_labels=True)
    monkeypatch.setattr(config, "scale", lambda: scale)
    found = pipeline.labels()
    assert len(found) == 8 and set(found.llvm) == {llvm.version()}
    kept = released[(released.llvm == llvm.version()) & (released.id != released.id[0])]
    both = found.merge(kept, on=["id", "protocol"], suffixes=("", "_released"))
    assert len(both) == len(kept) == 4
    for name in ("best", "passes", "compilations"):
        assert (both[name] == both[f"{name}_released"]).all()
    said = capsys.readouterr().err
    assert "2 of 4 functions are not in the released labels (of own)" in said


def test_wanted_takes_all_of_train_and_the_first_of_the_others(small):
    scale = config.scale("smoke")
    counts = pipeline.wanted().split.value_counts().to_dict()
    assert counts == {
        "train": 50,
        "valid": scale.valid_functions,
        "test": scale.test_functions,
    }
    assert set(pipeline.test_functions().split) == {"test"}


def test_a_record_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "RESULTS", tmp_path)
    with pytest.raises(InputError, match=r"trials\.json: no such record; results/README"):
        pipeline.record("trials")
