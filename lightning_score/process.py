"""Noise processes: two functions of time, alpha and sigma, and all that follows from them.

Every process is linear-Gaussian, `x_t = alpha(t) x_0 + sigma(t) z` with `z ~ N(0, I)`, and equivalent to the Ito equation
`dx = f(t) x dt + g(t) dw`. Time runs from 0 (data) to 1 (noise).
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_score.utils import AUTO_IN_FIT, Auto, InputError, expand, require


def _derivative(function, t: Tensor) -> Tensor:
    """d function / dt at every element of `t`."""
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


class NoiseProcess(nn.Module, ABC):
    """A linear-Gaussian noise process, given by `log_alpha(t)` and `sigma(t)` alone.

    Times are floating-point tensors of any shape; every coefficient has the shape and precision of its time. `t_min` is
    the smallest time at which the score is trained and sampled, unless told otherwise.
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
        return _derivative(self.log_alpha, t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), from g^2 = d sigma^2/dt - 2 f sigma^2 (Sarkka and Solin 2019, eq. 6.2; 1/sqrt(time))."""
        return (_derivative(lambda u: self.sigma(u) ** 2, t) - 2 * self.drift(t) * self.sigma(t) ** 2).sqrt()

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

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of the step x_t = a x_s + b z from time s to t > s: a = alpha_t/alpha_s, b^2 = sigma_t^2 - a^2 sigma_s^2.

        The variance is computed as sigma_t^2 (1 - SNR_t/SNR_s), which does not cancel for neighbouring times.
        """
        a = (self.log_alpha(t) - self.log_alpha(s)).exp()
        b = self.sigma(t) * (-torch.expm1(self.log_snr(t) - self.log_snr(s))).sqrt()
        return a, b

    def perturb(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) z, for x (B, ...), t () or (B,) and z like x."""
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * noise

    def prior(self, noise: Tensor) -> Tensor:
        """Draws from the law at t = 1, N(0, sigma(1)^2 I), made of standard normal `noise` (B, ...)."""
        return expand(self.sigma(noise.new_ones(())), noise) * noise

    def table_times(self) -> Tensor:
        """The times of a tabulated process's entries, ascending, float64 (N,).

        Raises:
            InputError: the process is continuous and has no table.
        """
        raise InputError(
            f"{type(self).__name__} is a continuous process and has no table of noise levels: "
            "give a grid (Uniform, Geometric, Karras) instead of Table, or use BetaTable or SigmaTable"
        )

    def index(self, t: Tensor) -> Tensor:
        """The table entry, 1 to N (int64), nearest to each time: the only bridge from times to integers."""
        steps = len(self.table_times())
        return (t * steps).round().long().clamp(1, steps)


class VariancePreserving(NoiseProcess, ABC):
    """A process with sigma^2 = 1 - alpha^2, for which g^2 = -2 f."""

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        return (-2 * self.drift(t)).sqrt()


class VP(VariancePreserving):
    """Variance-preserving SDE, dx = -beta/2 x dt + sqrt(beta) dw, beta(t) = beta_min + t (beta_max - beta_min).

    Song et al. 2021 (2011.13456), eq. 11 and appendix C.

    Args:
        beta_min: beta at t = 0 (1/time).
        beta_max: beta at t = 1 (1/time), larger than beta_min.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        super().__init__()
        require(
            0 <= beta_min < beta_max < math.inf,
            f"beta_min={beta_min}, beta_max={beta_max}: need 0 <= beta_min < beta_max, as in beta_min=0.1, beta_max=20",
        )
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        """beta(t), the rate at which signal turns into noise (1/time)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2) / 2

    def drift(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._inverse_integral(nn.functional.softplus(-log_snr))

    def _inverse_integral(self, integral: Tensor) -> Tensor:
        """The time t at which the integral of beta from 0 to t, which is -log alpha^2, has the given value."""
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return (2 * integral / (self.beta_min + root)).clamp(0, 1)


class SubVP(VP):
    """Sub-variance-preserving SDE: the mean of VP with sigma = 1 - alpha^2, a smaller variance at every time.

    Song et al. 2021 (2011.13456), eq. 12: g^2 = beta (1 - alpha^4).

    Args:
        beta_min: beta at t = 0 (1/time).
        beta_max: beta at t = 1 (1/time), larger than beta_min.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def diffusion(self, t: Tensor) -> Tensor:
        return (-self.beta(t) * torch.expm1(4 * self.log_alpha(t))).sqrt()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self._inverse_integral(2 * torch.asinh((-log_snr / 2).exp() / 2))  # sigma/alpha = 2 sinh(-log alpha)


class VE(NoiseProcess):
    """Variance-exploding SDE: alpha = 1, sigma(t) = sigma_min (sigma_max/sigma_min)^t.

    Song et al. 2021 (2011.13456), eq. 9 and appendix C. EDM is VE with sigma from 0.002 to 80.

    Args:
        sigma_min: standard deviation at t = 0, in the units of the data, above zero.
        sigma_max: that at t = 1, larger; about the largest distance between two images, as `auto` in a config of `fit`.
    """

    t_min = 0.0

    def __init__(self, sigma_min: float = 0.01, sigma_max: float | Auto = 50.0):
        super().__init__()
        _require_sigmas(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.log_ratio = math.log(sigma_max / sigma_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.log_ratio * t).exp()

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self.log_ratio)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr / 2 - math.log(self.sigma_min)) / self.log_ratio).clamp(0, 1)


