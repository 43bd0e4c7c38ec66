"""Detects a NaN or infinite loss, saves what caused it, and stops, skips the step or restores a checkpoint."""

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

from lightning_score.callbacks.policies import BEST, POLICIES
from lightning_score.callbacks.siblings import find_callback
from lightning_score.errors import InputError, Unmeasurable, require
from lightning_score.files import tolerating_full_disk
from lightning_score.sampling.diverged import Diverged
from lightning_score.score.function import ScoreField
from lightning_score.seeds import random_state, restore_random_state, seeded
from lightning_score.training.model import ScoreModel
from lightning_score.training.sharding import full_state_dict, is_sharded, unsharded


class _Timed(ScoreField):
    """A score that remembers the times at which it was evaluated."""

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
    """A loss that may be NaN or infinite, and what it was computed from.

    Args:
        step: the training step.
        epoch: its epoch.
        batch: data, labels and the number of the batch.
        random: the random state before it, where it does not follow from the number of the batch.
        bad: 1 if the loss is NaN or infinite, else 0.
        ready: after which `bad` has arrived from the GPU.
    """

    step: int
    epoch: int
    batch: tuple[Tensor, Tensor, int]
    random: dict[str, Tensor]
    bad: Tensor
    ready: torch.cuda.Event | None = None

    def to_host(self) -> "PendingLoss":
        """Starts the copy of `bad` to the CPU, which does not wait for it."""
        if self.bad.device.type == "cuda":
            host = torch.empty_like(self.bad, device="cpu", pin_memory=True)
            self.bad = host.copy_(self.bad, non_blocking=True)
            self.ready = torch.cuda.Event()
            self.ready.record()
        return self

    def is_bad(self) -> bool:
        """Whether the loss is NaN or infinite."""
        if self.ready is not None:
            self.ready.synchronize()
        return bool(self.bad)


