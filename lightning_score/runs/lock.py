"""One process trains in a run folder at a time."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Any

from lightning_score.errors import require
from lightning_score.runs.status import read_status

LAST_WORKERS = 8.0
"""Seconds for which the loading processes of a run that was killed may outlive it."""
_held: list[int] = []  # descriptors of the run folders in which this process trains


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
