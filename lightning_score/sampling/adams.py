"""Multistep predictors that extrapolate the predicted noise: d(x/alpha) = noise d(sigma/alpha), noise = -sigma score."""

import math
from abc import ABC
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.multistep import Multistep, Row, interpolated, quadrature, require_order
from lightning_score.score.function import ScoreField

VARIABLES = ("sigma", "log_sigma", "time")


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
        step = process.alpha(s) * (process.noise_level(s) - process.noise_level(t))
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
        rho_t, rho_s, alpha = float(process.noise_level(t)), float(process.noise_level(s)), float(process.alpha(s))
        if len(nodes) == 1:
            return np.array([alpha * (rho_s - rho_t)])
        v, dv = quadrature()
        rho = rho_t * (rho_s / rho_t) ** v  # the integral over rho is one over log rho, since rho may fall by a large factor
        d_rho = rho * math.log(rho_s / rho_t) * dv
        start, end = self._variable(process, np.array([rho_t, rho_s]))
        places, passed = (
            (self._variable(process, np.array(level)) - start) / (end - start)
            for level in ([float(process.noise_level(node)) for node in nodes], rho)
        )
        return interpolated(places, alpha * (d_rho @ np.vander(passed, len(nodes), increasing=True)))

    def _variable(self, process: NoiseProcess, rho: Row) -> Row:
        """The variable of the polynomial where sigma/alpha has the values `rho`."""
        if self.variable == "time":
            times: Row = process.time_of(torch.from_numpy(rho)).numpy()
            return times
        return rho if self.variable == "sigma" else np.log(rho)
