"""The paper's validation curves (Figure 2): what a model in training is worth, beside its loss.

Lists are judged by what `labels` knows of each, so they cost no compilation; code is generated for
a few short functions, and compiled. The final word is `evaluate`'s, on the test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
from transformers import LlamaForCausalLM

from llmopt import choose, generate, judge, metrics, prompt
from llmopt.choose import List
from llmopt.config import PROTOCOLS
from llmopt.passes import OZ
from llmopt.prompt import Example
from llmopt.tokenizer import Tokenizer


class Curves:
    """Called with a model, gives its curves (percentages, BLEU in 0 … 1), on at most `functions`
    examples of each protocol: `improvement_PROTOCOL` over -Oz and `oz_share_PROTOCOL` of the
    likeliest list; `cautious_PROTOCOL`, the improvement where -Oz is likelier by a caution, the one
    that was best on the other half of the examples: no example decides about itself, and so few
    decide about no more than one number (`choose.fit_worth` wants many); `compiles`, `exact`,
    `bleu`, `mape_before`, `mape_after` of whole answers (of at most `max_new_tokens` tokens) to
    `written` of them, spread evenly over the lengths of those with prompts of at most `short`
    tokens.
    """

    def __init__(
        self,
        tok: Tokenizer,
        examples: Sequence[Example],
        lists: Mapping[str, Sequence[List]],
        functions: int = 200,
        written: int = 16,
        short: int = 256,
        max_new_tokens: int = 200,
    ):
        self.tok, self.max_new_tokens = tok, max_new_tokens
        self.examples = {
            protocol: [e for e in examples if e.protocol == protocol and e.gains][:functions]
            for protocol in PROTOCOLS
        }
        self.rule = choose.rule(lists)
        every = [e for own in self.examples.values() for e in own]
        sizes = [(len(prompt.encode_prompt(e.ir, e.protocol, tok)[0]), e) for e in every]
        fitting = [e for size, e in sorted(sizes, key=itemgetter(0)) if size <= short]
        at = np.linspace(0, len(fitting) - 1, min(written, len(fitting))).round().astype(int)
        self.written = [fitting[i] for i in at]

    def __call__(self, llama: LlamaForCausalLM) -> dict[str, float]:
        found: dict[str, float] = {}
        for protocol, own in self.examples.items():
            asked = [(e.ir, protocol) for e in own]
            scores = choose.score(llama, self.tok, asked, self.rule.lists)
            known = list(zip(own, scores, strict=True))
            if known:
                total = sum(e.oz for e in own)
                likeliest, share = self._saved(protocol, known, 0.0)
                halves = known[::2], known[1::2]
                cautious = sum(
                    self._saved(protocol, judged, self._caution(protocol, fitted))[0]
                    for judged, fitted in (halves, halves[::-1])
                )
                found[f"improvement_{protocol}"] = 100 * likeliest / total
                found[f"oz_share_{protocol}"] = 100 * share
                found[f"cautious_{protocol}"] = 100 * cautious / total
        return found | (self._code(llama) if self.written else {})

    def _caution(self, protocol: str, known: list) -> float:
        return fit_caution(known, self.rule.lists[protocol])

    def _saved(self, protocol: str, known: list, caution: float) -> tuple[int, float]:
        """Instructions that the choices save on examples with their scores, and -Oz's share."""
        lists, saved, oz = self.rule.lists[protocol], 0, 0
        for example, values in known:
            names = OZ
            if values is not None:
                names = lists[int(np.r_[values[0] + caution, values[1:]].argmax())]
            saved, oz = saved + dict(example.gains).get(names, 0), oz + (names == OZ)
        return saved, oz / len(known)

    def _lists(self, llama: LlamaForCausalLM, examples: Sequence[Example]) -> list[List]:
        asked = [(e.ir, e.protocol) for e in examples]
        scores = choose.score(llama, self.tok, asked, self.rule.lists)
        return [
            self.rule.choose(protocol, values)
            for (_, protocol), values in zip(asked, scores, strict=True)
        ]

    def _code(self, llama: LlamaForCausalLM) -> dict[str, float]:
        lists = self._lists(llama, self.written)
        asked = [(e.ir, e.protocol) for e in self.written]
        made = generate.greedy(llama, self.tok, asked, self.max_new_tokens, lists=lists)
        rows = []
        for (text, protocol), names, one in zip(asked, lists, made, strict=True):
            chosen = judge.choice(text, protocol, names)
            rows.append(judge.written(text, protocol, chosen, one.answer))
        found = {
            "compiles": 100 * float(np.mean([row["compiles"] for row in rows])),
            "exact": 100 * float(np.mean([row["exact"] for row in rows])),
            "bleu": metrics.bleu([r["code"] for r in rows], [r["reference"] for r in rows]),
        }
        for name, true in (("before", "unoptimised"), ("after", "count")):
            said = [(r[f"predicted_{name}"], r[true]) for r in rows]
            said = [pair for pair in said if pair[0] is not None]
            if said:
                found[f"mape_{name}"] = metrics.mape(*zip(*said, strict=True))
        return found


def fit_caution(
    known: Sequence[tuple[Example, np.ndarray | None]], lists: tuple[List, ...]
) -> float:
    """What to add to the log-probability of -Oz (nats), so that the likeliest of `lists` saves most
    instructions on examples with their scores. It lies between two margins by which some example's
    best other list beats -Oz."""
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
