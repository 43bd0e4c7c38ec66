"""Measures the samples of a model during training and afterwards."""

import hashlib
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from lightning_score.callbacks.base import Periodic, data_of, fast_dev_run, find_callback, writes_files
from lightning_score.callbacks.distances import automatic_distances, publish_curves, record_of
from lightning_score.callbacks.ema import EMA
from lightning_score.callbacks.loss_guard import measuring
from lightning_score.callbacks.measurement import Evaluation, Measurement, blank_record, measurements, store
from lightning_score.callbacks.pictures import in_pixels, kept_of, neighbor_picture, picture_in_turn, pictured, publish
from lightning_score.callbacks.sampling_pass import SamplingPass, SamplingResult
from lightning_score.data import ScoreData
from lightning_score.errors import require
from lightning_score.files import LocalPath
from lightning_score.metrics import Distance, Estimate, Features, nearest_neighbors, read_npz
from lightning_score.metrics.reference import Reference, check_fit, reference_statistics
from lightning_score.metrics.summaries import Summaries, summaries_of
from lightning_score.metrics.totals import KINDS
from lightning_score.runs.records import Record, metric_name, settings_of
from lightning_score.training.model import ScoreModel

IN_PICTURE = 64
"""Samples in the picture of `test`."""


class Evaluate(Periodic):
    """Measures samples against the whole data set at the end of validation and test: `fid_<features>_<n>`, or distances.

    It logs the value, its standard error `_error` (by leaving out a tenth of the samples at a time, or over seeds), `_floor`
    (what a perfect model scores with n samples), `_n`, `nfe` and `sampling_seconds`, with the prefix `val/` or `test/`, and
    adds a line of provenance to `evaluations.jsonl` for every number; `test` also logs the most memory while samples were
    drawn, `memory_gb` of the process and `gpu_memory_gb`. `test` measures KID, precision, recall, density and
    coverage, the Inception score where the features classify, and the distance of samples to training examples, too.
    Distances need no features: `sliced_wasserstein_<n>` and the like, with error, floor and pictures.
    In `fast_dev_run` it draws four samples.

    Args:
        features: the features in which the Frechet distance is measured; null: it is not.
        num_samples: number of samples n. A Frechet distance falls with n: compare values at the same n only.
        seed: seed of the samples.
        batch_size: samples drawn at once on each device; it changes the memory needed, not the samples.
        every_n_validations: how often during `fit`.
        max_share: largest share of the training time that measurements may take during `fit`, as 0.2; null: any.
        reference: statistics of the data to compare with, an .npz of pytorch-fid's; null: those of the data set.
        repeats: number of seeds over which `test` averages.
        fid_infinity: in `test`, also extrapolate the distance to infinitely many samples (Chong and Forsyth 2020).
        before_denoising: also measure the samples before the final denoising step; `_noisy` follows the names of these.
        raw_weights: also measure the weights that are not averaged; `_raw_weights` follows the names of these.
        neighbors: number of samples whose nearest training examples `test` searches for; 0: none.
        all_metrics: measure all metrics of `test` in `fit` and `validate`, too.
        distances: distances without features, as `[SlicedWasserstein, PowerSpectrum]`; null: none with features or for gray
            levels, else all that the shape allows, the energy distance only in `test`. Without features the first one is the
            main metric.

    Attributes:
        metric: the name of the main metric, that of the first distance once the data are checked; None if there is none.

    Raises:
        InputError: a number out of range, or a file of statistics that cannot be read.
    """

    def __init__(
        self,
        features: Features | None = None,
        num_samples: int = 1000,
        seed: int = 1,
        batch_size: int = 1024,
        every_n_validations: int = 1,
        max_share: float | None = None,
        reference: LocalPath | None = None,
        repeats: int = 1,
        fid_infinity: bool = False,
        before_denoising: bool = False,
        raw_weights: bool = False,
        neighbors: int = 1000,
        all_metrics: bool = False,
        distances: Sequence[Distance] | None = None,
    ):
        require(num_samples >= 2, f"num_samples={num_samples}: must be at least 2 for a distance")
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        require(every_n_validations >= 1, f"every_n_validations={every_n_validations}: must be at least 1")
        require(max_share is None or max_share > 0, f"max_share={max_share}: must be above 0, as 0.2, or null")
        require(repeats >= 1, f"repeats={repeats}: must be at least 1")
        require(not fid_infinity or num_samples >= 20, f"num_samples={num_samples}: must be at least 20 for fid_infinity")
        require(neighbors >= 0, f"neighbors={neighbors}: must be 0 or more")
        kinds = [distance.name for distance in distances or ()]
        require(len({*kinds}) == len(kinds), f"distances: {', '.join(kinds)}: each must be given once")
        self.features, self.distances, self.num_samples, self.seed = features, distances, num_samples, seed
        self.batch_size, self.every_n_validations, self.max_share = batch_size, every_n_validations, max_share
        self.statistics = None if reference is None else read_npz(reference)
        self.reference, self.repeats, self.fid_infinity = reference, repeats, fid_infinity
        self.before_denoising, self.raw_weights = before_denoising, raw_weights
        self.neighbors, self.all_metrics = neighbors, all_metrics
        self.last: Evaluation | None = None
        self.metric: str | None = None if features is None else metric_name("fid", features.name, num_samples)
        self._references: dict[int, Reference] = {}
        self._summaries: dict[tuple[Any, ...], list[Summaries]] = {}
        self._started, self._spent = time.monotonic(), 0.0

    def chosen(self, data: ScoreData, test: bool = False) -> list[Distance]:
        """The distances that `test`, or `fit` and `validate`, measure."""
        if self.distances is not None:
            return [*self.distances]
        return [] if self.features is not None else automatic_distances(data, test or self.all_metrics)

    def setup(self, trainer: Trainer, pl_module: ScoreModel, stage: str) -> None:
        """Checks the data before anything is computed."""
        given = isinstance(trainer.datamodule, ScoreData)  # type: ignore[attr-defined]
        if stage != "predict" and (given or self.features is not None or self.distances):
            self.check(data_of(trainer, "Evaluate"))

    def check(self, data: ScoreData) -> None:
        """Raises `InputError` unless features and distances can be computed from the data, and the statistics fit."""
        if self.features is not None:
            check_fit(self.features, data.filled(data.splits.held_out.x[:2]), self.statistics, self.reference)
        for distance in self.chosen(data, test=True):
            problem = distance.misfit(data.shape)
            require(not problem, f"evaluate.distances: {type(distance).__name__} {problem}; leave it out")
        if self.features is None:
            self.metric = next((metric_name(each.name, "", self.num_samples) for each in self.chosen(data)), None)

    def on_fit_start(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Starts to measure the training time."""
        self._started, self._spent = time.monotonic(), 0.0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within validation, where the model holds the averaged weights."""
        if self.due(trainer) and self.metric is not None and self._affordable(trainer):
            with measuring(trainer, pl_module, self.metric):
                self._evaluate(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures all metrics within the test, where the model holds the averaged weights."""
        if self.metric is not None:
            self._evaluate(trainer, pl_module)

    def _affordable(self, trainer: Trainer) -> bool:
        """Whether a measurement as long as the last one stays within its share of the training time."""
        if self.max_share is None or trainer.state.fn != TrainerFn.FITTING or self.last is None:
            return True
        allowed = self.max_share * (time.monotonic() - self._started)
        affordable = trainer.strategy.broadcast(self._spent + self.last.seconds <= allowed)
        if not affordable and trainer.is_global_zero:
            tqdm.write(
                f"step {trainer.global_step}: {self.metric} is skipped: with its {self.last.seconds:.0f} s measurements "
                f"would take more than {self.max_share:.0%} of the training time"
            )
        return affordable

    @torch.inference_mode()
    def _evaluate(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        start, features = time.monotonic(), self.features
        if features is not None:
            features.move_to(pl_module)
        if features is not None and self.num_samples <= features.num_features and not fast_dev_run(trainer):
            warnings.warn(
                f"num_samples={self.num_samples} is not above the {features.num_features} features: the distance is "
                "dominated by its bias; compare it only with the floor",
                stacklevel=2,
            )
        self._measure(trainer, pl_module, "ema")
        if self.raw_weights:
            ema = find_callback(trainer, EMA)
            with ema.raw(pl_module) if ema else nullcontext():
                self._measure(trainer, pl_module, "raw")
        self._spent += time.monotonic() - start

    def _measure(self, trainer: Trainer, pl_module: ScoreModel, weights: str) -> None:
        """Measures the weights that the model holds: samples become sums, these measurements, and these records and logs."""
        n, data, test = 4 if fast_dev_run(trainer) else self.num_samples, data_of(trainer), trainer.testing
        device, summaries = pl_module.device, self._summaries_of(trainer, data, n)
        reference = None if self.features is None else self._reference(data, self.features, n, device)
        copies = kept_of(data, self.neighbors) * pictured(data)
        shown = max(kept_of(data, IN_PICTURE), copies) if test and weights == "ema" else 0
        sampling = SamplingPass(trainer, pl_module, self.features, self.batch_size, test, summaries)
        seeds = range(self.seed, self.seed + (self.repeats if test else 1))
        passes = [sampling.run(seed, n, shown, self.before_denoising) for seed in seeds]
        template, all_metrics = self._template(trainer, pl_module, weights, reference, summaries), test or self.all_metrics

        def measure(part: SamplingResult, denoised: bool) -> dict[str, Estimate]:
            distances = part.summaries[denoised].measure(device)
            if reference is None:
                return distances
            return part.totals[denoised].measure(reference, all_metrics, self.fid_infinity) | distances

        for measurement in measurements(template, passes, measure):
            for record in measurement.records:
                store(trainer, record)
            self._log(pl_module, "test" if test else "val", measurement, passes[-1].memory if test else {})
        caption = f"step {trainer.global_step}, NFE {passes[0].nfe:g}"
        if weights == "ema" and writes_files(trainer):
            publish_curves(trainer, data, passes[0].summaries[True], caption)
        if shown and writes_files(trainer):
            publish(trainer, "samples", picture_in_turn(pl_module, data, passes[0].images[:IN_PICTURE]), caption)
        if shown and copies:
            self._look_for_copies(trainer, pl_module, passes[0])

    def _summaries_of(self, trainer: Trainer, data: ScoreData, n: int) -> list[Summaries]:
        """The data as the distances see them, computed once."""
        distances = self.chosen(data, trainer.testing)
        key = n, *(distance.name for distance in distances)
        if distances and key not in self._summaries:
            self._summaries[key] = made = summaries_of(distances, data.reference(), n)
            fewer = [f"{each.distance.name} the first {each.n}" for each in made if each.n < n]
            if fewer and writes_files(trainer):
                tqdm.write(f"of {n} samples are compared, for the memory that they take: {', '.join(fewer)}")
        return self._summaries.get(key, [])

    def _reference(self, data: ScoreData, features: Features, n: int, device: torch.device) -> Reference:
        """The statistics of the data, computed once."""
        if n not in self._references:
            if self.statistics is not None:
                found = Reference(self.statistics, torch.zeros(0, features.num_features), None, None)
            else:
                found = reference_statistics(data.fingerprint, data.reference, features, n, device)
            self._references[n] = found.to(device)
        return self._references[n]

    def _template(
        self,
        trainer: Trainer,
        pl_module: ScoreModel,
        weights: str,
        reference: Reference | None,
        summaries: Sequence[Summaries],
    ) -> dict[str, Record]:
        """What all records of these weights have in common, for each kind of metric."""
        sampler = settings_of(pl_module.sampler) | {"guidance": settings_of(pl_module.guidance)}
        blank = replace(
            blank_record(data_of(trainer), trainer.global_step, self.num_samples), weights=weights, sampler=sampler
        )
        of_distances = {each.distance.name: record_of(blank, each) for each in summaries}
        if self.features is None or reference is None:
            return of_distances
        name, digest = self.features.name, self.features.fingerprint
        blank = replace(blank, features=name, features_hash=digest, resize=self.features.resize)
        if self.reference is not None:
            digest = hashlib.sha256(Path(self.reference).read_bytes()).hexdigest()[:16]
            blank = replace(blank, data=self.reference, split="file", data_hash=digest)
        found = {kind: replace(blank, metric=metric_name(kind, name, self.num_samples)) for kind in KINDS}
        found["fid"] = replace(found["fid"], floor=reference.floor, floor_n=reference.floor_n)
        return found | of_distances

    def _log(self, pl_module: ScoreModel, prefix: str, found: Measurement, memory: dict[str, float]) -> None:
        entries = found.log_entries()
        if found.name == self.metric:
            self.last = found.evaluation()
            entries = {"nfe": self.last.nfe, "sampling_seconds": self.last.seconds, **memory, **entries}
        for name, value in entries.items():
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name == self.metric, rank_zero_only=True)

    def _look_for_copies(self, trainer: Trainer, pl_module: ScoreModel, drawn: SamplingResult) -> None:
        """Compares the first samples with their nearest training examples, in numbers and in a picture."""
        data = data_of(trainer)
        train, held_out = data.splits
        n = kept_of(data, self.neighbors)
        images, others, inputs = drawn.images[:n], held_out.x[:n], None if in_pixels(data) else data.as_input
        found = nearest_neighbors(images.to(pl_module.device), train.x, others.to(pl_module.device), inputs=inputs)
        shares = {"test/copied": found.copied, "test/copied_held_out": found.copied_held_out}
        pl_module.log_dict({**shares, "test/neighbor_distance_ratio": found.ratio}, rank_zero_only=True)
        if writes_files(trainer):
            nearest = found.distance.argsort()[:24].cpu()
            picture = neighbor_picture(data, images[nearest], train.x[found.index.cpu()[nearest]])
            publish(trainer, "neighbors", picture, "the samples nearest to training examples, each with its nearest")
