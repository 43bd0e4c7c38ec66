"""The interface of guidance: a score function made from another one and from knowledge of the sample."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.score.function import ScoreField
from lightning_score.score.guided import Within

if TYPE_CHECKING:
    from lightning_score.guidance.observed import ObservationGuidance

LARGEST = 1e6
"""The largest scale of an extrapolation; far larger ones exceed single precision."""


class ModelFacts(NamedTuple):
    """Facts about the model that a guidance checks.

    Fields: shape (of one sample), num_classes (of the data; 0 for other conditions), conditional (the network is given a
    condition), label_dropout (the probability of training without it), compiled (torch.compile compiles the network).
    """

    shape: tuple[int, ...]
    num_classes: int
    conditional: bool
    label_dropout: float
    compiled: bool = False


class OtherModel(NamedTuple):
    """Another model that a guidance uses.

    Fields: score, data_range (lowest and highest value of the data that it was trained on; None if they have none).
    """

    score: ScoreField
    data_range: tuple[float, float] | None


class Guidance(ABC):
    """Turns a score function into that of p_t(x given y), y a condition or an observation, about in proportion to a scale.

    At every time the guided score is score(x, t) + scale grad log p(y given x_t). For scale 1 that is the score of p_t(x
    given y). For any other scale it is not the score of the noised p_0(x) p_0(y given x)^scale, for noising and tilting do
    not commute: the samples are drawn towards y, but do not follow that law (nor is it a law that depends on the scale
    alone: it varies with the sampler).
    """

    labeled: bool = False
    """Whether the samples need a label even where the network takes none."""

    innermost: bool = False
    """Whether it must be applied to the model's own score, before any other guidance."""

    interval: Sequence[float] | None = None
    """The noise levels sigma/alpha, low and high, between which it guides; None: at all."""

    def check(self, trained: ModelFacts) -> None:
        """Raises `InputError` if the guidance does not fit the model."""

    def load_models(self, load: Callable[[str], OtherModel]) -> None:
        """Loads the other models that it uses, if any, by `load(path)`."""

    def check_range(self, data_range: tuple[float, float] | None) -> None:
        """Raises `InputError` if another model that it uses was trained on data of another range."""

    def observing(self) -> "list[ObservationGuidance]":
        """The guidances by observations in it."""
        return []

    def observe_with(self, y: Tensor, samples_per_observation: int = 1) -> "Guidance":
        """A copy whose guidances by observations have other ones, in the model's units: sample k has y[k //
        samples_per_observation mod n].
        """
        return self

    @abstractmethod
    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        """The guided score of a batch; it is called with the conditions of the rows as any score is.

        Args:
            score: the score function that is guided.
            indices: the number k of the sample in each row, int64 (B,), which selects its observation.
        """

    def within(self, score: ScoreField, guided: ScoreField) -> ScoreField:
        """The guided score in the interval of noise levels, and the other one outside."""
        return guided if self.interval is None else Within(score, guided, *self.interval)


class Composed(Guidance):
    """Several guidances, applied in order: each guides the score that the previous one returns.

    Args:
        parts: the guidances, the one applied to the network first; a ClassifierFree must be the first.

    Raises:
        InputError: the list is empty, or a guidance that must be the first is not.
    """

    def __init__(self, parts: Sequence[Guidance]):
        require(len(parts) > 0, "parts=[]: must hold at least one guidance; for none, set guidance: null")
        late = [type(part).__name__ for part in parts[1:] if part.innermost]
        require(
            not late, f"{', '.join(late)} must be the first part of a Composed, and there can be only one: reorder parts"
        )
        self.parts = parts
        self.labeled = any(part.labeled for part in parts)
        self.innermost = parts[0].innermost

    def check(self, trained: ModelFacts) -> None:
        for part in self.parts:
            part.check(trained)

    def load_models(self, load: Callable[[str], OtherModel]) -> None:
        for part in self.parts:
            part.load_models(load)

    def check_range(self, data_range: tuple[float, float] | None) -> None:
        for part in self.parts:
            part.check_range(data_range)

    def observing(self) -> "list[ObservationGuidance]":
        return [found for part in self.parts for found in part.observing()]

    def observe_with(self, y: Tensor, samples_per_observation: int = 1) -> "Composed":
        return Composed([part.observe_with(y, samples_per_observation) for part in self.parts])

    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        for part in self.parts:
            score = part.guide(score, indices)
        return score


def checked(interval: Sequence[float] | None) -> Sequence[float] | None:
    """An interval of noise levels; raises `InputError` unless it is one."""
    require(
        interval is None or (len(interval) == 2 and 0 <= interval[0] < interval[1]),
        f"interval={interval}: must be two increasing noise levels sigma/alpha from 0 on, as [0.2, 2], or null",
    )
    return interval


def require_cond(cond: Tensor | None, name: str) -> Tensor:
    """The conditions `cond`; raises `InputError` if there are none, with the `name` of the guidance."""
    if cond is None:
        raise InputError(f"guidance={name}: needs a condition per sample, and the score is called with cond=None")
    return cond
