"""Power laws of a loss, `floor + factor * x ** -exponent`, with all that a few points leave open.

One best curve through a few points says nothing about how far it may be trusted. So every law is
returned that the points do not rule out; their spread at a larger `x` is what an extrapolation is
worth at best, since that the law goes on at all is assumed. What is drawn is in `plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.stats import f as fisher

from llmopt.config import InputError

EXPONENTS = np.geomspace(0.01, 3, 200)
AROUND = np.linspace(0, 2 * np.pi, 32, endpoint=False)  # directions from the best floor and factor


@dataclass(frozen=True)
class Law:
    """`floor + factor * x ** -exponent`, and the sum of its squared misses at the points."""

    floor: float
    factor: float
    exponent: float
    misfit: float

    def at(self, x: float | np.ndarray) -> float | np.ndarray:
        return self.floor + self.factor * np.asarray(x, float) ** -self.exponent


def laws(x: Sequence[float], losses: Sequence[float], confidence: float = 0.95) -> list[Law]:
    """All laws that the points leave open, the best first.

    For each of `EXPONENTS` there is a best floor and factor, none below zero, and around it an
    ellipse of others that an F test against the best of all does not reject: its rim is returned,
    so that `spread` is a profile-likelihood interval. The test takes the misses as independent and
    equally large; neighbouring points of one run are not, and the true spread is wider. Raises
    `InputError` on fewer than four points, on points that are not paired, and where `x` is not
    above zero.
    """
    x, losses = np.asarray(x, float), np.asarray(losses, float)
    if x.shape != losses.shape or x.ndim != 1:
        raise InputError(f"{x.size} places and {losses.size} losses: pass one loss a place")
    if len(x) < 4:
        raise InputError(f"a power law has three unknowns: {len(x)} points do not test it, pass 4")
    if x.min() <= 0 or not np.isfinite([x, losses]).all():
        raise InputError("a power law of points at or below zero, or not finite: leave them out")
    middle = np.exp(np.log(x).mean())  # near 1, powers stay well conditioned

    def law(pair: np.ndarray, exponent: float, misfit: float) -> Law:
        return Law(pair[0], pair[1] * middle**exponent, float(exponent), float(misfit))

    designs = [np.column_stack([np.ones_like(x), (x / middle) ** -power]) for power in EXPONENTS]
    centres = [nnls(design, losses) for design in designs]
    best = min(miss for _, miss in centres) ** 2
    free = len(x) - 3
    room = best * (1 + fisher.ppf(confidence, 1, free) / free) + 1e-12
    found = []
    for exponent, design, (pair, miss) in zip(EXPONENTS, designs, centres, strict=True):
        if miss**2 <= room:
            found.append(law(pair, exponent, miss**2))
        (centre, *_), whole = np.linalg.lstsq(design, losses, rcond=None), design.T @ design
        left = room - float(((design @ centre - losses) ** 2).sum())
        if left > 0:
            circle = np.stack([np.cos(AROUND), np.sin(AROUND)])
            rim = centre[:, None] + np.sqrt(left) * np.linalg.solve(
                np.linalg.cholesky(whole).T, circle
            )
            found += [law(pair, exponent, room) for pair in rim.T if pair.min() >= 0]
    return sorted(found, key=lambda law: law.misfit)


def spread(found: Sequence[Law], x: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value that the laws give at each of `x`."""
    values = np.array([law.at(x) for law in found])
    return values.min(axis=0), values.max(axis=0)
