"""Prompt and answer: what the model reads, what it is to write, and how its writing is read back.

    <|input|>define i32 @f0(i32 %0) …<|minsize|>
    <|passes|><|sroa<modify-cfg>|><|-Oz|><|before|>12<|after|>5<|code|>define … <|end|>

As in the paper (Section II-A, Figure 1) the pass list comes first, so that deployment can stop
after it; both instruction counts and the optimised code are auxiliary tasks. The protocol comes
after the function, so that one reading of the function serves both. IR is shortened first, exactly
reversibly (`shorten`), and code is written in the prompt's names (`naming`). This module neither
runs a model nor judges generated code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmopt import ir, naming, passes
from llmopt.config import InputError, check_protocol
from llmopt.tokenizer import AFTER, BEFORE, CODE, END, INPUT, PASSES, Tokenizer, mark

TASKS = ("list", "counts", "code")  # the paper's three: the first is used, the others help it
NO_ROOM = "does not fit the model's context"  # what the error of such an answer says
_MARK = re.compile(r"<\|([^|]*)\|>")
# The alignment that nearly every access to a scalar has on x86-64, and such an access.
_ALIGNED = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "ptr": 8, "float": 4, "double": 8}
_ACCESS = re.compile(
    rf"^((?:%[-\w$.]+ = )?(?:load|store|alloca) (?:volatile )?({'|'.join(_ALIGNED)})\b.*?)"
    r"(?:, align (\d+))?$",
    re.MULTILINE,
)
Part = tuple[bool, str]  # (is it a mark?, text): text is never searched for marks


@dataclass(frozen=True)
class Example:
    """One training example: a function, its best pass list, and what LLVM makes of it.

    `ir` and `optimised` are normalised IR, before and after the list, the latter in the former's
    names (`naming.optimise`); `before` and `after` are their instruction counts, and `oz` that
    after -Oz. `gains` are lists, -Oz the first, with the
    instructions that each saves against -Oz: what a choice among them is worth. Without any, the
    best list is all that is known.
    """

    id: str
    protocol: str
    ir: str
    passes: tuple[str, ...]
    before: int
    after: int
    optimised: str
    oz: int = 0
    gains: tuple[tuple[tuple[str, ...], int], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What could be read of an answer. Parts that are missing or unreadable are None, and `error`
    then says what was wrong first; a list that stands is a valid one (`passes.check`)."""

    passes: tuple[str, ...] | None = None
    before: int | None = None
    after: int | None = None
    code: str | None = None
    error: str | None = None


_LABEL = re.compile(r"^(%*[-\w$.]+:)$", re.MULTILINE)
_MARKED = re.compile(r"^%(%*[-\w$.]+:)$", re.MULTILINE)


def shorten(text: str) -> tuple[str, dict[str, str]]:
    """Normalised IR as the model reads it: symbols and types have short names (`ir.rename`),
    `, align N` is left out of a scalar's load, store and alloca where N is the scalar's size, and a
    block is called `%9:`, as where it is jumped to.

    Returns the short text and `{short name: the program's own}`; `lengthen` is the exact inverse.
    """
    renamed, names = ir.rename(text)
    return _shorten(renamed), names


def shorten_alike(text: str, names: dict[str, str]) -> str:
    """Normalised IR that was made of another with the `names` which that got from `shorten`."""
    short = {own: short for short, own in names.items()}
    return _shorten(ir.substitute(text, short))


def lengthen(short: str, names: dict[str, str]) -> str:
    """The inverse of `shorten`, for what was read and for what a model wrote."""
    return ir.restore(_MARKED.sub(r"\1", _ACCESS.sub(_with_usual, short)), names)


def _shorten(renamed: str) -> str:
    return _LABEL.sub(r"%\1", _ACCESS.sub(_without_usual, renamed))


def _without_usual(access: re.Match) -> str:
    rest, scalar, align = access.groups()
    if align is None or not align.strip("0"):  # no IR has 0: it marks what had no alignment
        return f"{rest}, align 0{align or ''}"
    return rest if align == str(_ALIGNED[scalar]) else access[0]


def _with_usual(access: re.Match) -> str:
    rest, scalar, align = access.groups()
    if align is None:
        return f"{rest}, align {_ALIGNED[scalar]}"
    if align.strip("0"):
        return access[0]
    return f"{rest}, align {align[1:]}" if align[1:] else rest


