"""The command line: which command runs, and what becomes of a user's mistakes."""

import lightning_score.torchvision_guard  # noqa: F401

import signal
import sys
from contextlib import suppress

from lightning_score import stopping
from lightning_score.commands.base import quiet
from lightning_score.commands.configs import with_found_configs
from lightning_score.commands.convert import convert
from lightning_score.commands.gallery import gallery
from lightning_score.commands.origins import origin
from lightning_score.commands.parser import UsageError
from lightning_score.commands.resume import prepared
from lightning_score.commands.schedule import schedule
from lightning_score.commands.trainer import ScoreCLI
from lightning_score.errors import InputError, printable, require
from lightning_score.runs.folders import discarding
from lightning_score.runs.lock import release
from lightning_score.runs.wandb_logger import fail_trial, finish_run, in_trial
from lightning_score.sweep.macros import from_agent


def sweep(arguments: list[str]) -> None:
    """Runs a sweep; its libraries are imported for it only."""
    from lightning_score.sweep.cli import sweep

    with stopping.patience():  # it stops its workers first
        sweep(arguments)


def report(arguments: list[str]) -> None:
    """Shows all runs in one page; its libraries are imported for it only."""
    from lightning_score.report.command import report

    report(arguments)


WITHOUT_TRAINER = {"schedule": schedule, "sweep": sweep, "report": report, "gallery": gallery, "convert": convert}
COMMANDS = ("fit", "validate", "test", "predict", *WITHOUT_TRAINER)


def run(arguments: list[str]) -> int:
    """Runs one command; a mistake of the user is one line on stderr and exit code 2."""
    stopping.note(None)
    try:
        with discarding():
            _run(from_agent(arguments) if in_trial() else arguments)
    except (KeyboardInterrupt, SystemExit) as end:  # so the parser ends after a mistake, and Lightning after a signal
        code = 130 if isinstance(end, KeyboardInterrupt) else end.code
        if code:
            fail_trial(end.message if isinstance(end, UsageError) else "ended by a signal", 2)
        if not code or isinstance(end, UsageError):
            raise
        if isinstance(end, KeyboardInterrupt):
            stopping.note(signal.SIGINT)
        finish_run(code)
        stopping.tell()
        raise SystemExit(code if stopping.asked is None else 128 + stopping.asked) from None
    except Exception as error:
        mistake = error
        while mistake is not None and not isinstance(mistake, InputError):  # the parser wraps what constructors raise
            mistake = mistake.__cause__
        fail_trial(str(mistake or error), 1 if mistake is None else 2)
        if stopping.asked is not None and mistake is None:  # a library has made an error of its own of the signal
            stopping.tell()
            raise SystemExit(128 + stopping.asked) from None
        if mistake is None and isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
            return 1
        if mistake is None:
            raise
        line = printable(str(mistake))
        with suppress(InputError):  # a config that is not there
            line += origin(with_found_configs(arguments), line)
        print(f"error: {line}", file=sys.stderr)
        return 2
    finally:
        release()
    return 0


def _run(arguments: list[str]) -> None:
    command = arguments[0]
    require(command in COMMANDS, f"{command}: unknown command; choose one of {', '.join(COMMANDS)}, before any option")
    quiet()
    if command in WITHOUT_TRAINER:
        return WITHOUT_TRAINER[command](arguments)
    ScoreCLI(*prepared(arguments), given=arguments)
