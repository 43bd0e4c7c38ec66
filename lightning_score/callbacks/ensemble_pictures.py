"""Pictures of ensembles: their rank histogram, and a few conditions with truth, mean, spread and samples."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_score.callbacks.mosaics import Group, Row, Scale, Values, color_scale, draw_groups
from lightning_score.callbacks.pictures import figure_picture, strip_picture
from lightning_score.callbacks.plots import Shown, drawable_text, to_values
from lightning_score.data import ScoreData
from lightning_score.metrics.calibration import Coverage, RankHistogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 8
"""Conditions in the picture."""
CURVES, CHANNELS = 6, 3
"""Conditions and channels in a picture of signals."""
MEMBERS, IN_FIELDS = 6, 3
"""Samples of each, and of fields."""
BAND: dict[str, Any] = {"color": "tab:orange", "alpha": 0.35, "label": "95 % of calibrated models"}
"""The looks of a band."""


def summary(members: Tensor) -> Tensor:
    """Mean, standard deviation and the first members of an ensemble (M, *shape), (2 + min(M, MEMBERS), *shape)."""
    members = members.float()
    return torch.stack([members.mean(0), members.std(0), *members[:MEMBERS]])


def _draw_ranks(axes: "Axes", histogram: RankHistogram, of: str) -> None:
    """Draws a rank histogram over the band of calibrated models."""
    n = len(histogram.shares)
    shares, low, high = (part.numpy() for part in histogram[:3])
    axes.set_xlabel(f"rank of {of} among {n - 1} samples")
    axes.set_ylabel("share of truths")
    axes.bar(range(n), shares, width=0.8, color="tab:blue")
    axes.bar(range(n), high - low, bottom=low, width=1.0, **BAND)
    axes.axhline(1 / n, color="tab:orange", lw=1)
    axes.set_ylim(0, 1.25 * max(*shares, *high))
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="upper center")
    axes.set_title(_deviation_title(histogram), fontsize=9)


def calibration_figure(histograms: Mapping[str, RankHistogram], coverage: Coverage | None = None) -> "Figure":
    """TARP's coverage, if given, and rank histograms, each with what it is of, over the bands of calibrated models."""
    from matplotlib.figure import Figure  # takes a second to import

    count = len(histograms) + (coverage is not None)
    figure = Figure(figsize=(4 * count, 3.8), layout="constrained")
    grid = figure.subplots(1, count, squeeze=False)[0]
    if coverage is not None:
        _draw_coverage(grid[0], coverage)
    for axes, (of, histogram) in zip(grid[-len(histograms) :], histograms.items(), strict=True):
        _draw_ranks(axes, histogram, of)
    return figure


def _draw_coverage(axes: "Axes", coverage: Coverage) -> None:
    """Draws TARP's coverage over the band of calibrated models."""
    x, y, low, high = (part.numpy() for part in coverage[:4])
    axes.fill_between(x, low, high, lw=0, **BAND)
    axes.plot([0, 1], [0, 1], color="tab:orange", lw=1)
    axes.plot(x, y, color="tab:blue", lw=1.5, label="coverage")
    axes.set_xlabel("credibility of balls about random points")
    axes.set_ylabel("share of truths inside")
    axes.set_title(_deviation_title(coverage), fontsize=9)
    axes.set_aspect("equal")
    axes.legend(loc="lower right")


def _deviation_title(found: RankHistogram | Coverage) -> str:
    return f"deviation {found.deviation:.3f} (calibrated: {found.calibrated:.3f}, 95 % below {found.limit:.3f})"


def ensemble_picture(data: ScoreData, truths: Tensor, given: Tensor | None, shown: Tensor) -> Image.Image:
    """What is given, if it can be drawn, the truth, mean, standard deviation and samples: pixels in a row for each condition
    for images of bytes, else fields, central slices of volumes, and curves of signals and of the columns of tables.

    Args:
        data: the data.
        truths: the examples that belong to the conditions, as stored, (N, *shape).
        given: the conditions in this form, (N, *shape); None if they cannot be drawn.
        shown: the `summary` of each ensemble.
    """
    truths, members = truths[: len(shown)], shown[:, 2:]
    values = [*([] if given is None else [given[: len(shown)]]), truths, shown[:, 0], *members.unbind(1)]
    columns = torch.stack([each.to(shown) for each in values], 1)
    if truths.dtype == torch.uint8 and truths.ndim == 4:
        bright = 255 / shown[:, 1].max().clamp(min=1e-12)
        columns = torch.cat([columns[:, : -members.shape[1]], bright * shown[:, 1:2], columns[:, -members.shape[1] :]], 1)
        return strip_picture(columns.round().to(torch.uint8).unbind(1))
    labels, columns, shown = channel_labels(data, truths), slices(columns), slices(shown)
    names = [*(["given"] if given is not None else []), "truth", "mean", "drawn"]
    if columns.ndim == 5:
        few = to_values(columns[:, : len(names) - 1 + IN_FIELDS])
        return figure_picture(draw_maps(few, to_values(shown[:, 1]), names, labels, "a condition in each column"))
    mean, std = (to_values(shown[:CURVES, k]) for k in range(2))
    band = Band(mean - 2 * std, mean + 2 * std, "two standard deviations")
    return figure_picture(draw_bands(to_values(columns[:CURVES]), band, names, labels))


