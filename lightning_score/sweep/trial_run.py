"""The run folder and the process of a trial: how it resumes, what it has measured, and how it is ended."""

import csv
import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from lightning_score.commands.arguments import Arguments, Option
from lightning_score.commands.configs import trusted_modules
from lightning_score.files import replace_text
from lightning_score.runs.checkpoints import last_saved
from lightning_score.runs.console import shown
from lightning_score.runs.status import STATUS, STOPPED_EARLY, read_status
from lightning_score.sweep.processes import SAVING, SIGNALS

KILLED = {-signal.SIGKILL, *(-number for number in SIGNALS), *(128 + number for number in SIGNALS)}
"""Exit codes of a program that was killed or asked to end, as by the system when memory runs out."""


def resumable(arguments: Arguments, folder: Path) -> bool:
    """Whether a folder holds a checkpoint from which a trial resumes."""
    return arguments.command == "fit" and last_saved(folder) > 0


def resuming(arguments: Arguments, folder: Path) -> Arguments:
    """The command that resumes a training with its own config, and with the classes that the sweep's command may name."""
    trusted = ",".join(sorted(trusted_modules(arguments)))
    trust = [Option("--trust", (trusted,), True)] if trusted else []
    return Arguments("fit", (Option("--ckpt_path", (str(folder),), True), *trust))


def killed_by(code: int) -> str:
    """What ended a program, given one of the exit codes above."""
    number = signal.Signals(-code if code < 0 else code - 128)
    return f"killed by {number.name}{', as when memory runs out' if number == signal.SIGKILL else ''}"


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGTERM to a process, and kills its process group if it does not end."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SAVING)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def mark_stopped_early(folder: Path) -> None:
    """Records early termination in the trial's status, which otherwise only shows a signal."""
    status = read_status(folder)
    if status:
        status |= {"state": STOPPED_EARLY, "message": "by the sweep's early termination"}
        replace_text(folder / STATUS, json.dumps(status, indent=1))


def last_metrics(folder: Path) -> dict[str, float]:
    """The last value of each metric in a run folder."""
    found: dict[str, float] = {}
    with suppress(FileNotFoundError), (folder / "metrics.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            for name, text in row.items():
                with suppress(ValueError, TypeError):  # no value, or a line that is not complete yet
                    found[name] = float(text)
    return found


def measured(folder: Path, metric: str) -> list[tuple[float, int]]:
    """All values of a metric in a run folder, with their optimizer steps."""
    found = []
    with suppress(FileNotFoundError), (folder / "metrics.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            with suppress(ValueError, TypeError, KeyError):  # no value, or a line that is not complete yet
                found.append((float(row[metric]), int(float(row["step"]))))
    return found


def last_line(log: Path) -> str:
    """The last line of a program's output, which is usually its error."""
    lines = map(shown, reversed(log.read_text(errors="replace").split("\n")))
    return next((line.strip() for line in lines if line), "no output")[:300]
