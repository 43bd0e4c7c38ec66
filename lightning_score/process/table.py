"""The tabulated processes of DDPM and NCSN."""

import math
from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_score.errors import InputError, require, require_passes
from lightning_score.process.base import AUTO_IN_FIT, Auto, NoiseProcess, VariancePreserving, derivative, require_sigmas


class TableProcess(NoiseProcess, ABC):
    """A process known at N noise levels: entry i = 1..N is at t = i/N, and t = 0 is clean data.

    Between entries one quantity is linear in time, so that the coefficients of the Ito equation are constant there.

    Args:
        entries: that quantity at the N entries, in ascending time.
    """

    def __init__(self, entries: Tensor):
        super().__init__()
        self.entries = nn.functional.pad(entries.double(), (1, 0))
        self._copies: dict[torch.device, Tensor] = {}
        self.t_min = 1 / len(entries)

    def _at(self, device: torch.device) -> Tensor:
        """The entries on a device, float64 whatever the model's precision; copied once, so that a GPU need not wait."""
        if device not in self._copies:
            with torch.inference_mode(False):  # a later training step may need it
                self._copies[device] = self.entries.to(device)
        return self._copies[device]

    def interpolate(self, t: Tensor) -> Tensor:
        """The tabulated quantity at any time in [0, 1], linear between entries."""
        entries = self._at(t.device)
        position = t.double() * (len(entries) - 1)
        below = (position.detach() - 1e-6).floor().long().clamp(0, len(entries) - 2)  # entry i ends interval i
        at = below.reshape(-1)  # because an index of shape () would be read, for which a GPU waits and a graph breaks
        low, high = (entries.gather(0, place).reshape(below.shape) for place in (at, at + 1))
        return torch.lerp(low, high, position - below).to(t.dtype)

    def inverse(self, values: Tensor) -> Tensor:
        """The times at which `interpolate` has the given values; beyond the ends, the nearer end."""
        entries = self._at(values.device)
        v, sign = values.double(), (entries[-1] - entries[0]).sign()
        above = torch.searchsorted(sign * entries, sign * v).clamp(1, len(entries) - 1)
        position = above - 1 + (v - entries[above - 1]) / (entries[above] - entries[above - 1])
        return (position / (len(entries) - 1)).clamp(0, 1).to(values.dtype)

    def table_times(self) -> Tensor:
        steps = len(self.entries) - 1
        return torch.arange(1, steps + 1).double() / steps


class BetaChain(VariancePreserving, TableProcess):
    """A discrete chain of given variances: alpha_i^2 = prod_{j <= i} (1 - beta_j).

    log alpha is linear between entries, so that the drift is constant there; on the last step to noise alone, whose variance
    is 1, alpha is linear.

    Args:
        betas: the variances of the steps, each in (0, 1); the last may be 1, after which x is noise alone.
        zero_snr: change them so that x ends as noise alone, alpha_N = 0: the alpha_i are moved and scaled, which leaves the
            first one as it is (Lin et al. 2023, 2305.08891, Algorithm 1). It needs a parametrization that has a denoised
            image there, as Velocity.
    """

    def __init__(self, betas: Sequence[float], zero_snr: bool = False):
        require(
            len(betas) > 0 and all(0 < beta < 1 for beta in betas[:-1]) and 0 < betas[-1] <= 1,
            f"{len(betas)} betas from {min(betas, default=0)} to {max(betas, default=0)}: need at least one, each in (0, 1)",
        )
        log_alpha = torch.log1p(-torch.tensor(list(betas), dtype=torch.float64)).cumsum(0) / 2
        require(
            len(betas) > 1 or not (zero_snr or betas[-1] == 1),
            f"zero_snr={zero_snr}, betas={list(betas)}: noise alone needs a step before it; give two or more betas below 1",
        )
        if zero_snr:
            alpha = log_alpha.exp()
            log_alpha = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).log()
        to_noise = zero_snr or betas[-1] == 1
        super().__init__(torch.cat([log_alpha[:-1], log_alpha[-2:-1] if to_noise else log_alpha[-1:]]))
        self._to_noise = to_noise

    def log_alpha(self, t: Tensor) -> Tensor:
        if not self._to_noise:
            return self.interpolate(t)
        return self.interpolate(t) + ((len(self.entries) - 1) * (1 - t)).clamp(max=1).log()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        log_alpha = self.log_alpha_of(log_snr.double())
        if not self._to_noise:
            return self.inverse(log_alpha).to(log_snr.dtype)
        last = self._at(log_alpha.device)[-1]
        times, left = self.inverse(log_alpha), (log_alpha - last).exp() / (len(self.entries) - 1)
        return torch.where(log_alpha < last, 1 - left, times).to(log_snr.dtype)

    @property
    def betas(self) -> Tensor:
        """The variances of the steps, float64 (N,)."""
        betas = -torch.expm1(2 * self.entries.diff())
        return torch.cat([betas[:-1], torch.ones_like(betas[:1])]) if self._to_noise else betas


