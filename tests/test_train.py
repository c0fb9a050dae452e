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

from llmopt import dataset, model, passes, tokenizer, train
from llmopt.config import ROOT, InputError
from llmopt.dataset import Stakes
from llmopt.prompt import TASKS, Example
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


def run(examples, valid, tok, config, directory, **more):
    """Prepare and train; the tokens lie beside the run."""
    data, held = (
        dataset.prepare(some, tok, 2048, directory / name) if some else None
        for name, some in (("train", examples), ("valid", valid))
    )
    return train.train(data, held, tok, config, directory, progress=False, **more)


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train([e.ir for e in EXAMPLES], 500)


@pytest.fixture(scope="module")
def trained(tok, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert run(EXAMPLES, VALID, tok, CONFIG, directory) == directory / "model"
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
    ours, our_tok = model.load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == len(our_tok) == len(tok)
    ids = torch.tensor([tok.encode(EXAMPLES[0].ir)])
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= names


def test_a_finished_run_is_not_run_again_and_others_are_refused(trained, tok):
    before = weights(trained)
    run(
        EXAMPLES,
        VALID,
        tok,
        CONFIG,
        trained,
        on_step=lambda row: pytest.fail("trained again"),
    )
    assert weights(trained) == before
    with pytest.raises(InputError, match="other settings"):
        run(EXAMPLES, VALID, tok, replace(CONFIG, seed=1), trained)


def test_an_interrupted_run_ends_in_the_same_bytes(trained, tok, tmp_path):
    def stop(row):
        if row["step"] == 13:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="step 13"):
        run(EXAMPLES, VALID, tok, CONFIG, tmp_path, on_step=stop)
    assert not (tmp_path / "model").exists()
    run(EXAMPLES, VALID, tok, CONFIG, tmp_path)
    assert weights(tmp_path) == weights(trained) and losses(tmp_path) == losses(trained)


