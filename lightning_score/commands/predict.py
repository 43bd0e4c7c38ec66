"""The command `predict`: samples of a checkpoint."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.data import DataLoader, TensorDataset

from lightning_score.callbacks import SampleWriter
from lightning_score.callbacks.pictures import labels_in_turn
from lightning_score.commands.trainer import TrainerCommand
from lightning_score.errors import require

LEAST = {"num_samples": 1, "batch_size": 1, "seed": 0, "progressive": 0}


class Predict(TrainerCommand):
    """Draws samples from a checkpoint, as PNG and NPZ."""

    command = "predict"
    needs_step = False

    def add_options(self, parser: LightningArgumentParser) -> None:
        super().add_options(parser)
        parser.add_argument("--num_samples", type=int, default=64, help="Number of samples.")
        parser.add_argument("--seed", type=int, default=0, help="Seed of the samples; sample k is the same in any run.")
        parser.add_argument("--batch_size", type=int, default=1024, help="Samples drawn at once; more need more memory.")
        progressive = "Samples in `progress.png`, drawn once more, from noise to image; 0: no such picture."
        parser.add_argument("--progressive", type=int, default=0, help=progressive)
        labels = "Class labels, repeated in turn, as '[3]' or '[0, 1]'; all classes in turn by default."
        parser.add_argument("--labels", type=list[int] | None, default=None, help=labels)

    def check_options(self, config: Any) -> None:
        for name, least in LEAST.items():
            require(config[name] >= least, f"--{name} {config[name]}: must be at least {least}")

    def load_weights(self, checkpoint: dict[str, Any]) -> None:
        """Also checks the labels, which the model must know."""
        super().load_weights(checkpoint)
        if self.config_init["labels"] is not None:
            self.model.conditions.check(torch.tensor(self.config_init["labels"]), self.model.takes_condition)

    def own_callbacks(self, folder: Path) -> list[Callback]:
        return [SampleWriter(self.datamodule, self.config_init["progressive"], len(self._labels()))]

    def execute(self) -> None:
        config, processes = self.config_init, self.trainer.world_size
        require(
            config["num_samples"] >= processes,
            f"--num_samples {config['num_samples']}: must be at least the number of processes, {processes}",
        )
        numbers = torch.arange(config["num_samples"])
        columns = [numbers, torch.full_like(numbers, config["seed"])]
        if labels := self._labels():
            columns.append(torch.tensor(labels)[numbers % len(labels)])
        dataset = TensorDataset(*columns)
        self.trainer.predict(self.model, DataLoader(dataset, config["batch_size"]), return_predictions=False)
        if self.folder is None:
            print("fast_dev_run: nothing was kept")
        elif self.trainer.is_global_zero:
            pictures = ["samples.png", "progress.png"] if config["progressive"] else ["samples.png"]
            files = ", ".join(f"{self.folder}/{name}" for name in (*pictures, "samples.npz"))
            print(f"{config['num_samples']} samples: {files}")

    def _labels(self) -> list[int]:
        """The labels that samples get in turn: those asked for, or all classes of a model that takes labels."""
        return self.config_init["labels"] or list(range(labels_in_turn(self.model)))
