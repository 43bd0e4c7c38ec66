"""Where a run's metrics go: `metrics.csv` in its folder always, Weights & Biases whenever it can."""

import lightning_score.torchvision_guard  # noqa: F401

import csv
import math
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_score.metrics.record import FILE as EVALUATIONS
from lightning_score.metrics.record import read
from lightning_score.runs import STOPPED_EARLY

if TYPE_CHECKING:
    from wandb import Run

SETTINGS = {"silent": True, "init_timeout": 15.0, "finish_timeout": 60.0}  # WANDB_SILENT=false, ... beat these
COLUMNS = ["metric", "value", "error", "floor", "n", "nfe", "weights", "denoised", "step", "seed", "seconds", "time"]
"""What the table of measurements on W&B says of each."""
_begun: set[str] = set()  # ids of the W&B runs that this process has begun


class RunCSVLogger(CSVLogger):
    """Writes `metrics.csv` and `hparams.yaml` straight into the folder of a run, beside whatever else is there.

    Each row is on disk as soon as it is logged, with its `time` in seconds since 1970. Rows that an earlier part of the run
    left there stay, and a metric that is new becomes a new column.

    Args:
        folder: The run's folder; it is made if it does not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the files."""
        if self._experiment is None:
            self._experiment = _Writer(self.save_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    """Lightning's writer, but for the beginning, where that deletes the metrics it finds; and each row has its time."""

    _told = False

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Keeps a row."""
        super().log_metrics({**metrics_dict, "time": round(time.time(), 1)}, step)

    def save(self) -> None:
        """Writes the rows; where there is no room they are kept until there is, and what is there is not harmed."""
        file, self._columns = self.metrics_file_path, list(self.metrics_keys)
        self._size = os.path.getsize(file) if os.path.isfile(file) else 0
        try:
            super().save()
            self._told = False
        except OSError as error:
            self.metrics_keys = self._columns
            with suppress(OSError):
                os.truncate(file, self._size)  # half a row
            if not self._told:
                print(f"{file}: cannot be written ({error.strerror}); its rows wait for room", file=sys.stderr)
            self._told = True

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """In one move: whatever happens meanwhile, there are the old rows or the new ones."""
        file, temporary = self.metrics_file_path, f"{self.metrics_file_path}-{os.getpid()}"
        try:
            with open(file, newline="") as old, open(temporary, "w", newline="") as new:
                writer = csv.DictWriter(new, fieldnames=fieldnames)
                writer.writeheader()
                writer.writerows(csv.DictReader(old))
            os.replace(temporary, file)
        except OSError:
            with suppress(OSError):
                os.remove(temporary)
            raise
        self._columns, self._size = list(fieldnames), os.path.getsize(file)

    def _check_log_dir_exists(self) -> None:
        """Goes on from the columns of the metrics that are there."""
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class WandbRunLogger(WandbLogger):
    """A W&B run that has begun; should it be lost, training goes on without it. Made by `wandb_logger`.

    The run stays open after a fit, for the tests that may follow, and is finished when the process ends, with its exit
    code. A fit, or any other stage, that breaks off finishes it at once, as failed.

    Args:
        run: What `wandb.init` returned.
        folder: The folder in which the run keeps all its files.
    """

    def __init__(self, run: "Run", folder: str | Path) -> None:
        super().__init__(experiment=run, project=run.project, name=run.name, id=run.id, save_dir=folder)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self._lost = False
        self._best: dict[str, float] = {}
        self._evaluations = 0  # that its table holds

    @property
    def sync_command(self) -> str | None:
        """The command that uploads an offline run, or None if the run is online."""
        folder = Path(self.experiment.dir).parent
        shown = min(str(folder), os.path.relpath(folder), key=len)
        return f"wandb sync {shown}" if self.experiment.offline else None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs metrics, or pictures, at an optimizer step; the summary keeps the best FID so far, as `best/val/fid...`."""
        self._attempt(super().log_metrics, metrics, step)
        for name, value in metrics.items():
            if f"{name}_n" in metrics and not self._best.get(name, math.inf) <= float(value):
                self._best[name] = float(value)
                self._attempt(self.experiment.summary.update, {f"best/{name}": float(value), f"best/{name}_step": step})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Adds to the run's config."""
        self._attempt(super().log_hyperparams, params)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Adds a table of all measurements. Finishes the run as failed, unless the status is "success", or a sweep's early
        termination has ended its trial.
        """
        self._attempt(self._log_evaluations)
        if status != "success":
            early = in_trial() and isinstance(sys.exc_info()[1], SIGTERMException)
            if early:
                self._attempt(self.experiment.summary.update, {"state": STOPPED_EARLY})
            self._attempt(self.experiment.finish, 0 if early else 1)

    def _log_evaluations(self) -> None:
        file = Path(self.save_dir) / EVALUATIONS
        records = read(file) if file.exists() else []
        if len(records) > self._evaluations:
            self._evaluations = len(records)
            self.log_table("evaluations", COLUMNS, [[getattr(record, name) for name in COLUMNS] for record in records])

    def _attempt(self, call: Callable[..., None], *values: Any) -> None:
        if self._lost:
            return
        try:
            call(*values)
        except Exception as error:  # whatever it is, it is not worth the training
            self._lost = True
            _say(f"the run is lost ({_reason(error)}); training goes on, with its metrics in metrics.csv.")


def wandb_logger(folder: str | Path, project: str = "lightning_score", name: str | None = None) -> WandbRunLogger | None:
    """Begins a W&B run: online with an API key, else offline in the run's folder; never a prompt, a hang or a crash.

    Without an answer from the server within 15 seconds the run is offline too. `WANDB_MODE` decides where it is set,
    `WANDB_PROJECT` and `WANDB_NAME` beat the arguments, and in a sweep the agent's choices do.

    Args:
        folder: The run's folder, in which W&B keeps its files, those of an offline run and, where the home folder
            cannot be written, its cache too.
        project: The W&B project.
        name: The name that W&B shows; without one it makes one up.

    Returns:
        The logger; None if W&B is disabled (`WANDB_MODE=disabled`), cannot work here, or belongs to another process:
        only the first of several processes logs.
    """
    if rank_zero_only.rank != 0:
        return None
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
        logger = WandbRunLogger(_users_run() or _begin(folder, project, name), folder)
    except Exception as error:
        _say(f"cannot work here ({_reason(error)}); the metrics are in metrics.csv.")
        return None
    offline = f"offline; to upload this run: {logger.sync_command}"
    _say(offline if logger.sync_command else str(logger.experiment.url))
    return logger


def in_trial() -> bool:
    """Whether this process is a trial of a sweep that a W&B agent runs."""
    return "WANDB_SWEEP_ID" in os.environ


def fail_trial(message: str, code: int) -> None:
    """Makes the W&B run of a trial that failed before it began a failed one, which says why; nothing outside of a sweep.

    Args:
        message: the error.
        code: exit code of the process.
    """
    if not in_trial() or rank_zero_only.rank != 0:
        return
    import wandb

    with suppress(Exception):  # the error itself is told in any case
        run = wandb.run or wandb.init(settings=wandb.Settings(**SETTINGS))
        run.summary["error"] = message
        run.finish(exit_code=code)


def _users_run() -> "Run | None":
    """A run that the user's own code has begun, to log into."""
    import wandb

    return wandb.run if wandb.run is not None and wandb.run.id not in _begun else None


def _begin(folder: Path, project: str, name: str | None) -> "Run":
    """Begins a run, online if possible; one that this process began before is over then."""
    import wandb

    options: dict[str, Any] = {"dir": str(folder), "reinit": "finish_previous"}
    before = sorted(folder.glob("wandb/*run-*-*"))
    if before and not in_trial():  # a run that goes on is the same run there
        options |= {"id": before[-1].name.rpartition("-")[2], "resume": "allow"}
    if not in_trial():
        options["project"] = os.environ.get("WANDB_PROJECT", project)
        options["name"] = os.environ.get("WANDB_NAME", name)
    run = _begin_online(folder, options) or wandb.init(mode="offline", **options)
    _begun.add(run.id)
    return run


def _begin_online(folder: Path, options: dict[str, Any]) -> "Run | None":
    """Begins a run on the server, unless W&B is set to offline, there is no API key, or the server does not answer."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "dryrun"):
        return None
    before = set(folder.glob("wandb/run-*"))
    try:
        return wandb.init(**options) if wandb.login(prompt=False, verify=False) else None
    except Exception as error:
        _say(f"the server cannot be used ({_reason(error)}).")
        for remains in set(folder.glob("wandb/run-*")) - before:
            shutil.rmtree(remains, ignore_errors=True)
        return None


def _redirect_unwritable(folder: Path) -> None:
    """Points W&B's cache, data and settings into `folder` where their own places cannot be written."""
    from wandb import env

    if os.path.expanduser("~") == "~":  # neither HOME nor an entry in the system's list of users
        os.environ["HOME"] = str(folder)
    places = {
        "WANDB_CACHE_DIR": str(env.get_cache_dir()),
        "WANDB_DATA_DIR": str(env.get_data_dir()),
        "WANDB_CONFIG_DIR": os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb"),
    }
    for variable, place in places.items():
        if not _writable(Path(os.path.expanduser(place))):
            os.environ[variable] = str(folder / variable.removeprefix("WANDB_").removesuffix("_DIR").lower())


def _writable(path: Path) -> bool:
    """Whether a folder can be written, or made below the nearest one that exists, if that is not the root: a home
    folder that does not exist is not made up, not even for the superuser."""
    nearest = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    is_place = path.is_absolute() and nearest.is_dir() and nearest != Path(path.anchor)
    return is_place and os.access(nearest, os.W_OK | os.X_OK)


def _reason(error: Exception) -> str:
    """The beginning of an error's message, in one line, or its kind."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _say(message: str) -> None:
    """One line on the standard error."""
    print(f"W&B: {message}", file=sys.stderr)
