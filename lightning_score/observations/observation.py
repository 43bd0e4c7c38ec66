"""An observation: an operator, its noise and what was observed."""

from typing import NamedTuple

from torch import Tensor

from lightning_score.observations.base import Operator
from lightning_score.observations.noise import ObservationNoise


class Observation(NamedTuple):
    """y = A(x_0) with noise, one for each row of a batch.

    Fields: operator (A), noise (the law of y given A(x_0)), y (B, ...).
    """

    operator: Operator
    noise: ObservationNoise
    y: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(y given x_0 = x) up to a constant, (B,), for x (B, *shape)."""
        return self.noise.log_prob(self.y.to(x), self.operator.apply(x))
