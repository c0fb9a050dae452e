"""Figures carry what they were given, name their axes, and leave the caller's settings alone."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from llmopt import plots
from llmopt.config import InputError

STEPS = pd.DataFrame(
    {"step": [0, 1], "pass": ["(none)", "gvn"], "instructions": [9, 4], "change": [0, -5]}
)
FIGURES = {
    "counts_by_level": (pd.DataFrame({"none": [9, 5], "-Oz": [4, 5]}, index=["f", "g"]),),
    "size_against_count": ({"-Oz": [9, 40]}, {"-Oz": [30, 150]}),
    "counts_of_orders": ([4, 4, 5], {"-Oz": 6}),
    "counts_by_pass": ({"stripped": STEPS, "minsize": STEPS}, {"stripped": 3, "minsize": 2}),
    "size_distribution": ({"train": [3, 5, 90], "test": [4]},),
    "functions_by_suite": (
        pd.DataFrame({"train": [9, 4], "valid": [0, 1], "test": [2, 0]}, index=["games", "audio"]),
    ),
    "gain_against_compilations": (
        pd.DataFrame(
            [(p, m, n, n / 10, 0.0, n / 5) for p in plots.LOOKS for m in "ab" for n in (10, 20)],
            columns=["protocol", "method", "compilations", "percent", "low", "high"],
        ),
    ),
    "headroom": (
        pd.DataFrame(
            [("all", "stripped", 2.0, 1.0, 4.0), ("all", "minsize", 1.0, 0.5, 1.5)],
            columns=["group", "protocol", "percent", "low", "high"],
        ),
    ),
    "concentration": ({"stripped": [9, 0, 1, 1], "minsize": [1, 0, 0, 0]},),
    "list_frequency": (
        pd.DataFrame({"stripped": [0.3, 0.1], "minsize": [0, 0.2]}, index=["gvn", "adce"]),
    ),
    "headroom_by_size": (
        pd.DataFrame(
            [(g, p, 2.0, 1.0, 4.0) for g in ("1–10", "over 10") for p in plots.LOOKS],
            columns=["group", "protocol", "percent", "low", "high"],
        ),
    ),
    "lists_needed": (
        pd.DataFrame(
            [(p, n + 1, share) for p in plots.LOOKS for n, share in enumerate((0.5, 0.95, 1.0))],
            columns=["protocol", "lists", "share"],
        ),
    ),
}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def axes(drawn: object) -> list:
    return drawn if isinstance(drawn, list) else [drawn]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_named_axes_and_data(name):
    before = dict(plt.rcParams)
    drawn = axes(getattr(plots, name)(*FIGURES[name]))
    assert dict(plt.rcParams) == before
    figure = drawn[0].figure
    figure.canvas.draw()  # every warning is an error
    for axis in drawn:
        assert axis.get_xlabel() or axis.get_title(), "what is on the horizontal axis?"
        assert axis.has_data()
    assert any(a.get_ylabel() or a.get_yticklabels() for a in figure.axes)
    assert figure.get_size_inches()[0] <= plots.WIDTH


def test_figures_show_the_numbers():
    axis = plots.counts_by_level(*FIGURES["counts_by_level"])
    assert [text.get_text() for text in axis.texts] == ["9", "4", "5", "5"]
    axis = plots.counts_of_orders(*FIGURES["counts_of_orders"])
    assert [bar.get_height() for bar in axis.patches] == [2, 1]
    left, right = plots.counts_by_pass(*FIGURES["counts_by_pass"])
    assert [t.get_text() for t in left.get_yticklabels()] == ["(none)", "gvn"]
    assert [bar.get_width() for bar in right.patches] == [9, 4]


def test_concentration_tells_how_many_hold_half():
    axis = plots.concentration(*FIGURES["concentration"])
    assert "1 of 4 functions hold half" in axis.get_legend().get_texts()[0].get_text()


def test_curves_without_intervals_have_no_band():
    curves = FIGURES["gain_against_compilations"][0]
    bands = [
        sum(len(axis.collections) for axis in plots.gain_against_compilations(table))
        for table in (curves, curves.drop(columns=["low", "high"]))
    ]
    assert bands == [4, 0]


def test_lists_needed_says_how_many():
    axis = plots.lists_needed(*FIGURES["lists_needed"])
    assert [text.get_text() for text in axis.texts] == ["2", "3", "2", "3"]


def test_headroom_draws_intervals():
    axis = plots.headroom(*FIGURES["headroom"])
    ends = [c.get_segments()[0][:, 0].tolist() for c in axis.collections]
    assert [1.0, 4.0] in ends and [0.5, 1.5] in ends


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_to_draw_is_bad_input(name):
    empty = [arg[:0] if isinstance(arg, pd.DataFrame) else type(arg)() for arg in FIGURES[name]]
    with pytest.raises(InputError, match="to draw"):
        getattr(plots, name)(*empty)


def test_the_protocols_differ_without_colour():
    one, other = plots.LOOKS.values()
    assert all(one[key] != other[key] for key in ("marker", "linestyle", "hatch"))
