"""Measures samples against the held-out examples that their conditions, or observations, belong to."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from lightning_score.callbacks.base import Periodic, data_of, fast_dev_run, writes_files
from lightning_score.callbacks.ensemble_pictures import MEMBERS, SHOWN, calibration_figure, ensemble_picture, summary
from lightning_score.callbacks.loss_guard import measuring
from lightning_score.callbacks.measurement import blank_record, store
from lightning_score.callbacks.pictures import figure_picture, publish
from lightning_score.callbacks.sampling_pass import fail_together
from lightning_score.data import Examples, ScoreData
from lightning_score.errors import require
from lightning_score.metrics.ensembles import EnsembleScores, Score, half_distance
from lightning_score.observations import LinearOperator
from lightning_score.runs.records import settings_of
from lightning_score.seeds import derive_seed, seeded
from lightning_score.training.inference import whole
from lightning_score.training.model import ScoreModel

CLIMATOLOGY = 1024
"""Training examples that stand for samples without a condition, ..."""
NUMBERS = 1 << 24
"""... or fewer, of about as many numbers in all."""


class Truths(NamedTuple):
    """K held-out examples as the model sees them, (K, *shape), the conditions that it is given with them, if any, and what
    else is known of each: the condition, or an observation; the examples in the units of the data; training examples as the
    model sees them and in these units, and the standard deviation of all their numbers as the model sees them.
    """

    x: Tensor
    given: Tensor | None
    y: Tensor
    truth: Tensor
    others: Tensor
    climatology: Tensor
    spread: float


class EnsembleCallback(Periodic, ABC):
    """Draws K x M samples, M for each of K held-out examples, compares them with these, and stores the scores.

    Attributes:
        conditions: K.
        members: M.
        seed: seed of the examples and of the samples.
        batch_size: samples drawn at once on each device.
        in_fit: whether it measures in `fit` and `validate`, too.
        names: the names of the arguments K and M.
        subject: what records add to the name of their reference.
        logs_cost: whether it logs evaluations and seconds, which `Evaluate` does elsewhere.
    """

    in_fit = False
    logs_cost = False
    names = "conditions", "members"
    subject = ""

    def __init__(self, conditions: int, members: int, seed: int, batch_size: int):
        require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
        self.conditions, self.members, self.seed, self.batch_size = conditions, members, seed, batch_size
        self.last: EnsembleScores | None = None
        self._seconds = 0.0  # spent on sampling

    def check(self, data: ScoreData) -> None:
        """Raises `InputError` unless the data can be used."""
        require(
            len(data.splits.held_out.x) > 1,
            f"{type(self).__name__}: there is only one held-out example; hold out two or more",
        )

    def check_model(self, model: ScoreModel) -> None:
        """Raises `InputError` unless the model can be measured."""
        particles = model.sampler.particles
        require(
            self.members % particles == 0,
            f"{self.names[1]}={self.members}: must be a multiple of the sampler's particles={particles}, which depend on "
            "one another",
        )

    @abstractmethod
    def scores(self, data: ScoreData, truths: Truths, members: int, device: torch.device) -> EnsembleScores:
        """The scores, without any sample yet."""

    @abstractmethod
    def further(
        self, data: ScoreData, truths: Truths, scores: EnsembleScores, k: int, samples: Tensor
    ) -> Mapping[str, Tensor | float]:
        """The further numbers of condition k.

        Args:
            data: the data.
            truths: all examples.
            scores: of all conditions.
            k: the number of the condition.
            samples: as the model draws them, (M, *shape).
        """

    @abstractmethod
    def publish(self, trainer: Trainer, data: ScoreData, truths: Truths, scores: EnsembleScores, shown: Tensor) -> None:
        """Writes pictures of the scores and of the first ensembles, of which a `summary` is given."""

    def prepared(self, data: ScoreData, model: ScoreModel, truths: Truths) -> Truths:
        """The examples with what they are compared by."""
        return truths

    def drawing(self, model: ScoreModel, truths: Truths, members: int) -> AbstractContextManager[None]:
        """The context in which the model draws."""
        return nullcontext()

    def setup(self, trainer: Trainer, pl_module: ScoreModel, stage: str) -> None:
        """Refuses what cannot be measured before anything is computed."""
        if stage != "predict":
            self.check(data_of(trainer, type(self).__name__))
            self.check_model(pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within the test, where the model holds the averaged weights."""
        self._evaluate(trainer, pl_module, "test")

    @torch.inference_mode()
    def _evaluate(self, trainer: Trainer, pl_module: ScoreModel, prefix: str) -> None:
        before, data, self._seconds = pl_module.score_function.evaluations, data_of(trainer), 0.0
        k, members = self.conditions, self.members
        if fast_dev_run(trainer):
            k, members = 2, min(whole(4, pl_module.sampler.particles), members)
        truths = self.prepared(data, pl_module, self._truths(data, k, pl_module.takes_condition))
        with self.drawing(pl_module, truths, members):
            self.last, shown = self._scores(trainer, pl_module, truths, members)
        n = self.last.conditions * self.last.members
        template = replace(
            blank_record(data, trainer.global_step, n),
            split=f"held out, {self.last.members} samples each{self.subject}",
            sampler=settings_of(pl_module.sampler) | {"guidance": settings_of(pl_module.guidance)},
            nfe=(pl_module.score_function.evaluations - before) * trainer.world_size / n,
            seed=self.seed,
            seconds=self._seconds,
        )
        found = self.last.found()
        for name, ((value, error, jackknife), floor, _) in found.items():
            if math.isfinite(value):  # unlike z-scores of samples that are all the same
                record = replace(template, metric=name, value=value, error=error, jackknife=list(jackknife))
                store(trainer, record if floor is None else replace(record, floor=floor, floor_n=n))
        self._log(pl_module, prefix, found)
        if self.logs_cost:
            cost = {f"{prefix}/nfe": template.nfe, f"{prefix}/sampling_seconds": template.seconds}
            pl_module.log_dict(cost, rank_zero_only=True)
        if writes_files(trainer):
            self.publish(trainer, data, truths, self.last, shown)

    def _truths(self, data: ScoreData, conditions: int, takes_condition: bool = True) -> Truths:
        """The conditions, the same on all processes."""
        generator = torch.Generator().manual_seed(self.seed)
        train, held_out = data.splits
        most = max(self.members, min(CLIMATOLOGY, NUMBERS // held_out.x[0].numel()))
        rows, others = (
            torch.randperm(len(part.x), generator=generator)[:n] for part, n in ((held_out, conditions), (train, most))
        )
        with seeded(derive_seed(self.seed)):  # of dequantization and of the noise of conditions
            x, y = data.pairs(Examples(*(part[rows] for part in held_out)), filled=False)
            more = data.as_input(train.x[others], filled=False)
        spread, some = float(more[~more.isnan()].std()), ~x.flatten(1).isnan().all(1)  # entries are known
        x, y = x[some], y[some]
        return Truths(x, y if takes_condition else None, y, data.to_reference(x), more, data.to_reference(more), spread)

    def _scores(self, trainer: Trainer, model: ScoreModel, truths: Truths, members: int) -> tuple[EnsembleScores, Tensor]:
        """The scores of all conditions, of which each process computes its share, and a summary of the first ensembles."""
        data, n, device = data_of(trainer), len(truths.x), model.device
        climatology = truths.climatology.to(device).double()
        reference = climatology, half_distance(climatology)
        scores = self.scores(data, truths, members, device)
        shown = torch.zeros(min(n, SHOWN), 2 + min(members, MEMBERS), *truths.truth.shape[1:])
        parts = torch.arange(trainer.global_rank, n, trainer.world_size).split(max(1, self.batch_size // members))
        visible = trainer.is_global_zero and trainer.progress_bar_callback is not None
        with fail_together(trainer):
            for part in tqdm(parts, desc=f"{n} {self.names[0]} x {members} samples", leave=False, disable=not visible):
                drawn = self._draw(model, part, truths.given, members)
                for k, x, samples in zip(
                    part.tolist(), drawn.split(members), data.to_reference(drawn).split(members), strict=True
                ):
                    further = self.further(data, truths, scores, k, x)
                    scores.add(k, samples, truths.truth[k].to(device), reference, **further)
                    if k < len(shown):
                        shown[k] = summary(samples).cpu()
        scores.reduce(lambda values: trainer.strategy.reduce(values, reduce_op="sum"))
        return scores, trainer.strategy.reduce(shown.to(device), reduce_op="sum").cpu()

    def _draw(self, model: ScoreModel, part: Tensor, given: Tensor | None, members: int) -> Tensor:
        """The members of some conditions, (conditions x members, *shape): member m of condition k is the sample k M + m."""
        numbers = (part[:, None] * members + torch.arange(members)).flatten()
        batches = numbers.split(whole(self.batch_size, model.sampler.particles))
        conditions = [None if given is None else given[batch // members] for batch in batches]
        start = time.monotonic()
        drawn = [model.draw(n.tolist(), self.seed, c).x for n, c in zip(batches, conditions, strict=True)]
        self._seconds += time.monotonic() - start
        return torch.cat(drawn)

    def _log(self, pl_module: ScoreModel, prefix: str, found: Mapping[str, Score]) -> None:
        entries: dict[str, float] = {}
        for name, (estimate, floor, limit) in found.items():
            values = {"": estimate.value, "_error": estimate.error, "_floor": floor, "_limit": limit}
            entries |= {name + ending: value for ending, value in values.items() if value is not None}
        for name, value in entries.items():
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name == "crps", rank_zero_only=True)


class Ensembles(EnsembleCallback):
    """Measures samples of a conditional model against the held-out examples that their conditions belong to, in `test`.

    It draws `conditions` x `members` samples and logs, with the prefix `test/`: `crps`, the continuous ranked probability
    score in the units of the data (0: perfect; without bias for any number of members); `crps_skill`, 1 - CRPS / CRPS of
    training examples at random (0: the condition does not help); `rank_deviation`, the share of truths whose rank among the
    members would have to change for a uniform rank histogram, with what a calibrated model has as its floor;
    `spread_skill`, the spread of the members over the error of their mean (1: calibrated, below: too sure); and, where the
    data compute the condition from the example by `given`, `residual`: the root mean square of A sample - condition over the
    standard deviation of the data. Each has its standard error over conditions, `_error`. `ranks/` and `ensembles/` have
    pictures. In `fast_dev_run` it draws few samples of two conditions.

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
        require(
            every_n_validations is None or every_n_validations >= 1,
            f"every_n_validations={every_n_validations}: must be at least 1, or null for test only",
        )
        super().__init__(conditions, members, seed, batch_size)
        self.in_fit, self.every_n_validations = every_n_validations is not None, every_n_validations or 1

    def check(self, data: ScoreData) -> None:
        """Also that they have conditions."""
        require(
            data.condition is not None,
            f"Ensembles: {type(data).__name__} has no labels or other conditions; remove the callback",
        )
        super().check(data)

    def check_model(self, model: ScoreModel) -> None:
        require(
            model.takes_condition,
            "Ensembles: the model is unconditional; train one with conditional=true, or remove the callback",
        )
        super().check_model(model)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Measures within validation, where the model holds the averaged weights."""
        if self.in_fit and self.due(trainer):
            with measuring(trainer, pl_module, "crps"):
                self._evaluate(trainer, pl_module, "val")

    def scores(self, data: ScoreData, truths: Truths, members: int, device: torch.device) -> EnsembleScores:
        numbers = () if data.given is None else ("squared_residual",)
        return EnsembleScores(len(truths.x), members, self.seed, device, numbers)

    def further(
        self, data: ScoreData, truths: Truths, scores: EnsembleScores, k: int, samples: Tensor
    ) -> Mapping[str, Tensor | float]:
        """Where the condition is computed from the example: the mean square of A sample - condition over the variance."""
        if data.given is None:
            return {}
        residual = data.given.operator.apply(samples) - truths.y[k].to(samples)
        return {"squared_residual": residual.double().square().nanmean() / truths.spread**2}

    def publish(self, trainer: Trainer, data: ScoreData, truths: Truths, scores: EnsembleScores, shown: Tensor) -> None:
        step, found, histogram = f"step {trainer.global_step}, ", scores.found(), scores.histogram()
        crps, skill, spread = (found[name].estimate.value for name in ("crps", "crps_skill", "spread_skill"))
        picture = figure_picture(calibration_figure({"the truth": histogram}))
        publish(trainer, "ranks", picture, f"{step}rank deviation {histogram.deviation:.3f}, spread / error {spread:.2f}")
        given = None if data.given is None else as_examples(data, data.given.operator, truths.y[:SHOWN])
        picture = ensemble_picture(data, truths.truth, given, shown)
        publish(trainer, "ensembles", picture, f"{step}CRPS {crps:.3g}, skill {skill:.2g}")


def as_examples(data: ScoreData, operator: LinearOperator, y: Tensor) -> Tensor:
    """Observations in the form of stored examples: the smallest examples with these."""
    return data.to_reference(operator.lift(y.nan_to_num(), data.shape))
