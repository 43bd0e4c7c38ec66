"""Run folders: one for each run, a stable path to the newest, and a file that says what became of it."""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning_score import __version__
from lightning_score.utils import InputError

STATUS = "run.json"
"""The name of the file that says what became of a run."""
FORMAT = 2
"""Of a run folder, in its `run.json`: 2 since the rows of `metrics.csv` have the number of optimizer steps done."""
HEARTBEAT = 10.0
"""Seconds between two signs of life of a run."""


def new_folder(folder: Path) -> Path:
    """Makes a folder that did not exist before, with its parents.

    Raises:
        InputError: it exists or cannot be written.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(f"{folder}: exists already and nothing is overwritten; give a new folder") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error
    return folder


def new_dated_folder(parent: Path) -> Path:
    """Makes `parent/<date>_<time>`, with a number behind it where two begin in one second.

    Raises:
        InputError: it cannot be written.
    """
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"-{k}" for k in range(2, 1000))):
        folder = parent / f"{stamp}{suffix}"
        if not folder.exists():
            try:
                return new_folder(folder)
            except InputError:
                if not folder.exists():
                    raise
    raise InputError(f"{parent}: holds a thousand folders of this second already; choose another output folder")


def replace_text(file: Path, text: str) -> None:
    """Writes a file in one move, so that whatever happens meanwhile it is the old one or the new one."""
    temporary = file.with_name(f".{file.name}-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(file)


def point_latest(folder: Path) -> None:
    """Makes `latest`, beside the folder, a link to it, in one step that readers never see half done."""
    link, temporary = folder.parent / "latest", folder.parent / f".latest-{os.getpid()}"
    temporary.symlink_to(folder.name)
    temporary.replace(link)


def read_status(folder: Path) -> dict[str, Any]:
    """What `run.json` of a folder says; nothing if there is none, or a damaged one."""
    try:
        found = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def row_steps(folder: Path) -> Callable[[int, bool], int]:
    """What finds the number of optimizer steps done of a row of `metrics.csv`, from its step and whether it is a validation.

    In folders of older versions that is one more than the step, except of a validation after the last step of `fit`, which
    pictures and `evaluations.jsonl` tell: theirs always were the steps done.
    """
    status = read_status(folder)
    known = status.get("format")
    if (isinstance(known, int) and known >= FORMAT) or status.get("command", "fit") != "fit":
        return lambda step, validation: step
    names = [file.stem.removeprefix("step_") for file in folder.glob("*/step_*.png")]
    measured = {int(name) for name in names if name.isdecimal()}
    with suppress(OSError):
        text = (folder / "evaluations.jsonl").read_text(encoding="utf-8", errors="replace")
        measured |= {int(step) for step in re.findall(r'"step": (\d+)', text)}

    def steps(step: int, validation: bool) -> int:
        return step if validation and step in measured and step + 1 not in measured else step + 1

    return steps


class RunStatus:
    """Says in `run.json` of a run folder that the run goes on, and in the end what became of it: within its context a thread
    writes a sign of life every ten seconds, so that a run that was killed can be told from one that computes.

    The file holds command, arguments, state (running, finished, interrupted or failed), message, host, pid, slurm_job,
    started and updated (seconds since 1970), seconds (how long it has run), step, max_steps, version and format. It is
    replaced in one move.
    A run that goes on in its folder began when it began first, and its seconds add up.

    Args:
        folder: the run folder.
        arguments: the command and its options.
        step: says how many training steps are done.
        max_steps: how many are to be done, -1 if that is not known.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], step: Callable[[], int], max_steps: int = -1):
        self._file, self._step = folder / STATUS, step
        before = read_status(folder)
        self._begun, self._before, self._over = time.time(), float(before.get("seconds", 0.0)), threading.Event()
        self._entries: dict[str, Any] = {
            "command": arguments[0],
            "arguments": list(arguments),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": before.get("started", self._begun),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "max_steps": max_steps,
            "version": __version__,
            "format": FORMAT,
        }
        self._thread = threading.Thread(target=self._beat, name="run status", daemon=True)

    def __enter__(self) -> "RunStatus":
        self._write("running")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            self._write("finished")
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):  # so Lightning ends after a signal
            self._write("interrupted", "ended by a signal")
        else:
            self._write("failed", f"{kind.__name__}: {' '.join(str(error).split())[:300]}")

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            self._write("running")

    def _write(self, state: str, message: str = "") -> None:
        now = time.time()
        here = {
            "state": state,
            "message": message,
            "updated": now,
            "seconds": self._before + now - self._begun,
            "step": self._step(),
        }
        temporary = self._file.with_name(f".{STATUS}-{os.getpid()}")
        try:
            temporary.write_text(json.dumps(self._entries | here, indent=1), encoding="utf-8")
            temporary.replace(self._file)
        except OSError:  # a full disk, say: the run is worth more than what is said about it
            temporary.unlink(missing_ok=True)
