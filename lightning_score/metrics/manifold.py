"""Metrics of the features themselves: KID, CMMD, Inception score, precision and recall, density and coverage."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.estimates import Estimate

CMMD_WIDTH, CMMD_SCALE = 10.0, 1000.0
"""The standard deviation of CMMD's kernel, and its unit."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""A kernel of all pairs of rows of (N, D) and (M, D), (N, M)."""


class Discrepancy(NamedTuple):
    """The squared maximum mean discrepancy of two sets of features.

    Fields: value (unbiased), error, real and fake (the mean of the kernel over pairs of different examples of each).
    """

    value: float
    error: float
    real: float
    fake: float


def kernel_distance(real: Tensor, fake: Tensor, chunk: int = 2048) -> Estimate:
    """KID: the squared maximum mean discrepancy with the kernel `(x.y/D + 1)^3`, unbiased, with its standard error.

    Binkowski et al. 2018, arXiv:1801.01401, who average over random subsets: the same on average.

    Args:
        real: features of the data (N, D).
        fake: features of the samples (M, D).
        chunk: rows of the kernel in memory at once; the cost is a product of (N + M, D) by (D, N + M).

    Raises:
        InputError: fewer than 2 examples on a side.
    """
    found = discrepancy(real, fake, lambda x, y: (x @ y.mT / x.shape[1] + 1) ** 3, chunk)
    return Estimate(found.value, found.error)


def clip_distance(real: Tensor, fake: Tensor) -> tuple[Estimate, Estimate]:
    """CMMD: 1000 times the squared maximum mean discrepancy with the kernel `exp(-|x - y|^2/(2 10^2))`, and its limit for
    infinitely many examples, each with its standard error.

    Jayasumana et al. 2024, arXiv:2401.09603. As in the authors' code it includes the pairs of one example, for which the
    kernel is 1: it is above the unbiased value, the limit, by `(1 - mean k(x_i, x_j))/N + (1 - mean k(y_i, y_j))/M`.

    Args:
        real: features of the data, of unit length (N, D).
        fake: features of the samples (M, D).
    """
    found = discrepancy(real, fake, _gaussian)
    bias = (1 - found.real) / len(real) + (1 - found.fake) / len(fake)
    error = CMMD_SCALE * found.error
    return Estimate(CMMD_SCALE * (found.value + bias), error), Estimate(CMMD_SCALE * found.value, error)


def clip_floor(real: Tensor, n: int) -> float:
    """The CMMD of a perfect model with n samples from these N examples: the mean bias, `(1/n + 1/N)(1 - mean k(x_i, x_j))`.

    Args:
        real: features of the data, of unit length (N, D).
        n: number of samples.
    """
    real = real.double()
    mean = float(_kernel_means(real, real, _gaussian, 2048)[0].mean())
    return CMMD_SCALE * (1 / n + 1 / len(real)) * (1 - mean)


def _gaussian(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(x, y).square() / (2 * CMMD_WIDTH**2))


def discrepancy(real: Tensor, fake: Tensor, kernel: Kernel, chunk: int = 2048) -> Discrepancy:
    """The squared maximum mean discrepancy over all pairs, unbiased, with its standard error over both sides.

    `mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)`. Its variance is the sum of V1, of
    single examples, and V2, of pairs. V2 follows from the centered kernel, and V1 is 0 where both laws are equal; the
    jackknife estimates V1 + 2 V2 (Efron and Stein 1981, "The jackknife estimate of variance"), and V1 is included if the
    value is 3 sqrt(V2) above 0.
    """
    n, m = len(real), len(fake)
    given = f"the kernel distance got {n} real and {m} generated examples; it needs at least 2 of each"
    require(min(n, m) >= 2, given)
    real, fake = real.double(), fake.double()
    (xx, xx2), (yy, yy2) = (_kernel_means(side, side, kernel, chunk)[::2] for side in (real, fake))
    xy, yx, xy2 = _kernel_means(real, fake, kernel, chunk)
    value, within = float(xx.mean() + yy.mean() - 2 * xy.mean()), (float(xx.mean()), float(yy.mean()))
    if min(n, m) < 4:
        return Discrepancy(value, math.nan, *within)
    jackknife = 4 * (xx - xy).var() / n + 4 * (yy - yx).var() / m
    pairs = 2 * (xx2 - 2 * xx.square().mean() + xx.mean() ** 2) / (n * (n - 1))
    pairs += 2 * (yy2 - 2 * yy.square().mean() + yy.mean() ** 2) / (m * (m - 1))
    pairs += 4 * (xy2 - xy.square().mean() - yx.square().mean() + xy.mean() ** 2) / (n * m)
    single = (jackknife - 2 * pairs).clamp(min=0) if value**2 > 9 * float(pairs) else 0.0
    return Discrepancy(value, float((pairs + single).clamp(min=0).sqrt()), *within)


