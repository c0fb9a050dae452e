"""Greedy generation under a grammar: every answer's pass list is a valid one, by construction.

The paper decodes greedily (Section III-C). Here the pass list is held to the search space
(`grammar`), and for deployment generation stops after it. Prompts are read once for all questions
about a function, keys and values stay where they are while an answer grows, and rows whose answer
has ended are dropped: the tokens are those of `transformers`' own `generate`, several times as fast
(`benchmarks/generate.py`). Nothing here runs LLVM on what was generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from transformers import Cache, DynamicLayer, PreTrainedModel

from llmopt import model, prompt
from llmopt.config import InputError
from llmopt.grammar import MAX_PASSES, Grammar, State
from llmopt.prompt import Answer
from llmopt.tokenizer import BEFORE, END, PAD, PASSES, Tokenizer

# A list is a few tokens: nearly all of its time goes into reading, where padding costs as much as
# text. By how much prompts that are read together may differ in length, then.
SPREAD = 1.2


@dataclass(frozen=True)
class Generated:
    """One answer: as read, as text, in `tokens` tokens, and how likely its pass list was.

    `log_probability` is of the list under the grammar (natural logarithm, its end included).
    """

    answer: Answer
    text: str
    tokens: int
    log_probability: float


@dataclass
class Row:
    """One question while it is answered: the ids of its prompt, those that its answer begins with,
    and those that were written, up to `room` in all."""

    asked: list[int]
    given: list[int]
    room: int
    state: State
    written: list[int] = field(default_factory=list)
    log_probability: float = 0.0


@torch.inference_mode()
def greedy(
    llama: PreTrainedModel,
    tok: Tokenizer,
    functions: Sequence[tuple[str, str]],
    max_new_tokens: int = 1024,
    passes_only: bool = False,
    batch_size: int = 32,
    max_passes: int = MAX_PASSES,
    on_done: Callable[[int], None] | None = None,
    lists: Sequence[tuple[str, ...]] | None = None,
) -> list[Generated]:
    """One answer for each (normalised IR, protocol), in order; no randomness. Questions about one
    function that stand together share its reading.

    Where `lists` are given, one a function, the answers go on from them: counts and code.

    A prompt that leaves no room in the model's context gets an `Answer` with an error. `on_done` is
    told after each batch how many functions are done. With `passes_only` generation ends with the
    list. `max_new_tokens` bounds the answer after the list's mark.
    """
    if batch_size < 1 or max_new_tokens < 2 or max_passes < 1:
        raise InputError("generation: batch_size and max_passes start at 1, max_new_tokens at 2")
    llama.eval()
    grammar = Grammar(tok, max_passes)
    context = llama.config.max_position_embeddings
    results: list[Generated | None] = [None] * len(functions)
    names, rows = [], {}
    for i, (text, protocol) in enumerate(functions):
        asked, own = prompt.encode_prompt(text, protocol, tok)
        begun = [tok.ids[PASSES]] if lists is None else prompt.encode_list(lists[i], tok)
        names.append(own)
        free = context - len(asked) - len(begun)
        if free < max_passes + 1:
            error = f"a prompt of {len(asked)} tokens {prompt.NO_ROOM} of {context}"
            results[i] = Generated(Answer(error=error), "", 0, float("-inf"))
            continue
        room = min(free, max_passes + 1 if passes_only else max_new_tokens)
        rows[i] = Row(asked[:-1], [asked[-1], *begun], room, grammar.walk(begun[1:]))
    last = tok.ids[BEFORE] if passes_only else tok.ids[END]
    for batch in _batches(rows, batch_size, SPREAD if passes_only else float("inf")):
        _write(llama, grammar, [rows[i] for i in batch], last, tok.ids[PAD])
        for i in batch:
            ids = rows[i].given[2:] + rows[i].written
            text = PASSES + tok.decode(ids)
            answer = prompt.parse_answer(text, names[i])
            results[i] = Generated(answer, text, len(ids), rows[i].log_probability)
        if on_done:
            on_done(sum(result is not None for result in results))
    return results


def _batches(rows: dict[int, Row], most: int, spread: float) -> Iterator[list[int]]:
    """The numbers of the rows, shorter prompts first, at most `most` together and none more than
    `spread` times as long as the first of its batch."""
    batch: list[int] = []
    for i in sorted(rows, key=lambda i: (len(rows[i].asked), i)):
        limit = spread * len(rows[batch[0]].asked) if batch else 0
        if batch and (len(batch) == most or len(rows[i].asked) > limit):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _write(
    llama: PreTrainedModel, grammar: Grammar, rows: Sequence[Row], last: int, pad: int
) -> None:
    """Write each row's answer, to the token `last` or as far as there is room."""
    cache, seen = read_prompts(llama, rows, pad)
    # What answers begin with ends together: padding is on the left.
    width = max(len(row.given) for row in rows)
    ids = torch.full((len(rows), width), pad)
    for i, row in enumerate(rows):
        ids[i, width - len(row.given) :] = torch.tensor(row.given)
    sizes = torch.tensor([len(row.given) for row in rows])[:, None]
    shown = torch.arange(width) >= width - sizes
    mask = shown[:, None, :] & torch.ones(width, width, dtype=torch.bool).tril()
    mask |= torch.eye(width, dtype=torch.bool)  # padding sees itself, for lack of anything else
    mask = torch.cat([seen[:, None, :].expand(-1, width, -1), mask], dim=2)
    starts = torch.tensor([len(row.asked) for row in rows])[:, None]
    positions = (starts + torch.arange(width) - (width - sizes)).clamp(min=0)
    seen = torch.cat([seen, shown], dim=1)
    active = list(rows)
    while True:
        hidden = model.read(
            llama,
            ids.to(llama.device),
            cache,
            mask[:, None].to(llama.device),
            positions.to(llama.device),
        )
        logits = llama.lm_head(hidden[:, -1]).float().cpu()
        logits.masked_fill_(~grammar.mask([row.state for row in active]), -torch.inf)
        chosen = logits.argmax(dim=-1)
        for row, values, token in zip(active, logits, chosen.tolist(), strict=True):
            if len(row.written) >= row.room or row.written[-1:] == [last]:
                continue  # it has ended, and is still among those that have not
            if row.state.part is None:
                row.log_probability += values.double().log_softmax(-1)[token].item()
            row.written.append(token)
            row.state = grammar.step(row.state, token)
        alive = [
            i
            for i, row in enumerate(active)
            if len(row.written) < row.room and row.written[-1:] != [last]
        ]
        if not alive:
            return
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        if len(alive) <= 0.75 * len(active):  # copying what stays costs as much as some steps
            active, kept = [active[i] for i in alive], torch.tensor(alive)
            ids, positions, seen = ids[kept], positions[kept], seen[kept]
            cache.batch_select_indices(kept.to(llama.device))
        seen = torch.cat([seen, torch.ones(len(seen), 1, dtype=torch.bool)], dim=1)
        mask = seen[:, None, :]


