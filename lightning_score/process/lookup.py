"""Coefficients at the times of a grid, made all together and looked up one by one.

A sampler asks for a dozen coefficients at every step, each of up to a dozen operations on single numbers; one by one these
take longer than a small network does.
"""

from collections.abc import Callable, Hashable
from functools import partial, wraps
from typing import Any

from torch import Tensor


class Tables:
    """Functions of time at the times of a grid.

    Args:
        times: on the CPU, (N,).
    """

    def __init__(self, times: Tensor):
        self._times = times
        self._rows = {t: row for row, t in enumerate(times.tolist())}
        self._tables: dict[Hashable, list[Any]] = {}

    def look_up(self, key: Hashable, compute: Callable[[Tensor], Any], t: Tensor) -> Any:
        """`compute(t)`, a tensor or a named tuple of tensors, from the table `key` if t is one of the times of the grid."""
        if t.ndim > 0 or t.dtype != self._times.dtype or t.device.type != "cpu":
            return compute(t)
        row = self._rows.get(float(t))
        if row is None:
            return compute(t)
        if key not in self._tables:
            table = compute(self._times)
            self._tables[key] = list(table.unbind() if isinstance(table, Tensor) else _transposed(table))
        return self._tables[key][row]


def _transposed(columns: Any) -> Any:
    """The rows of a named tuple of columns."""
    return map(type(columns)._make, zip(*(column.unbind() for column in columns), strict=True))


def coefficient(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Has a process's function of time looked up at the times that the process has at hand."""

    @wraps(function)
    def looked_up(process: Any, t: Tensor) -> Tensor:
        return process.look_up(function, partial(function, process), t)

    return looked_up
