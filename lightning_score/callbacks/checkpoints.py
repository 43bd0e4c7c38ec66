"""Which checkpoints a run keeps."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the least value of a metric that not every validation measures.

    Args:
        folder: where `best.ckpt` goes.
        monitor: the metric.
    """

    def __init__(self, folder: str, monitor: str) -> None:
        super().__init__(folder, "best", monitor, enable_version_counter=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares what was measured; where nothing was, nothing is saved."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
