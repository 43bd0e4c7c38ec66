"""`run.json`: the state of a run, in its folder."""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_score import __version__
from lightning_score.files import replace_text
from lightning_score.stopping import cleaning

STATUS = "run.json"
"""The name of the file with the state of a run."""
STOPPED_EARLY = "stopped early"
"""The state of a trial that early termination has stopped: in run.json, trials.csv and on W&B."""
FORMAT = 2
"""Of a run folder, in its `run.json`: 2 since the rows of `metrics.csv` have the number of optimizer steps done."""
HEARTBEAT = 10.0
"""Seconds between two updates of the state of a run."""


def read_status(folder: Path) -> dict[str, Any]:
    """The content of `run.json` in a folder; empty if it is missing or damaged."""
    try:
        found = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_dead(name: str) -> bool:
    """Whether a process, given as `host:1234`, is of this machine and has ended."""
    host, _, process = name.rpartition(":")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return False
    except (ProcessLookupError, OverflowError):
        return True
    with suppress(OSError), open(f"/proc/{process}/stat") as file:  # Linux: a zombie, for which its parent has not waited
        return file.read().rpartition(")")[2].split()[0] == "Z"
    return False


def row_steps(folder: Path) -> Callable[[int, bool], int]:
    """A function that gives the optimizer steps done at a row of `metrics.csv` by its step and whether it is a validation.

    In older versions that is the step plus one, except for the validation after the last step of `fit`, which is known from
    pictures and `evaluations.jsonl`, whose steps always were the steps done.
    """
    status = read_status(folder)
    if status.get("format") == FORMAT or status.get("command", "fit") != "fit":
        return lambda step, validation: step
    names = [file.stem.removeprefix("step_") for file in folder.glob("*/step_*.png")]
    measured = {int(name) for name in names if name.isdecimal()}
    with suppress(OSError):
        text = (folder / "evaluations.jsonl").read_text(encoding="utf-8", errors="replace")
        measured |= {int(step) for step in re.findall(r'"step": (\d+)', text)}

    def steps(step: int, validation: bool) -> int:
        return step if validation and step in measured and step + 1 not in measured else step + 1

    return steps


@contextmanager
def recording(
    folder: Path, arguments: Sequence[str], step: Callable[[], int], max_steps: int = -1, terminated: Callable[[], str] = str
) -> Iterator[None]:
    """Within it, `run.json` of a run folder holds the state of the run. A thread updates it every ten seconds, so that a
    killed run can be distinguished from a running one. It is written atomically.

    The file holds command, arguments, state (running, finished, interrupted, failed or stopped early), message, host, pid,
    slurm_job, wandb_run, started and updated (seconds since 1970), seconds (of running), step, max_steps, version, format. A
    resumed run keeps the time of its first start, and its seconds add up.

    Args:
        folder: the run folder.
        arguments: the command and its options.
        step: returns the number of training steps done.
        max_steps: the number of training steps, -1 if unknown.
        terminated: returns the state after SIGTERM; an empty text is `interrupted`.
    """
    before, begun, over = read_status(folder), time.time(), threading.Event()
    entries: dict[str, Any] = {
        "command": arguments[0],
        "arguments": list(arguments),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": before.get("started", begun),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "wandb_run": os.environ.get("WANDB_RUN_ID"),
        "max_steps": max_steps,
        "version": __version__,
        "format": FORMAT,
    }

    def write(state: str, message: str = "") -> None:
        now = time.time()
        seconds = float(before.get("seconds", 0.0)) + now - begun
        here = {"state": state, "message": message, "updated": now, "seconds": seconds, "step": step()}
        with suppress(OSError):  # as on a full disk: the run matters more than its status
            replace_text(folder / STATUS, json.dumps(entries | here, indent=1))

    def beat() -> None:
        while not over.wait(HEARTBEAT):
            write("running")

    end = "finished", ""
    thread = threading.Thread(target=beat, name="run status", daemon=True)
    write("running")
    thread.start()
    try:
        with cleaning(lambda: write("interrupted", "ended by a signal")):
            yield
    except (KeyboardInterrupt, SystemExit) as error:  # so Lightning ends after a signal
        by_sigterm = isinstance(error, SystemExit) and error.code in (None, 0, 143)
        end = (terminated() if by_sigterm else "") or "interrupted", "ended by a signal"
        raise
    except BaseException as error:
        end = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise
    finally:
        over.set()
        thread.join()
        write(*end)
