"""Parts of training steps: random numbers per batch, the mean loss, the step of log entries, the check of batches."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.seeds import counted_seed, seeded


def rank_and_size(trainer: Trainer | None) -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


class Draws:
    """The random numbers of training batches: they follow from the seed of the run, the epoch and the number of the batch
    among those of all processes. So batches share no random numbers, N processes draw the same as one process that
    accumulates N batches, and a resumed run needs no state.

    The seed comes from torch's random state at the construction of the model, because Lightning resets that state when it
    starts several processes. A run of an earlier version continues on one process with torch's sequence of random numbers.
    """

    def __init__(self) -> None:
        state = torch.get_rng_state()
        self._made, self._runs = int(torch.empty((), dtype=torch.int64).random_()), 0
        torch.set_rng_state(state)
        self.seed: int | None = None

    @property
    def counted(self) -> bool:
        """Whether the random numbers follow from the number of the batch."""
        return self.seed is not None

    def begin(self, trainer: Trainer) -> None:
        """Gives a new run its seed, the same on all processes."""
        self._runs += 1
        self.seed = trainer.strategy.broadcast(counted_seed(self._made, self._runs))

    def number(self, trainer: Trainer, batch_idx: int) -> int:
        """The number of a batch in the order in which a single process would see the batches of all."""
        return batch_idx * trainer.world_size + trainer.global_rank

    def of(self, trainer: Trainer, epoch: int, batch_idx: int) -> AbstractContextManager:
        """Sets torch's random numbers to those of a training batch inside a `with` block."""
        if self.seed is None:
            return nullcontext()
        return seeded(counted_seed(self.seed, epoch, self.number(trainer, batch_idx)), trainer.strategy.root_device)

    def resume(self, checkpoint: dict[str, Any], trainer: Trainer | None) -> None:
        """Continues with the seed of a checkpoint; if it has none (earlier versions), several processes use a new one."""
        if checkpoint.get("seed") is not None or rank_and_size(trainer)[1] == 1:
            self.seed = checkpoint.get("seed")


class MeanLoss:
    """The mean loss of the batches since it was last read, on this process."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, loss: Tensor) -> None:
        """Adds a batch."""
        self.total, self.count = self.total + loss.detach(), self.count + 1

    def take(self) -> Tensor:
        """The mean; starts the next one."""
        mean, self.total, self.count = self.total / self.count, 0.0, 0
        return mean

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """The sums of all processes; all processes must call it."""
        total = torch.as_tensor(float(self.total), dtype=torch.float64)
        if trainer.world_size > 1:
            total = trainer.strategy.all_gather(total.to(trainer.strategy.root_device))
        return {"sum": total.reshape(-1).tolist(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any], trainer: Trainer | None) -> None:
        """Continues with the sum of this process, or with the mean of all if their number has changed."""
        sums = state["sum"] if isinstance(state["sum"], list) else [state["sum"]]
        rank, processes = rank_and_size(trainer)
        self.total = sums[rank] if len(sums) == processes else sum(sums) / len(sums)
        self.count = state["count"]


class _StepsDone(_LoggerConnector):
    """Logs the entries of the k-th optimizer step, and of the validation after it, at step k, as `trainer.global_step`,
    pictures, checkpoints and records count. Lightning logs them at k - 1, except for a validation after `fit`.
    """

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step is None and metrics and "step" not in metrics:
            metrics, step = {"epoch": self.trainer.current_epoch, **metrics}, self.trainer.global_step
        super().log_metrics(metrics, step)


def log_at_steps_done(trainer: Trainer) -> None:
    """Makes a trainer log at the number of completed optimizer steps."""
    trainer._logger_connector.__class__ = _StepsDone


def require_batch(batch: Any, shape: Sequence[int], num_classes: int = 0) -> tuple[Tensor, Tensor]:
    """Checks a batch (x, y) for a model of examples of `shape`, without a transfer from the device.

    Args:
        batch: a batch of a data loader.
        shape: of one example.
        num_classes: number of classes of a conditional model; 0: labels are not used.

    Raises:
        InputError: the batch is invalid.
    """
    pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
    require(
        pair, "batch: must be a pair (x, y) of tensors, examples and labels; give a ScoreData, or a loader of such pairs"
    )
    x, y = batch
    if x.shape[1:] != tuple(shape) or not x.is_floating_point():
        raise InputError(
            f"a batch holds examples of shape {tuple(x.shape[1:])} and {x.dtype}, but the model was made for floats of "
            f"shape {tuple(shape)}: convert them in the data, or make the model for their shape"
        )
    if num_classes:
        known = y.dtype == torch.int64 and y.shape == x.shape[:1]
        known = known and (y.device.type != "cpu" or bool((y >= 0).all() and (y < num_classes).all()))
        if not known:
            ends = f", from {y.min().item():g} to {y.max().item():g}" if y.numel() else ""
            raise InputError(
                f"a batch holds labels of {y.dtype} and shape {tuple(y.shape)}{ends}: they must be torch.int64 of shape "
                f"({len(x)},), from 0 to {num_classes - 1}"
            )
    return x, y
