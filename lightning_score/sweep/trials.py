"""Workers run trials one by one: in new processes, or with a loaded model if only sampling and evaluation change."""

import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch

from lightning_score.commands.arguments import Arguments
from lightning_score.runs.console import quiet
from lightning_score.runs.folders import is_held, remove_without_results
from lightning_score.runs.records import FILE, read_records
from lightning_score.runs.status import read_status
from lightning_score.sweep import trial_run
from lightning_score.sweep.attempts import FOLDER
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.processes import PATIENCE, SAVING, Interruption, Killed, Stopped, end_with_parent
from lightning_score.sweep.rows import metric_names, sampled_fields
from lightning_score.sweep.spec import Sweep
from lightning_score.sweep.study import METRICS, Study

SAMPLING = ("model.sampler", "model.guidance", "evaluate", "ema_length")
"""Settings that can change without loading the model again."""
SECONDS, MEASURES = "seconds", "measures"
"""Attributes of a trial: its duration; the fields `jackknife`, `paired` and `floor_kind` of a row of results, for each
objective and bounded metric."""
POLL = 0.5
"""Seconds between two reads of a trial's metrics."""

Check = Callable[..., None]
Report = Callable[[float, int], None]
"""Called with each new value of the sweep's metric and its optimizer step; raises to stop the trial."""


class TrialFailed(Exception):
    """A trial has failed; the message gives the reason."""


class Trials(ABC):
    """Runs trials."""

    @abstractmethod
    def run(self, arguments: Arguments, folder: Path, metric: str | None, report: Report) -> dict[str, float]:
        """Runs a trial and returns its metrics.

        Args:
            arguments: the command and its options.
            folder: for its results; does not exist, or holds the checkpoint of an earlier attempt. Its output goes to
                `<folder>.log`.
            metric: the metric to optimize.
            report: called with each new value of the metric.
        """


class InProcessTrials(Trials):
    """Trials that only change sampler, guidance or evaluation: model, weights and data are loaded once.

    Args:
        arguments: those of the first trial.
        check: raises `Stopped` if the worker must stop.
    """

    def __init__(self, arguments: Arguments, check: Check):
        self._loaded = LoadedCommand(arguments)
        self._loaded.model.score_function.register_forward_pre_hook(check)

    def run(self, arguments: Arguments, folder: Path, metric: str | None, report: Report) -> dict[str, float]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_suffix(".log")
        try:
            with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
                return self._loaded.run(arguments.set("--output", str(folder)))
        except Stopped:  # the trial restarts in another folder
            shutil.rmtree(folder, ignore_errors=True)
            log.unlink(missing_ok=True)
            raise


class SubprocessTrials(Trials):
    """Any trials, each in its own process, which may crash or be killed; the metrics are read from the run folder. Training
    resumes from the last checkpoint in its folder, if there is one.

    Args:
        threads: CPU threads of a trial.
        group: W&B's group of the trials, if they are logged there.
        check: raises `Stopped` if the worker must stop.
    """

    def __init__(self, threads: int, group: str, check: Check):
        self._check = check
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "WANDB_RUN_GROUP": group}

    def run(self, arguments: Arguments, folder: Path, metric: str | None, report: Report) -> dict[str, float]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_suffix(".log")
        words = arguments.set("--output", str(folder)).command_line()
        if trial_run.resumable(arguments, folder):
            words = trial_run.resuming(arguments, folder).command_line()
            while is_held(folder):  # an earlier attempt, whose worker was killed, saves its checkpoint
                self._check()
                time.sleep(POLL)
        command = [sys.executable, "-m", "lightning_score", *words]
        with log.open("a") as file:
            process = subprocess.Popen(command, env=self._environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                                       start_new_session=True,
                                       preexec_fn=partial(end_with_parent, os.getpid()))  # fmt: skip
        try:
            self._watch(process, folder, metric, report)
        except BaseException as reason:
            trial_run.terminate(process)
            if isinstance(reason, optuna.TrialPruned):
                trial_run.mark_stopped_early(folder)
            raise
        if process.returncode in trial_run.KILLED:
            self._check()  # the signal may have been sent to this process, too
            raise Killed(trial_run.killed_by(process.returncode))
        if process.returncode != 0:
            raise TrialFailed(f"exit code {process.returncode}: {trial_run.last_line(log)}")
        return trial_run.last_metrics(folder)

    def _watch(self, process: subprocess.Popen[bytes], folder: Path, metric: str | None, report: Report) -> None:
        """Reports the metric until the process ends."""
        reported, changed = 0, 0.0
        while True:
            ended = process.poll() is not None
            file = folder / "metrics.csv"
            written = file.stat().st_mtime if file.exists() else 0.0
            if metric and written != changed:
                values = trial_run.measured(folder, metric)
                for value, step in values[reported:]:
                    report(value, step)
                reported, changed = len(values), written
            if ended:
                return
            self._check()
            time.sleep(POLL)


