"""Metropolis-adjusted and underdamped correctors.

A score gives no density, but a ratio of densities: log p(y) - log p(x) is the integral of the score from x to y. With it a
proposal can be accepted or rejected, which removes the bias of the step size. The integral is exact for the gradient of a
log density up to the quadrature; a network's score is not exactly a gradient, so that its integral depends on the path and
the acceptance corrects the step size, not the network. Where the log density itself is known, its difference is taken.

All lengths are in units of the level's sigma, so that one setting fits all levels.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import require, require_passes
from lightning_score.sampling.corrector import Corrector, Snr, require_snr, snr_at, snr_step_size
from lightning_score.sampling.noise import NoiseSource
from lightning_score.score.function import ScoreField
from lightning_score.score.trace import inner
from lightning_score.tensors import broadcast_to, combine


@cache
def lobatto(nodes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights of Gauss-Lobatto quadrature on [0, 1], exact for polynomials of degree 2 nodes - 3.

    Abramowitz and Stegun 25.4.32: inner nodes at the zeros of P'_{n-1}, weights 2/(n (n - 1) P_{n-1}^2) on [-1, 1].
    """
    polynomial = np.polynomial.Legendre.basis(nodes - 1)
    u = np.concatenate([[-1.0], polynomial.deriv().roots(), [1.0]])
    weights = 1 / (nodes * (nodes - 1) * polynomial(u) ** 2)
    return tuple(((1 + u) / 2).tolist()), tuple(weights.tolist())


