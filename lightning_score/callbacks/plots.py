"""Plots of signals and tables: curves, quantile bands, histograms and pair plots, in the units of the data."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_score.callbacks.mosaics import DPI, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of a band of signals."""
CURVES = 3
"""Signals that are drawn as curves."""
PAIRED = 4
"""Columns of a pair plot, of more columns than `ALL_PAIRED`."""
ALL_PAIRED = 5
"""Columns of a pair plot of all."""
COLUMNS, BESIDE = 30, 6
"""Columns of a table of which histograms are drawn, at most, and histograms in a row."""
DOTS = 1000
"""Points of a scatter plot."""
COMPARABLE = 3
"""How much longer one axis of the plane may be than the other for both to have one scale."""
CHANNELS = 16
"""Channels that are drawn: the first ones."""
POSITIONS = 1000
"""Positions at which the quantiles of longer signals are computed."""
SAMPLES, DATA, LIGHT = "tab:blue", "0.45", "0.65"
"""Colors."""
MARGINS = {"left": 0.1, "right": 0.98, "top": 0.9, "bottom": 0.09}
"""Of a figure of many axes, where matplotlib's own layout is slow."""


def drawable_text(text: str) -> str:
    """A name of the user's, in which dollar signs are plain characters unless they enclose valid mathematics."""
    from matplotlib.mathtext import MathTextParser  # takes a second to import

    try:
        MathTextParser("agg").parse(text)
    except ValueError:
        return text.replace("$", r"\$")
    return text


class Shown(NamedTuple):
    """What a drawing shows.

    Fields: samples (N, *shape) and data (M, *shape), M = 0 for none, NaN where values are missing or not finite; names (of
    channels or columns, one each, or none) and units; paired (whether data k has the condition of sample k), given (these
    conditions, (N, channels, ...), where they are arrays) and titles (or what they are, for each sample).
    """

    samples: Values
    data: Values
    names: Sequence[str] = ()
    units: str = ""
    paired: bool = False
    given: Values | None = None
    titles: Sequence[str] = ()

    @property
    def reference(self) -> Values:
        """The examples that the scales of the drawing follow: the data or, if these say nothing, the samples."""
        known = self.data[np.isfinite(self.data)]
        return self.data if known.size and known.min() < known.max() else self.samples

    def label(self, k: int) -> str:
        """The name of channel or column k, with the units."""
        kind = "column" if self.samples.ndim == 2 else "channel"
        name = self.names[k] if k < len(self.names) else f"{kind} {k}" if self.samples.shape[1] > 1 else ""
        return drawable_text(f"{name} ({self.units})" if name and self.units else name or self.units)

    def counted(self, n: int) -> str:
        """How many samples are shown of how many, and how many of them are not finite."""
        bad, all_of = int(np.isnan(self.samples).reshape(len(self.samples), -1).any(1).sum()), len(self.samples)
        of = f"{n} of " * (n < all_of)
        return f"{of}{all_of} sample{'s' * (all_of > 1)}" + f", {bad} not finite" * (bad > 0)


def to_values(x: Tensor) -> Values:
    """Examples as float64, NaN where they are not finite: the columns of tables or the first channels of signals, fields and
    volumes; those of more than four axes are rows of a table.
    """
    x = x if x.ndim == 2 else x[:, :CHANNELS] if x.ndim <= 5 else x.flatten(1)
    values: Values = x.detach().double().cpu().numpy()
    return np.where(np.isfinite(values), values, np.nan)


def quantiles(x: Values) -> Values:
    """The `QUANTILES` over the first axis, of the values that are not NaN, (5, ...)."""
    found: Values = torch.from_numpy(x).nanquantile(torch.tensor(QUANTILES, dtype=torch.float64), 0).numpy()
    return found


def limits(shown: Values, reference: Values) -> tuple[float, float]:
    """The range of an axis: that of the reference and of nearly all others, which extend it at most by its own width."""
    ends = reference[np.isfinite(reference)] if np.isfinite(reference).any() else np.zeros(1)
    low, high = float(ends.min()), float(ends.max())
    width = (high - low) or max(abs(low), 1.0) / 2
    finite = shown[np.isfinite(shown)]
    first, last = np.quantile(finite, (0.01, 0.99)) if finite.size else (low, high)
    low, high = max(min(low, first), low - width), min(max(high, last), high + width)
    return low - 0.05 * width, high + 0.05 * width


