"""Examples that stay in files until they are indexed."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_score.memory import require_room

CHUNK = 1 << 18
"""Numbers that are read at once: few enough that passes over them stay in the cache of the processor."""


class Stored(Tensor):
    """A tensor (N, *shape) of floats whose rows are read from arrays, memory-mapped or not, when they are indexed.

    Indexing rows by a slice gives another such tensor, by integers a usual one; any other operation reads all rows.

    Args:
        parts: arrays of `lead` axes, each combination of which is an example, and those of `shape`.
        lead: their number.
        missing: the value that becomes NaN.
        then: applied to what is read.
        rows: the examples, numbered through all parts; all by default.
        dtype: of what is read; by default float64 for numbers of more than 4 bytes or integers of 4, else float32.
    """

    def __new__(
        cls,
        parts: Sequence[np.ndarray],
        lead: int = 1,
        missing: float | None = None,
        then: Callable[[Tensor], Tensor] | None = None,
        rows: np.ndarray | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Stored":
        counts = [prod(part.shape[:lead]) for part in parts]
        rows = np.arange(sum(counts)) if rows is None else rows
        wide = any(part.dtype.itemsize > 4 or (part.dtype.kind in "iu" and part.dtype.itemsize == 4) for part in parts)
        kept = dtype or (torch.float64 if wide else torch.float32)
        self: Stored = Tensor._make_wrapper_subclass(cls, (len(rows), *parts[0].shape[lead:]), dtype=kept)
        self.parts, self.lead, self.missing, self.then, self.rows = parts, lead, missing, then, rows
        self.ends, self.read_as = np.cumsum(counts), np.dtype("f8" if wide else "f4")
        return self

    parts: Sequence[np.ndarray]
    lead: int
    missing: float | None
    then: Callable[[Tensor], Tensor] | None
    rows: np.ndarray
    ends: np.ndarray
    read_as: np.dtype[Any]

    def of(
        self, rows: np.ndarray, then: Callable[[Tensor], Tensor] | None = None, dtype: torch.dtype | None = None
    ) -> "Stored":
        """Some of the rows, not read yet; with another function of what is read, and the type of its result."""
        return Stored(self.parts, self.lead, self.missing, then or self.then, self.rows[rows], dtype or self.dtype)

    def take(self, rows: Any) -> Tensor:
        """Some of the rows."""
        numbers = self.rows[rows]
        if len(self.parts) == 1:
            found = self._read(0, numbers)
        else:
            found = np.empty((len(numbers), *self.shape[1:]), self.read_as)
            part = np.searchsorted(self.ends, numbers, side="right")
            for k in np.unique(part):
                found[part == k] = self._read(int(k), numbers[part == k] - (self.ends[k - 1] if k else 0))
        read = torch.from_numpy(found)
        return (read if self.then is None else self.then(read)).to(self.dtype)

    def _read(self, k: int, numbers: np.ndarray) -> np.ndarray:
        part = self.parts[k]
        here = numbers if self.lead == 1 else np.unravel_index(numbers, part.shape[: self.lead])
        raw = part[here]
        found = np.ascontiguousarray(raw, self.read_as)
        if self.missing is not None and self.missing == self.missing:
            found[raw == self.missing] = np.nan
        return found

    def read(self) -> Tensor:
        """All rows, in memory."""
        require_room(self.nbytes, f"{len(self)} examples of shape {list(self.shape[1:])}")
        found = torch.empty(self.shape, dtype=self.dtype)
        first = 0
        for chunk in chunks(self):
            found[first : first + len(chunk)] = chunk
            first += len(chunk)
        return found

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.of(np.arange(len(self))[index])
        if isinstance(index, int | np.integer):
            return self.take([int(index)])[0]
        if isinstance(index, Tensor | np.ndarray | list | range) and np.ndim(index) == 1:
            return self.take(np.asarray(index))
        return self.read()[index]

    def index_select(self, dim: Any, index: Tensor) -> Tensor:
        return self.take(index.numpy()) if dim == 0 else self.read().index_select(dim, index)

    def split(self, size: Any, dim: int = 0) -> Any:
        if dim != 0 or not isinstance(size, int):
            return self.read().split(size, dim)
        return tuple(self[first : first + size] for first in range(0, len(self), size))

    def numpy(self, *, force: bool = False) -> np.ndarray:
        return self.read().numpy(force=force)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Stored, (self.parts, self.lead, self.missing, self.then, self.rows, self.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(Stored, Stored.read, (args, kwargs or {}))
        return func(*args, **kwargs)


def chunks(x: Tensor) -> Iterator[Tensor]:
    """All examples in memory, some at a time."""
    for part in x.split(max(1, CHUNK // max(1, prod(x.shape[1:])))):
        yield part.take(slice(None)) if isinstance(part, Stored) else part