def path_integral(score: ScoreField, x: Tensor, y: Tensor, t: Tensor, score_x: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """log p(y) - log p(x) = int_0^1 score(x + u (y - x)) . (y - x) du, by Gauss-Lobatto quadrature unless the score knows
    the log density; and the score at y.

    It takes nodes - 1 evaluations. The result changes its sign when x and y change places, so that the acceptance is that
    of a reversible chain whatever the quadrature's error.

    Args:
        score: the score function.
        x: where the path starts (B, ...).
        y: where it ends (B, ...).
        t: the time of the marginal, ().
        score_x: the score at x (B, ...).
        nodes: 2 is the trapezoid rule, exact for a Gaussian; 3 is Simpson's.
    """
    log_x = score.log_density(x, t)
    if log_x is not None:
        score_y = score(y, t)
        return cast(Tensor, score.log_density(y, t)) - log_x, score_y
    points, weights = lobatto(nodes)
    total, gradient = weights[0] * score_x, score_x
    for u, weight in zip(points[1:], weights[1:], strict=True):
        gradient = score(torch.lerp(x, y, u), t)
        total = total + weight * gradient
    return inner(total, y - x), gradient


def _require_nodes(nodes: int) -> None:
    require(2 <= nodes <= 20, f"nodes={nodes}: must lie between 2 (the trapezoid rule) and 20; 3 is Simpson's rule")


def _require_time_step(time_step: float) -> None:
    require(
        0 < time_step < 2,
        f"time_step={time_step}: must lie between 0 and 2, in units of sigma, as in 0.2; leapfrog diverges from 2 on",
    )


class Metropolis(Corrector, ABC):
    """Proposes a move and accepts it with probability min(1, p(y) q(x|y)/(p(x) q(y|x))), or else stays.

    Metropolis et al. 1953; Hastings 1970. Where the noise is left out, as at a last move, the proposal is accepted.
    """

    rejects = True

    @abstractmethod
    def propose(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """The proposal y (B, ...), and the logarithm of the acceptance ratio (B,)."""

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        y, log_ratio = self.propose(score, x, t, s, noise)
        accepted = noise.acceptance().log() < log_ratio
        return torch.where(broadcast_to(accepted, x).bool(), y, x), state


class MALA(Metropolis):
    """Metropolis-adjusted Langevin: y = x + e score + sqrt(2 e) z with the step size of `Langevin`, then acceptance.

    Roberts and Tweedie 1996; log p(y) - log p(x) is the score's integral along the straight path. That is exact for a
    conservative field up to the quadrature; a network's score is not exactly a gradient, so its acceptance is an estimate.

    Args:
        snr: ratio of the norms of step and noise, or pairs [sigma, snr], as for `Langevin`.
        nodes: of the quadrature, and evaluations per step; 2 is exact for a Gaussian alone: at large steps on a mixture the
            error of the trapezoid rule is as large as the bias it should remove, that of Simpson's rule (3) is not seen.
    """

    def __init__(self, snr: Snr = 0.16, nodes: int = 3):
        require_snr(snr)
        _require_nodes(nodes)
        self.snr, self.nodes = snr, nodes
        self.evaluations = nodes

    def propose(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        size = snr_step_size(score.process, t, s, snr_at(self.snr, score.process, t) * score.process.sigma(t))
        e = broadcast_to(size, x)
        z, score_x = noise.normal(), score(x, t)
        y = combine((1.0, x), (size, score_x), ((2 * size).sqrt(), z))
        integral, score_y = path_integral(score, x, y, t, score_x, self.nodes)
        back = (x - y - e * score_y) / (2 * e).sqrt()
        return y, integral + (inner(z, z) - inner(back, back)) / 2


class HMC(Metropolis):
    """Hamiltonian Monte Carlo: a fresh momentum p ~ N(0, I), leapfrog steps of h = time_step sigma, then acceptance.

    p <- p + h/2 score, x <- x + h p, p <- p + h/2 score; accepted with min(1, exp(-change of energy)), Duane et al. 1987,
    Neal 2011 (1206.1901). The potential energy is the score's integral along the leapfrog path: exact for a conservative
    field up to the quadrature; a network's score is not exactly a gradient, so its acceptance is an estimate.

    Args:
        time_step: h/sigma, the length of a leapfrog step, below 2.
        leapfrog_steps: their number per move.
        nodes: of the quadrature per leapfrog step; 2 is the trapezoid rule, exact for a Gaussian, at no further evaluation;
            with large steps take 3, Simpson's rule, at one further evaluation each.
    """

    def __init__(self, time_step: float = 0.2, leapfrog_steps: int = 5, nodes: int = 2):
        _require_time_step(time_step)
        require_passes(leapfrog_steps=leapfrog_steps)
        require(leapfrog_steps >= 1, f"leapfrog_steps={leapfrog_steps}: need at least 1, as in 5")
        _require_nodes(nodes)
        self.time_step, self.leapfrog_steps, self.nodes = time_step, leapfrog_steps, nodes
        self.evaluations = 1 + leapfrog_steps * (nodes - 1)

    def propose(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        h = self.time_step * score.process.sigma(t)
        momentum, gradient = noise.normal(), score(x, t)
        log_ratio = inner(momentum, momentum) / 2
        for _ in range(self.leapfrog_steps):
            momentum = combine((1.0, momentum), (h / 2, gradient))
            y = combine((1.0, x), (h, momentum))
            integral, gradient = path_integral(score, x, y, t, gradient, self.nodes)
            momentum = combine((1.0, momentum), (h / 2, gradient))
            x, log_ratio = y, log_ratio + integral
        return x, log_ratio - inner(momentum, momentum) / 2


class UnderdampedLangevin(Corrector):
    """Underdamped Langevin dynamics, dx = p dt, dp = score dt - friction p dt + sqrt(2 friction) dw, p of unit variance.

    The splitting BAOAB (Leimkuhler and Matthews 2013, 1203.5428) with h = time_step sigma, which is exact in x for a
    Gaussian: p <- p + h/2 score; x <- x + h/2 p; p <- c p + sqrt(1 - c^2) z; x <- x + h/2 p; p <- p + h/2 score, with
    c = exp(-friction h). The momentum is kept from step to step and from level to level.

    Args:
        time_step: h/sigma, the length of a step, below 2.
        friction: in units of 1/sigma: the momentum is forgotten in a time sigma/friction; 2 damps a Gaussian critically.
    """

    evaluations = 2

    def __init__(self, time_step: float = 0.2, friction: float = 2.0):
        _require_time_step(time_step)
        require(friction > 0, f"friction={friction}: must be above 0, as in 2, or the momentum is never renewed")
        self.time_step, self.friction = time_step, friction

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        h = self.time_step * score.process.sigma(t)
        c = float(np.exp(-self.friction * self.time_step))
        momentum = noise.normal() if state is None else state
        momentum = combine((1.0, momentum), (h / 2, score(x, t)))
        x = combine((1.0, x), (h / 2, momentum))
        momentum = combine((c, momentum), ((1 - c**2) ** 0.5, noise.normal()))
        x = combine((1.0, x), (h / 2, momentum))
        return x, combine((1.0, momentum), (h / 2, score(x, t)))