def draw_signals(shown: Shown) -> "Figure":
    """A row for each channel: curves of samples, curves of data, and the quantile bands of both; above them a row for each
    channel of the conditions of these samples.
    """
    from matplotlib.figure import Figure  # takes a second to import

    channels, columns = shown.samples.shape[1], 3 if len(shown.data) else 2
    given = np.zeros((0, 0, 0)) if shown.given is None else shown.given[:CURVES]
    rows = channels + given.shape[1]
    height = 0.9 + max(1.2, 2.6 - 0.4 * rows) * rows
    figure = Figure(figsize=(9, height), dpi=DPI)
    margins = {"left": 0.09, "right": 0.97, "top": 1 - 0.3 / height, "bottom": 0.5 / height, "wspace": 0.06, "hspace": 0.1}
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row", gridspec_kw=margins)
    counted = shown.counted(min(CURVES, len(shown.samples)))
    titles = [counted, "data", "quantiles: samples over data (gray)"] if columns == 3 else [counted, "quantiles of samples"]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    for k, panels in enumerate(grid[: given.shape[1]]):
        panels[0].plot(given[:, k].T, lw=0.9, alpha=0.85)
        panels[0].set_ylabel("condition", fontsize=9)
        panels[0].xaxis.set_visible(False)
        for axes in panels[1:]:
            axes.set_axis_off()
    for k, panels in enumerate(grid[given.shape[1] :]):
        _draw_channel(panels, shown, k)
        for axes in panels:
            axes.xaxis.set_visible(k == channels - 1)
            axes.yaxis.set_visible(axes is panels[0])
            axes.set_xlabel("position", fontsize=9)
    if shown.titles:
        grid[0][0].legend(shown.titles[:CURVES], fontsize=7, loc="upper right")
    for axes in grid.ravel():
        axes.margins(x=0.01)
        axes.tick_params(labelsize=8)
        axes.locator_params("y", nbins=4)
        axes.locator_params("x", nbins=6, prune="upper")  # next to the first number of the next panel
    return figure


def _draw_channel(panels: Sequence["Axes"], shown: Shown, k: int) -> None:
    own, real = shown.samples[:, k], shown.data[:, k]
    for curves, axes in zip([own, real], panels[:-1], strict=False):
        axes.plot(curves[:CURVES].T, lw=0.9, alpha=0.85)
    draw_band(panels[-1], own, real)
    panels[0].set_ylim(*limits(own, shown.reference[:, k]))
    panels[0].set_ylabel(_shortened(shown.label(k), 18), fontsize=9)


def draw_band(axes: "Axes", samples: Values, data: Values) -> None:
    """The quantiles of samples (N, L), as lines over those of data (M, L), which are filled."""
    position = np.arange(0, samples.shape[1], math.ceil(samples.shape[1] / POSITIONS))
    if len(data):
        lowest, low, middle, high, highest = quantiles(data[:, position])
        axes.fill_between(position, lowest, highest, color=DATA, alpha=0.25, lw=0)
        axes.fill_between(position, low, high, color=DATA, alpha=0.4, lw=0)
        axes.plot(position, middle, color="black", lw=0.9)
    for line, width in zip(quantiles(samples[:, position]), (0.6, 0.9, 1.4, 0.9, 0.6), strict=True):
        axes.plot(position, line, color=SAMPLES, lw=width)


def draw_histograms(axes: "Axes", samples: Values, data: Values) -> None:
    """Fractions of samples (N,) in bins, as a line over those of data (M,), which are filled."""
    low, high = limits(samples, data if np.isfinite(data).any() else samples)
    bins = int(min(max(2 * math.sqrt(len(samples)), 8), 48))
    for values, color, filled in ((data, LIGHT, True), (samples, SAMPLES, False)):
        counts, edges = np.histogram(values[np.isfinite(values)], bins, (low, high))
        axes.stairs(counts / max(np.isfinite(values).sum(), 1), edges, color=color, fill=filled, lw=1.3)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)


def draw_table(shown: Shown) -> "Figure":
    """A histogram, a scatter plot, a pair plot of all columns, or histograms and a pair plot of those that vary most."""
    from matplotlib.figure import Figure

    columns = shown.samples.shape[1]
    if columns <= 2:
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        axes.set_title(shown.counted(len(shown.samples)) + " over data" * bool(len(shown.data)))
        _draw_pair(axes, shown, 0, columns - 1)
        x, y = (last - first for first, last in (axes.get_xlim(), axes.get_ylim()))
        if columns == 2 and max(x, y) < COMPARABLE * min(x, y):
            axes.set_aspect("equal")
    elif columns <= ALL_PAIRED:
        figure = Figure(figsize=(8, 7), dpi=DPI)
        _draw_pairs(figure, shown, range(columns))
        figure.suptitle(shown.counted(len(shown.samples)), fontsize=10)
    else:
        chosen = varied(shown, COLUMNS)
        rows = math.ceil(len(chosen) / BESIDE)
        height = 0.5 + 1.05 * rows
        figure = Figure(figsize=(9, height + 6), dpi=DPI)
        upper, lower = figure.subfigures(2, 1, height_ratios=(height, 6), squeeze=False)[:, 0]
        margins = MARGINS | {"top": 1 - 0.45 / height, "bottom": 0.3 / height}
        places = upper.add_gridspec(rows, math.ceil(len(chosen) / rows), **margins, hspace=0.8, wspace=0.12)
        for place, k in enumerate(chosen):
            _draw_column(upper.add_subplot(places[place]), shown, k)
        _draw_pairs(lower, shown, varied(shown, PAIRED))
        of = f"; {len(chosen)} of {columns} columns" * (columns > len(chosen))
        upper.suptitle(shown.counted(len(shown.samples)) + of, fontsize=10)
    return figure


