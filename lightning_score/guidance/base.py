"""What guidance is: a score function made of another one by what is known of the sample."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.score.function import ScoreField


class ModelFacts(NamedTuple):
    """What a guidance must know of the model: the shape of a sample, the data's classes, how labels were trained.

    Fields: shape (of one sample), num_classes (of the data), conditional (the network is given labels), label_dropout
    (how often training left the label out).
    """

    shape: tuple[int, ...]
    num_classes: int
    conditional: bool
    label_dropout: float


class Guidance(ABC):
    """Turns a score function into that of p_t(x given y), y a label or an observation, about in proportion to a scale.

    At every time the guided score is score(x, t) + scale grad log p(y given x_t). For scale 1 that is the score of p_t(x
    given y). For any other scale it is not the score of the noised p_0(x) p_0(y given x)^scale, for noising and tilting do
    not commute: the samples are drawn towards y, but do not follow that law (nor is it a law that depends on the scale
    alone: it varies with the sampler).
    """

    labeled: bool = False
    """Whether the samples need a label even where the network takes none."""

    innermost: bool = False
    """Whether it must be applied to the model's own score, before any other guidance."""

    def check(self, trained: ModelFacts) -> None:
        """Raises `InputError` if the guidance does not fit the model."""

    @abstractmethod
    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        """The guided score of a batch; it is called with the labels of the rows as any score is.

        Args:
            score: the score function that is guided.
            indices: the number k of the sample in each row, int64 (B,), by which a sample finds its own observation.
        """


class Composed(Guidance):
    """Several guidances, applied one after the other: the score that one makes is guided by the next.

    Args:
        parts: the guidances, the one nearest to the network first; a ClassifierFree can only be the first.

    Raises:
        InputError: there is none, or one that must be the first is not.
    """

    def __init__(self, parts: Sequence[Guidance]):
        require(len(parts) > 0, "parts=[]: a Composed needs at least one guidance; for none, guidance: null")
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

    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        for part in self.parts:
            score = part.guide(score, indices)
        return score


def tracked(x: Tensor | None) -> Tensor | None:
    """A copy that autograd can work with, also of a tensor made under inference mode; call it outside of that."""
    return x if x is None else x.clone()


def differentiated(x: Tensor) -> bool:
    """Whether someone further out differentiates what is computed from `x`, so that the graph must be kept."""
    return torch.is_grad_enabled() and x.requires_grad
