"""Training: one readable loop over `accelerate`, from examples to a Hugging Face model folder.

As in the paper (Section III-B) a Llama learns pass lists, instruction counts and code at once, with
betas of (0.9, 0.95) and a warm-up. What a small budget wants is a setting: how much the list
weighs, what a choice is worth, Muon for matrices, short functions first. A run may stop at any time
and goes on from its last whole checkpoint; by `steps` on CPU it ends in the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM

from llmopt import checkpoints, model
from llmopt.config import InputError, write_atomic
from llmopt.dataset import GIVEN, KINDS, Batch, Tokens, batches, collate
from llmopt.tokenizer import END, PAD, Tokenizer


@dataclass(frozen=True)
class TrainConfig:
    """One run. Give `steps` (resumable to the byte) or `seconds` of wall time, not both.

    Weights multiply a token's loss by what it is part of; one batch's loss is the weighted sum over
    the weights. What is taught, and how much of it, is settled before (`dataset.prepare`).
    """

    preset: str = "classroom"
    steps: int | None = None
    seconds: float | None = None
    tokens_per_batch: int = 1024  # padding included, on each device
    accumulate: int = 1  # batches a step, for large batches on few devices
    learning_rate: float = 2.5e-3
    final_rate: float = 0.0  # of the peak
    warmup: float = 0.03  # of the run
    decay: float = 0.5  # how much of the run, at its end, the rate falls
    restart: float = 0.0  # how much of the run, after that, is a second fall, from half the rate
    weight_decay: float = 0.1
    clip: float = 1.0
    optimizer: str = "muon"  # for the layers' matrices; or "adamw" for everything
    prompt_weight: float = 0.5
    prompt_every: int = 1  # every how many of a prompt's tokens one is learned: the rest is saved
    list_weight: float = 8.0
    count_weight: float = 1.0
    curriculum: float = 0.0  # 0: any order; the larger, the more short functions come first
    code_repeats: int = 1  # how often a function taught with its code comes, for one of another
    spike: float = 3.0  # nats by which the smoothed loss may rise above its best
    validate_every: int = 100
    validate_on: int = 400  # functions, at most, for the losses
    checkpoint_every: int = 100
    precision: str = "no"  # "bf16": matrix products in bfloat16, all else in float32
    compiled: bool = False  # torch.compile; pays on an accelerator
    sharded: bool = False  # weights, gradients and moments spread over the processes (FSDP)
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise InputError("a training run: give either steps or seconds")
        sizes = (self.steps, self.seconds, self.tokens_per_batch, self.accumulate)
        if any(size is not None and size <= 0 for size in sizes):
            raise InputError("a training run: steps, seconds and batches must be above zero")
        if not 0 <= self.restart < 1:
            raise InputError("a training run: restart is a share of it, from 0 to below 1")
        if min(self.prompt_every, self.code_repeats) < 1:
            raise InputError("a training run: prompt_every and code_repeats start at 1")
        if self.optimizer not in ("adamw", "muon"):
            raise InputError(f"unknown optimizer {self.optimizer!r}: use adamw or muon")
        if self.precision not in ("no", "bf16"):
            raise InputError(f"unknown precision {self.precision!r}: use no or bf16")
        if self.sharded and self.optimizer == "muon":
            raise InputError("muon needs whole matrices: shard with optimizer adamw")
        model.shape(self.preset)


class Objective(torch.nn.Module):
    """The loss as a module, so that data- and model-parallel wrappers go around it whole."""

    def __init__(self, llama: LlamaForCausalLM, config: TrainConfig):
        super().__init__()
        self.llama = llama
        weights = (config.prompt_weight, config.list_weight, config.count_weight, 1.0)
        self.weights = torch.tensor(weights)
        self.every = config.prompt_every
        self.halves = config.precision == "bf16"

    def forward(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Loss (nats a token), and the losses and kinds of the tokens that have a weight."""
        targets = torch.cat([batch.prompts, batch.answers], dim=1)[:, 1:]
        kinds = self._learned(batch)[:, 1:]
        weight = self.weights.to(targets.device)[kinds] * (kinds >= 0)
        used = weight > 0
        with torch.autocast(targets.device.type, torch.bfloat16, enabled=self.halves):
            read = batch.prompts, batch.answers, batch.mask, batch.positions
            hidden = model.answer(self.llama, *read)[:, :-1]
            logits = self.llama.lm_head(hidden[used])  # only where there is something to learn
        losses = torch.nn.functional.cross_entropy(logits.float(), targets[used], reduction="none")
        worth = weight[used] * batch.weights[:, 1:][used]
        return (losses * worth).sum() / weight.sum(), losses.detach(), kinds[used]

    def _learned(self, batch: Batch) -> torch.Tensor:
        """The kinds of all tokens, with those of the prompt that are not learned as given. Which
        they are hangs on the function alone, so that a resumed run learns the same."""
        if self.every == 1:
            return batch.kinds
        size = batch.prompts.shape[1]
        places = torch.arange(size, device=batch.prompts.device) + batch.prompts.sum(1)[:, None]
        kinds = batch.kinds.clone()
        kinds[:, :size][places % self.every > 0] = GIVEN
        return kinds


