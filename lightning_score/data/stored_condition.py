"""Conditions that are stored beside the data: their kinds, found from their types and shapes, and their standardization."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import groupby, zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_score.conditions import Array, ClassLabel, Condition, Several, Vector
from lightning_score.data.axes import Axes, Windows, find_axes, ordered
from lightning_score.data.sources import Source
from lightning_score.data.standardize import MeanStd, Standardization
from lightning_score.data.stored import Stored, chunks
from lightning_score.errors import InputError, require


@dataclass
class Part:
    """One condition.

    Attributes:
        kind: the condition.
        standardize: how its numbers are standardized; None for class labels.
        sources: where it is stored, several for the columns of a vector.
        axes: of an array; None for labels and vectors.
        name: its name among several; by default the keys of the sources.
    """

    kind: Condition
    standardize: Standardization | None = None
    sources: Sequence[Source] = ()
    axes: Axes | None = None
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or "_".join(str(source.key) for source in self.sources)
        self.standardize = None if isinstance(self.kind, ClassLabel) else deepcopy(self.standardize) or MeanStd()

    def read(self, rows: np.ndarray, alone: bool, windows: Windows) -> Tensor:
        """The stored conditions of all examples, those that are numbers not read yet.

        Args:
            rows: the row of each example.
            alone: whether each file is one row.
            windows: of the data, for arrays.

        Raises:
            InputError: there is not one for each row.
        """
        if self.axes is not None:
            arrays = [ordered(array, self.axes, windows) for array in self.sources[0].arrays(True, None)]
            found = Stored(arrays, windows.lead)
            self._check_rows(len(found), len(rows))
            infinite = sum(int(chunk.isinf().sum()) for chunk in chunks(found))
            require(not infinite, f"condition={self.sources[0]}: has {infinite} infinite values; NaN means unknown")
            return found
        columns = [source.rows(alone) for source in self.sources]
        table = np.stack(columns, axis=1) if columns[0].ndim == 1 else columns[0]
        self._check_rows(len(table), int(rows.max()) + 1)
        infinite = np.isinf(table).any(1).nonzero()[0]
        require(not len(infinite), f"condition={self.sources[0]}: infinite in {len(infinite)} rows, first in {infinite[:1]}")
        return Stored([table], rows=rows) if self.standardize else torch.from_numpy(table[:, 0].astype(np.int64))[rows]

    def _check_rows(self, found: int, needed: int) -> None:
        require(
            found == needed, f"condition={self.sources[0]}: has {found} rows, and the data have {needed}; give one for each"
        )

    def state_dict(self) -> dict[str, Any]:
        """The kind and the constants as plain values."""
        if isinstance(self.kind, ClassLabel):
            return {"name": self.name, "num_classes": self.kind.num_classes}
        constants = self.standardize.state_dict() if self.standardize else {}
        numbers = {"names": list(self.kind.names)} if self.kind.names else {}
        return {"name": self.name, "shape": list(self.kind.shape), "standardize": constants, **numbers}


class StoredCondition:
    """What is stored beside the data and given to the model.

    Args:
        parts: the conditions.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        kinds = [part.kind for part in parts]
        self.kind = kinds[0] if len(kinds) == 1 else Several(kinds, [part.name for part in parts])

    def to_model(self, values: Tensor) -> Tensor:
        """Stored values (B, *kind.shape) as those for the model: numbers are standardized."""
        return self._each(values, lambda standardize, x: standardize(x))

    def from_model(self, values: Tensor) -> Tensor:
        """The inverse of `to_model`."""
        return self._each(values, lambda standardize, z: standardize.inverse(z))

    def _each(self, values: Tensor, change: Callable[[Standardization, Tensor], Tensor]) -> Tensor:
        each = self.kind.unpack(values) if isinstance(self.kind, Several) else [values]
        pairs = zip(self.parts, each, strict=True)
        return self._packed([change(part.standardize, value) if part.standardize else value for part, value in pairs])

    def _packed(self, found: Sequence[Tensor]) -> Tensor:
        return self.kind.pack(found) if isinstance(self.kind, Several) else found[0]

    def load(
        self, splits: Sequence[np.ndarray], rows: np.ndarray, alone: bool, windows: Windows, in_memory: bool
    ) -> list[Tensor]:
        """The conditions of splits, standardized by those of the first, unless the constants are known.

        Args:
            splits: the numbers of the examples of each.
            rows: the row of each example.
            alone: whether each file is one row.
            windows: of the data.
            in_memory: whether to read arrays into memory; vectors and labels always are.
        """
        found = [part.read(rows, alone, windows) for part in self.parts]
        made = [list[Tensor]() for _ in splits]
        for part, values in zip(self.parts, found, strict=True):
            if part.standardize is not None and part.standardize.shift is None and isinstance(values, Stored):
                part.standardize.fit(partial(chunks, values.of(splits[0])), f"condition={part.name}")
            mapped = len(found) == 1 and part.axes is not None and not in_memory
            for one, numbers in zip(made, splits, strict=True):
                if isinstance(values, Stored):
                    of_split = values.of(numbers, part.standardize, torch.float32)
                    one.append(of_split if mapped else of_split.read())
                else:
                    one.append(values[numbers])
        return [self._packed(one) for one in made]

    def attach(self, found: "StoredCondition | None") -> None:
        """Reads these conditions, which are of a checkpoint, where others were found.

        Raises:
            InputError: they are of other kinds.
        """
        theirs = [] if found is None else list(found.parts)
        for part, other in zip_longest(self.parts, theirs):
            same = part and other and type(part.kind) is type(other.kind) and part.kind.shape == other.kind.shape
            require(bool(same), "condition: differs in kind or shape from that of the checkpoint; give the same")
            part.sources, part.axes = other.sources, other.axes

    def state_dict(self) -> list[dict[str, Any]]:
        """The kinds and constants as plain values."""
        return [part.state_dict() for part in self.parts]


