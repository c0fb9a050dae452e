"""Evaluation as in the paper's Section IV: a row a function and method, under both protocols.

Three methods stand beside -Oz: the autotuner, one fixed list (the cheapest alternative), and the
model, greedy and in one shot. Every list is compiled by LLVM; what the model *writes* is only
judged, never used. A list on which LLVM fails costs its function nothing but a compilation: -Oz is
what is shipped then. `tables` sums the rows up.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from llmopt import config, ir, journal, metrics, passes, pipeline, prompt, sandbox
from llmopt.config import PROTOCOLS, InputError
from llmopt.prompt import Answer

AUTOTUNER, SINGLE, MODEL = "autotuner", "single-list", "model-greedy"
NO_LABEL = "LLVM fails even on -Oz"  # why a function is not in an evaluation
NO_ROOM = "the prompt does not fit the model's context"
NO_CODE, CUT_OFF = "no code", "cut off"  # answers that LLVM's parser is not even asked about
_CHUNK = 32  # answers that are recorded together


@dataclass(frozen=True)
class Choice:
    """What a pass list did to one function. Counts in instructions; `status` as in `llvm.Run`.

    `count` is that of -Oz where the list failed. `text` is the resulting normalised IR.
    """

    passes: tuple[str, ...]
    unoptimised: int
    oz: int
    count: int
    status: str
    text: str


@dataclass(frozen=True)
class Evaluation:
    """`rows`: a row a function, protocol and method (`id protocol method oz count passes
    compilations status`, compilations beyond one). `code`: a row a function and protocol whose
    answer the model wrote out in full. `left_out`: functions by the reason they are not in.
    """

    rows: pd.DataFrame
    code: pd.DataFrame
    left_out: dict[str, int]


def choose(text: str, protocol: str, names: Sequence[str]) -> Choice:
    """Compile the function `text` with -Oz and with the list, in one sandbox call.

    Raises `InputError` where the function is not valid IR or even -Oz fails on it.
    """
    names = tuple(names)
    before, oz, run = sandbox.shared().run(text, protocol, [(), passes.OZ, names], text=True)
    if not (before.ok and oz.ok):
        bad = oz if before.ok else before
        raise InputError(f"LLVM cannot optimise the function: {bad.status}: {bad.message}")
    used = run if run.ok else oz
    return Choice(names, before.count, oz.count, used.count, run.status, used.text)


def answers(
    folder: Path,
    functions: pd.DataFrame,
    protocol: str,
    directory: Path,
    max_new_tokens: int = 2,
    passes_only: bool = True,
    on_done: Callable[[int], None] | None = None,
) -> dict[str, Answer]:
    """The model's greedy answers to functions (columns `id`, `ir`), by id.

    Journalled in `directory`: an interrupted run goes on with the functions that are missing.
    """
    from llmopt import generate, train  # torch, for those who need it

    what = "list" if passes_only else "full"
    with journal.Journal(directory / f"answers-{protocol}-{what}.sqlite") as done:
        known = done.keys()
        if not known.issuperset(functions.id):
            llama, tokenizer = train.load(folder)
            # Like lengths together: little padding. A chunk is asked whole or not at all, so that
            # an answer never depends on where a run was interrupted.
            rows = functions.iloc[functions.ir.str.len().argsort(kind="stable")]
            for at in range(0, len(rows), _CHUNK):
                chunk = rows.iloc[at : at + _CHUNK]
                if known.issuperset(chunk.id):
                    continue
                made = generate.greedy(
                    llama,
                    tokenizer,
                    [(text, protocol) for text in chunk.ir],
                    max_new_tokens=max_new_tokens,
                    passes_only=passes_only,
                )
                for key, one in zip(chunk.id, made, strict=True):
                    done.put(key, asdict(one.answer))
                if on_done:
                    on_done(len(chunk))
        wanted = set(functions.id)
        return {key: _answer(row) for key, row in done.items() if key in wanted}


def _answer(row: dict) -> Answer:
    return Answer(**row | {"passes": tuple(row["passes"]) if row["passes"] else None})


def _judge(
    item: tuple[str, str, str, dict[str, tuple[str, ...]], Answer | None],
) -> tuple[list[dict], dict | None]:
    """All methods' rows for one function under one protocol, and the row of its written code."""
    key, text, protocol, lists, answer = item
    rows, code = [], None
    for method, names in lists.items():
        choice = choose(text, protocol, names)
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
        if method == MODEL and answer is not None:
            code = {"id": key, "protocol": protocol} | _judge_code(text, protocol, choice, answer)
    return rows, code


def _judge_code(text: str, protocol: str, choice: Choice, answer: Answer) -> dict:
    written = ir.normalise(answer.code or "")
    run = sandbox.shared().check([written], protocol)[0]
    compiles = run.ok and bool(written) and run.count > 0
    message = "" if compiles else run.message or "no function"
    if not written:
        message = answer.error or NO_CODE
    return {
        "unoptimised": choice.unoptimised,
        "count": choice.count,
        "predicted_before": answer.before,
        "predicted_after": answer.after,
        "compiles": compiles,
        "exact": written == choice.text,
        "error": message,
        "kind": "" if compiles else _kind(message, written, answer),
        "code": written,
        "reference": choice.text,
        "input": text,
    }


