"""The two ends of sampling: where it starts, and what happens to the remaining noise."""

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource, NoiseStream, NoNoise
from lightning_score.score.function import ScoreField
from lightning_score.tensors import combine


class Initial(ABC):
    """Where sampling starts."""

    @abstractmethod
    def __call__(self, process: NoiseProcess, noise: NoiseSource) -> Tensor:
        """The first x (B, ...)."""


class Prior(Initial):
    """N(0, sigma(1)^2 I), the law of the process at t = 1 for data of mean zero.

    Args:
        std: the standard deviation in place of sigma(1); score SDE's code takes 1 for VP and subVP. null: sigma(1).
    """

    def __init__(self, std: float | None = None):
        require(std is None or std > 0, f"std={std}: must be above 0, as in 1, or null")
        self.std = std

    def __call__(self, process: NoiseProcess, noise: NoiseSource) -> Tensor:
        return process.prior(noise.normal()) if self.std is None else combine((self.std, noise.normal()))


class UniformNoise(Initial):
    """Uniform noise, from which the authors' NCSN and NCSNv2 start.

    Args:
        low: lower end, that of the data range.
        high: upper end.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0):
        require(low < high, f"low={low}, high={high}: need low < high, as in 0 and 1")
        self.low, self.high = low, high

    def __call__(self, process: NoiseProcess, noise: NoiseSource) -> Tensor:
        return self.low + (self.high - self.low) * noise.uniform()


class FinalDenoise(ABC):
    """What happens to the noise that remains at the last level."""

    evaluations: int = 0
    """Score evaluations of `finish`."""

    def last_noise(self, noise: NoiseStream) -> NoiseSource:
        """The random numbers of the last move."""
        return noise

    @abstractmethod
    def finish(self, score: ScoreField, x: Tensor, t: Tensor) -> Tensor:
        """The result, from x at the last time t."""

    def check(self, last_sigma: float) -> None:
        """Raises `InputError` if the samples, at sigma `last_sigma`, have no noise to remove."""


class KeepNoise(FinalDenoise):
    """Leaves the noise of the last level in the samples (NCSN)."""

    def finish(self, score: ScoreField, x: Tensor, t: Tensor) -> Tensor:
        return x


class LastMean(FinalDenoise):
    """Returns the noise-free mean of the last move (score SDE; no further evaluation)."""

    def last_noise(self, noise: NoiseStream) -> NoNoise:
        return NoNoise(noise)

    def finish(self, score: ScoreField, x: Tensor, t: Tensor) -> Tensor:
        return x


class Tweedie(FinalDenoise):
    """Replaces x by E[x_0 given x] (NCSNv2, Jolicoeur-Martineau et al. 2020, 2009.05475; one further evaluation)."""

    evaluations = 1

    def finish(self, score: ScoreField, x: Tensor, t: Tensor) -> Tensor:
        return score.denoised(x, t)

    def check(self, last_sigma: float) -> None:
        require(
            last_sigma > 0,
            "denoise=Tweedie: this grid ends at clean data, where there is no noise to remove; "
            "use LastMean or KeepNoise, or a grid that ends at t_min > 0",
        )
