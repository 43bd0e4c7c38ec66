"""What predictors and correctors have in common."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseStream
from lightning_score.score.function import ScoreField


class SamplerStep(ABC):
    """One kind of move of a sampler; the constructor holds its settings, `step` does the work."""

    calls: int
    """Score evaluations of a step."""

    independent: bool = True
    """Whether a sample does not depend on its batch mates."""

    min_dimension: int = 1
    """The smallest number of entries of a sample for which the step is valid."""

    def check(self, process: NoiseProcess, times: Tensor) -> None:
        """Raises `InputError` if the method cannot be used with the process on a grid of decreasing times (N + 1,)."""

    def evaluated(self, process: NoiseProcess, times: Tensor) -> Tensor:
        """The times at which it may evaluate the score on a grid of times (N + 1,); by default those of the grid."""
        return times

    def init(self, process: NoiseProcess, times: Tensor) -> Any:
        """What the method remembers between its steps on a grid of decreasing times (N + 1,); nothing by default."""
        return None

    @abstractmethod
    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseStream, state: Any) -> tuple[Tensor, Any]:
        """Moves x (B, ...), a sample of p_t; t and s are neighboring times () of the grid. Returns x and state."""
