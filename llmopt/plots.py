"""The book's figures: each function takes data, draws one figure in one style, returns its axes.

Colours are Seaborn's colour-blind safe ones; series differ in marker, line or hatch as well, so
that a figure reads in grey. Axes carry units, estimates their intervals. What is plotted is
computed elsewhere (`metrics`, `evaluate`, the notebooks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from llmopt import tables
from llmopt.config import PROTOCOLS, InputError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

WIDTH = 6.2  # inches: small enough that the words are still read on a phone
COLOURS = sns.color_palette("colorblind").as_hex()
GREY = "#666666"
# One look a protocol in the whole book: colour, marker, line, hatch.
LOOKS = {
    "stripped": {"color": COLOURS[0], "marker": "o", "linestyle": "-", "hatch": ""},
    "minsize": {"color": COLOURS[1], "marker": "s", "linestyle": "--", "hatch": "///"},
}
# The same for series that are no protocols, in their order.
SERIES = [
    {"color": COLOURS[i], "marker": marker, "linestyle": line}
    for i, marker, line in ((0, "o", "-"), (1, "s", "--"), (2, "^", ":"), (4, "D", "-."))
]
STYLE = sns.axes_style("whitegrid") | {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "grid.color": "#e3e3e3",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "svg.hashsalt": "llmopt",  # the same bytes for the same figure
}


def styled(draw: Callable) -> Callable:
    """A figure function in the book's style; the caller's own settings stay as they are."""

    @wraps(draw)
    def drawn(*args: object, **kwargs: object) -> object:
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def line(look: Mapping[str, object]) -> dict:
    """The part of a look that lines and markers take."""
    return {key: look[key] for key in ("color", "marker", "linestyle")}


def need(data: object, what: str) -> None:
    """An empty figure is bad input, not a figure."""
    if not len(data):
        raise InputError(f"no {what} to draw: pass at least one")


def panels(names: Sequence[str], height: float, **kwargs: object) -> list[Axes]:
    """Axes side by side with one scale, each titled with its name; `height` in inches."""
    _, axes = plt.subplots(
        1, len(names), figsize=(WIDTH, height), sharey=True, squeeze=False, **kwargs
    )
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name)
    return list(axes[0])


def legend_above(axes: Sequence[Axes], ncols: int | None = None) -> list[Axes]:
    """One legend for all panels, over them; in one row unless `ncols` says otherwise."""
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside upper center", ncols=ncols or len(labels))
    return list(axes)


def improvement_rows(
    axis: Axes,
    names: Sequence[str],
    series: Iterable[tuple[str, Sequence[str], ArrayLike, ArrayLike, ArrayLike]],
    spread: float,
    size: float,
) -> None:
    """Improvement over -Oz, a row a name from top to bottom, with intervals: a mark of its own for
    each of `series` (label, the rows it has a value for, values, low and high ends), the marks of a
    row `spread` apart from first to last."""
    series = list(series)
    offsets = np.linspace(-spread / 2, spread / 2, len(series))
    for offset, look, (label, rows, *numbers) in zip(offsets, SERIES, series, strict=False):
        middle, low, high = map(np.asarray, numbers)
        axis.errorbar(
            middle, [names.index(name) + offset for name in rows],
            xerr=np.maximum(0, [middle - low, high - middle]), fmt=look["marker"],
            color=look["color"], capsize=size / 2, markersize=size, label=label,
        )  # fmt: skip
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set(xlabel="improvement over -Oz")
    axis.xaxis.set_major_formatter(PercentFormatter(decimals=None))
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.tick_params(axis="x", labelsize="small")
    axis.grid(axis="y", visible=False)


# --- 01: IR and code size ----------------------------------------------------------------------


@styled
def counts_by_level(counts: pd.DataFrame) -> Axes:
    """Instruction counts, a row a function and a column a level; the first column is before.

    The number is the count, the shade its share of the first column.
    """
    need(counts, "functions")
    share = counts.div(counts.iloc[:, 0], axis=0)
    _, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.24 * len(counts)))
    sns.heatmap(
        share, annot=counts, fmt="d", cmap="Blues", vmin=0, vmax=1.2, ax=axis,
        annot_kws={"fontsize": 9}, linewidths=0.5,
        cbar_kws={"label": "share of the unoptimised count", "format": PercentFormatter(1),
                  "aspect": 40, "pad": 0.02},
    )  # fmt: skip
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.set(xlabel="", ylabel="")
    axis.set_title("instructions after each level", pad=8)
    return axis


@styled
def size_against_count(counts: Mapping[str, Sequence[int]], sizes: Mapping[str, Sequence[int]]):
    """Bytes of machine code against IR instructions, a series a level, a point a function."""
    need(counts, "levels")
    _, axis = plt.subplots(figsize=(WIDTH * 0.85, 3.4))
    for look, level in zip(SERIES, counts, strict=False):
        need(counts[level], "functions")
        axis.scatter(
            counts[level], sizes[level], s=26, alpha=0.8, label=level,
            color=look["color"], marker=look["marker"],
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="IR instructions", ylabel="machine code (bytes)")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter("{x:g}")
        each.set_minor_formatter("")
    axis.set_xticks([5, 10, 20, 50, 100])
    axis.set_yticks([20, 50, 100, 200, 500])
    axis.legend()
    return axis


# --- 02: pass order ----------------------------------------------------------------------------


@styled
def counts_of_orders(counts: Sequence[int], marks: Mapping[str, int]) -> Axes:
    """How many orders of the same passes end at each instruction count; `marks` names counts."""
    need(counts, "orders")
    values, orders = np.unique(counts, return_counts=True)
    _, axis = plt.subplots(figsize=(WIDTH, 2.7))
    bars = axis.bar(values, orders, width=0.8, color=COLOURS[0])
    axis.bar_label(bars, fontsize="small", padding=1)
    for (name, count), look in zip(marks.items(), SERIES[1:], strict=False):
        axis.axvline(count, color=look["color"], linestyle=look["linestyle"], label=name)
    axis.set(xlabel="instructions after all passes", ylabel="orders")
    axis.margins(y=0.15)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="x", visible=False)
    if marks:
        axis.legend()
    return axis


@styled
def counts_by_pass(steps: Mapping[str, pd.DataFrame], oz: Mapping[str, int]) -> list[Axes]:
    """Instructions after each pass of a list (`display.timeline`), a panel a protocol; the line
    is what -Oz alone leaves."""
    need(steps, "timelines")
    longest = max(len(table) for table in steps.values())
    axes = panels(list(steps), 0.9 + 0.3 * longest)
    for axis, (protocol, table) in zip(axes, steps.items(), strict=True):
        look = LOOKS[protocol]
        bars = axis.barh(
            table.step, table.instructions, color=look["color"], hatch=look["hatch"],
            edgecolor="white", linewidth=0, height=0.75,
        )  # fmt: skip
        axis.bar_label(bars, fontsize="small", padding=2)
        axis.axvline(oz[protocol], color="black", linestyle=":", linewidth=1.2)
        axis.set(xlabel="instructions", title=f"{protocol} (dotted: -Oz, {oz[protocol]})")
        axis.set_yticks(table.step, table["pass"])
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.18)
    axes[0].invert_yaxis()
    return axes


# --- 03: corpus --------------------------------------------------------------------------------


@styled
def size_distribution(sizes: Mapping[str, Sequence[int]]) -> Axes:
    """Share of functions with at most so many unoptimised instructions, a line a split."""
    need(sizes, "splits")
    _, axis = plt.subplots(figsize=(WIDTH, 3.0))
    for look, (name, values) in zip(SERIES, sizes.items(), strict=False):
        need(values, "functions")
        label = f"{name}: {len(values):,} functions, median {np.median(values):g}"
        # Compressed: one step a size, not one a function.
        axis.ecdf(
            values, color=look["color"], linestyle=look["linestyle"], label=label, compress=True
        )
    axis.set(xscale="log", xlabel="unoptimised IR instructions", ylabel="share of functions")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(loc="upper left")
    return axis


@styled
def functions_by_suite(table: pd.DataFrame) -> Axes:
    """Functions of each suite (rows, `inventory.suites`), stacked by split (columns)."""
    need(table, "suites")
    _, axis = plt.subplots(figsize=(WIDTH, 1.0 + 0.215 * len(table)))
    left = np.zeros(len(table))
    for look, hatch, split in zip(SERIES, ("", "....", "////"), table, strict=False):
        axis.barh(
            range(len(table)), table[split], left=left, height=0.78, label=split,
            color=look["color"], hatch=hatch, edgecolor="white", linewidth=0,
        )  # fmt: skip
        left += table[split].to_numpy()
    axis.set_yticks(range(len(table)), table.index, fontsize="small")
    axis.invert_yaxis()
    axis.set(xlabel="functions kept", ylim=(len(table) - 0.4, -0.6))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(axis="y", visible=False)
    axis.legend(title="split", loc="lower right")
    return axis


# --- 04: autotuner -----------------------------------------------------------------------------


@styled
def gain_against_compilations(curves: pd.DataFrame) -> list[Axes]:
    """Improvement over -Oz against compilations a function, a panel a protocol, a line a method.

    Columns `protocol method compilations percent`, and `low high` where there is an interval to
    draw as a band.
    """
    need(curves, "curves")
    axes = panels(list(curves.protocol.unique()), 3.3)
    for axis in axes:
        panel = curves[curves.protocol == axis.get_title()]
        for look, (method, rows) in zip(SERIES, panel.groupby("method", sort=False), strict=False):
            axis.plot(rows.compilations, rows.percent, label=method, markersize=4, **line(look))
            if "low" in rows:
                axis.fill_between(
                    rows.compilations, rows.low, rows.high, color=look["color"], alpha=0.1
                )
        axis.set(xscale="log", xlabel="compilations a function")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.minorticks_off()
    axes[0].set_ylabel("improvement over -Oz")
    axes[0].yaxis.set_major_formatter(PercentFormatter(decimals=1))
    axes[0].set_ylim(bottom=min(0, curves.get("low", curves.percent).min()))
    return legend_above(axes)


@styled
def headroom(table: pd.DataFrame) -> Axes:
    """What the autotuner gains over -Oz, a row a group, a mark a protocol, with 95% intervals.

    Columns `group protocol percent low high`.
    """
    need(table, "groups")
    groups = list(dict.fromkeys(table.group))
    _, axis = plt.subplots(figsize=(WIDTH, 1.0 + 0.31 * len(groups)))
    for offset, protocol in zip((-0.14, 0.14), PROTOCOLS, strict=True):
        rows, look = table[table.protocol == protocol], LOOKS[protocol]
        axis.errorbar(
            rows.percent, [groups.index(g) + offset for g in rows.group],
            xerr=[rows.percent - rows.low, rows.high - rows.percent],
            fmt=look["marker"], color=look["color"], capsize=3, markersize=6, label=protocol,
        )  # fmt: skip
    axis.set_yticks(range(len(groups)), groups)
    axis.invert_yaxis()
    axis.set(xlabel="improvement over -Oz, with 95% interval")
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter("{x:g}%")
    axis.xaxis.set_major_locator(MaxNLocator(8))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="best")
    return axis


def _sparse(length: int, most: int = 400) -> np.ndarray:
    """Positions from 1 to `length`, few enough to draw on a logarithmic axis."""
    return np.unique(np.geomspace(1, length, most).round().astype(int))


@styled
def concentration(gains: Mapping[str, Sequence[int]]) -> Axes:
    """Share of all saved instructions that the so many most improved functions hold."""
    need(gains, "protocols")
    _, axis = plt.subplots(figsize=(WIDTH, 2.9))
    for protocol, values in gains.items():
        saved = np.sort(np.asarray(values)[np.asarray(values) > 0])[::-1]
        need(saved, "improved functions")
        share = np.cumsum(saved) / saved.sum()
        half = int(np.searchsorted(share, 0.5)) + 1
        look = LOOKS[protocol]
        label = f"{protocol}: {half:,} of {len(values):,} functions hold half"
        at = _sparse(len(saved))
        axis.step(
            at, share[at - 1], where="mid", label=label,
            color=look["color"], linestyle=look["linestyle"],
        )  # fmt: skip
        axis.plot(half, share[half - 1], look["marker"], color=look["color"], markersize=7)
    axis.axhline(0.5, color=GREY, linewidth=0.8)
    axis.set(xscale="log", xlabel="functions, most improved first", ylim=(0, 1.03))
    axis.set_ylabel("share of saved instructions")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(loc="upper left")
    return axis


@styled
def list_frequency(frequencies: pd.DataFrame, most: int = 14) -> Axes:
    """Share of lists (0 to 1) that hold each pass: rows passes, columns protocols; the `most`
    frequent."""
    need(frequencies, "passes")
    rows = frequencies.loc[
        frequencies.sum(axis=1).sort_values(ascending=False, kind="stable").index
    ]
    rows = rows.head(most)
    _, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.34 * len(rows)))
    for offset, protocol in zip((-0.2, 0.2), rows.columns, strict=True):
        look = LOOKS[protocol]
        axis.barh(
            np.arange(len(rows)) + offset, rows[protocol], height=0.38, label=protocol,
            color=look["color"], hatch=look["hatch"], edgecolor="white", linewidth=0,
        )  # fmt: skip
    names = [n if len(n) <= 34 else f"{n[:18]}…{n[-14:]}" for n in rows.index]
    axis.set_yticks(range(len(rows)), names, fontsize="small")
    axis.invert_yaxis()
    axis.set(xlabel="share of the labels other than -Oz that hold the pass")
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower right")
    return axis


def _by_size(table: pd.DataFrame) -> Axes:
    """A mark and its interval a size and protocol; `table` as in `headroom_by_size`."""
    need(table, "groups")
    groups = list(dict.fromkeys(table.group))
    _, axis = plt.subplots(figsize=(WIDTH, 3.0))
    for offset, protocol in zip((-0.07, 0.07), dict.fromkeys(table.protocol), strict=False):
        rows, look = table[table.protocol == protocol], LOOKS[protocol]
        axis.errorbar(
            [groups.index(g) + offset for g in rows.group], rows.percent,
            yerr=np.maximum(0, [rows.percent - rows.low, rows.high - rows.percent]),
            capsize=3, label=protocol, **line(look),
        )  # fmt: skip
    axis.set_xticks(range(len(groups)), groups)
    axis.set(xlabel="unoptimised instructions")
    axis.grid(axis="x", visible=False)
    return axis


@styled
def headroom_by_size(table: pd.DataFrame) -> Axes:
    """What the autotuner gains over -Oz by the function's size, with 95% intervals.

    Columns `group protocol percent low high`; groups in the order of size.
    """
    axis = _by_size(table)
    axis.set(ylabel="improvement over -Oz")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter("{x:g}%")
    axis.legend(loc="upper left")
    return axis


@styled
def lists_needed(served: pd.DataFrame, marks: Sequence[float] = (0.9, 0.99)) -> Axes:
    """Share of the gain that the first so many distinct lists serve, a line a protocol; where it
    passes each of `marks` there is a number. Columns `protocol lists share`."""
    need(served, "lists")
    _, axis = plt.subplots(figsize=(WIDTH, 3.0))
    places = {"stripped": ((6, -12), "left"), "minsize": ((-5, 5), "right")}
    for protocol, rows in served.groupby("protocol", sort=False):
        look, share = LOOKS[protocol], rows.share.to_numpy()
        shift, side = places[protocol]
        at = _sparse(len(rows))
        axis.step(
            at, share[at - 1], where="post", label=f"{protocol}: {len(rows):,} lists",
            color=look["color"], linestyle=look["linestyle"],
        )  # fmt: skip
        for mark in marks:
            needed = int((share < mark - 1e-9).sum()) + 1
            axis.plot(needed, share[needed - 1], look["marker"], color=look["color"], markersize=6)
            axis.annotate(
                f"{needed:,}", (needed, share[needed - 1]), xytext=shift, ha=side,
                textcoords="offset points", fontsize="small",
            )  # fmt: skip
    axis.set(xscale="log", xlabel="distinct lists, the one that saves most first", ylim=(0, 1.1))
    axis.set_ylabel("share of saved instructions")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(loc="lower right")
    return axis


# --- 05: tokens ----------------------------------------------------------------------------------


@styled
def vocabulary_tradeoff(table: pd.DataFrame, paper: float) -> Axes:
    """Characters a token against vocabulary size, a line a way to cut the text up first.

    Columns `cut vocabulary characters`; `paper` is what Llama 2's tokenizer reaches on IR.
    """
    need(table, "tokenizers")
    _, axis = plt.subplots(figsize=(WIDTH, 3.0))
    for look, (cut, rows) in zip(SERIES, table.groupby("cut", sort=False), strict=False):
        axis.plot(rows.vocabulary, rows.characters, label=cut, **line(look))
        for x, y in zip(rows.vocabulary, rows.characters, strict=True):
            axis.annotate(f"{y:.2f}", (x, y), xytext=(0, 6 if look is SERIES[0] else -14),
                          textcoords="offset points", ha="center", fontsize="small")  # fmt: skip
    axis.axhline(paper, color=GREY, linewidth=1, label=f"the paper's, on its own IR: {paper}")
    axis.set(xscale="log", xlabel="vocabulary (tokens)", ylabel="characters a token")
    axis.set_xticks(sorted(table.vocabulary.unique()))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.minorticks_off()
    axis.set_ylim(0, 1.18 * max(paper, table.characters.max()))
    axis.legend(loc="lower right")
    return axis


@styled
def token_lengths(lengths: Mapping[str, Sequence[int]], limit: int) -> Axes:
    """Share of functions with at most so many tokens of prompt and answer, a line a variant."""
    need(lengths, "variants")
    _, axis = plt.subplots(figsize=(WIDTH, 3.0))
    for look, (name, values) in zip(SERIES, lengths.items(), strict=False):
        need(values, "functions")
        fits = np.mean(np.asarray(values) <= limit)
        axis.ecdf(values, color=look["color"], linestyle=look["linestyle"],
                  label=f"{name}: {fits:.1%} fit")  # fmt: skip
    axis.axvline(limit, color=GREY, linewidth=1)
    axis.annotate(f"{limit:,} tokens", (limit, 0.02), xytext=(-4, 0), textcoords="offset points",
                  ha="right", rotation=90, fontsize="small", color=GREY)  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set(xlabel="tokens of prompt and answer", ylabel="share of functions")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(loc="upper left")
    return axis


# --- 06: prompt and model ------------------------------------------------------------------------


@styled
def first_choice(probabilities: pd.DataFrame) -> Axes:
    """Probability of each next token, rows are tokens, columns ways to read the model."""
    need(probabilities, "tokens")
    _, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.34 * len(probabilities)))
    for offset, look, name in zip((-0.2, 0.2), LOOKS.values(), probabilities, strict=True):
        values = probabilities[name]
        axis.barh(
            np.arange(len(values)) + offset, values, height=0.38, label=name,
            color=look["color"], hatch=look["hatch"], edgecolor="white", linewidth=0,
        )  # fmt: skip
    axis.set_yticks(range(len(probabilities)), probabilities.index, fontsize="small")
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="probability, logarithmic")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    return axis


# --- 07: training --------------------------------------------------------------------------------


@styled
def training_curves(log: pd.DataFrame) -> list[Axes]:
    """Loss and learning rate of a run (`log.jsonl`: a row a step) against tokens seen.

    Validation losses (`valid_list`, `valid_counts`, `valid_code`) are drawn where they were taken.
    """
    need(log, "steps")
    _, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.3), width_ratios=(2.2, 1))
    left, right = axes
    seen = log.tokens / 1e6
    left.plot(seen, log.loss, color="#bbbbbb", linewidth=0.7, label="training, each step")
    left.plot(seen, log.loss.ewm(alpha=0.1).mean(), color="black", linewidth=1.2,
              label="training, smoothed")  # fmt: skip
    for look, kind in zip(SERIES, ("list", "counts", "code"), strict=False):
        if f"valid_{kind}" in log:
            rows = log.dropna(subset=[f"valid_{kind}"])
            left.plot(rows.tokens / 1e6, rows[f"valid_{kind}"], label=f"validation, {kind}",
                      markersize=4, **line(look))  # fmt: skip
    left.set(xlabel="tokens seen (millions)", ylabel="loss (nats a token)")
    left.set_ylim(bottom=0)
    handles, labels = left.get_legend_handles_labels()
    left.figure.legend(handles, labels, loc="outside lower center", ncols=3)
    right.plot(seen, log.rate, color="black", linewidth=1.2)
    right.set(xlabel="tokens seen (millions)", ylabel="learning rate")
    right.set_ylim(bottom=0)
    left.xaxis.set_major_locator(MaxNLocator(5))
    right.xaxis.set_major_locator(MaxNLocator(3))
    right.ticklabel_format(axis="y", scilimits=(-3, -3), useMathText=True)
    return list(axes)


@styled
def validation_curves(log: pd.DataFrame) -> list[Axes]:
    """The paper's Figure 2: what the model is worth on validation functions, against tokens seen.

    `log` holds the rows at which `validation.Curves` was asked; what it lacks is not drawn. Thin
    lines are of the likeliest list, thick ones of the cautious choice; dotted ones mark where this
    passes -Oz for good.
    """
    need(log, "validated steps")
    _, axes = plt.subplots(2, 2, figsize=(WIDTH, 5.4))
    panels = (
        ("over -Oz (%)", [(f"cautious_{p}", p, LOOKS[p]) for p in PROTOCOLS]),
        ("-Oz answered (%)", [(f"oz_share_{p}", p, LOOKS[p]) for p in PROTOCOLS]),
        ("of answers (%)", [("compiles", "code compiles", SERIES[2]),
                            ("exact", "code exact", SERIES[3])]),
        ("error of counts (%)", [("mape_before", "before", SERIES[2]),
                                 ("mape_after", "after", SERIES[3])]),
    )  # fmt: skip
    for axis, (title, series) in zip(axes.flat, panels, strict=True):
        axis.set_ylabel(title)
        for name, label, look in series:
            if name in log:
                rows = log.dropna(subset=[name])
                axis.plot(rows.tokens / 1e6, rows[name], label=label, markersize=3.5, **line(look))
        if axis.lines:
            axis.legend()
    axes[0, 0].axhline(0, color=GREY, linewidth=0.8)
    for protocol in PROTOCOLS:
        color = LOOKS[protocol]["color"]
        if f"improvement_{protocol}" in log:
            rows = log.dropna(subset=[f"improvement_{protocol}"])
            likeliest = rows[f"improvement_{protocol}"]
            axes[0, 0].plot(rows.tokens / 1e6, likeliest, color=color, linewidth=0.6)
        passed = tables.parity(log, protocol) if f"cautious_{protocol}" in log else None
        if passed is not None:
            axes[0, 0].axvline(passed / 1e6, color=color, linestyle=":", linewidth=1.2)
    axes[1, 1].set_yscale("log")
    for axis in axes.flat:
        axis.set_xlabel("tokens seen (millions)")
        axis.xaxis.set_major_locator(MaxNLocator(5))
    return list(axes.flat)


# --- 08: pass ordering ---------------------------------------------------------------------------


@styled
def improvement_by_method(table: pd.DataFrame) -> list[Axes]:
    """Improvement over -Oz with 95% intervals (`tables.table`), a panel a protocol, a row a method;
    in one shot, and with -Oz kept wherever it is better."""
    need(table, "methods")
    methods = list(dict.fromkeys(table.method))
    axes = panels(list(dict.fromkeys(table.protocol)), 1.6 + 0.4 * len(methods), sharex=True)
    ways = (("percent", "interval", "in one shot"),
            ("with_oz_backup", "with_oz_backup_interval", "with -Oz backup"))  # fmt: skip
    for axis in axes:
        rows = table[table.protocol == axis.get_title()]
        series = [
            (label, rows.method, rows[value], rows[ends].str[0], rows[ends].str[1])
            for value, ends, label in ways
        ]
        improvement_rows(axis, methods, series, spread=0.26, size=6)
    return legend_above(axes)


@styled
def list_lengths(shares: Mapping[str, pd.DataFrame]) -> list[Axes]:
    """Share of functions by what was said, a panel a protocol: rows are `-Oz` and lengths of other
    lists, columns methods."""
    need(shares, "protocols")
    axes = panels(list(shares), 2.9)
    for axis, (protocol, table) in zip(axes, shares.items(), strict=True):
        need(table, "lists")
        width = 0.8 / table.shape[1]
        for i, (look, method) in enumerate(zip(LOOKS.values(), table, strict=False)):
            at = np.arange(len(table)) + (i - (table.shape[1] - 1) / 2) * width
            axis.bar(at, table[method], width, label=method, color=look["color"],
                     hatch=look["hatch"], edgecolor="white", linewidth=0)  # fmt: skip
        axis.set_xticks(range(len(table)), table.index, fontsize="small")
        axis.set(title=protocol, xlabel="passes in the list")
        axis.grid(axis="x", visible=False)
    axes[0].set_ylabel("share of functions")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    axes[-1].legend(loc="upper right")
    return axes


# --- 09: generated code --------------------------------------------------------------------------


@styled
def rate_by_size(table: pd.DataFrame) -> Axes:
    """Share of generated code that compiles, by the function's size, with 95% intervals.

    Columns `group protocol percent low high`; groups in the order of size.
    """
    axis = _by_size(table)
    axis.set(ylabel="answers that compile", ylim=(-3, 103))
    axis.yaxis.set_major_formatter(PercentFormatter())
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return axis


@styled
def error_classes(shares: pd.DataFrame) -> Axes:
    """What is wrong with code that does not compile: rows are classes, columns sets of answers."""
    need(shares, "errors")
    looks = [*LOOKS.values(), {"color": GREY, "hatch": "..."}]
    _, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.42 * len(shares)))
    height = 0.8 / shares.shape[1]
    for i, (look, name) in enumerate(zip(looks, shares, strict=False)):
        at = np.arange(len(shares)) + (i - (shares.shape[1] - 1) / 2) * height
        axis.barh(at, shares[name], height, label=name, color=look["color"],
                  hatch=look["hatch"], edgecolor="white", linewidth=0)  # fmt: skip
    axis.set_yticks(range(len(shares)), shares.index)
    axis.invert_yaxis()
    axis.set(xlabel="share of the answers that do not compile")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower right")
    return axis


@styled
def predicted_counts(code: pd.DataFrame) -> list[Axes]:
    """The model's instruction counts against LLVM's, before and after its list, a point an answer.

    Columns `protocol unoptimised count predicted_before predicted_after`, as `evaluate` makes them.
    """
    need(code, "answers")
    _, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.3))
    pairs = (("before", "unoptimised", "predicted_before"), ("after", "count", "predicted_after"))
    for axis, (title, actual, predicted) in zip(axes, pairs, strict=True):
        for protocol, rows in code.groupby("protocol", sort=False):
            look = LOOKS[protocol]
            axis.scatter(rows[actual], rows[predicted], s=16, alpha=0.6, label=protocol,
                         color=look["color"], marker=look["marker"], rasterized=True)  # fmt: skip
        ends = [1, 1.2 * float(code[actual].max())]
        axis.plot(ends, ends, color=GREY, linewidth=1)
        axis.set(xscale="log", yscale="log", title=title, xlabel="counted by LLVM")
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_formatter("{x:,.0f}")
            each.set_minor_formatter("")
    axes[0].set_ylabel("written by the model")
    axes[0].legend(loc="lower right")
    return list(axes)


# --- 11: scaling ---------------------------------------------------------------------------------


@styled
def memory_by_devices(table: pd.DataFrame, limits: Mapping[str, float]) -> Axes:
    """GiB on each device, a bar a number of devices (rows), stacked by what they hold (columns);
    `limits` names memories of devices."""
    need(table, "numbers of devices")
    looks = zip(COLOURS, ("", "///", "...", "xxx"), table, strict=False)
    _, axis = plt.subplots(figsize=(WIDTH, 3.4))
    below = np.zeros(len(table))
    for color, hatch, part in looks:
        axis.bar(range(len(table)), table[part], bottom=below, width=0.7, label=part,
                 color=color, hatch=hatch, edgecolor="white", linewidth=0)  # fmt: skip
        below += table[part].to_numpy()
    for name, limit in limits.items():
        axis.axhline(limit, color="black", linestyle=":", linewidth=1.2)
        axis.annotate(name, (len(table) - 0.5, limit), xytext=(0, 3), ha="right",
                      textcoords="offset points", fontsize="small")  # fmt: skip
    axis.set_xticks(range(len(table)), table.index)
    axis.set(xlabel="devices that share the model", ylabel="GiB on each device")
    axis.grid(axis="x", visible=False)
    axis.legend(loc="upper right", ncols=2)
    return axis


@styled
def loss_far_ahead(
    points: Mapping[str, pd.DataFrame], band: pd.DataFrame, marks: Mapping[str, float]
) -> Axes:
    """Losses of a run by tokens (`tokens loss`, a marker a kind of points) and the band of all laws
    that they leave open (`tokens low best high`); `marks` names numbers of tokens."""
    need(points, "points")
    _, axis = plt.subplots(figsize=(WIDTH, 3.4))
    axis.fill_between(band.tokens, band.low, band.high, color=COLOURS[0], alpha=0.15, linewidth=0,
                      label="laws that the points leave open")  # fmt: skip
    axis.plot(band.tokens, band.best, color=COLOURS[0], linewidth=1.2, label="the best of them")
    for look, (name, rows) in zip(SERIES, points.items(), strict=False):
        axis.plot(rows.tokens, rows.loss, look["marker"], color=look["color"], markersize=5,
                  label=name)  # fmt: skip
    for name, tokens in marks.items():
        axis.axvline(tokens, color=GREY, linestyle=":", linewidth=1.2)
        axis.annotate(name, (tokens, 0.98), xycoords=("data", "axes fraction"), rotation=90,
                      xytext=(-3, 0), textcoords="offset points", ha="right", va="top",
                      fontsize="small", color=GREY)  # fmt: skip
    axis.set(xscale="log", xlabel="tokens seen", ylabel="validation loss (nats a token)")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper center", bbox_to_anchor=(0.62, 1.0))
    return axis
