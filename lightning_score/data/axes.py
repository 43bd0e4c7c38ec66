"""The axes of arrays: which are the examples, the channels and the positions, and windows of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_score.errors import InputError, require

CHANNELS = 16
"""An axis of undeclared meaning may be that of channels if it is at most this long."""


class Axes(NamedTuple):
    """The meaning of the axes of an array.

    Attributes:
        letters: one per axis: N examples, C channels, any other letter a position, as in NCHW.
        shape: of one example, channels first.
    """

    letters: str
    shape: tuple[int, ...]


class Windows(NamedTuple):
    """Windows along each axis of positions; none: whole arrays.

    Attributes:
        size: their sizes.
        stride: from the start of one to that of the next.
    """

    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def lead(self) -> int:
        """Number of the first axes of `ordered` arrays, which count the examples."""
        return 1 + len(self.size)

    def check(self) -> None:
        """Raises `InputError` unless they are positive sizes."""
        require(
            len(self.size) == len(self.stride) and all(type(n) is int and n > 0 for n in (*self.size, *self.stride)),
            f"window={list(self.size)}, stride={list(self.stride)}: must be positive sizes, one for each axis of positions, "
            "as in window: [128], stride: [8]",
        )


def find_axes(
    size: Sequence[int],
    letters: str | None,
    shape: Sequence[int] | None,
    window: Sequence[int],
    known: str = "",
    many: bool = True,
) -> Axes:
    """The axes of an array: as declared, or the first likely ones that fit the declared shape.

    Args:
        size: the shape of the array.
        letters: the declared axes; null: found.
        shape: the declared shape of an example; null: any.
        window: the sizes of windows; empty for whole arrays.
        known: the axes that the format of the file declares.
        many: whether the first axis is that of examples, unless the file declares its axes.

    Raises:
        InputError: none fit.
    """
    require(len(size) > 0, "the array is a single number; it must have one axis or more")
    tried = [letters] if letters is not None else _likely(size, len(window), known, many, shape is not None)
    for each in tried:
        require(
            len(set(each)) == len(each) == len(size) and each.isalpha() and each.isupper(),
            f"axes={each}: must be {len(size)} different capital letters for an array of shape {list(size)}, with N for "
            "examples, C for channels and other letters for positions, as in NCHW",
        )
        found = _shape(each, size, window)
        if found is not None and (shape is None or found == tuple(shape)):
            return Axes(each, found)
    shapes = "; ".join(f"axes={each}: {list(_shape(each, size, window) or [])}" for each in tried) or "none fits"
    wanted = f" of shape={list(shape)}" if shape is not None else ""
    windows = f" with window={list(window)}" if window else ""
    raise InputError(
        f"axes={letters}: an array of shape {list(size)} has no examples{wanted}{windows} ({shapes}); declare the axes, "
        "with N for examples, C for channels and other letters for positions, as in NCHW, NHW or CL"
    )


def ordered(array: np.ndarray, axes: Axes, windows: Windows) -> np.ndarray:
    """A view of an array with the axes (N, windows along each position, C, positions)."""
    letters = axes.letters
    places = [k for k, letter in enumerate(letters) if letter not in "NC"]
    array = array.transpose([*(letters.index(letter) for letter in "NC" if letter in letters), *places])
    if "N" not in letters:
        array = array[None]
    if "C" not in letters:
        array = array[:, None]
    if not windows.size:
        return array
    seen = np.lib.stride_tricks.sliding_window_view(array, windows.size, tuple(range(2, array.ndim)))
    steps = (slice(None), slice(None), *(slice(None, None, step) for step in windows.stride))
    return np.moveaxis(seen[steps], 1, len(windows.size) + 1)


def _shape(letters: str, size: Sequence[int], window: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of an example; None if windows do not fit."""
    of = dict(zip(letters, size, strict=True))
    places = [n for letter, n in of.items() if letter not in "NC"]
    if window and (len(window) != len(places) or any(w > n for w, n in zip(window, places, strict=True))):
        return None
    return None if len(places) > 3 else (of.get("C", 1), *(window or places))


def _likely(size: Sequence[int], windowed: int, known: str, many: bool, all_of_them: bool) -> list[str]:
    """The likely axes of an array, the likeliest first."""
    places = {0: "", 1: "L", 2: "HW", 3: "DHW"}
    found = [known] if known else []
    for first in ("N", "") if many and not known else ("", "N"):
        inner = size[len(first) :]
        rest = len(inner)
        options = [f"C{places[rest - 1]}", f"{places[rest - 1]}C"] if 1 <= rest <= 4 else []
        likely = [each for each in options if _is_small(inner, each.index("C"))]
        likely += [places[rest]] if rest in places else []
        if rest <= 1 and not windowed:  # a table
            likely = ["C"] * rest or [""] * len(first)
        found += [first + each for each in [*likely, *(options if all_of_them else [])]]
    return [each for each in dict.fromkeys(found) if not windowed or len(set(each) - set("NC")) == windowed]


def _is_small(sizes: Sequence[int], axis: int) -> bool:
    """Whether an axis is as short as that of channels usually is beside positions."""
    channels, least = sizes[axis], min((*sizes[:axis], *sizes[axis + 1 :]), default=0)
    return channels < least and (channels <= 4 or (channels <= CHANNELS and 2 * channels <= least))
