"""Predictors: one step of the reverse process from time t to s < t.

Reverse SDE: dx = [f x - g^2 score] dt + g dw with dt < 0 (Anderson 1982; Song et al. 2021, 2011.13456, eq. 6).
The transition between s and t is x_t = a x_s + b z.
"""

from abc import ABC

from lightning_score.sampling.method import Method
from lightning_score.utils import expand, require


class Predictor(Method, ABC):
    """Moves samples of p_t to samples of p_s, s < t."""

    order: int
    """Global order of convergence in the step; weak order for stochastic predictors."""


class NoPredictor(Predictor):
    """x <- (alpha_s/alpha_t) x: follows the mean factor and leaves the rest to the corrector (nothing at all for VE)."""

    order, calls = 0, 0

    def step(self, score, x, t, s, noise, state):
        return expand((score.process.log_alpha(s) - score.process.log_alpha(t)).exp(), x) * x, state


class EulerMaruyama(Predictor):
    """x <- x + [f x - g^2 score] (s - t) + g sqrt(t - s) z, on the reverse SDE (Song et al. 2021, eq. 6)."""

    order, calls = 1, 1

    def step(self, score, x, t, s, noise, state):
        f, g = expand(score.process.drift(t), x), expand(score.process.diffusion(t), x)
        dt = expand(s - t, x)
        return x + (f * x - g**2 * score(x, t)) * dt + g * (-dt).sqrt() * noise.normal(), state


class ReverseDiffusion(Predictor):
    """x <- (2 - a) x + b^2 score + b z (Song et al. 2021, 2011.13456, eq. 46; line 3 of Algorithm 3 for VP)."""

    order, calls = 1, 1

    def step(self, score, x, t, s, noise, state):
        a, b = (expand(c, x) for c in score.process.transition(s, t))
        return (2 - a) * x + b**2 * score(x, t) + b * noise.normal(), state


class Ancestral(Predictor):
    """x <- (x + b^2 score)/a + b (sigma_s/sigma_t) z (Ho et al. 2020, Algorithm 2; Song et al. 2021, eq. 4 and 47).

    Args:
        fixed_large: use the variance b^2 instead of the posterior's b^2 sigma_s^2/sigma_t^2 (Ho et al., section 3.2).
    """

    order, calls = 1, 1

    def __init__(self, fixed_large: bool = False):
        self.fixed_large = fixed_large

    def step(self, score, x, t, s, noise, state):
        a, b = (expand(c, x) for c in score.process.transition(s, t))
        shrink = 1.0 if self.fixed_large else expand(score.process.sigma(s) / score.process.sigma(t), x)
        return (x + b**2 * score(x, t)) / a + b * shrink * noise.normal(), state


class DDIM(Predictor):
    """x <- alpha_s denoised + sqrt(sigma_s^2 - v^2) noise + v z, v = eta (sigma_s/sigma_t) b.

    Song et al. 2020 (2010.02502), eq. 12 and 16: eta = 0 integrates the probability-flow ODE exponentially, eta = 1 is
    ancestral sampling.

    Args:
        eta: stochasticity, from 0 (deterministic) to 1.
    """

    order, calls = 1, 1

    def __init__(self, eta: float = 0.0):
        require(0 <= eta <= 1, f"eta={eta}: must lie in [0, 1]; 0 is deterministic")
        self.eta = eta

    def step(self, score, x, t, s, noise, state):
        process = score.process
        alpha_t, alpha_s, sigma_t, sigma_s = (
            expand(c, x) for c in (process.alpha(t), process.alpha(s), process.sigma(t), process.sigma(s))
        )
        predicted_noise = -sigma_t * score(x, t)
        denoised = (x - sigma_t * predicted_noise) / alpha_t
        v = self.eta * sigma_s / sigma_t * expand(process.transition(s, t)[1], x)
        x = alpha_s * denoised + (sigma_s**2 - v**2).sqrt() * predicted_noise
        return (x + v * noise.normal() if self.eta else x), state
