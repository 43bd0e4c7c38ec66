"""The two ends of sampling: where it starts, and what happens to the remaining noise."""

import math
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.files import LocalPath, read_arrays
from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource, NoiseStream, NoNoise
from lightning_score.score.function import ScoreField
from lightning_score.tensors import combine


class Initial(ABC):
    """Where sampling starts."""

    is_prior: bool = False
    """Whether it is the law that the process tends to, which must be that of the noisy data."""

    @abstractmethod
    def __call__(self, process: NoiseProcess, noise: NoiseSource) -> Tensor:
        """The first x (B, ...)."""


class Prior(Initial):
    """N(0, sigma(1)^2 I), the law of the process at t = 1 for data of mean zero.

    Args:
        std: the standard deviation in place of sigma(1); score SDE's code takes 1 for VP and subVP. null: sigma(1).
    """

    is_prior = True

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


class NormalNoise(Initial):
    """N(mean, std^2 I); with std = 0 the point whose coordinates are all `mean`.

    Args:
        std: standard deviation.
        mean: of every coordinate.
    """

    def __init__(self, std: float = 1.0, mean: float = 0.0):
        require(0 <= std < math.inf, f"std={std}: must be at least 0; 0 starts every sample at the mean")
        require(math.isfinite(mean), f"mean={mean}: must be a number, as in 0")
        self.std, self.mean = std, mean

    def __call__(self, process: NoiseProcess, noise: NoiseSource) -> Tensor:
        return self.mean + self.std * noise.normal()


class FromFile(Initial):
    """The points of a file, such as `samples.npz` of an earlier run: sample k starts at row k, modulo their number.

    Args:
        path: an NPZ with an array `x`, or an NPY, (N, *shape).

    Raises:
        InputError: it cannot be read or, when sampling starts, does not hold finite points of the shape of a sample.
    """

    def __init__(self, path: LocalPath):
        require(Path(path).is_file(), f"path={path}: no such file; give an NPY, or an NPZ with an array x")
        self.path = path
        arrays = read_arrays(Path(path))
        require("x" in arrays, f"path={path}: holds no array x but {', '.join(arrays) or 'nothing'}; give one with x")
        self._points = arrays["x"]

    def __call__(self, process: NoiseProcess, noise: NoiseSource) -> Tensor:
        like, points = noise.normal(), self._points
        require(
            points.dtype.kind in "fiu" and points.ndim > 0 and len(points) > 0 and points.shape[1:] == like.shape[1:],
            f"path={self.path}: its x has shape {list(points.shape)} and type {points.dtype}; must be numbers of shape "
            f"{['N', *like.shape[1:]]}",
        )
        x = torch.from_numpy(points[[k % len(points) for k in noise.indices]]).to(like)
        require(bool(x.isfinite().all()), f"path={self.path}: holds NaN or infinite points; remove them")
        return x


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
