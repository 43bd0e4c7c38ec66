"""The commands of the command line that work with a trainer: LightningCLI with run folders and checkpoints that stand for
themselves.
"""

import lightning_score.torchvision_guard  # noqa: F401

import shlex
import time
from collections.abc import Sequence
from contextlib import nullcontext
from errno import EIO
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, TensorDataset

from lightning_score.callbacks import BestCheckpoint, LastCheckpoint, SampleWriter, StepProgress
from lightning_score.callbacks.before import SamplingCost, check_data
from lightning_score.callbacks.pictures import labels_in_turn
from lightning_score.commands.base import TRAINER, ExperimentCLI
from lightning_score.commands.refusals import check_limits, refusing
from lightning_score.commands.run_config import RunConfig
from lightning_score.commands.schedule import resolve
from lightning_score.commands.summary import describe, report, summarize
from lightning_score.data import ScoreData
from lightning_score.errors import InputError, require
from lightning_score.runs.checkpoints import SafeCheckpointIO, read
from lightning_score.runs.folders import check_name, new_dated_folder, new_folder
from lightning_score.runs.lock import hold
from lightning_score.runs.logs import cut_logs
from lightning_score.runs.rendezvous import answering, folder_of_all
from lightning_score.runs.status import STOPPED_EARLY, RunStatus
from lightning_score.runs.trust import trust_for
from lightning_score.runs.wandb_logger import RunCSVLogger, in_trial, wandb_logger
from lightning_score.training.model import ScoreModel
from lightning_score.training.sharding import check_strategy


