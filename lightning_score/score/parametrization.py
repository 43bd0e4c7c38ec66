"""Parametrizations: what the network predicts, as coefficients that turn its output into a score.

    score(x, t) = c_skip(t) x + c_out(t) F(c_in(t) x, c_noise(t))

The coefficients are those of Karras et al. 2022 (2206.00364, eq. 7), written for the score instead of the denoised image,
so that nothing cancels at small noise. The denoised image is (x + sigma^2 score)/alpha in every case; where alpha = 0, x is
noise alone with the score -x/sigma^2 whatever the data, and the denoised image, the mean of the data, has coefficients of
its own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.tensors import Scale

SkipOut = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(c_skip, c_out) for given alpha and sigma."""


class NoiseLabel(ABC):
    """The number that encodes the noise level for the network."""

    @abstractmethod
    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """The label at each time."""


class LogSigma(NoiseLabel):
    """scale log(sigma/alpha/unit): continuous, the same for every process at the same signal-to-noise ratio.

    Where alpha falls to 0, sigma/alpha is taken as 1000 at most, so that the label is finite for noise alone.

    Args:
        scale: a factor; EDM's networks take 1/4.
        unit: the noise level whose label is 0; 2 in EDM's version of VE, log(sigma/2).
    """

    def __init__(self, scale: float = 1.0, unit: float = 1.0):
        require(0 < unit < math.inf, f"unit={unit}: must be above 0, as in 1")
        self.scale, self.unit = scale, unit

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return -self.scale / 2 * process.log_snr(process.with_signal(t)) - self.scale * math.log(self.unit)


class Time(NoiseLabel):
    """scale t + offset: the label of score SDE's VP and sub-VP networks.

    Args:
        scale: a factor; score SDE takes 999.
        offset: the label at t = 0; scale -1 and offset 1 for a time that runs from noise to data.
    """

    def __init__(self, scale: float = 999.0, offset: float = 0.0):
        self.scale, self.offset = scale, offset

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return self.scale * t + self.offset


class Index(NoiseLabel):
    """The position in the process's table, 0 to N - 1: the label of DDPM's networks, and, descending, of NCSN's.

    Args:
        descending: count from the noisiest entry (NCSN, whose ladder descends) instead of the cleanest (DDPM).
    """

    def __init__(self, descending: bool = False):
        self.descending = descending

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        index = process.index(t)
        return (len(process.table_times()) - index if self.descending else index - 1).to(t.dtype)


class Coefficients(NamedTuple):
    """c_in, c_skip, c_out and c_noise, of the score or of the denoised image, each of the shape of the times."""

    c_in: Scale
    c_skip: Scale
    c_out: Scale
    c_noise: Scale


class Parametrization(ABC):
    """What the network predicts: score = c_skip x + c_out F(c_in x, c_noise).

    Args:
        data_std: standard deviation of the data; if given, the network's input is scaled to unit variance,
            c_in = 1/sqrt(alpha^2 data_std^2 + sigma^2), else c_in = 1.
        noise_label: the number that encodes the noise level; log(sigma/alpha) by default.
    """

    def __init__(self, data_std: float | None = None, noise_label: NoiseLabel | None = None):
        require(data_std is None or data_std > 0, f"data_std={data_std}: must be above 0, as in 0.5, or null")
        self.data_std = data_std
        self.noise_label = noise_label or LogSigma()

    divides_by_alpha: bool = True
    """Whether the denoised image is found from the score alone, and not where alpha = 0."""

    @abstractmethod
    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) of the score for given alpha and sigma."""

    def denoised_skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) of the denoised image, (x + sigma^2 score)/alpha, for given alpha and sigma."""
        c_skip, c_out = self.skip_out(alpha, sigma)
        scale = sigma**2 / alpha
        return 1 / alpha + scale * c_skip, scale * c_out

    def check(self, process: NoiseProcess) -> None:
        """Raises `InputError` if the network's output tells nothing about the data at some time of the process."""
        require(
            not self.divides_by_alpha or process.t_signal == 1,
            f"parametrization={type(self).__name__}: has no denoised image where alpha = 0, as at t = 1 of "
            f"{type(process).__name__}; take Flow, Velocity, EDM or Denoised",
        )

    def __call__(self, process: NoiseProcess, t: Tensor) -> Coefficients:
        """The coefficients of the score at times `t` of any shape."""
        return process.numbers(self, partial(self._coefficients, process, self.skip_out), t)

    def of_denoised(self, process: NoiseProcess, t: Tensor) -> Coefficients:
        """The coefficients of the denoised image at times `t` of any shape."""
        return process.numbers((self, "denoised"), partial(self._coefficients, process, self.denoised_skip_out), t)

    def _coefficients(self, process: NoiseProcess, skip_out: SkipOut, t: Tensor) -> Coefficients:
        alpha, sigma = process.alpha(t), process.sigma(t)
        c_in = torch.ones_like(t) if self.data_std is None else (alpha**2 * self.data_std**2 + sigma**2).rsqrt()
        return Coefficients(c_in, *skip_out(alpha, sigma), self.noise_label(process, t))


