"""Measures whether samples given a condition predict what belongs to it: CRPS, rank histogram, residual."""

import time
from dataclasses import replace
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from lightning_score.callbacks.base import Periodic, data_of, fast_dev_run, writes_files
from lightning_score.callbacks.ensemble_pictures import MEMBERS, SHOWN, ensemble_picture, rank_figure, summary
from lightning_score.callbacks.loss_guard import measuring
from lightning_score.callbacks.measurement import blank_record, store
from lightning_score.callbacks.pictures import figure_picture, publish
from lightning_score.callbacks.sampling_pass import fail_together
from lightning_score.data import Examples, ScoreData
from lightning_score.errors import require
from lightning_score.metrics.ensembles import EnsembleScores, half_distance
from lightning_score.metrics.frechet import Estimate
from lightning_score.runs.records import settings_of
from lightning_score.seeds import derive_seed, seeded
from lightning_score.training.inference import whole
from lightning_score.training.model import ScoreModel

CLIMATOLOGY = 1024
"""Training examples that stand for samples without a condition, ..."""
NUMBERS = 1 << 24
"""... or fewer, of about as many numbers in all."""


class Truths(NamedTuple):
    """K held-out examples as the model sees them, (K, *shape), their conditions, and the examples in the units of the data;
    training examples in these units, and the standard deviation of all their numbers as the model sees them.
    """

    x: Tensor
    y: Tensor
    truth: Tensor
    climatology: Tensor
    spread: float


