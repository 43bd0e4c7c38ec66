"""Annealed Langevin dynamics for a budget of evaluations: levels, steps and step sizes from a model's score norms.

The score norm of a level, n(sigma) = E||sigma score||^2/D at its law p_sigma, is 1 where the data have no spread and less
where they have: n(sigma) = sum_k w_k sigma^2/(lambda_k + sigma^2) for a Gaussian with variance lambda_k in a share w_k of
its dimensions. The Gaussian with the norms of a model at all its levels says how fast Langevin dynamics relaxes: in a
direction k the variance v = lambda_k + sigma^2 takes the place of sigma^2 in technique 4 of Song and Ermon 2020
(2006.09011).

The deviation of a level's samples is a Kullback-Leibler divergence in which each dimension counts by the share of the data
in its variance, lambda_k/(lambda_k + sigma^2): what is noise alone is renewed at the next level and removed at the end.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_score.process import NoiseProcess
from lightning_score.process.ladder import choose_levels, relaxed
from lightning_score.sampling.corrector import Corrector, snr_step_size
from lightning_score.sampling.from_noise import states_of
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.step import Move
from lightning_score.score.function import ScoreField

Array = np.ndarray[Any, np.dtype[np.float64]]
SIZES = np.geomspace(0.002, 1.0, 250)
"""The step sizes e/sigma^2 that are tried; steps larger than sigma^2 contract no faster."""
SNRS = np.geomspace(0.01, 0.7, 200)
"""The signal-to-noise ratios that are tried; e/sigma^2 = 2 snr^2."""
CLOSE = 1.25
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

    def counted(self, sigma: float) -> Array:
        """c_k, in proportion to w_k (lambda_k + sigma^2/10)/(lambda_k + sigma^2): how much a direction counts at a level.

        The tenth keeps the noise near the law for which the network was trained, and serves data without spread.
        """
        counted = self.shares * (self.variances + sigma**2 / 10) / (self.variances + sigma**2)
        return np.asarray(counted / counted.sum())

    def deviation(self, sigma: float, ratios: Array, shifts: Array | float = 0.0) -> Array:
        """sum_k c_k (r_k - 1 - ln r_k + m_k^2/v_k)/2, the Kullback-Leibler divergence at a level.

        Args:
            sigma: the level.
            ratios: the variance ratios r_k, (..., K).
            shifts: m_k^2/v_k, the squared error of the mean over the variance, (..., K).
        """
        return np.asarray((ratios - 1 - np.log(ratios) + shifts) @ self.counted(sigma) / 2)


class Moments(NamedTuple):
    """The variance of the samples' x/alpha and the squared error of its mean, each (K,)."""

    variance: Array
    shift: Array

    @classmethod
    def at_start(cls, gaussian: EquivalentGaussian, variance: float, shift: float) -> "Moments":
        """Before the first step; the error of the mean is divided among the directions in proportion to lambda_k.

        Args:
            gaussian: the Gaussian with the model's score norms.
            variance: of the samples, per dimension.
            shift: squared difference of the means of samples and data, per dimension.
        """
        spread = gaussian.shares @ gaussian.variances
        shared = gaussian.variances / spread if spread > 0 else np.ones_like(gaussian.variances)
        return cls(np.full_like(gaussian.variances, variance), shift * shared)


def equivalent_gaussian(sigmas: Sequence[float], norms: Sequence[float]) -> EquivalentGaussian:
    """The Gaussian whose score norms are nearest to the given ones, by non-negative least squares.

    Args:
        sigmas: noise levels as sigma/alpha, (L,).
        norms: E||sigma score||^2/D at each, (L,).
    """
    levels, total = np.asarray(sigmas), 1e3  # the weight of sum_k w_k = 1
    variances = np.array(
        [0.0, *np.geomspace(levels.min() / 10, levels.max() / 2, 80) ** 2]
    )  # half of technique 1's distance
    norm_of = levels[:, None] ** 2 / (variances + levels[:, None] ** 2)
    from scipy.optimize import nnls  # takes a second to import

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


def _level(gaussian: EquivalentGaussian, sigma: float, before: Moments, steps: int) -> tuple[TunedLevel, Moments]:
    """The level with its best step size, from the moments before it; and those after it."""
    v = gaussian.variances + sigma**2
    u = SIZES[:, None] * sigma**2 / v
    ratios, shifts = relaxed(before.variance / v, u, steps), (1 - u) ** (2 * steps) * before.shift / v
    deviations = gaussian.deviation(sigma, ratios, shifts)
    best = int(deviations.argmin())
    ratio = gaussian.score_norm(sigma, ratios[best] + shifts[best]) / gaussian.score_norm(sigma)
    level = TunedLevel(sigma, float(SIZES[best]), steps, float(deviations[best]), ratio)
    return level, Moments(ratios[best] * v, shifts[best] * v)


def tuned_steps(gaussian: EquivalentGaussian, sigmas: Sequence[float], start: Moments, evaluations: int) -> list[TunedLevel]:
    """The best step size of every level of a ladder; all have as many steps, the last ones one more if some are left.

    Their number is that of a scale-free law, on which every level does the same work in units of its sigma. Fewer steps at
    the large levels have less deviation on the Gaussian, but not on data with modes, between which samples decide there.

    Args:
        gaussian: the Gaussian with the model's score norms.
        sigmas: the levels as sigma/alpha, descending, (L,).
        start: the moments before the first step.
        evaluations: sum of the steps, at least L.
    """
    moments, levels, (steps, more) = start, list[TunedLevel](), divmod(evaluations, len(sigmas))
    for i, sigma in enumerate(sigmas):
        level, moments = _level(gaussian, sigma, moments, steps + (i >= len(sigmas) - more))
        levels.append(level)
    return levels


