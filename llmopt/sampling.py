"""Several pass lists a function, where greedy decoding gives one.

*Priority sampling* (Grubisic et al., arXiv 2402.18734) walks the tree of all lists that the grammar
allows, without any chance: the first sample is the greedy list; each further one begins with the
likeliest beginning that no sample has yet, and goes on greedily. All differ, all are valid, and the
first k of many are the same as k alone. *Nucleus sampling* draws each list by itself, and often the
same ones again. Both work on one tree (`Tree`): a token is read once, however many lists go through
it. Nothing here compiles anything.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from llmopt import generate, model, prompt
from llmopt.config import InputError
from llmopt.generate import Row
from llmopt.grammar import MAX_PASSES, Grammar, State
from llmopt.tokenizer import PAD, PASSES, Tokenizer

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """A list and its log-probability under the grammar (natural, the list's end included)."""

    passes: tuple[str, ...]
    log_probability: float


@dataclass
class Tree:
    """What is known of the lists that may answer one question.

    `likely` holds the continuations of a beginning, likeliest first, as log-probability and id;
    `slots` where keys and values of the beginning's tokens are.
    """

    grammar: Grammar
    likely: dict[Prefix, list[tuple[float, int]]] = field(default_factory=dict)
    slots: dict[Prefix, list[int]] = field(default_factory=dict)
    found: list[tuple[Prefix, float]] = field(default_factory=list)

    def ended(self, prefix: Prefix) -> bool:
        return prefix[-1:] == (self.grammar.before,)

    def learn(self, prefix: Prefix, logits: torch.Tensor) -> None:
        """Keep what the model says of what may follow `prefix`: `logits` (vocabulary)."""
        allowed = self.grammar.allowed(self.grammar.walk(prefix))
        values = logits[allowed].double().log_softmax(-1)
        order = values.argsort(descending=True, stable=True).tolist()
        self.likely[prefix] = [(float(values[i]), allowed[i]) for i in order]


# What says which beginnings it has to know next, and puts lists into `tree.found`.
Walk = Iterator[list[Prefix]]


def _by_priority(tree: Tree, samples: int, width: int) -> Walk:
    # A beginning, as (what it costs in nats, its parent's cost, its parent, its rank there).
    queue: list[tuple[float, float, Prefix, int]] = []
    cost, prefix = 0.0, ()
    while True:
        while not tree.ended(prefix):
            if prefix not in tree.likely:
                soon = heapq.nsmallest(width - 1, queue)
                begun = [(*parent, tree.likely[parent][rank][1]) for _, _, parent, rank in soon]
                yield [prefix, *(one for one in begun if not tree.ended(one))]
            _push(queue, tree, cost, prefix, 1)
            value, token = tree.likely[prefix][0]
            cost, prefix = cost - value, (*prefix, token)
        tree.found.append((prefix, -cost))
        if len(tree.found) == samples or not queue:
            return
        cost, before, parent, rank = heapq.heappop(queue)
        _push(queue, tree, before, parent, rank + 1)
        prefix = (*parent, tree.likely[parent][rank][1])


def _push(queue: list, tree: Tree, cost: float, parent: Prefix, rank: int) -> None:
    """Queue the continuation of `parent` that is `rank` places behind its likeliest."""
    options = tree.likely[parent]
    if rank < len(options):
        heapq.heappush(queue, (cost - options[rank][0], cost, parent, rank))


def _by_chance(
    tree: Tree, samples: int, share: float, temperature: float, rng: np.random.Generator
) -> Walk:
    open_: list[tuple[Prefix, float]] = [((), 0.0)] * samples
    while open_:
        if unknown := sorted({prefix for prefix, _ in open_} - tree.likely.keys()):
            yield unknown
            continue
        going = []
        for prefix, value in open_:
            options = tree.likely[prefix]
            likely = np.array([one for one, _ in options])
            weight = np.exp((likely - likely[0]) / temperature)
            weight /= weight.sum()
            most = 1 + int(np.searchsorted(weight.cumsum(), share))
            i = int(rng.choice(len(weight[:most]), p=weight[:most] / weight[:most].sum()))
            longer = (*prefix, options[i][1]), value + options[i][0]
            (tree.found if tree.ended(longer[0]) else going).append(longer)
        open_ = going


def priority(
    llama: PreTrainedModel,
    tok: Tokenizer,
    functions: Sequence[tuple[str, str]],
    samples: int,
    **how: object,
) -> list[list[Sample]]:
    """The first `samples` lists by priority for each (normalised IR, protocol), best first; fewer
    where the grammar has no more, none where the prompt does not fit. `how` as in `_sample`."""
    if samples < 1:
        raise InputError("sampling: at least one sample")

    def walk(tree: Tree, number: int, width: int) -> Walk:
        return _by_priority(tree, samples, width)

    return _sample(llama, tok, functions, walk, **how)


def nucleus(
    llama: PreTrainedModel,
    tok: Tokenizer,
    functions: Sequence[tuple[str, str]],
    samples: int,
    share: float = 0.95,
    temperature: float = 1.0,
    seed: int = 0,
    **how: object,
) -> list[list[Sample]]:
    """`samples` lists drawn for each function, token by token, among the likeliest tokens that
    together have `share` of the probability; in the order in which they ended, repeats included."""
    if samples < 1 or not 0 < share <= 1 or temperature <= 0:
        raise InputError("sampling: at least one sample, 0 < share <= 1, temperature above 0")

    def walk(tree: Tree, number: int, width: int) -> Walk:
        rng = np.random.default_rng([seed, number])
        return _by_chance(tree, samples, share, temperature, rng)

    return _sample(llama, tok, functions, walk, **how)


@torch.inference_mode()
def _sample(
    llama: PreTrainedModel,
    tok: Tokenizer,
    functions: Sequence[tuple[str, str]],
    walk: Callable[[Tree, int, int], Walk],
    batch_size: int = 32,
    width: int = 8,
    max_passes: int = MAX_PASSES,
    on_done: Callable[[int], None] | None = None,
) -> list[list[Sample]]:
    """Let `walk` grow a tree for each function, `batch_size` at once; up to `width` beginnings of
    each are read in a step. `on_done` is told how many functions are done."""
    llama.eval()
    grammar = Grammar(tok, max_passes)
    context = llama.config.max_position_embeddings
    results: list[list[Sample]] = [[] for _ in functions]
    rows = {}
    for i, (text, protocol) in enumerate(functions):
        *asked, mark = prompt.encode_prompt(text, protocol, tok)[0]
        if len(asked) + 2 + max_passes < context:
            rows[i] = Row(asked, [mark, tok.ids[PASSES]], 0, State())
    order = sorted(rows, key=lambda i: (len(rows[i].asked), i))
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        trees = {i: Tree(grammar) for i in batch}
        walks = [walk(trees[i], i, width) for i in batch]
        _grow(llama, [rows[i] for i in batch], list(trees.values()), walks, width, tok.ids[PAD])
        for i, tree in trees.items():
            results[i] = [
                Sample(tuple(tok.pass_ids[n] for n in prefix[:-1]), value)
                for prefix, value in tree.found
            ]
        if on_done:
            on_done(len(functions) - len(order) + at + len(batch))
    return results


def _grow(
    llama: PreTrainedModel,
    rows: Sequence[Row],
    trees: Sequence[Tree],
    walks: Sequence[Walk],
    width: int,
    pad: int,
) -> None:
    """Read what the walks want to know until they have ended. Keys and values of each beginning's
    last token stay in the cache, in a slot that only what begins alike is shown."""
    cache, seen = generate.read_prompts(llama, rows, pad)
    known = seen.shape[1]
    begun = torch.tensor([row.given for row in rows])
    for tree in trees:
        tree.slots[()] = [known, known + 1]
    starts = [len(row.asked) for row in rows]
    positions = torch.tensor(starts)[:, None] + torch.arange(2)
    mask = torch.ones(2, 2, dtype=torch.bool).tril().expand(len(rows), 2, 2)
    mask = torch.cat([seen[:, None, :].expand(-1, 2, -1), mask], dim=2)

    def read(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden = model.read(
            llama,
            ids.to(llama.device),
            cache,
            mask[:, None].to(llama.device),
            positions.to(llama.device),
        )
        return llama.lm_head(hidden).float().cpu()

    for tree, logits in zip(trees, read(begun, mask, positions)[:, -1], strict=True):
        tree.learn((), logits)
    wanted = [next(walk, None) for walk in walks]
    while any(wanted):
        asked = [[p for p in (own or []) if p not in tree.likely][:width]
                 for own, tree in zip(wanted, trees, strict=True)]  # fmt: skip
        size, end = max(map(len, asked)), cache.get_seq_length()
        ids = torch.full((len(rows), size), pad)
        mask = torch.zeros(len(rows), size, end + size, dtype=torch.bool)
        mask[:, :, :known] = seen[:, None]
        positions = torch.zeros(len(rows), size, dtype=torch.long)
        for i, (tree, own) in enumerate(zip(trees, asked, strict=True)):
            for j, prefix in enumerate(own):
                ids[i, j] = prefix[-1]
                tree.slots[prefix] = [*tree.slots[prefix[:-1]], end + j]
                mask[i, j, tree.slots[prefix]] = True
                positions[i, j] = starts[i] + 1 + len(prefix)
        logits = read(ids, mask, positions)
        for i, (tree, own) in enumerate(zip(trees, asked, strict=True)):
            for j, prefix in enumerate(own):
                tree.learn(prefix, logits[i, j])
        wanted = [
            next(walk, None) if own else None for walk, own in zip(walks, wanted, strict=True)
        ]
