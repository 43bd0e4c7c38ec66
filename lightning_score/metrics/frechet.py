"""The Frechet distance of Gaussians fitted to features: of samples and data (FID), or of data and data (its floor)."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_score.utils import require


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """The squared Frechet distance of two Gaussians, `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`, in float64.

    Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions"; FID of Heusel et al. 2017,
    arXiv:1706.08500, eq. 6. With factors `C = A A^T` the trace of the root is the sum of the singular values of
    `A1^T A2`, so the covariances' part is `|A1|^2 + |A2|^2 - 2 |A1^T A2|_*`: no root of a matrix that is not symmetric,
    no complex numbers, and nothing lost where a covariance is singular, as with fewer examples than features.

    Args:
        mean1: (D,).
        cov1: symmetric, positive semi-definite (D, D).
        mean2: (D,).
        cov2: symmetric, positive semi-definite (D, D).

    Returns:
        float64 (), never negative.
    """
    factor1, factor2 = _factor(cov1.double()), _factor(cov2.double())
    overlap = torch.linalg.svdvals(factor1.mT @ factor2).sum()
    spread = factor1.square().sum() + factor2.square().sum() - 2 * overlap
    return (mean1.double() - mean2.double()).square().sum() + spread.clamp(min=0)


def _factor(covariance: Tensor) -> Tensor:
    """A with `A A^T` the covariance, (D, rank): Cholesky's, or if it is nearly singular the one of its eigenvectors."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    pivots = lower.diagonal()
    if not failed and pivots.min() > 1e-6 * pivots.max():
        return lower  # sixteen times quicker
    values, vectors = torch.linalg.eigh(covariance)
    # Eigenvalues that are zero but for rounding would each add their root, which is far above rounding.
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()


class FrechetDistance(Metric):
    """The Frechet distance between the features of samples and those of data, summed up batch by batch.

    The states are the number, the sum and the sum of outer products on either side, in float64: they add up over
    batches and processes alike. The network that makes the features stays outside, so that it enters no checkpoint.

    Args:
        num_features: length D of a feature vector.
        reset_real_features: whether `reset` forgets the data too, or the samples only.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(self, num_features: int, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = num_features
        self.reset_real_features = reset_real_features
        for side in ("real", "fake"):
            self.add_state(f"{side}_n", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")
            outer = torch.zeros(num_features, num_features, dtype=torch.float64)
            self.add_state(f"{side}_outer", outer, dist_reduce_fx="sum")

    def update(self, features: Tensor, real: bool) -> None:
        """Adds features (N, D) to those of the data if `real`, else to those of the samples.

        Raises:
            InputError: if they have another length, or are not finite.
        """
        _require_features(features, self.num_features)
        features = features.double()
        total, outer = features.sum(0), features.mT @ features
        # Not in place: a state that was reset under torch.inference_mode may be updated outside of it.
        if real:
            self.real_n = self.real_n + len(features)
            self.real_sum = self.real_sum + total
            self.real_outer = self.real_outer + outer
        else:
            self.fake_n = self.fake_n + len(features)
            self.fake_sum = self.fake_sum + total
            self.fake_outer = self.fake_outer + outer

    def compute(self) -> Tensor:
        """The distance, float64 ().

        Raises:
            InputError: if either side has fewer than 2 examples.
        """
        real, fake = int(self.real_n), int(self.fake_n)
        require(
            min(real, fake) >= 2,
            f"the Frechet distance got {real} real and {fake} generated examples; it needs at least 2 of each.",
        )
        return frechet_distance(
            *_mean_and_covariance(self.real_n, self.real_sum, self.real_outer),
            *_mean_and_covariance(self.fake_n, self.fake_sum, self.fake_outer),
        )

    def reset(self) -> None:
        """Forgets the samples, and the data too unless `reset_real_features` is false."""
        real_states = self.real_n, self.real_sum, self.real_outer
        super().reset()
        if not self.reset_real_features:
            self.real_n, self.real_sum, self.real_outer = real_states


def real_floor(features: Tensor, n: int, splits: int = 10, seed: int = 0) -> float:
    """What the data score against themselves at n samples: the mean Frechet distance of two disjoint random subsets.

    The distance is biased upwards, the more the fewer the samples (Binkowski et al. 2018, arXiv:1801.01401), so a value
    means something only beside this one. The subsets have min(n, N // 2) examples each.

    Args:
        features: of the data (N, D).
        n: number of samples that the value is to stand beside.
        splits: number of random pairs of subsets to take the mean over.
        seed: of these.

    Raises:
        InputError: if the subsets would have fewer than 2 examples, or there are no splits.
    """
    size = min(n, len(features) // 2)
    require(size >= 2, f"n is {n}, of {len(features)} examples; two disjoint subsets need n >= 2, of at least 4.")
    require(splits >= 1, f"splits is {splits}; it must be at least 1.")
    metric = FrechetDistance(features.shape[-1], sync_on_compute=False).to(features.device)
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(splits):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        metric.reset()
        metric.update(features[order[:size]], real=True)
        metric.update(features[order[size : 2 * size]], real=False)
        total += float(metric.compute())
    return total / splits


def _mean_and_covariance(n: Tensor, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) from the number, the sum and the sum of outer products."""
    mean = total / n
    return mean, (outer - n * torch.outer(mean, mean)) / (n - 1)


def _require_features(features: Tensor, num_features: int) -> None:
    require(
        features.ndim == 2 and features.shape[1] == num_features,
        f"features have the shape {tuple(features.shape)}, but the metric was made for (N, {num_features}).",
    )
    require(
        bool(features.isfinite().all()),
        "features hold NaN or infinity: the model or its sampler diverged; take a smaller step size or learning rate.",
    )