class ScoreCLI(ExperimentCLI):
    """ExperimentCLI for one command of `python -m lightning_score`.

    Args:
        arguments: the command and its options.
        checkpoint: the checkpoint that the command works on, if any.
        goes_on: the folder of a run that goes on there.
        given: the command and its options as they were written, which the run folder keeps.
    """

    def __init__(
        self,
        arguments: list[str],
        checkpoint: dict[str, Any] | None,
        goes_on: Path | None = None,
        given: Sequence[str] | None = None,
    ):
        self.command, self.checkpoint, self.goes_on, self.keeping = arguments[0], checkpoint, goes_on, False
        self.given = given or arguments
        super().__init__(
            arguments,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={"prog": "python -m lightning_score"},
        )

    def subcommands(self) -> dict[str, set[str]]:
        """Only the command that was given: the parsers of the others would take time for nothing."""
        hidden = {"model", "dataloaders", "datamodule", "train_dataloaders", "val_dataloaders", "weights_only"}
        return {
            self.command: {*hidden, "verbose", "return_predictions"}
            & signature(getattr(Trainer, self.command)).parameters.keys()
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds where results go and, for `predict`, which samples are drawn."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--trust", type=str, help="Modules of which a checkpoint may name classes, as my_parts,others.")
        if self.command == "fit":
            parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
            parser.add_argument("--output", type=str, help="Folder of this run; by default a new one, RUNS/NAME/date_time.")
            return
        parser.add_argument("--output", type=str, help="Folder for the results; a new one beside the checkpoint by default.")
        if self.command == "predict":
            parser.add_argument("--num_samples", type=int, default=64, help="Number of samples.")
            parser.add_argument("--seed", type=int, default=0, help="Seed of the samples; sample k is the same in any run.")
            parser.add_argument("--batch_size", type=int, default=1024, help="Samples drawn at once; more need more memory.")
            progressive = "Samples in `progress.png`, drawn once more, from noise to image; 0: no such picture."
            parser.add_argument("--progressive", type=int, default=0, help=progressive)
            labels = "Class labels, repeated in turn, as '[3]' or '[0, 1]'; all classes in turn by default."
            parser.add_argument("--labels", type=list[int] | None, default=None, help=labels)

    def _parse_ckpt_path(self) -> None:
        """The checkpoint's configuration stands before the arguments already, so that they override it."""

    def before_instantiate_classes(self) -> None:
        """Checks the options that no constructor sees; in training, chooses from the data what the config leaves to them."""
        config = self.config[self.command]
        for name, least in (("num_samples", 1), ("batch_size", 1), ("seed", 0), ("progressive", 0)):
            value = config.get(name, least)
            require(value >= least, f"--{name} {value}: must be at least {least}")
        check_name(config["name"], "--name")
        check_limits(self.command, config["trainer"])
        if self.command == "fit":
            self._check_steps(config["trainer"]["max_steps"])
            resolve(config)

    def _check_steps(self, steps: int) -> None:
        """Raises `InputError` where a checkpoint is beyond the last step; a run may be resumed at its very end."""
        done = 0 if self.checkpoint is None else self.checkpoint.get("global_step", 0)
        require(
            steps < 0 or steps > done or done == 0 or (steps == done and self.goes_on is not None),
            f"--trainer.max_steps {steps}: the checkpoint has {done} steps already, which count; give more than that",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the folder once model and data are known to fit, then the trainer with its loggers and callbacks."""
        config = self.config_init[self.command]
        settings, evaluate = config["trainer"], config["evaluate"]
        check_data(self.command, self.datamodule, config)  # what cannot work, before anything is written
        cost = SamplingCost(self.command, self.model, config)
        if self.checkpoint is not None:
            self._load_weights()
        if config.get("labels") is not None:
            self.model.check_labels(torch.tensor(config["labels"]))
        bare = settings["barebones"]
        callbacks = as_list(settings["callbacks"])
        if settings["enable_progress_bar"] is not False and not bare:
            callbacks.append(StepProgress())
        if settings["fast_dev_run"]:
            self.folder = None
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        strategy = settings["strategy"] if isinstance(settings["strategy"], str) else "auto"
        least = {"callbacks": [], "plugins": None, "logger": False, "enable_checkpointing": False}
        check_strategy(super().instantiate_trainer(strategy=strategy, **least, **kwargs))  # or this machine cannot
        self.folder = Path(folder_of_all(lambda: str(self._make_folder(config)), settings["num_nodes"]))
        callbacks.append(cost)
        if self.command == "predict":
            callbacks.append(SampleWriter(self.datamodule, config["progressive"], len(self._labels())))
        self.keeping = self.command == "fit" and settings["enable_checkpointing"] is not False and not bare
        if self.keeping:
            monitor = f"val/{evaluate.metric or 'loss'}"
            last = ModelCheckpoint(self.folder, "last", enable_version_counter=False)
            callbacks += [
                BestCheckpoint(str(self.folder), monitor),
                last,
                LastCheckpoint(self.folder),
            ]  # the last knows of the best
        kwargs |= {
            "default_root_dir": str(self.folder),
            "callbacks": callbacks,
            "plugins": self._plugins(settings["plugins"]),
        }
        loggers = False if bare else self._make_loggers(settings["logger"])
        trainer = super().instantiate_trainer(logger=loggers, **kwargs)
        check_strategy(trainer)
        return trainer

    @staticmethod
    def _plugins(chosen: Any) -> list[Any]:
        """The user's, and ours for checkpoints; `LastCheckpoint` queues jobs of SLURM again, between two steps."""
        plugins = chosen if isinstance(chosen, list) else [chosen] if chosen else []
        ours = [] if any(isinstance(plugin, CheckpointIO) for plugin in plugins) else [SafeCheckpointIO()]
        if SLURMEnvironment.detect() and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            ours.append(SLURMEnvironment(auto_requeue=False))
        return plugins + ours

    def _make_folder(self, config: Any) -> Path:
        if self.goes_on is not None:
            hold(self.goes_on)
            cut_logs(self.goes_on, self.checkpoint)
            return self.goes_on
        if config["output"]:
            folder = new_folder(Path(config["output"]))
        elif self.command == "fit":
            folder = new_dated_folder(Path(config["runs"]) / config["name"])
        else:
            folder = new_dated_folder(Path(config["ckpt_path"]).parent / self.command)
        if self.command == "fit":
            hold(folder)
        return folder

    def _make_loggers(self, chosen: Any) -> list[Logger]:
        """CSV always; in training and in trials also what the user chose, or else W&B as far as it can be had."""
        loggers: list[Logger] = [RunCSVLogger(self.folder)]
        if chosen not in (None, True, False):
            return loggers + (list(chosen) if isinstance(chosen, list) else [chosen])
        if (self.command == "fit" or in_trial()) and chosen is not False:
            wandb = wandb_logger(self.folder, name=f"{self.folder.parent.name}/{self.folder.name}")
            loggers += [] if wandb is None else [wandb]
        return loggers

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command; its folder says what becomes of it."""
        status = nullcontext() if self.folder is None or not self.trainer.is_global_zero else self._status()
        self.trainer._signal_connector.register_signal_handlers = lambda: None  # Lightning's talk to other processes
        try:
            with status, answering(self.trainer), refusing(self.config[self.command]["trainer"], TRAINER):
                super()._run_subcommand(subcommand)
        except SystemExit:
            again = [callback.requeue() for callback in self.trainer.callbacks if isinstance(callback, LastCheckpoint)]
            if any(again) and not self.trainer.is_global_zero:
                raise SystemExit(0) from None  # for SLURM may end all when one fails, before the job is queued again
            raise

    def _status(self) -> RunStatus:
        terminated = STOPPED_EARLY if in_trial() else "interrupted"  # so W&B's early termination ends a trial
        return RunStatus(self.folder, self.given, lambda: self.trainer.global_step, self.trainer.max_steps, terminated)

    def fit(self, model: ScoreModel, datamodule: ScoreData, ckpt_path: str | None = None) -> None:
        """Trains, measures the final weights if training did not end with a validation, and sums up."""
        start = time.monotonic()
        describe(model, self.folder)
        try:
            self._train(model, datamodule, ckpt_path)
        except SystemExit as end:  # so Lightning ends after a signal
            self._tell_interrupted()
            if isinstance(end, SIGTERMException) and not in_trial():
                raise SystemExit(143) from end  # as a shell says it
            raise
        unsaved = self._unsaved()
        again = trust_for(self.config.as_dict())
        summarize(self.trainer, self.folder, time.monotonic() - start, self.keeping and not unsaved, again)
        if unsaved:
            raise OSError(EIO, f"the weights of step {self.trainer.global_step} are not saved ({unsaved})", str(self.folder))

    def _unsaved(self) -> str:
        """Why the final weights are in no checkpoint, though they should be; nothing if they are."""
        if not self.keeping or not self.trainer.is_global_zero:
            return ""
        file = self.folder / "last.ckpt"
        return getattr(self.trainer.strategy.checkpoint_io, "unsaved", {}).get(str(file), "" if file.exists() else "no file")

    def _train(self, model: ScoreModel, datamodule: ScoreData, ckpt_path: str | None) -> None:
        self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        evaluate = self.config_init["fit"]["evaluate"]
        if not self.trainer.interrupted and evaluate.validated_at != self.trainer.global_step:
            if self.keeping:
                self.trainer.save_checkpoint(self.folder / "last.ckpt")  # for a signal may end the validation
            self.trainer.validate(model, datamodule=datamodule, verbose=False)
            if self.keeping:
                self.trainer.save_checkpoint(self.folder / "last.ckpt")

    def _tell_interrupted(self) -> None:
        """Says how training goes on from what is kept of it."""
        if not self.keeping or not self.trainer.is_global_zero:
            return
        if not (self.folder / "last.ckpt").exists():
            print("\nstopped before the first checkpoint: nothing is kept")
        else:
            print(f"\nstopped; kept up to step {read(self.folder / 'last.ckpt')['global_step']}; to go on:")
            options = shlex.quote(str(self.folder)) + trust_for(self.config.as_dict())
            print(f"python -m lightning_score fit --ckpt_path {options}")

    def validate(self, model: ScoreModel, datamodule: ScoreData, ckpt_path: str) -> None:
        """Measures the checkpoint on the held-out data, and its samples."""
        self._restore_step()
        self.trainer.validate(model, datamodule=datamodule, verbose=False)
        report(self.trainer, self.folder)

    def test(self, model: ScoreModel, datamodule: ScoreData, ckpt_path: str) -> None:
        """Measures the checkpoint on the test data, and its samples."""
        self._restore_step()
        self.trainer.test(model, datamodule=datamodule, verbose=False)
        report(self.trainer, self.folder)

    def predict(self, model: ScoreModel, datamodule: ScoreData, ckpt_path: str) -> None:
        """Draws samples from the checkpoint."""
        config, processes = self.config_init["predict"], self.trainer.world_size
        require(
            config["num_samples"] >= processes,
            f"--num_samples {config['num_samples']}: must be at least the number of processes, {processes}",
        )
        numbers = torch.arange(config["num_samples"])
        columns = [numbers, torch.full_like(numbers, config["seed"])]
        if labels := self._labels():
            columns.append(torch.tensor(labels)[numbers % len(labels)])
        dataset = TensorDataset(*columns)
        self.trainer.predict(model, DataLoader(dataset, config["batch_size"]), return_predictions=False)
        if self.folder is None:
            print("fast_dev_run: nothing was kept")
        elif self.trainer.is_global_zero:
            pictures = ["samples.png", "progress.png"] if config["progressive"] else ["samples.png"]
            files = ", ".join(f"{self.folder}/{name}" for name in (*pictures, "samples.npz"))
            print(f"{config['num_samples']} samples: {files}")

    def _labels(self) -> list[int]:
        """Those that samples are given in turn: the ones asked for, or else all classes of a model that takes labels."""
        return self.config_init[self.command]["labels"] or list(range(labels_in_turn(self.model)))

    def _load_weights(self) -> None:
        """Gives the model the checkpoint's weights, which are the averaged ones."""
        whole = self.command == "predict" or "fit_loop" in self.checkpoint.get("loops", {})
        require(
            whole, "--ckpt_path: the checkpoint has no loops, so its training step is not known; only predict can use it"
        )
        try:
            self.model.load_state_dict(self.checkpoint["state_dict"])
            if self.command != "fit":
                self.config_init[self.command]["ema"].raw_state = self.checkpoint.get("current_model_state")
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:300]
            raise InputError(
                f"the checkpoint's weights do not fit the network that the options describe: {detail}"
            ) from error

    def _restore_step(self) -> None:
        """Gives the trainer the training step of the checkpoint, under which results are logged."""
        try:
            self.trainer.fit_loop.load_state_dict(self.checkpoint["loops"]["fit_loop"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"--ckpt_path: the checkpoint does not hold the step of its training ({reason})") from error


def as_list(chosen: Any) -> list[Any]:
    """What may be given as one, as several or not at all, as a list."""
    return [] if chosen is None else list(chosen) if isinstance(chosen, list | tuple) else [chosen]
