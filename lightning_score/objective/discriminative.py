"""Direct discriminative optimization: a trained model as the discriminator between data and its own samples."""

import math
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.data.batches import Transform
from lightning_score.data.sample_files import read_conditions, read_samples
from lightning_score.errors import InputError, require
from lightning_score.files import LocalPath
from lightning_score.objective.denoising import DenoisingScoreMatching
from lightning_score.objective.times import TimeDistribution
from lightning_score.objective.weighting import Weighting
from lightning_score.score.function import ScoreField, ScoreFunction

if TYPE_CHECKING:
    from lightning_score.data import ScoreData


class DirectDiscriminative(DenoisingScoreMatching):
    """-E_t,z [E_data log s(beta d(x)) + alpha E_samples log s(-beta d(x))] with the logistic function s and

        d(x) = -lambda(t) (|score(x_t, t) + z/sigma|^2 - |reference(x_t, t) + z/sigma|^2),

    which estimates log p(x)/p_reference(x) from one time and noise: direct discriminative optimization, DDO (Zheng et al.
    2025, 2503.01103). The likelihood ratio of the model and a reference, the weights from which it starts, is a
    discriminator between data and samples of the reference; by Jensen's inequality this bounds its loss. For alpha = 1 and
    exact ratios the minimum is p_data^(1/beta) p_reference^(1 - 1/beta), normalized: with beta < 1 it is beyond the law of
    the data and less diverse, so a round has few steps. The next round starts from its weights and from new samples.

    The mean of d over times of `Likelihood` is twice the log ratio. Published are `EDMWeighting`, beta from 0.01 to 0.1,
    alpha from 0.5 to 6, no dropout and no mixed precision. While the network is in evaluation mode, as in validation, the
    loss is that of denoising score matching of the data.

    Args:
        samples: a file of `predict` with samples of the model from which training starts, as samples.npz, or a folder or
            zip of images; with labels if the model is conditional.
        alpha: the weight of the samples.
        beta: how much of the log-likelihood ratio the discriminator sees.
        weighting: lambda(t); sigma^2 by default.
        times: the law of t; uniform by default.

    Raises:
        InputError: alpha or beta is not above 0; in training, the samples are missing or do not fit the data, the network
            has dropout, or training starts from random weights.
    """

    refines, leaves_out_missing = True, False
    _reference: ScoreFunction | None = None
    _samples: Tensor
    _conditions: Tensor | None = None
    _transform: Transform

    def __init__(
        self,
        samples: LocalPath | None = None,
        alpha: float = 1.0,
        beta: float = 0.05,
        weighting: Weighting | None = None,
        times: TimeDistribution | None = None,
    ):
        super().__init__(weighting, times)
        require(0 < alpha < math.inf, f"alpha={alpha}: must be above 0 and finite, as in 1")
        require(0 < beta < math.inf, f"beta={beta}: must be above 0 and finite, as in 0.05")
        require(self.learned is None, f"weighting={type(self.weighting).__name__}: must not be learned; use EDMWeighting")
        self.samples, self.alpha, self.beta = samples, alpha, beta

    def receive(self, data: "ScoreData | None") -> None:
        """Reads the samples."""
        if self.samples is None or data is None:
            raise InputError(
                "objective=DirectDiscriminative: needs samples of the model from which training starts, and a data module; "
                "draw them with predict, and give --model.objective.samples FOLDER/samples.npz"
            )
        self._samples, self._transform = read_samples(Path(self.samples), data), data.transform(train=False)
        self._conditions = read_conditions(Path(self.samples), data)

    def begin(self, score: ScoreFunction) -> None:
        """Keeps a frozen copy of the score function, the reference."""
        dropout = max((module.p for module in score.modules() if isinstance(module, nn.Dropout)), default=0.0)
        require(
            dropout == 0, f"dropout={dropout}: must be 0 with objective=DirectDiscriminative; set model.network.dropout=0"
        )
        if score.condition is not None:
            found = self._conditions
            if found is None or len(found) != len(self._samples):
                raise InputError(f"{self.samples}: must hold the label or condition of each sample; draw them with predict")
            score.condition.check(found)
        self._reference = deepcopy(score).requires_grad_(False).eval()

    def __call__(self, score: ScoreField, x: Tensor, cond: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        if not score.training:
            return super().__call__(score, x, cond, known)
        process = score.process
        samples, labels = self.draw(x, cond, score)
        t, z = self.times.sample(process, x), torch.randn_like(x)
        of_data = F.softplus(-self.beta * self.log_ratio(score, x, t, z, cond))
        of_samples = F.softplus(self.beta * self.log_ratio(score, samples, t, z, labels))
        return self.times.importance(process, t).to(x.dtype) * (of_data + self.alpha * of_samples)

    def log_ratio(self, score: ScoreField, x: Tensor, t: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """d(x) of each example x (B, ...), (B,), from its time t (B,) and noise (B, ...)."""
        if self._reference is None:
            raise InputError("objective=DirectDiscriminative: has no reference; train with a trainer, or call begin first")
        x_t = score.process.perturb(x, t, noise)
        with torch.no_grad():
            before = self.at(self._reference.to(x.device), x_t, t, noise, cond)
        return 2 * self.weighting(score.process, t).to(x.dtype) * (before - self.at(score, x_t, t, noise, cond))

    def draw(self, like: Tensor, cond: Tensor | None, score: ScoreField) -> tuple[Tensor, Tensor | None]:
        """As many samples of the reference as there are data, with conditions, which are dropped where those are."""
        self._samples = self._samples.to(like.device)
        rows = torch.randint(len(self._samples), (len(like),), device=like.device)
        samples = self._transform(self._samples[rows]).to(like.dtype)
        if self._conditions is None or cond is None or score.condition is None:
            return samples, None
        self._conditions = self._conditions.to(like.device)
        labels = self._conditions[rows].to(cond.dtype)
        dropped = score.condition.is_empty(cond).reshape(-1, *[1] * (labels.ndim - 1))
        return samples, torch.where(dropped, score.condition.empty(1, like.device).to(cond.dtype), labels)
