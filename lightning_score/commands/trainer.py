"""What the commands with a trainer share: LightningCLI with run folders and self-contained checkpoints."""

import lightning_score.lean_imports  # noqa: F401

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from lightning_score.callbacks import StepProgress, SystemMetrics
from lightning_score.callbacks.base import as_list
from lightning_score.callbacks.sampling_cost import SamplingCost, check_data
from lightning_score.commands.arguments import CONFIG, Arguments, Layer
from lightning_score.commands.base import ExperimentCLI
from lightning_score.commands.configs import load_checkpoint, over_checkpoint, trusted_modules, with_found_configs
from lightning_score.commands.refusals import check_limits, refusing
from lightning_score.commands.run_config import RunConfig
from lightning_score.errors import require
from lightning_score.runs.averages import LENGTH, Averages
from lightning_score.runs.checkpoints import SafeCheckpointIO
from lightning_score.runs.console import write_console
from lightning_score.runs.folders import check_name, new_dated_folder, new_folder
from lightning_score.runs.pretrained import find_checkpoint, results_of
from lightning_score.runs.records import described
from lightning_score.runs.rendezvous import agree_on_folder, explain_lost_peer
from lightning_score.runs.status import STOPPED_EARLY, recording
from lightning_score.runs.trial import in_trial, stopped_by_wandb
from lightning_score.runs.wandb_logger import RunCSVLogger, wandb_logger
from lightning_score.training.learned_times import require_own_times
from lightning_score.training.optimization import untried
from lightning_score.training.sharding import check_strategy


