"""Detects a NaN or infinite loss, saves what caused it, and stops, skips the step or restores a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_score.callbacks.base import find_callback, writes_files
from lightning_score.callbacks.policies import Policy
from lightning_score.errors import Unmeasurable, require
from lightning_score.files import replacing, tolerating_full_disk
from lightning_score.sampling.diverged import Diverged
from lightning_score.score.function import ScoreWrapper
from lightning_score.seeds import random_state, restore_random_state, seeded
from lightning_score.training.model import ScoreModel
from lightning_score.training.sharding import full_state_dict, is_sharded, unsharded


class _Timed(ScoreWrapper):
    """A score that remembers the times at which it was evaluated."""

    times = torch.zeros(0)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.times = t
        return self.score(x, t, cond)


@dataclass(frozen=True)
class PendingLoss:
    """A loss that may be NaN or infinite, and what it is computed from.

    Args:
        step: the training step.
        epoch: its epoch.
        batch: data and labels.
        batch_idx: the number of the batch in the epoch.
        random: the random state before it, where it does not follow from the number of the batch.
        bad: 1 if the loss is NaN or infinite, else 0.
        ready: after which `bad` has arrived from the GPU.
    """

    step: int
    epoch: int
    batch: tuple[Tensor, Tensor]
    batch_idx: int
    random: dict[str, Tensor]
    bad: Tensor | None = None
    ready: torch.cuda.Event | None = None

    def to_host(self) -> "PendingLoss":
        """Starts the copy of `bad` to the CPU, which does not wait for it."""
        if self.bad is None or self.bad.device.type != "cuda":
            return self
        host = torch.empty_like(self.bad, device="cpu", pin_memory=True).copy_(self.bad, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return replace(self, bad=host, ready=ready)

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
        self.policy, self.every_n_steps = Policy(policy), every_n_steps
        self._current: PendingLoss  # of this batch
        self._due = False  # whether it is checked after the backward pass
        self._told: dist.Work | None = None  # which ends when all processes have told whether theirs is bad
        self._pending: PendingLoss | None = None  # of the batch before, on its way from the GPU
        self._found_inf: Tensor | None = None  # 1 on the GPU if a loss of this step is bad
        self._step_is_bad = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: ScoreModel, batch: Any, batch_idx: int) -> None:
        """Remembers the batch, after the policy has recovered from a failed measurement."""
        self.policy.before_step(trainer, pl_module)
        random = {} if pl_module.draws.seed is not None else random_state(pl_module.device)
        self._current = PendingLoss(trainer.global_step + 1, trainer.current_epoch, batch, batch_idx, random)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: ScoreModel, optimizer: torch.optim.Optimizer) -> None:
        """Begins a step without bad losses."""
        self._found_inf = None

    def on_before_backward(self, trainer: Trainer, pl_module: ScoreModel, loss: Tensor) -> None:
        """Checks the previous step's loss where the optimizer skips bad steps by itself; otherwise lets processes tell one
        another whether this loss is bad while they compute gradients.
        """
        bad = (~loss.detach().isfinite()).float()
        current = replace(self._current, bad=bad)
        if self._skips_on_device(trainer, loss):
            self._tell_optimizers(trainer, bad)
            previous, self._pending = self._pending, current.to_host()
            if previous is not None and self._check(trainer, pl_module, previous, previous.is_bad()):
                self._step_is_bad = self.policy.restores
            return
        interval = self.every_n_steps or (1 if loss.device.type == "cpu" else self.policy.gpu_interval)
        self._due = current.step % interval == 0
        if self._due:
            self._current = current
            self._told = dist.all_reduce(bad, dist.ReduceOp.MAX, async_op=True) if trainer.world_size > 1 else None

    def on_after_backward(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Checks this step's loss."""
        if self._due:
            self._due = False
            if self._told is not None:
                self._told.wait()
            self._step_is_bad |= self._check(trainer, pl_module, self._current, self._current.is_bad())

    def _skips_on_device(self, trainer: Trainer, loss: Tensor) -> bool:
        """Whether the optimizers skip bad steps by themselves, so that nothing waits for the GPU."""
        fused = all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in trainer.optimizers)
        possible = loss.device.type == "cuda" and fused and not is_sharded(trainer.lightning_module)
        return possible and self.every_n_steps is None

    def _tell_optimizers(self, trainer: Trainer, bad: Tensor) -> None:
        """Sets `found_inf` on all processes, as torch's GradScaler does."""
        if trainer.world_size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self._found_inf = bad if self._found_inf is None else torch.maximum(self._found_inf, bad)
        for optimizer in trainer.optimizers:
            optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]

    def _check(self, trainer: Trainer, pl_module: ScoreModel, loss: PendingLoss, bad: bool) -> bool:
        """Reports a loss if it is bad, and returns whether it is.

        Raises:
            InputError: the policy is to stop, or too many steps in a row were bad.
        """
        if not bad:
            if not self._step_is_bad:  # by an earlier batch of this step
                self.policy.failures["step"] = 0
            return False
        with unsharded(pl_module):
            report = self._report(trainer, pl_module, loss)
        advice = "try a smaller learning rate, gradient clipping, or --guard.policy skip or restore"
        self.policy.fail("step", f"{report}; {advice}")
        if trainer.is_global_zero:
            print(f"{report}; {self.policy.outcome}", flush=True)
        return True

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
        if pending is not None and self._check(trainer, pl_module, pending, pending.is_bad()):
            self.policy.recover(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Lets all processes recover from a failed measurement in the same way."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.policy.after_validation(trainer)

    def _report(self, trainer: Trainer, pl_module: ScoreModel, pending: PendingLoss) -> str:
        """Computes the losses of the batch again, saves them, and describes which are bad."""
        (x, y), batch_idx = pending.batch, pending.batch_idx
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
        place = f"step {pending.step}, batch {batch_idx} of epoch {pending.epoch}"
        return f"{place}: the loss is NaN or infinite, {where}{saved}"


def _save_evidence(trainer: Trainer, pl_module: ScoreModel, evidence: dict[str, Any], name: str) -> str:
    """Saves what failed, with the weights; returns where, for the message."""
    if not writes_files(trainer):
        return ""
    file = Path(trainer.default_root_dir) / "broken" / f"{name}.pt"
    with tolerating_full_disk(file), replacing(file) as temporary:
        torch.save({**evidence, "state_dict": full_state_dict(pl_module)}, temporary)
    return f" (saved: {file})"


@contextmanager
def measuring(trainer: Trainer, pl_module: ScoreModel, what: str) -> Iterator[None]:
    """In training, lets the guard handle samples that are drawn and measured inside a `with` block and fail.

    Args:
        trainer: the trainer.
        pl_module: the model.
        what: name of the measurement, for the message.

    Raises:
        InputError: they fail and the policy is to stop, or too many in a row failed.
    """
    guard = find_callback(trainer, LossGuard)
    if guard is None or trainer.state.fn != TrainerFn.FITTING:
        yield
        return
    try:
        yield
    except Unmeasurable as error:
        evidence = {"x": error.x, "indices": error.indices, "level": error.level} if isinstance(error, Diverged) else {}
        saved = _save_evidence(trainer, pl_module, evidence, f"samples_{trainer.global_step:07d}")
        report = f"step {trainer.global_step}, {what}: {error}{saved}"
        guard.policy.fail("measurement", f"{report}; --guard.policy skip skips such measurements")
        print(f"{report}; {guard.policy.skip_measurement(trainer)}", flush=True)
    else:
        guard.policy.failures["measurement"] = 0
