"""Implicit and sliced score matching: objectives that need derivatives of the score instead of the noise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_score.objective.base import LevelwiseObjective
from lightning_score.objective.times import TimeDistribution
from lightning_score.objective.weighting import Weighting
from lightning_score.score import ScoreField
from lightning_score.utils import require, require_passes

Pullback = Callable[[Tensor], Tensor]  # v -> v^T ds/dx, row by row


class ProbeLaw(ABC):
    """The law of random vectors v with E[v v^T] = I."""

    @abstractmethod
    def sample(self, like: Tensor) -> Tensor:
        """Draws v of the shape of `like`."""


class Rademacher(ProbeLaw):
    """Independent signs; of all laws the estimate of a trace varies least under it (Hutchinson 1989)."""

    def sample(self, like: Tensor) -> Tensor:
        return torch.randint_like(like, 2) * 2 - 1


class Gaussian(ProbeLaw):
    """Independent standard normal coordinates."""

    def sample(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)


class Trace(ABC):
    """A way to the trace of the score's Jacobian."""

    @abstractmethod
    def __call__(self, pullback: Pullback, like: Tensor) -> Tensor:
        """tr(ds/dx) of each example, (B,), from v -> v^T ds/dx; `like` has the shape of x."""


class ExactTrace(Trace):
    """tr(ds/dx) = sum_d e_d^T ds/dx e_d; its time and memory grow with the dimension."""

    def __call__(self, pullback: Pullback, like: Tensor) -> Tensor:
        basis = torch.eye(like[0].numel(), device=like.device, dtype=like.dtype)
        return sum(_inner(pullback(e.reshape(like[0].shape).expand_as(like)), e.reshape(like[0].shape)) for e in basis)


class Hutchinson(Trace):
    """tr(ds/dx) = E[v^T ds/dx v], estimated with a few random vectors v (Hutchinson 1989).

    Args:
        probes: the number of vectors per example.
        law: the law of v; Rademacher by default.
    """

    def __init__(self, probes: int = 1, law: ProbeLaw | None = None):
        _require_probes(probes)
        self.probes, self.law = probes, law or Rademacher()

    def __call__(self, pullback: Pullback, like: Tensor) -> Tensor:
        return sum(_inner(pullback(v), v) for v in _draws(self.law, self.probes, like)) / self.probes


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
        return _inner(s, s) / 2 + self.trace(pullback, x_t)


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
        _require_probes(probes)
        self.probes, self.law, self.variance_reduced = probes, law or Rademacher(), variance_reduced

    def at(self, score: ScoreField, x_t: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        s, pullback = _score_and_pullback(score, x_t, t, cond)
        terms = (
            _inner(pullback(v), v) + (_inner(s, s) if self.variance_reduced else _inner(v, s).square()) / 2
            for v in _draws(self.law, self.probes, x_t)
        )
        return sum(terms) / self.probes


def _score_and_pullback(score: ScoreField, x_t: Tensor, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Pullback]:
    """The score at x_t and v -> v^T d score/dx; both can be differentiated by the parameters."""
    s, pullback = torch.func.vjp(lambda x: score(x, t, cond), x_t)
    return s, lambda v: pullback(v.to(s.dtype))[0]


def _draws(law: ProbeLaw, probes: int, like: Tensor) -> Iterator[Tensor]:
    return (law.sample(like) for _ in range(probes))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """a . b of each example, (B,)."""
    return (a * b).flatten(1).sum(1)


def _require_probes(probes: int) -> None:
    require(probes >= 1, f"probes={probes}: need at least one random vector per example")
    require_passes(probes=probes)
