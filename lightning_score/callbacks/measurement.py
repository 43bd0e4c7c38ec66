"""One measured number on its way from the samples to the logs and to the records."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lightning_score.callbacks.sampling_pass import SamplingResult
from lightning_score.data import ScoreData
from lightning_score.metrics import Estimate, Features
from lightning_score.metrics.frechet import pooled
from lightning_score.metrics.reference import Reference
from lightning_score.runs.records import PERFECT, Record, metric_name, settings_of
from lightning_score.training.model import ScoreModel


class Evaluation(NamedTuple):
    """The main result of an evaluation: the Frechet distance of the samples of the averaged weights.

    Fields: metric (`fid_<features>_<n>`), value, error (its standard error, NaN where unknown), floor (what a perfect model
    scores, NaN where unknown), n (samples), nfe (network evaluations per sample), seconds (spent on sampling), step
    (training steps done).
    """

    metric: str
    value: float
    error: float
    floor: float
    n: int
    nfe: float
    seconds: float
    step: int


class Weights(NamedTuple):
    """A set of weights to measure: its name in records, the ending of its names in logs, and how the model holds it."""

    name: str
    ending: str
    held: Callable[[ScoreModel], AbstractContextManager[None]]


@dataclass(frozen=True)
class EvaluationSetup:
    """What all measurements of one evaluation have in common.

    Attributes:
        features: the feature extractor.
        num_samples: the number of samples that names mention.
        reference: the statistics of the data.
        file: the file that these come from; None: the data set.
        data: the data set.
        model: the model, with its sampler and guidance.
        weights: the weights that it holds.
        step: training steps done.
    """

    features: Features
    num_samples: int
    reference: Reference
    file: str | None
    data: ScoreData
    model: ScoreModel
    weights: Weights
    step: int


@dataclass(frozen=True)
class Measurement:
    """One metric of the samples of one seed, or its mean over seeds.

    Attributes:
        setup: what it shares with others.
        kind: the metric, one of `metrics.totals.KINDS`.
        estimate: its value and error.
        samples: the samples that were measured.
        denoised: whether the noise left at the end of sampling was removed from them.
    """

    setup: EvaluationSetup
    kind: str
    estimate: Estimate
    samples: SamplingResult
    denoised: bool

    @property
    def metric(self) -> str:
        """The name of the metric, without the weights and the denoising."""
        return metric_name(self.kind, self.setup.features.name, self.setup.num_samples)

    @property
    def name(self) -> str:
        """The name under which it is logged."""
        return self.metric + ("" if self.denoised else "_noisy") + self.setup.weights.ending

    def log_entries(self) -> dict[str, float]:
        """The value and, where they are known, its error, its floor and the number of samples, by their names."""
        values = {"": self.estimate.value, "_error": self.estimate.error}
        if self.kind == "fid":
            values |= {"_floor": self.setup.reference.floor, "_n": float(self.samples.n)}
        return {self.name + ending: value for ending, value in values.items() if value is not None and value == value}

    def evaluation(self) -> Evaluation:
        """The same as the main result of an evaluation."""
        floor, (value, error, _) = self.setup.reference.floor, self.estimate
        floor = float("nan") if floor is None else floor
        samples = self.samples
        return Evaluation(self.name, value, error, floor, samples.n, samples.nfe, samples.seconds, self.setup.step)

    def record(self) -> Record:
        """The number with its provenance."""
        setup, samples, is_fid = self.setup, self.samples, self.kind == "fid"
        features, data, file, model = setup.features, setup.data, setup.file, setup.model
        return Record(
            metric=self.metric,
            value=self.estimate.value,
            error=self.estimate.error,
            floor=setup.reference.floor if is_fid else None,
            floor_n=setup.reference.floor_n if is_fid else None,
            floor_kind=PERFECT,
            n=samples.n,
            features=features.name,
            features_hash=features.fingerprint,
            resize=features.resize,
            data=file or type(data).__name__,
            split="file" if file else data.reference_split,
            shape=list(data.shape),
            data_hash=hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else data.fingerprint,
            weights=setup.weights.name,
            step=setup.step,
            denoised=self.denoised,
            sampler=settings_of(model.sampler) | {"guidance": settings_of(model.guidance)},
            nfe=samples.nfe,
            seed=samples.seed,
            seconds=samples.seconds,
            jackknife=list(self.estimate.jackknife),
        )


def measurements(
    setup: EvaluationSetup, passes: Sequence[SamplingResult], all_metrics: bool, fid_infinity: bool
) -> Iterator[list[Measurement]]:
    """The measurements of every metric, one for each pass; the final samples first, then those before denoising.

    Args:
        setup: what they have in common.
        passes: samples of one or more seeds.
        all_metrics: measure more than the Frechet distance.
        fid_infinity: extrapolate that distance to infinitely many samples, too.

    Raises:
        Unmeasurable: a metric is not finite.
    """
    for denoised in passes[0].totals:
        found = [part.totals[denoised].measure(setup.reference, all_metrics, fid_infinity) for part in passes]
        for kind in found[0]:
            of_kind = zip(found, passes, strict=True)
            yield [Measurement(setup, kind, estimates[kind], part, denoised) for estimates, part in of_kind]


def mean_over_seeds(seeds: Sequence[Measurement]) -> Measurement:
    """The mean over seeds, with its standard error and the time of all."""
    first = seeds[0]
    estimate = pooled(first.kind, [each.estimate for each in seeds])
    seconds = sum(each.samples.seconds for each in seeds)
    return replace(first, estimate=estimate, samples=replace(first.samples, seconds=seconds))
