"""Denoising and explicit score matching: the network is fitted to the score of the noise, or to that of the data."""

import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.objective.base import LevelwiseObjective
from lightning_score.objective.times import TimeDistribution
from lightning_score.objective.weighting import Weighting
from lightning_score.score.empirical import EmpiricalScore
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

    def unit(self, x: Tensor) -> float:
        return 1.0 if self.mean else super().unit(x)


class ExplicitScoreMatching(LevelwiseObjective):
    """E_t lambda(t) 1/2 ||score(x_t, t) - grad log q_t(x_t)||^2, q_t the kernel density estimate of the training data.

    q_t(x) = 1/M sum_m N(x; alpha x_m, sigma^2 I) is the law of the perturbed training data, so that the loss is that of
    denoising score matching less a constant (Vincent 2011, eq. 11). Every step uses all M examples.

    Args:
        weighting: lambda(t); sigma^2 by default.
        times: the law of t; uniform by default.

    Raises:
        InputError: when called without training data or with conditions.
    """

    needs_data, leaves_out_missing = True, False
    _data: Tensor | None = None

    def prepare(self, data: Tensor) -> None:
        self._data = data

    def at(self, score: ScoreField, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        if self._data is None:
            raise InputError(
                "objective=ExplicitScoreMatching: needs the training data; train with a data module (trainer.fit(model, "
                "datamodule=...)), or call objective.prepare(x) first"
            )
        require(
            cond is None,
            "objective=ExplicitScoreMatching: takes no conditions; set conditional=false, or use DenoisingScoreMatching",
        )
        self._data = self._data.to(x_t.device)
        with torch.no_grad():
            target = EmpiricalScore(score.process, self._data)(x_t, t)
        return (score(x_t, t) - target).square().flatten(1).sum(1) / 2