class BetaTable(BetaChain):
    """DDPM's discrete chain: alpha_i^2 = prod_{j <= i} (1 - beta_j), beta_j linear from beta_min to beta_max.

    Ho et al. 2020 (2006.11239), section 4. log alpha is linear between entries, so that the drift is constant there.

    Args:
        beta_min: variance of the first step.
        beta_max: variance of the last step, below 1.
        steps: N.
        zero_snr: change the variances so that x ends as noise alone, as `BetaChain` does.
    """

    def __init__(self, beta_min: float = 1e-4, beta_max: float = 0.02, steps: int = 1000, zero_snr: bool = False):
        require_betas(beta_min, beta_max, steps)
        super().__init__(torch.linspace(beta_min, beta_max, steps, dtype=torch.float64).tolist(), zero_snr)


class ScaledLinearBetas(BetaChain):
    """The chain of latent diffusion: sqrt(beta_j) linear (Rombach et al. 2022, 2112.10752, the authors' code).

    Args:
        beta_min: variance of the first step.
        beta_max: variance of the last step, below 1.
        steps: N.
        zero_snr: change the variances so that x ends as noise alone, as `BetaChain` does.
    """

    def __init__(self, beta_min: float = 0.00085, beta_max: float = 0.012, steps: int = 1000, zero_snr: bool = False):
        require_betas(beta_min, beta_max, steps)
        super().__init__((torch.linspace(beta_min**0.5, beta_max**0.5, steps, dtype=torch.float64) ** 2).tolist(), zero_snr)


class CosineTable(BetaChain):
    """The cosine chain: prod_{j <= i} (1 - beta_j) = h(i/N)/h(0), h(u) = cos^2(pi/2 (u + s)/(1 + s)), beta_j at most a cap.

    Nichol and Dhariwal 2021 (2102.09672), equation 17.

    Args:
        offset: s.
        beta_max: the cap, below 1.
        steps: N.
        zero_snr: change the variances so that x ends as noise alone, as `BetaChain` does.
    """

    def __init__(self, offset: float = 0.008, beta_max: float = 0.999, steps: int = 1000, zero_snr: bool = False):
        require(steps >= 1, f"steps={steps}: need at least one step, as in steps=1000")
        require_passes(steps=steps)
        require(offset > 0, f"offset={offset}: must be above 0, as in 0.008")
        require(0 < beta_max < 1, f"beta_max={beta_max}: must be between 0 and 1, as in 0.999")
        angles = math.pi / 2 * (torch.arange(steps + 1).double() / steps + offset) / (1 + offset)
        kept = angles.cos() ** 2
        super().__init__((1 - kept[1:] / kept[:-1]).clamp(max=beta_max).tolist(), zero_snr)


def require_betas(beta_min: float, beta_max: float, steps: int) -> None:
    """Raises `InputError` unless there is a step and 0 < beta_min <= beta_max < 1."""
    require(steps >= 1, f"steps={steps}: need at least one step, as in steps=1000")
    require_passes(steps=steps)
    require(
        0 < beta_min <= beta_max < 1,
        f"beta_min={beta_min}, beta_max={beta_max}: need 0 < beta_min <= beta_max < 1, as in 1.0e-4 and 0.02",
    )


class SigmaTable(TableProcess):
    """NCSN's noise levels: alpha = 1 and a geometric sequence, or for comparison an arithmetic one.

    Song and Ermon 2019 (1907.05600), section 4. sigma^2 is linear between entries, so that the diffusion is constant there.

    Args:
        sigma_min: the smallest level, in the units of the data, above zero (the paper's sigma_L).
        sigma_max: the largest level (the paper's sigma_1); in a config of `fit`, `auto`: the largest distance in the data.
        levels: the number of levels L; in a config of `fit`, `auto`: by technique 2 of Song and Ermon 2020.
        geometric: neighboring levels have the same ratio; false: the same difference.
    """

    def __init__(
        self, sigma_min: float = 0.01, sigma_max: float | Auto = 1.0, levels: int | Auto = 10, geometric: bool = True
    ):
        if isinstance(levels, str) or levels < 1:
            raise InputError(f"levels={levels}: need at least one, as in levels=10; {AUTO_IN_FIT}")
        require_passes(levels=levels)
        if isinstance(sigma_max, str) or levels > 1 or sigma_min != sigma_max:
            sigma_max = require_sigmas(sigma_min, sigma_max)
        ramp = torch.linspace(0, 1, levels, dtype=torch.float64) if levels > 1 else torch.ones(1).double()
        sigmas = sigma_min * (sigma_max / sigma_min) ** ramp if geometric else sigma_min + (sigma_max - sigma_min) * ramp
        super().__init__(sigmas**2)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.interpolate(t).sqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        return derivative(self.interpolate, t).sqrt()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return self.inverse((-log_snr.double()).exp()).to(log_snr.dtype)

    @property
    def sigmas(self) -> Tensor:
        """The noise levels, ascending, float64 (L,)."""
        return self.entries[1:].sqrt()
