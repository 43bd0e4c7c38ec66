"""Errors for class names: the classes that an option takes, the most similar names first."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import yaml
from jsonargparse import Namespace
from jsonargparse._typehints import get_all_subclass_paths, get_help_types, resolve_class_path_by_name
from jsonargparse._util import NestedArg, import_object

from lightning_score.errors import one_line
from lightning_score.runs.old_names import new_classes
from lightning_score.runs.yaml_files import load

SPEC = {"class_path", "init_args", "dict_kwargs", "__path__"}


def class_names(typehint: Any, wanted: str = "") -> str:
    """The names of all public classes that a type takes, those similar to the wanted one first."""
    bases = {base.__name__ for base in get_help_types(typehint)}
    found = {path.rpartition(".")[2] for path in get_all_subclass_paths(typehint)}
    names = sorted(name for name in found - bases if not name.startswith("_"))
    lower = {name.lower(): name for name in names}
    near = [lower[name] for name in difflib.get_close_matches(wanted.lower(), lower, 3)]
    return ", ".join([*near, *(name for name in names if name not in near)])


def class_mistake(typehint: Any, place: str, value: Any) -> str:
    """The error message for a wrong class in a refused value; empty if the class is not the reason.

    Args:
        typehint: the type of the option.
        place: its name.
        value: as given.
    """
    types = _bases(typehint)
    if not types:
        return ""
    if isinstance(value, NestedArg):
        return _no_class(f"{place}.{value.key}={value.val}", place, typehint)
    try:
        parts = list(_parts(value))
    except yaml.YAMLError as error:
        return f"{place}={value}: {getattr(error, 'problem', None) or error}"
    for part in parts:
        if isinstance(part, Mapping) and "class_path" not in part:
            return _no_class(f"{place}={dict(part)}", place, typehint)
        name = part["class_path"] if isinstance(part, Mapping) else part
        if isinstance(name, str) and (reason := _unusable(name.lstrip("+"), types)):
            renamed = [new for new in new_classes(name.lstrip("+")) if not _unusable(new, types)]
            if renamed:
                return f"{place}={name}: this class has been renamed; give {renamed[0]}"
            own = "or the path of your own, as my_module.MyClass"
            return f"{place}={name}: {reason}; give one of {class_names(typehint, name.rpartition('.')[2])}, {own}"
    return ""


def misplaced(typehint: Any, place: str, value: Any) -> str:
    """The error message for arguments of a class outside of `init_args`, or values that are not arguments or a class; else
    empty.
    """
    parts: list[Any] = []
    with suppress(yaml.YAMLError):  # which `class_mistake` reports
        parts = list(_parts(value)) if get_help_types(typehint) else []
    for part in parts:
        part = part if isinstance(part, Mapping) else {}
        inside, name = part.get("init_args", {}), part.get("class_path", "")
        if not isinstance(inside, Mapping | Namespace):
            return f"{place}.init_args: {_shown(inside)}: must hold arguments by their names; leave it out for none"
        if not isinstance(name, str):
            return f"{place}.class_path: {_shown(name)}: must be the name of a class; leave it out to keep the present one"
        strange = sorted(map(str, part.keys() - SPEC)) if name else []
        if strange:
            name = name.rpartition(".")[2]
            inside = f"{{class_path: {name}, init_args: {{{strange[0]}: ...}}}}"
            return f"{place}.{strange[0]}: must be inside init_args, as in {place}: {inside}"
    return ""


def _bases(typehint: Any) -> tuple[type, ...]:
    """The base classes of parts that a type takes; not of plain values such as tensors and time spans."""
    from lightning_score.runs.trust import KINDS  # takes seconds to import

    found = get_help_types(typehint) or ()
    return tuple(base for base in found if issubclass(base, KINDS) or base.__module__.startswith("lightning_score"))


def _parts(value: Any) -> Iterator[Any]:
    """The parts of a value: itself, or the elements of a list."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        value = load(value)
    for part in value if isinstance(value, list) else [value]:
        yield vars(part) if isinstance(part, Namespace) else part


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _no_class(given: str, place: str, typehint: Any) -> str:
    return f"{given}: of which class? Give {place} first, one of {class_names(typehint)}; in a config, as its class_path"


def _unusable(name: str, types: tuple[type, ...]) -> str:
    """Why a name is not that of such a class; empty if it is."""
    try:
        found = import_object(resolve_class_path_by_name(types, name))  # type: ignore[arg-type]
    except Exception as error:  # a user's module may raise anything
        known = "." in name or "Multiple" in str(error)  # classes have this name
        return f"cannot be imported ({one_line(error, 200)})" if known else "no such class"
    fits = isinstance(found, type) and issubclass(found, types)
    if fits and inspect.isabstract(found):
        return f"abstract, without {' and '.join(sorted(found.__abstractmethods__))}"
    kinds = (f"{each.__name__} {getattr(each, 'needs', '')}".strip() for each in types)
    return "" if fits else f"not a {' or '.join(kinds)}"


def options_inside(classes: Mapping[str, str]) -> Iterator[str]:
    """The options of the given classes, which are by place."""
    for place, path in classes.items():
        with suppress(Exception):
            yield from (f"{place}.{name}" for name in inspect.signature(import_object(path)).parameters)
