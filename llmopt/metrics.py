"""Scores: instructions saved, confidence intervals, BLEU, exact match, and Table V's error classes.

Every function here takes plain sequences and returns plain numbers. Empty or unequal inputs raise
`InputError` instead of scoring zero. Nothing here runs LLVM or a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmopt.config import InputError

# One lexical unit of LLVM-IR: a string, a sigil with its name, a word or number, a punctuation.
LEXEME = re.compile(
    r'[%@]?"[^"]*"|[%@][-\w$.]+|#\d+|![-\w.]*|-?\d[\w.+]*|[A-Za-z_][\w.]*|\.\.\.|[^\s\w]'
)

# Table V of the paper, most frequent first, and what LLVM 22's parser and verifier say for each.
# The order of the tests matters: a class is the first one whose pattern is found.
_MESSAGES = (
    ("instruction forward referenced", r"forward referenced|does not dominate all uses"),
    ("invalid redefinition", r"redefinition|multiple definition of"),
    ("index error", r"indices for|getelementptr indices|index out of|invalid index"),
    (
        "invalid value for constant",
        r"constant (?:must have|invalid for|expression type mismatch|too large)"
        r"|must be a pointer type|integer constant|invalid constant|does not fit",
    ),
    (
        "type error",
        r"but expected '|defined with type|doesn't match|operand must|operands must|must be a"
        r"|invalid cast|invalid type|type mismatch|unsized|is not a basic block|mismatch"
        r"|not the same type|same type|invalid operand|argument is not of expected type"
        r"|wrong type|incorrect number of arguments|too many arguments|not enough parameters"
        r"|invalid use of function-local name|first class type|element type|must be sized"
        r"|undefined type|is recursive|incompatible signature",
    ),
    ("wrong phi", r"PHI ?node"),
    (
        "syntax error",
        r"expected |found end of file|end of file in|unterminated|at least one basic block"
        r"|cannot have a name|invalid token|unknown token|unexpected",
    ),
)
ERRORS = (
    "type error",
    "instruction forward referenced",
    "undefined value",
    "invalid redefinition",
    "syntax error",
    "invalid value for constant",
    "undefined function",
    "index error",
    "wrong phi",
    "other",
)


@dataclass(frozen=True)
class Outcome:
    """What a method did to a set of functions, against -Oz: the columns of the paper's Table III.

    Counts are in IR instructions; `percent` and the ends of `interval` are percentages.
    """

    functions: int
    improved: int
    regressed: int
    saved: int
    lost: int
    percent: float
    interval: tuple[float, float]


def _pair(oz: Sequence[int], method: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    oz, method = np.asarray(oz, dtype=float), np.asarray(method, dtype=float)
    if oz.ndim != 1 or oz.shape != method.shape:
        raise InputError(
            f"{oz.size} counts after -Oz but {method.size} of the method: give one per function"
        )
    if not oz.size:
        raise InputError("no functions to score: an improvement over nothing is not 0%")
    if not (np.isfinite(oz).all() and np.isfinite(method).all()):
        raise InputError("a count is missing (NaN): score only functions that both compiled")
    if oz.sum() <= 0:
        raise InputError("the counts after -Oz sum to 0: there is nothing to improve on")
    return oz, method


def improvement(oz: Sequence[int], method: Sequence[int]) -> float:
    """Percent of all instructions after -Oz that the method saves: 100 (ΣOz - Σmethod) / ΣOz."""
    oz, method = _pair(oz, method)
    return float(100 * (oz.sum() - method.sum()) / oz.sum())


def interval(
    oz: Sequence[int], method: Sequence[int], seed: int = 0, n: int = 2000
) -> tuple[float, float]:
    """Bootstrap 95% interval of `improvement`, resampling functions (percentile method, `n` draws).

    Where all functions gain alike (one function included), it is that one value twice.
    """
    from scipy.stats import bootstrap

    oz, method = _pair(oz, method)
    gain = oz - method
    if oz.size == 1 or np.all(gain * oz.sum() == oz * gain.sum()):
        return (improvement(oz, method),) * 2
    result = bootstrap(
        (oz, gain),
        lambda o, g, axis: 100 * g.sum(axis=axis) / np.maximum(o.sum(axis=axis), 1),
        paired=True,
        vectorized=True,
        n_resamples=n,
        batch=max(1, 4_000_000 // oz.size),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(result.low), float(result.high)


def difference(
    oz: Sequence[int], method: Sequence[int], other: Sequence[int], seed: int = 0, n: int = 2000
) -> tuple[float, float, float]:
    """By how many percentage points of -Oz's instructions a method saves more than another on the
    same functions, and the ends of its paired 95% interval."""
    oz, method = _pair(oz, method)
    oz, other = _pair(oz, other)
    ahead = oz - (other - method)
    return improvement(oz, ahead), *interval(oz, ahead, seed, n)


def by_group(
    oz: Sequence[int], method: Sequence[int], groups: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of both counts over each group (a function's project, say): given to `interval` or
    `difference`, whole groups are drawn, as functions of one project are alike."""
    oz, method = _pair(oz, method)
    if len(groups) != oz.size:
        raise InputError(f"{len(groups)} groups for {oz.size} functions: give one each")
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.bincount(index, oz), np.bincount(index, method)