def _kind(message: str, written: str, answer: Answer) -> str:
    """The error class of code that does not compile; cut off where only its end is wrong."""
    if not written:
        return NO_CODE
    line = re.match(r"line (\d+):", message)
    if answer.error and line and int(line[1]) >= written.count("\n") > 1:
        return CUT_OFF
    return metrics.classify_error(message)


def evaluate(
    functions: pd.DataFrame,
    labels: pd.DataFrame,
    folder: Path,
    single: dict[str, tuple[str, ...]],
    directory: Path,
    written: int,
    max_new_tokens: int,
    protocols: Sequence[str] = PROTOCOLS,
    executor: Executor | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run all methods on functions (columns `id`, `ir`) with the autotuner's `labels` for them.

    `folder` is the model's, `single` the fixed list of each protocol. For the first `written`
    functions the model writes its whole answer, of at most `max_new_tokens` tokens; for the others
    it stops after the pass list, as in deployment. `on_done` is told of functions answered.
    """
    functions = functions.drop_duplicates("id")
    if functions.empty:
        raise InputError("no functions to evaluate on")
    rows, codes = [], []
    left_out: dict[str, set[str]] = {NO_LABEL: set(), NO_ROOM: set()}
    for protocol in protocols:
        known = labels[labels.protocol == protocol].set_index("id")
        usable = functions[functions.id.isin(known.index)]
        left_out[NO_LABEL] |= set(functions.id) - set(usable.id)
        asking = partial(
            answers,
            folder,
            protocol=protocol,
            directory=directory,
            max_new_tokens=max_new_tokens,
            on_done=on_done,
        )
        full = asking(functions=usable.head(written), passes_only=False)
        said = full | asking(functions=usable.iloc[written:])
        no_room = [key for key, answer in said.items() if "does not fit" in (answer.error or "")]
        answered = usable[~usable.id.isin(no_room)]
        left_out[NO_ROOM] |= set(usable.id) - set(answered.id)
        items = [
            (
                row.id,
                row.ir,
                protocol,
                {
                    AUTOTUNER: passes.parse(known.passes[row.id]),
                    SINGLE: single[protocol],
                    MODEL: said[row.id].passes or passes.OZ,
                },
                full.get(row.id),
            )
            for row in answered.itertuples()
        ]
        for made, code in (executor.map if executor else map)(_judge, items):
            rows += made
            codes += [code] if code else []
        spent = known.compilations
        for row in rows:
            if row["method"] == AUTOTUNER and row["protocol"] == protocol:
                row["compilations"] = int(spent[row["id"]])
    if not rows:
        raise InputError("no function that LLVM can optimise: nothing to evaluate on")
    counts = {reason: len(ids) for reason, ids in left_out.items()}
    return Evaluation(pd.DataFrame(rows), pd.DataFrame(codes), counts)


# --- the current scale's own evaluation ----------------------------------------------------------


def test_functions() -> tuple[pd.DataFrame, int]:
    """The scale's test functions whose prompt and true answers fit the scale's tokens, as in the
    paper, and how many were left out because they do not."""
    rows, tokenizer = pipeline.test_functions(), pipeline.tokenizer()
    most = config.scale().max_tokens
    long = {e.id for e in pipeline.examples("test") if prompt.length(e, tokenizer) > most}
    return rows[~rows.id.isin(long)], len(long)


def test_split() -> Evaluation:
    """The current scale's model on its test split, under both protocols: made once, and shared by
    all that show it. Builds what is missing, the model included."""
    scale, folder = config.scale(), pipeline.model()
    settings = (pipeline.model_folder().name, scale.generate_functions, scale.max_new_tokens)
    directory = pipeline.stage("evaluation", ("evaluate", "generate"), settings)
    with pipeline.alone(directory):
        if not (directory / "left_out.json").exists():  # written last
            rows, long = test_functions()
            with (
                journal.workers() as pool,
                tqdm(total=len(PROTOCOLS) * len(rows), desc="evaluate", unit="answer") as bar,
            ):
                made = evaluate(
                    rows,
                    pipeline.labels(),
                    folder,
                    pipeline.single_lists(folder),
                    directory,
                    scale.generate_functions,
                    scale.max_new_tokens,
                    executor=pool,
                    on_done=bar.update,
                )
            for name, table in (("rows", made.rows), ("code", made.code)):
                buffer = io.BytesIO()
                table.to_parquet(buffer, index=False, compression="zstd")
                config.write_atomic(directory / f"{name}.parquet", buffer.getvalue())
            reasons = {f"prompt and answer over {scale.max_tokens} tokens": long} | made.left_out
            config.write_atomic(directory / "left_out.json", json.dumps(reasons).encode())
    rows, code = (pd.read_parquet(directory / f"{name}.parquet") for name in ("rows", "code"))
    return Evaluation(rows, code, json.loads((directory / "left_out.json").read_text()))
