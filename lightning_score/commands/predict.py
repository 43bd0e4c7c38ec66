"""The command `predict`: samples of a checkpoint."""

import lightning_score.lean_imports  # noqa: F401

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_score.callbacks import SampleWriter
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.conditions import Given, read_conditions
from lightning_score.commands.configs import trusted_modules
from lightning_score.commands.observations import observe, with_settings
from lightning_score.commands.trainer import TrainerCommand
from lightning_score.data.sources import texts
from lightning_score.errors import InputError, require
from lightning_score.guidance.observed import ObservationGuidance
from lightning_score.observations.files import StoredObservation, read_observation
from lightning_score.runs.trust import check_origin
from lightning_score.training.conditions import in_turn

LEAST = {"num_samples": 1, "batch_size": 1, "seed": 0, "progressive": 0, "samples_per_observation": 1}
NUMBER = 64
"""Samples by default."""


class Predict(TrainerCommand):
    """Draws samples from a checkpoint, as PNG and NPZ."""

    command = "predict"
    needs_step = False
    cond: Tensor | None = None
    """The conditions that samples have in turn; None for a model that takes none."""
    asked: Tensor | None = None
    """Those of the options, in the units of the data."""
    stored: StoredObservation | None = None
    """The content of the file with observations."""
    observed: ObservationGuidance | None = None
    """The guidance by the observations of the file."""

    def complete(self, given: Arguments) -> Arguments:
        """Also reads the observations, whose operator and noise the guidance gets.

        Raises:
            InputError: their file is missing, damaged or names other classes.
        """
        arguments, paths = super().complete(given), given.get("--observation")
        if not paths or given.asks_for_help:
            return arguments
        try:
            self.stored = read_observation(paths[-1])
        except InputError as error:
            raise InputError(f"--observation {error}") from error
        check_origin(self.stored.settings, trusted_modules(given), f"--observation {paths[-1]}")
        return with_settings(arguments, self.stored)

    def add_options(self, parser: LightningArgumentParser) -> None:
        super().add_options(parser)
        number = f"Number of samples; {NUMBER} by default, or as many as all observations get."
        parser.add_argument("--num_samples", type=int | None, default=None, help=number)
        parser.add_argument("--seed", type=int, default=0, help="Seed of the samples; sample k is the same in any run.")
        parser.add_argument("--batch_size", type=int, default=1024, help="Samples drawn at once; more need more memory.")
        progressive = "Samples in `progress.png`, drawn once more, from noise to data; 0: no such picture."
        parser.add_argument("--progressive", type=int, default=0, help=progressive)
        labels = "Class labels, repeated in turn, as '[3]' or '[0, 1]'; all classes in turn by default."
        parser.add_argument("--labels", type=list[int] | None, default=None, help=labels)
        condition = (
            "Conditions, repeated in turn, in the units of the data: numbers, as '[0.3, 1.5]', a list of such rows, or an "
            "NPY or NPZ file with a row for each; those of the held-out examples in turn by default."
        )
        parser.add_argument("--condition", type=Given | None, default=None, help=condition)
        observation = "File with one or several observations: NPZ, with or without their operator and noise, NPY or PNG."
        parser.add_argument("--observation", type=str | None, default=None, help=observation)
        each = "Samples of each observation, one after the other; their mean, deviation and quantiles are written, too."
        parser.add_argument("--samples_per_observation", type=int, default=16, help=each)
        ends = "What bytes 0 and 255 of observations stand for, as '[-1, 1]'; the range of the data, if they have one."
        parser.add_argument("--observation_range", type=list[float] | None, default=None, help=ends)

    def check_options(self, config: Any) -> None:
        for name, least in LEAST.items():
            require(config[name] is None or config[name] >= least, f"--{name} {config[name]}: must be at least {least}")
        given = (self.stored is None) == (config["observation"] is None)
        require(given, "observation: a config cannot give it; give --observation on the command line")
        require(config["labels"] is None or config["condition"] is None, "--labels and --condition: give one of them")

    def make(self) -> None:
        """Also gives the guidance its observations.

        Raises:
            InputError: they do not fit, or it has none.
        """
        super().make()
        config, model = self.config_init, self.model
        if self.stored is not None:
            each, ends = config["samples_per_observation"], config["observation_range"]
            self.observed = observe(model, self.datamodule, self.stored, config["observation"], each, ends)
        if config["num_samples"] is None:
            per = config["samples_per_observation"]
            config["num_samples"] = per * len(self.observed.given()) if self.observed else NUMBER

    def load_weights(self, checkpoint: dict[str, Any]) -> None:
        """Also finds the conditions, which the model must know."""
        super().load_weights(checkpoint)
        self.cond = self._conditions()

    def _conditions(self) -> Tensor | None:
        """Those asked for, or all classes, or those of the held-out examples; None for a model that takes none."""
        model, given, labels = self.model, self.config_init["condition"], self.config_init["labels"]
        conditions, kind = model.conditions, model.conditions.kind
        if labels is not None:
            require(
                kind is None or conditions.num_classes > 0, "--labels: the model takes no class labels; give --condition"
            )
            conditions.check(torch.tensor(labels), model.takes_condition)
            return torch.tensor(labels)
        if given is not None:
            kind = conditions.require_taken(model.takes_condition)
            named = texts(self.datamodule.hparams.get("condition"))
            self.asked = read_conditions(given, kind, named[0] if len(named) == 1 else "condition")
            found: Tensor = self.datamodule.to_condition(self.asked)
            conditions.check(found, model.takes_condition)
        elif not model.takes_condition:
            return None
        else:
            try:
                conditions.take_from(self.datamodule)
            except InputError as error:
                raise InputError(f"{error}; or give --condition instead of those of the held-out examples") from error
            found = torch.arange(conditions.num_classes) if conditions.in_turn is None else conditions.in_turn
        if not conditions.num_classes:
            conditions.in_turn = found
        return found

    def own_callbacks(self, folder: Path) -> list[Callback]:
        alternating = 0 if self.cond is None or not self.model.num_classes else len(self.cond)
        return [SampleWriter(self.datamodule, self.config_init["progressive"], alternating, self.asked, self.observed)]

    def _loader(self, columns: list[Tensor]) -> DataLoader[Any]:
        """Batches of numbers, seeds and conditions, each (n, ...); samples that depend on one another go to one process."""
        particles, size = self.model.sampler.particles, self.config_init["batch_size"]
        if particles == 1:
            return DataLoader(TensorDataset(*columns), size)
        groups = list(zip(*(column.split(particles) for column in columns), strict=True))
        return DataLoader(groups, max(size // particles, 1), collate_fn=_joined)  # type: ignore[arg-type]

    def execute(self) -> None:
        config, processes, particles = self.config_init, self.trainer.world_size, self.model.sampler.particles
        require(
            config["num_samples"] > particles * (processes - 1),
            f"--num_samples {config['num_samples']}: must be at least the number of processes, {processes}"
            + (f", times particles={particles}" if particles > 1 else ""),
        )
        numbers = torch.arange(config["num_samples"])
        columns = [numbers, torch.full_like(numbers, config["seed"])]
        if self.cond is not None:
            columns.append(in_turn(self.cond, numbers))
        self.trainer.predict(self.model, self._loader(columns), return_predictions=False)
        if self.folder is None:
            print("fast_dev_run: nothing was kept")
        elif self.trainer.is_global_zero:
            pictures = ["samples.png", *["progress.png"] * bool(config["progressive"])]
            pictures += ["posterior.png"] if self.observed else []
            files = ", ".join(f"{self.folder}/{name}" for name in (*pictures, "samples.npz"))
            print(f"{config['num_samples']} samples: {files}")


def _joined(groups: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """The columns of several groups."""
    return [torch.cat(column) for column in zip(*groups, strict=True)]
