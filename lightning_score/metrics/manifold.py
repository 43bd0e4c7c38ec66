"""Metrics of the features themselves: KID, Inception score, precision and recall, density and coverage."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.metrics.frechet import Estimate


def kernel_distance(real: Tensor, fake: Tensor, chunk: int = 2048) -> Estimate:
    """KID: the squared maximum mean discrepancy with the kernel `(x.y/D + 1)^3`, unbiased, with its standard error.

    `mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)` over all pairs (Binkowski et al.
    2018, arXiv:1801.01401, who average over random subsets: the same on average). Its variance over both sides is the sum of
    V1, of single examples, and V2, of pairs. V2 follows from the centered kernel, and V1 is 0 where both laws are equal; the
    jackknife estimates V1 + 2 V2 (Efron and Stein 1981, "The jackknife estimate of variance"), and V1 is included
    if the value is 3 sqrt(V2) above 0.

    Args:
        real: features of the data (N, D).
        fake: features of the samples (M, D).
        chunk: rows of the kernel in memory at once; the cost is a product of (N + M, D) by (D, N + M).

    Raises:
        InputError: fewer than 2 examples on a side.
    """
    require(
        min(len(real), len(fake)) >= 2,
        f"KID got {len(real)} real and {len(fake)} generated examples; it needs at least 2 of each",
    )
    n, m = len(real), len(fake)
    real, fake = real.double(), fake.double()
    (xx, xx2), (yy, yy2) = _kernel_means(real, real, chunk)[::2], _kernel_means(fake, fake, chunk)[::2]
    xy, yx, xy2 = _kernel_means(real, fake, chunk)
    value = float(xx.mean() + yy.mean() - 2 * xy.mean())
    if min(n, m) < 4:
        return Estimate(value, math.nan)
    jackknife = 4 * (xx - xy).var() / n + 4 * (yy - yx).var() / m
    pairs = 2 * (xx2 - 2 * xx.square().mean() + xx.mean() ** 2) / (n * (n - 1))
    pairs += 2 * (yy2 - 2 * yy.square().mean() + yy.mean() ** 2) / (m * (m - 1))
    pairs += 4 * (xy2 - xy.square().mean() - yx.square().mean() + xy.mean() ** 2) / (n * m)
    single = (jackknife - 2 * pairs).clamp(min=0) if value**2 > 9 * float(pairs) else 0.0
    return Estimate(value, float((pairs + single).clamp(min=0).sqrt()))


def _kernel_means(x: Tensor, y: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the kernel over the rows y for each x, over the rows x for each y, and of its square over all pairs; of
    x with itself, without the pairs of one example.
    """
    same = x is y
    rows, columns, squares = [], y.new_zeros(len(y)), y.new_zeros(())
    for first, part in zip(range(0, len(x), chunk), x.split(chunk), strict=True):
        kernel = (part @ y.mT / x.shape[1] + 1) ** 3
        if same:
            kernel[torch.arange(len(part)), torch.arange(first, first + len(part))] = 0
        rows.append(kernel.sum(1))
        columns += kernel.sum(0)
        squares += kernel.square().sum()
    count = len(y) - same
    return torch.cat(rows) / count, columns / (len(x) - same), squares / (len(x) * count)


def inception_score(logits: Tensor, splits: int = 10) -> Estimate:
    """IS: `exp E KL(p(y given x) | p(y))`, of the features' classifier, the mean over parts of the samples and its error.

    Salimans et al. 2016, arXiv:1606.03498, by torch-fidelity. Publications state the standard deviation over ten parts,
    which is sqrt(10) times the error.

    Args:
        logits: of the samples (N, K).
        splits: number of parts; at most N are used.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    require(len(logits) >= 2, f"the Inception score got {len(logits)} examples; it needs at least 2")
    splits = min(splits, len(logits))
    found = isc_features_to_metric(logits, splits=splits, shuffle=False)
    return Estimate(found["inception_score_mean"], found["inception_score_std"] / splits**0.5)


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