CHILD = """
import sys; sys.path[:0] = [sys.argv[2] + "/tests", sys.argv[2]]
from pathlib import Path
from test_train import CONFIG, EXAMPLES, VALID, run, tokenizer
import time
tok = tokenizer.train([e.ir for e in EXAMPLES], 500)
run(EXAMPLES, VALID, tok, CONFIG, Path(sys.argv[1]),
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
    run(
        EXAMPLES,
        VALID,
        tok,
        CONFIG,
        tmp_path,
        on_step=lambda row: steps.append(row["step"]),
    )
    assert steps[0] == 21
    assert weights(tmp_path) == weights(trained) and losses(tmp_path) == losses(trained)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(trained, tok, tmp_path, capsys):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "model")
    newest = tmp_path / "checkpoints" / "step-0000030" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    run(EXAMPLES, VALID, tok, CONFIG, tmp_path)
    assert "step-0000030 is damaged" in capsys.readouterr().out
    assert weights(tmp_path) == weights(trained) and losses(tmp_path) == losses(trained)


def test_a_lost_run_stops_with_a_message(tok, tmp_path):
    config = replace(CONFIG, learning_rate=1e4, optimizer="adamw", warmup=0.0)
    with pytest.raises(InputError, match="lower learning_rate"):
        run(EXAMPLES, [], tok, config, tmp_path)


def test_a_budget_of_seconds_is_kept(tok, tmp_path):
    config = replace(CONFIG, steps=None, seconds=1.0)
    run(EXAMPLES, [], tok, config, tmp_path)
    last = log(tmp_path)[-1]
    assert 1 <= last["seconds"] < 30 and last["step"] >= 1


def test_damaged_and_foreign_models_are_refused_by_name(trained, tmp_path):
    folder = tmp_path / "model"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained / "model", folder)

    with pytest.raises(InputError, match="tokenizer.json: no such file"):
        model.load(tmp_path)
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
            model.load(folder)
    fresh()
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        model.load(folder)


def pad(tok):
    return tok.ids[tokenizer.PAD]


def test_batches_cover_an_epoch_with_little_padding(tok, tmp_path):
    data = dataset.prepare(functions(400), tok, 2048, tmp_path / "d")
    stream = dataset.batches(data, 1000, seed=3)
    seen, used, paid = [], 0, 0
    while len(seen) < 400:
        rows = next(stream)
        batch = dataset.collate(data, rows, pad(tok))
        assert batch.kinds.numel() <= 1000
        assert batch.tokens == data.functions[rows][:, [1, 4]].sum()
        seen += rows.tolist()
        used, paid = used + batch.tokens, paid + batch.kinds.numel()
    assert sorted(seen) == list(range(400)) and used / paid > 0.95
    sizes = data.functions[:, 1]
    first = [
        sizes[rows].mean()
        for rows, _ in zip(dataset.batches(data, 1000, curriculum=5.0), range(10), strict=False)
    ]
    assert np.mean(first[:5]) < np.mean(first[5:]) < sizes.mean()


def test_code_is_taught_for_short_functions_and_more_often(tok, tmp_path):
    whole = dataset.prepare(functions(100), tok, 2048, tmp_path / "whole")
    limit = int(np.median(whole.functions[:, 1] + whole.branches[:, 1]))
    data = dataset.prepare(functions(100), tok, 2048, tmp_path / "d", code_tokens=limit)
    code = data.with_code()
    assert whole.with_code().all() and not data.left_out
    assert 0 < code.sum() == 100 - data.cut < 100
    assert (data.functions[code][:, [1, 4]].sum(axis=1) <= limit).all()
    expected = np.where(code, 3, 1)
    stream, seen = dataset.batches(data, 1000, code_repeats=3), []
    while len(seen) < expected.sum():
        rows = next(stream).tolist()
        assert len(set(rows)) == len(rows)  # the same function twice teaches no more than once
        seen += rows
    assert np.bincount(seen).tolist() == expected.tolist()


def test_kinds_mark_list_counts_and_code(tok, tmp_path):
    data = dataset.prepare(EXAMPLES, tok, 2048, tmp_path / "d")
    (ids, kinds, weight), *others = data.answers(0)
    assert not others and weight == 1
    assert tok.decode(data.prompt(0)).startswith("<|input|>define i32 @f0")
    assert tok.decode(ids[kinds == dataset.GIVEN]) == "<|stripped|><|passes|>"
    assert tok.decode(ids[kinds == 1]) == "<|instcombine<no-verify-fixpoint>|><|-Oz|><|before|>"
    assert tok.decode(ids[kinds == 2]) == "2<|after|>1<|code|>"
    assert tok.decode(ids[kinds == 3]).startswith("define i32 @f0")
    every = [data.prompt(i) * 0 for i in range(len(EXAMPLES))]
    every += [kinds for i in range(len(EXAMPLES)) for _, kinds, _ in data.answers(i)]
    every = np.concatenate(every)
    assert data.count().tolist() == [int((every == kind).sum()) for kind in (0, 1, 2, 3, -1)]
    again = dataset.prepare(EXAMPLES, tok, 2048, tmp_path / "d")
    assert again.digest == data.digest


def test_what_is_too_long_is_cut_or_left_out_and_counted(tok, tmp_path):
    whole = dataset.prepare(EXAMPLES, tok, 2048, tmp_path / "d")
    longest = (whole.functions[:, 1] + whole.functions[:, 4]).max()
    cut = dataset.prepare(EXAMPLES, tok, int(longest) - 1, tmp_path / "d")
    assert 0 < cut.cut < len(EXAMPLES) and not cut.left_out and not whole.cut
    lost = int((whole.functions[:, 1] + whole.functions[:, 4]).argmax())
    assert tok.decode(list(cut.answers(lost))[0][0]).endswith("<|code|>")
    short = dataset.prepare(EXAMPLES, tok, int(whole.functions[:, 1].max()), tmp_path / "d")
    assert short.left_out and len(short.functions) + short.left_out == len(EXAMPLES)
    with pytest.raises(InputError, match="fits 3 tokens"):
        dataset.prepare(EXAMPLES, tok, 3, tmp_path / "d")


@pytest.mark.parametrize("task", TASKS)
def test_a_task_can_be_left_out(tok, tmp_path, task):
    rest = [name for name in TASKS if name != task]
    data = dataset.prepare(EXAMPLES, tok, 2048, tmp_path / "d", rest)
    ids, kinds, weight = next(data.answers(0))
    kept = {dataset.KINDS[kind] for kind in kinds[kinds > 0]}
    text = tok.decode(ids)
    assert (weight > 0) == ("list" in rest) and kept >= set(rest) - {"list"}
    assert ("<|after|>1" in text) == ("counts" in rest) and ("define" in text) == ("code" in rest)
    with pytest.raises(InputError, match="unknown task 'lists'"):
        dataset.prepare(EXAMPLES, tok, 2048, tmp_path / "d", ["lists"])


def test_lists_share_the_loss_by_what_they_save():
    best, near, poor = ("gvn",), ("sroa<modify-cfg>",), ("dce",)
    gains = ((passes.OZ, 0), (near, 4), (("adce",), 4), (poor, -8), (("sccp",), 5), (best, 5))
    example = replace(EXAMPLES[0], passes=best, gains=gains)
    found, stake = dataset.soft_labels(example, Stakes())
    assert set(found) == {best, near} and found[near] == pytest.approx(found[best] / np.e)
    assert sum(found.values()) == pytest.approx(1)
    assert stake == pytest.approx(5 - (5 + 5 + 0 + 4 + 4 - 8) / 6)
    unknown = dataset.soft_labels(replace(example, passes=("licm",)), Stakes())
    assert set(unknown[0]) == {("sccp",), near}
    only = {best: 1.0}
    assert dataset.soft_labels(example, Stakes(temperature=0)) == (only, 1.0)
    assert dataset.soft_labels(replace(example, gains=()), Stakes()) == (only, 1.0)
    same = replace(example, passes=passes.OZ, gains=((passes.OZ, 0), (near, 0)))
    assert dataset.soft_labels(same, Stakes()) == ({passes.OZ: 1.0}, 0.0)


def test_branches_see_the_prompt_and_themselves_only(tok, tmp_path):
    gains = ((passes.OZ, 0), (("gvn",), 3), (("dce",), 2))
    two = [replace(e, passes=("gvn",), gains=gains) for e in EXAMPLES[3:5]]
    both = [replace(e, protocol=p) for e in two for p in ("stripped", "minsize")]
    data = dataset.prepare(both, tok, 2048, tmp_path / "d", stakes=Stakes(temperature=1.0))
    batch = dataset.collate(data, [0, 1], pad(tok))
    assert data.functions[:, 3].tolist() == [4, 4]
    llama = model.build("smoke", len(tok), 0).eval()
    hidden = model.answer(llama, batch.prompts, batch.answers, batch.mask, batch.positions)
    for i in range(2):
        at = batch.prompts.shape[1]
        for ids, _, _ in data.answers(i):
            alone = torch.tensor([[*data.prompt(i).tolist(), *ids.tolist()]])
            plain = llama.model(input_ids=alone).last_hidden_state[0, -len(ids) :]
            assert torch.allclose(hidden[i, at : at + len(ids)], plain, atol=1e-5)
            at += len(ids)


def test_rates_warm_up_stay_and_fall():
    config = TrainConfig(steps=100, learning_rate=1.0, warmup=0.1, decay=0.5, final_rate=0.1)
    rates = [train.rate(i / 100, config) for i in range(101)]
    assert rates[10] == rates[50] == max(rates) == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


def test_a_restart_goes_through_the_shorter_run_first_and_falls_again():
    shorter = TrainConfig(steps=300, learning_rate=1.0, warmup=0.1)
    longer = TrainConfig(steps=400, learning_rate=1.0, warmup=0.075, restart=0.25)
    first = [train.rate(i / 300, shorter) for i in range(300)]
    both = [train.rate(i / 400, longer) for i in range(401)]
    assert both[:300] == pytest.approx(first)
    assert both[300] == 0.5 and both[350] == pytest.approx(0.25) and both[400] == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": 1, "restart": 1.0},
        {"steps": 1, "restart": -0.1},
        {"steps": 1, "seconds": 1.0},
        {"steps": 0},
        {"steps": 1, "optimizer": "sgd"},
        {"steps": 1, "precision": "fp8"},
        {"steps": 1, "preset": "huge"},
        {"steps": 1, "prompt_every": 0},
        {"steps": 1, "code_repeats": 0},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(InputError):
        TrainConfig(**wrong)


def test_halves_give_nearly_the_same_loss_and_both_run_in_one_process(tok, tmp_path):
    whole = replace(CONFIG, steps=2)
    for name, config in (("whole", whole), ("halves", replace(whole, precision="bf16"))):
        run(EXAMPLES, [], tok, config, tmp_path / name)
    ours, theirs = (log(tmp_path / name)[-1]["loss"] for name in ("halves", "whole"))
    assert ours != theirs and ours == pytest.approx(theirs, rel=0.02)


def test_loss_weights_are_a_weighted_mean(tok, tmp_path):
    gains = ((passes.OZ, 0), (("gvn",), 3), (("dce",), 2))
    some = [replace(e, passes=("gvn",), gains=gains) for e in EXAMPLES[:2]] + EXAMPLES[2:4]
    data = dataset.prepare(some, tok, 2048, tmp_path / "d", stakes=Stakes(temperature=1.0))
    batch = dataset.collate(data, range(4), pad(tok))
    llama = model.build("smoke", len(tok), 0)
    config = TrainConfig(steps=1, prompt_weight=0.5, list_weight=3.0)
    loss, each, kept = train.Objective(llama, config)(batch)
    weight = torch.tensor([0.5, 3.0, 1.0, 1.0])[kept]
    worth = weight * batch.weights[:, 1:][batch.kinds[:, 1:] >= 0]
    assert len(set(worth.tolist())) > 4
    assert loss.item() == pytest.approx(((each * worth).sum() / weight.sum()).item(), rel=1e-5)
    assert len(each) == int((batch.kinds >= 0).sum()) - 4  # nothing predicts the first token


def test_of_a_prompt_every_third_token_can_be_learned(tok, tmp_path):
    data = dataset.prepare(EXAMPLES, tok, 2048, tmp_path / "d")
    batch = dataset.collate(data, range(12), pad(tok))
    llama = model.build("smoke", len(tok), 0)
    counts = [
        torch.bincount(train.Objective(llama, TrainConfig(steps=1, prompt_every=n))(batch)[2])
        for n in (1, 3)
    ]
    assert counts[0][1:].tolist() == counts[1][1:].tolist()
    assert 0.8 < 3 * counts[1][0] / counts[0][0] < 1.2
