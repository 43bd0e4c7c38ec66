"""Singlestep methods of higher order for the probability-flow ODE: they evaluate the score several times within a step."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.predictor import Predictor, ddim_step
from lightning_score.score.function import ScoreField
from lightning_score.tensors import combine

NODES = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""r1, and r1 and r2: where between lambda_t and lambda_s the score is evaluated, by order."""
INSIDE = 1e-4  # of a step


class DPMSolver(Predictor):
    """x <- (alpha_s/alpha_t) x - sigma_s (e^h - 1) [noise_t + w (noise_u - noise_t)], noise_u predicted within the step.

    DPM-Solver-2 and -3, Lu et al. 2022 (2206.00927), Algorithms 1 and 2, with h = lambda_s - lambda_t and lambda =
    log(alpha/sigma). Order 2: lambda_u = lambda_t + h/2, w = 1, and x_u is DDIM's. Order 3: lambda_u = lambda_t + 2h/3,
    w = 3/2 phi(h), phi(h) = 1/h - 1/(e^h - 1), and x_u is found likewise with w = 2 phi(2h/3) and noise at lambda_t + h/3.
    A step to clean data is DDIM's and takes one evaluation.

    Args:
        order: 2 or 3, and so many evaluations in a step.
    """

    order, evaluations = 2, 2

    def __init__(self, order: int = 2):
        require(order in NODES, f"order={order}: must be 2 or 3; DDIM is the method of order 1")
        self.order = self.evaluations = order

    def evaluated(self, process: NoiseProcess, times: Tensor) -> Tensor:
        return torch.cat([times[:-1], *self.init(process, times).values()])

    def init(self, process: NoiseProcess, times: Tensor) -> dict[float, Tensor]:
        """The times within the step, (order - 1,), from every time of the grid except the last."""
        start, end = process.log_snr(times[:-1]), process.log_snr(times[1:])
        finite = start.isfinite() & end.isfinite()
        nodes = [torch.where(finite, start + r * (end - start), 0.0) for r in NODES[self.order]]
        inside = [torch.where(finite, process.inverse_log_snr(node), times[:-1]) for node in nodes]
        return dict(zip(times[:-1].tolist(), torch.stack(inside, 1), strict=True))

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        process, noise_t = score.process, score.noise(x, t)
        h = float(process.log_snr(s) - process.log_snr(t)) / 2
        if math.isinf(h):
            return ddim_step(process, x, t, s, noise_t), state
        first, *second = state[float(t)]
        noise_u = score.noise(ddim_step(process, x, t, first, noise_t), first)
        if not second:
            return ddim_step(process, x, t, s, noise_u), state
        (r1, r2), (u,) = NODES[3], second
        x_u = ddim_step(process, x, t, u, combine(*_extrapolated(noise_t, noise_u, r2 / r1 * _phi(r2 * h))))
        noise_u = score.noise(x_u, u)
        return ddim_step(process, x, t, s, combine(*_extrapolated(noise_t, noise_u, _phi(h) / r2))), state


def _phi(h: float) -> float:
    """1/h - 1/(e^h - 1), which tends to 1/2."""
    return 1 / h - 1 / math.expm1(h)


def _extrapolated(noise_t: Tensor, noise_u: Tensor, w: float) -> tuple[tuple[float, Tensor], tuple[float, Tensor]]:
    """The terms of noise_t + w (noise_u - noise_t)."""
    return (1 - w, noise_t), (w, noise_u)


class HeunInTime(Predictor):
    """x <- x + (d_t + d_s)/2 (s - t), d = f x - g^2 score/2 on the probability-flow ODE in time, d_s after Euler's step.

    The trapezoidal rule on the process's own schedule, as `Euler` is Euler's method; `Heun` works on sigma/alpha instead,
    which is independent of the schedule (Karras et al. 2022, 2206.00364, table 1 and figure 2, compare them). A step to
    clean data is Euler's and takes one evaluation. Near the data d_s grows as 1/sigma_s^2, so that long steps go astray: on
    VP end at t_min = 1e-2 or take hundreds of steps. f and g are taken just inside the step, because those of a table jump
    at its entries.
    """

    order, evaluations = 2, 2

    def init(self, process: NoiseProcess, times: Tensor) -> dict[float, Tensor]:
        """f and g^2/2 at both ends of the step, (2, 2), from every time of the grid except the last."""
        inside = torch.stack([torch.lerp(a, b, INSIDE) for a, b in ((times[:-1], times[1:]), (times[1:], times[:-1]))])
        slopes = torch.stack([process.drift(inside), process.diffusion(inside) ** 2 / 2])
        return dict(zip(times[:-1].tolist(), slopes.movedim(2, 0), strict=True))

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        (f_t, f_s), (half_t, half_s) = state[float(t)]
        slope_t = score.combination(x, t, x_scale=f_t, score_scale=-half_t)
        euler = combine((1.0, x), (s - t, slope_t))
        if score.process.sigma(s) == 0:
            return euler, state
        slope_s = score.combination(euler, s, x_scale=f_s, score_scale=-half_s)
        return combine((1.0, x), ((s - t) / 2, slope_t), ((s - t) / 2, slope_s)), state
