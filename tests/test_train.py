"""Training: the loss falls, a stopped run ends in the same bytes, damage is refused by name."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmopt import dataset, model, tokenizer, train
from llmopt.config import ROOT, InputError
from llmopt.prompt import Example
from llmopt.train import TrainConfig

CONFIG = TrainConfig(
    preset="smoke",
    steps=30,
    tokens_per_batch=600,
    learning_rate=5e-3,
    validate_every=10,
    checkpoint_every=10,
    list_weight=2.0,
    prompt_weight=0.0,
)


def functions(n: int) -> list[Example]:
    """Small functions that compute on constants, of lengths that vary."""
    made = []
    for i in range(n):
        lines = [f"%{k + 2} = add i32 %{k + 1}, {i % 7}\n" for k in range(i % 5 + 1)]
        code = f"define i32 @name{i}(i32 %1) {{\n{''.join(lines)}ret i32 %{len(lines) + 1}\n}}\n"
        short = f"define i32 @name{i}(i32 %1) {{\nret i32 %1\n}}\n"
        listed = ("-Oz",) if i % 3 else ("instcombine<no-verify-fixpoint>", "-Oz")
        made.append(Example(f"{i:064}", "stripped", code, listed, len(lines) + 1, 1, short))
    return made


EXAMPLES, VALID = functions(60), functions(90)[60:]


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train([e.ir for e in EXAMPLES], 500)


@pytest.fixture(scope="module")
def trained(tok, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert (
        train.train(EXAMPLES, VALID, tok, CONFIG, directory, progress=False) == directory / "model"
    )
    return directory


def log(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def losses(directory):
    return [
        (row["step"], row["tokens"], row["loss"], row.get("valid_loss")) for row in log(directory)
    ]


def weights(directory):
    return (directory / "model" / "model.safetensors").read_bytes()


def test_the_loss_falls_and_the_log_says_so(trained):
    rows = log(trained)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[-1]["valid_loss"] < 0.6 * rows[0]["loss"]
    assert rows[9]["valid_loss"] > rows[19]["valid_loss"] > rows[29]["valid_loss"]
    assert {"valid_list", "valid_counts", "valid_code", "seconds", "rate"} <= set(rows[-1])
    assert len(list((trained / "checkpoints").glob("step-*"))) == 2


def test_the_model_folder_is_hugging_faces(trained, tok):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained / "model"
    ours, our_tok = train.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == len(our_tok) == len(tok)
    ids = torch.tensor([tok.encode(EXAMPLES[0].ir)])
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= names


def test_a_finished_run_is_not_run_again_and_others_are_refused(trained, tok):
    before = weights(trained)
    train.train(
        EXAMPLES,
        VALID,
        tok,
        CONFIG,
        trained,
        progress=False,
        on_step=lambda row: pytest.fail("trained again"),
    )
    assert weights(trained) == before
    with pytest.raises(InputError, match="other settings"):
        train.train(EXAMPLES, VALID, tok, replace(CONFIG, seed=1), trained, progress=False)


def test_an_interrupted_run_ends_in_the_same_bytes(trained, tok, tmp_path):
    def stop(row):
        if row["step"] == 13:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="step 13"):
        train.train(EXAMPLES, VALID, tok, CONFIG, tmp_path, progress=False, on_step=stop)
    assert not (tmp_path / "model").exists()
    train.train(EXAMPLES, VALID, tok, CONFIG, tmp_path, progress=False)
    assert weights(tmp_path) == weights(trained) and losses(tmp_path) == losses(trained)


CHILD = """
import sys; sys.path[:0] = [sys.argv[2] + "/tests", sys.argv[2]]
from pathlib import Path
from test_train import CONFIG, EXAMPLES, VALID, tokenizer, train
import time
tok = tokenizer.train([e.ir for e in EXAMPLES], 500)
train.train(EXAMPLES, VALID, tok, CONFIG, Path(sys.argv[1]), progress=False,
            on_step=lambda row: row["step"] == 24 and time.sleep(600))
