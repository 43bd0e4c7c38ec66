"""Scores of posteriors: the score given an observation of x_0."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.observations import Observation
from lightning_score.score.function import ArgumentWrapper, ScoreField, ScoreWrapper
from lightning_score.score.guided import Within
from lightning_score.tensors import broadcast_to


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


class _WithArguments(PosteriorScore):
    """Another posterior score called with other arguments; its prior is called with them, too."""

    def __init__(self, wrapper: ArgumentWrapper, posterior: PosteriorScore):
        super().__init__(wrapper.around(posterior.score), posterior.observation)
        self.wrapper, self.posterior = wrapper, posterior

    def twisted(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Twisted:
        return self.posterior.twisted(x, *self.wrapper.arguments(t, cond))


class _WithinInterval(PosteriorScore):
    """Another posterior score without the gradient outside an interval of noise levels, where log q still is a weight."""

    def __init__(self, within: Within, posterior: PosteriorScore):
        super().__init__(posterior.score, posterior.observation)
        self.within, self.posterior = within, posterior

    def twisted(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Twisted:
        found = self.posterior.twisted(x, t, cond)
        return found._replace(gradient=found.gradient.where(broadcast_to(self.within.inside(t), x).bool(), 0.0))


def posterior_of(score: ScoreField, name: str) -> PosteriorScore:
    """The posterior score in a score that samplers are given, with the conditions and at the times of that score.

    Args:
        score: the score, conditioned and guided.
        name: of the method that needs it, for the error.

    Raises:
        InputError: there is none, or another guidance or a clipped range changes its score.
    """
    if isinstance(score, PosteriorScore):
        inner = any(isinstance(part, PosteriorScore) for part in score.score.modules())
        require(not inner, f"{name}: takes one observation, and the guidance has several; join them into one")
        return score
    if isinstance(score, ArgumentWrapper):
        return _WithArguments(score, posterior_of(score.score, name))
    if isinstance(score, Within):
        return _WithinInterval(score, posterior_of(score.guided, name))
    if any(isinstance(part, PosteriorScore) for part in score.modules()):
        raise InputError(
            f"{name}: the guided score is changed afterwards by {type(score).__name__.strip('_')}; set clip and "
            "analytic_first_step to null, and make the observation the last part of a Composed"
        )
    raise InputError(f"{name}: needs an observation; set model.guidance to one by observations, as PseudoInverse")
