"""Checks of a parsed configuration for mistakes that neither the parser nor a constructor reports well."""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pydoc import locate
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from lightning_score.errors import require
from lightning_score.files import CheckpointPath, LocalPath
from lightning_score.runs.pretrained import pinned

LARGEST_SEED, LARGEST_INTEGER, LARGEST_SIZE = 2**32 - 1, 2**63 - 1, 10**9


def check_config(config: Namespace, groups: Mapping[str, type]) -> None:
    """Checks a parsed configuration before anything is instantiated.

    Args:
        config: as parsed.
        groups: the classes whose parameters are grouped under a name.

    Raises:
        InputError: a group is not a mapping, a null is not allowed, or a number is NaN or too large.
    """
    seed = config.get("seed_everything")
    allowed = f"must be a whole number from 0 to {LARGEST_SEED}, or true for a random one"
    require(seed is None or 0 <= seed <= LARGEST_SEED, f"seed_everything {seed}: {allowed}")
    _check_numbers(config.as_dict())
    for name, owner in groups.items():
        group = config.get(name, Namespace())
        fits = isinstance(group, Namespace)
        require(fits, f"{name}: {group!r}: must hold the parameters of {owner.__name__}, by their names")
    for place, owner, arguments in _classes(config, groups):
        _check_nulls(place, owner, vars(arguments))


def make_paths_absolute(config: Namespace, groups: Mapping[str, type]) -> None:
    """Makes the paths in a parsed configuration absolute, in place, so that it works from any folder.

    Args:
        config: as parsed and checked.
        groups: the classes whose parameters are grouped under a name.
    """
    for _, owner, arguments in _classes(config, groups):
        hints = _hints(owner)
        for name, value in vars(arguments).items():
            kinds = (hints.get(name), *get_args(hints.get(name)))
            if isinstance(value, str) and CheckpointPath in kinds:
                setattr(arguments, name, pinned(value))
            elif isinstance(value, str | Path) and (LocalPath in kinds or Path in kinds) and "://" not in str(value):
                setattr(arguments, name, type(value)(os.path.abspath(os.path.expanduser(value))))


def _classes(config: Namespace, groups: Mapping[str, type]) -> Iterator[tuple[str, type, Namespace]]:
    """The place, the class and the arguments of each class in a configuration, the outer ones first."""
    for name, value in vars(config).items():
        yield from _inside(name, groups[name], value) if name in groups else _parts(name, value)


def _inside(place: str, owner: type, arguments: Namespace) -> Iterator[tuple[str, type, Namespace]]:
    yield place, owner, arguments
    for name, value in vars(arguments).items():
        yield from _parts(f"{place}.{name}", value)


def _parts(place: str, value: Any) -> Iterator[tuple[str, type, Namespace]]:
    for part in value if isinstance(value, list | tuple) else [value]:
        kind, arguments = getattr(part, "class_path", None), getattr(part, "init_args", None)
        owner = locate(kind) if isinstance(kind, str) else None
        if isinstance(owner, type) and isinstance(arguments, Namespace):
            yield from _inside(place, owner, arguments)


def _hints(owner: type) -> dict[str, Any]:
    """The types of the parameters of a class, and of its bases, which may get them as keywords."""
    hints: dict[str, Any] = {}
    for kind in reversed(owner.__mro__):
        with suppress(Exception):  # hints of other packages may raise anything
            hints |= get_type_hints(kind.__init__)  # type: ignore[misc]
    return hints


def _check_numbers(value: Any, place: str = "") -> None:
    """No number is NaN, every seed fits into a tensor, and no count or size is larger than any machine can handle."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_numbers(part, place if key == "init_args" else f"{place}.{key}".removeprefix("."))
    for part in value if isinstance(value, list | tuple) else ():
        _check_numbers(part, place)
    require(value == value, f"{place}={value}: must be a number")
    owner, _, name = place.rpartition(".")
    largest = LARGEST_INTEGER if owner == "trainer" or "seed" in name else LARGEST_SIZE
    fits = not isinstance(value, int) or abs(value) <= largest
    require(fits, f"{place}={value}: too large; a whole number is at most {largest} here")


def _check_nulls(place: str, owner: type, arguments: Mapping[str, Any]) -> None:
    """Every null is allowed by its parameter."""
    hints = _hints(owner)
    parameters = inspect.signature(owner).parameters
    for name, value in arguments.items():
        if value is None and name in hints and name in parameters:
            takes = hints[name] is Any or type(None) in get_args(hints[name]) or parameters[name].default is None
            shown = getattr(hints[name], "__name__", str(hints[name]))
            require(takes, f"{place}.{name}: null: must be given, as {shown}, or left out where there is a default")
