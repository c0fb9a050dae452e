"""The claims table: the paper's statements, and ours beside each, from the records alone.

`table` reads `results/` and computes nothing anew; `page` is the text of `book/claims.md`, which a
test holds to what the records say today.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from llmopt import config, evaluate, pipeline, tables
from llmopt.config import PROTOCOLS, InputError

PAGE = config.ROOT / "book" / "claims.md"
TITLES = {
    "07": "notebooks/07_training",
    "08": "notebooks/08_results_pass_ordering",
    "09": "notebooks/09_results_generated_code",
}


@dataclass(frozen=True)
class Claim:
    """What is claimed, the paper's value, the page that computes ours, and ours by protocol."""

    what: str
    paper: str
    page: str
    ours: Callable[[str], str]


def _method(name: str, protocol: str) -> dict:
    return pipeline.record("evaluation")["protocols"][protocol]["methods"][name]


def _code(protocol: str) -> dict:
    return pipeline.record("evaluation")["protocols"][protocol]["codegen"]


def gain(name: str, backup: bool = False) -> Callable[[str], str]:
    """A method's improvement over -Oz with its interval, by protocol."""

    def shown(protocol: str) -> str:
        row = _method(name, protocol)
        value = row["with_oz_backup" if backup else "improvement"]
        low, high = row["with_oz_backup_ci95" if backup else "ci95"]
        return f"{value:.2f}% [{low:.2f}, {high:.2f}]"

    return shown


def tried(name: str, lists: int) -> Callable[[str], str]:
    """What the best of a method's first so many lists saves, -Oz among them, with its interval."""

    def shown(protocol: str) -> str:
        for row in pipeline.record("trials")["table"]:
            if (row["protocol"], row["method"], row["tried"]) == (protocol, name, lists):
                low, high = row["with_oz_backup_interval"]
                return f"{row['with_oz_backup']:.2f}% [{low:.2f}, {high:.2f}]"
        raise InputError(f"results/trials.json: no {lists} lists of {name}; record them anew")

    return shown


def share(name: str, method: str = evaluate.MODEL) -> Callable[[str], str]:
    """The functions that a method `improved` or `regressed`, of all, by protocol."""

    def shown(protocol: str) -> str:
        functions = pipeline.record("evaluation")["protocols"][protocol]["functions"]
        return f"{100 * _method(method, protocol)[name] / functions:.1f}%"

    return shown


def _says_oz(protocol: str) -> str:
    functions = pipeline.record("evaluation")["protocols"][protocol]["functions"]
    other = _method(evaluate.MODEL, protocol)["says_other_than_oz"]
    return f"{100 * (1 - other / functions):.1f}%"


def _compilations(protocol: str) -> str:
    functions = pipeline.record("evaluation")["protocols"][protocol]["functions"]
    spent = _method(evaluate.AUTOTUNER, protocol)["extra_compilations"]
    return f"{spent / functions:,.0f}"


def _rate(name: str, form: str) -> Callable[[str], str]:
    return lambda protocol: form.format(_code(protocol)[name])


def _short(name: str) -> Callable[[str], str]:
    def shown(protocol: str) -> str:
        rows = pipeline.record("evaluation")["code_by_tokens"]
        own = [r for r in rows if r["protocol"] == protocol and r["at_most"] <= 256]
        known = sum(row["functions"] for row in own)
        return f"{sum(row[name] * row['functions'] for row in own) / known:.1f}%"

    return shown


def _parity(protocol: str) -> str:
    log = pd.read_parquet(pipeline.RESULTS / "training.parquet")
    passed = tables.parity(log, protocol)
    return "not for good" if passed is None else f"{passed / 1e6:.1f} million tokens"


def _seen(protocol: str) -> str:
    return f"{pipeline.record('training')['tokens'] / 1e6:.1f} million"


def _cost(protocol: str) -> str:
    trained = pipeline.record("training")
    return f"{trained['seconds'] / 3600:.1f} h of {trained['machine']['cores']} cores"


def _same_meaning(protocol: str) -> str:
    for row in pipeline.record("evaluation")["meaning"]:
        if row["protocol"] == protocol and row["equal_share"] is not None:
            return f"{row['equal_share']:.1f}% of {row['equal'] + row['differs']:,}"
    return "–"