class Ensembles(Periodic):
    """Measures samples of a conditional model against the held-out examples that their conditions belong to, in `test`.

    It draws `conditions` x `members` samples and logs, with the prefix `test/`: `crps`, the continuous ranked probability
    score in the units of the data (0: perfect; without bias for any number of members); `crps_skill`, 1 - CRPS / CRPS of
    training examples at random (0: the condition does not help); `rank_deviation`, the share of truths whose rank among the
    members would have to change for a uniform rank histogram, with what a calibrated model has as its floor;
    `spread_skill`, the spread of the members over the error of their mean (1: calibrated, below: too sure); and, where the
    data compute the condition from the example by `given`, `residual`: the root mean square of A sample - condition over the
    standard deviation of the data. Each has its standard error over conditions, `_error`. `ranks/` and `ensembles/` have
    pictures. In `fast_dev_run` it draws two samples of two conditions.

    Args:
        conditions: number of held-out examples, chosen at random.
        members: samples of each condition.
        seed: seed of both.
        batch_size: samples drawn at once on each device; it changes the memory needed, not the samples.
        every_n_validations: how often during `fit`; null: in `test` only.

    Raises:
        InputError: a number out of range; the model is unconditional.
    """

    def __init__(
        self,
        conditions: int = 64,
        members: int = 16,
        seed: int = 2,
        batch_size: int = 1024,
        every_n_validations: int | None = None,
    ):
        require(conditions >= 2, f"conditions={conditions}: must be at least 2 for an error")
        require(members >= 2, f"members={members}: must be at least 2 samples of each condition, as in 16")
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        require(
            every_n_validations is None or every_n_validations >= 1,
            f"every_n_validations={every_n_validations}: must be at least 1, or null for test only",
        )
        self.conditions, self.members, self.seed, self.batch_size = conditions, members, seed, batch_size
        self.in_fit, self.every_n_validations = every_n_validations is not None, every_n_validations or 1
        self.last: EnsembleScores | None = None

    def setup(self, trainer: Trainer, pl_module: ScoreModel, stage: str) -> None:
        """Refuses what has no conditions before anything is computed."""
        if stage != "predict":
            self.check(data_of(trainer, "Ensembles"))
            require(
                pl_module.takes_condition,
                "Ensembles: the model is unconditional; train one with conditional=true, or remove the callback",
            )
            particles = pl_module.sampler.particles
            require(
                self.members % particles == 0,
                f"members={self.members}: must be a multiple of the sampler's particles={particles}",
            )

    def check(self, data: ScoreData) -> None:
        """Raises `InputError` unless the data have conditions."""
        require(
            data.condition is not None,
            f"Ensembles: {type(data).__name__} has no labels or other conditions; remove the callback",
        )
        require(len(data.splits.held_out.x) > 1, "Ensembles: there is only one held-out example; hold out two or more")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within validation, where the model holds the averaged weights."""
        if self.in_fit and self.due(trainer):
            with measuring(trainer, pl_module, "crps"):
                self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within the test, where the model holds the averaged weights."""
        self._evaluate(trainer, pl_module, "test")

    @torch.inference_mode()
    def _evaluate(self, trainer: Trainer, pl_module: ScoreModel, prefix: str) -> None:
        start, before, data = time.monotonic(), pl_module.score_function.evaluations, data_of(trainer)
        truths = self._truths(data, 2 if fast_dev_run(trainer) else self.conditions)
        self.last, shown = self._scores(trainer, pl_module, truths, 2 if fast_dev_run(trainer) else self.members)
        n = self.last.conditions * self.last.members
        template = replace(
            blank_record(data, trainer.global_step, n),
            split=f"held out, {self.last.members} samples each",
            sampler=settings_of(pl_module.sampler) | {"guidance": settings_of(pl_module.guidance)},
            nfe=(pl_module.score_function.evaluations - before) * trainer.world_size / n,
            seed=self.seed,
            seconds=time.monotonic() - start,
        )
        histogram = self.last.histogram()
        spread_skill = self.last.spread_skill()
        found = {"crps": self.last.crps(), "crps_skill": self.last.skill(), "rank_deviation": self.last.deviation()}
        if data.given is not None:
            found["residual"] = self.last.residual(truths.spread)
        for name, (value, error, jackknife) in found.items():
            floor, floor_n = (histogram.calibrated, n) if name == "rank_deviation" else (None, None)
            record = replace(template, metric=name, value=value, error=error, jackknife=list(jackknife))
            store(trainer, replace(record, floor=floor, floor_n=floor_n))
        self._log(pl_module, prefix, {**found, "spread_skill": spread_skill}, histogram.calibrated)
        if writes_files(trainer):
            step = f"step {trainer.global_step}, "
            picture = figure_picture(rank_figure(histogram, spread_skill.value))
            publish(trainer, "ranks", picture, f"{step}rank deviation {histogram.deviation:.3f}")
            caption = f"{step}CRPS {found['crps'].value:.3g}, skill {found['crps_skill'].value:.2g}"
            publish(trainer, "ensembles", ensemble_picture(data, truths.truth, _as_examples(data, truths), shown), caption)

    def _truths(self, data: ScoreData, conditions: int) -> Truths:
        """The conditions, the same on all processes."""
        generator = torch.Generator().manual_seed(self.seed)
        train, held_out = data.splits
        most = max(self.members, min(CLIMATOLOGY, NUMBERS // held_out.x[0].numel()))
        rows, others = (
            torch.randperm(len(part.x), generator=generator)[:n] for part, n in ((held_out, conditions), (train, most))
        )
        with seeded(derive_seed(self.seed)):  # of dequantization and of the noise of conditions
            x, y = data.pairs(Examples(*(part[rows] for part in held_out)), filled=False)
            climatology = data.as_input(train.x[others], filled=False)
        spread, some = float(climatology[~climatology.isnan()].std()), ~x.flatten(1).isnan().all(1)  # entries are known
        x, y = x[some], y[some]
        return Truths(x, y, data.to_reference(x), data.to_reference(climatology), spread)

    def _scores(self, trainer: Trainer, model: ScoreModel, truths: Truths, members: int) -> tuple[EnsembleScores, Tensor]:
        """The scores of all conditions, of which each process computes its share, and a summary of the first ensembles."""
        data, n, device = data_of(trainer), len(truths.y), model.device
        climatology = truths.climatology.to(device).double()
        reference = climatology, half_distance(climatology)
        scores = EnsembleScores(n, members, self.seed, device)
        shown = torch.zeros(min(n, SHOWN), 2 + min(members, MEMBERS), *truths.truth.shape[1:])
        parts = torch.arange(trainer.global_rank, n, trainer.world_size).split(max(1, self.batch_size // members))
        visible = trainer.is_global_zero and trainer.progress_bar_callback is not None
        with fail_together(trainer):
            for part in tqdm(parts, desc=f"{n} conditions x {members} samples", leave=False, disable=not visible):
                drawn = self._draw(model, part, truths.y, members)
                for k, x, samples in zip(
                    part.tolist(), drawn.split(members), data.to_reference(drawn).split(members), strict=True
                ):
                    scores.add(k, samples, truths.truth[k].to(device), reference, self._residual(data, x, truths.y[k]))
                    if k < len(shown):
                        shown[k] = summary(samples).cpu()
        scores.reduce(lambda values: trainer.strategy.reduce(values, reduce_op="sum"))
        return scores, trainer.strategy.reduce(shown.to(device), reduce_op="sum").cpu()

    def _draw(self, model: ScoreModel, part: Tensor, y: Tensor, members: int) -> Tensor:
        """The members of some conditions, (conditions x members, *shape): member m of condition k is the sample k M + m."""
        numbers = (part[:, None] * members + torch.arange(members)).flatten()
        batches = numbers.split(whole(self.batch_size, model.sampler.particles))
        return torch.cat([model.draw(batch.tolist(), self.seed, y[batch // members]).x for batch in batches])

    def _residual(self, data: ScoreData, samples: Tensor, y: Tensor) -> float:
        """The mean square of A sample - y, 0 where no condition is computed from the example."""
        if data.given is None:
            return 0.0
        return float((data.given.operator.apply(samples) - y.to(samples)).double().square().nanmean())

    def _log(self, pl_module: ScoreModel, prefix: str, found: dict[str, Estimate], calibrated: float) -> None:
        entries = {"rank_deviation_floor": calibrated}
        for name, estimate in found.items():
            entries |= {name: estimate.value, f"{name}_error": estimate.error}
        for name, value in entries.items():
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name == "crps", rank_zero_only=True)


def _as_examples(data: ScoreData, truths: Truths) -> Tensor | None:
    """Observations of a lower resolution in the form of stored examples; None for other conditions."""
    x, y = truths.x[:SHOWN], truths.y[:SHOWN]
    if data.given is None or y.shape[1:2] != x.shape[1:2] or y.ndim != x.ndim:
        return None
    return data.to_reference(F.interpolate(y.nan_to_num(), x.shape[2:], mode="nearest-exact"))
