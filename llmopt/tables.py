"""The rows of an evaluation, summed up: the paper's Tables III and V, for pages and as JSON.

Takes the data frames that `evaluate` makes and returns data frames or plain values. Nothing here
compiles, asks a model or draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from llmopt import metrics
from llmopt.config import InputError

# Table III of the paper and the text around it: 100,000 test functions, one protocol, LLVM 10.
PAPER = (
    {"method": "autotuner", "percent": 5.03, "improved": 6764, "regressed": 0,
     "extra_compilations": 2_522_253_069, "with_oz_backup": 5.03},
    {"method": "AutoPhase", "percent": -3.85, "extra_compilations": 4_500_000,
     "with_oz_backup": 1.02},
    {"method": "Coreset-NVP", "percent": -1.88, "extra_compilations": 442_747,
     "with_oz_backup": 2.55},
    {"method": "7B model", "percent": 3.01, "improved": 4136, "regressed": 526, "saved": 21_935,
     "lost": 3_095, "extra_compilations": 0, "with_oz_backup": 3.52,
     "with_oz_backup_compilations": 5721},
)  # fmt: skip
# Table V: of the 9.7% of its test answers that do not compile, what the compiler said first.
VERDICTS = ("equal", "differs", "not testable")  # of `semantics`
PAPER_FAILED = 9_700
PAPER_ERRORS = {
    "type error": 5777,
    "instruction forward referenced": 1521,
    "undefined value": 1113,
    "invalid redefinition": 616,
    "syntax error": 280,
    "invalid value for constant": 144,
}


def table(rows: pd.DataFrame, by: Sequence[str] = ("protocol", "method")) -> pd.DataFrame:
    """The paper's Table III: a row a protocol and method, improvements over -Oz in percent with
    bootstrap 95% intervals, with and without -Oz backup.

    `by` may name more columns of `rows`, a function's suite for example (Figure 4).
    """
    if rows.empty:
        raise InputError("no rows to make a table of: evaluate at least one function")
    out = []
    for values, group in rows.groupby(list(by), sort=False):
        plain = metrics.outcome(group.oz, group["count"])
        backup = metrics.with_backup(group.oz, group["count"])
        # Where a list failed, -Oz has been compiled already.
        other = int(((group.passes != "-Oz") & (group.status == "ok")).sum())
        searched = (group.method == "autotuner").all()  # it has tried -Oz, too
        out.append(
            dict(zip(by, values, strict=True))
            | asdict(plain)
            | {
                "extra_compilations": int(group.compilations.sum()),
                "says_other_than_oz": int((group.passes != "-Oz").sum()),
                "with_oz_backup": metrics.improvement(group.oz, backup),
                "with_oz_backup_interval": metrics.interval(group.oz, backup),
                "with_oz_backup_compilations": int(group.compilations.sum())
                + (0 if searched else other),
            }
        )
    return pd.DataFrame(out)


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """A `table` (or `PAPER`) as a page shows it: text in every cell, a dash where a figure is
    missing."""

    def shown(form: str, value: object) -> str:
        missing = value is None or (isinstance(value, float) and value != value)
        return (
            "–"
            if missing
            else form.format(*value)
            if isinstance(value, tuple)
            else form.format(value)
        )

    columns = {  # the hyphen in titles is one at which no line breaks
        "protocol": ("protocol", "{}"),
        "suite": ("suite", "{}"),
        "method": ("method", "{}"),
        "functions": ("functions", "{:,}"),
        "percent": ("over \u2011Oz", "{:.2f}%"),
        "interval": ("95% interval", "{:.2f} to {:.2f}%"),
        "improved": ("improved", "{:,.0f}"),
        "regressed": ("regressed", "{:,.0f}"),
        "saved": ("saved", "{:,.0f}"),
        "lost": ("lost", "{:,.0f}"),
        "extra_compilations": ("extra compilations", "{:,.0f}"),
        "with_oz_backup": ("with \u2011Oz backup", "{:.2f}%"),
        "with_oz_backup_compilations": ("compilations then", "{:,.0f}"),
    }
    return pd.DataFrame(
        {
            title: [shown(form, value) for value in rows[name]]
            for name, (title, form) in columns.items()
            if name in rows
        }
    )


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


def errors(code: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table V: answers by protocol and by what is wrong with their code, most frequent
    first; the classes are those of `metrics.classify_error` and `judge.NO_CODE`, `CUT_OFF`."""
    if code.empty:
        raise InputError("no written code to sum up: generate at least one whole answer")
    counts = pd.crosstab(code.kind[~code.compiles], code.protocol[~code.compiles])
    counts = counts.reindex(columns=list(dict.fromkeys(code.protocol)), fill_value=0)
    order = sorted(counts.index, key=lambda kind: (-counts.loc[kind].sum(), kind))
    return counts.loc[order].rename_axis(index="error", columns=None)


def meaning(rows: pd.DataFrame) -> pd.DataFrame:
    """Verdicts of `evaluate.meanings`: a row a protocol and kind of code (what the model wrote,
    that of it which is not exactly LLVM's, and LLVM's own as the control), with counts of functions
    and the share of the testable that is equal (percent)."""
    if rows.empty:
        raise InputError("no written code that compiles: there is nothing to run")
    out = []
    for protocol, own in rows.groupby("protocol", sort=False):
        kinds = {
            "written": own.meaning,
            "written, not exactly LLVM's": own.meaning[~own.exact],
            "LLVM's (control)": own.control,
        }
        for kind, verdicts in kinds.items():
            counts = {name: int((verdicts == name).sum()) for name in VERDICTS}
            tested = counts["equal"] + counts["differs"]
            share = 100 * counts["equal"] / tested if tested else None
            out.append({"protocol": protocol, "code": kind} | counts | {"equal_share": share})
    return pd.DataFrame(out)


def parity(log: pd.DataFrame, protocol: str) -> float | None:
    """Tokens after which a model in training stays above -Oz on its validation functions, from the
    rows of its log (`validation.Curves`); None where it never does for good."""
    known = log.dropna(subset=[f"cautious_{protocol}"])
    above = (known[f"cautious_{protocol}"] > 0).to_numpy()
    if not len(above) or not above[-1]:
        return None
    below = (~above).nonzero()[0]
    return float(known.tokens.iloc[below[-1] + 1 if len(below) else 0])


def summary(rows: pd.DataFrame, code: pd.DataFrame, left_out: dict[str, int]) -> dict:
    """An `evaluate.Evaluation` as one JSON value: what `llmopt evaluate --json` writes."""
    protocols = {}
    for protocol, group in table(rows).groupby("protocol", sort=False):
        own = rows[rows.protocol == protocol]
        written = code[code.protocol == protocol] if len(code) else code
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
            "codegen": code_summary(written),
        }
    return {"protocols": protocols, "left_out": left_out}
