"""Token files and batches: what `train` feeds on, made once and memory-mapped.

Examples become ids on disk; batches hold examples of like lengths, so that little is spent on
padding, in an order that only the seed decides. Nothing here knows about models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmopt import prompt
from llmopt.config import InputError
from llmopt.passes import OZ
from llmopt.prompt import Example
from llmopt.tokenizer import BEFORE, CODE, Tokenizer

KINDS = ("prompt", "list", "counts", "code")  # what a token is part of, by its number


@dataclass(frozen=True)
class Tokens:
    """Encoded examples on disk. `ids` is flat; row i of `spans` says where example i begins, its
    length, and where (from its beginning) list, counts and code begin; `improved` is whether its
    list beats -Oz; `left_out` counts those that were too long; `digest` is of what went in."""

    ids: np.ndarray
    spans: np.ndarray
    improved: np.ndarray
    left_out: int
    digest: str

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of example i and the kind of each."""
        start, size, *cuts = self.spans[i]
        kinds = np.searchsorted(cuts, np.arange(size), side="right")
        return self.ids[start : start + size], kinds


def prepare(examples: Sequence[Example], tok: Tokenizer, max_tokens: int, path: Path) -> Tokens:
    """Encode once into `path` (.bin, memory-mapped, and .npz); a later call finds it made.

    Examples longer than `max_tokens` are left out. Raises `InputError` where none is left.
    """
    key = hashlib.sha256(f"{tok.core.to_str()}{max_tokens}".encode())
    for e in examples:
        key.update(f"{e.id}{e.protocol}{e.passes}{e.before}{e.after}{e.optimised}".encode())
    digest = key.hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    flat, index = path.with_suffix(".bin"), path.with_suffix(".npz")
    dtype = np.uint16 if len(tok) <= 2**16 else np.uint32
    if not index.exists() or str(np.load(index)["digest"]) != digest:
        index.unlink(missing_ok=True)
        rows, improved, at = [], [], 0
        with flat.open("wb") as out:
            for example in examples:
                ids, asked = prompt.encode(example, tok)
                if len(ids) <= max_tokens:
                    # The list's own mark is given, so it is no target worth a weight.
                    listed = ids.index(tok.ids[BEFORE], asked) + 1
                    rows.append((at, len(ids), asked + 1, listed, ids.index(tok.ids[CODE], asked)))
                    improved.append(example.passes != OZ)
                    out.write(np.asarray(ids, dtype).tobytes())
                    at += len(ids)
        if not rows:
            raise InputError(f"no example of {len(examples)} has at most {max_tokens} tokens")
        temporary = index.with_suffix(".partial.npz")
        np.savez(
            temporary,
            digest=digest,
            spans=np.array(rows),
            improved=np.array(improved),
            left_out=len(examples) - len(rows),
        )
        temporary.replace(index)  # the index comes last: with it, both files are whole
    with np.load(index) as made:
        spans, improved, left_out = made["spans"], made["improved"], int(made["left_out"])
    return Tokens(np.memmap(flat, dtype, "r"), spans, improved, left_out, digest)


def batches(
    data: Tokens,
    tokens_per_batch: int,
    seed: int = 0,
    repeat_improved: int = 1,
    curriculum: float = 0.0,
) -> Iterator[np.ndarray]:
    """Endless batches of example numbers, of like lengths, in an order that only the seed decides.

    A batch holds at most `tokens_per_batch` tokens with its padding, but always one example.
    Functions that a list improves are shown `repeat_improved` times an epoch. The larger the
    `curriculum`, the more the short ones come first in the first epoch.
    """
    shown = np.repeat(np.arange(len(data.spans)), np.where(data.improved, repeat_improved, 1))
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(shown)
        order = order[np.argsort(data.spans[order, 1], kind="stable")]
        cut, groups = 0, []
        for end in range(1, len(order) + 1):
            longest = data.spans[order[min(end, len(order) - 1)], 1]
            if end == len(order) or longest * (end + 1 - cut) > tokens_per_batch:
                groups.append(order[cut:end])
                cut = end
        rank = np.arange(len(groups)) / len(groups)
        early = curriculum * rank if epoch == 0 else 0
        yield from (groups[i] for i in np.argsort(rng.random(len(groups)) + early, kind="stable"))
        epoch += 1


def collate(data: Tokens, rows: Sequence[int], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and kinds, both (examples, longest), padded on the right; a pad's kind is -1.

    Attention is causal, so what stands to the right of an example needs no mask.
    """
    items = [data[i] for i in rows]
    ids = torch.full((len(items), max(len(x) for x, _ in items)), pad)
    kinds = torch.full_like(ids, -1)
    for i, (x, kind) in enumerate(items):
        ids[i, : len(x)] = torch.from_numpy(x.astype(np.int64))
        kinds[i, : len(x)] = torch.from_numpy(kind)
    return ids, kinds
