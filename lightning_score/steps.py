"""The step under which metrics are logged: the number of optimizer steps done."""

import lightning_score.torchvision_guard  # noqa: F401

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector


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
