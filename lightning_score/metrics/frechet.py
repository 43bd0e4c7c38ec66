"""The Frechet distance of Gaussians fitted to features (FID), its error bar, its extrapolation and its floor."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.estimates import Estimate, jackknife_error
from lightning_score.metrics.statistics import FeatureSums, KeptFeatures, Statistics, fit


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """The squared Frechet distance of two Gaussians, `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`, never negative.

    Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions"; FID of Heusel et al. 2017,
    arXiv:1706.08500, eq. 6. With `C1 = L L^T` the trace of the root is the sum of the roots of the eigenvalues of the
    symmetric `L^T C2 L`, which needs no root of an asymmetric matrix and no complex numbers.

    Args:
        first: statistics of D features.
        second: statistics of D features.

    Raises:
        InputError: they have different numbers of features.
    """
    require(
        first.mean.shape == second.mean.shape,
        f"statistics of {len(first.mean)} and of {len(second.mean)} features cannot be compared: use the same features",
    )
    shift = (first.mean.double() - second.mean.double()).square().sum()
    spread = first.covariance.double().trace() + second.covariance.double().trace() - 2 * _root_trace(first, second)
    return float(shift + spread.clamp(min=0))


def _root_trace(first: Statistics, second: Statistics) -> Tensor:
    """tr (C1 C2)^(1/2), symmetric in both."""
    known = second.factor is None and first.factor is not None
    one, other = (first, second) if known else (second, first)  # of `one`, the factor is known if any is
    factor = factor_of(one)
    if other.factor is None and factor.shape[0] == factor.shape[1]:
        squares = torch.linalg.eigvalsh(factor.mT @ other.covariance.double() @ factor)
        if squares[0] > 1e-12 * squares[-1]:
            return squares.sqrt().sum()
    # Squares are inaccurate where nearly singular, as for fewer examples than features: use singular values of the factors.
    return torch.linalg.svdvals(factor.mT @ factor_of(other)).sum()


def factor_of(statistics: Statistics) -> Tensor:
    """A factor of the covariance: the known one, Cholesky's, or that of its eigenvectors if it is nearly singular."""
    if statistics.factor is not None:
        return statistics.factor
    lower, failed = torch.linalg.cholesky_ex(statistics.covariance.double())
    pivots = lower.diagonal()
    if not failed and pivots.min() > 1e-6 * pivots.max():
        return lower
    values, vectors = torch.linalg.eigh(statistics.covariance.double())
    # The roots of eigenvalues that are zero up to rounding would be far above rounding.
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()


def frechet_estimate(real: Statistics, fake: FeatureSums | KeptFeatures, error: bool = True) -> Estimate:
    """The distance and its standard error over samples, by Tukey's jackknife over blocks of samples.

    Args:
        real: statistics of the data.
        fake: features of the samples, in B blocks; fewer than 3 give no error.
        error: whether to compute the error, which takes B more distances.
    """
    real = real._replace(factor=factor_of(real))
    value = frechet_distance(real, fake.compute())
    filled = [b for b in range(fake.blocks) if fake.count[b] > 0]
    if not error or len(filled) < 3 or int(fake.count.sum() - fake.count.max()) < 2:
        return Estimate(value, math.nan)
    jackknife = [frechet_distance(real, fake.statistics([b for b in filled if b != left])) for left in filled]
    return Estimate(value, jackknife_error(jackknife), tuple(jackknife))


def frechet_infinity(found: Estimate, count: Tensor) -> Estimate:
    """The distance extrapolated to infinitely many samples, without the bias of order 1/n: the grouped jackknife's estimate

    `d - sum_b (1 - n_b/n) (d_b - d)`, with `d_b` the distance without the `n_b` samples of block b (Busing et al. 1999,
    "Delete-m jackknife for unequal m"). For B equal blocks it is the line in 1/n through `d` and the mean of the `d_b` (the
    extrapolation of Chong and Forsyth 2020, arXiv:1911.07023), and the mean of B pseudo-values, whose standard error is that
    of `d`. It may be negative where the samples' law is the data's.

    Args:
        found: the distance of all samples, and those without each block.
        count: number of samples in each block (B,).

    Raises:
        InputError: the distances without each block are unknown.
    """
    filled = count[count > 0].double()
    require(len(found.jackknife) == len(filled) >= 3, "fid_infinity needs the distance without each of 3 or more blocks")
    apart = torch.tensor(found.jackknife, dtype=torch.float64) - found.value
    return Estimate(found.value - float((1 - filled.cpu() / filled.cpu().sum()) @ apart), found.error)


