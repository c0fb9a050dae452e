"""Several lists a function by a language model, most promising first.

"model" begins with what the model says in one shot (`choose`); then come the other lists that it
was taught to weigh, by their likelihood, and after those what priority sampling finds. "priority"
and "nucleus" are `sampling` alone. Nothing here compiles anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llmopt import journal, passes
from llmopt.config import InputError

List = tuple[str, ...]
METHODS = ("model", "priority", "nucleus")


def proposals(
    folder: Path,
    method: str,
    functions: pd.DataFrame,
    protocols: Sequence[str],
    directory: Path,
    samples: int,
    on_done: Callable[[int], None] | None = None,
) -> dict[tuple[str, str], tuple[list[str], float]]:
    """At most `samples` lists that a model names for each function (columns `id`, `ir`) and
    protocol, best first and each once, and the seconds that it took (a share of its batch's).

    Journalled in `directory`: an interrupted run goes on with the functions that are missing.
    `on_done` is told of questions, a function under a protocol.
    """

    def load() -> Callable[[list[str]], list[dict]]:
        ask = proposer(folder, method, samples)

        def about(texts: list[str]) -> list[dict]:
            started = time.perf_counter()
            made = ask([(text, protocol) for text in texts for protocol in protocols])
            seconds = (time.perf_counter() - started) / len(made)
            own = iter([[passes.format(names) for names in lists] for lists in made])
            return [
                {"lists": {protocol: next(own) for protocol in protocols}, "seconds": seconds}
                for _ in texts
            ]

        return about

    texts = dict(zip(functions.id, functions.ir, strict=True))
    tell = (lambda many: on_done(many * len(protocols))) if on_done else None
    with journal.Journal(directory / f"{method}-{samples}-{'-'.join(protocols)}.sqlite") as done:
        journal.ask(done, load, texts, tell)
        rows = {key: done.get(key) for key in texts}
    return {
        (key, protocol): (row["lists"][protocol], row["seconds"])
        for key, row in rows.items()
        for protocol in protocols
    }


def proposer(
    folder: Path, method: str, samples: int
) -> Callable[[Sequence[tuple[str, str]]], list[list[List]]]:
    """What names at most `samples` lists for each (normalised IR, protocol), each once; none for a
    prompt that does not fit the model's context."""
    if samples < 1:
        raise InputError("at least one sample a function")
    from llmopt import choose, model, sampling  # torch, for those who need it

    llama, tok = model.load(folder)
    draw = sampling.nucleus if method == "nucleus" else sampling.priority

    def sampled(questions: Sequence[tuple[str, str]]) -> list[list[List]]:
        found = draw(llama, tok, questions, samples)
        return [list(dict.fromkeys(one.passes for one in own)) for own in found]

    def weighed(questions: Sequence[tuple[str, str]]) -> list[list[List]]:
        out = []
        scores = choose.score(llama, tok, questions, rule.lists)
        for (_, protocol), values in zip(questions, scores, strict=True):
            lists = []
            if values is not None:
                likeliest = np.argsort(-values, kind="stable")
                lists = [rule.choose(protocol, values)]
                lists += [rule.lists[protocol][i] for i in likeliest]
            out.append(list(dict.fromkeys(lists))[:samples])
        return out

    def both(questions: Sequence[tuple[str, str]]) -> list[list[List]]:
        pairs = zip(weighed(questions), sampled(questions), strict=True)
        return [list(dict.fromkeys([*first, *then]))[:samples] for first, then in pairs]

    if method != "model" or not (folder / "rule.json").exists():
        return sampled
    rule = choose.load(folder)
    enough = samples <= min(map(len, rule.lists.values()))
    return weighed if enough else both
