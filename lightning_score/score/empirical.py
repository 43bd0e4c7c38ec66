"""The exact score of a finite data set: what a network of unlimited capacity would learn from it."""

import torch
from torch import Tensor

from lightning_score.errors import require
from lightning_score.process import NoiseProcess
from lightning_score.score.function import ScoreField
from lightning_score.tensors import broadcast_to, without_missing

BLOCK = 2**22  # distances in memory at once
LARGEST = 1e30  # variance of the noise, for that of noise alone


class EmpiricalScore(ScoreField):
    """The score of q_t(x) = 1/M sum_m N(x; alpha x_m, sigma^2 I), the law of M data points under a process.

    score = (alpha E[x_0 given x_t = x] - x)/sigma^2 with E[x_0 given x_t = x] = sum_m w_m x_m and
    w = softmax_m(-|x - alpha x_m|^2/(2 sigma^2)) (Karras et al. 2022, 2206.00364, appendix B.3). Distances are computed from
    products in double precision, and the points are taken in blocks, so that memory does not grow with M.

    Where entries of points are missing, and taken as 0, entry i of the score uses the points in which it is known, each with
    weight w_m over the fraction of its entries that are known: the minimizer of the losses without the missing entries.

    Args:
        process: the noise process.
        data: the points x_m (M, ...), NaN where entries are missing.
        labels: class labels (M,): the label `cond` selects the points of its class, or all if no point has it; None: `cond`
            is ignored.

    Raises:
        InputError: without data, or if data and labels differ in number.
    """

    data: Tensor
    counted: Tensor | None
    labels: Tensor | None
    evaluations = 0

    def __init__(self, process: NoiseProcess, data: Tensor, labels: Tensor | None = None):
        super().__init__(process)
        require(len(data) >= 1, "data of length 0: must hold at least one point")
        require(
            labels is None or len(labels) == len(data),
            f"labels of length {0 if labels is None else len(labels)}: must be as many as the {len(data)} points",
        )
        filled, known = without_missing(data)
        complete, known = bool(known.all()), known.flatten(1).to(data.dtype)
        self.register_buffer("data", data if complete else filled, persistent=False)
        self.register_buffer(
            "counted",
            None if complete else known / known.mean(1, keepdim=True).clamp(min=1 / known.shape[1]),
            persistent=False,
        )
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = broadcast_to(self.process.alpha(t), x), broadcast_to(self.process.sigma(t), x)
        return (alpha * self.denoised(x, t, cond) - x) / sigma**2

    def denoised(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """sum_m w_m x_m, with |x - alpha x_m|^2/(2 sigma^2) = |y - x_m|^2/(2 s^2), y = x/alpha, s = sigma/alpha."""
        self.evaluations += len(x)
        precise = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            alpha = self.process.alpha(t)
            alpha = alpha.where(alpha > 0, torch.inf)  # where alpha = 0 all points weigh the same
            y = (x.to(precise) / broadcast_to(alpha, x).to(precise)).flatten(1)
            variance = (-self.process.log_snr(t)).exp().to(precise).clamp(max=LARGEST).expand(len(x)).unsqueeze(1)
            return self._mean(y, variance, cond).reshape(x.shape).to(x.dtype)

    def _mean(self, y: Tensor, variance: Tensor, cond: Tensor | None) -> Tensor:
        """The mean of the data under the softmax, (B, D), by blocks, with the largest logit so far subtracted."""
        top = y.new_full((len(y), 1), torch.finfo(y.dtype).min)
        total, mean = torch.zeros_like(top), torch.zeros_like(y)
        classes = None
        if self.labels is not None and cond is not None:
            classes = self.labels, cond.unsqueeze(1), torch.isin(cond, self.labels).unsqueeze(1)
        for rows in torch.arange(len(self.data), device=y.device).split(max(1, BLOCK // len(y))):
            points = self.data[rows].flatten(1).to(y)
            logits = -(_distances(y, points) ** 2) / (2 * variance)
            if classes is not None:
                labels, wanted, exists = classes
                logits = logits.masked_fill((labels[rows] != wanted) & exists, -torch.inf)
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            shrink, weights = (top - higher).exp(), (logits - higher).exp()
            if self.counted is None:
                counts = weights.sum(1, keepdim=True)
            else:
                counted = self.counted[rows].to(y)
                counts, points = weights @ counted, points * counted
            top, total = higher, total * shrink + counts
            mean = mean * shrink + weights @ points
        return mean / total.clamp(min=torch.finfo(y.dtype).tiny)  # 0 for an entry that is known in no point near by


def _distances(y: Tensor, points: Tensor) -> Tensor:
    """|y_i - x_j| of y (B, D) and points x (M, D): (B, M), by products in double precision, which MPS does not have."""
    if y.device.type == "mps":
        return torch.cdist(y, points, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cdist(y.double(), points.double(), compute_mode="use_mm_for_euclid_dist").to(y.dtype)
