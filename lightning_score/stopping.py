"""Ctrl-C, SIGTERM and SIGHUP: a command ends with one line, the exit code of the signal and nothing left behind.

It imports the standard library alone, so that it works while all else is imported.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 4.0
"""Seconds from a signal to the end of the process, whatever it computes or waits for."""

asked: signal.Signals | None = None
"""The first signal that asked this process to stop."""
_handlers: dict[signal.Signals, Any] = {}
_cleanups: list[Callable[[], Any]] = []
_raising = _patient = _told = False


def install() -> None:
    """Takes the signals over, but for those that are ignored, as SIGHUP is under nohup. To be called in the main thread."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            _handlers[number] = signal.signal(number, _stop)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), name="signals", daemon=True).start()
    os.register_at_fork(after_in_child=_give_back)


def again() -> None:
    """Takes over what was installed once more, where a library has ignored it meanwhile."""
    for number in _handlers:
        signal.signal(number, _stop)


@contextmanager
def raising() -> Iterator[None]:
    """Within it a signal raises KeyboardInterrupt; elsewhere, in imports and at the very end, the process ends at once, and
    so it does when what the signal stopped has been put away: the end of an interpreter takes seconds.
    """
    global _raising
    _raising = True
    try:
        yield
    except KeyboardInterrupt:
        leave(asked or signal.SIGINT)
    except SystemExit as end:
        if asked is not None and end.code:
            leave(asked)
        raise
    finally:
        _raising = False


@contextmanager
def patience() -> Iterator[None]:
    """Within it the first signal has all the time that it needs, as to save a checkpoint."""
    global _patient
    before, _patient = _patient, True
    try:
        yield
    finally:
        _patient = before


@contextmanager
def cleaning(call: Callable[[], Any]) -> Iterator[None]:
    """Within it `call` is made before the process ends without raising an exception."""
    _cleanups.append(call)
    try:
        yield
    finally:
        _cleanups.remove(call)


def note(number: int | None) -> None:
    """Remembers the signal that asked this process to stop; None: forgets it."""
    global asked, _told
    if number is None:
        asked, _told = None, False
    elif number in SIGNALS:
        asked = asked or signal.Signals(number)


def tell() -> None:
    """Says once on the standard error, in the first of several processes, which signal stops the command."""
    global _told
    if asked is not None and not _told and os.environ.get("LOCAL_RANK", "0") == "0":
        _told = True
        with suppress(OSError):
            os.write(2, f"stopped by {asked.name}\n".encode())


def leave(number: int) -> NoReturn:
    """Ends the process now: temporary files are removed, and other processes that this one began are ended."""
    note(number)
    for call in reversed(_cleanups):
        with suppress(Exception):
            call()
    if threading.current_thread() is threading.main_thread():
        with suppress(Exception):
            sys.stdout.flush()
    tell()
    os._exit(128 + asked)


def _stop(number: int, frame: FrameType | None) -> None:
    second = asked is not None
    note(number)
    if second or not _raising:
        leave(number)
    raise KeyboardInterrupt


def _watch(read: int) -> None:
    """Ends the process where the main thread does not, as in a long call of a library that no exception can leave."""
    signals = 0
    while number := os.read(read, 1):
        if number[0] in _handlers:
            signals += 1
            if signals > 1 or not _patient:
                time.sleep(GRACE)
                leave(number[0])


def _give_back() -> None:
    """In a forked process, as a worker of a data loader, signals do what they did before."""
    signal.set_wakeup_fd(-1)
    for number, handler in _handlers.items():
        signal.signal(number, handler)
    _cleanups.clear()