class LossGuard(Callback):
    """Checks every loss before it changes the weights. A NaN or infinite loss is reported with its step, its batch and the
    noise levels of the examples that caused it; `broken/step_<step>.pt` in the run folder holds batch, losses, times and raw
    weights.

    On a GPU a fused optimizer skips such a step by itself, and the loss is checked one step later, so that nothing waits for
    it; with other optimizers every 50th loss is checked.

    It also decides how training continues when samples diverge or a metric of them cannot be computed;
    `broken/samples_<step>.pt` then holds the samples, their numbers and the weights.

    Args:
        policy: stop: training ends with an error, and `last.ckpt` is from before; skip: the step changes nothing, the
            measurement is skipped; restore: weights, averages and optimizer go back to `last.ckpt` or, after samples that
            fail, to `best.ckpt` if there is one, and training continues with the next batches.
        every_n_steps: how often the loss is checked, which waits for it; null: at every step, or, on a GPU without a fused
            optimizer, at every 50th; skip checks every step.

    Raises:
        InputError: every_n_steps is below 1.
    """

    def __init__(self, policy: Literal["stop", "skip", "restore"] = "stop", every_n_steps: int | None = None) -> None:
        require(every_n_steps is None or every_n_steps >= 1, f"every_n_steps={every_n_steps}: must be at least 1, or null")
        self.policy, self.every_n_steps = POLICIES[policy](), every_n_steps
        self._batch: tuple[Tensor, Tensor, int] | None = None
        self._random: dict[str, Tensor] = {}
        self._pending: PendingLoss | None = None  # of the last step, on its way from the GPU
        self._found_inf: Tensor | None = None  # 1 on the GPU if a loss of this step is bad
        self._bad_steps = self._failed_measurements = 0  # in a row
        self._step_is_bad = self._restores_best = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: ScoreModel, batch: Any, batch_idx: int) -> None:
        """Remembers the batch; restores `best.ckpt` if a validation asked for it, now that the model has its raw weights."""
        if self._restores_best:
            self._restores_best = False
            self.policy.recover(trainer, pl_module, BEST)  # last.ckpt was saved just before the validation
        self._batch = (*batch, batch_idx)
        self._random = {} if pl_module.draws.seed is not None else random_state(pl_module.device)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: ScoreModel, optimizer: torch.optim.Optimizer) -> None:
        """Begins a step without bad losses."""
        self._found_inf = None

    def on_before_backward(self, trainer: Trainer, pl_module: ScoreModel, loss: Tensor) -> None:
        """Checks this step's loss, or the previous one's where the optimizer skips bad steps by itself."""
        step, bad = trainer.global_step + 1, (~loss.detach().isfinite()).float()
        pending = PendingLoss(step, trainer.current_epoch, self._batch, self._random, bad)
        if self._skips_on_device(trainer, loss):
            self._tell_optimizers(trainer, pending)
            previous, self._pending = self._pending, pending.to_host()
            if previous is not None and previous.is_bad():
                self._handle(trainer, pl_module, previous)
                self._step_is_bad = self.policy.restores
            elif previous is not None:
                self._bad_steps = 0
        elif step % (self.every_n_steps or (1 if loss.device.type == "cpu" else self.policy.gpu_interval)) == 0:
            if _on_any_process(trainer, pending.is_bad()):
                self._handle(trainer, pl_module, pending)
                self._step_is_bad = True
            elif not self._step_is_bad:
                self._bad_steps = 0

    def _skips_on_device(self, trainer: Trainer, loss: Tensor) -> bool:
        """Whether the optimizers skip bad steps by themselves, so that nothing waits for the GPU."""
        fused = all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in trainer.optimizers)
        return (
            self.every_n_steps is None and loss.device.type == "cuda" and fused and not is_sharded(trainer.lightning_module)
        )

    def _tell_optimizers(self, trainer: Trainer, pending: PendingLoss) -> None:
        """Sets `found_inf` on all processes, as torch's GradScaler does."""
        if trainer.world_size > 1:
            dist.all_reduce(pending.bad, dist.ReduceOp.MAX)
        self._found_inf = pending.bad if self._found_inf is None else torch.maximum(self._found_inf, pending.bad)
        for optimizer in trainer.optimizers:
            optimizer.found_inf = self._found_inf

    def _handle(self, trainer: Trainer, pl_module: ScoreModel, pending: PendingLoss) -> None:
        """Reports a bad loss.

        Raises:
            InputError: the policy is to stop, or too many steps in a row were bad.
        """
        with unsharded(pl_module):
            report = self._report(trainer, pl_module, pending)
        self._bad_steps += 1
        if self._bad_steps > self.policy.patience:
            raise InputError(f"{report}; try a smaller learning rate, gradient clipping, or --guard.policy skip or restore")
        if trainer.is_global_zero:
            print(f"{report}; {self.policy.outcome}", flush=True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: ScoreModel, optimizer: torch.optim.Optimizer) -> None:
        """Drops the gradients of a bad step, and recovers."""
        if not self._step_is_bad:
            return
        self._step_is_bad = False
        for parameter in pl_module.parameters():
            parameter.grad = None
        self.policy.recover(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Checks the last loss, too."""
        pending, self._pending = self._pending, None
        if pending is not None and pending.is_bad():
            self._handle(trainer, pl_module, pending)
            self.policy.recover(trainer, pl_module)

    @contextmanager
    def measuring(self, trainer: Trainer, pl_module: ScoreModel, what: str) -> Iterator[None]:
        """Handles failures of samples that are drawn and measured inside a `with` block, in training.

        Args:
            trainer: the trainer.
            pl_module: the model.
            what: what is measured, for the message.

        Raises:
            InputError: they fail and the policy is to stop, or too many in a row failed.
        """
        try:
            yield
        except Unmeasurable as error:
            evidence = {"x": error.x, "indices": error.indices, "level": error.level} if isinstance(error, Diverged) else {}
            saved = _save_evidence(trainer, pl_module, evidence, f"samples_{trainer.global_step:07d}")
            report = f"step {trainer.global_step}, {what}: {error}{saved}"
            self._failed_measurements += 1
            if self._failed_measurements > self.policy.patience:
                raise InputError(f"{report}; --guard.policy skip skips such measurements") from error
            self._restores_best = self.policy.restores and (Path(trainer.default_root_dir) / BEST).exists()
            print(f"{report}; it is skipped{f', back to {BEST}' if self._restores_best else ''}", flush=True)
        else:
            self._failed_measurements = 0

    def on_validation_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Lets all processes restore if one does."""
        if trainer.state.fn == TrainerFn.FITTING and self.policy.restores:
            self._restores_best = _on_any_process(trainer, self._restores_best)

    def _report(self, trainer: Trainer, pl_module: ScoreModel, pending: PendingLoss) -> str:
        """Computes the losses of the batch again, saves them, and describes which are bad."""
        x, y, batch_idx = pending.batch
        timed = _Timed(pl_module.score_function)
        with torch.no_grad(), seeded(0, pl_module.device):
            restore_random_state(pending.random, pl_module.device)
            with pl_module.draws.of(trainer, pending.epoch, batch_idx):  # the same random numbers again
                losses = pl_module.losses((x, y), timed)
        bad = ~losses.isfinite()
        sigma = timed.process.noise_level(timed.times.expand(len(losses)).double())
        levels = ", ".join(f"{level:.3g}" for level in sorted(set(sigma[bad].tolist()))[:5])
        evidence = {"x": x, "y": y, "losses": losses, "times": timed.times, "batch_idx": batch_idx}
        saved = _save_evidence(trainer, pl_module, evidence, f"step_{pending.step:07d}")
        examples = f"of {int(bad.sum())} of {len(losses)} examples, at the noise levels sigma/alpha {levels}"
        where = examples if bool(bad.any()) else "on another process"
        return (
            f"step {pending.step}, batch {batch_idx} of epoch {pending.epoch}: the loss is NaN or infinite, {where}{saved}"
        )


def _on_any_process(trainer: Trainer, bad: bool) -> bool:
    """Whether something holds on any process: all do the same."""
    return trainer.strategy.reduce_boolean_decision(bad, all=False) if trainer.world_size > 1 else bad


def _save_evidence(trainer: Trainer, pl_module: ScoreModel, evidence: dict[str, Any], name: str) -> str:
    """Saves what failed, with the weights; returns where, for the message."""
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return ""
    file = Path(trainer.default_root_dir) / "broken" / f"{name}.pt"
    with tolerating_full_disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**evidence, "state_dict": full_state_dict(pl_module)}, file)
    return f" (saved: {file})"


def measuring(trainer: Trainer, pl_module: ScoreModel, what: str) -> AbstractContextManager[None]:
    """In training, lets the guard handle samples that fail inside a `with` block; outside of training, does nothing."""
    guard = find_callback(trainer, LossGuard)
    fitting = trainer.state.fn == TrainerFn.FITTING
    return guard.measuring(trainer, pl_module, what) if guard and fitting else nullcontext()
