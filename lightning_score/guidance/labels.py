"""Guidance by conditions without a classifier, and by class labels with one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.errors import InputError, require
from lightning_score.guidance.base import LARGEST, Guidance, ModelFacts, checked, require_cond
from lightning_score.score.function import ScoreField, ScoreWrapper
from lightning_score.score.guided import Evaluate, Extrapolated
from lightning_score.tensors import Scale, differentiated


class ClassifierFree(Guidance):
    """The score away from "no condition" and towards the condition: s(x) + scale (s(x given y) - s(x)).

    Ho and Salimans 2022 (2207.12598), eq. 6, with scale = 1 + their w; both scores come from one batched network call, so
    that a sample costs twice the evaluations, in the interval. Scale 0 is unconditional; scale 1 is conditional, at no extra
    cost.

    Args:
        scale: 0 or more; the higher, the more typical of their condition, and the less diverse, are the samples.
        interval: noise levels sigma/alpha between which it guides; outside the score is conditional. null: at all.

    Raises:
        InputError: scale or interval is out of range; in `check`: the model has no unconditional score.
    """

    innermost = True

    def __init__(self, scale: float = 2.0, interval: Sequence[float] | None = None):
        require(
            0 <= scale <= LARGEST, f"scale={scale}: must be 0 (unconditional) or more, up to {LARGEST:g}; 1: conditional"
        )
        self.scale, self.interval = scale, checked(interval)

    def check(self, trained: ModelFacts) -> None:
        require(
            trained.conditional,
            "guidance=ClassifierFree: the model is not conditional; train it with conditional=true and "
            "label_dropout=0.1, or set guidance: null",
        )
        require(
            trained.label_dropout > 0 or self.scale == 1,
            f"guidance=ClassifierFree, scale={self.scale}: it was trained with every condition (label_dropout=0) and "
            "has no unconditional score; train it with label_dropout=0.1, or set scale=1",
        )

    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        return score if self.scale == 1 else self.within(score, _ClassifierFreeScore(score, self.scale))


class _ClassifierFreeScore(Extrapolated):
    """s(x) + scale (s(x given y) - s(x))."""

    def both(self, evaluate: Evaluate, x: Tensor, t: Tensor, cond: Tensor | None, *scales: Scale) -> list[Tensor]:
        cond = require_cond(cond, "ClassifierFree")
        if self.condition is None:
            raise InputError("guidance=ClassifierFree: the score takes no condition; use one that does")
        empty = self.condition.empty(len(cond), cond.device).to(cond.dtype)
        both = evaluate(self.score, torch.cat([x, x]), _twice(t), torch.cat([empty, cond]), *map(_twice, scales))
        return [*both.chunk(2)]


def _twice(coefficient: Any) -> Any:
    """A coefficient, () or (B,), for each of two batches."""
    return coefficient.repeat(2) if isinstance(coefficient, Tensor) and coefficient.ndim else coefficient


class ClassifierGuidance(Guidance):
    """The score plus the gradient of a classifier of noisy samples: s(x) + scale grad log p(y given x_t, t).

    Song et al. 2021 (2011.13456), eq. 14; Dhariwal and Nichol 2021 (2105.05233), algorithm 1, with their s = scale. The
    model may be trained with or without labels; other conditions need a guidance of their own.

    Args:
        classifier: called `classifier(x, t)` with x (B, ...) as noisy as p_t and t (B,); returns logits (B, num_classes).
        scale: the factor on the gradient, 0 or more.
        interval: noise levels sigma/alpha between which it guides; null: at all.

    Raises:
        InputError: scale or interval is out of range; in `check`: the data have no classes.
    """

    labeled = True

    def __init__(self, classifier: nn.Module, scale: float = 1.0, interval: Sequence[float] | None = None):
        require(0 <= scale <= LARGEST, f"scale={scale}: must be 0 (no guidance) or more, up to {LARGEST:g}, as in 1")
        self.classifier, self.scale, self.interval = classifier.eval().requires_grad_(False), scale, checked(interval)

    def check(self, trained: ModelFacts) -> None:
        require(trained.num_classes > 0, "guidance=ClassifierGuidance: takes class labels, which the data do not have; set "
                "guidance: null")  # fmt: skip

    def guide(self, score: ScoreField, indices: Tensor) -> ScoreField:
        return self.within(score, _ClassifierScore(score, self.classifier.to(indices.device), self.scale))


class _ClassifierScore(ScoreWrapper):
    """s(x) + scale grad log p(y given x_t, t); the label "no class" has probability one."""

    def __init__(self, score: ScoreField, classifier: nn.Module, scale: float):
        super().__init__(score)
        self.classifier, self.scale = classifier, scale

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        keep, labels = differentiated(x), require_cond(cond, "ClassifierGuidance")
        with torch.inference_mode(False), torch.enable_grad():
            # clones, because autograd accepts no tensors of inference mode
            x_t, time = x.clone().requires_grad_(), t.clone().to(x.dtype).expand(len(x))
            log_p = F.pad(self.classifier(x_t, time).log_softmax(-1), (0, 1)).gather(1, labels.clone().unsqueeze(1))
            (gradient,) = torch.autograd.grad(log_p.sum(), x_t, create_graph=keep)
        return self.score(x, t, cond) + self.scale * gradient