def _prompt(short: str, protocol: str) -> list[Part]:
    return [(True, INPUT), (False, short), (True, mark(check_protocol(protocol)))]


def _list(names: Iterable[str]) -> list[Part]:
    return [(True, PASSES), *((True, mark(name)) for name in passes.check(names)), (True, BEFORE)]


def _answer(example: Example, names: dict[str, str], tasks: Sequence[str] = TASKS) -> list[Part]:
    """The answer's parts; tasks that are left out leave their marks. The list is always there:
    counts and code are about it."""
    counts = [str(example.before), str(example.after)] if "counts" in tasks else ["", ""]
    parts = [*_list(example.passes), (False, counts[0]), (True, AFTER), (False, counts[1])]
    parts += [(True, CODE)]
    if "code" in tasks:
        parts += [(False, shorten_alike(example.optimised, names)), (True, END)]
    return parts


def _text(parts: Iterable[Part]) -> str:
    return "".join(text for _, text in parts)


def _ids(parts: Iterable[Part], tokenizer: Tokenizer) -> list[int]:
    return [
        number
        for is_mark, text in parts
        for number in ([tokenizer.ids[text]] if is_mark else tokenizer.encode(text))
    ]


def render_prompt(text: str, protocol: str) -> tuple[str, dict[str, str]]:
    """The prompt for one function's normalised IR, and `{short name: the program's own}`."""
    short, names = shorten(text)
    return _text(_prompt(short, protocol)), names


def render_answer(example: Example, names: dict[str, str]) -> str:
    """The answer that the model is to learn, in the short names of `render_prompt`."""
    return _text(_answer(example, names))


def encode_prompt(text: str, protocol: str, tokenizer: Tokenizer) -> tuple[list[int], dict]:
    """`render_prompt` as token ids, with the same names. The last id is the protocol's; those
    before it are the same under both."""
    short, names = shorten(text)
    return _ids(_prompt(short, protocol), tokenizer), names


def encode_list(names: Iterable[str], tokenizer: Tokenizer) -> list[int]:
    """The ids of an answer up to its first count: the list between its two marks."""
    return _ids(_list(names), tokenizer)


def encode_answer(
    example: Example, names: dict[str, str], tokenizer: Tokenizer, tasks: Sequence[str] = TASKS
) -> list[int]:
    """`render_answer` as token ids, of the `tasks` that are asked for."""
    return _ids(_answer(example, names, tasks), tokenizer)


def encode(example: Example, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Token ids of prompt and answer, and how many of them are the prompt's."""
    prompt, names = encode_prompt(example.ir, example.protocol, tokenizer)
    return prompt + encode_answer(example, names, tokenizer), len(prompt)


def length(example: Example, tokenizer: Tokenizer) -> int:
    """Tokens of prompt and answer together: what the context (2,048 in the paper) must hold."""
    return len(encode(example, tokenizer)[0])


def parse_answer(text: str, names: dict[str, str]) -> Answer:
    """Read generated text; never raises, whatever the text.

    Code gets the program's own names and LLVM's numbers back. Everything after the code mark is
    code, up to one end mark at its very end, so a string constant that reads like a mark does no
    harm. An answer that
    stops right after its list (deployment) is one without an error.
    """
    head, code_mark, code = text.partition(CODE)
    listed, before_mark, counts = head.partition(BEFORE)
    if not listed.startswith(PASSES) or not before_mark:
        return Answer(error="no pass list")
    inside = listed.removeprefix(PASSES)
    chosen = tuple(_MARK.findall(inside))
    if _MARK.sub("", inside) or not chosen:
        return Answer(error="the pass list is empty or holds text")
    try:
        passes.check(chosen)
    except InputError as error:
        return Answer(error=str(error))
    if not counts and not code_mark:
        return Answer(passes=chosen)
    before, after_mark, after = counts.partition(AFTER)
    before, after = _number(before), _number(after)
    error = None
    if before is None or after is None:
        error = "no count before" if before is None else "no count after"
    if not code_mark:
        return Answer(chosen, before, after, error=error or "no code")
    if not code.endswith(END):
        error = error or "the code is cut off"
    code = naming.numbered(lengthen(code.removesuffix(END), names))
    return Answer(chosen, before, after, code, error)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else None
