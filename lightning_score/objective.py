"""Objectives: what is minimised so that a network becomes a score."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_score.process import NoiseProcess
from lightning_score.score import ScoreField
from lightning_score.utils import expand, require


class TimeDistribution(ABC):
    """The law of the times at which the score is trained."""

    @abstractmethod
    def sample(self, process: NoiseProcess, like: Tensor) -> Tensor:
        """Draws one time per row of `like` (B, ...), of its precision and on its device: (B,)."""


class UniformTimes(TimeDistribution):
    """t uniform in (t_min, 1] (Song et al. 2021, 2011.13456, eq. 7).

    Args:
        t_min: smallest time; null: the process's own.
    """

    def __init__(self, t_min: float | None = None):
        require(t_min is None or 0 <= t_min < 1, f"t_min={t_min}: must lie in [0, 1), as in 1.0e-5, or be null")
        self.t_min = t_min

    def sample(self, process: NoiseProcess, like: Tensor) -> Tensor:
        t_min = process.t_min if self.t_min is None else self.t_min
        return 1 - (1 - t_min) * torch.rand(len(like), device=like.device, dtype=like.dtype)


class LogNormalTimes(TimeDistribution):
    """ln(sigma/alpha) normal, so that training dwells on the noise levels that shape the samples.

    Karras et al. 2022 (2206.00364), table 1. The minimiser is that of every other law of t; levels beyond the ends of the
    process count as the nearer end.

    Args:
        mean: of ln(sigma/alpha), sigma in the units of the data.
        std: of ln(sigma/alpha).
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2):
        require(std > 0, f"std={std}: must be above 0, as in 1.2")
        self.mean, self.std = mean, std

    def sample(self, process: NoiseProcess, like: Tensor) -> Tensor:
        log_sigma = self.mean + self.std * torch.randn(len(like), device=like.device, dtype=like.dtype)
        return process.inverse_log_snr(-2 * log_sigma).clamp(min=process.t_min)


class TableTimes(TimeDistribution):
    """Each entry of the process's table with the same probability (NCSN, DDPM)."""

    def sample(self, process: NoiseProcess, like: Tensor) -> Tensor:
        times = process.table_times().to(like)
        return times[torch.randint(len(times), (len(like),), device=like.device)]


class Weighting(ABC):
    """lambda(t), which multiplies the squared residual of score + noise/sigma."""

    @abstractmethod
    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """lambda at each time, (B,)."""


class SigmaSquared(Weighting):
    """lambda = sigma^2 (Song and Ermon 2019, section 4.2; DDPM's simple loss is the same)."""

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.sigma(t) ** 2


class Likelihood(Weighting):
    """lambda = g^2, which bounds the negative log-likelihood (Song et al. 2021, 2101.09258, theorem 1)."""

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.diffusion(t) ** 2


class Objective(ABC):
    """A loss whose minimiser is the score."""

    @abstractmethod
    def __call__(self, score: ScoreField, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """The loss of each example of data x (B, ...): (B,)."""

    def check(self, process: NoiseProcess) -> None:
        """Raises `InputError` if the objective cannot be used with the process."""


class DenoisingScoreMatching(Objective):
    """E_t lambda(t) 1/2 ||score(x_t, t) + z/sigma(t)||^2 with x_t = alpha x_0 + sigma z.

    Vincent 2011; over many noise levels Song and Ermon 2019 (1907.05600), eq. 6.

    Args:
        weighting: lambda(t); sigma^2 by default.
        times: the law of t; uniform by default.
        mean: average over dimensions without the factor 1/2 (DDPM, score SDE) instead of half the sum (NCSN).
    """

    def __init__(self, weighting: Weighting | None = None, times: TimeDistribution | None = None, mean: bool = False):
        self.weighting = weighting or SigmaSquared()
        self.times = times or UniformTimes()
        self.mean = mean

    def __call__(self, score: ScoreField, x: Tensor, cond: Tensor | None = None) -> Tensor:
        t = self.times.sample(score.process, x)
        z = torch.randn_like(x)
        x_t = score.process.perturb(x, t, z)
        residual = score(x_t, t, cond) + z / expand(score.process.sigma(t), x)
        squared = residual.square().flatten(1)
        return self.weighting(score.process, t).to(x.dtype) * (squared.mean(1) if self.mean else squared.sum(1) / 2)

    def check(self, process: NoiseProcess) -> None:
        with torch.random.fork_rng(devices=[]):
            self.times.sample(process, torch.zeros(1))
