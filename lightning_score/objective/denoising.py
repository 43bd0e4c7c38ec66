"""Denoising and explicit score matching: the network is fitted to the score of the noise, or to that of the data."""

import warnings

import torch
from torch import Tensor

from lightning_score.errors import InputError
from lightning_score.objective.base import LevelwiseObjective
from lightning_score.objective.times import TimeDistribution
from lightning_score.objective.weighting import Weighting
from lightning_score.score.empirical import EmpiricalScore
from lightning_score.score.function import ScoreField
from lightning_score.tensors import broadcast_to

LARGE = 2**24
"""Numbers in data for which the comparison with all of them is costly."""


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
        return self.length(score(x_t, t, cond) + noise / broadcast_to(score.process.sigma(t), x_t))

    def length(self, residual: Tensor) -> Tensor:
        """Half the squared length of each example's residual, or its mean square, (B,)."""
        squared = residual.square().flatten(1)
        return squared.mean(1) if self.mean else squared.sum(1) / 2

    def unit(self, x: Tensor) -> float:
        return 1.0 if self.mean else super().unit(x)


class ExplicitScoreMatching(DenoisingScoreMatching):
    """E_t lambda(t) 1/2 ||score(x_t, t) - grad log q_t(x_t)||^2, q_t the kernel density estimate of the training data.

    q_t(x) = 1/M sum_m N(x; alpha x_m, sigma^2 I) is the law of the perturbed training data, given the label that of the data
    of this class. The loss is that of denoising score matching less a constant (Vincent 2011, eq. 11), and its gradient
    varies less: the target is the mean over the clean images that x_t may come from, instead of one of them (Xu et al. 2023,
    2302.00670). Every step compares a batch with all M examples, so it is for small data. In validation, on other data, it
    is denoising score matching, and also given conditions other than labels, each of which one example has.

    Args:
        weighting: lambda(t); sigma^2 by default.
        times: the law of t; uniform by default.
        mean: average over dimensions without the factor 1/2 (DDPM, score SDE) instead of half the sum (NCSN).

    Raises:
        InputError: when called without training data.
    """

    needs_data, leaves_out_missing = True, False
    _data: Tensor | None = None
    _labels: Tensor | None = None

    def prepare(self, data: Tensor, labels: Tensor | None = None) -> None:
        self._data, self._labels = data, labels
        if data.numel() > LARGE:
            warnings.warn(
                f"objective=ExplicitScoreMatching: compares every batch with all {len(data)} examples, which may be "
                "slower than the network; DenoisingScoreMatching has the same minimizer",
                stacklevel=2,
            )

    def at(self, score: ScoreField, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        if self._data is None:
            raise InputError(
                "objective=ExplicitScoreMatching: needs the training data; train with a data module (trainer.fit(model, "
                "datamodule=...)), or call objective.prepare(x) first"
            )
        alone = cond is not None and (self._labels is None or cond.is_floating_point() or cond.ndim > 1)
        if alone or not score.training:
            return super().at(score, x_t, t, noise, cond)
        self._data = self._data.to(x_t.device)
        self._labels = None if self._labels is None else self._labels.to(x_t.device)
        with torch.no_grad():
            target = EmpiricalScore(score.process, self._data, self._labels)(x_t, t, cond)
        return self.length(score(x_t, t, cond) - target)
