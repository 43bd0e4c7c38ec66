"""What is kept of the samples of an evaluation, and every metric that is computed from it, on any number of processes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_score.errors import Unmeasurable
from lightning_score.estimates import Estimate
from lightning_score.metrics.features import Features
from lightning_score.metrics.frechet import frechet_estimate, frechet_infinity
from lightning_score.metrics.manifold import Manifold, clip_distance, inception_score, kernel_distance, manifold
from lightning_score.metrics.reference import Reference
from lightning_score.metrics.statistics import BLOCKS, FeatureSums, KeptFeatures, block_of

KINDS = ("fid", "fid_infinity", "cmmd", "cmmd_infinity", "is", "kid", *Manifold._fields)
"""The metrics that `MetricTotals.measure` may return."""

KEPT = 10_000
"""Most samples whose features are stored, for the metrics that need them: the first ones."""

NEIGHBORS = 3
"""The k of precision, recall, density and coverage."""


class Totals(ABC):
    """What is kept of the samples of an evaluation: tensors that are 0 where this process has added nothing, so that those
    of all processes add up.
    """

    @abstractmethod
    def update(self, numbers: Sequence[int], samples: Tensor) -> None:
        """Adds the samples with these numbers, in the form of the data's `reference()`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors themselves, by name."""

    def reduce(self, trainer: Trainer, device: torch.device) -> None:
        """Sums over all processes, on each of them."""
        for each in self.tensors().values():
            each.copy_(trainer.strategy.reduce(each.to(device), reduce_op="sum"))

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors."""
        return {name: each.cpu() for name, each in self.tensors().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Resumes from a saved state."""
        for name, each in self.tensors().items():
            each.copy_(state[name])


class KeptSamples(Totals):
    """The first samples themselves.

    Args:
        n: how many.
        like: examples in the form of the data's `reference()`, (N, *shape).
    """

    def __init__(self, n: int, like: Tensor) -> None:
        dtype = torch.int32 if like.dtype == torch.uint16 else like.dtype  # which processes can sum
        self.samples = torch.zeros(n, *like.shape[1:], dtype=dtype)

    def update(self, numbers: Sequence[int], samples: Tensor) -> None:
        rows = torch.as_tensor(numbers)
        first = rows < len(self.samples)
        self.samples[rows[first]] = samples[first.to(samples.device)].cpu().to(self.samples.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"samples": self.samples} if len(self.samples) else {}


class MetricTotals(Totals):
    """The sums of the features of an evaluation's samples, and features and logits of the first ones.

    Args:
        features: the feature extractor.
        n: number of samples.
        device: device of the sums.
    """

    def __init__(self, features: Features, n: int, device: torch.device) -> None:
        self.features, self.n = features, n
        self.sums = FeatureSums(features.num_features, min(BLOCKS, n), sync_on_compute=False).to(device)
        self.kept = torch.zeros(min(n, KEPT), features.num_features)
        self.logits = torch.zeros(min(n, KEPT), features.num_logits)

    def update(self, numbers: Sequence[int], samples: Tensor) -> None:
        rows, found = torch.as_tensor(numbers), self.features(samples)
        self.sums.update(found.features, block_of(rows, self.n, self.sums.blocks))
        first = rows < len(self.kept)
        self.kept[rows[first]] = found.features[first.to(found.features.device)].float().cpu()
        self.logits[rows[first]] = found.logits[first.to(found.logits.device)].float().cpu()

    def tensors(self) -> dict[str, Tensor]:
        sums = {name: getattr(self.sums, name) for name in self.sums.metric_state}
        return {**sums, "kept": self.kept, "logits": self.logits}

    def measure(self, real: Reference, all_metrics: bool, fid_infinity: bool = False) -> dict[str, Estimate]:
        """The metrics by their kinds: those that `fit` measures, and the others that the features and n allow.

        Args:
            real: the reference of the data.
            all_metrics: all, with the error of the Frechet distance; else those of `fit`, with it where that is quick.
            fid_infinity: also the distances extrapolated to infinitely many samples.

        Raises:
            Unmeasurable: one of them is not finite.
        """
        try:
            found = self._distances(real, all_metrics, fid_infinity)
            found |= self._others(real) if all_metrics else {}
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # missing in torch's stubs
            raise Unmeasurable(f"the distance cannot be computed: {error}") from error
        wrong = [f"{kind} is {estimate.value:g}" for kind, estimate in found.items() if not math.isfinite(estimate.value)]
        if wrong:
            raise Unmeasurable(f"{', '.join(wrong)}: the features of the samples are not finite, or all the same")
        return found

    def _distances(self, real: Reference, all_metrics: bool, infinity: bool) -> dict[str, Estimate]:
        few = len(self.kept) <= min(KEPT, self.sums.num_features)
        samples = KeptFeatures(self.kept.to(self.sums.count.device), self.sums.blocks) if few else self.sums
        quick = self.sums.num_features <= 256
        numbers = {"fid": frechet_estimate(real.statistics, samples, error=all_metrics or quick)}
        infinity = infinity and all_metrics
        if infinity and numbers["fid"].jackknife:
            numbers["fid_infinity"] = frechet_infinity(numbers["fid"], samples.count)
        kept, fake = self._comparable(real)
        if "cmmd" in self.features.measured and len(kept) >= 2:
            numbers["cmmd"], limit = clip_distance(kept, fake)
            numbers |= {"cmmd_infinity": limit} if infinity else {}
        return numbers

    def _others(self, real: Reference) -> dict[str, Estimate]:
        numbers = {"is": inception_score(self.logits)} if self.logits.shape[1] > 0 else {}
        kept, fake = self._comparable(real)
        if min(len(kept), len(fake)) > NEIGHBORS:
            numbers["kid"] = kernel_distance(kept, fake)
            found = manifold(kept, fake, NEIGHBORS)
            numbers |= {name: Estimate(value, math.nan) for name, value in found._asdict().items()}
        return numbers

    def _comparable(self, real: Reference) -> tuple[Tensor, Tensor]:
        """Features of at most as many examples as samples, and those of the samples."""
        return real.kept[: len(self.kept)], self.kept.to(real.kept.device)
