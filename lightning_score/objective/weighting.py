"""Weightings: how much each noise level counts."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_score.errors import require
from lightning_score.networks.conditioning import FourierEmbedding
from lightning_score.process import NoiseProcess


class Weighting(ABC):
    """lambda(t), which multiplies the squared residual of score + noise/sigma."""

    learned: nn.Module | None = None
    """The parameters of a weighting that is learned, in training mode; in evaluation mode it is one without parameters."""

    @abstractmethod
    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """lambda at each time, (B,)."""

    def penalty(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """What is added to the loss of each entry at each time, (B,), so that a learned weight does not vanish; else 0."""
        return torch.zeros_like(t)

    def noise_error(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """E ||sigma score + z||^2/D, the squared error of the predicted noise, for which the loss is 1 at each time, (B,):
        sigma^2/lambda, or what a weighting has learned.
        """
        return process.sigma(t) ** 2 / self(process, t)


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
        return process.sigma(t) ** 2 * (1 + process.noise_level(t)) ** 2


class LogVariance(nn.Module):
    """u, a linear function of Fourier features of log(sigma/alpha)/4, whose frequencies are normal; 0 before training.

    Karras et al. 2023 (2312.02696), appendix B.2. The features vary over 0.6 in log(sigma/alpha).

    Args:
        width: number of features, even.
    """

    def __init__(self, width: int):
        super().__init__()
        self.embedding = FourierEmbedding(width, scale=1.0)
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, log_snr: Tensor) -> Tensor:
        """u at each logarithm of the signal-to-noise ratio, (B,)."""
        label = -log_snr.clamp(-40, 40).to(self.weight.dtype) / 8  # finite where alpha or sigma is 0
        features = self.embedding(label) * math.sqrt(2 / len(self.weight))
        return (features * self.weight).sum(1)  # not a product of matrices, which autocast would round


class Uncertainty(Weighting):
    """lambda(t)/e^u(t), with u(t) added to the loss of each entry, so that e^u becomes the mean loss at each noise level:

        E_t lambda(t) J(t)/e^u(t) + u(t),    e^u = E[lambda J given t]

    for J the mean over entries of squared residuals; for half their sum u is multiplied by half their number, and is the
    same. All noise levels then have the same loss, 1, whatever lambda is, and the law of times alone says how much each one
    counts (Kendall et al. 2018, 1705.07115, eq. 7; Karras et al. 2023, 2312.02696, eq. 14 and 15). The minimizer of the
    network is unchanged at each level. In evaluation mode it is lambda, so that losses compare with those of other weights.

    Args:
        weighting: lambda(t), from which it starts; sigma^2 by default.
        width: number of Fourier features of log(sigma/alpha), even and at least 4.
    """

    def __init__(self, weighting: Weighting | None = None, width: int = 128):
        self.weighting = weighting or SigmaSquared()
        require(
            self.weighting.learned is None,
            f"weighting.weighting={type(self.weighting).__name__}: must be one without parameters, as EDMWeighting",
        )
        self.learned: LogVariance = LogVariance(width)

    def __call__(self, process: NoiseProcess, t: Tensor) -> Tensor:
        weight = self.weighting(process, t)
        return weight / self.learned(process.log_snr(t)).exp() if self.learned.training else weight

    def penalty(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return self.learned(process.log_snr(t)) if self.learned.training else super().penalty(process, t)

    def noise_error(self, process: NoiseProcess, t: Tensor) -> Tensor:
        return self.learned(process.log_snr(t)).exp() * self.weighting.noise_error(process, t)
