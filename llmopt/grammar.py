"""The form of an answer, as an automaton: which tokens may follow those that were written.

A pass list is one or more passes of the search space, a meta flag at most once; then come the two
counts in digits, and then code, which is free text. Whatever a model's weights, what is decoded
under the grammar can be read and its list be run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from llmopt import passes
from llmopt.tokenizer import AFTER, BEFORE, CODE, END, Tokenizer

MAX_PASSES = 10  # the longest list that the paper's model wrote
MAX_DIGITS = 6


class State(NamedTuple):
    """Where an answer is: the mark that opened its part (that of the list at first), how many
    tokens of the part are written, and whether the list has its meta flag."""

    part: int | None = None
    written: int = 0
    meta: bool = False


class Grammar:
    """The automaton over a tokenizer's ids, from the list's mark on."""

    def __init__(self, tok: Tokenizer, max_passes: int = MAX_PASSES):
        self.max_passes = max_passes
        self.before, self.after, self.code = (tok.ids[name] for name in (BEFORE, AFTER, CODE))
        self.passes = sorted(tok.pass_ids)
        self.metas = {number for number, name in tok.pass_ids.items() if name in passes.META}
        self.digits = tok.digit_ids
        self.text = sorted((set(range(len(tok))) - set(tok.marks)) | {tok.ids[END]})
        self._masks: dict[State, torch.Tensor] = {}
        self._vocabulary = len(tok)

    def step(self, state: State, token: int) -> State:
        """The state after one more token."""
        if token in (self.before, self.after, self.code):
            return State(token)
        if state.part == self.code:
            return state
        return State(state.part, state.written + 1, state.meta or token in self.metas)

    def walk(self, tokens: Iterable[int]) -> State:
        """The state after all of an answer's `tokens`."""
        state = State()
        for token in tokens:
            state = self.step(state, token)
        return state

    def allowed(self, state: State) -> list[int]:
        """The ids that may come next."""
        if state.part == self.code:
            return self.text
        if state.part is None:
            if state.written >= self.max_passes:
                return [self.before]
            more = [n for n in self.passes if n not in self.metas] if state.meta else self.passes
            return [*more, self.before] if state.written else more
        following = self.after if state.part == self.before else self.code
        if state.written >= MAX_DIGITS:
            return [following]
        return [*self.digits, following] if state.written else self.digits

    def mask(self, states: Sequence[State]) -> torch.Tensor:
        """True where an id may come next, (states, vocabulary)."""
        for state in set(states) - self._masks.keys():
            self._masks[state] = torch.zeros(self._vocabulary, dtype=torch.bool)
            self._masks[state][self.allowed(state)] = True
        return torch.stack([self._masks[state] for state in states])
