"""Coreset-NVP: a learned value of each list of a coreset; the most promising is tried first.

Liang et al. (*Learning Compiler Pass Orders using Coreset and Normalized Value Prediction*, ICML
2023) value the lists of a coreset with a graph neural network that reads a program's graph, and try
them in that order. The values here are normalised as theirs are, by what can be saved; what reads
the program is simpler: a multi-layer perceptron over counts (`baselines.count_features`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmopt import passes
from llmopt.baselines import count_features
from llmopt.config import InputError, write_atomic

List = tuple[str, ...]
HIDDEN = (128, 64)


@dataclass(frozen=True)
class Values:
    """What lists are worth to a function: `predict` says, `rank` puts them in order.

    `features` names the counts, in order; `centre` and `spread` are of their logarithms; `layers`
    are the perceptron's weights (inputs, outputs) and biases.
    """

    lists: tuple[List, ...]
    features: tuple[str, ...]
    centre: np.ndarray
    spread: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The value of each list (functions, lists): 1 for the best that can be had, 0 for -Oz."""
        x = (_logarithms(texts, self.features) - self.centre) / self.spread
        *hidden, (weights, biases) = self.layers
        for inner, shift in hidden:
            x = np.maximum(x @ inner + shift, 0)
        return x @ weights + biases

    def rank(self, text: str) -> list[List]:
        """The lists in the order in which to try them on a function's normalised IR."""
        order = np.argsort(-self.predict([text])[0], kind="stable")
        return [self.lists[i] for i in order]

    def save(self, path: Path) -> None:
        """One file: weights as safetensors, the names in its header."""
        from safetensors.numpy import save

        tensors = {"centre": self.centre, "spread": self.spread}
        for i, (weights, biases) in enumerate(self.layers):
            tensors |= {f"weights{i}": np.ascontiguousarray(weights), f"biases{i}": biases}
        about = {
            "lists": [passes.format(names) for names in self.lists],
            "features": self.features,
        }
        single = {key: value.astype(np.float32) for key, value in tensors.items()}
        # One entry, as the order of several would differ from run to run.
        write_atomic(path, save(single, metadata={"values": json.dumps(about)}))


def load(path: Path) -> Values:
    """Saved values. Raises `InputError` that names the file if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()["values"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        layers = range((len(tensors) - 2) // 2)
        values = Values(
            tuple(map(passes.parse, about["lists"])),
            tuple(about["features"]),
            tensors["centre"],
            tensors["spread"],
            tuple((tensors[f"weights{i}"], tensors[f"biases{i}"]) for i in layers),
        )
        if values.predict([""]).shape != (1, len(values.lists)):
            raise ValueError("the weights do not fit the lists")
        return values
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(
            f"{path}: no usable values of lists ({error}); `llmopt train --rivals` makes them"
        ) from None


def fit(texts: Sequence[str], saved: np.ndarray, lists: Sequence[List], seed: int = 0) -> Values:
    """Learn from functions (normalised IR) what each list saved of them: `saved` (functions,
    lists) in instructions beyond -Oz, NaN where LLVM failed on a list.

    Only functions on which some list beats -Oz teach anything: which to try first.
    """
    from sklearn.neural_network import MLPRegressor

    most = np.nanmax(np.nan_to_num(saved, nan=-np.inf), axis=1, initial=0)
    useful = most > 0
    if not useful.any():
        raise InputError("no list beats -Oz on any of these functions: take more of them")
    texts = [text for text, keep in zip(texts, useful, strict=True) if keep]
    # What a list loses counts no more than what the best one wins.
    values = np.nan_to_num(saved[useful] / most[useful, None], nan=-1.0).clip(-1, 1)
    features = tuple(sorted({name for text in texts for name in count_features(text)}))
    x = _logarithms(texts, features)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread < 1e-6] = 1  # counts that are the same everywhere
    learner = MLPRegressor(
        hidden_layer_sizes=HIDDEN,
        early_stopping=len(texts) >= 100,
        alpha=1e-2,
        max_iter=2000,
        random_state=seed,
    )
    learner.fit((x - centre) / spread, values)
    layers = tuple(zip(learner.coefs_, learner.intercepts_, strict=True))
    return Values(tuple(lists), features, centre, spread, layers)


def _logarithms(texts: Sequence[str], features: Sequence[str]) -> np.ndarray:
    counts = [count_features(text) for text in texts]
    return np.log1p([[float(own[name]) for name in features] for own in counts])
