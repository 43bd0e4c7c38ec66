"""`console.log`: what a command prints, in the folder of its run."""

import logging
import os
import re
import shlex
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

from lightning_score.runs.folders import CONSOLE, leads_out

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)")
"""Colors, and movements of the cursor, of a terminal."""
EVERY = 1.0
"""Seconds between two writes of an unfinished line, as of a progress bar."""

_current: "_Console | None" = None


@contextmanager
def recording_console(words: Sequence[str]) -> Iterator[None]:
    """Within it, what Python code of this process prints is kept, and written to a file once `write_console` names it.

    `sys.stdout` and `sys.stderr` stay the same objects, so that terminals, colors, progress bars and handlers of `logging`
    work as before; only their method `write` also passes the text on. Of a line that is written again, as by a progress bar,
    the last state is kept. The output of other processes and of compiled code is not.

    Args:
        words: the command, which becomes the first line.
    """
    global _current
    outer, _current = _current, _Console(f"$ python -m lightning_score {shlex.join(words)}\n")
    try:
        with _current.watching(sys.stdout), _current.watching(sys.stderr):
            yield
    except Exception:
        _current.add("traceback", traceback.format_exc())  # which Python prints later
        raise
    finally:
        _current.close()
        _current = outer


def write_console(folder: Path) -> None:
    """Appends all that the command prints to `console.log` in a folder, unless that is a link to elsewhere."""
    if _current is not None and not leads_out(folder / CONSOLE, folder):
        _current.open(folder / CONSOLE)


def print_state(stream: TextIO, line: str) -> None:
    """Prints a line with the state of a progress bar, for which `console.log` keeps only the last one.

    Args:
        stream: where to print it.
        line: the line; empty where the bar ends, which prints nothing.
    """
    if _current is None:
        stream.write(line and f"{line}\n")
        return
    if line:
        with _current.paused():
            stream.write(f"{line}\n")
        _current.add("bar", f"\r{line}")
    else:
        _current.end("bar")


class _Console:
    """What is printed: complete lines, and unfinished lines by their source.

    Args:
        text: its first line.
    """

    def __init__(self, text: str):
        self.lock = threading.RLock()  # a signal handler may print while this thread does
        self._lines, self._rest = [text], dict[str, str]()
        self._file: IO[bytes] | None = None
        self._process, self._closed = os.getpid(), False
        self._paused: int | None = None  # a thread
        self._end, self._written = 0, 0.0

    @contextmanager
    def watching(self, stream: Any) -> Iterator[None]:
        """Within it, what is written to a stream is added. Other wrappers of its `write`, such as W&B's, may stay longer."""
        if stream is None:
            yield
            return
        write, source = stream.write, f"stream {id(stream)}"

        def write_and_add(text: str, /) -> Any:
            result = write(text)
            if not self._closed and threading.get_ident() != self._paused and os.getpid() == self._process:
                self.add(source, text)
            return result

        own = "write" in vars(stream)
        stream.write = write_and_add
        try:
            yield
        finally:
            if stream.write is write_and_add:
                if own:
                    stream.write = write
                else:
                    del stream.write

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it, nothing is added that this thread prints."""
        self._paused = threading.get_ident()
        try:
            yield
        finally:
            self._paused = None

    def add(self, source: str, text: str) -> None:
        """Adds text from one source as a terminal would show it: after a carriage return, a line is written again."""
        with self.lock, suppress(OSError, ValueError):  # of a full disk; nothing may harm the run
            *complete, rest = (self._rest.get(source, "") + text).split("\n")
            last = rest.rstrip("\r")
            self._rest[source] = last.rpartition("\r")[2] + rest[len(last) :][:1]  # a new line may follow "\r"
            self._lines += [f"{shown(line)}\n" for line in complete if shown(line) or not line]
            if self._file is not None and (complete or time.monotonic() > self._written + EVERY):
                self._flush()

    def end(self, source: str) -> None:
        """Ends the unfinished line of a source, if it has one."""
        if self._rest.get(source):
            self.add(source, "\n")

    def open(self, file: Path) -> None:
        """Writes to the end of a file from now on, beginning with all that has been printed."""
        with self.lock, suppress(OSError):
            self._file = file.open("r+b" if file.exists() else "w+b", buffering=0)
            self._end = self._file.seek(0, os.SEEK_END)
            self._flush()

    def close(self) -> None:
        """Writes the rest."""
        with self.lock, suppress(OSError):
            self._closed = True
            if self._file is not None:
                self._flush()
                self._file.close()

    def _flush(self) -> None:
        """Writes complete lines in place of the unfinished ones of the last time, then those that are unfinished now."""
        if self._file is None:
            return
        self._file.seek(self._end)
        self._file.truncate()
        self._file.write("".join(self._lines).encode(errors="replace"))
        self._lines, self._end, self._written = [], self._file.tell(), time.monotonic()
        unfinished = filter(None, map(shown, self._rest.values()))
        self._file.write("".join(f"{line}\n" for line in unfinished).encode(errors="replace"))


def shown(line: str) -> str:
    """What a terminal shows of a line at its end."""
    return ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip()


def quiet() -> None:
    """Leaves the terminal to what the user needs to see."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "exists and is not empty",
        "smaller than the logging interval",
        "LeafSpec",
        "tensorboardX",
        "sync_dist=True",  # of what the first process alone knows
        "torch.jit.script",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
