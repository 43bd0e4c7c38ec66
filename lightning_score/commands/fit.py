"""The command `fit`: training, in a run folder."""

import lightning_score.lean_imports  # noqa: F401

import shlex
import time
from errno import EIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_score.callbacks import BestCheckpoint, LastCheckpoint, LearnedWeighting
from lightning_score.commands.arguments import Arguments, Layer
from lightning_score.commands.configs import trusted_modules
from lightning_score.commands.learned_grid import forget_times
from lightning_score.commands.resume import find_resumed_run, resume
from lightning_score.commands.schedule import resolve_auto
from lightning_score.commands.summary import print_start, print_training
from lightning_score.commands.total_steps import linked
from lightning_score.commands.trainer import TrainerCommand
from lightning_score.errors import require
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.folders import hold
from lightning_score.runs.logs import cut_logs
from lightning_score.runs.trial import TERMINATED, in_trial, stopped_by_wandb
from lightning_score.runs.trust import trust_for


class Fit(TrainerCommand):
    """Trains a model, and measures its samples while it trains."""

    command = "fit"
    needs_checkpoint = False
    resumed: Path | None = None
    """The folder of the run that is resumed, if any."""
    last: Path | None = None
    """The newest checkpoint; None if none are written."""
    saving: LastCheckpoint | None = None
    """The callback that writes it."""

    def complete(self, given: Arguments) -> Arguments:
        self.resumed = None if given.asks_for_help else find_resumed_run(given)
        if self.resumed is None:
            arguments, paths = super().complete(given), given.get("--ckpt_path")
            lacks = "holds weights without the state of the optimizer, so training cannot resume from it"
            fix = "give a checkpoint that `fit` wrote, as last.ckpt, or train anew by --config"
            resumes = self.checkpoint is None or "optimizer_states" in self.checkpoint
            require(resumes, f"--ckpt_path {''.join(paths[-1:])}: {lacks}; {fix}")
            return arguments
        arguments, self.checkpoint = resume(given, self.resumed, trusted_modules(given))
        return arguments

    def over_checkpoint(self, arguments: Arguments) -> Arguments:
        """Also with a schedule that follows the number of steps, if that is given."""
        over = super().over_checkpoint(arguments)
        follows = linked(self.checkpoint["config"]) if self.checkpoint and arguments.get("--trainer.max_steps") else {}
        return over.over(Layer(follows))

    def add_options(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument("--output", type=str, help="Folder of this run; by default a new one, RUNS/NAME/date_time.")

    def check_options(self, config: Any) -> None:
        """Also puts numbers in place of `auto` in the process; a run may be resumed at its last step, but not beyond."""
        steps = config["trainer"]["max_steps"]
        done = 0 if self.checkpoint is None else self.checkpoint.get("global_step", 0)
        more = steps < 0 or steps > done or done == 0 or (steps == done and self.resumed is not None)
        have = f"the checkpoint has {done} steps already, which count"
        require(more, f"--trainer.max_steps {steps}: {have}; give more than that")
        require(steps != 0, "--trainer.max_steps 0: must be at least 1, or -1 for no limit; nothing is learned in 0 steps")
        resolve_auto(config)
        forget_times(config)

    def make_folder(self, config: Any) -> Path:
        """Also locks it; the folder of a resumed run loses the logs of later steps than its checkpoint's."""
        folder = self.resumed or super().make_folder(config)
        hold(folder)
        if self.resumed is not None and self.checkpoint is not None:
            cut_logs(folder, self.checkpoint)
        return folder

    def parent_folder(self, config: Any) -> Path:
        return Path(config["runs"]) / config["name"]

    def own_callbacks(self, folder: Path) -> list[Callback]:
        """The picture of a learned weighting, and the checkpoints: `last` comes after `best`, whose state it saves."""
        drawing: list[Callback] = [] if self.model.learned is None else [LearnedWeighting()]
        settings, metric = self.config_init["trainer"], self.config_init["evaluate"].metric or "loss"
        if settings["enable_checkpointing"] is False or settings["barebones"]:
            return drawing
        self.last, self.saving = folder / "last.ckpt", LastCheckpoint(folder)
        last = ModelCheckpoint(folder, "last", enable_version_counter=False)
        return [*drawing, BestCheckpoint(str(folder), f"val/{metric}"), last, self.saving]

    def run(self) -> None:
        """Also requeues the job if SLURM has asked it to end."""
        try:
            super().run()
        except SystemExit:
            if self.saving is not None and self.saving.requeue() and not self.trainer.is_global_zero:
                raise SystemExit(0) from None  # SLURM may end all processes when one fails, before the job is requeued
            raise

    def execute(self) -> None:
        """Trains, measures the final weights if training did not end with a validation, and prints the results."""
        start = time.monotonic()
        print_start(self.model, self.folder)
        try:
            self._train()
        except SystemExit as end:  # so Lightning ends after a signal
            self._print_interrupted()
            if isinstance(end, SIGTERMException) and not (in_trial() and stopped_by_wandb()):
                raise SystemExit(TERMINATED) from end
            raise
        unsaved = self._unsaved()
        trust = trust_for(self.config.as_dict())
        print_training(self.trainer, self.folder, time.monotonic() - start, self.last is not None and not unsaved, trust)
        if unsaved:
            raise OSError(EIO, f"the weights of step {self.trainer.global_step} are not saved ({unsaved})", str(self.folder))

    def _train(self) -> None:
        trainer, ckpt_path = self.trainer, self.config_init["ckpt_path"]
        trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True)
        if not trainer.interrupted and self.config_init["evaluate"].validated_at != trainer.global_step:
            if self.last is not None:
                trainer.save_checkpoint(self.last)  # for a signal may end the validation
            trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            if self.last is not None:
                trainer.save_checkpoint(self.last)

    def _unsaved(self) -> str:
        """Why the final weights are in no checkpoint, though they should be; empty if they are."""
        if self.last is None or not self.trainer.is_global_zero:
            return ""
        unsaved = getattr(self.trainer.strategy.checkpoint_io, "unsaved", {})
        return unsaved.get(str(self.last), "" if self.last.exists() else "no file")

    def _print_interrupted(self) -> None:
        """Prints the command that resumes the run."""
        if self.last is None or not self.trainer.is_global_zero:
            return
        if not self.last.exists():
            print("\nstopped before the first checkpoint: nothing is kept")
        else:
            print(f"\nstopped; kept up to step {read_checkpoint(self.last)['global_step']}; to resume:")
            options = shlex.quote(str(self.folder)) + trust_for(self.config.as_dict())
            print(f"python -m lightning_score fit --ckpt_path {options}")
