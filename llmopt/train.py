"""Training: one readable loop over `accelerate`, from examples to a Hugging Face model folder.

As in the paper (Section III-B): AdamW with betas (0.9, 0.95), a cosine schedule with warm-up, and
the whole answer as target. What a small budget wants is a setting: how much the pass list weighs,
how often improving functions are shown, short functions first, Muon for matrices. A run may stop at
any time and goes on from its last whole checkpoint; by `steps` on CPU it ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as hf_logging

from llmopt import model as shapes
from llmopt import tokenizer
from llmopt.config import InputError, write_atomic
from llmopt.dataset import KINDS, Tokens, batches, collate, prepare
from llmopt.prompt import Example
from llmopt.tokenizer import END, PAD, Tokenizer


@dataclass(frozen=True)
class TrainConfig:
    """One run. Give `steps` (resumable to the byte) or `seconds` of wall time, not both.

    Weights multiply a token's loss by what it is part of; one batch's loss is their weighted mean.
    """

    preset: str = "classroom"
    steps: int | None = None
    seconds: float | None = None
    tokens_per_batch: int = 1024  # padding included, on each device
    accumulate: int = 1  # batches a step, for large batches on few devices
    max_tokens: int = 2048  # longer examples are left out, and counted in the log
    learning_rate: float = 1e-2
    final_rate: float = 0.1  # of the peak
    warmup: float = 0.03  # of the run
    weight_decay: float = 0.1
    clip: float = 1.0
    optimizer: str = "muon"  # for the layers' matrices; or "adamw" for everything
    prompt_weight: float = 0.5
    list_weight: float = 8.0
    count_weight: float = 1.0
    repeat_improved: int = 1  # how often a function with a better list than -Oz is shown
    curriculum: float = 0.0  # 0: any order; the larger, the more short functions come first
    spike: float = 3.0  # nats by which the smoothed loss may rise above its best
    validate_every: int = 100
    checkpoint_every: int = 100
    precision: str = "no"  # accelerate's mixed precision: "no" or "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise InputError("a training run: give either steps or seconds")
        sizes = (self.steps, self.seconds, self.tokens_per_batch, self.accumulate)
        if any(size is not None and size <= 0 for size in sizes):
            raise InputError("a training run: steps, seconds and batches must be above zero")
        if self.optimizer not in ("adamw", "muon"):
            raise InputError(f"unknown optimizer {self.optimizer!r}: use adamw or muon")
        shapes.shape(self.preset)


class Objective(torch.nn.Module):
    """The loss as a module, so that data- and model-parallel wrappers go around it whole."""

    def __init__(self, llama: LlamaForCausalLM, config: TrainConfig):
        super().__init__()
        self.llama = llama
        weights = (config.prompt_weight, config.list_weight, config.count_weight, 1.0)
        self.weights = torch.tensor(weights)

    def forward(self, ids: torch.Tensor, kinds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Loss (nats a token), and the losses and kinds of the tokens that have a weight."""
        hidden = self.llama.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        kinds, targets = kinds[:, 1:], ids[:, 1:]
        weight = self.weights.to(ids.device)[kinds] * (kinds >= 0)
        used = weight > 0
        logits = self.llama.lm_head(hidden[used])  # only where there is something to learn
        losses = torch.nn.functional.cross_entropy(logits.float(), targets[used], reduction="none")
        return (losses * weight[used]).sum() / weight.sum(), losses.detach(), kinds[used]


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


def rate(fraction: float, config: TrainConfig) -> float:
    """Learning rate when `fraction` of the run is done: linear warm-up, then a cosine."""
    if fraction < config.warmup:
        return config.learning_rate * max(fraction / config.warmup, 0.01)
    through = min(1.0, (fraction - config.warmup) / max(1e-9, 1 - config.warmup))
    low = config.final_rate
    return config.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * through)) / 2)


@torch.no_grad()
def validate(objective: Objective, data: Tokens, config: TrainConfig, pad: int) -> dict:
    """Mean loss by kind of token (nats), over all of `data`."""
    sums, counts = np.zeros(len(KINDS)), np.zeros(len(KINDS))
    device = next(objective.parameters()).device
    objective.eval()
    seen = 0
    for rows in batches(data, config.tokens_per_batch):
        ids, kinds = (t.to(device) for t in collate(data, rows, pad))
        _, losses, kept = objective(ids, kinds)
        sums += np.bincount(kept.cpu(), losses.cpu(), minlength=len(KINDS))
        counts += np.bincount(kept.cpu(), minlength=len(KINDS))
        seen += len(rows)
        if seen >= len(data.spans):
            break
    objective.train()
    found = {f"valid_{kind}": s / n for kind, s, n in zip(KINDS, sums, counts, strict=True) if n}
    return {"valid_loss": sums[1:].sum() / max(1, counts[1:].sum()), **found}


