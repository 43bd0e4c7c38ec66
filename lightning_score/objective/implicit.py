"""Implicit and sliced score matching: objectives that need derivatives of the score instead of the noise."""

from functools import reduce

import torch
from torch import Tensor

from lightning_score.objective.base import LevelwiseObjective
from lightning_score.objective.times import TimeDistribution
from lightning_score.objective.weighting import Weighting
from lightning_score.score.function import ScoreField
from lightning_score.score.trace import ExactTrace, Hutchinson, ProbeLaw, Pullback, Trace, inner


class ImplicitScoreMatching(LevelwiseObjective):
    """E_t lambda(t) [1/2 ||score(x_t, t)||^2 + tr(d score/dx)].

    Hyvarinen 2005, eq. 4, of the perturbed data instead of the data, so that it holds at every noise level.

    Args:
        weighting: lambda(t); sigma^2 by default.
        times: the law of t; uniform by default.
        trace: how the trace is computed; exactly by default.
    """

    differentiates_score = True

    def __init__(
        self, weighting: Weighting | None = None, times: TimeDistribution | None = None, trace: Trace | None = None
    ):
        super().__init__(weighting, times)
        self.trace = trace or ExactTrace()

    def at(self, score: ScoreField, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        s, pullback = _score_and_pullback(score, x_t, t, cond)
        return inner(s, s) / 2 + self.trace(pullback, self.trace.vectors(x_t))


class SlicedScoreMatching(LevelwiseObjective):
    """E_t lambda(t) E_v [v^T d score/dx v + 1/2 (v^T score)^2] at x_t.

    Song et al. 2019 (1905.07088), eq. 7; with reduced variance eq. 8, 1/2 ||score||^2 in place of the square.

    Args:
        weighting: lambda(t); sigma^2 by default.
        times: the law of t; uniform by default.
        probes: the number of vectors v per example.
        law: the law of v; Rademacher by default.
        variance_reduced: replace the square by its mean over v.
    """

    differentiates_score = True

    def __init__(
        self,
        weighting: Weighting | None = None,
        times: TimeDistribution | None = None,
        probes: int = 1,
        law: ProbeLaw | None = None,
        variance_reduced: bool = True,
    ):
        super().__init__(weighting, times)
        self.trace, self.variance_reduced = Hutchinson(probes, law), variance_reduced

    def at(self, score: ScoreField, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        s, pullback = _score_and_pullback(score, x_t, t, cond)
        terms = (
            inner(pullback(v), v) + (inner(s, s) if self.variance_reduced else inner(v, s).square()) / 2
            for v in self.trace.vectors(x_t)
        )
        return reduce(torch.add, terms) / self.trace.probes


def _score_and_pullback(score: ScoreField, x_t: Tensor, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Pullback]:
    """The score at x_t and v -> v^T d score/dx; both can be differentiated with respect to the parameters."""
    s, pullback, *_ = torch.func.vjp(lambda x: score(x, t, cond), x_t)
    return s, lambda v: pullback(v.to(s.dtype))[0]
