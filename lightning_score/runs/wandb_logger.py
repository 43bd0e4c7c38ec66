"""The loggers of a run: `metrics.csv` always, Weights & Biases where it can be used."""

import lightning_score.lean_imports  # noqa: F401

import atexit
import math
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_score.errors import one_line
from lightning_score.runs.logs import RunCSVLogger as RunCSVLogger
from lightning_score.runs.records import FILE as EVALUATIONS, read_records
from lightning_score.runs.status import STOPPED_EARLY
from lightning_score.runs.trial import (
    SETTINGS,
    TERMINATED,
    finish_run,
    in_trial,
    print_line,
    started,
    stopped_by_wandb,
    upload_command,
)

if TYPE_CHECKING:
    from wandb import Run

COLUMNS = ["metric", "value", "error", "floor", "n", "nfe", "weights", "denoised", "step", "seed", "seconds", "time"]
"""Columns of the table of measurements on W&B."""
STEP = "trainer/global_step"
"""The x-axis of all metrics and pictures: completed optimizer steps."""


class WandbRunLogger(WandbLogger):
    """Logs to a W&B run; if the run is lost, training continues without it. Made by `wandb_logger`.

    The run stays open after a fit, for tests that may follow, and is finished with the process, with its exit code. A stage
    that fails finishes it at once, as failed.

    Args:
        run: the result of `wandb.init`.
        folder: the folder for all files of the run.
    """

    def __init__(self, run: "Run", folder: str | Path) -> None:
        super().__init__(experiment=run, project=run.project, name=run.name, id=run.id, save_dir=folder)
        self._upload_command = upload_command(run)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        self._lost = False
        self._best: dict[str, float] = {}
        self._evaluations = 0  # that its table holds

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs metrics, or pictures, at an optimizer step; the summary keeps the best FID so far, as `best/val/fid...`."""
        self._attempt(self._log, metrics, step)
        for name, value in metrics.items():
            if f"{name}_n" in metrics and not self._best.get(name, math.inf) <= float(value):
                self._best[name] = float(value)
                self._attempt(self.experiment.summary.update, {f"best/{name}": float(value), f"best/{name}_step": step})

    def _log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """W&B's own step is the optimizer step, too, so that its sliders of pictures and its pruners count the same."""
        if step is None or step < self.experiment.step:  # an earlier one would be lost
            super().log_metrics(metrics, step)
        else:
            self.experiment.log({**metrics, STEP: step}, step=step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Adds to the run's config."""
        self._attempt(super().log_hyperparams, params)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Adds a table of all measurements. Unless the status is "success", finishes the run: as stopped early in a trial
        that early termination has ended, as preempted in one that another signal has ended, else as failed.
        """
        self._attempt(self._log_evaluations)
        if status != "success":
            terminated = in_trial() and isinstance(sys.exc_info()[1], SIGTERMException)
            early = terminated and stopped_by_wandb()
            if early:
                self._attempt(self.experiment.summary.update, {"state": STOPPED_EARLY})
                self._attempt(setattr, self.experiment, "tags", (*(self.experiment.tags or ()), STOPPED_EARLY))
            elif terminated:
                self._attempt(self.experiment.mark_preempting)
            self._attempt(self.experiment.finish, 0 if early else TERMINATED if terminated else 1)

    def _log_evaluations(self) -> None:
        file = Path(str(self.save_dir)) / EVALUATIONS
        records = read_records(file) if file.exists() else []
        if len(records) > self._evaluations:
            self._evaluations = len(records)
            self.log_table("evaluations", COLUMNS, [[getattr(record, name) for name in COLUMNS] for record in records])

    def _attempt(self, call: Callable[..., None], *values: Any) -> None:
        if self._lost:
            return
        try:
            call(*values)
        except Exception as error:  # no error of W&B may end the training
            self._lost = True
            kept = f"training continues, with its metrics in metrics.csv; to upload it later: {self._upload_command}"
            print_line(f"the run is lost ({one_line(error, 160)}); {kept}")


@rank_zero_only
def wandb_logger(folder: str | Path, project: str = "lightning_score", name: str | None = None) -> WandbRunLogger | None:
    """Starts a W&B run: online with an API key, else offline in the run's folder; never prompts, hangs or fails.

    The run is also offline if the server does not answer within 15 seconds. `WANDB_MODE` overrides this, `WANDB_PROJECT` and
    `WANDB_NAME` override the arguments, and so does the agent of a W&B sweep.

    Args:
        folder: the run's folder, for W&B's files and, if the home folder cannot be written, its cache.
        project: the W&B project.
        name: the name that W&B shows; by default a random one.

    Returns:
        The logger; None if W&B is disabled (`WANDB_MODE=disabled`) or cannot be used, and in all processes but the first.
    """
    folder = Path(folder).resolve()
    try:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        if not _writable(folder):
            raise PermissionError(f"{folder} cannot be written")
        _redirect_unwritable(folder / "wandb")
        defaults = {key: os.environ.get(f"WANDB_{key.upper()}", value) for key, value in SETTINGS.items()}
        if wandb.setup(wandb.Settings(**defaults)).settings.mode == "disabled":
            return None
        run = wandb.run
        if run is None or run.id in started:  # else the user's own code has started one
            run = _start(folder, project, name)
        logger = WandbRunLogger(run, folder)
    except Exception as error:
        print_line(f"cannot be used ({one_line(error, 160)}); the metrics are in metrics.csv.")
        return None
    print_line(f"offline; to upload this run: {upload_command(run)}" if run.offline else str(run.url))
    return logger


def _start(folder: Path, project: str, name: str | None) -> "Run":
    """Starts a run, online if possible; finishes the one that this process started before."""
    import wandb

    options: dict[str, Any] = {"dir": str(folder), "reinit": "finish_previous"}
    before = sorted(folder.glob("wandb/*run-*-*"))
    if in_trial():
        options |= {"resume": "allow"} if before else {}  # W&B has handed out a preempted trial again
    else:
        options["project"] = os.environ.get("WANDB_PROJECT", project)
        options["name"] = os.environ.get("WANDB_NAME", name)
        if before:  # a resumed run is the same run on W&B
            options |= {"id": before[-1].name.rpartition("-")[2], "resume": "allow"}
    run = None
    try:
        online = wandb.setup().settings.mode not in ("offline", "dryrun") and wandb.login(prompt=False, verify=False)
        run = wandb.init(**options) if online else None
    except Exception as error:
        print_line(f"the server cannot be used ({one_line(error, 160)}).")
        for remains in set(folder.glob("wandb/run-*")) - set(before):
            shutil.rmtree(remains, ignore_errors=True)
    run = run or wandb.init(mode="offline", **options)
    if not started:
        atexit.register(finish_run)  # before W&B's own, which does not print the folder
    started.add(run.id)
    return run


def _redirect_unwritable(folder: Path) -> None:
    """Moves W&B's cache, data and settings into `folder` if their own folders cannot be written."""
    from wandb import env

    if os.path.expanduser("~") == "~":  # neither HOME nor an entry of the user database
        os.environ["HOME"] = str(folder)
    config = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    for name, place in (("cache", env.get_cache_dir()), ("data", env.get_data_dir()), ("config", config)):
        if not _writable(Path(os.path.expanduser(place))):
            os.environ[f"WANDB_{name.upper()}_DIR"] = str(folder / name)


def _writable(path: Path) -> bool:
    """Whether a folder can be written, or made below the nearest that exists. That must not be the root: a missing home
    folder is not made, not even by the superuser."""
    nearest = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    is_place = path.is_absolute() and nearest.is_dir() and nearest != Path(path.anchor)
    return is_place and os.access(nearest, os.W_OK | os.X_OK)
