"""What training steps share: random numbers of their own for every batch, the mean loss, and the step of what is logged."""

import lightning_score.torchvision_guard  # noqa: F401

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.seeds import counted_seed, seeded


def place(trainer: Trainer | None) -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


class Draws:
    """The random numbers of training batches: they follow from the seed of the run, the epoch and the number of the batch
    among those of all processes. So no two batches share any, N processes draw what one does that accumulates the gradients
    of N batches, and a run that is resumed needs no state.

    The seed comes from the state of torch's random numbers when the model was made: where Lightning starts several processes
    it sets that state anew, later. A run begun by an earlier version continues on one process as it began, with torch's
    random numbers one after the other.
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
        """Gives a new run its seed, that of the first process in all."""
        self._runs += 1
        self.seed = trainer.strategy.broadcast(counted_seed(self._made, self._runs))

    def number(self, trainer: Trainer, batch_idx: int) -> int:
        """The number of a process's batch among those that one process, in place of all, would take in turn."""
        return batch_idx * trainer.world_size + trainer.global_rank

    def of(self, trainer: Trainer, epoch: int, batch_idx: int) -> AbstractContextManager:
        """Within it, torch's random numbers are those of a training batch; after it they continue as before."""
        if self.seed is None:
            return nullcontext()
        return seeded(counted_seed(self.seed, epoch, self.number(trainer, batch_idx)), trainer.strategy.root_device)

    def resume(self, checkpoint: dict[str, Any], trainer: Trainer | None) -> None:
        """Continues with the seed of a checkpoint; of an earlier version's, several processes begin with a new one."""
        if checkpoint.get("seed") is not None or place(trainer)[1] == 1:
            self.seed = checkpoint.get("seed")


class MeanLoss:
    """The mean loss of the batches since it was last taken, on this process."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, loss: Tensor) -> None:
        """Adds a batch."""
        self.total, self.count = self.total + loss.detach(), self.count + 1

    def take(self) -> Tensor:
        """The mean, which begins anew."""
        mean, self.total, self.count = self.total / self.count, 0.0, 0
        return mean

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """The sums of all processes; all must call it."""
        total = torch.as_tensor(float(self.total), dtype=torch.float64)
        if trainer.world_size > 1:
            total = trainer.strategy.all_gather(total.to(trainer.strategy.root_device))
        return {"sum": total.reshape(-1).tolist(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any], trainer: Trainer | None) -> None:
        """Continues with the sum of this process, or the mean of all where these were others."""
        sums = state["sum"] if isinstance(state["sum"], list) else [state["sum"]]
        rank, processes = place(trainer)
        self.total = sums[rank] if len(sums) == processes else sum(sums) / len(sums)
        self.count = state["count"]


class _StepsDone(_LoggerConnector):
    """Logs what belongs to the k-th optimizer step, and the validation after it, at k, as `trainer.global_step`, pictures,
    checkpoints and records have it. Lightning logs it at k - 1, and only a validation after the end of `fit` at k.
    """

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step is None and metrics and "step" not in metrics:
            metrics, step = {"epoch": self.trainer.current_epoch, **metrics}, self.trainer.global_step
        super().log_metrics(metrics, step)


def log_at_steps_done(trainer: Trainer) -> None:
    """Makes a trainer log at the number of optimizer steps done."""
    trainer._logger_connector.__class__ = _StepsDone


def require_batch(batch: Any, shape: Sequence[int], num_classes: int = 0) -> tuple[Tensor, Tensor]:
    """A batch (x, y), refused unless it is what a model of examples of `shape` takes; it costs no transfer from a device.

    Args:
        batch: what a data loader gives.
        shape: of one example.
        num_classes: of a model that takes the labels; 0: they are not used.

    Raises:
        InputError: it is something else.
    """
    pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
    require(
        pair, "a batch must be a pair (x, y) of tensors, examples and labels: give a ScoreData, or a loader of such pairs"
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
