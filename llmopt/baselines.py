"""What a model has to beat: one pass list for everything, and a choice by counting.

One fixed list costs no search and no model; with -Oz kept wherever it is better, it is the cheapest
alternative there is (DESIGN 4). `Features` chooses among the same lists as the model, from counts
of opcodes, loops and constants alone: what reading the code has to be better than. Both are written
beside the model that they are compared with (`save`, `load`).
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from llmopt import config, ir, passes, sandbox
from llmopt.config import PROTOCOLS, InputError
from llmopt.prompt import Example

SINGLE, FEATURES = "single-list", "features"  # as they are called in tables
List = tuple[str, ...]
# What names a list for each function's normalised IR under a protocol.
Chooser = Callable[[str, Sequence[str]], list[List]]


def single_list(
    functions: pd.DataFrame,
    labels: pd.DataFrame,
    protocol: str,
    executor: Executor | None = None,
    candidates: int = 24,
    sample: int = 400,
) -> tuple[str, ...]:
    """The list that saves most instructions over `functions` (columns `id`, `ir`), each kept only
    where it beats -Oz. Chosen among the lists that save most as labels of these functions.

    At most `sample` functions are tried, those with the smallest ids: ids are hashes.
    """
    labels = labels[(labels.protocol == protocol) & labels.id.isin(functions.id)]
    if labels.empty:
        raise InputError(f"no labels under {protocol} for these functions: run `llmopt autotune`")
    gains = (labels.oz - labels.best).groupby(labels.passes).sum()
    ranked = sorted(gains.index, key=lambda text: (-gains[text], text))
    lists = [passes.parse(text) for text in ranked if passes.parse(text) != passes.OZ][:candidates]
    if not lists:  # no search found anything: the nearest pipeline is as good a guess as any
        return ("-Os",)
    chosen = functions.sort_values("id").head(sample)
    oz = dict(zip(labels.id, labels.oz, strict=True))

    def gain(row: tuple[str, str]) -> list[int]:
        key, text = row
        runs = sandbox.shared().run(text, protocol, lists)
        return [max(0, int(oz[key]) - run.count) if run.ok else 0 for run in runs]

    rows = [(r.id, r.ir) for r in chosen.itertuples() if r.id in oz]
    with ThreadPoolExecutor(1) as alone:
        table = list((executor or alone).map(gain, rows))
    totals = [sum(column) for column in zip(*table, strict=True)]
    return min(zip(totals, lists, strict=True), key=lambda pair: (-pair[0], len(pair[1])))[1]


_OPCODE = re.compile(r"(?:%[-\w$.]+ = )?(?:(?:tail|musttail|notail) )?(\w+)")
_TARGET = re.compile(r"label %([-\w$.]+)")
_LABEL = re.compile(r"([-\w$.]+):")
_NUMBER = re.compile(r"(?<![%@\w.$-])-?\d+(?![\w.])")
_CALLEE = re.compile(r"@([-\w$.]+)\(")


def count_features(text: str) -> Counter[str]:
    """Counts of a function's normalised IR: each opcode, blocks, branches backwards (loops),
    comparisons with constants by size, constants by size, and calls of each intrinsic."""
    found: Counter[str] = Counter()
    for header, body in ir.bodies(text):
        found["parameters"] += header.count(" %")
        seen: set[str] = {"0"}
        for line in body:
            if label := _LABEL.match(line):
                seen.add(label[1])
                found["blocks"] += 1
                continue
            opcode = _OPCODE.match(line)[1]
            found[f"op {opcode}"] += 1
            found["instructions"] += 1
            found["loops"] += any(target in seen for target in _TARGET.findall(line))
            for number in _NUMBER.findall(line.split(", align ")[0]):
                size = min(len(str(abs(int(number)))), 4)
                found[f"digits {size}"] += 1
                if opcode in ("icmp", "getelementptr", "switch"):
                    found[f"{opcode} digits {size}"] += 1
            if opcode in ("call", "invoke") and (callee := _CALLEE.search(line)):
                name = callee[1] if callee[1].startswith("llvm.") else "other"
                found[f"call {'.'.join(name.split('.')[:2])}"] += 1
    return found


class Features:
    """Gradient boosting on `count_features`: the gain of each list is predicted, and the best taken
    where it promises more than `margin` instructions over -Oz.

    `lists` are the candidates under each protocol. Gains are cut at `most` instructions for the
    learning, so that a few functions do not decide everything.
    """

    def __init__(self, lists: Mapping[str, Sequence[tuple[str, ...]]], most: float = 30.0):
        self.lists = {p: [names for names in own if names != passes.OZ] for p, own in lists.items()}
        self.most = most
        self.margin: dict[str, float] = {}
        self.predictors: dict[str, list] = {}

    def fit(self, train: Sequence[Example], valid: Sequence[Example]) -> Features:
        """Learn gains from `train`, and from `valid` the margins that save most there."""
        from sklearn.ensemble import HistGradientBoostingRegressor
        from sklearn.feature_extraction import DictVectorizer

        if not any(e.gains for e in train):
            raise InputError("no gains to learn from: these examples come without a coreset")
        texts = {e.id: e.ir for e in train}
        self.vectors = DictVectorizer(sparse=False)
        rows = self.vectors.fit_transform([count_features(text) for text in texts.values()])
        row = {key: i for i, key in enumerate(texts)}
        for protocol, lists in self.lists.items():
            own = [e for e in train if e.protocol == protocol]
            x = rows[[row[e.id] for e in own]]
            known = [dict(e.gains) for e in own]
            self.predictors[protocol] = []
            for names in lists:
                y = np.clip([gains.get(names, 0) for gains in known], -self.most, self.most)
                learner = HistGradientBoostingRegressor(random_state=0)
                self.predictors[protocol].append(learner.fit(x, y))
            self.margin[protocol] = self._fit_margin(protocol, valid)
        return self

    def _fit_margin(self, protocol: str, valid: Sequence[Example]) -> float:
        own = [e for e in valid if e.protocol == protocol and e.gains]
        if not own or not self.lists[protocol]:
            return 3.0
        promised, best = self._promised(protocol, [e.ir for e in own])
        gains = [
            dict(e.gains).get(self.lists[protocol][i], 0) for i, e in zip(best, own, strict=True)
        ]
        steps = sorted(zip(promised, gains, strict=True), reverse=True)
        saved = np.cumsum([gain for _, gain in steps])
        return steps[int(saved.argmax())][0] if saved.max() > 0 else float(np.inf)

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        return self.vectors.transform([count_features(text) for text in texts])

    def _promised(self, protocol: str, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        x = self._vectors(texts)
        table = np.stack([learner.predict(x) for learner in self.predictors[protocol]], axis=1)
        return table.max(axis=1), table.argmax(axis=1)

    def choose(self, protocol: str, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """A list for each function's normalised IR."""
        if not len(texts) or not self.lists[protocol]:
            return [passes.OZ] * len(texts)
        promised, best = self._promised(protocol, texts)
        return [
            self.lists[protocol][i] if worth >= self.margin[protocol] else passes.OZ
            for worth, i in zip(promised, best, strict=True)
        ]


