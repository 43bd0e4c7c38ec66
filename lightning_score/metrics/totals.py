"""Sums over samples from which every metric is computed, on any number of processes."""

import math
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_score.errors import Unmeasurable
from lightning_score.metrics.features import Activations, Features
from lightning_score.metrics.frechet import Estimate, frechet_estimate, frechet_infinity
from lightning_score.metrics.manifold import Manifold, inception_score, kernel_distance, manifold
from lightning_score.metrics.reference import Reference
from lightning_score.metrics.statistics import BLOCKS, FeatureSums, KeptFeatures, block_of

KINDS = ("fid", "fid_infinity", "is", "kid", *Manifold._fields)
"""The metrics that `MetricTotals.measure` may return."""

KEPT = 10_000
"""Most samples whose features are stored, for the metrics that need them: the first ones."""

NEIGHBORS = 3
"""The k of precision, recall, density and coverage."""


class MetricTotals:
    """The sums of the features of an evaluation's samples, and features and logits of the first ones.

    Args:
        features: the feature extractor.
        n: number of samples.
        device: device of the sums.
    """

    def __init__(self, features: Features, n: int, device: torch.device) -> None:
        self.n = n
        self.sums = FeatureSums(features.num_features, min(BLOCKS, n), sync_on_compute=False).to(device)
        self.kept = torch.zeros(min(n, KEPT), features.num_features)
        self.logits = torch.zeros(min(n, KEPT), features.num_logits)

    def update(self, numbers: Sequence[int], activations: Activations) -> None:
        """Adds the samples with these numbers."""
        rows = torch.as_tensor(numbers)
        self.sums.update(activations.features, block_of(rows, self.n, self.sums.blocks))
        first = rows < len(self.kept)
        self.kept[rows[first]] = activations.features[first.to(activations.features.device)].float().cpu()
        self.logits[rows[first]] = activations.logits[first.to(activations.logits.device)].float().cpu()

    def measure(self, real: Reference, all_metrics: bool, fid_infinity: bool = False) -> dict[str, Estimate]:
        """The metrics by their kinds: the Frechet distance, and the others that the features and n allow.

        Args:
            real: the reference of the data.
            all_metrics: all, with the error of the distance; else the distance alone, with its error where that is quick.
            fid_infinity: also the distance extrapolated to infinitely many samples.

        Raises:
            Unmeasurable: one of them is not finite.
        """
        try:
            found = self._measure(real, all_metrics, fid_infinity)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # missing in torch's stubs
            raise Unmeasurable(f"the distance cannot be computed: {error}") from error
        wrong = [f"{kind} is {estimate.value:g}" for kind, estimate in found.items() if not math.isfinite(estimate.value)]
        if wrong:
            raise Unmeasurable(f"{', '.join(wrong)}: the features of the samples are not finite, or all the same")
        return found

    def _measure(self, real: Reference, all_metrics: bool, fid_infinity: bool) -> dict[str, Estimate]:
        few = len(self.kept) <= min(KEPT, self.sums.num_features)
        samples = KeptFeatures(self.kept, self.sums.blocks) if few else self.sums
        quick = self.sums.num_features <= 256
        numbers = {"fid": frechet_estimate(real.statistics, samples, error=all_metrics or quick)}
        if not all_metrics:
            return numbers
        if fid_infinity and numbers["fid"].jackknife:
            numbers["fid_infinity"] = frechet_infinity(numbers["fid"], samples.count)
        if self.logits.shape[1] > 0:
            numbers["is"] = inception_score(self.logits)
        kept = real.kept.to(self.kept.device)[: len(self.kept)]
        if min(len(kept), len(self.kept)) > NEIGHBORS:
            numbers["kid"] = kernel_distance(kept, self.kept)
            found = manifold(kept, self.kept, NEIGHBORS)
            numbers |= {name: Estimate(value, math.nan) for name, value in found._asdict().items()}
        return numbers

    def reduce(self, trainer: Trainer) -> None:
        """Sums over all processes, on each of them."""
        for name in self.sums.metric_state:
            setattr(self.sums, name, trainer.strategy.reduce(getattr(self.sums, name), reduce_op="sum"))
        device = self.sums.count.device
        self.kept = trainer.strategy.reduce(self.kept.to(device), reduce_op="sum")
        self.logits = trainer.strategy.reduce(self.logits.to(device), reduce_op="sum")

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors."""
        sums = {name: getattr(self.sums, name).cpu() for name in self.sums.metric_state}
        return {**sums, "kept": self.kept, "logits": self.logits}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Resumes from a saved state."""
        for name in self.sums.metric_state:
            getattr(self.sums, name).copy_(state[name])
        self.kept, self.logits = state["kept"].clone(), state["logits"].clone()