# --- checkpoints -------------------------------------------------------------------------------


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A full disk shows up as many kinds of error, by who was writing; here it is one line."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: cannot be written ({str(error).splitlines()[0]}); what was saved before is "
            "kept: free some space and run the same command again"
        ) from None


def _save(accelerator: Accelerator, folder: Path, state: dict, keep: int = 2) -> None:
    """All of the run's state, written beside and renamed: a checkpoint is whole or not there."""
    target = folder / f"step-{state['step']:07d}"
    partial = folder / f".partial-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    # That tied weights are saved once is as it should be, and no news at every checkpoint.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        manifest = {**state, "files": _digests(partial)}
        write_atomic(partial / "manifest.json", json.dumps(manifest).encode())
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _newest(folder: Path, run: dict, say: Callable[[str], None]) -> tuple[Path, dict] | None:
    """The newest whole checkpoint and its state; damaged ones are named and passed over.

    Raises `InputError` where the folder is of a run with other settings or data.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = json.loads((path / "manifest.json").read_text())
            if state["files"] != _digests(path):
                raise ValueError("its files differ from its manifest")
        except (OSError, ValueError, KeyError) as error:
            say(f"checkpoint {path} is damaged ({error}): going back to the one before")
            continue
        odd = sorted(key for key in run if run[key] != state["run"].get(key))
        if odd:
            raise InputError(
                f"{path}: made with another {', '.join(odd)}; "
                "use another directory or delete this one"
            )
        return path, state
    return None


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step is never cut in two."""
    caught: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda n, _: caught.append(n))
    except ValueError:  # not the main thread: there nobody sends us signals
        pass
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- the loop ----------------------------------------------------------------------------------


