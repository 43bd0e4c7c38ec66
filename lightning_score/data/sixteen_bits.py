"""Images of 16 bits per channel: gray or color, from files of any depth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lightning_score.data.gray import GrayScale, as_levels, is_deep

LEVELS = 1 << 16
"""Gray levels of 16 bits."""
OTHER_BYTE = {"B": "L", "L": "B", "N": "B"}
"""Byte orders that PIL knows, and one with which it reads the other byte of a number."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601), as PIL's."""


def deep_planes(file: Path, channels: int, scale: GrayScale | None = None) -> list[Image.Image]:
    """The channels of an image of any depth as pictures of floats, 0..65535; transparency becomes white.

    Args:
        file: its file.
        channels: 1 for gray, 3 for color.
        scale: black and white of gray images of more than 8 bits; null: fitted to this image.

    Raises:
        ValueError: its values cannot be read with 16 bits.
    """
    with Image.open(file) as opened:
        if _is_deep_color(opened):
            values = _color(file)
            turned = [_turned(Image.fromarray(plane), opened) for plane in np.moveaxis(values, -1, 0).astype(np.float32)]
            values = np.stack([np.asarray(plane) for plane in turned], -1)
        else:
            values = values_of(ImageOps.exif_transpose(opened), scale)
    return planes_of(values, channels)


def planes_of(values: np.ndarray, channels: int) -> list[Image.Image]:
    """Values (H, W, C) in 0..65535, the last of an even number of channels opacity, as pictures of floats, one per channel
    of the result.
    """
    if values.shape[2] in (2, 4):
        opaque = values[..., -1:] / (LEVELS - 1)
        values = values[..., :-1] * opaque + (LEVELS - 1) * (1 - opaque)
    if values.shape[2] == 3 and channels == 1:
        values = (values * LUMA).sum(-1, keepdims=True)
    values = np.broadcast_to(values, (*values.shape[:2], channels)).astype(np.float32)
    return [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(values, -1, 0)]


def fit(planes: Sequence[Image.Image], shape: Sequence[int]) -> np.ndarray:
    """An image of bytes, as uint8 of `shape`, or from `deep_planes`, as uint16, cropped at its center and resized."""
    channels, height, width = shape
    fitted = [np.asarray(ImageOps.fit(plane, (width, height), Image.Resampling.BILINEAR)) for plane in planes]
    if fitted[0].dtype == np.uint8:
        return fitted[0].reshape(height, width, channels).transpose(2, 0, 1)
    return np.stack(fitted).round().astype(np.uint16)


def values_of(image: Image.Image, scale: GrayScale | None = None) -> np.ndarray:
    """Values (H, W, C) in 0..65535 of an image as PIL has read it."""
    if is_deep(image):
        return as_levels(np.asarray(image), scale, LEVELS)[..., None].astype(float)
    transparent = image.has_transparency_data
    gray = image.mode in ("1", "L")
    values = np.asarray(image.convert("RGBA" if transparent else "L" if gray else "RGB"), float) * (LEVELS // 256 + 1)
    return values if values.ndim == 3 else values[..., None]


def _is_deep_color(opened: Image.Image) -> bool:
    """Whether an opened image has color with 16 bits, of which PIL reads 8.

    Raises:
        ValueError: in a form of which only these 8 can be read.
    """
    modes = {str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in getattr(opened, "tile", [])}
    bits = max(getattr(opened, "tag_v2", {}).get(258, (8,)))  # BitsPerSample of a TIFF
    deep = any(";16" in mode for mode in modes) and not is_deep(opened)
    separate = bits > 8 and not is_deep(opened) and not deep
    if separate or any(mode.startswith("LA;16") for mode in modes):
        raise ValueError("of its 16 bits only 8 can be read; save it as gray or RGB, in one plane")
    return deep


def _color(file: Path) -> np.ndarray:
    """All 16 bits of a color image, (H, W, 3 or 4): PIL reads the high bytes, and the low ones in the other byte order."""
    halves = []
    for low in (False, True):
        with Image.open(file) as opened:
            if low:
                opened.tile = [tile._replace(args=_swapped(tile.args)) for tile in opened.tile]
            halves.append(np.asarray(opened).astype(np.uint16))
    return 256 * halves[0] + halves[1]


def _swapped(args: str | tuple[str, ...]) -> str | tuple[str, ...]:
    mode, *others = (args,) if isinstance(args, str) else args
    swapped = mode[:-1] + OTHER_BYTE[mode[-1]]
    return swapped if isinstance(args, str) else (swapped, *others)


def _turned(plane: Image.Image, opened: Image.Image) -> Image.Image:
    """A picture of one channel, turned as the EXIF orientation of its file says."""
    orientation = opened.getexif().get(0x0112)
    if orientation:
        plane.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(plane)
