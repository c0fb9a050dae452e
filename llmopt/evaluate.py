"""Evaluation as in the paper's Section IV: rows a function, tables over them, both protocols.

Three methods stand beside -Oz: the autotuner, one fixed list (the cheapest alternative), and the
model, greedy and in one shot. Every list is compiled by LLVM; what the model *writes* is only
judged, never used. A list on which LLVM fails costs its function nothing but a compilation: -Oz is
what is shipped then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from llmopt import ir, journal, metrics, passes, sandbox
from llmopt.config import PROTOCOLS, InputError
from llmopt.prompt import Answer

AUTOTUNER, SINGLE, MODEL = "autotuner", "single-list", "model-greedy"
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
        missing = functions[~functions.id.isin(known)]
        if len(missing):
            llama, tokenizer = train.load(folder)
            # Like lengths together: little padding.
            missing = missing.iloc[missing.ir.str.len().argsort(kind="stable")]
            for at in range(0, len(missing), _CHUNK):
                chunk = missing.iloc[at : at + _CHUNK]
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
    message = "" if compiles else answer.error or run.message or "no function"
    return {
        "unoptimised": choice.unoptimised,
        "count": choice.count,
        "predicted_before": answer.before,
        "predicted_after": answer.after,
        "compiles": compiles,
        "exact": written == choice.text,
        "error": message if written else "no code",
        "code": written,
        "reference": choice.text,
        "input": text,
    }


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
    left_out = {"LLVM fails even on -Oz": 0}
    for protocol in protocols:
        known = labels[labels.protocol == protocol].set_index("id")
        usable = functions[functions.id.isin(known.index)]
        left_out["LLVM fails even on -Oz"] += len(functions) - len(usable)
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
            for row in usable.itertuples()
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
    return Evaluation(pd.DataFrame(rows), pd.DataFrame(codes), left_out)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table III: a row a protocol and method, improvements over -Oz in percent with
    bootstrap 95% intervals, with and without -Oz backup."""
    out = []
    for (protocol, method), group in rows.groupby(["protocol", "method"], sort=False):
        plain = metrics.outcome(group.oz, group["count"])
        backup = metrics.with_backup(group.oz, group["count"])
        other = int((group.passes != "-Oz").sum())
        out.append(
            {"protocol": protocol, "method": method}
            | asdict(plain)
            | {
                "extra_compilations": int(group.compilations.sum()),
                "says_other_than_oz": other,
                "with_oz_backup": metrics.improvement(group.oz, backup),
                "with_oz_backup_interval": metrics.interval(group.oz, backup),
                "with_oz_backup_compilations": int(group.compilations.sum())
                + (other if method != AUTOTUNER else 0),
            }
        )
    return pd.DataFrame(out)


def code_summary(code: pd.DataFrame) -> dict:
    """The paper's Figure 2 at its end point, for one protocol: rates in percent, BLEU in 0 … 1.

    Count errors are over the answers that give a count; `counts_given` says how many do.
    """
    if code.empty:
        return {"functions": 0}
    before = code.dropna(subset=["predicted_before"])
    after = code.dropna(subset=["predicted_after"])
    return {
        "functions": len(code),
        "compiles": 100 * float(code.compiles.mean()),
        "exact_match": 100 * float(code.exact.mean()),
        "bleu": metrics.bleu(list(code.code), list(code.reference)),
        "bleu_of_copying_the_input": metrics.bleu(list(code.input), list(code.reference)),
        "mape_before": _mape(before.predicted_before, before.unoptimised),
        "mape_after": _mape(after.predicted_after, after["count"]),
        "counts_given": len(after),
    }


def _mape(predicted: pd.Series, actual: pd.Series) -> float | None:
    return metrics.mape(predicted, actual) if len(actual) else None


def summary(result: Evaluation) -> dict:
    """Everything as one JSON value: what `llmopt evaluate --json` writes."""
    protocols = {}
    rows = table(result.rows)
    for protocol, group in rows.groupby("protocol", sort=False):
        own = result.rows[result.rows.protocol == protocol]
        code = result.code[result.code.protocol == protocol] if len(result.code) else result.code
        methods = {
            row.method: {
                "improvement": row.percent,
                "ci95": list(row.interval),
                "improved": row.improved,
                "regressed": row.regressed,
                "saved": row.saved,
                "lost": row.lost,
                "extra_compilations": row.extra_compilations,
                "with_oz_backup": row.with_oz_backup,
                "with_oz_backup_ci95": list(row.with_oz_backup_interval),
                "with_oz_backup_compilations": row.with_oz_backup_compilations,
                "says_other_than_oz": row.says_other_than_oz,
            }
            for row in group.itertuples()
        }
        protocols[protocol] = {
            "functions": int(own.id.nunique()),
            "oz": int(own.drop_duplicates("id").oz.sum()),
            "methods": methods,
            "codegen": code_summary(code),
        }
    return {"protocols": protocols, "left_out": result.left_out}
