"""Several processes train the same model as one: copies of it (DDP), or shares of it (FSDP)."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_train import CONFIG, EXAMPLES, ROOT, log, losses, run

from llmopt import dataset, model, pipeline, tokenizer
from llmopt.config import InputError

SETTINGS = replace(CONFIG, steps=6, optimizer="adamw", checkpoint_every=3, validate_every=3)
CHILD = """
import os, sys; sys.path[:0] = [sys.argv[2] + "/tests", sys.argv[2]]
from dataclasses import replace
from pathlib import Path
from test_train_many import EXAMPLES, SETTINGS, run, tokenizer
kill = int(sys.argv[4])
tok = tokenizer.train([e.ir for e in EXAMPLES], 500)
from filelock import FileLock
from llmopt import dataset
with FileLock(sys.argv[1] + ".lock"):  # as `pipeline.tokens` does
    for name, some in (("train", EXAMPLES), ("valid", EXAMPLES[:9])):
        dataset.prepare(some, tok, 2048, Path(sys.argv[1]) / name)
run(EXAMPLES, EXAMPLES[:9], tok, replace(SETTINGS, sharded=sys.argv[3] == "shares"),
    Path(sys.argv[1]), on_step=lambda row: row["step"] == kill and os._exit(9))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    tok = tokenizer.train([e.ir for e in EXAMPLES], 500)
    settings = replace(SETTINGS, accumulate=2)
    run(EXAMPLES, EXAMPLES[:9], tok, settings, directory)
    return directory


def two(directory, how, kill=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    child = directory.parent / "child.py"
    child.write_text(CHILD)
    return subprocess.run(
        [*command, str(child), str(directory), str(ROOT), how, str(kill)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copies", "shares"])
def test_two_processes_train_to_the_losses_of_one(alone, tmp_path, how):
    if how == "shares":  # and a run that was killed goes on
        assert two(tmp_path / how, how, kill=5).returncode
        assert len(log(tmp_path / how)) == 5
    done = two(tmp_path / how, how)
    assert done.returncode == 0, done.stderr[-2000:]
    for ours, theirs in zip(losses(tmp_path / how), losses(alone), strict=True):
        assert ours[:2] == theirs[:2] and ours[2] == pytest.approx(theirs[2], rel=1e-5)
        assert ours[3] is None if theirs[3] is None else ours[3] == pytest.approx(theirs[3], 1e-5)
    made, expected = (
        load_file(path / "model" / "model.safetensors") for path in (tmp_path / how, alone)
    )
    assert made.keys() == expected.keys()
    for name, tensor in made.items():
        assert torch.allclose(tensor, expected[name], atol=1e-4), name
    model.load(tmp_path / how / "model")


def test_muon_is_not_sharded():
    with pytest.raises(InputError, match="muon needs whole matrices"):
        replace(SETTINGS, sharded=True, optimizer="muon")


def test_a_launch_with_fsdp_shares_the_batch_of_a_step(monkeypatch):
    assert not pipeline.recipe().sharded and pipeline.recipe().optimizer == "muon"
    monkeypatch.setenv("LLMOPT_SCALE", "paper")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for processes in (8, 64):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        recipe = pipeline.recipe()
        assert recipe.sharded and recipe.optimizer == "adamw"
        assert recipe.tokens_per_batch * recipe.accumulate * processes == 524_288
        assert recipe.tokens_per_batch == 2048  # one longest function


@pytest.mark.slow
def test_the_launch_file_starts_sharded_training(tmp_path):
    tok = tokenizer.train([e.ir for e in EXAMPLES], 500)
    tok.save(tmp_path / "tokens")
    for name, some in (("train", EXAMPLES), ("valid", EXAMPLES[:9])):
        dataset.prepare(some, tok, 2048, tmp_path / "tokens" / name)
    launch = "-m accelerate.commands.launch --num_processes 2 --main_process_port 0 --config_file"
    what = f"-m llmopt.cli train --scale smoke --tokens {tmp_path}/tokens -o {tmp_path}/run"
    done = subprocess.run(
        [sys.executable, *launch.split(), str(ROOT / "configs" / "fsdp.yaml"), *what.split()],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = tmp_path / "run" / "model"
    run = json.loads((made / "training.json").read_text())["run"]
    assert run["sharded"] and run["processes"] == 2
    model.load(made)
