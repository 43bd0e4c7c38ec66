"""Coefficients at the times of a grid, computed all together and looked up one by one.

A sampler asks for a dozen coefficients at every step, each of up to a dozen operations on single numbers; one by one these
take longer than a small network does.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from torch import Tensor

COEFFICIENTS = ("log_alpha", "alpha", "sigma", "drift", "diffusion", "log_snr")
"""The functions of time that are cached."""


class CoefficientCache:
    """Functions of time at the times of a grid.

    Args:
        times: on the CPU, (N,).
    """

    def __init__(self, times: Tensor):
        self._times = times
        self._rows = {t: row for row, t in enumerate(times.tolist())}
        self._tables: dict[Hashable, list[Any]] = {}

    def get(self, key: Hashable, compute: Callable[[Tensor], Any], t: Tensor) -> Any:
        """`compute(t)`, a tensor or a named tuple of tensors: from the table `key` if t is one of the times of the grid."""
        alike = t.ndim == 0 and t.dtype == self._times.dtype and t.device.type == "cpu"
        row = self._rows.get(float(t)) if alike else None
        if row is None:
            return compute(t)
        if key not in self._tables:
            table = compute(self._times)
            self._tables[key] = list(table.unbind() if isinstance(table, Tensor) else _transposed(table))
        return self._tables[key][row]


class CachedCoefficients:
    """Caches the coefficients of every subclass, which need not know of it, at the times given to `cached_at`."""

    _cache: CoefficientCache | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in COEFFICIENTS:
            if name in vars(cls):
                setattr(cls, name, _cached(vars(cls)[name]))

    @contextmanager
    def cached_at(self, times: Tensor) -> Iterator[None]:
        """Within, coefficients at any one of these times, (N,) on the CPU, are looked up; all others are computed."""
        before, self._cache = vars(self).get("_cache"), CoefficientCache(times)
        try:
            yield
        finally:
            del self._cache  # so that a process that was used has the attributes of a new one
            if before is not None:
                self._cache = before

    def cached(self, key: Hashable, compute: Callable[[Tensor], Any], t: Tensor) -> Any:
        """`compute(t)`, a tensor or a named tuple of tensors, cached under `key` at the times of `cached_at`."""
        return compute(t) if self._cache is None else self._cache.get(key, compute, t)


def _transposed(columns: Any) -> Any:
    """The rows of a named tuple of columns."""
    return map(type(columns)._make, zip(*(column.unbind() for column in columns), strict=True))


def _cached(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @wraps(function)
    def look_up(process: CachedCoefficients, t: Tensor) -> Tensor:
        return process.cached(function, partial(function, process), t)

    return look_up
