"""Observations and their noise: the law of y given the noise-free A(x)."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.observations.base import Operator


class ObservationNoise(ABC):
    """The law of an observation y given its noise-free value m = A(x)."""

    @abstractmethod
    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Observations of noise-free values `mean`, (B, ...)."""

    @abstractmethod
    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """log p(y given m) up to a constant that depends on y alone, (B,); differentiable in m.

        Args:
            y: observations, (B, ...).
            mean: m, (B, ...).
        """

    @abstractmethod
    def variance(self, y: Tensor, mean: Tensor) -> Tensor:
        """The variance of the Gaussian that stands for p(y given m) near m, (B, 1, ...) or like y."""

    def check(self, y: Tensor) -> None:
        """Raises `InputError` if observations y (n, ...) cannot have this noise."""


class GaussianNoise(ObservationNoise):
    """y = m + s z.

    Args:
        std: s, in the units of the observation; 0: none; null: not known. Then s^2 has the prior 1/s^2, and p(y given m) is
            proportional to |y - m|^-d, d the numbers of an observation.

    Raises:
        InputError: std is negative.
    """

    def __init__(self, std: float | None = 0.1):
        require(std is None or 0 <= std < math.inf, f"std={std}: must be 0 (exact observations) or more, as in 0.1, or null")
        self.std = std

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.std is None:
            raise InputError("std=None: the noise to add is not known; give its standard deviation, as in 0.1")
        return mean + self.std * torch.randn(mean.shape, generator=generator).to(mean)

    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        square = (y - mean).flatten(1).square().sum(1).clamp(min=torch.finfo(mean.dtype).tiny)
        if self.std is None:
            return -y[0].numel() / 2 * square.log()
        require(self.std > 0, "std=0: exact observations have no density; give a small noise, as in 0.01")
        return -square / (2 * self.std**2)

    def variance(self, y: Tensor, mean: Tensor) -> Tensor:
        if self.std is not None:
            return y.new_full((len(y), *[1] * (y.ndim - 1)), self.std**2)
        return (y - mean).flatten(1).square().mean(1).reshape(-1, *[1] * (y.ndim - 1))


class PoissonNoise(ObservationNoise):
    """y = low + n/rate with counts n ~ Poisson(rate (m - low)).

    Args:
        rate: counts per unit; the higher, the less noise.
        floor: log(m - low) continues along its tangent where m - low is below this, so that it is finite with a gradient.
        low: the value without counts, 0 for images in [0, 1] and -1 for images in [-1, 1].

    Raises:
        InputError: a number is out of range; in `check`: an observation is below `low`.
    """

    def __init__(self, rate: float = 100.0, floor: float = 1e-3, low: float = 0.0):
        require(0 < rate < math.inf, f"rate={rate}: must be above 0, the counts per unit, as in 100")
        require(0 < floor < math.inf, f"floor={floor}: must be above 0, as in 1e-3")
        require(math.isfinite(low), f"low={low}: must be a number, the value without counts, as in 0 or -1")
        self.rate, self.floor, self.low = rate, floor, low

    def sample(self, mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        counts = torch.poisson(self.rate * (mean - self.low).clamp(min=0).cpu(), generator)
        return self.low + counts.to(mean) / self.rate

    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        m = mean - self.low
        above = m.clamp(min=self.floor)
        log_m = above.log() + (m - above) / self.floor
        return self.rate * ((y - self.low) * log_m - m).flatten(1).sum(1)

    def variance(self, y: Tensor, mean: Tensor) -> Tensor:
        return (mean.detach() - self.low).clamp(min=self.floor) / self.rate

    def check(self, y: Tensor) -> None:
        least = float(y.min())
        require(
            least >= self.low,
            f"observation: goes down to {least:g}, below low={self.low:g} of PoissonNoise; set low to the value without "
            "counts, as -1 for images in [-1, 1]",
        )


class Observation(NamedTuple):
    """y = A(x_0) with noise, one for each row of a batch.

    Fields: operator (A), noise (the law of y given A(x_0)), y (B, ...).
    """

    operator: Operator
    noise: ObservationNoise
    y: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(y given x_0 = x) up to a constant, (B,), for x (B, *shape)."""
        return self.noise.log_prob(self.y.to(x), self.operator.apply(x))
