"""One measured number: from the sums over samples to records with their provenance, and from these to the logs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Trainer

from lightning_score.callbacks.base import writes_files
from lightning_score.callbacks.sampling_pass import SamplingResult
from lightning_score.data import ScoreData
from lightning_score.metrics.frechet import Estimate, pooled
from lightning_score.runs.records import FILE, PERFECT, Record, append_record


class Evaluation(NamedTuple):
    """The main result of an evaluation: the main distance of the samples of the averaged weights.

    Fields: metric (`fid_<features>_<n>`, `sliced_wasserstein_<n>`), value, error (its standard error, NaN where unknown),
    floor (what a perfect model scores, NaN where unknown), n (samples), nfe (network evaluations per sample), seconds (spent
    on sampling), step (training steps done).
    """

    metric: str
    value: float
    error: float
    floor: float
    n: int
    nfe: float
    seconds: float
    step: int


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
        return self.mean.metric + ending + ("" if self.mean.weights == "ema" else "_raw_weights")

    def log_entries(self) -> dict[str, float]:
        """The mean and, where they are known, its error, its floor and the number of samples, by their names."""
        values = {"": self.mean.value, "_error": self.mean.error}
        if self.kind == "fid" or self.mean.floor is not None:
            values |= {"_floor": self.mean.floor, "_n": float(self.mean.n)}
        return {self.name + ending: value for ending, value in values.items() if value is not None and not math.isnan(value)}

    def evaluation(self) -> Evaluation:
        """The same as the main result of an evaluation."""
        mean, nan = self.mean, math.nan
        error, floor = (nan if value is None else value for value in (mean.error, mean.floor))
        return Evaluation(self.name, mean.value, error, floor, mean.n, mean.nfe, mean.seconds, mean.step)


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


def measurements(
    template: Mapping[str, Record],
    passes: Sequence[SamplingResult],
    measure: Callable[[SamplingResult, bool], Mapping[str, Estimate]],
) -> Iterator[Measurement]:
    """The measurements of every metric; of the final samples first, then of those before denoising.

    Args:
        template: what all records of each kind of metric have in common; its `n` is the most samples that it uses.
        passes: samples of one or more seeds.
        measure: the metrics of a pass by their kinds, of its final samples (True) or of those before denoising (False).

    Raises:
        Unmeasurable: a metric is not finite.
    """
    for denoised in passes[0].summaries:
        found = [measure(part, denoised) for part in passes]
        for kind in found[0]:
            of_kind = replace(template[kind], denoised=denoised)
            estimates = [of_seed[kind] for of_seed in found]
            records = [
                replace(
                    of_kind,
                    value=value,
                    error=error,
                    jackknife=list(jackknife),
                    n=min(part.n, of_kind.n),
                    nfe=part.nfe,
                    seed=part.seed,
                    seconds=part.seconds,
                )
                for (value, error, jackknife), part in zip(estimates, passes, strict=True)
            ]
            mean = pooled(kind, estimates)
            seconds = sum(part.seconds for part in passes)
            yield Measurement(kind, records, replace(records[0], value=mean.value, error=mean.error, seconds=seconds))
