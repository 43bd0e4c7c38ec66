"""Parts of training steps: the check of batches, random numbers per batch, the mean loss, the step of logs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from torch import Tensor

from lightning_score.conditions import Condition
from lightning_score.errors import require
from lightning_score.seeds import counted_seed, seeded


def require_batch(batch: Any, shape: Sequence[int], condition: Condition | None = None) -> tuple[Tensor, Tensor]:
    """Checks a batch (x, y) for a model of examples of `shape`, without a transfer from the device.

    Args:
        batch: a batch of a data loader.
        shape: of one example.
        condition: what a conditional model is given; None: y is not used.

    Raises:
        InputError: the batch is invalid.
    """
    pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
    require(
        pair, "batch: must be a pair (x, y) of tensors, examples and labels; give a ScoreData, or a loader of such pairs"
    )
    x, y = batch
    require(
        x.shape[1:] == tuple(shape) and x.is_floating_point(),
        f"batch: holds examples of shape {tuple(x.shape[1:])} and {x.dtype}; must be floats of shape {tuple(shape)}, as the "
        "model: convert them in the data, or make the model for their shape",
    )
    if condition is not None and (len(x) or len(y)):  # where only other processes have examples, there are none
        require(len(y) == len(x), f"batch: holds {len(x)} examples and {len(y)} conditions; give one per example")
        condition.check(y, empty=not condition.num_classes, values=y.device.type == "cpu")
    return x, y


class Draws:
    """The random numbers of training batches: they follow from the seed of the run, the epoch and the number of the batch
    among those of all processes. So batches share no random numbers, N processes draw the same as one process that
    accumulates N batches, and a resumed run needs no state.

    Attributes:
        seed: of the run; None in a resumed run of an earlier version, which continues on one process with torch's sequence
            of random numbers.

    The seed comes from torch's random state at the construction of the model, because Lightning resets that state when it
    starts several processes.
    """

    def __init__(self) -> None:
        state = torch.get_rng_state()
        self._made, self._runs = int(torch.empty((), dtype=torch.int64).random_()), 0
        torch.set_rng_state(state)
        self.seed: int | None = None

    def begin(self, trainer: Trainer) -> None:
        """Gives a new run its seed, the same on all processes."""
        self._runs += 1
        self.seed = trainer.strategy.broadcast(counted_seed(self._made, self._runs))

    def number(self, trainer: Trainer, batch_idx: int) -> int:
        """The number of a batch in the order in which a single process would see the batches of all."""
        return batch_idx * trainer.world_size + trainer.global_rank

    def of(self, trainer: Trainer, epoch: int, batch_idx: int) -> AbstractContextManager[None]:
        """Sets torch's random numbers to those of a training batch inside a `with` block."""
        if self.seed is None:
            return nullcontext()
        return seeded(counted_seed(self.seed, epoch, self.number(trainer, batch_idx)), trainer.strategy.root_device)

    def resume(self, checkpoint: dict[str, Any], trainer: Trainer) -> None:
        """Continues with the seed of a checkpoint; if it has none (earlier versions), several processes use a new one."""
        if checkpoint.get("seed") is not None or trainer.world_size == 1:
            self.seed = checkpoint.get("seed")


class MeanLoss:
    """The mean loss of the batches since it was last read, on this process."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, loss: Tensor) -> None:
        """Adds a batch."""
        self.total, self.count = self.total + loss.detach(), self.count + 1

    def take(self) -> Tensor | float:
        """The mean; starts the next one."""
        mean, self.total, self.count = self.total / self.count, 0.0, 0
        return mean

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """The sums of all processes; all processes must call it."""
        total = torch.as_tensor(float(self.total), dtype=torch.float64)
        if trainer.world_size > 1:
            total = trainer.strategy.all_gather(total.to(trainer.strategy.root_device))
        return {"sum": total.reshape(-1).tolist(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any], trainer: Trainer) -> None:
        """Continues with the sum of this process, or with the mean of all if their number has changed."""
        sums = state["sum"] if isinstance(state["sum"], list) else [state["sum"]]
        self.total = sums[trainer.global_rank] if len(sums) == trainer.world_size else sum(sums) / len(sums)
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