class Cosine(VariancePreserving):
    """Cosine schedule: alpha(t) = cos((t + offset)/(1 + offset) pi/2) / cos(offset/(1 + offset) pi/2).

    Nichol and Dhariwal 2021 (2102.09672), eq. 17. There alpha(1) = 0 and the drift is infinite, so from `t_max` on the
    process stands still.

    Args:
        offset: the paper's s, which keeps the noise near t = 0 from vanishing too fast.
        t_max: the time after which nothing changes, below 1.
    """

    t_min = 1e-3

    def __init__(self, offset: float = 0.008, t_max: float = 0.9999):
        super().__init__()
        require(0 <= offset < math.inf, f"offset={offset}: must be at least 0, as in 0.008")
        require(0 < t_max < 1, f"t_max={t_max}: must lie between 0 and 1, as in 0.9999")
        self.offset, self.t_max = offset, t_max

    def log_alpha(self, t: Tensor) -> Tensor:
        angle = (t.clamp(max=self.t_max) + self.offset) / (1 + self.offset) * math.pi / 2
        return angle.cos().log() - math.log(math.cos(self.offset / (1 + self.offset) * math.pi / 2))


class Table(NoiseProcess, ABC):
    """A process known at N noise levels: entry i = 1..N stands at t = i/N and t = 0 is clean data.

    Between entries one quantity runs linearly in time, so that the coefficients of the Ito equation are constant there.

    Args:
        entries: that quantity at the N entries, in ascending time.
    """

    def __init__(self, entries: Tensor):
        super().__init__()
        self.register_buffer("entries", nn.functional.pad(entries.double(), (1, 0)), persistent=False)
        self.t_min = 1 / len(entries)

    def interpolate(self, t: Tensor) -> Tensor:
        """The tabulated quantity at any time in [0, 1], linear between entries."""
        entries = self.entries.to(t.device)
        position = t.double() * (len(entries) - 1)
        below = (position.detach() - 1e-6).floor().long().clamp(0, len(entries) - 2)  # entry i ends interval i
        return torch.lerp(entries[below], entries[below + 1], position - below).to(t.dtype)

    def table_times(self) -> Tensor:
        steps = len(self.entries) - 1
        return torch.arange(1, steps + 1, device=self.entries.device).double() / steps

    def _apply(self, fn, recurse: bool = True):
        entries = self.entries
        super()._apply(fn, recurse)
        self.entries = entries.to(self.entries.device)  # a model in half precision keeps an exact table
        return self


class BetaTable(VariancePreserving, Table):
    """DDPM's discrete chain: alpha_i^2 = prod_{j <= i} (1 - beta_j), beta_j linear from beta_min to beta_max.

    Ho et al. 2020 (2006.11239), section 4. log alpha is linear between entries, so that the drift is constant there.

    Args:
        beta_min: variance of the first step.
        beta_max: variance of the last step, below 1.
        steps: N.
    """

    def __init__(self, beta_min: float = 1e-4, beta_max: float = 0.02, steps: int = 1000):
        require(steps >= 1, f"steps={steps}: need at least one step, as in steps=1000")
        require(
            0 < beta_min <= beta_max < 1,
            f"beta_min={beta_min}, beta_max={beta_max}: need 0 < beta_min <= beta_max < 1, as in 1.0e-4 and 0.02",
        )
        betas = torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)
        super().__init__(torch.log1p(-betas).cumsum(0) / 2)

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.interpolate(t)

    @property
    def betas(self) -> Tensor:
        """The variances of the steps, float64 (N,)."""
        return -torch.expm1(2 * self.entries.diff())


class SigmaTable(Table):
    """NCSN's ladder: alpha = 1 and a geometric sequence of noise levels.

    Song and Ermon 2019 (1907.05600), section 4. sigma^2 is linear between entries, so that the diffusion is constant there.

    Args:
        sigma_min: the smallest level, in the units of the data, above zero (the paper's sigma_L).
        sigma_max: the largest level (the paper's sigma_1); in a config of `fit`, `auto`: the largest distance in the data.
        levels: the number of levels L; in a config of `fit`, `auto`: by technique 2 of Song and Ermon 2020.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float | Auto = 1.0, levels: int | Auto = 10):
        require(levels != "auto" and levels >= 1, f"levels={levels}: need at least one, as in levels=10; {AUTO_IN_FIT}")
        if levels > 1 or sigma_min != sigma_max:
            _require_sigmas(sigma_min, sigma_max)
        exponents = torch.linspace(0, 1, levels, dtype=torch.float64) if levels > 1 else torch.ones(1).double()
        super().__init__((sigma_min * (sigma_max / sigma_min) ** exponents) ** 2)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.interpolate(t).sqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        return _derivative(self.interpolate, t).sqrt()

    @property
    def sigmas(self) -> Tensor:
        """The noise levels, ascending, float64 (L,)."""
        return self.entries[1:].sqrt()


def _require_sigmas(sigma_min: float, sigma_max: float) -> None:
    require(
        sigma_max != "auto" and 0 < sigma_min < sigma_max < math.inf,
        f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < sigma_min < sigma_max, as in 0.01 and 50; {AUTO_IN_FIT}",
    )
