"""Time distributions: how often each noise level is trained."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess


class TimeDistribution(ABC):
    """The law of the times at which the score is trained, given by its quantile function.

    Args:
        stratified: spread the times of a batch evenly, u_i = (u + i/B) mod 1, instead of drawing them independently: each
            time has the same law as before, and the mean loss of a batch varies less (Kingma et al. 2021, 2107.00630,
            appendix I.1). u differs between processes and between batches with accumulated gradients.
    """

    def __init__(self, stratified: bool = False):
        self.stratified = stratified

    @abstractmethod
    def quantile(self, process: NoiseProcess, u: Tensor) -> Tensor:
        """The time below which t falls with probability u in (0, 1], of any shape."""

    def importance(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """The factor on the loss at each time: 1, or p(t)/q(t) if times of the law p are drawn from another law, q."""
        return torch.ones_like(t)

    def sample(self, process: NoiseProcess, like: Tensor) -> Tensor:
        """Draws one time per row of `like` (B, ...), of its precision and on its device: (B,); in place of one near noise
        alone, where alpha = 0 and weights may be infinite, the last trainable time.
        """
        n, precise = len(like), torch.promote_types(like.dtype, torch.float32)
        u = torch.rand(1 if self.stratified else n, device=like.device, dtype=precise)
        if self.stratified:
            u = (u + torch.arange(n, device=like.device, dtype=precise) / n) % 1
        return process.trainable(self.quantile(process, 1 - u).to(like.dtype))

    def levels(self, process: NoiseProcess) -> Tensor | None:
        """The possible times, ascending, (L,); None if the law is continuous."""
        return None

    def check(self, process: NoiseProcess) -> None:
        """Raises `InputError` if the law does not fit the process."""
        self.quantile(process, torch.ones(1) / 2)


class _TimesFrom(TimeDistribution, ABC):
    """A law of times between t_min and 1."""

    def __init__(self, t_min: float | None = None, stratified: bool = False):
        super().__init__(stratified)
        require(t_min is None or 0 <= t_min < 1, f"t_min={t_min}: must lie in [0, 1), as in 1.0e-5, or be null")
        self.t_min = t_min

    def start(self, process: NoiseProcess) -> float:
        """The smallest time."""
        return process.t_min if self.t_min is None else self.t_min


class UniformTimes(_TimesFrom):
    """t uniform in (t_min, 1] (Song et al. 2021, 2011.13456, eq. 7).

    Args:
        t_min: smallest time; null: that of the process.
        stratified: spread the times of a batch evenly.
    """

    def quantile(self, process: NoiseProcess, u: Tensor) -> Tensor:
        return 1 - (1 - self.start(process)) * (1 - u)


class LogNormalTimes(TimeDistribution):
    """ln(sigma/alpha) normal, so that training concentrates on the noise levels that determine the samples.

    Karras et al. 2022 (2206.00364), table 1. On `Linear`, where sigma/alpha = t/(1 - t), t is logit-normal: the law of Esser
    et al. 2024 (2403.03206), section 3.1, for `mean` 0 and `std` 1. The minimizer is that of every other law of t; levels
    beyond the ends of the process are replaced by the nearer end.

    Args:
        mean: of ln(sigma/alpha), sigma in the units of the data.
        std: of ln(sigma/alpha).
        stratified: spread the times of a batch evenly.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2, stratified: bool = False):
        super().__init__(stratified)
        require(-100 <= mean <= 100, f"mean={mean}: must lie between -100 and 100, as in -1.2")
        require(0 < std <= 100, f"std={std}: must be above 0 and at most 100, as in 1.2")
        self.mean, self.std = mean, std

    @classmethod
    def fitted(cls, log_sigma: Tensor, density: Tensor) -> "LogNormalTimes":
        """The law with the mean and the standard deviation of a density over ln(sigma/alpha), by the trapezoidal rule.

        Args:
            log_sigma: ln(sigma/alpha), ascending, (K,).
            density: the density there, up to a factor; negative values count as 0, (K,).

        Raises:
            InputError: the density is not positive at two of them.
        """
        density, x = density.double().clamp(min=0), log_sigma.double()
        require(int((density > 0).sum()) > 1, "LogNormalTimes: needs a density that is positive at two noise levels or more")

        def mean(values: Tensor) -> float:
            return float(torch.trapezoid(density * values, x) / torch.trapezoid(density, x))

        center = mean(x)
        return cls(center, math.sqrt(mean((x - center) ** 2)))

    def quantile(self, process: NoiseProcess, u: Tensor) -> Tensor:
        edge = torch.finfo(u.dtype).eps / 2  # the ends would be infinite
        log_sigma = self.mean + self.std * torch.special.ndtri(u.clamp(edge, 1 - edge))
        return process.inverse_log_snr(-2 * log_sigma).clamp(min=process.t_min)


