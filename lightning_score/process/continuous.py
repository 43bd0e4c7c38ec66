"""The continuous processes of score SDE, EDM and improved DDPM."""

import math

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process.base import Auto, NoiseProcess, VariancePreserving, require_sigmas
from lightning_score.process.table import BetaTable, SigmaTable


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
        return self._inverse_integral(-2 * self.log_alpha_of(log_snr))

    def chain(self, steps: int) -> NoiseProcess:
        if not 0 < self.beta_min <= self.beta_max < steps:
            return self
        return BetaTable(self.beta_min / steps, self.beta_max / steps, steps)

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

    def chain(self, steps: int) -> NoiseProcess:
        return self

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
        self.sigma_min, self.sigma_max = sigma_min, require_sigmas(sigma_min, sigma_max)
        self.log_ratio = math.log(self.sigma_max / sigma_min)

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

    def chain(self, steps: int) -> NoiseProcess:
        return SigmaTable(self.sigma_min, self.sigma_max, steps)


class Linear(NoiseProcess):
    """Straight lines from data to noise, alpha = 1 - t and sigma = t: rectified flow, flow matching.

    Liu et al. 2022 (2209.03003); Lipman et al. 2022 (2210.02747) with sigma_min = 0. There alpha(1) = 0: pure noise.
    """

    t_min = 1e-3

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def drift(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def diffusion(self, t: Tensor) -> Tensor:
        return (2 * t / (1 - t)).sqrt()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


class Cosine(VariancePreserving):
    """Cosine schedule: alpha(t) = cos((t + offset)/(1 + offset) pi/2) / cos(offset/(1 + offset) pi/2).

    Nichol and Dhariwal 2021 (2102.09672), eq. 17. There alpha(1) = 0 and the drift is infinite, so the process is
    constant from `t_max` on.

    Args:
        offset: the paper's s, which keeps the noise near t = 0 from vanishing too fast.
        t_max: the time after which the process is constant, below 1.
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

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        start = self.offset / (1 + self.offset) * math.pi / 2
        angle = (self.log_alpha_of(log_snr.double()).exp() * math.cos(start)).acos()
        return (angle * 2 / math.pi * (1 + self.offset) - self.offset).clamp(0, 1).to(log_snr.dtype)
