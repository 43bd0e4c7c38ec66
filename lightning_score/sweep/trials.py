"""Runs trials: each in a new process, or, if only sampling and evaluation change, with a model that stays loaded."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from optuna import TrialPruned

from lightning_score.errors import require
from lightning_score.files import replace_text
from lightning_score.runs.status import STATUS, STOPPED_EARLY, read_status
from lightning_score.sweep.interruption import Stopped
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.macros import ARGS, as_text, expand_macros, flatten, options, split_options
from lightning_score.sweep.processes import end_with_parent
from lightning_score.sweep.spec import Sweep

COMMANDS = ("fit", "validate", "test")
PYTHON = re.compile(r"(.*/)?(env|python[\d.]*|-\w+)")
"""Words before the name of the program."""
SAMPLING = ("model.sampler", "model.guidance", "evaluate")
"""Settings that can change without loading the model again."""
POLL = 0.5
PATIENCE = 3.0
"""Seconds between two reads of a trial's metrics, and from SIGTERM until SIGKILL."""

Check = Callable[..., None]
Report = Callable[[float], None]
"""Called with each new value of the sweep's metric; raises to stop the trial."""


def arguments_of(sweep: Sweep, settings: Mapping[str, Any]) -> list[str]:
    """A trial's arguments of the command line: the command and its options.

    Raises:
        InputError: the sweep runs another program, or a setting does not reach it.
    """
    words = expand_macros(sweep.command, sweep.program)
    names = [i for i, word in enumerate(words) if Path(word).name in ("lightning_score", "__main__.py")]
    before, after = (words[: names[0]], words[names[0] + 1 :]) if names else (words, [])
    require(
        after[:1] and after[0] in COMMANDS and all(PYTHON.fullmatch(word) for word in before),
        f"command: {' '.join(sweep.command)}: must run `python -m lightning_score` with {', '.join(COMMANDS)}; "
        "wandb agent runs other programs, and sets variables",
    )
    end = after.index(ARGS) if ARGS in after else len(after)
    (others, fixed), (later, last) = split_options(after[:end]), split_options(after[end + 1 :])
    for wanted in options(settings):
        name = wanted.partition("=")[0]
        found = next((word for word in options(last) if word.startswith(f"{name}=")), wanted if ARGS in after else None)
        require(
            found == wanted,
            f"command: does not give {wanted}{f' but {found}' if found else ''} to the program: "
            f'end it with "${{args}}", and leave {name} out of it',
        )
    merged = {**fixed, **dict(flatten(settings)), **last}
    if "ckpt_path" in merged:  # `latest` may point to another run before the sweep ends
        merged["ckpt_path"] = os.path.realpath(as_text(merged["ckpt_path"]))
    return [*others, *later, *options(merged)]


class TrialFailed(Exception):
    """A trial has failed; the message gives the reason."""


class Trials(ABC):
    """Runs trials."""

    @abstractmethod
    def run(self, arguments: list[str], folder: Path, metric: str | None, report: Report) -> dict[str, float]:
        """Runs a trial and returns its metrics.

        Args:
            arguments: the command and its options.
            folder: for its results; must not exist. Its output goes to `<folder>.log`.
            metric: the metric to optimize.
            report: called with each new value of the metric.
        """


class InProcessTrials(Trials):
    """Trials that only change sampler, guidance or evaluation: model, weights and data are loaded once.

    Args:
        arguments: those of the first trial.
        check: raises `Stopped` if the worker must stop.
    """

    def __init__(self, arguments: list[str], check: Check):
        self._loaded = LoadedCommand(arguments)
        self._loaded.model.score_function.register_forward_pre_hook(check)

    def run(self, arguments: list[str], folder: Path, metric: str | None, report: Report) -> dict[str, float]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_suffix(".log")
        try:
            with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
                return self._loaded.run([*arguments, f"--output={folder}"])
        except Stopped:  # the trial restarts in another folder
            shutil.rmtree(folder, ignore_errors=True)
            log.unlink(missing_ok=True)
            raise


class SubprocessTrials(Trials):
    """Any trials, each in its own process, which may crash or be killed; the metrics are read from the run folder.

    Args:
        threads: CPU threads of a trial.
        group: W&B's group of the trials, if they are logged there.
        check: raises `Stopped` if the worker must stop.
    """

    def __init__(self, threads: int, group: str, check: Check):
        self._check = check
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "WANDB_RUN_GROUP": group}

    def run(self, arguments: list[str], folder: Path, metric: str | None, report: Report) -> dict[str, float]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "lightning_score", *arguments, f"--output={folder}"]
        log = folder.with_suffix(".log")
        with log.open("w") as file:
            process = subprocess.Popen(command, env=self._environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                                       start_new_session=True,
                                       preexec_fn=partial(end_with_parent, os.getpid()))  # fmt: skip
        try:
            self._watch(process, folder, metric, report)
        except BaseException as reason:
            _terminate(process)
            if isinstance(reason, TrialPruned):
                _mark_stopped_early(folder)
            raise
        if process.returncode != 0:
            raise TrialFailed(f"exit code {process.returncode}: {_last_line(log)}")
        return last_metrics(folder)

    def _watch(self, process: subprocess.Popen, folder: Path, metric: str | None, report: Report) -> None:
        """Reports the metric until the process ends."""
        reported, changed = 0, 0.0
        while True:
            ended = process.poll() is not None
            file = folder / "metrics.csv"
            written = file.stat().st_mtime if file.exists() else 0.0
            if metric and written != changed:
                values = _history(folder).get(metric, [])
                for value in values[reported:]:
                    report(value)
                reported, changed = len(values), written
            if ended:
                return
            self._check()
            time.sleep(POLL)


def _terminate(process: subprocess.Popen) -> None:
    """Sends SIGTERM to a process, and kills its process group if it does not end."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _mark_stopped_early(folder: Path) -> None:
    """Records early termination in the trial's status, which otherwise only shows a signal."""
    status = read_status(folder)
    if status:
        status |= {"state": STOPPED_EARLY, "message": "by the sweep's early termination"}
        replace_text(folder / STATUS, json.dumps(status, indent=1))


def last_metrics(folder: Path) -> dict[str, float]:
    """The last value of each metric in a run folder."""
    return {name: values[-1] for name, values in _history(folder).items()}


def _history(folder: Path) -> dict[str, list[float]]:
    """All values of each metric in a run folder."""
    found: dict[str, list[float]] = {}
    file = folder / "metrics.csv"
    if not file.exists():
        return found
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            for name, text in row.items():
                if name and text:
                    try:
                        found.setdefault(name, []).append(float(text))
                    except ValueError:  # a line that is not complete yet
                        continue
    return found


def _last_line(log: Path) -> str:
    """The last line of a program's output, which is usually its error."""
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")[:300]


def only_samples(sweep: Sweep, command: str) -> bool:
    """Whether the trials only differ in sampling and evaluation of the same model."""
    return command != "fit" and all(name.startswith(SAMPLING) for name in sweep.varied)


def choose_runner(sweep: Sweep, arguments: list[str], threads: int, check: Check) -> Trials:
    """Chooses how to run the trials of a sweep.

    Args:
        sweep: the sweep.
        arguments: those of one of its trials.
        threads: CPU threads of a worker.
        check: raises `Stopped` if the worker must stop.
    """
    if only_samples(sweep, arguments[0]):
        return InProcessTrials(arguments, check)
    return SubprocessTrials(threads, sweep.name, check)
