"""Inverse problems whose posterior is known: Gaussian mixtures of one covariance under a linear operator."""

from dataclasses import dataclass
from functools import cached_property

import torch
from conftest import ExactScore
from torch import Tensor

from lightning_score.data import Digits, Mixture, MixturePosterior
from lightning_score.observations import GaussianNoise, LinearOperator, Mask, Matrix
from lightning_score.tensors import broadcast_to


@dataclass
class Law:
    """sum_k w_k N(m_k, S), on samples of a shape.

    Fields: means m_k (K, D), covariance S (D, D), weights w_k (K,), shape.
    """

    means: Tensor
    covariance: Tensor
    weights: Tensor
    shape: tuple[int, ...]

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(self.covariance)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws, float64 (n, *shape)."""
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        values, vectors = self.eigen
        noise = torch.randn(n, len(values), dtype=torch.float64, generator=generator)
        return (self.means[mode] + (noise * values.clamp(min=0).sqrt()) @ vectors.mT).reshape(n, *self.shape)

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self.weights @ self.means

    @property
    def total_covariance(self) -> Tensor:
        """(D, D)."""
        centered = self.means - self.mean
        return self.covariance + (self.weights.unsqueeze(1) * centered).mT @ centered

    def shares(self, x: Tensor) -> Tensor:
        """The share of each component among samples (n, *shape), (K,): of the posterior probabilities of the components."""
        values, vectors = self.eigen
        distance = torch.cdist(x.flatten(1).to(vectors) @ vectors / values.sqrt(), self.means @ vectors / values.sqrt())
        return (self.weights.log() - distance.square() / 2).softmax(1).mean(0)

    def log_prob(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Log density of x_t, (B,), up to a constant in x."""
        values, vectors = self.eigen
        std = (alpha**2 * values + sigma**2).sqrt()
        offset = (x.flatten(1).unsqueeze(1) - alpha * self.means) @ vectors / std
        return (self.weights.log() - offset.square().sum(2) / 2).logsumexp(1)

    def given(self, matrix: Tensor, std: float, y: Tensor) -> "Law":
        """The law given one observation y (m,) = matrix x + std z, by that of u with x = root u and modes N(., I)."""
        values, vectors = self.eigen
        root, white = vectors * values.sqrt(), self.means @ vectors / values.sqrt()
        mixture = Mixture(white.tolist(), [1.0] * len(white), self.weights.tolist())
        found = MixturePosterior(mixture, Matrix(matrix @ root), y, std)
        axes = root @ found.axes
        return Law(found.means @ axes.mT, axes * found.stds[0] ** 2 @ axes.mT, found.weights, self.shape)


class LawScore(ExactScore):
    """The score of a `Law` under a noise process."""

    def __init__(self, noise_process, law: Law):
        super().__init__(noise_process)
        self.law = law

    def exact(self, x, alpha, sigma):
        values, vectors = (part.to(x) for part in self.law.eigen)
        flat = x.flatten(1)
        alpha, sigma = broadcast_to(alpha, flat), broadcast_to(sigma, flat)
        means, turned = self.law.means.to(x) @ vectors, flat @ vectors
        precision = (1 / (alpha**2 * values + sigma**2)).expand(len(x), -1)
        logits = self.law.weights.log().to(x) + (alpha * turned * precision) @ means.mT
        logits = logits - (alpha**2 * precision) @ means.square().mT / 2
        score = precision * (alpha * (logits.softmax(1) @ means) - turned)
        return (score @ vectors.mT).reshape(x.shape)


@dataclass
class Problem:
    """A prior and what is observed of its samples: y = A x + std z."""

    prior: Law
    operator: LinearOperator
    std: float

    @cached_property
    def matrix(self) -> Tensor:
        """A, (m, D)."""
        size = self.prior.means.shape[1]
        return self.operator.apply(torch.eye(size, dtype=torch.float64).reshape(size, *self.prior.shape)).flatten(1).mT

    @property
    def noise(self) -> GaussianNoise:
        return GaussianNoise(self.std)

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Observations (n, m) of samples (n, *shape)."""
        return self.noise.sample(self.operator.apply(x), generator)

    def posterior(self, y: Tensor) -> Law:
        """The law of x given one observation, (m,)."""
        return self.prior.given(self.matrix, self.std, y.to(torch.float64))


def gaussian(size: int = 16, observed: int = 6, std: float = 0.1) -> Problem:
    """A Gaussian whose variances fall from 1 to 0.01 along random directions, seen through a random matrix."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]
    covariance = vectors * torch.logspace(0, -2, size, dtype=torch.float64) @ vectors.mT
    mean = torch.randn(1, size, dtype=torch.float64, generator=generator) / 2
    matrix = torch.randn(observed, size, dtype=torch.float64, generator=generator) / size**0.5
    return Problem(Law(mean, covariance, torch.ones(1, dtype=torch.float64), (size,)), Matrix(matrix), std)


def two_modes() -> Problem:
    """Two far modes of weights .1 and .9; the second coordinate is observed, with noise that leaves both possible."""
    means = torch.tensor([[-2.0, -0.25], [2.0, 0.25]], dtype=torch.float64)
    weights = torch.tensor([0.1, 0.9], dtype=torch.float64)
    return Problem(Law(means, 0.09 * torch.eye(2, dtype=torch.float64), weights, (2,)), Matrix([[0.0, 1.0]]), 0.3)


TWO_MODES_Y = torch.tensor([[-0.45]], dtype=torch.float64)
"""An observation of `two_modes` with which the posterior's weights are about .28 and .72."""


def digits(width: float = 0.2, std: float = 0.1) -> Problem:
    """The kernel density of the 1 797 digits, the left half of an image observed."""
    data = Digits()
    x = torch.cat([data.as_input(part.x) for part in data.splits]).to(torch.float64)
    law = Law(
        x.flatten(1), width**2 * torch.eye(64, dtype=torch.float64), torch.full((len(x),), 1 / len(x)).double(), (1, 8, 8)
    )
    return Problem(law, Mask((torch.arange(8) < 4).expand(1, 8, 8)), std)
