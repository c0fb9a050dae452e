"""Values that keep their names through optimisation, so that an answer can speak of the prompt.

LLVM numbers what has no name in the order of printing: after a pass each `%12` is another one, and
who writes the result has to count. If the values get names first, passes hand them on: what is left
of `%12` is called `%12` again. `optimise` returns such a text, in which only what a pass made anew
has a new name: `%n0`, `%n1` …, or `%12.lcssa` and the like where LLVM derives it from an old one.
`numbered` gives it LLVM's own numbers, to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from llmopt import ir, llvm, passes
from llmopt.config import InputError

_WORD = r"[-\w$.]+"
_LOCAL = re.compile(rf'(?P<string>"[^"]*")|%(?P<use>{_WORD})|^(?P<label>{_WORD}):', re.MULTILINE)
_TYPE = re.compile(rf"^%({_WORD}) = type ", re.MULTILINE)
_PARAMETER = re.compile(rf"(?<=\s)%({_WORD})(?=[,)])")
_DEFINED = re.compile(rf"(?:%({_WORD}) = |({_WORD}):)")
_DERIVED = re.compile(rf"v(\d+(?:\.{_WORD})?)$")
_CHUNK = 64  # functions that a worker is given at a time
Item = tuple[str, str, tuple[str, ...]]


def _parameters(header: str) -> list[str]:
    return _PARAMETER.findall(header)


def _rename(text: str, new) -> str:
    """`new(name)` for each %name and label, strings aside."""

    def changed(match: re.Match) -> str:
        if match["string"]:
            return match[0]
        return f"%{new(match['use'])}" if match["use"] else f"{new(match['label'])}:"

    return _LOCAL.sub(changed, text)


def _definitions(text: str) -> Iterator[tuple[bool, str]]:
    """The text in pieces: (is it a definition?, the piece)."""
    at = 0
    for match in re.finditer(r"^define .*?^}$", text, re.MULTILINE | re.DOTALL):
        yield False, text[at : match.start()]
        yield True, match[0]
        at = match.end()
    yield False, text[at:]


def _in_definitions(text: str, change) -> str:
    types = set(_TYPE.findall(text))
    return "".join(change(part, types) if inside else part for inside, part in _definitions(text))


def named(normalised: str) -> str:
    """The IR with values and blocks that are called `v12` where it has the number 12, its entry
    block too. Raises `InputError` where types have numbers, which look like values'."""
    if any(name.isdigit() for name in _TYPE.findall(normalised)):
        raise InputError("types without names: their numbers look like values'")

    def change(part: str, types: set[str]) -> str:
        part = _rename(part, lambda name: f"v{name}" if name.isdigit() else name)
        header, body = part.split("\n", 1)
        return f"{header}\nv{len(_parameters(header))}:\n{body}"

    return _in_definitions(normalised, change)


def _as_answer(part: str, types: set[str]) -> str:
    """One definition in names of the prompt's: `%v12` is `%12`, what is new is `%n0` and so on. The
    entry block's label is left out, as LLVM does; its number follows from the parameters."""
    header, first, *rest = part.split("\n")
    entry = str(len(_parameters(header)))
    given: dict[str, str] = {}
    if first.endswith(":") and _DEFINED.match(first):
        given[first[:-1]] = entry
    else:
        rest = [first, *rest]
    taken, made = {entry}, 0

    def new(name: str) -> str:
        nonlocal made
        if name in types:
            return name
        if name not in given:
            derived = _DERIVED.match(name)
            if derived and derived[1] not in taken:
                given[name] = derived[1]
            else:
                given[name], made = f"n{made}", made + 1
            taken.add(given[name])
        return given[name]

    return _rename("\n".join([header, *rest]), new)


def numbered(text: str) -> str:
    """The text with LLVM's numbers, whoever wrote it; never raises. What is used and nowhere
    defined keeps a name that LLVM will not find."""

    def change(part: str, types: set[str]) -> str:
        lines = part.split("\n")
        parameters = _parameters(lines[0])
        order = {name: i for i, name in enumerate(parameters)}
        order.setdefault(str(len(parameters)), len(order))
        for line in lines[1:]:
            found = _DEFINED.match(line)
            if found:
                order.setdefault(found[1] or found[2], len(order))

        def new(name: str) -> str:
            if name in types:
                return name
            if name in order:
                return str(order[name])
            return f"v{name}" if name[0].isdigit() else name

        return _rename(part, new)

    return _in_definitions(text, change)


def optimise(normalised: str, protocol: str, names: Sequence[str]) -> str:
    """What LLVM makes of a function by a list, normalised, in names of the function's own.

    Runs in this process, so only lists that are known to do no harm here. Raises `InputError`.
    """
    with llvm.Module(named(normalised), protocol) as module:
        module.run(passes.pipeline(tuple(names)))
        return _in_definitions(ir.normalise(module.text()), _as_answer)


def _optimise_all(items: Sequence[Item]) -> list[str | None]:
    made: list[str | None] = []
    for item in items:
        try:
            made.append(optimise(*item))
        except InputError:
            made.append(None)
    return made


def optimise_all(items: Sequence[Item], workers: int) -> Iterator[str | None]:
    """`optimise` of (normalised IR, protocol, list), in order, in processes of their own; None
    where it fails, and for the whole chunk where a process dies."""
    chunks = [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]
    while chunks:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(_optimise_all, chunk) for chunk in chunks]
            done = 0
            try:
                for future in futures:
                    yield from future.result()
                    done += 1
            except BrokenProcessPool:  # by this chunk or one beside it: this one is given up
                yield from [None] * len(chunks[done])
                done += 1
        chunks = chunks[done:]
