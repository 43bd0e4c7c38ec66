"""What predictors and correctors have in common."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource
from lightning_score.score.function import ScoreField


class SamplerStep(ABC):
    """One kind of step of a sampler; the constructor holds its settings, `step` does the work."""

    evaluations: int
    """Score evaluations of a step."""

    batch_independent: bool = True
    """Whether a sample does not depend on the others of its batch."""

    min_dimension: int = 1
    """The smallest number of entries of a sample for which the step is valid."""

    def check(self, process: NoiseProcess, times: Tensor) -> None:
        """Raises `InputError` if the step cannot be used with the process on a grid of decreasing times (N + 1,)."""

    def evaluated(self, process: NoiseProcess, times: Tensor) -> Tensor:
        """The times at which the step may evaluate the score on a grid of times (N + 1,); by default those of the grid."""
        return times

    def init(self, process: NoiseProcess, times: Tensor) -> Any:
        """The state at the first step on a grid of decreasing times (N + 1,); None by default."""
        return None

    @abstractmethod
    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        """One step.

        Args:
            score: the score function.
            x: samples of p_t, (B, ...).
            t: a time of the grid, ().
            s: the time next to it on the grid, ().
            noise: the random numbers.
            state: what `init` or the step before has returned.

        Returns:
            The new samples and the new state.
        """
