"""The Frechet distance of samples at every validation, beside what the data score against themselves."""

import time
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer

from lightning_score.metrics import Features, FrechetDistance, real_floor
from lightning_score.model import ScoreModel
from lightning_score.utils import require


class Evaluation(NamedTuple):
    """A Frechet distance with what one must know to read it.

    Fields: metric (`fid_<features>`), value, floor (the data against themselves at this n), n (samples), nfe (network
    evaluations per sample), seconds (spent on sampling), step (of training).
    """

    metric: str
    value: float
    floor: float
    n: int
    nfe: float
    seconds: float
    step: int


class Evaluate(Callback):
    """Measures `fid_<features>` of samples against the whole data set at the end of validation and test.

    It logs the value, `<metric>_floor` (the data against themselves at the same n), `<metric>_n`, `nfe` and
    `sampling_seconds`, with the prefix `val/` or `test/`. In `fast_dev_run` it draws four samples.

    Args:
        features: the features in which the distance is measured; null: no measurement.
        num_samples: number of samples n. A Frechet distance falls with n: compare values at the same n only.
        seed: seed of the samples.
        batch_size: samples drawn at once on each device; it changes the memory needed, not the samples.
        every_n_validations: how often during `fit`.
    """

    def __init__(
        self,
        features: Features | None = None,
        num_samples: int = 1000,
        seed: int = 1,
        batch_size: int = 1024,
        every_n_validations: int = 1,
    ):
        require(num_samples >= 2, f"num_samples={num_samples}: a Frechet distance needs at least 2 samples")
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        require(every_n_validations >= 1, f"every_n_validations={every_n_validations}: must be at least 1")
        self.features, self.num_samples, self.seed = features, num_samples, seed
        self.batch_size, self.every_n_validations = batch_size, every_n_validations
        self.last: Evaluation | None = None
        self.validated_at = -1  # the training step of the last validation
        self._validations = 0
        self._distance: FrechetDistance | None = None
        self._floor = 0.0

    @property
    def metric(self) -> str | None:
        """The name of the metric, `fid_<features>`."""
        return None if self.features is None else f"fid_{self.features.name}"

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Within validation, because the weights are the averaged ones there."""
        self._validations += not trainer.sanity_checking
        self.validated_at = trainer.global_step
        if not trainer.sanity_checking and self._validations % self.every_n_validations == 0:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """As in validation."""
        self._evaluate(trainer, pl_module, "test")

    def _evaluate(self, trainer: Trainer, pl_module: ScoreModel, prefix: str) -> None:
        if self.features is None:
            return
        self.last = self.measure(trainer, pl_module, 4 if trainer.fast_dev_run else self.num_samples)
        names = {"": self.last.value, "_floor": self.last.floor, "_n": float(self.last.n)}
        for suffix, value in names.items():
            pl_module.log(f"{prefix}/{self.last.metric}{suffix}", value, prog_bar=not suffix, rank_zero_only=True)
        pl_module.log(f"{prefix}/nfe", self.last.nfe, rank_zero_only=True)
        pl_module.log(f"{prefix}/sampling_seconds", self.last.seconds, rank_zero_only=True)

    @torch.inference_mode()
    def measure(self, trainer: Trainer, pl_module: ScoreModel, n: int) -> Evaluation:
        """Draws n samples, each process its share, and measures their distance to the data."""
        self.features.to(pl_module.device)
        distance = self._reference(trainer, pl_module, n)
        start, evaluations = time.perf_counter(), pl_module.score_function.evaluations
        mine = range(trainer.global_rank, n, trainer.world_size)
        for first in range(0, len(mine), self.batch_size):
            samples = pl_module.draw(mine[first : first + self.batch_size], self.seed).x
            distance.update(self.features(trainer.datamodule.to_reference(samples)), real=False)
        seconds = time.perf_counter() - start
        nfe = (pl_module.score_function.evaluations - evaluations) / max(len(mine), 1)
        value = float(distance.compute())
        return Evaluation(self.metric, value, self._floor, n, nfe, seconds, trainer.global_step)

    def _reference(self, trainer: Trainer, pl_module: ScoreModel, n: int) -> FrechetDistance:
        """The distance with the data in it, computed once; only the samples are new each time."""
        if self._distance is None:
            features = self.features(trainer.datamodule.reference().to(pl_module.device))
            self._distance = FrechetDistance(self.features.num_features, reset_real_features=False).to(pl_module.device)
            if trainer.is_global_zero:  # sums over processes count the data once
                self._distance.update(features, real=True)
            self._floor = real_floor(features, n)
        self._distance.reset()
        return self._distance