def varied(shown: Shown, most: int) -> list[int]:
    """The columns of largest variance, at most so many, in their order."""
    variance = np.ma.filled(np.ma.masked_invalid(shown.reference).var(0), 0.0)
    return sorted(np.argsort(-variance, kind="stable")[:most].tolist())


def _draw_column(axes: "Axes", shown: Shown, k: int) -> None:
    """A small histogram."""
    draw_histograms(axes, shown.samples[:, k], shown.data[:, k])
    axes.set_title(_shortened(shown.label(k), 22), fontsize=8, pad=2)
    axes.yaxis.set_visible(False)
    axes.locator_params("x", nbins=3)
    axes.tick_params(labelsize=7, pad=1)


def _draw_pairs(figure: "Figure | SubFigure", shown: Shown, columns: Sequence[int]) -> None:
    """Each column against each other, with its histogram in the diagonal."""
    places = figure.add_gridspec(len(columns), len(columns), **MARGINS, hspace=0.06, wspace=0.06)
    for i, row in enumerate(columns):
        for j, column in enumerate(columns[: i + 1]):
            axes = figure.add_subplot(places[i, j])
            _draw_pair(axes, shown, column, row)
            axes.xaxis.set_visible(i == len(columns) - 1)
            axes.yaxis.set_visible(j == 0 < i)
            axes.locator_params("x", nbins=4)
            axes.tick_params(labelsize=7)
            if i == 1 and j == 0:
                figure.legend(*axes.get_legend_handles_labels(), loc="upper right", fontsize=9, markerscale=3)


def _draw_pair(axes: "Axes", shown: Shown, i: int, j: int) -> None:
    """Samples over data in the plane of two columns; the histograms of one."""
    x, y = (_shortened(shown.label(k), 18) for k in (i, j))
    if i == j:
        draw_histograms(axes, shown.samples[:, i], shown.data[:, i])
        axes.set_xlabel(x or "x", fontsize=9)
        axes.set(ylabel="fraction", yticks=[])
        return
    for values, color, name in ((shown.data[:DOTS], LIGHT, "data"), (shown.samples[:DOTS], SAMPLES, "samples")):
        if len(values):
            axes.scatter(values[:, i], values[:, j], s=5, alpha=0.6, linewidths=0, color=color, label=name)
    (left, right), (low, high) = (limits(shown.samples[:, k], shown.reference[:, k]) for k in (i, j))
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"


def draw_cells(cells: Values, scales: Sequence[tuple[str, tuple[float, float]]], titles: Sequence[str]) -> "Figure":
    """Many small curves in a grid, in one scale for each channel.

    Args:
        cells: (rows, channels, columns, curves, L); the last curve has the color of samples, others that of data.
        scales: label, and low and high, of each channel.
        titles: of the columns, or of all.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    low, high = np.array([ends for _, ends in scales]).T
    units = np.moveaxis((np.moveaxis(cells, 1, -1) - low) / (high - low), -1, 1).clip(0, 1)
    units = units.reshape(-1, *cells.shape[2:])[..., :: math.ceil(cells.shape[-1] / POSITIONS)]
    rows, columns, curves, length = units.shape
    figure = Figure(figsize=(13, 0.8 + max(0.85, 1.6 - 0.2 * rows) * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    x = np.linspace(0.03, 0.97, length) if length > 1 else np.array([0.5])
    for k in range(curves):
        height = np.arange(rows)[::-1, None, None] + 0.05 + 0.9 * units[:, :, k]
        lines = [np.stack([j + x, height[i, j]], 1) for i in range(rows) for j in range(columns)]
        axes.add_collection(LineCollection(lines, colors=SAMPLES if k == curves - 1 else DATA, linewidths=0.9))
    labels = [f"{label}\n{first:.3g} to {last:.3g}".strip() for label, (first, last) in scales]
    axes.set_yticks(rows - 0.5 - np.arange(rows), labels * (rows // len(labels)), fontsize=8)
    axes.set_xticks(np.arange(columns) + 0.5, titles if len(titles) == columns else [""] * columns)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.hlines(np.arange(1, rows), 0, columns, color="0.85", lw=0.6)
    axes.vlines(np.arange(1, columns), 0, rows, color="0.85", lw=0.6)
    axes.set(xlim=(0, columns), ylim=(0, rows), title=titles[0] if len(titles) != columns else "")
    return figure
