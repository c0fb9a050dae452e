"""Evaluation as in the paper's Section IV: a row a function and method, under both protocols.

Beside -Oz stand the autotuner, the cheap alternatives of `baselines`, and the model in one shot: by
the rule in its folder (`choose.Rule`), or greedy where there is none. Every list is compiled by
LLVM; what the model *writes* is only judged, never used. A list on which LLVM fails costs its
function nothing but a compilation: -Oz is what is shipped then. `tables` sums the rows up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from llmopt import baselines, config, journal, judge, passes, pipeline, prompt, semantics
from llmopt import tokenizer as tokenizers
from llmopt.baselines import Chooser
from llmopt.config import PROTOCOLS, InputError
from llmopt.prompt import Answer

AUTOTUNER, MODEL = "autotuner", "model"
NO_LABEL = "LLVM fails even on -Oz"  # why a function is not in an evaluation
NO_ROOM = f"the prompt {prompt.NO_ROOM}"


@dataclass(frozen=True)
class Evaluation:
    """`rows`: a row a function, protocol and method (`id protocol method oz count passes
    compilations status`, compilations beyond one). `code`: a row a function and protocol whose
    answer the model wrote out in full. `left_out`: functions by the reason they are not in.
    `meaning`: verdicts on the written code that compiles (`meanings`).
    """

    rows: pd.DataFrame
    code: pd.DataFrame
    left_out: dict[str, int]
    meaning: pd.DataFrame


def answers(
    folder: Path,
    functions: pd.DataFrame,
    protocols: Sequence[str],
    directory: Path,
    max_new_tokens: int = 2,
    passes_only: bool = True,
    on_done: Callable[[int], None] | None = None,
) -> dict[tuple[str, str], Answer]:
    """The model's answers to functions (columns `id`, `ir`), by id and protocol.

    Journalled in `directory`: an interrupted run goes on with the functions that are missing.
    `on_done` is told of answers.
    """
    what = "list" if passes_only else "full"

    def load() -> Callable[[list[str]], list[dict]]:
        ask = asker(folder, max_new_tokens, passes_only)

        def about(texts: list[str]) -> list[dict]:
            # Questions about one function stand together: it is read once for all of them.
            made = iter(ask([(text, protocol) for text in texts for protocol in protocols]))
            return [{protocol: asdict(next(made)) for protocol in protocols} for _ in texts]

        return about

    texts = dict(zip(functions.id, functions.ir, strict=True))
    tell = (lambda many: on_done(many * len(protocols))) if on_done else None
    with journal.Journal(directory / f"answers-{'-'.join(protocols)}-{what}.sqlite") as done:
        journal.ask(done, load, texts, tell)
        return {
            (key, protocol): _answer(row[protocol])
            for key, row in done.items()
            if key in texts
            for protocol in protocols
        }


def asker(
    folder: Path, max_new_tokens: int = 2, passes_only: bool = True
) -> Callable[[list[tuple[str, str]]], list[Answer]]:
    """What gives a model's answers to (normalised IR, protocol) pairs: pass lists alone, by the
    rule in its folder; or whole answers of at most `max_new_tokens` tokens, about the list that the
    model itself holds likeliest."""
    from llmopt import choose, generate, model  # torch, for those who need it

    llama, tok = model.load(folder)
    rule = choose.load(folder) if (folder / "rule.json").exists() else None
    if rule and not passes_only:
        rule = choose.rule(rule.lists)

    def ask(functions: list[tuple[str, str]]) -> list[Answer]:
        lists = None
        if rule:
            scores = choose.score(llama, tok, functions, rule.lists)
            lists = [
                rule.choose(protocol, values)
                for (_, protocol), values in zip(functions, scores, strict=True)
            ]
            if passes_only:
                no_room = Answer(error=f"the prompt {prompt.NO_ROOM}")
                return [
                    no_room if values is None else Answer(names)
                    for names, values in zip(lists, scores, strict=True)
                ]
        made = generate.greedy(
            llama,
            tok,
            functions,
            max_new_tokens=max_new_tokens,
            passes_only=passes_only,
            lists=lists,
        )
        return [one.answer for one in made]

    return ask


def _answer(row: dict) -> Answer:
    return Answer(**row | {"passes": tuple(row["passes"]) if row["passes"] else None})


def _judge(
    item: tuple[str, str, str, dict[str, tuple[str, ...]], Answer | None],
) -> tuple[list[dict], dict | None]:
    """All methods' rows for one function under one protocol, and the row of its written code."""
    key, text, protocol, lists, answer = item
    rows, code, best = [], None, ""
    for method, names in lists.items():
        choice = judge.choice(text, protocol, names)
        rows.append(
            {
                "id": key,
                "protocol": protocol,
                "method": method,
                "oz": choice.oz,
                "count": choice.count,
                "passes": passes.format(names),
                "compilations": int(choice.status != "ok"),
                "status": choice.status,
            }
        )
        if method == AUTOTUNER:
            best = choice.text
    if answer is not None:
        own = judge.choice(text, protocol, answer.passes or passes.OZ)
        written = judge.written(text, protocol, own, answer, best)
        code = {"id": key, "protocol": protocol} | written
    return rows, code