def optimizers(llama: torch.nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the layers' matrices and AdamW for embeddings and norms."""
    named = [(name, p) for name, p in llama.named_parameters() if p.requires_grad]
    inner = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    inner = inner if config.optimizer == "muon" else []
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    made = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8)]
    if inner:
        made.append(
            torch.optim.Muon(
                inner,
                lr=config.learning_rate,
                momentum=0.95,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return made


def shard(objective: Objective, device: torch.device) -> None:
    """Spread each layer's parameters over all processes; what is not in a layer, in one piece."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in objective.llama.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def rate(fraction: float, config: TrainConfig) -> float:
    """Learning rate when `fraction` of the run is done: a linear warm-up, a plateau, and a linear
    fall over the last `decay` of the run; then, if there is a `restart`, once more from half of the
    rate (warm restarts: Loshchilov and Hutter, ICLR 2017)."""
    if fraction < config.warmup:
        return config.learning_rate * max(fraction / config.warmup, 0.01)
    peak, first = config.learning_rate, 1 - config.restart
    if fraction < first or not config.restart:
        fall = max(0.0, 1 - (1 - fraction / first) / max(config.decay, 1e-9))
    else:
        peak, fall = peak / 2, (fraction - first) / max(config.restart, 1e-9)
    return peak * (1 - (1 - config.final_rate) * min(fall, 1.0))


@torch.no_grad()
def validate(objective: Objective, data: Tokens, config: TrainConfig, pad: int) -> dict:
    """Mean loss by kind of token (nats) over `config.validate_on` functions of `data`, the same
    ones each time."""
    sums, counts = np.zeros(len(KINDS)), np.zeros(len(KINDS))
    device = next(objective.parameters()).device
    objective.eval()
    seen = 0
    for rows in batches(data, config.tokens_per_batch):
        _, losses, kept = objective(collate(data, rows, pad).to(device))
        sums += np.bincount(kept.cpu(), losses.cpu(), minlength=len(KINDS))
        counts += np.bincount(kept.cpu(), minlength=len(KINDS))
        seen += len(rows)
        if seen >= min(config.validate_on, len(data.functions)):
            break
    objective.train()
    found = {f"valid_{kind}": s / n for kind, s, n in zip(KINDS, sums, counts, strict=True) if n}
    return {"valid_loss": sums[1:].sum() / max(1, counts[1:].sum()), **found}


def train(
    data: Tokens,
    held: Tokens | None,
    tok: Tokenizer,
    config: TrainConfig,
    directory: Path,
    progress: bool = True,
    on_step: Callable[[dict], None] | None = None,
    judge: Callable[[LlamaForCausalLM], dict] | None = None,
) -> Path:
    """Train a model from scratch on `data`, or go on where `directory` stopped; returns the model's
    folder. `held` is validated on.

    `directory` gets `log.jsonl` (a row a step: step, tokens, padding, loss, rate, seconds, and at
    each validation the losses by kind of token and what `judge` says of the model),
    `checkpoints/`, and at the end `model/`. `on_step` is given each row. SIGINT saves a checkpoint
    and raises `KeyboardInterrupt`. Raises `InputError` where the loss is lost (NaN, or a spike),
    and on a directory with another run in it.
    """
    directory = Path(directory)
    done = directory / "model"
    many = int(os.environ.get("WORLD_SIZE", 1)) > 1  # as `accelerate launch` says it
    accelerator = Accelerator(cpu=many and not torch.cuda.is_available())
    main = accelerator.is_main_process
    run = asdict(config) | {"data": data.digest, "processes": accelerator.num_processes}
    if (done / "training.json").exists():
        if json.loads((done / "training.json").read_text())["run"] == run:
            return done
        raise InputError(f"{done}: a model with other settings or data; use another directory")

    llama = model.build(
        config.preset, len(tok), config.seed, pad_token_id=tok.ids[PAD], eos_token_id=tok.ids[END]
    )
    if accelerator.device.type == "cpu":
        model.prefer_speed(llama, halves=config.precision == "bf16")
    objective = Objective(llama, config).to(accelerator.device)
    if config.sharded:
        shard(objective, accelerator.device)
    made = optimizers(llama, config)
    # What is sharded needs the precision only, and no second wrapper around it.
    wrapped = accelerator.prepare_model(objective, evaluation_mode=config.sharded)
    if config.compiled:
        wrapped.compile(dynamic=True)
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "smooth": None, "best": math.inf, "run": run}
    folder = directory / "checkpoints"
    found = checkpoints.newest(folder, run, accelerator.print)
    if found:
        checkpoints.restore(objective, made, found[0])
        state = {key: found[1][key] for key in state}
    log = directory / "log.jsonl"
    if main:
        rows = log.read_bytes().splitlines(True)[: state["step"]] if log.exists() else []
        write_atomic(log, b"".join(rows))

    micro = config.accumulate * accelerator.num_processes  # batches of one step, on all devices
    stream = batches(
        data, config.tokens_per_batch, config.seed, config.curriculum, config.code_repeats
    )
    stream = islice(stream, state["step"] * micro, None)
    bar = tqdm(
        total=config.steps or round(config.seconds),
        initial=0,
        desc="train",
        unit="step" if config.steps else "s",
        disable=not (progress and main),
    )
    start = time.perf_counter() - state["seconds"]

    def done_share() -> float:
        if config.steps:
            return state["step"] / config.steps
        return state["seconds"] / config.seconds

    with checkpoints.interrupts() as caught, log.open("a") as rows, bar:
        while (share := done_share()) < 1:
            for optimizer in made:
                for group in optimizer.param_groups:
                    group["lr"] = rate(share, config)
            loss, used, paid = 0.0, 0, 0
            for number, picked in enumerate(islice(stream, micro)):
                if number % accelerator.num_processes != accelerator.process_index:
                    continue
                batch = collate(data, picked, tok.ids[PAD])
                used, paid = used + batch.tokens, paid + batch.kinds.numel()
                part, _, _ = wrapped(batch.to(accelerator.device))
                accelerator.backward(part / config.accumulate)
                loss += part.item() / config.accumulate
            norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), config.clip)
            norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
            sums = torch.tensor([loss, used, paid], device=accelerator.device, dtype=torch.float64)
            loss, used, paid = accelerator.reduce(sums).tolist()
            loss /= accelerator.num_processes
            state["tokens"] += int(used)
            state["smooth"] = loss if state["step"] == 0 else 0.95 * state["smooth"] + 0.05 * loss
            if not math.isfinite(loss + norm) or state["smooth"] > state["best"] + config.spike:
                raise InputError(
                    f"the loss was lost at step {state['step'] + 1} ({loss:g}, "
                    f"gradient {norm:g}): lower learning_rate, now "
                    f"{config.learning_rate:g}; {folder} holds what came before"
                )
            state["best"] = min(state["best"], state["smooth"])
            for optimizer in made:
                optimizer.step()
                optimizer.zero_grad()
            state["step"] += 1
            state["seconds"] = time.perf_counter() - start
            row = {
                "step": state["step"],
                "tokens": state["tokens"],
                "padding": 1 - used / paid,
                "loss": loss,
                "rate": rate(share, config),
                "norm": norm,
                "seconds": state["seconds"],
            }
            last = done_share() >= 1
            if last or state["step"] % config.validate_every == 0:
                if held is not None:
                    row |= validate(wrapped, held, config, tok.ids[PAD])
                if judge and main and not config.sharded:
                    row |= judge(llama)
            if main:
                rows.write(json.dumps(row) + "\n")
                rows.flush()
                if on_step:
                    on_step(row)
            bar.update(round(done_share() * bar.total) - bar.n)
            bar.set_postfix(loss=f"{state['smooth']:.3f}", refresh=False)
            if last or caught or state["step"] % config.checkpoint_every == 0:
                with checkpoints.writing(folder):
                    checkpoints.save(accelerator, objective, made, folder, state)
            if caught:
                raise KeyboardInterrupt(f"stopped at step {state['step']}, saved")
    weights = checkpoints.gather(llama)
    if main:
        with checkpoints.writing(done):
            model.export(llama, tok, done, weights, training={"run": run, **row})
    accelerator.wait_for_everyone()
    return done
