"""The Frechet distance of Gaussians fitted to features (FID), its error bar, its limit and its floor."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.metrics.statistics import FeatureSums, KeptFeatures, Statistics, fit
from lightning_score.utils import require


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """The squared Frechet distance of two Gaussians, `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`, never negative.

    Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions"; FID of Heusel et al. 2017,
    arXiv:1706.08500, eq. 6. With `C1 = L L^T` the trace of the root is the sum of the roots of the eigenvalues of the
    symmetric `L^T C2 L`: no root of a matrix that is not symmetric, no complex numbers.

    Args:
        first: of D features.
        second: of as many.

    Raises:
        InputError: they have different numbers of features.
    """
    require(
        first.mean.shape == second.mean.shape,
        f"statistics of {len(first.mean)} and of {len(second.mean)} features cannot be compared: take the same features",
    )
    mean = (first.mean.double() - second.mean.double()).square().sum()
    spread = first.covariance.double().trace() + second.covariance.double().trace() - 2 * _root_trace(first, second)
    return float(mean + spread.clamp(min=0))


def _root_trace(first: Statistics, second: Statistics) -> Tensor:
    """tr (C1 C2)^(1/2), symmetric in both."""
    known = second.factor is None and first.factor is not None
    one, other = (first, second) if known else (second, first)  # of the one, the factor is known if any is
    factor = factored(one).factor
    if other.factor is None and factor.shape[0] == factor.shape[1]:
        squares = torch.linalg.eigvalsh(factor.mT @ other.covariance.double() @ factor)
        if squares[0] > 1e-12 * squares[-1]:
            return squares.sqrt().sum()
    # Squares lose what is nearly singular, as with fewer examples than features: singular values of the factors.
    return torch.linalg.svdvals(factor.mT @ factored(other).factor).sum()


def factored(statistics: Statistics) -> Statistics:
    """The same with a factor of the covariance: Cholesky's, or if it is nearly singular the one of its eigenvectors."""
    if statistics.factor is not None:
        return statistics
    lower, regular = _cholesky(statistics.covariance)
    if regular:
        return statistics._replace(factor=lower)
    values, vectors = torch.linalg.eigh(statistics.covariance.double())
    # Eigenvalues that are zero but for rounding would each add their root, which is far above rounding.
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return statistics._replace(factor=vectors[:, kept] * values[kept].sqrt())


def _cholesky(covariance: Tensor) -> tuple[Tensor, bool]:
    """The lower factor, and whether the matrix is far from singular."""
    lower, failed = torch.linalg.cholesky_ex(covariance.double())
    pivots = lower.diagonal()
    return lower, not failed and bool(pivots.min() > 1e-6 * pivots.max())


class Estimate(NamedTuple):
    """A value and its standard error, NaN where there is none, and the values without each block, where they were found."""

    value: float
    error: float
    without: tuple[float, ...] = ()


def frechet_estimate(real: Statistics, fake: FeatureSums | KeptFeatures, error: bool = True) -> Estimate:
    """The distance with the standard error of the samples' part in it, by leaving out one block of samples at a time:
    Tukey's jackknife.

    Args:
        real: of the data.
        fake: of the samples, in B blocks; without error for fewer than 3.
        error: whether to find the error, which takes B more distances.
    """
    real = factored(real)
    value = frechet_distance(real, fake.compute())
    filled = [b for b in range(fake.blocks) if fake.count[b] > 0]
    if not error or len(filled) < 3 or int(fake.count.sum() - fake.count.max()) < 2:
        return Estimate(value, math.nan)
    without = [frechet_distance(real, fake.statistics([b for b in filled if b != left])) for left in filled]
    return Estimate(value, jackknife_error(without), tuple(without))


def jackknife_error(without: Sequence[float]) -> float:
    """The standard error of a value from those without each of B blocks: `((B - 1)/B sum_b (d_b - mean d)^2)^(1/2)`."""
    spread = torch.tensor(without, dtype=torch.float64)
    return float(((len(spread) - 1) / len(spread) * (spread - spread.mean()).square().sum()).sqrt())


def frechet_limit(real: Statistics, fake: FeatureSums | KeptFeatures) -> Estimate:
    """The distance extrapolated to infinitely many samples: the intercept of a line in 1/n (Chong and Forsyth 2020).

    "Effectively unbiased FID and Inception score and where to find them", arXiv:1911.07023. The points are the distances of
    the first half of the blocks, of one block more, and so on to all; the error is the regression's, of the intercept.

    Args:
        real: of the data.
        fake: of the samples, in at least 6 blocks.

    Raises:
        InputError: fewer blocks.
    """
    require(fake.blocks >= 6, f"{fake.blocks} blocks: the limit of many samples needs at least 6, such as 10")
    real = factored(real)
    points = [fake.statistics(range(count)) for count in range(fake.blocks // 2, fake.blocks + 1)]
    inverse = torch.tensor([1 / point.n for point in points], dtype=torch.float64)
    distances = torch.tensor([frechet_distance(real, point) for point in points], dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], 1)
    solution = torch.linalg.lstsq(design, distances[:, None]).solution[:, 0]
    residual = (distances - design @ solution).square().sum() / (len(points) - 2)
    covariance = residual * torch.linalg.inv(design.mT @ design)
    return Estimate(float(solution[0]), float(covariance[0, 0].sqrt()))


def real_floor(features: Tensor, n: int, splits: int = 10, seed: int = 0) -> float:
    """What the data score at n examples: the mean Frechet distance of a random subset of them from all the others.

    The distance is biased upwards, the more the fewer the samples (Binkowski et al. 2018, arXiv:1801.01401), so a value
    means something only beside this one. The subset has min(n, N // 2) examples.

    Args:
        features: of the data (N, D).
        n: number of samples that the value is to stand beside.
        splits: number of random subsets to take the mean over.
        seed: of these.

    Raises:
        InputError: if the subset would have fewer than 2 examples, or there are no splits.
    """
    whole = FeatureSums(features.shape[1], sync_on_compute=False).to(features.device)
    whole.update(features)
    return floor_of_subsets(whole, features, n, splits, seed)


def floor_of_subsets(whole: FeatureSums, features: Tensor, n: int, splits: int = 10, seed: int = 0) -> float:
    """The same, where features of only some of the data are at hand, and sums of all.

    Args:
        whole: sums of all N examples.
        features: of at least n random ones of them, (M, D).
        n: as there; at most N // 2 count.
        splits: as there.
        seed: as there.
    """
    total = int(whole.count.sum())
    size = min(n, total // 2)
    require(size >= 2, f"n is {n}, of {total} examples; a subset and the others need n >= 2, of at least 4.")
    require(splits >= 1, f"splits is {splits}; it must be at least 1.")
    generator = torch.Generator().manual_seed(seed)
    found = 0.0
    for _ in range(splits):
        rows = torch.randperm(len(features), generator=generator)[:size].to(features.device)
        found += frechet_distance(fit(features[rows]), whole.without(features[rows]))
    return found / splits
