"""The interface of sampler steps, and the steps that are affine in x, the score and fresh noise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from lightning_score.process import NoiseProcess
from lightning_score.sampling.noise import NoiseSource
from lightning_score.score.function import ScoreField
from lightning_score.tensors import Scale, combine

Times = Sequence[Tensor]
"""Times, () each."""

Numbers = Sequence[Scale]
"""Coefficients: numbers, or in a graph tensors ()."""


class SamplerStep(ABC):
    """One kind of step of a sampler; the constructor holds its settings, `step` does the work."""

    evaluations: int
    """Score evaluations of a step."""

    batch_independent: bool = True
    """Whether a sample does not depend on the others of its batch."""

    needs_observation: bool = False
    """Whether the score must be that of a posterior."""

    min_dimension: int = 1
    """The smallest number of entries of a sample for which the step is valid."""

    def check(self, process: NoiseProcess, times: Tensor) -> None:
        """Raises `InputError` if the step cannot be used with the process on a grid of decreasing times (N + 1,)."""

    def evaluated(self, process: NoiseProcess, times: Tensor) -> Tensor:
        """The times at which the step may evaluate the score on a grid of times (N + 1,); by default those of the grid."""
        return times

    def init(self, process: NoiseProcess, times: Tensor) -> Any:
        """The state at the first step on a grid of decreasing times (N + 1,), which steps do not change; None by default."""
        return None

    move: Callable[..., Any] | None = None
    """What `step` does with score and samples, which can be compiled as a whole: a method `move(score, x, times, numbers,
    *given)` of times and coefficients, which change from step to step, and of tensors (B, ...) or constants `given`.
    """

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


class Move(NamedTuple):
    """One move of a sampler: `method.step` at time t, next to s on the grid, after which x is at time `end`."""

    method: SamplerStep
    t: Tensor
    s: Tensor
    end: Tensor


class Affine(NamedTuple):
    """x_scale, score_scale and std of a step x <- x_scale x + score_scale score + std z, each of the shape of the times."""

    x_scale: Scale
    score_scale: Scale
    std: Scale = 0.0


class AffineStep(SamplerStep, ABC):
    """x <- x_scale x + score_scale score + std z, with coefficients that depend on the times alone."""

    @abstractmethod
    def coefficients(self, process: NoiseProcess, t: Tensor, s: Tensor, state: Any) -> Affine:
        """The coefficients of the step at t (), next to s () on the grid; `state` is what `init` has returned."""

    def step(self, score: ScoreField, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        compute = partial(self.coefficients, score.process, state=state)
        numbers = score.process.numbers(self, compute, t, s)
        return self.move(score, x, [t], numbers, noise.normal() if numbers.std else None), state

    def move(self, score: ScoreField, x: Tensor, times: Times, numbers: Numbers, z: Tensor | None) -> Tensor:
        (t,), (x_scale, score_scale, std) = times, numbers
        x = score.combination(x, t, x_scale=x_scale, score_scale=score_scale) if self.evaluations else combine((x_scale, x))
        return x if z is None else combine((1.0, x), (std, z))
