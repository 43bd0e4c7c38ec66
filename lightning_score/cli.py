"""The command line: runs a command, and turns a user's mistakes into one line and an exit code."""

import signal
import sys
from contextlib import nullcontext, suppress
from importlib import import_module
from typing import Any

from lightning_score import stopping
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.origins import origin
from lightning_score.commands.plain_parser import UsageError
from lightning_score.errors import InputError, printable, require, user_mistake
from lightning_score.runs.console import quiet, recording_console
from lightning_score.runs.folders import discarding, release
from lightning_score.runs.trial import TERMINATED, fail_trial, finish_run, in_trial
from lightning_score.sweep.macros import from_agent

WITH_TRAINER = ("fit", "validate", "test", "predict")
WITHOUT_TRAINER = {
    "evaluate": "lightning_score.commands.measure",
    "schedule": "lightning_score.commands.schedule",
    "langevin": "lightning_score.commands.langevin",
    "grid": "lightning_score.commands.grid",
    "tune": "lightning_score.commands.tune",
    "ema": "lightning_score.commands.ema",
    "sweep": "lightning_score.sweep.cli",
    "benchmark": "lightning_score.sweep.benchmark",
    "report": "lightning_score.report.command",
    "gallery": "lightning_score.commands.gallery",
    "convert": "lightning_score.commands.convert",
    "push": "lightning_score.commands.hub",
    "pull": "lightning_score.commands.hub",
}
"""The modules of the other commands, imported only when they run, with all their libraries; each has a function of the
command's name.
"""
COMMANDS = (*WITH_TRAINER, *WITHOUT_TRAINER)


def run(words: list[str]) -> int:
    """Runs one command; a mistake of the user is one line on stderr and exit code 2."""
    with recording_console(words) if words[:1] and words[0] in (*WITH_TRAINER, "evaluate") else nullcontext():
        return _run_explaining(words)


def _run_explaining(words: list[str]) -> int:
    """Runs one command, and prints a mistake of the user."""
    stopping.record_signal(None)
    arguments = Arguments.parse(words)
    try:
        with discarding():
            if in_trial():
                arguments = from_agent(arguments)
            _run(arguments)
    except (KeyboardInterrupt, SystemExit) as end:  # raised by the parser after a mistake, by Lightning after a signal
        code: Any = 130 if isinstance(end, KeyboardInterrupt) else end.code
        if code:
            mistaken = isinstance(end, UsageError)
            terminated = not mistaken and stopping.received == signal.SIGTERM
            message = end.message if isinstance(end, UsageError) else "ended by a signal"
            fail_trial(message, TERMINATED if terminated else 2, terminated)
        if not code or isinstance(end, UsageError):
            raise
        if isinstance(end, KeyboardInterrupt):
            stopping.record_signal(signal.SIGINT)
        finish_run(code)
        stopping.print_signal()
        raise SystemExit(code if stopping.received is None else 128 + stopping.received) from None
    except Exception as error:
        mistake = user_mistake(error)
        fail_trial(str(mistake or error), 1 if mistake is None else 2)
        if stopping.received is not None and mistake is None:  # a library turned the signal into an error of its own
            stopping.print_signal()
            raise SystemExit(128 + stopping.received) from None
        if mistake is None and isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
            return 1
        if mistake is None:
            raise
        line = printable(str(mistake))
        from lightning_score.commands.configs import with_found_configs  # takes seconds to import

        with suppress(InputError):  # a missing config
            line += origin(with_found_configs(arguments), line)
        print(f"error: {line}", file=sys.stderr)
        return 2
    finally:
        release()
    return 0


def _run(arguments: Arguments) -> None:
    name = arguments.command
    require(name in COMMANDS, f"{name}: unknown command; choose one of {', '.join(COMMANDS)}, before any option")
    quiet()
    if name in WITHOUT_TRAINER:
        getattr(import_module(WITHOUT_TRAINER[name]), name)(arguments)
        return
    from lightning_score.commands.trainer_commands import TRAINER_COMMANDS  # takes seconds to import

    command = TRAINER_COMMANDS[name](arguments)
    command.make()
    command.run()