# --- beside a model ------------------------------------------------------------------------------


def save(folder: Path, single: Mapping[str, List], features: Features) -> None:
    """Write `baselines.json`, the fixed lists, and `features.skops`: scikit-learn's trees as
    arrays, without pickle. The first comes last: with it, both are there."""
    from skops import io

    parts = {
        "lists": {p: [passes.format(names) for names in own] for p, own in features.lists.items()},
        "most": features.most,
        "margin": features.margin,
        "vectors": features.vectors,
        "predictors": features.predictors,
    }
    path = folder / "features.skops"
    partial = path.with_name(f".partial-{path.name}")
    io.dump(parts, partial, compression=zipfile.ZIP_LZMA)
    partial.replace(path)
    lists = {SINGLE: {protocol: passes.format(names) for protocol, names in single.items()}}
    text = json.dumps(lists, indent=1) + "\n"
    config.write_atomic(folder / "baselines.json", text.encode())


def load(folder: Path) -> dict[str, Chooser]:
    """The baselines that were recorded beside a model, by name.

    Raises `InputError` that names the file where one is missing or damaged.
    """
    path = Path(folder) / "baselines.json"
    try:
        recorded = json.loads(path.read_text())[SINGLE]
        single = {protocol: passes.parse(recorded[protocol]) for protocol in PROTOCOLS}
        path = path.with_name("features.skops")
        features = _read_features(path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: no usable baselines beside the model ({error}); name a folder that "
            "`llmopt train` made"
        ) from None
    return {
        SINGLE: lambda protocol, texts: [single[protocol]] * len(texts),
        FEATURES: features.choose,
    }


def _read_features(path: Path) -> Features:
    from skops import io

    # The one type that skops does not vouch for itself; anything else in a file is refused.
    trees = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
    parts = io.load(path, trusted=[trees])
    lists = {p: [passes.parse(text) for text in own] for p, own in parts["lists"].items()}
    features = Features(lists, parts["most"])
    features.margin, features.vectors = parts["margin"], parts["vectors"]
    features.predictors = parts["predictors"]
    return features
