"""The figures of the results' pages, in the book's style (`plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from llmopt.plots import COLOURS, GREY, SERIES, improvement_rows, legend_above, need, panels, styled

if TYPE_CHECKING:
    import pandas as pd


@styled
def improvement_by(table: pd.DataFrame, column: str, methods: Sequence[str]) -> list[Axes]:
    """Improvement over -Oz in one shot with 95% intervals, a panel a protocol, a row a group of
    functions: the values of `column` in a `tables.table`, in their order; a mark a method."""
    need(table, "groups")
    groups = list(dict.fromkeys(table[column]))
    axes = panels(list(dict.fromkeys(table.protocol)), 1.3 + 0.42 * len(groups), sharex=True)
    for axis in axes:
        rows = table[table.protocol == axis.get_title()]
        by_method = {name: rows[rows.method == name] for name in methods}
        series = [
            (name, own[column], own.percent, own.interval.str[0], own.interval.str[1])
            for name, own in by_method.items()
        ]
        improvement_rows(axis, groups, series, spread=0.48, size=4.5)
    return legend_above(axes)


# A look for each method that tries several lists; the model's are drawn thicker.
TRIES = {
    "random": {"color": GREY, "linestyle": ":"},
    "coreset": {"color": COLOURS[1], "linestyle": "--"},
    "coreset-nvp": {"color": COLOURS[2], "linestyle": "-."},
    "autophase": {"color": COLOURS[4], "linestyle": ":"},
    "model": {"color": COLOURS[0], "linestyle": "-"},
    "priority": {"color": COLOURS[9], "linestyle": "-"},
    "nucleus": {"color": COLOURS[7], "linestyle": "--"},
}


@styled
def improvement_by_compilations(curves: pd.DataFrame, points: pd.DataFrame) -> list[Axes]:
    """Improvement over -Oz against compilations a function (`trials.curves`), a panel a protocol
    and a line a method; `points` (columns `protocol method compilations percent`) are methods that
    are no curves."""
    need(curves, "curves")
    axes = panels(list(dict.fromkeys(curves.protocol)), 4.0)
    for axis in axes:
        rows = curves[curves.protocol == axis.get_title()]
        for method, look in TRIES.items():
            own = rows[rows.method == method]
            if len(own):
                wide = 2.2 if method == "model" else 1.4
                axis.plot(own.compilations, own.percent, label=method, linewidth=wide, **look)
                axis.plot(*own[["compilations", "percent"]].iloc[0], "o", color=look["color"],
                          markersize=3.5)  # fmt: skip
        own = points[points.protocol == axis.get_title()]
        for row, look in zip(own.itertuples(), reversed(SERIES), strict=False):
            axis.plot(row.compilations, row.percent, look["marker"], color=look["color"],
                      markersize=6, label=row.method)  # fmt: skip
        axis.axhline(0, color=GREY, linewidth=1)
        axis.set(xscale="log", xlabel="compilations a function")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_major_formatter(PercentFormatter(decimals=None))
    axes[0].set_ylabel("improvement over -Oz")
    return legend_above(axes, ncols=5)
