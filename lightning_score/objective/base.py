"""The interface of objectives, and the weighted average of a loss over noise levels."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_score.objective.times import TimeDistribution, UniformTimes
from lightning_score.objective.weighting import SigmaSquared, Weighting
from lightning_score.process import NoiseProcess
from lightning_score.score.function import ScoreField


class Objective(ABC):
    """A loss whose minimizer is the score."""

    needs_data: bool = False  # whether `prepare` must be given the training data before the first call
    differentiates_score: bool = False  # with respect to x, within the loss

    @abstractmethod
    def __call__(self, score: ScoreField, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """The loss of each example of data x (B, ...): (B,)."""

    def check(self, process: NoiseProcess) -> None:
        """Raises `InputError` if the objective cannot be used with the process."""

    def levels(self, process: NoiseProcess) -> Tensor | None:
        """The only times at which the score is trained, ascending, (L,); None for all times."""
        return None

    def prepare(self, data: Tensor) -> None:
        """Receives the training data in the range of the model, not augmented, (M, ...), before the first call."""


class LevelwiseObjective(Objective, ABC):
    """E_t lambda(t) J(t) with x_t = alpha x_0 + sigma z, for a loss J(t) whose minimizer is the score of p_t.

    Args:
        weighting: lambda(t); sigma^2 by default.
        times: the law of t; uniform by default.
    """

    def __init__(self, weighting: Weighting | None = None, times: TimeDistribution | None = None):
        self.weighting = weighting or SigmaSquared()
        self.times = times or UniformTimes()

    @abstractmethod
    def at(self, score: ScoreField, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """J(t) of each example, (B,), at x_t (B, ...), which was perturbed by `noise`, and t, () or (B,)."""

    def __call__(self, score: ScoreField, x: Tensor, cond: Tensor | None = None) -> Tensor:
        process = score.process
        t = self.times.sample(process, x)
        z = torch.randn_like(x)
        weight = self.weighting(process, t) * self.times.importance(process, t)
        return weight.to(x.dtype) * self.at(score, process.perturb(x, t, z), t, z, cond)

    def check(self, process: NoiseProcess) -> None:
        self.times.check(process)

    def levels(self, process: NoiseProcess) -> Tensor | None:
        return self.times.levels(process)
