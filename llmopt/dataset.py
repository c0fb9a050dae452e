"""Token files and batches: what `train` feeds on, made once and memory-mapped.

A function is read once and answered several times: after its prompt come *branches*, each of which
sees the prompt and itself, and none of the others. There is one whole answer under each protocol,
and short branches for the lists that are nearly as good. Batches hold functions of like lengths, so
that little is spent on padding, in an order that only the seed decides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch

from llmopt import prompt
from llmopt.config import InputError
from llmopt.prompt import TASKS, Example
from llmopt.tokenizer import BEFORE, CODE, Tokenizer, mark

KINDS = ("prompt", "list", "counts", "code")  # what a token is part of, by its number
GIVEN = -1  # the kind of what is no target: padding, and the marks that open a branch
_LIKE = 1.04  # prompts that differ by less than this factor count as equally long


@dataclass(frozen=True)
class Stakes:
    """How a choice of lists is taught, where `Example.gains` tells what each would be worth.

    Lists share the loss by `exp(gain / temperature)` (in instructions), so that a list which is
    nearly as good is nearly as right. A function counts by its stake: how much better its best list
    is than the mean one, up to `most` instructions, over the mean stake of all; and at least by
    `least`, since that a choice does not matter is worth knowing, too.
    """

    temperature: float = 1.0
    most: float = 30.0
    least: float = 0.2


def soft_labels(example: Example, stakes: Stakes) -> tuple[dict[tuple[str, ...], float], float]:
    """The lists to teach with their shares of the loss (they sum to 1), and the function's stake.

    Of lists with equal gains the first stands for all, the label before any: one right answer is
    easier to learn than several. A label that is not among `example.gains` gets no share.
    """
    if not example.gains or not stakes.temperature:
        return {example.passes: 1.0}, 1.0
    gains = dict(example.gains)
    best = max(gains.values())
    first: dict[int, tuple[str, ...]] = {}
    for names in sorted(gains, key=lambda names: names != example.passes):
        first.setdefault(gains[names], names)
    shares = {names: math.exp((gain - best) / stakes.temperature) for gain, names in first.items()}
    shares = {names: share for names, share in shares.items() if share > 0.05}
    total = sum(shares.values())
    mean = sum(max(gain, best - stakes.most) for gain in gains.values()) / len(gains)
    return {names: share / total for names, share in shares.items()}, best - mean


@dataclass(frozen=True)
class Tokens:
    """Encoded functions on disk. `ids` is flat. Row i of `functions` says where the prompt of
    function i begins, its length, its first branch, the number of its branches and their tokens.
    A row of `branches` says where a branch begins, its length, and where (from its beginning) list,
    counts and code begin; `weights` is what its list counts in the loss. `left_out` counts the
    functions that were too long, `cut` the answers that are taught without their code for that
    reason; `digest` is of what went in."""

    ids: np.ndarray
    functions: np.ndarray
    branches: np.ndarray
    weights: np.ndarray
    left_out: int
    cut: int
    digest: str

    def count(self) -> np.ndarray:
        """Tokens of each of `KINDS`, and last those that are given."""
        size, listed, counts, code = self.branches[:, 1:].T
        parts = self.functions[:, 1], counts - listed, code - counts, size - code, listed
        return np.array([int(part.sum()) for part in parts])

    def with_code(self) -> np.ndarray:
        """Of each function, whether some answer is taught with its code."""
        owner = np.repeat(np.arange(len(self.functions)), self.functions[:, 3])
        code = self.branches[:, 1] > self.branches[:, 4]
        return np.bincount(owner, code, minlength=len(self.functions)) > 0

    def prompt(self, i: int) -> np.ndarray:
        start, size = self.functions[i, :2]
        return self.ids[start : start + size]

    def answers(self, i: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """Each branch of function i: its ids, the kind of each, and what its list counts."""
        first, number = self.functions[i, 2:4]
        for branch in range(first, first + number):
            start, size, *cuts = self.branches[branch]
            kinds = np.searchsorted(cuts, np.arange(size), side="right")
            kinds[kinds == 0] = GIVEN
            yield self.ids[start : start + size], kinds, float(self.weights[branch])


def prepare(
    examples: Sequence[Example],
    tok: Tokenizer,
    max_tokens: int,
    path: Path,
    tasks: Sequence[str] = TASKS,
    stakes: Stakes = Stakes(),
    code_tokens: int | None = None,
) -> Tokens:
    """Encode once into `path` (.bin, memory-mapped, and .npz); a later call finds it made.

    Examples of one function stand together, as `pipeline.examples` gives them. Functions whose
    prompt and lists exceed `max_tokens` are left out; an answer that, with its prompt and its code,
    exceeds `code_tokens` (or `max_tokens`, which is the most) is taught without the code. Raises
    `InputError` where nothing is left, and on an unknown task.
    """
    code_tokens = min(code_tokens or max_tokens, max_tokens)
    if odd := sorted(set(tasks) - set(TASKS)):
        raise InputError(f"unknown task {odd[0]!r}: use some of {', '.join(TASKS)}")
    key = hashlib.sha256(f"{tok.core.to_str()}{max_tokens}{sorted(tasks)}{stakes}".encode())
    key.update(f"{code_tokens}".encode())
    for e in examples:
        key.update(f"{e.id}{e.protocol}{e.passes}{e.before}{e.after}{e.gains}".encode())
        key.update(e.optimised.encode())
    digest = key.hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    flat, index = path.with_suffix(".bin"), path.with_suffix(".npz")
    dtype = np.uint16 if len(tok) <= 2**16 else np.uint32
    if not index.exists() or str(np.load(index)["digest"]) != digest:
        index.unlink(missing_ok=True)
        with flat.open("wb") as out:
            limits = max_tokens, code_tokens
            arrays = _encode(examples, tok, limits, tasks, stakes, out, dtype)
        if not len(arrays["functions"]):
            raise InputError(f"no function of {len(examples)} examples fits {max_tokens} tokens")
        temporary = index.with_suffix(".partial.npz")
        np.savez(temporary, digest=digest, dtype=np.dtype(dtype).name, **arrays)
        temporary.replace(index)  # the index comes last: with it, both files are whole
    return load(path)


def load(path: Path) -> Tokens:
    """What `prepare` made at `path`. Raises `InputError` where it is missing or damaged."""
    flat, index = path.with_suffix(".bin"), path.with_suffix(".npz")
    try:
        with np.load(index) as made:
            found = {name: made[name] for name in made.files}
        ids = np.memmap(flat, str(found.pop("dtype")), "r")
        counts = {name: int(found.pop(name)) for name in ("left_out", "cut")}
        data = Tokens(ids, **found | counts | {"digest": str(found["digest"])})
        if data.functions[:, 1].sum() + data.branches[:, 1].sum() != len(ids):
            raise ValueError("its two files do not belong together")
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise InputError(f"{index}: no usable tokens ({error}); prepare them again") from None
    return data


def _encode(examples, tok, limits, tasks, stakes, out, dtype) -> dict[str, object]:
    max_tokens, code_tokens = limits
    functions, branches, weights, cut, left_out, at = [], [], [], 0, 0, 0
    teaches_list = float("list" in tasks)
    soft = [soft_labels(example, stakes) for example in examples]
    mean = np.mean([min(stake, stakes.most) for _, stake in soft]) if soft else 1.0

    def put(ids: list[int]) -> int:
        nonlocal at
        out.write(np.asarray(ids, dtype).tobytes())
        at += len(ids)
        return at - len(ids)

    for _, group in groupby(zip(examples, soft, strict=True), key=lambda pair: pair[0].id):
        group = list(group)
        question, names = prompt.encode_prompt(group[0][0].ir, group[0][0].protocol, tok)
        question = question[:-1]  # the protocol opens a branch
        made, lost = [], 0
        for example, (shares, stake) in group:
            opening = [tok.ids[mark(example.protocol)]]
            worth = teaches_list * max(stakes.least, min(stake, stakes.most) / (mean or 1.0))
            ids = opening + prompt.encode_answer(example, names, tok, tasks)
            code = ids.index(tok.ids[CODE]) + 1
            if len(question) + len(ids) > code_tokens:
                ids, lost = ids[:code], lost + ("code" in tasks)
            listed = ids.index(tok.ids[BEFORE]) + 1
            # That a list follows is given with the protocol, so its mark is no target either.
            cuts = (2, listed, code)
            made.append((ids, cuts, worth * shares.pop(example.passes, 0.0)))
            for names_, share in shares.items() if teaches_list else ():
                ids = opening + prompt.encode_list(names_, tok)
                made.append((ids, (2, len(ids), len(ids)), worth * share))
        if len(question) + max(len(ids) for ids, *_ in made) > max_tokens:
            left_out += 1
            continue
        cut += lost
        size = sum(len(ids) for ids, *_ in made)
        functions.append((put(question), len(question), len(branches), len(made), size))
        for ids, cuts, weight in made:
            branches.append((put(ids), len(ids), *cuts))
            weights.append(weight)
    return {
        "functions": np.array(functions, dtype=np.int64),
        "branches": np.array(branches, dtype=np.int64),
        "weights": np.array(weights, dtype=np.float32),
        "left_out": left_out,
        "cut": cut,
    }


def batches(
    data: Tokens,
    tokens_per_batch: int,
    seed: int = 0,
    curriculum: float = 0.0,
    code_repeats: int = 1,
) -> Iterator[np.ndarray]:
    """Endless batches of function numbers, of like lengths, in an order that only the seed decides.

    A batch holds at most `tokens_per_batch` tokens with its padding, but always one function. The
    larger the `curriculum`, the more the short ones come first in the first epoch. A function that
    is taught with its code comes `code_repeats` times an epoch.
    """
    rounds = [np.arange(len(data.functions))] + [np.flatnonzero(data.with_code())] * (
        code_repeats - 1
    )
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        groups = [
            group
            for rows in rounds
            for group in _groups(data, rng.permutation(rows), tokens_per_batch)
        ]
        groups.sort(key=lambda rows: data.functions[rows, 1].max())
        rank = np.arange(len(groups)) / len(groups)
        early = curriculum * rank if epoch == 0 else 0
        yield from (groups[i] for i in np.argsort(rng.random(len(groups)) + early, kind="stable"))
        epoch += 1


def _groups(data: Tokens, order: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Functions of like lengths in groups of at most `most` tokens with their padding; those of
    equal lengths in the given order."""
    sizes, answers = data.functions[:, 1], data.functions[:, 4]
    like = np.floor(np.log(sizes[order]) / np.log(_LIKE))
    order = order[np.lexsort((answers[order], like))]
    start, longest = 0, np.zeros(2, dtype=np.int64)
    for end, i in enumerate(order):
        longer = np.maximum(longest, (sizes[i], answers[i]))
        if end > start and longer.sum() * (end + 1 - start) > most:
            yield order[start:end]
            start, longer = end, np.array((sizes[i], answers[i]))
        longest = longer
    if len(order):
        yield order[start:]