class Score(Parametrization):
    """F = score (Song and Ermon 2019: NCSN divides by sigma through `ScoreOverSigma` or inside its conditioning).

    Args:
        data_std: standard deviation of the data, to scale the network's input to unit variance; null: unscaled.
        noise_label: the number that encodes the noise level; log(sigma/alpha) by default.
    """

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(sigma), torch.ones_like(sigma)


class ScoreOverSigma(Parametrization):
    """F = sigma score, so that score = F/sigma (technique 3 of Song and Ermon 2020, 2006.09011; NCSNv2, NCSN++).

    Args:
        data_std: standard deviation of the data, to scale the network's input to unit variance; null: unscaled.
        noise_label: the number that encodes the noise level; log(sigma/alpha) by default.
    """

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(sigma), 1 / sigma


class Noise(Parametrization):
    """F = z, the noise, so that score = -F/sigma (Ho et al. 2020, 2006.11239, eq. 12; DDPM).

    Args:
        data_std: standard deviation of the data, to scale the network's input to unit variance; null: unscaled.
        noise_label: the number that encodes the noise level; log(sigma/alpha) by default.
    """

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(sigma), -1 / sigma


class Denoised(Parametrization):
    """F = E[x_0 given x_t], so that score = (alpha F - x)/sigma^2 (Tweedie's formula).

    Args:
        data_std: standard deviation of the data, to scale the network's input to unit variance; null: unscaled.
        noise_label: the number that encodes the noise level; log(sigma/alpha) by default.
    """

    divides_by_alpha = False

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -1 / sigma**2, alpha / sigma**2

    def denoised_skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(sigma), torch.ones_like(sigma)


class Velocity(Parametrization):
    """F = v = alpha z - sigma x_0 (Salimans and Ho 2022, 2202.00512, appendix D).

    Args:
        data_std: standard deviation of the data, to scale the network's input to unit variance; null: unscaled.
        noise_label: the number that encodes the noise level; log(sigma/alpha) by default.
    """

    divides_by_alpha = False

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = alpha**2 + sigma**2
        return -1 / variance, -alpha / (sigma * variance)

    def denoised_skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = alpha**2 + sigma**2
        return alpha / variance, -sigma / variance


class Flow(Parametrization):
    """F = z - x_0, the velocity of a straight line from data to noise: score = -(x + alpha F)/(sigma (alpha + sigma)).

    Lipman et al. 2022 (2210.02747); Esser et al. 2024 (2403.03206), section 2. denoised = (x - sigma F)/(alpha + sigma).

    Args:
        data_std: standard deviation of the data, to scale the network's input to unit variance; null: unscaled.
        noise_label: the number that encodes the noise level; log(sigma/alpha) by default.
    """

    divides_by_alpha = False

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        scale = -1 / (sigma * (alpha + sigma))
        return scale, alpha * scale

    def denoised_skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)


class EDM(Parametrization):
    """F of Karras et al. 2022 (2206.00364), table 1, on x/alpha at noise level sigma/alpha.

    There denoised = d^2/(s^2 + d^2) y + s d/sqrt(s^2 + d^2) F, with y = x/alpha, s = sigma/alpha, d = data_std.

    Args:
        data_std: standard deviation of the data d.
        noise_label: the number that encodes the noise level; log(sigma/alpha)/4 by default.
    """

    data_std: float
    divides_by_alpha = False

    def __init__(self, data_std: float = 0.5, noise_label: NoiseLabel | None = None):
        super().__init__(data_std, noise_label or LogSigma(0.25))

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = alpha**2 * self.data_std**2 + sigma**2
        return -1 / variance, alpha * self.data_std / (sigma * variance.sqrt())

    def denoised_skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = alpha**2 * self.data_std**2 + sigma**2
        return alpha * self.data_std**2 / variance, self.data_std * sigma / variance.sqrt()
