"""Distances without features in an evaluation: which ones, their records, and pictures of what they compare."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_score.callbacks.pictures import figure_picture, publish
from lightning_score.callbacks.plots import drawable_text
from lightning_score.data import ScoreData
from lightning_score.metrics import Distance, EnergyDistance, Histogram, PowerSpectrum, SlicedWasserstein
from lightning_score.metrics.distances import Curves
from lightning_score.metrics.summaries import Summaries
from lightning_score.runs.records import Record, metric_name, settings_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES: tuple[dict[str, Any], ...] = ({"color": "black"}, {"color": "#d05000", "ls": "--"})
"""The lines of data and of samples."""
PANELS = 36
"""Most channels that a picture shows: the first ones."""


def automatic_distances(data: ScoreData, slow: bool) -> list[Distance]:
    """The distances that are measured if nothing is asked for: of continuous data, those that their shape allows.

    Args:
        data: the data.
        slow: also those that are not quick.
    """
    if data.levels is not None:
        return []
    found: list[Distance] = [SlicedWasserstein(), EnergyDistance(), PowerSpectrum(), Histogram()]
    return [each for each in found if not each.misfit(data.shape) and (slow or each.quick)]


def measures(evaluate: Any, data: ScoreData) -> bool:
    """Whether the options of `Evaluate`, or an instance of it, ask for samples of a model of these data."""
    distances = automatic_distances(data, slow=True) if evaluate.distances is None else evaluate.distances
    return evaluate.features not in (None, []) or len(distances) > 0


def record_of(blank: Record, reference: Summaries) -> Record:
    """What the records of a distance have in common.

    Args:
        blank: what all records have in common; its `n` is the number of samples that names mention.
        reference: the data as the distance sees them.
    """
    settings = json.dumps(settings_of(reference.distance), sort_keys=True)
    name, digest = metric_name(reference.distance.name, "", blank.n), hashlib.sha256(settings.encode()).hexdigest()[:16]
    floor_n = None if reference.floor is None else reference.n
    return replace(blank, metric=name, features_hash=digest, floor=reference.floor, floor_n=floor_n, n=reference.n)


def publish_curves(trainer: Trainer, data: ScoreData, reference: Summaries, kept: Tensor, caption: str) -> None:
    """Writes and logs the picture of a distance, if it has one.

    Args:
        trainer: the trainer.
        data: the data.
        reference: the data as the distance sees them.
        kept: summaries of samples.
        caption: what the samples are.
    """
    if reference.distance.picture:
        figure = curves_figure(reference.curves(kept), reference.curves(reference.data), data.names, data.units)
        picture = figure_picture(figure)
        publish(trainer, reference.distance.picture, picture, f"{caption}: {reference.n} samples and the data")


def curves_figure(samples: Curves, data: Curves, names: Sequence[str], units: str) -> "Figure":
    """The mean curve of samples and that of the data in a panel for each channel, each with a band of two standard errors.

    Args:
        samples: curves of samples.
        data: curves of the data.
        names: names of the channels, if they have any.
        units: units of the data, if they have any.
    """
    from matplotlib.figure import Figure  # takes a second to import

    count = len(data.x)
    shown = min(count, PANELS)
    columns = min(shown, math.ceil(math.sqrt(1.4 * shown)))
    rows = math.ceil(shown / columns)
    width, height = (6.0, 4.2) if shown == 1 else (3.2, 2.4)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for k, axes in enumerate(grid.flat):
        if k >= shown:
            axes.axis("off")
            continue
        _panel(axes, samples, data, k, units)
        if count > 1:
            axes.set_title(drawable_text(names[k]) if k < len(names) else f"channel {k}", fontsize=9)
    grid.flat[0].legend(fontsize=8)
    if shown < count:
        figure.suptitle(f"the first {shown} of {count} channels", fontsize=10)
    return figure


def _panel(axes: "Axes", samples: Curves, data: Curves, k: int, units: str) -> None:
    """The curves of channel k."""
    from matplotlib.ticker import AsinhLocator, FuncFormatter, LogLocator, NullFormatter

    x, width = data.x[k], float(data.linear_width[k])
    means = [curves.values[:, k].mean(0) for curves in (data, samples)]
    shown = ((means[0] > 0) | (means[1] > 0)) & (x > (0 if width == 0 else -math.inf))
    for curves, mean, label, style in zip((data, samples), means, ("data", "samples"), STYLES, strict=True):
        error = curves.values[:, k].std(0) / len(curves.values) ** 0.5
        low, high = (mean - 2 * error)[shown], (mean + 2 * error)[shown]
        axes.plot(x[shown], mean[shown], label=label, lw=1.2, **style)
        axes.fill_between(x[shown], low, high, color=style["color"], alpha=0.25, linewidth=0)
    if data.logarithmic:
        axes.set_yscale("log")
    if (means[0] > 0).any():
        axes.set_ylim(bottom=float(means[0][means[0] > 0].min()) / 3 if data.logarithmic else 0.0)
    if math.isfinite(width):
        axes.set_xscale("asinh", linear_width=width) if width > 0 else axes.set_xscale("log")
        axes.xaxis.set_major_locator(AsinhLocator(width, numticks=5) if width > 0 else LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    label, value = (
        text.format(units=units) if units else re.sub(r" \(.*{units}.*\)", "", text) for text in (data.x_label, data.label)
    )
    axes.set(xlabel=drawable_text(label), ylabel=drawable_text(value))
    axes.grid(alpha=0.3)