def from_state(state: Sequence[dict[str, Any]], standardize: Standardization | None) -> StoredCondition | None:
    """The conditions of a checkpoint, without where they are stored; None if there are none."""
    parts = list[Part]()
    for known in state:
        kind: Condition
        if "num_classes" in known:
            kind = ClassLabel(known["num_classes"])
        else:
            shape = known["shape"]
            kind = Array(shape) if len(shape) > 1 else Vector(shape[0], known.get("names", ()))
        part = Part(kind, standardize, name=known["name"])
        if part.standardize is not None:
            part.standardize.load_state_dict(known["standardize"])
        parts.append(part)
    return StoredCondition(parts) if parts else None


def find_condition(
    sources: Sequence[Source], axes: Axes, windows: Windows, num_classes: int | None, standardize: Standardization | None
) -> StoredCondition:
    """The conditions in sources: integers (N,) are class labels, neighboring floats (N,) one vector, (N, K) vectors, and
    what has the axes of the data arrays.

    Args:
        sources: where they are.
        axes: of the data.
        windows: of the data.
        num_classes: number of classes; None: found; 0: integers are numbers.
        standardize: how numbers are standardized.
    """
    parts, alone = list[Part](), "N" not in axes.letters
    kinds = [_kind(source, axes, windows, alone, num_classes) for source in sources]
    for numbers, run in groupby(zip(sources, kinds, strict=True), key=lambda pair: pair[1] is None):
        together = list(run)
        if numbers:
            columns = [source for source, _ in together]
            names = [str(source.key) for source in columns if source.key is not None]
            parts.append(Part(Vector(len(together), names), standardize, columns))
        parts += [Part(kind[0], standardize, [source], kind[1]) for source, kind in together if kind is not None]
    return StoredCondition(parts)


def _kind(
    source: Source, axes: Axes, windows: Windows, alone: bool, num_classes: int | None
) -> tuple[Condition, Axes | None] | None:
    """The kind of one condition, and its axes if it is an array; None for one number per row."""
    size = source.first.shape
    inner = size if alone else size[1:]
    if not inner and source.first.dtype.kind in "biu" and num_classes != 0:
        return ClassLabel(num_classes or _highest(source, alone) + 1), None
    if len(inner) <= 1:
        return (Vector(inner[0]), None) if inner else None
    found = _axes_of(source, size, axes, windows)
    return Array(found.shape), found


def _axes_of(source: Source, size: tuple[int, ...], axes: Axes, windows: Windows) -> Axes:
    """The axes of an array of conditions: those of the data, with or without channels."""
    bare = axes.letters.replace("C", "")
    full = axes.letters if "C" in axes.letters else bare.replace("N", "NC") if "N" in bare else f"C{bare}"
    letters = next((each for each in (full, bare) if len(each) == len(size)), None)
    if letters is None:
        raise InputError(
            f"condition={source}: has shape {list(size)}; must be integers (N,), floats (N,) or (N, K), or an array with "
            f"the axes of the data, {full}"
        )
    return find_axes(size, letters, None, windows.size)


def _highest(source: Source, alone: bool) -> int:
    """The largest label."""
    labels = source.rows(alone)
    require(int(labels.min()) >= 0, f"condition={source}: has the label {labels.min()}; number the classes from 0")
    return int(labels.max())
