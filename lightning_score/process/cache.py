"""Coefficients at the times of a grid, computed all together and looked up one by one.

A sampler asks for a dozen coefficients at every step, each of up to a dozen operations on single numbers; one by one these
take longer than a small network does.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = ("log_alpha", "alpha", "sigma", "drift", "diffusion", "log_snr")
"""The functions of time that are cached."""


class CoefficientCache:
    """Functions of time at the times of a grid.

    Args:
        times: on the CPU, (N,).
    """

    def __init__(self, times: Tensor):
        self.times = times
        self._rows = {t: row for row, t in enumerate(times.tolist())}
        self._tables: dict[Hashable, tuple[Tensor, list[Tensor]]] = {}
        self._steps: dict[Hashable, Any] = {}
        self._numbers: dict[Hashable, Any] = {}

    def renewed(self) -> "CoefficientCache":
        """One that shares what depends on the process and on steps, but not the numbers of single times."""
        fresh = copy(self)
        fresh._numbers = {}
        return fresh

    def _row(self, t: Tensor) -> int | None:
        """The position of t, (), on the grid; None if it is not one of the times."""
        alike = t.ndim == 0 and t.is_cpu and t.dtype == self.times.dtype
        return self._rows.get(float(t)) if alike else None

    def get(self, key: Hashable, compute: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        """`compute(t)`: from the table `key` if t is one of the times of the grid, or all of them."""
        row = None if t is self.times else self._row(t)
        if row is None and t is not self.times:
            return compute(t)
        if key not in self._tables:
            table = compute(self.times)
            self._tables[key] = table, [*table.unbind()]
        return self._tables[key][0] if row is None else self._tables[key][1][row]

    def numbers(self, key: Hashable, compute: Callable[..., Any], times: tuple[Tensor, ...]) -> Any:
        """`compute(*times)`, a named tuple: of numbers, computed once, if all are times of the grid."""
        rows = tuple(map(self._row, times))
        if None in rows:
            return compute(*times)
        kept = self._steps if len(rows) > 1 else self._numbers
        if (key, rows) not in kept:
            self._add_numbers(key, compute, rows)
        return kept[key, rows]

    def _add_numbers(self, key: Hashable, compute: Callable[..., Any], rows: tuple[Any, ...]) -> None:
        """Adds those of one step, or, if there is one time alone, those of all times, computed together."""
        if len(rows) > 1:
            found = compute(*(self.times[row] for row in rows))
            self._steps[key, rows] = found._make(map(float, found))
            return
        columns = compute(self.times)
        for row, found in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            self._numbers[key, (row,)] = columns._make(found)


class CachedCoefficients:
    """Caches the coefficients of every subclass, which need not know of it, at the times given to `cached_at`."""

    _cache: CoefficientCache | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in COEFFICIENTS:
            if name in vars(cls):
                setattr(cls, name, _cached(vars(cls)[name]))

    @contextmanager
    def cached_at(self, times: Tensor, kept: CoefficientCache | None = None) -> Iterator[None]:
        """Within, coefficients at any one of these times, (N,) on the CPU, are looked up; all others are computed.

        Args:
            times: the times.
            kept: a cache of these times to use again: no setting of the process or of steps may have changed since; null: a
                new one.
        """
        before, self._cache = vars(self).get("_cache"), kept.renewed() if kept else CoefficientCache(times)
        try:
            yield
        finally:
            del self._cache  # so that a process that was used has the attributes of a new one
            if before is not None:
                self._cache = before

    def _kept(self) -> CoefficientCache | None:
        """The cache, which cannot be asked from within a graph."""
        return None if torch.compiler.is_compiling() else self._cache

    def cached(self, key: Hashable, compute: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        """`compute(t)`, cached under `key` at the times of `cached_at`."""
        return compute(t) if (kept := self._kept()) is None else kept.get(key, compute, t)

    def numbers(self, key: Hashable, compute: Callable[..., Any], *times: Tensor) -> Any:
        """`compute(*times)`, a named tuple of tensors of the shape of the times; at times of `cached_at` a named tuple of
        numbers, computed once and kept under `key`, which stands for all else that they depend on.
        """
        return compute(*times) if (kept := self._kept()) is None else kept.numbers(key, compute, times)


def _cached(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @wraps(function)
    def look_up(process: CachedCoefficients, t: Tensor) -> Tensor:
        return process.cached(function, partial(function, process), t)

    return look_up