"""


def test_a_killed_run_ends_in_the_same_bytes(trained, tok, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(ROOT)])
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "log.jsonl").exists() or len(log(tmp_path)) < 24:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        child.kill()
        child.wait()
    steps = []
    train.train(
        EXAMPLES,
        VALID,
        tok,
        CONFIG,
        tmp_path,
        progress=False,
        on_step=lambda row: steps.append(row["step"]),
    )
    assert steps[0] == 21
    assert weights(tmp_path) == weights(trained) and losses(tmp_path) == losses(trained)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(trained, tok, tmp_path, capsys):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "model")
    newest = tmp_path / "checkpoints" / "step-0000030" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    train.train(EXAMPLES, VALID, tok, CONFIG, tmp_path, progress=False)
    assert "step-0000030 is damaged" in capsys.readouterr().out
    assert weights(tmp_path) == weights(trained) and losses(tmp_path) == losses(trained)


def test_a_lost_run_stops_with_a_message(tok, tmp_path):
    config = replace(CONFIG, learning_rate=1e4, optimizer="adamw", warmup=0.0)
    with pytest.raises(InputError, match="lower learning_rate"):
        train.train(EXAMPLES, [], tok, config, tmp_path, progress=False)


def test_a_budget_of_seconds_is_kept(tok, tmp_path):
    config = replace(CONFIG, steps=None, seconds=1.0)
    train.train(EXAMPLES, [], tok, config, tmp_path, progress=True)
    last = log(tmp_path)[-1]
    assert 1 <= last["seconds"] < 30 and last["step"] >= 1


def test_damaged_and_foreign_models_are_refused_by_name(trained, tmp_path):
    folder = tmp_path / "model"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained / "model", folder)

    with pytest.raises(InputError, match="tokenizer.json: no such file"):
        train.load(tmp_path)
    for name, spoil in (
        ("model.safetensors", lambda data: data[:-50]),
        ("model.safetensors", lambda data: b"\x80\x04pickle"),
        ("config.json", lambda data: data[:40]),
        ("config.json", lambda data: data.replace(b'"llama"', b'"bert"')),
        ("config.json", lambda data: data.replace(b'"vocab_size": 500', b'"vocab_size": 499')),
        ("tokenizer.json", lambda data: data[:900]),
    ):
        fresh()
        (folder / name).write_bytes(spoil((folder / name).read_bytes()))
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            train.load(folder)
    fresh()
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        train.load(folder)


def test_batches_cover_an_epoch_with_little_padding(tok, tmp_path):
    data = dataset.prepare(functions(400), tok, 2048, tmp_path / "d")
    stream = dataset.batches(data, 1000, seed=3)
    seen, used, paid = [], 0, 0
    while len(seen) < 400:
        rows = next(stream)
        sizes = data.spans[rows, 1]
        assert sizes.max() * len(rows) <= 1000
        seen += rows.tolist()
        used, paid = used + sizes.sum(), paid + sizes.max() * len(rows)
    assert sorted(seen) == list(range(400)) and used / paid > 0.95
    twice = dataset.batches(data, 1000, repeat_improved=3)
    shown = np.concatenate([next(twice) for _ in range(60)])[:668]
    counts = np.bincount(shown, minlength=400)
    assert counts[data.improved].mean() > 2 * counts[~data.improved].mean()
    first = [
        data.spans[rows, 1].mean()
        for rows, _ in zip(dataset.batches(data, 1000, curriculum=5.0), range(10), strict=False)
    ]
    assert np.mean(first[:5]) < np.mean(first[5:]) < data.spans[:, 1].mean()


def test_kinds_mark_list_counts_and_code(tok, tmp_path):
    data = dataset.prepare(EXAMPLES, tok, 2048, tmp_path / "d")
    ids, kinds = data[0]
    listed = tok.decode(ids[kinds == 1])
    assert listed == "<|instcombine<no-verify-fixpoint>|><|-Oz|><|before|>"
    assert tok.decode(ids[kinds == 2]) == "2<|after|>1"
    assert tok.decode(ids[kinds == 3]).startswith("<|code|>define i32 @f0")
    again = dataset.prepare(EXAMPLES, tok, 2048, tmp_path / "d")
    assert again.digest == data.digest
    short = dataset.prepare(EXAMPLES, tok, 45, tmp_path / "d")
    assert short.left_out and len(short.spans) + short.left_out == len(EXAMPLES)
    with pytest.raises(InputError, match="at most 3 tokens"):
        dataset.prepare(EXAMPLES, tok, 3, tmp_path / "d")


def test_rates_warm_up_and_fall_to_a_tenth():
    config = TrainConfig(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [train.rate(i / 100, config) for i in range(101)]
    assert max(rates) == rates[10] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": 1, "seconds": 1.0},
        {"steps": 0},
        {"steps": 1, "optimizer": "sgd"},
        {"steps": 1, "preset": "huge"},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(InputError):
        TrainConfig(**wrong)


def test_loss_weights_are_a_weighted_mean(tok, tmp_path):
    data = dataset.prepare(EXAMPLES[:4], tok, 2048, tmp_path / "d")
    ids, kinds = dataset.collate(data, range(4), tok.ids[tokenizer.PAD])
    llama = model.build("smoke", len(tok), 0)
    config = TrainConfig(steps=1, prompt_weight=0.5, list_weight=3.0)
    loss, each, kept = train.Objective(llama, config)(ids, kinds)
    weight = torch.tensor([0.5, 3.0, 1.0, 1.0])[kept]
    assert loss.item() == pytest.approx(((each * weight).sum() / weight.sum()).item(), rel=1e-5)
    assert len(each) == int((kinds >= 0).sum()) - 4  # nothing predicts the first token
