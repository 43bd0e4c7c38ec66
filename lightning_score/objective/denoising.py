"""Denoising score matching, the objective of NCSN, DDPM and the score SDE."""

from torch import Tensor

from lightning_score.objective.base import LevelwiseObjective
from lightning_score.objective.times import TimeDistribution
from lightning_score.objective.weighting import Weighting
from lightning_score.score.function import ScoreField
from lightning_score.tensors import broadcast_to


class DenoisingScoreMatching(LevelwiseObjective):
    """E_t lambda(t) 1/2 ||score(x_t, t) + z/sigma(t)||^2 with x_t = alpha x_0 + sigma z.

    Vincent 2011; over many noise levels Song and Ermon 2019 (1907.05600), eq. 6.

    Args:
        weighting: lambda(t); sigma^2 by default.
        times: the law of t; uniform by default.
        mean: average over dimensions without the factor 1/2 (DDPM, score SDE) instead of half the sum (NCSN).
    """

    def __init__(self, weighting: Weighting | None = None, times: TimeDistribution | None = None, mean: bool = False):
        super().__init__(weighting, times)
        self.mean = mean

    def at(self, score: ScoreField, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        residual = score(x_t, t, cond) + noise / broadcast_to(score.process.sigma(t), x_t)
        squared = residual.square().flatten(1)
        return squared.mean(1) if self.mean else squared.sum(1) / 2
