"""A lock, so that only one process at a time trains in a run folder."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Any

from lightning_score.errors import require
from lightning_score.runs.status import read_status

LAST_WORKERS = 8.0
"""Seconds that data-loading processes may outlive a killed run."""
_held: list[int] = []  # descriptors of the locked folders


def hold(folder: Path) -> None:
    """Locks a run folder until the command or its process ends: two runs would overwrite each other's files.

    Raises:
        InputError: another process is training in it.
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
            require(time.monotonic() < end, f"{folder}: {where} is training in this run; wait for its end, or stop it")
            time.sleep(0.1)
        except OSError:  # a file system that cannot lock folders
            return
        else:
            return


def _is_alive(status: dict[str, Any]) -> bool:
    """Whether the process of a status runs on this machine."""
    try:
        os.kill(int(status["pid"]), 0)
    except (KeyError, OSError, ValueError, TypeError, OverflowError):
        return False
    return status.get("host") == socket.gethostname()


def release() -> None:
    """Unlocks all folders."""
    while _held:
        os.close(_held.pop())