CLAIMS = (
    Claim("Improvement over -Oz, one shot", "3.01%", "08", gain(evaluate.MODEL)),
    Claim("… with -Oz backup", "3.52%", "08", gain(evaluate.MODEL, backup=True)),
    Claim("… of the autotuner", "5.03%", "08", gain(evaluate.AUTOTUNER)),
    Claim("… of a choice by counting, one shot", "not given", "08", gain("features")),
    Claim("… of one fixed list with backup", "not given", "08", gain("single-list", True)),
    Claim("Eight lists of the coreset, tried", "not given", "08", tried("coreset", 8)),
    Claim("Eight lists of priority sampling, tried", "not given", "08", tried("priority", 8)),
    Claim("Eight lists that the model weighs, tried", "not given", "08", tried("model", 8)),
    Claim("AutoPhase, 45 passes, with backup", "1.02%", "08", tried("autophase", 45)),
    Claim("Coreset-NVP, 45 lists, with backup", "2.55%", "08", tried("coreset-nvp", 45)),
    Claim("Functions made smaller", "4.1%", "08", share("improved")),
    Claim("Functions made larger", "0.5%", "08", share("regressed")),
    Claim("The model says -Oz", "94.3%", "08", _says_oz),
    Claim("Compilations a function of the autotuner", "37,424", "08", _compilations),
    Claim(
        "Parity with -Oz in training (ours: cautiously), after", "393 million tokens", "07", _parity
    ),
    Claim("Tokens seen in training", "15.7 billion", "07", _seen),
    Claim("Training cost", "620 GPU days", "07", _cost),
    Claim("Generated code that compiles", "90.3%", "09", _rate("compiles", "{:.1f}%")),
    Claim("… of prompts of at most 256 tokens", "not given", "09", _short("compiles")),
    Claim("Generated code that is exactly LLVM's", "68.4%", "09", _rate("exact_match", "{:.1f}%")),
    Claim("… of prompts of at most 256 tokens", "not given", "09", _short("exact")),
    Claim("BLEU", "0.952", "09", _rate("bleu", "{:.3f}")),
    Claim("BLEU of copying the input", "0.531", "09", _rate("bleu_of_copying_the_input", "{:.3f}")),
    Claim("Error of the count after (MAPE)", "5.9%", "09", _rate("mape_after", "{:.1f}%")),
    Claim("Compiling code that does the same", "not given", "09", _same_meaning),
)


def table() -> pd.DataFrame:
    """Columns `claim`, `the paper`, one a protocol, and `page`: a row a claim."""
    rows = []
    for claim in CLAIMS:
        ours = {protocol: claim.ours(protocol) for protocol in PROTOCOLS}
        rows.append({"claim": claim.what, "the paper": claim.paper} | ours | {"page": claim.page})
    return pd.DataFrame(rows)


def page() -> str:
    """The text of `book/claims.md`."""
    found = table()
    head = ["claim", "the paper", *PROTOCOLS, "page"]
    lines = [head, ["---"] * len(head)]
    for row in found.to_dict("records"):
        link = f"{{doc}}`{row['page']} </{TITLES[row['page']]}>`"
        lines.append([*(row[name] for name in head[:-1]), link])
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    evaluated, trained = pipeline.record("evaluation"), pipeline.record("training")
    functions = max(one["functions"] for one in evaluated["protocols"].values())
    return TEXT.format(
        body=body,
        functions=f"{functions:,}",
        written=f"{_code(PROTOCOLS[0])['functions']:,}",
        tried=f"{pipeline.record('trials')['functions']:,}",
        evaluated=evaluated["date"],
        trained=trained["date"],
        llvm=evaluated["llvm"],
    )


TEXT = """# Claims

What {{cite:t}}`cummins2023llm` claim, and what the released model of this book does, under both
protocols. Every number of ours is taken from the records in `results/`; the page named in the
last column computes it, with what it means and what it does not. In brackets: 95% bootstrap
intervals over functions.

{body}

Ours are {functions} functions of unseen projects, {written} of them for generated code and
{tried} for what is tried in several lists, evaluated on {evaluated} with LLVM {llvm}, by the
model trained on {trained}. The paper's are 100,000 functions with LLVM 10 and a model of 7
billion parameters; {{doc}}`deviations` lists what else differs. The two columns are landmarks
for each other, not a contest.

`llmopt evaluate --scale reference --release` writes this page anew.
"""
