"""Distances of what scientists look at in signals and fields: the power spectrum and the one-point histogram."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_score.metrics.channels import Channels, by_channel
from lightning_score.metrics.distances import Curves, Distance

WEAKEST = 1e-8
"""Power, as a fraction of the mean power of a channel, below which all is equal: that of rounding."""
CELLS = 128
"""Cells of a histogram."""
ROUNDING = 1e-6
"""Share of an example's entries below which a cell is empty."""
MARGIN = 1.0
"""How far the cells extend beyond the range of the data, in asinh of the distance from the median."""


class PowerSpectrum(Distance):
    """The root mean square of `log(P_samples(k)/P_data(k))`, the log-spectral distance, over frequencies k and channels.

    Gray and Markel 1976, "Distance measures for speech processing". 0.1 means that the power differs by a tenth. P(k) is the
    mean of `|FFT(x)|^2/L` over examples and over the modes whose frequency is nearest to k cycles per length of the shortest
    axis: of a signal of L numbers every frequency, of a field or volume the radial average. x is the deviation from the mean
    of the channel, so that k = 0 is the power of the examples' means. White noise of variance v has power v at every k, and
    the mean over all modes is the mean square (Parseval). There is no window: where the ends of an axis do not match, power
    leaks to high frequencies, of samples and data alike. The distance is biased upwards: compare with the floor.
    """

    name = "power_spectrum"
    picture = "spectrum"

    def misfit(self, shape: Sequence[int]) -> str:
        short = math.prod(shape[1:]) < 2
        return "needs signals (C, L), fields or volumes; a table has no frequencies" if short else ""

    def summarize(self, x: Tensor, channels: Channels) -> Tensor:
        space = tuple(range(2, x.ndim))
        power = torch.fft.fftn(channels.standardized(x), dim=space).abs().square().flatten(2)
        shell, count = (tensor.to(x.device) for tensor in shells(tuple(x.shape[2:])))
        sums = power.new_zeros(*power.shape[:2], len(count)).index_add(2, shell, power)
        return (sums / (count * power.shape[2])).flatten(1)

    def compare(self, samples: Tensor, data: Tensor) -> float:
        ours, theirs = (power.double().mean(0) + WEAKEST for power in (samples, data))
        return float((ours / theirs).log().square().mean().sqrt())

    def curves(self, summaries: Tensor, channels: Channels, shape: Sequence[int], examples: int) -> Curves:
        count = len(channels.std)
        values = summaries.double().view(len(summaries), count, -1) * channels.std[:, None].square()
        x = torch.arange(values.shape[2]) / min(length for length in shape[1:] if length > 1)
        linear = torch.full((count,), math.inf if len(shape) == 2 else 0.0)
        return Curves(x.expand(count, -1), values, "frequency (cycles per step)", "power (({units})$^2$)", linear, True)


@lru_cache(8)
def shells(space: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """For each mode of a grid, flattened, the number of its shell, and the number of modes in each shell."""
    squares = torch.zeros(1)
    for length in space:
        squares = (squares[:, None] + torch.fft.fftfreq(length).double().square()).flatten()
    shell = (squares.sqrt() * min(length for length in space if length > 1)).round().long()
    return shell, shell.bincount()


class Histogram(Distance):
    """The mean over channels of the 1-Wasserstein distance `int |F_samples(v) - F_data(v)| dv` of the values of all entries.

    It is in standard deviations of the channel in the data. Every entry of every example counts: F is the one-point
    distribution of a signal, field or volume, or that of a column of a table. F is kept as its integral over 128 cells, fine
    about the median and coarse in the tails, so that the distance is exact unless the distributions cross within a cell
    (which makes it smaller), or values are far beyond the range of the data. It is biased upwards: compare with the floor.
    """

    name = "histogram"
    picture = "histogram"

    def nodes(self, channels: Channels) -> Tensor:
        """The ends of the cells, (C, 129), in standard deviations from the mean: `median + spread sinh(t)`, evenly in t."""
        ends = [(end - channels.mean) / channels.std for end in (channels.low, channels.high)]
        low, high = (((end - channels.median) / channels.spread).asinh() for end in ends)
        t = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64)
        t = (low - MARGIN)[:, None] + (high - low + 2 * MARGIN)[:, None] * t
        return (channels.median[:, None] + channels.spread[:, None] * t.sinh()).float()

    def summarize(self, x: Tensor, channels: Channels) -> Tensor:
        nodes = self.nodes(channels).to(x.device)
        values = by_channel(channels.standardized(x)).transpose(0, 1).contiguous()  # (C, B, L)
        count, batch, length = values.shape
        values = values.flatten(1).clamp(nodes[:, :1], nodes[:, -1:])
        cell = torch.searchsorted(nodes, values, right=True).sub_(1).clamp_(0, CELLS - 1)
        width = nodes.diff()
        above = (values - nodes.gather(1, cell)) / width.gather(1, cell)  # the share of the mass that the cell's end gets
        mass = values.new_zeros(count, batch, CELLS + 1)
        for place, share in ((cell, 1 - above), (cell + 1, above)):
            mass.scatter_add_(2, place.view(count, batch, length), share.view(count, batch, length))
        integral = mass[..., :-1].cumsum(2) / length * width[:, None]  # of F over each cell
        return integral.transpose(0, 1).flatten(1)

    def compare(self, samples: Tensor, data: Tensor) -> float:
        gap = samples.double().mean(0) - data.double().mean(0)
        return float(gap.abs().view(-1, CELLS).sum(1).mean())

    def curves(self, summaries: Tensor, channels: Channels, shape: Sequence[int], examples: int) -> Curves:
        group = 1
        while CELLS // group > max(16, 3 * (examples * math.prod(shape[1:])) ** (1 / 3)):
            group *= 2  # few values take wider cells
        nodes = self.nodes(channels)
        below = summaries.double().view(len(summaries), len(nodes), CELLS) / nodes.diff()
        mass = below.diff(dim=2, prepend=torch.zeros_like(below[..., :1]), append=torch.ones_like(below[..., :1]))
        mass = mass.where(mass > ROUNDING, 0)[..., :-1].unflatten(2, (-1, group)).sum(3)
        edges = torch.cat([nodes[:, :1], (nodes[:, 1:] + nodes[:, :-1]) / 2], 1)[:, ::group]  # a node has half a cell around
        density = mass / (edges.diff() * channels.std[:, None])
        x = channels.mean[:, None] + channels.std[:, None] * (edges[:, 1:] + edges[:, :-1]) / 2
        reach = torch.maximum(channels.high - channels.mean, channels.mean - channels.low) / (channels.std * channels.spread)
        linear = torch.where(reach > 50, channels.std * channels.spread, torch.inf)
        return Curves(x, density, "value ({units})", "density (1/({units}))", linear, group <= 2)
