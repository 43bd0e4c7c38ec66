"""Gray images of more than 8 bits: one scale for all files of a data set, so that equal values give equal bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

GrayScale = Mapping[str, Sequence[float]]
"""The values of black and white by number type, integer or float; or, chosen by the user, for any type: then values outside
are clamped.
"""

TOPS = {"integer": (1, 255, 1023, 4095, 16383, 65535), "float": (1, 255, 65535)}
"""Usual values of white: the largest numbers of some bits."""
FEW = 32
"""Warn of fewer gray levels than this."""


def is_deep(image: Image.Image) -> bool:
    """Whether an image is gray with more than 8 bits: 16 or 32, or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def as_levels(values: np.ndarray, scale: GrayScale | None = None, levels: int = 256) -> np.ndarray:
    """Gray values as bytes, or uint16: round((levels - 1) (v - black)/(white - black)), clamped.

    Args:
        values: gray values of any type.
        scale: black and white; null: fitted to these values.
        levels: 256 or 65536.

    Raises:
        ValueError: the values are not finite or, without a scale from the user, not in 0..65535.
    """
    scale, kind = scale or {}, _kind(values)
    if "any" in scale:
        black, white = scale["any"]
        if not np.isfinite(values).all():
            raise ValueError("gray levels that are not finite")
    else:
        high = _highest(values)
        black, white = scale.get(kind) or (0.0, white_level(kind, high))
    level = np.round((values - black) * ((levels - 1.0) / (white - black))).clip(0, levels - 1)
    return level.astype(np.uint8 if levels == 256 else np.uint16)


def warn_of_few_levels(images: Tensor, folder: Path) -> None:
    """Warns if few gray levels are left.

    Args:
        images: uint8 or uint16 (N, C, H, W), of which a thousand are checked.
        folder: their folder.
    """
    levels = int(images[:: max(len(images) // 1000, 1)].flatten().int().bincount().count_nonzero())
    if levels < FEW:
        rank_zero_warn(
            f"{folder}: only {levels} gray levels of {256**images.itemsize} are left; give the values of black and white by "
            "--data.gray_range"
        )


def highest_of(file: Path) -> tuple[str, float] | None:
    """The number type and highest value of an image of more than 8 bits; None for others and for unreadable files."""
    try:
        with Image.open(file) as image:
            if not is_deep(image):
                return None
            values = np.asarray(image)
        return _kind(values), _highest(values)
    except Exception:  # PIL raises many types
        return None


def _kind(values: np.ndarray) -> str:
    return "float" if values.dtype.kind == "f" else "integer"


def _highest(values: np.ndarray) -> float:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):
        raise ValueError(f"gray levels from {low:g} to {high:g} are not of 8 or 16 bits; give --data.gray_range")
    return high


def white_level(kind: str, high: float) -> float:
    """The value that becomes white: the smallest usual one that is not below the largest value `high`, or `high` itself if
    that would leave most of the 256 levels unused.
    """
    top = next(float(top) for top in TOPS[kind] if high <= top)
    return top if top == 1 or high >= top / 4 else high
