"""Pictures of ensembles: their rank histogram, and a few conditions with truth, mean, spread and samples."""

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from lightning_score.callbacks.pictures import drawable, figure_picture, strip_picture
from lightning_score.data import ScoreData
from lightning_score.metrics.ensembles import RankHistogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8
"""Conditions in the picture."""
MEMBERS = 6
"""Samples of each."""


def summary(members: Tensor) -> Tensor:
    """Mean, standard deviation and the first members of an ensemble (M, *shape), (2 + MEMBERS, *shape); NaN beyond M."""
    members = members.float()
    found = torch.full((2 + MEMBERS, *members.shape[1:]), torch.nan, device=members.device)
    found[0], found[1] = members.mean(0), members.std(0)
    found[2 : 2 + len(members)] = members[:MEMBERS]
    return found


def rank_figure(histogram: RankHistogram, spread_skill: float) -> "Figure":
    """The shares of ranks over the band in which those of a calibrated model are."""
    from matplotlib.figure import Figure  # takes a second to import

    n = len(histogram.shares)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel=f"rank of the truth among {n - 1} samples", ylabel="share of truths")
    shares, low, high = (part.numpy() for part in histogram[:3])
    axes.bar(range(n), shares, width=0.8, color="tab:blue")
    band: dict[str, Any] = {"color": "tab:orange", "alpha": 0.35, "width": 1.0, "label": "95 % of calibrated models"}
    axes.bar(range(n), high - low, bottom=low, **band)
    axes.axhline(1 / n, color="tab:orange", lw=1)
    axes.set_ylim(0, 1.25 * max(*shares, *high))
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="upper center")
    axes.set_title(
        f"deviation {histogram.deviation:.3f} (calibrated: {histogram.calibrated:.3f}, 95 % below {histogram.limit:.3f}); "
        f"spread / error {spread_skill:.2f}",
        fontsize=9,
    )
    return figure


def ensemble_picture(data: ScoreData, truths: Tensor, given: Tensor | None, shown: Tensor) -> Image.Image:
    """A row for each condition: what is given, if it can be drawn, the truth, mean, standard deviation and samples; curves
    of signals and of the columns of tables; of volumes the central slices.

    Args:
        data: the data.
        truths: the examples that belong to the conditions, as stored, (N, *shape).
        given: the conditions in this form, (N, *shape); None if they cannot be drawn.
        shown: the `summary` of each ensemble.
    """
    columns = torch.cat([truths[: len(shown), None].to(shown), shown], 1)
    if truths.ndim < 4:
        return figure_picture(_curves(columns if truths.ndim == 3 else columns[:, :, None]))
    if given is not None:
        columns = torch.cat([given[: len(shown), None].to(shown), columns], 1)
    columns = columns[:, : (~columns[0].flatten(1).isnan().all(1)).sum()]  # fewer members than there is room for
    if columns.ndim == 6:
        columns = columns[:, :, :, columns.shape[3] // 2]
    deviation = 2 if given is None else 3
    values = torch.cat([columns[:, :deviation], columns[:, deviation + 1 :]], 1)
    low, high = (float(end) for end in values[values.isfinite()].aminmax())
    std = columns[:, deviation]
    columns[:, deviation] = low + (high - low) * std / std.max().clamp(min=1e-12)
    shades = drawable(data, columns.nan_to_num(low).flatten(0, 1)).unflatten(0, columns.shape[:2])
    return strip_picture(shades.unbind(1))


def _curves(columns: Tensor) -> "Figure":
    """Of each condition (N, 3 + MEMBERS, C, L): the samples, their mean and two standard deviations, and the truth; of
    the first three channels.
    """
    from matplotlib.figure import Figure  # takes a second to import

    rows, channels = len(columns), min(3, columns.shape[2])
    figure = Figure(figsize=(2 + 4 * channels, 1.6 * rows), layout="constrained")
    grid = figure.subplots(rows, channels, squeeze=False, sharex=True)
    x, marker = range(columns.shape[3]), "." if columns.shape[3] < 64 else None
    for k in range(rows):
        for c, axes in enumerate(grid[k]):
            truth, mean, std, *members = columns[k, :, c]
            for member in members:
                axes.plot(x, member, color="tab:blue", lw=0.6, alpha=0.5)
            axes.fill_between(x, mean - 2 * std, mean + 2 * std, color="tab:blue", alpha=0.2, lw=0)
            axes.plot(x, mean, color="tab:blue", lw=1.5, label="mean, two standard deviations, samples")
            axes.plot(x, truth, color="black", lw=1, marker=marker, label="truth")
    grid[0, 0].legend(fontsize=8)
    return figure
