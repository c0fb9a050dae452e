"""Greedy generation under a grammar: every answer's pass list is a valid one, by construction.

The paper decodes greedily (Section III-C). Here the pass list is held to the search space: one or
more passes, a meta flag at most once, then the counts in digits. Code is free text. For deployment
generation stops after the list. Nothing here runs LLVM on what was generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from llmopt import passes, prompt
from llmopt.config import InputError
from llmopt.prompt import Answer
from llmopt.tokenizer import AFTER, BEFORE, CODE, END, PAD, PASSES, Tokenizer

MAX_PASSES = 10  # the longest list that the paper's model wrote
MAX_DIGITS = 6


@dataclass(frozen=True)
class Generated:
    """One answer: as read, as text, in `tokens` tokens, and how likely its pass list was.

    `log_probability` is of the list under the grammar (natural logarithm, its end included).
    """

    answer: Answer
    text: str
    tokens: int
    log_probability: float


class Grammar(LogitsProcessor):
    """Masks every token that the answer's form does not allow next; sums the lists' likelihoods.

    `starts` is the number of tokens that each row begins with, padding and the list's mark
    included.
    """

    def __init__(self, tok: Tokenizer, starts: Sequence[int], max_passes: int = MAX_PASSES):
        self.starts, self.max_passes = starts, max_passes
        self.before, self.after, self.code, self.end = (
            tok.ids[name] for name in (BEFORE, AFTER, CODE, END)
        )
        self.pass_ids = sorted(tok.pass_ids)
        self.metas = {n for n, name in tok.pass_ids.items() if name in passes.META}
        self.digits = tok.digit_ids
        self.text = sorted((set(range(len(tok))) - set(tok.marks)) | {self.end})
        self.log_probability = torch.zeros(len(starts), dtype=torch.float64)
        self.listing = [True] * len(starts)

    def allowed(self, written: Sequence[int]) -> list[int]:
        """Ids that may follow the ids that were written after the list's mark."""
        if self.before not in written:
            if len(written) >= self.max_passes:
                return [self.before]
            more = self.pass_ids
            if self.metas & set(written):
                more = [number for number in more if number not in self.metas]
            return [*more, self.before] if written else more
        if self.code in written:
            return self.text
        opened = max(i for i, n in enumerate(written) if n in (self.before, self.after))
        following = self.code if written[opened] == self.after else self.after
        digits = len(written) - opened - 1
        if digits >= MAX_DIGITS:
            return [following]
        return [*self.digits, following] if digits else self.digits

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores, -torch.inf)
        for row, (ids, start) in enumerate(zip(input_ids.tolist(), self.starts, strict=True)):
            ids = ids[start:]
            ok = self.allowed(ids)
            masked[row, ok] = torch.nan_to_num(scores[row, ok], nan=0.0)
            if self.listing[row]:
                self.listing[row] = self.before not in ids
                if self.listing[row]:
                    best = masked[row, ok].double().log_softmax(-1).max()
                    self.log_probability[row] += best.item()
        return masked


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
    """One answer for each (normalised IR, protocol), in order; no randomness.

    Where `lists` are given, one a function, the answers go on from them: counts and code.

    A prompt that leaves no room in the model's context gets an `Answer` with an error. `on_done` is
    told after each batch how many functions are done. With `passes_only` generation ends with the
    list. `max_new_tokens` bounds the answer after the list's mark.
    """
    if batch_size < 1 or max_new_tokens < 2 or max_passes < 1:
        raise InputError("generation: batch_size and max_passes start at 1, max_new_tokens at 2")
    llama.eval()
    context = llama.config.max_position_embeddings
    encoded = [prompt.encode_prompt(text, protocol, tok) for text, protocol in functions]
    given = [[tok.ids[PASSES]] for _ in encoded]
    if lists is not None:
        given = [prompt.encode_list(names, tok) for names in lists]
    results: list[Generated | None] = [None] * len(encoded)
    fitting = []
    room = max_passes + 1
    for i, (ids, _) in enumerate(encoded):
        if len(ids) + len(given[i]) + room <= context:
            fitting.append(i)
        else:
            error = f"a prompt of {len(ids)} tokens {prompt.NO_ROOM} of {context}"
            results[i] = Generated(Answer(error=error), "", 0, float("-inf"))
    fitting.sort(key=lambda i: len(encoded[i][0]))
    for first in range(0, len(fitting), batch_size):
        rows = fitting[first : first + batch_size]
        written, likely = _batch(
            llama,
            tok,
            [(encoded[i][0], given[i]) for i in rows],
            max_new_tokens,
            passes_only,
            max_passes,
        )
        for i, ids, log_probability in zip(rows, written, likely, strict=True):
            text = PASSES + tok.decode(ids)
            answer = prompt.parse_answer(text, encoded[i][1])
            results[i] = Generated(answer, text, len(ids), log_probability)
        if on_done:
            on_done(sum(result is not None for result in results))
    return results


def _batch(
    llama: PreTrainedModel,
    tok: Tokenizer,
    questions: list[tuple[list[int], list[int]]],
    max_new_tokens: int,
    passes_only: bool,
    max_passes: int,
) -> tuple[list[list[int]], list[float]]:
    """What follows the list's mark for each (prompt, given beginning of the answer), and the
    log-probabilities of the lists that were written."""
    pad, end, before = tok.ids[PAD], tok.ids[END], tok.ids[BEFORE]
    width = max(len(asked) + len(given) for asked, given in questions)
    ids = torch.full((len(questions), width), pad)
    mask = torch.zeros_like(ids)
    for row, (asked, given) in enumerate(questions):  # padding on the left: all rows end together
        whole = torch.tensor([*asked, *given])
        ids[row, width - len(whole) :] = whole
        mask[row, width - len(whole) :] = 1
    starts = [width - len(given) + 1 for _, given in questions]
    grammar = Grammar(tok, starts, max_passes)
    output = llama.generate(
        input_ids=ids.to(llama.device),
        attention_mask=mask.to(llama.device),
        max_new_tokens=min(
            max_passes + 1 if passes_only else max_new_tokens,
            llama.config.max_position_embeddings - width,
        ),
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        eos_token_id=[before] if passes_only else [end],
        logits_processor=LogitsProcessorList([grammar]),
    )
    written = []
    for row, start in zip(output.tolist(), starts, strict=True):
        row = row[start:]
        written.append(row[: row.index(pad)] if pad in row else row)
    return written, grammar.log_probability.tolist()
