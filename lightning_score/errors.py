"""Errors for a user's mistakes: one line that names the value, what is allowed and the fix."""

import inspect
from collections.abc import Mapping
from functools import partial
from pydoc import locate
from typing import Any

MOST_PASSES = 1_000_000


class InputError(ValueError):
    """A user's mistake: the message names the value, what is allowed and the fix.

    The command line prints it as one line, without a traceback, and exits with a non-zero code.
    """


class Unmeasurable(InputError):
    """Samples that cannot be measured, such as those of a sampler that diverged. Training may continue."""


def require(condition: bool, message: str) -> None:
    """Raises `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def user_mistake(error: BaseException) -> InputError | None:
    """The `InputError` that an error is or, as when the parser wraps what constructors raise, was caused by."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    return cause


def require_passes(**counts: int) -> None:
    """Refuses numbers of steps, levels or draws, each of which costs a pass through the network, that would never finish.

    Raises:
        InputError: one is above `MOST_PASSES`.
    """
    for name, count in counts.items():
        require(count <= MOST_PASSES, f"{name}={count}: at most {MOST_PASSES}; each costs a pass through the network")


def require_classes(config: Any) -> None:
    """Refuses a parsed configuration that names a function where a class belongs: the parser would call it.

    Args:
        config: mappings and sequences of plain values.

    Raises:
        InputError: a `class_path` does not name a class, or a value is a function.
    """
    if isinstance(config, Mapping):
        name = config.get("class_path")
        found = locate(name) if isinstance(name, str) and "." in name else None
        require(found is None or inspect.isclass(found), f"class_path {name}: not a class; a config makes only classes")
    if isinstance(config, Mapping | list | tuple):
        for part in config.values() if isinstance(config, Mapping) else config:
            require_classes(part)
    else:
        name = getattr(config, "__qualname__", config)
        called = inspect.isroutine(config) or isinstance(config, partial)
        require(not called, f"{name}: a function; a config makes only classes")


def one_line(error: BaseException, limit: int = 300) -> str:
    """The beginning of an error's message in one line; the name of its type if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def printable(text: str) -> str:
    """Text in one line, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
