"""Gray images of more than 8 bits: one scale for all files of a data set, so that equal values give equal bytes."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lightning_score.errors import require

GrayScale = Mapping[str, Sequence[float]]
"""The values of black and white by number type, integer or float; or, chosen by the user, for any type: then values outside
are clamped.
"""

TOPS = {"integer": (1, 255, 1023, 4095, 16383, 65535), "float": (1, 255, 65535)}
"""Usual values of white: the largest numbers of some bits."""
FEW = 32
"""Warn of fewer gray levels than this."""


def check_gray_range(gray_range: Sequence[float] | None) -> None:
    """Raises `InputError` unless it is two increasing numbers or null."""
    require(
        gray_range is None
        or (len(gray_range) == 2 and all(map(math.isfinite, gray_range)) and gray_range[0] < gray_range[1]),
        f"gray_range={gray_range}: must be two increasing numbers, the values of black and white, as in [0, 4095], or null",
    )


def is_deep(image: Image.Image) -> bool:
    """Whether an image is gray with more than 8 bits: 16 or 32, or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def eight_bits(values: np.ndarray, scale: GrayScale | None = None) -> np.ndarray:
    """Gray values as bytes: round(255 (v - black)/(white - black)), clamped.

    Args:
        values: gray values of any type.
        scale: black and white; null: fitted to these values.

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
        black, white = scale.get(kind) or (0.0, _white(kind, high))
    return np.round((values - black) * (255.0 / (white - black))).clip(0, 255).astype(np.uint8)


def gray_scale(files: Sequence[Path], folder: Path, kept: Path, chosen: Sequence[float] | None = None) -> GrayScale:
    """Black and white for the images of more than 8 bits among the files of a data set; prints them.

    Black is 0. White is the smallest usual value that is not below all values, or the largest value if that would leave most
    of the 256 levels unused.

    Args:
        files: the images.
        folder: the folder of the images.
        kept: the cache file for the largest values.
        chosen: black and white from the user.
    """
    if chosen is not None:
        return {"any": tuple(map(float, chosen))}
    try:
        highest = json.loads(kept.read_text())
    except (OSError, ValueError):
        highest = _highest_by_type(files)
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_name(f"{kept.name}-{os.getpid()}")
            temporary.write_text(json.dumps(highest))
            temporary.replace(kept)
    scale = {kind: (0.0, _white(kind, high)) for kind, (_, high) in highest.items()}
    if rank_zero_only.rank == 0:
        for kind, (n, high) in highest.items():
            print(
                f"{folder}: {n} gray images of {kind} values up to {high:g}: in all of them 0 is black and "
                f"{scale[kind][1]:g} white (--data.gray_range changes it)",
                flush=True,
            )
    return scale


def warn_of_few_levels(images: Tensor, folder: Path) -> None:
    """Warns if few gray levels are left.

    Args:
        images: uint8 (N, C, H, W), of which a thousand are checked.
        folder: their folder.
    """
    levels = int(images[:: max(len(images) // 1000, 1)].flatten().bincount().count_nonzero())
    if levels < FEW:
        rank_zero_warn(
            f"{folder}: only {levels} gray levels of 256 are left; give the values of black and white by --data.gray_range"
        )


def _highest_by_type(files: Sequence[Path]) -> dict[str, tuple[int, float]]:
    """The number of images of more than 8 bits and their highest value, by number type."""
    found: dict[str, tuple[int, float]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(_highest_of, files), "reading gray scales", len(files), unit="image", disable=None, leave=False)
        for kind, high in (each for each in bar if each is not None):
            n, before = found.get(kind, (0, 0.0))
            found[kind] = (n + 1, max(before, high))
    return dict(sorted(found.items()))


def _highest_of(file: Path) -> tuple[str, float] | None:
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


def _white(kind: str, high: float) -> float:
    top = next(float(top) for top in TOPS[kind] if high <= top)
    return top if top == 1 or high >= top / 4 else high
