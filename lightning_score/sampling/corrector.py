"""Correctors: Markov chain Monte Carlo steps that use the score and stay on one marginal p_t."""

from abc import ABC

from torch import Tensor

from lightning_score.process import NoiseProcess
from lightning_score.sampling.method import Method
from lightning_score.sampling.noise import NoiseStream
from lightning_score.score import ScoreField
from lightning_score.utils import expand, require


def langevin_step(
    score: ScoreField, x: Tensor, t: Tensor, step_size: Tensor, noise: NoiseStream, temperature: float = 1.0
) -> Tensor:
    """x + e score + sqrt(2 e T) z, whose law tends to p_t^(1/T) as the step size e tends to 0.

    Args:
        score: the score function.
        x: samples (B, ...).
        t: the time of the marginal, ().
        step_size: e, () or (B,), in squared units of x. Algorithm 1 of Song and Ermon 2019 calls 2 e alpha_i.
        noise: the random streams.
        temperature: T.
    """
    e = expand(step_size, x)
    return x + e * score(x, t) + (2 * e * temperature).sqrt() * noise.normal()


class Corrector(Method, ABC):
    """Moves samples of p_t within p_t; s is the time beside t on the grid."""


class Langevin(Corrector):
    """Langevin dynamics with step size e = 2 alpha_c (snr sigma)^2, alpha_c the ratio of alpha^2 between t and s.

    Song et al. 2021 (2011.13456), Algorithms 4 and 5, with the norm of the score replaced by its expectation, 1/sigma
    per dimension, so that a sample does not depend on its batch mates.

    Args:
        snr: target ratio of the norms of step and noise; the paper takes 0.16.
    """

    calls = 1

    def __init__(self, snr: float = 0.16):
        require(snr > 0, f"snr={snr}: must be above 0, as in 0.16")
        self.snr = snr

    def step(self, score, x, t, s, noise, state):
        process = score.process
        alpha_c = (-2 * (process.log_alpha(t) - process.log_alpha(s)).abs()).exp()
        return langevin_step(score, x, t, 2 * alpha_c * (self.snr * process.sigma(t)) ** 2, noise), state


class AnnealedLangevinStep(Corrector):
    """Langevin dynamics with step size e = step_size sigma^2/sigma_min^2, sigma_min the last sigma/alpha of the grid.

    Song and Ermon 2019 (1907.05600), Algorithm 1, for any process: it is that algorithm on x/alpha.

    Args:
        step_size: epsilon, the step size at the smallest level, in squared units of the data. This is the authors' code's
            `step_lr`; the epsilon of Algorithm 1 is twice as large.
    """

    calls = 1

    def __init__(self, step_size: float = 2e-5):
        require(step_size > 0, f"step_size={step_size}: must be above 0, as in 2.0e-5")
        self.step_size = step_size

    def init(self, process: NoiseProcess, times: Tensor) -> Tensor:
        smallest = (-process.log_snr(times)).exp()
        return smallest[smallest > 0][-1]  # (sigma/alpha)^2 of the last time that is not clean data

    def check(self, process: NoiseProcess, times: Tensor) -> None:
        limit = 2 * float(self.init(process, times))
        require(
            self.step_size < limit,
            f"step_size={self.step_size}: Langevin dynamics diverges on this process and grid unless "
            f"step_size < 2 sigma_min^2 = {limit:.3g}; try {limit / 10:.3g}",
        )

    def step(self, score, x, t, s, noise, state):
        return langevin_step(score, x, t, self.step_size * score.process.sigma(t) ** 2 / state, noise), state
