"""Choosing one of a few lists: each is weighed whole, where greedy decoding takes the likeliest
first token and lives with it.

The candidates are a coreset of lists with -Oz among them. A function is read once and all lists are
weighed in one go, under both protocols where both are asked for. `caution` is what is added to the
log-probability of -Oz; it is fitted on functions that were not trained on, in instructions saved,
because the likeliest list is not the one with the best expectation (DESIGN 8).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from llmopt import dataset, model, passes, prompt
from llmopt.config import PROTOCOLS, InputError
from llmopt.passes import OZ
from llmopt.prompt import Example
from llmopt.tokenizer import PAD, Tokenizer, mark

List = tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """How to choose under each protocol: the candidates, -Oz the first, and the caution (nats)."""

    lists: Mapping[str, tuple[List, ...]]
    caution: Mapping[str, float]

    def choose(self, protocol: str, scores: np.ndarray | None) -> List:
        """The list to take, given the log-probability of each candidate (-Oz without any)."""
        if scores is None:
            return OZ
        return self.lists[protocol][_choice(scores, self.caution[protocol])]

    def to_json(self) -> dict:
        return {
            protocol: {
                "lists": [passes.format(names) for names in self.lists[protocol]],
                "caution": self.caution[protocol],
            }
            for protocol in self.lists
        }


def rule(lists: Mapping[str, Sequence[List]]) -> Rule:
    """The likeliest of `lists` and -Oz, without caution."""
    whole = {p: (OZ, *(names for names in some if names != OZ)) for p, some in lists.items()}
    return Rule(whole, dict.fromkeys(whole, 0.0))


def load(folder: Path) -> Rule:
    """The rule beside a model. Raises `InputError` that names the file if there is none."""
    path = Path(folder) / "rule.json"
    try:
        value = json.loads(path.read_text())
        lists = {p: tuple(map(passes.parse, value[p]["lists"])) for p in PROTOCOLS}
        if any(not own or own[0] != OZ for own in lists.values()):
            raise ValueError("-Oz is not the first list")
        return Rule(lists, {p: float(value[p]["caution"]) for p in PROTOCOLS})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no usable rule beside the model ({error}); name a folder that "
            "`llmopt train` made"
        ) from None


def _choice(scores: np.ndarray, caution: float) -> int:
    weighed = scores.copy()
    weighed[0] += caution
    return int(weighed.argmax())


@torch.inference_mode()
def score(
    llama: LlamaForCausalLM,
    tok: Tokenizer,
    functions: Sequence[tuple[str, str]],
    lists: Mapping[str, Sequence[List]],
    tokens_per_batch: int = 8192,
    on_done: Callable[[int], None] | None = None,
) -> list[np.ndarray | None]:
    """Log-probabilities (nats) of `lists[protocol]` as answers to each (normalised IR, protocol).

    None where a prompt leaves no room in the model's context. Questions about one function that
    stand together share its reading. `on_done` is told how many functions are done.
    """
    llama.eval()
    branches = {
        protocol: [[tok.ids[mark(protocol)], *prompt.encode_list(names, tok)] for names in some]
        for protocol, some in lists.items()
    }
    results: list[np.ndarray | None] = [None] * len(functions)
    rows = []
    for text, group in groupby(range(len(functions)), key=lambda i: functions[i][0]):
        asked = list(group)
        ids = prompt.encode_prompt(text, functions[asked[0]][1], tok)[0][:-1]
        own = [branch for i in asked for branch in branches[functions[i][1]]]
        if len(ids) + max(map(len, own)) <= llama.config.max_position_embeddings:
            answers = [(branch, [-1, -1] + [1] * (len(branch) - 2), 1.0) for branch in own]
            rows.append((asked, ids, answers, len(ids) + sum(map(len, own))))
    rows.sort(key=lambda row: row[3])
    done = len(functions) - sum(len(asked) for asked, *_ in rows)
    while rows:
        number = max(1, min(len(rows), tokens_per_batch // rows[-1][3]))
        part, rows = rows[-number:], rows[:-number]
        batch = dataset.assemble([(ids, answers) for _, ids, answers, _ in part], tok.ids[PAD])
        likely = _list_scores(llama, batch.to(llama.device))
        for (asked, _, answers, _), values in zip(part, likely, strict=True):
            ends = np.cumsum([len(branch) for branch, *_ in answers])[:-1]
            sums = [piece.sum() for piece in np.split(values[: sum(map(_size, answers))], ends)]
            at = 0
            for i in asked:
                many = len(branches[functions[i][1]])
                results[i] = np.array(sums[at : at + many])
                at += many
        done += sum(len(asked) for asked, *_ in part)
        if on_done:
            on_done(done)
    return results


def _size(answer: tuple) -> int:
    return len(answer[0])


def _list_scores(llama: LlamaForCausalLM, batch: dataset.Batch) -> np.ndarray:
    """Log-probability of each answer token (B, Q) that is part of a list, 0 elsewhere."""
    with model.fast(llama.device):
        hidden = model.answer(llama, batch.prompts, batch.answers, batch.mask, batch.positions)
        start = batch.prompts.shape[1]
        wanted = batch.kinds[:, start:] == 1
        before = hidden[:, start - 1 : -1][wanted]
        logits = llama.lm_head(before).float()
    picked = logits.log_softmax(-1).gather(1, batch.answers[wanted][:, None])[:, 0]
    out = torch.zeros(wanted.shape, device=logits.device)
    out[wanted] = picked
    return out.double().cpu().numpy()


def calibrate(
    llama: LlamaForCausalLM,
    tok: Tokenizer,
    examples: Sequence[Example],
    lists: Mapping[str, Sequence[List]],
) -> Rule:
    """The rule that saves most instructions on the examples by their `gains`; they should not be
    the model's own training data. `lists` are the candidates of each protocol. Examples of one
    function should stand together (`score`).

    The caution lies between two margins by which some example's best other list beats -Oz.
    """
    candidates = rule(lists).lists
    scores = score(llama, tok, [(e.ir, e.protocol) for e in examples], candidates)
    known = list(zip(examples, scores, strict=True))
    caution = {
        protocol: fit_caution([pair for pair in known if pair[0].protocol == protocol], own)
        for protocol, own in candidates.items()
    }
    return Rule(candidates, caution)


def fit_caution(
    known: Sequence[tuple[Example, np.ndarray | None]], lists: tuple[List, ...]
) -> float:
    """The caution (nats) that saves most instructions on examples with their scores of `lists`."""
    steps = []  # (the caution below which the best other list is taken, what that saves)
    for example, values in known:
        if values is not None and len(lists) > 1:
            other = 1 + int(values[1:].argmax())
            gain = dict(example.gains).get(lists[other])
            if gain is not None:
                steps.append((values[other] - values[0], gain))
    if not steps:
        return 0.0
    # With caution c, the functions whose margin exceeds c take the other list.
    steps.sort(key=lambda step: -step[0])
    saved = np.cumsum([gain for _, gain in steps])
    margins = [margin for margin, _ in steps]
    if saved.max() <= 0:
        return float(margins[0] + 1.0)
    taken = int(saved.argmax())
    below = margins[taken + 1] if taken + 1 < len(margins) else margins[taken] - 1.0
    return float((margins[taken] + below) / 2)
