"""The checkpoints of a run: the best one, and the last one, whatever ends the run."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_score import stopping
from lightning_score.errors import require
from lightning_score.seeds import random_state, restore_random_state

SIGNALS = (*stopping.SIGNALS, signal.SIGUSR1)
"""Ctrl-C, the usual request to end, a closed terminal, and SLURM's announcement that the job will be preempted."""


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the lowest value of a metric that not every validation measures.

    Args:
        folder: folder of `best.ckpt`.
        monitor: the metric.
    """

    def __init__(self, folder: str, monitor: str) -> None:
        super().__init__(folder, "best", monitor, enable_version_counter=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the metric if this validation measured it."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` between two steps: before every validation, which may take long, at intervals, and when a signal
    asks the run to end: Ctrl-C, SIGTERM, SIGHUP or, in a SLURM job, SIGUSR1, after which the job is queued again
    (`requeue`).

    A run that was interrupted during a validation resumes with that validation, so that it equals a run that was never
    interrupted. A second Ctrl-C, or one during a validation, ends the run immediately.

    Args:
        folder: folder of `last.ckpt`.
        minutes: minutes between two checkpoints without a validation.
    """

    def __init__(self, folder: str | Path, minutes: float = 5.0) -> None:
        require(minutes > 0, f"minutes={minutes}: must be above 0, as in 5")
        self.file, self.minutes = Path(folder) / "last.ckpt", minutes
        self.asked: signal.Signals | None = None
        self._step = -1  # the last one that was saved and validated
        self._steps = 0  # since the processes last agreed
        self._moment = "elsewhere"  # at which a checkpoint is saved: validation, step, epoch or elsewhere
        self._validation_due = self._validating_late = False
        self._saved = time.monotonic()
        self._random: dict[str, Any] = {}
        self._handling = ExitStack()  # of signals, in training

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints, which is that of earlier versions."""
        return "Keep"

    def state_dict(self) -> dict[str, bool]:
        """Whether the checkpoint is saved just before a validation."""
        return {"validation_due": self._moment == "validation"}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        """Remembers whether a validation is due."""
        self._validation_due = state["validation_due"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remembers the random state, if the number of processes is the same."""
        states = checkpoint.get("random_states", [])
        self._random = states[trainer.global_rank] if len(states) == trainer.world_size else {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the validation that was interrupted; from here on signals wait for the next step."""
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS if "SLURM_JOB_ID" in os.environ else SIGNALS[:-1]:
                if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT:
                    self._handling.callback(signal.signal, number, signal.signal(number, self._handler(trainer)))
            self._handling.enter_context(stopping.patience())
            # Lightning would ask all processes at every step whether SIGTERM came, and wait for the GPU
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        restore_random_state(self._random, pl_module.device)
        if self._validation_due:
            self._validation_due, self._validating_late = False, True
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # from its first batch
            trainer.validating = True
            loop.run()
            trainer.training, self._validating_late = True, False
            if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # Lightning does not count this step otherwise
                trainer.fit_loop.epoch_loop._batches_that_stepped += 1

    def _handler(self, trainer: Trainer) -> Callable[[int, FrameType | None], None]:
        def ask(number: int, frame: FrameType | None) -> None:
            again, self.asked = self.asked is not None, signal.Signals(number)
            stopping.record_signal(number)
            if trainer.validating or (again and number == signal.SIGINT):
                self._end(trainer)

        return ask

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the state of training. The loader of the validation has already drawn a random number."""
        if self._validating_late:
            restore_random_state(self._random, pl_module.device)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not self._validating_late:
            self._save(trainer, "validation")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves the state before this step, and ends the run, if that is due."""
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:  # not as an epoch begins, nor amid gradients
            self._save_or_end(trainer, "step")

    def _save_or_end(self, trainer: Trainer, moment: str) -> None:
        self._steps += 1
        if trainer.world_size > 1 and self._steps < trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return  # several processes agree only now and then, because that takes time
        self._steps = 0
        save, end = time.monotonic() - self._saved > 60 * self.minutes, self.asked is not None
        if trainer.world_size > 1:
            wishes = torch.tensor([save, end], dtype=torch.int32, device=trainer.strategy.root_device)
            dist.all_reduce(wishes, dist.ReduceOp.MAX)
            save, end = wishes.bool().tolist()
        if (save or end) and trainer.global_step != self._step:
            self._save(trainer, moment)
        if end:
            self._end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers that the results of this validation are saved."""
        self._step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets a run that resumed at the very end of an epoch begin the next epoch as usual: after an epoch without steps
        Lightning's loop would skip all others. If an epoch is one step, saves and ends here, if that is due.
        """
        trainer.fit_loop.epoch_loop.restarting = False
        if trainer.num_training_batches <= trainer.accumulate_grad_batches:
            self._save_or_end(trainer, "epoch")

    def _save(self, trainer: Trainer, moment: str) -> None:
        self._moment = moment
        trainer.save_checkpoint(self.file)
        self._moment, self._saved = "elsewhere", time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the random state of every process. At the start of a step a batch is already loaded: it is counted back. At
        the end of an epoch the next one begins: Lightning would resume with another step of this one.
        """
        mine = random_state(pl_module.device)
        states = [mine] * trainer.world_size
        if trainer.world_size > 1:
            dist.all_gather_object(states, mine)
        checkpoint["random_states"] = states
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
        if self._moment == "step":
            for count in batches["total"], batches["current"]:
                count["ready"] -= 1
            for loader in loop["state_dict"].get("combined_loader", []):
                loader["batches"] -= 1
        elif self._moment == "epoch":
            for count in epochs["total"], epochs["current"]:
                count["completed"] += 1
            batches["current"], batches["is_last_batch"] = dict.fromkeys(batches["current"], 0), False

    def _end(self, trainer: Trainer) -> None:
        raise KeyboardInterrupt if self.asked == signal.SIGINT else SIGTERMException

    def requeue(self) -> bool:
        """Queues the SLURM job again if SIGUSR1 was received, and returns whether it was. SLURM then ends the job."""
        if self.asked != signal.SIGUSR1:
            return False
        if getattr(rank_zero_only, "rank", 0) == 0:
            array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
            job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]  # the latter may be the whole array's
            subprocess.run(["scontrol", "requeue", job], check=False)
        return True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Restores the signal handlers."""
        self._handling.close()

    on_exception = on_train_end