def real_floor(features: Tensor, n: int, splits: int = 200, seed: int = 0) -> float:
    """The score of a perfect model: the mean Frechet distance of n samples of the data's own law from these N examples.

    The distance is biased upwards, more so for fewer examples on either side (Binkowski et al. 2018, arXiv:1801.01401), so
    a value is meaningful only in comparison with this one. It is `mean d(a, b) (1/n + 1/N)/(1/a + 1/b)`, where d(a, b) is
    the distance of a random subset of a examples from the b = N - a others, a = min(n, N/2). These are two samples of one
    law without a common example, like those of the model and the data, and their bias is proportional to the sum of the
    inverse sizes; for at most as many samples as features, to a power of it that subsets of half the size determine.

    Args:
        features: features of the data (N, D).
        n: number of samples.
        splits: most random subsets to average over; fewer are used once the mean is known to 1 %.
        seed: seed of the subsets.

    Raises:
        InputError: fewer than 2 samples or 4 examples, or no splits.
    """
    whole = FeatureSums(features.shape[1], sync_on_compute=False).to(features.device)
    whole.update(features)
    return floor_of_subsets(whole, features, n, splits, seed)


def floor_of_subsets(whole: FeatureSums, features: Tensor, n: int, splits: int = 200, seed: int = 0) -> float:
    """`real_floor` from the features of only some of the data, and sums of all.

    It costs a product of (D, a) by (a, D) and a distance, of order D^3, per split: some 5 splits of seconds for D = 2048, up
    to 200 of a millisecond for D = 16.

    Args:
        whole: sums of all N examples.
        features: features of random ones of them, (M, D).
        n: number of samples.
        splits: most random subsets.
        seed: seed of the subsets.
    """
    total = int(whole.count.sum())
    size = min(n, total // 2, len(features))
    require(size >= 2, f"n={n}, of {total} examples: must be at least 2, of at least 4 examples")
    require(splits >= 1, f"splits={splits}: must be at least 1")
    few = size == n <= features.shape[1] and total == len(features)  # the bias falls more slowly than the inverse sizes

    def distance(ours: Tensor, others: Tensor) -> float:
        first = fit(features[ours])
        return frechet_distance(first, whole.without(features[ours]) if len(ours) == size else fit(features[others]))

    return mean_over_splits(distance, len(features), size, total, n, splits, seed, halved=few and size >= 4)


def mean_over_splits(
    distance: Callable[[Tensor, Tensor], float],
    kept: int,
    size: int,
    total: int,
    n: int,
    splits: int,
    seed: int = 0,
    halved: bool = True,
) -> float:
    """`mean d(a, b) ((1/n + 1/N)/(1/a + 1/b))^power` over random subsets of a examples and the b = N - a others.

    Args:
        distance: the distance d of some of the data from others, given by their numbers.
        kept: how many of the data have a number.
        size: the size a of a subset.
        total: the number N of examples.
        n: number of samples of which the mean is estimated.
        splits: most random subsets; fewer are used once the mean is known to 1 %.
        seed: seed of the subsets.
        halved: determine the power from subsets of half the size; else it is 1.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[float] = []
    halves: list[float] = []
    while len(found) < splits and not _known(found):
        rows = torch.randperm(kept, generator=generator)
        found.append(distance(rows[:size], rows[size:]))
        if halved:
            halves.append(distance(rows[: size // 2], rows[size : size + (total - size) // 2]))
    power = math.log2(fmean(halves) / fmean(found)) if halves and min(found) > 0 else 1.0
    return fmean(found) * ((1 / n + 1 / total) / (1 / size + 1 / (total - size))) ** power


def _known(values: Sequence[float]) -> bool:
    """Whether the mean of the values is known to 1 %."""
    spread, center = torch.std_mean(torch.tensor(values, dtype=torch.float64)) if len(values) >= 5 else (1, 0)
    return bool(spread <= 0.01 * center * len(values) ** 0.5)
