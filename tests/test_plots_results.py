"""The figures of pages 05 to 09: they carry what they were given and name their axes."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from llmopt import baselines, display, evaluate, plots, plots_results, tables
from llmopt.config import PROTOCOLS, InputError

LOG = pd.DataFrame(
    {"step": [1, 2, 3], "tokens": [10, 20, 30], "loss": [6.0, 5.0, 4.5], "rate": [0.0, 3e-3, 1e-3],
     "valid_list": [np.nan, 2.0, 1.0], "valid_counts": [np.nan, 4.0, 3.0],
     "valid_code": [np.nan, 5.0, 4.0]}
)  # fmt: skip
ROWS = pd.DataFrame(
    [
        {"id": str(i), "protocol": protocol, "method": method, "oz": 10 + i, "count": 9 + i * j,
         "passes": "gvn", "compilations": 0, "status": "ok"}
        for i in range(4)
        for protocol in PROTOCOLS
        for j, method in enumerate((evaluate.AUTOTUNER, baselines.SINGLE, evaluate.MODEL))
    ]
)  # fmt: skip
CODE = pd.DataFrame(
    {"protocol": PROTOCOLS, "unoptimised": [9, 20], "count": [4, 11],
     "predicted_before": [9, 120_000], "predicted_after": [4, np.nan]}
)  # fmt: skip
LENGTHS = pd.DataFrame(
    {evaluate.AUTOTUNER: [0.9, 0.1], evaluate.MODEL: [1.0, 0.0]}, index=["-Oz", "1"]
)
FIGURES = {
    "vocabulary_tradeoff": (
        pd.DataFrame(
            {"cut": ["IR", "IR", "prose"], "vocabulary": [512, 1024, 512],
             "characters": [2.5, 3.5, 2.0]}
        ),
        2.02,
    ),
    "token_lengths": ({"short": [100, 3000], "long": [4000]}, 2048),
    "first_choice": (
        pd.DataFrame({"free": [0.01, 0.99], "held": [1.0, np.nan]}, index=["gvn", "other"]),
    ),
    "training_curves": (LOG,),
    "validation_curves": (
        LOG.assign(
            improvement_stripped=1.0, cautious_stripped=1.5, oz_share_minsize=90.0,
            compiles=[np.nan, 2.0, 3.0], mape_after=[900.0, 50.0, 9.0],
        ),
    ),  # fmt: skip
    "improvement_by_method": (tables.table(ROWS),),
    "list_lengths": ({protocol: LENGTHS for protocol in PROTOCOLS},),
    "memory_by_devices": (
        pd.DataFrame({"weights": [4.0, 2.0], "optimizer": [8.0, 4.0]}, index=[1, 2]),
        {"a device": 10.0},
    ),
    "loss_far_ahead": (
        {"plateau": pd.DataFrame({"tokens": [1e6, 2e6], "loss": [2.0, 1.5]})},
        pd.DataFrame({"tokens": [1e6, 1e9], "low": [1.9, 0.1], "best": [2, 1], "high": [2.1, 1.4]}),
        {"here": 1e7},
    ),
    "rate_by_size": (
        pd.DataFrame(
            [(g, p, 10.0, 0.0, 30.0) for g in ("1–9", "10–90") for p in PROTOCOLS],
            columns=["group", "protocol", "percent", "low", "high"],
        ),
    ),
    "error_classes": (
        pd.DataFrame({"stripped": [0.7, 0.3], "minsize": [1.0, 0.0], "the paper": [0.6, 0.1]},
                     index=["type error", "cut off"]),
    ),
    "predicted_counts": (CODE,),
    "improvement_by": (
        tables.table(ROWS.assign(suite="one"), by=("suite", "protocol", "method")),
        "suite", [evaluate.AUTOTUNER, evaluate.MODEL],
    ),
    "improvement_by_compilations": (
        pd.DataFrame(
            [(p, m, k, float(k), 1.0 + k) for p in PROTOCOLS for m in ("coreset", "model")
             for k in (1, 2)],
            columns=["protocol", "method", "tried", "compilations", "percent"],
        ),
        pd.DataFrame([(p, "autotuner", 54.0, 6.0) for p in PROTOCOLS],
                     columns=["protocol", "method", "compilations", "percent"]),
    ),
}  # fmt: skip


def drawer(name: str):
    return getattr(plots, name, None) or getattr(plots_results, name)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def axes(drawn: object) -> list:
    return drawn if isinstance(drawn, list) else [drawn]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_named_axes_and_data(name):
    before = dict(plt.rcParams)
    drawn = axes(drawer(name)(*FIGURES[name]))
    assert dict(plt.rcParams) == before
    figure = drawn[0].figure
    figure.canvas.draw()  # every warning is an error
    assert all(axis.get_xlabel() and axis.has_data() for axis in drawn)
    assert any(a.get_ylabel() or a.get_yticklabels() for a in figure.axes)
    assert figure.get_size_inches()[0] <= plots.WIDTH


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_to_draw_is_bad_input(name):
    first, *rest = FIGURES[name]
    with pytest.raises(InputError, match="to draw"):
        drawer(name)(first[:0] if isinstance(first, pd.DataFrame) else {}, *rest)


def test_lengths_say_what_fits():
    legend = plots.token_lengths(*FIGURES["token_lengths"]).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "short: 50.0% fit",
        "long: 0.0% fit",
    ]


def test_improvement_draws_the_table_s_numbers():
    table = FIGURES["improvement_by_method"][0]
    left, _ = plots.improvement_by_method(table)
    shot, backup = (line.get_xdata() for line in left.lines if line.get_marker() in "os")
    own = table[table.protocol == "stripped"]
    assert shot.tolist() == own.percent.tolist()
    assert backup.tolist() == own.with_oz_backup.tolist()
    assert [t.get_text() for t in left.get_yticklabels()] == list(own.method)


def test_tokens_are_shown_whole_and_escaped():
    body = display.show_tokens(["a <b>", "\n", "&"], "t").data
    assert "a &lt;b&gt;</span>" in body and "↵\n" in body and "&amp;" in body
    assert 'class="tok0"' in body and 'class="tok2"' in body
    with pytest.raises(InputError):
        display.show_tokens([])


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("style", "text"), [(display.LIGHT, "#1f2328"), (display.DARK, "#e6edf3")])
def test_shades_of_tokens_leave_them_readable(style, text):
    for shade in display.SHADES[style]:
        high, low = sorted((luminance(text), luminance(shade)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5
