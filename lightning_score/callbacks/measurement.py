"""What an evaluation measures: from the sums over samples to records with their provenance, and from these to the logs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_score.callbacks.base import writes_files
from lightning_score.callbacks.distances import publish_curves, record_of
from lightning_score.callbacks.sampling_pass import SamplingResult
from lightning_score.data import ScoreData
from lightning_score.estimates import Estimate, pooled
from lightning_score.metrics import Features, ReferenceFile
from lightning_score.metrics.manifold import clip_floor
from lightning_score.metrics.reference import Reference
from lightning_score.metrics.summaries import DistanceTotals, Summaries
from lightning_score.metrics.totals import KEPT, KINDS, MetricTotals, Totals
from lightning_score.runs.records import FILE, PERFECT, Record, append_record, metric_name, settings_of


@dataclass(frozen=True)
class Measurement:
    """One metric of the samples of one or more seeds.

    Attributes:
        kind: fid, kid, ...
        records: the numbers with their provenance, one for each seed.
        mean: their mean, with its standard error and the time of all seeds.
    """

    kind: str
    records: list[Record]
    mean: Record

    @property
    def name(self) -> str:
        """The name under which the mean is logged: the metric, with `_noisy` for the samples before the final denoising
        step, and with `_raw_weights` for the weights that are not averaged.
        """
        ending = "" if self.mean.denoised else "_noisy"
        return self.mean.metric + ending + ("_raw_weights" if self.mean.weights == "raw" else "")

    def log_entries(self) -> dict[str, float]:
        """The mean and, where they are known, its error, its floor and the number of samples, by their names."""
        values = {"": self.mean.value, "_error": self.mean.error}
        if self.kind == "fid" or self.mean.floor is not None:
            values |= {"_floor": self.mean.floor, "_n": float(self.mean.n)}
        return {self.name + ending: value for ending, value in values.items() if value is not None and not math.isnan(value)}


def blank_record(data: ScoreData, step: int, n: int) -> Record:
    """A record of the weights of a training step, without a number: what a measurement does not replace stays.

    Args:
        data: the data.
        step: the training step.
        n: number of samples.
    """
    return Record(
        metric="",
        value=math.nan,
        floor_kind=PERFECT,
        n=n,
        data=type(data).__name__,
        split=data.reference_split,
        shape=list(data.shape),
        data_hash=data.fingerprint,
        step=step,
        sampler={},
        nfe=0.0,
        seed=0,
        seconds=0.0,
    )


def store(trainer: Trainer, record: Record) -> None:
    """Adds a record to the file in the run folder, on the process that writes files."""
    if writes_files(trainer):
        append_record(Path(trainer.default_root_dir) / FILE, record)


class Measure(ABC):
    """Something that an evaluation measures, with the data as it sees them."""

    @abstractmethod
    def totals(self) -> Totals:
        """Sums without a sample."""

    @abstractmethod
    def measure(self, totals: Any) -> dict[str, Estimate]:
        """The metrics of these sums by their kinds.

        Raises:
            Unmeasurable: one of them is not finite.
        """

    @abstractmethod
    def records(self, blank: Record) -> dict[str, Record]:
        """What all records of each kind have in common; their `n` is the most samples that they use.

        Args:
            blank: what all records have in common.
        """

    @property
    @abstractmethod
    def depends(self) -> Any:
        """What the sums depend on besides the samples, as plain values."""

    def publish(self, trainer: Trainer, data: ScoreData, totals: Any, caption: str) -> None:
        """Writes and logs a picture of these sums, if there is one."""


@dataclass(frozen=True)
class InFeatures(Measure):
    """The Frechet distance and other metrics in some features.

    Args:
        features: the extractor.
        reference: the data as it sees them.
        n: number of samples.
        all_metrics: measure all that the features allow, not only those of `fit`.
        fid_infinity: also the distances extrapolated to infinitely many samples.
        file: that the reference comes from; None: the data.
    """

    features: Features
    reference: Reference
    n: int
    all_metrics: bool = False
    fid_infinity: bool = False
    file: ReferenceFile | None = None

    def totals(self) -> MetricTotals:
        return MetricTotals(self.features, self.n, self.reference.kept.device)

    def measure(self, totals: MetricTotals) -> dict[str, Estimate]:
        return totals.measure(self.reference, self.all_metrics, self.fid_infinity)

    def records(self, blank: Record) -> dict[str, Record]:
        features, few = self.features, min(blank.n, KEPT)
        blank = replace(blank, features=features.name, features_hash=features.fingerprint, resize=features.resize)
        if self.file is not None:
            blank = replace(blank, data=str(self.file.path), split="file", data_hash=self.file.hash)
        found = {kind: replace(blank, metric=metric_name(kind, features.name, blank.n)) for kind in KINDS}
        found["fid"] = replace(found["fid"], floor=self.reference.floor, floor_n=self.reference.floor_n)
        if "cmmd" in features.measured:
            floor = clip_floor(self.reference.kept[:few], few) if len(self.reference.kept) >= 2 else None
            cmmd = replace(blank, metric=metric_name("cmmd", features.name, few), n=few, floor=floor, floor_n=few)
            limit = replace(blank, metric=metric_name("cmmd_infinity", features.name, few), n=few)
            found |= {"cmmd": cmmd, "cmmd_infinity": limit}
        return found

    @property
    def depends(self) -> str:
        return self.features.fingerprint


@dataclass(frozen=True)
class AsDistance(Measure):
    """A distance without features.

    Args:
        reference: the data as the distance sees them.
        device: where it is computed.
    """

    reference: Summaries
    device: torch.device

    def totals(self) -> DistanceTotals:
        return DistanceTotals(self.reference)

    def measure(self, totals: DistanceTotals) -> dict[str, Estimate]:
        return {self.reference.distance.name: totals.measure(self.device)}

    def records(self, blank: Record) -> dict[str, Record]:
        return {self.reference.distance.name: record_of(blank, self.reference)}

    @property
    def depends(self) -> Any:
        return settings_of(self.reference.distance), self.reference.n

    def publish(self, trainer: Trainer, data: ScoreData, totals: DistanceTotals, caption: str) -> None:
        publish_curves(trainer, data, self.reference, totals.kept, caption)


def measurements(blank: Record, measures: Sequence[Measure], passes: Sequence[SamplingResult]) -> Iterator[Measurement]:
    """The measurements of every metric; of the final samples first, then of those before denoising.

    Args:
        blank: what all records have in common.
        measures: what is measured.
        passes: samples of one or more seeds.

    Raises:
        Unmeasurable: a metric is not finite.
    """
    for denoised in passes[0].totals:
        for k, measure in enumerate(measures):
            common = measure.records(replace(blank, denoised=denoised))
            found = [measure.measure(part.totals[denoised][k]) for part in passes]
            for kind in found[0]:
                yield _measurement(kind, common[kind], [of_seed[kind] for of_seed in found], passes)


def _measurement(kind: str, common: Record, estimates: list[Estimate], passes: Sequence[SamplingResult]) -> Measurement:
    """One metric of the samples of one or more seeds."""
    records = [
        replace(
            common,
            value=value,
            error=error,
            jackknife=list(jackknife),
            n=min(part.n, common.n),
            nfe=part.nfe,
            seed=part.seed,
            seconds=part.seconds,
        )
        for (value, error, jackknife), part in zip(estimates, passes, strict=True)
    ]
    mean, seconds = pooled(kind, estimates), sum(part.seconds for part in passes)
    return Measurement(kind, records, replace(records[0], value=mean.value, error=mean.error, seconds=seconds))
