"""The processes of a sweep: their names, whether they are alive, locks, and stopping after SIGINT and SIGTERM."""

import ctypes
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 4.0
"""Seconds after a signal until a worker that does not react is killed."""
SAVING = 60.0
"""Seconds after a signal for a trial that trains, which saves a checkpoint."""
POLL = 0.2
LOCK = ".lock"
"""The file that stands in for a folder that cannot be locked."""


def cores() -> int:
    """The number of CPU cores that this process may use, as in a job of a cluster."""
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    allowed = [len(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else []
    return min([os.cpu_count() or 1, *allowed, *([int(given)] if given.isdecimal() else [])])


def identity() -> str:
    """A name of this process that is unique among all machines, such as `host:1234`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def end_with_parent(parent: int) -> None:
    """Requests SIGTERM for this process when its parent dies (Linux); call it in a child directly after the fork."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def in_turn(folder: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that one process at a time calls, of all that name the same folder, also on several machines."""

    def called(*args: Any, **settings: Any) -> Any:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # NFS locks only files that are open for writing
            os.close(descriptor)
            descriptor = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            return call(*args, **settings)
        finally:
            os.close(descriptor)

    return called


class Killed(Exception):
    """The process of a trial was killed, as by the system when memory ran out: the trial returns to the queue."""


class Stopped(BaseException):
    """Stops a trial because its process must stop; libraries do not catch it as an error or as Ctrl-C."""


class Interruption:
    """Whether this process must stop. After a second Ctrl-C it exits at once.

    A signal handler that raises inside a database session leaves the database locked. So the handler only records the
    signal, and `check` raises between two trials or two network evaluations. Signals that this process ignores, such as
    SIGINT in the background of a shell, stay ignored. The context manager installs the handlers.

    Args:
        parent: process id of the parent; when the parent ends, this process must stop, too.
        at_once: the handler raises SystemExit until `defer` is called (no database is open before).
        patience: seconds after a signal until a process that does not react exits.

    Attributes:
        patience: the same.
    """

    def __init__(self, parent: int | None = None, at_once: bool = False, patience: float = PATIENCE):
        self._parent, self._at_once, self.patience = parent, at_once, patience
        self._number, self._since, self._over = 0, 0.0, False
        self._before: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # other threads cannot install handlers
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked while a worker starts
            threading.Thread(target=self._watch, name="interruption", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over = True
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self._number == signal.SIGINT:
            self.patience = 0.0
        self._number, self._since = self._number or number, self._since or time.monotonic()
        if self._at_once:
            self._at_once = False
            os.write(2, b"\nstopped before the first trial\n")  # sys.stderr may be in use, or redirected
            raise SystemExit(self.code)

    def _watch(self) -> None:
        """Exits a process that is stuck, as `kill -9` does; database and trials stay consistent."""
        while not self._over:
            if self._number and not self._at_once and time.monotonic() - self._since > self.patience:
                os._exit(self.code)
            time.sleep(POLL)

    def defer(self) -> None:
        """From now on the handler only records signals."""
        self._at_once = False
        if self._number:  # other code has caught the handler's exception
            raise SystemExit(self.code)

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived, or the parent has ended."""
        return bool(self._number) or (self._parent is not None and os.getppid() != self._parent)

    @property
    def code(self) -> int:
        """The exit code: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self._number or signal.SIGTERM)

    def check(self, *_: Any) -> None:
        """Raises `Stopped` if this process must stop; it can be used as a module hook."""
        if self.requested:
            raise Stopped
