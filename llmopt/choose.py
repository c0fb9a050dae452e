"""Choosing one of a few lists: each is weighed whole, where greedy decoding takes the likeliest
first token and lives with it.

The candidates are a coreset of lists with -Oz among them. A function is read once and all lists are
weighed in one go, under both protocols where both are asked for. The likeliest list is not the one
with the best expectation (DESIGN 8): one that is right one time in three and then saves twenty
instructions is worth a try where it costs one otherwise. So what is taken is the list that saves
most in expectation, by what each list was worth to functions for which the model said this or that.
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
MOST = 30  # instructions at which gains and losses are cut for learning what lists are worth
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Rule:
    """How to choose under each protocol: the candidates, -Oz the first, and `worth` (candidates,
    candidates): in row i and column j the instructions that list j saves against -Oz where the
    model is sure of list i. The column of -Oz is what another list has to promise to be taken."""

    lists: Mapping[str, tuple[List, ...]]
    worth: Mapping[str, np.ndarray]

    def choose(self, protocol: str, scores: np.ndarray | None) -> List:
        """The list to take, given the log-probability of each candidate (-Oz without any)."""
        if scores is None:
            return OZ
        expected = probabilities(scores) @ self.worth[protocol]
        return self.lists[protocol][int(expected.argmax())]

    def to_json(self) -> dict:
        return {
            protocol: {
                "lists": [passes.format(names) for names in self.lists[protocol]],
                "worth": np.round(self.worth[protocol], 4).tolist(),
            }
            for protocol in self.lists
        }


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Of the candidates (last axis), from their log-probabilities: they share all of it."""
    return np.exp(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))


def rule(lists: Mapping[str, Sequence[List]]) -> Rule:
    """The likeliest of `lists` and -Oz, whatever it may be worth."""
    whole = {p: (OZ, *(names for names in some if names != OZ)) for p, some in lists.items()}
    return Rule(whole, {p: np.eye(len(own)) for p, own in whole.items()})


def load(folder: Path) -> Rule:
    """The rule beside a model. Raises `InputError` that names the file if there is none."""
    path = Path(folder) / "rule.json"
    try:
        value = json.loads(path.read_text())
        lists = {p: tuple(map(passes.parse, value[p]["lists"])) for p in PROTOCOLS}
        worth = {p: np.array(value[p]["worth"], dtype=float) for p in PROTOCOLS}
        for protocol, own in lists.items():
            if not own or own[0] != OZ:
                raise ValueError("-Oz is not the first list")
            if worth[protocol].shape != (len(own), len(own)):
                raise ValueError("what the lists are worth is no square table of them")
        return Rule(lists, worth)
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(
            f"{path}: no usable rule beside the model ({error}); name a folder that "
            "`llmopt train` made"
        ) from None


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
    """The rule that saves most instructions on the examples by their `gains`. Those that the model
    was trained on will do as long as it does not know them by heart. `lists` are the candidates of
    each protocol. Examples of one function should stand together (`score`)."""
    candidates = rule(lists).lists
    scores = score(llama, tok, [(e.ir, e.protocol) for e in examples], candidates)
    known = list(zip(examples, scores, strict=True))
    worth = {
        protocol: fit_worth([pair for pair in known if pair[0].protocol == protocol], own)
        for protocol, own in candidates.items()
    }
    return Rule(candidates, worth)


def fit_worth(
    known: Sequence[tuple[Example, np.ndarray | None]], lists: tuple[List, ...]
) -> np.ndarray:
    """What each of `lists` is worth where the model says this or that (`Rule.worth`), from examples
    with their scores of `lists`; by the likeliest list alone where they are too few.

    Ridge regression of the gains on the probabilities, shrunk by as much as there are examples, as
    much for a list that the model names rarely as for another. The promise on which -Oz is left is
    the one that saves most, by predictions for examples that were not learned from.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = [(e, values) for e, values in known if values is not None and e.gains]
    if len(known) < FOLDS or len(lists) < 2:
        return np.eye(len(lists))
    x = probabilities(np.array([values for _, values in known]))
    gains = np.array([[dict(e.gains).get(names, 0) for names in lists[1:]] for e, _ in known])
    learner = make_pipeline(StandardScaler(), Ridge(alpha=len(known)))
    y = gains.clip(-MOST, MOST)
    promised = cross_val_predict(learner, x, y, cv=KFold(FOLDS)).reshape(y.shape)
    best = promised.argmax(axis=1)
    each = np.arange(len(known))
    threshold = _threshold(promised[each, best], gains[each, best])
    # Probabilities sum to one: what does not hang on them goes into every row alike.
    sure = learner.fit(x, y).predict(np.eye(len(lists))).reshape(len(lists), -1)
    return np.hstack([np.full((len(lists), 1), threshold), sure])


def _threshold(promised: np.ndarray, gains: np.ndarray) -> float:
    """The promise from which on taking the list saves most; halfway to the next lower one."""
    order = np.argsort(-promised, kind="stable")
    promised, saved = promised[order], np.cumsum(gains[order])
    if saved.max() <= 0:
        return float(promised[0] + 1.0)
    last = int(saved.argmax())
    below = promised[last + 1] if last + 1 < len(promised) else promised[last] - 1.0
    return float((promised[last] + below) / 2)
