"""The figures of the page on limits: they carry what they were given and name their axes."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from llmopt import plots, plots_limits, window
from llmopt.config import PROTOCOLS, InputError

SHARES = window.shares(
    pd.DataFrame({"id": ["a", "b"], "unoptimised": [10, 90], "oz": [5, 40], "coreset": [5, 30]}),
    pd.Series([100, 3000]),
)
RATES = pd.DataFrame(
    [(g, s, 10.0, 5.0, 30.0) for s in ("before", "after") for g in ("1–9", "10–90")],
    columns=["bin", "what", "percent", "low", "high"],
)
ROWS = pd.DataFrame(
    [(p, 10, 10 - k, 50, 50 + 30 * k) for p in PROTOCOLS for k in (-2, 1, 5)],
    columns=["protocol", "oz", "count", "oz_bytes", "bytes"],
)
SUMMARY = pd.DataFrame(
    [(p, m, w, 1.0, 0.5, 2.0) for p in PROTOCOLS for m in ("autotuner", "model")
     for w in ("instructions", "bytes")],
    columns=["protocol", "method", "measure", "percent", "low", "high"],
)  # fmt: skip
CURVE = pd.DataFrame(
    [(p, k, 1.0 * k, 0.5 * k, 2.0 * k) for p in PROTOCOLS for k in (1, 2, 3)],
    columns=["protocol", "lists", "percent", "low", "high"],
)
MARKS = pd.DataFrame(
    [(p, name, k, 2.0) for p in PROTOCOLS for name, k in (("model", 80), ("search", 50))],
    columns=["protocol", "label", "lists", "percent"],
)
FIGURES = {
    "beyond_window": ({"prompt": SHARES, "both": SHARES}, 2048),
    "rates": (RATES, "bin", "what"),
    "cost_by_tokens": (
        pd.DataFrame({"tokens": [90, 900], "asking": [50.0, 400.0], "-Oz": [1, 3]}),
    ),
    "bytes_against_instructions": (ROWS,),
    "two_measures": (SUMMARY,),
    "gain_for_compilations": (CURVE, MARKS),
}  # fmt: skip


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_named_axes_and_data(name):
    before = dict(plt.rcParams)
    drawn = getattr(plots_limits, name)(*FIGURES[name])
    drawn = drawn if isinstance(drawn, list) else [drawn]
    assert dict(plt.rcParams) == before
    drawn[0].figure.canvas.draw()  # every warning is an error
    assert all(axis.has_data() for axis in drawn)
    assert name == "rates" or all(axis.get_xlabel() for axis in drawn)  # the page says of what
    assert drawn[0].get_ylabel() or drawn[0].get_yticklabels()
    assert drawn[0].figure.get_size_inches()[0] <= plots.WIDTH


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_to_draw_is_bad_input(name):
    first, *rest = FIGURES[name]
    with pytest.raises(InputError, match="to draw"):
        getattr(plots_limits, name)(first[:0] if isinstance(first, pd.DataFrame) else {}, *rest)


def test_rates_keep_the_order_of_categories():
    table = RATES.astype({"bin": pd.CategoricalDtype(["1–9", "10–90", "never"], ordered=True)})
    axis = plots_limits.rates(table, "bin", "what")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1–9", "10–90", "never"]


def test_points_lie_where_their_savings_do():
    left, _ = plots_limits.bytes_against_instructions(ROWS)
    assert left.collections[0].get_offsets().tolist() == [[-2, 60], [1, -30], [5, -150]]
