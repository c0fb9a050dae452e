"""Checkpoints: all of a training run's state, whole on disk or not there.

Weights and the optimizers' state are gathered from wherever they are sharded to and written by one
process, with a manifest that holds the digest of each file: a damaged checkpoint is found out and
the one before it used. Training draws no random numbers beyond the first weights, so none are kept.
Nothing here knows what is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from llmopt.config import InputError, write_atomic


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A full disk shows up as many kinds of error, by who was writing; here it is one line."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: cannot be written ({str(error).splitlines()[0]}); what was saved before is "
            "kept: free some space and run the same command again"
        ) from None


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def gather(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights, whole, from wherever they are sharded to; empty but in the main process."""
    return get_model_state_dict(module, options=_WHOLE)


def save(
    accelerator: Accelerator,
    objective: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    folder: Path,
    state: dict,
    keep: int = 2,
) -> None:
    """Save into `folder/step-N`, written beside and renamed; the last `keep` stay."""
    weights, moments = get_state_dict(objective, optimizers, options=_WHOLE)
    if accelerator.is_main_process:
        target = folder / f"step-{state['step']:07d}"
        partial = folder / f".partial-{target.name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        flat = {f"{p} {kind}": t for p, own in moments["state"].items() for kind, t in own.items()}
        for name, tensors in (("weights", weights), ("optimizers", flat)):
            copies = {key: tensor.clone() for key, tensor in tensors.items()}  # none of them shared
            save_file(copies, partial / f"{name}.safetensors")
        manifest = {**state, "groups": moments["param_groups"], "files": _digests(partial)}
        write_atomic(partial / "manifest.json", json.dumps(manifest).encode())
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def restore(
    objective: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer], path: Path
) -> None:
    """Put a checkpoint's state into a model and its optimizers, sharded as they are."""
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path / "optimizers.safetensors").items():
        parameter, kind = key.split()
        moments.setdefault(parameter, {})[kind] = tensor
    groups = json.loads((path / "manifest.json").read_text())["groups"]
    set_state_dict(
        objective,
        optimizers,
        model_state_dict=load_file(path / "weights.safetensors"),
        optim_state_dict={"state": moments, "param_groups": groups},
        options=_WHOLE,
    )


def newest(folder: Path, run: dict, say: Callable[[str], None]) -> tuple[Path, dict] | None:
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
def interrupts() -> Iterator[list[int]]:
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
