"""The opening page's answer, from the records: a table of four rows, a figure, and what they say.

`page` puts it between two marks of `book/intro.md`; the rest of that page is written by hand.
`figure` draws `book/_static/results.svg`, which the README shows, too, with the same words.
"""

from __future__ import annotations

import io
import json
import re

import pandas as pd

from llmopt import baselines, claims, config, evaluate, metrics, pipeline, records
from llmopt.config import PROTOCOLS

PAGE = config.ROOT / "book" / "intro.md"
FIGURE = config.ROOT / "book" / "_static" / "results.svg"
README = config.ROOT / "README.md"
START, END = "% From the records, up to the next such line; `llmopt evaluate --release`.", "% End."
COLUMNS = {  # of the table, by the claims that the first three rows show
    "over `-Oz`, one shot": "Improvement over -Oz, one shot",
    "with `-Oz` backup": "… with -Oz backup",
    "made smaller": "Functions made smaller",
    "made larger": "Functions made larger",
}
NAMES = {
    evaluate.AUTOTUNER: "the autotuner",
    baselines.SINGLE: "one fixed list",
    baselines.FEATURES: "the choice by counting",
    evaluate.MODEL: "the released model",
}


def table() -> pd.DataFrame:
    """Rows: the paper, our model under each protocol, the cheapest baseline. Columns: `COLUMNS`."""
    known = {claim.what: claim for claim in claims.CLAIMS}
    shown = [known[what] for what in COLUMNS.values()]
    cost = known["Training cost"]
    rows = {f"the paper's model ({cost.paper})": [claim.paper for claim in shown]}
    for protocol in PROTOCOLS:
        name = f"our model, `{protocol}` ({cost.ours(protocol)})"
        rows[name] = [claim.ours(protocol) for claim in shown]
    single = baselines.SINGLE
    ours = claims.gain(single), claims.gain(single, backup=True)
    ours += claims.share("improved", single), claims.share("regressed", single)
    rows["the cheapest baseline: one fixed list for all"] = [
        "<br>".join(f"`{protocol}` {value(protocol)}" for protocol in PROTOCOLS) for value in ours
    ]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))


def words() -> str:
    """The figure for those who cannot see it."""
    found = pipeline.record("evaluation")["protocols"]
    said = []
    for method, name in NAMES.items():
        gains = (f"{found[p]['methods'][method]['improvement']:.1f}%" for p in PROTOCOLS)
        said.append(f"{name} at {' and '.join(gains)}")
    both = " and ".join(PROTOCOLS)
    return f"Improvement over -Oz in one shot under {both}, with intervals: {'; '.join(said)}."


def figure() -> bytes:
    """The picture of the record as SVG: `plots.improvement_by_method`, with `words` inside."""
    import matplotlib.pyplot as plt

    from llmopt import plots

    rows = [
        {"protocol": protocol, "method": method, "percent": row["improvement"],
         "interval": row["ci95"], "with_oz_backup": row["with_oz_backup"],
         "with_oz_backup_interval": row["with_oz_backup_ci95"]}
        for protocol, found in pipeline.record("evaluation")["protocols"].items()
        for method, row in found["methods"].items()
    ]  # fmt: skip
    drawn = plots.improvement_by_method(pd.DataFrame(rows))[0].figure
    out = io.BytesIO()
    with plt.rc_context(plots.STYLE):
        about = {"Date": None, "Description": words()}
        drawn.savefig(out, format="svg", bbox_inches="tight", metadata=about)
    plt.close(drawn)
    return out.getvalue()


def stands(protocol: str, rival: str, backup: bool = False) -> str:
    """Where our model stands beside a rival on the same functions, by the paired 95% interval of
    the difference: "ahead of", "level with" or "behind"."""
    rows = records.read("evaluation")
    counts = rows[rows.protocol == protocol].pivot(index="id", columns="method", values="count")
    oz = rows[rows.protocol == protocol].drop_duplicates("id").set_index("id").oz[counts.index]
    ours, theirs = (counts[name] for name in (evaluate.MODEL, rival))
    if backup:
        ours, theirs = metrics.with_backup(oz, ours), metrics.with_backup(oz, theirs)
    _, low, high = metrics.difference(oz, ours, theirs)
    return "ahead of" if low > 0 else "behind" if high < 0 else "level with"


def verdict(protocol: str) -> str:
    """What the table means under one protocol, in two sentences."""
    found = pipeline.record("evaluation")["protocols"][protocol]["methods"]
    shot = [f"{found[m]['improvement']:.2f}%" for m in (evaluate.MODEL, baselines.FEATURES)]
    both = [f"{found[m]['with_oz_backup']:.2f}%" for m in (evaluate.MODEL, baselines.SINGLE)]
    return (
        f"Under `{protocol}` the model is {stands(protocol, baselines.FEATURES)} a choice by "
        f"counting opcodes, which reads nothing ({shot[0]} and {shot[1]} in one shot). With `-Oz` "
        f"as backup for both it is {stands(protocol, baselines.SINGLE, backup=True)} one fixed "
        f"list for all functions ({both[0]} and {both[1]})."
    )


def answer() -> str:
    """The Markdown of table, verdict and figure."""
    found = table()
    lines = [["", *found.columns], ["---"] * (1 + len(found.columns))]
    lines += [[name, *cells] for name, *cells in found.itertuples()]
    evaluated = pipeline.record("evaluation")
    functions = max(one["functions"] for one in evaluated["protocols"].values())
    return TEXT.format(
        table="\n".join("| " + " | ".join(cells) + " |" for cells in lines),
        verdicts="\n".join(f"- {verdict(protocol)}" for protocol in PROTOCOLS),
        functions=f"{functions:,}",
        words=json.dumps(words()),
    )


def page(text: str) -> str:
    """`text` (of `PAGE`) with the answer that the records give today between its marks."""
    marks = re.compile(f"(?<={re.escape(START)}\n).*?(?={re.escape(END)}\n)", re.S)
    made, places = marks.subn(lambda _: answer(), text)
    if places != 1:
        raise config.InputError(f"{PAGE}: {places} places between its marks; keep one")
    return made


def write() -> None:
    """Write page and figure anew, and the words of the README's picture."""
    config.write_atomic(PAGE, page(PAGE.read_text()).encode())
    config.write_atomic(FIGURE, figure())
    picture = r"!\[[^]]*\](?=\(book/_static/results\.svg\))"
    text = re.sub(picture, lambda _: f"![{words()}]", README.read_text())
    config.write_atomic(README, text.encode())


TEXT = """
{table}

In brackets: 95% intervals over {functions} functions of projects that the model has not seen. The
last two columns are the functions that one shot makes smaller or larger than `-Oz` does.
{{doc}}`claims` has the whole list, {{doc}}`page 08 </notebooks/08_results_pass_ordering>`
tells how it comes about.

{verdicts}

```{{figure}} _static/results.svg
:name: fig-answer
:alt: {words}

The same as a picture: improvement over `-Oz` with 95% intervals. Right of zero is smaller code.
```

"""
