"""A run's configuration, in its folder, its loggers and its checkpoints."""

import lightning_score.lean_imports

from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

import lightning_score
from lightning_score import stopping
from lightning_score.commands.learned_grid import with_times
from lightning_score.files import replace_text
from lightning_score.runs.folders import point_latest
from lightning_score.runs.wandb_logger import RunCSVLogger
from lightning_score.training.model import ScoreModel


class RunConfig(SaveConfigCallback):
    """Saves the configuration of a run in its folder, its loggers and its checkpoints; not of a `fast_dev_run`."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes and logs the configuration, on rank zero."""
        replace_text(Path(trainer.default_root_dir) / "config.yaml", self._text)
        for logger in trainer.loggers:
            if not isinstance(logger, RunCSVLogger):  # config.yaml is next to its metrics
                logger.log_hyperparams(self._plain)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on `latest` points to this run: a failed start does not count."""
        if trainer.is_global_zero and not self.config.get("output"):
            point_latest(Path(trainer.default_root_dir))

    def on_validation_end(self, trainer: Trainer, pl_module: ScoreModel) -> None:  # type: ignore[override]
        """Writes it again with the times of its samples, if they were learned; checkpoints, of other weights, hold none."""
        file, config = Path(trainer.default_root_dir) / "config.yaml", with_times(self.config, pl_module)
        if config is not None and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            replace_text(file, self.parser.dump(config, skip_none=False))

    on_test_end = on_predict_end = on_validation_end  # type: ignore[assignment]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning ignores Ctrl-C from now on; here a second one ends the process at once."""
        stopping.reinstall()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration, from which model, data, sampler and evaluation can be rebuilt."""
        checkpoint["config"] = self._plain
        checkpoint["lightning_score_version"] = lightning_score.__version__

    @cached_property
    def _text(self) -> str:
        return self.parser.dump(self.config, skip_none=False)

    @cached_property
    def _plain(self) -> dict[str, Any]:
        return yaml.safe_load(self._text)