def tuned_ladder(
    gaussian: EquivalentGaussian, levels: Sequence[float], only: bool, start: Moments, evaluations: int, dimension: int
) -> tuple[dict[int, float], list[TunedLevel]]:
    """The ladder of a budget: among geometric ones of 2, 3, ... levels that of the least deviation, or with more levels.

    Args:
        gaussian: the Gaussian with the model's score norms.
        levels: noise levels as sigma/alpha, descending, of which the first and the last are kept.
        only: whether a ladder may have only these, as for a model that was trained at them, or any between the ends.
        start: the moments before the first step.
        evaluations: sum of the steps, at least 2.
        dimension: D, for technique 2's number of levels, the most.

    Returns:
        The largest deviation after a level by the number of levels, and the levels.
    """
    first, last = levels[0], levels[-1]
    most = min(evaluations, len(levels) if only else choose_levels(first, last, dimension))
    counts = sorted({int(n) for n in np.geomspace(2, most, 16).round()}) if most > 16 else range(2, most + 1)
    ladders: dict[int, list[TunedLevel]] = {}
    for count in counts:
        sigmas = np.geomspace(first, last, count)
        if only:
            sigmas = np.asarray(levels)[np.unique(np.abs(np.log(sigmas)[:, None] - np.log(levels)).argmin(1))]
        ladders[len(sigmas)] = tuned_steps(gaussian, sigmas.tolist(), start, evaluations)
    worst = {count: max(level.deviation for level in ladder) for count, ladder in ladders.items()}
    chosen = max(count for count, deviation in worst.items() if deviation <= CLOSE * min(worst.values()))
    return worst, ladders[chosen]


class TunedSnr(NamedTuple):
    """The signal-to-noise ratio at a noise level sigma/alpha, and the deviation before and after the corrections there."""

    sigma: float
    snr: float
    before: float
    after: float


class _GaussianScore(ScoreField):
    """The score of independent N(0, lambda_k) under a process, for x of (B, K)."""

    evaluations = 0

    def __init__(self, process: NoiseProcess, variances: Array):
        super().__init__(process)
        self.variances = torch.from_numpy(variances)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return -x / (self.process.alpha(t) ** 2 * self.variances + self.process.sigma(t) ** 2)


class _OneRowEach(NoiseSource):
    """Draws of which each is 1 in a row of its own and 0 elsewhere: x (B, K) then holds the coefficients of an affine map of
    the start and all draws, and the sum of the squares of its rows is the variance.
    """

    def __init__(self, rows: int, columns: int):
        self.shape, self.used = (rows, columns), 1  # row 0 is the start

    def normal(self) -> Tensor:
        draws = torch.zeros(self.shape, dtype=torch.float64)
        draws[self.used] = 1
        self.used += 1
        return draws

    uniform = acceptance = normal


def tuned_snrs(
    gaussian: EquivalentGaussian, process: NoiseProcess, moves: Sequence[Move], corrector: Corrector, start: float
) -> list[TunedSnr]:
    """The signal-to-noise ratios that reduce the deviation at every level, times the factor with the least at the end.

    At each level it is the least ratio with nine tenths of the best one's gain there. The factor is for predictors with a
    memory, which corrections upset: it is small for them.

    Args:
        gaussian: the Gaussian with the model's score norms.
        process: the noise process.
        moves: those of the sampler.
        corrector: its corrector.
        start: variance of x before the first move.
    """
    best = _deviations(gaussian, process, moves, corrector, start, None)
    scaled = [[level.snr * factor for level in best] for factor in (1, 0.5, 0.25, 0.1, 0.03, 0.01)]
    tried = [_deviations(gaussian, process, moves, corrector, start, snrs) for snrs in scaled]
    return min(tried, key=lambda found: found[-1].after)


def _deviations(
    gaussian: EquivalentGaussian,
    process: NoiseProcess,
    moves: Sequence[Move],
    corrector: Corrector,
    start: float,
    given: Sequence[float] | None,
) -> list[TunedSnr]:
    """The deviations at every level by the sampler's own moves, with the given ratios or those chosen level by level."""
    times = torch.stack([moves[0].t, *(move.end for move in moves)]).unique().flip(0)
    states = states_of({move.method for move in moves}, process, times)
    score, variances = _GaussianScore(process, gaussian.variances), torch.from_numpy(gaussian.variances)
    noise = _OneRowEach(1 + len(moves), len(variances))
    x, found = torch.zeros(noise.shape, dtype=torch.float64), list[TunedSnr]()
    x[0] = start**0.5
    for (method, t), group in groupby(moves, lambda move: (move.method, move.t)):
        same = list(group)
        if method is not corrector:
            for move in same:
                x, states[method] = method.step(score, x, move.t, move.s, noise, states[method])
            continue
        snrs = SNRS if given is None else np.array([given[len(found)]])
        v, sigma = process.alpha(t) ** 2 * variances + process.sigma(t) ** 2, float(process.noise_level(t))
        sizes = snr_step_size(process, t, same[0].s, torch.from_numpy(snrs) * process.sigma(t))
        ratios = (x.square().sum(0) / v).numpy()
        before = float(gaussian.deviation(sigma, ratios))
        after = gaussian.deviation(sigma, relaxed(ratios, (sizes[:, None] / v).numpy(), len(same)))
        best = int((after <= after.min() + max(before - after.min(), 0) / 10).argmax())  # the first
        found.append(TunedSnr(sigma, float(snrs[best]), before, float(after[best])))
        for _ in same:
            x = x + sizes[best] * score(x, t) + (2 * sizes[best]).sqrt() * noise.normal()
    return found
