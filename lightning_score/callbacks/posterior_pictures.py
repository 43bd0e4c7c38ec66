"""Posteriors that samples show: their mean, standard deviation and quantiles for each observation, and a picture of them."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_score.callbacks.ensemble_pictures import (
    CURVES,
    IN_FIELDS,
    MEMBERS,
    SHOWN,
    Band,
    channel_labels,
    draw_bands,
    draw_maps,
    slices,
)
from lightning_score.callbacks.mosaics import Scale, color_scale
from lightning_score.callbacks.pictures import figure_picture, in_pixels
from lightning_score.callbacks.plots import to_values
from lightning_score.data import ScoreData
from lightning_score.guidance.observed import ObservationGuidance
from lightning_score.observations import LinearOperator

QUANTILES = (0.05, 0.5, 0.95)
NAMES = ("mean", "5 %", "median", "95 %")


def lifted(given: ObservationGuidance, n: int, data: ScoreData) -> Tensor | None:
    """The first n observations in the form of samples, and in their units: as they are, or the smallest x with A x = y, NaN
    where A observes nothing; None if A is not linear.
    """
    operator, y = given.operator, given.given()[:n]
    if not isinstance(operator, LinearOperator):
        return None
    if y.shape[1:] == data.shape:
        return y if in_pixels(data) else data.to_reference(y)
    x = operator.lift(y, data.shape)
    noise = torch.randn(1, *data.shape, generator=torch.Generator().manual_seed(0))
    seen = operator.lift(operator.apply(noise), data.shape).abs() > 1e-6
    return (x if in_pixels(data) else data.to_reference(x)).where(seen, torch.nan)


class Posteriors(NamedTuple):
    """Summaries of samples for each of n observations, NaN where it has no sample, or of the deviation only one.

    Fields: mean and std (n, *shape), quantiles (n, 3, *shape), the `QUANTILES`.
    """

    mean: Tensor
    std: Tensor
    quantiles: Tensor

    @classmethod
    def of(cls, x: Tensor, observation: Tensor, n: int) -> "Posteriors":
        """Those of samples x (N, *shape) of the observations of these numbers, (N,)."""
        found = cls(*(x.new_full((n, *more, *x.shape[1:]), torch.nan) for more in ((), (), (len(QUANTILES),))))
        for k in observation.unique().tolist():
            members = x[observation == k]
            found.mean[k] = members.mean(0)
            found.quantiles[k] = torch.from_numpy(np.quantile(members, QUANTILES, 0))  # torch's takes 2^24 numbers at most
            if len(members) > 1:
                found.std[k] = members.std(0)
        return found


def posterior_picture(
    data: ScoreData, given: ObservationGuidance, found: Posteriors, x: Tensor, observation: Tensor
) -> Image.Image:
    """Of the first observations: what is observed, if A is linear, mean, quantiles, some samples and standard deviations;
    maps of images, fields and central slices of volumes, curves of signals and of the columns of tables.

    Args:
        data: the data.
        given: the guidance by the observations.
        found: the summaries of their samples.
        x: the samples, in the same units, (N, *shape).
        observation: the number of the observation of each sample, (N,).
    """
    curves = x.ndim not in (4, 5)
    rows = observation.unique()[: CURVES if curves else SHOWN]
    observed = lifted(given, int(rows.max()) + 1, data)
    parts = [] if observed is None else [observed[rows].to(x)]
    parts += [found.mean[rows], *found.quantiles[rows].unbind(1)]
    labels = channel_labels(data, x)
    colors = in_pixels(data) and x.shape[1] == 3
    wanted = MEMBERS if curves else IN_FIELDS if len(labels) == 1 or colors else 1
    drawn = [x[observation == k][:wanted] for k in rows]
    parts += torch.stack([each[: min(map(len, drawn))] for each in drawn]).unbind(1)
    names = [*(["observed"] if observed is not None else []), *NAMES, "drawn"]
    columns, std = (to_values(slices(part)) for part in (torch.stack(parts, 1), found.std[rows][:, None]))
    if curves:
        low, high = (columns[:, names.index(name)] for name in NAMES[1::2])
        kept = [k for k in range(columns.shape[1]) if k not in (names.index("5 %"), names.index("95 %"))]
        names = [name for name in names if name not in NAMES[1::2]]
        return figure_picture(draw_bands(columns[:, kept], Band(low, high, "5 to 95 %"), names, labels))
    title, scale = "an observation in each column", None
    if in_pixels(data):
        scale = color_scale(columns)._replace(colors="gray") if data.data_range is None else Scale(*data.data_range, "gray")
        if colors:
            labels, columns, std = [""], np.moveaxis(columns, 2, -1)[:, :, None], std.mean(2, keepdims=True)
    return figure_picture(draw_maps(columns, std[:, 0], names, labels, title, scale))
