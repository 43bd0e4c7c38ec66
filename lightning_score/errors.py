"""Errors that are a user's mistake: one line that names the value, what is allowed and the fix."""

import inspect
from collections.abc import Mapping
from functools import partial
from pydoc import locate
from typing import Any

MOST_PASSES = 1_000_000


class InputError(ValueError):
    """A mistake in what the user gave: the message names the value, what is allowed and the fix.

    The command line prints it as one line, without a traceback, and exits with a non-zero code.
    """


class Unmeasurable(InputError):
    """Samples or numbers from which nothing can be found, as those of a sampler that diverged. Training may go on."""


def require(condition: bool, message: str) -> None:
    """Raises `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def require_passes(**counts: int) -> None:
    """Refuses numbers of steps, levels or draws, given by their names, each of which costs a pass through the network, that
    no run comes to the end of.

    Raises:
        InputError: one is above `MOST_PASSES`.
    """
    for name, count in counts.items():
        require(count <= MOST_PASSES, f"{name}={count}: at most {MOST_PASSES}; each costs a pass through the network")


def require_classes(config: Any) -> None:
    """Refuses a parsed configuration in which a class is to be made of what is none: a parser that is given the name of a
    function calls it with what stands beside it, or hands it on to be called.

    Args:
        config: mappings and sequences of plain values.

    Raises:
        InputError: a `class_path` names something else than a class, or a value is a function.
    """
    if isinstance(config, Mapping):
        name = config.get("class_path")
        found = locate(name) if isinstance(name, str) and "." in name else None
        require(
            found is None or inspect.isclass(found),
            f"class_path {name}: is no class, and nothing else is made from a config",
        )
    if isinstance(config, Mapping | list | tuple):
        for part in config.values() if isinstance(config, Mapping) else config:
            require_classes(part)
    else:
        name = getattr(config, "__qualname__", config)
        called = inspect.isroutine(config) or isinstance(config, partial)
        require(not called, f"{name}: is a function, and a config makes nothing but classes")


def printable(text: str) -> str:
    """Text of others in one line, without control characters, which would steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
