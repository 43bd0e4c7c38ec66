"""Multistep consistency sampling."""

import math
from typing import Any

from torch import Tensor

from lightning_score.errors import require
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.predictor import Predictor
from lightning_score.score.function import ScoreField
from lightning_score.tensors import combine


class Consistency(Predictor):
    """x <- alpha_s denoised + sigma_s (sqrt(1 - eta^2) noise + eta z), with noise = (x - alpha_t denoised)/sigma_t.

    Song et al. 2023 (2303.01469), Algorithm 1: eta = 1 adds fresh noise alone; eta = 0 is DDIM. For models of
    `ConsistencyTuning`, whose denoised image is a sample of p_0, so that any number of steps gives samples of p_s. That of
    other models is a mean, with less variance: with fresh noise samples are then too narrow, and more steps do not help.

    Args:
        eta: the share of fresh noise, from 0 (deterministic) to 1.
    """

    order, evaluations = 0, 1
    from_noise = True

    def __init__(self, eta: float = 1.0):
        require(0 <= eta <= 1, f"eta={eta}: must lie in [0, 1]; 0 is deterministic")
        self.eta = eta

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        process, denoised = score.process, score.denoised(x, t)
        sigma = process.sigma(s)
        kept = math.sqrt(1 - self.eta**2) * sigma / process.sigma(t)
        terms = [(process.alpha(s) - kept * process.alpha(t), denoised), (kept, x)]
        if self.eta:
            terms.append((self.eta * sigma, noise.normal()))
        return combine(*terms), state
