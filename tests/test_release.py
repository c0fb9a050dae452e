"""What is released: a plain Hugging Face folder, records, and a card that says what these say."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmopt import baselines, choose, evaluate, ir, model, pipeline, prompt, release, tokenizer
from llmopt.config import PROTOCOLS, InputError
from llmopt.labels import Budget, label
from llmopt.tokenizer import END, PAD

NAMES = ("clamp", "gcd", "power_modulo", "parse_integer")


@pytest.fixture
def functions(sample, monkeypatch, tmp_path) -> pd.DataFrame:
    rows = [
        {"id": ir.function_id(sample[n]), "ir": sample[n], "suite": suite, "split": "train"}
        for n, suite in zip(NAMES, ("one", "one", "two", "two"), strict=True)
    ]
    monkeypatch.setattr(pipeline, "functions", lambda: pd.DataFrame(rows))
    monkeypatch.setattr(pipeline, "RELEASED", tmp_path / "models" / "reference")
    monkeypatch.setattr(pipeline, "RESULTS", tmp_path / "results")
    return pd.DataFrame(rows)


@pytest.fixture
def run(functions, tmp_path):
    """A training run as `llmopt train -o` leaves it, of random weights."""
    tok = tokenizer.train([prompt.shorten(text)[0] for text in functions.ir], 512)
    llama = model.build("smoke", len(tok), 1, pad_token_id=tok.ids[PAD], eos_token_id=tok.ids[END])
    log = [{"step": n, "tokens": 90 * n, "loss": 6.0 - n, "seconds": 2.0 * n} for n in (1, 2)]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    made = folder / "model"
    model.export(llama, tok, made, training={"run": {"preset": "smoke"}, **log[-1]})
    lists = dict.fromkeys(PROTOCOLS, (("gvn",),))
    (made / "rule.json").write_text(json.dumps(choose.rule(lists).to_json()))
    gains = ((("-Oz",), 0), (("gvn",), 1))
    known = [
        prompt.Example("1", p, functions.ir[0], ("-Oz",), 1, 1, "", 1, gains) for p in PROTOCOLS
    ]
    features = baselines.Features(lists).fit(known, known)
    baselines.save(made, dict.fromkeys(PROTOCOLS, ("mem2reg",)), features)
    return folder


def test_the_folder_is_plain_hugging_face_and_answers_as_before(run, functions):
    folder = release.release(run)
    assert folder == pipeline.RELEASED
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert names <= {path.name for path in folder.iterdir()}
    llama = AutoModelForCausalLM.from_pretrained(folder)
    assert llama.dtype == torch.float16
    assert AutoTokenizer.from_pretrained(folder).eos_token == END
    for name, kept in model.load(run / "model")[0].state_dict().items():
        assert torch.equal(llama.state_dict()[name], kept.to(torch.float16))
    assert model.load(folder)[0].dtype == torch.float32
    asked = [(text, "minsize") for text in functions.ir]
    assert len(evaluate.asker(folder)(asked)) == len(asked)
    log = pd.read_parquet(pipeline.RESULTS / "training.parquet")
    assert log.step.tolist() == [1, 2]
    recorded = pipeline.record("training")
    assert recorded["run"]["preset"] == "smoke" and recorded["functions"] == len(functions)


def test_the_card_says_what_the_records_say(run, functions, tmp_path):
    folder = release.release(run)
    labels = label(functions, tmp_path / "labels", Budget(2, 8, 8, 2))
    result = evaluate.evaluate(
        functions, labels, folder, baselines.load(folder), tmp_path / "evaluation", 2, 12
    )
    value = release.record(result)
    assert value == pipeline.record("evaluation")
    code = pd.read_parquet(pipeline.RESULTS / "code.parquet")
    assert len(code) == 2 * len(PROTOCOLS) and not {"code", "reference", "input"} & set(code)
    assert sum(row["functions"] for row in value["code_by_tokens"]) == len(code)
    assert set(value["suites"]) == {"one", "two"}

    text = release.card().read_text()
    for protocol in PROTOCOLS:
        for name, row in value["protocols"][protocol]["methods"].items():
            line = next(x for x in text.splitlines() if x.startswith(f"| {protocol}, {name} |"))
            assert f"{row['improvement']:.2f}%" in line
            assert f"{row['with_oz_backup']:.2f}%" in line
    assert "2 steps, 0.0 million tokens" in text


def test_an_unfinished_run_is_not_released(run):
    (run / "model" / "rule.json").unlink()
    with pytest.raises(InputError, match="no finished model"):
        release.release(run)
    assert not pipeline.RELEASED.exists()


def test_the_released_model_stays_where_the_next_one_is_not_whole(run, monkeypatch):
    folder = release.release(run)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(release.shutil, "copy", full)
        with pytest.raises(OSError, match="No space left"):
            release.release(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert release.release(run) == folder  # what was left of the failed one is no hindrance
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_without_git_the_commit_is_not_known_and_nothing_fails(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert release._commit() == ""
