"""How training continues after a NaN loss or samples that cannot be measured: the policies of `LossGuard`."""

from pathlib import Path
from typing import ClassVar

from lightning.pytorch import Trainer

from lightning_score.callbacks.ema import EMA
from lightning_score.callbacks.siblings import find_callback
from lightning_score.errors import require
from lightning_score.runs.checkpoints import SafeCheckpointIO
from lightning_score.training.model import ScoreModel
from lightning_score.training.sharding import load_weights

BEST, LAST = "best.ckpt", "last.ckpt"
PATIENCE = 10
"""Steps or measurements that may fail in a row before training stops whatever the policy."""


class Policy:
    """What follows a bad loss, or samples that cannot be measured; by default both are skipped.

    Attributes:
        patience: failures in a row after which training stops.
        gpu_interval: steps between checks of the loss on a GPU whose optimizer cannot skip steps by itself.
        restores: whether the weights go back to those of a checkpoint.
        outcome: what happens to a bad step, for the message.
    """

    patience: ClassVar[int] = PATIENCE
    gpu_interval: ClassVar[int] = 50
    restores: ClassVar[bool] = False
    outcome: ClassVar[str] = ""

    def recover(self, trainer: Trainer, pl_module: ScoreModel, name: str = LAST) -> None:
        """Changes nothing."""


class Stop(Policy):
    """Training ends with an error, and `last.ckpt` is from before."""

    patience = 0


class Skip(Policy):
    """The step changes nothing."""

    gpu_interval, outcome = 1, "the step is skipped"


class Restore(Policy):
    """Weights, averages and optimizer go back to a checkpoint of the run; the number of steps stays."""

    restores, outcome = True, f"back to {LAST}"

    def recover(self, trainer: Trainer, pl_module: ScoreModel, name: str = LAST) -> None:
        """Loads the checkpoint of this name.

        Raises:
            InputError: there is none yet.
        """
        file = Path(trainer.default_root_dir) / name
        require(file.exists(), f"{file}: there is no checkpoint yet to restore; train with a smaller learning rate")
        checkpoint = SafeCheckpointIO().load_checkpoint(file)
        load_weights(pl_module, checkpoint["state_dict"])
        if ema := find_callback(trainer, EMA):
            ema.on_load_checkpoint(trainer, pl_module, checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)


POLICIES: dict[str, type[Policy]] = {"stop": Stop, "skip": Skip, "restore": Restore}
