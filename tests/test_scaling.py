"""Power laws: found where there is one, and left open where the points leave them open."""

import numpy as np
import pytest

from llmopt import scaling
from llmopt.config import InputError

X = np.geomspace(1e6, 1e8, 8)


def test_an_exact_law_is_found():
    best = scaling.laws(X, 0.5 + 40 * X**-0.3)[0]
    assert best.exponent == pytest.approx(0.3, rel=0.02)
    assert best.floor == pytest.approx(0.5, abs=0.03)
    assert best.at(1e9) == pytest.approx(0.5 + 40 * 1e9**-0.3, rel=0.02)


def noisy(seed):
    return 0.5 + 40 * X**-0.3 + np.random.default_rng(seed).normal(0, 0.02, len(X))


def test_noise_leaves_most_open_far_away():
    found = scaling.laws(X, noisy(0))
    near, far = (float(np.diff(scaling.spread(found, at), axis=0)[0]) for at in (1e7, 1e11))
    assert far > 3 * near > 0
    assert found == sorted(found, key=lambda law: law.misfit)


@pytest.mark.parametrize("at", [1e7, 1e10])
def test_the_spread_holds_the_truth_as_often_as_it_says(at):
    true, held = 0.5 + 40 * at**-0.3, 0
    for seed in range(60):
        low, high = scaling.spread(scaling.laws(X, noisy(seed)), at)
        held += low <= true <= high
    assert 0.85 <= held / 60 <= 1


def test_more_confidence_leaves_more_open():
    wide, narrow = (
        float(np.diff(scaling.spread(scaling.laws(X, noisy(1), share), 1e10), axis=0)[0])
        for share in (0.99, 0.5)
    )
    assert wide > narrow > 0


@pytest.mark.parametrize(
    "x, losses", [([1, 2, 3], [3, 2, 1]), ([1, 2], [1]), ([0, 1, 2, 3], [4, 3, 2, 1])]
)
def test_what_cannot_be_fitted_is_named(x, losses):
    with pytest.raises(InputError):
        scaling.laws(x, losses)
