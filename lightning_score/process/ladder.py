"""The noise ladder and its Langevin step size from the data: techniques 1, 2 and 4 of Song and Ermon 2020 (2006.09011).

Levels sigma_1 > ... > sigma_L fall by the factor gamma = sigma_{i-1}/sigma_i > 1; every level takes T Langevin steps of size
e_i = step_size sigma_i^2/sigma_min^2, so that u = step_size/sigma_min^2 is the same at all of them.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_score.errors import require

Numbers = TypeVar("Numbers", float, np.ndarray)
LEAST_DIMENSION = 16
"""Technique 2 takes the samples of a level to lie in a thin shell, as they do in many dimensions only: in a few its equation
asks for a handful of levels, and in 4 or fewer it has no solution. Below 16 dimensions gamma is that of 16, which is 2.1."""


def max_distance(x: Tensor, block: int | None = None, progress: bool = False) -> float:
    """max_{i,j} ||x_i - x_j||, the largest Euclidean distance between two examples: technique 1's sigma_1.

    With norms about the mean, ||x_i - x_j||^2 = ||x_i||^2 + ||x_j||^2 - 2 x_i . x_j, block by block; nothing cancels in it
    for the farthest pair, which is at least as far apart as the largest norm. Blocks go by falling norm and end where
    ||x_i|| + ||x_j|| is below the best distance so far. float32, with a bound of its rounding errors, finds those that may
    hold a better pair; float64 finds the pair there, and its distance is that of its difference.
    Song and Ermon 2020 (2006.09011), technique 1.

    Args:
        x: examples (N, ...), N >= 2, in the data range of the model.
        block: examples compared at once; chosen by the dimension if None.
        progress: show a progress bar over the blocks.

    Raises:
        InputError: there are fewer than two examples, or one is not finite.
    """
    require(len(x) >= 2, f"there are {len(x)} examples: must be at least 2, for the largest distance between two")
    x = x.reshape(len(x), -1)
    block = block or max(1, min(2048, 2**23 // x.shape[1]))
    mean = x.mean(0, dtype=torch.float64)
    norms = torch.cat([(rows.double() - mean).norm(dim=1) for rows in x.split(block)])
    require(bool(norms.isfinite().all()), "the examples hold NaN or infinity: must be finite; clean the data")
    norms, order = norms.sort(descending=True)
    blocks = list(zip(norms.split(block), order.split(block), strict=True))
    best = 0.0
    bar = tqdm(blocks, "largest distance", leave=False, disable=not progress, unit="block", delay=1)
    for i, (left_norms, left) in enumerate(bar):
        centered = x[left].double() - mean
        for right_norms, right in blocks[i:]:
            if float(left_norms[0] + right_norms[0]) <= best:
                break
            other, a, b = x[right].double() - mean, float(left_norms[0]), float(right_norms[0])
            error = 2**-24 * (2 * (len(mean) + 2) * a * b + 4 * (a + b) ** 2)
            if float(_squared_distances(centered.float(), other.float()).max()) + error <= best**2:
                continue
            row, column = divmod(int(_squared_distances(centered, other).argmax()), len(right))
            best = max(best, float((x[left[row]].double() - x[right[column]].double()).norm()))
    return best


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """||x_i||^2 + ||y_j||^2 - 2 x_i . y_j, (N, M)."""
    return (x @ y.T).mul_(-2).add_(x.square().sum(1)[:, None]).add_(y.square().sum(1))


def coverage_of(gamma: float, dimension: int) -> float:
    """C = Phi(sqrt(2D) (gamma - 1) + 3 gamma) - Phi(sqrt(2D) (gamma - 1) - 3 gamma), how far adjacent levels overlap.

    It is the probability that ||x||, about N(sqrt(D) sigma_i, sigma_i^2/2) for x ~ N(0, sigma_i^2 I), lies within three
    standard deviations of the level above. Song and Ermon 2020 (2006.09011), technique 2.

    Args:
        gamma: the ratio of two adjacent levels, at least 1.
        dimension: D.
    """
    shift = math.sqrt(2 * dimension) * (gamma - 1)
    return NormalDist().cdf(shift + 3 * gamma) - NormalDist().cdf(shift - 3 * gamma)


def choose_gamma(dimension: int, coverage: float = 0.5) -> float:
    """The ratio gamma > 1 of adjacent levels at which `coverage_of` is C: with growing gamma it rises, then falls for good.

    Song and Ermon 2020 (2006.09011), technique 2; in fewer than `LEAST_DIMENSION` dimensions the gamma of so many.

    Args:
        dimension: D, numbers per example.
        coverage: C, at most Phi(3) - Phi(-3) = 0.9973, that of equal levels; the paper takes about 0.5.

    Raises:
        InputError: there is no such ratio.
    """
    require(dimension >= 1, f"dimension={dimension}: must be at least 1, the numbers in one example")
    most = coverage_of(1.0, dimension)
    require(
        0 < coverage < most,
        f"coverage={coverage}: must lie between 0 and {most:.4f}, the overlap of equal levels, as in coverage=0.5",
    )
    dimension = max(dimension, LEAST_DIMENSION)
    high = 2.0
    while coverage_of(high, dimension) >= coverage:
        high *= 2
    return _bisect(lambda gamma: coverage_of(gamma, dimension) < coverage, 1.0, high)


def choose_levels(sigma_max: float, sigma_min: float, dimension: int, coverage: float = 0.5) -> int:
    """L = 1 + ln(sigma_1/sigma_L)/ln gamma, rounded up, so that adjacent levels overlap by `coverage` or a little more.

    Song and Ermon 2020 (2006.09011), technique 2.

    Args:
        sigma_max: sigma_1, the largest level, in the units of the data.
        sigma_min: sigma_L, the smallest, below it.
        dimension: D, numbers per example.
        coverage: C.

    Raises:
        InputError: the levels are not in this order, or no ratio gives the coverage.
    """
    require(
        0 < sigma_min < sigma_max < math.inf,
        f"sigma_min={sigma_min}: must lie between 0 and sigma_max={sigma_max:.6g}, as the largest distance between two "
        f"examples is; try sigma_min={sigma_max / 1000:.3g}"
        if sigma_max > 0
        else "the largest distance between two examples is 0, so all are the same and there is no ladder: check the data",
    )
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(choose_gamma(dimension, coverage)))


def variance_ratio(step_size: float, sigma_min: float, gamma: float, steps: int, before: float = 1.0) -> float:
    """r = q (gamma^2 r' - k) + k, the sample variance over sigma_i^2 after level i, with q = (1 - u)^(2T), k = 2/(2 - u).

    Song and Ermon 2020 (2006.09011), Proposition 3 and technique 4 (r' = 1), for data at one point; with
    u = step_size/sigma_min^2, so that k is the paper's 2 epsilon/(sigma_L^2 - sigma_L^2 (1 - epsilon/sigma_L^2)^2).

    Args:
        step_size: epsilon, in squared units of the data, below 2 sigma_min^2.
        sigma_min: the smallest level, in the units of the data.
        gamma: the ratio of two adjacent levels, at least 1.
        steps: T, Langevin steps per level.
        before: r', the ratio after the level before.

    Raises:
        InputError: a value is out of range.
    """
    _coefficients(step_size, sigma_min, gamma, steps)
    return float(relaxed(gamma**2 * before, step_size / sigma_min**2, steps))


def relaxed(ratio: Numbers, u: Numbers, steps: int) -> Numbers:
    """q (r - k) + k with q = (1 - u)^(2T) and k = 2/(2 - u): the variance over v after T Langevin steps of size u v.

    On a Gaussian of variance v; Song and Ermon 2020 (2006.09011), Proposition 3.

    Args:
        ratio: r, the variance over v before.
        u: the step size over v, below 2.
        steps: T.
    """
    k = 2 / (2 - u)
    return (1 - u) ** (2 * steps) * (ratio - k) + k


def variance_limit(step_size: float, sigma_min: float, gamma: float, steps: int) -> float:
    """k (1 - q)/(1 - q gamma^2), the fixed point of `variance_ratio`, at which a long ladder settles.

    Song and Ermon 2020 (2006.09011), Proposition 3.

    Args:
        step_size: epsilon, in squared units of the data, below 2 sigma_min^2.
        sigma_min: the smallest level, in the units of the data.
        gamma: the ratio of two adjacent levels, at least 1.
        steps: T, Langevin steps per level.

    Raises:
        InputError: q gamma^2 >= 1, where the ratio grows from level to level without a bound.
    """
    q, k = _coefficients(step_size, sigma_min, gamma, steps)
    require(
        q * gamma**2 < 1,
        f"step_size={step_size}, steps={steps}: the sample variance grows without bound down a ladder of gamma={gamma:.4g} "
        f"(q gamma^2 = {q * gamma**2:.4g}, must be below 1); try step_size={choose_step_size(sigma_min, gamma, steps):.3g} "
        f"and more steps or levels",
    )
    return k * (1 - q) / (1 - q * gamma**2)


def choose_step_size(sigma_min: float, gamma: float, steps: int) -> float:
    """The step size in (0, 2 sigma_min^2) whose variance ratio r is closest to 1.

    r - 1 = q (gamma^2 - 1) + (1 - q) h with h = k - 1 = u/(2 - u) is positive, and u and 2 - u have the same q, so the
    smallest r is at u <= 1. There its derivative, q' (gamma^2 - 1 - h) + (1 - q) h', changes its sign once, because
    (1 - q) h'/(-q') grows with u; bisection finds where. Song and Ermon 2020 (2006.09011), technique 4.

    Args:
        sigma_min: the smallest level, in the units of the data.
        gamma: the ratio of two adjacent levels, above 1.
        steps: T, Langevin steps per level.

    Raises:
        InputError: a value is out of range.
    """
    _coefficients(sigma_min**2, sigma_min, gamma, steps)
    require(gamma > 1, f"gamma={gamma}: with a single level there is nothing to descend; give the step size yourself")

    def rises(u: float) -> bool:
        h, h_slope = u / (2 - u), 2 / (2 - u) ** 2
        q_slope = -2 * steps * (1 - u) ** (2 * steps - 1)
        covered = -math.expm1(2 * steps * math.log1p(-u))
        return q_slope * ((gamma - 1) * (gamma + 1) - h) + covered * h_slope > 0

    return sigma_min**2 * _bisect(rises, 0.0, 1.0)


class Plan:
    """A ladder of noise levels and its Langevin steps: gamma and L by technique 2, epsilon by technique 4, their variances.

    The first level starts with its variance, from the prior; every later one with the variance after the level above.
    Song and Ermon 2020 (2006.09011), section 3.

    Args:
        sigma_max: sigma_1, `max_distance` of the training examples by technique 1.
        dimension: D, numbers per example.
        sigma_min: sigma_L, in the units of the data.
        coverage: C.
        steps: T, Langevin steps per level, as many as the budget allows.

    Attributes:
        gamma: the ratio of levels that `coverage` asks for.
        exact_levels: the number of levels that gamma asks for, not rounded.
        levels: L.
        ratio: the ratio of adjacent levels of the ladder.
        step_size: epsilon.
        variance_ratios: the sample variance over sigma_i^2 after each level, the largest level first.
        variance_limit: its limit on a long ladder.
        sigmas: the levels sigma_i, descending.
        step_sizes: e_i = step_size sigma_i^2/sigma_min^2.
        evaluations: L T, network evaluations per sample, without a final denoise.

    Raises:
        InputError: a value is out of range.
    """

    def __init__(
        self, sigma_max: float, dimension: int, sigma_min: float = 0.01, coverage: float = 0.5, steps: int = 5
    ) -> None:
        self.sigma_max, self.dimension, self.sigma_min = sigma_max, dimension, sigma_min
        self.coverage, self.steps = coverage, steps
        self.levels = choose_levels(sigma_max, sigma_min, dimension, coverage)
        self.gamma = choose_gamma(dimension, coverage)
        self.exact_levels = 1 + math.log(sigma_max / sigma_min) / math.log(self.gamma)
        self.ratio = (sigma_max / sigma_min) ** (1 / (self.levels - 1))
        self.step_size = choose_step_size(sigma_min, self.ratio, steps)
        self.variance_ratios = [variance_ratio(self.step_size, sigma_min, 1.0, steps)]
        while len(self.variance_ratios) < self.levels:
            before = self.variance_ratios[-1]
            self.variance_ratios.append(variance_ratio(self.step_size, sigma_min, self.ratio, steps, before))
        self.variance_limit = variance_limit(self.step_size, sigma_min, self.ratio, steps)
        self.sigmas = [sigma_min * self.ratio**i for i in reversed(range(self.levels))]
        self.step_sizes = [self.step_size * (sigma / sigma_min) ** 2 for sigma in self.sigmas]
        self.evaluations = self.levels * steps


def _bisect(above: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest point between `low` and `high` at which `above` holds, to the last digit."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if above(middle) else (middle, high)
    return high


def _coefficients(step_size: float, sigma_min: float, gamma: float, steps: int) -> tuple[float, float]:
    """(q, k) = ((1 - u)^(2T), 2/(2 - u))."""
    require(0 < sigma_min < math.inf, f"sigma_min={sigma_min}: must be above 0, as in 0.01")
    require(1 <= gamma < math.inf, f"gamma={gamma}: must be above 1, the larger of two adjacent levels over the smaller")
    require(steps >= 1, f"steps={steps}: need at least one Langevin step per level, as in steps=5")
    u = step_size / sigma_min**2
    require(0 < u < 2, f"step_size={step_size}: must lie between 0 and 2 sigma_min^2 = {2 * sigma_min**2:.3g}")
    return (1 - u) ** (2 * steps), 2 / (2 - u)