class TrainerCommand(ExperimentCLI, ABC):
    """A command with a trainer. The constructor parses its options, `make` makes model and data, `run` runs it.

    Args:
        given: the command and its options as the user wrote them.

    Attributes:
        command: its name.
        needs_checkpoint: whether it needs a checkpoint.
        needs_step: whether it needs the training step of its checkpoint.
        folder: the folder of its results; None for a `fast_dev_run`.

    Raises:
        InputError: a config or a checkpoint is missing or damaged, or an option is refused.
    """

    command: ClassVar[str]
    needs_checkpoint: ClassVar[bool] = True
    needs_step: ClassVar[bool] = True
    folder: Path | None = None

    def __init__(self, given: Arguments):
        self.given = given
        super().__init__(
            self.complete(given),
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={"prog": f"python -m lightning_score {self.command}", "description": type(self).__doc__},
        )

    def complete(self, given: Arguments) -> Arguments:
        """Finds the files of the configs, and puts the configuration of the checkpoint, which it reads, below the arguments.

        Raises:
            InputError: a config or the checkpoint is missing or damaged.
        """
        arguments, paths = with_found_configs(given), given.get("--ckpt_path")
        if paths:
            self.checkpoint = load_checkpoint(paths[-1], trusted_modules(given))
            return self.over_checkpoint(arguments)
        needs = f"{self.command} needs a checkpoint: --ckpt_path runs/NAME/latest/last.ckpt"
        require(not self.needs_checkpoint or given.asks_for_help, needs)
        return arguments.over(*(Layer({"name": Path(name).stem}) for name in given.get(CONFIG)[-1:]))

    def over_checkpoint(self, arguments: Arguments) -> Arguments:
        """The arguments over the configuration of the checkpoint, if there is one."""
        return arguments if self.checkpoint is None else over_checkpoint(arguments, self.checkpoint)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the checkpoint, the folder of the results and what else the command has."""
        super().add_arguments_to_parser(parser)
        checkpoint = "The checkpoint; for fit also a run folder, or last."
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=checkpoint)
        parser.add_argument("--trust", type=str, help="Modules of which a checkpoint may name classes, as my_parts,others.")
        self.add_options(parser)

    def add_options(self, parser: LightningArgumentParser) -> None:
        """Adds the options of this command alone."""
        parser.add_argument("--output", type=str, help="Folder for the results; a new one next to the checkpoint.")
        length = "Length of an average of the weights, as 0.07, made of those that training kept with ema.lengths."
        parser.add_argument("--ema_length", type=float | None, default=None, help=length)

    def before_instantiate_classes(self) -> None:
        """Checks the options that no constructor checks."""
        check_name(self.config["name"], "--name")
        check_limits(self.command, self.config["trainer"])
        if self.config.get("ema_length") is not None:
            self._averages().error(self.config["ema_length"], "--ema_length ")
        self.check_options(self.config)

    def check_options(self, config: Any) -> None:
        """Checks the options of this command alone.

        Raises:
            InputError: one is refused.
        """

    def instantiate_classes(self) -> None:
        """Left to `make`: the constructor only parses."""

    def make(self) -> None:
        """Makes model and data.

        Raises:
            InputError: they refuse their options.
        """
        with self.explaining(), nullcontext() if self.command == "fit" else untried():
            self.config_init = self.parser.instantiate_classes(self.config)
            self.model, self.datamodule = self.config_init["model"], self.config_init["data"]

    def run(self) -> None:
        """Makes the trainer and runs the command; `run.json` in its folder holds its state."""
        with self.explaining():
            self.trainer = self.instantiate_trainer()
        # Lightning's handlers would also signal other processes.
        self.trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        with self._status(), explain_lost_peer(self.trainer), refusing(self.config["trainer"]):
            self.execute()

    @abstractmethod
    def execute(self) -> None:
        """Does the work of the command with the trainer, and prints its results."""

    def _status(self) -> AbstractContextManager[None]:
        if self.folder is None or not self.trainer.is_global_zero:
            return nullcontext()
        given, steps = self.given.command_line(), self.trainer.max_steps
        return recording(self.folder, given, lambda: self.trainer.global_step, steps, _state_after_sigterm)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the folder once model and data are known to fit, then the trainer with its loggers and callbacks."""
        config, settings = self.config_init, self.config_init["trainer"]
        check_data(self.command, self.datamodule, config)  # before anything is written
        cost = SamplingCost(self.command, self.model, config, self.datamodule)
        if self.checkpoint is not None:
            self.load_weights(self.checkpoint)
        callbacks = as_list(settings["callbacks"])
        if settings["enable_progress_bar"] is not False and not settings["barebones"]:
            callbacks.append(StepProgress())
        watched = settings["barebones"] or any(isinstance(callback, SystemMetrics) for callback in callbacks)
        if settings["fast_dev_run"]:
            self.folder = None
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        strategy = settings["strategy"] if isinstance(settings["strategy"], str) else "auto"
        least: dict[str, Any] = {"callbacks": [], "plugins": None, "logger": False, "enable_checkpointing": False}
        check_strategy(super().instantiate_trainer(strategy=strategy, **least, **kwargs))  # or this machine cannot
        self.folder = Path(agree_on_folder(lambda: str(self.make_folder(config)), settings["num_nodes"]))
        kwargs |= {
            "default_root_dir": str(self.folder),
            "callbacks": [*callbacks, cost, *([] if watched else [SystemMetrics()]), *self.own_callbacks(self.folder)],
            "plugins": _plugins(settings["plugins"]),
            "logger": False if settings["barebones"] else self._loggers(settings["logger"], self.folder),
        }
        trainer = super().instantiate_trainer(**kwargs)
        check_strategy(trainer)
        if trainer.is_global_zero:
            write_console(self.folder)
        return trainer

    def own_callbacks(self, folder: Path) -> list[Callback]:
        """The callbacks of this command alone."""
        return []

    def make_folder(self, config: Any) -> Path:
        """Makes the folder of the results: the one asked for, or a new one."""
        return new_folder(Path(config["output"])) if config["output"] else new_dated_folder(self.parent_folder(config))

    def parent_folder(self, config: Any) -> Path:
        """Where new folders of results are made."""
        return results_of(config["ckpt_path"]) / self.command

    def _loggers(self, chosen: Any, folder: Path) -> list[Logger]:
        """CSV always; in training and in trials also the user's own, or else W&B where it can be used."""
        loggers: list[Logger] = [RunCSVLogger(folder)]
        if chosen not in (None, True, False):
            return loggers + as_list(chosen)
        if (self.command == "fit" or in_trial()) and chosen is not False:
            wandb = wandb_logger(folder, name=f"{folder.parent.name}/{folder.name}")
            loggers += [] if wandb is None else [wandb]
        return loggers

    def load_weights(self, checkpoint: dict[str, Any]) -> None:
        """Gives the model the checkpoint's weights, which are the averaged ones, or an average of another length.

        Raises:
            InputError: they do not fit the network, the data have another condition than in training, or the command needs a
                training step and the checkpoint has none.
        """
        steps = not self.needs_step or "fit_loop" in checkpoint.get("loops", {})
        require(steps, "--ckpt_path: the checkpoint has no loops, so its training step is unknown; only predict can use it")
        trained, now = checkpoint.get("hyper_parameters", {}).get("condition"), self.model.hparams.get("condition")
        given, known = (described(condition or "nothing") for condition in (now, trained))
        other = f"gives the condition {given}, and the model was trained with {known}"
        require(trained in (None, now) or not self.model.conditional, f"--data: {other}; give the same")
        length = self.config_init.get("ema_length")
        self.load_state(checkpoint["state_dict"] if length is None else self._averages().make(length)[0])
        self.config_init["ema"].length = checkpoint.get(LENGTH) if length is None else length
        require_own_times(self.model)

    def _averages(self) -> Averages:
        return Averages(find_checkpoint(self.config["ckpt_path"]), self.checkpoint or {})


def _state_after_sigterm() -> str:
    """In a trial, W&B's early termination sends the signal."""
    return STOPPED_EARLY if in_trial() and stopped_by_wandb() else "interrupted"


def _plugins(chosen: Any) -> list[Any]:
    """The user's, and ours for checkpoints; `LastCheckpoint` requeues jobs of SLURM itself, between two steps."""
    plugins = as_list(chosen)
    ours: list[Any] = [] if any(isinstance(plugin, CheckpointIO) for plugin in plugins) else [SafeCheckpointIO()]
    if SLURMEnvironment.detect() and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        ours.append(SLURMEnvironment(auto_requeue=False))
    return plugins + ours
