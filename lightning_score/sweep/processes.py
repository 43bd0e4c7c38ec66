"""The processes of a sweep: their names, whether they are alive, and ending a child with its parent."""

import ctypes
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def identity() -> str:
    """A name of this process that is unique among all machines, such as `host:1234`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_dead(name: str) -> bool:
    """Whether a process, given by its `identity`, is of this machine and has ended."""
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
    """Whether a process has ended but its parent has not waited for it (Linux)."""
    with suppress(OSError), open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
    return False


def end_with_parent(parent: int) -> None:
    """Requests SIGTERM for this process when its parent dies (Linux); call it in a child directly after the fork."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def in_turn(folder: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that one process at a time calls, of all that name the same folder."""

    def called(*args: Any, **settings: Any) -> Any:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks of folders
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            return call(*args, **settings)
        finally:
            os.close(descriptor)

    return called