def channel_labels(data: ScoreData, x: Tensor) -> list[str]:
    """Those of the channels of examples (N, *shape) that are drawn."""
    if x.ndim not in (3, 4, 5):
        return [drawable_text(data.units)]
    shown = Shown(to_values(x[:1]), to_values(x[:1]), data.names, data.units)
    return [shown.label(c) for c in range(min(CHANNELS, x.shape[1]))]


def slices(parts: Tensor) -> Tensor:
    """What is drawn of k examples in each of N rows, (N, k, *shape): the central slices of volumes; examples of more than
    four axes are rows of a table.
    """
    return parts[:, :, :, parts.shape[3] // 2] if parts.ndim == 6 else parts if parts.ndim < 6 else parts.flatten(2)


class Band(NamedTuple):
    """A band of curves: its ends, (N, C, L) or (N, L), and its name."""

    low: Values
    high: Values
    name: str


def draw_maps(
    columns: Values, std: Values, names: Sequence[str], channels: Sequence[str], title: str, scale: Scale | None = None
) -> "Figure":
    """Images (N, k, C, H, W), or (N, k, C, H, W, 3) in color: each row of a channel is one of `names`, the last of them of
    all further rows, each column a condition; the standard deviations (N, C, H, W) have their own scale.
    """
    groups = []
    for c, channel in enumerate(channels):
        labels = [names[k] if k < len(names) else "" for k in range(columns.shape[1])]
        rows = [Row(label, [columns[:, k, c]]) for k, label in enumerate(labels)]
        groups.append(Group(scale or color_scale(columns[:, :, c]), channel, rows))
        known = std[:, c][np.isfinite(std[:, c])]
        groups.append(Group(Scale(0.0, float(known.max(initial=0)) or 1.0, "viridis"), "", [Row("std", [std[:, c]])]))
    return draw_groups(groups, [title], [len(columns)])


def draw_bands(columns: Values, band: Band, names: Sequence[str], channels: Sequence[str]) -> "Figure":
    """Of each condition (N, k, C, L), or (N, k, L): curves with these names, the last of which is of all further curves, and
    a band.
    """
    from matplotlib.figure import Figure  # takes a second to import

    if columns.ndim == 3:
        columns, band = columns[:, :, None], Band(band.low[:, None], band.high[:, None], band.name)
    rows, marker = len(columns), "." if columns.shape[3] < 64 else None
    styles: dict[str, dict[str, Any]] = {
        "given": {"color": "tab:orange", "lw": 1, "drawstyle": "steps-mid"},
        "observed": {"color": "tab:orange", "lw": 0, "marker": ".", "zorder": 3},
        "truth": {"color": "black", "lw": 1, "marker": marker},
        "mean": {"color": "tab:blue", "lw": 1.5},
        "median": {"color": "tab:blue", "lw": 1, "ls": "--"},
        "drawn": {"color": "tab:blue", "lw": 0.6, "alpha": 0.5, "zorder": 1},
    }
    figure = Figure(figsize=(2 + 4 * len(channels), 1.7 * max(rows, 2)), layout="constrained")
    grid = figure.subplots(rows, len(channels), squeeze=False, sharex=True)
    x = range(columns.shape[3])
    for k in range(rows):
        for c, axes in enumerate(grid[k]):
            axes.fill_between(x, band.low[k, c], band.high[k, c], color="tab:blue", alpha=0.2, lw=0, label=band.name)
            for j, curve in enumerate(columns[k, :, c]):
                name = names[min(j, len(names) - 1)]
                axes.plot(x, curve, label=name if j < len(names) else None, **styles[name])
            axes.set_ylabel(channels[c], fontsize=8)
    grid[0, 0].legend(fontsize=7)
    return figure
