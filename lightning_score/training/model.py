"""The LightningModule, which connects the parts of an experiment and contains no mathematics."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_score.conditions import Condition
from lightning_score.data import ScoreData
from lightning_score.data.augmentation import Augmentation
from lightning_score.errors import require
from lightning_score.files import CheckpointPath
from lightning_score.guidance import Guidance
from lightning_score.memory import retain_freed_memory
from lightning_score.networks import Network
from lightning_score.networks.grid import channels_last
from lightning_score.objective import DenoisingScoreMatching, Objective
from lightning_score.process import NoiseProcess
from lightning_score.sampling.diverged import DivergenceMonitor
from lightning_score.sampling.noise import NoiseStream
from lightning_score.sampling.sampler import Observer, PredictorCorrector, Sampler, Samples
from lightning_score.score.function import Conditioned, ScoreField, ScoreFunction
from lightning_score.score.parametrization import Noise, Parametrization
from lightning_score.seeds import derive_seed, seeded
from lightning_score.tensors import without_missing
from lightning_score.training.conditions import Conditions, NetworkCallable, in_turn
from lightning_score.training.inference import FittingBatches, completed, inference, whole
from lightning_score.training.learned_times import check_grid, learn_times
from lightning_score.training.loading import Loadable, other_model
from lightning_score.training.optimization import Optimization
from lightning_score.training.prior import check_prior
from lightning_score.training.starting import begin
from lightning_score.training.steps import Draws, MeanLoss, log_at_steps_done, require_batch

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
PLAIN = ("shape", "num_classes", "conditional", "label_dropout")
"""What a checkpoint holds of a model built in Python: give its parts, which it cannot hold safely, to `load_from_checkpoint`
again, as in `load_from_checkpoint(path, network=..., process=...)`. Of one built by the command line it holds all options.
"""


class ScoreModel(Loadable):
    """A score model: network, noise process and parametrization, trained by an objective and sampled by a sampler.

    Args:
        network: makes the network from the data's shape and number of classes, or `condition`.
        shape: shape of one example; the command line takes it from the data.
        process: the noise process.
        parametrization: what the network predicts; the noise by default.
        objective: what is minimized; denoising score matching with weight sigma^2 by default.
        sampler: how samples are drawn; reverse diffusion with 1000 steps by default.
        num_classes: number of classes of the data; the command line takes it from the data.
        condition: what the data give with each example other than a class label; the command line takes it from the data.
        conditional: train the score given the class label or the condition.
        label_dropout: probability with which training drops the label or condition, so that the model also learns the
            unconditional score; ClassifierFree needs it. Only with conditional=true.
        augmentation: random changes of the training images, which the network is given; null: none. Only with a network
            that has as many `augmentations`.
        guidance: what guides the samples to a condition or an observation; null: only that of a conditional model.
        optimizer: the optimizer; Adam with learning rate 1e-3 by default.
        lr_scheduler: learning-rate schedule, stepped after every optimizer step; null: constant.
        start_from: a checkpoint, or the name of a trained model, from whose averaged weights the network starts; null: from
            random weights.
        compile: the mode in which torch.compile compiles the network and whole steps of samplers: default, reduce-overhead
            (with CUDA graphs) or max-autotune; null: no compilation. It pays on GPUs, after a minute or two of compilation,
            in training and for many samples; the short evaluations of `fit` and `validate` do not use it.

    Raises:
        InputError: parts that do not fit one another, found before any training.
    """

    missing = False
    """Whether NaN in x means a missing entry, which the loss leaves out; `setup` takes it from the data."""

    def __init__(
        self,
        network: NetworkCallable,
        shape: Sequence[int],
        process: NoiseProcess,
        parametrization: Parametrization | None = None,
        objective: Objective | None = None,
        sampler: Sampler | None = None,
        num_classes: int = 0,
        condition: Condition | None = None,
        conditional: bool = False,
        label_dropout: float = 0.0,
        augmentation: Augmentation | None = None,
        guidance: Guidance | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        start_from: CheckpointPath | None = None,
        compile: CompileMode | None = None,
    ):
        super().__init__()
        retain_freed_memory()
        torch.set_flush_denormal(True)  # subnormal numbers slow the backward pass of small scores by a factor of six
        by_command_line = _given_hyperparameters.get() is not None
        self.save_hyperparameters(*(() if by_command_line else PLAIN), logger=False)
        if by_command_line and condition is not None:
            self.save_hyperparameters({"condition": condition.settings}, logger=False)
        self.conditions = Conditions(num_classes, condition, conditional, label_dropout)
        self.shape, self.num_classes, self.conditional = tuple(shape), self.conditions.num_classes, conditional
        self.objective = objective or DenoisingScoreMatching()
        self.learned, self.start_from = self.objective.learned, start_from
        self.objective.check(process)
        built = self.conditions.build(network, self.shape)
        channels_last(built)
        self.augmentation, self.compiled = augmentation, compile
        if augmentation is not None:
            augmentation.check(built.augmentations)
        if compile is not None:
            built.compile(mode=compile)
        self.score_function = ScoreFunction(built, process, parametrization or Noise(), condition=self.conditions.given)
        self.use(sampler, guidance)
        self._optimization = Optimization(optimizer, lr_scheduler)
        self.draws, self._mean_loss, self._batches = Draws(), MeanLoss(), FittingBatches()

    def use(self, sampler: Sampler | None, guidance: Guidance | None) -> None:
        """Replaces the sampler (null: reverse diffusion with 1000 steps) and the guidance (null: none).

        Raises:
            InputError: they do not fit the process or the training.
        """
        process, sampler = self.score_function.process, sampler or PredictorCorrector()
        sampler.check_for(process, self.objective.levels(process))
        check_grid(self, sampler)
        if guidance is not None:
            guidance.check(self.conditions.facts(self.shape, compiled=self.compiled is not None))
            guidance.load_models(partial(other_model, self))
        needing = any(move.method.needs_observation for move in sampler.moves(process))
        require(
            not needing or (guidance is not None and bool(guidance.observing())),
            f"sampler={type(sampler).__name__}: needs an observation; set model.guidance to one, as PseudoInverse",
        )
        self.sampler, self.guidance = sampler, guidance

    def setup(self, stage: str) -> None:
        """Gives a run its seed, and gives the objective the training data, un-augmented, if it needs them."""
        log_at_steps_done(self.trainer)
        self.trainer.precision_plugin.convert_module(self)  # before a checkpoint is loaded, or that would be rounded
        if stage == TrainerFn.FITTING:
            self.draws.begin(self.trainer)
            begin(self)
        data = getattr(self.trainer, "datamodule", None)
        self.missing = isinstance(data, ScoreData) and data.missing
        self.check_missing(self.missing)
        if not isinstance(data, ScoreData):
            return
        if self.guidance is not None:
            self.guidance.check_range(data.data_range)
        if self.takes_condition:
            self.conditions.take_from(data)
        if stage != TrainerFn.PREDICTING and self.sampler.initial.is_prior:
            check_prior(self.score_function.process, data)
        if stage != TrainerFn.PREDICTING and self.objective.needs_data:
            with seeded(derive_seed()):  # of dequantization: the same in all processes
                self.objective.prepare(data.as_input(data.splits.train.x), data.splits.train.y)

    def check_missing(self, missing: bool) -> None:
        """Raises `InputError` if entries of the data may be missing, which the model cannot leave out of its loss."""
        named = f"objective={type(self.objective).__name__}: needs complete examples, and entries of these data are missing"
        require(not missing or self.objective.leaves_out_missing, f"{named}; use DenoisingScoreMatching")
        require(
            not missing or self.augmentation is None,
            f"augmentation={type(self.augmentation).__name__}: mixes entries, some of which are missing in these data; set "
            "it to null, and use flips, rolls and rotations of the data (data.augment)",
        )

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The objective's mean over a batch (x, y), a scalar."""
        return self.losses(batch).mean()

    def losses(self, batch: tuple[Tensor, Tensor], score: ScoreField | None = None) -> Tensor:
        """The objective of each example of a batch (x, y), (B,); of another score on request."""
        x, y = batch
        augmenting: AbstractContextManager[None] = nullcontext()
        if self.augmentation is not None and self.training:
            x, done = self.augmentation(x)
            augmenting = cast(Network, self.score_function.network).augmented(done)
        score, cond = score or self.score_function, self.conditions.of_batch(y, self.training)
        with augmenting:
            if self.missing:
                x, known = without_missing(x)
                return self.objective(score, x, cond, known)
            return self.objective(score, x, cond)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch; every `log_every_n_steps` steps logs the mean loss since then, of all processes."""
        batch = require_batch(batch, self.shape, self.conditions.given)
        with self.draws.of(self.trainer, self.trainer.current_epoch, batch_idx):
            loss = self.loss(batch)
        self._mean_loss.add(loss)
        logged_every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._mean_loss.count >= logged_every * self.trainer.accumulate_grad_batches:
            self.log("train/loss", self._mean_loss.take(), prog_bar=True, sync_dist=True)
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the seed of the run, and the losses since their mean was last logged."""
        checkpoint |= {"loss": self._mean_loss.state_dict(self.trainer), "seed": self.draws.seed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resumes with these, and with the schedule; a model that is loaded alone needs neither."""
        if self._trainer is not None:
            self._optimization.adapt(checkpoint)
            self._mean_loss.load_state_dict(checkpoint.get("loss", {"sum": 0.0, "count": 0}), self._trainer)
            self.draws.resume(checkpoint, self._trainer)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `val/loss`, or `test/loss`, always with the same times and noise."""
        batch = require_batch(batch, self.shape, self.conditions.given)
        with seeded(self.draws.number(self.trainer, batch_idx), self.device), inference(self):
            loss = self.loss(batch) if len(batch[0]) else batch[0].new_zeros(())  # where only other processes have examples
        name = "test/loss" if self.trainer.testing else "val/loss"
        self.log(name, loss, batch_size=len(batch[0]) * self.trainer.world_size, sync_dist=True)  # the mean is rounded

    test_step = validation_step

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Samples:
        """Draws the samples of a batch of numbers and seeds (all equal), each (B,), and, optionally, conditions (B, ...)."""
        indices, seeds, *cond = batch
        shown = self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None
        return self.draw(indices.tolist(), int(seeds[0]), cond[0] if cond else None, progress=shown)

    def on_test_start(self) -> None:
        """Learns the times of the sampler, if it has to, before the time of the samples is measured."""
        learn_times(self, self.sampler, progress=True)

    on_predict_start = on_test_start

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule after every step."""
        return self._optimization.configure(self.parameters())

    def on_train_start(self) -> None:
        """Restores the settings of the options after a checkpoint was loaded."""
        done = self.trainer.global_step
        self._optimization.keep_settings(self.trainer.estimated_stepping_batches - done, resumed=done > 0)

    @torch.inference_mode()
    def draw(
        self,
        indices: Sequence[int],
        seed: int = 0,
        cond: Tensor | None = None,
        sampler: Sampler | None = None,
        trajectory: bool = False,
        progress: bool = False,
        observe: Observer | None = None,
    ) -> Samples:
        """Draws the samples of given numbers, in one batch or, where that does not fit into memory, in several: sample k
        depends on the seed and k, not on its batch. Of a sampler with `particles` whole groups are drawn.

        Args:
            indices: the numbers k, (B,).
            seed: seed of the run.
            cond: conditions (B, ...), such as class labels (B,); null: all classes, or those of held-out data, in turn.
            sampler: a sampler to use instead of the model's.
            trajectory: keep x after every move.
            progress: show a progress bar.
            observe: called after every move of the sampler.

        Raises:
            InputError: there is not one condition per sample, one does not fit, or the model is unconditional.
            Diverged: samples became too large, NaN or infinite.
        """
        if cond is not None:
            self.conditions.check(cond, self.takes_condition, len(indices))
        sampler = sampler or self.sampler
        learn_times(self, sampler, progress)
        particles, asked = sampler.particles, None
        if particles > 1:
            indices, same, asked = completed(indices, particles)
            cond = None if cond is None else cond[same]

        def draw(here: slice) -> Samples:
            numbers, monitor = indices[here], DivergenceMonitor(indices[here], observe)
            score = self.sampled_score(torch.as_tensor(numbers, device=self.device), None if cond is None else cond[here])
            noise = NoiseStream(seed, numbers, self.shape, self.device, self.dtype)  # type: ignore[arg-type]
            with inference(self):
                drawn = sampler(score, noise, trajectory, progress, monitor, self.compiled)
            monitor.check(drawn.x)
            return drawn

        drawn = self._batches.draw(len(indices), draw, particles)
        return drawn if asked is None else drawn.rows(asked)

    def sampled_score(self, numbers: Tensor, cond: Tensor | None) -> ScoreField:
        """The score that samples of these numbers follow: guided, and given their conditions."""
        own: ScoreField = self.score_function
        score = own if self.guidance is None else self.guidance.guide(own, numbers)
        if self.takes_condition:
            score = Conditioned(score, self.conditions.default(numbers) if cond is None else cond.to(self.device))
        return score

    @property
    def takes_condition(self) -> bool:
        """Whether samples have conditions, for the network or the guidance."""
        return self.conditional or (self.guidance is not None and self.guidance.labeled)

    def sample(
        self, n: int, seed: int = 0, batch_size: int = 1024, progress: bool = False, cond: Tensor | None = None
    ) -> Tensor:
        """Samples 0 to n - 1 of a seed: (n, *shape), in the range of the data; `batch_size` changes the memory only. They
        have the conditions `cond`, (m, ...), in turn.
        """
        require(n >= 1, f"n={n}: must be at least 1")
        if cond is not None:
            self.conditions.check(cond, self.takes_condition)
        batches = torch.arange(n).split(whole(batch_size, self.sampler.particles))
        given = [None if cond is None else in_turn(cond, batch) for batch in batches]
        drawn = [self.draw(k.tolist(), seed, y, progress=progress).x for k, y in zip(batches, given, strict=True)]
        return torch.cat(drawn)
