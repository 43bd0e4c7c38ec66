"""An objective whose losses are NaN, and a sampler whose samples explode."""

import torch

from lightning_score.objective import DenoisingScoreMatching, TimeDistribution
from lightning_score.sampling import AnnealedLangevin


class Broken(DenoisingScoreMatching):
    """A loss that is NaN at the smallest noise level of the batches of some calls.

    Args:
        first: the first of these calls.
        last: the last one.
        times: the times of training.
    """

    def __init__(self, first: int, last: int, times: TimeDistribution | None = None) -> None:
        super().__init__(times=times)
        self.first, self.last, self._calls, self._bad = first, last, 0, set()

    def __call__(self, score, x, cond=None):
        self._calls += torch.is_grad_enabled()
        losses = super().__call__(Remembering(score, self), x, cond)
        if torch.is_grad_enabled() and self.first <= self._calls <= self.last:
            self._bad.add(float(x.sum()))
        if float(x.sum()) in self._bad:
            losses = torch.where(score.process.sigma(self.t) < 0.04, torch.nan, losses)
        return losses


class Remembering:
    """A score that gives the objective the times at which it was evaluated."""

    def __init__(self, score, objective):
        self._score, self._objective, self.process = score, objective, score.process

    def __call__(self, x, t, cond=None):
        self._objective.t = t
        return self._score(x, t, cond)


class Reckless(AnnealedLangevin):
    """Its steps may be as large as they like: the chain explodes."""

    def check(self, process):
        """All is well."""
