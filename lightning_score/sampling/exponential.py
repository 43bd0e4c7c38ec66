"""Multistep predictors that extrapolate the denoised image: exponential integrators in lambda = log(alpha/sigma)."""

import math
from abc import ABC
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.multistep import Multistep, Row, interpolated, quadrature, require_order
from lightning_score.score.function import ScoreField


class DenoisedMultistep(Multistep, ABC):
    """x <- (sigma_s/sigma_t) e^(-tau^2 h) x + sum_j w_j denoised_j + sigma_s sqrt(1 - e^(-2 tau^2 h)) z.

    The weights are alpha_s K int_0^h e^(-K (h - u)) P(u) du for the polynomial P through the denoised images, with
    h = lambda_s - lambda_t and K = 1 + tau^2: the probability-flow ODE for tau = 0, the reverse SDE for tau = 1 (Xue et al.
    2023, 2305.14267, proposition 4.2).
    """

    def tau(self, process: NoiseProcess, t: Tensor) -> float:
        """The amount of noise in the step that begins at t."""
        return 0.0

    def moments(self, z: float, tau: float, points: int) -> Row:
        """K/h^k int_0^h e^(-K (h - u)) u^k du for k < points, with z = K h, from which the weights follow.

        With two images the line through them is replaced by its value in the middle of the step.
        """
        v, dv = quadrature()
        found: Row = (z * np.exp(-z * (1 - v)) * dv) @ np.vander(v, points, increasing=True)
        return found if points > 2 else found[0] * np.array([1, 1 / 2])

    def predict(self, score: ScoreField, x: Tensor, t: Tensor) -> Tensor:
        return score.denoised(x, t)

    def scales(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[float, float]:
        damping = self.tau(process, t) ** 2 * self._length(process, t, s) if self.tau(process, t) else 0.0
        sigma = float(process.sigma(s))
        return sigma / float(process.sigma(t)) * math.exp(-damping), sigma * math.sqrt(-math.expm1(-2 * damping))

    def weights(self, process: NoiseProcess, t: Tensor, s: Tensor, nodes: Sequence[Tensor]) -> Row:
        h, tau, alpha = self._length(process, t, s), self.tau(process, t), float(process.alpha(s))
        z = (1 + tau**2) * h
        if len(nodes) == 1:
            return np.array([-alpha * math.expm1(-z)])
        places = np.array([self._length(process, t, node) / h for node in nodes])
        return interpolated(places, alpha * self.moments(z, tau, len(nodes)))

    @staticmethod
    def _length(process: NoiseProcess, t: Tensor, s: Tensor) -> float:
        """lambda_s - lambda_t."""
        return float(process.log_snr(s) - process.log_snr(t)) / 2


class DPMSolver2M(DenoisedMultistep):
    """x <- (sigma_s/sigma_t) x + alpha_s (1 - e^-h) D, D the denoised image extrapolated to mid-step.

    DPM-Solver++(2M), Lu et al. 2022 (2211.01095), Algorithm 2, with h = lambda_s - lambda_t and lambda = log(alpha/sigma).
    """

    order, points = 2, 2


class SDEDPMSolver2M(DPMSolver2M):
    """x <- (sigma_s/sigma_t) e^-h x + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z, D as for `DPMSolver2M`.

    SDE-DPM-Solver++(2M), Lu et al. 2022 (2211.01095), on the reverse SDE. The extrapolation uses the noise of the
    previous step instead of this one's, which to second order changes single paths but not their law.
    """

    def tau(self, process: NoiseProcess, t: Tensor) -> float:
        return 1.0


class DPMSolver3M(DenoisedMultistep):
    """x <- (sigma_s/sigma_t) x + alpha_s sum_j w_j denoised_j with three images, the second step by `DPMSolver2M`.

    DPM-Solver++(3M), Lu et al. 2022 (2211.01095), the authors' code. It gives the second derivative half of its weight in
    the interpolating parabola, and so is of order 2; `UniPC(3, refine=False)` has the whole weight and order 3.
    """

    order, points = 2, 3

    def moments(self, z: float, tau: float, points: int) -> Row:
        found = super().moments(z, tau, points)
        return np.array([*found[:2], found[2] / 2]) if points == 3 else found


class SDEDPMSolver3M(DPMSolver3M):
    """The step of `DPMSolver3M` on the reverse SDE, with the noise of `SDEDPMSolver2M`."""

    def tau(self, process: NoiseProcess, t: Tensor) -> float:
        return 1.0


class UniPC(DenoisedMultistep):
    """Exponential Adams-Bashforth on the denoised images, whose every step is done again with the image at its end.

    Zhao et al. 2023 (2302.04867), Algorithms 1 and 2 with data prediction and B(h) = e^h - 1: the second computation, their
    UniC, takes the prediction that the next step needs in any case, and so raises the order at no further evaluation.

    Args:
        order: the number of images in the predictor, 1 to 4.
        refine: whether steps are done again (UniC).
    """

    def __init__(self, order: int = 3, refine: bool = True):
        require_order(order, 4)
        self.points, self.refined_points = order, (order + 1) * refine
        self.order = order + refine


class SASolver(DenoisedMultistep):
    """Stochastic Adams: Adams-Bashforth, refined by Adams-Moulton, on reverse SDEs with any amount of noise tau.

    Xue et al. 2023 (2305.14267), Algorithm 1, with data prediction. tau = 0 is the probability-flow ODE, tau = 1 the reverse
    SDE; as in the paper, noise is added at middle noise levels only. With noise the (weak) order is 2 at most.

    Args:
        predictor_order: the number of images in the predictor, 1 to 4.
        corrector_order: the number of images in the refinement, that at the new time included, 1 to 4; 0: none.
        tau: amount of noise, at least 0.
        tau_min: smallest sigma/alpha at which noise is added.
        tau_max: largest sigma/alpha at which noise is added.
    """

    def __init__(
        self,
        predictor_order: int = 3,
        corrector_order: int = 3,
        tau: float = 1.0,
        tau_min: float = 0.05,
        tau_max: float = 10.0,
    ):
        require_order(predictor_order, 4, "predictor_order")
        require(0 <= corrector_order <= 4, f"corrector_order={corrector_order}: must lie between 0 (none) and 4")
        require(0 <= tau < math.inf, f"tau={tau}: must be at least 0, the probability-flow ODE; 1 is the reverse SDE")
        require(
            0 <= tau_min <= tau_max, f"tau_min={tau_min}, tau_max={tau_max}: need 0 <= tau_min <= tau_max, as in 0.05 and 10"
        )
        self.points, self.refined_points = predictor_order, corrector_order
        order = min(predictor_order + 1, corrector_order) if corrector_order else predictor_order
        self.order = min(order, 2) if tau else order
        self._tau, self._tau_min, self._tau_max = tau, tau_min, tau_max

    def tau(self, process: NoiseProcess, t: Tensor) -> float:
        return self._tau if self._tau_min <= float(process.noise_level(t)) <= self._tau_max else 0.0

    def moments(self, z: float, tau: float, points: int) -> Row:
        """With two images the first moment is K h/2, to which it is equal in the second order of h."""
        found = super().moments(z, tau, points)
        return np.array([found[0], z / 2]) if points == 2 else found
