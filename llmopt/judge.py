"""What LLVM says of one answer: what its list does, and whether its code stands.

Lists are compiled; what a model *writes* is only judged, never used (paper, Section II-C). Nothing
here runs a model or sums anything up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmopt import ir, llvm, metrics, passes, sandbox
from llmopt.config import InputError
from llmopt.prompt import Answer

NO_CODE, CUT_OFF = "no code", "cut off"  # answers that LLVM's parser is not even asked about
# What code may be that compiles and is not LLVM's result of the model's own list.
OTHER_LIST, COPY, CONSTANT = "the best list's code", "a copy of the input", "a wrong constant"
_NUMBER = re.compile(r"(?<![%@\w.$\"-])-?\d+(?![\w.:])")  # none of a name, a type or a label


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


def _compile(text: str, protocol: str, lists: Sequence[Sequence[str]]) -> list[llvm.Run]:
    """The function as it is, after -Oz, and after each list."""
    before, oz, *runs = sandbox.shared().run(text, protocol, [(), passes.OZ, *lists], text=True)
    if not (before.ok and oz.ok):
        bad = oz if before.ok else before
        raise InputError(f"LLVM cannot optimise the function: {bad.status}: {bad.message}")
    return [before, oz, *runs]


def choice(text: str, protocol: str, names: Sequence[str]) -> Choice:
    """Compile the function `text` with -Oz and with the list, in one sandbox call.

    Raises `InputError` where the function is not valid IR or even -Oz fails on it.
    """
    names = tuple(names)
    before, oz, run = _compile(text, protocol, [names])
    used = run if run.ok else oz
    return Choice(names, before.count, oz.count, used.count, run.status, used.text)


def best(text: str, protocol: str, lists: Sequence[Sequence[str]]) -> Choice:
    """Compile the function `text` with -Oz and with all lists in one sandbox call; the one that
    leaves fewest instructions, -Oz itself where none is better, and the first among equals.

    Raises `InputError` as `choice` does.
    """
    before, oz, *runs = _compile(text, protocol, lists)
    used = min((run for run in (oz, *runs) if run.ok), key=lambda run: run.count)
    return Choice(used.passes, before.count, oz.count, used.count, used.status, used.text)


def written(text: str, protocol: str, chosen: Choice, answer: Answer, best: str = "") -> dict:
    """The row of one written answer to the function `text` whose list led to `chosen`: counts and
    their predictions, whether the code compiles (of how many instructions it is: `written`) and is
    exactly LLVM's, how alike they are (`bleu`), if it does not compile, why, and if it is another
    text, which (`slip`). `best` is what LLVM makes of the best list known."""
    code = ir.normalise(answer.code or "")
    run = sandbox.shared().check([code], protocol)[0]
    compiles = run.ok and bool(code) and run.count > 0
    message = "" if compiles else run.message or "no function"
    if not code:
        message = answer.error or NO_CODE
    return {
        "unoptimised": chosen.unoptimised,
        "count": chosen.count,
        "predicted_before": answer.before,
        "predicted_after": answer.after,
        "compiles": compiles,
        "written": run.count if compiles else None,
        "bleu": metrics.bleu([code], [chosen.text]),
        "exact": code == chosen.text,
        "error": message,
        "kind": "" if compiles else _kind(message, code, answer),
        "slip": _slip(code, chosen.text, text, best) if compiles else "",
        "code": code,
        "reference": chosen.text,
        "input": text,
    }


def _kind(message: str, code: str, answer: Answer) -> str:
    """The error class of code that does not compile; cut off where only its end is wrong."""
    if not code:
        return NO_CODE
    line = re.match(r"line (\d+):", message)
    if answer.error and line and int(line[1]) >= code.count("\n") > 1:
        return CUT_OFF
    return metrics.classify_error(message)


def _slip(code: str, reference: str, text: str, best: str) -> str:
    if code == reference:
        return ""
    if code == best:
        return OTHER_LIST
    if code == text:
        return COPY
    return CONSTANT if _NUMBER.sub("0", code) == _NUMBER.sub("0", reference) else ""
