"""A worker: a process that runs one trial after the other."""

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import torch

from lightning_score.commands.base import quiet
from lightning_score.runs.records import FILE, read_records
from lightning_score.sweep.interruption import Interruption, Stopped
from lightning_score.sweep.results import leave_one_out
from lightning_score.sweep.spec import Sweep
from lightning_score.sweep.study import METRICS, Study
from lightning_score.sweep.trials import TrialFailed, Trials, arguments_of, choose_runner, last_metrics

SECONDS, FOLDER, JACKKNIFE, PAIRED, FLOOR = "seconds", "folder", "without", "paired", "floor_kind"
"""Further attributes of a trial: its duration, its folder, its jackknife values, the key of paired trials, and the floor."""


def work(sweep: Sweep, url: str, name: str, folder: Path, threads: int, device: int, parent: int) -> None:
    """Runs trials until none are left, a signal arrives, or the parent process ends.

    Args:
        sweep: the sweep.
        url: the database.
        name: the study.
        folder: the folder of the sweep.
        threads: CPU threads.
        device: the number of this worker, which selects its GPU if there are several.
        parent: process id of the parent.
    """
    with Interruption(parent) as interruption:
        quiet()
        torch.set_num_threads(threads)
        if torch.cuda.device_count() > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(device % torch.cuda.device_count())
        with suppress(Stopped):
            objective = _Objective(sweep, folder, threads, interruption.check)
            Study(sweep, url, name).work(objective, lambda: interruption.requested)
        if interruption.requested:
            raise SystemExit(interruption.code)  # the trial has returned to the queue


class _Objective:
    """Runs a trial and stores its metrics."""

    def __init__(self, sweep: Sweep, folder: Path, threads: int, check: Callable[[], None]):
        self._sweep, self._folder, self._threads, self._check = sweep, folder, threads, check
        self._trials: Trials | None = None

    def __call__(self, study: Study, trial: optuna.Trial, settings: dict[str, Any]) -> float:
        folder = self._folder / "trials" / f"{trial.number:04d}"
        arguments = arguments_of(self._sweep, settings)
        if self._trials is None:
            self._trials = choose_runner(self._sweep, arguments, self._threads, self._check)
        values: list[float] = []

        def report(value: float) -> None:
            values.append(value)
            trial.report(value, len(values))
            if study.should_stop(trial):
                raise optuna.TrialPruned

        start = time.monotonic()
        trial.set_user_attr(FOLDER, str(folder))
        try:
            metrics = self._trials.run(arguments, folder, self._sweep.metric, report)
        except optuna.TrialPruned:
            trial.set_user_attr(METRICS, last_metrics(folder))
            raise
        finally:
            trial.set_user_attr(SECONDS, time.monotonic() - start)
        return self._store(trial, metrics, folder)

    def _store(self, trial: optuna.Trial, metrics: dict[str, float], folder: Path) -> float:
        metric = self._sweep.metric
        trial.set_user_attr(METRICS, metrics)
        if metric is None:
            return 0.0
        if metric not in metrics:
            raise TrialFailed(f"{metric} was not measured; measured: {', '.join(sorted(metrics)) or 'nothing'}")
        records = read_records(folder / FILE) if (folder / FILE).exists() else []
        values, common = leave_one_out(records, metric.partition("/")[2])
        trial.set_user_attr(JACKKNIFE, values)
        trial.set_user_attr(PAIRED, common)
        trial.set_user_attr(FLOOR, records[-1].floor_kind if records else "")
        if not math.isfinite(metrics[metric]):
            raise TrialFailed(f"{metric} is {metrics[metric]}")
        return metrics[metric]