def only_samples(sweep: Sweep, command: str) -> bool:
    """Whether the trials only differ in sampling and evaluation of the same model."""
    return command != "fit" and all(name.startswith(SAMPLING) for name in sweep.varied)


def choose_runner(sweep: Sweep, arguments: Arguments, threads: int, check: Check) -> Trials:
    """Chooses how to run the trials of a sweep.

    Args:
        sweep: the sweep.
        arguments: those of one of its trials.
        threads: CPU threads of a worker.
        check: raises `Stopped` if the worker must stop.
    """
    if only_samples(sweep, arguments.command):
        return InProcessTrials(arguments, check)
    return SubprocessTrials(threads, sweep.name, check)


def patience(sweep: Sweep, command: str) -> float:
    """Seconds after a signal until a worker that does not react is killed: trials that train save a checkpoint."""
    return PATIENCE if only_samples(sweep, command) else SAVING + PATIENCE


def work(
    sweep: Sweep, url: str, name: str, folder: Path, threads: int, device: int, parent: int, seconds: float, leaves: bool
) -> None:
    """Runs trials until none are left, a signal arrives, or the parent process ends.

    Args:
        sweep: the sweep.
        url: the database.
        name: the study.
        folder: the folder of the sweep.
        threads: CPU threads.
        device: the number of this worker, which selects its GPU if there are several.
        parent: process id of the parent.
        seconds: its patience after a signal.
        leaves: whether it ends as soon as no trial waits.
    """
    with Interruption(parent, patience=seconds) as interruption:
        quiet()
        torch.set_num_threads(threads)
        if torch.cuda.device_count() > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(device % torch.cuda.device_count())
        with suppress(Stopped):
            objective = _Objective(sweep, folder, threads, interruption.check)
            Study(sweep, url, name).work(objective, lambda: interruption.requested, leaves)
        if interruption.requested:
            raise SystemExit(interruption.code)  # the trial has returned to the queue


class _Objective:
    """Runs a trial and stores its metrics."""

    def __init__(self, sweep: Sweep, folder: Path, threads: int, check: Callable[[], None]):
        self._sweep, self._folder, self._threads, self._check = sweep, folder, threads, check
        self._trials: Trials | None = None

    def __call__(self, study: Study, trial: optuna.Trial, settings: dict[str, Any]) -> list[float]:
        arguments = self._sweep.arguments(settings)
        folder, before = self._place(trial, arguments)
        if self._trials is None:
            self._trials = choose_runner(self._sweep, arguments, self._threads, self._check)
        values: list[float] = []
        known = len(trial.storage.get_trial(trial._trial_id).intermediate_values)

        def report(value: float, step: int) -> None:
            values.append(value)
            if len(values) <= known:  # by the attempt that this one resumes
                return
            trial.report(value, step if self._sweep.takes_steps else len(values))
            if study.should_stop(trial):
                raise optuna.TrialPruned

        start, several = time.monotonic(), len(self._sweep.objectives) > 1
        trial.set_user_attr(FOLDER, str(folder))
        try:
            metrics = self._trials.run(arguments, folder, None if several else self._sweep.metric, report)
        except optuna.TrialPruned:
            trial.set_user_attr(METRICS, trial_run.last_metrics(folder))
            raise
        finally:
            trial.set_user_attr(SECONDS, before + time.monotonic() - start)
        return self._store(trial, metrics, folder)

    def _place(self, trial: optuna.Trial, arguments: Arguments) -> tuple[Path, float]:
        """The folder of a trial, and the seconds spent in it: that of the last attempt if it can resume, else a new one."""
        places = self._folder / "trials"
        earlier = places / Path(trial.user_attrs.get(FOLDER, "none")).name  # the folder of the sweep may have moved
        if trial_run.resumable(arguments, earlier):
            return earlier, float(read_status(earlier).get("seconds", 0.0))
        if earlier.is_dir() and not is_held(earlier):
            remove_without_results(earlier)
        return places / f"{trial.number:04d}", 0.0

    def _store(self, trial: optuna.Trial, metrics: dict[str, float], folder: Path) -> list[float]:
        """Stores the metrics, and the jackknife values of those that are measured on samples; returns the objectives."""
        trial.set_user_attr(METRICS, metrics)
        names = metric_names(self._sweep.objectives, self._sweep.constraints)
        missing = ", ".join(name for name in names if name not in metrics)
        if missing:
            raise TrialFailed(f"{missing} was not measured; measured: {', '.join(sorted(metrics)) or 'nothing'}")
        records = read_records(folder / FILE) if (folder / FILE).exists() else []
        trial.set_user_attr(MEASURES, {name: sampled_fields(records, name) for name in names})
        return [metrics[objective.name] for objective in self._sweep.objectives] or [0.0]
