"""SIGINT and SIGTERM: noted, and looked at where nothing is half done."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 4.0
"""Seconds that a worker has to react to a signal."""
POLL = 0.2


class Stopped(BaseException):
    """Ends a trial whose process is to stop; libraries treat it neither as an error nor as Ctrl-C."""


class Interruption:
    """Whether this process is to stop.

    An exception that a signal handler raises inside a database session leaves the database locked, so the handler only notes
    the signal, and `check` raises between two trials or two evaluations of the network. Signals that this process ignores,
    as SIGINT in the background of a shell, stay ignored. Within its context the handlers are installed.

    Args:
        parent: process id of the parent, whose end is a reason to stop, too.
        at_once: raise SystemExit in the handler until `defer` is called: while no database is open.
        patience: seconds after which a process that has not reacted, as one that waits for a database, is ended.
    """

    def __init__(self, parent: int | None = None, at_once: bool = False, patience: float = PATIENCE):
        self._parent, self._at_once, self._patience = parent, at_once, patience
        self._number, self._since, self._over = 0, 0.0, False
        self._before: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # others may not install handlers
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked while a worker starts
            threading.Thread(target=self._watch, name="interruption", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over = True
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number, self._since = self._number or number, self._since or time.monotonic()
        if self._at_once:
            self._at_once = False
            os.write(2, b"\nstopped before the first trial\n")  # sys.stderr may be in use, or redirected
            raise SystemExit(self.code)

    def _watch(self) -> None:
        """Ends a process that is stuck as `kill -9` does: database and trials are consistent after that."""
        while not self._over:
            if self._number and not self._at_once and time.monotonic() - self._since > self._patience:
                os._exit(self.code)
            time.sleep(POLL)

    def defer(self) -> None:
        """From here on signals are only noted."""
        self._at_once = False
        if self._number:  # the exception of the handler was lost in somebody else's `except`
            raise SystemExit(self.code)

    @property
    def requested(self) -> bool:
        """Whether a signal has come, or the parent has ended."""
        return bool(self._number) or (self._parent is not None and os.getppid() != self._parent)

    @property
    def code(self) -> int:
        """The exit code, as a shell reports it: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self._number or signal.SIGTERM)

    def check(self, *_: Any) -> None:
        """Raises `Stopped` if this process is to stop; it can serve as a hook of a module."""
        if self.requested:
            raise Stopped