def read_prompts(
    llama: PreTrainedModel, rows: Sequence[Row], pad: int
) -> tuple[Cache, torch.Tensor]:
    """Keys and values of the rows' prompts, and where they are no padding (rows, longest prompt).
    A prompt that several rows in turn have is read once."""
    owners = [list(group) for _, group in groupby(range(len(rows)), lambda i: rows[i].asked)]
    prompts = [rows[group[0]].asked for group in owners]
    longest = max(map(len, prompts))
    ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in prompts])
    cache = Cache(layers=[Room() for _ in range(llama.config.num_hidden_layers)])
    model.read(llama, ids.to(llama.device), cache)  # padding is on the right: nothing sees it
    seen = torch.arange(longest) < torch.tensor([len(ids) for ids in prompts])[:, None]
    if len(prompts) < len(rows):
        owner = torch.tensor([number for number, group in enumerate(owners) for _ in group])
        cache.batch_select_indices(owner.to(llama.device))
        seen = seen[owner]
    return cache, seen


class Room(DynamicLayer):
    """A layer's keys and values with room for more: `DynamicLayer` copies them all at each token.

    `keys` and `values` are views of the beginning of larger tensors.
    """

    step = 128
    room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        known = self.get_seq_length()
        size = known + key_states.shape[2]
        if self.room is None or self.room[0].shape[2] < size:
            shape = (*key_states.shape[:2], size + self.step, key_states.shape[3])
            larger = tuple(key_states.new_empty(shape) for _ in range(2))
            if known:
                larger[0][:, :, :known] = self.keys
                larger[1][:, :, :known] = self.values
            self.room = larger
        self.room[0][:, :, known:size] = key_states
        self.room[1][:, :, known:size] = value_states
        self.keys, self.values = (part[:, :, :size] for part in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self.room = None