class Batch(NamedTuple):
    """A batch as tensors, for B functions with prompts of up to P tokens and answers of up to Q.

    `prompts` (B, P) and `answers` (B, Q) are ids, padded on the right; `kinds` and `weights`
    (B, P + Q) are of both side by side. `mask` (B, 1, Q, P + Q) is what an answer's token sees: the
    prompt and what comes before it in its own branch. `positions` (B, Q) go on from the prompt's.
    """

    prompts: torch.Tensor
    answers: torch.Tensor
    kinds: torch.Tensor
    weights: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(
            (self.positions >= 0).sum() + (self.kinds[:, : self.prompts.shape[1]] >= 0).sum()
        )


Answers = Sequence[tuple[Sequence[int], Sequence[int], float]]


def assemble(rows: Sequence[tuple[Sequence[int], Answers]], pad: int) -> Batch:
    """A batch of prompts, each with its branches: (ids, kinds, what the list counts)."""
    size = len(rows), max(len(ids) for ids, _ in rows)
    most = max(sum(len(ids) for ids, *_ in answers) for _, answers in rows)
    prompts, answers = np.full(size, pad), np.full((size[0], most), pad)
    kinds = np.full((size[0], size[1] + most), GIVEN)
    weights = np.ones(kinds.shape, dtype=np.float32)
    branch = np.full(answers.shape, -1)
    positions = np.full(answers.shape, -1)
    for i, (ids, branches) in enumerate(rows):
        prompts[i, : len(ids)] = ids
        kinds[i, : len(ids)] = 0
        at = 0
        for number, (own, own_kinds, weight) in enumerate(branches):
            here = slice(at, at + len(own))
            answers[i, here], branch[i, here] = own, number
            positions[i, here] = len(ids) + np.arange(len(own))
            there = slice(size[1] + at, size[1] + at + len(own))
            kinds[i, there] = own_kinds
            weights[i, there] = np.where(np.equal(own_kinds, 1), weight, 1.0)
            at += len(own)
    known = np.repeat((kinds[:, None, : size[1]] >= 0), most, axis=1)
    own = (branch[:, :, None] == branch[:, None, :]) & np.tri(most, dtype=bool)
    mask = np.concatenate([known, own], axis=2)[:, None]
    return Batch(*map(torch.from_numpy, (prompts, answers, kinds, weights, mask, positions)))


def collate(data: Tokens, rows: Sequence[int], pad: int) -> Batch:
    """The batch of some functions of `data`."""
    return assemble([(data.prompt(i), list(data.answers(i))) for i in rows], pad)
