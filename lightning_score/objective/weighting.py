"""Weightings: how much each noise level counts."""

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess


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
    """lambda = g^2, which bounds the negative log-likelihood (Song et al. 2021, 2101.09258, theorem 1).

    With `ImportanceTimes` its loss varies least.
    """

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.diffusion(t) ** 2


class MinSNR(Weighting):
    """lambda = sigma^2 min(SNR, gamma)/SNR with SNR = alpha^2/sigma^2: the levels of little noise count less.

    Hang et al. 2023 (2303.09556), eq. 6, where min(SNR, gamma)/SNR multiplies the residual of the noise.

    Args:
        gamma: the signal-to-noise ratio from which on the weight falls.
    """

    def __init__(self, gamma: float = 5.0):
        require(gamma > 0, f"gamma={gamma}: must be above 0, as in 5")
        self.gamma = gamma

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.sigma(t) ** 2 * (self.gamma * (-process.log_snr(t)).exp()).clamp(max=1)


class EDMWeighting(Weighting):
    """lambda = sigma^2 (1 + s^2/d^2), with s = sigma/alpha and d = data_std.

    Karras et al. 2022 (2206.00364), table 1, where (s^2 + d^2)/(s d)^2 multiplies the residual of the denoised image,
    which is sigma^2/alpha times that of the score.

    Args:
        data_std: standard deviation of the data d.
    """

    def __init__(self, data_std: float = 0.5):
        require(data_std > 0, f"data_std={data_std}: must be above 0, as in 0.5")
        self.data_std = data_std

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.sigma(t) ** 2 * (1 + (-process.log_snr(t)).exp() / self.data_std**2)


class FlowWeighting(Weighting):
    """lambda = sigma^2 (1 + sigma/alpha)^2, by which the loss is |F - (z - x_0)|^2 for the velocity F of `Flow`.

    Lipman et al. 2022 (2210.02747), eq. 23: flow matching without weights.
    """

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return process.sigma(t) ** 2 * (1 + (-process.log_snr(t) / 2).exp()) ** 2