class TableTimes(TimeDistribution):
    """Each entry of the process's table with the same probability (NCSN, DDPM).

    Args:
        stratified: spread the times of a batch evenly.
    """

    def quantile(self, process: NoiseProcess, u: Tensor) -> Tensor:
        times = process.table_times().to(u)
        return times[(u * len(times)).ceil().long().clamp(1, len(times)) - 1]

    def levels(self, process: NoiseProcess) -> Tensor:
        return process.table_times()


class FixedTimes(TimeDistribution):
    """A single noise level: the score of p_sigma is learned, as in the papers on implicit and sliced score matching.

    Args:
        sigma: the noise level sigma/alpha, in the units of the data.
    """

    def __init__(self, sigma: float):
        super().__init__()
        require(0 < sigma < math.inf, f"sigma={sigma}: must be above 0, as in 0.1")
        self.sigma = sigma

    def quantile(self, process: NoiseProcess, u: Tensor) -> Tensor:
        return process.inverse_log_snr(u.new_tensor(-2 * math.log(self.sigma))).expand_as(u)

    def levels(self, process: NoiseProcess) -> Tensor:
        return self.quantile(process, torch.ones(1, dtype=torch.float64))

    def check(self, process: NoiseProcess) -> None:
        ends = torch.tensor([process.t_min, 1.0], dtype=torch.float64)
        low, high = process.noise_level(ends).tolist()
        require(
            low * (1 - 1e-6) <= self.sigma <= high * (1 + 1e-6),
            f"sigma={self.sigma}: {type(process).__name__} has noise levels sigma/alpha from {low:.4g} to {high:.4g}; "
            "choose one of these or change the process",
        )


class ImportanceTimes(_TimesFrom):
    """Uniform times for the weight g^2, drawn where that loss is large: with density q(t) proportional to g^2/sigma^2.

    Song et al. 2021 (2101.09258), section 4.2. Since g^2/sigma^2 = -d log_snr/dt, these are the times at which log_snr is
    uniform between its values at t_min and 1, for every process. The loss is multiplied by p(t)/q(t), p uniform, so that
    its mean is that of `UniformTimes` for every weight that vanishes where g does.

    Args:
        t_min: smallest time; null: that of the process.
        stratified: spread the times of a batch evenly.
    """

    def quantile(self, process: NoiseProcess, u: Tensor) -> Tensor:
        t_min, first, last = self._ends(process, u)
        return process.inverse_log_snr(torch.lerp(first, last, u)).clamp(t_min, 1)

    def density(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """q(t) = g^2/sigma^2 / (log_snr(t_min) - log_snr(1)) on [t_min, 1] (1/time)."""
        _, first, last = self._ends(process, t)
        return (process.diffusion(t) / process.sigma(t)) ** 2 / (first - last)

    def importance(self, process: NoiseProcess, t: Tensor) -> Tensor:
        uniform = 1 / (1 - self._ends(process, t)[0])
        return uniform / self.density(process, t).clamp(min=1e-6)  # g = 0 where a process is constant

    def check(self, process: NoiseProcess) -> None:
        t_min, first, _ = self._ends(process, torch.ones(1))
        require(
            bool(first.isfinite()),
            f"t_min={t_min}: must be a time at which {type(process).__name__} has noise, so that g^2/sigma^2 is finite; "
            "give one above 0, as in 1.0e-5",
        )

    def _ends(self, process: NoiseProcess, like: Tensor) -> tuple[float, Tensor, Tensor]:
        """t_min, and log_snr at t_min and at 1."""
        t_min = self.start(process)
        return t_min, process.log_snr(like.new_tensor(t_min)), process.log_snr(process.with_signal(like.new_tensor(1.0)))
