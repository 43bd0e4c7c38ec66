"""Predictors: one step of the reverse process from time t to s < t.

Reverse SDE: dx = [f x - g^2 score] dt + g dw with dt < 0 (Anderson 1982; Song et al. 2021, 2011.13456, eq. 6).
Probability-flow ODE: dx = [f x - g^2 score/2] dt (eq. 13), which is also d(x/alpha) = noise d(sigma/alpha) with
noise = -sigma score (Karras et al. 2022, 2206.00364, eq. 4). The transition between s and t is x_t = a x_s + b z.
"""

import math
from abc import ABC
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.step import Affine, AffineStep, Move, Numbers, SamplerStep, Times
from lightning_score.score.function import ScoreField
from lightning_score.tensors import Scale, combine


class Predictor(SamplerStep, ABC):
    """Moves samples of p_t to samples of p_s, s < t; a step to clean data takes one evaluation at most."""

    order: int
    """Global order of convergence in the step; weak order for stochastic predictors."""

    adaptive: bool = False
    """Whether a tolerance sets the number of evaluations, whatever the grid; `evaluations` is then the least number."""

    from_noise: bool = False
    """Whether it takes the step from noise alone, alpha_t = 0, itself; else `FromNoise` does."""

    def plan(self, process: NoiseProcess, times: Tensor) -> list[list[Move]]:
        """The moves over each interval of a grid of times (N + 1,); by default one step."""
        return [[Move(self, t, s, s)] for t, s in pairwise(times)]


class NoPredictor(AffineStep, Predictor):
    """x <- (alpha_s/alpha_t) x: scales x by the mean factor, which is 1 for VE, and leaves the rest to the corrector.

    Where alpha_t = 0 there is only noise to scale, by sigma_s/sigma_t.
    """

    order, evaluations = 0, 0
    from_noise = True

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        log_ratio = process.log_alpha(s) - process.log_alpha(t)
        return Affine(process.sigma(s) / process.sigma(t) if process.is_noise(t) else log_ratio.exp(), 0.0)


class EulerMaruyama(AffineStep, Predictor):
    """x <- x + [f x - g^2 score] (s - t) + g sqrt(t - s) z, on the reverse SDE (Song et al. 2021, eq. 6)."""

    order, evaluations = 1, 1

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        f, g, dt = process.drift(t), process.diffusion(t), s - t
        return Affine(1 + f * dt, -(g**2) * dt, g * (-dt).sqrt())


class ReverseDiffusion(AffineStep, Predictor):
    """x <- (2 - a) x + b^2 score + b z (Song et al. 2021, 2011.13456, eq. 46; line 3 of Algorithm 3 for VP)."""

    order, evaluations = 1, 1

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        a, b = process.transition(s, t)
        return Affine(2 - a, b**2, b)


class Ancestral(AffineStep, Predictor):
    """x <- (x + b^2 score)/a + b (sigma_s/sigma_t) z (Ho et al. 2020, Algorithm 2; Song et al. 2021, eq. 4 and 47).

    Args:
        fixed_large: use the variance b^2 instead of the posterior's b^2 sigma_s^2/sigma_t^2 (Ho et al., section 3.2).
    """

    order, evaluations = 1, 1

    def __init__(self, fixed_large: bool = False):
        self.fixed_large = fixed_large

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        a, b = process.transition(s, t)
        return Affine(1 / a, b**2 / a, b if self.fixed_large else b * (process.sigma(s) / process.sigma(t)))


class Euler(AffineStep, Predictor):
    """x <- x + [f x - g^2 score/2] (s - t), on the probability-flow ODE in time."""

    order, evaluations = 1, 1

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        f, g, dt = process.drift(t), process.diffusion(t), s - t
        return Affine(1 + f * dt, -(g**2) / 2 * dt)


class NoiseScales(NamedTuple):
    """x_scale and noise_scale of x <- x_scale x + noise_scale noise."""

    x_scale: Scale
    noise_scale: Scale


def ddim_scales(process: NoiseProcess, t: Tensor, s: Tensor, v: Tensor | float = 0.0) -> NoiseScales:
    """Those of alpha_s denoised + sqrt(sigma_s^2 - v^2) noise, with denoised = (x - sigma_t noise)/alpha_t.

    Song et al. 2020 (2010.02502), eq. 12. For v = 0 it is Euler's step of the probability-flow ODE d(x/alpha) = noise
    d(sigma/alpha).

    Args:
        process: the noise process.
        t: time, ().
        s: a smaller time, ().
        v: standard deviation of the fresh noise that the caller adds, ().
    """
    a = (process.log_alpha(s) - process.log_alpha(t)).exp()
    return NoiseScales(a, (process.sigma(s) ** 2 - v**2).sqrt() - a * process.sigma(t))


