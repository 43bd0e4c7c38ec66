"""Ctrl-C, SIGTERM and SIGHUP: a command ends with one line and the exit code of the signal, and removes temporary files.

Imports only the standard library, so that it works while everything else is being imported.
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
"""Seconds from a signal to the end of the process, whatever it does."""
ECHO = 3.0
"""Seconds within which a second SIGTERM is the same request: a cluster sends it to a process and to its parent, which sends
it on."""

received: signal.Signals | None = None
"""The first signal that asked this process to stop."""
_handlers: dict[signal.Signals, Any] = {}
_cleanups: list[Callable[[], Any]] = []
_raising = _patient = _printed = False


def install() -> None:
    """Installs the handlers, except for ignored signals, such as SIGHUP under nohup. Call it in the main thread."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            _handlers[number] = signal.signal(number, _stop)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), name="signals", daemon=True).start()
    os.register_at_fork(after_in_child=_give_back)


def reinstall() -> None:
    """Installs the handlers again, after a library has replaced them."""
    for number in _handlers:
        signal.signal(number, _stop)


@contextmanager
def raising() -> Iterator[None]:
    """Within it, a signal raises KeyboardInterrupt; elsewhere, as during imports, it ends the process at once. After a
    signal the process ends without the interpreter's own clean-up, which takes seconds.
    """
    global _raising
    _raising = True
    try:
        yield
    except KeyboardInterrupt:
        leave(received or signal.SIGINT)
    except SystemExit as end:
        if received is not None and end.code:
            leave(received)
        raise
    finally:
        _raising = False


@contextmanager
def patience() -> Iterator[None]:
    """Within it, the process has unlimited time after the first signal, for example to save a checkpoint."""
    global _patient
    before, _patient = _patient, True
    try:
        yield
    finally:
        _patient = before


@contextmanager
def cleaning(call: Callable[[], Any]) -> Iterator[None]:
    """Within it, `call` runs before the process ends without an exception."""
    _cleanups.append(call)
    try:
        yield
    finally:
        _cleanups.remove(call)


def record_signal(number: int | None) -> None:
    """Records the signal that asked this process to stop; None clears it."""
    global received, _printed
    if number is None:
        received, _printed = None, False
    elif number in SIGNALS:
        received = received or signal.Signals(number)


def print_signal() -> None:
    """Prints the signal that stops the command on stderr, once, in the first of several processes."""
    global _printed
    if received is not None and not _printed and os.environ.get("LOCAL_RANK", "0") == "0":
        _printed = True
        with suppress(OSError):
            os.write(2, f"stopped by {received.name}\n".encode())


def leave(number: int) -> NoReturn:
    """Ends the process now, after the registered clean-ups."""
    record_signal(number)
    for call in reversed(_cleanups):
        with suppress(Exception):
            call()
    if threading.current_thread() is threading.main_thread():
        with suppress(Exception):
            sys.stdout.flush()
    print_signal()
    os._exit(128 + (received or number))


def _stop(number: int, frame: FrameType | None) -> None:
    second = received is not None
    record_signal(number)
    if second or not _raising:
        leave(number)
    raise KeyboardInterrupt


def _watch(read: int) -> None:
    """Ends the process if the main thread does not, as in a long call of a library."""
    first: float | None = None
    while number := os.read(read, 1):
        if number[0] in _handlers:
            again = first is not None and (number[0] == signal.SIGINT or time.monotonic() - first > ECHO)
            first = time.monotonic() if first is None else first
            if again or not _patient:
                time.sleep(GRACE)
                leave(number[0])


def _give_back() -> None:
    """Restores the former handlers in a forked process, such as a worker of a data loader."""
    signal.set_wakeup_fd(-1)
    for number, handler in _handlers.items():
        signal.signal(number, handler)
    _cleanups.clear()
