"""How a trial is run: in a process of its own, or, if only the sampling changes, on a model that stays loaded."""

import lightning_score.torchvision_guard  # noqa: F401

import csv
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from lightning_score.sweep.command import expand, from_agent
from lightning_score.sweep.loaded import LoadedCommand
from lightning_score.sweep.spec import Sweep
from lightning_score.utils import require

COMMANDS = ("fit", "validate", "test")
SAMPLING = ("model.sampler", "model.guidance", "evaluate")
"""Settings that change nothing of what a loaded model is."""
POLL = 0.5
PATIENCE = 60
"""Seconds between two looks at a trial's metrics, and until one that was told to stop is killed."""

Report = Callable[[float], None]
"""Told each new value of the sweep's metric; it raises to stop the trial."""


def arguments_of(sweep: Sweep, settings: dict[str, Any], folder: Path) -> list[str]:
    """The arguments of our command line in a trial: the command and its options.

    Raises:
        InputError: the sweep runs another program.
    """
    words = expand(sweep.command, sweep.program, settings, folder.with_suffix(".json"))
    names = [i for i, word in enumerate(words) if Path(word).name in ("lightning_score", "__main__.py")]
    fits = bool(names) and words[names[0] + 1 : names[0] + 2] and words[names[0] + 1] in COMMANDS
    require(
        bool(fits),
        f"command: {' '.join(map(str, sweep.command))}: this runs `-m lightning_score` with {', '.join(COMMANDS)} only; "
        "wandb agent runs other programs",
    )
    return _pinned(from_agent(words[names[0] + 1 :]))


def _pinned(arguments: list[str]) -> list[str]:
    """The arguments with the checkpoint's own path: `latest` may point to another run before the sweep is over."""
    pinned = list(arguments)
    for i, argument in enumerate(arguments):
        name, equals, path = argument.partition("=")
        if name == "--ckpt_path" and equals:
            pinned[i] = f"{name}={os.path.realpath(path)}"
        elif name == "--ckpt_path" and i + 1 < len(arguments):
            pinned[i + 1] = os.path.realpath(arguments[i + 1])
    return pinned


class TrialFailed(Exception):
    """A trial that came to nothing; the message says why."""


class Trials(ABC):
    """Runs trials."""

    @abstractmethod
    def run(self, arguments: list[str], folder: Path, metric: str | None, report: Report) -> dict[str, float]:
        """Runs one and returns all that it measured.

        Args:
            arguments: of our command line.
            folder: for its results; it does not exist yet. What it says goes into `<folder>.log`.
            metric: what is optimised.
            report: told the metric whenever it is measured on the way.
        """


class OnLoadedModel(Trials):
    """Trials that change sampler, guidance or evaluation only: model, weights and data are loaded once.

    Args:
        arguments: of the first trial.
    """

    def __init__(self, arguments: list[str]):
        self._loaded = LoadedCommand(arguments)

    def run(self, arguments: list[str], folder: Path, metric: str | None, report: Report) -> dict[str, float]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
            return self._loaded.run([*arguments, f"--output={folder}"])


class InOwnProcess(Trials):
    """Trials of any kind, each a program that may crash or be killed alone; its metrics are read from its folder.

    Args:
        threads: processor threads of a trial.
        group: a name under which W&B shows the trials together, where they are logged there.
    """

    def __init__(self, threads: int, group: str):
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "WANDB_RUN_GROUP": group}

    def run(self, arguments: list[str], folder: Path, metric: str | None, report: Report) -> dict[str, float]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "lightning_score", *arguments, f"--output={folder}"]
        log = folder.with_suffix(".log")
        with log.open("w") as file:
            process = subprocess.Popen(command, env=self._environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                                       start_new_session=True)  # fmt: skip
        try:
            self._watch(process, folder, metric, report)
        except BaseException:
            _end(process)
            raise
        if process.returncode != 0:
            raise TrialFailed(f"exit code {process.returncode}: {_last_line(log)}")
        return last_metrics(folder)

    def _watch(self, process: subprocess.Popen, folder: Path, metric: str | None, report: Report) -> None:
        """Waits for the end and reports the metric meanwhile."""
        told, changed = 0, 0.0
        while True:
            ended = process.poll() is not None
            file = folder / "metrics.csv"
            written = file.stat().st_mtime if file.exists() else 0.0
            if metric and written != changed:
                values = _history(folder).get(metric, [])
                for value in values[told:]:
                    report(value)
                told, changed = len(values), written
            if ended:
                return
            time.sleep(POLL)


def _end(process: subprocess.Popen) -> None:
    """Asks a program, and what it has begun, to stop, and kills it if it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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
                    except ValueError:  # a line that is being written
                        continue
    return found


def _last_line(log: Path) -> str:
    """What a program said last: its error, as a rule."""
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")[:300]


def made_for(sweep: Sweep, arguments: list[str], threads: int) -> Trials:
    """What runs the trials of a sweep.

    Args:
        sweep: the sweep.
        arguments: those of one of its trials.
        threads: processor threads of a worker.
    """
    if arguments[0] != "fit" and all(name.startswith(SAMPLING) for name in sweep.varied):
        return OnLoadedModel(arguments)
    return InOwnProcess(threads, sweep.name)
