"""Scores of posteriors: the score given an observation of x_0."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from lightning_score.observations import Observation
from lightning_score.score.function import ScoreField, ScoreWrapper


class Twisted(NamedTuple):
    """A score and what an observation adds to it.

    Fields: score (of p_t(x), (B, ...)), gradient (of log q(y given x_t) in x_t, (B, ...)), log_likelihood
    (log q(y given x_t) up to a constant, (B,)), q the approximation of p(y given x_t).
    """

    score: Tensor
    gradient: Tensor
    log_likelihood: Tensor


class PosteriorScore(ScoreWrapper, ABC):
    """score(x, t) + gradient of log q(y given x_t), q an approximation of p(y given x_t).

    Args:
        score: the score function of the prior.
        observation: that of each row.
    """

    def __init__(self, score: ScoreField, observation: Observation):
        super().__init__(score)
        self.observation = observation

    @abstractmethod
    def twisted(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Twisted:
        """The prior's score and the gradient and value of log q, from one evaluation of the score where that is enough."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        found = self.twisted(x, t, cond)
        return found.score + found.gradient