def train(
    examples: Sequence[Example],
    valid: Sequence[Example],
    tok: Tokenizer,
    config: TrainConfig,
    directory: Path,
    progress: bool = True,
    on_step: Callable[[dict], None] | None = None,
) -> Path:
    """Train a model from scratch, or go on where `directory` stopped; returns the model's folder.

    `directory` gets `log.jsonl` (a row a step: step, tokens, loss, rate, seconds, and validation
    losses by kind of token), `checkpoints/`, and at the end `model/`. `on_step` is given each row.
    SIGINT saves a checkpoint and raises `KeyboardInterrupt`. Raises `InputError` where the loss is
    lost (NaN, or a spike), and on a directory with another run in it.
    """
    directory = Path(directory)
    done = directory / "model"
    accelerator = Accelerator(mixed_precision=config.precision)
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        data, held = (
            prepare(some, tok, config.max_tokens, directory / name) if some else None
            for some, name in ((examples, "train"), (valid, "valid"))
        )
    if data is None:
        raise InputError("no examples to train on: label the corpus first")
    run = {**asdict(config), "data": data.digest, "processes": accelerator.num_processes}
    if (done / "training.json").exists():
        if json.loads((done / "training.json").read_text())["run"] == run:
            return done
        raise InputError(f"{done}: a model with other settings or data; use another directory")

    llama = shapes.build(
        config.preset, len(tok), config.seed, pad_token_id=tok.ids[PAD], eos_token_id=tok.ids[END]
    )
    made = optimizers(llama, config)
    objective, *made = accelerator.prepare(Objective(llama, config), *made)
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "smooth": None, "best": math.inf, "run": run}
    checkpoints = directory / "checkpoints"
    found = _newest(checkpoints, run, accelerator.print)
    if found:
        accelerator.load_state(str(found[0]))
        state = {key: found[1][key] for key in state}
    log = directory / "log.jsonl"
    if main:
        rows = log.read_bytes().splitlines(True)[: state["step"]] if log.exists() else []
        write_atomic(log, b"".join(rows))

    micro = config.accumulate * accelerator.num_processes  # batches of one step, on all devices
    stream = batches(
        data, config.tokens_per_batch, config.seed, config.repeat_improved, config.curriculum
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
    with _interrupts() as caught, log.open("a") as rows, bar:
        while True:
            share = (
                state["step"] / config.steps
                if config.steps
                else (state["seconds"] / config.seconds)
            )
            if share >= 1:
                break
            for optimizer in made:
                for group in optimizer.param_groups:
                    group["lr"] = rate(share, config)
            loss = 0.0
            for number, picked in enumerate(islice(stream, micro)):
                if number % accelerator.num_processes != accelerator.process_index:
                    continue
                ids, kinds = collate(data, picked, tok.ids[PAD])
                ids, kinds = ids.to(accelerator.device), kinds.to(accelerator.device)
                part, _, _ = objective(ids, kinds)
                accelerator.backward(part / config.accumulate)
                loss += part.item() / config.accumulate
                state["tokens"] += int((kinds >= 0).sum()) * accelerator.num_processes
            norm = float(accelerator.clip_grad_norm_(objective.parameters(), config.clip))
            state["smooth"] = loss if state["step"] == 0 else 0.95 * state["smooth"] + 0.05 * loss
            if not math.isfinite(loss + norm) or state["smooth"] > state["best"] + config.spike:
                raise InputError(
                    f"the loss was lost at step {state['step'] + 1} ({loss:g}, "
                    f"gradient {norm:g}): lower learning_rate, now "
                    f"{config.learning_rate:g}; {checkpoints} holds what came before"
                )
            state["best"] = min(state["best"], state["smooth"])
            for optimizer in made:
                optimizer.step()
                optimizer.zero_grad()
            state["step"] += 1
            state["seconds"] = time.perf_counter() - start
            last = state["step"] == config.steps or (
                config.seconds is not None and state["seconds"] >= config.seconds
            )
            row = {
                "step": state["step"],
                "tokens": state["tokens"],
                "loss": loss,
                "rate": rate(share, config),
                "norm": norm,
                "seconds": state["seconds"],
            }
            if held is not None and (last or state["step"] % config.validate_every == 0):
                row |= validate(objective, held, config, tok.ids[PAD])
            if main:
                rows.write(json.dumps(row) + "\n")
                rows.flush()
                if on_step:
                    on_step(row)
            bar.update(
                (state["step"] if config.steps else min(round(state["seconds"]), bar.total)) - bar.n
            )
            bar.set_postfix(loss=f"{state['smooth']:.3f}", refresh=False)
            if last or caught or state["step"] % config.checkpoint_every == 0:
                with _writing(checkpoints):
                    _save(accelerator, checkpoints, state)
            if caught:
                raise KeyboardInterrupt(f"stopped at step {state['step']}, saved")
    if main:
        with _writing(done):
            _export(accelerator.unwrap_model(objective).llama, tok, done, {"run": run, **row})
    return done


# --- model folders -----------------------------------------------------------------------------


def _export(llama: LlamaForCausalLM, tok: Tokenizer, folder: Path, training: dict) -> None:
    partial = folder.with_name(".partial-model")
    shutil.rmtree(partial, ignore_errors=True)
    hf_logging.disable_progress_bar()
    llama.save_pretrained(partial)
    tok.save(partial)
    write_atomic(partial / "training.json", json.dumps(training, indent=1).encode())
    partial.replace(folder)


def load(folder: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    """A trained model, ready to generate, and its tokenizer, from a Hugging Face folder.

    Only safetensors are read, nothing is downloaded or unpickled. Raises `InputError` that names
    the file where one is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    tok = tokenizer.load(folder)
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
        if values.get("model_type") != "llama":
            raise ValueError("not a Llama's")
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a foreign file can upset the library in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: no usable configuration ({reason}); train again") from None
    hf_logging.disable_progress_bar()
    weights = folder / "model.safetensors"
    if len(tok) != config.vocab_size:
        raise InputError(
            f"{path}: {config.vocab_size} tokens, but tokenizer.json has {len(tok)}; "
            "use the tokenizer that the model was trained with"
        )
    try:
        with safe_open(weights, "pt"):  # headers and sizes are checked on opening
            pass
        llama, info = LlamaForCausalLM.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation="sdpa",
            dtype="auto",
        )
    except Exception as error:  # config.json may hold a shape that cannot be built, too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{weights}: not readable weights ({reason}); train again") from None
    odd = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if odd:
        raise InputError(f"{weights}: {len(odd)} tensors do not fit config.json, {odd[0]} first")
    return llama.eval(), tok
