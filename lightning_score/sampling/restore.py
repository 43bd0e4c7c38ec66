"""Restoration by a predictor: denoise, take the observation into account, add noise again."""

from itertools import pairwise
from typing import Any

from torch import Tensor

from lightning_score.errors import InputError, require, require_passes
from lightning_score.observations import LinearOperator
from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.predictor import Predictor
from lightning_score.sampling.restart import Renoise
from lightning_score.sampling.step import Move
from lightning_score.score.function import ScoreField
from lightning_score.score.posterior import posterior_of
from lightning_score.tensors import combine


class DiffPIR(Predictor):
    """x <- alpha_s u + sigma_s (sqrt(1 - zeta) noise + sqrt(zeta) z), u the denoised image moved towards the observation.

    u = argmin_v |y - A v|^2/s^2 + |v - denoised|^2/r^2 = denoised + r^2 A^T (r^2 A A^T + s^2 I)^-1 (y - A denoised), with
    r^2 = (sigma/alpha)^2/strength and noise = (x - alpha u)/sigma: Zhu et al. 2023 (2305.08995), Algorithm 1. It takes the
    observation of the guidance, as of `Observed`, in place of its score. With `repeats` samples go back to t by the
    process's noise and take the step again (Lugmayr et al. 2022, 2201.09865, RePaint, with steps back of one). For exact
    observations the observed part of a mask is replaced by that of y as in score SDE's inpainting.

    Args:
        strength: lambda; 1 trusts the denoised image as if data were spread evenly, more trusts it more.
        zeta: share of fresh noise, from 0 (deterministic) to 1; null: that of ancestral sampling, b^2/sigma^2.
        repeats: how often each step is taken.
    """

    order, evaluations = 1, 1
    needs_observation = True

    def __init__(self, strength: float = 1.0, zeta: float | None = 0.3, repeats: int = 1):
        require(strength > 0, f"strength={strength}: must be above 0, as in 1")
        require(zeta is None or 0 <= zeta <= 1, f"zeta={zeta}: must lie in [0, 1], as in 0.3, or be null")
        require(repeats >= 1, f"repeats={repeats}: must be at least 1; 1 takes each step once")
        require_passes(repeats=repeats)
        self.strength, self.zeta, self.repeats = strength, zeta, repeats
        self._renoise = Renoise(1.0)

    def plan(self, process: NoiseProcess, times: Tensor) -> list[list[Move]]:
        plan = []
        for (t, s), clean in zip(pairwise(times), (process.sigma(times[1:]) == 0).tolist(), strict=True):
            again = [] if clean else [Move(self._renoise, s, t, t), Move(self, t, s, s)]
            plan.append([Move(self, t, s, s), *again * (self.repeats - 1)])
        return plan

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        posterior, process = posterior_of(score, "DiffPIR"), score.process
        operator, law, y = posterior.observation
        if not isinstance(operator, LinearOperator):
            name = type(operator).__name__
            raise InputError(
                f"predictor=DiffPIR: needs a linear operator, and {name} is not; guide another by MomentMatching"
            )
        alpha, sigma, sigma_s = process.alpha(t), process.sigma(t), process.sigma(s)
        denoised = posterior.score.denoised(x, t)
        seen, r2 = operator.apply(denoised), (sigma / alpha) ** 2 / self.strength
        s2 = law.variance(y.to(x), seen).flatten(1).mean(1)
        u = combine((1.0, denoised), (r2, operator.adjoint(operator.gram_solve(y.to(x) - seen, r2, s2), x.shape[1:])))
        zeta = (process.transition(s, t)[1] / sigma) ** 2 if self.zeta is None else self.zeta
        predicted = combine((sigma_s * (1 - zeta) ** 0.5 / sigma, x), (-alpha * sigma_s * (1 - zeta) ** 0.5 / sigma, u))
        return combine((1.0, predicted), (process.alpha(s), u), (sigma_s * zeta**0.5, noise.normal())), state
