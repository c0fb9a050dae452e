"""Where a model's numbers go wrong: counts of instructions, and constants in the code it writes.

Counts come from recorded answers (columns of `judge.written`) and are looked at by how large the
true one is and digit by digit. Constants need the written code: lines of it are paired with lines
of LLVM's that are the same but for numbers, and the numbers of a pair compared. So what is judged
is the number, given that the line around it is right; lines that are not LLVM's are not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import pandas as pd

from llmopt import ir
from llmopt.config import InputError

# What is counted, and which columns hold it: true and as the model says.
COUNTS = {"before": ("unoptimised", "predicted_before"), "after": ("count", "predicted_after")}
EDGES = (0, 9, 19, 39, 79, 159, np.inf)  # of bins of true counts, in instructions
# An integer in IR: no part of a name, type, label, alignment, length of an array or exponent.
_CONSTANT = re.compile(r"(?<![%@\w.$\"+-])(?<!align )-?\d+(?![\w.:]| x )")
_VALUE = re.compile(r"%\d+")
# Sizes of constants by where they begin, and the two kinds of them.
SIZES = {0: "0", 1: "1", 2: "2–9", 10: "10–99", 100: "100–999", 1000: "1,000 on"}
COPIED, COMPUTED = "in the prompt", "not in the prompt"


def bins(counts: pd.Series, edges: Sequence[float] = EDGES) -> pd.Series:
    """The bin of each count, ordered, with names as on an axis."""
    starts = [int(edge) + 1 for edge in edges[:-1]]
    names = [f"{low}–{high:.0f}" for low, high in zip(starts, edges[1:-1], strict=False)]
    return pd.cut(counts, edges, labels=[*names, f"over {edges[-2]:.0f}"])


def counts(code: pd.DataFrame) -> pd.DataFrame:
    """Recorded answers as a row a number that was to be given: `what` (before or after), `true`,
    `said`, its `bin`. Answers without the number are left out."""
    parts = []
    for what, (true, said) in COUNTS.items():
        own = code.dropna(subset=[said])
        rows = {"what": what, "true": own[true].astype(int), "said": own[said].astype(int)}
        parts.append(own[["id", "protocol"]].assign(**rows))
    found = pd.concat(parts, ignore_index=True)
    if found.empty:
        raise InputError("no answer gives a count: pass some that do")
    return found.assign(bin=bins(found.true))


def rates(
    right: pd.Series, groups: pd.Series | Sequence[pd.Series], functions: pd.Series
) -> pd.DataFrame:
    """How often something is right, in percent, with a 95% interval: a row a group with `number` of
    cases, `percent`, `low` and `high`.

    The interval is Wilson's for as many draws as a group has `functions` (their ids): what is said
    of a function once and again, under both protocols or line by line, is much alike.
    """
    rows = pd.DataFrame({"right": right, "function": functions})
    by_group = rows.groupby(groups, observed=True, sort=True)
    found = by_group.agg(
        number=("right", "size"), share=("right", "mean"), draws=("function", "nunique")
    )
    low, high = _wilson(found.share, found.draws)
    found = found.assign(percent=100 * found.share, low=100 * low, high=100 * high)
    return found.drop(columns=["share", "draws"])


def _wilson(share: pd.Series, draws: pd.Series, z: float = 1.96) -> tuple[pd.Series, pd.Series]:
    """Wilson's score interval (Journal of the American Statistical Association, 1927). SciPy's
    takes whole numbers of hits only."""
    centre = (share + z**2 / (2 * draws)) / (1 + z**2 / draws)
    half = np.sqrt(share * (1 - share) / draws + (z / (2 * draws)) ** 2) * z / (1 + z**2 / draws)
    return (centre - half).clip(lower=0), (centre + half).clip(upper=1)


def digits(table: pd.DataFrame) -> pd.DataFrame:
    """How often a number is right up to each of its digits, read from the left: a row of `what`,
    the true number's `length` and the `digit`, with `rates`. A number of another length is wrong
    from the first digit on."""
    true, said = table.true.astype(str), table.said.astype(str)
    rows = [
        (key, what, len(right), at, len(given) == len(right) and given[:at] == right[:at])
        for key, what, right, given in zip(table.id, table.what, true, said, strict=True)
        for at in range(1, len(right) + 1)
    ]
    found = pd.DataFrame(rows, columns=["id", "what", "length", "digit", "right"])
    groups = [found[name] for name in ("what", "length", "digit")]
    return rates(found.right, groups, found.id).reset_index()


# --- constants in code ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """A constant of LLVM's code on a line that the model wrote: what it is, what the model put
    there, and whether the function as the model read it has the same number somewhere."""

    true: int
    said: int
    in_prompt: bool

    @property
    def right(self) -> bool:
        return self.true == self.said


def constants(text: str, reference: str, written: str) -> list[Constant]:
    """Constants of the `reference` beside those that stand at their place in what was `written`
    about the function `text`; all three normalised IR, of which the bodies count."""
    known = {number for line in _body(text) for number in _numbers(line)}
    return [
        Constant(true, said, true in known)
        for ours, theirs in _pairs(_body(reference), _body(written))
        for true, said in zip(_numbers(ours), _numbers(theirs), strict=True)
    ]


def _body(text: str) -> list[str]:
    return [line for _, body in ir.bodies(text) for line in body]


def _numbers(line: str) -> list[int]:
    return [int(number) for number in _CONSTANT.findall(line)]


def _pairs(reference: Sequence[str], written: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Lines that are the same but for numbers, in order."""
    shapes = [[_shape(line) for line in side] for side in (reference, written)]
    matcher = SequenceMatcher(None, *shapes, autojunk=False)
    for block in matcher.get_matching_blocks():
        for at in range(block.size):
            yield reference[block.a + at], written[block.b + at]


def _shape(line: str) -> str:
    return _CONSTANT.sub("#", _VALUE.sub("%", line))


def table(found: Iterable[Constant]) -> pd.DataFrame:
    """Constants as rows `true said in_prompt right`; the numbers as floats, since they may have
    more than 64 bits."""
    rows = [(float(one.true), float(one.said), one.in_prompt, one.right) for one in found]
    return pd.DataFrame(rows, columns=["true", "said", "in_prompt", "right"])


def kinds(rows: pd.DataFrame) -> pd.DataFrame:
    """How often constants (columns of `table`, and the function's `id`) are right, by the size of
    the true one and by whether it could be copied from the prompt: `rates` with `kind` and `size`.
    """
    if rows.empty:
        raise InputError("no constants: none of the lines that were written is one of LLVM's")
    size = pd.cut(rows.true.abs(), [*SIZES, np.inf], labels=list(SIZES.values()), right=False)
    kind = rows.in_prompt.map({True: COPIED, False: COMPUTED})
    groups = [kind.rename("kind"), size.rename("size")]
    return rates(rows.right.astype(bool), groups, rows.id).reset_index()