def with_backup(oz: Sequence[int], method: Sequence[int]) -> np.ndarray:
    """Counts where -Oz is compiled too and the better kept (the paper's "-Oz backup")."""
    oz, method = _pair(oz, method)
    return np.minimum(oz, method).astype(int)


def outcome(oz: Sequence[int], method: Sequence[int], seed: int = 0, n: int = 2000) -> Outcome:
    """All the figures of one row of the results table."""
    before, after = _pair(oz, method)
    gain = before - after
    return Outcome(
        functions=before.size,
        improved=int((gain > 0).sum()),
        regressed=int((gain < 0).sum()),
        saved=int(gain[gain > 0].sum()),
        lost=int(-gain[gain < 0].sum()),
        percent=improvement(oz, method),
        interval=interval(oz, method, seed, n),
    )


def _texts(candidates: Sequence[str | None], references: Sequence[str]) -> None:
    if len(candidates) != len(references):
        raise InputError(
            f"{len(candidates)} candidates but {len(references)} references: give one each"
        )
    if not candidates:
        raise InputError("no texts to compare: a score over nothing is not 0")


def lex(text: str) -> str:
    """IR with one space between its lexical units, so that `i32,` and `i32 ,` score alike."""
    return " ".join(LEXEME.findall(text))


def bleu(candidates: Sequence[str | None], references: Sequence[str]) -> float:
    """Corpus BLEU-4 between 0 and 1 (as the paper gives it), on IR cut up by `lex`.

    None stands for an answer that holds no code, and scores as an empty text.
    """
    import sacrebleu

    _texts(candidates, references)
    score = sacrebleu.corpus_bleu(
        [lex(text or "") for text in candidates],
        [[lex(text) for text in references]],
        tokenize="none",
        force=True,
    )
    return min(1.0, score.score / 100)


def exact_match(candidates: Sequence[str | None], references: Sequence[str]) -> float:
    """Share of candidates that equal their reference to the character, white space at ends aside.

    None stands for an answer that holds no code, and matches nothing.
    """
    _texts(candidates, references)
    pairs = zip(candidates, references, strict=True)
    return float(np.mean([c is not None and c.strip() == r.strip() for c, r in pairs]))


def mape(predicted: Sequence[float], actual: Sequence[float]) -> float:
    """Mean absolute percentage error, in percent of the actual values, which must not be zero."""
    predicted, actual = np.asarray(predicted, dtype=float), np.asarray(actual, dtype=float)
    if predicted.shape != actual.shape or not actual.size:
        raise InputError(f"{predicted.size} predictions for {actual.size} values: give one each")
    if (actual == 0).any():
        raise InputError("a value to predict is 0: its percentage error is undefined")
    return float(100 * np.mean(np.abs(predicted - actual) / np.abs(actual)))


def classify_error(message: str) -> str:
    """The class of Table V that a message of LLVM's parser or verifier belongs to.

    The paper gives the classes' names, not its rules, so the rules are ours: a use that its
    definition does not dominate is forward referenced, a wrong kind of literal an invalid constant,
    and an undefined `@name` a function, unless the line quoted with it does not call it. A phi that
    does not fit the blocks before its own is a class that the paper does not have.
    """
    undefined = re.search(r"use of undefined (?:value|comdat|metadata) '([^']*)'", message)
    if undefined:
        name = undefined.group(1)
        called = re.search(rf"\b(call|invoke)\b.*{re.escape(name)}", message)
        quoted = "\n" in message.strip()
        function = name.startswith("@") and (called or not quoted)
        return "undefined function" if function else "undefined value"
    for name, pattern in _MESSAGES:
        if re.search(pattern, message, re.IGNORECASE):
            return name
    return "other"
