"""The figures of the page on limits, in the book's style (`plots`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from llmopt.plots import (
    COLOURS,
    GREY,
    LOOKS,
    SERIES,
    WIDTH,
    improvement_rows,
    legend_above,
    line,
    need,
    panels,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd


@styled
def beyond_window(tables: Mapping[str, pd.DataFrame], used: int) -> list[Axes]:
    """What lies beyond a context window, against its length, a panel a thing that it has to hold
    and a line a measure, with 95% bands (`window.shares`); dotted, the window in use."""
    need(tables, "windows")
    axes = panels(list(tables), 3.3)
    for axis, table in zip(axes, tables.values(), strict=True):
        for look, (name, rows) in zip(SERIES, table.groupby("measure", sort=False), strict=False):
            axis.fill_between(rows.window, rows.low, rows.high, color=look["color"], alpha=0.15,
                              linewidth=0)  # fmt: skip
            axis.plot(rows.window, rows.percent, label=name, markersize=4, **line(look))
        axis.axvline(used, color=GREY, linestyle=":", linewidth=1.2)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(dict.fromkeys(table.window))[::2])
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.minorticks_off()
        axis.set(xlabel="window (tokens)")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("share beyond the window")
    axes[0].yaxis.set_major_formatter(PercentFormatter())
    return legend_above(axes)


@styled
def rates(table: pd.DataFrame, group: str, series: str) -> Axes:
    """How often something is right, in percent with 95% intervals (`arithmetic.rates`), by the
    column `group` in its order, a line a value of `series`."""
    need(table, "rates")
    groups = list(table[group].cat.categories) if hasattr(table[group], "cat") else None
    groups = groups or list(dict.fromkeys(table[group]))
    names = list(dict.fromkeys(table[series]))
    _, axis = plt.subplots(figsize=(WIDTH, 3.0))
    offsets = (np.arange(len(names)) - (len(names) - 1) / 2) * 0.1
    for name, look, offset in zip(names, SERIES, offsets, strict=False):
        rows = table[table[series] == name]
        axis.errorbar(
            [groups.index(one) + offset for one in rows[group]], rows.percent,
            yerr=np.maximum(0, [rows.percent - rows.low, rows.high - rows.percent]),
            capsize=3, markersize=5, label=name, **line(look),
        )  # fmt: skip
    axis.set_xticks(range(len(groups)), groups)
    axis.set(ylabel="right", ylim=(-3, 103))
    axis.yaxis.set_major_formatter(PercentFormatter())
    axis.grid(axis="x", visible=False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return axis


@styled
def cost_by_tokens(times: pd.DataFrame) -> Axes:
    """Milliseconds a function against the tokens of its prompt, a point a function and a marker a
    column but for `tokens`."""
    need(times, "times")
    _, axis = plt.subplots(figsize=(WIDTH, 3.2))
    for look, name in zip(SERIES, times.columns.drop("tokens"), strict=False):
        axis.scatter(times.tokens, times[name], s=18, alpha=0.75, label=name, color=look["color"],
                     marker=look["marker"])  # fmt: skip
    axis.set_xscale("log", base=2)  # more marks than powers of ten
    axis.set(yscale="log", xlabel="tokens of the prompt", ylabel="milliseconds")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter("{x:,g}")
        each.set_minor_formatter("")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return axis


@styled
def bytes_against_instructions(rows: pd.DataFrame) -> list[Axes]:
    """Bytes that a list saves over -Oz against the instructions that it saves, a point a function
    and a panel a protocol (rows of `objects.beside_oz`); both axes are linear near zero and
    logarithmic further out. The shaded corners are where the two disagree."""
    need(rows, "functions")
    axes = panels(list(dict.fromkeys(rows.protocol)), 3.4)
    for axis in axes:
        own = rows[rows.protocol == axis.get_title()]
        look = LOOKS[axis.get_title()]
        axis.set_xscale("symlog", linthresh=10)
        axis.set_yscale("symlog", linthresh=10)
        axis.scatter(own.oz - own["count"], own.oz_bytes - own.bytes, s=9, alpha=0.35, linewidth=0,
                     color=look["color"], marker=look["marker"], rasterized=True)  # fmt: skip
        axis.axhline(0, color=GREY, linewidth=1)
        axis.axvline(0, color=GREY, linewidth=1)
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        axis.fill_between([0, right], bottom, 0, color=GREY, alpha=0.1, linewidth=0)
        axis.fill_between([left, 0], 0, top, color=GREY, alpha=0.1, linewidth=0)
        axis.set(xlim=(left, right), xlabel="instructions saved")
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_formatter("{x:,.0f}")
        axis.tick_params(axis="x", labelsize="small", rotation=45)
    axes[0].set_ylabel("bytes saved")
    return axes


@styled
def two_measures(table: pd.DataFrame) -> list[Axes]:
    """Improvement over -Oz in instructions and in bytes with 95% intervals (`objects.summary`), a
    panel a protocol and a row a method."""
    need(table, "methods")
    methods: Sequence[str] = list(dict.fromkeys(table.method))
    axes = panels(list(dict.fromkeys(table.protocol)), 1.6 + 0.4 * len(methods), sharex=True)
    for axis in axes:
        rows = table[table.protocol == axis.get_title()]
        series = [
            (measure, own.method, own.percent, own.low, own.high)
            for measure, own in rows.groupby("measure", sort=False)
        ]
        improvement_rows(axis, methods, series, spread=0.26, size=6)
    return legend_above(axes)


@styled
def gain_for_compilations(curves: pd.DataFrame, marks: pd.DataFrame) -> list[Axes]:
    """What the first so many lists of a coreset save with -Oz as backup, against how many are
    tried, a panel a protocol, with 95% bands: columns `protocol lists percent low high`. `marks`
    (columns `protocol label lists percent`) are drawn as points."""
    need(curves, "curves")
    axes = panels(list(dict.fromkeys(curves.protocol)), 3.3)
    for axis in axes:
        rows = curves[curves.protocol == axis.get_title()]
        axis.fill_between(
            rows.lists, rows.low, rows.high, color=COLOURS[0], alpha=0.15, linewidth=0
        )
        axis.plot(rows.lists, rows.percent, label="first lists of the coreset", markersize=4,
                  **line(SERIES[0]))  # fmt: skip
        own = marks[marks.protocol == axis.get_title()]
        for row, look in zip(own.itertuples(), SERIES[1:], strict=False):
            axis.plot(row.lists, row.percent, look["marker"], color=look["color"], markersize=8,
                      label=row.label)  # fmt: skip
        axis.axhline(0, color=GREY, linewidth=1)
        axis.set(xscale="log", xlabel="compilations, beside -Oz")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_major_formatter(PercentFormatter(decimals=None))
    axes[0].set_ylabel("improvement over -Oz")
    return legend_above(axes)
