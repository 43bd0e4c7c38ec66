"""How training continues after a NaN loss or samples that cannot be measured: the policy of `LossGuard`."""

from collections import Counter
from pathlib import Path

from lightning.pytorch import Trainer

from lightning_score.callbacks.base import find_callback
from lightning_score.callbacks.ema import EMA
from lightning_score.errors import require
from lightning_score.runs.checkpoints import SafeCheckpointIO
from lightning_score.training.model import ScoreModel
from lightning_score.training.sharding import load_weights

BEST, LAST = "best.ckpt", "last.ckpt"
PATIENCE = 10
"""Steps or measurements that may fail in a row before training stops whatever the policy."""


class Policy:
    """What follows a bad loss, or samples that cannot be measured.

    Args:
        name: stop: training ends with an error, and `last.ckpt` is from before; skip: the step changes nothing, the
            measurement is skipped; restore: weights, averages and optimizer go back to a checkpoint of the run, and the
            number of steps stays.

    Attributes:
        restores: whether the weights go back to those of a checkpoint.
        patience: failures in a row after which training stops.
        gpu_interval: steps between checks of the loss on a GPU whose optimizer cannot skip steps by itself.
        outcome: what happens to a bad step, for the message.
        failures: how many there were in a row, of steps and of measurements.
    """

    def __init__(self, name: str) -> None:
        self.restores, self._best_is_due = name == "restore", False
        self.patience, self.gpu_interval = 0 if name == "stop" else PATIENCE, 1 if name == "skip" else 50
        self.outcome = f"back to {LAST}" if self.restores else "the step is skipped"
        self.failures = Counter[str]()

    def fail(self, what: str, message: str) -> None:
        """Counts a failure.

        Args:
            what: of a step or of a measurement.
            message: the report.

        Raises:
            InputError: too many of this kind have failed in a row.
        """
        self.failures[what] += 1
        require(self.failures[what] <= self.patience, message)

    def recover(self, trainer: Trainer, pl_module: ScoreModel, name: str = LAST) -> None:
        """Loads the checkpoint of this name, if the policy is to restore.

        Raises:
            InputError: there is none yet.
        """
        if not self.restores:
            return
        file = Path(trainer.default_root_dir) / name
        require(file.exists(), f"{file}: there is no checkpoint yet to restore; train with a smaller learning rate")
        checkpoint = SafeCheckpointIO().load_checkpoint(file)
        load_weights(pl_module, checkpoint["state_dict"])
        if ema := find_callback(trainer, EMA):
            ema.on_load_checkpoint(trainer, pl_module, checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)

    def skip_measurement(self, trainer: Trainer) -> str:
        """Skips a measurement that has failed, and has the best checkpoint restored before the next step, if there is one;
        returns what happens, for the message.
        """
        self._best_is_due = self.restores and (Path(trainer.default_root_dir) / BEST).exists()
        return f"it is skipped, back to {BEST}" if self._best_is_due else "it is skipped"

    def after_validation(self, trainer: Trainer) -> None:
        """Lets all processes restore if one does."""
        if self.restores:
            self._best_is_due = trainer.strategy.reduce_boolean_decision(self._best_is_due, all=False)

    def before_step(self, trainer: Trainer, pl_module: ScoreModel) -> None:
        """Restores the best checkpoint if that is due: `last.ckpt` was saved just before the validation."""
        if self._best_is_due:
            self._best_is_due = False
            self.recover(trainer, pl_module, BEST)
