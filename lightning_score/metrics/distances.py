"""Distances of samples from data of any shape, without image features: their interface, sliced Wasserstein, energy."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.estimates import Estimate, jackknife_error
from lightning_score.metrics.channels import Channels, chunks
from lightning_score.metrics.frechet import mean_over_splits
from lightning_score.metrics.statistics import BLOCKS, block_of

ROOM = 1 << 26
"""Most numbers in the summaries of samples, and in those of data: 256 MB."""
WORK = 1 << 26
"""Numbers that the splits of a floor compare, together."""


class Curves(NamedTuple):
    """What a distance compares, as curves of each channel, for a picture.

    Fields: x (C, K); values of each example (N, C, K); labels of both, as `value ({units})`, whose parentheses are left out
    where the data have no units; linear_width (C,), up to which x is drawn linearly and beyond it logarithmically;
    logarithmic: whether values are drawn so.
    """

    x: Tensor
    values: Tensor
    x_label: str
    label: str
    linear_width: Tensor
    logarithmic: bool


class Distance(ABC):
    """A distance of samples from data, computed from a short vector of numbers, the summary, of each of them.

    Summaries are all that is kept, so that memory does not grow with the size of an example. A distance defines `summarize`
    and `compare`; error and floor follow from these.

    Attributes:
        name: the kind of the metric, as in `<name>_1k`.
        picture: the name of the picture of its curves; empty: it has none.
        quick: whether it takes at most seconds for ten thousand samples.
        max_samples: most samples and examples that are compared: the first samples, and random examples.
    """

    name: str
    picture: str = ""
    quick: bool = True
    max_samples: int = 10_000

    @abstractmethod
    def summarize(self, x: Tensor, channels: Channels) -> Tensor:
        """The summaries (B, F) of examples (B, *shape), given the channels of the data."""

    @abstractmethod
    def compare(self, samples: Tensor, data: Tensor) -> float:
        """The distance of summaries (n, F) of samples from those of data (N, F)."""

    def misfit(self, shape: Sequence[int]) -> str:
        """Why examples of a shape cannot be measured; empty if they can."""
        return ""

    def curves(self, summaries: Tensor, channels: Channels, shape: Sequence[int], examples: int) -> Curves:
        """The curves of summaries of examples of a shape, with a resolution for so many examples, if there is a picture."""
        raise NotImplementedError

    def all_summaries(self, x: Tensor, channels: Channels) -> Tensor:
        """The summaries of any number of examples."""
        return torch.cat([self.summarize(part, channels) for part in chunks(x)])

    def __call__(self, samples: Tensor, data: Tensor) -> Estimate:
        """The distance of samples (n, *shape) from data (N, *shape) and its standard error.

        Raises:
            InputError: they have different shapes, or another shape than the distance needs, or are too few.
        """
        shape = tuple(data.shape[1:])
        require(tuple(samples.shape[1:]) == shape, f"samples of shape {tuple(samples.shape[1:])}: must be as data, {shape}")
        require(not self.misfit(shape), f"{type(self).__name__}: {self.misfit(shape)}")
        few = f"{type(self).__name__} got {len(samples)} samples and {len(data)} examples; it needs 2 of each"
        require(min(len(samples), len(data)) >= 2, few)
        channels = Channels.of(data)
        return self.estimate(self.all_summaries(samples, channels), self.all_summaries(data, channels))

    def estimate(self, samples: Tensor, data: Tensor) -> Estimate:
        """The distance of summaries, and its standard error over samples by the jackknife over blocks of them."""
        value, blocks = self.compare(samples, data), min(BLOCKS, len(samples))
        if blocks < 3:
            return Estimate(value, math.nan)
        block = block_of(torch.arange(len(samples)), len(samples), blocks).to(samples.device)
        without = tuple(self.compare(samples[block != b], data) for b in range(blocks))
        return Estimate(value, jackknife_error(without), without)

    def floor(self, data: Tensor, n: int) -> float | None:
        """The mean distance of n samples of the data's own law from these data, given their summaries (N, F).

        It is that of disjoint random subsets of them, scaled to n and N by a power of 1/n + 1/N that subsets of half the
        size determine.
        """
        total, size = len(data), min(n, len(data) // 2)
        if size < 4:
            return None
        splits = min(max(WORK // data.numel(), 5), 200)
        return mean_over_splits(lambda ours, others: self.compare(data[ours], data[others]), total, size, total, n, splits)


def wasserstein(x: Tensor, y: Tensor, order: float) -> Tensor:
    """`int_0^1 |F_x^-1(u) - F_y^-1(u)|^p du`, the p-th power of the Wasserstein distance of samples on the line, exactly.

    Args:
        x: P samples of n points each (n, P).
        y: of N points each (N, P).
        order: p.

    Returns:
        (P,)
    """
    n, m = len(x), len(y)
    ends = torch.cat([torch.arange(1, k + 1, dtype=torch.float64) / k for k in (n, m)]).sort().values
    width = ends.diff(prepend=ends.new_zeros(1))  # of the steps in u on which both quantiles are constant
    middle = ends - width / 2
    sorted_x, sorted_y = (np.sort(points.cpu().numpy(), axis=0) for points in (x, y))  # three times as fast as torch
    of_x, of_y = ((middle * k).long().clamp(max=k - 1).numpy() for k in (n, m))
    gap = torch.from_numpy(sorted_x[of_x] - sorted_y[of_y])
    return width @ gap.double().abs() ** order


class SlicedWasserstein(Distance):
    """The sliced Wasserstein distance, `(E int_0^1 |F_x^-1(u) - F_y^-1(u)|^2 du)^(1/2)` of projections on random directions.

    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures". The quantile functions F^-1 are those of
    `x . direction`, and E is the mean over directions of unit length. These come in orthogonal sets (Rowland et al. 2019,
    "Orthogonal estimation of Wasserstein distances"), which have less variance. The distance of two laws that differ by a
    shift m is |m|/D^(1/2), so that it is of the size of a difference per number, whatever the number D of them. It is biased
    upwards: compare with the floor.

    Args:
        projections: number of directions, rounded up to complete sets; fewer for examples so large that the directions would
            take more than 512 MB.
        standardize: measure each channel or column in its standard deviations in the data, so that those in different units
            count equally; false: in the units of the data.
        seed: seed of the directions, which the value, its error and the floor share.

    Raises:
        InputError: there are no projections.
    """

    name = "sliced_wasserstein"

    def __init__(self, projections: int = 128, standardize: bool = True, seed: int = 0) -> None:
        require(projections >= 1, f"projections={projections}: must be at least 1")
        self.projections, self.standardize, self.seed = projections, standardize, seed
        self._directions = torch.zeros(0, 0)

    def directions(self, dimension: int) -> Tensor:
        """The directions (P, D)."""
        if self._directions.shape[1] != dimension:
            count = min(self.projections, max(1, (1 << 27) // dimension))
            each, generator = min(count, dimension), torch.Generator().manual_seed(self.seed)
            drawn = torch.randn(math.ceil(count / each), dimension, each, generator=generator)
            self._directions = torch.linalg.qr(drawn).Q.mT.flatten(0, 1).contiguous()
        return self._directions

    def summarize(self, x: Tensor, channels: Channels) -> Tensor:
        x = flattened(x, channels, self.standardize)
        return x @ self.directions(x.shape[1]).to(x.device).mT

    def compare(self, samples: Tensor, data: Tensor) -> float:
        return float(wasserstein(samples, data, 2).mean().sqrt())


class EnergyDistance(Distance):
    """The energy distance `2 E|x - y| - E|x - x'| - E|y - y'|` of independent x, x' and y, y', as an unbiased U-statistic.

    Szekely and Rizzo 2013, "Energy statistics: a class of statistics based on distances", eq. 5.1; it is 0 for equal laws
    alone. As a U-statistic, its means leave out the pairs of an example with itself: it is 0 on average for a perfect model,
    which is its floor, and may be negative; values of different n are comparable. The error includes that of the data.
    `scipy.stats.energy_distance` is the root of the V-statistic, which is biased upwards.

    Args:
        standardize: measure each channel or column in its standard deviations in the data, so that those in different units
            count equally; false: in the units of the data.
    """

    name = "energy_distance"
    quick = False
    max_samples = 5_000

    def __init__(self, standardize: bool = True) -> None:
        self.standardize = standardize

    def misfit(self, shape: Sequence[int]) -> str:
        return "compares whole examples, and these are too large" if 4 * math.prod(shape) > ROOM else ""

    def summarize(self, x: Tensor, channels: Channels) -> Tensor:
        return flattened(x, channels, self.standardize)

    def compare(self, samples: Tensor, data: Tensor) -> float:
        return self.estimate(samples, data).value

    def estimate(self, samples: Tensor, data: Tensor) -> Estimate:
        """The value and those without each block from sums of distances over pairs of blocks, which are computed once."""
        ours, theirs = (block_of(torch.arange(n), n, min(BLOCKS, n)).bincount() for n in (len(samples), len(data)))
        across = _distance_sums(samples, data, ours, theirs)
        within, other = _distance_sums(samples, samples, ours, ours), _distance_sums(data, data, theirs, theirs)

        def without(b: int | None, c: int | None) -> float:
            rows, columns = (torch.arange(len(k)) != (-1 if left is None else left) for k, left in ((ours, b), (theirs, c)))
            n, m = float(ours[rows].sum()), float(theirs[columns].sum())
            means = across[rows][:, columns].sum() / (n * m), within[rows][:, rows].sum() / (n * (n - 1))
            return float(2 * means[0] - means[1] - other[columns][:, columns].sum() / (m * (m - 1)))

        value = without(None, None)
        if min(len(ours), len(theirs)) < 3:
            return Estimate(value, math.nan)
        jackknife = tuple(without(b, None) for b in range(len(ours)))
        of_data = jackknife_error([without(None, c) for c in range(len(theirs))])
        return Estimate(value, math.hypot(jackknife_error(jackknife), of_data), jackknife)

    def floor(self, data: Tensor, n: int) -> float | None:
        """0, for the distance is unbiased."""
        return 0.0


def flattened(x: Tensor, channels: Channels, standardize: bool) -> Tensor:
    """Examples as vectors (B, D) from the mean of the data, in standard deviations of channels or in the data's units."""
    unit = channels if standardize else channels._replace(std=torch.ones_like(channels.std))
    return unit.standardized(x).flatten(1)


def _distance_sums(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    """The sums of `|x - y|` over the pairs of each two blocks of given sizes; of x with itself, without the pairs of one."""
    sums, first, whole = [], 0, y.double()
    for part in x.split(of_x.tolist()):
        apart = torch.cdist(part.double(), whole)
        if x is y:
            rows = torch.arange(len(part))
            apart[rows, first + rows] = 0
        sums.append(torch.stack([block.sum() for block in apart.sum(0).split(of_y.tolist())]))
        first += len(part)
    return torch.stack(sums).cpu()
