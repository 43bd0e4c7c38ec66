"""Conditions that a user gives for samples: numbers, or a file."""

from collections.abc import Collection, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_score.conditions import Condition, Several, Vector
from lightning_score.errors import InputError, require
from lightning_score.files import read_arrays

Given = float | list[Any] | str
"""Numbers, or the path of a file of numbers."""


def read_conditions(given: Given, kind: Condition, name: str = "condition") -> Tensor:
    """The conditions that a user gives, (n, *kind.shape), in the user's units.

    Args:
        given: numbers: one condition, or a list of them; or an NPY or NPZ file with one row per condition.
        kind: what the model takes.
        name: of the condition in the files of the data.

    Raises:
        InputError: the file cannot be read, or the numbers are no conditions of this kind.
    """
    if isinstance(given, str):
        fix = "give an NPY or NPZ file, or numbers, as '[0.3, 1.5]'"
        require(Path(given).is_file(), f"--condition {given}: no such file; {fix}")
        return _from_file(Path(given), kind, name)
    try:
        numbers = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"--condition {given}: must be numbers, or lists of equally many numbers") from error
    return _rows(numbers, kind, f"--condition {given}")


def _from_file(file: Path, kind: Condition, name: str) -> Tensor:
    """Those of a file: one array for each of several, or the array `name`, `condition` or `labels`, or the only one."""
    arrays, place = read_arrays(file), f"--condition {file}"
    names = _names(kind, arrays)
    if names and all(name in arrays for name in names):
        return _of_names(arrays, kind, place)
    only = list(arrays) if len(arrays) == 1 and arrays.keys().isdisjoint(names) else []
    found = next((each for each in (name, "condition", "labels", *only) if each in arrays), None)
    if found is None:
        wanted = f"{name}, or {', '.join(names)}" if names else name
        raise InputError(f"{place}: holds the arrays {', '.join(arrays)}; must hold {wanted}")
    return _rows(arrays[found], kind, f"{place}: {found}")


def _names(kind: Condition, arrays: Collection[str]) -> list[str]:
    """The names of the arrays that hold a condition: of its parts or, of a part that is not there, those of its numbers."""
    if not isinstance(kind, Several):
        return list(kind.names)
    each = [[name] if name in arrays else _names(part, arrays) or [name] for name, part in kind.named()]
    return [name for names in each for name in names]


def _of_names(arrays: dict[str, np.ndarray], kind: Condition, place: str) -> Tensor:
    """A condition from the arrays that have the names of its parts or numbers."""
    if isinstance(kind, Several):
        parts = [
            _rows(arrays[name], part, f"{place}: {name}") if name in arrays else _of_names(arrays, part, place)
            for name, part in kind.named()
        ]
        return kind.pack([part.expand(_common(parts, kind.names, place), *part.shape[1:]) for part in parts])
    columns = [_rows(arrays[name], Vector(1), f"{place}: {name}") for name in kind.names]
    return torch.cat([column.expand(_common(columns, kind.names, place), 1) for column in columns], dim=1)


def _common(parts: Sequence[Tensor], names: Sequence[str], place: str) -> int:
    """The number of rows of all parts; one row is for all."""
    counts = [len(part) for part in parts]
    equal = set(counts) <= {1, max(counts)}
    require(equal, f"{place}: {', '.join(names)} have {counts} rows; give equally many, or one for all")
    return max(counts)


def _rows(numbers: np.ndarray, kind: Condition, place: str) -> Tensor:
    """Numbers as conditions, (n, *shape): one condition, or several."""
    require(numbers.dtype.kind in "biuf", f"{place}: holds {numbers.dtype}; must hold numbers")
    shape, found = kind.shape, numbers.shape
    rows = numbers[None] if found == shape else numbers
    bare = len(shape) > 1 and shape[0] == 1 and len(found) <= len(shape) and found[1 - len(shape) :] == shape[1:]
    if bare or (prod(shape) == 1 and numbers.ndim <= 1):  # without the axis of one channel, or plain numbers
        rows = numbers.reshape(-1, *shape)
    several = f"[{', '.join(map(str, ('n', *shape)))}] for n, as in training"
    wrong = f"{place}: has shape {list(found)}; must be {list(shape)} for one condition, or {several}"
    require(rows.shape[1:] == shape and rows.ndim > 0 and len(rows) > 0, wrong)
    whole = kind.dtype.is_floating_point or bool((rows == np.round(rows)).all())
    require(whole, f"{place}: must be class labels, which are whole numbers")
    return torch.from_numpy(rows.astype(np.float64)).to(kind.dtype)
