"""Checkpoints: all of a training run's state, whole on disk or not there.

`accelerate` saves weights, optimizers and random states; here they get a manifest with the digest
of each file, so that a damaged checkpoint is found out and the one before it used. Nothing here
knows what is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from llmopt.config import InputError, write_atomic

if TYPE_CHECKING:
    from accelerate import Accelerator


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


def save(accelerator: Accelerator, folder: Path, state: dict, keep: int = 2) -> None:
    """Save into `folder/step-N`, written beside and renamed; the last `keep` stay."""
    target = folder / f"step-{state['step']:07d}"
    partial = folder / f".partial-{target.name}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    # That tied weights are saved once is as it should be, and no news at every checkpoint.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        manifest = {**state, "files": _digests(partial)}
        write_atomic(partial / "manifest.json", json.dumps(manifest).encode())
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


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
