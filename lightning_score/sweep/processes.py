"""The processes of a sweep: who runs a trial, whether it is alive, and the end of a program with its worker."""

import ctypes
import os
import signal
import socket
import sys
from contextlib import suppress


def identity() -> str:
    """The name of this process among those of all machines, as `host:1234`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(name: str) -> bool:
    """Whether a process is known to be dead, by its `identity`: one of this machine that there is not."""
    host, _, process = name.rpartition(":")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return _is_zombie(int(process))


def _is_zombie(process: int) -> bool:
    """Whether a process has ended, though its parent has not noticed (Linux)."""
    with suppress(OSError), open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
    return False


def end_with_parent(parent: int) -> None:
    """Lets this process get SIGTERM when its parent dies (Linux): called in a child that has just been forked."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)
