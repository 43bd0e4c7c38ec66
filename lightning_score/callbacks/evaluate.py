"""Measures the samples of a model during training and afterwards."""

import hashlib
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from tqdm import tqdm

from lightning_score.callbacks.ema import EMA
from lightning_score.callbacks.guard import measuring
from lightning_score.callbacks.periodic import Periodic
from lightning_score.callbacks.pictures import drawable, labels_in_turn, neighbor_picture, pictured, publish, sample_picture
from lightning_score.callbacks.sampling_pass import SamplingPass, SamplingResult
from lightning_score.data import ScoreData
from lightning_score.errors import require
from lightning_score.files import LocalPath
from lightning_score.metrics import Estimate, Features, nearest_neighbors, read_npz
from lightning_score.metrics.frechet import pooled
from lightning_score.metrics.reference import Reference, check_fit, reference
from lightning_score.runs.records import FILE, PERFECT, Record, append_record, metric_name, settings_of
from lightning_score.training.model import ScoreModel

IN_PICTURE = 64
"""Samples that `test` shows."""


class Evaluation(NamedTuple):
    """One measurement of samples.

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


class Evaluate(Periodic):
    """Measures `fid_<features>_<n>` of samples against the whole data set at the end of validation and test.

    It logs the value, its standard error `_error` (by leaving out a tenth of the samples at a time, or over seeds), `_floor`
    (what a perfect model scores with n samples), `_n`, `nfe` and `sampling_seconds`, with the prefix `val/` or `test/`, and
    adds a line of provenance to `evaluations.jsonl` for every number. `test` measures KID, precision, recall, density and
    coverage, the Inception score where the features classify, and how near samples are to training examples, too. In
    `fast_dev_run` it draws four samples.

    Args:
        features: the features in which the distance is measured; null: no measurement.
        num_samples: number of samples n. A Frechet distance falls with n: compare values at the same n only.
        seed: seed of the samples.
        batch_size: samples drawn at once on each device; it changes the memory needed, not the samples.
        every_n_validations: how often during `fit`.
        max_share: largest share of the training time that goes into measurements during `fit`, as 0.2; null: any.
        reference: statistics of the data to compare with, an .npz of pytorch-fid's; null: those of the data set.
        repeats: number of seeds over which `test` takes the mean.
        limit: in `test`, extrapolate the distance to infinitely many samples.
        noisy: measure the samples before their final denoising, too.
        raw_weights: measure the weights that are not averaged, too.
        neighbors: number of samples whose nearest training examples `test` looks for; 0: none.
        thorough: measure all that `test` does during `fit` and by `validate`, too.

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
        limit: bool = False,
        noisy: bool = False,
        raw_weights: bool = False,
        neighbors: int = 1000,
        thorough: bool = False,
    ):
        require(num_samples >= 2, f"num_samples={num_samples}: a Frechet distance needs at least 2 samples")
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        require(every_n_validations >= 1, f"every_n_validations={every_n_validations}: must be at least 1")
        require(max_share is None or max_share > 0, f"max_share={max_share}: must be above 0, as 0.2, or null")
        require(repeats >= 1, f"repeats={repeats}: must be at least 1")
        require(not limit or num_samples >= 20, f"limit: needs num_samples of at least 20, not {num_samples}")
        require(neighbors >= 0, f"neighbors={neighbors}: must be 0 or more")
        self.features, self.num_samples, self.seed = features, num_samples, seed
        self.batch_size, self.every_n_validations, self.max_share = batch_size, every_n_validations, max_share
        self.statistics = None if reference is None else read_npz(reference)
        self.reference, self.repeats, self.limit = reference, repeats, limit
        self.noisy, self.raw_weights, self.neighbors, self.thorough = noisy, raw_weights, neighbors, thorough
        self.last: Evaluation | None = None
        self.raw_state: Mapping[str, Tensor] | None = None  # of a checkpoint, where no EMA holds the raw weights
        self._references: dict[int, Reference] = {}
        self._started, self._spent = time.monotonic(), 0.0

    @property
    def metric(self) -> str | None:
        """The name of the metric, `fid_<features>_<n>`."""
        return None if self.features is None else metric_name("fid", self.features.name, self.num_samples)

    def setup(self, trainer: Trainer, pl_module: ScoreModel, stage: str) -> None:
        """As `check`, before anything is computed."""
        if stage != "predict" and trainer.datamodule is not None:
            self.check(trainer.datamodule)

    def check(self, data: ScoreData) -> None:
        """Raises `InputError` unless the features can be found of the data, and the statistics are of as many."""
        if self.features is not None:
            check_fit(self.features, data.splits.held_out.x[:2], self.statistics, self.reference)

    def on_fit_start(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Training time counts from here."""
        self._started, self._spent = time.monotonic(), 0.0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Within validation, because the weights are the averaged ones there."""
        if self.due(trainer) and self.features is not None and self._affordable(trainer):
            with measuring(trainer, pl_module, self.metric):
                self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """As in validation, and more."""
        if self.features is not None:
            self._evaluate(trainer, pl_module, "test")

    def _affordable(self, trainer: Trainer) -> bool:
        """Whether another measurement as long as the last keeps to its share of the training time."""
        if self.max_share is None or trainer.state.fn != TrainerFn.FITTING or self.last is None:
            return True
        allowed = self.max_share * (time.monotonic() - self._started)
        affordable = trainer.strategy.broadcast(self._spent + self.last.seconds <= allowed)
        if not affordable and trainer.is_global_zero:
            tqdm.write(
                f"step {trainer.global_step}: {self.metric} is left out, which takes {self.last.seconds:.0f} s, to keep to "
                f"{self.max_share:.0%} of the training time"
            )
        return affordable

    @torch.inference_mode()
    def _evaluate(self, trainer: Trainer, pl_module: ScoreModel, prefix: str) -> None:
        start = time.monotonic()
        self.features.follow(pl_module)
        self._warn_of_few(trainer)
        for weights in ["ema", "raw"] if self.raw_weights else ["ema"]:
            with self._holding(weights, trainer, pl_module):
                self._measure(trainer, pl_module, prefix, weights)
        self._spent += time.monotonic() - start

    def _n(self, trainer: Trainer) -> int:
        return 4 if trainer.fast_dev_run else self.num_samples

    def _warn_of_few(self, trainer: Trainer) -> None:
        if self._n(trainer) <= self.features.num_features and not trainer.fast_dev_run:
            warnings.warn(
                f"num_samples={self.num_samples} is not above the {self.features.num_features} features: the distance is "
                "dominated by its bias; read it beside the floor only",
                stacklevel=2,
            )

    @contextmanager
    def _holding(self, weights: str, trainer: Trainer, pl_module: ScoreModel) -> Iterator[None]:
        """Lets the model hold the averaged or the raw weights."""
        averages = [callback for callback in trainer.callbacks if isinstance(callback, EMA)]
        if weights == "ema":
            yield
        elif self.raw_state is not None:
            kept = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
            pl_module.load_state_dict(self.raw_state)
            try:
                yield
            finally:
                pl_module.load_state_dict(kept)
        elif averages:
            with averages[0].raw(pl_module):
                yield
        else:
            yield

    def _measure(self, trainer: Trainer, pl_module: ScoreModel, prefix: str, weights: str) -> None:
        """All numbers of the weights that the model holds."""
        n, test = self._n(trainer), prefix == "test"
        real = self._reference(trainer, n, pl_module.device)
        images = pictured(trainer.datamodule)
        shown = max(IN_PICTURE, self.neighbors * images) if test and weights == "ema" else 0
        sampling = SamplingPass(trainer, pl_module, self.features, n, self.batch_size, self.noisy, shown, resumable=test)
        passes = [sampling.run(self.seed + k) for k in range(self.repeats if test else 1)]
        for denoised in passes[0].totals:
            suffix = ("" if denoised else "_noisy") + ("" if weights == "ema" else "_raw_weights")
            measured = [part.totals[denoised].measure(real, test or self.thorough, self.limit) for part in passes]
            for kind in measured[0]:
                values = [numbers[kind] for numbers in measured]
                for k, value in enumerate(values):
                    self._record(trainer, pl_module, kind, value, real, passes[k], self.seed + k, weights, denoised)
                self._log(trainer, pl_module, prefix, kind, suffix, pooled(kind, values), real, passes)
        if shown:
            self._show(trainer, pl_module, passes[0])
        if shown and images and self.neighbors:
            self._look_for_copies(trainer, pl_module, passes[0])

    def _reference(self, trainer: Trainer, n: int, device: torch.device) -> Reference:
        """The data's side, computed once; only the samples are new each time."""
        if n not in self._references:
            data = trainer.datamodule
            if self.statistics is not None:
                found = Reference(self.statistics, torch.zeros(0, self.features.num_features), None, None)
            else:
                found = reference(data.fingerprint, data.reference, self.features, n, device)
            self._references[n] = found.to(device)
        return self._references[n]

    def _log(
        self,
        trainer: Trainer,
        pl_module: ScoreModel,
        prefix: str,
        kind: str,
        suffix: str,
        found: Estimate,
        real: Reference,
        passes: list[SamplingResult],
    ) -> None:
        name = metric_name(kind, self.features.name, self.num_samples) + suffix
        n, nfe, seconds = self._n(trainer), passes[0].nfe, sum(p.seconds for p in passes)
        values: dict[str, Any] = {"": found.value, "_error": found.error}
        if kind == "fid":
            values |= {"_floor": real.floor, "_n": float(n)}
            if not suffix:
                floor = float("nan") if real.floor is None else real.floor
                self.last = Evaluation(name, found.value, found.error, floor, n, nfe, seconds, trainer.global_step)
                pl_module.log(f"{prefix}/nfe", nfe, rank_zero_only=True)
                pl_module.log(f"{prefix}/sampling_seconds", seconds, rank_zero_only=True)
        for ending, value in values.items():
            if value is not None and value == value:
                shown = kind == "fid" and not ending and not suffix
                pl_module.log(f"{prefix}/{name}{ending}", value, prog_bar=shown, rank_zero_only=True)

    def _record(
        self,
        trainer: Trainer,
        pl_module: ScoreModel,
        kind: str,
        found: Estimate,
        real: Reference,
        drawn: SamplingResult,
        seed: int,
        weights: str,
        denoised: bool,
    ) -> None:
        """Adds a line of provenance to the run folder."""
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        data, file = trainer.datamodule, self.reference
        record = Record(
            metric=metric_name(kind, self.features.name, self.num_samples),
            value=found.value,
            error=found.error,
            floor=real.floor if kind == "fid" else None,
            floor_n=real.floor_n if kind == "fid" else None,
            floor_kind=PERFECT,
            n=self._n(trainer),
            features=self.features.name,
            features_hash=self.features.fingerprint,
            resize=self.features.resize,
            data=file or type(data).__name__,
            split="file" if file else data.reference_split,
            shape=list(data.shape),
            data_hash=hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else data.fingerprint,
            weights=weights,
            step=trainer.global_step,
            denoised=denoised,
            sampler=settings_of(pl_module.sampler) | {"guidance": settings_of(pl_module.guidance)},
            nfe=drawn.nfe,
            seed=seed,
            seconds=drawn.seconds,
            without=list(found.without),
        )
        append_record(Path(trainer.default_root_dir) / FILE, record)

    def _show(self, trainer: Trainer, pl_module: ScoreModel, drawn: SamplingResult) -> None:
        """Publishes the first samples as a picture."""
        if trainer.is_global_zero and not trainer.fast_dev_run:
            caption = f"step {trainer.global_step}, NFE {drawn.nfe:g}"
            picture = sample_picture(drawable(trainer.datamodule, drawn.images[:IN_PICTURE]), labels_in_turn(pl_module))
            publish(trainer, "samples", picture, caption)

    def _look_for_copies(self, trainer: Trainer, pl_module: ScoreModel, drawn: SamplingResult) -> None:
        """How near the first samples are to what was trained on, as numbers and as a picture."""
        data, (train, held_out) = trainer.datamodule, trainer.datamodule.splits
        images, others = drawn.images[: self.neighbors], held_out.x[: self.neighbors]
        found = nearest_neighbors(images.to(pl_module.device), train.x, others.to(pl_module.device))
        shares = {"test/copied": found.copied, "test/copied_held_out": found.copied_held_out}
        pl_module.log_dict({**shares, "test/neighbor_distance_ratio": found.ratio}, rank_zero_only=True)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            nearest = found.distance.argsort()[:24].cpu()
            shown = (images[nearest], train.x[found.index.cpu()[nearest]])
            picture = neighbor_picture(*(drawable(data, x) for x in shown))
            publish(trainer, "neighbors", picture, "the samples nearest to training examples, each above its nearest")
