"""Annealed Langevin dynamics for a budget of evaluations: levels, steps and step sizes from a model's score norms.

The score norm of a level, n(sigma) = E||sigma score||^2/D at its law p_sigma, is 1 where the data have no spread and less
where they have: n(sigma) = sum_k w_k sigma^2/(lambda_k + sigma^2) for a Gaussian with variance lambda_k in a share w_k of
its dimensions. The Gaussian with the norms of a model at all its levels says how fast Langevin dynamics relaxes: in a
direction k the variance v = lambda_k + sigma^2 takes the place of sigma^2 in technique 4 of Song and Ermon 2020
(2006.09011).

The deviation of a level's samples is a Kullback-Leibler divergence in which each dimension counts by the share of the data
in its variance, lambda_k/(lambda_k + sigma^2): what is noise alone is renewed at the next level and removed at the end.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls
from torch import Tensor

from lightning_score.process.ladder import choose_levels, relaxed
from lightning_score.sampling.corrector import Corrector
from lightning_score.sampling.noise import NoiseSource, NoiseStream
from lightning_score.score.function import ScoreField

Array = np.ndarray[Any, np.dtype[np.float64]]
SIZES = np.geomspace(0.002, 1.0, 250)
"""The step sizes e/sigma^2 that are tried; steps larger than sigma^2 contract no faster."""
SNRS = np.geomspace(0.02, 0.6, 12)
"""The signal-to-noise ratios that are tried; e/sigma^2 = 2 snr^2."""
CLOSE = 1.5
"""Of the ladders whose deviation is at most so many times the least, the one with the most levels is taken: the deviation
hardly depends on their number, and a network knows the score best near the law of its level (technique 2).
"""


class EquivalentGaussian(NamedTuple):
    """Variances lambda_k, in squared units of the data, (K,), and the shares w_k of the dimensions that have them, (K,)."""

    variances: Array
    shares: Array

    def score_norm(self, sigma: float, ratios: Array | float = 1.0) -> float:
        """E||sigma score||^2/D at samples whose variances are `ratios`, (K,), times lambda_k + sigma^2."""
        return float(self.shares @ (ratios * sigma**2 / (self.variances + sigma**2)))

    def deviation(self, sigma: float, ratios: Array) -> Array:
        """sum_k c_k (r_k - 1 - ln r_k)/2, the Kullback-Leibler divergence of variance ratios r (..., K) at a level.

        c_k is in proportion to w_k (lambda_k + sigma^2/100)/(lambda_k + sigma^2); the hundredth is for data without spread.
        """
        counted = self.shares * (self.variances + sigma**2 / 100) / (self.variances + sigma**2)
        return np.asarray((ratios - 1 - np.log(ratios)) @ (counted / counted.sum()) / 2)


def equivalent_gaussian(sigmas: Sequence[float], norms: Sequence[float]) -> EquivalentGaussian:
    """The Gaussian whose score norms are nearest to the given ones, by non-negative least squares.

    Args:
        sigmas: noise levels as sigma/alpha, (L,).
        norms: E||sigma score||^2/D at each, (L,).
    """
    levels, total = np.asarray(sigmas), 1e3  # the weight of sum_k w_k = 1
    variances = np.array([0.0, *np.geomspace(levels.min() / 10, 2 * levels.max(), 80) ** 2])
    norm_of = levels[:, None] ** 2 / (variances + levels[:, None] ** 2)
    shares, _ = nnls(np.vstack([norm_of, np.full(len(variances), total)]), np.array([*norms, total]))
    kept = shares > 0
    return EquivalentGaussian(variances[kept], shares[kept] / shares.sum())


class TunedLevel(NamedTuple):
    """The Langevin steps at one noise level.

    Fields: sigma (sigma/alpha), u (the step size e over sigma^2), steps (T), deviation (of the samples' law after them, see
    `EquivalentGaussian.deviation`), variance_ratio (E||score||^2 at these samples over that at the level's law).
    """

    sigma: float
    u: float
    steps: int
    deviation: float
    variance_ratio: float


def _level(gaussian: EquivalentGaussian, sigma: float, before: Array, steps: int) -> tuple[TunedLevel, Array]:
    """The level with its best step size, from the variances before it (K,); and those after it (K,)."""
    v = gaussian.variances + sigma**2
    ratios = relaxed(before / v, SIZES[:, None] * sigma**2 / v, steps)
    deviations = gaussian.deviation(sigma, ratios)
    best = int(deviations.argmin())
    ratio = gaussian.score_norm(sigma, ratios[best]) / gaussian.score_norm(sigma)
    return TunedLevel(sigma, float(SIZES[best]), steps, float(deviations[best]), ratio), ratios[best] * v


def _descend(
    gaussian: EquivalentGaussian, sigmas: Sequence[float], start: float, evaluations: int, deviation: float
) -> list[TunedLevel]:
    """The ladder with the fewest steps after each level of which the deviation is at most the given one; the last level
    takes the evaluations that are left. Empty if they do not suffice.
    """
    before, levels, left = np.full_like(gaussian.variances, start), list[TunedLevel](), evaluations
    for sigma in sigmas:

        def closeness(steps: int, sigma: float = sigma, before: Array = before) -> float:
            return -_level(gaussian, sigma, before, steps)[0].deviation

        later = len(sigmas) - len(levels) - 1  # levels, which need a step each
        most = left - later
        steps = bisect_left(range(1, most + 1), -deviation, key=closeness) + 1 if later else most
        if steps > most:
            return []
        level, before = _level(gaussian, sigma, before, steps)
        levels.append(level)
        left -= steps
    return levels if levels[-1].deviation <= deviation else []


def tuned_steps(
    gaussian: EquivalentGaussian, sigmas: Sequence[float], start: float, evaluations: int
) -> tuple[float, list[TunedLevel]]:
    """The least deviation delta to which all levels of a ladder can keep within a budget; and the steps which do so.

    Args:
        gaussian: the Gaussian with the model's score norms.
        sigmas: the levels as sigma/alpha, descending, (L,).
        start: variance of the samples' x/alpha before the first step.
        evaluations: sum of the steps, at least L.
    """
    low, high, found = 1e-9, 1e9, list[TunedLevel]()
    while high / low > 1.003:
        middle = (low * high) ** 0.5
        if levels := _descend(gaussian, sigmas, start, evaluations, middle):
            high, found = middle, levels
        else:
            low = middle
    return high, found


def tuned_ladder(
    gaussian: EquivalentGaussian, levels: Sequence[float], only: bool, start: float, evaluations: int, dimension: int
) -> tuple[dict[int, float], list[TunedLevel]]:
    """The ladder of a budget: among geometric ones of 2, 3, ... levels that of the least deviation, or with more levels.

    Args:
        gaussian: the Gaussian with the model's score norms.
        levels: noise levels as sigma/alpha, descending, of which the first and the last are kept.
        only: whether a ladder may have only these, as for a model that was trained at them, or any between the ends.
        start: variance of the samples' x/alpha before the first step.
        evaluations: sum of the steps, at least 2.
        dimension: D, for technique 2's number of levels, the most.

    Returns:
        The deviations by number of levels, and the levels.
    """
    first, last = levels[0], levels[-1]
    most = min(evaluations, len(levels) if only else choose_levels(first, last, dimension))
    counts = sorted({int(n) for n in np.geomspace(2, most, 16).round()}) if most > 16 else range(2, most + 1)
    ladders: dict[int, tuple[float, list[TunedLevel]]] = {}
    for count in counts:
        sigmas = np.geomspace(first, last, count)
        if only:
            sigmas = np.asarray(levels)[np.unique(np.abs(np.log(sigmas)[:, None] - np.log(levels)).argmin(1))]
        ladders[len(sigmas)] = tuned_steps(gaussian, sigmas.tolist(), start, evaluations)
    least = min(delta for delta, _ in ladders.values())
    chosen = max(count for count, (delta, _) in ladders.items() if delta <= CLOSE * least)
    return {count: delta for count, (delta, _) in ladders.items()}, ladders[chosen][1]


class SnrSearch(Corrector):
    """Corrects with the signal-to-noise ratio after which E||score||^2 is closest to that at p_t.

    Args:
        corrector: makes a corrector from its snr.
        steps: corrections in a row.
        at_data: E||score||^2 per entry at p_t, of a time t.
    """

    evaluations = 1

    def __init__(self, corrector: Callable[[float], Corrector], steps: int, at_data: Callable[[Tensor], float]):
        self.corrector, self.steps, self.at_data = corrector, steps, at_data
        self.found: list[TunedSnr] = []

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        target, sigma = self.at_data(t), float(score.process.noise_level(t))
        before, tried = _mean_square(score(x, t)) / target, []
        for snr in SNRS.tolist():
            method, y = self.corrector(snr), x
            draws = NoiseStream(len(self.found), range(len(x)), x.shape[1:], x.device, x.dtype)  # the same for every snr
            for _ in range(self.steps):
                y, _ = method.step(score, y, t, s, draws, None)
            tried.append((TunedSnr(sigma, snr, before, _mean_square(score(y, t)) / target), y))
        best, result = min(tried, key=lambda one: abs(one[0].after - 1))
        self.found.append(best)
        return result, state


class TunedSnr(NamedTuple):
    """The signal-to-noise ratio at a noise level sigma/alpha, and the variance ratio before and after the corrections."""

    sigma: float
    snr: float
    before: float
    after: float


def _mean_square(v: Tensor) -> float:
    return float(v.double().square().mean())
