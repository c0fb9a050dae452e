"""Plans: the arithmetic is the model's, and memory falls with every device that shares it."""

import json

import pytest
import torch
from test_cli import llmopt

from llmopt import dataset, model, plan, train


@pytest.mark.parametrize("preset", model.PRESETS)
@pytest.mark.parametrize("vocabulary", [4096, 32000])
def test_parameters_are_those_of_the_model(preset, vocabulary):
    assert plan.count_parameters(preset, vocabulary) == model.parameters(preset, vocabulary)


def test_llama_2_has_its_published_size():
    # Touvron et al., 2023: "6.7B"; the checkpoint has 6,738,415,616 parameters.
    assert plan.count_parameters("llama2-7b", 32000) == 6_738_415_616
    assert 6 * 6.5e9 < plan.operations("llama2-7b", 32000, 2048) < 6 * 7.5e9


def test_shares_fall_with_devices_and_activations_with_checkpoints():
    whole = plan.plan("llama2-7b", 32000, 4096, 2048)
    assert whole.weights == whole.gradients == 4 * whole.parameters
    assert whole.optimizer == 8 * whole.parameters
    shared = plan.plan("llama2-7b", 32000, 4096, 2048, devices=8)
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(shared, name) == getattr(whole, name) // 8
    assert shared.activations == whole.activations
    again = plan.plan("llama2-7b", 32000, 4096, 2048, checkpointed=True)
    assert again.activations < whole.activations / 4
    halves = plan.plan("llama2-7b", 32000, 4096, 2048, precision="bf16")
    assert halves.weights == whole.weights and halves.activations < whole.activations
    muon = plan.plan("reference", 4096, 4096, 400, "muon")
    assert 4 * muon.parameters < muon.optimizer < 8 * muon.parameters


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("preset", ["classroom", "reference"])
def test_layers_keep_what_the_plan_says(preset, precision):
    """Against the tensors that PyTorch saves for the backward pass, storages counted once."""
    vocabulary, lengths = 512, (60, 60, 6, 6)
    config = train.TrainConfig(preset, steps=1, precision=precision)
    objective = train.Objective(model.build(preset, vocabulary, 0), config)
    branches = [([1] * n, [-1, -1] + [1] * (n - 2), 1.0) for n in lengths]
    batch = dataset.assemble([([1] * 140, branches)] * 6, 0)
    weights = {p.shape for p in objective.parameters()}
    weights |= {shape[::-1] for shape in weights}  # their casts do not grow with the tokens
    saved = {}

    def pack(tensor):
        head = vocabulary in tensor.shape
        if tensor.shape not in weights and not head:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, *_ = objective(batch)
    found = sum(saved.values()) / batch.tokens / model.shape(preset).layers
    assert loss.isfinite() and found == pytest.approx(plan.kept(preset, precision), rel=0.1)


def test_time_is_operations_over_speed():
    one = plan.plan("llama2-7b", 32000, 4096, 2048)
    # The paper: 620 GPU days on V100s for 15.7 billion tokens; so at some 12 TFLOP/s each.
    days = one.seconds(15.7e9, 12.5e12) / 86400
    assert 550 < days < 700
    assert one.seconds(1e9, 1e12, devices=4) == one.seconds(1e9, 1e12) / 4


@pytest.mark.slow
def test_bench_train_measures_speed_and_memory():
    done = llmopt("bench", "train", "--preset", "smoke", "--steps", "1", "--tokens", "1200")
    assert done.returncode == 0 and "tokens a second" in done.stdout
    done = llmopt(
        "bench", "train", "--preset", "smoke", "--steps", "1", "--tokens", "1200", "--json"
    )
    for row in json.loads(done.stdout):
        assert 0 < row["utilisation"] < 1.5 and row["tokens_per_second"] > 0
        assert row["parameters"] == model.parameters("smoke", 2048)
    done = llmopt("bench", "train", "--preset", "smol")
    assert done.returncode == 2 and "smoke" in done.stderr