def _kernel_means(x: Tensor, y: Tensor, kernel: Kernel, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the kernel over the rows y for each x, over the rows x for each y, and of its square over all pairs; of
    x with itself, without the pairs of one example.
    """
    same = x is y
    rows, columns, squares = [], y.new_zeros(len(y)), y.new_zeros(())
    for first, part in zip(range(0, len(x), chunk), x.split(chunk), strict=True):
        values = kernel(part, y)
        if same:
            values[torch.arange(len(part)), torch.arange(first, first + len(part))] = 0
        rows.append(values.sum(1))
        columns += values.sum(0)
        squares += values.square().sum()
    count = len(y) - same
    return torch.cat(rows) / count, columns / (len(x) - same), squares / (len(x) * count)


def inception_score(logits: Tensor, splits: int = 10) -> Estimate:
    """IS: `exp E KL(p(y given x) | p(y))`, of the features' classifier, the mean over parts of the samples and its error.

    Salimans et al. 2016, arXiv:1606.03498, in the parts of torch-fidelity. Publications state the standard deviation over
    ten parts, which is sqrt(10) times the error.

    Args:
        logits: of the samples (N, K).
        splits: number of parts; at most N are used.
    """
    require(len(logits) >= 2, f"the Inception score got {len(logits)} examples; it needs at least 2")
    splits = min(splits, len(logits))
    logs = logits.double().log_softmax(1)
    parts = [logs[i * len(logs) // splits : (i + 1) * len(logs) // splits] for i in range(splits)]
    marginals = [part.logsumexp(0) - math.log(len(part)) for part in parts]
    scores = torch.stack(
        [(part.exp() * (part - marginal)).sum(1).mean().exp() for part, marginal in zip(parts, marginals, strict=True)]
    )
    return Estimate(float(scores.mean()), float(scores.std(correction=0)) / splits**0.5)


class Manifold(NamedTuple):
    """Precision, recall, density and coverage of samples."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: Tensor, fake: Tensor, neighbors: int = 3, chunk: int = 4096) -> Manifold:
    """Precision and recall (Kynkaanniemi et al. 2019, 1904.06991), density and coverage (Naeem et al. 2020, 2002.09797).

    With a ball around every example up to its k-th nearest neighbor on the same side: precision is the fraction of samples
    in any ball of the data, recall the fraction of data in any ball of the samples, density the mean number of the data's
    balls around a sample divided by k, coverage the fraction of the data's balls that contain a sample.

    Args:
        real: features of the data (N, D).
        fake: features of the samples (M, D).
        neighbors: k.
        chunk: rows of distances in memory at once.

    Raises:
        InputError: k is below 1, or a side has at most k examples.
    """
    require(neighbors >= 1, f"neighbors={neighbors}: must be at least 1; 3 is usual")
    require(
        min(len(real), len(fake)) > neighbors,
        f"precision and recall got {len(real)} real and {len(fake)} generated examples; with neighbors={neighbors} they "
        "need more on either side",
    )
    center = real.double().mean(0)  # single precision is inaccurate far from 0
    real, fake = (real - center).float(), (fake - center).float()
    real_radii, fake_radii = _radii(real, neighbors, chunk), _radii(fake, neighbors, chunk)
    precise = dense = 0
    covered, recalled = torch.zeros(2, len(real), dtype=torch.bool, device=real.device)
    for part, radii in zip(fake.split(chunk), fake_radii.split(chunk), strict=True):
        distances = torch.cdist(real, part)  # (N, chunk)
        inside = distances <= real_radii[:, None]
        precise += int(inside.any(0).sum())
        dense += int(inside.sum())
        covered |= inside.any(1)
        recalled |= (distances <= radii).any(1)
    return Manifold(
        precision=precise / len(fake),
        recall=float(recalled.float().mean()),
        density=dense / (neighbors * len(fake)),
        coverage=float(covered.float().mean()),
    )


def _radii(x: Tensor, neighbors: int, chunk: int) -> Tensor:
    """The distance of every example to its k-th nearest neighbor, (N,)."""
    return torch.cat([torch.cdist(part, x).kthvalue(neighbors + 1).values for part in x.split(chunk)])
