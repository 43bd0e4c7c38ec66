"""Consistency tuning: the denoised image becomes the end of the path of the probability-flow ODE."""

import math
from copy import deepcopy

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.objective.base import Objective
from lightning_score.objective.times import LogNormalTimes, TimeDistribution
from lightning_score.process import NoiseProcess
from lightning_score.score.function import ScoreField, ScoreFunction
from lightning_score.seeds import random_state, restore_random_state
from lightning_score.tensors import broadcast_to, combine


class ConsistencyTuning(Objective):
    """E_t |f(x_t, t) - f(x_r, r)|/(s_t - s_r) with f = `score.denoised`, r < t and the same x_0 and z in x_t and x_r.

    Easy consistency tuning (Geng et al. 2024, 2406.14548) of a model that is trained already, `start_from`. f(x_r, r) is not
    differentiated, and has the dropout of f(x_t, t). With s = sigma/alpha, s_r = s_t max(0, 1 - n(s_t)/q^a) and
    n(s) = 1 + k/(1 + e^(b s)), in stage a = 1, 2, ..., of `steps` optimizer steps each; below the process's smallest level
    f(x_r, r) is x_0. Where r = 0, as at small noise in the first stages, f is the denoised image; as r comes near to t, f
    becomes the end of the path of the probability-flow ODE from x_t (Song et al. 2023, 2303.01469, theorem 2), and samples
    take one or two evaluations of the predictor `Consistency`. f is then not the mean of x_0, nor the score that of p_t:
    other samplers, likelihoods and posteriors need the model before tuning.

    Held-out losses are those of the last stage, without a teacher, so that they can be compared throughout a training.

    Args:
        times: the law of t, which must be continuous; the paper's by default, ln s of mean -1.1 and standard deviation 2.
        q: the factor by which s_t - s_r falls from stage to stage, above 1.
        k: how much larger 1 - s_r/s_t is at small noise, at least 0.
        b: the inverse of the noise level up to which it is larger, at least 0.
        stages: the number of stages; the last one lasts until the end of the training.
        steps: the optimizer steps of a stage.
        huber: c of the distance sqrt(|d|^2 + c^2) - c (Song and Dhariwal 2023, 2310.14189, section 3.4), 0 for |d|; null for
            |d|^2.
        distill: take x_r from x_t by a step of DDIM with the weights from which the training starts, instead of from x_0 and
            z: one more evaluation without gradient, and less noise in the loss, for a model that is only as good as that one
            (consistency distillation, Song et al. 2023, algorithm 2). That model has the same process and parametrization.

    Raises:
        InputError: a number is out of range; in `check`: the law of t is not continuous; in training: there is no model to
            distill, or it has another process or parametrization.
    """

    _teacher: ScoreFunction | None = None

    def __init__(
        self,
        times: TimeDistribution | None = None,
        q: float = 2.0,
        k: float = 8.0,
        b: float = 1.0,
        stages: int = 8,
        steps: int = 1000,
        huber: float | None = 0.0,
        distill: bool = False,
    ):
        require(1 < q < math.inf, f"q={q}: must be above 1, as in 2")
        require(0 <= k < math.inf and 0 <= b < math.inf, f"k={k}, b={b}: must be at least 0, as in 8 and 1")
        require(1 <= stages <= 64, f"stages={stages}: must lie between 1 and 64, as in 8")
        require(steps >= 1, f"steps={steps}: must be at least 1, as in 1000")
        require(huber is None or 0 <= huber < math.inf, f"huber={huber}: must be at least 0, as in 0.03, or null")
        self.times = times or LogNormalTimes(-1.1, 2.0)
        self.q, self.k, self.b, self.stages, self.steps, self.huber = q, k, b, stages, steps, huber
        self.refines = self.distill = distill

    def begin(self, score: ScoreFunction) -> None:
        if self.distill:
            self._teacher = deepcopy(score).requires_grad_(False).eval()

    def check(self, process: NoiseProcess) -> None:
        self.times.check(process)
        require(
            self.times.levels(process) is None,
            f"times={type(self.times).__name__}: consistency needs a continuous law of times; use LogNormalTimes",
        )

    @property
    def stage(self) -> int:
        """The stage of the next step, 1 to `stages`; the last one except in training."""
        done = self.steps_done()
        return self.stages if done is None else min(1 + done // self.steps, self.stages)

    def target_level(self, level: Tensor) -> Tensor:
        """s_r for s_t, both sigma/alpha, of any shape, in the present stage."""
        wide = 1 + self.k * torch.sigmoid(-self.b * level)
        return level * (1 - wide / self.q**self.stage).clamp(min=0)

    def __call__(self, score: ScoreField, x: Tensor, cond: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        process = score.process
        t = self.times.sample(process, x).double()  # single precision would lose t - r
        z, level = torch.randn_like(x), process.noise_level(t)
        smallest = process.noise_level(t.new_tensor(process.t_min))
        target = self.target_level(level)
        clean = target < smallest
        x_t, state = process.perturb(x, t, z), random_state(x.device)
        with torch.no_grad():
            if self._teacher is not None and self.steps_done() is not None:
                x = self._teacher.to(x.device).denoised(x_t, t, cond)
                z = combine((1 / process.sigma(t), x_t), (-process.alpha(t) / process.sigma(t), x))
            r = process.time_of(target.clamp(min=smallest))
            end = score.denoised(process.perturb(x, r, z), r, cond)
            end = torch.where(broadcast_to(clean, x) > 0, x, end)
        restore_random_state(state, x.device)
        difference = (score.denoised(x_t, t, cond) - end).flatten(1)
        weight = 1 / (level - target.where(~clean, 0.0))
        return weight.to(x.dtype) * self.distance(difference)

    def distance(self, difference: Tensor) -> Tensor:
        """The distance of each row of differences (B, D): (B,)."""
        if self.huber is None:
            return difference.square().sum(1)
        if self.huber == 0:
            return torch.linalg.vector_norm(difference, dim=1)
        return (difference.square().sum(1) + self.huber**2).sqrt() - self.huber
