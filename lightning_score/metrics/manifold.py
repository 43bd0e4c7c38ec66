"""Metrics of the features themselves: KID, Inception score, precision and recall, density and coverage."""

import math
import statistics
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.metrics.frechet import Estimate
from lightning_score.utils import require


def kernel_distance(real: Tensor, fake: Tensor, subsets: int = 100, subset_size: int = 1000) -> Estimate:
    """KID: the squared maximum mean discrepancy with the kernel `(x.y/D + 1)^3`, unbiased, by torch-fidelity.

    Binkowski et al. 2018, arXiv:1801.01401. The value is the mean over random subsets; its error is that of the mean over
    ten disjoint parts of the samples, each against a part of the data of its own.

    Args:
        real: features of the data (N, D).
        fake: features of the samples (M, D).
        subsets: number of random subsets.
        subset_size: examples in each, at most as many as there are on either side.

    Raises:
        InputError: fewer than 2 examples on a side.
    """
    require(
        min(len(real), len(fake)) >= 2,
        f"KID got {len(real)} real and {len(fake)} generated examples; it needs at least 2 of each.",
    )
    size = min(subset_size, len(real), len(fake))
    same = size == len(real) == len(fake)  # all subsets are the whole
    value = _mean_discrepancy(real, fake, 1 if same else subsets, size)
    part = min(len(real), len(fake)) // 10
    if part < 2:
        return Estimate(value, math.nan)
    parts = [_mean_discrepancy(r, f, 1, part) for r, f in zip(real.split(part)[:10], fake.split(part)[:10], strict=True)]
    return Estimate(value, statistics.stdev(parts) / len(parts) ** 0.5)


def _mean_discrepancy(real: Tensor, fake: Tensor, subsets: int, size: int) -> float:
    from torch_fidelity.metric_kid import kid_features_to_metric  # takes seconds to import

    settings = {"kid_subsets": subsets, "kid_subset_size": size, "verbose": False}
    return kid_features_to_metric(fake.double(), real.double(), **settings)["kernel_inception_distance_mean"]


def inception_score(logits: Tensor, splits: int = 10) -> Estimate:
    """IS: `exp E KL(p(y given x) | p(y))`, of the features' classifier, the mean over parts of the samples and its error.

    Salimans et al. 2016, arXiv:1606.03498, by torch-fidelity. Publications state the standard deviation over ten parts,
    which is sqrt(10) times the error.

    Args:
        logits: of the samples (N, K).
        splits: number of parts, at most N.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    require(len(logits) >= 2, f"the Inception score got {len(logits)} examples; it needs at least 2.")
    splits = min(splits, len(logits))
    found = isc_features_to_metric(logits, splits=splits, shuffle=False)
    return Estimate(found["inception_score_mean"], found["inception_score_std"] / splits**0.5)


class Manifold(NamedTuple):
    """How much of the samples lies among the data, and of the data among the samples."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: Tensor, fake: Tensor, neighbours: int = 3, chunk: int = 4096) -> Manifold:
    """Precision and recall (Kynkaanniemi et al. 2019, 1904.06991), density and coverage (Naeem et al. 2020, 2002.09797).

    With a ball around every example that reaches to its k-th nearest neighbour on its own side: precision is the share of
    samples in any ball of the data, recall that of data in any ball of the samples, density the number of the data's balls
    that a sample lies in over k, coverage the share of the data's balls with a sample in them.

    Args:
        real: features of the data (N, D).
        fake: features of the samples (M, D).
        neighbours: k.
        chunk: rows whose distances are in memory at once.

    Raises:
        InputError: not more than k examples on a side.
    """
    require(neighbours >= 1, f"neighbours={neighbours}: must be at least 1; 3 is usual")
    require(
        min(len(real), len(fake)) > neighbours,
        f"precision and recall got {len(real)} real and {len(fake)} generated examples; with neighbours={neighbours} they "
        "need more on either side.",
    )
    real, fake = real.float(), fake.float()
    real_radii, fake_radii = _radii(real, neighbours, chunk), _radii(fake, neighbours, chunk)
    precise = dense = recalled = 0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for part, radii in zip(fake.split(chunk), fake_radii.split(chunk), strict=True):
        distances = torch.cdist(real, part)  # (N, chunk)
        inside = distances <= real_radii[:, None]
        precise += int(inside.any(0).sum())
        dense += int(inside.sum())
        covered |= inside.any(1)
        within = distances <= radii[None]
        recalled = within.any(1) if isinstance(recalled, int) else recalled | within.any(1)
    return Manifold(
        precision=precise / len(fake),
        recall=float(recalled.float().mean()),
        density=dense / (neighbours * len(fake)),
        coverage=float(covered.float().mean()),
    )


def _radii(x: Tensor, neighbours: int, chunk: int) -> Tensor:
    """The distance of every example to its k-th nearest neighbour, (N,)."""
    return torch.cat([torch.cdist(part, x).kthvalue(neighbours + 1).values for part in x.split(chunk)])
