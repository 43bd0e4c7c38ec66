"""Scores made of two others: extrapolated from one to the other, or one within an interval of noise levels."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_score.score.function import ScoreField, ScoreWrapper
from lightning_score.tensors import Scale, broadcast_to

Evaluate = Callable[..., Tensor]
"""A function of a score and of arguments x, t, cond and others, which is affine in the score."""


class MadeOfTwo(ScoreWrapper, ABC):
    """A score made of two others; its denoised image is made in the same way of theirs.

    Args:
        score: one of the two, or the score function of which both are made.
    """

    @abstractmethod
    def made(self, evaluate: Evaluate, x: Tensor, t: Tensor, cond: Tensor | None, *scales: Scale) -> Tensor:
        """What is made of `evaluate(score, x, t, cond, *scales)` of the two scores, like x.

        Args:
            evaluate: the function.
            x: (B, ...).
            t: () or (B,).
            cond: (B, ...) or None.
            scales: further arguments, () or (B,).
        """

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.made(lambda score, *arguments: score(*arguments), x, t, cond)

    def combination(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *, x_scale: Scale, score_scale: Scale) -> Tensor:
        return self.made(_combination, x, t, cond, x_scale, score_scale)

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.made(lambda score, *arguments: score.denoised(*arguments), x, t, cond)


def _combination(score: ScoreField, x: Tensor, t: Tensor, cond: Tensor | None, x_scale: Scale, score_scale: Scale) -> Tensor:
    return score.combination(x, t, cond, x_scale=x_scale, score_scale=score_scale)


class Extrapolated(MadeOfTwo, ABC):
    """first + scale (second - first) of two scores, and the same of their denoised images.

    Args:
        score: the score function of which the second one is made, or which it is.
        scale: 0 is the first score, 1 the second, and more lies beyond it.
    """

    def __init__(self, score: ScoreField, scale: float):
        super().__init__(score)
        self.scale = scale

    @abstractmethod
    def both(self, evaluate: Evaluate, x: Tensor, t: Tensor, cond: Tensor | None, *scales: Scale) -> list[Tensor]:
        """`evaluate(score, x, t, cond, *scales)` of the first and the second score, with the arguments of `made`."""

    def made(self, evaluate: Evaluate, x: Tensor, t: Tensor, cond: Tensor | None, *scales: Scale) -> Tensor:
        first, second = self.both(evaluate, x, t, cond, *scales)
        return torch.lerp(first, second, self.scale)


class Within(MadeOfTwo):
    """A guided score at the noise levels low < sigma/alpha <= high, and the score without guidance at all others.

    Kynkaanniemi et al. 2024 (2404.07724), eq. 5. At a time of shape () one of the two is evaluated; of times (B,) of which
    some lie within, both are.

    Args:
        score: the score without guidance.
        guided: that with it.
        low: sigma/alpha, 0 or more.
        high: sigma/alpha, above low; may be infinite.
    """

    def __init__(self, score: ScoreField, guided: ScoreField, low: float, high: float):
        super().__init__(score)
        self.guided, self.low, self.high = guided, low, high

    def inside(self, t: Tensor) -> Tensor:
        """Whether times, () or (B,), lie within."""
        level = self.process.noise_level(t)
        return (level > self.low) & (level <= self.high)

    def made(self, evaluate: Evaluate, x: Tensor, t: Tensor, cond: Tensor | None, *scales: Scale) -> Tensor:
        inside = self.inside(t)
        if inside.all():
            return evaluate(self.guided, x, t, cond, *scales)
        plain = evaluate(self.score, x, t, cond, *scales)
        if not inside.any():
            return plain
        return torch.where(broadcast_to(inside, plain).bool(), evaluate(self.guided, x, t, cond, *scales), plain)