def evaluate(
    functions: pd.DataFrame,
    labels: pd.DataFrame,
    folder: Path,
    rivals: Mapping[str, Chooser],
    directory: Path,
    written: int,
    max_new_tokens: int,
    protocols: Sequence[str] = PROTOCOLS,
    executor: Executor | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run all methods on functions (columns `id`, `ir`) with the autotuner's `labels` for them.

    `folder` is the model's, `rivals` are the other methods by name (`baselines.load`). For the
    first `written` functions the model also writes a whole answer, of at most `max_new_tokens`
    tokens; for all it names a list and stops, as in deployment. `on_done` is told of answers.
    """
    functions = functions.drop_duplicates("id")
    if functions.empty:
        raise InputError("no functions to evaluate on")
    known = {p: labels[labels.protocol == p].set_index("id") for p in protocols}
    labelled = [functions.id.isin(own.index) for own in known.values()]
    usable = functions[np.logical_and.reduce(labelled)]
    ask = partial(
        answers,
        folder,
        protocols=protocols,
        directory=directory,
        max_new_tokens=max_new_tokens,
        on_done=on_done,
    )
    full = ask(functions=usable.head(written), passes_only=False)
    said = ask(functions=usable)
    no_room = {key for (key, _), answer in said.items() if prompt.NO_ROOM in (answer.error or "")}
    answered = usable[~usable.id.isin(no_room)]
    if answered.empty:
        raise InputError("no function that LLVM can optimise: nothing to evaluate on")

    rows, codes = [], []
    for protocol in protocols:
        chosen = {name: choose(protocol, list(answered.ir)) for name, choose in rivals.items()}
        items = []
        for i, row in enumerate(answered.itertuples()):
            lists = {AUTOTUNER: passes.parse(known[protocol].passes[row.id])}
            lists |= {name: own[i] for name, own in chosen.items()}
            lists[MODEL] = said[row.id, protocol].passes or passes.OZ
            items.append((row.id, row.ir, protocol, lists, full.get((row.id, protocol))))
        for made, code in (executor.map if executor else map)(_judge, items):
            rows += made
            codes += [code] if code else []
    for row in rows:
        if row["method"] == AUTOTUNER:
            row["compilations"] = int(known[row["protocol"]].compilations[row["id"]])
    left_out = {NO_LABEL: len(functions) - len(usable), NO_ROOM: len(no_room)}
    code = pd.DataFrame(codes)
    return Evaluation(pd.DataFrame(rows), code, left_out, meanings(code, directory, executor))


def _meaning(row: tuple[str, str, str]) -> dict:
    original, reference, written = row
    control, (verdict,) = semantics.against(original, reference, [written])
    return {
        "control": control.status,
        "control_inputs": control.inputs,
        "control_why": control.why,
        "meaning": verdict.status,
        "inputs": verdict.inputs,
        "why": verdict.why,
        "example": json.dumps(verdict.example) if verdict.example else "",
    }


def meanings(
    code: pd.DataFrame,
    directory: Path,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Does written code that compiles mean what its function does (`semantics`)? A row of
    `id protocol exact` and the verdicts on it and, as a `control`, on LLVM's own result, for each
    row of `code` (an `Evaluation`'s) that compiles. Journalled in `directory`."""
    columns = ["control", "control_inputs", "control_why", "meaning", "inputs", "why", "example"]
    if code.empty or not code.compiles.any():
        return pd.DataFrame(columns=["id", "protocol", "exact", *columns])
    rows = code[code.compiles]
    keys = [f"{row.protocol}:{row.id}" for row in rows.itertuples()]
    texts = zip(rows.input, rows.reference, rows.code, strict=True)
    with (
        journal.Journal(directory / "meaning.sqlite") as done,
        tqdm(total=len(keys), desc="run written code", unit="answer") as bar,
    ):
        bar.update(len(done.keys() & set(keys)))
        items = dict(zip(keys, texts, strict=True))
        journal.run(done, _meaning, items, executor, lambda key, row: bar.update())
        found = [done.get(key) for key in keys]
    verdicts = pd.DataFrame(found, columns=columns, index=rows.index)
    return pd.concat([rows[["id", "protocol", "exact"]], verdicts], axis=1)


# --- the current scale's own evaluation ----------------------------------------------------------


def test_functions(folder: Path) -> tuple[pd.DataFrame, int]:
    """The scale's test functions whose prompt and true answers fit the scale's tokens, cut by the
    tokenizer in `folder`, as in the paper, and how many were left out because they do not."""
    rows, tokenizer = pipeline.test_functions(), tokenizers.load(folder)
    most = config.scale().max_tokens
    long = {e.id for e in pipeline.examples("test") if prompt.length(e, tokenizer) > most}
    return rows[~rows.id.isin(long)], len(long)


def test_split(folder: Path | None = None) -> Evaluation:
    """A model (by default the current scale's, built if it is missing) on the scale's test split,
    under both protocols: made once, and shared by all that show it."""
    scale, folder = config.scale(), folder or pipeline.model()
    ids = tuple(pipeline.test_functions().id)
    settings = (pipeline.model_digest(folder), ids, scale.generate_functions, scale.max_new_tokens)
    directory = pipeline.stage("evaluation", ("evaluate", "generate"), settings)
    with pipeline.alone(directory):
        if not (directory / "left_out.json").exists():  # written last
            rows, long = test_functions(folder)
            total = len(PROTOCOLS) * (len(rows) + min(len(rows), scale.generate_functions))
            with (
                journal.workers() as pool,
                tqdm(total=total, desc="evaluate", unit="answer") as bar,
            ):
                made = evaluate(
                    rows,
                    pipeline.labels(),
                    folder,
                    baselines.load(folder),
                    directory,
                    scale.generate_functions,
                    scale.max_new_tokens,
                    executor=pool,
                    on_done=bar.update,
                )
            for name in ("rows", "code", "meaning"):
                config.write_parquet(directory / f"{name}.parquet", getattr(made, name))
            reasons = {f"prompt and answer over {scale.max_tokens} tokens": long} | made.left_out
            config.write_atomic(directory / "left_out.json", json.dumps(reasons).encode())
    rows, code, meaning = (
        pd.read_parquet(directory / f"{name}.parquet") for name in ("rows", "code", "meaning")
    )
    left_out = json.loads((directory / "left_out.json").read_text())
    return Evaluation(rows, code, left_out, meaning)
