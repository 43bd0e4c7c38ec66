"""Checks of a parsed configuration for mistakes that neither the parser nor a constructor reports well."""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pydoc import locate
from typing import Any, get_args, get_type_hints

from lightning_score.errors import require, require_classes
from lightning_score.files import LocalPath

LARGEST_SEED = 2**32 - 1
LARGEST_NUMBER = 10**9


def check_config(config: Mapping[str, Any], groups: Mapping[str, type]) -> None:
    """Checks a parsed configuration before anything is instantiated.

    Args:
        config: mappings and sequences of plain values.
        groups: the classes whose parameters are grouped under a name.

    Raises:
        InputError: a group is not a mapping, a null is not allowed, a seed is not valid, or a `class_path` is not a class.
    """
    require_classes(config)
    seed = config.get("seed_everything")
    require(
        seed is None or 0 <= seed <= LARGEST_SEED,
        f"seed_everything {seed}: must be a whole number from 0 to {LARGEST_SEED}, or true for a random one",
    )
    _check_sizes(config)
    for name, owner in groups.items():
        if name in config:
            group = config[name]
            require(
                isinstance(group, Mapping),
                f"{name}: {group!r}: must hold the parameters of {owner.__name__}, by their names",
            )
            _check_nulls(group, owner, name)
    _check_parts(config.get("data"), "data")


def make_paths_absolute(config: Any, groups: Mapping[str, type]) -> None:
    """Makes the paths in a parsed configuration absolute, in place, so that it works from any folder.

    Args:
        config: a namespace of the parser.
        groups: the classes whose parameters are grouped under a name.
    """
    for name, value in vars(config).items():
        if name in groups and hasattr(value, "__dict__"):
            _absolute(value, groups[name])
        else:
            _absolute_parts(value)


def _absolute(arguments: Any, owner: type) -> None:
    for name, value in vars(arguments).items():
        kinds = [kind for hint in _hints(owner, name) for kind in (hint, *get_args(hint))]
        if isinstance(value, str | Path) and (LocalPath in kinds or Path in kinds) and "://" not in str(value):
            setattr(arguments, name, type(value)(os.path.abspath(os.path.expanduser(value))))
        _absolute_parts(value)


def _hints(owner: type, name: str) -> Iterator[Any]:
    """The types of a parameter, in the class or its bases, which may get it as a keyword."""
    for kind in owner.__mro__:
        with suppress(Exception):  # hints of other packages may raise anything
            yield get_type_hints(kind.__init__).get(name)


def _absolute_parts(value: Any) -> None:
    for part in value if isinstance(value, list | tuple) else [value]:
        kind, arguments = getattr(part, "class_path", None), getattr(part, "init_args", None)
        owner = locate(kind) if isinstance(kind, str) else None
        if inspect.isclass(owner) and hasattr(arguments, "__dict__"):
            _absolute(arguments, owner)


def _check_sizes(value: Any, place: str = "") -> None:
    """Every integer, such as a seed, fits into a tensor."""
    if isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_sizes(part, place if key == "init_args" else f"{place}.{key}".removeprefix("."))
    fits = not isinstance(value, int) or -(2**63) <= value < 2**63
    require(fits, f"{place}={value}: too large; a whole number is at most {2**63 - 1}")


def _check_nulls(arguments: Mapping[str, Any], owner: type, place: str) -> None:
    """Every null among the arguments of a class, and recursively of its parts, is allowed by its parameter."""
    parameters = inspect.signature(owner).parameters
    for name, value in arguments.items():
        hint = next(filter(None, _hints(owner, name)), None)
        if value is None and hint is not None and name in parameters:
            takes = hint is Any or type(None) in get_args(hint) or parameters[name].default is None
            shown = getattr(hint, "__name__", str(hint))
            require(takes, f"{place}.{name}: null: must be given, as {shown}, or left out where there is a default")
        if place != "trainer" and "seed" not in name:
            _check_size(value, f"{place}.{name}")
        _check_parts(value, f"{place}.{name}")


def _check_size(value: Any, place: str) -> None:
    """No count or size is larger than any machine can handle."""
    for number in value if isinstance(value, list | tuple) else [value]:
        beyond = isinstance(number, int) and number > LARGEST_NUMBER
        require(not beyond, f"--{place} {value}: larger than any machine can handle; at most {LARGEST_NUMBER:.0e}")


def _check_parts(value: Any, place: str) -> None:
    if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        owner = locate(value["class_path"])
        if inspect.isclass(owner) and isinstance(value.get("init_args"), Mapping):
            _check_nulls(value["init_args"], owner, place)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_parts(part, place)
