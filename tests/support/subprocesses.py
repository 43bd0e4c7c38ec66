"""Commands in separate processes, one of which may fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback

SHORT = ["--evaluate.num_samples=41", "--samples.num_samples=4", "--model.sampler.steps=1", "--trainer.callbacks=null",
         "--trainer.max_steps=8", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=2"]  # fmt: skip


DDP = ["--trainer.accelerator=cpu", "--trainer.strategy=ddp"]


MODULE = ["-m", "lightning_score"]


class Trouble(Callback):
    """A failure of one process.

    Args:
        kind: raise, kill or sleep.
        rank: of the process.
        step: the step of the failure.
        once: a file that marks the failure; if it exists, nothing happens.
    """

    def __init__(self, kind: str, rank: int = 1, step: int = 3, once: str | None = None):
        self.kind, self.rank, self.step, self.once = kind, rank, step, once

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank != self.rank or trainer.global_step != self.step:
            return
        if self.once is not None:
            if Path(self.once).exists():
                return
            Path(self.once).touch()
        if self.kind == "raise":
            raise ZeroDivisionError("this process alone is in trouble")
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)


def trouble(kind, **settings):
    """The option that adds `Trouble`."""
    return "--trainer.callbacks=" + json.dumps(
        [{"class_path": "subprocesses.Trouble", "init_args": {"kind": kind, **settings}}]
    )


@pytest.fixture(name="environment")
def environment_fixture(tmp_path, monkeypatch):
    """Environment variables for the processes of a test, which run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    mine = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    return {name: text for name, text in os.environ.items() if name != "LIGHTNING_SCORE_FOLDER"} | mine


def call(environment, *command, timeout=300):
    """Runs a command and returns its result."""
    return subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=timeout, cwd="."
    )
