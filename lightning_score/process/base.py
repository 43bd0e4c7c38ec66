"""What every noise process has: all that follows from alpha(t) and sigma(t)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_score.errors import InputError
from lightning_score.process.cache import CachedCoefficients
from lightning_score.tensors import combine

Auto = Literal["auto"]
"""In a config of `fit`, in place of a number that `fit` chooses from the data."""

NOISE_ALONE, LAST_TRAINED = 1e3, 1e5
"""The levels sigma/alpha from which on, where alpha falls to 0, x is as good as noise alone, and up to which a score is
trained, because losses of a weight that grows as 1/alpha^2 lose their digits.
"""

AUTO_IN_FIT = "auto is for a config of fit only; elsewhere give the number that the command schedule finds"


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt at every element of `t`."""
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1].to(t.dtype)


class NoiseProcess(CachedCoefficients, nn.Module, ABC):
    """A linear-Gaussian noise process, given by `log_alpha(t)` and `sigma(t)` alone.

    Times are floating-point tensors of any shape; every coefficient has the shape and precision of its time. `t_min` is
    the smallest time at which the score is trained and sampled, unless another is given.
    """

    t_min: float = 1e-5

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha(t), where E[x_t given x_0] = alpha(t) x_0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """sigma(t), the standard deviation of x_t given x_0."""

    def alpha(self, t: Tensor) -> Tensor:
        """alpha(t) = exp(log alpha(t)), the mean factor."""
        return self.log_alpha(t).exp()

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d log alpha / dt, so that the drift of the Ito equation is f(t) x (1/time)."""
        return derivative(self.log_alpha, t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), from g^2 = d sigma^2/dt - 2 f sigma^2 (Sarkka and Solin 2019, eq. 6.2; 1/sqrt(time))."""
        return (derivative(lambda u: self.sigma(u) ** 2, t) - 2 * self.drift(t) * self.sigma(t) ** 2).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2/sigma^2), the logarithm of the signal-to-noise ratio; it falls with time."""
        return 2 * (self.log_alpha(t) - self.sigma(t).log())

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time at which `log_snr(t)` has the given value, by bisection; beyond the ends, the nearer end."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(64):
            middle = (low + high) / 2
            too_early = self.log_snr(middle) > log_snr
            low, high = torch.where(too_early, middle, low), torch.where(too_early, high, middle)
        return (low + high) / 2

    def noise_level(self, t: Tensor) -> Tensor:
        """sigma/alpha, the standard deviation of the noise of x_t/alpha, in the units of the data; it rises with time."""
        return (-self.log_snr(t) / 2).exp()

    def time_of(self, level: Tensor) -> Tensor:
        """The time at which `noise_level(t)` has the given value; beyond the ends, the nearer end."""
        return self.inverse_log_snr(-2 * level.log())

    @cached_property
    def t_signal(self) -> float:
        """The last time at which x still holds data: 1 or, if alpha(1) = 0, that of sigma/alpha = `NOISE_ALONE`."""
        one = torch.ones((), dtype=torch.float64)
        return float(self.time_of(NOISE_ALONE * one)) if self.is_noise(one) else 1.0

    def with_signal(self, t: Tensor) -> Tensor:
        """t, at most `t_signal`, and below 1 in its precision, for what divides by alpha."""
        return t if self.t_signal == 1 else _at_most(t, self.t_signal)

    def trainable(self, t: Tensor) -> Tensor:
        """t, at most the time of sigma/alpha = `LAST_TRAINED` if alpha(1) = 0, and below 1 in the precision of t."""
        return t if self.t_signal == 1 else _at_most(t, self._t_trained)

    @cached_property
    def _t_trained(self) -> float:
        return float(self.time_of(torch.tensor(LAST_TRAINED, dtype=torch.float64)))

    def is_noise(self, t: Tensor) -> bool:
        """Whether alpha(t) = 0 at a time (): x is noise alone."""
        return float(self.log_alpha(t)) == -math.inf

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of the step x_t = a x_s + b z from time s to t > s: a = alpha_t/alpha_s, b^2 = sigma_t^2 - a^2 sigma_s^2.

        The variance is computed as sigma_t^2 (1 - SNR_t/SNR_s), which does not cancel for neighboring times.
        """
        a = (self.log_alpha(t) - self.log_alpha(s)).exp()
        b = self.sigma(t) * (-torch.expm1(self.log_snr(t) - self.log_snr(s))).sqrt()
        return a, b

    def perturb(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) z, for x (B, ...), t () or (B,) and z like x."""
        return combine((self.alpha(t), x), (self.sigma(t), noise))

    def prior(self, noise: Tensor) -> Tensor:
        """Draws from the law at t = 1, N(0, sigma(1)^2 I), from standard normal `noise` (B, ...)."""
        return combine((self.sigma(torch.ones((), dtype=noise.dtype)), noise))

    def chain(self, steps: int) -> "NoiseProcess":
        """The table of N entries whose limit the process is; the process itself if there is none.

        DDPM's chain with beta_i = beta/N for VP, and NCSN's ladder for VE (Song et al. 2021, 2011.13456, appendix B).

        Args:
            steps: N; a chain needs more than VP's beta_max.
        """
        return self

    def table_times(self) -> Tensor:
        """The times of a tabulated process's entries, ascending, float64 (N,).

        Raises:
            InputError: the process is continuous and has no table.
        """
        raise InputError(
            f"{type(self).__name__} is a continuous process and has no table of noise levels: "
            "give a grid (Uniform, Geometric, Karras) instead of ProcessTable, or use BetaTable or SigmaTable"
        )

    def index(self, t: Tensor) -> Tensor:
        """The table entry, 1 to N (int64), nearest to each time."""
        steps = len(self.table_times())
        return (t * steps).round().long().clamp(1, steps)


class VariancePreserving(NoiseProcess, ABC):
    """A process with sigma^2 = 1 - alpha^2, for which g^2 = -2 f."""

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        return (-2 * self.drift(t)).sqrt()

    @staticmethod
    def log_alpha_of(log_snr: Tensor) -> Tensor:
        """log alpha where log_snr has a given value: alpha^2 = SNR/(1 + SNR)."""
        return -nn.functional.softplus(-log_snr) / 2


def _at_most(t: Tensor, last: float) -> Tensor:
    """t, at most `last` < 1, or the largest number below 1 in the precision of t."""
    return t.clamp(max=min(last, 1 - torch.finfo(t.dtype).eps / 2))


def require_sigmas(sigma_min: float, sigma_max: float | Auto) -> float:
    """sigma_max; raises `InputError` unless 0 < sigma_min < sigma_max."""
    if isinstance(sigma_max, str) or not 0 < sigma_min < sigma_max < math.inf:
        raise InputError(
            f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < sigma_min < sigma_max, as in 0.01 and 50; {AUTO_IN_FIT}"
        )
    return sigma_max
