"""Toy data: a Gaussian mixture, whose density and score are known at any noise level."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_score.data.base import ScoreData
from lightning_score.data.batches import Examples, Splits, Transform, split_indices
from lightning_score.errors import require
from lightning_score.memory import require_room
from lightning_score.observations import GaussianNoise, LinearOperator, Observation
from lightning_score.tensors import broadcast_to


class Mixture:
    """A mixture of isotropic Gaussians, `p(x) = sum_k w_k N(x; m_k, s_k^2 I)`, also after a noise process.

    The noisy `x_t = alpha x_0 + sigma z` is a mixture, too: means `alpha m_k`, variances `v_k = alpha^2 s_k^2 + sigma^2`.
    Computes in the precision and on the device of `x`.

    Args:
        means: K centers m_k of D coordinates each.
        stds: K standard deviations s_k.
        weights: K weights w_k with any sum; None: equal weights.

    Raises:
        InputError: the arguments do not define a mixture.
    """

    def __init__(
        self, means: Sequence[Sequence[float]], stds: Sequence[float], weights: Sequence[float] | None = None
    ) -> None:
        weights = [1.0] * len(means) if weights is None else weights
        dimensions = {len(mean) for mean in means}
        require(
            len(dimensions) == 1 and min(dimensions) >= 1,
            f"means={means}: must be at least one mean, all with the same number of coordinates",
        )
        require(
            len(means) == len(stds) == len(weights),
            f"stds={list(stds)}, weights={list(weights)}: must be one of each for each of the {len(means)} means",
        )
        require(all(std > 0 for std in stds), f"stds={list(stds)}: must be positive")
        require(all(weight > 0 for weight in weights), f"weights={list(weights)}: must be positive")
        self.means = torch.tensor(means, dtype=torch.float64)
        self.stds = torch.tensor(stds, dtype=torch.float64)
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.weights /= self.weights.sum()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws `n` independent points, float64 (n, D)."""
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[mode] + self.stds[mode].unsqueeze(-1) * noise

    def log_prob(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """Log density of x_t, `log sum_k w_k N(x; alpha m_k, v_k I)`.

        Args:
            x: points (N, D).
            alpha: mean factor, a number or (N,).
            sigma: standard deviation of the noise, a number or (N,).

        Returns:
            (N,), in nats.
        """
        offset, variance = self._components(x, alpha, sigma)
        return self._log_joint(offset, variance, x).logsumexp(-1)

    def score(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """Gradient of `log_prob` in x, `sum_k p(k | x) (alpha m_k - x) / v_k`, (N, D); arguments as for `log_prob`."""
        offset, variance = self._components(x, alpha, sigma)
        posterior = self._log_joint(offset, variance, x).softmax(-1)
        return ((posterior / variance).unsqueeze(-1) * offset).sum(-2)

    def _components(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """`alpha m_k - x`, (N, K, D), and `v_k`, (K,) or (N, K)."""
        alpha, sigma = broadcast_to(torch.as_tensor(alpha), x), broadcast_to(torch.as_tensor(sigma), x)
        offset = alpha.unsqueeze(-1) * self.means.to(x) - x.unsqueeze(-2)
        return offset, alpha.square() * self.stds.to(x).square() + sigma.square()

    def _log_joint(self, offset: Tensor, variance: Tensor, x: Tensor) -> Tensor:
        """`log w_k N(x; alpha m_k, v_k I)`, (N, K)."""
        log_normal = -offset.square().sum(-1) / (2 * variance) - x.shape[-1] / 2 * torch.log(2 * math.pi * variance)
        return self.weights.to(x).log() + log_normal


class MixturePosterior:
    """The exact law of x from a mixture given `y = A x + s z`, z ~ N(0, I): a mixture of Gaussians with common axes.

    With the singular values A = U S V^T, e_i those of S, u = U^T y and c_k = V^T m_k, in the coordinates V^T x

    `weight_k = w_k prod_i N(u_i; e_i c_ki, e_i^2 s_k^2 + s^2)`, `variance_ki = s_k^2 s^2/(e_i^2 s_k^2 + s^2)`,
    `mean_ki = c_ki + e_i s_k^2 (u_i - e_i c_ki)/(e_i^2 s_k^2 + s^2)`.

    Args:
        mixture: the law of x, with K modes in D dimensions.
        operator: A, of points (N, D).
        y: one observation, of any shape.
        noise_std: s; 0: exact.

    Attributes:
        weights: the weights of the modes, float64 (K,).
        means, stds: means and standard deviations along the axes, (K, D).
        axes: V, (D, D).
    """

    def __init__(self, mixture: Mixture, operator: LinearOperator, y: Tensor, noise_std: float) -> None:
        size = mixture.means.shape[1]
        left, scales, axes = torch.linalg.svd(operator.apply(torch.eye(size, dtype=torch.float64)).flatten(1).mT)
        rank = int((scales > 1e-10 * scales[0]).sum())
        scales = torch.nn.functional.pad(scales[:rank], (0, size - rank))
        observed = torch.nn.functional.pad((y.flatten().double().cpu() @ left)[:rank], (0, size - rank))
        centers, variances = mixture.means @ axes.mT, mixture.stds[:, None] ** 2
        evidence, offset = scales**2 * variances + noise_std**2, observed - scales * centers
        log_normal = -(offset**2 / evidence + evidence.log())[:, :rank].sum(1) / 2
        self.weights = (mixture.weights.log() + log_normal).softmax(0)
        gain = torch.where(scales > 0, scales * variances / evidence, 0.0)
        self.means = centers + gain * offset
        self.stds = torch.where(scales > 0, variances * noise_std**2 / evidence, variances).sqrt()
        self.axes = axes.mT

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self.axes @ (self.weights @ self.means)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws `n` independent points, float64 (n, D)."""
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, len(self.axes), dtype=torch.float64, generator=generator)
        return (self.means[mode] + self.stds[mode] * noise) @ self.axes.mT


class GaussianMixture(ScoreData):
    """Points drawn from a mixture of Gaussians, whose exact density and score are in `mixture`; further arguments as in
    `ScoreData`.

    Args:
        means: center of each mode.
        stds: standard deviation of each mode, the same in all directions.
        weights: weight of each mode; equal if null.
        num_samples: number of points, 80 % for training and 20 % held out.
        seed: the seed of the points.

    Raises:
        InputError: means, stds and weights do not define a mixture, or there are fewer than 2 points.
    """

    def __init__(
        self,
        means: Sequence[Sequence[float]] = ((-1.2, -0.9), (1.2, -1.0), (1.0, 1.1), (-1.0, 1.2), (0.0, 0.1)),
        stds: Sequence[float] = (0.25, 0.2, 0.3, 0.15, 0.15),
        weights: Sequence[float] | None = (0.3, 0.1, 0.3, 0.1, 0.2),
        num_samples: int = 10000,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        require(num_samples >= 2, f"num_samples={num_samples}: must be at least 2, one of them held out")
        require_room(32 * num_samples * len(means[0]), f"num_samples={num_samples}", "use fewer")
        self.mixture = Mixture(means, stds, weights)
        self.shape = (len(means[0]),)
        self.num_samples = num_samples
        self.seed = seed

    def load(self) -> Splits:
        """Draws the points: float32 (N, D), unlabeled."""
        points = self.mixture.sample(self.num_samples, torch.Generator().manual_seed(self.seed)).float()
        labels = torch.zeros(self.num_samples, dtype=torch.long)
        return Splits(*(Examples(points[rows], labels[rows]) for rows in split_indices(self.num_samples)))

    def transform(self, train: bool) -> Transform:
        return torch.nn.Identity()

    def to_reference(self, x: Tensor) -> Tensor:
        return x

    def posterior(self, observation: Observation) -> Callable[[int, torch.Generator], Tensor] | None:
        operator, noise, y = observation
        if self.augment or not isinstance(operator, LinearOperator) or not isinstance(noise, GaussianNoise):
            return None
        return None if noise.std is None else MixturePosterior(self.mixture, operator, y, noise.std).sample
