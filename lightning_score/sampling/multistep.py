"""Multistep predictors: one evaluation per step, and a polynomial through this prediction and those of the steps before.

With rho = sigma/alpha and lambda = log(alpha/sigma) the probability-flow ODE is an integral of what the network predicts:
x_s/alpha_s = x_t/alpha_t + int noise d rho, or x_s/sigma_s = x_t/sigma_t + int denoised d(alpha/sigma). A method replaces
the prediction by a polynomial, whose integral is a sum of predictions with weights that depend on the times alone and are
computed ahead of time. A step to clean data is of first order: it denoises.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.predictor import Predictor
from lightning_score.score.function import ScoreField
from lightning_score.tensors import combine

Row = NDArray[np.float64]
VARIABLES = ("sigma", "log_sigma", "time")


class Coefficients(NamedTuple):
    """Of x_s = x_scale x + sum_j weights[j] prediction_j + std z, the newest prediction first."""

    x_scale: float
    weights: Row
    std: float


class History(NamedTuple):
    """What a step leaves to the next one."""

    steps: dict[tuple[float, ...], Coefficients]
    """The coefficients by the times of the predictions, the newest first, and the time s at which the step ends."""
    end: float | None = None
    """Where the last step has ended."""
    times: tuple[Tensor, ...] = ()
    """The times of the last predictions, the newest first, each ()."""
    predictions: tuple[Tensor, ...] = ()
    """The last predictions, the newest first, each (B, ...)."""


class Multistep(Predictor, ABC):
    """One step from the predictions at this time and at the `points` - 1 times before it; the first steps have fewer.

    A step that does not begin where the last one has ended starts anew, with one prediction.
    """

    evaluations = 1
    points: int
    """The most predictions in a step."""
    refined_points: int = 0
    """The most predictions, that at the new time included, with which the step before is done again; 0: it is not."""

    @abstractmethod
    def predict(self, score: ScoreField, x: Tensor, t: Tensor) -> Tensor:
        """What is extrapolated, like x (B, ...)."""

    @abstractmethod
    def scales(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[float, float]:
        """The factor of x and the standard deviation of the noise in a step from t to s."""

    @abstractmethod
    def weights(self, process: NoiseProcess, t: Tensor, s: Tensor, nodes: Sequence[Tensor]) -> Row:
        """The weights of predictions at the times `nodes` in a step from t to s, (len(nodes),)."""

    def init(self, process: NoiseProcess, times: Tensor) -> History:
        grid, kept, steps = list(times), self._kept(), {}
        for i, s in enumerate(grid[1:], 1):
            nodes = grid[max(0, i - kept) : i][::-1]
            steps[_key(nodes, s)] = self.coefficients(process, nodes, s)
        return History(steps)

    def _kept(self) -> int:
        """How many predictions a step needs: to undo the last step, refining takes all of its predictions and a new one."""
        return max(self.points + (self.refined_points > 0), self.refined_points)

    def coefficients(self, process: NoiseProcess, nodes: Sequence[Tensor], s: Tensor) -> Coefficients:
        """The coefficients of a step from nodes[0] to s with the predictions at the times `nodes`, the newest first."""
        t, used = nodes[0], nodes[: self.points]
        require(float(process.sigma(t)) > 0, "the step begins at clean data, where there is no score: must begin at noise")
        x_scale, std = self.scales(process, t, s)
        weights = np.zeros(len(nodes))
        used = used if float(process.sigma(s)) > 0 else used[:1]
        weights[: len(used)] = self.weights(process, t, s, used)
        if self.refined_points and len(nodes) > 1:  # x += sum_j (refined - predicted weight) prediction_j, then the step
            start, refined, predicted = nodes[1], nodes[: self.refined_points], nodes[1 : 1 + self.points]
            weights[: len(refined)] += x_scale * self.weights(process, start, t, refined)
            weights[1 : 1 + len(predicted)] -= x_scale * self.weights(process, start, t, predicted)
        return Coefficients(x_scale, weights, std)

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        prediction, history = self.predict(score, x, t), state or History({})
        kept = self._kept() - 1 if history.end == float(t) else 0
        times, predictions = (t, *history.times[:kept]), (prediction, *history.predictions[:kept])
        found = history.steps.get(_key(times, s)) or self.coefficients(score.process, times, s)
        x = combine((found.x_scale, x), *zip(found.weights.tolist(), predictions, strict=True))
        if found.std:
            x = combine((1.0, x), (found.std, noise.normal()))
        return x, History(history.steps, float(s), times, predictions)


def _key(nodes: Sequence[Tensor], s: Tensor) -> tuple[float, ...]:
    return (*map(float, nodes), float(s))


@cache
def _quadrature() -> tuple[Row, Row]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1], of 64 points."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return (1 + nodes) / 2, weights / 2


def interpolated(places: Row, moments: Row) -> Row:
    """The weights w with sum_j w_j places_j^k = moments_k for k < len(places): those of the integral of the polynomial.

    Args:
        places: where the polynomial takes its values, (P,), in units of the step.
        moments: the integrals of the powers 0 to P - 1, (P,).
    """
    found: Row = np.linalg.solve(np.vander(places, increasing=True).T, moments)
    return found


def require_order(order: int, most: int, name: str = "order") -> None:
    """Raises `InputError` unless the order is between 1 and the highest one."""
    require(1 <= order <= most, f"{name}={order}: must lie between 1 and {most}")


class NoiseMultistep(Multistep, ABC):
    """x/alpha <- x/alpha + sum_j w_j noise_j, a step of d(x/alpha) = noise d(sigma/alpha), noise = -sigma score."""

    def predict(self, score: ScoreField, x: Tensor, t: Tensor) -> Tensor:
        return score.noise(x, t)

    def scales(self, process: NoiseProcess, t: Tensor, s: Tensor) -> tuple[float, float]:
        return float((process.log_alpha(s) - process.log_alpha(t)).exp()), 0.0


class IPNDM(NoiseMultistep):
    """x/alpha <- x/alpha + (rho_s - rho_t) sum_j c_j noise_j, c the weights of Adams and Bashforth for equal steps.

    Improved pseudo-linear multistep, Zhang and Chen 2022 (2204.13902), section 3.2, after Liu et al. 2022 (2202.09778), in
    rho = sigma/alpha. Its weights are right where the steps of rho are equal; on other grids the order is 2 at most, and
    yet with few steps it is often the best method.

    Args:
        order: 1 (DDIM) to 4.
    """

    COEFFICIENTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

    def __init__(self, order: int = 4):
        require_order(order, len(self.COEFFICIENTS))
        self.order = self.points = order

    def weights(self, process: NoiseProcess, t: Tensor, s: Tensor, nodes: Sequence[Tensor]) -> Row:
        step = process.alpha(s) * (_rho(process, s) - _rho(process, t))
        return float(step) * np.array(self.COEFFICIENTS[len(nodes) - 1])


class AdamsBashforth(NoiseMultistep):
    """x/alpha <- x/alpha + int P d(sigma/alpha), P the polynomial through the last noises in a variable of choice.

    DEIS, Zhang and Chen 2022 (2204.13902), eq. 13 to 15: with the variable `sigma` its rho-AB, with `time` its t-AB; with
    `log_sigma` the exponential integrator of DPM-Solver (Lu et al. 2022, 2206.00927, eq. 3.6) as a multistep method.

    Args:
        variable: sigma (sigma/alpha), log_sigma (its logarithm) or time.
        order: the number of noises, 1 (DDIM) to 4.
    """

    def __init__(self, variable: Literal["sigma", "log_sigma", "time"] = "sigma", order: int = 3):
        require(variable in VARIABLES, f"variable={variable}: must be sigma, log_sigma or time")
        require_order(order, 4)
        self.variable, self.order, self.points = variable, order, order

    def weights(self, process: NoiseProcess, t: Tensor, s: Tensor, nodes: Sequence[Tensor]) -> Row:
        rho_t, rho_s, alpha = float(_rho(process, t)), float(_rho(process, s)), float(process.alpha(s))
        if len(nodes) == 1:
            return np.array([alpha * (rho_s - rho_t)])
        v, dv = _quadrature()
        rho = rho_t * (rho_s / rho_t) ** v  # the integral over rho is one over log rho, since rho may fall by a large factor
        d_rho = rho * math.log(rho_s / rho_t) * dv
        start, end = self._variable(process, np.array([rho_t, rho_s]))
        places, passed = (
            (self._variable(process, np.array(level)) - start) / (end - start)
            for level in ([float(_rho(process, node)) for node in nodes], rho)
        )
        return interpolated(places, alpha * (d_rho @ np.vander(passed, len(nodes), increasing=True)))

    def _variable(self, process: NoiseProcess, rho: Row) -> Row:
        """The variable of the polynomial where sigma/alpha has the values `rho`."""
        if self.variable == "time":
            times: Row = process.time_of(torch.from_numpy(rho)).numpy()
            return times
        return rho if self.variable == "sigma" else np.log(rho)


def _rho(process: NoiseProcess, t: Tensor) -> Tensor:
    """sigma/alpha, also of clean data."""
    return process.sigma(t) / process.alpha(t)


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
        v, dv = _quadrature()
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
        return self._tau if self._tau_min <= float(_rho(process, t)) <= self._tau_max else 0.0

    def moments(self, z: float, tau: float, points: int) -> Row:
        """With two images the first moment is K h/2, to which it is equal in the second order of h."""
        found = super().moments(z, tau, points)
        return np.array([found[0], z / 2]) if points == 2 else found
