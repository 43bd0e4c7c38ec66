"""Exact scores and classifiers of a mixture whose modes are the classes."""

import torch
from conftest import times
from torch import nn

from lightning_score.data import Mixture
from lightning_score.score.function import ScoreField
from lightning_score.tensors import broadcast_to

MODES = Mixture([[-1.0, 0.5], [1.0, 0.0], [0.3, 1.2]], [0.3, 0.5, 0.4], [0.5, 0.2, 0.3])
PURE = [Mixture([mean], [std]) for mean, std in zip(MODES.means.tolist(), MODES.stds.tolist(), strict=True)]


class LabeledScore(ScoreField):
    """The exact s(x given y) of a mixture whose modes are the classes; label 3, or none, is s(x)."""

    def __init__(self, process):
        super().__init__(process, num_classes=3)
        self.calls = self.evaluations = 0

    def forward(self, x, t, cond=None):
        self.calls, self.evaluations = self.calls + 1, self.evaluations + len(x)
        alpha, sigma = (broadcast_to(f(t), x[:, 0]) for f in (self.process.alpha, self.process.sigma))
        scores = torch.stack([law.score(x, alpha, sigma) for law in (*PURE, MODES)])
        cond = torch.full((len(x),), 3) if cond is None else cond
        return scores[cond, torch.arange(len(x))]


class ExactClassifier(nn.Module):
    """log p(y given x_t) of the mixture, up to a constant per row."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, t):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        log_w = MODES.weights.to(x).log()
        return torch.stack([log_w[k] + law.log_prob(x, alpha, sigma) for k, law in enumerate(PURE)], -1)


def rows(n=60):
    """Points, times and labels, float64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, dtype=torch.float64, generator=generator), times(n), torch.arange(n) % 3
