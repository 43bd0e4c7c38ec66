"""Notices a loss that is no number, keeps what is needed for a look at it, and stops, skips the step or goes back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_score.callbacks.ema import EMA
from lightning_score.errors import InputError, Unmeasurable, require
from lightning_score.files import tolerating_full_disk
from lightning_score.runs.checkpoints import SafeCheckpointIO
from lightning_score.sampling.diverged import Diverged
from lightning_score.score.function import ScoreField
from lightning_score.seeds import random_state, restore_random_state, seeded
from lightning_score.training.model import ScoreModel
from lightning_score.training.sharding import gathered, is_shared_out, load_weights, whole_state

BEST = "best.ckpt"
PATIENCE = 10
"""Steps skipped, or times gone back, in a row until training stops all the same."""


class _Timed(ScoreField):
    """A score that remembers the times at which it was asked."""

    def __init__(self, score: ScoreField) -> None:
        super().__init__(score.process)
        self._score = score
        self.times = torch.zeros(0)

    @property
    def evaluations(self) -> int:
        return self._score.evaluations

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.times = t
        return self._score(x, t, cond)


@dataclass
class PendingLoss:
    """A loss that may be no number, and what it came from.

    Args:
        step: the training step.
        epoch: its epoch.
        batch: data, labels and the number of the batch.
        random: the state of the random numbers before it, where they do not follow from its number.
        bad: 1 if the loss is no number, else 0.
        ready: after which `bad` has arrived from the GPU.
    """

    step: int
    epoch: int
    batch: tuple[Tensor, Tensor, int]
    random: dict[str, Tensor]
    bad: Tensor
    ready: torch.cuda.Event | None = None

    def sent(self) -> "PendingLoss":
        """On its way to the processor, which need not wait for it."""
        if self.bad.device.type == "cuda":
            there = torch.empty_like(self.bad, device="cpu", pin_memory=True)
            self.bad = there.copy_(self.bad, non_blocking=True)
            self.ready = torch.cuda.Event()
            self.ready.record()
        return self

    def known(self) -> bool:
        """Whether the loss is no number."""
        if self.ready is not None:
            self.ready.synchronize()
        return bool(self.bad)


class LossGuard(Callback):
    """Looks at every loss before it reaches the weights. One that is NaN or infinite is named with its step, its batch, and
    the noise levels of the examples that it comes from, and `broken/step_<step>.pt` in the run folder keeps batch, losses,
    times and raw weights.

    On a GPU a fused optimizer is told to leave such a step out, and the loss is looked at one step later, so that nothing
    waits for it; with other optimizers every 50th loss is looked at.

    It also decides what becomes of training when samples diverge, or a metric of them cannot be computed; then
    `broken/samples_<step>.pt` keeps the samples, their numbers and the weights.

    Args:
        policy: stop: training ends with an error, and `last.ckpt` is from before; skip: the step changes nothing, the
            measurement is left out; restore: weights, averages and optimizer go back to `last.ckpt`, or, when samples
            come to nothing, to `best.ckpt` if there is one, and training on with the batches that follow.
        every_n_steps: how often it looks, and waits for the loss; null: at every step, or, where on a GPU the optimizer is
            not fused, at every 50th; skip looks at every step.
    """

    def __init__(self, policy: Literal["stop", "skip", "restore"] = "stop", every_n_steps: int | None = None) -> None:
        require(every_n_steps is None or every_n_steps >= 1, f"every_n_steps={every_n_steps}: must be at least 1, or null")
        self.policy, self.every_n_steps = policy, every_n_steps
        self._batch: tuple[Tensor, Tensor, int] | None = None
        self._random: dict[str, Tensor] = {}
        self._pending: PendingLoss | None = None
        self._found: Tensor | None = None  # 1 on the GPU if a loss of this step is no number
        self._in_a_row = self._unmeasured = 0
        self._bad = self._back = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: ScoreModel, batch: Any, batch_idx: int) -> None:
        """Keeps the batch at hand; the averaged weights of validation are put away by now."""
        if self._back:
            self._back = False
            self._restore(trainer, pl_module, BEST)  # for the last is from just before the validation
        self._batch = (*batch, batch_idx)
        self._random = {} if pl_module.draws.counted else random_state(pl_module.device)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: ScoreModel, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is wrong yet with the step that begins."""
        self._found = None

    def on_before_backward(self, trainer: Trainer, pl_module: ScoreModel, loss: Tensor) -> None:
        """Looks at the loss, or at that of the step before."""
        step, bad = trainer.global_step + 1, (~loss.detach().isfinite()).float()
        look = PendingLoss(step, trainer.current_epoch, self._batch, self._random, bad)
        if self._leaves_out(trainer, loss):
            self._tell(trainer, look)
            look, self._pending = self._pending, look.sent()
            if look is not None and look.known():
                self._judge(trainer, pl_module, look)
                self._bad = self.policy == "restore"
            elif look is not None:
                self._in_a_row = 0
        elif step % (self.every_n_steps or (1 if loss.device.type == "cpu" or self.policy == "skip" else 50)) == 0:
            if self._agreed(trainer, look.known()):
                self._judge(trainer, pl_module, look)
                self._bad = True
            elif not self._bad:
                self._in_a_row = 0

    def _leaves_out(self, trainer: Trainer, loss: Tensor) -> bool:
        """Whether the optimizers can leave a step out by themselves, and should, so that nothing waits for a GPU."""
        fused = all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in trainer.optimizers)
        return (
            self.every_n_steps is None
            and loss.device.type == "cuda"
            and fused
            and not is_shared_out(trainer.lightning_module)
        )

    def _tell(self, trainer: Trainer, look: PendingLoss) -> None:
        """Lets the optimizers know, in all processes, as torch's GradScaler does."""
        if trainer.world_size > 1:
            dist.all_reduce(look.bad, dist.ReduceOp.MAX)
        self._found = look.bad if self._found is None else torch.maximum(self._found, look.bad)
        for optimizer in trainer.optimizers:
            optimizer.found_inf = self._found

    def _judge(self, trainer: Trainer, pl_module: ScoreModel, look: PendingLoss) -> None:
        """Says what is wrong, and stops if it is time.

        Raises:
            InputError: that is the policy, or skipping and going back have not helped.
        """
        with gathered(pl_module):
            said = self._described(trainer, pl_module, look)
        self._in_a_row += 1
        if self.policy == "stop" or self._in_a_row > PATIENCE:
            raise InputError(f"{said}; try a smaller learning rate, gradient clipping, or --guard.policy skip or restore")
        if trainer.is_global_zero:
            print(f"{said}; {'the step is skipped' if self.policy == 'skip' else 'back to last.ckpt'}", flush=True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: ScoreModel, optimizer: torch.optim.Optimizer) -> None:
        """Takes the gradients of a bad step away, and with `restore` goes back."""
        if not self._bad:
            return
        self._bad = False
        for parameter in pl_module.parameters():
            parameter.grad = None
        if self.policy == "restore":
            self._restore(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Looks at the last loss, too."""
        look, self._pending = self._pending, None
        if look is not None and look.known():
            self._judge(trainer, pl_module, look)
            if self.policy == "restore":
                self._restore(trainer, pl_module)

    @contextmanager
    def measuring(self, trainer: Trainer, pl_module: ScoreModel, what: str) -> Iterator[None]:
        """Samples are drawn and measured within, in training.

        Args:
            trainer: the trainer.
            pl_module: the model.
            what: what is measured, for the message.

        Raises:
            InputError: they come to nothing, and the policy is to stop.
        """
        try:
            yield
        except Unmeasurable as error:
            evidence = {"x": error.x, "indices": error.indices, "level": error.level} if isinstance(error, Diverged) else {}
            name = f"samples_{trainer.global_step:07d}"
            said = f"step {trainer.global_step}, {what}: {error}{self._keep(trainer, pl_module, evidence, name)}"
            self._unmeasured += 1
            if self.policy == "stop" or self._unmeasured > PATIENCE:
                raise InputError(f"{said}; --guard.policy skip leaves such measurements out") from error
            self._back = self.policy == "restore" and (Path(trainer.default_root_dir) / BEST).exists()
            print(f"{said}; it is left out{f', back to {BEST}' if self._back else ''}", flush=True)
        else:
            self._unmeasured = 0

    def on_validation_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """All processes do the same."""
        if trainer.state.fn == TrainerFn.FITTING and self.policy == "restore":
            self._back = self._agreed(trainer, self._back)

    def _agreed(self, trainer: Trainer, bad: bool) -> bool:
        """Whether it is so in any process: all do the same."""
        return trainer.strategy.reduce_boolean_decision(bad, all=False) if trainer.world_size > 1 else bad

    def _described(self, trainer: Trainer, pl_module: ScoreModel, look: PendingLoss) -> str:
        """What is wrong and where; keeps the evidence."""
        x, y, batch_idx = look.batch
        timed = _Timed(pl_module.score_function)
        with torch.no_grad(), seeded(0, pl_module.device):
            restore_random_state(look.random, pl_module.device)
            with pl_module.draws.of(trainer, look.epoch, batch_idx):  # the same random numbers again
                losses = pl_module.losses((x, y), timed)
        bad = ~losses.isfinite()
        sigma = (-timed.process.log_snr(timed.times.expand(len(losses)).double()) / 2).exp()
        levels = ", ".join(f"{level:.3g}" for level in sorted(set(sigma[bad].tolist()))[:5])
        evidence = {"x": x, "y": y, "losses": losses, "times": timed.times, "batch_idx": batch_idx}
        kept = self._keep(trainer, pl_module, evidence, f"step_{look.step:07d}")
        examples = f"{int(bad.sum())} of {len(losses)} examples, at the noise levels sigma/alpha {levels}"
        where = examples if bool(bad.any()) else "another process's examples"
        return f"step {look.step}, batch {batch_idx} of epoch {look.epoch}: the loss is no number, of {where}{kept}"

    def _keep(self, trainer: Trainer, pl_module: ScoreModel, evidence: dict[str, Any], name: str) -> str:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return ""
        file = Path(trainer.default_root_dir) / "broken" / f"{name}.pt"
        with tolerating_full_disk(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({**evidence, "state_dict": whole_state(pl_module)}, file)
        return f" (kept: {file})"

    def _restore(self, trainer: Trainer, pl_module: ScoreModel, name: str = "last.ckpt") -> None:
        """Weights, averages and optimizer of a checkpoint of this run; the steps done stay done."""
        file = Path(trainer.default_root_dir) / name
        require(file.exists(), f"{file}: there is no checkpoint yet to go back to; train with a smaller learning rate")
        checkpoint = SafeCheckpointIO().load_checkpoint(file)
        load_weights(pl_module, checkpoint["state_dict"])
        for callback in trainer.callbacks:
            if isinstance(callback, EMA):
                callback.on_load_checkpoint(trainer, pl_module, checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)


def measuring(trainer: Trainer, pl_module: ScoreModel, what: str) -> AbstractContextManager[None]:
    """Within it samples are drawn and measured: in training, the guard decides what follows if they come to nothing."""
    guards = [callback for callback in trainer.callbacks if isinstance(callback, LossGuard)]
    fitting = trainer.state.fn == TrainerFn.FITTING
    return guards[0].measuring(trainer, pl_module, what) if guards and fitting else nullcontext()
