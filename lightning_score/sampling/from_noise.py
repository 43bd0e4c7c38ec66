"""The first step of samplers, where alpha(1) = 0: from noise alone, in which nothing of the data is left."""

from typing import Any

import torch
from torch import Tensor

from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource
from lightning_score.sampling.predictor import Predictor
from lightning_score.sampling.step import Move, SamplerStep
from lightning_score.score.function import ScoreField
from lightning_score.tensors import combine

ITERATIONS = 100
"""The most iterations of the way back to noise alone."""


class FromNoise(SamplerStep):
    """x <- alpha_s denoised + (sigma_s/sigma_t) x from a time t of noise alone, alpha_t = 0; and from s < t back to it.

    DDIM's step (Song et al. 2020, 2010.02502, eq. 12) in its original form, which is Euler's of d(x/sigma) = denoised
    d(alpha/sigma). The score, -x/sigma^2, has no part in it. For data of variance v the samples' variance is sigma_s^2 in
    place of sigma_s^2 + alpha_s^2 v. This error is made once and is of second order in the length of the step, so that
    predictors of order 1 and 2 keep their order, and those of a higher one have order 2 in this step. The way back solves
    the same equation for x_t by iteration.
    """

    evaluations = 1

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        process = score.process
        if process.is_noise(t):
            return combine((process.sigma(s) / process.sigma(t), x), (process.alpha(s), score.denoised(x, t))), state
        scale = process.sigma(s) / process.sigma(t)
        back = combine((scale, x))
        for _ in range(ITERATIONS):
            before, back = back, combine((scale, x), (-scale * process.alpha(t), score.denoised(back, s)))
            if float((back - before).abs().max()) <= 4 * torch.finfo(x.dtype).eps * float(back.abs().max()):
                break
        return back, state


FROM_NOISE = FromNoise()


def moves_of(predictor: Predictor, process: NoiseProcess, times: Tensor) -> list[list[Move]]:
    """A predictor's moves over each interval of a grid (N + 1,) that falls, or rises, with `FromNoise` at an end of noise
    alone; a predictor of adaptive steps starts, or ends, at the last time with signal.
    """
    falls, rises = process.is_noise(times[0]), process.is_noise(times[-1])
    if len(times) < 2 or not (falls or rises) or predictor.from_noise:
        return predictor.plan(process, times)
    if not predictor.adaptive:
        first, last = Move(FROM_NOISE, times[0], times[1], times[1]), Move(FROM_NOISE, times[-2], times[-1], times[-1])
        if falls:
            return [[first], *predictor.plan(process, times[1:])]
        return [*predictor.plan(process, times[:-1]), [last]]
    near = process.with_signal(times)
    plan = predictor.plan(process, near)
    if falls:
        return [[Move(FROM_NOISE, times[0], near[0], near[0]), *plan[0]], *plan[1:]]
    return [*plan[:-1], [*plan[-1], Move(FROM_NOISE, near[-1], times[-1], times[-1])]]


def states_of(methods: set[SamplerStep], process: NoiseProcess, times: Tensor) -> dict[SamplerStep, Any]:
    """The states of methods at their first step on a grid of times (N + 1,), of which they see those with signal."""
    seen = times[process.alpha(times) > 0]
    return {method: method.init(process, seen) for method in methods}
