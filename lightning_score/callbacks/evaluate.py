"""Measures the samples of a model during training and afterwards."""

import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from lightning_score.callbacks.base import Periodic, data_of, fast_dev_run, find_callback, writes_files
from lightning_score.callbacks.distances import automatic_distances
from lightning_score.callbacks.ema import EMA
from lightning_score.callbacks.loss_guard import measuring
from lightning_score.callbacks.measurement import (
    AsDistance,
    InFeatures,
    Measure,
    Measurement,
    blank_record,
    measurements,
    store,
)
from lightning_score.callbacks.pictures import in_pixels, kept_of, neighbor_picture, pictured, publish
from lightning_score.callbacks.sampling_pass import FromModel, SamplingPass, SamplingResult, Source
from lightning_score.data import ScoreData
from lightning_score.data.sample_files import check_writable, write_images
from lightning_score.errors import require
from lightning_score.files import LocalPath
from lightning_score.metrics import Distance, Features, ReferenceFile, nearest_neighbors
from lightning_score.metrics.reference import check_fit, reference_of_file, reference_statistics
from lightning_score.metrics.summaries import summaries_of
from lightning_score.metrics.totals import KEPT
from lightning_score.runs.averages import weights_name
from lightning_score.runs.records import Record, metric_name
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
        features: the features in which the Frechet distance is measured, or a list of several, as [InceptionFeatures,
            DINOv2Features]; the first ones give the main metric. null: none.
        num_samples: number of samples n. A Frechet distance falls with n: compare values at the same n only.
        seed: seed of the samples.
        batch_size: samples drawn at once on each device; it changes the memory needed, not the samples.
        every_n_validations: how often during `fit`.
        max_share: largest share of the training time that measurements may take during `fit`, as 0.2; null: any.
        reference: what to compare with in place of the data set, an .npz: statistics of pytorch-fid's, or a reference batch
            of ADM's evaluator (mu, sigma, mu_s, sigma_s, arr_0); null: the data set.
        repeats: number of seeds over which `test` averages.
        fid_infinity: in `test`, also extrapolate distances to infinitely many samples (Chong and Forsyth 2020).
        before_denoising: also measure the samples before the final denoising step; `_noisy` follows the names of these.
        raw_weights: also measure the weights that are not averaged; `_raw_weights` follows the names of these.
        neighbors: number of samples whose nearest training examples `test` searches for; 0: none.
        all_metrics: measure all metrics of `test` in `fit` and `validate`, too.
        distances: distances without features, as `[SlicedWasserstein, PowerSpectrum]`; null: none with features or for gray
            levels, else all that the shape allows, the energy distance only in `test`. Without features the first one is the
            main metric.
        images: keep the images that `test` draws: png, a folder; npz, `arr_0` as ADM's evaluator reads it; zip, PNG files
            and dataset.json as edm and edm2 read them; null: the first ones, in a picture.

    Attributes:
        given: where samples come from, if not from the model.
        metric: the name of the main metric, that of the first distance once the data are checked; None if there is none.

    Raises:
        InputError: a number out of range, or a file of statistics that cannot be read.
    """

    def __init__(
        self,
        features: Features | list[Features] | None = None,
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
        images: Literal["png", "npz", "zip"] | None = None,
    ):
        require(num_samples >= 2, f"num_samples={num_samples}: must be at least 2 for a distance")
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        require(every_n_validations >= 1, f"every_n_validations={every_n_validations}: must be at least 1")
        require(max_share is None or max_share > 0, f"max_share={max_share}: must be above 0, as 0.2, or null")
        require(repeats >= 1, f"repeats={repeats}: must be at least 1")
        require(not fid_infinity or num_samples >= 20, f"num_samples={num_samples}: must be at least 20 for fid_infinity")
        require(neighbors >= 0, f"neighbors={neighbors}: must be 0 or more")
        self.features = [*features] if isinstance(features, Sequence) else [] if features is None else [features]
        for option, names in {
            "features": [each.name for each in self.features],
            "distances": [each.name for each in distances or ()],
        }.items():
            require(len({*names}) == len(names), f"{option}: {', '.join(names)}: each must be given once")
        self.distances, self.num_samples, self.seed, self.images = distances, num_samples, seed, images
        self.batch_size, self.every_n_validations, self.max_share = batch_size, every_n_validations, max_share
        self.reference, self.repeats, self.fid_infinity = reference, repeats, fid_infinity
        self.file = None if reference is None else ReferenceFile(reference)
        self.before_denoising, self.raw_weights = before_denoising, raw_weights
        self.neighbors, self.all_metrics = neighbors, all_metrics
        self.given: Source | None = None
        self.last: Record | None = None  # of the main metric
        self.metric: str | None = None
        if self.features:
            kind = self.features[0].measured[0]
            most = min(num_samples, KEPT) if kind == "cmmd" else num_samples
            self.metric = metric_name(kind, self.features[0].name, most)
        self._measures: dict[tuple[int, bool], list[Measure]] = {}
        self._started, self._spent = time.monotonic(), 0.0

    def chosen(self, data: ScoreData, test: bool = False) -> list[Distance]:
        """The distances that `test`, or `fit` and `validate`, measure."""
        if self.distances is not None:
            return [*self.distances]
        return [] if self.features else automatic_distances(data, test or self.all_metrics)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the data before anything is computed."""
        given = isinstance(trainer.datamodule, ScoreData)  # type: ignore[attr-defined]
        if stage != "predict" and (given or self.features or self.distances):
            self.check(data_of(trainer, "Evaluate"))

    def check(self, data: ScoreData) -> None:
        """Raises `InputError` unless features and distances can be computed from the data, and the reference fits."""
        for features in self.features:
            check_fit(features, data.filled(data.splits.held_out.x[:2]), self.file)
        for distance in self.chosen(data, test=True):
            problem = distance.misfit(data.shape)
            require(not problem, f"evaluate.distances: {type(distance).__name__} {problem}; leave it out")
        if self.images is not None:
            check_writable(data, self.num_samples, "--evaluate.images")
        if not self.features:
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
        start = time.monotonic()
        for features in self.features:
            features.move_to(pl_module)
            if self.num_samples <= features.num_features and "cmmd" not in features.measured and not fast_dev_run(trainer):
                warnings.warn(
                    f"num_samples={self.num_samples} is not above the {features.num_features} features: the distance is "
                    "dominated by its bias; compare it only with the floor",
                    stacklevel=2,
                )
        data, precision = data_of(trainer), str(trainer.precision)
        ema = find_callback(trainer, EMA)
        weights = weights_name(ema.length if ema else None)
        self._measure(trainer, pl_module, self.given or FromModel(pl_module, data, weights, precision))
        if self.raw_weights:
            with ema.raw(pl_module) if ema else nullcontext():
                self._measure(trainer, pl_module, FromModel(pl_module, data, "raw", precision))
        self._spent += time.monotonic() - start

    def _measure(self, trainer: Trainer, pl_module: LightningModule, source: Source) -> None:
        """Measures samples: they become sums, these measurements, and these records and logs."""
        n, data, test = 4 if fast_dev_run(trainer) else self.num_samples, data_of(trainer), trainer.testing
        device, measures = pl_module.device, self._measures_of(trainer, data, n, pl_module.device)
        main = source.weights != "raw"
        copies = kept_of(data, self.neighbors) * pictured(data)
        kept = n if self.images is not None and main else max(kept_of(data, IN_PICTURE), copies)
        sampling = SamplingPass(
            trainer,
            source,
            lambda: [measure.totals() for measure in measures],
            data.splits.held_out.x[:1],
            self.batch_size,
            device,
            [data.fingerprint, *(measure.depends for measure in measures)] if test else None,
        )
        seeds = range(self.seed, self.seed + (self.repeats if test else 1))
        shown = kept if test and main else 0
        passes = [sampling.run(seed, n, shown, self.before_denoising) for seed in seeds]
        blank = blank_record(data, trainer.global_step, self.num_samples)
        blank = replace(blank, weights=source.weights, sampler=source.settings)
        for measurement in measurements(blank, measures, passes):
            for record in measurement.records:
                store(trainer, record)
            self._log(pl_module, "test" if test else "val", measurement, passes[-1].memory if test else {})
        if main and writes_files(trainer):
            self._publish(trainer, data, source, measures, passes[0])
        if shown and copies:
            self._look_for_copies(trainer, pl_module, passes[0])

    def _measures_of(self, trainer: Trainer, data: ScoreData, n: int, device: torch.device) -> list[Measure]:
        """What is measured, with the data as it sees them, found once."""
        test = trainer.testing
        if (n, test) not in self._measures:
            made: list[Measure] = []
            for features in self.features:
                if self.file is None:
                    found = reference_statistics(data.fingerprint, data.reference, features, n, device)
                else:
                    found = reference_of_file(self.file, features, n, device)
                all_metrics = test or self.all_metrics
                made.append(InFeatures(features, found.to(device), n, all_metrics, self.fid_infinity, self.file))
            distances = self.chosen(data, test)
            summaries = summaries_of(distances, data.reference(), n) if distances else []
            fewer = [f"{each.distance.name} the first {each.n}" for each in summaries if each.n < n]
            if fewer and writes_files(trainer):
                tqdm.write(f"of {n} samples are compared, for the memory that they take: {', '.join(fewer)}")
            self._measures[n, test] = [*made, *(AsDistance(each, device) for each in summaries)]
        return self._measures[n, test]

    def _publish(
        self, trainer: Trainer, data: ScoreData, source: Source, measures: Sequence[Measure], drawn: SamplingResult
    ) -> None:
        """Writes and logs pictures, and the images that are kept."""
        caption = f"step {trainer.global_step}, NFE {drawn.nfe:g}"
        for measure, totals in zip(measures, drawn.totals[True], strict=True):
            measure.publish(trainer, data, totals, caption)
        if len(drawn.images):
            publish(trainer, "samples", source.picture(drawn.images[: min(IN_PICTURE, kept_of(data, IN_PICTURE))]), caption)
        if self.images is not None and len(drawn.images):
            kept = write_images(drawn.images, Path(trainer.default_root_dir), self.images, source.labels(len(drawn.images)))
            tqdm.write(f"{len(drawn.images)} images: {kept}")

    def _log(self, pl_module: LightningModule, prefix: str, found: Measurement, memory: dict[str, float]) -> None:
        entries = found.log_entries()
        if found.name == self.metric:
            self.last = found.mean
            drawing = {"nfe": self.last.nfe, "sampling_seconds": self.last.seconds, **memory}
            entries = entries if self.given else drawing | entries
        for name, value in entries.items():
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name == self.metric, rank_zero_only=True)

    def _look_for_copies(self, trainer: Trainer, pl_module: LightningModule, drawn: SamplingResult) -> None:
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