def ddim_step(process: NoiseProcess, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """DDIM's step without fresh noise from x (B, ...) at time t () to s (), with the predicted noise -sigma score."""
    x_scale, noise_scale = process.numbers(ddim_scales, partial(ddim_scales, process), t, s)
    return combine((x_scale, x), (noise_scale, noise))


class DDIM(AffineStep, Predictor):
    """x <- alpha_s denoised + sqrt(sigma_s^2 - v^2) noise + v z, v = eta (sigma_s/sigma_t) b.

    Song et al. 2020 (2010.02502), eq. 12 and 16: eta = 0 integrates the probability-flow ODE exponentially, eta = 1 is
    ancestral sampling.

    Args:
        eta: stochasticity, from 0 (deterministic) to 1.
    """

    order, evaluations = 1, 1

    def __init__(self, eta: float = 0.0):
        require(0 <= eta <= 1, f"eta={eta}: must lie in [0, 1]; 0 is deterministic")
        self.eta = eta

    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        _, b = process.transition(s, t)
        v = self.eta * process.sigma(s) / process.sigma(t) * b
        x_scale, noise_scale = ddim_scales(process, t, s, v)
        return Affine(x_scale, -process.sigma(t) * noise_scale, v)


class HeunStep(Predictor, ABC):
    """Heun's step of d(x/alpha) = noise d(sigma/alpha) from t to s; if s is clean data, Euler's, with one evaluation."""

    order, evaluations = 2, 2

    def heun(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The step of samples x (B, ...) from t () to s ()."""
        scales = score.process.numbers(ddim_scales, partial(ddim_scales, score.process), t, s)
        return self.move(score, x, (t, s), scales, bool(score.process.sigma(s) == 0))

    def move(self, score: ScoreField, x: Tensor, times: Times, numbers: Numbers, to_data: bool) -> Tensor:
        (t, s), (x_scale, noise_scale) = times, numbers
        noise_t = score.noise(x, t)
        euler = combine((x_scale, x), (noise_scale, noise_t))
        return euler if to_data else combine((x_scale, x), (noise_scale, (noise_t + score.noise(euler, s)) / 2))


class Heun(HeunStep):
    """x/alpha <- x/alpha + (noise_t + noise_s)/2 (sigma_s/alpha_s - sigma_t/alpha_t), noise_s after Euler's step.

    Karras et al. 2022 (2206.00364), Algorithm 1. A step to clean data is Euler's and takes one evaluation. Where the
    process has no clean data (VE), EDM's last step, from sigma_min to 0, is the final denoise Tweedie.
    """

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        return self.heun(score, x, t, s), state


class StochasticHeun(HeunStep):
    """Adds noise that raises sigma/alpha by the factor 1 + gamma, then takes Heun's step down to s.

    Karras et al. 2022 (2206.00364), Algorithm 2: gamma = min(churn/N, sqrt(2) - 1) for N steps. The noise is that of the
    process's transition from t to the time of the raised level, at most 1, so that samples of p_t become samples of the
    marginal at that time.

    Args:
        churn: the paper's S_churn, 0 (deterministic) or more; the paper takes 40 for ImageNet.
        churn_min: smallest sigma/alpha at which noise is added.
        churn_max: largest sigma/alpha at which noise is added.
        churn_noise: the paper's S_noise, a factor on the fresh noise; 1 is exact, the paper takes 1.003 for ImageNet.
    """

    def __init__(self, churn: float = 40.0, churn_min: float = 0.05, churn_max: float = 50.0, churn_noise: float = 1.0):
        require(churn >= 0, f"churn={churn}: must be at least 0 (deterministic), as in 40")
        require(
            0 <= churn_min <= churn_max,
            f"churn_min={churn_min}, churn_max={churn_max}: need 0 <= churn_min <= churn_max, as in 0.05 and 50",
        )
        require(churn_noise >= 0, f"churn_noise={churn_noise}: must be at least 0, as in 1.003")
        self.churn, self.churn_min, self.churn_max, self.churn_noise = churn, churn_min, churn_max, churn_noise

    def evaluated(self, process: NoiseProcess, times: Tensor) -> Tensor:
        return torch.stack([times[-1], *times[:-1], *self.init(process, times).values()])

    def init(self, process: NoiseProcess, times: Tensor) -> dict[float, Tensor]:
        """The raised time of every time of the grid except the last."""
        times, steps = times[:-1], len(times) - 1
        gamma = min(self.churn / steps, math.sqrt(2) - 1)
        level = process.noise_level(times)
        raised = process.inverse_log_snr(process.log_snr(times) - 2 * math.log1p(gamma))
        churned = (raised > times) & (gamma > 0) & (self.churn_min <= level) & (level <= self.churn_max)
        return dict(zip(times.tolist(), torch.where(churned, raised, times), strict=True))

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        t_hat = state[float(t)]
        if t_hat > t:
            a, b = score.process.transition(t, t_hat)
            x = combine((a, x), (self.churn_noise * b, noise.normal()))
        return self.heun(score, x, t_hat, s), state
