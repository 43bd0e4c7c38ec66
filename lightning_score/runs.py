"""Run folders: one for each run, a stable path to the newest, and a file that says what became of it."""

import fcntl
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning_score import __version__
from lightning_score.files import replacing
from lightning_score.stopping import cleaning
from lightning_score.utils import InputError, require

STATUS = "run.json"
"""The name of the file that says what became of a run."""
LEADS_OUT = "leads out of the folder of runs, or is no file; left out"
LONGEST_NAME = 200
"""Bytes of the name of a run: what is written beside it makes it longer."""
STOPPED_EARLY = "stopped early"
"""The state of a sweep's trial that early termination has stopped: in run.json, trials.csv and on W&B."""
FORMAT = 2
"""Of a run folder, in its `run.json`: 2 since the rows of `metrics.csv` have the number of optimizer steps done."""
LAST_WORKERS = 8.0
"""Seconds for which the loading processes of a run that was killed may outlive it."""
HEARTBEAT = 10.0
"""Seconds between two signs of life of a run."""
WITHOUT_RESULT = ("config.yaml", "hparams.yaml", STATUS)
"""What a run writes before it has computed anything."""
_held: list[int] = []  # descriptors of the run folders in which this process trains
_made: list[tuple[Path, list[Path]]] = []  # folders that this process has made, with those above them that it had to make


def check_name(name: str, option: str) -> None:
    """Refuses a name that is no name of one folder in the folder of all runs, as `../other`.

    Args:
        name: as given, or as a config or a checkpoint has it.
        option: where it can be given.

    Raises:
        InputError: it leads elsewhere, or cannot be the name of a folder.
    """
    plain = name.isprintable() and not set(name) & set("/\\")
    length = len(name.encode(errors="replace"))
    fits = plain and 0 < length <= LONGEST_NAME and name[0] not in "-." and name == name.strip() and name != "latest"
    require(
        fits,
        f"{option} {name[:80]!r}: must be the name of one folder, 1 to {LONGEST_NAME} bytes without / or \\, that does not "
        "begin with a dot, a space or a hyphen, and is not latest; as in my_run",
    )


def leads_out(file: Path, root: Path) -> bool:
    """Whether what is found at a path is no file in a folder or below: a link to elsewhere, a pipe or a device."""
    return file.exists() and not (file.is_file() and file.resolve().is_relative_to(root.resolve()))


def hold(folder: Path) -> None:
    """Locks a run folder until the command or its process ends, whatever ends it: two would overwrite one another's files.

    Raises:
        InputError: another process trains in it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    _held.append(descriptor)
    status = read_status(folder)
    end = time.monotonic() + (0 if _is_alive(status) else LAST_WORKERS)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            where = f"process {status.get('pid')} on {status.get('host')}"
            require(time.monotonic() < end, f"{folder}: {where} trains in this run now; wait for its end, or stop it first")
            time.sleep(0.1)
        except OSError:  # a file system without locks of folders
            return
        else:
            return


def _is_alive(status: dict[str, Any]) -> bool:
    """Whether the process that a status names is there, on this machine."""
    try:
        os.kill(int(status["pid"]), 0)
    except (KeyError, OSError, ValueError, TypeError, OverflowError):
        return False
    return status.get("host") == socket.gethostname()


def release() -> None:
    """Unlocks what `hold` has locked."""
    while _held:
        os.close(_held.pop())


def new_folder(folder: Path) -> Path:
    """Makes a folder that did not exist before, with its parents.

    Raises:
        InputError: it exists or cannot be written.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(f"{folder}: exists already and nothing is overwritten; give a new folder") from error
    except OSError as error:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error
    _made.append((folder, missing))
    return folder


@contextmanager
def discarding() -> Iterator[None]:
    """Removes the folders that are made within it and hold no result, where a signal or a mistake of the user ends it."""
    before = len(_made)

    def discard() -> None:
        for folder, parents in _made[before:]:
            if not any(file.name not in WITHOUT_RESULT for file in _files(folder)):
                _discard(folder, parents)

    with cleaning(discard):
        try:
            yield
        except (KeyboardInterrupt, SystemExit, InputError, OSError):
            discard()
            raise


def _files(folder: Path) -> Iterator[Path]:
    """The files of a run that may be results: those of W&B's repeat others, and metrics without a row are none."""
    for file in folder.rglob("*"):
        empty = file.name == "metrics.csv" and file.read_bytes().count(b"\n") < 2
        if file.is_file() and "wandb" not in file.relative_to(folder).parts and not empty:
            yield file


def _discard(folder: Path, parents: Sequence[Path]) -> None:
    """Removes a folder and those above it that were made for it; `latest` is the newest run before it then."""
    shutil.rmtree(folder, ignore_errors=True)
    link = folder.parent / "latest"
    with suppress(OSError):
        if link.is_symlink() and not link.exists():
            link.unlink()
            others = sorted(file.parent for file in folder.parent.glob(f"*/{STATUS}"))
            if others:
                point_latest(others[-1])
        for parent in parents:
            parent.rmdir()


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
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def point_latest(folder: Path) -> None:
    """Makes `latest`, beside the folder, a link to it, in one step that readers never see half done."""
    with replacing(folder.parent / "latest") as temporary:
        temporary.symlink_to(folder.name)


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

    The file holds command, arguments, state (running, finished, interrupted, failed or stopped early), message, host, pid,
    slurm_job, started and updated (seconds since 1970), seconds (how long it has run), step, max_steps, version and format.
    It is replaced in one move.
    A run that goes on in its folder began when it began first, and its seconds add up.

    Args:
        folder: the run folder.
        arguments: the command and its options.
        step: says how many training steps are done.
        max_steps: how many are to be done, -1 if that is not known.
        terminated: the state after SIGTERM.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        step: Callable[[], int],
        max_steps: int = -1,
        terminated: str = "interrupted",
    ):
        self._terminated = terminated
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
        self._cleaning = ExitStack()
        self._thread = threading.Thread(target=self._beat, name="run status", daemon=True)

    def __enter__(self) -> "RunStatus":
        self._write("running")
        self._cleaning.enter_context(cleaning(lambda: self._write("interrupted", "ended by a signal")))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._cleaning.close()
        self._thread.join()
        if error is None:
            self._write("finished")
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):  # so Lightning ends after a signal
            by_sigterm = isinstance(error, SystemExit) and error.code in (None, 0, 143)
            self._write(self._terminated if by_sigterm else "interrupted", "ended by a signal")
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
        with suppress(OSError):  # a full disk, say: the run is worth more than what is said about it
            replace_text(self._file, json.dumps(self._entries | here, indent=1))
