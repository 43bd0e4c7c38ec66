"""Which examples of arrays are for training and which are held out: no number in the files is in both."""

from math import prod

import numpy as np

from lightning_score.data.axes import Windows
from lightning_score.data.base import split_indices
from lightning_score.data.stored import Stored
from lightning_score.errors import require

Split = tuple[np.ndarray, np.ndarray]
"""The numbers of the training and of the held-out examples."""


def split_examples(x: Stored, rows: np.ndarray, held_out: float, groups: np.ndarray | None, windows: Windows) -> Split:
    """A fraction of whole groups, of rows, or where there are too few rows, of the positions of each row.

    Args:
        x: all examples.
        rows: the row of each, which windows share.
        held_out: the fraction.
        groups: the group of each row; None: each row is one.
        windows: of the examples.

    Raises:
        InputError: there is not one group for each row, or only one in all.
    """
    n = int(rows[-1]) + 1
    if groups is None and windows.size and n * held_out < 1:
        split = _split_positions(x, held_out, windows)
        if n == 1 or all(len(part) for part in split):  # else the held-out part of a row is shorter than a window
            return split
    if groups is None and not windows.size:
        return split_indices(n, held_out)
    groups = np.arange(n) if groups is None else groups
    require(groups.shape == (n,), f"group: has shape {list(groups.shape)}, and the data have {n} rows; give one for each")
    _, number = np.unique(groups, return_inverse=True)
    count = int(number.max()) + 1
    require(count > 1, "group: all examples are of one; two or more groups can be split")
    train = np.isin(number, split_indices(count, held_out)[0])[rows]
    return np.flatnonzero(train), np.flatnonzero(~train)


def _split_positions(x: Stored, held_out: float, windows: Windows) -> Split:
    """Windows before and after a position along their first axis; those across it are left out."""
    size, stride, before, after = windows.size[0], windows.stride[0], list[np.ndarray](), list[np.ndarray]()
    for part in x.parts:
        n, places, *others = part.shape[: x.lead]
        start = np.broadcast_to(stride * np.arange(places)[:, None], (n, places, prod(others))).flatten()
        border = round((stride * (places - 1) + size) * (1 - held_out))
        before.append(start + size <= border)
        after.append(start >= border)
    return np.flatnonzero(np.concatenate(before)), np.flatnonzero(np.concatenate(after))
